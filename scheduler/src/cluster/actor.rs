//! The loop of one cluster. See [`super`] for what it promises.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use berth_api::id::ClusterId;
use berth_api::link::Peer;
use berth_api::time::{Timestamp, monotonic};
use futures::FutureExt as _;
use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, error, info, warn};

use super::draft::Memory;
use super::{ClusterHandle, Directory, Draft, MAILBOX_MAX, Mesh, Published};
use crate::autoscale;
use crate::check::{check, check_reported};
use crate::decide::{Decision, Report, Scope, decide_and_apply};
use crate::entry::{Entry, RecordError};
use crate::link::Sessions;
use crate::liveness::{self, Limits};
use crate::metrics::Metrics;
use crate::refusal::Refused;
use crate::rollout;
use crate::shard::Tenure;
use crate::store::{History, SNAPSHOT_INTERVAL, Snapshot, Store, StoreError};
use crate::traces::{self, Part};
use crate::world::{ApplyError, Now, Observed, World};

/// A decision is made at least this often: liveness has no other clock.
const PERIOD: Duration = Duration::from_secs(1);
/// [`ClusterHandle::observed`] is renewed at most this often, it being a copy of everything nodes said; with each period
/// when they only repeat themselves.
pub(super) const OBSERVED_PERIOD: Duration = Duration::from_millis(50);
/// At most this many requests share one decision and one append.
const BATCH_MAX: usize = 256;
/// Between two attempts to load a cluster whose store or decision failed.
const RELOAD_PERIOD: Duration = Duration::from_secs(2);
/// An append that takes longer counts as failed; what became of it is read from the store.
const APPEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers the caller once its entries are durable, or why they are not.
pub(super) type Finish = Box<dyn FnOnce(Result<(), Refused>) + Send>;

/// One change that waits in the mailbox.
pub(crate) struct Request {
    run: Box<dyn FnOnce(&mut Draft<'_>) -> Finish + Send>,
    /// What asked for it.
    span: Span,
}

impl Request {
    pub(super) fn new(run: impl FnOnce(&mut Draft<'_>) -> Finish + Send + 'static) -> Self {
        Self {
            run: Box::new(run),
            span: Span::current(),
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").finish_non_exhaustive()
    }
}

/// Why a stored cluster cannot be rebuilt. The start stops and nothing is overwritten.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cluster {cluster}, record {seq}: it cannot be read")]
    Record {
        cluster: ClusterId,
        seq: u64,
        source: RecordError,
    },
    #[error("cluster {cluster}, record {seq}: it contradicts the records before it")]
    Contradiction {
        cluster: ClusterId,
        seq: u64,
        source: Box<ApplyError>,
    },
    #[error("cluster {cluster}, snapshot at record {seq}: it cannot be read")]
    Snapshot {
        cluster: ClusterId,
        seq: u64,
        source: Arc<serde_json::Error>,
    },
    #[error(
        "cluster {cluster}, snapshot at record {seq}: it has version {found}, this program reads {SNAPSHOT_VERSION}"
    )]
    NewerSnapshot {
        cluster: ClusterId,
        seq: u64,
        found: u32,
    },
    #[error("cluster {cluster}: its log is empty")]
    Empty { cluster: ClusterId },
}

/// Highest version of the stored form of a snapshot. What is of which: [`World::format`].
const SNAPSHOT_VERSION: u32 = 2;

#[derive(Serialize, Deserialize)]
struct StoredSnapshot<W> {
    v: u32,
    world: W,
}

/// A cluster as it was rebuilt from the store.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) world: World,
    next_seq: u64,
    snapshot_seq: u64,
}

impl Loaded {
    /// A cluster whose first record has just been appended.
    pub(crate) fn new(world: World, next_seq: u64) -> Self {
        Self {
            world,
            next_seq,
            snapshot_seq: 0,
        }
    }

    /// Rebuilds a cluster from its history.
    pub(crate) async fn load(store: &dyn Store, cluster: &ClusterId) -> Result<Self, LoadError> {
        let history = store.load(cluster).await?;
        Self::rebuild(cluster, &history)
    }

