//! One actor per cluster: the only writer of its world.
//!
//! ```text
//! ClusterHandle ─ requests (bounded) ─▶ actor: drain ─▶ decide ─▶ check ─▶ append (durable) ─▶ apply ─▶ publish
//!                                                                                                       │
//! link sessions, REST ◀──────────── watch: world, directory, mesh, observed, report ◀───────────────────┘
//! ```
//!
//! Input: requests, and the period. Output: records in the store, then published state. Owner: [`crate::Scheduler`].
//! Append, then act: nothing is published, and no caller is answered, before the records are durable. A store that
//! fails makes the actor load its cluster again from what is durable; its callers are told to try again.
//!
//! Stops of replicas that a machine runs unlisted are confirmed when the world does not want them there, the machine has
//! accepted its present set, and the history is known to be whole: a machine that has accepted a set which this scheduler
//! never sent proves that history was lost (a restored backup). Then a new epoch starts, and nothing that the world does
//! not know is confirmed to stop on that machine until the scheduler is started again: an operator looks first.

mod actor;
mod draft;
mod once;
mod requests;
#[cfg(test)]
mod tests;
mod writes;

use std::net::IpAddr;
use std::sync::Arc;

use berth_api::event::Event;
use berth_api::id::ClusterId;
use berth_api::link::Peer;
use berth_api::rest::EventFilter;
use imbl::OrdMap;
use tokio::sync::{mpsc, oneshot, watch};

use crate::decide::Report;
use crate::link::Sessions;
use crate::refusal::Refused;
use crate::world::{Observed, World};

pub use actor::LoadError;
pub(crate) use actor::{Actor, ActorConfig, Loaded};
pub use draft::Draft;
pub use once::{Answer, Once, Outcome};
pub use requests::{Heartbeat, NodeStatus, Put};
pub(crate) use writes::require_no_key;

use actor::Request;

/// Requests that may wait for an actor: each machine's session has at most a few in flight.
const MAILBOX_MAX: usize = 1024;

/// What DNS answers, under a number that rises with each change in the life of this process. One shares with the next what
/// has not changed, so that each session finds the difference without looking at all of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Directory {
    pub generation: u64,
    pub names: OrdMap<String, Vec<IpAddr>>,
}

/// Every machine as its neighbours reach it, numbered and shared as [`Directory`] is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Mesh {
    pub generation: u64,
    /// By machine id.
    pub peers: OrdMap<String, Peer>,
}

/// The receiving ends of what an actor publishes.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) world: watch::Receiver<Arc<World>>,
    pub(crate) observed: watch::Receiver<Arc<Observed>>,
    pub(crate) report: watch::Receiver<Arc<Report>>,
    /// None until everything that nodes can tell after a start has been told.
    pub(crate) directory: watch::Receiver<Option<Arc<Directory>>>,
    pub(crate) mesh: watch::Receiver<Arc<Mesh>>,
}

/// The way to a cluster, for REST and link alike. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ClusterHandle {
    id: Arc<ClusterId>,
    requests: mpsc::Sender<Request>,
    published: Published,
    sessions: Sessions,
}

impl ClusterHandle {
    #[must_use]
    pub fn id(&self) -> &ClusterId {
        &self.id
    }

    /// The durable state as of now.
    #[must_use]
    pub fn world(&self) -> Arc<World> {
        self.published.world.borrow().clone()
    }

    /// What nodes said lately; at most [`actor::OBSERVED_PERIOD`] old.
    #[must_use]
    pub fn observed(&self) -> Arc<Observed> {
        self.published.observed.borrow().clone()
    }

    /// What the last decision left undone, and why.
    #[must_use]
    pub fn report(&self) -> Arc<Report> {
        self.published.report.borrow().clone()
    }

    /// The names that DNS answers; none shortly after a start.
    #[must_use]
    pub fn directory(&self) -> Option<Arc<Directory>> {
        self.published.directory.borrow().clone()
    }

    /// Wakes at each durable change of the cluster.
    #[must_use]
    pub fn watch_world(&self) -> watch::Receiver<Arc<World>> {
        self.published.world.clone()
    }

    /// Wakes when what nodes say has changed.
    #[must_use]
    pub fn watch_observed(&self) -> watch::Receiver<Arc<Observed>> {
        self.published.observed.clone()
    }

    pub(crate) fn published(&self) -> &Published {
        &self.published
    }

    /// The machines that are linked now.
    #[must_use]
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Runs `change` in the actor, in one decision with whatever else waits. Its outcome is returned when all that it
    /// appended is durable.
    ///
    /// # Errors
    /// With the refusal of `change`, or when the actor or the store is not available; then nothing was changed.
    pub async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Draft<'_>) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, Refused> {
        let (reply, answer) = oneshot::channel();
        let request = Request::new(move |draft| {
            let outcome = change(draft);
            Box::new(move |stored: Result<(), Refused>| {
                // The caller may have gone away: the change stands.
                drop(reply.send(stored.and(outcome)));
            })
        });
        self.send(request).await?;
        answer.await.map_err(|_| self.gone())?
    }

    /// As [`Self::change`], without waiting for the outcome: for what is repeated anyway.
    pub(crate) async fn tell(
        &self,
        change: impl FnOnce(&mut Draft<'_>) + Send + 'static,
    ) -> Result<(), Refused> {
        let request = Request::new(move |draft| {
            change(draft);
            Box::new(|_| {})
        });
        self.send(request).await
    }

    /// Events of the cluster, newest first.
    #[must_use]
    pub fn events(&self, filter: &EventFilter) -> Vec<Event> {
        self.world()
            .events()
            .newest_first()
            .filter(|event| filter.matches(event))
            .take(filter.limit)
            .cloned()
            .collect()
    }

    /// The actor has ended: the cluster is deleted, or the scheduler stops.
    pub(crate) fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// Returns when the actor has ended.
    pub(crate) async fn closed(&self) {
        self.requests.closed().await;
    }

    async fn send(&self, request: Request) -> Result<(), Refused> {
        self.requests.send(request).await.map_err(|_| self.gone())
    }

    fn gone(&self) -> Refused {
        if self.world().is_finished() {
            Refused::cluster_not_found(self.id.as_str())
        } else {
            Refused::unavailable(format!(
                "cluster {:?} is being loaded again; try again",
                self.id.as_str()
            ))
        }
    }
}
