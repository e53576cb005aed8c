//! The node link: enrolment and sessions over mutual TLS. See `api/proto/link.proto` for what travels.
//!
//! Input: streams dialled by nodes, published state of the clusters. Output: requests to the clusters' actors; assignment
//! sets, names and mesh to the nodes. Owner: [`crate::Running`]. A session that fails costs nothing: the node dials again
//! and both sides send whole states.

mod enrol;
mod session;
mod sessions;
#[cfg(test)]
mod tests;
mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use berth_api::link::{
    EnrolReply, EnrolRequest, NodeMessage, Redirect, SchedulerMessage, TunnelDown, TunnelUp,
    scheduler_message::Kind,
};
use berth_api::time::Timestamp;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity as TlsIdentity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use crate::Scheduler;
use crate::identity::{MachineIdentity, ServerCertificate, machine_of};
use crate::refusal::{Class, Refused};
use crate::world::World;

pub use sessions::{LogQuery, LogStream, Sessions};
pub use tunnel::Tunnel;

use proto::link_server::{Link, LinkServer};

/// The server side of the service, generated from `api/proto/link.proto`.
mod proto {
    #![expect(
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        unused_qualifications,
        unreachable_pub,
        reason = "generated code"
    )]
    tonic::include_proto!("berth.link.v1");
}

/// Messages that may wait for a slow node. Whole sets replace each other, so few are enough.
const OUTBOUND_MAX: usize = 32;
/// A status of 253 replicas is about 200 KiB.
const MESSAGE_MAX_BYTES: usize = 16 << 20;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const ENROL_TIMEOUT: Duration = Duration::from_secs(20);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// What may be on its way in one stream, unread.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same of a whole connection: more than all tunnels of a machine together, so that the session is held up by none.
const CONNECTION_WINDOW: u32 = 64 << 20;

/// How the link is served.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinkConfig {
    /// Nodes send a status at least this often; three times as long without a message ends a session.
    pub(crate) heartbeat: Duration,
}

impl LinkConfig {
    fn silence_max(self) -> Duration {
        self.heartbeat * 3
    }
}

/// Serves the link until `stop`; returns when every session has ended.
pub(crate) async fn serve(
    listener: TcpListener,
    scheduler: Arc<Scheduler>,
    certificate: ServerCertificate,
    config: LinkConfig,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let tls = ServerTlsConfig::new()
        .identity(TlsIdentity::from_pem(
            certificate.certificate_pem,
            certificate.key_pem,
        ))
        .client_ca_root(Certificate::from_pem(scheduler.identity().ca_pem()))
        // Enrol comes without a certificate; Session refuses to.
        .client_auth_optional(true)
        .timeout(HANDSHAKE_TIMEOUT);
    let sessions = TaskTracker::new();
    let service = LinkService {
        scheduler,
        config,
        sessions: sessions.clone(),
        stop: stop.clone(),
    };
    let service = LinkServer::new(service)
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let served = Server::builder()
        .tls_config(tls)?
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(HANDSHAKE_TIMEOUT))
        .serve_with_incoming_shutdown(service, incoming, stop.cancelled_owned())
        .await;
    sessions.close();
    sessions.wait().await;
    served
}

/// The service that nodes call.
#[derive(Debug)]
struct LinkService {
    scheduler: Arc<Scheduler>,
    config: LinkConfig,
    /// Owner of the sessions' tasks.
    sessions: TaskTracker,
    stop: CancellationToken,
}

/// Who is at the other end of a connection, by its certificate.
#[derive(Debug, Clone)]
struct Peer {
    identity: MachineIdentity,
    /// TLS looks at this once, and connections last.
    expires_at: Timestamp,
}

impl Peer {
    fn of<T>(request: &Request<T>) -> Option<Self> {
        let certificates = request.peer_certs()?;
        let (identity, expires_at) = machine_of(certificates.first()?)?;
        Some(Self { identity, expires_at })
    }

    /// How long its certificate counts still.
    fn time_left(&self) -> Result<Duration, Refused> {
        let left = self.expires_at.since(Timestamp::now());
        if left.is_zero() {
            return Err(expired());
        }
        Ok(left)
    }
}

fn expired() -> Refused {
    Refused::new(
        Class::Unauthenticated,
        "certificate_expired",
        "the certificate has run out; renew it in time, or enrol with the machine token",
    )
}

