//! Events of the wire API: flat objects, tagged by `reason`, 37 kinds.
//!
//! The generated client matches events as an untagged union: one event it cannot read makes the whole list
//! unreadable. So nothing is stored that is not one of the kinds below, with every member inside the width the client
//! reads it with: [`read_event`] refuses the rest when it arrives.

mod faulty;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::assignment::StopReason;
use crate::time::Timestamp;
use crate::validate::{Cursor, Faults, INT32_MAX, INT64_MAX, read};

use faulty::faulty;

/// Severity, the wire's `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum EventType {
    Info,
    Warning,
    Error,
}

impl EventType {
    /// Every word of the wire and its value.
    pub const WORDS: [(&str, Self); 3] = [
        ("info", Self::Info),
        ("warning", Self::Warning),
        ("error", Self::Error),
    ];
}

/// What an event is about: `{type, id}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", content = "id", rename_all = "camelCase")]
pub enum InvolvedObject {
    Cluster(String),
    Container(String),
    Replica(String),
    Machine(String),
    CapacityGroup(String),
}

impl InvolvedObject {
    /// The wire's `type`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Cluster(_) => "cluster",
            Self::Container(_) => "container",
            Self::Replica(_) => "replica",
            Self::Machine(_) => "machine",
            Self::CapacityGroup(_) => "capacityGroup",
        }
    }

    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Cluster(id)
            | Self::Container(id)
            | Self::Replica(id)
            | Self::Machine(id)
            | Self::CapacityGroup(id) => id,
        }
    }
}

/// Who says it. The node daemon must use the literal `horizond`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "component", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum EventSource {
    Scheduler,
    Controlplane,
    Horizond { machine_id: String },
}

/// The wire's `volumeType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum VolumeType {
    Aws,
    Gcp,
    Azure,
    Hostpath,
}

/// Where attaching a volume failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum AttachStep {
    Attach,
    WaitDevice,
    Format,
    Mount,
}

/// Where configuring the mesh failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum MeshStep {
    Interface,
    Peer,
    Route,
}

/// What made a container grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum TriggerMetric {
    Cpu,
    Memory,
    InitialDeploy,
}

/// What made a capacity group grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum CapacityTrigger {
    UnschedulableReplicas,
    HighUtilization,
}

/// What happened: `reason` and the members of that reason. `u32` travels as int32 and `u64` as int64.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "reason", rename_all_fields = "camelCase")]
pub enum EventDetails {
    ImagePulled {
        image: String,
        pull_duration_ms: u64,
    },
    ImagePullError {
        image: String,
        error: String,
    },
    VolumeAttached {
        volume_id: String,
        volume_type: VolumeType,
        device_path: String,
        mount_path: String,
        formatted: bool,
        attach_duration_ms: u64,
    },
    VolumeAttachError {
        volume_id: String,
        volume_type: VolumeType,
        error: String,
        step: AttachStep,
    },
    VolumeDetached {
        volume_id: String,
        volume_type: VolumeType,
        detach_reason: StopReason,
    },
    WireGuardPeerConfigured {
        peer_count: u64,
        peer_machine_ids: Vec<String>,
    },
    WireGuardConfigurationError {
        error: String,
        config_step: MeshStep,
    },
    BridgeInterfaceReady {
        bridge_name: String,
        gateway_ip: String,
    },
    TcpProxyStarted {
        host_port: u16,
        container_ip: String,
        container_port: u16,
    },
    LoadBalancerRegistered {
        host_port: u16,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target_group_arn: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        backend_service_url: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        backend_pool_id: Option<String>,
    },
    LoadBalancerRegistrationError {
        host_port: u16,
        error: String,
    },
    LoadBalancerDeregistered {
        host_port: u16,
    },
    ReplicaStarting {
        container_name: String,
        image: String,
    },
    ReplicaStarted {
        container_name: String,
        ip: String,
        total_startup_ms: u64,
    },
    ContainerRunError {
        container_name: String,
        error: String,
    },
    ReplicaFailed {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<String>,
    },
    ReplicaStopped {
        stop_reason: StopReason,
    },
    ContainerCrashLoop {
        recent_crashes: u32,
        backoff_seconds: u64,
    },
    CrashLoopRecovered {
        previous_crashes: u32,
    },
    MachineRegistered {
        capacity_group: String,
        zone: String,
        vpc_ip: String,
        container_cidr: String,
    },
    MachineReady {
        peer_count: u64,
        transition_time_ms: u64,
    },
    MachineDraining {
        replica_count: u64,
    },
    MachineUnhealthy {
        seconds_since_heartbeat: u64,
        replica_count: u64,
    },
    ClusterWideFailure {
        unhealthy_machine_count: u64,
        total_machine_count: u64,
        unhealthy_percent: f64,
    },
    Scheduled {
        container_name: String,
        machine_id: String,
        zone: String,
        ip: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ordinal: Option<u32>,
    },
    FailedScheduling {
        attempted_replicas: u32,
        capacity_group: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        required_zone: Option<String>,
    },
    ScaledUp {
        replicas_added: u64,
        new_replica_count: u64,
        trigger_metric: TriggerMetric,
        utilization_percent: f64,
    },
    ScaledDown {
        replicas_removed: u64,
        new_replica_count: u64,
    },
    CapacityGroupScaleUp {
        current_machines: u32,
        desired_machines: u32,
        trigger: CapacityTrigger,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unschedulable_replicas: Option<u32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        utilization_percent: Option<f64>,
    },
    CapacityGroupScaleDown {
        current_machines: u32,
        desired_machines: u32,
    },
    CapacityGroupAtMaxSize {
        max_size: u32,
        unschedulable_replicas: u32,
    },
    CapacityGroupAtMinSize {
        min_size: u32,
    },
    ContainerCreated {
        capacity_group: String,
        replicas: u32,
        stateful: bool,
    },
    ContainerUpdated {
        changes: Vec<String>,
    },
    ContainerDeleted {
        replicas_removed: u64,
    },
    ContainerStopped {},
    ContainerStarted {},
}

