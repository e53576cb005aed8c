//! What holds for every request: request ids, errors as JSON, paths, bodies.

use serde_json::json;

use super::harness::{CLUSTER, Stage, container_body};

#[tokio::test]
async fn every_answer_is_json_with_a_request_id() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    stage.create_cluster().await?;
    let token = &stage.platform;
    let huge = "x".repeat((1 << 20) + 1);
    let table = [
        ("GET", "/nowhere", None, 404, "no_such_route"),
        ("GET", "/clusters/acme/prod/compute", None, 404, "no_such_route"),
        ("PUT", "/clusters", None, 405, "method_not_allowed"),
        (
            "POST",
            "/clusters",
            Some("{\"a\": ".to_owned()),
            400,
            "malformed_json",
        ),
        (
            "POST",
            "/clusters",
            Some("{\"name\": 1, \"name\": 2}".to_owned()),
            400,
            "malformed_json",
        ),
        ("POST", "/clusters", Some(String::new()), 400, "malformed_json"),
        ("POST", "/clusters", Some("[]".to_owned()), 400, "invalid_cluster"),
        ("POST", "/clusters", Some(huge), 413, "body_too_large"),
        ("GET", "/clusters/%FF", None, 400, "invalid_path"),
        (
            "GET",
            "/clusters/acme%2Fprod%2Fcompute/containers/Not-a-name",
            None,
            400,
            "invalid_path",
        ),
        (
            "GET",
            "/clusters/acme%2Fprod%2Fcompute/events?limit=0",
            None,
            400,
            "invalid_query",
        ),
    ];
    for (method, path, body, status, code) in table {
        let (found, reply, headers) = stage.send(method, path, token, body).await?;
        assert_eq!(
            (found, reply["error"]["code"].as_str()),
            (status, Some(code)),
            "{method} {path}: {reply}"
        );
        assert!(
            reply["error"]["message"]
                .as_str()
                .is_some_and(|message| !message.is_empty())
        );
        assert_eq!(headers["content-type"], "application/json");
        assert!(headers.contains_key("x-request-id"));
    }
    for path in ["/healthz", "/readyz"] {
        let (status, _, headers) = stage.request("GET", path, "", None).await?;
        assert_eq!(status, 200);
        assert!(headers.contains_key("x-request-id"));
    }
    let (_, clusters, _) = stage.request("GET", "/clusters", token, None).await?;
    assert_eq!(clusters["clusters"][0]["clusterId"], CLUSTER);
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn the_clients_own_request_id_comes_back() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let url = format!("http://{}/healthz", stage.running.rest_addr);
    let response = reqwest::Client::new()
        .get(url)
        .header("x-request-id", "mine-1")
        .send()
        .await?;
    assert_eq!(response.headers()["x-request-id"], "mine-1");
    stage.stop().await;
    Ok(())
}

/// An older client reads the members beside `replicasInfo`, a newer one those in `config`; both read explicit nulls.
#[tokio::test]
async fn a_container_is_nested_and_flat() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let created = stage.create_cluster().await?;
    let token = &created.management_token;
    let path = "/clusters/acme%2Fprod%2Fcompute/containers";
    let mut body = container_body("reader");
    body["unheardOf"] = json!(1);
    let (status, reply, _) = stage.request("POST", path, token, Some(body)).await?;
    assert_eq!(status, 200, "{reply}");
    let (_, got, _) = stage
        .request("GET", &format!("{path}/reader"), token, None)
        .await?;
    for name in [
        "name",
        "image",
        "resources",
        "ports",
        "stateful",
        "env",
        "healthCheck",
        "status",
    ] {
        assert_eq!(got[name], got["config"][name], "{name}");
        assert!(!got[name].is_null(), "{name}");
    }
    assert_eq!(got["healthCheck"]["timeoutSeconds"], 1);
    assert!(
        got.as_object()
            .is_some_and(|got| got.contains_key("statusReason"))
    );
    assert_eq!(
        got["createdAt"].as_str().map(|time| time.ends_with('Z')),
        Some(true)
    );
    stage.stop().await;
    Ok(())
}
