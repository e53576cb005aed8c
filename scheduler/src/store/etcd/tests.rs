//! What only etcd can suffer or must prove, on a real etcd: another writer, values above its limits, a lost answer, lost
//! members, former values given up. The rules of every store are tried in [`super::super::suite`].

use std::time::Duration;

use super::fixture::{EtcdCluster, data_root, skip_without_etcd};
use super::*;

mod reservation;
mod secured;

fn cluster(name: &str) -> ClusterId {
    ClusterId::new(name).unwrap()
}

fn options(servers: &EtcdCluster) -> EtcdOptions {
    EtcdOptions {
        endpoints: servers.endpoints(),
        prefix: "/berth".into(),
        user: None,
        tls: None,
    }
}

struct Bench {
    servers: EtcdCluster,
    dir: tempfile::TempDir,
}

impl Bench {
    fn start(test: &str, members: usize, flags: &[&str]) -> Option<Self> {
        if skip_without_etcd(test) {
            return None;
        }
        let dir = tempfile::tempdir_in(data_root()).unwrap();
        Some(Self {
            servers: EtcdCluster::start(dir.path(), members, flags),
            dir,
        })
    }

    async fn open(&self) -> Etcd {
        Etcd::open(&options(&self.servers)).await.unwrap()
    }

    async fn keys(&self, store: &Etcd) -> Vec<String> {
        let all = store.read_all("list", "/berth/", 0, What::Keys).await.unwrap();
        assert!(self.dir.path().exists());
        all.into_iter()
            .map(|(key, _)| String::from_utf8(key).unwrap())
            .collect()
    }
}

/// Text of `len` bytes that no other number gives.
fn large(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = format!("{number:08}").into_bytes();
    bytes.resize(len, b'x');
    bytes
}

#[tokio::test]
async fn another_writer_is_fenced_and_changes_nothing() {
    let Some(bench) = Bench::start("another_writer_is_fenced_and_changes_nothing", 1, &[]) else {
        return;
    };
    let (one, other) = (bench.open().await, bench.open().await);
    let id = cluster("acme/prod");
    one.append(&id, 1, vec![b"a".to_vec()]).await.unwrap();
    other.load(&id).await.unwrap();
    other.append(&id, 2, vec![b"b".to_vec()]).await.unwrap();
    // `one` still believes that record 2 is next.
    for payload in [b"c".to_vec(), large(1, 3 << 20)] {
        let refused = one.append(&id, 2, vec![payload]).await;
        assert!(
            matches!(
                refused,
                Err(StoreError::Fenced {
                    expected: 2,
                    found: 3,
                    ..
                })
            ),
            "{refused:?}"
        );
        one.load(&id).await.unwrap();
        one.remember(&id, Some(&other.encode_head(Head { next_seq: 2, crc: 0 })));
    }
    let history = one.load(&id).await.unwrap();
    let payloads: Vec<_> = history.records.into_iter().map(|record| record.payload).collect();
    assert_eq!(payloads, [b"a".to_vec(), b"b".to_vec()]);
    assert!(
        bench.keys(&one).await.iter().all(|key| !key.contains("/part/")),
        "the fenced one left no parts"
    );
}

#[tokio::test]
async fn a_log_that_is_read_while_it_grows_goes_on_growing() {
    let Some(bench) = Bench::start("a_log_that_is_read_while_it_grows_goes_on_growing", 1, &[]) else {
        return;
    };
    let store = bench.open().await;
    let id = cluster("acme/prod");
    let mut next = store.append(&id, 1, vec![large(1, 3 << 20)]).await.unwrap();
    for _ in 0..10 {
        let read = async { store.load(&id).await.unwrap().next_seq };
        let grow = async {
            let mut next = next;
            for _ in 0..20 {
                next = store.append(&id, next, vec![b"a".to_vec()]).await.unwrap();
            }
            next
        };
        let (seen, grown) = tokio::join!(read, grow);
        assert!((next..=grown).contains(&seen), "{next} <= {seen} <= {grown}");
        next = store.append(&id, grown, vec![b"b".to_vec()]).await.unwrap();
    }
}

