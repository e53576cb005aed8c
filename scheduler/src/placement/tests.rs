//! Placement of a cluster: the words that explain it, as operators read them, and that words and numbers agree.

use berth_api::container::{ContainerSpec, GpuRequest, LoadBalancerTarget, Scale};
use berth_api::id::{ContainerName, MachineId};
use berth_api::machine::GpuDevice;
use berth_api::units::{Bytes, Cpu};
use berth_api::volume::VolumeTarget;
use proptest::prelude::*;

use super::unplaced::Need;
use super::*;
use crate::decide::request;
use crate::entry::Entry;
use crate::fixture::{Town, gpu_share, group, machine, on_gpus, stateful, stateless, whole_gpus};

mod rules;

/// The sentence that explains why one more replica has no place, and what would help.
fn explained(town: &Town, container: &str, ordinal: Option<u32>) -> String {
    let name = ContainerName::new(container).unwrap();
    let request = request(&town.world, &name, ordinal, None);
    let outcome = place(Fleet::of(&town.world), &[request]).pop().unwrap();
    let unplaced = outcome.unwrap_err();
    let helps: Vec<String> = unplaced.would_help.iter().map(ToString::to_string).collect();
    format!("{unplaced}. Would help: {}.", helps.join("; "))
}

fn on_disk(name: &str, count: u32, zone: &str) -> ContainerSpec {
    let mut spec = stateful(name, count);
    for volume in &mut spec.volumes {
        volume.volume = VolumeTarget::Aws {
            volume_id: format!("vol-0a1b{}", volume.ordinal),
            zone: zone.parse().unwrap(),
        };
    }
    spec
}

#[test]
fn tells_what_each_filter_ruled_out_and_the_smallest_change() {
    let mut town = Town::of(3);
    town.join("m4b", "general");
    town.settle();
    let mut filler = stateless("filler", 4);
    filler.resources.memory.desired = Bytes::mib(4916);
    town.put(filler);
    town.settle();
    town.act(Entry::MachineDraining {
        machine_id: MachineId::new("m2").unwrap(),
        at: town.now.wall,
    });
    let mut database = on_disk("db", 1, "a");
    database.resources.memory.desired = Bytes::gib(4);
    town.put(database);
    assert_eq!(
        explained(&town, "db", Some(0)),
        "0 of 4 machines of capacity group general fit: 1 is in another zone than vol-0a1b0, which is in a, 1 is \
         draining, 2 lack memory (largest free 3.2 GiB of 4 GiB). Would help: cancel the drain of machine m2; free 820 MiB \
         of memory more on machine m1, or declare at most 3.2 GiB of memory; one more machine in group general in zone a \
         would fit it (the group has 4 of at most 5)."
    );
}

#[test]
fn tells_a_replica_that_no_machine_could_hold_from_one_that_waits_for_room() {
    let mut town = Town::of(1);
    let mut huge = stateless("huge", 1);
    huge.resources.cpu.desired = Cpu::from_micros(5_000_000);
    town.put(huge);
    assert_eq!(
        explained(&town, "huge", None),
        "it is larger than any machine of capacity group general: the largest has 4 vCPU, 5 vCPU needed. Would help: \
         declare at most 4 vCPU, or use a group of larger machines."
    );
    let mut absurd = stateless("absurd", 1);
    absurd.resources.cpu.desired = Cpu::from_micros(u64::MAX);
    absurd.resources.memory.desired = Bytes::new(u64::MAX);
    town.put(absurd);
    let text = explained(&town, "absurd", None);
    assert!(
        text.starts_with("no machine could ever take it: cpu of"),
        "{text}"
    );
    assert!(text.contains("memory of"), "every fault at once: {text}");
}

