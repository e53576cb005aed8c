//! All clusters of this process: their actors, and the way to each.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use berth_api::cluster::ClusterSpec;
use berth_api::id::{ClusterId, ContainerName, ReplicaId};
use berth_api::time::Timestamp;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::{Actor, ActorConfig, Answer, ClusterHandle, LoadError, Loaded, Once};
use crate::entry::{Entry, TokenDigest, TokenKind};
use crate::identity::Identity;
use crate::link::{LogQuery, LogStream};
use crate::liveness::Limits;
use crate::metrics::Metrics;
use crate::refusal::{Class, Refused};
use crate::shard::{Place, Shard, Tenure};
use crate::store::{Claim, Claimed, Member, Reserved, Store, StoreError};
use crate::world::{KEPT_MAX_AGE, World};

/// What became of a wish to create a cluster.
#[derive(Debug, Clone)]
pub enum Creation {
    Created(ClusterHandle),
    /// It was there with equal content; its tokens are those it had.
    Existing(ClusterHandle),
    /// It was created under the same idempotency key; this was answered.
    Replayed(ClusterHandle, Answer),
}

/// The idempotency key of a creation, and what to keep of its answer.
#[derive(Debug, Clone)]
pub(crate) struct CreateOnce {
    pub(crate) once: Once,
    pub(crate) answer: fn(&World) -> Answer,
}

/// See the module documentation. Owner of the actors.
#[derive(Debug)]
pub struct Scheduler {
    store: Arc<dyn Store>,
    limits: Limits,
    identity: Arc<Identity>,
    metrics: Arc<Metrics>,
    clusters: RwLock<BTreeMap<ClusterId, Served>>,
    /// One creation at a time: between the look and the append nobody else may create.
    creating: tokio::sync::Mutex<()>,
    actors: TaskTracker,
    stop: CancellationToken,
    /// Present when clusters are shared with other processes.
    shard: Option<Arc<Shard>>,
}

/// An actor of this process.
#[derive(Debug)]
struct Served {
    handle: ClusterHandle,
    stop: CancellationToken,
}

impl Scheduler {
    /// Loads every cluster of the store and starts its actor.
    ///
    /// # Errors
    /// When the store cannot be read, or any record of any cluster is not what was written: nothing is overwritten.
    pub async fn load(
        store: Arc<dyn Store>,
        limits: Limits,
        identity: Arc<Identity>,
    ) -> Result<Arc<Self>, LoadError> {
        let scheduler = Self::without_clusters(store, limits, identity, None);
        let mut loaded = Vec::new();
        for cluster in scheduler.store.clusters().await? {
            loaded.push(Loaded::load(scheduler.store.as_ref(), &cluster).await?);
        }
        for cluster in loaded {
            scheduler.start_actor(cluster, &Tenure::forever());
        }
        Ok(scheduler)
    }

    /// A scheduler that shares the clusters of its store: [`crate::shard::run`] starts and ends its actors.
    pub(crate) fn shared(shard: Arc<Shard>, limits: Limits, identity: Arc<Identity>) -> Arc<Self> {
        Self::without_clusters(shard.etcd.clone(), limits, identity, Some(shard))
    }

