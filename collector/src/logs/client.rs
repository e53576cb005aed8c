//! The daemon's side of the keeper's control socket: synchronous, one request at a time, each with a deadline.
//!
//! A keeper that restarts is waited for: a request that finds no keeper, or loses it before the reply, is sent again
//! until the deadline; all requests are idempotent. A refusal is final and is not retried.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_api::time::monotonic;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::control::{MESSAGE_BYTES_MAX, OpenRequest, Reply, Request, Stat};
use super::layout::{RunKey, Stream};

/// Between two attempts to reach a keeper that is not there; its restart takes less than 100 ms.
const RETRY_EVERY: Duration = Duration::from_millis(20);

/// Why a request to the keeper failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no answer from the log keeper at {socket} within {deadline:?}")]
    Unreachable {
        socket: PathBuf,
        deadline: Duration,
        source: io::Error,
    },
    #[error("the log keeper refused: {reason}")]
    Refused { reason: String },
    #[error("message to the log keeper has {size_bytes} bytes; at most {MESSAGE_BYTES_MAX} fit")]
    TooLarge { size_bytes: usize },
    #[error("the log keeper at {socket} sent a reply that does not belong to the request")]
    Confused { socket: PathBuf },
    #[error("cannot hold the read end of {path}")]
    Hold { path: PathBuf, source: io::Error },
}

/// The FIFOs of a run, ready for the container: their read ends are open in the keeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedRun {
    pub fifos: BTreeMap<Stream, PathBuf>,
}

/// Read ends that are open but never read: the second holder. While they live the kernel keeps the content of the
/// FIFOs even if the keeper is down and the container has ended.
#[derive(Debug)]
pub struct HeldEnds {
    #[expect(dead_code, reason = "held for their being open")]
    ends: Vec<OwnedFd>,
}

impl OpenedRun {
    /// Opens every read end once more, without ever reading. Keep the result until the run is closed.
    ///
    /// # Errors
    /// When a FIFO cannot be opened.
    pub fn hold(&self) -> Result<HeldEnds, ClientError> {
        let open = |path: &PathBuf| {
            open_read_end(path).map_err(|source| ClientError::Hold {
                path: path.clone(),
                source,
            })
        };
        Ok(HeldEnds {
            ends: self.fifos.values().map(open).collect::<Result<_, _>>()?,
        })
    }
}

/// Opens the read end of a FIFO without waiting for a writer.
pub(crate) fn open_read_end(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let end = rustix::fs::open(path, flags, Mode::empty())?;
    let kind = File::from(end.try_clone()?).metadata()?.file_type();
    if std::os::unix::fs::FileTypeExt::is_fifo(&kind) {
        Ok(end)
    } else {
        Err(io::Error::other("not a FIFO"))
    }
}

/// A connection to the keeper that mends itself.
#[derive(Debug)]
pub struct KeeperClient {
    socket: PathBuf,
    deadline: Duration,
    connection: Option<OwnedFd>,
}

impl KeeperClient {
    /// Connects; waits until `deadline` for the keeper to be there. Each later request has the same deadline.
    ///
    /// # Errors
    /// When no keeper answers in time.
    pub fn connect(socket: impl Into<PathBuf>, deadline: Duration) -> Result<Self, ClientError> {
        let mut client = Self {
            socket: socket.into(),
            deadline,
            connection: None,
        };
        client.version()?;
        Ok(client)
    }

    /// Makes the FIFOs of a run, or finds them when it is open already. Call it before the container is created, and
    /// again for each live run after a restart of the daemon.
    ///
    /// # Errors
    /// When no keeper answers in time or it refuses.
    pub fn open(&mut self, request: OpenRequest) -> Result<OpenedRun, ClientError> {
        match self.call(&Request::Open(request))? {
            Reply::Opened { fifos } => Ok(OpenedRun { fifos }),
            Reply::Done | Reply::Stat(_) | Reply::Version { .. } | Reply::Refused { .. } => {
                Err(self.confused())
            }
        }
    }

    /// Ends a run: what its FIFOs still hold is stored, then they are gone. A run that is not open is no fault.
    ///
    /// # Errors
    /// When no keeper answers in time or it refuses.
    pub fn close(&mut self, key: RunKey) -> Result<(), ClientError> {
        self.done(&Request::Close { key })
    }

