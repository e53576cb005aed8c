//! Where a development instance keeps its files. All of it lies under one directory, so that one sweep removes it.

use std::path::{Path, PathBuf};

/// The state directory unless `--state-dir` says otherwise.
pub(crate) const DEFAULT_STATE_DIR: &str = "/var/lib/berth-dev";
/// One file per instance of this host: its name is the instance id, its content the state directory.
pub(crate) const REGISTRY_DIR: &str = "/run/berth-dev";
/// A unix socket's path holds 107 bytes; the longest one below the state directory takes 44.
pub(crate) const STATE_DIR_LEN_MAX: usize = 60;

/// Paths of one instance.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub(crate) fn record(&self) -> PathBuf {
        self.root.join("dev.json")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(crate) fn control_socket(&self) -> PathBuf {
        self.root.join("run/control.sock")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub(crate) fn tokens(&self) -> PathBuf {
        self.root.join("tokens")
    }

    pub(crate) fn netns_dir(&self) -> PathBuf {
        self.root.join("run/netns")
    }

    pub(crate) fn netns(&self, machine: &str) -> PathBuf {
        self.netns_dir().join(machine)
    }

    pub(crate) fn containerd_dir(&self) -> PathBuf {
        self.root.join("containerd")
    }

    pub(crate) fn containerd_socket(&self) -> PathBuf {
        self.root.join("run/containerd.sock")
    }

    /// containerd's run-time state: bundles and their shim addresses.
    pub(crate) fn containerd_state(&self) -> PathBuf {
        self.root.join("run/containerd")
    }

    pub(crate) fn scheduler_dir(&self) -> PathBuf {
        self.root.join("scheduler")
    }

    /// The only directory below which volumes of platform `local` lie; every machine sees it.
    pub(crate) fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    pub(crate) fn machine(&self, name: &str) -> PathBuf {
        self.root.join("machines").join(name)
    }

    /// The programs of a machine as they are started: links, which an upgrade replaces.
    pub(crate) fn program_dir(&self, machine: &str) -> PathBuf {
        self.machine(machine).join("programs")
    }

    pub(crate) fn keeper_socket(&self, machine: &str) -> PathBuf {
        self.root.join("run").join(format!("{machine}-keeper.sock"))
    }

    /// Where berthd tells its supervisor which sockets to keep.
    pub(crate) fn notify_socket(&self, machine: &str) -> PathBuf {
        self.root.join("run").join(format!("{machine}-notify.sock"))
    }

    /// berthd's sockets and network namespaces.
    pub(crate) fn run_dir(&self, machine: &str) -> PathBuf {
        self.root.join("run").join(machine)
    }

    pub(crate) fn log_of(&self, program: &str) -> PathBuf {
        self.logs().join(format!("{program}.log"))
    }

    /// Every directory that must exist before a process starts.
    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        vec![
            self.root.clone(),
            self.root.join("run"),
            self.logs(),
            self.tokens(),
            self.netns_dir(),
            self.containerd_dir(),
            self.scheduler_dir(),
            self.volumes(),
        ]
    }
}

/// Whether `path` lies below `directory`, or is it.
pub(crate) fn is_below(path: &Path, directory: &Path) -> bool {
    path.starts_with(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_paths_fit_into_a_socket_address() {
        let layout = Layout::new("x".repeat(STATE_DIR_LEN_MAX));
        for socket in [
            layout.control_socket(),
            layout.containerd_socket(),
            layout.keeper_socket("m200"),
        ] {
            // containerd adds `.ttrpc` to the path of its own.
            assert!(socket.as_os_str().len() + ".ttrpc".len() < 108, "{socket:?}");
        }
    }

    #[test]
    fn below_compares_whole_names() {
        assert!(is_below(Path::new("/a/b/c"), Path::new("/a/b")));
        assert!(!is_below(Path::new("/a/bc"), Path::new("/a/b")));
    }
}
