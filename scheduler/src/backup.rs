//! Copies of a whole store, and a store from such a copy.
//!
//! A backup is one SQLite file of the store's own schema, whatever store it was taken from, with one table more: the keys of
//! the data directory. It is only for its owner to read. It is taken beside a running scheduler: of SQLite as of one
//! moment, of etcd as of one moment for each cluster; clusters do not depend on each other.
//!
//! A restore fills an empty store and starts a new epoch in every cluster, above all that the lost history can have had:
//! nodes take the sets of the restored history, and one that has taken sets of the lost one is known by it when it links
//! (see [`crate::cluster`]): nothing unknown that runs there is stopped.

#[cfg(test)]
mod tests;

use std::fmt;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use berth_api::id::ClusterId;
use berth_api::time::Timestamp;
use rusqlite::Connection;

use crate::cluster::{LoadError, Loaded};
use crate::config::{Config, StoreChoice};
use crate::entry::Entry;
use crate::store::crash;
use crate::store::{Etcd, History, Reading, Sqlite, Store, StoreError};

/// Files of the data directory that a backup holds, and their modes. Retired keys of platform tokens come on top.
const KEY_FILES: [(&str, u32); 4] = [
    ("ca.key", 0o600),
    ("ca.pem", 0o644),
    ("platform.key", 0o600),
    ("token-secret", 0o600),
];
const RETIRED_DIR: &str = "platform-retired";
/// Records that are put into a store at once.
const RECORDS_AT_ONCE: usize = 256;
/// Minutes of Unix time from which the epochs of restores count: 2026-01-01.
const EPOCH_ORIGIN_MINUTES: u64 = 29_453_760;

/// Why there is no backup, or no restored store.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{operation} {path}")]
    File {
        operation: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is there already; {remedy}")]
    Exists { path: PathBuf, remedy: &'static str },
    #[error(
        "{path} differs from the key in the backup; move it away first, or restore into another data_dir"
    )]
    OtherKey { path: PathBuf },
    #[error("{path} is a store and no backup: it holds no keys")]
    NoBackup { path: PathBuf },
    #[error("{operation} {path}")]
    Engine {
        operation: &'static str,
        path: PathBuf,
        source: rusqlite::Error,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the history of a cluster cannot be replayed")]
    Load(#[from] LoadError),
}

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    pub clusters: usize,
    /// Records after the newest snapshots.
    pub records: usize,
    pub keys: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} clusters with {} records after their snapshots, and {} key files",
            self.clusters, self.records, self.keys
        )
    }
}

/// Writes the store and the keys of `config` to a new file, readable only for this user.
///
/// # Errors
/// When the file is there, or something cannot be read or written; then there is no file.
pub async fn backup(config: &Config, file: &Path) -> Result<Summary, BackupError> {
    if file.exists() {
        return Err(BackupError::Exists {
            path: file.into(),
            remedy: "a backup is never written over",
        });
    }
    let work = Work::beside(file)?;
    let unfinished = work.path.join("store.db");
    let target = Sqlite::open(&unfinished)?;
    let mut summary = match &config.store {
        StoreChoice::Sqlite => {
            let source = Reading::begin(&config.data_dir.join("store.db"))?;
            let mut summary = Summary::default();
            for cluster in source.clusters()? {
                summary.count(&copy(&target, &cluster, source.load(&cluster)?).await?);
            }
            summary
        }
        StoreChoice::Etcd(_) => {
            let source = open_etcd(config).await?;
            source.check_whole().await?;
            let mut summary = Summary::default();
            for cluster in source.clusters().await? {
                let history = source.load(&cluster).await?;
                // One that was deleted since the list was made.
                if history != History::empty() {
                    summary.count(&copy(&target, &cluster, history).await?);
                }
            }
            summary
        }
    };
    drop(target);
    crash::point("backup.copied");
    summary.keys = write_keys(&unfinished, &config.data_dir)?;
    crash::point("backup.keys");
    sync(&unfinished)?;
    crash::point("backup.synced");
    // Unlike a rename, a link never replaces what somebody else has put there meanwhile.
    std::fs::hard_link(&unfinished, file).map_err(at("make", file))?;
    crash::point("backup.linked");
    sync(&parent(file))?;
    Ok(summary)
}

