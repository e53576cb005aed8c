//! The link between a simulated daemon and the scheduler: streams that keep their order, are late, are cut, and end.

use std::collections::BTreeMap;

use berth_api::assignment::Position;
use berth_api::id::ReplicaId;
use berth_node::host::Signal;
use berth_node::plan::Runtime;

use super::{Commit, Down, Event, Mutation, Simulation, Up};

/// A session as the scheduler has it.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) number: u64,
    /// Its begin is durable.
    pub(super) is_open: bool,
    pub(super) sent: Option<(u64, u64)>,
    pub(super) heard_at: u64,
}

/// One direction of a session: what arrives early waits for what was sent before it, as in any stream.
#[derive(Debug)]
pub(super) struct Stream<M> {
    sent: u64,
    taken: u64,
    early: BTreeMap<u64, M>,
}

impl<M> Default for Stream<M> {
    fn default() -> Self {
        Self {
            sent: 0,
            taken: 0,
            early: BTreeMap::new(),
        }
    }
}

impl<M> Stream<M> {
    /// The number of the next message.
    fn send(&mut self) -> u64 {
        self.sent += 1;
        self.sent - 1
    }

    /// A message has arrived; the next one that may be read, if it is there.
    pub(super) fn arrive(&mut self, number: u64, message: M) {
        self.early.insert(number, message);
    }

    pub(super) fn next(&mut self) -> Option<M> {
        let message = self.early.remove(&self.taken)?;
        self.taken += 1;
        Some(message)
    }
}

pub(super) const HEARTBEAT_MS: u64 = 2_000;
pub(super) const SILENCE_MS: u64 = 3 * HEARTBEAT_MS;
/// What is sent over a line that is cut is sent again after this.
pub(super) const CUT_ASKS_AGAIN_MS: u64 = 500;
/// A daemon dials without having read its machine after this.
const HELLO_ANYWAY_MS: u64 = 10_000;

impl Simulation {
    pub(super) fn dial(&mut self, machine: usize, life: u64) {
        if !self.is_life(machine, life) {
            return;
        }
        let dialling = &self.machines[machine];
        let daemon = dialling.daemon.as_ref().expect("its life goes on");
        if daemon.session.is_some() {
            return;
        }
        let is_blind = *daemon.core.runtime() == Runtime::Unknown;
        if is_blind && self.now < daemon.started_at + HELLO_ANYWAY_MS {
            return self.after(100, Event::Dial { machine, life });
        }
        let is_cut = dialling.is_cut_up || dialling.is_cut_down;
        let position = daemon.core.position();
        let to = self.some_scheduler(machine);
        let Some(to) = to.filter(|to| !is_cut && self.schedulers[*to].is_up) else {
            let delay = self.machines[machine].chance.range(300..=1500);
            return self.after(delay, Event::Dial { machine, life });
        };
        self.last_session += 1;
        let (session, now) = (self.last_session, self.now);
        let daemon = self.machines[machine].daemon.as_mut().expect("as above");
        daemon.session = Some(session);
        daemon.scheduler = to;
        daemon.heard_at = now;
        self.machines[machine].up_at = now;
        self.machines[machine].down_at = now;
        self.send_up(machine, Up::Hello { position });
        self.send_status(machine);
    }

    /// Whom a node calls: mostly the owner of its cluster, as far as anybody knows; now and then another one.
    fn some_scheduler(&mut self, machine: usize) -> Option<usize> {
        let owner = self.store.owner().map(|owner| owner.scheduler);
        let count = self.schedulers.len();
        let chance = &mut self.machines[machine].chance;
        if count == 1 || chance.percent(85) {
            owner
        } else {
            Some(chance.index(count))
        }
    }

    pub(super) fn link_check(&mut self, machine: usize, life: u64) {
        if !self.is_life(machine, life) {
            return;
        }
        let now = self.now;
        let daemon = self.machines[machine].daemon.as_mut().expect("its life goes on");
        let silent_ms = now - daemon.heard_at;
        if daemon.session.is_some() && silent_ms > SILENCE_MS {
            daemon.session = None;
            self.note(|| format!("m{machine} the scheduler is silent"));
            self.after(500, Event::Dial { machine, life });
        }
        if self.options.mutation == Some(Mutation::StopWhenSilent) && silent_ms > 2 * SILENCE_MS {
            let running: Vec<ReplicaId> = self.machines[machine].host.containers.keys().cloned().collect();
            for id in running {
                self.signal(machine, &id, Signal::Term);
            }
        }
        self.after(HEARTBEAT_MS, Event::LinkCheck { machine, life });
    }

    pub(super) fn heartbeat(&mut self, machine: usize, life: u64) {
        if self.is_life(machine, life) {
            self.send_status(machine);
            self.after(HEARTBEAT_MS, Event::Heartbeat { machine, life });
        }
    }

