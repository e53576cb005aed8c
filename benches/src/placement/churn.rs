//! Churn: 410 276 arrivals of the Azure trace over 5.7 days and their departures, on a fleet of one machine profile.
//!
//! Two fleets. **Elastic**: a machine is bought when nothing fits and given back when it is empty; counts machine-hours.
//! **Fixed**: as many machines as the load needs by volume at its peak; counts refusals. The same rules run in both, ours
//! through the scheduler's own engine, and ours also with a repack each hour under a budget of moves.

#[path = "churn/fleet.rs"]
mod fleet;
#[path = "churn/policy.rs"]
mod policy;
#[path = "churn/trace.rs"]
mod trace;

use std::time::Duration;

use crate::lines::{Line, draw};
use crate::report::{Context, Outcome, Picture, Table};

use fleet::{Result, Run, Size};
use policy::Rule;
use trace::{Flavour, Trace};

/// Seed of the durations within their bins.
const SEED: u64 = 20_261_122;
/// 64 vCPU and 256 GiB: the trace's mean is 2.8 GiB for each vCPU, its commonest flavours have 1.75 and 3.5, some 7.
const PROFILE: Flavour = Flavour {
    cpu: 64_000_000,
    memory: 256 << 30,
};
/// Thousandths of the running replicas that each hour's repack may move.
const BUDGETS: [u64; 3] = [1, 10, 50];
/// Hours of the trace in a quick run.
const QUICK: u64 = 24 * 3600;

pub(crate) fn run(ctx: &Context) -> anyhow::Result<Outcome> {
    let Some(folder) = ctx.data_folder("azure-v1-derived") else {
        let missing = vec!["churn: the folder azure-v1-derived is not there (BERTH_BENCH_DATA)".to_owned()];
        return Ok(Outcome {
            missing,
            ..Outcome::default()
        });
    };
    let trace = Trace::read(&folder, SEED)?;
    let end = if ctx.is_quick {
        trace.begin + QUICK
    } else {
        trace.end
    };
    let budgets = |moves_permille: u64| Run {
        rule: Rule::Ours,
        size: Size::Elastic,
        moves_permille,
    };
    let plain = Rule::ALL.map(|rule| Run {
        rule,
        size: Size::Elastic,
        moves_permille: 0,
    });
    let mut runs = vec![];
    for run in plain.into_iter().chain(BUDGETS.map(budgets)) {
        runs.push((name(&run), fleet::run(&trace, PROFILE, run, end)?));
    }
    let peak = runs[0]
        .1
        .samples
        .iter()
        .map(|sample| sample.bound)
        .max()
        .unwrap_or(1);
    let size = Size::Fixed(peak);
    let mut fixed = vec![];
    let repacked = Run {
        rule: Rule::Ours,
        size,
        moves_permille: 10,
    };
    for run in Rule::ALL
        .map(|rule| Run {
            rule,
            size,
            moves_permille: 0,
        })
        .into_iter()
        .chain([repacked])
    {
        fixed.push((name(&run), fleet::run(&trace, PROFILE, run, end)?));
    }
    Ok(Outcome {
        text: text(&trace, end),
        tables: vec![
            elastic_table(&runs),
            repack_table(&runs),
            fixed_table(&fixed, peak),
        ],
        pictures: vec![picture(&runs, trace.begin)?],
        ..Outcome::default()
    })
}

fn name(run: &Run) -> String {
    match run.moves_permille {
        0 => run.rule.name().to_owned(),
        moves => format!("{} + repack {} %/h", run.rule.name(), decimal(moves, 10, 1)),
    }
}

fn text(trace: &Trace, end: u64) -> String {
    format!(
        "{} arrivals of the Azure trace (derived, 5-minute bins, 16 flavours) over {} hours, on machines of 64 vCPU and 256 GiB. \
         Durations are drawn evenly within their bin (seed {SEED}); censored ones last to the end; the fleet starts empty. The bound is \
         at each moment the larger of what CPU and memory need by volume, rounded up, over time. It is loose by what no packing can avoid: \
         a bound by patterns (which mixes of flavours fill one machine, by column generation over the flavours that run) would also count \
         the CPU that memory-heavy mixes strand. Moves take no time in this simulation, and bytes are the memory of what moves. Every \
         placement is checked by the simulation's own account of rooms. Durations are not known to any rule.",
        trace.vms.len(),
        (end - trace.begin) / 3600,
    )
}

/// `part / whole` with so many digits after the point, rounded down.
fn decimal(part: u64, whole: u64, digits: u32) -> String {
    let scale = 10_u128.pow(digits);
    let scaled = u128::from(part) * scale / u128::from(whole.max(1));
    if digits == 0 {
        return scaled.to_string();
    }
    let width = usize::try_from(digits).expect("a few digits");
    format!("{}.{:0width$}", scaled / scale, scaled % scale)
}

fn hours(seconds: u64) -> String {
    decimal(seconds, 3600, 0)
}

/// How far one is above the other, in per cent.
fn above(part: u64, whole: u64) -> String {
    let sign = if part < whole { "-" } else { "" };
    format!("{sign}{}", decimal(part.abs_diff(whole) * 100, whole, 2))
}

