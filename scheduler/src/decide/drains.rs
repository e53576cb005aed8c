//! Drains with a deadline: until then nothing is lost, after it nothing is waited for; and what a drain waits for is said.

use std::time::Duration;

use berth_api::container::{ContainerSpec, DisruptionBudget};
use berth_api::explain::Subject;
use berth_api::id::MachineId;

use crate::entry::Entry;
use crate::explain::explain;
use crate::fixture::{Town, stateful, stateless};

fn m1() -> MachineId {
    MachineId::new("m1").unwrap()
}

fn drain(town: &mut Town, deadline_seconds: u64) {
    let at = town.now.wall;
    let machine_id = m1();
    town.act(Entry::MachineDraining { machine_id, at });
    let (machine_id, from) = (m1(), at.plus(Duration::from_secs(deadline_seconds)));
    town.act(Entry::MachineDrainForced { machine_id, from, at });
}

/// One machine with a stateless and a stateful replica, and nowhere else to go.
fn stuck() -> Town {
    let mut town = Town::of(1);
    town.put(stateless("web", 1));
    town.put(stateful("db", 1));
    town.settle();
    assert_eq!((town.ready("web"), town.ready("db")), (1, 1));
    town
}

#[test]
fn what_is_left_at_the_deadline_is_stopped() {
    let mut town = stuck();
    drain(&mut town, 60);
    town.settle();
    assert_eq!(
        (town.ready("web"), town.ready("db")),
        (1, 1),
        "they serve until then"
    );
    town.tick(61_000);
    town.settle();
    assert_eq!(town.world.replicas().len(), 0);
    assert_eq!(town.world.container(&"web".parse().unwrap()).unwrap().unplaced, 1);
    town.join("m2", "general");
    town.settle();
    assert_eq!(
        (town.ready("web"), town.ready("db")),
        (1, 1),
        "and start where there is room"
    );
    town.assert_replay();
}

#[test]
fn a_cancelled_drain_has_no_deadline() {
    let mut town = stuck();
    drain(&mut town, 60);
    let at = town.now.wall;
    town.act(Entry::MachineDrainCancelled { machine_id: m1(), at });
    town.act(Entry::MachineDraining { machine_id: m1(), at });
    town.tick(120_000);
    town.settle();
    assert_eq!((town.ready("web"), town.ready("db")), (1, 1));
}

#[test]
fn all_ordinals_of_a_machine_go_at_once_past_the_deadline() {
    let mut town = Town::of(1);
    town.put(stateful("db", 3));
    town.settle();
    town.join("m2", "general");
    town.settle();
    drain(&mut town, 0);
    town.tick(100);
    let name = "db".parse().unwrap();
    assert!(town.world.replicas_of(&name).all(|replica| !replica.is_live()));
    town.settle();
    assert_eq!(town.ready("db"), 3);
    assert!(town.places("db").iter().all(|(_, machine)| machine == "m2"));
}

#[test]
fn a_deadline_stops_nothing_that_may_still_write_on_a_silent_machine() {
    let mut town = stuck();
    town.join("m2", "general");
    town.join("m3", "general");
    town.kill("m1");
    town.tick(16_000);
    drain(&mut town, 0);
    for _ in 0..10 {
        town.tick(60_000);
    }
    let places = town.places("db");
    assert!(places.iter().all(|(_, machine)| machine == "m1"), "{places:?}");
    assert_eq!(places.len(), 1, "it is not told to stop");
    let about = (Subject::Machine, "m1");
    let answer = explain(&town.world, &town.observed, &town.limits, town.now, about).unwrap();
    assert_eq!(answer.state, "unhealthy");
    assert!(answer.summary.contains("it is draining"), "{answer}");
    let blocker = format!("replica {} to leave", places[0].0);
    assert!(
        answer.waits.iter().any(|wait| wait.what.starts_with(&blocker)),
        "{answer}"
    );
}

#[test]
fn every_replica_that_is_left_says_what_it_waits_for_and_until_when() {
    let mut town = stuck();
    drain(&mut town, 60);
    town.settle();
    let about = (Subject::Machine, "m1");
    let answer = explain(&town.world, &town.observed, &town.limits, town.now, about).unwrap();
    for replica in town.world.replicas().keys() {
        let text = format!("replica {replica} to leave, which waits for room for its replacement");
        let wait = answer.waits.iter().find(|wait| wait.what.starts_with(&text));
        let wait = wait.unwrap_or_else(|| panic!("{text}: {answer}"));
        assert!(wait.next_attempt.is_some() && !wait.helps.is_empty(), "{wait:?}");
        assert!(wait.what.contains("it is stopped at"), "{wait:?}");
    }
}

fn with_budget(spec: ContainerSpec, max_unavailable: u32) -> ContainerSpec {
    ContainerSpec {
        disruption_budget: Some(DisruptionBudget { max_unavailable }),
        ..spec
    }
}

#[test]
fn a_budget_of_none_holds_up_a_drain_until_its_deadline() {
    let mut town = Town::of(1);
    town.put(with_budget(stateful("db", 1), 0));
    town.settle();
    town.join("m2", "general");
    town.settle();
    let before = town.places("db");
    drain(&mut town, 60);
    town.settle();
    assert_eq!(town.places("db"), before, "there is room, and it may not go");
    let about = (Subject::Replica, "db-0");
    let answer = explain(&town.world, &town.observed, &town.limits, town.now, about).unwrap();
    assert!(
        answer
            .to_string()
            .contains("disruptionBudget.maxUnavailable is 0"),
        "{answer}"
    );
    town.tick(61_000);
    town.settle();
    assert_eq!(town.ready("db"), 1);
    assert!(town.places("db").iter().all(|(_, machine)| machine == "m2"));
}

#[test]
fn a_budget_changes_nothing_that_runs_and_lets_more_ordinals_move_at_once() {
    let mut town = Town::of(1);
    town.put(stateful("db", 3));
    town.settle();
    town.join("m2", "general");
    town.settle();
    town.put(with_budget(stateful("db", 3), 2));
    town.settle();
    assert_eq!(town.world.container(&"db".parse().unwrap()).unwrap().revision, 1);
    let at = town.now.wall;
    town.act(Entry::MachineDraining { machine_id: m1(), at });
    let mut least = 3;
    for _ in 0..50 {
        town.tick(100);
        least = least.min(town.ready("db"));
    }
    assert_eq!(least, 1, "two at a time, and never three");
    assert_eq!(town.ready("db"), 3);
    assert!(town.places("db").iter().all(|(_, machine)| machine == "m2"));
}

#[test]
fn a_rollout_makes_no_room_where_the_budget_is_none() {
    let mut town = Town::of(1);
    town.put(with_budget(stateless("web", 4), 0));
    town.settle();
    let mut next = with_budget(stateless("web", 4), 0);
    next.image = "app:2".into();
    town.put(next);
    town.settle();
    assert_eq!(
        town.ready("web"),
        4,
        "the machine is full, and none is taken away"
    );
    assert!(town.report.capacity[0].desired > 1, "a machine more would help");
    town.join("m2", "general");
    town.settle();
    let name = "web".parse().unwrap();
    assert!(town.world.replicas_of(&name).all(|replica| replica.revision == 2));
}
