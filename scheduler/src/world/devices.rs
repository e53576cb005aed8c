//! Which of a machine's GPUs are free. Pure.
//!
//! The log says which devices a replica holds; sums say only how much. A replica that was placed before the log said so, or whose
//! device its machine has no more since it came back smaller, is on a device that nobody can name: room is kept for it.

use berth_api::container::ContainerSpec;
use berth_api::machine::{GPU_MILLI, GpuDevice, MACHINE_GPUS_MAX};

use super::{Machine, Replica, World};

/// The most devices that a machine may have.
pub(crate) const DEVICES: usize = MACHINE_GPUS_MAX as usize;

/// What is left of a machine's GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    /// Thousandths of each device, by its number.
    pub(crate) devices: [u16; DEVICES],
    /// Pieces of GPUs that nobody can name and that fit on no device beside the rest.
    pub(crate) homeless: usize,
}

impl World {
    /// Thousandths that are free of each device of a machine, by its number; none when it reports more devices than any has.
    ///
    /// While something that nobody can name does not fit beside the rest, nothing is free.
    #[must_use]
    pub fn free_devices(&self, machine: &Machine) -> Option<[u16; DEVICES]> {
        let left = self.left_of_devices(machine)?;
        Some(match left.homeless {
            0 => left.devices,
            _ => [0; DEVICES],
        })
    }

    /// As [`World::free_devices`], with what does not fit. What nobody can name is thought to lie on the lowest devices with room for
    /// it, the largest first.
    pub(crate) fn left_of_devices(&self, machine: &Machine) -> Option<Left> {
        let total = usize::try_from(machine.usable().gpus).ok()?;
        let mut free = [0; DEVICES];
        free.get_mut(..total)?.fill(GPU_MILLI);
        let mut unnamed = vec![];
        for replica in self.replicas_on(&machine.spec.machine_id) {
            let known = replica.devices.iter();
            let (there, lost): (Vec<&GpuDevice>, Vec<&GpuDevice>) =
                known.partition(|device| usize::from(device.index) < total);
            for device in there {
                let free = &mut free[usize::from(device.index)];
                *free = free.saturating_sub(device.milli);
            }
            unnamed.extend(lost.iter().map(|device| device.milli));
            if replica.devices.is_empty() {
                unnamed.extend(pieces(self.spec_of(replica)));
            }
        }
        unnamed.sort_unstable_by(|one, other| other.cmp(one));
        let mut homeless = 0;
        for milli in unnamed {
            match free.iter_mut().find(|free| **free >= milli) {
                Some(free) => *free -= milli,
                None => homeless += 1,
            }
        }
        Some(Left {
            devices: free,
            homeless,
        })
    }
}

impl Replica {
    /// What it holds of which devices, in words; none without a GPU.
    pub(crate) fn devices_in_words(&self, spec: &ContainerSpec) -> Option<String> {
        let request = spec.resources.gpu.as_ref()?;
        let numbers: Vec<String> = self
            .devices
            .iter()
            .map(|device| device.index.to_string())
            .collect();
        Some(match (numbers.as_slice(), request.share) {
            ([], Some(share)) => format!("{share} of one device, which was not recorded"),
            ([], None) if request.count == 1 => "one device, which was not recorded".to_owned(),
            ([], None) => format!("{} devices, which were not recorded", request.count),
            ([number], Some(share)) => format!("{share} of device {number}"),
            ([number], None) => format!("device {number}"),
            (numbers, _) => format!("devices {}", numbers.join(", ")),
        })
    }
}

/// Thousandths of each device that a replica of the declaration holds.
fn pieces(spec: &ContainerSpec) -> Vec<u16> {
    let Some(gpu) = &spec.resources.gpu else {
        return vec![];
    };
    match gpu.share {
        Some(share) => vec![share.milli()],
        // More than any machine has fits nowhere.
        None => vec![GPU_MILLI; DEVICES.min(usize::try_from(gpu.count).unwrap_or(DEVICES))],
    }
}

/// Whether these are devices that a replica of the declaration may hold: as many as it asks for, all different, and of each as
/// much as it asks for.
pub(super) fn are_asked_for(spec: &ContainerSpec, devices: &[GpuDevice]) -> bool {
    let pieces = pieces(spec);
    let is_rising = devices.is_sorted_by(|one, other| one.index < other.index);
    let are_there = devices.iter().all(|device| usize::from(device.index) < DEVICES);
    let is_alike = devices.iter().map(|device| device.milli).eq(pieces);
    is_rising && are_there && is_alike
}

#[cfg(test)]
mod tests;
