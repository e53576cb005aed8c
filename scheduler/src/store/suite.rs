//! The rules of [`super::Store`], tried on every implementation: memory, SQLite, and a real etcd. What only a file can
//! suffer (flipped bits, a second process, a newer schema, a torn write) is tried on SQLite; what only etcd can, in
//! `etcd/tests.rs`.

use std::path::Path;

use berth_api::id::ClusterId;

use super::etcd::fixture::{EtcdCluster, data_root, skip_without_etcd};
use super::{Etcd, EtcdOptions, Fault, History, Memory, Record, Snapshot, Sqlite, Store, StoreError};

fn cluster(name: &str) -> ClusterId {
    ClusterId::new(name).unwrap()
}

fn payloads(numbers: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    numbers
        .map(|number| format!("{{\"n\":{number},\"text\":\"payload-{number:06}\"}}").into_bytes())
        .collect()
}

fn records(numbers: std::ops::Range<u64>) -> Vec<Record> {
    numbers
        .clone()
        .zip(payloads(numbers))
        .map(|(seq, payload)| Record { seq, payload })
        .collect()
}

/// Runs a rule on every implementation.
macro_rules! on_every_store {
    ($($rule:ident),+ $(,)?) => {
        mod memory {
            $(#[tokio::test] async fn $rule() { super::$rule(&super::Memory::default()).await; })+
        }
        mod sqlite {
            $(#[tokio::test] async fn $rule() {
                let dir = tempfile::tempdir().unwrap();
                super::$rule(&super::Sqlite::open(&dir.path().join("store.db")).unwrap()).await;
            })+
        }
        mod etcd {
            $(#[tokio::test] async fn $rule() {
                if super::skip_without_etcd(stringify!($rule)) {
                    return;
                }
                let dir = tempfile::tempdir_in(super::data_root()).unwrap();
                let servers = super::EtcdCluster::start(dir.path(), 1, &[]);
                let options = super::EtcdOptions {
                    endpoints: servers.endpoints(),
                    prefix: "/berth".into(),
                    user: None,
                    tls: None,
                };
                super::$rule(&super::Etcd::open(&options).await.unwrap()).await;
            })+
        }
    };
}

on_every_store!(
    an_unknown_cluster_has_an_empty_history,
    what_was_appended_is_read_in_order,
    an_append_at_another_place_is_fenced_and_changes_nothing,
    a_snapshot_stands_for_the_records_before_it,
    a_history_may_begin_with_a_snapshot,
    the_log_stays_bounded,
    a_deleted_cluster_is_forgotten_and_may_be_made_again,
    records_and_snapshots_of_every_size_come_back,
    concurrent_appends_to_many_clusters_all_last,
);

async fn an_unknown_cluster_has_an_empty_history(store: &dyn Store) {
    assert_eq!(store.load(&cluster("a")).await.unwrap(), History::empty());
    assert!(store.clusters().await.unwrap().is_empty());
}

async fn what_was_appended_is_read_in_order(store: &dyn Store) {
    let (one, other) = (cluster("acme/b"), cluster("acme/a"));
    assert_eq!(store.append(&one, 1, payloads(1..4)).await.unwrap(), 4);
    assert_eq!(store.append(&other, 1, payloads(1..2)).await.unwrap(), 2);
    assert_eq!(store.append(&one, 4, payloads(4..5)).await.unwrap(), 5);
    let history = store.load(&one).await.unwrap();
    assert_eq!((history.records, history.next_seq), (records(1..5), 5));
    assert_eq!(store.clusters().await.unwrap(), [other, one]);
}

async fn an_append_at_another_place_is_fenced_and_changes_nothing(store: &dyn Store) {
    let id = cluster("c");
    store.append(&id, 1, payloads(1..3)).await.unwrap();
    for expected in [1, 2, 4] {
        let refused = store.append(&id, expected, payloads(3..4)).await;
        assert!(
            matches!(refused, Err(StoreError::Fenced { found: 3, .. })),
            "{refused:?}"
        );
    }
    let snapshot = Snapshot {
        seq: 1,
        payload: b"{}".to_vec(),
    };
    assert!(matches!(
        store.snapshot(&id, snapshot).await,
        Err(StoreError::Fenced { .. })
    ));
    assert!(matches!(
        store.delete(&id, 9).await,
        Err(StoreError::Fenced { .. })
    ));
    assert_eq!(store.load(&id).await.unwrap().records, records(1..3));
}

