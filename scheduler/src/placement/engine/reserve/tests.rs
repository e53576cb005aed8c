//! The reserve by hand: a request that could go anywhere leaves the rare model alone exactly while its share is short.

use super::super::demand::{DEVICE_MILLI, Kind};
use super::*;

fn facts(model: u16, cpu: u32, devices: usize) -> CellFacts {
    let mut all = [0; 8];
    all[..devices].fill(DEVICE_MILLI);
    CellFacts {
        kind: Kind {
            gpu_model: model,
            ..Kind::default()
        },
        scale: Row {
            cpu,
            memory: 100,
            ephemeral: 0,
            devices: all,
        },
    }
}

fn shape(cpu: u64, models: u64, weight: u64) -> Typical {
    Typical {
        cpu,
        memory: 0,
        gpu: GpuNeed::Whole(1),
        models,
        weight,
    }
}

fn demand(models: u64, gpu: GpuNeed) -> Demand {
    Demand {
        cpu: 1,
        gpu,
        models,
        ..Demand::default()
    }
}

/// Pool 0 of model 1 and pool 1 of model 2, and a cell without devices.
fn reserve(free: [u64; 2]) -> Reserve {
    let mut reserve = Reserve::default();
    reserve.add_cell(&facts(1, 100, 8));
    reserve.add_cell(&facts(2, 100, 8));
    reserve.add_cell(&facts(0, 100, 0));
    reserve.give(0, free[0]);
    reserve.give(1, free[1]);
    reserve.give(2, 77);
    reserve
}

#[test]
fn what_only_some_can_use_gets_dearer_for_the_others_when_it_is_short() {
    // A quarter of the demand needs model 2.
    let mix = Mix::new(&[shape(1, 0, 3), shape(1, 1 << 2, 1)]);
    let any = demand(0, GpuNeed::Whole(1));
    for (free, is_dearer) in [
        ([90_000, 30_000], true),
        ([90_000, 60_000], false),
        ([0, 1000], false),
    ] {
        let mut reserve = reserve(free);
        reserve.weigh(&any, &mix);
        assert_eq!(reserve.cost(1, &any) > 0, is_dearer, "{free:?}");
        assert_eq!(reserve.cost(0, &any), 0);
        assert_eq!(reserve.cost(2, &any), 0);
        // Whom it is kept for pays nothing.
        let bound = demand(1 << 2, GpuNeed::Whole(1));
        reserve.weigh(&bound, &mix);
        assert_eq!(reserve.cost(1, &bound), 0);
    }
}

#[test]
fn the_cost_follows_what_is_taken_and_given_back() {
    let mix = Mix::new(&[shape(1, 0, 3), shape(1, 1 << 2, 1)]);
    let any = demand(0, GpuNeed::Share(500));
    let mut reserve = reserve([100_000, 100_000]);
    reserve.weigh(&any, &mix);
    assert_eq!(reserve.cost(1, &any), 0);
    reserve.take(1, 90_000);
    reserve.weigh(&any, &mix);
    let most = i32::try_from(mix.weights().reserve / mix.weights().step).unwrap();
    // It needs 27 500 and has 10 000: beyond the ramp.
    assert_eq!(reserve.cost(1, &any), most);
    reserve.give(1, 90_000);
    reserve.weigh(&any, &mix);
    assert_eq!(reserve.cost(1, &any), 0);
}

#[test]
fn large_machines_are_kept_for_requests_that_fit_nowhere_else() {
    let mut reserve = Reserve::default();
    reserve.add_cell(&facts(1, 10, 8));
    reserve.add_cell(&facts(1, 90, 8));
    reserve.give(0, 80_000);
    reserve.give(1, 8000);
    let mix = Mix::new(&[shape(5, 0, 1), shape(50, 0, 1)]);
    let small = demand(0, GpuNeed::Whole(1));
    reserve.weigh(&small, &mix);
    assert_eq!(reserve.cost(0, &small), 0);
    assert!(reserve.cost(1, &small) > 0);
}

#[test]
fn requests_without_gpu_use_machines_with_devices_last() {
    let mut reserve = reserve([8000, 8000]);
    let none = demand(0, GpuNeed::None);
    reserve.weigh(&none, &Mix::default());
    assert!(reserve.cost(0, &none) > i32::from(u16::MAX));
    assert_eq!(reserve.cost(2, &none), 0);
}

#[test]
fn an_empty_fleet_and_an_empty_mix_cost_nothing() {
    let mut nothing = Reserve::default();
    nothing.weigh(&demand(0, GpuNeed::Whole(1)), &Mix::default());
    let mut reserve = reserve([0, 0]);
    let mix = Mix::new(&[shape(1, 1 << 2, 1)]);
    let any = demand(0, GpuNeed::Whole(1));
    reserve.weigh(&any, &mix);
    assert_eq!(reserve.cost(1, &any), 0);
}

#[test]
fn more_machine_types_than_bits_are_not_watched() {
    let mut reserve = Reserve::default();
    for cpu in 1..=70 {
        reserve.add_cell(&facts(1, cpu, 1));
    }
    reserve.give(69, 1000);
    let any = demand(0, GpuNeed::Whole(1));
    reserve.weigh(&any, &Mix::new(&[shape(64, 0, 1)]));
    assert_eq!(reserve.cost(69, &any), 0);
}
