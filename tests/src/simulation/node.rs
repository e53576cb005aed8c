//! The model of the daemon around the real [`NodeCore`]: its loop, ledger, link and prober, as `reconcile`, `ledger`,
//! `link` and `health` of the node have them, on the virtual clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use berth_api::assignment::{AssignmentSet, Position};
use berth_api::container::ProbeKind;
use berth_api::id::{ClusterId, ReplicaId};
use berth_api::machine::MachineSpec;
use berth_api::time::Timestamp;
use berth_node::clock::{BootTime, Now};
use berth_node::health::{ProbeReport, ProbeRole, ProbeState};
use berth_node::host::{Exit, Observed};
use berth_node::plan::{Changed, Identity, NodeCore, ObservationToken, Output, Restored, Write};
use berth_node::replica::{Outcome, Step};

use super::chance::Chance;
use super::checkers::{Amounts, WHOLE_GPU};
use super::host::Host;
use super::link::HEARTBEAT_MS;
use super::{Commit, Event, Flight, Simulation, Up};

/// A probe of one run of a replica.
pub(super) type Probed = (ReplicaId, u32, ProbeRole);

/// The first day of the simulated world, in Unix milliseconds.
const EPOCH_MS: u64 = 1_800_000_000_000;
const OBSERVE_EVERY_MS: u64 = 30_000;
const OBSERVE_AGAIN_MS: u64 = 2_000;

/// A machine with everything on it.
#[expect(clippy::struct_excessive_bools, reason = "independent faults of one machine")]
pub(super) struct Machine {
    pub(super) spec: MachineSpec,
    pub(super) chance: Chance,
    /// What its wall clock shows beside the true time.
    pub(super) wall_offset_ms: i64,
    /// Its daemon does nothing before this: a machine that thrashes.
    pub(super) paused_until: u64,
    /// How many times longer everything takes on it.
    pub(super) slowness: u64,
    pub(super) host: Host,
    ledger: Ledger,
    pub(super) daemon: Option<Daemon>,
    /// Rises whenever a daemon starts or dies: events of another life are void.
    pub(super) life: u64,
    pub(super) is_powered: bool,
    /// It is off for good, and somebody will say so.
    pub(super) is_lost: bool,
    pub(super) boot: u64,
    booted_at: u64,
    pub(super) is_cut_up: bool,
    pub(super) is_cut_down: bool,
    /// When the last message under way arrives: a stream keeps its order.
    pub(super) up_at: u64,
    pub(super) down_at: u64,
}

/// What is on disk. Rows are kept as the text that the real ledger stores.
#[derive(Debug, Default)]
struct Ledger {
    set: Option<(Vec<u8>, Position)>,
    rows: BTreeMap<ReplicaId, String>,
    boot: u64,
}

/// A running daemon.
pub(super) struct Daemon {
    pub(super) core: NodeCore,
    pub(super) started_at: u64,
    pub(super) storing: Position,
    committed_at: u64,
    is_observing: bool,
    observe_wanted: bool,
    observe_at: u64,
    turn_at: Option<u64>,
    pub(super) session: Option<u64>,
    /// Whom it dialled.
    pub(super) scheduler: usize,
    pub(super) heard_at: u64,
    pub(super) is_status_due: bool,
    probes: BTreeMap<Probed, ProbeState>,
    /// Steps given up before they began.
    cancelled: BTreeSet<ReplicaId>,
    /// Sets of this life, for late and repeated delivery.
    pub(super) received: Vec<(Position, Vec<u8>)>,
}

impl Machine {
    pub(super) fn new(spec: MachineSpec, chance: Chance) -> Self {
        Self {
            spec,
            chance,
            wall_offset_ms: 0,
            paused_until: 0,
            slowness: 1,
            host: Host::default(),
            ledger: Ledger::default(),
            daemon: None,
            life: 0,
            is_powered: false,
            is_lost: false,
            boot: 0,
            booted_at: 0,
            is_cut_up: false,
            is_cut_down: false,
            up_at: 0,
            down_at: 0,
        }
    }

