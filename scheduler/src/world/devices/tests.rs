//! Which devices are free, by hand and in random histories; which placements a log may hold; and that logs from before devices
//! were recorded mean what they meant.

use std::collections::BTreeSet;
use std::net::IpAddr;

use berth_api::container::GpuRequest;
use berth_api::explain::Subject;
use berth_api::id::{ContainerName, MachineId, ReplicaId};
use berth_api::machine::GpuCapacity;
use berth_api::time::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::decide::request;
use crate::entry::{Entry, MachineHealthState, Placed, StopCause};
use crate::explain::explain;
use crate::fixture::{Town, gpu_share, machine, on_gpus, stateless, whole_gpus};
use crate::placement::{Fleet, place};
use crate::world::{Allocated, ApplyError};

fn at() -> Timestamp {
    Timestamp::from_millis(2_000)
}

fn g1() -> MachineId {
    "g1".parse().unwrap()
}

/// A cluster with one running machine of so many GPUs.
fn world(gpus: u32) -> World {
    let mut world = Town::new().world;
    register(&mut world, gpus);
    world.apply(&Entry::MachineHealthChanged {
        machine_id: g1(),
        state: MachineHealthState::Running,
        at: at(),
    });
    world
}

/// The machine registers, first or again, with so many GPUs.
fn register(world: &mut World, gpus: u32) {
    let mut spec = machine("g1", "gpu");
    spec.capacity.gpu = (gpus > 0).then(|| GpuCapacity {
        total: gpus,
        kind: "nvidia-t4".into(),
    });
    let entry = world.registration(spec, at()).unwrap();
    world.apply(&entry);
}

/// Declares a container and gives the entry that places a replica of it with these devices.
fn placed(world: &mut World, gpu: Option<GpuRequest>, devices: &[(u8, u16)]) -> Placed {
    let name = format!("c{:03}", world.placed_count());
    let spec = match gpu {
        Some(gpu) => on_gpus(&name, 1, gpu),
        None => stateless(&name, 1),
    };
    let entry = world.put(spec, at());
    world.apply(&entry);
    let container = world.container(&name.parse().unwrap()).unwrap();
    let host = world.machine(&g1()).unwrap().next_host;
    Placed {
        replica_id: format!("{name}-g1-x").parse().unwrap(),
        container: container.spec.name.clone(),
        ordinal: None,
        revision: container.revision,
        machine_id: g1(),
        ip: IpAddr::from([10, 244, 0, host]),
        host_port: None,
        devices: given(devices),
        chosen: None,
        granted: None,
        relieves: None,
        at: at(),
    }
}

fn given(devices: &[(u8, u16)]) -> Vec<GpuDevice> {
    let device = |(index, milli): &(u8, u16)| GpuDevice {
        index: *index,
        milli: *milli,
    };
    devices.iter().map(device).collect()
}

fn run(world: &mut World, gpu: GpuRequest, devices: &[(u8, u16)]) -> ReplicaId {
    let placed = placed(world, Some(gpu), devices);
    world.apply(&Entry::ReplicaPlaced(placed.clone()));
    placed.replica_id
}

fn stop(world: &mut World, replica_id: &ReplicaId) {
    world.apply(&Entry::ReplicaStopping {
        replica_id: replica_id.clone(),
        cause: StopCause::ScaledDown,
        picked: None,
        unasked: false,
        at: at(),
    });
}

fn end(world: &mut World, replica_id: &ReplicaId) {
    world.apply(&Entry::ReplicaGone {
        replica_id: replica_id.clone(),
        at: at(),
    });
}

fn delete(world: &mut World, container: ContainerName) {
    world.apply(&Entry::ContainerDeleted { container, at: at() });
}

