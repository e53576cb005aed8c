//! The one thread that writes to the SQLite file: takes what waits in its queue, for all clusters, and commits it in
//! one transaction, so that the cost of a flush to the disk is shared.

use std::path::Path;

use berth_api::id::ClusterId;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use tokio::sync::{mpsc, oneshot};

use super::crash;
use super::memory::fence;
use super::sqlite::named;
use super::{Head, Snapshot, SnapshotRow, StoreError, chain};

/// At most this many operations share one commit: at about 1 KiB each that is a quarter MiB of log a flush.
const BATCH_MAX: usize = 256;

pub(super) type Reply = oneshot::Sender<Result<u64, StoreError>>;

/// One operation on one cluster; every one names the sequence number it expects to be next.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) cluster: ClusterId,
    pub(super) expected: u64,
    pub(super) change: Change,
    pub(super) reply: Reply,
}

#[derive(Debug)]
pub(super) enum Change {
    Append(Vec<Vec<u8>>),
    Snapshot(Snapshot),
    Begin(Snapshot),
    Delete,
}

/// Runs until every sender of `commands` is gone.
pub(super) fn run(mut connection: Connection, mut commands: mpsc::Receiver<Command>) {
    while let Some(first) = commands.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX
            && let Ok(command) = commands.try_recv()
        {
            batch.push(command);
        }
        let (replies, changes): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|command| (command.reply, (command.cluster, command.expected, command.change)))
            .unzip();
        let outcomes = match commit(&mut connection, changes) {
            Ok(outcomes) => outcomes,
            Err(error) => {
                let error = named(error, Path::new(connection.path().unwrap_or_default()));
                replies.iter().map(|_| Err(error.clone())).collect()
            }
        };
        for (reply, outcome) in replies.into_iter().zip(outcomes) {
            // The caller may have gone away; what it asked for is done all the same.
            drop(reply.send(outcome));
            crash::point("answer.first");
        }
        crash::point("answer.last");
    }
}

/// Applies a batch in one transaction. A fenced change is refused alone; a failing engine refuses the whole batch.
fn commit(
    connection: &mut Connection,
    changes: Vec<(ClusterId, u64, Change)>,
) -> Result<Vec<Result<u64, StoreError>>, StoreError> {
    crash::point("commit.before-begin");
    let transaction = connection
        .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
        .map_err(engine("begin a transaction"))?;
    crash::point("commit.begun");
    let mut outcomes = Vec::with_capacity(changes.len());
    for (cluster, expected, change) in changes {
        match apply(&transaction, &cluster, expected, change) {
            Err(error @ StoreError::Engine { .. }) => return Err(error),
            outcome => outcomes.push(outcome),
        }
    }
    crash::point("commit.before");
    transaction.commit().map_err(engine("commit a transaction"))?;
    crash::point("commit.after");
    Ok(outcomes)
}

fn apply(
    transaction: &Transaction<'_>,
    cluster: &ClusterId,
    expected: u64,
    change: Change,
) -> Result<u64, StoreError> {
    let row: Option<(i64, u64, u32)> = transaction
        .prepare_cached("SELECT num, next_seq, crc FROM cluster WHERE id = ?1")
        .and_then(|mut statement| {
            statement
                .query_row([cluster.as_str()], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })
                .optional()
        })
        .map_err(engine("read the end of a log"))?;
    let head = row.map_or(Head::START, |(_, next_seq, crc)| Head { next_seq, crc });
    fence(cluster, expected, head.next_seq)?;
    let num = row.map(|(num, _, _)| num);
    match change {
        Change::Append(payloads) => {
            append(transaction, cluster, num, head, &payloads).map_err(engine("append to a log"))
        }
        Change::Snapshot(snapshot) => match num {
            Some(num) => {
                keep_snapshot(transaction, num, head, &snapshot).map_err(engine("keep a snapshot"))?;
                Ok(head.next_seq)
            }
            None => Ok(head.next_seq),
        },
        Change::Begin(snapshot) => {
            begin(transaction, cluster, SnapshotRow::first(snapshot)).map_err(engine("begin a log"))
        }
        Change::Delete => {
            if let Some(num) = num {
                forget(transaction, num).map_err(engine("delete a log"))?;
            }
            Ok(1)
        }
    }
}

