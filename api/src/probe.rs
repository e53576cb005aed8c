//! The three probes of a container, as Kubernetes has them. Berth's own; the wire's form of a check is
//! [`crate::container::HealthCheck`], and a container declares one of the two forms or none.
//!
//! - *startup* holds the other two back until it has passed; failing past its threshold restarts the replica.
//! - *readiness* decides whether the replica is found by name, by load balancers and on its host port. It never restarts.
//! - *liveness* restarts the replica when it fails past its threshold.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::container::{ProbeKind, ProbeMethod};

/// What is asked of a container's replicas. Invariant: at least one is there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Probes {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<Probe>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Probe>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<Probe>,
}

impl Probes {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.startup.is_none() && self.readiness.is_none() && self.liveness.is_none()
    }
}

/// One probe, its defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    pub kind: ProbeKind,
    /// What [`ProbeKind::Exec`] runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Of [`ProbeKind::Http`].
    pub path: String,
    /// Of all but [`ProbeKind::Exec`].
    pub port: u16,
    /// Of [`ProbeKind::Http`].
    pub method: ProbeMethod,
    /// From the start of the process, or from the first success of the startup probe, to the first probe.
    pub initial_delay_seconds: u32,
    /// From the beginning of a probe to that of the next.
    pub period_seconds: u32,
    pub timeout_seconds: u32,
    /// Successes in a row that make it pass. 1 but for readiness.
    pub success_threshold: u32,
    /// Failures in a row that make it fail.
    pub failure_threshold: u32,
}

impl Probe {
    #[must_use]
    pub fn initial_delay(&self) -> Duration {
        Duration::from_secs(self.initial_delay_seconds.into())
    }

    #[must_use]
    pub fn period(&self) -> Duration {
        Duration::from_secs(self.period_seconds.into())
    }

    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.into())
    }
}

/// An hour: what needs longer needs another design.
pub const DELAY_SECONDS_MAX: u32 = 3600;
pub const PERIOD_SECONDS_MAX: u32 = 3600;
/// What a probe may cost of a connection, or of a program in the replica.
pub const TIMEOUT_SECONDS_MAX: u32 = 60;
pub const SUCCESSES_MAX: u32 = 100;
/// At a period of one second more than a quarter of an hour: a startup may be slow.
pub const FAILURES_MAX: u32 = 1000;
