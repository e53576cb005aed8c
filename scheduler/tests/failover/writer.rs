//! One writer per cluster: sets a number that only rises, through whichever scheduler answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;

use super::stage::{Api, CONTAINER, cluster_path};

const PAUSE: Duration = Duration::from_millis(60);
/// Polls of 20 ms until a write is acknowledged: a minute, which only a hang exceeds.
const POLLS_MAX: u32 = 3000;

/// See the module documentation.
pub(crate) struct Writer {
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: JoinSet<()>,
}

impl Writer {
    pub(crate) fn start(api: Api, cluster: usize) -> Self {
        let acknowledged = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let mut task = JoinSet::new();
        task.spawn(write(api, cluster, acknowledged.clone(), stop.clone()));
        Self {
            acknowledged,
            stop,
            task,
        }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// The last number that was acknowledged.
    pub(crate) async fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.task.join_next().await {
            ended.unwrap();
        }
        self.acknowledged()
    }
}

async fn write(api: Api, cluster: usize, acknowledged: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    let path = format!("{}/containers/{CONTAINER}", cluster_path(cluster));
    let mut number = 1_u64;
    let mut through = cluster;
    while !stop.load(Ordering::SeqCst) {
        let body = json!({ "env": { "N": number.to_string() } });
        match api.ask(through, "PATCH", &path, Some(&body)).await {
            Some((200, _)) => {
                acknowledged.store(number, Ordering::SeqCst);
                number += 1;
            }
            // Refused or unanswered: it may have been made, so the same number is set again, through another one.
            Some((503 | 429, _)) | None => through += 1,
            Some((status, answer)) => panic!("cluster {cluster}: {status} {answer}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Returns when every cluster has acknowledged two writes more: the second was begun after this was called.
pub(crate) async fn all_write(writers: &[Writer]) {
    let wanted: Vec<u64> = writers.iter().map(|writer| writer.acknowledged() + 2).collect();
    for _ in 0..POLLS_MAX {
        let mut pairs = writers.iter().zip(&wanted);
        if pairs.all(|(writer, wanted)| writer.acknowledged() >= *wanted) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let found: Vec<u64> = writers.iter().map(Writer::acknowledged).collect();
    panic!("a cluster is not written any more: {wanted:?} were wanted, {found:?} are acknowledged");
}
