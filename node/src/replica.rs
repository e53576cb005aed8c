//! One replica on one machine: what is wanted of it, what of it exists, and the one step that comes next.
//!
//! ```text
//! nothing ▶ Prepare ▶ Create ▶ Start ▶ running          (Prepare: image, volumes, scratch, network, log, at once)
//!    ▲                          exit │   │ stop, replace, unhealthy too long
//!    │                               │   ▼
//!    │                               │  drain ▶ SIGTERM ▶ grace ▶ SIGKILL   (drain: not found, then no connections)
//!    │  back-off                     ▼   ▼
//!    ├────────────────────────────  Delete ▶ Release ▶ gone
//! ```
//!
//! The next step follows from values alone: the goal, the belief about the machine, the memory that outlives the
//! daemon, and the time. There is no stored "state", so adoption after a crash is the ordinary path: beliefs are
//! read from the runtime and the same function goes on from there. Owner: [`crate::plan::NodeCore`].

mod probing;
mod report;
mod transition;

pub use probing::{Health, Verdict};
pub use transition::{Happening, Happenings, revision};

use std::sync::Arc;
use std::time::Duration;

use berth_api::assignment::{Assignment, StopReason};
use berth_api::container::Granted;
use berth_api::id::ReplicaId;
use berth_api::replica::{CRASH_LOOP_MIN, Cause, Phase, Usage};
use berth_api::time::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::clock::{BootTime, Now};
use crate::host::{Exit, Fault, HostError, ImagePresence, ObservedTask, PullProgress, Signal};

/// Delay of the second restart; it doubles from there. The first restart is immediate.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// The longest delay before jitter.
pub const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// A process that ran this long ends the memory of earlier crashes.
pub const GOOD_RUN: Duration = Duration::from_secs(300);
/// From "not ready" in the directory to SIGTERM, so that peers stop dialling first: a status leaves within 200 ms and
/// the directory follows at once.
pub const DRAIN: Duration = Duration::from_millis(250);
/// SIGKILL is repeated this often to a process that does not end.
pub const KILL_AGAIN: Duration = Duration::from_secs(10);
/// An unhealthy replica is restarted at this many times `failureThreshold` failures in a row: it is taken out of the
/// directory after the first, and has three times as long again to recover by itself.
pub const HEALTH_RESTART_FACTOR: u32 = 4;
/// A replica that never passed its check has this long before its failures count: a database may replay its log.
pub const STARTUP_ALLOWANCE: Duration = Duration::from_secs(300);
/// A task whose shim stays mute this long is removed, shim and processes with it, and started again.
pub const UNANSWERED_MAX: Duration = Duration::from_secs(60);
/// A step that only found the machine busy is repeated after this.
pub const BUSY_DELAY: Duration = Duration::from_secs(1);

/// What is wanted of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// It is in the accepted set.
    Run {
        assignment: Arc<Assignment>,
        revision: Arc<str>,
    },
    /// The scheduler confirmed that it must stop.
    Stop { reason: StopReason },
    /// It is in neither list: left as it is until the scheduler says more. Silence never means stop.
    Leave,
}

/// Why a process is being stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StopWhy {
    /// The scheduler confirmed the stop of the replica.
    Confirmed(StopReason),
    /// The assignment changed under the same replica id.
    Replaced,
    /// The health check failed for too long.
    Unhealthy(String),
    /// It held so much of a disk that nothing was left.
    Evicted(String),
}

/// A stop that has begun. Recorded before SIGTERM, so that a restart of the daemon does not extend the grace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stopping {
    pub why: StopWhy,
    pub since: Timestamp,
    /// SIGTERM is due then at the earliest.
    pub drained_at: BootTime,
    /// Until then it waits for connections to end; absent: for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_until: Option<BootTime>,
    /// When SIGKILL is due; set with SIGTERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<BootTime>,
    /// SIGTERM reached the process; until then it is sent again, and the deadline stays.
    #[serde(default)]
    pub term_sent: bool,
    /// When SIGKILL was last sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub killed_at: Option<BootTime>,
}

