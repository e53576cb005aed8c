//! An independent verifier of decisions: it recomputes every sum from the replicas alone and shares no code with what
//! decided. The cluster's actor appends nothing of a decision with a violation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use berth_api::id::{MachineId, ReplicaId};

use crate::entry::Entry;
use crate::world::{Machine, Replica, World};

/// A rule that a decision would break.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("entry {number} of the decision cannot follow the log: {error}")]
    Inapplicable { number: usize, error: String },
    #[error("machine {machine_id} would give away {given} of {dimension} and has {usable}")]
    OverCapacity {
        machine_id: MachineId,
        dimension: &'static str,
        given: u128,
        usable: u128,
    },
    #[error("machine {machine_id} accounts for {accounted} of {dimension}, its replicas hold {held}")]
    WrongSum {
        machine_id: MachineId,
        dimension: &'static str,
        accounted: u128,
        held: u128,
    },
    #[error("replicas {one} and {other} would write to one volume")]
    TwoWriters { one: ReplicaId, other: ReplicaId },
    #[error("replicas {one} and {other} would have one address {ip}")]
    SameAddress {
        one: ReplicaId,
        other: ReplicaId,
        ip: IpAddr,
    },
    #[error("replicas {one} and {other} would have one port {host_port} of machine {machine_id}")]
    SameHostPort {
        one: ReplicaId,
        other: ReplicaId,
        machine_id: MachineId,
        host_port: u16,
    },
    #[error("replica {replica_id}: {fault}")]
    Misplaced {
        replica_id: ReplicaId,
        fault: &'static str,
    },
    #[error("the set of machine {machine_id} would change and stay at generation {generation}")]
    GenerationStays { machine_id: MachineId, generation: u64 },
    #[error("the generation of machine {machine_id} would go from {before} to {after}")]
    GenerationFalls {
        machine_id: MachineId,
        before: u64,
        after: u64,
    },
}

/// Every rule that applying `entries` to `before` would break; empty when none. Events are not looked at.
#[must_use]
pub fn check(before: &World, entries: &[Entry]) -> Vec<Violation> {
    let mut after = before.clone();
    for (index, entry) in entries.iter().enumerate() {
        if matches!(entry, Entry::EventRecorded { .. }) {
            continue;
        }
        if let Err(error) = after.try_apply(entry) {
            return vec![Violation::Inapplicable {
                number: index + 1,
                error: error.to_string(),
            }];
        }
    }
    let mut violations = vec![];
    for machine in after.machines().values() {
        capacity(before, &after, machine, &mut violations);
        generation(before, &after, machine, &mut violations);
    }
    for replica in after
        .replicas()
        .values()
        .filter(|replica| is_new(before, replica))
    {
        place(&after, replica, &mut violations);
    }
    uniqueness(before, &after, &mut violations);
    violations
}

/// Placed by this decision: rules for the choice of a place hold for these only, since machines and declarations may
/// change under older ones.
fn is_new(before: &World, replica: &Replica) -> bool {
    before
        .replica(&replica.replica_id)
        .is_none_or(|known| known.sequence != replica.sequence)
}

const DIMENSIONS: [&str; 4] = ["cpu", "memory", "ephemeral storage", "GPUs"];

/// What one replica holds, in the order of [`DIMENSIONS`].
fn held_by(world: &World, replica: &Replica) -> [u128; 4] {
    let resources = &world.spec_of(replica).resources;
    [
        resources.cpu.desired.micros().into(),
        resources.memory.desired.get().into(),
        resources.ephemeral_storage.map_or(0, |bytes| bytes.get().into()),
        resources.gpu.as_ref().map_or(0, |gpu| gpu.count.into()),
    ]
}

