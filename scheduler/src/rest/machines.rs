//! Machines, and the events of everything.

use std::time::Duration;

use axum::Json;
use axum::response::Response;
use berth_api::id::MachineId;
use berth_api::rest::node::ListMachinesReply;
use berth_api::rest::{EventFilter, ListEventsReply};
use berth_api::validate::Faults;

use super::auth::Manager;
use super::request::{Answer, ApiError, Pairs, Segments};
use super::view;
use super::write::{Bare, act};
use crate::cluster::ClusterHandle;
use crate::entry::Removal;

pub(super) async fn list(Manager(cluster): Manager) -> Json<ListMachinesReply> {
    Json(ListMachinesReply {
        machines: view::machines(&cluster.world(), &cluster.observed()),
    })
}

/// A drain may have at most this long: a week.
const DRAIN_DEADLINE_MAX_SECONDS: u64 = 604_800;

/// Berth's own: `?deadlineSeconds=N` stops after so long what is left, 0 at once.
pub(super) async fn drain(
    Manager(cluster): Manager,
    segments: Segments,
    pairs: Pairs,
    Bare(once): Bare,
) -> Result<Response, ApiError> {
    let mut deadline = None;
    for (key, value) in pairs.iter().filter(|(key, _)| *key == "deadlineSeconds") {
        let seconds = value
            .parse()
            .ok()
            .filter(|seconds| *seconds <= DRAIN_DEADLINE_MAX_SECONDS);
        let Some(seconds) = seconds else {
            let problem = format!("{value:?} is no number from 0 to {DRAIN_DEADLINE_MAX_SECONDS}");
            return Err(ApiError::invalid("invalid_query", Faults::one(key, problem)));
        };
        deadline = Some(Duration::from_secs(seconds));
    }
    let machine: MachineId = segments.read("machine")?;
    act(&cluster, once, move |draft| draft.drain(machine, deadline)).await
}

pub(super) async fn cancel_drain(
    Manager(cluster): Manager,
    segments: Segments,
    Bare(once): Bare,
) -> Result<Response, ApiError> {
    let machine: MachineId = segments.read("machine")?;
    act(&cluster, once, |draft| draft.cancel_drain(machine)).await
}

/// Removes a machine that is empty, or, with `?poweredOff=true`, one that the caller knows to be off for good: its
/// stateful replicas may then start elsewhere, because nothing of it still writes.
pub(super) async fn remove(
    Manager(cluster): Manager,
    segments: Segments,
    pairs: Pairs,
    Bare(once): Bare,
) -> Result<Response, ApiError> {
    let mut how = Removal::Empty;
    for (key, value) in pairs.iter() {
        how = match (key, value) {
            ("poweredOff", "true") => Removal::PoweredOff,
            ("poweredOff", "false") => Removal::Empty,
            ("poweredOff", other) => {
                let problem = format!("{other:?} is unknown; write true or false");
                return Err(ApiError::invalid(
                    "invalid_query",
                    Faults::one("poweredOff", problem),
                ));
            }
            _ => how,
        };
    }
    let machine: MachineId = segments.read("machine")?;
    let id = machine.clone();
    let removed = act(&cluster, once, move |draft| draft.remove_machine(machine, how)).await?;
    cluster.sessions().end(&id);
    Ok(removed)
}

pub(super) async fn events(Manager(cluster): Manager, pairs: Pairs) -> Answer<ListEventsReply> {
    Ok(select(&cluster, &filter(&pairs)?))
}

pub(super) async fn container_events(
    Manager(cluster): Manager,
    segments: Segments,
    pairs: Pairs,
) -> Answer<ListEventsReply> {
    events_of(&cluster, ("container", segments.text("container")), &pairs)
}

pub(super) async fn replica_events(
    Manager(cluster): Manager,
    segments: Segments,
    pairs: Pairs,
) -> Answer<ListEventsReply> {
    events_of(&cluster, ("replica", segments.text("replica")), &pairs)
}

pub(super) async fn machine_events(
    Manager(cluster): Manager,
    segments: Segments,
    pairs: Pairs,
) -> Answer<ListEventsReply> {
    events_of(&cluster, ("machine", segments.text("machine")), &pairs)
}

pub(super) async fn group_events(
    Manager(cluster): Manager,
    segments: Segments,
    pairs: Pairs,
) -> Answer<ListEventsReply> {
    events_of(&cluster, ("capacityGroup", segments.text("group")), &pairs)
}

fn filter(pairs: &Pairs) -> Result<EventFilter, ApiError> {
    EventFilter::from_query(pairs.iter()).map_err(|faults| ApiError::invalid("invalid_query", faults))
}

/// Events outlive what they are about, so an unknown object has none and is no error.
fn events_of(cluster: &ClusterHandle, (kind, id): (&str, &str), pairs: &Pairs) -> Answer<ListEventsReply> {
    let filter = EventFilter {
        object_kind: Some(kind.to_owned()),
        object_id: Some(id.to_owned()),
        ..filter(pairs)?
    };
    Ok(select(cluster, &filter))
}

fn select(cluster: &ClusterHandle, filter: &EventFilter) -> Json<ListEventsReply> {
    Json(ListEventsReply {
        events: cluster.events(filter),
    })
}
