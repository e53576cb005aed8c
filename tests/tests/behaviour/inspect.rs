//! What somebody on call sees on the machine itself: `berthd status`, `explain` and `bundle`, with the scheduler dead.

use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::json;

use super::dev::{Dev, container, pid_of, signal, text, until};

const SECRET: &str = "the-password-of-a-customer";

pub(super) fn berthd(dev: &Dev, arguments: &[&str]) -> Output {
    Command::new(dev.program("berthd"))
        .arg("--config")
        .arg(dev.state().join("machines/m1/berthd.toml"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Every file below a directory, whole.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
    found
}

/// The parts of a bundle, by name.
fn bundled(dev: &Dev) -> Vec<(String, Vec<u8>)> {
    let archive = dev.path("bundle.tar.gz");
    let written = berthd(dev, &["bundle", "--out", &archive.display().to_string()]);
    assert!(written.status.success(), "{}", text(&written.stderr));
    let unpacked = Command::new("tar")
        .arg("-xzf")
        .arg(&archive)
        .arg("-C")
        .arg(dev.path(""))
        .status()
        .unwrap();
    assert!(unpacked.success());
    contents(&dev.path("berth-bundle"))
}

#[test]
fn a_machine_explains_itself_without_its_scheduler_and_bundles_no_secret() {
    let Some(dev) = Dev::up(1) else { return };
    let mut broken = container(&dev, "broken", 1);
    broken["command"] = json!(["/no/such/program"]);
    let mut web = container(&dev, "web", 1);
    web["env"] = json!({"PASSWORD": SECRET});
    dev.apply(&[web]);
    dev.apply_at_once(&[broken]);
    let scheduler = pid_of(&dev.list()["schedulerPid"]).unwrap();
    let id = until("a replica that cannot start", || {
        let replicas = dev.of("broken");
        replicas.first().map(|replica| replica.replica_id.to_string())
    });
    let page = until("the machine tells why it cannot start", || {
        let explained = text(&berthd(&dev, &["explain", &id]).stdout);
        let status = berthd(&dev, &["status"]);
        let page = text(&status.stdout);
        (explained.contains("next try") && explained.contains("/no/such/program") && page.contains(&id))
            .then_some(page)
    });
    assert!(page.contains("cluster dev"), "{page}");
    let web = dev.of("web").remove(0).replica_id;

    signal(scheduler, Signal::STOP);
    until("the link is impaired, and the rest works", || {
        let status = berthd(&dev, &["status"]);
        let page = text(&status.stdout);
        let is = |part: &str, state: &str| {
            page.lines()
                .any(|line| line.starts_with(part) && line.contains(state))
        };
        (status.status.code() == Some(1)
            && is("link", "impaired")
            && is("runtime", "works")
            && is("loops", "works"))
        .then_some(())
    });
    let explained = berthd(&dev, &["explain", web.as_str()]);
    assert!(
        text(&explained.stdout).contains("it is ready"),
        "{}",
        text(&explained.stdout)
    );

    let parts = bundled(&dev);
    signal(scheduler, Signal::CONT);
    for wanted in [
        "status.json",
        "network/rules.txt",
        "containerd/containers.txt",
        "berthd.toml",
    ] {
        assert!(
            parts.iter().any(|(name, _)| name.ends_with(wanted)),
            "{wanted} is missing"
        );
    }
    let of = |part: &str| {
        let found = parts.iter().find(|(name, _)| name.ends_with(part));
        text(&found.unwrap().1)
    };
    assert!(of("status.json").contains(web.as_str()) && of("containers.txt").contains(web.as_str()));
    let token = std::fs::read_to_string(dev.state().join("tokens/machine")).unwrap();
    for (name, content) in &parts {
        let content = String::from_utf8_lossy(content);
        for secret in [SECRET, token.trim(), "PRIVATE KEY"] {
            assert!(!content.contains(secret), "{name} holds {secret:?}");
        }
    }
    dev.delete("broken");
    dev.until_tidy();
}
