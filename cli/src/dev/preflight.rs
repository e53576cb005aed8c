//! What must be there before an instance can start: everything that is missing is told at once.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::layout::STATE_DIR_LEN_MAX;

/// A system program, the Debian package that brings it, and what it is for.
const TOOLS: [(&str, &str, &str); 10] = [
    ("containerd", "containerd", "runs the containers"),
    ("containerd-shim-runc-v2", "containerd", "runs the containers"),
    ("runc", "runc", "runs the containers"),
    ("nft", "nftables", "writes the address translation"),
    ("ip", "iproute2", "joins the machines' networks"),
    (
        "mkfs.ext4",
        "e2fsprogs",
        "makes the replicas' ephemeral file systems",
    ),
    ("losetup", "mount", "holds the replicas' ephemeral file systems"),
    ("umount", "mount", "takes file systems away again"),
    ("nsenter", "util-linux", "enters a machine's network"),
    ("unshare", "util-linux", "makes a machine's network"),
];

/// Magic number of overlayfs (`linux/magic.h`).
const OVERLAYFS_MAGIC: u64 = 0x794c_7630;

/// The programs of Berth that an instance runs.
#[derive(Debug, Clone)]
pub(crate) struct Binaries {
    pub(crate) scheduler: PathBuf,
    pub(crate) berthd: PathBuf,
    pub(crate) keeper: PathBuf,
    pub(crate) containerd: PathBuf,
}

/// The caller's search path, with the system directories that a plain user's lacks.
pub(crate) fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    for directory in ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"] {
        path.push(":");
        path.push(directory);
    }
    path
}

fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path())
        .map(|directory| directory.join(program))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// One of our own programs: beside this one, else on the search path.
pub(crate) fn find_own(program: &str) -> Option<PathBuf> {
    let beside = std::env::current_exe().ok()?.with_file_name(program);
    if is_executable(&beside) {
        return Some(beside);
    }
    find(program)
}

/// The program itself is the check: every fault, or where our programs are.
///
/// # Errors
/// Each fault with how to mend it, one a line.
pub(crate) fn check(state_dir: &Path) -> Result<Binaries, Vec<String>> {
    let mut faults = Vec::new();
    if !rustix::process::geteuid().is_root() {
        faults.push("must run as root: it makes network namespaces, mounts and cgroups; try sudo".to_owned());
    }
    let mut packages = Vec::new();
    for (program, package, purpose) in TOOLS {
        if find(program).is_none() {
            faults.push(format!("{program} is not installed; it {purpose}"));
            if !packages.contains(&package) {
                packages.push(package);
            }
        }
    }
    if !packages.is_empty() {
        faults.push(format!(
            "on Debian and Ubuntu: apt-get install {}",
            packages.join(" ")
        ));
    }
    faults.extend(check_state_dir(state_dir));
    let mut own = |program: &str| {
        let found = find_own(program);
        if found.is_none() {
            faults.push(format!(
                "{program} is neither beside this program nor on the search path; build it with: cargo build"
            ));
        }
        found.unwrap_or_default()
    };
    let binaries = Binaries {
        scheduler: own("berth-scheduler"),
        berthd: own("berthd"),
        keeper: own("berth-logkeeper"),
        containerd: find("containerd").unwrap_or_default(),
    };
    if faults.is_empty() {
        Ok(binaries)
    } else {
        Err(faults)
    }
}

fn check_state_dir(state_dir: &Path) -> Vec<String> {
    let mut faults = Vec::new();
    let shown = state_dir.display();
    if !state_dir.is_absolute() {
        faults.push(format!("the state directory {shown} must be an absolute path"));
    }
    if state_dir.as_os_str().len() > STATE_DIR_LEN_MAX {
        faults.push(format!(
            "the state directory {shown} has more than {STATE_DIR_LEN_MAX} characters, too many for the sockets in it; \
             choose a shorter --state-dir"
        ));
    }
    if state_dir.to_string_lossy().contains(|c: char| c.is_whitespace()) {
        faults.push(format!(
            "the state directory {shown} must have no blanks in its path"
        ));
    }
    let existing = state_dir.ancestors().find(|path| path.exists());
    if let Some(existing) = existing
        && is_overlay(existing)
    {
        faults.push(format!(
            "the state directory {shown} lies on overlayfs, which cannot hold container images; choose a --state-dir on \
             a disk or on tmpfs (in a container: a volume, or /dev/shm/berth)"
        ));
    }
    faults
}

fn is_overlay(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|facts| u64::try_from(facts.f_type) == Ok(OVERLAYFS_MAGIC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_state_directory_gives_every_fault() {
        let faults = check_state_dir(Path::new(&format!("relative {}", "x".repeat(80))));
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(check_state_dir(Path::new("/var/lib/berth-dev")).len() <= 1);
    }

    #[test]
    fn finds_programs_on_the_search_path() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-anywhere").is_none());
    }
}
