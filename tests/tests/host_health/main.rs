//! Probes against small real servers in real network namespaces: what passes, what fails, that a slow one delays no other, and what
//! a node makes of them: who is restarted, and who is ready.

#![expect(clippy::unwrap_used, reason = "a broken step ends the test with its place")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod node;
mod room;

use std::net::Ipv4Addr;
use std::time::Duration;

use berth_api::container::{HealthCheck, ProbeKind, ProbeMethod};
use berth_api::id::ReplicaId;
use berth_api::probe::Probe;
use berth_node::health::{ProbePhase, ProbeReport, ProbeRole, ProbeTarget, Prober, Question, Rules};
use tokio::sync::mpsc;

use room::{ADDRESS, MUTE, Room};

fn check(port: u16) -> HealthCheck {
    HealthCheck {
        kind: ProbeKind::Http,
        command: vec![],
        path: "/health".into(),
        port,
        method: ProbeMethod::Get,
        timeout_seconds: 30,
        failure_threshold: 2,
    }
}

fn probe(port: u16, path: &str) -> Probe {
    Probe {
        kind: ProbeKind::Http,
        command: vec![],
        path: path.into(),
        port,
        method: ProbeMethod::Get,
        initial_delay_seconds: 0,
        period_seconds: 1,
        timeout_seconds: 30,
        success_threshold: 1,
        failure_threshold: 2,
    }
}

fn checked(id: &str, check: &HealthCheck) -> ProbeTarget {
    ProbeTarget {
        replica_id: ReplicaId::new(id).unwrap(),
        run: 1,
        role: ProbeRole::Check,
        ip: ADDRESS,
        question: Question::from(check),
        rules: Rules::check(check),
        was_ready: false,
    }
}

fn probed(id: &str, role: ProbeRole, probe: &Probe) -> ProbeTarget {
    ProbeTarget {
        role,
        question: Question::from(probe),
        rules: Rules::probe(role, probe),
        ..checked(id, &check(1))
    }
}

