//! The same arrivals through the engine of the scheduler: one by one, in bursts, and with a budget of moves.

use std::time::Duration;

use berth_api::time::monotonic;
use berth_scheduler::placement::batch::{self, Aim, MOVES_MAX, Tenants};
use berth_scheduler::placement::engine::{
    Ask, Choice, Demand, Engine, GpuNeed, Kind, Machine, MachineIdx, Mix, Row, Typical, Weights,
};

use super::trace::{Node, Task};
use super::{Course, Placement};

const MIB: u64 = 1 << 20;

/// How requests are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    Online,
    /// One by one, with the engine's work between decisions done between them and not timed.
    Settled,
    /// So many together.
    Bursts(usize, Aim),
    /// One by one; for what does not fit room is made with at most so many moves in the whole run.
    Moves(usize),
}

/// The mix that the engine is given.
pub(crate) fn mix(typical: &[(Task, u32)], weights: Weights) -> Mix {
    let shape = |(task, count): &(Task, u32)| Typical {
        cpu: u64::from(task.cpu_milli) * 1000,
        memory: u64::from(task.memory_mib) * MIB,
        gpu: need(task),
        models: task.models,
        weight: u64::from(*count),
    };
    Mix::with_weights(&typical.iter().map(shape).collect::<Vec<_>>(), weights)
}

fn need(task: &Task) -> GpuNeed {
    match task.count {
        0 => GpuNeed::None,
        _ if task.is_share() => GpuNeed::Share(task.milli),
        count => GpuNeed::Whole(count),
    }
}

/// An engine with these machines, in their order.
pub(crate) fn engine(nodes: &[Node], mix: Mix) -> Engine {
    let mut engine = Engine::with_mix(mix);
    for node in nodes {
        let mut devices = [0; 8];
        devices[..usize::from(node.gpus)].fill(1000);
        let usable = Row {
            cpu: node.cpu_milli * 1000,
            memory: u64::from(node.memory_mib) * MIB,
            ephemeral: 0,
            devices,
        };
        let machine = Machine {
            kind: Kind {
                gpu_model: u16::from(node.model),
                ..Kind::default()
            },
            usable,
            scale: usable,
            disk_slots: 0,
            host_ports: 0,
            addresses: 0,
        };
        engine
            .add_machine(&machine)
            .expect("a node of the trace is a sound machine");
    }
    engine
}

fn ask(engine: &mut Engine, task: &Task) -> Ask {
    let demand = Demand {
        cpu: u64::from(task.cpu_milli) * 1000,
        memory: u64::from(task.memory_mib) * MIB,
        gpu: need(task),
        models: task.models,
        ..Demand::default()
    };
    Ask {
        class: engine
            .class(&demand)
            .expect("a task of the trace is a sound demand"),
        spread: None,
        prefer: None,
    }
}

/// One run over the arrivals, and how long each decision took where decisions are made one by one.
pub(crate) fn run(nodes: &[Node], arrivals: &[Task], mix: Mix, offer: Offer) -> (Course, Vec<Duration>) {
    let mut engine = engine(nodes, mix);
    let asks: Vec<Ask> = arrivals.iter().map(|task| ask(&mut engine, task)).collect();
    for ask in &asks {
        engine.prepare(ask.class);
    }
    let mut course = Course::new(nodes);
    let times = match offer {
        Offer::Online | Offer::Settled => {
            let is_settled = offer == Offer::Settled;
            online(&mut engine, arrivals, &asks, is_settled, &mut course)
        }
        Offer::Bursts(size, aim) => {
            for (tasks, asks) in arrivals.chunks(size).zip(asks.chunks(size)) {
                let choices = batch::place(&mut engine, asks, aim);
                for (task, choice) in tasks.iter().zip(choices) {
                    course.arrived(task, choice.map(placement));
                }
            }
            vec![]
        }
        Offer::Moves(budget) => {
            with_moves(&mut engine, arrivals, &asks, budget, &mut course);
            vec![]
        }
    };
    course.check_rows(|node| {
        let row = engine.row(machine(node));
        (row.cpu / 1000, row.memory / MIB, row.devices)
    });
    (course, times)
}

fn online(
    engine: &mut Engine,
    arrivals: &[Task],
    asks: &[Ask],
    is_settled: bool,
    course: &mut Course,
) -> Vec<Duration> {
    let mut times = Vec::with_capacity(asks.len());
    for (task, ask) in arrivals.iter().zip(asks) {
        if is_settled {
            engine.settle(u64::MAX);
        }
        let begin = monotonic();
        let choice = engine.choose(ask);
        times.push(begin.elapsed());
        if let Some(choice) = choice {
            engine.take(ask, choice);
        }
        course.arrived(task, choice.map(placement));
    }
    times
}

fn with_moves(engine: &mut Engine, arrivals: &[Task], asks: &[Ask], mut budget: usize, course: &mut Course) {
    let mut tenants = Tenants::default();
    // Tenants are numbered as they are added: which task each is.
    let mut task_of = std::collections::BTreeMap::new();
    for (number, (task, ask)) in arrivals.iter().zip(asks).enumerate() {
        if let Some(choice) = engine.choose(ask) {
            engine.take(ask, choice);
            task_of.insert(tenants.add(*ask, choice), number);
            course.arrived(task, Some(placement(choice)));
            continue;
        }
        let room = if budget > 0 && task.count > 0 {
            batch::make_room(engine, &mut tenants, ask, budget.min(MOVES_MAX))
        } else {
            None
        };
        let Some(room) = room else {
            course.arrived(task, None);
            continue;
        };
        budget -= room.moves.len();
        task_of.insert(room.tenant, number);
        let moves = room
            .moves
            .iter()
            .map(|(tenant, choice)| (task_of[tenant], placement(*choice)));
        course.moved(moves.collect());
        course.arrived(task, Some(placement(room.choice)));
    }
}

fn placement(choice: Choice) -> Placement {
    Placement {
        node: usize::try_from(choice.machine.0).expect("32 bits fit"),
        devices: choice.devices.0,
    }
}

fn machine(node: usize) -> MachineIdx {
    MachineIdx(u32::try_from(node).expect("few nodes"))
}
