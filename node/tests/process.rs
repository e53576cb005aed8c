//! The program itself, without root and without a scheduler: what it tells systemd, what its subcommands say, how it ends.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use berth_api::time::monotonic;

/// Only a hang exceeds it.
const PATIENCE: Duration = Duration::from_secs(90);

struct Daemon {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn berthd(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berthd"));
    command
        .arg("--config")
        .arg(config)
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .env_remove("WATCHDOG_PID");
    command
}

/// A configuration of a machine whose scheduler nobody is.
fn configured(dir: &Path) -> PathBuf {
    let path = dir.join("berthd.toml");
    let (token, ca) = (dir.join("token"), dir.join("ca.pem"));
    std::fs::write(&token, "hj_a-token-of-this-test\n").unwrap();
    std::fs::write(&ca, "").unwrap();
    let text = format!(
        "cluster_id = \"acme/prod\"\nmachine_id = \"m1\"\ncapacity_group = \"general\"\n\
         scheduler = \"https://127.0.0.1:9\"\nca_file = {ca:?}\ntoken_file = {token:?}\nstate_dir = {:?}\n\
         run_dir = {:?}\nunderlay_ip = \"127.0.0.1\"\n[capacity]\ncpu = 1\nmemory = \"1Gi\"\n",
        dir.join("state"),
        dir.join("run"),
    );
    std::fs::write(&path, text).unwrap();
    path
}

impl Daemon {
    fn start(prepare: impl FnOnce(&Path, &mut Command)) -> Self {
        // Short: a socket lies in it.
        let dir = tempfile::Builder::new().prefix("bd").tempdir_in("/tmp").unwrap();
        let mut command = berthd(&configured(dir.path()));
        prepare(dir.path(), &mut command);
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        Self { child, dir }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        berthd(&self.dir.path().join("berthd.toml"))
            .args(arguments)
            .current_dir(self.dir.path())
            .output()
            .unwrap()
    }

    fn until(&self, what: &str, mut check: impl FnMut() -> bool) {
        let end = monotonic() + PATIENCE;
        while !check() {
            assert!(monotonic() < end, "never: {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8(both).unwrap()
}

#[test]
fn systemd_is_told_of_readiness_and_fed_while_all_loops_move() {
    let mut socket = None;
    let daemon = Daemon::start(|dir, command| {
        let path = dir.join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        listener.set_read_timeout(Some(PATIENCE)).unwrap();
        socket = Some(listener);
        command.env("NOTIFY_SOCKET", path).env("WATCHDOG_USEC", "2000000");
    });
    let socket = socket.unwrap();
    let mut told = Vec::new();
    let fed = |told: &[String]| {
        told.iter()
            .filter(|message| message.contains("WATCHDOG=1"))
            .count()
    };
    // Fed four times in the allowed time, and on when that is over though the loops have nothing to do.
    while fed(&told) < 16 || !told.iter().any(|message| message.contains("READY=1")) {
        let mut buffer = [0; 512];
        let len = socket.recv(&mut buffer).expect("systemd is told in time");
        told.push(String::from_utf8(buffer[..len].to_vec()).unwrap());
    }
    daemon.until("the status says so", || {
        let status = text(&daemon.run(&["status"]));
        status
            .lines()
            .any(|line| line.starts_with("loops") && line.contains("works"))
    });
}

#[test]
fn a_daemon_without_a_scheduler_explains_itself() {
    let daemon = Daemon::start(|_, _| ());
    daemon.until("it answers", || daemon.run(&["status"]).status.code() == Some(1));
    daemon.until("it names the scheduler that is not there", || {
        let page = text(&daemon.run(&["status"]));
        let link = page.lines().find(|line| line.starts_with("link"));
        page.contains("machine m1 of cluster acme/prod: impaired")
            && link.is_some_and(|line| line.contains("impaired") && line.contains("127.0.0.1:9"))
    });
    let document = daemon.run(&["status", "--json"]);
    let document: serde_json::Value = serde_json::from_slice(&document.stdout).unwrap();
    assert_eq!(document["machineId"], "m1");
    let explained = daemon.run(&["explain"]);
    assert!(explained.status.success(), "{}", text(&explained));
    assert!(
        text(&explained).contains("see whether the scheduler is up"),
        "{}",
        text(&explained)
    );
    let unknown = daemon.run(&["explain", "web-1"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(
        text(&unknown).contains("no replica web-1 on this machine; it has: none"),
        "{}",
        text(&unknown)
    );
}

#[test]
fn without_a_daemon_subcommands_say_so_and_a_bundle_is_written_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let config = configured(dir.path());
    let run = |arguments: &[&str]| {
        let mut command = berthd(&config);
        command.args(arguments).current_dir(dir.path()).output().unwrap()
    };
    let status = run(&["status"]);
    assert_eq!(status.status.code(), Some(2));
    assert!(
        text(&status).contains("no daemon answers at"),
        "{}",
        text(&status)
    );

    // The token stands in the configuration by mistake: that part is left out, the rest is there.
    let token = std::fs::read_to_string(dir.path().join("token")).unwrap();
    let with_token = format!("{}# {token}", std::fs::read_to_string(&config).unwrap());
    std::fs::write(&config, with_token).unwrap();
    let written = run(&["bundle", "--out", "b.tar.gz"]);
    assert!(written.status.success(), "{}", text(&written));
    assert!(
        text(&written).contains("without berthd.toml: left out: a secret of this machine"),
        "{}",
        text(&written)
    );
    let unpacked = Command::new("tar")
        .args(["-xzf", "b.tar.gz"])
        .current_dir(dir.path())
        .status()
        .unwrap();
    assert!(unpacked.success());
    let inside = dir.path().join("berth-bundle");
    let manifest = std::fs::read_to_string(inside.join("MANIFEST.txt")).unwrap();
    assert!(
        manifest.contains("status.json  missing: no daemon answers"),
        "{manifest}"
    );
    assert!(inside.join("kernel/proc/meminfo").exists() && !inside.join("berthd.toml").exists());

    // Nothing is overwritten.
    let again = run(&["bundle", "--out", "b.tar.gz"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again).contains("b.tar.gz"), "{}", text(&again));
}
