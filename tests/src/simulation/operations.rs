//! What users and their tools do: they ask some scheduler, ask again when nobody answers, and take an answer for a promise.

use std::time::Duration;

use berth_api::cluster::CapacityGroup;
use berth_api::container::{CpuRange, DisruptionBudget, Scale};
use berth_api::id::{ContainerName, MachineId};
use berth_api::time::Timestamp;
use berth_api::units::Cpu;
use berth_scheduler::entry::{Entry, Removal, RolloutTurned};
use berth_scheduler::rollout;
use berth_scheduler::world::{Container, RolloutTurn, World};

use super::chance::Chance;
use super::scheduler::{Draft, Replies, Request};
use super::weather::{IMAGES, NAMES, declare, placement, scaled, want_gpus};
use super::{Event, Simulation};

const ANSWER_TIMEOUT_MS: u64 = 4_000;
const ATTEMPTS_MAX: u32 = 3;

/// Somebody who asks for one change.
#[derive(Debug)]
pub(super) struct Client {
    /// What is asked for follows from this and from what is there.
    chance: Chance,
    ask: Ask,
    attempts: u32,
    pub(super) is_done: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    Anything,
    /// Somebody has looked: the machine is off. It is asked until it is answered.
    PoweredOff {
        machine: usize,
    },
    Epoch,
    /// Whoever paused a rollout lets it go on. It is asked until it is answered.
    Resume,
}

impl Client {
    /// Whether it says that a machine is off.
    pub(super) fn is_about(&self, machine: usize) -> bool {
        self.ask == Ask::PoweredOff { machine } && !self.is_done
    }
}

impl Simulation {
    pub(super) fn ask(&mut self, chance: Chance, ask: Ask) {
        self.numbered += 1;
        let number = self.numbered;
        self.summary.operations += 1;
        self.clients.insert(
            number,
            Client {
                chance,
                ask,
                attempts: 0,
                is_done: false,
            },
        );
        self.attempt(number);
    }

    /// Sends the request once more, unless it was answered.
    pub(super) fn attempt(&mut self, number: u64) {
        let owner = self.store.owner().map(|owner| owner.scheduler);
        let count = self.schedulers.len();
        let delay_max_ms = self.weather.delay_max_ms();
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        let is_required = matches!(client.ask, Ask::PoweredOff { .. } | Ask::Resume);
        if client.is_done || (client.attempts >= ATTEMPTS_MAX && !is_required) {
            self.clients.remove(&number);
            return;
        }
        client.attempts += 1;
        let mut way = client.chance.clone();
        // Each attempt takes its own way; what it asks for stays the same.
        let turns = client.attempts;
        for _ in 0..turns {
            way.next();
        }
        let to = owner
            .filter(|_| way.percent(90))
            .unwrap_or_else(|| way.index(count));
        let is_doubled = !is_required && way.percent(5);
        let delay = way.range(1..=delay_max_ms);
        for extra in 0..=u64::from(is_doubled) {
            self.after(
                delay + extra * 300,
                Event::Asked {
                    scheduler: to,
                    client: number,
                },
            );
        }
        self.after(ANSWER_TIMEOUT_MS, Event::Attempt { client: number });
    }

    pub(super) fn asked(&mut self, at: usize, client: u64) {
        let scheduler = &mut self.schedulers[at];
        if scheduler.is_up && scheduler.tenure.is_some() {
            scheduler.requests.push(Request::Write { client });
            self.step_soon(at);
        }
    }

    /// The actor takes a write into its batch.
    pub(super) fn write(&mut self, at: usize, number: u64, draft: &mut Draft) {
        let Some(client) = self.clients.get(&number) else {
            return;
        };
        let wall = self.scheduler_now(at).wall;
        let mut chance = client.chance.clone();
        let from = draft.entries.len();
        let entries = match client.ask {
            Ask::Anything => anything(&draft.world, &mut chance, wall, self.now),
            Ask::Epoch => vec![Entry::EpochStarted {
                epoch: draft.world.epoch() + 1,
                at: wall,
            }],
            Ask::Resume => {
                let known = draft.world.containers().iter();
                let paused = known.filter(|(_, container)| container.is_paused());
                let resumed = paused.map(|(container, _)| Entry::RolloutResumed {
                    container: container.clone(),
                    at: wall,
                });
                resumed.collect()
            }
            Ask::PoweredOff { machine } => {
                let machine_id = self.machines[machine].spec.machine_id.clone();
                let is_there = draft.world.machine(&machine_id).is_some();
                if !self.machines[machine].is_lost || !is_there {
                    vec![]
                } else {
                    vec![Entry::MachineRemoved {
                        machine_id,
                        how: Removal::PoweredOff,
                        at: wall,
                    }]
                }
            }
        };
        for entry in entries {
            if let Entry::MachineRemoved { machine_id, .. } = &entry {
                self.schedulers[at].observed.machines.remove(machine_id);
            }
            if !draft.append(&self.schedulers[at].observed, entry) {
                break;
            }
        }
        draft.replies.written.push((number, from..draft.entries.len()));
    }

    /// What was asked for is durable, and whoever asked is told so.
    pub(super) fn answer_writes(&mut self, replies: &Replies, after: usize, entries: &[Entry]) {
        for (number, range) in &replies.written {
            let done = entries.get(range.clone()).unwrap_or_default();
            self.checkers.history.acknowledge(after + range.start, done);
            let Some(client) = self.clients.get_mut(number).filter(|client| !client.is_done) else {
                continue;
            };
            client.is_done = true;
            if let Ask::PoweredOff { machine } = client.ask {
                self.renew(machine);
                continue;
            }
            for entry in done {
                if let Entry::MachineRemoved { machine_id, .. } = entry {
                    self.retire(&machine_id.clone());
                }
            }
        }
    }

