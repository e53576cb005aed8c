//! An independent verifier of decisions: it recomputes every sum from the replicas alone and shares no code with what
//! decided. The cluster's actor appends nothing of a decision with a violation.
//!
//! [`check`] looks at what the entries of a decision touch: the cost is that of the decision, not of the cluster.
//! [`check_all`] applies any entries to a copy of the world and looks at everything, what applying keeps included: sums and
//! generations. Tests and the simulation run it on every decision; they also prove that both agree.

mod stops;
mod touched;
mod whole;

use std::collections::BTreeMap;
use std::net::IpAddr;

use berth_api::container::{ContainerSpec, Granted};
use berth_api::id::{ContainerName, GroupId, Label, MachineId, ReplicaId};
use berth_api::machine::GpuDevice;

use crate::entry::{CapacityWish, Entry, MachineHealthState, Placed};
use crate::liveness::Limits;
use crate::world::{Container, Machine, Now, Observed, Replica, World};

/// A rule that a decision would break.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("entry {number} of the decision cannot follow the log: {error}")]
    Inapplicable { number: usize, error: String },
    #[error("machine {machine_id} would give away {given} of {dimension} and has {usable}")]
    OverCapacity {
        machine_id: MachineId,
        dimension: &'static str,
        given: u128,
        usable: u128,
    },
    #[error("machine {machine_id} accounts for {accounted} of {dimension}, its replicas hold {held}")]
    WrongSum {
        machine_id: MachineId,
        dimension: &'static str,
        accounted: u128,
        held: u128,
    },
    #[error("{given} thousandths of GPU {device} of machine {machine_id} would be given away")]
    DeviceOver {
        machine_id: MachineId,
        device: u8,
        given: u32,
    },
    #[error("replicas on machine {machine_id} hold whole GPUs that nobody names, and would be left without")]
    NoDeviceLeft { machine_id: MachineId },
    #[error("replicas {one} and {other} would write to one volume")]
    TwoWriters { one: ReplicaId, other: ReplicaId },
    #[error("replicas {one} and {other} would have one address {ip}")]
    SameAddress {
        one: ReplicaId,
        other: ReplicaId,
        ip: IpAddr,
    },
    #[error("replicas {one} and {other} would have one port {host_port} of machine {machine_id}")]
    SameHostPort {
        one: ReplicaId,
        other: ReplicaId,
        machine_id: MachineId,
        host_port: u16,
    },
    #[error("replica {replica_id}: {fault}")]
    Misplaced {
        replica_id: ReplicaId,
        fault: &'static str,
    },
    #[error("replica {replica_id} wants machine {machine_id} for itself and would share it")]
    Shared {
        replica_id: ReplicaId,
        machine_id: MachineId,
    },
    #[error("replica {replica_id} is placed on machine {machine_id}, which is {status}")]
    NotRunning {
        replica_id: ReplicaId,
        machine_id: MachineId,
        status: &'static str,
    },
    #[error("group {group} would be wished {desired} machines and may have {min} to {max}")]
    WishOutOfBounds {
        group: GroupId,
        desired: u32,
        min: u32,
        max: u32,
    },
    #[error("the set of machine {machine_id} would change and stay at generation {generation}")]
    GenerationStays { machine_id: MachineId, generation: u64 },
    #[error("{stopped} healthy replicas would stop that nobody asked to stop, and {allowed} may")]
    MassStop { stopped: u64, allowed: u64 },
    #[error(
        "replica {replica_id} would be forgotten, and its machine has not said that nothing is left of it"
    )]
    Left { replica_id: ReplicaId },
    #[error("the generation of machine {machine_id} would go from {before} to {after}")]
    GenerationFalls {
        machine_id: MachineId,
        before: u64,
        after: u64,
    },
}

/// Every rule that a decision would break in `before`; empty when none. Events are not looked at.
#[must_use]
pub fn check(before: &World, entries: &[Entry]) -> Vec<Violation> {
    touched::check(before, entries).unwrap_or_else(|| whole::check(before, entries))
}

