//! What was measured, with what it depends on, as a table and as JSON.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use berth_api::time::Timestamp;
use serde_json::json;

use crate::arguments::Arguments;
use crate::figures::Figures;

/// Prints the figures of an issue and writes them to the file that the command line names.
pub(crate) fn write(arguments: &Arguments, issue: u32, figures: &Figures) -> anyhow::Result<()> {
    let document = json!({
        "issue": issue,
        "takenAt": Timestamp::now().to_string(),
        "machine": machine(),
        "programs": arguments.programs(),
        "runs": arguments.runs,
        "figures": figures.json(),
    });
    std::fs::write(&arguments.output, serde_json::to_vec_pretty(&document)?)
        .with_context(|| format!("write {}", arguments.output.display()))?;
    say(&figures.table())?;
    say(&format!("written to {}", arguments.output.display()))
}

pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// The machine as far as the figures depend on it.
fn machine() -> serde_json::Value {
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let model = read("/proc/cpuinfo").lines().find_map(|line| {
        line.strip_prefix("model name")?
            .split(": ")
            .nth(1)
            .map(str::to_owned)
    });
    json!({
        "cpuModel": model,
        "cpus": std::thread::available_parallelism().map(usize::from).unwrap_or(0),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "loadAverage": read("/proc/loadavg"),
    })
}

pub(crate) fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("write to the terminal")
}
