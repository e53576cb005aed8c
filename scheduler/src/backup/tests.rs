//! Backups taken under load hold all that was acknowledged before them, and come back on both kinds of stores.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use berth_api::assignment::Position;
use berth_api::id::MachineId;

use super::*;
use crate::config::EtcdAccess;
use crate::entry::TokenDigest;
use crate::identity::Identity;
use crate::store::Snapshot;
use crate::tokens::Tokens;

fn cluster(number: usize) -> ClusterId {
    ClusterId::new(format!("acme/c{number}")).unwrap()
}

fn created(number: usize) -> Vec<u8> {
    let value = serde_json::json!({
        "clusterId": cluster(number).as_str(), "name": "Acme", "containerCidr": "10.244.0.0/16", "platform": "local",
        "capacityGroups": []
    });
    Entry::ClusterCreated {
        spec: berth_api::rest::cluster::read_cluster(&value).unwrap(),
        tokens: std::collections::BTreeMap::new(),
        at: Timestamp::from_millis(1),
    }
    .to_record()
}

fn rotated(number: u64) -> Vec<u8> {
    Entry::TokenRotated {
        kind: crate::entry::TokenKind::Machine,
        digest: TokenDigest::of(&number.to_string()),
        at: Timestamp::from_millis(number),
    }
    .to_record()
}

