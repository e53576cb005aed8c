//! Berth's optional members about placement: labels of machines and groups, what containers require, prefer and forbid of them,
//! machines of their own. REST in, placement out; and the published client reads every answer.

use horizon_client_sdk::types;
use serde_json::{Value, json};

use super::harness::{
    CLUSTER, Stage, cluster_body, container_body, heartbeat_body, read, register_body, until,
};

const BASE: &str = "/clusters/acme%2Fprod%2Fcompute";

/// Machines with these labels, each heard once.
async fn machines(stage: &Stage, machines: &[(&str, &[&str])]) -> anyhow::Result<()> {
    let token = stage.create_cluster().await?.machine_token;
    for (id, labels) in machines {
        let mut body = register_body(id);
        body["labels"] = json!(labels);
        let (status, reply, _) = stage.request("POST", "/register", &token, Some(body)).await?;
        anyhow::ensure!(status == 200, "{reply}");
        let beat = heartbeat_body(id, json!({}));
        let (status, reply, _) = stage.request("POST", "/heartbeat", &token, Some(beat)).await?;
        anyhow::ensure!(status == 200, "{reply}");
    }
    Ok(())
}

/// The body of a container with rules, one replica.
fn ruled(name: &str, rules: Value) -> Value {
    let mut body = container_body(name);
    body["replicas"] = json!(1);
    body["placement"] = rules;
    body
}

async fn declare(stage: &Stage, body: Value) -> anyhow::Result<()> {
    let path = format!("{BASE}/containers");
    let (status, reply, _) = stage.request("POST", &path, &stage.platform, Some(body)).await?;
    anyhow::ensure!(status == 200, "{reply}");
    Ok(())
}

/// Where the replicas of a container are, once there are as many as wanted, told by the published client.
async fn places(stage: &Stage, name: &str, count: usize) -> anyhow::Result<Vec<String>> {
    let client = stage.client(&stage.platform);
    until(&format!("the placement of {name}"), || async {
        let got = client
            .get_container()
            .cluster_id(CLUSTER)
            .container_name(name)
            .send()
            .await?
            .into_inner();
        let mut machines: Vec<String> = got
            .replicas_info
            .iter()
            .map(|replica| replica.machine_id.clone())
            .collect();
        machines.sort();
        Ok((machines.len() == count).then_some(machines))
    })
    .await
}

