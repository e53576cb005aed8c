//! Health probes of replicas: by HTTP, by TCP, by a program.
//!
//! Each replica is probed by a task of its own with a deadline of its own, so a slow one delays no other. A probe by HTTP or TCP
//! is a fresh connection from the machine's namespace to the replica's address. Of HTTP any 2xx answer is a success, redirects are
//! not followed, bodies are not read. Of TCP a connection that is accepted is one. A program runs inside the replica, with the rights of
//! its process, and succeeds by ending with 0.
//!
//! A runtime that does not answer says nothing about a replica: then a probe by program has no outcome, and is tried again.
//!
//! A replica is probed every 500 ms (by a program every second) until it passes for the first time, then every 5 s; while it
//! fails, a first success is checked again just as soon, and two in a row make it pass.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use berth_api::container::{HealthCheck, ProbeKind};
use berth_api::id::ReplicaId;
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::Empty;
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Between two probes of a replica that is starting or recovering.
pub const INTERVAL_EAGER: Duration = Duration::from_millis(500);
/// Between two probes otherwise.
pub const INTERVAL_STEADY: Duration = Duration::from_secs(5);
/// Successes in a row that make a failing replica pass again.
pub const RECOVERY_SUCCESSES: u32 = 2;

/// Runs programs inside replicas.
pub trait Programs: std::fmt::Debug + Send + Sync {
    /// Whether the program ended with 0 within `deadline`, or what it did instead; none when the runtime did not answer.
    fn run<'a>(
        &'a self,
        replica_id: &'a ReplicaId,
        command: &'a [String],
        deadline: Duration,
    ) -> BoxFuture<'a, Option<Result<(), String>>>;
}

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

/// The health of one run of a replica, moved by the outcomes of its probes. Pure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeState {
    phase: ProbePhase,
    failure_threshold: u32,
    failures: u32,
    successes: u32,
    last_error: Option<String>,
}

impl ProbeState {
    #[must_use]
    pub fn new(failure_threshold: u32) -> Self {
        Self {
            phase: ProbePhase::Starting,
            failure_threshold: failure_threshold.max(1),
            failures: 0,
            successes: 0,
            last_error: None,
        }
    }

    #[must_use]
    pub fn phase(&self) -> ProbePhase {
        self.phase
    }

    /// Takes the outcome of a probe; the error of a failed one.
    #[must_use]
    pub fn next(self, outcome: Result<(), String>) -> Self {
        let mut next = self;
        match outcome {
            Ok(()) => {
                next.successes = next.successes.saturating_add(1);
                next.failures = 0;
                next.last_error = None;
            }
            Err(error) => {
                next.failures = next.failures.saturating_add(1);
                next.successes = 0;
                next.last_error = Some(error);
            }
        }
        next.phase = match next.phase {
            ProbePhase::Starting if next.successes > 0 => ProbePhase::Passing,
            ProbePhase::Failing if next.successes >= RECOVERY_SUCCESSES => ProbePhase::Passing,
            ProbePhase::Passing if next.failures >= next.failure_threshold => ProbePhase::Failing,
            same @ (ProbePhase::Starting | ProbePhase::Passing | ProbePhase::Failing) => same,
        };
        next
    }

    /// How long to wait for the next probe.
    #[must_use]
    pub fn interval(&self) -> Duration {
        match self.phase {
            ProbePhase::Starting => INTERVAL_EAGER,
            ProbePhase::Failing if self.successes > 0 => INTERVAL_EAGER,
            ProbePhase::Passing | ProbePhase::Failing => INTERVAL_STEADY,
        }
    }
}

/// Runs the probes of all replicas, each in a task of its own. Dropping it stops them.
#[derive(Debug)]
pub struct Prober {
    reports: mpsc::Sender<ProbeReport>,
    programs: Arc<dyn Programs>,
    probes: BTreeMap<ReplicaId, (ProbeTarget, CancellationToken)>,
    tasks: JoinSet<()>,
}

