//! What must hold, checked on raw material: entries as they are appended, sets as they are sent and taken, processes as
//! they start and end on the model machines. Nothing here asks the code under test for its opinion.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use berth_api::assignment::{Assignment, AssignmentSet, Digest, Position};
use berth_api::container::{ContainerSpec, GpuRequest, Granted};
use berth_api::id::{ContainerName, Label, MachineId, ReplicaId};
use berth_api::machine::{GpuDevice, MachineSpec};
use berth_scheduler::entry::{Entry, Placed, Removal};

use super::Rule;
use super::history::History;

/// CPU in micros, memory, ephemeral storage, thousandths of GPUs.
pub(super) type Amounts = [u64; 4];

/// Thousandths of one GPU.
pub(super) const WHOLE_GPU: u64 = 1000;

/// Thousandths that are held of each GPU of a machine, by its number.
type Devices = BTreeMap<u64, u64>;

/// A process of a model machine.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts about one process"
)]
pub(super) struct Process {
    pub(super) machine: usize,
    pub(super) replica_id: ReplicaId,
    pub(super) container: ContainerName,
    pub(super) ordinal: Option<u32>,
    pub(super) image: String,
    pub(super) volume: Option<String>,
    pub(super) held: Amounts,
    /// Its GPUs, or its share of one.
    pub(super) devices: Vec<GpuDevice>,
    pub(super) revision: String,
    /// A daemon has been told that it runs.
    pub(super) is_known: bool,
    /// It has got a signal that was allowed.
    pub(super) is_termed: bool,
    /// Its health check fails.
    pub(super) is_sick: bool,
    /// Its health check failed once: a restart for it may be under way.
    pub(super) was_sick: bool,
    /// It ignores SIGTERM.
    pub(super) is_stubborn: bool,
}

/// The last word of the scheduler to a machine about a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mandate {
    Run(String),
    Stop,
}

/// What a placed replica holds until it is gone.
#[derive(Debug, Clone)]
struct Held {
    machine_id: MachineId,
    ip: IpAddr,
    host_port: Option<u16>,
    volume: Option<String>,
    amounts: Amounts,
    devices: Vec<GpuDevice>,
    key: (ContainerName, u64),
    /// It has the machine to itself.
    is_alone: bool,
    is_stopping: bool,
}

/// What a machine really is.
#[derive(Debug, Clone)]
struct Hardware {
    index: usize,
    /// What it has for replicas.
    usable: Amounts,
    labels: BTreeSet<Label>,
}

impl Process {
    pub(super) fn heal(&mut self) {
        self.was_sick |= self.is_sick;
        self.is_sick = false;
    }
}

#[derive(Debug, Default)]
pub(super) struct Checkers {
    /// The first rule that was broken.
    pub(super) found: Option<(Rule, String)>,
    pub(super) starts: u64,
    pub(super) processes: BTreeMap<u32, Process>,
    last_pid: u32,
    hardware: BTreeMap<MachineId, Hardware>,
    specs: BTreeMap<(ContainerName, u64), ContainerSpec>,
    placed: BTreeMap<ReplicaId, Held>,
    sent: BTreeMap<(usize, u64, u64), Digest>,
    /// Of each session.
    last_sent: BTreeMap<u64, (u64, u64)>,
    /// What each placed replica was first told to be.
    told: BTreeMap<(usize, ReplicaId), Digest>,
    pub(super) history: History,
    accepted: BTreeMap<usize, (Position, AssignmentSet)>,
    mandates: BTreeMap<(usize, ReplicaId), Mandate>,
}

/// What a process of an assignment may use.
pub(super) fn held_by(assignment: &Assignment) -> Amounts {
    let granted = assignment.granted;
    [
        granted
            .map_or(assignment.cpu.desired, |granted| granted.cpu)
            .micros(),
        granted
            .map_or(assignment.memory.desired, |granted| granted.memory)
            .get(),
        assignment.ephemeral_storage.map_or(0, |bytes| bytes.get()),
        gpu_milli(assignment.gpu.as_ref()),
    ]
}