/// What is held: each replica's request, and the devices that its entry names.
type Held<'a> = &'a [(GpuRequest, &'a [(u8, u16)])];

/// What is free when a machine of so many GPUs holds this and then comes back with so many.
fn free(held: Held<'_>, before: u32, now: u32) -> Option<[u16; DEVICES]> {
    let mut world = world(before);
    for (gpu, devices) in held {
        run(&mut world, gpu.clone(), devices);
    }
    register(&mut world, now);
    world.free_devices(world.machine(&g1()).unwrap())
}

/// What `berth explain` says of GPUs.
fn words(town: &Town, subject: Subject, id: &str) -> String {
    let explanation = explain(&town.world, &town.observed, &town.limits, town.now, (subject, id)).unwrap();
    let mut facts = explanation.facts.into_iter();
    facts.find(|(name, _)| name == "gpu" || name == "gpus").unwrap().1
}

#[test]
fn explanations_name_the_devices_and_say_which_are_not_known() {
    let mut town = Town::new();
    town.join("g1", "gpu");
    town.put(on_gpus("part", 1, gpu_share(250)));
    town.settle();
    town.put(on_gpus("whole", 1, whole_gpus(1)));
    town.settle();
    let id = |town: &Town, container: &str| {
        let mut replicas = town.world.replicas().values();
        replicas
            .find(|replica| replica.container.as_str() == container)
            .unwrap()
            .replica_id
            .to_string()
    };
    let (part, whole) = (id(&town, "part"), id(&town, "whole"));
    assert_eq!(words(&town, Subject::Replica, &part), "0.25 of device 0");
    assert_eq!(words(&town, Subject::Replica, &whole), "device 1");
    assert_eq!(
        words(&town, Subject::Machine, "g1"),
        "0 of 2 free, 0.75 of device 0"
    );
    town.forget_devices();
    assert_eq!(
        words(&town, Subject::Replica, &part),
        "0.25 of one device, which was not recorded"
    );
    assert_eq!(
        words(&town, Subject::Replica, &whole),
        "one device, which was not recorded"
    );
    // The whole one is thought to lie on the lowest device.
    assert_eq!(
        words(&town, Subject::Machine, "g1"),
        "0 of 2 free, 0.75 of device 1"
    );
    register(&mut town.world, 1);
    assert_eq!(
        words(&town, Subject::Machine, "g1"),
        "none of 1 is given away: replicas hold GPUs that were not recorded or that it has no more"
    );
}

#[test]
fn what_is_named_is_taken_where_it_is() {
    let held: Held<'_> = &[
        (whole_gpus(2), &[(0, 1000), (2, 1000)]),
        (gpu_share(250), &[(1, 250)]),
        (gpu_share(333), &[(1, 333)]),
    ];
    assert_eq!(free(held, 4, 4), Some([0, 417, 0, 1000, 0, 0, 0, 0]));
    assert_eq!(free(&[], 2, 2), Some([1000, 1000, 0, 0, 0, 0, 0, 0]));
    assert_eq!(free(&[], 8, 8), Some([1000; DEVICES]));
}

#[test]
fn what_nobody_names_is_thought_to_be_on_the_lowest_devices_with_room_the_largest_first() {
    let beside_shares: Held<'_> = &[
        (gpu_share(400), &[(0, 400)]),
        (whole_gpus(1), &[]),
        (gpu_share(300), &[(1, 300)]),
    ];
    assert_eq!(free(beside_shares, 3, 3), Some([600, 700, 0, 0, 0, 0, 0, 0]));
    let largest_first: Held<'_> = &[(gpu_share(600), &[]), (whole_gpus(1), &[]), (gpu_share(300), &[])];
    assert_eq!(free(largest_first, 3, 3), Some([0, 100, 1000, 0, 0, 0, 0, 0]));
    let several: Held<'_> = &[(gpu_share(1), &[(1, 1)]), (whole_gpus(2), &[])];
    assert_eq!(free(several, 4, 4), Some([0, 999, 0, 1000, 0, 0, 0, 0]));
}

