//! The model of the actor around the real scheduler core: its batches, sessions and what it makes of what nodes say, as
//! `cluster`, `shard` and `link` of the scheduler have them, on the virtual clock.
//!
//! ```text
//! mailbox ─▶ drain ▶ decide ▶ check ─┬─ nothing ──────────────────────────────▶ publish ▶ answer
//!                                    └─ append ▶ (store) ▶ durable, or not ───▶ publish ▶ answer
//! ```
//!
//! Between any two of these it may be killed, paused, or lose the cluster to another one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_api::id::{MachineId, ReplicaId};
use berth_scheduler::announce::announce;
use berth_scheduler::autoscale;
use berth_scheduler::check::{check, check_all, check_reported};
use berth_scheduler::decide::{Report, decide};
use berth_scheduler::entry::Entry;
use berth_scheduler::liveness::Limits;
use berth_scheduler::rollout;
use berth_scheduler::world::{Now, Observed, World};

use super::chance::Chance;
use super::explanations::brief;
use super::link::{HEARTBEAT_MS, SILENCE_MS, Session};
use super::store::{Answer, Append, TENURE_MS};
use super::{Down, Event, Mutation, Rule, Simulation, Up};

/// A scheduler process.
#[expect(clippy::struct_excessive_bools, reason = "independent facts of one process")]
pub(super) struct Scheduler {
    pub(super) chance: Chance,
    pub(super) is_up: bool,
    /// Rises whenever it starts or dies: events of another life are void.
    pub(super) life: u64,
    /// The store does not hear it, nor it the store.
    pub(super) is_cut_off: bool,
    /// It does nothing before this: a pause of the process or its machine.
    pub(super) paused_until: u64,
    /// What its wall clock shows beside the true time.
    pub(super) wall_offset_ms: i64,
    /// Under which fence it owns the cluster, and until when it believes so; a life of its own in itself.
    pub(super) tenure: Option<(u64, u64)>,
    /// The durable state, while it serves the cluster.
    pub(super) world: Option<Arc<World>>,
    pub(super) observed: Observed,
    pub(super) acknowledged: BTreeMap<MachineId, (u64, u64)>,
    pub(super) sessions: BTreeMap<usize, Session>,
    pub(super) requests: Vec<Request>,
    is_step_due: bool,
    /// The period is over, or something is known that no decision has seen.
    pub(super) is_decision_due: bool,
    appending: Option<Appending>,
    pub(super) limits: Limits,
    pub(super) report: Report,
}

/// What waits in the mailbox.
#[derive(Debug)]
pub(super) enum Request {
    Link {
        machine: usize,
        session: u64,
        message: Up,
    },
    Write {
        client: u64,
    },
}

/// One batch on its way to the log.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) world: Arc<World>,
    pub(super) entries: Vec<Entry>,
    /// Something was heard that may change a decision.
    pub(super) has_news: bool,
    pub(super) replies: Replies,
}

/// What is answered when the batch is durable.
#[derive(Debug, Default)]
pub(super) struct Replies {
    /// Sessions that begin.
    pub(super) opened: Vec<(usize, u64)>,
    pub(super) confirmed: Vec<(usize, u64, Vec<ReplicaId>)>,
    /// Writes of clients, each with its part of the batch.
    pub(super) written: Vec<(u64, std::ops::Range<usize>)>,
}

/// A batch that the store has not answered.
#[derive(Debug)]
struct Appending {
    number: u64,
    after: usize,
    draft: Draft,
    report: Report,
}

impl Draft {
    /// Appends an entry and what announces it; not where it contradicts the world.
    pub(super) fn append(&mut self, observed: &Observed, entry: Entry) -> bool {
        let events = announce(&self.world, observed, &entry);
        let world = Arc::make_mut(&mut self.world);
        if world.try_apply(&entry).is_err() {
            return false;
        }
        self.entries.push(entry);
        for event in events {
            world.apply(&event);
            self.entries.push(event);
        }
        true
    }
}

impl Scheduler {
    pub(super) fn new(chance: Chance, limits: Limits) -> Self {
        Self {
            chance,
            is_up: false,
            life: 0,
            is_cut_off: false,
            paused_until: 0,
            wall_offset_ms: 0,
            tenure: None,
            world: None,
            observed: Observed::new(0),
            acknowledged: BTreeMap::new(),
            sessions: BTreeMap::new(),
            requests: vec![],
            is_step_due: false,
            is_decision_due: false,
            appending: None,
            limits,
            report: Report::default(),
        }
    }
}

