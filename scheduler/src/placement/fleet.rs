//! The machines as placement sees them: what is free, what is taken.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use berth_api::container::HOST_PORTS;
use berth_api::id::{ContainerName, GroupId, MachineId, ReplicaId, Zone};
use berth_api::machine::MachineStatus;
use berth_api::units::Bytes;
use berth_api::volume::VolumeTarget;

use super::{Filter, Place, Request, Share};
use crate::world::{Allocated, Machine, World};

/// All machines of a cluster and who writes which volume.
#[derive(Debug, Clone)]
pub struct Fleet {
    slots: Vec<Slot>,
    /// What a new machine of a group offers at most, and how many there may be: (profile, gpu type, maximum).
    pub(super) groups: BTreeMap<GroupId, Group>,
    /// Disk or directory, and the replica that may still write to it.
    writers: BTreeMap<(&'static str, String), ReplicaId>,
}

#[derive(Debug, Clone)]
pub(super) struct Group {
    pub profile: Allocated,
    pub gpu_type: Option<String>,
    pub max_size: u32,
}

/// One machine.
#[derive(Debug, Clone)]
pub struct Slot {
    pub machine_id: MachineId,
    pub group: GroupId,
    pub zone: Zone,
    pub status: MachineStatus,
    pub usable: Allocated,
    pub free: Allocated,
    pub gpu_type: Option<String>,
    /// First three octets of its addresses.
    network: [u8; 3],
    /// Host numbers in use.
    hosts: BTreeSet<u8>,
    next_host: u8,
    host_ports: BTreeSet<u16>,
    counts: BTreeMap<ContainerName, u32>,
}

/// First and last host number given away; see `world::apply`.
const HOSTS: std::ops::RangeInclusive<u8> = crate::world::HOST_MIN..=crate::world::HOST_MAX;

impl Fleet {
    /// The fleet as it stands. Stopping replicas hold what they have, but do not count for the spread.
    #[must_use]
    pub fn of(world: &World) -> Self {
        let slots = world
            .machines()
            .values()
            .map(|machine| Slot::of(world, machine))
            .collect();
        let groups = world.spec().capacity_groups.iter().map(|group| {
            let profile = Allocated {
                cpu: group.profile.cpu,
                memory: group.profile.memory_bytes,
                ephemeral: group.profile.ephemeral_storage_bytes,
                gpus: group.profile.gpu.as_ref().map_or(0, |gpu| gpu.count),
            };
            let group_value = Group {
                profile,
                gpu_type: group.profile.gpu.as_ref().map(|gpu| gpu.kind.clone()),
                max_size: group.max_size,
            };
            (group.group_id.clone(), group_value)
        });
        let writers = world.replicas().values().filter_map(|replica| {
            let volume = world.spec_of(replica).volume(replica.ordinal?)?;
            Some((disk(&volume.volume), replica.replica_id.clone()))
        });
        Self {
            slots,
            groups: groups.collect(),
            writers: writers.collect(),
        }
    }

    /// Machines ordered by id.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The replica that may still write to the volume that the request would write to.
    pub(super) fn volume_writer(&self, request: &Request<'_>) -> Option<ReplicaId> {
        let volume = request.spec.volume(request.ordinal?)?;
        let writer = self.writers.get(&disk(&volume.volume))?;
        (Some(writer) != request.instead_of).then(|| writer.clone())
    }

    /// The largest share of a machine of its group that the request takes: its size.
    pub(super) fn largest_share(&self, request: &Request<'_>) -> Option<Share> {
        let group = self.groups.get(&request.spec.capacity_group)?;
        Share::all(&Allocated::of(request.spec), &group.profile).max()
    }

