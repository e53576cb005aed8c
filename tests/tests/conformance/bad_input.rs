//! Bad input: each case gets one clear error that lists all its faults, and the log of the cluster does not grow.

use serde_json::{Value, json};

use super::harness::{Stage, cluster_body, container_body};

const CONTAINERS: &str = "/clusters/acme%2Fprod%2Fcompute/containers";

/// What is sent, and the status, code and faulty paths that answer it.
struct Case {
    path: &'static str,
    body: Value,
    status: u16,
    code: &'static str,
    faults: &'static [&'static str],
}

fn changed(mut body: Value, changes: &[(&str, Value)]) -> Value {
    for (pointer, value) in changes {
        match body.pointer_mut(pointer) {
            Some(place) => *place = value.clone(),
            None => body[pointer.trim_start_matches('/')] = value.clone(),
        }
    }
    body
}

fn container(changes: &[(&str, Value)], faults: &'static [&'static str]) -> Case {
    Case {
        path: CONTAINERS,
        body: changed(container_body("reader"), changes),
        status: 400,
        code: "invalid_container",
        faults,
    }
}

fn cluster(id: &str, changes: &[(&str, Value)], faults: &'static [&'static str]) -> Case {
    let body = changed(cluster_body(), &[("/clusterId", json!(id))]);
    Case {
        path: "/clusters",
        body: changed(body, changes),
        status: 400,
        code: "invalid_cluster",
        faults,
    }
}

fn cases() -> Vec<Case> {
    let volume = json!([{"ordinal": 0, "volume": {"type": "hostpath", "path": "/v"}}]);
    let scaling = json!({"min": 1, "desired": 1, "max": 2});
    vec![
        container(&[("/ports", json!([0]))], &["ports[0]"]),
        container(&[("/ports", json!([]))], &["ports"]),
        container(&[("/ports", json!([80, 80]))], &["ports"]),
        container(&[("/volumes", volume.clone())], &["volumes"]),
        container(&[("/autoscaling", scaling.clone())], &["autoscaling"]),
        container(
            &[
                ("/autoscaling", scaling),
                ("/replicas", Value::Null),
                ("/stateful", json!(true)),
            ],
            &["autoscaling"],
        ),
        container(&[("/stateful", json!(true)), ("/volumes", volume)], &["volumes"]),
        container(&[("/resources/cpu/min", json!("500m"))], &["resources.cpu.min"]),
        container(&[("/capacityGroup", json!("other"))], &["capacityGroup"]),
        container(
            &[(
                "/serviceAccount",
                json!({"type": "gcp", "email": "a@b.iam.gserviceaccount.com"}),
            )],
            &["serviceAccount.type"],
        ),
        container(&[("/links", json!(["reader"]))], &["links"]),
        container(
            &[
                ("/image", json!(" ")),
                ("/replicas", json!(0)),
                ("/env", json!({"A": 1})),
            ],
            &["image", "replicas", "env.A"],
        ),
        cluster(
            "new",
            &[("/containerCidr", json!("10.244.0.0/23"))],
            &["containerCidr"],
        ),
        cluster(
            "new",
            &[("/platform", json!("vmware")), ("/name", json!(""))],
            &["name", "platform"],
        ),
        Case {
            status: 409,
            code: "cluster_exists",
            ..cluster("acme/prod/compute", &[("/name", json!("Another"))], &[])
        },
        Case {
            path: CONTAINERS,
            body: changed(container_body("there"), &[("/image", json!("other:2"))]),
            status: 409,
            code: "container_exists",
            faults: &[],
        },
    ]
}

#[tokio::test]
async fn bad_input_is_answered_whole_and_changes_nothing() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    stage.create_cluster().await?;
    let token = stage.platform.clone();
    let there = container_body("there");
    stage.request("POST", CONTAINERS, &token, Some(there)).await?;
    let (before, clusters) = (settled(&stage).await, stage.running.scheduler().clusters().len());
    for case in cases() {
        let told = case.body.to_string();
        let (status, reply, _) = stage.request("POST", case.path, &token, Some(case.body)).await?;
        let code = reply["error"]["code"].as_str();
        assert_eq!((status, code), (case.status, Some(case.code)), "{told}: {reply}");
        let faults = reply["faults"].as_array().cloned().unwrap_or_default();
        let paths: Vec<&str> = faults.iter().filter_map(|fault| fault["path"].as_str()).collect();
        assert_eq!(paths, case.faults, "{told}: {reply}");
        // The generated client decodes no error body: the message alone has to tell every fault.
        let message = reply["error"]["message"].as_str().unwrap_or_default();
        for fault in &faults {
            assert!(
                message.contains(fault["problem"].as_str().unwrap_or("?")),
                "{message}"
            );
        }
    }
    assert_eq!(stage.log_len(), before);
    assert_eq!(stage.running.scheduler().clusters().len(), clusters);
    stage.stop().await;
    Ok(())
}

/// The length of the log once the declared container has had its decision.
async fn settled(stage: &Stage) -> u64 {
    let mut len = stage.log_len();
    loop {
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        let now = stage.log_len();
        if now == len {
            return len;
        }
        len = now;
    }
}
