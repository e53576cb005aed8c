//! Where the logs of all clusters are kept: one append-only log per cluster, with snapshots that let it be trimmed.
//!
//! Rules that hold for every implementation:
//! - An append is durable when it returns; a record is never changed.
//! - An append names the sequence number it expects to be next. Another writer's append makes it fail ([`StoreError::Fenced`]):
//!   two schedulers can never both extend one history. Sequence numbers begin at 1.
//! - Records are chained: the crc of each covers the crc of the one before, so a record that was changed, lost or put
//!   elsewhere is found when the log is read. What cannot be verified is never overwritten: the start stops.
//! - A snapshot stands for all records up to its sequence number. The two newest snapshots are kept, and the records
//!   after the older one; what is before is deleted, so a log is bounded by two snapshot intervals.
//!
//! [`Sqlite`] is the default, [`Etcd`] the choice for high availability; [`Memory`] serves tests. Every operation is
//! asynchronous and guarded by (cluster, expected next sequence number).

pub(crate) mod crash;
mod etcd;
mod memory;
mod sqlite;
#[cfg(test)]
mod suite;
mod writer;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use berth_api::id::ClusterId;
use futures::future::BoxFuture;

pub use crash::{CRASH_AT, POINTS as CRASH_POINTS};
pub(crate) use etcd::cluster_of_segment;
#[cfg(test)]
pub(crate) use etcd::fixture;
pub use etcd::{COMPACT_PERIOD, Etcd, EtcdOptions, EtcdTls, EtcdUser, Member};
pub(crate) use etcd::{Changes, Claim, Claimed, Lease, OwnerChange, Reserved};
pub use memory::Memory;
pub use sqlite::{Reading, Sqlite};

/// A snapshot is taken after this many records, or after as many as a larger cluster has machines, containers and replicas.
/// Replay applies at most twice as many at start: at about 20 us a record that is 40 ms for 1000.
pub const SNAPSHOT_INTERVAL: u64 = 1000;

/// One entry of a log, in the form it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub seq: u64,
    pub payload: Vec<u8>,
}

/// The state after all records up to `seq`, in the form it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub seq: u64,
    pub payload: Vec<u8>,
}

/// All that is needed to rebuild a cluster: the newest snapshot and every record after it, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    pub snapshot: Option<Snapshot>,
    pub records: Vec<Record>,
    /// What the next append must expect.
    pub next_seq: u64,
}

impl History {
    /// The history of a cluster that has none.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            snapshot: None,
            records: Vec::new(),
            next_seq: 1,
        }
    }
}

/// Why the store could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    #[error("cluster {cluster}, record {seq}: {fault}")]
    Corrupt {
        cluster: ClusterId,
        seq: u64,
        fault: Fault,
    },
    #[error("cluster {cluster}, snapshot at record {seq}: {fault}")]
    CorruptSnapshot {
        cluster: ClusterId,
        seq: u64,
        fault: Fault,
    },
    #[error("store {path} is not what was written, and is left as it is; move it away and restore a backup")]
    Unsound { path: PathBuf, source: Box<StoreError> },
    #[error(
        "store {path} may not be written to; mend its file system or its permissions, and service resumes by itself"
    )]
    ReadOnly { path: PathBuf },
    #[error("store {path}: the file is damaged: {detail}")]
    Damaged { path: PathBuf, detail: String },
    #[error(
        "cluster {cluster}: the next record is {found}, expected was {expected}: another writer was here"
    )]
    Fenced {
        cluster: ClusterId,
        expected: u64,
        found: u64,
    },
    #[error(
        "store {path} is in use by another process; stop the other berth-scheduler or give this one its own data_dir"
    )]
    Locked { path: PathBuf },
    #[error(
        "store {path} was written by a newer version (schema {found}, this program knows {known}); run the newer program"
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("{operation} {path}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: Arc<std::io::Error>,
    },
    #[error("{operation}")]
    Engine {
        operation: &'static str,
        source: Arc<rusqlite::Error>,
    },
    #[error(
        "{store} is used by schedulers with other keys; copy ca.key, ca.pem, platform.key and token-secret from the \
         data_dir of one of them into this one's"
    )]
    OtherKeys { store: String },
    #[error("{store}: a restore has begun here and not ended; run it again")]
    HalfRestored { store: String },
    #[error("{store}: {what}; a restore needs an empty store, so stop what uses it or choose another prefix")]
    InUse { store: String, what: &'static str },
    #[error("cluster {cluster} is not owned by this process, or not any more")]
    NotOwner { cluster: ClusterId },
    #[error(
        "{store}: cannot {operation}: no member answered in time; a majority of them must be up and in reach"
    )]
    Unreachable {
        store: String,
        operation: &'static str,
        source: Arc<etcd_client::Error>,
    },
    #[error("{store}: cannot {operation}: it refuses")]
    Refused {
        store: String,
        operation: &'static str,
        source: Arc<etcd_client::Error>,
    },
    #[error("store {store} is full; {remedy}, and service resumes by itself")]
    Full { store: String, remedy: &'static str },
    #[error("the store did not answer in time")]
    TimedOut,
    #[error("the store has been shut down")]
    Closed,
}

