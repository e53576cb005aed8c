//! The keeper: one thread, one epoll, no buffers of its own.
//!
//! ```text
//! FIFO readable ─▶ queue of streams ─▶ one splice each, in turn ─▶ segment + record
//! control socket ─▶ one request ─▶ one reply
//! SIGTERM ─▶ drain what the FIFOs hold, sync, leave; FIFOs and runs stay for the next start
//! ```
//!
//! FIFOs are watched edge-triggered: a stream stays in the queue until its FIFO is empty, so a noisy stream takes turns
//! with the others, and an end of file (all writers gone) costs no wake-ups. A second thread calls syncfs once a second
//! when something was written: it bounds what a power loss can take and never stands in the way of the splices.
//!
//! Invariant: the application never waits for the keeper's disk to have room; see `quota`.

mod arguments;
mod quota;
mod serve;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fs::{FlockOperation, Mode};
use rustix::process::{Resource, Rlimit};

pub use arguments::{Arguments, ArgumentsError, HELP, VERSION};

use super::layout::{
    Limits, RunKey, RunMeta, Stream, create_private_dir, fifo_path, list_run_dirs, private_file,
};
use super::stream::StreamLog;

const SYNC_EVERY: Duration = Duration::from_secs(1);
/// One splice at most: the whole FIFO at its default size.
const TURN_BYTES: u64 = 256 * 1024;
/// Smallest segment, so that a tiny quota does not drown in files.
const SEGMENT_BYTES_MIN: u64 = 16 * 1024;
const PIPE_BYTES_DEFAULT: u32 = 256 * 1024;
const PIPE_BYTES_MAX: u32 = 1024 * 1024;
/// Turns a stream gets when it is drained at close or exit: four full FIFOs. Whoever still writes is not waited for.
const DRAIN_TURNS: usize = 16;
const EVENTS_PER_WAIT: usize = 64;
/// Tokens of epoll: a stream is its slot times two plus its index, a client its number above this bit.
const CLIENT_BIT: u64 = 1 << 32;
const TOKEN_LISTENER: u64 = u64::MAX;
const TOKEN_SIGNAL: u64 = u64::MAX - 1;

