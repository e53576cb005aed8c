//! The scheduler's end of the links: sessions, what nodes say on them, and the sets that are sent.

use std::collections::BTreeMap;

use berth_api::assignment::{AssignmentSet, Position};
use berth_api::id::ReplicaId;
use berth_api::replica::ReplicaStatus;
use berth_api::units::{Bytes, Cpu};
use berth_scheduler::entry::{Entry, MachineHealthState};

use super::link::{CUT_ASKS_AGAIN_MS, Session, Stream};
use super::scheduler::{Draft, Request};
use super::{Down, Event, Mutation, Rule, Simulation, Up};

impl Simulation {
    pub(super) fn end_session(&mut self, at: usize, machine: usize) {
        if let Some(session) = self.schedulers[at].sessions.remove(&machine) {
            self.send_down(machine, session.number, Down::End);
            let id = &self.machines[machine].spec.machine_id;
            if let Some(observed) = self.schedulers[at].observed.machines.get_mut(id) {
                observed.is_linked = false;
            }
            self.schedulers[at].is_decision_due = true;
        }
    }

    /// A message reaches a scheduler.
    pub(super) fn arrives_up(
        &mut self,
        at: usize,
        machine: usize,
        (session, number): (u64, u64),
        message: Up,
    ) {
        let daemon = self.machines[machine].daemon.as_ref();
        if self.machines[machine].is_cut_up {
            if daemon.is_some_and(|daemon| daemon.session == Some(session)) {
                let event = Event::ToScheduler {
                    scheduler: at,
                    machine,
                    session,
                    number,
                    message,
                };
                self.after(CUT_ASKS_AGAIN_MS, event);
            }
            return;
        }
        self.up.entry(session).or_default().arrive(number, message);
        while let Some(message) = self.up.get_mut(&session).and_then(Stream::next) {
            self.scheduler_hears(at, machine, session, message);
        }
    }

    fn scheduler_hears(&mut self, at: usize, machine: usize, session: u64, message: Up) {
        // One that does not serve the cluster sends the node on.
        if !self.schedulers[at].is_up || self.schedulers[at].tenure.is_none() {
            return self.send_down(machine, session, Down::End);
        }
        self.schedulers[at].requests.push(Request::Link {
            machine,
            session,
            message,
        });
        self.step_soon(at);
    }

    pub(super) fn take(
        &mut self,
        at: usize,
        (machine, number): (usize, u64),
        message: Up,
        draft: &mut Draft,
    ) {
        if let Up::Hello { position } = message {
            return self.open(at, (machine, number), position, draft);
        }
        let now = self.now;
        let Some(session) = self.schedulers[at].sessions.get_mut(&machine) else {
            return self.send_down(machine, number, Down::End);
        };
        if session.number != number {
            return;
        }
        if !session.is_open {
            // Nothing is read of a session before its begin is durable.
            return self.schedulers[at].requests.push(Request::Link {
                machine,
                session: number,
                message,
            });
        }
        session.heard_at = now;
        let sent = session.sent;
        let id = self.machines[machine].spec.machine_id.clone();
        match message {
            Up::Hello { .. } => unreachable!("taken above"),
            Up::Ack { position, refused } => {
                let place = (position.epoch, position.generation);
                if !refused {
                    self.schedulers[at].acknowledged.insert(id, place);
                } else if sent == Some(place) {
                    self.end_session(at, machine);
                }
            }
            Up::Status {
                replicas,
                unlisted,
                accepted,
            } => self.take_status(at, (machine, number), (replicas, unlisted, accepted), draft),
        }
    }

    fn take_status(
        &mut self,
        at: usize,
        (machine, number): (usize, u64),
        (replicas, unlisted, accepted): (Vec<ReplicaStatus>, Vec<ReplicaId>, Position),
        draft: &mut Draft,
    ) {
        let id = self.machines[machine].spec.machine_id.clone();
        let clock = self.scheduler_now(at);
        let scheduler = &mut self.schedulers[at];
        let Some(known) = draft.world.machine(&id) else {
            return self.end_session(at, machine);
        };
        let present = (draft.world.epoch(), known.generation);
        let told = (accepted.epoch, accepted.generation);
        let accepted = scheduler.acknowledged.get(&id).map(|set| told.min(*set));
        let observed = scheduler.observed.machines.entry(id.clone()).or_default();
        let unlisted = unlisted.into_iter().collect();
        let replicas: BTreeMap<ReplicaId, ReplicaStatus> = replicas
            .into_iter()
            .map(|status| (status.replica_id.clone(), status))
            .collect();
        let says_the_same = observed.is_linked
            && known.health == MachineHealthState::Running
            && observed.accepted == accepted
            && observed.unlisted == unlisted
            && observed.replicas.len() == replicas.len()
            && observed
                .replicas
                .values()
                .zip(replicas.values())
                .all(|(before, now)| before.says_the_same(now));
        draft.has_news |= !says_the_same;
        observed.heartbeat_ms = Some(clock.monotonic_ms);
        observed.heartbeat_at = Some(clock.wall);
        observed.is_linked = true;
        observed.accepted = accepted;
        observed.unlisted = unlisted;
        observed.replicas = replicas;
        if accepted == Some(present) {
            let confirmed = draft.world.confirmed_stops(&id, &observed.unlisted);
            if !confirmed.is_empty() {
                draft.replies.confirmed.push((machine, number, confirmed));
            }
        }
    }

