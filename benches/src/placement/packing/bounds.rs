//! Raises bounds by `bounds.py`, where Python with `highspy` is there. What it found is kept in a cache by instance.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use berth_scheduler::placement::pack::Problem;
use serde_json::json;

use super::Result;
use crate::report::Context;

/// The pattern problem of more items takes longer than its bound is worth.
const ITEMS_MAX: usize = 500;
/// Per instance and for all of them.
const SECONDS_EACH: &str = "10";
const SECONDS_ALL: &str = "300";

const SCRIPT: &str = "benches/src/placement/bounds.py";

/// Raises the bound of what is not proven optimal; says what it could not do.
pub(super) fn raise(
    context: &Context,
    results: &mut [Result],
    missing: &mut Vec<String>,
) -> anyhow::Result<()> {
    let cache_path = context.out.join("bounds-cache.json");
    let open = |result: &Result| result.bins > result.bound && result.case.items <= ITEMS_MAX;
    let instances: Vec<_> = results
        .iter()
        .filter(|result| open(result))
        .map(|result| instance(&result.case.problem()))
        .collect();
    match python() {
        Some(python) if !instances.is_empty() => compute(context, &python, &instances, &cache_path)?,
        Some(_) => {}
        None => missing
            .push("bounds by HiGHS: no Python with highspy and numpy, in target/bench/venv or else".into()),
    }
    let Ok(text) = fs::read_to_string(&cache_path) else {
        return Ok(());
    };
    let cache: BTreeMap<String, u64> =
        serde_json::from_str(&text).context("the cache of bounds is broken")?;
    for result in results.iter_mut().filter(|result| open(result)) {
        if let Some(bound) = cache.get(&key(&result.case.problem())) {
            ensure!(
                *bound <= result.bins,
                "{:?}: HiGHS bounds above our checked packing",
                result.case
            );
            result.bound = result.bound.max(*bound);
        }
    }
    Ok(())
}

fn python() -> Option<PathBuf> {
    let candidates = ["target/bench/venv/bin/python", "python3"];
    candidates.into_iter().map(PathBuf::from).find(|python| {
        let run = Command::new(python)
            .args(["-c", "import highspy, numpy"])
            .output();
        run.is_ok_and(|output| output.status.success())
    })
}

fn compute(
    context: &Context,
    python: &Path,
    instances: &[serde_json::Value],
    cache: &Path,
) -> anyhow::Result<()> {
    let input = context.out.join("bounds-instances.json");
    fs::write(&input, serde_json::to_string(instances)?)
        .with_context(|| format!("cannot write {}", input.display()))?;
    let status = Command::new(python)
        .arg(SCRIPT)
        .args([input.as_path(), cache])
        .args([SECONDS_EACH, SECONDS_ALL])
        .status()
        .with_context(|| format!("cannot run {}", python.display()))?;
    ensure!(status.success(), "{SCRIPT} failed: {status}");
    Ok(())
}

fn instance(problem: &Problem) -> serde_json::Value {
    let items: Vec<Vec<u64>> = problem
        .items
        .iter()
        .map(|item| item.amounts.iter().copied().chain([item.count]).collect())
        .collect();
    json!({ "key": key(problem), "capacity": problem.capacity, "items": items })
}

/// FNV-1a over all numbers of the instance: a name, not a defence.
fn key(problem: &Problem) -> String {
    let items = problem
        .items
        .iter()
        .flat_map(|item| item.amounts.iter().chain([&item.count]));
    let bytes = problem
        .capacity
        .iter()
        .chain(items)
        .flat_map(|number| number.to_le_bytes());
    let hash = bytes.fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    });
    format!("{hash:016x}")
}
