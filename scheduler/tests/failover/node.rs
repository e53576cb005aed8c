//! A scripted node: enrols, keeps a session, takes every set, says that all of it is healthy, follows redirects.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_api::assignment::{AssignmentSet, Position};
use berth_api::link::{
    Ack, EnrolReply, EnrolRequest, Hello, NodeMessage, Pong, SchedulerMessage, Status, TunnelDown, TunnelEnd,
    TunnelOpen, TunnelRequest, TunnelUp, node_message, scheduler_message::Kind, tunnel_down, tunnel_request,
    tunnel_up,
};
use berth_api::replica::{Phase, ReplicaStatus};
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

use super::stage::{Addresses, cluster_id};

const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// As a real node does: three heartbeats without a message end a session.
const SILENCE_MAX: Duration = Duration::from_millis(1500);
const REDIAL: Duration = Duration::from_millis(100);

/// What a node has seen, and what it must never see.
#[derive(Debug, Default)]
struct Seen {
    accepted: Position,
    taken: u64,
    /// Revision that each replica ran at first: it never changes.
    replicas: BTreeMap<String, u64>,
    violations: Vec<String>,
}

/// See the module documentation.
pub(crate) struct Node {
    seen: Arc<Mutex<Seen>>,
    task: JoinSet<()>,
}

impl Node {
    pub(crate) async fn start(cluster: usize, token: String, addresses: Addresses, ca: PathBuf) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let script = Script {
            cluster,
            machine: format!("m-{cluster}"),
            ca: std::fs::read_to_string(ca).unwrap(),
            addresses,
            seen: seen.clone(),
        };
        let identity = script.enrol(&token).await;
        let mut task = JoinSet::new();
        task.spawn(async move { script.run(identity).await });
        Self { seen, task }
    }

    /// Panics when the node has seen what it must not.
    pub(crate) fn check(&self) {
        let seen = self.seen.lock().unwrap();
        assert!(seen.violations.is_empty(), "{:?}", seen.violations);
    }

    /// How many sets it took.
    pub(crate) async fn stop(mut self) -> u64 {
        self.check();
        self.task.shutdown().await;
        self.seen.lock().unwrap().taken
    }
}

struct Script {
    cluster: usize,
    machine: String,
    ca: String,
    addresses: Addresses,
    seen: Arc<Mutex<Seen>>,
}

