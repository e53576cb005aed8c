//! The public traces: nodes, tasks, their order and the mix of typical shapes, as reference section 3.2 says.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};

/// Tasks are offered until this many percent of the GPUs have been asked for.
pub(crate) const LOAD_PERCENT: u64 = 130;
/// The most frequent shapes that make up this part of the tasks are typical.
const TYPICAL_PERCENT: usize = 95;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) cpu_milli: u32,
    pub(crate) memory_mib: u32,
    pub(crate) gpus: u8,
    /// Its number among the models of the trace, from 1.
    pub(crate) model: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Task {
    pub(crate) cpu_milli: u32,
    pub(crate) memory_mib: u32,
    /// Thousandths of each device: 1000 for whole ones, 0 without.
    pub(crate) milli: u16,
    pub(crate) count: u8,
    /// A bit for each model that will do; zero for any.
    pub(crate) models: u64,
}

impl Task {
    pub(crate) fn gpu(&self) -> u64 {
        u64::from(self.milli) * u64::from(self.count)
    }

    pub(crate) fn is_share(&self) -> bool {
        self.count == 1 && self.milli < 1000
    }
}

/// A trace: its tasks in the order of their names.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    pub(crate) name: String,
    pub(crate) tasks: Vec<Task>,
}

/// A small fixed generator (splitmix64), so that seeds mean the same for ever.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xd1b5_4a32_d192_ed03)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        let wide = u128::from(self.next()) * (end as u128);
        usize::try_from(wide >> 64).expect("below the end")
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// The nodes with GPUs, in the order of their names.
pub(crate) fn nodes(folder: &Path) -> anyhow::Result<(Vec<Node>, Vec<String>)> {
    let mut rows = rows(&folder.join("openb_node_list_gpu_node.csv"))?;
    rows.sort();
    let mut models: Vec<String> = rows.iter().map(|row| row[4].clone()).collect();
    models.sort();
    models.dedup();
    let node = |row: &Vec<String>| -> anyhow::Result<Node> {
        let model = models.iter().position(|model| *model == row[4]);
        Ok(Node {
            cpu_milli: row[1].parse()?,
            memory_mib: row[2].parse()?,
            gpus: row[3].parse()?,
            model: u8::try_from(model.context("a model of the list")? + 1)?,
        })
    };
    Ok((rows.iter().map(node).collect::<anyhow::Result<_>>()?, models))
}

pub(crate) fn trace(folder: &Path, name: &str, models: &[String]) -> anyhow::Result<Trace> {
    let mut rows = rows(&folder.join(format!("openb_pod_list_{name}.csv")))?;
    rows.sort();
    let task = |row: &Vec<String>| -> anyhow::Result<Task> {
        let count: u8 = row[3].parse()?;
        let mut mask = 0;
        if let Some(wanted) = row.get(5).filter(|text| count > 0 && !text.is_empty()) {
            for model in wanted.split('|') {
                let Some(number) = models.iter().position(|other| other == model) else {
                    bail!("{name} names the unknown GPU model {model:?}");
                };
                mask |= 1 << (number + 1);
            }
        }
        Ok(Task {
            cpu_milli: row[1].parse()?,
            memory_mib: row[2].parse()?,
            milli: if count == 0 { 0 } else { row[4].parse()? },
            count,
            models: mask,
        })
    };
    Ok(Trace {
        name: name.to_owned(),
        tasks: rows.iter().map(task).collect::<anyhow::Result<_>>()?,
    })
}

fn rows(path: &Path) -> anyhow::Result<Vec<Vec<String>>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let cells = |line: &str| line.split(',').map(str::to_owned).collect();
    Ok(text.lines().skip(1).map(cells).collect())
}

/// Thousandths of devices of all nodes.
pub(crate) fn gpu_milli(nodes: &[Node]) -> u64 {
    nodes.iter().map(|node| u64::from(node.gpus) * 1000).sum()
}

/// The nodes in a fixed random order.
pub(crate) fn permuted(nodes: &[Node], permutation: u64) -> Vec<Node> {
    let mut nodes = nodes.to_vec();
    Random::new(1000 + permutation).shuffle(&mut nodes);
    nodes
}

/// The order of arrival: all tasks shuffled, then random ones with replacement until the next would pass the load. That
/// check counts what the next task takes of one device only, as published. A trace that asks for more loses random tasks.
pub(crate) fn arrivals(tasks: &[Task], total_milli: u64, seed: u64) -> Vec<Task> {
    let mut random = Random::new(seed);
    let mut order = tasks.to_vec();
    random.shuffle(&mut order);
    let limit = total_milli * LOAD_PERCENT / 100;
    let mut asked: u64 = order.iter().map(Task::gpu).sum();
    while asked > limit {
        let lost = order.remove(random.below(order.len()));
        asked -= lost.gpu();
    }
    loop {
        let next = tasks[random.below(tasks.len())];
        if asked + u64::from(next.milli) > limit {
            return order;
        }
        asked += next.gpu();
        order.push(next);
    }
}

/// The typical shapes and how many tasks have each, most frequent first; memory does not tell shapes apart.
pub(crate) fn typical(tasks: &[Task]) -> Vec<(Task, u32)> {
    let mut counts: BTreeMap<Task, u32> = BTreeMap::new();
    for task in tasks {
        let shape = Task {
            memory_mib: 0,
            ..*task
        };
        *counts.entry(shape).or_default() += 1;
    }
    let mut shapes: Vec<(Task, u32)> = counts.into_iter().collect();
    shapes.sort_by_key(|(shape, count)| (std::cmp::Reverse(*count), std::cmp::Reverse(*shape)));
    let mut covered = 0;
    shapes.retain(|(_, count)| {
        let is_typical = covered * 100 < tasks.len() * TYPICAL_PERCENT;
        covered += if is_typical {
            usize::try_from(*count).unwrap_or(0)
        } else {
            0
        };
        is_typical
    });
    shapes
}
