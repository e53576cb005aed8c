//! Several scheduler processes on a real etcd of three members, and what may happen to them: killed, paused past their
//! lease, cut off from etcd, members of etcd killed.
//!
//! One writer per cluster sets a number that only rises, through whichever scheduler answers; a scripted node per cluster
//! speaks the real link and follows redirects. What is proved after every fault and at the end:
//! - a number that was acknowledged is never lost;
//! - a node is never sent a set that is not above the last one it took, nor the same position with other content;
//! - no replica is placed twice, and every log reads whole, without a gap;
//! - each cluster is written again within a bound that only a hang exceeds; how long it took is printed.
//!
//! `BERTH_FAILOVER_FAULTS=100` makes 100 faults instead of 6, `BERTH_FAILOVER_ONLY=kills` only those that kill a scheduler. Skipped, with a line, where there is no program `etcd`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![expect(
    clippy::print_stderr,
    reason = "figures for whoever runs it, and why it was skipped"
)]

#[path = "../../src/store/etcd/fixture.rs"]
mod fixture;
mod node;
mod proxy;
mod shared;
mod stage;
mod writer;

use std::collections::BTreeSet;
use std::time::Duration;

use berth_api::time::monotonic;
use berth_scheduler::entry::Entry;
use berth_scheduler::store::{Etcd, EtcdOptions, Store as _};

use fixture::skip_without_etcd;
use stage::Stage;

const CLUSTERS: usize = 4;
const SCHEDULERS: usize = 3;

/// One fault, and what mends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// kill -9 of the process that owns cluster 0.
    Kill,
    /// It is stopped for longer than its lease, and goes on where it was.
    Pause,
    /// It lives, and cannot reach etcd.
    CutOff,
    /// kill -9 of a member of etcd, the leader in one of three.
    Etcd,
    /// Both at once.
    KillAndEtcd,
    /// It is asked to stop.
    Leave,
}

const FAULTS: [Fault; 6] = [
    Fault::Kill,
    Fault::Pause,
    Fault::Etcd,
    Fault::CutOff,
    Fault::KillAndEtcd,
    Fault::Leave,
];

/// All kinds, or those that whoever runs the test asks for.
fn kinds() -> Vec<Fault> {
    match std::env::var("BERTH_FAILOVER_ONLY").as_deref() {
        Ok("kills") => vec![Fault::Kill, Fault::KillAndEtcd],
        Ok(other) => panic!("BERTH_FAILOVER_ONLY={other} is none of: kills"),
        Err(_) => FAULTS.to_vec(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_and_nothing_is_decided_twice() {
    let test = "nothing_acknowledged_is_lost_and_nothing_is_decided_twice";
    if skip_without_etcd(test) {
        return;
    }
    let faults = std::env::var("BERTH_FAILOVER_FAULTS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(FAULTS.len());
    let kinds = kinds();
    let mut stage = Stage::start(SCHEDULERS, stage::SHORT_LEASE_SECONDS).await;
    let writers = stage.writers(CLUSTERS).await;
    let nodes = stage.nodes(CLUSTERS).await;
    writer::all_write(&writers).await;
    let mut times = Vec::new();
    for number in 0..faults {
        let fault = kinds[number % kinds.len()];
        let owner = stage.owner_of(0).await;
        let began = monotonic();
        stage.strike(fault, owner, number).await;
        writer::all_write(&writers).await;
        let took = began.elapsed();
        times.push(took);
        eprintln!(
            "fault {number}: {fault:?}: every cluster is written again after {} ms",
            took.as_millis()
        );
        stage.mend(fault, owner, number).await;
        writer::all_write(&writers).await;
        for node in &nodes {
            node.check();
        }
    }
    tell(times);
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.push(writer.stop().await);
    }
    for (cluster, acknowledged) in acknowledged.into_iter().enumerate() {
        let kept = stage.number_of(cluster).await;
        assert!(
            kept >= acknowledged,
            "cluster {cluster}: {acknowledged} was acknowledged, {kept} is kept"
        );
    }
    for node in nodes {
        let taken = node.stop().await;
        assert!(taken > 0, "a node took sets");
    }
    stage.stop_schedulers().await;
    every_log_is_whole(&stage).await;
}

/// From the fault to the moment when every cluster is written again.
fn tell(mut times: Vec<Duration>) {
    times.sort();
    let total: Duration = times.iter().sum();
    let count = u32::try_from(times.len()).unwrap().max(1);
    let (middle, slowest) = (times.get(times.len() / 2), times.last());
    let ms = |time: Option<&Duration>| time.copied().unwrap_or_default().as_millis();
    eprintln!(
        "{} faults under a lease of {} s: mean {} ms, p50 {} ms, the slowest {} ms",
        times.len(),
        stage::SHORT_LEASE_SECONDS,
        (total / count).as_millis(),
        ms(middle),
        ms(slowest)
    );
}

async fn every_log_is_whole(stage: &Stage) {
    let etcd = Etcd::open(&EtcdOptions {
        endpoints: stage.etcd.endpoints(),
        prefix: "/berth".into(),
        user: None,
        tls: None,
    })
    .await
    .unwrap();
    let clusters = etcd.clusters().await.unwrap();
    assert_eq!(clusters.len(), CLUSTERS);
    for cluster in clusters {
        // Reading verifies the chain: no record is missing, and none was written by two.
        let history = etcd.load(&cluster).await.unwrap();
        let mut placed = BTreeSet::new();
        for record in &history.records {
            if let Entry::ReplicaPlaced(replica) = Entry::from_record(&record.payload).unwrap() {
                assert!(
                    placed.insert(replica.replica_id.clone()),
                    "{} is placed twice",
                    replica.replica_id
                );
            }
        }
    }
}
