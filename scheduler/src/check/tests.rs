//! Every rule broken on purpose is found, by both checks alike.

use std::net::IpAddr;

use berth_api::container::GpuRequest;
use berth_api::id::{MachineId, Zone};
use berth_api::machine::GpuCapacity;
use berth_api::units::Bytes;
use berth_api::volume::VolumeTarget;

use super::*;
use crate::entry::StopCause;
use crate::fixture::{Town, gpu_share, on_gpus, stateful, stateless, whole_gpus};

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
        devices: vec![],
        chosen: None,
        granted: None,
        relieves: None,
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

/// It lost a disk: replicas that want none still go there, and more of what it lacks is not given away.
#[test]
fn a_machine_that_came_back_smaller_is_given_what_it_has_enough_of() {
    let mut town = Town::of(1);
    let mut scratch = stateless("scratch", 1);
    scratch.resources.ephemeral_storage = Some(Bytes::gib(10));
    town.put(scratch);
    town.settle();
    let mut smaller = town.world.machine(&"m1".parse().unwrap()).unwrap().spec.clone();
    smaller.capacity.ephemeral_storage.total = Bytes::gib(1);
    let entry = town.world.registration(smaller, town.now.wall).unwrap();
    town.act(entry);
    town.put(stateless("web", 1));
    town.settle();
    assert_eq!(town.ready("web"), 1, "{:?}", town.report.waits);
    let again = placed(&town, "scratch-m1-x9", "scratch", "m1", 9);
    for violations in [
        check(&town.world, std::slice::from_ref(&again)),
        check_all(&town.world, &[again]),
    ] {
        assert!(
            matches!(
                violations[..],
                [Violation::OverCapacity {
                    dimension: "ephemeral storage",
                    ..
                }]
            ),
            "{violations:?}"
        );
    }
}

