//! The loop that owns the core: feeds it what happened, commits what it records, starts the steps it asks for.
//!
//! ```text
//! input                              arm               what follows
//! Input (link, prober; bounded)      inbox             core, then a turn
//! a finished job                     jobs              core, then a turn
//! a change of the runtime            host.changed      core, or a new observation
//! wake_at, 30 s, 60 s, 5 s           timer             observation, full compare, usage
//! ```
//!
//! A turn: [`NodeCore::advance`], hand the writes to the ledger, start the steps (each waits for its commit), publish
//! the snapshot. Nothing in the loop waits for the machine, the disk or the network: what does is a job. Owner: `main`.
//! Failure: a job that panics is a failed step of its own replica.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use berth_api::assignment::{AssignmentSet, Position, Refusal};
use berth_api::id::ReplicaId;
use berth_api::time::monotonic;
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::clock::{BootTime, Now};
use crate::events::EventQueue;
use crate::execute::{Gate, Progress, perform};
use crate::health::{ProbeReport, Prober};
use crate::host::{
    Change, DiskPressure, Host, HostError, NetworkWish, Observed, Peer, PullProgress, UsageSample,
};
use crate::ledger::Ledger;
use crate::plan::{Changed, NodeCore, ObservationToken, Output, Runtime};
use crate::replica::{Failure, Outcome, Part, Step};
use crate::status::{self, Snapshot, Verdicts};
use crate::watchdog::{BEAT_EVERY, Pulse};

/// The machine is read this often even when no event comes: events can be lost.
const OBSERVE_EVERY: Duration = Duration::from_secs(30);
/// While the runtime does not answer.
const OBSERVE_AGAIN: Duration = Duration::from_secs(2);
/// Full compare of the network, leftovers, logs.
const COMPARE_EVERY: Duration = Duration::from_secs(60);
const USAGE_EVERY: Duration = Duration::from_secs(5);
/// How much of the disk is left. A replica may use it up in seconds; more often would cost more than it saves.
const DISK_EVERY: Duration = Duration::from_secs(10);
/// Between two counts of the connections of replicas that drain.
const COUNT_EVERY: Duration = Duration::from_millis(500);
/// Changes of words and numbers are published at most this often; a change of phase at once.
const DETAILS_EVERY: Duration = Duration::from_millis(200);
/// Deadline of an observation, a compare, a sample.
const JOB_DEADLINE: Duration = Duration::from_secs(60);
/// Inputs that may wait.
pub const INBOX_MAX: usize = 256;

/// What others tell the loop.
#[derive(Debug)]
pub enum Input {
    /// A set from the scheduler, as it came.
    Offer {
        position: Position,
        bytes: Vec<u8>,
    },
    StopConfirmed(Vec<ReplicaId>),
    /// The other machines, whole.
    Peers(Vec<Peer>),
    Progress {
        replica_id: ReplicaId,
        part: Part,
        progress: Option<PullProgress>,
    },
}

/// The answer to an offered set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub position: Position,
    pub refusal: Option<String>,
}

/// What the loop is made of.
#[derive(Debug)]
pub struct Parts<H> {
    pub host: Arc<H>,
    pub core: NodeCore,
    pub ledger: Ledger,
    pub inbox: mpsc::Receiver<Input>,
    /// For progress of steps.
    pub inbox_sender: mpsc::Sender<Input>,
    pub probes: mpsc::Receiver<ProbeReport>,
    pub prober: Prober,
    pub answers: mpsc::Sender<Answer>,
    pub events: Arc<EventQueue>,
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    pub verdicts: Arc<Verdicts>,
    pub pulse: Pulse,
    pub peers: Vec<Peer>,
}

/// Work outside of the loop.
enum Done {
    Step(Result<Outcome, Failure>),
    Observed(ObservationToken, Result<Observed, HostError>),
    Network(Result<(), HostError>),
    Usage(Result<BTreeMap<ReplicaId, UsageSample>, HostError>),
    Disk(Result<Option<DiskPressure>, HostError>),
    Counted(Result<BTreeMap<ReplicaId, u32>, HostError>),
    Swept(Result<(), HostError>),
    Stored(Box<AssignmentSet>, Position, Result<(), Arc<str>>),
    /// A newer set came before this one was stored.
    Overtaken(Position),
}