/// Whether what a certificate says counts still: in which era of machine tokens it was enrolled, and for which machine of this id.
pub(crate) fn check_identity(world: &World, identity: &MachineIdentity) -> Result<(), Refused> {
    if identity.token_era != world.machine_token_era() {
        return Err(Refused::new(
            Class::Unauthenticated,
            "certificate_revoked",
            "the machine tokens that this certificate was enrolled with are revoked; rotate them and enrol with the new one",
        ));
    }
    let registered = world
        .machine(&identity.machine_id)
        .map(|machine| machine.registered_at);
    let is_former = |at: Timestamp| registered.is_some_and(|registered| registered != at);
    if identity.registered_at.is_some_and(is_former) {
        return Err(Refused::new(
            Class::Unauthenticated,
            "certificate_of_removed_machine",
            "the machine of this certificate was removed, or its registration is of a history that was restored over; its id was \
             registered anew, so enrol with the machine token",
        ));
    }
    Ok(())
}

#[tonic::async_trait]
impl Link for LinkService {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<EnrolReply>, Status> {
        let peer = Peer::of(&request);
        let enrol = enrol::enrol(&self.scheduler, self.config, peer, request.into_inner());
        match tokio::time::timeout(ENROL_TIMEOUT, enrol).await {
            Ok(Ok(reply)) => Ok(Response::new(reply)),
            Ok(Err(refused)) => {
                tracing::warn!(reason = refused.code, error = %refused, "an enrolment is refused");
                Err(refused.into())
            }
            Err(_) => Err(Refused::unavailable("the enrolment took too long; try again").into()),
        }
    }

    type SessionStream = BoxStream<'static, Result<SchedulerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = Peer::of(&request).ok_or_else(no_certificate)?;
        peer.time_left()?;
        let cluster_id = &peer.identity.cluster_id;
        // A cluster that is being deleted goes on to speak with its machines: they are told to stop everything.
        let Some(handle) = self.scheduler.find(cluster_id) else {
            let Some(member) = self.scheduler.elsewhere(cluster_id) else {
                return Err(self.scheduler.not_here(cluster_id).into());
            };
            let redirect = message(Kind::Redirect(Redirect { url: member.link_url }));
            return Ok(Response::new(futures::stream::iter([Ok(redirect)]).boxed()));
        };
        let (outbound, messages) = mpsc::channel(OUTBOUND_MAX);
        let (refuse, refusal) = oneshot::channel();
        let session = session::run(handle, peer, request.into_inner(), outbound, self.config);
        let stop = self.stop.clone();
        self.sessions.spawn(async move {
            let ended = stop.run_until_cancelled_owned(session).await;
            let goodbye = || Refused::unavailable("the scheduler stops; link again");
            if let Err(refused) = ended.unwrap_or_else(|| Err(goodbye())) {
                // The node may have gone away.
                drop(refuse.send(refused));
            }
        });
        // What ended the session is the last thing the node hears of it.
        let last = futures::stream::once(refusal)
            .filter_map(|refused| async { refused.ok().map(|refused: Refused| Err(Status::from(refused))) });
        Ok(Response::new(
            ReceiverStream::new(messages).map(Ok).chain(last).boxed(),
        ))
    }

    type TunnelStream = BoxStream<'static, Result<TunnelDown, Status>>;

    async fn tunnel(
        &self,
        request: Request<Streaming<TunnelUp>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        let peer = Peer::of(&request).ok_or_else(no_certificate)?;
        peer.time_left()?;
        let identity = peer.identity;
        let handle = self
            .scheduler
            .find(&identity.cluster_id)
            .ok_or_else(|| self.scheduler.not_here(&identity.cluster_id))?;
        check_identity(&handle.world(), &identity)?;
        let down = handle
            .sessions()
            .join(&identity.machine_id, request.into_inner())
            .await?;
        Ok(Response::new(ReceiverStream::new(down).map(Ok).boxed()))
    }
}

fn no_certificate() -> Refused {
    Refused::new(
        Class::Unauthenticated,
        "no_certificate",
        "this needs the certificate that Enrol gives",
    )
}

fn message(kind: Kind) -> SchedulerMessage {
    SchedulerMessage { kind: Some(kind) }
}
