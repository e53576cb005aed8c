//! The certificate of a machine is renewed while replicas log: what runs notices nothing, and a renewal that fails is tried again.

use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::dev::{Dev, Program, container, signal, until};
use super::inspect::berthd;

fn is_linked(dev: &Dev) -> bool {
    let document = berthd(dev, &["status", "--json"]).stdout;
    let Ok(document) = serde_json::from_slice::<Value>(&document) else {
        return false;
    };
    let parts = document["machine"]["subsystems"].as_array().unwrap();
    parts
        .iter()
        .any(|part| part["name"] == "link" && part["ok"] == true)
}

/// When the scheduler said that the certificate is to be renewed.
fn renew_at(file: &Path) -> String {
    let enrolment: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    enrolment["renewAt"].as_str().unwrap().to_owned()
}

#[test]
fn a_certificate_is_renewed_under_load_and_again_after_a_failure() {
    let Some(dev) = Dev::up(1) else { return };
    let mut web = container(&dev, "web", 2);
    web["env"] = json!({"LOG_PER_SECOND": "50"});
    dev.apply(&[web]);
    dev.until_ready("web", 2);
    let pids = dev.pids();
    let follower = dev.follow("web");
    let state = dev.state().join("machines/m1/state");
    let (certificate, enrolment) = (state.join("machine.pem"), state.join("enrolment.json"));
    let first = std::fs::read(&certificate).unwrap();

    // It is due, and the disk takes no new one: the session goes on under the present one.
    let text = std::fs::read_to_string(&enrolment).unwrap();
    let due = renew_at(&enrolment);
    let past = text.replace(&due, "2026-01-01T00:00:00.000Z");
    assert_ne!(past, text);
    std::fs::write(&enrolment, past).unwrap();
    let obstacle = state.join("machine.pem.part");
    std::fs::create_dir(&obstacle).unwrap();
    let daemon = dev.daemon("m1");
    signal(daemon, Signal::KILL);
    dev.another(Program::Daemon, Some(daemon));
    until("a renewal has failed", || {
        dev.words_of("m1-berthd")
            .contains("cannot renew the certificate")
            .then_some(())
    });
    until("the session goes on", || is_linked(&dev).then_some(()));
    assert_eq!(std::fs::read(&certificate).unwrap(), first);
    let daemon = dev.daemon("m1");

    std::fs::remove_dir(&obstacle).unwrap();
    until("it is renewed", || {
        (std::fs::read(&certificate).unwrap() != first).then_some(())
    });
    until("what came with it is kept", || {
        (*renew_at(&enrolment) > *"2026-02-01").then_some(())
    });
    until("the next session", || is_linked(&dev).then_some(()));
    assert_eq!(dev.daemon("m1"), daemon, "no restart was needed");
    assert_eq!(dev.pids(), pids);
    for replica in pids.keys() {
        dev.until_counted(replica, dev.counted(replica) + 100);
    }
    drop(follower);
}

/// As after more than a day without a scheduler: the certificate is nobody's, and TLS itself refuses it.
#[test]
fn a_machine_whose_certificate_is_refused_enrols_again_with_its_token_and_key() {
    let Some(dev) = Dev::up(1) else { return };
    dev.apply(&[container(&dev, "web", 1)]);
    dev.until_ready("web", 1);
    let pids = dev.pids();
    let state = dev.state().join("machines/m1/state");
    let (certificate, enrolment) = (state.join("machine.pem"), state.join("enrolment.json"));
    let key = rcgen::KeyPair::from_pem(&std::fs::read_to_string(state.join("machine.key")).unwrap()).unwrap();
    let stranger = rcgen::CertificateParams::default()
        .self_signed(&key)
        .unwrap()
        .pem();
    std::fs::write(&certificate, &stranger).unwrap();
    let text = std::fs::read_to_string(&enrolment).unwrap();
    let past = text.replace(&renew_at(&enrolment), "2026-01-01T00:00:00.000Z");
    std::fs::write(&enrolment, past).unwrap();
    let daemon = dev.daemon("m1");
    signal(daemon, Signal::KILL);
    dev.another(Program::Daemon, Some(daemon));
    until("it has another certificate", || {
        (std::fs::read_to_string(&certificate).unwrap() != stranger).then_some(())
    });
    until("it is linked", || is_linked(&dev).then_some(()));
    assert_eq!(dev.pids(), pids);
}
