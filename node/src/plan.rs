//! The node's decisions: from what is assigned and what is observed to the steps that come next.
//!
//! [`NodeCore`] is synchronous and pure: it is fed what happened, with the time, and [`NodeCore::advance`] gives what
//! must be written, done and told. Invariants it keeps, whatever it is fed:
//!
//! - at most one step under way per replica, and a new process only after the old container was deleted;
//! - a process is stopped only if its stop was confirmed, its assignment changed, its health check gave up on it, or it is
//!   stateless and holds much of a disk that is used up;
//!   silence, an empty set and a lost database stop nothing;
//! - nothing is done before the machine was observed once, and nothing new while the runtime does not answer;
//! - no replica comes up for the first time while what is recorded of it may not be kept;
//! - what a step needs recorded is in the same [`Output`] as the step, and is written before it is done.
//!
//! Owner: the loop of [`crate::reconcile`], or a simulation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_api::assignment::{AssignmentSet, Position, Refusal, Stop, StopReason};
use berth_api::id::{ClusterId, MachineId, ReplicaId};
use berth_api::replica::{ReplicaStatus, Usage};
use berth_api::time::Timestamp;
use berth_api::units::{Bytes, Cpu};

use crate::clock::{BootTime, Now};
use crate::health::{ProbeReport, ProbeTarget};
use crate::host::{
    DiskPressure, Exit, HostPort, Needed, Observed, ObservedContainer, PullProgress, UsageSample,
};
use crate::replica::{
    Container, Failure, Goal, Happenings, Memory, Next, Outcome, Part, Replica, Step, StopWhy, Task, Waiting,
    revision,
};

/// Who holds less than this part of a disk is not evicted: one in twenty, what is to be free.
const EVICTED_PART: u64 = 20;

/// Whose node this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub cluster_id: ClusterId,
    pub machine_id: MachineId,
}

/// What the ledger kept.
#[derive(Debug, Clone, Default)]
pub struct Restored {
    pub set: Option<(AssignmentSet, Position)>,
    pub replicas: BTreeMap<ReplicaId, Memory>,
    /// The machine booted since: deadlines on the old boot's clock mean nothing.
    pub rebooted: bool,
}

/// A change of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a handful at a time, taken apart at once"
)]
pub enum Write {
    Put(ReplicaId, Memory),
    Remove(ReplicaId),
}

/// What [`NodeCore::advance`] decided. The shell commits `writes`, then does the rest.
#[derive(Debug, Default)]
pub struct Output {
    pub writes: Vec<Write>,
    pub steps: Vec<(ReplicaId, Step)>,
    /// Replicas whose step under way is no longer wanted.
    pub cancels: Vec<ReplicaId>,
    pub news: Happenings,
    /// Call again at this time at the latest.
    pub wake_at: Option<BootTime>,
    pub changed: Changed,
}

/// How much of the status changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Changed {
    #[default]
    Nothing,
    /// Numbers and words.
    Details,
    /// A phase, a pid, or whether a replica is ready: peers wait for it.
    Phase,
}

/// Names an observation by when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservationToken(u64);

/// Whether the container runtime can be acted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Runtime {
    /// Not observed yet.
    Unknown,
    Ok,
    Impaired {
        reason: String,
        since: Timestamp,
    },
}

/// The decisions of one node.
#[derive(Debug)]
pub struct NodeCore {
    identity: Identity,
    set: Option<AssignmentSet>,
    position: Position,
    replicas: BTreeMap<ReplicaId, Replica>,
    /// What the ledger has of each replica.
    written: BTreeMap<ReplicaId, Memory>,
    runtime: Runtime,
    /// Why what is recorded may not be kept.
    storage: Option<String>,
    counter: u64,
    cpu: BTreeMap<ReplicaId, (BootTime, u64)>,
    status: Vec<ReplicaStatus>,
    /// A startup probe has passed: what it held back is to be probed.
    probes_due: bool,
}

