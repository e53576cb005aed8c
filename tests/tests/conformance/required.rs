//! What must be there: the same members as for the published client, no more and no fewer. Its own types are the judge: each body
//! is tried without each of its members in turn.

use horizon_client_sdk::types;
use serde_json::Value;

use super::harness::{CLUSTER, Stage, container_body, heartbeat_body, register_body};
use super::writes::{self, BASE, Reads, fault_path, members, reads, without};

fn is_missed(reply: &Value, path: &str) -> bool {
    let faults = reply["faults"].as_array().into_iter().flatten();
    // Of an object that is not there its own required members are missed.
    let below = format!("{path}.");
    let mut faults = faults.filter(|fault| {
        let found = fault["path"].as_str().unwrap_or_default();
        found == path || found.starts_with(&below)
    });
    faults.any(|fault| {
        fault["problem"]
            .as_str()
            .is_some_and(|problem| problem.starts_with("is missing"))
    })
}

#[tokio::test]
async fn every_request_requires_the_members_that_the_published_client_requires() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let (mut required, mut optional, mut differing) = (0, 0, Vec::new());
    for op in writes::all(&stage).await? {
        for body in &op.bodies {
            assert!((op.reads)(body), "the client could send this: {} {body}", op.path);
            for pointer in members(body) {
                let lacking = without(body, &pointer);
                let is_required = !(op.reads)(&lacking);
                let (status, reply, _) = stage
                    .request(op.method, &op.path, &op.token, Some(lacking))
                    .await?;
                let is_missed = status == 400 && is_missed(&reply, &fault_path(&pointer));
                if is_required {
                    required += 1;
                } else {
                    optional += 1;
                }
                if is_required != is_missed {
                    differing.push(format!("{} {pointer}: {status} {reply}", op.path));
                }
            }
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
    assert!(required > 100 && optional > 50, "{required} and {optional}");
    stage.stop().await;
    Ok(())
}

/// Reads of a cluster, and the client's type for each reply.
fn replies() -> Vec<(&'static str, String, Reads)> {
    let of = |path: &str| format!("{BASE}{path}");
    vec![
        ("/clusters/{cluster}", of(""), reads::<types::GetClusterResponse>),
        (
            "/clusters/{cluster}/machines",
            of("/machines"),
            reads::<types::ListMachinesResponse>,
        ),
        (
            "/clusters/{cluster}/capacity-plan",
            of("/capacity-plan"),
            reads::<types::CapacityPlanResponse>,
        ),
        (
            "/clusters/{cluster}/containers",
            of("/containers"),
            reads::<types::ListContainersResponse>,
        ),
        (
            "/clusters/{cluster}/containers/{container}",
            of("/containers/reader"),
            reads::<types::GetContainerResponse>,
        ),
        (
            "/clusters/{cluster}/events",
            of("/events"),
            reads::<types::ListEventsResponse>,
        ),
    ]
}

#[tokio::test]
async fn the_description_requires_what_the_published_client_cannot_do_without() -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let machine = stage.create_cluster().await?.machine_token;
    for (path, body) in [
        ("/register", register_body("i-1")),
        ("/heartbeat", heartbeat_body("i-1", serde_json::json!({}))),
    ] {
        let (status, reply, _) = stage.request("POST", path, &machine, Some(body)).await?;
        anyhow::ensure!(status == 200, "{reply}");
    }
    let path = format!("{BASE}/containers");
    let body = container_body("reader");
    stage.request("POST", &path, &stage.platform, Some(body)).await?;
    super::harness::until("the replicas to be placed", || async {
        let cluster = stage.running.scheduler().cluster(&CLUSTER.parse()?)?;
        Ok((cluster.world().replicas().len() == 2).then_some(()))
    })
    .await?;
    let beat = heartbeat_body("i-1", serde_json::json!({}));
    let mut cases = Vec::new();
    for (template, path, reads) in replies() {
        let (_, reply, _) = stage.request("GET", &path, &stage.platform, None).await?;
        cases.push(("get", template, reply, reads));
    }
    let (_, reply, _) = stage.request("POST", "/heartbeat", &machine, Some(beat)).await?;
    cases.push(("post", "/heartbeat", reply, reads::<types::HeartbeatResponse>));
    let (_, reply, _) = stage
        .request("POST", "/register", &machine, Some(register_body("i-1")))
        .await?;
    cases.push(("post", "/register", reply, reads::<types::RegisterResponse>));
    let (_, document, _) = stage.request("GET", "/openapi.json", "", None).await?;
    let mut needed = 0;
    for (method, template, reply, reads) in cases {
        assert!(reads(&reply), "{template}: {reply}");
        let schema =
            &document["paths"][template][method]["responses"]["200"]["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{method} {template}");
        for pointer in members(&reply) {
            if reads(&without(&reply, &pointer)) {
                continue;
            }
            needed += 1;
            assert!(
                requires(&document, schema, &pointer),
                "{method} {template}: the client needs {pointer}, the description does not promise it"
            );
        }
    }
    assert!(needed > 100, "{needed}");
    stage.stop().await;
    Ok(())
}

/// Whether a schema requires the member at a pointer of its values.
fn requires(document: &Value, schema: &Value, pointer: &str) -> bool {
    let parts: Vec<&str> = pointer.split('/').skip(1).collect();
    let (last, before) = parts.split_last().expect("a pointer has a part");
    let mut at = parts_of(document, schema);
    for part in before {
        let next = at.iter().flat_map(|schema| below(schema, part));
        at = next.flat_map(|schema| parts_of(document, schema)).collect();
    }
    at.iter().any(|schema| {
        let mut required = schema["required"].as_array().into_iter().flatten();
        required.any(|name| name.as_str() == Some(*last))
    })
}

/// A schema and all that it is made of, references followed.
fn parts_of<'a>(document: &'a Value, schema: &'a Value) -> Vec<&'a Value> {
    if let Some(name) = schema["$ref"].as_str().and_then(|name| name.rsplit('/').next()) {
        return parts_of(document, &document["components"]["schemas"][name]);
    }
    let inner = ["allOf", "oneOf", "anyOf"]
        .into_iter()
        .flat_map(|kind| schema[kind].as_array().into_iter().flatten());
    let mut parts: Vec<&Value> = inner.flat_map(|inner| parts_of(document, inner)).collect();
    parts.push(schema);
    parts
}

fn below<'a>(schema: &'a Value, part: &str) -> Option<&'a Value> {
    let found = if part.parse::<usize>().is_ok() {
        &schema["items"]
    } else if schema["properties"][part].is_object() {
        &schema["properties"][part]
    } else {
        &schema["additionalProperties"]
    };
    found.is_object().then_some(found)
}
