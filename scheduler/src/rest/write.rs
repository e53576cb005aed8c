//! Writes: read with their idempotency key, done in one step of the cluster's actor, answered as the first of their key was.

use axum::Json;
use axum::extract::{FromRequest, Request};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use berth_api::rest::{SUCCESS, Success};
use berth_api::validate::parse_json;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::request::{ApiError, read_body};
use crate::cluster::{Answer, ClusterHandle, Draft, Once, Outcome};
use crate::refusal::Refused;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// On an answer that was given before.
pub(super) const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const KEY_LEN_MAX: usize = 255;

/// A write with a body: its key, and the body as JSON. A member that is there twice is a fault.
pub(super) struct Write {
    pub(super) once: Option<Once>,
    pub(super) value: Value,
}

/// A write without a body, and its key.
pub(super) struct Bare(pub(super) Option<Once>);

impl<S: Send + Sync> FromRequest<S> for Write {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let key = key(&parts)?;
        let bytes = read_body(&parts, body).await?;
        let value = parse_json(&bytes).map_err(|faults| ApiError::invalid("malformed_json", faults))?;
        let once = key.map(|key| once(&key, &parts, &value));
        Ok(Self { once, value })
    }
}

impl<S: Send + Sync> FromRequest<S> for Bare {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (parts, _) = request.into_parts();
        let key = key(&parts)?;
        Ok(Self(key.map(|key| once(&key, &parts, &Value::Null))))
    }
}

fn key(parts: &Parts) -> Result<Option<String>, ApiError> {
    let mut values = parts.headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let is_good = |key: &&str| {
        (1..=KEY_LEN_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic())
    };
    match (value.to_str().ok().filter(is_good), values.next()) {
        (Some(key), None) => Ok(Some(key.to_owned())),
        _ => Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "invalid_idempotency_key",
            format!("send one Idempotency-Key of 1 to {KEY_LEN_MAX} visible ASCII characters"),
        )),
    }
}

fn once(key: &str, parts: &Parts, value: &Value) -> Once {
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = format!("{} {path}\n", parts.method);
    canonical(value, &mut request);
    Once {
        key: short_digest(key),
        request: short_digest(&request),
    }
}

/// 128 bits of SHA-256 in hexadecimal.
fn short_digest(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// JSON whose members are in order: the same content is the same text, however a client arranges it.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(name, _)| *name);
            out.push('{');
            for (name, member) in members {
                out.push_str(&Value::String(name.clone()).to_string());
                out.push(':');
                canonical(member, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(elements) => {
            out.push('[');
            for element in elements {
                canonical(element, out);
                out.push(',');
            }
            out.push(']');
        }
        plain @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => {
            out.push_str(&plain.to_string());
        }
    }
}

/// Does a write and answers with what it gives. `change` runs in the cluster's actor; it reads the answer from the draft, so
/// that the answer is of the same moment as the change.
pub(super) async fn write<T: Serialize>(
    cluster: &ClusterHandle,
    once: Option<Once>,
    change: impl FnOnce(&mut Draft<'_>) -> Result<T, Refused> + Send + 'static,
) -> Result<Response, ApiError> {
    write_as(StatusCode::OK, cluster, once, change).await
}

/// As [`write`], with a status of its own.
pub(super) async fn write_as<T: Serialize>(
    status: StatusCode,
    cluster: &ClusterHandle,
    once: Option<Once>,
    change: impl FnOnce(&mut Draft<'_>) -> Result<T, Refused> + Send + 'static,
) -> Result<Response, ApiError> {
    let outcome = cluster
        .change(move |draft| {
            draft.once(once, |draft| {
                let reply = change(draft)?;
                Ok(Answer::plain(status.as_u16(), json(&reply)))
            })
        })
        .await?;
    Ok(match outcome {
        Outcome::Done(answer) => respond(&answer),
        Outcome::Replayed(answer) => replayed(respond(&answer)),
    })
}

/// A write that answers `{"success": true}`.
pub(super) async fn act(
    cluster: &ClusterHandle,
    once: Option<Once>,
    change: impl FnOnce(&mut Draft<'_>) -> Result<(), Refused> + Send + 'static,
) -> Result<Response, ApiError> {
    write(cluster, once, |draft| {
        change(draft).map(|()| -> Success { SUCCESS })
    })
    .await
}

pub(super) fn json(reply: &impl Serialize) -> Value {
    serde_json::to_value(reply).expect("a reply has text keys and no failing serialiser")
}

fn respond(answer: &Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    (status, Json(&answer.body)).into_response()
}

/// Marks an answer as one that was given before.
pub(super) fn replayed(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(value: &Value) -> String {
        let mut out = String::new();
        canonical(value, &mut out);
        out
    }

    #[test]
    fn content_is_the_same_in_any_order_of_members_and_in_no_other_way() {
        let one = json!({"a": 1, "b": [{"c": null, "d": "x"}]});
        assert_eq!(text(&one), text(&json!({"b": [{"d": "x", "c": null}], "a": 1})));
        for other in [
            json!({"a": "1", "b": [{"c": null, "d": "x"}]}),
            json!({"a": 1, "b": [{"d": "x"}]}),
            json!({"a": 1, "b": [{"c": null}, {"d": "x"}]}),
            json!({"a": 1, "b": [{"c": null, "d": "x\"}"}]}),
        ] {
            assert_ne!(text(&one), text(&other));
        }
    }
}
