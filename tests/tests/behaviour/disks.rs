//! Rows of the fault reference about disks: that of a machine's state full, or neither failing nor answering, and that of its images
//! without a place for another file.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use berth_api::rest::operator::ReplicaView;
use rustix::process::Signal;
use serde_json::Value;

use super::dev::{Dev, Program, container, signal, stateful, text, until};
use super::inspect::berthd;
use super::outages::status_is_reality;

/// What file system the state of a machine is moved to.
enum Disk {
    Tmpfs,
    /// ext4 in a file, which can be frozen.
    Ext4,
}

/// 24 MiB: the reserve, and as much as must be free before it counts as room, and some.
const SIZE: &str = "24M";

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        text(&output.stderr)
    );
}

/// Moves the state of the first machine to a file system of its own, while the machine is off.
fn move_state(dev: &Dev, disk: &Disk) -> PathBuf {
    let state = dev.state().join("machines/m1/state");
    dev.dev(&["machine", "kill", "m1", "--silent"]);
    let (kept, at) = (dev.path("kept"), state.display().to_string());
    run("cp", &["-a", &at, &kept.display().to_string()]);
    match disk {
        Disk::Tmpfs => run(
            "mount",
            &["-t", "tmpfs", "-o", &format!("size={SIZE}"), "state", &at],
        ),
        Disk::Ext4 => {
            let file = dev.path("disk").display().to_string();
            run("truncate", &["-s", SIZE, &file]);
            run("mkfs.ext4", &["-q", "-m", "0", &file]);
            run("mount", &["-o", "loop", &file, &at]);
        }
    }
    run("cp", &["-a", &format!("{}/.", kept.display()), &at]);
    let before = dev.machine("m1")["daemonPid"].clone();
    assert!(before.is_null(), "it is off: {before}");
    dev.dev(&["machine", "start", "m1"]);
    state
}

/// Writes until there is no room.
fn fill(ballast: &Path) {
    let mut file = std::fs::File::create(ballast).unwrap();
    for size in [1 << 16, 1 << 12, 1] {
        while file.write_all(&vec![0xa5; size]).is_ok() {}
    }
}

/// What the daemon says of a part of it; none when all is well.
fn fault_of(dev: &Dev, part: &str) -> Option<String> {
    let document: Value = serde_json::from_slice(&berthd(dev, &["status", "--json"]).stdout).ok()?;
    let parts = document["machine"]["subsystems"].as_array()?;
    let found = parts.iter().find(|found| found["name"] == part)?;
    (found["ok"] == false).then(|| found["reason"].as_str().unwrap_or_default().to_owned())
}

fn until_fault(dev: &Dev, part: &str) {
    until(&format!("the daemon says {part:?} of its storage"), || {
        fault_of(dev, "storage").filter(|fault| fault.contains(part))
    });
}

fn until_no_fault(dev: &Dev, part: &str) {
    until(&format!("its {part} works"), || {
        let page = text(&berthd(dev, &["status"]).stdout);
        let mut lines = page.lines();
        lines
            .any(|line| line.starts_with(part) && line.contains("works"))
            .then_some(())
    });
}

/// No room for the ledger, with the reserve and then without it: what runs is restarted from memory, nothing new starts and says why,
/// a daemon that is killed comes back and knows all, and everything goes on alone when there is room.
#[test]
fn fault_09_state_file_system_full() {
    let Some(dev) = Dev::up(1) else { return };
    let state = move_state(&dev, &Disk::Tmpfs);
    dev.apply(&[container(&dev, "web", 2)]);
    let webs = dev.until_ready("web", 2);
    until_no_fault(&dev, "storage");
    let reserve = state.join("ledger.sqlite.reserve");
    assert!(reserve.exists(), "room is kept");

    let ballast = state.join("ballast");
    fill(&ballast);
    dev.crash(&webs[0]);
    let id = webs[0].replica_id.as_str();
    dev.until_replica(id, "runs again, on a full disk", |replica| {
        replica.ready && replica.run == 2
    });
    until_fault(&dev, "file system is full");
    until("the reserve is given up", || (!reserve.exists()).then_some(()));
    dev.apply_at_once(&[container(&dev, "web", 3), container(&dev, "other", 1)]);
    dev.until_explained("other", "file system is full");
    dev.until_explained("machine/m1", "file system is full");
    assert_eq!(dev.pids().len(), 2, "nothing new starts");
    // Stops are kept in what the reserve held.
    dev.apply_at_once(&[container(&dev, "web", 1)]);
    until("one is stopped", || (dev.pids().len() == 1).then_some(()));

    fill(&state.join("more ballast"));
    let left = dev.until_ready("web", 1).remove(0);
    dev.crash(&left);
    let id = left.replica_id.as_str();
    let again = dev.until_replica(id, "runs again, from memory", |replica| {
        replica.ready && replica.run > left.run
    });
    let daemon = dev.daemon("m1");
    signal(daemon, Signal::KILL);
    dev.another(Program::Daemon, Some(daemon));
    until_fault(&dev, "file system is full");
    dev.until_replica(id, "is managed by the new daemon", |replica| {
        replica.ready && replica.pid == again.pid
    });
    assert_eq!(dev.pids().len(), 1, "nothing new starts");

    for file in [ballast, state.join("more ballast")] {
        std::fs::remove_file(file).unwrap();
    }
    dev.until_ready("other", 1);
    until_no_fault(&dev, "storage");
    until("room is kept again", || reserve.exists().then_some(()));
    dev.apply(&[container(&dev, "web", 2)]);
    assert_eq!(dev.pids().get(id).copied(), again.pid, "it ran on all the time");
    dev.until_tidy();
    status_is_reality(&dev);
}

