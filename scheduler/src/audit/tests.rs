//! Each rule broken on purpose is found, and the engine, driven at random, breaks none.

use proptest::prelude::*;

use super::session::drive;
use super::*;
use crate::placement::engine::{Ask, Engine, Kind, MachineIdx};

fn machine(gpus: usize) -> Machine {
    let mut devices = [0; 8];
    devices[..gpus].fill(1000);
    let usable = Row {
        cpu: 8,
        memory: 64,
        ephemeral: 100,
        devices,
    };
    Machine {
        kind: Kind {
            group: 1,
            zone: 2,
            gpu_model: if gpus > 0 { 3 } else { 0 },
            traits: 0b0110,
        },
        usable,
        scale: usable,
        disk_slots: 2,
        host_ports: 1,
        addresses: 4,
    }
}

fn plain() -> Demand {
    Demand {
        cpu: 1,
        memory: 1,
        ..Demand::default()
    }
}

fn wish(demand: Demand) -> Wish {
    Wish { demand, spread: None }
}

/// A ledger of machine 0 with GPUs so many.
fn ledger(gpus: usize) -> Ledger {
    let mut ledger = Ledger::new();
    assert_eq!(ledger.add_machine(0, &machine(gpus)), vec![]);
    ledger
}

/// What a demand on machine 0 breaks.
fn alone(gpus: usize, demand: Demand, devices: u8) -> Vec<Breach> {
    ledger(gpus).place(0, &wish(demand), 0, devices)
}

#[test]
fn what_is_right_breaks_nothing() {
    let mut ledger = ledger(2);
    let whole = Demand {
        gpu: GpuNeed::Whole(1),
        models: 1 << 3,
        group: Some(1),
        zone: Some(2),
        required: 0b0010,
        forbidden: 0b1000,
        disk_slots: 2,
        host_ports: 1,
        addresses: 1,
        ..plain()
    };
    let share = Demand {
        gpu: GpuNeed::Share(500),
        ..plain()
    };
    assert_eq!(ledger.place(0, &wish(whole), 0, 0b01), vec![]);
    assert_eq!(ledger.place(1, &wish(share), 0, 0b10), vec![]);
    assert_eq!(ledger.place(2, &wish(share), 0, 0b10), vec![]);
    assert!(ledger.refused(&wish(share)).is_none());
    assert_eq!(ledger.release(1, 0, 0b10), vec![]);
    assert_eq!(ledger.refused(&wish(share)), Some(Breach::FitsAfterAll(0)));
    assert_eq!(ledger.place(3, &wish(share), 0, 0b10), vec![]);
    assert_eq!(ledger.placed().count(), 3);
}

#[test]
fn more_than_a_machine_has_is_found_in_each_dimension() {
    let demands = [
        ("cpu", Demand { cpu: 9, ..plain() }),
        (
            "memory",
            Demand {
                memory: 65,
                ..plain()
            },
        ),
        (
            "ephemeral storage",
            Demand {
                ephemeral: 101,
                ..plain()
            },
        ),
        (
            "disk slots",
            Demand {
                disk_slots: 3,
                ..plain()
            },
        ),
        (
            "addresses",
            Demand {
                addresses: 5,
                ..plain()
            },
        ),
        (
            "host ports",
            Demand {
                host_ports: 2,
                ..plain()
            },
        ),
    ];
    for (expected, demand) in demands {
        let breaches = alone(0, demand, 0);
        assert!(
            matches!(breaches[..], [Breach::OverCapacity { dimension, .. }] if dimension == expected),
            "{expected}: {breaches:?}"
        );
        assert_eq!(ledger(0).refused(&wish(demand)), None);
    }
    let mut ledger = ledger(0);
    let half = wish(Demand { cpu: 4, ..plain() });
    assert_eq!(ledger.place(0, &half, 0, 0), vec![]);
    assert_eq!(ledger.place(1, &half, 0, 0), vec![]);
    let third = ledger.place(2, &half, 0, 0);
    assert_eq!(
        third,
        vec![Breach::OverCapacity {
            machine: 0,
            dimension: "cpu",
            given: 12,
            has: 8
        }]
    );
}