    fn without_clusters(
        store: Arc<dyn Store>,
        limits: Limits,
        identity: Arc<Identity>,
        shard: Option<Arc<Shard>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            limits,
            identity,
            metrics: Arc::default(),
            clusters: RwLock::default(),
            creating: tokio::sync::Mutex::default(),
            actors: TaskTracker::new(),
            stop: CancellationToken::new(),
            shard,
        })
    }

    /// How clusters are shared with other processes, where they are.
    pub(crate) fn shard(&self) -> Option<&Arc<Shard>> {
        self.shard.as_ref()
    }

    /// Where a cluster is served.
    pub(crate) fn place(&self, cluster: &ClusterId) -> Place {
        match (self.find(cluster), &self.shard) {
            (Some(_), _) => Place::Here,
            (None, Some(shard)) => shard.place(cluster),
            (None, None) => Place::Unknown,
        }
    }

    /// The other process to ask about a cluster, where there is one: its owner, or for an unknown one the process that
    /// would own it, so that from outside neither can be told from the other.
    pub(crate) fn elsewhere(&self, cluster: &ClusterId) -> Option<Member> {
        match self.place(cluster) {
            Place::Here | Place::Moving => None,
            Place::Elsewhere(member) => Some(member),
            Place::Unknown => self.shard.as_ref()?.birthplace(cluster),
        }
    }

    /// Refuses what is about a cluster that is not served here: unknown, or for the moment.
    pub(crate) fn not_here(&self, cluster: &ClusterId) -> Refused {
        match self.place(cluster) {
            Place::Here | Place::Unknown => Refused::cluster_not_found(cluster.as_str()),
            Place::Elsewhere(member) => Refused::unavailable(format!(
                "cluster {:?} is served at {}",
                cluster.as_str(),
                member.rest_url
            )),
            Place::Moving => Refused::unavailable(format!(
                "cluster {:?} is being taken over; try again",
                cluster.as_str()
            )),
        }
    }

    /// The keys and certificates of this scheduler.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What the scheduler counts of itself.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Asks the store something that it must be able to answer.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn read_store(&self) -> Result<(), StoreError> {
        self.store.clusters().await.map(drop)
    }

    /// What the scheduler waits how long for.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Stops all actors and waits for them. What they were asked and have not stored is refused.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        for cluster in self.clusters() {
            cluster.sessions().end_all();
        }
        self.actors.close();
        self.actors.wait().await;
    }

    /// Creates a cluster. The same wish again, while groups are as wished, gives the one that is there.
    ///
    /// # Errors
    /// When another cluster has the id, or the store is not available.
    pub async fn create_cluster(
        &self,
        spec: ClusterSpec,
        tokens: BTreeMap<TokenKind, TokenDigest>,
    ) -> Result<Creation, Refused> {
        self.create_cluster_once(spec, tokens, None).await
    }

    /// As [`Scheduler::create_cluster`], once for each idempotency key.
    ///
    /// # Errors
    /// As [`Scheduler::create_cluster`], and when the key was used for another write.
    pub(crate) async fn create_cluster_once(
        &self,
        spec: ClusterSpec,
        tokens: BTreeMap<TokenKind, TokenDigest>,
        once: Option<CreateOnce>,
    ) -> Result<Creation, Refused> {
        let _creating = self.creating.lock().await;
        if let Some(CreateOnce { once, .. }) = &once
            && let Some(replayed) = self.created_before(once)?
        {
            return Ok(replayed);
        }
        if let Some(known) = self.find(&spec.cluster_id) {
            let world = known.world();
            if world.deleted_at().is_none() && *world.spec() == spec {
                self.reserve(once.as_ref().map(|once| &once.once)).await?;
                return Ok(Creation::Existing(known));
            }
            let (code, what) = if world.deleted_at().is_some() {
                ("cluster_deleting", "is being deleted; try again when it is gone")
            } else {
                (
                    "cluster_exists",
                    "exists with other content; delete it first or choose another id",
                )
            };
            let id = spec.cluster_id.as_str();
            return Err(Refused::new(
                Class::Conflict,
                code,
                format!("cluster {id:?} {what}"),
            ));
        }
        let cluster = spec.cluster_id.clone();
        let entry = Entry::ClusterCreated {
            spec,
            tokens,
            at: Timestamp::now(),
        };
        let mut world = World::create(&entry).expect("the first entry creates");
        let mut records = vec![entry.to_record()];
        let reservation = once.as_ref().map(|once| once.once.clone());
        if let Some(CreateOnce { once, answer }) = once {
            let kept = once.entry(&answer(&world), world.created_at());
            world.apply(&kept);
            records.push(kept.to_record());
        }
        self.create_reserved(&cluster, world, records, reservation.as_ref())
            .await
    }

    /// The part of a creation that others could see.
    async fn create_owned(
        &self,
        cluster: &ClusterId,
        world: World,
        records: Vec<Vec<u8>>,
    ) -> Result<Creation, Refused> {
        let tenure = self.own_new(cluster).await?;
        let next_seq = self
            .store
            .append(cluster, 1, records)
            .await
            .map_err(|error| Refused::from(&error))?;
        tracing::info!(cluster_id = %cluster, "the cluster is created");
        Ok(Creation::Created(
            self.start_actor(Loaded::new(world, next_seq), &tenure),
        ))
    }

    /// Reserves an idempotency key among all processes.
    async fn reserve(&self, once: Option<&Once>) -> Result<(), Refused> {
        let (Some(shard), Some(once)) = (&self.shard, once) else {
            return Ok(());
        };
        let reserved = shard.etcd.reserve(&once.key, &once.request, KEPT_MAX_AGE).await;
        match reserved.map_err(|error| Refused::from(&error))? {
            Reserved::Ours => Ok(()),
            Reserved::Taken => Err(Refused::new(
                Class::Conflict,
                "idempotency_key_reused",
                "the Idempotency-Key was used for another creation; use a new key for each write",
            )),
        }
    }

    /// As [`Self::create_owned`], under an idempotency key that no process has used for another creation.
    async fn create_reserved(
        &self,
        cluster: &ClusterId,
        world: World,
        records: Vec<Vec<u8>>,
        once: Option<&Once>,
    ) -> Result<Creation, Refused> {
        self.reserve(once).await?;
        let created = self.create_owned(cluster, world, records).await;
        // What is not known to be refused keeps its key: it may turn out to be made.
        if let (Some(shard), Some(once), Err(refused)) = (&self.shard, once, &created)
            && refused.class != Class::Unavailable
            && let Err(error) = shard.etcd.unreserve(&once.key, &once.request).await
        {
            tracing::warn!(cluster_id = %cluster, error = &error as &dyn std::error::Error,
                "an idempotency key stays in use although its creation was refused");
        }
        created
    }

    /// Becomes the owner of a cluster that is about to be created. When it is not created after all, the shard's task
    /// finds it without a history and gives it back.
    async fn own_new(&self, cluster: &ClusterId) -> Result<Tenure, Refused> {
        let Some(shard) = &self.shard else {
            return Ok(Tenure::forever());
        };
        let (lease, tenure) = shard
            .tenure()
            .ok_or_else(|| Refused::unavailable("this process has no lease at the moment; try again"))?;
        let unfit = || {
            Err::<Tenure, StoreError>(StoreError::NotOwner {
                cluster: cluster.clone(),
            })
        };
        let claimed = match shard.claim(cluster, Claim::New, lease).await {
            Ok(Claimed::Won) => Ok(tenure),
            Ok(Claimed::Taken | Claimed::Unfit) => unfit(),
            Err(error) => Err(error),
        };
        claimed.map_err(|error| Refused::from(&error))
    }

    /// What was answered to a creation under the same key, whichever cluster it created: a key stands for one write.
    fn created_before(&self, once: &Once) -> Result<Option<Creation>, Refused> {
        let now = Timestamp::now();
        for cluster in self.clusters() {
            if let Some(answer) = once.answered(&cluster.world(), now)? {
                return Ok(Some(Creation::Replayed(cluster, answer)));
            }
        }
        Ok(None)
    }

    /// A cluster that is there and not wholly deleted.
    ///
    /// # Errors
    /// When there is none of this id.
    pub fn cluster(&self, id: &ClusterId) -> Result<ClusterHandle, Refused> {
        match self.find(id) {
            Some(handle) if handle.world().deleted_at().is_none() => Ok(handle),
            Some(_) => Err(Refused::cluster_not_found(id.as_str())),
            None => Err(self.not_here(id)),
        }
    }

    /// Every cluster, those being deleted included, ordered by id.
    #[must_use]
    pub fn clusters(&self) -> Vec<ClusterHandle> {
        if !self.may_act() {
            return Vec::new();
        }
        let clusters = self.clusters.read().unwrap_or_else(PoisonError::into_inner);
        clusters
            .values()
            .filter(|served| !served.handle.is_closed() && !served.handle.world().is_finished())
            .map(|served| served.handle.clone())
            .collect()
    }

    /// A cluster that is there, also while it is being deleted.
    ///
    /// # Errors
    /// When there is none of this id.
    pub fn known(&self, id: &ClusterId) -> Result<ClusterHandle, Refused> {
        self.find(id).ok_or_else(|| self.not_here(id))
    }

    /// Whether this process may speak for its clusters: always, or for as long as its lease counts.
    fn may_act(&self) -> bool {
        self.shard.as_ref().is_none_or(|shard| shard.tenure().is_some())
    }

    /// Deletes a cluster with all that is in it. Deleting what is being deleted succeeds.
    ///
    /// # Errors
    /// When there is none of this id, or the store is not available.
    pub async fn delete_cluster(&self, id: &ClusterId) -> Result<(), Refused> {
        let handle = self.find(id).ok_or_else(|| self.not_here(id))?;
        handle.delete().await
    }

    /// Begins to read the logs of a replica, or of every replica of a container.
    ///
    /// # Errors
    /// When nothing of that name is placed, or one of the machines is not linked.
    pub fn logs(&self, cluster: &ClusterId, name: &str, query: LogQuery) -> Result<Vec<LogStream>, Refused> {
        let handle = self.cluster(cluster)?;
        let world = handle.world();
        let one = ReplicaId::new(name).ok().and_then(|id| world.replica(&id));
        let replicas: Vec<_> = match (one, ContainerName::new(name)) {
            (Some(replica), _) => vec![replica],
            (None, Ok(container)) => world
                .replicas()
                .values()
                .filter(|r| r.container == container)
                .collect(),
            (None, Err(_)) => Vec::new(),
        };
        if replicas.is_empty() {
            return Err(Refused::new(
                Class::NotFound,
                "nothing_placed",
                format!("no replica or container {name:?} is placed on a machine"),
            ));
        }
        replicas
            .into_iter()
            .map(|replica| {
                handle
                    .sessions()
                    .logs(&replica.machine_id, &replica.replica_id, query)
            })
            .collect()
    }

    /// A cluster in whatever state, until its log is dropped.
    pub(crate) fn find(&self, id: &ClusterId) -> Option<ClusterHandle> {
        if !self.may_act() {
            return None;
        }
        let clusters = self.clusters.read().unwrap_or_else(PoisonError::into_inner);
        clusters
            .get(id)
            .map(|served| &served.handle)
            .filter(|handle| !handle.is_closed())
            .cloned()
    }

    /// Every cluster that an actor runs for.
    pub(crate) fn running(&self) -> Vec<ClusterId> {
        let clusters = self.clusters.read().unwrap_or_else(PoisonError::into_inner);
        clusters
            .iter()
            .filter(|(_, served)| !served.handle.is_closed())
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// Whether an actor runs here for every cluster that is this process's to serve, as far as it knows.
    pub(crate) fn serves_its_share(&self) -> bool {
        self.shard.as_ref().is_none_or(|shard| {
            let running = self.running().into_iter().collect();
            let me = &shard.config.me.nonce;
            shard.is_ready()
                && shard.with_view(|view| {
                    let duties = view.duties(me, &running);
                    duties.claim.is_empty() && duties.start.is_empty()
                })
        })
    }

    /// Held by whoever creates a cluster.
    pub(crate) async fn creating(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.creating.lock().await
    }

    /// Ends the actor of a cluster and its sessions; returns when nothing of it writes any more.
    pub(crate) async fn stop_cluster(&self, id: &ClusterId, deadline: Duration) {
        let served = {
            let mut clusters = self.clusters.write().unwrap_or_else(PoisonError::into_inner);
            clusters.remove(id)
        };
        let Some(Served { handle, stop }) = served else {
            return;
        };
        stop.cancel();
        handle.sessions().end_all();
        if tokio::time::timeout(deadline, handle.closed()).await.is_err() {
            tracing::warn!(cluster_id = %id, "an actor does not end; its writes are fenced");
        }
    }

    /// Starts the actor of a cluster; the one that runs already stays.
    pub(crate) fn start_actor(&self, loaded: Loaded, tenure: &Tenure) -> ClusterHandle {
        let stop = self.stop.child_token();
        let config = ActorConfig {
            store: self.store.clone(),
            limits: self.limits,
            stop: stop.clone(),
            tenure: tenure.clone(),
            metrics: self.metrics.clone(),
        };
        let (actor, handle) = Actor::new(config, loaded);
        let mut clusters = self.clusters.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(served) = clusters.get(handle.id())
            && !served.handle.is_closed()
        {
            return served.handle.clone();
        }
        let served = Served {
            handle: handle.clone(),
            stop,
        };
        clusters.insert(handle.id().clone(), served);
        self.actors.spawn(actor.run());
        handle
    }
}
