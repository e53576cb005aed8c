//! What somebody gets who has stolen the cluster's machine token, or one machine's certificate and key, or has a certificate of
//! another cluster, another authority, another time: on the link and on REST.

use berth_api::assignment::Assignment;
use berth_api::time::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::identity::{Identity as Authority, MachineIdentity, SigningRequest};

/// A certificate for the machine's own key, signed by `authority` as at `now`.
fn forged(authority: &Authority, identity: &MachineIdentity, now: Timestamp) -> Identity {
    let machine = identity.machine_id.as_str();
    let (request, key) = World::enrolment(machine, "", "boot-1");
    let csr = SigningRequest::read(&request.csr_pem, &identity.machine_id).unwrap();
    let signed = authority.sign(csr, identity, now).unwrap();
    Identity::from_pem(signed.pem, key.serialize_pem())
}

impl World {
    /// What its certificate says of an enrolled machine.
    fn identity_of(&self, machine: &str) -> MachineIdentity {
        let world = self.cluster.world();
        let machine = world.machine(&MachineId::new(machine).unwrap()).unwrap();
        MachineIdentity {
            cluster_id: self.cluster.id().clone(),
            machine_id: machine.spec.machine_id.clone(),
            token_era: world.machine_token_era(),
            registered_at: Some(machine.registered_at),
        }
    }

    /// Status and body of a request with the machine token.
    async fn post(&self, path: &str, body: &serde_json::Value) -> (u16, String) {
        let body = body.to_string();
        let text = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {MACHINE_TOKEN}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = async {
            let mut stream = tokio::net::TcpStream::connect(self.running.rest_addr)
                .await
                .unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = soon("the answer", answer).await;
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }

    async fn enrol_with(
        &self,
        key: KeyPair,
        identity: Option<Identity>,
        machine: &str,
        token: &str,
    ) -> Result<EnrolReply, tonic::Status> {
        let (request, _) = Self::enrolment_with(key, machine, token, "boot-1");
        let mut client = self.client(identity).await;
        let enrolled = soon("the certificate", client.enrol(request)).await;
        enrolled.map(tonic::Response::into_inner)
    }
}

fn event(machine: &str, about: &str) -> serde_json::Value {
    serde_json::json!({
        "eventId": format!("e-{machine}-{about}"), "type": "info", "message": "bridge",
        "firstTimestamp": "2026-11-21T10:00:00Z", "lastTimestamp": "2026-11-21T10:00:00Z", "count": 1,
        "involvedObject": {"type": "machine", "id": about},
        "source": {"component": "horizond", "machineId": machine},
        "reason": "BridgeInterfaceReady", "bridgeName": "b0", "gatewayIp": "10.244.0.1"
    })
}

/// The token that all machines share, from any one of them: it enrols new machines and nothing that is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_machine_token_takes_over_no_machine_that_has_enrolled() {
    let world = world().await;
    let mut node = world.node("m-1").await;
    node.ready().await;
    let before = world.cluster.world().machine(&node.machine).cloned();
    let thief = || KeyPair::generate().unwrap();
    // With the right boot id, which every process on the machine can read.
    let linked = world.enrol_with(thief(), None, "m-1", MACHINE_TOKEN).await;
    let refused = linked.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains("another key"), "{refused}");
    for (path, body) in [
        ("/register", {
            let (request, _) = World::enrolment("m-1", "", "");
            let mut body: serde_json::Value = serde_json::from_slice(&request.register).unwrap();
            body["vpcIp"] = "10.6.6.6".into();
            body
        }),
        (
            "/heartbeat",
            serde_json::json!({"clusterId": "acme/prod", "machineId": "m-1", "status": "running"}),
        ),
        (
            "/events",
            serde_json::json!({"clusterId": "acme/prod", "event": event("m-1", "m-1")}),
        ),
    ] {
        let (status, answer) = world.post(path, &body).await;
        assert_eq!(status, 403, "{path}: {answer}");
        assert!(answer.contains("machine_speaks_by_certificate"), "{answer}");
        // The same of a machine that speaks the plain wire API is as the contract says.
        let text = body.to_string().replace("m-1", "stock-1");
        let (status, answer) = world.post(path, &serde_json::from_str(&text).unwrap()).await;
        assert!([200, 201].contains(&status), "{path}: {answer}");
    }
    // Nor while it is away; its own key enrols it again, as after the loss of its certificate.
    drop(node);
    soon("the end of the session", async {
        while world.cluster.sessions().count() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let away = world.enrol_with(thief(), None, "m-1", MACHINE_TOKEN).await;
    assert_eq!(away.unwrap_err().code(), Code::AlreadyExists);
    let machine_id = MachineId::new("m-1").unwrap();
    let after = world.cluster.world().machine(&machine_id).cloned();
    assert_eq!(
        before.map(|machine| (machine.spec, machine.link_key)),
        after.map(|machine| (machine.spec, machine.link_key))
    );
    world
        .enrol_with(own_key("m-1"), None, "m-1", MACHINE_TOKEN)
        .await
        .unwrap();
    // Installed anew, it is another machine: the operator says so by removing the former.
    world
        .cluster
        .remove_machine(machine_id, Removal::Empty)
        .await
        .unwrap();
    world
        .enrol_with(thief(), None, "m-1", MACHINE_TOKEN)
        .await
        .unwrap();
    world.running.shutdown().await;
}

/// A machine of the plain wire API that begins to speak the link is that machine's from then on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_enrols_leaves_the_plain_wire_api() {
    let world = world().await;
    let (request, _) = World::enrolment("m-1", "", "");
    let body = serde_json::from_slice(&request.register).unwrap();
    assert_eq!(world.post("/register", &body).await.0, 200);
    let mut node = world.node("m-1").await;
    node.ready().await;
    assert_eq!(world.post("/register", &body).await.0, 403);
    world.running.shutdown().await;
}