    fn rebuild(cluster: &ClusterId, history: &History) -> Result<Self, LoadError> {
        let contradiction = |seq, error| LoadError::Contradiction {
            cluster: cluster.clone(),
            seq,
            source: Box::new(error),
        };
        let mut world = match &history.snapshot {
            Some(snapshot) => Some(read_snapshot(cluster, snapshot)?),
            None => None,
        };
        for record in &history.records {
            let entry = Entry::from_record(&record.payload).map_err(|source| LoadError::Record {
                cluster: cluster.clone(),
                seq: record.seq,
                source,
            })?;
            match &mut world {
                Some(world) => world
                    .try_apply(&entry)
                    .map_err(|error| contradiction(record.seq, error))?,
                None => {
                    world = Some(World::create(&entry).map_err(|error| contradiction(record.seq, error))?);
                }
            }
        }
        let world = world.ok_or_else(|| LoadError::Empty {
            cluster: cluster.clone(),
        })?;
        Ok(Self {
            world,
            next_seq: history.next_seq,
            snapshot_seq: history.snapshot.as_ref().map_or(0, |snapshot| snapshot.seq),
        })
    }
}

/// The bytes that are stored of a world, of the lowest version whose readers understand it.
pub(super) fn snapshot_of(world: &World) -> Vec<u8> {
    let v = world.format();
    serde_json::to_vec(&StoredSnapshot { v, world }).expect("a world has text keys and no failing serialiser")
}

fn read_snapshot(cluster: &ClusterId, snapshot: &Snapshot) -> Result<World, LoadError> {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    let unreadable = |error| LoadError::Snapshot {
        cluster: cluster.clone(),
        seq: snapshot.seq,
        source: Arc::new(error),
    };
    let version: Version = serde_json::from_slice(&snapshot.payload).map_err(unreadable)?;
    if version.v > SNAPSHOT_VERSION {
        return Err(LoadError::NewerSnapshot {
            cluster: cluster.clone(),
            seq: snapshot.seq,
            found: version.v,
        });
    }
    let stored: StoredSnapshot<World> = serde_json::from_slice(&snapshot.payload).map_err(unreadable)?;
    Ok(stored.world)
}

/// What every actor of a scheduler is given.
#[derive(Debug, Clone)]
pub(crate) struct ActorConfig {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) limits: Limits,
    pub(crate) stop: CancellationToken,
    /// For how long the cluster is this process's.
    pub(crate) tenure: Tenure,
    pub(crate) metrics: Arc<Metrics>,
}

/// How the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The scheduler stops, or the cluster is another process's from now on.
    Stopped,
    /// The cluster was deleted and its log is gone.
    Deleted,
    /// The store failed: what is durable must be read again.
    Failed,
}

/// The sending ends of [`Published`].
#[derive(Debug)]
struct Publisher {
    world: watch::Sender<Arc<World>>,
    observed: watch::Sender<Arc<Observed>>,
    report: watch::Sender<Arc<Report>>,
    directory: watch::Sender<Option<Arc<Directory>>>,
    mesh: watch::Sender<Arc<Mesh>>,
}

/// Owner of one cluster's state.
#[derive(Debug)]
pub(crate) struct Actor {
    cluster: ClusterId,
    config: ActorConfig,
    requests: mpsc::Receiver<Request>,
    publisher: Publisher,
    started: std::time::Instant,
    world: Arc<World>,
    next_seq: u64,
    snapshot_seq: u64,
    observed: Observed,
    is_observed_dirty: bool,
    memory: Memory,
    /// The limits' freeze as of the last decision, to tell of its begin and end once.
    was_frozen: bool,
}