fn quantile(nanos: &[u64], permille: usize) -> String {
    let last = nanos.len().saturating_sub(1);
    decimal(nanos.get(last * permille / 1000).copied().unwrap_or(0), 1000, 2)
}

/// The mean over the hourly samples of one amount as part of another, in per cent.
fn mean_part(result: &Result, part: impl Fn(&fleet::Sample) -> u64, whole: u64) -> String {
    let sum: u64 = result.samples.iter().map(|sample| part(sample) / 1_000_000).sum();
    let machines: u64 = result
        .samples
        .iter()
        .map(|sample| u64::try_from(sample.occupied).unwrap_or(0))
        .sum();
    decimal(sum * 100, machines * (whole / 1_000_000), 2)
}

fn elastic_table(runs: &[(String, Result)]) -> Table {
    let mut table = Table::new(
        "Elastic fleet",
        &[
            "policy",
            "machine-hours",
            "above bound %",
            "most machines",
            "moves",
            "TiB moved",
            "free CPU %",
            "stranded CPU %",
            "free memory %",
            "stranded memory %",
            "decision p50 us",
            "p99 us",
            "max us",
        ],
    );
    for (name, result) in runs {
        table.row([
            name.clone(),
            hours(result.machine_seconds),
            above(result.machine_seconds, result.bound_seconds),
            result.machines_most.to_string(),
            result.moves.to_string(),
            decimal(result.bytes, 1 << 40, 1),
            mean_part(result, |sample| sample.free_cpu, PROFILE.cpu),
            mean_part(result, |sample| sample.stranded_cpu, PROFILE.cpu),
            mean_part(result, |sample| sample.free_memory, PROFILE.memory),
            mean_part(result, |sample| sample.stranded_memory, PROFILE.memory),
            quantile(&result.nanos, 500),
            quantile(&result.nanos, 990),
            quantile(&result.nanos, 1000),
        ]);
    }
    table
}

fn repack_table(runs: &[(String, Result)]) -> Table {
    let mut table = Table::new(
        "What the hourly repack bought, against ours without",
        &[
            "policy",
            "moves",
            "machines freed",
            "machine-hours saved",
            "machine-hours saved per move",
            "plan mean ms",
            "plan max ms",
        ],
    );
    let base = runs[0].1.machine_seconds;
    for (name, result) in runs.iter().filter(|(_, result)| !result.repacks.is_empty()) {
        let total: Duration = result.repacks.iter().sum();
        let count = u32::try_from(result.repacks.len()).unwrap_or(u32::MAX);
        let saved = base.saturating_sub(result.machine_seconds);
        table.row([
            name.clone(),
            result.moves.to_string(),
            result.freed.to_string(),
            hours(saved),
            decimal(saved, 3600 * result.moves.max(1), 2),
            (total / count).as_millis().to_string(),
            result
                .repacks
                .iter()
                .max()
                .map_or(0, Duration::as_millis)
                .to_string(),
        ]);
    }
    table
}

fn fixed_table(runs: &[(String, Result)], machines: usize) -> Table {
    let mut table = Table::new(
        format!("Fixed fleet of {machines} machines, the bound at the peak"),
        &[
            "policy",
            "refused",
            "refused %",
            "refused vCPU %",
            "moves",
            "empty machines, mean",
            "stranded CPU %",
            "stranded memory %",
        ],
    );
    for (name, result) in runs {
        let empty: usize = result.samples.iter().map(|sample| sample.empty).sum();
        table.row([
            name.clone(),
            result.refused.to_string(),
            decimal(result.refused * 100, result.arrived, 3),
            decimal(result.refused_cpu * 100, result.arrived_cpu, 3),
            result.moves.to_string(),
            (empty / result.samples.len().max(1)).to_string(),
            mean_part(result, |sample| sample.stranded_cpu, PROFILE.cpu),
            mean_part(result, |sample| sample.stranded_memory, PROFILE.memory),
        ]);
    }
    table
}

fn picture(runs: &[(String, Result)], begin: u64) -> anyhow::Result<Picture> {
    let days = |seconds: u64| u32::try_from(seconds - begin).map_or(0.0, f64::from) / 86_400.0;
    let count = |machines: usize| u32::try_from(machines).map_or(0.0, f64::from);
    let mut lines = vec![];
    for (name, result) in runs {
        let points = result
            .samples
            .iter()
            .map(|sample| (days(sample.seconds), count(sample.occupied)));
        lines.push(Line {
            name: name.clone(),
            points: points.collect(),
        });
    }
    let bound = runs[0]
        .1
        .samples
        .iter()
        .map(|sample| (days(sample.seconds), count(sample.bound)));
    lines.push(Line {
        name: "bound by volume".to_owned(),
        points: bound.collect(),
    });
    let title = "Machines in use, elastic fleet";
    let svg = draw(title, "days", "machines", &lines)?;
    Ok(Picture {
        file: "churn.svg".to_owned(),
        title: title.to_owned(),
        svg,
    })
}
