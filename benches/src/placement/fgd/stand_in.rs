//! Variations of the default trace in the manner of the public ones, to see whether one set of weights serves them all.
//!
//! `gpushareN`: shares make N percent of the GPU demand, the number of tasks with GPU unchanged. `cpuN`: CPU-only tasks
//! are N percent of those of cpu100. `multigpuN`: tasks for several devices make N percent of the GPU demand, the others
//! unchanged. `gpuspecN`: N percent of the tasks with GPU name models, drawn from the sets of gpuspec10 that have a node
//! large enough. Tasks are drawn from their kind of the default trace, each once before any twice.

use super::trace::{Node, Random, Task, Trace};

pub(crate) const STAND_INS: [(&str, usize); 11] = [
    ("gpushare", 20),
    ("gpushare", 60),
    ("gpushare", 80),
    ("gpushare", 100),
    ("cpu", 200),
    ("cpu", 250),
    ("gpuspec", 20),
    ("gpuspec", 25),
    ("gpuspec", 33),
    ("multigpu", 30),
    ("multigpu", 50),
];

/// CPU-only tasks of cpu100.
const CPU_TASKS: usize = 789;

/// Makes a variation; `specs` is gpuspec10.
pub(crate) fn make(default: &Trace, specs: &Trace, nodes: &[Node], kind: &str, percent: usize) -> Trace {
    let of = |is: fn(&Task) -> bool| -> Vec<Task> {
        default.tasks.iter().filter(|task| is(task)).copied().collect()
    };
    let plain = of(|task| task.count == 0);
    let shares = of(Task::is_share);
    let single = of(|task| task.count == 1 && !task.is_share());
    let multi = of(|task| task.count > 1);
    let milli = |tasks: &[Task]| -> usize {
        tasks
            .iter()
            .map(|task| usize::try_from(task.gpu()).unwrap_or(0))
            .sum()
    };
    let mut random = Random::new(4711);
    let mut draw = |tasks: &[Task], count: usize| draw(tasks, count, &mut random);
    let tasks = match kind {
        "gpushare" => {
            let whole = single.len() + multi.len();
            let all = shares.len() + whole;
            // n shares of mean a against (all - n) whole ones of mean b: n a = percent (n a + (all - n) b).
            let (a, b) = (
                milli(&shares) / shares.len(),
                (milli(&single) + milli(&multi)) / whole,
            );
            let count = (percent * all * b) / (a * (100 - percent) + percent * b);
            let several = (all - count) * multi.len() / whole;
            [
                plain,
                draw(&shares, count),
                draw(&multi, several),
                draw(&single, all - count - several),
            ]
            .concat()
        }
        "cpu" => [draw(&plain, CPU_TASKS * percent / 100), shares, single, multi].concat(),
        "multigpu" => {
            let rest = milli(&shares) + milli(&single);
            let count = percent * rest * multi.len() / ((100 - percent) * milli(&multi));
            [draw(&multi, count), plain, shares, single].concat()
        }
        _ => named(default, specs, nodes, percent, &mut random),
    };
    Trace {
        name: format!("{kind}{percent} (stand-in)"),
        tasks,
    }
}

fn draw(tasks: &[Task], count: usize, random: &mut Random) -> Vec<Task> {
    let mut drawn = vec![];
    while drawn.len() < count {
        let mut round = tasks.to_vec();
        random.shuffle(&mut round);
        round.truncate(count - drawn.len());
        drawn.extend(round);
    }
    drawn
}

fn named(default: &Trace, specs: &Trace, nodes: &[Node], percent: usize, random: &mut Random) -> Vec<Task> {
    let sets: Vec<u64> = specs
        .tasks
        .iter()
        .map(|task| task.models)
        .filter(|models| *models != 0)
        .collect();
    let mut tasks = default.tasks.clone();
    for task in tasks.iter_mut().filter(|task| task.count > 0) {
        if random.below(100) >= percent {
            continue;
        }
        // Nearly every set has a node for nearly every task; a task that is unlucky fifty times stays as it is.
        let drawn = (0..50).map(|_| sets[random.below(sets.len())]);
        let fitting = drawn.into_iter().find(|models| {
            nodes.iter().any(|node| {
                models >> node.model & 1 == 1 && node.cpu_milli >= task.cpu_milli && node.gpus >= task.count
            })
        });
        task.models = fitting.unwrap_or(0);
    }
    tasks
}
