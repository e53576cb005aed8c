//! Applying entries: every check first, every change afterwards, so that a refused entry changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use berth_api::cluster::CapacityGroup;
use berth_api::container::{ContainerSpec, Granted, Scale};
use berth_api::id::{ContainerName, GroupId, MachineId, ReplicaId};
use berth_api::machine::{AssignedNetwork, GPU_MILLI, MachineSpec};
use berth_api::rest::cluster::CapacityReason;
use berth_api::rest::rollout::RolloutCause;
use berth_api::time::Timestamp;
use imbl::OrdSet;

use super::replicas::Replicas;
use super::{
    Allocated, Container, Events, HeldStops, KeptWrites, Machine, Map, Replica, Rollout, Stopping, Wish,
    World, devices,
};
use crate::entry::{
    CapacityWish, ContainerScaled, Entry, MachineHealthState, Picked, Placed, Removal, StopCause, TokenKind,
};
use crate::guard;

/// First and last host number of a replica's address in its machine's /24: the network, the gateway and the broadcast
/// address are taken.
pub(crate) const HOST_MIN: u8 = 2;
pub(crate) const HOST_MAX: u8 = 254;

/// Why an entry contradicts the entries before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    #[error("the log does not begin with the creation of its cluster")]
    NotCreated,
    #[error("the cluster is created a second time")]
    CreatedTwice,
    #[error("machine {0} is not registered")]
    NoMachine(MachineId),
    #[error("machine {0} registers again with another subnet or capacity group")]
    MachineChanged(MachineId),
    #[error("subnet {0} is owned by another machine or is outside of the container CIDR")]
    SubnetTaken(u32),
    #[error("machine {0} is removed as empty and still has replicas")]
    NotEmpty(MachineId),
    #[error("machine {0} does not drain and is given a deadline for it")]
    NotDraining(MachineId),
    #[error("the cluster has no capacity group {0}")]
    NoGroup(GroupId),
    #[error("container {0} does not exist")]
    NoContainer(ContainerName),
    #[error("container {container} goes from revision {from} to {to}")]
    RevisionJump {
        container: ContainerName,
        from: u64,
        to: u64,
    },
    #[error("container {container} has no revision {revision}")]
    NoRevision { container: ContainerName, revision: u64 },
    #[error("replica {0} does not exist")]
    NoReplica(ReplicaId),
    #[error("replica {0} is placed while the one of the same id is not gone")]
    ReplicaExists(ReplicaId),
    #[error("replica {0} is told to stop a second time")]
    StoppedTwice(ReplicaId),
    #[error("replica {0} is gone without having been told to stop")]
    GoneWithoutStop(ReplicaId),
    #[error("replica {replica_id} has address {ip}, which is not free on its machine")]
    AddressTaken { replica_id: ReplicaId, ip: IpAddr },
    #[error("replica {replica_id} has host port {host_port}, which is not free on its machine")]
    HostPortTaken { replica_id: ReplicaId, host_port: u16 },
    #[error("replica {0} is given other GPUs than its declaration asks for")]
    WrongDevices(ReplicaId),
    #[error("replica {replica_id} has more of GPU {device} than is free of it on its machine")]
    DeviceTaken { replica_id: ReplicaId, device: u8 },
    #[error("replica {0} has an ordinal and is stateless, or the reverse")]
    WrongOrdinal(ReplicaId),
    #[error("replica {0} is granted less than its minimum or than it has, or more than it desires")]
    WrongGrant(ReplicaId),
    #[error("replica {0} is granted more while it stops")]
    ResizedStopping(ReplicaId),
    #[error("container {container} is scaled to {count} replicas, which it does not allow")]
    NotScalable { container: ContainerName, count: u32 },
    #[error("container {container} has no rollout {revision} that this could be said of")]
    NoRollout { container: ContainerName, revision: u64 },
    #[error("epoch {to} follows epoch {from}")]
    EpochNotHigher { from: u64, to: u64 },
}