/// Fills the empty store of `config`, and its data directory with the keys.
///
/// # Errors
/// When the store is not empty, keys differ, or something cannot be read or written. What a restore that ended early has left
/// behind does not hinder the next one.
pub async fn restore(config: &Config, file: &Path) -> Result<Summary, BackupError> {
    let source = Reading::begin(file)?;
    let keys = read_keys(file)?;
    check_keys(&config.data_dir, &keys)?;
    let summary = match &config.store {
        StoreChoice::Sqlite => {
            let path = config.data_dir.join("store.db");
            if path.exists() {
                return Err(BackupError::Exists {
                    path,
                    remedy: "a restore needs an empty store, so move it away first",
                });
            }
            make_dir(&config.data_dir)?;
            let work = Work::beside(&path)?;
            let unfinished = work.path.join("store.db");
            let target = Sqlite::open(&unfinished)?;
            let summary = fill(&target, &source).await?;
            drop(target);
            crash::point("restore.filled");
            put_keys(&config.data_dir, &keys)?;
            crash::point("restore.keys");
            sync(&unfinished)?;
            std::fs::hard_link(&unfinished, &path).map_err(at("make", &path))?;
            crash::point("restore.linked");
            summary
        }
        StoreChoice::Etcd(_) => {
            let target = open_etcd(config).await?;
            target.begin_restore().await?;
            let summary = fill(&target, &source).await?;
            make_dir(&config.data_dir)?;
            put_keys(&config.data_dir, &keys)?;
            target.end_restore().await?;
            summary
        }
    };
    sync(&config.data_dir)?;
    Ok(Summary {
        keys: keys.len(),
        ..summary
    })
}

impl Summary {
    fn count(&mut self, history: &History) {
        self.clusters += 1;
        self.records += history.records.len();
    }
}

async fn open_etcd(config: &Config) -> Result<Etcd, BackupError> {
    let StoreChoice::Etcd(choice) = &config.store else {
        unreachable!("asked for a store that is etcd");
    };
    let options = choice.options().map_err(|(path, source)| BackupError::File {
        operation: "read",
        path,
        source,
    })?;
    Ok(Etcd::open(&options).await?)
}

/// Puts a history into a store that does not know the cluster; gives it back.
async fn copy(target: &dyn Store, cluster: &ClusterId, history: History) -> Result<History, BackupError> {
    if let Some(snapshot) = &history.snapshot {
        target.begin(cluster, snapshot.clone()).await?;
    }
    let first = history.snapshot.as_ref().map_or(1, |snapshot| snapshot.seq + 1);
    let mut next = first;
    for records in history.records.chunks(RECORDS_AT_ONCE) {
        let payloads = records.iter().map(|record| record.payload.clone()).collect();
        next = target.append(cluster, next, payloads).await?;
    }
    assert_eq!(next, history.next_seq, "a history ends where its records end");
    Ok(history)
}

/// Copies every cluster, and starts a new epoch in each.
async fn fill(target: &dyn Store, source: &Reading) -> Result<Summary, BackupError> {
    let mut summary = Summary::default();
    for cluster in source.clusters()? {
        let history = copy(target, &cluster, source.load(&cluster)?).await?;
        summary.count(&history);
        let now = Timestamp::now();
        let world = Loaded::load(target, &cluster).await?.world;
        let entry = Entry::EpochStarted {
            epoch: epoch_after(world.epoch(), now),
            at: now,
        };
        target
            .append(&cluster, history.next_seq, vec![entry.to_record()])
            .await?;
    }
    Ok(summary)
}

/// An epoch above those of the lost history. Those count up by one for each machine that proves a loss; time is ahead of
/// them, and of the epochs of earlier restores, and two restores of one backup are more than a minute apart or nobody
/// has linked in between.
fn epoch_after(epoch: u64, now: Timestamp) -> u64 {
    let minutes = (now.millis() / 60_000).saturating_sub(EPOCH_ORIGIN_MINUTES);
    minutes.max(epoch + 1)
}

/// The keys of a data directory: path below it, and content.
type Keys = Vec<(String, Vec<u8>)>;

fn mode_of(name: &str) -> u32 {
    KEY_FILES
        .iter()
        .find(|(known, _)| *known == name)
        .map_or(0o600, |(_, mode)| *mode)
}

