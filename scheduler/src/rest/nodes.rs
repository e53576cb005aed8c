//! The operations of nodes that speak the plain wire API: register, heartbeat, posted events.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use berth_api::event::{EventSource, InvolvedObject};
use berth_api::id::{ClusterId, MachineId};
use berth_api::rest::node::{
    CreateEventRequest, HeartbeatReply, HeartbeatRequest, RegisterReply, RegisterRequest, read_batch,
};
use berth_api::rest::{SUCCESS, Success};
use berth_api::validate::{Fault, Faults};
use serde_json::Value;

use super::auth::{NodeToken, Platform};
use super::request::{Answer, ApiError, Input};
use super::write::{Write, write, write_as};
use super::{Api, view};
use crate::cluster::{ClusterHandle, Heartbeat, require_no_key};
use crate::refusal::Refused;

/// Reads a body; what is wrong with it is told only to who may speak for the cluster that it names.
fn read_for<T>(
    api: &Api,
    token: &NodeToken,
    value: &Value,
    read: impl FnOnce(&Value) -> Result<T, Faults>,
    code: &'static str,
) -> Result<T, ApiError> {
    read(value).or_else(|faults| {
        let named = value.get("clusterId").and_then(Value::as_str);
        match named.map(ClusterId::new) {
            Some(Ok(cluster)) => token.machine_of(api, &cluster)?,
            Some(Err(_)) | None => token.require_machine(api, None)?,
        };
        Err(ApiError::invalid(code, faults))
    })
}

pub(super) async fn register(
    State(api): State<Api>,
    token: NodeToken,
    Write { once, value }: Write,
) -> Result<Response, ApiError> {
    let request = read_for(&api, &token, &value, RegisterRequest::read, "invalid_machine")?;
    let cluster = token.machine_of(&api, &request.cluster_id)?;
    write(&cluster, once, move |draft| {
        let assigned_network = draft.register_machine(request.machine)?;
        Ok(RegisterReply { assigned_network })
    })
    .await
}

pub(super) async fn heartbeat(
    State(api): State<Api>,
    token: NodeToken,
    Input(value): Input,
) -> Answer<HeartbeatReply> {
    let request = read_for(&api, &token, &value, HeartbeatRequest::read, "invalid_heartbeat")?;
    let cluster = token.machine_of(&api, &request.cluster_id)?;
    let machine_id = request.machine_id.clone();
    require_no_key(&cluster.world(), &machine_id)?;
    beat(&cluster, request).await?;
    view::heartbeat(&cluster.world(), &cluster.observed(), &machine_id)
        .map(Json)
        .ok_or_else(|| Refused::machine_not_found(machine_id.as_str()).into())
}

async fn beat(cluster: &ClusterHandle, request: HeartbeatRequest) -> Result<(), Refused> {
    cluster
        .heartbeat(Heartbeat {
            machine_id: request.machine_id,
            replicas: request.replicas,
        })
        .await
}

/// Every heartbeat is tried; those that were refused are listed, and repeating the others does no harm.
pub(super) async fn batch_heartbeat(
    State(api): State<Api>,
    _: Platform,
    Input(value): Input,
) -> Answer<Success> {
    let requests = read_batch(&value).map_err(|faults| ApiError::invalid("invalid_heartbeat", faults))?;
    let mut faults = Vec::new();
    for (index, request) in requests.into_iter().enumerate() {
        let outcome = match api.scheduler.cluster(&request.cluster_id) {
            Ok(cluster) => beat(&cluster, request).await,
            Err(refused) => Err(refused),
        };
        if let Err(refused) = outcome {
            faults.push(Fault {
                path: format!("heartbeats[{index}]"),
                problem: refused.message,
            });
        }
    }
    Faults::check(faults).map_err(|faults| ApiError::invalid("heartbeats_refused", faults))?;
    Ok(Json(SUCCESS))
}

/// A machine speaks for itself only: it cannot post as scheduler or control plane.
pub(super) async fn create_event(
    State(api): State<Api>,
    token: NodeToken,
    Write { once, value }: Write,
) -> Result<Response, ApiError> {
    let request = read_for(&api, &token, &value, CreateEventRequest::read, "invalid_event")?;
    let cluster = token.machine_of(&api, &request.cluster_id)?;
    if let InvolvedObject::Machine(machine_id) = &request.event.involved_object
        && let Ok(machine_id) = MachineId::new(machine_id.as_str())
    {
        require_no_key(&cluster.world(), &machine_id)?;
    }
    match &request.event.source {
        EventSource::Horizond { machine_id } => {
            if let Ok(machine_id) = MachineId::new(machine_id.as_str()) {
                require_no_key(&cluster.world(), &machine_id)?;
            }
        }
        EventSource::Scheduler | EventSource::Controlplane => {
            let problem = "a machine token posts events of nodes only; write horizond and the machine's id";
            let faults = Faults::one("event.source.component", problem);
            return Err(ApiError::invalid("invalid_event", faults));
        }
    }
    write_as(StatusCode::CREATED, &cluster, once, move |draft| {
        draft.record(request.event).map(|()| SUCCESS)
    })
    .await
}
