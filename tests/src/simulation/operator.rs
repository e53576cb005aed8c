//! What the seed does to the cluster: operations of users, faults of machines and network, and their end. When all is
//! mended, it waits for the cluster to come to rest and says whether that is where it should be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use berth_api::cluster::Gpu;
use berth_api::container::{
    ContainerSpec, CpuRange, HealthCheck, LoadBalancerTarget, MemoryRange, ProbeMethod, Resources, Scale,
};
use berth_api::id::{ContainerName, GroupId, MachineId, ReplicaId, Zone};
use berth_api::machine::{
    CpuCapacity, GpuCapacity, MachineCapacity, MachineSpec, MemoryCapacity, StorageCapacity,
};
use berth_api::units::{Bytes, Cpu};
use berth_api::volume::{OrdinalVolume, VolumeTarget};
use berth_node::replica::Step;
use berth_scheduler::entry::{Entry, Removal};
use berth_scheduler::reconcile::WaitReason;

use super::chance::Chance;
use super::checkers::wanted_by;
use super::node::Machine;
use super::scheduler::GROUPS;
use super::{Event, Fails, Rule, Simulation};

/// Names that users give.
const NAMES: [&str; 5] = ["api", "db", "queue", "reader", "writer"];
const ZONES: [&str; 2] = ["z1", "z2"];
const IMAGES: [&str; 4] = ["app:1", "app:2", "app:3", "app:missing"];
const GPU_KIND: &str = "nvidia-t4";
/// Virtual time from the end of faults until everything must be at rest: the longest back-off (5 min and a fifth), for a
/// replica that waits for another one's, and the freeze of 15 min that the loss of most machines may bring.
const REST_MAX_MS: u64 = 1_800_000;
/// It must stay at rest for this long.
const REST_HOLDS_MS: u64 = 35_000;
const SAMPLE_MS: u64 = 5_000;

/// How bad it is, and until when.
#[derive(Debug)]
pub(super) struct Weather {
    is_calm: bool,
    ends_at: u64,
    rest_since: Option<u64>,
    is_over: bool,
    delay_max_ms: u64,
    step_fail_percent: u32,
    slow_percent: u32,
    crash_percent: u32,
    pace_max_ms: u64,
    missing: BTreeSet<String>,
}