fn append(
    transaction: &Transaction<'_>,
    cluster: &ClusterId,
    num: Option<i64>,
    mut head: Head,
    payloads: &[Vec<u8>],
) -> Result<u64, rusqlite::Error> {
    let num = match num {
        Some(num) => num,
        None => {
            transaction.execute(
                "INSERT INTO cluster (id, next_seq, crc) VALUES (?1, 1, 0)",
                [cluster.as_str()],
            )?;
            crash::point("append.cluster");
            transaction.last_insert_rowid()
        }
    };
    let mut insert = transaction
        .prepare_cached("INSERT INTO record (cluster, seq, crc, payload) VALUES (?1, ?2, ?3, ?4)")?;
    for payload in payloads {
        head.crc = chain(head.crc, head.next_seq, payload);
        insert.execute(params![num, head.next_seq, head.crc, payload])?;
        head.next_seq += 1;
        crash::point("append.record");
    }
    transaction
        .prepare_cached("UPDATE cluster SET next_seq = ?2, crc = ?3 WHERE num = ?1")?
        .execute(params![num, head.next_seq, head.crc])?;
    crash::point("append.head");
    Ok(head.next_seq)
}

fn begin(
    transaction: &Transaction<'_>,
    cluster: &ClusterId,
    snapshot: SnapshotRow,
) -> Result<u64, rusqlite::Error> {
    let next_seq = snapshot.seq + 1;
    transaction.execute(
        "INSERT INTO cluster (id, next_seq, crc) VALUES (?1, ?2, ?3)",
        params![cluster.as_str(), next_seq, snapshot.chain],
    )?;
    crash::point("begin.cluster");
    transaction.execute(
        "INSERT INTO snapshot (cluster, seq, chain, crc, payload) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            transaction.last_insert_rowid(),
            snapshot.seq,
            snapshot.chain,
            snapshot.crc,
            snapshot.payload
        ],
    )?;
    crash::point("begin.snapshot");
    Ok(next_seq)
}

fn keep_snapshot(
    transaction: &Transaction<'_>,
    num: i64,
    head: Head,
    snapshot: &Snapshot,
) -> Result<(), rusqlite::Error> {
    let crc = chain(head.crc, snapshot.seq, &snapshot.payload);
    transaction.execute(
        "INSERT OR REPLACE INTO snapshot (cluster, seq, chain, crc, payload) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![num, snapshot.seq, head.crc, crc, snapshot.payload],
    )?;
    crash::point("snapshot.kept");
    transaction.execute(
        "DELETE FROM snapshot WHERE cluster = ?1 AND seq NOT IN
             (SELECT seq FROM snapshot WHERE cluster = ?1 ORDER BY seq DESC LIMIT 2)",
        [num],
    )?;
    crash::point("snapshot.older-dropped");
    let (count, oldest): (u64, u64) = transaction.query_row(
        "SELECT count(*), min(seq) FROM snapshot WHERE cluster = ?1",
        [num],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    if count == 2 {
        transaction.execute(
            "DELETE FROM record WHERE cluster = ?1 AND seq <= ?2",
            params![num, oldest],
        )?;
        crash::point("snapshot.log-trimmed");
    }
    Ok(())
}

fn forget(transaction: &Transaction<'_>, num: i64) -> Result<(), rusqlite::Error> {
    transaction.execute("DELETE FROM record WHERE cluster = ?1", [num])?;
    crash::point("delete.records");
    transaction.execute("DELETE FROM snapshot WHERE cluster = ?1", [num])?;
    crash::point("delete.snapshots");
    transaction.execute("DELETE FROM cluster WHERE num = ?1", [num])?;
    crash::point("delete.cluster");
    Ok(())
}

pub(super) fn engine(operation: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
    move |error| StoreError::Engine {
        operation,
        source: std::sync::Arc::new(error),
    }
}
