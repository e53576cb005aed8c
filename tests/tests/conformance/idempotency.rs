//! Writes under an `Idempotency-Key`: a repeat is answered as the first was and does nothing, also after a restart; the key
//! with other content is refused; no answer with a token leaves the token in the store.

use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use super::harness::{Stage, cluster_body, container_body, register_body};

const CONTAINERS: &str = "/clusters/acme%2Fprod%2Fcompute/containers";
const ROTATE: &str = "/clusters/acme%2Fprod%2Fcompute/tokens/rotate";

async fn keyed(
    stage: &Stage,
    (method, path): (&str, &str),
    token: &str,
    key: &str,
    body: Option<Value>,
) -> anyhow::Result<(u16, Value, HeaderMap)> {
    let body = body.map(|body| body.to_string());
    stage
        .send_with(method, path, token, body, &[("idempotency-key", key)])
        .await
}

fn is_replayed(headers: &HeaderMap) -> bool {
    headers
        .get("idempotency-replayed")
        .is_some_and(|value| value == "true")
}

#[tokio::test]
async fn a_repeat_is_answered_and_not_done_again() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let created = stage.create_cluster().await?;
    let token = created.management_token;
    let create = ("POST", CONTAINERS);
    let (status, first, headers) =
        keyed(&stage, create, &token, "k-1", Some(container_body("reader"))).await?;
    assert_eq!((status, is_replayed(&headers)), (200, false), "{first}");
    let delete = ("DELETE", "/clusters/acme%2Fprod%2Fcompute/containers/reader");
    let (status, deleted, _) = keyed(&stage, delete, &token, "k-2", None).await?;
    assert_eq!((status, &deleted), (200, &json!({"success": true})));

    // What was created and deleted since is not created by a late repeat; the order of members is no content.
    let mut reordered = serde_json::Map::new();
    for (name, member) in container_body("reader").as_object().into_iter().flatten().rev() {
        reordered.insert(name.clone(), member.clone());
    }
    let (status, again, headers) = keyed(&stage, create, &token, "k-1", Some(reordered.into())).await?;
    assert_eq!((status, &again, is_replayed(&headers)), (200, &first, true));
    let (status, _, _) = stage
        .request("GET", &format!("{CONTAINERS}/reader"), &token, None)
        .await?;
    assert_eq!(status, 404);

    let stage = stage.restart().await?;
    let before = stage.log_len();
    let (status, again, headers) =
        keyed(&stage, create, &token, "k-1", Some(container_body("reader"))).await?;
    assert_eq!((status, &again, is_replayed(&headers)), (200, &first, true));
    let (status, again, headers) = keyed(&stage, delete, &token, "k-2", None).await?;
    assert_eq!((status, &again, is_replayed(&headers)), (200, &deleted, true));
    assert_eq!(stage.log_len(), before);
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_key_with_other_content_is_refused_and_changes_nothing() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let created = stage.create_cluster().await?;
    let token = created.management_token;
    let body = container_body("reader");
    let (status, ..) = keyed(&stage, ("POST", CONTAINERS), &token, "k", Some(body.clone())).await?;
    assert_eq!(status, 200);
    let count = || async {
        let (_, list, _) = stage.request("GET", CONTAINERS, &token, None).await?;
        anyhow::Ok(list["containers"].as_array().map(Vec::len))
    };
    let mut other = body.clone();
    other["image"] = json!("registry.example/other:1");
    let reader = format!("{CONTAINERS}/reader");
    let stop = format!("{reader}/stop");
    for (method, path, body) in [
        ("POST", CONTAINERS, Some(other)),
        ("POST", CONTAINERS, Some(container_body("writer"))),
        ("PATCH", reader.as_str(), Some(body.clone())),
        ("POST", stop.as_str(), None),
        ("DELETE", reader.as_str(), None),
        ("POST", ROTATE, Some(json!({"tokenType": "machine"}))),
    ] {
        let (status, reply, _) = keyed(&stage, (method, path), &token, "k", body).await?;
        let code = reply["error"]["code"].as_str();
        assert_eq!(
            (status, code),
            (409, Some("idempotency_key_reused")),
            "{method} {path}: {reply}"
        );
    }
    assert_eq!(count().await?, Some(1));
    let (status, again, _) = stage.request("GET", &reader, &token, None).await?;
    assert_eq!((status, &again["image"]), (200, &body["image"]));
    let mut elsewhere = cluster_body();
    elsewhere["clusterId"] = json!("elsewhere");
    let platform = stage.platform.clone();
    for wanted in [200, 200] {
        let (status, ..) = keyed(
            &stage,
            ("POST", "/clusters"),
            &platform,
            "c",
            Some(elsewhere.clone()),
        )
        .await?;
        assert_eq!(status, wanted);
    }
    elsewhere["clusterId"] = json!("nowhere");
    let (status, ..) = keyed(&stage, ("POST", "/clusters"), &platform, "c", Some(elsewhere)).await?;
    assert_eq!((status, stage.running.scheduler().clusters().len()), (409, 2));
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn answers_with_tokens_are_repeated_and_no_token_is_stored() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let platform = stage.platform.clone();
    let create = ("POST", "/clusters");
    let (status, first, _) = keyed(&stage, create, &platform, "c", Some(cluster_body())).await?;
    assert_eq!(status, 200, "{first}");
    let rotate = |kind: &str| Some(json!({"tokenType": kind}));
    let (_, rotated, _) = keyed(&stage, ("POST", ROTATE), &platform, "r", rotate("management")).await?;
    let token = rotated["managementToken"].as_str().unwrap_or_default().to_owned();
    assert!(
        token.starts_with("hm_") && rotated.get("machineToken").is_none(),
        "{rotated}"
    );
    assert_ne!(first["managementToken"], rotated["managementToken"]);

    let stage = stage.restart().await?;
    let (_, again, headers) = keyed(&stage, ("POST", ROTATE), &platform, "r", rotate("management")).await?;
    assert_eq!((&again, is_replayed(&headers)), (&rotated, true));
    let (status, ..) = stage.request("GET", CONTAINERS, &token, None).await?;
    assert_eq!(status, 200, "the repeat rotated nothing");
    let (_, again, headers) = keyed(&stage, create, &platform, "c", Some(cluster_body())).await?;
    assert_eq!((&again, is_replayed(&headers)), (&first, true));
    let (status, ..) = keyed(&stage, ("POST", ROTATE), &platform, "r", rotate("machine")).await?;
    assert_eq!(status, 409);

    let secrets: Vec<&str> = [
        &first["managementToken"],
        &first["machineToken"],
        &rotated["managementToken"],
    ]
    .into_iter()
    .filter_map(Value::as_str)
    .collect();
    assert_eq!(secrets.len(), 3);
    for entry in std::fs::read_dir(stage.dir.path())? {
        let path = entry?.path();
        if !path.is_file() {
            continue;
        }
        let content = std::fs::read(&path)?;
        for secret in &secrets {
            let is_there = content
                .windows(secret.len())
                .any(|part| part == secret.as_bytes());
            assert!(!is_there, "{} holds a token", path.display());
        }
    }
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn repeats_at_the_same_time_are_done_once() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    stage.create_cluster().await?;
    let platform = stage.platform.clone();
    let all = futures::future::join_all((0..16).map(|_| {
        keyed(
            &stage,
            ("POST", ROTATE),
            &platform,
            "r",
            Some(json!({"tokenType": "machine"})),
        )
    }))
    .await;
    let mut tokens = std::collections::BTreeSet::new();
    let mut done = 0;
    for outcome in all {
        let (status, reply, headers) = outcome?;
        assert_eq!(status, 200, "{reply}");
        tokens.insert(reply["machineToken"].to_string());
        done += usize::from(!is_replayed(&headers));
    }
    assert_eq!((tokens.len(), done), (1, 1));
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn machines_too_may_repeat_and_a_refusal_is_judged_anew() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let created = stage.create_cluster().await?;
    let event = json!({"clusterId": super::harness::CLUSTER, "event": {
        "eventId": "e", "type": "info", "message": "started", "firstTimestamp": "2026-11-21T10:00:00Z",
        "lastTimestamp": "2026-11-21T10:00:01Z", "count": 1, "involvedObject": {"type": "container", "id": "it"},
        "source": {"component": "horizond", "machineId": "i-1"}, "reason": "ContainerStarted"}});
    for _ in 0..3 {
        let (status, reply, _) = keyed(
            &stage,
            ("POST", "/events"),
            &created.machine_token,
            "e",
            Some(event.clone()),
        )
        .await?;
        assert_eq!(status, 201, "{reply}");
    }
    let path = "/clusters/acme%2Fprod%2Fcompute/containers/it/events";
    let (_, events, _) = stage
        .request("GET", path, &created.management_token, None)
        .await?;
    assert_eq!(events["events"][0]["count"], 1, "{events}");

    let mut register = register_body("i-1");
    register["capacityGroup"] = json!("later");
    let register = || {
        keyed(
            &stage,
            ("POST", "/register"),
            &created.machine_token,
            "r",
            Some(register.clone()),
        )
    };
    assert_eq!(register().await?.0, 400);
    let mut groups = cluster_body()["capacityGroups"].clone();
    groups[0]["groupId"] = json!("later");
    let cluster = "/clusters/acme%2Fprod%2Fcompute";
    let (status, ..) = stage
        .request(
            "PATCH",
            cluster,
            &stage.platform,
            Some(json!({"capacityGroups": groups})),
        )
        .await?;
    assert_eq!(status, 200);
    assert_eq!(register().await?.0, 200);
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn keys_that_are_none_are_refused() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    stage.create_cluster().await?;
    let before = stage.log_len();
    let long = "k".repeat(256);
    let cases: [&[(&str, &str)]; 5] = [
        &[("idempotency-key", "")],
        &[("idempotency-key", &long)],
        &[("idempotency-key", "a b")],
        &[("idempotency-key", "schlüssel")],
        &[("idempotency-key", "a"), ("idempotency-key", "b")],
    ];
    for headers in cases {
        let body = Some(container_body("reader").to_string());
        let (status, reply, _) = stage
            .send_with("POST", CONTAINERS, &stage.platform, body, headers)
            .await?;
        let code = reply["error"]["code"].as_str();
        assert_eq!(
            (status, code),
            (400, Some("invalid_idempotency_key")),
            "{headers:?}: {reply}"
        );
    }
    assert_eq!(stage.log_len(), before);
    stage.stop().await;
    Ok(())
}
