//! What handlers read requests with, and errors as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use berth_api::rest::{ErrorDetail, ErrorReply};
use berth_api::validate::{Fault, Faults, parse_json};
use serde_json::Value;

use crate::refusal::{Class, Refused};

/// A larger body is refused unread: the largest honest one, a batch of 500 heartbeats, stays well below.
pub(super) const BODY_MAX: usize = 1 << 20;

/// An answer that says no.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: String,
    message: String,
    faults: Vec<Fault>,
    /// When a repeat may help, for statuses that say so.
    retry_after: Duration,
}

/// The word of a refusal, for the middleware.
#[derive(Debug, Clone)]
pub(super) struct RefusalCode(pub(super) String);

pub(super) type Answer<T> = Result<Json<T>, ApiError>;

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.to_owned(),
            message: message.into(),
            faults: Vec::new(),
            retry_after: Duration::from_secs(1),
        }
    }

    /// 429, and when to come again.
    pub(super) fn too_many(code: &str, message: impl Into<String>, retry_after: Duration) -> Self {
        Self {
            retry_after,
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, code, message)
        }
    }

    /// 400 with every fault.
    pub(super) fn invalid(code: &'static str, faults: Faults) -> Self {
        Refused::invalid(code, faults).into()
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        Self {
            status: StatusCode::from_u16(refused.class.http_status())
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            code: refused.code.to_owned(),
            message: refused.message,
            faults: refused.faults,
            retry_after: Duration::from_secs(1),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let code = RefusalCode(self.code.clone());
        let reply = ErrorReply {
            error: ErrorDetail {
                code: self.code,
                message: self.message,
            },
            faults: self.faults,
        };
        let mut response = (self.status, Json(reply)).into_response();
        response.extensions_mut().insert(code);
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(
            self.status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        ) {
            // Whole seconds, rounded up.
            let seconds = self.retry_after.as_millis().div_ceil(1000).max(1);
            headers.insert(
                header::RETRY_AFTER,
                HeaderValue::from(u64::try_from(seconds).unwrap_or(60)),
            );
        }
        response
    }
}

pub(super) async fn no_route(uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "no_such_route",
        format!(
            "there is no route {:?}; a '/' inside an id is sent as %2F",
            uri.path()
        ),
    )
}

pub(super) async fn no_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("{method} is not possible on {:?}", uri.path()),
    )
}

/// The decoded segments of the path, by the names of the route.
pub(super) struct Segments(BTreeMap<String, String>);

impl Segments {
    /// A segment read as `T`; the route has it.
    pub(super) fn read<T>(&self, name: &str) -> Result<T, ApiError>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        let text = self.0.get(name).map_or("", String::as_str);
        text.parse().map_err(|error: T::Err| {
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_path", error.to_string())
        })
    }

    pub(super) fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Segments {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path: Path<BTreeMap<String, String>> = Path::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "invalid_path", error.body_text()))?;
        Ok(Self(path.0))
    }
}

/// The body, read as JSON. A member that is there twice is a fault.
pub(super) struct Input(pub(super) Value);

impl<S: Send + Sync> FromRequest<S> for Input {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = read_body(&parts, body).await?;
        parse_json(&bytes)
            .map(Self)
            .map_err(|faults| ApiError::invalid("malformed_json", faults))
    }
}

pub(super) async fn read_body(parts: &Parts, body: Body) -> Result<Bytes, ApiError> {
    let too_large = || {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("the body is larger than {BODY_MAX} bytes"),
        )
    };
    let announced = parts
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|len| len.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|len| len > BODY_MAX) {
        return Err(too_large());
    }
    to_bytes(body, BODY_MAX).await.map_err(|error| {
        let is_limit = std::error::Error::source(&error)
            .is_some_and(|source| source.is::<http_body_util::LengthLimitError>());
        if is_limit {
            too_large()
        } else {
            ApiError::new(
                StatusCode::BAD_REQUEST,
                "body_unreadable",
                "the body ended early".to_owned(),
            )
        }
    })
}

/// The query as pairs, in order.
pub(super) struct Pairs(pub(super) Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Pairs {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query: axum::extract::Query<Vec<(String, String)>> =
            axum::extract::Query::from_request_parts(parts, state)
                .await
                .map_err(|error| {
                    ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", error.body_text())
                })?;
        Ok(Self(query.0))
    }
}

impl Pairs {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// An error of our own making: it has been logged, and there is nothing the caller can do.
pub(super) fn internal(error: &(dyn std::error::Error + 'static)) -> ApiError {
    tracing::error!(error, "a request failed inside the scheduler");
    Refused::new(
        Class::Unavailable,
        "internal",
        "the scheduler cannot do this now; see its log",
    )
    .into()
}
