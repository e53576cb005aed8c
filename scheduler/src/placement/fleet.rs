//! A cluster as the engine sees it: names become numbers, machines become rows of what is free.
//!
//! Beside the engine's arrays a fleet keeps what only a chosen machine needs: which addresses and host ports are free.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use berth_api::cluster::Platform;
use berth_api::container::{ContainerSpec, HOST_PORTS};
use berth_api::id::{ContainerName, GroupId, Label, MachineId, ReplicaId, Zone};
use berth_api::machine::{GpuDevice, MachineStatus};
use berth_api::placement::{CLUSTER_LABELS_MAX, PlacementRules};
use berth_api::volume::VolumeTarget;

use super::engine::{
    Ask, CPU_MAX, ClassId, DEVICE_MILLI, DEVICES_MAX, Demand, DemandFault, Engine, GpuNeed, Kind, MachineIdx,
    Mix, Row, Spread, SpreadId, Typical,
};
use super::{Chosen, Place, Request, Rule};
use crate::world::{Allocated, Container, DEVICES, HOST_MAX, HOST_MIN, Machine, World};

const _: () = assert!(
    DEVICES_MAX == DEVICES,
    "the engine has a column for every device of a machine"
);

/// All machines of a cluster and who writes which volume.
#[derive(Debug, Clone)]
pub struct Fleet {
    pub(super) engine: Engine,
    slots: Vec<Slot>,
    by_id: BTreeMap<MachineId, usize>,
    /// The slot of each machine that the engine knows.
    by_index: Vec<usize>,
    /// What a new machine of a group offers at most, and how many there may be.
    pub(super) groups: BTreeMap<GroupId, Group>,
    /// Disk or directory, and the replica that may still write to it.
    writers: BTreeMap<(&'static str, String), ReplicaId>,
    spreads: BTreeMap<ContainerName, SpreadId>,
    numbers: Numbers,
    disk_slots: u8,
}

#[derive(Debug, Clone)]
pub(super) struct Group {
    pub profile: Allocated,
    pub gpu_type: Option<String>,
    pub max_size: u32,
    pub labels: BTreeSet<Label>,
}

/// The engine's numbers for names.
#[derive(Debug, Clone, Default)]
struct Numbers {
    groups: BTreeMap<GroupId, u16>,
    zones: BTreeMap<Zone, u16>,
    /// From 1: zero is a machine without GPUs.
    gpu_types: BTreeMap<String, u16>,
    /// Only those that containers name: no other can matter.
    labels: BTreeMap<Label, u8>,
}

/// One machine.
#[derive(Debug, Clone)]
pub struct Slot {
    pub machine_id: MachineId,
    pub group: GroupId,
    pub zone: Zone,
    pub status: MachineStatus,
    /// What replicas may use in all.
    pub usable: Allocated,
    pub gpu_type: Option<String>,
    /// Those that containers name.
    pub labels: BTreeSet<Label>,
    /// A replica on it wants it for itself.
    pub is_held_alone: bool,
    /// None for a machine whose report is absurd: nothing is placed there.
    pub(super) index: Option<MachineIdx>,
    /// First three octets of its addresses.
    network: [u8; 3],
    /// Host numbers in use, one bit each.
    hosts: [u64; 4],
    next_host: u8,
    host_ports: BTreeSet<u16>,
}

/// A machine that a fleet is to have besides those of the world: one that might be bought.
#[derive(Debug, Clone)]
pub struct Newcomer {
    pub machine_id: MachineId,
    pub group: GroupId,
    pub zone: Zone,
    pub usable: Allocated,
    pub gpu_type: Option<String>,
}

/// Cloud disks that a machine can hold beside its own, when nobody says better: what the CSI drivers of the clouds assume
/// for a machine type they do not know (EBS 25 on Nitro, GCE PD 127, Azure Disk 16).
pub(crate) fn disk_slots(platform: Platform) -> u8 {
    match platform {
        Platform::Aws => 25,
        Platform::Gcp => 127,
        Platform::Azure => 16,
        Platform::Local => u8::MAX,
    }
}

/// What is likely to be asked of machines with GPUs: what the cluster's containers want of them, each replica once.
fn mix_of(world: &World, numbers: &mut Numbers) -> Mix {
    let has_gpus = |name: &GroupId| {
        let group = world
            .spec()
            .capacity_groups
            .iter()
            .find(|group| group.group_id == *name);
        group.is_some_and(|group| group.profile.gpu.is_some())
    };
    let containers = world.containers().values();
    let asking =
        containers.filter(|container| has_gpus(&container.spec.capacity_group) && container.wanted() > 0);
    let shapes = asking.map(|container| {
        let amounts = Allocated::of(&container.spec);
        let gpu = container.spec.resources.gpu.as_ref();
        Typical {
            cpu: amounts.cpu.micros(),
            memory: amounts.memory.get(),
            gpu: gpu_need(&amounts),
            models: gpu.map_or(0, |gpu| model_bit(number(&mut numbers.gpu_types, &gpu.kind, 1))),
            weight: container.wanted().into(),
        }
    });
    Mix::new(&shapes.collect::<Vec<_>>())
}

fn gpu_need(amounts: &Allocated) -> GpuNeed {
    match (amounts.gpus, amounts.gpu_share_milli) {
        (0, 0) => GpuNeed::None,
        (0, share) => GpuNeed::Share(u16::try_from(share).unwrap_or(u16::MAX)),
        (gpus, _) => GpuNeed::Whole(u8::try_from(gpus).unwrap_or(u8::MAX)),
    }
}

/// The bit of a GPU model. Models beyond the engine's 64 get that of the machines without GPUs, which none can use.
fn model_bit(model: u16) -> u64 {
    1u64.checked_shl(model.into()).unwrap_or(1)
}

/// A container's replicas spread over this many machines before any of them takes more.
const SPREAD_MACHINES: u32 = 3;

/// From this many of a container's replicas on a machine, others are preferred: a third of them, rounded up, or half of two.
pub(crate) fn machine_share(replicas: u32) -> u32 {
    let machines = replicas.clamp(1, SPREAD_MACHINES);
    replicas.div_ceil(machines).max(1)
}

impl Fleet {
    /// The fleet as it stands. Stopping replicas hold what they have, but do not count for the spread.
    #[must_use]
    pub fn of(world: &World) -> Self {
        let groups = world.spec().capacity_groups.iter().map(|group| {
            let profile = Allocated {
                cpu: group.profile.cpu,
                memory: group.profile.memory_bytes,
                ephemeral: group.profile.ephemeral_storage_bytes,
                gpus: group.profile.gpu.as_ref().map_or(0, |gpu| gpu.count),
                gpu_share_milli: 0,
            };
            let group_value = Group {
                profile,
                gpu_type: group.profile.gpu.as_ref().map(|gpu| gpu.kind.clone()),
                max_size: group.max_size,
                labels: group.labels.clone(),
            };
            (group.group_id.clone(), group_value)
        });
        let writers = world.replicas().values().filter_map(|replica| {
            let volume = world.spec_of(replica).volume(replica.ordinal?)?;
            Some((disk(&volume.volume), replica.replica_id.clone()))
        });
        let mut numbers = Numbers::default();
        let mix = mix_of(world, &mut numbers);
        numbers.labels = label_numbers(world);
        let mut fleet = Self {
            engine: Engine::with_mix(mix),
            slots: vec![],
            by_id: BTreeMap::new(),
            by_index: vec![],
            groups: groups.collect(),
            writers: writers.collect(),
            spreads: BTreeMap::new(),
            numbers,
            disk_slots: disk_slots(world.spec().platform),
        };
        for (name, container) in world.containers() {
            fleet.add_container(name, container);
        }
        for machine in world.machines().values() {
            fleet.add_machine(world, machine);
        }
        fleet
    }

