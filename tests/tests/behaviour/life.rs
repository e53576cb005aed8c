//! One replica's life: limits, health, crashes, the end.

use std::collections::BTreeSet;

use berth_api::container::STOP_GRACE;
use berth_api::replica::{Cause, Phase};
use berth_api::time::monotonic;
use rustix::process::Signal;
use serde_json::json;

use super::dev::{Dev, Program, container, is_alive, output_of, signal, text, until};
use super::inspect::berthd;

/// Memory, processor and processes are limited, and who exceeds the memory is told so.
#[test]
fn limits_take_effect_and_are_explained() {
    let Some(dev) = Dev::up(1) else { return };
    dev.apply(&[container(&dev, "web", 1)]);
    let web = dev.until_ready("web", 1).remove(0);
    let id = web.replica_id.as_str();

    // A quarter of a processor for a second; more than half would be no limit.
    let burned: u64 = dev.ask(&web, "/burn?threads=4&ms=1000").trim().parse().unwrap();
    assert!(burned <= 500, "{burned} ms of processor time");

    let files = output_of("find", &["/sys/fs/cgroup", "-path", &format!("*/{id}/pids.max")]);
    let file = files
        .lines()
        .next()
        .unwrap_or_else(|| panic!("no pids limit for {id}"));
    assert_eq!(std::fs::read_to_string(file).unwrap().trim(), "4096");

    drop(dev.try_ask(&web, "/allocate?mib=200"));
    let after = dev.until_replica(id, "runs again", |replica| replica.ready && replica.run == 2);
    assert_eq!(after.cause, Some(Cause::OutOfMemory));
    let explanation = dev.explain(id).to_string();
    assert!(explanation.contains("out of memory"), "{explanation}");
    assert!(
        dev.events("ReplicaFailed", id)
            .iter()
            .any(|event| event["message"].as_str().unwrap().contains("memory"))
    );
}

/// As many as make the pauses, 8 s and then 16 s, longer than a look at them takes on a crowded machine.
const CRASHES: u32 = 5;

/// A crashing replica is restarted with growing pauses, the loop is shown, and it ends by itself.
#[test]
fn a_crash_loop_is_shown_and_held_back() {
    let Some(dev) = Dev::up(1) else { return };
    dev.apply(&[container(&dev, "web", 1)]);
    let web = dev.until_ready("web", 1).remove(0);
    let id = web.replica_id.as_str();
    for crash in 1..=CRASHES {
        let now = dev.until_replica(id, "is ready", |replica| replica.ready && replica.run == crash);
        dev.crash(&now);
    }
    let held = dev.until_replica(id, "is held back", |replica| {
        let next = replica.wait.as_ref().and_then(|wait| wait.next_attempt);
        replica.phase == Some(Phase::Backoff) && replica.recent_crashes == CRASHES && next.is_some()
    });
    assert_eq!(held.cause, Some(Cause::Exit { code: 7 }));
    until("the loop is an event", || {
        (!dev.events("ContainerCrashLoop", id).is_empty()).then_some(())
    });
    dev.until_replica(id, "comes back by itself", |replica| {
        replica.ready && replica.run == CRASHES + 1
    });
    // The container is called failing for as long as the loop is not over.
    signal(dev.replica(id).pid.unwrap(), Signal::KILL);
    until("the container is failing because of the loop", || {
        let list = dev.json(&["get", "containers", "-o", "json"]);
        let web = &list[0];
        (web["status"] == "failing" && web["statusReason"] == "CrashLoopBackOff").then_some(())
    });
    let explanation = dev.until_explained("web", "next try").to_string();
    assert!(
        explanation.contains("berth logs"),
        "says what helps: {explanation}"
    );
    let replica = dev.replica(id);
    assert_eq!(replica.cause, Some(Cause::Signal { signal: 9 }));
    assert_eq!(dev.processes().len(), 0, "held back, not running");
}

