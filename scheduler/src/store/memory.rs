//! A store that lives as long as its last handle: for tests. Clones share their content, so that a scheduler can be
//! started again on what its predecessor wrote.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_api::id::ClusterId;
use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::{Head, History, Row, Snapshot, SnapshotRow, Store, StoreError, chain, verify};

#[derive(Debug, Default)]
struct Log {
    next_seq: u64,
    crc: u32,
    rows: Vec<Row>,
    snapshots: Vec<SnapshotRow>,
}

/// See the module documentation.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    logs: Arc<Mutex<BTreeMap<ClusterId, Log>>>,
}

impl Memory {
    fn logs(&self) -> MutexGuard<'_, BTreeMap<ClusterId, Log>> {
        // Every change under this lock is complete before the next may panic.
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append_now(
        &self,
        cluster: &ClusterId,
        expected: u64,
        payloads: Vec<Vec<u8>>,
    ) -> Result<u64, StoreError> {
        let mut logs = self.logs();
        let found = logs.get(cluster).map_or(1, |log| log.next_seq);
        fence(cluster, expected, found)?;
        let log = logs.entry(cluster.clone()).or_insert_with(|| Log {
            next_seq: 1,
            ..Log::default()
        });
        for payload in payloads {
            log.crc = chain(log.crc, log.next_seq, &payload);
            log.rows.push(Row {
                seq: log.next_seq,
                crc: log.crc,
                payload,
            });
            log.next_seq += 1;
        }
        Ok(log.next_seq)
    }

    fn snapshot_now(&self, cluster: &ClusterId, snapshot: Snapshot) -> Result<(), StoreError> {
        let mut logs = self.logs();
        let found = logs.get(cluster).map_or(1, |log| log.next_seq);
        fence(cluster, snapshot.seq + 1, found)?;
        let Some(log) = logs.get_mut(cluster) else {
            return Ok(());
        };
        log.snapshots.retain(|older| older.seq != snapshot.seq);
        log.snapshots.push(SnapshotRow {
            seq: snapshot.seq,
            chain: log.crc,
            crc: chain(log.crc, snapshot.seq, &snapshot.payload),
            payload: snapshot.payload,
        });
        let excess = log.snapshots.len().saturating_sub(2);
        log.snapshots.drain(..excess);
        if let [older, _] = log.snapshots.as_slice() {
            let trim_to = older.seq;
            log.rows.retain(|row| row.seq > trim_to);
        }
        Ok(())
    }
}

/// Refuses a change that expects another end of the log.
pub(super) fn fence(cluster: &ClusterId, expected: u64, found: u64) -> Result<(), StoreError> {
    if expected == found {
        Ok(())
    } else {
        Err(StoreError::Fenced {
            cluster: cluster.clone(),
            expected,
            found,
        })
    }
}

impl Store for Memory {
    fn clusters(&self) -> BoxFuture<'_, Result<Vec<ClusterId>, StoreError>> {
        async { Ok(self.logs().keys().cloned().collect()) }.boxed()
    }

    fn load<'a>(&'a self, cluster: &'a ClusterId) -> BoxFuture<'a, Result<History, StoreError>> {
        async {
            let logs = self.logs();
            let Some(log) = logs.get(cluster) else {
                return Ok(History::empty());
            };
            let head = Head {
                next_seq: log.next_seq,
                crc: log.crc,
            };
            verify(cluster, head, log.snapshots.clone(), log.rows.clone())
        }
        .boxed()
    }

    fn append<'a>(
        &'a self,
        cluster: &'a ClusterId,
        expected: u64,
        payloads: Vec<Vec<u8>>,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        async move { self.append_now(cluster, expected, payloads) }.boxed()
    }

    fn snapshot<'a>(
        &'a self,
        cluster: &'a ClusterId,
        snapshot: Snapshot,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        async move { self.snapshot_now(cluster, snapshot) }.boxed()
    }

    fn begin<'a>(
        &'a self,
        cluster: &'a ClusterId,
        snapshot: Snapshot,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            let mut logs = self.logs();
            fence(cluster, 1, logs.get(cluster).map_or(1, |log| log.next_seq))?;
            let log = Log {
                next_seq: snapshot.seq + 1,
                snapshots: vec![SnapshotRow::first(snapshot)],
                ..Log::default()
            };
            logs.insert(cluster.clone(), log);
            Ok(())
        }
        .boxed()
    }

    fn delete<'a>(&'a self, cluster: &'a ClusterId, expected: u64) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            let mut logs = self.logs();
            let found = logs.get(cluster).map_or(1, |log| log.next_seq);
            fence(cluster, expected, found)?;
            logs.remove(cluster);
            Ok(())
        }
        .boxed()
    }
}
