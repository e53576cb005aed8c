//! Named points at which this process may be made to end, to prove that the store survives it. Only builds with debug
//! assertions have them: in a release build [`point`] is nothing.
//!
//! `BERTH_CRASH_AT=NAME:COUNT` ends the process, without any clean-up, when it comes to the point NAME for the COUNTth time.
//! Input: the environment, once. `tests/tests/host_crash/points.rs` goes through all of [`POINTS`].

/// Every point, in the order in which a store comes to them.
pub const POINTS: [&str; 32] = [
    "open.locked",
    "open.verified",
    "schema.before",
    "schema.within",
    "schema.after",
    "queue.before",
    "queue.after",
    "commit.before-begin",
    "commit.begun",
    "append.cluster",
    "append.record",
    "append.head",
    "snapshot.kept",
    "snapshot.older-dropped",
    "snapshot.log-trimmed",
    "begin.cluster",
    "begin.snapshot",
    "delete.records",
    "delete.snapshots",
    "delete.cluster",
    "commit.before",
    "commit.after",
    "answer.first",
    "answer.last",
    "backup.copied",
    "backup.keys",
    "backup.synced",
    "backup.linked",
    "restore.filled",
    "restore.key",
    "restore.keys",
    "restore.linked",
];

/// The environment variable that names a point.
pub const CRASH_AT: &str = "BERTH_CRASH_AT";

#[cfg(debug_assertions)]
pub(crate) fn point(name: &'static str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static AT: LazyLock<Option<(String, AtomicU64)>> = LazyLock::new(|| {
        let wanted = std::env::var(CRASH_AT).ok()?;
        let (name, count) = wanted.split_once(':')?;
        Some((name.to_owned(), AtomicU64::new(count.parse().ok()?)))
    });
    assert!(POINTS.contains(&name), "{name} is in the list of points");
    if let Some((wanted, left)) = &*AT
        && wanted == name
        && left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        std::process::abort();
    }
}

#[cfg(not(debug_assertions))]
pub(crate) fn point(_name: &'static str) {}