/// A replica whose check fails for long is restarted, with the check as the cause.
#[test]
fn a_replica_that_stays_unhealthy_is_restarted() {
    let Some(dev) = Dev::up(1) else { return };
    let mut web = container(&dev, "web", 1);
    web["healthCheck"]["failureThreshold"] = json!(1);
    dev.apply(&[web]);
    let web = dev.until_ready("web", 1).remove(0);
    let id = web.replica_id.as_str();
    dev.ask(&web, "/unhealthy");
    let sick = dev.until_replica(id, "is unhealthy", |replica| {
        replica.phase == Some(Phase::Unhealthy)
    });
    assert!(!sick.ready);
    assert_eq!(sick.pid, web.pid, "not restarted at once");
    dev.until_explained(id, "status 500");
    let again = dev.until_replica(id, "runs again", |replica| replica.ready && replica.run == 2);
    assert!(
        matches!(again.cause, Some(Cause::Health { .. })),
        "{:?}",
        again.cause
    );
}

/// Readiness by a connection and by a program inside the replica; one that fails is told with what it did.
#[test]
fn checks_by_tcp_and_by_program_decide_who_is_ready() {
    let Some(dev) = Dev::up(1) else { return };
    let checked = |name: &str, check: serde_json::Value| {
        let mut declaration = container(&dev, name, 1);
        declaration["healthCheck"] = check;
        declaration
    };
    let program = |code: &str| {
        let command = json!(["/bin/berth-test-workload", "exit", code]);
        json!({"kind": "exec", "command": command, "timeoutSeconds": 5, "failureThreshold": 1})
    };
    dev.apply_at_once(&[
        checked("tcp", json!({"kind": "tcp", "timeoutSeconds": 5})),
        checked("deaf", json!({"kind": "tcp", "port": 8081, "timeoutSeconds": 5})),
        checked("fine", program("0")),
        checked("sick", program("3")),
    ]);
    dev.until_ready("tcp", 1);
    dev.until_ready("fine", 1);
    dev.until_explained(dev.of("deaf")[0].replica_id.as_str(), "connecting to port 8081");
    dev.until_explained(dev.of("sick")[0].replica_id.as_str(), "ended with 3");
    assert!(!dev.of("deaf")[0].ready && !dev.of("sick")[0].ready);
}

/// Startup holds back, readiness takes the name away and gives it back, liveness restarts, and each says so.
#[test]
fn probes_hold_back_take_out_and_restart() {
    let Some(dev) = Dev::up(1) else { return };
    let probed = |name: &str, probes: serde_json::Value| {
        let mut declaration = container(&dev, name, 1);
        declaration.as_object_mut().unwrap().remove("healthCheck");
        declaration["probes"] = probes;
        declaration
    };
    let asks = |path: &str| json!({"path": path, "periodSeconds": 1, "timeoutSeconds": 5});
    let mut slow = asks("/read?path=/started");
    slow["failureThreshold"] = json!(1000);
    dev.apply_at_once(&[
        probed("flap", json!({"startup": slow, "readiness": asks("/health")})),
        probed("dead", json!({"liveness": asks("/health")})),
    ]);
    let dead = dev.until_ready("dead", 1).remove(0);
    let flap = dev.of("flap").remove(0);
    let id = flap.replica_id.as_str();
    dev.until_explained(id, "its startup probe has not passed yet: status 500");
    assert!(
        dev.resolve(&dead, "flap.svc").is_empty(),
        "not found before it has started"
    );
    until("it takes the word that it has started", || {
        dev.try_ask(&dev.replica(id), "/write?path=/started&text=yes")
            .ok()
    });
    let flap = dev.until_ready("flap", 1).remove(0);
    let found = BTreeSet::from([flap.ip.unwrap()]);
    for _ in 0..2 {
        until("it is found", || {
            (dev.resolve(&dead, "flap.svc") == found).then_some(())
        });
        dev.ask(&flap, "/unhealthy");
        until("it is not found", || {
            dev.resolve(&dead, "flap.svc").is_empty().then_some(())
        });
        dev.until_explained(id, "its readiness probe failed");
        dev.ask(&flap, "/healthy");
    }
    until("it is found again", || {
        (dev.resolve(&dead, "flap.svc") == found).then_some(())
    });
    let after = dev.until_ready("flap", 1).remove(0);
    assert_eq!((after.run, after.pid), (flap.run, flap.pid), "never restarted");
    dev.ask(&dead, "/unhealthy");
    let dead = dev.until_replica(dead.replica_id.as_str(), "runs again", |replica| {
        replica.ready && replica.run == 2
    });
    assert!(
        matches!(&dead.cause, Some(Cause::Health { error }) if error.contains("liveness probe failed 3 times")),
        "{:?}",
        dead.cause
    );
}

