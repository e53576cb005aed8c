//! Everything: applies the entries to a copy of the world and looks at all machines and replicas of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use berth_api::id::{MachineId, ReplicaId};

use super::{
    Amounts, Holder, Violation, growth, misplaced, no_device_left, out_of_bounds, over_capacity, over_device,
    plus, shared, sum, wrong_sum,
};
use crate::entry::Entry;
use crate::world::{Machine, Replica, World};

pub(super) fn check(before: &World, entries: &[Entry]) -> Vec<Violation> {
    let mut after = before.clone();
    let mut violations = vec![];
    for (index, entry) in entries.iter().enumerate() {
        if matches!(entry, Entry::EventRecorded { .. }) {
            continue;
        }
        if let Entry::ReplicaPlaced(placed) = entry
            && let Some(machine) = after.machine(&placed.machine_id)
            && let Some(container) = after.container(&placed.container)
        {
            violations.extend(misplaced(&after, container, placed, machine, machine.health));
        }
        if let Entry::CapacityWished(wish) = entry {
            violations.extend(out_of_bounds(&after, wish));
        }
        if let Err(error) = after.try_apply(entry) {
            violations.push(Violation::Inapplicable {
                number: index + 1,
                error: error.to_string(),
            });
            return violations;
        }
    }
    for machine in after.machines().values() {
        capacity(before, &after, machine, &mut violations);
        generation(before, &after, machine, &mut violations);
    }
    uniqueness(before, &after, &mut violations);
    violations
}

/// Placed by these entries. A machine and a declaration may change under older ones.
fn is_new(before: &World, replica: &Replica) -> bool {
    before
        .replica(&replica.replica_id)
        .is_none_or(|known| known.sequence != replica.sequence)
}

fn capacity(before: &World, after: &World, machine: &Machine, violations: &mut Vec<Violation>) {
    let replicas = || {
        let replicas = machine.replicas.iter();
        replicas.filter_map(|id| after.replicas().get(id))
    };
    let held = sum(after, replicas().map(Holder::from));
    let more = replicas().map(|replica| match before.replica(&replica.replica_id) {
        Some(known) if !is_new(before, replica) => growth(after, known.into(), replica.into()),
        Some(_) | None => Holder::from(replica).amounts(after),
    });
    let more = more.fold(Amounts::default(), plus);
    violations.extend(over_capacity(machine, held, more));
    let new = || replicas().filter(|replica| is_new(before, replica));
    let holders: Vec<Holder<'_>> = replicas().map(Holder::from).collect();
    violations.extend(over_device(machine, &holders));
    if new().next().is_some() {
        violations.extend(shared(after, machine, &holders));
    }
    if new().any(|replica| !replica.devices.is_empty()) {
        violations.extend(no_device_left(after, machine, &holders));
    }
    violations.extend(wrong_sum(machine, held));
}

fn generation(before: &World, after: &World, machine: &Machine, violations: &mut Vec<Violation>) {
    let id = &machine.spec.machine_id;
    let Some(known) = before.machine(id) else {
        return;
    };
    if (after.epoch(), machine.generation) < (before.epoch(), known.generation) {
        violations.push(Violation::GenerationFalls {
            machine_id: id.clone(),
            before: known.generation,
            after: machine.generation,
        });
    }
    let set = |world: &World| world.assignment_set(id).map(|set| (set.replicas, set.stops));
    if machine.generation == known.generation && after.epoch() == before.epoch() && set(before) != set(after)
    {
        violations.push(Violation::GenerationStays {
            machine_id: id.clone(),
            generation: known.generation,
        });
    }
}

fn uniqueness(before: &World, after: &World, violations: &mut Vec<Violation>) {
    let mut addresses: BTreeMap<IpAddr, &ReplicaId> = BTreeMap::new();
    let mut ports: BTreeMap<(&MachineId, u16), &ReplicaId> = BTreeMap::new();
    let mut volumes: BTreeMap<(&str, &str), &Replica> = BTreeMap::new();
    let networks: BTreeSet<u32> = after
        .machines()
        .values()
        .map(|machine| machine.subnet_index)
        .collect();
    assert!(
        networks.len() == after.machines().len(),
        "two machines own one subnet"
    );
    let listed = after.machines().values().map(|machine| machine.replicas.len());
    assert!(
        listed.sum::<usize>() == after.replicas().len(),
        "a machine lists a replica that is not on it"
    );
    for replica in after.replicas().values() {
        let id = &replica.replica_id;
        assert!(
            after
                .machine(&replica.machine_id)
                .is_some_and(|machine| machine.replicas.contains(id)),
            "the machine of replica {id} does not list it"
        );
        if let Some(other) = addresses.insert(replica.ip, id) {
            violations.push(Violation::SameAddress {
                one: other.clone(),
                other: id.clone(),
                ip: replica.ip,
            });
        }
        if let Some(host_port) = replica.host_port
            && let Some(other) = ports.insert((&replica.machine_id, host_port), id)
        {
            violations.push(Violation::SameHostPort {
                one: other.clone(),
                other: id.clone(),
                machine_id: replica.machine_id.clone(),
                host_port,
            });
        }
        if let Some(disk) = Holder::from(replica).disk(after)
            && let Some(other) = volumes.insert(disk, replica)
            && (is_new(before, replica) || is_new(before, other))
        {
            violations.push(Violation::TwoWriters {
                one: other.replica_id.clone(),
                other: id.clone(),
            });
        }
    }
}