impl Prober {
    /// Reports go to `reports`; a full channel delays probes and loses none.
    #[must_use]
    pub fn new(reports: mpsc::Sender<ProbeReport>, programs: Arc<dyn Programs>) -> Self {
        Self {
            reports,
            programs,
            probes: BTreeMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Probes `target` from now on; the same target again changes nothing.
    pub fn put(&mut self, target: ProbeTarget) {
        // Ended tasks are of targets that were removed; their results say nothing.
        while self.tasks.try_join_next().is_some() {}
        if let Some((present, _)) = self.probes.get(&target.replica_id)
            && *present == target
        {
            return;
        }
        self.remove(&target.replica_id.clone());
        let stop = CancellationToken::new();
        let probing = Probing {
            target: target.clone(),
            programs: Arc::clone(&self.programs),
            reports: self.reports.clone(),
        };
        self.tasks.spawn(probing.until(stop.clone()));
        self.probes.insert(target.replica_id.clone(), (target, stop));
    }

    /// Probes the replica no more. A report that is already in the channel may still come: compare its run.
    pub fn remove(&mut self, replica_id: &ReplicaId) {
        if let Some((_, stop)) = self.probes.remove(replica_id) {
            stop.cancel();
        }
    }

    /// Probes exactly `targets`.
    pub fn set(&mut self, targets: Vec<ProbeTarget>) {
        let gone: Vec<ReplicaId> = self
            .probes
            .keys()
            .filter(|id| !targets.iter().any(|target| target.replica_id == **id))
            .cloned()
            .collect();
        for id in gone {
            self.remove(&id);
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
    programs: Arc<dyn Programs>,
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
        let mut state = ProbeState::new(target.check.failure_threshold);
        loop {
            if let Some(outcome) = self.probe().await {
                state = state.next(outcome);
                let report = ProbeReport {
                    replica_id: target.replica_id.clone(),
                    run: target.run,
                    phase: state.phase,
                    consecutive_failures: state.failures,
                    last_error: state.last_error.clone(),
                };
                if self.reports.send(report).await.is_err() {
                    return;
                }
            }
            // To start a program costs more than to open a connection.
            let shortest = match target.check.kind {
                ProbeKind::Http | ProbeKind::Tcp => INTERVAL_EAGER,
                ProbeKind::Exec => INTERVAL_EAGER * 2,
            };
            tokio::time::sleep(state.interval().max(shortest)).await;
        }
    }

    /// None when nothing was found out.
    async fn probe(&self) -> Option<Result<(), String>> {
        let target = &self.target;
        let deadline = target.check.timeout();
        let within = async |probe: BoxFuture<'_, Result<(), String>>| {
            let outcome = tokio::time::timeout(deadline, probe).await;
            outcome.unwrap_or_else(|_| Err(format!("no answer within {} s", deadline.as_secs())))
        };
        match target.check.kind {
            ProbeKind::Http => Some(within(Box::pin(request(target))).await),
            ProbeKind::Tcp => Some(within(Box::pin(async { connect(target).await.map(drop) })).await),
            ProbeKind::Exec => {
                let command = &target.check.command;
                self.programs.run(&target.replica_id, command, deadline).await
            }
        }
    }
}

async fn connect(target: &ProbeTarget) -> Result<TcpStream, String> {
    let port = target.check.port;
    let stream = TcpStream::connect((target.ip, port)).await;
    stream.map_err(|error| format!("connecting to port {port}: {error}"))
}

async fn request(target: &ProbeTarget) -> Result<(), String> {
    let check = &target.check;
    let stream = connect(target).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| format!("speaking HTTP: {error}"))?;
    let request = Request::builder()
        .method(check.method.as_str())
        .uri(check.path.as_str())
        .header(hyper::header::HOST, format!("{}:{}", target.ip, check.port))
        .header(
            hyper::header::USER_AGENT,
            concat!("berth/", env!("CARGO_PKG_VERSION")),
        )
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("path {}: {error}", check.path))?;
    let response = sender.send_request(request);
    tokio::pin!(response);
    // Cancel-safe: dropped together, and the connection is closed. The connection may end first and leave the answer,
    // or its own error, behind for the request.
    let response = tokio::select! {
        response = &mut response => response,
        _ = connection => response.await,
    };
    let status = response
        .map_err(|error| format!("speaking HTTP: {error}"))?
        .status();
    if status.is_success() {
        Ok(())
    } else {
        Err(format!("status {}", status.as_u16()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(threshold: u32, outcomes: &str) -> ProbeState {
        outcomes
            .chars()
            .fold(ProbeState::new(threshold), |state, outcome| {
                state.next(match outcome {
                    '+' => Ok(()),
                    _ => Err("down".into()),
                })
            })
    }

    #[test]
    fn health_moves_with_hysteresis() {
        for (outcomes, phase, failures, interval) in [
            ("", ProbePhase::Starting, 0, INTERVAL_EAGER),
            ("-----", ProbePhase::Starting, 5, INTERVAL_EAGER),
            ("--+", ProbePhase::Passing, 0, INTERVAL_STEADY),
            ("+--", ProbePhase::Passing, 2, INTERVAL_STEADY),
            ("+--+--", ProbePhase::Passing, 2, INTERVAL_STEADY),
            ("+---", ProbePhase::Failing, 3, INTERVAL_STEADY),
            ("+---+", ProbePhase::Failing, 0, INTERVAL_EAGER),
            ("+---+-", ProbePhase::Failing, 1, INTERVAL_STEADY),
            ("+---++", ProbePhase::Passing, 0, INTERVAL_STEADY),
        ] {
            let state = moved(3, outcomes);
            assert_eq!(
                (state.phase, state.failures, state.interval()),
                (phase, failures, interval),
                "{outcomes}"
            );
        }
    }

    #[test]
    fn a_threshold_of_one_fails_at_once_and_the_error_goes_with_a_success() {
        let failing = moved(1, "+-");
        assert_eq!(failing.phase, ProbePhase::Failing);
        assert_eq!(failing.last_error.as_deref(), Some("down"));
        assert_eq!(failing.next(Ok(())).last_error, None);
    }
}
