//! Everything durable of one cluster, built by applying [`Entry`] after [`Entry`] and by nothing else.
//!
//! Input: the log. Output: the facts that decisions, the link and the REST API read. Owner: the cluster's actor.
//! Pure: the same entries give the same world, byte for byte when serialised, so a snapshot is a shortcut and never
//! another truth. Soft state (heartbeats, what nodes report) is [`Observed`] and is never logged.
//!
//! A broken log never half-applies: [`World::try_apply`] checks first and changes afterwards.
//!
//! Cheap to clone, whatever its size: what grows with the cluster is kept in maps that share what two clones have in common.
//! Each change is made on a clone, and readers keep the one before.

mod apply;
mod devices;
mod events;
mod kept;
mod map;
mod observed;
mod replicas;
mod rollout;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use berth_api::assignment::Assignment;
use berth_api::cluster::ClusterSpec;
use berth_api::container::{ContainerSpec, Granted};
use berth_api::id::{ContainerName, GroupId, Label, MachineId, ReplicaId};
use berth_api::machine::{AssignedNetwork, GPU_MILLI, GpuDevice, MachineSpec, MachineStatus};
use berth_api::rest::cluster::CapacityReason;
use berth_api::time::Timestamp;
use berth_api::units::{Bytes, Cpu};
use imbl::OrdSet;
use serde::{Deserialize, Serialize};

use crate::entry::{
    Entry, LinkKey, MachineHealthState, Picked, StopCause, TokenDigest, TokenKind, version_of,
};
use crate::placement::Chosen;

pub use apply::ApplyError;
pub(crate) use apply::{HOST_MAX, HOST_MIN};
pub(crate) use devices::{DEVICES, Left};
pub use events::{EVENTS_MAX, Events};
pub use kept::{KEPT_MAX, KEPT_MAX_AGE, KeptWrite, KeptWrites};
pub use map::Map;
pub use observed::{Now, Observed, ObservedMachine, Readiness};
pub use rollout::{Former, FormerEnd, Rollout, RolloutTurn, Stalled};

/// One cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct World {
    pub(crate) spec: ClusterSpec,
    pub(crate) created_at: Timestamp,
    pub(crate) deleted_at: Option<Timestamp>,
    pub(crate) tokens: BTreeMap<TokenKind, TokenDigest>,
    /// How often the machine tokens were revoked.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) machine_token_era: u64,
    pub(crate) machines: Map<MachineId, Machine>,
    pub(crate) containers: Map<ContainerName, Container>,
    pub(crate) replicas: replicas::Replicas,
    pub(crate) epoch: u64,
    /// Drawn from by every machine, so that a machine that left and came back never sees a generation twice.
    pub(crate) last_generation: u64,
    /// Replicas ever placed: makes stateless ids unique and orders replicas by age.
    pub(crate) placed_count: u64,
    /// Entries applied so far, the first included.
    pub(crate) applied_count: u64,
    pub(crate) events: Events,
    /// Of groups whose wish was ever decided.
    #[serde(default)]
    pub(crate) wishes: BTreeMap<GroupId, Wish>,
    #[serde(default, skip_serializing_if = "KeptWrites::is_empty")]
    pub(crate) kept: KeptWrites,
    /// Since when nothing moves off silent machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) frozen_since: Option<Timestamp>,
    /// Stops that nobody asked for and that are not done: see [`crate::guard`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) held_stops: Option<HeldStops>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stops_released_until: Option<Timestamp>,
    /// When ready replicas were stopped that nobody asked to stop, lately.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) unasked_stops: Vec<Timestamp>,
}

/// Stops that the guard holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldStops {
    pub since: Timestamp,
    /// As it was then.
    pub count: u32,
}

/// How many machines a capacity group should have by the last decision, and what that decision must remember; see
/// [`crate::capacity`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wish {
    pub desired: u32,
    pub reason: CapacityReason,
    /// Since when fewer machines would do, without a break.
    pub low_since: Option<Timestamp>,
    /// When the wish last rose for want of room.
    pub grown_at: Option<Timestamp>,
    /// When the wish last fell for want of work.
    pub shrunk_at: Option<Timestamp>,
}

