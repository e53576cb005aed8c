//! The four aggregates over two clusters with work in them, read into the types that `horizon-client-sdk` kept for them.

use horizon_client_sdk::types;
use serde_json::{Value, json};

use super::harness::{
    CLUSTER, Stage, cluster_body, container_body, heartbeat_body, read, register_body, until,
};

const OTHER: &str = "acme/other";

/// A replica's metrics: `number` makes the figures of each replica its own.
fn metrics(number: u32) -> Value {
    json!({
        "status": "running", "cpuUsage": 0.25 * f64::from(number), "cpuUsagePercent": 25.0 * f64::from(number),
        "memoryUsedBytes": 536_870_912_i64, "memoryUsagePercent": 50.0, "healthy": true,
        "lastUpdated": "2026-11-21T10:00:00Z",
        "http": {"inFlightRequests": 2 * number, "totalRequests": 100, "latencyP95Ms": 10.0 * f64::from(number),
            "latencyP99Ms": 90.0, "status2xx": 90, "status4xx": 0, "status5xx": 10, "topEndpoints": []}
    })
}

/// [`CLUSTER`] of project p-1 with a machine that runs two replicas of `reader`; [`OTHER`] of project p-2 without machines,
/// where `reader` and `writer` have no place.
async fn two_clusters(stage: &Stage) -> anyhow::Result<()> {
    let created = stage.create_cluster().await?;
    let mut other = cluster_body();
    other["clusterId"] = json!(OTHER);
    other["projectId"] = json!("p-2");
    other["deploymentGroupId"] = json!("d-2");
    let (platform, machine) = (&stage.platform, &created.machine_token);
    let post = async |path: &str, token: &str, body: Value| {
        let (status, reply, _) = stage.request("POST", path, token, Some(body)).await?;
        anyhow::ensure!(status == 200, "{path}: {reply}");
        Ok(reply)
    };
    post("/clusters", platform, other).await?;
    post("/register", machine, register_body("i-1")).await?;
    post("/heartbeat", machine, heartbeat_body("i-1", json!({}))).await?;
    let path = |id: &str| format!("/clusters/{}/containers", id.replace('/', "%2F"));
    post(&path(CLUSTER), platform, container_body("reader")).await?;
    let mut reader = container_body("reader");
    reader["image"] = json!("registry.example/reader:2");
    post(&path(OTHER), platform, reader).await?;
    post(&path(OTHER), platform, container_body("writer")).await?;
    let assigned = until("the assignment", || async {
        let reply = post("/heartbeat", machine, heartbeat_body("i-1", json!({}))).await?;
        let assigned = reply["assignments"].as_array().cloned().unwrap_or_default();
        Ok((assigned.len() == 2).then_some(assigned))
    })
    .await?;
    let replicas: serde_json::Map<String, Value> = (1..)
        .zip(&assigned)
        .map(|(number, one)| {
            let id = one["replicaId"].as_str().unwrap_or_default();
            (id.to_owned(), metrics(number))
        })
        .collect();
    until("the replicas to run and the others to have no place", || async {
        post(
            "/heartbeat",
            machine,
            heartbeat_body("i-1", replicas.clone().into()),
        )
        .await?;
        let (row, overview) = row(stage, "", "reader").await?;
        let is_settled = row.healthy_replicas == 2 && row.failing_instances == 1;
        let writer = overview
            .containers
            .iter()
            .any(|row| row.failing_instances == 1 && row.name == "writer");
        Ok((is_settled && writer).then_some(()))
    })
    .await
}

async fn get(stage: &Stage, path: &str) -> anyhow::Result<Value> {
    let (status, reply, _) = stage.request("GET", path, &stage.platform, None).await?;
    anyhow::ensure!(status == 200, "{path}: {reply}");
    Ok(reply)
}

async fn row(
    stage: &Stage,
    query: &str,
    name: &str,
) -> anyhow::Result<(types::OverviewContainerSummary, types::AggregateOverviewResponse)> {
    let overview: types::AggregateOverviewResponse =
        read(get(stage, &format!("/aggregate/overview{query}")).await?);
    let row = overview.containers.iter().find(|row| row.name == name).cloned();
    Ok((row.ok_or_else(|| anyhow::anyhow!("{overview:?}"))?, overview))
}

fn close(found: Option<f64>, wanted: f64) -> bool {
    found.is_some_and(|found| (found - wanted).abs() < 1e-6)
}

