//! What a replica asks of a machine, and what a machine offers, in exact integers.

use std::fmt;

/// Devices that one machine can have at most: the wire's limit (`gpu.count` 1 to 8).
pub const DEVICES_MAX: usize = 8;
/// Thousandths of one device that is wholly free.
pub const DEVICE_MILLI: u16 = 1000;
/// Largest amount of memory or storage that a machine or a request may name: 4 PiB, beyond any machine and far below
/// where sums of 64 bits could overflow.
pub const BYTES_MAX: u64 = 1 << 52;
/// Largest amount of processor time in millionths of a vCPU: 4294 vCPU, so that it fits into 32 bits.
pub const CPU_MAX: u64 = u32::MAX as u64;

/// What is free on a machine, or what it has in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Row {
    /// Millionths of a vCPU.
    pub cpu: u32,
    /// Bytes.
    pub memory: u64,
    /// Bytes.
    pub ephemeral: u64,
    /// Thousandths free of each device; zero where there is none.
    pub devices: [u16; DEVICES_MAX],
}

impl Row {
    /// Devices that are wholly free.
    #[must_use]
    pub fn whole_devices(&self) -> u8 {
        let whole = self.devices.iter().map(|free| u8::from(*free == DEVICE_MILLI));
        whole.sum()
    }

    /// Thousandths free on all devices together.
    #[must_use]
    pub fn free_devices(&self) -> u64 {
        self.devices.iter().map(|free| u64::from(*free)).sum()
    }

    /// Thousandths free on the device with the most of them.
    #[must_use]
    pub fn largest_device(&self) -> u16 {
        self.devices.iter().copied().max().unwrap_or(0)
    }
}

/// Everything about a machine that decides statically who may run there. Machines of one kind share a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Kind {
    pub group: u16,
    pub zone: u16,
    /// Zero for a machine without GPUs; below 64.
    pub gpu_model: u16,
    /// One bit for each label, the architecture among them.
    pub traits: u64,
}

/// The GPU part of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum GpuNeed {
    #[default]
    None,
    /// Devices, each wholly free.
    Whole(u8),
    /// Thousandths of one device, 1 to 999.
    Share(u16),
}

/// What one replica asks for. Two replicas with equal demands are of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Demand {
    /// Millionths of a vCPU.
    pub cpu: u64,
    /// Bytes.
    pub memory: u64,
    /// Bytes of local storage.
    pub ephemeral: u64,
    pub gpu: GpuNeed,
    /// A bit for each GPU model that will do; zero for any.
    pub models: u64,
    pub group: Option<u16>,
    /// Where its disk is.
    pub zone: Option<u16>,
    /// Labels that the machine must have.
    pub required: u64,
    /// Labels that the machine must not have.
    pub forbidden: u64,
    /// Cloud disks that it attaches.
    pub disk_slots: u8,
    pub host_ports: u16,
    pub addresses: u8,
}

/// Why a demand cannot be asked of any fleet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DemandFault {
    #[error("it asks for nothing: neither cpu, memory, storage nor a GPU")]
    Nothing,
    #[error("{dimension} of {asked} is more than {largest}, the largest amount that a machine can report")]
    TooMuch {
        dimension: &'static str,
        asked: u64,
        largest: u64,
    },
    #[error("{0} whole GPUs were asked for; a machine has 1 to 8")]
    WholeDevices(u8),
    #[error("{0} thousandths of a GPU were asked for; a share is 1 to 999, more is a whole device")]
    ShareSize(u16),
    #[error("it names GPU models and asks for no GPU")]
    ModelsWithoutGpu,
    #[error("it both requires and forbids the labels {0:#x}")]
    Contradiction(u64),
}

/// Every fault of a demand; none when it can be asked for.
pub(super) fn demand_faults(demand: &Demand) -> Vec<DemandFault> {
    let mut faults = vec![];
    let is_nothing = demand.cpu == 0 && demand.memory == 0 && demand.ephemeral == 0;
    if is_nothing && demand.gpu == GpuNeed::None {
        faults.push(DemandFault::Nothing);
    }
    let amounts = [
        ("cpu", demand.cpu, CPU_MAX),
        ("memory", demand.memory, BYTES_MAX),
        ("ephemeral storage", demand.ephemeral, BYTES_MAX),
    ];
    faults.extend(too_much(amounts));
    match demand.gpu {
        GpuNeed::Whole(count) if !(1..=8).contains(&count) => faults.push(DemandFault::WholeDevices(count)),
        GpuNeed::Share(milli) if !(1..DEVICE_MILLI).contains(&milli) => {
            faults.push(DemandFault::ShareSize(milli));
        }
        GpuNeed::None if demand.models != 0 => faults.push(DemandFault::ModelsWithoutGpu),
        GpuNeed::None | GpuNeed::Whole(_) | GpuNeed::Share(_) => {}
    }
    let contradiction = demand.required & demand.forbidden;
    if contradiction != 0 {
        faults.push(DemandFault::Contradiction(contradiction));
    }
    faults
}