async fn a_snapshot_stands_for_the_records_before_it(store: &dyn Store) {
    let id = cluster("c");
    store.append(&id, 1, payloads(1..11)).await.unwrap();
    let snapshot = Snapshot {
        seq: 10,
        payload: b"state at ten".to_vec(),
    };
    store.snapshot(&id, snapshot.clone()).await.unwrap();
    store.append(&id, 11, payloads(11..13)).await.unwrap();
    let history = store.load(&id).await.unwrap();
    assert_eq!(history.snapshot, Some(snapshot));
    assert_eq!(history.records, records(11..13));
    assert_eq!(history.next_seq, 13);
}

async fn a_history_may_begin_with_a_snapshot(store: &dyn Store) {
    let id = cluster("c");
    let first = Snapshot {
        seq: 40,
        payload: b"state at forty".to_vec(),
    };
    store.begin(&id, first.clone()).await.unwrap();
    let again = store.begin(&id, first.clone()).await;
    assert!(matches!(again, Err(StoreError::Fenced { .. })), "{again:?}");
    let history = store.load(&id).await.unwrap();
    assert_eq!((history.snapshot, history.next_seq), (Some(first), 41));
    let mut next = store.append(&id, 41, payloads(41..44)).await.unwrap();
    assert_eq!(store.load(&id).await.unwrap().records, records(41..44));
    for _ in 0..3 {
        let snapshot = Snapshot {
            seq: next - 1,
            payload: format!("state at {}", next - 1).into_bytes(),
        };
        store.snapshot(&id, snapshot.clone()).await.unwrap();
        assert_eq!(store.load(&id).await.unwrap().snapshot, Some(snapshot));
        next = store.append(&id, next, payloads(next..next + 2)).await.unwrap();
        assert_eq!(store.load(&id).await.unwrap().records, records(next - 2..next));
    }
}

async fn the_log_stays_bounded(store: &dyn Store) {
    let id = cluster("c");
    for round in 0..5 {
        let first = round * 10 + 1;
        store
            .append(&id, first, payloads(first..first + 10))
            .await
            .unwrap();
        let snapshot = Snapshot {
            seq: first + 9,
            payload: format!("state at {}", first + 9).into_bytes(),
        };
        store.snapshot(&id, snapshot).await.unwrap();
    }
    let history = store.load(&id).await.unwrap();
    assert_eq!(history.snapshot.unwrap().payload, b"state at 50");
    assert!(history.records.is_empty());
    assert_eq!(history.next_seq, 51);
}

async fn a_deleted_cluster_is_forgotten_and_may_be_made_again(store: &dyn Store) {
    let id = cluster("c");
    store.append(&id, 1, payloads(1..6)).await.unwrap();
    store.delete(&id, 6).await.unwrap();
    assert!(store.clusters().await.unwrap().is_empty());
    assert_eq!(store.append(&id, 1, payloads(1..2)).await.unwrap(), 2);
    assert_eq!(store.load(&id).await.unwrap().records, records(1..2));
}

async fn records_and_snapshots_of_every_size_come_back(store: &dyn Store) {
    let id = cluster("c");
    let mut next = 1;
    for len in [0, 1, (1 << 20) - 9, 1 << 20, (1 << 21) + 1] {
        let payload = vec![b'x'; len];
        let after = store
            .append(&id, next, vec![payload.clone(), b"{}".to_vec()])
            .await
            .unwrap();
        assert_eq!(after, next + 2);
        let snapshot = Snapshot {
            seq: after - 1,
            payload: payload.clone(),
        };
        let history = store.load(&id).await.unwrap();
        let of_append: Vec<_> = history
            .records
            .iter()
            .rev()
            .take(2)
            .map(|r| r.payload.len())
            .collect();
        assert_eq!(of_append, [2, len]);
        store.snapshot(&id, snapshot.clone()).await.unwrap();
        let history = store.load(&id).await.unwrap();
        assert_eq!((history.snapshot, history.records), (Some(snapshot), Vec::new()));
        next = after;
    }
}

