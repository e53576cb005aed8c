//! One session: Hello, then both sides say what changes until either ends it.
//!
//! The status is sent when it changes, at most every 50 ms, and at each heartbeat. Three heartbeats without a message
//! from the scheduler end the session; so does a scheduler that takes nothing for as long. A session that takes longer to open is
//! given up too: what stands between may have stopped forwarding without a word.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_api::assignment::Position;
use berth_api::id::ReplicaId;
use berth_api::link::{
    Ack, Assignments, Hello, LogChunk, LogRequest, NeedFull, NodeMessage, Pong, SchedulerMessage, Status,
    TunnelOpen, TunnelRequest, TunnelUp, node_message::Kind, scheduler_message, tunnel_up,
};
use berth_api::time::{Timestamp, monotonic};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;

use super::proto::link_client::LinkClient;
use super::renewal::Renewal;
use super::{CALL_TIMEOUT, Link, LinkError, MESSAGE_MAX_BYTES, channel};
use crate::credentials::Credentials;
use crate::dns::Applied;
use crate::reconcile::{Answer, Input};
use crate::status::{Part, Snapshot};
use crate::tunnel::{self, Reach};

/// Messages that may wait for a slow scheduler.
const OUTBOUND_MAX: usize = 64;
/// From dialling to the answer. The scheduler itself gives up a handshake, and a Hello that does not come, after as long.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Until the Welcome says another.
const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(2);
/// Statuses are at least this far apart: fifty replicas that become ready at once make a few messages.
const STATUS_GAP: Duration = Duration::from_millis(50);
/// Log requests answered at once.
const LOG_REQUESTS_MAX: usize = 32;
const LOG_CHUNKS_MAX: usize = 8;
/// Tunnels at once; what is above is refused.
const TUNNELS_MAX: usize = 64;
/// The loop takes inputs within milliseconds; one that does not is broken and the session is no use.
const INBOX_TIMEOUT: Duration = Duration::from_secs(10);

struct Session {
    /// Of the scheduler.
    url: String,
    outbound: mpsc::Sender<NodeMessage>,
    heartbeat: Duration,
    heard_at: Instant,
    status_sent_at: Option<Instant>,
    status_due: bool,
    renewal: Renewal,
    logs: JoinSet<u64>,
    log_cancels: BTreeMap<u64, CancellationToken>,
    chunks: mpsc::Sender<LogChunk>,
    client: LinkClient<Channel>,
    /// Ended with the session.
    tunnels: JoinSet<()>,
}

impl Link {
    /// Serves one session. `Ok` when there is another certificate to go on with: the next session replaces this one at once.
    pub(super) async fn serve(
        &mut self,
        credentials: &mut Credentials,
        cancel: &CancellationToken,
    ) -> Result<(), LinkError> {
        let url = self.route.url(&self.config.scheduler).to_owned();
        let channel = channel(
            &self.config,
            &url,
            Some((&credentials.certificate_pem, &credentials.key_pem)),
        )?;
        let mut client = LinkClient::new(channel)
            .max_decoding_message_size(MESSAGE_MAX_BYTES)
            .max_encoding_message_size(MESSAGE_MAX_BYTES);
        let snapshot = self.observed(cancel).await;
        let (outbound, messages) = mpsc::channel(OUTBOUND_MAX);
        let (chunks, mut chunks_out) = mpsc::channel(LOG_CHUNKS_MAX);
        let mut session = Session {
            url,
            client: client.clone(),
            tunnels: JoinSet::new(),
            outbound,
            heartbeat: HEARTBEAT_DEFAULT,
            heard_at: monotonic(),
            status_sent_at: None,
            status_due: true,
            renewal: Renewal::default(),
            logs: JoinSet::new(),
            log_cancels: BTreeMap::new(),
            chunks,
        };
        session.send(Kind::Hello(self.hello(&snapshot))).await?;
        let opened = tokio::time::timeout(OPEN_TIMEOUT, client.session(ReceiverStream::new(messages))).await;
        let mut inbound = match opened {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(LinkError::of_status(&status, &session.url)),
            Err(_) => return Err(LinkError::Silent(OPEN_TIMEOUT)),
        };
        // Silence counts from here: a crowded scheduler may have taken long to open it.
        session.heard_at = monotonic();
        *credentials = self
            .exchange(&mut session, &mut inbound, &mut chunks_out, credentials)
            .await?;
        Ok(())
    }

    /// The first snapshot in which the machine has been read: Hello says what runs. A runtime that does not answer does
    /// not keep the node from saying so.
    async fn observed(&mut self, cancel: &CancellationToken) -> Arc<Snapshot> {
        let mut snapshots = self.snapshots.clone();
        let first = async { snapshots.wait_for(|snapshot| snapshot.observed).await.is_ok() };
        // However it ends, what is known then is said.
        let _: Option<_> = cancel
            .run_until_cancelled(tokio::time::timeout(CALL_TIMEOUT, first))
            .await;
        self.snapshots.borrow().clone()
    }

