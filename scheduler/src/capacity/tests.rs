//! Capacity plans in a town of machines that obey: what is wished, when, and that granting a wish ends it.
//!
//! [`grant`] stands for whoever resizes machine groups: it adds what is wished and drains and ends what is named.

use berth_api::cluster::CapacityGroup;
use berth_api::container::ContainerSpec;
use berth_api::id::{GroupId, MachineId, Zone};
use berth_api::machine::MachineSpec;
use berth_api::units::{Bytes, Cpu};
use berth_api::volume::{OrdinalVolume, VolumeTarget};

use super::*;
use crate::entry::Removal;
use crate::fixture::{Town, gpu_share, group, machine, on_gpus, stateful, stateless};

pub(super) fn outlook(town: &Town) -> Outlook {
    outlook_of(town, "general")
}

fn outlook_of(town: &Town, group: &str) -> Outlook {
    let group = GroupId::new(group).unwrap();
    let found = town
        .report
        .capacity
        .iter()
        .find(|outlook| outlook.group_id == group);
    found.unwrap().clone()
}

fn wish(town: &Town) -> (u32, CapacityReason) {
    let outlook = outlook(town);
    (outlook.desired, outlook.reason)
}

fn resize(town: &mut Town, min_size: u32, max_size: u32) {
    let groups = vec![CapacityGroup {
        min_size,
        max_size,
        ..group("general", 0)
    }];
    let at = town.now.wall;
    town.act(Entry::GroupsChanged { groups, at });
}

/// Resizes the group as wished; machines that come stand in the zone that asks for them, else in zone a.
pub(super) fn grant(town: &mut Town, next: &mut u32) {
    let outlook = outlook(town);
    let present = outlook.running + outlook.initializing;
    for drain in &outlook.drains {
        town.act(Entry::MachineDraining {
            machine_id: drain.machine_id.clone(),
            at: town.now.wall,
        });
    }
    let mut zones: Vec<String> = vec![];
    for zone in &outlook.zones {
        let missing = zone.desired.saturating_sub(zone.running);
        zones.extend((0..missing).map(|_| zone.zone.to_string()));
    }
    for _ in present..outlook.desired {
        *next += 1;
        let zone = zones.pop().unwrap_or_else(|| "a".into());
        town.join(&format!("n{next}{zone}"), "general");
    }
    town.settle();
    let drained: Vec<MachineId> = self::outlook(town).drained;
    for machine_id in drained {
        town.act(Entry::MachineRemoved {
            machine_id,
            how: Removal::Empty,
            at: town.now.wall,
        });
    }
    town.settle();
}

fn large(name: &str, count: u32, cpu: u64, gib: u64) -> ContainerSpec {
    let mut spec = stateless(name, count);
    spec.resources.cpu.desired = Cpu::from_micros(cpu * 1_000_000);
    spec.resources.memory.desired = Bytes::gib(gib);
    spec
}

pub(super) fn on_disks(name: &str, zones: &[&str]) -> ContainerSpec {
    let count = u32::try_from(zones.len()).unwrap();
    let mut spec = stateful(name, count);
    let disk = |(ordinal, zone): (u32, &&str)| OrdinalVolume {
        ordinal,
        volume: VolumeTarget::Aws {
            volume_id: format!("vol-{name}{ordinal}"),
            zone: Zone::new(*zone).unwrap(),
        },
        mount_path: None,
    };
    spec.volumes = (0..).zip(zones).map(disk).collect();
    spec
}

/// Long enough for every cool-down.
const LONG_MS: u64 = 3_600_000;

/// Time passes while every machine goes on speaking.
fn rest(town: &mut Town, elapsed_ms: u64) {
    for _ in 0..elapsed_ms / 10_000 {
        town.tick(10_000);
    }
}

#[test]
fn an_empty_cluster_wishes_nothing_and_logs_nothing() {
    let mut town = Town::of(0);
    town.settle();
    assert_eq!(wish(&town), (0, CapacityReason::AtTarget));
    assert_eq!(town.log.len(), 1);
}