#[tokio::test]
async fn containers_run_where_labels_allow() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    machines(
        &stage,
        &[
            ("i-1", &["disk=ssd", "spot"]),
            ("i-2", &["disk=ssd"]),
            ("i-3", &[]),
        ],
    )
    .await?;
    declare(&stage, ruled("spot", json!({"requires": ["spot"]}))).await?;
    declare(
        &stage,
        ruled("steady", json!({"requires": ["disk=ssd"], "forbids": ["spot"]})),
    )
    .await?;
    declare(&stage, ruled("plain", json!({"forbids": ["disk=ssd"]}))).await?;
    declare(
        &stage,
        ruled(
            "liked",
            json!({"prefers": ["arch=arm64", "spot"], "forbids": ["none"]}),
        ),
    )
    .await?;
    for (name, machine) in [("spot", "i-1"), ("steady", "i-2"), ("plain", "i-3")] {
        assert_eq!(places(&stage, name, 1).await?, [machine], "{name}");
    }
    // The whole of what is preferred is nowhere, nor is its front: then it does not matter.
    assert_eq!(places(&stage, "liked", 1).await?.len(), 1);
    let change = json!({"placement": {"prefers": ["spot"], "forbids": ["disk=hdd"]}, "replicas": 2});
    let path = format!("{BASE}/containers/liked");
    let (status, reply, _) = stage
        .request("PATCH", &path, &stage.platform, Some(change))
        .await?;
    assert_eq!(status, 200, "{reply}");
    let (_, got, _) = stage.request("GET", &path, &stage.platform, None).await?;
    assert_eq!(got["config"]["placement"]["prefers"], json!(["spot"]));
    let listed = stage
        .client(&stage.platform)
        .list_machines()
        .cluster_id(CLUSTER)
        .send()
        .await?
        .into_inner();
    assert_eq!(listed.machines.len(), 3);
    let (_, raw, _) = stage
        .request("GET", &format!("{BASE}/machines"), &stage.platform, None)
        .await?;
    assert_eq!(raw["machines"][0]["labels"], json!(["disk=ssd", "spot"]));
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_missing_label_is_explained_and_the_group_may_bring_it() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    machines(&stage, &[("i-1", &[])]).await?;
    declare(&stage, ruled("fast", json!({"requires": ["disk=ssd"]}))).await?;
    let explain = format!("{BASE}/explain/container/fast");
    let told = until("the explanation", || async {
        let (_, told, _) = stage.request("GET", &explain, &stage.platform, None).await?;
        let text = told.to_string();
        Ok(text
            .contains("no machine of capacity group general has label disk=ssd")
            .then_some(text))
    })
    .await?;
    assert!(
        told.contains("give a machine of group general the labels disk=ssd"),
        "{told}"
    );
    let (_, plan, _) = stage
        .request("GET", &format!("{BASE}/capacity-plan"), &stage.platform, None)
        .await?;
    assert_eq!(
        plan["groups"][0]["desiredMachines"], 1,
        "more machines would not help: {plan}"
    );
    let mut groups = cluster_body()["capacityGroups"].clone();
    groups[0]["labels"] = json!(["disk=ssd"]);
    let (status, reply, _) = stage
        .request(
            "PATCH",
            BASE,
            &stage.platform,
            Some(json!({"capacityGroups": groups})),
        )
        .await?;
    assert_eq!(status, 200, "{reply}");
    assert_eq!(places(&stage, "fast", 1).await?, ["i-1"]);
    let got = stage
        .client(&stage.platform)
        .get_cluster()
        .cluster_id(CLUSTER)
        .send()
        .await?
        .into_inner();
    assert_eq!(got.capacity_groups.len(), 1);
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn an_exclusive_container_has_its_machines_to_itself() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    machines(&stage, &[("i-1", &[]), ("i-2", &[])]).await?;
    declare(&stage, ruled("alone", json!({"exclusive": true}))).await?;
    let alone = places(&stage, "alone", 1).await?;
    declare(&stage, container_body("web")).await?;
    let web = places(&stage, "web", 2).await?;
    assert!(!web.contains(&alone[0]), "{web:?} {alone:?}");
    declare(&stage, ruled("second", json!({"exclusive": true}))).await?;
    until("the explanation", || async {
        let path = format!("{BASE}/explain/container/second");
        let (_, told, _) = stage.request("GET", &path, &stage.platform, None).await?;
        let is_told = told
            .to_string()
            .contains("2 run other replicas, and it wants a machine for itself");
        Ok(is_told.then_some(()))
    })
    .await?;
    // One machine more of the group would do, and the plan says so.
    until("the plan", || async {
        let (_, plan, _) = stage
            .request("GET", &format!("{BASE}/capacity-plan"), &stage.platform, None)
            .await?;
        Ok((plan["groups"][0]["desiredMachines"] == 3).then_some(()))
    })
    .await?;
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn rules_that_are_wrong_are_refused_with_every_fault() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    stage.create_cluster().await?;
    let many: Vec<String> = (0..33).map(|number| format!("l{number}")).collect();
    let table = [
        (json!([]), vec!["placement"]),
        (
            json!({"requires": ["", "-a", 1], "prefers": "a", "forbids": [["a"]], "exclusive": "yes"}),
            vec![
                "placement.requires[0]",
                "placement.requires[1]",
                "placement.requires[2]",
                "placement.prefers",
                "placement.forbids[0]",
                "placement.exclusive",
            ],
        ),
        (
            json!({"requires": ["a", "b"], "prefers": ["c"], "forbids": ["a", "c"]}),
            vec!["placement.requires", "placement.prefers"],
        ),
        (json!({"prefers": ["a", "a"]}), vec!["placement.prefers"]),
        (json!({"forbids": many}), vec!["placement.forbids"]),
    ];
    for (rules, faults) in table {
        let told = rules.to_string();
        let path = format!("{BASE}/containers");
        let body = ruled("bad", rules);
        let (status, reply, _) = stage.request("POST", &path, &stage.platform, Some(body)).await?;
        let paths: Vec<&str> = reply["faults"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|fault| fault["path"].as_str())
            .collect();
        assert_eq!((status, paths), (400, faults), "{told}: {reply}");
    }
    // One bit of placement for each label: the 65th of a cluster is refused.
    for container in 0..3 {
        let labels: Vec<String> = (0..32).map(|number| format!("c{container}-{number}")).collect();
        let path = format!("{BASE}/containers");
        let body = ruled(&format!("many-{container}"), json!({"prefers": labels}));
        let (status, reply, _) = stage.request("POST", &path, &stage.platform, Some(body)).await?;
        let code = reply["error"]["code"].as_str();
        let wanted = if container < 2 {
            (200, None)
        } else {
            (400, Some("too_many_labels"))
        };
        assert_eq!((status, code), wanted, "{reply}");
    }
    let created: types::CreateContainerRequest = read(container_body("other"));
    stage
        .client(&stage.platform)
        .create_container()
        .cluster_id(CLUSTER)
        .body(created)
        .send()
        .await?;
    stage.stop().await;
    Ok(())
}
