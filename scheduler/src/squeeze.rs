//! Less than desired: replicas that are squeezed in where a group may have no more machines, and how they grow back.
//!
//! Input: world, replicas without a place. Output: amounts to try, and what squeezed replicas are granted from now on. Pure.
//! Where a squeezed replica goes is the decision's part ([`crate::decide`]): a place is looked for at [`steps`] from near
//! `desired` down to `min`, the place is taken at `min`, and [`growth`] deals out what is left. So who has no place goes
//! before who could have more.
//!
//! Only vCPU and memory are squeezed: a GPU, a port, a disk or a part of a file system cannot be taken half. What was granted
//! is never taken back from a running replica.
//!
//! **Growth** shares the room of each machine among its squeezed replicas, each resource by itself, in equal parts up to what
//! each still desires. To keep limits from trembling, one step brings a replica to what it desires or by a tenth of that at
//! least; who cannot make such a step leaves its part to the others. Room that a replica without a place could use is not
//! dealt out.

use std::collections::BTreeMap;

use berth_api::container::{ContainerSpec, Granted, Resources};
use berth_api::id::{ContainerName, MachineId, ReplicaId};
use berth_api::units::{Bytes, Cpu};

use crate::entry::MachineHealthState;
use crate::world::{Allocated, Machine, Replica, World};

/// A wanted replica that has no place now.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Placeless {
    pub container: ContainerName,
    pub ordinal: Option<u32>,
}

/// Parts of the way from `min` to `desired` that are tried, from the top.
const STEPS: u64 = 8;
/// Grants are whole multiples of these, so that limits read well: a hundredth of a vCPU in micros, and a MiB.
const CPU_UNIT: u64 = 10_000;
const MEMORY_UNIT: u64 = 1 << 20;
/// A step of growth is at least this part of what is desired.
const STEP_PART: u64 = 10;

/// Whether a declaration can do with less than it desires.
#[must_use]
pub fn is_squeezable(spec: &ContainerSpec) -> bool {
    spec.resources.min() != spec.resources.desired()
}

/// The amounts at which a place is looked for, each less than the one before, the minimum last.
#[must_use]
pub fn steps(resources: &Resources) -> Vec<Granted> {
    let (min, desired) = (resources.min(), resources.desired());
    let part = |min: u64, desired: u64, step: u64| {
        let more = u128::from(desired.saturating_sub(min)) * u128::from(step) / u128::from(STEPS);
        min + u64::try_from(more).expect("a part of a 64-bit number")
    };
    (0..STEPS)
        .rev()
        .map(|step| Granted {
            cpu: Cpu::from_micros(part(min.cpu.micros(), desired.cpu.micros(), step)),
            memory: Bytes::new(part(min.memory.get(), desired.memory.get(), step)),
        })
        .collect()
}

/// What squeezed replicas are granted from now on; nothing where none can grow. Absent amounts: all that is desired.
#[must_use]
pub fn growth(world: &World, placeless: &[Placeless]) -> Vec<(ReplicaId, Option<Granted>)> {
    let mut squeezed: BTreeMap<&MachineId, Vec<&Replica>> = BTreeMap::new();
    for replica in world.replicas().values() {
        if replica.granted.is_some() && replica.is_live() {
            squeezed.entry(&replica.machine_id).or_default().push(replica);
        }
    }
    let mut grown = vec![];
    for (id, replicas) in squeezed {
        let Some(machine) = world.machine(id) else {
            continue;
        };
        let takes_orders = machine.health == MachineHealthState::Running && machine.draining_since.is_none();
        if takes_orders && !placeless.iter().any(|other| could_use(world, machine, other)) {
            grown.extend(growth_on(world, machine, &replicas));
        }
    }
    grown
}

/// Whether a replica without a place could ever be on this machine.
fn could_use(world: &World, machine: &Machine, placeless: &Placeless) -> bool {
    let Some(container) = world.container(&placeless.container) else {
        return false;
    };
    let spec = &container.spec;
    let capacity = &machine.spec.capacity;
    let zone = placeless
        .ordinal
        .and_then(|ordinal| spec.volume(ordinal)?.volume.zone());
    let gpu = spec.resources.gpu.as_ref().map(|gpu| &gpu.kind);
    spec.capacity_group == machine.spec.capacity_group
        && zone.is_none_or(|zone| *zone == machine.spec.zone)
        && (gpu.is_none() || gpu == capacity.gpu.as_ref().map(|gpu| &gpu.kind))
        && Allocated::granted(spec, spec.resources.min()).fits_in(&machine.usable())
}

