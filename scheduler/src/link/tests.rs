//! A node in this process speaks the real link (TLS, gRPC) to a real scheduler: what it may do, what it hears, and what a
//! restart keeps.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_api::assignment::{AssignmentSet, Position};
use berth_api::cluster::ClusterSpec;
use berth_api::container::ContainerSpec;
use berth_api::id::{ClusterId, ContainerName, MachineId, ReplicaId};
use berth_api::link::{
    Ack, EnrolReply, EnrolRequest, Hello, LogChunk, LogLine, NeedFull, NodeMessage, SchedulerMessage, Status,
    node_message, scheduler_message::Kind,
};
use berth_api::replica::{Phase, ReplicaStatus};
use berth_api::rest::EventFilter;
use berth_api::time::monotonic;
use rcgen::{CertificateParams, DnType, KeyPair};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};
use tonic::{Code, Streaming};

use super::proto::link_client::LinkClient;
use super::{LogQuery, sessions::LogStream};
use crate::config::Config;
use crate::entry::{Removal, TokenDigest, TokenKind};
use crate::store::{Memory, Store};
use crate::{ClusterHandle, Creation, Running, Scheduler, StartError};

mod absurd;
mod goodbye;
mod identity;
mod logs;
mod revocation;
mod tunnel;

const MACHINE_TOKEN: &str = "hj_0123456789012345678901234567890123456789012";
const MANAGEMENT_TOKEN: &str = "hm_0123456789012345678901234567890123456789012";
const TIMEOUT: Duration = Duration::from_secs(60);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, future)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come in time"))
}

fn cluster_spec() -> ClusterSpec {
    let value = serde_json::json!({
        "clusterId": "acme/prod", "name": "Acme", "containerCidr": "10.244.0.0/16", "platform": "local",
        "capacityGroups": [{"groupId": "general", "minSize": 0, "maxSize": 10, "profile":
            {"cpu": 8, "memoryBytes": 16_u64 << 30, "ephemeralStorageBytes": 100_u64 << 30}}]
    });
    berth_api::rest::cluster::read_cluster(&value).unwrap()
}

fn container(name: &str, replicas: u32) -> ContainerSpec {
    let value = serde_json::json!({
        "name": name, "capacityGroup": "general", "image": "app:1",
        "resources": {"cpu": {"min": "0.5", "desired": "0.5"}, "memory": {"min": "64Mi", "desired": "64Mi"}},
        "stateful": false, "ports": [8080], "replicas": replicas
    });
    berth_api::rest::container::read_container(&value, &cluster_spec())
        .unwrap_or_else(|faults| panic!("{faults}"))
}

/// The key that is on a machine's disk: the same each time.
fn own_key(machine: &str) -> KeyPair {
    static KEYS: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
    let mut keys = KEYS.lock().unwrap();
    let new = || KeyPair::generate().unwrap().serialize_pem();
    let pem = keys.entry(machine.to_owned()).or_insert_with(new);
    KeyPair::from_pem(pem).unwrap()
}

/// A scheduler that serves one cluster.
struct World {
    running: Running,
    cluster: ClusterHandle,
    dir: tempfile::TempDir,
}

async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let running = start(Arc::new(Memory::default()), dir.path()).await;
    let tokens = BTreeMap::from([
        (TokenKind::Machine, TokenDigest::of(MACHINE_TOKEN)),
        (TokenKind::Management, TokenDigest::of(MANAGEMENT_TOKEN)),
    ]);
    let created = running.scheduler().create_cluster(cluster_spec(), tokens).await;
    let Ok(Creation::Created(cluster)) = created else {
        panic!("{created:?}");
    };
    World {
        running,
        cluster,
        dir,
    }
}

fn config(dir: &std::path::Path) -> Config {
    let any = "127.0.0.1:0".parse().unwrap();
    Config {
        listen: any,
        link_listen: any,
        // Silence is three of them: longer than a crowded machine stalls.
        heartbeat: Duration::from_secs(5),
        ..Config::new(dir.into())
    }
}

async fn start(store: Arc<dyn Store>, dir: &std::path::Path) -> Running {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    Scheduler::start_on(store, config(dir)).await.unwrap()
}

impl World {
    async fn client(&self, identity: Option<Identity>) -> LinkClient<Channel> {
        let ca = Certificate::from_pem(self.running.scheduler().identity().ca_pem());
        let mut tls = ClientTlsConfig::new().ca_certificate(ca).domain_name("localhost");
        if let Some(identity) = identity {
            tls = tls.identity(identity);
        }
        let channel = Channel::from_shared(format!("https://{}", self.running.link_addr))
            .unwrap()
            .tls_config(tls)
            .unwrap();
        LinkClient::new(soon("the connection", channel.connect()).await.unwrap())
    }