/// An open connection holds a stop until it ends, also over the death of the daemon, or until the cap has passed; nobody finds the
/// replica meanwhile.
#[test]
fn a_stop_waits_for_connections_up_to_its_cap() {
    let Some(dev) = Dev::up(1) else { return };
    let draining = |name: &str, seconds: u32| {
        let mut declaration = container(&dev, name, 1);
        declaration["drainSeconds"] = json!(seconds);
        declaration
    };
    dev.apply(&[
        draining("patient", 3600),
        draining("hasty", 1),
        container(&dev, "web", 1),
    ]);
    let [patient, hasty, web] = ["patient", "hasty", "web"].map(|name| dev.until_ready(name, 1).remove(0));
    let held = dev.hold(&patient);
    let cut = dev.hold(&hasty);
    dev.succeed(&["delete", "--yes", "patient"]);
    dev.succeed(&["delete", "--yes", "hasty"]);
    let id = patient.replica_id.as_str();
    let words = |replica: &berth_api::rest::operator::ReplicaView| {
        let wait = replica.wait.as_ref().map(|wait| wait.reason.clone());
        wait.filter(|reason| reason.starts_with("draining: 1 connection, until "))
    };
    let first = dev.until_replica(id, "drains", |replica| words(replica).is_some());
    assert_eq!((first.ready, first.pid), (false, patient.pid));
    dev.until_explained(id, "draining: 1 connection");
    assert!(
        dev.resolve(&web, "patient.svc").is_empty(),
        "nobody is sent there"
    );
    let before = dev.another(Program::Daemon, None);
    signal(before, Signal::KILL);
    dev.another(Program::Daemon, Some(before));
    // Its own word, not what the scheduler has from the one before.
    let said = words(&first).unwrap();
    until("the next daemon goes on with the same deadline", || {
        text(&berthd(&dev, &["status"]).stdout)
            .contains(&said)
            .then_some(())
    });
    assert_eq!(dev.replica(id).pid, patient.pid);
    // Its connection is open still: the cap has passed.
    until("the hasty one has ended", || {
        dev.of("hasty").is_empty().then_some(())
    });
    drop(cut);
    assert!(dev.find(id).is_some(), "held by its connection");
    drop(held);
    until("the patient one has ended", || {
        dev.of("patient").is_empty().then_some(())
    });
    dev.until_tidy();
}

/// SIGTERM first; SIGKILL only for those that do not end within the grace.
#[test]
fn deletion_asks_before_it_kills() {
    let Some(dev) = Dev::up(1) else { return };
    let mut stubborn = container(&dev, "stubborn", 1);
    stubborn["env"] = json!({"IGNORE_SIGTERM": "1"});
    dev.apply(&[container(&dev, "polite", 1), stubborn]);
    let log = dev.follow("polite");
    log.until("listening on port");
    let pid = dev.of("stubborn")[0].pid.unwrap();
    let asked = monotonic();
    dev.succeed(&["delete", "--yes", "stubborn"]);
    dev.succeed(&["delete", "--yes", "polite"]);
    log.until("SIGTERM: ending");
    until("the stubborn one has ended", || (!is_alive(pid)).then_some(()));
    // However slow the machine is, the grace is never shorter.
    assert!(
        monotonic().duration_since(asked) >= STOP_GRACE,
        "killed before its grace was over"
    );
    until("both are gone", || {
        (dev.of("polite").is_empty() && dev.of("stubborn").is_empty()).then_some(())
    });
    dev.until_tidy();
}
