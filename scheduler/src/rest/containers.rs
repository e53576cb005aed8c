//! The seven operations on containers, and Berth's own on their rollouts.

use axum::Json;
use axum::response::Response;
use berth_api::event::InvolvedObject;
use berth_api::id::ContainerName;
use berth_api::rest::container::{
    ContainerStatus, ContainerUpdate, CreateContainerReply, GetContainerReply, ListContainersReply,
    read_container,
};

use super::auth::Manager;
use super::request::{Answer, ApiError, Segments};
use super::view;
use super::write::{Bare, Write, act, write};
use crate::refusal::Refused;
use crate::world::World;

pub(super) async fn create(
    Manager(cluster): Manager,
    Write { once, value }: Write,
) -> Result<Response, ApiError> {
    let spec = read_container(&value, cluster.world().spec())
        .map_err(|faults| ApiError::invalid("invalid_container", faults))?;
    let name = spec.name.clone();
    write(&cluster, once, move |draft| {
        draft.create_container(spec)?;
        accepted(draft.world(), name)
    })
    .await
}

/// A declaration is accepted before any replica has a place: its status is `pending`.
fn accepted(world: &World, name: ContainerName) -> Result<CreateContainerReply, Refused> {
    let container = world
        .container(&name)
        .ok_or_else(|| Refused::container_not_found(name.as_str()))?;
    Ok(CreateContainerReply {
        cluster_id: world.spec().cluster_id.clone(),
        status: ContainerStatus::Pending,
        created_at: container.created_at,
        name,
    })
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
    Write { once, value }: Write,
) -> Result<Response, ApiError> {
    let name: ContainerName = segments.read("container")?;
    write(&cluster, once, move |draft| {
        draft.update_container(name.clone(), |current, spec| {
            ContainerUpdate::read(&value, current)?.apply(current, spec)
        })?;
        accepted(draft.world(), name)
    })
    .await
}

pub(super) async fn delete(
    Manager(cluster): Manager,
    segments: Segments,
    Bare(once): Bare,
) -> Result<Response, ApiError> {
    let name: ContainerName = segments.read("container")?;
    act(&cluster, once, move |draft| {
        match draft.delete_container(name.clone()) {
            // The reply to an earlier delete may have been lost: what was there and is gone is deleted.
            Err(refused) if refused.code == "container_not_found" && was_deleted(draft.world(), &name) => {
                Ok(())
            }
            outcome => outcome,
        }
    })
    .await
}

fn was_deleted(world: &World, name: &ContainerName) -> bool {
    let object = InvolvedObject::Container(name.to_string());
    world
        .events()
        .newest_first()
        .any(|event| event.involved_object == object && event.reason() == "ContainerDeleted")
}

/// Berth's own.
pub(super) async fn pause_rollout(
    Manager(cluster): Manager,
    segments: Segments,
    Bare(once): Bare,
) -> Result<Response, ApiError> {
    let name: ContainerName = segments.read("container")?;
    act(&cluster, once, |draft| draft.pause_rollout(name)).await
}

/// Berth's own.
pub(super) async fn resume_rollout(
    Manager(cluster): Manager,
    segments: Segments,
    Bare(once): Bare,
) -> Result<Response, ApiError> {
    let name: ContainerName = segments.read("container")?;
    act(&cluster, once, |draft| draft.resume_rollout(name)).await
}

/// Berth's own.
pub(super) async fn undo_rollout(
    Manager(cluster): Manager,
    segments: Segments,
    Bare(once): Bare,
) -> Result<Response, ApiError> {
    let name: ContainerName = segments.read("container")?;
    act(&cluster, once, |draft| draft.undo_rollout(name)).await
}

pub(super) async fn stop(
    Manager(cluster): Manager,
    segments: Segments,
    Bare(once): Bare,
) -> Result<Response, ApiError> {
    let name: ContainerName = segments.read("container")?;
    act(&cluster, once, |draft| draft.stop_container(name)).await
}

pub(super) async fn start(
    Manager(cluster): Manager,
    segments: Segments,
    Bare(once): Bare,
) -> Result<Response, ApiError> {
    let name: ContainerName = segments.read("container")?;
    act(&cluster, once, |draft| draft.start_container(name)).await
}
