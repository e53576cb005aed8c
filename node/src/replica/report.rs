//! What is said of a replica: its phase and what it waits for.

use berth_api::replica::{Phase, ReplicaStatus, Wait};

use super::probing::Standing;
use super::{Goal, Part, Replica, Step, StopWhy, Task, Waiting};
use crate::clock::Now;
use crate::health::ProbeRole;

impl Replica {
    /// The phase that follows from what is under way.
    #[must_use]
    pub fn current_phase(&self) -> Phase {
        let stopping = matches!(self.goal, Goal::Stop { .. });
        match &self.in_flight {
            Some(Step::Prepare { .. }) => match self.preparing {
                Part::Image => Phase::Image,
                Part::Volume => Phase::Volume,
                Part::Network | Part::Log | Part::Runtime => Phase::Network,
            },
            Some(Step::Create { .. } | Step::Start { .. }) => Phase::Created,
            Some(Step::Signal { .. }) => Phase::Stopping,
            Some(Step::Delete | Step::Release) if stopping => Phase::Releasing,
            Some(Step::Delete | Step::Release) => Phase::Backoff,
            Some(Step::Pull { .. } | Step::Resize { .. }) => self.running_phase(),
            None => match &self.waiting {
                None | Some(Waiting::Storage { .. }) => Phase::Assigned,
                Some(
                    Waiting::Running | Waiting::Resize { .. } | Waiting::Runtime { .. } | Waiting::Unlisted,
                ) => self.running_phase(),
                Some(Waiting::Backoff { .. }) if self.running_pid().is_some() => self.running_phase(),
                Some(Waiting::Backoff { .. }) => Phase::Backoff,
                Some(Waiting::Held { .. }) if self.running_pid().is_some() => Phase::Stopping,
                Some(Waiting::Held { .. }) if stopping => Phase::Releasing,
                Some(Waiting::Held { .. }) => Phase::Backoff,
                Some(Waiting::Drain { .. } | Waiting::Grace { .. } | Waiting::Unkillable { .. }) => {
                    Phase::Stopping
                }
                Some(Waiting::Gone) => Phase::Gone,
            },
        }
    }

    fn running_phase(&self) -> Phase {
        if self.memory.stopping.is_some() {
            return Phase::Stopping;
        }
        match self.belief.container.as_ref().map(|container| &container.task) {
            None => Phase::Backoff,
            Some(Task::Broken | Task::Exited(_)) => Phase::Backoff,
            Some(Task::Created) => Phase::Created,
            Some(Task::Running { .. } | Task::Unknown { .. }) => match self.standing() {
                Standing::Failing(_) => Phase::Unhealthy,
                Standing::Unproven(_) => Phase::Started,
                Standing::Well => Phase::Healthy,
            },
        }
    }

    /// The status that is reported.
    #[must_use]
    pub fn status(&self, now: Now) -> ReplicaStatus {
        let phase = self.current_phase();
        let since = if phase == self.phase {
            self.phase_since
        } else {
            now.wall
        };
        let wait = self.wait_reason(phase).map(|reason| Wait {
            reason,
            since,
            next_attempt: self.next_attempt(now),
        });
        let container = self.belief.container.as_ref();
        ReplicaStatus {
            replica_id: self.id.clone(),
            phase,
            ready: self.ready(),
            revision: container
                .map(|container| container.revision.to_string())
                .unwrap_or_default(),
            run: self.memory.run,
            pid: self.running_pid(),
            started_at: self.memory.started_at.filter(|_| self.running_pid().is_some()),
            wait,
            cause: self.memory.cause.clone(),
            failed_at: self.memory.failed_at,
            recent_crashes: self.memory.crashes,
            consecutive_failures: self.consecutive_failures(),
            usage: self.usage.filter(|_| self.running_pid().is_some()),
        }
    }

    fn next_attempt(&self, now: Now) -> Option<berth_api::time::Timestamp> {
        let at = match self.waiting.as_ref().filter(|_| self.in_flight.is_none())? {
            Waiting::Backoff { until }
            | Waiting::Held { until }
            | Waiting::Resize { until }
            | Waiting::Drain { until }
            | Waiting::Grace { until }
            | Waiting::Unkillable { until } => *until,
            Waiting::Running
            | Waiting::Runtime { .. }
            | Waiting::Storage { .. }
            | Waiting::Unlisted
            | Waiting::Gone => return None,
        };
        Some(now.wall_at(at))
    }