/// The wire's `reason` of every kind of event.
pub const REASONS: [&str; 37] = [
    "ImagePulled",
    "ImagePullError",
    "VolumeAttached",
    "VolumeAttachError",
    "VolumeDetached",
    "WireGuardPeerConfigured",
    "WireGuardConfigurationError",
    "BridgeInterfaceReady",
    "TcpProxyStarted",
    "LoadBalancerRegistered",
    "LoadBalancerRegistrationError",
    "LoadBalancerDeregistered",
    "ReplicaStarting",
    "ReplicaStarted",
    "ContainerRunError",
    "ReplicaFailed",
    "ReplicaStopped",
    "ContainerCrashLoop",
    "CrashLoopRecovered",
    "MachineRegistered",
    "MachineReady",
    "MachineDraining",
    "MachineUnhealthy",
    "ClusterWideFailure",
    "Scheduled",
    "FailedScheduling",
    "ScaledUp",
    "ScaledDown",
    "CapacityGroupScaleUp",
    "CapacityGroupScaleDown",
    "CapacityGroupAtMaxSize",
    "CapacityGroupAtMinSize",
    "ContainerCreated",
    "ContainerUpdated",
    "ContainerDeleted",
    "ContainerStopped",
    "ContainerStarted",
];

impl EventDetails {
    /// The wire's `reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ImagePulled { .. } => "ImagePulled",
            Self::ImagePullError { .. } => "ImagePullError",
            Self::VolumeAttached { .. } => "VolumeAttached",
            Self::VolumeAttachError { .. } => "VolumeAttachError",
            Self::VolumeDetached { .. } => "VolumeDetached",
            Self::WireGuardPeerConfigured { .. } => "WireGuardPeerConfigured",
            Self::WireGuardConfigurationError { .. } => "WireGuardConfigurationError",
            Self::BridgeInterfaceReady { .. } => "BridgeInterfaceReady",
            Self::TcpProxyStarted { .. } => "TcpProxyStarted",
            Self::LoadBalancerRegistered { .. } => "LoadBalancerRegistered",
            Self::LoadBalancerRegistrationError { .. } => "LoadBalancerRegistrationError",
            Self::LoadBalancerDeregistered { .. } => "LoadBalancerDeregistered",
            Self::ReplicaStarting { .. } => "ReplicaStarting",
            Self::ReplicaStarted { .. } => "ReplicaStarted",
            Self::ContainerRunError { .. } => "ContainerRunError",
            Self::ReplicaFailed { .. } => "ReplicaFailed",
            Self::ReplicaStopped { .. } => "ReplicaStopped",
            Self::ContainerCrashLoop { .. } => "ContainerCrashLoop",
            Self::CrashLoopRecovered { .. } => "CrashLoopRecovered",
            Self::MachineRegistered { .. } => "MachineRegistered",
            Self::MachineReady { .. } => "MachineReady",
            Self::MachineDraining { .. } => "MachineDraining",
            Self::MachineUnhealthy { .. } => "MachineUnhealthy",
            Self::ClusterWideFailure { .. } => "ClusterWideFailure",
            Self::Scheduled { .. } => "Scheduled",
            Self::FailedScheduling { .. } => "FailedScheduling",
            Self::ScaledUp { .. } => "ScaledUp",
            Self::ScaledDown { .. } => "ScaledDown",
            Self::CapacityGroupScaleUp { .. } => "CapacityGroupScaleUp",
            Self::CapacityGroupScaleDown { .. } => "CapacityGroupScaleDown",
            Self::CapacityGroupAtMaxSize { .. } => "CapacityGroupAtMaxSize",
            Self::CapacityGroupAtMinSize { .. } => "CapacityGroupAtMinSize",
            Self::ContainerCreated { .. } => "ContainerCreated",
            Self::ContainerUpdated { .. } => "ContainerUpdated",
            Self::ContainerDeleted { .. } => "ContainerDeleted",
            Self::ContainerStopped {} => "ContainerStopped",
            Self::ContainerStarted {} => "ContainerStarted",
        }
    }
}

