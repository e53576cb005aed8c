//! Goldens of the picture: what operators see must not change unnoticed.

use super::*;
use serde_json::json;

struct Data {
    cluster: GetClusterReply,
    machines: Vec<MachineSummary>,
    containers: Vec<ContainerSummary>,
    replicas: Vec<ReplicaView>,
}

fn data() -> Data {
    let gi = |n: u64| n << 30;
    let cluster = json!({"clusterId": "dev", "name": "dev", "containerCidr": "10.244.0.0/16", "platform": "local",
        "capacityGroups": [{"groupId": "general", "minSize": 2, "maxSize": 2,
            "profile": {"cpu": 8, "memoryBytes": gi(16), "ephemeralStorageBytes": gi(1024)}}],
        "machineCount": 2, "containerCount": 2, "createdAt": "2026-01-01T00:00:00Z",
        "capacity": {"cpu": {"total": 16, "available": 11}, "memory": {"total": gi(32), "available": gi(20)},
            "ephemeralStorage": {"total": 0, "available": 0}}});
    let machine = |id: &str, status: &str, cpu: f64, memory: u64| {
        json!({"machineId": id, "capacityGroup": "general", "zone": "local-a", "status": status,
            "cpu": {"total": 8, "systemReserve": 0.5, "allocated": cpu},
            "memory": {"total": gi(16), "systemReserve": 0, "allocated": gi(memory)},
            "ephemeralStorage": {"total": gi(1024), "systemReserve": 0, "allocated": gi(memory) * 4},
            "replicaCount": 1, "lastHeartbeat": "2026-01-01T00:00:00Z", "vpcIp": "100.80.0.11",
            "containerCidr": "10.244.0.0/24"})
    };
    let mut first = machine("m1", "running", 3.0, 6);
    first["gpu"] = json!({"total": 2, "type": "nvidia-t4"});
    let replica = |id: &str, container: &str, machine: Option<&str>, cpu: &str, memory: u64| {
        json!({"replicaId": id, "container": container, "image": "app:1", "machineId": machine, "ip": machine.map(|_| "10.244.0.2"),
            "status": if machine.is_some() { "running" } else { "pending" },
            "phase": machine.map(|_| "healthy"), "ready": machine.is_some(), "run": 1, "recentCrashes": 0,
            "cpu": cpu, "memory": gi(memory), "usage": machine.map(|_| json!({"cpu": "0.25", "memory": gi(1)})),
            "wait": if machine.is_some() { json!(null) } else {
                json!({"reason": "no machine of group general has 8 GiB of memory free", "since": "2026-01-01T00:00:00Z"}) }})
    };
    let mut starting = replica("reader-m2-x4a", "reader", Some("m2"), "2", 4);
    starting["status"] = json!("failed");
    starting["phase"] = json!("backoff");
    starting["ready"] = json!(false);
    starting["cause"] = json!({"kind": "exit", "code": 3});
    starting["recentCrashes"] = json!(2);
    let container = |name: &str, status: &str, ready: u64| {
        json!({"name": name, "image": "app:1", "status": status, "statusReason": if status == "failing" { json!("CrashLoopBackOff") } else { json!(null) },
            "statusMessage": null, "currentReplicas": ready, "desiredReplicas": 3, "readyReplicas": ready})
    };
    Data {
        cluster: serde_json::from_value(cluster).unwrap(),
        machines: serde_json::from_value(json!([first, machine("m2", "unhealthy", 2.0, 4)])).unwrap(),
        containers: serde_json::from_value(json!([
            container("reader", "failing", 1),
            container("writer", "running", 3)
        ]))
        .unwrap(),
        replicas: serde_json::from_value(json!([
            replica("reader-m1-p0q", "reader", Some("m1"), "2", 4),
            replica("writer-0", "writer", Some("m1"), "1", 2),
            starting,
            replica("reader-3", "reader", None, "2", 8)
        ]))
        .unwrap(),
    }
}

fn draw(screen: &Screen) -> String {
    drawn(screen, &data())
}

fn drawn(screen: &Screen, data: &Data) -> String {
    let now: Timestamp = "2026-01-01T00:00:30Z".parse().unwrap();
    picture(
        screen,
        now,
        &Picture {
            cluster: &data.cluster,
            machines: &data.machines,
            containers: &data.containers,
            replicas: &data.replicas,
        },
    )
}

#[test]
fn draws_in_plain_ascii() {
    let golden = include_str!("golden/status_ascii.txt");
    assert_eq!(draw(&Screen::PLAIN), golden.trim_end());
}

#[test]
fn shows_what_is_held_of_gpus() {
    let mut data = data();
    data.machines[0].gpu_devices = serde_json::from_value(json!([
        {"index": 0, "milli": 1000}, {"index": 1, "milli": 250}
    ]))
    .unwrap();
    assert_eq!(gpus_held(&data.machines[0]).as_deref(), Some("1.25"));
    let text = drawn(&Screen::PLAIN, &data);
    assert!(text.contains("gpu     1.25 of 2 x nvidia-t4 "), "{text}");
}

#[test]
fn draws_in_unicode() {
    let screen = Screen {
        unicode: true,
        ..Screen::PLAIN
    };
    let golden = include_str!("golden/status_unicode.txt");
    assert_eq!(draw(&screen), golden.trim_end());
}

#[test]
fn every_row_of_a_box_is_as_wide_as_the_box() {
    for width in [60, 80, 100, 200] {
        let screen = Screen {
            unicode: true,
            width,
            ..Screen::PLAIN
        };
        for line in draw(&screen).lines() {
            if line.starts_with(['╭', '│', '╰']) {
                assert!(line.chars().count() >= width.min(WIDTH_MAX), "{width}: {line}");
            }
        }
    }
}

#[test]
fn a_full_bar_is_exactly_full_and_an_overfull_one_not_longer() {
    let drawing = Drawing {
        screen: &Screen::PLAIN,
        now: Timestamp::from_millis(0),
        width: 80,
        series: BTreeMap::new(),
    };
    let thirds: Vec<Stretch> = (0..3)
        .map(|number| Stretch {
            amount: 1,
            series: Some(number),
        })
        .collect();
    assert_eq!(drawing.bar(&thirds, 3, 10), "aaabbbbccc");
    assert_eq!(drawing.bar(&thirds, 2, 10), "aaaaabbbbb");
    assert_eq!(drawing.bar(&thirds, 0, 4).len(), 4);
}
