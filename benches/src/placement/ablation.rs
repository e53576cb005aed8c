//! What each term of the GPU score is good for: the score without it, on the six public traces.

use berth_scheduler::placement::batch::Aim;
use berth_scheduler::placement::engine::{Prices, Weights};

use super::fgd::harness::{Harness, Prepared, Size};
use super::fgd::ours::{self, Offer};
use super::fgd::{TRACES, ours_online, pair, trace};
use super::report::{Context, Outcome, Table};

pub(crate) fn run(context: &Context) -> anyhow::Result<Outcome> {
    let Some(folder) = context.data_folder("alibaba-gpu-2023") else {
        return Ok(Outcome {
            text: "Ablation of the GPU score.".to_owned(),
            missing: vec!["everything: the folder alibaba-gpu-2023 is not there; benches/README.md says where it comes from".to_owned()],
            ..Outcome::default()
        });
    };
    let size = if context.is_quick { (1, 1) } else { (3, 3) };
    let size = Size {
        permutations: size.0,
        seeds: size.1,
    };
    let harness = Harness::new(&folder, size)?;
    let traces = TRACES
        .iter()
        .map(|(name, _)| Ok(harness.prepare(&trace::trace(&folder, name, &harness.models)?)))
        .collect::<anyhow::Result<Vec<Prepared>>>()?;
    let mut outcome = Outcome {
        text: format!(
            "Each line changes one thing of the online score: GPU allocated at 100 % / 130 % asked for, in points against \
             the score as it is (first line: percent). {} node orders x {} seeds.",
            size.permutations, size.seeds
        ),
        ..Outcome::default()
    };
    outcome.tables.push(terms(&harness, &traces));
    outcome.tables.push(bursts(&harness, &traces[0]));
    Ok(outcome)
}

fn variants() -> Vec<(&'static str, Weights)> {
    let all = Weights::default();
    vec![
        (
            "steps of 1/1000 device: nearly no truncation",
            Weights { step: 8, ..all },
        ),
        (
            "half the step",
            Weights {
                step: all.step / 2,
                ..all
            },
        ),
        (
            "double the step",
            Weights {
                step: all.step * 2,
                ..all
            },
        ),
        ("fresh machines cost nothing", Weights { fresh: 0, ..all }),
        (
            "processors and devices need not be in step",
            Weights { balance: 0, ..all },
        ),
        (
            "no tightest device (best fit weight 0)",
            Weights { left: 0, ..all },
        ),
        (
            "double best fit weight",
            Weights {
                left: all.left * 2,
                ..all
            },
        ),
        ("small shares worth their size", Weights { small: 0, ..all }),
        (
            "processors have no price",
            Weights {
                prices: Prices::Free,
                ..all
            },
        ),
        ("no reserve", Weights { reserve: 0, ..all }),
    ]
}

fn terms(harness: &Harness, traces: &[Prepared]) -> Table {
    let mut columns = vec!["variant"];
    columns.extend(traces.iter().map(|trace| trace.name.as_str()));
    let mut table = Table::new("Terms of the score", &columns);
    let measure = |weights: Weights| -> Vec<(f64, f64)> {
        let figures = traces
            .iter()
            .map(|trace| pair(&ours_online(harness, trace, harness.size, weights)));
        figures
            .map(|(at_100, at_130)| (at_100.mean, at_130.mean))
            .collect()
    };
    let base = measure(Weights::default());
    let cells = base
        .iter()
        .map(|(at_100, at_130)| format!("{at_100:.2} / {at_130:.2}"));
    table.row(std::iter::once("the score as it is".to_owned()).chain(cells));
    for (name, weights) in variants() {
        let figures = measure(weights);
        let cells = figures.iter().zip(&base);
        let cells = cells.map(|(other, base)| format!("{:+.2} / {:+.2}", other.0 - base.0, other.1 - base.1));
        table.row(std::iter::once(name.to_owned()).chain(cells));
    }
    table.row(random_ties(harness, traces, &base));
    table
}

/// Machines in another order for every seed: what is left of the gain when the first of equals is a random one each run
/// is the spread over orders; ties within a run stay in order, since the engine's order is total by design.
fn random_ties(harness: &Harness, traces: &[Prepared], base: &[(f64, f64)]) -> Vec<String> {
    let mut cells = vec!["machines in a new random order for each run".to_owned()];
    for (trace, base) in traces.iter().zip(base) {
        let courses = harness.all(trace, harness.size, |run| {
            let nodes = trace::permuted(run.nodes, run.seed * 7919);
            let mix = ours::mix(run.typical, Weights::default());
            ours::run(&nodes, run.arrivals, mix, Offer::Online).0
        });
        let (at_100, at_130) = pair(&courses);
        cells.push(format!(
            "{:+.2} / {:+.2}",
            at_100.mean - base.0,
            at_130.mean - base.1
        ));
    }
    cells
}

/// Size of a burst on the default trace.
fn bursts(harness: &Harness, trace: &Prepared) -> Table {
    let mut table = Table::new(
        "Size of a burst, default trace",
        &[
            "requests together",
            "aim requests, at 130 %",
            "aim devices, at 130 %",
        ],
    );
    let size = Size {
        permutations: harness.size.permutations,
        seeds: 1,
    };
    for burst in [1, 10, 100, 1000, usize::MAX] {
        let name = if burst == usize::MAX {
            "all".to_owned()
        } else {
            burst.to_string()
        };
        let mut cells = vec![name];
        for aim in [Aim::Requests, Aim::Devices] {
            let courses = harness.all(trace, size, |run| {
                let mix = ours::mix(run.typical, Weights::default());
                ours::run(run.nodes, run.arrivals, mix, Offer::Bursts(burst, aim)).0
            });
            cells.push(format!("{:.2}", pair(&courses).1.mean));
        }
        table.row(cells);
    }
    table
}
