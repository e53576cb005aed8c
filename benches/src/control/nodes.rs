//! Nodes without machines: real sessions over the real link, each with its own certificate, that take every set, say that
//! all of it is healthy, and report at every heartbeat.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use berth_api::assignment::{AssignmentSet, Position};
use berth_api::link::{
    Ack, EnrolReply, EnrolRequest, Hello, Mesh, NodeMessage, Pong, SchedulerMessage, Status, node_message,
    scheduler_message::Kind,
};
use berth_api::replica::{Phase, ReplicaStatus};
use berth_api::time::monotonic;
use futures::StreamExt as _;
use futures::stream;
use prost::Message as _;
use rcgen::{CertificateParams, DnType, KeyPair};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_prost::ProstCodec;

use crate::program::{Cluster, Program, registration};

/// So many enrol or link at a time.
const AT_ONCE: usize = 32;
const DEADLINE: Duration = Duration::from_secs(120);

/// What the nodes of one cluster have seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Sessions that were welcomed.
    linked: AtomicU64,
    /// Sessions that have ended, which none should.
    ended: AtomicU64,
    /// Sets taken, and when the last of them was.
    acks: AtomicU64,
    last_ack: Mutex<Option<Instant>>,
    pub(crate) mesh_bytes: AtomicU64,
}

impl Seen {
    fn acknowledged(&self) {
        let mut last = self.last_ack.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some(monotonic());
        self.acks.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn acks(&self) -> u64 {
        self.acks.load(Ordering::SeqCst)
    }

    pub(crate) fn last_ack(&self) -> Option<Instant> {
        *self.last_ack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(Ordering::SeqCst)
    }
}

/// Linked nodes of one scheduler. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Nodes {
    enrolling: tonic::client::Grpc<Channel>,
    endpoint: Endpoint,
    ca: Certificate,
    sessions: JoinSet<()>,
    dialling: Arc<Semaphore>,
    numbered: usize,
}

impl Nodes {
    pub(crate) async fn of(program: &Program) -> anyhow::Result<Self> {
        let ca = Certificate::from_pem(program.ca()?);
        let endpoint = Endpoint::from_shared(program.link.clone())?.connect_timeout(DEADLINE);
        let tls = ClientTlsConfig::new().ca_certificate(ca.clone());
        let channel = endpoint.clone().tls_config(tls)?.connect().await?;
        Ok(Self {
            enrolling: tonic::client::Grpc::new(channel),
            endpoint,
            ca,
            sessions: JoinSet::new(),
            dialling: Arc::new(Semaphore::new(AT_ONCE)),
            numbered: 0,
        })
    }

