//! The model of the actor around the real scheduler core: its batches, log, sessions and what it makes of what nodes say,
//! as `cluster` and `link` of the scheduler have them, on the virtual clock.

use std::collections::{BTreeMap, BTreeSet};

use berth_api::assignment::Position;
use berth_api::cluster::{CapacityGroup, ClusterSpec, MachineProfile, Platform};
use berth_api::explain::Subject;
use berth_api::id::{GroupId, MachineId};
use berth_api::rest::container::ContainerStatus;
use berth_api::units::{Bytes, Cpu};
use berth_scheduler::announce::announce;
use berth_scheduler::check::{check, check_all};
use berth_scheduler::decide::{Report, decide};
use berth_scheduler::entry::Entry;
use berth_scheduler::explain::explain;
use berth_scheduler::liveness::Limits;
use berth_scheduler::rollout;
use berth_scheduler::status::container_state;
use berth_scheduler::world::{Now, Observed, Readiness, World};

use super::checkers::Checkers;
use super::link::{HEARTBEAT_MS, SILENCE_MS};
use super::node::{Machine, cluster_id};
use super::{Down, Event, Mutation, Rule, Simulation, Up};

/// The scheduler process and its store.
pub(super) struct Scheduler {
    pub(super) is_up: bool,
    life: u64,
    /// Records as they are stored.
    pub(super) log: Vec<Vec<u8>>,
    pub(super) world: World,
    pub(super) observed: Observed,
    acknowledged: BTreeMap<MachineId, (u64, u64)>,
    doubted: BTreeSet<MachineId>,
    sessions: BTreeMap<usize, Session>,
    pub(super) last_session: u64,
    requests: Vec<(usize, u64, Up)>,
    is_step_due: bool,
    limits: Limits,
    pub(super) report: Report,
    /// The first set sent to each machine, for the mutation that repeats it.
    former: BTreeMap<usize, (Position, Vec<u8>)>,
}

struct Session {
    number: u64,
    sent: Option<(u64, u64)>,
    heard_at: u64,
}

/// The capacity groups of the simulated cluster.
pub(super) const GROUPS: [&str; 2] = ["general", "gpu"];

impl Scheduler {
    pub(super) fn new(machines: &[Machine], checkers: &mut Checkers) -> Self {
        let group = |id: &str| CapacityGroup {
            group_id: GroupId::new(id).expect("a valid id"),
            profile: MachineProfile {
                cpu: Cpu::from_micros(8_000_000),
                memory_bytes: Bytes::gib(16),
                ephemeral_storage_bytes: Bytes::gib(100),
                gpu: None,
            },
            min_size: 1,
            max_size: 10,
            labels: Default::default(),
        };
        let created = Entry::ClusterCreated {
            spec: ClusterSpec {
                cluster_id: cluster_id(),
                name: "sim".into(),
                container_cidr: "100.64.0.0/16".parse().expect("a valid network"),
                platform: Platform::Local,
                capacity_groups: GROUPS.into_iter().map(group).collect(),
                workspace_id: None,
                project_id: None,
                deployment_group_id: None,
            },
            tokens: BTreeMap::new(),
            at: berth_api::time::Timestamp::default(),
        };
        for (index, machine) in machines.iter().enumerate() {
            let capacity = &machine.spec.capacity;
            let usable = [
                capacity.cpu.total.micros() - capacity.cpu.system_reserve.micros(),
                capacity.memory.total.get() - capacity.memory.system_reserve.get(),
                capacity.ephemeral_storage.total.get(),
                capacity.gpu.as_ref().map_or(0, |gpu| gpu.total.into()),
            ];
            checkers.hardware(machine.spec.machine_id.clone(), index, usable);
        }
        Self {
            is_up: false,
            life: 0,
            log: vec![created.to_record()],
            world: World::create(&created).expect("a log begins with a creation"),
            observed: Observed::new(0),
            acknowledged: BTreeMap::new(),
            doubted: BTreeSet::new(),
            sessions: BTreeMap::new(),
            last_session: 0,
            requests: vec![],
            is_step_due: false,
            limits: Limits::default(),
            report: Report::default(),
            former: BTreeMap::new(),
        }
    }
}

