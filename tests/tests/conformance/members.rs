//! Every write with members that it does not know, that are too large, absurd or at odds with each other, and with an idempotency
//! key of another write.

use serde_json::{Value, json};

use super::harness::{CLUSTER, Stage, cluster_body, container_body, heartbeat_body, register_body};
use super::writes::{self, BASE, members};

/// Taken: done, or at odds with what is there, which says that the body itself is good.
fn is_taken(status: u16) -> bool {
    matches!(status, 200 | 201 | 409)
}

#[tokio::test]
async fn members_that_nobody_knows_are_ignored_by_every_write() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let unknown = json!({"nested": [1, "x", null], "clusterId": 5});
    let mut checked = 0;
    for op in writes::all(&stage).await? {
        let body = op.bodies.first().cloned().unwrap_or_default();
        let objects = members(&body)
            .into_iter()
            .filter(|pointer| body.pointer(pointer).is_some_and(Value::is_object));
        // Members of these have names of the caller's choice.
        let objects = objects.filter(|pointer| !pointer.ends_with("/env") && !pointer.ends_with("/replicas"));
        for pointer in std::iter::once(String::new()).chain(objects) {
            let mut more = body.clone();
            if let Some(object) = more.pointer_mut(&pointer).and_then(Value::as_object_mut) {
                object.insert("unheardOf".into(), unknown.clone());
            }
            let (status, reply, _) = stage.request(op.method, &op.path, &op.token, Some(more)).await?;
            assert!(is_taken(status), "{} {pointer}: {status} {reply}", op.path);
            checked += 1;
        }
    }
    assert!(checked > 25, "{checked}");
    stage.stop().await;
    Ok(())
}

#[tokio::test]
async fn every_write_refuses_a_body_that_is_too_large_and_members_that_are_absurd() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let huge = "x".repeat(1 << 20);
    for op in writes::all(&stage).await? {
        let body = op.bodies.first().cloned().unwrap_or_default();
        let mut larger = body.clone();
        larger["unheardOf"] = json!(huge);
        let (status, reply, _) = stage
            .request(op.method, &op.path, &op.token, Some(larger))
            .await?;
        let code = reply["error"]["code"].as_str();
        assert_eq!((status, code), (413, Some("body_too_large")), "{}", op.path);
        for pointer in members(&body) {
            let absurd: &[Value] = match body.pointer(&pointer) {
                Some(Value::String(_)) => &[json!("x".repeat(70_000)), json!("\u{0}"), json!("\u{1f4a9}\n")],
                Some(Value::Number(_)) => &[json!(-1), json!(1e300), json!(u64::MAX), json!(0.000_000_1)],
                Some(Value::Array(_)) => &[json!(vec![Value::Null; 20_000]), json!([[]])],
                _ => &[],
            };
            for value in absurd {
                let mut changed = body.clone();
                if let Some(place) = changed.pointer_mut(&pointer) {
                    *place = value.clone();
                }
                let (status, reply, _) = stage
                    .request(op.method, &op.path, &op.token, Some(changed))
                    .await?;
                let told = value.to_string().chars().take(20).collect::<String>();
                assert!(
                    is_taken(status) || matches!(status, 400 | 403 | 404),
                    "{} {pointer} {told}: {status} {reply}",
                    op.path
                );
                if status == 400 {
                    assert!(
                        reply["faults"][0]["problem"].is_string(),
                        "{} {pointer}: {reply}",
                        op.path
                    );
                    let message = reply["error"]["message"].as_str().unwrap_or_default();
                    assert!(
                        message.len() < 200_000,
                        "{} {pointer}: {} bytes",
                        op.path,
                        message.len()
                    );
                }
            }
        }
    }
    let (status, ..) = stage.request("GET", "/readyz", "", None).await?;
    assert_eq!(status, 200);
    stage.stop().await;
    Ok(())
}

