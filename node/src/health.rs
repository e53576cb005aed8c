//! Probes of replicas: by HTTP, by TCP, by a program; for the wire's health check and for Berth's three probes.
//!
//! Each probe has a task of its own with a deadline of its own, so a slow one delays no other, of the same replica either. A probe by
//! HTTP or TCP is a fresh connection from inside the replica's network namespace to the replica's address; one of the three probes is
//! tried at the namespace's own loopback when that refuses. Of HTTP any 2xx answer is a success, redirects are not followed, bodies are
//! not read. Of TCP a connection that is accepted is one. A program runs inside the replica, with the rights of its process, and
//! succeeds by ending with 0.
//!
//! A runtime that does not answer says nothing about a replica: then a probe by program has no outcome, and is tried again.
//!
//! When a probe comes next, and what its outcomes make of a replica, is in [`state`].

mod ask;
pub mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_api::container::{HealthCheck, ProbeKind, ProbeMethod};
use berth_api::id::ReplicaId;
use berth_api::probe::Probe;
use berth_api::time::monotonic;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::host::namespace::Door;
pub use state::{ProbePhase, ProbeState, Rules};

/// The way into replicas.
pub trait Inside: fmt::Debug + Send + Sync {
    /// Whether the program ended with 0 within `deadline`, or what it did instead; none when the runtime did not answer.
    fn run<'a>(
        &'a self,
        replica_id: &'a ReplicaId,
        role: ProbeRole,
        command: &'a [String],
        deadline: Duration,
    ) -> BoxFuture<'a, Option<Result<(), String>>>;

    /// Where the replica's network namespace is bound; none when it has none.
    fn namespace(&self, replica_id: &ReplicaId) -> Option<PathBuf>;
}

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeRole {
    /// The wire's health check: readiness, and a restart when it fails for long.
    Check,
    Startup,
    Readiness,
    Liveness,
}

impl fmt::Display for ProbeRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Check => "health check",
            Self::Startup => "startup probe",
            Self::Readiness => "readiness probe",
            Self::Liveness => "liveness probe",
        })
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub kind: ProbeKind,
    pub command: Vec<String>,
    pub path: String,
    pub port: u16,
    pub method: ProbeMethod,
    pub timeout: Duration,
}

impl From<&HealthCheck> for Question {
    fn from(check: &HealthCheck) -> Self {
        Self {
            kind: check.kind,
            command: check.command.clone(),
            path: check.path.clone(),
            port: check.port,
            method: check.method,
            timeout: check.timeout(),
        }
    }
}

impl From<&Probe> for Question {
    fn from(probe: &Probe) -> Self {
        Self {
            kind: probe.kind,
            command: probe.command.clone(),
            path: probe.path.clone(),
            port: probe.port,
            method: probe.method,
            timeout: probe.timeout(),
        }
    }
}

/// What is probed, and what for. A change of any other member than `was_ready` starts the probe anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeTarget {
    pub replica_id: ReplicaId,
    /// The replica's incarnation; rises with each restart.
    pub run: u32,
    pub role: ProbeRole,
    pub ip: Ipv4Addr,
    pub question: Question,
    pub rules: Rules,
    /// It passed in this run as an earlier daemon recorded: it has to fail before it counts as failing.
    pub was_ready: bool,
}

impl ProbeTarget {
    /// Whether a task that probes `self` does for `other`.
    fn is(&self, other: &Self) -> bool {
        let of = |target: &Self| Self {
            was_ready: false,
            ..target.clone()
        };
        of(self) == of(other)
    }
}

/// The outcome of one probe and what it made of the replica's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReport {
    pub replica_id: ReplicaId,
    pub run: u32,
    pub role: ProbeRole,
    pub phase: ProbePhase,
    pub consecutive_failures: u32,
    /// Of the newest failed probe since the last success.
    pub last_error: Option<String>,
}

impl ProbeReport {
    #[must_use]
    pub fn passing(&self) -> bool {
        self.phase == ProbePhase::Passing
    }
}

type Key = (ReplicaId, ProbeRole);

/// Runs the probes of all replicas, each in a task of its own. Dropping it stops them.
#[derive(Debug)]
pub struct Prober {
    reports: mpsc::Sender<ProbeReport>,
    inside: Arc<dyn Inside>,
    probes: BTreeMap<Key, (ProbeTarget, CancellationToken)>,
    tasks: JoinSet<()>,
}

