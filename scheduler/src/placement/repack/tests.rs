//! Proves that every plan can be made as it says: a verifier that shares no code with the planner replays it move by move,
//! each replica of a wave holding both machines, over random snapshots, and checks budget, rules, saving and explanations.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::search::{Landscape, Schedule, anneal};
use super::*;

const GIB: u64 = 1 << 30;

fn amounts(cpu: u64, memory: u64) -> Amounts {
    Amounts {
        cpu,
        memory,
        ..Amounts::default()
    }
}

fn machine(cpu: u64, memory: u64, zone: u16) -> Machine {
    Machine {
        capacity: amounts(cpu, memory),
        zone,
        kind: 0,
        cost: 100,
        door: Door::Open,
    }
}

fn replica(cpu: u64, memory: u64, set: usize, machine: usize) -> Replica {
    Replica {
        needs: amounts(cpu, memory),
        set,
        machine,
        movable: Movable::Freely,
        bytes: memory,
        kinds: Vec::new(),
        zones: Vec::new(),
        host_ports: Vec::new(),
    }
}

fn snapshot(machines: Vec<Machine>, replicas: Vec<Replica>) -> Snapshot {
    let sets = replicas.iter().map(|replica| replica.set + 1).max().unwrap_or(0);
    Snapshot {
        machines,
        replicas,
        sets: vec![
            Set {
                per_machine: u32::MAX
            };
            sets
        ],
    }
}

fn budget(moves: u32) -> Budget {
    Budget {
        moves,
        bytes: u64::MAX,
        in_flight: 8,
        stateful: Stateful::Stay,
        move_price: 0,
        steps: 1_000_000,
    }
}

/// Everything that is wrong with a plan. Counts by its own sums, in wide numbers.
fn wrongs(snapshot: &Snapshot, budget: &Budget, plan: &Plan) -> Vec<String> {
    let mut wrongs = Vec::new();
    let mut at: Vec<usize> = snapshot.replicas.iter().map(|replica| replica.machine).collect();
    if plan.moves.len() > usize::try_from(budget.moves).unwrap() {
        wrongs.push(format!("{} moves", plan.moves.len()));
    }
    let bytes: u128 = plan
        .moves
        .iter()
        .map(|step| u128::from(snapshot.replicas[step.replica].bytes))
        .sum();
    if bytes > u128::from(budget.bytes) || bytes != u128::from(plan.bytes) {
        wrongs.push(format!("{bytes} bytes, plan says {}", plan.bytes));
    }
    let mut moved = BTreeSet::new();
    let mut waves: BTreeMap<u32, Vec<&Move>> = BTreeMap::new();
    let mut last = 0;
    for step in &plan.moves {
        if step.wave < last || step.wave > last + 1 {
            wrongs.push(format!("wave {} after {last}", step.wave));
        }
        last = step.wave;
        if !moved.insert(step.replica) {
            wrongs.push(format!("replica {} moves twice", step.replica));
        }
        waves.entry(step.wave).or_default().push(step);
    }
    for (wave, steps) in &waves {
        let sets: BTreeSet<usize> = steps
            .iter()
            .map(|step| snapshot.replicas[step.replica].set)
            .collect();
        if sets.len() != steps.len() {
            wrongs.push(format!("two replicas of a set in wave {wave}"));
        }
        if steps.len() > usize::try_from(budget.in_flight).unwrap() {
            wrongs.push(format!("{} in flight in wave {wave}", steps.len()));
        }
        // Every replica of the wave is at both ends.
        let mut held: Vec<(usize, usize)> = at.iter().copied().enumerate().collect();
        held.extend(steps.iter().map(|step| (step.replica, step.to)));
        for step in steps {
            wrongs.extend(wrong_step(snapshot, budget, &at, step));
            wrongs.extend(wrong_machine(snapshot, &held, step));
        }
        for step in steps {
            at[step.replica] = step.to;
        }
    }
    wrongs.extend(wrong_end(snapshot, budget, plan, &at));
    wrongs
}

