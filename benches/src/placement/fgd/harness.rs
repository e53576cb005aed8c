//! Runs of one trace: node orders times seeds, side by side on all processors.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::trace::{self, Node, Task, Trace};

/// Published seeds.
const FIRST_SEED: u64 = 42;

/// How many node orders and seeds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) permutations: usize,
    pub(crate) seeds: usize,
}

impl Size {
    pub(crate) fn runs(self) -> usize {
        self.permutations * self.seeds
    }
}

/// A trace made ready: its mix and one order of arrival for each seed.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) name: String,
    pub(crate) typical: Vec<(Task, u32)>,
    arrivals: Vec<Vec<Task>>,
}

#[derive(Debug)]
pub(crate) struct Harness {
    pub(crate) nodes: Vec<Node>,
    pub(crate) models: Vec<String>,
    orders: Vec<Vec<Node>>,
    pub(crate) size: Size,
}

/// One run: which it is, and its input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'a> {
    pub(crate) nodes: &'a [Node],
    pub(crate) arrivals: &'a [Task],
    pub(crate) typical: &'a [(Task, u32)],
    pub(crate) seed: u64,
}

impl Harness {
    pub(crate) fn new(folder: &Path, size: Size) -> anyhow::Result<Self> {
        let (nodes, models) = trace::nodes(folder)?;
        let orders = (0..size.permutations).map(|number| trace::permuted(&nodes, number as u64));
        Ok(Self {
            orders: orders.collect(),
            nodes,
            models,
            size,
        })
    }

    pub(crate) fn prepare(&self, trace: &Trace) -> Prepared {
        let total = trace::gpu_milli(&self.nodes);
        let seeds = 0..self.size.seeds as u64;
        Prepared {
            name: trace.name.clone(),
            typical: trace::typical(&trace.tasks),
            arrivals: seeds
                .map(|seed| trace::arrivals(&trace.tasks, total, FIRST_SEED + seed))
                .collect(),
        }
    }

    /// The results of all runs of a trace: the seeds of the first node order, then of the next.
    pub(crate) fn all<T: Send>(
        &self,
        trace: &Prepared,
        size: Size,
        run: impl Fn(Run<'_>) -> T + Sync,
    ) -> Vec<T> {
        let one = |number: usize| {
            let seed = number % size.seeds;
            run(Run {
                nodes: &self.orders[number / size.seeds],
                arrivals: &trace.arrivals[seed],
                typical: &trace.typical,
                seed: FIRST_SEED + seed as u64,
            })
        };
        side_by_side(size.runs(), one)
    }
}

/// `make(0)` to `make(count - 1)`, on all processors.
fn side_by_side<T: Send>(count: usize, make: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let made = Mutex::new(vec![]);
    let threads = thread::available_parallelism().map_or(1, usize::from).min(count);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let result = make(number);
                    made.lock()
                        .expect("no thread panics while it holds it")
                        .push((number, result));
                }
            });
        }
    });
    let mut made = made.into_inner().expect("every thread has ended");
    made.sort_by_key(|(number, _)| *number);
    made.into_iter().map(|(_, result)| result).collect()
}

/// Mean and range.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figure {
    pub(crate) mean: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

#[expect(clippy::cast_precision_loss, reason = "a mean over a few dozen runs")]
pub(crate) fn figure(values: &[f64]) -> Figure {
    Figure {
        mean: values.iter().sum::<f64>() / values.len() as f64,
        low: values.iter().copied().fold(f64::MAX, f64::min),
        high: values.iter().copied().fold(f64::MIN, f64::max),
    }
}