    fn add_container(&mut self, name: &ContainerName, container: &Container) {
        let rule = Spread {
            machine_share: machine_share(container.wanted()),
            machine_max: u32::MAX,
            zones: true,
        };
        let id = self.engine.spread(rule);
        self.spreads.insert(name.clone(), id);
    }

    fn add_machine(&mut self, world: &World, machine: &Machine) {
        let mut slot = Slot::of(machine);
        let labels = world.labels(machine).into_iter();
        slot.labels = labels
            .filter(|label| self.numbers.labels.contains_key(*label))
            .cloned()
            .collect();
        let mut disks = 0u8;
        for replica in world.replicas_on(&machine.spec.machine_id) {
            slot.is_held_alone |= world.spec_of(replica).is_exclusive();
            if let IpAddr::V4(address) = replica.ip {
                slot.take_host(address.octets()[3]);
            }
            slot.host_ports.extend(replica.host_port);
            let volume = replica
                .ordinal
                .and_then(|ordinal| world.spec_of(replica).volume(ordinal));
            if volume.is_some_and(|volume| needs_slot(&volume.volume)) {
                disks = disks.saturating_add(1);
            }
        }
        self.add_slot(slot, &machine.free(), world.free_devices(machine), disks);
        let index = self.slots.last().and_then(|slot| slot.index);
        let live = world
            .replicas_on(&machine.spec.machine_id)
            .filter(|replica| replica.is_live());
        for replica in live {
            if let (Some(index), Some(spread)) = (index, self.spreads.get(&replica.container)) {
                self.engine.count_in(*spread, index);
            }
        }
    }