#[tokio::test]
async fn a_watch_that_lags_does_not_undo_what_the_process_did_since() {
    let Some(bench) = Bench::start(
        "a_watch_that_lags_does_not_undo_what_the_process_did_since",
        1,
        &[],
    ) else {
        return;
    };
    let store = bench.open().await;
    let id = cluster("acme/prod");
    let me = Member {
        nonce: "n1".into(),
        rest_url: "http://10.0.0.1:7600".into(),
        link_url: "https://10.0.0.1:7601".into(),
    };
    store.append(&id, 1, vec![b"a".to_vec()]).await.unwrap();
    let lease = store.join(&me, Duration::from_secs(60)).await.unwrap();
    let survey = store.survey().await.unwrap();
    let mut changes = store.changes(&survey).await.unwrap();
    let claim = || store.claim(&id, Claim::Existing, &me, lease);
    assert_eq!(claim().await.unwrap(), Claimed::Won);
    store.release(&id).await.unwrap();
    assert_eq!(claim().await.unwrap(), Claimed::Won);
    // All that is told now is of before the last claim, but the claim itself.
    let mut told = vec![];
    while told.len() < 3 {
        told.extend(changes.next().await.unwrap());
    }
    let outdated = told
        .iter()
        .map(|(change, revision)| store.is_outdated(change, *revision));
    assert_eq!(outdated.collect::<Vec<_>>(), [true, true, false], "{told:?}");
    // What happens later counts: here the lease is given up.
    store.leave(lease).await.unwrap();
    let mut told = vec![];
    while !told
        .iter()
        .any(|(change, _)| *change == OwnerChange::Free(id.clone()))
    {
        told.extend(changes.next().await.unwrap());
    }
    assert!(
        told.iter()
            .all(|(change, revision)| !store.is_outdated(change, *revision))
    );
}

#[tokio::test]
async fn a_cluster_made_again_is_not_taken_for_the_one_before() {
    let Some(bench) = Bench::start("a_cluster_made_again_is_not_taken_for_the_one_before", 1, &[]) else {
        return;
    };
    let (old, new) = (bench.open().await, bench.open().await);
    let id = cluster("c");
    old.append(&id, 1, vec![b"a".to_vec()]).await.unwrap();
    new.load(&id).await.unwrap();
    new.delete(&id, 2).await.unwrap();
    new.append(&id, 1, vec![b"a".to_vec()]).await.unwrap();
    let refused = old.append(&id, 2, vec![b"b".to_vec()]).await;
    assert!(matches!(refused, Err(StoreError::Fenced { .. })), "{refused:?}");
}

#[tokio::test]
async fn values_above_the_limits_of_etcd_are_kept_whole_and_trimmed() {
    let Some(bench) = Bench::start(
        "values_above_the_limits_of_etcd_are_kept_whole_and_trimmed",
        1,
        &[],
    ) else {
        return;
    };
    let store = bench.open().await;
    let id = cluster("c");
    let mut next = 1;
    for round in 0..4 {
        // One append of 6 MiB in 300 records: above the request limit, and above 128 operations were they one key each.
        let payloads: Vec<_> = (0..300).map(|number| large(next + number, 20_000)).collect();
        next = store.append(&id, next, payloads.clone()).await.unwrap();
        let reader = bench.open().await;
        let history = reader.load(&id).await.unwrap();
        let read: Vec<_> = history.records.into_iter().map(|record| record.payload).collect();
        assert_eq!(read, payloads);
        let snapshot = Snapshot {
            seq: next - 1,
            payload: large(round, 5 << 20),
        };
        store.snapshot(&id, snapshot.clone()).await.unwrap();
        assert_eq!(reader.load(&id).await.unwrap().snapshot, Some(snapshot));
    }
    // Two snapshots of 6 parts, the last append of 6 parts, and the one before, which ends with the older snapshot.
    let keys = bench.keys(&store).await;
    let parts = keys.iter().filter(|key| key.contains("/part/")).count();
    assert!(parts <= 24, "{parts} parts: what is trimmed is gone");
    store.delete(&id, next).await.unwrap();
    assert_eq!(bench.keys(&store).await, ["/berth/schema"]);
}

#[tokio::test]
async fn a_flipped_bit_and_a_lost_key_are_named() {
    let Some(bench) = Bench::start("a_flipped_bit_and_a_lost_key_are_named", 1, &[]) else {
        return;
    };
    let store = bench.open().await;
    let id = cluster("acme");
    for seq in 1..4 {
        store.append(&id, seq, vec![large(seq, 10)]).await.unwrap();
    }
    let client = store.connection.client().await.unwrap();
    let key = store.keys.value(Kind::Log, &id, 2);
    let found = kv(&client).get(key.as_str(), None).await.unwrap();
    let sound = found.kvs()[0].value().to_vec();
    let mut flipped = sound.clone();
    *flipped.last_mut().unwrap() ^= 1;
    kv(&client).put(key.as_str(), flipped, None).await.unwrap();
    let error = store.load(&id).await.unwrap_err();
    assert_eq!(error.to_string(), "cluster acme, record 2: crc differs");
    kv(&client).delete(key.as_str(), None).await.unwrap();
    let error = store.load(&id).await.unwrap_err();
    assert_eq!(error.to_string(), "cluster acme, record 2: missing");
    kv(&client).put(key, sound, None).await.unwrap();
    store.load(&id).await.unwrap();
}