impl Actor {
    /// The actor of a loaded cluster, not yet running, and the way to it.
    pub(crate) fn new(config: ActorConfig, loaded: Loaded) -> (Self, ClusterHandle) {
        let Loaded {
            world,
            next_seq,
            snapshot_seq,
        } = loaded;
        let world = Arc::new(world);
        let cluster = world.spec().cluster_id.clone();
        let (sender, requests) = mpsc::channel(MAILBOX_MAX);
        let observed = Observed::new(0);
        let (world_sender, world_receiver) = watch::channel(world.clone());
        let (observed_sender, observed_receiver) = watch::channel(Arc::new(observed.clone()));
        let (report_sender, report_receiver) = watch::channel(Arc::new(Report::default()));
        let (directory_sender, directory_receiver) = watch::channel(None);
        let (mesh_sender, mesh_receiver) = watch::channel(Arc::new(Mesh {
            generation: 1,
            peers: peers_of(&world).into_iter().collect(),
        }));
        let handle = ClusterHandle {
            id: Arc::new(cluster.clone()),
            requests: sender,
            published: Published {
                world: world_receiver,
                observed: observed_receiver,
                report: report_receiver,
                directory: directory_receiver,
                mesh: mesh_receiver,
            },
            sessions: Sessions::default(),
        };
        let actor = Self {
            cluster,
            config,
            requests,
            publisher: Publisher {
                world: world_sender,
                observed: observed_sender,
                report: report_sender,
                directory: directory_sender,
                mesh: mesh_sender,
            },
            started: monotonic(),
            world,
            next_seq,
            snapshot_seq,
            observed,
            is_observed_dirty: false,
            memory: Memory::default(),
            was_frozen: false,
        };
        (actor, handle)
    }

    /// Runs until the scheduler stops or the cluster is deleted. A failing store or a broken invariant costs the work
    /// in flight: the cluster is then loaded again from what is durable.
    pub(crate) async fn run(mut self) {
        loop {
            let end = AssertUnwindSafe(self.run_loaded()).catch_unwind().await;
            match end {
                Ok(End::Stopped | End::Deleted) => return,
                Ok(End::Failed) => {}
                Err(_) => error!(cluster_id = %self.cluster, "the actor panicked; loading the cluster again"),
            }
            if !self.reload().await {
                return;
            }
        }
    }

    /// Loads the cluster until that succeeds; false when the scheduler stops first, or nothing is left of the cluster.
    async fn reload(&mut self) -> bool {
        loop {
            tokio::select! {
                // Cancel-safe: a timer.
                () = tokio::time::sleep(RELOAD_PERIOD) => {}
                // Cancel-safe: a token.
                () = self.config.stop.cancelled() => return false,
            }
            match Loaded::load(self.config.store.as_ref(), &self.cluster).await {
                Ok(loaded) => {
                    self.world = Arc::new(loaded.world);
                    self.next_seq = loaded.next_seq;
                    self.snapshot_seq = loaded.snapshot_seq;
                    self.publish_world();
                    self.publish_mesh();
                    info!(cluster_id = %self.cluster, "loaded the cluster again");
                    return true;
                }
                Err(LoadError::Empty { .. }) => {
                    warn!(cluster_id = %self.cluster, "the cluster is gone from the store");
                    return false;
                }
                Err(error) => {
                    error!(cluster_id = %self.cluster, error = &error as &dyn std::error::Error,
                        "cannot load the cluster again");
                }
            }
        }
    }