    /// Adds a machine that the world does not have, as if it ran.
    pub fn add_newcomer(&mut self, newcomer: Newcomer) {
        let labels = self.groups.get(&newcomer.group).map(|group| group.labels.clone());
        let slot = Slot {
            machine_id: newcomer.machine_id,
            labels: labels.unwrap_or_default(),
            is_held_alone: false,
            group: newcomer.group,
            zone: newcomer.zone,
            status: MachineStatus::Running,
            usable: newcomer.usable,
            gpu_type: newcomer.gpu_type,
            index: None,
            network: [0; 3],
            hosts: [0; 4],
            next_host: HOST_MIN,
            host_ports: BTreeSet::new(),
        };
        self.add_slot(slot, &newcomer.usable, whole_devices(newcomer.usable.gpus), 0);
    }

    /// `devices` are thousandths that are free of each; none when there are more than any machine has.
    fn add_slot(&mut self, mut slot: Slot, free: &Allocated, devices: Option<[u16; DEVICES_MAX]>, disks: u8) {
        let group = self.groups.get(&slot.group);
        let gpu_model = slot
            .gpu_type
            .as_ref()
            .filter(|_| slot.usable.gpus > 0)
            .map_or(0, |gpu_type| number(&mut self.numbers.gpu_types, gpu_type, 1));
        let kind = Kind {
            group: number(&mut self.numbers.groups, &slot.group, 0),
            zone: number(&mut self.numbers.zones, &slot.zone, 0),
            gpu_model,
            traits: self.bits(&slot.labels),
        };
        // Machines of a group are compared by the profile of the group, so that what each of them reports, which differs
        // by kilobytes, makes no kinds of its own.
        let profile = group.map_or(slot.usable, |group| group.profile);
        let (scale_devices, devices) = match gpu_model {
            0 => (whole_devices(0), whole_devices(0)),
            _ => (whole_devices(profile.gpus.max(1)), devices),
        };
        let scale = scale_devices.and_then(|devices| row_of(&profile, devices));
        let usable = devices.and_then(|devices| row_of(free, devices));
        if let (Some(scale), Some(usable)) = (scale, usable) {
            let machine = super::engine::Machine {
                kind,
                usable,
                scale,
                disk_slots: self.disk_slots.saturating_sub(disks),
                host_ports: slot.free_host_ports(),
                // One that wants the machine for itself takes all of them, and so does any other from it.
                addresses: if slot.is_held_alone { 0 } else { slot.free_hosts() },
            };
            // An absurd report leaves the machine out, and the explanations say so.
            slot.index = self.engine.add_machine(&machine).ok();
        }
        if let Some(index) = slot.index {
            self.engine.set_open(index, slot.status == MachineStatus::Running);
            self.by_index.push(self.slots.len());
        }
        self.by_id.insert(slot.machine_id.clone(), self.slots.len());
        self.slots.push(slot);
    }

    /// From now on nothing more is placed on a machine.
    pub fn close(&mut self, machine_id: &MachineId) {
        if let Some(slot) = self.by_id.get(machine_id).map(|number| &mut self.slots[*number]) {
            slot.status = MachineStatus::Draining;
            if let Some(index) = slot.index {
                self.engine.set_open(index, false);
            }
        }
    }

    /// Machines in the order in which they were added: those of a world by id.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// What is free on a machine; none when its report is absurd.
    #[must_use]
    pub fn free(&self, slot: &Slot) -> Option<Allocated> {
        let row = self.engine.row(slot.index?);
        Some(Allocated {
            cpu: berth_api::units::Cpu::from_micros(row.cpu.into()),
            memory: berth_api::units::Bytes::new(row.memory),
            ephemeral: berth_api::units::Bytes::new(row.ephemeral),
            gpus: row.whole_devices().into(),
            gpu_share_milli: row
                .devices
                .iter()
                .filter(|free| **free < DEVICE_MILLI)
                .max()
                .map_or(0, |free| (*free).into()),
        })
    }