/// A registered machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    pub spec: MachineSpec,
    pub subnet_index: u32,
    pub network: AssignedNetwork,
    pub registered_at: Timestamp,
    /// The key that it enrolled with. From then on it is spoken for by that key alone, until it is removed. None while it speaks
    /// the plain wire API, which has tokens only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_key: Option<LinkKey>,
    pub health: MachineHealthState,
    /// Since when `health` holds.
    pub health_since: Timestamp,
    pub draining_since: Option<Timestamp>,
    /// From when on what is left on it while it drains is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_deadline: Option<Timestamp>,
    /// Of its present assignment set.
    pub generation: u64,
    /// What `generation` was when the present epoch started, or the cluster's when it registered since. A node that has accepted a higher one in an earlier epoch has
    /// seen a history that is lost.
    #[serde(default)]
    pub epoch_generation: u64,
    /// Last octet where the search for a free address goes on: an address rests as long as possible after use.
    pub next_host: u8,
    /// Of all replicas placed on it that are not gone, stopping ones included.
    pub allocated: Allocated,
    pub replicas: OrdSet<ReplicaId>,
}

/// What replicas hold of a machine: what every one that is not gone was granted. Which GPUs is said by the replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Allocated {
    pub cpu: Cpu,
    pub memory: Bytes,
    pub ephemeral: Bytes,
    /// Whole devices.
    pub gpus: u32,
    /// Thousandths of a GPU. Of what is held: all shares together. Of what is free: the most that is left of one device of which
    /// something is held.
    #[serde(default, skip_serializing_if = "is_nought")]
    pub gpu_share_milli: u32,
}

/// A declared container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// What its replicas are to run: what is declared, or, after a rollback, what was declared before.
    pub spec: ContainerSpec,
    /// What its user has declared last, where that is not what its replicas are to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declared: Option<Box<ContainerSpec>>,
    /// Rises with each change of anything but what running replicas do not see: the id of its rollout.
    pub revision: u64,
    /// Of `revision`. Unknown for containers that are older than rollouts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// Revisions whose rollouts have completed, the latest last, two of different content at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub completed: Vec<u64>,
    /// Declarations of earlier revisions that replicas still run or may go back to.
    pub older: BTreeMap<u64, ContainerSpec>,
    /// How many replicas are wanted while it is neither stopped nor deleted.
    pub count: u32,
    pub stopped_since: Option<Timestamp>,
    pub deleted_since: Option<Timestamp>,
    /// Replicas that found no place at the last decision, and since when there is any.
    pub unplaced: u32,
    pub unplaced_since: Option<Timestamp>,
    /// Where each ordinal was placed last: it goes back there when it can.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub last_machines: BTreeMap<u32, MachineId>,
    /// What each ordinal ran last: while a rollout is paused it goes on with that.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub last_revisions: BTreeMap<u32, u64>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A replica that is on a machine, or may still be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Replica {
    pub replica_id: ReplicaId,
    pub container: ContainerName,
    pub ordinal: Option<u32>,
    pub revision: u64,
    pub machine_id: MachineId,
    pub ip: IpAddr,
    pub host_port: Option<u16>,
    /// What it holds of its machine's GPUs, by rising number. Empty: none, or placed before this was recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<GpuDevice>,
    pub placed_at: Timestamp,
    /// Rises with each placement of the cluster: the age of the replica.
    pub sequence: u64,
    /// Why this machine; unknown for replicas placed before this was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Chosen>,
    /// Less than its declaration desires, where it is squeezed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted: Option<Granted>,
    /// The squeezed replica that leaves when this one is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relieves: Option<ReplicaId>,
    pub stopping: Option<Stopping>,
}

/// A replica was told to stop and is not gone yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stopping {
    pub cause: StopCause,
    /// Where several could have been stopped: why this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picked: Option<Picked>,
    pub since: Timestamp,
    /// (epoch, generation) of the first set that says so. A node that accepted it and lists the replica no more has
    /// nothing left of it.
    pub epoch: u64,
    pub generation: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_nought(number: &u32) -> bool {
    *number == 0
}

impl World {
    #[must_use]
    pub fn spec(&self) -> &ClusterSpec {
        &self.spec
    }

    #[must_use]
    pub fn created_at(&self) -> Timestamp {
        self.created_at
    }

    /// Since when the cluster is being deleted.
    #[must_use]
    pub fn deleted_at(&self) -> Option<Timestamp> {
        self.deleted_at
    }

