//! Containers whose replicas are alike: any of them may go, and a new one may come before an old one leaves.
//!
//! Live replicas fall into three sets:
//! - *lost*: on a machine that was silent for too long, and no freeze holds. Each is replaced at once; it is told to stop when
//!   its replacement has a place, so with no place it goes on serving if it still can.
//! - *leaving*: outdated, on a draining machine, or squeezed and being replaced. A replacement comes first, and one leaves for
//!   each that is ready; those that certainly serve nothing leave at once, and so do those on a machine whose drain is over its
//!   deadline. A rollout goes one at a time, a drain all at once.
//! - *staying*: the rest. When there are too many, those that are not ready go first, then squeezed ones, then the newest; of
//!   a scaled container half of them at a time. Of a rollout that is paused that is the replacement that had come too many: it
//!   must not stand in the way of a drain until somebody resumes.
//!
//! A squeezed replica may be replaced by a whole one ([`Plan::relieve`]), one at a time and only when everything else is at
//! rest. While its replacement comes up it is leaving.

use berth_api::container::Scale;

use super::{Context, Plan, Purpose, Seen, Start, WaitReason};
use crate::entry::{Picked, StopCause};
use crate::world::Readiness;

pub(super) fn plan(context: &Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let wanted = usize::try_from(context.container.wanted()).expect("32 bits fit into a usize");
    let (lost, active): (Vec<&Seen<'_>>, Vec<&Seen<'_>>) = context
        .replicas
        .iter()
        .filter(|replica| replica.is_live())
        .partition(|replica| context.freeze.is_none() && context.is_lost(replica));
    let (mut leaving, mut staying): (Vec<&Seen<'_>>, Vec<&Seen<'_>>) =
        active.into_iter().partition(|replica| {
            context.is_draining(replica) || context.is_outdated(replica) || is_relieved(context, replica)
        });

    staying.sort_by_cached_key(|replica| {
        let is_squeezed = replica.granted.is_some();
        (replica.readiness, is_squeezed, replica.sequence)
    });
    let mut pace = Pace::of(context, staying.len() + leaving.len() + lost.len());
    let ready = staying.iter().filter(|replica| replica.is_ready()).count();
    let kept = pace.kept((staying.len(), ready), wanted);
    pace.ready -= ready.saturating_sub(kept);
    for excess in staying.split_off(kept) {
        plan.picked.insert(excess.replica_id.clone(), picked(excess));
        plan.stop.push((excess.replica_id.clone(), StopCause::ScaledDown));
    }
    retire(context, (wanted, pace), &staying, &mut leaving, &mut plan);

    let live = staying.len() + leaving.len();
    let replaced = lost.len().min(wanted.saturating_sub(live));
    for (index, replica) in lost.iter().enumerate() {
        let id = replica.replica_id.clone();
        if index < replaced {
            plan.start
                .push(start(context, Some(replica.revision), Purpose::InsteadOf(id)));
        } else {
            plan.stop.push((id, StopCause::MachineUnhealthy));
        }
    }
    let missing = wanted.saturating_sub(live + lost.len());
    plan.start
        .extend((0..missing).map(|_| start(context, None, Purpose::Missing)));

    let coming = replaced + missing;
    let draining = leaving
        .iter()
        .filter(|replica| context.is_draining(replica))
        .count();
    let surge_max = draining.max(usize::from(!leaving.is_empty()));
    let surge = wanted
        .saturating_sub(staying.len() + coming)
        .min((wanted + surge_max).saturating_sub(live + coming));
    // While a rollout is paused only drains move anything: each replacement runs what it replaces.
    let former = |index| leaving.get(index).map(|replica: &&Seen<'_>| replica.revision);
    plan.start
        .extend((0..surge).map(|index| start(context, former(index), Purpose::Surge)));
    if surge > 0 {
        plan.make_room = make_room(context, wanted, &staying, &leaving);
    }
    waits(context, &staying, &leaving, &mut plan);
    squeezed(context, wanted, staying, &mut plan);
    plan
}

/// Who has less than it desires, and which of them is to be relieved.
fn squeezed(context: &Context<'_>, wanted: usize, staying: Vec<&Seen<'_>>, plan: &mut Plan) {
    let is_at_rest = context.freeze.is_none()
        && plan.stop.is_empty()
        && staying.len() == wanted
        && staying.len() == context.replicas.len()
        && staying.iter().all(|replica| replica.is_ready());
    let mut squeezed: Vec<&Seen<'_>> = staying
        .into_iter()
        .filter(|replica| replica.granted.is_some())
        .collect();
    squeezed.sort_by_key(|replica| (replica.granted, replica.sequence));
    plan.relieve = squeezed
        .first()
        .filter(|_| is_at_rest)
        .map(|replica| replica.replica_id.clone());
    plan.squeezed = squeezed
        .into_iter()
        .map(|replica| replica.replica_id.clone())
        .collect();
}

/// How many of a scaled container stop at a time, at most: half of what it has, so that wrong readings cannot take a service
/// away at once. What stops on silent machines is not counted as what it has. It goes for what leaves on account of a rollout
/// too, with one to spare, or a small one would never go on.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Of all, and of those that are ready, not counting those that stop already.
    live: usize,
    ready: usize,
    /// So many stay.
    half: usize,
}

