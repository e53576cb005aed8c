//! Rows of the fault reference, by number: the daemon or containerd go, or say nothing, while replicas run and stop.
//!
//! Each ends with what every fault must leave: one process for each replica, nothing beside ([`Dev::until_tidy`]), and a status that
//! is what the kernel says.

use std::time::Duration;

use berth_api::container::STOP_GRACE;
use berth_api::time::{Timestamp, monotonic};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::dev::{Dev, Program, container, is_alive, pid_of, signal, text, until};
use super::inspect::berthd;

/// A replica that hears SIGTERM and goes on.
fn stubborn(dev: &Dev) -> Value {
    let mut stubborn = container(dev, "stubborn", 1);
    stubborn["env"] = json!({"IGNORE_SIGTERM": "1"});
    stubborn
}

/// Until the daemon counts down to SIGKILL: SIGTERM was sent, and the deadline is recorded.
fn until_in_its_grace(dev: &Dev, id: &str) {
    until("the replica is in its grace", || {
        let explained = text(&berthd(dev, &["explain", id]).stdout);
        (explained.contains("its process to end after SIGTERM") && explained.contains("next try"))
            .then_some(())
    });
}

/// What the status says runs is what runs.
pub(super) fn status_is_reality(dev: &Dev) {
    until("the status is what the kernel says", || {
        let document = berthd(dev, &["status", "--json"]).stdout;
        let document: Value = serde_json::from_slice(&document).ok()?;
        let mut told: Vec<(String, u64)> = document["replicas"]
            .as_array()?
            .iter()
            .filter_map(|replica| {
                Some((
                    replica["replicaId"].as_str()?.to_owned(),
                    replica["pid"].as_u64()?,
                ))
            })
            .collect();
        told.sort();
        let pids = dev.pids().into_iter();
        let real: Vec<(String, u64)> = pids.map(|(id, pid)| (id, u64::from(pid))).collect();
        (told == real).then_some(())
    });
}

/// The rest of the grace counts from the recorded deadline, and the end is told though another daemon sees it.
#[test]
fn fault_02_daemon_killed_after_sigterm_was_sent() {
    let Some(dev) = Dev::up(1) else { return };
    dev.apply(&[stubborn(&dev)]);
    let replica = dev.until_ready("stubborn", 1).remove(0);
    let pid = replica.pid.unwrap();
    let daemon = dev.daemon("m1");
    let asked = monotonic();
    dev.succeed(&["delete", "--yes", "stubborn"]);
    until_in_its_grace(&dev, replica.replica_id.as_str());
    let explained = |part: &str| {
        let text = text(&berthd(&dev, &["explain", replica.replica_id.as_str()]).stdout);
        text.lines()
            .find(|line| line.starts_with(part))
            .map(str::to_owned)
    };
    let at = |line: Option<String>| line?.split_whitespace().last()?.parse::<Timestamp>().ok();
    let deadline = at(explained("next try")).unwrap();
    signal(daemon, Signal::KILL);
    dev.another(Program::Daemon, Some(daemon));
    // The replica may end before the new daemon can be asked; told, the deadline is the old one and no later.
    let told = until("the new daemon tells the deadline, or it is over", || {
        let now = at(explained("next try"));
        (now.is_some() || !is_alive(pid)).then_some(now)
    });
    if let Some(now) = told {
        let later = now.since(deadline);
        assert!(later < Duration::from_secs(2), "{later:?} later than before");
    }
    until("it has ended", || (!is_alive(pid)).then_some(()));
    assert!(
        monotonic().duration_since(asked) >= STOP_GRACE,
        "killed before its grace was over"
    );
    until("it is gone", || dev.of("stubborn").is_empty().then_some(()));
    dev.until_tidy();
    status_is_reality(&dev);
}