/// What a replica of a declaration holds, squeezed to `granted`; what is wrong with that.
fn granted_by(spec: &ContainerSpec, granted: Option<Granted>) -> Result<Amounts, String> {
    let mut amounts = wanted_by(spec);
    let Some(granted) = granted else {
        return Ok(amounts);
    };
    let (cpu, memory) = (spec.resources.cpu, spec.resources.memory);
    let is_within = (cpu.min..=cpu.desired).contains(&granted.cpu)
        && (memory.min..=memory.desired).contains(&granted.memory);
    if !is_within {
        return Err(format!("{granted:?} of {cpu:?} and {memory:?}"));
    }
    (amounts[0], amounts[1]) = (granted.cpu.micros(), granted.memory.get());
    Ok(amounts)
}

/// What a replica of a declaration holds when it has all that it desires.
fn wanted_by(spec: &ContainerSpec) -> Amounts {
    let resources = &spec.resources;
    [
        resources.cpu.desired.micros(),
        resources.memory.desired.get(),
        resources.ephemeral_storage.map_or(0, |bytes| bytes.get()),
        gpu_milli(resources.gpu.as_ref()),
    ]
}

/// Of how many GPUs a replica has something, and how many thousandths of each.
fn gpu_pieces(gpu: Option<&GpuRequest>) -> (u64, u64) {
    gpu.map_or((0, 0), |gpu| match gpu.share {
        Some(share) => (1, share.milli().into()),
        None => (gpu.count.into(), WHOLE_GPU),
    })
}

fn gpu_milli(gpu: Option<&GpuRequest>) -> u64 {
    let (count, milli) = gpu_pieces(gpu);
    count * milli
}

/// Whether devices are what is asked for: so many different ones, by rising number, and so much of each.
fn are_asked_for(gpu: Option<&GpuRequest>, devices: &[GpuDevice]) -> bool {
    let (count, milli) = gpu_pieces(gpu);
    u64::try_from(devices.len()) == Ok(count)
        && devices.iter().all(|device| u64::from(device.milli) == milli)
        && devices.is_sorted_by(|one, other| one.index < other.index)
}

fn by_device<'a>(devices: impl Iterator<Item = &'a GpuDevice>) -> Devices {
    let mut held = Devices::new();
    for device in devices {
        *held.entry(device.index.into()).or_default() += u64::from(device.milli);
    }
    held
}

fn gpu_count(usable: &Amounts) -> u64 {
    usable[3] / WHOLE_GPU
}

/// A GPU of which more is held than a machine has, with how much that is: one that is not there has nothing.
fn overdrawn(usable: &Amounts, held: &Devices) -> Option<(u64, u64)> {
    let mut held = held.iter().map(|(number, milli)| (*number, *milli));
    held.find(|(number, milli)| *number >= gpu_count(usable) || *milli > WHOLE_GPU)
}

/// Whether enough GPUs have enough left: a share is of one GPU, and a whole one is one of which nobody holds anything.
fn has_devices(usable: &Amounts, held: &Devices, gpu: Option<&GpuRequest>) -> bool {
    let (count, milli) = gpu_pieces(gpu);
    let used = |number: &u64| held.get(number).copied().unwrap_or_default();
    let with_room = (0..gpu_count(usable)).filter(|number| used(number) + milli <= WHOLE_GPU);
    usize::try_from(count).is_ok_and(|count| with_room.count() >= count)
}

fn sum<'a>(amounts: impl Iterator<Item = &'a Amounts>) -> Amounts {
    amounts.fold([0; 4], |mut total, amounts| {
        for (total, amount) in total.iter_mut().zip(amounts) {
            *total += amount;
        }
        total
    })
}

/// Whether `has` covers `needs` in every dimension.
fn covers(has: &Amounts, needs: &Amounts) -> bool {
    has.iter().zip(needs).all(|(has, needs)| has >= needs)
}

