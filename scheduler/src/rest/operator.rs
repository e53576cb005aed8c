//! Berth's additions for people: every cluster, every replica, explanations, health of the scheduler itself.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use berth_api::explain::{Explanation, Subject};
use berth_api::rest::operator::{ListClustersReply, ListReplicasReply};
use berth_api::rest::{SUCCESS, Success};

use super::auth::{Manager, Platform};
use super::request::{Answer, ApiError, Segments};
use super::{Api, view};
use crate::explain;
use crate::metrics::Census;
use crate::refusal::{Class, Refused};

pub(super) async fn healthz() -> Json<Success> {
    Json(SUCCESS)
}

/// Of the store, to say whether it answers.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);

/// Clusters are loaded before this API is served; not ready means about to stop, without a lease of etcd, or that the store does not answer or takes no
/// appends. A scheduler that is not ready serves reads all the same.
pub(super) async fn readyz(State(api): State<Api>) -> Answer<Success> {
    if api.stop.is_cancelled() {
        let message = "the scheduler is stopping";
        return Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "stopping",
            message,
        ));
    }
    if api.scheduler.shard().is_some_and(|shard| !shard.is_ready()) {
        return Err(Refused::unavailable("the scheduler holds no lease of etcd at the moment").into());
    }
    let answered = tokio::time::timeout(STORE_TIMEOUT, api.scheduler.read_store()).await;
    let fault = match answered {
        Ok(Ok(())) if !api.scheduler.metrics().is_store_failing() => return Ok(Json(SUCCESS)),
        Ok(Ok(())) => "the last append to the store failed".to_owned(),
        Ok(Err(error)) => format!("the store cannot be read: {error}"),
        Err(_) => format!("the store did not answer within {} s", STORE_TIMEOUT.as_secs()),
    };
    Err(ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "store_unavailable",
        fault,
    ))
}

/// For Prometheus. No ids and no secrets are in it, so no token is asked for.
pub(super) async fn metrics(State(api): State<Api>) -> impl IntoResponse {
    let count = |len: usize| i64::try_from(len).unwrap_or(i64::MAX);
    let mut census = Census::default();
    for cluster in api.scheduler.clusters() {
        let world = cluster.world();
        census.clusters += 1;
        census.machines += count(world.machines().len());
        census.replicas += count(world.replicas().len());
        census.frozen += i64::from(world.frozen_since().is_some());
        census.holding += i64::from(world.held_stops().is_some());
        census.sessions += count(cluster.sessions().count());
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    (
        [(header::CONTENT_TYPE, kind)],
        api.scheduler.metrics().text(census),
    )
}

pub(super) async fn list_clusters(State(api): State<Api>, _: Platform) -> Json<ListClustersReply> {
    let clusters = api
        .scheduler
        .clusters()
        .iter()
        .map(|cluster| view::cluster_summary(&cluster.world()))
        .collect();
    Json(ListClustersReply { clusters })
}

pub(super) async fn list_replicas(Manager(cluster): Manager) -> Json<ListReplicasReply> {
    Json(ListReplicasReply {
        replicas: view::replicas(&cluster.world(), &cluster.observed()),
    })
}

pub(super) async fn explain(
    State(api): State<Api>,
    Manager(cluster): Manager,
    segments: Segments,
) -> Answer<Explanation> {
    let subject: Subject = segments.read("subject")?;
    let id = segments.text("id").to_owned();
    let limits = *api.scheduler.limits();
    let answer = cluster
        .change(move |draft| {
            let now = draft.now;
            let found = explain::explain(draft.world(), draft.observed(), &limits, now, (subject, &id));
            found.ok_or_else(|| {
                Refused::new(
                    Class::NotFound,
                    "nothing_to_explain",
                    format!("{} {id:?} does not exist", subject.as_str()),
                )
            })
        })
        .await?;
    Ok(Json(answer))
}
