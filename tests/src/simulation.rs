//! A whole cluster from one seed: the real scheduler cores and the real node cores on model machines, joined by a model
//! network, over a model store, on a virtual clock.
//!
//! ```text
//! operator (operations and faults, from the seed)
//!     │                     network (delays, breaks, cuts; late and repeated sets)
//!     ▼                                  │
//! schedulers: World, decide, check ◀─────┴──────▶ node: NodeCore + ledger ──steps──▶ host: containers, processes
//!     │ appends, under a fence                       │ every set that is sent or taken      │ every start and end
//!     ▼                                              │                                      │
//! store: log, lease ──every record──▶ checkers ◀─────┴──────────────────────────────────────┘
//! ```
//!
//! One thread, one queue of events ordered by time: a seed gives the same run for ever. First operations and faults rain
//! for a minute or two of virtual time; then all faults are mended and the cluster must come to rest.
//!
//! Randomness comes in streams: one of the cluster, one of each machine and scheduler, one of each action. So an action can
//! be left out and the others stay what they are, which is how a failing seed is made small ([`shrink`]).
//!
//! The checkers ([`checkers`], [`history`]) share no code with what they check: they keep their own sums from raw entries,
//! and look at the processes of the model machines, not at what anybody believes of them. The scheduler's actor, the store
//! and the node's loop are modelled here, because the real ones are asynchronous; they are kept as close to the real ones as
//! their rules are written down.

mod chance;
mod checkers;
mod explanations;
mod history;
mod host;
mod link;
mod node;
mod operations;
mod operator;
mod rest;
mod scheduler;
mod sessions;
mod shrink;
mod store;
mod weather;

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
use link::Stream;
use node::Machine;
use operations::{Ask, Client};
use scheduler::Scheduler;
use store::{Answer, Store};
use weather::Weather;

pub use shrink::shrink;

/// The rule that a run broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// A machine carries no more than it has, and none of its GPUs more than all of it.
    Capacity,
    /// No address and no host port is given twice.
    Uniqueness,
    /// One process per replica, one writer per volume.
    SingleWriter,
    /// Positions only rise, one position has one set, and a node takes only what was sent to it.
    Order,
    /// Only the present owner extends the log.
    Fence,
    /// What was acknowledged is in the log and in the state.
    Durability,
    /// Nothing is decided that was so already.
    Doubled,
    /// What stops has a reason, and nobody is told to be another one for nothing.
    Restart,
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
    /// The store takes what a former owner appends.
    NoFence,
    /// A write is answered before it is durable.
    AnswerEarly,
    /// A replica is stopped for a reason that is none.
    RestartForNothing,
    /// A replica is described in other words from time to time.
    Reword,
    /// A machine is told that every share of a GPU is one of its first GPU.
    WrongDevice,
    /// A machine gives every replica its first GPU, whatever it was told.
    FirstDevice,
}

/// How to run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub mutation: Option<Mutation>,
    /// Only these actions happen; all, when there is none.
    pub kept: Option<Vec<u32>>,
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
    /// Times that a scheduler took the cluster, and that a former owner was refused.
    pub takeovers: u64,
    pub fenced: u64,
    pub decisions: u64,
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
        self.takeovers += other.takeovers;
        self.fenced += other.fenced;
        self.decisions += other.decisions;
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
    /// The actions that happened before it.
    pub acted: Vec<u32>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        let kept: Vec<String> = self.acted.iter().map(ToString::to_string).collect();
        write!(
            f,
            "seed {} broke {:?} at {} ms: {}\nrun it alone: make sim SEEDS={}..{} KEEP={} (the trace above holds its last {} \
             events)",
            self.seed,
            self.rule,
            self.at_ms,
            self.text,
            self.seed,
            self.seed + 1,
            kept.join(","),
            self.trace.len()
        )
    }
}

/// Events kept for the trace.
const TRACE_LEN: usize = 200;
/// A run with more events than this does not come to rest.
const EVENTS_MAX: u64 = 400_000;

/// Runs one seed.
///
/// # Errors
/// With the rule that was broken first, and what led to it.
pub fn run(seed: u64, options: &Options) -> Result<Summary, Box<Failure>> {
    let outcome = run_once(seed, options);
    match (&outcome, options.trace) {
        (Err(_), Trace::Off) => run_once(
            seed,
            &Options {
                trace: Trace::On,
                ..options.clone()
            },
        ),
        _ => outcome,
    }
}