/// What a job was for, should it panic.
enum Job {
    Step(ReplicaId),
    Background(Background),
    Store(Position),
}

/// Work of which one is under way at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Background {
    Observation,
    Network,
    Usage,
    Disk,
    Count,
    Sweep,
}

struct Reconciler<H> {
    parts: Parts<H>,
    gate: Arc<Gate>,
    jobs: JoinSet<Done>,
    running: HashMap<Id, Job>,
    background: BTreeSet<Background>,
    /// Ends the preparation of a replica early.
    cancels: BTreeMap<ReplicaId, CancellationToken>,
    /// The newest set that is being stored, and what ends the wait for it.
    storing: Position,
    store_cancel: CancellationToken,
    observe_wanted: bool,
    observe_at: BootTime,
    network_sent: Option<NetworkWish>,
    compare_at: BootTime,
    usage_at: BootTime,
    disk_at: BootTime,
    /// While something drains.
    count_at: Option<BootTime>,
    wake_at: Option<BootTime>,
    publish_at: Option<BootTime>,
}

#[derive(Clone)]
struct Report {
    replica_id: ReplicaId,
    inbox: mpsc::Sender<Input>,
    /// When bytes were last reported: a pull counts them in thousands of pieces.
    reported: Arc<Mutex<Option<Instant>>>,
}

impl Progress for Report {
    fn report(&self, part: Part, progress: Option<PullProgress>) {
        if progress.is_some() {
            let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
            if reported.is_some_and(|last| last.elapsed() < DETAILS_EVERY) {
                return;
            }
            *reported = Some(monotonic());
        }
        let replica_id = self.replica_id.clone();
        // Progress is for people: a full inbox drops it.
        drop(self.inbox.try_send(Input::Progress {
            replica_id,
            part,
            progress,
        }));
    }
}

/// Runs the loop until cancelled. Steps under way are dropped then: kill -9 is a supported way to end, and containers
/// run on.
pub async fn run<H: Host>(parts: Parts<H>, cancel: CancellationToken) {
    let now = Now::read();
    let mut reconciler = Reconciler {
        parts,
        gate: Arc::new(Gate::default()),
        jobs: JoinSet::new(),
        running: HashMap::new(),
        background: BTreeSet::new(),
        cancels: BTreeMap::new(),
        storing: Position::default(),
        store_cancel: CancellationToken::new(),
        observe_wanted: true,
        observe_at: now.boot,
        network_sent: None,
        compare_at: now.boot.plus(COMPARE_EVERY),
        usage_at: now.boot.plus(USAGE_EVERY),
        disk_at: now.boot,
        count_at: None,
        wake_at: None,
        publish_at: None,
    };
    reconciler.turn(now);
    loop {
        reconciler.parts.pulse.beat();
        let sleep = reconciler.sleep(Now::read());
        // Every arm is cancel-safe: a queue or a set gives an item or keeps it, a timer holds nothing, and `changed`
        // says so itself.
        tokio::select! {
            () = cancel.cancelled() => break,
            Some(input) = reconciler.parts.inbox.recv() => reconciler.take(input),
            Some(report) = reconciler.parts.probes.recv() => reconciler.parts.core.probed(report),
            Some(ended) = reconciler.jobs.join_next_with_id(), if !reconciler.jobs.is_empty() => {
                reconciler.ended(ended);
            }
            change = reconciler.parts.host.changed() => reconciler.changed(change),
            () = tokio::time::sleep(sleep) => {}
        }
        reconciler.take_ready();
        reconciler.turn(Now::read());
    }
    reconciler.jobs.shutdown().await;
    reconciler.parts.prober.shutdown().await;
}

