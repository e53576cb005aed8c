//! A program beside the first process of a running container, under the same rights and limits.
//!
//! ```text
//! exec ─▶ start ─▶ wait ──ends──▶ exit code
//!                    └──deadline──▶ none        then it is killed with all that it started, and removed
//! ```
//! One that cannot be removed (a shim that does not answer, a process that waits for a dead disk) stays, and so does what was
//! left by a daemon that died: the next program of the container removes it first.

use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::{
    DeleteProcessRequest, ExecProcessRequest, GetContainerRequest, GetRequest, KillRequest, StartRequest,
    WaitRequest,
};
use containerd_client::types::v1::Status as WireStatus;
use oci_spec::runtime::Spec;
use rustix::process::{Pid, Signal, getpgid, kill_process_group};
use tokio::sync::Mutex;
use tracing::warn;

use super::call::{Tolerate as _, within};
use super::lifecycle::{SIGKILL, json_any};
use super::{Runtime, RuntimeError};

/// What a program beside the first process is for. There is one at a time of each in a container, so each has one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// Whether it has started, or is ready: the first comes before the second.
    Probe,
    /// Whether it lives: may run while the other does, for neither delays the other.
    Liveness,
}

impl Beside {
    fn exec_id(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Liveness => "liveness",
        }
    }
}

/// Held by the programs that run beside the first process.
#[derive(Debug, Default, Clone)]
pub(super) struct Turns {
    probe: Arc<Mutex<()>>,
    liveness: Arc<Mutex<()>>,
}

impl Turns {
    fn of(&self, beside: Beside) -> Arc<Mutex<()>> {
        Arc::clone(match beside {
            Beside::Probe => &self.probe,
            Beside::Liveness => &self.liveness,
        })
    }
}

pub(super) const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// How long a killed process may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

impl Runtime {
    /// Runs `command` in a running container, with the user, environment and directory of its first process, and gives the exit code;
    /// none when it did not end within `deadline`, counted from its start, or an earlier one cannot be ended. Output is discarded.
    ///
    /// Goes on to its end when the caller does not wait for it, and is left to the next daemon by [`Runtime::shutdown`]. There is one at a
    /// time in a container for each purpose; the next waits for it.
    ///
    /// # Errors
    /// When containerd or the shim does not answer, the container does not run, or the program cannot be started
    /// ([`RuntimeError::is_bad_program`]).
    pub async fn exec(
        &self,
        id: &str,
        beside: Beside,
        command: Vec<String>,
        deadline: Duration,
    ) -> Result<Option<u32>, RuntimeError> {
        let exec_id = beside.exec_id();
        let (runtime, id) = (self.unguarded(), id.to_owned());
        let lost = RuntimeError::Unreachable {
            operation: "exec",
            object: id.clone(),
            message: "the daemon ends".into(),
        };
        let cancel = self.inner.cancel.clone();
        let run = cancel.run_until_cancelled_owned(async move {
            let turn = runtime.known().get(&id).map(|known| known.beside.of(beside));
            let turn = turn.ok_or_else(|| RuntimeError::NotFound {
                operation: "exec",
                object: id.clone(),
                message: "no such container".into(),
            })?;
            // Held while the program runs: that there is one at a time is what it is for.
            let _alone = turn.lock().await;
            if !runtime.make_process(&id, exec_id, command).await? {
                return Ok(None);
            }
            let ended = runtime.run_process(&id, exec_id, deadline).await;
            if let Err(error) = runtime.end_process(&id, exec_id).await {
                warn!(id, error = %error, "a program beside the first process could not be removed yet");
            }
            ended
        });
        let ended = self.inner.tracker.spawn(run).await;
        ended.ok().flatten().unwrap_or(Err(lost))
    }

    /// False when an earlier one is in the way and cannot be ended.
    async fn make_process(
        &self,
        id: &str,
        exec_id: &str,
        command: Vec<String>,
    ) -> Result<bool, RuntimeError> {
        let deadline = self.inner.config.task_timeout;
        let mut process = self.first_process(id).await?;
        process.set_args(Some(command)).set_terminal(Some(false));
        let attempt = || async {
            let request = ExecProcessRequest {
                container_id: id.to_owned(),
                exec_id: exec_id.to_owned(),
                spec: Some(json_any(PROCESS_TYPE, &process)),
                ..Default::default()
            };
            let request = self.headers().request(request, Some(deadline));
            within("exec", id, deadline, async {
                self.client().tasks().exec(request).await
            })
            .await
        };
        if attempt().await.or_exists()?.is_some() {
            return Ok(true);
        }
        if let Err(error) = self.end_process(id, exec_id).await {
            warn!(id, error = %error, "an earlier program beside the first process cannot be removed");
        }
        Ok(attempt().await.or_exists()?.is_some())
    }