#[test]
fn while_what_nobody_names_does_not_fit_nothing_is_free() {
    let parts: Held<'_> = &[
        (gpu_share(400), &[(0, 400)]),
        (gpu_share(400), &[(1, 400)]),
        (whole_gpus(1), &[]),
    ];
    assert_eq!(free(parts, 2, 2), Some([0; DEVICES]));
    let too_many: Held<'_> = &[(whole_gpus(u32::MAX), &[])];
    assert_eq!(free(too_many, 2, 2), Some([0; DEVICES]));
    // It ends when something leaves.
    let mut world = world(2);
    let part = run(&mut world, gpu_share(400), &[(0, 400)]);
    run(&mut world, gpu_share(300), &[(1, 300)]);
    run(&mut world, whole_gpus(1), &[]);
    stop(&mut world, &part);
    let free = |world: &World| world.free_devices(world.machine(&g1()).unwrap()).unwrap();
    assert_eq!(free(&world), [0; DEVICES]);
    end(&mut world, &part);
    assert_eq!(free(&world), [0, 700, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn what_a_machine_that_came_back_smaller_has_no_more_is_held_of_what_it_has() {
    let last: Held<'_> = &[(gpu_share(500), &[(1, 500)])];
    assert_eq!(free(last, 2, 1), Some([500, 0, 0, 0, 0, 0, 0, 0]));
    let whole: Held<'_> = &[(whole_gpus(1), &[(3, 1000)]), (gpu_share(200), &[(0, 200)])];
    assert_eq!(free(whole, 4, 3), Some([800, 0, 1000, 0, 0, 0, 0, 0]));
    let both: Held<'_> = &[(gpu_share(700), &[(0, 700)]), (gpu_share(500), &[(1, 500)])];
    assert_eq!(free(both, 2, 1), Some([0; DEVICES]));
    assert_eq!(free(both, 2, 0), Some([0; DEVICES]));
    assert_eq!(free(&[], 0, 0), Some([0; DEVICES]));
}

#[test]
fn a_machine_that_reports_more_devices_than_any_has_is_not_understood() {
    let held: Held<'_> = &[(whole_gpus(1), &[(0, 1000)])];
    for total in [9, u32::MAX] {
        assert_eq!(free(&[], total, total), None);
        assert_eq!(free(held, 2, total), None);
    }
}

/// The entry is refused as it should be, and nothing has changed.
fn assert_refused(world: &mut World, placed: &Placed, expected: &ApplyError) {
    let before = world.clone();
    let error = world
        .try_apply(&Entry::ReplicaPlaced(placed.clone()))
        .unwrap_err();
    assert_eq!(error, *expected, "{placed:?}");
    assert_eq!(*world, before, "{placed:?}");
}

#[test]
fn no_more_of_a_device_is_given_away_than_there_is_and_what_stops_still_holds_its_part() {
    let mut world = world(2);
    let first = run(&mut world, gpu_share(600), &[(0, 600)]);
    let more = placed(&mut world, Some(gpu_share(401)), &[(0, 401)]);
    let taken = |placed: &Placed, device| ApplyError::DeviceTaken {
        replica_id: placed.replica_id.clone(),
        device,
    };
    assert_refused(&mut world, &more, &taken(&more, 0));
    stop(&mut world, &first);
    assert_refused(&mut world, &more, &taken(&more, 0));
    end(&mut world, &first);
    world.apply(&Entry::ReplicaPlaced(more));
    run(&mut world, gpu_share(599), &[(0, 599)]);
    let both = placed(&mut world, Some(whole_gpus(2)), &[(0, 1000), (1, 1000)]);
    assert_refused(&mut world, &both, &taken(&both, 0));
    run(&mut world, gpu_share(1), &[(1, 1)]);
    let one = placed(&mut world, Some(whole_gpus(1)), &[(1, 1000)]);
    assert_refused(&mut world, &one, &taken(&one, 1));
    // Nobody can say that what is not named is not there.
    run(&mut world, whole_gpus(1), &[]);
}

#[test]
fn devices_that_a_declaration_does_not_ask_for_are_refused() {
    type Case<'a> = (Option<GpuRequest>, &'a [(u8, u16)]);
    let wrong: [Case<'_>; 12] = [
        (Some(whole_gpus(2)), &[(0, 1000)]),
        (Some(whole_gpus(2)), &[(0, 1000), (1, 1000), (2, 1000)]),
        (Some(whole_gpus(2)), &[(0, 1000), (1, 999)]),
        (Some(whole_gpus(2)), &[(1, 1000), (0, 1000)]),
        (Some(whole_gpus(2)), &[(1, 1000), (1, 1000)]),
        (Some(whole_gpus(2)), &[(7, 1000), (8, 1000)]),
        (Some(gpu_share(500)), &[(0, 499)]),
        (Some(gpu_share(500)), &[(0, 1000)]),
        (Some(gpu_share(500)), &[(0, 250), (1, 250)]),
        (Some(gpu_share(500)), &[(8, 500)]),
        (Some(whole_gpus(0)), &[(0, 1000)]),
        (None, &[(0, 1000)]),
    ];
    let mut world = world(4);
    for (gpu, devices) in wrong {
        let placed = placed(&mut world, gpu, devices);
        let expected = ApplyError::WrongDevices(placed.replica_id.clone());
        assert_refused(&mut world, &placed, &expected);
    }
    run(&mut world, whole_gpus(2), &[(1, 1000), (3, 1000)]);
    // A machine may come back with fewer devices, so their number is not the log's concern.
    run(&mut world, gpu_share(500), &[(7, 500)]);
}

/// A machine with two GPUs, and one of them is held by what was rolled out there twice.
fn history() -> Town {
    let mut town = Town::new();
    town.join("g1", "gpu");
    town.settle();
    town.put(on_gpus("gone", 1, whole_gpus(1)));
    town.put(on_gpus("old", 1, whole_gpus(1)));
    town.settle();
    town.act(Entry::ContainerDeleted {
        container: "gone".parse().unwrap(),
        at: town.now.wall,
    });
    town.settle();
    let mut again = on_gpus("old", 1, whole_gpus(1));
    again.image = "app:2".into();
    town.put(again);
    town.settle();
    town
}

#[test]
fn a_log_from_before_devices_were_recorded_is_read_as_it_was_written() {
    let mut town = history();
    let held = town
        .world
        .replicas()
        .values()
        .flat_map(|replica| &replica.devices);
    assert_eq!(held.count(), 1);
    town.forget_devices();
    let [snapshot, set] = [
        serde_json::to_string(&town.world).unwrap(),
        serde_json::to_string(&town.world.assignment_set(&g1())).unwrap(),
    ];
    for text in ["\"devices\"", "gpuShareMilli"] {
        assert!(!snapshot.contains(text), "{text} in {snapshot}");
    }
    assert!(!set.contains("gpuDevices"), "{set}");
    let mut read: World = serde_json::from_str(&snapshot).unwrap();
    assert_eq!(read, town.world);
    let old = read.replicas().keys().next().unwrap().clone();
    stop(&mut read, &old);
    end(&mut read, &old);
    assert_eq!(read.machine(&g1()).unwrap().allocated, Allocated::default());
    town.settle();
    assert_eq!(town.ready("old"), 1);
    town.assert_replay();
}

#[test]
fn a_share_goes_beside_a_whole_device_that_nobody_names_to_one_that_is_left_over() {
    let mut town = history();
    town.forget_devices();
    for name in ["one", "two"] {
        town.put(on_gpus(name, 1, gpu_share(500)));
        town.settle();
        let replica = town.world.replicas_of(&name.parse().unwrap()).next().unwrap();
        assert_eq!(replica.devices, given(&[(1, 500)]), "{name}");
        assert_eq!(town.ready(name), 1);
    }
    town.put(on_gpus("three", 1, gpu_share(500)));
    town.settle();
    assert!(town.places("three").is_empty());
    // Nothing changed for who was there.
    let set = town.world.assignment_set(&g1()).unwrap();
    let old = set
        .replicas
        .iter()
        .find(|assignment| assignment.container.as_str() == "old");
    assert!(old.unwrap().gpu_devices.is_empty());
    town.assert_replay();
}

#[derive(Debug, Clone)]
enum Act {
    /// As the engine finds it a place.
    Place(GpuRequest),
    /// As a scheduler places it that records no devices and takes a share for a whole one.
    PlaceUnnamed(GpuRequest),
    /// One of those that are there.
    Remove(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let wanted = || prop_oneof![1 => (1u32..4).prop_map(whole_gpus), 2 => (1u16..1000).prop_map(gpu_share)];
    prop_oneof![
        4 => wanted().prop_map(Act::Place),
        2 => wanted().prop_map(Act::PlaceUnnamed),
        2 => any::<usize>().prop_map(Act::Remove),
    ]
}

fn apply(world: &mut World, act: Act) {
    match act {
        Act::Place(gpu) => {
            let wanted = placed(world, Some(gpu), &[]);
            let found = place(Fleet::of(world), &[request(world, &wanted.container, None, None)]);
            match &found[..] {
                [Ok(place)] => world.apply(&Entry::ReplicaPlaced(Placed {
                    ip: place.ip,
                    devices: place.devices.clone(),
                    ..wanted
                })),
                _ => delete(world, wanted.container),
            }
        }
        Act::PlaceUnnamed(gpu) => {
            let held = world.replicas().values().map(|replica| world.spec_of(replica));
            let held: u32 = held
                .filter_map(|spec| spec.resources.gpu.as_ref())
                .map(|gpu| gpu.count)
                .sum();
            if held + gpu.count <= world.machine(&g1()).unwrap().usable().gpus {
                run(world, gpu, &[]);
            }
        }
        Act::Remove(number) => {
            let there: Vec<ReplicaId> = world.replicas().keys().cloned().collect();
            if !there.is_empty() {
                let replica_id = &there[number % there.len()];
                let container = world.replica(replica_id).unwrap().container.clone();
                delete(world, container);
                stop(world, replica_id);
                end(world, replica_id);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_free_twice_and_what_nobody_names_keeps_its_devices(
        total in 1u32..9,
        acts in proptest::collection::vec(act(), 1..30),
    ) {
        let mut world = world(total);
        for act in acts {
            apply(&mut world, act);
            let machine = world.machine(&g1()).unwrap();
            let free = world.free_devices(machine).unwrap();
            let sum: u64 = free.into_iter().map(u64::from).sum();
            prop_assert!(sum + machine.allocated.gpus_milli() <= u64::from(total) * 1000, "{:?}", free);
            let on = || world.replicas_on(&machine.spec.machine_id);
            let named: BTreeSet<u8> = on().flat_map(|replica| &replica.devices).map(|device| device.index).collect();
            prop_assert!(named.iter().all(|index| u32::from(*index) < total), "{:?}", named);
            let unnamed = on().filter(|replica| replica.devices.is_empty());
            let unnamed: u32 = unnamed.map(|replica| replica.held(&world).gpus).sum();
            prop_assert!(u32::try_from(named.len()).unwrap() + unnamed <= total, "{:?} and {}", named, unnamed);
        }
    }
}
