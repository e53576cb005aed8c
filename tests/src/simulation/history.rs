//! What must hold of the log as a whole, from its records alone: nothing is decided twice, everything that stops has a
//! reason that the log bears out, one owner follows the other, and what was acknowledged is there.

use std::collections::{BTreeMap, BTreeSet};

use berth_api::container::{ContainerSpec, Scale};
use berth_api::id::{ContainerName, MachineId, ReplicaId};
use berth_api::time::Timestamp;
use berth_scheduler::entry::{Entry, MachineHealthState, Placed, RolloutTurned, StopCause};
use berth_scheduler::world::{RolloutTurn, World};

use super::Rule;

type Broken = (Rule, String);

#[derive(Debug, Clone)]
struct Declared {
    spec: ContainerSpec,
    revision: u64,
    count: u32,
    unplaced: u32,
    is_stopped: bool,
    is_deleted: bool,
    /// The rollout of `revision` is paused.
    is_paused: bool,
    /// What was rolled out completely.
    completed: BTreeSet<u64>,
    /// What was turned to last since it was declared.
    last_turn: Option<RolloutTurn>,
}

#[derive(Debug, Clone, Default)]
struct Registered {
    health: Option<MachineHealthState>,
    is_draining: bool,
    forced_from: Option<Timestamp>,
}

#[derive(Debug, Clone)]
struct Live {
    container: ContainerName,
    revision: u64,
    machine_id: MachineId,
    ordinal: Option<u32>,
    relieves: Option<ReplicaId>,
    is_stopping: bool,
}

/// The log, read as it is written.
#[derive(Debug, Default)]
pub(super) struct History {
    fence: u64,
    containers: BTreeMap<ContainerName, Declared>,
    declarations: BTreeMap<(ContainerName, u64), ContainerSpec>,
    machines: BTreeMap<MachineId, Registered>,
    replicas: BTreeMap<ReplicaId, Live>,
    /// Where the last acknowledged write of each container is, and what became of the container by the log since.
    acknowledged: BTreeMap<ContainerName, usize>,
    /// Acknowledged records, with their place.
    promised: Vec<(usize, Vec<u8>)>,
    /// Records about replicas: the cluster is not at rest while they come.
    pub(super) moves: u64,
}

impl History {
    /// Somebody extends the log under a fence.
    pub(super) fn appended(&mut self, fence: u64) -> Result<(), Broken> {
        if fence < self.fence {
            let text = format!(
                "an owner of fence {fence} extends the log after fence {}",
                self.fence
            );
            return Err((Rule::Fence, text));
        }
        self.fence = fence;
        Ok(())
    }

    /// A client was told that these records are durable.
    pub(super) fn acknowledge(&mut self, from: usize, entries: &[Entry]) {
        for (offset, entry) in entries.iter().enumerate() {
            let seq = from + offset;
            self.promised.push((seq, entry.to_record()));
            let name = match entry {
                Entry::ContainerPut { spec, .. } => &spec.name,
                Entry::ContainerStopped { container, .. }
                | Entry::ContainerStarted { container, .. }
                | Entry::ContainerDeleted { container, .. } => container,
                _ => continue,
            };
            let last = self.acknowledged.entry(name.clone()).or_default();
            *last = seq.max(*last);
        }
    }

    /// Every acknowledged write is where it was acknowledged, and the world is what the writes make of it.
    pub(super) fn survives(&self, log: &[Vec<u8>], world: &World) -> Result<(), Broken> {
        for (seq, record) in &self.promised {
            if log.get(*seq) != Some(record) {
                let text = format!("record {seq} was acknowledged and is another one");
                return Err((Rule::Durability, text));
            }
        }
        for (name, seq) in &self.acknowledged {
            let known = world.container(name);
            let text = match (self.containers.get(name), known) {
                (None, None) => continue,
                (Some(declared), None) if declared.is_deleted => continue,
                (Some(declared), Some(known)) => {
                    let is_equal = declared.spec == *known.declared()
                        && declared.is_stopped == known.stopped_since.is_some()
                        && declared.is_deleted == known.deleted_since.is_some();
                    if is_equal {
                        continue;
                    }
                    format!(
                        "{name} is not as it was written at {seq} or later: {:?}, and not {:?}",
                        known.declared(),
                        declared.spec
                    )
                }
                (_, Some(_)) => format!("{name} is there and nobody declared it"),
                (_, None) => format!("{name} was declared at {seq} and is not there"),
            };
            return Err((Rule::Durability, text));
        }
        Ok(())
    }

