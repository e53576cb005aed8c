//! Every kind of event is posted by a node and read back by the published client, in every list that can hold it.

use berth_api::event::REASONS;
use horizon_client_sdk::types;
use serde_json::{Value, json};

use super::harness::{CLUSTER, Stage, read};

/// One event of each of the 37 kinds, with every optional member.
fn details() -> Vec<Value> {
    vec![
        json!({"reason": "ImagePulled", "image": "a:1", "pullDurationMs": 5_000_000_000_i64}),
        json!({"reason": "ImagePullError", "image": "a:1", "error": "no such tag"}),
        json!({"reason": "VolumeAttached", "volumeId": "vol-1", "volumeType": "aws", "devicePath": "/dev/x",
            "mountPath": "/data", "formatted": true, "attachDurationMs": 10}),
        json!({"reason": "VolumeAttachError", "volumeId": "vol-1", "volumeType": "hostpath", "error": "e", "step": "wait_device"}),
        json!({"reason": "VolumeDetached", "volumeId": "vol-1", "volumeType": "gcp", "detachReason": "machine_draining"}),
        json!({"reason": "WireGuardPeerConfigured", "peerCount": 1, "peerMachineIds": ["i-2"]}),
        json!({"reason": "WireGuardConfigurationError", "error": "e", "configStep": "peer"}),
        json!({"reason": "BridgeInterfaceReady", "bridgeName": "br0", "gatewayIp": "10.244.0.1"}),
        json!({"reason": "TcpProxyStarted", "hostPort": 8001, "containerIp": "10.244.0.2", "containerPort": 80}),
        json!({"reason": "LoadBalancerRegistered", "hostPort": 8001, "targetGroupArn": "arn", "backendServiceUrl": "u", "backendPoolId": "p"}),
        json!({"reason": "LoadBalancerRegistrationError", "hostPort": 8001, "error": "e"}),
        json!({"reason": "LoadBalancerDeregistered", "hostPort": 8001}),
        json!({"reason": "ReplicaStarting", "containerName": "a", "image": "a:1"}),
        json!({"reason": "ReplicaStarted", "containerName": "a", "ip": "10.244.0.2", "totalStartupMs": 7}),
        json!({"reason": "ContainerRunError", "containerName": "a", "error": "e"}),
        json!({"reason": "ReplicaFailed", "exitCode": -1, "signal": "SIGKILL"}),
        json!({"reason": "ReplicaStopped", "stopReason": "scaled_down"}),
        json!({"reason": "ContainerCrashLoop", "recentCrashes": 3, "backoffSeconds": 4}),
        json!({"reason": "CrashLoopRecovered", "previousCrashes": 3}),
        json!({"reason": "MachineRegistered", "capacityGroup": "g", "zone": "z", "vpcIp": "10.0.0.1", "containerCidr": "10.244.0.0/24"}),
        json!({"reason": "MachineReady", "peerCount": 0, "transitionTimeMs": 1}),
        json!({"reason": "MachineDraining", "replicaCount": 2}),
        json!({"reason": "MachineUnhealthy", "secondsSinceHeartbeat": 15, "replicaCount": 2}),
        json!({"reason": "ClusterWideFailure", "unhealthyMachineCount": 2, "totalMachineCount": 3, "unhealthyPercent": 66.6}),
        json!({"reason": "Scheduled", "containerName": "a", "machineId": "i-1", "zone": "z", "ip": "10.244.0.2", "ordinal": 0}),
        json!({"reason": "FailedScheduling", "attemptedReplicas": 2, "capacityGroup": "g", "requiredZone": "z"}),
        json!({"reason": "ScaledUp", "replicasAdded": 1, "newReplicaCount": 2, "triggerMetric": "initial_deploy", "utilizationPercent": 0}),
        json!({"reason": "ScaledDown", "replicasRemoved": 1, "newReplicaCount": 1}),
        json!({"reason": "CapacityGroupScaleUp", "currentMachines": 1, "desiredMachines": 2, "trigger": "unschedulable_replicas",
            "unschedulableReplicas": 1, "utilizationPercent": 90}),
        json!({"reason": "CapacityGroupScaleDown", "currentMachines": 2, "desiredMachines": 1}),
        json!({"reason": "CapacityGroupAtMaxSize", "maxSize": 3, "unschedulableReplicas": 1}),
        json!({"reason": "CapacityGroupAtMinSize", "minSize": 1}),
        json!({"reason": "ContainerCreated", "capacityGroup": "g", "replicas": 2, "stateful": false}),
        json!({"reason": "ContainerUpdated", "changes": ["image"]}),
        json!({"reason": "ContainerDeleted", "replicasRemoved": 2}),
        json!({"reason": "ContainerStopped"}),
        json!({"reason": "ContainerStarted"}),
    ]
}

