//! What the three probes make of a replica: who is asked, who is ready, who is restarted, and what a daemon's death keeps.

use berth_api::probe::{Probe, Probes};

use super::*;

fn probe() -> Option<Probe> {
    Some(Probe {
        kind: ProbeKind::Http,
        command: vec![],
        path: "/".into(),
        port: 80,
        method: ProbeMethod::Get,
        initial_delay_seconds: 0,
        period_seconds: 10,
        timeout_seconds: 1,
        success_threshold: 1,
        failure_threshold: 3,
    })
}

fn running(probes: Probes) -> Node {
    let mut node = Node::new();
    let assignment = Assignment {
        probes: Some(probes),
        ..assignment(0, 1)
    };
    node.offer(vec![assignment], vec![]);
    node.settle();
    node
}

fn all() -> Probes {
    Probes {
        startup: probe(),
        readiness: probe(),
        liveness: probe(),
    }
}

fn asked(node: &Node) -> Vec<(ProbeRole, bool)> {
    let targets = node.core.probes();
    targets
        .into_iter()
        .map(|target| (target.role, target.was_ready))
        .collect()
}

fn report(node: &mut Node, role: ProbeRole, phase: ProbePhase, failures: u32) {
    node.core.probed(ProbeReport {
        replica_id: id(0),
        run: node.status(0).run,
        role,
        phase,
        consecutive_failures: failures,
        last_error: (failures > 0).then(|| "status 500".to_owned()),
    });
    node.turn();
    node.settle();
}

/// What is declared, what is found, and what becomes of it.
type Case = (Probes, Vec<(ProbeRole, ProbePhase, u32)>, Phase, bool);

fn cases() -> Vec<Case> {
    use ProbePhase::{Failing, Passing, Starting};
    use ProbeRole::{Liveness, Readiness, Startup};
    let only = |startup, readiness, liveness| Probes {
        startup,
        readiness,
        liveness,
    };
    vec![
        (only(None, None, probe()), vec![], Phase::Healthy, true),
        (
            only(None, None, probe()),
            vec![(Liveness, Passing, 2)],
            Phase::Healthy,
            true,
        ),
        (only(probe(), None, None), vec![], Phase::Started, false),
        (
            only(probe(), None, None),
            vec![(Startup, Starting, 2)],
            Phase::Started,
            false,
        ),
        (
            only(probe(), None, None),
            vec![(Startup, Passing, 0)],
            Phase::Healthy,
            true,
        ),
        (only(None, probe(), None), vec![], Phase::Started, false),
        (
            only(None, probe(), None),
            vec![(Readiness, Starting, 9)],
            Phase::Started,
            false,
        ),
        (
            only(None, probe(), None),
            vec![(Readiness, Passing, 2)],
            Phase::Healthy,
            true,
        ),
        (
            only(None, probe(), None),
            vec![(Readiness, Passing, 0), (Readiness, Failing, 300)],
            Phase::Unhealthy,
            false,
        ),
        (
            only(None, probe(), None),
            vec![
                (Readiness, Passing, 0),
                (Readiness, Failing, 3),
                (Readiness, Passing, 0),
            ],
            Phase::Healthy,
            true,
        ),
        (all(), vec![(Readiness, Passing, 0)], Phase::Started, false),
        (all(), vec![(Startup, Passing, 0)], Phase::Started, false),
        (
            all(),
            vec![(Startup, Passing, 0), (Readiness, Passing, 0)],
            Phase::Healthy,
            true,
        ),
    ]
}

#[test]
fn readiness_follows_from_what_is_declared_and_found() {
    for (probes, reports, phase, ready) in cases() {
        let mut node = running(probes.clone());
        for (role, phase, failures) in &reports {
            report(&mut node, *role, *phase, *failures);
        }
        node.pass(Duration::from_secs(3600));
        node.settle();
        let status = node.status(0);
        assert_eq!(
            (status.phase, status.ready, status.run),
            (phase, ready, 1),
            "{probes:?} {reports:?}"
        );
    }
}

#[test]
fn a_startup_probe_holds_the_others_back_in_every_run() {
    let mut node = running(all());
    assert_eq!(asked(&node), [(ProbeRole::Startup, false)]);
    report(&mut node, ProbeRole::Startup, ProbePhase::Passing, 0);
    let others = [(ProbeRole::Readiness, false), (ProbeRole::Liveness, false)];
    assert_eq!(asked(&node), others);
    node.exit(0, 1);
    node.turn();
    node.settle();
    assert_eq!(node.status(0).run, 2);
    assert_eq!(asked(&node), [(ProbeRole::Startup, false)]);
}

#[test]
fn startup_and_liveness_restart_with_their_own_words() {
    for (role, began) in [(ProbeRole::Startup, false), (ProbeRole::Liveness, true)] {
        let mut node = running(all());
        if began {
            report(&mut node, ProbeRole::Startup, ProbePhase::Passing, 0);
            report(&mut node, ProbeRole::Readiness, ProbePhase::Passing, 0);
        }
        report(&mut node, role, ProbePhase::Failing, 3);
        node.pass(Duration::from_secs(1));
        node.settle();
        let status = node.status(0);
        assert_eq!((status.run, status.ready, status.recent_crashes), (2, false, 1));
        let error = format!("{role} failed 3 times in a row: status 500");
        assert_eq!(status.cause, Some(Cause::Health { error }));
        // The next one waits as after any crash.
        report(&mut node, ProbeRole::Startup, ProbePhase::Failing, 3);
        node.pass(Duration::from_secs(1));
        node.settle();
        assert_eq!(node.status(0).phase, Phase::Backoff, "{role}");
    }
}

#[test]
fn a_daemon_that_died_finds_it_as_it_was() {
    let mut node = running(all());
    node.restart(false);
    assert_eq!(asked(&node), [(ProbeRole::Startup, false)]);
    report(&mut node, ProbeRole::Startup, ProbePhase::Passing, 0);
    report(&mut node, ProbeRole::Readiness, ProbePhase::Passing, 0);
    node.restart(false);
    assert!(node.status(0).ready);
    let others = [(ProbeRole::Readiness, true), (ProbeRole::Liveness, false)];
    assert_eq!(asked(&node), others);
    report(&mut node, ProbeRole::Readiness, ProbePhase::Failing, 3);
    node.restart(false);
    assert!(!node.status(0).ready, "what was out stays out");
    assert_eq!(asked(&node)[0], (ProbeRole::Readiness, false));
}
