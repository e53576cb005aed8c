//! Work inside a network namespace.
//!
//! A netlink socket, a sysctl file and a new thread belong to the namespace of the thread that opens them, so work runs
//! on an operating-system thread of its own that enters the namespace first. A worker thread of the async runtime is
//! never moved. A call that hangs in the kernel costs its thread and its caller's deadline, nothing else.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::Handle;
use rustix::mount::UnmountFlags;
use tokio::net::TcpSocket;
use tokio::sync::oneshot;

/// The namespace of the calling thread, as a file.
const OWN: &str = "/proc/thread-self/ns/net";
/// `f_type` of a file that holds a namespace (statfs(2)).
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// Settings of the namespace of the thread that opens them.
const SYSCTLS: &str = "/proc/sys/net";

/// What went wrong on the way into a namespace.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    #[error("opening the network namespace {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("making the network namespace {path}")]
    Create { path: PathBuf, source: io::Error },
    #[error("removing the network namespace {path}")]
    Remove { path: PathBuf, source: io::Error },
    #[error("entering a network namespace")]
    Enter(#[source] io::Error),
    #[error("starting a thread for a network namespace")]
    Thread(#[source] io::Error),
    #[error("opening a netlink socket")]
    Netlink(#[source] io::Error),
    #[error("the kernel did not finish within {0:?}")]
    Deadline(Duration),
    #[error("the thread in the network namespace stopped early")]
    Stopped,
    #[error("an earlier call hangs in the network namespace")]
    Hangs,
    #[error("working in a network namespace")]
    Work(#[source] io::Error),
    #[error("setting {path} to {value}")]
    Sysctl {
        path: String,
        value: String,
        source: io::Error,
    },
}

/// An open network namespace; it lives at least as long as this.
#[derive(Debug, Clone)]
pub struct Namespace(Arc<OwnedFd>);

impl Namespace {
    /// The one of the calling thread.
    ///
    /// # Errors
    /// When procfs is not there.
    pub fn current() -> Result<Self, NamespaceError> {
        Self::at(Path::new(OWN))
    }

    /// The one that is bound to `path`.
    ///
    /// # Errors
    /// When the path cannot be opened.
    pub fn at(path: &Path) -> Result<Self, NamespaceError> {
        let file = File::open(path).map_err(|source| NamespaceError::Open {
            path: path.into(),
            source,
        })?;
        Ok(Self(Arc::new(file.into())))
    }

    /// For a netlink attribute that names the namespace; valid while `self` lives.
    #[must_use]
    pub fn raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Moves the calling thread. Only for threads that this crate made for the purpose.
    fn enter(&self) -> Result<(), NamespaceError> {
        setns(self.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| NamespaceError::Enter(errno.into()))
    }

    /// Runs `work` with a netlink connection on a thread inside the namespace.
    ///
    /// # Errors
    /// When the thread cannot be had, `work` fails, or the deadline passes; in the last case the thread finishes
    /// alone and its result is dropped.
    pub async fn run<T, E, W>(&self, deadline: Duration, work: W) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<NamespaceError> + Send + 'static,
        W: AsyncFnOnce(Netlink) -> Result<T, E> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let namespace = self.clone();
        std::thread::Builder::new()
            .name("berth-netns".into())
            .spawn(move || {
                // The receiver is gone when the deadline passed: nobody waits for the answer.
                reply.send(namespace.block_on(work)).ok();
            })
            .map_err(NamespaceError::Thread)?;
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(NamespaceError::Stopped.into()),
            Err(_) => Err(NamespaceError::Deadline(deadline).into()),
        }
    }

    fn block_on<T, E, W>(&self, work: W) -> Result<T, E>
    where
        E: From<NamespaceError>,
        W: AsyncFnOnce(Netlink) -> Result<T, E>,
    {
        self.enter()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(NamespaceError::Thread)?;
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            let netlink = Netlink::open(self.clone())?;
            work(netlink).await
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The way into the namespace at a path, for one caller: one thread at a time, so that a kernel that hangs costs one thread however
/// often its caller gives up and comes again.
#[derive(Debug)]
pub struct Door {
    path: PathBuf,
    is_busy: Arc<AtomicBool>,
}

impl Door {
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        let is_busy = Arc::default();
        Self { path, is_busy }
    }

    /// Does `work` on a thread inside the namespace. The caller has the deadline: given up, the thread finishes alone.
    ///
    /// # Errors
    /// When the namespace cannot be entered, `work` fails, or the thread of an earlier call has not come back.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, NamespaceError> {
        if self.is_busy.swap(true, Ordering::AcqRel) {
            return Err(NamespaceError::Hangs);
        }
        let busy = Busy(Arc::clone(&self.is_busy));
        let (reply, answer) = oneshot::channel();
        let path = self.path.clone();
        std::thread::Builder::new()
            .name("berth-netns".into())
            .spawn(move || {
                let entered = Namespace::at(&path).and_then(|namespace| namespace.enter());
                let done = entered.and_then(|()| work().map_err(NamespaceError::Work));
                // First: whoever has the answer may call again.
                drop(busy);
                // The receiver is gone when its caller gave up.
                reply.send(done).ok();
            })
            .map_err(NamespaceError::Thread)?;
        answer.await.unwrap_or(Err(NamespaceError::Stopped))
    }

    /// A TCP socket of the namespace; it stays there whoever connects it.
    ///
    /// # Errors
    /// As [`Door::run`].
    pub async fn tcp_socket(&self) -> Result<TcpSocket, NamespaceError> {
        self.run(TcpSocket::new_v4).await
    }
}

struct Busy(Arc<AtomicBool>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A netlink connection into one namespace, driven by the thread that works there. Cannot leave that thread alive:
/// the connection task ends with the thread's runtime.
#[derive(Debug)]
pub struct Netlink {
    pub handle: Handle,
    namespace: Namespace,
    /// Owns the task that drives the connection.
    _driver: tokio::task::JoinSet<()>,
}

impl Netlink {
    fn open(namespace: Namespace) -> Result<Self, NamespaceError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NamespaceError::Netlink)?;
        let mut driver = tokio::task::JoinSet::new();
        driver.spawn_local(connection);
        Ok(Self {
            handle,
            namespace,
            _driver: driver,
        })
    }

    /// Enters `other`, opens a connection there, runs `settings` there and comes back. The connection stays in `other`.
    ///
    /// # Errors
    /// When a namespace cannot be entered. The thread is then in either; it must do nothing more, and does not:
    /// every caller gives up.
    pub fn visit(
        &self,
        other: &Namespace,
        settings: impl FnOnce() -> Result<(), NamespaceError>,
    ) -> Result<Self, NamespaceError> {
        other.enter()?;
        let opened = Self::open(other.clone()).and_then(|netlink| settings().map(|()| netlink));
        self.namespace.enter()?;
        opened
    }
}

