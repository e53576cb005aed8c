//! All 25 operations of the public API, each by the published client, each with success and with failure. The scheduler's own
//! counters are the witness: an operation that was left out, or that never failed, is missing there.

use horizon_client_sdk::{Client, types};
use serde_json::json;

use super::harness::{
    CLUSTER, Stage, cluster_body, container_body, heartbeat_body, read, register_body, status_of,
};

/// As `horizon-client-sdk` names them.
const OPERATIONS: [&str; 25] = [
    "handle_register",
    "handle_heartbeat",
    "handle_batch_heartbeat",
    "create_event",
    "create_cluster",
    "get_cluster",
    "update_cluster",
    "delete_cluster",
    "list_machines",
    "drain_machine",
    "get_capacity_plan",
    "rotate_token",
    "revoke_token",
    "create_container",
    "list_containers",
    "get_container",
    "update_container",
    "delete_container",
    "stop_container",
    "start_container",
    "list_events",
    "list_container_events",
    "list_replica_events",
    "list_machine_events",
    "list_capacity_group_events",
];

fn event() -> types::CreateEventRequest {
    read(json!({"clusterId": CLUSTER, "event": {
        "eventId": "e", "type": "info", "message": "started", "firstTimestamp": "2026-11-21T10:00:00Z",
        "lastTimestamp": "2026-11-21T10:00:01Z", "count": 1, "involvedObject": {"type": "container", "id": "reader"},
        "source": {"component": "horizond", "machineId": "i-1"}, "reason": "ContainerStarted"}}))
}

/// What nodes call; gives the statuses.
async fn node_operations(node: &Client, platform: &Client) -> Vec<u16> {
    let beat = || heartbeat_body("i-1", json!({}));
    vec![
        status_of(
            node.handle_register()
                .body(read::<types::RegisterRequest>(register_body("i-1")))
                .send()
                .await,
        ),
        status_of(
            node.handle_heartbeat()
                .body(read::<types::HeartbeatRequest>(beat()))
                .send()
                .await,
        ),
        status_of(
            platform
                .handle_batch_heartbeat()
                .body(read::<types::BatchHeartbeatRequest>(
                    json!({"heartbeats": [beat()]}),
                ))
                .send()
                .await,
        ),
        status_of(node.create_event().body(event()).send().await),
    ]
}

/// What changes one container, and reads it.
async fn container_operations(client: &Client) -> Vec<u16> {
    let update = read::<types::UpdateContainerRequest>(json!({"replicas": 1}));
    let create = read::<types::CreateContainerRequest>(container_body("reader"));
    let (cluster, name) = (CLUSTER, "reader");
    vec![
        status_of(
            client
                .create_container()
                .cluster_id(cluster)
                .body(create)
                .send()
                .await,
        ),
        status_of(client.list_containers().cluster_id(cluster).send().await),
        status_of(
            client
                .get_container()
                .cluster_id(cluster)
                .container_name(name)
                .send()
                .await,
        ),
        status_of(
            client
                .update_container()
                .cluster_id(cluster)
                .container_name(name)
                .body(update)
                .send()
                .await,
        ),
        status_of(
            client
                .stop_container()
                .cluster_id(cluster)
                .container_name(name)
                .send()
                .await,
        ),
        status_of(
            client
                .start_container()
                .cluster_id(cluster)
                .container_name(name)
                .send()
                .await,
        ),
        status_of(
            client
                .list_container_events()
                .cluster_id(cluster)
                .name(name)
                .send()
                .await,
        ),
        status_of(
            client
                .delete_container()
                .cluster_id(cluster)
                .container_name(name)
                .send()
                .await,
        ),
    ]
}