/// A write that says two things at once, or contradicts what is there: method, path, whose token, body, status, path of the fault.
type Contradiction = (&'static str, String, &'static str, Value, u16, &'static str);

fn with(mut body: Value, changes: &[(&str, Value)]) -> Value {
    for (pointer, value) in changes {
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer has a slash");
        let parent = body.pointer_mut(parent).expect("the parent is there");
        parent[name] = value.clone();
    }
    body
}

#[expect(clippy::too_many_lines, reason = "one entry for each contradiction")]
fn contradictions() -> Vec<Contradiction> {
    let cluster = |changes: &[(&str, Value)]| {
        with(
            cluster_body(),
            &[&[("/clusterId", json!("acme/new"))], changes].concat(),
        )
    };
    let group = || cluster_body()["capacityGroups"][0].clone();
    let container = |changes: &[(&str, Value)]| with(container_body("reader"), changes);
    let register = |changes: &[(&str, Value)]| with(register_body("i-9"), changes);
    let event = json!({"clusterId": CLUSTER, "event": {
        "eventId": "e", "type": "info", "message": "m", "firstTimestamp": "2026-11-21T10:00:01Z",
        "lastTimestamp": "2026-11-21T10:00:00Z", "count": 1, "involvedObject": {"type": "machine", "id": "i-1"},
        "source": {"component": "horizond", "machineId": "i-1"}, "reason": "BridgeInterfaceReady", "bridgeName": "b",
        "gatewayIp": "10.244.0.1"}});
    let of = |path: &str| format!("{BASE}{path}");
    let post = "POST";
    vec![
        (
            post,
            "/clusters".into(),
            "platform",
            cluster(&[("/capacityGroups/0/minSize", json!(4))]),
            400,
            "capacityGroups[0].minSize",
        ),
        (
            post,
            "/clusters".into(),
            "platform",
            cluster(&[("/capacityGroups", json!([group(), group()]))]),
            400,
            "capacityGroups[1].groupId",
        ),
        (
            "PATCH",
            of(""),
            "platform",
            json!({"capacityGroups": [group(), group()]}),
            400,
            "capacityGroups[1].groupId",
        ),
        (
            "PATCH",
            of(""),
            "platform",
            json!({"capacityGroups": []}),
            409,
            "capacityGroups",
        ),
        (
            post,
            "/register".into(),
            "machine",
            register(&[("/capacity/memory/systemReserve", json!(1_u64 << 40))]),
            400,
            "capacity.memory.systemReserve",
        ),
        (
            post,
            "/register".into(),
            "machine",
            register(&[("/capacityGroup", json!("other"))]),
            400,
            "capacityGroup",
        ),
        (
            post,
            "/heartbeat".into(),
            "machine",
            heartbeat_body("nobody", json!({})),
            404,
            "",
        ),
        (
            post,
            "/batch/heartbeat".into(),
            "platform",
            json!({"heartbeats": [heartbeat_body("i-1", json!({})), heartbeat_body("nobody", json!({}))]}),
            400,
            "heartbeats[1]",
        ),
        (
            post,
            "/events".into(),
            "machine",
            event,
            400,
            "event.lastTimestamp",
        ),
        (
            post,
            of("/containers"),
            "platform",
            container(&[("/autoscaling", json!({"min": 1, "desired": 1, "max": 2}))]),
            400,
            "autoscaling",
        ),
        (
            post,
            of("/containers"),
            "platform",
            container(&[("/resources/cpu", json!({"min": "2", "desired": "1"}))]),
            400,
            "resources.cpu.min",
        ),
        (
            post,
            of("/containers"),
            "platform",
            with(container_body("there"), &[("/image", json!("x:2"))]),
            409,
            "",
        ),
        (
            "PATCH",
            of("/containers/there"),
            "platform",
            json!({"replicas": 2, "autoscaling": {"min": 1, "desired": 1, "max": 2}}),
            400,
            "autoscaling",
        ),
        (
            "PATCH",
            of("/containers/there"),
            "platform",
            json!({"stateful": true}),
            400,
            "stateful",
        ),
        (
            "PATCH",
            of("/containers/there"),
            "platform",
            json!({"healthCheck": {"path": "/", "port": 0}}),
            400,
            "healthCheck.port",
        ),
        (
            post,
            of("/tokens/rotate"),
            "platform",
            json!({"tokenType": "platform"}),
            400,
            "tokenType",
        ),
        (
            post,
            of("/tokens/revoke"),
            "platform",
            json!({"tokenType": ["machine", "management"]}),
            400,
            "tokenType",
        ),
    ]
}

#[tokio::test]
async fn what_contradicts_itself_or_what_is_there_is_refused_by_name() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    writes::all(&stage).await?;
    let machine = stage.create_cluster().await?.machine_token;
    let machines = || {
        let cluster = stage
            .running
            .scheduler()
            .cluster(&CLUSTER.parse().expect("a valid id"));
        cluster.map_or(0, |cluster| cluster.world().machines().len())
    };
    let (clusters, before) = (stage.running.scheduler().clusters().len(), machines());
    for (method, path, whose, body, status, fault) in contradictions() {
        let token = if whose == "machine" {
            &machine
        } else {
            &stage.platform
        };
        let told = body.to_string();
        let (found, reply, _) = stage.request(method, &path, token, Some(body)).await?;
        assert_eq!(found, status, "{path} {told}: {reply}");
        assert!(reply["error"]["code"].is_string(), "{reply}");
        if !fault.is_empty() {
            let faults = reply["faults"].as_array().cloned().unwrap_or_default();
            assert!(
                faults
                    .iter()
                    .any(|known| known["path"].as_str().is_some_and(|path| path.starts_with(fault))),
                "{path} {told} does not name {fault}: {reply}"
            );
        }
    }
    assert_eq!(stage.running.scheduler().clusters().len(), clusters);
    assert_eq!(machines(), before);
    stage.stop().await;
    Ok(())
}

