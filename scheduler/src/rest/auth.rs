//! Who asks, and whether they may: bearer tokens of three kinds. Unknown or revoked: 401. Known, but of the wrong kind
//! or another cluster: 403.

use std::net::IpAddr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use berth_api::id::ClusterId;
use berth_api::time::Timestamp;

use super::Api;
use super::rates::Limited;
use super::request::{ApiError, Segments};
use super::told::{Caller, Facts, Told, address, short};
use super::watch::{Waited, await_change};
use crate::cluster::ClusterHandle;
use crate::entry::{TokenDigest, TokenKind};
use crate::platform::InvalidPlatformToken;
use crate::refusal::{Class, Refused};
use crate::tokens::kind_of;

/// Who a valid token stands for.
enum Identity {
    Platform,
    Cluster(ClusterHandle, TokenKind),
}

/// A platform token.
pub(super) struct Platform;

/// A platform token, or the management token of the cluster in the path; and that cluster.
pub(super) struct Manager(pub(super) ClusterHandle);

/// A token, not checked yet: it is checked against the cluster that the body names.
pub(super) struct NodeToken(Credentials);

/// What a request shows of its sender.
struct Credentials {
    token: String,
    address: Option<IpAddr>,
    told: Told,
}

impl Credentials {
    fn of(parts: &Parts) -> Result<Self, ApiError> {
        Ok(Self {
            token: bearer(&parts.headers)?,
            address: address(parts),
            told: Told::of(parts),
        })
    }
}

impl FromRequestParts<Api> for Platform {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        match admit(api, &Credentials::of(parts)?, None)? {
            Identity::Platform => Ok(Self),
            Identity::Cluster(..) => Err(forbidden("this needs a platform token")),
        }
    }
}

impl FromRequestParts<Api> for Manager {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let credentials = Credentials::of(parts)?;
        let segments = Segments::from_request_parts(parts, api).await?;
        let cluster: Result<ClusterId, ApiError> = segments.read("cluster");
        manage(
            admit(api, &credentials, cluster.as_ref().ok())?,
            cluster.as_ref().ok(),
        )?;
        let cluster = cluster?;
        let told = &credentials.told;
        told.tell(|facts| facts.cluster = Some(cluster.clone()));
        let handle = api.scheduler.cluster(&cluster)?;
        if parts.method == Method::GET {
            if await_change(parts, api, &handle).await? == Waited::Yes {
                manage(identify(api, &credentials, Some(&cluster))?, Some(&cluster))?;
            }
            let revision = handle.world().applied_count();
            told.tell(|facts| facts.revision = Some(revision));
        }
        Ok(Self(api.scheduler.cluster(&cluster)?))
    }
}

/// Whether somebody may manage a cluster.
fn manage(identity: Identity, cluster: Option<&ClusterId>) -> Result<(), ApiError> {
    match identity {
        Identity::Platform => Ok(()),
        Identity::Cluster(handle, TokenKind::Management) if cluster == Some(handle.id()) => Ok(()),
        Identity::Cluster(_, TokenKind::Management) => {
            Err(forbidden("this management token belongs to another cluster"))
        }
        Identity::Cluster(_, TokenKind::Machine) => Err(forbidden(
            "this needs a platform token or the cluster's management token; this is a machine token",
        )),
    }
}

impl FromRequestParts<Api> for NodeToken {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self, ApiError> {
        Credentials::of(parts).map(Self)
    }
}

impl NodeToken {
    /// Who asks must be known before the answer says anything about the body.
    pub(super) fn require_machine(
        &self,
        api: &Api,
        hint: Option<&ClusterId>,
    ) -> Result<ClusterHandle, ApiError> {
        match admit(api, &self.0, hint)? {
            Identity::Cluster(handle, TokenKind::Machine) => {
                let cluster = handle.id().clone();
                self.0.told.tell(|facts| facts.cluster = Some(cluster));
                Ok(handle)
            }
            Identity::Cluster(_, TokenKind::Management) => Err(forbidden(
                "this needs a machine token; this is a management token",
            )),
            Identity::Platform => Err(forbidden("this needs a machine token; this is a platform token")),
        }
    }

