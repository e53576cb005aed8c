//! The largest free amount of each dimension in every block of 64 machines, and in every 64 blocks.
//!
//! A request of a shape that has no tree yet opens only the blocks that could fit it. What fits nowhere is mostly known
//! from the maxima alone.

use super::cell::{Cell, LOG_LEN};
use super::demand::{Demand, GpuNeed};

/// Machines of a block, and blocks of a region.
const BLOCK: usize = 64;

#[derive(Debug, Clone, Copy, Default)]
struct Most {
    cpu: u32,
    memory: u64,
    ephemeral: u64,
    whole_devices: u8,
    largest_device: u16,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Maxima {
    blocks: Vec<Most>,
    regions: Vec<Most>,
    /// Changes of the cell that are in.
    seen: u64,
}

impl Most {
    fn with(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.max(other.cpu),
            memory: self.memory.max(other.memory),
            ephemeral: self.ephemeral.max(other.ephemeral),
            whole_devices: self.whole_devices.max(other.whole_devices),
            largest_device: self.largest_device.max(other.largest_device),
        }
    }

    fn of(cell: &Cell, slots: std::ops::Range<usize>) -> Self {
        let mut most = Self::default();
        for slot in slots {
            let (small, large) = (&cell.small[slot], &cell.large[slot]);
            if !small.is_open {
                continue;
            }
            most.cpu = most.cpu.max(small.cpu);
            most.memory = most.memory.max(large.memory);
            most.ephemeral = most.ephemeral.max(large.ephemeral);
            if cell.facts.kind.gpu_model != 0 {
                let row = cell.row(u32::try_from(slot).expect("a slot has 32 bits"));
                most.whole_devices = most.whole_devices.max(row.whole_devices());
                most.largest_device = most.largest_device.max(row.largest_device());
            }
        }
        most
    }

    /// Whether a machine below may fit the demand.
    fn may_fit(&self, demand: &Demand) -> bool {
        let devices = match demand.gpu {
            GpuNeed::None => true,
            GpuNeed::Whole(count) => self.whole_devices >= count,
            GpuNeed::Share(milli) => self.largest_device >= milli,
        };
        devices
            && u64::from(self.cpu) >= demand.cpu
            && self.memory >= demand.memory
            && self.ephemeral >= demand.ephemeral
    }
}

impl Maxima {
    pub(super) fn is_behind(&self, cell: &Cell) -> bool {
        self.seen != cell.changes
    }

    /// Takes in what changed, at most so many changes; gives how many it looked at.
    pub(super) fn catch_up(&mut self, cell: &Cell, limit: u64) -> u64 {
        let behind = cell.changes - self.seen;
        let blocks = cell.len().div_ceil(BLOCK);
        if behind > LOG_LEN as u64 || self.blocks.len() != blocks {
            self.blocks = (0..blocks)
                .map(|block| Most::of(cell, slots_of(cell, block)))
                .collect();
            self.regions = self.blocks.chunks(BLOCK).map(together).collect();
            self.seen = cell.changes;
            return cell.len() as u64 / 16;
        }
        let end = self.seen + behind.min(limit);
        let mut last = usize::MAX;
        for change in self.seen..end {
            let block = super::cell::at(cell.changed_slot(change)) / BLOCK;
            if block != last {
                self.blocks[block] = Most::of(cell, slots_of(cell, block));
                let region = block / BLOCK;
                let first = region * BLOCK;
                self.regions[region] = together(&self.blocks[first..blocks.min(first + BLOCK)]);
                last = block;
            }
        }
        let done = end - self.seen;
        self.seen = end;
        done
    }

    /// The slots of blocks that may fit the demand, rising. Invariant: the maxima are up to date.
    pub(super) fn slots<'a>(
        &'a self,
        cell: &'a Cell,
        demand: &'a Demand,
    ) -> impl Iterator<Item = usize> + 'a {
        let regions = self
            .regions
            .iter()
            .enumerate()
            .filter(|(_, most)| most.may_fit(demand));
        let blocks = regions.flat_map(|(region, _)| {
            let first = region * BLOCK;
            first..self.blocks.len().min(first + BLOCK)
        });
        blocks
            .filter(|block| self.blocks[*block].may_fit(demand))
            .flat_map(|block| slots_of(cell, block))
    }
}

fn slots_of(cell: &Cell, block: usize) -> std::ops::Range<usize> {
    block * BLOCK..cell.len().min((block + 1) * BLOCK)
}

fn together(blocks: &[Most]) -> Most {
    blocks
        .iter()
        .fold(Most::default(), |most, block| most.with(*block))
}