fn wrong_step(snapshot: &Snapshot, budget: &Budget, at: &[usize], step: &Move) -> Vec<String> {
    let facts = &snapshot.replicas[step.replica];
    let to = &snapshot.machines[step.to];
    let mut wrongs = Vec::new();
    let mut wrong = |is_wrong: bool, what: &str| {
        if is_wrong {
            wrongs.push(format!("{what}: {step:?}"));
        }
    };
    wrong(
        step.from == step.to || at[step.replica] != step.from,
        "not from there",
    );
    wrong(to.door == Door::Shut, "target is shut");
    wrong(!facts.kinds.is_empty() && !facts.kinds.contains(&to.kind), "kind");
    wrong(!facts.zones.is_empty() && !facts.zones.contains(&to.zone), "zone");
    match facts.movable {
        Movable::Freely => wrong(step.how != How::Surge, "how"),
        Movable::InZone => {
            wrong(step.how != How::Detach, "how");
            wrong(budget.stateful == Stateful::Stay, "stateful may not move");
            wrong(
                snapshot.machines[step.from].zone != to.zone,
                "stateful leaves its zone",
            );
        }
        Movable::Never | Movable::WithMachine => wrong(true, "may not move"),
    }
    wrongs
}

fn wrong_machine(snapshot: &Snapshot, held: &[(usize, usize)], step: &Move) -> Vec<String> {
    let mut wrongs = Vec::new();
    let on: Vec<&Replica> = held
        .iter()
        .filter(|(_, machine)| *machine == step.to)
        .map(|(replica, _)| &snapshot.replicas[*replica])
        .collect();
    let capacity = &snapshot.machines[step.to].capacity;
    let sum = |part: fn(&Amounts) -> u64| {
        on.iter()
            .map(|replica| u128::from(part(&replica.needs)))
            .sum::<u128>()
    };
    let fits = sum(|a| a.cpu) <= u128::from(capacity.cpu)
        && sum(|a| a.memory) <= u128::from(capacity.memory)
        && sum(|a| a.ephemeral) <= u128::from(capacity.ephemeral)
        && sum(|a| a.gpus) <= u128::from(capacity.gpus)
        && sum(|a| a.disks) <= u128::from(capacity.disks)
        && sum(|a| a.addresses) <= u128::from(capacity.addresses);
    if !fits {
        wrongs.push(format!("no room: {step:?}"));
    }
    let mine = &snapshot.replicas[step.replica];
    let of_set = on
        .iter()
        .filter(|replica| replica.set == mine.set && replica.movable != Movable::WithMachine)
        .count();
    if of_set > usize::try_from(snapshot.sets[mine.set].per_machine).unwrap() {
        wrongs.push(format!("{of_set} of one set: {step:?}"));
    }
    for port in &mine.host_ports {
        if on
            .iter()
            .filter(|replica| replica.host_ports.contains(port))
            .count()
            > 1
        {
            wrongs.push(format!("port {port} twice: {step:?}"));
        }
    }
    wrongs
}

fn holds(snapshot: &Snapshot, at: &[usize]) -> BTreeSet<usize> {
    let counts = snapshot.replicas.iter().zip(at);
    counts
        .filter(|(replica, _)| replica.movable != Movable::WithMachine)
        .map(|(_, machine)| *machine)
        .collect()
}

fn wrong_end(snapshot: &Snapshot, budget: &Budget, plan: &Plan, at: &[usize]) -> Vec<String> {
    let mut wrongs = Vec::new();
    let home: Vec<usize> = snapshot.replicas.iter().map(|replica| replica.machine).collect();
    let (before, after) = (holds(snapshot, &home), holds(snapshot, at));
    let costly = |machines: &BTreeSet<usize>| {
        machines
            .iter()
            .copied()
            .filter(|machine| snapshot.machines[*machine].cost > 0)
            .collect::<BTreeSet<_>>()
    };
    let (before, after) = (costly(&before), costly(&after));
    let freed: BTreeSet<usize> = plan.freed.iter().copied().collect();
    if !after.is_subset(&before) || before.difference(&after).copied().collect::<BTreeSet<_>>() != freed {
        wrongs.push(format!("freed {freed:?}, before {before:?}, after {after:?}"));
    }
    let kept: BTreeSet<usize> = plan.kept.iter().map(|(machine, _)| *machine).collect();
    if kept != after || kept.len() != plan.kept.len() {
        wrongs.push(format!("kept {kept:?}, occupied {after:?}"));
    }
    if plan.occupied_at_least > after.len() {
        wrongs.push(format!("bound {} above {}", plan.occupied_at_least, after.len()));
    }
    let cost: u64 = freed.iter().map(|machine| snapshot.machines[*machine].cost).sum();
    let price = budget.move_price * u64::try_from(plan.moves.len()).unwrap();
    if !plan.moves.is_empty() && (plan.saving == 0 || plan.saving + price != cost) {
        wrongs.push(format!("saving {} of {cost}, moves cost {price}", plan.saving));
    }
    for step in &plan.moves {
        if (step.why == Why::Frees) != freed.contains(&step.from) {
            wrongs.push(format!("why: {step:?}"));
        }
    }
    wrongs
}

