//! Operations on clusters and their tokens.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use berth_api::id::ClusterId;
use berth_api::rest::cluster::{
    CreateClusterReply, GetClusterReply, RotateTokenReply, TokenRequest, TokenType, read_cluster, read_groups,
};
use berth_api::rest::{SUCCESS, Success};

use super::auth::{Manager, Platform};
use super::request::{Answer, ApiError, Input, Segments, internal};
use super::{Api, view};
use crate::cluster::ClusterHandle;
use crate::entry::TokenKind;
use crate::scheduler::Creation;

pub(super) async fn create(
    State(api): State<Api>,
    _: Platform,
    Input(value): Input,
) -> Answer<CreateClusterReply> {
    let spec = read_cluster(&value).map_err(|faults| ApiError::invalid("invalid_cluster", faults))?;
    let id = spec.cluster_id.clone();
    let mut fresh = BTreeMap::new();
    for kind in [TokenKind::Management, TokenKind::Machine] {
        fresh.insert(
            kind,
            api.tokens.mint(kind, &id).map_err(|error| internal(&error))?,
        );
    }
    let digests = fresh
        .iter()
        .map(|(kind, (_, digest))| (*kind, digest.clone()))
        .collect();
    let handle = match api.scheduler.create_cluster(spec, digests).await? {
        Creation::Created(handle) | Creation::Existing(handle) => handle,
    };
    let management_token = token(&api, &handle, TokenKind::Management).await?;
    let machine_token = token(&api, &handle, TokenKind::Machine).await?;
    let world = handle.world();
    let spec = world.spec();
    Ok(Json(CreateClusterReply {
        cluster_id: id,
        name: spec.name.clone(),
        container_cidr: spec.container_cidr,
        platform: spec.platform,
        capacity_groups: spec.capacity_groups.clone(),
        management_token,
        machine_token,
        created_at: world.created_at(),
    }))
}

/// The valid token of a kind. A token whose reply was lost is found again; one that was revoked, or made under another
/// secret, is replaced.
async fn token(api: &Api, handle: &ClusterHandle, kind: TokenKind) -> Result<String, ApiError> {
    let world = handle.world();
    let known = world
        .token(kind)
        .and_then(|digest| api.tokens.recover(kind, handle.id(), digest));
    match known {
        Some(token) => Ok(token),
        None => rotate(api, handle, kind).await,
    }
}

async fn rotate(api: &Api, handle: &ClusterHandle, kind: TokenKind) -> Result<String, ApiError> {
    let (token, digest) = api
        .tokens
        .mint(kind, handle.id())
        .map_err(|error| internal(&error))?;
    handle.rotate_token(kind, digest).await?;
    Ok(token)
}

pub(super) async fn get(Manager(cluster): Manager) -> Json<GetClusterReply> {
    Json(view::cluster(&cluster.world()))
}

pub(super) async fn update(Manager(cluster): Manager, Input(value): Input) -> Answer<Success> {
    let groups = read_groups(&value, cluster.world().spec())
        .map_err(|faults| ApiError::invalid("invalid_cluster", faults))?;
    cluster.set_groups(groups).await?;
    Ok(Json(SUCCESS))
}

pub(super) async fn delete(State(api): State<Api>, _: Platform, segments: Segments) -> Answer<Success> {
    let id: ClusterId = segments.read("cluster")?;
    api.scheduler.delete_cluster(&id).await?;
    Ok(Json(SUCCESS))
}

fn kind_in(value: &serde_json::Value) -> Result<(TokenType, TokenKind), ApiError> {
    let request =
        TokenRequest::read(value).map_err(|faults| ApiError::invalid("invalid_token_type", faults))?;
    let kind = match request.token_type {
        TokenType::Management => TokenKind::Management,
        TokenType::Machine => TokenKind::Machine,
    };
    Ok((request.token_type, kind))
}

pub(super) async fn rotate_token(
    State(api): State<Api>,
    Manager(cluster): Manager,
    Input(value): Input,
) -> Answer<RotateTokenReply> {
    let (token_type, kind) = kind_in(&value)?;
    let token = Some(rotate(&api, &cluster, kind).await?);
    Ok(Json(match token_type {
        TokenType::Management => RotateTokenReply {
            management_token: token,
            machine_token: None,
        },
        TokenType::Machine => RotateTokenReply {
            management_token: None,
            machine_token: token,
        },
    }))
}

pub(super) async fn revoke_tokens(Manager(cluster): Manager, Input(value): Input) -> Answer<Success> {
    let (_, kind) = kind_in(&value)?;
    cluster.revoke_tokens(kind).await?;
    Ok(Json(SUCCESS))
}
