//! What changes in a replica when something happened: a step began or ended, a process ended, time passed.

use std::time::Duration;

use berth_api::assignment::{Assignment, StopReason};
use berth_api::container::{DRAIN_CAP, STOP_GRACE};
use berth_api::event::{AttachStep, EventDetails, EventType, VolumeType};
use berth_api::id::ReplicaId;
use berth_api::replica::Cause;
use berth_api::volume::VolumeTarget;

use super::{
    BUSY_DELAY, Container, DRAIN, Failure, GOOD_RUN, Goal, Health, Outcome, Part, Replica, STARTUP_ALLOWANCE,
    Step, StopWhy, Stopping, Task, UNANSWERED_MAX, backoff, is_crash_loop,
};
use crate::clock::{BootTime, Now};
use crate::host::{Exit, Fault, ImagePresence, Signal};

/// Something to tell people, about one replica.
#[derive(Debug, Clone, PartialEq)]
pub struct Happening {
    pub replica_id: ReplicaId,
    pub kind: EventType,
    pub message: String,
    pub details: EventDetails,
}

/// Where a replica's news go.
pub type Happenings = Vec<Happening>;

impl Replica {
    /// Lets time and evidence take effect before the next step is chosen: counts the end of a process, begins stops
    /// that are due, forgets crashes after a good run.
    pub fn settle(&mut self, now: Now, news: &mut Happenings) {
        self.give_up_on_mute_shim(now, news);
        self.count_end(now, news);
        self.forget_crashes(now, news);
        if self.running_pid().is_none() {
            return;
        }
        let why = match &self.goal {
            Goal::Stop { reason } => Some(StopWhy::Confirmed(*reason)),
            Goal::Leave => None,
            Goal::Run { revision, .. } => {
                let updating = self
                    .belief
                    .container
                    .as_ref()
                    .is_some_and(|c| c.revision != *revision);
                if updating && self.belief.pulled.as_ref() == Some(revision) {
                    Some(StopWhy::Replaced)
                } else {
                    self.unhealthy_too_long(now).map(StopWhy::Unhealthy)
                }
            }
        };
        let Some(why) = why else { return };
        // It may still be in the directory of a peer.
        let drain = self.drain_cap();
        let serving = !self.health.readiness.failing;
        match &mut self.memory.stopping {
            // A stop under way keeps its deadlines; what it is for may have changed.
            Some(stopping) => {
                if matches!(why, StopWhy::Confirmed(_)) {
                    stopping.why = why;
                }
            }
            none => {
                let drained_at = if serving { now.boot.plus(DRAIN) } else { now.boot };
                // Whoever has been found dead serves nobody.
                let drain_until = (!matches!(why, StopWhy::Unhealthy(_))).then(|| now.boot.plus(drain));
                self.connections = None;
                *none = Some(Stopping {
                    why,
                    since: now.wall,
                    drained_at,
                    drain_until,
                    deadline: None,
                    term_sent: false,
                    killed_at: None,
                });
            }
        }
    }

    /// Begins to stop a process so that it starts anew with nothing written. False when it does not run, is being stopped anyhow, or
    /// keeps state: that is never in the way of others first.
    pub fn evict(&mut self, reason: String, now: Now) -> bool {
        let keeps_state =
            |assignment: &Assignment| assignment.volume.is_some() || assignment.ordinal.is_some();
        if self.assignment().is_none_or(|assignment| keeps_state(assignment))
            || self.running_pid().is_none()
            || self.memory.stopping.is_some()
        {
            return false;
        }
        self.memory.stopping = Some(Stopping {
            why: StopWhy::Evicted(reason),
            since: now.wall,
            drained_at: now.boot.plus(DRAIN),
            // What it writes meanwhile is everybody's disk.
            drain_until: None,
            deadline: None,
            term_sent: false,
            killed_at: None,
        });
        true
    }