impl<H: Host> Reconciler<H> {
    /// Takes whatever else is there, so that one turn answers all of it.
    fn take_ready(&mut self) {
        while let Ok(input) = self.parts.inbox.try_recv() {
            self.take(input);
        }
        while let Ok(report) = self.parts.probes.try_recv() {
            self.parts.core.probed(report);
        }
        while let Some(ended) = self.jobs.try_join_next_with_id() {
            self.ended(ended);
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Offer { position, bytes } => self.offered(position, bytes),
            Input::StopConfirmed(ids) => self.parts.core.confirm_stops(&ids),
            Input::Peers(peers) => self.parts.peers = peers,
            Input::Progress {
                replica_id,
                part,
                progress,
            } => {
                self.parts.core.progressed(&replica_id, part, progress);
            }
        }
    }

    /// A set is stored first, then accepted, then acknowledged. While the disk does not take it the node works for the one that it
    /// has, says why, and goes over to this one, or a newer one, as soon as it is stored.
    fn offered(&mut self, position: Position, bytes: Vec<u8>) {
        let repeated = self.parts.core.has_set() && self.parts.core.position() == position;
        match self.parts.core.check(&bytes, &position, &self.storing) {
            Ok(_) if repeated => self.answer(position, None),
            Ok(set) => {
                self.storing = position;
                // One waits at a time, however long the disk takes.
                self.store_cancel.cancel();
                self.store_cancel = CancellationToken::new();
                let (ledger, cancel) = (self.parts.ledger.clone(), self.store_cancel.clone());
                let sequence = ledger.write_set(bytes, position);
                let store = async move {
                    match cancel.run_until_cancelled(ledger.stored(sequence)).await {
                        Some(result) => Done::Stored(Box::new(set), position, result),
                        None => Done::Overtaken(position),
                    }
                };
                self.spawn(Job::Store(position), store);
            }
            Err(refusal) => self.refused(position, &refusal),
        }
    }

    fn refused(&self, position: Position, refusal: &Refusal) {
        tracing::warn!(
            generation = position.generation,
            epoch = position.epoch,
            reason = %refusal,
            "refused an assignment set"
        );
        self.answer(position, Some(refusal.to_string()));
    }

    fn answer(&self, position: Position, refusal: Option<String>) {
        if self.parts.answers.try_send(Answer { position, refusal }).is_err() {
            tracing::debug!(
                generation = position.generation,
                "an answer was dropped: the link is gone or slow"
            );
        }
    }

    fn stored(&mut self, set: AssignmentSet, position: Position, result: Result<(), Arc<str>>) {
        if let Err(error) = result {
            self.storing = self.parts.core.position();
            tracing::error!(generation = position.generation, error = %error, "cannot store an assignment set");
            return self.answer(position, Some(format!("it cannot be stored: {error}")));
        }
        // A newer one may have overtaken it.
        if self.parts.core.position().accept(&position).is_err() {
            return self.answer(position, Some("a newer one has been accepted".into()));
        }
        tracing::info!(
            epoch = position.epoch,
            generation = position.generation,
            replicas = set.replicas.len(),
            stops = set.stops.len(),
            "accepted an assignment set"
        );
        let now = Now::read();
        if !self.parts.core.has_set() {
            // Leftovers can be told from now on.
            self.compare_at = now.boot;
        }
        self.parts.core.accept(set, position, now);
        self.answer(position, None);
    }

    fn changed(&mut self, change: Change) {
        match change {
            Change::Exited {
                replica_id,
                pid,
                exit,
            } => {
                tracing::info!(%replica_id, pid, status = exit.status, oom = exit.out_of_memory, "a process ended");
                self.parts.core.exited(&replica_id, pid, exit);
            }
            Change::Resync => self.observe_wanted = true,
        }
    }

    fn spawn(&mut self, job: Job, work: impl Future<Output = Done> + Send + 'static) {
        let handle = self.jobs.spawn(work);
        self.running.insert(handle.id(), job);
    }

