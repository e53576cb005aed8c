//! 200 replicas on one machine: how soon they run, what they cost at rest, how soon a new daemon manages them.

use std::time::Duration;

use anyhow::Context as _;
use berth_api::time::{Timestamp, monotonic};
use futures::future::try_join_all;
use rustix::process::{Pid, Signal, kill_process};

use crate::figures::{Figures, percentile};
use crate::instance::{Instance, span_ms};
use crate::process;
use crate::raw::Raw;
use crate::report::millis;

/// USER_HZ: 100 on every architecture that Berth runs on (proc(5)).
const TICKS_PER_SECOND: u64 = 100;
const REPLICAS: usize = 200;
const NAME: &str = "many";
/// From the last start to the reading of idle use.
const SETTLE: Duration = Duration::from_secs(10);
/// Idle use is read over this: a hundredth of a core is then 30 ticks of the kernel's clock.
const IDLE: Duration = Duration::from_secs(30);
/// How often the daemon is killed.
const KILLS: usize = 5;

/// Leaves the replicas running.
pub(crate) async fn start(
    instance: &Instance,
    raw: &Raw,
    image: &str,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let ids: Vec<String> = (0..REPLICAS).map(|number| format!("many-{number}")).collect();
    let begun = monotonic();
    try_join_all(ids.iter().map(|id| raw.start(id))).await?;
    let raw_ms = millis(begun.elapsed());
    let raw_containerd = process::rss_mib(instance.containerd_pid()?)?;
    try_join_all(ids.iter().map(|id| raw.delete(id))).await?;

    instance.create(NAME, image, REPLICAS).await?;
    let ms = span_ms(&instance.started(NAME, REPLICAS).await?);
    figures.add(
        "raw_start_200_ms",
        "200 at once, raw containerd",
        "ms",
        raw_ms,
        None,
    );
    figures.add(
        "start_200_ms",
        "200 at once, placed to all running",
        "ms",
        ms,
        None,
    );
    figures.add("start_200_ratio", "200 at once, ratio", "x", ms / raw_ms, None);
    figures.add(
        "raw_containerd_rss_mib",
        "containerd with 200 raw containers, resident",
        "MiB",
        raw_containerd,
        None,
    );
    Ok(())
}

pub(crate) async fn idle(instance: &Instance, figures: &mut Figures) -> anyhow::Result<()> {
    tokio::time::sleep(SETTLE).await;
    let machine = instance.machine()?;
    let containerd = instance.containerd_pid()?;
    let pids = [machine.daemon_pid, machine.keeper_pid, containerd];
    let times =
        || -> anyhow::Result<Vec<Duration>> { pids.iter().map(|pid| process::cpu_time(*pid)).collect() };
    let before = times()?;
    tokio::time::sleep(IDLE).await;
    let percents: Vec<f64> = times()?
        .into_iter()
        .zip(before)
        .map(|(after, before)| 100.0 * (after - before).as_secs_f64() / IDLE.as_secs_f64())
        .collect();
    let [daemon, keeper, runtime] = percents.as_slice() else {
        anyhow::bail!("three programs were looked at");
    };
    let rss = |pid| process::rss_mib(pid);
    figures.add(
        "berthd_rss_mib",
        "berthd, resident",
        "MiB",
        rss(machine.daemon_pid)?,
        Some(60.0),
    );
    figures.add(
        "berthd_idle_percent",
        "berthd, idle",
        "% of a core",
        *daemon,
        Some(2.0),
    );
    figures.add(
        "keeper_rss_mib",
        "keeper, resident",
        "MiB",
        rss(machine.keeper_pid)?,
        None,
    );
    figures.add(
        "keeper_idle_percent",
        "keeper, idle",
        "% of a core",
        *keeper,
        None,
    );
    figures.add(
        "containerd_rss_mib",
        "containerd, resident",
        "MiB",
        rss(containerd)?,
        None,
    );
    figures.add(
        "containerd_idle_percent",
        "containerd, idle",
        "% of a core",
        *runtime,
        None,
    );
    Ok(())
}

/// From the start of a new daemon to its taking over of what runs, and to its first word to the scheduler.
pub(crate) async fn adopt(instance: &Instance, figures: &mut Figures) -> anyhow::Result<()> {
    let (mut managed, mut linked) = (Vec::new(), Vec::new());
    for _ in 0..KILLS {
        let before = instance.machine()?.daemon_pid;
        kill(before)?;
        let since = Timestamp::now();
        let after = instance.another_daemon(before).await?;
        let begun = started_at(after)?;
        let line = format!("took over what runs on the machine running={REPLICAS}");
        let taken = instance.logged(&line, since).await?;
        let works = instance
            .logged("a subsystem works subsystem=\"link\"", since)
            .await?;
        managed.push(millis(taken.since(begun)));
        linked.push(millis(works.since(begun)));
    }
    let worst = |times: &[f64]| percentile(times, 100);
    let p50 = percentile(&managed, 50);
    figures.add(
        "adopt_200_p50_ms",
        "berthd started to 200 managed, p50",
        "ms",
        p50,
        None,
    );
    figures.add(
        "adopt_200_max_ms",
        "berthd started to 200 managed, slowest of 5",
        "ms",
        worst(&managed),
        Some(2000.0),
    );
    figures.add(
        "relink_200_max_ms",
        "berthd started to linked, slowest of 5",
        "ms",
        worst(&linked),
        None,
    );
    let replicas = instance
        .started(NAME, REPLICAS)
        .await
        .context("no replica was started anew")?;
    anyhow::ensure!(replicas.len() == REPLICAS, "replicas are missing");
    Ok(())
}

/// When a process began, to a hundredth of a second.
fn started_at(pid: u32) -> anyhow::Result<Timestamp> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("a stat has a name")?;
    // The 22nd word: ticks since the boot.
    let ticks: u64 = rest.split(' ').nth(19).context("a stat has a start")?.parse()?;
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    let uptime: f64 = uptime.split(' ').next().context("an uptime")?.parse()?;
    let age = Duration::from_secs_f64(uptime) - Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND);
    let now = Timestamp::now().millis();
    Ok(Timestamp::from_millis(now - u64::try_from(age.as_millis())?))
}

/// Ends a process without a word.
fn kill(pid: u32) -> anyhow::Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid)?).context("no process has id 0")?;
    Ok(kill_process(pid, Signal::KILL)?)
}
