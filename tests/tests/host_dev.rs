//! `berth dev` on the real kernel: what it makes, and that nothing of it is left.
//!
//! The programs are those of the build beside this test. Each test has a state directory of its own and looks for what
//! carries its instance's id: links, nft tables, mounts, loop devices, cgroups, processes, registry entries.

#![expect(
    clippy::unwrap_used,
    clippy::string_slice,
    reason = "a test fails by panicking, in its helpers too"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

/// The directory of the built programs: this test's own lies in `deps` below it.
fn programs() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().to_owned()
}

/// A place for one instance. Dropped, it ends what a failed test has left running.
struct Place {
    directory: tempfile::TempDir,
    berth: PathBuf,
}

impl Place {
    fn new(berth: PathBuf) -> Self {
        assert!(
            berth.exists(),
            "{berth:?} is not built: cargo build --workspace --bins"
        );
        let directory = tempfile::Builder::new()
            .prefix("bd")
            .tempdir_in("/var/tmp")
            .unwrap();
        Self { directory, berth }
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(&self.berth)
            .args(arguments)
            .arg("--state-dir")
            .arg(self.state())
            .env("XDG_CONFIG_HOME", self.directory.path().join("config"))
            .output()
            .unwrap()
    }

    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.succeed(arguments)).unwrap()
    }

    fn instance_id(&self) -> String {
        let record = std::fs::read(self.state().join("dev.json")).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        record["id"].as_str().unwrap().to_owned()
    }

    /// Everything on the host that belongs to the instance.
    fn left(&self, id: &str) -> BTreeSet<String> {
        let mut left = BTreeSet::new();
        let state = self.state().display().to_string();
        let lines = |text: String, word: &str| {
            text.lines()
                .filter(|line| line.contains(word))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        left.extend(lines(output_of("ip", &["-o", "link"]), &format!("bdev{id}")));
        left.extend(lines(
            output_of("nft", &["list", "tables"]),
            &format!("berth_dev_{id}"),
        ));
        left.extend(lines(
            std::fs::read_to_string("/proc/self/mountinfo").unwrap(),
            &state,
        ));
        left.extend(lines(output_of("losetup", &["-l", "-n"]), &state));
        left.extend(
            output_of(
                "find",
                &[
                    "/sys/fs/cgroup",
                    "-maxdepth",
                    "2",
                    "-name",
                    &format!("berth-dev-{id}"),
                ],
            )
            .lines()
            .map(str::to_owned),
        );
        for pid in processes_of(id) {
            left.insert(format!("process {pid}"));
        }
        for path in [
            format!("/run/berth-dev/{id}"),
            self.directory
                .path()
                .join("config/berth/context.toml")
                .display()
                .to_string(),
        ] {
            if Path::new(&path).exists() {
                left.insert(path);
            }
        }
        left
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.state().exists() {
            self.run(&["dev", "down"]);
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn output_of(program: &str, arguments: &[&str]) -> String {
    text(&Command::new(program).args(arguments).output().unwrap().stdout)
}

fn processes_of(id: &str) -> Vec<u32> {
    let marker = format!("BERTH_DEV_INSTANCE={id}");
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            std::fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|environ| environ.split(|b| *b == 0).any(|entry| entry == marker.as_bytes()))
        })
        .collect()
}

fn until(what: &str, deadline: Duration, check: impl Fn() -> bool) {
    let steps = deadline.as_millis() / 100;
    for _ in 0..steps {
        if check() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("never: {what}");
}

/// A scheduler that cannot start makes the start fail after network and containerd are there.
#[test]
fn a_start_that_fails_half_way_leaves_nothing_but_logs() {
    let bin = tempfile::Builder::new()
        .prefix("bdbin")
        .tempdir_in("/var/tmp")
        .unwrap();
    let berth = bin.path().join("berth");
    std::fs::copy(programs().join("berth"), &berth).unwrap();
    for stub in ["berth-scheduler", "berthd", "berth-logkeeper"] {
        use std::os::unix::fs::PermissionsExt as _;
        let path = bin.path().join(stub);
        std::fs::write(&path, "#!/bin/sh\necho no key; exit 7\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let place = Place::new(berth);
    let output = place.run(&["dev", "--machines", "2"]);
    assert_eq!(output.status.code(), Some(1));
    let (said, complained) = (text(&output.stdout), text(&output.stderr));
    assert!(complained.contains("scheduler keeps ending"), "{complained}");
    assert!(complained.contains("no key"), "{complained}");
    let id = said
        .split_once("bdev")
        .map(|(_, rest)| rest[..4].to_owned())
        .unwrap();
    assert_eq!(place.left(&id), BTreeSet::new());
    assert!(place.state().join("logs/scheduler.log").exists());
}

/// The whole life: up, a daemon killed, a machine off and on, the owner killed, everything away by `down`.
#[test]
fn machines_come_up_fail_return_and_leave_nothing() {
    let place = Place::new(programs().join("berth"));
    place.succeed(&[
        "dev",
        "--machines",
        "2",
        "--keep",
        "--machine-profile",
        "cpu=8,memory=16Gi,ephemeral=1Ti",
    ]);
    let id = place.instance_id();
    let machine = |index: usize| {
        let list = place.json(&["dev", "machine", "list", "-o", "json"]);
        list[index].clone()
    };
    let first = machine(0);
    let old = first["daemonPid"].as_u64().unwrap();

    // Machines reach each other and the host over the bridge.
    let other = machine(1)["ip"].as_str().unwrap().to_owned();
    let netns = format!("--net={}", first["netns"].as_str().unwrap());
    let route = output_of("nsenter", &[&netns, "ip", "route", "get", &other]);
    assert!(route.contains("dev eth0"), "{route}");

    place.succeed(&["dev", "daemon", "kill", "m1"]);
    until("another daemon of m1", Duration::from_secs(20), || {
        machine(0)["daemonPid"].as_u64().is_some_and(|pid| pid != old)
    });

    place.succeed(&["dev", "machine", "kill", "m2"]);
    assert_eq!(machine(1)["daemonPid"], Value::Null);
    assert_eq!(machine(1)["keeperPid"], Value::Null);
    place.succeed(&["dev", "machine", "start", "m2"]);
    until("m2 runs again", Duration::from_secs(20), || {
        machine(1)["daemonPid"].is_u64()
    });
    assert_eq!(
        place.run(&["dev", "machine", "kill", "m9"]).status.code(),
        Some(3)
    );

    // The owner dies without a chance to clean up: `down` works from the record.
    let owner = output_of("pgrep", &["-f", &place.state().display().to_string()]);
    let owners: Vec<&str> = owner
        .lines()
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| text(&line).contains("berth\0dev"))
        })
        .collect();
    assert!(!owners.is_empty());
    for pid in owners {
        Command::new("kill").args(["-9", pid]).status().unwrap();
    }
    assert!(!place.left(&id).is_empty());
    place.succeed(&["dev", "down"]);
    assert_eq!(place.left(&id), BTreeSet::new());
    assert!(!place.state().exists());
    // Once more is no fault.
    place.succeed(&["dev", "down"]);
}
