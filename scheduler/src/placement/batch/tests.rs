//! Bursts against placing one after the other: never worse by the aim, exact books, and rooms made by hand.

use proptest::prelude::*;

use super::super::engine::{DEVICE_MILLI, DEVICES_MAX, Kind, Machine, Row, Spread, SpreadId};
use super::*;

fn machine(cpu: u32, gpus: usize) -> Machine {
    let mut devices = [0; DEVICES_MAX];
    devices[..gpus].fill(DEVICE_MILLI);
    let usable = Row {
        cpu,
        memory: 1000,
        ephemeral: 0,
        devices,
    };
    Machine {
        kind: Kind {
            gpu_model: u16::from(gpus > 0),
            ..Kind::default()
        },
        usable,
        scale: usable,
        disk_slots: 0,
        host_ports: 0,
        addresses: 200,
    }
}

fn ask(engine: &mut Engine, cpu: u64, gpu: GpuNeed, spread: Option<SpreadId>) -> Ask {
    let demand = Demand {
        cpu,
        memory: 1,
        gpu,
        addresses: 1,
        ..Demand::default()
    };
    Ask {
        class: engine.class(&demand).unwrap(),
        spread,
        prefer: None,
    }
}

fn count(choices: &[Option<Choice>]) -> usize {
    choices.iter().flatten().count()
}

fn rows(engine: &Engine) -> Vec<Row> {
    let machines = (0..engine.machine_count()).map(|number| MachineIdx(u32::try_from(number).unwrap()));
    machines.map(|machine| engine.row(machine)).collect()
}

#[test]
fn whole_devices_go_first_then_the_larger_share() {
    let mut engine = Engine::new();
    engine.add_machine(&machine(100, 4)).unwrap();
    let asks = [
        ask(&mut engine, 90, GpuNeed::None, None),
        ask(&mut engine, 1, GpuNeed::Share(500), None),
        ask(&mut engine, 1, GpuNeed::Whole(1), None),
        ask(&mut engine, 1, GpuNeed::Whole(2), None),
        ask(&mut engine, 1, GpuNeed::Whole(1), None),
    ];
    assert_eq!(largest_first(&engine, &asks), [3, 2, 4, 0, 1]);
}

#[test]
fn a_burst_packs_what_its_order_would_not() {
    let mut engine = Engine::new();
    engine.add_machine(&machine(10, 0)).unwrap();
    engine.add_machine(&machine(10, 0)).unwrap();
    let asks: Vec<Ask> = [4, 4, 6, 6]
        .map(|cpu| ask(&mut engine, cpu, GpuNeed::None, None))
        .to_vec();
    let mut online = engine.clone();
    assert_eq!(count(&in_order(&mut online, &asks, &[0, 1, 2, 3])), 3);
    let choices = place(&mut engine, &asks, Aim::Requests);
    assert_eq!(count(&choices), 4);
    assert!(rows(&engine).iter().all(|row| row.cpu == 0));
}

#[test]
fn room_is_made_by_moving_who_fits_elsewhere() {
    let mut engine = Engine::new();
    for cpu in [10, 10] {
        engine.add_machine(&machine(cpu, 0)).unwrap();
    }
    let (small, large) = (
        ask(&mut engine, 5, GpuNeed::None, None),
        ask(&mut engine, 10, GpuNeed::None, None),
    );
    let mut tenants = Tenants::default();
    // One half on each machine, so that the large one fits nowhere.
    for number in [0, 1] {
        let machine = MachineIdx(number);
        let choice = engine
            .choose(&Ask {
                prefer: Some(machine),
                ..small
            })
            .unwrap();
        let choice = Choice { machine, ..choice };
        engine.take(&small, choice);
        tenants.add(small, choice);
    }
    assert_eq!(engine.choose(&large), None);
    let before = rows(&engine);
    assert_eq!(make_room(&mut engine, &mut tenants, &large, 0), None);
    assert_eq!(rows(&engine), before);
    let room = make_room(&mut engine, &mut tenants, &large, 1).unwrap();
    assert_eq!(room.moves.len(), 1);
    assert_eq!(room.choice.machine, MachineIdx(0));
    assert_eq!(
        rows(&engine).iter().map(|row| row.cpu).collect::<Vec<_>>(),
        [0, 0]
    );
    assert_eq!(tenants.choice(room.moves[0].0).machine, MachineIdx(1));
}

#[test]
fn a_device_is_emptied_for_a_whole_one() {
    let mut engine = Engine::new();
    for _ in 0..2 {
        engine.add_machine(&machine(100, 1)).unwrap();
    }
    let mut tenants = Tenants::default();
    let (third, whole) = (
        ask(&mut engine, 1, GpuNeed::Share(300), None),
        ask(&mut engine, 1, GpuNeed::Whole(1), None),
    );
    for number in [0, 0, 1] {
        let wish = Ask {
            prefer: Some(MachineIdx(number)),
            ..third
        };
        let choice = engine.choose(&wish).unwrap();
        engine.take(&third, choice);
        tenants.add(third, choice);
    }
    let room = make_room(&mut engine, &mut tenants, &whole, MOVES_MAX).unwrap();
    assert_eq!((room.choice.machine, room.moves.len()), (MachineIdx(1), 1));
}

fn arbitrary_gpu() -> impl Strategy<Value = GpuNeed> {
    prop_oneof![
        2 => Just(GpuNeed::None),
        2 => (100u16..1000).prop_map(GpuNeed::Share),
        1 => (1u8..4).prop_map(GpuNeed::Whole),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_burst_does_no_worse_than_its_order_and_keeps_exact_books(
        machines in proptest::collection::vec((4u32..30, 0usize..4), 1..7),
        wishes in proptest::collection::vec((1u64..16, arbitrary_gpu(), any::<bool>()), 1..30),
        share in 1u32..3,
        aim in prop_oneof![Just(Aim::Requests), Just(Aim::Devices)],
    ) {
        let mut engine = Engine::new();
        for (cpu, gpus) in &machines {
            engine.add_machine(&machine(*cpu, *gpus)).unwrap();
        }
        let spread = engine.spread(Spread { machine_share: share, machine_max: share + 1, zones: false });
        let asks: Vec<Ask> = wishes
            .iter()
            .map(|(cpu, gpu, apart)| ask(&mut engine, *cpu, *gpu, apart.then_some(spread)))
            .collect();
        let empty = rows(&engine);
        let mut one_by_one = engine.clone();
        let as_given: Vec<usize> = (0..asks.len()).collect();
        let online = in_order(&mut one_by_one, &asks, &as_given);
        let online = value(&engine, &asks, &online, aim);
        let choices = place(&mut engine, &asks, aim);
        let reached = value(&engine, &asks, &choices, aim);
        prop_assert!(reached >= online, "{reached:?} {online:?}");
        // Exact: the same choices again on an empty fleet give the same rows, so the engine took just these.
        give_back(&mut engine, &asks, &choices);
        prop_assert_eq!(rows(&engine), empty);
        for number in 0..machines.len() {
            let machine = MachineIdx(u32::try_from(number).unwrap());
            prop_assert_eq!(engine.count_on(spread, machine), 0);
        }
        let again = place(&mut engine, &asks, aim);
        prop_assert_eq!(&again, &choices);
        for number in 0..machines.len() {
            let machine = MachineIdx(u32::try_from(number).unwrap());
            prop_assert!(engine.count_on(spread, machine) <= share + 1);
        }
    }
}
