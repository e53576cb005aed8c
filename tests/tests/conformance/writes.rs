//! Every operation with a body: where it is, whom it takes, and bodies with every member that the published client knows.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::harness::{CLUSTER, Stage, cluster_body, container_body, heartbeat_body, register_body};
use horizon_client_sdk::types;

pub(crate) const BASE: &str = "/clusters/acme%2Fprod%2Fcompute";

/// Whether the published client could have sent, or can read, this.
pub(crate) type Reads = fn(&Value) -> bool;

pub(crate) fn reads<T: DeserializeOwned>(value: &Value) -> bool {
    serde_json::from_value::<T>(value.clone()).is_ok()
}

pub(crate) struct WriteOp {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) token: String,
    pub(crate) reads: Reads,
    /// The first is valid here and now.
    pub(crate) bodies: Vec<Value>,
}

/// All ten. The tokens are rotated last, those of machines not at all.
#[expect(clippy::too_many_lines, reason = "one entry for each operation")]
pub(crate) async fn all(stage: &Stage) -> anyhow::Result<Vec<WriteOp>> {
    let created = stage.create_cluster().await?;
    let (platform, machine) = (stage.platform.clone(), created.machine_token);
    let (status, reply, _) = stage
        .request("POST", "/register", &machine, Some(register_body("i-1")))
        .await?;
    anyhow::ensure!(status == 200, "{reply}");
    let there = container_body("there");
    let (status, reply, _) = stage
        .request("POST", &format!("{BASE}/containers"), &platform, Some(there))
        .await?;
    anyhow::ensure!(status == 200, "{reply}");
    let op = |method, path: &str, token: &String, reads, bodies| WriteOp {
        method,
        path: path.to_owned(),
        token: token.clone(),
        reads,
        bodies,
    };
    Ok(vec![
        op(
            "POST",
            "/register",
            &machine,
            reads::<types::RegisterRequest>,
            registers(),
        ),
        op(
            "POST",
            "/heartbeat",
            &machine,
            reads::<types::HeartbeatRequest>,
            vec![beat()],
        ),
        op(
            "POST",
            "/batch/heartbeat",
            &platform,
            reads::<types::BatchHeartbeatRequest>,
            vec![json!({"heartbeats": [beat()]})],
        ),
        op(
            "POST",
            "/events",
            &machine,
            reads::<types::CreateEventRequest>,
            events(),
        ),
        op(
            "POST",
            "/clusters",
            &platform,
            reads::<types::CreateClusterRequest>,
            vec![full_cluster()],
        ),
        op(
            "PATCH",
            BASE,
            &platform,
            reads::<types::UpdateClusterRequest>,
            vec![json!({"capacityGroups": groups()})],
        ),
        op(
            "POST",
            &format!("{BASE}/containers"),
            &platform,
            reads::<types::CreateContainerRequest>,
            containers(),
        ),
        op(
            "PATCH",
            &format!("{BASE}/containers/there"),
            &platform,
            reads::<types::UpdateContainerRequest>,
            updates(),
        ),
        op(
            "POST",
            &format!("{BASE}/tokens/rotate"),
            &platform,
            reads::<types::RotateTokenRequest>,
            vec![json!({"tokenType": "management"})],
        ),
        op(
            "POST",
            &format!("{BASE}/tokens/revoke"),
            &platform,
            reads::<types::RevokeTokenRequest>,
            vec![json!({"tokenType": "management"})],
        ),
    ])
}

fn registers() -> Vec<Value> {
    let mut with_gpu = register_body("i-2");
    with_gpu["capacity"]["gpu"] = json!({"total": 2, "type": "nvidia-t4"});
    vec![register_body("i-1"), with_gpu]
}

fn beat() -> Value {
    let metrics = json!({
        "status": "running", "cpuUsage": 0.5, "cpuUsagePercent": 50.0, "memoryUsedBytes": 1, "memoryUsagePercent": 1.0,
        "healthy": true, "lastUpdated": "2026-11-21T10:00:00Z", "http": {"inFlightRequests": 1, "totalRequests": 2,
            "latencyP95Ms": 3.0, "latencyP99Ms": 4.0, "status2xx": 5, "status4xx": 6, "status5xx": 7, "topEndpoints": [
            {"path": "/", "method": "GET", "statusClass": "2xx", "requests": 1, "latencyP95Ms": 1.0, "latencyP99Ms": 2.0,
                "errorRate": 0.5}]}});
    heartbeat_body("i-1", json!({"there-i-1-abcde": metrics}))
}

fn events() -> Vec<Value> {
    let event = |members: Value| {
        let mut event = json!({
            "eventId": "e", "type": "info", "message": "told", "firstTimestamp": "2026-11-21T10:00:00Z",
            "lastTimestamp": "2026-11-21T10:00:01Z", "count": 1, "involvedObject": {"type": "machine", "id": "i-1"},
            "source": {"component": "horizond", "machineId": "i-1"}});
        for (name, member) in members.as_object().into_iter().flatten() {
            event[name] = member.clone();
        }
        json!({"clusterId": CLUSTER, "event": event})
    };
    vec![
        event(json!({"reason": "BridgeInterfaceReady", "bridgeName": "b", "gatewayIp": "10.244.0.1"})),
        event(json!({"reason": "ImagePulled", "image": "app:1", "pullDurationMs": 5})),
        event(
            json!({"reason": "VolumeAttachError", "volumeId": "v", "volumeType": "aws", "error": "e", "step": "mount"}),
        ),
        event(json!({"reason": "WireGuardPeerConfigured", "peerCount": 1, "peerMachineIds": ["i-2"]})),
        event(
            json!({"reason": "LoadBalancerRegistered", "hostPort": 8001, "targetGroupArn": "a", "backendPoolId": "p"}),
        ),
        event(json!({"reason": "ReplicaFailed", "exitCode": 1, "signal": "SIGKILL"})),
        event(json!({"reason": "ContainerCrashLoop", "recentCrashes": 3, "backoffSeconds": 10})),
    ]
}

