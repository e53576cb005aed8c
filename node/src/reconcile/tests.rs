//! The loop on a fake machine with a real ledger: what is answered, when, and that one hung replica costs only itself.

use std::net::IpAddr;

use berth_api::assignment::Assignment;
use berth_api::container::{CpuRange, MemoryRange};
use berth_api::id::{ClusterId, ContainerName, MachineId};
use berth_api::time::Timestamp;
use berth_api::units::{Bytes, Cpu};

use super::*;
use crate::host::fake::FakeHost;
use crate::plan::{Identity, Restored};

/// Far above what is needed: the test machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Nothing here is probed.
#[derive(Debug)]
struct NoPrograms;

impl crate::health::Inside for NoPrograms {
    fn run<'a>(
        &'a self,
        _: &'a ReplicaId,
        _: crate::health::ProbeRole,
        _: &'a [String],
        _: Duration,
    ) -> futures::future::BoxFuture<'a, Option<Result<(), String>>> {
        Box::pin(async { None })
    }

    fn namespace(&self, _: &ReplicaId) -> Option<std::path::PathBuf> {
        None
    }
}

struct Fixture {
    host: Arc<FakeHost>,
    inbox: mpsc::Sender<Input>,
    answers: mpsc::Receiver<Answer>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    ledger: Ledger,
    cancel: CancellationToken,
    tasks: JoinSet<()>,
    _dir: tempfile::TempDir,
}

fn start() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _, _) = Ledger::open(&dir.path().join("ledger.sqlite"), "boot").unwrap();
    let identity = Identity {
        cluster_id: ClusterId::new("c").unwrap(),
        machine_id: MachineId::new("m").unwrap(),
    };
    let first = Snapshot {
        cluster_id: identity.cluster_id.clone(),
        machine_id: identity.machine_id.clone(),
        version: "test".into(),
        boot_id: "boot".into(),
        epoch: 0,
        generation: 0,
        digest: berth_api::assignment::Digest::default(),
        state_rebuilt: false,
        observed: false,
        replicas: vec![],
        unlisted: vec![],
        running: vec![],
        taken_at: Timestamp::default(),
    };
    let host = Arc::new(FakeHost::new());
    let (publish, snapshots) = watch::channel(Arc::new(first));
    let (inbox, inbox_receiver) = mpsc::channel(INBOX_MAX);
    let (answer_sender, answers) = mpsc::channel(16);
    let (reports, probes) = mpsc::channel(16);
    let parts = Parts {
        pulse: crate::watchdog::Watchdog::new().pulse("reconcile"),
        host: Arc::clone(&host),
        core: NodeCore::new(identity.clone(), Restored::default(), Now::read()),
        ledger: ledger.clone(),
        inbox: inbox_receiver,
        inbox_sender: inbox.clone(),
        probes,
        prober: Prober::new(reports, Arc::new(NoPrograms)),
        answers: answer_sender,
        events: EventQueue::new(identity.machine_id),
        snapshots: publish,
        verdicts: Verdicts::new(),
        peers: vec![],
    };
    let cancel = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(run(parts, cancel.clone()));
    Fixture {
        host,
        inbox,
        answers,
        snapshots,
        ledger,
        cancel,
        tasks,
        _dir: dir,
    }
}

fn assignment(n: u8) -> Assignment {
    Assignment {
        replica_id: ReplicaId::new(format!("r-{n}")).unwrap(),
        container: ContainerName::new("r").unwrap(),
        ordinal: None,
        image: "image".into(),
        command: None,
        env: BTreeMap::new(),
        cpu: CpuRange {
            min: Cpu::from_micros(1),
            desired: Cpu::from_micros(1),
        },
        memory: MemoryRange {
            min: Bytes::mib(1),
            desired: Bytes::mib(1),
        },
        granted: None,
        ephemeral_storage: None,
        gpu: None,
        gpu_devices: vec![],
        ip: IpAddr::from([10, 0, 0, n + 2]),
        ports: vec![80],
        host_port: None,
        volume: None,
        shared_mounts: vec![],
        health_check: None,
        probes: None,
        load_balancer_target: None,
        service_account: None,
        stop_grace_ms: 1000,
        drain_ms: None,
    }
}

impl Fixture {
    async fn offer(&mut self, generation: u64, replicas: Vec<Assignment>) -> Answer {
        let set = AssignmentSet {
            cluster_id: ClusterId::new("c").unwrap(),
            machine_id: MachineId::new("m").unwrap(),
            epoch: 1,
            generation,
            replicas,
            stops: vec![],
        };
        let (bytes, position) = set.seal();
        self.inbox.send(Input::Offer { position, bytes }).await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, self.answers.recv()).await;
        answer.unwrap().unwrap()
    }

    async fn until(&mut self, what: &str, check: impl Fn(&Snapshot) -> bool) {
        let met = self.snapshots.wait_for(|snapshot| check(snapshot));
        let met = tokio::time::timeout(PATIENCE, met).await;
        assert!(met.is_ok(), "{what}");
    }

    async fn end(mut self) {
        self.cancel.cancel();
        tokio::time::timeout(PATIENCE, self.tasks.join_next())
            .await
            .unwrap();
        self.ledger.close();
    }
}

fn ready(snapshot: &Snapshot) -> usize {
    snapshot.replicas.iter().filter(|replica| replica.ready).count()
}

#[tokio::test]
async fn a_set_is_stored_accepted_and_run_and_an_older_one_is_refused() {
    let mut node = start();
    let answer = node.offer(2, vec![assignment(0), assignment(1)]).await;
    assert_eq!(answer.refusal, None);
    node.until("both run", |snapshot| ready(snapshot) == 2).await;
    let older = node.offer(1, vec![]).await;
    assert!(older.refusal.unwrap().contains("older"));
    let again = node.offer(2, vec![assignment(0), assignment(1)]).await;
    assert_eq!(again.refusal, None, "a repeated set is acknowledged again");
    node.end().await;
}

#[tokio::test]
async fn one_hung_replica_does_not_delay_the_others() {
    let mut node = start();
    node.host.hang(&ReplicaId::new("r-0").unwrap());
    node.offer(1, (0..30).map(assignment).collect()).await;
    node.until("the others run", |snapshot| ready(snapshot) == 29)
        .await;
    node.end().await;
}

#[tokio::test]
async fn a_process_that_ends_is_started_again_at_once() {
    let mut node = start();
    node.offer(1, vec![assignment(0)]).await;
    node.until("it runs", |snapshot| ready(snapshot) == 1).await;
    assert!(node.host.exit(&ReplicaId::new("r-0").unwrap(), 1, false));
    node.until("it runs again", |snapshot| {
        ready(snapshot) == 1 && snapshot.replicas[0].run == 2
    })
    .await;
    node.end().await;
}
