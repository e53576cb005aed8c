//! The end of a run: all faults are mended, nobody does anything any more, and the cluster must come to rest where it
//! should be.

use std::collections::BTreeMap;

use berth_api::container::ContainerSpec;
use berth_api::id::{ContainerName, ReplicaId};
use berth_api::replica::{ReplicaStatus, Usage};
use berth_api::units::Cpu;
use berth_scheduler::reconcile::WaitReason;
use berth_scheduler::world::World;

use super::{Event, Rule, Simulation};

/// Virtual time from the end of faults until everything must be at rest: the longest back-off (5 min and a fifth), for a
/// replica that waits for another one's, and the freeze of 15 min that the loss of most machines may bring.
const REST_MAX_MS: u64 = 1_800_000;
/// It must stay at rest for this long.
const REST_HOLDS_MS: u64 = 35_000;
/// By then the last request of before has come, or never will.
const LAST_ASK_MS: u64 = 60_000;
const SAMPLE_MS: u64 = 5_000;

impl Simulation {
    /// Everything is mended; nobody does anything any more.
    pub(super) fn calm(&mut self) {
        self.note(|| "faults are over".into());
        self.weather.is_calm = true;
        self.weather.missing.clear();
        for scheduler in 0..self.schedulers.len() {
            self.schedulers[scheduler].is_cut_off = false;
            self.schedulers[scheduler].wall_offset_ms = 0;
            self.after(100, Event::SchedulerStart { scheduler });
        }
        for machine in 0..self.machines.len() {
            self.after(500, Event::Mend { machine });
            self.after(1000, Event::PowerOn { machine });
            let mended = &mut self.machines[machine];
            mended.host.is_runtime_down = false;
            mended.slowness = 1;
            mended.wall_offset_ms = 0;
        }
        for process in self.checkers.processes.values_mut() {
            process.heal();
        }
        self.after(LAST_ASK_MS, Event::Resume);
    }

    pub(super) fn sample(&mut self) {
        self.samples += 1;
        if self.samples.is_multiple_of(4) {
            self.check_explanations();
        }
        if self.weather.is_calm {
            let calm_ms = self.now - self.weather.ends_at;
            let moves = self.checkers.history.moves;
            let is_moving = std::mem::replace(&mut self.moves_seen, moves) != moves;
            match self.unrest() {
                None if !is_moving => {
                    let since = *self.weather.rest_since.get_or_insert(self.now);
                    if self.now - since >= REST_HOLDS_MS {
                        self.check_end();
                        self.weather.is_over = true;
                    }
                }
                unrest if calm_ms > REST_MAX_MS => {
                    let text = unrest.unwrap_or_else(|| "replicas come and go without end".into());
                    self.checkers.broke(Rule::Convergence, text);
                }
                // What waits for room may go on when room comes.
                _ => self.weather.rest_since = None,
            }
        }
        self.after(SAMPLE_MS, Event::Sample);
    }

    fn check_end(&mut self) {
        let at = self.serving().expect("a cluster without an owner is not at rest");
        let world = self.schedulers[at].world.clone().expect("it serves the cluster");
        self.check_replay(&world);
        if let Err((rule, text)) = self.checkers.history.survives(&self.store.log, &world) {
            self.checkers.broke(rule, text);
        }
    }

    /// What is not yet as it should be.
    fn unrest(&self) -> Option<String> {
        if let Some(machine) = self.machines.iter().position(|machine| !machine.is_powered) {
            return Some(format!("m{machine} is off"));
        }
        let Some(at) = self.serving() else {
            return Some("nobody serves the cluster".into());
        };
        let scheduler = &self.schedulers[at];
        let world = scheduler.world.as_ref().expect("it serves the cluster");
        let mut running: BTreeMap<&ContainerName, Vec<&ReplicaId>> = BTreeMap::new();
        for process in self.checkers.processes.values() {
            let id = &process.replica_id;
            let Some(replica) = world.replica(id) else {
                return Some(format!("{id} runs on m{} and nobody wants it", process.machine));
            };
            let placed_on = &self.machines[process.machine].spec.machine_id;
            if replica.machine_id != *placed_on || !replica.is_live() {
                return Some(format!("{id} runs on m{} and should not", process.machine));
            }
            if self.checkers.holds(id) != Some(process.held) {
                return Some(format!(
                    "{id} may use {:?} and holds something else",
                    process.held
                ));
            }
            if replica.ordinal != process.ordinal || replica.container != process.container {
                return Some(format!("{id} is another's process"));
            }
            running.entry(&process.container).or_default().push(id);
        }
        for (name, container) in world.containers() {
            if container.is_paused() {
                return Some(format!("{name} is paused"));
            }
            let ids = running.remove(name).unwrap_or_default();
            let is_done = ids.len() == usize::try_from(container.wanted()).expect("few replicas");
            let all_new = self
                .checkers
                .processes
                .values()
                .filter(|process| process.container == *name)
                .all(|process| process.image == container.spec.image);
            if container.deleted_since.is_some() {
                return Some(format!("{name} is deleted and still there"));
            }
            let state = world.replicas_of(name).find(|replica| {
                !scheduler
                    .observed
                    .status(replica)
                    .is_some_and(|status| status.ready)
            });
            if is_done && all_new && state.is_none() {
                continue;
            }
            if let Some(text) = self.excuse(at, name, &container.spec) {
                return Some(format!(
                    "{name} wants {} of {}, runs {ids:?}, {state:?}: {text}",
                    container.wanted(),
                    container.spec.image
                ));
            }
        }
        if let Some(name) = running.keys().next() {
            return Some(format!("{name} runs and is not declared"));
        }
        self.left_over(world)
    }

