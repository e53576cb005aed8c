//! Containers and tasks: create, start, signal, update, delete, list.
//!
//! ```text
//! (nothing) ─create▶ snapshot + record + task Created ─start▶ Running ─exit▶ Stopped ─delete▶ (nothing)
//! ```
//! Each verb may be repeated after a crash at any point inside it: create replaces what an earlier, unfinished create of
//! the same id left; delete goes on until nothing is left, the record last, because the record is what a list shows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_api::time::{Timestamp, monotonic};
use containerd_client::services::v1::snapshots::{
    PrepareSnapshotRequest, RemoveSnapshotRequest, UsageRequest,
};
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest,
    GetRequest, KillRequest, ListContainersRequest, ListTasksRequest, StartRequest, UpdateTaskRequest,
    container,
};
use containerd_client::types::Mount;
use containerd_client::types::v1::{Process, Status as WireStatus};
use prost_types::Any;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::call::{Tolerate as _, within};
use super::events::timestamp;
use super::{
    ContainerPlan, Exit, Known, LABEL_CGROUP, Runtime, RuntimeContainer, RuntimeError, TaskState, TaskStatus,
    bundle, shim,
};
use crate::host::cgroup::Cgroup;
use crate::host::{Fault, HostError, child};

const SHIM: &str = "io.containerd.runc.v2";
/// Where that shim lets runc keep its state, a directory for each namespace, unless told otherwise.
const RUNC_ROOT: &str = "/run/containerd/runc";
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
/// How long one shim may take to say its state in a list; a mute one is reported as unanswered.
const STATE_TIMEOUT: Duration = Duration::from_secs(3);
pub(super) const SIGKILL: u32 = 9;

impl Runtime {
    /// Makes snapshot, record and task of a container; the task is created, not started. Returns its pid.
    ///
    /// Repeated for the same id it replaces what is not running. Snapshot and record are made at the same time; garbage
    /// collection cannot take the snapshot because the record names it.
    ///
    /// # Errors
    /// [`RuntimeError::Exists`] when a task of this id runs; [`RuntimeError::ImageGone`] when the image must be ensured
    /// again. After an error of class Fatal nothing is left behind.
    pub async fn create(&self, plan: &ContainerPlan) -> Result<u32, RuntimeError> {
        let mut result = match self.try_create(plan).await {
            Err(RuntimeError::Exists { .. }) => {
                self.clear_leftovers(&plan.id).await?;
                self.try_create(plan).await
            }
            other => other,
        };
        let namespace = &self.inner.config.namespace;
        if let Err(error) = &result
            && let Some(path) = bundle::in_the_way(error, namespace, &plan.id)
        {
            // Task and shim first: nobody uses the bundle then.
            self.delete(&plan.id).await?;
            self.remove_bundle(&plan.id, path).await?;
            result = self.try_create(plan).await;
        }
        if let Err(RuntimeError::Failed { .. } | RuntimeError::ImageGone { .. }) = &result
            && let Err(error) = self.delete(&plan.id).await
        {
            warn!(id = plan.id, error = %error, "what a failed create left could not be removed yet");
        }
        result
    }

    async fn try_create(&self, plan: &ContainerPlan) -> Result<u32, RuntimeError> {
        self.known().insert(
            plan.id.clone(),
            Known {
                cgroup_path: plan.cgroup_path.clone(),
                oom_kills_before: Cgroup::at(&plan.cgroup_path).oom_kills(),
                ..Known::default()
            },
        );
        let (mounts, record) = tokio::join!(self.prepare_snapshot(plan), self.create_record(plan));
        let mounts = mounts?;
        record?;
        self.create_task(plan, mounts).await
    }

    async fn prepare_snapshot(&self, plan: &ContainerPlan) -> Result<Vec<Mount>, RuntimeError> {
        let config = &self.inner.config;
        let request = PrepareSnapshotRequest {
            snapshotter: config.snapshotter.clone(),
            key: plan.id.clone(),
            parent: plan.image.chain_id.clone(),
            ..Default::default()
        };
        let request = self.headers().request(request, Some(config.call_timeout));
        let answer = within("prepare snapshot", &plan.id, config.call_timeout, async {
            self.client().snapshots().prepare(request).await
        });
        match answer.await {
            Ok(response) => Ok(response.into_inner().mounts),
            Err(RuntimeError::NotFound { object, .. }) => Err(RuntimeError::ImageGone {
                object,
                chain_id: plan.image.chain_id.clone(),
            }),
            Err(error) => Err(error),
        }
    }