    /// With the machine's own key.
    fn enrolment(machine: &str, token: &str, boot: &str) -> (EnrolRequest, KeyPair) {
        Self::enrolment_with(own_key(machine), machine, token, boot)
    }

    fn enrolment_with(key: KeyPair, machine: &str, token: &str, boot: &str) -> (EnrolRequest, KeyPair) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, machine);
        let register = serde_json::json!({
            "clusterId": "acme/prod", "machineId": machine, "capacityGroup": "general", "zone": "z-1",
            "vpcIp": "10.0.0.7", "wireguardPublicKey": "bm9uZW5vbmVub25lbm9uZW5vbmVub25lbm9uZW5vbmU=",
            "wireguardEndpoint": "10.0.0.7:51820",
            "capacity": {"cpu": {"total": 8}, "memory": {"total": 16_u64 << 30},
                         "ephemeralStorage": {"total": 100_u64 << 30}}
        });
        let request = EnrolRequest {
            cluster_id: "acme/prod".into(),
            token: token.into(),
            csr_pem: params.serialize_request(&key).unwrap().pem().unwrap(),
            register: register.to_string().into_bytes().into(),
            proof: Default::default(),
            boot_id: boot.into(),
        };
        (request, key)
    }

    /// Enrols a machine; its identity on the link.
    async fn enrol(&self, machine: &str, boot: &str) -> Identity {
        let (request, key) = Self::enrolment(machine, MACHINE_TOKEN, boot);
        let reply: EnrolReply = soon("the certificate", self.client(None).await.enrol(request))
            .await
            .unwrap()
            .into_inner();
        Identity::from_pem(reply.certificate_pem, key.serialize_pem())
    }

    /// A linked node.
    async fn node(&self, machine: &str) -> Node {
        let identity = self.enrol(machine, "boot-1").await;
        self.link(identity, machine, "boot-1", Position::default())
            .await
            .unwrap()
    }

    async fn link(
        &self,
        identity: Identity,
        machine: &str,
        boot: &str,
        accepted: Position,
    ) -> Result<Node, tonic::Status> {
        let mut client = self.client(Some(identity)).await;
        Self::link_by(&mut client, machine, boot, accepted).await
    }

    /// The same over a connection that is there.
    async fn link_by(
        client: &mut LinkClient<Channel>,
        machine: &str,
        boot: &str,
        accepted: Position,
    ) -> Result<Node, tonic::Status> {
        let (outbound, messages) = mpsc::channel(16);
        let mut node = Node {
            machine: MachineId::new(machine).unwrap(),
            outbound,
            inbound: None,
            assigned: None,
            names: BTreeMap::new(),
        };
        node.say(node_message::Kind::Hello(Hello {
            machine_id: machine.into(),
            boot_id: boot.into(),
            version: "test".into(),
            accepted: Some(accepted.into()),
            running_replica_ids: vec![],
            state_rebuilt: false,
        }))
        .await;
        let stream = soon("the session", client.session(ReceiverStream::new(messages))).await?;
        node.inbound = Some(stream.into_inner());
        match soon("the welcome", node.inbound.as_mut().unwrap().message()).await? {
            Some(SchedulerMessage {
                kind: Some(Kind::Welcome(welcome)),
            }) => assert_eq!(welcome.heartbeat_ms, 5000),
            other => panic!("expected a welcome: {other:?}"),
        }
        Ok(node)
    }
}

/// What a node knows.
struct Node {
    machine: MachineId,
    outbound: mpsc::Sender<NodeMessage>,
    inbound: Option<Streaming<SchedulerMessage>>,
    assigned: Option<(AssignmentSet, Position)>,
    names: BTreeMap<String, Vec<String>>,
}

impl Node {
    async fn say(&self, kind: node_message::Kind) {
        self.outbound
            .send(NodeMessage { kind: Some(kind) })
            .await
            .unwrap();
    }