    /// Starts a new segment in each stream of the run.
    ///
    /// # Errors
    /// When no keeper answers in time or the run is unknown.
    pub fn rotate(&mut self, key: RunKey) -> Result<(), ClientError> {
        self.done(&Request::Rotate { key })
    }

    /// Deletes what is stored of one run, or of all runs of the replica. Open ones are closed first.
    ///
    /// # Errors
    /// When no keeper answers in time or the files cannot be deleted.
    pub fn remove(&mut self, replica: impl Into<String>, run: Option<u32>) -> Result<(), ClientError> {
        let replica = replica.into();
        self.done(&Request::Remove { replica, run })
    }

    /// Counts of one run, or of the whole store.
    ///
    /// # Errors
    /// When no keeper answers in time or the run is unknown.
    pub fn stat(&mut self, key: Option<RunKey>) -> Result<Stat, ClientError> {
        match self.call(&Request::Stat { key })? {
            Reply::Stat(stat) => Ok(stat),
            Reply::Done | Reply::Opened { .. } | Reply::Version { .. } | Reply::Refused { .. } => {
                Err(self.confused())
            }
        }
    }

    /// The keeper's version.
    ///
    /// # Errors
    /// When no keeper answers in time.
    pub fn version(&mut self) -> Result<String, ClientError> {
        match self.call(&Request::Version)? {
            Reply::Version { version } => Ok(version),
            Reply::Done | Reply::Opened { .. } | Reply::Stat(_) | Reply::Refused { .. } => {
                Err(self.confused())
            }
        }
    }

    /// The process of the keeper that answered last.
    #[must_use]
    pub fn pid(&self) -> Option<rustix::process::Pid> {
        let connection = self.connection.as_ref()?;
        rustix::net::sockopt::socket_peercred(connection)
            .ok()
            .map(|peer| peer.pid)
    }

    fn done(&mut self, request: &Request) -> Result<(), ClientError> {
        match self.call(request)? {
            Reply::Done => Ok(()),
            Reply::Opened { .. } | Reply::Stat(_) | Reply::Version { .. } | Reply::Refused { .. } => {
                Err(self.confused())
            }
        }
    }

    fn confused(&self) -> ClientError {
        ClientError::Confused {
            socket: self.socket.clone(),
        }
    }

    fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
        let message = serde_json::to_vec(request).expect("a request has only string keys");
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(ClientError::TooLarge {
                size_bytes: message.len(),
            });
        }
        let until = monotonic() + self.deadline;
        loop {
            let source = match self.attempt(&message, until) {
                Ok(Reply::Refused { reason }) => return Err(ClientError::Refused { reason }),
                Ok(reply) => return Ok(reply),
                Err(source) => source,
            };
            // A late reply must never be read as the answer to the next request.
            self.connection = None;
            if monotonic() + RETRY_EVERY >= until {
                return Err(ClientError::Unreachable {
                    socket: self.socket.clone(),
                    deadline: self.deadline,
                    source,
                });
            }
            std::thread::sleep(RETRY_EVERY);
        }
    }

    fn attempt(&mut self, message: &[u8], until: Instant) -> io::Result<Reply> {
        if self.connection.is_none() {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            rustix::net::connect(&fd, &SocketAddrUnix::new(&self.socket)?)?;
            self.connection = Some(fd);
        }
        let fd = self.connection.as_ref().expect("connected above");
        wait(fd, PollFlags::OUT, until)?;
        rustix::net::send(fd, message, SendFlags::NOSIGNAL)?;
        wait(fd, PollFlags::IN, until)?;
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        let (received, _) = rustix::net::recv(fd, &mut buffer[..], RecvFlags::empty())?;
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let reply = buffer.get(..received).ok_or(io::ErrorKind::InvalidData)?;
        serde_json::from_slice(reply).map_err(io::Error::from)
    }
}

fn wait(fd: impl AsFd, what: PollFlags, until: Instant) -> io::Result<()> {
    loop {
        let left = until.saturating_duration_since(monotonic());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&fd, what)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
