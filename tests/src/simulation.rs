//! A whole cluster from one seed: the real scheduler core and the real node cores on model machines, joined by a model
//! network, on a virtual clock.
//!
//! ```text
//! operator (operations and faults, from the seed)
//!     │                     network (delays, breaks, cuts; late and repeated sets)
//!     ▼                                  │
//! scheduler: World, decide, check ◀──────┴──────▶ node: NodeCore + ledger ──steps──▶ host: containers, processes
//!     │ every entry                                  │ every set that is sent or taken      │ every start and end
//!     └───────────────────────────────▶ checkers ◀───┴───────────────────────────────────────┘
//! ```
//!
//! One thread, one queue of events ordered by time: a seed gives the same run for ever. First operations and faults rain
//! for a minute or two of virtual time; then all faults are mended and the cluster must come to rest.
//!
//! The checkers ([`checkers`]) share no code with what they check: they keep their own sums from raw entries, and look at
//! the processes of the model machines, not at what anybody believes of them. The scheduler's actor and the node's loop are
//! modelled here ([`scheduler`], [`node`]), because the real ones are asynchronous; they are kept as close to the real
//! ones as their rules are written down.

mod chance;
mod checkers;
mod host;
mod link;
mod node;
mod operator;
mod scheduler;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use berth_api::assignment::Position;
use berth_api::id::ReplicaId;
use berth_api::replica::ReplicaStatus;
use berth_node::host::{Exit, Observed};
use berth_node::plan::{ObservationToken, Write};
use berth_node::replica::{Failure as StepFailure, Outcome, Step};

use chance::Chance;
use checkers::Checkers;
use node::Machine;
use scheduler::Scheduler;

/// The rule that a run broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// A machine carries no more than it has.
    Capacity,
    /// No address and no host port is given twice.
    Uniqueness,
    /// One process per replica, one writer per volume.
    SingleWriter,
    /// Positions only rise, and a node takes only what was sent to it.
    Order,
    /// A process ends by itself, by a stop, by an update or by its health check.
    Silence,
    /// What is reported gone is gone.
    Gone,
    /// The scheduler's own verifier finds nothing, and deciding again changes nothing.
    Decision,
    /// The log gives the live state, byte for byte.
    Replay,
    /// What is not as it should be says why.
    Explanation,
    /// Once faults stop, everything wanted runs and nothing else does.
    Convergence,
    /// An assertion of the code under test.
    Panic,
}

/// A way to break the system on purpose, to see that the checkers notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// A stateful replica is sent to a second machine as well.
    PlaceTwice,
    /// A node whose link is gone for a while stops what it runs.
    StopWhenSilent,
    /// The scheduler believes that machines are twice as large as they are.
    Overcommit,
    /// The scheduler takes a replica for gone as soon as it told it to stop.
    ForgetEarly,
    /// The scheduler repeats an old set as if it were new.
    FallBack,
    /// A node takes no set after its first.
    Deaf,
}

/// How to run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    pub mutation: Option<Mutation>,
    /// Keep the events for [`Summary::trace`] and [`Failure::trace`]; without it a failing seed is run once more.
    pub trace: Trace,
}

/// Whether events are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trace {
    #[default]
    Off,
    On,
}

/// What a run that broke no rule did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    pub events: u64,
    pub entries: u64,
    pub starts: u64,
    pub faults: u64,
    pub operations: u64,
    /// Virtual time until the cluster was at rest.
    pub virtual_ms: u64,
}

impl Summary {
    /// Adds what another run, or several of them, did.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.entries += other.entries;
        self.starts += other.starts;
        self.faults += other.faults;
        self.operations += other.operations;
        self.virtual_ms += other.virtual_ms;
    }
}

/// A rule that a run broke.
#[derive(Debug, Clone)]
pub struct Failure {
    pub seed: u64,
    pub rule: Rule,
    pub text: String,
    pub at_ms: u64,
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        write!(
            f,
            "seed {} broke {:?} at {} ms: {}\nrun it alone: SIM_SEEDS={}..{} (the trace above holds its last {} events)",
            self.seed,
            self.rule,
            self.at_ms,
            self.text,
            self.seed,
            self.seed + 1,
            self.trace.len()
        )
    }
}

/// Events kept for the trace.
const TRACE_LEN: usize = 80;
/// A run with more events than this does not come to rest.
const EVENTS_MAX: u64 = 400_000;

