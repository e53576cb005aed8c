//! Decisions against the word of nodes: healthy replicas stop only as far as somebody has asked for it, and nothing is
//! forgotten of which something is left. Shares no code with [`crate::guard`] and [`Observed::is_gone`].

use std::collections::{BTreeMap, BTreeSet};

use berth_api::container::Scale;
use berth_api::id::{ContainerName, MachineId, ReplicaId};
use berth_api::replica::Phase;

use super::Violation;
use crate::entry::{Entry, MachineHealthState};
use crate::liveness::Limits;
use crate::world::{Machine, Now, Observed, Replica, World};

/// Milliseconds over which unasked stops are counted: ten minutes, said again here on purpose.
const WINDOW_MS: u64 = 600_000;

pub(super) fn mass(
    before: &World,
    observed: &Observed,
    limits: &Limits,
    now: Now,
    entries: &[Entry],
) -> Option<Violation> {
    let mut tally = Tally {
        before,
        observed,
        sick: BTreeMap::new(),
        gone: BTreeSet::new(),
        told: BTreeSet::new(),
        is_frozen: before.frozen_since().is_some(),
        stopped: BTreeMap::new(),
    };
    let mut is_marked = 0;
    for entry in entries {
        tally.read(entry);
        is_marked += u64::from(matches!(entry, Entry::ReplicaStopping { unasked: true, .. }));
    }
    let released = before.stops_released_until.map_or(0, |until| until.millis());
    let unasked: u64 = tally.stopped.keys().map(|name| tally.unasked(name)).sum();
    let unasked = unasked.max(is_marked);
    if unasked == 0 || now.wall.millis() < released {
        return None;
    }
    let ready = before
        .replicas()
        .values()
        .filter(|replica| tally.is_ready(replica));
    let share = to_u64(ready.count()) * u64::from(limits.guard.percent) / 100;
    let allowed = share.max(limits.guard.min_replicas.into());
    let lately = before
        .unasked_stops
        .iter()
        .filter(|at| now.wall.millis().saturating_sub(at.millis()) < WINDOW_MS);
    let stopped = unasked + to_u64(lately.count());
    (stopped > allowed).then_some(Violation::MassStop { stopped, allowed })
}

/// Replicas that would be forgotten while their process, network or volume may still be there.
pub(super) fn left(before: &World, observed: &Observed, entries: &[Entry]) -> Vec<Violation> {
    let forgotten = entries.iter().filter_map(|entry| match entry {
        Entry::ReplicaGone { replica_id, .. } => before.replica(replica_id),
        _ => None,
    });
    let is_left = |replica: &&Replica| {
        let Some(stopping) = replica.stopping else {
            return true;
        };
        let Some(said) = observed.machines.get(&replica.machine_id) else {
            return true;
        };
        let (epoch, generation) = said.accepted.unwrap_or_default();
        let knows = epoch > stopping.epoch || (epoch == stopping.epoch && generation >= stopping.generation);
        let id = &replica.replica_id;
        let is_listed = said
            .replicas
            .get(id)
            .is_some_and(|status| status.phase != Phase::Gone);
        !knows || is_listed || (said.unlisted.contains(id) && !said.replicas.contains_key(id))
    };
    forgotten
        .filter(is_left)
        .map(|replica| Violation::Left {
            replica_id: replica.replica_id.clone(),
        })
        .collect()
}

struct Tally<'a> {
    before: &'a World,
    observed: &'a Observed,
    /// Health as the decision has it.
    sick: BTreeMap<&'a MachineId, MachineHealthState>,
    gone: BTreeSet<&'a ReplicaId>,
    /// All that the decision stops.
    told: BTreeSet<&'a ReplicaId>,
    is_frozen: bool,
    /// Ready ones that the decision stops.
    stopped: BTreeMap<&'a ContainerName, BTreeSet<&'a ReplicaId>>,
}