    /// A record has become durable.
    pub(super) fn entry(&mut self, entry: &Entry, seq: usize) -> Result<(), Broken> {
        match entry {
            Entry::ContainerPut { spec, revision, .. } => self.put(spec, *revision),
            Entry::ContainerStopped { container, .. } => self.flag(container, |it| &mut it.is_stopped, true),
            Entry::ContainerStarted { container, .. } => self.flag(container, |it| &mut it.is_stopped, false),
            Entry::ContainerDeleted { container, .. } => self.flag(container, |it| &mut it.is_deleted, true),
            Entry::ContainerScaled(scaled) => self.scaled(&scaled.container, scaled.count),
            Entry::UnplacedChanged { container, count, .. } => {
                let declared = self.declared(container)?;
                let before = std::mem::replace(&mut declared.unplaced, *count);
                doubled(before == *count, || {
                    format!("{container} has {count} unplaced, again")
                })
            }
            Entry::RolloutTurned(_)
            | Entry::RolloutPaused { .. }
            | Entry::RolloutResumed { .. }
            | Entry::RolloutCompleted { .. } => self.rollout(entry),
            Entry::MachineRegistered { spec, .. } => {
                self.machines.entry(spec.machine_id.clone()).or_default();
                Ok(())
            }
            Entry::MachineRemoved { machine_id, .. } => {
                self.machines.remove(machine_id);
                self.replicas.retain(|_, live| live.machine_id != *machine_id);
                self.forget();
                Ok(())
            }
            Entry::MachineDraining { machine_id, .. } => {
                let machine = self.machine(machine_id)?;
                let before = std::mem::replace(&mut machine.is_draining, true);
                doubled(before, || format!("{machine_id} drains, again"))
            }
            Entry::MachineDrainCancelled { machine_id, .. } => {
                let machine = self.machine(machine_id)?;
                machine.forced_from = None;
                let before = std::mem::replace(&mut machine.is_draining, false);
                doubled(!before, || format!("{machine_id} drains no more, again"))
            }
            Entry::MachineDrainForced { machine_id, from, .. } => {
                self.machine(machine_id)?.forced_from = Some(*from);
                Ok(())
            }
            Entry::MachineHealthChanged {
                machine_id, state, ..
            } => {
                let machine = self.machine(machine_id)?;
                let before = machine.health.replace(*state);
                doubled(before == Some(*state), || {
                    format!("{machine_id} is {state:?}, again")
                })
            }
            Entry::ReplicaPlaced(_) | Entry::ReplicaStopping { .. } | Entry::ReplicaGone { .. } => {
                self.moves += 1;
                self.replica(entry, seq)
            }
            _ => Ok(()),
        }
    }

