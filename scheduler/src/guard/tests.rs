//! The guard against faults that the rules do not make: a state is falsified, and nothing stops.

use berth_api::container::{Autoscaling, ContainerSpec, Scale};
use berth_api::explain::Subject;
use berth_api::id::MachineId;

use super::*;
use crate::check::{Violation, check_reported};
use crate::entry::{Entry, Picked, StopCause};
use crate::explain::explain;
use crate::fixture::{Town, stateful, stateless};

fn name(text: &str) -> ContainerName {
    ContainerName::new(text).unwrap()
}

fn town() -> Town {
    let mut town = Town::of(5);
    town.put(stateless("web", 8));
    town.put(stateful("db", 4));
    town.settle();
    assert_eq!((town.ready("web"), town.ready("db")), (8, 4));
    town
}

/// A count that nobody has declared.
fn falsify(town: &mut Town, container: &str, count: u32) {
    town.world.containers.get_mut(&name(container)).unwrap().count = count;
}

#[test]
fn a_falsified_count_stops_nothing_and_is_told() {
    let mut town = town();
    falsify(&mut town, "web", 0);
    town.settle();
    assert_eq!(town.ready("web"), 7, "as many go as a rollout may take away");
    let held = town.world.held_stops().unwrap();
    assert_eq!(held.count, 7);
    let told = town.world.events().newest_first();
    let told: Vec<&str> = told.map(|event| event.message.as_str()).collect();
    assert!(
        told.iter().any(|message| message.contains("nobody has asked")),
        "{told:?}"
    );
    let id = town.places("web")[0].0.clone();
    let about = (Subject::Container, "web");
    let answer = explain(&town.world, &town.observed, &town.limits, town.now, about).unwrap();
    assert!(answer.to_string().contains("berth release"), "{id}: {answer}");

    // It was right after all: an operator says so.
    let at = town.now.wall;
    let until = at.plus(RELEASE);
    town.act(Entry::StopsReleased { until, at });
    town.settle();
    assert_eq!(town.ready("web"), 0);
    assert_eq!(town.world.held_stops(), None);
}

#[test]
fn a_hold_ends_when_nothing_asks_for_the_stops_any_more() {
    let mut town = town();
    falsify(&mut town, "web", 1);
    town.settle();
    assert!(town.world.held_stops().is_some());
    falsify(&mut town, "web", 8);
    town.settle();
    assert_eq!((town.world.held_stops(), town.ready("web")), (None, 8));
    falsify(&mut town, "web", 1);
    town.settle();
    assert!(town.world.held_stops().is_some());
    town.put(stateless("web", 1));
    town.settle();
    assert_eq!(
        (town.world.held_stops(), town.ready("web")),
        (None, 1),
        "a write asks for it"
    );
}

#[test]
fn a_fault_that_takes_few_at_a_time_is_held_as_well() {
    let mut town = town();
    let mut count = 8;
    for _ in 0..8 {
        count -= 1;
        falsify(&mut town, "web", count);
        town.settle();
    }
    assert!(town.ready("web") >= 5, "{}", town.ready("web"));
    town.put(stateless("web", 8));
    town.settle();
    assert_eq!((town.world.held_stops(), town.ready("web")), (None, 8));
}

#[test]
fn what_is_asked_for_is_never_held() {
    let mut town = town();
    town.put(stateless("web", 1));
    town.settle();
    assert_eq!(town.ready("web"), 1);
    let mut next = stateful("db", 4);
    next.image = "app:2".into();
    town.put(next);
    town.settle();
    assert_eq!(town.ready("db"), 4);
    let at = town.now.wall;
    for machine in ["m1", "m2", "m3"] {
        let machine_id = MachineId::new(machine).unwrap();
        town.act(Entry::MachineDraining { machine_id, at });
    }
    town.settle();
    assert_eq!(town.ready("db"), 4);
    town.act(Entry::ContainerStopped {
        container: name("db"),
        at,
    });
    town.act(Entry::ContainerDeleted {
        container: name("web"),
        at,
    });
    town.settle();
    assert_eq!(town.world.replicas().len(), 0);
    let is_hold = |entry: &&Entry| matches!(entry, Entry::StopsHeld { .. });
    assert_eq!(town.log.iter().filter(is_hold).count(), 0);
    town.assert_replay();
}