impl World {
    /// The world after the first entry of a log.
    ///
    /// # Errors
    /// When the entry is not the creation of a cluster.
    pub fn create(entry: &Entry) -> Result<Self, ApplyError> {
        let Entry::ClusterCreated { spec, tokens, at } = entry else {
            return Err(ApplyError::NotCreated);
        };
        Ok(Self {
            spec: spec.clone(),
            created_at: *at,
            deleted_at: None,
            tokens: tokens.clone(),
            machine_token_era: 0,
            machines: Map::default(),
            containers: Map::default(),
            replicas: Replicas::default(),
            epoch: 1,
            last_generation: 0,
            placed_count: 0,
            applied_count: 1,
            events: Events::default(),
            wishes: BTreeMap::new(),
            kept: KeptWrites::default(),
            frozen_since: None,
            held_stops: None,
            stops_released_until: None,
            unasked_stops: vec![],
        })
    }

    /// The world after a whole log.
    ///
    /// # Errors
    /// When an entry contradicts those before it; the number is its place, from 1.
    pub fn replay<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Result<Self, (u64, ApplyError)> {
        let mut entries = entries.into_iter();
        let first = entries.next().ok_or((1, ApplyError::NotCreated))?;
        let mut world = Self::create(first).map_err(|error| (1, error))?;
        for entry in entries {
            let number = world.applied_count + 1;
            world.try_apply(entry).map_err(|error| (number, error))?;
        }
        Ok(world)
    }

    /// Applies an entry that this program has just decided and checked.
    ///
    /// # Panics
    /// When the entry contradicts the world: the decision was wrong, and going on would make the log wrong.
    pub fn apply(&mut self, entry: &Entry) {
        if let Err(error) = self.try_apply(entry) {
            panic!("entry {entry:?} cannot follow the log: {error}");
        }
    }

    /// Applies an entry, or refuses it and changes nothing.
    ///
    /// # Errors
    /// When the entry contradicts those before it.
    pub fn try_apply(&mut self, entry: &Entry) -> Result<(), ApplyError> {
        match entry {
            Entry::ClusterCreated { .. } => return Err(ApplyError::CreatedTwice),
            Entry::ClusterDeleted { at } => self.cluster_deleted(*at),
            Entry::GroupsChanged { groups, .. } => self.groups_changed(groups),
            Entry::TokenRotated { kind, digest, .. } => {
                self.tokens.insert(*kind, digest.clone());
            }
            Entry::TokensRevoked { kind, .. } => self.tokens_revoked(*kind),
            Entry::MachineRegistered { .. }
            | Entry::MachineRemoved { .. }
            | Entry::MachineDraining { .. }
            | Entry::MachineDrainCancelled { .. }
            | Entry::MachineDrainForced { .. }
            | Entry::MachineHealthChanged { .. } => self.apply_machine(entry)?,
            Entry::ContainerPut { spec, revision, at } => self.container_put(spec, *revision, *at)?,
            Entry::ContainerStopped { container, at } => {
                self.container_mut(container)?.stopped_since.get_or_insert(*at);
            }
            Entry::ContainerStarted { container, .. } => {
                self.container_mut(container)?.stopped_since = None;
            }
            Entry::ContainerDeleted { container, at } => {
                self.container_mut(container)?.deleted_since.get_or_insert(*at);
                self.forget_unused(container);
            }
            Entry::RolloutPaused { .. }
            | Entry::RolloutResumed { .. }
            | Entry::RolloutProven { .. }
            | Entry::RolloutStalled { .. }
            | Entry::RolloutCompleted { .. }
            | Entry::RolloutTurned(_) => self.apply_rollout(entry)?,
            Entry::UnplacedChanged { container, count, at } => {
                let container = self.container_mut(container)?;
                container.unplaced = *count;
                container.unplaced_since = (*count > 0).then(|| container.unplaced_since.unwrap_or(*at));
            }
            Entry::ReplicaPlaced(placed) => self.replica_placed(placed)?,
            Entry::ReplicaResized {
                replica_id, granted, ..
            } => self.replica_resized(replica_id, *granted)?,
            Entry::ReplicaStopping {
                replica_id,
                cause,
                picked,
                unasked,
                at,
            } => {
                self.replica_stopping(replica_id, *cause, *picked, *at)?;
                self.note_unasked(*unasked, *at);
            }
            Entry::StopsHeld { count, at } => self.hold_stops(*count, *at),
            Entry::StopsReleased { until, .. } => {
                (self.held_stops, self.stops_released_until) = (None, Some(*until));
            }
            Entry::FreezeChanged { is_frozen, at, .. } => self.frozen_since = is_frozen.then_some(*at),
            Entry::ReplicaGone { replica_id, .. } => self.replica_gone(replica_id)?,
            Entry::CapacityWished(wish) => self.capacity_wished(wish)?,
            Entry::ContainerScaled(scaled) => self.container_scaled(scaled)?,
            Entry::EventRecorded { event } => self.events.record(event, self.applied_count + 1),
            Entry::EpochStarted { epoch, .. } => self.epoch_started(*epoch)?,
            Entry::WriteKept(kept) => self.kept.keep(kept.clone()),
        }
        self.applied_count += 1;
        Ok(())
    }