#[test]
fn replicas_without_a_place_are_packed_and_the_wish_granted_ends_it() {
    let mut town = Town::of(0);
    // A machine has 4 vCPU: five of these fit on three, two by two, which keeps room free as well.
    town.put(large("web", 5, 2, 1));
    town.settle();
    let before = outlook(&town);
    assert_eq!(
        (before.needed, before.needed_at_least, before.unplaced),
        (3, 3, 5)
    );
    assert_eq!(wish(&town), (3, CapacityReason::NeedCapacity));
    grant(&mut town, &mut 0);
    assert_eq!(town.ready("web"), 5);
    assert_eq!(wish(&town), (3, CapacityReason::AtTarget));
    town.assert_replay();
}

#[test]
fn machines_on_their_way_are_not_ordered_twice() {
    let mut town = Town::of(1);
    town.put(large("web", 3, 3, 1));
    town.settle();
    assert_eq!(wish(&town), (3, CapacityReason::NeedCapacity));
    // Registered, and never heard: it counts, until it has been awaited for too long.
    let entry = town
        .world
        .registration(machine("late", "general"), town.now.wall)
        .unwrap();
    town.act(entry);
    town.settle();
    assert_eq!(outlook(&town).initializing, 1);
    assert_eq!(wish(&town), (3, CapacityReason::NeedCapacity));
    rest(&mut town, 1_000_000);
    assert_eq!(outlook(&town).never_heard.len(), 1);
    assert_eq!(wish(&town), (3, CapacityReason::NeedCapacity));
}

#[test]
fn a_replica_larger_than_any_machine_orders_nothing_and_is_named() {
    let mut town = Town::of(1);
    town.put(large("huge", 1, 1, 9));
    town.settle();
    let outlook = outlook(&town);
    assert_eq!((outlook.unplaced, outlook.needed), (1, 0));
    assert_eq!(outlook.reason, CapacityReason::AtTarget);
    let [too_large] = &outlook.too_large[..] else {
        panic!("{outlook:?}")
    };
    assert_eq!(too_large.filter, Filter::Memory);
    assert_eq!(too_large.has, Bytes::gib(8).get());
}

#[test]
fn what_machines_keep_for_themselves_is_not_sold() {
    let mut town = Town::of(0);
    let mut spec: MachineSpec = machine("m1", "general");
    spec.capacity.memory.system_reserve = Bytes::gib(1);
    let entry = town.world.registration(spec, town.now.wall).unwrap();
    town.act(entry);
    // 8 GiB by the profile, 7 GiB in truth: one fills a machine, and two never share one.
    town.put(large("db", 2, 1, 4));
    town.put(large("whole", 1, 1, 8));
    town.settle();
    let outlook = outlook(&town);
    assert_eq!(outlook.too_large.len(), 1);
    assert_eq!(outlook.needed, 1);
}

#[test]
fn the_bounds_of_the_group_hold_and_are_said() {
    let mut town = Town::of(1);
    resize(&mut town, 0, 3);
    town.put(large("web", 9, 3, 1));
    town.settle();
    let outlook = outlook(&town);
    assert_eq!(wish(&town), (3, CapacityReason::AtMaxSize));
    assert!(!outlook.suffices);
    assert_eq!((outlook.needed, outlook.needed_at_least), (2, 8));
    resize(&mut town, 2, 3);
    town.act(Entry::ContainerDeleted {
        container: "web".parse().unwrap(),
        at: town.now.wall,
    });
    town.settle();
    rest(&mut town, LONG_MS);
    grant(&mut town, &mut 0);
    rest(&mut town, LONG_MS);
    // Nothing runs, and yet the minimum stands.
    assert_eq!(outlook_size(&town), (2, 2));
}

fn outlook_size(town: &Town) -> (u32, u32) {
    let outlook = outlook(town);
    (outlook.running, outlook.desired)
}