    pub(super) fn status_due(&mut self, machine: usize, life: u64) {
        if self.is_life(machine, life) {
            if let Some(daemon) = &mut self.machines[machine].daemon {
                daemon.is_status_due = false;
            }
            self.send_status(machine);
        }
    }

    fn send_status(&mut self, machine: usize) {
        let Some(daemon) = &self.machines[machine].daemon else {
            return;
        };
        let (mut replicas, unlisted) = (daemon.core.status().to_vec(), daemon.core.unlisted());
        let accepted = daemon.core.position();
        self.measure(machine, &mut replicas);
        self.send_up(
            machine,
            Up::Status {
                replicas,
                unlisted,
                accepted,
            },
        );
    }

    pub(super) fn send_up(&mut self, machine: usize, message: Up) {
        let daemon = self.machines[machine].daemon.as_ref();
        let Some((scheduler, session)) = daemon.and_then(|daemon| Some((daemon.scheduler, daemon.session?)))
        else {
            return;
        };
        let delay = self.machines[machine]
            .chance
            .range(1..=self.weather.delay_max_ms());
        let at = (self.now + delay).max(self.machines[machine].up_at);
        self.machines[machine].up_at = at;
        let number = self.up.entry(session).or_default().send();
        self.at(
            at,
            Event::ToScheduler {
                scheduler,
                machine,
                session,
                number,
                message,
            },
        );
    }

    pub(super) fn send_down(&mut self, machine: usize, session: u64, message: Down) {
        let delay = self.machines[machine]
            .chance
            .range(1..=self.weather.delay_max_ms());
        let at = (self.now + delay).max(self.machines[machine].down_at);
        self.machines[machine].down_at = at;
        let number = self.down.entry(session).or_default().send();
        self.at(
            at,
            Event::ToNode {
                machine,
                session,
                number,
                message,
            },
        );
    }

    /// A message reaches a machine.
    pub(super) fn arrives_down(&mut self, machine: usize, session: u64, number: u64, message: Down) {
        let daemon = self.machines[machine].daemon.as_ref();
        if daemon.is_none_or(|daemon| daemon.session != Some(session)) {
            return;
        }
        if self.machines[machine].is_cut_down {
            let event = Event::ToNode {
                machine,
                session,
                number,
                message,
            };
            return self.after(CUT_ASKS_AGAIN_MS, event);
        }
        self.down.entry(session).or_default().arrive(number, message);
        while let Some(message) = self.down.get_mut(&session).and_then(Stream::next) {
            self.node_hears(machine, session, message);
        }
    }

    fn node_hears(&mut self, machine: usize, session: u64, message: Down) {
        let now = self.now;
        let Some(daemon) = &mut self.machines[machine].daemon else {
            return;
        };
        if daemon.session != Some(session) {
            return;
        }
        daemon.heard_at = now;
        match message {
            Down::Ping => {}
            Down::End => {
                daemon.session = None;
                let life = self.machines[machine].life;
                let delay = self.machines[machine].chance.range(100..=1000);
                self.after(delay, Event::Dial { machine, life });
            }
            Down::StopConfirmed(ids) => {
                self.note(|| format!("m{machine} is told that stops are confirmed: {ids:?}"));
                self.checkers.stop_confirmed(machine, &ids);
                if let Some(daemon) = &mut self.machines[machine].daemon {
                    daemon.core.confirm_stops(&ids);
                }
                self.turn(machine);
            }
            Down::Set { position, bytes } => {
                daemon.received.push((position, bytes.clone()));
                self.offered(machine, position, bytes);
            }
        }
    }

    /// A set comes: stored first, then accepted, then acknowledged.
    pub(super) fn offered(&mut self, machine: usize, position: Position, bytes: Vec<u8>) {
        let is_deaf = self.options.mutation == Some(Mutation::Deaf);
        let Some(daemon) = &mut self.machines[machine].daemon else {
            return;
        };
        if is_deaf && daemon.core.has_set() {
            return;
        }
        let is_repeated = daemon.core.has_set() && daemon.core.position() == position;
        match daemon.core.check(&bytes, &position, &daemon.storing) {
            Ok(_) if is_repeated => self.send_up(
                machine,
                Up::Ack {
                    position,
                    refused: false,
                },
            ),
            Ok(_) => {
                daemon.storing = position;
                let commit = Commit {
                    writes: vec![],
                    steps: vec![],
                    set: Some((bytes, position)),
                };
                self.commit(machine, commit);
            }
            Err(refusal) => {
                self.note(|| format!("m{machine} refuses a set: {refusal}"));
                self.send_up(
                    machine,
                    Up::Ack {
                        position,
                        refused: true,
                    },
                );
            }
        }
    }
}