impl Checkers {
    /// Records a broken rule, unless one was broken before.
    pub(super) fn broke(&mut self, rule: Rule, text: String) {
        self.found.get_or_insert((rule, text));
    }

    pub(super) fn hardware(&mut self, spec: &MachineSpec, index: usize, usable: Amounts) {
        let hardware = Hardware {
            index,
            usable,
            labels: spec.labels.clone(),
        };
        self.hardware.insert(spec.machine_id.clone(), hardware);
    }

    fn index(&self, id: &MachineId) -> Option<usize> {
        self.hardware.get(id).map(|hardware| hardware.index)
    }

    // Entries.

    /// A record has become durable at `seq`.
    pub(super) fn entry(&mut self, entry: &Entry, seq: usize) {
        if let Err((rule, text)) = self.history.entry(entry, seq) {
            self.broke(rule, text);
        }
        match entry {
            Entry::RolloutTurned(turned) => self.declared(&turned.container, turned.revision),
            Entry::ContainerPut { spec, revision, .. } => self.declared(&spec.name, *revision),
            Entry::ReplicaPlaced(placed) => self.placed(placed),
            Entry::ReplicaResized {
                replica_id, granted, ..
            } => self.granted(replica_id, *granted),
            Entry::ReplicaStopping { replica_id, .. } => match self.placed.get_mut(replica_id) {
                Some(held) => held.is_stopping = true,
                None => self.broke(Rule::Gone, format!("{replica_id} stops and is not placed")),
            },
            Entry::ReplicaGone { replica_id, .. } => self.gone(replica_id),
            Entry::MachineRemoved { machine_id, how, .. } => self.removed(machine_id, *how),
            _ => {}
        }
    }

    fn declared(&mut self, name: &ContainerName, revision: u64) {
        if let Some(spec) = self.history.declaration(name, revision).cloned() {
            self.specs.insert((name.clone(), revision), spec);
        }
    }

    fn placed(&mut self, placed: &Placed) {
        let id = &placed.replica_id;
        let key = (placed.container.clone(), placed.revision);
        let Some(spec) = self.specs.get(&key) else {
            return self.broke(
                Rule::Decision,
                format!("{id} is of a revision that nobody declared"),
            );
        };
        let volume = placed.ordinal.and_then(|ordinal| {
            let volume = spec.volumes.iter().find(|volume| volume.ordinal == ordinal)?;
            Some(volume.volume.identity().to_owned())
        });
        let held = Held {
            machine_id: placed.machine_id.clone(),
            ip: placed.ip,
            host_port: placed.host_port,
            volume,
            amounts: match granted_by(spec, placed.granted) {
                Ok(amounts) => amounts,
                Err(text) => return self.broke(Rule::Decision, format!("{id} is granted {text}")),
            },
            devices: placed.devices.clone(),
            key,
            is_alone: spec.placement.as_ref().is_some_and(|rules| rules.exclusive),
            is_stopping: false,
        };
        if !self.may_run(&placed.machine_id, spec) {
            let text = format!("{id} is placed on {}, whose labels forbid it", placed.machine_id);
            return self.broke(Rule::Decision, text);
        }
        let gpu = spec.resources.gpu.as_ref();
        if !are_asked_for(gpu, &placed.devices) {
            let text = format!("{id} asks for {gpu:?} and is given {:?}", placed.devices);
            return self.broke(Rule::Decision, text);
        }
        for (other, there) in &self.placed {
            let text = if other == id {
                format!("{id} is placed while it is on {}", there.machine_id)
            } else if held.volume.is_some() && held.volume == there.volume {
                format!("{id} and {other} are given one volume")
            } else if there.ip == held.ip {
                format!("{id} and {other} are given {}", held.ip)
            } else if there.machine_id == held.machine_id
                && held.host_port.is_some()
                && there.host_port == held.host_port
            {
                format!("{id} and {other} are given one host port")
            } else if there.machine_id == held.machine_id && (there.is_alone || held.is_alone) {
                format!("{id} and {other} are given one machine, which one of them has to itself")
            } else {
                continue;
            };
            let rule = if other == id || held.volume == there.volume {
                Rule::SingleWriter
            } else {
                Rule::Uniqueness
            };
            return self.broke(rule, text);
        }
        let machine_id = held.machine_id.clone();
        self.placed.insert(id.clone(), held);
        self.fits(id, &machine_id);
    }

