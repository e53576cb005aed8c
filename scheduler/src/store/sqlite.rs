//! The default store: one SQLite file in WAL mode, flushed at every commit, written by one thread.
//!
//! Opening verifies everything that is in the file before anything may be written: the file's own structure, the
//! schema version, and the chain of every log. A fault stops the start and leaves the file as it was found. A lock
//! on a file beside it keeps a second process out; the kernel frees it when the process ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use berth_api::id::ClusterId;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _};
use tokio::sync::{mpsc, oneshot};

use super::crash;
use super::writer::{Change, Command, engine, run};
use super::{Head, History, Row, Snapshot, SnapshotRow, Store, StoreError, verify};

/// The schema this program writes and the only one it reads.
const SCHEMA_VERSION: i64 = 1;
/// Operations that may wait for the writer; the actors wait when it is full. One per cluster is usual.
const QUEUE_MAX: usize = 1024;
/// Readers wait this long for a checkpoint that holds the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
CREATE TABLE schema (version INTEGER NOT NULL);
INSERT INTO schema (version) VALUES (1);
CREATE TABLE cluster (
    num INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, next_seq INTEGER NOT NULL, crc INTEGER NOT NULL
);
CREATE TABLE record (
    cluster INTEGER NOT NULL, seq INTEGER NOT NULL, crc INTEGER NOT NULL, payload BLOB NOT NULL,
    PRIMARY KEY (cluster, seq)
) WITHOUT ROWID;
CREATE TABLE snapshot (
    cluster INTEGER NOT NULL, seq INTEGER NOT NULL, chain INTEGER NOT NULL, crc INTEGER NOT NULL, payload BLOB NOT NULL,
    PRIMARY KEY (cluster, seq)
) WITHOUT ROWID;
";

/// See the module documentation.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    /// Taken when the store is dropped: the writer ends when its queue does.
    commands: Option<mpsc::Sender<Command>>,
    writer: Option<JoinHandle<()>>,
    /// Invariant: held as long as the writer runs; dropped after it was joined.
    _lock: File,
}

impl Sqlite {
    /// Opens the store at `path`, making it when it is not there.
    ///
    /// # Errors
    /// When another process has it, a newer program wrote it, or anything in it fails verification.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let lock = take_lock(path)?;
        crash::point("open.locked");
        if path.exists() {
            roll_back(path)?;
            verify_all(path)?;
        }
        crash::point("open.verified");
        let connection = open_writer(path)?;
        let (commands, queue) = mpsc::channel(QUEUE_MAX);
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || run(connection, queue))
            .map_err(io("start the writer of", path))?;
        Ok(Self {
            path: path.into(),
            commands: Some(commands),
            writer: Some(writer),
            _lock: lock,
        })
    }

    async fn change(&self, cluster: &ClusterId, expected: u64, change: Change) -> Result<u64, StoreError> {
        let (reply, answer) = oneshot::channel();
        let command = Command {
            cluster: cluster.clone(),
            expected,
            change,
            reply,
        };
        let commands = self.commands.as_ref().ok_or(StoreError::Closed)?;
        crash::point("queue.before");
        commands.send(command).await.map_err(|_| StoreError::Closed)?;
        crash::point("queue.after");
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Runs `read` on a thread that may block, with a connection of its own.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || read(&open_reader(&path)?))
            .await
            .map_err(|_| StoreError::Closed)?
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.commands.take();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer panicked");
        }
    }
}

impl Store for Sqlite {
    fn clusters(&self) -> BoxFuture<'_, Result<Vec<ClusterId>, StoreError>> {
        self.read(|connection| {
            let mut clusters: Vec<ClusterId> = numbered(connection)?.into_iter().map(|(_, id)| id).collect();
            clusters.sort();
            Ok(clusters)
        })
        .boxed()
    }

    fn load<'a>(&'a self, cluster: &'a ClusterId) -> BoxFuture<'a, Result<History, StoreError>> {
        let cluster = cluster.clone();
        self.read(move |connection| load(connection, &cluster)).boxed()
    }

    fn append<'a>(
        &'a self,
        cluster: &'a ClusterId,
        expected: u64,
        payloads: Vec<Vec<u8>>,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        self.change(cluster, expected, Change::Append(payloads)).boxed()
    }

    fn snapshot<'a>(
        &'a self,
        cluster: &'a ClusterId,
        snapshot: Snapshot,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            self.change(cluster, snapshot.seq + 1, Change::Snapshot(snapshot))
                .await
                .map(drop)
        }
        .boxed()
    }

    fn begin<'a>(
        &'a self,
        cluster: &'a ClusterId,
        snapshot: Snapshot,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        async move { self.change(cluster, 1, Change::Begin(snapshot)).await.map(drop) }.boxed()
    }

    fn delete<'a>(&'a self, cluster: &'a ClusterId, expected: u64) -> BoxFuture<'a, Result<(), StoreError>> {
        async move { self.change(cluster, expected, Change::Delete).await.map(drop) }.boxed()
    }
}

