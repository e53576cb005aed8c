//! How a container is doing, in the wire's words. Pure.
//!
//! `stopped` when nothing is wanted of it; else `failing` when a wanted replica has no place, crashes over and over, or does
//! not serve for a reason of its own, or when what is declared was rolled back; else `running` when as many are ready as are wanted; else `pending`.

use std::sync::Arc;

use berth_api::container::Scale;
use berth_api::id::ContainerName;
use berth_api::replica::{CRASH_LOOP_MIN, Phase, ReplicaStatus, WireReplicaStatus};
use berth_api::rest::container::{ContainerState, ContainerStatus, ContainerStatusReason};

use crate::decide::request;
use crate::placement::{self, Fleet, Unplaced};
use crate::reconcile::Squeeze;
use crate::rollout;
use crate::world::{Container, Observed, Readiness, Replica, World};

/// Status, reason and message of a container; none for one that does not exist.
#[must_use]
pub fn container_state(world: &World, observed: &Observed, name: &ContainerName) -> Option<ContainerState> {
    let container = world.container(name)?;
    let live: Vec<&Replica> = world
        .replicas_of(name)
        .filter(|replica| replica.is_live())
        .collect();
    let reports = || {
        live.iter()
            .filter_map(|replica| Some((*replica, observed.status(replica)?)))
    };
    let mut state = ContainerState {
        recent_crashes: reports().map(|(_, report)| report.recent_crashes).max(),
        last_crash_time: reports().filter_map(|(_, report)| report.failed_at).max(),
        backoff_until: reports()
            .filter(|(_, report)| report.phase == Phase::Backoff)
            .filter_map(|(_, report)| report.wait.as_ref()?.next_attempt)
            .min(),
        ..ContainerState::default()
    };
    let wanted = usize::try_from(container.wanted()).expect("32 bits fit into a usize");
    let ready = live
        .iter()
        .filter(|replica| observed.readiness(world, replica) == Readiness::Ready)
        .count();
    let crashing = reports().find(|(_, report)| report.recent_crashes >= CRASH_LOOP_MIN);
    let failed = reports().find(|(_, report)| matches!(report.phase, Phase::Backoff | Phase::Unhealthy));
    if container.wanted() == 0 {
        state.status = ContainerStatus::Stopped;
        state.message = stopped_message(container);
    } else if container.unplaced > 0 {
        state.status = ContainerStatus::Failing;
        state.reason = Some(ContainerStatusReason::Unschedulable);
        state.message = Some(unplaced_message(world, container));
    } else if let Some((replica, report)) = crashing {
        state.status = ContainerStatus::Failing;
        state.reason = Some(ContainerStatusReason::CrashLoopBackOff);
        state.message = Some(failure_message(replica, report));
    } else if let Some((replica, report)) = failed {
        state.status = ContainerStatus::Failing;
        state.reason = Some(ContainerStatusReason::ReplicaFailed);
        state.message = Some(failure_message(replica, report));
    } else if let Some(message) = rollout::rolled_back(container) {
        state.status = ContainerStatus::Failing;
        state.reason = Some(ContainerStatusReason::ReplicaFailed);
        state.message = Some(message);
    } else if ready >= wanted {
        state.status = ContainerStatus::Running;
        state.message = squeezed_message(world, &live);
    } else {
        state.status = ContainerStatus::Pending;
        state.message = Some(format!("{ready} of {wanted} replicas are ready"));
    }
    Some(state)
}

/// The wire's status of a placed replica: its node's last word, unless the scheduler knows better.
#[must_use]
pub fn replica_status(observed: &Observed, replica: &Replica) -> WireReplicaStatus {
    let reported = observed.status(replica).map(|report| report.phase.wire());
    match (&replica.stopping, reported) {
        (None, reported) => reported.unwrap_or_default(),
        (Some(_), Some(WireReplicaStatus::Stopped)) => WireReplicaStatus::Stopped,
        (Some(_), _) => WireReplicaStatus::Stopping,
    }
}

/// Why one more replica of a container has no place now; none when it has one.
#[must_use]
pub fn why_unplaced(world: &World, name: &ContainerName) -> Option<Arc<Unplaced>> {
    let container = world.container(name)?;
    let missing = (0..container.count).find(|ordinal| {
        let is_there = |replica: &Replica| replica.ordinal == Some(*ordinal);
        !world.replicas_of(name).any(is_there)
    });
    let ordinal = if container.spec.stateful { missing } else { None };
    placement::place(Fleet::of(world), &[request(world, name, ordinal, None)])
        .pop()?
        .err()
}

/// The bounds of automatic scaling or the fixed count, for people.
#[must_use]
pub(crate) fn scale_text(container: &Container) -> String {
    match &container.spec.scale {
        Scale::Replicas(count) => format!("{count} replicas"),
        Scale::Autoscaling(scale) => {
            format!("{} to {} replicas, {} now", scale.min, scale.max, container.count)
        }
    }
}

fn stopped_message(container: &Container) -> Option<String> {
    let since = container.deleted_since.map(|at| ("deleted", at));
    let since = since.or_else(|| container.stopped_since.map(|at| ("stopped", at)));
    since.map(|(what, at)| format!("it was {what} at {at}"))
}

pub(crate) fn unplaced_message(world: &World, container: &Container) -> String {
    let count = container.unplaced;
    match why_unplaced(world, &container.spec.name) {
        Some(unplaced) => format!("{count} replicas have no place: {unplaced}"),
        None => format!("{count} replicas have no place yet"),
    }
}

/// How many replicas run with less than they desire, and what the first of them has.
fn squeezed_message(world: &World, live: &[&Replica]) -> Option<String> {
    let squeezes: Vec<Squeeze> = live
        .iter()
        .filter_map(|replica| Squeeze::of(world, replica))
        .collect();
    let first = squeezes.first()?;
    let (squeezed, live) = (squeezes.len(), live.len());
    Some(format!("{squeezed} of {live} replicas are squeezed: one {first}"))
}

pub(crate) fn failure_message(replica: &Replica, report: &ReplicaStatus) -> String {
    let id = &replica.replica_id;
    let crashes = report.recent_crashes;
    match (&report.cause, report.phase) {
        (Some(cause), _) if crashes > 1 => format!("replica {id} failed {crashes} times: {cause}"),
        (Some(cause), _) => format!("replica {id} failed: {cause}"),
        (None, Phase::Unhealthy) => {
            format!(
                "replica {id} failed its health check {} times in a row",
                report.consecutive_failures
            )
        }
        (None, phase) => format!("replica {id} is in {phase}"),
    }
}