impl NodeCore {
    #[must_use]
    pub fn new(identity: Identity, restored: Restored, now: Now) -> Self {
        let mut core = Self {
            identity,
            set: None,
            position: Position::default(),
            replicas: BTreeMap::new(),
            written: restored.replicas.clone(),
            runtime: Runtime::Unknown,
            storage: None,
            counter: 0,
            cpu: BTreeMap::new(),
            status: Vec::new(),
            probes_due: false,
        };
        for (id, mut memory) in restored.replicas {
            if restored.rebooted {
                memory.rebooted();
            }
            let mut replica = Replica::new(id.clone(), Goal::Leave, memory, now);
            // An earlier daemon may have left anything behind.
            replica.belief.release_first = true;
            core.replicas.insert(id, replica);
        }
        if let Some((set, position)) = restored.set {
            core.accept(set, position, now);
        }
        core
    }

    /// Reads an offered set and says whether it may be accepted. Changes nothing: the shell stores it first.
    ///
    /// # Errors
    /// When it is older, differs from the accepted one of the same generation, or is not for this machine.
    pub fn check(
        &self,
        bytes: &[u8],
        position: &Position,
        latest: &Position,
    ) -> Result<AssignmentSet, Refusal> {
        latest.max(&self.position).accept(position)?;
        let set = AssignmentSet::open(bytes, position)?;
        if set.machine_id != self.identity.machine_id || set.cluster_id != self.identity.cluster_id {
            return Err(Refusal::Misdirected(format!(
                "{} of {}",
                set.machine_id, set.cluster_id
            )));
        }
        Ok(set)
    }

    /// Takes a set that was checked and stored.
    pub fn accept(&mut self, set: AssignmentSet, position: Position, now: Now) {
        assert!(
            self.position.accept(&position).is_ok(),
            "{position:?} after {:?}",
            self.position
        );
        self.position = position;
        let mut goals: BTreeMap<ReplicaId, Goal> = BTreeMap::new();
        for Stop {
            replica_id, reason, ..
        } in &set.stops
        {
            goals.insert(replica_id.clone(), Goal::Stop { reason: *reason });
        }
        for assignment in &set.replicas {
            let goal = Goal::Run {
                assignment: Arc::new(assignment.clone()),
                revision: revision(assignment),
            };
            goals.insert(assignment.replica_id.clone(), goal);
        }
        for replica in self.replicas.values_mut() {
            if !goals.contains_key(&replica.id) {
                replica.goal = unlisted_goal(replica);
            }
        }
        for (id, goal) in goals {
            match self.replicas.get_mut(&id) {
                Some(replica) => retarget(replica, goal),
                None => {
                    let replica = Replica::new(id.clone(), goal, Memory::default(), now);
                    self.replicas.insert(id, replica);
                }
            }
        }
        self.set = Some(set);
    }

    /// The scheduler confirms that these replicas, which are in no list, must stop.
    pub fn confirm_stops(&mut self, ids: &[ReplicaId]) {
        for id in ids {
            if let Some(replica) = self.replicas.get_mut(id)
                && !matches!(replica.goal, Goal::Run { .. })
            {
                let reason = StopReason::ContainerDeleted;
                replica.memory.stop_confirmed = Some(reason);
                replica.goal = Goal::Stop { reason };
            }
        }
    }

    /// To be called before the machine is read.
    #[must_use]
    pub fn begin_observation(&self) -> ObservationToken {
        ObservationToken(self.counter)
    }

