//! Ten thousand linked machines on one scheduler: what their sessions cost, how fast a change reaches them, and what a new
//! machine tells the others.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, bail};
use berth_api::time::monotonic;

use crate::Context;
use crate::figures::{Figures, percentile};
use crate::nodes::{Nodes, Seen};
use crate::process;
use crate::program::{Cluster, Program, container};
use crate::say;

const NODES: usize = 10_000;
/// Machines of the one large cluster, and of each of the others.
const LARGE: usize = 1_000;
const SMALL: usize = 100;
/// Clusters in which changes are timed.
const CHANGED: usize = 20;
const SETTLE: Duration = Duration::from_secs(15);
const PERIOD: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(60);

/// A cluster with linked machines.
struct Member {
    cluster: Cluster,
    machines: usize,
    seen: Arc<Seen>,
}

pub(crate) async fn measure(context: &Context, figures: &mut Figures) -> anyhow::Result<()> {
    let program = Program::start(&context.scheduler, &context.work.join("sessions"), "").await?;
    let before = program.rss_mib()?;
    let mut nodes = Nodes::of(&program).await?;
    let members = link(&program, &mut nodes, context).await?;
    let count = members.iter().map(|member| member.machines).sum::<usize>();
    // Each machine has one replica to speak of.
    for member in &members {
        change(&program, member, &container("one", member.machines, "5")).await?;
    }
    tokio::time::sleep(SETTLE).await;
    let mib = program.rss_mib()? - before;
    let per_thousand = f64::from(u32::try_from(count)?) / 1000.0;
    figures.add(
        "sessions_mib",
        "10 000 sessions, resident",
        "MiB",
        mib * 10.0 / per_thousand,
        Some(2048.0),
    );
    figures.add(
        "sessions_per_gib",
        "sessions per GiB",
        "",
        1024.0 * 1000.0 * per_thousand / mib,
        None,
    );
    let anonymous = process::anonymous_mib(program.pid()?)? * 10.0 / per_thousand;
    figures.add(
        "sessions_anon_mib",
        "the same process, of it anonymous",
        "MiB",
        anonymous,
        None,
    );
    let percent = program.cpu_percent(PERIOD).await? / per_thousand;
    figures.add(
        "sessions_percent",
        "10 000 idle sessions, processor",
        "% of a core",
        percent * 10.0,
        Some(50.0),
    );
    figures.add(
        "sessions_1000_percent",
        "1 000 idle sessions, processor",
        "% of a core",
        percent,
        None,
    );
    changes(&program, &members, figures).await?;
    membership(&mut nodes, &members, figures).await?;
    let ended: u64 = members.iter().map(|member| member.seen.ended()).sum();
    if ended > 0 {
        bail!("{ended} sessions ended by themselves");
    }
    Ok(())
}

async fn link(program: &Program, nodes: &mut Nodes, context: &Context) -> anyhow::Result<Vec<Member>> {
    let (large, small) = (LARGE / context.divisor, SMALL / context.divisor.min(10));
    let mut members = Vec::new();
    let mut left = NODES / context.divisor;
    while left > 0 {
        let machines = if members.is_empty() {
            large
        } else {
            small.min(left)
        };
        let cluster = program
            .create_cluster(&format!("sessions-{}", members.len()), machines + 1)
            .await?;
        let seen = Arc::new(Seen::default());
        nodes.link(&cluster, machines, &seen).await?;
        left -= machines;
        members.push(Member {
            cluster,
            machines,
            seen,
        });
    }
    say(&format!("{} machines are linked", NODES / context.divisor))?;
    Ok(members)
}

/// Declares a container with one replica for each machine; seconds from the answer, which is the commit, to the last
/// acknowledgement.
async fn change(program: &Program, member: &Member, body: &serde_json::Value) -> anyhow::Result<f64> {
    let before = member.seen.acks();
    let path = format!("{}/containers", member.cluster.path());
    program.post(&path, &member.cluster.management, body).await?;
    let committed = monotonic();
    let wanted = before + u64::try_from(member.machines)?;
    while member.seen.acks() < wanted {
        if committed.elapsed() > DEADLINE {
            bail!("{} of {wanted} sets were taken", member.seen.acks());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let last = member.seen.last_ack().context("there were acknowledgements")?;
    Ok(last.saturating_duration_since(committed).as_secs_f64())
}

async fn changes(program: &Program, members: &[Member], figures: &mut Figures) -> anyhow::Result<()> {
    // 2 of the 3 cores that are left: again one replica on each machine.
    let mut small = Vec::new();
    for member in members.iter().skip(1).take(CHANGED) {
        small.push(1000.0 * change(program, member, &container("two", member.machines, "2")).await?);
    }
    let large = members.first().context("there is a cluster")?;
    let large_ms = 1000.0 * change(program, large, &container("two", large.machines, "2")).await?;
    figures.add(
        "change_100_p50_ms",
        "commit to the last of 100 acknowledgements, p50",
        "ms",
        percentile(&small, 50),
        None,
    );
    figures.add(
        "change_100_max_ms",
        "the same, longest of 20",
        "ms",
        percentile(&small, 100),
        None,
    );
    figures.add(
        "change_1000_ms",
        "commit to the last of 1 000",
        "ms",
        large_ms,
        None,
    );
    Ok(())
}

/// Bytes that each machine is sent when one joins: with a hundred machines, and with a thousand.
async fn membership(nodes: &mut Nodes, members: &[Member], figures: &mut Figures) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    for member in [members.get(1), members.first()].into_iter().flatten() {
        let before = member.seen.mesh_bytes.load(Ordering::SeqCst);
        let joined = Arc::new(Seen::default());
        nodes.link(&member.cluster, 1, &joined).await?;
        let begun = monotonic();
        let mut sent = 0;
        // Until nothing more comes.
        let mut quiet_since = begun;
        while quiet_since.elapsed() < Duration::from_secs(2) {
            let present = member.seen.mesh_bytes.load(Ordering::SeqCst) - before;
            if present != sent {
                (sent, quiet_since) = (present, monotonic());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bytes.push(f64::from(u32::try_from(sent)?) / f64::from(u32::try_from(member.machines)?));
    }
    let [small, large] = bytes[..] else {
        return say("one cluster only: the growth of a membership change is left out");
    };
    figures.add(
        "join_100_bytes",
        "a machine joins 100, sent to each",
        "bytes",
        small,
        None,
    );
    figures.add(
        "join_1000_bytes",
        "a machine joins 1 000, sent to each",
        "bytes",
        large,
        Some(small * 1.05),
    );
    Ok(())
}
