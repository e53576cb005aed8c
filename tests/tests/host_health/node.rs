//! The node's own loop, with the prober in a real namespace: only processes are make-believe.

use std::sync::Arc;
use std::time::Duration;

use berth_api::assignment::{Assignment, AssignmentSet, Digest};
use berth_api::id::{ClusterId, MachineId};
use berth_api::probe::Probes;
use berth_api::replica::{Cause, Phase, ReplicaStatus};
use berth_api::time::Timestamp;
use berth_node::clock::Now;
use berth_node::events::EventQueue;
use berth_node::health::Prober;
use berth_node::host::fake::FakeHost;
use berth_node::ledger::Ledger;
use berth_node::plan::{Identity, NodeCore, Restored};
use berth_node::reconcile::{INBOX_MAX, Input, Parts, run};
use berth_node::status::{Snapshot, Verdicts};
use berth_node::watchdog::Watchdog;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::probe;
use super::room::{ADDRESS, Room, Server};

/// Far above what is needed: the test machine may be busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// A node with one replica, which is asked as `probes` say.
struct Node {
    host: Arc<FakeHost>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    _tasks: JoinSet<()>,
    _inbox: mpsc::Sender<Input>,
    _dir: tempfile::TempDir,
}

fn identity() -> Identity {
    Identity {
        cluster_id: ClusterId::new("c").unwrap(),
        machine_id: MachineId::new("m").unwrap(),
    }
}

fn assignment(port: u16, probes: Probes) -> Assignment {
    Assignment {
        probes: Some(probes),
        ..berth_tests::assigned::assignment("r", ADDRESS, port)
    }
}