    /// Records what must be known before a step is done, so that a crash in the middle of it can be resumed.
    pub fn begin(&mut self, step: Step, now: Now, news: &mut Happenings) {
        assert!(self.in_flight.is_none(), "{}: one step at a time", self.id);
        match &step {
            Step::Prepare { .. } => {
                self.belief.released = false;
                self.preparing = Part::Image;
                self.progress = None;
                if self.memory.attempts == 0 {
                    self.starting_since = now.boot;
                }
            }
            Step::Pull { .. } => self.progress = None,
            Step::Create { assignment, run } => {
                assert!(
                    *run > self.memory.run,
                    "{}: run {run} after {}",
                    self.id,
                    self.memory.run
                );
                self.memory.run = *run;
                self.memory.started = false;
                self.memory.passed = false;
                self.memory.stop_grace_ms = Some(assignment.stop_grace_ms);
                self.memory.drain_ms = assignment.drain_ms;
                self.memory.caps = Some(assignment.caps());
                self.memory.container = Some(assignment.container.to_string());
                self.memory.started_boot = None;
                self.health = Health::default();
                self.early_exit = None;
                let details = EventDetails::ReplicaStarting {
                    container_name: assignment.container.to_string(),
                    image: assignment.image.clone(),
                };
                self.tell(
                    news,
                    EventType::Info,
                    format!("replica {} is starting", self.id),
                    details,
                );
            }
            Step::Signal {
                signal: Signal::Term, ..
            } => {
                let grace = self.stop_grace();
                if let Some(stopping) = &mut self.memory.stopping {
                    stopping.deadline.get_or_insert_with(|| now.boot.plus(grace));
                }
            }
            Step::Signal {
                signal: Signal::Kill, ..
            } => {
                if let Some(stopping) = &mut self.memory.stopping {
                    stopping.killed_at = Some(now.boot);
                }
            }
            // However it ends, what was made can no longer be counted on: wanted again, the replica is prepared anew.
            Step::Release => self.belief.prepared = None,
            // Until it has ended nobody knows the limits: a daemon that starts meanwhile sets them again.
            Step::Resize { .. } => self.memory.caps = None,
            Step::Start { .. } | Step::Delete => {}
        }
        self.in_flight = Some(step);
        self.cancelled = false;
    }

    /// Takes the result of the step under way.
    pub fn end(&mut self, result: Result<Outcome, Failure>, now: Now, news: &mut Happenings) {
        let Some(step) = self.in_flight.take() else { return };
        self.progress = None;
        match result {
            Ok(outcome) => self.succeeded(&step, &outcome, now, news),
            Err(failure) => self.failed(&step, &failure, now, news),
        }
    }

    fn succeeded(&mut self, step: &Step, outcome: &Outcome, now: Now, news: &mut Happenings) {
        self.hold = None;
        self.holds = 0;
        if *outcome == Outcome::Cancelled {
            return;
        }
        if let (
            Step::Prepare { assignment, .. } | Step::Pull { assignment },
            Outcome::Image { presence, elapsed_ms },
        ) = (step, outcome)
            && *presence == ImagePresence::Pulled
        {
            let image = assignment.image.clone();
            let message = format!("image {image} was pulled in {elapsed_ms} ms");
            let details = EventDetails::ImagePulled {
                image,
                pull_duration_ms: *elapsed_ms,
            };
            self.tell(news, EventType::Info, message, details);
        }
        match step {
            Step::Prepare { assignment, .. } => self.belief.prepared = Some(revision(assignment)),
            Step::Pull { assignment } => {
                self.belief.pulled = Some(revision(assignment));
                self.memory.attempts = 0;
                self.memory.retry_at = None;
            }
            Step::Create { assignment, run } => {
                let revision = revision(assignment);
                self.belief.container = Some(Container {
                    revision,
                    run: *run,
                    task: Task::Created,
                    caps: Some(assignment.caps()),
                });
            }
            Step::Start { run } => self.started(*run, outcome, now, news),
            Step::Signal { signal, .. } => {
                if let Some(stopping) = &mut self.memory.stopping {
                    stopping.term_sent |= *signal == Signal::Term;
                }
            }
            Step::Resize { assignment } => {
                let caps = assignment.caps();
                self.memory.caps = Some(caps);
                self.resize_hold = None;
                if let Some(container) = &mut self.belief.container {
                    container.caps = Some(caps);
                }
            }
            Step::Delete => {
                self.resize_hold = None;
                self.memory.caps = None;
                self.memory.ended_run = self.memory.run;
                self.memory.stopping = None;
                self.memory.started = false;
                self.memory.passed = false;
                self.belief.container = None;
                self.belief.prepared = None;
                self.belief.released = false;
            }
            Step::Release => {
                self.belief.released = true;
                self.belief.release_first = false;
            }
        }
    }