/// Runs one seed.
///
/// # Errors
/// With the rule that was broken first, and what led to it.
pub fn run(seed: u64, options: Options) -> Result<Summary, Box<Failure>> {
    let outcome = run_once(seed, options);
    match (&outcome, options.trace) {
        (Err(_), Trace::Off) => run_once(
            seed,
            Options {
                trace: Trace::On,
                ..options
            },
        ),
        _ => outcome,
    }
}

fn run_once(seed: u64, options: Options) -> Result<Summary, Box<Failure>> {
    let mut simulation = Simulation::new(seed, options);
    let ended = catch_unwind(AssertUnwindSafe(|| simulation.run_to_rest()));
    if let Err(panic) = ended {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default();
        simulation.checkers.found.get_or_insert((Rule::Panic, text));
    }
    match simulation.checkers.found.take() {
        None => Ok(simulation.summary),
        Some((rule, text)) => Err(Box::new(Failure {
            seed,
            rule,
            text,
            at_ms: simulation.now,
            trace: simulation.trace.into(),
        })),
    }
}

/// From a node to the scheduler.
#[derive(Debug, Clone)]
enum Up {
    /// Registers when needed and begins a session.
    Hello {
        position: Position,
    },
    Ack {
        position: Position,
        refused: bool,
    },
    Status {
        replicas: Vec<ReplicaStatus>,
        unlisted: Vec<ReplicaId>,
    },
}

/// From the scheduler to a node.
#[derive(Debug, Clone)]
enum Down {
    Set {
        position: Position,
        bytes: Vec<u8>,
    },
    StopConfirmed(Vec<ReplicaId>),
    Ping,
    /// The session is over.
    End,
}

/// Something that happens at a time. `life` names the daemon (or scheduler) that waits for it: another one does not.
#[derive(Debug)]
enum Event {
    Operator,
    Sample,
    SchedulerStart,
    SchedulerStep {
        life: u64,
    },
    SchedulerPeriod {
        life: u64,
    },
    ToScheduler {
        machine: usize,
        session: u64,
        message: Up,
    },
    ToNode {
        machine: usize,
        session: u64,
        message: Down,
    },
    PowerOn {
        machine: usize,
    },
    DaemonStart {
        machine: usize,
        life: u64,
    },
    Dial {
        machine: usize,
        life: u64,
    },
    LinkCheck {
        machine: usize,
        life: u64,
    },
    Turn {
        machine: usize,
        life: u64,
    },
    Heartbeat {
        machine: usize,
        life: u64,
    },
    StatusDue {
        machine: usize,
        life: u64,
    },
    Committed {
        machine: usize,
        life: u64,
        commit: Commit,
    },
    /// The machine does what the step says, whoever asked for it: a killed daemon takes back nothing.
    Effect {
        machine: usize,
        boot: u64,
        flight: u64,
    },
    StepEnded {
        machine: usize,
        life: u64,
        id: ReplicaId,
        flight: u64,
    },
    Observed {
        machine: usize,
        life: u64,
        token: ObservationToken,
        observed: Option<Observed>,
    },
    /// A process ends.
    Exit {
        machine: usize,
        pid: u32,
        status: u32,
        out_of_memory: bool,
    },
    ExitSeen {
        machine: usize,
        life: u64,
        id: ReplicaId,
        pid: u32,
        exit: Exit,
    },
    Probe {
        machine: usize,
        life: u64,
        id: ReplicaId,
        run: u32,
    },
    RuntimeUp {
        machine: usize,
    },
    Mend {
        machine: usize,
    },
}

/// What the ledger's thread writes at once, and what begins after that.
#[derive(Debug)]
struct Commit {
    writes: Vec<Write>,
    steps: Vec<(ReplicaId, Step, u64)>,
    set: Option<(Vec<u8>, Position)>,
}

/// A step at work on a machine.
#[derive(Debug)]
struct Flight {
    machine: usize,
    /// Of the daemon that began it: another one neither cancels it nor hears of its end.
    life: u64,
    id: ReplicaId,
    step: Step,
    /// What the machine is going to answer, decided when the step began or when its effect took place.
    result: Option<Result<Outcome, StepFailure>>,
    fails: Option<Fails>,
}

/// When an injected failure strikes: before the machine did anything, or after it did everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fails {
    Before,
    After,
}

