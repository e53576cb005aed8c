//! What surrounds every handler: limits of path and headers, request id, deadline, and afterwards metrics and audit log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use berth_api::time::{Timestamp, monotonic};
use tracing::Instrument as _;

use super::Api;
use super::audit::Line;
use super::openapi::{Effect, OPERATIONS};
use super::request::{ApiError, RefusalCode};
use super::told::Told;
use super::write::REPLAYED;
use crate::traces;

/// A request that is not answered by then is given up: an actor commits within milliseconds, and a watch ends before.
const DEADLINE: Duration = Duration::from_secs(30);
/// Path and query together; the longest honest ones are two ids of 512 characters, percent-encoded.
const URI_LEN_MAX: usize = 8 << 10;
/// Names and values together.
const HEADERS_LEN_MAX: usize = 16 << 10;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REVISION: HeaderName = HeaderName::from_static("berth-revision");
/// A longer id of a client is replaced by one of ours.
const REQUEST_ID_MAX: usize = 128;

/// The operation of requests that are none.
const NO_OPERATION: &str = "none";

/// On an answer of another process: the audit log of that one has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct SentOn;

/// What the audit log and the metrics want to know of a request, before it is given away.
struct Asked {
    operation: &'static str,
    is_write: bool,
    path: String,
    address: Option<std::net::IpAddr>,
}

impl Asked {
    fn of(request: &Request) -> Self {
        let path = request.uri().path();
        let found = OPERATIONS
            .iter()
            .find(|known| request.method() == known.method && known.is_at(path));
        let connection = request.extensions().get::<ConnectInfo<std::net::SocketAddr>>();
        Self {
            operation: found.map_or(NO_OPERATION, |found| found.id),
            // Events are reports too: nobody asks for a change by them.
            is_write: found.is_some_and(|found| match found.effect {
                Effect::Writes => found.path != "/events",
                Effect::Opens => true,
                Effect::Reads | Effect::Watches | Effect::Reports => false,
            }),
            path: request.uri().path().to_owned(),
            address: connection.map(|info| info.0.ip()),
        }
    }
}

/// The middleware.
pub(super) async fn around(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let id = request_id(&request);
    let (asked, told) = (Asked::of(&request), Told::default());
    request.extensions_mut().insert(told.clone());
    // Another process that it is sent on to calls it the same.
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let span = tracing::info_span!(
        "request",
        request_id = id.to_str().unwrap_or_default(),
        method = %request.method(),
        path = asked.path,
    );
    traces::adopt(&span, request.headers());
    let started = monotonic();
    let mut response = match too_long(&request) {
        Some(refusal) => refusal.into_response(),
        None => answer(request, next).instrument(span.clone()).await,
    };
    let facts = told.facts();
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id.clone());
    if let Some(revision) = facts.revision {
        headers.insert(REVISION, HeaderValue::from(revision));
    }
    let (status, elapsed) = (response.status().as_u16(), started.elapsed());
    let metrics = api.scheduler.metrics();
    metrics.answered(asked.operation, status, elapsed);
    let replayed = response.headers().contains_key(REPLAYED);
    if replayed {
        metrics.replayed();
    }
    if asked.is_write && response.extensions().get::<SentOn>().is_none() {
        let code = response.extensions().get::<RefusalCode>();
        api.audit.write(&Line {
            time: Timestamp::now(),
            request_id: id.to_str().unwrap_or_default(),
            caller: facts.caller.as_ref(),
            address: asked.address,
            operation: asked.operation,
            path: &asked.path,
            cluster_id: facts.cluster.as_ref(),
            replica_id: facts.replica.as_ref(),
            status,
            code: code.map(|code| code.0.as_str()),
            replayed,
        });
    }
    traces::answered(&span, asked.operation, status);
    let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    span.in_scope(|| tracing::debug!(status, elapsed_ms, "answered"));
    response
}

async fn answer(request: Request, next: Next) -> Response {
    let is_safe = request.method() == Method::GET;
    let handled = tokio::time::timeout(DEADLINE, next.run(request));
    handled.await.unwrap_or_else(|_| {
        let effect = if is_safe {
            "repeat it"
        } else {
            "it may or may not have taken effect, repeat it"
        };
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "deadline_exceeded",
            format!(
                "the request was not answered within {} s; {effect}",
                DEADLINE.as_secs()
            ),
        )
        .into_response()
    })
}

fn too_long(request: &Request) -> Option<ApiError> {
    let uri = request
        .uri()
        .path_and_query()
        .map_or(0, |path| path.as_str().len());
    if uri > URI_LEN_MAX {
        let message = format!("path and query have {uri} bytes; {URI_LEN_MAX} are taken");
        return Some(ApiError::new(StatusCode::URI_TOO_LONG, "uri_too_long", message));
    }
    let headers: usize = request
        .headers()
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if headers > HEADERS_LEN_MAX {
        let message = format!("the headers have {headers} bytes; {HEADERS_LEN_MAX} are taken");
        return Some(ApiError::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "headers_too_large",
            message,
        ));
    }
    None
}

/// The client's own id where it is short and printable, else one that no other request of this process has.
fn request_id(request: &Request) -> HeaderValue {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    if let Some(id) = request.headers().get(REQUEST_ID)
        && !id.is_empty()
        && id.len() <= REQUEST_ID_MAX
        && id
            .to_str()
            .is_ok_and(|id| id.bytes().all(|byte| byte.is_ascii_graphic()))
    {
        return id.clone();
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let id = format!("{:08x}-{count:x}", std::process::id());
    HeaderValue::from_str(&id).expect("hexadecimal digits and a dash")
}