    fn started(&mut self, run: u32, outcome: &Outcome, now: Now, news: &mut Happenings) {
        let Outcome::Started { pid } = outcome else {
            unreachable!("{}: a start gives a pid, not {outcome:?}", self.id);
        };
        self.memory.attempts = 0;
        self.memory.retry_at = None;
        self.memory.started_at = Some(now.wall);
        self.memory.started_boot = Some(now.boot);
        let ended = self.early_exit.take().filter(|(ended, _)| ended == pid);
        if let Some(container) = &mut self.belief.container {
            assert_eq!(container.run, run, "{}: one container at a time", self.id);
            container.task = match ended {
                Some((_, exit)) => Task::Exited(exit),
                None => Task::Running { pid: *pid },
            };
        }
        if let Some(assignment) = self.assignment() {
            let details = EventDetails::ReplicaStarted {
                container_name: assignment.container.to_string(),
                ip: assignment.ip.to_string(),
                total_startup_ms: millis(now.boot.since(self.starting_since)),
            };
            self.tell(
                news,
                EventType::Info,
                format!("replica {} started, run {run}", self.id),
                details,
            );
        }
    }

    fn failed(&mut self, step: &Step, failure: &Failure, now: Now, news: &mut Happenings) {
        match step {
            Step::Prepare { assignment, .. } | Step::Pull { assignment } => {
                self.tell_failure(assignment, failure, news);
                self.come_up_failed(failure, now);
            }
            Step::Create { assignment, run } => {
                // How far it came is not known: what there is goes first.
                let revision = revision(assignment);
                self.belief.container = Some(Container {
                    revision,
                    run: *run,
                    task: Task::Broken,
                    caps: None,
                });
                self.tell_failure(assignment, failure, news);
                self.come_up_failed(failure, now);
            }
            Step::Start { .. } => {
                if let Some(container) = &mut self.belief.container {
                    container.task = Task::Broken;
                }
                if let Some(assignment) = self.assignment().cloned() {
                    self.tell_failure(&assignment, failure, news);
                }
                self.come_up_failed(failure, now);
            }
            Step::Resize { .. } => {
                let failures = self.resize_hold.take().map_or(0, |(_, failures, _)| failures);
                let failures = failures.saturating_add(1);
                let until = now.boot.plus(backoff(&self.id, failures.saturating_add(1)));
                self.resize_hold = Some((until, failures, failure.error.message.clone()));
                // It may have taken effect before it failed.
                self.memory.caps = None;
                if let Some(container) = &mut self.belief.container {
                    container.caps = None;
                }
            }
            Step::Signal { .. } | Step::Delete | Step::Release => {
                self.holds = self.holds.saturating_add(1);
                self.hold = Some(now.boot.plus(backoff(&self.id, self.holds.saturating_add(1))));
                self.memory.cause = Some(failure.cause());
                self.memory.failed_at = Some(now.wall);
            }
        }
    }

    fn come_up_failed(&mut self, failure: &Failure, now: Now) {
        let delay = if failure.error.fault == Fault::Busy {
            BUSY_DELAY
        } else {
            self.memory.attempts = self.memory.attempts.saturating_add(1);
            self.memory.cause = Some(failure.cause());
            self.memory.failed_at = Some(now.wall);
            // The step itself may have taken long; an immediate repeat would only load what is failing.
            backoff(&self.id, self.memory.attempts.saturating_add(1))
        };
        self.memory.retry_at = Some(now.boot.plus(delay));
    }