impl Simulation {
    pub(super) fn scheduler_now(&self, at: usize) -> Now {
        Now {
            wall: self.wall(self.schedulers[at].wall_offset_ms),
            monotonic_ms: self.now,
        }
    }

    /// The scheduler that owns the cluster and serves it.
    pub(super) fn serving(&self) -> Option<usize> {
        let owner = self.store.owner()?;
        let scheduler = &self.schedulers[owner.scheduler];
        let is_it = scheduler.tenure.is_some_and(|(fence, _)| fence == owner.fence);
        (is_it && scheduler.world.is_some()).then_some(owner.scheduler)
    }

    // Life.

    pub(super) fn scheduler_start(&mut self, at: usize) {
        if self.schedulers[at].is_up {
            return;
        }
        self.note(|| format!("s{at} starts"));
        let scheduler = &mut self.schedulers[at];
        scheduler.is_up = true;
        scheduler.life += 1;
        let life = scheduler.life;
        self.after(0, Event::Tenure { scheduler: at, life });
        self.after(500, Event::SchedulerPeriod { scheduler: at, life });
    }

    /// The process dies: what is not in the log is gone, and of what it had sent to the store perhaps.
    pub(super) fn scheduler_crash(&mut self, at: usize) {
        if !self.schedulers[at].is_up {
            return;
        }
        self.note(|| format!("s{at} is killed"));
        self.drop_appends(at);
        let scheduler = &mut self.schedulers[at];
        scheduler.is_up = false;
        scheduler.life += 1;
        self.leave_cluster(at);
    }

    /// The actor ends: its sessions are over, its mailbox is gone.
    pub(super) fn leave_cluster(&mut self, at: usize) {
        let scheduler = &mut self.schedulers[at];
        scheduler.tenure = None;
        scheduler.world = None;
        scheduler.appending = None;
        scheduler.is_step_due = false;
        scheduler.requests.clear();
        scheduler.acknowledged.clear();
        scheduler.report = Report::default();
        let sessions = std::mem::take(&mut scheduler.sessions);
        for (machine, session) in sessions {
            self.send_down(machine, session.number, Down::End);
        }
    }

    /// Keeps what it owns, takes what is free.
    pub(super) fn tenure(&mut self, at: usize, life: u64) {
        if self.schedulers[at].life != life {
            return;
        }
        let period = self.schedulers[at].chance.range(1500..=3300);
        self.after(period, Event::Tenure { scheduler: at, life });
        if self.schedulers[at].is_cut_off {
            return;
        }
        let now = self.now;
        if let Some((fence, until)) = self.schedulers[at].tenure {
            if self.store.prolong(fence, now) {
                self.schedulers[at].tenure = Some((fence, until.max(now + TENURE_MS)));
            } else {
                self.note(|| format!("s{at} has lost the cluster"));
                self.leave_cluster(at);
            }
        } else if self.store.is_free(now) || self.schedulers.len() == 1 {
            let fence = self.store.claim(at, now);
            let until = if self.schedulers.len() == 1 {
                u64::MAX
            } else {
                now + TENURE_MS
            };
            self.schedulers[at].tenure = Some((fence, until));
            self.summary.takeovers += 1;
            self.note(|| format!("s{at} takes the cluster under fence {fence}"));
            self.load_after(at, 200);
        }
    }

    pub(super) fn load_after(&mut self, at: usize, delay_max_ms: u64) {
        let scheduler = &mut self.schedulers[at];
        let life = scheduler.life;
        let delay = scheduler.chance.range(1..=delay_max_ms);
        self.after(delay, Event::Load { scheduler: at, life });
    }

    /// Reads the cluster and serves it from now on.
    pub(super) fn load(&mut self, at: usize, life: u64) {
        let Some((fence, _)) = self.schedulers[at]
            .tenure
            .filter(|_| self.schedulers[at].life == life)
        else {
            return;
        };
        if self.schedulers[at].is_cut_off {
            return self.load_after(at, 2000);
        }
        if self.store.owner().is_none_or(|owner| owner.fence != fence) {
            return self.leave_cluster(at);
        }
        let is_new = self.schedulers[at].world.is_none() && self.schedulers[at].sessions.is_empty();
        match self.store.load() {
            Ok(world) => self.schedulers[at].world = Some(Arc::new(world)),
            Err(text) => return self.checkers.broke(Rule::Replay, text),
        }
        if is_new {
            self.schedulers[at].observed = Observed::new(self.now);
        }
        self.note(|| format!("s{at} serves the cluster"));
        self.schedulers[at].is_decision_due = true;
        self.step_soon(at);
    }

