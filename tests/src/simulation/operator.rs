//! What the seed does to the cluster: a list of actions, each with random numbers of its own, so that one can be left out
//! and the others stay what they are. Half of them are operations ([`super::operations`]), half are faults.

use super::chance::Chance;
use super::operations::Ask;
use super::weather::{IMAGES, NAMES, ZONES};
use super::{Event, Simulation};

/// When each action happens; its number is its place.
pub(super) fn plan(chance: &mut Chance, ends_at: u64, pace_max_ms: u64) -> Vec<u64> {
    let mut times = vec![];
    let mut at = 1000;
    while at < ends_at {
        times.push(at);
        at += chance.range(20..=pace_max_ms);
    }
    times
}

const HOUR_MS: u64 = 3_600_000;

impl Simulation {
    /// Something is done, good or bad.
    pub(super) fn act(&mut self, number: u32) {
        let mut chance = Chance::of(self.seed, 1_000_000 + u64::from(number));
        self.acted.push(number);
        self.note(|| format!("action {number}"));
        if chance.percent(50) {
            self.ask(chance, Ask::Anything);
        } else {
            self.summary.faults += 1;
            self.fault(chance);
        }
    }

    fn fault(&mut self, mut chance: Chance) {
        let machine = chance.index(self.machines.len());
        match chance.range(0..=29) {
            0..=3 => self.restart_daemon(machine, &mut chance),
            4..=6 => self.hurt_scheduler(&mut chance),
            7..=9 => {
                let both = chance.percent(60);
                let up = chance.percent(50);
                self.cut(machine, (both || up, both || !up), chance.range(500..=60_000));
            }
            10 | 11 => self.lose_power(machine, &mut chance),
            12..=15 => self.hurt_process(&mut chance),
            16 | 17 => {
                self.machines[machine].host.is_runtime_down = true;
                self.note(|| format!("m{machine} the runtime hangs"));
                self.after(chance.range(500..=20_000), Event::RuntimeUp { machine });
            }
            18 => {
                let image = IMAGES[chance.index(3)].to_owned();
                if !self.weather.missing.remove(&image) {
                    self.weather.missing.insert(image);
                }
            }
            19..=21 => self.repeat_set(machine, &mut chance),
            22 => self.ask(chance, Ask::Epoch),
            23 | 24 => self.jump_clock(machine, &mut chance),
            25 => {
                let slowness = chance.range(1..=12);
                self.note(|| format!("m{machine} is {slowness} times slower"));
                self.machines[machine].slowness = slowness;
            }
            26 => {
                let until = self.now + chance.range(500..=40_000);
                self.note(|| format!("m{machine} the daemon is paused until {until}"));
                self.machines[machine].paused_until = until;
            }
            27 => self.fail_zone(&mut chance),
            28 => {
                // A storm: many users at once.
                for turn in 0..chance.range(10..=40) {
                    let own = Chance::of(chance.next(), turn);
                    self.ask(own, Ask::Anything);
                }
            }
            _ => {
                let name = NAMES[chance.index(NAMES.len())].to_owned();
                let load = chance.range(0..=24) * 250_000;
                self.note(|| format!("the load of {name} is {load} micros"));
                self.weather.loads.insert(name, load);
            }
        }
    }

    fn restart_daemon(&mut self, machine: usize, chance: &mut Chance) {
        if !self.machines[machine].is_powered {
            return;
        }
        self.kill_daemon(machine);
        if chance.percent(15) {
            self.note(|| format!("m{machine} the ledger is lost"));
            self.machines[machine].lose_ledger();
            self.checkers.forgot(machine);
        }
        self.start_daemon_after(machine, 5000);
    }

    /// One of the schedulers dies, stops for a while, is cut off from its store, or hands the cluster over.
    fn hurt_scheduler(&mut self, chance: &mut Chance) {
        let count = self.schedulers.len();
        let owner = self.store.owner().map(|owner| owner.scheduler);
        let at = owner
            .filter(|_| chance.percent(80))
            .unwrap_or_else(|| chance.index(count));
        let is_shared = count > 1;
        match chance.range(0..=5) {
            3 if is_shared => {
                self.note(|| format!("s{at} is cut off from the store"));
                self.schedulers[at].is_cut_off = true;
                self.after(chance.range(1000..=40_000), Event::StoreUp { scheduler: at });
            }
            4 => {
                let until = self.now + chance.range(200..=25_000);
                self.note(|| format!("s{at} is paused until {until}"));
                self.schedulers[at].paused_until = until;
            }
            5 if is_shared => self.hand_over(at),
            _ => {
                self.scheduler_crash(at);
                let delay = chance.range(50..=20_000);
                self.after(delay, Event::SchedulerStart { scheduler: at });
            }
        }
    }

