//! Random histories: whatever happens, decisions pass the independent check, are final, can be replayed and explained; and
//! once everything is well again, the cluster comes to rest with what was asked for.

use std::time::Duration;

use berth_api::container::{ContainerSpec, GpuRequest};
use berth_api::explain::Subject;
use berth_api::id::{ContainerName, MachineId};
use berth_api::machine::{GpuCapacity, MachineSpec};
use berth_api::units::{Bytes, Cpu};
use proptest::prelude::*;

use crate::entry::{Entry, RolloutTurned};
use crate::explain::explain;
use crate::fixture::{self, Town, gpu_share, on_gpus, stateful, stateless, whole_gpus};
use crate::rollout;
use crate::world::{Container, Readiness, RolloutTurn};

#[derive(Debug, Clone)]
enum Act {
    Join(u8),
    /// A machine registers again, with other GPUs: how many, and whether of the type that replicas want.
    Refit(u8, u32, bool),
    Kill(u8),
    Revive(u8),
    PowerOff(u8),
    Drain(u8),
    CancelDrain(u8),
    /// The deadline of a drain, in seconds from now.
    Deadline(u8, u64),
    Put {
        container: u8,
        count: u32,
        image: u8,
        quarters: u64,
    },
    Stop(u8),
    Start(u8),
    Delete(u8),
    Restart,
    Break(u8),
    /// Replicas of this image end at each start.
    Crash(u8),
    Pause(u8),
    /// Goes on, or tries again what was rolled back.
    Resume(u8),
    Undo(u8),
    /// How many machines the group may have.
    Limit(u32),
    /// What was placed so far was placed by a scheduler that recorded no devices.
    ForgetDevices,
    Tick(u64),
}

/// The last two have GPUs.
const MACHINES: u8 = 7;

fn group_of(machine: u8) -> &'static str {
    if machine < MACHINES - 2 { "general" } else { "gpu" }
}

fn machine() -> impl Strategy<Value = u8> {
    prop_oneof![4 => 0..MACHINES - 2, 1 => MACHINES - 2..MACHINES]
}

/// The last two want GPUs.
fn container() -> impl Strategy<Value = u8> {
    prop_oneof![4 => 0u8..4, 1 => 4u8..6]
}

fn act() -> impl Strategy<Value = Act> {
    let put =
        (container(), 0u32..6, 1u8..4, 1u64..7).prop_map(|(container, count, image, quarters)| Act::Put {
            container,
            count,
            image,
            quarters,
        });
    prop_oneof![
        2 => machine().prop_map(Act::Join),
        1 => (MACHINES - 2..MACHINES, 0u32..4, proptest::bool::weighted(0.8)).prop_map(|(machine, total, is_wanted)| Act::Refit(machine, total, is_wanted)),
        2 => machine().prop_map(Act::Kill),
        2 => machine().prop_map(Act::Revive),
        1 => machine().prop_map(Act::PowerOff),
        1 => machine().prop_map(Act::Drain),
        1 => machine().prop_map(Act::CancelDrain),
        1 => (machine(), prop_oneof![Just(0u64), Just(30)]).prop_map(|(machine, seconds)| Act::Deadline(machine, seconds)),
        6 => put,
        1 => container().prop_map(Act::Stop),
        1 => container().prop_map(Act::Start),
        1 => container().prop_map(Act::Delete),
        1 => Just(Act::Restart),
        1 => (1u8..4).prop_map(Act::Break),
        2 => (1u8..4).prop_map(Act::Crash),
        2 => container().prop_map(Act::Pause),
        2 => container().prop_map(Act::Resume),
        1 => container().prop_map(Act::Undo),
        3 => (0u32..5).prop_map(Act::Limit),
        1 => Just(Act::ForgetDevices),
        8 => prop_oneof![Just(100u64), Just(1_000), Just(16_000), Just(40_000), Just(1_000_000)].prop_map(Act::Tick),
    ]
}