fn too_much(amounts: [(&'static str, u64, u64); 3]) -> impl Iterator<Item = DemandFault> {
    amounts
        .into_iter()
        .filter(|(_, asked, largest)| asked > largest)
        .map(|(dimension, asked, largest)| DemandFault::TooMuch {
            dimension,
            asked,
            largest,
        })
}

/// What a machine brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Machine {
    pub kind: Kind,
    /// What replicas may use in all, the system's reserve taken off.
    pub usable: Row,
    /// What a machine of this group has by its profile: the denominator of every share. Machines of one kind and one scale
    /// are compared with each other.
    pub scale: Row,
    pub disk_slots: u8,
    pub host_ports: u16,
    pub addresses: u8,
}

/// Why a machine cannot be in a fleet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachineFault {
    #[error("{dimension} of {reported} is more than {largest}, which no machine has")]
    Absurd {
        dimension: &'static str,
        reported: u64,
        largest: u64,
    },
    #[error("device {device} reports {milli} thousandths; it has at most 1000")]
    Device { device: usize, milli: u16 },
    #[error("it has GPUs and no GPU model, or a model and no GPU by its profile")]
    ModelWithoutDevices,
    #[error("GPU model {0} is not below 64")]
    ModelNumber(u16),
    #[error("the fleet has {0} machines already, as many as it can have")]
    FleetFull(usize),
    #[error("the fleet has {0} kinds of machines already, as many as it can have")]
    TooManyKinds(usize),
}

/// Every fault of a machine; none when it can be added.
pub(super) fn machine_faults(machine: &Machine) -> Vec<MachineFault> {
    let mut faults = vec![];
    for row in [&machine.usable, &machine.scale] {
        for (dimension, reported) in [("memory", row.memory), ("ephemeral storage", row.ephemeral)] {
            if reported > BYTES_MAX {
                faults.push(MachineFault::Absurd {
                    dimension,
                    reported,
                    largest: BYTES_MAX,
                });
            }
        }
        let devices = row.devices.iter().enumerate();
        let absurd = devices.filter(|(_, milli)| **milli > DEVICE_MILLI);
        faults.extend(absurd.map(|(device, milli)| MachineFault::Device {
            device,
            milli: *milli,
        }));
    }
    let has_model = machine.kind.gpu_model != 0;
    // All its devices may be taken already, so the profile tells.
    let has_devices = machine.scale.largest_device() > 0;
    if has_devices != has_model || (machine.usable.largest_device() > 0 && !has_model) {
        faults.push(MachineFault::ModelWithoutDevices);
    }
    if machine.kind.gpu_model >= 64 {
        faults.push(MachineFault::ModelNumber(machine.kind.gpu_model));
    }
    faults
}

/// Whether machines of a kind can ever run what the demand asks for.
pub(super) fn is_compatible(demand: &Demand, kind: &Kind) -> bool {
    let group = demand.group.is_none_or(|group| group == kind.group);
    let zone = demand.zone.is_none_or(|zone| zone == kind.zone);
    let traits = demand.required & !kind.traits == 0 && demand.forbidden & kind.traits == 0;
    let model = match demand.gpu {
        GpuNeed::None => true,
        GpuNeed::Whole(_) | GpuNeed::Share(_) => {
            kind.gpu_model != 0 && (demand.models == 0 || demand.models >> kind.gpu_model & 1 == 1)
        }
    };
    group && zone && traits && model
}

/// The devices that a replica holds on its machine: one bit each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct DeviceSet(pub u8);

impl DeviceSet {
    /// The numbers of the devices, rising.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..DEVICES_MAX).filter(move |device| self.0 >> device & 1 == 1)
    }
}

impl fmt::Debug for DeviceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