    /// What replicas may have of it.
    pub(super) fn usable(&self) -> Amounts {
        let capacity = &self.spec.capacity;
        [
            capacity.cpu.total.micros() - capacity.cpu.system_reserve.micros(),
            capacity.memory.total.get() - capacity.memory.system_reserve.get(),
            capacity.ephemeral_storage.total.get(),
            capacity
                .gpu
                .as_ref()
                .map_or(0, |gpu| u64::from(gpu.total) * WHOLE_GPU),
        ]
    }

    pub(super) fn lose_ledger(&mut self) {
        self.ledger = Ledger::default();
    }

    pub(super) fn wipe(&mut self) {
        self.host = Host::default();
        self.ledger = Ledger::default();
    }
}

pub(super) fn cluster_id() -> ClusterId {
    ClusterId::new("sim/cluster").expect("a valid id")
}

impl Simulation {
    /// What a wall clock shows that is off by so much.
    pub(super) fn wall(&self, offset_ms: i64) -> Timestamp {
        Timestamp::from_millis((EPOCH_MS + self.now).saturating_add_signed(offset_ms))
    }

    /// Machines' wall clocks differ.
    pub(super) fn machine_wall(&self, machine: usize) -> Timestamp {
        let skew = i64::try_from(machine).unwrap_or_default() * 700;
        self.wall(skew + self.machines[machine].wall_offset_ms)
    }

    fn node_now(&self, machine: usize) -> Now {
        Now {
            boot: BootTime(self.now - self.machines[machine].booted_at + 1000),
            wall: self.machine_wall(machine),
        }
    }

    pub(super) fn is_life(&self, machine: usize, life: u64) -> bool {
        self.machines[machine].life == life && self.machines[machine].daemon.is_some()
    }

    // Power and daemon.

    pub(super) fn power_on(&mut self, machine: usize) {
        let booting = &mut self.machines[machine];
        if booting.is_powered || booting.is_lost {
            return;
        }
        booting.is_powered = true;
        booting.boot += 1;
        booting.booted_at = self.now;
        self.note(|| format!("m{machine} boots"));
        self.start_daemon_after(machine, 1000);
    }

    pub(super) fn power_off(&mut self, machine: usize) {
        self.note(|| format!("m{machine} loses power"));
        let off = &mut self.machines[machine];
        off.is_powered = false;
        off.daemon = None;
        off.life += 1;
        off.host.power_off();
        self.checkers.power_off(machine);
        self.flights.retain(|_, flight| flight.machine != machine);
    }

    pub(super) fn kill_daemon(&mut self, machine: usize) {
        self.note(|| format!("m{machine} kill -9 of the daemon"));
        self.machines[machine].daemon = None;
        self.machines[machine].life += 1;
        // A call that the runtime has taken is done all the same.
        let under_way: Vec<u64> = self
            .flights
            .iter()
            .filter(|(_, flight)| flight.machine == machine && flight.result.is_none())
            .map(|(number, _)| *number)
            .collect();
        for number in under_way {
            if self.machines[machine].chance.percent(50) {
                self.flights.remove(&number);
            }
        }
    }

    pub(super) fn start_daemon_after(&mut self, machine: usize, delay_max_ms: u64) {
        self.machines[machine].life += 1;
        let life = self.machines[machine].life;
        let delay = self.machines[machine].chance.range(1..=delay_max_ms);
        self.after(delay, Event::DaemonStart { machine, life });
    }

    pub(super) fn daemon_start(&mut self, machine: usize, life: u64) {
        let starting = &self.machines[machine];
        if starting.life != life || !starting.is_powered || starting.daemon.is_some() {
            return;
        }
        let mut restored = Restored {
            rebooted: starting.ledger.boot != 0 && starting.ledger.boot != starting.boot,
            ..Restored::default()
        };
        if let Some((bytes, position)) = &starting.ledger.set {
            let set = AssignmentSet::open(bytes, position).expect("a ledger keeps what it was given");
            self.checkers.accepted(machine, *position, &set);
            restored.set = Some((set, *position));
        }
        for (id, row) in &starting.ledger.rows {
            let memory = serde_json::from_str(row).expect("a row is read as it was written");
            restored.replicas.insert(id.clone(), memory);
        }
        let identity = Identity {
            cluster_id: cluster_id(),
            machine_id: starting.spec.machine_id.clone(),
        };
        let core = NodeCore::new(identity, restored, self.node_now(machine));
        let boot = starting.boot;
        self.machines[machine].ledger.boot = boot;
        self.note(|| format!("m{machine} the daemon starts"));
        self.machines[machine].daemon = Some(Daemon {
            core,
            started_at: self.now,
            storing: Position::default(),
            committed_at: 0,
            is_observing: false,
            observe_wanted: true,
            observe_at: self.now,
            turn_at: None,
            session: None,
            scheduler: 0,
            heard_at: self.now,
            is_status_due: false,
            probes: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            received: Vec::new(),
        });
        let delay = self.machines[machine].chance.range(10..=300);
        self.after(delay, Event::Dial { machine, life });
        self.after(HEARTBEAT_MS, Event::Heartbeat { machine, life });
        self.after(HEARTBEAT_MS, Event::LinkCheck { machine, life });
        self.turn(machine);
    }

