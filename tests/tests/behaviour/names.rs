//! Names: ready replicas only, ordinals, and connections by name across machines.

use std::collections::BTreeSet;

use super::dev::{Dev, container, stateful, until};

#[test]
fn names_give_ready_replicas_and_connect_machines() {
    let Some(dev) = Dev::up(2) else { return };
    // 30 of these fill more than one machine's wish for cpu: both machines get some.
    let mut web = container(&dev, "web", 3);
    web["resources"]["cpu"] = serde_json::json!({"min": "0.1", "desired": "1.5"});
    dev.apply(&[web, stateful(&dev, "writer", 2)]);
    let webs = dev.until_ready("web", 3);
    let machines: BTreeSet<_> = webs.iter().map(|replica| replica.machine_id.clone()).collect();
    assert_eq!(machines.len(), 2, "they are on both machines");
    let addresses = |without: Option<usize>| -> BTreeSet<_> {
        let all = webs
            .iter()
            .enumerate()
            .filter(|(index, _)| Some(*index) != without);
        all.map(|(_, replica)| replica.ip.unwrap()).collect()
    };
    for from in &webs {
        until("web.svc gives all", || {
            (dev.resolve(from, "web.svc") == addresses(None)).then_some(())
        });
        for writer in dev.until_ready("writer", 2) {
            let name = format!("{}.writer.svc", writer.replica_id);
            until("the ordinal is found", || {
                (dev.resolve(from, &name) == BTreeSet::from([writer.ip.unwrap()])).then_some(())
            });
            until("it answers under its name", || {
                let answer = dev
                    .try_ask(from, &format!("/fetch?url=http://{name}:8080/"))
                    .ok()?;
                let own = format!("replica={}", writer.replica_id);
                (answer.status == 200 && answer.body.contains(&own)).then_some(())
            });
        }
    }
    // Between machines both ways, by address of each.
    for (from, to) in [(&webs[0], &webs[2]), (&webs[2], &webs[0])] {
        until("one machine's replica reaches the other's", || {
            let address = format!("/fetch?url=http://{}:8080/", to.ip.unwrap());
            let answer = dev.try_ask(from, &address).ok()?;
            (answer.status == 200 && answer.body.contains(to.replica_id.as_str())).then_some(())
        });
    }
    assert!(dev.resolve(&webs[0], "nobody.svc").is_empty());
    assert!(dev.resolve(&webs[0], "writer-7.writer.svc").is_empty());

    dev.ask(&webs[0], "/unhealthy");
    for from in &webs {
        until("the unhealthy one is not named", || {
            (dev.resolve(from, "web.svc") == addresses(Some(0))).then_some(())
        });
    }
    dev.ask(&webs[0], "/healthy");
    until("it is named again", || {
        (dev.resolve(&webs[2], "web.svc") == addresses(None)).then_some(())
    });
    assert_eq!(
        dev.replica(webs[0].replica_id.as_str()).run,
        1,
        "it was never restarted"
    );
}