#[test]
fn disks_ask_for_machines_in_their_zones() {
    let mut town = Town::of(1);
    let mut spec = on_disks("db", &["b", "b", "c"]);
    spec.resources.cpu.desired = Cpu::from_micros(3_000_000);
    town.put(spec);
    town.settle();
    let outlook = outlook(&town);
    let zones: Vec<(String, u32, u32, u32)> = outlook
        .zones
        .iter()
        .map(|zone| (zone.zone.to_string(), zone.running, zone.desired, zone.unplaced))
        .collect();
    assert_eq!(zones, [("b".into(), 0, 2, 2), ("c".into(), 0, 1, 1)]);
    assert_eq!((outlook.needed, outlook.needed_at_least), (3, 3));
}

#[test]
fn little_room_left_wants_one_machine_more_and_no_second() {
    let mut town = Town::of(1);
    let mut full = large("web", 1, 1, 7);
    full.resources.memory.desired = Bytes::mib(7 * 1024 + 512);
    town.put(full);
    town.settle();
    assert_eq!(outlook(&town).utilization.map(Utilization::percent), Some(93));
    assert_eq!(wish(&town), (2, CapacityReason::HighUtilization));
    grant(&mut town, &mut 0);
    assert_eq!(wish(&town), (2, CapacityReason::AtTarget));
    rest(&mut town, LONG_MS);
    assert_eq!(wish(&town), (2, CapacityReason::AtTarget));
}

#[test]
fn a_group_shrinks_late_slowly_and_by_the_machines_it_names() {
    let mut town = Town::of(3);
    town.put(stateless("web", 3));
    town.put(stateful("db", 1));
    town.settle();
    assert_eq!(wish(&town), (3, CapacityReason::AtTarget));
    rest(&mut town, 500_000);
    assert_eq!(wish(&town), (3, CapacityReason::AtTarget));
    rest(&mut town, 200_000);
    let first = outlook(&town);
    assert_eq!((first.desired, first.reason), (2, CapacityReason::LowUtilization));
    let [drain] = &first.drains[..] else {
        panic!("{first:?}")
    };
    // m1 has the stateful one.
    assert_eq!(drain.machine_id.as_str(), "m2");
    assert!(
        drain
            .moves
            .iter()
            .all(|one| one.from == drain.machine_id && one.to != drain.machine_id)
    );
    grant(&mut town, &mut 0);
    assert_eq!(outlook_size(&town), (2, 2));
    assert_eq!((town.ready("web"), town.ready("db")), (3, 1));
    rest(&mut town, 500_000);
    assert_eq!(wish(&town), (2, CapacityReason::AtTarget));
    rest(&mut town, LONG_MS);
    // All of it would fill the last one wholly: two stay.
    assert_eq!(wish(&town), (2, CapacityReason::AtTarget));
    town.assert_replay();
}

#[test]
fn cool_downs_outlive_the_scheduler() {
    let mut town = Town::of(2);
    town.put(stateless("web", 1));
    town.settle();
    rest(&mut town, 500_000);
    assert_eq!(wish(&town), (2, CapacityReason::AtTarget));
    town.restart();
    town.settle();
    rest(&mut town, 120_000);
    assert_eq!(wish(&town), (1, CapacityReason::LowUtilization));
}

#[test]
fn a_machine_that_cannot_be_emptied_is_kept() {
    let mut town = Town::of(0);
    town.join("m1", "general");
    town.join("m2b", "general");
    town.settle();
    // Each disk holds its machine: zone a and zone b have one machine each.
    town.put(on_disks("db", &["a", "b"]));
    town.settle();
    rest(&mut town, LONG_MS);
    assert_eq!(wish(&town), (2, CapacityReason::AtTarget));
    assert_eq!(outlook(&town).drains, vec![]);
}

#[test]
fn silent_machines_shrink_no_group() {
    let mut town = Town::of(3);
    town.put(stateless("web", 3));
    town.settle();
    for id in ["m1", "m2", "m3"] {
        town.kill(id);
    }
    rest(&mut town, LONG_MS);
    let outlook = outlook(&town);
    assert_eq!((outlook.running, outlook.unhealthy.len()), (0, 3));
    assert_eq!(outlook.desired, 3);
    for id in ["m1", "m2", "m3"] {
        town.revive(id);
    }
    town.settle();
    assert_eq!(wish(&town), (3, CapacityReason::AtTarget));
}

