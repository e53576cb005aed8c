//! A stock node and a stock control plane: a container's whole life, driven by the published client alone.

use horizon_client_sdk::{Client, types};
use serde_json::{Value, json};

use super::harness::{CLUSTER, Stage, container_body, heartbeat_body, read, register_body, status_of, until};

/// Registers a machine and sends its first heartbeat.
async fn join(node: &Client, machine: &str) -> anyhow::Result<types::RegisterResponse> {
    let registered = node
        .handle_register()
        .body(read::<types::RegisterRequest>(register_body(machine)))
        .send()
        .await?
        .into_inner();
    beat(node, machine, json!({})).await?;
    Ok(registered)
}

async fn beat(node: &Client, machine: &str, replicas: Value) -> anyhow::Result<types::HeartbeatResponse> {
    let body = read::<types::HeartbeatRequest>(heartbeat_body(machine, replicas));
    Ok(node.handle_heartbeat().body(body).send().await?.into_inner())
}

/// What a healthy node says of everything it was assigned.
fn all_running(assignments: &[types::ReplicaAssignment]) -> Value {
    let metrics = json!({
        "status": "running", "cpuUsage": 0.25, "cpuUsagePercent": 25.0, "memoryUsedBytes": 536_870_912_i64,
        "memoryUsagePercent": 50.0, "healthy": true, "lastUpdated": "2026-11-21T10:00:00Z",
        "http": {"inFlightRequests": 3, "totalRequests": 10, "latencyP95Ms": 4.5, "latencyP99Ms": 9.0, "status2xx": 10,
            "status4xx": 0, "status5xx": 0, "topEndpoints": [{"path": "/", "method": "GET", "statusClass": "2xx",
                "requests": 10, "latencyP95Ms": 4.5, "latencyP99Ms": 9.0, "errorRate": 0.0}]}
    });
    assignments
        .iter()
        .map(|assignment| (assignment.replica_id.clone(), metrics.clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Heartbeats, reporting everything assigned as running, until `count` replicas are assigned.
async fn run_all(
    node: &Client,
    machine: &str,
    count: usize,
) -> anyhow::Result<Vec<types::ReplicaAssignment>> {
    let assigned = until("the assignment", || async {
        let reply = beat(node, machine, json!({})).await?;
        Ok((reply.assignments.len() == count).then_some(reply.assignments))
    })
    .await?;
    beat(node, machine, all_running(&assigned)).await?;
    Ok(assigned)
}

#[tokio::test]
async fn a_container_lives_and_dies() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let created = stage.create_cluster().await?;
    let (management, node) = (
        stage.client(&created.management_token),
        stage.client(&created.machine_token),
    );
    let network = join(&node, "i-1").await?.assigned_network;
    assert_eq!(
        (network.cidr.as_str(), network.gateway.as_str()),
        ("10.244.0.0/24", "10.244.0.1")
    );
    assert_eq!(join(&node, "i-1").await?.assigned_network.cidr, network.cidr);

    let request = || read::<types::CreateContainerRequest>(container_body("reader"));
    for _ in 0..2 {
        let reply = management
            .create_container()
            .cluster_id(CLUSTER)
            .body(request())
            .send()
            .await?
            .into_inner();
        assert_eq!(reply.status, types::ContainerStatus::Pending);
        assert_eq!(
            (reply.name.as_str(), reply.cluster_id.as_str()),
            ("reader", CLUSTER)
        );
    }
    let assigned = run_all(&node, "i-1", 2).await?;
    let first = &assigned[0];
    assert!(
        first.replica_id.starts_with("reader-i-1-"),
        "{}",
        first.replica_id
    );
    assert!(first.ip.starts_with("10.244.0."), "{}", first.ip);
    assert_eq!((first.cpu.as_str(), first.memory.as_str()), ("1", "1Gi"));
    assert_eq!(first.env.get("A").map(String::as_str), Some("1"));
    assert_eq!(
        first.health_check.as_ref().and_then(|check| check.port),
        Some(8080)
    );

    let got = until("the container to run", || async {
        beat(&node, "i-1", all_running(&assigned)).await?;
        let got = get(&management, "reader").await?;
        Ok((got.status == types::ContainerStatus::Running).then_some(got))
    })
    .await?;
    assert_eq!(got.config.replicas, Some(2));
    assert_eq!(got.config.status, Some(types::ContainerStatus::Running));
    assert_eq!((got.status_reason, got.status_message), (None, None));
    assert_eq!(got.replicas_info.len(), 2);
    assert!(got.replicas_info.iter().all(|replica| replica.healthy));
    let metrics = got.replicas_info[0].metrics.clone().expect("usage was reported");
    assert!((metrics.cpu_usage_percent - 25.0).abs() < 1e-6);
    let listed = management.list_containers().cluster_id(CLUSTER).send().await?;
    assert_eq!(listed.containers[0].current_replicas, 2);

    change(&stage, &management, &node).await?;
    machines(&management).await?;
    end(&management, &node).await?;
    stage.stop().await;
    Ok(())
}

async fn get(management: &Client, name: &str) -> anyhow::Result<types::GetContainerResponse> {
    let got = management
        .get_container()
        .cluster_id(CLUSTER)
        .container_name(name)
        .send()
        .await?;
    Ok(got.into_inner())
}

async fn change(stage: &Stage, management: &Client, node: &Client) -> anyhow::Result<()> {
    let update = |body: Value| {
        management
            .update_container()
            .cluster_id(CLUSTER)
            .container_name("reader")
            .body(read::<types::UpdateContainerRequest>(body))
    };
    let reply = update(json!({"replicas": 3, "env": {"A": "1"}})).send().await?;
    assert_eq!(reply.status, types::ContainerStatus::Pending);
    run_all(node, "i-1", 3).await?;
    update(json!({"autoscaling": {"min": 1, "desired": 3, "max": 5, "targetCpuPercent": 72.5}}))
        .send()
        .await?;
    let got = get(management, "reader").await?;
    assert_eq!(got.config.replicas, None);
    let scale = got.config.autoscaling.expect("autoscaling was set");
    assert_eq!(scale.target_cpu_percent, Some(72.5));
    let before = stage.log_len();
    let refused = update(json!({"volumes": [{"ordinal": 0, "volume": {"type": "hostpath", "path": "/v"}}]}))
        .send()
        .await;
    assert_eq!(status_of(refused), 400);
    assert_eq!(stage.log_len(), before);
    let missing = management
        .update_container()
        .cluster_id(CLUSTER)
        .container_name("missing")
        .body(read::<types::UpdateContainerRequest>(json!({"image": "a:2"})))
        .send()
        .await;
    assert_eq!(status_of(missing), 404);
    Ok(())
}

async fn machines(management: &Client) -> anyhow::Result<()> {
    let listed = management.list_machines().cluster_id(CLUSTER).send().await?;
    let machine = &listed.machines[0];
    assert_eq!(machine.status, types::MachineStatus::Running);
    assert_eq!(machine.replica_count, 3);
    assert!((machine.cpu.allocated - 3.0).abs() < 1e-9);
    assert_eq!(machine.memory.system_reserve, 1 << 30);
    let cluster = management.get_cluster().cluster_id(CLUSTER).send().await?;
    assert!((cluster.capacity.cpu.available - 4.5).abs() < 1e-9);
    for _ in 0..2 {
        let drained = management
            .drain_machine()
            .cluster_id(CLUSTER)
            .machine_id("i-1")
            .send()
            .await?;
        assert!(drained.success);
    }
    let listed = management.list_machines().cluster_id(CLUSTER).send().await?;
    assert_eq!(listed.machines[0].status, types::MachineStatus::Draining);
    let missing = management
        .drain_machine()
        .cluster_id(CLUSTER)
        .machine_id("i-9")
        .send()
        .await;
    assert_eq!(status_of(missing), 404);
    Ok(())
}

async fn end(management: &Client, node: &Client) -> anyhow::Result<()> {
    for _ in 0..2 {
        let stopped = management
            .stop_container()
            .cluster_id(CLUSTER)
            .container_name("reader")
            .send()
            .await?;
        assert!(stopped.success);
    }
    assert_eq!(
        get(management, "reader").await?.status,
        types::ContainerStatus::Stopped
    );
    until("the replicas to be unassigned", || async {
        let reply = beat(node, "i-1", json!({})).await?;
        Ok(reply.assignments.is_empty().then_some(()))
    })
    .await?;
    let started = management
        .start_container()
        .cluster_id(CLUSTER)
        .container_name("reader")
        .send()
        .await?;
    assert!(started.success);
    assert_ne!(
        get(management, "reader").await?.status,
        types::ContainerStatus::Stopped
    );
    for _ in 0..2 {
        let deleted = management
            .delete_container()
            .cluster_id(CLUSTER)
            .container_name("reader")
            .send()
            .await?;
        assert!(deleted.success);
    }
    let gone = management
        .get_container()
        .cluster_id(CLUSTER)
        .container_name("reader")
        .send()
        .await;
    assert_eq!(status_of(gone), 404);
    let never = management
        .delete_container()
        .cluster_id(CLUSTER)
        .container_name("never")
        .send()
        .await;
    assert_eq!(status_of(never), 404);
    Ok(())
}

#[tokio::test]
async fn a_stateful_container_has_ordinals_and_volumes() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let created = stage.create_cluster().await?;
    let node = stage.client(&created.machine_token);
    join(&node, "i-1").await?;
    let mut body = container_body("writer");
    body["stateful"] = json!(true);
    body["volumes"] = json!([
        {"ordinal": 0, "volume": {"type": "hostpath", "path": "/srv/writer/0"}},
        {"ordinal": 1, "volume": {"type": "hostpath", "path": "/srv/writer/1"}}]);
    stage
        .client(&created.management_token)
        .create_container()
        .cluster_id(CLUSTER)
        .body(read::<types::CreateContainerRequest>(body))
        .send()
        .await?;
    let mut assigned = run_all(&node, "i-1", 2).await?;
    assigned.sort_by_key(|assignment| assignment.ordinal);
    for (ordinal, assignment) in (0i32..).zip(&assigned) {
        assert_eq!(assignment.replica_id, format!("writer-{ordinal}"));
        assert_eq!(assignment.ordinal, Some(ordinal));
        assert_eq!(assignment.env.get("ALIEN_ORDINAL"), Some(&ordinal.to_string()));
        let Some(types::VolumeTarget::Hostpath { path }) = &assignment.volume else {
            panic!("{:?}", assignment.volume)
        };
        assert_eq!(path, &format!("/srv/writer/{ordinal}"));
    }
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn what_has_no_place_says_why() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let created = stage.create_cluster().await?;
    let management = stage.client(&created.management_token);
    management
        .create_container()
        .cluster_id(CLUSTER)
        .body(read::<types::CreateContainerRequest>(container_body("reader")))
        .send()
        .await?;
    let got = until("the container to have no place", || async {
        let got = get(&management, "reader").await?;
        Ok(got.status_reason.is_some().then_some(got))
    })
    .await?;
    assert_eq!(got.status, types::ContainerStatus::Failing);
    assert_eq!(
        got.status_reason,
        Some(types::ContainerStatusReason::Unschedulable)
    );
    assert!(
        got.status_message
            .is_some_and(|message| message.contains("general"))
    );

    let path = |rest: &str| format!("/clusters/acme%2Fprod%2Fcompute/{rest}");
    let token = &created.management_token;
    let (status, replicas, _) = stage.request("GET", &path("replicas"), token, None).await?;
    assert_eq!(status, 200);
    assert_eq!(
        replicas["replicas"].as_array().map(Vec::len),
        Some(2),
        "{replicas}"
    );
    assert!(
        replicas["replicas"][0]["wait"]["reason"].is_string(),
        "{replicas}"
    );
    let (status, why, _) = stage
        .request("GET", &path("explain/container/reader"), token, None)
        .await?;
    assert_eq!(status, 200);
    assert!(
        why["waits"].as_array().is_some_and(|waits| !waits.is_empty()),
        "{why}"
    );
    let (status, ..) = stage
        .request("GET", &path("explain/container/none"), token, None)
        .await?;
    assert_eq!(status, 404);
    let (status, ..) = stage
        .request("GET", &path("explain/pod/reader"), token, None)
        .await?;
    assert_eq!(status, 400);
    let (status, ..) = stage.request("GET", &path("logs/reader"), token, None).await?;
    assert_eq!(status, 404);
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn batches_of_heartbeats_are_taken() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let created = stage.create_cluster().await?;
    let node = stage.client(&created.machine_token);
    join(&node, "i-1").await?;
    join(&node, "i-2").await?;
    let batch = |machines: &[&str]| {
        let list: Vec<Value> = machines
            .iter()
            .map(|machine| heartbeat_body(machine, json!({})))
            .collect();
        read::<types::BatchHeartbeatRequest>(json!({"heartbeats": list}))
    };
    let platform = stage.client(&stage.platform);
    let reply = platform
        .handle_batch_heartbeat()
        .body(batch(&["i-1", "i-2"]))
        .send()
        .await?;
    assert!(reply.success);
    let refused = platform
        .handle_batch_heartbeat()
        .body(batch(&["i-1", "i-9"]))
        .send()
        .await;
    assert_eq!(status_of(refused), 400);
    let lone = read::<types::HeartbeatRequest>(heartbeat_body("i-9", json!({})));
    let refused = node.handle_heartbeat().body(lone).send().await;
    assert_eq!(status_of(refused), 404);
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn checks_of_other_kinds_than_http_are_kept_and_read_by_the_published_client() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    stage.create_cluster().await?;
    let base = "/clusters/acme%2Fprod%2Fcompute/containers";
    for (name, check) in [
        ("tcp", json!({"kind": "tcp", "port": 5432})),
        ("exec", json!({"kind": "exec", "command": ["pg_isready", "-q"]})),
    ] {
        let mut body = container_body(name);
        body["healthCheck"] = check.clone();
        let (status, reply, _) = stage.request("POST", base, &stage.platform, Some(body)).await?;
        assert_eq!(status, 200, "{reply}");
        let path = format!("{base}/{name}");
        let (_, got, _) = stage.request("GET", &path, &stage.platform, None).await?;
        let kept = &got["config"]["healthCheck"];
        assert!(
            check
                .as_object()
                .is_some_and(|check| check.iter().all(|(key, value)| kept[key] == *value)),
            "{kept}"
        );
        // A change of kind is a change of the declaration like any other.
        let change = json!({"healthCheck": {"path": "/ready"}});
        let (status, reply, _) = stage
            .request("PATCH", &path, &stage.platform, Some(change))
            .await?;
        assert_eq!(status, 200, "{reply}");
        let back = json!({"healthCheck": kept});
        let (status, reply, _) = stage.request("PATCH", &path, &stage.platform, Some(back)).await?;
        assert_eq!(status, 200, "{reply}");
        let client = stage.client(&stage.platform);
        let read = client
            .get_container()
            .cluster_id(CLUSTER)
            .container_name(name)
            .send()
            .await?;
        assert!(read.into_inner().config.health_check.is_some());
    }
    stage.stop().await;
    Ok(())
}
