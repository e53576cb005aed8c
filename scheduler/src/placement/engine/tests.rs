//! The engine against a scan that knows no index: the same choice after any history, lazily or settled, with trees or
//! without. The scan is written from the rules in the docs of [`super`] and shares only the keys.

use proptest::prelude::*;

use super::*;

/// The choice of a plain loop over all machines.
fn scan(engine: &Engine, ask: &Ask) -> Option<Choice> {
    let rule = ask.spread.map(|id| engine.spreads[at(id.0)].rule);
    let count = |machine| ask.spread.map_or(0, |id| engine.count_on(id, machine));
    let zone_count = |zone: u16| {
        let on_zone = |number: &u32| engine.facts(MachineIdx(*number)).kind.zone == zone;
        let machines = (0..u32::try_from(engine.machine_count()).unwrap()).filter(on_zone);
        match rule {
            Some(rule) if rule.zones => machines.map(|number| count(MachineIdx(number))).sum(),
            _ => 0,
        }
    };
    let fits = |machine| {
        let max = rule.map_or(u32::MAX, |rule| rule.machine_max);
        engine.fit(machine, ask.class).filter(|_| count(machine) < max)
    };
    if let Some(machine) = ask.prefer
        && let Some((_, devices)) = fits(machine)
    {
        return Some(Choice { machine, devices });
    }
    let machines = (0..u32::try_from(engine.machine_count()).unwrap()).map(MachineIdx);
    let ranked = machines.filter_map(|machine| {
        let (key, devices) = fits(machine)?;
        let excess = rule.map_or(0, |rule| (count(machine) + 1).saturating_sub(rule.machine_share));
        let zone = zone_count(engine.facts(machine).kind.zone);
        let (cell, _) = engine.places[at(machine.0)];
        let mut reserve = engine.reserve.clone();
        reserve.weigh(engine.demand(ask.class), &engine.mix);
        let standing = i32::from(key) - reserve.cost(cell, engine.demand(ask.class));
        Some((
            (excess, zone, Reverse(standing), machine.0),
            Choice { machine, devices },
        ))
    });
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, choice)| choice)
}

fn machine(kind: Kind, cpu: u32, memory: u64, gpus: usize) -> Machine {
    let mut devices = [0; DEVICES_MAX];
    devices[..gpus].fill(DEVICE_MILLI);
    let usable = Row {
        cpu,
        memory,
        ephemeral: 100,
        devices,
    };
    Machine {
        kind,
        usable,
        scale: usable,
        disk_slots: 3,
        host_ports: 2,
        addresses: 20,
    }
}

fn plain(cpu: u64, memory: u64) -> Demand {
    Demand {
        cpu,
        memory,
        addresses: 1,
        ..Demand::default()
    }
}

fn ask(class: ClassId) -> Ask {
    Ask {
        class,
        spread: None,
        prefer: None,
    }
}

#[test]
fn takes_the_tightest_machine_and_the_first_of_equals() {
    let mut engine = Engine::new();
    for cpu in [8, 4, 4, 16] {
        let mut machine = machine(Kind::default(), cpu, 64, 0);
        machine.scale.cpu = 16;
        engine.add_machine(&machine).unwrap();
    }
    let class = engine.class(&plain(4, 1)).unwrap();
    let mut order = vec![];
    while let Some(choice) = engine.choose(&ask(class)) {
        engine.take(&ask(class), choice);
        order.push(choice.machine.0);
    }
    assert_eq!(order, [1, 2, 0, 0, 3, 3, 3, 3]);
}

#[test]
fn keeps_replicas_apart_then_lets_them_crowd_then_refuses() {
    let mut engine = Engine::new();
    for zone in [0, 0, 1] {
        let kind = Kind {
            zone,
            ..Kind::default()
        };
        engine.add_machine(&machine(kind, 100, 100, 0)).unwrap();
    }
    let class = engine.class(&plain(1, 1)).unwrap();
    let spread = engine.spread(Spread {
        machine_share: 1,
        machine_max: 2,
        zones: true,
    });
    let ask = Ask {
        class,
        spread: Some(spread),
        prefer: None,
    };
    let mut order = vec![];
    while let Some(choice) = engine.choose(&ask) {
        engine.take(&ask, choice);
        order.push(choice.machine.0);
    }
    assert_eq!(
        order,
        [0, 2, 1, 2, 0, 1],
        "a zone with fewer first, then machines with fewer, at most two each"
    );
}

#[test]
fn goes_back_where_it_was() {
    let mut engine = Engine::new();
    for _ in 0..3 {
        engine.add_machine(&machine(Kind::default(), 4, 4, 0)).unwrap();
    }
    let class = engine.class(&plain(2, 1)).unwrap();
    let back = Ask {
        prefer: Some(MachineIdx(2)),
        ..ask(class)
    };
    assert_eq!(engine.choose(&back).map(|choice| choice.machine.0), Some(2));
    engine.set_open(MachineIdx(2), false);
    assert_eq!(engine.choose(&back).map(|choice| choice.machine.0), Some(0));
}