/// A thing that happened. Equal repeats are merged: `count` rises and `lastTimestamp` moves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Event {
    pub event_id: String,
    #[serde(rename = "type")]
    pub kind: EventType,
    pub message: String,
    pub first_timestamp: Timestamp,
    pub last_timestamp: Timestamp,
    /// At least 1.
    pub count: u32,
    pub involved_object: InvolvedObject,
    pub source: EventSource,
    #[serde(flatten)]
    pub details: EventDetails,
}

impl Event {
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.details.reason()
    }

    /// Whether `other` is the same thing happening again: equal but for id, times, count and the durations that differ
    /// with each repeat.
    #[must_use]
    pub fn is_repeat_of(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.involved_object == other.involved_object
            && self.source == other.source
            && self.reason() == other.reason()
            && self.message == other.message
    }

    /// Counts a repeat in. The latest details win.
    pub fn merge(&mut self, repeat: Self) {
        let max = u32::try_from(INT32_MAX).unwrap_or(u32::MAX);
        self.count = self.count.saturating_add(repeat.count).min(max);
        self.first_timestamp = self.first_timestamp.min(repeat.first_timestamp);
        if repeat.last_timestamp >= self.last_timestamp {
            self.last_timestamp = repeat.last_timestamp;
            self.details = repeat.details;
        }
    }
}

/// Characters of an event's message at most.
const MESSAGE_LEN_MAX: usize = 8192;
/// Of an event as JSON: a cluster keeps a thousand of them in memory.
const EVENT_BYTES_MAX: usize = 32 << 10;

/// Reads an event of a node.
///
/// # Errors
/// With every fault when it is none that every client can read.
pub fn read_event(value: &Value) -> Result<Event, Faults> {
    read(value, event)
}

/// As [`read_event`], inside a larger input.
pub fn event(cursor: &Cursor<'_>) -> Option<Event> {
    cursor.object()?;
    let time = |name: &str| {
        cursor
            .member(name)
            .parse("an RFC 3339 time", str::parse::<Timestamp>)
    };
    let event_id = cursor.member("eventId").text_sized(1..=512);
    let kind = cursor.member("type").word(&EventType::WORDS);
    let message = cursor.member("message").text_sized(0..=MESSAGE_LEN_MAX);
    if cursor.raw()?.to_string().len() > EVENT_BYTES_MAX {
        cursor.fault(format!("is larger than {EVENT_BYTES_MAX} bytes; tell less"));
    }
    let first_timestamp = time("firstTimestamp");
    let last_timestamp = time("lastTimestamp");
    if let (Some(first), Some(last)) = (first_timestamp, last_timestamp)
        && last < first
    {
        cursor.member("lastTimestamp").fault(format!(
            "is before firstTimestamp {first}; write the same or a later time"
        ));
    }
    let count = cursor.member("count").count(1..=u32::MAX);
    let involved_object = involved_object(&cursor.member("involvedObject"));
    let source = source(&cursor.member("source"));
    let details = details(cursor);
    Some(Event {
        event_id: event_id?.to_owned(),
        kind: kind?,
        message: message?.to_owned(),
        first_timestamp: first_timestamp?,
        last_timestamp: last_timestamp?,
        count: count?,
        involved_object: involved_object?,
        source: source?,
        details: details?,
    })
}

/// Makes an [`InvolvedObject`] of one kind from its id.
pub type MakeObject = fn(String) -> InvolvedObject;

/// The wire's words for kinds of involved objects.
pub const OBJECT_KINDS: [(&str, MakeObject); 5] = [
    ("cluster", InvolvedObject::Cluster),
    ("container", InvolvedObject::Container),
    ("replica", InvolvedObject::Replica),
    ("machine", InvolvedObject::Machine),
    ("capacityGroup", InvolvedObject::CapacityGroup),
];

fn involved_object(cursor: &Cursor<'_>) -> Option<InvolvedObject> {
    cursor.object()?;
    let make = cursor.member("type").word(&OBJECT_KINDS);
    let id = cursor.member("id").text_sized(1..=512);
    Some(make?(id?.to_owned()))
}

