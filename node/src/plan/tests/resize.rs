//! Limits change while the process runs: by a step of their own, once, and never by a restart.

use super::*;

fn squeezed(n: usize) -> Assignment {
    Assignment {
        granted: Some(half()),
        ..assignment(n, 1)
    }
}

fn resizes(node: &Node) -> usize {
    let calls = node.host.calls();
    calls.iter().filter(|(verb, _)| *verb == Verb::Resize).count()
}

#[test]
fn more_is_granted_to_the_running_process() {
    let mut node = Node::new();
    node.offer(vec![squeezed(0)], vec![]);
    node.settle();
    assert_eq!(node.host.caps(&id(0)), Some(half()), "made with what is granted");
    let (pid, status) = (node.pid(0), node.status(0));
    node.offer(vec![assignment(0, 1)], vec![]);
    assert!(matches!(node.queue.front(), Some((_, Step::Resize { .. }))));
    assert!(node.status(0).ready, "it serves meanwhile");
    node.settle();
    assert_eq!(node.host.caps(&id(0)), Some(assignment(0, 1).caps()));
    assert_eq!((node.pid(0), node.status(0).run), (pid, status.run));
    assert_eq!(node.status(0).phase, Phase::Healthy);
    node.observe();
    node.settle();
    assert_eq!(resizes(&node), 1, "once");
}

#[test]
fn a_daemon_that_starts_again_knows_what_was_done() {
    let mut node = Node::new();
    node.offer(vec![squeezed(0)], vec![]);
    node.settle();
    node.offer(vec![assignment(0, 1)], vec![]);
    node.settle();
    node.restart(false);
    node.settle();
    assert_eq!(resizes(&node), 1);
    // Killed between the effect and its record: the step is done again.
    node.offer(vec![squeezed(0)], vec![]);
    node.restart(true);
    node.settle();
    assert_eq!(resizes(&node), 3);
    assert_eq!(node.host.caps(&id(0)), Some(half()));
}

#[test]
fn without_its_ledger_a_node_sets_the_limits_again() {
    let mut node = Node::new();
    node.offer(vec![squeezed(0)], vec![]);
    node.settle();
    let pid = node.pid(0);
    node.rows.clear();
    node.boot_core(false);
    node.settle();
    assert_eq!((resizes(&node), node.pid(0)), (1, pid));
}

#[test]
fn limits_that_cannot_be_set_are_tried_again_and_stop_nothing() {
    let mut node = Node::new();
    node.offer(vec![squeezed(0)], vec![]);
    node.settle();
    let pid = node.pid(0);
    for _ in 0..2 {
        let error = HostError::busy("it uses more");
        node.host.fail_next(Verb::Resize, When::Before, error);
    }
    node.offer(vec![assignment(0, 1)], vec![]);
    node.settle();
    let status = node.status(0);
    assert!(status.ready && status.phase == Phase::Healthy, "{status:?}");
    let wait = status.wait.unwrap();
    assert!(
        wait.reason.contains("it uses more") && wait.next_attempt.is_some(),
        "{wait:?}"
    );
    assert_eq!(
        (status.recent_crashes, status.cause),
        (0, None),
        "no failure of the process"
    );
    node.pass(Duration::from_secs(2));
    node.settle();
    assert_eq!(resizes(&node), 2, "the second attempt fails as well");
    node.pass(Duration::from_secs(10));
    node.settle();
    assert_eq!(node.host.caps(&id(0)), Some(assignment(0, 1).caps()));
    assert_eq!((node.pid(0), node.status(0).wait), (pid, None));
}

#[test]
fn a_stop_does_not_wait_for_limits_that_cannot_be_set() {
    let mut node = Node::new();
    node.offer(vec![squeezed(0)], vec![]);
    node.settle();
    let error = HostError::infrastructure("no");
    node.host.fail_next(Verb::Resize, When::Before, error);
    node.offer(vec![assignment(0, 1)], vec![]);
    node.settle();
    node.offer(vec![], vec![stop(0)]);
    node.pass(Duration::from_secs(1));
    node.settle();
    assert_eq!(node.status(0).phase, Phase::Gone);
}

#[test]
fn limits_that_were_set_by_an_attempt_that_failed_are_set_back() {
    let mut node = Node::new();
    node.offer(vec![squeezed(0)], vec![]);
    node.settle();
    let error = HostError::infrastructure("the answer is lost");
    node.host.fail_next(Verb::Resize, When::After, error);
    node.offer(vec![assignment(0, 1)], vec![]);
    node.settle();
    assert_eq!(node.host.caps(&id(0)), Some(assignment(0, 1).caps()));
    node.offer(vec![squeezed(0)], vec![]);
    node.pass(Duration::from_secs(10));
    node.settle();
    assert_eq!(node.host.caps(&id(0)), Some(squeezed(0).caps()));
}
