//! What becomes of rollouts: when one is proven, completed, stalled, or goes back by itself; and how far it is.
//!
//! Input: world, observed, limits, now. Output: entries and facts. Pure.
//!
//! - A rollout is *completed* when every wanted replica runs its declaration and has been ready for [`Rules::min_ready_ms`]
//!   without a break, and none runs anything else.
//! - It is *proven* when one of its replicas has been ready for so long. A proven rollout is never rolled back by itself: what
//!   fails later may have another cause than the declaration.
//! - Failed starts of its live replicas are counted ([`Starts`]): crashes, images that cannot be had, health checks that did
//!   not pass in time for their node's patience. What the machine failed to do (infrastructure) is not the declaration's
//!   fault and does not count. At the limit, unproven and not paused, the container goes back to what completed last, as a
//!   rollout of its own; where there is nothing to go back to it is *stalled* and its nodes go on trying.
//! - A rollback is never rolled back, so two bad declarations never take turns.
//!
//! Counts are soft state: after a restart of the scheduler they begin with the crashes that nodes still report.

use std::collections::BTreeMap;

use berth_api::id::ContainerName;
use berth_api::replica::{Cause, Phase, ReplicaStatus};
use berth_api::rest::rollout::{RolloutCause, RolloutPhase, RolloutView};
use berth_api::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::entry::{Entry, RolloutTurned};
use crate::world::{Container, Former, FormerEnd, Now, Observed, Readiness, Replica, RolloutTurn, World};

/// When a rollout counts as failed or as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// After so many failed starts it is rolled back; 0 is never. A container may say otherwise.
    pub failed_starts_max: u32,
    /// A new replica that was ready for so long without a break has come up.
    pub min_ready_ms: u64,
}

impl Default for Rules {
    /// Eight attempts of one replica take about a minute with the nodes' back-off: long enough for a dependency that comes up
    /// beside it.
    fn default() -> Self {
        Self {
            failed_starts_max: 8,
            min_ready_ms: 10_000,
        }
    }
}

/// How a replica of a rollout has started so far, by what its node said.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Starts {
    /// Of the replica: an ordinal's id is used again.
    sequence: u64,
    ready_since_ms: Option<u64>,
    pub failed: u32,
    pub cause: Option<Cause>,
    failed_at: Option<Timestamp>,
    crashes: u32,
}

impl Starts {
    fn see(&mut self, readiness: Readiness, status: Option<&ReplicaStatus>, now: Now) {
        if let Some(status) = status {
            self.count(status);
        }
        if readiness == Readiness::Ready {
            self.ready_since_ms.get_or_insert(now.monotonic_ms);
        } else {
            self.ready_since_ms = None;
        }
    }

    fn count(&mut self, status: &ReplicaStatus) {
        let is_new = status.failed_at.is_some() && status.failed_at != self.failed_at;
        let crashes = status.recent_crashes.saturating_sub(self.crashes);
        let is_own = |cause: &Cause| match cause {
            Cause::OutOfMemory
            | Cause::Exit { .. }
            | Cause::Signal { .. }
            | Cause::Image { .. }
            | Cause::Health { .. } => true,
            Cause::Infrastructure { .. } => false,
        };
        if is_new || crashes > 0 {
            self.ready_since_ms = None;
            if status.cause.as_ref().is_none_or(is_own) {
                self.failed = self.failed.saturating_add(crashes.max(1));
                self.cause.clone_from(&status.cause);
            }
        } else if self.failed == 0
            && status.phase == Phase::Backoff
            && status.cause.as_ref().is_none_or(is_own)
        {
            // Of a node that tells no times.
            self.failed = 1;
            self.cause.clone_from(&status.cause);
        }
        self.failed_at = status.failed_at;
        self.crashes = status.recent_crashes;
    }

    fn is_steady(&self, rules: &Rules, now: Now) -> bool {
        self.ready_since_ms
            .is_some_and(|since| now.monotonic_ms.saturating_sub(since) >= rules.min_ready_ms)
    }
}

/// Notes how the replicas of open rollouts do, once anything was said of them. Soft state only: what is decided of it is
/// [`entries`].
pub fn observe(world: &World, observed: &mut Observed, now: Now) {
    let mut known = std::mem::take(&mut observed.starts);
    let mut starts = BTreeMap::new();
    for (name, container) in open(world) {
        for replica in updated(world, name, container) {
            let fresh = || Starts {
                sequence: replica.sequence,
                ..Starts::default()
            };
            let status = observed.status(replica);
            let known = known.remove(&replica.replica_id);
            let known = known.filter(|start| start.sequence == replica.sequence);
            if known.is_none() && status.is_none() {
                continue;
            }
            let mut start = known.unwrap_or_else(fresh);
            start.see(observed.readiness(world, replica), status, now);
            starts.insert(replica.replica_id.clone(), start);
        }
    }
    observed.starts = starts;
}

