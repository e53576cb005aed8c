//! Shims that keep containerd from starting: it asks each one that it finds, one after the other, and waits for those that do not
//! answer; with some releases for ever.
//!
//! Looked for while containerd is away for long. A shim is ended only when it is mute and nothing of its task runs: then it has no
//! duty but to say how the task ended, which it no longer can. containerd clears a dead shim's bundle away as it starts. A shim that
//! answers keeps its task's exit code, and a mute one with a living task keeps that running until containerd is there to judge it.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use super::shim;
use crate::host::cgroup::Cgroup;

/// What containerd itself gives a shim to answer when it starts.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a ttrpc message: length, stream, type, flags.
const REQUEST: u8 = 1;

/// What was found in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Leftover {
    /// Nothing of its task ran: killed.
    Ended { id: String },
    /// Its task runs: left alone.
    Mute { id: String },
}

/// Ends the mute shims of dead tasks of `namespace` in the containerd at `socket`, and names those that are only mute. Blocking: up to
/// five seconds for each mute shim.
pub(super) fn end_mute(namespace: &str, socket: &Path) -> Vec<Leftover> {
    let mut found = Vec::new();
    for (pid, id) in shim::all(namespace, socket) {
        // The shim works in its bundle.
        let Ok(bundle) = fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())) else {
            continue;
        };
        if !is_mute(&bundle) {
            continue;
        }
        match has_living_task(&bundle) {
            Some(false) => {
                // An error means that it is gone: what we want.
                kill_process(pid, Signal::KILL).ok();
                found.push(Leftover::Ended { id });
            }
            Some(true) => found.push(Leftover::Mute { id }),
            // Nothing is known of its task: nothing is ended.
            None => {}
        }
    }
    found
}

/// Whether anything runs in the cgroup that the bundle names; None when it names none.
fn has_living_task(bundle: &Path) -> Option<bool> {
    let spec = fs::read(bundle.join("config.json")).ok()?;
    let spec: serde_json::Value = serde_json::from_slice(&spec).ok()?;
    let path = spec.pointer("/linux/cgroupsPath")?.as_str()?;
    Some(Cgroup::at(path).processes().into_iter().any(is_living))
}

/// Not one that has ended and waits for its parent, which a stopped shim keeps waiting.
fn is_living(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The program's name, in parentheses, may hold anything: what follows its end is regular.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Whether nothing comes back on a shim's socket, whatever the answer.
fn is_mute(bundle: &Path) -> bool {
    let Ok(address) = fs::read_to_string(bundle.join("address")) else {
        return false;
    };
    let Some(path) = address.trim().strip_prefix("unix://") else {
        return false;
    };
    let ask = || -> io::Result<()> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        stream.write_all(&question())?;
        stream.read_exact(&mut [0])
    };
    // A socket that nobody holds is no shim that could keep anybody waiting.
    ask().is_err_and(|error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
}

/// A ttrpc request that every shim answers, one that does not know it with an error.
fn question() -> Vec<u8> {
    let mut payload = Vec::new();
    for (field, text) in [(1_u8, "containerd.task.v2.Task"), (2, "Connect")] {
        // Field number and wire type 2, then the length: both texts are below 128 bytes.
        payload.extend([field << 3 | 2, u8::try_from(text.len()).unwrap_or(0)]);
        payload.extend(text.as_bytes());
    }
    let length = u32::try_from(payload.len()).unwrap_or(0);
    let mut message = Vec::new();
    message.extend(length.to_be_bytes());
    message.extend(1_u32.to_be_bytes());
    message.extend([REQUEST, 0]);
    message.extend(payload);
    message
}