fn capacity(before: &World, after: &World, machine: &Machine, violations: &mut Vec<Violation>) {
    let id = &machine.spec.machine_id;
    let mut held = [0u128; 4];
    let mut gains = false;
    for replica in after
        .replicas()
        .values()
        .filter(|replica| replica.machine_id == *id)
    {
        gains |= is_new(before, replica);
        for (sum, part) in held.iter_mut().zip(held_by(after, replica)) {
            *sum += part;
        }
    }
    let capacity = &machine.spec.capacity;
    let less = |total: u64, reserve: u64| u128::from(total).saturating_sub(reserve.into());
    let usable = [
        less(capacity.cpu.total.micros(), capacity.cpu.system_reserve.micros()),
        less(capacity.memory.total.get(), capacity.memory.system_reserve.get()),
        capacity.ephemeral_storage.total.get().into(),
        capacity.gpu.as_ref().map_or(0, |gpu| gpu.total.into()),
    ];
    let accounted = [
        machine.allocated.cpu.micros().into(),
        machine.allocated.memory.get().into(),
        machine.allocated.ephemeral.get().into(),
        u128::from(machine.allocated.gpus),
    ];
    for (index, dimension) in DIMENSIONS.into_iter().enumerate() {
        // A machine that came back smaller may hold more than it has; it must not be given more.
        if gains && held[index] > usable[index] {
            violations.push(Violation::OverCapacity {
                machine_id: id.clone(),
                dimension,
                given: held[index],
                usable: usable[index],
            });
        }
        if accounted[index] != held[index] {
            violations.push(Violation::WrongSum {
                machine_id: id.clone(),
                dimension,
                accounted: accounted[index],
                held: held[index],
            });
        }
    }
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

fn place(after: &World, replica: &Replica, violations: &mut Vec<Violation>) {
    let spec = after.spec_of(replica);
    let mut fault = |fault| {
        violations.push(Violation::Misplaced {
            replica_id: replica.replica_id.clone(),
            fault,
        });
    };
    let Some(machine) = after.machine(&replica.machine_id) else {
        return fault("its machine is not registered");
    };
    if machine.spec.capacity_group != spec.capacity_group {
        fault("its machine is in another capacity group");
    }
    if machine.draining_since.is_some() {
        fault("its machine is draining");
    }
    let zone = spec
        .volumes
        .iter()
        .find(|volume| Some(volume.ordinal) == replica.ordinal)
        .and_then(|volume| volume.volume.zone());
    if zone.is_some_and(|zone| *zone != machine.spec.zone) {
        fault("its volume is in another zone");
    }
    let gpu_kind = spec.resources.gpu.as_ref().map(|gpu| &gpu.kind);
    if gpu_kind.is_some() && gpu_kind != machine.spec.capacity.gpu.as_ref().map(|gpu| &gpu.kind) {
        fault("its machine has no GPU of its type");
    }
    if replica.host_port.is_some() != spec.load_balancer_target.is_some() {
        fault("it has a host port without a load balancer target, or the reverse");
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
    for replica in after.replicas().values() {
        let id = &replica.replica_id;
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
        let volume = replica
            .ordinal
            .and_then(|ordinal| after.spec_of(replica).volume(ordinal));
        if let Some(volume) = volume {
            let disk = (volume.volume.kind(), volume.volume.identity());
            if let Some(other) = volumes.insert(disk, replica)
                && (is_new(before, replica) || is_new(before, other))
            {
                violations.push(Violation::TwoWriters {
                    one: other.replica_id.clone(),
                    other: id.clone(),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_api::id::MachineId;

    use super::*;
    use crate::entry::Placed;
    use crate::fixture::{Town, stateful, stateless};

    fn placed(town: &Town, id: &str, container: &str, machine: &str, host: u8) -> Entry {
        let ordinal = id.rsplit('-').next().and_then(|text| text.parse().ok());
        Entry::ReplicaPlaced(Placed {
            replica_id: id.parse().unwrap(),
            container: container.parse().unwrap(),
            ordinal,
            revision: 1,
            machine_id: machine.parse().unwrap(),
            ip: IpAddr::from([10, 244, if machine == "m1" { 0 } else { 1 }, host]),
            host_port: None,
            chosen: None,
            at: town.now.wall,
        })
    }

    #[test]
    fn refuses_more_than_a_machine_has() {
        let mut town = Town::of(1);
        town.put(stateless("a", 1));
        let entries: Vec<Entry> = (2..7u8)
            .map(|host| placed(&town, &format!("a-m1-x{host}"), "a", "m1", host))
            .collect();
        assert_eq!(check(&town.world, &entries[..4]), vec![]);
        let violations = check(&town.world, &entries);
        assert!(
            matches!(violations[..], [Violation::OverCapacity { dimension: "cpu", .. }]),
            "{violations:?}"
        );
    }

    #[test]
    fn refuses_two_writers_of_one_volume_and_wrong_machines() {
        let mut town = Town::of(2);
        town.join("g1", "gpu");
        let mut other = stateful("b", 1);
        other.volumes = stateful("a", 1).volumes;
        town.put(stateful("a", 1));
        town.put(other);
        let entries = [
            placed(&town, "a-0", "a", "m1", 2),
            placed(&town, "b-0", "b", "m2", 2),
        ];
        let violations = check(&town.world, &entries);
        assert!(
            matches!(violations[..], [Violation::TwoWriters { .. }]),
            "{violations:?}"
        );

        let mut elsewhere = entries[0].clone();
        if let Entry::ReplicaPlaced(placed) = &mut elsewhere {
            placed.machine_id = MachineId::new("g1").unwrap();
            placed.ip = IpAddr::from([10, 244, 2, 2]);
        }
        let violations = check(&town.world, &[elsewhere]);
        assert!(
            matches!(violations[..], [Violation::Misplaced { .. }]),
            "{violations:?}"
        );
    }

    #[test]
    fn refuses_an_address_twice() {
        let mut town = Town::of(1);
        town.put(stateless("a", 2));
        let entries = [
            placed(&town, "a-m1-x", "a", "m1", 2),
            placed(&town, "a-m1-y", "a", "m1", 2),
        ];
        assert!(matches!(
            check(&town.world, &entries)[..],
            [Violation::Inapplicable { number: 2, .. }]
        ));
    }
}