fn open(world: &World) -> impl Iterator<Item = (&ContainerName, &Container)> {
    world
        .containers()
        .iter()
        .filter(|(_, container)| container.wanted() > 0 && container.open_rollout().is_some())
}

/// Live replicas that run what is rolled out.
fn updated<'a>(
    world: &'a World,
    name: &ContainerName,
    container: &'a Container,
) -> impl Iterator<Item = &'a Replica> + use<'a> {
    world
        .replicas_of(name)
        .filter(|replica| replica.is_live() && !container.is_outdated(replica))
}

/// Whether a new replica is ready and was not so only in passing: one that has failed counts when it has stayed up.
#[must_use]
pub(crate) fn is_up(observed: &Observed, rules: &Rules, now: Now, replica: &Replica) -> bool {
    observed
        .starts
        .get(&replica.replica_id)
        .is_none_or(|starts| starts.failed == 0 || starts.is_steady(rules, now))
}

/// What is decided about rollouts now, ordered by container. Applied, it gives none a second time.
#[must_use]
pub fn entries(world: &World, observed: &Observed, rules: &Rules, now: Now) -> Vec<Entry> {
    open(world)
        .filter_map(|(name, container)| entry(world, observed, rules, now, (name, container)))
        .collect()
}

fn entry(
    world: &World,
    observed: &Observed,
    rules: &Rules,
    now: Now,
    (name, container): (&ContainerName, &Container),
) -> Option<Entry> {
    let rollout = container.open_rollout()?;
    let (revision, at) = (rollout.id, now.wall);
    let is_steady = |replica: &&Replica| {
        let starts = observed.starts.get(&replica.replica_id);
        starts.is_some_and(|starts| starts.is_steady(rules, now))
            && observed.readiness(world, replica) == Readiness::Ready
    };
    let steady = updated(world, name, container).filter(is_steady).count();
    let wanted = usize::try_from(container.wanted()).expect("32 bits fit into a usize");
    let has_old = || {
        let mut replicas = world.replicas_of(name);
        replicas.any(|replica| replica.is_live() && container.is_outdated(replica))
    };
    let container_name = || name.clone();
    if steady >= wanted && !has_old() {
        return Some(Entry::RolloutCompleted {
            container: container_name(),
            revision,
            at,
        });
    }
    if rollout.proven_at.is_some() || rollout.paused_since.is_some() {
        return None;
    }
    if steady > 0 {
        return Some(Entry::RolloutProven {
            container: container_name(),
            revision,
            at,
        });
    }
    let limit = limit(container, rules);
    let (failed, cause) = failed(world, observed, (name, container));
    if limit == 0 || failed < limit {
        return None;
    }
    let cause = cause.map(|cause| format!(", the last: {cause}"));
    let reason = format!("{failed} failed starts{}", cause.unwrap_or_default());
    let is_rollback = rollout.cause == RolloutCause::RolledBack;
    match container.fallback().filter(|_| !is_rollback) {
        Some(to) => Some(Entry::RolloutTurned(RolloutTurned {
            container: container_name(),
            revision: revision + 1,
            to,
            turn: RolloutTurn::RolledBack,
            reason: Some(reason),
            at,
        })),
        None if rollout.stalled.is_some() => None,
        None => Some(Entry::RolloutStalled {
            container: container_name(),
            revision,
            reason,
            at,
        }),
    }
}

/// After so many failed starts a rollout of the container is rolled back; 0: never.
fn limit(container: &Container, rules: &Rules) -> u32 {
    let own = container.spec.rollback.map(|policy| policy.after_failed_starts);
    own.unwrap_or(rules.failed_starts_max)
}

/// Failed starts of the live replicas of a rollout, and why the one that failed most did.
fn failed<'a>(
    world: &World,
    observed: &'a Observed,
    (name, container): (&ContainerName, &Container),
) -> (u32, Option<&'a Cause>) {
    let updated = || updated(world, name, container);
    let starts = || updated().filter_map(|replica| observed.starts.get(&replica.replica_id));
    let sum = starts().fold(0u32, |sum, starts| sum.saturating_add(starts.failed));
    let worst = starts().max_by_key(|starts| starts.failed);
    (sum, worst.and_then(|starts| starts.cause.as_ref()))
}

