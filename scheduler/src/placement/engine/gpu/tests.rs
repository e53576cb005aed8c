//! The score against figures worked out by hand, at the edges of the quantities, and its worth against a search that knows
//! no table.

use proptest::prelude::*;

use super::super::demand::Kind;
use super::*;

/// A vCPU.
const CORE: u64 = 1_000_000;

fn shape(cores: u64, gpu: GpuNeed, weight: u64) -> Typical {
    Typical {
        cpu: cores * CORE,
        memory: 0,
        gpu,
        models: 0,
        weight,
    }
}

fn row(cores: u32, devices: &[u16]) -> Row {
    let mut all = [0; DEVICES_MAX];
    all[..devices.len()].copy_from_slice(devices);
    Row {
        cpu: cores * 1_000_000,
        memory: 1 << 40,
        ephemeral: 0,
        devices: all,
    }
}

fn facts(cores: u32, devices: usize) -> CellFacts {
    CellFacts {
        kind: Kind {
            gpu_model: 1,
            ..Kind::default()
        },
        scale: row(cores, &[DEVICE_MILLI; DEVICES_MAX][..devices]),
    }
}

fn demand(cores: u64, gpu: GpuNeed) -> Demand {
    Demand {
        cpu: cores * CORE,
        gpu,
        ..Demand::default()
    }
}

/// The worth of a machine in thousandths of a device.
fn worth_of(mix: &Mix, row: &Row) -> u32 {
    mix.value(u64::from(row.cpu), &mix.devices(row)) / u32::from(UNIT)
}

/// Sizes count in full.
fn plain() -> Weights {
    Weights {
        small: 0,
        ..Weights::default()
    }
}

#[test]
fn a_machine_is_worth_what_the_mix_can_put_on_it() {
    let shapes = [shape(10, GpuNeed::Whole(1), 1), shape(5, GpuNeed::Share(400), 1)];
    let mix = Mix::with_weights(&shapes, plain());
    // Processors in plenty: a whole device, two shares of 400 in 900, one in 799, none in 399.
    let plenty = 4000;
    assert_eq!(worth_of(&mix, &row(plenty, &[1000])), 1000);
    assert_eq!(worth_of(&mix, &row(plenty, &[900, 799, 399])), 1200);
    assert_eq!(worth_of(&mix, &row(plenty, &[])), 0);
    // No processors: nothing can run, and the dearest price of a vCPU says so for all but what is densest.
    assert_eq!(worth_of(&mix, &row(0, &[1000, 1000])), 0);
    // Ten vCPUs carry one of the two devices; the bound may be loose, but not below what can be done nor near both.
    let one = worth_of(&mix, &row(10, &[1000, 1000]));
    assert!((1000..1400).contains(&one), "{one}");
}

#[test]
fn small_shares_are_worth_less_than_their_size() {
    let shapes = [shape(0, GpuNeed::Whole(1), 1), shape(0, GpuNeed::Share(500), 1)];
    let mix = Mix::new(&shapes);
    // 500 * (1 - 0.08 * 0.5) = 480 each; a whole device counts in full.
    assert_eq!(worth_of(&mix, &row(1, &[500])), 480);
    assert_eq!(worth_of(&mix, &row(1, &[1000])), 1000);
}

#[test]
fn a_share_goes_to_the_first_device_that_loses_least() {
    let shapes = [shape(0, GpuNeed::Whole(1), 1), shape(0, GpuNeed::Share(300), 1)];
    let mix = Mix::new(&shapes);
    let facts = facts(64, 5);
    let share = demand(1, GpuNeed::Share(300));
    // 300 fits exactly into the fourth; the fifth is as good and later.
    let (_, mask) = mix
        .score(&facts, &row(64, &[1000, 500, 299, 300, 300]), &share)
        .unwrap();
    assert_eq!(mask, 1 << 3);
    // Without it the 500 is broken and not the whole device.
    let (_, mask) = mix.score(&facts, &row(64, &[1000, 500, 299]), &share).unwrap();
    assert_eq!(mask, 1 << 1);
    let (_, mask) = mix.score(&facts, &row(64, &[1000, 1000]), &share).unwrap();
    assert_eq!(mask, 1);
}

#[test]
fn whole_devices_are_the_lowest_numbered_free_ones() {
    let mix = Mix::default();
    let facts = facts(64, 4);
    let two = demand(1, GpuNeed::Whole(2));
    let (_, mask) = mix
        .score(&facts, &row(64, &[999, 1000, 1000, 1000]), &two)
        .unwrap();
    assert_eq!(mask, 0b0110);
    assert_eq!(mix.score(&facts, &row(64, &[999, 1000, 999, 998]), &two), None);
    assert_eq!(
        mix.score(&facts, &row(64, &[1000; 8]), &demand(1, GpuNeed::Whole(8)))
            .unwrap()
            .1,
        0xff
    );
    assert_eq!(
        mix.score(&facts, &row(64, &[0, 0]), &demand(1, GpuNeed::Share(1))),
        None
    );
}

#[test]
fn prefers_a_machine_in_use_to_a_fresh_one_and_a_balanced_to_a_stranded_one() {
    let mix = Mix::new(&[shape(8, GpuNeed::Whole(1), 1)]);
    let facts = facts(64, 8);
    let one = demand(8, GpuNeed::Whole(1));
    let fresh = mix.score(&facts, &row(64, &[1000; 8]), &one).unwrap().0;
    let used = mix
        .score(
            &facts,
            &row(56, &[0, 1000, 1000, 1000, 1000, 1000, 1000, 1000]),
            &one,
        )
        .unwrap()
        .0;
    assert!(used > fresh, "{used} {fresh}");
    // Only processors are asked for: they come from where the devices have gone.
    let plain = demand(16, GpuNeed::None);
    let stranded = mix
        .score(&facts, &row(40, &[1000, 0, 0, 0, 0, 0, 0, 0]), &plain)
        .unwrap()
        .0;
    let needed = mix
        .score(&facts, &row(40, &[0, 0, 0, 1000, 1000, 1000, 1000, 1000]), &plain)
        .unwrap()
        .0;
    assert!(stranded > needed, "{stranded} {needed}");
}