    fn tell_failure(&self, assignment: &Assignment, failure: &Failure, news: &mut Happenings) {
        if failure.error.fault == Fault::Busy {
            return;
        }
        let error = failure.error.message.clone();
        let (message, details) = match (failure.part, &assignment.volume) {
            (Part::Image, _) => {
                let image = assignment.image.clone();
                let message = format!("image {image} cannot be had: {error}");
                (message, EventDetails::ImagePullError { image, error })
            }
            (Part::Volume, Some(mount)) => {
                let message = format!("volume {} cannot be mounted: {error}", mount.volume.identity());
                let details = EventDetails::VolumeAttachError {
                    volume_id: mount.volume.identity().to_owned(),
                    volume_type: volume_type(&mount.volume),
                    error,
                    step: AttachStep::Mount,
                };
                (message, details)
            }
            (Part::Volume | Part::Network | Part::Log | Part::Runtime, _) => {
                let message = format!("replica {} cannot be started: {error}", self.id);
                let container_name = assignment.container.to_string();
                (
                    message,
                    EventDetails::ContainerRunError {
                        container_name,
                        error,
                    },
                )
            }
        };
        self.tell(news, EventType::Error, message, details);
    }

    /// A process ended, as the runtime says.
    pub fn exited(&mut self, pid: u32, exit: Exit) {
        if self.running_pid() == Some(pid) {
            if let Some(container) = &mut self.belief.container {
                container.task = Task::Exited(exit);
            }
        } else if matches!(self.in_flight, Some(Step::Start { .. })) {
            self.early_exit = Some((pid, exit));
        }
    }

    /// A shim that does not answer for long is no shim: deleting kills it and what it holds. Not for a replica in no
    /// list: nobody said that it may be restarted.
    fn give_up_on_mute_shim(&mut self, now: Now, news: &mut Happenings) {
        let listed = !matches!(self.goal, Goal::Leave);
        let Some(Container { run, task, .. }) = &mut self.belief.container else {
            return;
        };
        let Task::Unknown { reason, since } = task else {
            return;
        };
        if !listed || now.boot.since(*since) < UNANSWERED_MAX {
            return;
        }
        let (run, error) = (*run, std::mem::take(reason));
        *task = Task::Broken;
        if self.memory.ended_run < run {
            self.memory.ended_run = run;
            self.crashed(Cause::Infrastructure { error }, now, news);
        }
    }

    /// Counts the end of the present run, once.
    fn count_end(&mut self, now: Now, news: &mut Happenings) {
        let Some(Container {
            run,
            task: Task::Exited(exit),
            ..
        }) = &self.belief.container
        else {
            return;
        };
        let (run, exit) = (*run, *exit);
        if self.memory.ended_run >= run {
            return;
        }
        self.memory.ended_run = run;
        self.memory.started = false;
        self.memory.passed = false;
        let why = self.memory.stopping.take().map(|stopping| stopping.why);
        let cause = match (why, &self.goal) {
            (Some(StopWhy::Confirmed(reason)), _) => return self.tell_stopped(reason, news),
            (_, Goal::Stop { reason }) => return self.tell_stopped(*reason, news),
            (Some(StopWhy::Replaced), _) => {
                self.memory.attempts = 0;
                self.memory.crashes = 0;
                self.memory.retry_at = None;
                self.memory.cause = None;
                self.belief.release_first = true;
                self.tell_stopped(StopReason::Updated, news);
                return;
            }
            (Some(StopWhy::Unhealthy(error)), _) => Cause::Health { error },
            (Some(StopWhy::Evicted(error)), _) => Cause::Infrastructure { error },
            (None, Goal::Run { .. } | Goal::Leave) => exit.cause(),
        };
        self.crashed(cause, now, news);
    }

