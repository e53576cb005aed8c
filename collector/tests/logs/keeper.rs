//! The real keeper: what it stores, what survives its death, what it does when there is no room.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{Keeper, Open, texts, wait_until, wait_written};
use berth_collector::logs::{ClientError, Limits, LineStream, OpenRequest, RunKey, Stream, stored_runs};

const KIB: u64 = 1024;

/// Proves: bytes stored = bytes written, in order, whatever moment the keeper is killed at. How: a writer sends numbered
/// lines while the keeper is killed every few milliseconds; the second holder keeps the FIFO alive.
#[test]
fn kill_9_of_the_keeper_loses_and_doubles_nothing() {
    let mut keeper = Keeper::start(&["--segment-bytes", "300000", "--run-quota-bytes", "4000000000"]);
    let mut client = keeper.client();
    let open = Open::new(&mut client, "writer-0", 1);
    let mut fifo = open.writer(Stream::Stdout);
    let is_enough = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&is_enough);
    let writer = std::thread::spawn(move || {
        let mut expected = Vec::new();
        let mut lines = 0..u32::MAX;
        while !stop.load(Ordering::Relaxed) {
            let chunk = lines.by_ref().take(97);
            let text: String = chunk.map(|n| format!("line {n:010} of the test\n")).collect();
            fifo.write_all(text.as_bytes()).unwrap();
            expected.extend_from_slice(text.as_bytes());
            // About 8 MB/s: enough to be amid the work at each kill, little enough to compare.
            std::thread::sleep(Duration::from_micros(300));
        }
        expected
    });
    let mut stored_before = 0;
    let mut kills_amid = 0;
    // A keeper that is slow to start has stored nothing yet: it gets longer.
    let mut late_ms = 0;
    for kill in 0..60 {
        // The pause is what is varied, not what is waited for.
        std::thread::sleep(Duration::from_millis(5 + late_ms + kill * 7919 % 53));
        keeper.restart_by_kill();
        let stored = keeper.disk_use();
        if stored > stored_before {
            kills_amid += 1;
        } else {
            late_ms = (late_ms + 20).min(1000);
        }
        stored_before = stored;
    }
    is_enough.store(true, Ordering::Relaxed);
    let expected = writer.join().unwrap();
    wait_written(&mut client, &RunKey::new("writer-0", 1), expected.len() as u64);
    let stored = keeper.stored("writer-0", 1, Stream::Stdout);
    println!("{kills_amid} kills amid the work, {} bytes", stored.len());
    assert!(stored == expected, "stored bytes differ from written ones");
    assert!(kills_amid >= 10, "only {kills_amid} kills came amid the work");
    let lines = keeper.lines("writer-0");
    assert_eq!(lines.len(), stored.len() / 28);
    assert_eq!(lines[4711].line, b"line 0000004711 of the test");
}

/// Proves: a container that ends while the keeper is down loses nothing when the daemon holds the read end.
#[test]
fn the_second_holder_keeps_what_a_dead_container_wrote() {
    let mut keeper = Keeper::start(&[]);
    let mut client = keeper.client();
    let open = Open::new(&mut client, "a", 1);
    keeper.kill();
    let text = vec![b'x'; 60 * 1024];
    open.write(Stream::Stdout, &text);
    keeper.spawn();
    wait_written(&mut client, &RunKey::new("a", 1), text.len() as u64);
    assert_eq!(keeper.stored("a", 1, Stream::Stdout), text);
}

#[test]
fn a_writer_may_come_before_and_after_and_again() {
    let mut keeper = Keeper::start(&[]);
    let mut client = keeper.client();
    let open = Open::new(&mut client, "a", 1);
    let early = open.writer(Stream::Stdout);
    keeper.restart_by_kill();
    (&early).write_all(b"early\n").unwrap();
    drop(early);
    wait_written(&mut client, &RunKey::new("a", 1), 6);
    // Every writer is gone now; the read end sees the end of the file and must wake up for the next one.
    for n in 0..50 {
        open.write(Stream::Stdout, format!("late {n}\n").as_bytes());
        let stored = keeper.stored("a", 1, Stream::Stdout).len() as u64;
        wait_until("the late line", || {
            keeper
                .stored("a", 1, Stream::Stdout)
                .ends_with(format!("late {n}\n").as_bytes())
        });
        assert!(stored <= keeper.stored("a", 1, Stream::Stdout).len() as u64);
    }
    assert_eq!(keeper.lines("a").len(), 51);
}

