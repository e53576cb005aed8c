//! Containers whose replicas have ordinals: each has its own data and its own id, and two of one id never run.
//!
//! An ordinal starts when its id is free. Ordinals beyond the count stop one at a time, the highest first. Updates and
//! drains take one ordinal at a time, the lowest first, and only while every other one is in place: stop, gone, start. A
//! drain stops an ordinal only when there is room for it elsewhere; past its deadline, all of them at once. A replica on a
//! silent machine is never touched.

use super::{Context, Plan, Purpose, Start, WaitReason};
use crate::entry::StopCause;
use crate::world::Replica;

pub(super) fn plan(context: &Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let wanted = context.container.wanted();
    scale_down(context, wanted, &mut plan);
    start_missing(context, wanted, &mut plan);
    force_off(context, wanted, &mut plan);
    replace_one(context, wanted, &mut plan);
    plan
}

fn at<'a>(context: &Context<'a>, ordinal: u32) -> Option<&'a Replica> {
    context
        .replicas
        .iter()
        .copied()
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
        plan.stop
            .push((highest.replica_id.clone(), StopCause::ScaledDown));
    }
}

fn start_missing(context: &Context<'_>, wanted: u32, plan: &mut Plan) {
    for ordinal in 0..wanted {
        match at(context, ordinal) {
            None => plan.start.push(Start {
                ordinal: Some(ordinal),
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

/// Stops, or asks to move, at most one ordinal.
fn replace_one(context: &Context<'_>, wanted: u32, plan: &mut Plan) {
    let is_leaving = |replica: &Replica| {
        replica.is_live()
            && !context.is_silent(replica)
            && !context.is_forced_off(replica)
            && (context.is_draining(replica) || context.world.is_outdated(replica))
    };
    let leaving: Vec<&Replica> = (0..wanted)
        .filter_map(|ordinal| at(context, ordinal))
        .filter(|replica| is_leaving(replica))
        .collect();
    // Those that serve nothing first: an update may be what mends them.
    let next = leaving
        .iter()
        .find(|replica| context.is_down(replica))
        .or_else(|| leaving.first());
    let Some(next) = next else {
        return;
    };
    let blocker = (0..wanted).find(|ordinal| match at(context, *ordinal) {
        None => true,
        Some(replica) => {
            !replica.is_live()
                || context.is_forced_off(replica)
                || (!is_leaving(replica) && !context.is_ready(replica))
        }
    });
    if let Some(ordinal) = blocker {
        let since = at(context, ordinal).map_or(context.container.updated_at, |replica| {
            replica
                .stopping
                .map_or(replica.placed_at, |stopping| stopping.since)
        });
        for replica in leaving {
            plan.wait
                .push(context.wait(Some(replica), WaitReason::Ordinal { ordinal }, since));
        }
        return;
    }
    if context.is_draining(next) {
        plan.moving.push(next.replica_id.clone());
    } else {
        plan.stop.push((next.replica_id.clone(), StopCause::Updated));
    }
    for replica in leaving
        .iter()
        .filter(|replica| replica.replica_id != next.replica_id)
    {
        let ordinal = next.ordinal.unwrap_or_default();
        let reason = WaitReason::Ordinal { ordinal };
        plan.wait
            .push(context.wait(Some(replica), reason, context.container.updated_at));
    }
}
