//! The actor on a store that fails or is slow at will: what is published, what callers hear, what a reload gives.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use berth_api::cluster::ClusterSpec;
use berth_api::container::{HealthCheck, ProbeKind, ProbeMethod};
use berth_api::event::read_event;
use berth_api::id::ClusterId;
use berth_api::rest::EventFilter;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::Notify;

use super::Loaded;
use super::actor::snapshot_of;
use crate::fixture::{Town, gpu_share, on_gpus, stateless, whole_gpus};
use crate::identity::Identity;
use crate::liveness::Limits;
use crate::store::{History, Memory, Snapshot, Store, StoreError};
use crate::{Class, ClusterHandle, Creation, Scheduler};

/// A memory store whose appends can be made to fail, or to wait until they are let go.
#[derive(Debug, Clone, Default)]
struct Unruly {
    memory: Memory,
    fails: Arc<AtomicBool>,
    holds: Arc<AtomicBool>,
    let_go: Arc<Notify>,
}

impl Store for Unruly {
    fn clusters(&self) -> BoxFuture<'_, Result<Vec<ClusterId>, StoreError>> {
        self.memory.clusters()
    }

    fn load<'a>(&'a self, cluster: &'a ClusterId) -> BoxFuture<'a, Result<History, StoreError>> {
        self.memory.load(cluster)
    }

    fn append<'a>(
        &'a self,
        cluster: &'a ClusterId,
        expected: u64,
        payloads: Vec<Vec<u8>>,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        async move {
            if self.holds.load(Ordering::SeqCst) {
                self.let_go.notified().await;
            }
            if self.fails.load(Ordering::SeqCst) {
                return Err(StoreError::TimedOut);
            }
            self.memory.append(cluster, expected, payloads).await
        }
        .boxed()
    }

    fn snapshot<'a>(
        &'a self,
        cluster: &'a ClusterId,
        snapshot: Snapshot,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.memory.snapshot(cluster, snapshot)
    }

    fn begin<'a>(
        &'a self,
        cluster: &'a ClusterId,
        snapshot: Snapshot,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.memory.begin(cluster, snapshot)
    }

    fn delete<'a>(&'a self, cluster: &'a ClusterId, expected: u64) -> BoxFuture<'a, Result<(), StoreError>> {
        self.memory.delete(cluster, expected)
    }
}

fn spec() -> ClusterSpec {
    let value = serde_json::json!({
        "clusterId": "acme", "name": "Acme", "containerCidr": "10.244.0.0/16", "platform": "local",
        "capacityGroups": [{"groupId": "general", "minSize": 0, "maxSize": 10, "profile":
            {"cpu": 8, "memoryBytes": 16_u64 << 30, "ephemeralStorageBytes": 100_u64 << 30}}]
    });
    berth_api::rest::cluster::read_cluster(&value).unwrap()
}

async fn started(store: &Unruly) -> (Arc<Scheduler>, ClusterHandle, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let identity = Arc::new(Identity::open(dir.path()).unwrap());
    let scheduler = Scheduler::load(Arc::new(store.clone()), Limits::default(), identity)
        .await
        .unwrap();
    let created = scheduler.create_cluster(spec(), BTreeMap::new()).await.unwrap();
    let Creation::Created(handle) = created else {
        panic!("{created:?}");
    };
    (scheduler, handle, dir)
}

fn groups(max_size: u32) -> Vec<berth_api::cluster::CapacityGroup> {
    let mut groups = spec().capacity_groups;
    groups[0].max_size = max_size;
    groups
}

#[tokio::test]
async fn a_failing_store_changes_nothing_and_the_cluster_recovers() {
    let store = Unruly::default();
    let (scheduler, handle, _dir) = started(&store).await;
    let before = handle.world();
    store.fails.store(true, Ordering::SeqCst);
    let refused = handle.set_groups(groups(20)).await.unwrap_err();
    assert_eq!(refused.class, Class::Unavailable);
    assert_eq!(handle.world(), before);
    store.fails.store(false, Ordering::SeqCst);
    handle.set_groups(groups(20)).await.unwrap();
    assert_eq!(handle.world().spec().capacity_groups[0].max_size, 20);
    scheduler.shutdown().await;
}

