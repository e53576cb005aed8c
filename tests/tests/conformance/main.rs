//! Conformance: the published client `horizon-client-sdk` 1.1.0 drives every operation of the REST API that Berth serves,
//! against a real scheduler on loopback, on a cluster whose id contains slashes. What the client cannot read fails here.
//!
//! `bad_input` holds the answers to everything that is refused: one clear error with all faults, and nothing changed.

mod absurd;
mod aggregates;
mod bad_input;
mod containers;
mod events;
mod gpus;
mod harness;
mod idempotency;
mod limits;
mod members;
mod operations;
mod placement;
mod plans;
mod protocol;
mod required;
mod rollouts;
mod tokens;
mod trouble;
mod watch;
mod writes;

use harness::{CLUSTER, Stage, cluster_body, container_body, read};
use horizon_client_sdk::types;
use serde_json::json;

#[tokio::test]
async fn clusters_are_created_read_changed_and_deleted() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let platform = stage.client(&stage.platform);
    let created = platform
        .create_cluster()
        .body(read::<types::CreateClusterRequest>(cluster_body()))
        .send()
        .await?
        .into_inner();
    assert_eq!(created.cluster_id, CLUSTER);
    assert!(
        created.management_token.starts_with("hm_") && created.management_token.len() == 46,
        "{}",
        created.management_token.len()
    );
    assert!(created.machine_token.starts_with("hj_") && created.machine_token.len() == 46);

    // The reply may have been lost: the same request gives the same cluster and the same tokens.
    let again = platform
        .create_cluster()
        .body(read::<types::CreateClusterRequest>(cluster_body()))
        .send()
        .await?
        .into_inner();
    assert_eq!(again.management_token, created.management_token);
    assert_eq!(again.machine_token, created.machine_token);
    assert_eq!(again.created_at, created.created_at);

    let management = stage.client(&created.management_token);
    for client in [&platform, &management] {
        let got = client
            .get_cluster()
            .cluster_id(CLUSTER)
            .send()
            .await?
            .into_inner();
        assert_eq!((got.machine_count, got.container_count), (0, 0));
        assert_eq!(got.container_cidr, "10.244.0.0/16");
        assert!(got.capacity.cpu.total.abs() < 1e-9);
    }
    let mut groups = cluster_body()["capacityGroups"].clone();
    groups[0]["maxSize"] = json!(7);
    let changed = management
        .update_cluster()
        .cluster_id(CLUSTER)
        .body(read::<types::UpdateClusterRequest>(
            json!({"capacityGroups": groups}),
        ))
        .send()
        .await?;
    assert!(changed.success);
    let got = management.get_cluster().cluster_id(CLUSTER).send().await?;
    assert_eq!(got.capacity_groups[0].max_size, 7);

    assert!(
        platform
            .delete_cluster()
            .cluster_id(CLUSTER)
            .send()
            .await?
            .success
    );
    let gone = platform.get_cluster().cluster_id(CLUSTER).send().await;
    assert_eq!(harness::status_of(gone.map(drop)), 404);
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn tokens_are_rotated_and_revoked() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let created = stage.create_cluster().await?;
    let first = stage.client(&created.management_token);
    let rotate = |kind: &str| read::<types::RotateTokenRequest>(json!({"tokenType": kind}));
    let reply = first
        .rotate_token()
        .cluster_id(CLUSTER)
        .body(rotate("management"))
        .send()
        .await?
        .into_inner();
    assert_eq!(reply.machine_token, None);
    let second = stage.client(reply.management_token.as_deref().unwrap_or_default());
    let refused = first.get_cluster().cluster_id(CLUSTER).send().await;
    assert_eq!(harness::status_of(refused.map(drop)), 401);
    second.get_cluster().cluster_id(CLUSTER).send().await?;

    // A create that is repeated after a rotation gives the valid tokens.
    let again = stage.create_cluster().await?;
    assert_eq!(Some(again.management_token), reply.management_token);
    assert_eq!(again.machine_token, created.machine_token);

    let reply = second
        .rotate_token()
        .cluster_id(CLUSTER)
        .body(rotate("machine"))
        .send()
        .await?
        .into_inner();
    assert_eq!(reply.management_token, None);
    assert_ne!(reply.machine_token, Some(created.machine_token));
    for _ in 0..2 {
        let revoked = second
            .revoke_token()
            .cluster_id(CLUSTER)
            .body(read::<types::RevokeTokenRequest>(json!({"tokenType": "machine"})))
            .send()
            .await?;
        assert!(revoked.success);
    }
    let node = stage.client(reply.machine_token.as_deref().unwrap_or_default());
    let refused = node
        .handle_register()
        .body(read::<types::RegisterRequest>(harness::register_body("m-1")))
        .send()
        .await;
    assert_eq!(harness::status_of(refused.map(drop)), 401);
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn every_token_works_where_it_should_and_nowhere_else() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let one = stage.create_cluster().await?;
    let mut other_body = cluster_body();
    other_body["clusterId"] = json!("acme/other");
    let (status, other, _) = stage
        .request("POST", "/clusters", &stage.platform, Some(other_body))
        .await?;
    assert_eq!(status, 200);
    let foreign = other["managementToken"].as_str().unwrap_or_default().to_owned();
    let path = |rest: &str| format!("/clusters/acme%2Fprod%2Fcompute{rest}");
    let register = || Some(harness::register_body("m-1"));
    let (platform, management, machine) = (&stage.platform, &one.management_token, &one.machine_token);
    let unknown = format!("hm_{}", "a".repeat(43));
    let table = [
        ("GET", path(""), None, platform, 200),
        ("GET", path(""), None, management, 200),
        ("GET", path(""), None, machine, 403),
        ("GET", path(""), None, &foreign, 403),
        ("GET", path(""), None, &unknown, 401),
        ("GET", path("/machines"), None, management, 200),
        ("DELETE", path(""), None, management, 403),
        (
            "POST",
            "/clusters".to_owned(),
            Some(cluster_body()),
            management,
            403,
        ),
        ("GET", "/clusters".to_owned(), None, management, 403),
        (
            "POST",
            path("/containers"),
            Some(container_body("a")),
            machine,
            403,
        ),
        ("POST", "/register".to_owned(), register(), machine, 200),
        ("POST", "/register".to_owned(), register(), management, 403),
        ("POST", "/register".to_owned(), register(), platform, 403),
        ("POST", "/register".to_owned(), register(), &unknown, 401),
        (
            "POST",
            "/batch/heartbeat".to_owned(),
            Some(json!({"heartbeats": []})),
            machine,
            403,
        ),
        ("GET", "/clusters/nowhere".to_owned(), None, platform, 404),
        ("GET", "/clusters/nowhere".to_owned(), None, management, 403),
    ];
    for (method, path, body, token, wanted) in table {
        let (status, reply, _) = stage.request(method, &path, token, body).await?;
        assert_eq!(status, wanted, "{method} {path}: {reply}");
    }
    let (status, reply, headers) = stage.request("GET", &path(""), "", None).await?;
    assert_eq!(
        (status, &reply["error"]["code"]),
        (401, &json!("unauthenticated"))
    );
    assert_eq!(headers["www-authenticate"], "Bearer");
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_scheduler_that_starts_again_serves_the_same() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let created = stage.create_cluster().await?;
    let management = stage.client(&created.management_token);
    management
        .create_container()
        .cluster_id(CLUSTER)
        .body(read::<types::CreateContainerRequest>(container_body("reader")))
        .send()
        .await?;
    let stage = stage.restart().await?;
    let management = stage.client(&created.management_token);
    let got = management
        .get_container()
        .cluster_id(CLUSTER)
        .container_name("reader")
        .send()
        .await?;
    assert_eq!(got.config.image, "registry.example/reader:1");
    assert_eq!(stage.create_cluster().await?.machine_token, created.machine_token);
    stage.stop().await;
    Ok(())
}