    pub(super) fn scheduler_period(&mut self, at: usize, life: u64) {
        if self.schedulers[at].life != life {
            return;
        }
        let now = self.now;
        let sessions = self.schedulers[at].sessions.iter();
        let (silent, live): (Vec<_>, Vec<_>) = sessions
            .map(|(machine, session)| (*machine, session.number, session.heard_at))
            .partition(|(_, _, heard_at)| now - heard_at > SILENCE_MS);
        for (machine, _, _) in silent {
            self.end_session(at, machine);
        }
        for (machine, number, _) in live {
            self.send_down(machine, number, Down::Ping);
        }
        self.schedulers[at].is_decision_due = true;
        self.step_soon(at);
        self.after(HEARTBEAT_MS, Event::SchedulerPeriod { scheduler: at, life });
    }

    // The loop.

    /// What waits is taken as one batch.
    pub(super) fn step_soon(&mut self, at: usize) {
        let batch_max_ms = self.weather.batch_max_ms();
        let scheduler = &mut self.schedulers[at];
        if scheduler.is_up && scheduler.world.is_some() && !scheduler.is_step_due {
            scheduler.is_step_due = true;
            let life = scheduler.life;
            let delay = scheduler.chance.range(1..=batch_max_ms);
            self.after(delay, Event::SchedulerStep { scheduler: at, life });
        }
    }

    pub(super) fn scheduler_step(&mut self, at: usize, life: u64) {
        let now = self.now;
        let scheduler = &mut self.schedulers[at];
        if scheduler.life != life {
            return;
        }
        scheduler.is_step_due = false;
        // The actor waits for its store; it goes on with the answer.
        let (Some(world), None) = (scheduler.world.clone(), &scheduler.appending) else {
            return;
        };
        let Some((fence, _)) = scheduler.tenure.filter(|(_, until)| *until > now) else {
            self.note(|| format!("s{at} has no lease any more"));
            return self.leave_cluster(at);
        };
        let requests = std::mem::take(&mut scheduler.requests);
        let after = usize::try_from(world.applied_count()).expect("short logs");
        let mut draft = Draft {
            world,
            entries: vec![],
            has_news: false,
            replies: Replies::default(),
        };
        for request in requests {
            match request {
                Request::Link {
                    machine,
                    session,
                    message,
                } => self.take(at, (machine, session), message, &mut draft),
                Request::Write { client } => self.write(at, client, &mut draft),
            }
        }
        let is_due = std::mem::take(&mut self.schedulers[at].is_decision_due);
        if !is_due && !draft.has_news && draft.entries.is_empty() {
            // Nothing is new: deciding again would give nothing.
            let report = std::mem::take(&mut self.schedulers[at].report);
            self.answer_writes(&draft.replies, after, &[]);
            return self.publish(at, draft.replies, report);
        }
        let report = self.decide(at, &mut draft);
        if draft.entries.is_empty() {
            self.answer_writes(&draft.replies, after, &[]);
            return self.publish(at, draft.replies, report);
        }
        if self.options.mutation == Some(Mutation::AnswerEarly) {
            self.answer_writes(&draft.replies, after, &draft.entries);
        }
        let number = self.send_append(Append {
            scheduler: at,
            fence,
            after,
            entries: draft.entries.clone(),
        });
        self.schedulers[at].appending = Some(Appending {
            number,
            after,
            draft,
            report,
        });
    }

    /// The store has answered, or has not in time.
    pub(super) fn store_answers(&mut self, at: usize, life: u64, number: u64, answer: Answer) {
        let scheduler = &mut self.schedulers[at];
        let is_awaited = scheduler
            .appending
            .as_ref()
            .is_some_and(|appending| appending.number == number);
        if scheduler.life != life || !is_awaited {
            return;
        }
        if answer == Answer::Durable && scheduler.is_cut_off {
            // The answer is lost; the time-out follows.
            return;
        }
        let appending = scheduler.appending.take().expect("it was looked at");
        match answer {
            Answer::Durable => {
                scheduler.world = Some(appending.draft.world.clone());
                self.keep_snapshot(&appending.draft.world);
                self.answer_writes(
                    &appending.draft.replies,
                    appending.after,
                    &appending.draft.entries,
                );
                self.publish(at, appending.draft.replies, appending.report);
            }
            Answer::Refused => {
                self.note(|| format!("s{at} is refused: it is the owner no more"));
                self.leave_cluster(at);
            }
            Answer::TimedOut => {
                scheduler.world = None;
                self.note(|| format!("s{at} hears nothing of its store"));
                for (machine, _) in appending.draft.replies.opened {
                    self.end_session(at, machine);
                }
                self.load_after(at, 2000);
            }
        }
    }