    // The ledger.

    pub(super) fn commit(&mut self, machine: usize, commit: Commit) {
        let life = self.machines[machine].life;
        let delay = self.machines[machine].chance.range(0..=8);
        let Some(daemon) = &mut self.machines[machine].daemon else {
            return;
        };
        daemon.committed_at = (self.now + delay).max(daemon.committed_at);
        let at = daemon.committed_at;
        self.at(
            at,
            Event::Committed {
                machine,
                life,
                commit,
            },
        );
    }

    pub(super) fn committed(&mut self, machine: usize, life: u64, commit: Commit) {
        if !self.is_life(machine, life) {
            return;
        }
        let rows = &mut self.machines[machine].ledger.rows;
        for write in commit.writes {
            match write {
                Write::Put(id, memory) => {
                    let row = serde_json::to_string(&memory).expect("a row has text keys");
                    rows.insert(id, row);
                }
                Write::Remove(id) => {
                    rows.remove(&id);
                }
            }
        }
        for (id, step, number) in commit.steps {
            self.begin(machine, life, id, step, number);
        }
        if let Some((bytes, position)) = commit.set {
            self.stored(machine, bytes, position);
        }
    }

    fn stored(&mut self, machine: usize, bytes: Vec<u8>, position: Position) {
        let now = self.node_now(machine);
        let set = AssignmentSet::open(&bytes, &position).expect("it was read before it was stored");
        self.machines[machine].ledger.set = Some((bytes, position));
        let daemon = self.machines[machine].daemon.as_mut().expect("its life goes on");
        if daemon.core.position().accept(&position).is_err() {
            return self.send_up(
                machine,
                Up::Ack {
                    position,
                    refused: true,
                },
            );
        }
        // The link may send what it has before the loop has published what follows from the set.
        let stale = Up::Status {
            replicas: daemon.core.status().to_vec(),
            unlisted: daemon.core.unlisted(),
            accepted: daemon.core.position(),
        };
        self.checkers.accepted(machine, position, &set);
        daemon.core.accept(set, position, now);
        self.note(|| format!("m{machine} accepts {}.{}", position.epoch, position.generation));
        self.send_up(
            machine,
            Up::Ack {
                position,
                refused: false,
            },
        );
        if self.machines[machine].chance.percent(30) {
            self.send_up(machine, stale);
        }
        self.turn(machine);
        self.make_status_due(machine);
    }

    // Steps.

    fn begin(&mut self, machine: usize, life: u64, id: ReplicaId, step: Step, number: u64) {
        let daemon = self.machines[machine].daemon.as_mut().expect("its life goes on");
        let is_cancelled = daemon.cancelled.remove(&id);
        let result = is_cancelled.then_some(Ok(Outcome::Cancelled));
        if matches!(step, Step::Delete)
            && let Some(pid) = self.machines[machine].host.running_pid(&id)
        {
            self.checkers.delete_began(pid);
        }
        let (until_effect, until_end) = self.weather.durations(&mut self.machines[machine].chance, &step);
        let slowness = self.machines[machine].slowness;
        let (until_effect, until_end) = (until_effect * slowness, until_end * slowness);
        let flight = Flight {
            machine,
            life,
            id: id.clone(),
            fails: self.weather.step_fails(&mut self.machines[machine].chance),
            step,
            result,
        };
        self.flights.insert(number, flight);
        let boot = self.machines[machine].boot;
        self.after(
            until_effect,
            Event::Effect {
                machine,
                boot,
                flight: number,
            },
        );
        self.after(
            until_effect + until_end,
            Event::StepEnded {
                machine,
                life,
                id,
                flight: number,
            },
        );
    }

