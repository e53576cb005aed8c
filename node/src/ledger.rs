//! What the node remembers over a restart: a SQLite database that may be lost.
//!
//! It keeps the accepted set, a row per replica (run counter, crashes, deadlines), the boot id, and the last mesh,
//! directory and network parameters, so that a node starts without its scheduler. A database that cannot be read is
//! moved aside and rebuilt from the runtime's labels and the next set. Owner: one thread; everybody else hands it
//! writes that it commits in groups. Write-ahead log: kill -9 loses nothing that was committed. Replica rows are not
//! flushed (a power cut ends their processes too), an accepted set is.
//!
//! A disk that is full, fails or hangs holds nothing up: waiting for a commit has a deadline, what could not be written is kept
//! and tried again, and [`Ledger::trouble`] says what is wrong. Room is kept for a full disk ([`reserve`]).

mod reserve;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use berth_api::assignment::{AssignmentSet, Digest, Position};
use berth_api::id::ReplicaId;
use berth_api::time::{Timestamp, monotonic};
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::watch;

use crate::plan::{Restored, Write};
use crate::replica::Memory;
use reserve::Reserve;

/// Rises when older programs could not read the tables.
const SCHEMA_VERSION: i64 = 1;
/// A failed commit is repeated this often while nothing new arrives, and room is looked for.
const RETRY: Duration = Duration::from_secs(5);
/// A commit that takes longer hangs: nobody waits for it any more. Above what a busy disk takes, and short beside a stop's grace.
const COMMIT_DEADLINE: Duration = Duration::from_secs(5);

/// Why the database was not usable. It is then replaced.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("cannot use the database")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the database is damaged: {0}")]
    Damaged(String),
    #[error("the database has schema {found}, this program knows {SCHEMA_VERSION}")]
    Newer { found: i64 },
    #[error("cannot move the damaged database to {to}")]
    MoveAside { to: String, source: std::io::Error },
}

/// What was found at the start.
#[derive(Debug, Default)]
pub struct Loaded {
    pub restored: Restored,
    /// The database had been damaged or emptied and is new now; says what was wrong.
    pub rebuilt: Option<String>,
    /// It can only be kept in memory; says why.
    pub volatile: Option<String>,
    pub blobs: BTreeMap<String, Vec<u8>>,
}

/// How far the thread is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    pub sequence: u64,
    /// Why the newest commit failed; what it held is kept in memory and tried again.
    pub error: Option<Arc<str>>,
    /// The file system has no room.
    pub full: bool,
    /// Nothing is on the disk, for this reason.
    pub volatile: Option<Arc<str>>,
}

/// Handle to the ledger; clones share it.
#[derive(Debug, Clone)]
pub struct Ledger {
    shared: Arc<Shared>,
    committed: watch::Receiver<Committed>,
}

#[derive(Debug)]
struct Shared {
    pending: Mutex<Pending>,
    wake: Condvar,
    /// Since when the thread has been at the disk.
    busy: Mutex<Option<(Instant, Timestamp)>>,
}

