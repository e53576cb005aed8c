//! Measures the control plane on the real `berth-scheduler`: sessions, writes, placements, idle clusters, recovery, failover.
//!
//! `berth-bench-control --programs DIR [NAME ...]`: runs the named measurements, or all. See benches/README.md. No figure
//! fails the run: a figure beyond its promise is marked, and a person judges with the machine's load in mind.

#[path = "control/creates.rs"]
mod creates;
#[path = "control/etcd.rs"]
mod etcd;
#[path = "control/failover.rs"]
mod failover;
mod figures;
#[path = "control/idle.rs"]
mod idle;
#[path = "control/nodes.rs"]
mod nodes;
#[path = "control/placements.rs"]
mod placements;
mod process;
#[path = "control/program.rs"]
mod program;
#[path = "control/recovery.rs"]
mod recovery;
#[path = "control/sessions.rs"]
mod sessions;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use berth_api::time::Timestamp;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use figures::Figures;

const NAMES: &[&str] = &[
    "placements",
    "creates",
    "idle",
    "recovery",
    "failover",
    "sessions",
];

/// What every measurement is given.
#[derive(Debug)]
pub(crate) struct Context {
    /// The program under test.
    pub(crate) scheduler: PathBuf,
    /// Where its data lie: the file system that commits are measured on.
    pub(crate) work: PathBuf,
    /// Less of everything by this factor, to see whether it runs.
    pub(crate) divisor: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // An interrupt ends the measurements and not the process, so that the programs which they started are killed.
    let mut ended = signal(SignalKind::terminate())?;
    tokio::select! {
        outcome = run() => outcome,
        _ = ended.recv() => bail!("ended by a signal"),
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    }
}

async fn run() -> anyhow::Result<()> {
    let mut programs = PathBuf::from("target/release");
    let mut names = Vec::new();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--programs" => programs = words.next().context("--programs needs a directory")?.into(),
            name if NAMES.contains(&name) => names.push(word),
            other => bail!("{other:?} is no measurement; they are {}", NAMES.join(", ")),
        }
    }
    let work = tempfile::Builder::new()
        .prefix("berth-bench-control.")
        .tempdir_in(std::env::var_os("BERTH_BENCH_WORK").unwrap_or_else(|| "/var/tmp".into()))?;
    let context = Context {
        scheduler: programs.join("berth-scheduler"),
        work: work.path().to_owned(),
        divisor: if std::env::var_os("BERTH_BENCH_QUICK").is_some() {
            20
        } else {
            1
        },
    };
    let mut measured = serde_json::Map::new();
    for name in NAMES {
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            continue;
        }
        say(&format!("measuring {name}"))?;
        let mut figures = Figures::default();
        measure(name, &context, &mut figures)
            .await
            .with_context(|| format!("measurement {name}"))?;
        say(&figures.table())?;
        measured.insert((*name).to_owned(), figures.json());
    }
    let output = Path::new("target/bench/control.json");
    std::fs::create_dir_all("target/bench")?;
    let document = json!({
        "takenAt": Timestamp::now().to_string(),
        "isQuick": context.divisor > 1,
        "cores": std::thread::available_parallelism()?.get(),
        "figures": measured,
    });
    std::fs::write(output, serde_json::to_vec_pretty(&document)?)?;
    say(&format!("written to {}", output.display()))
}

async fn measure(name: &str, context: &Context, figures: &mut Figures) -> anyhow::Result<()> {
    match name {
        "placements" => placements::measure(context, figures).await,
        "creates" => creates::measure(context, figures).await,
        "idle" => idle::measure(context, figures).await,
        "recovery" => recovery::measure(context, figures).await,
        "failover" => failover::measure(context, figures).await,
        "sessions" => sessions::measure(context, figures).await,
        other => bail!("{other:?} is no measurement"),
    }
}

pub(crate) fn say(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("write to standard output")
}