    /// Deleted, and nothing of it is left on any machine: its log may be dropped.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.deleted_at.is_some() && self.replicas().is_empty()
    }

    /// Digest of the valid token of a kind; none after a revocation.
    #[must_use]
    pub fn token(&self, kind: TokenKind) -> Option<&TokenDigest> {
        self.tokens.get(&kind)
    }

    /// The labels of a machine and of its group.
    #[must_use]
    pub fn labels<'a>(&'a self, machine: &'a Machine) -> BTreeSet<&'a Label> {
        let group = self.spec.group(&machine.spec.capacity_group);
        let of_group = group.into_iter().flat_map(|group| &group.labels);
        machine.spec.labels.iter().chain(of_group).collect()
    }

    /// The lowest version of snapshots whose readers understand every declaration.
    pub(crate) fn format(&self) -> u32 {
        let formats = self.containers().values().flat_map(|container| {
            let others = container.older.values().chain(container.declared.as_deref());
            others.chain([&container.spec]).map(version_of)
        });
        formats.max().unwrap_or(1)
    }

    /// Rises with each revocation of the machine tokens: what was enrolled in an earlier era is refused.
    #[must_use]
    pub fn machine_token_era(&self) -> u64 {
        self.machine_token_era
    }

    #[must_use]
    pub fn machines(&self) -> &Map<MachineId, Machine> {
        &self.machines
    }

    /// Machines, containers and replicas together.
    #[must_use]
    pub(crate) fn size(&self) -> u64 {
        let size = self.machines.len() + self.containers.len() + self.replicas().len();
        u64::try_from(size).expect("a length fits into 64 bits")
    }

    #[must_use]
    pub fn machine(&self, id: &MachineId) -> Option<&Machine> {
        self.machines.get(id)
    }

    /// Every container, those being deleted included (see [`Container::deleted_since`]).
    #[must_use]
    pub fn containers(&self) -> &Map<ContainerName, Container> {
        &self.containers
    }

    #[must_use]
    pub fn container(&self, name: &ContainerName) -> Option<&Container> {
        self.containers.get(name)
    }

    #[must_use]
    pub fn replicas(&self) -> &Map<ReplicaId, Replica> {
        self.replicas.by_id()
    }

    #[must_use]
    pub fn replica(&self, id: &ReplicaId) -> Option<&Replica> {
        self.replicas().get(id)
    }

    /// Replicas of a container that are not gone, ordered by id.
    pub fn replicas_of(&self, container: &ContainerName) -> impl Iterator<Item = &Replica> + use<'_> {
        self.replicas.of(container)
    }

    /// Replicas of a machine that are not gone, ordered by id.
    pub fn replicas_on(&self, machine: &MachineId) -> impl Iterator<Item = &Replica> + use<'_> {
        self.replicas.on(machine)
    }

    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    #[must_use]
    pub fn applied_count(&self) -> u64 {
        self.applied_count
    }

    /// Replicas ever placed.
    #[must_use]
    pub fn placed_count(&self) -> u64 {
        self.placed_count
    }

    /// The wish for a capacity group; before the first decision, its minimum.
    #[must_use]
    pub fn wish(&self, group: &GroupId) -> Wish {
        self.wishes.get(group).copied().unwrap_or_else(|| Wish {
            desired: self.spec.group(group).map_or(0, |group| group.min_size),
            reason: CapacityReason::AtTarget,
            low_since: None,
            grown_at: None,
            shrunk_at: None,
        })
    }

    /// What happened lately.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Since when nothing moves off silent machines; none while that is not so.
    #[must_use]
    pub fn frozen_since(&self) -> Option<Timestamp> {
        self.frozen_since
    }

    /// Stops that the mass-stop guard holds.
    #[must_use]
    pub fn held_stops(&self) -> Option<HeldStops> {
        self.held_stops
    }

    /// Writes that were done under an idempotency key.
    #[must_use]
    pub fn kept_writes(&self) -> &KeptWrites {
        &self.kept
    }

    /// The lowest machine subnet that no registered machine owns; none when the container CIDR is used up.
    #[must_use]
    pub fn free_subnet_index(&self) -> Option<u32> {
        let used: BTreeSet<u32> = self
            .machines
            .values()
            .map(|machine| machine.subnet_index)
            .collect();
        (0..self.spec.subnet_count()).find(|index| !used.contains(index))
    }

    /// The entry that registers a machine, first or again; none when the container CIDR has no subnet left.
    #[must_use]
    pub fn registration(&self, spec: MachineSpec, at: Timestamp) -> Option<Entry> {
        self.enrolment(spec, None, at)
    }

    /// As [`Self::registration`], of a machine that enrols with `link_key`.
    #[must_use]
    pub fn enrolment(&self, spec: MachineSpec, link_key: Option<LinkKey>, at: Timestamp) -> Option<Entry> {
        let subnet_index = match self.machines.get(&spec.machine_id) {
            Some(known) => known.subnet_index,
            None => self.free_subnet_index()?,
        };
        Some(Entry::MachineRegistered {
            spec,
            subnet_index,
            link_key,
            at,
        })
    }

    /// The revision that a declaration gets when it is put now: the present one when only scale, links and budgets differ.
    #[must_use]
    pub fn next_revision(&self, spec: &ContainerSpec) -> u64 {
        match self.containers.get(&spec.name) {
            None => 1,
            Some(known) if known.deleted_since.is_none() && same_template(known.declared(), spec) => {
                known.revision
            }
            Some(known) => known.revision + 1,
        }
    }

    /// The entry that declares or changes a container now.
    #[must_use]
    pub fn put(&self, spec: ContainerSpec, at: Timestamp) -> Entry {
        Entry::ContainerPut {
            revision: self.next_revision(&spec),
            spec: Box::new(spec),
            at,
        }
    }

    /// The declaration that a replica runs.
    ///
    /// # Panics
    /// When the container does not keep the replica's revision, which [`World::try_apply`] never lets happen.
    #[must_use]
    pub fn spec_of(&self, replica: &Replica) -> &ContainerSpec {
        self.containers
            .get(&replica.container)
            .and_then(|container| container.spec_at(replica.revision))
            .expect("a container is kept with every revision that a replica of it runs")
    }

    /// Whether a replica runs something else than its container now declares for it.
    #[must_use]
    pub fn is_outdated(&self, replica: &Replica) -> bool {
        let Some(container) = self.containers.get(&replica.container) else {
            return false;
        };
        container.is_outdated(replica)
    }
}

