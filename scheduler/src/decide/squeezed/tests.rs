//! Squeezed replicas over time, in a town of nodes that obey. Machines have 4 vCPU and 8 GiB.

use berth_api::container::{ContainerSpec, CpuRange, Granted};
use berth_api::id::{ContainerName, GroupId};
use berth_api::rest::cluster::CapacityReason;
use berth_api::rest::container::ContainerStatus;
use berth_api::units::{Bytes, Cpu};

use crate::entry::{Entry, StopCause};
use crate::fixture::{Town, stateful, stateless};
use crate::reconcile::WaitReason;
use crate::status::container_state;
use crate::world::Replica;

fn name(text: &str) -> ContainerName {
    ContainerName::new(text).unwrap()
}

/// Thousandths of a vCPU.
fn with(mut spec: ContainerSpec, min: u64, desired: u64) -> ContainerSpec {
    spec.resources.cpu = CpuRange {
        min: Cpu::from_micros(min * 1000),
        desired: Cpu::from_micros(desired * 1000),
    };
    spec
}

fn limit(town: &mut Town, max_size: u32) {
    let mut groups = town.world.spec().capacity_groups.clone();
    groups[0].max_size = max_size;
    let at = town.now.wall;
    town.act(Entry::GroupsChanged { groups, at });
}

fn delete(town: &mut Town, container: &str) {
    let at = town.now.wall;
    let container = name(container);
    town.act(Entry::ContainerDeleted { container, at });
}

/// Of every live replica of a container: what it is granted in thousandths of a vCPU; none for all that it desires.
fn granted(town: &Town, container: &str) -> Vec<Option<u64>> {
    let name = name(container);
    let live = town.world.replicas_of(&name).filter(|replica| replica.is_live());
    live.map(|replica| replica.granted.map(|granted| granted.cpu.micros() / 1000))
        .collect()
}

fn only<'a>(town: &'a Town, container: &str) -> &'a Replica {
    let mut replicas = town.world.replicas_of(&name(container));
    let replica = replicas.next().unwrap();
    assert!(replicas.next().is_none());
    replica
}

/// One machine in a group of at most one, of which `filler` takes `filled` thousandths of a vCPU.
fn full(filled: u64) -> Town {
    let mut town = Town::of(1);
    limit(&mut town, 1);
    town.put(with(stateless("filler", 1), filled, filled));
    town.settle();
    town
}

#[test]
fn a_replica_is_squeezed_where_the_group_may_have_no_more_machines() {
    let mut town = full(2500);
    town.put(with(stateless("web", 1), 500, 2000));
    town.settle();
    assert_eq!(granted(&town, "web"), [Some(1500)]);
    let replica = only(&town, "web");
    assert_eq!(replica.granted.unwrap().memory, Bytes::gib(1), "memory is there");
    let machine = town.world.machine(&replica.machine_id).unwrap();
    assert_eq!(machine.free().cpu, Cpu::ZERO);
    let assignment = replica.assignment(&town.world);
    assert_eq!(assignment.caps().cpu, Cpu::from_micros(1_500_000));
    let whole = berth_api::assignment::Assignment {
        granted: None,
        ..assignment.clone()
    };
    assert_eq!(assignment.digest(), whole.digest(), "more room restarts nothing");

    let state = container_state(&town.world, &town.observed, &name("web")).unwrap();
    assert_eq!(state.status, ContainerStatus::Running);
    assert_eq!(
        state.message.as_deref(),
        Some("1 of 1 replicas are squeezed: one runs with 1.5 of 2 vCPU")
    );
    let wait = town
        .report
        .waits
        .iter()
        .find(|wait| wait.container == name("web"))
        .unwrap();
    assert_eq!(
        wait.reason.to_string(),
        "room on machine m1: it is squeezed, runs with 1.5 of 2 vCPU"
    );
    assert!(wait.reason.helps().contains("raise maxSize of group general"));
    assert_eq!(town.world.container(&name("web")).unwrap().unplaced, 0);
    town.assert_replay();
}