#[test]
fn a_scaled_container_gives_up_half_of_its_replicas_at_a_time() {
    let scaled = |desired| ContainerSpec {
        scale: Scale::Autoscaling(Autoscaling {
            min: 1,
            desired,
            max: 16,
            target_cpu_percent: 70.0,
            target_memory_percent: 80.0,
            target_http_in_flight_per_replica: None,
            max_http_p95_latency_ms: None,
        }),
        ..stateless("web", 1)
    };
    let mut town = Town::of(4);
    town.put(scaled(16));
    town.settle();
    assert_eq!(town.ready("web"), 16);
    let scaled = Entry::ContainerScaled(crate::entry::ContainerScaled {
        container: name("web"),
        count: 1,
        metric: None,
        of_target_permille: 0,
        at: town.now.wall,
    });
    town.act(scaled);
    town.decide();
    assert_eq!(town.places("web").len(), 8);
    town.settle();
    assert_eq!(town.ready("web"), 1);
    assert_eq!(town.world.held_stops(), None);
    town.assert_replay();
}

#[test]
fn who_goes_when_there_are_too_many_is_recorded_with_the_reason() {
    let mut town = town();
    let newest = town
        .world
        .replicas_of(&name("web"))
        .max_by_key(|replica| replica.sequence);
    let newest = newest.unwrap().replica_id.clone();
    town.put(stateless("web", 7));
    town.put(stateful("db", 3));
    town.decide();
    let stops: Vec<(String, Option<Picked>)> = town
        .log
        .iter()
        .filter_map(|entry| match entry {
            Entry::ReplicaStopping {
                replica_id,
                cause: StopCause::ScaledDown,
                picked,
                ..
            } => Some((replica_id.to_string(), *picked)),
            _ => None,
        })
        .collect();
    let expected = [
        ("db-3".to_owned(), Some(Picked::HighestOrdinal)),
        (newest.to_string(), Some(Picked::Newest)),
    ];
    assert_eq!(stops, expected);
    let about = (Subject::Replica, newest.as_str());
    let answer = explain(&town.world, &town.observed, &town.limits, town.now, about).unwrap();
    assert!(answer.summary.contains("it was the newest"), "{answer}");
}

/// The check knows by itself, without the rules that decide.
#[test]
fn the_check_refuses_a_decision_that_stops_what_nobody_asked_for() {
    let town = town();
    let stop = |replica_id: &ReplicaId| Entry::ReplicaStopping {
        replica_id: replica_id.clone(),
        cause: StopCause::Updated,
        picked: None,
        unasked: false,
        at: town.now.wall,
    };
    let check = |count: usize| {
        let entries: Vec<Entry> = town.world.replicas().keys().take(count).map(stop).collect();
        check_reported(&town.world, &town.observed, &town.limits, town.now, &entries)
    };
    assert_eq!(check(2), vec![]);
    let all = check(12);
    assert!(
        matches!(
            all.as_slice(),
            [Violation::MassStop {
                stopped: 10,
                allowed: 2
            }]
        ),
        "{all:?}"
    );
}

#[test]
fn an_ordinal_starts_again_only_when_its_volume_is_released() {
    let mut town = Town::of(2);
    town.put(stateful("db", 2));
    town.settle();
    town.is_release_slow = true;
    let mut next = stateful("db", 2);
    next.image = "app:2".into();
    town.put(next);
    for _ in 0..20 {
        town.tick(100);
        let name = name("db");
        let replicas: Vec<_> = town.world.replicas_of(&name).collect();
        let leaving = replicas.iter().filter(|replica| !replica.is_live()).count();
        assert_eq!(
            (replicas.len(), leaving),
            (2, 1),
            "one leaves, and nothing takes its place"
        );
    }
    let leaving = town
        .world
        .replicas()
        .values()
        .find(|replica| !replica.is_live())
        .unwrap();
    let gone = Entry::ReplicaGone {
        replica_id: leaving.replica_id.clone(),
        at: town.now.wall,
    };
    let found = check_reported(&town.world, &town.observed, &town.limits, town.now, &[gone]);
    assert!(matches!(found.as_slice(), [Violation::Left { .. }]), "{found:?}");
    town.is_release_slow = false;
    town.settle();
    assert_eq!(town.ready("db"), 2);
    town.assert_replay();
}

