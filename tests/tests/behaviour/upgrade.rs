//! The daemon and the log keeper are replaced while replicas log: nothing stops, no line is lost, and a version that is not ready goes
//! by itself.
//!
//! The "new version" is a copy of the same program with a byte behind it: another file of another digest. One that is broken is a
//! script in its place.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use berth_api::assignment::Digest;
use berth_api::rest::operator::ReplicaView;
use berth_api::time::monotonic;
use serde_json::{Value, json};

use super::dev::{Dev, container, text, until};
use super::inspect::berthd;

const BERTHD: &str = "berthd";
const KEEPER: &str = "berth-logkeeper";
/// As the fault reference asks for.
const REPLICAS: usize = 50;

/// Containers of the workload that count in their logs, small enough for many.
fn counting(dev: &Dev, name: &str, replicas: usize) -> Value {
    let mut declaration = container(dev, name, u32::try_from(replicas).unwrap());
    declaration["env"] = json!({"LOG_PER_SECOND": "20"});
    declaration["resources"] = json!({
        "cpu": {"min": "0.05", "desired": "0.05"}, "memory": {"min": "32Mi", "desired": "32Mi"},
    });
    declaration
}

/// The same program as another file.
fn copied(dev: &Dev, program: &str) -> PathBuf {
    let path = dev.path(&format!("new-{program}"));
    std::fs::copy(dev.program(program), &path).unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"\n").unwrap();
    path
}

/// A program that passes its preflight, and does this where it is to be the daemon.
fn broken(dev: &Dev, does: &str) -> PathBuf {
    let path = dev.path("broken");
    let script = format!("#!/bin/sh\ncase \"$*\" in *preflight) exit 0 ;; esac\n{does}\n");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn sha256(path: &Path) -> String {
    Digest::of(&std::fs::read(path).unwrap()).to_string()
}

fn upgrade(dev: &Dev, program: &str, to: &Path, options: &[&str]) -> Output {
    let to_text = to.display().to_string();
    let digest = sha256(to);
    let arguments = [
        "upgrade",
        "--program",
        program,
        "--to",
        &to_text,
        "--sha256",
        &digest,
    ];
    let output = berthd(dev, &[&arguments, options].concat());
    eprintln!("{}{}", text(&output.stdout), text(&output.stderr));
    output
}

/// The file that a program of the machine runs from.
fn runs_from(dev: &Dev, member: &str) -> PathBuf {
    until("the program runs", || {
        let pid = dev.machine("m1")[member].as_u64()?;
        std::fs::read_link(format!("/proc/{pid}/exe")).ok()
    })
}

fn programs(dev: &Dev) -> PathBuf {
    dev.state().join("machines/m1/programs")
}

/// The sockets that questions for names come to, as the kernel numbers them.
fn name_sockets(dev: &Dev) -> BTreeSet<String> {
    let daemon = dev.daemon("m1");
    let mut found = BTreeSet::new();
    for table in ["udp", "tcp"] {
        let table = std::fs::read_to_string(format!("/proc/{daemon}/net/{table}")).unwrap();
        for line in table.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            // Port 53, bound or listening.
            if words[1].ends_with(":0035") && ["07", "0A"].contains(&words[3]) {
                found.insert(words[9].to_owned());
            }
        }
    }
    found
}

