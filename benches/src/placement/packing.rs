//! Static vector packing: generated families and the public samples against peers and a lower bound, and capacity plans of
//! random clusters.

#[path = "packing/bounds.rs"]
mod bounds;
#[path = "packing/families.rs"]
mod families;
#[path = "packing/peers.rs"]
mod peers;
#[path = "packing/plans.rs"]
mod plans;
#[path = "packing/samples.rs"]
mod samples;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;

use anyhow::{bail, ensure};
use berth_scheduler::placement::pack::{Budget, Packing, Problem, pack};

use crate::report::{Context, Outcome, Picture, Promise, Table};
use families::{Case, SEED};

/// Steps of each packing, about as many nanoseconds.
const STEPS: u64 = 3_000_000_000;
const STEPS_QUICK: u64 = 50_000_000;
const PLANS: usize = 400;
const PLANS_QUICK: usize = 40;
/// The promise counts instances of so many items.
const LARGE: usize = 500;

/// What one instance came to.
#[derive(Debug)]
struct Result {
    case: Case,
    bins: u64,
    bound: u64,
    /// The bound that needs no prices, for comparison.
    volume: u64,
    peers: [usize; 7],
    elapsed_ms: u128,
}

impl Result {
    fn gap(&self) -> f64 {
        gap(self.bins, self.bound)
    }
}

/// Above the bound, in percent of it.
fn gap(bins: u64, bound: u64) -> f64 {
    (whole(bins) - whole(bound)) * 100.0 / whole(bound).max(1.0)
}

#[expect(clippy::cast_precision_loss, reason = "figures of a report")]
fn whole(count: u64) -> f64 {
    count as f64
}

#[expect(clippy::cast_precision_loss, reason = "figures of a report")]
fn float(count: usize) -> f64 {
    count as f64
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    sum / float(count).max(1.0)
}

pub(crate) fn run(context: &Context) -> anyhow::Result<Outcome> {
    let cases = families::cases(context.is_quick);
    let steps = if context.is_quick { STEPS_QUICK } else { STEPS };
    let mut results = solve_all(&cases, steps)?;
    let mut outcome = Outcome {
        text: format!(
            "Each instance is packed with {} million steps of work; every packing is checked by counting. The gap is (ours - bound) / bound. \
             The bound is the best of volume, dual feasible functions, cliques and prices of our own column generation, proven in whole numbers, \
             and of HiGHS where benches/src/placement/bounds.py has run. Seed {SEED}.",
            steps / 1_000_000
        ),
        ..Outcome::default()
    };
    bounds::raise(context, &mut results, &mut outcome.missing)?;
    outcome.tables.push(family_table(&results));
    outcome.tables.push(peer_table(&results));
    let large: Vec<&Result> = results
        .iter()
        .filter(|result| result.case.items >= LARGE)
        .collect();
    if !large.is_empty() {
        let mean = mean(large.iter().map(|result| result.gap()));
        outcome.promises.push(Promise {
            name: format!(
                "static packing, mean gap of {} instances of 500 or more items",
                large.len()
            ),
            value: format!("{mean:.2} %"),
            bound: "at most 1 %".into(),
            held: mean <= 1.0,
        });
    }
    plan(context, &mut outcome)?;
    sample(context, steps, &mut outcome)?;
    outcome.pictures.push(picture(&results));
    Ok(outcome)
}

