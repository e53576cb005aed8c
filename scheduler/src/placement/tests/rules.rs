//! Labels that a container requires, prefers and forbids, and machines that replicas have to themselves.

use std::collections::BTreeSet;

use berth_api::id::Label;
use berth_api::placement::PlacementRules;

use super::*;

fn label(text: &str) -> Label {
    Label::new(text).unwrap()
}

fn labels(texts: &[&str]) -> BTreeSet<Label> {
    texts.iter().map(|text| label(text)).collect()
}

/// A town of machines with labels of their own.
fn town(machines: &[(&str, &[&str])]) -> Town {
    let mut town = Town::new();
    for (id, own) in machines {
        town.join_as(berth_api::machine::MachineSpec {
            labels: labels(own),
            ..machine(id, "general")
        });
    }
    town.settle();
    town
}

fn ruled(name: &str, count: u32, rules: PlacementRules) -> ContainerSpec {
    ContainerSpec {
        placement: Some(rules),
        ..stateless(name, count)
    }
}

fn requires(texts: &[&str]) -> PlacementRules {
    PlacementRules {
        requires: labels(texts),
        ..PlacementRules::default()
    }
}

fn exclusive() -> PlacementRules {
    PlacementRules {
        exclusive: true,
        ..PlacementRules::default()
    }
}

/// The machines of a container's replicas, sorted.
fn machines(town: &Town, container: &str) -> Vec<String> {
    let mut machines: Vec<String> = town
        .places(container)
        .into_iter()
        .map(|(_, machine)| machine)
        .collect();
    machines.sort();
    machines
}

#[test]
fn replicas_go_where_the_labels_allow_and_nowhere_else() {
    let mut town = town(&[("m1", &["disk=ssd", "spot"]), ("m2", &["disk=ssd"]), ("m3", &[])]);
    town.put(ruled("fast", 3, requires(&["disk=ssd"])));
    town.put(ruled(
        "steady",
        3,
        PlacementRules {
            requires: labels(&["disk=ssd"]),
            forbids: labels(&["spot"]),
            ..PlacementRules::default()
        },
    ));
    town.settle();
    assert_eq!(machines(&town, "fast").len(), 3);
    assert!(!machines(&town, "fast").contains(&"m3".to_owned()));
    assert_eq!(machines(&town, "steady"), ["m2", "m2", "m2"]);
}

#[test]
fn what_is_preferred_counts_from_the_front_and_never_keeps_a_replica_from_running() {
    let mut town = town(&[("m1", &[]), ("m2", &["b"]), ("m3", &["a"])]);
    let rules = PlacementRules {
        prefers: vec![label("a"), label("b")],
        ..PlacementRules::default()
    };
    // Four fit on each machine.
    town.put(ruled("many", 3, rules));
    town.settle();
    assert_eq!(machines(&town, "many"), ["m3", "m3", "m3"]);
    let last = |prefers: &[&str]| PlacementRules {
        prefers: prefers.iter().map(|text| label(text)).collect(),
        ..PlacementRules::default()
    };
    town.put(ruled("rest", 9, last(&["a"])));
    town.settle();
    assert_eq!(machines(&town, "rest").len(), 9);
    assert!(machines(&town, "rest").contains(&"m3".to_owned()));
}

#[test]
fn the_labels_of_a_group_are_those_of_its_machines() {
    let mut town = Town::of(1);
    town.put(ruled("fast", 1, requires(&["disk=ssd"])));
    town.settle();
    assert_eq!(
        explained(&town, "fast", None),
        "no machine of capacity group general has label disk=ssd. Would help: give a machine of group general the labels \
         disk=ssd, by its registration or by its group; or ask for others."
    );
    town.act(Entry::GroupsChanged {
        groups: vec![berth_api::cluster::CapacityGroup {
            labels: labels(&["disk=ssd"]),
            ..group("general", 0)
        }],
        at: town.now.wall,
    });
    town.settle();
    assert_eq!(machines(&town, "fast"), ["m1"]);
}