/// The container's rollout as the API tells it; none for a container that is older than rollouts.
#[must_use]
pub fn view(world: &World, observed: &Observed, name: &ContainerName) -> Option<RolloutView> {
    let container = world.container(name)?;
    let rollout = container.rollout.as_ref()?;
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    let ready = updated(world, name, container)
        .filter(|replica| observed.readiness(world, replica) == Readiness::Ready)
        .count();
    let old = world
        .replicas_of(name)
        .filter(|replica| container.is_outdated(replica))
        .count();
    let stalled = rollout.stalled.as_ref().filter(|_| ready == 0);
    let unplaced = (container.unplaced > 0).then(|| format!("{} replicas have no place", container.unplaced));
    let (phase, reason) = match (rollout.completed_at, rollout.paused_since, stalled) {
        (Some(_), ..) => (RolloutPhase::Completed, None),
        (None, Some(_), _) => (RolloutPhase::Paused, None),
        (None, None, Some(stalled)) => (RolloutPhase::Stalled, Some(stalled.reason.clone())),
        (None, None, None) if unplaced.is_some() => (RolloutPhase::Stalled, unplaced),
        (None, None, None) => (RolloutPhase::Progressing, None),
    };
    let failed_starts = if rollout.is_open() {
        failed(world, observed, (name, container)).0
    } else {
        0
    };
    Some(RolloutView {
        id: rollout.id,
        phase,
        reason,
        cause: rollout.cause,
        changes: rollout.changes.clone(),
        image: container.spec.image.clone(),
        started_at: rollout.started_at,
        paused_since: rollout.paused_since,
        completed_at: rollout.completed_at,
        total: container.wanted(),
        updated: count(updated(world, name, container).count()),
        ready: count(ready),
        old: count(old),
        failed_starts,
        can_undo: undo(container).is_some(),
        previous: rollout.former.as_ref().map(former),
    })
}

fn former(former: &Former) -> berth_api::rest::rollout::FormerRollout {
    berth_api::rest::rollout::FormerRollout {
        id: former.id,
        phase: match former.end {
            FormerEnd::Completed => RolloutPhase::Completed,
            FormerEnd::Superseded => RolloutPhase::Superseded,
            FormerEnd::RolledBack => RolloutPhase::RolledBack,
        },
        ended_at: former.at,
        reason: former.reason.clone(),
    }
}

/// The rollout in words, for explanations.
#[must_use]
pub fn facts(world: &World, observed: &Observed, name: &ContainerName) -> Vec<(String, String)> {
    let Some(view) = view(world, observed, name) else {
        return vec![];
    };
    let reason = view
        .reason
        .map(|reason| format!(": {reason}"))
        .unwrap_or_default();
    let failed = match view.failed_starts {
        0 => String::new(),
        failed => format!(", {failed} failed starts"),
    };
    let mut facts = vec![(
        "rollout".to_owned(),
        format!(
            "{} is {}{reason}; {} of {} updated, {} ready, {} old left{failed}",
            view.id, view.phase, view.updated, view.total, view.ready, view.old
        ),
    )];
    let changes = match view.changes.as_slice() {
        [] => String::new(),
        changes => format!(" ({})", changes.join(", ")),
    };
    facts.push((
        "rollout cause".to_owned(),
        format!("{}{changes}, at {}", view.cause, view.started_at),
    ));
    if let Some(former) = view.previous {
        let reason = former
            .reason
            .map(|reason| format!(": {reason}"))
            .unwrap_or_default();
        facts.push((
            "rollout before".to_owned(),
            format!("{} {} at {}{reason}", former.id, former.phase, former.ended_at),
        ));
    }
    facts
}

/// Where an undo goes: after a rollback, to what it has gone back to, which is then what is declared.
#[must_use]
pub fn undo(container: &Container) -> Option<u64> {
    match container.declared {
        Some(_) => Some(container.revision),
        None => container.fallback(),
    }
}

/// Why what is declared is not what runs; none when it is.
#[must_use]
pub fn rolled_back(container: &Container) -> Option<String> {
    container.declared.as_ref()?;
    let rollout = container.rollout.as_ref()?;
    let former = rollout.former.as_ref();
    let (id, reason) = former
        .filter(|former| former.end == FormerEnd::RolledBack)
        .map_or((rollout.id, None), |former| (former.id, former.reason.as_deref()));
    Some(format!(
        "rollout {id} was rolled back: {}; the replicas run {} as rollout {}. Declare something else, resume to try again, or \
         undo to keep what runs",
        reason.unwrap_or("it failed"),
        container.spec.image,
        rollout.id
    ))
}

#[cfg(test)]
mod tests;