fn growth_on(world: &World, machine: &Machine, replicas: &[&Replica]) -> Vec<(ReplicaId, Option<Granted>)> {
    let free = machine.free();
    let resources = |replica: &Replica| &world.spec_of(replica).resources;
    let lacks = |has: &dyn Fn(Granted) -> u64| -> Vec<Lack> {
        let lack = |replica: &&Replica| {
            let desired = has(resources(replica).desired());
            Lack {
                has: replica.granted.map_or(desired, has),
                desired,
            }
        };
        replicas.iter().map(lack).collect()
    };
    let cpu = share(
        free.cpu.micros(),
        CPU_UNIT,
        &lacks(&|granted| granted.cpu.micros()),
    );
    let memory = share(
        free.memory.get(),
        MEMORY_UNIT,
        &lacks(&|granted| granted.memory.get()),
    );
    let mut grown = vec![];
    for (replica, (cpu, memory)) in replicas.iter().zip(cpu.into_iter().zip(memory)) {
        let after = Granted {
            cpu: Cpu::from_micros(cpu),
            memory: Bytes::new(memory),
        };
        if replica.granted != Some(after) {
            let granted = (after != resources(replica).desired()).then_some(after);
            grown.push((replica.replica_id.clone(), granted));
        }
    }
    grown
}

/// One resource of one squeezed replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lack {
    has: u64,
    desired: u64,
}

/// What each has when `free` is dealt out; in the order of `lacks`.
///
/// Sharing what is left again changes nothing.
fn share(free: u64, unit: u64, lacks: &[Lack]) -> Vec<u64> {
    let mut has: Vec<u64> = lacks.iter().map(|lack| lack.has).collect();
    let mut free = free;
    let all: Vec<usize> = (0..lacks.len()).collect();
    loop {
        let before = free;
        free -= share_once(free, unit, lacks, &mut has, &all);
        // What nobody can use beside the others, one may alone.
        for index in &all {
            free -= share_once(free, unit, lacks, &mut has, &[*index]);
        }
        if free == before {
            return has;
        }
    }
}

/// Deals out once, to some; gives how much of `free` it took.
fn share_once(free: u64, unit: u64, lacks: &[Lack], has: &mut [u64], among: &[usize]) -> u64 {
    let mut takers: Vec<usize> = among
        .iter()
        .copied()
        .filter(|index| has[*index] < lacks[*index].desired)
        .collect();
    loop {
        let after = dealt(free, unit, lacks, has, &takers);
        let is_too_small = |index: &usize| {
            let (lack, after) = (lacks[*index], after[*index]);
            after < lack.desired && after - has[*index] < (lack.desired / STEP_PART).max(unit)
        };
        // The one that needs the largest step leaves its part to the others; of equals, the last.
        let least = takers
            .iter()
            .copied()
            .filter(is_too_small)
            .max_by_key(|index| (lacks[*index].desired, *index));
        if let Some(least) = least {
            takers.retain(|index| *index != least);
            continue;
        }
        let taken = takers.iter().map(|index| after[*index] - has[*index]).sum();
        for index in takers {
            has[index] = after[index];
        }
        return taken;
    }
}

/// What each taker would have with an equal part of `free`, but no more than it desires, and in whole units.
fn dealt(free: u64, unit: u64, lacks: &[Lack], has: &[u64], takers: &[usize]) -> Vec<u64> {
    let mut after = has.to_vec();
    let mut by_lack = takers.to_vec();
    by_lack.sort_by_key(|index| (lacks[*index].desired - has[*index], *index));
    let mut left = free;
    for (position, index) in by_lack.iter().enumerate() {
        let takers = u64::try_from(by_lack.len() - position).expect("a machine has few replicas");
        let (has, desired) = (has[*index], lacks[*index].desired);
        let more = (left / takers).min(desired - has);
        let reached = has + more;
        // Down to a whole unit, unless that is all or would be less than before.
        let reached = if reached < desired {
            (reached - reached % unit).max(has)
        } else {
            reached
        };
        after[*index] = reached;
        left -= reached - has;
    }
    after
}

#[cfg(test)]
mod tests;
