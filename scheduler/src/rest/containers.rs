//! The seven operations on containers.

use axum::Json;
use berth_api::event::InvolvedObject;
use berth_api::id::ContainerName;
use berth_api::rest::container::{
    ContainerStatus, ContainerUpdate, CreateContainerReply, GetContainerReply, ListContainersReply,
    read_container,
};
use berth_api::rest::{SUCCESS, Success};

use super::auth::Manager;
use super::request::{Answer, ApiError, Input, Segments};
use super::view;
use crate::cluster::ClusterHandle;
use crate::refusal::Refused;
use crate::world::World;

pub(super) async fn create(Manager(cluster): Manager, Input(value): Input) -> Answer<CreateContainerReply> {
    let spec = read_container(&value, cluster.world().spec())
        .map_err(|faults| ApiError::invalid("invalid_container", faults))?;
    let name = spec.name.clone();
    cluster.create_container(spec).await?;
    accepted(&cluster, name)
}

/// A declaration is accepted before any replica has a place: its status is `pending`.
fn accepted(cluster: &ClusterHandle, name: ContainerName) -> Answer<CreateContainerReply> {
    let world = cluster.world();
    let container = world
        .container(&name)
        .ok_or_else(|| Refused::container_not_found(name.as_str()))?;
    Ok(Json(CreateContainerReply {
        cluster_id: cluster.id().clone(),
        status: ContainerStatus::Pending,
        created_at: container.created_at,
        name,
    }))
}

pub(super) async fn list(Manager(cluster): Manager) -> Json<ListContainersReply> {
    Json(ListContainersReply {
        containers: view::containers(&cluster.world(), &cluster.observed()),
    })
}

pub(super) async fn get(Manager(cluster): Manager, segments: Segments) -> Answer<GetContainerReply> {
    let name: ContainerName = segments.read("container")?;
    view::container(&cluster.world(), &cluster.observed(), &name)
        .map(Json)
        .ok_or_else(|| Refused::container_not_found(name.as_str()).into())
}

pub(super) async fn update(
    Manager(cluster): Manager,
    segments: Segments,
    Input(value): Input,
) -> Answer<CreateContainerReply> {
    let name: ContainerName = segments.read("container")?;
    cluster
        .update_container(name.clone(), move |current, spec| {
            ContainerUpdate::read(&value, current)?.apply(current, spec)
        })
        .await?;
    accepted(&cluster, name)
}

pub(super) async fn delete(Manager(cluster): Manager, segments: Segments) -> Answer<Success> {
    let name: ContainerName = segments.read("container")?;
    match cluster.delete_container(name.clone()).await {
        // The reply to an earlier delete may have been lost: what was there and is gone is deleted.
        Err(refused) if refused.code == "container_not_found" && was_deleted(&cluster.world(), &name) => {}
        outcome => outcome?,
    }
    Ok(Json(SUCCESS))
}

fn was_deleted(world: &World, name: &ContainerName) -> bool {
    let object = InvolvedObject::Container(name.to_string());
    world
        .events()
        .newest_first()
        .any(|event| event.involved_object == object && event.reason() == "ContainerDeleted")
}

pub(super) async fn stop(Manager(cluster): Manager, segments: Segments) -> Answer<Success> {
    cluster.stop_container(segments.read("container")?).await?;
    Ok(Json(SUCCESS))
}

pub(super) async fn start(Manager(cluster): Manager, segments: Segments) -> Answer<Success> {
    cluster.start_container(segments.read("container")?).await?;
    Ok(Json(SUCCESS))
}