    /// Applies an entry about a machine.
    fn apply_machine(&mut self, entry: &Entry) -> Result<(), ApplyError> {
        match entry {
            Entry::MachineRegistered {
                spec,
                subnet_index,
                link_key,
                at,
            } => {
                self.machine_registered(spec, *subnet_index, *at)?;
                if let Some(key) = link_key {
                    self.machine_mut(&spec.machine_id)?.link_key = Some(key.clone());
                }
            }
            Entry::MachineRemoved { machine_id, how, .. } => self.machine_removed(machine_id, *how)?,
            Entry::MachineDraining { machine_id, at } => {
                self.machine_mut(machine_id)?.draining_since.get_or_insert(*at);
            }
            Entry::MachineDrainCancelled { machine_id, .. } => {
                let machine = self.machine_mut(machine_id)?;
                (machine.draining_since, machine.drain_deadline) = (None, None);
            }
            Entry::MachineDrainForced { machine_id, from, .. } => self.drain_forced(machine_id, *from)?,
            Entry::MachineHealthChanged {
                machine_id,
                state,
                at,
            } => {
                let machine = self.machine_mut(machine_id)?;
                (machine.health, machine.health_since) = (*state, *at);
            }
            _ => unreachable!("{entry:?} is not about a machine"),
        }
        Ok(())
    }

    fn hold_stops(&mut self, count: u32, since: Timestamp) {
        self.held_stops = (count > 0).then_some(HeldStops { since, count });
    }

    fn note_unasked(&mut self, is_unasked: bool, at: Timestamp) {
        if is_unasked {
            self.unasked_stops
                .retain(|stopped| at.since(*stopped) < guard::WINDOW);
            self.unasked_stops.push(at);
        }
    }

    fn machine_mut(&mut self, id: &MachineId) -> Result<&mut Machine, ApplyError> {
        self.machines
            .get_mut(id)
            .ok_or_else(|| ApplyError::NoMachine(id.clone()))
    }

    pub(super) fn container_mut(&mut self, name: &ContainerName) -> Result<&mut Container, ApplyError> {
        self.containers
            .get_mut(name)
            .ok_or_else(|| ApplyError::NoContainer(name.clone()))
    }

    /// Gives a machine, whose set has changed, a generation that nobody had before.
    fn advance(&mut self, id: &MachineId) -> u64 {
        self.last_generation += 1;
        let machine = self.machines.get_mut(id).expect("only known machines have a set");
        machine.generation = self.last_generation;
        self.last_generation
    }

    fn tokens_revoked(&mut self, kind: TokenKind) {
        self.tokens.remove(&kind);
        self.machine_token_era += u64::from(kind == TokenKind::Machine);
    }