impl Container {
    /// Whether a replica of it runs something else than it now declares.
    ///
    /// # Panics
    /// When it does not keep the replica's revision, which [`World::try_apply`] never lets happen.
    #[must_use]
    pub fn is_outdated(&self, replica: &Replica) -> bool {
        let content = |revision: u64| {
            let spec = self.spec_at(revision);
            views::content(
                spec.expect("a container is kept with what its replicas run"),
                replica,
            )
        };
        replica.revision != self.revision && content(replica.revision) != content(self.revision)
    }

    /// How many replicas should be there now.
    #[must_use]
    pub fn wanted(&self) -> u32 {
        if self.stopped_since.is_some() || self.deleted_since.is_some() {
            0
        } else {
            self.count
        }
    }

    /// How many of its replicas may be taken out of service by a drain or for a rollout.
    #[must_use]
    pub fn max_unavailable(&self) -> u32 {
        self.spec.disruption_budget.unwrap_or_default().max_unavailable
    }

    /// The declaration of a revision, while a replica may run it.
    #[must_use]
    pub fn spec_at(&self, revision: u64) -> Option<&ContainerSpec> {
        if revision == self.revision {
            Some(&self.spec)
        } else {
            self.older.get(&revision)
        }
    }
}

impl Machine {
    /// The wire's status: unhealthy outranks draining, since a silent machine drains nothing.
    #[must_use]
    pub fn status(&self) -> MachineStatus {
        match (self.health, self.draining_since) {
            (MachineHealthState::Unhealthy, _) => MachineStatus::Unhealthy,
            (_, Some(_)) => MachineStatus::Draining,
            (MachineHealthState::Initializing, None) => MachineStatus::Initializing,
            (MachineHealthState::Running, None) => MachineStatus::Running,
        }
    }

    /// What replicas may use in all: totals less the system's reserve.
    #[must_use]
    pub fn usable(&self) -> Allocated {
        let capacity = &self.spec.capacity;
        Allocated {
            cpu: capacity.cpu.total.saturating_sub(capacity.cpu.system_reserve),
            memory: capacity
                .memory
                .total
                .saturating_sub(capacity.memory.system_reserve),
            ephemeral: capacity.ephemeral_storage.total,
            gpus: capacity.gpu.as_ref().map_or(0, |gpu| gpu.total),
            gpu_share_milli: 0,
        }
    }