/// Every rule that applying `entries` to `before` would break anywhere; empty when none. Events are not looked at.
#[must_use]
pub fn check_all(before: &World, entries: &[Entry]) -> Vec<Violation> {
    whole::check(before, entries)
}

/// What a decision would do against the word of nodes: stop more healthy replicas than somebody has asked for, or forget one
/// of which something is left, so that its successor could start beside it.
#[must_use]
pub fn check_reported(
    before: &World,
    observed: &Observed,
    limits: &Limits,
    now: Now,
    entries: &[Entry],
) -> Vec<Violation> {
    let mass = stops::mass(before, observed, limits, now, entries);
    mass.into_iter()
        .chain(stops::left(before, observed, entries))
        .collect()
}

/// A wish is acted on by whoever buys machines: it stays within what the group's owner allows.
fn out_of_bounds(world: &World, wish: &CapacityWish) -> Option<Violation> {
    let group = world.spec().group(&wish.group_id)?;
    let is_out = wish.desired < group.min_size || wish.desired > group.max_size;
    is_out.then(|| Violation::WishOutOfBounds {
        group: group.group_id.clone(),
        desired: wish.desired,
        min: group.min_size,
        max: group.max_size,
    })
}

const DIMENSIONS: [&str; 4] = ["cpu", "memory", "ephemeral storage", "thousandths of GPUs"];

/// Amounts in the order of [`DIMENSIONS`].
type Amounts = [u128; 4];

/// Something that holds a part of a machine: a replica of the world, or one that a decision places.
#[derive(Debug, Clone, Copy)]
struct Holder<'a> {
    replica_id: &'a ReplicaId,
    container: &'a ContainerName,
    revision: u64,
    ordinal: Option<u32>,
    ip: IpAddr,
    host_port: Option<u16>,
    devices: &'a [GpuDevice],
    granted: Option<Granted>,
}

impl<'a> From<&'a Replica> for Holder<'a> {
    fn from(replica: &'a Replica) -> Self {
        Self {
            replica_id: &replica.replica_id,
            container: &replica.container,
            revision: replica.revision,
            ordinal: replica.ordinal,
            ip: replica.ip,
            host_port: replica.host_port,
            devices: &replica.devices,
            granted: replica.granted,
        }
    }
}

impl<'a> From<&'a Placed> for Holder<'a> {
    fn from(placed: &'a Placed) -> Self {
        Self {
            replica_id: &placed.replica_id,
            container: &placed.container,
            revision: placed.revision,
            ordinal: placed.ordinal,
            ip: placed.ip,
            host_port: placed.host_port,
            devices: &placed.devices,
            granted: placed.granted,
        }
    }
}

impl Holder<'_> {
    fn spec<'w>(&self, world: &'w World) -> Option<&'w ContainerSpec> {
        declared(world.container(self.container)?, self.revision)
    }

    /// What it holds; nothing when its declaration is not there, which is a fault of its own.
    fn amounts(&self, world: &World) -> Amounts {
        let Some(spec) = self.spec(world) else {
            return Amounts::default();
        };
        let resources = &spec.resources;
        let cpu = self.granted.map_or(resources.cpu.desired, |granted| granted.cpu);
        let memory = self
            .granted
            .map_or(resources.memory.desired, |granted| granted.memory);
        [
            cpu.micros().into(),
            memory.get().into(),
            resources.ephemeral_storage.map_or(0, |bytes| bytes.get().into()),
            gpu_pieces(spec).map_or(0, |(count, milli)| u128::from(count) * u128::from(milli)),
        ]
    }

    /// The disk or directory that it writes to.
    fn disk<'w>(&self, world: &'w World) -> Option<(&'static str, &'w str)> {
        let spec = self.spec(world)?;
        let mut volumes = spec.volumes.iter();
        let volume = volumes.find(|volume| Some(volume.ordinal) == self.ordinal)?;
        Some((volume.volume.kind(), volume.volume.identity()))
    }
}