impl Prober {
    /// Reports go to `reports`; a full channel delays probes and loses none.
    #[must_use]
    pub fn new(reports: mpsc::Sender<ProbeReport>, inside: Arc<dyn Inside>) -> Self {
        Self {
            reports,
            inside,
            probes: BTreeMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Probes `target` from now on; the same target again changes nothing.
    pub fn put(&mut self, target: ProbeTarget) {
        // Ended tasks are of targets that were removed; their results say nothing.
        while self.tasks.try_join_next().is_some() {}
        let key = (target.replica_id.clone(), target.role);
        if let Some((present, _)) = self.probes.get(&key)
            && present.is(&target)
        {
            return;
        }
        self.end(&key);
        let stop = CancellationToken::new();
        let probing = Probing {
            target: target.clone(),
            inside: Arc::clone(&self.inside),
            reports: self.reports.clone(),
        };
        self.tasks.spawn(probing.until(stop.clone()));
        self.probes.insert(key, (target, stop));
    }

    /// Probes the replica no more. A report that is already in the channel may still come: compare its run.
    pub fn remove(&mut self, replica_id: &ReplicaId) {
        let keys: Vec<Key> = self
            .probes
            .keys()
            .filter(|key| key.0 == *replica_id)
            .cloned()
            .collect();
        for key in keys {
            self.end(&key);
        }
    }

    fn end(&mut self, key: &Key) {
        if let Some((_, stop)) = self.probes.remove(key) {
            stop.cancel();
        }
    }

    /// Probes exactly `targets`.
    pub fn set(&mut self, targets: Vec<ProbeTarget>) {
        let wanted: BTreeSet<Key> = targets
            .iter()
            .map(|target| (target.replica_id.clone(), target.role))
            .collect();
        let gone: Vec<Key> = self
            .probes
            .keys()
            .filter(|key| !wanted.contains(*key))
            .cloned()
            .collect();
        for key in gone {
            self.end(&key);
        }
        for target in targets {
            self.put(target);
        }
    }

    /// Stops all probes and waits for their tasks.
    pub async fn shutdown(mut self) {
        self.tasks.shutdown().await;
    }
}

/// One task.
struct Probing {
    target: ProbeTarget,
    inside: Arc<dyn Inside>,
    reports: mpsc::Sender<ProbeReport>,
}

impl Probing {
    async fn until(self, stop: CancellationToken) {
        // Cancel-safe: a probe that is dropped closes its connection, or lets its program end by its deadline, and reports nothing.
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.forever() => {}
        }
    }

    async fn forever(&self) {
        let target = &self.target;
        let mut state = ProbeState::new(target.rules, target.was_ready);
        let mut door = None;
        if !target.was_ready {
            tokio::time::sleep(target.rules.initial_delay).await;
        }
        loop {
            let began = monotonic();
            if let Some(outcome) = self.probe(&mut door).await {
                state = state.next(outcome);
                let report = ProbeReport {
                    replica_id: target.replica_id.clone(),
                    run: target.run,
                    role: target.role,
                    phase: state.phase(),
                    consecutive_failures: state.failures(),
                    last_error: state.last_error().map(str::to_owned),
                };
                if self.reports.send(report).await.is_err() {
                    return;
                }
            }
            tokio::time::sleep(state.pause(target.question.kind, began.elapsed())).await;
        }
    }

    /// None when nothing was found out.
    async fn probe(&self, door: &mut Option<Door>) -> Option<Result<(), String>> {
        let (target, deadline) = (&self.target, self.target.question.timeout);
        if target.question.kind == ProbeKind::Exec {
            let command = &target.question.command;
            return self
                .inside
                .run(&target.replica_id, target.role, command, deadline)
                .await;
        }
        if door.is_none() {
            *door = self.inside.namespace(&target.replica_id).map(Door::new);
        }
        let outcome = match door {
            Some(door) => tokio::time::timeout(deadline, ask::ask(target, door)).await,
            None => return Some(Err("its network namespace is not there".into())),
        };
        Some(outcome.unwrap_or_else(|_| Err(format!("no answer within {} s", deadline.as_secs()))))
    }
}
