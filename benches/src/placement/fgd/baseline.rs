//! The six published policies, as reference section 3.2 says. Scores are the authors' integers; ties go to the first node.

use std::collections::BTreeMap;

use super::trace::{Node, Random, Task};
use super::{Course, Placement};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    Fgd,
    BestFit,
    GpuPacking,
    GpuClustering,
    DotProd,
    Random,
}

pub(crate) const POLICIES: [(Policy, &str); 6] = [
    (Policy::Fgd, "FGD"),
    (Policy::BestFit, "BestFit"),
    (Policy::GpuPacking, "GpuPacking"),
    (Policy::GpuClustering, "GpuClustering"),
    (Policy::DotProd, "DotProd"),
    (Policy::Random, "Random"),
];

/// Tasks that a node takes at most.
const NODE_TASKS_MAX: u32 = 1001;

/// What is free on a node, and who is there.
#[derive(Debug, Clone, Copy)]
struct State {
    node: Node,
    cpu: u32,
    memory: u32,
    devices: [u16; 8],
    tasks: u32,
    /// One bit for each class that GpuClustering tells apart: shares, then by the number of devices.
    classes: u16,
    /// The fragments of the node, for FGD.
    fragments: f64,
}

/// Scores of one shape on all nodes; none where it does not fit (nothing is ever given back here).
struct Known {
    scores: Vec<Option<(i32, u8)>>,
    seen: usize,
}

/// One run over the arrivals.
pub(crate) fn run(
    policy: Policy,
    nodes: &[Node],
    arrivals: &[Task],
    mix: &[(Task, u32)],
    seed: u64,
) -> Course {
    let weight: u32 = mix.iter().map(|(_, count)| count).sum();
    let mix: Vec<(Task, f64)> = mix
        .iter()
        .map(|(task, count)| (*task, f64::from(*count) / f64::from(weight)))
        .collect();
    let mut states: Vec<State> = nodes.iter().map(|node| State::new(node, &mix)).collect();
    let mut known: BTreeMap<Task, Known> = BTreeMap::new();
    let mut changes: Vec<usize> = vec![];
    let mut last_change = vec![0; nodes.len()];
    let mut random = Random::new(seed ^ 77);
    let mut course = Course::new(nodes);
    for task in arrivals {
        let found = if policy == Policy::Random {
            any(&states, task, &mut random)
        } else {
            let known = known.entry(*task).or_insert_with(|| Known {
                scores: states
                    .iter()
                    .map(|state| score(policy, state, task, &mix))
                    .collect(),
                seen: changes.len(),
            });
            for (change, number) in changes.iter().enumerate().skip(known.seen) {
                // Only the last change of a node counts.
                if last_change[*number] == change && known.scores[*number].is_some() {
                    known.scores[*number] = score(policy, &states[*number], task, &mix);
                }
            }
            known.seen = changes.len();
            first_best(&known.scores)
        };
        if let Some((number, mask)) = found {
            states[number].take(task, mask);
            if policy == Policy::Fgd {
                states[number].fragments = fragments(&states[number], &mix);
            }
            last_change[number] = changes.len();
            changes.push(number);
        }
        course.arrived(task, found.map(|(node, devices)| Placement { node, devices }));
    }
    course
}

fn first_best(scores: &[Option<(i32, u8)>]) -> Option<(usize, u8)> {
    let mut best: Option<(i32, usize, u8)> = None;
    for (number, score) in scores.iter().enumerate() {
        if let Some((score, mask)) = score
            && best.is_none_or(|(most, _, _)| *score > most)
        {
            best = Some((*score, number, *mask));
        }
    }
    best.map(|(_, number, mask)| (number, mask))
}

/// A random node that fits and on it a random device.
fn any(states: &[State], task: &Task, random: &mut Random) -> Option<(usize, u8)> {
    let fitting: Vec<usize> = (0..states.len())
        .filter(|number| states[*number].fits(task))
        .collect();
    if fitting.is_empty() {
        return None;
    }
    let number = fitting[random.below(fitting.len())];
    let state = &states[number];
    if !task.is_share() {
        return Some((number, state.lowest(task)));
    }
    let devices: Vec<usize> = (0..8)
        .filter(|device| state.devices[*device] >= task.milli)
        .collect();
    Some((number, 1 << devices[random.below(devices.len())]))
}

fn score(policy: Policy, state: &State, task: &Task, mix: &[(Task, f64)]) -> Option<(i32, u8)> {
    if !state.fits(task) {
        return None;
    }
    Some(match policy {
        Policy::Fgd => fgd(state, task, mix),
        Policy::BestFit => {
            let cpu = f64::from(state.cpu - task.cpu_milli) / 128_000.0;
            let gpu = f64::from(state.idle() - small(task.gpu())) / 8000.0;
            (percent(1.0 - f64::midpoint(cpu, gpu)), state.tightest(task))
        }
        Policy::DotProd => {
            let cpu = f64::from(state.cpu) / 128_000.0 * (f64::from(task.cpu_milli) / 128_000.0);
            let gpu = f64::from(state.idle()) / 8000.0 * (f64::from(small(task.gpu())) / 8000.0);
            (percent(1.0 - f64::midpoint(cpu, gpu)), state.tightest(task))
        }
        Policy::GpuPacking => (packing(state, task), state.tightest(task)),
        Policy::GpuClustering => (clustering(state, task), state.tightest(task)),
        Policy::Random => (0, 0),
    })
}