impl Node {
    async fn start(room: &Room, assignment: Assignment) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _, _) = Ledger::open(&dir.path().join("ledger.sqlite"), "boot").unwrap();
        let Identity {
            cluster_id,
            machine_id,
        } = identity();
        let (publish, snapshots) = watch::channel(Arc::new(Snapshot {
            cluster_id: cluster_id.clone(),
            machine_id: machine_id.clone(),
            version: "test".into(),
            boot_id: "boot".into(),
            epoch: 0,
            generation: 0,
            digest: Digest::default(),
            state_rebuilt: false,
            observed: false,
            replicas: vec![],
            unlisted: vec![],
            running: vec![],
            taken_at: Timestamp::default(),
        }));
        let host = Arc::new(FakeHost::new());
        let (inbox, inbox_receiver) = mpsc::channel(INBOX_MAX);
        let (answers, _) = mpsc::channel(16);
        let (reports, probes) = mpsc::channel(16);
        let parts = Parts {
            pulse: Watchdog::new().pulse("reconcile"),
            host: Arc::clone(&host),
            core: NodeCore::new(identity(), Restored::default(), Now::read()),
            ledger,
            inbox: inbox_receiver,
            inbox_sender: inbox.clone(),
            probes,
            prober: Prober::new(reports, room.inside()),
            answers,
            events: EventQueue::new(machine_id.clone()),
            snapshots: publish,
            verdicts: Verdicts::new(),
            peers: vec![],
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(run(parts, CancellationToken::new()));
        let set = AssignmentSet {
            cluster_id,
            machine_id,
            epoch: 1,
            generation: 1,
            replicas: vec![assignment],
            stops: vec![],
        };
        let (bytes, position) = set.seal();
        inbox.send(Input::Offer { position, bytes }).await.unwrap();
        Self {
            host,
            snapshots,
            _tasks: tasks,
            _inbox: inbox,
            _dir: dir,
        }
    }

    async fn until(&mut self, what: &str, check: impl Fn(&ReplicaStatus) -> bool) -> ReplicaStatus {
        let met = self
            .snapshots
            .wait_for(|snapshot| snapshot.replicas.first().is_some_and(&check));
        let met = tokio::time::timeout(PATIENCE, met).await;
        let met = met.unwrap_or_else(|_| panic!("never: {what}"));
        met.unwrap().replicas[0].clone()
    }

    async fn until_forwarded(&self, ports: &[u16]) {
        let forwarded = async {
            loop {
                let wish = self.host.network_wish();
                let now: Vec<u16> = wish.host_ports.iter().flatten().map(|port| port.port).collect();
                if now == ports {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let forwarded = tokio::time::timeout(PATIENCE, forwarded).await;
        forwarded.unwrap_or_else(|_| panic!("never forwarded: {ports:?}"));
    }
}

/// Waits until the server was asked so often.
async fn until_asked(server: &Server, line: &str, times: u32) {
    let asked = async {
        while server.asked(line) < times {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let asked = tokio::time::timeout(PATIENCE, asked).await;
    asked.unwrap_or_else(|_| panic!("{line} was asked {} times", server.asked(line)));
}

#[tokio::test]
async fn a_program_that_starts_slowly_is_left_alone_and_asked_nothing_else() {
    let Some(mut room) = Room::new() else { return };
    let server = room.serve(ADDRESS).await;
    for path in ["/started", "/ready", "/live"] {
        server.say(path, 503);
    }
    let mut startup = probe(server.port, "/started");
    startup.failure_threshold = 1000;
    let probes = Probes {
        startup: Some(startup),
        readiness: Some(probe(server.port, "/ready")),
        liveness: Some(probe(server.port, "/live")),
    };
    let mut node = Node::start(&room, assignment(server.port, probes)).await;
    until_asked(&server, "GET /started", 5).await;
    let slow = node.until("it waits", |replica| replica.wait.is_some()).await;
    assert_eq!((slow.phase, slow.ready, slow.run), (Phase::Started, false, 1));
    let reason = slow.wait.unwrap().reason;
    assert_eq!(reason, "its startup probe has not passed yet: status 503");
    assert_eq!((server.asked("GET /ready"), server.asked("GET /live")), (0, 0));
    server.say("/live", 200);
    server.say("/started", 200);
    let waiting = |replica: &ReplicaStatus| {
        let wait = replica.wait.as_ref().map(|wait| wait.reason.as_str());
        wait == Some("its readiness probe has not passed yet: status 503")
    };
    node.until("only readiness is left", waiting).await;
    until_asked(&server, "GET /live", 1).await;
    server.say("/ready", 200);
    let ready = node.until("it is ready", |replica| replica.ready).await;
    assert_eq!(ready.run, 1);
    let asked = server.asked("GET /started");
    until_asked(&server, "GET /live", 3).await;
    assert_eq!(server.asked("GET /started"), asked, "it has started once");
}

#[tokio::test]
async fn a_startup_that_fails_past_its_threshold_is_restarted() {
    let Some(mut room) = Room::new() else { return };
    let server = room.serve(ADDRESS).await;
    server.say("/started", 503);
    let probes = Probes {
        startup: Some(probe(server.port, "/started")),
        ..Probes::default()
    };
    let mut node = Node::start(&room, assignment(server.port, probes)).await;
    let again = node.until("it is restarted", |replica| replica.run == 2).await;
    assert!(!again.ready);
    let error = "startup probe failed 2 times in a row: status 503".to_owned();
    assert_eq!(again.cause, Some(Cause::Health { error }));
    server.say("/started", 200);
    node.until("it comes up", |replica| replica.ready).await;
}

#[tokio::test]
async fn a_program_that_lives_no_more_is_restarted() {
    let Some(mut room) = Room::new() else { return };
    let server = room.serve(ADDRESS).await;
    let probes = Probes {
        liveness: Some(probe(server.port, "/live")),
        ..Probes::default()
    };
    let mut node = Node::start(&room, assignment(server.port, probes)).await;
    node.until("nothing keeps it from being ready", |replica| replica.ready)
        .await;
    until_asked(&server, "GET /live", 2).await;
    server.say("/live", 500);
    let again = node.until("it is restarted", |replica| replica.run == 2).await;
    let error = "liveness probe failed 2 times in a row: status 500".to_owned();
    assert_eq!(again.cause, Some(Cause::Health { error }));
    server.say("/live", 200);
    let back = node.until("it is back", |replica| replica.ready).await;
    assert!(back.run >= 2, "{back:?}");
}

#[tokio::test]
async fn readiness_takes_a_replica_out_and_back_in_and_never_restarts_it() {
    let Some(mut room) = Room::new() else { return };
    let server = room.serve(ADDRESS).await;
    let mut readiness = probe(server.port, "/ready");
    readiness.success_threshold = 2;
    let probes = Probes {
        readiness: Some(readiness),
        liveness: Some(probe(server.port, "/live")),
        ..Probes::default()
    };
    let mut node = Node::start(&room, assignment(server.port, probes)).await;
    node.until("it is ready", |replica| replica.ready).await;
    node.until_forwarded(&[8001]).await;
    for _ in 0..2 {
        server.say("/ready", 503);
        let out = node
            .until("it is out, for long", |replica| replica.consecutive_failures >= 9)
            .await;
        assert_eq!((out.phase, out.ready), (Phase::Unhealthy, false));
        let reason = out.wait.unwrap().reason;
        assert!(
            reason.starts_with("its readiness probe failed ") && reason.ends_with("status 503"),
            "{reason}"
        );
        node.until_forwarded(&[]).await;
        server.say("/ready", 200);
        let back = node.until("it is back", |replica| replica.ready).await;
        assert_eq!((back.run, back.cause), (1, None));
        node.until_forwarded(&[8001]).await;
    }
}
