//! A stop waits for connections to end, up to its cap: what holds it, what does not, and what a daemon's death keeps.

use super::*;

const CAP: Duration = Duration::from_secs(60);
/// What peers have to stop dialling, and a little.
const UNREADY: Duration = Duration::from_millis(300);

fn running(connections: u32) -> Node {
    let mut node = Node::new();
    let assignment = Assignment {
        drain_ms: Some(60_000),
        ..assignment(0, 1)
    };
    node.offer(vec![assignment], vec![]);
    node.settle();
    node.host.connect(&id(0), connections);
    node
}

fn draining(connections: u32) -> Node {
    let mut node = running(connections);
    node.offer(vec![], vec![stop(0)]);
    node.settle();
    node
}

fn words(node: &Node) -> String {
    node.status(0).wait.map(|wait| wait.reason).unwrap_or_default()
}

#[test]
fn without_connections_a_stop_goes_on_at_once() {
    let mut node = draining(0);
    assert!(!node.status(0).ready, "first it is found no more");
    assert_eq!(words(&node), "peers to stop dialling it");
    node.pass(UNREADY);
    node.settle();
    assert_eq!(node.status(0).phase, Phase::Gone);
}

#[test]
fn an_open_connection_holds_a_stop_until_it_ends() {
    let mut node = draining(2);
    node.pass(UNREADY);
    node.settle();
    let until = Timestamp::from_millis(1_700_000_060_000);
    assert_eq!(words(&node), format!("draining: 2 connections, until {until}"));
    node.host.connect(&id(0), 1);
    node.pass(CAP / 2);
    node.settle();
    assert_eq!(words(&node), format!("draining: 1 connection, until {until}"));
    let status = node.status(0);
    assert_eq!(
        (status.phase, status.ready, status.pid),
        (Phase::Stopping, false, node.pid(0))
    );
    node.host.connect(&id(0), 0);
    node.turn();
    node.settle();
    assert_eq!(node.status(0).phase, Phase::Gone);
}

#[test]
fn a_stop_waits_for_connections_until_its_cap_and_then_has_its_whole_grace() {
    let mut node = draining(1);
    node.host.ignore_term(&id(0));
    node.pass(CAP - Duration::from_millis(1));
    node.settle();
    assert!(
        words(&node).starts_with("draining: 1 connection"),
        "{}",
        words(&node)
    );
    node.pass(Duration::from_millis(1));
    node.settle();
    assert!(words(&node).contains("after SIGTERM"), "{}", words(&node));
    node.pass(Duration::from_millis(9_999));
    node.settle();
    assert!(node.pid(0).is_some(), "the grace is not over");
    node.pass(Duration::from_millis(1));
    node.settle();
    assert_eq!(node.status(0).phase, Phase::Gone);
}

/// However often it dies, the deadline is the one that was written first.
#[test]
fn a_daemon_that_dies_keeps_the_deadline() {
    let mut node = draining(1);
    let mut said = None;
    for _ in 0..5 {
        node.pass(CAP / 6);
        node.restart(false);
        node.settle();
        let words = words(&node);
        assert!(words.starts_with("draining: 1 connection, until "), "{words}");
        assert_eq!(said.get_or_insert_with(|| words.clone()), &words);
    }
    node.pass(CAP / 6);
    node.settle();
    assert_eq!(node.status(0).phase, Phase::Gone);
}

/// Until it is known that nobody is connected, somebody may be.
#[test]
fn a_count_that_fails_holds_a_stop_until_its_cap() {
    let mut node = running(0);
    let core_alone = |node: &mut Node, passed: Duration| {
        node.now.boot = node.now.boot.plus(passed);
        node.now.wall = node.now.wall.plus(passed);
        node.core.advance(node.now)
    };
    node.offer(vec![], vec![stop(0)]);
    let output = core_alone(&mut node, CAP - Duration::from_millis(1));
    assert!(output.steps.is_empty(), "{output:?}");
    assert_eq!(node.core.draining(node.now), [id(0)]);
    let output = core_alone(&mut node, Duration::from_millis(1));
    assert!(
        matches!(
            output.steps.as_slice(),
            [(
                _,
                Step::Signal {
                    signal: Signal::Term,
                    ..
                }
            )]
        ),
        "{output:?}"
    );
}

#[test]
fn an_update_drains_and_a_replica_found_dead_does_not() {
    let mut node = running(1);
    node.offer(vec![assignment(0, 2)], vec![]);
    node.settle();
    node.pass(UNREADY);
    node.settle();
    assert!(
        words(&node).starts_with("draining: 1 connection"),
        "{}",
        words(&node)
    );
    node.host.connect(&id(0), 0);
    node.turn();
    node.settle();
    assert_eq!((node.status(0).run, node.status(0).ready), (2, true));

    let mut node = running(0);
    let check = HealthCheck {
        kind: ProbeKind::Tcp,
        command: vec![],
        path: "/".into(),
        port: 80,
        method: ProbeMethod::Get,
        timeout_seconds: 1,
        failure_threshold: 1,
    };
    let checked = Assignment {
        health_check: Some(check),
        ..assignment(0, 3)
    };
    node.offer(vec![checked], vec![]);
    node.settle();
    node.pass(UNREADY);
    node.settle();
    assert_eq!(node.status(0).run, 2);
    node.host.connect(&id(0), 9);
    for (phase, failures) in [(ProbePhase::Passing, 0), (ProbePhase::Failing, 4)] {
        node.core.probed(ProbeReport {
            replica_id: id(0),
            run: node.status(0).run,
            role: ProbeRole::Check,
            phase,
            consecutive_failures: failures,
            last_error: None,
        });
    }
    node.turn();
    node.pass(UNREADY);
    node.settle();
    assert_eq!(node.status(0).run, 3);
}

/// What is wanted again before SIGTERM runs on, and is found again.
#[test]
fn a_drain_that_is_called_off_leaves_the_process_as_it_was() {
    let mut node = draining(1);
    node.pass(UNREADY);
    node.settle();
    let pid = node.pid(0);
    let again = Assignment {
        drain_ms: Some(60_000),
        ..assignment(0, 1)
    };
    node.offer(vec![again], vec![]);
    node.pass(CAP);
    node.settle();
    assert!(node.status(0).ready);
    assert_eq!((node.pid(0), node.status(0).run), (pid, 1));
}