    fn cluster_deleted(&mut self, at: Timestamp) {
        self.deleted_at.get_or_insert(at);
        let names: Vec<ContainerName> = self.containers.keys().cloned().collect();
        for name in names {
            if let Some(container) = self.containers.get_mut(&name) {
                container.deleted_since.get_or_insert(at);
            }
            self.forget_unused(&name);
        }
    }

    fn epoch_started(&mut self, epoch: u64) -> Result<(), ApplyError> {
        if epoch <= self.epoch {
            return Err(ApplyError::EpochNotHigher {
                from: self.epoch,
                to: epoch,
            });
        }
        self.epoch = epoch;
        let ids: Vec<MachineId> = self.machines.keys().cloned().collect();
        for id in ids {
            if let Some(machine) = self.machines.get_mut(&id) {
                machine.epoch_generation = machine.generation;
            }
        }
        Ok(())
    }

    fn groups_changed(&mut self, groups: &[CapacityGroup]) {
        self.spec.capacity_groups = groups.to_vec();
        let is_known = |id: &GroupId| groups.iter().any(|group| group.group_id == *id);
        self.wishes.retain(|id, _| is_known(id));
    }

    fn capacity_wished(&mut self, wished: &CapacityWish) -> Result<(), ApplyError> {
        if self.spec.group(&wished.group_id).is_none() {
            return Err(ApplyError::NoGroup(wished.group_id.clone()));
        }
        let known = self.wish(&wished.group_id);
        let grows = match wished.reason {
            CapacityReason::NeedCapacity | CapacityReason::HighUtilization | CapacityReason::AtMaxSize => {
                wished.desired > known.desired
            }
            CapacityReason::LowUtilization | CapacityReason::AtTarget => false,
        };
        let shrinks = wished.reason == CapacityReason::LowUtilization && wished.desired < known.desired;
        let wish = Wish {
            desired: wished.desired,
            reason: wished.reason,
            low_since: wished.low_since,
            grown_at: if grows { Some(wished.at) } else { known.grown_at },
            shrunk_at: if shrinks { Some(wished.at) } else { known.shrunk_at },
        };
        self.wishes.insert(wished.group_id.clone(), wish);
        Ok(())
    }

    fn machine_registered(
        &mut self,
        spec: &MachineSpec,
        index: u32,
        at: Timestamp,
    ) -> Result<(), ApplyError> {
        if let Some(known) = self.machines.get_mut(&spec.machine_id) {
            if known.subnet_index != index || known.spec.capacity_group != spec.capacity_group {
                return Err(ApplyError::MachineChanged(spec.machine_id.clone()));
            }
            known.spec = spec.clone();
            return Ok(());
        }
        let is_taken = self
            .machines
            .values()
            .any(|machine| machine.subnet_index == index);
        let cidr = self.spec.subnet(index).filter(|_| !is_taken);
        let cidr = cidr.ok_or(ApplyError::SubnetTaken(index))?;
        let machine = Machine {
            spec: spec.clone(),
            subnet_index: index,
            network: AssignedNetwork::of(cidr),
            registered_at: at,
            link_key: None,
            health: MachineHealthState::Initializing,
            health_since: at,
            draining_since: None,
            drain_deadline: None,
            generation: 0,
            epoch_generation: self.last_generation,
            next_host: HOST_MIN,
            allocated: Allocated::default(),
            replicas: OrdSet::new(),
        };
        self.machines.insert(spec.machine_id.clone(), machine);
        self.advance(&spec.machine_id);
        Ok(())
    }

    fn machine_removed(&mut self, id: &MachineId, how: Removal) -> Result<(), ApplyError> {
        let machine = self.machine_mut(id)?;
        if how == Removal::Empty && !machine.replicas.is_empty() {
            return Err(ApplyError::NotEmpty(id.clone()));
        }
        let replicas = std::mem::take(&mut machine.replicas);
        self.machines.remove(id);
        for replica_id in replicas {
            let replica = self.replicas.remove(&replica_id);
            let container = replica
                .expect("a machine lists only replicas that are there")
                .container;
            self.forget_unused(&container);
        }
        Ok(())
    }

