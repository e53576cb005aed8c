//! Rollouts as the API tells them, and what callers may do about them. The published client reads every answer.

use horizon_client_sdk::types;
use serde_json::{Value, json};

use super::harness::{CLUSTER, Stage, container_body, heartbeat_body, read, register_body, until};

const ONE: &str = "/clusters/acme%2Fprod%2Fcompute/containers/reader";

struct Set {
    stage: Stage,
    management: String,
    machine: String,
}

impl Set {
    async fn up() -> anyhow::Result<Self> {
        let stage = Stage::start_with(|config| config.limits.rollout.min_ready_ms = 0).await?;
        let created = stage.create_cluster().await?;
        let set = Self {
            stage,
            management: created.management_token,
            machine: created.machine_token,
        };
        let node = set.stage.client(&set.machine);
        node.handle_register()
            .body(read::<types::RegisterRequest>(register_body("i-1")))
            .send()
            .await?;
        Ok(set)
    }

    /// What the node has is reported: ready, but failed where `fails` says so of the image.
    async fn beat(&self, fails: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let node = self.stage.client(&self.machine);
        let body = |replicas| read::<types::HeartbeatRequest>(heartbeat_body("i-1", replicas));
        let reply = node.handle_heartbeat().body(body(json!({}))).send().await?;
        let said: serde_json::Map<String, Value> = reply
            .assignments
            .iter()
            .map(|assignment| {
                let bad = fails(&assignment.image);
                let status = if bad { "failed" } else { "running" };
                let said = json!({"status": status, "cpuUsage": 0.1, "cpuUsagePercent": 1.0, "memoryUsedBytes": 1,
                    "memoryUsagePercent": 1.0, "healthy": !bad, "lastUpdated": "2026-11-21T10:00:00Z"});
                (assignment.replica_id.clone(), said)
            })
            .collect();
        node.handle_heartbeat().body(body(said.into())).send().await?;
        Ok(())
    }

    async fn post(&self, verb: &str) -> anyhow::Result<(u16, Value)> {
        let path = format!("{ONE}/rollout/{verb}");
        let (status, reply, _) = self.stage.request("POST", &path, &self.management, None).await?;
        Ok((status, reply))
    }

    async fn patch(&self, change: Value) -> anyhow::Result<u16> {
        let (status, ..) = self
            .stage
            .request("PATCH", ONE, &self.management, Some(change))
            .await?;
        Ok(status)
    }

    /// The plain answer; the published client must be able to read it as well.
    async fn get(&self) -> anyhow::Result<Value> {
        let client = self.stage.client(&self.management);
        client
            .get_container()
            .cluster_id(CLUSTER)
            .container_name("reader")
            .send()
            .await?;
        client.list_containers().cluster_id(CLUSTER).send().await?;
        client.list_events().cluster_id(CLUSTER).send().await?;
        let (status, reply, _) = self.stage.request("GET", ONE, &self.management, None).await?;
        anyhow::ensure!(status == 200, "{reply}");
        Ok(reply)
    }

    async fn until_phase(&self, id: u64, phase: &str) -> anyhow::Result<Value> {
        until(&format!("rollout {id} to be {phase}"), || async {
            self.beat(|_| false).await?;
            let reply = self.get().await?;
            let rollout = reply["rollout"].clone();
            Ok((rollout["id"] == id && rollout["phase"] == phase).then_some(reply))
        })
        .await
    }
}