    async fn hear(&mut self) -> Result<Kind, tonic::Status> {
        let inbound = self.inbound.as_mut().unwrap();
        let message = soon("a message", inbound.message()).await?;
        let kind = message
            .ok_or_else(|| tonic::Status::aborted("the stream has ended"))?
            .kind
            .unwrap();
        match &kind {
            Kind::Assignments(assignments) => {
                let position = Position::try_from(assignments.position.as_ref().unwrap()).unwrap();
                let set = AssignmentSet::open(&assignments.set, &position).unwrap();
                assert_eq!(set.machine_id, self.machine);
                self.assigned = Some((set, position));
            }
            Kind::Directory(directory) => {
                if directory.base_generation == 0 {
                    self.names.clear();
                }
                for name in &directory.removed_names {
                    self.names.remove(name);
                }
                for entry in &directory.put {
                    self.names.insert(entry.name.clone(), entry.addresses.clone());
                }
            }
            _ => {}
        }
        Ok(kind)
    }

    /// Hears until `holds`.
    async fn until(&mut self, what: &str, mut holds: impl FnMut(&Self, &Kind) -> bool) -> Kind {
        loop {
            let kind = self
                .hear()
                .await
                .unwrap_or_else(|status| panic!("{what}: {status}"));
            if holds(self, &kind) {
                return kind;
            }
        }
    }

    async fn assigned(&mut self, replicas: usize) -> AssignmentSet {
        if self
            .assigned
            .as_ref()
            .is_none_or(|(set, _)| set.replicas.len() != replicas)
        {
            self.until("the set", |node, _| {
                node.assigned
                    .as_ref()
                    .is_some_and(|(set, _)| set.replicas.len() == replicas)
            })
            .await;
        }
        self.assigned.clone().unwrap().0
    }

    async fn ack(&self) {
        let (_, position) = self.assigned.as_ref().unwrap();
        let ack = Ack {
            position: Some((*position).into()),
            refusal: String::new(),
        };
        self.say(node_message::Kind::Ack(ack)).await;
    }

    /// The next stops that are confirmed.
    async fn confirmed(&mut self) -> Vec<String> {
        let is_it = |_: &Self, kind: &Kind| matches!(kind, Kind::StopConfirmed(_));
        match self.until("the confirmation", is_it).await {
            Kind::StopConfirmed(confirmed) => confirmed.replica_ids,
            other => unreachable!("just matched: {other:?}"),
        }
    }

    async fn status(&self, phase: Phase, unlisted: &[&str]) {
        self.status_at(phase, unlisted, None).await;
    }

    /// As written down when a set was accepted.
    async fn status_at(&self, phase: Phase, unlisted: &[&str], accepted: Option<Position>) {
        let (set, _) = self.assigned.as_ref().unwrap();
        let replicas: Vec<ReplicaStatus> = set
            .replicas
            .iter()
            .map(|assignment| ReplicaStatus {
                revision: assignment.digest().to_string(),
                ..ReplicaStatus::new(assignment.replica_id.clone(), phase)
            })
            .collect();
        let status = Status {
            replicas: serde_json::to_vec(&replicas).unwrap().into(),
            machine: b"{\"subsystems\":[]}".to_vec().into(),
            unlisted_replica_ids: unlisted.iter().map(ToString::to_string).collect(),
            accepted: accepted.map(Into::into),
        };
        self.say(node_message::Kind::Status(status)).await;
    }