async fn concurrent_appends_to_many_clusters_all_last(store: &dyn Store) {
    let appends = (0..20).map(|number| async move {
        let id = cluster(&format!("c{number:02}"));
        for seq in 1..6 {
            store.append(&id, seq, payloads(seq..seq + 1)).await.unwrap();
        }
    });
    futures::future::join_all(appends).await;
    for id in store.clusters().await.unwrap() {
        assert_eq!(store.load(&id).await.unwrap().records, records(1..6));
    }
}

/// A store with 20 records and a snapshot at the tenth, closed.
async fn written(path: &Path) {
    let store = Sqlite::open(path).unwrap();
    let id = cluster("acme");
    store.append(&id, 1, payloads(1..11)).await.unwrap();
    let snapshot = Snapshot {
        seq: 10,
        payload: b"the state of the tenth record".to_vec(),
    };
    store.snapshot(&id, snapshot).await.unwrap();
    store.append(&id, 11, payloads(11..21)).await.unwrap();
}

/// Flips one bit of the first place where `text` stands in the file.
fn flip(path: &Path, text: &str) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes
        .windows(text.len())
        .position(|window| window == text.as_bytes())
        .expect("the text is in the file");
    bytes[at + text.len() - 1] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// Why a store is refused; the refusal names the file.
fn unsound(path: &Path) -> StoreError {
    let error = Sqlite::open(path).unwrap_err();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    match error {
        StoreError::Unsound { source, .. } => *source,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_flipped_bit_names_the_record_and_overwrites_nothing() {
    for number in [1, 7, 15, 20] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        written(&path).await;
        flip(&path, &format!("payload-{number:06}"));
        let before = std::fs::read(&path).unwrap();
        let error = unsound(&path);
        assert!(
            matches!(error, StoreError::Corrupt { seq, fault: Fault::Crc, .. } if seq == number),
            "{error:?}"
        );
        assert_eq!(
            error.to_string(),
            format!("cluster acme, record {number}: crc differs")
        );
        assert_eq!(std::fs::read(&path).unwrap(), before, "the file is as it was");
    }
}

#[tokio::test]
async fn a_flipped_bit_of_a_snapshot_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    written(&path).await;
    flip(&path, "the state of the tenth record");
    let error = unsound(&path);
    assert_eq!(
        error.to_string(),
        "cluster acme, snapshot at record 10: crc differs"
    );
}

#[tokio::test]
async fn no_flipped_bit_anywhere_goes_unnoticed_or_is_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    written(&path).await;
    let sound = std::fs::read(&path).unwrap();
    let expected = {
        let store = Sqlite::open(&path).unwrap();
        store.load(&cluster("acme")).await.unwrap()
    };
    // A stride that shares no factor with the page size visits headers, cells and free space alike.
    for at in (0..sound.len()).step_by(211) {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x10;
        for leftover in ["store.db-wal", "store.db-shm"] {
            drop(std::fs::remove_file(dir.path().join(leftover)));
        }
        std::fs::write(&path, &bytes).unwrap();
        match Sqlite::open(&path) {
            Err(_) => assert_eq!(std::fs::read(&path).unwrap(), bytes, "byte {at}"),
            // Free space and hints are nobody's content: what is read must be what was written.
            Ok(store) => assert_eq!(store.load(&cluster("acme")).await.unwrap(), expected, "byte {at}"),
        }
    }
}

#[tokio::test]
async fn a_lost_record_is_named() {
    for (lost, named) in [(14, 14), (20, 20)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        written(&path).await;
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection
            .execute("DELETE FROM record WHERE seq = ?1", [lost])
            .unwrap();
        drop(connection);
        let error = unsound(&path);
        assert_eq!(
            error.to_string(),
            format!("cluster acme, record {named}: missing")
        );
    }
}

