//! The mass-stop guard: a decision stops healthy replicas only as far as somebody has asked for it.
//!
//! Input: world, observed, limits, now, and what a decision would stop. Output: what of it nobody asked for, and whether
//! that is held. Pure.
//!
//! - Asked for is what follows from a write: the container or cluster is deleted or stopped, the machine drains, there are more
//!   replicas than are declared (of a scaled container: than its minimum, and half of what it has but for what stops on silent machines),
//!   the ordinal is beyond those declared, it was declared anew as the other kind, and what a rollout may take out of service at
//!   a time.
//! - All other stops of ready replicas are unasked. The rules make none: one is a fault of this program or of its state. Up to
//!   [`Rules::min_replicas`], or [`Rules::percent`] of all ready replicas, within [`WINDOW`] they are let pass; more are held,
//!   all of them, and stay held until an operator releases them for [`RELEASE`], or until nothing asks for them any more.
//!
//! [`crate::check`] verifies the same, on its own, before a decision is appended.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use berth_api::container::Scale;
use berth_api::id::{ContainerName, ReplicaId};
use berth_api::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::entry::MachineHealthState;
use crate::world::{Container, Observed, Readiness, Replica, World};

/// Stops that nobody asked for are counted over this time.
pub const WINDOW: Duration = Duration::from_secs(600);
/// For so long a release lets everything pass.
pub const RELEASE: Duration = Duration::from_secs(600);

/// How many healthy replicas may stop without a write that asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Of all ready replicas of the cluster; 100 holds nothing.
    pub percent: u32,
    /// So many at least.
    pub min_replicas: u32,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            percent: 10,
            min_replicas: 2,
        }
    }
}

/// How many unasked stops are let pass within [`WINDOW`].
#[must_use]
pub fn allowance(world: &World, observed: &Observed, rules: &Rules) -> usize {
    let ready = world
        .replicas()
        .values()
        .filter(|replica| observed.readiness(world, replica) == Readiness::Ready);
    let share = ready.count() * usize::try_from(rules.percent).unwrap_or(100) / 100;
    share.max(usize::try_from(rules.min_replicas).unwrap_or(usize::MAX))
}

/// Unasked stops of the last while.
#[must_use]
pub fn recent(world: &World, at: Timestamp) -> usize {
    let stops = world.unasked_stops.iter();
    stops.filter(|stopped| at.since(**stopped) < WINDOW).count()
}

/// Whether an operator has released what is held.
#[must_use]
pub fn is_released(world: &World, at: Timestamp) -> bool {
    world.stops_released_until.is_some_and(|until| at < until)
}

/// Those of these stops that nobody asked for.
#[must_use]
pub fn unasked<'a>(
    world: &World,
    observed: &Observed,
    stops: impl IntoIterator<Item = &'a ReplicaId>,
) -> BTreeSet<ReplicaId> {
    let mut of: BTreeMap<&ContainerName, Vec<&Replica>> = BTreeMap::new();
    for replica in stops.into_iter().filter_map(|id| world.replica(id)) {
        if observed.readiness(world, replica) == Readiness::Ready {
            of.entry(&replica.container).or_default().push(replica);
        }
    }
    let mut unasked = BTreeSet::new();
    for (name, stops) in of {
        let Some(container) = world.container(name) else {
            continue;
        };
        if world.deleted_at().is_some()
            || container.deleted_since.is_some()
            || container.stopped_since.is_some()
        {
            continue;
        }
        let is_draining = |replica: &&&Replica| {
            let machine = world.machine(&replica.machine_id);
            machine.is_some_and(|machine| machine.draining_since.is_some())
        };
        // Stateless replicas of what is stateful by now, or the reverse.
        let is_former = |replica: &Replica| replica.ordinal.is_some() != container.spec.stateful;
        let ready = world.replicas_of(name).filter(|replica| {
            replica.is_live() && !is_former(replica) && observed.readiness(world, replica) == Readiness::Ready
        });
        let there = world
            .replicas_of(name)
            .filter(|replica| !is_former(replica) && !is_written_off(world, replica));
        let slack = usize::try_from(container.max_unavailable().max(1)).unwrap_or(usize::MAX);
        let may = ready
            .count()
            .saturating_add(slack)
            .saturating_sub(floor(container, there.count()));
        let is_beyond = |replica: &&&Replica| replica.ordinal >= Some(most(container));
        let others = stops
            .iter()
            .filter(|replica| !is_draining(replica) && !is_former(replica) && !is_beyond(replica));
        unasked.extend(others.skip(may).map(|replica| replica.replica_id.clone()));
    }
    unasked
}

/// More replicas than this nobody has asked for: an ordinal that is not below it goes, whatever the others do.
fn most(container: &Container) -> u32 {
    match &container.spec.scale {
        Scale::Replicas(count) => *count,
        Scale::Autoscaling(scale) => scale.max,
    }
}

/// Fewer replicas than this nobody has asked for, where there are `there`.
fn floor(container: &Container, there: usize) -> usize {
    let floor = match &container.spec.scale {
        Scale::Replicas(count) => *count,
        Scale::Autoscaling(scale) => {
            u32::try_from(there.div_ceil(2)).map_or(scale.max, |half| half.max(scale.min))
        }
    };
    usize::try_from(floor).unwrap_or(usize::MAX)
}

/// It stops on a silent machine: on one that is off for good that is never confirmed, and it must not count for ever as what a
/// container has. While the cluster is frozen everything counts.
fn is_written_off(world: &World, replica: &Replica) -> bool {
    let machine = world.machine(&replica.machine_id);
    let is_silent = machine.is_none_or(|machine| machine.health == MachineHealthState::Unhealthy);
    !replica.is_live() && is_silent && world.frozen_since().is_none()
}

#[cfg(test)]
mod tests;
