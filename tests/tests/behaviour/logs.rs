//! What replicas write and what happened to them.

use serde_json::Value;

use super::dev::{Dev, container, until};

#[test]
fn logs_are_kept_followed_and_cut_and_events_tell_the_story() {
    let Some(dev) = Dev::up(1) else { return };
    dev.apply(&[container(&dev, "web", 1)]);
    let web = dev.until_ready("web", 1).remove(0);
    let id = web.replica_id.as_str();
    dev.ask(&web, "/log?lines=5&text=alpha");
    until("all lines are there", || {
        dev.succeed(&["logs", "web"]).contains("alpha 4\n").then_some(())
    });
    assert_eq!(dev.succeed(&["logs", "web", "--tail", "2"]), "alpha 3\nalpha 4\n");

    let follower = dev.follow("web");
    follower.until("alpha 4");
    dev.crash(&web);
    let again = dev.until_replica(id, "runs again", |replica| replica.ready && replica.run == 2);
    dev.ask(&again, "/log?lines=1&text=omega");
    follower.until("omega 0");
    let followed = follower.text();
    let order = [
        "listening on port",
        "alpha 0",
        "told to crash",
        "listening on port",
        "omega 0",
    ];
    let mut rest = followed.as_str();
    for part in order {
        let (_, after) = rest
            .split_once(part)
            .unwrap_or_else(|| panic!("{part:?} is missing in:\n{followed}"));
        rest = after;
    }
    assert_eq!(
        followed.matches("alpha 2").count(),
        1,
        "no line twice:\n{followed}"
    );

    let records = dev.succeed(&["logs", "web", "-o", "json"]);
    let omega: Value = records
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .find(|record| record["line"] == "omega 0")
        .unwrap();
    assert_eq!(omega["run"], 2);
    assert_eq!(omega["replicaId"], id);
    let since = dev.succeed(&["logs", "web", "--since", omega["time"].as_str().unwrap()]);
    assert_eq!(since, "omega 0\n");
    assert_eq!(dev.berth(&["logs", "nobody"]).status.code(), Some(3));

    until("the story is told", || {
        let started: u64 = dev
            .events("ReplicaStarted", id)
            .iter()
            .filter_map(|event| event["count"].as_u64())
            .sum();
        (started == 2 && dev.events("ReplicaFailed", id).len() == 1).then_some(())
    });
    let failed = &dev.events("ReplicaFailed", id)[0];
    assert!(
        failed["message"].as_str().unwrap().contains("exit code 7"),
        "{failed}"
    );
    assert_eq!(failed["source"]["machineId"], "m1");
}