#[test]
fn what_a_machine_is_not_is_found() {
    let has_gpu = Demand {
        gpu: GpuNeed::Whole(1),
        ..plain()
    };
    let cases = [
        (
            Demand {
                group: Some(0),
                ..plain()
            },
            0,
            Breach::Group {
                machine: 0,
                has: 1,
                wants: 0,
            },
        ),
        (
            Demand {
                zone: Some(0),
                ..plain()
            },
            0,
            Breach::Zone {
                machine: 0,
                has: 2,
                wants: 0,
            },
        ),
        (
            Demand {
                required: 0b1010,
                ..plain()
            },
            0,
            Breach::RequiredLabel {
                machine: 0,
                missing: 0b1000,
            },
        ),
        (
            Demand {
                forbidden: 0b1010,
                ..plain()
            },
            0,
            Breach::ForbiddenLabel {
                machine: 0,
                present: 0b0010,
            },
        ),
        (
            Demand {
                models: 1 << 4,
                ..has_gpu
            },
            1,
            Breach::Model { machine: 0, has: 3 },
        ),
    ];
    for (demand, devices, expected) in cases {
        assert_eq!(alone(1, demand, devices), vec![expected]);
        assert_eq!(ledger(1).refused(&wish(demand)), None);
    }
    assert!(alone(0, has_gpu, 1).contains(&Breach::Model { machine: 0, has: 0 }));
    assert!(alone(0, has_gpu, 1).contains(&Breach::NoDevice {
        machine: 0,
        device: 0
    }));
}

#[test]
fn a_placement_on_a_closed_machine_is_found() {
    let mut closed = ledger(0);
    closed.set_open(0, false);
    assert_eq!(closed.refused(&wish(plain())), None);
    assert_eq!(closed.place(0, &wish(plain()), 0, 0), vec![Breach::Closed(0)]);
}

#[test]
fn wrong_devices_are_found() {
    let whole = |count| Demand {
        gpu: GpuNeed::Whole(count),
        ..plain()
    };
    let share = |milli| Demand {
        gpu: GpuNeed::Share(milli),
        ..plain()
    };
    let wrong_count = |asked, given| {
        vec![Breach::DeviceCount {
            machine: 0,
            asked,
            given,
        }]
    };
    assert_eq!(alone(4, whole(2), 0b1), wrong_count(2, 1));
    assert_eq!(alone(4, share(500), 0b11), wrong_count(1, 2));
    assert_eq!(alone(4, plain(), 0b1), wrong_count(0, 1));
    assert_eq!(
        alone(2, whole(1), 0b100),
        vec![Breach::NoDevice {
            machine: 0,
            device: 2
        }]
    );
    for (first, second) in [(whole(1), whole(1)), (share(1), whole(1))] {
        let mut ledger = ledger(2);
        assert_eq!(ledger.place(0, &wish(first), 0, 0b10), vec![]);
        let twice = vec![Breach::DeviceTwice {
            machine: 0,
            device: 1,
        }];
        assert_eq!(ledger.place(1, &wish(second), 0, 0b10), twice);
    }
    for first in [whole(1), share(600)] {
        let mut ledger = ledger(2);
        assert_eq!(ledger.place(0, &wish(first), 0, 0b10), vec![]);
        let breaches = ledger.place(1, &wish(share(401)), 0, 0b10);
        assert!(
            matches!(breaches[..], [Breach::DeviceOver { device: 1, .. }]),
            "{breaches:?}"
        );
    }
}

#[test]
fn a_crowd_is_found() {
    let spread = Spread {
        machine_share: 1,
        machine_max: 1,
        zones: false,
    };
    let wish = Wish {
        demand: plain(),
        spread: Some((7, spread)),
    };
    let mut ledger = ledger(0);
    assert_eq!(ledger.place(0, &wish, 0, 0), vec![]);
    assert_eq!(ledger.refused(&wish), None);
    let crowded = vec![Breach::Crowded {
        machine: 0,
        given: 2,
        most: 1,
    }];
    assert_eq!(ledger.place(1, &wish, 0, 0), crowded);
    let other = Wish {
        spread: Some((8, spread)),
        ..wish
    };
    assert_eq!(ledger.place(2, &other, 0, 0), vec![]);
}

