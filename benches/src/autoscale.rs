//! `berth-bench-autoscale`: loads of several shapes against our rule of scaling, the rule of the Kubernetes horizontal
//! pod autoscaler, and an oracle, all in one simulated service. Prints a Markdown table; takes seconds.
//!
//! Deterministic: the figures are those of the seeds, whatever the machine.

use std::io::Write as _;

use berth_scheduler::autoscale::replay::{Berth, Kubernetes, Load, Rule, Score, play};
use berth_scheduler::autoscale::{Targets, Tunables};

const SEEDS: u64 = 20;

/// Processor time alone, and with requests in flight and their latency.
const SIGNALS: [(&str, Targets); 2] = [
    (
        "cpu",
        Targets {
            min: 1,
            max: 100,
            cpu_permille: 700,
            memory_permille: 800,
            in_flight: None,
            p95_max_us: None,
        },
    ),
    (
        "cpu, in flight, latency",
        Targets {
            min: 1,
            max: 100,
            cpu_permille: 700,
            memory_permille: 800,
            in_flight: Some(2),
            p95_max_us: Some(150_000),
        },
    ),
];

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "| signal | load | rule | replica-hours of the oracle's | lost | short | longest short | overshoot | changes | flaps |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )?;
    for (signal, targets) in SIGNALS {
        for shape in 0..Load::shapes(0).len() {
            for which in 0..2 {
                writeln!(out, "{}", row(signal, &targets, shape, which == 0))?;
            }
        }
    }
    Ok(())
}

fn row(signal: &str, targets: &Targets, shape: usize, is_ours: bool) -> String {
    let mut scores = vec![];
    let (mut load_name, mut rule_name) = ("", "");
    for seed in 0..SEEDS {
        let mut rule: Box<dyn Rule> = if is_ours {
            Box::new(Berth::new(Tunables::default()))
        } else {
            Box::<Kubernetes>::default()
        };
        let load = &Load::shapes(seed)[shape];
        (load_name, rule_name) = (load.name, rule.name());
        scores.push(play(load, targets, rule.as_mut(), 1_000 + seed));
    }
    let sum = |of: fn(&Score) -> u64| scores.iter().map(of).sum::<u64>();
    let most = scores
        .iter()
        .map(|score| score.overshoot_permille)
        .max()
        .unwrap_or(0);
    let share = |part: u64, whole: u64, unit: u64| {
        let milli = part * unit * 1000 / whole.max(1);
        format!("{}.{:03}", milli / 1000, milli % 1000)
    };
    format!(
        "| {signal} | {load_name} | {rule_name} | {} | {} % | {} s | {} s | {} % | {} | {} |",
        share(
            sum(|score| score.replica_seconds),
            sum(|score| score.oracle_seconds),
            1
        ),
        share(sum(|score| score.lost), sum(|score| score.requests), 100),
        sum(|score| score.short_seconds) / SEEDS,
        sum(|score| score.settle_seconds) / SEEDS,
        most / 10,
        share(sum(|score| score.changes), SEEDS, 1),
        share(sum(|score| score.flaps), SEEDS, 1),
    )
}