    /// An owner has extended the log.
    pub(super) fn appended(&mut self, fence: u64) {
        if let Err((rule, text)) = self.history.appended(fence) {
            self.broke(rule, text);
        }
    }

    /// A squeezed replica is given more.
    fn granted(&mut self, id: &ReplicaId, granted: Option<Granted>) {
        let Some(held) = self.placed.get_mut(id).filter(|held| !held.is_stopping) else {
            return self.broke(Rule::Gone, format!("{id} is given more and is not there"));
        };
        let amounts = match granted_by(&self.specs[&held.key], granted) {
            Ok(amounts) if covers(&amounts, &held.amounts) && amounts != held.amounts => amounts,
            Ok(amounts) => {
                let text = format!("{id} goes from {:?} to {amounts:?}", held.amounts);
                return self.broke(Rule::Decision, text);
            }
            Err(text) => return self.broke(Rule::Decision, format!("{id} is granted {text}")),
        };
        held.amounts = amounts;
        let machine_id = held.machine_id.clone();
        self.fits(id, &machine_id);
    }

    /// A machine has what is given away of it, `id` being the last to get some.
    fn fits(&mut self, id: &ReplicaId, machine_id: &MachineId) {
        let Some(Hardware { usable: has, .. }) = self.hardware.get(machine_id) else {
            return self.broke(
                Rule::Capacity,
                format!("{id} is placed on {machine_id}, which nobody has"),
            );
        };
        let there = || self.placed.values().filter(|held| held.machine_id == *machine_id);
        let needs = sum(there().map(|held| &held.amounts));
        let devices = by_device(there().flat_map(|held| &held.devices));
        if !covers(has, &needs) {
            let text = format!("{machine_id} has {has:?} and is given {needs:?} with {id}");
            self.broke(Rule::Capacity, text);
        } else if let Some((number, milli)) = overdrawn(has, &devices) {
            let text =
                format!("{machine_id} has {has:?} and gives {milli} thousandths of GPU {number} with {id}");
            self.broke(Rule::Capacity, text);
        }
    }

    fn gone(&mut self, id: &ReplicaId) {
        let Some(held) = self.placed.remove(id) else {
            return self.broke(Rule::Gone, format!("{id} is gone and was not placed"));
        };
        if !held.is_stopping {
            self.broke(Rule::Gone, format!("{id} is gone and was not stopped"));
        }
        let machine = self.index(&held.machine_id);
        if let Some(machine) = machine {
            self.told.remove(&(machine, id.clone()));
        }
        let alive = self
            .processes
            .iter()
            .find(|(_, process)| process.replica_id == *id && Some(process.machine) == machine);
        if let Some((pid, _)) = alive {
            let text = format!(
                "{id} is taken for gone and its process {pid} runs on {}",
                held.machine_id
            );
            self.broke(Rule::Gone, text);
        }
    }

    fn removed(&mut self, id: &MachineId, how: Removal) {
        if let Some(machine) = self.index(id) {
            self.told.retain(|(there, _), _| *there != machine);
        }
        let before = self.placed.len();
        self.placed.retain(|_, held| held.machine_id != *id);
        if how == Removal::Empty && self.placed.len() != before {
            self.broke(Rule::Gone, format!("{id} is removed as empty and is not"));
        }
    }

    // Sets.