    /// Takes what the machine has. What a step changed since the observation began is left out: it is older news.
    pub fn observed(&mut self, token: ObservationToken, observed: Observed, now: Now) {
        let first = self.runtime == Runtime::Unknown;
        self.runtime = Runtime::Ok;
        let mut seen = BTreeSet::new();
        for container in observed.containers {
            seen.insert(container.replica_id.clone());
            let replica = self
                .replicas
                .entry(container.replica_id.clone())
                .or_insert_with(|| {
                    let id = container.replica_id.clone();
                    Replica::new(id, Goal::Leave, Memory::default(), now)
                });
            if replica.in_flight.is_none() && replica.touched <= token.0 {
                believe(replica, &container, now);
            }
        }
        for replica in self.replicas.values_mut() {
            let fresh = replica.in_flight.is_none() && replica.touched <= token.0;
            if !fresh || seen.contains(&replica.id) {
                continue;
            }
            if let Some(container) = &mut replica.belief.container {
                // Somebody else removed it. A process may be left: deleting looks for one.
                container.task = Task::Broken;
            }
            if first && replica.memory.run > 0 {
                replica.belief.release_first = true;
            }
        }
    }

    /// The runtime did not answer: what runs is left alone and nothing new is begun.
    pub fn observation_failed(&mut self, reason: String, now: Now) {
        let since = match &self.runtime {
            Runtime::Impaired { since, .. } => *since,
            Runtime::Unknown | Runtime::Ok => now.wall,
        };
        // Nothing has been observed yet: it stays unknown, so that nothing is begun.
        if self.runtime != Runtime::Unknown {
            self.runtime = Runtime::Impaired { reason, since };
        }
    }

    /// Whether what is recorded is kept, or why it may not be. What runs goes on, from memory; what never ran waits.
    pub fn storage(&mut self, trouble: Option<String>) {
        self.storage = trouble;
    }

    /// The disk is nearly used up: of those that hold much of it the first that keeps no state is started anew, one at a time. One
    /// that holds little would give little.
    pub fn short_of_disk(&mut self, pressure: &DiskPressure, now: Now) {
        let is_leaving = |replica: &Replica| {
            let stopping = replica.memory.stopping.as_ref();
            stopping.is_some_and(|stopping| matches!(stopping.why, StopWhy::Evicted(_)))
        };
        if self.replicas.values().any(is_leaving) {
            return;
        }
        for (id, held) in &pressure.holders {
            if *held < pressure.total / EVICTED_PART {
                return;
            }
            let reason = format!("it held {held} of them when only {pressure}");
            if self
                .replicas
                .get_mut(id)
                .is_some_and(|replica| replica.evict(reason, now))
            {
                return;
            }
        }
    }

    /// A process ended.
    pub fn exited(&mut self, id: &ReplicaId, pid: u32, exit: Exit) {
        if let Some(replica) = self.replicas.get_mut(id) {
            replica.exited(pid, exit);
            self.counter += 1;
            replica.touched = self.counter;
        }
    }

    /// The step under way of a replica ended.
    pub fn step_ended(
        &mut self,
        id: &ReplicaId,
        result: Result<Outcome, Failure>,
        now: Now,
        news: &mut Happenings,
    ) {
        if let Some(replica) = self.replicas.get_mut(id) {
            replica.end(result, now, news);
            self.counter += 1;
            replica.touched = self.counter;
        }
    }

    /// How far the preparation of a replica is.
    pub fn progressed(&mut self, id: &ReplicaId, part: Part, progress: Option<PullProgress>) {
        if let Some(replica) = self.replicas.get_mut(id) {
            replica.preparing = part;
            replica.progress = progress;
        }
    }

    /// Takes what the prober found.
    pub fn probed(&mut self, report: ProbeReport) {
        if let Some(replica) = self.replicas.get_mut(&report.replica_id) {
            self.probes_due |= replica.probed(report);
        }
    }

    /// Replicas whose connections are to be counted now: their stop waits for it.
    #[must_use]
    pub fn draining(&self, now: Now) -> Vec<ReplicaId> {
        let draining = self
            .replicas
            .values()
            .filter(|replica| replica.is_draining(now.boot));
        draining.map(|replica| replica.id.clone()).collect()
    }

    /// Takes how many connections those of [`NodeCore::draining`] have. One that is left out was not counted.
    pub fn connected(&mut self, counts: &BTreeMap<ReplicaId, u32>, now: Now) {
        for (id, count) in counts {
            if let Some(replica) = self.replicas.get_mut(id)
                && replica.is_draining(now.boot)
            {
                replica.connections = Some(*count);
            }
        }
    }