    /// Acknowledges and reports, so that the machine takes replicas.
    async fn ready(&mut self) {
        self.assigned(0).await;
        self.ack().await;
        self.status(Phase::Healthy, &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declared_container_reaches_the_node_and_its_name_answers_when_it_is_healthy() {
    let world = world().await;
    let mut node = world.node("m-1").await;
    node.ready().await;
    world
        .cluster
        .create_container(container("reader", 2))
        .await
        .unwrap();
    let set = node.assigned(2).await;
    assert_eq!(set.replicas[0].image, "app:1");
    node.ack().await;
    node.status(Phase::Started, &[]).await;
    node.until("the name, empty", |node, _| {
        node.names.get("reader.svc").is_some_and(Vec::is_empty)
    })
    .await;
    node.status(Phase::Healthy, &[]).await;
    node.until("the name, answering", |node, _| {
        node.names
            .get("reader.svc")
            .is_some_and(|addresses| addresses.len() == 2)
    })
    .await;
    let mut addresses: Vec<String> = set
        .replicas
        .iter()
        .map(|replica| replica.ip.to_string())
        .collect();
    addresses.sort();
    assert_eq!(node.names["reader.svc"], addresses);
    world
        .cluster
        .delete_container(ContainerName::new("reader").unwrap())
        .await
        .unwrap();
    let set = node.assigned(0).await;
    assert_eq!(set.stops.len(), 2);
    node.ack().await;
    node.status(Phase::Healthy, &[]).await;
    node.until("the end of the stops", |node, _| {
        node.assigned
            .as_ref()
            .is_some_and(|(set, _)| set.stops.is_empty())
    })
    .await;
    assert!(world.cluster.world().replicas().is_empty());
    world.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_is_on_its_way_within_20_ms_of_its_commit() {
    let world = world().await;
    let mut node = world.node("m-1").await;
    node.ready().await;
    let mut delays = Vec::new();
    // Half a vCPU each: the machine has room for 16.
    for number in 1..=15 {
        let mut commits = world.cluster.watch_world();
        commits.mark_unchanged();
        let name = format!("c{number}");
        let placed = async {
            loop {
                commits.changed().await.unwrap();
                if commits.borrow_and_update().replicas().len() == number {
                    return monotonic();
                }
            }
        };
        let put = world.cluster.create_container(container(&name, 1));
        let (committed, created) = soon("the commit", async { tokio::join!(placed, put) }).await;
        created.unwrap();
        node.assigned(number).await;
        delays.push(monotonic().duration_since(committed));
        node.ack().await;
    }
    delays.sort();
    // A few suffice: what waited for a period of seconds would not be so quick four times of fifteen.
    assert!(delays[3] < Duration::from_millis(50), "{delays:?}");
    world.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_machine_token_of_the_cluster_enrols() {
    let world = world().await;
    let mut client = world.client(None).await;
    let unknown = format!("hj_{}", "9".repeat(43));
    for (token, code) in [
        (MANAGEMENT_TOKEN, Code::PermissionDenied),
        (unknown.as_str(), Code::Unauthenticated),
        ("", Code::Unauthenticated),
    ] {
        let (request, _) = World::enrolment("m-1", token, "boot-1");
        assert_eq!(client.enrol(request).await.unwrap_err().code(), code, "{token}");
    }
    let (mut request, _) = World::enrolment("m-1", MACHINE_TOKEN, "boot-1");
    request.cluster_id = "other".into();
    request.register = String::from_utf8(request.register.to_vec())
        .unwrap()
        .replace("acme/prod", "other")
        .into_bytes()
        .into();
    assert_eq!(
        client.enrol(request).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    world.cluster.revoke_tokens(TokenKind::Machine).await.unwrap();
    let (request, _) = World::enrolment("m-1", MACHINE_TOKEN, "boot-1");
    assert_eq!(
        client.enrol(request).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    assert!(world.cluster.world().machines().is_empty());
    world.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_faults_of_a_registration_are_told_at_once() {
    let world = world().await;
    let (mut request, _) = World::enrolment("m-1", MACHINE_TOKEN, "boot-1");
    request.register = b"{\"clusterId\":\"acme/prod\",\"machineId\":\"m-1\"}"
        .to_vec()
        .into();
    let status = world.client(None).await.enrol(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    for member in ["capacityGroup", "zone", "vpcIp", "capacity"] {
        assert!(status.message().contains(member), "{}", status.message());
    }
    world.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_cannot_speak_for_another() {
    let world = world().await;
    let identity = world.enrol("m-1", "boot-1").await;
    world.enrol("m-2", "boot-1").await;
    let refused = world
        .link(identity.clone(), "m-2", "boot-1", Position::default())
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    // Its certificate renews its own and no other.
    let mut client = world.client(Some(identity.clone())).await;
    let (request, _) = World::enrolment("m-2", "", "boot-1");
    assert_eq!(
        client.enrol(request).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    let (request, _) = World::enrolment("m-1", "", "boot-1");
    client.enrol(request).await.unwrap();
    // Without a certificate there is no session.
    let mut stranger = world.client(None).await;
    let (_outbound, messages) = mpsc::channel(1);
    let refused = stranger.session(ReceiverStream::new(messages)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    // An event in another's name is not recorded.
    let node = world
        .link(identity, "m-1", "boot-1", Position::default())
        .await
        .unwrap();
    for machine in ["m-2", "m-1"] {
        let event = serde_json::json!({
            "eventId": format!("e-{machine}"), "type": "info", "message": "bridge",
            "firstTimestamp": "2026-11-21T10:00:00Z", "lastTimestamp": "2026-11-21T10:00:00Z", "count": 1,
            "involvedObject": {"type": "machine", "id": machine},
            "source": {"component": "horizond", "machineId": machine},
            "reason": "BridgeInterfaceReady", "bridgeName": "b0", "gatewayIp": "10.244.0.1"
        });
        node.say(node_message::Kind::Event(event.to_string().into_bytes().into()))
            .await;
    }
    let filter = EventFilter {
        reason: Some("BridgeInterfaceReady".into()),
        ..EventFilter::default()
    };
    soon("the event", async {
        let mut changes = world.cluster.watch_world();
        while world.cluster.events(&filter).is_empty() {
            changes.changed().await.unwrap();
        }
    })
    .await;
    let recorded = world.cluster.events(&filter);
    assert_eq!(recorded.len(), 1);
    assert_eq!(recorded[0].event_id, "e-m-1");
    world.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_is_refused_while_the_first_is_linked_and_the_same_boot_takes_over() {
    let world = world().await;
    let identity = world.enrol("m-1", "boot-1").await;
    let mut first = world
        .link(identity.clone(), "m-1", "boot-1", Position::default())
        .await
        .unwrap();
    let clone = world
        .link(identity.clone(), "m-1", "boot-2", Position::default())
        .await;
    assert_eq!(clone.err().unwrap().code(), Code::AlreadyExists);
    let (request, _) = World::enrolment("m-1", MACHINE_TOKEN, "boot-2");
    let refused = world.client(None).await.enrol(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    let mut second = world
        .link(identity, "m-1", "boot-1", Position::default())
        .await
        .unwrap();
    second.assigned(0).await;
    let ended = soon("the end of the first", async {
        loop {
            if let Err(status) = first.hear().await {
                return status;
            }
        }
    })
    .await;
    assert_eq!(ended.code(), Code::AlreadyExists);
    world.running.shutdown().await;
}

/// A machine that was taken for dead and removed wakes up, and another one has its id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_certificate_of_a_removed_machine_does_not_count_for_the_next_one_of_its_id() {
    let world = world().await;
    let former = world.enrol("m-1", "boot-1").await;
    let machine_id = MachineId::new("m-1").unwrap();
    let registered_at = || {
        let machine = world.cluster.world().machine(&machine_id).cloned();
        machine.map(|machine| machine.registered_at)
    };
    let before = registered_at();
    world
        .cluster
        .remove_machine(machine_id.clone(), Removal::Empty)
        .await
        .unwrap();
    let mut identity = world.enrol("m-1", "boot-2").await;
    while registered_at() == before {
        // Within one millisecond.
        world
            .cluster
            .remove_machine(machine_id.clone(), Removal::Empty)
            .await
            .unwrap();
        identity = world.enrol("m-1", "boot-2").await;
    }
    let refused = world
        .link(former.clone(), "m-1", "boot-1", Position::default())
        .await;
    let refused = refused.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("was removed"), "{refused}");
    let (request, _) = World::enrolment("m-1", "", "boot-1");
    let refused = world.client(Some(former)).await.enrol(request).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    // Its own counts, for a session and for the next certificate.
    let (request, _) = World::enrolment("m-1", "", "boot-2");
    let renewed = world.client(Some(identity.clone())).await.enrol(request).await;
    renewed.unwrap();
    let mut node = world
        .link(identity, "m-1", "boot-2", Position::default())
        .await
        .unwrap();
    node.assigned(0).await;
    world.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unlisted_replicas_are_confirmed_to_stop_only_after_the_present_set_is_accepted() {
    let world = world().await;
    let mut node = world.node("m-1").await;
    node.assigned(0).await;
    node.status(Phase::Healthy, &["stray-1"]).await;
    node.ack().await;
    node.status(Phase::Healthy, &["stray-2"]).await;
    assert_eq!(node.confirmed().await, ["stray-2"]);
    world.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_from_before_a_set_was_accepted_says_nothing_about_it() {
    let world = world().await;
    let mut node = world.node("m-1").await;
    node.assigned(0).await;
    node.ack().await;
    let before = Position::default();
    node.status_at(Phase::Healthy, &["stray-1"], Some(before)).await;
    let (_, present) = node.assigned.clone().unwrap();
    node.status_at(Phase::Healthy, &["stray-2"], Some(present)).await;
    assert_eq!(node.confirmed().await, ["stray-2"]);
    world.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_that_was_never_sent_proves_lost_history_and_starts_an_epoch() {
    let world = world().await;
    let identity = world.enrol("m-1", "boot-1").await;
    let accepted = Position {
        epoch: 3,
        generation: 900,
        ..Position::default()
    };
    let mut node = world.link(identity, "m-1", "boot-1", accepted).await.unwrap();
    node.assigned(0).await;
    let (_, position) = node.assigned.clone().unwrap();
    assert_eq!(position.epoch, 4);
    assert_eq!(accepted.accept(&position), Ok(()));
    // What the lost history may have placed there is not confirmed to stop: a ping passes and nothing came.
    node.ack().await;
    node.status(Phase::Healthy, &["from-lost-history"]).await;
    for _ in 0..2 {
        node.until("a ping", |_, kind| {
            assert!(!matches!(kind, Kind::StopConfirmed(_)), "{kind:?}");
            matches!(kind, Kind::Ping(_))
        })
        .await;
    }
    world.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_and_directory_are_deltas_until_a_full_one_is_asked_for() {
    let world = world().await;
    let mut node = world.node("m-1").await;
    let first = node
        .until("the mesh", |_, kind| matches!(kind, Kind::Mesh(_)))
        .await;
    let Kind::Mesh(first) = first else {
        unreachable!("just matched");
    };
    assert_eq!((first.base_generation, first.put.len()), (0, 1));
    world.enrol("m-2", "boot-1").await;
    let second = node
        .until("the change", |_, kind| matches!(kind, Kind::Mesh(_)))
        .await;
    let Kind::Mesh(second) = second else {
        unreachable!("just matched");
    };
    assert_eq!(second.base_generation, first.generation);
    assert_eq!(second.put.len(), 1);
    assert_eq!(
        (second.put[0].machine_id.as_str(), second.put[0].cidr.as_str()),
        ("m-2", "10.244.1.0/24")
    );
    node.say(node_message::Kind::NeedFull(NeedFull {
        mesh: true,
        directory: true,
    }))
    .await;
    let full = node
        .until("a full mesh", |_, kind| matches!(kind, Kind::Mesh(_)))
        .await;
    let Kind::Mesh(full) = full else {
        unreachable!("just matched");
    };
    assert_eq!((full.base_generation, full.put.len()), (0, 2));
    world.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_the_world_and_a_corrupt_log_stops_the_start() {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let dir = tempfile::tempdir().unwrap();
    let running = Scheduler::start(config(dir.path())).await.unwrap();
    let created = running
        .scheduler()
        .create_cluster(cluster_spec(), BTreeMap::new())
        .await
        .unwrap();
    let Creation::Created(cluster) = created else {
        panic!("{created:?}");
    };
    cluster.create_container(container("reader", 3)).await.unwrap();
    let before = cluster.world();
    drop(cluster);
    running.shutdown().await;

    let running = Scheduler::start(config(dir.path())).await.unwrap();
    let id = ClusterId::new("acme/prod").unwrap();
    let after = running.scheduler().cluster(&id).unwrap().world();
    assert_eq!(after, before);
    assert_eq!(
        serde_json::to_vec(&*after).unwrap(),
        serde_json::to_vec(&*before).unwrap()
    );
    let second = Scheduler::start(config(dir.path())).await.unwrap_err();
    assert!(matches!(second, StartError::Store(_)), "{second}");
    running.shutdown().await;

    let path = dir.path().join("store.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let text = b"\"image\":\"app:1\"";
    let at = bytes
        .windows(text.len())
        .position(|window| window == text)
        .unwrap();
    bytes[at + 10] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let error = Scheduler::start(config(dir.path())).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap();
    assert!(source.to_string().contains(path.to_str().unwrap()), "{source}");
    let record = source.source().unwrap().to_string();
    assert_eq!(record, "cluster acme/prod, record 2: crc differs");
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "nothing is overwritten");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_cluster_again_is_the_same_and_another_of_its_id_is_a_conflict() {
    let world = world().await;
    let scheduler = world.running.scheduler();
    let again = scheduler.create_cluster(cluster_spec(), BTreeMap::new()).await;
    assert!(matches!(again, Ok(Creation::Existing(_))), "{again:?}");
    let other = ClusterSpec {
        name: "Other".into(),
        ..cluster_spec()
    };
    let refused = scheduler
        .create_cluster(other, BTreeMap::new())
        .await
        .unwrap_err();
    assert_eq!(
        (refused.class.http_status(), refused.code),
        (409, "cluster_exists")
    );
    scheduler.delete_cluster(world.cluster.id()).await.unwrap();
    soon("the end of the cluster", async {
        while !scheduler.clusters().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(world.dir.path().join("ca.pem").exists());
    world.running.shutdown().await;
}
