//! Volumes and ephemeral storage: what is kept, what is limited, what goes.

use std::collections::BTreeSet;

use serde_json::json;

use super::dev::{Dev, container, output_of, stateful, until};

/// An ordinal is the same for ever: over an update, a crash, and deletion with declaring anew. So is its volume's data.
#[test]
fn stateful_replicas_keep_their_ordinal_and_their_data() {
    let Some(dev) = Dev::up(2) else { return };
    let mut writer = stateful(&dev, "writer", 2);
    dev.apply(&[writer.clone()]);
    let holds = |what: &str| {
        for (ordinal, replica) in dev.until_ready("writer", 2).iter().enumerate() {
            assert_eq!(replica.replica_id.as_str(), format!("writer-{ordinal}"), "{what}");
            assert_eq!(
                dev.ask(replica, "/env?name=ALIEN_ORDINAL"),
                ordinal.to_string(),
                "{what}"
            );
            assert_eq!(
                dev.ask(replica, "/read?path=/wal/mark"),
                format!("of-{ordinal}"),
                "{what}"
            );
        }
    };
    for (ordinal, replica) in dev.until_ready("writer", 2).iter().enumerate() {
        dev.ask(replica, &format!("/write?path=/wal/mark&text=of-{ordinal}"));
    }
    holds("at first");

    writer["env"] = json!({"ROUND": "2"});
    dev.apply(&[writer.clone()]);
    until("both run with the new environment", || {
        let answers = dev.of("writer").iter().all(|replica| {
            let answer = dev.try_ask(replica, "/env?name=ROUND");
            answer.is_ok_and(|answer| answer.body == "2")
        });
        answers.then_some(())
    });
    holds("after an update");

    let before = dev.replica("writer-1");
    dev.crash(&before);
    dev.until_replica("writer-1", "runs again", |replica| {
        replica.ready && replica.run > before.run
    });
    holds("after a crash");

    dev.delete("writer");
    dev.until_tidy();
    dev.apply(&[writer]);
    holds("after deletion and declaring anew");
    dev.until_tidy();
}

/// A full ephemeral disk hurts only its replica, and nothing of it outlives the replica.
#[test]
fn ephemeral_storage_is_limited_and_goes_with_its_replica() {
    let Some(dev) = Dev::up(1) else { return };
    let mut cache = container(&dev, "cache", 2);
    cache["resources"]["ephemeralStorage"] = json!("32Mi");
    dev.apply(&[cache.clone()]);
    let replicas = dev.until_ready("cache", 2);
    dev.ask(&replicas[0], "/write?path=/var/ephemeral/old&text=old");
    let filled = dev.ask(&replicas[0], "/fill?path=/var/ephemeral/fill&mib=100");
    assert!(filled.contains("No space left"), "{filled}");
    assert_eq!(
        dev.ask(&replicas[1], "/fill?path=/var/ephemeral/fill&mib=4"),
        "4 MiB written\n"
    );
    assert_eq!(dev.ask(&replicas[0], "/health"), "ok\n");
    assert_eq!(loop_devices(&dev).len(), 2);

    dev.delete("cache");
    dev.until_tidy();
    until("the disks of the old replicas are gone", || {
        loop_devices(&dev).is_empty().then_some(())
    });
    dev.apply(&[cache]);
    for replica in dev.until_ready("cache", 2) {
        let answer = dev.try_ask(&replica, "/read?path=/var/ephemeral/old").unwrap();
        assert_eq!(answer.status, 500, "{}", answer.body);
    }
}

fn loop_devices(dev: &Dev) -> BTreeSet<String> {
    let state = dev.state().display().to_string();
    let list = output_of("losetup", &["-l", "-n", "-O", "NAME,BACK-FILE"]);
    list.lines()
        .filter(|line| line.contains(&state))
        .map(str::to_owned)
        .collect()
}