    fn cancel(&mut self, machine: usize, id: &ReplicaId) {
        let life = self.machines[machine].life;
        let is_meant = |flight: &Flight| {
            (flight.machine, flight.life, &flight.id) == (machine, life, id) && flight.result.is_none()
        };
        let under_way = self.flights.iter_mut().find(|(_, flight)| is_meant(flight));
        let Some((number, flight)) = under_way else {
            if let Some(daemon) = &mut self.machines[machine].daemon {
                daemon.cancelled.insert(id.clone());
            }
            return;
        };
        flight.result = Some(Ok(Outcome::Cancelled));
        let (flight, id) = (*number, id.clone());
        let delay = self.machines[machine].chance.range(1..=20);
        self.after(
            delay,
            Event::StepEnded {
                machine,
                life,
                id,
                flight,
            },
        );
    }

    pub(super) fn step_ended(&mut self, machine: usize, life: u64, id: &ReplicaId, number: u64) {
        let Some(flight) = self.flights.remove(&number) else {
            return;
        };
        if !self.is_life(machine, life) {
            return;
        }
        let result = flight.result.expect("a step takes effect before it ends");
        let now = self.node_now(machine);
        let daemon = self.machines[machine].daemon.as_mut().expect("its life goes on");
        daemon.cancelled.remove(id);
        daemon.core.step_ended(id, result, now, &mut Vec::new());
        self.turn(machine);
    }

    pub(super) fn exit_seen(&mut self, machine: usize, life: u64, id: &ReplicaId, pid: u32, exit: Exit) {
        if !self.is_life(machine, life) {
            return;
        }
        if let Some(daemon) = &mut self.machines[machine].daemon {
            daemon.core.exited(id, pid, exit);
        }
        self.turn(machine);
    }

    pub(super) fn observation_ended(
        &mut self,
        machine: usize,
        life: u64,
        token: ObservationToken,
        observed: Option<Observed>,
    ) {
        if !self.is_life(machine, life) {
            return;
        }
        let now = self.node_now(machine);
        let observing = &mut self.machines[machine];
        let daemon = observing.daemon.as_mut().expect("its life goes on");
        daemon.is_observing = false;
        match observed {
            Some(observed) => {
                daemon.core.observed(token, observed, now);
                daemon.observe_at = self.now + OBSERVE_EVERY_MS;
                if daemon.core.has_set() {
                    observing.host.sweep(&daemon.core.needed().replicas);
                }
            }
            None => {
                daemon
                    .core
                    .observation_failed("the runtime does not answer".into(), now);
                daemon.observe_at = self.now + OBSERVE_AGAIN_MS;
            }
        }
        self.turn(machine);
    }

    // The loop.

    pub(super) fn turn_due(&mut self, machine: usize, life: u64) {
        if !self.is_life(machine, life) {
            return;
        }
        let now = self.now;
        let daemon = self.machines[machine].daemon.as_mut().expect("its life goes on");
        // Later than it was due when the daemon was paused meanwhile.
        if daemon.turn_at.is_some_and(|due| due <= now) {
            daemon.turn_at = None;
            self.turn(machine);
        }
    }

    /// Decides and acts.
    pub(super) fn turn(&mut self, machine: usize) {
        let now = self.node_now(machine);
        let Some(daemon) = &mut self.machines[machine].daemon else {
            return;
        };
        // Nobody stays connected here.
        let counts = daemon.core.draining(now).into_iter().map(|id| (id, 0)).collect();
        daemon.core.connected(&counts, now);
        let Output {
            writes,
            steps,
            cancels,
            wake_at,
            changed,
            ..
        } = daemon.core.advance(now);
        for id in daemon.core.running() {
            let pid = daemon.core.replica(&id).and_then(|replica| replica.running_pid());
            self.checkers.known(pid.expect("what runs has a pid"));
        }
        for id in &cancels {
            self.cancel(machine, id);
        }
        if !writes.is_empty() || !steps.is_empty() {
            let mut numbered = Vec::with_capacity(steps.len());
            for (id, step) in steps {
                self.numbered += 1;
                let number = self.numbered;
                self.note(|| format!("m{machine} {id} {}", step.name()));
                numbered.push((id, step, number));
            }
            let commit = Commit {
                writes,
                steps: numbered,
                set: None,
            };
            self.commit(machine, commit);
        }
        if changed == Changed::Phase {
            self.make_status_due(machine);
            self.probe_all(machine);
        }
        self.observe_when_due(machine);
        self.wake_later(machine, wake_at);
    }