async fn report_of(
    reports: &mut mpsc::Receiver<ProbeReport>,
    is_wanted: impl Fn(&ProbeReport) -> bool,
) -> ProbeReport {
    let wait = async {
        loop {
            let report = reports.recv().await.unwrap();
            if is_wanted(&report) {
                return report;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(90), wait)
        .await
        .expect("a report")
}

async fn report(reports: &mut mpsc::Receiver<ProbeReport>, id: &str) -> ProbeReport {
    report_of(reports, |report| report.replica_id.as_str() == id).await
}

#[tokio::test]
async fn only_an_answer_of_2xx_in_time_passes() {
    let Some(mut room) = Room::new() else { return };
    let (sender, mut reports) = mpsc::channel(16);
    let mut prober = Prober::new(sender, room.inside());
    for (id, status, error) in [
        ("ok", 200, None),
        ("empty", 204, None),
        ("broken", 500, Some("status 500")),
        ("moved", 302, Some("status 302")),
        ("slow", MUTE, Some("no answer within 1 s")),
    ] {
        let server = room.serve(ADDRESS).await;
        server.say("/health", status);
        let mut declared = check(server.port);
        if id == "slow" {
            declared.timeout_seconds = 1;
        }
        prober.put(checked(id, &declared));
        let report = report(&mut reports, id).await;
        assert_eq!(report.last_error.as_deref(), error, "{id}");
        assert_eq!(report.passing(), error.is_none(), "{id}");
        assert_eq!(report.consecutive_failures, u32::from(error.is_some()), "{id}");
        prober.remove(&report.replica_id);
    }
    prober.put(checked("closed", &check(1)));
    let closed = report(&mut reports, "closed").await;
    let error = closed.last_error.unwrap();
    assert!(error.starts_with("connecting to port 1: "), "{error}");
    prober.shutdown().await;
}

#[tokio::test]
async fn the_declared_request_is_sent() {
    let Some(mut room) = Room::new() else { return };
    let (sender, mut reports) = mpsc::channel(16);
    let mut prober = Prober::new(sender, room.inside());
    let server = room.serve(ADDRESS).await;
    server.say("/health", 404);
    let mut declared = check(server.port);
    declared.path = "/health?deep=1".into();
    declared.method = ProbeMethod::Head;
    prober.put(checked("head", &declared));
    let head = report(&mut reports, "head").await;
    assert!(head.passing(), "{head:?}");
    assert!(server.asked("HEAD /health?deep=1") > 0);
    // Another declaration starts anew.
    prober.put(checked("head", &check(server.port)));
    let anew = report_of(&mut reports, |report| !report.passing()).await;
    assert_eq!(anew.phase, ProbePhase::Starting);
}

#[tokio::test]
async fn a_slow_replica_delays_no_other_and_a_late_one_comes_up() {
    let Some(mut room) = Room::new() else { return };
    let (sender, mut reports) = mpsc::channel(64);
    let mut prober = Prober::new(sender, room.inside());
    let slow = room.serve(ADDRESS).await;
    slow.say("/health", MUTE);
    for index in 0..20 {
        prober.put(checked(&format!("slow{index}"), &check(slow.port)));
    }
    let reserved = room.reserve(ADDRESS).await;
    let port = reserved.local_addr().unwrap().port();
    prober.put(checked("late", &check(port)));
    assert_eq!(report(&mut reports, "late").await.phase, ProbePhase::Starting);
    let listener = reserved.listen(64).unwrap();
    room.serve_on(listener);
    let up = async { while !report(&mut reports, "late").await.passing() {} };
    // One after the other, the slow ones alone would take ten minutes.
    tokio::time::timeout(Duration::from_secs(90), up)
        .await
        .expect("the late one passes while all others are slow");
}

#[tokio::test]
async fn a_slow_probe_delays_no_other_of_its_replica() {
    let Some(mut room) = Room::new() else { return };
    let (sender, mut reports) = mpsc::channel(64);
    let mut prober = Prober::new(sender, room.inside());
    let server = room.serve(ADDRESS).await;
    server.say("/ready", MUTE);
    let mut slow = probe(server.port, "/ready");
    slow.timeout_seconds = 3600;
    prober.put(probed("a", ProbeRole::Readiness, &slow));
    prober.put(probed("a", ProbeRole::Liveness, &probe(server.port, "/live")));
    let is_live = |report: &ProbeReport| report.role == ProbeRole::Liveness && report.passing();
    for _ in 0..3 {
        report_of(&mut reports, is_live).await;
    }
    server.say("/live", 500);
    let dead = report_of(&mut reports, |report| report.phase == ProbePhase::Failing).await;
    assert_eq!((dead.role, dead.consecutive_failures), (ProbeRole::Liveness, 2));
    assert_eq!(
        server.asked("GET /ready"),
        1,
        "it still waits for its first answer"
    );
    prober.shutdown().await;
}

#[tokio::test]
async fn a_port_that_accepts_passes_whatever_it_says() {
    let Some(room) = Room::new() else { return };
    let (sender, mut reports) = mpsc::channel(16);
    let mut prober = Prober::new(sender, room.inside());
    let listener = room.listen(ADDRESS).await;
    let port = listener.local_addr().unwrap().port();
    let mut declared = check(port);
    declared.kind = ProbeKind::Tcp;
    prober.put(checked("open", &declared));
    assert!(report(&mut reports, "open").await.passing());
    drop(listener);
    prober.put(checked("closed", &declared));
    let error = report(&mut reports, "closed").await.last_error.unwrap();
    assert!(
        error.starts_with(&format!("connecting to port {port}: ")),
        "{error}"
    );
    prober.shutdown().await;
}

/// It is asked from inside: from where this test runs there is no way to it.
#[tokio::test]
async fn a_server_on_the_loopback_alone_passes_a_probe_and_no_health_check() {
    let Some(mut room) = Room::new() else { return };
    let (sender, mut reports) = mpsc::channel(16);
    let mut prober = Prober::new(sender, room.inside());
    let port = room.serve(Ipv4Addr::LOCALHOST).await.port;
    let mut tcp = probe(port, "/");
    tcp.kind = ProbeKind::Tcp;
    prober.put(probed("http", ProbeRole::Readiness, &probe(port, "/health")));
    prober.put(probed("tcp", ProbeRole::Readiness, &tcp));
    prober.put(checked("check", &check(port)));
    assert!(report(&mut reports, "http").await.passing());
    assert!(report(&mut reports, "tcp").await.passing());
    // Others are to reach whoever is checked so.
    let refused = report(&mut reports, "check").await.last_error.unwrap();
    assert!(
        refused.starts_with(&format!("connecting to port {port}: ")),
        "{refused}"
    );
    prober.put(probed("closed", ProbeRole::Readiness, &probe(1, "/")));
    let refused = report(&mut reports, "closed").await.last_error.unwrap();
    assert!(refused.starts_with("connecting to port 1: "), "{refused}");
    prober.shutdown().await;
}

#[tokio::test]
async fn a_program_decides_and_a_runtime_that_does_not_answer_says_nothing() {
    let Some(room) = Room::new() else { return };
    let (sender, mut reports) = mpsc::channel(16);
    let mut prober = Prober::new(sender, room.inside());
    for (id, error) in [
        ("unanswered-at-first", None),
        ("ends", None),
        ("ended with 3", Some("ended with 3")),
    ] {
        let mut declared = check(0);
        declared.kind = ProbeKind::Exec;
        declared.command = vec![id.to_owned()];
        // Each a replica of its own: a late report of the one before is not its.
        prober.put(checked(id, &declared));
        let report = report(&mut reports, id).await;
        assert_eq!(report.last_error.as_deref(), error, "{id}");
        assert_eq!(report.consecutive_failures, u32::from(error.is_some()), "{id}");
        prober.remove(&report.replica_id);
    }
    prober.shutdown().await;
}
