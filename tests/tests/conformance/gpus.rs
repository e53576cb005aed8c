//! GPUs, and Berth's optional shares of one: REST in, devices out; and the published client reads every answer.

use std::collections::BTreeMap;

use horizon_client_sdk::types;
use serde_json::{Value, json};

use super::harness::{
    CLUSTER, Stage, cluster_body, container_body, heartbeat_body, read, register_body, until,
};

const BASE: &str = "/clusters/acme%2Fprod%2Fcompute";
const KIND: &str = "nvidia-t4";

/// A stage with one machine of two GPUs, heard once, in a group of at most one; and the machine token.
async fn stage() -> anyhow::Result<(Stage, String)> {
    let stage = Stage::start().await?;
    let mut cluster = cluster_body();
    cluster["capacityGroups"][0]["maxSize"] = json!(1);
    cluster["capacityGroups"][0]["profile"]["gpu"] = json!({"type": KIND, "count": 2});
    let client = stage.client(&stage.platform);
    let request = read::<types::CreateClusterRequest>(cluster);
    let token = client
        .create_cluster()
        .body(request)
        .send()
        .await?
        .into_inner()
        .machine_token;
    let mut body = register_body("i-1");
    body["capacity"]["gpu"] = json!({"type": KIND, "total": 2});
    let (status, reply, _) = stage.request("POST", "/register", &token, Some(body)).await?;
    anyhow::ensure!(status == 200, "{reply}");
    let beat = heartbeat_body("i-1", json!({}));
    let (status, reply, _) = stage.request("POST", "/heartbeat", &token, Some(beat)).await?;
    anyhow::ensure!(status == 200, "{reply}");
    Ok((stage, token))
}

/// Declares a container of small replicas that want this of GPUs.
async fn declare(stage: &Stage, name: &str, replicas: u32, gpu: Value) -> anyhow::Result<(u16, Value)> {
    let mut body = container_body(name);
    body["replicas"] = json!(replicas);
    body["resources"]["gpu"] = gpu;
    let path = format!("{BASE}/containers");
    let (status, reply, _) = stage.request("POST", &path, &stage.platform, Some(body)).await?;
    Ok((status, reply))
}

/// What each replica on the machine holds of which device, as its node is told, once there are so many.
async fn devices(stage: &Stage, token: &str, count: usize) -> anyhow::Result<BTreeMap<String, Value>> {
    until(&format!("{count} replicas"), || async {
        let beat = heartbeat_body("i-1", json!({}));
        let (_, reply, _) = stage.request("POST", "/heartbeat", token, Some(beat)).await?;
        let told = reply["assignments"].as_array().into_iter().flatten();
        let told: BTreeMap<String, Value> = told
            .map(|one| (one["replicaId"].to_string(), one["gpuDevices"].clone()))
            .collect();
        Ok((told.len() == count).then_some(told))
    })
    .await
}

#[tokio::test]
async fn shares_of_a_gpu_lie_on_devices_that_stay_theirs() -> anyhow::Result<()> {
    let (stage, token) = stage().await?;
    let half = json!({"type": KIND, "count": 1, "share": 0.5});
    let (status, reply) = declare(&stage, "half", 3, half.clone()).await?;
    assert_eq!(status, 200, "{reply}");
    let told = devices(&stage, &token, 3).await?;
    let mut held: BTreeMap<u64, u64> = BTreeMap::new();
    for device in told
        .values()
        .flat_map(|devices| devices.as_array().into_iter().flatten())
    {
        *held.entry(device["index"].as_u64().unwrap_or(9)).or_default() +=
            device["milli"].as_u64().unwrap_or(0);
    }
    assert_eq!(held, BTreeMap::from([(0, 1000), (1, 500)]), "{told:?}");

    // A whole one has no device to itself, and a quarter has the rest of one.
    let (status, reply) = declare(&stage, "whole", 1, json!({"type": KIND, "count": 1})).await?;
    assert_eq!(status, 200, "{reply}");
    let explain = format!("{BASE}/explain/container/whole");
    until("the explanation", || async {
        let (_, told, _) = stage.request("GET", &explain, &stage.platform, None).await?;
        let is_told = told
            .to_string()
            .contains("1 lacks free GPUs (largest free 0 of 1)");
        Ok(is_told.then_some(()))
    })
    .await?;
    let quarter = json!({"type": KIND, "count": 1, "share": 0.25});
    let (status, reply) = declare(&stage, "quarter", 1, quarter).await?;
    assert_eq!(status, 200, "{reply}");
    let more = devices(&stage, &token, 4).await?;
    for (replica, devices) in &told {
        assert_eq!(more.get(replica), Some(devices), "devices stay what they are");
    }
    let quarter = more.iter().find(|(replica, _)| !told.contains_key(*replica));
    assert_eq!(
        quarter.map(|(_, devices)| devices),
        Some(&json!([{"index": 1, "milli": 250}]))
    );

    let client = stage.client(&stage.platform);
    let machines = client
        .list_machines()
        .cluster_id(CLUSTER)
        .send()
        .await?
        .into_inner();
    assert_eq!(machines.machines.len(), 1, "the published client reads it");
    let path = format!("{BASE}/machines");
    let (_, machines, _) = stage.request("GET", &path, &stage.platform, None).await?;
    let held = json!([{"index": 0, "milli": 1000}, {"index": 1, "milli": 750}]);
    assert_eq!(machines["machines"][0]["gpuDevices"], held);
    let got = client
        .get_container()
        .cluster_id(CLUSTER)
        .container_name("half")
        .send()
        .await?;
    assert_eq!(
        got.into_inner().replicas_info.len(),
        3,
        "the published client reads it"
    );
    let path = format!("{BASE}/containers/half");
    let (_, got, _) = stage.request("GET", &path, &stage.platform, None).await?;
    assert_eq!(got["config"]["resources"]["gpu"], half);
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_share_that_no_device_could_give_is_refused() -> anyhow::Result<()> {
    let (stage, _) = stage().await?;
    for (gpu, problem) in [
        (
            json!({"type": KIND, "count": 2, "share": 0.5}),
            "a share is of one device, write 1",
        ),
        (json!({"type": KIND, "count": 1, "share": 1}), "0.001 to 0.999"),
        (
            json!({"type": KIND, "count": 1, "share": 0.3333}),
            "at most three decimals",
        ),
    ] {
        let (status, reply) = declare(&stage, "wrong", 1, gpu).await?;
        assert_eq!(
            (status, reply["error"]["code"].as_str()),
            (400, Some("invalid_container")),
            "{reply}"
        );
        assert!(reply.to_string().contains(problem), "{reply}");
    }
    stage.stop().await;
    Ok(())
}