    fn hello(&self, snapshot: &Snapshot) -> Hello {
        let position = position_of(snapshot);
        Hello {
            machine_id: self.config.machine_id.to_string(),
            boot_id: self.boot_id.clone(),
            version: snapshot.version.to_owned(),
            accepted: Some(position),
            running_replica_ids: snapshot.running.iter().map(ToString::to_string).collect(),
            state_rebuilt: self.state_rebuilt,
        }
    }

    async fn exchange(
        &mut self,
        session: &mut Session,
        inbound: &mut Streaming<SchedulerMessage>,
        chunks: &mut mpsc::Receiver<LogChunk>,
        present: &Credentials,
    ) -> Result<Credentials, LinkError> {
        self.snapshots.mark_changed();
        loop {
            let now = monotonic();
            session.renewal.begin(now, self, present);
            let silence_at = session.silence_at();
            if now >= silence_at {
                return Err(LinkError::Silent(session.heartbeat * 3));
            }
            let status_at = session.status_at(now);
            if now >= status_at {
                session.send_status(self).await?;
                continue;
            }
            let wake_at = session
                .renewal
                .at
                .unwrap_or(silence_at)
                .min(status_at)
                .min(silence_at);
            // Every arm is cancel-safe: a stream or queue keeps what is not taken, a watch stays marked, a set keeps a
            // task that ended, timers hold nothing.
            tokio::select! {
                received = inbound.message() => {
                    let message = match received {
                        Ok(Some(message)) => message,
                        Ok(None) => return Err(LinkError::Ended),
                        Err(status) => return Err(LinkError::of_status(&status, &session.url)),
                    };
                    session.heard_at = monotonic();
                    if let Some(scheduler_message::Kind::Welcome(welcome)) = &message.kind {
                        session.renewal.plan(present, Timestamp::from_millis(welcome.now_ms));
                    }
                    self.take(session, message).await?;
                }
                renewed = session.renewal.ended() => {
                    if let Some(renewed) = renewed {
                        return Ok(renewed);
                    }
                }
                changed = self.snapshots.changed() => {
                    if changed.is_err() {
                        return Err(LinkError::Ended);
                    }
                    session.status_due = true;
                }
                Some(answer) = self.answers.recv() => session.send(Kind::Ack(ack(&answer))).await?,
                event = self.events.next() => {
                    let json = serde_json::to_vec(&event).expect("an event has text keys");
                    if let Err(error) = session.send(Kind::Event(json.into())).await {
                        self.events.put_back(event);
                        return Err(error);
                    }
                }
                Some(chunk) = chunks.recv() => session.send(Kind::LogChunk(chunk)).await?,
                Some(ended) = session.logs.join_next(), if !session.logs.is_empty() => {
                    if let Ok(request_id) = ended {
                        session.log_cancels.remove(&request_id);
                    }
                }
                Some(_) = session.tunnels.join_next(), if !session.tunnels.is_empty() => {}
                () = tokio::time::sleep_until(wake_at.into()) => {}
            }
        }
    }

    async fn take(&mut self, session: &mut Session, message: SchedulerMessage) -> Result<(), LinkError> {
        use scheduler_message::Kind as From;
        let Some(kind) = message.kind else { return Ok(()) };
        match kind {
            From::Welcome(welcome) => {
                session.heartbeat = Duration::from_millis(u64::from(welcome.heartbeat_ms).clamp(100, 60_000));
                self.verdicts.set(Part::Link, Ok(()));
                self.route.serves();
                Ok(())
            }
            From::Assignments(Assignments { position, set }) => {
                let position = position.as_ref().map(Position::try_from);
                let Some(Ok(position)) = position else {
                    return Err(LinkError::Unreadable("a set without a position".into()));
                };
                self.tell(Input::Offer {
                    position,
                    bytes: set.into(),
                })
                .await
            }
            From::Mesh(mesh) => match self.take_mesh(&mesh) {
                Applied::Yes => {
                    self.tell(Input::Peers(self.mesh.peers(&self.config.machine_id)))
                        .await
                }
                Applied::Old => Ok(()),
                Applied::NeedFull => session.need_full(true, false).await,
            },
            From::Directory(directory) => match self.take_directory(&directory) {
                Applied::Yes | Applied::Old => Ok(()),
                Applied::NeedFull => session.need_full(false, true).await,
            },
            From::StopConfirmed(stops) => {
                let ids = stops
                    .replica_ids
                    .into_iter()
                    .filter_map(|id| ReplicaId::new(id).ok())
                    .collect();
                self.tell(Input::StopConfirmed(ids)).await
            }
            From::Ping(ping) => session.send(Kind::Pong(Pong { nonce: ping.nonce })).await,
            From::Redirect(redirect) if redirect.url.starts_with("https://") => {
                Err(LinkError::Redirected { url: redirect.url })
            }
            From::Redirect(redirect) => Err(LinkError::Unreadable(format!("to dial {:?}", redirect.url))),
            From::LogRequest(request) => self.serve_logs(session, request).await,
            From::TunnelRequest(request) => {
                session.open_tunnel(Arc::clone(&self.reach), request);
                Ok(())
            }
            From::LogCancel(request) => {
                if let Some(cancel) = session.log_cancels.remove(&request.request_id) {
                    cancel.cancel();
                }
                Ok(())
            }
        }
    }