fn has_labels(world: &World, machine: &Machine, spec: &ContainerSpec) -> bool {
    let Some(rules) = &spec.placement else {
        return true;
    };
    let mut groups = world.spec().capacity_groups.iter();
    let group = groups.find(|group| group.group_id == machine.spec.capacity_group);
    let has = |label: &Label| {
        machine.spec.labels.contains(label) || group.is_some_and(|group| group.labels.contains(label))
    };
    rules.requires.iter().all(has) && !rules.forbids.iter().any(has)
}

/// A replica that has a machine to itself, and does not.
fn shared<'a>(world: &World, machine: &Machine, holders: &[Holder<'a>]) -> Option<Violation> {
    let is_alone = |holder: &&Holder<'a>| holder.spec(world).is_some_and(ContainerSpec::is_exclusive);
    let holder = holders.iter().find(is_alone).filter(|_| holders.len() > 1)?;
    Some(Violation::Shared {
        replica_id: holder.replica_id.clone(),
        machine_id: machine.spec.machine_id.clone(),
    })
}

fn declared(container: &Container, revision: u64) -> Option<&ContainerSpec> {
    if container.revision == revision {
        return Some(&container.spec);
    }
    container.older.get(&revision)
}

/// Whether a grant is what it may be: less than is desired of something, and nowhere more than that or less than the minimum.
fn is_grant(spec: &ContainerSpec, granted: Granted) -> bool {
    let (cpu, memory) = (spec.resources.cpu, spec.resources.memory);
    let is_within = granted.cpu >= cpu.min
        && granted.cpu <= cpu.desired
        && granted.memory >= memory.min
        && granted.memory <= memory.desired;
    is_within && (granted.cpu < cpu.desired || granted.memory < memory.desired)
}

/// Thousandths of a GPU; said again here, on purpose.
const WHOLE_GPU: u128 = 1000;

/// From how many devices a replica has something, and how many thousandths of each.
fn gpu_pieces(spec: &ContainerSpec) -> Option<(u32, u16)> {
    let gpu = spec.resources.gpu.as_ref()?;
    Some(match gpu.share {
        Some(share) => (1, share.milli()),
        None => (gpu.count, 1000),
    })
}

/// Whether a list of devices names, in their order, as many different ones as the declaration asks for, and as much of each.
fn names_devices(spec: &ContainerSpec, devices: &[GpuDevice]) -> bool {
    let (count, milli) = gpu_pieces(spec).unwrap_or((0, 0));
    let mut before = None;
    let is_rising = devices.iter().all(|device| {
        before
            .replace(device.index)
            .is_none_or(|before| before < device.index)
    });
    let is_alike = devices.iter().all(|device| device.milli == milli);
    is_rising && is_alike && u32::try_from(devices.len()) == Ok(count)
}

