//! The replicas of a cluster, by id, by container and by machine.
//!
//! All orders share the replicas. The others are derived from the first: only that is serialised, so a snapshot reads and
//! writes as if it were a plain map.

use std::sync::Arc;

use berth_api::container::Granted;
use berth_api::id::{ContainerName, MachineId, ReplicaId};
use imbl::OrdMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Map, Replica, Stopping};

/// Invariant: `of_container` and `on_machine` hold the replicas of `by_id`, each at its container and its machine, and no
/// container or machine without any.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Replicas {
    by_id: Map<ReplicaId, Replica>,
    of_container: OrdMap<ContainerName, Map<ReplicaId, Replica>>,
    on_machine: OrdMap<MachineId, Map<ReplicaId, Replica>>,
}

impl Replicas {
    pub(super) fn by_id(&self) -> &Map<ReplicaId, Replica> {
        &self.by_id
    }

    /// Replicas of a container, ordered by id.
    pub(super) fn of(&self, container: &ContainerName) -> impl Iterator<Item = &Replica> + use<'_> {
        let replicas = self.of_container.get(container).into_iter();
        replicas.flat_map(Map::values)
    }

    /// Replicas of a machine, ordered by id.
    pub(super) fn on(&self, machine: &MachineId) -> impl Iterator<Item = &Replica> + use<'_> {
        let replicas = self.on_machine.get(machine).into_iter();
        replicas.flat_map(Map::values)
    }

    /// Adds a replica.
    ///
    /// # Panics
    /// When one of its id is there.
    pub(super) fn insert(&mut self, replica: Replica) {
        let before = self.put(Arc::new(replica));
        assert!(before.is_none(), "two replicas have the id of {before:?}");
    }

    fn put(&mut self, replica: Arc<Replica>) -> Option<Arc<Replica>> {
        let id = replica.replica_id.clone();
        let others = self.of_container.entry(replica.container.clone()).or_default();
        others.insert_shared(id.clone(), Arc::clone(&replica));
        let others = self.on_machine.entry(replica.machine_id.clone()).or_default();
        others.insert_shared(id.clone(), Arc::clone(&replica));
        self.by_id.insert_shared(id, replica)
    }

    pub(super) fn remove(&mut self, id: &ReplicaId) -> Option<Replica> {
        let replica = self.by_id.get(id)?;
        take(&mut self.of_container, &replica.container, id);
        take(&mut self.on_machine, &replica.machine_id, id);
        self.by_id.remove(id)
    }

    /// Notes that a replica was told to stop; nothing when it is not there.
    pub(super) fn stop(&mut self, id: &ReplicaId, stopping: Stopping) {
        self.change(id, |replica| replica.stopping = Some(stopping));
    }

    /// Notes what a replica is granted from now on; nothing when it is not there.
    pub(super) fn grant(&mut self, id: &ReplicaId, granted: Option<Granted>) {
        self.change(id, |replica| replica.granted = granted);
    }

    fn change(&mut self, id: &ReplicaId, change: impl FnOnce(&mut Replica)) {
        if let Some(known) = self.by_id.get_shared(id) {
            let mut replica = Replica::clone(known);
            change(&mut replica);
            self.put(Arc::new(replica));
        }
    }
}

/// Takes a replica from where it is listed, and the list with the last one.
fn take<K: Ord + Clone>(lists: &mut OrdMap<K, Map<ReplicaId, Replica>>, at: &K, id: &ReplicaId) {
    let Some(list) = lists.get_mut(at) else {
        return;
    };
    list.remove(id);
    if list.is_empty() {
        lists.remove(at);
    }
}

impl From<Map<ReplicaId, Replica>> for Replicas {
    fn from(by_id: Map<ReplicaId, Replica>) -> Self {
        let mut replicas = Self::default();
        for id in by_id.keys() {
            let replica = by_id.get_shared(id).expect("it is one of the keys");
            replicas.put(Arc::clone(replica));
        }
        replicas
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