impl Shared {
    fn set_busy(&self, since: Option<(Instant, Timestamp)>) {
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn busy(&self) -> Option<(Instant, Timestamp)> {
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be written once there is anything, or after a while.
    fn take(&self, done: u64) -> Pending {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.sequence == done && !pending.closing {
            let woken = self.wake.wait_timeout_while(pending, RETRY, |pending| {
                pending.sequence == done && !pending.closing
            });
            (pending, _) = woken.unwrap_or_else(PoisonError::into_inner);
        }
        let (sequence, closing) = (pending.sequence, pending.closing);
        let taken = std::mem::take(&mut *pending);
        (pending.sequence, pending.closing) = (sequence, closing);
        Pending {
            sequence,
            closing,
            ..taken
        }
    }
}

/// What is to be written: the newest value of each key, so the queue is bounded by what there is.
#[derive(Debug, Default)]
struct Pending {
    sequence: u64,
    replicas: BTreeMap<ReplicaId, Option<Memory>>,
    set: Option<(Vec<u8>, Position)>,
    blobs: BTreeMap<String, Vec<u8>>,
    closing: bool,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.replicas.is_empty() && self.set.is_none() && self.blobs.is_empty()
    }

    /// Puts back what could not be written, unless something newer has come.
    fn restore(&mut self, old: Self) {
        for (id, memory) in old.replicas {
            self.replicas.entry(id).or_insert(memory);
        }
        for (key, bytes) in old.blobs {
            self.blobs.entry(key).or_insert(bytes);
        }
        if self.set.is_none() {
            self.set = old.set;
        }
    }
}

impl Ledger {
    /// Opens or makes the database and starts its thread. A damaged one is moved aside; one that cannot be made is
    /// kept in memory.
    ///
    /// # Errors
    /// When a damaged database cannot be moved, or the system refuses a thread.
    pub fn open(
        path: &Path,
        boot_id: &str,
    ) -> Result<(Self, Loaded, std::thread::JoinHandle<()>), LedgerError> {
        let mut reserve = Reserve::of(path);
        let mut read = Self::read(path, boot_id);
        if matches!(&read, Err(LedgerError::Sqlite(error)) if !is_damage(error)) && reserve.give_up() {
            read = Self::read(path, boot_id);
        }
        let (connection, loaded) = match read {
            Ok(read) => read,
            Err(error @ (LedgerError::Damaged(_) | LedgerError::Newer { .. })) => {
                Self::rebuild(path, boot_id, &error.to_string())?
            }
            Err(LedgerError::Sqlite(error)) if is_damage(&error) => {
                Self::rebuild(path, boot_id, &error.to_string())?
            }
            Err(error) => {
                let reason = format!("{error}: {:?}", std::error::Error::source(&error));
                let connection = Connection::open_in_memory()?;
                let mut loaded = load(&connection, boot_id)?;
                loaded.volatile = Some(reason);
                (connection, loaded)
            }
        };
        let writer = Writer {
            path: path.to_owned(),
            boot_id: boot_id.to_owned(),
            connection,
            reserve,
            volatile: loaded.volatile.as_deref().map(Arc::from),
        };
        let (publish, committed) = watch::channel(Committed {
            full: writer.reserve.is_full(),
            volatile: writer.volatile.clone(),
            ..Committed::default()
        });
        let shared = Arc::new(Shared {
            pending: Mutex::default(),
            wake: Condvar::new(),
            busy: Mutex::default(),
        });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("ledger".into())
            .stack_size(256 << 10)
            .spawn(move || write_loop(writer, &of_thread, &publish))
            .map_err(|source| LedgerError::MoveAside {
                to: "a thread".into(),
                source,
            })?;
        Ok((Self { shared, committed }, loaded, thread))
    }

    fn read(path: &Path, boot_id: &str) -> Result<(Connection, Loaded), LedgerError> {
        // An empty file was a database once; SQLite would take it for a new one.
        let emptied = std::fs::metadata(path).is_ok_and(|file| file.len() == 0);
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if check != "ok" {
            return Err(LedgerError::Damaged(check));
        }
        let mut loaded = load(&connection, boot_id)?;
        if emptied {
            loaded.rebuilt = Some("the database was empty".into());
        }
        Ok((connection, loaded))
    }

    fn rebuild(path: &Path, boot_id: &str, reason: &str) -> Result<(Connection, Loaded), LedgerError> {
        move_aside(path)?;
        let (connection, mut loaded) = Self::read(path, boot_id)?;
        loaded.rebuilt = Some(reason.to_owned());
        Ok((connection, loaded))
    }

    /// Hands over rows of replicas. Wait for the number with [`Ledger::wait`] before acting on them.
    pub fn write(&self, writes: Vec<Write>) -> u64 {
        self.submit(|pending| {
            for write in writes {
                match write {
                    Write::Put(id, memory) => pending.replicas.insert(id, Some(memory)),
                    Write::Remove(id) => pending.replicas.insert(id, None),
                };
            }
        })
    }

    /// Hands over the accepted set.
    pub fn write_set(&self, bytes: Vec<u8>, position: Position) -> u64 {
        self.submit(|pending| pending.set = Some((bytes, position)))
    }

    /// Hands over a value kept by name: mesh, directory, network parameters.
    pub fn write_blob(&self, key: &str, bytes: Vec<u8>) -> u64 {
        self.submit(|pending| {
            pending.blobs.insert(key.to_owned(), bytes);
        })
    }

    fn submit(&self, change: impl FnOnce(&mut Pending)) -> u64 {
        let mut pending = self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut pending);
        pending.sequence += 1;
        self.shared.wake.notify_one();
        pending.sequence
    }