    fn replica(&mut self, entry: &Entry, seq: usize) -> Result<(), Broken> {
        match entry {
            Entry::ReplicaPlaced(placed) => self.placed(placed),
            Entry::ReplicaStopping {
                replica_id,
                cause,
                unasked: true,
                ..
            } => {
                let text = format!("{replica_id} stops because {cause}, and nobody has asked for that");
                Err((Rule::Restart, text))
            }
            Entry::ReplicaStopping {
                replica_id,
                cause,
                at,
                ..
            } => self
                .stopping(replica_id, *cause, *at)
                .map_err(|(rule, text)| (rule, format!("record {seq}: {text}"))),
            Entry::ReplicaGone { replica_id, .. } => {
                self.replicas.remove(replica_id);
                self.forget();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn rollout(&mut self, entry: &Entry) -> Result<(), Broken> {
        match entry {
            Entry::RolloutTurned(turned) => self.turned(turned),
            Entry::RolloutPaused { container, .. } => self.flag(container, |it| &mut it.is_paused, true),
            Entry::RolloutResumed { container, .. } => self.flag(container, |it| &mut it.is_paused, false),
            Entry::RolloutCompleted {
                container, revision, ..
            } => self.completed(container, *revision),
            _ => Ok(()),
        }
    }

    fn declared(&mut self, name: &ContainerName) -> Result<&mut Declared, Broken> {
        let text = format!("something is decided of {name}, which nobody declared");
        self.containers.get_mut(name).ok_or((Rule::Decision, text))
    }

    fn machine(&mut self, id: &MachineId) -> Result<&mut Registered, Broken> {
        let text = format!("something is decided of {id}, which is not registered");
        self.machines.get_mut(id).ok_or((Rule::Decision, text))
    }

    fn put(&mut self, spec: &ContainerSpec, revision: u64) -> Result<(), Broken> {
        let before = self
            .containers
            .get(&spec.name)
            .filter(|before| !before.is_deleted);
        let is_same = before.is_some_and(|before| before.spec == *spec);
        // What was scaled stays so while the bounds are the same kind of bounds.
        let count = match (
            &spec.scale,
            before.map(|before| (&before.spec.scale, before.count)),
        ) {
            (Scale::Autoscaling(after), Some((Scale::Autoscaling(was), count)))
                if was.desired == after.desired =>
            {
                count.clamp(after.min, after.max)
            }
            (Scale::Replicas(count), _) => *count,
            (Scale::Autoscaling(bounds), _) => bounds.desired,
        };
        let declared = Declared {
            spec: spec.clone(),
            revision,
            count,
            unplaced: self
                .containers
                .get(&spec.name)
                .map_or(0, |before| before.unplaced),
            is_stopped: before.is_some_and(|before| before.is_stopped),
            is_deleted: false,
            is_paused: before.is_some_and(|before| before.is_paused && before.revision == revision),
            completed: before.map(|before| before.completed.clone()).unwrap_or_default(),
            last_turn: before
                .filter(|before| before.revision == revision)
                .and_then(|before| before.last_turn),
        };
        let key = (spec.name.clone(), revision);
        let is_rolled_back = declared.last_turn == Some(RolloutTurn::RolledBack);
        let runs = match self.declarations.get(&key).filter(|_| is_rolled_back) {
            Some(runs) => with_scale_of(runs.clone(), spec),
            None => spec.clone(),
        };
        self.declarations.insert(key, runs);
        self.containers.insert(spec.name.clone(), declared);
        doubled(is_same, || format!("{} is declared as it was", spec.name))
    }

    /// The container goes back, or on, to what it was declared as before.
    fn turned(&mut self, turned: &RolloutTurned) -> Result<(), Broken> {
        let name = &turned.container;
        let before = self.declarations.get(&(name.clone(), turned.to)).cloned();
        let declared = self.declared(name)?;
        let Some(before) = before else {
            let text = format!("{name} turns to revision {}, which it never had", turned.to);
            return Err((Rule::Decision, text));
        };
        let runs = match turned.turn {
            RolloutTurn::Retried => declared.spec.clone(),
            RolloutTurn::RolledBack | RolloutTurn::Undone => with_scale_of(before, &declared.spec),
        };
        // What was written stays when it is rolled back.
        if turned.turn != RolloutTurn::RolledBack {
            declared.spec = runs.clone();
        }
        if turned.turn == RolloutTurn::RolledBack {
            if declared.last_turn == Some(RolloutTurn::RolledBack) {
                let text = format!("{name} is rolled back from what it was rolled back to");
                return Err((Rule::Doubled, text));
            }
            if !declared.completed.contains(&turned.to) {
                let text = format!(
                    "{name} goes back to revision {}, which never completed",
                    turned.to
                );
                return Err((Rule::Decision, text));
            }
        }
        declared.revision = turned.revision;
        (declared.last_turn, declared.is_paused) = (Some(turned.turn), false);
        self.declarations.insert((name.clone(), turned.revision), runs);
        Ok(())
    }

    fn completed(&mut self, name: &ContainerName, revision: u64) -> Result<(), Broken> {
        let declared = self.declared(name)?;
        let is_it = declared.revision == revision;
        declared.is_paused = false;
        let is_doubled = !declared.completed.insert(revision);
        if !is_it {
            let text = format!("revision {revision} of {name} completes, and is not what is rolled out");
            return Err((Rule::Decision, text));
        }
        doubled(is_doubled, || {
            format!("revision {revision} of {name} completes, again")
        })
    }

    /// What the replicas of a revision run.
    pub(super) fn declaration(&self, name: &ContainerName, revision: u64) -> Option<&ContainerSpec> {
        self.declarations.get(&(name.clone(), revision))
    }

    fn flag(
        &mut self,
        name: &ContainerName,
        of: impl Fn(&mut Declared) -> &mut bool,
        to: bool,
    ) -> Result<(), Broken> {
        let before = std::mem::replace(of(self.declared(name)?), to);
        self.forget();
        doubled(before == to, || {
            format!("{name} is stopped, started or deleted, again")
        })
    }

    fn scaled(&mut self, name: &ContainerName, count: u32) -> Result<(), Broken> {
        self.moves += 1;
        let declared = self.declared(name)?;
        let is_within = match &declared.spec.scale {
            Scale::Autoscaling(bounds) => (bounds.min..=bounds.max).contains(&count),
            Scale::Replicas(_) => false,
        };
        if !is_within {
            let text = format!("{name} is scaled to {count} and has {:?}", declared.spec.scale);
            return Err((Rule::Decision, text));
        }
        let before = std::mem::replace(&mut declared.count, count);
        doubled(before == count, || format!("{name} is scaled to {count}, again"))
    }

    fn placed(&mut self, placed: &Placed) -> Result<(), Broken> {
        let live = Live {
            container: placed.container.clone(),
            revision: placed.revision,
            machine_id: placed.machine_id.clone(),
            ordinal: placed.ordinal,
            relieves: placed.relieves.clone(),
            is_stopping: false,
        };
        let before = self.replicas.insert(placed.replica_id.clone(), live);
        doubled(before.is_some(), || {
            format!("{} is placed, again", placed.replica_id)
        })
    }

    /// A replica is told to stop: the log must say why.
    fn stopping(&mut self, id: &ReplicaId, cause: StopCause, at: Timestamp) -> Result<(), Broken> {
        let Some(live) = self.replicas.get(id) else {
            return Err((Rule::Gone, format!("{id} stops and is not placed")));
        };
        doubled(live.is_stopping, || format!("{id} stops, again"))?;
        let declared = self.containers.get(&live.container);
        let machine = self.machines.get(&live.machine_id);
        let siblings = self.replicas.values();
        let count = siblings
            .filter(|other| other.container == live.container && !other.is_stopping)
            .count();
        let is_due = match cause {
            StopCause::ScaledDown => declared.is_none_or(|it| {
                it.is_deleted
                    || it.is_stopped
                    || match live.ordinal {
                        Some(ordinal) => ordinal >= it.count,
                        None => count > wide(it.count),
                    }
            }),
            StopCause::Updated => declared.is_some_and(|it| it.revision != live.revision && !it.is_paused),
            StopCause::MachineDraining => machine.is_some_and(|machine| machine.is_draining),
            StopCause::MachineUnhealthy => {
                machine.is_some_and(|machine| machine.health == Some(MachineHealthState::Unhealthy))
            }
            StopCause::ContainerStopped => declared.is_some_and(|it| it.is_stopped),
            // Declared anew as the other kind, too.
            StopCause::ContainerDeleted => {
                declared.is_none_or(|it| it.is_deleted || it.spec.stateful != live.ordinal.is_some())
            }
            StopCause::Relieved => self
                .replicas
                .values()
                .any(|other| other.relieves.as_ref() == Some(id)),
        };
        if !is_due {
            let text = format!(
                "{id} stops because {cause}, which is not so: {count} of {:?} live, {machine:?}",
                declared.map(|it| it.count)
            );
            return Err((Rule::Restart, text));
        }
        let is_forced = machine.is_some_and(|machine| machine.forced_from.is_some_and(|from| from <= at));
        let container = live.container.clone();
        let is_bound = live.ordinal.is_some() && cause == StopCause::MachineDraining && !is_forced;
        if let Some(live) = self.replicas.get_mut(id) {
            live.is_stopping = true;
        }
        if is_bound {
            self.within_budget(&container, id)
        } else {
            Ok(())
        }
    }

    /// A drain has taken a stateful replica away: no more of them are out of place than may be.
    fn within_budget(&self, name: &ContainerName, id: &ReplicaId) -> Result<(), Broken> {
        let Some(declared) = self.containers.get(name) else {
            return Ok(());
        };
        let budget = declared
            .spec
            .disruption_budget
            .unwrap_or_default()
            .max_unavailable;
        let is_there = |ordinal: &u32| {
            self.replicas.values().any(|other| {
                other.container == *name && other.ordinal == Some(*ordinal) && !other.is_stopping
            })
        };
        let out = (0..declared.count).filter(|ordinal| !is_there(ordinal)).count();
        if out <= wide(budget) {
            return Ok(());
        }
        let text = format!("{id} is drained away: {out} of {name} are out of place, {budget} may be");
        Err((Rule::Restart, text))
    }

    /// Deleted containers of which nothing is left.
    fn forget(&mut self) {
        let left: BTreeSet<&ContainerName> = self.replicas.values().map(|live| &live.container).collect();
        self.containers
            .retain(|name, declared| !declared.is_deleted || left.contains(name));
    }
}

/// What its replicas see of a declaration, with all else of another one.
fn with_scale_of(template: ContainerSpec, other: &ContainerSpec) -> ContainerSpec {
    ContainerSpec {
        scale: other.scale.clone(),
        links: other.links.clone(),
        disruption_budget: other.disruption_budget,
        rollback: other.rollback,
        ..template
    }
}

fn wide(count: u32) -> usize {
    usize::try_from(count).expect("32 bits")
}

fn doubled(is_doubled: bool, text: impl FnOnce() -> String) -> Result<(), Broken> {
    if is_doubled {
        Err((Rule::Doubled, text()))
    } else {
        Ok(())
    }
}
