//! The capacity plan as the published client reads it: replicas without a place ask for machines, machines end the asking.

use berth_api::time::monotonic;
use horizon_client_sdk::types;
use serde_json::json;

use super::harness::{CLUSTER, Stage, container_body, heartbeat_body, read, register_body};

type Group = types::GroupCapacityRecommendation;

async fn plan(stage: &Stage, token: &str) -> anyhow::Result<Group> {
    let reply = stage
        .client(token)
        .get_capacity_plan()
        .cluster_id(CLUSTER)
        .send()
        .await?
        .into_inner();
    anyhow::ensure!(reply.groups.len() == 1, "{reply:?}");
    Ok(reply.groups.into_iter().next().expect("one was counted"))
}

/// Waits until the two machines that were heard are all that is wanted.
async fn reaches_target(stage: &Stage, token: &str) -> anyhow::Result<()> {
    let deadline = monotonic() + std::time::Duration::from_secs(60);
    loop {
        let group = plan(stage, token).await?;
        if group.reason.to_string() == "at_target" {
            assert_eq!((group.current_machines, group.desired_machines), (2, 2));
            let used = group.utilization_percent.unwrap_or_default();
            assert!((used - 60.0).abs() < 1e-6, "{used}");
            return Ok(());
        }
        anyhow::ensure!(monotonic() < deadline, "{group:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_plan_asks_for_machines_until_they_are_there() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let created = stage.create_cluster().await?;
    let token = &created.management_token;
    for token in [token, &stage.platform] {
        let group = plan(&stage, token).await?;
        assert_eq!((group.current_machines, group.desired_machines), (0, 0));
        assert_eq!(group.reason.to_string(), "at_target");
        assert_eq!(group.utilization_percent, None);
        assert!(group.unschedulable_replicas.is_none());
    }
    let path = "/clusters/acme%2Fprod%2Fcompute/capacity-plan";
    let (status, _, _) = stage.request("GET", path, &created.machine_token, None).await?;
    assert_eq!(status, 403);

    // Three replicas of 3 vCPU; a machine has 7.5: two machines.
    let mut body = container_body("reader");
    body["replicas"] = json!(3);
    body["resources"]["cpu"] = json!({"min": "3", "desired": "3"});
    stage
        .client(token)
        .create_container()
        .cluster_id(CLUSTER)
        .body(read::<types::CreateContainerRequest>(body))
        .send()
        .await?;
    let group = plan(&stage, token).await?;
    assert_eq!((group.current_machines, group.desired_machines), (0, 2));
    assert_eq!(group.reason.to_string(), "need_capacity");
    assert_eq!(group.unschedulable_replicas, Some(3));
    let (_, raw, _) = stage.request("GET", path, token, None).await?;
    assert_eq!(raw["groups"][0]["neededMachines"], json!(2));
    assert_eq!(raw["groups"][0]["neededMachinesAtLeast"], json!(2));
    let events = stage
        .client(token)
        .list_capacity_group_events()
        .cluster_id(CLUSTER)
        .group_id("general")
        .send()
        .await?;
    assert_eq!(events.events.len(), 1, "{events:?}");

    let node = stage.client(&created.machine_token);
    for machine in ["m-1", "m-2"] {
        node.handle_register()
            .body(read::<types::RegisterRequest>(register_body(machine)))
            .send()
            .await?;
        // Registered and not heard: counted as there, and not ordered again.
        assert_eq!(plan(&stage, token).await?.desired_machines, 2);
    }
    for machine in ["m-1", "m-2"] {
        node.handle_heartbeat()
            .body(read::<types::HeartbeatRequest>(heartbeat_body(
                machine,
                json!({}),
            )))
            .send()
            .await?;
    }
    reaches_target(&stage, token).await?;
    let (status, again, _) = stage.request("GET", path, &stage.platform, None).await?;
    assert_eq!(
        (status, &again["groups"][0]["unschedulableReplicas"]),
        (200, &json!(null))
    );
    stage.stop().await;
    Ok(())
}