/// A store as it was at one moment, read beside whoever writes to it.
#[derive(Debug)]
pub struct Reading {
    connection: Connection,
}

impl Reading {
    /// Begins to read the store at `path`. Writers go on; what they write from now on is not seen.
    ///
    /// # Errors
    /// When there is no store, or it is of a newer version.
    pub fn begin(path: &Path) -> Result<Self, StoreError> {
        std::fs::metadata(path).map_err(io("open the store", path))?;
        let connection = open_reader(path)?;
        connection
            .execute_batch("BEGIN")
            .map_err(engine("begin to read"))?;
        match schema_version(&connection)? {
            Some(SCHEMA_VERSION) => Ok(Self { connection }),
            Some(found) => Err(StoreError::Newer {
                path: path.into(),
                found,
                known: SCHEMA_VERSION,
            }),
            None => Err(StoreError::Damaged {
                path: path.into(),
                detail: "it is empty".into(),
            }),
        }
    }

    /// Every cluster, in order.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn clusters(&self) -> Result<Vec<ClusterId>, StoreError> {
        Ok(numbered(&self.connection)?
            .into_iter()
            .map(|(_, id)| id)
            .collect())
    }

    /// The history of a cluster, verified.
    ///
    /// # Errors
    /// When the file cannot be read, or something is not what was written.
    pub fn load(&self, cluster: &ClusterId) -> Result<History, StoreError> {
        load_within(&self.connection, cluster)
    }
}

/// The error with the file's name and what to do, where its cause is one that an operator mends.
pub(super) fn named(error: StoreError, path: &Path) -> StoreError {
    let StoreError::Engine { source, .. } = &error else {
        return error;
    };
    match source.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full {
            store: path.display().to_string(),
            remedy: "make room on its disk",
        },
        Some(ErrorCode::ReadOnly) => StoreError::ReadOnly { path: path.into() },
        _ => error,
    }
}

fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |error| StoreError::Io {
        operation,
        path,
        source: Arc::new(error),
    }
}

/// Locks the file beside the store for as long as the returned handle lives.
fn take_lock(path: &Path) -> Result<File, StoreError> {
    let lock_path = path.with_extension("lock");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(io("open", &lock_path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: path.into() }),
        Err(TryLockError::Error(error)) => Err(io("lock", &lock_path)(error)),
    }
}

fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    let connection = Connection::open(path).map_err(engine("open the store"))?;
    let prepare = || -> Result<(), rusqlite::Error> {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let known: i64 = connection.query_row(
            "SELECT count(*) FROM sqlite_schema WHERE name = 'schema'",
            [],
            |row| row.get(0),
        )?;
        if known == 0 {
            crash::point("schema.before");
            connection.execute_batch(&format!("BEGIN; {SCHEMA}"))?;
            crash::point("schema.within");
            connection.execute_batch("COMMIT;")?;
            crash::point("schema.after");
        }
        Ok(())
    };
    prepare()
        .map_err(engine("prepare the store"))
        .map_err(|error| named(error, path))?;
    Ok(connection)
}

fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection =
        Connection::open_with_flags(path, flags).map_err(engine("open the store for reading"))?;
    connection
        .busy_timeout(BUSY_TIMEOUT)
        .map_err(engine("set a time-out"))?;
    Ok(connection)
}

/// A process that ended while it made the file may have left a journal of the time before the write-ahead log, which no
/// reader may roll back. Nothing had been acknowledged then.
fn roll_back(path: &Path) -> Result<(), StoreError> {
    let mut journal = path.as_os_str().to_owned();
    journal.push("-journal");
    if !Path::new(&journal).exists() {
        return Ok(());
    }
    let connection = Connection::open(path).map_err(engine("open the store"))?;
    connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| {
            row.get::<_, i64>(0)
        })
        .map(drop)
        .map_err(engine("roll back what was begun"))
        .map_err(|error| named(error, path))
}

