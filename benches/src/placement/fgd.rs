//! GPU packing by the published protocol (reference section 3): six policies of the FGD paper reimplemented in one harness
//! and accepted against their published results, then ours through the engine of the scheduler.
//!
//! Every run is audited on plain books that share nothing with any policy, and ours are run twice and compared decision by
//! decision.

#[path = "fgd/baseline.rs"]
mod baseline;
#[path = "fgd/course.rs"]
mod course;
#[path = "fgd/harness.rs"]
pub(crate) mod harness;
#[path = "fgd/ours.rs"]
pub(crate) mod ours;
#[path = "fgd/stand_in.rs"]
mod stand_in;
#[path = "fgd/trace.rs"]
pub(crate) mod trace;

use std::path::Path;
use std::time::Duration;

use berth_scheduler::placement::batch::Aim;
use berth_scheduler::placement::engine::Weights;

use super::lines::{self, Line};
use super::report::{Context, Outcome, Picture, Promise, Table};
use baseline::{POLICIES, Policy};
pub(crate) use course::{Course, Placement};
use harness::{Figure, Harness, Prepared, Size, figure};
use ours::Offer;

/// The traces and what is published for each policy at 100 and 130 percent: FGD, BestFit, GpuPacking, GpuClustering,
/// DotProd, Random (<https://github.com/hkust-adsl/kubernetes-scheduler-simulator>, stored results).
pub(crate) const TRACES: [(&str, [(f64, f64); 6]); 6] = [
    (
        "default",
        [
            (95.23, 95.39),
            (92.86, 93.08),
            (91.78, 92.00),
            (91.65, 91.88),
            (90.62, 90.85),
            (86.30, 87.47),
        ],
    ),
    (
        "cpu050",
        [
            (95.00, 95.21),
            (93.56, 93.79),
            (93.46, 93.72),
            (93.52, 93.79),
            (93.03, 93.27),
            (89.02, 91.24),
        ],
    ),
    (
        "cpu100",
        [
            (95.21, 95.35),
            (93.26, 93.44),
            (92.50, 92.72),
            (92.42, 92.64),
            (91.73, 91.95),
            (87.44, 89.11),
        ],
    ),
    (
        "gpushare40",
        [
            (93.96, 94.15),
            (91.44, 91.69),
            (89.77, 90.03),
            (89.76, 90.02),
            (89.30, 89.56),
            (84.86, 86.00),
        ],
    ),
    (
        "gpuspec10",
        [
            (94.66, 94.95),
            (93.10, 93.30),
            (92.24, 92.46),
            (91.96, 92.18),
            (90.17, 90.39),
            (86.26, 87.43),
        ],
    ),
    (
        "multigpu20",
        [
            (95.53, 95.65),
            (93.73, 93.93),
            (93.50, 93.71),
            (93.34, 93.56),
            (91.85, 92.06),
            (86.92, 88.69),
        ],
    ),
];

/// How far a mean may lie from the published one.
const TOLERANCE: f64 = 0.3;
/// Requests of one burst.
const BURST: usize = 100;

pub(crate) fn full(context: &Context) -> Size {
    let (permutations, seeds) = if context.is_quick { (1, 1) } else { (3, 10) };
    Size { permutations, seeds }
}

pub(crate) fn run(context: &Context) -> anyhow::Result<Outcome> {
    let Some(folder) = context.data_folder("alibaba-gpu-2023") else {
        return Ok(Outcome {
            text: "GPU packing by the published protocol.".to_owned(),
            missing: vec!["everything: the folder alibaba-gpu-2023 is not there; benches/README.md says where it comes from".to_owned()],
            ..Outcome::default()
        });
    };
    let harness = Harness::new(&folder, full(context))?;
    let mut outcome = Outcome {
        text: format!(
            "{} nodes, tasks offered until 130 % of the GPUs were asked for, no departures. {} node orders x {} seeds; \
             allocated GPU in percent of all, mean (lowest - highest). Every run audited.",
            harness.nodes.len(),
            harness.size.permutations,
            harness.size.seeds
        ),
        ..Outcome::default()
    };
    let prepared = TRACES
        .iter()
        .map(|(name, _)| Ok(harness.prepare(&trace::trace(&folder, name, &harness.models)?)))
        .collect::<anyhow::Result<Vec<Prepared>>>()?;
    let fgd = accept_baselines(&harness, &prepared, &mut outcome);
    online(&harness, &prepared, &fgd, &mut outcome);
    stand_ins(&harness, &folder, &mut outcome)?;
    other_offers(&harness, &prepared, &mut outcome);
    picture(&harness, &prepared[0], &mut outcome)?;
    Ok(outcome)
}

