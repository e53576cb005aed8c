//! What a request may do: read the world as it will be, append entries, change the soft state, record events.

use std::sync::Arc;

use berth_api::event::Event;
use berth_api::id::{ContainerName, MachineId};

use crate::announce::announce;
use crate::entry::Entry;
use crate::refusal::{Class, Refused};
use crate::world::{Container, Machine, Now, Observed, World};

/// One batch of requests on its way to the log. Dropped without effect on the world when the append fails.
#[derive(Debug)]
pub struct Draft<'a> {
    pub(super) world: Arc<World>,
    pub(super) entries: Vec<Entry>,
    /// What nodes say; changes stay even when the append fails.
    pub(super) observed: &'a mut Observed,
    /// Something was observed that a decision may depend on.
    pub(super) has_news: bool,
    pub(super) memory: &'a mut Memory,
    pub now: Now,
}

/// What the actor remembers beside world and observed, for the length of its life.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Machines that have proved that history was lost: see the module documentation of [`super`].
    pub(super) doubted: std::collections::BTreeSet<MachineId>,
    /// (epoch, generation) acknowledged since the last status of a machine.
    pub(super) acknowledged: std::collections::BTreeMap<MachineId, (u64, u64)>,
    /// (epoch, generation) given in the last answer to a heartbeat by REST.
    pub(super) answered: std::collections::BTreeMap<MachineId, (u64, u64)>,
}

impl Draft<'_> {
    /// The world with everything that was appended so far.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// What nodes said lately.
    #[must_use]
    pub fn observed(&self) -> &Observed {
        self.observed
    }

    /// Appends an entry to the draft, and the events that announce it.
    ///
    /// # Errors
    /// When it contradicts the world; then it is not appended.
    pub fn append(&mut self, entry: Entry) -> Result<(), Refused> {
        let events = announce(&self.world, self.observed, &entry);
        let world = Arc::make_mut(&mut self.world);
        world
            .try_apply(&entry)
            .map_err(|error| Refused::new(Class::Conflict, "conflict", error.to_string()))?;
        self.entries.push(entry);
        for event in events {
            world.apply(&event);
            self.entries.push(event);
        }
        Ok(())
    }

    /// Records an event of a node or control plane.
    ///
    /// # Errors
    /// When the world refuses it.
    pub fn record(&mut self, event: Event) -> Result<(), Refused> {
        self.append(Entry::EventRecorded {
            event: Box::new(event),
        })
    }

    /// # Errors
    /// When the machine is not registered.
    pub fn machine(&self, id: &MachineId) -> Result<&Machine, Refused> {
        self.world
            .machine(id)
            .ok_or_else(|| Refused::machine_not_found(id.as_str()))
    }

    /// A container that is not being deleted.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn container(&self, name: &ContainerName) -> Result<&Container, Refused> {
        self.world
            .container(name)
            .filter(|container| container.deleted_since.is_none())
            .ok_or_else(|| Refused::container_not_found(name.as_str()))
    }

    /// # Errors
    /// When the cluster is being deleted.
    pub fn require_live(&self) -> Result<(), Refused> {
        if self.world.deleted_at().is_none() {
            Ok(())
        } else {
            Err(Refused::new(
                Class::Conflict,
                "cluster_deleting",
                format!(
                    "cluster {:?} is being deleted",
                    self.world.spec().cluster_id.as_str()
                ),
            ))
        }
    }
}