/// Verifies the whole file without the right to write to it.
fn verify_all(path: &Path) -> Result<(), StoreError> {
    let verify = || -> Result<(), StoreError> {
        let connection = open_reader(path)?;
        let Some(version) = schema_version(&connection)? else {
            // A start that ended before the schema was committed left an empty file.
            return Ok(());
        };
        if version != SCHEMA_VERSION {
            return Err(StoreError::Newer {
                path: path.into(),
                found: version,
                known: SCHEMA_VERSION,
            });
        }
        // The logs come first: their faults name the record.
        for (_, cluster) in numbered(&connection)? {
            load(&connection, &cluster)?;
        }
        let verdict: String = connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(engine("check the store's structure"))?;
        if verdict == "ok" {
            Ok(())
        } else {
            Err(StoreError::Damaged {
                path: path.into(),
                detail: verdict,
            })
        }
    };
    verify().map_err(|error| match error {
        StoreError::Engine { operation, source }
            if matches!(
                source.sqlite_error_code(),
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
            ) =>
        {
            StoreError::Damaged {
                path: path.into(),
                detail: format!("{operation}: {source}"),
            }
        }
        error @ (StoreError::Corrupt { .. } | StoreError::CorruptSnapshot { .. }) => StoreError::Unsound {
            path: path.into(),
            source: Box::new(error),
        },
        other => named(other, path),
    })
}

/// The version of the schema; none when the file is still empty.
fn schema_version(connection: &Connection) -> Result<Option<i64>, StoreError> {
    let read = || -> Result<Option<i64>, rusqlite::Error> {
        let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables == 0 {
            return Ok(None);
        }
        connection
            .query_row("SELECT version FROM schema", [], |row| row.get(0))
            .map(Some)
    };
    read().map_err(engine("read the schema version"))
}

fn numbered(connection: &Connection) -> Result<Vec<(i64, ClusterId)>, StoreError> {
    let read = || -> Result<Vec<(i64, String)>, rusqlite::Error> {
        connection
            .prepare("SELECT num, id FROM cluster ORDER BY num")?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
    };
    read()
        .map_err(engine("list the clusters"))?
        .into_iter()
        .map(|(num, id)| match ClusterId::new(id) {
            Ok(id) => Ok((num, id)),
            Err(error) => Err(StoreError::Damaged {
                path: connection.path().unwrap_or_default().into(),
                detail: error.to_string(),
            }),
        })
        .collect()
}

/// Reads and verifies one cluster in one read transaction.
fn load(connection: &Connection, cluster: &ClusterId) -> Result<History, StoreError> {
    let transaction = connection
        .unchecked_transaction()
        .map_err(engine("begin to read"))?;
    load_within(&transaction, cluster)
}

/// As [`load`], in the transaction that is open.
fn load_within(transaction: &Connection, cluster: &ClusterId) -> Result<History, StoreError> {
    type Rows = Option<(Head, Vec<SnapshotRow>, Vec<Row>)>;
    let read = || -> Result<Rows, rusqlite::Error> {
        let head: Option<(i64, u64, u32)> = transaction
            .query_row(
                "SELECT num, next_seq, crc FROM cluster WHERE id = ?1",
                [cluster.as_str()],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .optional()?;
        let Some((num, next_seq, crc)) = head else {
            return Ok(None);
        };
        let snapshots = transaction
            .prepare("SELECT seq, chain, crc, payload FROM snapshot WHERE cluster = ?1 ORDER BY seq")?
            .query_map([num], |row| {
                Ok(SnapshotRow {
                    seq: row.get(0)?,
                    chain: row.get(1)?,
                    crc: row.get(2)?,
                    payload: row.get(3)?,
                })
            })?
            .collect::<Result<_, _>>()?;
        let rows = transaction
            .prepare("SELECT seq, crc, payload FROM record WHERE cluster = ?1 ORDER BY seq")?
            .query_map([num], |row| {
                Ok(Row {
                    seq: row.get(0)?,
                    crc: row.get(1)?,
                    payload: row.get(2)?,
                })
            })?
            .collect::<Result<_, _>>()?;
        Ok(Some((Head { next_seq, crc }, snapshots, rows)))
    };
    match read().map_err(engine("read a log"))? {
        Some((head, snapshots, rows)) => verify(cluster, head, snapshots, rows),
        None => Ok(History::empty()),
    }
}