/// A thief, who is machine m-1; m-2; and what runs there.
async fn thief_and_victim(world: &World) -> (Node, Node, Assignment) {
    let mut thief = world.node("m-1").await;
    thief.ready().await;
    // Everything is on m-2: m-1 takes no more.
    world.cluster.drain(thief.machine.clone(), None).await.unwrap();
    let mut node = world.node("m-2").await;
    node.ready().await;
    world
        .cluster
        .create_container(container("reader", 1))
        .await
        .unwrap();
    let replica = node.assigned(1).await.replicas[0].clone();
    node.ack().await;
    node.status(Phase::Started, &[]).await;
    (thief, node, replica)
}

/// A copied certificate and key are that one machine and no other: what it says of another is not believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_certificate_does_not_speak_of_another_machine() {
    let world = world().await;
    let (thief, _node, replica) = thief_and_victim(&world).await;
    // Its status says that the other's replica is well, and gone: neither is believed.
    let (_, position) = thief.assigned.clone().unwrap();
    for phase in [Phase::Healthy, Phase::Gone] {
        let statuses = [ReplicaStatus {
            revision: replica.digest().to_string(),
            ..ReplicaStatus::new(replica.replica_id.clone(), phase)
        }];
        let status = Status {
            replicas: serde_json::to_vec(&statuses).unwrap().into(),
            machine: b"{\"subsystems\":[]}".to_vec().into(),
            unlisted_replica_ids: vec![],
            accepted: Some(position.into()),
        };
        thief.say(node_message::Kind::Status(status)).await;
    }
    // Its events are about itself.
    for about in ["m-2", "m-1"] {
        let event = event("m-1", about).to_string().into_bytes();
        thief.say(node_message::Kind::Event(event.into())).await;
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
    assert_eq!(recorded.len(), 1, "{recorded:?}");
    assert_eq!(recorded[0].event_id, "e-m-1-m-1");
    // What it said before is taken by now. The machine itself is believed.
    let told = || {
        let state = world.cluster.world();
        let placed = state.replica(&replica.replica_id).expect("it is not gone");
        assert_eq!(placed.machine_id.as_str(), "m-2");
        world.cluster.observed().status(placed).cloned()
    };
    let status = soon("the status", async {
        loop {
            match told() {
                Some(status) => return status,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await;
    assert_eq!((status.phase, status.ready), (Phase::Started, false));
    assert!(thief.assigned.as_ref().unwrap().0.replicas.is_empty());
    world.running.shutdown().await;
}

/// A log is asked for on the replica's machine; chunks from elsewhere reach nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_certificate_puts_no_line_into_the_log_of_another_machine() {
    let world = world().await;
    let (mut thief, mut node, replica) = thief_and_victim(&world).await;
    let query = LogQuery::default();
    let mut log = world
        .cluster
        .sessions()
        .logs(&node.machine, &replica.replica_id, query)
        .unwrap();
    let asked = node
        .until("the request", |_, kind| matches!(kind, Kind::LogRequest(_)))
        .await;
    let Kind::LogRequest(asked) = asked else {
        unreachable!("just matched");
    };
    let chunk = |line: &'static str| {
        node_message::Kind::LogChunk(LogChunk {
            request_id: asked.request_id,
            lines: vec![LogLine {
                time_ms: 1,
                stream: 0,
                line: line.into(),
                partial: false,
                run: 1,
            }],
            end: true,
            error: String::new(),
        })
    };
    thief.say(chunk("forged")).await;
    // Behind the chunk on the same stream: when this is heard, that was.
    thief
        .say(node_message::Kind::NeedFull(NeedFull {
            mesh: true,
            directory: false,
        }))
        .await;
    thief
        .until("the mesh", |_, kind| matches!(kind, Kind::Mesh(_)))
        .await;
    node.say(chunk("true")).await;
    let told = soon("the line", log.next()).await.unwrap();
    assert_eq!(told.lines[0].line.as_ref(), b"true");
    world.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_certificate_renews_itself_with_its_own_key_alone() {
    let world = world().await;
    let copied = world.enrol("m-1", "boot-1").await;
    world.enrol("m-2", "boot-1").await;
    world
        .enrol_with(own_key("m-1"), Some(copied.clone()), "m-1", "")
        .await
        .unwrap();
    let other = KeyPair::generate().unwrap();
    let refused = world.enrol_with(other, Some(copied.clone()), "m-1", "").await;
    assert_eq!(refused.unwrap_err().code(), Code::AlreadyExists);
    let refused = world.enrol_with(own_key("m-2"), Some(copied), "m-2", "").await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    world.running.shutdown().await;
}

/// One of another cluster of this scheduler, and one of another scheduler.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_cluster_or_authority_is_nobody_here() {
    let world = world().await;
    let mut node = world.node("m-1").await;
    node.ready().await;
    let own = world.identity_of("m-1");
    let tokens = BTreeMap::from([(TokenKind::Machine, TokenDigest::of("hj_other"))]);
    let other = ClusterSpec {
        cluster_id: ClusterId::new("other").unwrap(),
        ..cluster_spec()
    };
    let scheduler = world.running.scheduler();
    scheduler.create_cluster(other, tokens).await.unwrap();
    let foreign = MachineIdentity {
        cluster_id: ClusterId::new("other").unwrap(),
        ..own.clone()
    };
    let foreign = forged(scheduler.identity(), &foreign, Timestamp::now());
    // A session is one of its own cluster, in which there is no such machine.
    let refused = world
        .link(foreign.clone(), "m-1", "boot-1", Position::default())
        .await;
    assert_eq!(refused.err().unwrap().code(), Code::NotFound);
    let refused = world.enrol_with(own_key("m-1"), Some(foreign), "m-1", "").await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);

    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(dir.path()).unwrap();
    let stranger = forged(&authority, &own, Timestamp::now());
    assert!(tls_refuses(&world, stranger).await);
    node.say(node_message::Kind::NeedFull(NeedFull {
        mesh: true,
        directory: false,
    }))
    .await;
    node.until("the mesh", |_, kind| matches!(kind, Kind::Mesh(_)))
        .await;
    world.running.shutdown().await;
}

/// Whether TLS itself ends what comes with this certificate, for a session and for a renewal.
async fn tls_refuses(world: &World, identity: Identity) -> bool {
    let ca = Certificate::from_pem(world.running.scheduler().identity().ca_pem());
    let tls = ClientTlsConfig::new()
        .ca_certificate(ca)
        .domain_name("localhost")
        .identity(identity);
    let channel = Channel::from_shared(format!("https://{}", world.running.link_addr))
        .unwrap()
        .tls_config(tls)
        .unwrap()
        .connect_lazy();
    let (request, _) = World::enrolment("m-1", "", "boot-1");
    let enrolled = soon("the refusal", LinkClient::new(channel).enrol(request)).await;
    let status = enrolled.expect_err("it renews nothing");
    std::error::Error::source(&status).is_some()
}

/// An hour of difference between two clocks, either way, is none; a certificate of tomorrow or yesterday is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_bear_an_hour_of_clock_error_and_no_day() {
    let world = world().await;
    drop(world.enrol("m-1", "boot-1").await);
    let own = world.identity_of("m-1");
    let hour = Duration::from_secs(3600);
    let now = Timestamp::now();
    let at = |millis: u64| {
        forged(
            world.running.scheduler().identity(),
            &own,
            Timestamp::from_millis(millis),
        )
    };
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap();
    for (good, when) in [
        (true, now.millis() + ms(hour)),
        (true, now.millis() - ms(hour)),
        (false, now.millis() + ms(24 * hour)),
        (false, now.millis() - ms(25 * hour)),
    ] {
        let identity = at(when);
        if good {
            let mut node = world
                .link(identity, "m-1", "boot-1", Position::default())
                .await
                .unwrap();
            node.assigned(0).await;
        } else {
            assert!(tls_refuses(&world, identity).await, "{when}");
        }
    }
    world.running.shutdown().await;
}