/// A data directory with keys.
fn data_dir(dir: &Path) -> Config {
    let config = Config::new(dir.join("data"));
    Identity::open(&config.data_dir).unwrap();
    Tokens::open(&config.data_dir).unwrap();
    config
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_holds_what_was_acknowledged_and_is_restored() {
    let dir = tempfile::tempdir().unwrap();
    let config = data_dir(dir.path());
    let store = Arc::new(Sqlite::open(&config.data_dir.join("store.db")).unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged: Arc<Vec<AtomicU64>> = Arc::new((0..4).map(|_| AtomicU64::new(0)).collect());
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..4 {
        let (store, stop, acknowledged) = (store.clone(), stop.clone(), acknowledged.clone());
        writers.spawn(async move {
            let mut next = store
                .append(&cluster(number), 1, vec![created(number)])
                .await
                .unwrap();
            while !stop.load(Ordering::SeqCst) {
                next = store
                    .append(&cluster(number), next, vec![rotated(next)])
                    .await
                    .unwrap();
                acknowledged[number].store(next - 1, Ordering::SeqCst);
            }
        });
    }
    while acknowledged.iter().any(|count| count.load(Ordering::SeqCst) < 50) {
        tokio::task::yield_now().await;
    }
    let before: Vec<u64> = acknowledged
        .iter()
        .map(|count| count.load(Ordering::SeqCst))
        .collect();
    let file = dir.path().join("backup.db");
    let summary = backup(&config, &file).await.unwrap();
    stop.store(true, Ordering::SeqCst);
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    assert_eq!((summary.clusters, summary.keys), (4, 4));
    assert_eq!(mode(&file), 0o600);
    let beside = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(beside, 2, "the data directory and the backup, nothing unfinished");
    let again = backup(&config, &file).await.unwrap_err();
    assert!(matches!(again, BackupError::Exists { .. }), "{again:?}");

    let restored = Config::new(dir.path().join("restored"));
    restore(&restored, &file).await.unwrap();
    for name in ["ca.key", "platform.key", "token-secret"] {
        let path = restored.data_dir.join(name);
        assert_eq!(mode(&path), 0o600, "{name}");
        assert_eq!(
            std::fs::read(&path).unwrap(),
            std::fs::read(config.data_dir.join(name)).unwrap()
        );
    }
    let copy = Sqlite::open(&restored.data_dir.join("store.db")).unwrap();
    for (number, before) in before.into_iter().enumerate() {
        holds(&store, &copy, number, before).await;
    }
    drop(copy);
    let over = restore(&restored, &file).await.unwrap_err();
    assert!(matches!(over, BackupError::Exists { .. }), "{over:?}");
}

/// The copy of a cluster is a prefix of its source, at least `before` records long, with an epoch on top.
async fn holds(source: &Sqlite, copy: &Sqlite, number: usize, before: u64) {
    let source = source.load(&cluster(number)).await.unwrap();
    let copied = copy.load(&cluster(number)).await.unwrap();
    let count = copied.records.len() - 1;
    assert!(
        u64::try_from(count).unwrap() >= before,
        "all that was acknowledged before"
    );
    assert_eq!(copied.records[..count], source.records[..count]);
    let last = Entry::from_record(&copied.records[count].payload).unwrap();
    assert!(
        matches!(last, Entry::EpochStarted { epoch, .. } if epoch > 1),
        "{last:?}"
    );
}

#[tokio::test]
async fn other_keys_and_other_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = data_dir(dir.path());
    let store = Sqlite::open(&config.data_dir.join("store.db")).unwrap();
    store.append(&cluster(0), 1, vec![created(0)]).await.unwrap();
    let file = dir.path().join("backup.db");
    backup(&config, &file).await.unwrap();
    let other = Config::new(dir.path().join("other"));
    Identity::open(&other.data_dir).unwrap();
    let error = restore(&other, &file).await.unwrap_err();
    assert!(matches!(error, BackupError::OtherKey { .. }), "{error:?}");
    assert!(!other.data_dir.join("store.db").exists());
    drop(store);
    let fresh = Config::new(dir.path().join("fresh"));
    let error = restore(&fresh, &config.data_dir.join("store.db"))
        .await
        .unwrap_err();
    assert!(matches!(error, BackupError::NoBackup { .. }), "{error:?}");
    let text = dir.path().join("text");
    std::fs::write(&text, "no backup at all ".repeat(1000)).unwrap();
    restore(&fresh, &text).await.unwrap_err();
    assert!(!fresh.data_dir.exists(), "nothing was made");
}

#[tokio::test]
async fn a_store_goes_from_sqlite_to_etcd_and_back() {
    use crate::store::fixture::{EtcdCluster, skip_without_etcd};
    if skip_without_etcd("a_store_goes_from_sqlite_to_etcd_and_back") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = data_dir(dir.path());
    let store = Sqlite::open(&config.data_dir.join("store.db")).unwrap();
    let mut next = store.append(&cluster(0), 1, vec![created(0)]).await.unwrap();
    for number in 0..20 {
        next = store
            .append(&cluster(0), next, vec![rotated(number)])
            .await
            .unwrap();
        if number == 10 {
            let world = Loaded::load(&store, &cluster(0)).await.unwrap().world;
            let payload = serde_json::to_vec(&serde_json::json!({ "v": 1, "world": world })).unwrap();
            let snapshot = Snapshot {
                seq: next - 1,
                payload,
            };
            store.snapshot(&cluster(0), snapshot).await.unwrap();
        }
    }
    let before = Loaded::load(&store, &cluster(0)).await.unwrap().world;
    drop(store);
    let first = dir.path().join("first.db");
    backup(&config, &first).await.unwrap();

    let servers_dir = dir.path().join("etcd");
    std::fs::create_dir(&servers_dir).unwrap();
    let servers = EtcdCluster::start(&servers_dir, 1, &[]);
    let address = format!("etcd://{}/berth", servers.endpoints().join(","));
    let on_etcd = Config {
        store: StoreChoice::parse(&address, EtcdAccess::default()).unwrap(),
        ..Config::new(dir.path().join("on-etcd"))
    };
    restore(&on_etcd, &first).await.unwrap();
    let over = restore(&on_etcd, &first).await.unwrap_err();
    assert!(
        matches!(over, BackupError::Store(StoreError::InUse { .. })),
        "{over:?}"
    );
    // One that was cut off is begun again.
    let etcd = open_etcd(&on_etcd).await.unwrap();
    etcd.mark_restoring().await.unwrap();
    let half = etcd.check_whole().await.unwrap_err();
    assert!(matches!(half, StoreError::HalfRestored { .. }), "{half:?}");
    restore(&on_etcd, &first).await.unwrap();
    etcd.check_whole().await.unwrap();

    let second = dir.path().join("second.db");
    backup(&on_etcd, &second).await.unwrap();
    let back = Config::new(dir.path().join("back"));
    restore(&back, &second).await.unwrap();
    let store = Sqlite::open(&back.data_dir.join("store.db")).unwrap();
    let after = Loaded::load(&store, &cluster(0)).await.unwrap().world;
    assert!(after.epoch() > before.epoch());
    assert_eq!(
        after.applied_count(),
        before.applied_count() + 2,
        "an epoch for each restore"
    );
    assert_eq!(
        after.token(crate::entry::TokenKind::Machine),
        before.token(crate::entry::TokenKind::Machine)
    );
}

fn machine(id: &str) -> berth_api::machine::MachineSpec {
    let value = serde_json::json!({
        "clusterId": "acme", "machineId": id, "capacityGroup": "general", "zone": "z-1",
        "vpcIp": "10.0.0.7", "wireguardPublicKey": "bm9uZW5vbmVub25lbm9uZW5vbmVub25lbm9uZW5vbmU=",
        "wireguardEndpoint": "10.0.0.7:51820",
        "capacity": {"cpu": {"total": 8}, "memory": {"total": 16_u64 << 30},
                     "ephemeralStorage": {"total": 100_u64 << 30}}
    });
    berth_api::rest::node::RegisterRequest::read(&value)
        .unwrap()
        .machine
}

async fn scheduler_on(config: &Config) -> Arc<crate::Scheduler> {
    let store = Arc::new(Sqlite::open(&config.data_dir.join("store.db")).unwrap());
    let identity = Arc::new(Identity::open(&config.data_dir).unwrap());
    crate::Scheduler::load(store, crate::liveness::Limits::default(), identity)
        .await
        .unwrap()
}

/// What a machine that has accepted `accepted`, and takes what it is sent now, is told to stop of what it runs unlisted.
async fn stops(handle: &crate::ClusterHandle, id: &str, accepted: Position) -> Vec<berth_api::id::ReplicaId> {
    let id = MachineId::new(id).unwrap();
    handle.link_opened(id.clone(), accepted).await.unwrap();
    let world = handle.world();
    let present = (world.epoch(), world.machine(&id).unwrap().generation);
    handle.acknowledged(id.clone(), present).await.unwrap();
    let status = crate::cluster::NodeStatus {
        replicas: Vec::new(),
        health: Default::default(),
        unlisted: std::iter::once(berth_api::id::ReplicaId::new("web-abc123").unwrap()).collect(),
        accepted: None,
    };
    handle.node_status(id, status).await.unwrap()
}

/// The restored history has gone on past the generation that the node has accepted of the lost one, so that position
/// alone would not tell.
#[tokio::test]
async fn nothing_that_a_lost_history_started_is_stopped_after_a_restore() {
    let dir = tempfile::tempdir().unwrap();
    let config = data_dir(dir.path());
    let scheduler = scheduler_on(&config).await;
    let value = serde_json::json!({
        "clusterId": "acme", "name": "Acme", "containerCidr": "10.244.0.0/16", "platform": "local",
        "capacityGroups": [{"groupId": "general", "minSize": 0, "maxSize": 10, "profile":
            {"cpu": 8, "memoryBytes": 16_u64 << 30, "ephemeralStorageBytes": 100_u64 << 30}}]
    });
    let spec = berth_api::rest::cluster::read_cluster(&value).unwrap();
    let created = scheduler
        .create_cluster(spec, std::collections::BTreeMap::new())
        .await;
    let Ok(crate::Creation::Created(handle)) = created else {
        panic!("{created:?}");
    };
    handle.register_machine(machine("m-1")).await.unwrap();
    handle.register_machine(machine("m-2")).await.unwrap();
    let of = |id: &str, ahead: u64| {
        let world = handle.world();
        let machine = world.machine(&MachineId::new(id).unwrap()).unwrap();
        Position {
            epoch: world.epoch(),
            generation: machine.generation + ahead,
            ..Position::default()
        }
    };
    let (of_backup, of_lost) = (of("m-2", 0), of("m-1", 3));
    let file = dir.path().join("backup.db");
    backup(&config, &file).await.unwrap();
    scheduler.shutdown().await;

    let restored = Config::new(dir.path().join("restored"));
    restore(&restored, &file).await.unwrap();
    let scheduler = scheduler_on(&restored).await;
    let handle = scheduler.clusters().remove(0);
    for number in 3..9 {
        handle
            .register_machine(machine(&format!("m-{number}")))
            .await
            .unwrap();
    }
    assert!(handle.world().epoch() > of_lost.epoch);
    assert_eq!(
        stops(&handle, "m-1", of_lost).await,
        [],
        "it may be work of the lost history"
    );
    assert_eq!(
        stops(&handle, "m-2", of_backup).await.len(),
        1,
        "its history is whole"
    );
    scheduler.shutdown().await;
}

#[test]
fn epochs_of_restores_are_above_what_was() {
    let now = Timestamp::from_millis((EPOCH_ORIGIN_MINUTES + 7) * 60_000);
    assert_eq!(epoch_after(1, now), 7);
    assert_eq!(epoch_after(7, now), 8);
    assert_eq!(epoch_after(3, Timestamp::from_millis(0)), 4);
}
