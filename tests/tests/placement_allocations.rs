//! A decision allocates nothing: the allocator is counted around `Engine::choose` in a fleet in churn, for every kind of
//! request, with trees and without.

use berth_scheduler::placement::engine::{
    Ask, Choice, DEVICE_MILLI, DEVICES_MAX, Demand, Engine, GpuNeed, Kind, Machine, Mix, Row, Spread, Typical,
};

const MACHINES: u16 = 600;
const GIB: u64 = 1 << 30;

fn machine(number: u16) -> Machine {
    let gpus = if number % 4 == 3 { 8 } else { 0 };
    let mut devices = [0; DEVICES_MAX];
    devices[..gpus].fill(DEVICE_MILLI);
    let usable = Row {
        cpu: 16_000_000,
        memory: 64 * GIB,
        ephemeral: 500 * GIB,
        devices,
    };
    Machine {
        kind: Kind {
            zone: number % 3,
            gpu_model: u16::from(gpus > 0),
            ..Kind::default()
        },
        usable,
        scale: usable,
        disk_slots: 25,
        host_ports: 999,
        addresses: 253,
    }
}

fn plain() -> Demand {
    Demand {
        cpu: 500_000,
        memory: GIB,
        addresses: 1,
        ..Demand::default()
    }
}

fn demands() -> [Demand; 6] {
    let gpu = |gpu| Demand { gpu, ..plain() };
    [
        plain(),
        Demand {
            zone: Some(1),
            disk_slots: 1,
            ..plain()
        },
        Demand {
            ephemeral: 30 * GIB,
            ..plain()
        },
        gpu(GpuNeed::Whole(2)),
        gpu(GpuNeed::Share(330)),
        Demand {
            cpu: 400_000_000,
            ..plain()
        },
    ]
}

/// What a decision allocated.
fn counted(engine: &mut Engine, ask: &Ask) -> (Option<Choice>, u64) {
    let mut choice = None;
    let info = allocation_counter::measure(|| choice = engine.choose(ask));
    (choice, info.count_total)
}

#[test]
fn a_decision_allocates_nothing() {
    let typical = demands().map(|demand| Typical {
        cpu: demand.cpu,
        memory: demand.memory,
        gpu: demand.gpu,
        models: 0,
        weight: 1,
    });
    let mut engine = Engine::with_mix(Mix::new(&typical));
    for number in 0..MACHINES {
        engine.add_machine(&machine(number)).unwrap();
    }
    // More machines than from which on a container keeps trees of its own.
    let apart = engine.spread(Spread {
        machine_share: 1,
        machine_max: 2,
        zones: true,
    });
    let mut asks = vec![];
    for demand in demands() {
        let class = engine.class(&demand).unwrap();
        for spread in [None, Some(apart)] {
            asks.push(Ask {
                class,
                spread,
                prefer: None,
            });
        }
    }
    // The first look at a GPU makes the tables of the mix, and the sets of machine types that are short.
    for ask in &asks {
        engine.choose(ask);
    }
    let mut held: Vec<(Ask, Choice)> = vec![];
    let (mut placed, mut refused) = (0, 0);
    for round in 0..3_000_usize {
        let ask = &asks[round * 7 % asks.len()];
        let (choice, allocations) = counted(&mut engine, ask);
        assert_eq!(allocations, 0, "round {round}: {ask:?} gave {choice:?}");
        match choice {
            Some(choice) => {
                engine.take(ask, choice);
                held.push((*ask, choice));
                placed += 1;
            }
            None => refused += 1,
        }
        if round % 3 == 2 {
            let (ask, choice) = held.swap_remove(round % held.len());
            engine.release(&ask, choice);
        }
        if round > 1_500 {
            engine.settle(100);
        }
    }
    assert!(
        placed > 1_000 && refused > 300,
        "{placed} placed, {refused} refused"
    );
}
