//! Berth's additions for people: every cluster, every replica, explanations, health of the scheduler itself.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use berth_api::explain::{Explanation, Subject};
use berth_api::rest::operator::{ListClustersReply, ListReplicasReply};
use berth_api::rest::{SUCCESS, Success};

use super::auth::{Manager, Platform};
use super::request::{Answer, ApiError, Segments};
use super::{Api, view};
use crate::explain;
use crate::refusal::{Class, Refused};

pub(super) async fn healthz() -> Json<Success> {
    Json(SUCCESS)
}

/// Clusters are loaded before this API is served; not ready means about to stop, or without a lease of etcd.
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
    Ok(Json(SUCCESS))
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
            let found = explain::explain(draft.world(), draft.observed, &limits, now, (subject, &id));
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