fn run_once(seed: u64, options: &Options) -> Result<Summary, Box<Failure>> {
    let mut simulation = Simulation::new(seed, options.clone());
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
            acted: simulation.acted,
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
        /// The set that was accepted when it was written down.
        accepted: Position,
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
    Act {
        number: u32,
    },
    Calm,
    /// Nobody asks for anything any more; what somebody paused goes on.
    Resume,
    Sample,
    SchedulerStart {
        scheduler: usize,
    },
    SchedulerStep {
        scheduler: usize,
        life: u64,
    },
    SchedulerPeriod {
        scheduler: usize,
        life: u64,
    },
    /// A scheduler keeps what it owns, or takes what is free.
    Tenure {
        scheduler: usize,
        life: u64,
    },
    Load {
        scheduler: usize,
        life: u64,
    },
    StoreArrives {
        append: u64,
    },
    StoreAnswers {
        scheduler: usize,
        life: u64,
        append: u64,
        answer: Answer,
    },
    /// A scheduler reaches its store again.
    StoreUp {
        scheduler: usize,
    },
    /// A client asks, once more if need be.
    Attempt {
        client: u64,
    },
    Asked {
        scheduler: usize,
        client: u64,
    },
    ToScheduler {
        scheduler: usize,
        machine: usize,
        session: u64,
        number: u64,
        message: Up,
    },
    ToNode {
        machine: usize,
        session: u64,
        number: u64,
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
        of: node::Probed,
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
    seed: u64,
    options: Options,
    now: u64,
    numbered: u64,
    queue: BinaryHeap<Reverse<Queued>>,
    store: Store,
    schedulers: Vec<Scheduler>,
    last_session: u64,
    /// The two directions of each session.
    up: BTreeMap<u64, Stream<Up>>,
    down: BTreeMap<u64, Stream<Down>>,
    /// The first set sent to each machine, for the mutation that repeats it.
    former: BTreeMap<usize, (Position, Vec<u8>)>,
    clients: BTreeMap<u64, Client>,
    machines: Vec<Machine>,
    flights: BTreeMap<u64, Flight>,
    checkers: Checkers,
    weather: Weather,
    summary: Summary,
    samples: u64,
    moves_seen: u64,
    trace: VecDeque<String>,
    acted: Vec<u32>,
}

impl Simulation {
    fn new(seed: u64, options: Options) -> Self {
        let has = |part: u32| options.kept.as_ref().is_none_or(|kept| kept.contains(&part));
        let mut chance = Chance::new(seed);
        let weather = Weather::new(&mut chance, has);
        let machines = weather::machines(&mut chance, seed);
        let limits = weather::limits(&mut chance);
        let count = if chance.percent(50) {
            1
        } else {
            chance.range(2..=3)
        };
        let schedulers: Vec<Scheduler> = (0..count)
            .map(|index| Scheduler::new(Chance::of(seed, 2000 + index), limits))
            .collect();
        let plan = operator::plan(&mut chance, weather.ends_at, weather.pace_max_ms);
        let mut checkers = Checkers::default();
        for (index, machine) in machines.iter().enumerate() {
            checkers.hardware(&machine.spec, index, machine.usable());
        }
        let store = Store::new(&weather::created(), schedulers.len() > 1, &mut checkers);
        let acted = weather::PARTS.into_iter().filter(|part| has(*part)).collect();
        let mut simulation = Self {
            seed,
            options,
            now: 0,
            numbered: 0,
            queue: BinaryHeap::new(),
            store,
            schedulers,
            last_session: 0,
            up: BTreeMap::new(),
            down: BTreeMap::new(),
            former: BTreeMap::new(),
            clients: BTreeMap::new(),
            machines,
            flights: BTreeMap::new(),
            checkers,
            weather,
            summary: Summary::default(),
            samples: 0,
            moves_seen: 0,
            trace: VecDeque::new(),
            acted,
        };
        for scheduler in 0..simulation.schedulers.len() {
            simulation.after(chance.range(0..=500), Event::SchedulerStart { scheduler });
        }
        for machine in 0..simulation.machines.len() {
            simulation.after(chance.range(0..=2000), Event::PowerOn { machine });
        }
        for (number, at) in plan.into_iter().enumerate() {
            let number = u32::try_from(number).expect("few actions");
            let kept = &simulation.options.kept;
            if kept.as_ref().is_none_or(|kept| kept.contains(&number)) {
                simulation.at(at, Event::Act { number });
            }
        }
        simulation.at(simulation.weather.ends_at, Event::Calm);
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
            match self.paused_until(&queued.event) {
                Some(until) if until > self.now => self.at(until, queued.event),
                _ => self.happen(queued.event),
            }
            if self.checkers.found.is_some() || self.weather.is_over() {
                break;
            }
        }
        self.summary.virtual_ms = self.now;
        self.summary.entries = u64::try_from(self.store.log.len()).unwrap_or(u64::MAX);
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

    /// Until when the process that an event is for does nothing: the event waits for it.
    fn paused_until(&self, event: &Event) -> Option<u64> {
        match event {
            Event::SchedulerStep { scheduler, .. }
            | Event::SchedulerPeriod { scheduler, .. }
            | Event::Tenure { scheduler, .. }
            | Event::Load { scheduler, .. }
            | Event::StoreAnswers { scheduler, .. }
            | Event::Asked { scheduler, .. }
            | Event::ToScheduler { scheduler, .. } => Some(self.schedulers[*scheduler].paused_until),
            Event::ToNode { machine, .. }
            | Event::Dial { machine, .. }
            | Event::LinkCheck { machine, .. }
            | Event::Turn { machine, .. }
            | Event::Heartbeat { machine, .. }
            | Event::StatusDue { machine, .. }
            | Event::Committed { machine, .. }
            | Event::StepEnded { machine, .. }
            | Event::Observed { machine, .. }
            | Event::ExitSeen { machine, .. }
            | Event::Probe { machine, .. } => Some(self.machines[*machine].paused_until),
            Event::Act { .. }
            | Event::Calm
            | Event::Resume
            | Event::Sample
            | Event::SchedulerStart { .. }
            | Event::StoreArrives { .. }
            | Event::StoreUp { .. }
            | Event::Attempt { .. }
            | Event::PowerOn { .. }
            | Event::DaemonStart { .. }
            | Event::Effect { .. }
            | Event::Exit { .. }
            | Event::RuntimeUp { .. }
            | Event::Mend { .. } => None,
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Act { number } => self.act(number),
            Event::Calm => self.calm(),
            Event::Resume => self.ask(Chance::of(self.seed, 4_000_000), Ask::Resume),
            Event::Sample => self.sample(),
            Event::SchedulerStart { scheduler } => self.scheduler_start(scheduler),
            Event::SchedulerStep { scheduler, life } => self.scheduler_step(scheduler, life),
            Event::SchedulerPeriod { scheduler, life } => self.scheduler_period(scheduler, life),
            Event::Tenure { scheduler, life } => self.tenure(scheduler, life),
            Event::Load { scheduler, life } => self.load(scheduler, life),
            Event::StoreArrives { append } => self.store_arrives(append),
            Event::StoreAnswers {
                scheduler,
                life,
                append,
                answer,
            } => self.store_answers(scheduler, life, append, answer),
            Event::StoreUp { scheduler } => self.schedulers[scheduler].is_cut_off = false,
            Event::Attempt { client } => self.attempt(client),
            Event::Asked { scheduler, client } => self.asked(scheduler, client),
            Event::ToScheduler {
                scheduler,
                machine,
                session,
                number,
                message,
            } => self.arrives_up(scheduler, machine, (session, number), message),
            other => self.happen_on_machine(other),
        }
    }

    fn happen_on_machine(&mut self, event: Event) {
        match event {
            Event::ToNode {
                machine,
                session,
                number,
                message,
            } => self.arrives_down(machine, session, number, message),
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
            Event::Probe { machine, life, of } => self.probe(machine, life, of),
            Event::RuntimeUp { machine } => self.machines[machine].host.is_runtime_down = false,
            Event::Mend { machine } => self.mend(machine),
            other => unreachable!("{other:?} is no machine's"),
        }
    }
}