    /// Enrols and links so many machines more of a cluster; returns when all of them are welcomed.
    pub(crate) async fn link(
        &mut self,
        cluster: &Cluster,
        count: usize,
        seen: &Arc<Seen>,
    ) -> anyhow::Result<()> {
        let first = self.numbered;
        self.numbered += count;
        let enrolled: Vec<anyhow::Result<(String, Identity)>> = stream::iter(first..first + count)
            .map(|number| enrol(self.enrolling.clone(), cluster.clone(), number))
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let wanted = seen.linked.load(Ordering::SeqCst) + u64::try_from(count)?;
        for enrolled in enrolled {
            let (machine, identity) = enrolled?;
            let node = Node {
                machine,
                seen: seen.clone(),
            };
            let tls = ClientTlsConfig::new()
                .ca_certificate(self.ca.clone())
                .identity(identity);
            let endpoint = self.endpoint.clone().tls_config(tls)?;
            let dialling = self.dialling.clone().acquire_owned().await?;
            self.sessions.spawn(async move {
                // Why is of no use: whoever measures sees that it has ended.
                drop(node.run(endpoint, dialling).await);
                node.seen.ended.fetch_add(1, Ordering::SeqCst);
            });
        }
        let begun = monotonic();
        while seen.linked.load(Ordering::SeqCst) < wanted {
            if begun.elapsed() > DEADLINE || seen.ended() > 0 {
                bail!(
                    "{} sessions of {wanted}, {} ended",
                    seen.linked.load(Ordering::SeqCst),
                    seen.ended()
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

async fn enrol(
    mut grpc: tonic::client::Grpc<Channel>,
    cluster: Cluster,
    number: usize,
) -> anyhow::Result<(String, Identity)> {
    let machine = format!("m-{number:06}");
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, machine.as_str());
    let request = EnrolRequest {
        cluster_id: cluster.id.clone(),
        token: cluster.machine.clone(),
        csr_pem: params.serialize_request(&key)?.pem()?,
        register: registration(&cluster, &machine, number)
            .to_string()
            .into_bytes()
            .into(),
        proof: Default::default(),
        boot_id: "boot-1".into(),
    };
    grpc.ready().await?;
    let path = PathAndQuery::from_static("/berth.link.v1.Link/Enrol");
    let codec = ProstCodec::<EnrolRequest, EnrolReply>::default();
    let reply = grpc
        .unary(tonic::Request::new(request), path, codec)
        .await?
        .into_inner();
    Ok((
        machine,
        Identity::from_pem(reply.certificate_pem, key.serialize_pem()),
    ))
}

/// One machine.
struct Node {
    machine: String,
    seen: Arc<Seen>,
}

impl Node {
    /// One session; returns when it ends. `dialling` is given back when it is welcomed.
    async fn run(&self, endpoint: Endpoint, dialling: OwnedSemaphorePermit) -> anyhow::Result<()> {
        let mut grpc = tonic::client::Grpc::new(endpoint.connect().await?);
        grpc.ready().await?;
        let (outbound, messages) = mpsc::channel(16);
        let hello = Hello {
            machine_id: self.machine.clone(),
            boot_id: "boot-1".into(),
            version: "bench".into(),
            accepted: Some(Position::default().into()),
            running_replica_ids: vec![],
            state_rebuilt: false,
        };
        say(&outbound, node_message::Kind::Hello(hello)).await?;
        let path = PathAndQuery::from_static("/berth.link.v1.Link/Session");
        let codec = ProstCodec::<NodeMessage, SchedulerMessage>::default();
        let stream = grpc.streaming(tonic::Request::new(ReceiverStream::new(messages)), path, codec);
        let mut inbound = stream.await?.into_inner();
        let mut dialling = Some(dialling);
        let mut status = status_of(None)?;
        let mut heartbeat = tokio::time::interval(Duration::from_secs(3600));
        loop {
            tokio::select! {
                // Cancel-safe: a timer.
                _ = heartbeat.tick() => say(&outbound, node_message::Kind::Status(status.clone())).await?,
                // Cancel-safe: what has arrived of a message stays in the stream.
                message = inbound.message() => {
                    match message?.and_then(|message| message.kind).context("the session has ended")? {
                        Kind::Welcome(welcome) => {
                            heartbeat = tokio::time::interval(Duration::from_millis(welcome.heartbeat_ms.into()));
                            drop(dialling.take());
                            self.seen.linked.fetch_add(1, Ordering::SeqCst);
                        }
                        Kind::Ping(ping) => {
                            say(&outbound, node_message::Kind::Pong(Pong { nonce: ping.nonce })).await?;
                        }
                        Kind::Mesh(mesh) => self.count_mesh(&mesh)?,
                        Kind::Assignments(assignments) => {
                            let position = assignments.position.as_ref().context("a set has a position")?;
                            let position = Position::try_from(position)?;
                            let set = AssignmentSet::open(&assignments.set, &position)?;
                            status = status_of(Some(&set))?;
                            let ack = Ack { position: Some(position.into()), refusal: String::new() };
                            say(&outbound, node_message::Kind::Ack(ack)).await?;
                            say(&outbound, node_message::Kind::Status(status.clone())).await?;
                            self.seen.acknowledged();
                        }
                        Kind::Redirect(_) => bail!("the scheduler sends its machines away"),
                        Kind::Directory(_)
                        | Kind::StopConfirmed(_)
                        | Kind::LogRequest(_)
                        | Kind::LogCancel(_)
                        | Kind::TunnelRequest(_) => {}
                    }
                }
            }
        }
    }

    fn count_mesh(&self, mesh: &Mesh) -> anyhow::Result<()> {
        let bytes = u64::try_from(mesh.encoded_len())?;
        self.seen.mesh_bytes.fetch_add(bytes, Ordering::SeqCst);
        Ok(())
    }
}

async fn say(outbound: &mpsc::Sender<NodeMessage>, kind: node_message::Kind) -> anyhow::Result<()> {
    outbound
        .send(NodeMessage { kind: Some(kind) })
        .await
        .context("the session has ended")
}

fn status_of(set: Option<&AssignmentSet>) -> anyhow::Result<Status> {
    let replicas: Vec<ReplicaStatus> = set
        .into_iter()
        .flat_map(|set| &set.replicas)
        .map(|assignment| ReplicaStatus {
            revision: assignment.digest().to_string(),
            ..ReplicaStatus::new(assignment.replica_id.clone(), Phase::Healthy)
        })
        .collect();
    Ok(Status {
        replicas: serde_json::to_vec(&replicas)?.into(),
        machine: b"{\"subsystems\":[]}".to_vec().into(),
        unlisted_replica_ids: Vec::new(),
        accepted: None,
    })
}