/// Start after start, each killed as soon as it runs, until the supervisor waits its longest between two: nothing is touched.
#[test]
fn fault_04_daemon_crash_loop() {
    let Some(dev) = Dev::up(1) else { return };
    dev.apply(&[container(&dev, "web", 4)]);
    dev.until_ready("web", 4);
    let pids = dev.pids();
    let mut daemon = dev.daemon("m1");
    for _ in 0..8 {
        signal(daemon, Signal::KILL);
        daemon = dev.another(Program::Daemon, Some(daemon));
        assert_eq!(dev.pids(), pids);
    }
    until("all are managed again", || {
        let replicas = dev.of("web");
        replicas
            .iter()
            .all(|replica| {
                replica.ready
                    && replica.run == 1
                    && replica.pid == pids.get(replica.replica_id.as_str()).copied()
            })
            .then_some(())
    });
    dev.until_tidy();
    status_is_reality(&dev);
    assert_eq!(dev.pids(), pids);
}

/// containerd says nothing, for longer than every deadline on it: the runtime is impaired, not the machine and not its replicas;
/// nothing new starts, and says why; all goes on by itself when it answers again.
#[test]
fn fault_15_containerd_mute() {
    let Some(dev) = Dev::up(1) else { return };
    dev.apply(&[container(&dev, "web", 2)]);
    dev.until_ready("web", 2);
    let pids = dev.pids();
    let containerd = pid_of(&dev.list()["containerdPid"]).unwrap();
    signal(containerd, Signal::STOP);
    dev.apply_at_once(&[container(&dev, "web", 3)]);
    let impaired = |dev: &Dev| {
        let page = text(&berthd(dev, &["status"]).stdout);
        let mut lines = page.lines();
        lines.any(|line| line.starts_with("runtime") && line.contains("impaired"))
    };
    until("the runtime is impaired", || impaired(&dev).then_some(()));
    dev.until_explained("machine/m1", "its runtime");
    // Not a wait for anything: longer than the slowest call to containerd may take.
    std::thread::sleep(Duration::from_secs(20));
    assert!(impaired(&dev));
    assert_eq!(dev.pids(), pids, "what runs runs, and nothing beside it");
    let machines = dev.json(&["get", "machines", "-o", "json"]);
    assert_eq!(machines[0]["status"], "running", "{machines}");
    let webs = dev.of("web");
    let old = webs
        .iter()
        .filter(|replica| pids.contains_key(replica.replica_id.as_str()));
    assert!(
        old.clone().count() == 2 && old.clone().all(|replica| replica.ready && replica.run == 1),
        "{webs:?}"
    );

    signal(containerd, Signal::CONT);
    dev.until_ready("web", 3);
    until("the runtime works", || (!impaired(&dev)).then_some(()));
    for (id, pid) in &pids {
        assert_eq!(dev.pids().get(id), Some(pid));
    }
    dev.until_tidy();
    status_is_reality(&dev);
}

/// containerd dies while a replica stops: it ends by the deadline all the same, and is not "stopping" for ever.
#[test]
fn fault_20_containerd_killed_during_a_stop() {
    let Some(dev) = Dev::up(1) else { return };
    dev.apply(&[container(&dev, "web", 1), stubborn(&dev)]);
    let replica = dev.until_ready("stubborn", 1).remove(0);
    let web = dev.until_ready("web", 1).remove(0);
    dev.succeed(&["delete", "--yes", "stubborn"]);
    until_in_its_grace(&dev, replica.replica_id.as_str());
    let containerd = pid_of(&dev.list()["containerdPid"]).unwrap();
    signal(containerd, Signal::KILL);
    dev.another(Program::Containerd, Some(containerd));
    until("it has ended", || (!is_alive(replica.pid.unwrap())).then_some(()));
    until("it is gone", || dev.of("stubborn").is_empty().then_some(()));
    assert_eq!(dev.pids().get(web.replica_id.as_str()).copied(), web.pid);
    dev.until_tidy();
    status_is_reality(&dev);
}