    /// Takes counters of cgroups; rates come from two samples.
    pub fn sampled(&mut self, samples: &BTreeMap<ReplicaId, UsageSample>, now: Now) {
        self.cpu.retain(|id, _| samples.contains_key(id));
        for (id, sample) in samples {
            let Some(replica) = self.replicas.get_mut(id) else {
                continue;
            };
            let before = self.cpu.insert(id.clone(), (now.boot, sample.cpu_total_micros));
            let cpu = before.and_then(|(at, micros)| {
                let elapsed_ms = u64::try_from(now.boot.since(at).as_millis())
                    .ok()
                    .filter(|ms| *ms > 0)?;
                // A counter that fell belongs to a new run; the next sample tells its rate.
                sample
                    .cpu_total_micros
                    .checked_sub(micros)?
                    .checked_mul(1000)
                    .map(|used| used / elapsed_ms)
            });
            let present = replica.usage.map_or(Cpu::ZERO, |usage| usage.cpu);
            let cpu = cpu.map_or(present, Cpu::from_micros);
            replica.usage = Some(Usage {
                cpu,
                memory: Bytes::new(sample.memory.get()),
                // Told by the collector.
                http: None,
            });
        }
    }

    /// Decides. Call it after every input, or batch of inputs, and at `wake_at`.
    pub fn advance(&mut self, now: Now) -> Output {
        let mut output = Output::default();
        let may_act = self.runtime == Runtime::Ok;
        for replica in self.replicas.values_mut() {
            replica.settle(now, &mut output.news);
            if replica.in_flight.is_some() {
                if !replica.cancelled && is_unwanted(replica) {
                    replica.cancelled = true;
                    output.cancels.push(replica.id.clone());
                }
                continue;
            }
            if !may_act {
                replica.waiting = match &self.runtime {
                    Runtime::Impaired { reason, .. } => Some(Waiting::Runtime {
                        reason: reason.clone(),
                    }),
                    Runtime::Unknown | Runtime::Ok => None,
                };
                continue;
            }
            match replica.next(now) {
                Next::Act(Step::Prepare { run: 1, .. }) if self.storage.is_some() => {
                    let reason = self.storage.clone().unwrap_or_default();
                    replica.waiting = Some(Waiting::Storage { reason });
                }
                Next::Act(step) => {
                    replica.waiting = None;
                    replica.begin(step.clone(), now, &mut output.news);
                    self.counter += 1;
                    replica.touched = self.counter;
                    output.steps.push((replica.id.clone(), step));
                }
                Next::Wait(waiting) => {
                    let until = waits_until(&waiting)
                        .into_iter()
                        .chain(replica.settles_at(now.boot))
                        .min();
                    output.wake_at = output.wake_at.into_iter().chain(until).min();
                    replica.waiting = Some(waiting);
                }
            }
        }
        self.forget_gone();
        self.write(&mut output.writes);
        output.changed = self.refresh_status(now);
        if std::mem::take(&mut self.probes_due) {
            output.changed = Changed::Phase;
        }
        output
    }

    /// Drops what is gone and no longer asked about.
    fn forget_gone(&mut self) {
        let asked: BTreeSet<&ReplicaId> = self
            .set
            .iter()
            .flat_map(|set| &set.stops)
            .map(|stop| &stop.replica_id)
            .collect();
        self.replicas
            .retain(|id, replica| replica.waiting != Some(Waiting::Gone) || asked.contains(id));
    }

    /// What the ledger lacks. The row of a replica goes last, after everything else of it.
    fn write(&mut self, writes: &mut Vec<Write>) {
        for (id, replica) in &self.replicas {
            if replica.waiting == Some(Waiting::Gone) || replica.memory == Memory::default() {
                continue;
            }
            if self.written.get(id) != Some(&replica.memory) {
                self.written.insert(id.clone(), replica.memory.clone());
                writes.push(Write::Put(id.clone(), replica.memory.clone()));
            }
        }
        let replicas = &self.replicas;
        self.written.retain(|id, _| {
            let keep = replicas
                .get(id)
                .is_some_and(|replica| replica.waiting != Some(Waiting::Gone));
            if !keep {
                writes.push(Write::Remove(id.clone()));
            }
            keep
        });
    }

