//! Prints the schemas of all types that the API's requests and replies are made of, for `scheduler/openapi-schemas.json`.
//!
//! `scripts/openapi.sh` writes the file, and with `--check`, as `make test` runs it, says whether it is what the types give.

use std::collections::BTreeMap;

use berth_api::cluster::ClusterSpec;
use berth_api::explain::{Explanation, Subject};
use berth_api::id::{ClusterId, ContainerName, GroupId, MachineId, ReplicaId};
use berth_api::rest::aggregate::{
    AggregateMachinesReply, AttentionReply, ContainerDeploymentsReply, OverviewReply,
};
use berth_api::rest::cluster::{
    CapacityPlanReply, CreateClusterReply, GetClusterReply, RotateTokenReply, TokenRequest,
};
use berth_api::rest::container::{CreateContainerReply, GetContainerReply, ListContainersReply};
use berth_api::rest::node::{
    CreateEventRequest, HeartbeatReply, HeartbeatRequest, ListMachinesReply, RegisterReply, RegisterRequest,
};
use berth_api::rest::operator::{ListClustersReply, ListReplicasReply};
use berth_api::rest::repack::RepackPlanReply;
use berth_api::rest::schema::{
    BatchHeartbeatRequest, CreateContainerRequest, UpdateClusterRequest, UpdateContainerRequest,
};
use berth_api::rest::{ErrorReply, ListEventsReply, Success};
use serde_json::Value;
use utoipa::ToSchema;

type Schemas = BTreeMap<String, Value>;

/// Adds a type and all that it is made of.
fn add<T: ToSchema>(schemas: &mut Schemas) {
    let mut found = Vec::new();
    T::schemas(&mut found);
    found.push((T::name().into_owned(), T::schema()));
    for (name, schema) in found {
        let mut schema = serde_json::to_value(schema).expect("a schema has text keys");
        rename(&mut schema);
        if let Some(known) = schemas.insert(name.clone(), schema.clone()) {
            assert_eq!(known, schema, "two types are called {name}");
        }
    }
}

/// The derive knows nothing of `rename_all_fields`: what still has an underscore is a member of a tagged variant, and those are
/// camel case everywhere.
fn rename(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if let Some(Value::Object(properties)) = members.get_mut("properties") {
                *properties = std::mem::take(properties)
                    .into_iter()
                    .map(|(name, property)| (camel(&name), property))
                    .collect();
            }
            for name in members
                .get_mut("required")
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                *name = camel(name.as_str().expect("members have names")).into();
            }
            members.values_mut().for_each(rename);
        }
        Value::Array(elements) => elements.iter_mut().for_each(rename),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn camel(name: &str) -> String {
    let mut words = name.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at_checked(1).unwrap_or((word, ""));
        camel.push_str(&first.to_ascii_uppercase());
        camel.push_str(rest);
    }
    camel
}

macro_rules! all {
    ($schemas:ident: $($type:ty),* $(,)?) => { $(add::<$type>(&mut $schemas);)* };
}

fn main() {
    let mut schemas = Schemas::new();
    all!(schemas:
        // Path segments.
        ClusterId, ContainerName, GroupId, MachineId, ReplicaId, Subject,
        // Requests.
        BatchHeartbeatRequest, ClusterSpec, CreateContainerRequest, CreateEventRequest, HeartbeatRequest, RegisterRequest,
        TokenRequest, UpdateClusterRequest, UpdateContainerRequest,
        // Replies.
        AggregateMachinesReply, AttentionReply, CapacityPlanReply, ContainerDeploymentsReply, CreateClusterReply,
        CreateContainerReply, ErrorReply, Explanation, GetClusterReply, GetContainerReply, HeartbeatReply, ListClustersReply,
        ListContainersReply, ListEventsReply, ListMachinesReply, ListReplicasReply, OverviewReply, RegisterReply,
        RepackPlanReply, RotateTokenReply, Success,
    );
    let text = serde_json::to_string_pretty(&schemas).expect("a schema has text keys");
    println!("{text}");
}