    /// Disk slots, addresses and host ports that are free on a machine.
    pub(super) fn counts(&self, slot: &Slot) -> Option<(u8, u8, u16)> {
        slot.index.map(|index| self.engine.counts(index))
    }

    /// The replica that may still write to the volume that the request would write to.
    pub(super) fn volume_writer(&self, request: &Request<'_>) -> Option<ReplicaId> {
        let volume = request.spec.volume(request.ordinal?)?;
        let writer = self.writers.get(&disk(&volume.volume))?;
        (Some(writer) != request.instead_of).then(|| writer.clone())
    }

    fn bits<'a>(&self, labels: impl IntoIterator<Item = &'a Label>) -> u64 {
        let numbers = labels
            .into_iter()
            .filter_map(|label| self.numbers.labels.get(label));
        numbers.fold(0, |bits, number| bits | 1 << number)
    }

    /// Whether a machine has what the rules require and nothing that they forbid.
    pub(super) fn is_allowed(rules: Option<&PlacementRules>, labels: &BTreeSet<Label>) -> bool {
        rules.is_none_or(|rules| rules.allow(&labels.iter().collect()))
    }

    /// What the request asks of the engine.
    pub(super) fn demand(&self, request: &Request<'_>) -> Demand {
        let spec = request.spec;
        let volume = request.ordinal.and_then(|ordinal| spec.volume(ordinal));
        let known = |number: Option<&u16>| Some(number.copied().unwrap_or(NOWHERE));
        let rules = spec.placement.as_ref();
        let zone = volume.and_then(|volume| volume.volume.zone());
        let gpu_type = spec.resources.gpu.as_ref().map(|gpu| &gpu.kind);
        let model = gpu_type.map(|kind| self.numbers.gpu_types.get(kind).copied());
        let mut binding = rules
            .into_iter()
            .flat_map(|rules| rules.requires.iter().chain(&rules.forbids));
        let is_numbered = binding.all(|label| self.numbers.labels.contains_key(label));
        Demand {
            cpu: request.amounts.cpu.micros(),
            memory: request.amounts.memory.get(),
            ephemeral: request.amounts.ephemeral.get(),
            gpu: gpu_need(&request.amounts),
            // A type that no machine has: bit 0 is the machines without GPUs.
            models: model.map_or(0, |model| model_bit(model.unwrap_or(0))),
            group: known(
                self.numbers
                    .groups
                    .get(&spec.capacity_group)
                    .filter(|_| is_numbered),
            ),
            zone: zone.and_then(|zone| known(self.numbers.zones.get(zone))),
            required: rules.map_or(0, |rules| self.bits(&rules.requires)),
            forbidden: rules.map_or(0, |rules| self.bits(&rules.forbids)),
            disk_slots: u8::from(volume.is_some_and(|volume| needs_slot(&volume.volume))),
            host_ports: u16::from(needs_host_port(spec)),
            addresses: if spec.is_exclusive() { HOSTS } else { 1 },
        }
    }

    /// The engine's form of a request.
    pub(super) fn ask(&mut self, request: &Request<'_>) -> Result<Ask, Vec<DemandFault>> {
        let demand = self.demand(request);
        let class: ClassId = self.engine.class(&demand)?;
        let prefer = request
            .prefer
            .and_then(|id| self.slots[*self.by_id.get(id)?].index);
        let ask = Ask {
            class,
            spread: self.spreads.get(&request.spec.name).copied(),
            prefer,
        };
        Ok(self.preferring(ask, request).unwrap_or(ask))
    }

    /// The request with as many of the labels that it prefers, from the front, as any machine with room has; none when it
    /// prefers none, or has none of them.
    fn preferring(&mut self, ask: Ask, request: &Request<'_>) -> Option<Ask> {
        let preferred = &request.spec.placement.as_ref()?.prefers;
        let demand = *self.engine.demand(ask.class);
        for count in (1..=preferred.len()).rev() {
            let required = demand.required | self.bits(&preferred[..count]);
            let class = self.engine.class(&Demand { required, ..demand }).ok()?;
            let attempt = Ask { class, ..ask };
            if self.engine.choose(&attempt).is_some() {
                return Some(attempt);
            }
        }
        None
    }

