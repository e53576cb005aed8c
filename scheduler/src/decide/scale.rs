//! What a decision costs in a large cluster when little happens: 1 000 machines, 300 containers, 10 000 replicas. Ignored:
//! it measures, and only an optimised build says something (`cargo test --release -p berth-scheduler --lib scale --
//! --ignored --nocapture`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use berth_api::id::MachineId;
use berth_api::machine::MachineHealth;
use berth_api::replica::{Phase, ReplicaStatus};
use berth_api::time::monotonic;
use berth_api::units::{Bytes, Cpu};

use super::decide;
use crate::check::{check, check_all};
use crate::entry::{Entry, MachineHealthState, Placed, StopCause};
use crate::fixture::{cluster, machine, stateless};
use crate::liveness::Limits;
use crate::world::{Now, Observed, ObservedMachine, World};

const MACHINES: u32 = 1_000;
const CONTAINERS: u32 = 300;
const REPLICAS: u32 = 10_000;

fn now() -> Now {
    Now {
        wall: berth_api::time::Timestamp::from_millis(2_000),
        monotonic_ms: 2_000,
    }
}

fn declared(number: u32) -> berth_api::container::ContainerSpec {
    let count = REPLICAS / CONTAINERS + u32::from(number < REPLICAS % CONTAINERS);
    let mut spec = stateless(&format!("c{number}"), count);
    let cpu = Cpu::from_micros(250_000);
    (spec.resources.cpu.min, spec.resources.cpu.desired) = (cpu, cpu);
    let memory = Bytes::mib(256);
    (spec.resources.memory.min, spec.resources.memory.desired) = (memory, memory);
    spec
}

/// Everything placed and running.
fn world() -> World {
    let mut spec = cluster();
    spec.container_cidr = "10.128.0.0/12".parse().unwrap();
    for group in &mut spec.capacity_groups {
        group.max_size = 2 * MACHINES;
    }
    let at = now().wall;
    let mut world = World::create(&Entry::ClusterCreated {
        spec,
        tokens: BTreeMap::new(),
        at,
    })
    .unwrap();
    for number in 0..MACHINES {
        let machine_id = MachineId::new(format!("i-{number:017x}")).unwrap();
        world.apply(&Entry::MachineRegistered {
            link_key: None,
            spec: machine(machine_id.as_str(), "general"),
            subnet_index: number,
            at,
        });
        world.apply(&Entry::MachineHealthChanged {
            machine_id,
            state: MachineHealthState::Running,
            at,
        });
    }
    for number in 0..CONTAINERS {
        let entry = world.put(declared(number), at);
        world.apply(&entry);
    }
    let machines: Vec<MachineId> = world.machines().keys().cloned().collect();
    for number in 0..REPLICAS {
        let machine_id = machines[usize::try_from(number % MACHINES).unwrap()].clone();
        let [a, b, c, _] = world
            .machine(&machine_id)
            .unwrap()
            .network
            .cidr
            .network()
            .octets();
        let container = format!("c{}", number % CONTAINERS);
        world.apply(&Entry::ReplicaPlaced(Placed {
            replica_id: format!("{container}-{machine_id}-{number:05}").parse().unwrap(),
            container: container.parse().unwrap(),
            ordinal: None,
            revision: 1,
            ip: IpAddr::from([a, b, c, u8::try_from(2 + number / MACHINES).unwrap()]),
            machine_id,
            host_port: None,
            devices: vec![],
            chosen: None,
            granted: None,
            relieves: None,
            at,
        }));
    }
    world
}

fn observed(world: &World) -> Observed {
    let mut observed = Observed::new(0);
    for id in world.machines().keys() {
        let replicas = world.replicas_on(id).map(|replica| {
            let status = ReplicaStatus::new(replica.replica_id.clone(), Phase::Healthy);
            (replica.replica_id.clone(), status)
        });
        let machine = ObservedMachine {
            heartbeat_ms: Some(now().monotonic_ms),
            heartbeat_at: Some(now().wall),
            is_linked: true,
            accepted: Some((1, u64::MAX)),
            replicas: replicas.collect(),
            http: BTreeMap::new(),
            unlisted: std::collections::BTreeSet::new(),
            health: MachineHealth::default(),
        };
        observed.machines.insert(id.clone(), machine);
    }
    observed
}

/// The shortest of some runs.
fn measured<T>(what: &str, mut run: impl FnMut() -> T) -> T {
    let mut shortest = Duration::MAX;
    let mut last = None;
    for _ in 0..7 {
        let start = monotonic();
        last = Some(run());
        shortest = shortest.min(start.elapsed());
    }
    println!("{what}: {shortest:?}");
    last.unwrap()
}

#[test]
#[ignore = "measures; says something only in an optimised build"]
fn a_decision_costs_little_when_little_happens() {
    let mut world = world();
    let observed = observed(&world);
    let limits = Limits::default();
    // The first decision remembers what the capacity plan says.
    for entry in decide(&world, &observed, &limits, now()).entries {
        world.apply(&entry);
    }
    let quiet = measured("decide, nothing to do", || {
        decide(&world, &observed, &limits, now())
    });
    assert_eq!(quiet.entries, vec![]);
    measured("clone of the world", || world.clone());
    let replica_id = world.replicas().keys().next().unwrap().clone();
    let at = now().wall;
    world.apply(&Entry::ReplicaStopping {
        replica_id: replica_id.clone(),
        cause: StopCause::Updated,
        picked: None,
        unasked: false,
        at,
    });
    let mut observed = observed;
    for machine in observed.machines.values_mut() {
        machine.replicas.remove(&replica_id);
    }
    let one = measured("decide, one gone and one to place", || {
        decide(&world, &observed, &limits, now())
    });
    assert!(
        one.entries
            .iter()
            .any(|entry| matches!(entry, Entry::ReplicaPlaced(_)))
    );
    let found = measured("check", || check(&world, &one.entries));
    assert_eq!(found, measured("check_all", || check_all(&world, &one.entries)));
}