    /// As the container's record describes it.
    pub(super) async fn first_process(&self, id: &str) -> Result<oci_spec::runtime::Process, RuntimeError> {
        let deadline = self.inner.config.call_timeout;
        let request = GetContainerRequest { id: id.to_owned() };
        let request = self.headers().request(request, Some(deadline));
        let answer = within("get container", id, deadline, async {
            self.client().containers().get(request).await
        });
        let record = answer
            .await?
            .into_inner()
            .container
            .and_then(|record| record.spec);
        let spec: Option<Spec> = record.and_then(|spec| serde_json::from_slice(&spec.value).ok());
        let process = spec.and_then(|spec| spec.process().clone());
        process.ok_or_else(|| RuntimeError::NotFound {
            operation: "exec",
            object: id.to_owned(),
            message: "its record describes no process".into(),
        })
    }

    async fn run_process(
        &self,
        id: &str,
        exec_id: &str,
        deadline: Duration,
    ) -> Result<Option<u32>, RuntimeError> {
        self.start_process(id, exec_id).await?;
        match self.wait_process(id, exec_id, deadline).await {
            Ok(code) => Ok(Some(code)),
            // Of the two clocks either may be the first; who does not answer at all is found out when it is to be removed.
            Err(RuntimeError::Timeout { .. } | RuntimeError::Unreachable { .. })
                if self.pid_of(id, exec_id).await?.is_some() =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    pub(super) async fn start_process(&self, id: &str, exec_id: &str) -> Result<(), RuntimeError> {
        let deadline = self.inner.config.task_timeout;
        let request = StartRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
        };
        let request = self.headers().request(request, Some(deadline));
        let started = within("start exec", id, deadline, async {
            self.client().tasks().start(request).await
        });
        started.await.map(|_| ())
    }

    /// The pid of a process that runs, as the host sees it; none of one that has ended.
    pub(super) async fn pid_of(&self, id: &str, exec_id: &str) -> Result<Option<Pid>, RuntimeError> {
        let deadline = self.inner.config.call_timeout;
        let request = GetRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
        };
        let request = self.headers().request(request, Some(deadline));
        let answer = within("get exec", id, deadline, async {
            self.client().tasks().get(request).await
        });
        let process = answer
            .await
            .or_gone()?
            .and_then(|answer| answer.into_inner().process);
        let process = process.filter(|process| process.status() != WireStatus::Stopped);
        Ok(process.and_then(|process| Pid::from_raw(i32::try_from(process.pid).ok()?)))
    }

    pub(super) async fn wait_process(
        &self,
        id: &str,
        exec_id: &str,
        deadline: Duration,
    ) -> Result<u32, RuntimeError> {
        let request = WaitRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
        };
        let request = self.headers().request(request, Some(deadline));
        let answer = within("wait for exec", id, deadline, async {
            self.client().tasks().wait(request).await
        });
        answer.await.map(|response| response.into_inner().exit_status)
    }

    /// Kills a process with all that it started, and removes it; none there is a success.
    pub(super) async fn end_process(&self, id: &str, exec_id: &str) -> Result<(), RuntimeError> {
        let deadline = self.inner.config.task_timeout;
        // The runtime makes it the leader of a group. Its own end would leave its children to the container's first process.
        if let Some(pid) = self.pid_of(id, exec_id).await?
            && getpgid(Some(pid)) == Ok(pid)
        {
            kill_process_group(pid, Signal::KILL).ok();
        }
        let request = KillRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            signal: SIGKILL,
            all: false,
        };
        let request = self.headers().request(request, Some(deadline));
        let killed = within("kill exec", id, deadline, async {
            self.client().tasks().kill(request).await
        });
        // One that has ended, or was never started, cannot be killed, and can be removed.
        if killed.await.is_ok() {
            self.wait_process(id, exec_id, KILL_TIMEOUT).await.or_gone()?;
        }
        let request = DeleteProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
        };
        let request = self.headers().request(request, Some(deadline));
        let removed = within("delete exec", id, deadline, async {
            self.client().tasks().delete_process(request).await
        });
        removed.await.or_gone().map(|_| ())
    }
}