fn gpus(are_whole: bool, quarters: u64) -> GpuRequest {
    if are_whole {
        whole_gpus(1 + u32::from(quarters > 4))
    } else {
        gpu_share(150 * u16::try_from(quarters).unwrap())
    }
}

/// Containers 0 and 1 are stateless, 2 and 3 stateful; 4 and 5 want GPUs, shares or whole ones by their image, and 5 is stateful.
fn declared(container: u8, count: u32, image: u8, quarters: u64) -> ContainerSpec {
    let name = format!("c{container}");
    let mut spec = match container {
        0 | 1 => stateless(&name, count),
        2 | 3 => stateful(&name, count),
        4 => on_gpus(&name, count, gpus(image == 1, quarters)),
        _ => ContainerSpec {
            stateful: true,
            ..on_gpus(&name, count, gpus(image != 1, quarters))
        },
    };
    spec.image = format!("app:{image}");
    spec.resources.cpu.desired = Cpu::from_micros(250_000 * quarters);
    spec.resources.memory.desired = Bytes::mib(256 * quarters);
    // A third of them can do with a part of what they desire, down to a fifth.
    let part = if (count + u32::from(image)).is_multiple_of(3) {
        5
    } else {
        1
    };
    spec.resources.cpu.min = Cpu::from_micros(250_000 * quarters / part);
    spec.resources.memory.min = Bytes::mib(256 * quarters / part);
    spec
}

fn is_draining(town: &Town, id: &MachineId) -> bool {
    let machine = town.world.machine(id);
    machine.is_some_and(|machine| machine.draining_since.is_some())
}

/// A machine with so many GPUs, of the type that replicas want or of another.
fn refitted(index: u8, total: u32, is_wanted: bool) -> MachineSpec {
    let mut spec = fixture::machine(&format!("m{index}"), group_of(index));
    let kind = if is_wanted { "nvidia-t4" } else { "nvidia-h100" };
    spec.capacity.gpu = (total > 0).then(|| GpuCapacity {
        total,
        kind: kind.into(),
    });
    spec
}

fn apply(town: &mut Town, act: &Act) {
    let at = town.now.wall;
    let machine_id = |index: &u8| MachineId::new(format!("m{index}")).unwrap();
    let container = |index: &u8| ContainerName::new(format!("c{index}")).unwrap();
    let there = |town: &Town, index: &u8| town.world.container(&container(index)).is_some();
    match act {
        Act::Join(index) => town.join(&format!("m{index}"), group_of(*index)),
        Act::Refit(index, total, is_wanted) => town.join_as(refitted(*index, *total, *is_wanted)),
        Act::Kill(index) => town.kill(&format!("m{index}")),
        Act::Revive(index) => town.revive(&format!("m{index}")),
        Act::PowerOff(index) if town.world.machine(&machine_id(index)).is_some() => {
            town.power_off(&format!("m{index}"));
        }
        Act::Drain(index) if town.world.machine(&machine_id(index)).is_some() => {
            let machine_id = machine_id(index);
            town.act(Entry::MachineDraining { machine_id, at });
        }
        Act::CancelDrain(index) if town.world.machine(&machine_id(index)).is_some() => {
            let machine_id = machine_id(index);
            town.act(Entry::MachineDrainCancelled { machine_id, at });
        }
        Act::Deadline(index, seconds) if is_draining(town, &machine_id(index)) => {
            let (machine_id, from) = (machine_id(index), at.plus(Duration::from_secs(*seconds)));
            town.act(Entry::MachineDrainForced { machine_id, from, at });
        }
        Act::Put {
            container,
            count,
            image,
            quarters,
        } => town.put(declared(*container, *count, *image, *quarters)),
        Act::Stop(index) if there(town, index) => {
            let container = container(index);
            town.act(Entry::ContainerStopped { container, at });
        }
        Act::Start(index) if there(town, index) => {
            let container = container(index);
            town.act(Entry::ContainerStarted { container, at });
        }
        Act::Delete(index) if there(town, index) => {
            let container = container(index);
            town.act(Entry::ContainerDeleted { container, at });
        }
        Act::Restart => town.restart(),
        Act::Break(image) => {
            town.broken_images.insert(format!("app:{image}"));
        }
        Act::Crash(image) => {
            town.crashing_images.insert(format!("app:{image}"));
        }
        Act::Pause(index) if there(town, index) => turn(town, &container(index), Turn::Pause),
        Act::Resume(index) if there(town, index) => turn(town, &container(index), Turn::Resume),
        Act::Undo(index) if there(town, index) => turn(town, &container(index), Turn::Undo),
        Act::Limit(max_size) => {
            let mut groups = town.world.spec().capacity_groups.clone();
            groups[0].max_size = *max_size;
            town.act(Entry::GroupsChanged { groups, at });
        }
        Act::ForgetDevices => town.forget_devices(),
        Act::Tick(elapsed_ms) => town.tick(*elapsed_ms),
        Act::PowerOff(_)
        | Act::Drain(_)
        | Act::CancelDrain(_)
        | Act::Deadline(..)
        | Act::Stop(_)
        | Act::Start(_)
        | Act::Delete(_)
        | Act::Pause(_)
        | Act::Resume(_)
        | Act::Undo(_) => {}
    }
}

