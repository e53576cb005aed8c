//! What the daemon says of itself: one immutable snapshot, read by the link, the status socket and the watchdog.
//!
//! Input: snapshots from [`crate::reconcile`], verdicts from whoever owns a subsystem. Output: JSON to everybody who
//! connects to the unix socket; it is read-only, nothing is taken from a connection. No lock is shared with the work.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_api::assignment::Digest;
use berth_api::id::{ClusterId, MachineId, ReplicaId};
use berth_api::machine::{MachineHealth, Subsystem};
use berth_api::replica::ReplicaStatus;
use berth_api::time::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::watchdog::{BEAT_EVERY, Pulse};

/// A reader of the socket that does not take the snapshot within this is dropped.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// A part of the daemon that can be ill by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Runtime,
    Network,
    Dns,
    Keeper,
    /// What the daemon itself keeps.
    Storage,
    /// Room for images and for what replicas write.
    Disk,
    Link,
    /// The daemon's own loops; see [`crate::watchdog`].
    Loops,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; 8] = [
        Self::Runtime,
        Self::Network,
        Self::Dns,
        Self::Keeper,
        Self::Storage,
        Self::Disk,
        Self::Link,
        Self::Loops,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Runtime => "runtime",
            Self::Network => "network",
            Self::Dns => "dns",
            Self::Keeper => "keeper",
            Self::Storage => "storage",
            Self::Disk => "disk",
            Self::Link => "link",
            Self::Loops => "loops",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    fault: Option<String>,
    since: Timestamp,
}

/// Why a part does not work yet.
pub(crate) const STARTING: &str = "starting";

/// The verdicts of all parts. Cheap to write and to read; nobody waits on it.
#[derive(Debug, Default)]
pub struct Verdicts {
    parts: Mutex<BTreeMap<Part, Verdict>>,
}

impl Verdicts {
    /// Every part as "starting".
    #[must_use]
    pub fn new() -> Arc<Self> {
        let verdicts = Self::default();
        for part in Part::ALL {
            verdicts.set(part, Err(STARTING.into()));
        }
        Arc::new(verdicts)
    }

    /// Records how a part is. Logs a change, once.
    pub fn set(&self, part: Part, verdict: Result<(), String>) {
        let fault = verdict.err();
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let old = parts.get(&part);
        let changed_side = old.is_none_or(|old| old.fault.is_some() != fault.is_some());
        let since = old
            .filter(|_| !changed_side)
            .map_or_else(Timestamp::now, |old| old.since);
        if changed_side && old.is_some() {
            match &fault {
                Some(reason) => tracing::warn!(subsystem = part.name(), reason, "a subsystem is impaired"),
                None => tracing::info!(subsystem = part.name(), "a subsystem works"),
            }
        }
        parts.insert(part, Verdict { fault, since });
    }

    /// The machine's health for the scheduler.
    #[must_use]
    pub fn health(&self) -> MachineHealth {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let subsystem = |(part, verdict): (&Part, &Verdict)| Subsystem {
            name: part.name().to_owned(),
            ok: verdict.fault.is_none(),
            reason: verdict.fault.clone().unwrap_or_default(),
            since: verdict.since,
        };
        MachineHealth {
            subsystems: parts.iter().map(subsystem).collect(),
        }
    }
}

/// The state of the node at one instant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    pub cluster_id: ClusterId,
    pub machine_id: MachineId,
    /// Of the daemon.
    pub version: String,
    pub boot_id: String,
    pub epoch: u64,
    pub generation: u64,
    /// Of the assignment set; as text, 64 hexadecimal digits.
    #[serde(with = "digest_text")]
    pub digest: Digest,
    /// The local database was lost and has been rebuilt from the runtime.
    pub state_rebuilt: bool,
    /// The machine has been read at least once.
    pub observed: bool,
    pub replicas: Vec<ReplicaStatus>,
    pub unlisted: Vec<ReplicaId>,
    pub running: Vec<ReplicaId>,
    pub taken_at: Timestamp,
}

mod digest_text {
    use berth_api::assignment::Digest;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(digest)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// The document that the status socket gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    #[serde(flatten)]
    pub snapshot: Snapshot,
    pub machine: MachineHealth,
    pub now: Timestamp,
}

impl Status {
    /// No subsystem is impaired.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.machine.subsystems.iter().all(|part| part.ok)
    }
}

/// Serves the snapshot on a unix socket until cancelled. One reader at a time; each is written to within a deadline.
///
/// # Errors
/// When the socket cannot be bound.
pub async fn serve(
    path: &Path,
    snapshots: &watch::Receiver<Arc<Snapshot>>,
    verdicts: &Verdicts,
    pulse: &Pulse,
    cancel: &CancellationToken,
) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    loop {
        pulse.beat();
        // All arms are cancel-safe: accepting takes a connection or does nothing.
        let (mut stream, _) = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(BEAT_EVERY) => continue,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(error = %error, "cannot take a reader of the status");
                    tokio::time::sleep(WRITE_TIMEOUT).await;
                    continue;
                }
            },
        };
        let snapshot = snapshots.borrow().clone();
        let document = Status {
            snapshot: Snapshot::clone(&snapshot),
            machine: verdicts.health(),
            now: Timestamp::now(),
        };
        let mut text =
            serde_json::to_vec(&document).expect("a snapshot has text keys and no failing serialiser");
        text.push(b'\n');
        let write = async {
            stream.write_all(&text).await?;
            stream.shutdown().await
        };
        if let Ok(Err(error)) = tokio::time::timeout(WRITE_TIMEOUT, write).await {
            tracing::debug!(error = %error, "a reader of the status went away");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_moves_only_when_the_side_changes() {
        let verdicts = Verdicts::new();
        verdicts.set(Part::Link, Ok(()));
        let since = |verdicts: &Verdicts| {
            verdicts
                .health()
                .subsystems
                .into_iter()
                .find(|part| part.name == "link")
                .unwrap()
        };
        let before = since(&verdicts);
        assert!(before.ok);
        verdicts.set(Part::Link, Ok(()));
        assert_eq!(since(&verdicts).since, before.since);
        verdicts.set(Part::Link, Err("gone".into()));
        let after = since(&verdicts);
        assert_eq!((after.ok, after.reason.as_str()), (false, "gone"));
    }
}