/// TLS looks at a certificate once. A connection that outlives it gives nothing more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_and_a_held_connection_end_with_their_certificate() {
    let world = world().await;
    drop(world.enrol("m-1", "boot-1").await);
    let own = world.identity_of("m-1");
    // Long enough for a crowded machine to connect, and sooner than the silence of this node ends the session: 15 s.
    let left = Duration::from_secs(12);
    let life = crate::identity::MACHINE_CERTIFICATE_LIFETIME - left;
    let signed_at =
        Timestamp::from_millis(Timestamp::now().millis() - u64::try_from(life.as_millis()).unwrap());
    let identity = forged(world.running.scheduler().identity(), &own, signed_at);
    let mut client = world.client(Some(identity.clone())).await;
    let mut node = world
        .link(identity, "m-1", "boot-1", Position::default())
        .await
        .unwrap();
    let ended = soon("the end", async {
        loop {
            if let Err(status) = node.hear().await {
                return status;
            }
        }
    })
    .await;
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended}");
    assert!(ended.message().contains("certificate_expired"), "{ended}");
    let (request, _) = World::enrolment("m-1", "", "boot-1");
    let refused = soon("the refusal", client.enrol(request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    assert!(refused.message().contains("run out"), "{refused}");
    assert!(!world.cluster.sessions().is_linked(&node.machine));
    world.running.shutdown().await;
}
