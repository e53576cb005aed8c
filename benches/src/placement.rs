//! Measures placement: packing quality against published results and bounds, latency, churn, reassignment.
//!
//! `berth-bench-placement [--write-report] [NAME ...]`: runs the named benchmarks, or all. See benches/README.md.

#[path = "placement/ablation.rs"]
mod ablation;
#[path = "placement/churn.rs"]
mod churn;
#[path = "placement/fgd.rs"]
mod fgd;
#[path = "placement/latency.rs"]
mod latency;
#[path = "placement/lines.rs"]
mod lines;
#[path = "placement/packing.rs"]
mod packing;
#[path = "placement/report.rs"]
mod report;
#[path = "placement/roadef.rs"]
mod roadef;

use anyhow::{Context as _, bail};

use report::{Benchmark, Context, Report};

/// Every benchmark, in the order of the report.
const BENCHMARKS: &[Benchmark] = &[
    Benchmark {
        name: "fgd",
        title: "GPU packing by the FGD protocol",
        run: fgd::run,
    },
    Benchmark {
        name: "ablation",
        title: "Ablation of the GPU score",
        run: ablation::run,
    },
    Benchmark {
        name: "latency",
        title: "Latency and growth",
        run: latency::run,
    },
    Benchmark {
        name: "packing",
        title: "Static packing",
        run: packing::run,
    },
    Benchmark {
        name: "churn",
        title: "Churn",
        run: churn::run,
    },
    Benchmark {
        name: "reassignment",
        title: "Reassignment",
        run: roadef::run,
    },
];

fn main() -> anyhow::Result<()> {
    let mut write_report = false;
    let mut names = vec![];
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--write-report" => write_report = true,
            name if BENCHMARKS.iter().any(|benchmark| benchmark.name == name) => names.push(argument),
            other => {
                let known: Vec<&str> = BENCHMARKS.iter().map(|benchmark| benchmark.name).collect();
                bail!("{other:?} is no benchmark; they are {}", known.join(", "));
            }
        }
    }
    let context = Context::from_env()?;
    let mut report = Report::new(&context);
    for benchmark in BENCHMARKS {
        if !names.is_empty() && !names.iter().any(|name| name == benchmark.name) {
            continue;
        }
        let outcome = (benchmark.run)(&context).with_context(|| format!("benchmark {}", benchmark.name))?;
        report.add(benchmark, outcome)?;
    }
    report.finish(BENCHMARKS, write_report)
}