/// Figures at 100 and at 130 percent.
pub(crate) type Pair = (Figure, Figure);

pub(crate) fn pair(courses: &[Course]) -> Pair {
    let at = |percent: usize| -> Vec<f64> { courses.iter().map(|course| course.at(percent)).collect() };
    (figure(&at(100)), figure(&at(130)))
}

fn text(figure: &Figure) -> String {
    format!("{:.2} ({:.2} - {:.2})", figure.mean, figure.low, figure.high)
}

/// The table of the reimplemented policies; gives what FGD reached on each trace.
fn accept_baselines(harness: &Harness, prepared: &[Prepared], outcome: &mut Outcome) -> Vec<Pair> {
    let columns = [
        "trace",
        "policy",
        "at 100 %",
        "published",
        "at 130 %",
        "published",
        "accepted",
    ];
    let mut table = Table::new("The published policies in this harness", &columns);
    let (mut fgd, mut refused) = (vec![], 0);
    for (trace, (name, published)) in prepared.iter().zip(&TRACES) {
        for ((policy, policy_name), published) in POLICIES.iter().zip(published) {
            let courses = harness.all(trace, harness.size, |run| {
                let course = baseline::run(*policy, run.nodes, run.arrivals, run.typical, run.seed);
                course.audit();
                course
            });
            let (at_100, at_130) = pair(&courses);
            let is_accepted = is_accepted(*policy, harness.size, &courses, *published);
            refused += usize::from(!is_accepted);
            table.row([
                (*name).to_owned(),
                (*policy_name).to_owned(),
                text(&at_100),
                format!("{:.2}", published.0),
                text(&at_130),
                format!("{:.2}", published.1),
                if is_accepted { "yes" } else { "NO" }.to_owned(),
            ]);
            if *policy == Policy::Fgd {
                fgd.push((at_100, at_130));
            }
        }
    }
    outcome.tables.push(table);
    outcome.promises.push(Promise {
        name: "reimplemented policies within 0.3 points of the published means".to_owned(),
        value: format!(
            "{} of {}",
            prepared.len() * POLICIES.len() - refused,
            prepared.len() * POLICIES.len()
        ),
        bound: "all".to_owned(),
        held: refused == 0,
    });
    fgd
}

/// Means within the tolerance. Packing and clustering depend on the order of the nodes, so for them the published mean
/// must lie in the range of the means of the orders, widened by it.
fn is_accepted(policy: Policy, size: Size, courses: &[Course], published: (f64, f64)) -> bool {
    let by_order: Vec<Pair> = courses.chunks(size.seeds).map(pair).collect();
    let holds = |pick: fn(&Pair) -> f64, published: f64| {
        let means: Vec<f64> = by_order.iter().map(pick).collect();
        let figure = figure(&means);
        match policy {
            Policy::GpuPacking | Policy::GpuClustering => {
                figure.low - TOLERANCE <= published && published <= figure.high + TOLERANCE
            }
            Policy::Fgd | Policy::BestFit | Policy::DotProd | Policy::Random => {
                (figure.mean - published).abs() <= TOLERANCE
            }
        }
    };
    holds(|pair| pair.0.mean, published.0) && holds(|pair| pair.1.mean, published.1)
}

/// Ours online with some weights on a trace.
pub(crate) fn ours_online(harness: &Harness, trace: &Prepared, size: Size, weights: Weights) -> Vec<Course> {
    harness.all(trace, size, |run| {
        let mix = ours::mix(run.typical, weights);
        ours::run(run.nodes, run.arrivals, mix, Offer::Online).0
    })
}

/// Columns of what ours gains over FGD.
const GAIN: [&str; 7] = [
    "trace",
    "FGD at 100 %",
    "ours at 100 %",
    "gain",
    "FGD at 130 %",
    "ours at 130 %",
    "gain",
];

