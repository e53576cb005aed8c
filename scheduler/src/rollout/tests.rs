//! Rollouts over time: identity, completion, failures and the way back.

use std::collections::BTreeSet;

use berth_api::container::{ContainerSpec, DisruptionBudget, RollbackPolicy};
use berth_api::explain::Subject;
use berth_api::id::{ContainerName, MachineId};
use berth_api::placement::PlacementRules;
use berth_api::rest::container::{ContainerStatus, ContainerStatusReason};

use super::*;
use crate::entry::MachineHealthState;
use crate::explain::explain;
use crate::fixture::{Town, machine, stateful, stateless};
use crate::status::container_state;

fn name(text: &str) -> ContainerName {
    ContainerName::new(text).unwrap()
}

fn image(mut spec: ContainerSpec, image: &str) -> ContainerSpec {
    spec.image = image.into();
    spec
}

fn told(town: &Town, container: &str) -> RolloutView {
    view(&town.world, &town.observed, &name(container)).unwrap()
}

/// Images of the live replicas.
fn images(town: &Town, container: &str) -> Vec<String> {
    let name = name(container);
    let live = town.world.replicas_of(&name).filter(|replica| replica.is_live());
    let mut images: Vec<String> = live
        .map(|replica| town.world.spec_of(replica).image.clone())
        .collect();
    images.sort();
    images
}

fn turn(town: &mut Town, container: &str, turn: RolloutTurn) {
    let known = town.world.container(&name(container)).unwrap();
    let to = match turn {
        RolloutTurn::Undone => undo(known).expect("there is something to go back to"),
        RolloutTurn::RolledBack | RolloutTurn::Retried => known.revision,
    };
    town.act(Entry::RolloutTurned(RolloutTurned {
        container: name(container),
        revision: known.revision + 1,
        to,
        turn,
        reason: None,
        at: town.now.wall,
    }));
}

fn pause(town: &mut Town, container: &str) {
    let at = town.now.wall;
    town.act(Entry::RolloutPaused {
        container: name(container),
        at,
    });
}

fn resume(town: &mut Town, container: &str) {
    let at = town.now.wall;
    town.act(Entry::RolloutResumed {
        container: name(container),
        at,
    });
}

/// Drains a machine until the town rests.
fn drain(town: &mut Town, machine: &str) -> MachineId {
    let machine_id = MachineId::new(machine).unwrap();
    let at = town.now.wall;
    town.act(Entry::MachineDraining {
        machine_id: machine_id.clone(),
        at,
    });
    town.settle();
    machine_id
}

fn cancel_drain(town: &mut Town, machine_id: MachineId) {
    let at = town.now.wall;
    town.act(Entry::MachineDrainCancelled { machine_id, at });
    town.settle();
}

fn messages(town: &Town, word: &str) -> usize {
    let events = town.world.events().newest_first();
    events.filter(|event| event.message.contains(word)).count()
}

#[test]
fn each_change_that_replicas_see_is_a_rollout_of_its_own() {
    let mut town = Town::of(3);
    town.put(stateless("web", 3));
    let begun = told(&town, "web");
    assert_eq!(
        (begun.id, begun.phase, begun.updated),
        (1, RolloutPhase::Progressing, 0)
    );
    town.settle();
    assert_eq!(told(&town, "web").phase, RolloutPhase::Completed);
    town.put(stateless("web", 4));
    town.settle();
    assert_eq!(told(&town, "web").id, 1, "a scale is no rollout");

    town.put(image(stateless("web", 4), "app:2"));
    town.tick(100);
    let half = told(&town, "web");
    assert_eq!(
        (half.id, half.phase, half.cause),
        (2, RolloutPhase::Progressing, RolloutCause::Changed)
    );
    assert_eq!(half.changes, ["image"]);
    assert_eq!((half.total, half.updated, half.ready, half.old), (4, 1, 0, 4));
    town.settle();
    let done = told(&town, "web");
    assert_eq!(
        (done.phase, done.updated, done.ready, done.old),
        (RolloutPhase::Completed, 4, 4, 0)
    );
    assert_eq!(
        done.previous.map(|former| (former.id, former.phase)),
        Some((1, RolloutPhase::Completed))
    );
    assert_eq!(messages(&town, "rollout 2 of container web started: image"), 1);
    assert_eq!(messages(&town, "rollout 2 of container web is completed"), 1);

    town.put(image(stateless("web", 4), "app:3"));
    town.tick(100);
    town.put(image(stateless("web", 4), "app:4"));
    let next = told(&town, "web");
    assert_eq!(
        next.previous.map(|former| (former.id, former.phase)),
        Some((3, RolloutPhase::Superseded))
    );
    town.settle();
    assert_eq!(images(&town, "web"), ["app:4"; 4]);
    town.assert_replay();
}