impl Weather {
    pub(super) fn new(chance: &mut Chance) -> Self {
        Self {
            is_calm: false,
            ends_at: chance.range(30_000..=110_000),
            rest_since: None,
            is_over: false,
            delay_max_ms: chance.range(5..=400),
            step_fail_percent: chance.small(0..=12),
            slow_percent: chance.small(0..=8),
            crash_percent: chance.small(0..=6),
            pace_max_ms: chance.range(800..=4000),
            missing: BTreeSet::from(["app:missing".to_owned()]),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    pub(super) fn is_missing(&self, image: &str) -> bool {
        self.missing.contains(image)
    }

    pub(super) fn delay_max_ms(&self) -> u64 {
        if self.is_calm { 20 } else { self.delay_max_ms }
    }

    pub(super) fn crash_percent(&self) -> u32 {
        if self.is_calm { 0 } else { self.crash_percent }
    }

    pub(super) fn stubborn_percent(&self) -> u32 {
        if self.is_calm { 0 } else { 5 }
    }

    /// Exits that the daemon is not told of.
    pub(super) fn lost_percent(&self) -> u32 {
        if self.is_calm { 0 } else { 3 }
    }

    pub(super) fn step_fails(&self, chance: &mut Chance) -> Option<Fails> {
        if self.is_calm || !chance.percent(self.step_fail_percent) {
            return None;
        }
        Some(if chance.percent(50) {
            Fails::Before
        } else {
            Fails::After
        })
    }

    /// Milliseconds until a step takes effect, and from there until its daemon hears of it.
    pub(super) fn durations(&self, chance: &mut Chance, step: &Step) -> (u64, u64) {
        let usual_max = match step {
            Step::Prepare { .. } | Step::Pull { .. } => 2000,
            Step::Create { .. } | Step::Start { .. } | Step::Resize { .. } | Step::Delete | Step::Release => {
                100
            }
            Step::Signal { .. } => 20,
        };
        let slow = if !self.is_calm && chance.percent(self.slow_percent) {
            chance.range(1000..=20_000)
        } else {
            0
        };
        (chance.range(1..=usual_max) + slow, chance.range(1..=50))
    }
}

/// The machines of a run.
pub(super) fn machines(chance: &mut Chance) -> Vec<Machine> {
    let count = chance.range(2..=5);
    (0..count)
        .map(|index| {
            let is_gpu = index > 0 && chance.percent(25);
            let host = u8::try_from(index + 1).expect("few machines");
            Machine::new(MachineSpec {
                machine_id: MachineId::new(format!("m{index}")).expect("a valid id"),
                capacity_group: GroupId::new(GROUPS[usize::from(is_gpu)]).expect("a valid id"),
                zone: Zone::new(ZONES[chance.index(2)]).expect("a valid id"),
                vpc_ip: std::net::Ipv4Addr::new(10, 0, 0, host).into(),
                wireguard_public_key: String::new(),
                wireguard_endpoint: String::new(),
                capacity: MachineCapacity {
                    cpu: CpuCapacity {
                        total: Cpu::from_micros(chance.range(2..=8) * 1_000_000),
                        system_reserve: Cpu::from_micros(chance.range(0..=2) * 250_000),
                    },
                    memory: MemoryCapacity {
                        total: Bytes::gib(chance.range(4..=16)),
                        system_reserve: Bytes::mib(512),
                    },
                    ephemeral_storage: StorageCapacity {
                        total: Bytes::gib(chance.range(20..=60)),
                    },
                    gpu: is_gpu.then(|| GpuCapacity {
                        total: 2,
                        kind: GPU_KIND.into(),
                    }),
                },
                boot_id: None,
                labels: Default::default(),
            })
        })
        .collect()
}

/// A declaration that a user might write.
fn declare(chance: &mut Chance, name: &str, stateful: bool) -> ContainerSpec {
    let is_gpu = chance.percent(12);
    let cpu = chance.range(1..=6) * 250_000;
    let memory = chance.range(1..=8) * 256;
    let volume = |ordinal: u32, is_zonal: bool| {
        let disk = format!("disk-{name}-{ordinal}");
        OrdinalVolume {
            ordinal,
            volume: if is_zonal {
                VolumeTarget::Aws {
                    volume_id: disk,
                    zone: Zone::new(ZONES[usize::from(ordinal % 2 == 1)]).expect("a valid id"),
                }
            } else {
                VolumeTarget::Hostpath {
                    path: format!("/volumes/{disk}"),
                }
            },
            mount_path: None,
        }
    };
    let has_volumes = stateful && chance.percent(80);
    let is_zonal = chance.percent(30);
    ContainerSpec {
        name: ContainerName::new(name).expect("a valid name"),
        capacity_group: GroupId::new(GROUPS[usize::from(is_gpu)]).expect("a valid id"),
        image: IMAGES[chance.index(IMAGES.len() - 1)].into(),
        resources: Resources {
            cpu: CpuRange {
                min: Cpu::from_micros(cpu / 2),
                desired: Cpu::from_micros(cpu),
            },
            memory: MemoryRange {
                min: Bytes::mib(memory / 2),
                desired: Bytes::mib(memory),
            },
            ephemeral_storage: chance.percent(40).then(|| Bytes::gib(chance.range(1..=20))),
            gpu: is_gpu.then(|| Gpu {
                kind: GPU_KIND.into(),
                count: 1,
            }),
        },
        scale: Scale::Replicas(chance.small(1..=4)),
        stateful,
        ports: vec![8080],
        volumes: if has_volumes {
            (0..6).map(|ordinal| volume(ordinal, is_zonal)).collect()
        } else {
            vec![]
        },
        env: BTreeMap::new(),
        command: None,
        health_check: chance.percent(50).then(|| HealthCheck {
            path: "/health".into(),
            port: 8080,
            method: ProbeMethod::Get,
            timeout_seconds: 1,
            failure_threshold: chance.small(1..=3),
        }),
        load_balancer_target: (!stateful && chance.percent(20)).then(|| LoadBalancerTarget::Gcp {
            neg_name: "neg".into(),
        }),
        service_account: None,
        shared_mounts: vec![],
        rollback: None,
        links: vec![],
        disruption_budget: None,
        placement: None,
    }
}

impl Simulation {
    /// Something is done, good or bad; or all is mended.
    pub(super) fn operate(&mut self) {
        if self.now >= self.weather.ends_at {
            return self.calm();
        }
        if self.chance.percent(50) {
            self.summary.operations += 1;
            self.use_api();
        } else {
            self.summary.faults += 1;
            self.fault();
        }
        let pause = self.chance.range(20..=self.weather.pace_max_ms);
        self.after(pause, Event::Operator);
    }

    // Operations.

    fn use_api(&mut self) {
        if !self.scheduler.is_up {
            return;
        }
        if self.chance.percent(6) {
            return self.limit_groups();
        }
        let name = NAMES[self.chance.index(NAMES.len())];
        let at = self.wall_now();
        let container_name = ContainerName::new(name).expect("a valid name");
        let known = self.scheduler.world.container(&container_name);
        let entry = match known.filter(|known| known.deleted_since.is_none()) {
            None => {
                let stateful = self.chance.percent(45);
                let spec = declare(&mut self.chance, name, stateful);
                self.scheduler.world.put(spec, at)
            }
            Some(known) => {
                let is_stopped = known.stopped_since.is_some();
                let mut spec = known.spec.clone();
                match self.chance.range(0..=9) {
                    0..=2 => spec.scale = Scale::Replicas(self.chance.small(1..=6)),
                    3 | 4 => spec.image = IMAGES[self.chance.index(IMAGES.len())].into(),
                    5 => {
                        let desired = Cpu::from_micros(self.chance.range(1..=6) * 250_000);
                        spec.resources.cpu = CpuRange {
                            min: desired,
                            desired,
                        };
                    }
                    6 => return self.use_machine_api(),
                    7 if !is_stopped => {
                        let container = container_name;
                        return self.submit(Entry::ContainerStopped { container, at });
                    }
                    8 => {
                        let container = container_name;
                        return self.submit(Entry::ContainerDeleted { container, at });
                    }
                    _ if is_stopped => {
                        let container = container_name;
                        return self.submit(Entry::ContainerStarted { container, at });
                    }
                    _ => {
                        spec.env.insert("N".into(), self.now.to_string());
                    }
                }
                self.scheduler.world.put(spec, at)
            }
        };
        self.submit(entry);
    }

    /// The groups may have other numbers of machines: fewer than there are, too.
    fn limit_groups(&mut self) {
        let mut groups = self.scheduler.world.spec().capacity_groups.clone();
        for group in &mut groups {
            group.max_size = self.chance.small(1..=5);
        }
        let at = self.wall_now();
        self.submit(Entry::GroupsChanged { groups, at });
    }

    fn use_machine_api(&mut self) {
        let at = self.wall_now();
        let known: Vec<(MachineId, bool, bool)> = self
            .scheduler
            .world
            .machines()
            .iter()
            .map(|(id, machine)| {
                (
                    id.clone(),
                    machine.draining_since.is_some(),
                    machine.replicas.is_empty(),
                )
            })
            .collect();
        let Some((machine_id, is_draining, is_empty)) = self.chance.pick(&known).cloned() else {
            return;
        };
        if is_draining && is_empty && self.chance.percent(40) {
            return self.retire(&machine_id);
        }
        if is_draining && self.chance.percent(30) {
            let from = at.plus(Duration::from_millis(self.chance.range(0..=5000)));
            return self.submit(Entry::MachineDrainForced { machine_id, from, at });
        }
        self.submit(if is_draining {
            Entry::MachineDrainCancelled { machine_id, at }
        } else {
            Entry::MachineDraining { machine_id, at }
        });
    }

    /// An empty machine is removed and ends; later another one of its name may come, with an empty disk.
    fn retire(&mut self, id: &MachineId) {
        let at = self.wall_now();
        let Some(machine) = self
            .machines
            .iter()
            .position(|machine| machine.spec.machine_id == *id)
        else {
            return;
        };
        self.submit(Entry::MachineRemoved {
            machine_id: id.clone(),
            how: Removal::Empty,
            at,
        });
        if self.machines[machine].is_powered {
            self.power_off(machine);
        }
        self.renew(machine);
    }

    fn renew(&mut self, machine: usize) {
        self.machines[machine].wipe();
        self.machines[machine].is_lost = false;
        self.checkers.forgot(machine);
        let delay = self.chance.range(2000..=20_000);
        self.after(delay, Event::PowerOn { machine });
    }

    /// A request and the decision that follows from it are one batch.
    fn submit(&mut self, entry: Entry) {
        self.append(entry);
        self.decide_and_send();
    }

    // Faults.

    fn fault(&mut self) {
        let machine = self.chance.index(self.machines.len());
        match self.chance.range(0..=13) {
            0..=2 => self.restart_daemon(machine),
            3 => {
                if self.scheduler.is_up {
                    self.scheduler_crash();
                    let delay = self.chance.range(50..=20_000);
                    self.after(delay, Event::SchedulerStart);
                }
            }
            4 | 5 => {
                let both = self.chance.percent(60);
                let up = self.chance.percent(50);
                self.machines[machine].is_cut_up = both || up;
                self.machines[machine].is_cut_down = both || !up;
                self.note(|| format!("m{machine} is cut off"));
                let delay = self.chance.range(500..=60_000);
                self.after(delay, Event::Mend { machine });
            }
            6 => self.lose_power(machine),
            7 | 8 => self.hurt_process(),
            9 => {
                self.machines[machine].host.is_runtime_down = true;
                self.note(|| format!("m{machine} the runtime hangs"));
                let delay = self.chance.range(500..=20_000);
                self.after(delay, Event::RuntimeUp { machine });
            }
            10 => {
                let image = IMAGES[self.chance.index(3)].to_owned();
                if !self.weather.missing.remove(&image) {
                    self.weather.missing.insert(image);
                }
            }
            11 | 12 => self.repeat_set(machine),
            _ => {
                if self.scheduler.is_up && self.chance.percent(30) {
                    let epoch = self.scheduler.world.epoch() + 1;
                    let at = self.wall_now();
                    self.submit(Entry::EpochStarted { epoch, at });
                }
            }
        }
    }

    fn restart_daemon(&mut self, machine: usize) {
        if !self.machines[machine].is_powered {
            return;
        }
        self.kill_daemon(machine);
        if self.chance.percent(15) {
            self.note(|| format!("m{machine} the ledger is lost"));
            self.machines[machine].lose_ledger();
            self.checkers.forgot(machine);
        }
        self.start_daemon_after(machine, 5000);
    }

    fn lose_power(&mut self, machine: usize) {
        if !self.machines[machine].is_powered {
            return;
        }
        self.power_off(machine);
        if self.chance.percent(30) {
            self.machines[machine].is_lost = true;
            let delay = self.chance.range(5000..=60_000);
            self.after(delay, Event::Mend { machine });
        } else {
            let delay = self.chance.range(2000..=60_000);
            self.after(delay, Event::PowerOn { machine });
        }
    }

    fn hurt_process(&mut self) {
        let pids: Vec<u32> = self.checkers.processes.keys().copied().collect();
        let Some(pid) = self.chance.pick(&pids).copied() else {
            return;
        };
        let process = self.checkers.processes.get_mut(&pid).expect("it was listed");
        let machine = process.machine;
        match self.chance.range(0..=2) {
            0 => process.is_sick = true,
            1 => self.exit(machine, pid, 137, true),
            _ => self.exit(machine, pid, 3, false),
        }
    }

    /// A set of this daemon's life comes once more, late.
    fn repeat_set(&mut self, machine: usize) {
        let Some(daemon) = &self.machines[machine].daemon else {
            return;
        };
        if let Some((position, bytes)) = self.chance.pick(&daemon.received).cloned() {
            self.note(|| format!("m{machine} gets {}.{} again", position.epoch, position.generation));
            self.offered(machine, position, bytes);
        }
    }

    /// The line is joined again; a machine that is off for good is reported so, and replaced.
    pub(super) fn mend(&mut self, machine: usize) {
        self.machines[machine].is_cut_up = false;
        self.machines[machine].is_cut_down = false;
        if !self.machines[machine].is_lost {
            return;
        }
        if !self.scheduler.is_up {
            return self.after(1000, Event::Mend { machine });
        }
        let machine_id = self.machines[machine].spec.machine_id.clone();
        if self.scheduler.world.machine(&machine_id).is_some() {
            let at = self.wall_now();
            self.submit(Entry::MachineRemoved {
                machine_id,
                how: Removal::PoweredOff,
                at,
            });
        }
        self.renew(machine);
    }

    // The end.

    /// Everything is mended; nobody does anything any more.
    fn calm(&mut self) {
        self.note(|| "faults are over".into());
        self.weather.is_calm = true;
        self.weather.missing.clear();
        if !self.scheduler.is_up {
            self.after(100, Event::SchedulerStart);
        }
        for machine in 0..self.machines.len() {
            self.after(500, Event::Mend { machine });
            self.after(1000, Event::PowerOn { machine });
            self.machines[machine].host.is_runtime_down = false;
        }
        for process in self.checkers.processes.values_mut() {
            process.heal();
        }
    }

    pub(super) fn sample(&mut self) {
        if self.scheduler.is_up {
            self.check_explanations();
        }
        if self.weather.is_calm {
            let calm_ms = self.now - self.weather.ends_at;
            match self.unrest() {
                None => {
                    let since = *self.weather.rest_since.get_or_insert(self.now);
                    if self.now - since >= REST_HOLDS_MS {
                        self.check_replay();
                        self.weather.is_over = true;
                    }
                }
                Some(text) if calm_ms > REST_MAX_MS => self.checkers.broke(Rule::Convergence, text),
                // What waits for room may go on when room comes.
                Some(_) => self.weather.rest_since = None,
            }
        }
        self.after(SAMPLE_MS, Event::Sample);
    }

    /// What is not yet as it should be.
    fn unrest(&self) -> Option<String> {
        if let Some(machine) = self.machines.iter().position(|machine| !machine.is_powered) {
            return Some(format!("m{machine} is off"));
        }
        let mut running: BTreeMap<&ContainerName, Vec<&ReplicaId>> = BTreeMap::new();
        for process in self.checkers.processes.values() {
            let id = &process.replica_id;
            let Some(replica) = self.scheduler.world.replica(id) else {
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
        for (name, container) in self.scheduler.world.containers() {
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
            let state = self.scheduler.world.replicas_of(name).find(|replica| {
                !self
                    .scheduler
                    .observed
                    .status(replica)
                    .is_some_and(|status| status.ready)
            });
            if is_done && all_new && state.is_none() {
                continue;
            }
            if let Some(text) = self.excuse(name, &container.spec) {
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
        self.machines.iter().enumerate().find_map(|(index, machine)| {
            let ids = machine.host.containers.keys();
            let mut ids = ids.filter(|id| {
                let replica = self.scheduler.world.replica(id);
                replica.is_none_or(|replica| replica.machine_id != machine.spec.machine_id)
            });
            Some(format!("a container of {} is left on m{index}", ids.next()?))
        })
    }

    /// Whether a container may rest as it is because there is no room: the scheduler must say so, and our own sums too.
    /// Gives what is wrong with the excuse.
    fn excuse(&self, name: &ContainerName, spec: &ContainerSpec) -> Option<String> {
        let waits = || self.scheduler.report.waits.iter();
        let says_so = waits().any(|wait| {
            wait.container == *name
                && matches!(wait.reason, WaitReason::NoPlace(_) | WaitReason::NoRoomToMove(_))
        });
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
                && self
                    .scheduler
                    .world
                    .machine(id)
                    .is_some_and(|known| known.draining_since.is_none())
                && self.checkers.has_room(id, &wanted_by(spec))
        });
        free.map(|machine| format!("there is room on {}", machine.spec.machine_id))
    }
}