#[tokio::test]
async fn aggregates_sum_over_clusters() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    two_clusters(&stage).await?;
    let (reader, overview) = row(&stage, "", "reader").await?;
    assert_eq!((reader.total_instances, reader.running_instances), (2, 1));
    assert_eq!(
        (
            reader.failing_instances,
            reader.pending_instances,
            reader.stopped_instances
        ),
        (1, 0, 0)
    );
    assert_eq!(
        (
            reader.total_replicas,
            reader.healthy_replicas,
            reader.attention_count
        ),
        (4, 2, 1)
    );
    assert_eq!((reader.image, reader.project_id), (None, None), "they differ");
    assert_eq!(
        (reader.stateful, reader.has_autoscaling),
        (Some(false), Some(false))
    );
    assert!(close(reader.avg_cpu_percent, 37.5) && close(reader.avg_memory_percent, 50.0));
    assert!(close(reader.avg_latency_p95_ms, 15.0) && close(reader.avg_error_rate, 0.1));
    let totals = &overview.totals;
    assert_eq!(
        (totals.deployments, totals.container_instances, totals.machines),
        (2, 3, 1)
    );
    assert_eq!(
        (
            totals.machines_by_status.running,
            totals.rescheduling_frozen_count
        ),
        (1, 0)
    );

    let attention: types::AggregateAttentionResponse = read(get(&stage, "/aggregate/attention").await?);
    assert_eq!(attention.clusters.len(), 1, "{attention:?}");
    assert_eq!(attention.clusters[0].cluster_id, OTHER);
    let issues = &attention.clusters[0].issues;
    assert_eq!(issues.len(), 2);
    for (issue, name) in issues.iter().zip(["reader", "writer"]) {
        assert_eq!(
            (issue.type_.as_str(), issue.container_name.as_deref()),
            ("scheduling_failure", Some(name))
        );
        assert!(issue.message.contains("general"), "{}", issue.message);
    }
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_container_and_the_machines_are_told_by_cluster() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    two_clusters(&stage).await?;
    let rows: types::AggregateContainerResponse = read(get(&stage, "/aggregate/containers/reader").await?);
    assert_eq!(
        (rows.container_name.as_str(), rows.deployments.len()),
        ("reader", 2)
    );
    let [other, one] = rows.deployments.as_slice() else {
        panic!("{rows:?}")
    };
    assert_eq!(
        (one.cluster_id.as_str(), one.status.as_str()),
        (CLUSTER, "running")
    );
    assert_eq!((one.current_replicas, one.healthy_replicas), (2, 2));
    assert!(close(one.avg_in_flight_requests, 3.0));
    assert_eq!(
        (other.cluster_id.as_str(), other.status.as_str()),
        (OTHER, "failing")
    );
    assert_eq!(other.status_reason.as_deref(), Some("Unschedulable"));
    assert_eq!((other.current_replicas, other.avg_cpu_percent), (0, None));
    let none = get(&stage, "/aggregate/containers/nobody").await?;
    assert_eq!(none, json!({"containerName": "nobody", "deployments": []}));

    let machines: types::AggregateMachinesResponse = read(get(&stage, "/aggregate/machines").await?);
    assert_eq!(
        (
            machines.totals.machines,
            machines.totals.machines_by_status.running
        ),
        (1, 1)
    );
    let [other, one] = machines.clusters.as_slice() else {
        panic!("{machines:?}")
    };
    assert_eq!((one.total_machines, one.capacity_groups[0].machines), (1, 1));
    let advice = one.capacity_groups[0]
        .recommendation
        .clone()
        .expect("a decision was made");
    assert_eq!((advice.current_machines, advice.desired_machines), (1, 1));
    let used = one.capacity_groups[0].utilization_percent;
    assert!(used.is_some() && used == advice.utilization_percent, "{used:?}");
    let advice = other.capacity_groups[0]
        .recommendation
        .clone()
        .expect("a decision was made");
    assert_eq!(advice.unschedulable_replicas, Some(4));
    assert_eq!(advice.profile.memory_bytes, 17_179_869_184);
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn aggregates_are_filtered_and_for_platform_tokens_only() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    two_clusters(&stage).await?;
    let (reader, overview) = row(&stage, "?projectId=p-1", "reader").await?;
    assert_eq!((overview.totals.deployments, overview.containers.len()), (1, 1));
    assert_eq!(reader.project_id.as_deref(), Some("p-1"));
    assert_eq!(reader.image.as_deref(), Some("registry.example/reader:1"));
    let nothing = get(&stage, "/aggregate/attention?projectId=p-1").await?;
    assert_eq!(nothing, json!({"clusters": []}));
    for (query, clusters) in [
        ("deploymentGroupId=d-2", 1),
        ("deploymentGroupId=d-2&projectId=p-1", 0),
        ("projectId=p-3", 0),
        ("unheardOf=1", 2),
    ] {
        let machines = get(&stage, &format!("/aggregate/machines?{query}")).await?;
        assert_eq!(
            machines["clusters"].as_array().map(Vec::len),
            Some(clusters),
            "{query}"
        );
    }
    let (status, reply, _) = stage
        .request(
            "GET",
            "/aggregate/overview?projectId=a&projectId=b",
            &stage.platform,
            None,
        )
        .await?;
    assert_eq!((status, &reply["faults"][0]["path"]), (400, &json!("projectId")));
    let cluster = stage.create_cluster().await?;
    for path in ["overview", "attention", "containers/reader", "machines"] {
        for (token, wanted) in [
            (cluster.management_token.as_str(), 403),
            (cluster.machine_token.as_str(), 403),
            ("nonsense", 401),
            ("", 401),
        ] {
            let (status, reply, _) = stage
                .request("GET", &format!("/aggregate/{path}"), token, None)
                .await?;
            assert_eq!(status, wanted, "{path}: {reply}");
        }
    }
    let (status, reply, _) = stage
        .request("GET", "/aggregate/containers/Not-a-name", &stage.platform, None)
        .await?;
    assert_eq!(
        (status, reply["error"]["code"].as_str()),
        (400, Some("invalid_path"))
    );
    stage.stop().await;
    Ok(())
}
