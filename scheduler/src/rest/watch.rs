//! `?watch=REVISION`: a read of a cluster that answers when the cluster has changed, or after [`WAIT_MAX`].
//!
//! The revision of a cluster is the count of entries in its log. A reply carries one that is not above its content: whoever
//! asks with it may be told something twice and never misses anything. What machines say of replicas is no entry; a reply has
//! the latest of it, and a change of it alone wakes nobody.

use std::time::Duration;

use axum::extract::FromRequestParts as _;
use axum::http::request::Parts;
use berth_api::validate::{Fault, Faults};

use super::Api;
use super::request::{ApiError, Pairs};
use crate::cluster::ClusterHandle;

/// Below the deadline of requests, and of those that are sent on to another process.
const WAIT_MAX: Duration = Duration::from_secs(15);
/// Requests that may wait at a time.
pub(super) const WAITING_MAX: usize = 10_000;

/// Whether something was waited for: who was let in before has to be asked again then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    No,
    Yes,
}

pub(super) async fn await_change(
    parts: &mut Parts,
    api: &Api,
    cluster: &ClusterHandle,
) -> Result<Waited, ApiError> {
    let Some(revision) = revision(parts, api).await? else {
        return Ok(Waited::No);
    };
    let mut world = cluster.watch_world();
    if world.borrow_and_update().applied_count() > revision {
        return Ok(Waited::No);
    }
    let Ok(_permit) = api.watchers.try_acquire() else {
        let message = format!("{WAITING_MAX} requests wait already; ask without ?watch, or later");
        return Err(ApiError::too_many(
            "too_many_watches",
            message,
            Duration::from_secs(1),
        ));
    };
    tokio::select! {
        // Cancel-safe: nothing is taken. An actor that has ended gives an error, and the read tells the rest.
        _ = world.wait_for(|world| world.applied_count() > revision) => {}
        // Cancel-safe: a timer.
        () = tokio::time::sleep(WAIT_MAX) => {}
        // Cancel-safe: a token.
        () = api.stop.cancelled() => {}
    }
    Ok(Waited::Yes)
}

async fn revision(parts: &mut Parts, api: &Api) -> Result<Option<u64>, ApiError> {
    if !parts.uri.query().is_some_and(|query| query.contains("watch")) {
        return Ok(None);
    }
    let pairs = Pairs::from_request_parts(parts, api).await?;
    let mut revision = None;
    let mut faults = Vec::new();
    let mut fault = |problem: String| {
        faults.push(Fault {
            path: "watch".to_owned(),
            problem,
        });
    };
    for (_, value) in pairs.iter().filter(|(key, _)| *key == "watch") {
        match value.parse::<u64>() {
            Ok(_) if revision.is_some() => fault("is there twice; keep one".to_owned()),
            Ok(number) => revision = Some(number),
            Err(_) => fault(format!("{value:?} is no revision; write that of the last answer")),
        }
    }
    Faults::check(faults).map_err(|faults| ApiError::invalid("invalid_query", faults))?;
    Ok(revision)
}
