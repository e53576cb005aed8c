//! What clusters cost in which nothing happens.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream;

use crate::Context;
use crate::figures::Figures;
use crate::program::Program;

const CLUSTERS: usize = 10_000;
const SETTLE: Duration = Duration::from_secs(5);
const PERIOD: Duration = Duration::from_secs(20);

pub(crate) async fn measure(context: &Context, figures: &mut Figures) -> anyhow::Result<()> {
    let program = Program::start(&context.scheduler, &context.work.join("idle"), "").await?;
    let count = CLUSTERS / context.divisor;
    let created: Vec<anyhow::Result<()>> = stream::iter(0..count)
        .map(|number| {
            let program = &program;
            async move {
                program
                    .create_cluster(&format!("idle-{number}"), 10)
                    .await
                    .map(drop)
            }
        })
        .buffer_unordered(16)
        .collect()
        .await;
    created.into_iter().collect::<anyhow::Result<Vec<()>>>()?;
    tokio::time::sleep(SETTLE).await;
    figures.add(
        "idle_clusters_mib",
        "10 000 idle clusters, resident",
        "MiB",
        program.rss_mib()?,
        Some(1024.0),
    );
    let percent = program.cpu_percent(PERIOD).await?;
    figures.add(
        "idle_clusters_percent",
        "the same, processor",
        "% of a core",
        percent,
        None,
    );
    Ok(())
}
