//! What a request turns out to be, told by those who find it out to the middleware around them: who calls, about which
//! cluster, at which revision.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::ConnectInfo;
use axum::http::request::Parts;
use berth_api::id::{ClusterId, ReplicaId};
use berth_api::time::Timestamp;
use serde::Serialize;

use crate::entry::TokenDigest;
use crate::platform::PlatformCaller;

/// Who calls, as the audit log says it. Tokens are told by the begin of their digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(super) enum Caller {
    Platform {
        issuer: String,
        subject: String,
        key_id: String,
    },
    Management {
        cluster_id: ClusterId,
        token: String,
    },
    Machine {
        cluster_id: ClusterId,
        token: String,
    },
}

impl From<PlatformCaller> for Caller {
    fn from(caller: PlatformCaller) -> Self {
        Self::Platform {
            issuer: caller.issuer,
            subject: caller.subject,
            key_id: caller.key_id,
        }
    }
}

/// The first 48 bits of a token's digest: enough to tell tokens apart, too little to find one by.
pub(super) fn short(digest: &TokenDigest) -> String {
    digest.0.chars().take(12).collect()
}

/// Everything that was told.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub(super) caller: Option<Caller>,
    /// When the caller's token ends by itself.
    pub(super) valid_until: Option<Timestamp>,
    /// Into which a tunnel was opened.
    pub(super) replica: Option<ReplicaId>,
    pub(super) cluster: Option<ClusterId>,
    pub(super) revision: Option<u64>,
}

/// One for each request, among its extensions.
#[derive(Debug, Clone, Default)]
pub(super) struct Told(Arc<Mutex<Facts>>);

impl Told {
    pub(super) fn of(parts: &Parts) -> Self {
        parts.extensions.get::<Self>().cloned().unwrap_or_default()
    }

    pub(super) fn tell(&self, tell: impl FnOnce(&mut Facts)) {
        tell(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn facts(&self) -> Facts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Where the request comes from; none in tests without a connection.
pub(super) fn address(parts: &Parts) -> Option<IpAddr> {
    parts
        .extensions
        .get::<ConnectInfo<SocketAddr>>()
        .map(|info| info.0.ip())
}