    /// Waits until everything up to `sequence` was tried, for as long as a commit may take. The error is that of the newest
    /// commit: the caller decides whether to run on from memory. Cancel-safe.
    ///
    /// # Errors
    /// When it could not be committed, or the disk hangs.
    pub async fn wait(&self, sequence: u64) -> Result<(), Arc<str>> {
        let mut committed = self.committed.clone();
        // A disk that hangs already is not waited for once more by everybody.
        let patience = self.shared.busy().map_or(COMMIT_DEADLINE, |(since, _)| {
            COMMIT_DEADLINE.saturating_sub(since.elapsed())
        });
        let tried = committed.wait_for(|state| state.sequence >= sequence);
        match tokio::time::timeout(patience, tried).await {
            Ok(Ok(state)) => state.error.clone().map_or(Ok(()), Err),
            Ok(Err(_)) => Err("the ledger has ended".into()),
            Err(_) => Err("its disk does not answer".into()),
        }
    }

    /// Waits, for as long as it takes, until everything up to `sequence` is committed. Cancel-safe.
    ///
    /// # Errors
    /// When the ledger has ended.
    pub async fn stored(&self, sequence: u64) -> Result<(), Arc<str>> {
        let mut committed = self.committed.clone();
        let stored = committed.wait_for(|state| state.sequence >= sequence && state.error.is_none());
        stored.await.map(drop).map_err(|_| "the ledger has ended".into())
    }

    /// Why what is handed over now may not be kept; the node runs on from memory and begins nothing new.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        if let Some((since, wall)) = self.shared.busy()
            && since.elapsed() >= COMMIT_DEADLINE
        {
            return Some(format!("the ledger's disk has not answered since {wall}"));
        }
        let committed = self.committed.borrow();
        if let Some(reason) = &committed.volatile {
            return Some(format!("the ledger is kept in memory: {reason}"));
        }
        let full = if committed.full {
            "; its file system is full, make room on it"
        } else {
            ""
        };
        match &committed.error {
            Some(error) => Some(format!("the ledger cannot be written: {error}{full}")),
            None if committed.full => Some("the ledger's file system is full, make room on it".to_owned()),
            None => None,
        }
    }

    /// State of the newest commit.
    #[must_use]
    pub fn committed(&self) -> watch::Receiver<Committed> {
        self.committed.clone()
    }

    /// Commits what is handed over and ends the thread.
    pub fn close(&self) {
        self.submit(|pending| pending.closing = true);
    }
}

/// Copies a ledger that a daemon may have open, as of one moment. Without a ledger there is nothing to copy.
///
/// # Errors
/// When it cannot be read, or the copy not be written.
pub fn copy(from: &Path, to: &Path) -> Result<(), LedgerError> {
    match std::fs::remove_file(to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let to = to.display().to_string();
            return Err(LedgerError::MoveAside { to, source: error });
        }
        Ok(()) | Err(_) => {}
    }
    if !from.exists() {
        return Ok(());
    }
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let source = Connection::open_with_flags(from, flags)?;
    source.busy_timeout(RETRY)?;
    source.execute("VACUUM INTO ?1", params![to.display().to_string()])?;
    Ok(())
}

/// What a daemon would find in a ledger. It is opened as a daemon opens it, so give it a copy.
///
/// # Errors
/// When a daemon would replace it.
pub fn inspect(path: &Path, boot_id: &str) -> Result<Restored, LedgerError> {
    let (connection, loaded) = Ledger::read(path, boot_id)?;
    // One file, without companions: this is also the backup.
    connection.pragma_update(None, "journal_mode", "DELETE")?;
    Ok(loaded.restored)
}

fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode;
    match error {
        rusqlite::Error::SqliteFailure(cause, _) => {
            matches!(cause.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
        }
        rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::QueryReturnedNoRows
        | rusqlite::Error::Utf8Error(..) => true,
        _ => false,
    }
}

/// Moves the database and its companions to a name with the time, where an engineer finds it.
fn move_aside(path: &Path) -> Result<(), LedgerError> {
    let suffix = format!(".corrupt-{}", Timestamp::now().millis());
    for companion in ["", "-wal", "-shm"] {
        let mut from = path.as_os_str().to_owned();
        from.push(companion);
        let mut to = from.clone();
        to.push(&suffix);
        let (from, to) = (PathBuf::from(from), PathBuf::from(to));
        if from.exists() {
            let shown = to.display().to_string();
            std::fs::rename(&from, &to).map_err(|source| LedgerError::MoveAside { to: shown, source })?;
        }
    }
    Ok(())
}