fn event(number: usize, object: &str, details: &Value) -> Value {
    let mut event = json!({
        "eventId": format!("e-{number}"), "type": "warning", "message": format!("event {number}"),
        "firstTimestamp": "2026-11-21T10:00:00Z", "lastTimestamp": "2026-11-21T10:00:01Z", "count": 1,
        "involvedObject": {"type": object, "id": "it"}, "source": {"component": "horizond", "machineId": "i-1"}
    });
    for (name, value) in details.as_object().into_iter().flatten() {
        event[name] = value.clone();
    }
    json!({"clusterId": CLUSTER, "event": event})
}

#[tokio::test]
async fn every_kind_is_taken_and_read_back() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let created = stage.create_cluster().await?;
    let node = stage.client(&created.machine_token);
    let kinds = details();
    let reasons: Vec<&str> = kinds.iter().filter_map(|kind| kind["reason"].as_str()).collect();
    assert_eq!(
        reasons, REASONS,
        "every kind has its example, in the order of the enumeration"
    );
    for (number, details) in kinds.iter().enumerate() {
        let body = event(number, "replica", details);
        let reply = node
            .create_event()
            .body(read::<types::CreateEventRequest>(body))
            .send()
            .await?;
        assert!(reply.success);
        assert_eq!(reply.status(), 201);
    }
    let management = stage.client(&created.management_token);
    let events = management
        .list_replica_events()
        .cluster_id(CLUSTER)
        .replica_id("it")
        .send()
        .await?;
    assert_eq!(events.events.len(), kinds.len());
    let text = serde_json::to_value(&events.events[0])?;
    assert_eq!(text["reason"], "ContainerStarted", "the newest is the first");
    let some = management
        .list_events()
        .cluster_id(CLUSTER)
        .type_("warning")
        .involved_object_type("replica")
        .involved_object_id("it")
        .limit(5)
        .send()
        .await?;
    assert_eq!(some.events.len(), 5);
    let one = management
        .list_events()
        .cluster_id(CLUSTER)
        .reason("ScaledUp")
        .send()
        .await?;
    assert_eq!(one.events.len(), 1);
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn each_object_has_its_list_and_repeats_are_merged() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let created = stage.create_cluster().await?;
    let node = stage.client(&created.machine_token);
    for object in ["container", "replica", "machine", "capacityGroup"] {
        for _ in 0..3 {
            let body = event(
                7,
                object,
                &json!({"reason": "ContainerRunError", "containerName": "a", "error": "e"}),
            );
            node.create_event()
                .body(read::<types::CreateEventRequest>(body))
                .send()
                .await?;
        }
    }
    let management = stage.client(&created.management_token);
    let lists = [
        management
            .list_container_events()
            .cluster_id(CLUSTER)
            .name("it")
            .send()
            .await?,
        management
            .list_replica_events()
            .cluster_id(CLUSTER)
            .replica_id("it")
            .send()
            .await?,
        management
            .list_machine_events()
            .cluster_id(CLUSTER)
            .machine_id("it")
            .send()
            .await?,
        management
            .list_capacity_group_events()
            .cluster_id(CLUSTER)
            .group_id("it")
            .send()
            .await?,
    ];
    for list in lists {
        assert_eq!(list.events.len(), 1, "{list:?}");
        assert_eq!(serde_json::to_value(&list.events[0])?["count"], 3);
    }
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn what_the_client_could_not_read_is_never_stored() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let created = stage.create_cluster().await?;
    let bad = [
        (json!({"reason": "Unheard"}), "event.reason"),
        (
            json!({"reason": "ImagePulled", "image": "a"}),
            "event.pullDurationMs",
        ),
        (
            json!({"reason": "CrashLoopRecovered", "previousCrashes": 4_000_000_000_u32}),
            "event",
        ),
        (json!({"reason": "ContainerStopped", "count": 0}), "event.count"),
        (
            json!({"reason": "ContainerStopped", "source": {"component": "scheduler"}}),
            "event.source.component",
        ),
    ];
    for (details, path) in bad {
        let body = event(0, "container", &details);
        let (status, reply, _) = stage
            .request("POST", "/events", &created.machine_token, Some(body))
            .await?;
        assert_eq!(status, 400, "{reply}");
        assert_eq!(reply["faults"][0]["path"], path, "{reply}");
    }
    let events = stage
        .client(&created.management_token)
        .list_container_events()
        .cluster_id(CLUSTER)
        .name("it")
        .send()
        .await?;
    assert_eq!(events.events.len(), 0);
    stage.stop().await;
    Ok(())
}
