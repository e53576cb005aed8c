//! Disks that are full: nothing new begins that may not be kept, and who holds a used up disk is started anew.

use super::*;
use crate::host::Scarce;

fn pressure(holders: &[(usize, u64)]) -> DiskPressure {
    DiskPressure {
        path: "/images".into(),
        scarce: Scarce::Inodes,
        free: 10,
        total: 1000,
        holders: holders.iter().map(|(n, held)| (id(*n), *held)).collect(),
    }
}

#[test]
fn what_never_ran_waits_while_nothing_may_be_kept() {
    let mut node = Node::new();
    node.offer(vec![assignment(0, 1)], vec![]);
    node.settle();
    node.core.storage(Some("the ledger's file system is full".into()));
    node.offer(vec![assignment(0, 1), assignment(1, 1)], vec![]);
    node.settle();
    let waiting = node.status(1);
    assert_eq!((waiting.phase, waiting.pid), (Phase::Assigned, None));
    assert!(waiting.wait.unwrap().reason.contains("is full"));
    // What ran before comes up again, and what is to stop stops.
    node.exit(0, 1);
    node.settle();
    assert_eq!((node.status(0).phase, node.status(0).run), (Phase::Healthy, 2));
    node.core.storage(None);
    node.turn();
    node.settle();
    assert_eq!(node.status(1).phase, Phase::Healthy);
}

#[test]
fn the_one_that_holds_the_most_and_no_state_is_started_anew_alone() {
    let mut node = Node::new();
    let mut assigned: Vec<_> = (0..4).map(|n| assignment(n, 1)).collect();
    // Only the first keeps state.
    for stateless in &mut assigned[1..] {
        stateless.ordinal = None;
    }
    node.offer(assigned, vec![]);
    node.settle();
    let before: Vec<_> = (0..4).map(|n| node.pid(n)).collect();
    let found = pressure(&[(0, 500), (1, 300), (2, 100), (3, 49)]);
    node.core.short_of_disk(&found, node.now);
    // One at a time.
    node.core.short_of_disk(&found, node.now);
    node.turn();
    node.settle();
    node.pass(Duration::from_secs(30));
    node.settle();
    let evicted = node.status(1);
    assert_eq!((evicted.phase, evicted.run), (Phase::Healthy, 2));
    let cause = evicted.cause.unwrap().to_string();
    assert!(
        cause.contains("it held 300") && cause.contains("inodes"),
        "{cause}"
    );
    for n in [0, 2, 3] {
        assert_eq!(node.pid(n), before[n], "{n} runs on");
    }
    // Who holds little is left alone, and state always.
    node.core.short_of_disk(&pressure(&[(0, 900), (3, 49)]), node.now);
    node.turn();
    node.settle();
    assert_eq!((node.pid(0), node.pid(3)), (before[0], before[3]));
    assert_eq!((node.status(0).run, node.status(3).run), (1, 1));
}