#[test]
fn tells_which_labels_are_missing_and_which_are_in_the_way() {
    let mut town = town(&[("m1", &["a"]), ("m2", &["b"])]);
    town.put(ruled("both", 1, requires(&["a", "b"])));
    town.put(ruled(
        "none",
        1,
        PlacementRules {
            forbids: labels(&["a", "b"]),
            ..PlacementRules::default()
        },
    ));
    let text = explained(&town, "both", None);
    assert!(
        text.starts_with("no machine of capacity group general has label a, b."),
        "{text}"
    );
    let text = explained(&town, "none", None);
    assert!(
        text.starts_with(
            "every machine of capacity group general that it could use has a label that it forbids: a, b."
        ),
        "{text}"
    );
    town.put(ruled("a", 5, requires(&["a"])));
    town.settle();
    let text = explained(&town, "a", None);
    assert!(
        text.contains("1 lacks a label that it requires, or have one that it forbids, 1 lacks cpu"),
        "{text}"
    );
}

#[test]
fn a_machine_of_its_own_is_shared_with_nobody() {
    let mut town = town(&[("m1", &[]), ("m2", &[]), ("m3", &[])]);
    town.put(stateless("web", 1));
    town.settle();
    let web = machines(&town, "web").remove(0);
    town.put(ruled("alone", 2, exclusive()));
    town.settle();
    let alone = machines(&town, "alone");
    assert_eq!(alone.len(), 2);
    assert!(alone[0] != alone[1] && !alone.contains(&web), "{alone:?}, {web}");
    // All others stay with the first.
    town.put(stateless("more", 3));
    town.settle();
    assert_eq!(machines(&town, "more"), vec![web.clone(); 3]);
    town.put(ruled("third", 1, exclusive()));
    town.put(stateless("late", 1));
    town.settle();
    let text = explained(&town, "third", None);
    assert!(
        text.starts_with(
            "0 of 3 machines of capacity group general fit: 3 run other replicas, and it wants a machine for itself."
        ),
        "{text}"
    );
    let text = explained(&town, "late", None);
    assert!(
        text.contains("2 are another's that wants the machine for itself, 1 lacks cpu"),
        "{text}"
    );
    // What leaves makes the machine everybody's again.
    town.act(Entry::ContainerDeleted {
        container: "alone".parse().unwrap(),
        at: town.now.wall,
    });
    town.settle();
    assert_eq!(machines(&town, "third").len(), 1);
    assert_eq!(machines(&town, "late").len(), 1);
    assert_ne!(machines(&town, "third"), machines(&town, "late"));
}

#[test]
fn the_verifier_refuses_what_breaks_the_rules() {
    use crate::check::{Violation, check, check_all};
    let mut town = town(&[("m1", &["spot"])]);
    town.put(stateless("web", 1));
    town.settle();
    let web = town.world.replicas().values().next().unwrap().clone();
    for (rules, is_shared) in [
        (requires(&["disk=ssd"]), false),
        (
            PlacementRules {
                forbids: labels(&["spot"]),
                ..PlacementRules::default()
            },
            false,
        ),
        (exclusive(), true),
    ] {
        let mut town = town_with(&town, ruled("bad", 1, rules));
        let placed = Entry::ReplicaPlaced(crate::entry::Placed {
            replica_id: ReplicaId::new("bad-m1-x").unwrap(),
            container: "bad".parse().unwrap(),
            ordinal: None,
            revision: town
                .world
                .container(&"bad".parse::<ContainerName>().unwrap())
                .unwrap()
                .revision,
            machine_id: web.machine_id.clone(),
            ip: "10.244.0.99".parse().unwrap(),
            host_port: None,
            devices: vec![],
            chosen: None,
            granted: None,
            relieves: None,
            at: town.now.wall,
        });
        for found in [
            check(&town.world, std::slice::from_ref(&placed)),
            check_all(&town.world, std::slice::from_ref(&placed)),
        ] {
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(
                matches!(found[0], Violation::Shared { .. }),
                is_shared,
                "{found:?}"
            );
        }
        town.now.wall = town.now.wall.plus(std::time::Duration::from_secs(1));
    }
}

/// The same town with one more declaration, before any decision.
fn town_with(town: &Town, spec: ContainerSpec) -> Town {
    let mut other = Town::new();
    other.now = town.now;
    other.world = town.world.clone();
    let entry = other.world.put(spec, other.now.wall);
    other.world.apply(&entry);
    other
}