fn applied(snapshot: &Snapshot, plan: &Plan) -> Snapshot {
    let mut after = snapshot.clone();
    for step in &plan.moves {
        after.replicas[step.replica].machine = step.to;
    }
    // Daemons go with their machine.
    after
        .replicas
        .retain(|replica| replica.movable != Movable::WithMachine || !plan.freed.contains(&replica.machine));
    after
}

fn any_machine() -> impl Strategy<Value = Machine> {
    let capacity = (
        4_u64..20,
        4_u64..20,
        0_u64..3,
        prop_oneof![Just(0_u64), Just(2), Just(u64::MAX)],
    );
    let facts = (
        0_u16..3,
        0_u16..2,
        prop_oneof![4 => 1_u64..200, 1 => Just(0)],
        prop_oneof![9 => Just(Door::Open), 1 => Just(Door::Shut)],
    );
    (capacity, facts).prop_map(|((cpu, memory, gpus, disks), (zone, kind, cost, door))| Machine {
        capacity: Amounts {
            cpu,
            memory: memory * GIB,
            ephemeral: 50,
            gpus,
            disks,
            addresses: 12,
        },
        zone,
        kind,
        cost,
        door,
    })
}

fn any_replica() -> impl Strategy<Value = Replica> {
    let needs = (
        1_u64..6,
        0_u64..6,
        0_u64..8,
        prop_oneof![9 => Just(0_u64), 1 => Just(1)],
    );
    let movable = prop_oneof![
        8 => Just(Movable::Freely),
        2 => Just(Movable::InZone),
        1 => Just(Movable::Never),
        1 => Just(Movable::WithMachine),
    ];
    let only = || prop_oneof![4 => Just(Vec::new()), 1 => proptest::collection::vec(0_u16..3, 1..3)];
    let ports = prop_oneof![9 => Just(Vec::new()), 1 => proptest::collection::vec(80_u16..83, 1..2)];
    (needs, movable, 0_usize..6, 0_usize..64, (only(), only(), ports)).prop_map(
        |((cpu, memory, ephemeral, gpus), movable, set, machine, (kinds, zones, host_ports))| Replica {
            needs: Amounts {
                cpu,
                memory: memory * GIB,
                ephemeral,
                gpus,
                disks: u64::from(movable == Movable::InZone),
                addresses: 1,
            },
            set,
            machine,
            movable,
            bytes: memory * GIB,
            kinds,
            zones,
            host_ports,
        },
    )
}

/// A snapshot without faults: replicas that have no room where chance put them are left out.
fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    let parts = (
        proptest::collection::vec(any_machine(), 2..14),
        proptest::collection::vec(any_replica(), 0..60),
        proptest::collection::vec(prop_oneof![Just(1_u32), Just(2), Just(u32::MAX)], 6),
    );
    parts.prop_map(|(machines, replicas, limits)| {
        let sets = limits
            .into_iter()
            .map(|per_machine| Set { per_machine })
            .collect();
        let mut snapshot = Snapshot {
            machines,
            replicas: Vec::new(),
            sets,
        };
        for mut replica in replicas {
            replica.machine %= snapshot.machines.len();
            snapshot.replicas.push(replica);
            if plan(
                &snapshot,
                &Budget {
                    steps: 0,
                    ..budget(0)
                },
            )
            .is_err()
            {
                snapshot.replicas.pop();
            }
        }
        snapshot
    })
}