/// What is wrong with a record or snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The bytes are not those that were written.
    Crc,
    /// It is not there though later ones, or the count of records, say that it was written.
    Missing,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Crc => "crc differs",
            Self::Missing => "missing",
        })
    }
}

/// Logs of all clusters. See the module documentation for the rules.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Every cluster that has a history, in order.
    fn clusters(&self) -> BoxFuture<'_, Result<Vec<ClusterId>, StoreError>>;

    /// The history of a cluster, verified; the empty one when the cluster is unknown.
    fn load<'a>(&'a self, cluster: &'a ClusterId) -> BoxFuture<'a, Result<History, StoreError>>;

    /// Appends records at `expected`, all or none; returns the next sequence number once they are durable. The first
    /// append makes the cluster known.
    fn append<'a>(
        &'a self,
        cluster: &'a ClusterId,
        expected: u64,
        payloads: Vec<Vec<u8>>,
    ) -> BoxFuture<'a, Result<u64, StoreError>>;

    /// Keeps the state after all records up to `snapshot.seq` and trims the log behind the snapshot before it.
    /// Fenced like an append: `snapshot.seq` must be the last record.
    fn snapshot<'a>(
        &'a self,
        cluster: &'a ClusterId,
        snapshot: Snapshot,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Makes an unknown cluster known whose history begins with a snapshot: what a restore does.
    fn begin<'a>(
        &'a self,
        cluster: &'a ClusterId,
        snapshot: Snapshot,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Forgets a cluster whose next record is `expected`.
    fn delete<'a>(&'a self, cluster: &'a ClusterId, expected: u64) -> BoxFuture<'a, Result<(), StoreError>>;
}

/// The crc of a record, chained over the one before it.
fn chain(before: u32, seq: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&before.to_le_bytes());
    hasher.update(&seq.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// A stored row: sequence number, crc, payload.
#[derive(Debug, Clone)]
struct Row {
    seq: u64,
    crc: u32,
    payload: Vec<u8>,
}

/// A stored snapshot: its own crc covers `chain`, the crc of the record it ends with.
#[derive(Debug, Clone)]
struct SnapshotRow {
    seq: u64,
    chain: u32,
    crc: u32,
    payload: Vec<u8>,
}

impl SnapshotRow {
    /// The snapshot that a history begins with: there is no record before it to be chained to.
    fn first(snapshot: Snapshot) -> Self {
        Self {
            seq: snapshot.seq,
            chain: 0,
            crc: chain(0, snapshot.seq, &snapshot.payload),
            payload: snapshot.payload,
        }
    }
}

/// What the store says is the end of a cluster's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    next_seq: u64,
    crc: u32,
}

impl Head {
    const START: Self = Self { next_seq: 1, crc: 0 };
}

/// Verifies the rows of one cluster, oldest first, and makes its history of them.
fn verify(
    cluster: &ClusterId,
    head: Head,
    snapshots: Vec<SnapshotRow>,
    rows: Vec<Row>,
) -> Result<History, StoreError> {
    let corrupt = |seq, fault| StoreError::Corrupt {
        cluster: cluster.clone(),
        seq,
        fault,
    };
    let corrupt_snapshot = |seq, fault| StoreError::CorruptSnapshot {
        cluster: cluster.clone(),
        seq,
        fault,
    };
    for snapshot in &snapshots {
        if chain(snapshot.chain, snapshot.seq, &snapshot.payload) != snapshot.crc {
            return Err(corrupt_snapshot(snapshot.seq, Fault::Crc));
        }
    }
    // Records are trimmed behind the older of two snapshots; beside a single one all are still there.
    let first_seq = rows.first().map_or(head.next_seq, |row| row.seq);
    let mut at = match snapshots.as_slice() {
        // One that began with a snapshot never had the records before.
        [only] if first_seq == only.seq + 1 => Head {
            next_seq: first_seq,
            crc: only.chain,
        },
        [] | [_] => Head::START,
        [oldest, ..] => Head {
            next_seq: oldest.seq + 1,
            crc: oldest.chain,
        },
    };
    let newest_seq = snapshots.last().map_or(0, |newest| newest.seq);
    let mut records = Vec::new();
    for row in rows {
        if row.seq != at.next_seq {
            return Err(corrupt(at.next_seq, Fault::Missing));
        }
        at.crc = chain(at.crc, row.seq, &row.payload);
        if at.crc != row.crc {
            return Err(corrupt(row.seq, Fault::Crc));
        }
        at.next_seq += 1;
        if let Some(snapshot) = snapshots.iter().find(|snapshot| snapshot.seq == row.seq)
            && snapshot.chain != at.crc
        {
            return Err(corrupt_snapshot(snapshot.seq, Fault::Crc));
        }
        if row.seq > newest_seq {
            records.push(Record {
                seq: row.seq,
                payload: row.payload,
            });
        }
    }
    if at.next_seq < head.next_seq || at.next_seq <= newest_seq {
        return Err(corrupt(at.next_seq, Fault::Missing));
    }
    if at != head {
        return Err(corrupt(head.next_seq, Fault::Crc));
    }
    Ok(History {
        snapshot: snapshots.into_iter().next_back().map(|snapshot| Snapshot {
            seq: snapshot.seq,
            payload: snapshot.payload,
        }),
        records,
        next_seq: head.next_seq,
    })
}