/// Why the keeper does not start or ends.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    #[error(transparent)]
    Arguments(#[from] ArgumentsError),
    #[error("cannot {what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("another keeper holds the store {store}")]
    Locked { store: PathBuf },
    #[error("cannot {what}")]
    Kernel { what: &'static str, source: io::Error },
}

/// One run in the keeper's memory, open or closed.
#[derive(Debug)]
struct Run {
    dir: PathBuf,
    meta: RunMeta,
    streams: Vec<StreamLog>,
    disk_bytes: u64,
}

/// The keeper's whole state; [`Keeper::run`] owns the thread.
#[derive(Debug)]
pub struct Keeper {
    config: Arguments,
    epoll: OwnedFd,
    listener: OwnedFd,
    #[expect(dead_code, reason = "held: epoll watches it")]
    signals: SignalFd,
    null: File,
    /// Slots are never reused within one life, so that a late event of a removed run finds nothing.
    runs: BTreeMap<u32, Run>,
    by_key: BTreeMap<RunKey, u32>,
    next_slot: u32,
    clients: BTreeMap<u64, OwnedFd>,
    next_client: u64,
    queue: VecDeque<(u32, Stream)>,
    /// Disk use of all runs.
    disk_bytes: u64,
    dirty: Arc<AtomicBool>,
    #[expect(dead_code, reason = "held: the lock lasts as long as the file is open")]
    lock: File,
}

impl Keeper {
    /// Takes the store, recovers every run in it with its FIFOs, and listens.
    ///
    /// # Errors
    /// When the store is held by another keeper, cannot be read, or the socket cannot be made. A single damaged run is
    /// no error: what cannot be read of it is left as it is.
    pub fn start(config: Arguments) -> Result<Self, KeeperError> {
        rustix::process::umask(Mode::from_raw_mode(0o077));
        raise_file_limit();
        let signals = catch_signals()?;
        let at = |what, path: &Path| {
            let path = path.to_path_buf();
            move |source| KeeperError::Io { what, path, source }
        };
        create_private_dir(&config.store).map_err(at("create the store", &config.store))?;
        let lock = lock_store(&config.store)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(kernel("make an epoll"))?;
        let null = File::options()
            .write(true)
            .open("/dev/null")
            .map_err(at("open", Path::new("/dev/null")))?;
        let dirty = Arc::new(AtomicBool::new(false));
        let mut runs = Vec::new();
        for dir in list_run_dirs(&config.store).map_err(at("list the store", &config.store))? {
            runs.extend(recover_run(dir));
        }
        // The socket comes last: who can connect finds every FIFO read again.
        let listener =
            serve::listen(&config.socket).map_err(at("listen on the control socket", &config.socket))?;
        watch(&epoll, &listener, TOKEN_LISTENER, epoll::EventFlags::IN)?;
        watch(&epoll, &signals, TOKEN_SIGNAL, epoll::EventFlags::IN)?;
        start_sync(&config.store, &dirty)?;
        let mut keeper = Self {
            config,
            epoll,
            listener,
            signals,
            null,
            runs: BTreeMap::new(),
            by_key: BTreeMap::new(),
            next_slot: 0,
            clients: BTreeMap::new(),
            next_client: 0,
            queue: VecDeque::new(),
            disk_bytes: 0,
            dirty,
            lock,
        };
        for run in runs {
            keeper.insert(run)?;
        }
        Ok(keeper)
    }

    /// Serves until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// When the kernel refuses to wait for events.
    pub fn run(mut self) -> Result<(), KeeperError> {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_PER_WAIT);
        let no_wait = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        loop {
            let timeout = (!self.queue.is_empty()).then_some(&no_wait);
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(kernel("wait for events")(error)),
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    TOKEN_SIGNAL => {
                        self.leave();
                        return Ok(());
                    }
                    TOKEN_LISTENER => self.accept(),
                    token if token & CLIENT_BIT != 0 => self.serve_client(token),
                    token => self.enqueue_token(token),
                }
            }
            for _ in 0..self.queue.len() {
                if let Some((slot, stream)) = self.queue.pop_front() {
                    self.turn(slot, stream);
                }
            }
        }
    }

    fn enqueue_token(&mut self, token: u64) {
        let Ok(slot) = u32::try_from(token / 2) else {
            return;
        };
        let stream = Stream::ALL[usize::from(token % 2 == 1)];
        let log = self.runs.get_mut(&slot).and_then(|run| run.stream(stream));
        if let Some(log) = log.filter(|log| !log.queued) {
            log.queued = true;
            self.queue.push_back((slot, stream));
        }
    }

    /// One splice for one stream; it goes back to the end of the queue while its FIFO holds more.
    fn turn(&mut self, slot: u32, stream: Stream) {
        let more = self.store_once(slot, stream);
        if let Some(log) = self.runs.get_mut(&slot).and_then(|run| run.stream(stream)) {
            log.queued = more;
            if more {
                self.queue.push_back((slot, stream));
            }
        }
    }

    /// Stores what the FIFOs of a run hold now.
    fn drain(&mut self, slot: u32) {
        for stream in Stream::ALL {
            for _ in 0..DRAIN_TURNS {
                if !self.store_once(slot, stream) {
                    break;
                }
            }
        }
    }

    fn leave(&mut self) {
        let slots: Vec<u32> = self.runs.keys().copied().collect();
        for slot in slots {
            self.drain(slot);
        }
        if let Err(error) = File::open(&self.config.store).and_then(|store| Ok(rustix::fs::syncfs(store)?)) {
            complain("cannot sync the store", &error);
        }
    }

    /// Adds a run and watches its FIFOs.
    fn insert(&mut self, run: Run) -> Result<u32, KeeperError> {
        let slot = self.next_slot;
        for log in &run.streams {
            if let Some(fifo) = &log.fifo {
                let token = u64::from(slot) * 2 + log.stream.index() as u64;
                watch(
                    &self.epoll,
                    fifo,
                    token,
                    epoll::EventFlags::IN | epoll::EventFlags::ET,
                )?;
            }
        }
        self.next_slot += 1;
        self.disk_bytes += run.disk_bytes;
        self.by_key.insert(run.meta.key.clone(), slot);
        self.runs.insert(slot, run);
        Ok(slot)
    }
}

impl Run {
    fn stream(&mut self, stream: Stream) -> Option<&mut StreamLog> {
        self.streams.iter_mut().find(|log| log.stream == stream)
    }

    fn count_disk(&mut self) -> u64 {
        self.disk_bytes = self.streams.iter().map(StreamLog::disk_bytes).sum();
        self.disk_bytes
    }
}

/// Reads one run of the store; complains and leaves it alone when that fails.
fn recover_run(dir: PathBuf) -> Option<Run> {
    match try_recover_run(&dir) {
        Ok(run) => Some(run),
        Err(error) => {
            complain(&format!("cannot recover {}", dir.display()), &error);
            None
        }
    }
}