/// Makes a namespace that lives as long as the bind mount at `path`; keeps one that is there. Blocking.
///
/// # Errors
/// When the kernel refuses; the file at `path` may be left and the next call goes on from there.
pub fn create(path: &Path) -> Result<(), NamespaceError> {
    let failed = |source| NamespaceError::Create {
        path: path.into(),
        source,
    };
    if exists(path) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    File::create(path).map_err(failed)?;
    let target: PathBuf = path.into();
    // The thread that unshares ends here: it belongs to the new namespace for ever.
    std::thread::Builder::new()
        .name("berth-netns-new".into())
        .spawn(move || -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            rustix::mount::mount_bind(OWN, &target)?;
            Ok(())
        })
        .map_err(NamespaceError::Thread)?
        .join()
        .map_err(|_| NamespaceError::Stopped)?
        .map_err(failed)
}

/// Whether a namespace is bound to `path`.
#[must_use]
pub fn exists(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| i128::from(stat.f_type) == i128::from(NSFS_MAGIC))
}

/// Unbinds the namespace; the kernel ends it when the last process has left. Blocking. Idempotent.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(path: &Path) -> Result<(), NamespaceError> {
    let failed = |source: io::Error| NamespaceError::Remove {
        path: path.into(),
        source,
    };
    // More than one bind mount can lie on the path after a crash between mount and record.
    while exists(path) {
        rustix::mount::unmount(path, UnmountFlags::DETACH).map_err(|errno| failed(errno.into()))?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Sets a value under `/proc/sys/net` in the namespace of the calling thread; says whether it was another before.
///
/// # Errors
/// When the kernel does not know the key or refuses the value.
pub fn set_sysctl(key: &str, value: &str) -> Result<bool, NamespaceError> {
    let path = format!("{SYSCTLS}/{key}");
    let failed = |source| NamespaceError::Sysctl {
        path: path.clone(),
        value: value.into(),
        source,
    };
    let present = std::fs::read_to_string(&path).map_err(failed)?;
    if present.split_whitespace().eq(value.split_whitespace()) {
        return Ok(false);
    }
    std::fs::write(&path, value).map_err(failed)?;
    Ok(true)
}