#[test]
fn a_new_replica_has_come_up_when_it_stayed_ready() {
    let mut town = Town::of(2);
    town.limits.rollout.min_ready_ms = 10_000;
    town.put(stateless("web", 2));
    town.settle();
    assert_eq!(town.ready("web"), 2);
    assert_eq!(told(&town, "web").phase, RolloutPhase::Progressing);
    town.tick(9_000);
    assert_eq!(told(&town, "web").phase, RolloutPhase::Progressing);
    town.tick(1_000);
    assert_eq!(told(&town, "web").phase, RolloutPhase::Completed);
    // A restart forgets for how long, and never what is in the log.
    town.restart();
    town.tick(100);
    assert_eq!(told(&town, "web").phase, RolloutPhase::Completed);
}

#[test]
fn a_version_that_never_comes_up_is_rolled_back_by_itself() {
    for spec in [stateless("web", 4), stateful("web", 4)] {
        let mut town = Town::of(3);
        town.put(spec.clone());
        town.settle();
        town.crashing_images.insert("app:bad".into());
        town.put(image(spec.clone(), "app:bad"));
        town.settle();
        assert_eq!(images(&town, "web"), ["app:1"; 4], "stateful: {}", spec.stateful);
        assert_eq!(town.ready("web"), 4);
        let back = told(&town, "web");
        assert_eq!(
            (back.id, back.phase, back.cause),
            (3, RolloutPhase::Completed, RolloutCause::RolledBack)
        );
        let former = back.previous.unwrap();
        assert_eq!((former.id, former.phase), (2, RolloutPhase::RolledBack));
        let reason = former.reason.unwrap();
        assert!(
            reason.starts_with("8 failed starts") && reason.contains("exit code 1"),
            "{reason}"
        );
        assert_eq!(messages(&town, "was rolled back by rollout 3"), 1);

        // What is declared stays what was declared, and the container says that it does not run.
        let container = town.world.container(&name("web")).unwrap();
        assert_eq!(
            (container.declared().image.as_str(), container.spec.image.as_str()),
            ("app:bad", "app:1")
        );
        let state = container_state(&town.world, &town.observed, &name("web")).unwrap();
        assert_eq!(state.status, ContainerStatus::Failing);
        assert_eq!(state.reason, Some(ContainerStatusReason::ReplicaFailed));
        assert!(state.message.unwrap().contains("rollout 2 was rolled back"));
        let about = (Subject::Container, "web");
        let answer = explain(&town.world, &town.observed, &town.limits, town.now, about).unwrap();
        assert!(answer.to_string().contains("rolled back"), "{answer}");

        // The same declaration again changes nothing: no loop with a control plane that repeats itself.
        assert_eq!(town.world.next_revision(&image(spec.clone(), "app:bad")), 3);
        // More replicas of what runs.
        let mut wider = image(spec.clone(), "app:bad");
        wider.scale = berth_api::container::Scale::Replicas(5);
        wider.volumes = stateful("web", 5).volumes;
        if !spec.stateful {
            wider.volumes.clear();
            town.put(wider);
            town.settle();
            assert_eq!(images(&town, "web"), ["app:1"; 5]);
        }
        // A write ends it.
        town.put(image(spec.clone(), "app:good"));
        town.settle();
        assert_eq!(images(&town, "web"), ["app:good"; 4]);
        let state = container_state(&town.world, &town.observed, &name("web")).unwrap();
        assert_eq!(state.status, ContainerStatus::Running);
        town.assert_replay();
    }
}

