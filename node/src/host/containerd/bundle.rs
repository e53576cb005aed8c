//! Bundles: the directories in which containerd keeps what a task runs on. A containerd that was killed while it made one may leave it
//! behind without a task, and refuses the id from then on: `mkdir ..: file exists`.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::RuntimeError;

/// The directory of all bundles of a namespace, below containerd's state: the same from 1.4 to 2.x.
const TASKS: &str = "io.containerd.runtime.v2.task";
/// More mounts than this on one place are not taken away.
const MOUNTS_MAX: u32 = 16;

/// The bundle that an error names as being in the way of a new task of this id.
pub(super) fn in_the_way(error: &RuntimeError, namespace: &str, id: &str) -> Option<PathBuf> {
    let RuntimeError::Failed { message, .. } = error else {
        return None;
    };
    let (_, rest) = message.rsplit_once("mkdir ")?;
    let (path, _) = rest.split_once(": file exists")?;
    let path = PathBuf::from(path);
    let is_plain = path.is_absolute()
        && path
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let own = Path::new(TASKS).join(namespace).join(id);
    (is_plain && path.ends_with(own)).then_some(path)
}

/// Removes a bundle of which no task and no shim is left: first what is mounted in it, then the directory. What its links point to
/// stays; containerd replaces that itself.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.is_dir() {
        return Err(io::Error::other("it is no directory"));
    }
    let rootfs = path.join("rootfs");
    for _ in 0..MOUNTS_MAX {
        match unmount(&rootfs, UnmountFlags::DETACH) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let is_below = |line: &str| {
        line.split(' ')
            .nth(4)
            .is_some_and(|place| Path::new(place).starts_with(path))
    };
    if mounts.lines().any(is_below) {
        return Err(io::Error::other("something is mounted in it"));
    }
    fs::remove_dir_all(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_bundle_is_in_the_way() {
        let failed = |message: &str| RuntimeError::Failed {
            operation: "create task",
            object: "web-1".into(),
            message: message.into(),
        };
        let own = "/run/containerd/io.containerd.runtime.v2.task/berth/web-1";
        let message = format!("failed to start shim: mkdir {own}: file exists");
        assert_eq!(in_the_way(&failed(&message), "berth", "web-1"), Some(own.into()));
        assert_eq!(in_the_way(&failed(&message), "berth", "web-2"), None);
        assert_eq!(in_the_way(&failed(&message), "other", "web-1"), None);
        for other in [
            "mkdir /etc: file exists",
            "mkdir io.containerd.runtime.v2.task/berth/web-1: file exists",
            "mkdir /run/../x/io.containerd.runtime.v2.task/berth/web-1: file exists",
            "mkdir /run/io.containerd.runtime.v2.task/berth/web-1: no space left on device",
            "no such program",
        ] {
            assert_eq!(in_the_way(&failed(other), "berth", "web-1"), None, "{other}");
        }
    }

    #[test]
    fn a_bundle_goes_and_what_its_links_name_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (bundle, work) = (dir.path().join("bundle"), dir.path().join("work"));
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        fs::create_dir(&work).unwrap();
        fs::write(work.join("kept"), "").unwrap();
        std::os::unix::fs::symlink(&work, bundle.join("work")).unwrap();
        // Without the right to unmount there is nothing mounted either.
        if rustix::process::geteuid().is_root() {
            remove(&bundle).unwrap();
            assert!(!bundle.exists() && work.join("kept").exists());
        }
        assert!(remove(&work.join("kept")).is_err());
    }
}
