//! How long a cluster takes no write when the scheduler process that owns it is killed, and another one takes it over.

use std::time::Duration;

use anyhow::Context as _;
use berth_api::time::monotonic;

use crate::etcd::Etcd;
use crate::figures::{Figures, percentile};
use crate::program::{Cluster, Program, container};
use crate::{Context, say};

const CLUSTERS: usize = 10;
const KILLS: usize = 10;
const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
const SETTLE: Duration = Duration::from_secs(8);

pub(crate) async fn measure(context: &Context, figures: &mut Figures) -> anyhow::Result<()> {
    let Some(etcd) = Etcd::start(&context.work.join("etcd-failover"), 3)? else {
        return say("no program etcd: failover is left out");
    };
    let store = format!("store = \"etcd://{}/berth\"", etcd.endpoints());
    let mut programs =
        vec![Program::start(&context.scheduler, &context.work.join("failover-0"), &store).await?];
    share_keys(context)?;
    programs.push(Program::start(&context.scheduler, &context.work.join("failover-1"), &store).await?);
    let mut clusters = Vec::new();
    for number in 0..CLUSTERS {
        let program = programs.first().context("there are two")?;
        clusters.push(program.create_cluster(&format!("failover-{number}"), 10).await?);
    }
    let mut samples = Vec::new();
    for kill in 0..KILLS / context.divisor.min(5) {
        tokio::time::sleep(SETTLE).await;
        let (killed, other) = (kill % 2, 1 - kill % 2);
        programs[killed].kill()?;
        let begun = monotonic();
        let mut last = Duration::ZERO;
        for cluster in &clusters {
            last = last.max(served(&programs[other], cluster, kill, begun).await?);
        }
        samples.push(last.as_secs_f64());
        programs[killed].spawn()?;
        programs[killed].ready().await?;
    }
    figures.add(
        "failover_p50_s",
        "owner killed to all its clusters served, p50",
        "s",
        percentile(&samples, 50),
        None,
    );
    figures.add(
        "failover_max_s",
        "the same, longest of 10",
        "s",
        percentile(&samples, 100),
        Some(10.0),
    );
    Ok(())
}

/// Both processes hold the same keys.
fn share_keys(context: &Context) -> anyhow::Result<()> {
    let (from, to) = (
        context.work.join("failover-0/data"),
        context.work.join("failover-1/data"),
    );
    std::fs::create_dir_all(&to)?;
    for file in ["ca.key", "ca.pem", "platform.key", "token-secret"] {
        std::fs::copy(from.join(file), to.join(file)).with_context(|| format!("copy {file}"))?;
    }
    Ok(())
}

/// Writes to a cluster until that is taken.
async fn served(
    program: &Program,
    cluster: &Cluster,
    kill: usize,
    begun: std::time::Instant,
) -> anyhow::Result<Duration> {
    let path = format!("{}/containers", cluster.path());
    let body = container(&format!("k{kill}"), 0, "1");
    loop {
        let answer = program.post(&path, &cluster.management, &body).await;
        match answer {
            Ok(_) => return Ok(begun.elapsed()),
            Err(error) if begun.elapsed() > DEADLINE => {
                return Err(error.context(format!("{} is not served after {DEADLINE:?}", cluster.id)));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
