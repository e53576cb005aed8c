//! Sharing clusters with other scheduler processes of the same etcd store.
//!
//! ```text
//! join (lease) ─▶ survey ─▶ watch ─┬▶ claim what is free and ours ─▶ load ─▶ actor
//!      ▲                           ├▶ hand over what another one wins: stop the actor, then free it
//!      └──── lease lost: all actors stop at once ◀── keep alive, every third of the lease
//! ```
//!
//! Input: members and owners in etcd. Output: actors that run here and nowhere else. Owner: [`crate::Running`].
//!
//! A process counts its lease from the moment it *sent* the request that prolonged it, and stops acting a fifth of the
//! lease before it could run out. That is a courtesy to readers and nodes: what protects the logs is that each of its
//! writes names the revision of its ownership, and etcd refuses those of an owner that is no more.
//!
//! The taker starts no new epoch: whatever set a former owner ever sent was in the log before, and the taker has read
//! that log to its end, which nobody else can extend any more. Its sets go on where the others ended.

mod tenure;
mod view;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::body::Body;
use berth_api::id::ClusterId;
use berth_api::time::monotonic;
use futures::StreamExt as _;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::cluster::{LoadError, Loaded};
use crate::scheduler::Scheduler;
use crate::store::{Changes, Claim, Claimed, Etcd, Lease, Member, OwnerChange, StoreError};

pub(crate) use tenure::Tenure;
pub(crate) use view::View;

/// Without a change, everything is compared at least this often: a cluster that could not be loaded is tried again.
const PERIOD: Duration = Duration::from_secs(1);
/// A survey is a read of all keys of owners and heads, a few MiB at 10 000 clusters.
const SURVEY_PERIOD: Duration = Duration::from_secs(60);
/// Clusters that are claimed and loaded at once.
const LOADS_MAX: usize = 32;
const REJOIN_PAUSE: Duration = Duration::from_millis(500);
/// An actor that does not end by then is in the middle of a write, which has a deadline of its own.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(15);

/// How this process shares clusters.
#[derive(Debug, Clone)]
pub(crate) struct ShardConfig {
    pub(crate) me: Member,
    /// How long etcd keeps what this process owns after it was last heard.
    pub(crate) lease: Duration,
}

/// Where a cluster is.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Here,
    Elsewhere(Member),
    /// It is there, and nobody owns it at the moment; or this process loads it.
    Moving,
    Unknown,
}

/// What the servers of this process need to know of the others.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) config: ShardConfig,
    pub(crate) etcd: Arc<Etcd>,
    /// The way to the other members' REST APIs.
    pub(crate) client: Client<HttpConnector, Body>,
    view: RwLock<View>,
    /// Before the first survey nothing is known of any cluster, which is not the same as that there is none.
    is_surveyed: AtomicBool,
    /// The present lease and for how long it counts; none before the first and between two.
    tenure: RwLock<Option<(Lease, Tenure)>>,
}

impl Shard {
    pub(crate) fn new(etcd: Arc<Etcd>, config: ShardConfig) -> Self {
        Self {
            config,
            etcd,
            client: Client::builder(TokioExecutor::new()).build_http(),
            view: RwLock::default(),
            is_surveyed: AtomicBool::new(false),
            tenure: RwLock::default(),
        }
    }

    /// The lease under which this process may act now.
    pub(crate) fn tenure(&self) -> Option<(Lease, Tenure)> {
        let tenure = self.tenure.read().unwrap_or_else(PoisonError::into_inner);
        tenure.clone().filter(|(_, tenure)| tenure.holds())
    }

    fn set_tenure(&self, tenure: Option<(Lease, Tenure)>) {
        *self.tenure.write().unwrap_or_else(PoisonError::into_inner) = tenure;
    }