#[test]
fn rotates_at_the_size_and_on_request() {
    let keeper = Keeper::start(&["--segment-bytes", "20000"]);
    let mut client = keeper.client();
    let key = RunKey::new("a", 1);
    let open = Open::new(&mut client, "a", 1);
    let text: Vec<u8> = (0..10_000)
        .flat_map(|n| format!("{n:09}\n").into_bytes())
        .collect();
    open.write(Stream::Stdout, &text);
    let stat = wait_written(&mut client, &key, text.len() as u64);
    assert_eq!(stat.segments, 5);
    assert_eq!(keeper.stored("a", 1, Stream::Stdout), text);
    client.rotate(key.clone()).unwrap();
    open.write(Stream::Stdout, b"after\n");
    assert_eq!(wait_written(&mut client, &key, text.len() as u64 + 6).segments, 6);
    let log = keeper.store.join("a/1/stdout.0000000001.log");
    assert_eq!(fs::metadata(log).unwrap().len(), 20_000);
}

/// Proves: over the run's quota the oldest go, the disk never passes the quota, lost + stored = written, and the reader
/// tells the gap exactly.
#[test]
fn the_quota_of_a_run_removes_the_oldest_and_tells_the_gap() {
    let keeper = Keeper::start(&[]);
    let mut client = keeper.client();
    let key = RunKey::new("a", 1);
    let mut request = OpenRequest::new(key.clone());
    request.limits = Limits {
        segment_bytes: 64 * KIB,
        run_bytes: 512 * KIB,
        pipe_bytes: 0,
    };
    let open = Open::with(&mut client, request);
    let mut fifo = open.writer(Stream::Stdout);
    let mut written = 0;
    let mut disk_max = 0;
    for n in 0..400_u32 {
        let text: String = (0..100).map(|k| format!("{:012} quota\n", n * 100 + k)).collect();
        fifo.write_all(text.as_bytes()).unwrap();
        written += text.len() as u64;
        disk_max = disk_max.max(keeper.disk_use());
    }
    let stat = wait_written(&mut client, &key, written);
    assert!(stat.lost_bytes > 0 && stat.stored_bytes > 128 * KIB, "{stat:?}");
    // Directories and run.json are not counted against the quota.
    assert!(disk_max <= 512 * KIB + 16 * KIB, "{disk_max} bytes on disk");
    assert!(stat.disk_bytes <= 512 * KIB, "{stat:?}");
    let lines = keeper.lines("a");
    assert_eq!(lines[0].stream, LineStream::Keeper);
    let told = String::from_utf8_lossy(&lines[0].line).into_owned();
    assert!(
        told.starts_with(&format!("{} bytes of stdout were lost here", stat.lost_bytes)),
        "{told}"
    );
    assert!(told.ends_with("quota"), "{told}");
    let stored: u64 = lines[1..].iter().map(|line| line.line.len() as u64 + 1).sum();
    assert_eq!(stored, stat.stored_bytes);
    assert_eq!(
        lines.last().unwrap().line,
        format!("{:012} quota", 39_999).into_bytes()
    );
}

#[test]
fn the_quota_of_the_store_removes_the_oldest_of_all_runs() {
    let mut keeper = Keeper::start(&["--quota-bytes", "1048576", "--segment-bytes", "65536"]);
    let mut client = keeper.client();
    let piece = vec![b'.'; 200 * 1024];
    let mut keys = Vec::new();
    for n in 0..8 {
        let key = RunKey::new(format!("r{n}"), 1);
        let open = Open::new(&mut client, &key.replica, 1);
        open.write(Stream::Stderr, &piece);
        wait_written(&mut client, &key, piece.len() as u64);
        keys.push(key);
    }
    let all = client.stat(None).unwrap();
    assert!(all.disk_bytes <= 1024 * KIB, "{all:?}");
    assert_eq!(all.written_bytes, 8 * piece.len() as u64);
    assert_eq!(client.stat(Some(keys[0].clone())).unwrap().stored_bytes, 0);
    assert_eq!(client.stat(Some(keys[7].clone())).unwrap().lost_bytes, 0);
    // The counts are on disk: a killed keeper comes back with the same.
    keeper.restart_by_kill();
    assert_eq!(client.stat(None).unwrap(), all);
    let told = texts(&keeper.lines("r0"));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with(&format!("{} bytes of stderr", piece.len())),
        "{told:?}"
    );
}