    async fn create_record(&self, plan: &ContainerPlan) -> Result<(), RuntimeError> {
        let config = &self.inner.config;
        let mut labels: std::collections::HashMap<String, String> = plan.labels.clone().into_iter().collect();
        labels.insert(LABEL_CGROUP.into(), plan.cgroup_path.clone());
        let record = Container {
            id: plan.id.clone(),
            labels,
            image: plan.image.reference.clone(),
            runtime: Some(container::Runtime {
                name: SHIM.into(),
                options: None,
            }),
            spec: Some(json_any(SPEC_TYPE, &plan.spec)),
            snapshotter: config.snapshotter.clone(),
            snapshot_key: plan.id.clone(),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            container: Some(record),
        };
        let request = self.headers().request(request, Some(config.call_timeout));
        within("create container", &plan.id, config.call_timeout, async {
            self.client().containers().create(request).await
        })
        .await
        .map(|_| ())
    }

    async fn create_task(&self, plan: &ContainerPlan, rootfs: Vec<Mount>) -> Result<u32, RuntimeError> {
        let deadline = self.inner.config.task_timeout;
        let request = CreateTaskRequest {
            container_id: plan.id.clone(),
            rootfs,
            stdout: plan.stdout.to_string_lossy().into_owned(),
            stderr: plan.stderr.to_string_lossy().into_owned(),
            ..Default::default()
        };
        let request = self.headers().request(request, Some(deadline));
        within("create task", &plan.id, deadline, async {
            self.client().tasks().create(request).await
        })
        .await
        .map(|response| response.into_inner().pid)
    }