#[test]
fn nobody_is_squeezed_where_a_machine_may_still_come() {
    let mut town = full(2500);
    limit(&mut town, 2);
    town.put(with(stateless("web", 1), 500, 2000));
    town.settle();
    assert_eq!(granted(&town, "web"), []);
    // Ordered and booting: it is waited for as well.
    limit(&mut town, 1);
    limit(&mut town, 2);
    let spec = crate::fixture::machine("m2", "general");
    let entry = town.world.registration(spec, town.now.wall).unwrap();
    town.act(entry);
    town.settle();
    assert_eq!(granted(&town, "web"), []);
    town.join("m2", "general");
    town.settle();
    assert_eq!(granted(&town, "web"), [None]);
}

#[test]
fn nobody_gets_less_than_the_minimum_and_what_fits_no_machine_is_said_as_such() {
    let mut town = full(2500);
    town.put(with(stateless("web", 1), 1600, 2000));
    town.put(with(stateless("giant", 1), 500, 5000));
    town.settle();
    assert_eq!(granted(&town, "web"), []);
    assert_eq!(granted(&town, "giant"), []);
    assert_eq!(town.world.container(&name("giant")).unwrap().unplaced, 1);
}

#[test]
fn it_grows_while_it_runs_when_room_returns() {
    let mut town = full(2500);
    town.put(with(stateless("web", 1), 500, 2000));
    town.settle();
    let before = only(&town, "web").clone();
    delete(&mut town, "filler");
    town.settle();
    let after = only(&town, "web");
    assert_eq!((after.granted, after.sequence), (None, before.sequence));
    let resized = town
        .log
        .iter()
        .filter(|entry| matches!(entry, Entry::ReplicaResized { granted: None, .. }));
    assert_eq!(resized.count(), 1);
    assert_eq!(town.ready("web"), 1);
    town.assert_replay();
}

#[test]
fn all_that_have_no_place_get_in_before_anybody_gets_more() {
    let mut town = full(1000);
    town.put(with(stateless("web", 2), 1000, 4000));
    town.settle();
    assert_eq!(granted(&town, "web"), [Some(1500), Some(1500)]);
    // A third one finds no room at its minimum: what was granted is not taken back.
    town.put(with(stateless("late", 1), 500, 1000));
    town.settle();
    assert_eq!(granted(&town, "late"), []);
    assert_eq!(granted(&town, "web"), [Some(1500), Some(1500)]);
}

#[test]
fn room_that_a_replica_without_a_place_can_use_is_kept_for_it() {
    let mut town = full(1000);
    town.put(with(stateless("small", 1), 500, 500));
    town.settle();
    town.put(with(stateless("web", 1), 500, 3000));
    town.settle();
    assert_eq!(granted(&town, "web"), [Some(2500)]);
    town.put(with(stateless("waits", 1), 1500, 1500));
    town.settle();
    delete(&mut town, "small");
    town.settle();
    assert_eq!(granted(&town, "web"), [Some(2500)], "half a vCPU is kept");
    delete(&mut town, "filler");
    town.settle();
    assert_eq!(granted(&town, "waits"), [None]);
    assert_eq!(granted(&town, "web"), [Some(2500)]);
}