/// Heartbeats take no key: each is newer than the one before.
#[tokio::test]
async fn a_key_of_another_write_is_refused_by_every_write() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let mut checked = 0;
    for (number, op) in writes::all(&stage).await?.into_iter().enumerate() {
        if op.path.ends_with("heartbeat") {
            continue;
        }
        let key = format!("key-{number}");
        let headers = [("idempotency-key", key.as_str())];
        let body = op.bodies.first().cloned().unwrap_or_default();
        let send =
            |body: &Value| stage.send_with(op.method, &op.path, &op.token, Some(body.to_string()), &headers);
        let (status, reply, _) = send(&body).await?;
        assert!(matches!(status, 200 | 201), "{}: {status} {reply}", op.path);
        let (again, replayed, headers_of) = send(&body).await?;
        assert_eq!((again, &replayed), (status, &reply), "{}", op.path);
        assert_eq!(
            headers_of
                .get("idempotency-replayed")
                .map(|value| value.as_bytes()),
            Some(b"true".as_slice())
        );
        let mut other = body.clone();
        other["unheardOf"] = json!(1);
        let (status, reply, _) = send(&other).await?;
        let code = reply["error"]["code"].as_str();
        assert_eq!(
            (status, code),
            (409, Some("idempotency_key_reused")),
            "{}: {reply}",
            op.path
        );
        checked += 1;
    }
    // And by those without a body.
    for (number, path) in [
        "/containers/there/stop",
        "/containers/there/start",
        "/machines/i-1/drain",
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("bare-{number}");
        let headers = [("idempotency-key", key.as_str())];
        let send = |path: String| {
            let (stage, headers) = (&stage, &headers);
            async move {
                stage
                    .send_with("POST", &path, &stage.platform, None, headers)
                    .await
            }
        };
        let (status, reply, _) = send(format!("{BASE}{path}")).await?;
        assert_eq!(status, 200, "{path}: {reply}");
        let other = if path.ends_with("stop") {
            "/containers/there/start"
        } else {
            "/containers/there/stop"
        };
        let (status, reply, _) = send(format!("{BASE}{other}")).await?;
        assert_eq!(
            (status, reply["error"]["code"].as_str()),
            (409, Some("idempotency_key_reused")),
            "{path}"
        );
        checked += 1;
    }
    assert_eq!(checked, 11);
    stage.stop().await;
    Ok(())
}
