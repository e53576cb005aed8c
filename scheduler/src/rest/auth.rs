//! Who asks, and whether they may: bearer tokens of three kinds. Unknown or revoked: 401. Known, but of the wrong kind
//! or another cluster: 403.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use berth_api::id::ClusterId;

use super::Api;
use super::request::{ApiError, Segments};
use crate::cluster::ClusterHandle;
use crate::entry::TokenKind;
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
pub(super) struct NodeToken(String);

impl FromRequestParts<Api> for Platform {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        match identify(api, &bearer(&parts.headers)?, None)? {
            Identity::Platform => Ok(Self),
            Identity::Cluster(..) => Err(forbidden("this needs a platform token")),
        }
    }
}

impl FromRequestParts<Api> for Manager {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let token = bearer(&parts.headers)?;
        let segments = Segments::from_request_parts(parts, api).await?;
        let cluster: Result<ClusterId, ApiError> = segments.read("cluster");
        match identify(api, &token, cluster.as_ref().ok())? {
            Identity::Platform => {}
            Identity::Cluster(handle, TokenKind::Management) => {
                if cluster.as_ref().ok() != Some(handle.id()) {
                    return Err(forbidden("this management token belongs to another cluster"));
                }
            }
            Identity::Cluster(_, TokenKind::Machine) => {
                return Err(forbidden(
                    "this needs a platform token or the cluster's management token; this is a machine token",
                ));
            }
        }
        Ok(Self(api.scheduler.cluster(&cluster?)?))
    }
}

impl FromRequestParts<Api> for NodeToken {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self, ApiError> {
        bearer(&parts.headers).map(Self)
    }
}

impl NodeToken {
    /// Who asks must be known before the answer says anything about the body.
    pub(super) fn require_machine(
        &self,
        api: &Api,
        hint: Option<&ClusterId>,
    ) -> Result<ClusterHandle, ApiError> {
        match identify(api, &self.0, hint)? {
            Identity::Cluster(handle, TokenKind::Machine) => Ok(handle),
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

/// `hint`, the cluster that the request is about, spares the search through all of them.
fn identify(api: &Api, token: &str, hint: Option<&ClusterId>) -> Result<Identity, ApiError> {
    let Some(kind) = kind_of(token) else {
        return match api.scheduler.identity().check_platform_token(token) {
            Ok(_) => Ok(Identity::Platform),
            Err(InvalidPlatformToken::Unknown) => Err(unknown()),
            Err(refusal) => Err(unauthenticated(&format!(
                "the platform token is not accepted: {refusal}"
            ))),
        };
    };
    let is_of = |handle: &ClusterHandle| {
        handle
            .world()
            .token(kind)
            .is_some_and(|digest| digest.matches(token))
    };
    let hinted = hint.and_then(|id| api.scheduler.find(id)).filter(is_of);
    let handle = hinted.or_else(|| api.scheduler.clusters().into_iter().find(is_of));
    handle
        .map(|handle| Identity::Cluster(handle, kind))
        .ok_or_else(unknown)
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