    pub(super) fn sent(&mut self, machine: usize, session: u64, position: &Position) {
        let place = (position.epoch, position.generation);
        let last = self.last_sent.get(&session).copied().unwrap_or_default();
        if place < last {
            self.broke(
                Rule::Order,
                format!("m{machine} is sent {place:?} after {last:?}"),
            );
        }
        self.last_sent.insert(session, place);
        let known = self
            .sent
            .insert((machine, place.0, place.1), position.digest)
            .is_some_and(|known| known != position.digest);
        if known {
            self.broke(Rule::Order, format!("m{machine} is sent two sets as {place:?}"));
        }
    }

    /// A daemon takes a set, or takes it up again from its ledger.
    pub(super) fn accepted(&mut self, machine: usize, position: Position, set: &AssignmentSet) {
        let key = (machine, position.epoch, position.generation);
        if self.sent.get(&key) != Some(&position.digest) {
            self.broke(
                Rule::Order,
                format!("m{machine} takes {position:?}, which nobody sent to it"),
            );
        }
        if let Some((before, _)) = self.accepted.get(&machine)
            && (position.epoch, position.generation) < (before.epoch, before.generation)
        {
            self.broke(
                Rule::Order,
                format!("m{machine} takes {position:?} after {before:?}"),
            );
        }
        for stop in &set.stops {
            self.mandates
                .insert((machine, stop.replica_id.clone()), Mandate::Stop);
        }
        for assignment in &set.replicas {
            let digest = assignment.digest();
            let mandate = Mandate::Run(digest.to_string());
            let id = &assignment.replica_id;
            // What was taken for gone in the meantime is told by a set of before, and stops with the next.
            let held = self.placed.get(id);
            let held = held.filter(|held| self.index(&held.machine_id) == Some(machine));
            let is_placed = held.is_some();
            if let Some(held) = held.filter(|held| held.devices != assignment.gpu_devices) {
                let (placed, told) = (&held.devices, &assignment.gpu_devices);
                let text = format!("m{machine} is told that {id} has {told:?}, and it was given {placed:?}");
                self.broke(Rule::Capacity, text);
            }
            if is_placed {
                let first = *self.told.entry((machine, id.clone())).or_insert(digest);
                if first != digest {
                    self.broke(
                        Rule::Restart,
                        format!("m{machine} is told another {id} than before, and nobody changed it"),
                    );
                }
            }
            self.mandates
                .insert((machine, assignment.replica_id.clone()), mandate);
        }
        self.accepted.insert(machine, (position, set.clone()));
    }

    /// The ledger is lost: the machine has accepted nothing any more. What it was told to stop stays told.
    pub(super) fn forgot(&mut self, machine: usize) {
        self.accepted.remove(&machine);
    }

    pub(super) fn stop_confirmed(&mut self, machine: usize, ids: &[ReplicaId]) {
        for id in ids {
            let is_listed = self
                .accepted
                .get(&machine)
                .is_some_and(|(_, set)| set.replicas.iter().any(|assignment| assignment.replica_id == *id));
            if !is_listed {
                self.mandates.insert((machine, id.clone()), Mandate::Stop);
            }
        }
    }

    // Processes.

    /// A process starts; gives its pid.
    pub(super) fn start(&mut self, process: Process) -> u32 {
        self.starts += 1;
        self.last_pid += 1;
        for (pid, other) in &self.processes {
            let text = if other.replica_id == process.replica_id {
                format!(
                    "{} starts on m{} while its process {pid} runs on m{}",
                    process.replica_id, process.machine, other.machine
                )
            } else if process.volume.is_some() && process.volume == other.volume {
                format!(
                    "{} and {} write to one volume",
                    process.replica_id, other.replica_id
                )
            } else {
                continue;
            };
            self.found.get_or_insert((Rule::SingleWriter, text));
        }
        let machine = process.machine;
        self.processes.insert(self.last_pid, process);
        self.carries(machine);
        self.last_pid
    }