/// Asks for a name all the time; how long it was unanswered at most.
struct Asker {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Asker {
    /// Asks within `replica`, which finds itself under `name`.
    fn start(dev: &Dev, replica: &ReplicaView, name: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, ask) = (Arc::clone(&stop), dev.asker(replica, name));
        let thread = std::thread::spawn(move || {
            let (mut longest, mut answered) = (Duration::ZERO, monotonic());
            while !stopped.load(Ordering::Relaxed) {
                if ask() {
                    longest = longest.max(answered.elapsed());
                    answered = monotonic();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            longest.max(answered.elapsed())
        });
        Self { stop, thread }
    }

    fn end(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

#[test]
fn fault_08_upgrade_under_load() {
    let Some(dev) = Dev::up(1) else { return };
    dev.apply(&[counting(&dev, "web", REPLICAS - 1), counting(&dev, "named", 1)]);
    dev.until_ready("web", REPLICAS - 1);
    let named = dev.until_ready("named", 1).remove(0);
    let pids = dev.pids();
    assert_eq!(pids.len(), REPLICAS);
    until("its name is answered", || {
        (!dev.resolve(&named, "named.svc").is_empty()).then_some(())
    });
    let sockets = name_sockets(&dev);
    assert_eq!(sockets.len(), 2, "{sockets:?}");
    for (number, program) in [BERTHD, KEEPER, BERTHD].into_iter().enumerate() {
        let member = if program == BERTHD {
            "daemonPid"
        } else {
            "keeperPid"
        };
        let new = copied(&dev, program);
        let mut file = std::fs::OpenOptions::new().append(true).open(&new).unwrap();
        writeln!(file, "{number}").unwrap();
        if program == BERTHD {
            // Something to prepare in the midst of it.
            dev.apply_at_once(&[counting(&dev, &format!("late-{number}"), 1)]);
        }
        let asker = Asker::start(&dev, &named, "named.svc");
        let done = upgrade(&dev, program, &new, &[]);
        assert!(done.status.success(), "{program}");
        until("its name is answered again", || {
            (!dev.resolve(&named, "named.svc").is_empty()).then_some(())
        });
        eprintln!("{program}: names were unanswered for at most {:?}", asker.end());
        assert_eq!(
            name_sockets(&dev),
            sockets,
            "{program}: what was asked meanwhile was kept"
        );
        let runs = runs_from(&dev, member);
        assert_eq!(runs.parent().unwrap(), programs(&dev), "{program}");
        assert_eq!(sha256(&runs), sha256(&new), "{program}");
        assert!(!programs(&dev).join("upgrade.json").exists());
    }
    for late in ["late-0", "late-2"] {
        dev.until_ready(late, 1);
    }
    let mut after = dev.pids();
    after.retain(|replica, _| pids.contains_key(replica));
    assert_eq!(after, pids, "no restart");
    // From the first line to some that were written since.
    for replica in pids.keys() {
        dev.until_counted(replica, dev.counted(replica) + 20);
    }
    dev.until_tidy();
}

#[test]
fn a_version_that_ends_or_hangs_or_is_another_goes_by_itself() {
    let Some(dev) = Dev::up(1) else { return };
    dev.apply(&[counting(&dev, "web", 2)]);
    dev.until_ready("web", 2);
    let pids = dev.pids();
    let former = runs_from(&dev, "daemonPid");
    let before = dev.daemon("m1");

    // Nothing is begun with the wrong file, nor with one that would do harm: the daemon is not even asked to end.
    let new = copied(&dev, BERTHD);
    let wrong = "0".repeat(64);
    let refused = berthd(
        &dev,
        &["upgrade", "--to", &new.display().to_string(), "--sha256", &wrong],
    );
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    assert!(
        text(&refused.stderr).contains("SHA-256"),
        "{}",
        text(&refused.stderr)
    );
    let workload = dev.path("not-a-daemon");
    std::fs::write(&workload, "#!/bin/sh\necho I am none; exit 2\n").unwrap();
    let refused = upgrade(&dev, BERTHD, &workload, &[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("I am none"));
    assert_eq!(dev.daemon("m1"), before);

    // kill -STOP is a hang: the process is there and hears no SIGTERM.
    for does in ["exit 1", "kill -STOP $$"] {
        let back = upgrade(&dev, BERTHD, &broken(&dev, does), &["--ready-within", "10"]);
        assert_eq!(back.status.code(), Some(1), "{does}");
        assert!(text(&back.stderr).contains("the former is back"), "{does}");
        assert_eq!(runs_from(&dev, "daemonPid"), former, "{does}");
        assert!(!programs(&dev).join("upgrade.json").exists(), "{does}");
    }
    // And after all that a good one is taken.
    assert!(upgrade(&dev, BERTHD, &new, &[]).status.success());
    assert_eq!(sha256(&runs_from(&dev, "daemonPid")), sha256(&new));
    assert_eq!(dev.pids(), pids);
    for replica in pids.keys() {
        dev.until_counted(replica, dev.counted(replica) + 20);
    }
}

/// Starts an upgrade and kills it just after the switch.
fn cut_off(dev: &Dev, to: &Path) {
    let config = dev.state().join("machines/m1/berthd.toml");
    let mut child = Command::new(dev.program(BERTHD))
        .arg("--config")
        .arg(config)
        .args(["upgrade", "--ready-within", "30", "--sha256", &sha256(to), "--to"])
        .arg(to)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let switched = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("switched")));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(switched.is_some(), "killed after the switch");
    assert!(programs(dev).join("upgrade.json").exists(), "it was not over");
}

#[test]
fn an_upgrade_that_is_killed_is_finished_or_undone_by_the_next() {
    let Some(dev) = Dev::up(1) else { return };
    dev.apply(&[counting(&dev, "web", 2)]);
    dev.until_ready("web", 2);
    let pids = dev.pids();
    let former = runs_from(&dev, "daemonPid");

    cut_off(&dev, &broken(&dev, "kill -STOP $$"));
    let undone = berthd(&dev, &["upgrade"]);
    assert_eq!(undone.status.code(), Some(1), "{}", text(&undone.stderr));
    assert_eq!(runs_from(&dev, "daemonPid"), former);

    let new = copied(&dev, BERTHD);
    cut_off(&dev, &new);
    let finished = berthd(&dev, &["upgrade"]);
    assert!(finished.status.success(), "{}", text(&finished.stderr));
    assert_eq!(sha256(&runs_from(&dev, "daemonPid")), sha256(&new));
    let nothing = berthd(&dev, &["upgrade"]);
    assert!(text(&nothing.stdout).contains("nothing was begun"));
    assert_eq!(dev.pids(), pids);
    for replica in pids.keys() {
        dev.until_counted(replica, dev.counted(replica) + 20);
    }
}