#[derive(Debug, Clone, Copy)]
enum Turn {
    Pause,
    Resume,
    Undo,
}

/// What a user may do about a rollout, where it can be done.
fn turn(town: &mut Town, name: &ContainerName, turn: Turn) {
    let at = town.now.wall;
    let container = name.clone();
    let known = town.world.container(name).unwrap();
    if known.deleted_since.is_some() {
        return;
    }
    let turned = |to, turn| {
        Entry::RolloutTurned(RolloutTurned {
            container: name.clone(),
            revision: known.revision + 1,
            to,
            turn,
            reason: None,
            at,
        })
    };
    let entry = match turn {
        Turn::Pause if known.open_rollout().is_some() => Some(Entry::RolloutPaused { container, at }),
        Turn::Resume if known.is_paused() => Some(Entry::RolloutResumed { container, at }),
        Turn::Resume if known.declared.is_some() => Some(turned(known.revision, RolloutTurn::Retried)),
        Turn::Undo => rollout::undo(known).map(|to| turned(to, RolloutTurn::Undone)),
        Turn::Pause | Turn::Resume => None,
    };
    if let Some(entry) = entry {
        town.act(entry);
    }
}

/// A rollback follows a write: never another rollback.
fn assert_no_loop(town: &Town) {
    let mut writes = 0;
    for entry in &town.log {
        match entry {
            Entry::ContainerPut { .. } => writes += 1,
            Entry::RolloutTurned(turned) if turned.turn == RolloutTurn::RolledBack => {
                assert!(writes > 0, "a rollback that no write came before");
                writes -= 1;
            }
            Entry::RolloutTurned(_) => writes += 1,
            _ => {}
        }
    }
}