#[tokio::test]
async fn a_rollout_is_told_paused_resumed_and_undone() -> anyhow::Result<()> {
    let set = Set::up().await?;
    let client = set.stage.client(&set.management);
    client
        .create_container()
        .cluster_id(CLUSTER)
        .body(read::<types::CreateContainerRequest>(container_body("reader")))
        .send()
        .await?;
    assert_eq!(set.post("undo").await?.1["error"]["code"], "nothing_to_undo");
    let first = set.until_phase(1, "completed").await?;
    assert_eq!(first["rollout"]["cause"], "created");
    assert_eq!(set.post("pause").await?.1["error"]["code"], "no_rollout");
    assert_eq!(
        set.post("resume").await?.0,
        200,
        "nothing is paused, and that is what was asked for"
    );

    assert_eq!(set.patch(json!({"image": "app:2"})).await?, 200);
    for _ in 0..2 {
        assert_eq!(set.post("pause").await?, (200, json!({"success": true})));
    }
    let paused = set.until_phase(2, "paused").await?;
    assert_eq!(paused["rollout"]["changes"], json!(["image"]));
    assert_eq!(paused["rollout"]["previous"]["phase"], "completed");
    assert_eq!(set.post("resume").await?.0, 200);
    let done = set.until_phase(2, "completed").await?;
    assert_eq!(done["rollout"]["updated"], done["rollout"]["total"]);
    assert_eq!(done["image"], "app:2");

    assert_eq!(set.post("undo").await?.0, 200);
    let undone = set.until_phase(3, "completed").await?;
    assert_eq!(
        (&undone["rollout"]["cause"], &undone["rollout"]["previous"]["id"]),
        (&json!("undone"), &json!(2))
    );
    assert_eq!(
        undone["image"],
        container_body("reader")["image"],
        "the declaration is the former one"
    );
    set.stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn after_a_rollback_the_declaration_stays_and_the_container_fails() -> anyhow::Result<()> {
    let set = Set::up().await?;
    let client = set.stage.client(&set.management);
    let mut body = container_body("reader");
    body["rollback"] = json!({"afterFailedStarts": 1});
    let (status, ..) = set
        .stage
        .request(
            "POST",
            "/clusters/acme%2Fprod%2Fcompute/containers",
            &set.management,
            Some(body),
        )
        .await?;
    assert_eq!(status, 200);
    let known = set.until_phase(1, "completed").await?;
    assert_eq!(known["rollback"], json!({"afterFailedStarts": 1}));
    let good = known["image"].clone();
    assert_eq!(set.patch(json!({"image": "app:bad"})).await?, 200);
    let rolled_back = until("the rollback", || async {
        set.beat(|image| image == "app:bad").await?;
        let reply = set.get().await?;
        let rollout = &reply["rollout"];
        Ok((rollout["id"] == 3 && rollout["phase"] == "completed").then_some(reply))
    })
    .await?;
    assert_eq!(rolled_back["image"], "app:bad");
    assert_eq!(rolled_back["rollout"]["image"], good);
    assert_eq!(rolled_back["rollout"]["cause"], "rolledBack");
    assert_eq!(rolled_back["rollout"]["previous"]["phase"], "rolledBack");
    assert_eq!(
        (&rolled_back["status"], &rolled_back["statusReason"]),
        (&json!("failing"), &json!("ReplicaFailed"))
    );
    assert!(
        rolled_back["statusMessage"]
            .as_str()
            .unwrap()
            .contains("rolled back")
    );
    let events = client
        .list_events()
        .cluster_id(CLUSTER)
        .send()
        .await?
        .into_inner();
    let text = serde_json::to_string(&events)?;
    assert!(
        text.contains("rolloutRolledBack") && text.contains("rolloutStarted"),
        "{text}"
    );

    // A control plane that repeats itself changes nothing.
    assert_eq!(set.patch(json!({"image": "app:bad"})).await?, 200);
    assert_eq!(set.get().await?["rollout"]["id"], 3);
    assert_eq!(set.post("undo").await?.0, 200);
    set.until_phase(4, "completed").await?;
    until("what runs to be what is declared", || async {
        set.beat(|_| false).await?;
        let kept = set.get().await?;
        Ok((kept["image"] == good && kept["status"] == "running").then_some(()))
    })
    .await?;
    set.stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn nothing_is_held_and_the_release_of_it_changes_nothing() -> anyhow::Result<()> {
    let set = Set::up().await?;
    let cluster = "/clusters/acme%2Fprod%2Fcompute";
    let (status, before, headers) = set.stage.request("GET", cluster, &set.management, None).await?;
    assert_eq!(status, 200);
    assert_eq!((before.get("heldStops"), before.get("freeze")), (None, None));
    let path = format!("{cluster}/held-stops/release");
    let (status, reply, _) = set.stage.request("POST", &path, &set.management, None).await?;
    assert_eq!((status, reply), (200, json!({"success": true})));
    let (status, ..) = set.stage.request("POST", &path, &set.machine, None).await?;
    assert_eq!(status, 403, "a machine may not");
    let elsewhere = "/clusters/acme%2Fother/held-stops/release";
    let (status, ..) = set
        .stage
        .request("POST", elsewhere, &set.stage.platform, None)
        .await?;
    assert_eq!(status, 404);
    let (_, _, after) = set.stage.request("GET", cluster, &set.management, None).await?;
    assert_eq!(
        headers["berth-revision"], after["berth-revision"],
        "nothing was written"
    );
    set.stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_is_refused() -> anyhow::Result<()> {
    let set = Set::up().await?;
    for verb in ["pause", "resume", "undo"] {
        let (status, reply) = set.post(verb).await?;
        assert_eq!(
            (status, &reply["error"]["code"]),
            (404, &json!("container_not_found")),
            "{verb}"
        );
    }
    for bad in [
        json!({"afterFailedStarts": -1}),
        json!({"afterFailedStarts": 1001}),
        json!({}),
        json!(3),
    ] {
        let mut body = container_body("reader");
        body["rollback"] = bad.clone();
        let path = "/clusters/acme%2Fprod%2Fcompute/containers";
        let (status, ..) = set
            .stage
            .request("POST", path, &set.management, Some(body))
            .await?;
        assert_eq!(status, 400, "{bad}");
    }
    set.stage.stop().await;
    Ok(())
}