fn load(connection: &Connection, boot_id: &str) -> Result<Loaded, LedgerError> {
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version > SCHEMA_VERSION {
        return Err(LedgerError::Newer { found: version });
    }
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS replica (id TEXT PRIMARY KEY, memory TEXT NOT NULL) WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS accepted (
             one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, generation INTEGER NOT NULL,
             digest BLOB NOT NULL, body BLOB NOT NULL);",
    )?;
    // Nothing is written that is there already: a full disk is read.
    if version != SCHEMA_VERSION {
        connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    }
    let old_boot: Option<Vec<u8>> = connection
        .query_row("SELECT value FROM meta WHERE key = 'boot_id'", [], |row| {
            row.get(0)
        })
        .optional()?;
    if old_boot.as_deref() != Some(boot_id.as_bytes()) {
        connection.execute(
            "INSERT OR REPLACE INTO meta VALUES ('boot_id', ?1)",
            params![boot_id.as_bytes()],
        )?;
    }
    let mut loaded = Loaded::default();
    loaded.restored.rebooted = old_boot.is_some_and(|old| old != boot_id.as_bytes());
    loaded.restored.set = load_set(connection)?;
    let mut rows = connection.prepare("SELECT id, memory FROM replica")?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let (id, memory): (String, String) = (row.get(0)?, row.get(1)?);
        // One unreadable row costs its own replica its history, nothing else.
        match (ReplicaId::new(&*id), serde_json::from_str(&memory)) {
            (Ok(id), Ok(memory)) => {
                loaded.restored.replicas.insert(id, memory);
            }
            (_, result) => tracing::warn!(
                replica_id = id,
                error = result.err().map(|error| error.to_string()),
                "dropped an unreadable row"
            ),
        }
    }
    let mut blobs = connection.prepare("SELECT key, value FROM meta WHERE key <> 'boot_id'")?;
    for blob in blobs.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))? {
        let (key, value): (String, Vec<u8>) = blob?;
        loaded.blobs.insert(key, value);
    }
    Ok(loaded)
}

fn load_set(connection: &Connection) -> Result<Option<(AssignmentSet, Position)>, LedgerError> {
    let row: Option<(i64, i64, Vec<u8>, Vec<u8>)> = connection
        .query_row(
            "SELECT epoch, generation, digest, body FROM accepted",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
        )
        .optional()?;
    let Some((epoch, generation, digest, body)) = row else {
        return Ok(None);
    };
    let digest: [u8; 32] = digest
        .try_into()
        .map_err(|_| LedgerError::Damaged("the digest of the set has another length".into()))?;
    let position = Position {
        epoch: epoch.cast_unsigned(),
        generation: generation.cast_unsigned(),
        digest: Digest(digest),
    };
    let set =
        AssignmentSet::open(&body, &position).map_err(|error| LedgerError::Damaged(error.to_string()))?;
    Ok(Some((set, position)))
}

/// What the thread works with.
struct Writer {
    path: PathBuf,
    boot_id: String,
    connection: Connection,
    reserve: Reserve,
    /// Why the connection is to a database in memory.
    volatile: Option<Arc<str>>,
}

impl Writer {
    /// Commits, on a full disk with the help of the reserve.
    fn commit(&mut self, pending: &Pending) -> Result<(), rusqlite::Error> {
        if self.volatile.is_some() {
            match self.move_to_disk() {
                Ok(()) => {
                    tracing::info!(path = %self.path.display(), "the ledger is on the disk");
                    self.volatile = None;
                }
                Err(error) => self.volatile = Some(error.to_string().as_str().into()),
            }
        }
        let mut result = commit(&mut self.connection, pending);
        if result.is_err() && self.reserve.give_up() {
            tracing::warn!(path = %self.path.display(), "gave up the ledger's reserve");
            result = commit(&mut self.connection, pending);
        }
        self.reserve.look();
        result
    }

    /// Puts what was kept in memory where it belongs, once that is possible. What lies there and is not in memory stays: memory began empty,
    /// and what is too much is found out by the next daemon.
    fn move_to_disk(&mut self) -> Result<(), LedgerError> {
        drop(Ledger::read(&self.path, &self.boot_id)?);
        let path = self.path.to_string_lossy();
        self.connection.execute("ATTACH ?1 AS disk", params![path])?;
        let copied = self.connection.execute_batch(
            "BEGIN;
             INSERT OR REPLACE INTO disk.meta SELECT * FROM main.meta;
             INSERT OR REPLACE INTO disk.replica SELECT * FROM main.replica;
             INSERT OR REPLACE INTO disk.accepted SELECT * FROM main.accepted;
             COMMIT;",
        );
        if copied.is_err() && !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK")?;
        }
        self.connection.execute_batch("DETACH disk")?;
        copied?;
        (self.connection, _) = Ledger::read(&self.path, &self.boot_id)?;
        Ok(())
    }
}

