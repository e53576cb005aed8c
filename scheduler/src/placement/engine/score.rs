//! How good a machine is for a request: the key of the class index.
//!
//! Without GPUs it is best fit: the machine with the least [`slack`]. In a cell with GPUs the devices decide first; see
//! [`super::gpu`].
//!
//! All in integers, so that a replay decides the same on every machine.

use super::cell::Cell;
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
            GpuNeed::None => (KEY_MAX - cell.small[slot].slack, DeviceSet::default()),
            GpuNeed::Whole(_) | GpuNeed::Share(_) => (0, DeviceSet::default()),
        };
    }
    let row = cell.row(u32::try_from(slot).expect("a slot has 32 bits"));
    match mix.score(&cell.facts, &row, demand) {
        Some((key, devices)) => (key.max(1), DeviceSet(devices)),
        None => (0, DeviceSet::default()),
    }
}

/// What is free on a machine as shares of what a machine of its group has, averaged over the dimensions that such a machine
/// has, in 1/65534. Best fit takes the machine with the least: what a request takes is the same everywhere in a cell.
pub(super) fn slack(scale: &Row, free: &Row) -> u16 {
    let dimensions = [
        (u64::from(free.cpu), u64::from(scale.cpu)),
        (free.memory, scale.memory),
        (free.ephemeral, scale.ephemeral),
    ];
    let (mut sum, mut count) = (0, 0);
    for (free, scale) in dimensions {
        if scale > 0 {
            sum += share(free, scale);
            count += 1;
        }
    }
    u16::try_from(sum / std::cmp::max(count, 1)).unwrap_or(KEY_MAX - 1)
}

/// `part` of `whole` in 1/65534, at most 65534; `whole` is not zero. Amounts are below 2^52, so twelve bits are to spare.
pub(super) fn share(part: u64, whole: u64) -> u64 {
    const STEPS: u64 = 65_534;
    let part = part.min(whole);
    // Sixteen bits of both are as exact as the key.
    let excess = (u64::BITS - whole.leading_zeros()).saturating_sub(32);
    (part >> excess) * STEPS / (whole >> excess).max(1)
}
