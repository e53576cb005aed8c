//! What the entries of a decision touch, and nothing else: reads them in their order over a world that stays as it is.

use std::collections::{BTreeMap, BTreeSet};

use berth_api::container::{Granted, Scale};
use berth_api::id::{ContainerName, MachineId, ReplicaId};

use super::{
    Amounts, Holder, Violation, WHOLE_GPU, growth, is_grant, misplaced, named_devices, names_devices,
    no_device_left, out_of_bounds, over_capacity, plus, shared, sum, wrong_sum,
};
use crate::entry::{ContainerScaled, Entry, MachineHealthState, Placed};
use crate::world::World;

/// Devices of a machine at most; said again here, on purpose.
const DEVICES_MAX: u8 = 8;

/// The world as the entries read so far make it.
struct Overlay<'a> {
    before: &'a World,
    /// Placed by the decision and there.
    placed: BTreeMap<&'a ReplicaId, &'a Placed>,
    /// The same by machine.
    on: BTreeMap<&'a MachineId, BTreeSet<&'a ReplicaId>>,
    /// There before the decision, and gone.
    gone: BTreeSet<&'a ReplicaId>,
    /// Told to stop by the decision.
    stopped: BTreeSet<&'a ReplicaId>,
    /// Given more by the decision, while there.
    resized: BTreeMap<&'a ReplicaId, Option<Granted>>,
    health: BTreeMap<&'a MachineId, MachineHealthState>,
    /// Containers whose rollouts the decision completes.
    completed: BTreeSet<&'a ContainerName>,
    /// What the decision has placed last of each ordinal.
    last: BTreeMap<(&'a ContainerName, u32), u64>,
    /// Former declarations that went with the last replica that ran them.
    forgotten: BTreeSet<(&'a ContainerName, u64)>,
    /// What is on a machine, once something is placed there and until something of it is gone. Grants may be older.
    there: BTreeMap<&'a MachineId, Vec<Holder<'a>>>,
    violations: Vec<Violation>,
}

/// Why reading ends early.
enum End {
    /// No decision holds such an entry: operators and machines ask for those.
    NotOfADecision,
    /// The entry contradicts those before it.
    Inapplicable(String),
}

/// The violations of a decision; none when the entries are not a decision's.
pub(super) fn check(before: &World, entries: &[Entry]) -> Option<Vec<Violation>> {
    let mut overlay = Overlay {
        before,
        placed: BTreeMap::new(),
        on: BTreeMap::new(),
        gone: BTreeSet::new(),
        stopped: BTreeSet::new(),
        resized: BTreeMap::new(),
        health: BTreeMap::new(),
        completed: BTreeSet::new(),
        last: BTreeMap::new(),
        forgotten: BTreeSet::new(),
        there: BTreeMap::new(),
        violations: vec![],
    };
    for (index, entry) in entries.iter().enumerate() {
        match overlay.read(entry) {
            Ok(()) => {}
            Err(End::NotOfADecision) => return None,
            Err(End::Inapplicable(error)) => {
                let number = index + 1;
                overlay.violations.push(Violation::Inapplicable { number, error });
                return Some(overlay.violations);
            }
        }
    }
    overlay.capacity();
    overlay.volumes();
    Some(overlay.violations)
}

impl<'a> Overlay<'a> {
    fn read(&mut self, entry: &'a Entry) -> Result<(), End> {
        match entry {
            Entry::MachineHealthChanged {
                machine_id, state, ..
            } => {
                if self.before.machine(machine_id).is_none() {
                    return inapplicable(format!("machine {machine_id} is not registered"));
                }
                self.health.insert(machine_id, *state);
            }
            Entry::UnplacedChanged { container, .. } => {
                if self.before.container(container).is_none() {
                    return inapplicable(format!("container {container} does not exist"));
                }
            }
            Entry::ReplicaPlaced(placed) => self.place(placed)?,
            Entry::ReplicaResized {
                replica_id, granted, ..
            } => self.resize(replica_id, *granted)?,
            Entry::ReplicaStopping { replica_id, .. } => {
                if !self.is_there(replica_id) {
                    return inapplicable(format!("replica {replica_id} does not exist"));
                }
                if self.is_stopping(replica_id) {
                    return inapplicable(format!("replica {replica_id} is told to stop a second time"));
                }
                self.stopped.insert(replica_id);
            }
            Entry::ReplicaGone { replica_id, .. } => self.remove(replica_id)?,
            Entry::CapacityWished(wish) => {
                if self.before.spec().group(&wish.group_id).is_none() {
                    return inapplicable(format!("the cluster has no capacity group {}", wish.group_id));
                }
                self.violations.extend(out_of_bounds(self.before, wish));
            }
            Entry::ContainerScaled(scaled) => self.scale(scaled)?,
            // What follows it runs another declaration than that of the world before it: looked at whole.
            Entry::RolloutTurned(_) => return Err(End::NotOfADecision),
            Entry::RolloutProven { .. } | Entry::RolloutStalled { .. } | Entry::RolloutCompleted { .. } => {
                self.rollout(entry)?;
            }
            Entry::EventRecorded { .. } | Entry::StopsHeld { .. } | Entry::FreezeChanged { .. } => {}
            Entry::ClusterCreated { .. }
            | Entry::ClusterDeleted { .. }
            | Entry::GroupsChanged { .. }
            | Entry::TokenRotated { .. }
            | Entry::TokensRevoked { .. }
            | Entry::MachineRegistered { .. }
            | Entry::MachineRemoved { .. }
            | Entry::MachineDraining { .. }
            | Entry::MachineDrainCancelled { .. }
            | Entry::MachineDrainForced { .. }
            | Entry::ContainerPut { .. }
            | Entry::ContainerStopped { .. }
            | Entry::ContainerStarted { .. }
            | Entry::ContainerDeleted { .. }
            | Entry::StopsReleased { .. }
            | Entry::RolloutPaused { .. }
            | Entry::RolloutResumed { .. }
            | Entry::EpochStarted { .. }
            | Entry::WriteKept(_) => return Err(End::NotOfADecision),
        }
        Ok(())
    }

    fn scale(&self, scaled: &ContainerScaled) -> Result<(), End> {
        let container = self.before.container(&scaled.container);
        let bounds = container.and_then(|container| match &container.spec.scale {
            Scale::Autoscaling(bounds) => Some(bounds.min..=bounds.max),
            Scale::Replicas(_) => None,
        });
        if bounds.is_some_and(|bounds| bounds.contains(&scaled.count)) {
            return Ok(());
        }
        inapplicable(format!(
            "container {} is scaled to {} replicas, which it does not allow",
            scaled.container, scaled.count
        ))
    }

    /// Something is said of an open rollout.
    fn rollout(&mut self, entry: &'a Entry) -> Result<(), End> {
        let (name, revision) = match entry {
            Entry::RolloutProven {
                container, revision, ..
            }
            | Entry::RolloutStalled {
                container, revision, ..
            }
            | Entry::RolloutCompleted {
                container, revision, ..
            } => (container, *revision),
            _ => return Err(End::NotOfADecision),
        };
        let rollout = self
            .before
            .container(name)
            .and_then(|container| container.rollout.as_ref());
        let is_open = rollout.is_some_and(|rollout| {
            rollout.completed_at.is_none() && rollout.id == revision && !self.completed.contains(name)
        });
        if !is_open {
            return inapplicable(format!("container {name} has no open rollout {revision}"));
        }
        if matches!(entry, Entry::RolloutCompleted { .. }) {
            self.completed.insert(name);
        }
        Ok(())
    }

    fn is_there(&self, id: &ReplicaId) -> bool {
        self.placed.contains_key(id) || (self.before.replica(id).is_some() && !self.gone.contains(id))
    }

    fn is_stopping(&self, id: &ReplicaId) -> bool {
        let before = self.before.replica(id).filter(|_| !self.placed.contains_key(id));
        self.stopped.contains(id) || before.is_some_and(|replica| replica.stopping.is_some())
    }

    fn remove(&mut self, id: &'a ReplicaId) -> Result<(), End> {
        if !self.is_there(id) {
            return inapplicable(format!("replica {id} does not exist"));
        }
        if !self.is_stopping(id) {
            return inapplicable(format!("replica {id} is gone without having been told to stop"));
        }
        self.stopped.remove(id);
        self.resized.remove(id);
        let container = match self.placed.remove(id) {
            Some(placed) => {
                self.there.remove(&placed.machine_id);
                self.on.entry(&placed.machine_id).or_default().remove(id);
                Some(&placed.container)
            }
            None => {
                self.gone.insert(id);
                let known = self.before.replica(id);
                known.map(|replica| {
                    self.there.remove(&replica.machine_id);
                    &replica.container
                })
            }
        };
        if let Some(name) = container {
            self.forget(name);
        }
        Ok(())
    }

    /// With its last replica goes a former declaration, unless it completed or an open rollout may lead back to it.
    fn forget(&mut self, name: &'a ContainerName) {
        let Some(container) = self
            .before
            .container(name)
            .filter(|known| !known.older.is_empty())
        else {
            return;
        };
        let mut used: BTreeSet<u64> = container.completed.iter().copied().collect();
        if container.open_rollout().is_some() && !self.completed.contains(name) {
            let known = container.last_revisions.iter();
            let known = known.filter(|(ordinal, _)| !self.last.contains_key(&(name, **ordinal)));
            used.extend(known.map(|(_, revision)| *revision));
            let placed = self.last.iter().filter(|((of, _), _)| *of == name);
            used.extend(placed.map(|(_, revision)| *revision));
        }
        let there = self.before.replicas_of(name);
        let there = there.filter(|replica| !self.gone.contains(&replica.replica_id));
        used.extend(there.map(|replica| replica.revision));
        let placed = self.placed.values().filter(|placed| placed.container == *name);
        used.extend(placed.map(|placed| placed.revision));
        let unused = container.older.keys().filter(|revision| !used.contains(revision));
        self.forgotten.extend(unused.map(|revision| (name, *revision)));
    }

    fn place(&mut self, placed: &'a Placed) -> Result<(), End> {
        let id = &placed.replica_id;
        if self.is_there(id) {
            return inapplicable(format!(
                "replica {id} is placed while the one of the same id is not gone"
            ));
        }
        let container = self.before.container(&placed.container);
        let container = container
            .ok_or_else(|| End::Inapplicable(format!("container {} does not exist", placed.container)))?;
        if self.forgotten.contains(&(&placed.container, placed.revision)) {
            return inapplicable(format!(
                "container {} has no revision {}",
                placed.container, placed.revision
            ));
        }
        let machine = self.before.machine(&placed.machine_id);
        let machine = machine
            .ok_or_else(|| End::Inapplicable(format!("machine {} is not registered", placed.machine_id)))?;
        if let Some((spec, granted)) = Holder::from(placed).spec(self.before).zip(placed.granted)
            && !is_grant(spec, granted)
        {
            return inapplicable(format!("replica {id} is granted what it cannot have"));
        }
        let health = self.health.get(&placed.machine_id).copied();
        let health = health.unwrap_or(machine.health);
        let faults = misplaced(self.before, container, placed, machine, health);
        self.violations.extend(faults);
        let mut there = self
            .there
            .remove(&placed.machine_id)
            .unwrap_or_else(|| self.holders(&placed.machine_id));
        self.devices(placed, &there)?;
        for other in &there {
            if other.ip == placed.ip {
                return inapplicable(format!(
                    "replica {id} has the address of replica {}",
                    other.replica_id
                ));
            }
            if other.host_port.is_some() && other.host_port == placed.host_port {
                return inapplicable(format!(
                    "replica {id} has the host port of replica {}",
                    other.replica_id
                ));
            }
        }
        if let Some(ordinal) = placed.ordinal {
            self.last.insert((&placed.container, ordinal), placed.revision);
        }
        there.push(placed.into());
        self.there.insert(&placed.machine_id, there);
        self.placed.insert(id, placed);
        self.on.entry(&placed.machine_id).or_default().insert(id);
        Ok(())
    }

    /// Devices that a log may say: what its declaration asks for, or none as before they were recorded, and no more of a device
    /// than there is.
    fn devices(&self, placed: &Placed, there: &[Holder<'a>]) -> Result<(), End> {
        let id = &placed.replica_id;
        let Some(spec) = Holder::from(placed)
            .spec(self.before)
            .filter(|_| !placed.devices.is_empty())
        else {
            return Ok(());
        };
        let are_there = placed.devices.iter().all(|device| device.index < DEVICES_MAX);
        if !are_there || !names_devices(spec, &placed.devices) {
            return inapplicable(format!("replica {id} is given other GPUs than it asks for"));
        }
        let before = named_devices(there);
        let over = placed.devices.iter().find(|device| {
            let given = before.get(&device.index).copied().unwrap_or(0);
            u128::from(given) + u128::from(device.milli) > WHOLE_GPU
        });
        match over {
            Some(device) => inapplicable(format!(
                "replica {id} has more of GPU {} than is free of it",
                device.index
            )),
            None => Ok(()),
        }
    }

    fn resize(&mut self, id: &'a ReplicaId, granted: Option<Granted>) -> Result<(), End> {
        let known = self.before.replica(id).map(Holder::from);
        let known = self.placed.get(id).map(|placed| Holder::from(*placed)).or(known);
        let Some(known) = known.filter(|_| self.is_there(id)) else {
            return inapplicable(format!("replica {id} does not exist"));
        };
        if self.is_stopping(id) {
            return inapplicable(format!("replica {id} is given more while it stops"));
        }
        let had = self.resized.get(id).copied().unwrap_or(known.granted);
        let Some((spec, had)) = known.spec(self.before).zip(had) else {
            return inapplicable(format!("replica {id} has all that it desires"));
        };
        let (cpu, memory) = granted.map_or(
            (spec.resources.cpu.desired, spec.resources.memory.desired),
            |granted| (granted.cpu, granted.memory),
        );
        let is_more = cpu >= had.cpu && memory >= had.memory && (cpu, memory) != (had.cpu, had.memory);
        if !is_more || granted.is_some_and(|granted| !is_grant(spec, granted)) {
            return inapplicable(format!("replica {id} is granted what it cannot have"));
        }
        self.resized.insert(id, granted);
        Ok(())
    }

    /// What is on a machine now.
    fn holders(&self, machine: &MachineId) -> Vec<Holder<'a>> {
        let before = self.before.replicas_on(machine);
        let before = before.filter(|replica| !self.gone.contains(&replica.replica_id));
        let before = before.map(Holder::from);
        let placed = self.on.get(machine).into_iter().flatten();
        let placed = placed.map(|id| Holder::from(self.placed[*id]));
        let now = |holder: Holder<'a>| {
            let granted = self.resized.get(holder.replica_id).copied();
            Holder {
                granted: granted.unwrap_or(holder.granted),
                ..holder
            }
        };
        before.chain(placed).map(now).collect()
    }

    /// What the decision gives away of a machine with these on it.
    fn more(&self, holders: &[Holder<'a>]) -> Amounts {
        let more = holders.iter().filter_map(|holder| {
            if self.placed.contains_key(holder.replica_id) {
                return Some(holder.amounts(self.before));
            }
            // Who is not resized has what it had.
            self.resized.get(holder.replica_id)?;
            let known = self.before.replica(holder.replica_id)?;
            Some(growth(self.before, known.into(), *holder))
        });
        more.fold(Amounts::default(), plus)
    }

    /// Machines of which the decision gives something away.
    fn given(&self) -> BTreeSet<&'a MachineId> {
        let placed = self.on.iter().filter(|(_, placed)| !placed.is_empty());
        let resized = self.resized.keys().filter_map(|id| {
            let machine = self.before.replica(id).map(|replica| &replica.machine_id);
            self.placed.get(id).map(|placed| &placed.machine_id).or(machine)
        });
        placed.map(|(id, _)| *id).chain(resized).collect()
    }

    fn capacity(&mut self) {
        let given = self.given();
        for id in self
            .on
            .keys()
            .copied()
            .chain(given.iter().copied())
            .collect::<BTreeSet<_>>()
        {
            let Some(machine) = self.before.machine(id) else {
                continue;
            };
            let known = self.before.replicas_on(id);
            let accounts = sum(self.before, known.map(Holder::from));
            self.violations.extend(wrong_sum(machine, accounts));
            let holders = self.holders(id);
            if given.contains(id) {
                let held = sum(self.before, holders.iter().copied());
                self.violations
                    .extend(over_capacity(machine, held, self.more(&holders)));
            }
            if self.on.get(id).is_some_and(|placed| !placed.is_empty()) {
                self.violations.extend(shared(self.before, machine, &holders));
                let placed = self.on.get(id).into_iter().flatten();
                if placed.clone().any(|id| !self.placed[*id].devices.is_empty()) {
                    self.violations
                        .extend(no_device_left(self.before, machine, &holders));
                }
            }
        }
    }

    /// No volume that the decision gives a writer has another one. Only containers that declare one of these volumes can
    /// have that.
    fn volumes(&mut self) {
        let mut disks: BTreeMap<(&str, &str), BTreeSet<&ReplicaId>> = BTreeMap::new();
        let mut names: BTreeSet<&ContainerName> = BTreeSet::new();
        for (id, placed) in &self.placed {
            if let Some(disk) = Holder::from(*placed).disk(self.before) {
                disks.entry(disk).or_default().insert(id);
            }
        }
        if disks.is_empty() {
            return;
        }
        for (name, container) in self.before.containers() {
            let specs = std::iter::once(&container.spec).chain(container.older.values());
            let mut volumes = specs.flat_map(|spec| &spec.volumes);
            if volumes.any(|volume| disks.contains_key(&(volume.volume.kind(), volume.volume.identity()))) {
                names.insert(name);
            }
        }
        for replica in names.into_iter().flat_map(|name| self.before.replicas_of(name)) {
            if let Some(disk) = Holder::from(replica).disk(self.before)
                && let Some(writers) = disks.get_mut(&disk)
                && !self.gone.contains(&replica.replica_id)
            {
                writers.insert(&replica.replica_id);
            }
        }
        for writers in disks.values() {
            let pairs = writers.iter().zip(writers.iter().skip(1));
            let is_new = |id: &ReplicaId| self.placed.contains_key(id);
            for (one, other) in pairs.filter(|(one, other)| is_new(one) || is_new(other)) {
                self.violations.push(Violation::TwoWriters {
                    one: (*one).clone(),
                    other: (*other).clone(),
                });
            }
        }
    }
}

fn inapplicable(error: String) -> Result<(), End> {
    Err(End::Inapplicable(error))
}
