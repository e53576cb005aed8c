//! One session: a machine's stream from its Hello until either side ends it.
//!
//! ```text
//! Hello ─▶ claim ─▶ Welcome, Mesh, Directory, Assignments ─▶ (changes as they are published ⇄ what the node says) ─▶ end
//! ```
//!
//! It ends when the node goes away, is silent for three heartbeats, says something that it must not, does not take what
//! it is sent, is removed, links again, or was enrolled with a token that is revoked, and when its certificate runs out.
//! Nothing is lost with it: a new session begins with whole states.

use std::sync::Arc;
use std::time::Duration;

use berth_api::assignment::Position;
use berth_api::event::{Event, EventSource, InvolvedObject, read_event};
use berth_api::id::{MachineId, ReplicaId};
use berth_api::link::{
    Ack, Assignments, Directory as DirectoryMessage, DirectoryEntry, Hello, Mesh as MeshMessage, NodeMessage,
    Ping, SchedulerMessage, Status, StopConfirmed, Welcome, node_message, scheduler_message::Kind,
};
use berth_api::time::{Timestamp, monotonic};
use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use tokio::sync::mpsc;
use tonic::Streaming;
use tracing::{info, warn};

use super::sessions::Claim;
use super::{HANDSHAKE_TIMEOUT, LinkConfig, Peer, check_identity, expired, message};
use crate::cluster::{ClusterHandle, Directory, Mesh, NodeStatus};
use crate::refusal::{Class, Refused};

/// A node that does not take a message for this long is cut off: it dials again when it lives.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Events a machine may record: this many at once, and so many a second after that. What is above is counted and dropped.
const EVENT_BURST: f64 = 200.0;
const EVENTS_PER_SECOND: f64 = 20.0;

struct Session {
    handle: ClusterHandle,
    machine_id: MachineId,
    /// What its certificate says.
    peer: Peer,
    claim: Claim,
    outbound: mpsc::Sender<SchedulerMessage>,
    /// (epoch, generation) of the set last sent.
    sent: Option<(u64, u64)>,
    sent_mesh: Option<Arc<Mesh>>,
    sent_directory: Option<Arc<Directory>>,
    ping_nonce: u64,
    event_credit: f64,
    credited_at: std::time::Instant,
    dropped_events: u64,
}

/// Serves one stream until it ends. An error is told to the node.
pub(super) async fn run(
    handle: ClusterHandle,
    peer: Peer,
    mut inbound: Streaming<NodeMessage>,
    outbound: mpsc::Sender<SchedulerMessage>,
    config: LinkConfig,
) -> Result<(), Refused> {
    let machine_id = peer.identity.machine_id.clone();
    let hello = tokio::time::timeout(HANDSHAKE_TIMEOUT, first(&mut inbound))
        .await
        .map_err(|_| protocol("no Hello came in time"))??;
    if hello.machine_id != machine_id.as_str() {
        return Err(Refused::new(
            Class::Forbidden,
            "other_machine",
            format!(
                "the certificate is of machine {:?}, the Hello of {:?}",
                machine_id.as_str(),
                hello.machine_id
            ),
        ));
    }
    // Only now: it may have been removed while it kept its Hello back.
    check_identity(&handle.world(), &peer.identity)?;
    let accepted = match &hello.accepted {
        Some(position) => Position::try_from(position).map_err(|error| protocol(&error.to_string()))?,
        None => Position::default(),
    };
    let claim = handle.sessions().claim(
        &machine_id,
        &hello.boot_id,
        outbound.clone(),
        config.silence_max(),
    )?;
    handle.link_opened(machine_id.clone(), accepted).await?;
    info!(cluster_id = %handle.id(), machine_id = %machine_id, version = hello.version,
        state_rebuilt = hello.state_rebuilt, running = hello.running_replica_ids.len(), "a machine is linked");
    let mut session = Session {
        handle,
        machine_id,
        peer,
        claim,
        outbound,
        sent: None,
        sent_mesh: None,
        sent_directory: None,
        ping_nonce: 0,
        event_credit: EVENT_BURST,
        credited_at: monotonic(),
        dropped_events: 0,
    };
    let ended = session.serve(&mut inbound, config).await;
    let reason = ended.as_ref().err().map(ToString::to_string);
    info!(cluster_id = %session.handle.id(), machine_id = %session.machine_id, reason,
        dropped_events = session.dropped_events, "a session has ended");
    let Session {
        handle,
        machine_id,
        claim,
        ..
    } = session;
    let was_current = claim.is_current();
    drop(claim);
    if was_current {
        handle.link_closed(machine_id).await?;
    }
    ended
}