    fn left_over(&self, world: &World) -> Option<String> {
        self.machines.iter().enumerate().find_map(|(index, machine)| {
            let ids = machine.host.containers.keys();
            let mut ids = ids.filter(|id| {
                let replica = world.replica(id);
                replica.is_none_or(|replica| replica.machine_id != machine.spec.machine_id)
            });
            Some(format!("a container of {} is left on m{index}", ids.next()?))
        })
    }

    /// Whether a container may rest as it is because there is no room: the scheduler must say so, and our own sums too.
    /// Gives what is wrong with the excuse.
    fn excuse(&self, at: usize, name: &ContainerName, spec: &ContainerSpec) -> Option<String> {
        let scheduler = &self.schedulers[at];
        let waits = || scheduler.report.waits.iter();
        let says_so = waits().any(|wait| {
            wait.container == *name
                && matches!(wait.reason, WaitReason::NoPlace(_) | WaitReason::NoRoomToMove(_))
        });
        // Its users let no drain take a replica away; what runs there stays, outdated or not.
        let is_withheld = spec
            .disruption_budget
            .is_some_and(|budget| budget.max_unavailable == 0)
            && waits()
                .any(|wait| wait.container == *name && matches!(wait.reason, WaitReason::Budget { .. }));
        if is_withheld {
            return None;
        }
        if !says_so {
            let reasons: Vec<String> = waits()
                .map(|wait| format!("{} waits for {}", wait.container, wait.reason))
                .collect();
            return Some(format!("no excuse: {reasons:?}"));
        }
        let has_host_port = spec.load_balancer_target.is_some();
        let zones_bind = spec.volumes.iter().any(|volume| volume.volume.zone().is_some());
        if has_host_port || zones_bind {
            return None;
        }
        let free = self.machines.iter().find(|machine| {
            let id = &machine.spec.machine_id;
            machine.spec.capacity_group == spec.capacity_group
                && scheduler
                    .world
                    .as_ref()
                    .and_then(|world| world.machine(id))
                    .is_some_and(|known| known.draining_since.is_none())
                && self.checkers.has_room(id, spec)
        });
        free.map(|machine| format!("there is room on {}", machine.spec.machine_id))
    }

    /// Says what the replicas of a machine use: the load of their container, shared by all that run, and no more than each
    /// may have.
    pub(super) fn measure(&mut self, machine: usize, statuses: &mut [ReplicaStatus]) {
        if self.weather.loads.is_empty() {
            return;
        }
        for status in statuses {
            let Some(pid) = self.machines[machine].host.running_pid(&status.replica_id) else {
                continue;
            };
            let Some(process) = self.checkers.processes.get(&pid) else {
                continue;
            };
            let Some(load) = self.weather.loads.get(process.container.as_str()) else {
                continue;
            };
            let all = self.checkers.processes.values();
            let sharers = all.filter(|other| other.container == process.container).count();
            let share = load / u64::try_from(sharers.max(1)).expect("few processes");
            let cpu = Cpu::from_micros(share.min(process.held[0]));
            if !self.machines[machine]
                .chance
                .percent(self.weather.unmeasured_percent())
            {
                status.usage = Some(Usage {
                    cpu,
                    memory: berth_api::units::Bytes::new(process.held[1] / 2),
                    http: None,
                });
            }
        }
    }
}