/// What outlives the daemon: one row of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    /// Process starts so far.
    pub run: u32,
    /// The last run whose end has been counted.
    pub ended_run: u32,
    /// Crashes without five good minutes between them.
    pub crashes: u32,
    /// Failed attempts to bring it up since the last start.
    pub attempts: u32,
    /// No attempt before this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<BootTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_boot: Option<BootTime>,
    /// The startup probe has passed in this run.
    pub started: bool,
    /// The check has passed in this run, or the readiness probe passes: a restarted daemon keeps the replica ready.
    pub passed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopping: Option<Stopping>,
    /// The scheduler confirmed the stop of this replica while it was in no list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_confirmed: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<Timestamp>,
    /// What the present run is capped at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caps: Option<Granted>,
    /// Of the assignment it was last started from, for the grace and the name once it is in no list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_grace_ms: Option<u64>,
    /// The same, for how long to wait for connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

impl Memory {
    /// Forgets what was counted on the clock of an earlier boot.
    pub fn rebooted(&mut self) {
        self.retry_at = None;
        self.started_boot = None;
        self.stopping = None;
        self.started = false;
        self.passed = false;
    }
}

/// The process of a replica, as far as the node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// The container exists without a usable task: to be deleted.
    Broken,
    /// Made by this daemon and ready to start.
    Created,
    Running {
        pid: u32,
    },
    Exited(Exit),
    /// The runtime does not answer for it: no step until it does.
    Unknown {
        reason: String,
        since: BootTime,
    },
}

/// A container of the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub revision: Arc<str>,
    pub run: u32,
    pub task: Task,
    /// What it is capped at; unknown without a row in the ledger.
    pub caps: Option<Granted>,
}

/// What the node believes to exist on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Belief {
    pub container: Option<Container>,
    /// `Prepare` succeeded for this revision since the last `Delete`.
    pub prepared: Option<Arc<str>>,
    /// The image of this revision is on the machine: an update may begin.
    pub pulled: Option<Arc<str>>,
    /// Nothing is left beside the container.
    pub released: bool,
    /// What an earlier revision, or an earlier daemon, left beside the container goes before anything new is made.
    pub release_first: bool,
}

/// One action on the machine. Idempotent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Image, volumes, ephemeral storage, network and log, all at once.
    Prepare {
        assignment: Arc<Assignment>,
        run: u32,
    },
    /// Only the image: the old process runs on meanwhile.
    Pull {
        assignment: Arc<Assignment>,
    },
    Create {
        assignment: Arc<Assignment>,
        run: u32,
    },
    Start {
        run: u32,
    },
    Signal {
        run: u32,
        signal: Signal,
    },
    /// Changes what the running process is capped at.
    Resize {
        assignment: Arc<Assignment>,
    },
    /// Task and container.
    Delete,
    /// Network, ephemeral storage, volumes, log.
    Release,
}

impl Step {
    /// For logs and status.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Prepare { .. } => "prepare",
            Self::Pull { .. } => "pull",
            Self::Create { .. } => "create",
            Self::Start { .. } => "start",
            Self::Signal { .. } => "signal",
            Self::Resize { .. } => "resize",
            Self::Delete => "delete",
            Self::Release => "release",
        }
    }
}

/// Which part of a preparation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Image,
    Volume,
    Network,
    Log,
    /// Not a part of `Prepare`.
    Runtime,
}

/// A step that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub part: Part,
    pub error: HostError,
}

impl Failure {
    /// What the status and events say of it.
    #[must_use]
    pub fn cause(&self) -> Cause {
        let error = self.error.message.clone();
        match (self.error.fault, self.part) {
            (Fault::User, _) => Cause::Image { error },
            (Fault::Infrastructure | Fault::Busy, _) => Cause::Infrastructure { error },
        }
    }
}

