//! HTTP health probes of replicas.

use std::net::Ipv4Addr;

use berth_api::container::HealthCheck;
use berth_api::id::ReplicaId;
use tokio::sync::mpsc;

/// What is probed. A change of any member starts the probe anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeTarget {
    pub replica_id: ReplicaId,
    /// The replica's incarnation; rises with each restart.
    pub run: u32,
    pub ip: Ipv4Addr,
    pub check: HealthCheck,
}

/// The outcome of one probe and what it made of the replica's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReport {
    pub replica_id: ReplicaId,
    pub run: u32,
    pub phase: ProbePhase,
    pub consecutive_failures: u32,
    /// Of the newest failed probe since the last success.
    pub last_error: Option<String>,
}

/// ```text
/// Starting ──success──▶ Passing ──failureThreshold failures──▶ Failing
///                          ▲────────────2 successes──────────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbePhase {
    /// Never passed in this run.
    Starting,
    Passing,
    /// Passed once, then failed `failureThreshold` times in a row.
    Failing,
}

impl ProbeReport {
    #[must_use]
    pub fn passing(&self) -> bool {
        self.phase == ProbePhase::Passing
    }
}

/// Runs the probes of all replicas, each in a task of its own.
#[derive(Debug)]
pub struct Prober {
    reports: mpsc::Sender<ProbeReport>,
}

impl Prober {
    /// Reports go to `reports`; a full channel delays probes and loses none.
    #[must_use]
    pub fn new(reports: mpsc::Sender<ProbeReport>) -> Self {
        Self { reports }
    }

    /// Probes `target` from now on; the same target again changes nothing.
    pub fn put(&mut self, _target: ProbeTarget) {
        let _ = &self.reports;
    }

    /// Probes the replica no more.
    pub fn remove(&mut self, _replica_id: &ReplicaId) {}

    /// Stops all probes and waits for their tasks.
    pub async fn shutdown(self) {}
}
