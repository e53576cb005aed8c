//! Starts: one after the other and 50 at once, each beside the baseline, in turns so that the machine's load is the same.

use anyhow::Context as _;
use berth_api::time::{Timestamp, monotonic};
use futures::future::try_join_all;

use crate::arguments::Arguments;
use crate::figures::{Figures, percentile};
use crate::instance::{Instance, span_ms};
use crate::raw::Raw;
use crate::report::millis;
use crate::{BATCHES, REPLICAS};

/// The first of each is not counted: it brings the image into the node's namespace and fills caches.
const WARM_UP: usize = 1;

pub(crate) async fn one_by_one(
    instance: &Instance,
    raw: &Raw,
    arguments: &Arguments,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let (mut raws, mut starts, mut requests) = (Vec::new(), Vec::new(), Vec::new());
    let mut placed_times = Vec::new();
    for run in 0..arguments.runs + WARM_UP {
        let begun = monotonic();
        Box::pin(raw.start("one")).await?;
        let raw_ms = millis(begun.elapsed());
        raw.delete("one").await?;

        let name = format!("one-{run}");
        let asked = Timestamp::now();
        instance.create(&name, &arguments.image, 1).await?;
        let start = *instance
            .started(&name, 1)
            .await?
            .first()
            .context("one replica was waited for")?;
        instance.delete(&name).await?;
        if run >= WARM_UP {
            raws.push(raw_ms);
            starts.push(millis(start.started.since(start.placed)));
            requests.push(millis(start.started.since(asked)));
            placed_times.push(start.placed);
        }
    }
    report(&raws, &starts, &requests, figures);
    reach(instance, &placed_times, figures)
}

fn report(raws: &[f64], starts: &[f64], requests: &[f64], figures: &mut Figures) {
    let (raw_p50, p50) = (percentile(raws, 50), percentile(starts, 50));
    let (raw_p99, p99) = (percentile(raws, 99), percentile(starts, 99));
    figures.add(
        "raw_start_p50_ms",
        "one start, raw containerd, p50",
        "ms",
        raw_p50,
        None,
    );
    figures.add(
        "raw_start_p99_ms",
        "one start, raw containerd, p99",
        "ms",
        raw_p99,
        None,
    );
    let promise = Some(raw_p50 + 30.0);
    figures.add(
        "start_p50_ms",
        "one start, placed to running, p50",
        "ms",
        p50,
        promise,
    );
    figures.add(
        "start_p99_ms",
        "one start, placed to running, p99",
        "ms",
        p99,
        None,
    );
    figures.add(
        "start_ratio",
        "one start, ratio of the p50s",
        "x",
        p50 / raw_p50,
        None,
    );
    let request_p50 = percentile(requests, 50);
    figures.add(
        "request_p50_ms",
        "one start, request to running, p50",
        "ms",
        request_p50,
        None,
    );
}

/// How long the node's assignment set was on its way.
fn reach(instance: &Instance, placed_times: &[Timestamp], figures: &mut Figures) -> anyhow::Result<()> {
    let accepted = instance.accepted(1)?;
    let delays: Vec<f64> = placed_times
        .iter()
        .filter_map(|placed| {
            let first = accepted.iter().find(|time| *time >= placed)?;
            Some(millis(first.since(*placed)))
        })
        .collect();
    let (p50, p99) = (percentile(&delays, 50), percentile(&delays, 99));
    figures.add(
        "reach_p50_ms",
        "placed to stored by the node, p50",
        "ms",
        p50,
        Some(20.0),
    );
    figures.add(
        "reach_p99_ms",
        "placed to stored by the node, p99",
        "ms",
        p99,
        None,
    );
    Ok(())
}

/// Leaves the last 50 running.
pub(crate) async fn at_once(
    instance: &Instance,
    raw: &Raw,
    arguments: &Arguments,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let (mut raws, mut starts, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let ids: Vec<String> = (0..REPLICAS).map(|number| format!("many-{number}")).collect();
    for batch in 1..=BATCHES {
        let begun = monotonic();
        try_join_all(ids.iter().map(|id| raw.start(id))).await?;
        let raw_ms = millis(begun.elapsed());
        try_join_all(ids.iter().map(|id| raw.delete(id))).await?;

        let name = format!("many-{batch}");
        instance.create(&name, &arguments.image, REPLICAS).await?;
        let ms = span_ms(&instance.started(&name, REPLICAS).await?);
        raws.push(raw_ms);
        starts.push(ms);
        ratios.push(ms / raw_ms);
        if batch < BATCHES {
            instance.delete(&name).await?;
        }
    }
    let (raw_p50, p50) = (percentile(&raws, 50), percentile(&starts, 50));
    figures.add(
        "raw_start_50_ms",
        "50 at once, raw containerd, all running",
        "ms",
        raw_p50,
        None,
    );
    figures.add(
        "start_50_ms",
        "50 at once, placed to all running",
        "ms",
        p50,
        None,
    );
    let ratio = percentile(&ratios, 50);
    figures.add(
        "start_50_ratio",
        "50 at once, ratio (median of 3)",
        "x",
        ratio,
        Some(1.3),
    );
    Ok(())
}