#[tokio::test]
async fn a_newer_layout_is_refused() {
    let Some(bench) = Bench::start("a_newer_layout_is_refused", 1, &[]) else {
        return;
    };
    let store = bench.open().await;
    let client = store.connection.client().await.unwrap();
    kv(&client).put("/berth/schema", "2", None).await.unwrap();
    let error = Etcd::open(&options(&bench.servers)).await.unwrap_err();
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

/// Where a log ends, once a leader says so: an election may take longer than one call waits.
async fn next_in_time(store: &Etcd, id: &ClusterId) -> u64 {
    for _ in 0..20 {
        match store.load(id).await {
            Ok(history) => return history.next_seq,
            Err(StoreError::Unreachable { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    panic!("no leader is elected");
}

/// Adds a record at the end, wherever that is: an attempt without an answer may have been made.
async fn append_in_time(store: &Etcd, id: &ClusterId, payload: &[u8]) -> u64 {
    for _ in 0..20 {
        let next = next_in_time(store, id).await;
        match store.append(id, next, vec![payload.to_vec()]).await {
            Ok(after) => return after,
            Err(StoreError::Unreachable { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    panic!("no leader is elected");
}

#[tokio::test]
async fn a_lost_majority_is_said_and_service_resumes_by_itself() {
    let Some(mut bench) = Bench::start("a_lost_majority_is_said_and_service_resumes_by_itself", 3, &[])
    else {
        return;
    };
    let store = bench.open().await;
    let id = cluster("c");
    store.append(&id, 1, vec![b"a".to_vec()]).await.unwrap();
    // One member less costs nothing but an election.
    bench.servers.kill(0);
    let next = append_in_time(&store, &id, b"b").await;
    bench.servers.kill(1);
    let error = store.append(&id, next, vec![b"c".to_vec()]).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("majority"), "{error}");
    bench.servers.restart(0);
    // What became of the third append is read; whatever it was, the next one lasts.
    let next = append_in_time(&store, &id, b"d").await;
    assert_eq!(next_in_time(&store, &id).await, next);
}

#[tokio::test]
async fn a_full_etcd_says_so_and_service_resumes_when_there_is_room() {
    let test = "a_full_etcd_says_so_and_service_resumes_when_there_is_room";
    let Some(bench) = Bench::start(test, 1, &["--quota-backend-bytes", "16777216"]) else {
        return;
    };
    let store = bench.open().await;
    let (id, ballast) = (cluster("c"), cluster("ballast"));
    store.append(&id, 1, vec![b"a".to_vec()]).await.unwrap();
    let mut next = 1;
    let full = loop {
        match store.append(&ballast, next, vec![large(next, 1 << 19)]).await {
            Ok(after) => next = after,
            Err(error) => break error,
        }
        assert!(next < 100, "16 MiB take fewer than 100 records of half a MiB");
    };
    assert!(matches!(full, StoreError::Full { .. }), "{full:?}");
    assert!(full.to_string().contains("NOSPACE"), "{full}");
    // What an operator does: room, then the alarm.
    let client = store.connection.client().await.unwrap();
    let history = store.load(&ballast).await.unwrap();
    store
        .delete(&ballast, history.next_seq)
        .await
        .unwrap_or_else(|error| panic!("{error:?}"));
    let revision = kv(&client)
        .get("x", None)
        .await
        .unwrap()
        .header()
        .unwrap()
        .revision();
    let physical = etcd_client::CompactionOptions::new().with_physical();
    kv(&client).compact(revision, Some(physical)).await.unwrap();
    let mut maintenance = client.maintenance_client();
    maintenance.defragment().await.unwrap();
    let alarm = etcd_client::AlarmType::Nospace;
    let raised = maintenance
        .alarm(etcd_client::AlarmAction::Get, alarm, None)
        .await
        .unwrap();
    for member in raised.alarms() {
        let mut of_member = etcd_client::AlarmOptions::new();
        of_member.with_member(member.member_id());
        maintenance
            .alarm(etcd_client::AlarmAction::Deactivate, alarm, Some(of_member))
            .await
            .unwrap();
    }
    store.load(&id).await.unwrap();
    assert_eq!(store.append(&id, 2, vec![b"b".to_vec()]).await.unwrap(), 3);
}

#[tokio::test]
async fn former_values_are_given_up_after_two_periods() {
    let Some(bench) = Bench::start("former_values_are_given_up_after_two_periods", 1, &[]) else {
        return;
    };
    let (one, other) = (bench.open().await, bench.open().await);
    let id = cluster("c");
    let mut seen = [(0, 0), (0, 0)];
    let mut next = 1;
    let mut middle = 0;
    for round in 0..4 {
        for _ in 0..10 {
            next = one.append(&id, next, vec![b"a".to_vec()]).await.unwrap();
        }
        let client = one.connection.client().await.unwrap();
        let now = kv(&client)
            .get("x", None)
            .await
            .unwrap()
            .header()
            .unwrap()
            .revision();
        if round == 1 {
            middle = now - 5;
        }
        seen = [
            one.compact(seen[0]).await.unwrap(),
            other.compact(seen[1]).await.unwrap(),
        ];
    }
    let old = one.read_all("read", "/berth/", middle, What::Keys).await;
    assert!(
        old.is_err_and(|error| is_compacted(&error)),
        "the second round is given up"
    );
    assert_eq!(one.load(&id).await.unwrap().records.len(), 40);
}