    pub(crate) fn with_view<T>(&self, read: impl FnOnce(&mut View) -> T) -> T {
        read(&mut self.view.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether this process holds a lease and knows who owns what.
    pub(crate) fn is_ready(&self) -> bool {
        self.tenure().is_some() && self.is_surveyed.load(Ordering::Acquire)
    }

    /// The other members.
    pub(crate) fn others(&self) -> Vec<Member> {
        self.with_view(|view| {
            view.members()
                .filter(|member| member.rest_url != self.config.me.rest_url)
                .cloned()
                .collect()
        })
    }

    /// Where a cluster is that no actor of this process runs for.
    pub(crate) fn place(&self, cluster: &ClusterId) -> Place {
        if !self.is_surveyed.load(Ordering::Acquire) {
            return Place::Moving;
        }
        self.with_view(|view| match view.owner(cluster) {
            Some(owner) if owner.nonce != self.config.me.nonce => Place::Elsewhere(owner.clone()),
            Some(_) => Place::Moving,
            None if view.knows(cluster) => Place::Moving,
            None => Place::Unknown,
        })
    }

    /// Tries to become the owner of a cluster.
    pub(crate) async fn claim(
        &self,
        cluster: &ClusterId,
        claim: Claim,
        lease: Lease,
    ) -> Result<Claimed, StoreError> {
        let me = &self.config.me;
        let outcome = self.etcd.claim(cluster, claim, me, lease).await?;
        if outcome == Claimed::Won {
            self.with_view(|view| view.claimed(cluster, &me.nonce));
        }
        Ok(outcome)
    }

    /// Where a cluster would be created; none when that is here.
    pub(crate) fn birthplace(&self, cluster: &ClusterId) -> Option<Member> {
        self.with_view(|view| view.winner(cluster).cloned())
            .filter(|winner| winner.nonce != self.config.me.nonce)
    }
}

/// Shares clusters until `stop`, then gives all back.
pub(crate) async fn run(scheduler: Arc<Scheduler>, shard: Arc<Shard>, stop: CancellationToken) {
    loop {
        let joining = async {
            // Counted from before the request: etcd counts from when it has it.
            let asked = monotonic();
            let lease = shard.etcd.join(&shard.config.me, shard.config.lease).await?;
            Ok::<_, StoreError>((lease, Tenure::until(asked + acting_time(shard.config.lease))))
        };
        match stop.run_until_cancelled(Box::pin(joining)).await {
            None => return,
            Some(Ok((lease, tenure))) => {
                info!(
                    nonce = shard.config.me.nonce,
                    "joined the schedulers of the store"
                );
                shard.set_tenure(Some((lease, tenure.clone())));
                tokio::select! {
                    // None of the three is taken up again after another has won.
                    () = keep(&shard, lease, &tenure) => warn!("the lease is lost; every cluster here stops"),
                    () = serve(&scheduler, &shard, lease, &tenure) => {}
                    () = stop.cancelled() => {}
                }
                leave(&scheduler, &shard, lease, &tenure).await;
            }
            Some(Err(error)) => warn!(
                error = &error as &dyn std::error::Error,
                "cannot join the schedulers of the store; trying again"
            ),
        }
        if stop
            .run_until_cancelled(tokio::time::sleep(REJOIN_PAUSE))
            .await
            .is_none()
        {
            return;
        }
    }
}

/// For how long after a request that prolonged the lease this process acts on it.
fn acting_time(lease: Duration) -> Duration {
    lease * 4 / 5
}

/// Stops everything that ran under a lease and gives the lease back.
async fn leave(scheduler: &Scheduler, shard: &Shard, lease: Lease, tenure: &Tenure) {
    tenure.end();
    shard.set_tenure(None);
    let running = scheduler.running();
    let stopped = futures::stream::iter(&running)
        .for_each_concurrent(None, |cluster| scheduler.stop_cluster(cluster, HAND_OVER_TIMEOUT));
    stopped.await;
    if let Err(error) = shard.etcd.leave(lease).await {
        warn!(
            error = &error as &dyn std::error::Error,
            "cannot give the lease back; it runs out by itself"
        );
    }
}

/// Prolongs the lease until that fails for too long.
async fn keep(shard: &Shard, lease: Lease, tenure: &Tenure) {
    let period = shard.config.lease / 3;
    loop {
        tokio::time::sleep(period.min(tenure.left())).await;
        let left = tenure.left();
        if left.is_zero() {
            return;
        }
        let asked = monotonic();
        match shard.etcd.keep(lease, left).await {
            Ok(true) => tenure.prolong(asked + acting_time(shard.config.lease)),
            Ok(false) => return,
            Err(error) => warn!(
                error = &error as &dyn std::error::Error,
                "cannot prolong the lease"
            ),
        }
    }
}

/// Follows members and owners, and does what follows for this member, for as long as the tenure holds.
async fn serve(scheduler: &Arc<Scheduler>, shard: &Arc<Shard>, lease: Lease, tenure: &Tenure) {
    while tenure.holds() {
        shard.with_view(View::survey_begins);
        let survey = async {
            let survey = shard.etcd.survey().await?;
            let changes = shard.etcd.changes(&survey).await?;
            Ok::<_, StoreError>((survey, changes))
        };
        match survey.await {
            Ok((survey, changes)) => {
                let view = View::new(survey.members, survey.owners, survey.clusters);
                shard.with_view(|known| known.survey_ends(view));
                shard.is_surveyed.store(true, Ordering::Release);
                follow(scheduler, shard, lease, tenure, changes).await;
            }
            Err(error) => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot see who owns which cluster"
                );
                tokio::time::sleep(REJOIN_PAUSE).await;
            }
        }
    }
}