#[test]
fn a_drain_without_room_asks_for_a_machine() {
    let mut town = Town::of(2);
    town.put(large("web", 2, 3, 1));
    town.settle();
    town.act(Entry::MachineDraining {
        machine_id: MachineId::new("m1").unwrap(),
        at: town.now.wall,
    });
    town.settle();
    assert_eq!(wish(&town), (2, CapacityReason::NeedCapacity));
    grant(&mut town, &mut 0);
    assert_eq!(town.ready("web"), 2);
    assert_eq!(wish(&town), (2, CapacityReason::AtTarget));
}

#[test]
fn shares_order_the_machines_that_they_fill_device_by_device() {
    let mut town = Town::of(0);
    // Two to a device and four to a machine, though five are no more than it has of GPUs in all.
    town.put(on_gpus("part", 5, gpu_share(400)));
    town.settle();
    let ordered = outlook_of(&town, "gpu");
    assert_eq!(
        (ordered.unplaced, ordered.needed, ordered.needed_at_least),
        (5, 2, 1)
    );
    assert_eq!(
        (ordered.desired, ordered.reason),
        (2, CapacityReason::NeedCapacity)
    );
    for id in ["g1", "g2"] {
        town.join(id, "gpu");
    }
    town.settle();
    assert_eq!(town.ready("part"), 5);
    let granted = outlook_of(&town, "gpu");
    assert_eq!((granted.running, granted.desired), (2, 2));
    assert_eq!(granted.reason, CapacityReason::AtTarget);
    // Two of four devices.
    assert_eq!(granted.utilization.map(Utilization::percent), Some(50));
    town.assert_replay();
}

/// The GPUs that were found for the former declaration are none that the present one may have.
#[test]
fn a_plan_moves_the_last_replica_of_a_former_declaration_that_wanted_other_gpus() {
    let mut town = Town::new();
    for id in ["g1", "g2"] {
        town.join(id, "gpu");
    }
    town.put(on_gpus("part", 1, gpu_share(300)));
    town.settle();
    town.put(on_gpus("part", 1, gpu_share(400)));
    let second = |town: &Town| {
        let mut replicas = town.world.replicas().values();
        replicas.find(|replica| replica.revision == 2).cloned()
    };
    while second(&town).is_none() {
        town.tick(100);
    }
    // It never completes, so its declaration goes with its replica.
    town.put(on_gpus("part", 1, gpu_share(500)));
    town.act(Entry::RolloutPaused {
        container: "part".parse().unwrap(),
        at: town.now.wall,
    });
    let replica = second(&town).unwrap();
    let moves = hypothesis::Hypothesis::of(&town.world).drain(&replica.machine_id, town.now.wall);
    let moves = moves.expect("the other machine has room");
    assert!(
        moves.iter().any(|one| one.replica_id == replica.replica_id),
        "{moves:?}"
    );
}

#[test]
fn changes_of_a_wish_are_told_once() {
    let mut town = Town::of(1);
    resize(&mut town, 1, 2);
    town.put(large("web", 9, 3, 1));
    town.settle();
    rest(&mut town, 60_000);
    let reasons = |town: &Town| -> Vec<(String, u32)> {
        let events = town.world.events().newest_first();
        let of_group = events.filter(|event| event.involved_object.kind() == "capacityGroup");
        of_group
            .map(|event| (event.reason().to_owned(), event.count))
            .collect()
    };
    let told = [
        ("CapacityGroupAtMaxSize".to_owned(), 1),
        ("CapacityGroupScaleUp".to_owned(), 1),
    ];
    assert_eq!(reasons(&town), told);
    grant(&mut town, &mut 0);
    town.act(Entry::ContainerDeleted {
        container: "web".parse().unwrap(),
        at: town.now.wall,
    });
    town.settle();
    rest(&mut town, LONG_MS);
    let newest: Vec<String> = reasons(&town)
        .into_iter()
        .map(|(reason, _)| reason)
        .take(2)
        .collect();
    assert_eq!(newest, ["CapacityGroupAtMinSize", "CapacityGroupScaleDown"]);
}