/// Growth of the fragments, logistic, in truncated percent; of equal devices the first.
fn fgd(state: &State, task: &Task, mix: &[(Task, f64)]) -> (i32, u8) {
    let after = |mask: u8| {
        let mut after = *state;
        after.take(task, mask);
        let shrunk = (state.fragments - fragments(&after, mix)) / 1000.0;
        percent(1.0 / (1.0 + (-shrunk).exp()))
    };
    if !task.is_share() {
        let mask = state.lowest(task);
        return (after(mask), mask);
    }
    let mut best = (-1, 0);
    for (number, free) in state.devices.iter().enumerate() {
        if *free >= task.milli && !state.devices[..number].contains(free) {
            let score = after(1 << number);
            if score > best.0 {
                best = (score, 1 << number);
            }
        }
    }
    best
}

/// Idle GPU that the typical task cannot use: all of it when it cannot run there or wants none, else what lies on devices
/// too small for it.
fn fragments(state: &State, mix: &[(Task, f64)]) -> f64 {
    let idle = state.idle();
    let of = |task: &Task| {
        let large = || state.devices.iter().filter(|free| **free >= task.milli);
        if task.count == 0
            || state.cpu < task.cpu_milli
            || !state.is_model(task)
            || large().count() < task.count.into()
        {
            idle
        } else {
            idle - large().map(|free| u32::from(*free)).sum::<u32>()
        }
    };
    mix.iter().map(|(task, share)| share * f64::from(of(task))).sum()
}

fn packing(state: &State, task: &Task) -> i32 {
    if task.count == 0 {
        return 0;
    }
    let free = state.devices.iter().filter(|free| **free == 1000).count();
    let free = i32::try_from(free).expect("eight at most");
    if free == i32::from(state.node.gpus) {
        return (33 - free).max(free);
    }
    let mask = state.tightest(task);
    let used: Vec<u16> = (0..8)
        .filter(|device| mask >> device & 1 == 1)
        .map(|device| state.devices[device])
        .collect();
    let fresh = i32::try_from(used.iter().filter(|free| **free == 1000).count()).expect("eight at most");
    if fresh > 0 {
        return (50 - fresh).max(33);
    }
    let left: i32 = used.iter().map(|free| i32::from(*free) * 100 / 1000).sum();
    (100 - left / 10).max(50)
}

fn clustering(state: &State, task: &Task) -> i32 {
    if task.count == 0 {
        return 0;
    }
    let class = class(task);
    let band = match state.classes {
        0 => 25,
        classes if classes == class => 75,
        classes if classes & class != 0 => 50,
        _ => 0,
    };
    let idle = i32::try_from(state.idle()).expect("8000 at most");
    band + 25 * (8000 - idle) / 8000
}

fn class(task: &Task) -> u16 {
    match task.count {
        0 => 0,
        _ if task.is_share() => 1,
        count => 1 << count,
    }
}

/// Whole percent, truncated.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the published score is truncated and lies within 0 and 100"
)]
fn percent(part: f64) -> i32 {
    (part * 100.0) as i32
}

fn small(milli: u64) -> u32 {
    u32::try_from(milli).expect("8000 at most")
}

impl State {
    fn new(node: &Node, mix: &[(Task, f64)]) -> Self {
        let mut state = Self {
            node: *node,
            cpu: node.cpu_milli,
            memory: node.memory_mib,
            devices: [0; 8],
            tasks: 0,
            classes: 0,
            fragments: 0.0,
        };
        state.devices[..usize::from(node.gpus)].fill(1000);
        state.fragments = fragments(&state, mix);
        state
    }

    fn idle(&self) -> u32 {
        self.devices.iter().map(|free| u32::from(*free)).sum()
    }

    fn is_model(&self, task: &Task) -> bool {
        task.models == 0 || task.models >> self.node.model & 1 == 1
    }

    fn fits(&self, task: &Task) -> bool {
        let large = self
            .devices
            .iter()
            .filter(|free| **free >= task.milli.max(1))
            .count();
        self.cpu >= task.cpu_milli
            && self.memory >= task.memory_mib
            && self.tasks < NODE_TASKS_MAX
            && self.is_model(task)
            && large >= usize::from(task.count)
    }

    /// The lowest-numbered devices that fit.
    fn lowest(&self, task: &Task) -> u8 {
        let fitting = (0..8u8).filter(|device| self.devices[usize::from(*device)] >= task.milli);
        fitting
            .take(usize::from(task.count))
            .fold(0, |mask, device| mask | 1 << device)
    }

    /// For a share the device with the least that fits.
    fn tightest(&self, task: &Task) -> u8 {
        if !task.is_share() {
            return self.lowest(task);
        }
        let fitting = (0..8u8).filter(|device| self.devices[usize::from(*device)] >= task.milli);
        let tightest = fitting.min_by_key(|device| self.devices[usize::from(*device)]);
        1 << tightest.expect("it fits")
    }

    fn take(&mut self, task: &Task, mask: u8) {
        self.cpu -= task.cpu_milli;
        self.memory -= task.memory_mib;
        self.tasks += 1;
        self.classes |= class(task);
        for device in (0..8).filter(|device| mask >> device & 1 == 1) {
            self.devices[device] -= task.milli;
        }
    }
}