impl Simulation {
    fn scheduler_now(&self) -> Now {
        Now {
            wall: self.wall_now(),
            monotonic_ms: self.now,
        }
    }

    /// The process dies: what is not in the log is gone.
    pub(super) fn scheduler_crash(&mut self) {
        self.note(|| "the scheduler is killed".into());
        self.check_replay();
        let scheduler = &mut self.scheduler;
        scheduler.is_up = false;
        scheduler.life += 1;
        scheduler.is_step_due = false;
        scheduler.requests.clear();
        scheduler.acknowledged.clear();
        scheduler.doubted.clear();
        let sessions = std::mem::take(&mut scheduler.sessions);
        for (machine, session) in sessions {
            self.send_down(machine, session.number, Down::End);
        }
    }

    /// Builds the world from the log alone, and compares.
    pub(super) fn check_replay(&mut self) {
        let entries: Result<Vec<Entry>, _> = self
            .scheduler
            .log
            .iter()
            .map(|record| Entry::from_record(record))
            .collect();
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => return self.checkers.broke(Rule::Replay, format!("a record: {error}")),
        };
        let replayed = match World::replay(&entries) {
            Ok(world) => world,
            Err((number, error)) => {
                return self
                    .checkers
                    .broke(Rule::Replay, format!("entry {number}: {error}"));
            }
        };
        let bytes = |world: &World| serde_json::to_vec(world).expect("a world has text keys");
        if bytes(&replayed) != bytes(&self.scheduler.world) {
            self.checkers.broke(
                Rule::Replay,
                "the log gives another world than the live one".into(),
            );
        }
        self.scheduler.world = replayed;
    }

    pub(super) fn scheduler_start(&mut self) {
        if self.scheduler.is_up {
            return;
        }
        self.note(|| "the scheduler starts".into());
        self.scheduler.is_up = true;
        self.scheduler.life += 1;
        self.scheduler.observed = Observed::new(self.now);
        self.scheduler.report = Report::default();
        let life = self.scheduler.life;
        self.after(500, Event::SchedulerPeriod { life });
    }

    pub(super) fn scheduler_period(&mut self, life: u64) {
        if self.scheduler.life != life {
            return;
        }
        let now = self.now;
        let silent: Vec<usize> = self
            .scheduler
            .sessions
            .iter()
            .filter(|(_, session)| now - session.heard_at > SILENCE_MS)
            .map(|(machine, _)| *machine)
            .collect();
        for machine in silent {
            self.end_session(machine);
        }
        let sessions: Vec<(usize, u64)> = self
            .scheduler
            .sessions
            .iter()
            .map(|(machine, session)| (*machine, session.number))
            .collect();
        for (machine, number) in sessions {
            self.send_down(machine, number, Down::Ping);
        }
        self.step_soon();
        self.after(HEARTBEAT_MS, Event::SchedulerPeriod { life });
    }

    fn end_session(&mut self, machine: usize) {
        if let Some(session) = self.scheduler.sessions.remove(&machine) {
            self.send_down(machine, session.number, Down::End);
            let id = &self.machines[machine].spec.machine_id;
            if let Some(observed) = self.scheduler.observed.machines.get_mut(id) {
                observed.is_linked = false;
            }
        }
    }

    /// What waits is taken as one batch.
    pub(super) fn step_soon(&mut self) {
        if self.scheduler.is_up && !self.scheduler.is_step_due {
            self.scheduler.is_step_due = true;
            let life = self.scheduler.life;
            let delay = self.chance.range(1..=30);
            self.after(delay, Event::SchedulerStep { life });
        }
    }

    pub(super) fn scheduler_hears(&mut self, machine: usize, session: u64, message: Up) {
        let daemon = self.machines[machine].daemon.as_ref();
        if self.machines[machine].is_cut_up {
            if daemon.is_some_and(|daemon| daemon.session == Some(session)) {
                self.hold_up(machine, session, message);
            }
            return;
        }
        if !self.scheduler.is_up {
            return self.send_down(machine, session, Down::End);
        }
        self.scheduler.requests.push((machine, session, message));
        self.step_soon();
    }

    /// One batch: drain, decide, check, append, apply, send.
    pub(super) fn scheduler_step(&mut self, life: u64) {
        if self.scheduler.life != life {
            return;
        }
        self.scheduler.is_step_due = false;
        for (machine, session, message) in std::mem::take(&mut self.scheduler.requests) {
            self.take(machine, session, message);
        }
        self.decide_and_send();
    }

    pub(super) fn decide_and_send(&mut self) {
        self.decide();
        self.send_sets();
    }

    fn take(&mut self, machine: usize, number: u64, message: Up) {
        if let Up::Hello { position } = message {
            return self.open(machine, number, position);
        }
        let now = self.now;
        let Some(session) = self.scheduler.sessions.get_mut(&machine) else {
            return self.send_down(machine, number, Down::End);
        };
        if session.number != number {
            return;
        }
        session.heard_at = now;
        let sent = session.sent;
        let id = self.machines[machine].spec.machine_id.clone();
        match message {
            Up::Hello { .. } => unreachable!("taken above"),
            Up::Ack { position, refused } => {
                let place = (position.epoch, position.generation);
                if !refused {
                    self.scheduler.acknowledged.insert(id, place);
                } else if sent == Some(place) {
                    self.end_session(machine);
                }
            }
            Up::Status { replicas, unlisted } => {
                let clock = self.scheduler_now();
                let scheduler = &mut self.scheduler;
                let Some(known) = scheduler.world.machine(&id) else {
                    return self.end_session(machine);
                };
                let present = (scheduler.world.epoch(), known.generation);
                let acknowledged = scheduler.acknowledged.get(&id).copied();
                let observed = scheduler.observed.machines.entry(id.clone()).or_default();
                observed.heartbeat_ms = Some(clock.monotonic_ms);
                observed.heartbeat_at = Some(clock.wall);
                observed.is_linked = true;
                observed.accepted = acknowledged;
                observed.unlisted = unlisted.into_iter().collect();
                observed.replicas = replicas
                    .into_iter()
                    .map(|status| (status.replica_id.clone(), status))
                    .collect();
                if acknowledged != Some(present) || scheduler.doubted.contains(&id) {
                    return;
                }
                let confirmed = scheduler.world.confirmed_stops(&id, &observed.unlisted);
                if !confirmed.is_empty() {
                    self.send_down(machine, number, Down::StopConfirmed(confirmed));
                }
            }
        }
    }

    /// Registers a machine when that is new, and begins its session.
    fn open(&mut self, machine: usize, number: u64, accepted: Position) {
        let mut spec = self.machines[machine].spec.clone();
        spec.boot_id = Some(format!("boot-{}", self.machines[machine].boot));
        if self.options.mutation == Some(Mutation::Overcommit) {
            let capacity = &mut spec.capacity;
            capacity.cpu.total = Cpu::from_micros(capacity.cpu.total.micros() * 2);
            capacity.memory.total = Bytes::new(capacity.memory.total.get() * 2);
        }
        let id = spec.machine_id.clone();
        let clock = self.scheduler_now();
        if self
            .scheduler
            .world
            .machine(&id)
            .is_none_or(|known| known.spec != spec)
        {
            let entry = self.scheduler.world.registration(spec, clock.wall);
            self.append(entry.expect("there are subnets enough"));
        }
        let world = &self.scheduler.world;
        let known = world.machine(&id).expect("it is registered");
        let present = (world.epoch(), known.generation);
        let claimed = (accepted.epoch, accepted.generation);
        let differs = claimed == present
            && world
                .assignment_set(&id)
                .is_some_and(|set| set.seal().1.digest != accepted.digest);
        if claimed > present {
            let text = format!("{id} has accepted {claimed:?} and the scheduler is at {present:?}");
            return self.checkers.broke(Rule::Order, text);
        }
        if differs {
            let text = format!("{id} has another set at {claimed:?} than the scheduler");
            return self.checkers.broke(Rule::Order, text);
        }
        self.scheduler.acknowledged.insert(id.clone(), claimed);
        let observed = self.scheduler.observed.machines.entry(id).or_default();
        observed.is_linked = true;
        observed.accepted = None;
        observed.heartbeat_ms = Some(clock.monotonic_ms);
        observed.heartbeat_at = Some(clock.wall);
        self.note(|| format!("m{machine} is linked, at {claimed:?}"));
        let session = Session {
            number,
            sent: None,
            heard_at: self.now,
        };
        self.scheduler.sessions.insert(machine, session);
    }

    /// Appends an entry and what announces it.
    pub(super) fn append(&mut self, entry: Entry) {
        let events = announce(&self.scheduler.world, &self.scheduler.observed, &entry);
        self.append_one(&entry);
        for event in events {
            self.append_one(&event);
        }
    }

    fn append_one(&mut self, entry: &Entry) {
        if !matches!(entry, Entry::EventRecorded { .. }) {
            self.note(|| format!("log {}", brief(entry)));
        }
        self.scheduler.log.push(entry.to_record());
        self.checkers.entry(entry);
        self.scheduler.world.apply(entry);
        if let Entry::MachineRemoved { machine_id, .. } = entry {
            self.scheduler.observed.machines.remove(machine_id);
        }
    }

    fn decide(&mut self) {
        let now = self.scheduler_now();
        rollout::observe(&self.scheduler.world, &mut self.scheduler.observed, now);
        let scheduler = &self.scheduler;
        let decision = decide(&scheduler.world, &scheduler.observed, &scheduler.limits, now);
        if !decision.entries.is_empty() {
            let violations = check_all(&scheduler.world, &decision.entries);
            if check(&scheduler.world, &decision.entries).is_empty() != violations.is_empty() {
                let text = "the check of what is touched and the check of everything disagree";
                self.checkers.broke(Rule::Decision, text.to_owned());
            }
            if let Some(violation) = violations.first() {
                self.checkers.broke(Rule::Decision, violation.to_string());
            }
        }
        let is_changed = !decision.entries.is_empty();
        for entry in &decision.entries {
            self.append_one(entry);
            if let (Some(Mutation::ForgetEarly), Entry::ReplicaStopping { replica_id, at, .. }) =
                (self.options.mutation, entry)
            {
                let gone = Entry::ReplicaGone {
                    replica_id: replica_id.clone(),
                    at: *at,
                };
                self.append_one(&gone);
            }
        }
        self.scheduler.report = decision.report;
        if is_changed && self.chance.percent(20) {
            let scheduler = &self.scheduler;
            let again = decide(&scheduler.world, &scheduler.observed, &scheduler.limits, now);
            if let Some(entry) = again.entries.first() {
                let text = format!("deciding again changes something: {}", brief(entry));
                self.checkers.broke(Rule::Decision, text);
            }
        }
    }

    fn send_sets(&mut self) {
        let machines: Vec<usize> = self.scheduler.sessions.keys().copied().collect();
        for machine in machines {
            let id = self.machines[machine].spec.machine_id.clone();
            let Some(known) = self.scheduler.world.machine(&id) else {
                self.end_session(machine);
                continue;
            };
            let present = (self.scheduler.world.epoch(), known.generation);
            let session = self.scheduler.sessions.get_mut(&machine).expect("it was listed");
            if session.sent == Some(present) {
                continue;
            }
            session.sent = Some(present);
            let number = session.number;
            let mut set = self
                .scheduler
                .world
                .assignment_set(&id)
                .expect("it is registered");
            if self.options.mutation == Some(Mutation::PlaceTwice) {
                self.place_twice(&mut set);
            }
            let (bytes, position) = set.seal();
            let mut message = (position, bytes);
            if self.options.mutation == Some(Mutation::FallBack) && self.chance.percent(20) {
                message = self.scheduler.former.get(&machine).cloned().unwrap_or(message);
            } else {
                self.scheduler
                    .former
                    .entry(machine)
                    .or_insert_with(|| message.clone());
            }
            let (position, bytes) = message;
            self.checkers.sent(machine, &position);
            self.send_down(machine, number, Down::Set { position, bytes });
        }
    }

    /// Adds to a set the stateful replicas of every other machine.
    fn place_twice(&self, set: &mut berth_api::assignment::AssignmentSet) {
        let world = &self.scheduler.world;
        let foreign = world
            .replicas()
            .values()
            .filter(|replica| replica.is_live() && replica.ordinal.is_some())
            .filter(|replica| replica.machine_id != set.machine_id);
        set.replicas
            .extend(foreign.map(|replica| replica.assignment(world)));
        set.replicas
            .sort_by(|one, other| one.replica_id.cmp(&other.replica_id));
        let listed: BTreeSet<_> = set.replicas.iter().map(|a| a.replica_id.clone()).collect();
        set.stops.retain(|stop| !listed.contains(&stop.replica_id));
    }

    /// Every container and replica that is not as it should be says what it waits for.
    pub(super) fn check_explanations(&mut self) {
        let now = self.scheduler_now();
        let scheduler = &self.scheduler;
        let ask = |subject, id: &str| {
            explain(
                &scheduler.world,
                &scheduler.observed,
                &scheduler.limits,
                now,
                (subject, id),
            )
        };
        let mut silent = None;
        for name in scheduler.world.containers().keys() {
            let Some(state) = container_state(&scheduler.world, &scheduler.observed, name) else {
                continue;
            };
            let explanation = ask(Subject::Container, name.as_str());
            let says = explanation.as_ref().is_some_and(|explanation| {
                let is_named = explanation
                    .waits
                    .iter()
                    .all(|wait| !wait.what.is_empty() && !wait.helps.is_empty());
                let is_failing = state.status == ContainerStatus::Failing && state.message.is_some();
                is_named && (!explanation.waits.is_empty() || is_failing)
            });
            let must = matches!(state.status, ContainerStatus::Pending | ContainerStatus::Failing);
            if must && !says {
                silent = Some(format!("container {name}: {state:?}: {explanation:?}"));
            }
        }
        for (id, replica) in scheduler.world.replicas() {
            let is_ready = scheduler.observed.readiness(&scheduler.world, replica) == Readiness::Ready;
            if is_ready && replica.is_live() {
                continue;
            }
            let explanation = ask(Subject::Replica, id.as_str());
            if explanation.as_ref().is_none_or(|e| e.waits.is_empty()) {
                silent = Some(format!("replica {id}: {explanation:?}"));
            }
        }
        if let Some(text) = silent {
            self.checkers.broke(Rule::Explanation, text);
        }
    }
}

/// An entry in a line.
fn brief(entry: &Entry) -> String {
    match entry {
        Entry::ContainerPut { spec, revision, .. } => format!(
            "put {} r{revision} {:?} of {} {}",
            spec.name,
            spec.scale,
            spec.image,
            if spec.stateful { "stateful" } else { "" }
        ),
        Entry::ReplicaPlaced(placed) => format!(
            "placed {} on {} {}{}",
            placed.replica_id,
            placed.machine_id,
            placed.ip,
            if placed.granted.is_some() { " squeezed" } else { "" }
        ),
        Entry::ReplicaStopping {
            replica_id, cause, ..
        } => format!("stopping {replica_id}: {cause}"),
        Entry::ReplicaGone { replica_id, .. } => format!("gone {replica_id}"),
        Entry::MachineRegistered { spec, .. } => format!("registered {}", spec.machine_id),
        other => format!("{other:?}"),
    }
}