#[test]
fn two_bad_versions_never_take_turns() {
    let mut town = Town::of(3);
    town.put(stateless("web", 3));
    town.settle();
    town.crashing_images.extend(["app:bad".into(), "app:1".into()]);
    town.put(image(stateless("web", 3), "app:bad"));
    // The replicas that ran go on; what is started anew of either version fails.
    town.settle();
    for _ in 0..20 {
        town.tick(60_000);
    }
    let last = told(&town, "web");
    assert_eq!(
        (last.id, last.cause),
        (3, RolloutCause::RolledBack),
        "one rollback, and no more"
    );
    assert_eq!(messages(&town, "was rolled back"), 1);
    town.assert_replay();
}

#[test]
fn the_first_rollout_has_nothing_to_go_back_to_and_is_stalled() {
    let mut town = Town::of(2);
    town.crashing_images.insert("app:1".into());
    town.put(stateless("web", 2));
    town.settle();
    let stalled = told(&town, "web");
    assert_eq!((stalled.id, stalled.phase), (1, RolloutPhase::Stalled));
    assert!(stalled.reason.unwrap().contains("failed starts") && !stalled.can_undo);
    assert_eq!(messages(&town, "has nothing to go back to"), 1);
    town.crashing_images.clear();
    town.settle();
    assert_eq!(
        told(&town, "web").phase,
        RolloutPhase::Completed,
        "its nodes went on trying"
    );
}

#[test]
fn a_container_says_after_how_many_failed_starts_and_whether_at_all() {
    for (after, id) in [(0, 2), (3, 3)] {
        let with = |image_name: &str| ContainerSpec {
            rollback: Some(RollbackPolicy {
                after_failed_starts: after,
            }),
            ..image(stateless("web", 2), image_name)
        };
        let mut town = Town::of(2);
        town.put(with("app:1"));
        town.settle();
        town.crashing_images.insert("app:bad".into());
        town.put(with("app:bad"));
        town.settle();
        assert_eq!(told(&town, "web").id, id);
        assert_eq!(told(&town, "web").failed_starts > 3, after == 0);
        assert!(town.ready("web") >= 2, "the old ones serve");
    }
}

#[test]
fn what_has_come_up_once_is_not_rolled_back() {
    let mut town = Town::of(3);
    town.put(stateless("web", 3));
    town.settle();
    town.put(image(stateless("web", 3), "app:2"));
    while told(&town, "web").ready == 0 {
        town.tick(100);
    }
    town.crashing_images.insert("app:2".into());
    for _ in 0..30 {
        town.tick(1_000);
    }
    assert_eq!(told(&town, "web").id, 2);
    assert!(town.ready("web") >= 2, "one that crashes replaces nothing more");
}

#[test]
fn a_crashing_version_without_a_check_takes_one_replica_away_at_most() {
    let mut town = Town::of(4);
    town.limits.rollout.min_ready_ms = 10_000;
    town.put(stateless("web", 8));
    town.settle();
    town.tick(20_000);
    town.put(image(stateless("web", 8), "app:2"));
    // Ready for a moment, then down.
    while told(&town, "web").ready == 0 {
        town.tick(100);
    }
    town.crashing_images.insert("app:2".into());
    let mut least = 8;
    for _ in 0..30 {
        town.tick(100);
        least = least.min(town.ready("web"));
    }
    assert!(least >= 7, "{least}");
    assert_eq!(told(&town, "web").cause, RolloutCause::RolledBack);
    town.settle();
    assert_eq!(town.ready("web"), 8);
}