async fn first(inbound: &mut Streaming<NodeMessage>) -> Result<Hello, Refused> {
    let first = inbound
        .message()
        .await
        .map_err(|status| protocol(status.message()))?;
    match first.and_then(|message| message.kind) {
        Some(node_message::Kind::Hello(hello)) if !hello.boot_id.is_empty() => Ok(hello),
        Some(_) | None => Err(protocol("a session begins with a Hello that names the boot id")),
    }
}

fn protocol(problem: &str) -> Refused {
    Refused::new(Class::Invalid, "protocol", problem)
}

impl Session {
    async fn serve(
        &mut self,
        inbound: &mut Streaming<NodeMessage>,
        config: LinkConfig,
    ) -> Result<(), Refused> {
        let mut world = self.handle.published().world.clone();
        let mut mesh = self.handle.published().mesh.clone();
        let mut directory = self.handle.published().directory.clone();
        self.send(Kind::Welcome(Welcome {
            heartbeat_ms: u32::try_from(config.heartbeat.as_millis()).unwrap_or(u32::MAX),
            now_ms: Timestamp::now().millis(),
        }))
        .await?;
        let peers = mesh.borrow_and_update().clone();
        self.send_mesh(&peers).await?;
        let names = directory.borrow_and_update().clone();
        self.send_directory(names).await?;
        world.mark_changed();
        let mut heard_at = monotonic();
        let mut ping = tokio::time::interval(config.heartbeat);
        ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // By the monotonic clock: a wall clock that jumps ends no session.
        let expiry = tokio::time::sleep(self.peer.time_left()?);
        tokio::pin!(expiry);
        loop {
            // In this order: a node that talks without pause is still told what to do.
            tokio::select! {
                biased;
                // Cancel-safe: a token.
                () = self.claim.end.cancelled() => {
                    return Err(Refused::new(
                        Class::Conflict,
                        "session_replaced",
                        "the machine is removed or has linked again",
                    ));
                }
                // Cancel-safe by its documentation: a change that is not taken is still marked.
                changed = world.changed() => {
                    changed.map_err(|_| stopped())?;
                    self.send_assignments().await?;
                }
                // Cancel-safe as above.
                changed = mesh.changed() => {
                    changed.map_err(|_| stopped())?;
                    let next = mesh.borrow_and_update().clone();
                    self.send_mesh(&next).await?;
                }
                // Cancel-safe as above.
                changed = directory.changed() => {
                    changed.map_err(|_| stopped())?;
                    let next = directory.borrow_and_update().clone();
                    self.send_directory(next).await?;
                }
                // Cancel-safe: a timer. The node renews long before.
                () = &mut expiry => return Err(expired()),
                // Cancel-safe: a timer.
                _ = ping.tick() => {
                    self.ping_nonce += 1;
                    self.send(Kind::Ping(Ping { nonce: self.ping_nonce })).await?;
                }
                // Cancel-safe: what has arrived of a message stays in the stream.
                received = inbound.message() => {
                    let Ok(Some(received)) = received else {
                        return Ok(());
                    };
                    heard_at = monotonic();
                    self.claim.heard();
                    if let Some(kind) = received.kind {
                        self.take(kind).await?;
                    }
                }
                // Cancel-safe: a timer. Last, so that what has come is read first.
                () = tokio::time::sleep_until((heard_at + config.silence_max()).into()) => {
                    return Err(Refused::unavailable("the machine is silent"));
                }
            }
        }
    }