#[test]
fn refuses_absurd_machines_and_demands_with_every_fault() {
    let mut engine = Engine::new();
    let mut absurd = machine(Kind::default(), 1, u64::MAX, 1);
    absurd.usable.devices[1] = 1001;
    let faults = engine.add_machine(&absurd).unwrap_err();
    assert_eq!(faults.len(), 4, "{faults:?}");
    assert_eq!(engine.machine_count(), 0);
    let demand = Demand {
        cpu: u64::MAX,
        models: 1,
        required: 3,
        forbidden: 2,
        ..Demand::default()
    };
    let faults = engine.class(&demand).unwrap_err();
    assert_eq!(faults.len(), 3, "{faults:?}");
    assert_eq!(engine.class(&Demand::default()), Err(vec![DemandFault::Nothing]));
    for gpu in [
        GpuNeed::Whole(0),
        GpuNeed::Whole(9),
        GpuNeed::Share(0),
        GpuNeed::Share(1000),
    ] {
        let demand = Demand {
            gpu,
            cpu: 1,
            ..Demand::default()
        };
        assert_eq!(engine.class(&demand).unwrap_err().len(), 1);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Place {
        class: usize,
        spread: Option<usize>,
        prefer: Option<u32>,
    },
    Release(prop::sample::Index),
    Open {
        machine: prop::sample::Index,
        is_open: bool,
    },
    Join {
        kind: usize,
    },
    Settle(u64),
    Prepare(usize),
}

fn kinds() -> Vec<(Kind, usize)> {
    let kind = |group, zone, gpu_model, traits| Kind {
        group,
        zone,
        gpu_model,
        traits,
    };
    vec![
        (kind(0, 0, 0, 0), 0),
        (kind(0, 1, 0, 1), 0),
        (kind(1, 0, 1, 0), 4),
        (kind(1, 1, 2, 2), 8),
    ]
}

fn demands() -> Vec<Demand> {
    let gpu = |gpu, models| Demand {
        gpu,
        models,
        ..plain(2, 3)
    };
    vec![
        plain(1, 1),
        plain(5, 2),
        Demand {
            zone: Some(1),
            disk_slots: 1,
            ..plain(2, 2)
        },
        Demand {
            ephemeral: 30,
            host_ports: 1,
            ..plain(1, 4)
        },
        Demand {
            required: 1,
            ..plain(3, 1)
        },
        gpu(GpuNeed::Share(300), 0),
        gpu(GpuNeed::Share(450), 1 << 2),
        gpu(GpuNeed::Whole(1), 0),
        gpu(GpuNeed::Whole(3), 1 << 1),
        plain(90, 90),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let place = (
        0..10usize,
        prop::option::of(0..3usize),
        prop::option::weighted(0.1, 0..40u32),
    );
    prop_oneof![
        12 => place.prop_map(|(class, spread, prefer)| Step::Place { class, spread, prefer }),
        6 => any::<prop::sample::Index>().prop_map(Step::Release),
        1 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(machine, is_open)| Step::Open { machine, is_open }),
        1 => (0..4usize).prop_map(|kind| Step::Join { kind }),
        1 => (0..200u64).prop_map(Step::Settle),
        1 => (0..10usize).prop_map(Step::Prepare),
    ]
}

proptest! {
    #[test]
    fn chooses_what_a_scan_chooses(size in 1usize..150, steps in proptest::collection::vec(step(), 1..300)) {
        let mut engine = Engine::new();
        let kinds = kinds();
        for number in 0..size {
            let (kind, gpus) = kinds[number % kinds.len()];
            engine.add_machine(&machine(kind, 20, 24, gpus)).unwrap();
        }
        let classes: Vec<ClassId> = demands().iter().map(|demand| engine.class(demand).unwrap()).collect();
        let spreads: Vec<SpreadId> = [(1, 1, true), (1, 3, false), (2, u32::MAX, true)]
            .map(|(machine_share, machine_max, zones)| engine.spread(Spread { machine_share, machine_max, zones }))
            .to_vec();
        let mut placed: Vec<(Ask, Choice)> = vec![];
        for step in steps {
            match step {
                Step::Place { class, spread, prefer } => {
                    let machines = u32::try_from(engine.machine_count()).unwrap();
                    let ask = Ask {
                        class: classes[class],
                        spread: spread.map(|spread| spreads[spread]),
                        prefer: prefer.filter(|number| *number < machines).map(MachineIdx),
                    };
                    let expected = scan(&engine, &ask);
                    let choice = engine.choose(&ask);
                    prop_assert_eq!(choice, expected);
                    if let Some(choice) = choice {
                        engine.take(&ask, choice);
                        placed.push((ask, choice));
                    }
                }
                Step::Release(index) if !placed.is_empty() => {
                    let (ask, choice) = placed.swap_remove(index.index(placed.len()));
                    engine.release(&ask, choice);
                }
                Step::Release(_) => {}
                Step::Open { machine, is_open } => {
                    let number = machine.index(engine.machine_count());
                    engine.set_open(MachineIdx(u32::try_from(number).unwrap()), is_open);
                }
                Step::Join { kind } => {
                    let (kind, gpus) = kinds[kind];
                    engine.add_machine(&machine(kind, 20, 24, gpus)).unwrap();
                }
                Step::Settle(budget) => {
                    engine.settle(budget);
                }
                Step::Prepare(class) => engine.prepare(classes[class]),
            }
        }
        let kept: std::collections::BTreeSet<ClassId> = engine.kept.iter().copied().collect();
        prop_assert_eq!(kept.len(), engine.kept.len(), "no class is looked after twice");
        // Everything given back, every machine has what it came with.
        for (ask, choice) in placed {
            engine.release(&ask, choice);
        }
        for number in 0..u32::try_from(engine.machine_count()).unwrap() {
            let row = engine.row(MachineIdx(number));
            prop_assert_eq!((row.cpu, row.memory, row.ephemeral), (20, 24, 100));
            prop_assert!(row.devices.iter().all(|free| [0, DEVICE_MILLI].contains(free)));
        }
    }
}
