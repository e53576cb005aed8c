//! Measures the figures that `README.md` lists, on a running `berth dev` instance and its own containerd.
//!
//! Started by `benches/run.sh`. Output: a table and a JSON file. No figure fails the run: a figure beyond its promise is
//! marked, and a person judges with the machine's load in mind.

mod arguments;
mod commit;
mod figures;
mod instance;
mod node;
mod process;
mod raw;
mod report;
mod start;

use std::time::Duration;

use arguments::Arguments;
use figures::Figures;
use instance::Instance;
use raw::Raw;
use report::say;

/// Replicas that start at once, and that run while memory and idle use are read.
const REPLICAS: usize = 50;
/// How often 50 are started at once; the median counts.
const BATCHES: usize = 3;
/// From the last start to the reading of idle use.
const SETTLE: Duration = Duration::from_secs(10);
/// Idle use is read over this: a hundredth of a core is then 30 ticks of the kernel's clock.
const IDLE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let instance = Instance::connect(&arguments.berth, &arguments.state_dir)?;
    let raw = Raw::connect(&instance, &arguments.image).await?;
    let mut figures = Figures::default();

    if arguments.suite == "node" {
        node::measure(&instance, &raw, &arguments, &mut figures).await?;
        return report::write(&arguments, 5, &figures);
    }
    say("appending to the scheduler's log")?;
    commit::measure(&arguments.state_dir, &mut figures).await?;
    say("starting one replica, raw and by Berth in turns")?;
    start::one_by_one(&instance, &raw, &arguments, &mut figures).await?;
    say("starting 50 at once, raw and by Berth in turns")?;
    start::at_once(&instance, &raw, &arguments, &mut figures).await?;
    say("reading memory and idle use with 50 replicas")?;
    idle(&instance, &mut figures).await?;

    report::write(&arguments, 2, &figures)
}

async fn idle(instance: &Instance, figures: &mut Figures) -> anyhow::Result<()> {
    tokio::time::sleep(SETTLE).await;
    let machine = instance.machine()?;
    let (daemon, keeper) = (machine.daemon_pid, machine.keeper_pid);
    let before = process::cpu_time(daemon)?;
    let keeper_before = process::cpu_time(keeper)?;
    tokio::time::sleep(IDLE).await;
    let percent =
        |used: Duration, before: Duration| 100.0 * (used - before).as_secs_f64() / IDLE.as_secs_f64();
    figures.add(
        "berthd_rss_mib",
        "berthd, resident",
        "MiB",
        process::rss_mib(daemon)?,
        Some(40.0),
    );
    figures.add(
        "berthd_anon_mib",
        "berthd, of it anonymous",
        "MiB",
        process::anonymous_mib(daemon)?,
        None,
    );
    figures.add(
        "berthd_idle_percent",
        "berthd, idle",
        "% of a core",
        percent(process::cpu_time(daemon)?, before),
        Some(1.0),
    );
    figures.add(
        "keeper_rss_mib",
        "keeper, resident",
        "MiB",
        process::rss_mib(keeper)?,
        Some(4.0),
    );
    figures.add(
        "keeper_anon_mib",
        "keeper, of it anonymous",
        "MiB",
        process::anonymous_mib(keeper)?,
        None,
    );
    figures.add(
        "keeper_idle_percent",
        "keeper, idle",
        "% of a core",
        percent(process::cpu_time(keeper)?, keeper_before),
        None,
    );
    Ok(())
}