/// Proves: on a full disk the writer is never blocked, the newest bytes are discarded when nothing is left to free,
/// and lost + stored = written, also over a kill. Needs root for the mount.
#[test]
fn a_full_disk_blocks_nobody_and_every_lost_byte_is_counted() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: needs root to mount a small tmpfs");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    fs::create_dir(&store).unwrap();
    let mount = Mount::tmpfs(&store, "size=600k");
    let mut keeper = Keeper::start_at(dir, store.clone(), &["--segment-bytes", "65536"]);
    let mut client = keeper.client();
    let key = RunKey::new("a", 1);
    let open = Open::new(&mut client, "a", 1);
    let mut fifo = open.writer(Stream::Stdout);
    let line = b"a line of the full disk test, forty bytes\n";
    let mut written = 0_u64;
    let mut send = |bytes: u64| {
        let until = written + bytes;
        while written < until {
            fifo.write_all(line).unwrap();
            written += line.len() as u64;
        }
        written
    };
    // First within the disk, with old segments to free.
    let written = send(2 << 20);
    let stat = wait_written(&mut client, &key, written);
    assert!(stat.lost_bytes > 0 && stat.stored_bytes > 0, "{stat:?}");
    // Then somebody else takes all of it: what is left is freed, then the newest goes.
    let hog = store.join("hog");
    fill_disk(&hog);
    let written = send(1 << 20);
    wait_written(&mut client, &key, written);
    fill_disk(&hog);
    let written = send(1 << 20);
    let full = wait_written(&mut client, &key, written);
    keeper.restart_by_kill();
    let after = wait_written(&mut client, &key, written);
    assert_eq!(after.lost_bytes, full.lost_bytes);
    // Room again: storing goes on and the reader tells every byte.
    fs::remove_file(&hog).unwrap();
    let written = send(100_000);
    wait_written(&mut client, &key, written);
    let stat = client.stat(Some(key)).unwrap();
    let lines = keeper.lines("a");
    let told: u64 = lines
        .iter()
        .filter(|line| line.stream == LineStream::Keeper)
        .map(|line| {
            let text = String::from_utf8(line.line.clone()).unwrap();
            assert!(text.contains("disk full"), "{text}");
            text.split(' ').next().unwrap().parse::<u64>().unwrap()
        })
        .sum();
    assert_eq!(told, stat.lost_bytes);
    assert_eq!(
        keeper.stored("a", 1, Stream::Stdout).len() as u64,
        stat.stored_bytes
    );
    drop(keeper);
    drop(mount);
}

struct Mount(std::path::PathBuf);

impl Mount {
    fn tmpfs(at: &std::path::Path, data: &str) -> Self {
        let data = std::ffi::CString::new(data).unwrap();
        rustix::mount::mount(
            "tmpfs",
            at,
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            data.as_c_str(),
        )
        .unwrap();
        Self(at.to_path_buf())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Detached: the keeper under test may still hold files when the test fails.
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).ok();
    }
}

fn fill_disk(path: &std::path::Path) {
    let mut hog = File::options().create(true).append(true).open(path).unwrap();
    while hog.write_all(&[0; 4096]).is_ok() {}
}

/// Proves: an index cut in the middle of a record, or gone, costs times and no bytes.
#[test]
fn a_torn_index_is_mended_at_the_next_start() {
    let mut keeper = Keeper::start(&[]);
    let mut client = keeper.client();
    let key = RunKey::new("a", 1);
    let open = Open::new(&mut client, "a", 1);
    for n in 0..20 {
        open.write(Stream::Stdout, format!("line {n}\n").as_bytes());
        wait_until("the line", || keeper.lines("a").len() == n + 1);
    }
    let before = texts(&keeper.lines("a"));
    let index = keeper.store.join("a/1/stdout.0000000001.idx");
    let whole = fs::metadata(&index).unwrap().len();
    for cut in [whole - 10, 48 + 24 * 3 + 5, 30, 0] {
        keeper.kill();
        File::options()
            .write(true)
            .open(&index)
            .unwrap()
            .set_len(cut)
            .unwrap();
        keeper.spawn();
        wait_written(&mut client, &key, 150);
        assert_eq!(texts(&keeper.lines("a")), before);
        assert_eq!(fs::metadata(&index).unwrap().len() % 24, 0);
    }
    open.write(Stream::Stdout, b"more\n");
    wait_until("one more line", || keeper.lines("a").len() == 21);
}

