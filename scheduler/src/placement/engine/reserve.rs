//! Machines that some requests cannot do without are kept for them, as far as the mix says that such requests will come.
//!
//! A request for a T4 fits T4 machines only, one for 100 vCPUs and eight devices only the largest. When everything else is
//! as happy elsewhere, what they need is gone before they arrive. So each machine type (a *pool*: GPU model and profile) is
//! watched. For every set of pools that is all that some shape of the mix can use:
//!
//! ```text
//! need(set)  = share that shapes which fit nowhere else have in the GPU demand of the mix * what is free in the fleet
//! short(set) = need / free(set), the devices that are free in the pools of the set
//! ```
//!
//! From [`SHORT_FROM`] on, a request that also fits elsewhere finds the pools of the set dearer, up to
//! [`super::gpu::Weights::reserve`]. This is Hall's condition on the demand to come. It changes the order of cells and never
//! of machines within one, so the indexes stay as they are, and it never turns a request away: what fits is placed.

use super::cell::CellFacts;
use super::demand::{Demand, GpuNeed, Row};
use super::gpu::{Mix, Typical};

/// Pools that are watched, as many as a mask has bits; machines of further types are as dear as ever.
const POOLS_MAX: usize = 64;
/// Hundredths of what is free in a set from which on its need makes it dearer.
const SHORT_FROM: u64 = 80;
/// What a machine with devices costs a request without any: more than any key, so it is taken only when no other fits.
const DEVICES_IDLE: i32 = 1 << 17;

#[derive(Debug, Clone, Default)]
pub(super) struct Reserve {
    pools: Vec<Pool>,
    /// The pool of each cell; none for cells without devices.
    cells: Vec<Option<usize>>,
    sets: Vec<Set>,
    /// Cost of each pool for the request that [`Self::weigh`] saw last, in steps of the key.
    costs: Vec<i32>,
    /// Whether pools were added since the sets were made.
    is_stale: bool,
}

/// Machines of one GPU model and profile.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pool {
    model: u16,
    scale: Row,
    /// Thousandths of devices that are free on its open machines.
    free: u64,
}

/// Pools without which some shape of the mix fits nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Set {
    /// One bit for each pool.
    pools: u64,
    /// 65536ths of the GPU demand of the mix that fit nowhere else.
    share: u64,
}

impl Reserve {
    /// Takes note of the next cell.
    pub(super) fn add_cell(&mut self, facts: &CellFacts) {
        let model = facts.kind.gpu_model;
        let is_same = |pool: &Pool| pool.model == model && pool.scale == facts.scale;
        let known = self.pools.iter().position(is_same);
        let pool = match known {
            _ if model == 0 => None,
            None if self.pools.len() < POOLS_MAX => {
                self.pools.push(Pool {
                    model,
                    scale: facts.scale,
                    free: 0,
                });
                self.costs.push(0);
                self.is_stale = true;
                Some(self.pools.len() - 1)
            }
            known => known,
        };
        self.cells.push(pool);
    }

    /// Devices of an open machine of the cell became free: it was added or opened, or something ended there.
    pub(super) fn give(&mut self, cell: usize, milli: u64) {
        if let Some(pool) = self.cells[cell] {
            self.pools[pool].free += milli;
        }
    }

    /// Devices of an open machine of the cell are free no longer.
    pub(super) fn take(&mut self, cell: usize, milli: u64) {
        if let Some(pool) = self.cells[cell] {
            let free = &mut self.pools[pool].free;
            *free = free.checked_sub(milli).expect("no more is taken than was free");
        }
    }

