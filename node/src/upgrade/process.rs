//! The processes of a machine's programs: who answers, of which file it is, and how it is ended.

use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use berth_api::time::monotonic;
use berth_collector::logs::client::KeeperClient;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::Program;
use crate::config::Config;
use crate::link::words;
use crate::status::{Part, Status};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What a preflight may say.
const OUTPUT_BYTES_MAX: u64 = 64 << 10;

/// A program that answers.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) pid: Pid,
    /// Device and inode of the file that it is.
    file: Option<(u64, u64)>,
    /// Why it is not ready.
    pub(super) fault: Option<String>,
}

impl Seen {
    /// Whether it is the program in this file.
    pub(super) fn is_of(&self, path: &Path) -> bool {
        self.file.is_some() && self.file == file_of(path)
    }
}

fn file_of(path: &Path) -> Option<(u64, u64)> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

fn exe_of(pid: Pid) -> Option<(u64, u64)> {
    file_of(Path::new(&format!("/proc/{}/exe", pid.as_raw_nonzero())))
}

/// Asks a program through its socket; the kernel says whose the socket is.
pub(super) fn see(config: &Config, program: Program) -> Result<Seen, String> {
    let (pid, fault) = match program {
        Program::Berthd => ask_daemon(&config.status_socket())?,
        Program::BerthLogkeeper => (ask_keeper(&config.keeper_socket)?, None),
    };
    Ok(Seen {
        pid,
        file: exe_of(pid),
        fault,
    })
}

fn ask_keeper(socket: &Path) -> Result<Pid, String> {
    let client = KeeperClient::connect(socket, ANSWER_TIMEOUT).map_err(|error| words(&error))?;
    client
        .pid()
        .ok_or_else(|| "the kernel does not say whose the keeper's socket is".into())
}

fn ask_daemon(socket: &Path) -> Result<(Pid, Option<String>), String> {
    let silent = |error: std::io::Error| format!("no daemon answers at {}: {error}", socket.display());
    let mut stream = UnixStream::connect(socket).map_err(silent)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(silent)?;
    let peer = rustix::net::sockopt::socket_peercred(&stream);
    let pid = peer.map_err(|error| silent(error.into()))?.pid;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(silent)?;
    let status: Status = serde_json::from_str(&text)
        .map_err(|error| format!("the daemon's status cannot be read: {error}"))?;
    Ok((pid, not_ready(&status)))
}

/// Why a daemon is not ready and acknowledged: it has read the machine, every part of it works, and the scheduler has taken it in.
fn not_ready(status: &Status) -> Option<String> {
    if !status.snapshot.observed {
        return Some("the daemon has not read the machine yet".into());
    }
    // A disk that replicas have filled says nothing about a version of this program.
    let mut parts = status.machine.subsystems.iter();
    let ill = parts.find(|part| !part.ok && part.name != Part::Disk.name())?;
    Some(format!("{} does not work: {}", ill.name, ill.reason))
}

/// Every process that was started by this path, this one and those that are the program in the file `but` left out. One that a script
/// is has the interpreter before the path.
pub(super) fn started_from(path: &Path, but: &Path) -> Vec<Pid> {
    let but = file_of(but);
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_it = |pid: &Pid| {
        let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let place = words
            .iter()
            .take(2)
            .position(|word| *word == path.as_os_str().as_bytes());
        // The service has options only: what is followed by the name of a subcommand, also below `sudo`, is somebody's look or this upgrade.
        let named = place.is_some_and(|place| {
            let next = words.get(place + 1).copied().unwrap_or_default();
            next.is_empty() || next.starts_with(b"-")
        });
        named && *pid != rustix::process::getpid() && exe_of(*pid) != but
    };
    entries
        .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
        .filter(is_it)
        .collect()
}

/// Ends a process: SIGTERM, and SIGKILL to one that does not hear it.
pub(super) fn end(pid: Pid, within: Duration) {
    // Held, so that a number that is used again is not taken for it. One that cannot be held has ended.
    let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    for (signal, within) in [(Signal::TERM, within), (Signal::KILL, within)] {
        if rustix::process::pidfd_send_signal(&process, signal).is_err() {
            return;
        }
        let end = monotonic() + within;
        while monotonic() < end {
            // Signal 0 would do but for zombies, which have no program any more.
            if exe_of(pid).is_none() {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// What a program says that has to end well and in time.
pub(super) fn output(command: &mut Command, within: Duration) -> Result<String, String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("it cannot be started: {error}"))?;
    let readers = [child.stdout.take().map(read), child.stderr.take().map(read)];
    let end = monotonic() + within;
    let ended = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Ok(status),
            Ok(None) if monotonic() < end => std::thread::sleep(LOOK_EVERY),
            Ok(None) => break Err(format!("it did not end within {} s", within.as_secs())),
            Err(error) => break Err(format!("it cannot be awaited: {error}")),
        }
    };
    if ended.is_err() {
        drop(child.kill());
        drop(child.wait());
    }
    let mut said = String::new();
    for reader in readers.into_iter().flatten() {
        said.push_str(&reader.join().unwrap_or_default());
    }
    match ended {
        Ok(status) if status.success() => Ok(said),
        Ok(status) => Err(format!("it ended with {status}: {}", said.trim())),
        Err(why) => Err(format!("{why}: {}", said.trim())),
    }
}

/// Reads beside the wait, so that a program that says much does not hang.
fn read(from: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What could not be read is missing in a message for people.
        drop(from.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