/// What a step gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Of `Prepare` and `Pull`.
    Image {
        presence: ImagePresence,
        elapsed_ms: u64,
    },
    /// Of `Start`.
    Started {
        pid: u32,
    },
    /// The step was given up because the goal changed.
    Cancelled,
}

/// What comes next for a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    Act(Step),
    Wait(Waiting),
}

/// Why nothing is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waiting {
    /// Runs as it should.
    Running,
    /// The next attempt to come up is due then.
    Backoff {
        until: BootTime,
    },
    /// A step on the way down failed; it is repeated then.
    Held {
        until: BootTime,
    },
    /// Not ready any more; SIGTERM is due then, at the latest.
    Drain {
        until: BootTime,
    },
    /// Runs, and its limits could not be changed; that is tried again then.
    Resize {
        until: BootTime,
    },
    /// SIGTERM was sent; SIGKILL is due then.
    Grace {
        until: BootTime,
    },
    /// SIGKILL was sent and the process is still there.
    Unkillable {
        until: BootTime,
    },
    /// The runtime does not answer for this replica.
    Runtime {
        reason: String,
    },
    /// It never ran, and what is recorded of it may not be kept.
    Storage {
        reason: String,
    },
    /// In no list.
    Unlisted,
    Gone,
}

/// Everything the node knows of one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    pub id: ReplicaId,
    pub goal: Goal,
    pub belief: Belief,
    pub memory: Memory,
    /// The step under way. Invariant: at most one.
    pub in_flight: Option<Step>,
    /// The step under way has been asked to end early.
    pub cancelled: bool,
    /// A failed step on the way down is not repeated before this.
    pub hold: Option<BootTime>,
    /// Failures in a row on the way down.
    pub holds: u32,
    /// A failed change of limits is not repeated before this, how often it failed in a row, and why.
    pub resize_hold: Option<(BootTime, u32, String)>,
    /// What it waits for when no step is under way.
    pub waiting: Option<Waiting>,
    /// How far the preparation under way is.
    pub preparing: Part,
    pub progress: Option<PullProgress>,
    pub health: Health,
    /// Connections from outside when they were last counted, since its stop began.
    pub connections: Option<u32>,
    pub usage: Option<Usage>,
    /// When the present attempt to come up began.
    pub starting_since: BootTime,
    /// The end of a process whose start has not been reported yet.
    pub early_exit: Option<(u32, Exit)>,
    /// What was last shown, and since when.
    pub phase: Phase,
    pub phase_since: Timestamp,
    /// Counts steps begun and ended: an observation older than the last of them says nothing.
    pub touched: u64,
}

impl Replica {
    #[must_use]
    pub fn new(id: ReplicaId, goal: Goal, memory: Memory, now: Now) -> Self {
        Self {
            id,
            goal,
            belief: Belief::default(),
            memory,
            in_flight: None,
            cancelled: false,
            hold: None,
            holds: 0,
            resize_hold: None,
            waiting: None,
            preparing: Part::Image,
            progress: None,
            health: Health::default(),
            connections: None,
            usage: None,
            starting_since: now.boot,
            early_exit: None,
            phase: Phase::Assigned,
            phase_since: now.wall,
            touched: 0,
        }
    }

    #[must_use]
    pub fn assignment(&self) -> Option<&Arc<Assignment>> {
        match &self.goal {
            Goal::Run { assignment, .. } => Some(assignment),
            Goal::Stop { .. } | Goal::Leave => None,
        }
    }

    #[must_use]
    pub fn running_pid(&self) -> Option<u32> {
        match &self.belief.container {
            Some(Container {
                task: Task::Running { pid },
                ..
            }) => Some(*pid),
            _ => None,
        }
    }

    /// The next step, or what is waited for. Changes nothing; [`Replica::begin`] records what a step needs recorded.
    #[must_use]
    pub fn next(&self, now: Now) -> Next {
        match &self.goal {
            Goal::Run { assignment, revision } => self.next_up(assignment, revision, now),
            Goal::Stop { .. } => self.next_down(now),
            Goal::Leave => match &self.belief.container {
                // A stop that had begun was confirmed once: it is finished.
                Some(_) if self.memory.stopping.is_some() => self.next_down(now),
                _ => Next::Wait(Waiting::Unlisted),
            },
        }
    }

