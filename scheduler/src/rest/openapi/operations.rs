//! The table of operations.

use serde_json::{Value, json};

use super::{Effect, Who};

/// Name of a schema.
pub(super) type Schema = &'static str;

/// What an operation answers with.
#[derive(Clone, Copy)]
pub(in crate::rest) enum Reply {
    Json(Schema),
    /// Of this media type, without a schema.
    Any(&'static str),
    /// The connection becomes one.
    WebSocket,
}

/// One operation of the API.
pub(in crate::rest) struct Operation {
    pub(in crate::rest) method: &'static str,
    /// As the router has it.
    pub(in crate::rest) path: &'static str,
    pub(in crate::rest) id: &'static str,
    pub(in crate::rest) summary: &'static str,
    pub(in crate::rest) who: Who,
    pub(in crate::rest) effect: Effect,
    /// Name, description, kind.
    pub(in crate::rest) query: &'static [(&'static str, &'static str, Query)],
    pub(in crate::rest) body: Option<Schema>,
    pub(in crate::rest) status: u16,
    pub(in crate::rest) reply: Reply,
}

/// What a member of a query may be.
#[derive(Debug, Clone, Copy)]
pub(in crate::rest) enum Query {
    Text,
    Bool,
    Number(u64, u64),
    Words(&'static [&'static str]),
    /// Given once for each of its elements.
    Texts,
}

pub(super) fn query(kind: &Query) -> Value {
    match kind {
        Query::Text => json!({"type": "string"}),
        Query::Bool => json!({"type": "boolean"}),
        Query::Number(min, max) => json!({"type": "integer", "minimum": min, "maximum": max}),
        Query::Words(words) => json!({"type": "string", "enum": words}),
        Query::Texts => json!({"type": "array", "items": {"type": "string"}, "minItems": 1}),
    }
}

/// The schema of a path segment.
pub(super) fn segment(name: &str) -> Schema {
    match name {
        "cluster" => "ClusterId",
        "container" => "ContainerName",
        "machine" => "MachineId",
        "group" => "GroupId",
        "subject" => "Subject",
        // A replica, or what is named like one.
        _ => "ReplicaId",
    }
}

impl Operation {
    /// Names of the path's segments that are ids.
    pub(in crate::rest) fn segments(&self) -> impl Iterator<Item = &'static str> {
        self.path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }

    /// Whether a raw path, not decoded, is of this operation.
    pub(in crate::rest) fn is_at(&self, path: &str) -> bool {
        let mut parts = path.split('/');
        let mut known = self.path.split('/');
        loop {
            match (parts.next(), known.next()) {
                (None, None) => return true,
                (Some(part), Some(known))
                    if part == known || (known.starts_with('{') && !part.is_empty()) => {}
                _ => return false,
            }
        }
    }

    pub(super) fn tag(&self) -> &'static str {
        match (self.who, self.path) {
            (Who::Machine, _) | (_, "/batch/heartbeat") => "nodes",
            (_, path) if path.starts_with("/aggregate") => "aggregates",
            (_, path) if path.ends_with("/events") => "events",
            (_, path) if path.contains("/containers") => "containers",
            (_, path) if path.starts_with("/clusters") => "clusters",
            _ => "scheduler",
        }
    }

    /// Statuses of its refusals. 404: the cluster, or what is in it, is not there.
    pub(super) fn refusals(&self) -> Vec<u16> {
        let mut statuses = vec![400, 405, 414, 429, 431, 503];
        if self.who != Who::Anyone {
            statuses.extend([401, 403]);
        }
        if self.path.contains('{') || self.who == Who::Machine {
            statuses.push(404);
        }
        if self.effect == Effect::Writes {
            statuses.push(409);
        }
        if self.effect == Effect::Opens {
            statuses.extend([409, 426]);
        }
        if self.body.is_some() {
            statuses.push(413);
        }
        statuses.sort_unstable();
        statuses
    }
}

const BASE: Operation = Operation {
    method: "GET",
    path: "",
    id: "",
    summary: "",
    who: Who::Manager,
    effect: Effect::Reads,
    query: &[],
    body: None,
    status: 200,
    reply: Reply::Json("Success"),
};

