//! Runs the trace against a fleet. Keeps its own account of every machine, and refuses a decision that does not fit.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use berth_api::time::monotonic;
use berth_scheduler::placement::repack::{
    Amounts, Budget, Door, Machine, Movable, Replica, Set, Snapshot, Stateful, plan,
};

use super::policy::{Policy, Room, Rule};
use super::trace::{Event, Flavour, Trace};

/// Seconds between two repacks, and between two samples.
const HOUR: u64 = 3600;
/// Work of one repack, in looks at a machine.
const REPACK_STEPS: u64 = 8_000_000;

/// How many machines there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// A machine is bought when nothing fits, and given back when it is empty.
    Elastic,
    /// So many, always; what does not fit is refused and gone.
    Fixed(usize),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) rule: Rule,
    pub(super) size: Size,
    /// Moves of each hour, in thousandths of the replicas that run; nought for none.
    pub(super) moves_permille: u64,
}

#[derive(Debug, Default)]
pub(super) struct Result {
    pub(super) machine_seconds: u64,
    /// Of the volume bound, over the same time.
    pub(super) bound_seconds: u64,
    pub(super) machines_most: usize,
    pub(super) arrived: u64,
    pub(super) refused: u64,
    /// Millionths of a vCPU of all that arrived and of what was refused.
    pub(super) arrived_cpu: u64,
    pub(super) refused_cpu: u64,
    pub(super) moves: u64,
    pub(super) bytes: u64,
    pub(super) freed: u64,
    /// Time that each decision took, in nanoseconds, in order of size.
    pub(super) nanos: Vec<u64>,
    pub(super) repacks: Vec<Duration>,
    pub(super) samples: Vec<Sample>,
}

/// The fleet at one time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sample {
    pub(super) seconds: u64,
    pub(super) occupied: usize,
    pub(super) empty: usize,
    pub(super) bound: usize,
    /// Free on machines in use, and the part of it where the other dimension is too short for the commonest flavour.
    pub(super) free_cpu: u64,
    pub(super) stranded_cpu: u64,
    pub(super) free_memory: u64,
    pub(super) stranded_memory: u64,
}

struct Fleet<'a> {
    trace: &'a Trace,
    profile: Flavour,
    run: Run,
    policy: Policy,
    rooms: Vec<Room>,
    holds: Vec<u32>,
    at: Vec<Option<usize>>,
    running: Vec<usize>,
    /// Where in `running` each is.
    position: Vec<usize>,
    occupied: usize,
    cpu: u64,
    memory: u64,
    commonest: Flavour,
    result: Result,
}

/// Runs the trace until `end` (seconds, as in the trace).
pub(super) fn run(trace: &Trace, profile: Flavour, run: Run, end: u64) -> anyhow::Result<Result> {
    let machines = match run.size {
        Size::Elastic => 1 << 13,
        Size::Fixed(machines) => machines,
    };
    let is_on = run.size != Size::Elastic;
    let mut fleet = Fleet {
        trace,
        profile,
        run,
        policy: Policy::new(run.rule, machines, profile, &trace.flavours),
        rooms: vec![
            Room {
                cpu: profile.cpu,
                memory: profile.memory,
                is_on: false
            };
            machines
        ],
        holds: vec![0; machines],
        at: vec![None; trace.vms.len()],
        running: vec![],
        position: vec![0; trace.vms.len()],
        occupied: 0,
        cpu: 0,
        memory: 0,
        commonest: commonest(trace),
        result: Result::default(),
    };
    if is_on {
        for machine in 0..machines {
            fleet.switch(machine, true);
        }
    }
    let (mut now, mut hour) = (trace.begin, trace.begin + HOUR);
    for (time, event) in &trace.events {
        while hour <= *time && hour <= end {
            fleet.pass(&mut now, hour);
            fleet.hourly(hour)?;
            hour += HOUR;
        }
        if *time >= end {
            break;
        }
        fleet.pass(&mut now, *time);
        match *event {
            Event::Arrives(vm) => fleet.arrive(vm)?,
            Event::Departs(vm) => fleet.depart(vm),
        }
    }
    fleet.pass(&mut now, end);
    fleet.result.nanos.sort_unstable();
    Ok(fleet.result)
}

