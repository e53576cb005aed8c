//! The watcher: one event stream, kept alive over restarts of containerd.
//!
//! Subscribing answers only with the first event, so the watcher publishes a ping of its own: when that comes back the
//! stream is known to be live, and a stream on which pings stop coming back is known to be dead.

use std::time::Duration;

use berth_api::time::{Timestamp, monotonic};
use containerd_client::events::{TaskExit, TaskOom};
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use containerd_client::tonic::Status;
use containerd_client::types::Envelope;
use prost::Message as _;
use prost_types::Any;
use tracing::{debug, error, info, warn};

use super::call::within;
use super::leftover::{self, Leftover};
use super::{Exit, Runtime, RuntimeError, RuntimeEvent};
use crate::host::cgroup::Cgroup;

const PING_TOPIC: &str = "/berth/ping";
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// Between attempts to reach a containerd that is away, and between pings on a stream that is not live yet.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

impl Runtime {
    pub(super) fn start_watcher(&self) {
        let watcher = self.unguarded();
        self.inner.tracker.spawn(async move {
            let cancel = watcher.inner.cancel.clone();
            // Cancel-safe: the watcher holds nothing that must be finished.
            cancel.run_until_cancelled(watcher.watch()).await;
        });
    }

    async fn watch(&self) {
        loop {
            self.await_containerd().await;
            let mut live = false;
            let end = self.follow(&mut live).await;
            if live {
                debug!(error = %end, "the event stream of containerd ended");
                self.publish(RuntimeEvent::Lost);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Returns when containerd answers; until then the runtime is impaired.
    async fn await_containerd(&self) {
        let mut look_at = monotonic() + self.inner.config.leftover_after;
        loop {
            let request = self.headers().request((), Some(PING_TIMEOUT));
            let answer = within("ask version", "", PING_TIMEOUT, async {
                self.client().version().version(request).await
            });
            match answer.await {
                Ok(_) => return,
                Err(error) => self.set_impaired(&error),
            }
            if monotonic() >= look_at {
                self.clear_the_way().await;
                look_at = monotonic() + self.inner.config.leftover_after;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Whoever supervises containerd starts it again and again; what may keep it from starting is looked for here.
    async fn clear_the_way(&self) {
        let config = self.inner.config.clone();
        let look = move || leftover::end_mute(&config.namespace, &config.socket);
        for leftover in tokio::task::spawn_blocking(look).await.unwrap_or_default() {
            match leftover {
                Leftover::Ended { id } => {
                    error!(
                        id,
                        "containerd is away and the shim of a dead task does not answer: ended it"
                    );
                }
                Leftover::Mute { id } => {
                    error!(
                        id,
                        "containerd is away and the shim of a running task does not answer: left alone"
                    );
                }
            }
        }
    }

    fn set_impaired(&self, error: &RuntimeError) {
        self.inner.impaired.send_if_modified(|since| {
            let changed = since.is_none();
            if changed {
                warn!(error = %error, "containerd does not answer");
                *since = Some(Timestamp::now());
            }
            changed
        });
    }

    fn set_well(&self) {
        self.inner.impaired.send_if_modified(|since| {
            if since.is_some() {
                info!("containerd answers again");
            }
            since.take().is_some()
        });
    }

    /// Follows one event stream to its end. Sets `live` once events are known to arrive.
    async fn follow(&self, live: &mut bool) -> RuntimeError {
        let namespace = &self.inner.config.namespace;
        let filters = ["/tasks/exit", "/tasks/oom", PING_TOPIC]
            .iter()
            .map(|topic| format!("namespace==\"{namespace}\",topic==\"{topic}\""))
            .collect();
        // The answer to subscribe comes with the first event: no deadline but that of the pings below.
        let request = self.headers().request(SubscribeRequest { filters }, None);
        let mut events = self.client().events();
        let subscribe = events.subscribe(request);
        tokio::pin!(subscribe);
        let mut last_event = monotonic();
        let stream = loop {
            tokio::select! {
                // Cancel-safe: the same pinned future is polled again.
                answer = &mut subscribe => break answer,
                // Cancel-safe: a ping that is dropped half-way is only a lost ping.
                ping = self.ping(RETRY_PAUSE) => if let Err(error) = ping { return error },
            }
        };
        let mut stream = match stream {
            Ok(response) => response.into_inner(),
            Err(status) => return ended(&status),
        };
        let patience = self.inner.config.ping_interval * 3 + PING_TIMEOUT;
        loop {
            tokio::select! {
                // Cancel-safe: `message` keeps what it read in the stream.
                message = stream.message() => match message {
                    Ok(Some(envelope)) => {
                        last_event = monotonic();
                        if !*live {
                            *live = true;
                            self.set_well();
                            self.publish(RuntimeEvent::Reconnected);
                        }
                        self.take_event(&envelope);
                    }
                    Ok(None) => return ended(&Status::unavailable("end of stream")),
                    Err(status) => return ended(&status),
                },
                // Cancel-safe: as above.
                ping = self.ping(self.inner.config.ping_interval) => {
                    if let Err(error) = ping {
                        self.set_impaired(&error);
                        return error;
                    }
                    if last_event.elapsed() > patience {
                        return ended(&Status::unavailable("pings do not come back"));
                    }
                }
            }
        }
    }

    /// After `pause`, publishes an event that must come back on the stream.
    async fn ping(&self, pause: Duration) -> Result<(), RuntimeError> {
        tokio::time::sleep(pause).await;
        let ping = PublishRequest {
            topic: PING_TOPIC.into(),
            event: Some(Any {
                type_url: "berth.dev/ping".into(),
                value: Vec::new(),
            }),
        };
        let request = self.headers().request(ping, Some(PING_TIMEOUT));
        within("ping", "", PING_TIMEOUT, async {
            self.client().events().publish(request).await
        })
        .await
        .map(|_| ())
    }

    fn take_event(&self, envelope: &Envelope) {
        let Some(event) = &envelope.event else { return };
        let value = event.value.as_slice();
        match envelope.topic.as_str() {
            "/tasks/exit" => match TaskExit::decode(value) {
                // Other ids are processes that were executed inside the container later.
                Ok(exit) if exit.id == exit.container_id => {
                    let at = exit.exited_at.as_ref().map_or_else(Timestamp::now, timestamp);
                    self.report_exit(&exit.container_id, exit.pid, exit.exit_status, at);
                }
                Ok(_) => {}
                Err(error) => warn!(error = %error, "an exit event cannot be read"),
            },
            "/tasks/oom" => match TaskOom::decode(value) {
                Ok(oom) => {
                    self.end_out_of_memory(&oom.container_id);
                    self.publish(RuntimeEvent::Oom { id: oom.container_id });
                }
                Err(error) => warn!(error = %error, "an out-of-memory event cannot be read"),
            },
            _ => {}
        }
    }

    /// Waits for the end of a task in a background task, once per task. `pid` gives the pid once it is known.
    pub(super) fn wait_for_exit(&self, id: &str, pid: impl Future<Output = Option<u32>> + Send + 'static) {
        let (waiter, id) = (self.unguarded(), id.to_owned());
        self.inner.tracker.spawn(async move {
            let cancel = waiter.inner.cancel.clone();
            // Cancel-safe: nothing is held; an exit that is missed here is found by listing.
            cancel.run_until_cancelled(waiter.await_exit(&id, pid)).await;
        });
    }

    async fn await_exit(&self, id: &str, pid: impl Future<Output = Option<u32>>) {
        let request = containerd_client::services::v1::WaitRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        };
        // No deadline: the task may run for years. The call ends with the task or with the connection.
        let request = self.headers().request(request, None);
        let mut tasks = self.client().tasks();
        let (pid, ended) = tokio::join!(pid, tasks.wait(request));
        let Some(pid) = pid else { return };
        match ended {
            Ok(response) => {
                let response = response.into_inner();
                let at = response.exited_at.as_ref().map_or_else(Timestamp::now, timestamp);
                self.report_exit(id, pid, response.exit_status, at);
            }
            Err(status) => {
                debug!(id, error = %status, "the wait for a task broke off");
                let mut known = self.known();
                if let Some(known) = known.get_mut(id).filter(|known| known.waited_pid == Some(pid)) {
                    known.waited_pid = None;
                }
            }
        }
    }

    fn report_exit(&self, id: &str, pid: u32, code: u32, at: Timestamp) {
        let (path, before) = {
            let mut known = self.known();
            let Some(known) = known.get_mut(id) else {
                // Deleted by us: whoever deleted it has the exit.
                return;
            };
            if known.reported_pid.replace(pid) == Some(pid) {
                return;
            }
            (known.cgroup_path.clone(), known.oom_kills_before)
        };
        let exit = Exit {
            code,
            at,
            oom_kills: Cgroup::at(&path).oom_kills().saturating_sub(before),
        };
        self.publish(RuntimeEvent::Exit {
            id: id.to_owned(),
            pid,
            exit,
        });
    }

    fn publish(&self, event: RuntimeEvent) {
        // An error only says that nobody listens now; whoever subscribes later lists first.
        self.inner.events.send(event).ok();
    }
}

fn ended(status: &Status) -> RuntimeError {
    RuntimeError::Unreachable {
        operation: "follow events",
        object: String::new(),
        message: status.message().to_owned(),
    }
}

pub(crate) fn timestamp(time: &prost_types::Timestamp) -> Timestamp {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    let millis = u64::try_from(time.nanos / 1_000_000).unwrap_or(0);
    Timestamp::from_millis(seconds.saturating_mul(1000).saturating_add(millis))
}
