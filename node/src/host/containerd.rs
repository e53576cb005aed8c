//! containerd as Berth uses it: containers with labels, their tasks, their exits.
//!
//! Input: plans of containers. Output: containers, tasks and [`RuntimeEvent`]s. Owner: the node's executor; clones share
//! one connection. The connection is lazy and comes back by itself. Every call has a deadline; what containerd or a shim
//! does not answer costs that call only.
//!
//! ```text
//! task                 input                      output
//! watcher (one)        event stream, own ping     RuntimeEvent, impaired since
//! exit wait (per task) tasks.wait                 RuntimeEvent::Exit
//! ```
//!
//! Failure: containerd gone makes the runtime *impaired* ([`Runtime::impaired_since`]), never the replicas: their tasks
//! run on under their shims. Events have no replay, so after [`RuntimeEvent::Reconnected`] the owner lists.

mod attach;
mod bundle;
mod call;
mod events;
mod exec;
mod leftover;
mod lifecycle;
mod shim;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_api::time::Timestamp;
use containerd_client::Client;
use containerd_client::tonic::metadata::{Ascii, MetadataValue};
use containerd_client::tonic::transport::{Channel, Endpoint};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub use attach::{Attached, Control, Program};
pub(crate) use call::{Headers, Tolerate, within};
pub use call::{RuntimeError, RuntimeErrorClass};
pub(crate) use events::timestamp;
pub use exec::Beside;
pub use lifecycle::SignalTarget;

use super::cgroup;
use super::image::PulledImage;

/// Label on every container: where its cgroup is. Set by [`Runtime::create`].
pub const LABEL_CGROUP: &str = "berth.dev/cgroup";

/// How to reach containerd.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// containerd's socket.
    pub socket: PathBuf,
    /// containerd's namespace: one per machine.
    pub namespace: String,
    pub snapshotter: String,
    /// Deadline of calls that containerd answers by itself.
    pub call_timeout: Duration,
    /// Deadline of calls that a shim has to answer: create, start, kill, delete.
    pub task_timeout: Duration,
    /// How long [`Runtime::delete`] repeats before it gives up and reports.
    pub delete_timeout: Duration,
    /// How often the connection is checked.
    pub ping_interval: Duration,
    /// How long containerd may be away before shims that keep it from starting are looked for, and how often from then on. Above
    /// what starts of it take that nothing keeps up.
    pub leftover_after: Duration,
}

impl RuntimeConfig {
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>, namespace: impl Into<String>) -> Self {
        Self {
            socket: socket.into(),
            namespace: namespace.into(),
            snapshotter: "overlayfs".into(),
            call_timeout: Duration::from_secs(10),
            task_timeout: Duration::from_secs(30),
            delete_timeout: Duration::from_secs(60),
            ping_interval: Duration::from_secs(2),
            leftover_after: Duration::from_secs(30),
        }
    }
}

/// Everything that one container needs.
#[derive(Debug, Clone)]
pub struct ContainerPlan {
    /// containerd's id; also the key of its snapshot.
    pub id: String,
    pub labels: BTreeMap<String, String>,
    pub image: PulledImage,
    pub spec: oci_spec::runtime::Spec,
    /// FIFO (or file) that takes standard output; must exist. Empty: discarded.
    pub stdout: PathBuf,
    pub stderr: PathBuf,
    /// As in the spec's `cgroupsPath`, for example `/berth/m1/replica`.
    pub cgroup_path: String,
}

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255; 128 + n when signal n ended it.
    pub code: u32,
    pub at: Timestamp,
    /// Processes of its cgroup that the kernel killed for want of memory. Decides "out of memory": 137 alone proves nothing.
    pub oom_kills: u64,
}

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskStatus {
    /// Made, not started.
    Created,
    Running,
    Stopped(Exit),
    /// Its shim does not answer: judge by cgroup and pid.
    Unanswered,
}

/// The task of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskState {
    /// 0 when the shim does not answer.
    pub pid: u32,
    pub status: TaskStatus,
}

/// A container as containerd lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeContainer {
    pub id: String,
    pub labels: BTreeMap<String, String>,
    pub created_at: Timestamp,
    /// None: no task was made, or it was deleted.
    pub task: Option<TaskState>,
}

/// What happened in the runtime. A receiver that lagged must list, as after `Reconnected`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// The task of a container ended. Reported once per task and connection; repeated reports are possible after an outage.
    Exit { id: String, pid: u32, exit: Exit },
    /// The kernel killed a process of this container for want of memory; the others are killed as well, and its exit follows.
    Oom { id: String },
    /// containerd does not answer.
    Lost,
    /// The event stream is live; what happened before it is found by listing.
    Reconnected,
}

/// A handle on containerd. Clones share the connection and the background tasks.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
    /// Ends the background tasks with the last handle; their own handles have none.
    _guard: Option<Arc<DropGuard>>,
}