fn online(harness: &Harness, prepared: &[Prepared], fgd: &[Pair], outcome: &mut Outcome) {
    let mut table = Table::new("Ours online: one by one, no moves, no lookahead", &GAIN);
    let mut times = Table::new(
        "Time of a decision (first seed of the first order): with the indexes brought up to date between decisions, and within them",
        &[
            "trace",
            "decisions",
            "between: p50",
            "p99",
            "largest",
            "within: p50",
            "p99",
            "largest",
        ],
    );
    let (mut least, mut on_default, mut replays) = (f64::MAX, 0.0, true);
    for ((trace, fgd), (name, published)) in prepared.iter().zip(fgd).zip(&TRACES) {
        let courses = ours_online(harness, trace, harness.size, Weights::default());
        let ours = pair(&courses);
        table.row(gain_row(name, fgd, &ours));
        // Above FGD as published and above FGD in this harness.
        least = least.min(ours.0.mean - fgd.0.mean.max(published[0].0));
        least = least.min(ours.1.mean - fgd.1.mean.max(published[0].1));
        if *name == "default" {
            on_default = ours.0.mean;
        }
        let (cells, same) = timed(harness, trace, &courses[0]);
        times.row(cells);
        replays &= same;
    }
    outcome.tables.extend([table, times]);
    let promise = |name: &str, value: String, bound: &str, held: bool| Promise {
        name: name.to_owned(),
        value,
        bound: bound.to_owned(),
        held,
    };
    outcome.promises.extend([
        promise(
            "least gain over FGD, published or here, six traces, at 100 and 130 %",
            format!("{least:+.2}"),
            "above 0",
            least > 0.0,
        ),
        promise(
            "GPU allocated on default, online, at 100 %",
            format!("{on_default:.2} %"),
            "above 95.5 %",
            on_default > 95.5,
        ),
        promise(
            "further runs decide the same, byte for byte",
            replays.to_string(),
            "true",
            replays,
        ),
    ]);
}

/// The first run again, twice: the times of its decisions, and whether it decided what it did before.
fn timed(harness: &Harness, trace: &Prepared, before: &Course) -> (Vec<String>, bool) {
    let one = Size {
        permutations: 1,
        seeds: 1,
    };
    let mut cells = vec![trace.name.clone(), String::new()];
    let mut same = true;
    for offer in [Offer::Settled, Offer::Online] {
        let again = harness.all(trace, one, |run| {
            ours::run(
                run.nodes,
                run.arrivals,
                ours::mix(run.typical, Weights::default()),
                offer,
            )
        });
        let (course, mut spent) = again.into_iter().next().expect("one run");
        same &= course.fingerprint() == before.fingerprint();
        spent.sort_unstable();
        let at = |percent: usize| micros(spent[(spent.len() - 1) * percent / 100]);
        cells[1] = spent.len().to_string();
        cells.extend([at(50), at(99), at(100)]);
    }
    (cells, same)
}

fn gain_row(name: &str, fgd: &Pair, ours: &Pair) -> [String; 7] {
    [
        name.to_owned(),
        format!("{:.2}", fgd.0.mean),
        text(&ours.0),
        format!("{:+.2}", ours.0.mean - fgd.0.mean),
        format!("{:.2}", fgd.1.mean),
        text(&ours.1),
        format!("{:+.2}", ours.1.mean - fgd.1.mean),
    ]
}

fn micros(time: Duration) -> String {
    format!("{:.1} us", time.as_secs_f64() * 1e6)
}

/// Variations of the default trace: whether the same weights serve them too.
fn stand_ins(harness: &Harness, folder: &Path, outcome: &mut Outcome) -> anyhow::Result<()> {
    let mut table = Table::new(
        "Stand-ins for further traces of the family (made from default, up to 3 seeds)",
        &GAIN,
    );
    let default = trace::trace(folder, "default", &harness.models)?;
    let specs = trace::trace(folder, "gpuspec10", &harness.models)?;
    let size = Size {
        permutations: harness.size.permutations,
        seeds: harness.size.seeds.min(3),
    };
    let mut least = f64::MAX;
    for (kind, percent) in stand_in::STAND_INS {
        let trace = stand_in::make(&default, &specs, &harness.nodes, kind, percent);
        let trace = harness.prepare(&trace);
        let fgd = harness.all(&trace, size, |run| {
            baseline::run(Policy::Fgd, run.nodes, run.arrivals, run.typical, run.seed)
        });
        let (fgd, ours) = (
            pair(&fgd),
            pair(&ours_online(harness, &trace, size, Weights::default())),
        );
        table.row(gain_row(&trace.name, &fgd, &ours));
        least = least.min(ours.0.mean - fgd.0.mean).min(ours.1.mean - fgd.1.mean);
    }
    outcome.tables.push(table);
    outcome.promises.push(Promise {
        name: "least gain over FGD on eleven stand-ins, at 100 and 130 %".to_owned(),
        value: format!("{least:+.2}"),
        bound: "above 0".to_owned(),
        held: least > 0.0,
    });
    Ok(())
}

