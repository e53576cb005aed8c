//! What is said about all clusters where processes share them, what a lost majority of etcd looks like from outside, and that a
//! key of a creation is one for all processes.

use std::time::Duration;

use serde_json::{Value, json};

use super::Fault;
use super::fixture::skip_without_etcd;
use super::stage::{Stage, cluster_body, cluster_path};

/// Polls of 50 ms: a minute, which only a hang exceeds.
const POLLS_MAX: u32 = 1200;

/// Asks until `done` says so.
async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, String>) -> T {
    let mut last = String::new();
    for _ in 0..POLLS_MAX {
        match ask().await {
            Ok(found) => return found,
            Err(seen) => last = seen,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} did not happen: {last}");
}

/// Clusters, some on each of two processes.
async fn spread(stage: &Stage) -> usize {
    for cluster in 0..64 {
        stage.create(cluster).await;
        let mut owners = std::collections::BTreeSet::new();
        for known in 0..=cluster {
            owners.insert(stage.owner_of(known).await);
        }
        if owners.len() == 2 {
            return cluster + 1;
        }
    }
    panic!("64 clusters have one owner");
}

fn ids(list: &Value) -> Vec<&str> {
    let rows = list.as_array().into_iter().flatten();
    rows.filter_map(|row| row["clusterId"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aggregates_cover_the_clusters_of_all_processes_and_say_which_are_missing() {
    if skip_without_etcd("aggregates_cover_the_clusters_of_all_processes_and_say_which_are_missing") {
        return;
    }
    let mut stage = Stage::start(2).await;
    let count = spread(&stage).await;
    for through in 0..2 {
        let ask = |path: &'static str| stage.answer(through, path);
        let (overview, missing) = ask("/aggregate/overview").await.unwrap();
        assert_eq!(
            (&overview["totals"]["deployments"], missing),
            (&json!(count), None)
        );
        assert_eq!(
            overview["containers"][0]["totalInstances"],
            json!(count),
            "{overview}"
        );
        let (machines, _) = ask("/aggregate/machines").await.unwrap();
        assert_eq!(ids(&machines["clusters"]).len(), count, "{machines}");
        assert_eq!(machines["totals"]["machines"], 0);
        let (container, _) = ask("/aggregate/containers/web").await.unwrap();
        assert_eq!(ids(&container["deployments"]).len(), count, "{container}");
        let (attention, _) = ask("/aggregate/attention").await.unwrap();
        let (listed, _) = ask("/clusters").await.unwrap();
        assert_eq!(
            ids(&attention["clusters"]),
            ids(&listed["clusters"]),
            "nothing has a place"
        );
        let (filtered, _) = ask("/aggregate/overview?projectId=nobody").await.unwrap();
        assert_eq!(filtered["totals"]["deployments"], 0);
    }
    // One that hangs costs a bounded time, and the answer says whose clusters are missing.
    let (hung, asked) = (1, 0);
    stage.strike(Fault::Pause, hung, 0).await;
    let (overview, missing) = until("an answer without the other", async || {
        let answer = stage.answer(asked, "/aggregate/overview").await;
        let (overview, missing) = answer.ok_or("no answer")?;
        missing
            .map(|missing| (overview, missing))
            .ok_or_else(|| "nothing is missing".to_owned())
    })
    .await;
    assert!(missing.starts_with("http://127.0.0.1:"), "{missing}");
    assert!(
        overview["totals"]["deployments"].as_u64() < Some(count as u64),
        "{overview}"
    );
    stage.mend(Fault::Pause, hung, 0).await;
    until("everything to be back", async || {
        let (overview, missing) = stage
            .answer(asked, "/aggregate/overview")
            .await
            .ok_or("no answer")?;
        let is_whole = missing.is_none() && overview["totals"]["deployments"] == json!(count);
        is_whole.then_some(()).ok_or_else(|| overview.to_string())
    })
    .await;
    stage.stop_schedulers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_of_a_creation_is_one_for_all_processes() {
    if skip_without_etcd("the_key_of_a_creation_is_one_for_all_processes") {
        return;
    }
    let mut stage = Stage::start(2).await;
    let count = spread(&stage).await;
    let key = [("idempotency-key", "one-for-all")];
    let first = cluster_body(count);
    let (status, created) = stage.post(0, "/clusters", &key, &first).await;
    assert_eq!(status, 200, "{created}");
    let (status, again) = stage.post(1, "/clusters", &key, &first).await;
    assert_eq!(
        (status, &again),
        (200, &created),
        "the repeat is answered as the first was"
    );
    // Some of these belong to the other process, which has never seen the key.
    for other in count + 1..count + 9 {
        for through in 0..2 {
            let (status, refused) = stage.post(through, "/clusters", &key, &cluster_body(other)).await;
            let code = refused["error"]["code"].as_str();
            assert_eq!((status, code), (409, Some("idempotency_key_reused")), "{refused}");
        }
    }
    let (listed, _) = stage.answer(0, "/clusters").await.unwrap();
    assert_eq!(ids(&listed["clusters"]).len(), count + 1, "{listed}");
    stage.stop_schedulers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_majority_of_etcd_is_one_clear_refusal_and_service_resumes_by_itself() {
    if skip_without_etcd("a_lost_majority_of_etcd_is_one_clear_refusal_and_service_resumes_by_itself") {
        return;
    }
    let mut stage = Stage::start(1).await;
    stage.create(0).await;
    let path = format!("{}/containers/web", cluster_path(0));
    let write = |number: u32| json!({ "env": { "N": number.to_string() } });
    // A busy machine may cost the process its lease for a moment: it says so, and the next attempt is served.
    until("the write", async || match stage.patch(&path, &write(1)).await {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    stage.etcd.kill(0);
    stage.etcd.kill(1);
    // Until the process knows, a write waits; then each is refused, and at once.
    until("the refusal", async || {
        match stage.patch(&path, &write(2)).await {
            (503, answer) if answer["error"]["code"] == "unavailable" => {
                let message = answer["error"]["message"].as_str().unwrap_or_default().to_owned();
                assert!(
                    message.contains("a majority of them must be up") || message.contains("try again"),
                    "it names no remedy: {message}"
                );
                Ok(())
            }
            (200, answer) => panic!("a write was acknowledged without a majority: {answer}"),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    until("not to be ready", async || {
        match stage.answer_status(0, "/readyz").await {
            Some(503) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    stage.etcd.restart(0);
    // Nobody touches the scheduler.
    until("service again", async || {
        match stage.patch(&path, &write(3)).await {
            (200, _) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(stage.number_of(0).await, 3);
    stage.stop_schedulers().await;
}