#[tokio::test]
async fn a_second_opener_is_refused_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let first = Sqlite::open(&path).unwrap();
    let error = Sqlite::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error:?}");
    drop(first);
    Sqlite::open(&path).unwrap();
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    written(&path).await;
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute("UPDATE schema SET version = 2", []).unwrap();
    drop(connection);
    let error = Sqlite::open(&path).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Newer {
                found: 2,
                known: 1,
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    std::fs::write(&path, "x".repeat(10_000)).unwrap();
    let error = Sqlite::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
}

/// What a power cut leaves: the file and its write-ahead log as of some moment, the log cut anywhere. Every record that
/// is read is one that was written, in order and without a gap.
#[tokio::test]
async fn a_torn_write_ahead_log_gives_a_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = Sqlite::open(&path).unwrap();
    let id = cluster("acme");
    for seq in 1..21 {
        store.append(&id, seq, payloads(seq..seq + 1)).await.unwrap();
    }
    let database = std::fs::read(&path).unwrap();
    let log = std::fs::read(dir.path().join("store.db-wal")).unwrap();
    let mut lengths = std::collections::BTreeSet::new();
    for length in (0..=log.len()).step_by(1777).chain([log.len()]) {
        let copy = tempfile::tempdir().unwrap();
        let torn = copy.path().join("store.db");
        std::fs::write(&torn, &database).unwrap();
        std::fs::write(copy.path().join("store.db-wal"), &log[..length]).unwrap();
        let reopened = Sqlite::open(&torn).unwrap();
        let history = reopened.load(&id).await.unwrap();
        assert_eq!(history.records, records(1..history.next_seq), "cut at {length}");
        lengths.insert(history.next_seq);
        let next = reopened
            .append(&id, history.next_seq, payloads(0..1))
            .await
            .unwrap();
        assert_eq!(next, history.next_seq + 1);
    }
    assert_eq!(lengths.last(), Some(&21), "a whole log gives every record");
    assert!(lengths.len() > 5, "the cuts fell between commits");
}

/// The file of the present schema, as it was written when that was new. It is never changed; a new schema gets a file
/// beside it, and reads both.
const SCHEMA_1: &[u8] = include_bytes!("../../fixtures/store-1.db");

#[tokio::test]
async fn every_schema_ever_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    std::fs::write(&path, SCHEMA_1).unwrap();
    let store = Sqlite::open(&path).unwrap();
    let history = store.load(&cluster("acme")).await.unwrap();
    assert_eq!(
        history.snapshot.unwrap().payload,
        b"the state of the tenth record"
    );
    assert_eq!(history.records, records(11..21));
    assert_eq!(
        store
            .append(&cluster("acme"), 21, payloads(21..22))
            .await
            .unwrap(),
        22
    );
}

/// How the fixture was made: `cargo test -p berth-scheduler --lib writes_the_fixture -- --ignored`, once for each schema.
#[tokio::test]
#[ignore = "writes a fixture that is never written again"]
async fn writes_the_fixture() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/store-1.db");
    assert!(!path.exists(), "it is never written over");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("store.db");
    written(&file).await;
    std::fs::copy(file, path).unwrap();
}

#[tokio::test]
async fn the_file_stays_bounded_however_much_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = Sqlite::open(&path).unwrap();
    let id = cluster("c");
    let size = || -> u64 {
        let files = std::fs::read_dir(dir.path()).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
    };
    let mut next = 1;
    let mut early = 0;
    // Forty intervals of a thousand records of about 1 KiB: 40 MiB were written at the end.
    for round in 0..40 {
        for _ in 0..10 {
            let payloads = vec![vec![b'x'; 1000]; 100];
            next = store.append(&id, next, payloads).await.unwrap();
        }
        let snapshot = Snapshot {
            seq: next - 1,
            payload: vec![b's'; 100_000],
        };
        store.snapshot(&id, snapshot).await.unwrap();
        if round == 4 {
            early = size();
        }
    }
    let late = size();
    assert!(
        late < early + (1 << 20),
        "{early} bytes after 5 intervals, {late} after 40"
    );
    assert!(
        late < 16 << 20,
        "{late} bytes: two intervals, two snapshots, the write-ahead log"
    );
}
