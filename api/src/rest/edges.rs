//! Every range, length, pattern and default of the API's requests at its edges: the last value that is taken and the first that
//! is not.

#![expect(clippy::too_many_lines, reason = "tables of values")]

use serde_json::{Value, json};

use super::cluster::{TokenRequest, read_cluster};
use super::container::{ContainerUpdate, read_container};
use super::node::{CreateEventRequest, HeartbeatRequest, RegisterRequest, read_batch};
use crate::cluster::ClusterSpec;
use crate::validate::Faults;

/// A place in a body, what is taken there and what is not.
type Edge = (&'static str, Vec<Value>, Vec<Value>);

fn text(len: usize) -> Value {
    "a".repeat(len).into()
}

fn with(body: &Value, pointer: &str, value: &Value) -> Value {
    let mut body = body.clone();
    match body.pointer_mut(pointer) {
        Some(place) => *place = value.clone(),
        None => {
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            body.pointer_mut(parent).unwrap()[name] = value.clone();
        }
    }
    body
}

/// Each refused value is refused for the place it stands in.
fn check(body: &Value, read: &dyn Fn(&Value) -> Result<(), Faults>, edges: Vec<Edge>) {
    assert_eq!(read(body), Ok(()));
    for (pointer, good, bad) in edges {
        for value in good {
            let outcome = read(&with(body, pointer, &value));
            assert_eq!(outcome, Ok(()), "{pointer} {value}");
        }
        let path = pointer.trim_start_matches('/').split('/').next().unwrap();
        for value in bad {
            let Err(faults) = read(&with(body, pointer, &value)) else {
                panic!("{pointer} takes {value}");
            };
            let is_told = faults.list().iter().any(|fault| fault.path.starts_with(path));
            assert!(is_told, "{pointer} {value}: {faults}");
        }
    }
}

fn cluster_body() -> Value {
    json!({
        "clusterId": "acme/prod", "name": "Acme", "containerCidr": "10.0.0.0/8", "platform": "aws",
        "capacityGroups": [{"groupId": "general", "minSize": 1, "maxSize": 3, "profile": {
            "cpu": 8, "memoryBytes": 17_179_869_184_u64, "ephemeralStorageBytes": 1, "gpu": {"type": "nvidia-t4", "count": 1}}}]
    })
}

fn cluster() -> ClusterSpec {
    read_cluster(&cluster_body()).unwrap()
}

#[test]
fn clusters() {
    let group = |id: usize| {
        with(
            &cluster_body()["capacityGroups"][0],
            "/groupId",
            &json!(format!("g{id}")),
        )
    };
    let groups = |count: usize| Value::Array((0..count).map(group).collect());
    check(
        &cluster_body(),
        &|body| read_cluster(body).map(drop),
        vec![
            (
                "/clusterId",
                vec![json!("a"), json!("a/b c\"#<>?`{}%"), text(512)],
                vec![json!(""), text(513), json!("a\nb"), json!(1)],
            ),
            (
                "/name",
                vec![json!("a"), text(255)],
                vec![json!(""), text(256), Value::Null],
            ),
            (
                "/containerCidr",
                vec![json!("10.0.0.0/8"), json!("10.244.0.0/22")],
                vec![
                    json!("10.0.0.0/7"),
                    json!("10.244.0.0/25"),
                    json!("10.244.0.1/16"),
                    json!("fd00::/16"),
                    json!("10.244.0.0"),
                    json!(""),
                ],
            ),
            (
                "/platform",
                vec![json!("gcp"), json!("azure"), json!("local")],
                vec![json!("AWS"), json!(""), json!("vmware")],
            ),
            (
                "/capacityGroups",
                vec![json!([]), groups(10)],
                vec![groups(11), Value::Null, json!({}), json!([1])],
            ),
            (
                "/capacityGroups/0/groupId",
                vec![json!("a"), json!("a-"), text(63)],
                vec![json!(""), json!("1a"), json!("A"), json!("a_b"), text(64)],
            ),
            (
                "/capacityGroups/0/minSize",
                vec![json!(0), json!(3)],
                vec![json!(-1), json!(4), json!(1.5), json!(1.0), json!("1")],
            ),
            (
                "/capacityGroups/0/maxSize",
                vec![json!(1), json!(65_536)],
                vec![json!(0), json!(i64::from(i32::MAX) + 1)],
            ),
            (
                "/capacityGroups/0/profile/cpu",
                vec![json!(0.000_001), json!(0.5), json!(4_294.967_295)],
                vec![
                    json!(0),
                    json!(-1),
                    json!(4_294.967_296),
                    json!("8"),
                    json!(0.000_000_1),
                ],
            ),
            (
                "/capacityGroups/0/profile/memoryBytes",
                vec![json!(134_217_728)],
                vec![json!(134_217_727), json!(134_217_728.5), json!("1Gi")],
            ),
            (
                "/capacityGroups/0/profile/ephemeralStorageBytes",
                vec![json!(1)],
                vec![json!(0), json!(-1)],
            ),
            (
                "/capacityGroups/0/profile/gpu",
                vec![Value::Null],
                vec![json!(1), json!({})],
            ),
            (
                "/capacityGroups/0/profile/gpu/count",
                vec![json!(1), json!(8)],
                vec![json!(0), json!(9)],
            ),
            (
                "/capacityGroups/0/profile/gpu/share",
                vec![Value::Null],
                vec![json!(0.5)],
            ),
            (
                "/capacityGroups/0/profile/gpu/type",
                vec![json!("a-1")],
                vec![json!(""), json!("T4"), json!("a b")],
            ),
        ],
    );
    assert!(TokenRequest::read(&json!({"tokenType": "machine"})).is_ok());
    for wrong in [
        json!("platform"),
        json!("Machine"),
        json!(""),
        Value::Null,
        json!(1),
    ] {
        assert!(TokenRequest::read(&json!({"tokenType": wrong})).is_err());
    }
}

fn container_body() -> Value {
    json!({
        "name": "reader", "capacityGroup": "general", "image": "app:1", "stateful": false, "ports": [8080],
        "resources": {"cpu": {"min": "0.5", "desired": "1"}, "memory": {"min": "1Gi", "desired": "2Gi"},
            "ephemeralStorage": "1Gi", "gpu": {"type": "nvidia-t4", "count": 1}},
        "autoscaling": {"min": 2, "desired": 3, "max": 4}, "healthCheck": {}
    })
}

#[test]
fn containers() {
    let quantities = || {
        vec![
            json!("500m"),
            json!("1e3"),
            json!("-1"),
            json!(" 1"),
            json!("1."),
            json!(".5"),
            json!("1 Gi"),
            json!(1),
        ]
    };
    let mut sizes = quantities();
    sizes.extend([
        json!("0Gi"),
        json!("1G"),
        json!("1024"),
        json!("4Gi"),
        json!("99999999999Ti"),
    ]);
    let mut cpus = quantities();
    cpus.extend([json!("0"), json!("2"), json!("0.0000001")]);
    check(
        &container_body(),
        &|body| read_container(body, &cluster()).map(drop),
        vec![
            (
                "/name",
                vec![json!("a"), json!("0"), json!("a--b"), text(63)],
                vec![
                    json!(""),
                    text(64),
                    json!("-a"),
                    json!("a-"),
                    json!("A"),
                    json!("a.b"),
                    json!("a_b"),
                    json!("ä"),
                ],
            ),
            (
                "/capacityGroup",
                vec![],
                vec![json!("other"), json!(""), Value::Null],
            ),
            (
                "/image",
                vec![text(1024)],
                vec![json!(""), text(1025), json!("a b"), json!("a\u{0}")],
            ),
            ("/stateful", vec![], vec![json!("false"), json!(0), Value::Null]),
            (
                "/ports",
                vec![json!([1]), json!([65_535, 1])],
                vec![
                    json!([0]),
                    json!([65_536]),
                    json!([]),
                    json!([80, 80]),
                    json!([80.0]),
                    json!("80"),
                ],
            ),
            ("/resources/cpu/min", vec![json!("1"), json!("0.000001")], cpus),
            (
                "/resources/memory/min",
                vec![json!("2Gi"), json!("0.5Gi"), json!("1Ki")],
                sizes,
            ),
            (
                "/resources/ephemeralStorage",
                vec![Value::Null, json!("1Ti")],
                vec![json!("1"), json!("0Gi"), json!(1)],
            ),
            ("/resources/gpu", vec![Value::Null], vec![json!(1)]),
            (
                "/resources/gpu/count",
                vec![json!(8)],
                vec![json!(0), json!(9), json!(0.5)],
            ),
            (
                "/resources/gpu/share",
                vec![Value::Null, json!(0.001), json!(0.25), json!(0.999)],
                vec![
                    json!(0),
                    json!(1),
                    json!(-0.1),
                    json!(0.0005),
                    json!("0.5"),
                    json!(1.5),
                ],
            ),
            (
                "/autoscaling/min",
                vec![json!(1), json!(3)],
                vec![json!(0), json!(4)],
            ),
            (
                "/autoscaling/desired",
                vec![json!(2), json!(4)],
                vec![json!(1), json!(5)],
            ),
            (
                "/autoscaling/max",
                vec![json!(3), json!(10_000)],
                vec![json!(2), json!(10_001)],
            ),
            (
                "/autoscaling/targetCpuPercent",
                vec![json!(1), json!(100), json!(65.5)],
                vec![json!(0.9), json!(100.1), json!("70")],
            ),
            (
                "/autoscaling/targetMemoryPercent",
                vec![json!(1), json!(100)],
                vec![json!(0), json!(101)],
            ),
            (
                "/autoscaling/targetHttpInFlightPerReplica",
                vec![json!(1), json!(i32::MAX)],
                vec![json!(0), json!(1.5), json!(i64::from(i32::MAX) + 1)],
            ),
            (
                "/autoscaling/maxHttpP95LatencyMs",
                vec![json!(0.1), json!(250)],
                vec![json!(0), json!(-1)],
            ),
            (
                "/healthCheck/path",
                vec![json!("/"), json!("/a?b=c")],
                vec![json!(""), json!("health"), json!("/a b")],
            ),
            (
                "/healthCheck/port",
                vec![json!(1), json!(65_535)],
                vec![json!(0), json!(65_536)],
            ),
            (
                "/healthCheck/method",
                vec![json!("POST"), json!("HEAD")],
                vec![json!("get"), json!("PUT")],
            ),
            (
                "/healthCheck/kind",
                vec![Value::Null, json!("http"), json!("tcp")],
                vec![json!("TCP"), json!("exec"), json!("grpc"), json!(1)],
            ),
            (
                "/healthCheck/command",
                vec![Value::Null, json!([])],
                vec![json!(["true"]), json!("true")],
            ),
            (
                "/healthCheck/timeoutSeconds",
                vec![json!(1), json!(5)],
                vec![json!(0), json!(6)],
            ),
            (
                "/healthCheck/failureThreshold",
                vec![json!(1), json!(10)],
                vec![json!(0), json!(11)],
            ),
            (
                "/env",
                vec![json!({}), json!({"A": ""}), Value::Null],
                vec![json!({"A": 1}), json!({"": "a"}), json!({"A=": "a"}), json!([])],
            ),
            (
                "/command",
                vec![json!([]), json!(["a", ""])],
                vec![json!("a"), json!([1]), json!(["a\u{0}"])],
            ),
        ],
    );
}

#[test]
fn clouds() {
    let mut body = container_body();
    body["stateful"] = json!(true);
    body["autoscaling"] = Value::Null;
    let read = |platform: &str, member: &str, value: Value| {
        let mut spec = cluster_body();
        spec["platform"] = json!(platform);
        let mut body = body.clone();
        body[member] = value;
        read_container(&body, &read_cluster(&spec).unwrap()).is_ok()
    };
    let volume = |target: Value| json!([{"ordinal": 0, "volume": target}]);
    let disk = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/disks/d";
    let network = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v";
    let azure = |group: &str, network: &str| json!({"type": "azure", "resourceGroup": group, "loadBalancerName": "lb_1", "backendPoolName": "p", "virtualNetworkId": network});
    let arn = "arn:aws:elasticloadbalancing:eu-west-1:123456789012:targetgroup/a/b";
    for (platform, member, good, bad) in [
        (
            "aws",
            "volumes",
            volume(json!({"type": "aws", "volumeId": "vol-0a", "zone": "a"})),
            volume(json!({"type": "aws", "volumeId": "vol-0G", "zone": "a"})),
        ),
        (
            "aws",
            "volumes",
            volume(json!({"type": "hostpath", "path": "/srv/v"})),
            volume(json!({"type": "hostpath", "path": "srv"})),
        ),
        (
            "aws",
            "volumes",
            volume(json!({"type": "hostpath", "path": "/srv"})),
            volume(json!({"type": "hostpath", "path": "/srv/a b"})),
        ),
        (
            "aws",
            "volumes",
            json!([]),
            volume(json!({"type": "aws", "volumeId": "vol-0a", "zone": ""})),
        ),
        (
            "gcp",
            "volumes",
            volume(json!({"type": "gcp", "diskName": "d-1", "zone": "a"})),
            volume(json!({"type": "gcp", "diskName": "d-", "zone": "a"})),
        ),
        (
            "gcp",
            "volumes",
            volume(json!({"type": "gcp", "diskName": "d", "zone": "a"})),
            volume(json!({"type": "aws", "volumeId": "vol-0a", "zone": "a"})),
        ),
        (
            "azure",
            "volumes",
            volume(json!({"type": "azure", "diskId": disk, "zone": "1"})),
            volume(json!({"type": "azure", "diskId": network, "zone": "1"})),
        ),
        (
            "aws",
            "loadBalancerTarget",
            json!({"type": "aws", "targetGroupArn": arn}),
            json!({"type": "aws", "targetGroupArn": "arn:aws:iam::1:x"}),
        ),
        (
            "gcp",
            "loadBalancerTarget",
            json!({"type": "gcp", "negName": "n"}),
            json!({"type": "gcp", "negName": text(64)}),
        ),
        (
            "azure",
            "loadBalancerTarget",
            azure("rg_(1).x", network),
            azure("rg/1", network),
        ),
        (
            "azure",
            "loadBalancerTarget",
            azure(&"a".repeat(90), network),
            azure(&"a".repeat(91), network),
        ),
        (
            "azure",
            "loadBalancerTarget",
            azure("g", network),
            azure("g", disk),
        ),
        (
            "gcp",
            "loadBalancerTarget",
            Value::Null,
            json!({"type": "aws", "targetGroupArn": arn}),
        ),
        (
            "aws",
            "serviceAccount",
            json!({"type": "aws", "roleArn": "arn:aws:iam::123456789012:role/r"}),
            json!({"type": "aws", "roleArn": "arn:aws:iam::12345678901:role/r"}),
        ),
        (
            "gcp",
            "serviceAccount",
            json!({"type": "gcp", "email": "a@b.iam.gserviceaccount.com"}),
            json!({"type": "gcp", "email": "a"}),
        ),
        (
            "azure",
            "serviceAccount",
            json!({"type": "azure", "clientId": "123e4567-e89b-12d3-a456-426614174000"}),
            json!({"type": "azure", "clientId": "123"}),
        ),
    ] {
        assert!(read(platform, member, good.clone()), "{platform} {member} {good}");
        assert!(!read(platform, member, bad.clone()), "{platform} {member} {bad}");
    }
}

#[test]
fn updates_hold_the_same_ranges_and_change_nothing_else() {
    let current = read_container(&container_body(), &cluster()).unwrap();
    let read = |body: Value| {
        ContainerUpdate::read(&body, &current).and_then(|update| update.apply(&current, &cluster()))
    };
    assert_eq!(read(json!({})).unwrap(), current);
    assert_eq!(
        read(json!({"unheardOf": 1, "ports": [8080], "name": "reader"})).unwrap(),
        current
    );
    // As many bytes as the kernel hands to a program, the NUL at the end not counted.
    for right in [
        json!({"env": {"A": "x".repeat((128 << 10) - 3)}}),
        json!({"command": ["x".repeat((128 << 10) - 1)]}),
    ] {
        assert!(read(right).is_ok());
    }
    for wrong in [
        json!({"replicas": 0}),
        json!({"replicas": 10_001}),
        json!({"replicas": 1, "autoscaling": {"min": 1, "desired": 1, "max": 1}}),
        json!({"autoscaling": {"min": 2, "desired": 1, "max": 3}}),
        json!({"image": ""}),
        json!({"env": {"A": null}}),
        json!({"env": {"A": "x".repeat((128 << 10) - 2)}}),
        json!({"env": {"A\0": "x"}}),
        json!({"env": {"A=B": "x"}}),
        json!({"command": ["x".repeat(128 << 10)]}),
        json!({"command": ["a\0b"]}),
        json!({"resources": {"cpu": {"min": "1", "desired": "1"}}}),
        json!({"healthCheck": {"timeoutSeconds": 6}}),
        json!({"ports": [1]}),
        json!({"stateful": true}),
        json!({"capacityGroup": "other"}),
        json!({"name": "writer"}),
        json!({"loadBalancerTarget": {"type": "gcp", "negName": "n"}}),
        json!([]),
        json!(null),
    ] {
        assert!(read(wrong.clone()).is_err(), "{wrong}");
    }
}

#[test]
fn machines_and_what_they_say() {
    let register = json!({"clusterId": "c", "machineId": "i-1", "capacityGroup": "general", "zone": "a", "vpcIp": "10.0.0.1",
        "wireguardPublicKey": "a2V5", "wireguardEndpoint": "10.0.0.1:51820",
        "capacity": {"cpu": {"total": 8, "systemReserve": 1}, "memory": {"total": 100, "systemReserve": 1}, "ephemeralStorage": {"total": 0}}});
    check(
        &register,
        &|body| RegisterRequest::read(body).map(drop),
        vec![
            (
                "/machineId",
                vec![text(512)],
                vec![json!(""), text(513), Value::Null],
            ),
            ("/zone", vec![json!("a")], vec![json!("")]),
            (
                "/vpcIp",
                vec![json!("fd00::1")],
                vec![json!("10.0.0"), json!("10.0.0.1/24"), json!("")],
            ),
            (
                "/wireguardPublicKey",
                vec![json!("ab==")],
                vec![json!(""), json!("a b"), json!("abc")],
            ),
            (
                "/wireguardEndpoint",
                vec![json!("10.0.0.1:1")],
                vec![
                    json!("10.0.0.1"),
                    json!("10.0.0.1:0"),
                    json!("10.0.0.1:65536"),
                    json!("[fd00::1]:1"),
                    json!("10.0.0.256:1"),
                ],
            ),
            (
                "/capacity/cpu/total",
                vec![json!(1), json!(0.5e1)],
                vec![json!(-1), json!("8"), json!(0.5)],
            ),
            (
                "/capacity/cpu/systemReserve",
                vec![json!(0), json!(8), Value::Null],
                vec![json!(8.1), json!(-1)],
            ),
            (
                "/capacity/memory/systemReserve",
                vec![json!(0), json!(100), Value::Null],
                vec![json!(101), json!(0.5)],
            ),
            (
                "/capacity/ephemeralStorage/total",
                vec![json!(1)],
                vec![json!(-1), Value::Null],
            ),
            (
                "/capacity/gpu",
                vec![Value::Null, json!({"type": "a", "total": 8})],
                vec![json!({"type": "a", "total": 9}), json!({"type": "", "total": 1})],
            ),
        ],
    );
    let metrics = json!({"status": "running", "cpuUsage": 0, "cpuUsagePercent": 0, "memoryUsedBytes": 0, "memoryUsagePercent": 0,
        "healthy": true, "lastUpdated": "2026-11-21T10:00:00Z", "http": {"inFlightRequests": 0, "totalRequests": 0, "latencyP95Ms": 0,
            "latencyP99Ms": 0, "status2xx": 0, "status4xx": 0, "status5xx": 0, "topEndpoints": []}});
    let heartbeat =
        json!({"clusterId": "c", "machineId": "i-1", "status": "running", "replicas": {"r": metrics}});
    let endpoint = json!({"path": "/", "method": "GET", "statusClass": "2xx", "requests": 1, "latencyP95Ms": 1, "latencyP99Ms": 1, "errorRate": 1});
    let endpoints = |count: usize| Value::Array(vec![endpoint.clone(); count]);
    check(
        &heartbeat,
        &|body| HeartbeatRequest::read(body).map(drop),
        vec![
            (
                "/status",
                vec![json!("draining")],
                vec![json!("Running"), json!("gone")],
            ),
            (
                "/replicas",
                vec![json!({}), Value::Null],
                vec![json!([]), json!({"": {}})],
            ),
            (
                "/replicas/r/status",
                vec![json!("failed")],
                vec![json!("healthy")],
            ),
            (
                "/replicas/r/cpuUsage",
                vec![json!(3.5)],
                vec![json!(-0.1), json!("1")],
            ),
            // What a client forgot to clamp is no reason to lose a heartbeat.
            (
                "/replicas/r/cpuUsagePercent",
                vec![json!(100), json!(250.5)],
                vec![json!(-1)],
            ),
            (
                "/replicas/r/memoryUsedBytes",
                vec![json!(i64::MAX)],
                vec![json!(-1), json!(1.0), json!(u64::MAX)],
            ),
            (
                "/replicas/r/healthy",
                vec![json!(false)],
                vec![json!("true"), json!(1)],
            ),
            (
                "/replicas/r/lastUpdated",
                vec![json!("2026-11-21T11:00:00.5+01:00")],
                vec![json!("yesterday"), json!(1)],
            ),
            ("/replicas/r/http", vec![Value::Null], vec![json!({})]),
            (
                "/replicas/r/http/topEndpoints",
                vec![endpoints(10)],
                vec![endpoints(11), Value::Null],
            ),
            (
                "/replicas/r/http/topEndpoints",
                vec![],
                vec![
                    json!([with(&endpoint, "/errorRate", &json!(1.1))]),
                    json!([with(&endpoint, "/statusClass", &json!("3xx"))]),
                ],
            ),
        ],
    );
    let batch = |count: usize| json!({"heartbeats": vec![heartbeat.clone(); count]});
    for (count, is_taken) in [(0, false), (1, true), (500, true), (501, false)] {
        assert_eq!(read_batch(&batch(count)).is_ok(), is_taken, "{count}");
    }
}

#[test]
fn events() {
    let event = json!({"clusterId": "c", "event": {"eventId": "e", "type": "info", "message": "m", "firstTimestamp": "2026-11-21T10:00:00Z",
        "lastTimestamp": "2026-11-21T10:00:00Z", "count": 1, "involvedObject": {"type": "replica", "id": "r"},
        "source": {"component": "horizond", "machineId": "i-1"}, "reason": "ReplicaStopped", "stopReason": "updated"}});
    check(
        &event,
        &|body| CreateEventRequest::read(body).map(drop),
        vec![
            ("/event/eventId", vec![text(512)], vec![json!(""), text(513)]),
            (
                "/event/type",
                vec![json!("warning"), json!("error")],
                vec![json!("Info"), json!("fatal")],
            ),
            (
                "/event/count",
                vec![json!(1), json!(i32::MAX)],
                vec![json!(0), json!(i64::from(i32::MAX) + 1), json!(1.5)],
            ),
            ("/event/firstTimestamp", vec![], vec![json!("now"), Value::Null]),
            (
                "/event/involvedObject/type",
                vec![json!("cluster"), json!("capacityGroup")],
                vec![json!("pod"), json!("Replica")],
            ),
            (
                "/event/involvedObject/id",
                vec![text(512)],
                vec![json!(""), text(513)],
            ),
            (
                "/event/source/component",
                vec![json!("scheduler")],
                vec![json!("berthd"), json!("Horizond")],
            ),
            ("/event/source/machineId", vec![], vec![json!(""), Value::Null]),
            (
                "/event/reason",
                vec![],
                vec![json!("Unheard"), json!("replicaStopped"), Value::Null],
            ),
            (
                "/event/stopReason",
                vec![
                    json!("scaled_down"),
                    json!("machine_draining"),
                    json!("container_deleted"),
                ],
                vec![json!("other"), Value::Null],
            ),
            (
                "/event/message",
                vec![json!(""), text(8192)],
                vec![text(8193), Value::Null],
            ),
            ("/event/error", vec![text(8000)], vec![text(40_000)]),
        ],
    );
}
