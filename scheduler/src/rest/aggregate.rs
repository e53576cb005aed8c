//! The four operations over all clusters, for those who run the platform. Made of what the actors publish: no actor is asked,
//! so a large installation costs its decisions nothing. Clusters that are being deleted do not count. Where several processes
//! share the clusters, [`super::gather`] puts their answers together.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use berth_api::id::ContainerName;
use berth_api::rest::aggregate::{
    AggregateFilter, AggregateMachinesReply, AttentionReply, ContainerDeploymentsReply,
};

use super::Api;
use super::auth::Platform;
use super::gather::AsPart;
use super::request::{Answer, ApiError, Pairs, Segments, internal};
use super::rollup::{self, Seen};

fn filter(pairs: &Pairs) -> Result<AggregateFilter, ApiError> {
    AggregateFilter::from_query(pairs.iter()).map_err(|faults| ApiError::invalid("invalid_query", faults))
}

/// Runs `make` over the clusters that count, off the request tasks: explaining what has no place takes its time.
async fn over<T: Send + 'static>(
    api: &Api,
    filter: AggregateFilter,
    make: impl FnOnce(&[Seen]) -> T + Send + 'static,
) -> Answer<T> {
    let scheduler = Arc::clone(&api.scheduler);
    let made = tokio::task::spawn_blocking(move || {
        let seen: Vec<Seen> = scheduler
            .clusters()
            .iter()
            .map(|cluster| Seen {
                world: cluster.world(),
                observed: cluster.observed(),
                report: cluster.report(),
            })
            .filter(|seen| seen.world.deleted_at().is_none() && filter.matches(seen.world.spec()))
            .collect();
        make(&seen)
    });
    made.await.map(Json).map_err(|error| internal(&error))
}

/// What another process asks for is not finished: it puts the parts of all together.
pub(super) async fn overview(
    State(api): State<Api>,
    _: Platform,
    pairs: Pairs,
    part: Option<Extension<AsPart>>,
) -> Result<Response, ApiError> {
    let Json(overview) = over(&api, filter(&pairs)?, rollup::overview).await?;
    Ok(match part {
        Some(_) => Json(overview).into_response(),
        None => Json(overview.reply()).into_response(),
    })
}

pub(super) async fn attention(State(api): State<Api>, _: Platform, pairs: Pairs) -> Answer<AttentionReply> {
    over(&api, filter(&pairs)?, rollup::attention).await
}

/// A name that no cluster has gives an empty list: containers come and go, and nobody has to know them all.
pub(super) async fn container(
    State(api): State<Api>,
    _: Platform,
    segments: Segments,
    pairs: Pairs,
) -> Answer<ContainerDeploymentsReply> {
    let name: ContainerName = segments.read("container")?;
    over(&api, filter(&pairs)?, move |seen| rollup::container(seen, name)).await
}

pub(super) async fn machines(
    State(api): State<Api>,
    _: Platform,
    pairs: Pairs,
) -> Answer<AggregateMachinesReply> {
    over(&api, filter(&pairs)?, rollup::machines).await
}
