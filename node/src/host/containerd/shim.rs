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

/// Every shim of `namespace` of the containerd at `socket`, with its container's id.
pub(super) fn all(namespace: &str, socket: &Path) -> Vec<(Pid, String)> {
    let processes = fs::read_dir("/proc").into_iter().flatten();
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let id = option(&line, b"-id")?.to_owned();
            let id = String::from_utf8(id).ok()?;
            (serves(&line, namespace, &id, socket)).then_some((Pid::from_raw(pid)?, id))
        })
        .collect()
}

/// What follows an option on a command line.
fn option<'a>(command_line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let mut arguments = command_line.split(|byte| *byte == 0);
    arguments.find(|argument| *argument == name)?;
    arguments.next()
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
    let program = command_line.split(|byte| *byte == 0).next().unwrap_or_default();
    program.windows(15).any(|part| part == b"containerd-shim")
        && option(command_line, b"-namespace") == Some(namespace.as_bytes())
        && option(command_line, b"-id") == Some(id.as_bytes())
        && option(command_line, b"-address") == Some(socket.as_os_str().as_bytes())
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