    /// Prepares [`Self::cost`] for a request.
    pub(super) fn weigh(&mut self, demand: &Demand, mix: &Mix) {
        if std::mem::take(&mut self.is_stale) {
            self.sets = self.sets_of(mix);
        }
        if self.sets.is_empty() {
            return;
        }
        self.costs.fill(0);
        if demand.gpu == GpuNeed::None {
            return;
        }
        let own = self.usable(demand.cpu, demand.memory, demand.gpu, demand.models);
        let free_in = |mask: u64| -> u64 { masked(&self.pools, mask).map(|(_, pool)| pool.free).sum() };
        let fleet = free_in(u64::MAX);
        for set in &self.sets {
            let free = free_in(set.pools);
            // Shares are at most 2^16 and a fleet has at most 2^24 machines of 8000 thousandths: 53 bits.
            let need = (set.share * fleet) >> 16;
            let over = (need * 100).saturating_sub(free * SHORT_FROM).min(free * 100);
            if own & !set.pools == 0 || over == 0 {
                continue;
            }
            let weights = mix.weights();
            let cost = u64::from(weights.reserve) * (over >> 16) / ((free * 100) >> 16).max(1);
            let steps = i32::try_from(cost / u64::from(weights.step)).unwrap_or(DEVICES_IDLE - 1);
            for (pool, _) in masked(&self.pools, set.pools) {
                self.costs[pool] = self.costs[pool].max(steps);
            }
        }
    }

    /// By how many steps a key in this cell counts for less, for the request that was weighed last.
    pub(super) fn cost(&self, cell: usize, demand: &Demand) -> i32 {
        match self.cells[cell] {
            Some(_) if demand.gpu == GpuNeed::None => DEVICES_IDLE,
            Some(pool) => self.costs[pool],
            None => 0,
        }
    }

    /// The pools whose machines, empty, can take this.
    fn usable(&self, cpu: u64, memory: u64, gpu: GpuNeed, models: u64) -> u64 {
        let devices = match gpu {
            GpuNeed::None => 0,
            GpuNeed::Whole(count) => count,
            GpuNeed::Share(_) => 1,
        };
        let mut mask = 0;
        for (number, pool) in self.pools.iter().enumerate() {
            let is_model = models == 0 || models >> pool.model & 1 == 1;
            let is_large = u64::from(pool.scale.cpu) >= cpu && pool.scale.memory >= memory;
            if is_model && is_large && pool.scale.whole_devices() >= devices {
                mask |= 1 << number;
            }
        }
        mask
    }

    /// The sets of pools that some shapes need, each with the share of all shapes that fit nowhere else.
    fn sets_of(&self, mix: &Mix) -> Vec<Set> {
        let shapes = mix.shapes().iter().filter(|shape| shape.gpu != GpuNeed::None);
        let usable = |shape: &Typical| self.usable(shape.cpu, shape.memory, shape.gpu, shape.models);
        let shapes: Vec<(u64, u128)> = shapes
            .map(|shape| {
                (
                    usable(shape),
                    u128::from(shape.gpu_milli()) * u128::from(shape.weight),
                )
            })
            .filter(|(pools, _)| *pools != 0)
            .collect();
        let all: u128 = shapes.iter().map(|(_, demand)| demand).sum();
        let everywhere = u64::MAX >> (POOLS_MAX - self.pools.len().max(1));
        let mut masks: Vec<u64> = shapes.iter().map(|(pools, _)| *pools).collect();
        masks.sort_unstable();
        masks.dedup();
        masks.retain(|pools| *pools != everywhere);
        let set = |pools: u64| {
            let bound = shapes.iter().filter(|(own, _)| own & !pools == 0);
            let bound: u128 = bound.map(|(_, demand)| demand).sum();
            let share = (bound << 16) / all.max(1);
            Set {
                pools,
                share: u64::try_from(share).expect("a part of the whole"),
            }
        };
        masks.into_iter().map(set).collect()
    }
}

/// The pools of a mask with their numbers.
fn masked(pools: &[Pool], mask: u64) -> impl Iterator<Item = (usize, &Pool)> {
    pools
        .iter()
        .enumerate()
        .filter(move |(number, _)| mask >> number & 1 == 1)
}

#[cfg(test)]
mod tests;