    fn ended(&mut self, ended: Result<(Id, Done), tokio::task::JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let job = self.running.remove(&id).expect("every job is on record");
        let now = Now::read();
        match (job, ended) {
            (Job::Step(id), Ok((_, Done::Step(result)))) => self.step_ended(&id, result, now),
            (Job::Step(id), Err(error)) => {
                let error = HostError::infrastructure(format!("a step panicked: {error}"));
                self.step_ended(
                    &id,
                    Err(Failure {
                        part: Part::Runtime,
                        error,
                    }),
                    now,
                );
            }
            (_, Ok((_, done))) => self.background_ended(done, now),
            (job, Err(error)) => {
                tracing::error!(error = %error, "a background job panicked");
                let failed = || HostError::infrastructure("panicked");
                match job {
                    Job::Background(Background::Observation) => {
                        self.observation_ended(None, Err(failed()), now)
                    }
                    Job::Background(Background::Network) => {
                        self.background_ended(Done::Network(Err(failed())), now)
                    }
                    Job::Background(Background::Usage) => {
                        self.background_ended(Done::Usage(Err(failed())), now)
                    }
                    Job::Background(Background::Disk) => {
                        self.background_ended(Done::Disk(Err(failed())), now)
                    }
                    Job::Background(Background::Count) => {
                        self.background_ended(Done::Counted(Err(failed())), now)
                    }
                    Job::Background(Background::Sweep) => {
                        self.background_ended(Done::Swept(Err(failed())), now)
                    }
                    Job::Store(position) => self.answer(position, Some("it cannot be stored".into())),
                    Job::Step(..) => unreachable!("matched above"),
                }
            }
        }
    }

    fn step_ended(&mut self, id: &ReplicaId, result: Result<Outcome, Failure>, now: Now) {
        if let Err(failure) = &result {
            tracing::warn!(replica_id = %id, error = %failure.error, part = ?failure.part, "a step failed");
        }
        self.cancels.remove(id);
        let mut news = Vec::new();
        self.parts.core.step_ended(id, result, now, &mut news);
        for happening in news {
            self.parts.events.push(happening, now.wall);
        }
    }

    fn background_ended(&mut self, done: Done, now: Now) {
        match done {
            Done::Step(_) => unreachable!("a step has its own arm"),
            Done::Observed(token, result) => self.observation_ended(Some(token), result, now),
            Done::Network(result) => {
                self.background.remove(&Background::Network);
                if result.is_err() {
                    self.compare_at = now.boot.plus(OBSERVE_AGAIN);
                }
                self.parts
                    .verdicts
                    .set(status::Part::Network, result.map_err(|error| error.message));
            }
            Done::Usage(result) => {
                self.background.remove(&Background::Usage);
                if let Ok(samples) = result {
                    self.parts.core.sampled(&samples, now);
                }
            }
            Done::Disk(result) => {
                self.background.remove(&Background::Disk);
                let pressure = result.map_err(|error| error.message);
                if let Ok(Some(pressure)) = &pressure {
                    self.parts.core.short_of_disk(pressure, now);
                }
                let verdict =
                    pressure.and_then(|pressure| pressure.map_or(Ok(()), |found| Err(found.to_string())));
                self.parts.verdicts.set(status::Part::Disk, verdict);
            }
            Done::Counted(result) => {
                self.background.remove(&Background::Count);
                // What was not counted drains until its cap.
                if let Ok(counts) = result {
                    self.parts.core.connected(&counts, now);
                }
            }
            Done::Swept(result) => {
                self.background.remove(&Background::Sweep);
                self.parts
                    .verdicts
                    .set(status::Part::Keeper, result.map_err(|error| error.message));
            }
            Done::Stored(set, position, result) => self.stored(*set, position, result),
            Done::Overtaken(position) => self.answer(position, Some("a newer one has come".into())),
        }
    }

    fn observation_ended(
        &mut self,
        token: Option<ObservationToken>,
        result: Result<Observed, HostError>,
        now: Now,
    ) {
        self.background.remove(&Background::Observation);
        match (token, result) {
            (Some(token), Ok(observed)) => {
                let first = *self.parts.core.runtime() == Runtime::Unknown;
                self.parts.core.observed(token, observed, now);
                self.parts.verdicts.set(status::Part::Runtime, Ok(()));
                self.observe_at = now.boot.plus(OBSERVE_EVERY);
                if first {
                    let running = self.parts.core.running().len();
                    tracing::info!(running, "took over what runs on the machine");
                    self.compare_at = now.boot;
                }
            }
            (_, result) => {
                let reason = result
                    .err()
                    .map_or_else(|| "panicked".to_owned(), |error| error.message);
                self.parts.core.observation_failed(reason.clone(), now);
                self.parts.verdicts.set(status::Part::Runtime, Err(reason));
                self.observe_at = now.boot.plus(OBSERVE_AGAIN);
            }
        }
    }