const EVENT_TYPES: Query = Query::Words(&["info", "warning", "error"]);
const EVENT_QUERY: [(&str, &str, Query); 3] = [
    ("type", "Only events of this severity.", EVENT_TYPES),
    ("reason", "Only events of this reason.", Query::Text),
    (
        "limit",
        "At most so many, the newest first; 100 unless told.",
        Query::Number(1, 1000),
    ),
];
const CLUSTER_EVENT_QUERY: [(&str, &str, Query); 5] = [
    (
        "involvedObject.type",
        "Only events about objects of this kind.",
        Query::Words(&["cluster", "container", "replica", "machine", "capacityGroup"]),
    ),
    (
        "involvedObject.id",
        "Only events about the object of this id.",
        Query::Text,
    ),
    EVENT_QUERY[0],
    EVENT_QUERY[1],
    EVENT_QUERY[2],
];
const AGGREGATE_QUERY: [(&str, &str, Query); 2] = [
    ("projectId", "Only clusters of this project.", Query::Text),
    (
        "deploymentGroupId",
        "Only clusters of this deployment group.",
        Query::Text,
    ),
];
const REPACK_QUERY: [(&str, &str, Query); 2] = [
    (
        "movesPerHour",
        "At most so many moves an hour; 20 unless told.",
        Query::Number(1, 10_000),
    ),
    ("stateful", "Whether stateful replicas may move.", Query::Bool),
];
const LOG_QUERY: [(&str, &str, Query); 3] = [
    ("follow", "Whether to go on with new lines.", Query::Bool),
    (
        "sinceMs",
        "Only lines since then, milliseconds since 1970.",
        Query::Number(0, u64::MAX >> 12),
    ),
    (
        "tail",
        "Only the last so many lines.",
        Query::Number(0, u32::MAX as u64),
    ),
];

const EXEC_QUERY: [(&str, &str, Query); 5] = [
    (
        "command",
        "The program and each of its arguments, in order.",
        Query::Texts,
    ),
    (
        "input",
        "Whether it has input; else it reads end of file.",
        Query::Bool,
    ),
    (
        "terminal",
        "Whether its input and output are a terminal.",
        Query::Bool,
    ),
    ("columns", "Of the terminal.", Query::Number(1, 10_000)),
    ("rows", "Of the terminal.", Query::Number(1, 10_000)),
];
const PORT_QUERY: [(&str, &str, Query); 1] =
    [("port", "Where the replica listens.", Query::Number(1, 65_535))];

/// A tunnel to a replica.
const fn tunnel(path: &'static str, id: &'static str, summary: &'static str) -> Operation {
    Operation {
        path,
        id,
        summary,
        effect: Effect::Opens,
        status: 101,
        reply: Reply::WebSocket,
        ..BASE
    }
}

/// A read of a cluster.
const fn read(path: &'static str, id: &'static str, summary: &'static str, reply: Schema) -> Operation {
    Operation {
        path,
        id,
        summary,
        effect: Effect::Watches,
        reply: Reply::Json(reply),
        ..BASE
    }
}

/// A write that answers `{"success": true}` and has no body.
const fn act(method: &'static str, path: &'static str, id: &'static str, summary: &'static str) -> Operation {
    Operation {
        method,
        path,
        id,
        summary,
        effect: Effect::Writes,
        ..BASE
    }
}

const fn events(path: &'static str, id: &'static str, summary: &'static str) -> Operation {
    Operation {
        query: &EVENT_QUERY,
        ..read(path, id, summary, "ListEventsReply")
    }
}

const fn aggregate(path: &'static str, id: &'static str, summary: &'static str, reply: Schema) -> Operation {
    Operation {
        who: Who::Platform,
        effect: Effect::Reads,
        query: &AGGREGATE_QUERY,
        ..read(path, id, summary, reply)
    }
}

const fn open(path: &'static str, id: &'static str, summary: &'static str, reply: Reply) -> Operation {
    Operation {
        path,
        id,
        summary,
        who: Who::Anyone,
        reply,
        ..BASE
    }
}

