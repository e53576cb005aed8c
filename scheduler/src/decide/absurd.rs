//! Whatever machines report and containers ask for, a decision is made, keeps every rule, and says by name why a replica has
//! no place. The edge refuses most of this; a log written by an older program may hold it all the same.

use berth_api::container::{ContainerSpec, CpuRange, GpuRequest, GpuShare, MemoryRange};
use berth_api::machine::{GpuCapacity, MachineSpec};
use berth_api::units::{Bytes, Cpu};
use berth_api::volume::VolumeTarget;
use proptest::prelude::*;

use crate::entry::Entry;
use crate::fixture::{Town, machine, stateful, stateless};
use crate::reconcile::WaitReason;

/// Mostly what a machine could have, sometimes nothing or far too much.
fn amount(unit: u64) -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => (1u64..16).prop_map(move |count| count * unit),
        1 => Just(0u64),
        1 => Just(1u64),
        1 => Just(u64::from(u32::MAX) + 1),
        1 => Just((1u64 << 52) + 1),
        1 => Just(u64::MAX),
        1 => any::<u64>(),
    ]
}

/// Processor time up to what the edge ever let pass, a thousand million vCPU: more is no exact number in a record.
fn cpu_amount(unit: u64) -> impl Strategy<Value = u64> {
    amount(unit).prop_map(|micros| micros.min(1_000_000_000_000_000))
}

fn gpu_type() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("nvidia-t4".to_owned()),
        Just("nvidia-x9".to_owned()),
        (0..90u32).prop_map(|n| format!("t{n}"))
    ]
}

fn machines() -> impl Strategy<Value = Vec<MachineSpec>> {
    let gpu = proptest::option::of((gpu_type(), prop_oneof![0u32..10, Just(u32::MAX)]));
    let spec = (
        (
            cpu_amount(500_000),
            cpu_amount(100_000),
            amount(1 << 29),
            amount(1 << 27),
            amount(1 << 30),
        ),
        gpu,
        any::<bool>(),
    );
    proptest::collection::vec(spec, 0..5).prop_map(|specs| {
        let specs = specs.into_iter().enumerate();
        specs
            .map(
                |(index, ((cpu, cpu_reserve, memory, memory_reserve, ephemeral), gpu, is_gpu))| {
                    let mut spec = machine(&format!("m{index}"), if is_gpu { "gpu" } else { "general" });
                    spec.capacity.cpu.total = Cpu::from_micros(cpu);
                    spec.capacity.cpu.system_reserve = Cpu::from_micros(cpu_reserve);
                    spec.capacity.memory.total = Bytes::new(memory);
                    spec.capacity.memory.system_reserve = Bytes::new(memory_reserve);
                    spec.capacity.ephemeral_storage.total = Bytes::new(ephemeral);
                    spec.capacity.gpu = gpu.map(|(kind, total)| GpuCapacity { total, kind });
                    spec
                },
            )
            .collect()
    })
}

/// A count beside a share is one at the edge; here it is anything.
fn gpu_request() -> impl Strategy<Value = GpuRequest> {
    let share = prop_oneof![
        2 => Just(None::<GpuShare>),
        1 => (1u16..1000).prop_map(GpuShare::from_milli),
    ];
    let count = prop_oneof![0u32..10, Just(u32::MAX)];
    (gpu_type(), count, share).prop_map(|(kind, count, share)| GpuRequest { kind, count, share })
}

fn containers() -> impl Strategy<Value = Vec<ContainerSpec>> {
    let gpu = proptest::option::of(gpu_request());
    let group = prop_oneof![Just("general"), Just("gpu"), Just("nowhere")];
    let spec = (
        (
            cpu_amount(250_000),
            amount(1 << 28),
            proptest::option::of(amount(1 << 29)),
        ),
        gpu,
        group,
        0u32..4,
        0..3usize,
    );
    proptest::collection::vec(spec, 1..6).prop_map(|specs| {
        let specs = specs.into_iter().enumerate();
        specs
            .map(
                |(index, ((cpu, memory, ephemeral), gpu, group, count, volumes))| {
                    let name = format!("c{index}");
                    let mut spec = if volumes > 0 {
                        stateful(&name, count)
                    } else {
                        stateless(&name, count)
                    };
                    let (cpu, memory) = (Cpu::from_micros(cpu), Bytes::new(memory));
                    spec.resources.cpu = CpuRange {
                        min: cpu,
                        desired: cpu,
                    };
                    spec.resources.memory = MemoryRange {
                        min: memory,
                        desired: memory,
                    };
                    spec.resources.ephemeral_storage = ephemeral.map(Bytes::new);
                    spec.resources.gpu = gpu;
                    spec.capacity_group = group.parse().unwrap();
                    // A zone where no machine is.
                    for volume in spec.volumes.iter_mut().filter(|_| volumes == 2) {
                        volume.volume = VolumeTarget::Gcp {
                            disk_name: format!("{name}-{}", volume.ordinal),
                            zone: "far".parse().unwrap(),
                        };
                    }
                    spec
                },
            )
            .collect()
    })
}

#[test]
fn what_is_deleted_and_declared_anew_as_another_kind_leaves_nothing_behind() {
    for to_stateful in [true, false] {
        let mut town = Town::of(3);
        let (before, after) = if to_stateful {
            (stateless("api", 3), stateful("api", 2))
        } else {
            (stateful("api", 3), stateless("api", 2))
        };
        town.put(before);
        town.settle();
        // Both come in one batch, so no decision is made between them.
        town.act(Entry::ContainerDeleted {
            container: after.name.clone(),
            at: town.now.wall,
        });
        let name = after.name.clone();
        town.put(after);
        town.settle();
        let kinds: Vec<bool> = town
            .world
            .replicas_of(&name)
            .map(|replica| replica.ordinal.is_some())
            .collect();
        assert_eq!(kinds, [to_stateful; 2]);
        assert_eq!(town.ready("api"), 2);
        town.assert_replay();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_absurdity_is_decided_and_explained(machines in machines(), containers in containers()) {
        let mut town = Town::new();
        for spec in machines {
            town.join_as(spec);
        }
        town.tick(100);
        for spec in containers {
            town.put(spec);
        }
        town.tick(100);
        town.tick(100);
        town.decide();
        for (name, container) in town.world.containers() {
            let placed = town.world.replicas_of(name).filter(|replica| replica.is_live()).count();
            let mut waits = 0;
            for wait in town.report.waits.iter().filter(|wait| wait.container == *name) {
                if let WaitReason::NoPlace(unplaced) = &wait.reason {
                    let text = unplaced.to_string();
                    prop_assert!(!text.is_empty() && !wait.reason.helps().is_empty(), "{}", text);
                    waits += 1;
                }
            }
            prop_assert_eq!(placed + waits, container.wanted() as usize, "{}: {:?}", name, town.report);
        }
        town.assert_replay();
    }
}