    /// Registers a machine when that is new, and begins its session.
    fn open(&mut self, at: usize, (machine, number): (usize, u64), accepted: Position, draft: &mut Draft) {
        let mut spec = self.machines[machine].spec.clone();
        spec.boot_id = Some(format!("boot-{}", self.machines[machine].boot));
        if self.options.mutation == Some(Mutation::Overcommit) {
            let capacity = &mut spec.capacity;
            capacity.cpu.total = Cpu::from_micros(capacity.cpu.total.micros() * 2);
            capacity.memory.total = Bytes::new(capacity.memory.total.get() * 2);
        }
        let id = spec.machine_id.clone();
        let clock = self.scheduler_now(at);
        if draft.world.machine(&id).is_none_or(|known| known.spec != spec) {
            let entry = draft.world.registration(spec, clock.wall);
            let entry: Entry = entry.expect("there are subnets enough");
            assert!(
                draft.append(&self.schedulers[at].observed, entry),
                "{id} registers"
            );
        }
        let known = draft.world.machine(&id).expect("it is registered");
        let present = (draft.world.epoch(), known.generation);
        let claimed = (accepted.epoch, accepted.generation);
        let differs = claimed == present
            && draft
                .world
                .assignment_set(&id)
                .is_some_and(|set| set.seal().1.digest != accepted.digest);
        if claimed > present {
            let text = format!("{id} has accepted {claimed:?} and the scheduler is at {present:?}");
            return self.checkers.broke(Rule::Order, text);
        }
        if differs {
            let text = format!("{id} has another set at {claimed:?} than the scheduler");
            return self.checkers.broke(Rule::Order, text);
        }
        draft.has_news = true;
        self.note(|| format!("m{machine} is linked to s{at}, at {claimed:?}"));
        let heard_at = self.now;
        let scheduler = &mut self.schedulers[at];
        scheduler.acknowledged.insert(id.clone(), claimed);
        let observed = scheduler.observed.machines.entry(id).or_default();
        observed.is_linked = true;
        observed.accepted = None;
        observed.heartbeat_ms = Some(clock.monotonic_ms);
        observed.heartbeat_at = Some(clock.wall);
        let session = Session {
            number,
            is_open: false,
            sent: None,
            heard_at,
        };
        scheduler.sessions.insert(machine, session);
        draft.replies.opened.push((machine, number));
    }

    /// Every machine that is linked gets its set, when that is not the one it was sent last.
    pub(super) fn send_sets(&mut self, at: usize) {
        let Some(world) = self.schedulers[at].world.clone() else {
            return;
        };
        let open = self.schedulers[at].sessions.iter();
        let machines: Vec<usize> = open
            .filter(|(_, session)| session.is_open)
            .map(|(machine, _)| *machine)
            .collect();
        for machine in machines {
            let id = &self.machines[machine].spec.machine_id;
            let Some(known) = world.machine(id) else {
                self.end_session(at, machine);
                continue;
            };
            let present = (world.epoch(), known.generation);
            let session = self.schedulers[at]
                .sessions
                .get_mut(&machine)
                .expect("it was listed");
            if session.sent == Some(present) {
                continue;
            }
            session.sent = Some(present);
            let number = session.number;
            let mut set = world.assignment_set(id).expect("it is registered");
            match self.options.mutation {
                Some(Mutation::PlaceTwice) => Self::place_twice(&world, &mut set),
                Some(Mutation::Reword) => {
                    for assignment in &mut set.replicas {
                        assignment.env.insert("AT".into(), (present.1 / 8).to_string());
                    }
                }
                Some(Mutation::WrongDevice) => share_first_gpu(&mut set),
                _ => {}
            }
            let (bytes, position) = set.seal();
            let mut message = (position, bytes);
            if self.options.mutation == Some(Mutation::FallBack) && self.schedulers[at].chance.percent(20) {
                message = self.former.get(&machine).cloned().unwrap_or(message);
            } else {
                self.former.entry(machine).or_insert_with(|| message.clone());
            }
            let (position, bytes) = message;
            self.checkers.sent(machine, number, &position);
            self.send_down(machine, number, Down::Set { position, bytes });
        }
    }
}

/// The mutation: every share of a GPU is one of the first GPU.
fn share_first_gpu(set: &mut AssignmentSet) {
    for assignment in &mut set.replicas {
        let is_share = assignment.gpu.as_ref().is_some_and(|gpu| gpu.share.is_some());
        for device in assignment.gpu_devices.iter_mut().filter(|_| is_share) {
            device.index = 0;
        }
    }
}