fn commonest(trace: &Trace) -> Flavour {
    let mut counts = vec![0_u64; trace.flavours.len()];
    for vm in &trace.vms {
        counts[vm.flavour] += 1;
    }
    let most = (0..counts.len()).max_by_key(|flavour| counts[*flavour]);
    trace.flavours[most.expect("there are flavours")]
}

impl Fleet<'_> {
    fn bound(&self) -> usize {
        let machines = self
            .cpu
            .div_ceil(self.profile.cpu)
            .max(self.memory.div_ceil(self.profile.memory));
        usize::try_from(machines).expect("fewer than there are replicas")
    }

    fn pass(&mut self, now: &mut u64, until: u64) {
        let seconds = until - *now;
        let count = |machines: usize| u64::try_from(machines).expect("machines can be counted");
        self.result.machine_seconds += seconds * count(self.occupied);
        self.result.bound_seconds += seconds * count(self.bound());
        *now = until;
    }

    fn switch(&mut self, machine: usize, is_on: bool) {
        self.rooms[machine].is_on = is_on;
        self.policy.switch(machine, is_on);
    }

    fn arrive(&mut self, vm: usize) -> anyhow::Result<()> {
        let flavour = self.trace.vms[vm].flavour;
        let asked = self.trace.flavours[flavour].cpu;
        self.result.arrived += 1;
        self.result.arrived_cpu += asked;
        let start: Instant = monotonic();
        let chosen = self.policy.choose(flavour, &self.rooms);
        let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.result.nanos.push(nanos);
        let machine = match (chosen, self.run.size) {
            (Some(machine), _) => machine,
            (None, Size::Fixed(_)) => {
                self.result.refused += 1;
                self.result.refused_cpu += asked;
                return Ok(());
            }
            (None, Size::Elastic) => {
                let Some(machine) = self.rooms.iter().position(|room| !room.is_on) else {
                    bail!("the trace needs more than {} machines", self.rooms.len());
                };
                self.switch(machine, true);
                machine
            }
        };
        self.put(vm, machine)?;
        self.position[vm] = self.running.len();
        self.running.push(vm);
        let Flavour { cpu, memory } = self.trace.flavours[flavour];
        (self.cpu, self.memory) = (self.cpu + cpu, self.memory + memory);
        self.result.machines_most = self.result.machines_most.max(self.occupied);
        Ok(())
    }

    fn depart(&mut self, vm: usize) {
        // One that was refused never came.
        if self.at[vm].is_none() {
            return;
        }
        self.lift(vm);
        let Flavour { cpu, memory } = self.trace.flavours[self.trace.vms[vm].flavour];
        (self.cpu, self.memory) = (self.cpu - cpu, self.memory - memory);
        let position = self.position[vm];
        self.running.swap_remove(position);
        if let Some(other) = self.running.get(position) {
            self.position[*other] = position;
        }
    }

    fn put(&mut self, vm: usize, machine: usize) -> anyhow::Result<()> {
        let flavour = self.trace.vms[vm].flavour;
        let Flavour { cpu, memory } = self.trace.flavours[flavour];
        let room = &mut self.rooms[machine];
        let fits = room.is_on && cpu <= room.cpu && memory <= room.memory;
        ensure!(fits, "{vm} does not fit on machine {machine}");
        (room.cpu, room.memory) = (room.cpu - cpu, room.memory - memory);
        self.policy.take(flavour, machine);
        self.occupied += usize::from(self.holds[machine] == 0);
        self.holds[machine] += 1;
        self.at[vm] = Some(machine);
        Ok(())
    }

    fn lift(&mut self, vm: usize) {
        let flavour = self.trace.vms[vm].flavour;
        let machine = self.at[vm].take().expect("who leaves is there");
        let Flavour { cpu, memory } = self.trace.flavours[flavour];
        let room = &mut self.rooms[machine];
        (room.cpu, room.memory) = (room.cpu + cpu, room.memory + memory);
        self.policy.release(flavour, machine);
        self.holds[machine] -= 1;
        if self.holds[machine] == 0 {
            self.occupied -= 1;
            if self.run.size == Size::Elastic {
                self.switch(machine, false);
            }
        }
    }

    fn hourly(&mut self, seconds: u64) -> anyhow::Result<()> {
        if self.run.moves_permille > 0 {
            self.repack()?;
        }
        let mut sample = Sample {
            seconds,
            occupied: self.occupied,
            bound: self.bound(),
            ..Sample::default()
        };
        for (room, holds) in self.rooms.iter().zip(&self.holds) {
            if *holds == 0 {
                sample.empty += usize::from(room.is_on);
                continue;
            }
            sample.free_cpu += room.cpu;
            sample.free_memory += room.memory;
            if room.memory < self.commonest.memory {
                sample.stranded_cpu += room.cpu;
            }
            if room.cpu < self.commonest.cpu {
                sample.stranded_memory += room.memory;
            }
        }
        self.result.samples.push(sample);
        Ok(())
    }

    /// Moves are made in the order of the plan, in no time.
    fn repack(&mut self) -> anyhow::Result<()> {
        let count = u64::try_from(self.running.len())?;
        let budget = Budget {
            moves: u32::try_from(count * self.run.moves_permille / 1000)?,
            bytes: u64::MAX,
            in_flight: 64,
            stateful: Stateful::Stay,
            move_price: 0,
            steps: REPACK_STEPS,
        };
        let used = self
            .rooms
            .iter()
            .rposition(|room| room.is_on)
            .map_or(0, |last| last + 1);
        let capacity = Amounts {
            cpu: self.profile.cpu,
            memory: self.profile.memory,
            ..Amounts::default()
        };
        let machines = self.rooms[..used].iter().map(|room| {
            let door = if room.is_on { Door::Open } else { Door::Shut };
            Machine {
                capacity,
                zone: 0,
                kind: 0,
                cost: 1,
                door,
            }
        });
        let sets = self
            .running
            .iter()
            .map(|vm| self.trace.vms[*vm].batch)
            .max()
            .map_or(0, |last| last + 1);
        let snapshot = Snapshot {
            machines: machines.collect(),
            replicas: self.running.iter().map(|vm| self.replica(*vm)).collect(),
            sets: vec![
                Set {
                    per_machine: u32::MAX
                };
                sets
            ],
        };
        let start = monotonic();
        let plan = plan(&snapshot, &budget).map_err(|faults| anyhow::anyhow!("{}", faults[0]))?;
        self.result.repacks.push(start.elapsed());
        for step in &plan.moves {
            let vm = self.running[step.replica];
            ensure!(
                self.at[vm] == Some(step.from),
                "{vm} is not where the plan has it"
            );
            self.lift(vm);
            self.put(vm, step.to)?;
        }
        ensure!(
            plan.freed.iter().all(|machine| self.holds[*machine] == 0),
            "a freed machine holds something"
        );
        self.result.moves += u64::try_from(plan.moves.len())?;
        self.result.bytes += plan.bytes;
        self.result.freed += u64::try_from(plan.freed.len())?;
        Ok(())
    }

    fn replica(&self, vm: usize) -> Replica {
        let Flavour { cpu, memory } = self.trace.flavours[self.trace.vms[vm].flavour];
        Replica {
            needs: Amounts {
                cpu,
                memory,
                ..Amounts::default()
            },
            set: self.trace.vms[vm].batch,
            machine: self.at[vm].expect("it runs"),
            movable: Movable::Freely,
            bytes: memory,
            kinds: vec![],
            zones: vec![],
            host_ports: vec![],
        }
    }
}