fn write_loop(mut writer: Writer, shared: &Shared, publish: &watch::Sender<Committed>) {
    loop {
        let taken = shared.take(publish.borrow().sequence);
        let (sequence, closing) = (taken.sequence, taken.closing);
        shared.set_busy(Some((monotonic(), Timestamp::now())));
        let error = writer
            .commit(&taken)
            .err()
            .map(|error| Arc::from(error.to_string().as_str()));
        shared.set_busy(None);
        if error.is_some() {
            let mut pending = shared.pending.lock().unwrap_or_else(PoisonError::into_inner);
            pending.restore(taken);
        }
        let next = Committed {
            sequence,
            error,
            full: writer.reserve.is_full(),
            volatile: writer.volatile.clone(),
        };
        publish.send_if_modified(|committed| {
            let is_news = *committed != next;
            *committed = next;
            is_news
        });
        if closing {
            return;
        }
    }
}

fn commit(connection: &mut Connection, pending: &Pending) -> Result<(), rusqlite::Error> {
    if pending.is_empty() {
        return Ok(());
    }
    let level = if pending.set.is_some() { "FULL" } else { "NORMAL" };
    connection.pragma_update(None, "synchronous", level)?;
    let transaction = connection.transaction()?;
    for (id, memory) in &pending.replicas {
        match memory {
            Some(memory) => {
                let text = serde_json::to_string(memory).expect("a row has no failing serialiser");
                transaction
                    .prepare_cached("INSERT OR REPLACE INTO replica VALUES (?1, ?2)")?
                    .execute(params![id.as_str(), text])?;
            }
            None => {
                transaction
                    .prepare_cached("DELETE FROM replica WHERE id = ?1")?
                    .execute(params![id.as_str()])?;
            }
        }
    }
    for (key, value) in &pending.blobs {
        transaction
            .prepare_cached("INSERT OR REPLACE INTO meta VALUES (?1, ?2)")?
            .execute(params![key, value])?;
    }
    if let Some((bytes, position)) = &pending.set {
        transaction.execute(
            "INSERT OR REPLACE INTO accepted VALUES (1, ?1, ?2, ?3, ?4)",
            params![
                position.epoch.cast_signed(),
                position.generation.cast_signed(),
                position.digest.0.as_slice(),
                bytes
            ],
        )?;
    }
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_api::id::{ClusterId, MachineId};

    fn set() -> AssignmentSet {
        AssignmentSet {
            cluster_id: ClusterId::new("c").unwrap(),
            machine_id: MachineId::new("m").unwrap(),
            epoch: 1,
            generation: 7,
            replicas: vec![],
            stops: vec![],
        }
    }

    fn fill(path: &Path) {
        let (ledger, _, thread) = Ledger::open(path, "boot").unwrap();
        let (bytes, position) = set().seal();
        ledger.write_set(bytes, position);
        let memory = Memory {
            run: 3,
            crashes: 2,
            ..Memory::default()
        };
        ledger.write(vec![Write::Put(ReplicaId::new("a").unwrap(), memory)]);
        ledger.write(vec![Write::Put(ReplicaId::new("b").unwrap(), Memory::default())]);
        ledger.write(vec![Write::Remove(ReplicaId::new("b").unwrap())]);
        ledger.write_blob("network", b"n".to_vec());
        ledger.close();
        thread.join().unwrap();
    }

    /// What a preflight reads, and the backup before an upgrade.
    #[test]
    fn a_copy_is_whole_while_a_daemon_has_the_ledger_open_and_a_newer_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, to) = (dir.path().join("ledger.sqlite"), dir.path().join("copy.sqlite"));
        copy(&path, &to).unwrap();
        assert!(!to.exists(), "there is none yet");
        fill(&path);
        let (ledger, _, thread) = Ledger::open(&path, "boot").unwrap();
        for _ in 0..2 {
            copy(&path, &to).unwrap();
            let found = inspect(&to, "boot").unwrap();
            assert_eq!(found.set.unwrap().0, set());
            assert_eq!(found.replicas.len(), 1);
        }
        let companions = ["copy.sqlite-wal", "copy.sqlite-shm"];
        assert!(companions.iter().all(|name| !dir.path().join(name).exists()));
        ledger.close();
        thread.join().unwrap();
        Connection::open(&path)
            .unwrap()
            .pragma_update(None, "user_version", SCHEMA_VERSION + 1)
            .unwrap();
        copy(&path, &to).unwrap();
        let refused = inspect(&to, "boot").unwrap_err();
        assert!(matches!(refused, LedgerError::Newer { .. }), "{refused}");
        assert!(path.exists(), "the ledger itself is where it was");
    }

    #[test]
    fn reads_back_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        fill(&path);
        let (ledger, loaded, thread) = Ledger::open(&path, "boot").unwrap();
        assert_eq!(loaded.restored.set.unwrap().0, set());
        assert_eq!(loaded.restored.replicas.len(), 1);
        assert_eq!(loaded.restored.replicas[&ReplicaId::new("a").unwrap()].run, 3);
        assert!(!loaded.restored.rebooted);
        assert_eq!(loaded.rebuilt, None);
        assert_eq!(loaded.blobs["network"], b"n");
        ledger.close();
        thread.join().unwrap();
    }

    #[test]
    fn notices_a_reboot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        fill(&path);
        let (ledger, loaded, thread) = Ledger::open(&path, "other").unwrap();
        assert!(loaded.restored.rebooted);
        ledger.close();
        thread.join().unwrap();
    }

    /// Every kind of damage of the fault list: the database is moved aside, the node starts, and says so.
    #[test]
    fn a_damaged_database_is_moved_aside_and_rebuilt() {
        type Damage = fn(&mut Vec<u8>);
        let damages: [(&str, Damage); 4] = [
            ("truncated", |bytes| bytes.truncate(bytes.len() / 2)),
            ("header", |bytes| bytes[3] ^= 0xff),
            ("pages", |bytes| {
                bytes.iter_mut().skip(4096).for_each(|byte| *byte = 0xa5)
            }),
            ("emptied", Vec::clear),
        ];
        for (name, damage) in damages {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("ledger.sqlite");
            fill(&path);
            let mut bytes = std::fs::read(&path).unwrap();
            damage(&mut bytes);
            std::fs::write(&path, &bytes).unwrap();
            let (ledger, loaded, thread) = Ledger::open(&path, "boot").unwrap();
            assert!(loaded.rebuilt.is_some(), "{name}");
            assert!(loaded.restored.set.is_none(), "{name}");
            let aside = std::fs::read_dir(dir.path())
                .unwrap()
                .any(|entry| entry.unwrap().file_name().to_string_lossy().contains(".corrupt-"));
            assert_eq!(aside, name != "emptied", "{name}");
            ledger.close();
            thread.join().unwrap();
            let (ledger, loaded, thread) = Ledger::open(&path, "boot").unwrap();
            assert_eq!(loaded.rebuilt, None, "{name}: usable again");
            ledger.close();
            thread.join().unwrap();
        }
    }

    #[test]
    fn one_unreadable_row_costs_only_its_replica() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        fill(&path);
        let connection = Connection::open(&path).unwrap();
        connection
            .execute("INSERT INTO replica VALUES ('c', 'not json')", [])
            .unwrap();
        drop(connection);
        let (ledger, loaded, thread) = Ledger::open(&path, "boot").unwrap();
        assert_eq!(loaded.rebuilt, None);
        assert_eq!(loaded.restored.replicas.len(), 1);
        ledger.close();
        thread.join().unwrap();
    }

    #[test]
    fn a_newer_schema_is_kept_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        fill(&path);
        Connection::open(&path)
            .unwrap()
            .pragma_update(None, "user_version", 99)
            .unwrap();
        let (ledger, loaded, thread) = Ledger::open(&path, "boot").unwrap();
        assert!(loaded.rebuilt.unwrap().contains("schema 99"));
        ledger.close();
        thread.join().unwrap();
    }

    #[tokio::test]
    async fn waits_for_its_commit() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _, thread) = Ledger::open(&dir.path().join("l"), "boot").unwrap();
        let sequence = ledger.write_blob("k", vec![1]);
        tokio::time::timeout(Duration::from_secs(10), ledger.wait(sequence))
            .await
            .unwrap()
            .unwrap();
        ledger.close();
        thread.join().unwrap();
    }
}
