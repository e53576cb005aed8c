//! Shim processes, found by their command line: what containerd can no longer tell to go is killed from here.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// The shims that serve container `id` in `namespace` of the containerd at `socket`.
pub(super) fn find(namespace: &str, id: &str, socket: &Path) -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| serves(&line, namespace, id, socket))
        })
        .filter_map(Pid::from_raw)
        .collect()
}

/// Kills the shims of a container. Returns how many there were.
pub(super) fn kill(namespace: &str, id: &str, socket: &Path) -> usize {
    let shims = find(namespace, id, socket);
    for pid in &shims {
        // An error means that it is gone: what we want.
        kill_process(*pid, Signal::KILL).ok();
    }
    shims.len()
}

fn serves(command_line: &[u8], namespace: &str, id: &str, socket: &Path) -> bool {
    let arguments: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let Some((program, arguments)) = arguments.split_first() else {
        return false;
    };
    let option = |name: &[u8]| {
        arguments
            .windows(2)
            .find(|pair| pair[0] == name)
            .map(|pair| pair[1])
    };
    program.windows(15).any(|part| part == b"containerd-shim")
        && option(b"-namespace") == Some(namespace.as_bytes())
        && option(b"-id") == Some(id.as_bytes())
        && option(b"-address") == Some(socket.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_a_shim_by_namespace_id_and_address() {
        let line =
            b"/usr/bin/containerd-shim-runc-v2\0-namespace\0m1\0-id\0reader-1\0-address\0/run/c.sock\0";
        let socket = Path::new("/run/c.sock");
        assert!(serves(line, "m1", "reader-1", socket));
        assert!(!serves(line, "m1", "reader-10", socket));
        assert!(!serves(line, "m2", "reader-1", socket));
        assert!(!serves(line, "m1", "reader-1", Path::new("/run/other.sock")));
        assert!(!serves(
            b"/bin/grep\0-namespace\0m1\0-id\0reader-1\0",
            "m1",
            "reader-1",
            socket
        ));
        assert!(!serves(b"", "m1", "reader-1", socket));
    }
}