    fn drain_forced(&mut self, id: &MachineId, from: Timestamp) -> Result<(), ApplyError> {
        let machine = self.machine_mut(id)?;
        if machine.draining_since.is_none() {
            return Err(ApplyError::NotDraining(id.clone()));
        }
        machine.drain_deadline = Some(from);
        Ok(())
    }

    fn container_put(
        &mut self,
        spec: &ContainerSpec,
        revision: u64,
        at: Timestamp,
    ) -> Result<(), ApplyError> {
        let expected = self.next_revision(spec);
        if revision != expected {
            return Err(ApplyError::RevisionJump {
                container: spec.name.clone(),
                from: self.containers.get(&spec.name).map_or(0, |known| known.revision),
                to: revision,
            });
        }
        let Some(known) = self.containers.get_mut(&spec.name) else {
            let container = Container {
                spec: spec.clone(),
                declared: None,
                revision,
                rollout: Some(Rollout::new(revision, RolloutCause::Created, at)),
                completed: vec![],
                older: BTreeMap::new(),
                count: spec.scale.initial(),
                stopped_since: None,
                deleted_since: None,
                unplaced: 0,
                unplaced_since: None,
                last_machines: BTreeMap::new(),
                last_revisions: BTreeMap::new(),
                created_at: at,
                updated_at: at,
            };
            self.containers.insert(spec.name.clone(), container);
            return Ok(());
        };
        let is_anew = known.deleted_since.take().is_some();
        if is_anew {
            known.created_at = at;
            known.stopped_since = None;
            known.count = spec.scale.initial();
        } else {
            known.count = rescaled(known, &spec.scale);
        }
        if revision == known.revision {
            known.redeclare(spec);
        } else {
            known.start_rollout(spec, revision, is_anew, at);
        }
        known.updated_at = at;
        self.forget_unused(&spec.name);
        Ok(())
    }

    fn replica_placed(&mut self, placed: &Placed) -> Result<(), ApplyError> {
        let id = &placed.replica_id;
        if self.replica(id).is_some() {
            return Err(ApplyError::ReplicaExists(id.clone()));
        }
        let container = self.container_mut(&placed.container)?;
        let spec = container
            .spec_at(placed.revision)
            .ok_or_else(|| ApplyError::NoRevision {
                container: placed.container.clone(),
                revision: placed.revision,
            })?;
        if spec.stateful != placed.ordinal.is_some() {
            return Err(ApplyError::WrongOrdinal(id.clone()));
        }
        if placed.granted.is_some_and(|granted| !is_squeeze(spec, granted)) {
            return Err(ApplyError::WrongGrant(id.clone()));
        }
        if !placed.devices.is_empty() && !devices::are_asked_for(spec, &placed.devices) {
            return Err(ApplyError::WrongDevices(id.clone()));
        }
        let held = Allocated::granted(spec, placed.granted.unwrap_or_else(|| spec.resources.desired()));
        let host = host_number(self.machine_mut(&placed.machine_id)?, placed.ip)
            .ok_or_else(|| taken_address(placed))?;
        self.refuse_taken_devices(placed)?;
        for other in self.replicas_on(&placed.machine_id) {
            if other.ip == placed.ip {
                return Err(taken_address(placed));
            }
            if let Some(host_port) = placed.host_port.filter(|port| other.host_port == Some(*port)) {
                return Err(ApplyError::HostPortTaken {
                    replica_id: id.clone(),
                    host_port,
                });
            }
        }
        let replica = Replica {
            replica_id: id.clone(),
            container: placed.container.clone(),
            ordinal: placed.ordinal,
            revision: placed.revision,
            machine_id: placed.machine_id.clone(),
            ip: placed.ip,
            host_port: placed.host_port,
            devices: placed.devices.clone(),
            placed_at: placed.at,
            sequence: self.placed_count,
            chosen: placed.chosen,
            granted: placed.granted,
            relieves: placed.relieves.clone(),
            stopping: None,
        };
        if let Some(ordinal) = placed.ordinal {
            let container = self.container_mut(&placed.container)?;
            container.last_machines.insert(ordinal, placed.machine_id.clone());
            container.last_revisions.insert(ordinal, placed.revision);
        }
        self.placed_count += 1;
        self.replicas.insert(replica);
        let machine = self.machine_mut(&placed.machine_id)?;
        machine.replicas.insert(id.clone());
        machine.allocated.take(held);
        machine.next_host = if host == HOST_MAX { HOST_MIN } else { host + 1 };
        self.advance(&placed.machine_id);
        Ok(())
    }