    async fn send(&self, kind: Kind) -> Result<(), Refused> {
        match tokio::time::timeout(SEND_TIMEOUT, self.outbound.send(message(kind))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Refused::unavailable("the machine has gone away")),
            Err(_) => Err(Refused::unavailable("the machine does not take what it is sent")),
        }
    }

    /// Sends the machine's set when it is not the one that was sent last.
    async fn send_assignments(&mut self) -> Result<(), Refused> {
        let world = self.handle.world();
        check_identity(&world, &self.peer.identity)?;
        let Some(machine) = world.machine(&self.machine_id) else {
            return Err(Refused::machine_not_found(self.machine_id.as_str()));
        };
        let present = (world.epoch(), machine.generation);
        if self.sent == Some(present) {
            return Ok(());
        }
        let set = world
            .assignment_set(&self.machine_id)
            .expect("a registered machine has a set");
        let (bytes, position) = set.seal();
        self.send(Kind::Assignments(Assignments {
            position: Some(position.into()),
            set: bytes.into(),
        }))
        .await?;
        self.sent = Some(present);
        Ok(())
    }

    async fn send_mesh(&mut self, next: &Arc<Mesh>) -> Result<(), Refused> {
        let (put, removed) = match &self.sent_mesh {
            Some(sent) => delta(&sent.peers, &next.peers),
            None => (next.peers.iter().collect(), Vec::new()),
        };
        let mesh = MeshMessage {
            generation: next.generation,
            base_generation: self.sent_mesh.as_ref().map_or(0, |sent| sent.generation),
            put: put.into_iter().map(|(_, peer)| peer.clone()).collect(),
            removed_machine_ids: removed,
        };
        self.sent_mesh = Some(next.clone());
        self.send(Kind::Mesh(mesh)).await
    }

    async fn send_directory(&mut self, next: Option<Arc<Directory>>) -> Result<(), Refused> {
        let Some(next) = next else {
            return Ok(());
        };
        let (put, removed) = match &self.sent_directory {
            Some(sent) => delta(&sent.names, &next.names),
            None => (next.names.iter().collect(), Vec::new()),
        };
        let entry = |(name, addresses): (&String, &Vec<std::net::IpAddr>)| DirectoryEntry {
            name: name.clone(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
        };
        let directory = DirectoryMessage {
            generation: next.generation,
            base_generation: self.sent_directory.as_ref().map_or(0, |sent| sent.generation),
            put: put.into_iter().map(entry).collect(),
            removed_names: removed,
        };
        self.sent_directory = Some(next);
        self.send(Kind::Directory(directory)).await
    }

    async fn take(&mut self, kind: node_message::Kind) -> Result<(), Refused> {
        match kind {
            node_message::Kind::Hello(_) => Err(protocol("a second Hello")),
            node_message::Kind::Ack(ack) => self.take_ack(ack).await,
            node_message::Kind::Status(status) => self.take_status(status).await,
            node_message::Kind::Event(event) => self.take_event(&event).await,
            node_message::Kind::LogChunk(chunk) => {
                self.claim.deliver(chunk);
                Ok(())
            }
            node_message::Kind::Pong(_) => Ok(()),
            node_message::Kind::NeedFull(need) => {
                if need.mesh {
                    self.sent_mesh = None;
                    let mesh = self.handle.published().mesh.borrow().clone();
                    self.send_mesh(&mesh).await?;
                }
                if need.directory {
                    self.sent_directory = None;
                    let directory = self.handle.directory();
                    self.send_directory(directory).await?;
                }
                Ok(())
            }
        }
    }

    async fn take_ack(&mut self, ack: Ack) -> Result<(), Refused> {
        let position = ack.position.as_ref().map(Position::try_from);
        let Some(Ok(position)) = position else {
            return Err(protocol("an Ack names the position it answers"));
        };
        if ack.refusal.is_empty() {
            return self
                .handle
                .acknowledged(self.machine_id.clone(), (position.epoch, position.generation))
                .await;
        }
        warn!(cluster_id = %self.handle.id(), machine_id = %self.machine_id, generation = position.generation,
            reason = ack.refusal, "a machine refuses its assignment set");
        if self.sent == Some((position.epoch, position.generation)) {
            // Its next Hello says what it has accepted, and a new epoch starts above that.
            return Err(Refused::new(
                Class::Conflict,
                "set_refused",
                "link again, so that a set can be sent that is accepted",
            ));
        }
        Ok(())
    }

    async fn take_status(&mut self, status: Status) -> Result<(), Refused> {
        let replicas = read_json(&status.replicas);
        let health = read_json(&status.machine);
        let (replicas, health) = match (replicas, health) {
            (Ok(replicas), Ok(health)) => (replicas, health),
            (Err(error), _) | (_, Err(error)) => {
                // The machine lives; what it says of its replicas is another version's.
                warn!(cluster_id = %self.handle.id(), machine_id = %self.machine_id, error = %error,
                    "a status cannot be read");
                return self.handle.heard(self.machine_id.clone()).await;
            }
        };
        let accepted = status
            .accepted
            .map(|position| (position.epoch, position.generation));
        let unlisted = status
            .unlisted_replica_ids
            .into_iter()
            .filter_map(|id| ReplicaId::new(id).ok())
            .collect();
        let status = NodeStatus {
            replicas,
            health,
            unlisted,
            accepted,
        };
        let confirmed = self.handle.node_status(self.machine_id.clone(), status).await?;
        if confirmed.is_empty() {
            return Ok(());
        }
        info!(cluster_id = %self.handle.id(), machine_id = %self.machine_id, count = confirmed.len(),
            "unlisted replicas are confirmed to stop");
        self.send(Kind::StopConfirmed(StopConfirmed {
            replica_ids: confirmed.iter().map(ToString::to_string).collect(),
        }))
        .await
    }

    /// Whether an event is about another machine than this.
    fn is_of_another(&self, event: &Event) -> bool {
        matches!(&event.involved_object, InvolvedObject::Machine(id) if id != self.machine_id.as_str())
    }

    async fn take_event(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let now = monotonic();
        let earned = now.duration_since(self.credited_at).as_secs_f64() * EVENTS_PER_SECOND;
        self.event_credit = (self.event_credit + earned).min(EVENT_BURST);
        self.credited_at = now;
        if self.event_credit < 1.0 {
            self.dropped_events += 1;
            return Ok(());
        }
        self.event_credit -= 1.0;
        let event = serde_json::from_slice(bytes)
            .map_err(|error| error.to_string())
            .and_then(|value| read_event(&value).map_err(|faults| faults.to_string()));
        let own = EventSource::Horizond {
            machine_id: self.machine_id.to_string(),
        };
        match event {
            Ok(event) if event.source == own && !self.is_of_another(&event) => {
                self.handle.record_event(event).await
            }
            Ok(_) => {
                warn!(cluster_id = %self.handle.id(), machine_id = %self.machine_id,
                    "a machine sent an event in another's name or about another");
                Ok(())
            }
            Err(error) => {
                warn!(cluster_id = %self.handle.id(), machine_id = %self.machine_id, error,
                    "an event cannot be read");
                Ok(())
            }
        }
    }
}

/// Reads a member that may be empty when there is nothing to say.
fn read_json<T: serde::de::DeserializeOwned + Default>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    if bytes.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(bytes)
}

/// What to put and what to remove to make `before` into `after`.
fn delta<'a, V: Clone + PartialEq>(
    before: &OrdMap<String, V>,
    after: &'a OrdMap<String, V>,
) -> (Vec<(&'a String, &'a V)>, Vec<String>) {
    let (mut put, mut removed) = (Vec::new(), Vec::new());
    for difference in before.diff(after) {
        match difference {
            DiffItem::Add(name, value)
            | DiffItem::Update {
                new: (name, value), ..
            } => put.push((name, value)),
            DiffItem::Remove(name, _) => removed.push(name.clone()),
        }
    }
    (put, removed)
}

fn stopped() -> Refused {
    Refused::unavailable("the cluster is no longer served here")
}
