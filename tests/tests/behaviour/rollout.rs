//! A new version that does not start goes back by itself; a paused one stands still.

use berth_api::rest::operator::ReplicaView;
use serde_json::{Value, json};

use super::dev::{Dev, container, until};

fn rollout(dev: &Dev, name: &str) -> Value {
    dev.json(&["rollout", "status", name, "-o", "json"])
}

/// How a new version fails to start.
fn broken(dev: &Dev, how: &str) -> Value {
    let mut declaration = container(dev, "web", 2);
    declaration["rollback"] = json!({"afterFailedStarts": 3});
    match how {
        "it ends" => declaration["command"] = json!(["/bin/berth-test-workload", "exit", "3"]),
        "no such image" => {
            declaration["image"] = json!(format!("oci-layout:{}", dev.path("no-image").display()));
        }
        other => panic!("{other}"),
    }
    declaration
}

#[test]
fn a_version_that_does_not_start_is_rolled_back_and_the_service_goes_on() {
    let Some(dev) = Dev::up(2) else { return };
    dev.apply(&[container(&dev, "web", 2)]);
    until("the first rollout is complete", || {
        (rollout(&dev, "web")["phase"] == "completed").then_some(())
    });
    let before = dev.until_ready("web", 2);
    let mut id = 1;
    for how in ["it ends", "no such image"] {
        dev.apply_at_once(&[broken(&dev, how)]);
        id += 2;
        let back = until(&format!("{how}: it is rolled back"), || {
            assert!(
                dev.of("web").iter().filter(|replica| replica.ready).count() >= 2,
                "{how}"
            );
            let now = rollout(&dev, "web");
            (now["id"] == id && now["phase"] == "completed").then_some(now)
        });
        assert_eq!(back["cause"], "rolledBack", "{how}");
        assert_eq!(back["previous"]["phase"], "rolledBack", "{how}");
        let after = dev.until_ready("web", 2);
        let same = |one: &[ReplicaView]| -> Vec<_> {
            one.iter()
                .map(|replica| (replica.replica_id.clone(), replica.pid))
                .collect()
        };
        assert_eq!(same(&after), same(&before), "{how}: what served was left alone");
        let (_, seen) = dev.rest("GET", "/containers/web", None);
        assert_eq!(seen["status"], "failing", "{how}: what is declared does not run");
        dev.until_explained("web", "was rolled back");
        assert!(dev.berth(&["rollout", "undo", "web"]).status.success());
        id += 1;
        until("what runs is what is declared", || {
            let (_, seen) = dev.rest("GET", "/containers/web", None);
            (seen["status"] == "running" && rollout(&dev, "web")["id"] == id).then_some(())
        });
    }
}

#[test]
fn a_paused_rollout_stands_still_until_it_is_resumed() {
    let Some(dev) = Dev::up(2) else { return };
    dev.apply(&[container(&dev, "web", 3)]);
    dev.until_ready("web", 3);
    until("the first rollout is complete", || {
        (rollout(&dev, "web")["phase"] == "completed").then_some(())
    });
    let mut next = container(&dev, "web", 3);
    next["env"] = json!({"VERSION": "2"});
    // The new version is healthy only when the test says so: however slow the machine, the pause comes half way.
    next["healthCheck"]["path"] = json!("/read?path=/gate");
    let open = |replica: &ReplicaView| {
        // It may not listen yet, or no longer.
        drop(dev.try_ask(replica, "/write?path=/gate&text=open"));
    };
    let new = || dev.of("web").into_iter().filter(|replica| !replica.outdated);
    dev.apply_at_once(&[next]);
    let first = until("the first of the new version is there", || new().next());
    until("it serves, and the second one is there", || {
        open(&dev.find(first.replica_id.as_str())?);
        (new().count() == 2).then_some(())
    });
    dev.succeed(&["rollout", "pause", "web"]);
    // The second one is one too many; the rest stays as it is.
    let paused = until("it stands still", || {
        let now = rollout(&dev, "web");
        let all = dev.of("web");
        (now["phase"] == "paused" && all.len() == 3 && all.iter().all(|replica| replica.ready)).then_some(now)
    });
    assert_eq!(
        (&paused["old"], &paused["ready"]),
        (&json!(2), &json!(1)),
        "{paused}"
    );
    let replicas = |dev: &Dev| -> Vec<_> {
        dev.of("web")
            .into_iter()
            .map(|replica| (replica.replica_id, replica.pid))
            .collect()
    };
    dev.until_explained("web", "to be resumed");
    let still = replicas(&dev);
    // A lost replica comes back, as it was.
    let victim = dev
        .of("web")
        .into_iter()
        .find(|replica| replica.outdated)
        .unwrap();
    dev.crash(&victim);
    dev.until_replica(victim.replica_id.as_str(), "runs again", |replica| {
        replica.ready && replica.run == victim.run + 1
    });
    let ids = |list: &[(berth_api::id::ReplicaId, Option<u32>)]| -> Vec<_> {
        list.iter().map(|(id, _)| id.clone()).collect()
    };
    assert_eq!(
        ids(&replicas(&dev)),
        ids(&still),
        "nothing was started or stopped for the rollout"
    );
    dev.succeed(&["rollout", "resume", "web"]);
    until("it is complete", || {
        new().for_each(|replica| open(&replica));
        let now = rollout(&dev, "web");
        (now["phase"] == "completed" && now["updated"] == 3).then_some(())
    });
    for replica in dev.until_ready("web", 3) {
        assert_eq!(dev.ask(&replica, "/env?name=VERSION"), "2");
    }
}