    async fn tell(&self, input: Input) -> Result<(), LinkError> {
        match tokio::time::timeout(INBOX_TIMEOUT, self.inbox.send(input)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(LinkError::Stuck),
        }
    }

    async fn serve_logs(&self, session: &mut Session, request: LogRequest) -> Result<(), LinkError> {
        let request_id = request.request_id;
        if session.logs.len() >= LOG_REQUESTS_MAX {
            let error =
                format!("this machine answers {LOG_REQUESTS_MAX} log requests at once; try again later");
            let refusal = LogChunk {
                request_id,
                lines: Vec::new(),
                end: true,
                error,
            };
            return session.send(Kind::LogChunk(refusal)).await;
        }
        let (service, chunks, cancel) = (
            self.logs.clone(),
            session.chunks.clone(),
            CancellationToken::new(),
        );
        session.log_cancels.insert(request_id, cancel.clone());
        session.logs.spawn(async move {
            service.serve(request, chunks, cancel).await;
            request_id
        });
        Ok(())
    }
}

impl Session {
    fn silence_at(&self) -> Instant {
        self.heard_at + self.heartbeat * 3
    }

    /// Hands over a message. Nothing is read meanwhile, so that a full queue may not last longer than silence.
    async fn send(&self, kind: Kind) -> Result<(), LinkError> {
        let message = NodeMessage { kind: Some(kind) };
        match tokio::time::timeout_at(self.silence_at().into(), self.outbound.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(LinkError::Ended),
            Err(_) => Err(LinkError::Stuck),
        }
    }

    /// Who asks for more tunnels than there may be is told so by one.
    fn open_tunnel(&mut self, reach: Arc<dyn Reach>, mut request: TunnelRequest) {
        if self.tunnels.len() >= 2 * TUNNELS_MAX {
            tracing::warn!(
                replica_id = request.replica_id,
                "far too many tunnels: one is not answered"
            );
            return;
        }
        if self.tunnels.len() >= TUNNELS_MAX {
            // Answered with a refusal, which is short.
            request.target = None;
        }
        let mut client = self.client.clone();
        self.tunnels.spawn(async move {
            let (up, messages) = mpsc::channel(tunnel::UP_MAX);
            let open = tunnel_up::Kind::Open(TunnelOpen {
                tunnel_id: std::mem::take(&mut request.tunnel_id),
            });
            let sent = up.send(TunnelUp { kind: Some(open) }).await;
            let opened =
                tokio::time::timeout(CALL_TIMEOUT, client.tunnel(ReceiverStream::new(messages))).await;
            match (sent, opened) {
                (Ok(()), Ok(Ok(down))) => tunnel::serve(&*reach, request, up, down.into_inner()).await,
                (_, Ok(Err(status))) => tracing::debug!(reason = status.message(), "a tunnel is not opened"),
                (Err(_), _) | (_, Err(_)) => tracing::debug!("a tunnel is not opened in time"),
            }
        });
    }

    async fn need_full(&self, mesh: bool, directory: bool) -> Result<(), LinkError> {
        self.send(Kind::NeedFull(NeedFull { mesh, directory })).await
    }

    fn status_at(&self, now: Instant) -> Instant {
        match (self.status_sent_at, self.status_due) {
            (None, _) => now,
            (Some(sent), true) => sent + STATUS_GAP,
            (Some(sent), false) => sent + self.heartbeat,
        }
    }

    async fn send_status(&mut self, link: &mut Link) -> Result<(), LinkError> {
        let snapshot = link.snapshots.borrow_and_update().clone();
        let status = Status {
            replicas: serde_json::to_vec(&snapshot.replicas)
                .expect("a status has text keys")
                .into(),
            machine: serde_json::to_vec(&link.verdicts.health())
                .expect("a health has text keys")
                .into(),
            unlisted_replica_ids: snapshot.unlisted.iter().map(ToString::to_string).collect(),
            accepted: Some(position_of(&snapshot)),
        };
        self.status_due = false;
        self.status_sent_at = Some(monotonic());
        self.send(Kind::Status(status)).await
    }
}

fn position_of(snapshot: &Snapshot) -> berth_api::link::Position {
    let digest = if snapshot.generation == 0 && snapshot.epoch == 0 {
        bytes::Bytes::new()
    } else {
        bytes::Bytes::copy_from_slice(&snapshot.digest.0)
    };
    berth_api::link::Position {
        epoch: snapshot.epoch,
        generation: snapshot.generation,
        digest,
    }
}

fn ack(answer: &Answer) -> Ack {
    Ack {
        position: Some(answer.position.into()),
        refusal: answer.refusal.clone().unwrap_or_default(),
    }
}
