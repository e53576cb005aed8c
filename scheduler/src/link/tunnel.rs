//! Streams between somebody at the scheduler and a replica: a program with its input and output, or a port.
//!
//! ```text
//! Sessions::tunnel ── TunnelRequest{id} ──▶ session ═══▶ node
//!        │                                               │ calls Tunnel, first message Open{id}
//!        ◀──────────── Tunnel{up, down} ── join ◀════════╯
//! ```
//!
//! The id is random and good for one call by the machine that it was sent to. A tunnel ends with its machine's session. Bytes
//! are held back by HTTP/2 itself: who reads slowly slows the writer, and nobody else.

use std::sync::Arc;
use std::time::Duration;

use berth_api::id::{MachineId, ReplicaId};
use berth_api::link::{
    TunnelDown, TunnelRequest, TunnelUp, scheduler_message::Kind, tunnel_request::Target, tunnel_up,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::sessions::{Sessions, busy, not_linked};
use super::{HANDSHAKE_TIMEOUT, message};
use crate::refusal::{Class, Refused};

/// A node that does not answer a request by then is busy with other things, or too old to know of tunnels.
const JOIN_TIMEOUT: Duration = Duration::from_secs(15);
/// Requests to one machine that it has not answered yet.
const JOINING_MAX: usize = 64;
/// Messages that may wait for a slow node.
const DOWN_MAX: usize = 2;
const ID_BYTES: usize = 16;
/// Tunnels into one cluster at once.
const CLUSTER_MAX: usize = 256;

/// Both directions of a tunnel; dropping it ends it.
#[derive(Debug)]
pub struct Tunnel {
    /// What the replica sends. Ends without [`tunnel_up::Kind::End`] when the machine is lost.
    pub up: Streaming<TunnelUp>,
    pub down: mpsc::Sender<TunnelDown>,
    /// Cancelled when the machine's session ends.
    pub session_ended: CancellationToken,
    /// Of the cluster's tunnels.
    pub room: OwnedSemaphorePermit,
}

/// Room for the tunnels of one cluster.
#[derive(Debug, Clone)]
pub(super) struct Tunnels(Arc<Semaphore>);

impl Default for Tunnels {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(CLUSTER_MAX)))
    }
}

impl Tunnels {
    fn room(&self) -> Result<OwnedSemaphorePermit, Refused> {
        Arc::clone(&self.0).try_acquire_owned().map_err(|_| {
            Refused::new(
                Class::Busy,
                "too_many_tunnels",
                format!("{CLUSTER_MAX} tunnels into this cluster are open; close some and try again"),
            )
        })
    }
}

/// Who waits for the machine's call.
pub(super) type Joining = oneshot::Sender<Ends>;

/// What the machine's call brings.
pub(super) type Ends = (Streaming<TunnelUp>, mpsc::Sender<TunnelDown>, CancellationToken);

impl Sessions {
    /// Asks a replica's machine for a tunnel and waits for it.
    ///
    /// # Errors
    /// When the machine is not linked, or does not answer in time.
    pub async fn tunnel(
        &self,
        machine: &MachineId,
        replica: &ReplicaId,
        target: Target,
    ) -> Result<Tunnel, Refused> {
        let room = self.tunnels.room()?;
        let request = TunnelRequest {
            tunnel_id: random_id()?,
            replica_id: replica.to_string(),
            target: Some(target),
        };
        let gone = || not_linked(machine, replica.as_str());
        let waiting = Waiting {
            sessions: self,
            machine,
            tunnel_id: request.tunnel_id.clone(),
        };
        let joined = async { self.ask(machine, request).await?.await.map_err(|_| gone()) };
        let joined = tokio::time::timeout(JOIN_TIMEOUT, joined).await;
        drop(waiting);
        let silent = || {
            format!(
                "machine {:?} did not answer within {} s",
                machine.as_str(),
                JOIN_TIMEOUT.as_secs()
            )
        };
        let (up, down, session_ended) = joined.map_err(|_| Refused::unavailable(silent()))??;
        Ok(Tunnel {
            up,
            down,
            session_ended,
            room,
        })
    }

    /// Waits for room in the session's queue: many tunnels may be asked for at once.
    async fn ask(
        &self,
        machine: &MachineId,
        request: TunnelRequest,
    ) -> Result<oneshot::Receiver<Ends>, Refused> {
        let gone = || not_linked(machine, &request.replica_id);
        let outbound = self
            .live()
            .get(machine)
            .map(|live| live.outbound.clone())
            .ok_or_else(gone)?;
        let room = outbound.reserve().await.map_err(|_| gone())?;
        let mut live = self.live();
        // Another session has another queue: what is put into this one is read by nobody then.
        let live = live
            .get_mut(machine)
            .filter(|live| live.outbound.same_channel(&outbound))
            .ok_or_else(gone)?;
        if live.joining.len() >= JOINING_MAX {
            return Err(busy(machine));
        }
        let (sender, receiver) = oneshot::channel();
        live.joining.insert(request.tunnel_id.clone(), sender);
        room.send(message(Kind::TunnelRequest(request)));
        Ok(receiver)
    }

    /// Takes a machine's call of Tunnel to whoever waits for it.
    pub(super) async fn join(
        &self,
        machine: &MachineId,
        mut up: Streaming<TunnelUp>,
    ) -> Result<mpsc::Receiver<TunnelDown>, Refused> {
        let first = tokio::time::timeout(HANDSHAKE_TIMEOUT, up.message()).await;
        let first = first.map_err(|_| protocol("no Open came in time"))?;
        let first = first.map_err(|status| protocol(status.message()))?;
        let Some(tunnel_up::Kind::Open(open)) = first.and_then(|message| message.kind) else {
            return Err(protocol("a tunnel begins with an Open"));
        };
        let unknown = || {
            Refused::new(
                Class::NotFound,
                "tunnel_not_found",
                "nobody waits for this tunnel (any more)",
            )
        };
        let (down, messages) = mpsc::channel(DOWN_MAX);
        let (joining, session_ended) = {
            let mut live = self.live();
            let live = live.get_mut(machine).ok_or_else(unknown)?;
            let joining = live.joining.remove(&open.tunnel_id).ok_or_else(unknown)?;
            (joining, live.ended.clone())
        };
        joining.send((up, down, session_ended)).map_err(|_| unknown())?;
        Ok(messages)
    }
}

/// Takes the request back when nobody waits any more.
struct Waiting<'a> {
    sessions: &'a Sessions,
    machine: &'a MachineId,
    tunnel_id: String,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(live) = self.sessions.live().get_mut(self.machine) {
            live.joining.remove(&self.tunnel_id);
        }
    }
}

fn protocol(problem: &str) -> Refused {
    Refused::new(Class::Invalid, "protocol", problem)
}

fn random_id() -> Result<String, Refused> {
    let mut bytes = [0_u8; ID_BYTES];
    getrandom::fill(&mut bytes)
        .map_err(|error| Refused::unavailable(format!("no randomness for a tunnel's id: {error}")))?;
    Ok(bytes
        .iter()
        .fold(String::new(), |id, byte| format!("{id}{byte:02x}")))
}
