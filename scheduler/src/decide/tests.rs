//! Decisions over time, in a town of nodes that obey. Every tick of a town checks the decision independently and proves
//! that deciding again changes nothing.

use berth_api::container::{LoadBalancerTarget, Scale};
use berth_api::id::{ContainerName, MachineId};
use berth_api::units::{Bytes, Cpu};

use super::*;
use crate::entry::Removal;
use crate::fixture::{Town, stateful, stateless};
use crate::placement::{Filter, Why};

fn name(text: &str) -> ContainerName {
    ContainerName::new(text).unwrap()
}

fn drain(town: &mut Town, id: &str) {
    town.act(Entry::MachineDraining {
        machine_id: MachineId::new(id).unwrap(),
        at: town.now.wall,
    });
}

fn machines(town: &Town, container: &str) -> Vec<String> {
    let mut machines: Vec<String> = town
        .places(container)
        .into_iter()
        .map(|(_, machine)| machine)
        .collect();
    machines.sort();
    machines
}

fn has_wait(town: &Town, test: impl Fn(&WaitReason) -> bool) -> bool {
    town.report.waits.iter().any(|wait| test(&wait.reason))
}

#[test]
fn spreads_a_container_over_three_machines_and_packs_the_rest() {
    let mut town = Town::of(4);
    town.put(stateless("reader", 3));
    town.settle();
    assert_eq!(machines(&town, "reader"), ["m1", "m2", "m3"]);
    town.put(stateless("cache", 1));
    town.settle();
    // Best fit: not the empty m4.
    assert_eq!(machines(&town, "cache"), ["m1"]);
    assert_eq!(town.ready("reader"), 3);
    town.assert_replay();
}

