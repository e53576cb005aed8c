//! What is said about all clusters where processes share them, that a new one is known everywhere at once, what a lost majority of
//! etcd looks like from outside, that a key of a creation is one for all processes, and that a tunnel goes through any.

use std::time::Duration;

use berth_api::rest::tunnel;
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::Fault;
use super::fixture::skip_without_etcd;
use super::stage::{LONG_LEASE_SECONDS, Stage, cluster_body, cluster_path};

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
    let mut stage = Stage::start(2, LONG_LEASE_SECONDS).await;
    let count = spread(&stage).await;
    for through in 0..2 {
        // A slow etcd may cost a process its lease. What is taken over then is missing and said to be, and what is handed back is
        // for a moment neither here nor there: so each is asked until it is whole.
        let ask = async |path: &'static str, is_whole: &dyn Fn(&Value) -> bool| {
            until("a whole answer", async || {
                let answer = stage.answer(through, path).await.ok_or("no answer")?;
                match answer {
                    (answer, None) if is_whole(&answer) => Ok(answer),
                    (answer, missing) => Err(format!("{answer} without {missing:?}")),
                }
            })
            .await
        };
        let overview = ask("/aggregate/overview", &|answer| {
            answer["totals"]["deployments"] == json!(count)
        })
        .await;
        assert_eq!(
            overview["containers"][0]["totalInstances"],
            json!(count),
            "{overview}"
        );
        let has_all = |member: &'static str| move |answer: &Value| ids(&answer[member]).len() == count;
        let machines = ask("/aggregate/machines", &has_all("clusters")).await;
        assert_eq!(machines["totals"]["machines"], 0);
        ask("/aggregate/containers/web", &has_all("deployments")).await;
        let listed = ask("/clusters", &has_all("clusters")).await;
        // Nothing has a place.
        ask("/aggregate/attention", &|answer| {
            ids(&answer["clusters"]) == ids(&listed["clusters"])
        })
        .await;
        let filtered = ask("/aggregate/overview?projectId=nobody", &|_| true).await;
        assert_eq!(filtered["totals"]["deployments"], 0);
    }
    // One that hangs costs a bounded time, and the answer says whose clusters are missing.
    let (hung, asked) = (1, 0);
    stage.strike(Fault::Pause, hung, 0).await;
    let (overview, missing) = until("an answer without the other", async || {
        let answer = stage.answer(asked, "/aggregate/overview").await;
        let (overview, missing) = answer.ok_or("no answer")?;
        let Some(missing) = missing else {
            assert_eq!(overview["totals"]["deployments"], json!(count), "{overview}");
            return Err("nothing is missing".to_owned());
        };
        Ok((overview, missing))
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
        is_whole
            .then_some(())
            .ok_or_else(|| format!("{overview} without {missing:?}"))
    })
    .await;
    stage.stop_schedulers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_whose_creation_was_answered_is_unknown_to_no_process() {
    if skip_without_etcd("a_cluster_whose_creation_was_answered_is_unknown_to_no_process") {
        return;
    }
    let mut stage = Stage::start(3, LONG_LEASE_SECONDS).await;
    for through in 0..3 {
        until("the scheduler to be ready", async || {
            let status = stage.answer_status(through, "/readyz").await;
            (status == Some(200))
                .then_some(())
                .ok_or_else(|| format!("{status:?}"))
        })
        .await;
    }
    for cluster in 0..24 {
        let body = cluster_body(cluster);
        // A creation that was refused for now may have been made: the repeat has its key.
        let key = format!("create-{cluster}");
        let key = [("idempotency-key", key.as_str())];
        let (status, answer) = stage.settle(cluster % 3, "/clusters", &key, &body).await;
        assert_eq!(status, 200, "{answer}");
        let path = cluster_path(cluster);
        let ask = async |through: usize| {
            until("the cluster to be known", async || {
                match stage.answer_status(through, &path).await {
                    Some(200) => Ok(()),
                    Some(404) => panic!("{path} is unknown to {through}"),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        };
        tokio::join!(ask(0), ask(1), ask(2));
    }
    stage.stop_schedulers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_of_a_creation_is_one_for_all_processes() {
    if skip_without_etcd("the_key_of_a_creation_is_one_for_all_processes") {
        return;
    }
    let mut stage = Stage::start(2, LONG_LEASE_SECONDS).await;
    let count = spread(&stage).await;
    let key = [("idempotency-key", "one-for-all")];
    let first = cluster_body(count);
    let (status, created) = stage.settle(0, "/clusters", &key, &first).await;
    assert_eq!(status, 200, "{created}");
    let (status, again) = stage.settle(1, "/clusters", &key, &first).await;
    assert_eq!(
        (status, &again),
        (200, &created),
        "the repeat is answered as the first was"
    );
    // Some of these belong to the other process, which has never seen the key.
    for other in count + 1..count + 9 {
        for through in 0..2 {
            let (status, refused) = stage
                .settle(through, "/clusters", &key, &cluster_body(other))
                .await;
            let code = refused["error"]["code"].as_str();
            assert_eq!((status, code), (409, Some("idempotency_key_reused")), "{refused}");
        }
    }
    until("a list of all", async || {
        let (listed, missing) = stage.answer(0, "/clusters").await.ok_or("no answer")?;
        let found = ids(&listed["clusters"]).len();
        assert!(found <= count + 1, "{listed}");
        (missing.is_none() && found == count + 1)
            .then_some(())
            .ok_or_else(|| format!("{listed} without {missing:?}"))
    })
    .await;
    stage.stop_schedulers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_majority_of_etcd_is_one_clear_refusal_and_service_resumes_by_itself() {
    if skip_without_etcd("a_lost_majority_of_etcd_is_one_clear_refusal_and_service_resumes_by_itself") {
        return;
    }
    let mut stage = Stage::start(1, LONG_LEASE_SECONDS).await;
    stage.create(0).await;
    let path = format!("{}/containers/web", cluster_path(0));
    let write = |number: u32| json!({ "env": { "N": number.to_string() } });
    until("the first write", async || {
        match stage.patch(&path, &write(1)).await {
            (200, _) => Ok(()),
            other => Err(format!("{other:?}")),
        }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_goes_through_a_process_that_does_not_serve_its_cluster() {
    if skip_without_etcd("a_tunnel_goes_through_a_process_that_does_not_serve_its_cluster") {
        return;
    }
    let stage = Stage::start(2, LONG_LEASE_SECONDS).await;
    stage.create(0).await;
    let nodes = stage.nodes(1).await;
    let path = format!(
        "{}/exec/web?command=say&command=hello&input=true",
        cluster_path(0)
    );
    for through in 0..2 {
        until("what the program says", async || {
            let mut socket = stage.tunnel(through, &path).await.ok_or("no tunnel")?;
            let input = tunnel::Frame::Input(b" and go").encode();
            socket
                .send(Message::Binary(input.into()))
                .await
                .map_err(|error| error.to_string())?;
            let mut said = Vec::new();
            while let Some(message) = socket.next().await {
                let Message::Binary(message) = message.map_err(|error| error.to_string())? else {
                    continue;
                };
                match tunnel::Frame::decode(&message).unwrap() {
                    tunnel::Frame::Output(bytes) => said.extend_from_slice(bytes),
                    tunnel::Frame::Ended(ended) if ended.exit_code == Some(5) => {
                        assert_eq!(said, b"say hello and go");
                        return Ok(());
                    }
                    other => return Err(format!("{other:?}")),
                }
            }
            Err("no end".into())
        })
        .await;
    }
    for node in nodes {
        node.stop().await;
    }
}
