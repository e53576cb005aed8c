//! Ephemeral storage on real loop devices: the limit holds, it survives the daemon, and it goes with its replica. Needs
//! root.

#![expect(clippy::unwrap_used, reason = "a broken step ends the test with its place")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::process::Command;

use berth_api::id::ReplicaId;
use berth_api::units::Bytes;
use berth_node::host::ephemeral::{Admission, Ephemeral, EphemeralConfig, EphemeralError};

fn skip_without_root(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED {test}: needs root for mounts");
    }
    !is_root
}

fn replica(id: &str) -> ReplicaId {
    ReplicaId::new(id).expect("an id")
}

async fn open(dir: &Path, admission: Admission) -> Ephemeral {
    Ephemeral::open(EphemeralConfig {
        dir: dir.into(),
        admission,
    })
    .await
    .expect("a store")
}

/// Writes until the file system refuses; the bytes written.
fn fill(dir: &Path) -> u64 {
    let mut file = File::create(dir.join("fill")).expect("a file");
    let block = vec![7; 64 * 1024];
    let mut written = 0;
    loop {
        match file.write_all(&block) {
            Ok(()) => written += 64 * 1024,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StorageFull);
                return written;
            }
        }
    }
}

#[tokio::test]
async fn the_size_is_hard_and_a_full_one_hurts_nobody_else() {
    if skip_without_root("the_size_is_hard_and_a_full_one_hurts_nobody_else") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Admission::Reserved).await;
    let full = store.create(&replica("full"), Bytes::mib(16)).await.unwrap();
    let other = store.create(&replica("other"), Bytes::mib(16)).await.unwrap();
    let written = fill(&full);
    assert!((12 << 20..16 << 20).contains(&written), "{written} bytes went in");
    fs::write(other.join("fine"), vec![1; 1 << 20]).unwrap();
    assert_eq!(fs::read_dir(&other).unwrap().count(), 1, "nothing but ours");

    // The daemon dies and comes back: same place, same bytes.
    drop(store);
    let store = open(dir.path(), Admission::Reserved).await;
    assert_eq!(
        store.create(&replica("other"), Bytes::mib(16)).await.unwrap(),
        other
    );
    assert!(other.join("fine").exists());
    // A lost mount (a reboot) is mounted again; a half-made image is made anew.
    assert!(Command::new("umount").arg(&other).status().unwrap().success());
    store.create(&replica("other"), Bytes::mib(16)).await.unwrap();
    assert!(other.join("fine").exists());

    let listed = store.list().await.unwrap();
    assert_eq!(listed.len(), 2);
    for volume in listed {
        store.remove(&volume.replica_id).await.unwrap();
        store.remove(&volume.replica_id).await.unwrap();
    }
    assert_eq!(fs::read_dir(store.dir()).unwrap().count(), 0);
    assert_nothing_left(dir.path());
}

#[tokio::test]
async fn one_that_is_held_open_stays_listed_until_it_is_let_go() {
    if skip_without_root("one_that_is_held_open_stays_listed_until_it_is_let_go") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Admission::Reserved).await;
    let path = store.create(&replica("held"), Bytes::mib(8)).await.unwrap();
    let held = File::create(path.join("open")).unwrap();
    let error = store.remove(&replica("held")).await.unwrap_err();
    assert!(matches!(error, EphemeralError::Held { .. }), "{error}");
    assert_eq!(store.list().await.unwrap().len(), 1);
    drop(held);
    store.remove(&replica("held")).await.unwrap();
    assert_nothing_left(dir.path());
}

#[tokio::test]
async fn promises_beyond_the_disk_are_refused_unless_overcommitted() {
    if skip_without_root("promises_beyond_the_disk_are_refused_unless_overcommitted") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Admission::Reserved).await;
    let error = store
        .create(&replica("huge"), Bytes::gib(4096))
        .await
        .unwrap_err();
    assert!(matches!(error, EphemeralError::NoRoom { .. }), "{error}");
    assert!(error.to_string().starts_with("no room for"), "{error}");
    assert_eq!(store.list().await.unwrap(), []);

    let store = open(dir.path(), Admission::Overcommitted).await;
    store.create(&replica("huge"), Bytes::gib(1024)).await.unwrap();
    // Another size: made anew.
    let path = store.create(&replica("huge"), Bytes::mib(8)).await.unwrap();
    assert!(fill(&path) < 8 << 20);
    store.remove(&replica("huge")).await.unwrap();
    assert_nothing_left(dir.path());
}

#[tokio::test]
async fn twenty_at_once() {
    if skip_without_root("twenty_at_once") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Admission::Reserved).await;
    let ids: Vec<ReplicaId> = (0..20).map(|index| replica(&format!("r{index}"))).collect();
    let made = ids.iter().map(|id| store.create(id, Bytes::mib(8)));
    for result in futures::future::join_all(made).await {
        result.unwrap();
    }
    let gone = ids.iter().map(|id| store.remove(id));
    for result in futures::future::join_all(gone).await {
        result.unwrap();
    }
    assert_nothing_left(dir.path());
}

fn assert_nothing_left(dir: &Path) {
    let dir = fs::canonicalize(dir).unwrap();
    let dir = dir.to_str().unwrap();
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(dir));
    let loops = Command::new("losetup").arg("-a").output().unwrap();
    assert!(!String::from_utf8_lossy(&loops.stdout).contains(dir));
}
