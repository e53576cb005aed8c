//! Requests about all clusters, where several processes share them: each is asked for its part, and the parts are put together.
//!
//! The time is bounded: a process that does not answer within [`PART_TIMEOUT`] is left out. The header `x-berth-missing` names it,
//! and those that have yet to load a cluster which is theirs. Every part is asked for with the caller's own token.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use berth_api::rest::aggregate::{ClusterMachines, MachineStatusCounts, MachinesTotals};
use serde::Deserialize as _;
use serde_json::Value;

use super::Api;
use super::forward::{again, read, send};
use super::request::ApiError;
use super::rollup::Overview;
use crate::refusal::Refused;

/// Names the processes whose clusters are missing in an answer about all.
const MISSING: HeaderName = HeaderName::from_static("x-berth-missing");
/// A process that has not answered by then is left out.
const PART_TIMEOUT: Duration = Duration::from_secs(5);

/// On a request whose answer is one part of several: nothing is finished that others could add to.
#[derive(Debug, Clone, Copy)]
pub(super) struct AsPart;

/// How parts become a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whole {
    /// The lists of this name, ordered by cluster.
    List(&'static str),
    /// The list `clusters`, and sums over it.
    Machines,
    Overview,
}

/// Answers for this process, and says so when it does not serve all that is its own, as after a takeover.
pub(super) async fn part(api: &Api, request: Request, next: Next) -> Response {
    // Looked at first: what is loaded meanwhile may be in the answer or not.
    let late = api
        .scheduler
        .shard()
        .filter(|_| !api.scheduler.serves_its_share());
    let mut response = next.run(request).await;
    if let Some(shard) = late {
        name_missing(&mut response, &shard.config.me.rest_url);
    }
    response
}

fn name_missing(response: &mut Response, urls: &str) {
    if let Ok(value) = HeaderValue::from_str(urls)
        && !urls.is_empty()
    {
        response.headers_mut().insert(MISSING, value);
    }
}

/// Whose clusters a part says it lacks.
fn missing_of(response: &Response) -> Option<String> {
    let value = response.headers().get(MISSING)?;
    value.to_str().ok().map(str::to_owned)
}

/// Answers for this process and all others.
pub(super) async fn gather(
    api: &Api,
    whole: Whole,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let others = api
        .scheduler
        .shard()
        .map(|shard| shard.others())
        .unwrap_or_default();
    let (mut head, _) = request.into_parts();
    head.extensions.insert(AsPart);
    let own = part(api, again(&head, Bytes::new()), next).await;
    let mut missing: Vec<String> = missing_of(&own).into_iter().collect();
    let (status, own) = read(own).await?;
    if status != StatusCode::OK {
        return Ok((status, axum::Json(own)).into_response());
    }
    let asked = others.iter().map(|member| async {
        let part = async {
            let answer = send(api, member, again(&head, Bytes::new())).await?;
            let missing = missing_of(&answer);
            Ok::<_, ApiError>((missing, read(answer).await?))
        };
        tokio::time::timeout(PART_TIMEOUT, part).await
    });
    let answers = futures::future::join_all(asked).await;
    let mut parts = vec![own];
    for (member, answer) in others.iter().zip(answers) {
        match answer {
            Ok(Ok((late, (StatusCode::OK, part)))) => {
                parts.push(part);
                missing.extend(late);
            }
            Ok(Ok(_) | Err(_)) | Err(_) => missing.push(member.rest_url.clone()),
        }
    }
    let put_together = match whole {
        Whole::List(name) => Some(list(parts, name)),
        Whole::Machines => machines(parts),
        Whole::Overview => overview(parts),
    };
    let unreadable =
        || Refused::unavailable("another scheduler's part cannot be read: is it of another version?");
    let put_together = put_together.ok_or_else(unreadable)?;
    let mut response = axum::Json(put_together).into_response();
    name_missing(&mut response, &missing.join(","));
    Ok(response)
}