    async fn run_loaded(&mut self) -> End {
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut observed_period = tokio::time::interval(OBSERVED_PERIOD);
        observed_period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            let mut is_due = false;
            tokio::select! {
                // Cancel-safe: a token.
                () = self.config.stop.cancelled() => return End::Stopped,
                // Cancel-safe by its documentation: nothing is taken unless this arm wins.
                count = self.requests.recv_many(&mut batch, BATCH_MAX) => {
                    if count == 0 {
                        return End::Stopped;
                    }
                }
                // Cancel-safe: a timer.
                _ = period.tick() => is_due = true,
                // Cancel-safe: a timer.
                _ = observed_period.tick(), if self.is_observed_dirty => {
                    self.is_observed_dirty = false;
                    self.publisher.observed.send_replace(Arc::new(self.observed.clone()));
                    continue;
                }
            }
            if !self.config.tenure.holds() {
                return End::Stopped;
            }
            if let Some(end) = self.step(std::mem::take(&mut batch), is_due).await {
                return end;
            }
        }
    }

    fn now(&self) -> Now {
        Now {
            wall: Timestamp::now(),
            monotonic_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// One batch: drain ▶ decide ▶ check ▶ append ▶ apply ▶ publish. Nothing is decided where nothing is new since the last
    /// decision and the period is not over: deciding again would give nothing.
    async fn step(&mut self, batch: Vec<Request>, is_due: bool) -> Option<End> {
        let now = self.now();
        let mut draft = Draft {
            world: self.world.clone(),
            entries: Vec::new(),
            observed: &mut self.observed,
            has_news: false,
            memory: &mut self.memory,
            now,
        };
        let commit = traces::commit(batch.iter().map(|request| &request.span));
        let finishes: Vec<Finish> = batch
            .into_iter()
            .map(|request| (request.run)(&mut draft))
            .collect();
        let has_news = draft.has_news;
        let (mut world, mut entries) = (draft.world, draft.entries);
        if !is_due && !has_news && entries.is_empty() {
            for finish in finishes {
                finish(Ok(()));
            }
            return None;
        }
        self.is_observed_dirty |= has_news || (is_due && !self.observed.machines.is_empty());
        autoscale::observe(&world, &mut self.observed, &self.config.limits.autoscale, now);
        rollout::observe(&world, &mut self.observed, now);
        let begun = monotonic();
        let decision = self.decide(&world, now);
        self.config.metrics.decided(begun.elapsed());
        let report = decision.map(|(decision, after)| {
            if let Some(after) = after {
                world = Arc::new(after);
            }
            entries.extend(decision.entries);
            decision.report
        });
        commit.record("entries", entries.len());
        let append = traces::part(&commit, Part::Append);
        let stored = self.append(&entries).instrument(append).await;
        let outcome = traces::part(&commit, Part::Announce).in_scope(|| {
            if stored.is_ok() {
                self.commit(world, &entries);
            }
            self.publish(report, now);
            match &stored {
                Ok(()) => Ok(()),
                Err(error) => Err(Refused::from(error)),
            }
        });
        for finish in finishes {
            finish(outcome.clone());
        }
        if let Err(StoreError::NotOwner { .. }) = stored {
            warn!(cluster_id = %self.cluster, "the cluster is another process's; its actor here ends");
            return Some(End::Stopped);
        }
        if let Err(error) = stored {
            error!(cluster_id = %self.cluster, error = &error as &dyn std::error::Error,
                "the store failed; loading the cluster again");
            return Some(End::Failed);
        }
        self.keep_snapshot().await;
        self.drop_finished().await
    }

    /// Decides and checks the decision, and gives the world after it; none when it breaks a rule. What was asked for by requests is
    /// done all the same.
    fn decide(&self, world: &World, now: Now) -> Option<(Decision, Option<World>)> {
        let decide = || decide_and_apply(world, &self.observed, &self.config.limits, now, Scope::All);
        let Ok((decision, after)) = std::panic::catch_unwind(AssertUnwindSafe(decide)) else {
            error!(cluster_id = %self.cluster, "the decision panicked; nothing is decided");
            return None;
        };
        if decision.entries.is_empty() {
            return Some((decision, None));
        }
        let mut violations = check(world, &decision.entries);
        let limits = &self.config.limits;
        violations.extend(check_reported(
            world,
            &self.observed,
            limits,
            now,
            &decision.entries,
        ));
        for violation in &violations {
            error!(cluster_id = %self.cluster, error = %violation,
                "the decision breaks a rule and is not taken");
        }
        violations.is_empty().then_some((decision, after))
    }

    /// Makes entries durable.
    async fn append(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        let payloads = entries.iter().map(Entry::to_record).collect();
        let append = self.config.store.append(&self.cluster, self.next_seq, payloads);
        let begun = monotonic();
        let appended = tokio::time::timeout(APPEND_TIMEOUT, append)
            .await
            .unwrap_or(Err(StoreError::TimedOut));
        match appended {
            Ok(next_seq) => {
                self.config.metrics.appended(entries.len(), begun.elapsed());
                self.next_seq = next_seq;
                Ok(())
            }
            Err(error) => {
                self.config.metrics.append_failed();
                Err(error)
            }
        }
    }

    /// Takes over what has become durable.
    fn commit(&mut self, world: Arc<World>, entries: &[Entry]) {
        if entries.is_empty() {
            return;
        }
        assert_eq!(world.applied_count() + 1, self.next_seq, "one record an entry");
        self.world = world;
        self.publish_world();
        let is_mesh = |entry: &Entry| {
            matches!(
                entry,
                Entry::MachineRegistered { .. } | Entry::MachineRemoved { .. }
            )
        };
        if entries.iter().any(is_mesh) {
            self.publish_mesh();
        }
    }

    fn publish_world(&mut self) {
        self.publisher.world.send_replace(self.world.clone());
    }

    fn publish_mesh(&self) {
        let fresh = peers_of(&self.world);
        self.publisher.mesh.send_if_modified(|mesh| {
            let next = renewed(&mesh.peers, fresh);
            let is_changed = next.is_some();
            if let Some(peers) = next {
                *mesh = Arc::new(Mesh {
                    generation: mesh.generation + 1,
                    peers,
                });
            }
            is_changed
        });
    }

    fn publish(&mut self, report: Option<Report>, now: Now) {
        if let Some(report) = report {
            self.tell_freeze(&report);
            self.publish_report(report);
        }
        self.publish_directory(now);
    }

    fn publish_report(&self, report: Report) {
        self.publisher.report.send_if_modified(|published| {
            let is_changed = **published != report;
            if is_changed {
                *published = Arc::new(report);
            }
            is_changed
        });
    }

    fn publish_directory(&self, now: Now) {
        let limits = &self.config.limits;
        if self.publisher.directory.borrow().is_none()
            && !liveness::is_settled(&self.world, &self.observed, limits, now)
        {
            return;
        }
        let names = self.world.directory(&self.observed, limits, now);
        self.publisher.directory.send_if_modified(|published| {
            let known = published.as_deref().cloned().unwrap_or_default();
            let next = renewed(&known.names, names);
            let is_changed = next.is_some() || published.is_none();
            if is_changed {
                *published = Some(Arc::new(Directory {
                    generation: known.generation + 1,
                    names: next.unwrap_or_default(),
                }));
            }
            is_changed
        });
    }

    /// Logs the begin and the end of a freeze.
    fn tell_freeze(&mut self, report: &Report) {
        match report.freeze {
            Some(freeze) if !self.was_frozen => {
                warn!(cluster_id = %self.cluster, unhealthy = freeze.unhealthy, total = freeze.total,
                    "too many machines are silent at once: nothing moves off them");
            }
            None if self.was_frozen => info!(cluster_id = %self.cluster, "the freeze has ended"),
            Some(_) | None => {}
        }
        self.was_frozen = report.freeze.is_some();
    }

    /// Keeps a snapshot when as much was appended since the last as a snapshot is large: so all snapshots together cost no more
    /// than the log. A failure is told and tried again after the next append: the log alone is the truth.
    async fn keep_snapshot(&mut self) {
        let seq = self.next_seq - 1;
        if seq < self.snapshot_seq + SNAPSHOT_INTERVAL.max(self.world.size()) {
            return;
        }
        let payload = snapshot_of(&self.world);
        match self
            .config
            .store
            .snapshot(&self.cluster, Snapshot { seq, payload })
            .await
        {
            Ok(()) => self.snapshot_seq = seq,
            Err(error) => warn!(cluster_id = %self.cluster, error = &error as &dyn std::error::Error,
                "cannot keep a snapshot"),
        }
    }

    /// Drops the log of a deleted cluster of which nothing is left.
    async fn drop_finished(&mut self) -> Option<End> {
        if !self.world.is_finished() {
            return None;
        }
        match self.config.store.delete(&self.cluster, self.next_seq).await {
            Ok(()) => {
                info!(cluster_id = %self.cluster, "the cluster is deleted");
                Some(End::Deleted)
            }
            Err(error) => {
                warn!(cluster_id = %self.cluster, error = &error as &dyn std::error::Error,
                    "cannot drop the log of a deleted cluster");
                None
            }
        }
    }
}

fn peers_of(world: &World) -> BTreeMap<String, Peer> {
    let peers = world.mesh().into_iter();
    peers.map(|peer| (peer.machine_id.clone(), peer)).collect()
}

/// `known` with the content of `fresh`, sharing what is equal; none when all of it is.
fn renewed<V: Clone + PartialEq>(
    known: &OrdMap<String, V>,
    fresh: BTreeMap<String, V>,
) -> Option<OrdMap<String, V>> {
    let mut next = known.clone();
    let mut is_changed = false;
    for name in known.keys().filter(|name| !fresh.contains_key(*name)) {
        next.remove(name);
        is_changed = true;
    }
    for (name, value) in fresh {
        if known.get(&name) != Some(&value) {
            next.insert(name, value);
            is_changed = true;
        }
    }
    is_changed.then_some(next)
}