    fn crashed(&mut self, cause: Cause, now: Now, news: &mut Happenings) {
        let ran = self.memory.started_boot.map(|started| now.boot.since(started));
        if ran.is_some_and(|ran| ran >= GOOD_RUN) {
            self.memory.crashes = 0;
        }
        self.memory.crashes = self.memory.crashes.saturating_add(1);
        let delay = backoff(&self.id, self.memory.crashes);
        self.memory.retry_at = (!delay.is_zero()).then(|| now.boot.plus(delay));
        self.memory.failed_at = Some(now.wall);
        let details = EventDetails::ReplicaFailed {
            exit_code: match cause {
                Cause::Exit { code } => Some(code),
                Cause::OutOfMemory => Some(137),
                _ => None,
            },
            signal: match cause {
                Cause::Signal { signal } => Some(signal.to_string()),
                _ => None,
            },
        };
        self.tell(
            news,
            EventType::Error,
            format!("replica {} ended: {cause}", self.id),
            details,
        );
        self.memory.cause = Some(cause);
        if is_crash_loop(self.memory.crashes) {
            let crashes = self.memory.crashes;
            let message = format!("replica {} crashed {crashes} times in a row", self.id);
            let details = EventDetails::ContainerCrashLoop {
                recent_crashes: crashes,
                backoff_seconds: millis(delay).div_ceil(1000),
            };
            self.tell(news, EventType::Error, message, details);
        }
    }

    fn forget_crashes(&mut self, now: Now, news: &mut Happenings) {
        if self.running_pid().is_none() || self.memory.crashes == 0 {
            return;
        }
        let Some(started) = self.memory.started_boot else {
            return;
        };
        if now.boot.since(started) < GOOD_RUN {
            return;
        }
        let previous_crashes = std::mem::take(&mut self.memory.crashes);
        self.memory.cause = None;
        if is_crash_loop(previous_crashes) {
            let message = format!("replica {} has run for five minutes", self.id);
            self.tell(
                news,
                EventType::Info,
                message,
                EventDetails::CrashLoopRecovered { previous_crashes },
            );
        }
    }

    /// When [`Replica::settle`] has something to do by the time alone.
    #[must_use]
    pub fn settles_at(&self, now: BootTime) -> Option<BootTime> {
        let container = self.belief.container.as_ref()?;
        let started = self.memory.started_boot;
        let due = match &container.task {
            Task::Unknown { since, .. } => [Some(since.plus(UNANSWERED_MAX)), None],
            Task::Running { .. } => {
                let impatient = self.health.readiness.consecutive_failures > 0 && !self.memory.passed;
                [
                    started
                        .filter(|_| self.memory.crashes > 0)
                        .map(|at| at.plus(GOOD_RUN)),
                    started.filter(|_| impatient).map(|at| at.plus(STARTUP_ALLOWANCE)),
                ]
            }
            Task::Broken | Task::Created | Task::Exited(_) => [None, None],
        };
        due.into_iter().flatten().filter(|at| *at > now).min()
    }

    fn stop_grace(&self) -> Duration {
        let grace_ms = self
            .memory
            .stop_grace_ms
            .or_else(|| self.assignment().map(|a| a.stop_grace_ms));
        grace_ms.map_or(STOP_GRACE, Duration::from_millis)
    }

    pub(super) fn drain_cap(&self) -> Duration {
        self.memory.drain_ms.map_or(DRAIN_CAP, Duration::from_millis)
    }

    fn tell_stopped(&self, reason: StopReason, news: &mut Happenings) {
        let details = EventDetails::ReplicaStopped { stop_reason: reason };
        self.tell(
            news,
            EventType::Info,
            format!("replica {} was stopped", self.id),
            details,
        );
    }

    fn tell(&self, news: &mut Happenings, kind: EventType, message: String, details: EventDetails) {
        news.push(Happening {
            replica_id: self.id.clone(),
            kind,
            message,
            details,
        });
    }
}

/// The revision of an assignment: the text of its digest.
#[must_use]
pub fn revision(assignment: &Assignment) -> std::sync::Arc<str> {
    assignment.digest().to_string().into()
}

fn volume_type(target: &VolumeTarget) -> VolumeType {
    match target {
        VolumeTarget::Aws { .. } => VolumeType::Aws,
        VolumeTarget::Gcp { .. } => VolumeType::Gcp,
        VolumeTarget::Azure { .. } => VolumeType::Azure,
        VolumeTarget::Hostpath { .. } => VolumeType::Hostpath,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
