//! Where things lie in the store, and the only code that builds these names.
//!
//! ```text
//! <store>/lock                                  held by the one keeper of the store
//! <store>/<replica>/<run>/run.json              what was opened, with which limits, since when, closed when
//! <store>/<replica>/<run>/<stream>.fifo         while the run is open
//! <store>/<replica>/<run>/<stream>.<segment>.log   bytes exactly as written
//! <store>/<replica>/<run>/<stream>.<segment>.idx   see `record`
//! ```
//!
//! `<replica>` is the replica id with every byte outside `A-Za-z0-9_.-` (and a leading dot) as `%XX`; an id that would
//! be longer than 200 bytes keeps its first 160 and a hash behind `~`. `<run>` and `<segment>` are decimal, segments
//! with ten digits and from 1.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const NAME_BYTES_MAX: usize = 200;
const NAME_BYTES_KEPT: usize = 160;
const META: &str = "run.json";

/// One of the two streams of a container. With a terminal there is only `Stdout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    /// Both, in order.
    pub const ALL: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// The word used in names and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Stdout => 0,
            Self::Stderr => 1,
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One incarnation of a replica: its id and a number that rises with each restart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunKey {
    pub replica: String,
    pub run: u32,
}

impl RunKey {
    /// A key from its parts.
    #[must_use]
    pub fn new(replica: impl Into<String>, run: u32) -> Self {
        Self {
            replica: replica.into(),
            run,
        }
    }
}

impl fmt::Display for RunKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} run {}", self.replica, self.run)
    }
}

/// Limits of one run. Zero stands for the keeper's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// A segment is closed at this size; at most a quarter of the run's quota.
    pub segment_bytes: u64,
    /// Disk use of all segments of the run.
    pub run_bytes: u64,
    /// Size of the FIFO's buffer in the kernel.
    pub pipe_bytes: u32,
}

/// What `run.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunMeta {
    pub(crate) schema: u32,
    pub(crate) key: RunKey,
    pub(crate) streams: Vec<Stream>,
    #[serde(default)]
    pub(crate) limits: Limits,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) opened_ms: u64,
    #[serde(default)]
    pub(crate) closed_ms: Option<u64>,
}

impl RunMeta {
    pub(crate) fn read(run_dir: &Path) -> io::Result<Self> {
        let bytes = fs::read(run_dir.join(META))?;
        serde_json::from_slice(&bytes).map_err(io::Error::from)
    }

    /// Replaces the file as a whole: a reader sees the old one or the new one.
    pub(crate) fn write(&self, run_dir: &Path) -> io::Result<()> {
        let part = run_dir.join("run.json.part");
        let bytes = serde_json::to_vec(self).map_err(io::Error::from)?;
        let mut file = private_file()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&part)?;
        file.write_all(&bytes)?;
        fs::rename(&part, run_dir.join(META))
    }
}

/// Files of the store are for root alone.
pub(crate) fn private_file() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.mode(0o600);
    options
}

pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

pub(crate) fn replica_dir(store: &Path, replica: &str) -> PathBuf {
    store.join(escape(replica))
}

pub(crate) fn run_dir(store: &Path, key: &RunKey) -> PathBuf {
    replica_dir(store, &key.replica).join(key.run.to_string())
}

pub(crate) fn fifo_path(run_dir: &Path, stream: Stream) -> PathBuf {
    run_dir.join(format!("{stream}.fifo"))
}

pub(crate) fn log_path(run_dir: &Path, stream: Stream, segment: u64) -> PathBuf {
    run_dir.join(format!("{stream}.{segment:010}.log"))
}

pub(crate) fn index_path(run_dir: &Path, stream: Stream, segment: u64) -> PathBuf {
    run_dir.join(format!("{stream}.{segment:010}.idx"))
}

/// The directory name of a replica.
#[must_use]
pub fn escape(replica: &str) -> String {
    let mut name = String::with_capacity(replica.len());
    for (place, byte) in replica.bytes().enumerate() {
        let plain =
            byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') || (byte == b'.' && place > 0);
        if plain {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    if name.len() > NAME_BYTES_MAX {
        name.truncate(NAME_BYTES_KEPT);
        name.push_str(&format!("~{:016x}", fnv1a(replica.as_bytes())));
    }
    name
}

/// 64-bit FNV-1a: stable for ever, unlike the standard hasher. A collision is refused at open by `run.json`.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Which files a stream has, by segment number, ascending.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct SegmentFiles {
    pub(crate) logs: Vec<u64>,
    pub(crate) indexes: Vec<u64>,
}

/// Lists the segments of one stream; an absent directory has none.
pub(crate) fn list_segments(run_dir: &Path, stream: Stream) -> io::Result<SegmentFiles> {
    let mut files = SegmentFiles::default();
    let entries = match fs::read_dir(run_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let name = entry?.file_name();
        let Some(rest) = name
            .to_str()
            .and_then(|name| name.strip_prefix(stream.name()))
            .and_then(|rest| rest.strip_prefix('.'))
        else {
            continue;
        };
        if let Some(number) = rest.strip_suffix(".log").and_then(|number| number.parse().ok()) {
            files.logs.push(number);
        } else if let Some(number) = rest.strip_suffix(".idx").and_then(|number| number.parse().ok()) {
            files.indexes.push(number);
        }
    }
    files.logs.sort_unstable();
    files.indexes.sort_unstable();
    Ok(files)
}

/// The run numbers stored for one replica, ascending.
pub(crate) fn list_runs(replica_dir: &Path) -> io::Result<Vec<u32>> {
    let mut runs = Vec::new();
    let entries = match fs::read_dir(replica_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(runs),
        Err(error) => return Err(error),
    };
    for entry in entries {
        runs.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok()),
        );
    }
    runs.sort_unstable();
    Ok(runs)
}

/// Every run directory of the store, in order of names; what is no run is passed over.
pub(crate) fn list_run_dirs(store: &Path) -> io::Result<Vec<PathBuf>> {
    let mut replicas: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(store)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            replicas.push(entry.path());
        }
    }
    replicas.sort();
    let mut dirs = Vec::new();
    for replica in replicas {
        dirs.extend(
            list_runs(&replica)?
                .into_iter()
                .map(|run| replica.join(run.to_string())),
        );
    }
    Ok(dirs)
}

/// Every run that the store holds, open or closed, as written in its `run.json`.
///
/// # Errors
/// When the store's directory cannot be listed. Runs whose `run.json` cannot be read are left out.
pub fn stored_runs(store: &Path) -> io::Result<Vec<RunKey>> {
    Ok(list_run_dirs(store)?
        .iter()
        .filter_map(|dir| RunMeta::read(dir).ok())
        .map(|meta| meta.key)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_and_bounded() {
        assert_eq!(escape("writer-0"), "writer-0");
        assert_eq!(escape("../a/b"), "%2E.%2Fa%2Fb");
        assert_eq!(escape("a~b"), "a%7Eb");
        let long = escape(&"é".repeat(500));
        assert!(long.len() <= NAME_BYTES_MAX, "{}", long.len());
        assert_ne!(long, escape(&"é".repeat(499)));
    }

    #[test]
    fn lists_segments_in_order_and_skips_strangers() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "stdout.0000000010.log",
            "stdout.0000000002.log",
            "stdout.0000000002.idx",
            "stderr.0000000001.log",
            "x",
        ] {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        let files = list_segments(dir.path(), Stream::Stdout).unwrap();
        assert_eq!(files.logs, [2, 10]);
        assert_eq!(files.indexes, [2]);
    }
}