/// What is given away of each device of a machine, by those that name theirs.
fn named_devices(holders: &[Holder<'_>]) -> BTreeMap<u8, u32> {
    let mut named: BTreeMap<u8, u32> = BTreeMap::new();
    for device in holders.iter().flat_map(|holder| holder.devices) {
        *named.entry(device.index).or_default() += u32::from(device.milli);
    }
    named
}

/// Where more is given away of a device than there is.
fn over_device(machine: &Machine, holders: &[Holder<'_>]) -> Vec<Violation> {
    let named = named_devices(holders).into_iter();
    let over = named.filter(|(_, milli)| u128::from(*milli) > WHOLE_GPU);
    over.map(|(device, given)| Violation::DeviceOver {
        machine_id: machine.spec.machine_id.clone(),
        device,
        given,
    })
    .collect()
}

/// Where a decision gives GPUs away, and too few are left untouched for the whole ones that nobody names.
fn no_device_left(world: &World, machine: &Machine, holders: &[Holder<'_>]) -> Option<Violation> {
    let total = machine.spec.capacity.gpu.as_ref().map_or(0, |gpu| gpu.total);
    let is_there = |index: u8| u32::from(index) < total;
    let unnamed = holders
        .iter()
        .map(|holder| match holder.spec(world).and_then(gpu_pieces) {
            Some((count, 1000)) if holder.devices.is_empty() => u64::from(count),
            _ => 0,
        });
    let lost = holders.iter().flat_map(|holder| holder.devices);
    let lost = lost.filter(|device| device.milli == 1000 && !is_there(device.index));
    let homeless = unnamed.sum::<u64>() + lost.map(|_| 1).sum::<u64>();
    let named = named_devices(holders);
    let touched = named.keys().filter(|index| is_there(**index));
    let untouched = u64::from(total).saturating_sub(touched.map(|_| 1).sum());
    (homeless > untouched).then(|| Violation::NoDeviceLeft {
        machine_id: machine.spec.machine_id.clone(),
    })
}

/// What replicas may hold of a machine in all.
fn usable(machine: &Machine) -> Amounts {
    let capacity = &machine.spec.capacity;
    let less = |total: u64, reserve: u64| u128::from(total).saturating_sub(reserve.into());
    [
        less(capacity.cpu.total.micros(), capacity.cpu.system_reserve.micros()),
        less(capacity.memory.total.get(), capacity.memory.system_reserve.get()),
        capacity.ephemeral_storage.total.get().into(),
        capacity
            .gpu
            .as_ref()
            .map_or(0, |gpu| u128::from(gpu.total) * WHOLE_GPU),
    ]
}

/// What a machine says that its replicas hold.
fn accounted(machine: &Machine) -> Amounts {
    [
        machine.allocated.cpu.micros().into(),
        machine.allocated.memory.get().into(),
        machine.allocated.ephemeral.get().into(),
        u128::from(machine.allocated.gpus) * WHOLE_GPU + u128::from(machine.allocated.gpu_share_milli),
    ]
}

fn sum<'a>(world: &World, holders: impl IntoIterator<Item = Holder<'a>>) -> Amounts {
    let amounts = holders.into_iter().map(|holder| holder.amounts(world));
    amounts.fold(Amounts::default(), plus)
}

/// What a holder has more than before.
fn growth(world: &World, before: Holder<'_>, after: Holder<'_>) -> Amounts {
    let mut more = after.amounts(world);
    for (more, had) in more.iter_mut().zip(before.amounts(world)) {
        *more = more.saturating_sub(had);
    }
    more
}

fn plus(mut total: Amounts, part: Amounts) -> Amounts {
    for (total, part) in total.iter_mut().zip(part) {
        *total += part;
    }
    total
}

/// Where more is held of a machine than it has, and a decision gives more of it away. One that came back smaller may hold more
/// than it has of something, and still be given what it has enough of.
fn over_capacity(machine: &Machine, held: Amounts, more: Amounts) -> impl Iterator<Item = Violation> {
    let all = DIMENSIONS.into_iter().zip(held).zip(usable(machine)).zip(more);
    all.filter(|(((_, held), usable), more)| held > usable && *more > 0)
        .map(|(((dimension, given), usable), _)| Violation::OverCapacity {
            machine_id: machine.spec.machine_id.clone(),
            dimension,
            given,
            usable,
        })
}

fn wrong_sum(machine: &Machine, held: Amounts) -> impl Iterator<Item = Violation> {
    let all = DIMENSIONS.into_iter().zip(accounted(machine)).zip(held);
    all.filter(|((_, accounted), held)| accounted != held)
        .map(|((dimension, accounted), held)| Violation::WrongSum {
            machine_id: machine.spec.machine_id.clone(),
            dimension,
            accounted,
            held,
        })
}

/// First and last host number of a subnet of 256 that a replica may have, and the ports that a replica may have of its
/// machine; said again here, on purpose.
const HOSTS: std::ops::RangeInclusive<u8> = 2..=254;
const HOST_PORTS: std::ops::RangeInclusive<u16> = 8001..=8999;

/// While its rollout is paused a container's replicas may run what they ran before.
fn is_kept_while_paused(container: &Container, revision: u64) -> bool {
    let rollout = container.rollout.as_ref();
    let is_paused =
        rollout.is_some_and(|rollout| rollout.paused_since.is_some() && rollout.completed_at.is_none());
    is_paused && container.older.contains_key(&revision)
}

fn wrong_gpus(spec: &ContainerSpec, placed: &Placed, machine: &Machine) -> Vec<&'static str> {
    let gpu = machine.spec.capacity.gpu.as_ref();
    let asked = spec.resources.gpu.as_ref();
    let mut faults = vec![];
    if asked.is_some_and(|asked| Some(&asked.kind) != gpu.map(|gpu| &gpu.kind)) {
        faults.push("its machine has no GPU of its type");
    }
    if !names_devices(spec, &placed.devices) {
        faults.push("the GPUs that it is given are not what it asks for");
    }
    let total = gpu.map_or(0, |gpu| gpu.total);
    if placed
        .devices
        .iter()
        .any(|device| u32::from(device.index) >= total)
    {
        faults.push("its machine has no GPU of that number");
    }
    faults
}

/// What is wrong with a place by itself. `health` and `is_draining` are the machine's at the time of the placement.
fn misplaced(
    world: &World,
    container: &Container,
    placed: &Placed,
    machine: &Machine,
    health: MachineHealthState,
) -> Vec<Violation> {
    let spec = declared(container, placed.revision).unwrap_or(&container.spec);
    let mut faults = vec![];
    if container.stopped_since.is_some() || container.deleted_since.is_some() {
        faults.push("its container is stopped or deleted");
    }
    if placed.revision != container.revision && !is_kept_while_paused(container, placed.revision) {
        faults.push("it would not run what its container declares");
    }
    if placed.ordinal.is_some() != spec.stateful {
        faults.push("it has an ordinal and is stateless, or the reverse");
    }
    if let Some(ordinal) = placed.ordinal
        && placed.replica_id.as_str() != format!("{}-{ordinal}", placed.container)
    {
        faults.push("its id is not that of its ordinal");
    }
    if machine.spec.capacity_group != spec.capacity_group {
        faults.push("its machine is in another capacity group");
    }
    let mut volumes = spec.volumes.iter();
    let volume = volumes.find(|volume| Some(volume.ordinal) == placed.ordinal);
    if let Some(zone) = volume.and_then(|volume| volume.volume.zone())
        && *zone != machine.spec.zone
    {
        faults.push("its volume is in another zone");
    }
    faults.extend(wrong_gpus(spec, placed, machine));
    if !has_labels(world, machine, spec) {
        faults.push("its machine lacks a label that it requires, or has one that it forbids");
    }
    if placed.host_port.is_some() != spec.load_balancer_target.is_some() {
        faults.push("it has a host port without a load balancer target, or the reverse");
    }
    if placed.host_port.is_some_and(|port| !HOST_PORTS.contains(&port)) {
        faults.push("its host port is not one that replicas may have");
    }
    let cidr = machine.network.cidr;
    let is_inside = match placed.ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX
                .checked_shl(32 - u32::from(cidr.prefix_len()))
                .unwrap_or(0);
            (u32::from(ip) ^ u32::from(cidr.network())) & mask == 0 && HOSTS.contains(&ip.octets()[3])
        }
        IpAddr::V6(_) => false,
    };
    if !is_inside {
        faults.push("its address is not one that its machine gives away");
    }
    let faults = faults.into_iter().map(|fault| Violation::Misplaced {
        replica_id: placed.replica_id.clone(),
        fault,
    });
    let status = match (health, machine.draining_since) {
        (MachineHealthState::Running, None) => None,
        (MachineHealthState::Running, Some(_)) => Some("draining"),
        (MachineHealthState::Unhealthy, _) => Some("silent"),
        (MachineHealthState::Initializing, _) => Some("not heard yet"),
    };
    let status = status.map(|status| Violation::NotRunning {
        replica_id: placed.replica_id.clone(),
        machine_id: placed.machine_id.clone(),
        status,
    });
    faults.chain(status).collect()
}

#[cfg(test)]
pub(crate) mod tests;
