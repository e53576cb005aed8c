//! Durable placements per second through one cluster's actor: containers are declared, and every replica has its machine in
//! the log.

use std::time::Duration;

use anyhow::Context as _;
use berth_api::id::ClusterId;
use berth_api::time::monotonic;
use berth_scheduler::store::{Sqlite, Store as _};
use futures::StreamExt as _;
use futures::stream;
use serde_json::{Value, json};

use crate::etcd::Etcd;
use crate::figures::Figures;
use crate::program::{Cluster, Program, container, registration};
use crate::{Context, say};

const MACHINES: usize = 400;
const CONTAINERS: usize = 40;
const REPLICAS: usize = 20_000;
/// Records that one durable write of the baseline holds.
const BATCH: usize = 500;
const RUNS: usize = 5;

pub(crate) async fn measure(context: &Context, figures: &mut Figures) -> anyhow::Result<()> {
    let scheduler = &context.scheduler;
    let program = Program::start(scheduler, &context.work.join("placements"), "").await?;
    let before = crate::process::cpu_time(program.pid()?)?;
    let (seconds, spent) = middle_of_runs(&program, context).await?;
    let cpu = (crate::process::cpu_time(program.pid()?)? - before).as_secs_f64();
    drop(program);
    let raw = raw(context).await?;
    figures.add(
        "place_20000_sqlite_s",
        "20 000 durable placements, SQLite",
        "s",
        seconds,
        Some(1.0),
    );
    figures.add(
        "place_sqlite_cpu_s",
        "the same, processor time, all preparations inside",
        "s",
        cpu / f64::from(u32::try_from(RUNS)?),
        None,
    );
    spent.report(figures);
    figures.add(
        "raw_20000_sqlite_s",
        "as many records, store alone",
        "s",
        raw,
        None,
    );
    figures.add("place_sqlite_ratio", "their ratio", "", seconds / raw, None);
    let Some(etcd) = Etcd::start(&context.work.join("etcd-placements"), 1)? else {
        return say("no program etcd: placements on etcd are left out");
    };
    let store = format!("store = \"etcd://{}/berth\"", etcd.endpoints());
    let program = Program::start(scheduler, &context.work.join("placements-etcd"), &store).await?;
    let (seconds, _) = middle_of_runs(&program, context).await?;
    figures.add(
        "place_20000_etcd_s",
        "20 000 durable placements, etcd, one member",
        "s",
        seconds,
        Some(4.0),
    );
    Ok(())
}

/// What the actor says of itself: seconds, and how often.
#[derive(Clone, Copy)]
struct Spent {
    deciding: (f64, f64),
    appending: (f64, f64),
}

impl Spent {
    async fn of(program: &Program) -> anyhow::Result<Self> {
        let sum = async |name: &str| {
            let name = format!("berth_scheduler_{name}_seconds");
            let seconds = program.metric(&format!("{name}_sum")).await?;
            anyhow::Ok((seconds, program.metric(&format!("{name}_count")).await?))
        };
        Ok(Self {
            deciding: sum("decision").await?,
            appending: sum("append").await?,
        })
    }

    fn since(self, before: Self) -> Self {
        let less = |now: (f64, f64), before: (f64, f64)| (now.0 - before.0, now.1 - before.1);
        Self {
            deciding: less(self.deciding, before.deciding),
            appending: less(self.appending, before.appending),
        }
    }

    fn report(self, figures: &mut Figures) {
        let mut add = |id, text, unit, value| figures.add(id, text, unit, value, None);
        add("place_deciding_s", "of which deciding", "s", self.deciding.0);
        add("place_decisions", "in so many decisions", "", self.deciding.1);
        add(
            "place_appending_s",
            "of which waiting for the store",
            "s",
            self.appending.0,
        );
        add("place_appends", "in so many appends", "", self.appending.1);
    }
}

/// The middle of some runs, each in a cluster of its own.
async fn middle_of_runs(program: &Program, context: &Context) -> anyhow::Result<(f64, Spent)> {
    let mut runs = Vec::new();
    for number in 0..RUNS {
        runs.push(run(program, number, context.divisor).await?);
    }
    runs.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    runs.get(RUNS / 2).copied().context("there are runs")
}

/// Seconds, and what the actor did in them.
async fn run(program: &Program, number: usize, divisor: usize) -> anyhow::Result<(f64, Spent)> {
    let machines = MACHINES / divisor;
    let replicas = REPLICAS / divisor;
    let cluster = program
        .create_cluster(&format!("place-{number}"), machines)
        .await?;
    stream::iter(0..machines)
        .map(|machine| present(program, &cluster, machine))
        .buffer_unordered(16)
        .collect::<Vec<anyhow::Result<()>>>()
        .await
        .into_iter()
        .collect::<anyhow::Result<Vec<()>>>()?;
    let before = program.metric("berth_scheduler_replicas").await?;
    let spent = Spent::of(program).await?;
    let begun = monotonic();
    let path = format!("{}/containers", cluster.path());
    let declared: Vec<anyhow::Result<Value>> = stream::iter(0..CONTAINERS)
        .map(|container_number| {
            let body = container(&format!("c{container_number}"), replicas / CONTAINERS, "0.1");
            let (path, cluster) = (&path, &cluster);
            async move { program.post(path, &cluster.management, &body).await }
        })
        .buffer_unordered(8)
        .collect()
        .await;
    declared.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let wanted = before + f64::from(u32::try_from(replicas / CONTAINERS * CONTAINERS)?);
    program.metric_reaches("berth_scheduler_replicas", wanted).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let spent = Spent::of(program).await?.since(spent);
    program
        .ask(reqwest::Method::DELETE, &cluster.path(), &program.token, None)
        .await?;
    Ok((seconds, spent))
}

/// Registers a machine, and lets it be heard once by the plain wire API.
async fn present(program: &Program, cluster: &Cluster, number: usize) -> anyhow::Result<()> {
    let machine = format!("m-{number:06}");
    program
        .post(
            "/register",
            &cluster.machine,
            &registration(cluster, &machine, number),
        )
        .await?;
    let heartbeat =
        json!({"clusterId": cluster.id, "machineId": machine, "status": "running", "replicas": {}});
    program.post("/heartbeat", &cluster.machine, &heartbeat).await?;
    Ok(())
}

/// Writes as many records of the same size, nothing decided: seconds.
async fn raw(context: &Context) -> anyhow::Result<f64> {
    let store = Sqlite::open(&context.work.join("raw.db"))?;
    let mut seconds = Vec::new();
    for number in 0..RUNS {
        let cluster = ClusterId::new(format!("raw-{number}"))?;
        let begun = monotonic();
        let mut seq = 1;
        // A placement and the event that announces it.
        for _ in 0..REPLICAS / context.divisor / BATCH {
            let records = (0..BATCH)
                .flat_map(|_| [vec![b'p'; 330], vec![b'e'; 420]])
                .collect();
            seq = store.append(&cluster, seq, records).await?;
        }
        seconds.push(begun.elapsed().max(Duration::from_micros(1)).as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    seconds.get(RUNS / 2).copied().context("there are runs")
}
