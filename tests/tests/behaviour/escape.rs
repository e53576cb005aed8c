//! What a program in a replica can do to its machine and its neighbours: nothing.

use serde_json::json;

use super::dev::{Dev, container};

/// Sixty-odd known ways out, tried by root in a replica as it runs by default.
#[test]
fn a_replica_escapes_by_no_known_way() {
    let Some(dev) = Dev::up(1) else { return };
    let mut prisoner = container(&dev, "prisoner", 1);
    prisoner["command"] = json!(["/bin/berth-test-workload", "escape"]);
    prisoner.as_object_mut().unwrap().remove("healthCheck");
    dev.apply(&[prisoner]);
    let log = dev.follow("prisoner");
    log.until("tried ");
    let text = log.text();
    assert!(text.contains(", could 0"), "{text}");
}
