//! Messages of the keeper's control socket: JSON, one message a packet of a unix SEQPACKET socket, one reply each.
//!
//! Every request is idempotent, so that a client which lost the reply may send it again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::layout::{Limits, RunKey, Stream};

/// Largest message, both ways: 512 bytes of id, 8 KiB of labels and room to spare.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// Largest sum of the lengths of a run's labels.
pub const LABEL_BYTES_MAX: usize = 8 * 1024;

/// What the daemon asks for before it creates a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenRequest {
    pub key: RunKey,
    pub streams: Vec<Stream>,
    #[serde(default)]
    pub limits: Limits,
    /// Kept in `run.json` for people and tools.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

impl OpenRequest {
    /// Both streams with the keeper's default limits.
    #[must_use]
    pub fn new(key: RunKey) -> Self {
        Self {
            key,
            streams: Stream::ALL.to_vec(),
            limits: Limits::default(),
            labels: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    Open(OpenRequest),
    Close { key: RunKey },
    Rotate { key: RunKey },
    Remove { replica: String, run: Option<u32> },
    Stat { key: Option<RunKey> },
    Version,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub(crate) enum Reply {
    Opened { fifos: BTreeMap<Stream, PathBuf> },
    Done,
    Stat(Stat),
    Version { version: String },
    Refused { reason: String },
}

/// Counts of one run or of the whole store. Invariant: `written_bytes = stored_bytes + lost_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stat {
    pub runs_open: u64,
    pub runs_stored: u64,
    pub segments: u64,
    /// Bytes taken from FIFOs since the runs began.
    pub written_bytes: u64,
    pub stored_bytes: u64,
    /// Bytes removed for a quota or discarded on a full disk.
    pub lost_bytes: u64,
    /// Disk use as counted against the quota: files rounded up to 4 KiB.
    pub disk_bytes: u64,
    pub quota_bytes: u64,
}