    /// Removes the bundle of a task that is gone.
    async fn remove_bundle(&self, id: &str, path: PathBuf) -> Result<(), RuntimeError> {
        warn!(id, path = %path.display(), "removing the bundle that a killed containerd left");
        let removed = tokio::task::spawn_blocking(move || bundle::remove(&path));
        let failed = |message: String| RuntimeError::Failed {
            operation: "remove the bundle of",
            object: id.to_owned(),
            message,
        };
        removed
            .await
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))
    }

    /// Removes what an earlier create of the same id left, unless it runs.
    async fn clear_leftovers(&self, id: &str) -> Result<(), RuntimeError> {
        let running = self.task(id).await?.is_some_and(|task| match task.status {
            TaskStatus::Running | TaskStatus::Unanswered => true,
            TaskStatus::Created | TaskStatus::Stopped(_) => false,
        });
        if running {
            return Err(RuntimeError::Exists {
                operation: "create container",
                object: id.to_owned(),
                message: "its task runs".into(),
            });
        }
        info!(id, "replacing what an unfinished create left");
        self.delete(id).await.map(|_| ())
    }

    /// Starts a created task and returns its pid. Its end comes as [`super::RuntimeEvent::Exit`], however soon.
    ///
    /// # Errors
    /// When the task is not there or its program cannot be started ([`RuntimeError::is_bad_program`]).
    pub async fn start(&self, id: &str) -> Result<u32, RuntimeError> {
        // The wait is under way before the start. A task that ended stays until it is deleted, so a wait that reaches the
        // shim only after the end is answered too.
        let (pid_sender, pid) = oneshot::channel();
        self.wait_for_exit(id, async { pid.await.ok() });
        let deadline = self.inner.config.task_timeout;
        let request = StartRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        };
        let request = self.headers().request(request, Some(deadline));
        let answer = within("start task", id, deadline, async {
            self.client().tasks().start(request).await
        });
        let pid = match answer.await {
            Ok(response) => response.into_inner().pid,
            Err(error @ (RuntimeError::Failed { .. } | RuntimeError::WrongState { .. })) => {
                // A repeated start: the first one did the work.
                match self.task(id).await? {
                    Some(TaskState {
                        pid,
                        status: TaskStatus::Running,
                    }) => pid,
                    _ => return Err(error),
                }
            }
            Err(error) => return Err(error),
        };
        if let Some(known) = self.known().get_mut(id) {
            known.waited_pid = Some(pid);
        }
        // An error means that the wait broke off; listing finds the end.
        pid_sender.send(pid).ok();
        Ok(pid)
    }

    /// Sends a signal to the first process of a container, or to all of them.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] when the task is gone or has ended.
    pub async fn signal(&self, id: &str, signal: u32, target: SignalTarget) -> Result<(), RuntimeError> {
        let deadline = self.inner.config.task_timeout;
        let request = KillRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
            signal,
            all: target == SignalTarget::AllProcesses,
        };
        let request = self.headers().request(request, Some(deadline));
        within("signal task", id, deadline, async {
            self.client().tasks().kill(request).await
        })
        .await
        .map(|_| ())
    }

    /// Changes the limits of a running task at once.
    ///
    /// # Errors
    /// When the task is gone or the runtime refuses the limits.
    pub async fn update(
        &self,
        id: &str,
        resources: &oci_spec::runtime::LinuxResources,
    ) -> Result<(), RuntimeError> {
        let deadline = self.inner.config.task_timeout;
        let request = UpdateTaskRequest {
            container_id: id.to_owned(),
            resources: Some(json_any(RESOURCES_TYPE, resources)),
            ..Default::default()
        };
        let request = self.headers().request(request, Some(deadline));
        within("update task", id, deadline, async {
            self.client().tasks().update(request).await
        })
        .await
        .map(|_| ())
    }

    /// The task of one container; None when it has none.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub async fn task(&self, id: &str) -> Result<Option<TaskState>, RuntimeError> {
        let request = GetRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        };
        let request = self.headers().request(request, Some(STATE_TIMEOUT));
        let answer = within("get task", id, STATE_TIMEOUT, async {
            self.client().tasks().get(request).await
        });
        match answer.await.or_gone() {
            Ok(response) => Ok(response
                .and_then(|response| response.into_inner().process)
                .map(|process| self.task_state(&process))),
            Err(error @ (RuntimeError::Timeout { .. } | RuntimeError::Unreachable { .. })) => {
                // Whose silence is it? containerd's own is an error, a shim's is a state.
                if self.impaired_since().is_some() {
                    return Err(error);
                }
                Ok(Some(TaskState {
                    pid: 0,
                    status: TaskStatus::Unanswered,
                }))
            }
            Err(error) => Err(error),
        }
    }

    /// All containers of the namespace with their tasks, ordered by id. Exits of listed running tasks are watched from
    /// now on, so listing after [`super::RuntimeEvent::Reconnected`] is all that adoption takes.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub async fn list(&self) -> Result<Vec<RuntimeContainer>, RuntimeError> {
        let deadline = self.inner.config.task_timeout;
        let containers = self
            .headers()
            .request(ListContainersRequest::default(), Some(deadline));
        let tasks = self
            .headers()
            .request(ListTasksRequest::default(), Some(deadline));
        let (containers, tasks) = tokio::join!(
            within("list containers", "", deadline, async {
                self.client().containers().list(containers).await
            }),
            within("list tasks", "", deadline, async {
                self.client().tasks().list(tasks).await
            }),
        );
        let tasks: BTreeMap<String, Process> = tasks?
            .into_inner()
            .tasks
            .into_iter()
            .map(|process| (process_id(&process).to_owned(), process))
            .collect();
        let mut found = Vec::new();
        for record in containers?.into_inner().containers {
            let labels: BTreeMap<String, String> = record.labels.into_iter().collect();
            self.remember(&record.id, &labels);
            let task = match tasks.get(&record.id) {
                Some(process) => Some(self.task_state(process)),
                // A mute shim is missing from the list too; only asking for it tells the two apart.
                None => self.task(&record.id).await?,
            };
            self.watch_adopted(&record.id, task);
            found.push(RuntimeContainer {
                id: record.id,
                labels,
                created_at: record.created_at.as_ref().map_or_else(Timestamp::now, timestamp),
                task,
            });
        }
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    fn remember(&self, id: &str, labels: &BTreeMap<String, String>) {
        let mut known = self.known();
        let known = known.entry(id.to_owned()).or_default();
        if let Some(path) = labels.get(LABEL_CGROUP) {
            known.cgroup_path.clone_from(path);
        }
    }

    /// Waits for the end of a running task that another life of this daemon, or another connection, started.
    fn watch_adopted(&self, id: &str, task: Option<TaskState>) {
        let Some(TaskState {
            pid,
            status: TaskStatus::Running,
        }) = task
        else {
            return;
        };
        let watched = self
            .known()
            .get_mut(id)
            .is_none_or(|known| known.waited_pid.replace(pid) == Some(pid));
        if !watched {
            self.wait_for_exit(id, std::future::ready(Some(pid)));
        }
    }

    fn task_state(&self, process: &Process) -> TaskState {
        let status = match process.status() {
            WireStatus::Created => TaskStatus::Created,
            WireStatus::Running | WireStatus::Paused | WireStatus::Pausing => TaskStatus::Running,
            WireStatus::Stopped => TaskStatus::Stopped(Exit {
                code: process.exit_status,
                at: process.exited_at.as_ref().map_or_else(Timestamp::now, timestamp),
                oom_kills: self.oom_kills(process_id(process)),
            }),
            WireStatus::Unknown => TaskStatus::Unanswered,
        };
        TaskState {
            pid: process.pid,
            status,
        }
    }

    fn oom_kills(&self, id: &str) -> u64 {
        self.cgroup_path(id)
            .map_or(0, |path| Cgroup::at(&path).oom_kills())
            .saturating_sub(self.oom_kills_before(id))
    }

    /// Bytes and inodes that a container has written to its own root. containerd walks through all of it.
    ///
    /// # Errors
    /// When there is no such container, or containerd does not answer in time.
    pub async fn written(&self, id: &str) -> Result<(u64, u64), RuntimeError> {
        let config = &self.inner.config;
        let usage = UsageRequest {
            snapshotter: config.snapshotter.clone(),
            key: id.to_owned(),
        };
        let usage = self.headers().request(usage, Some(config.call_timeout));
        let answer = within("usage of snapshot", id, config.call_timeout, async {
            self.client().snapshots().usage(usage).await
        });
        let usage = answer.await?.into_inner();
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        Ok((count(usage.size), count(usage.inodes)))
    }

    /// Removes task, snapshot and record, killing what still runs. Returns how the task ended, if there was one. What is
    /// gone already is success; it returns without error only when nothing is left, no shim either.
    ///
    /// # Errors
    /// When something is left after `delete_timeout`; repeat it then.
    pub async fn delete(&self, id: &str) -> Result<Option<Exit>, RuntimeError> {
        let deadline = monotonic() + self.inner.config.delete_timeout;
        let exit = self.delete_task(id, deadline).await?;
        let call_timeout = self.inner.config.call_timeout;
        let remove = RemoveSnapshotRequest {
            snapshotter: self.inner.config.snapshotter.clone(),
            key: id.to_owned(),
        };
        let remove = self.headers().request(remove, Some(call_timeout));
        within("remove snapshot", id, call_timeout, async {
            self.client().snapshots().remove(remove).await
        })
        .await
        .or_gone()?;
        let delete = DeleteContainerRequest { id: id.to_owned() };
        let delete = self.headers().request(delete, Some(call_timeout));
        within("delete container", id, call_timeout, async {
            self.client().containers().delete(delete).await
        })
        .await
        .or_gone()?;
        self.known().remove(id);
        Ok(exit)
    }

    async fn delete_task(&self, id: &str, deadline: Instant) -> Result<Option<Exit>, RuntimeError> {
        // The cgroup, and its count of out-of-memory kills, goes with the task.
        let oom_kills = self.oom_kills(id);
        let mut pause = Duration::from_millis(10);
        let mut failures = 0;
        let exit = loop {
            let error = match self.delete_task_once(id, oom_kills).await {
                Ok(exit) => break Some(exit),
                Err(error) if error.is_not_found() => break None,
                Err(error) => error,
            };
            if monotonic() >= deadline {
                return Err(error);
            }
            match &error {
                RuntimeError::WrongState { .. } => {
                    // Gone in between is what we want; anything else shows at the next attempt.
                    self.signal(id, SIGKILL, SignalTarget::AllProcesses).await.ok();
                }
                _ if self.impaired_since().is_some() => {}
                _ => {
                    failures += 1;
                    warn!(id, failures, error = %error, "the shim does not delete its task");
                }
            }
            if failures >= 2 {
                self.kill_from_outside(id);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        };
        self.reap_shim(id, deadline).await?;
        self.forget_in_runc(id).await?;
        Ok(exit)
    }

    /// A task whose delete took too long is gone for containerd, which then gives up its own clean-up as well; runc knows it still and
    /// refuses the id from then on.
    async fn forget_in_runc(&self, id: &str) -> Result<(), RuntimeError> {
        let root = Path::new(RUNC_ROOT).join(&self.inner.config.namespace);
        if !root.join(id).exists() {
            return Ok(());
        }
        warn!(id, "removing what runc knows of a task that is gone");
        let deadline = self.inner.config.delete_timeout / 4;
        let root = root.to_string_lossy();
        let removed = child::run(
            "runc",
            &["--root", &root, "delete", "--force", id],
            None,
            deadline,
        )
        .await;
        removed.map(drop).map_err(|error| RuntimeError::Failed {
            operation: "remove from runc",
            object: id.to_owned(),
            message: HostError::chain(Fault::Infrastructure, &error).message,
        })
    }

    async fn delete_task_once(&self, id: &str, oom_kills: u64) -> Result<Exit, RuntimeError> {
        let deadline = self
            .inner
            .config
            .task_timeout
            .min(self.inner.config.delete_timeout / 4);
        let request = DeleteTaskRequest {
            container_id: id.to_owned(),
        };
        let request = self.headers().request(request, Some(deadline));
        within("delete task", id, deadline, async {
            self.client().tasks().delete(request).await
        })
        .await
        .map(|response| {
            let response = response.into_inner();
            Exit {
                code: response.exit_status,
                at: response.exited_at.as_ref().map_or_else(Timestamp::now, timestamp),
                oom_kills,
            }
        })
    }

    /// Kills shim and processes of a container whose shim is mute. containerd then cleans up the task by itself.
    fn kill_from_outside(&self, id: &str) {
        let config = &self.inner.config;
        let shims = shim::kill(&config.namespace, id, &config.socket);
        let killed = self
            .cgroup_path(id)
            .map_or(0, |path| Cgroup::at(&path).kill_all());
        warn!(id, shims, killed, "killed a mute shim and its processes");
    }

    /// The task is gone for containerd; its shim ends by itself within moments, or is killed.
    async fn reap_shim(&self, id: &str, deadline: Instant) -> Result<(), RuntimeError> {
        let config = &self.inner.config;
        let mut looks = 0u32;
        while !shim::find(&config.namespace, id, &config.socket).is_empty() {
            looks += 1;
            if looks > 20 {
                self.kill_from_outside(id);
            }
            if monotonic() >= deadline {
                return Err(RuntimeError::Timeout {
                    operation: "end shim",
                    object: id.to_owned(),
                    deadline: config.delete_timeout,
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if let Some(path) = self.cgroup_path(id) {
            let cgroup = Cgroup::at(&path);
            cgroup.kill_all();
            cgroup.remove();
        }
        Ok(())
    }
}

/// Whom a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalTarget {
    /// The first process: it decides what to do with its children.
    FirstProcess,
    AllProcesses,
}

fn process_id(process: &Process) -> &str {
    if process.container_id.is_empty() {
        &process.id
    } else {
        &process.container_id
    }
}

pub(super) fn json_any(type_url: &str, value: &impl serde::Serialize) -> Any {
    Any {
        type_url: type_url.into(),
        value: serde_json::to_vec(value).expect("the types of the runtime specification have text keys"),
    }
}