fn any_budget() -> impl Strategy<Value = Budget> {
    let stateful = prop_oneof![Just(Stateful::Stay), Just(Stateful::MayMove)];
    let bytes = prop_oneof![Just(u64::MAX), (0_u64..40).prop_map(|gib| gib * GIB)];
    (
        0_u32..30,
        bytes,
        1_u32..6,
        stateful,
        0_u64..30,
        prop_oneof![Just(0_u64), 1_u64..2000, Just(200_000)],
    )
        .prop_map(|(moves, bytes, in_flight, stateful, move_price, steps)| Budget {
            moves,
            bytes,
            in_flight,
            stateful,
            move_price,
            steps,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_plan_can_be_made_as_it_says(snapshot in any_snapshot(), budget in any_budget()) {
        let made = plan(&snapshot, &budget).unwrap();
        prop_assert_eq!(wrongs(&snapshot, &budget, &made), Vec::<String>::new());
        prop_assert_eq!(&plan(&snapshot, &budget).unwrap(), &made);
    }

    #[test]
    fn a_second_plan_never_costs_more(snapshot in any_snapshot(), budget in any_budget()) {
        let made = plan(&snapshot, &budget).unwrap();
        let after = applied(&snapshot, &made);
        let again = plan(&after, &budget).unwrap();
        prop_assert_eq!(wrongs(&after, &budget, &again), Vec::<String>::new());
        prop_assert!(again.freed.iter().all(|machine| !made.freed.contains(machine)));
    }

    #[test]
    fn absurd_numbers_are_faults_and_no_panic(
        cpus in proptest::collection::vec(prop_oneof![Just(0_u64), Just(u64::MAX), any::<u64>(), 0_u64..9], 1..6),
        needs in proptest::collection::vec((prop_oneof![Just(0_u64), Just(u64::MAX), any::<u64>(), 0_u64..3], 0_usize..8, 0_usize..4, prop_oneof![Just(u64::MAX), 0_u64..9]), 0..12),
        cost in prop_oneof![Just(u64::MAX), 0_u64..9],
        price in prop_oneof![Just(u64::MAX), Just(0_u64)],
        limit in 0_u32..2,
    ) {
        let machines = cpus.iter().map(|cpu| Machine { cost, ..machine(*cpu, *cpu / 2, 0) }).collect();
        let replicas = needs.iter().map(|(cpu, machine, set, bytes)| Replica { bytes: *bytes, ..replica(*cpu, cpu / 3, *set, *machine) }).collect();
        let snapshot = Snapshot { machines, replicas, sets: vec![Set { per_machine: limit }; 3] };
        let budget = Budget { move_price: price, stateful: Stateful::MayMove, ..budget(u32::MAX) };
        if let Ok(made) = plan(&snapshot, &budget) {
            prop_assert!(limit > 0 && needs.iter().all(|(cpu, machine, set, _)| *cpu > 0 && *machine < cpus.len() && *set < 3));
            prop_assert_eq!(wrongs(&snapshot, &budget, &made), Vec::<String>::new());
        }
    }
}

#[test]
fn frees_the_machine_with_the_fewest_moves() {
    let machines = vec![machine(10, 10, 0), machine(10, 10, 0), machine(10, 10, 0)];
    let replicas = vec![
        replica(2, 2, 0, 0),
        replica(1, 1, 1, 1),
        replica(1, 1, 2, 1),
        replica(5, 5, 3, 2),
    ];
    let snapshot = snapshot(machines, replicas);
    let made = plan(&snapshot, &budget(1)).unwrap();
    assert_eq!(
        (made.freed.as_slice(), made.saving, made.moves.len()),
        (&[0][..], 100, 1)
    );
    assert_eq!(made.moves[0].to, 2, "the tighter machine");
    assert_eq!(made.kept[0], (1, Kept::Moves { needed: 2, left: 0 }));
    let made = plan(&snapshot, &budget(3)).unwrap();
    assert_eq!(
        (made.freed.len(), made.moves.len()),
        (2, 2),
        "two machines can be freed with two moves"
    );
    assert_eq!(made.occupied_at_least, 1);
}

#[test]
fn makes_room_by_a_chain() {
    // The 4 fits nowhere until the 3 on machine 1 goes to machine 2.
    let static_machine = || Machine {
        cost: 0,
        ..machine(10, 100, 0)
    };
    let machines = vec![machine(10, 100, 0), static_machine(), static_machine()];
    let replicas = vec![
        replica(4, 1, 0, 0),
        replica(7, 1, 1, 1),
        replica(2, 1, 2, 1),
        replica(7, 1, 3, 2),
    ];
    let made = plan(&snapshot(machines.clone(), replicas.clone()), &budget(9)).unwrap();
    assert!(
        made.freed.is_empty(),
        "nothing helps: 3 + 10 - 9 is too little everywhere"
    );
    let mut replicas = replicas;
    replicas[1].needs.cpu = 6;
    let snapshot = snapshot(machines, replicas);
    let made = plan(&snapshot, &budget(9)).unwrap();
    assert_eq!(made.freed, [0]);
    assert_eq!(
        made.moves.iter().map(|step| step.why).collect::<Vec<_>>(),
        [Why::MakesRoom, Why::Frees]
    );
    assert_eq!(
        made.moves.iter().map(|step| step.wave).collect::<Vec<_>>(),
        [0, 1]
    );
    assert_eq!(wrongs(&snapshot, &budget(9), &made), Vec::<String>::new());
}

#[test]
fn replicas_of_one_set_go_one_after_the_other() {
    let machines = vec![machine(10, 10, 0), machine(20, 20, 0)];
    let replicas = vec![
        replica(1, 1, 0, 0),
        replica(1, 1, 0, 0),
        replica(1, 1, 1, 0),
        replica(9, 9, 2, 1),
    ];
    let made = plan(&snapshot(machines, replicas), &budget(9)).unwrap();
    assert_eq!(made.freed, [0]);
    let waves: Vec<(usize, u32)> = made.moves.iter().map(|step| (step.replica, step.wave)).collect();
    assert_eq!(waves, [(0, 0), (2, 0), (1, 1)]);
}

#[test]
fn stateful_replicas_stay_unless_allowed_and_then_keep_their_zone() {
    let machines = vec![machine(10, 10, 0), machine(10, 10, 1), machine(10, 10, 0)];
    let stateful = Replica {
        movable: Movable::InZone,
        ..replica(1, 1, 0, 0)
    };
    let snapshot = snapshot(
        machines,
        vec![
            stateful,
            Replica {
                movable: Movable::Never,
                ..replica(8, 8, 1, 1)
            },
            replica(2, 2, 2, 2),
        ],
    );
    let stay = Budget {
        moves: 1,
        ..budget(1)
    };
    let made = plan(&snapshot, &stay).unwrap();
    assert!(made.kept.contains(&(0, Kept::Stateful { replica: 0 })));
    let may = Budget {
        stateful: Stateful::MayMove,
        move_price: 1,
        ..stay
    };
    let made = plan(
        &Snapshot {
            replicas: snapshot.replicas[..2].to_vec(),
            ..snapshot.clone()
        },
        &may,
    )
    .unwrap();
    assert!(made.moves.is_empty(), "its zone has no other occupied machine");
    let mut tight = snapshot;
    tight.replicas[2].movable = Movable::Never;
    let made = plan(&tight, &may).unwrap();
    assert_eq!(
        (made.moves[0].to, made.moves[0].how, made.saving),
        (2, How::Detach, 99)
    );
}

#[test]
fn moves_that_cost_as_much_as_the_machine_are_not_made() {
    let machines = vec![machine(10, 10, 0), machine(10, 10, 0)];
    let snapshot = snapshot(
        machines,
        vec![replica(1, 1, 0, 0), replica(1, 1, 1, 0), replica(9, 9, 2, 1)],
    );
    let dear = Budget {
        move_price: 50,
        ..budget(9)
    };
    let made = plan(&snapshot, &dear).unwrap();
    assert!(made.moves.is_empty());
    assert_eq!(made.kept[0], (0, Kept::Price { price: 100 }));
}

#[test]
fn every_fault_is_listed() {
    let mut snapshot = snapshot(
        vec![machine(0, 0, 0), machine(3, 3, 0)],
        vec![replica(0, 0, 0, 0), replica(4, 1, 7, 1), replica(1, 1, 0, 9)],
    );
    snapshot.sets.truncate(2);
    snapshot.sets[1].per_machine = 0;
    let faults = plan(&snapshot, &budget(9)).unwrap_err();
    assert_eq!(
        faults,
        [
            Fault::MachineWithoutCapacity { machine: 0 },
            Fault::SetWithoutPlace { set: 1 },
            Fault::ReplicaWithoutNeeds { replica: 0 },
            Fault::UnknownSet { replica: 1, set: 7 },
            Fault::UnknownMachine {
                replica: 2,
                machine: 9
            },
            Fault::Overfull {
                machine: 1,
                dimension: Dimension::Cpu,
                excess: 1
            },
        ]
    );
}

/// 300 machines filled by chance to about a half; a fifth of the replicas stateful, in three zones.
fn scattered() -> Snapshot {
    let mut dice = search::Dice::new(3);
    let mut snapshot = snapshot(
        (0..300).map(|index| machine(64, 256, index % 3)).collect(),
        Vec::new(),
    );
    let mut free = vec![(64, 256); 300];
    for set in 0..2400 {
        let cpu = 1 << dice.below(4);
        let mut one = replica(
            cpu,
            cpu * u64::try_from(2 + dice.below(5)).unwrap(),
            set,
            dice.below(300),
        );
        if dice.below(5) == 0 {
            one.movable = Movable::InZone;
        }
        snapshot.sets.push(Set {
            per_machine: u32::MAX,
        });
        let (cpu_left, memory_left) = &mut free[one.machine];
        if one.needs.cpu <= *cpu_left && one.needs.memory <= *memory_left {
            (*cpu_left, *memory_left) = (*cpu_left - one.needs.cpu, *memory_left - one.needs.memory);
            snapshot.replicas.push(one);
        }
    }
    snapshot
}

#[test]
fn comes_close_to_the_bound_when_the_budget_is_wide() {
    let snapshot = scattered();
    let wide = Budget {
        moves: 3000,
        stateful: Stateful::MayMove,
        in_flight: 50,
        steps: 4_000_000,
        ..budget(0)
    };
    let made = plan(&snapshot, &wide).unwrap();
    assert_eq!(wrongs(&snapshot, &wide, &made), Vec::<String>::new());
    let occupied = 300 - made.freed.len();
    println!(
        "{occupied} of 300 stay, bound {}, {} moves, {} steps",
        made.occupied_at_least,
        made.moves.len(),
        made.steps
    );
    assert!(
        occupied <= made.occupied_at_least + made.occupied_at_least / 20 + 1,
        "{occupied} of at least {}",
        made.occupied_at_least
    );
}

#[test]
fn a_tight_budget_buys_less() {
    let snapshot = scattered();
    let mut freed = Vec::new();
    for moves in [24, 120, 600] {
        let tight = Budget { moves, ..budget(0) };
        let made = plan(
            &snapshot,
            &Budget {
                stateful: Stateful::MayMove,
                ..tight
            },
        )
        .unwrap();
        assert_eq!(
            wrongs(
                &snapshot,
                &Budget {
                    stateful: Stateful::MayMove,
                    ..tight
                },
                &made
            ),
            Vec::<String>::new()
        );
        println!("{moves} moves free {}", made.freed.len());
        freed.push(made.freed.len());
    }
    assert!(
        freed.is_sorted() && freed[0] > 0 && freed[2] > 2 * freed[1],
        "{freed:?}"
    );
}

/// Items of sizes 1.. in places; the objective is the sum of the squares of the loads.
struct Loads {
    at: Vec<usize>,
    loads: Vec<i64>,
}

impl Landscape for Loads {
    fn items(&self) -> usize {
        self.at.len()
    }
    fn places(&self) -> usize {
        self.loads.len()
    }
    fn place(&self, item: usize) -> usize {
        self.at[item]
    }
    fn shift(&self, item: usize, to: usize) -> Option<i64> {
        let size = i64::try_from(item).unwrap() + 1;
        let from = self.loads[self.at[item]];
        (self.at[item] != to).then(|| 2 * size * (self.loads[to] - from + size))
    }
    fn swap(&self, one: usize, other: usize) -> Option<i64> {
        let (here, there) = (self.at[one], self.at[other]);
        let more = i64::try_from(other).unwrap() - i64::try_from(one).unwrap();
        (here != there).then(|| 2 * more * (self.loads[here] - self.loads[there] + more))
    }
    fn commit(&mut self, item: usize, to: usize) {
        let size = i64::try_from(item).unwrap() + 1;
        let from = self.at[item];
        self.loads[from] -= size;
        self.loads[to] += size;
        self.at[item] = to;
    }
}

#[test]
fn annealing_levels_loads_and_says_truly_by_how_much() {
    let mut land = Loads {
        at: vec![0; 40],
        loads: vec![820, 0, 0, 0],
    };
    let schedule = Schedule {
        steps: 200_000,
        hot: 20_000,
        cold: 1,
        rounds: 2,
        swaps: 80,
        chains: 40,
        seed: 7,
    };
    let searched = anneal(&mut land, &schedule, |_, _| std::ops::ControlFlow::Continue(()));
    assert_eq!(land.loads, [205; 4], "820 in four");
    assert_eq!(searched.gain, 820 * 820 - 4 * 205 * 205);
    assert_eq!(searched.steps, schedule.steps);
    let mut again = Loads {
        at: vec![0; 40],
        loads: vec![820, 0, 0, 0],
    };
    anneal(&mut again, &schedule, |_, _| std::ops::ControlFlow::Continue(()));
    assert_eq!(again.at, land.at, "the same seed");
}
