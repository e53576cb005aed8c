//! Soft state: what nodes said lately. It is never logged and starts empty with the program; nothing durable is
//! decided from its absence before the limits of [`crate::liveness`] have passed since the start.

use std::collections::{BTreeMap, BTreeSet};

use berth_api::id::{ContainerName, MachineId, ReplicaId};
use berth_api::machine::MachineHealth;
use berth_api::replica::{Phase, ReplicaStatus};
use berth_api::rest::node::HttpMetrics;
use berth_api::time::Timestamp;

use super::{Replica, World};
use crate::autoscale::History;
use crate::entry::MachineHealthState;
use crate::rollout::Starts;

/// The present on both clocks: the wall's for what is recorded and shown, the monotonic one for waits and liveness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    pub wall: Timestamp,
    /// Milliseconds since any fixed point of this process.
    pub monotonic_ms: u64,
}

/// What is known of a cluster's machines since this process began to listen.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observed {
    /// When this process began to listen, on the clock of [`Now::monotonic_ms`]: silence is counted from here at the
    /// earliest.
    pub started_ms: u64,
    pub machines: BTreeMap<MachineId, ObservedMachine>,
    /// What the metrics of scaled containers asked for lately.
    pub scaling: BTreeMap<ContainerName, History>,
    /// How the replicas of open rollouts have started.
    pub starts: BTreeMap<ReplicaId, Starts>,
}

/// What one machine said last.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ObservedMachine {
    /// When it was last heard, on the monotonic clock.
    pub heartbeat_ms: Option<u64>,
    /// The same on the wall clock, for people.
    pub heartbeat_at: Option<Timestamp>,
    /// A link session is open.
    pub is_linked: bool,
    /// (epoch, generation) of the set that the machine had accepted when it sent the statuses below; none before the
    /// first acknowledgement. It must not run ahead of the statuses: replicas missing in them count as gone.
    pub accepted: Option<(u64, u64)>,
    /// Every replica of its last whole status.
    pub replicas: BTreeMap<ReplicaId, ReplicaStatus>,
    /// The HTTP traffic of those replicas that serve it and whose node counts it.
    pub http: BTreeMap<ReplicaId, HttpMetrics>,
    /// What runs there and is in no accepted set.
    pub unlisted: BTreeSet<ReplicaId>,
    pub health: MachineHealth,
}

/// Whether a replica serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readiness {
    Ready,
    /// Its machine says that it does not serve.
    Unready,
    /// Its machine has not spoken of it yet.
    Unknown,
}

impl Observed {
    #[must_use]
    pub fn new(started_ms: u64) -> Self {
        Self {
            started_ms,
            machines: BTreeMap::new(),
            scaling: BTreeMap::new(),
            starts: BTreeMap::new(),
        }
    }

    /// The last word of its own machine about a replica.
    #[must_use]
    pub fn status(&self, replica: &Replica) -> Option<&ReplicaStatus> {
        self.machines
            .get(&replica.machine_id)?
            .replicas
            .get(&replica.replica_id)
            .filter(|status| status.phase != Phase::Gone)
    }

    /// The last word of its own machine about a replica's HTTP traffic.
    #[must_use]
    pub fn http(&self, replica: &Replica) -> Option<&HttpMetrics> {
        self.machines
            .get(&replica.machine_id)?
            .http
            .get(&replica.replica_id)
    }

    /// Whether a replica serves, by the last word of its machine; on an unhealthy machine it does not.
    #[must_use]
    pub fn readiness(&self, world: &World, replica: &Replica) -> Readiness {
        let unhealthy = world
            .machine(&replica.machine_id)
            .is_none_or(|machine| machine.health == MachineHealthState::Unhealthy);
        match self.status(replica) {
            _ if unhealthy => Readiness::Unready,
            Some(status) if status.ready => Readiness::Ready,
            Some(_) => Readiness::Unready,
            None => Readiness::Unknown,
        }
    }

    /// Milliseconds since a machine was heard; counted from the start of listening when it was not heard since.
    #[must_use]
    pub fn silence_ms(&self, machine: &MachineId, now: Now) -> u64 {
        let heard_ms = self
            .machines
            .get(machine)
            .and_then(|machine| machine.heartbeat_ms)
            .unwrap_or(0)
            .max(self.started_ms);
        now.monotonic_ms.saturating_sub(heard_ms)
    }

    /// Whether a machine was heard at all since the start of listening.
    #[must_use]
    pub fn is_heard(&self, machine: &MachineId) -> bool {
        self.machines
            .get(machine)
            .is_some_and(|machine| machine.heartbeat_ms.is_some())
    }

    /// Whether nothing is left of a stopping replica: its machine has accepted a set that stops it, and reports it gone
    /// or lists it no more. Without the acceptance the word may be about an earlier life of the same id.
    #[must_use]
    pub fn is_gone(&self, replica: &Replica) -> bool {
        let Some(stopping) = &replica.stopping else {
            return false;
        };
        let Some(machine) = self.machines.get(&replica.machine_id) else {
            return false;
        };
        let knows = machine
            .accepted
            .is_some_and(|accepted| accepted >= (stopping.epoch, stopping.generation));
        let is_left = match machine.replicas.get(&replica.replica_id) {
            Some(status) => status.phase != Phase::Gone,
            None => machine.unlisted.contains(&replica.replica_id),
        };
        knows && !is_left
    }
}