#[test]
fn a_paused_rollout_moves_nothing_and_what_is_lost_comes_back_as_it_was() {
    let mut town = Town::of(4);
    town.put(stateless("web", 4));
    town.settle();
    town.put(image(stateless("web", 4), "app:2"));
    while told(&town, "web").ready == 0 {
        town.tick(100);
    }
    pause(&mut town, "web");
    town.settle();
    let mixed = images(&town, "web");
    assert!(
        mixed.contains(&"app:1".to_owned()) && mixed.contains(&"app:2".to_owned()),
        "{mixed:?}"
    );
    assert_eq!(told(&town, "web").phase, RolloutPhase::Paused);
    let about = (Subject::Container, "web");
    let answer = explain(&town.world, &town.observed, &town.limits, town.now, about).unwrap();
    assert!(answer.to_string().contains("to be resumed"), "{answer}");

    // A machine with old ones alone is lost, and one is drained.
    for machine in ["m1", "m2", "m3", "m4"] {
        let before = images(&town, "web");
        town.kill(machine);
        town.tick(20_000);
        town.tick(20_000);
        town.settle();
        assert_eq!(images(&town, "web"), before, "{machine} was lost");
        town.revive(machine);
        town.settle();
        let machine_id = drain(&mut town, machine);
        assert_eq!(images(&town, "web"), before, "{machine} was drained");
        cancel_drain(&mut town, machine_id);
    }
    // More replicas run what is known to be good.
    town.put(image(stateless("web", 6), "app:2"));
    town.settle();
    let wider = images(&town, "web")
        .iter()
        .filter(|image| *image == "app:1")
        .count();
    assert_eq!(
        wider,
        mixed.iter().filter(|image| *image == "app:1").count() + 2 - usize::from(mixed.len() > 4)
    );
    resume(&mut town, "web");
    town.settle();
    assert_eq!(images(&town, "web"), ["app:2"; 6]);
    assert_eq!(told(&town, "web").phase, RolloutPhase::Completed);
    town.assert_replay();
}

#[test]
fn a_paused_ordinal_keeps_its_version() {
    let mut town = Town::of(2);
    town.put(stateful("db", 3));
    town.settle();
    town.put(image(stateful("db", 3), "app:2"));
    while told(&town, "db").ready == 0 {
        town.tick(100);
    }
    pause(&mut town, "db");
    town.settle();
    let of = |town: &Town, ordinal: u32| {
        let name = name("db");
        let mut replicas = town.world.replicas_of(&name);
        let replica = replicas.find(|replica| replica.ordinal == Some(ordinal)).unwrap();
        town.world.spec_of(replica).image.clone()
    };
    let before: Vec<String> = (0..3).map(|ordinal| of(&town, ordinal)).collect();
    assert!(before.contains(&"app:1".to_owned()) && before.contains(&"app:2".to_owned()));
    for machine in ["m1", "m2"] {
        let machine_id = drain(&mut town, machine);
        let after: Vec<String> = (0..3).map(|ordinal| of(&town, ordinal)).collect();
        assert_eq!(after, before, "data is never given to an older version");
        cancel_drain(&mut town, machine_id);
    }
    resume(&mut town, "db");
    town.settle();
    assert_eq!(images(&town, "db"), ["app:2"; 3]);
    town.assert_replay();
}

#[test]
fn undo_goes_back_and_forth_between_what_was_complete() {
    let mut town = Town::of(3);
    town.put(stateless("web", 2));
    town.settle();
    assert_eq!(undo(town.world.container(&name("web")).unwrap()), None);
    town.put(image(stateless("web", 2), "app:2"));
    town.settle();
    for expected in ["app:1", "app:2", "app:1"] {
        turn(&mut town, "web", RolloutTurn::Undone);
        town.settle();
        assert_eq!(images(&town, "web"), [expected; 2]);
        assert_eq!(
            town.world.container(&name("web")).unwrap().declared().image,
            expected
        );
    }
    assert_eq!(told(&town, "web").id, 5);
    // In the middle of a rollout, to what was complete before it.
    town.put(image(stateless("web", 2), "app:3"));
    town.tick(100);
    turn(&mut town, "web", RolloutTurn::Undone);
    town.settle();
    assert_eq!(images(&town, "web"), ["app:1"; 2]);
    town.assert_replay();
}

