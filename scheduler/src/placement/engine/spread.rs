//! Where the replicas of one container are, for those who want them apart.

use std::collections::BTreeMap;

/// How far apart the replicas of a container want to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    /// From this many on a machine, another machine with fewer is preferred to it. Zero means the same as 1.
    pub machine_share: u32,
    /// Never more than this many on a machine: 1 is strict anti-affinity, and what runs once on every machine.
    pub machine_max: u32,
    /// Whether zones with fewer of them are preferred.
    pub zones: bool,
}

/// The replicas of one container, counted.
#[derive(Debug, Clone)]
pub(super) struct SpreadState {
    pub rule: Spread,
    machines: BTreeMap<u32, u32>,
    /// By number of the zone.
    zones: Vec<u32>,
}

impl SpreadState {
    pub(super) fn new(rule: Spread) -> Self {
        Self {
            rule,
            machines: BTreeMap::new(),
            zones: vec![],
        }
    }

    pub(super) fn count(&self, machine: u32) -> u32 {
        self.machines.get(&machine).copied().unwrap_or(0)
    }

    /// Whether a machine has less than its share. A share of zero orders machines as a share of one does: then every
    /// replica counts as beyond it.
    pub(super) fn has_room(&self, machine: u32) -> bool {
        self.count(machine) < self.rule.machine_share.max(1).min(self.rule.machine_max)
    }

    /// Machines with replicas, by number.
    pub(super) fn machines(&self) -> impl Iterator<Item = (u32, u32)> {
        self.machines.iter().map(|(machine, count)| (*machine, *count))
    }

    pub(super) fn machine_count(&self) -> usize {
        self.machines.len()
    }

    /// Replicas in a zone, when that matters.
    pub(super) fn zone_count(&self, zone: u16) -> u32 {
        if self.rule.zones {
            self.zones.get(usize::from(zone)).copied().unwrap_or(0)
        } else {
            0
        }
    }

    pub(super) fn add(&mut self, machine: u32, zone: u16) {
        *self.machines.entry(machine).or_default() += 1;
        let zone = usize::from(zone);
        if self.zones.len() <= zone {
            self.zones.resize(zone + 1, 0);
        }
        self.zones[zone] += 1;
    }

    /// # Panics
    /// When there is none.
    pub(super) fn remove(&mut self, machine: u32, zone: u16) {
        let count = self
            .machines
            .get_mut(&machine)
            .expect("only what was added is removed");
        *count -= 1;
        if *count == 0 {
            self.machines.remove(&machine);
        }
        self.zones[usize::from(zone)] -= 1;
    }
}