    fn wait_reason(&self, phase: Phase) -> Option<String> {
        if let Some(step) = &self.in_flight {
            return Some(self.step_reason(step));
        }
        let cause = || {
            self.memory
                .cause
                .as_ref()
                .map(|cause| format!(" after {cause}"))
                .unwrap_or_default()
        };
        match self.waiting.as_ref() {
            None => Some("the node has not read the state of its machine yet".into()),
            Some(Waiting::Running) => match phase {
                Phase::Started | Phase::Unhealthy | Phase::Healthy => self.probe_reason(),
                _ => None,
            },
            Some(Waiting::Resize { .. }) => {
                let error = self.resize_hold.as_ref().map(|(.., error)| error.as_str());
                Some(format!(
                    "its limits to be changed, which failed: {}",
                    error.unwrap_or_default()
                ))
            }
            Some(Waiting::Backoff { .. }) if self.running_pid().is_some() => {
                Some(format!("its update waits for the next attempt{}", cause()))
            }
            Some(Waiting::Backoff { .. }) => Some(format!("the next attempt{}", cause())),
            Some(Waiting::Held { .. }) => Some(format!("the next attempt to clean up{}", cause())),
            Some(Waiting::Drain { .. }) => Some(self.drain_reason()),
            Some(Waiting::Grace { .. }) => {
                Some(format!("its process to end after SIGTERM{}", self.stop_words()))
            }
            Some(Waiting::Unkillable { .. }) => {
                Some("its process to end after SIGKILL; it hangs in the kernel".into())
            }
            Some(Waiting::Runtime { reason }) => Some(format!("the container runtime: {reason}")),
            Some(Waiting::Storage { reason }) => {
                Some(format!("the machine to keep what is recorded of it: {reason}"))
            }
            Some(Waiting::Unlisted) => {
                Some("the scheduler: it is in no assignment set and no stop is confirmed".into())
            }
            Some(Waiting::Gone) => None,
        }
    }

    /// Which probe fails, and why.
    fn probe_reason(&self) -> Option<String> {
        let verdict = |role| match role {
            ProbeRole::Startup => &self.health.startup,
            ProbeRole::Check | ProbeRole::Readiness => &self.health.readiness,
            ProbeRole::Liveness => &self.health.liveness,
        };
        let failed = |role| {
            let verdict = verdict(role);
            let (failures, error) = (verdict.consecutive_failures, verdict.error());
            format!("its {role} failed {failures} times in a row: {error}")
        };
        match self.standing() {
            Standing::Unproven(role) => Some(match &verdict(role).last_error {
                None => format!("its {role} has not passed yet"),
                Some(error) => format!("its {role} has not passed yet: {error}"),
            }),
            Standing::Failing(role) => Some(failed(role)),
            // Not restarted yet, and soon may be.
            Standing::Well => {
                (self.health.liveness.consecutive_failures > 0).then(|| failed(ProbeRole::Liveness))
            }
        }
    }

    fn drain_reason(&self) -> String {
        let stopping = self.memory.stopping.as_ref();
        match (self.connections, stopping) {
            (Some(count @ 1..), Some(stopping)) => {
                let what = if count == 1 { "connection" } else { "connections" };
                let until = stopping.since.plus(self.drain_cap());
                format!("draining: {count} {what}, until {until}")
            }
            _ => "peers to stop dialling it".into(),
        }
    }

    fn step_reason(&self, step: &Step) -> String {
        match step {
            Step::Prepare { assignment, .. } => match self.preparing {
                Part::Image => self.pulling(&assignment.image),
                Part::Volume => "making its storage".into(),
                Part::Network | Part::Log | Part::Runtime => "making its network".into(),
            },
            Step::Pull { assignment } => format!("before its update: {}", self.pulling(&assignment.image)),
            Step::Create { .. } => "making its container".into(),
            Step::Start { .. } => "starting its process".into(),
            Step::Resize { .. } => "changing its limits".into(),
            Step::Signal { .. } => format!("stopping its process{}", self.stop_words()),
            Step::Delete => "removing its container".into(),
            Step::Release => "releasing its network and storage".into(),
        }
    }

    fn pulling(&self, image: &str) -> String {
        match self.progress {
            Some(progress) if progress.total.get() > 0 => {
                format!(
                    "pulling {image} ({} of {})",
                    progress.done.rounded(),
                    progress.total.rounded()
                )
            }
            _ => format!("pulling {image}"),
        }
    }

    fn stop_words(&self) -> &'static str {
        match self.memory.stopping.as_ref().map(|stopping| &stopping.why) {
            Some(StopWhy::Replaced) => ", to be updated",
            Some(StopWhy::Unhealthy(_)) => ", to be restarted as unhealthy",
            Some(StopWhy::Evicted(_)) => ", to be restarted without what it filled the disk with",
            Some(StopWhy::Confirmed(_)) | None => "",
        }
    }
}