fn solve_all(cases: &[Case], steps: u64) -> anyhow::Result<Vec<Result>> {
    let next = Mutex::new(cases.iter().enumerate());
    let done = Mutex::new(BTreeMap::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || -> anyhow::Result<()> {
        loop {
            let case = next.lock().expect("no thread panics with the lock").next();
            let Some((index, case)) = case else { return Ok(()) };
            let result = solve(*case, steps)?;
            done.lock()
                .expect("no thread panics with the lock")
                .insert(index, result);
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            match thread.join() {
                Ok(result) => result?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        anyhow::Ok(())
    })?;
    let done = done.into_inner().expect("all threads have ended");
    Ok(done.into_values().collect())
}

fn solve(case: Case, steps: u64) -> anyhow::Result<Result> {
    let problem = case.problem();
    let begin = berth_api::time::monotonic();
    let packing =
        pack(&problem, Budget { steps }).map_err(|faults| anyhow::anyhow!("{case:?}: {faults:?}"))?;
    let elapsed_ms = (berth_api::time::monotonic() - begin).as_millis();
    check(&problem, &packing)?;
    Ok(Result {
        case,
        bins: packing.new_bins,
        bound: packing.bound,
        volume: volume(&problem),
        peers: peers::bins(&problem),
        elapsed_ms,
    })
}

/// Every item once, no bin overfull, no group beyond its limit; by counting alone.
fn check(problem: &Problem, packing: &Packing) -> anyhow::Result<()> {
    let mut placed = vec![0; problem.items.len()];
    for bin in &packing.bins {
        let mut groups = vec![0; problem.group_max.len()];
        let mut used = vec![0_u64; problem.capacity.len()];
        for part in bin {
            let item = &problem.items[part.item];
            placed[part.item] += part.count;
            if let Some(group) = item.group {
                groups[group] += part.count;
            }
            for (used, amount) in used.iter_mut().zip(&item.amounts) {
                *used += amount * part.count;
            }
        }
        ensure!(
            used.iter()
                .zip(&problem.capacity)
                .all(|(used, most)| used <= most),
            "a bin is overfull"
        );
        ensure!(
            groups
                .iter()
                .zip(&problem.group_max)
                .all(|(held, most)| held <= most),
            "a group is crowded"
        );
    }
    let all = problem
        .items
        .iter()
        .zip(&placed)
        .all(|(item, placed)| item.count == *placed);
    ensure!(all && packing.left.is_empty(), "an item is lost or packed twice");
    ensure!(
        packing.bound <= packing.new_bins,
        "the bound is above the packing"
    );
    Ok(())
}

/// Of the scarcest dimension, in bins.
fn volume(problem: &Problem) -> u64 {
    let bins = problem.capacity.iter().enumerate().map(|(at, capacity)| {
        let total: u64 = problem
            .items
            .iter()
            .map(|item| item.amounts[at] * item.count)
            .sum();
        total.div_ceil((*capacity).max(1))
    });
    bins.max().unwrap_or(0)
}

fn by_family(results: &[Result]) -> BTreeMap<(families::Family, usize), Vec<&Result>> {
    let mut groups: BTreeMap<_, Vec<&Result>> = BTreeMap::new();
    for result in results {
        groups
            .entry((result.case.family, result.case.items))
            .or_default()
            .push(result);
    }
    groups
}

fn family_table(results: &[Result]) -> Table {
    let mut table = Table::new(
        "Gap to the bound",
        &[
            "family",
            "items",
            "dimensions",
            "instances",
            "optimal",
            "mean gap %",
            "worst gap %",
            "gap to volume %",
            "mean ms",
        ],
    );
    for ((family, items), results) in by_family(results) {
        let dimensions = results.iter().map(|result| result.case.dimensions);
        let (least, most) = (
            dimensions.clone().min().unwrap_or(0),
            dimensions.max().unwrap_or(0),
        );
        let elapsed = results
            .iter()
            .map(|result| u64::try_from(result.elapsed_ms).unwrap_or(u64::MAX));
        table.row([
            family.name(),
            items.to_string(),
            if least == most {
                least.to_string()
            } else {
                format!("{least} to {most}")
            },
            results.len().to_string(),
            results
                .iter()
                .filter(|result| result.bins == result.bound)
                .count()
                .to_string(),
            format!("{:.2}", mean(results.iter().map(|result| result.gap()))),
            format!(
                "{:.2}",
                results.iter().map(|result| result.gap()).fold(0.0, f64::max)
            ),
            format!(
                "{:.2}",
                mean(results.iter().map(|result| gap(result.bins, result.volume)))
            ),
            format!("{:.0}", mean(elapsed.map(whole))),
        ]);
    }
    table
}

/// All by number of items: ours, then each peer.
fn peer_table(results: &[Result]) -> Table {
    let columns: Vec<&str> = ["items", "instances", "optimal", "ours"]
        .into_iter()
        .chain(peers::NAMES)
        .collect();
    let mut table = Table::new("Mean gap to the bound in %, ours and peers", &columns);
    let mut sizes: BTreeMap<usize, Vec<&Result>> = BTreeMap::new();
    for result in results {
        sizes.entry(result.case.items).or_default().push(result);
    }
    for (items, results) in sizes {
        let ours = mean(results.iter().map(|result| result.gap()));
        let optimal = results
            .iter()
            .filter(|result| result.bins == result.bound)
            .count();
        let peers = (0..peers::NAMES.len()).map(|peer| {
            let gaps = results.iter().map(|result| {
                let bins = u64::try_from(result.peers[peer]).unwrap_or(u64::MAX);
                gap(bins, result.bound)
            });
            format!("{:.2}", mean(gaps))
        });
        let first = [
            items.to_string(),
            results.len().to_string(),
            optimal.to_string(),
            format!("{ours:.2}"),
        ];
        table.row(first.into_iter().chain(peers));
    }
    table
}

fn plan(context: &Context, outcome: &mut Outcome) -> anyhow::Result<()> {
    let plans = plans::Plans::run(if context.is_quick { PLANS_QUICK } else { PLANS })?;
    let mut table = Table::new(
        "Capacity plans of random clusters",
        &[
            "clusters",
            "at the bound",
            "one above",
            "more",
            "worst",
            "machines",
            "bound",
        ],
    );
    table.row([
        plans.clusters.to_string(),
        plans.above[0].to_string(),
        plans.above[1].to_string(),
        plans.above[2].to_string(),
        plans.worst.to_string(),
        plans.machines.to_string(),
        plans.bound.to_string(),
    ]);
    outcome.tables.push(table);
    let share = plans.within_one();
    outcome.promises.push(Promise {
        name: "capacity plan within one machine of its bound".into(),
        value: format!("{share:.1} % of clusters"),
        bound: "at least 95 %".into(),
        held: share >= 95.0,
    });
    Ok(())
}

fn sample(context: &Context, steps: u64, outcome: &mut Outcome) -> anyhow::Result<()> {
    let Some(folder) = context.data_folder("vpsolver-examples") else {
        outcome
            .missing
            .push("the samples of VPSolver: the folder vpsolver-examples is not there".into());
        return Ok(());
    };
    let mut table = Table::new(
        "Samples of VPSolver; of several kinds of bin each alone",
        &["sample", "dimensions", "items", "bins", "bound", "cost", "method"],
    );
    for file in ["bpp.vbp", "instance.vbp", "vsbpp.mvp"] {
        for sample in samples::read(&folder.join(file))? {
            let packing = match pack(&sample.problem, Budget { steps }) {
                Ok(packing) => packing,
                Err(faults) => bail!("{}: {faults:?}", sample.name),
            };
            check(&sample.problem, &packing)?;
            let items: u64 = sample.problem.items.iter().map(|item| item.count).sum();
            table.row([
                sample.name,
                sample.problem.capacity.len().to_string(),
                items.to_string(),
                packing.new_bins.to_string(),
                packing.bound.to_string(),
                (packing.new_bins * sample.cost).to_string(),
                packing.method.to_owned(),
            ]);
        }
    }
    outcome.tables.push(table);
    Ok(())
}

/// A bar per family: the mean gap of large instances, beside that of the best peer.
fn picture(results: &[Result]) -> Picture {
    let mut families: BTreeMap<families::Family, Vec<&Result>> = BTreeMap::new();
    let largest = results.iter().map(|result| result.case.items).max().unwrap_or(0);
    for result in results
        .iter()
        .filter(|result| result.case.items >= LARGE.min(largest))
    {
        families.entry(result.case.family).or_default().push(result);
    }
    let height = 60 + families.len() * 24;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\">Mean gap to the bound in %: ours (dark) and the best peer of each instance (light)</text>\n"
    );
    for (row, (family, results)) in families.into_iter().enumerate() {
        let ours = mean(results.iter().map(|result| result.gap()));
        let peer = mean(results.iter().map(|result| {
            let least = result.peers.iter().copied().min().unwrap_or(0);
            gap(u64::try_from(least).unwrap_or(u64::MAX), result.bound)
        }));
        let top = 40 + row * 24;
        for (offset, value, colour) in [(0, ours, "#1f4e9c"), (9, peer, "#b8c7e0")] {
            let line = format!(
                "<rect x=\"140\" y=\"{}\" width=\"{:.1}\" height=\"8\" fill=\"{colour}\"/>\n",
                top + offset,
                (value * 20.0).min(600.0)
            );
            svg.push_str(&line);
        }
        writeln!(
            svg,
            "<text x=\"12\" y=\"{0}\">{1}</text>\n<text x=\"748\" y=\"{0}\">{ours:.2} and {peer:.2}</text>",
            top + 12,
            family.name()
        )
        .expect("a string takes everything");
    }
    svg.push_str("</svg>\n");
    Picture {
        file: "packing.svg".into(),
        title: "Static packing".into(),
        svg,
    }
}