/// Bursts and budgets of moves: other problem statements, so on lines of their own.
fn other_offers(harness: &Harness, prepared: &[Prepared], outcome: &mut Outcome) {
    let columns = [
        "trace",
        "offered",
        "at 100 %",
        "at 130 %",
        "tasks refused",
        "moves",
        "moves allowed",
    ];
    let mut table = Table::new("Ours in bursts, and ours with moves", &columns);
    let size = Size {
        permutations: harness.size.permutations,
        seeds: 1,
    };
    for trace in prepared {
        let tasks = trace
            .typical
            .iter()
            .map(|(_, count)| *count as usize)
            .sum::<usize>();
        let offers = [
            (format!("bursts of {BURST}"), Offer::Bursts(BURST, Aim::Requests)),
            (
                format!("bursts of {BURST}, aim devices"),
                Offer::Bursts(BURST, Aim::Devices),
            ),
            ("all at once".to_owned(), Offer::Bursts(usize::MAX, Aim::Requests)),
            (
                "all at once, aim devices".to_owned(),
                Offer::Bursts(usize::MAX, Aim::Devices),
            ),
            ("moves 0.1 %".to_owned(), Offer::Moves(tasks / 1000)),
            ("moves 1 %".to_owned(), Offer::Moves(tasks / 100)),
            ("moves 5 %".to_owned(), Offer::Moves(tasks / 20)),
        ];
        for (label, offer) in offers {
            let courses = harness.all(trace, size, |run| {
                ours::run(
                    run.nodes,
                    run.arrivals,
                    ours::mix(run.typical, Weights::default()),
                    offer,
                )
                .0
            });
            let (at_100, at_130) = pair(&courses);
            let moves = courses.iter().map(|course| course.moves).max().unwrap_or(0);
            let refused = courses.iter().map(|course| course.refused).sum::<usize>() / courses.len();
            let allowed = if let Offer::Moves(budget) = offer {
                budget
            } else {
                0
            };
            // Requests of one burst have no order, so the middle of it means nothing.
            let is_whole = matches!(offer, Offer::Bursts(usize::MAX, _));
            table.row([
                trace.name.clone(),
                label,
                if is_whole { "-".to_owned() } else { text(&at_100) },
                text(&at_130),
                refused.to_string(),
                moves.to_string(),
                allowed.to_string(),
            ]);
        }
    }
    outcome.tables.push(table);
}

/// Allocation over load on one trace.
fn picture(harness: &Harness, trace: &Prepared, outcome: &mut Outcome) -> anyhow::Result<()> {
    let size = Size {
        permutations: 1,
        seeds: 1,
    };
    let line = |name: &str, courses: &[Course]| Line {
        name: name.to_owned(),
        points: (80..=130u8)
            .map(|percent| (f64::from(percent), courses[0].at(usize::from(percent))))
            .collect(),
    };
    let mut lines = vec![line(
        "ours, online",
        &ours_online(harness, trace, size, Weights::default()),
    )];
    for (policy, name) in POLICIES {
        let courses = harness.all(trace, size, |run| {
            baseline::run(policy, run.nodes, run.arrivals, run.typical, run.seed)
        });
        lines.push(line(name, &courses));
    }
    let title = "GPU allocated by GPU asked for, default trace, one run";
    outcome.pictures.push(Picture {
        file: "fgd.svg".to_owned(),
        title: title.to_owned(),
        svg: lines::draw(title, "asked for, % of all GPUs", "allocated, %", &lines)?,
    });
    Ok(())
}