    /// More of a device than there is cannot be given away.
    fn refuse_taken_devices(&self, placed: &Placed) -> Result<(), ApplyError> {
        for device in &placed.devices {
            let others = self.replicas_on(&placed.machine_id);
            let held = others.flat_map(|other| &other.devices);
            let held = held.filter(|held| held.index == device.index);
            let sum: u32 = held.map(|held| u32::from(held.milli)).sum();
            if sum + u32::from(device.milli) > u32::from(GPU_MILLI) {
                return Err(ApplyError::DeviceTaken {
                    replica_id: placed.replica_id.clone(),
                    device: device.index,
                });
            }
        }
        Ok(())
    }

    fn replica_resized(&mut self, id: &ReplicaId, granted: Option<Granted>) -> Result<(), ApplyError> {
        let replica = self
            .replica(id)
            .ok_or_else(|| ApplyError::NoReplica(id.clone()))?;
        if replica.stopping.is_some() {
            return Err(ApplyError::ResizedStopping(id.clone()));
        }
        let spec = self.spec_of(replica);
        let before = replica
            .granted
            .ok_or_else(|| ApplyError::WrongGrant(id.clone()))?;
        let after = granted.unwrap_or_else(|| spec.resources.desired());
        let is_more = after != before && after.cpu >= before.cpu && after.memory >= before.memory;
        if !is_more || granted.is_some_and(|granted| !is_squeeze(spec, granted)) {
            return Err(ApplyError::WrongGrant(id.clone()));
        }
        let (given_back, taken) = (Allocated::granted(spec, before), Allocated::granted(spec, after));
        let machine_id = replica.machine_id.clone();
        self.replicas.grant(id, granted);
        let machine = self.machine_mut(&machine_id)?;
        machine.allocated.give_back(given_back);
        machine.allocated.take(taken);
        self.advance(&machine_id);
        Ok(())
    }

    fn replica_stopping(
        &mut self,
        id: &ReplicaId,
        cause: StopCause,
        picked: Option<Picked>,
        at: Timestamp,
    ) -> Result<(), ApplyError> {
        let replica = self
            .replica(id)
            .ok_or_else(|| ApplyError::NoReplica(id.clone()))?;
        if replica.stopping.is_some() {
            return Err(ApplyError::StoppedTwice(id.clone()));
        }
        let machine_id = replica.machine_id.clone();
        let stopping = Stopping {
            cause,
            picked,
            since: at,
            epoch: self.epoch,
            generation: self.advance(&machine_id),
        };
        self.replicas.stop(id, stopping);
        Ok(())
    }

    fn replica_gone(&mut self, id: &ReplicaId) -> Result<(), ApplyError> {
        let replica = self
            .replica(id)
            .ok_or_else(|| ApplyError::NoReplica(id.clone()))?;
        if replica.stopping.is_none() {
            return Err(ApplyError::GoneWithoutStop(id.clone()));
        }
        let held = replica.held(self);
        let replica = self.replicas.remove(id).expect("it was there a moment ago");
        let machine = self.machine_mut(&replica.machine_id)?;
        machine.replicas.remove(id);
        machine.allocated.give_back(held);
        self.advance(&replica.machine_id);
        self.forget_unused(&replica.container);
        Ok(())
    }