#[test]
fn open_is_idempotent_and_close_ends_the_run() {
    let mut keeper = Keeper::start(&[]);
    let mut client = keeper.client();
    let key = RunKey::new("cluster/a b", 3);
    let mut request = OpenRequest::new(key.clone());
    request.labels = BTreeMap::from([("container".to_owned(), "a".to_owned())]);
    let first = client.open(request.clone()).unwrap();
    assert_eq!(client.open(request.clone()).unwrap(), first);
    keeper.restart_by_kill();
    assert_eq!(client.open(request).unwrap(), first);
    let mode = fs::metadata(&first.fifos[&Stream::Stdout])
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    File::options()
        .write(true)
        .open(&first.fifos[&Stream::Stderr])
        .unwrap()
        .write_all(b"bye")
        .unwrap();
    client.close(key.clone()).unwrap();
    assert!(first.fifos.values().all(|fifo| !fifo.exists()));
    client.close(key.clone()).unwrap();
    let lines = keeper.lines("cluster/a b");
    assert_eq!((lines.len(), lines[0].partial, lines[0].run), (1, false, 3));
    assert_eq!(stored_runs(&keeper.store).unwrap(), std::slice::from_ref(&key));
    keeper.restart_by_kill();
    let stat = client.stat(None).unwrap();
    assert_eq!((stat.runs_open, stat.runs_stored, stat.stored_bytes), (0, 1, 3));
    client.remove("cluster/a b", None).unwrap();
    assert!(stored_runs(&keeper.store).unwrap().is_empty());
    assert!(matches!(client.stat(Some(key)), Err(ClientError::Refused { .. })));
}

#[test]
fn bad_requests_are_refused_with_a_reason() {
    let keeper = Keeper::start(&[]);
    let mut client = keeper.client();
    let mut request = OpenRequest::new(RunKey::new("", 1));
    let refused = client.open(request.clone()).unwrap_err().to_string();
    assert_eq!(
        refused,
        "the log keeper refused: a replica id has 1 to 2048 bytes"
    );
    request.key.replica = "a".into();
    request.streams = vec![Stream::Stdout, Stream::Stdout];
    assert!(matches!(client.open(request), Err(ClientError::Refused { .. })));
    assert!(!client.version().unwrap().is_empty());
    let mode = fs::metadata(keeper.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_second_keeper_on_the_same_store_is_refused() {
    let keeper = Keeper::start(&[]);
    keeper.client();
    let other = std::process::Command::new(env!("CARGO_BIN_EXE_berth-logkeeper"))
        .arg("--socket")
        .arg(keeper.dir.path().join("other.sock"))
        .arg("--store")
        .arg(&keeper.store)
        .output()
        .unwrap();
    assert!(!other.status.success());
    let told = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(told.contains("another keeper holds the store"), "{told}");
}

/// Proves: SIGTERM stores what the FIFOs hold, leaves with status 0 and leaves the FIFOs for the next keeper.
#[test]
fn sigterm_stores_what_is_there_and_leaves() {
    let mut keeper = Keeper::start(&[]);
    let mut client = keeper.client();
    let open = Open::new(&mut client, "a", 1);
    open.write(Stream::Stdout, b"last words\n");
    assert!(keeper.terminate().success());
    assert_eq!(keeper.stored("a", 1, Stream::Stdout), b"last words\n");
    assert!(open.run.fifos[&Stream::Stdout].exists());
    keeper.spawn();
    open.write(Stream::Stdout, b"and more\n");
    wait_until("the line after the restart", || keeper.lines("a").len() == 2);
}

/// Proves: at most 4 MB resident with 50 runs that write. The figure of the build under test is printed.
#[test]
fn fifty_runs_need_at_most_4_mb() {
    let keeper = Keeper::start(&[]);
    let mut client = keeper.client();
    let open: Vec<Open> = (0..50)
        .map(|n| Open::new(&mut client, &format!("replica-{n}"), 1))
        .collect();
    let text = "x".repeat(2000);
    for _ in 0..20 {
        for run in &open {
            run.write(Stream::Stdout, text.as_bytes());
            run.write(Stream::Stderr, b"a word\n");
        }
    }
    wait_until("all bytes", || {
        client.stat(None).unwrap().written_bytes == 50 * 20 * 2007
    });
    let status = fs::read_to_string(format!("/proc/{}/status", keeper.pid())).unwrap();
    let rss_kib: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap();
    println!("resident with 50 runs: {rss_kib} KiB");
    assert!(rss_kib * 1024 <= 4_000_000, "{rss_kib} KiB");
}