    fn refresh_status(&mut self, now: Now) -> Changed {
        let status: Vec<ReplicaStatus> = self
            .replicas
            .values()
            .map(|replica| replica.status(now))
            .collect();
        for (replica, status) in self.replicas.values_mut().zip(&status) {
            if replica.phase != status.phase {
                replica.phase = status.phase;
                replica.phase_since = now.wall;
            }
        }
        let essence =
            |status: &ReplicaStatus| (status.replica_id.clone(), status.phase, status.ready, status.pid);
        let changed = if status == self.status {
            Changed::Nothing
        } else if status.iter().map(essence).eq(self.status.iter().map(essence)) {
            Changed::Details
        } else {
            Changed::Phase
        };
        self.status = status;
        changed
    }

    /// The status of every replica of the machine, as of the last [`NodeCore::advance`].
    #[must_use]
    pub fn status(&self) -> &[ReplicaStatus] {
        &self.status
    }

    /// Replicas that are here and in no list: they wait for a confirmation. Empty before the first set, because a list
    /// that is not known yet leaves nobody out.
    #[must_use]
    pub fn unlisted(&self) -> Vec<ReplicaId> {
        let unlisted = |replica: &&Replica| matches!(replica.goal, Goal::Leave);
        self.replicas
            .values()
            .filter(unlisted)
            .map(|replica| replica.id.clone())
            .collect()
    }

    /// Replicas whose process runs.
    #[must_use]
    pub fn running(&self) -> Vec<ReplicaId> {
        let running = self
            .replicas
            .values()
            .filter(|replica| replica.running_pid().is_some());
        running.map(|replica| replica.id.clone()).collect()
    }

    /// What must be probed.
    #[must_use]
    pub fn probes(&self) -> Vec<ProbeTarget> {
        self.replicas.values().flat_map(Replica::probes).collect()
    }

    /// Ports of the machine that are forwarded now.
    #[must_use]
    pub fn host_ports(&self) -> Vec<HostPort> {
        let port = |replica: &Replica| {
            let assignment = replica.assignment()?;
            let (port, target_port) = (assignment.host_port?, *assignment.ports.first()?);
            let replica_id = replica.id.clone();
            replica.ready().then_some(HostPort {
                port,
                replica_id,
                target_ip: assignment.ip,
                target_port,
            })
        };
        self.replicas.values().filter_map(port).collect()
    }

    /// Every replica that may have something on the machine, and the images of those that are to run.
    #[must_use]
    pub fn needed(&self) -> Needed {
        let assignments = self.replicas.values().filter_map(Replica::assignment);
        Needed {
            replicas: self.replicas.keys().cloned().collect(),
            images: assignments.map(|assignment| assignment.image.clone()).collect(),
        }
    }

    #[must_use]
    pub fn replica(&self, id: &ReplicaId) -> Option<&Replica> {
        self.replicas.get(id)
    }

    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    #[must_use]
    pub fn has_set(&self) -> bool {
        self.set.is_some()
    }

    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }
}

/// The goal of a replica that an accepted set does not list.
fn unlisted_goal(replica: &Replica) -> Goal {
    // A confirmed stop stays confirmed, listed or not.
    if let Goal::Stop { .. } = replica.goal {
        return replica.goal.clone();
    }
    let begun = replica
        .memory
        .stopping
        .as_ref()
        .and_then(|stopping| match stopping.why {
            StopWhy::Confirmed(reason) => Some(reason),
            StopWhy::Replaced | StopWhy::Unhealthy(_) | StopWhy::Evicted(_) => None,
        });
    match replica.memory.stop_confirmed.or(begun) {
        Some(reason) => Goal::Stop { reason },
        None => Goal::Leave,
    }
}