/// Every operation, in the order of the public API; Berth's own after those.
pub(in crate::rest) const OPERATIONS: &[Operation] = &[
    Operation {
        who: Who::Machine,
        body: Some("RegisterRequest"),
        reply: Reply::Json("RegisterReply"),
        ..act(
            "POST",
            "/register",
            "handle_register",
            "Registers a machine, once a boot",
        )
    },
    Operation {
        who: Who::Machine,
        effect: Effect::Reports,
        body: Some("HeartbeatRequest"),
        reply: Reply::Json("HeartbeatReply"),
        ..act(
            "POST",
            "/heartbeat",
            "handle_heartbeat",
            "Reports a machine and gets all that it must run",
        )
    },
    Operation {
        who: Who::Platform,
        effect: Effect::Reports,
        body: Some("BatchHeartbeatRequest"),
        ..act(
            "POST",
            "/batch/heartbeat",
            "handle_batch_heartbeat",
            "Reports up to 500 simulated machines",
        )
    },
    Operation {
        who: Who::Machine,
        body: Some("CreateEventRequest"),
        status: 201,
        ..act(
            "POST",
            "/events",
            "create_event",
            "Records what happened on a machine",
        )
    },
    Operation {
        who: Who::Platform,
        body: Some("ClusterSpec"),
        reply: Reply::Json("CreateClusterReply"),
        ..act(
            "POST",
            "/clusters",
            "create_cluster",
            "Creates a cluster and shows its tokens",
        )
    },
    read(
        "/clusters/{cluster}",
        "get_cluster",
        "A cluster and its capacity",
        "GetClusterReply",
    ),
    Operation {
        body: Some("UpdateClusterRequest"),
        ..act(
            "PATCH",
            "/clusters/{cluster}",
            "update_cluster",
            "Sets all capacity groups of a cluster",
        )
    },
    Operation {
        who: Who::Platform,
        ..act(
            "DELETE",
            "/clusters/{cluster}",
            "delete_cluster",
            "Deletes a cluster and all that is in it",
        )
    },
    read(
        "/clusters/{cluster}/machines",
        "list_machines",
        "The machines of a cluster",
        "ListMachinesReply",
    ),
    Operation {
        query: &[(
            "deadlineSeconds",
            "After so long, what is left is stopped.",
            Query::Number(0, 604_800),
        )],
        ..act(
            "POST",
            "/clusters/{cluster}/machines/{machine}/drain",
            "drain_machine",
            "Moves all replicas off a machine",
        )
    },
    read(
        "/clusters/{cluster}/capacity-plan",
        "get_capacity_plan",
        "How many machines each group should have",
        "CapacityPlanReply",
    ),
    Operation {
        body: Some("TokenRequest"),
        reply: Reply::Json("RotateTokenReply"),
        ..act(
            "POST",
            "/clusters/{cluster}/tokens/rotate",
            "rotate_token",
            "Replaces a token of a cluster",
        )
    },
    Operation {
        body: Some("TokenRequest"),
        ..act(
            "POST",
            "/clusters/{cluster}/tokens/revoke",
            "revoke_token",
            "Makes all tokens of a kind invalid",
        )
    },
    Operation {
        body: Some("CreateContainerRequest"),
        reply: Reply::Json("CreateContainerReply"),
        ..act(
            "POST",
            "/clusters/{cluster}/containers",
            "create_container",
            "Declares a container",
        )
    },
    read(
        "/clusters/{cluster}/containers",
        "list_containers",
        "The containers of a cluster",
        "ListContainersReply",
    ),
    read(
        "/clusters/{cluster}/containers/{container}",
        "get_container",
        "A container and its replicas",
        "GetContainerReply",
    ),
    Operation {
        body: Some("UpdateContainerRequest"),
        reply: Reply::Json("CreateContainerReply"),
        ..act(
            "PATCH",
            "/clusters/{cluster}/containers/{container}",
            "update_container",
            "Changes the declaration of a container",
        )
    },
    act(
        "DELETE",
        "/clusters/{cluster}/containers/{container}",
        "delete_container",
        "Deletes a container and its replicas",
    ),
    act(
        "POST",
        "/clusters/{cluster}/containers/{container}/stop",
        "stop_container",
        "Stops the replicas of a container",
    ),
    act(
        "POST",
        "/clusters/{cluster}/containers/{container}/start",
        "start_container",
        "Starts the replicas of a stopped container",
    ),
    Operation {
        query: &CLUSTER_EVENT_QUERY,
        ..events(
            "/clusters/{cluster}/events",
            "list_events",
            "What happened in a cluster",
        )
    },
    events(
        "/clusters/{cluster}/containers/{container}/events",
        "list_container_events",
        "What happened to a container",
    ),
    events(
        "/clusters/{cluster}/replicas/{replica}/events",
        "list_replica_events",
        "What happened to a replica",
    ),
    events(
        "/clusters/{cluster}/machines/{machine}/events",
        "list_machine_events",
        "What happened to a machine",
    ),
    events(
        "/clusters/{cluster}/capacity-groups/{group}/events",
        "list_capacity_group_events",
        "What happened to a capacity group",
    ),
    aggregate(
        "/aggregate/overview",
        "aggregate_overview",
        "Containers over all clusters",
        "OverviewReply",
    ),
    aggregate(
        "/aggregate/attention",
        "aggregate_attention",
        "What needs attention",
        "AttentionReply",
    ),
    aggregate(
        "/aggregate/containers/{container}",
        "aggregate_container",
        "A container in every cluster",
        "ContainerDeploymentsReply",
    ),
    aggregate(
        "/aggregate/machines",
        "aggregate_machines",
        "Machines over all clusters",
        "AggregateMachinesReply",
    ),
    Operation {
        who: Who::Platform,
        effect: Effect::Reads,
        ..read("/clusters", "list_clusters", "Every cluster", "ListClustersReply")
    },
    act(
        "POST",
        "/clusters/{cluster}/held-stops/release",
        "release_stops",
        "Lets stops happen that nobody has asked for and that are held",
    ),
    act(
        "POST",
        "/clusters/{cluster}/containers/{container}/rollout/pause",
        "pause_rollout",
        "Lets the rollout of a container start and stop nothing",
    ),
    act(
        "POST",
        "/clusters/{cluster}/containers/{container}/rollout/resume",
        "resume_rollout",
        "Lets a paused rollout go on, or tries again what was rolled back",
    ),
    act(
        "POST",
        "/clusters/{cluster}/containers/{container}/rollout/undo",
        "undo_rollout",
        "Declares again what was rolled out completely before",
    ),
    act(
        "DELETE",
        "/clusters/{cluster}/machines/{machine}/drain",
        "cancel_drain",
        "Lets a draining machine take replicas again",
    ),
    Operation {
        query: &[(
            "poweredOff",
            "Whether the machine is known to be off for good.",
            Query::Bool,
        )],
        ..act(
            "DELETE",
            "/clusters/{cluster}/machines/{machine}",
            "remove_machine",
            "Forgets a machine",
        )
    },
    Operation {
        query: &REPACK_QUERY,
        ..read(
            "/clusters/{cluster}/repack-plan",
            "get_repack_plan",
            "Which replicas to move so that machines become empty",
            "RepackPlanReply",
        )
    },
    read(
        "/clusters/{cluster}/replicas",
        "list_replicas",
        "Every replica, and what it waits for",
        "ListReplicasReply",
    ),
    read(
        "/clusters/{cluster}/explain/{subject}/{id}",
        "explain",
        "Why something is as it is, and what would help",
        "Explanation",
    ),
    Operation {
        query: &LOG_QUERY,
        reply: Reply::Any("application/x-ndjson"),
        ..read(
            "/clusters/{cluster}/logs/{name}",
            "read_logs",
            "Logs, a line of JSON each",
            "Success",
        )
    },
    Operation {
        query: &EXEC_QUERY,
        ..tunnel(
            "/clusters/{cluster}/exec/{name}",
            "exec",
            "Run a program in a replica",
        )
    },
    Operation {
        query: &PORT_QUERY,
        ..tunnel(
            "/clusters/{cluster}/port-forward/{name}",
            "port_forward",
            "Connect to a port of a replica",
        )
    },
    open(
        "/healthz",
        "healthz",
        "Whether the process lives",
        Reply::Json("Success"),
    ),
    open(
        "/readyz",
        "readyz",
        "Whether requests can be served",
        Reply::Json("Success"),
    ),
    open(
        "/metrics",
        "metrics",
        "What the scheduler counts of itself",
        Reply::Any("application/openmetrics-text"),
    ),
    open(
        "/openapi.json",
        "openapi",
        "This description",
        Reply::Any("application/json"),
    ),
];
