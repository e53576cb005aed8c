//! How good a machine is for a request: the key of the class index.
//!
//! Without GPUs it is best fit: what would be left of the machine, as shares of what a machine of its group has, averaged
//! over the dimensions that such a machine has. In a cell with GPUs the devices decide first; see [`super::gpu`].
//!
//! All in integers, so that a replay decides the same on every machine.

use super::cell::{Cell, CellFacts};
use super::demand::{Demand, DeviceSet, GpuNeed, Row};
use super::gpu::Mix;

/// The best key. Keys are 1 to this; 0 means that the request does not fit.
pub(super) const KEY_MAX: u16 = u16::MAX;

/// The key of one machine for a demand, and the devices that it would get.
pub(super) fn key(cell: &Cell, slot: usize, demand: &Demand, mix: &Mix) -> (u16, DeviceSet) {
    if !cell.fits_plain(slot, demand) {
        return (0, DeviceSet::default());
    }
    if cell.facts.kind.gpu_model == 0 {
        return match demand.gpu {
            GpuNeed::None => (fit_key(&cell.facts, cell, slot, demand), DeviceSet::default()),
            GpuNeed::Whole(_) | GpuNeed::Share(_) => (0, DeviceSet::default()),
        };
    }
    let row = Row {
        cpu: cell.cpu[slot],
        memory: cell.memory[slot],
        ephemeral: cell.ephemeral[slot],
        devices: cell.devices[slot],
    };
    match mix.score(&cell.facts, &row, demand) {
        Some((key, devices)) => (key.max(1), DeviceSet(devices)),
        None => (0, DeviceSet::default()),
    }
}

/// Best fit: the less is left, the higher the key.
fn fit_key(facts: &CellFacts, cell: &Cell, slot: usize, demand: &Demand) -> u16 {
    let scale = &facts.scale;
    let left = [
        (u64::from(cell.cpu[slot]) - demand.cpu, u64::from(scale.cpu)),
        (cell.memory[slot] - demand.memory, scale.memory),
        (cell.ephemeral[slot] - demand.ephemeral, scale.ephemeral),
    ];
    let (mut sum, mut dimensions) = (0, 0);
    for (left, scale) in left {
        if scale > 0 {
            sum += share(left, scale);
            dimensions += 1;
        }
    }
    let average = sum / std::cmp::max(dimensions, 1);
    KEY_MAX - u16::try_from(average).unwrap_or(KEY_MAX - 1)
}

/// `part` of `whole` in 1/65534, at most 65534; `whole` is not zero. Amounts are below 2^52, so twelve bits are to spare.
pub(super) fn share(part: u64, whole: u64) -> u64 {
    const STEPS: u64 = 65_534;
    let part = part.min(whole);
    // Sixteen bits of both are as exact as the key.
    let excess = (u64::BITS - whole.leading_zeros()).saturating_sub(32);
    (part >> excess) * STEPS / (whole >> excess).max(1)
}