    /// Decides and acts.
    fn turn(&mut self, now: Now) {
        self.parts.core.storage(self.parts.ledger.trouble());
        let mut output = self.parts.core.advance(now);
        for happening in std::mem::take(&mut output.news) {
            self.parts.events.push(happening, now.wall);
        }
        self.wake_at = output.wake_at;
        self.start_steps(&mut output);
        self.publish(output.changed, now);
        if output.changed == Changed::Phase {
            self.parts.prober.set(self.parts.core.probes());
        }
        self.start_jobs(now);
    }

    fn start_steps(&mut self, output: &mut Output) {
        let writes = std::mem::take(&mut output.writes);
        let sequence = (!writes.is_empty()).then(|| self.parts.ledger.write(writes));
        for id in &output.cancels {
            if let Some(cancel) = self.cancels.get(id) {
                cancel.cancel();
            }
        }
        for (id, step) in std::mem::take(&mut output.steps) {
            self.start_step(id, step, sequence);
        }
    }

    fn start_step(&mut self, id: ReplicaId, step: Step, sequence: Option<u64>) {
        tracing::debug!(replica_id = %id, step = step.name(), "begins");
        let (host, gate, ledger) = (
            Arc::clone(&self.parts.host),
            Arc::clone(&self.gate),
            self.parts.ledger.clone(),
        );
        let progress = Report {
            replica_id: id.clone(),
            inbox: self.parts.inbox_sender.clone(),
            reported: Arc::default(),
        };
        let (cancel, of) = (CancellationToken::new(), id.clone());
        let cancelled = cancel.clone();
        let work = async move {
            if let Some(sequence) = sequence {
                // A ledger that cannot be written is reported by its own verdict; the node runs on from memory.
                drop(ledger.wait(sequence).await);
            }
            // Only preparations are cancelled; their verbs are idempotent and may be dropped at any await.
            let result = tokio::select! {
                () = cancelled.cancelled() => Ok(Outcome::Cancelled),
                result = perform(&*host, &gate, &id, &step, progress) => result,
            };
            Done::Step(result)
        };
        self.cancels.insert(of.clone(), cancel);
        self.spawn(Job::Step(of), work);
    }

    fn start_jobs(&mut self, now: Now) {
        if (self.observe_wanted || now.boot >= self.observe_at)
            && self.background.insert(Background::Observation)
        {
            self.observe_wanted = false;
            let (host, token) = (Arc::clone(&self.parts.host), self.parts.core.begin_observation());
            self.spawn(Job::Background(Background::Observation), async move {
                Done::Observed(token, deadline("reading the machine", host.observe()).await)
            });
        }
        let wish = NetworkWish {
            peers: self.parts.peers.clone(),
            // A daemon that has just started knows of nobody that is ready.
            host_ports: (*self.parts.core.runtime() != Runtime::Unknown)
                .then(|| self.parts.core.host_ports()),
        };
        let compare = now.boot >= self.compare_at;
        if (compare || self.network_sent.as_ref() != Some(&wish))
            && self.background.insert(Background::Network)
        {
            self.network_sent = Some(wish.clone());
            let host = Arc::clone(&self.parts.host);
            self.spawn(Job::Background(Background::Network), async move {
                Done::Network(deadline("setting the network", host.set_network(&wish)).await)
            });
        }
        if compare {
            self.compare_at = now.boot.plus(COMPARE_EVERY);
            self.start_sweep();
        }
        if now.boot >= self.disk_at && self.background.insert(Background::Disk) {
            self.disk_at = now.boot.plus(DISK_EVERY);
            let (host, running) = (Arc::clone(&self.parts.host), self.parts.core.running());
            self.spawn(Job::Background(Background::Disk), async move {
                Done::Disk(deadline("measuring the disk", host.disk(&running)).await)
            });
        }
        self.start_count(now);
        if now.boot >= self.usage_at && self.background.insert(Background::Usage) {
            self.usage_at = now.boot.plus(USAGE_EVERY);
            let (host, running) = (Arc::clone(&self.parts.host), self.parts.core.running());
            self.spawn(Job::Background(Background::Usage), async move {
                Done::Usage(deadline("reading usage", host.usage(&running)).await)
            });
        }
    }

