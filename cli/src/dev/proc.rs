//! What runs on the host, read from `/proc` and the cgroup file systems: how a sweep finds every process of an instance
//! without trusting a list of process ids that a crash may have left stale.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions};

/// Every program that an instance starts carries this variable with the instance id; children inherit it, so that
/// the shims of containerd are found too.
pub(crate) const INSTANCE_VARIABLE: &str = "BERTH_DEV_INSTANCE";

/// Process ids of everything that runs.
fn all_pids() -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Processes that were started for this instance, apart from the caller itself.
pub(crate) fn of_instance(id: &str) -> BTreeSet<u32> {
    let marker = format!("{INSTANCE_VARIABLE}={id}");
    all_pids()
        .into_iter()
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|environ| environ.split(|b| *b == 0).any(|entry| entry == marker.as_bytes()))
        })
        .collect()
}

/// Processes among `pids` whose command line has this argument.
pub(crate) fn with_argument(pids: &BTreeSet<u32>, argument: &str) -> BTreeSet<u32> {
    pids.iter()
        .copied()
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.split(|b| *b == 0).any(|part| part == argument.as_bytes()))
        })
        .collect()
}

/// The directory of this cgroup in every hierarchy that has it.
pub(crate) fn cgroup_directories(cgroup: &str) -> Vec<PathBuf> {
    let relative = cgroup.trim_start_matches('/');
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    roots.extend(
        std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
            // cpu and cpu,cpuacct may be links to one hierarchy.
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path()),
    );
    roots
        .into_iter()
        .map(|root| root.join(relative))
        .filter(|path| path.is_dir())
        .collect()
}

/// This directory and all below, deepest first.
fn tree(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
    {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(tree(&entry.path()));
        }
    }
    found.push(directory.to_owned());
    found
}

/// Every process in this cgroup and below, in any hierarchy.
pub(crate) fn in_cgroup(cgroup: &str) -> BTreeSet<u32> {
    cgroup_directories(cgroup)
        .iter()
        .flat_map(|directory| tree(directory))
        .filter_map(|directory| std::fs::read_to_string(directory.join("cgroup.procs")).ok())
        .flat_map(|text| {
            text.lines()
                .filter_map(|line| line.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

/// Removes a cgroup and all below from every hierarchy. Gives the directories that could not be removed.
pub(crate) fn remove_cgroup(cgroup: &str) -> Vec<PathBuf> {
    cgroup_directories(cgroup)
        .iter()
        .flat_map(|directory| tree(directory))
        .filter(|directory| std::fs::remove_dir(directory).is_err() && directory.exists())
        .collect()
}

/// Sends a signal; a process that is gone is no fault.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        rustix::process::kill_process(pid, signal).ok();
    }
}

/// Kills what `find` gives until it gives nothing. Gives what is still there when the deadline passes.
pub(crate) async fn kill_all(find: impl Fn() -> BTreeSet<u32>, deadline: Duration) -> BTreeSet<u32> {
    let end = tokio::time::Instant::now() + deadline;
    loop {
        let alive = find();
        if alive.is_empty() || tokio::time::Instant::now() >= end {
            return alive;
        }
        for pid in alive {
            signal(pid, Signal::KILL);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        reap(&children_ended());
    }
}

/// Children of this process that have ended and that nobody has waited for.
pub(crate) fn children_ended() -> BTreeSet<u32> {
    let own = std::process::id();
    all_pids()
        .into_iter()
        .filter(|pid| {
            let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
                return false;
            };
            // The program's name, in parentheses, may hold anything: what follows its end is regular.
            let Some((_, rest)) = stat.rsplit_once(") ") else {
                return false;
            };
            let mut fields = rest.split(' ');
            fields.next() == Some("Z") && fields.next().and_then(|ppid| ppid.parse().ok()) == Some(own)
        })
        .collect()
}

/// Waits for ended children that are not awaited elsewhere.
pub(crate) fn reap(pids: &BTreeSet<u32>) {
    for pid in pids {
        if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
            rustix::process::waitpid(Some(pid), WaitOptions::NOHANG).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn finds_and_kills_what_carries_the_instance() {
        let id = format!("t{}", std::process::id());
        let mut child = tokio::process::Command::new("sleep")
            .arg("60")
            .env(INSTANCE_VARIABLE, &id)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = child.id().unwrap();
        // exec may not have happened yet: the marker appears with it.
        while of_instance(&id).is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(of_instance(&id), BTreeSet::from([pid]));
        assert_eq!(with_argument(&of_instance(&id), "60"), BTreeSet::from([pid]));
        assert!(with_argument(&of_instance(&id), "6").is_empty());
        signal(pid, Signal::KILL);
        assert!(!child.wait().await.unwrap().success());
        assert!(of_instance(&id).is_empty());
    }

    #[test]
    fn a_cgroup_that_is_nowhere_has_no_processes() {
        assert!(in_cgroup("/berth-no-such-cgroup").is_empty());
        assert!(remove_cgroup("/berth-no-such-cgroup").is_empty());
    }
}
