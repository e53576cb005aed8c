//! The machines of one kind, as a structure of arrays, and the log of which of them changed.
//!
//! What one question reads lies together: processor time and the small counts in one array, memory and storage in another,
//! devices in a third, so that a machine out of cache costs two or three lines and not one for each number.
//!
//! Invariant: every array has one element for each slot. A slot stays with its machine for ever, so an index kept for one
//! class of requests needs nothing but the numbers of the slots that changed since it looked last.

use super::demand::{DEVICE_MILLI, Demand, DeviceSet, GpuNeed, Kind, Machine, Row};
use super::score::slack;

/// Changes that the log of a cell remembers. An index that fell further behind is made anew.
pub(super) const LOG_LEN: usize = 1 << 14;

/// What is free of a machine in small numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Small {
    /// Millionths of a vCPU.
    pub cpu: u32,
    pub host_ports: u16,
    /// What [`slack()`] says of the machine now.
    pub slack: u16,
    pub disk_slots: u8,
    pub addresses: u8,
    /// Whether the machine takes replicas now.
    pub is_open: bool,
}

/// What is free of a machine in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Large {
    pub memory: u64,
    pub ephemeral: u64,
}

/// What every score in a cell refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CellFacts {
    pub kind: Kind,
    pub scale: Row,
}

#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub facts: CellFacts,
    pub small: Vec<Small>,
    pub large: Vec<Large>,
    pub devices: Vec<[u16; 8]>,
    /// The machine in each slot: its place in the order of the fleet.
    pub machines: Vec<u32>,
    /// Ring of changed slots; element `n` of all time is at `n % LOG_LEN`.
    log: Vec<u32>,
    /// Changes so far.
    pub changes: u64,
}

/// Bytes that the arrays of a cell hold for each machine.
pub const BYTES_PER_MACHINE: usize =
    size_of::<Small>() + size_of::<Large>() + size_of::<[u16; 8]>() + size_of::<u32>();
const _: () = assert!(BYTES_PER_MACHINE <= 64, "the promise of 64 bytes a machine");

impl Cell {
    pub(super) fn new(facts: CellFacts) -> Self {
        Self {
            facts,
            small: vec![],
            large: vec![],
            devices: vec![],
            machines: vec![],
            log: vec![],
            changes: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.small.len()
    }

    /// Adds a machine that takes replicas; gives its slot.
    pub(super) fn push(&mut self, machine: u32, facts: &Machine) -> u32 {
        let slot = u32::try_from(self.len()).expect("a fleet has fewer than 2^32 machines");
        self.small.push(Small {
            cpu: facts.usable.cpu,
            host_ports: facts.host_ports,
            slack: slack(&self.facts.scale, &facts.usable),
            disk_slots: facts.disk_slots,
            addresses: facts.addresses,
            is_open: true,
        });
        self.large.push(Large {
            memory: facts.usable.memory,
            ephemeral: facts.usable.ephemeral,
        });
        self.devices.push(facts.usable.devices);
        self.machines.push(machine);
        self.note(slot);
        slot
    }

    pub(super) fn row(&self, slot: u32) -> Row {
        let slot = at(slot);
        Row {
            cpu: self.small[slot].cpu,
            memory: self.large[slot].memory,
            ephemeral: self.large[slot].ephemeral,
            devices: self.devices[slot],
        }
    }

    /// What is free has changed.
    fn changed(&mut self, slot: u32) {
        self.small[at(slot)].slack = slack(&self.facts.scale, &self.row(slot));
        self.note(slot);
    }

    /// Remembers that a slot changed.
    pub(super) fn note(&mut self, slot: u32) {
        let position = usize::try_from(self.changes % LOG_LEN as u64).expect("below the length of the log");
        match self.log.get_mut(position) {
            Some(known) => *known = slot,
            // Full only once so many changes came; a decision changes nothing, so it never allocates here.
            None => self.log.push(slot),
        }
        self.changes += 1;
    }

    /// The slot of a change that the log still remembers.
    pub(super) fn changed_slot(&self, change: u64) -> u32 {
        let position = usize::try_from(change % LOG_LEN as u64).expect("below the length of the log");
        self.log[position]
    }

    /// Whether the dynamic part of a demand fits into what is free: everything but the devices.
    pub(super) fn fits_plain(&self, slot: usize, demand: &Demand) -> bool {
        let (small, large) = (&self.small[slot], &self.large[slot]);
        small.is_open
            && u64::from(small.cpu) >= demand.cpu
            && large.memory >= demand.memory
            && large.ephemeral >= demand.ephemeral
            && small.disk_slots >= demand.disk_slots
            && small.host_ports >= demand.host_ports
            && small.addresses >= demand.addresses
    }

    /// Takes what the demand asks for.
    ///
    /// # Panics
    /// When it does not fit: the decision was wrong.
    pub(super) fn take(&mut self, slot: u32, demand: &Demand, devices: DeviceSet) {
        let index = at(slot);
        assert!(
            self.fits_plain(index, demand),
            "only what fits is taken: {:?} of {:?}",
            demand,
            self.row(slot)
        );
        let (small, large) = (&mut self.small[index], &mut self.large[index]);
        small.cpu -= u32::try_from(demand.cpu).expect("a class asks for at most CPU_MAX");
        small.disk_slots -= demand.disk_slots;
        small.addresses -= demand.addresses;
        small.host_ports -= demand.host_ports;
        large.memory -= demand.memory;
        large.ephemeral -= demand.ephemeral;
        let free = &mut self.devices[index];
        assert_device_count(demand.gpu, devices);
        for device in devices.iter() {
            let milli = milli_of(demand.gpu);
            assert!(
                free[device] >= milli,
                "device {device} has {} free, {milli} taken",
                free[device]
            );
            free[device] -= milli;
        }
        self.changed(slot);
    }

    /// Gives back what [`Self::take`] took.
    ///
    /// # Panics
    /// When a device would have more free than it is.
    pub(super) fn release(&mut self, slot: u32, demand: &Demand, devices: DeviceSet) {
        let index = at(slot);
        let (small, large) = (&mut self.small[index], &mut self.large[index]);
        let cpu = u32::try_from(demand.cpu).expect("a class asks for at most CPU_MAX");
        small.cpu = small
            .cpu
            .checked_add(cpu)
            .expect("no more comes back than was taken");
        small.disk_slots += demand.disk_slots;
        small.addresses += demand.addresses;
        small.host_ports += demand.host_ports;
        large.memory += demand.memory;
        large.ephemeral += demand.ephemeral;
        let free = &mut self.devices[index];
        assert_device_count(demand.gpu, devices);
        for device in devices.iter() {
            free[device] += milli_of(demand.gpu);
            assert!(free[device] <= DEVICE_MILLI, "no more comes back than was taken");
        }
        self.changed(slot);
    }
}

fn assert_device_count(need: GpuNeed, devices: DeviceSet) {
    let count = devices.0.count_ones();
    let expected = match need {
        GpuNeed::None => 0,
        GpuNeed::Whole(count) => u32::from(count),
        GpuNeed::Share(_) => 1,
    };
    assert!(
        count == expected,
        "{expected} devices were asked for and {count} given"
    );
}

/// What each device of the set gives.
fn milli_of(need: GpuNeed) -> u16 {
    match need {
        GpuNeed::None => 0,
        GpuNeed::Whole(_) => DEVICE_MILLI,
        GpuNeed::Share(milli) => milli,
    }
}

/// A slot as an index.
pub(super) fn at(slot: u32) -> usize {
    usize::try_from(slot).expect("32 bits fit into a usize")
}
