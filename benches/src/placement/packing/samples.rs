//! Reads the public samples: `.vbp` (one kind of bin) and `.mvp` (several kinds of bin, items with a choice of sizes).
//!
//! `.vbp`: dimensions, capacity, number of kinds, per kind its amounts and count. `.mvp`: dimensions, number of kinds of bin,
//! per kind of bin its capacity, cost and number (-1 is any); number of items, per item how many choices and its count, then
//! a line of amounts per choice. Both as in the documentation of `VPSolver`.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use berth_scheduler::placement::pack::{Item, Problem};

/// A kind of bin and what packing into it alone asks.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) cost: u64,
    pub(crate) problem: Problem,
}

pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Sample>> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.with_context(|| format!("{} has no name", path.display()))?;
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut numbers = text.split_whitespace().map(str::parse::<i64>);
    let mut next = || -> anyhow::Result<i64> { Ok(numbers.next().context("the file ends early")??) };
    let samples = if path.extension().is_some_and(|extension| extension == "mvp") {
        multiple(&name, &mut next)
    } else {
        single(&name, &mut next)
    };
    samples.with_context(|| format!("cannot read {}", path.display()))
}

type Next<'a> = dyn FnMut() -> anyhow::Result<i64> + 'a;

fn amounts(count: usize, next: &mut Next<'_>) -> anyhow::Result<Vec<u64>> {
    (0..count).map(|_| Ok(u64::try_from(next()?)?)).collect()
}

fn item(amounts: Vec<u64>, count: i64) -> anyhow::Result<Item> {
    Ok(Item {
        amounts,
        count: u64::try_from(count)?,
        group: None,
    })
}

fn single(name: &str, next: &mut Next<'_>) -> anyhow::Result<Vec<Sample>> {
    let dimensions = usize::try_from(next()?)?;
    let capacity = amounts(dimensions, next)?;
    let mut items = Vec::new();
    for _ in 0..next()? {
        let sizes = amounts(dimensions, next)?;
        items.push(item(sizes, next()?)?);
    }
    Ok(vec![Sample {
        name: name.to_owned(),
        cost: 1,
        problem: Problem {
            capacity,
            items,
            ..Problem::default()
        },
    }])
}

fn multiple(name: &str, next: &mut Next<'_>) -> anyhow::Result<Vec<Sample>> {
    let dimensions = usize::try_from(next()?)?;
    let mut bins = Vec::new();
    for _ in 0..next()? {
        let capacity = amounts(dimensions, next)?;
        let cost = u64::try_from(next()?)?;
        ensure!(next()? == -1, "bins of a limited number are not read");
        bins.push((capacity, cost));
    }
    let mut items = Vec::new();
    for _ in 0..next()? {
        let (choices, count) = (next()?, next()?);
        if choices != 1 {
            bail!("items with a choice of sizes are not read");
        }
        items.push(item(amounts(dimensions, next)?, count)?);
    }
    let samples = bins.into_iter().map(|(capacity, cost)| Sample {
        name: format!("{name}, bins of {}", capacity[0]),
        cost,
        problem: Problem {
            capacity,
            items: items.clone(),
            ..Problem::default()
        },
    });
    Ok(samples.collect())
}