impl Pace {
    fn of(context: &Context<'_>, live: usize) -> Self {
        let ready = context
            .replicas
            .iter()
            .filter(|replica| replica.is_live() && replica.is_ready());
        Self {
            live,
            ready: ready.count(),
            half: match context.container.spec.scale {
                Scale::Replicas(_) => 0,
                Scale::Autoscaling(_) => {
                    let replicas = context.replicas.iter();
                    let there = replicas.filter(|replica| !context.is_written_off(replica));
                    there.count().div_ceil(2)
                }
            },
        }
    }

    /// How many stay of some of which `ready` are ready and `wanted` are wanted.
    fn kept(&self, (staying, ready): (usize, usize), wanted: usize) -> usize {
        let may_stop = self.live.saturating_sub(self.half);
        let ready_may_stop = self.ready.saturating_sub(self.half);
        wanted
            .min(staying)
            .max(staying.saturating_sub(may_stop))
            .max(ready.saturating_sub(ready_may_stop))
    }
}

fn picked(replica: &Seen<'_>) -> Picked {
    if !replica.is_ready() {
        Picked::NotReady
    } else if replica.granted.is_some() {
        Picked::Squeezed
    } else {
        Picked::Newest
    }
}

/// Another one has come in its stead.
fn is_relieved(context: &Context<'_>, replica: &Seen<'_>) -> bool {
    let mut others = context.replicas.iter();
    replica.granted.is_some()
        && others.any(|other| other.is_live() && other.relieves.as_ref() == Some(&replica.replica_id))
}

fn start(context: &Context<'_>, former: Option<u64>, purpose: Purpose) -> Start {
    Start {
        ordinal: None,
        revision: context.container.revision_for(former, None),
        purpose,
    }
}

/// Takes out of `leaving` those that may go now.
fn retire(
    context: &Context<'_>,
    (wanted, pace): (usize, Pace),
    staying: &[&Seen<'_>],
    leaving: &mut Vec<&Seen<'_>>,
    plan: &mut Plan,
) {
    let mut stop = |replica: &Seen<'_>| {
        plan.stop
            .push((replica.replica_id.clone(), cause(context, replica)))
    };
    leaving.retain(|replica| {
        let is_down = context.is_down(replica) && !context.is_silent(replica);
        let leaves_now = is_down || context.is_forced_off(replica);
        if leaves_now {
            stop(replica);
        }
        !leaves_now
    });
    let ready = staying.iter().filter(|replica| context.serves(replica)).count();
    let spare = (ready + leaving.len()).saturating_sub(wanted).min(leaving.len());
    // Those that are not ready first, then the oldest.
    leaving.sort_by_cached_key(|replica| (replica.readiness == Readiness::Ready, replica.sequence));
    let mut paced = (pace.ready + 1).saturating_sub(pace.half);
    for replica in leaving.drain(..spare).collect::<Vec<_>>() {
        let is_free = !replica.is_ready() || context.is_draining(replica);
        if !is_free && paced == 0 {
            plan.wait
                .push(context.wait(Some(replica), WaitReason::Half, context.container.updated_at));
            leaving.push(replica);
            continue;
        }
        paced -= usize::from(!is_free);
        stop(replica);
    }
}

fn cause(context: &Context<'_>, replica: &Seen<'_>) -> StopCause {
    if context.is_outdated(replica) {
        StopCause::Updated
    } else if context.is_draining(replica) {
        StopCause::MachineDraining
    } else {
        StopCause::Relieved
    }
}

/// One outdated replica may make room for its own replacement when the cluster has none, provided that everything else
/// serves. Never the only one, never on a draining machine, whose room nobody can use, and not where the container's budget
/// is 0.
fn make_room(
    context: &Context<'_>,
    wanted: usize,
    staying: &[&Seen<'_>],
    leaving: &[&Seen<'_>],
) -> Option<berth_api::id::ReplicaId> {
    let is_steady = staying.iter().all(|replica| context.serves(replica))
        && staying.len() + leaving.len() == wanted
        && context
            .replicas
            .iter()
            .all(|replica| replica.is_live() || context.is_written_off(replica));
    if wanted < 2 || !is_steady || context.container.max_unavailable() == 0 {
        return None;
    }
    let mut leaving = leaving.iter();
    let candidate = leaving.find(|replica| context.is_outdated(replica) && !context.is_draining(replica))?;
    Some(candidate.replica_id.clone())
}

/// A rollout or drain that could not finish now waits for the first replacement that is not ready.
fn waits(context: &Context<'_>, staying: &[&Seen<'_>], leaving: &[&Seen<'_>], plan: &mut Plan) {
    let unready = staying.iter().find(|replica| !context.serves(replica));
    if let (Some(unready), false) = (unready, leaving.is_empty()) {
        let replica_id = unready.replica_id.clone();
        for replica in leaving {
            let reason = WaitReason::Ready {
                replica_id: replica_id.clone(),
            };
            plan.wait
                .push(context.wait(Some(replica), reason, unready.placed_at));
        }
    }
}