#[tokio::test]
async fn an_actor_whose_cluster_is_gone_from_the_store_ends() {
    let store = Unruly::default();
    let (scheduler, handle, _dir) = started(&store).await;
    let next_seq = store.load(handle.id()).await.unwrap().next_seq;
    store.delete(handle.id(), next_seq).await.unwrap();
    let refused = handle.set_groups(groups(20)).await.unwrap_err();
    assert_eq!(refused.class, Class::Unavailable);
    let ends = tokio::time::timeout(Duration::from_secs(60), handle.closed());
    ends.await.expect("the actor ends");
    assert_eq!(scheduler.known(handle.id()).unwrap_err().class, Class::NotFound);
    scheduler.shutdown().await;
}

#[tokio::test]
async fn nothing_is_published_or_answered_before_it_is_durable() {
    let store = Unruly::default();
    let (scheduler, handle, _dir) = started(&store).await;
    let before = handle.world();
    let mut changes = handle.watch_world();
    changes.mark_unchanged();
    store.holds.store(true, Ordering::SeqCst);
    let mut change = std::pin::pin!(handle.set_groups(groups(20)));
    let early = tokio::time::timeout(Duration::from_millis(100), &mut change).await;
    assert!(early.is_err(), "answered before it was durable");
    assert!(!changes.has_changed().unwrap());
    assert_eq!(handle.world(), before);
    store.holds.store(false, Ordering::SeqCst);
    store.let_go.notify_one();
    change.await.unwrap();
    assert!(changes.has_changed().unwrap());
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_refused_request_leaves_those_beside_it_alone() {
    let store = Unruly::default();
    let (scheduler, handle, _dir) = started(&store).await;
    let missing = berth_api::id::ContainerName::new("missing").unwrap();
    let (refused, changed) = tokio::join!(handle.stop_container(missing), handle.set_groups(groups(20)));
    assert_eq!(refused.unwrap_err().code, "container_not_found");
    changed.unwrap();
    scheduler.shutdown().await;
}

#[tokio::test]
async fn snapshots_and_replay_give_the_same_world_and_the_log_stays_bounded() {
    let store = Unruly::default();
    let (scheduler, handle, _dir) = started(&store).await;
    for number in 0..2_500_u64 {
        let event = serde_json::json!({
            "eventId": format!("e-{number}"), "type": "info", "message": format!("event {}", number % 700),
            "firstTimestamp": "2026-11-21T10:00:00Z", "lastTimestamp": "2026-11-21T10:00:00Z", "count": 1,
            "involvedObject": {"type": "machine", "id": "m-1"},
            "source": {"component": "controlplane"},
            "reason": "BridgeInterfaceReady", "bridgeName": "b0", "gatewayIp": "10.244.0.1"
        });
        handle.record_event(read_event(&event).unwrap()).await.unwrap();
    }
    let world = handle.world();
    let history = store.load(handle.id()).await.unwrap();
    assert!(history.snapshot.is_some());
    assert!(history.records.len() < 1_001, "{}", history.records.len());
    let loaded = Loaded::load(&store, handle.id()).await.unwrap();
    assert_eq!(loaded.world, *world);
    assert_eq!(handle.events(&EventFilter::default()).len(), 100);
    scheduler.shutdown().await;
}

/// A reader that knows no shares of GPUs would take one for a whole device, and a check by TCP for one by HTTP.
#[test]
fn only_a_snapshot_with_what_older_readers_misunderstand_is_of_the_newer_version() {
    let version = |town: &Town| {
        let text = String::from_utf8(snapshot_of(&town.world)).unwrap();
        text.split(',').next().unwrap().to_owned()
    };
    let mut town = Town::new();
    town.join("g1", "gpu");
    town.put(on_gpus("a", 1, whole_gpus(1)));
    town.settle();
    assert_eq!(version(&town), r#"{"v":1"#);
    town.put(on_gpus("a", 1, gpu_share(500)));
    assert_eq!(version(&town), r#"{"v":2"#);
    town.put(on_gpus("a", 1, whole_gpus(1)));
    assert_eq!(version(&town), r#"{"v":1"#, "no replica has run it");
    town.put(on_gpus("b", 1, gpu_share(500)));
    town.settle();
    town.put(on_gpus("b", 1, whole_gpus(1)));
    assert_eq!(version(&town), r#"{"v":2"#, "a replica runs it still");
    let mut town = Town::new();
    let mut probed = stateless("c", 1);
    probed.health_check = Some(HealthCheck {
        kind: ProbeKind::Tcp,
        command: vec![],
        path: "/health".into(),
        port: 80,
        method: ProbeMethod::Get,
        timeout_seconds: 1,
        failure_threshold: 3,
    });
    town.put(probed);
    assert_eq!(version(&town), r#"{"v":2"#);
}
