//! Plans that are shown and change nothing: how large each capacity group should be, and which replicas to move so that
//! machines become empty.

use axum::Json;
use axum::extract::State;
use berth_api::rest::cluster::{
    CapacityPlanReply, GroupPlan, GroupPlanDetails, MachineToDrain, PlannedMove, ZoneRequirement,
};

use berth_api::rest::repack::RepackPlanReply;
use berth_api::validate::{Fault, Faults};

use super::Api;
use super::auth::Manager;
use super::request::{Answer, ApiError, Pairs, internal};
use crate::capacity::{Drain, Outlook, TooLarge, Utilization};
use crate::decide::decide;
use crate::placement::Miss;
use crate::placement::repack::Stateful;
use crate::repack::{self, Limit};
use crate::world::World;

/// Polled by whatever resizes machine groups. The plan of a decision that would be made now, so that it is never older than
/// the request.
pub(super) async fn capacity(State(api): State<Api>, Manager(cluster): Manager) -> Answer<CapacityPlanReply> {
    let limits = *api.scheduler.limits();
    let reply = cluster
        .change(move |draft| {
            let decision = decide(draft.world(), draft.observed(), &limits, draft.now);
            let groups = decision.report.capacity.iter();
            Ok(CapacityPlanReply {
                groups: groups
                    .filter_map(|outlook| group(draft.world(), outlook))
                    .collect(),
            })
        })
        .await?;
    Ok(Json(reply))
}

/// Moves an hour unless the query says otherwise.
const MOVES_PER_HOUR: u32 = 20;
const MOVES_PER_HOUR_MAX: u32 = 10_000;

/// `?movesPerHour=N&stateful=true`. Off the cluster's actor, since it may take half a second.
pub(super) async fn repack(Manager(cluster): Manager, pairs: Pairs) -> Answer<RepackPlanReply> {
    let limit = limit(&pairs)?;
    let world = cluster.world();
    let plan = tokio::task::spawn_blocking(move || repack::of(&world, limit));
    match plan.await {
        Ok(Ok(reply)) => Ok(Json(reply)),
        Ok(Err(unplanned)) => Err(internal(&unplanned)),
        Err(panicked) => Err(internal(&panicked)),
    }
}

fn limit(pairs: &Pairs) -> Result<Limit, ApiError> {
    let mut limit = Limit {
        moves_per_hour: MOVES_PER_HOUR,
        stateful: Stateful::Stay,
    };
    let mut faults = vec![];
    for (key, value) in pairs.iter() {
        let problem = match key {
            "movesPerHour" => match value.parse() {
                Ok(moves) if (1..=MOVES_PER_HOUR_MAX).contains(&moves) => {
                    limit.moves_per_hour = moves;
                    continue;
                }
                _ => format!("{value:?} is no number from 1 to {MOVES_PER_HOUR_MAX}"),
            },
            "stateful" => match value {
                "true" => {
                    limit.stateful = Stateful::MayMove;
                    continue;
                }
                "false" => {
                    limit.stateful = Stateful::Stay;
                    continue;
                }
                other => format!("{other:?} is unknown; write true or false"),
            },
            _ => continue,
        };
        faults.push(Fault {
            path: key.to_owned(),
            problem,
        });
    }
    Faults::check(faults).map_err(|faults| ApiError::invalid("invalid_query", faults))?;
    Ok(limit)
}

pub(super) fn group(world: &World, outlook: &Outlook) -> Option<GroupPlan> {
    let zones = outlook.zones.iter().map(|zone| ZoneRequirement {
        zone: zone.zone.clone(),
        current_machines: zone.running,
        desired_machines: zone.desired,
        unschedulable_replicas: some(zone.unplaced),
    });
    let zones: Vec<ZoneRequirement> = zones.collect();
    Some(GroupPlan {
        group_id: outlook.group_id.clone(),
        profile: world.spec().group(&outlook.group_id)?.profile.clone(),
        current_machines: outlook.running,
        desired_machines: outlook.desired,
        reason: outlook.reason,
        unschedulable_replicas: some(outlook.unplaced),
        utilization_percent: outlook.utilization.map(percent),
        zone_requirements: (!zones.is_empty()).then_some(zones),
        details: details(outlook),
    })
}

fn details(outlook: &Outlook) -> GroupPlanDetails {
    let silent = outlook.unhealthy.iter().chain(&outlook.never_heard);
    GroupPlanDetails {
        initializing_machines: outlook.initializing,
        needed_machines: outlook.needed,
        needed_machines_at_least: outlook.needed_at_least,
        machines_to_drain: outlook.drains.iter().map(to_drain).collect(),
        drained_machines: outlook.drained.clone(),
        silent_machines: silent.cloned().collect(),
        notes: notes(outlook),
    }
}

fn to_drain(drain: &Drain) -> MachineToDrain {
    let moves = drain.moves.iter().map(|one| PlannedMove {
        replica_id: one.replica_id.clone(),
        from: one.from.clone(),
        to: one.to.clone(),
    });
    MachineToDrain {
        machine_id: drain.machine_id.clone(),
        moves: moves.collect(),
    }
}

/// Each replica that is too large once, however many there are of its container.
fn notes(outlook: &Outlook) -> Vec<String> {
    let mut notes: Vec<String> = outlook.too_large.iter().map(too_large).collect();
    notes.dedup();
    if !outlook.suffices {
        notes.push(format!(
            "the group may have no more machines; at least {} more than it has now would be needed",
            outlook.needed_at_least.max(1)
        ));
    }
    if !outlook.unhealthy.is_empty() {
        notes.push("machines are silent: nothing shrinks until they are back or removed".to_owned());
    }
    for id in &outlook.never_heard {
        notes.push(format!(
            "machine {id} registered long ago and was never heard: it is not waited for"
        ));
    }
    notes
}

fn too_large(it: &TooLarge) -> String {
    if it.filter == crate::placement::Filter::GpuType {
        return format!(
            "container {} wants GPUs of a type that no machine of the group has: no number of machines helps",
            it.container
        );
    }
    if it.filter == crate::placement::Filter::Label {
        return format!(
            "container {} asks for labels that new machines of the group do not have: no number of machines helps",
            it.container
        );
    }
    let miss = Miss {
        filter: it.filter,
        machine_id: None,
        has: it.has,
        needs: it.needs,
    };
    format!(
        "container {} is larger than any machine of the group: {miss}; no number of machines helps",
        it.container
    )
}

fn some(count: u32) -> Option<u32> {
    (count > 0).then_some(count)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a percentage needs no more than 53 bits"
)]
fn percent(share: Utilization) -> f64 {
    if share.usable == 0 {
        return 0.0;
    }
    (share.held as f64 * 100.0 / share.usable as f64).min(100.0)
}