#[test]
fn after_a_rollback_its_user_keeps_what_runs_or_tries_again() {
    let mut town = Town::of(3);
    town.put(stateless("web", 2));
    town.settle();
    town.crashing_images.insert("app:2".into());
    town.put(image(stateless("web", 2), "app:2"));
    town.settle();
    turn(&mut town, "web", RolloutTurn::Retried);
    town.settle();
    assert_eq!(told(&town, "web").id, 5, "it failed again, and went back again");
    assert_eq!(images(&town, "web"), ["app:1"; 2]);
    turn(&mut town, "web", RolloutTurn::Undone);
    town.settle();
    let container = town.world.container(&name("web")).unwrap();
    assert_eq!(
        (container.declared().image.as_str(), container.declared.is_some()),
        ("app:1", false)
    );
    let state = container_state(&town.world, &town.observed, &name("web")).unwrap();
    assert_eq!(state.status, ContainerStatus::Running);
    town.crashing_images.clear();
    town.put(image(stateless("web", 2), "app:2"));
    town.settle();
    assert_eq!(images(&town, "web"), ["app:2"; 2]);
    town.assert_replay();
}

#[test]
fn a_container_of_before_there_were_rollouts_goes_back_to_what_it_ran() {
    let mut town = Town::of(2);
    town.put(stateless("web", 2));
    town.settle();
    let mut value = serde_json::to_value(&town.world).unwrap();
    let container = &mut value["containers"]["web"];
    for member in ["rollout", "completed"] {
        container.as_object_mut().unwrap().remove(member);
    }
    town.world = serde_json::from_value(value).unwrap();
    assert_eq!(view(&town.world, &town.observed, &name("web")), None);
    town.crashing_images.insert("app:2".into());
    town.put(image(stateless("web", 2), "app:2"));
    town.settle();
    assert_eq!(images(&town, "web"), ["app:1"; 2]);
}

#[test]
fn a_deleted_and_declared_again_container_begins_anew() {
    let mut town = Town::of(2);
    town.put(stateless("web", 2));
    town.settle();
    let at = town.now.wall;
    town.act(Entry::ContainerDeleted {
        container: name("web"),
        at,
    });
    town.crashing_images.insert("app:2".into());
    town.put(ContainerSpec {
        disruption_budget: Some(DisruptionBudget { max_unavailable: 2 }),
        ..image(stateless("web", 2), "app:2")
    });
    town.settle();
    let anew = told(&town, "web");
    assert_eq!(
        (anew.phase, anew.cause, anew.previous),
        (RolloutPhase::Stalled, RolloutCause::Created, None)
    );
    town.assert_replay();
}

/// The labels of a declaration that only a paused rollout still runs bind as those of any other.
#[test]
fn a_paused_version_keeps_its_labels() {
    let mut town = Town::new();
    for (id, label) in [("m0", Some("disk=ssd")), ("m1", None)] {
        let mut spec = machine(id, "general");
        spec.labels.extend(label.map(|label| label.parse().unwrap()));
        town.join_as(spec);
    }
    town.settle();
    let on_ssd = |count| {
        let mut spec = stateless("web", count);
        let rules = spec.placement.get_or_insert_default();
        rules.requires.insert("disk=ssd".parse().unwrap());
        spec
    };
    town.put(on_ssd(2));
    town.settle();
    assert_eq!(told(&town, "web").phase, RolloutPhase::Completed);
    // Anywhere, from now on; and three of them, of which the third runs what was complete last.
    town.put(image(stateless("web", 2), "app:2"));
    pause(&mut town, "web");
    town.put(image(stateless("web", 3), "app:2"));
    town.settle();
    assert_eq!(told(&town, "web").phase, RolloutPhase::Paused);
    let places = town.places("web");
    assert_eq!(places.len(), 3, "{places:?}");
    assert!(places.iter().all(|(_, machine)| machine == "m0"), "{places:?}");
}

