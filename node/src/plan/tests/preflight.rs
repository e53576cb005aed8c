//! What a daemon that starts on what is there would do to it: nothing to what runs as it should.

use super::*;
use crate::host::ObservedTask;
use crate::preflight::{Report, judge};

/// One replica that runs under revision 1, and a ledger whose set wants `wanted`.
fn judged(wanted: Vec<Assignment>, stops: Vec<Stop>) -> Report {
    let set = AssignmentSet {
        cluster_id: identity().cluster_id,
        machine_id: identity().machine_id,
        epoch: 1,
        generation: 2,
        replicas: wanted,
        stops,
    };
    let (_, position) = set.seal();
    let memory = Memory {
        run: 1,
        ..Memory::default()
    };
    let restored = Restored {
        set: Some((set, position)),
        replicas: BTreeMap::from([(id(1), memory)]),
        rebooted: false,
    };
    let running = ObservedContainer {
        replica_id: id(1),
        revision: revision(&assignment(1, 1)).to_string(),
        run: 1,
        task: ObservedTask::Running { pid: 7 },
        created_at: None,
    };
    let observed = Observed {
        containers: vec![running],
    };
    let now = Now::default();
    judge(NodeCore::new(identity(), restored, now), observed, now)
}

#[test]
fn what_runs_as_it_should_is_left_alone_and_others_may_begin() {
    let report = judged(vec![assignment(1, 1), assignment(2, 1)], vec![]);
    assert_eq!((report.running, report.of_running.len()), (1, 0), "{report:?}");
    assert!(report.of_others.contains(&"prepare r-2".into()), "{report:?}");
    // A ledger that knows less stops nothing either.
    assert_eq!(judged(vec![], vec![]).of_running.len(), 0);
}

#[test]
fn a_replacement_or_a_stop_of_what_runs_is_told() {
    let replaced = judged(vec![assignment(1, 2)], vec![]);
    assert_eq!(replaced.of_running, ["pull r-1"]);
    let stopped = judged(vec![], vec![stop(1)]);
    assert_eq!(stopped.running, 1);
    assert_eq!(stopped.of_running, ["signal r-1"], "after its drain");
}