    fn start_count(&mut self, now: Now) {
        let draining = self.parts.core.draining(now);
        if draining.is_empty() {
            self.count_at = None;
            return;
        }
        if self.count_at.is_some_and(|at| now.boot < at) || !self.background.insert(Background::Count) {
            return;
        }
        self.count_at = Some(now.boot.plus(COUNT_EVERY));
        let host = Arc::clone(&self.parts.host);
        self.spawn(Job::Background(Background::Count), async move {
            Done::Counted(deadline("counting connections", host.connections(&draining)).await)
        });
    }

    /// Leftovers are only known once both lists are: what runs and what is assigned.
    fn start_sweep(&mut self) {
        if *self.parts.core.runtime() != Runtime::Ok || !self.parts.core.has_set() {
            return;
        }
        if !self.background.insert(Background::Sweep) {
            return;
        }
        let needed = self.parts.core.needed();
        let host = Arc::clone(&self.parts.host);
        self.spawn(Job::Background(Background::Sweep), async move {
            Done::Swept(deadline("sweeping", host.sweep(&needed)).await)
        });
    }

    fn publish(&mut self, changed: Changed, now: Now) {
        match changed {
            Changed::Phase => self.publish_at = Some(now.boot),
            Changed::Details if self.publish_at.is_none() => {
                self.publish_at = Some(now.boot.plus(DETAILS_EVERY));
            }
            Changed::Details | Changed::Nothing => {}
        }
        let core = &self.parts.core;
        let position = core.position();
        let moved = {
            let old = self.parts.snapshots.borrow();
            let observed = *core.runtime() != Runtime::Unknown;
            (old.epoch, old.generation, old.observed) != (position.epoch, position.generation, observed)
        };
        if !moved && self.publish_at.is_none_or(|at| now.boot < at) {
            return;
        }
        self.publish_at = None;
        let old = self.parts.snapshots.borrow().clone();
        self.parts.snapshots.send_replace(Arc::new(Snapshot {
            epoch: position.epoch,
            generation: position.generation,
            digest: position.digest,
            observed: *core.runtime() != Runtime::Unknown,
            replicas: core.status().to_vec(),
            unlisted: core.unlisted(),
            running: core.running(),
            taken_at: now.wall,
            ..Snapshot::clone(&old)
        }));
    }

    fn sleep(&self, now: Now) -> Duration {
        // What is under way is not waited for by time: its end wakes the loop.
        let observe = (!self.background.contains(&Background::Observation)).then_some(self.observe_at);
        let usage = (!self.background.contains(&Background::Usage)).then_some(self.usage_at);
        let disk = (!self.background.contains(&Background::Disk)).then_some(self.disk_at);
        let count = self
            .count_at
            .filter(|_| !self.background.contains(&Background::Count));
        let due = [
            observe,
            usage,
            disk,
            count,
            Some(self.compare_at),
            self.wake_at,
            self.publish_at,
        ];
        let next = due.into_iter().flatten().min().unwrap_or(self.compare_at);
        next.since(now.boot).clamp(Duration::from_millis(1), BEAT_EVERY)
    }
}

async fn deadline<T>(
    what: &'static str,
    work: impl Future<Output = Result<T, HostError>>,
) -> Result<T, HostError> {
    match tokio::time::timeout(JOB_DEADLINE, work).await {
        Ok(result) => result,
        Err(_) => Err(HostError::infrastructure(format!(
            "{what} did not end within {} s",
            JOB_DEADLINE.as_secs()
        ))),
    }
}

#[cfg(test)]
mod tests;
