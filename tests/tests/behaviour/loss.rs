//! Machines that go: lost, silent, drained.

use std::collections::BTreeSet;

use berth_api::rest::operator::ReplicaView;
use serde_json::json;

use super::dev::{Dev, container, is_alive, stateful, until};

fn is_on(replica: &ReplicaView, machine: &str) -> bool {
    replica
        .machine_id
        .as_ref()
        .is_some_and(|id| id.as_str() == machine)
}

fn place(replica: &ReplicaView) -> String {
    replica.machine_id.as_ref().unwrap().to_string()
}

/// Stateless replicas move off a silent machine. Stateful ones stay until somebody knows that it is off: it may still
/// write. Then they start elsewhere, with their data.
#[test]
fn replicas_move_off_a_lost_machine_and_stateful_ones_only_when_it_is_off() {
    let Some(dev) = Dev::up_and_soon_silent(3) else {
        return;
    };
    let mut web = container(&dev, "web", 4);
    web["resources"]["cpu"] = json!({"min": "0.1", "desired": "1"});
    dev.apply(&[web, stateful(&dev, "writer", 1)]);
    let writer = dev.until_ready("writer", 1).remove(0);
    dev.ask(&writer, "/write?path=/wal/mark&text=kept");
    let lost = place(&writer);
    let pid = writer.pid.unwrap();

    dev.dev(&["machine", "kill", &lost, "--silent"]);
    let moved = until("all web replicas are ready elsewhere", || {
        let mut webs = dev.of("web");
        // The old ones are listed until the machine says that they are gone.
        webs.retain(|replica| !is_on(replica, &lost));
        let holds = webs.len() == 4 && webs.iter().all(|replica| replica.ready);
        holds.then_some(webs)
    });
    assert!(!is_alive(pid));
    let stayed = dev.replica("writer-0");
    assert_eq!(place(&stayed), lost, "nobody knows yet that it does not write");
    assert!(!stayed.ready);
    let explanation = dev.until_explained("writer-0", "silent").to_string();
    assert!(explanation.contains(&lost), "{explanation}");
    until("the lost one is in no name", || {
        dev.resolve(&moved[0], "writer.svc").is_empty().then_some(())
    });

    let (status, reply) = dev.rest("DELETE", &format!("/machines/{lost}?poweredOff=true"), None);
    assert_eq!(status, 200, "{reply}");
    let writer = dev.until_replica("writer-0", "is ready elsewhere", |replica| {
        replica.ready && !is_on(replica, &lost)
    });
    assert_eq!(dev.ask(&writer, "/read?path=/wal/mark"), "kept");
    assert_eq!(dev.ask(&writer, "/env?name=ALIEN_ORDINAL"), "0");
    until("the name follows", || {
        (dev.resolve(&moved[0], "writer-0.writer.svc") == BTreeSet::from([writer.ip.unwrap()])).then_some(())
    });

    dev.dev(&["machine", "start", &lost]);
    until("the machine is back and empty", || {
        let machines = dev.json(&["get", "machines", "-o", "json"]);
        let machine = machines
            .as_array()
            .unwrap()
            .iter()
            .find(|machine| machine["machineId"] == lost.as_str())?;
        (machine["status"] == "running").then_some(())
    });
    dev.until_tidy();
}

/// A drained machine is empty at the end, and says on the way what it does.
#[test]
fn a_drain_moves_everything_and_explains_itself() {
    let Some(dev) = Dev::up(3) else { return };
    let mut web = container(&dev, "web", 4);
    web["resources"]["cpu"] = json!({"min": "0.1", "desired": "1"});
    dev.apply(&[web, stateful(&dev, "writer", 1)]);
    let writer = dev.until_ready("writer", 1).remove(0);
    dev.ask(&writer, "/write?path=/wal/mark&text=kept");
    let drained = place(&writer);
    assert!(
        dev.of("web").iter().any(|replica| is_on(replica, &drained)),
        "both kinds move"
    );

    dev.succeed(&["drain", &drained, "--timeout", "150s"]);
    assert!(dev.replicas().iter().all(|replica| !is_on(replica, &drained)));
    dev.until_ready("web", 4);
    let writer = dev.until_ready("writer", 1).remove(0);
    assert_eq!(dev.ask(&writer, "/read?path=/wal/mark"), "kept");
    let explanation = dev.explain(&format!("machine/{drained}")).to_string();
    assert!(
        explanation.contains("drained") || explanation.contains("draining"),
        "{explanation}"
    );
    dev.until_tidy();

    // Nowhere to go: the rest says so, and runs on.
    let names: Vec<String> = ["m1", "m2", "m3"]
        .map(str::to_owned)
        .into_iter()
        .filter(|name| *name != drained)
        .collect();
    for name in &names {
        dev.succeed(&["drain", name, "--no-wait"]);
    }
    let explanation = dev.until_explained("writer-0", "cancel the drain of machine");
    assert!(!explanation.waits.is_empty(), "{explanation}");
    assert!(
        explanation.waits.iter().all(|wait| !wait.helps.is_empty()),
        "{explanation}"
    );
    // The first drain may have begun a move to the machine that the second one closed; in the end all are there and serve.
    dev.until_ready("web", 4);
    assert_eq!(dev.until_ready("writer", 1)[0].replica_id.as_str(), "writer-0");
    for name in &names {
        dev.succeed(&["drain", name, "--cancel"]);
    }
    assert_eq!(dev.berth(&["drain", "m9"]).status.code(), Some(3));
}