#[test]
fn a_mix_without_gpus_still_packs_shares_tightly() {
    for mix in [Mix::default(), Mix::new(&[shape(4, GpuNeed::None, 9)])] {
        let (_, mask) = mix
            .score(
                &facts(64, 3),
                &row(64, &[1000, 250, 500]),
                &demand(1, GpuNeed::Share(250)),
            )
            .unwrap();
        assert_eq!(mask, 0b010);
    }
}

#[test]
fn the_largest_quantities_overflow_nothing() {
    let most = u64::from(u32::MAX);
    let shapes = [
        Typical {
            cpu: u64::MAX,
            memory: u64::MAX,
            gpu: GpuNeed::Whole(8),
            models: u64::MAX,
            weight: u64::MAX >> 8,
        },
        Typical {
            cpu: 1,
            memory: 0,
            gpu: GpuNeed::Share(999),
            models: 0,
            weight: 1,
        },
    ];
    let full = Row {
        cpu: u32::MAX,
        memory: u64::MAX,
        ephemeral: u64::MAX,
        devices: [DEVICE_MILLI; DEVICES_MAX],
    };
    for shapes in [&shapes[..], &shapes[..1], &shapes[1..], &[]] {
        let mix = Mix::new(shapes);
        for scale in [full, Row { cpu: 0, ..full }, row(1, &[1000])] {
            let facts = CellFacts { scale, ..facts(1, 1) };
            for gpu in [
                GpuNeed::None,
                GpuNeed::Share(1),
                GpuNeed::Share(999),
                GpuNeed::Whole(1),
                GpuNeed::Whole(8),
            ] {
                for cpu in [0, 1, most] {
                    let demand = Demand {
                        cpu,
                        gpu,
                        ..Demand::default()
                    };
                    let (key, mask) = mix.score(&facts, &full, &demand).expect("it is all free");
                    assert!(key > 0 && u64::from(mask.count_ones()) == gpu_milli(gpu).div_ceil(1000));
                }
            }
        }
    }
}

fn arbitrary_need() -> impl Strategy<Value = GpuNeed> {
    prop_oneof![
        (1u16..1000).prop_map(GpuNeed::Share),
        (1u8..=2).prop_map(GpuNeed::Whole)
    ]
}

/// The most thousandths that shapes of the mix fill on the machine, by trying everything.
fn filled(shapes: &[Typical], cpu: u64, devices: &[u16; DEVICES_MAX], from: usize) -> u64 {
    let mut most = 0;
    for (number, shape) in shapes.iter().enumerate().skip(from) {
        let GpuNeed::Share(milli) = shape.gpu else {
            continue;
        };
        for device in (0..2).filter(|device| devices[*device] >= milli && shape.cpu <= cpu) {
            let mut left = *devices;
            left[device] -= milli;
            most = most.max(u64::from(milli) + filled(shapes, cpu - shape.cpu, &left, number));
        }
    }
    most
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_worth_bounds_whatever_can_be_put_there(
        sizes in proptest::collection::vec((200u16..1000, 1u64..9), 1..4),
        devices in (0u16..=1000, 0u16..=1000),
        cores in 0u32..20,
    ) {
        let shapes: Vec<Typical> = sizes.iter().map(|(milli, cores)| shape(*cores, GpuNeed::Share(*milli), 1)).collect();
        let mix = Mix::with_weights(&shapes, plain());
        let row = row(cores, &[devices.0, devices.1]);
        let best = filled(&shapes, u64::from(row.cpu), &row.devices, 0);
        // Each table entry may round down by a unit for each share in it.
        let bound = u64::from(worth_of(&mix, &row)) + 4;
        prop_assert!(bound >= best, "{bound} {best}");
    }

    #[test]
    fn the_devices_of_a_key_fit_and_no_key_is_zero(
        shapes in proptest::collection::vec((0u64..100, arbitrary_need(), 1u64..50), 0..6),
        devices in proptest::array::uniform8(0u16..=1000),
        asked in prop_oneof![Just(GpuNeed::None), arbitrary_need()],
        cores in (0u64..64, 0u32..64),
    ) {
        let shapes: Vec<Typical> = shapes.into_iter().map(|(cores, gpu, weight)| shape(cores, gpu, weight)).collect();
        let mix = Mix::new(&shapes);
        let row = row(cores.1, &devices);
        let milli = match asked { GpuNeed::None => 0, GpuNeed::Share(milli) => milli, GpuNeed::Whole(_) => DEVICE_MILLI };
        let wanted = match asked { GpuNeed::None => 0, GpuNeed::Share(_) => 1, GpuNeed::Whole(count) => usize::from(count) };
        let fitting = devices.iter().filter(|free| **free >= milli).count();
        match mix.score(&facts(64, 8), &row, &demand(cores.0, asked)) {
            None => prop_assert!(fitting < wanted),
            Some((key, mask)) => {
                prop_assert!(key > 0);
                let taken = (0..DEVICES_MAX).filter(|device| mask >> device & 1 == 1);
                prop_assert_eq!(taken.clone().count(), wanted);
                prop_assert!(taken.into_iter().all(|device| devices[device] >= milli));
            }
        }
    }
}