    /// Gives a request its place on a machine that no filter rules out.
    pub(super) fn take(&mut self, index: usize, request: &Request<'_>) -> Place {
        if let Some(volume) = request.ordinal.and_then(|ordinal| request.spec.volume(ordinal)) {
            let ordinal = request.ordinal.unwrap_or_default();
            let replica_id = ReplicaId::stateful(&request.spec.name, ordinal);
            self.writers.insert(disk(&volume.volume), replica_id);
        }
        let slot = &mut self.slots[index];
        let need = Allocated::of(request.spec);
        slot.free = Allocated {
            cpu: slot.free.cpu.saturating_sub(need.cpu),
            memory: slot.free.memory.saturating_sub(need.memory),
            ephemeral: slot.free.ephemeral.saturating_sub(need.ephemeral),
            gpus: slot.free.gpus.saturating_sub(need.gpus),
        };
        let host = slot.free_host().expect("the address filter found a free one");
        slot.hosts.insert(host);
        slot.next_host = if host == *HOSTS.end() {
            *HOSTS.start()
        } else {
            host + 1
        };
        let host_port = needs_host_port(request).then(|| {
            slot.free_host_port()
                .expect("the host port filter found a free one")
        });
        slot.host_ports.extend(host_port);
        *slot.counts.entry(request.spec.name.clone()).or_default() += 1;
        let [a, b, c] = slot.network;
        Place {
            machine_id: slot.machine_id.clone(),
            ip: IpAddr::from([a, b, c, host]),
            host_port,
        }
    }
}

impl Slot {
    fn of(world: &World, machine: &Machine) -> Self {
        let [a, b, c, _] = machine.network.cidr.network().octets();
        let mut slot = Self {
            machine_id: machine.spec.machine_id.clone(),
            group: machine.spec.capacity_group.clone(),
            zone: machine.spec.zone.clone(),
            status: machine.status(),
            usable: machine.usable(),
            free: machine.free(),
            gpu_type: machine.spec.capacity.gpu.as_ref().map(|gpu| gpu.kind.clone()),
            network: [a, b, c],
            hosts: BTreeSet::new(),
            next_host: machine.next_host,
            host_ports: BTreeSet::new(),
            counts: BTreeMap::new(),
        };
        for replica in world.replicas_on(&machine.spec.machine_id) {
            if let IpAddr::V4(address) = replica.ip {
                slot.hosts.insert(address.octets()[3]);
            }
            slot.host_ports.extend(replica.host_port);
            if replica.is_live() {
                *slot.counts.entry(replica.container.clone()).or_default() += 1;
            }
        }
        slot
    }

    /// The first filter that rules the machine out; none when it can take the replica.
    #[must_use]
    pub fn verdict(&self, request: &Request<'_>) -> Option<Filter> {
        let spec = request.spec;
        let need = Allocated::of(spec);
        let gpu = spec.resources.gpu.as_ref();
        let zone = request
            .ordinal
            .and_then(|ordinal| spec.volume(ordinal)?.volume.zone());
        let ruled_out = [
            (Filter::Group, self.group != spec.capacity_group),
            (Filter::Status, self.status != MachineStatus::Running),
            (Filter::Cpu, need.cpu > self.free.cpu),
            (Filter::Memory, need.memory > self.free.memory),
            (Filter::Ephemeral, need.ephemeral > self.free.ephemeral),
            (
                Filter::GpuType,
                gpu.is_some_and(|gpu| self.gpu_type.as_ref() != Some(&gpu.kind)),
            ),
            (Filter::GpuCount, need.gpus > self.free.gpus),
            (Filter::Zone, zone.is_some_and(|zone| *zone != self.zone)),
            (
                Filter::HostPort,
                needs_host_port(request) && self.free_host_port().is_none(),
            ),
            (Filter::Address, self.free_host().is_none()),
        ];
        ruled_out
            .into_iter()
            .find(|(_, is_out)| *is_out)
            .map(|(filter, _)| filter)
    }

    /// What is left of the scarcest dimension once the request is placed.
    pub(super) fn scarcest_after(&self, request: &Request<'_>) -> Option<Share> {
        let need = Allocated::of(request.spec);
        let left = Allocated {
            cpu: self.free.cpu.saturating_sub(need.cpu),
            memory: self.free.memory.saturating_sub(need.memory),
            ephemeral: Bytes::new(self.free.ephemeral.get().saturating_sub(need.ephemeral.get())),
            gpus: self.free.gpus.saturating_sub(need.gpus),
        };
        Share::all(&left, &self.usable).min()
    }

    /// Live replicas of a container on this machine.
    #[must_use]
    pub fn count_of(&self, container: &ContainerName) -> u32 {
        self.counts.get(container).copied().unwrap_or(0)
    }

    /// The next address in turn: one that was given back is used again as late as possible.
    fn free_host(&self) -> Option<u8> {
        let (low, high) = (*HOSTS.start(), *HOSTS.end());
        (self.next_host..=high)
            .chain(low..self.next_host)
            .find(|host| !self.hosts.contains(host))
    }

    fn free_host_port(&self) -> Option<u16> {
        HOST_PORTS
            .into_iter()
            .find(|port| !self.host_ports.contains(port))
    }
}

/// Only what a load balancer must reach gets a port of its machine.
fn needs_host_port(request: &Request<'_>) -> bool {
    request.spec.load_balancer_target.is_some()
}

/// What identifies a volume: two targets with one disk are one volume.
fn disk(volume: &VolumeTarget) -> (&'static str, String) {
    (volume.kind(), volume.identity().to_owned())
}