/// One that serves is updated only while every other one serves; one that does not is updated before all others.
#[test]
fn an_ordinal_that_serves_nothing_is_updated_first() {
    let mut town = Town::of(2);
    town.put(stateful("db", 3));
    town.settle();
    town.sick.insert("db-1".to_owned());
    town.tick(1_000);
    town.put(image(stateful("db", 3), "app:2"));
    let is_new = |town: &Town, id: &str| {
        let replica = town.world.replica(&id.parse().unwrap());
        replica.is_some_and(|replica| town.world.spec_of(replica).image == "app:2")
    };
    town.settle();
    assert!(is_new(&town, "db-1"), "{:?}", images(&town, "db"));
    assert!(
        !is_new(&town, "db-0") && !is_new(&town, "db-2"),
        "the others wait for it"
    );
    town.sick.clear();
    town.settle();
    assert_eq!(images(&town, "db"), ["app:2"; 3]);
}

/// A replacement that is one too many goes at the pause: it would hold up every drain, as it may never be ready.
#[test]
fn a_paused_rollout_holds_up_no_drain_and_no_smaller_count() {
    let mut town = Town::of(4);
    town.put(stateless("web", 3));
    town.settle();
    town.broken_images.insert("app:2".to_owned());
    town.limits.rollout.failed_starts_max = 0;
    town.put(image(stateless("web", 3), "app:2"));
    while town.places("web").len() < 4 {
        town.decide();
    }
    pause(&mut town, "web");
    town.settle();
    assert_eq!(images(&town, "web"), ["app:1"; 3]);
    for machine in ["m1", "m2", "m3", "m4"] {
        let machine_id = drain(&mut town, machine);
        let left = town.world.replicas_on(&machine_id).count();
        assert_eq!(left, 0, "{machine} is drained: {:?}", town.report);
        cancel_drain(&mut town, machine_id);
    }
    assert_eq!(images(&town, "web"), ["app:1"; 3]);

    town.broken_images.clear();
    resume(&mut town, "web");
    while told(&town, "web").ready == 0 {
        town.tick(100);
    }
    pause(&mut town, "web");
    town.tick(1_000);
    town.put(image(stateless("web", 2), "app:2"));
    town.settle();
    assert_eq!(town.places("web").len(), 2);
}

/// A replica of the former declaration that is lost while the rollout is paused comes back as it was: where no machine of the
/// group can ever run that, none is ordered, though the present declaration would fit everywhere.
#[test]
fn a_paused_rollout_orders_no_machine_that_would_not_help() {
    let mut town = Town::of(2);
    let mut special = machine("m9", "general");
    special.labels = BTreeSet::from(["ssd".parse().unwrap()]);
    let entry = town.world.registration(special, town.now.wall).unwrap();
    town.act(entry);
    town.act(Entry::MachineHealthChanged {
        machine_id: MachineId::new("m9").unwrap(),
        state: MachineHealthState::Running,
        at: town.now.wall,
    });
    let mut former = image(stateless("web", 1), "app:1");
    former.placement = Some(PlacementRules {
        requires: BTreeSet::from(["ssd".parse().unwrap()]),
        ..PlacementRules::default()
    });
    town.put(former);
    town.settle();
    assert_eq!(town.places("web")[0].1, "m9");
    town.put(image(stateless("web", 1), "app:2"));
    pause(&mut town, "web");
    town.kill("m9");
    town.tick(600_000);
    town.settle();
    let outlook = &town.report.capacity[0];
    assert_eq!((outlook.unplaced, outlook.needed), (1, 0), "{outlook:?}");
    assert_eq!(outlook.too_large.len(), 1, "{outlook:?}");
    resume(&mut town, "web");
    town.settle();
    assert_eq!(town.ready("web"), 1, "{:?}", town.report.waits);
}