    /// What is left; nothing when more is allocated than there is (a machine came back smaller). It counts no shares of GPUs:
    /// [`World::free_devices`] knows what is left of each.
    #[must_use]
    pub fn free(&self) -> Allocated {
        self.usable().less(&self.allocated)
    }
}

impl Allocated {
    /// The sum; none when it is beyond any number.
    #[must_use]
    pub fn checked_plus(&self, other: &Self) -> Option<Self> {
        Some(Self {
            cpu: self.cpu.checked_add(other.cpu)?,
            memory: self.memory.checked_add(other.memory)?,
            ephemeral: self.ephemeral.checked_add(other.ephemeral)?,
            gpus: self.gpus.checked_add(other.gpus)?,
            gpu_share_milli: self.gpu_share_milli.checked_add(other.gpu_share_milli)?,
        })
    }

    /// What is left, nothing at least.
    #[must_use]
    pub fn less(&self, other: &Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(other.cpu),
            memory: self.memory.saturating_sub(other.memory),
            ephemeral: self.ephemeral.saturating_sub(other.ephemeral),
            gpus: self.gpus.saturating_sub(other.gpus),
            gpu_share_milli: self.gpu_share_milli.saturating_sub(other.gpu_share_milli),
        }
    }

    /// Thousandths of GPUs, whole devices and shares together.
    #[must_use]
    pub fn gpus_milli(&self) -> u64 {
        u64::from(self.gpus) * u64::from(GPU_MILLI) + u64::from(self.gpu_share_milli)
    }

    /// The largest share that this much room could take.
    #[must_use]
    pub fn largest_share(&self) -> u32 {
        match self.gpus {
            0 => self.gpu_share_milli,
            _ => GPU_MILLI.into(),
        }
    }

    /// Whether what one replica holds is no more than `room` in any dimension.
    #[must_use]
    pub fn fits_in(&self, room: &Self) -> bool {
        self.cpu <= room.cpu
            && self.memory <= room.memory
            && self.ephemeral <= room.ephemeral
            && self.gpus <= room.gpus
            && self.gpu_share_milli <= room.largest_share()
    }

    /// What one replica of a declaration holds with this much granted to it.
    #[must_use]
    pub fn granted(spec: &ContainerSpec, granted: Granted) -> Self {
        Self {
            cpu: granted.cpu,
            memory: granted.memory,
            ..Self::of(spec)
        }
    }

    /// What one replica of a declaration holds when it has all that it desires.
    #[must_use]
    pub fn of(spec: &ContainerSpec) -> Self {
        let gpu = spec.resources.gpu.as_ref();
        let share = gpu.and_then(|gpu| gpu.share);
        Self {
            cpu: spec.resources.cpu.desired,
            memory: spec.resources.memory.desired,
            ephemeral: spec.resources.ephemeral_storage.unwrap_or(Bytes::ZERO),
            gpus: gpu.filter(|_| share.is_none()).map_or(0, |gpu| gpu.count),
            gpu_share_milli: share.map_or(0, |share| share.milli().into()),
        }
    }
}

impl Replica {
    /// Placed, and not told to stop.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.stopping.is_none()
    }

    /// What it holds of its machine.
    ///
    /// # Panics
    /// As [`World::spec_of`].
    #[must_use]
    pub fn held(&self, world: &World) -> Allocated {
        let spec = world.spec_of(self);
        Allocated::granted(spec, self.granted.unwrap_or_else(|| spec.resources.desired()))
    }

    /// What its machine must run for it.
    #[must_use]
    pub fn assignment(&self, world: &World) -> Assignment {
        views::content(world.spec_of(self), self)
    }
}

/// Whether two declarations differ at most in what running replicas do not see.
pub(crate) fn same_template(one: &ContainerSpec, other: &ContainerSpec) -> bool {
    let bare = |spec: &ContainerSpec| ContainerSpec {
        scale: berth_api::container::Scale::Replicas(1),
        links: vec![],
        disruption_budget: None,
        rollback: None,
        ..spec.clone()
    };
    bare(one) == bare(other)
}