/// Gives a known replica another goal. A stop that has reached the process is finished before it is started again.
fn retarget(replica: &mut Replica, goal: Goal) {
    if replica.goal == goal {
        return;
    }
    if let Goal::Run { revision, .. } = &goal {
        replica.memory.stop_confirmed = None;
        replica.belief.pulled = None;
        if let Some(stopping) = &mut replica.memory.stopping
            && matches!(stopping.why, StopWhy::Confirmed(_) | StopWhy::Replaced)
        {
            if stopping.deadline.is_some() {
                stopping.why = StopWhy::Replaced;
            } else {
                replica.memory.stopping = None;
            }
        }
        if matches!(&replica.goal, Goal::Run { revision: old, .. } if old != revision) {
            // Another content deserves an immediate attempt, whatever the former one did.
            replica.memory.attempts = 0;
            replica.memory.crashes = 0;
            replica.memory.retry_at = None;
            replica.memory.cause = None;
            replica.belief.release_first |= replica.belief.container.is_none() && replica.memory.run > 0;
            replica.belief.prepared = None;
        }
    }
    replica.goal = goal;
}

/// Takes over what the runtime says of a container.
fn believe(replica: &mut Replica, container: &ObservedContainer, now: Now) {
    let known = replica.belief.container.as_ref();
    let ours = known.filter(|known| known.run == container.run && *known.revision == *container.revision);
    let mut task = Task::observed(&container.task, now.boot);
    match (ours.map(|known| &known.task), &task) {
        // Our own task between create and start is no leftover.
        (Some(Task::Created), Task::Broken) => return,
        // Mute since an earlier observation.
        (Some(Task::Unknown { .. }), Task::Unknown { .. }) => return,
        // An exit is final for a run, and counted once; the list may have been read before it.
        (Some(Task::Exited(_)), Task::Exited(_) | Task::Running { .. }) => return,
        _ => {}
    }
    if replica.memory.ended_run >= container.run && matches!(task, Task::Running { .. }) {
        // Recorded as ended and yet there: it is removed, never counted as a second life.
        task = Task::Broken;
    }
    replica.memory.run = replica.memory.run.max(container.run);
    if known.is_none() && matches!(task, Task::Running { .. }) {
        // Adopted without a row: the run is as old as its container for people, and new for patience.
        replica.memory.started_at = replica.memory.started_at.or(container.created_at);
        replica.memory.started_boot = replica.memory.started_boot.or(Some(now.boot));
    }
    // The runtime does not tell limits: this daemon knows them, or the ledger. Without it they are set again.
    let recorded = replica
        .memory
        .caps
        .filter(|_| replica.memory.run == container.run);
    let caps = ours.and_then(|known| known.caps).or(recorded);
    replica.belief.released = false;
    replica.belief.container = Some(Container {
        revision: container.revision.as_str().into(),
        run: container.run,
        task,
        caps,
    });
}

/// Whether the step under way works for a goal that is no more.
fn is_unwanted(replica: &Replica) -> bool {
    let (Some(Step::Prepare { assignment, .. }) | Some(Step::Pull { assignment })) = &replica.in_flight
    else {
        return false;
    };
    match &replica.goal {
        Goal::Run {
            assignment: wanted, ..
        } => wanted != assignment,
        Goal::Stop { .. } => true,
        Goal::Leave => false,
    }
}

fn waits_until(waiting: &Waiting) -> Option<BootTime> {
    match waiting {
        Waiting::Backoff { until }
        | Waiting::Held { until }
        | Waiting::Resize { until }
        | Waiting::Drain { until }
        | Waiting::Grace { until }
        | Waiting::Unkillable { until } => Some(*until),
        Waiting::Running
        | Waiting::Runtime { .. }
        | Waiting::Storage { .. }
        | Waiting::Unlisted
        | Waiting::Gone => None,
    }
}

#[cfg(test)]
mod tests;