#[test]
fn tells_of_gpus_of_another_type_and_of_gpus_in_use() {
    let mut town = Town::of(1);
    town.join("g1", "gpu");
    town.settle();
    let trainer = |name: &str, kind: &str, count: u32| {
        let mut spec = stateless(name, 1);
        spec.capacity_group = "gpu".parse().unwrap();
        spec.resources.gpu = Some(GpuRequest {
            kind: kind.into(),
            ..whole_gpus(count)
        });
        spec
    };
    town.put(trainer("other", "nvidia-h100", 1));
    town.put(trainer("one", "nvidia-t4", 1));
    town.settle();
    town.put(trainer("both", "nvidia-t4", 2));
    assert_eq!(
        explained(&town, "other", None),
        "0 of 1 machines of capacity group gpu fit: 1 lacks GPUs of its type. Would help: use a capacity group whose \
         machines have GPUs of type nvidia-h100."
    );
    assert_eq!(
        explained(&town, "both", None),
        "0 of 1 machines of capacity group gpu fit: 1 lacks free GPUs (largest free 1 of 2). Would help: free 1 GPU more \
         on machine g1, or declare at most 1 GPU; one more machine in group gpu would fit it (the group has 1 of at most \
         5)."
    );
}

/// What the replicas of a container hold of their machines' GPUs.
fn devices(town: &Town, container: &str) -> Vec<GpuDevice> {
    let name = ContainerName::new(container).unwrap();
    let replicas = town.world.replicas_of(&name);
    replicas.flat_map(|replica| replica.devices.clone()).collect()
}

#[test]
fn shares_fill_a_device_before_they_touch_another_and_the_rest_is_told_by_device() {
    let mut town = Town::new();
    town.join("g1", "gpu");
    town.settle();
    for (name, index) in [("first", 0), ("second", 0), ("third", 1)] {
        town.put(on_gpus(name, 1, gpu_share(500)));
        town.settle();
        assert_eq!(devices(&town, name), [GpuDevice { index, milli: 500 }], "{name}");
    }
    town.put(on_gpus("whole", 1, whole_gpus(1)));
    assert_eq!(
        explained(&town, "whole", None),
        "0 of 1 machines of capacity group gpu fit: 1 lacks free GPUs (largest free 0 of 1). Would help: free 1 GPU more \
         on machine g1; one more machine in group gpu would fit it (the group has 1 of at most \
         5)."
    );
    town.put(on_gpus("large", 1, gpu_share(600)));
    assert_eq!(
        explained(&town, "large", None),
        "0 of 1 machines of capacity group gpu fit: 1 lacks a GPU with so much free (largest free 0.5 of 0.6). Would help: \
         free 0.1 more of the emptiest GPU of machine g1, or declare at most 0.5 of a GPU; one more machine in group gpu would fit it \
         (the group has 1 of at most 5)."
    );
    town.put(on_gpus("fourth", 1, gpu_share(500)));
    town.settle();
    assert_eq!(devices(&town, "fourth"), [GpuDevice { index: 1, milli: 500 }]);
}

#[test]
fn whole_devices_keep_their_numbers_while_others_come_and_go() {
    let mut town = Town::new();
    town.join("g1", "gpu");
    town.settle();
    let whole = |index| GpuDevice { index, milli: 1000 };
    for name in ["first", "second"] {
        town.put(on_gpus(name, 1, whole_gpus(1)));
        town.settle();
    }
    assert_eq!(devices(&town, "first"), [whole(0)]);
    assert_eq!(devices(&town, "second"), [whole(1)]);
    town.act(Entry::ContainerDeleted {
        container: "first".parse().unwrap(),
        at: town.now.wall,
    });
    town.settle();
    town.put(on_gpus("third", 1, whole_gpus(1)));
    town.settle();
    assert_eq!(devices(&town, "second"), [whole(1)]);
    assert_eq!(devices(&town, "third"), [whole(0)]);
    town.assert_replay();
}

#[test]
fn a_machine_holds_no_more_disks_than_its_platform_lets_it() {
    let mut town = Town::of(1);
    town.world.spec.platform = berth_api::cluster::Platform::Azure;
    let mut many = on_disk("many", 17, "a");
    many.resources.cpu.desired = Cpu::from_micros(1_000);
    many.resources.memory.desired = Bytes::mib(1);
    town.put(many);
    town.settle();
    assert_eq!(town.places("many").len(), 16);
    let text = explained(&town, "many", Some(16));
    assert!(text.contains("1 lacks a slot for one more disk"), "{text}");
    assert!(text.contains("detach a disk"), "{text}");
}