/// What reads and changes the cluster, its deletion left out.
async fn cluster_operations(client: &Client) -> Vec<u16> {
    let groups = json!({"capacityGroups": cluster_body()["capacityGroups"]});
    let cluster = CLUSTER;
    vec![
        status_of(client.get_cluster().cluster_id(cluster).send().await),
        status_of(
            client
                .update_cluster()
                .cluster_id(cluster)
                .body(read::<types::UpdateClusterRequest>(groups))
                .send()
                .await,
        ),
        status_of(client.list_machines().cluster_id(cluster).send().await),
        status_of(
            client
                .drain_machine()
                .cluster_id(cluster)
                .machine_id("i-1")
                .send()
                .await,
        ),
        status_of(client.get_capacity_plan().cluster_id(cluster).send().await),
        status_of(client.list_events().cluster_id(cluster).send().await),
        status_of(
            client
                .list_replica_events()
                .cluster_id(cluster)
                .replica_id("r")
                .send()
                .await,
        ),
        status_of(
            client
                .list_machine_events()
                .cluster_id(cluster)
                .machine_id("i-1")
                .send()
                .await,
        ),
        status_of(
            client
                .list_capacity_group_events()
                .cluster_id(cluster)
                .group_id("general")
                .send()
                .await,
        ),
        status_of(
            client
                .rotate_token()
                .cluster_id(cluster)
                .body(read::<types::RotateTokenRequest>(json!({"tokenType": "machine"})))
                .send()
                .await,
        ),
        status_of(
            client
                .revoke_token()
                .cluster_id(cluster)
                .body(read::<types::RevokeTokenRequest>(json!({"tokenType": "machine"})))
                .send()
                .await,
        ),
    ]
}

#[tokio::test]
async fn every_operation_succeeds_and_fails_through_the_published_client() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let platform = stage.client(&stage.platform);
    let stranger = stage.client("nobody");
    let create = || read::<types::CreateClusterRequest>(cluster_body());
    let created = platform
        .create_cluster()
        .body(create())
        .send()
        .await?
        .into_inner();
    let management = stage.client(&created.management_token);
    let machine = stage.client(&created.machine_token);

    assert_eq!(node_operations(&machine, &platform).await, [200; 4]);
    assert_eq!(container_operations(&management).await, [200; 8]);
    assert_eq!(cluster_operations(&management).await, [200; 11]);
    assert_eq!(node_operations(&stranger, &stranger).await, [401; 4]);
    assert_eq!(node_operations(&management, &management).await, [403; 4]);
    assert_eq!(container_operations(&stranger).await, [401; 8]);
    assert_eq!(cluster_operations(&stranger).await, [401; 11]);
    assert_eq!(
        status_of(stranger.create_cluster().body(create()).send().await),
        401
    );
    assert_eq!(
        status_of(management.delete_cluster().cluster_id(CLUSTER).send().await),
        403
    );
    platform.delete_cluster().cluster_id(CLUSTER).send().await?;
    assert_eq!(container_operations(&platform).await, [404; 8]);
    assert_eq!(cluster_operations(&platform).await, [404; 11]);

    let (_, text, _) = stage.request("GET", "/metrics", "", None).await?;
    let text = text.as_str().unwrap_or_default();
    let is_counted = |operation: &str, class: char| {
        let begin = format!("berth_scheduler_requests_total{{operation=\"{operation}\",status=\"{class}");
        text.lines().any(|line| line.starts_with(&begin))
    };
    for operation in OPERATIONS {
        assert!(is_counted(operation, '2'), "{operation} never succeeded");
        assert!(is_counted(operation, '4'), "{operation} never failed");
    }
    stage.stop().await;
    Ok(())
}

/// Those of the public API, in the description that the scheduler gives of itself: no more and no fewer are compatible.
#[tokio::test]
async fn the_description_holds_the_operations_of_the_published_client() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let (status, document, headers) = stage.request("GET", "/openapi.json", "", None).await?;
    assert_eq!((status, &document["openapi"]), (200, &json!("3.1.0")));
    assert_eq!(headers["content-type"], "application/json");
    let ids: Vec<&str> = document["paths"]
        .as_object()
        .into_iter()
        .flatten()
        .flat_map(|(_, methods)| methods.as_object().into_iter().flatten())
        .filter_map(|(_, operation)| operation["operationId"].as_str())
        .collect();
    for operation in OPERATIONS {
        assert_eq!(
            ids.iter().filter(|id| **id == operation).count(),
            1,
            "{operation}"
        );
    }
    stage.stop().await;
    Ok(())
}