/// Everything has an answer, and what is not as it should be has a wait that says what would help.
fn assert_explained(town: &Town) {
    let ask = |subject, id: &str| {
        let answer = explain(&town.world, &town.observed, &town.limits, town.now, (subject, id)).unwrap();
        assert!(
            !answer.summary.is_empty() && !answer.state.is_empty(),
            "{answer:?}"
        );
        let is_complete =
            |wait: &berth_api::explain::Waiting| !wait.what.is_empty() && !wait.helps.is_empty();
        assert!(answer.waits.iter().all(is_complete), "{answer:?}");
        answer
    };
    for (id, machine) in town.world.machines() {
        let answer = ask(Subject::Machine, id.as_str());
        if machine.health == crate::entry::MachineHealthState::Unhealthy {
            assert!(!answer.waits.is_empty(), "{answer:?}");
        }
    }
    for replica in town.world.replicas().values() {
        let answer = ask(Subject::Replica, replica.replica_id.as_str());
        let serves = replica.is_live() && town.observed.readiness(&town.world, replica) == Readiness::Ready;
        let wanted = town.world.container(&replica.container).unwrap().wanted();
        assert!(serves || wanted == 0 || !answer.waits.is_empty(), "{answer:?}");
    }
    for (name, container) in town.world.containers() {
        let answer = ask(Subject::Container, name.as_str());
        let live = town
            .world
            .replicas_of(name)
            .filter(|replica| replica.is_live())
            .count();
        if live < container.wanted() as usize {
            assert!(!answer.waits.is_empty(), "{answer:?}");
        }
        for ordinal in 0..if container.spec.stateful {
            container.wanted()
        } else {
            0
        } {
            ask(Subject::Replica, &format!("{name}-{ordinal}"));
        }
    }
}

fn heal(town: &mut Town) {
    town.broken_images.clear();
    town.crashing_images.clear();
    let names: Vec<ContainerName> = town.world.containers().keys().cloned().collect();
    for name in names
        .iter()
        .filter(|name| town.world.container(name).is_some_and(Container::is_paused))
        .cloned()
        .collect::<Vec<_>>()
    {
        turn(town, &name, Turn::Resume);
    }
    for index in 0..MACHINES {
        let machine_id = MachineId::new(format!("m{index}")).unwrap();
        town.revive(machine_id.as_str());
        if town.world.machine(&machine_id).is_some() {
            let at = town.now.wall;
            town.act(Entry::MachineDrainCancelled { machine_id, at });
        }
    }
    town.tick(5_000);
    town.settle();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn every_history_is_checked_final_explained_and_comes_to_rest(
        acts in proptest::collection::vec(act(), 1..60)
    ) {
        let mut town = Town::new();
        town.join("m0", "general");
        town.join("m5", group_of(5));
        for act in &acts {
            apply(&mut town, act);
            town.decide();
            assert_explained(&town);
        }
        heal(&mut town);
        assert_explained(&town);
        town.assert_replay();
        assert_no_loop(&town);
        for (name, container) in town.world.containers() {
            let live = town.places(name.as_str()).len();
            let wanted = container.wanted() as usize;
            let unplaced = container.unplaced as usize;
            prop_assert!(live >= wanted.saturating_sub(unplaced), "{} has {} of {}", name, live, wanted);
            prop_assert_eq!(town.ready(name.as_str()), live);
            let has_old = town.world.replicas_of(name).any(|replica| town.world.is_outdated(replica));
            prop_assert!(!has_old || unplaced > 0 || live > wanted || town.report.waits.iter().any(|wait| wait.container == *name), "{name} stays half way");
            let is_complete = live == wanted && !has_old && unplaced == 0 && wanted > 0;
            prop_assert!(!is_complete || container.open_rollout().is_none(), "{:?}", container.rollout);
            // Who has no place goes before who could have more; where nobody waits, nobody is squeezed beside free room.
            let group = &container.spec.capacity_group;
            let mut others = town.world.containers().values().filter(|other| other.spec.capacity_group == *group);
            let is_waiting = others.any(|other| other.unplaced > 0);
            for replica in town.world.replicas_of(name).filter(|_| !is_waiting) {
                let Some(granted) = replica.granted else { continue };
                let desired = town.world.spec_of(replica).resources.desired();
                let free = town.world.machine(&replica.machine_id).unwrap().free();
                let lacks = desired.cpu.saturating_sub(granted.cpu);
                prop_assert!(lacks == Cpu::ZERO || free.cpu < lacks, "{:?} beside {:?}", replica, free);
            }
            prop_assert!(
                container.unplaced == 0 || town.report.waits.iter().any(|wait| wait.container == *name)
            );
        }
    }
}
