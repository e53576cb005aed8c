//! Declarations by REST, each durable before it is answered: how long one takes at 500 a second, and how many there can be.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use berth_api::time::monotonic;
use tokio::task::JoinSet;

use crate::etcd::Etcd;
use crate::figures::{Figures, percentile};
use crate::program::{Cluster, Program, container};
use crate::{Context, say};

const CLUSTERS: usize = 50;
const PER_SECOND: usize = 500;
const SECONDS: usize = 20;
const WORKERS: usize = 32;
/// About the size of what a declaration appends.
const PEER_BYTES: usize = 1024;

pub(crate) async fn measure(context: &Context, figures: &mut Figures) -> anyhow::Result<()> {
    let program = Arc::new(Program::start(&context.scheduler, &context.work.join("creates"), "").await?);
    let mut clusters = Vec::new();
    for number in 0..CLUSTERS {
        clusters.push(program.create_cluster(&format!("create-{number}"), 10).await?);
    }
    let clusters = Arc::new(clusters);
    let count = PER_SECOND * SECONDS / context.divisor;
    let samples = at_rate(count, |number| {
        let (program, clusters) = (program.clone(), clusters.clone());
        async move { create(&program, &clusters[number % CLUSTERS], number).await }
    })
    .await?;
    figures.add(
        "create_p50_ms",
        "create by REST at 500 a second, p50",
        "ms",
        percentile(&samples, 50),
        None,
    );
    figures.add(
        "create_p99_ms",
        "the same, p99",
        "ms",
        percentile(&samples, 99),
        Some(10.0),
    );
    peer(context, count, figures).await?;
    let begun = monotonic();
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        let (program, clusters) = (program.clone(), clusters.clone());
        workers.spawn(async move {
            for number in (worker..count).step_by(WORKERS) {
                create(&program, &clusters[number % CLUSTERS], count + number).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    let rate = f64::from(u32::try_from(count)?) / begun.elapsed().as_secs_f64();
    figures.add(
        "creates_per_second",
        "creates by REST, 32 callers that wait",
        "/s",
        rate,
        None,
    );
    Ok(())
}

async fn create(program: &Program, cluster: &Cluster, number: usize) -> anyhow::Result<()> {
    let body = container(&format!("c{number}"), 1, "1");
    let path = format!("{}/containers", cluster.path());
    program.post(&path, &cluster.management, &body).await.map(drop)
}

/// Calls that arrive at a fixed rate and do not wait for each other, in milliseconds from when each should have begun.
async fn at_rate<F>(count: usize, call: impl Fn(usize) -> F) -> anyhow::Result<Vec<f64>>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let mut calls: JoinSet<anyhow::Result<Instant>> = JoinSet::new();
    let mut samples = Vec::new();
    let begun = monotonic();
    for number in 0..count {
        let due = begun + Duration::from_secs_f64(f64::from(u32::try_from(number)?) / 500.0);
        tokio::time::sleep_until(due.into()).await;
        let call = call(number);
        calls.spawn(async move {
            call.await?;
            Ok(due)
        });
        while let Some(ended) = calls.try_join_next() {
            samples.push(ended??.elapsed().as_secs_f64() * 1000.0);
        }
    }
    while let Some(ended) = calls.join_next().await {
        samples.push(ended??.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(samples)
}

/// The same rate of writes to etcd itself.
async fn peer(context: &Context, count: usize, figures: &mut Figures) -> anyhow::Result<()> {
    let Some(etcd) = Etcd::start(&context.work.join("etcd-creates"), 1)? else {
        return say("no program etcd: the peer of creates is left out");
    };
    let client = etcd_client::Client::connect([etcd.endpoints()], None).await?;
    for attempt in 0.. {
        if client.kv_client().put("ready", "", None).await.is_ok() {
            break;
        }
        if attempt > 100 {
            bail!("etcd does not take writes");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let samples = at_rate(count, |number| {
        let mut client = client.kv_client();
        async move {
            let put = client
                .put(format!("create/{number}"), vec![b'x'; PEER_BYTES], None)
                .await;
            put.map(drop).context("put to etcd")
        }
    })
    .await?;
    figures.add(
        "etcd_put_p50_ms",
        "put of 1 KiB to etcd at 500 a second, p50",
        "ms",
        percentile(&samples, 50),
        None,
    );
    figures.add(
        "etcd_put_p99_ms",
        "the same, p99",
        "ms",
        percentile(&samples, 99),
        None,
    );
    Ok(())
}