impl<'a> Tally<'a> {
    fn read(&mut self, entry: &'a Entry) {
        if let Entry::MachineHealthChanged {
            machine_id, state, ..
        } = entry
        {
            self.sick.insert(machine_id, *state);
        }
        match entry {
            Entry::ReplicaStopping { replica_id, .. } => drop(self.told.insert(replica_id)),
            Entry::FreezeChanged { is_frozen, .. } => self.is_frozen = *is_frozen,
            _ => {}
        }
        let known = match entry {
            Entry::ReplicaStopping { replica_id, .. } | Entry::ReplicaGone { replica_id, .. } => {
                self.before.replica(replica_id)
            }
            _ => None,
        };
        let Some(replica) = known else { return };
        if matches!(entry, Entry::ReplicaGone { .. }) {
            self.gone.insert(&replica.replica_id);
        } else if self.is_ready(replica) {
            self.stopped
                .entry(&replica.container)
                .or_default()
                .insert(&replica.replica_id);
        }
    }

    /// Its machine is not silent.
    fn is_heard(&self, replica: &Replica) -> bool {
        let machine = self.before.machine(&replica.machine_id);
        let health = |machine: &Machine| *self.sick.get(&replica.machine_id).unwrap_or(&machine.health);
        machine.is_some_and(|machine| health(machine) != MachineHealthState::Unhealthy)
    }

    /// Its node has said last that it serves, and is not silent.
    fn is_ready(&self, replica: &Replica) -> bool {
        let said = self.observed.machines.get(&replica.machine_id);
        let status = said.and_then(|said| said.replicas.get(&replica.replica_id));
        replica.stopping.is_none() && self.is_heard(replica) && status.is_some_and(|status| status.ready)
    }

    /// How many of the stops of a container no write has asked for.
    fn unasked(&self, name: &ContainerName) -> u64 {
        let Some(container) = self.before.container(name) else {
            return 0;
        };
        let is_going = container.deleted_since.is_some() || container.stopped_since.is_some();
        if is_going || self.before.deleted_at().is_some() {
            return 0;
        }
        let is_own = |replica: &&Replica| replica.ordinal.is_some() == container.spec.stateful;
        let all = || self.before.replicas_of(name).filter(is_own);
        let is_there = |replica: &&Replica| {
            let stops = replica.stopping.is_some() || self.told.contains(&replica.replica_id);
            let is_written_off = stops && !self.is_heard(replica) && !self.is_frozen;
            !is_written_off && !self.gone.contains(&replica.replica_id)
        };
        let there = to_u64(all().filter(is_there).count());
        let floor = match &container.spec.scale {
            Scale::Replicas(count) => u64::from(*count),
            Scale::Autoscaling(bounds) => u64::from(bounds.min).max(there.div_ceil(2)),
        };
        let ready = to_u64(all().filter(|replica| self.is_ready(replica)).count());
        let budget = container
            .spec
            .disruption_budget
            .map_or(1, |budget| budget.max_unavailable);
        let may = (ready + u64::from(budget.max(1))).saturating_sub(floor);
        let drains = |id: &&&ReplicaId| {
            let machine = self
                .before
                .replica(id)
                .and_then(|replica| self.before.machine(&replica.machine_id));
            machine.is_some_and(|machine| machine.draining_since.is_some())
        };
        let is_of_kind = |id: &&&ReplicaId| self.before.replica(id).as_ref().is_some_and(is_own);
        let stopped = self.stopped.get(name).into_iter().flatten();
        let declared = match &container.spec.scale {
            Scale::Replicas(count) => *count,
            Scale::Autoscaling(bounds) => bounds.max,
        };
        let is_within = |id: &&&ReplicaId| {
            let replica = self.before.replica(id);
            replica.is_some_and(|replica| replica.ordinal.is_none_or(|ordinal| ordinal < declared))
        };
        let others = stopped
            .filter(|id| !drains(id))
            .filter(is_of_kind)
            .filter(is_within);
        to_u64(others.count()).saturating_sub(may)
    }
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