/// Thaws when dropped: a frozen file system cannot be unmounted, nor its writers ended.
struct Frozen(String);

impl Frozen {
    fn new(at: &Path) -> Self {
        let at = at.display().to_string();
        run("fsfreeze", &["-f", &at]);
        Self(at)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(Command::new("fsfreeze").args(["-u", &self.0]).status());
    }
}

/// The disk of the ledger takes writes and never ends them: the daemon says so instead of "works", goes on with what it has, and takes
/// what came meanwhile when the disk answers.
#[test]
fn fault_09_state_file_system_hangs() {
    let Some(dev) = Dev::up(1) else { return };
    let state = move_state(&dev, &Disk::Ext4);
    dev.apply(&[container(&dev, "web", 2)]);
    let webs = dev.until_ready("web", 2);
    until_no_fault(&dev, "storage");

    let frozen = Frozen::new(&state);
    dev.crash(&webs[0]);
    let id = webs[0].replica_id.as_str();
    dev.until_replica(id, "runs again, from memory", |replica| {
        replica.ready && replica.run == 2
    });
    until_fault(&dev, "disk has not answered since");
    dev.until_explained("machine/m1", "disk has not answered since");
    // Again, and now nobody waits for the disk any more.
    dev.crash(&webs[1]);
    dev.until_replica(webs[1].replica_id.as_str(), "runs again", |replica| {
        replica.ready && replica.run == 2
    });
    dev.apply_at_once(&[container(&dev, "web", 3)]);
    let machines = dev.json(&["get", "machines", "-o", "json"]);
    assert_eq!(machines[0]["status"], "running", "{machines}");
    assert_eq!(dev.pids().len(), 2, "nothing new starts");
    let pids = dev.pids();

    drop(frozen);
    dev.until_ready("web", 3);
    until_no_fault(&dev, "storage");
    for (id, pid) in &pids {
        assert_eq!(dev.pids().get(id), Some(pid), "{id} runs on");
    }
    dev.until_tidy();
    status_is_reality(&dev);
}

/// Fills the root of a replica with empty files, so many at most; how many it took.
fn scatter(replica: &ReplicaView, count: usize) -> usize {
    let root = format!("/proc/{}/root", replica.pid.unwrap());
    let made = (0..count).take_while(|number| std::fs::File::create(format!("{root}/file-{number}")).is_ok());
    made.count()
}

/// A replica without storage of its own uses up the inodes of the disk that all share: the machine says so and who holds them, starts
/// that one anew without what it wrote, and leaves alone a stateful one that holds more, and everybody else.
#[test]
fn fault_52_inodes_used_up() {
    const INODES: usize = 4000;
    let small = |directory: &Path| {
        let file = directory.join("disk").display().to_string();
        let at = directory.join("state/containerd");
        std::fs::create_dir_all(&at).unwrap();
        run("truncate", &["-s", "512M", &file]);
        run("mkfs.ext4", &["-q", "-N", &INODES.to_string(), &file]);
        run("mount", &["-o", "loop", &file, &at.display().to_string()]);
    };
    let Some(dev) = Dev::up_after(1, small) else {
        return;
    };
    dev.apply(&[
        container(&dev, "web", 1),
        container(&dev, "hog", 1),
        stateful(&dev, "writer", 1),
    ]);
    until_no_fault(&dev, "disk");
    let (web, hog, writer) = (
        dev.until_ready("web", 1).remove(0),
        dev.until_ready("hog", 1).remove(0),
        dev.until_ready("writer", 1).remove(0),
    );
    assert_eq!(scatter(&writer, INODES / 2), INODES / 2);
    let made = scatter(&hog, INODES);
    assert!(
        (INODES / 20..INODES / 2).contains(&made),
        "{made} until there was none"
    );

    let id = hog.replica_id.as_str();
    let again = dev.until_replica(id, "runs again, with nothing written", |replica| {
        replica.ready && replica.run == 2
    });
    assert!(!Path::new(&format!("/proc/{}/root/file-0", again.pid.unwrap())).exists());
    until_no_fault(&dev, "disk");
    let log = std::fs::read_to_string(dev.state().join("logs/m1-berthd.log")).unwrap();
    let told = log
        .lines()
        .find(|line| line.contains("impaired") && line.contains("inodes of the disk"))
        .unwrap();
    assert!(
        told.contains(id) && told.contains(writer.replica_id.as_str()),
        "{told}"
    );
    until("an event tells why it was ended", || {
        let events = dev.json(&["events", "-o", "json", "--limit", "1000"]);
        let events = events["events"].as_array()?;
        events
            .iter()
            .any(|event| {
                event["involvedObject"]["id"] == id && event.to_string().contains("inodes of the disk")
            })
            .then_some(())
    });
    for other in [web, writer] {
        let now = dev.replica(other.replica_id.as_str());
        assert_eq!((now.pid, now.run), (other.pid, 1), "{} runs on", other.replica_id);
    }
    dev.until_tidy();
    status_is_reality(&dev);
}
