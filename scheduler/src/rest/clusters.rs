//! Operations on clusters and their tokens.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use berth_api::id::ClusterId;
use berth_api::rest::cluster::{
    CreateClusterReply, GetClusterReply, TokenRequest, TokenType, read_cluster, read_groups,
};

use super::auth::{Manager, Platform};
use super::request::{ApiError, Segments, internal};
use super::told::Told;
use super::write::{Bare, Write, act, json, replayed};
use super::{Api, view};
use crate::cluster::{Answer, ClusterHandle, Outcome};
use crate::entry::TokenKind;
use crate::refusal::{Class, Refused};
use crate::scheduler::{CreateOnce, Creation};
use crate::world::World;

pub(super) async fn create(
    State(api): State<Api>,
    _: Platform,
    Extension(told): Extension<Told>,
    Write { once, value }: Write,
) -> Result<Response, ApiError> {
    let spec = read_cluster(&value).map_err(|faults| ApiError::invalid("invalid_cluster", faults))?;
    let id = spec.cluster_id.clone();
    told.tell(|facts| facts.cluster = Some(id.clone()));
    let mut digests = BTreeMap::new();
    for kind in [TokenKind::Management, TokenKind::Machine] {
        let (_, digest) = api.tokens.mint(kind, &id).map_err(|error| internal(&error))?;
        digests.insert(kind, digest);
    }
    let once = once.map(|once| CreateOnce {
        once,
        answer: created,
    });
    let created = match api
        .scheduler
        .create_cluster_once(spec, digests, once.clone())
        .await?
    {
        Creation::Created(handle) => created(&handle.world()),
        Creation::Existing(handle) => existing(&api, &handle, once).await?,
        Creation::Replayed(handle, answer) => {
            return with_tokens(&api, handle.id(), answer).map(replayed);
        }
    };
    with_tokens(&api, &id, created)
}

/// A cluster that was there with equal content has valid tokens in the answer: those whose reply was lost are found again,
/// those that were revoked, or made under another secret, are replaced.
async fn existing(api: &Api, cluster: &ClusterHandle, once: Option<CreateOnce>) -> Result<Answer, ApiError> {
    for kind in [TokenKind::Management, TokenKind::Machine] {
        ensure_token(api, cluster, kind).await?;
    }
    let once = once.map(|once| once.once);
    let outcome = cluster
        .change(move |draft| draft.once(once, |draft| Ok(created(draft.world()))))
        .await?;
    match outcome {
        Outcome::Done(answer) | Outcome::Replayed(answer) => Ok(answer),
    }
}

/// What is said of a cluster that was created; its tokens are told by their digests.
fn created(world: &World) -> Answer {
    let spec = world.spec();
    let reply = CreateClusterReply {
        cluster_id: spec.cluster_id.clone(),
        name: spec.name.clone(),
        container_cidr: spec.container_cidr,
        platform: spec.platform,
        capacity_groups: spec.capacity_groups.clone(),
        management_token: String::new(),
        machine_token: String::new(),
        created_at: world.created_at(),
    };
    let digest = |kind| Some((kind, world.token(kind)?.clone()));
    Answer {
        status: 200,
        body: json(&reply),
        tokens: [TokenKind::Management, TokenKind::Machine]
            .into_iter()
            .filter_map(digest)
            .collect(),
    }
}

/// The answer with the tokens that its digests stand for. Tokens are derived again and never stored.
fn with_tokens(api: &Api, cluster: &ClusterId, answer: Answer) -> Result<Response, ApiError> {
    let mut body = answer.body;
    for (kind, digest) in &answer.tokens {
        let token = api.tokens.recover(*kind, cluster, digest).ok_or_else(|| {
            Refused::new(
                Class::Conflict,
                "token_lost",
                "the token of the first answer was made under another secret; rotate it without this Idempotency-Key",
            )
        })?;
        body[member(*kind)] = token.into();
    }
    Ok(Json(body).into_response())
}

fn member(kind: TokenKind) -> &'static str {
    match kind {
        TokenKind::Management => "managementToken",
        TokenKind::Machine => "machineToken",
    }
}

async fn ensure_token(api: &Api, handle: &ClusterHandle, kind: TokenKind) -> Result<(), ApiError> {
    let world = handle.world();
    let known = world
        .token(kind)
        .and_then(|digest| api.tokens.recover(kind, handle.id(), digest));
    if known.is_none() {
        let (_, digest) = api
            .tokens
            .mint(kind, handle.id())
            .map_err(|error| internal(&error))?;
        handle.rotate_token(kind, digest).await?;
    }
    Ok(())
}

pub(super) async fn get(Manager(cluster): Manager) -> Json<GetClusterReply> {
    Json(view::cluster(&cluster.world(), &cluster.report()))
}

pub(super) async fn update(
    Manager(cluster): Manager,
    Write { once, value }: Write,
) -> Result<Response, ApiError> {
    let groups = read_groups(&value, cluster.world().spec())
        .map_err(|faults| ApiError::invalid("invalid_cluster", faults))?;
    act(&cluster, once, move |draft| draft.set_groups(groups)).await
}

pub(super) async fn delete(
    State(api): State<Api>,
    _: Platform,
    segments: Segments,
    Extension(told): Extension<Told>,
    Bare(once): Bare,
) -> Result<Response, ApiError> {
    let id: ClusterId = segments.read("cluster")?;
    told.tell(|facts| facts.cluster = Some(id.clone()));
    let cluster = api.scheduler.known(&id)?;
    act(&cluster, once, |draft| draft.delete_cluster()).await
}

fn kind_in(value: &serde_json::Value) -> Result<TokenKind, ApiError> {
    let request =
        TokenRequest::read(value).map_err(|faults| ApiError::invalid("invalid_token_type", faults))?;
    Ok(match request.token_type {
        TokenType::Management => TokenKind::Management,
        TokenType::Machine => TokenKind::Machine,
    })
}

pub(super) async fn rotate_token(
    State(api): State<Api>,
    Manager(cluster): Manager,
    Write { once, value }: Write,
) -> Result<Response, ApiError> {
    let kind = kind_in(&value)?;
    let (_, digest) = api
        .tokens
        .mint(kind, cluster.id())
        .map_err(|error| internal(&error))?;
    let outcome = cluster
        .change(move |draft| {
            draft.once(once, |draft| {
                draft.rotate_token(kind, digest.clone())?;
                Ok(Answer {
                    tokens: BTreeMap::from([(kind, digest)]),
                    ..Answer::plain(200, serde_json::Value::Object(serde_json::Map::new()))
                })
            })
        })
        .await?;
    match outcome {
        Outcome::Done(answer) => with_tokens(&api, cluster.id(), answer),
        Outcome::Replayed(answer) => with_tokens(&api, cluster.id(), answer).map(replayed),
    }
}

pub(super) async fn revoke_tokens(
    Manager(cluster): Manager,
    Write { once, value }: Write,
) -> Result<Response, ApiError> {
    let kind = kind_in(&value)?;
    act(&cluster, once, move |draft| draft.revoke_tokens(kind)).await
}

/// Berth's own: lets the stops happen that the mass-stop guard holds.
pub(super) async fn release_stops(Manager(cluster): Manager, Bare(once): Bare) -> Result<Response, ApiError> {
    act(&cluster, once, |draft| draft.release_stops()).await
}
