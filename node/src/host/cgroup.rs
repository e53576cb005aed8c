//! cgroups by their files, on v1, hybrid and v2 hosts: usage, out-of-memory kills, killing, removing leftovers.
//!
//! Limits are not set here: they go through the OCI spec. All calls are short reads and writes in a kernel file system
//! and do not block. What is missing reads as absent: a cgroup goes with its container.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

/// What a cgroup used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// CPU time since the cgroup was made.
    pub cpu_nanos: u64,
    /// Memory that cannot simply be dropped: usage less inactive page cache.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Processes the kernel killed for want of memory.
    pub oom_kills: u64,
    /// Periods in which the CPU limit was hit.
    pub throttled_periods: u64,
}

/// Where a controller is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// One cgroup, by the path that the OCI spec names it with.
#[derive(Debug, Clone)]
pub struct Cgroup {
    root: PathBuf,
    path: String,
}

const ROOT: &str = "/sys/fs/cgroup";
/// The v1 hierarchies that runc makes directories in.
const V1_CONTROLLERS: [&str; 14] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpu,cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "systemd",
];

impl Cgroup {
    /// The cgroup at `path` below the mount point of each hierarchy.
    #[must_use]
    pub fn at(path: &str) -> Self {
        Self::under(Path::new(ROOT), path)
    }

    /// The same with another mount point.
    #[must_use]
    pub fn under(root: &Path, path: &str) -> Self {
        Self {
            root: root.to_owned(),
            path: path.trim_start_matches('/').to_owned(),
        }
    }

    /// Use so far; None when the cgroup is gone.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        let cpu_nanos = self.cpu_nanos()?;
        Some(Usage {
            cpu_nanos,
            memory_bytes: self.memory_bytes().unwrap_or(0),
            pids: self.number("pids", "pids.current").unwrap_or(0),
            oom_kills: self.oom_kills(),
            throttled_periods: self
                .directory("cpu")
                .and_then(|(_, directory)| field(&directory.join("cpu.stat"), "nr_throttled"))
                .unwrap_or(0),
        })
    }

    /// Processes the kernel killed in this cgroup for want of memory; 0 when the cgroup is gone.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        self.directory("memory")
            .and_then(|(version, directory)| match version {
                Version::V1 => field(&directory.join("memory.oom_control"), "oom_kill"),
                Version::V2 => field(&directory.join("memory.events"), "oom_kill"),
            })
            .unwrap_or(0)
    }

    /// The processes in the cgroup and those below it.
    #[must_use]
    pub fn processes(&self) -> BTreeSet<i32> {
        self.directories()
            .iter()
            .flat_map(|directory| tree(directory))
            .filter_map(|directory| fs::read_to_string(directory.join("cgroup.procs")).ok())
            .flat_map(|text| {
                text.lines()
                    .filter_map(|line| line.parse().ok())
                    .collect::<Vec<i32>>()
            })
            // Zero stands for a process outside our pid namespace.
            .filter(|pid| *pid > 0)
            .collect()
    }

    /// Kills every process, also those being forked meanwhile. Returns how many were found.
    pub fn kill_all(&self) -> usize {
        if !self.path_is_owned() {
            return 0;
        }
        let mut killed = BTreeSet::new();
        let group_kill = self.directory_v2().map(|directory| directory.join("cgroup.kill"));
        // On v1 a fork may slip between reading and killing: look again until nothing new is found, bounded because a
        // process in an uninterruptible wait stays listed.
        for _ in 0..8 {
            let found = self.processes();
            if found.is_subset(&killed) {
                break;
            }
            if let Some(file) = &group_kill {
                // Absent before kernel 5.14 and on hybrid hosts useless for v1 members: the loop below does the rest.
                fs::write(file, "1").ok();
            }
            for pid in found.iter().filter_map(|pid| Pid::from_raw(*pid)) {
                kill_process(pid, Signal::KILL).ok();
            }
            killed.extend(found);
        }
        killed.len()
    }

    /// Removes the cgroup's directories in all hierarchies, deepest first. Those with processes stay.
    pub fn remove(&self) {
        if !self.path_is_owned() {
            return;
        }
        for directory in self.directories() {
            for directory in tree(&directory).iter().rev() {
                // Busy or gone: the first shows in `exists`, the second is what we want.
                fs::remove_dir(directory).ok();
            }
        }
    }

    /// Whether any hierarchy still has the cgroup.
    #[must_use]
    pub fn exists(&self) -> bool {
        !self.directories().is_empty()
    }

    /// Invariant: nothing is killed or removed at the root of a hierarchy or outside it.
    fn path_is_owned(&self) -> bool {
        !self.path.is_empty()
            && self
                .path
                .split('/')
                .all(|part| !part.is_empty() && part != "." && part != "..")
    }

    fn cpu_nanos(&self) -> Option<u64> {
        // On v1 `cpuacct` counts; on v2 `cpu.stat` is there in every cgroup, even without the controller.
        if let Some((Version::V1, directory)) = self.directory("cpuacct") {
            return number(&directory.join("cpuacct.usage"));
        }
        let directory = self.directory_v2()?;
        field(&directory.join("cpu.stat"), "usage_usec").map(|micros| micros.saturating_mul(1000))
    }

    fn memory_bytes(&self) -> Option<u64> {
        let (version, directory) = self.directory("memory")?;
        let (usage, inactive) = match version {
            Version::V1 => ("memory.usage_in_bytes", "total_inactive_file"),
            Version::V2 => ("memory.current", "inactive_file"),
        };
        let used = number(&directory.join(usage))?;
        Some(used.saturating_sub(field(&directory.join("memory.stat"), inactive).unwrap_or(0)))
    }

    fn number(&self, controller: &str, file: &str) -> Option<u64> {
        number(&self.directory(controller)?.1.join(file))
    }

    /// The cgroup's directory in the hierarchy that has `controller`.
    fn directory(&self, controller: &str) -> Option<(Version, PathBuf)> {
        let names = [
            controller.to_owned(),
            // Where cpu and cpuacct are one hierarchy and the links to it are missing.
            "cpu,cpuacct".to_owned(),
        ];
        let count = if controller.starts_with("cpu") && controller != "cpuset" {
            2
        } else {
            1
        };
        for name in &names[..count] {
            let hierarchy = self.root.join(name);
            if hierarchy.join("cgroup.procs").exists() {
                let directory = hierarchy.join(&self.path);
                return directory.is_dir().then_some((Version::V1, directory));
            }
        }
        self.directory_v2().map(|directory| (Version::V2, directory))
    }

    /// The cgroup's directory in the unified hierarchy, be it the only one or beside v1.
    fn directory_v2(&self) -> Option<PathBuf> {
        [self.root.clone(), self.root.join("unified")]
            .into_iter()
            .find(|root| root.join("cgroup.controllers").exists())
            .map(|root| root.join(&self.path))
            .filter(|directory| directory.is_dir())
    }

    fn directories(&self) -> Vec<PathBuf> {
        V1_CONTROLLERS
            .iter()
            .map(|controller| self.root.join(controller))
            .filter(|hierarchy| hierarchy.join("cgroup.procs").exists())
            .map(|hierarchy| hierarchy.join(&self.path))
            .filter(|directory| directory.is_dir())
            .chain(self.directory_v2())
            .collect()
    }
}

