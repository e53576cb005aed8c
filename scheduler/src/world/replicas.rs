//! The replicas of a cluster, by id and by container.
//!
//! The second order is derived from the first: only the first is serialised, so a snapshot reads and writes as if it were
//! a plain map.

use berth_api::container::Granted;
use berth_api::id::{ContainerName, ReplicaId};
use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Map, Replica, Stopping};

/// Invariant: `of_container` holds the ids of `by_id`, each at its container, and no container without any.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Replicas {
    by_id: Map<ReplicaId, Replica>,
    of_container: OrdMap<ContainerName, OrdSet<ReplicaId>>,
}

impl Replicas {
    pub(super) fn by_id(&self) -> &Map<ReplicaId, Replica> {
        &self.by_id
    }

    /// Replicas of a container, ordered by id.
    pub(super) fn of(&self, container: &ContainerName) -> impl Iterator<Item = &Replica> + use<'_> {
        let ids = self.of_container.get(container).into_iter().flatten();
        ids.map(|id| self.by_id.get(id).expect("the index holds ids that are there"))
    }

    /// Adds a replica.
    ///
    /// # Panics
    /// When one of its id is there.
    pub(super) fn insert(&mut self, replica: Replica) {
        let id = replica.replica_id.clone();
        let ids = self.of_container.entry(replica.container.clone()).or_default();
        ids.insert(id.clone());
        let before = self.by_id.insert(id, replica);
        assert!(before.is_none(), "two replicas have the id of {before:?}");
    }

    pub(super) fn remove(&mut self, id: &ReplicaId) -> Option<Replica> {
        let replica = self.by_id.remove(id)?;
        if let Some(ids) = self.of_container.get_mut(&replica.container) {
            ids.remove(id);
            if ids.is_empty() {
                self.of_container.remove(&replica.container);
            }
        }
        Some(replica)
    }

    /// Notes that a replica was told to stop; nothing when it is not there.
    pub(super) fn stop(&mut self, id: &ReplicaId, stopping: Stopping) {
        if let Some(replica) = self.by_id.get_mut(id) {
            replica.stopping = Some(stopping);
        }
    }

    /// Notes what a replica is granted from now on; nothing when it is not there.
    pub(super) fn grant(&mut self, id: &ReplicaId, granted: Option<Granted>) {
        if let Some(replica) = self.by_id.get_mut(id) {
            replica.granted = granted;
        }
    }
}

impl From<Map<ReplicaId, Replica>> for Replicas {
    fn from(by_id: Map<ReplicaId, Replica>) -> Self {
        let mut of_container: OrdMap<ContainerName, OrdSet<ReplicaId>> = OrdMap::new();
        for (id, replica) in by_id.iter() {
            let ids = of_container.entry(replica.container.clone()).or_default();
            ids.insert(id.clone());
        }
        Self { by_id, of_container }
    }
}

impl Serialize for Replicas {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.by_id.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Replicas {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Map::deserialize(deserializer).map(|by_id: Map<ReplicaId, Replica>| by_id.into())
    }
}