/// Acts on each change until the changes end or it is time for another survey.
async fn follow(
    scheduler: &Arc<Scheduler>,
    shard: &Arc<Shard>,
    lease: Lease,
    tenure: &Tenure,
    mut changes: Changes,
) {
    let survey_at = monotonic() + SURVEY_PERIOD;
    while tenure.holds() && monotonic() < survey_at {
        act(scheduler, shard, lease, tenure).await;
        match tokio::time::timeout(PERIOD, changes.next()).await {
            Ok(Some(changes)) => shard.with_view(|view| {
                for (change, revision) in changes {
                    if !shard.etcd.is_outdated(&change, revision) {
                        view.apply(change);
                    }
                }
            }),
            Ok(None) => return,
            Err(_) => {}
        }
    }
}

/// Does what the view asks of this member.
async fn act(scheduler: &Arc<Scheduler>, shard: &Arc<Shard>, lease: Lease, tenure: &Tenure) {
    let running: BTreeSet<ClusterId> = scheduler.running().into_iter().collect();
    let duties = shard.with_view(|view| view.duties(&shard.config.me.nonce, &running));
    let handed =
        futures::stream::iter(&duties.hand_over).for_each_concurrent(LOADS_MAX, |cluster| async move {
            scheduler.stop_cluster(cluster, HAND_OVER_TIMEOUT).await;
            give_back(shard, cluster).await;
            info!(cluster_id = %cluster, "handed over");
        });
    handed.await;
    // The answer to a claim, or to a hand-over, may have been lost: then the store names this process, and it has to claim once
    // more what it is to serve or to give back.
    let (owned, unsure): (Vec<_>, Vec<_>) = duties.start.iter().partition(|cluster| shard.etcd.owns(cluster));
    let claims = futures::stream::iter(duties.claim.iter().chain(unsure));
    let claimed = claims.for_each_concurrent(LOADS_MAX, |cluster| async move {
        match shard.claim(cluster, Claim::Existing, lease).await {
            Ok(Claimed::Won) => start(scheduler, shard, tenure, cluster).await,
            // Who was first is told by the watch.
            Ok(Claimed::Taken) => {}
            Ok(Claimed::Unfit) => shard.with_view(|view| view.forget(cluster)),
            Err(error) => {
                warn!(cluster_id = %cluster, error = &error as &dyn std::error::Error, "cannot claim a cluster");
            }
        }
    });
    claimed.await;
    let started = futures::stream::iter(owned)
        .for_each_concurrent(LOADS_MAX, |cluster| start(scheduler, shard, tenure, cluster));
    started.await;
}

/// Frees a cluster that no actor of this process writes any more.
async fn give_back(shard: &Shard, cluster: &ClusterId) {
    match shard.etcd.release(cluster).await {
        Ok(()) => shard.with_view(|view| view.apply(OwnerChange::Free(cluster.clone()))),
        Err(error) => {
            warn!(cluster_id = %cluster, error = &error as &dyn std::error::Error, "cannot give a cluster back");
        }
    }
}

/// Loads a cluster that this process owns, and starts its actor.
async fn start(scheduler: &Arc<Scheduler>, shard: &Arc<Shard>, tenure: &Tenure, cluster: &ClusterId) {
    if !shard.etcd.owns(cluster) || !tenure.holds() {
        return;
    }
    let mut loaded = Loaded::load(shard.etcd.as_ref(), cluster).await;
    // One that is being created here may have no history yet, or one whose writing has not been answered: its creation starts it.
    let _creating = scheduler.creating().await;
    if scheduler.find(cluster).is_some() {
        return;
    }
    if matches!(loaded, Err(LoadError::Empty { .. })) {
        loaded = Loaded::load(shard.etcd.as_ref(), cluster).await;
    }
    match loaded {
        Ok(loaded) => {
            scheduler.start_actor(loaded, tenure);
            info!(cluster_id = %cluster, "took over");
        }
        // It was deleted, or its creation has failed.
        Err(LoadError::Empty { .. }) => {
            shard.with_view(|view| view.forget(cluster));
            give_back(shard, cluster).await;
        }
        Err(error) => error!(cluster_id = %cluster, error = &error as &dyn std::error::Error,
            "cannot load a cluster; nobody serves it until that succeeds"),
    }
}