    fn publish(&mut self, at: usize, replies: Replies, report: Report) {
        self.schedulers[at].report = report;
        for (machine, number) in &replies.opened {
            let session = self.schedulers[at].sessions.get_mut(machine);
            if let Some(session) = session.filter(|session| session.number == *number) {
                session.is_open = true;
            }
        }
        self.send_sets(at);
        for (machine, number, ids) in replies.confirmed {
            let session = self.schedulers[at].sessions.get(&machine);
            if session.is_some_and(|session| session.number == number) {
                self.send_down(machine, number, Down::StopConfirmed(ids));
            }
        }
        if !self.schedulers[at].requests.is_empty() {
            self.step_soon(at);
        }
    }

    // The decision.

    fn decide(&mut self, at: usize, draft: &mut Draft) -> Report {
        let now = self.scheduler_now(at);
        let mutation = self.options.mutation;
        let scheduler = &mut self.schedulers[at];
        let tunables = scheduler.limits.autoscale;
        autoscale::observe(&draft.world, &mut scheduler.observed, &tunables, now);
        rollout::observe(&draft.world, &mut scheduler.observed, now);
        let decision = decide(&draft.world, &scheduler.observed, &scheduler.limits, now);
        self.summary.decisions += 1;
        if decision.entries.is_empty() {
            return decision.report;
        }
        let violations = check(&draft.world, &decision.entries);
        if scheduler.chance.percent(10) {
            let all = check_all(&draft.world, &decision.entries);
            if all.is_empty() != violations.is_empty() {
                let text = "the check of what is touched and the check of everything disagree";
                self.checkers.broke(Rule::Decision, text.to_owned());
            }
        }
        let reported = check_reported(
            &draft.world,
            &scheduler.observed,
            &scheduler.limits,
            now,
            &decision.entries,
        );
        if let Some(violation) = violations.iter().chain(&reported).next() {
            self.checkers.broke(Rule::Decision, violation.to_string());
        }
        let world = Arc::make_mut(&mut draft.world);
        for entry in decision.entries {
            world.apply(&entry);
            let gone = match &entry {
                Entry::ReplicaStopping { replica_id, at, .. } if mutation == Some(Mutation::ForgetEarly) => {
                    Some(Entry::ReplicaGone {
                        replica_id: replica_id.clone(),
                        at: *at,
                    })
                }
                _ => None,
            };
            draft.entries.push(entry);
            if let Some(gone) = gone {
                world.apply(&gone);
                draft.entries.push(gone);
            }
        }
        if scheduler.chance.percent(10) && mutation != Some(Mutation::ForgetEarly) {
            let again = decide(&draft.world, &scheduler.observed, &scheduler.limits, now);
            if let Some(entry) = again.entries.first() {
                let text = format!("deciding again changes something: {}", brief(entry));
                self.checkers.broke(Rule::Decision, text);
            }
        }
        if mutation == Some(Mutation::RestartForNothing) {
            self.restart_for_nothing(at, draft);
        }
        decision.report
    }

    /// The mutation: a replica that is as it should be is stopped.
    fn restart_for_nothing(&mut self, at: usize, draft: &mut Draft) {
        let scheduler = &mut self.schedulers[at];
        let live = draft
            .world
            .replicas()
            .values()
            .filter(|replica| replica.is_live());
        let ids: Vec<ReplicaId> = live.map(|replica| replica.replica_id.clone()).collect();
        let Some(id) = scheduler.chance.pick(&ids).cloned() else {
            return;
        };
        let entry = Entry::ReplicaStopping {
            replica_id: id,
            cause: berth_scheduler::entry::StopCause::ScaledDown,
            picked: None,
            unasked: false,
            at: berth_api::time::Timestamp::default(),
        };
        draft.append(&scheduler.observed, entry);
    }

    /// Adds to a set the stateful replicas of every other machine.
    pub(super) fn place_twice(world: &World, set: &mut berth_api::assignment::AssignmentSet) {
        let foreign = world
            .replicas()
            .values()
            .filter(|replica| replica.is_live() && replica.ordinal.is_some())
            .filter(|replica| replica.machine_id != set.machine_id);
        set.replicas
            .extend(foreign.map(|replica| replica.assignment(world)));
        set.replicas
            .sort_by(|one, other| one.replica_id.cmp(&other.replica_id));
        let listed: BTreeSet<_> = set.replicas.iter().map(|a| a.replica_id.clone()).collect();
        set.stops.retain(|stop| !listed.contains(&stop.replica_id));
    }
}