    fn next_up(&self, assignment: &Arc<Assignment>, revision: &Arc<str>, now: Now) -> Next {
        let Some(container) = &self.belief.container else {
            if let Some(until) = self.memory.retry_at
                && now.boot < until
            {
                return Next::Wait(Waiting::Backoff { until });
            }
            let run = self.memory.run.saturating_add(1);
            let assignment = Arc::clone(assignment);
            if self.belief.release_first {
                return self.unless_held(now, Step::Release);
            }
            return Next::Act(if self.belief.prepared.as_ref() == Some(revision) {
                Step::Create { assignment, run }
            } else {
                Step::Prepare { assignment, run }
            });
        };
        if self.memory.stopping.is_some() {
            return self.next_down(now);
        }
        match &container.task {
            Task::Broken | Task::Exited(_) => self.unless_held(now, Step::Delete),
            Task::Created if container.revision == *revision => Next::Act(Step::Start { run: container.run }),
            Task::Created => self.unless_held(now, Step::Delete),
            Task::Running { .. } if container.revision == *revision => {
                self.next_running(container, assignment, now)
            }
            // An update: the image comes first, so that a missing one does not take the old process down.
            Task::Running { .. } => match self.memory.retry_at {
                Some(until) if now.boot < until => Next::Wait(Waiting::Backoff { until }),
                _ if self.belief.pulled.as_ref() == Some(revision) => Next::Wait(Waiting::Running),
                _ => Next::Act(Step::Pull {
                    assignment: Arc::clone(assignment),
                }),
            },
            Task::Unknown { reason, .. } => Next::Wait(Waiting::Runtime {
                reason: reason.clone(),
            }),
        }
    }

    /// A process that runs what it should may be capped at another amount.
    fn next_running(&self, container: &Container, assignment: &Arc<Assignment>, now: Now) -> Next {
        let is_right = container.caps == Some(assignment.caps());
        match &self.resize_hold {
            _ if is_right => Next::Wait(Waiting::Running),
            Some((until, ..)) if now.boot < *until => Next::Wait(Waiting::Resize { until: *until }),
            _ => Next::Act(Step::Resize {
                assignment: Arc::clone(assignment),
            }),
        }
    }

    fn next_down(&self, now: Now) -> Next {
        let Some(container) = &self.belief.container else {
            return if self.belief.released {
                Next::Wait(Waiting::Gone)
            } else {
                self.unless_held(now, Step::Release)
            };
        };
        let stopping = match (&container.task, &self.memory.stopping) {
            (Task::Broken | Task::Created | Task::Exited(_), _) => {
                return self.unless_held(now, Step::Delete);
            }
            (Task::Unknown { reason, .. }, _) => {
                return Next::Wait(Waiting::Runtime {
                    reason: reason.clone(),
                });
            }
            // `settle` begins a stop before a step is asked for.
            (Task::Running { .. }, None) => return Next::Wait(Waiting::Running),
            (Task::Running { .. }, Some(stopping)) => stopping,
        };
        let signal = |signal| {
            self.unless_held(
                now,
                Step::Signal {
                    run: container.run,
                    signal,
                },
            )
        };
        match (stopping.deadline, stopping.killed_at) {
            (None, _) if now.boot < stopping.drained_at => Next::Wait(Waiting::Drain {
                until: stopping.drained_at,
            }),
            (None, _) if self.waits_for_connections(now.boot) => Next::Wait(Waiting::Drain {
                until: stopping.drain_until.unwrap_or(stopping.drained_at),
            }),
            (None, _) => signal(Signal::Term),
            (Some(until), _) if now.boot < until && !stopping.term_sent => signal(Signal::Term),
            (Some(until), _) if now.boot < until => Next::Wait(Waiting::Grace { until }),
            (Some(_), None) => signal(Signal::Kill),
            (Some(_), Some(killed)) => {
                let until = killed.plus(KILL_AGAIN);
                if now.boot < until {
                    Next::Wait(Waiting::Unkillable { until })
                } else {
                    signal(Signal::Kill)
                }
            }
        }
    }