struct Inner {
    config: RuntimeConfig,
    headers: Headers,
    channel: Channel,
    events: broadcast::Sender<RuntimeEvent>,
    impaired: watch::Sender<Option<Timestamp>>,
    /// Tasks whose end is being waited for, and cgroup paths of known containers.
    known: Mutex<BTreeMap<String, Known>>,
    /// Names of the programs that somebody speaks with.
    attached: Mutex<BTreeSet<String>>,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

#[derive(Debug, Default, Clone)]
struct Known {
    cgroup_path: String,
    /// What its cgroup counted before this run.
    oom_kills_before: u64,
    /// Pid whose end is waited for by a task of ours.
    waited_pid: Option<u32>,
    /// Pid whose end has been reported.
    reported_pid: Option<u32>,
    beside: exec::Turns,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}

impl Runtime {
    /// Makes the handle and starts its watcher. Does not wait for containerd: calls connect when they are made.
    ///
    /// # Errors
    /// When the namespace cannot be sent as a header.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn connect(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        let namespace: MetadataValue<Ascii> = config.namespace.parse().map_err(|_| RuntimeError::Failed {
            operation: "use namespace",
            object: config.namespace.clone(),
            message: "not ASCII".into(),
        })?;
        let (events, _) = broadcast::channel(1024);
        let inner = Arc::new(Inner {
            channel: lazy_channel(config.socket.clone()),
            headers: Headers {
                namespace,
                lease: None,
            },
            config,
            events,
            impaired: watch::Sender::new(None),
            known: Mutex::default(),
            attached: Mutex::default(),
            tracker: TaskTracker::new(),
            cancel: CancellationToken::new(),
        });
        let guard = Some(Arc::new(inner.cancel.clone().drop_guard()));
        let runtime = Self { inner, _guard: guard };
        runtime.start_watcher();
        Ok(runtime)
    }

    /// Ends the background tasks and waits for them. Containers are not touched.
    pub async fn shutdown(&self) {
        self.inner.cancel.cancel();
        self.inner.tracker.close();
        self.inner.tracker.wait().await;
    }

    /// What happens from now on. Bounded: a receiver that lags loses events and must list.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.inner.events.subscribe()
    }

    /// Since when containerd has not answered; None while it does.
    #[must_use]
    pub fn impaired_since(&self) -> Option<Timestamp> {
        *self.inner.impaired.borrow()
    }

    /// The same as a channel of the latest value.
    #[must_use]
    pub fn impaired(&self) -> watch::Receiver<Option<Timestamp>> {
        self.inner.impaired.subscribe()
    }

    #[must_use]
    pub fn config(&self) -> &RuntimeConfig {
        &self.inner.config
    }

    /// Use of one container, read from its cgroup without asking containerd. None when its cgroup is gone or unknown.
    #[must_use]
    pub fn usage(&self, id: &str) -> Option<cgroup::Usage> {
        let path = self.cgroup_path(id)?;
        cgroup::Cgroup::at(&path).usage()
    }

    /// Ends a container of which the kernel has killed a process for want of memory. What is left of a program that lost one of its
    /// processes is in no state that anybody has thought of, and its next end would be taken for the memory's too. cgroup v1 has no
    /// `memory.oom.group` that would do it.
    pub fn end_out_of_memory(&self, id: &str) {
        let Some(path) = self.cgroup_path(id) else { return };
        let cgroup = cgroup::Cgroup::at(&path);
        // Asked of the cgroup itself: a late event may be of the run before.
        if cgroup.oom_kills() > self.oom_kills_before(id) {
            let killed = cgroup.kill_all();
            tracing::info!(id, killed, "ended a container that is out of memory");
        }
    }

    /// The cgroup path of a container that was created or listed through this handle.
    #[must_use]
    pub fn cgroup_path(&self, id: &str) -> Option<String> {
        self.known().get(id).map(|known| known.cgroup_path.clone())
    }

    /// A handle for a background task: it does not keep the background tasks alive.
    fn unguarded(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            _guard: None,
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::from(self.inner.channel.clone())
    }

    pub(crate) fn headers(&self) -> &Headers {
        &self.inner.headers
    }

    /// Those of earlier runs, where their cgroup could not be removed and is used again.
    fn oom_kills_before(&self, id: &str) -> u64 {
        self.known().get(id).map_or(0, |known| known.oom_kills_before)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Known>> {
        self.inner.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel that connects at its first call, and again after a break.
fn lazy_channel(socket: PathBuf) -> Channel {
    Endpoint::from_static("http://[::]")
        .connect_timeout(Duration::from_secs(2))
        .connect_with_connector_lazy(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                tokio::net::UnixStream::connect(socket)
                    .await
                    .map(hyper_util::rt::TokioIo::new)
            }
        }))
}