/// The first part, with the list of this name of all of them. A cluster that is handed over at this moment may be in two.
fn list(parts: Vec<Value>, name: &str) -> Value {
    let mut by_cluster = BTreeMap::new();
    let mut whole = Value::Null;
    for mut part in parts {
        if let Some(Value::Array(rows)) = part.get_mut(name).map(Value::take) {
            for row in rows {
                let cluster = row.get("clusterId").and_then(Value::as_str).map(str::to_owned);
                by_cluster.entry(cluster).or_insert(row);
            }
        }
        if whole.is_null() {
            whole = part;
        }
    }
    if let Some(whole) = whole.as_object_mut() {
        whole.insert(name.to_owned(), by_cluster.into_values().collect());
    }
    whole
}

fn machines(parts: Vec<Value>) -> Option<Value> {
    let mut whole = list(parts, "clusters");
    let clusters = Vec::<ClusterMachines>::deserialize(whole.get("clusters")?).ok()?;
    let by_status = clusters
        .iter()
        .fold(MachineStatusCounts::default(), |sum, cluster| {
            sum.plus(cluster.machines_by_status)
        });
    let totals = MachinesTotals {
        machines: by_status.total(),
        machines_by_status: by_status,
    };
    whole
        .as_object_mut()?
        .insert("totals".to_owned(), serde_json::to_value(totals).ok()?);
    Some(whole)
}

fn overview(parts: Vec<Value>) -> Option<Value> {
    let mut whole = Overview::default();
    for part in parts {
        whole = whole.plus(serde_json::from_value(part).ok()?);
    }
    serde_json::to_value(whole.reply()).ok()
}

#[cfg(test)]
mod tests {
    use berth_api::machine::MachineStatus;
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_are_ordered_and_name_each_cluster_once() {
        let part = |ids: &[&str]| {
            let rows: Vec<Value> = ids.iter().map(|id| json!({"clusterId": id})).collect();
            json!({"containerName": "web", "deployments": rows})
        };
        let whole = list(
            vec![part(&["c", "b"]), part(&["a", "c"]), json!({})],
            "deployments",
        );
        assert_eq!(whole, part(&["a", "b", "c"]));
    }

    #[test]
    fn machines_are_summed_anew() {
        let part = |id: &str, running: u64| {
            let counts = json!({"running": running, "unhealthy": 1, "initializing": 0, "draining": 0});
            json!({"clusters": [{"clusterId": id, "totalMachines": running + 1, "machinesByStatus": counts,
                "capacityGroups": []}], "totals": {"machines": 99, "machinesByStatus": counts}})
        };
        let whole = machines(vec![part("b", 1), part("a", 2)]).unwrap();
        assert_eq!(whole["totals"]["machines"], 5);
        assert_eq!(whole["totals"]["machinesByStatus"]["running"], 3);
        assert_eq!(whole["clusters"][0]["clusterId"], "a");
        let mut counts = MachineStatusCounts::default();
        counts.count(MachineStatus::Unhealthy);
        assert_eq!(counts.total(), 1);
    }

    #[test]
    fn means_of_parts_are_weighed_by_what_they_are_made_of() {
        let part = |sum: f64, count: u64, image: &str| {
            let mean = json!({"sum": sum, "count": count});
            json!({"totals": {"deployments": 1, "containerInstances": 1, "machines": 2, "machinesByStatus":
                    {"running": 2, "unhealthy": 0, "initializing": 0, "draining": 0}, "reschedulingFrozenCount": 0},
                "rows": {"web": {"instances": 1, "by_status": {"running": 1}, "project": {"One": null}, "image": {"One": image},
                    "stateful": {"One": false}, "autoscaling": {"One": false}, "wanted": 2, "healthy": 1, "attention": 0,
                    "load": {"cpu": mean, "memory": mean, "latency_p95": mean, "in_flight": mean, "failed": 0, "answered": 0}}}})
        };
        let whole = overview(vec![part(30.0, 3, "app:1"), part(90.0, 1, "app:2")]).unwrap();
        let row = &whole["containers"][0];
        assert_eq!(
            (&row["avgCpuPercent"], &row["image"]),
            (&json!(30.0), &Value::Null)
        );
        assert_eq!(
            (&row["totalInstances"], &row["totalReplicas"]),
            (&json!(2), &json!(4))
        );
        assert_eq!(whole["totals"]["machines"], 4);
        let same = overview(vec![part(1.0, 1, "app:1"), part(2.0, 1, "app:1")]).unwrap();
        assert_eq!(same["containers"][0]["image"], "app:1");
    }
}
