//! A store in trouble, seen through the REST API: full, not writable, silent. Each write gets one refusal with code and remedy and has
//! no effect, reads go on, and service resumes by itself.
//!
//! The store is real SQLite before which appends fail on demand; that a full or a read-only disk gives these very errors is proved
//! on real disks by `host_crash`, and a lost majority of etcd by `scheduler/tests/failover`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use berth_api::id::ClusterId;
use berth_scheduler::store::{History, Snapshot, Sqlite, Store, StoreError};
use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::harness::{Stage, container_body, until};
use super::writes::{self, BASE};

#[derive(Debug)]
struct Troubled {
    sqlite: Sqlite,
    trouble: Arc<Mutex<Option<StoreError>>>,
}

impl Store for Troubled {
    fn clusters(&self) -> BoxFuture<'_, Result<Vec<ClusterId>, StoreError>> {
        self.sqlite.clusters()
    }

    fn load<'a>(&'a self, cluster: &'a ClusterId) -> BoxFuture<'a, Result<History, StoreError>> {
        self.sqlite.load(cluster)
    }

    fn append<'a>(
        &'a self,
        cluster: &'a ClusterId,
        expected: u64,
        payloads: Vec<Vec<u8>>,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        let trouble = self
            .trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match trouble {
            Some(error) => Box::pin(async { Err(error) }),
            None => self.sqlite.append(cluster, expected, payloads),
        }
    }

    fn snapshot<'a>(
        &'a self,
        cluster: &'a ClusterId,
        snapshot: Snapshot,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.sqlite.snapshot(cluster, snapshot)
    }

    fn begin<'a>(
        &'a self,
        cluster: &'a ClusterId,
        snapshot: Snapshot,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.sqlite.begin(cluster, snapshot)
    }

    fn delete<'a>(&'a self, cluster: &'a ClusterId, expected: u64) -> BoxFuture<'a, Result<(), StoreError>> {
        self.sqlite.delete(cluster, expected)
    }
}

/// Each trouble, and the remedy that the message must name.
fn troubles() -> [(StoreError, &'static str); 3] {
    let path = PathBuf::from("/var/lib/berth/store.db");
    [
        (
            StoreError::Full {
                store: path.display().to_string(),
                remedy: "make room on its disk",
            },
            "make room on its disk",
        ),
        (
            StoreError::ReadOnly { path },
            "mend its file system or its permissions",
        ),
        (StoreError::TimedOut, "did not answer in time"),
    ]
}

/// Everything that is there, as the API says it; times and heartbeats left out.
async fn seen(stage: &Stage) -> anyhow::Result<Vec<Value>> {
    let mut seen = Vec::new();
    for path in [
        "/clusters".to_owned(),
        BASE.to_owned(),
        format!("{BASE}/containers"),
    ] {
        let (status, mut reply, _) = stage.request("GET", &path, &stage.platform, None).await?;
        anyhow::ensure!(status == 200, "{path}: {reply}");
        if let Some(members) = reply.as_object_mut() {
            members.remove("capacity");
        }
        seen.push(reply);
    }
    Ok(seen)
}

#[tokio::test]
async fn a_store_in_trouble_is_one_clear_refusal_and_service_resumes_by_itself() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let trouble = Arc::new(Mutex::new(None));
    let store = Troubled {
        sqlite: Sqlite::open(&dir.path().join("store.db"))?,
        trouble: trouble.clone(),
    };
    let set = |error: Option<StoreError>| *trouble.lock().unwrap_or_else(PoisonError::into_inner) = error;
    let stage = Stage::start_on(Arc::new(store)).await?;
    let ops = writes::all(&stage).await?;
    let token = stage.create_cluster().await?.management_token;
    for (round, (error, remedy)) in troubles().into_iter().enumerate() {
        let before = seen(&stage).await?;
        set(Some(error));
        for op in &ops {
            // What is only heard is kept in memory and needs no store.
            if op.path.ends_with("heartbeat") {
                continue;
            }
            let mut body = op.bodies.first().cloned().unwrap_or_default();
            match op.path.as_str() {
                "/register" => body["machineId"] = json!(format!("i-new-{round}")),
                "/clusters" => body["clusterId"] = json!(format!("acme/new-{round}")),
                path if path.ends_with("/containers") => body["name"] = json!(format!("new-{round}")),
                _ => {}
            }
            let (status, reply, _) = stage.request(op.method, &op.path, &op.token, Some(body)).await?;
            let code = reply["error"]["code"].as_str();
            assert_eq!((status, code), (503, Some("unavailable")), "{}: {reply}", op.path);
            let message = reply["error"]["message"].as_str().unwrap_or_default();
            assert!(
                message.contains(remedy) || message.contains("try again"),
                "{}: {message}",
                op.path
            );
        }
        // At least one of them names the remedy, and not only that the cluster is being loaded again.
        until("the remedy to be named", || async {
            let body = Some(container_body("late"));
            let path = format!("{BASE}/containers");
            let (status, reply, _) = stage.request("POST", &path, &stage.platform, body).await?;
            anyhow::ensure!(status == 503, "{reply}");
            Ok(reply.to_string().contains(remedy).then_some(()))
        })
        .await?;
        let (status, ..) = stage.request("GET", "/readyz", "", None).await?;
        assert_eq!(status, 503, "a scheduler that cannot write is not ready");
        assert_eq!(
            seen(&stage).await?,
            before,
            "nothing of it was done, and reads go on"
        );
        set(None);
        // Nobody does anything: the first write that is tried again is done.
        until("service to resume", || async {
            let path = format!("{BASE}/containers/there");
            let body = json!({"env": {"ROUND": round.to_string()}});
            let (status, ..) = stage.request("PATCH", &path, &token, Some(body)).await?;
            Ok((status == 200).then_some(()))
        })
        .await?;
        until("it to be ready", || async {
            let (status, ..) = stage.request("GET", "/readyz", "", None).await?;
            Ok((status == 200).then_some(()))
        })
        .await?;
    }
    stage.stop().await;
    Ok(())
}