impl Script {
    async fn channel(&self, url: &str, identity: Option<&Identity>) -> Option<tonic::client::Grpc<Channel>> {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.ca));
        if let Some(identity) = identity {
            tls = tls.identity(identity.clone());
        }
        let endpoint = Channel::from_shared(url.to_owned())
            .unwrap()
            .tls_config(tls)
            .unwrap()
            .connect_timeout(DIAL_TIMEOUT);
        let channel = tokio::time::timeout(DIAL_TIMEOUT, endpoint.connect())
            .await
            .ok()?
            .ok()?;
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.ok()?;
        Some(grpc)
    }

    async fn enrol(&self, token: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, self.machine.as_str());
        let register = json!({
            "clusterId": cluster_id(self.cluster), "machineId": self.machine, "capacityGroup": "general", "zone": "z-1",
            "vpcIp": "10.0.0.7", "wireguardPublicKey": "bm9uZW5vbmVub25lbm9uZW5vbmVub25lbm9uZW5vbmU=",
            "wireguardEndpoint": "10.0.0.7:51820",
            "capacity": {"cpu": {"total": 8}, "memory": {"total": 16_u64 << 30},
                         "ephemeralStorage": {"total": 100_u64 << 30}}
        });
        let request = EnrolRequest {
            cluster_id: cluster_id(self.cluster),
            token: token.into(),
            csr_pem: params.serialize_request(&key).unwrap().pem().unwrap(),
            register: register.to_string().into_bytes().into(),
            proof: Default::default(),
            boot_id: "boot-1".into(),
        };
        let mut url = self.addresses.link(self.cluster);
        for attempt in 0..100 {
            if let Some(mut grpc) = self.channel(&url, None).await {
                let path = PathAndQuery::from_static("/berth.link.v1.Link/Enrol");
                let codec = ProstCodec::<EnrolRequest, EnrolReply>::default();
                let reply = grpc.unary(Request::new(request.clone()), path, codec).await;
                match reply.map(tonic::Response::into_inner) {
                    Ok(reply) if reply.redirect_url.is_empty() => {
                        return Identity::from_pem(reply.certificate_pem, key.serialize_pem());
                    }
                    Ok(reply) => {
                        url = reply.redirect_url;
                        continue;
                    }
                    Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status}"),
                }
            }
            url = self.addresses.link(self.cluster + attempt);
            tokio::time::sleep(REDIAL).await;
        }
        panic!("machine {} cannot enrol", self.machine);
    }

    async fn run(&self, identity: Identity) {
        let mut attempt = self.cluster;
        let mut redirect = None;
        loop {
            let url = redirect.take().unwrap_or_else(|| self.addresses.link(attempt));
            redirect = self.session(&url, &identity).await;
            if redirect.is_none() {
                attempt += 1;
                tokio::time::sleep(REDIAL).await;
            }
        }
    }

    /// One session; the URL of another scheduler when that one should be dialled.
    async fn session(&self, url: &str, identity: &Identity) -> Option<String> {
        let mut grpc = self.channel(url, Some(identity)).await?;
        let (outbound, messages) = mpsc::channel(64);
        let accepted = self.seen.lock().unwrap().accepted;
        let hello = Hello {
            machine_id: self.machine.clone(),
            boot_id: "boot-1".into(),
            version: "test".into(),
            accepted: Some(accepted.into()),
            running_replica_ids: vec![],
            state_rebuilt: false,
        };
        say(&outbound, node_message::Kind::Hello(hello)).await;
        let path = PathAndQuery::from_static("/berth.link.v1.Link/Session");
        let codec = ProstCodec::<NodeMessage, SchedulerMessage>::default();
        let stream = grpc.streaming(Request::new(ReceiverStream::new(messages)), path, codec);
        let mut inbound: Streaming<SchedulerMessage> = tokio::time::timeout(DIAL_TIMEOUT, stream)
            .await
            .ok()?
            .ok()?
            .into_inner();
        let mut tunnels = JoinSet::new();
        loop {
            let message = tokio::time::timeout(SILENCE_MAX, inbound.message())
                .await
                .ok()?
                .ok()??;
            match message.kind? {
                Kind::Redirect(redirect) => return Some(redirect.url),
                Kind::Ping(ping) => {
                    say(&outbound, node_message::Kind::Pong(Pong { nonce: ping.nonce })).await;
                }
                Kind::Assignments(assignments) => {
                    let position = Position::try_from(assignments.position.as_ref().unwrap()).unwrap();
                    let set = AssignmentSet::open(&assignments.set, &position).unwrap();
                    let refusal = self.take(&set, position);
                    let ack = Ack {
                        position: Some(position.into()),
                        refusal,
                    };
                    say(&outbound, node_message::Kind::Ack(ack)).await;
                    say(&outbound, node_message::Kind::Status(status_of(&set))).await;
                }
                Kind::TunnelRequest(request) => {
                    tunnels.spawn(tunnel(grpc.clone(), request));
                }
                _ => {}
            }
        }
    }

    /// Takes a set, or says why not.
    fn take(&self, set: &AssignmentSet, position: Position) -> String {
        let mut seen = self.seen.lock().unwrap();
        let (new, old) = (
            (position.epoch, position.generation),
            (seen.accepted.epoch, seen.accepted.generation),
        );
        if new == old && position.digest != seen.accepted.digest {
            let violation = format!("{}: {new:?} was sent with two contents", self.machine);
            seen.violations.push(violation);
        }
        // A process that has lost its lease may still say what was true: a real node refuses it too.
        if new < old {
            return "older than the accepted one".into();
        }
        if new > old {
            seen.taken += 1;
        }
        seen.accepted = position;
        for replica in &set.replicas {
            let id = replica.replica_id.to_string();
            if !seen.replicas.contains_key(&id) {
                let number = seen.taken;
                seen.replicas.insert(id, number);
            }
        }
        String::new()
    }
}

/// A program that says its own name, then what it was told first, and ends with 5.
async fn tunnel(mut grpc: tonic::client::Grpc<Channel>, request: TunnelRequest) {
    let Some(tunnel_request::Target::Exec(target)) = request.target else {
        return;
    };
    let (up, messages) = mpsc::channel(8);
    let open = TunnelOpen {
        tunnel_id: request.tunnel_id,
    };
    let send = async |kind| drop(up.send(TunnelUp { kind: Some(kind) }).await);
    send(tunnel_up::Kind::Open(open)).await;
    if grpc.ready().await.is_err() {
        return;
    }
    let path = PathAndQuery::from_static("/berth.link.v1.Link/Tunnel");
    let codec = ProstCodec::<TunnelUp, TunnelDown>::default();
    let opened = grpc.streaming(Request::new(ReceiverStream::new(messages)), path, codec);
    let Ok(opened) = opened.await else { return };
    let mut down: Streaming<TunnelDown> = opened.into_inner();
    send(tunnel_up::Kind::Output(target.command.join(" ").into())).await;
    if let Ok(Some(TunnelDown {
        kind: Some(tunnel_down::Kind::Input(bytes)),
    })) = down.message().await
    {
        send(tunnel_up::Kind::Output(bytes)).await;
    }
    let end = TunnelEnd {
        exit_code: 5,
        error: String::new(),
    };
    send(tunnel_up::Kind::End(end)).await;
    while let Ok(Some(_)) = down.message().await {}
}

async fn say(outbound: &mpsc::Sender<NodeMessage>, kind: node_message::Kind) {
    // A session that has ended is seen where it is read.
    drop(outbound.send(NodeMessage { kind: Some(kind) }).await);
}

fn status_of(set: &AssignmentSet) -> Status {
    let replicas: Vec<ReplicaStatus> = set
        .replicas
        .iter()
        .map(|assignment| ReplicaStatus {
            revision: assignment.digest().to_string(),
            ..ReplicaStatus::new(assignment.replica_id.clone(), Phase::Healthy)
        })
        .collect();
    Status {
        replicas: serde_json::to_vec(&replicas).unwrap().into(),
        machine: b"{\"subsystems\":[]}".to_vec().into(),
        unlisted_replica_ids: Vec::new(),
        accepted: None,
    }
}
