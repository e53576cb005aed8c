//! Runs the real keeper binary on a store in a temporary directory.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use berth_api::time::monotonic;
use berth_collector::logs::{
    HeldEnds, KeeperClient, LogLine, Mode, OpenRequest, OpenedRun, ReadOptions, Reader, RunKey, Stat, Stream,
};
use rustix::process::Signal;

/// How long any condition may take on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Keeper {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: PathBuf,
    socket: PathBuf,
    flags: Vec<String>,
    child: Option<Child>,
}

impl Keeper {
    pub(crate) fn start(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        Self::start_at(dir, store, flags)
    }

    pub(crate) fn start_at(dir: tempfile::TempDir, store: PathBuf, flags: &[&str]) -> Self {
        let mut keeper = Self {
            socket: dir.path().join("keeper.sock"),
            dir,
            store,
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            child: None,
        };
        keeper.spawn();
        keeper
    }

    pub(crate) fn spawn(&mut self) {
        let child = Command::new(env!("CARGO_BIN_EXE_berth-logkeeper"))
            .arg("--socket")
            .arg(&self.socket)
            .arg("--store")
            .arg(&self.store)
            .args(&self.flags)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn restart_by_kill(&mut self) {
        self.kill();
        self.spawn();
    }

    pub(crate) fn terminate(&mut self) -> std::process::ExitStatus {
        self.signal(Signal::TERM);
        self.child.take().unwrap().wait().unwrap()
    }

    pub(crate) fn client(&self) -> KeeperClient {
        KeeperClient::connect(&self.socket, PATIENCE).unwrap()
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn lines(&self, replica: &str) -> Vec<LogLine> {
        self.read(replica, ReadOptions::all(Mode::Snapshot))
    }

    pub(crate) fn read(&self, replica: &str, options: ReadOptions) -> Vec<LogLine> {
        let mut reader = Reader::open(&self.store, replica, options).unwrap();
        let mut lines = Vec::new();
        while let Some(line) = reader.next_line().unwrap() {
            lines.push(line);
        }
        lines
    }

    /// The stored bytes of one stream.
    pub(crate) fn stored(&self, replica: &str, run: u32, stream: Stream) -> Vec<u8> {
        let dir = self.store.join(replica).join(run.to_string());
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                let name = path.file_name().unwrap().to_str().unwrap();
                name.starts_with(stream.name()) && name.ends_with(".log")
            })
            .collect();
        names.sort();
        names.iter().flat_map(|path| fs::read(path).unwrap()).collect()
    }

    /// Bytes of all files of the store, as the file system counts them. The keeper is stopped meanwhile: a walk beside
    /// it would count the removed and the new.
    pub(crate) fn disk_use(&self) -> u64 {
        self.signal(Signal::STOP);
        let bytes = disk_use(&self.store);
        self.signal(Signal::CONT);
        bytes
    }

    fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().unwrap());
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn disk_use(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let meta = entry.metadata().ok()?;
            Some(if meta.is_dir() {
                disk_use(&entry.path())
            } else {
                meta.blocks() * 512
            })
        })
        .sum()
}

/// An open run with its second holder, as the daemon has it.
pub(crate) struct Open {
    pub(crate) run: OpenedRun,
    #[expect(dead_code, reason = "held for its being open")]
    held: HeldEnds,
}

impl Open {
    pub(crate) fn new(client: &mut KeeperClient, replica: &str, run: u32) -> Self {
        Self::with(client, OpenRequest::new(RunKey::new(replica, run)))
    }

    pub(crate) fn with(client: &mut KeeperClient, request: OpenRequest) -> Self {
        let run = client.open(request).unwrap();
        let held = run.hold().unwrap();
        Self { run, held }
    }

    pub(crate) fn writer(&self, stream: Stream) -> File {
        File::options()
            .write(true)
            .open(&self.run.fifos[&stream])
            .unwrap()
    }

    pub(crate) fn write(&self, stream: Stream, text: &[u8]) {
        self.writer(stream).write_all(text).unwrap();
    }
}

/// Waits until the condition holds; panics with `what` when it does not in time.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = monotonic() + PATIENCE;
    while !holds() {
        assert!(monotonic() < until, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the keeper has taken so many bytes of a run.
pub(crate) fn wait_written(client: &mut KeeperClient, key: &RunKey, bytes: u64) -> Stat {
    let mut last = Stat::default();
    wait_until(&format!("{bytes} bytes of {key}"), || {
        last = client.stat(Some(key.clone())).unwrap();
        last.written_bytes >= bytes
    });
    assert_eq!(last.written_bytes, bytes);
    last
}

pub(crate) fn texts(lines: &[LogLine]) -> Vec<String> {
    lines
        .iter()
        .map(|line| String::from_utf8_lossy(&line.line).into_owned())
        .collect()
}
