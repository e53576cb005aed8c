//! What a caller may change, each in one step of a [`Draft`]. Every change is safe to repeat.

use std::collections::BTreeSet;
use std::time::Duration;

use berth_api::cluster::{CapacityGroup, ClusterSpec};
use berth_api::container::ContainerSpec;
use berth_api::id::{ContainerName, GroupId, Label, MachineId};
use berth_api::machine::{AssignedNetwork, MachineSpec};
use berth_api::placement::{CLUSTER_LABELS_MAX, PlacementRules};
use berth_api::validate::{Fault, Faults};

use super::{Draft, Put};
use crate::entry::{Entry, LinkKey, Removal, RolloutTurned, TokenDigest, TokenKind};
use crate::guard;
use crate::refusal::{Class, Refused};
use crate::rollout;
use crate::world::{RolloutTurn, World};

impl Draft<'_> {
    /// Declares a container that is not there. The same declaration again changes nothing.
    ///
    /// # Errors
    /// When another declaration has the name.
    pub fn create_container(&mut self, spec: ContainerSpec) -> Result<Put, Refused> {
        self.require_live()?;
        require_group(self, &spec.capacity_group)?;
        match self.container(&spec.name) {
            Ok(known) if *known.declared() == spec => return Ok(Put::Unchanged),
            Ok(_) => {
                return Err(Refused::new(
                    Class::Conflict,
                    "container_exists",
                    format!(
                        "container {:?} exists with other content; change it with PATCH or delete it first",
                        spec.name.as_str()
                    ),
                ));
            }
            Err(_) => {}
        }
        append_put(self, spec)?;
        Ok(Put::Created)
    }

    /// Declares a container or changes its declaration.
    ///
    /// # Errors
    /// When the cluster is being deleted or has no such capacity group.
    pub fn put_container(&mut self, spec: ContainerSpec) -> Result<Put, Refused> {
        self.require_live()?;
        require_group(self, &spec.capacity_group)?;
        let put = match self.container(&spec.name) {
            Ok(known) if *known.declared() == spec => return Ok(Put::Unchanged),
            Ok(_) => Put::Changed,
            Err(_) => Put::Created,
        };
        append_put(self, spec)?;
        Ok(put)
    }

    /// Changes a declaration as `update` says, read and written in one step.
    ///
    /// # Errors
    /// When there is no such container, or with the faults of the update.
    pub fn update_container(
        &mut self,
        name: ContainerName,
        update: impl FnOnce(&ContainerSpec, &ClusterSpec) -> Result<ContainerSpec, Faults>,
    ) -> Result<Put, Refused> {
        self.require_live()?;
        let known = self.container(&name)?;
        let spec = update(known.declared(), self.world().spec())
            .map_err(|faults| Refused::invalid("invalid_container", faults))?;
        if spec == *known.declared() {
            return Ok(Put::Unchanged);
        }
        append_put(self, spec)?;
        Ok(Put::Changed)
    }

    /// Deletes a container; its replicas stop. Deleting what is being deleted succeeds.
    ///
    /// # Errors
    /// When it never was there, or nothing is left of it.
    pub fn delete_container(&mut self, name: ContainerName) -> Result<(), Refused> {
        let known = self
            .world()
            .container(&name)
            .ok_or_else(|| Refused::container_not_found(name.as_str()))?;
        if known.deleted_since.is_some() {
            return Ok(());
        }
        let at = self.now.wall;
        self.append(Entry::ContainerDeleted { container: name, at })
    }

    /// Stops a container's replicas and keeps its declaration.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn stop_container(&mut self, name: ContainerName) -> Result<(), Refused> {
        if self.container(&name)?.stopped_since.is_some() {
            return Ok(());
        }
        let at = self.now.wall;
        self.append(Entry::ContainerStopped { container: name, at })
    }

    /// Starts a stopped container's replicas again.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn start_container(&mut self, name: ContainerName) -> Result<(), Refused> {
        if self.container(&name)?.stopped_since.is_none() {
            return Ok(());
        }
        let at = self.now.wall;
        self.append(Entry::ContainerStarted { container: name, at })
    }

    /// Lets the rollout under way start and stop nothing until it is resumed. What is lost meanwhile is replaced as it was.
    ///
    /// # Errors
    /// When there is no such container, or no rollout of it is under way.
    pub fn pause_rollout(&mut self, name: ContainerName) -> Result<(), Refused> {
        let known = self.container(&name)?;
        let Some(rollout) = known.open_rollout() else {
            return Err(Refused::new(
                Class::Conflict,
                "no_rollout",
                format!("no rollout of container {:?} is under way", name.as_str()),
            ));
        };
        if rollout.paused_since.is_some() {
            return Ok(());
        }
        let at = self.now.wall;
        self.append(Entry::RolloutPaused { container: name, at })
    }

    /// Lets a paused rollout go on; tries again what was rolled back.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn resume_rollout(&mut self, name: ContainerName) -> Result<(), Refused> {
        let known = self.container(&name)?;
        let at = self.now.wall;
        if known.is_paused() {
            return self.append(Entry::RolloutResumed { container: name, at });
        }
        if known.declared.is_none() {
            return Ok(());
        }
        let to = known.revision;
        self.turn(name, to, RolloutTurn::Retried)
    }

    /// Declares again what completed last; after a rollback, what it has gone back to.
    ///
    /// # Errors
    /// When there is no such container, or nothing else of it has ever completed.
    pub fn undo_rollout(&mut self, name: ContainerName) -> Result<(), Refused> {
        self.require_live()?;
        let Some(to) = rollout::undo(self.container(&name)?) else {
            return Err(Refused::new(
                Class::Conflict,
                "nothing_to_undo",
                format!(
                    "no other declaration of container {:?} has ever been rolled out completely; change it with PATCH",
                    name.as_str()
                ),
            ));
        };
        self.turn(name, to, RolloutTurn::Undone)
    }

    fn turn(&mut self, container: ContainerName, to: u64, turn: RolloutTurn) -> Result<(), Refused> {
        let revision = self.container(&container)?.revision + 1;
        let at = self.now.wall;
        self.append(Entry::RolloutTurned(RolloutTurned {
            container,
            revision,
            to,
            turn,
            reason: None,
            at,
        }))
    }

    /// Lets the stops happen that the mass-stop guard holds, and all others for a while.
    ///
    /// # Errors
    /// When the entry contradicts the world, which it never does.
    pub fn release_stops(&mut self) -> Result<(), Refused> {
        if self.world().held_stops().is_none() {
            return Ok(());
        }
        let at = self.now.wall;
        let until = at.plus(guard::RELEASE);
        self.append(Entry::StopsReleased { until, at })
    }

    /// Sets all capacity groups. A group that machines or containers belong to stays.
    ///
    /// # Errors
    /// With every group that is missing and still used.
    pub fn set_groups(&mut self, groups: Vec<CapacityGroup>) -> Result<(), Refused> {
        self.require_live()?;
        if self.world().spec().capacity_groups == groups {
            return Ok(());
        }
        let faults = missing_groups(self, &groups);
        if let Err(faults) = Faults::check(faults) {
            return Err(Refused {
                class: Class::Conflict,
                ..Refused::invalid("group_in_use", faults)
            });
        }
        let at = self.now.wall;
        self.append(Entry::GroupsChanged { groups, at })
    }

    /// Moves all replicas off a machine; after `deadline`, where there is one, what is left is stopped, whatever it waits
    /// for. Without one, that of an earlier call stays.
    ///
    /// # Errors
    /// When it is not registered.
    pub fn drain(&mut self, machine_id: MachineId, deadline: Option<Duration>) -> Result<(), Refused> {
        let machine = self.machine(&machine_id)?;
        let (is_draining, known) = (machine.draining_since.is_some(), machine.drain_deadline);
        let at = self.now.wall;
        if !is_draining {
            let machine_id = machine_id.clone();
            self.append(Entry::MachineDraining { machine_id, at })?;
        }
        match deadline.map(|deadline| at.plus(deadline)) {
            // Over already, and asked for again.
            Some(from) if known.is_none_or(|known| known > at || from > at) => {
                self.append(Entry::MachineDrainForced { machine_id, from, at })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Lets a draining machine take replicas again.
    ///
    /// # Errors
    /// When it is not registered.
    pub fn cancel_drain(&mut self, machine_id: MachineId) -> Result<(), Refused> {
        if self.machine(&machine_id)?.draining_since.is_none() {
            return Ok(());
        }
        let at = self.now.wall;
        self.append(Entry::MachineDrainCancelled { machine_id, at })
    }

    /// Makes `digest` the only valid token of its kind.
    ///
    /// # Errors
    /// When the cluster is being deleted.
    pub fn rotate_token(&mut self, kind: TokenKind, digest: TokenDigest) -> Result<(), Refused> {
        self.require_live()?;
        let at = self.now.wall;
        self.append(Entry::TokenRotated { kind, digest, at })
    }

    /// Makes all tokens of a kind invalid.
    ///
    /// # Errors
    /// When the entry contradicts the world, which it never does.
    pub fn revoke_tokens(&mut self, kind: TokenKind) -> Result<(), Refused> {
        if self.world().token(kind).is_none() {
            return Ok(());
        }
        let at = self.now.wall;
        self.append(Entry::TokensRevoked { kind, at })
    }

    /// Deletes the cluster: its containers go, and when nothing is left on any machine its log.
    ///
    /// # Errors
    /// Never: deleting what is being deleted succeeds.
    pub fn delete_cluster(&mut self) -> Result<(), Refused> {
        if self.world().deleted_at().is_some() {
            return Ok(());
        }
        let at = self.now.wall;
        self.append(Entry::ClusterDeleted { at })
    }

    /// Removes a machine: an empty one, or one that the caller knows to be powered off.
    ///
    /// # Errors
    /// When it is not registered, or is removed as empty and is not.
    pub fn remove_machine(&mut self, machine_id: MachineId, how: Removal) -> Result<(), Refused> {
        let left = self.machine(&machine_id)?.replicas.len();
        if how == Removal::Empty && left > 0 {
            return Err(Refused::new(
                Class::Conflict,
                "machine_not_empty",
                format!(
                    "machine {:?} still has {left} replicas; drain it first, or say that it is powered off",
                    machine_id.as_str()
                ),
            ));
        }
        let at = self.now.wall;
        self.observed.machines.remove(&machine_id);
        self.append(Entry::MachineRemoved { machine_id, how, at })
    }

    /// Registers a machine, or again after a boot; returns the network that is its own.
    ///
    /// # Errors
    /// When its group is unknown or another than before, or the container CIDR is used up.
    pub fn register_machine(&mut self, spec: MachineSpec) -> Result<AssignedNetwork, Refused> {
        require_no_key(self.world(), &spec.machine_id)?;
        self.register(spec, None)
    }

    /// As [`Self::register_machine`], for a machine that has shown that `key` is its own. From then on no other is taken for it.
    ///
    /// # Errors
    /// As [`Self::register_machine`], and when the machine of this id has another key.
    pub fn enrol_machine(&mut self, spec: MachineSpec, key: LinkKey) -> Result<AssignedNetwork, Refused> {
        let known = self.world().machine(&spec.machine_id);
        let known = known.and_then(|known| known.link_key.as_ref());
        if known.is_some_and(|known| *known != key) {
            return Err(Refused::new(
                Class::Conflict,
                "machine_has_other_key",
                format!(
                    "machine {:?} has enrolled with another key, and no token or certificate replaces it; if it was installed \
                     anew, remove it first and let it enrol then",
                    spec.machine_id.as_str()
                ),
            ));
        }
        self.register(spec, Some(key))
    }

    fn register(&mut self, spec: MachineSpec, key: Option<LinkKey>) -> Result<AssignedNetwork, Refused> {
        if let Some(known) = self.world().machine(&spec.machine_id) {
            if known.spec == spec && known.link_key == key {
                return Ok(known.network);
            }
            if known.spec.capacity_group != spec.capacity_group {
                return Err(Refused::new(
                    Class::Conflict,
                    "machine_group_changed",
                    format!(
                        "machine {:?} belongs to capacity group {}, which never changes",
                        spec.machine_id.as_str(),
                        known.spec.capacity_group
                    ),
                ));
            }
        }
        self.require_live()?;
        require_group(self, &spec.capacity_group)?;
        let id = spec.machine_id.clone();
        let entry = self.world().enrolment(spec, key, self.now.wall).ok_or_else(|| {
            Refused::new(
                Class::Conflict,
                "container_cidr_exhausted",
                format!(
                    "container CIDR {} has room for {} machines and all are registered; remove one that is gone",
                    self.world().spec().container_cidr,
                    self.world().spec().subnet_count()
                ),
            )
        })?;
        self.append(entry)?;
        Ok(self.machine(&id)?.network)
    }
}

/// What has enrolled with a key of its own speaks by its certificate: the token that all machines of its cluster share does not
/// speak for it.
pub(crate) fn require_no_key(world: &World, machine_id: &MachineId) -> Result<(), Refused> {
    let machine = world.machine(machine_id);
    if machine.is_none_or(|machine| machine.link_key.is_none()) {
        return Ok(());
    }
    Err(Refused::new(
        Class::Forbidden,
        "machine_speaks_by_certificate",
        format!(
            "machine {:?} has enrolled over the node link and speaks by its certificate; a machine token does not speak for it",
            machine_id.as_str()
        ),
    ))
}

fn require_group(draft: &Draft<'_>, group: &GroupId) -> Result<(), Refused> {
    if draft.world().spec().group(group).is_some() {
        return Ok(());
    }
    let known: Vec<&str> = draft
        .world()
        .spec()
        .capacity_groups
        .iter()
        .map(|group| group.group_id.as_str())
        .collect();
    let problem = format!(
        "{:?} is no capacity group of the cluster; it has: {}",
        group.as_str(),
        if known.is_empty() {
            "none".into()
        } else {
            known.join(", ")
        }
    );
    Err(Refused::invalid(
        "unknown_group",
        Faults::one("capacityGroup", problem),
    ))
}

/// Placement has a bit for each label that any container names.
fn require_few_labels(draft: &Draft<'_>, spec: &ContainerSpec) -> Result<(), Refused> {
    let Some(rules) = &spec.placement else {
        return Ok(());
    };
    let containers = draft.world().containers().iter();
    let others = containers.filter(|(name, _)| **name != spec.name);
    let others = others.filter_map(|(_, container)| container.spec.placement.as_ref());
    let named: BTreeSet<&Label> = others.chain([rules]).flat_map(PlacementRules::labels).collect();
    if named.len() <= CLUSTER_LABELS_MAX {
        return Ok(());
    }
    let problem = format!(
        "the containers of the cluster would name {} labels, and may name {CLUSTER_LABELS_MAX}; name fewer different ones",
        named.len()
    );
    Err(Refused::invalid(
        "too_many_labels",
        Faults::one("placement", problem),
    ))
}

fn append_put(draft: &mut Draft<'_>, spec: ContainerSpec) -> Result<(), Refused> {
    require_few_labels(draft, &spec)?;
    let entry = draft.world().put(spec, draft.now.wall);
    draft.append(entry)
}

fn missing_groups(draft: &Draft<'_>, groups: &[CapacityGroup]) -> Vec<Fault> {
    let world = draft.world();
    let is_missing = |id: &GroupId| !groups.iter().any(|group| group.group_id == *id);
    let machines = world
        .machines()
        .iter()
        .map(|(id, machine)| (&machine.spec.capacity_group, format!("machine {id}")));
    let containers = world
        .containers()
        .iter()
        .filter(|(_, container)| container.deleted_since.is_none())
        .map(|(name, container)| (&container.spec.capacity_group, format!("container {name}")));
    machines
        .chain(containers)
        .filter(|(group, _)| is_missing(group))
        .map(|(group, user)| Fault {
            path: "capacityGroups".into(),
            problem: format!("{user} belongs to group {:?}, which is missing", group.as_str()),
        })
        .collect()
}
