//! A placed instance of a container and how it is doing: what the node reports and the scheduler shows.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::ReplicaId;
use crate::time::Timestamp;
use crate::units::{Bytes, Cpu};

/// The wire's status of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum WireReplicaStatus {
    #[default]
    Pending,
    Running,
    Stopping,
    Stopped,
    Failed,
}

/// Where a replica is on its way up or down. Each arrow between two phases is one idempotent step of the node.
///
/// ```text
/// assigned ▶ image ▶ volume ▶ network ▶ created ▶ started ▶ healthy ⇄ unhealthy
///     ▲                                      │ exit      │
///     └────────────── backoff ◀──────────────┴───────────┘
/// (any) ▶ stopping ▶ stopped ▶ releasing ▶ gone
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Accepted by the node; nothing is done yet.
    Assigned,
    /// The image is being pulled.
    Image,
    /// Volumes are being made and mounted.
    Volume,
    /// Network namespace and address are being made.
    Network,
    /// The container and its task exist.
    Created,
    /// The process runs; no health check has passed yet.
    Started,
    /// The process runs and its health check passes, or it has none.
    Healthy,
    /// The process runs; its health check has failed `failureThreshold` times.
    Unhealthy,
    /// The process ended or a step failed; waits for its next attempt.
    Backoff,
    /// SIGTERM was sent, or SIGKILL after the grace.
    Stopping,
    /// No process; network and volumes are being released.
    Releasing,
    /// Nothing is left on the machine.
    Gone,
}

impl Phase {
    /// The wire's word for the phase.
    #[must_use]
    pub fn wire(self) -> WireReplicaStatus {
        match self {
            Self::Assigned | Self::Image | Self::Volume | Self::Network | Self::Created => {
                WireReplicaStatus::Pending
            }
            Self::Started | Self::Healthy | Self::Unhealthy => WireReplicaStatus::Running,
            Self::Backoff => WireReplicaStatus::Failed,
            Self::Stopping => WireReplicaStatus::Stopping,
            Self::Releasing | Self::Gone => WireReplicaStatus::Stopped,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Assigned => "assigned",
            Self::Image => "image",
            Self::Volume => "volume",
            Self::Network => "network",
            Self::Created => "created",
            Self::Started => "started",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Backoff => "backoff",
            Self::Stopping => "stopping",
            Self::Releasing => "releasing",
            Self::Gone => "gone",
        })
    }
}

/// Whose fault a failure is, and so what would help.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Cause {
    /// The replica used more memory than its limit.
    OutOfMemory,
    /// The program ended by itself.
    Exit { code: i32 },
    /// The program was ended by a signal that Berth did not send.
    Signal { signal: i32 },
    /// The image could not be had: wrong name, no access, wrong digest.
    Image { error: String },
    /// The health check failed until the replica was restarted.
    Health { error: String },
    /// The machine could not do its part: disk, network, runtime, registry out of reach.
    Infrastructure { error: String },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory => f.write_str("out of memory"),
            Self::Exit { code } => write!(f, "exit code {code}"),
            Self::Signal { signal } => write!(f, "signal {signal}"),
            Self::Image { error } => write!(f, "image: {error}"),
            Self::Health { error } => write!(f, "health check: {error}"),
            Self::Infrastructure { error } => write!(f, "infrastructure: {error}"),
        }
    }
}

/// What a replica waits for and since when; every phase but `healthy` has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Wait {
    /// For people, for example `pulling registry:5000/app (12 of 40 MiB)`.
    pub reason: String,
    pub since: Timestamp,
    /// When the next attempt is due, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt: Option<Timestamp>,
}

/// What a replica's HTTP server does, averaged since the last report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct HttpUsage {
    /// Thousandths of requests in flight.
    pub in_flight_milli: u64,
    /// Microseconds; absent when no request was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_p95_us: Option<u64>,
}

/// Use of a replica as its cgroup counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Average vCPU used since the last report.
    pub cpu: Cpu,
    pub memory: Bytes,
    /// Only of replicas that serve HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpUsage>,
}

/// What a node says of one replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ReplicaStatus {
    pub replica_id: ReplicaId,
    pub phase: Phase,
    /// Ready to be found by name: runs and its check, if any, passes.
    pub ready: bool,
    /// Digest of the assignment that the running process was started from; see `Assignment::digest`.
    pub revision: String,
    /// Process starts so far; the first is 1.
    pub run: u32,
    /// Process id of the replica's first process on its machine, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<Wait>,
    /// Why the last run ended or the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<Timestamp>,
    /// Crashes without five good minutes between them.
    #[serde(default)]
    pub recent_crashes: u32,
    /// Failed health checks in a row.
    #[serde(default)]
    pub consecutive_failures: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

impl ReplicaStatus {
    /// Of a replica in its first run, about which nothing else is known; ready exactly when it is healthy.
    #[must_use]
    pub fn new(replica_id: ReplicaId, phase: Phase) -> Self {
        Self {
            replica_id,
            phase,
            ready: phase == Phase::Healthy,
            revision: String::new(),
            run: 1,
            pid: None,
            started_at: None,
            wait: None,
            cause: None,
            failed_at: None,
            recent_crashes: 0,
            consecutive_failures: 0,
            usage: None,
        }
    }

    /// Whether two statuses differ in nothing but what was measured, which changes all the time and alone decides nothing.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        let Self {
            replica_id,
            phase,
            ready,
            revision,
            run,
            pid,
            started_at,
            wait,
            cause,
            failed_at,
            recent_crashes,
            consecutive_failures,
            usage: _,
        } = self;
        (replica_id, phase, ready, revision, run, pid)
            == (
                &other.replica_id,
                &other.phase,
                &other.ready,
                &other.revision,
                &other.run,
                &other.pid,
            )
            && (started_at, wait, cause, failed_at)
                == (&other.started_at, &other.wait, &other.cause, &other.failed_at)
            && (recent_crashes, consecutive_failures) == (&other.recent_crashes, &other.consecutive_failures)
    }
}

/// From this many crashes without five good minutes between them on, a replica is in a crash loop.
pub const CRASH_LOOP_MIN: u32 = 3;