fn try_recover_run(dir: &Path) -> io::Result<Run> {
    let mut meta = RunMeta::read(dir).or_else(|error| guess_meta(dir).ok_or(error))?;
    let mut streams = Vec::new();
    for stream in Stream::ALL {
        let is_listed = meta.streams.contains(&stream);
        let mut log = StreamLog::recover(dir, stream)?;
        if is_listed && meta.closed_ms.is_none() {
            match open_fifo(dir, stream, meta.limits) {
                Ok(fifo) => log.fifo = Some(fifo),
                Err(error) => complain(
                    &format!("cannot open the FIFO of {stream} in {}", dir.display()),
                    &error,
                ),
            }
        }
        if is_listed || log.written_bytes > 0 {
            streams.push(log);
        }
    }
    meta.streams = streams.iter().map(|log| log.stream).collect();
    let mut run = Run {
        dir: dir.to_path_buf(),
        meta,
        streams,
        disk_bytes: 0,
    };
    run.count_disk();
    Ok(run)
}

/// A run whose `run.json` is lost or torn, as far as its directory tells: open when it has a FIFO. `None` when the
/// replica's id cannot be read from the name of its directory.
fn guess_meta(dir: &Path) -> Option<RunMeta> {
    let replica = dir.parent()?.file_name()?.to_str()?;
    let run = dir.file_name()?.to_str()?.parse().ok()?;
    if replica.contains(['%', '~']) {
        return None;
    }
    let streams: Vec<Stream> = Stream::ALL
        .into_iter()
        .filter(|stream| fifo_path(dir, *stream).exists())
        .collect();
    Some(RunMeta {
        schema: 1,
        key: RunKey::new(replica, run),
        closed_ms: streams.is_empty().then_some(0),
        streams,
        limits: Limits::default(),
        labels: BTreeMap::new(),
        opened_ms: 0,
    })
}

/// Makes the FIFO where it is missing and opens its read end.
fn open_fifo(dir: &Path, stream: Stream, limits: Limits) -> io::Result<OwnedFd> {
    let path = fifo_path(dir, stream);
    match rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::from_raw_mode(0o600)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let fifo = super::client::open_read_end(&path)?;
    let wanted = match limits.pipe_bytes {
        0 => PIPE_BYTES_DEFAULT,
        bytes => bytes.clamp(4096, PIPE_BYTES_MAX),
    };
    if let Err(error) = rustix::pipe::fcntl_setpipe_size(&fifo, usize::try_from(wanted).unwrap_or(usize::MAX))
    {
        // Over the limit for pipe pages: a smaller buffer is slower, not wrong.
        complain("cannot enlarge a FIFO", &error.into());
    }
    Ok(fifo)
}

fn watch(epoll: &OwnedFd, fd: impl AsFd, token: u64, flags: epoll::EventFlags) -> Result<(), KeeperError> {
    epoll::add(epoll, fd, epoll::EventData::new_u64(token), flags).map_err(kernel("watch a file descriptor"))
}

fn kernel(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> KeeperError {
    move |error| KeeperError::Kernel {
        what,
        source: error.into(),
    }
}

fn catch_signals() -> Result<SignalFd, KeeperError> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    let signals = set
        .thread_block()
        .and_then(|()| SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK));
    signals.map_err(|error| KeeperError::Kernel {
        what: "catch signals",
        source: error.into(),
    })
}

fn lock_store(store: &Path) -> Result<File, KeeperError> {
    let path = store.join("lock");
    let lock = private_file()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|source| KeeperError::Io {
            what: "open the lock",
            path,
            source,
        })?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(KeeperError::Locked {
            store: store.to_path_buf(),
        }),
        Err(error) => Err(kernel("lock the store")(error)),
    }
}

/// Six descriptors a run: the usual soft limit of 1024 would end at 170 runs.
fn raise_file_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        complain("cannot raise the limit of open files", &error.into());
    }
}

fn start_sync(store: &Path, dirty: &Arc<AtomicBool>) -> Result<(), KeeperError> {
    let spawn = || {
        let store = File::open(store)?;
        let dirty = Arc::clone(dirty);
        // The thread is not joined: it owns nothing but its descriptor and ends with the process.
        std::thread::Builder::new()
            .name("sync".into())
            .stack_size(64 * 1024)
            .spawn(move || {
                loop {
                    std::thread::sleep(SYNC_EVERY);
                    if dirty.swap(false, Ordering::Relaxed)
                        && let Err(error) = rustix::fs::syncfs(&store)
                    {
                        complain("cannot sync the store", &error.into());
                    }
                }
            })
    };
    spawn().map(drop).map_err(|source| KeeperError::Kernel {
        what: "start the sync thread",
        source,
    })
}

/// The keeper's own words go to standard error, one line each.
fn complain(what: &str, error: &io::Error) {
    use std::io::Write;
    let text = format!("berth-logkeeper: {what}: {error}\n");
    // With standard error gone nobody is left to tell.
    drop(io::stderr().write_all(text.as_bytes()));
}