    fn make_status_due(&mut self, machine: usize) {
        let life = self.machines[machine].life;
        let delay = self.machines[machine].chance.range(0..=50);
        let Some(daemon) = &mut self.machines[machine].daemon else {
            return;
        };
        if !daemon.is_status_due {
            daemon.is_status_due = true;
            self.after(delay, Event::StatusDue { machine, life });
        }
    }

    fn observe_when_due(&mut self, machine: usize) {
        let life = self.machines[machine].life;
        let delay = self.machines[machine].chance.range(1..=200);
        let observing = &mut self.machines[machine];
        let Some(daemon) = &mut observing.daemon else {
            return;
        };
        if daemon.is_observing || !(daemon.observe_wanted || self.now >= daemon.observe_at) {
            return;
        }
        daemon.observe_wanted = false;
        daemon.is_observing = true;
        let token = daemon.core.begin_observation();
        let observed = observing.host.observe();
        self.after(
            delay,
            Event::Observed {
                machine,
                life,
                token,
                observed,
            },
        );
    }

    fn wake_later(&mut self, machine: usize, wake_at: Option<BootTime>) {
        let (life, booted_at, now) = (
            self.machines[machine].life,
            self.machines[machine].booted_at,
            self.now,
        );
        let Some(daemon) = &mut self.machines[machine].daemon else {
            return;
        };
        let wake = wake_at.map(|at| (at.0 + booted_at).saturating_sub(1000));
        let observe = (!daemon.is_observing).then_some(daemon.observe_at);
        let Some(at) = wake.into_iter().chain(observe).min() else {
            return;
        };
        let at = at.max(now + 1);
        if daemon.turn_at.is_none_or(|due| due <= now || due > at) {
            daemon.turn_at = Some(at);
            self.at(at, Event::Turn { machine, life });
        }
    }

    // The prober.

    fn probe_all(&mut self, machine: usize) {
        let life = self.machines[machine].life;
        let Some(daemon) = &mut self.machines[machine].daemon else {
            return;
        };
        let targets = daemon.core.probes();
        let wanted: BTreeSet<Probed> = targets
            .iter()
            .map(|target| (target.replica_id.clone(), target.run, target.role))
            .collect();
        daemon.probes.retain(|key, _| wanted.contains(key));
        let mut new = vec![];
        for target in targets {
            let key = (target.replica_id, target.run, target.role);
            daemon.probes.entry(key.clone()).or_insert_with(|| {
                new.push(key);
                ProbeState::new(target.rules, target.was_ready)
            });
        }
        for of in new {
            let delay = self.machines[machine].chance.range(100..=700);
            self.after(delay, Event::Probe { machine, life, of });
        }
    }

    pub(super) fn probe(&mut self, machine: usize, life: u64, of: Probed) {
        let (id, run, role) = &of;
        if !self.is_life(machine, life) {
            return;
        }
        let pid = self.machines[machine].host.running_pid(id);
        let serves = pid
            .and_then(|pid| self.checkers.processes.get(&pid))
            .is_some_and(|process| !process.is_sick);
        let daemon = self.machines[machine].daemon.as_mut().expect("its life goes on");
        let Some(state) = daemon.probes.get_mut(&of) else {
            return;
        };
        let outcome = if serves { Ok(()) } else { Err("refused".to_owned()) };
        *state = state.clone().next(outcome);
        let pause = state.pause(ProbeKind::Http, Duration::ZERO);
        let pause = u64::try_from(pause.as_millis()).expect("seconds");
        let report = ProbeReport {
            replica_id: id.clone(),
            run: *run,
            role: *role,
            phase: state.phase(),
            consecutive_failures: state.failures(),
            last_error: state.last_error().map(str::to_owned),
        };
        daemon.core.probed(report);
        self.after(pause, Event::Probe { machine, life, of });
        self.turn(machine);
    }
}