#[test]
fn a_stateful_replica_goes_back_to_its_machine() {
    let mut town = Town::of(3);
    town.put(stateful("db", 2));
    town.settle();
    let before = town.places("db");
    // Make its machine the worse choice by best fit: others are fuller.
    town.put(stateless("web", 4));
    town.settle();
    let mut updated = stateful("db", 2);
    updated.image = "db:2".into();
    town.put(updated);
    town.settle();
    assert_eq!(town.places("db"), before);
    let replica = town
        .world
        .replicas()
        .values()
        .find(|replica| replica.container.as_str() == "db");
    assert_eq!(replica.unwrap().chosen.unwrap().rule, Rule::Returned);
}

#[test]
fn replicas_go_to_zones_with_fewer_of_them() {
    let mut town = Town::of(4);
    town.join("m5b", "general");
    town.settle();
    town.put(stateless("web", 2));
    town.settle();
    let zones = town
        .places("web")
        .iter()
        .filter(|(_, machine)| machine == "m5b")
        .count();
    assert_eq!(
        zones,
        1,
        "one of two is in the only machine of zone b: {:?}",
        town.places("web")
    );
}

#[test]
fn a_machine_that_reports_what_no_machine_has_gets_nothing_and_is_named() {
    let mut town = Town::new();
    let mut absurd = machine("m1", "general");
    absurd.capacity.memory.total = Bytes::new(u64::MAX);
    let entry = town.world.registration(absurd, town.now.wall).unwrap();
    town.act(entry);
    town.act(Entry::MachineHealthChanged {
        machine_id: MachineId::new("m1").unwrap(),
        state: crate::entry::MachineHealthState::Running,
        at: town.now.wall,
    });
    town.put(stateless("web", 1));
    let text = explained(&town, "web", None);
    assert!(text.contains("1 reported more than any machine has"), "{text}");
}