fn source(cursor: &Cursor<'_>) -> Option<EventSource> {
    cursor.object()?;
    let words = [("scheduler", 0), ("controlplane", 1), ("horizond", 2)];
    match cursor.member("component").word(&words)? {
        0 => Some(EventSource::Scheduler),
        1 => Some(EventSource::Controlplane),
        _ => {
            let machine_id = cursor.member("machineId").text_sized(1..=512)?;
            Some(EventSource::Horizond {
                machine_id: machine_id.to_owned(),
            })
        }
    }
}

fn details(cursor: &Cursor<'_>) -> Option<EventDetails> {
    let words = REASONS.map(|reason| (reason, ()));
    let reason = cursor.member("reason");
    reason.text_of("one of the 37 reasons of the API")?;
    reason.word(&words)?;
    // Widths are checked below: serde would take an int64 where the generated client reads an int32.
    let details: EventDetails = match serde_json::from_value(cursor.raw()?.clone()) {
        Ok(details) => details,
        Err(_) => {
            for (name, problem) in faulty(cursor.raw()?) {
                if name.is_empty() {
                    cursor.fault(problem);
                } else {
                    cursor.member(&name).fault(problem);
                }
            }
            return None;
        }
    };
    let widths_fit = fits_client(&details);
    if !widths_fit {
        return cursor.refuse("a number is larger than the API's int32 and int64 members can carry");
    }
    Some(details)
}

/// Whether every number fits the width the generated client reads it with. Members declared as `u32` are int32 on the
/// wire, the others int64.
fn fits_client(details: &EventDetails) -> bool {
    const INT32: [&str; 11] = [
        "ordinal",
        "attemptedReplicas",
        "recentCrashes",
        "previousCrashes",
        "currentMachines",
        "desiredMachines",
        "unschedulableReplicas",
        "maxSize",
        "minSize",
        "replicas",
        "count",
    ];
    let Ok(Value::Object(members)) = serde_json::to_value(details) else {
        return false;
    };
    members.iter().all(|(name, value)| {
        let max = if INT32.contains(&name.as_str()) {
            INT32_MAX
        } else {
            INT64_MAX
        };
        value.as_u64().is_none_or(|number| number <= max)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stopped() -> Value {
        json!({
            "eventId": "e-1", "type": "info", "message": "stopped",
            "firstTimestamp": "2026-11-21T10:00:00.000Z", "lastTimestamp": "2026-11-21T10:00:00.000Z",
            "count": 1, "involvedObject": {"type": "replica", "id": "a-0"},
            "source": {"component": "horizond", "machineId": "m-1"},
            "reason": "ReplicaStopped", "stopReason": "machine_draining"
        })
    }

    #[test]
    fn the_json_is_flat_and_round_trips() {
        let event = read_event(&stopped()).unwrap();
        assert_eq!(
            event.details,
            EventDetails::ReplicaStopped {
                stop_reason: StopReason::MachineDraining
            }
        );
        assert_eq!(serde_json::to_value(&event).unwrap(), stopped());
        assert_eq!(serde_json::from_value::<Event>(stopped()).unwrap(), event);
    }

    #[test]
    fn what_a_client_cannot_read_is_refused_with_all_faults() {
        let mut value = stopped();
        value["type"] = json!("fatal");
        value["count"] = json!(0);
        value["source"] = json!({"component": "berthd"});
        value["stopReason"] = json!("because");
        let faults = read_event(&value).unwrap_err();
        let paths: Vec<&str> = faults.list().iter().map(|fault| fault.path.as_str()).collect();
        assert_eq!(paths, ["type", "count", "source.component", "stopReason"]);
    }

    #[test]
    fn numbers_wider_than_the_client_reads_are_refused() {
        let mut value = stopped();
        value["reason"] = json!("CrashLoopRecovered");
        value["previousCrashes"] = json!(u32::MAX);
        assert!(read_event(&value).is_err());
        value["previousCrashes"] = json!(3);
        assert!(read_event(&value).is_ok());
    }

    #[test]
    fn an_unknown_reason_is_refused() {
        let mut value = stopped();
        value["reason"] = json!("ReplicaExploded");
        let faults = read_event(&value).unwrap_err();
        assert_eq!(faults.list()[0].path, "reason");
    }

    #[test]
    fn repeats_merge() {
        let mut event = read_event(&stopped()).unwrap();
        let mut repeat = event.clone();
        repeat.event_id = "e-2".into();
        repeat.last_timestamp = "2026-11-21T10:00:05Z".parse().unwrap();
        assert!(repeat.is_repeat_of(&event));
        event.merge(repeat);
        assert_eq!(event.count, 2);
        assert_eq!(event.event_id, "e-1");
        assert_eq!(event.last_timestamp.to_string(), "2026-11-21T10:00:05.000Z");
    }
}
