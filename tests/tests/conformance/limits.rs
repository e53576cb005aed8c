//! What surrounds every request: rates, sizes, the audit log, metrics, readiness.

use berth_scheduler::config::RestLimits;
use serde_json::{Value, json};

use super::harness::{CLUSTER, Stage, container_body};

const BASE: &str = "/clusters/acme%2Fprod%2Fcompute";

#[tokio::test]
async fn whoever_calls_too_often_is_told_when_to_come_again() -> anyhow::Result<()> {
    let stage = Stage::start_with(|config| {
        config.rest = RestLimits {
            management_per_second: 3,
            failures_per_second: 3,
            ..RestLimits::default()
        };
    })
    .await?;
    let token = stage.create_cluster().await?.management_token;
    for (token, other) in [(token.as_str(), 200), ("nobody", 401)] {
        let mut limited = None;
        for _ in 0..200 {
            let (status, reply, headers) = stage.request("GET", BASE, token, None).await?;
            if status == 429 {
                limited = Some((reply, headers));
                break;
            }
            assert_eq!(status, other, "{reply}");
        }
        let (reply, headers) = limited.expect("200 requests are more than 3 a second");
        assert_eq!(reply["error"]["code"], "too_many_requests");
        assert_eq!(headers["retry-after"], "1");
    }
    // Others are not touched by it, nor is a valid token by the strangers of its address.
    let (status, ..) = stage.request("GET", BASE, &stage.platform, None).await?;
    assert_eq!(status, 200);
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn paths_and_headers_have_a_size() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let long = "a".repeat(9000);
    let path = format!("/clusters/{long}");
    let (status, reply, headers) = stage.request("GET", &path, &stage.platform, None).await?;
    assert_eq!(
        (status, reply["error"]["code"].as_str()),
        (414, Some("uri_too_long"))
    );
    assert!(headers.contains_key("x-request-id"));
    let long = "a".repeat(17_000);
    let (status, reply, _) = stage
        .send_with("GET", "/clusters", &stage.platform, None, &[("x-long", &long)])
        .await?;
    assert_eq!(
        (status, reply["error"]["code"].as_str()),
        (431, Some("headers_too_large"))
    );
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn every_change_and_every_refused_one_is_in_the_audit_log() -> anyhow::Result<()> {
    let logs = tempfile::tempdir()?;
    let path = logs.path().join("audit.jsonl");
    let file = path.clone();
    let stage = Stage::start_with(move |config| config.rest.audit_file = Some(file)).await?;
    let created = stage.create_cluster().await?;
    let containers = format!("{BASE}/containers");
    let headers = [("x-request-id", "mine-7"), ("idempotency-key", "k")];
    for _ in 0..2 {
        let body = Some(container_body("reader").to_string());
        let (status, ..) = stage
            .send_with("POST", &containers, &created.management_token, body, &headers)
            .await?;
        assert_eq!(status, 200);
    }
    stage
        .request("GET", &containers, &created.management_token, None)
        .await?;
    stage
        .request("DELETE", BASE, &created.machine_token, None)
        .await?;
    stage.request("DELETE", BASE, "nobody", None).await?;
    let text = std::fs::read_to_string(&path)?;
    for secret in [&created.management_token, &created.machine_token, &stage.platform] {
        assert!(!text.contains(secret.as_str()), "a token is in the audit log");
    }
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let told: Vec<Value> = lines
        .iter()
        .map(|line| {
            json!([
                line["operation"],
                line["caller"]["kind"],
                line["status"],
                line["code"],
                line["replayed"]
            ])
        })
        .collect();
    assert_eq!(
        told,
        [
            json!(["create_cluster", "platform", 200, null, null]),
            json!(["create_container", "management", 200, null, null]),
            json!(["create_container", "management", 200, null, true]),
            json!(["delete_cluster", "machine", 403, "forbidden", null]),
            json!(["delete_cluster", null, 401, "unauthenticated", null]),
        ]
    );
    assert_eq!(
        (&lines[1]["requestId"], &lines[1]["clusterId"]),
        (&json!("mine-7"), &json!(CLUSTER))
    );
    assert_eq!(lines[0]["caller"]["subject"], "platform");
    assert_eq!(lines[1]["path"], containers);
    assert_eq!(lines[1]["address"], "127.0.0.1");
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn the_scheduler_counts_what_it_does() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    stage.create_cluster().await?;
    let (status, text, headers) = stage.request("GET", "/metrics", "", None).await?;
    assert_eq!(status, 200);
    assert!(
        headers["content-type"]
            .to_str()?
            .starts_with("application/openmetrics-text")
    );
    let text = text.as_str().unwrap_or_default();
    for line in [
        "berth_scheduler_clusters 1",
        "berth_scheduler_machines 0",
        "berth_scheduler_sessions 0",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in\n{text}"
        );
    }
    assert!(!text.contains("acme"), "metrics hold no ids");
    let (status, reply, _) = stage.request("GET", "/readyz", "", None).await?;
    assert_eq!((status, reply), (200, json!({"success": true})));
    stage.stop().await;
    Ok(())
}
