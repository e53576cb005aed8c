//! What cannot be true of a snapshot. Every fault is listed, none is repaired.

use std::fmt;

use super::{Amounts, Snapshot};

/// A quantity of [`Amounts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dimension {
    Cpu,
    Memory,
    Ephemeral,
    Gpus,
    Disks,
    Addresses,
}

pub(super) const DIMENSIONS: [Dimension; 6] = [
    Dimension::Cpu,
    Dimension::Memory,
    Dimension::Ephemeral,
    Dimension::Gpus,
    Dimension::Disks,
    Dimension::Addresses,
];

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Ephemeral => "ephemeral",
            Self::Gpus => "gpus",
            Self::Disks => "disks",
            Self::Addresses => "addresses",
        })
    }
}

/// The amounts in the order of [`DIMENSIONS`].
pub(super) fn parts(amounts: &Amounts) -> [u64; 6] {
    [
        amounts.cpu,
        amounts.memory,
        amounts.ephemeral,
        amounts.gpus,
        amounts.disks,
        amounts.addresses,
    ]
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("machine {machine} has neither cpu nor memory")]
    MachineWithoutCapacity { machine: usize },
    #[error("replica {replica} needs nothing at all")]
    ReplicaWithoutNeeds { replica: usize },
    #[error("replica {replica} is on machine {machine}, which is not in the snapshot")]
    UnknownMachine { replica: usize, machine: usize },
    #[error("replica {replica} is of set {set}, which is not in the snapshot")]
    UnknownSet { replica: usize, set: usize },
    #[error("set {set} may have no replica on any machine")]
    SetWithoutPlace { set: usize },
    #[error("replicas on machine {machine} use {excess} of {dimension} more than it has")]
    Overfull {
        machine: usize,
        dimension: Dimension,
        excess: u64,
    },
    #[error("the sum of {dimension} on machine {machine} is beyond any number")]
    Overflow { machine: usize, dimension: Dimension },
    #[error("the costs of all machines add up to more than any number")]
    CostOverflow,
    #[error("the bytes of all replicas add up to more than any number")]
    BytesOverflow,
}

pub(super) fn check(snapshot: &Snapshot) -> Result<(), Vec<Fault>> {
    let mut faults = Vec::new();
    let machines = snapshot.machines.len();
    for (machine, facts) in snapshot.machines.iter().enumerate() {
        if facts.capacity.cpu == 0 && facts.capacity.memory == 0 {
            faults.push(Fault::MachineWithoutCapacity { machine });
        }
    }
    for (set, facts) in snapshot.sets.iter().enumerate() {
        if facts.per_machine == 0 {
            faults.push(Fault::SetWithoutPlace { set });
        }
    }
    let mut used = vec![[Some(0_u64); 6]; machines];
    for (replica, facts) in snapshot.replicas.iter().enumerate() {
        let needs = parts(&facts.needs);
        if needs == [0; 6] {
            faults.push(Fault::ReplicaWithoutNeeds { replica });
        }
        if facts.set >= snapshot.sets.len() {
            let set = facts.set;
            faults.push(Fault::UnknownSet { replica, set });
        }
        let Some(sums) = used.get_mut(facts.machine) else {
            let machine = facts.machine;
            faults.push(Fault::UnknownMachine { replica, machine });
            continue;
        };
        for (sum, need) in sums.iter_mut().zip(needs) {
            *sum = sum.and_then(|sum| sum.checked_add(need));
        }
    }
    overfull(snapshot, &used, &mut faults);
    let costs = snapshot.machines.iter().map(|machine| machine.cost);
    if sum(costs).is_none() {
        faults.push(Fault::CostOverflow);
    }
    if sum(snapshot.replicas.iter().map(|replica| replica.bytes)).is_none() {
        faults.push(Fault::BytesOverflow);
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn overfull(snapshot: &Snapshot, used: &[[Option<u64>; 6]], faults: &mut Vec<Fault>) {
    for (machine, (facts, sums)) in snapshot.machines.iter().zip(used).enumerate() {
        let capacity = parts(&facts.capacity);
        for ((dimension, sum), capacity) in DIMENSIONS.into_iter().zip(sums).zip(capacity) {
            match sum {
                None => faults.push(Fault::Overflow { machine, dimension }),
                Some(sum) if *sum > capacity => faults.push(Fault::Overfull {
                    machine,
                    dimension,
                    excess: sum - capacity,
                }),
                Some(_) => {}
            }
        }
    }
}

fn sum(mut numbers: impl Iterator<Item = u64>) -> Option<u64> {
    numbers.try_fold(0_u64, u64::checked_add)
}
