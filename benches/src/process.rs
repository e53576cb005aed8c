//! What the kernel says of a process.

use std::time::Duration;

use anyhow::Context as _;

/// USER_HZ: 100 on every architecture that Berth runs on (proc(5)).
const TICKS_PER_SECOND: u64 = 100;

/// Processor time of a process so far.
pub(crate) fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything; utime and stime are the 12th and 13th word after it (proc(5)).
    let (_, rest) = stat.rsplit_once(") ").context("a stat has a name")?;
    let mut words = rest.split(' ').skip(11);
    let mut ticks = || -> anyhow::Result<u64> { Ok(words.next().context("a stat has times")?.parse()?) };
    let ticks = ticks()? + ticks()?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

pub(crate) fn rss_mib(pid: u32) -> anyhow::Result<f64> {
    memory_mib(pid, "VmRSS:")
}

pub(crate) fn anonymous_mib(pid: u32) -> anyhow::Result<f64> {
    memory_mib(pid, "RssAnon:")
}

fn memory_mib(pid: u32, member: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix(member))
        .and_then(|rest| rest.split_whitespace().next())
        .with_context(|| format!("no {member} of process {pid}"))?
        .parse()?;
    Ok(kib / 1024.0)
}
