//! The scheduler's SQLite store on a real file system that is cut off from its power, filled, and made read-only. Needs root.
//!
//! A power cut: the store lies on ext4 on a loop device. The process that writes to it is stopped at some moment, and the
//! bytes that ext4 had given to the device until then are copied: what was written and not flushed is not among them. The
//! copy is mounted, which replays the journal of ext4 as after a real cut, and the store is opened on it. It must open,
//! and every record whose append had returned must be there. `BERTH_POWER_CUTS=200` makes 200 cuts instead of 12. Those cuts
//! come by chance; [`points`] ends the process at each place of a list.

#![expect(clippy::unwrap_used, reason = "a broken step ends the test with its place")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod points;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_api::id::ClusterId;
use berth_scheduler::store::{Snapshot, Sqlite, Store, StoreError};
use rustix::process::{Pid, Signal, kill_process};

const STORE: &str = "BERTH_POWER_CUT_STORE";
const CLUSTERS: u64 = 3;
const SNAPSHOT_EVERY: u64 = 40;
const CUTS: u64 = 12;
const IMAGE_BYTES: u64 = 48 << 20;

fn skip_without_root(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED {test}: needs root for mounts");
    }
    !is_root
}

fn cluster(number: u64) -> ClusterId {
    ClusterId::new(format!("c{number}")).unwrap()
}

/// From 10 bytes to 6 KiB, so that commits begin and end anywhere in a page.
fn payload(number: u64, seq: u64) -> Vec<u8> {
    let len = 10 + (seq * 1009 + number * 307) % 6000;
    let text = format!("{number}-{seq}-");
    text.bytes().cycle().take(usize::try_from(len).unwrap()).collect()
}

fn must(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A mounted file system; unmounted when dropped, its loop device freed.
struct Mounted {
    dir: PathBuf,
    device: Option<String>,
}

impl Mounted {
    fn tmpfs(dir: &Path, size: &str) -> Self {
        let at = dir.join("tmpfs");
        std::fs::create_dir(&at).unwrap();
        let options = format!("size={size}");
        must(
            "mount",
            &["-t", "tmpfs", "-o", &options, "none", at.to_str().unwrap()],
        );
        Self {
            dir: at,
            device: None,
        }
    }

    fn image(image: &Path, at: PathBuf) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        let device = must("losetup", &["--find", "--show", image.to_str().unwrap()]);
        let mounted = Self {
            dir: at,
            device: Some(device.clone()),
        };
        must("mount", &["-t", "ext4", &device, mounted.dir.to_str().unwrap()]);
        mounted
    }

    /// Writes to the device so far, as the kernel counts them; none while some are under way.
    fn written(&self) -> Option<String> {
        let device = self.device.as_ref().unwrap().trim_start_matches("/dev/");
        let stat = std::fs::read_to_string(format!("/sys/block/{device}/stat")).unwrap();
        let fields: Vec<&str> = stat.split_whitespace().collect();
        // Writes completed, sectors written, in flight: Documentation/block/stat.rst of the kernel.
        (fields[8] == "0").then(|| format!("{} {}", fields[4], fields[6]))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.dir).status());
        if let Some(device) = &self.device {
            drop(Command::new("losetup").args(["--detach", device]).status());
        }
    }
}

/// The process that writes, and what it has acknowledged.
struct Writer {
    child: Child,
    acknowledged: Arc<Mutex<BTreeMap<u64, u64>>>,
}