    /// Gives a request its place on a machine that the engine chose.
    pub(super) fn take(&mut self, choice: super::engine::Choice, ask: &Ask, request: &Request<'_>) -> Place {
        let chosen = self.chosen(choice, ask);
        self.engine.take(ask, choice);
        if let Some(volume) = request.ordinal.and_then(|ordinal| request.spec.volume(ordinal)) {
            let ordinal = request.ordinal.unwrap_or_default();
            let replica_id = ReplicaId::stateful(&request.spec.name, ordinal);
            self.writers.insert(disk(&volume.volume), replica_id);
        }
        let number = usize::try_from(choice.machine.0).expect("32 bits fit into a usize");
        let slot = &mut self.slots[self.by_index[number]];
        let host = slot.free_host().expect("the engine counts the free addresses");
        slot.take_host(host);
        slot.is_held_alone |= request.spec.is_exclusive();
        slot.next_host = if host == HOST_MAX { HOST_MIN } else { host + 1 };
        let host_port = needs_host_port(request.spec).then(|| {
            slot.free_host_port()
                .expect("the engine counts the free host ports")
        });
        slot.host_ports.extend(host_port);
        let [a, b, c] = slot.network;
        Place {
            machine_id: slot.machine_id.clone(),
            ip: IpAddr::from([a, b, c, host]),
            host_port,
            devices: devices(choice, &request.amounts),
            chosen,
        }
    }

    /// Why the engine chose this machine: what its order of machines says of it.
    fn chosen(&mut self, choice: super::engine::Choice, ask: &Ask) -> Chosen {
        let is_own_choice = self.engine.choose(ask) == Some(choice);
        let facts = self.engine.facts(choice.machine);
        let demand = self.engine.demand(ask.class);
        let row = self.engine.row(choice.machine);
        let (count, zone_count, share) = ask.spread.map_or((0, 0, 1), |spread| {
            let count = self.engine.count_on(spread, choice.machine);
            let share = self.engine.spread_rule(spread).machine_share;
            (count, self.engine.count_in_zone(spread, facts.kind.zone), share)
        });
        let permille = |left: u64, whole: u64| (whole > 0).then(|| left.saturating_mul(1000) / whole);
        let left = [
            permille(
                u64::from(row.cpu).saturating_sub(demand.cpu),
                facts.scale.cpu.into(),
            ),
            permille(row.memory.saturating_sub(demand.memory), facts.scale.memory),
        ];
        let left = left.into_iter().flatten().min().unwrap_or(0);
        let rule = if ask.prefer == Some(choice.machine) {
            Rule::Returned
        } else if !is_own_choice {
            Rule::Together
        } else if count >= share {
            Rule::Crowded
        } else {
            Rule::Fullest
        };
        Chosen {
            rule,
            machine_replicas: count,
            zone_replicas: zone_count,
            left_permille: u16::try_from(left).unwrap_or(u16::MAX),
        }
    }
}

/// A bit for each label that a container names; also as it was declared before, since while a rollout is paused its replicas
/// may run that. Those of present declarations come first: a cluster refuses to name more of them than there are bits
/// (`CLUSTER_LABELS_MAX`). What asks for a former label beyond that has no machine.
fn label_numbers(world: &World) -> BTreeMap<Label, u8> {
    let containers = || world.containers().values();
    let labels = |spec: &'_ ContainerSpec| -> Vec<Label> {
        let rules = spec.placement.iter();
        rules.flat_map(PlacementRules::labels).cloned().collect()
    };
    let present: BTreeSet<Label> = containers().flat_map(|known| labels(&known.spec)).collect();
    let former = containers()
        .flat_map(|known| known.older.values())
        .flat_map(labels);
    let former: BTreeSet<Label> = former.filter(|label| !present.contains(label)).collect();
    let named = present.into_iter().chain(former).take(CLUSTER_LABELS_MAX);
    named.zip(0..).collect()
}

/// Addresses of a machine that nobody has.
const HOSTS: u8 = HOST_MAX - HOST_MIN + 1;

/// The number of a group or a zone that no machine is in.
const NOWHERE: u16 = u16::MAX;

/// The number of a name, a new one for a new name. Numbers stop rising before [`NOWHERE`]; a cluster has at most ten groups
/// and a handful of zones and GPU types.
fn number<K: Ord + Clone>(numbers: &mut BTreeMap<K, u16>, name: &K, first: u16) -> u16 {
    let next = first.saturating_add(u16::try_from(numbers.len()).unwrap_or(NOWHERE - first));
    *numbers
        .entry(name.clone())
        .or_insert_with(|| next.min(NOWHERE - 1))
}