/// A directory and all below it, parents first.
fn tree(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    let mut next = 0;
    while next < found.len() {
        if let Ok(entries) = fs::read_dir(&found[next]) {
            let below = entries
                .filter_map(Result::ok)
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path());
            found.extend(below);
        }
        next += 1;
    }
    found
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The value behind `key` in a file of `key value` lines.
fn field(file: &Path, key: &str) -> Option<u64> {
    fs::read_to_string(file).ok()?.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let file = root.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    #[test]
    fn reads_version_two() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(root, "cgroup.controllers", "cpu memory pids\n");
        write(
            root,
            "b/r/cpu.stat",
            "usage_usec 1500\nnr_periods 4\nnr_throttled 3\n",
        );
        write(root, "b/r/memory.current", "5000\n");
        write(root, "b/r/memory.stat", "anon 1\ninactive_file 1000\n");
        write(root, "b/r/memory.events", "low 0\noom 1\noom_kill 2\n");
        write(root, "b/r/pids.current", "7\n");
        let usage = Cgroup::under(root, "/b/r").usage().unwrap();
        let expected = Usage {
            cpu_nanos: 1_500_000,
            memory_bytes: 4000,
            pids: 7,
            oom_kills: 2,
            throttled_periods: 3,
        };
        assert_eq!(usage, expected);
        assert_eq!(Cgroup::under(root, "/b/none").usage(), None);
    }

    #[test]
    fn reads_version_one_beside_an_empty_version_two() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for hierarchy in ["cpu", "cpuacct", "memory", "pids", "unified"] {
            write(root, &format!("{hierarchy}/cgroup.procs"), "");
        }
        write(root, "unified/cgroup.controllers", "hugetlb\n");
        write(root, "unified/b/r/cpu.stat", "usage_usec 9\n");
        write(root, "cpuacct/b/r/cpuacct.usage", "77\n");
        write(
            root,
            "cpu/b/r/cpu.stat",
            "nr_periods 2\nnr_throttled 1\nthrottled_time 5\n",
        );
        write(root, "memory/b/r/memory.usage_in_bytes", "10\n");
        write(
            root,
            "memory/b/r/memory.stat",
            "inactive_file 1\ntotal_inactive_file 4\n",
        );
        write(
            root,
            "memory/b/r/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
        );
        write(root, "pids/b/r/pids.current", "3\n");
        let usage = Cgroup::under(root, "b/r").usage().unwrap();
        let expected = Usage {
            cpu_nanos: 77,
            memory_bytes: 6,
            pids: 3,
            oom_kills: 1,
            throttled_periods: 1,
        };
        assert_eq!(usage, expected);
    }

    #[test]
    fn never_touches_a_root() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "cgroup.controllers", "");
        write(root.path(), "cgroup.procs", "1\n");
        for path in ["", "/", "..", "/a/../..", "a//b"] {
            assert_eq!(Cgroup::under(root.path(), path).kill_all(), 0, "{path:?}");
        }
    }
}