#[test]
fn wrong_books_are_found() {
    let mut ledger = ledger(1);
    assert_eq!(ledger.add_machine(0, &machine(1)), vec![Breach::MachineTwice(0)]);
    assert_eq!(
        ledger.place(0, &wish(plain()), 9, 0),
        vec![Breach::UnknownMachine(9)]
    );
    assert_eq!(ledger.release(0, 0, 0), vec![Breach::NotPlaced(0)]);
    assert_eq!(ledger.place(0, &wish(plain()), 0, 0), vec![]);
    assert_eq!(
        ledger.place(0, &wish(plain()), 0, 0),
        vec![Breach::PlacedTwice(0)]
    );
    let elsewhere = Breach::ReleasedElsewhere {
        replica: 0,
        released: 0,
        devices: 1,
    };
    assert_eq!(ledger.release(0, 0, 1), vec![elsewhere]);
    let mut row = machine(1).usable;
    (row.cpu, row.memory) = (7, 63);
    assert_eq!(ledger.account(0, &row, (2, 4, 1)), vec![]);
    row.cpu = 8;
    row.devices[0] = 999;
    let breaches = ledger.account(0, &row, (2, 3, 1));
    let dimensions: Vec<&str> = breaches
        .iter()
        .map(|breach| match breach {
            Breach::WrongAccount { dimension, .. } => *dimension,
            _ => "",
        })
        .collect();
    assert_eq!(dimensions, ["cpu", "addresses", "a device"]);
    assert_eq!(ledger.release(0, 0, 0), vec![]);
    assert_eq!(ledger.release(0, 0, 0), vec![Breach::NotPlaced(0)]);
}

#[test]
fn the_absurd_is_found_in_what_was_placed() {
    let nothing = Demand::default();
    assert!(matches!(alone(0, nothing, 0)[..], [Breach::AbsurdDemand(_)]));
    let torn = Demand {
        required: 2,
        forbidden: 2,
        ..plain()
    };
    assert!(
        alone(0, torn, 0)
            .iter()
            .any(|breach| matches!(breach, Breach::AbsurdDemand(_)))
    );
    let mut absurd = machine(1);
    absurd.usable.devices[0] = 1001;
    assert!(matches!(
        Ledger::new().add_machine(0, &absurd)[..],
        [Breach::AbsurdMachine(_)]
    ));
}

/// An engine that would choose at random is caught: the property below can fail.
#[test]
fn a_wrong_choice_of_an_engine_is_caught() {
    let (mut engine, mut ledger) = (Engine::new(), Ledger::new());
    for number in 0..2 {
        engine.add_machine(&machine(0)).unwrap();
        assert_eq!(ledger.add_machine(number, &machine(0)), vec![]);
    }
    let demand = Demand { cpu: 8, ..plain() };
    let class = engine.class(&demand).unwrap();
    let ask = Ask {
        class,
        spread: None,
        prefer: None,
    };
    let choice = engine.choose(&ask).unwrap();
    assert_eq!(choice.machine, MachineIdx(0));
    assert_eq!(ledger.place(0, &wish(demand), choice.machine.0, 0), vec![]);
    // Not taken, so the engine chooses the same machine again.
    let again = engine.choose(&ask).unwrap();
    assert!(!ledger.place(1, &wish(demand), again.machine.0, 0).is_empty());
    assert_eq!(ledger.refused(&wish(demand)), Some(Breach::FitsAfterAll(1)));
}

/// The corpus that fuzzing has found worth keeping, one session a file.
const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/engine");

#[test]
fn every_session_of_the_corpus_is_clean() {
    let mut total = session::Summary::default();
    let mut count = 0;
    for entry in std::fs::read_dir(CORPUS).unwrap() {
        let summary = drive(&std::fs::read(entry.unwrap().path()).unwrap());
        total.choices.extend(summary.choices);
        total.refusals += summary.refusals;
        total.releases += summary.releases;
        total.machines += summary.machines;
        total.absurd += summary.absurd;
        count += 1;
    }
    assert!(count >= 20, "{count} sessions are hardly a corpus");
    let kinds = [total.refusals, total.releases, total.machines, total.absurd];
    assert!(
        kinds.iter().all(|count| *count > 0) && !total.choices.is_empty(),
        "{kinds:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_a_clean_session(bytes in proptest::collection::vec(any::<u8>(), 0..150)) {
        let _summary = drive(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, ..ProptestConfig::default() })]

    #[test]
    fn a_session_repeats_itself(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert_eq!(drive(&bytes), drive(&bytes));
    }
}