    /// A removed machine ends; later another one of its name may come, with an empty disk.
    fn retire(&mut self, id: &MachineId) {
        let is_it = |machine: &super::node::Machine| machine.spec.machine_id == *id;
        let Some(machine) = self.machines.iter().position(is_it) else {
            return;
        };
        if self.machines[machine].is_lost {
            return;
        }
        if self.machines[machine].is_powered {
            self.power_off(machine);
        }
        self.renew(machine);
    }

    pub(super) fn renew(&mut self, machine: usize) {
        self.machines[machine].wipe();
        self.machines[machine].is_lost = false;
        self.checkers.forgot(machine);
        let delay = self.machines[machine].chance.range(2000..=20_000);
        self.after(delay, Event::PowerOn { machine });
    }
}

/// What a user does to what is there.
fn anything(world: &World, chance: &mut Chance, at: Timestamp, now_ms: u64) -> Vec<Entry> {
    match chance.range(0..=99) {
        0..=5 => limit_groups(world, chance, at),
        6..=20 => on_machine(world, chance, at),
        _ => on_container(world, chance, at, now_ms),
    }
}

fn on_container(world: &World, chance: &mut Chance, at: Timestamp, now_ms: u64) -> Vec<Entry> {
    let name = NAMES[chance.index(NAMES.len())];
    let container = ContainerName::new(name).expect("a valid name");
    let known = world.container(&container);
    let Some(known) = known.filter(|known| known.deleted_since.is_none()) else {
        let stateful = chance.percent(45);
        return vec![world.put(declare(chance, name, stateful), at)];
    };
    if chance.percent(15) {
        return on_rollout(container, known, chance, at);
    }
    let is_stopped = known.stopped_since.is_some();
    let mut spec = known.declared().clone();
    match chance.range(0..=11) {
        0..=2 if !spec.stateful && chance.percent(30) => spec.scale = scaled(chance),
        0..=2 => spec.scale = Scale::Replicas(chance.small(1..=6)),
        3 | 4 => spec.image = IMAGES[chance.index(IMAGES.len())].into(),
        5 => {
            let desired = Cpu::from_micros(chance.range(1..=6) * 250_000);
            spec.resources.cpu = CpuRange {
                min: desired,
                desired,
            };
            if let Some(gpu) = &mut spec.resources.gpu {
                want_gpus(chance, gpu);
            }
        }
        6 => {
            spec.disruption_budget = Some(DisruptionBudget {
                max_unavailable: chance.small(0..=3),
            });
        }
        11 => spec.placement = placement(chance),
        7 if !is_stopped => return vec![Entry::ContainerStopped { container, at }],
        8 => return vec![Entry::ContainerDeleted { container, at }],
        _ if is_stopped => return vec![Entry::ContainerStarted { container, at }],
        _ => {
            spec.env.insert("N".into(), now_ms.to_string());
        }
    }
    if spec == *known.declared() {
        return vec![];
    }
    vec![world.put(spec, at)]
}

/// Pauses what is rolled out, goes on with it, goes back, or tries again what was rolled back.
fn on_rollout(container: ContainerName, known: &Container, chance: &mut Chance, at: Timestamp) -> Vec<Entry> {
    let turned = |to, turn| {
        Entry::RolloutTurned(RolloutTurned {
            container: container.clone(),
            revision: known.revision + 1,
            to,
            turn,
            reason: None,
            at,
        })
    };
    let entry = if known.is_paused() {
        Some(Entry::RolloutResumed { container, at })
    } else if known.open_rollout().is_some() && chance.percent(60) {
        Some(Entry::RolloutPaused { container, at })
    } else if known.declared.is_some() && chance.percent(50) {
        Some(turned(known.revision, RolloutTurn::Retried))
    } else {
        rollout::undo(known).map(|to| turned(to, RolloutTurn::Undone))
    };
    entry.into_iter().collect()
}

/// The groups may have other numbers of machines: fewer than there are, too.
fn limit_groups(world: &World, chance: &mut Chance, at: Timestamp) -> Vec<Entry> {
    let mut groups: Vec<CapacityGroup> = world.spec().capacity_groups.clone();
    for group in &mut groups {
        group.max_size = chance.small(1..=5);
    }
    vec![Entry::GroupsChanged { groups, at }]
}

fn on_machine(world: &World, chance: &mut Chance, at: Timestamp) -> Vec<Entry> {
    let ids: Vec<&MachineId> = world.machines().keys().collect();
    let Some(id) = chance.pick(&ids) else {
        return vec![];
    };
    let machine = world.machine(id).expect("it was listed");
    let machine_id = (*id).clone();
    if machine.draining_since.is_none() {
        let draining = Entry::MachineDraining {
            machine_id: machine_id.clone(),
            at,
        };
        let from = at.plus(Duration::from_millis(chance.range(0..=60_000)));
        let forced = Entry::MachineDrainForced { machine_id, from, at };
        return if chance.percent(30) {
            vec![draining, forced]
        } else {
            vec![draining]
        };
    }
    if machine.replicas.is_empty() && chance.percent(50) {
        let how = Removal::Empty;
        return vec![Entry::MachineRemoved { machine_id, how, at }];
    }
    if chance.percent(40) {
        let from = at.plus(Duration::from_millis(chance.range(0..=5000)));
        return vec![Entry::MachineDrainForced { machine_id, from, at }];
    }
    vec![Entry::MachineDrainCancelled { machine_id, at }]
}