/// As many devices, wholly free; none when there are more than any machine has.
fn whole_devices(gpus: u32) -> Option<[u16; DEVICES_MAX]> {
    let mut devices = [0; DEVICES_MAX];
    devices.get_mut(..usize::try_from(gpus).ok()?)?.fill(DEVICE_MILLI);
    Some(devices)
}

/// What the engine gives a request of a machine's devices.
fn devices(choice: super::engine::Choice, amounts: &Allocated) -> Vec<GpuDevice> {
    let milli = match gpu_need(amounts) {
        GpuNeed::Share(milli) => milli,
        GpuNeed::None | GpuNeed::Whole(_) => DEVICE_MILLI,
    };
    let device = |index| GpuDevice {
        index: u8::try_from(index).expect("a machine has at most eight devices"),
        milli,
    };
    choice.devices.iter().map(device).collect()
}

/// Amounts as the engine keeps them; none when they are absurd.
fn row_of(amounts: &Allocated, devices: [u16; DEVICES_MAX]) -> Option<Row> {
    if amounts.cpu.micros() > CPU_MAX {
        return None;
    }
    Some(Row {
        cpu: u32::try_from(amounts.cpu.micros()).ok()?,
        memory: amounts.memory.get(),
        ephemeral: amounts.ephemeral.get(),
        devices,
    })
}

impl Slot {
    fn of(machine: &Machine) -> Self {
        let [a, b, c, _] = machine.network.cidr.network().octets();
        Self {
            machine_id: machine.spec.machine_id.clone(),
            group: machine.spec.capacity_group.clone(),
            zone: machine.spec.zone.clone(),
            status: machine.status(),
            usable: machine.usable(),
            gpu_type: machine.spec.capacity.gpu.as_ref().map(|gpu| gpu.kind.clone()),
            labels: BTreeSet::new(),
            is_held_alone: false,
            index: None,
            network: [a, b, c],
            hosts: [0; 4],
            next_host: machine.next_host,
            host_ports: BTreeSet::new(),
        }
    }

    /// Whether nothing is on it.
    pub(super) fn is_empty(&self) -> bool {
        self.free_hosts() == HOSTS
    }

    fn take_host(&mut self, host: u8) {
        self.hosts[usize::from(host / 64)] |= 1 << (host % 64);
    }

    fn is_host_free(&self, host: u8) -> bool {
        self.hosts[usize::from(host / 64)] >> (host % 64) & 1 == 0
    }

    fn free_hosts(&self) -> u8 {
        let free = (HOST_MIN..=HOST_MAX).filter(|host| self.is_host_free(*host));
        u8::try_from(free.count()).unwrap_or(u8::MAX)
    }

    /// The next address in turn: one that was given back is used again as late as possible.
    fn free_host(&self) -> Option<u8> {
        (self.next_host..=HOST_MAX)
            .chain(HOST_MIN..self.next_host)
            .find(|host| self.is_host_free(*host))
    }

    fn free_host_ports(&self) -> u16 {
        let taken = u16::try_from(self.host_ports.len()).unwrap_or(u16::MAX);
        u16::try_from(HOST_PORTS.count())
            .unwrap_or(u16::MAX)
            .saturating_sub(taken)
    }

    fn free_host_port(&self) -> Option<u16> {
        HOST_PORTS
            .into_iter()
            .find(|port| !self.host_ports.contains(port))
    }
}

/// Only what a load balancer must reach gets a port of its machine.
pub(super) fn needs_host_port(spec: &ContainerSpec) -> bool {
    spec.load_balancer_target.is_some()
}

/// A directory that every machine can reach takes no slot for disks.
pub(crate) fn needs_slot(volume: &VolumeTarget) -> bool {
    volume.zone().is_some()
}

/// The volume that a request would write to.
pub(super) fn disk_of(request: &Request<'_>) -> Option<(&'static str, String)> {
    let volume = request.spec.volume(request.ordinal?)?;
    Some(disk(&volume.volume))
}

/// What identifies a volume: two targets with one disk are one volume.
fn disk(volume: &VolumeTarget) -> (&'static str, String) {
    (volume.kind(), volume.identity().to_owned())
}