#[derive(Debug)]
struct Queued {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// One run.
struct Simulation {
    options: Options,
    chance: Chance,
    now: u64,
    numbered: u64,
    queue: BinaryHeap<Reverse<Queued>>,
    scheduler: Scheduler,
    machines: Vec<Machine>,
    flights: BTreeMap<u64, Flight>,
    checkers: Checkers,
    weather: operator::Weather,
    summary: Summary,
    trace: VecDeque<String>,
}

impl Simulation {
    fn new(seed: u64, options: Options) -> Self {
        let mut chance = Chance::new(seed);
        let weather = operator::Weather::new(&mut chance);
        let machines = operator::machines(&mut chance);
        let mut checkers = Checkers::default();
        let scheduler = Scheduler::new(&machines, &mut checkers);
        let mut simulation = Self {
            options,
            chance,
            now: 0,
            numbered: 0,
            queue: BinaryHeap::new(),
            scheduler,
            machines,
            flights: BTreeMap::new(),
            checkers,
            weather,
            summary: Summary::default(),
            trace: VecDeque::new(),
        };
        simulation.after(0, Event::SchedulerStart);
        for machine in 0..simulation.machines.len() {
            let delay = simulation.chance.range(0..=2000);
            simulation.after(delay, Event::PowerOn { machine });
        }
        simulation.after(1000, Event::Operator);
        simulation.after(5000, Event::Sample);
        simulation
    }

    fn run_to_rest(&mut self) {
        while let Some(Reverse(queued)) = self.queue.pop() {
            assert!(queued.at >= self.now, "time goes on");
            self.now = queued.at;
            self.summary.events += 1;
            if self.summary.events > EVENTS_MAX {
                self.checkers
                    .broke(Rule::Convergence, format!("{EVENTS_MAX} events and no rest"));
            }
            self.happen(queued.event);
            if self.checkers.found.is_some() || self.weather.is_over() {
                break;
            }
        }
        self.summary.virtual_ms = self.now;
        self.summary.entries = u64::try_from(self.scheduler.log.len()).unwrap_or(u64::MAX);
        self.summary.starts = self.checkers.starts;
    }

    fn after(&mut self, delay_ms: u64, event: Event) {
        self.at(self.now + delay_ms, event);
    }

    fn at(&mut self, at: u64, event: Event) {
        self.numbered += 1;
        let number = self.numbered;
        self.queue.push(Reverse(Queued { at, number, event }));
    }

    /// Keeps a line for the trace of a failure.
    fn note(&mut self, line: impl FnOnce() -> String) {
        if self.options.trace == Trace::Off {
            return;
        }
        if self.trace.len() == TRACE_LEN {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{:>8} {}", self.now, line()));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Operator => self.operate(),
            Event::Sample => self.sample(),
            Event::SchedulerStart => self.scheduler_start(),
            Event::SchedulerStep { life } => self.scheduler_step(life),
            Event::SchedulerPeriod { life } => self.scheduler_period(life),
            Event::ToScheduler {
                machine,
                session,
                message,
            } => self.scheduler_hears(machine, session, message),
            Event::ToNode {
                machine,
                session,
                message,
            } => self.node_hears(machine, session, message),
            Event::PowerOn { machine } => self.power_on(machine),
            Event::DaemonStart { machine, life } => self.daemon_start(machine, life),
            Event::Dial { machine, life } => self.dial(machine, life),
            Event::LinkCheck { machine, life } => self.link_check(machine, life),
            Event::Turn { machine, life } => self.turn_due(machine, life),
            Event::Heartbeat { machine, life } => self.heartbeat(machine, life),
            Event::StatusDue { machine, life } => self.status_due(machine, life),
            Event::Committed {
                machine,
                life,
                commit,
            } => self.committed(machine, life, commit),
            Event::Effect {
                machine,
                boot,
                flight,
            } => self.effect(machine, boot, flight),
            Event::StepEnded {
                machine,
                life,
                id,
                flight,
            } => self.step_ended(machine, life, &id, flight),
            Event::Observed {
                machine,
                life,
                token,
                observed,
            } => self.observation_ended(machine, life, token, observed),
            Event::Exit {
                machine,
                pid,
                status,
                out_of_memory,
            } => self.exit(machine, pid, status, out_of_memory),
            Event::ExitSeen {
                machine,
                life,
                id,
                pid,
                exit,
            } => self.exit_seen(machine, life, &id, pid, exit),
            Event::Probe {
                machine,
                life,
                id,
                run,
            } => self.probe(machine, life, &id, run),
            Event::RuntimeUp { machine } => self.machines[machine].host.is_runtime_down = false,
            Event::Mend { machine } => self.mend(machine),
        }
    }
}