    /// Drops declarations that no replica runs or may go back to, and a deleted container without replicas.
    pub(super) fn forget_unused(&mut self, name: &ContainerName) {
        let used: BTreeSet<u64> = self.replicas_of(name).map(|replica| replica.revision).collect();
        let Some(container) = self.containers.get_mut(name) else {
            return;
        };
        let kept = container.kept_revisions();
        let is_kept = |revision: &u64| used.contains(revision) || kept.contains(revision);
        container.older.retain(|revision, _| is_kept(revision));
        if container.deleted_since.is_some() && used.is_empty() {
            self.containers.remove(name);
        }
    }
}

impl Allocated {
    fn take(&mut self, held: Self) {
        self.cpu = self
            .cpu
            .checked_add(held.cpu)
            .expect("a machine's vCPU fit into 64 bits");
        self.memory = self
            .memory
            .checked_add(held.memory)
            .expect("a machine's memory fits into 64 bits");
        self.ephemeral = self
            .ephemeral
            .checked_add(held.ephemeral)
            .expect("a machine's disk fits into 64 bits");
        self.gpus += held.gpus;
        self.gpu_share_milli += held.gpu_share_milli;
    }

    fn give_back(&mut self, held: Self) {
        assert!(
            self.cpu >= held.cpu
                && self.memory >= held.memory
                && self.ephemeral >= held.ephemeral
                && self.gpus >= held.gpus
                && self.gpu_share_milli >= held.gpu_share_milli,
            "a replica gives back {held:?} of {self:?}"
        );
        self.cpu = self.cpu.saturating_sub(held.cpu);
        self.memory = self.memory.saturating_sub(held.memory);
        self.ephemeral = self.ephemeral.saturating_sub(held.ephemeral);
        self.gpus -= held.gpus;
        self.gpu_share_milli -= held.gpu_share_milli;
    }
}

/// Whether this much is a squeeze of what a declaration desires: less of something, and nothing below its minimum.
fn is_squeeze(spec: &ContainerSpec, granted: Granted) -> bool {
    let (min, desired) = (spec.resources.min(), spec.resources.desired());
    granted != desired
        && (min.cpu..=desired.cpu).contains(&granted.cpu)
        && (min.memory..=desired.memory).contains(&granted.memory)
}

impl World {
    fn container_scaled(&mut self, scaled: &ContainerScaled) -> Result<(), ApplyError> {
        let container = self.container_mut(&scaled.container)?;
        let is_allowed = match &container.spec.scale {
            Scale::Autoscaling(bounds) => (bounds.min..=bounds.max).contains(&scaled.count),
            Scale::Replicas(_) => false,
        };
        if !is_allowed {
            return Err(ApplyError::NotScalable {
                container: scaled.container.clone(),
                count: scaled.count,
            });
        }
        container.count = scaled.count;
        Ok(())
    }
}

/// The count that a new scale gives: an automatic one keeps what scaling has found, inside of its bounds.
fn rescaled(known: &Container, scale: &Scale) -> u32 {
    match (&known.spec.scale, scale) {
        (Scale::Autoscaling(before), Scale::Autoscaling(after)) if before.desired == after.desired => {
            known.count.clamp(after.min, after.max.max(after.min))
        }
        _ => scale.initial(),
    }
}

/// The last octet of a replica's address, when the address is one that its machine may give away.
fn host_number(machine: &Machine, ip: IpAddr) -> Option<u8> {
    let IpAddr::V4(address) = ip else {
        return None;
    };
    let host = address.octets()[3];
    (machine.network.cidr.contains(&address) && (HOST_MIN..=HOST_MAX).contains(&host)).then_some(host)
}

fn taken_address(placed: &Placed) -> ApplyError {
    ApplyError::AddressTaken {
        replica_id: placed.replica_id.clone(),
        ip: placed.ip,
    }
}
