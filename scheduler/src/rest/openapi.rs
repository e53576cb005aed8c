//! The description of the API in OpenAPI 3.1, served at `/openapi.json`: the table of operations beside the router, with the
//! schemas derived from the types that requests are read into and replies are made of.
//!
//! The tests compare the table with the router and with the public client, and look for what a generator of clients stumbles
//! over; `make fuzz-api` drives a scheduler by it.

mod operations;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::body::Bytes;
use axum::http::header;
use axum::response::IntoResponse;
use serde_json::{Value, json};

pub(super) use operations::{OPERATIONS, Operation};

/// Who may call an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Anyone,
    Platform,
    /// A platform token, or the management token of the cluster.
    Manager,
    /// The machine token of the cluster.
    Machine,
}

/// Whether an operation changes something, and may so be called under an idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Reads,
    /// Reads a cluster, and can wait for a change of it.
    Watches,
    Writes,
    /// Heartbeats: each is newer than the one before.
    Reports,
    /// Opens a tunnel to a replica, by which anything may be changed in it.
    Opens,
}

/// The schemas of what requests are read into and replies are made of, derived from those types by the program in `openapi/`.
const SCHEMAS: &str = include_str!("../../openapi-schemas.json");

/// A reference to a schema, with the schema and all that it refers to kept in `used`.
fn refer(name: &str, used: &mut BTreeMap<String, Value>) -> Value {
    static KNOWN: LazyLock<Value> =
        LazyLock::new(|| serde_json::from_str(SCHEMAS).expect("the file is generated and tested"));
    if !used.contains_key(name) {
        let schema = KNOWN.get(name).cloned().unwrap_or_default();
        used.insert(name.to_owned(), schema.clone());
        keep(&schema, used);
    }
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn keep(value: &Value, used: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(members) => {
            let target = members.get("$ref").and_then(Value::as_str);
            if let Some(name) = target.and_then(|target| target.rsplit('/').next()) {
                refer(name, used);
            }
            members.values().for_each(|member| keep(member, used));
        }
        Value::Array(elements) => elements.iter().for_each(|element| keep(element, used)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// `GET /openapi.json`. Made once: it depends on nothing but this program.
pub(super) async fn serve() -> impl IntoResponse {
    static TEXT: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(document().to_string()));
    ([(header::CONTENT_TYPE, "application/json")], TEXT.clone())
}

pub(super) fn document() -> Value {
    let mut components = BTreeMap::new();
    let error = refer("ErrorReply", &mut components);
    let mut paths: BTreeMap<&str, BTreeMap<String, Value>> = BTreeMap::new();
    for operation in OPERATIONS {
        let described = describe(operation, &mut components);
        paths
            .entry(operation.path)
            .or_default()
            .insert(operation.method.to_ascii_lowercase(), described);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Berth",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The API of berth-scheduler, compatible with horizon-client-sdk 1.1.0. An id may contain slashes and is sent as one percent-encoded path segment. Members that are unknown are ignored.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {"Error": {
                "description": "The request was refused and changed nothing. The message tells every fault.",
                "headers": {"x-request-id": {"$ref": "#/components/headers/RequestId"}},
                "content": {"application/json": {"schema": error}}
            }},
            "headers": {
                "RequestId": {"description": "Names the request in the log.", "schema": {"type": "string"}},
                "Revision": {
                    "description": "Of the cluster, not above that of the answer: what ?watch takes.",
                    "schema": {"type": "integer", "minimum": 1}
                },
                "Replayed": {
                    "description": "The answer was given before under the same Idempotency-Key.",
                    "schema": {"type": "string", "const": "true"}
                }
            },
            "securitySchemes": {
                "platform": bearer("a JSON Web Token"),
                "management": bearer("hm_ and 43 letters and digits"),
                "machine": bearer("hj_ and 43 letters and digits")
            }
        }
    })
}

fn bearer(form: &str) -> Value {
    json!({"type": "http", "scheme": "bearer", "bearerFormat": form})
}

fn describe(operation: &Operation, components: &mut BTreeMap<String, Value>) -> Value {
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [operation.tag()],
        "security": security(operation.who),
        "parameters": parameters(operation, components),
        "responses": responses(operation, components)
    });
    if let Some(body) = operation.body {
        described["requestBody"] = json!({
            "required": true,
            "content": {"application/json": {"schema": refer(body, components)}}
        });
    }
    described
}

fn security(who: Who) -> Value {
    match who {
        Who::Anyone => json!([]),
        Who::Platform => json!([{"platform": []}]),
        Who::Manager => json!([{"platform": []}, {"management": []}]),
        Who::Machine => json!([{"machine": []}]),
    }
}

fn parameters(operation: &Operation, components: &mut BTreeMap<String, Value>) -> Vec<Value> {
    let mut parameters: Vec<Value> = operation
        .segments()
        .map(|name| {
            let schema = refer(operations::segment(name), components);
            json!({"name": name, "in": "path", "required": true, "schema": schema})
        })
        .collect();
    for (name, description, schema) in operation.query {
        parameters.push(json!({
            "name": name, "in": "query", "description": description, "schema": operations::query(schema)
        }));
    }
    if operation.effect == Effect::Watches {
        parameters.push(json!({
            "name": "watch", "in": "query",
            "description": "Answer when the cluster's revision is above this one, or after 15 s.",
            "schema": {"type": "integer", "minimum": 0, "maximum": u64::from(u32::MAX)}
        }));
    }
    if operation.effect == Effect::Writes {
        parameters.push(json!({
            "name": "Idempotency-Key", "in": "header",
            "description": "A repeat under the same key is answered as the first was and changes nothing.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[\\x21-\\x7e]+$"}
        }));
    }
    parameters
}

fn responses(operation: &Operation, components: &mut BTreeMap<String, Value>) -> Value {
    let mut headers = json!({"x-request-id": {"$ref": "#/components/headers/RequestId"}});
    match operation.effect {
        Effect::Watches => headers["berth-revision"] = json!({"$ref": "#/components/headers/Revision"}),
        Effect::Writes => headers["idempotency-replayed"] = json!({"$ref": "#/components/headers/Replayed"}),
        Effect::Reads | Effect::Reports | Effect::Opens => {}
    }
    let mut success = json!({"description": "Done.", "headers": headers});
    match operation.reply {
        operations::Reply::Json(reply) => {
            success["content"] = json!({"application/json": {"schema": refer(reply, components)}});
        }
        operations::Reply::Any(media) => success["content"] = json!({media: {"schema": {}}}),
        operations::Reply::WebSocket => {
            let subprotocol = berth_api::rest::tunnel::PROTOCOL;
            success["description"] = json!(format!("A WebSocket of subprotocol {subprotocol}."));
        }
    }
    let mut responses = serde_json::Map::new();
    responses.insert(operation.status.to_string(), success);
    for status in operation.refusals() {
        responses.insert(
            status.to_string(),
            json!({"$ref": "#/components/responses/Error"}),
        );
    }
    responses.into()
}

#[cfg(test)]
mod tests;