impl Writer {
    fn start(store: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["writes_until_it_is_killed", "--exact", "--ignored", "--nocapture"])
            .env(STORE, store)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let acknowledged = Arc::new(Mutex::new(BTreeMap::new()));
        let noted = acknowledged.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Some((number, seq)) = line.strip_prefix("acknowledged ").and_then(|l| l.split_once(' '))
                else {
                    continue;
                };
                noted
                    .lock()
                    .unwrap()
                    .insert(number.parse().unwrap(), seq.parse().unwrap());
            }
        });
        Self { child, acknowledged }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Stops every thread of it, wherever it is, and returns when none runs.
    fn freeze(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        let is_stopped = |task: &Path| {
            let stat = std::fs::read_to_string(task.join("stat")).unwrap_or_default();
            stat.rsplit_once(')')
                .is_none_or(|(_, rest)| rest.trim_start().starts_with('T'))
        };
        while !std::fs::read_dir(&tasks)
            .unwrap()
            .all(|task| is_stopped(&task.unwrap().path()))
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The last records whose append had returned; called while it is frozen.
    fn acknowledged(&self) -> BTreeMap<u64, u64> {
        loop {
            let before = self.acknowledged.lock().unwrap().clone();
            std::thread::sleep(Duration::from_millis(10));
            // What the pipe still held has been read by now, or the next round sees more.
            let after = self.acknowledged.lock().unwrap().clone();
            if before == after {
                return after;
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test]
#[ignore = "the program that the test of power cuts starts"]
async fn writes_until_it_is_killed() {
    let Ok(path) = std::env::var(STORE) else { return };
    let store = Sqlite::open(Path::new(&path)).unwrap();
    let store = &store;
    let write = |number: u64| async move {
        let mut next = 1;
        loop {
            let count = 1 + next % 3;
            let payloads = (next..next + count).map(|seq| payload(number, seq)).collect();
            next = store.append(&cluster(number), next, payloads).await.unwrap();
            let mut out = std::io::stdout().lock();
            writeln!(out, "acknowledged {number} {}", next - 1).unwrap();
            drop(out);
            if next % SNAPSHOT_EVERY < count {
                let snapshot = Snapshot {
                    seq: next - 1,
                    payload: payload(number, next - 1),
                };
                store.snapshot(&cluster(number), snapshot).await.unwrap();
            }
        }
    };
    futures::future::join_all((0..CLUSTERS).map(write)).await;
}

#[tokio::test]
async fn a_power_cut_loses_nothing_that_was_acknowledged() {
    if skip_without_root("a_power_cut_loses_nothing_that_was_acknowledged") {
        return;
    }
    let cuts = std::env::var("BERTH_POWER_CUTS")
        .ok()
        .and_then(|cuts| cuts.parse().ok())
        .unwrap_or(CUTS);
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    std::fs::File::create(&image)
        .unwrap()
        .set_len(IMAGE_BYTES)
        .unwrap();
    must("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
    let disk = Mounted::image(&image, dir.path().join("disk"));
    let writer = Writer::start(&disk.dir.join("store.db"));
    let mut checked = 0;
    for cut in 0..cuts {
        // A different moment each time; what is going on then is chance.
        std::thread::sleep(Duration::from_millis(30 + cut * 37 % 101));
        writer.freeze();
        let acknowledged = writer.acknowledged();
        let copy = dir.path().join("copy");
        loop {
            let before = disk.written();
            std::fs::copy(&image, &copy).unwrap();
            // The kernel's own write-back may have come between: then the copy is of no one moment.
            if before.is_some() && disk.written() == before {
                break;
            }
        }
        writer.signal(Signal::CONT);
        checked += check(&copy, &dir.path().join("after"), &acknowledged).await;
    }
    assert!(checked > 0, "something had been acknowledged");
}

/// Opens the store as it is after the cut; how many acknowledged records were asked for.
async fn check(image: &Path, at: &Path, acknowledged: &BTreeMap<u64, u64>) -> u64 {
    let disk = Mounted::image(image, at.to_path_buf());
    let store = Sqlite::open(&disk.dir.join("store.db")).unwrap();
    for (number, last) in acknowledged {
        let history = store.load(&cluster(*number)).await.unwrap();
        assert!(
            history.next_seq > *last,
            "cluster {number}: record {last} was acknowledged, {} is next",
            history.next_seq
        );
        if let Some(snapshot) = &history.snapshot {
            assert_eq!(snapshot.payload, payload(*number, snapshot.seq));
        }
        for record in &history.records {
            assert_eq!(
                record.payload,
                payload(*number, record.seq),
                "record {}",
                record.seq
            );
        }
        let next = store
            .append(&cluster(*number), history.next_seq, vec![Vec::new()])
            .await
            .unwrap();
        assert_eq!(next, history.next_seq + 1);
    }
    acknowledged.values().sum()
}

#[tokio::test]
async fn a_full_disk_is_said_and_service_resumes_when_there_is_room() {
    if skip_without_root("a_full_disk_is_said_and_service_resumes_when_there_is_room") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = Mounted::tmpfs(dir.path(), "4m");
    let store = Sqlite::open(&disk.dir.join("store.db")).unwrap();
    let id = cluster(0);
    let mut next = store.append(&id, 1, vec![b"first".to_vec()]).await.unwrap();
    let ballast = disk.dir.join("ballast");
    std::fs::write(&ballast, vec![7; 3 << 20]).unwrap();
    let refused = loop {
        match store.append(&id, next, vec![vec![b'x'; 50_000]]).await {
            Ok(after) => next = after,
            Err(error) => break error,
        }
        assert!(next < 100, "4 MiB take fewer than 100 records of 50 kB");
    };
    assert!(matches!(refused, StoreError::Full { .. }), "{refused:?}");
    let text = refused.to_string();
    assert!(text.contains("store.db") && text.contains("make room"), "{text}");
    assert_eq!(
        store.load(&id).await.unwrap().next_seq,
        next,
        "nothing of it was kept"
    );
    std::fs::remove_file(&ballast).unwrap();
    let after = store.append(&id, next, vec![b"last".to_vec()]).await.unwrap();
    assert_eq!(store.load(&id).await.unwrap().next_seq, after);
}

#[tokio::test]
async fn a_read_only_disk_is_said_and_left_alone() {
    if skip_without_root("a_read_only_disk_is_said_and_left_alone") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = Mounted::tmpfs(dir.path(), "4m");
    let path = disk.dir.join("store.db");
    let store = Sqlite::open(&path).unwrap();
    store
        .append(&cluster(0), 1, vec![b"first".to_vec()])
        .await
        .unwrap();
    drop(store);
    let at = disk.dir.to_str().unwrap();
    must("mount", &["-o", "remount,ro", at]);
    let refused = Sqlite::open(&path).unwrap_err();
    let words = format!("{refused}: {:?}", std::error::Error::source(&refused));
    assert!(words.contains("store.") && words.contains("ead-only"), "{words}");
    must("mount", &["-o", "remount,rw", at]);
    let store = Sqlite::open(&path).unwrap();
    assert_eq!(store.load(&cluster(0)).await.unwrap().next_seq, 2);
}