#[test]
fn refuses_two_writers_of_one_volume_and_wrong_machines() {
    let mut town = Town::of(2);
    town.join("g1", "gpu");
    town.settle();
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

/// Copies of a decision, each with one thing wrong or at least different; of a long one, not of every entry.
fn mutants(town: &Town, entries: &[Entry]) -> Vec<Vec<Entry>> {
    let mut mutants = vec![];
    for index in (0..entries.len()).step_by(entries.len().div_ceil(4).max(1)) {
        let with = |entry: Entry| {
            let mut mutant = entries.to_vec();
            mutant[index] = entry;
            mutant
        };
        let (mut without, mut twice) = (entries.to_vec(), entries.to_vec());
        without.remove(index);
        twice.insert(index, entries[index].clone());
        mutants.extend([without, twice]);
        let mut reversed = entries.to_vec();
        reversed[index..].reverse();
        mutants.push(reversed);
        let Entry::ReplicaPlaced(placed) = &entries[index] else {
            continue;
        };
        let mut change = |change: &dyn Fn(&mut Placed)| {
            let mut placed = placed.clone();
            change(&mut placed);
            mutants.push(with(Entry::ReplicaPlaced(placed)));
        };
        change(&|placed| placed.revision += 1);
        change(&|placed| placed.host_port = Some(8001));
        change(&|placed| placed.host_port = Some(80));
        change(&|placed| {
            placed.ordinal = placed.ordinal.map_or(Some(0), |ordinal| ordinal.checked_sub(1));
        });
        change(&|placed| placed.ip = IpAddr::from([10, 244, 0, 1]));
        change(&|placed| placed.ip = IpAddr::from([10, 244, 1, 2]));
        change(&|placed| placed.container = "c0".parse().unwrap());
        if placed.devices.is_empty() {
            change(&|placed| placed.devices = given(&[(0, 1000)]));
        } else {
            change(&|placed| placed.devices.clear());
            change(&|placed| placed.devices.iter_mut().for_each(|device| device.index += 1));
            change(&|placed| placed.devices.iter_mut().for_each(|device| device.index = 7));
            change(&|placed| placed.devices[0].milli -= 1);
        }
        for machine_id in town.world.machines().keys().take(3) {
            change(&|placed| placed.machine_id = machine_id.clone());
        }
        for replica in town.world.replicas().values().take(2) {
            change(&|placed| placed.replica_id = replica.replica_id.clone());
            change(&|placed| {
                (placed.machine_id, placed.ip, placed.host_port) =
                    (replica.machine_id.clone(), replica.ip, replica.host_port);
            });
        }
    }
    mutants
}

/// The check of what is touched and the check of everything find the same, in a decision and in wrong copies of it. What
/// cannot follow the log they say in their own words.
pub(crate) fn assert_agreement(town: &Town, entries: &[Entry]) {
    let mut all = mutants(town, entries);
    all.push(entries.to_vec());
    let is_inapplicable = |violation: &Violation| matches!(violation, Violation::Inapplicable { .. });
    for entries in all {
        let (touched, whole) = (check(&town.world, &entries), check_all(&town.world, &entries));
        if touched.iter().chain(&whole).any(is_inapplicable) {
            assert_eq!(
                touched.is_empty(),
                whole.is_empty(),
                "{touched:?} {whole:?} {entries:#?}"
            );
            continue;
        }
        let sorted = |violations: Vec<Violation>| {
            let mut texts: Vec<String> = violations.iter().map(ToString::to_string).collect();
            texts.sort();
            texts
        };
        assert_eq!(sorted(touched), sorted(whole), "{entries:#?}");
    }
}

/// A town with two machines and a third with two GPUs.
fn with_gpus() -> Town {
    let mut town = Town::of(2);
    town.join("g1", "gpu");
    town.settle();
    town
}

/// A town with two machines, one with GPUs, and one replica that must be placed: the entry that places it rightly.
fn right(spec: ContainerSpec) -> (Town, Placed) {
    let mut town = with_gpus();
    town.put(spec);
    let decision = crate::decide::decide(&town.world, &town.observed, &town.limits, town.now);
    let mut placed = decision.entries.into_iter().filter_map(|entry| match entry {
        Entry::ReplicaPlaced(placed) => Some(placed),
        _ => None,
    });
    let placed = placed.next().expect("there is room");
    (town, placed)
}

/// What both checks say about one placement.
fn faults(town: &Town, placed: Placed) -> Vec<Violation> {
    let entries = [Entry::ReplicaPlaced(placed)];
    assert_agreement(town, &entries);
    check(&town.world, &entries)
}

fn assert_misplaced(town: &Town, placed: Placed, expected: &str) {
    let violations = faults(town, placed);
    let is_expected =
        |violation: &Violation| matches!(violation, Violation::Misplaced { fault, .. } if *fault == expected);
    assert!(violations.iter().any(is_expected), "{expected}: {violations:?}");
}

#[test]
fn every_rule_of_a_place_that_is_broken_is_named() {
    let (town, placed) = right(stateless("a", 1));
    assert_eq!(faults(&town, placed.clone()), vec![]);
    let wrong = |change: &dyn Fn(&mut Placed)| {
        let mut placed = placed.clone();
        change(&mut placed);
        placed
    };
    let port = wrong(&|placed| placed.host_port = Some(80));
    assert_misplaced(
        &town,
        port.clone(),
        "it has a host port without a load balancer target, or the reverse",
    );
    assert_misplaced(&town, port, "its host port is not one that replicas may have");
    for ip in [[10, 244, 0, 1], [10, 244, 0, 255], [10, 244, 77, 3]] {
        let outside = wrong(&|placed| placed.ip = IpAddr::from(ip));
        let violations = faults(&town, outside);
        assert!(!violations.is_empty(), "{ip:?}");
    }
    let group = wrong(&|placed| {
        placed.machine_id = MachineId::new("g1").unwrap();
        placed.ip = IpAddr::from([10, 244, 2, 9]);
    });
    assert_misplaced(&town, group, "its machine is in another capacity group");
}

#[test]
fn a_place_on_a_machine_that_takes_nothing_is_named() {
    let (mut town, placed) = right(stateless("a", 1));
    let at = town.now.wall;
    let machine_id = placed.machine_id.clone();
    let silent = [
        Entry::MachineHealthChanged {
            machine_id: machine_id.clone(),
            state: MachineHealthState::Unhealthy,
            at,
        },
        Entry::ReplicaPlaced(placed.clone()),
    ];
    assert!(
        matches!(
            check(&town.world, &silent)[..],
            [Violation::NotRunning { status: "silent", .. }]
        ),
        "silent since an entry of the same decision"
    );
    assert_agreement(&town, &silent);
    town.act(Entry::MachineDraining { machine_id, at });
    assert!(matches!(
        faults(&town, placed.clone())[..],
        [Violation::NotRunning {
            status: "draining",
            ..
        }]
    ));
    let container = placed.container.clone();
    town.act(Entry::ContainerStopped { container, at });
    assert_misplaced(&town, placed, "its container is stopped or deleted");
}

#[test]
fn a_wrong_zone_and_a_wrong_gpu_are_named() {
    let mut spec = stateful("a", 1);
    spec.volumes[0].volume = VolumeTarget::Aws {
        volume_id: "vol-0a1b".into(),
        zone: Zone::new("a").unwrap(),
    };
    let (mut town, placed) = right(spec.clone());
    spec.volumes[0].volume = VolumeTarget::Aws {
        volume_id: "vol-0a1b".into(),
        zone: Zone::new("b").unwrap(),
    };
    town.put(spec);
    let placed = Placed {
        revision: 2,
        ..placed
    };
    assert_misplaced(&town, placed.clone(), "its volume is in another zone");
    assert_misplaced(
        &town,
        Placed {
            revision: 1,
            ..placed
        },
        "it would not run what its container declares",
    );

    let mut spec = stateless("b", 1);
    let gpu = |kind: &str| {
        Some(GpuRequest {
            kind: kind.into(),
            ..whole_gpus(1)
        })
    };
    spec.capacity_group = "gpu".parse().unwrap();
    spec.resources.gpu = gpu("nvidia-t4");
    let (mut town, placed) = right(spec.clone());
    assert_eq!(faults(&town, placed.clone()), vec![]);
    spec.resources.gpu = gpu("nvidia-h100");
    town.put(spec);
    assert_misplaced(
        &town,
        Placed {
            revision: 2,
            ..placed
        },
        "its machine has no GPU of its type",
    );
}

fn given(devices: &[(u8, u16)]) -> Vec<GpuDevice> {
    let device = |(index, milli): &(u8, u16)| GpuDevice {
        index: *index,
        milli: *milli,
    };
    devices.iter().map(device).collect()
}

#[test]
fn gpus_that_a_replica_does_not_ask_for_or_its_machine_does_not_have_are_named() {
    const WRONG: &str = "the GPUs that it is given are not what it asks for";
    const ABSENT: &str = "its machine has no GPU of that number";
    let shares: [(&[(u8, u16)], &str); 7] = [
        (&[], WRONG),
        (&[(0, 499)], WRONG),
        (&[(0, 1000)], WRONG),
        (&[(0, 500), (1, 500)], WRONG),
        (&[(2, 500)], ABSENT),
        (&[(7, 500)], ABSENT),
        (&[(8, 500)], ABSENT),
    ];
    let wholes: [(&[(u8, u16)], &str); 6] = [
        (&[], WRONG),
        (&[(0, 1000)], WRONG),
        (&[(0, 1000), (1, 999)], WRONG),
        (&[(1, 1000), (0, 1000)], WRONG),
        (&[(1, 1000), (1, 1000)], WRONG),
        (&[(1, 1000), (2, 1000)], ABSENT),
    ];
    let none: [(&[(u8, u16)], &str); 1] = [(&[(0, 1000)], WRONG)];
    for (spec, expected, wrong) in [
        (on_gpus("a", 1, gpu_share(500)), given(&[(0, 500)]), &shares[..]),
        (
            on_gpus("a", 1, whole_gpus(2)),
            given(&[(0, 1000), (1, 1000)]),
            &wholes[..],
        ),
        (stateless("a", 1), vec![], &none[..]),
    ] {
        let (town, placed) = right(spec);
        assert_eq!(placed.devices, expected);
        assert_eq!(faults(&town, placed.clone()), vec![]);
        for (devices, fault) in wrong {
            let devices = given(devices);
            assert_misplaced(
                &town,
                Placed {
                    devices,
                    ..placed.clone()
                },
                fault,
            );
        }
    }
}

/// A replica on `g1` with these of its GPUs; its container is what its id begins with.
fn on_devices(town: &Town, id: &str, host: u8, devices: &[(u8, u16)]) -> Entry {
    let (container, _) = id.split_once('-').unwrap();
    let Entry::ReplicaPlaced(placed) = placed(town, id, container, "g1", host) else {
        unreachable!("a place");
    };
    Entry::ReplicaPlaced(Placed {
        ip: IpAddr::from([10, 244, 2, host]),
        devices: given(devices),
        ..placed
    })
}

#[test]
fn a_device_of_which_more_is_held_than_there_is_is_named_when_more_is_given_away() {
    let mut town = with_gpus();
    town.put(on_gpus("a", 2, gpu_share(600)));
    town.settle();
    town.put(on_gpus("b", 1, gpu_share(100)));
    let beside = [on_devices(&town, "b-g1-x", 10, &[(1, 100)])];
    assert_eq!(check(&town.world, &beside), vec![]);
    let taken = [on_devices(&town, "b-g1-y", 11, &[(0, 100)]), beside[0].clone()];
    assert_agreement(&town, &taken[..1]);
    assert_eq!(check(&town.world, &taken[..1]), vec![]);
    // No log holds such a world.
    let text = serde_json::to_string(&town.world).unwrap();
    let altered = text.replace(r#""index":1"#, r#""index":0"#);
    assert_ne!(altered, text);
    town.world = serde_json::from_str(&altered).unwrap();
    let over = Violation::DeviceOver {
        machine_id: MachineId::new("g1").unwrap(),
        device: 0,
        given: 1200,
    };
    assert_eq!(check_all(&town.world, &beside), [over]);
    assert!(matches!(
        check(&town.world, &taken)[..],
        [Violation::Inapplicable { number: 1, .. }]
    ));
}

#[test]
fn whole_gpus_that_nobody_names_are_not_given_away_piece_by_piece() {
    let mut town = with_gpus();
    town.put(on_gpus("old", 1, whole_gpus(1)));
    town.settle();
    town.forget_devices();
    town.put(on_gpus("a", 2, gpu_share(500)));
    let left = on_devices(&town, "a-g1-x", 10, &[(0, 500)]);
    let right = on_devices(&town, "a-g1-y", 11, &[(1, 500)]);
    let same = [left.clone(), on_devices(&town, "a-g1-y", 11, &[(0, 500)])];
    for fine in [std::slice::from_ref(&left), std::slice::from_ref(&right), &same] {
        assert_agreement(&town, fine);
        assert_eq!(check(&town.world, fine), vec![], "{fine:#?}");
    }
    let both = [left, right];
    assert_agreement(&town, &both);
    let violations = check(&town.world, &both);
    assert!(
        matches!(violations[..], [Violation::NoDeviceLeft { .. }]),
        "{violations:?}"
    );
    // Nor is the one that is left when its machine has come back with one of them.
    let mut smaller = town.world.machine(&"g1".parse().unwrap()).unwrap().spec.clone();
    smaller.capacity.gpu = smaller.capacity.gpu.map(|gpu| GpuCapacity { total: 1, ..gpu });
    let entry = town.world.registration(smaller, town.now.wall).unwrap();
    town.act(entry);
    assert_agreement(&town, &same);
    let violations = check(&town.world, &same);
    assert!(
        matches!(
            violations[..],
            [
                Violation::OverCapacity {
                    dimension: "thousandths of GPUs",
                    ..
                },
                Violation::NoDeviceLeft { .. }
            ]
        ),
        "{violations:?}"
    );
}

#[test]
fn stops_and_ends_out_of_turn_are_named() {
    let (town, placed) = right(stateless("a", 1));
    let (at, replica_id) = (town.now.wall, placed.replica_id.clone());
    let cause = StopCause::ScaledDown;
    let stop = Entry::ReplicaStopping {
        replica_id: replica_id.clone(),
        cause,
        picked: None,
        unasked: false,
        at,
    };
    let gone = Entry::ReplicaGone { replica_id, at };
    let place = Entry::ReplicaPlaced(placed);
    let right = [
        place.clone(),
        stop.clone(),
        gone.clone(),
        place.clone(),
        stop.clone(),
        gone.clone(),
    ];
    assert_eq!(check(&town.world, &right), vec![]);
    assert_agreement(&town, &right);
    for wrong in [
        vec![stop.clone()],
        vec![gone.clone()],
        vec![place.clone(), gone.clone()],
        vec![place.clone(), stop.clone(), stop.clone()],
        vec![place.clone(), stop.clone(), place.clone()],
        vec![place, stop, gone.clone(), gone],
    ] {
        assert!(
            matches!(check(&town.world, &wrong)[..], [Violation::Inapplicable { .. }]),
            "{wrong:#?}"
        );
        assert_agreement(&town, &wrong);
    }
}

#[test]
fn a_former_declaration_goes_with_the_last_replica_that_ran_it() {
    let mut town = Town::of(1);
    let image = |image: &str| {
        let mut spec = stateless("a", 2);
        spec.image = image.parse().unwrap();
        spec
    };
    town.put(image("registry.example.com/a:1"));
    town.settle();
    town.put(image("registry.example.com/a:2"));
    // One of two is replaced, and more is declared before the rollout completes.
    while !town
        .world
        .replicas()
        .values()
        .any(|replica| replica.revision == 2)
    {
        town.decide();
    }
    town.put(image("registry.example.com/a:3"));
    town.act(Entry::RolloutPaused {
        container: "a".parse().unwrap(),
        at: town.now.wall,
    });
    let replica = town
        .world
        .replicas()
        .values()
        .find(|replica| replica.revision == 2);
    let replica = replica.unwrap().clone();
    let stopping = Entry::ReplicaStopping {
        replica_id: replica.replica_id.clone(),
        cause: StopCause::MachineDraining,
        picked: None,
        unasked: false,
        at: town.now.wall,
    };
    let gone = Entry::ReplicaGone {
        replica_id: replica.replica_id.clone(),
        at: town.now.wall,
    };
    let Entry::ReplicaPlaced(mut back) = placed(&town, "a-m1-later", "a", "m1", 99) else {
        unreachable!("a place");
    };
    back.revision = 2;
    let back = Entry::ReplicaPlaced(back);
    let beside = [stopping.clone(), back.clone(), gone.clone()];
    assert_agreement(&town, &beside);
    assert_eq!(check(&town.world, &beside), vec![]);
    let after = [stopping, gone, back];
    assert_agreement(&town, &after);
    let violations = check(&town.world, &after);
    assert!(
        matches!(violations[..], [Violation::Inapplicable { number: 3, .. }]),
        "{violations:?}"
    );
}