fn groups() -> Value {
    let mut groups = cluster_body()["capacityGroups"].clone();
    let mut gpu = groups[0].clone();
    gpu["groupId"] = json!("gpu");
    gpu["profile"]["gpu"] = json!({"type": "nvidia-t4", "count": 2});
    if let Some(groups) = groups.as_array_mut() {
        groups.push(gpu);
    }
    groups
}

fn full_cluster() -> Value {
    let mut body = cluster_body();
    body["clusterId"] = json!("acme/full");
    body["capacityGroups"] = groups();
    body["workspaceId"] = json!("w");
    body["deploymentGroupId"] = json!("d");
    body
}

fn balancers() -> [Value; 3] {
    let azure = "/subscriptions/s/resourceGroups/r/providers/Microsoft.Network/virtualNetworks/v";
    [
        json!({"type": "aws", "targetGroupArn": "arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/a/b"}),
        json!({"type": "gcp", "negName": "neg"}),
        json!({"type": "azure", "resourceGroup": "r", "loadBalancerName": "l", "backendPoolName": "b",
            "virtualNetworkId": azure}),
    ]
}

fn accounts() -> [Value; 3] {
    [
        json!({"type": "aws", "roleArn": "arn:aws:iam::123456789012:role/r"}),
        json!({"type": "gcp", "email": "a@b.iam.gserviceaccount.com"}),
        json!({"type": "azure", "clientId": "00000000-0000-4000-8000-000000000000"}),
    ]
}

fn volumes() -> Value {
    let disk = "/subscriptions/s/resourceGroups/r/providers/Microsoft.Compute/disks/d";
    json!([
        {"ordinal": 0, "volume": {"type": "aws", "volumeId": "vol-1a", "zone": "a"}},
        {"ordinal": 1, "volume": {"type": "gcp", "diskName": "d", "zone": "a"}},
        {"ordinal": 2, "volume": {"type": "azure", "diskId": disk, "zone": "a"}},
        {"ordinal": 3, "volume": {"type": "hostpath", "path": "/srv/v"}},
    ])
}

fn scaling() -> Value {
    json!({"min": 1, "desired": 2, "max": 3, "targetCpuPercent": 70.0, "targetMemoryPercent": 80.0,
        "targetHttpInFlightPerReplica": 4, "maxHttpP95LatencyMs": 100.0})
}

/// Beside a valid one several that contradict themselves: what they lack is told all the same.
fn containers() -> Vec<Value> {
    let mut valid = container_body("full");
    valid["command"] = json!(["serve"]);
    valid["resources"]["ephemeralStorage"] = json!("1Gi");
    valid["healthCheck"] =
        json!({"path": "/h", "port": 8080, "method": "GET", "timeoutSeconds": 1, "failureThreshold": 3});
    let mut bodies = vec![valid];
    for (balancer, account) in balancers().into_iter().zip(accounts()) {
        let mut body = container_body("other");
        body["loadBalancerTarget"] = balancer;
        body["serviceAccount"] = account;
        body["volumes"] = volumes();
        body["resources"]["gpu"] = json!({"type": "nvidia-t4", "count": 1});
        bodies.push(body);
    }
    let mut scaled = container_body("scaled");
    if let Some(members) = scaled.as_object_mut() {
        members.remove("replicas");
    }
    scaled["autoscaling"] = scaling();
    bodies.push(scaled);
    bodies
}

fn updates() -> Vec<Value> {
    let body = container_body("there");
    let mut bodies = vec![json!({
        "image": "app:2", "resources": body["resources"], "replicas": 1, "env": {"B": "2"}, "command": ["serve"]})];
    for account in accounts() {
        bodies.push(json!({"serviceAccount": account, "autoscaling": scaling(), "volumes": volumes()}));
    }
    bodies
}

/// JSON pointers of all members, those of the elements of lists included.
pub(crate) fn members(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    walk(value, "", &mut found);
    found
}

fn walk(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let pointer = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
                found.push(pointer.clone());
                walk(member, &pointer, found);
            }
        }
        Value::Array(elements) => {
            for (index, element) in elements.iter().enumerate() {
                walk(element, &format!("{at}/{index}"), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The value without one of its members.
pub(crate) fn without(value: &Value, pointer: &str) -> Value {
    let mut value = value.clone();
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer has a slash");
    let name = name.replace("~1", "/").replace("~0", "~");
    value
        .pointer_mut(parent)
        .and_then(Value::as_object_mut)
        .expect("members are of objects")
        .remove(&name);
    value
}

/// A pointer as faults name it: `volumes[2].ordinal`.
pub(crate) fn fault_path(pointer: &str) -> String {
    let mut path = String::new();
    for part in pointer.split('/').skip(1) {
        if part.parse::<usize>().is_ok() {
            path.push_str(&format!("[{part}]"));
        } else {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(&part.replace("~1", "/").replace("~0", "~"));
        }
    }
    path
}