fn keys_of(data_dir: &Path) -> Result<Keys, BackupError> {
    let mut names: Vec<String> = KEY_FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
    let retired = data_dir.join(RETIRED_DIR);
    if retired.is_dir() {
        for entry in std::fs::read_dir(&retired).map_err(at("list", &retired))? {
            let name = entry.map_err(at("list", &retired))?.file_name();
            names.push(format!("{RETIRED_DIR}/{}", name.to_string_lossy()));
        }
    }
    let mut keys = Vec::new();
    for name in names {
        let path = data_dir.join(&name);
        match std::fs::read(&path) {
            Ok(content) => keys.push((name, content)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(at("read", &path)(error)),
        }
    }
    Ok(keys)
}

fn write_keys(file: &Path, data_dir: &Path) -> Result<usize, BackupError> {
    let keys = keys_of(data_dir)?;
    let write = || -> Result<(), rusqlite::Error> {
        let connection = Connection::open(file)?;
        connection.execute(
            "CREATE TABLE key_file (name TEXT PRIMARY KEY, content BLOB NOT NULL)",
            [],
        )?;
        for (name, content) in &keys {
            connection.execute(
                "INSERT INTO key_file (name, content) VALUES (?1, ?2)",
                (name, content),
            )?;
        }
        // One file, with nothing beside it.
        connection.pragma_update(None, "journal_mode", "DELETE")
    };
    write().map_err(|source| BackupError::Engine {
        operation: "write the keys to",
        path: file.into(),
        source,
    })?;
    Ok(keys.len())
}

fn read_keys(file: &Path) -> Result<Keys, BackupError> {
    let engine = |source| BackupError::Engine {
        operation: "read the keys of",
        path: file.into(),
        source,
    };
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = Connection::open_with_flags(file, flags).map_err(engine)?;
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name = 'key_file'";
    let count: i64 = connection
        .query_row(tables, [], |row| row.get(0))
        .map_err(engine)?;
    if count == 0 {
        return Err(BackupError::NoBackup { path: file.into() });
    }
    let read = || -> Result<Keys, rusqlite::Error> {
        connection
            .prepare("SELECT name, content FROM key_file ORDER BY name")?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
    };
    let keys = read().map_err(engine)?;
    // A name is one that a backup writes: nothing is put elsewhere than into the data directory.
    let is_known = |name: &str| {
        let retired = name
            .strip_prefix(RETIRED_DIR)
            .and_then(|rest| rest.strip_prefix('/'));
        KEY_FILES.iter().any(|(known, _)| *known == name)
            || retired.is_some_and(|name| !name.contains('/') && !name.starts_with('.'))
    };
    if keys.iter().all(|(name, _)| is_known(name)) {
        Ok(keys)
    } else {
        Err(BackupError::NoBackup { path: file.into() })
    }
}

/// Keys that are there already must be those of the backup.
fn check_keys(data_dir: &Path, keys: &Keys) -> Result<(), BackupError> {
    for (name, content) in keys {
        let path = data_dir.join(name);
        match std::fs::read(&path) {
            Ok(found) if found == *content => {}
            Ok(_) => return Err(BackupError::OtherKey { path }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(at("read", &path)(error)),
        }
    }
    Ok(())
}

fn put_keys(data_dir: &Path, keys: &Keys) -> Result<(), BackupError> {
    for (name, content) in keys {
        let path = data_dir.join(name);
        if path.exists() {
            continue;
        }
        make_dir(&parent(&path))?;
        let unfinished = path.with_extension("new");
        let write = || -> std::io::Result<()> {
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(mode_of(name))
                .open(&unfinished)?;
            std::io::Write::write_all(&mut file, content)?;
            file.sync_all()?;
            crash::point("restore.key");
            std::fs::rename(&unfinished, &path)
        };
        write().map_err(at("write", &path))?;
        sync(&parent(&path))?;
    }
    Ok(())
}

/// A directory for what is not finished, private, removed when dropped.
#[derive(Debug)]
struct Work {
    path: PathBuf,
}

impl Work {
    fn beside(file: &Path) -> Result<Self, BackupError> {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let path = parent(file).join(format!(".{name}.unfinished"));
        // Of one that was killed.
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(at("remove", &path)(error));
            }
            Ok(()) | Err(_) => {}
        }
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(at("make", &path))?;
        // The file keeps its mode when it is moved out of the private directory.
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path.join("store.db"))
            .map_err(at("make", &path))?;
        Ok(Self { path })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(error = &error as &dyn std::error::Error, path = %self.path.display(),
                "cannot remove what is not needed any more");
        }
    }
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.into(),
        Some(_) | None => ".".into(),
    }
}

fn make_dir(path: &Path) -> Result<(), BackupError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(at("make", path))
}

fn sync(path: &Path) -> Result<(), BackupError> {
    std::fs::File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(at("flush", path))
}

fn at(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> BackupError {
    let path = path.to_path_buf();
    move |source| BackupError::File {
        operation,
        path,
        source,
    }
}