    /// The limits of a process are changed while it runs.
    pub(super) fn resized(&mut self, pid: u32, held: Amounts) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.held = held;
            let machine = process.machine;
            self.carries(machine);
        }
    }

    /// What a machine's processes may use is no more than it has, of each of its GPUs too.
    fn carries(&mut self, machine: usize) {
        let there = || self.processes.values().filter(|other| other.machine == machine);
        let needs = sum(there().map(|process| &process.held));
        let devices = by_device(there().flat_map(|process| &process.devices));
        let has = self.hardware.values().find(|hardware| hardware.index == machine);
        let fits = |has: &Hardware| covers(&has.usable, &needs) && overdrawn(&has.usable, &devices).is_none();
        if !has.is_some_and(fits) {
            let text = format!("m{machine} runs {needs:?}, of its GPUs {devices:?}, and has {has:?}");
            self.broke(Rule::Capacity, text);
        }
    }

    /// What the log says that a replica holds.
    pub(super) fn holds(&self, id: &ReplicaId) -> Option<Amounts> {
        self.placed.get(id).map(|held| held.amounts)
    }

    pub(super) fn end(&mut self, pid: u32) -> Option<Process> {
        self.processes.remove(&pid)
    }

    /// The daemon has seen that the process of a replica runs.
    pub(super) fn known(&mut self, pid: u32) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.is_known = true;
        }
    }

    pub(super) fn is_stubborn(&self, pid: u32) -> bool {
        self.processes
            .get(&pid)
            .is_some_and(|process| process.is_stubborn)
    }

    /// A delete is under way that undoes a start which was never confirmed. It is not taken back when another daemon finds
    /// the process and keeps it.
    pub(super) fn delete_began(&mut self, pid: u32) {
        if let Some(process) = self.processes.get_mut(&pid).filter(|process| !process.is_known) {
            process.is_termed = true;
        }
    }

    /// A daemon ends a process: it must have been told to, or have a reason of its own.
    pub(super) fn ended_by_daemon(&mut self, pid: u32, how: &str) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let mandate = self.mandates.get(&(process.machine, process.replica_id.clone()));
        let is_told = match mandate {
            Some(Mandate::Stop) => true,
            Some(Mandate::Run(revision)) => *revision != process.revision,
            None => false,
        };
        // A start that was never confirmed is undone; a signal that was right once is not taken back.
        if is_told || process.is_termed || process.is_sick || process.was_sick || !process.is_known {
            process.is_termed = true;
            return;
        }
        let text = format!(
            "{} is {how} on m{} and nobody told it to end: {mandate:?}",
            process.replica_id, process.machine
        );
        self.broke(Rule::Silence, text);
    }

    /// A machine lost power.
    pub(super) fn power_off(&mut self, machine: usize) {
        self.processes.retain(|_, process| process.machine != machine);
    }

    /// Whether a machine has the labels that a declaration asks for, and none that it rules out.
    fn may_run(&self, id: &MachineId, spec: &ContainerSpec) -> bool {
        let Some((rules, hardware)) = spec.placement.as_ref().zip(self.hardware.get(id)) else {
            return true;
        };
        rules.requires.is_subset(&hardware.labels) && rules.forbids.is_disjoint(&hardware.labels)
    }

    /// Whether a machine could take one more replica of a declaration, by our own sums.
    pub(super) fn has_room(&self, id: &MachineId, spec: &ContainerSpec) -> bool {
        let Some(hardware) = self.hardware.get(id) else {
            return false;
        };
        let there = || self.placed.values().filter(|held| held.machine_id == *id);
        let is_alone = spec.placement.as_ref().is_some_and(|rules| rules.exclusive);
        let is_taken = there().any(|held| held.is_alone) || (is_alone && there().next().is_some());
        let used = sum(there().map(|held| &held.amounts));
        let devices = by_device(there().flat_map(|held| &held.devices));
        !is_taken
            && self.may_run(id, spec)
            && covers(&hardware.usable, &sum([&used, &wanted_by(spec)].into_iter()))
            && has_devices(&hardware.usable, &devices, spec.resources.gpu.as_ref())
    }
}