#[test]
fn squeezed_replicas_order_a_machine_where_there_may_be_one_and_are_relieved_by_it() {
    let mut town = full(2500);
    town.put(with(stateless("web", 1), 500, 2000));
    town.settle();
    let group = GroupId::new("general").unwrap();
    assert_eq!(town.world.wish(&group).reason, CapacityReason::AtMaxSize);
    assert_eq!(town.report.capacity[0].unplaced, 0, "it has a place");
    limit(&mut town, 2);
    town.settle();
    let wish = town.world.wish(&group);
    assert_eq!((wish.desired, wish.reason), (2, CapacityReason::NeedCapacity));
    let squeezed = only(&town, "web").replica_id.clone();
    town.join("m2", "general");
    while town.world.replica(&squeezed).is_some() {
        assert!(town.ready("web") >= 1, "a whole one comes first");
        town.tick(100);
    }
    town.settle();
    let whole = only(&town, "web");
    assert_eq!((whole.granted, whole.machine_id.as_str()), (None, "m2"));
    assert_eq!(whole.relieves.as_ref(), Some(&squeezed));
    assert!(town.log.iter().any(|entry| matches!(
        entry,
        Entry::ReplicaStopping { replica_id, cause: StopCause::Relieved, .. } if *replica_id == squeezed
    )));
    assert_eq!(town.world.wish(&group).reason, CapacityReason::AtTarget);
    town.assert_replay();
}

#[test]
fn a_whole_replica_that_does_not_come_up_leaves_the_squeezed_one_in_place() {
    let mut town = full(2500);
    town.put(with(stateless("web", 1), 500, 2000));
    town.settle();
    let squeezed = only(&town, "web").replica_id.clone();
    limit(&mut town, 2);
    town.join("m2", "general");
    town.broken_images.insert("app:1".into());
    // It runs already, so only the new one fails.
    town.settle();
    let placed = town.world.placed_count();
    for _ in 0..20 {
        town.tick(60_000);
    }
    assert!(town.world.replica(&squeezed).is_some_and(Replica::is_live));
    assert_eq!(town.world.placed_count(), placed, "it is not tried over and over");
    town.broken_images.clear();
    town.settle();
    assert_eq!(granted(&town, "web"), [None]);
}

#[test]
fn a_stateful_replica_grows_where_its_volume_is() {
    let mut town = full(2500);
    town.put(with(stateful("db", 1), 500, 2000));
    town.settle();
    assert_eq!(granted(&town, "db"), [Some(1500)]);
    limit(&mut town, 2);
    town.join("m2", "general");
    town.settle();
    assert_eq!(granted(&town, "db"), [Some(1500)], "it is not moved");
    let wait = town
        .report
        .waits
        .iter()
        .find(|wait| wait.container == name("db"))
        .unwrap();
    assert!(matches!(&wait.reason, WaitReason::Squeezed(squeeze) if squeeze.is_bound));
    assert!(wait.reason.helps().contains("other replicas leave machine m1"));
    delete(&mut town, "filler");
    town.settle();
    assert_eq!(granted(&town, "db"), [None]);
    assert_eq!(town.ready("db"), 1);
}

#[test]
fn a_rollout_of_a_single_replica_goes_on_squeezed_in_a_full_group() {
    let mut town = full(1000);
    town.put(with(stateless("web", 1), 500, 2000));
    town.settle();
    let before = only(&town, "web").replica_id.clone();
    let mut next = with(stateless("web", 1), 500, 2000);
    next.image = "app:2".into();
    town.put(next);
    while town.world.replica(&before).is_some() {
        assert!(town.ready("web") >= 1);
        town.tick(100);
    }
    town.settle();
    let after = only(&town, "web");
    assert_eq!(
        (after.revision, after.granted),
        (2, None),
        "it grew when the old one left"
    );
}

#[test]
fn memory_is_squeezed_by_itself() {
    let mut town = Town::of(1);
    limit(&mut town, 1);
    let mut filler = stateless("filler", 1);
    filler.resources.memory.min = Bytes::mib(5 * 1024 + 300);
    filler.resources.memory.desired = filler.resources.memory.min;
    town.put(filler);
    town.settle();
    let mut web = stateless("web", 1);
    web.resources.memory.desired = Bytes::gib(4);
    town.put(web);
    town.settle();
    let expected = Granted {
        cpu: Cpu::from_micros(1_000_000),
        memory: Bytes::mib(3 * 1024 - 300),
    };
    assert_eq!(only(&town, "web").granted, Some(expected));
}