/// Kind 7 wants a share of a GPU, kind 5 whole ones.
fn declared(kind: u8, size: u64) -> ContainerSpec {
    let name = format!("c{kind}");
    let mut spec = match kind {
        0 | 1 => stateless(&name, 3),
        2 => stateful(&name, 2),
        3 => on_disk(&name, 2, "a"),
        4 => on_disk(&name, 2, "b"),
        _ => stateless(&name, 2),
    };
    spec.resources.cpu.desired = Cpu::from_micros(250_000 * size);
    spec.resources.memory.desired = Bytes::mib(300 * size);
    match kind {
        1 => spec.resources.ephemeral_storage = Some(Bytes::gib(11 * size)),
        5 => {
            spec.capacity_group = group("gpu", 2).group_id;
            spec.resources.gpu = Some(whole_gpus(1 + u32::try_from(size % 2).unwrap()));
        }
        6 => {
            spec.load_balancer_target = Some(LoadBalancerTarget::Gcp {
                neg_name: "neg".into(),
            });
        }
        7 => {
            spec.capacity_group = group("gpu", 2).group_id;
            spec.resources.gpu = Some(gpu_share(u16::try_from(50 * size).unwrap().min(950)));
        }
        _ => {}
    }
    spec
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// The words that explain a refusal and the numbers that decide are two readings of the same rules.
    #[test]
    fn words_and_numbers_agree(
        machines in proptest::collection::vec((0u8..3, any::<bool>()), 1..6),
        containers in proptest::collection::vec((0u8..8, 1u64..9), 1..7),
        asked in (0u8..8, 1u64..20),
        forgotten in 0usize..12,
    ) {
        let mut town = Town::new();
        for (number, (kind, drains)) in machines.into_iter().enumerate() {
            let (id, group) = match kind {
                0 => (format!("m{number}"), "general"),
                1 => (format!("m{number}b"), "general"),
                _ => (format!("g{number}"), "gpu"),
            };
            town.join(&id, group);
            town.settle();
            if drains {
                town.act(Entry::MachineDraining { machine_id: MachineId::new(id).unwrap(), at: town.now.wall });
            }
        }
        for (number, (kind, size)) in containers.into_iter().enumerate() {
            town.put(declared(kind, size));
            if number == forgotten {
                town.settle();
                town.forget_devices();
            }
        }
        town.settle();
        let mut spec = declared(asked.0, asked.1);
        spec.name = ContainerName::new("asked").unwrap();
        for volume in &mut spec.volumes {
            if let VolumeTarget::Aws { volume_id, .. } = &mut volume.volume {
                volume_id.push('f');
            }
        }
        let ordinal = spec.stateful.then_some(0);
        town.put(spec);
        let name = ContainerName::new("asked").unwrap();
        let request = request(&town.world, &name, ordinal, None);
        let mut fleet = Fleet::of(&town.world);
        let ask = fleet.ask(&request).unwrap();
        let need = Need::of(&fleet, &request);
        for slot in fleet.slots() {
            let fits = slot.index.is_some_and(|index| fleet.engine.fit(index, ask.class).is_some());
            prop_assert_eq!(need.verdict(&fleet, slot).is_none(), fits, "{}", slot.machine_id);
        }
        let outcome = place(fleet.clone(), &[request]).pop().unwrap();
        match outcome {
            Ok(place) => {
                prop_assert!(!place.chosen.to_string().is_empty());
                let count = request.spec.resources.gpu.as_ref().map_or(0, |gpu| gpu.count);
                prop_assert_eq!(u32::try_from(place.devices.len()).unwrap(), count);
            }
            Err(unplaced) => prop_assert!(!unplaced.would_help.is_empty(), "{}", unplaced),
        }
    }

    /// Requests that fail alike share an explanation: it is the one that each of them would have had.
    #[test]
    fn what_is_said_of_many_is_what_is_said_of_each(
        machines in proptest::collection::vec(0u8..3, 0..4),
        asked in proptest::collection::vec((0u8..8, 1u64..4, 0u8..3), 2..12),
        is_one_unnamed in any::<bool>(),
    ) {
        let mut town = Town::new();
        for (number, kind) in machines.into_iter().enumerate() {
            town.join(&format!("m{number}"), if kind == 0 { "gpu" } else { "general" });
            town.settle();
        }
        if is_one_unnamed {
            let mut old = declared(5, 2);
            old.scale = Scale::Replicas(1);
            town.put(old);
            town.settle();
            town.forget_devices();
        }
        let mut names = vec![];
        for (number, (kind, size, rule)) in asked.into_iter().enumerate() {
            // Kind 2 would ask for one volume again and again.
            let mut spec = declared(if kind == 2 { 3 } else { kind }, 4 * size * size);
            spec.name = ContainerName::new(format!("asked-{number}")).unwrap();
            spec.placement = (rule > 0).then(|| PlacementRules {
                requires: (rule > 1).then(|| "nowhere".parse().unwrap()).into_iter().collect(),
                exclusive: rule == 1,
                ..PlacementRules::default()
            });
            for volume in &mut spec.volumes {
                if let VolumeTarget::Aws { volume_id, .. } = &mut volume.volume {
                    *volume_id = format!("{volume_id}{number:02}");
                }
            }
            names.push((spec.name.clone(), spec.stateful.then_some(0)));
            town.put(spec);
        }
        let mut fleet = Fleet::of(&town.world);
        let requests: Vec<Request<'_>> = names
            .iter()
            .map(|(name, ordinal)| request(&town.world, name, *ordinal, None))
            .collect();
        let outcomes = place_in(&mut fleet, &requests);
        for (request, outcome) in requests.iter().zip(outcomes) {
            if let Err(told) = outcome && !matches!(told.why, Why::VolumeInUse { .. }) {
                prop_assert_eq!(&*told, &Unplaced::of(&fleet, request), "{}", request.spec.name);
            }
        }
    }
}