#[test]
fn begin_and_end_of_a_freeze_are_told() {
    let mut town = Town::of(3);
    town.put(stateless("web", 3));
    town.settle();
    town.kill("m1");
    town.tick(20_000);
    assert_eq!(town.world.frozen_since(), None, "one of three is no freeze");
    town.kill("m2");
    town.tick(20_000);
    assert!(town.world.frozen_since().is_some());
    town.restart();
    town.tick(100);
    assert!(town.world.frozen_since().is_some(), "a restart does not end it");
    let places = town.places("web");
    town.tick(60_000);
    assert_eq!(town.places("web"), places);
    town.revive("m1");
    town.settle();
    assert_eq!(town.world.frozen_since(), None);
    let told = |word: &str| {
        town.world
            .events()
            .newest_first()
            .filter(|event| event.message.contains(word))
            .count()
    };
    assert_eq!(
        (told("nothing moves until"), told("the freeze has ended")),
        (1, 1)
    );
    // By itself, when the silence has lasted for so long that the machines count as lost.
    town.kill("m1");
    town.tick(20_000);
    assert!(town.world.frozen_since().is_some());
    town.tick(town.limits.freeze_max_ms);
    town.settle();
    assert_eq!(town.world.frozen_since(), None);
    assert_eq!(town.ready("web"), 3, "and what was on them moves");
    town.assert_replay();
}

#[test]
fn fewer_machines_than_a_freeze_needs_are_none() {
    let mut town = Town::of(2);
    town.limits.freeze_min_machines = 3;
    town.put(stateless("web", 1));
    town.settle();
    town.kill("m1");
    town.kill("m2");
    town.tick(20_000);
    assert_eq!(town.world.frozen_since(), None);
}

/// A scaled container of `least` to 8 replicas.
fn scaled(image: &str, least: u32) -> ContainerSpec {
    let mut spec = stateless("web", 1);
    spec.image = image.into();
    spec.scale = Scale::Autoscaling(Autoscaling {
        min: least,
        desired: least,
        max: 8,
        target_cpu_percent: 50.0,
        target_memory_percent: 80.0,
        target_http_in_flight_per_replica: None,
        max_http_p95_latency_ms: None,
    });
    spec
}

/// What leaves on account of a rollout is paced as what is scaled down: both at once stop no more than half.
#[test]
fn a_scaled_container_that_is_declared_smaller_in_the_middle_of_a_rollout_goes_down_by_halves() {
    let mut town = Town::of(4);
    town.put(scaled("app:1", 8));
    town.settle();
    assert_eq!(town.ready("web"), 8);
    town.put(scaled("app:2", 8));
    while town.places("web").len() < 9 {
        town.decide();
    }
    town.put(scaled("app:2", 1));
    town.decide();
    assert!(town.ready("web") >= 4, "{}", town.ready("web"));
    assert_eq!(
        recent(&town.world, town.now.wall),
        0,
        "somebody has asked for every stop"
    );
    town.settle();
    assert_eq!((town.ready("web"), recent(&town.world, town.now.wall)), (1, 0));
}

/// What stops on machines that are off for good is never confirmed: it holds up no rollout.
#[test]
fn a_scaled_container_rolls_on_beside_machines_that_are_off_for_good() {
    let mut town = Town::of(9);
    town.put(scaled("app:1", 8));
    town.settle();
    for _ in 0..4 {
        let live = town.world.replicas().values().filter(|replica| replica.is_live());
        let mut on: BTreeMap<&str, usize> = BTreeMap::new();
        for replica in live {
            *on.entry(replica.machine_id.as_str()).or_default() += 1;
        }
        let (fullest, _) = on.iter().max_by_key(|(_, count)| **count).unwrap();
        let fullest = (*fullest).to_owned();
        town.kill(&fullest);
        town.tick(600_000);
        town.settle();
        assert_eq!(town.ready("web"), 8);
    }
    let left = town
        .world
        .replicas()
        .values()
        .filter(|replica| !replica.is_live());
    assert!(left.count() > 9, "more than the container is");
    town.put(scaled("app:2", 8));
    town.settle();
    let live = town.world.replicas().values().filter(|replica| replica.is_live());
    let images: BTreeSet<&str> = live
        .map(|replica| town.world.spec_of(replica).image.as_str())
        .collect();
    assert_eq!(images, BTreeSet::from(["app:2"]), "{:?}", town.report.waits);
    assert_eq!(recent(&town.world, town.now.wall), 0);
}

/// An ordinal beyond those declared goes, whatever the others do: that is asked for.
#[test]
fn an_ordinal_beyond_the_declared_is_asked_for() {
    let mut town = Town::of(4);
    town.put(stateful("db", 4));
    town.settle();
    town.sick.extend(["db-0".to_owned(), "db-1".to_owned()]);
    town.tick(1_000);
    town.put(stateful("db", 3));
    town.settle();
    assert_eq!(town.places("db").len(), 3);
    assert_eq!(recent(&town.world, town.now.wall), 0);
    assert_eq!(town.world.held_stops(), None);
}
