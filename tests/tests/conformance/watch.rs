//! `?watch=REVISION`: an answer comes when the cluster has changed, and not before; revoked tokens and a scheduler that stops
//! end the wait.

use std::time::Duration;

use serde_json::json;

use super::harness::{Stage, container_body};

const BASE: &str = "/clusters/acme%2Fprod%2Fcompute";

async fn revision(stage: &Stage, token: &str, path: &str) -> anyhow::Result<u64> {
    let (status, reply, headers) = stage.request("GET", path, token, None).await?;
    anyhow::ensure!(status == 200, "{path}: {reply}");
    Ok(headers["berth-revision"].to_str()?.parse()?)
}

#[tokio::test]
async fn a_watch_is_answered_by_the_change_it_waits_for() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let token = stage.create_cluster().await?.management_token;
    let mut at = 0;
    for rest in ["containers", "machines", "events", "capacity-plan", "replicas"] {
        at = revision(&stage, &token, &format!("{BASE}/{rest}")).await?;
        // What was passed is answered at once.
        assert!(revision(&stage, &token, &format!("{BASE}/{rest}?watch={}", at - 1)).await? >= at);
    }
    let path = format!("{BASE}/containers?watch={at}");
    let mut waiting = Box::pin(stage.request("GET", &path, &token, None));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut waiting).await;
    assert!(early.is_err(), "nothing has changed: {early:?}");
    let (status, ..) = stage
        .request(
            "POST",
            &format!("{BASE}/containers"),
            &token,
            Some(container_body("reader")),
        )
        .await?;
    assert_eq!(status, 200);
    let (status, reply, headers) = waiting.await?;
    assert_eq!((status, &reply["containers"][0]["name"]), (200, &json!("reader")));
    assert!(headers["berth-revision"].to_str()?.parse::<u64>()? > at);
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_revoked_token_gets_nothing_from_its_watch() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let token = stage.create_cluster().await?.management_token;
    let at = revision(&stage, &token, BASE).await?;
    let path = format!("{BASE}?watch={at}");
    let mut waiting = Box::pin(stage.request("GET", &path, &token, None));
    let early = tokio::time::timeout(Duration::from_millis(200), &mut waiting).await;
    assert!(early.is_err(), "{early:?}");
    let (status, ..) = stage
        .request(
            "POST",
            &format!("{BASE}/tokens/rotate"),
            &stage.platform,
            Some(json!({"tokenType": "management"})),
        )
        .await?;
    assert_eq!(status, 200);
    let (status, reply, _) = waiting.await?;
    assert_eq!(status, 401, "{reply}");
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_scheduler_that_stops_answers_what_waits() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let token = stage.create_cluster().await?.management_token;
    let at = revision(&stage, &token, BASE).await?;
    let url = format!("http://{}{BASE}?watch={at}", stage.running.rest_addr);
    let mut waiting = tokio::task::JoinSet::new();
    waiting.spawn(reqwest::Client::new().get(url).bearer_auth(&token).send());
    tokio::time::sleep(Duration::from_millis(300)).await;
    // What was sent before has arrived once later ones are answered.
    for _ in 0..3 {
        revision(&stage, &token, BASE).await?;
    }
    stage.stop().await;
    let response = waiting.join_next().await.expect("one was spawned")??;
    assert_eq!(response.status().as_u16(), 200);
    Ok(())
}

#[tokio::test]
async fn a_revision_that_is_none_is_refused() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let token = stage.create_cluster().await?.management_token;
    for query in [
        "watch=",
        "watch=-1",
        "watch=1.5",
        "watch=soon",
        "watch=1&watch=2",
        "watch=99999999999999999999",
    ] {
        let (status, reply, _) = stage
            .request("GET", &format!("{BASE}/events?{query}"), &token, None)
            .await?;
        assert_eq!(
            (status, &reply["faults"][0]["path"]),
            (400, &json!("watch")),
            "{query}: {reply}"
        );
    }
    stage.stop().await;
    Ok(())
}