    /// The cluster, when this is its machine token. Clusters that are being deleted are served: their machines have to
    /// learn it.
    pub(super) fn machine_of(&self, api: &Api, cluster: &ClusterId) -> Result<ClusterHandle, ApiError> {
        let handle = self.require_machine(api, Some(cluster))?;
        if handle.id() == cluster {
            Ok(handle)
        } else {
            Err(forbidden("this machine token belongs to another cluster"))
        }
    }
}

/// Returns when the token that a request came with is no longer valid: for answers that last.
pub(super) async fn revoked(cluster: &ClusterHandle, told: Facts) {
    let caller = told.caller;
    let kind = match &caller {
        Some(Caller::Management { .. }) => TokenKind::Management,
        Some(Caller::Machine { .. }) => TokenKind::Machine,
        Some(Caller::Platform { .. }) | None => {
            let Some(until) = told.valid_until else {
                return std::future::pending().await;
            };
            return tokio::time::sleep(until.since(Timestamp::now())).await;
        }
    };
    let (Some(Caller::Management { token, .. }) | Some(Caller::Machine { token, .. })) = caller else {
        return std::future::pending().await;
    };
    let mut world = cluster.watch_world();
    // An error means that the cluster is gone, and its tokens with it.
    drop(
        world
            .wait_for(|world| world.token(kind).map(short) != Some(token.clone()))
            .await,
    );
}

fn bearer(headers: &HeaderMap) -> Result<String, ApiError> {
    let missing = || unauthenticated("no token; send the header Authorization: Bearer <token>");
    let value = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(missing)?;
    let (scheme, token) = value.split_once(' ').ok_or_else(missing)?;
    if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() {
        Ok(token.trim().to_owned())
    } else {
        Err(missing())
    }
}

/// Finds out who asks, and lets in whoever does not ask too often.
fn admit(api: &Api, credentials: &Credentials, hint: Option<&ClusterId>) -> Result<Identity, ApiError> {
    let identity = identify(api, credentials, hint)?;
    let caller = credentials.told.facts().caller;
    if let Some(caller) = caller {
        api.rates.take(&caller).map_err(|limited| limit(api, limited))?;
    }
    Ok(identity)
}

fn limit(api: &Api, limited: Limited) -> ApiError {
    api.scheduler.metrics().limited(limited.kind);
    limited.into()
}

/// `hint`, the cluster that the request is about, spares the search through all of them.
fn identify(api: &Api, credentials: &Credentials, hint: Option<&ClusterId>) -> Result<Identity, ApiError> {
    let token = credentials.token.as_str();
    let tell = |caller: Caller| credentials.told.tell(|facts| facts.caller = Some(caller));
    let stranger = || {
        let taken = api.rates.take_stranger(credentials.address);
        taken.map_err(|limited| limit(api, limited))
    };
    let Some(kind) = kind_of(token) else {
        let refusal = match api.scheduler.identity().check_platform_token(token) {
            Ok(caller) => {
                let until = caller.expires_at;
                credentials.told.tell(|facts| facts.valid_until = Some(until));
                tell(caller.into());
                return Ok(Identity::Platform);
            }
            Err(refusal) => refusal,
        };
        stranger()?;
        return Err(match refusal {
            InvalidPlatformToken::Unknown => unknown(),
            refusal => unauthenticated(&format!("the platform token is not accepted: {refusal}")),
        });
    };
    let digest = TokenDigest::of(token);
    let is_of = |handle: &ClusterHandle| {
        let world = handle.world();
        world.token(kind).is_some_and(|known| known.is_of(&digest))
    };
    let hinted = hint.and_then(|id| api.scheduler.find(id)).filter(is_of);
    let handle = match hinted {
        Some(handle) => Some(handle),
        None => {
            stranger()?;
            api.scheduler.clusters().into_iter().find(is_of)
        }
    };
    let handle = handle.ok_or_else(unknown)?;
    let (cluster_id, token) = (handle.id().clone(), short(&digest));
    tell(match kind {
        TokenKind::Management => Caller::Management { cluster_id, token },
        TokenKind::Machine => Caller::Machine { cluster_id, token },
    });
    Ok(Identity::Cluster(handle, kind))
}

fn unknown() -> ApiError {
    unauthenticated("the token is unknown, expired or revoked; get a new one and try again")
}

fn unauthenticated(message: &str) -> ApiError {
    Refused::new(Class::Unauthenticated, "unauthenticated", message).into()
}

fn forbidden(message: &str) -> ApiError {
    Refused::new(Class::Forbidden, "forbidden", message).into()
}