    fn hand_over(&mut self, at: usize) {
        if let Some((fence, _)) = self.schedulers[at].tenure {
            self.note(|| format!("s{at} hands the cluster over"));
            self.leave_cluster(at);
            self.store.release(fence);
        }
    }

    fn cut(&mut self, machine: usize, (up, down): (bool, bool), for_ms: u64) {
        self.machines[machine].is_cut_up = up;
        self.machines[machine].is_cut_down = down;
        self.note(|| format!("m{machine} is cut off"));
        self.after(for_ms, Event::Mend { machine });
    }

    fn lose_power(&mut self, machine: usize, chance: &mut Chance) {
        if !self.machines[machine].is_powered {
            return;
        }
        self.power_off(machine);
        if chance.percent(30) {
            self.machines[machine].is_lost = true;
            let delay = chance.range(5000..=60_000);
            self.after(delay, Event::Mend { machine });
        } else {
            let delay = chance.range(2000..=60_000);
            self.after(delay, Event::PowerOn { machine });
        }
    }

    /// A whole zone is without power or network.
    fn fail_zone(&mut self, chance: &mut Chance) {
        let zone = ZONES[chance.index(ZONES.len())];
        let is_power = chance.percent(50);
        self.note(|| format!("zone {zone} fails"));
        for machine in 0..self.machines.len() {
            if self.machines[machine].spec.zone.as_str() != zone {
                continue;
            }
            if is_power {
                self.lose_power(machine, chance);
            } else {
                self.cut(machine, (true, true), chance.range(10_000..=60_000));
            }
        }
    }

    /// A wall clock is set forward or back by up to an hour, or right again.
    fn jump_clock(&mut self, machine: usize, chance: &mut Chance) {
        let by = i64::try_from(chance.range(0..=2 * HOUR_MS)).expect("two hours");
        let offset = by - i64::try_from(HOUR_MS).expect("an hour");
        let offset = if chance.percent(20) { 0 } else { offset };
        if chance.percent(50) {
            self.note(|| format!("the clock of m{machine} is off by {offset} ms"));
            self.machines[machine].wall_offset_ms = offset;
        } else {
            let at = chance.index(self.schedulers.len());
            self.note(|| format!("the clock of s{at} is off by {offset} ms"));
            self.schedulers[at].wall_offset_ms = offset;
        }
    }

    fn hurt_process(&mut self, chance: &mut Chance) {
        let pids: Vec<u32> = self.checkers.processes.keys().copied().collect();
        let Some(pid) = chance.pick(&pids).copied() else {
            return;
        };
        let process = self.checkers.processes.get_mut(&pid).expect("it was listed");
        let machine = process.machine;
        match chance.range(0..=2) {
            0 => process.is_sick = true,
            1 => self.exit(machine, pid, 137, true),
            _ => self.exit(machine, pid, 3, false),
        }
    }

    /// A set of this daemon's life comes once more, late.
    fn repeat_set(&mut self, machine: usize, chance: &mut Chance) {
        let Some(daemon) = &self.machines[machine].daemon else {
            return;
        };
        if let Some((position, bytes)) = chance.pick(&daemon.received).cloned() {
            self.note(|| format!("m{machine} gets {}.{} again", position.epoch, position.generation));
            self.offered(machine, position, bytes);
        }
    }

    /// The line is joined again; a machine that is off for good is reported so, and replaced.
    pub(super) fn mend(&mut self, machine: usize) {
        self.machines[machine].is_cut_up = false;
        self.machines[machine].is_cut_down = false;
        let is_asked = self.clients.values().any(|client| client.is_about(machine));
        if self.machines[machine].is_lost && !is_asked {
            let chance = Chance::of(self.seed, 3_000_000 + self.numbered);
            self.ask(chance, Ask::PoweredOff { machine });
        }
    }
}