#[test]
fn says_why_a_replica_has_no_place() {
    let mut town = Town::of(2);
    let mut big = stateless("big", 1);
    big.resources.memory.desired = Bytes::gib(9);
    town.put(big);
    town.put(stateless("many", 9));
    town.settle();
    let why = |container: &str| {
        let wait = town
            .report
            .waits
            .iter()
            .find(|wait| wait.container == name(container))
            .unwrap();
        match &wait.reason {
            WaitReason::NoPlace(unplaced) => (**unplaced).clone(),
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(why("big").why, Why::LargerThanMachine { .. }));
    assert_eq!(why("many").counts, [(Filter::Cpu, 2)]);
    assert_eq!(town.world.container(&name("many")).unwrap().unplaced, 1);
    assert_eq!(town.places("many").len(), 8);

    let mut elsewhere = stateless("elsewhere", 1);
    elsewhere.capacity_group = "gpu".parse().unwrap();
    town.put(elsewhere);
    town.settle();
    assert!(has_wait(&town, |reason| matches!(
        reason,
        WaitReason::NoPlace(unplaced) if matches!(unplaced.why, Why::GroupEmpty { .. })
    )));
    // A machine comes: what waited is placed, and the count of unplaced ones falls to nothing.
    town.join("g1", "gpu");
    town.join("m3", "general");
    town.settle();
    assert_eq!(
        town.world.container(&name("elsewhere")).unwrap().unplaced_since,
        None
    );
    assert_eq!(town.places("many").len(), 9);
    town.assert_replay();
}

#[test]
fn only_containers_behind_a_load_balancer_get_a_host_port() {
    let mut town = Town::of(1);
    let mut front = stateless("front", 2);
    front.load_balancer_target = Some(LoadBalancerTarget::Gcp {
        neg_name: "neg".into(),
    });
    town.put(front);
    town.put(stateless("back", 1));
    town.settle();
    let ports = |container: &str| {
        let name = name(container);
        let replicas = town.world.replicas_of(&name);
        let mut ports: Vec<_> = replicas.map(|replica| replica.host_port).collect();
        ports.sort();
        ports
    };
    assert_eq!(ports("front"), [Some(8001), Some(8002)]);
    assert_eq!(ports("back"), [None]);
}

#[test]
fn a_rollout_replaces_one_at_a_time_and_keeps_the_count_serving() {
    let mut town = Town::of(3);
    town.put(stateless("reader", 3));
    town.settle();
    let mut next = stateless("reader", 3);
    next.image = "app:2".into();
    town.put(next);
    for _ in 0..60 {
        town.tick(100);
        assert!(town.ready("reader") >= 3, "{:?}", town.report);
        assert!(
            town.world
                .replicas_of(&name("reader"))
                .filter(|r| r.is_live())
                .count()
                <= 4
        );
    }
    let revisions: Vec<u64> = town
        .world
        .replicas()
        .values()
        .map(|replica| replica.revision)
        .collect();
    assert_eq!(revisions, [2, 2, 2]);
    let older = &town.world.container(&name("reader")).unwrap().older;
    assert_eq!(
        older.keys().copied().collect::<Vec<_>>(),
        [1],
        "what it may go back to"
    );
    town.assert_replay();
}

#[test]
fn a_broken_rollout_stops_at_the_surge_and_the_old_ones_serve_on() {
    let mut town = Town::of(3);
    town.put(stateless("reader", 3));
    town.settle();
    let mut next = stateless("reader", 3);
    next.image = "broken".into();
    town.broken_images.insert("broken".into());
    town.put(next);
    town.settle();
    assert_eq!(town.ready("reader"), 3);
    assert_eq!(town.places("reader").len(), 4);
    assert!(has_wait(&town, |reason| matches!(
        reason,
        WaitReason::Ready { .. }
    )));
    let state = crate::status::container_state(&town.world, &town.observed, &name("reader")).unwrap();
    assert_eq!(state.status, berth_api::rest::container::ContainerStatus::Failing);
    // The next configuration replaces the broken one; the former ones never come back.
    let mut mended = stateless("reader", 3);
    mended.image = "app:3".into();
    town.put(mended);
    town.settle();
    assert_eq!(town.ready("reader"), 3);
    assert!(
        town.world
            .replicas()
            .values()
            .all(|replica| replica.revision == 3)
    );
}

#[test]
fn a_rollout_in_a_full_cluster_makes_room_one_by_one() {
    let mut town = Town::of(2);
    town.put(stateless("reader", 8));
    town.settle();
    let mut next = stateless("reader", 8);
    next.image = "app:2".into();
    town.put(next);
    for _ in 0..200 {
        town.tick(100);
        assert!(town.ready("reader") >= 6, "{}", town.ready("reader"));
    }
    assert!(
        town.world
            .replicas()
            .values()
            .all(|replica| replica.revision == 2)
    );
    assert_eq!(town.ready("reader"), 8);
}

#[test]
fn an_equal_content_restarts_nothing() {
    let mut town = Town::of(1);
    town.put(stateful("db", 1));
    town.settle();
    let before = town.places("db");
    let sequence = town.world.placed_count();
    let mut more = stateful("db", 2);
    more.links = vec!["store".into()];
    town.put(more);
    town.settle();
    assert_eq!(town.places("db")[0], before[0]);
    assert_eq!(
        town.world.placed_count(),
        sequence + 1,
        "only the second ordinal is new"
    );
}

#[test]
fn scaling_down_takes_unready_and_newest_replicas_first() {
    let mut town = Town::of(3);
    town.put(stateless("reader", 2));
    town.settle();
    let old: Vec<String> = town.places("reader").into_iter().map(|(id, _)| id).collect();
    town.put(stateless("reader", 5));
    town.settle();
    town.put(stateless("reader", 2));
    town.settle();
    let mut left: Vec<String> = town.places("reader").into_iter().map(|(id, _)| id).collect();
    left.sort();
    let mut expected = old;
    expected.sort();
    assert_eq!(left, expected);
}

#[test]
fn stateful_ordinals_go_from_the_top_and_update_from_the_bottom() {
    let mut town = Town::of(3);
    town.put(stateful("db", 3));
    town.settle();
    assert_eq!(town.ready("db"), 3);
    let mut next = stateful("db", 3);
    next.image = "app:2".into();
    town.put(next);
    let mut updated: Vec<u32> = vec![];
    for _ in 0..100 {
        town.tick(100);
        assert!(town.ready("db") >= 2);
        for replica in town
            .world
            .replicas_of(&name("db"))
            .filter(|replica| replica.revision == 2)
        {
            let ordinal = replica.ordinal.unwrap();
            if !updated.contains(&ordinal) {
                updated.push(ordinal);
            }
        }
    }
    assert_eq!(updated, [0, 1, 2]);
    town.put(ContainerSpecOf(stateful("db", 1), "app:2").into());
    town.tick(100);
    let live: Vec<String> = town.places("db").into_iter().map(|(id, _)| id).collect();
    assert_eq!(live, ["db-0", "db-1"], "one at a time, the highest first");
    town.settle();
    assert_eq!(town.places("db").len(), 1);
    town.assert_replay();
}

/// A declaration with another image.
struct ContainerSpecOf(berth_api::container::ContainerSpec, &'static str);

impl From<ContainerSpecOf> for berth_api::container::ContainerSpec {
    fn from(ContainerSpecOf(mut spec, image): ContainerSpecOf) -> Self {
        spec.image = image.into();
        spec
    }
}

#[test]
fn stateless_replicas_of_a_lost_machine_move_after_the_grace_and_return_as_stops() {
    let mut town = Town::of(3);
    town.put(stateless("reader", 3));
    town.settle();
    town.kill("m1");
    town.tick(16_000);
    assert_eq!(
        machines(&town, "reader"),
        ["m1", "m2", "m3"],
        "the grace is not over"
    );
    assert!(has_wait(&town, |reason| matches!(
        reason,
        WaitReason::Grace { .. }
    )));
    town.tick(15_000);
    assert!(!machines(&town, "reader").contains(&"m1".to_owned()));
    assert_eq!(town.places("reader").len(), 3);
    let set = town.world.assignment_set(&MachineId::new("m1").unwrap()).unwrap();
    assert_eq!((set.replicas.len(), set.stops.len()), (0, 1));
    town.revive("m1");
    town.settle();
    assert_eq!(town.world.replicas().len(), 3);
    town.assert_replay();
}

#[test]
fn a_lost_replica_without_another_place_is_not_given_up() {
    let mut town = Town::of(2);
    town.put(stateless("reader", 8));
    town.settle();
    town.kill("m2");
    for _ in 0..5 {
        town.tick(15_000);
    }
    assert_eq!(town.places("reader").len(), 8, "they may still serve");
    assert_eq!(town.world.container(&name("reader")).unwrap().unplaced, 4);
    town.revive("m2");
    town.settle();
    assert_eq!(town.ready("reader"), 8);
    assert_eq!(town.world.container(&name("reader")).unwrap().unplaced, 0);
}

#[test]
fn stateful_replicas_wait_until_the_machine_is_back_or_declared_off() {
    let mut town = Town::of(3);
    town.put(stateful("db", 3));
    town.settle();
    let on_m1 = town
        .places("db")
        .into_iter()
        .find(|(_, machine)| machine == "m1")
        .unwrap()
        .0;
    town.kill("m1");
    for _ in 0..10 {
        town.tick(30_000);
    }
    assert!(town.places("db").contains(&(on_m1.clone(), "m1".into())));
    assert!(has_wait(&town, |reason| matches!(
        reason,
        WaitReason::Fenced { .. }
    )));
    town.power_off("m1");
    town.settle();
    let place = town
        .places("db")
        .into_iter()
        .find(|(id, _)| *id == on_m1)
        .unwrap();
    assert_ne!(place.1, "m1");
    assert_eq!(town.ready("db"), 3);
    town.assert_replay();
}

#[test]
fn more_than_half_silent_freezes_moves_and_the_freeze_ends() {
    let mut town = Town::of(3);
    town.put(stateless("reader", 3));
    town.settle();
    town.kill("m1");
    town.kill("m2");
    town.tick(16_000);
    town.tick(30_000);
    assert!(town.report.freeze.is_some());
    assert_eq!(machines(&town, "reader"), ["m1", "m2", "m3"]);
    let names = town.world.directory(&town.observed, &town.limits, town.now);
    assert_eq!(
        names["reader.svc"].len(),
        3,
        "silent machines most likely still serve"
    );
    // It ends by itself when the silence has lasted too long.
    town.tick(town.limits.freeze_max_ms);
    assert!(town.report.freeze.is_none());
    assert_eq!(machines(&town, "reader"), ["m3", "m3", "m3"]);
}

#[test]
fn a_drain_places_stateless_replicas_elsewhere_first_and_stops_stateful_ones_one_by_one() {
    let mut town = Town::of(2);
    town.put(stateless("reader", 2));
    town.put(stateful("db", 2));
    town.settle();
    drain(&mut town, "m1");
    for _ in 0..60 {
        town.tick(100);
        assert!(
            town.ready("reader") >= 2 && town.ready("db") >= 1,
            "{:?}",
            town.report
        );
    }
    assert_eq!(machines(&town, "reader"), ["m2", "m2"]);
    assert_eq!(machines(&town, "db"), ["m2", "m2"]);
    town.act(Entry::MachineRemoved {
        machine_id: MachineId::new("m1").unwrap(),
        how: Removal::Empty,
        at: town.now.wall,
    });
    town.settle();
    town.assert_replay();
}

#[test]
fn a_drain_without_room_elsewhere_stops_nothing() {
    let mut town = Town::of(2);
    town.put(stateful("db", 2));
    let mut filler = stateless("filler", 2);
    filler.resources.cpu.desired = Cpu::from_micros(3_000_000);
    town.put(filler);
    town.settle();
    drain(&mut town, "m1");
    town.settle();
    assert_eq!(town.ready("db"), 2);
    assert_eq!(town.ready("filler"), 2);
    assert!(has_wait(&town, |reason| matches!(
        reason,
        WaitReason::NoRoomToMove(_)
    )));
    assert!(has_wait(&town, |reason| matches!(
        reason,
        WaitReason::NoRoomToMove(unplaced) if unplaced.would_help.iter().any(|help| matches!(
            help,
            placement::Help::AddMachine { .. }
        ))
    )));
}

#[test]
fn stop_start_and_delete_of_a_container() {
    let mut town = Town::of(1);
    town.put(stateful("db", 1));
    town.settle();
    let (container, at) = (name("db"), town.now.wall);
    town.act(Entry::ContainerStopped {
        container: container.clone(),
        at,
    });
    town.settle();
    assert!(town.world.replicas().is_empty());
    town.act(Entry::ContainerStarted {
        container: container.clone(),
        at,
    });
    town.settle();
    assert_eq!(town.ready("db"), 1);
    town.act(Entry::ContainerDeleted {
        container: container.clone(),
        at,
    });
    assert!(
        town.world.container(&container).is_some(),
        "it is kept until its replica is gone"
    );
    town.settle();
    assert!(town.world.container(&container).is_none());
    town.assert_replay();
}

#[test]
fn a_restart_of_the_scheduler_moves_nothing() {
    let mut town = Town::of(3);
    town.put(stateless("reader", 3));
    town.settle();
    let before = town.log.len();
    town.restart();
    town.decide();
    town.tick(2_000);
    assert_eq!(town.log.len(), before);
}

#[test]
fn a_returning_machine_never_sees_a_generation_twice() {
    let mut town = Town::of(2);
    town.put(stateless("reader", 2));
    town.settle();
    let id = MachineId::new("m1").unwrap();
    let before = town.world.machine(&id).unwrap().generation;
    town.power_off("m1");
    town.join("m1", "general");
    assert!(town.world.machine(&id).unwrap().generation > before);
}

#[test]
fn autoscaling_keeps_the_count_that_was_found() {
    let mut town = Town::of(2);
    let scale = |min, desired, max| {
        Scale::Autoscaling(berth_api::container::Autoscaling {
            min,
            desired,
            max,
            target_cpu_percent: 70.0,
            target_memory_percent: 80.0,
            target_http_in_flight_per_replica: None,
            max_http_p95_latency_ms: None,
        })
    };
    let spec = |scale| berth_api::container::ContainerSpec {
        scale,
        ..stateless("reader", 1)
    };
    town.put(spec(scale(2, 3, 20)));
    town.settle();
    assert_eq!(town.ready("reader"), 3);
    town.put(spec(scale(1, 3, 2)));
    town.settle();
    assert_eq!(town.ready("reader"), 2);
}
