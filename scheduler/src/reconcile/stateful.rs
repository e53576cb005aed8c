//! Containers whose replicas have ordinals: each has its own data and its own id, and two of one id never run.
//!
//! An ordinal starts when its id is free. Ordinals beyond the count stop one at a time, the highest first. Updates and
//! drains take one ordinal at a time, the lowest first, and only while every other one serves: stop, gone, start. One that does
//! not serve is updated before those that do. A drain takes as many as the container's disruption budget lets be out of place,
//! each only when there is room for it elsewhere; past its deadline, all of them at once. A replica on a silent machine is never
//! touched.

use berth_api::time::Timestamp;

use super::{Context, Plan, Purpose, Seen, Start, WaitReason};
use crate::entry::{Picked, StopCause};
use crate::world::Readiness;

pub(super) fn plan(context: &Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let wanted = context.container.wanted();
    scale_down(context, wanted, &mut plan);
    start_missing(context, wanted, &mut plan);
    force_off(context, wanted, &mut plan);
    replace(context, wanted, &mut plan);
    plan
}

fn at<'a>(context: &'a Context<'_>, ordinal: u32) -> Option<&'a Seen<'a>> {
    context
        .replicas
        .iter()
        .find(|replica| replica.ordinal == Some(ordinal))
}

fn scale_down(context: &Context<'_>, wanted: u32, plan: &mut Plan) {
    let beyond = || {
        context
            .replicas
            .iter()
            .filter(|replica| replica.ordinal >= Some(wanted))
    };
    if beyond().any(|replica| !replica.is_live()) {
        return;
    }
    if let Some(highest) = beyond().max_by_key(|replica| replica.ordinal) {
        plan.picked
            .insert(highest.replica_id.clone(), Picked::HighestOrdinal);
        plan.stop
            .push((highest.replica_id.clone(), StopCause::ScaledDown));
    }
}

fn start_missing(context: &Context<'_>, wanted: u32, plan: &mut Plan) {
    for ordinal in 0..wanted {
        match at(context, ordinal) {
            None => plan.start.push(Start {
                ordinal: Some(ordinal),
                revision: context.container.revision_for(None, Some(ordinal)),
                purpose: Purpose::Missing,
            }),
            Some(replica) => {
                if let Some(stopping) = &replica.stopping {
                    let reason = WaitReason::FormerGone {
                        machine_id: replica.machine_id.clone(),
                    };
                    plan.wait
                        .push(context.wait(Some(replica), reason, stopping.since));
                }
            }
        }
    }
}

/// Past the deadline of a drain nothing is waited for.
fn force_off(context: &Context<'_>, wanted: u32, plan: &mut Plan) {
    let on_time = (0..wanted).filter_map(|ordinal| at(context, ordinal));
    for replica in on_time.filter(|replica| replica.is_live() && context.is_forced_off(replica)) {
        plan.stop
            .push((replica.replica_id.clone(), StopCause::MachineDraining));
    }
}

/// Asks to move what drains, as far as the container's budget goes, and stops at most one ordinal that is outdated.
fn replace(context: &Context<'_>, wanted: u32, plan: &mut Plan) {
    let is_leaving = |replica: &Seen<'_>| {
        replica.is_live()
            && !context.is_silent(replica)
            && !context.is_forced_off(replica)
            && (context.is_draining(replica) || context.is_outdated(replica))
    };
    let mut leaving: Vec<&Seen<'_>> = (0..wanted)
        .filter_map(|ordinal| at(context, ordinal))
        .filter(|replica| is_leaving(replica))
        .collect();
    let is_sick = |replica: &Seen<'_>| replica.readiness == Readiness::Unready;
    // Those that serve nothing first: an update may be what mends them.
    leaving.sort_by_key(|replica| !is_sick(replica));
    // What serves nothing and is outdated need not be moved with care: its update moves it too.
    let (mut draining, mut outdated): (Vec<&Seen<'_>>, Vec<&Seen<'_>>) =
        leaving.into_iter().partition(|replica| {
            context.is_draining(replica) && !(context.is_outdated(replica) && is_sick(replica))
        });
    let is_out = |ordinal: &u32| match at(context, *ordinal) {
        None => true,
        Some(replica) => {
            !replica.is_live()
                || context.is_forced_off(replica)
                || (!is_leaving(replica) && !context.serves(replica))
        }
    };
    let out: Vec<u32> = (0..wanted).filter(is_out).collect();
    let budget = usize::try_from(context.container.max_unavailable()).expect("32 bits fit into a usize");
    let may_move = budget.saturating_sub(out.len()).min(draining.len());
    let moving: Vec<&Seen<'_>> = draining.drain(..may_move).collect();
    // The ordinal that the others wait for.
    let mut ahead = out
        .first()
        .copied()
        .or_else(|| moving.first().and_then(|replica| replica.ordinal));
    plan.moving
        .extend(moving.iter().map(|replica| replica.replica_id.clone()));
    if ahead.is_none()
        && let Some(next) = outdated.first().copied()
    {
        // One that serves goes only while every other one does.
        let serves = |ordinal: &u32| at(context, *ordinal).is_some_and(|other| context.serves(other));
        let is_other = |ordinal: &u32| Some(*ordinal) != next.ordinal;
        ahead = (0..wanted)
            .filter(|_| !is_sick(next))
            .find(|ordinal| is_other(ordinal) && !serves(ordinal));
        if ahead.is_none() {
            outdated.remove(0);
            plan.stop.push((next.replica_id.clone(), StopCause::Updated));
            ahead = next.ordinal;
        }
    }
    for replica in draining.into_iter().chain(outdated) {
        let reason = match ahead {
            Some(ordinal) if budget > 0 || !context.is_draining(replica) => WaitReason::Ordinal { ordinal },
            Some(_) | None => WaitReason::Budget {
                container: context.container.spec.name.clone(),
            },
        };
        let since = blocked_since(context, ahead);
        plan.wait.push(context.wait(Some(replica), reason, since));
    }
}

/// Since when an ordinal is out of place, or has been what it is.
fn blocked_since(context: &Context<'_>, ordinal: Option<u32>) -> Timestamp {
    let replica = ordinal.and_then(|ordinal| at(context, ordinal));
    replica.map_or(context.container.updated_at, |replica| {
        replica
            .stopping
            .map_or(replica.placed_at, |stopping| stopping.since)
    })
}
