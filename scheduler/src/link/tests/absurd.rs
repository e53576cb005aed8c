//! Whatever a machine says of its replicas, the cluster lives, and hears what it says next.

use super::*;

/// Statuses of one replica at the ends of what their members hold.
fn statuses(replica: &str) -> Vec<serde_json::Value> {
    let far = "9999-12-31T23:59:59.999Z";
    let base = |more: serde_json::Value| {
        let mut status = serde_json::json!({"replicaId": replica, "phase": "healthy", "ready": true, "revision": "", "run": 1});
        for (name, value) in more.as_object().unwrap() {
            status[name.as_str()] = value.clone();
        }
        status
    };
    let most = u64::MAX;
    vec![
        base(
            serde_json::json!({"run": u32::MAX, "recentCrashes": u32::MAX, "consecutiveFailures": u32::MAX, "pid": u32::MAX}),
        ),
        base(serde_json::json!({"startedAt": far, "failedAt": far})),
        base(
            serde_json::json!({"phase": "failed", "ready": false, "failedAt": far,
            "cause": {"kind": "exit", "code": i32::MIN}, "wait": {"reason": "x".repeat(100_000), "since": far, "nextAttempt": far}}),
        ),
        base(
            serde_json::json!({"usage": {"cpu": "18446744073709.551615", "memory": most,
            "http": {"inFlightMilli": most, "latencyP95Us": most}}}),
        ),
        base(serde_json::json!({"usage": {"cpu": 18_446_744_073_709_551_615_u64, "memory": most}})),
        base(serde_json::json!({"revision": "y".repeat(100_000)})),
        base(serde_json::json!({"phase": "unheard of"})),
        base(serde_json::json!({"replicaId": "of-nobody"})),
        base(serde_json::json!({"replicaId": ""})),
        serde_json::json!({}),
        serde_json::json!(7),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_machine_says_the_cluster_lives() {
    let world = world().await;
    let mut node = world.node("m-1").await;
    node.ready().await;
    let value = serde_json::json!({
        "name": "reader", "capacityGroup": "general", "image": "app:1", "stateful": false, "ports": [8080],
        "resources": {"cpu": {"min": "0.5", "desired": "0.5"}, "memory": {"min": "64Mi", "desired": "64Mi"}},
        "autoscaling": {"min": 2, "desired": 2, "max": 3, "targetCpuPercent": 65}
    });
    let spec = berth_api::rest::container::read_container(&value, &cluster_spec())
        .unwrap_or_else(|faults| panic!("{faults}"));
    world.cluster.create_container(spec).await.unwrap();
    let set = node.assigned(2).await;
    node.ack().await;
    let replica = set.replicas[0].replica_id.to_string();
    let mut said: Vec<Vec<u8>> = vec![
        b"[".repeat(100_000),
        b"null".to_vec(),
        b"{}".to_vec(),
        b"\xff".to_vec(),
    ];
    for status in statuses(&replica) {
        // Alone, and twice in one message.
        said.push(serde_json::to_vec(&[&status]).unwrap());
        said.push(serde_json::to_vec(&[&status, &status]).unwrap());
    }
    for (number, replicas) in said.into_iter().enumerate() {
        for machine in [&b"{\"subsystems\":[]}"[..], b"[[[", b"{\"subsystems\":7}"] {
            let status = Status {
                replicas: replicas.clone().into(),
                machine: machine.to_vec().into(),
                unlisted_replica_ids: vec![String::new(), "\u{0}".into(), "z".repeat(10_000)],
                accepted: None,
            };
            node.say(node_message::Kind::Status(status)).await;
        }
        // The next honest one is heard: by the same session, and by the cluster's only writer.
        let stray = format!("stray-{number}");
        node.status(Phase::Healthy, &[&stray]).await;
        loop {
            if node.confirmed().await.contains(&stray) {
                break;
            }
        }
        if let Some((set, _)) = &node.assigned {
            assert!(set.replicas.len() >= 2, "nothing is stopped for it");
        }
    }
    world.running.shutdown().await;
}