    /// Whether its stop waits for connections to end, or to be counted.
    fn waits_for_connections(&self, now: BootTime) -> bool {
        let until = self
            .memory
            .stopping
            .as_ref()
            .and_then(|stopping| stopping.drain_until);
        until.is_some_and(|until| now < until) && self.connections != Some(0)
    }

    /// Whether its connections are to be counted now.
    #[must_use]
    pub fn is_draining(&self, now: BootTime) -> bool {
        let Some(stopping) = self.memory.stopping.as_ref() else {
            return false;
        };
        self.running_pid().is_some()
            && stopping.deadline.is_none()
            && now >= stopping.drained_at
            && self.waits_for_connections(now)
    }

    fn unless_held(&self, now: Now, step: Step) -> Next {
        match self.hold {
            Some(until) if now.boot < until => Next::Wait(Waiting::Held { until }),
            _ => Next::Act(step),
        }
    }
}

/// The delay before the next attempt after `failures` failures in a row: none, then 1 s doubling to 5 min, plus up to a
/// fifth, chosen by replica and count so that replicas that fail together do not retry together.
#[must_use]
pub fn backoff(id: &ReplicaId, failures: u32) -> Duration {
    if failures <= 1 {
        return Duration::ZERO;
    }
    let doubled = BACKOFF_FIRST.saturating_mul(1_u32.checked_shl(failures - 2).unwrap_or(u32::MAX));
    let delay = doubled.min(BACKOFF_MAX);
    let mut hash = Sha256::new();
    hash.update(id.as_str());
    hash.update(failures.to_be_bytes());
    let byte = u32::from(hash.finalize()[0]);
    delay + delay * byte / (5 * 256)
}

/// Whether this many crashes are called a crash loop.
#[must_use]
pub fn is_crash_loop(crashes: u32) -> bool {
    crashes >= CRASH_LOOP_MIN
}

impl Task {
    /// What the runtime says of a task that this daemon is not just making.
    #[must_use]
    pub fn observed(task: &ObservedTask, now: BootTime) -> Self {
        match task {
            // A task that somebody else made and did not start is undone: its log and network may be half-made.
            ObservedTask::None | ObservedTask::Created => Self::Broken,
            ObservedTask::Running { pid } => Self::Running { pid: *pid },
            ObservedTask::Exited(exit) => Self::Exited(*exit),
            ObservedTask::Unknown { reason } => Self::Unknown {
                reason: reason.clone(),
                since: now,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_immediate_and_later_ones_double_to_five_minutes() {
        let id = ReplicaId::new("r-0").unwrap();
        assert_eq!(backoff(&id, 0), Duration::ZERO);
        assert_eq!(backoff(&id, 1), Duration::ZERO);
        for (failures, seconds) in [
            (2, 1),
            (3, 2),
            (4, 4),
            (10, 256),
            (11, 300),
            (12, 300),
            (40, 300),
            (u32::MAX, 300),
        ] {
            let delay = backoff(&id, failures);
            let base = Duration::from_secs(seconds);
            assert!(delay >= base && delay <= base + base / 5, "{failures}: {delay:?}");
        }
    }

    #[test]
    fn jitter_differs_between_replicas_and_repeats_for_one() {
        let one = ReplicaId::new("r-0").unwrap();
        let delays: std::collections::BTreeSet<_> = (0..20)
            .map(|n| backoff(&ReplicaId::new(format!("r-{n}")).unwrap(), 8))
            .collect();
        assert!(delays.len() > 10);
        assert_eq!(backoff(&one, 8), backoff(&one, 8));
    }
}
