//! Berth's additions to the API, for people: every cluster, every replica with what it waits for, logs.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::cluster::Platform;
use crate::id::{ClusterId, ContainerName, MachineId, ReplicaId, Zone};
use crate::machine::GpuDevice;
use crate::replica::{Cause, Phase, Usage, Wait, WireReplicaStatus};
use crate::time::Timestamp;
use crate::units::{Bytes, Cpu};

/// One cluster of `GET /clusters`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ClusterSummary {
    pub cluster_id: ClusterId,
    pub name: String,
    pub platform: Platform,
    pub machine_count: u64,
    pub container_count: u64,
    pub created_at: Timestamp,
}

/// `GET /clusters`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ListClustersReply {
    pub clusters: Vec<ClusterSummary>,
}

/// One replica, placed or not, as engineers on call want to see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ReplicaView {
    pub replica_id: ReplicaId,
    pub container: ContainerName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordinal: Option<u32>,
    pub image: String,
    /// Absent while the replica has no place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<MachineId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub ip: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    pub status: WireReplicaStatus,
    /// As the node last reported it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    pub ready: bool,
    /// Process starts so far.
    pub run: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    pub recent_crashes: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<Wait>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// Digest of the assignment that the running process was started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Runs something else than its container now declares: a rollout will replace it.
    #[serde(default)]
    pub outdated: bool,
    /// What placement packs with: what it desires, or what it is granted while it is squeezed.
    pub cpu: Cpu,
    pub memory: Bytes,
    /// The GPUs that are its own, wholly or in part, by rising number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu_devices: Vec<GpuDevice>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// `GET /clusters/{c}/replicas`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ListReplicasReply {
    pub replicas: Vec<ReplicaView>,
}

/// Where a line of log comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    Stdout,
    Stderr,
    /// Berth's own words in the log: a gap, a suppressed burst, the end of the answer by a fault.
    Keeper,
}

/// One line of `GET /clusters/{c}/logs/{id}`, which answers with a line of JSON per record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct LogRecord {
    pub time: Timestamp,
    pub replica_id: ReplicaId,
    pub stream: LogStream,
    /// Bytes that are no UTF-8 are replaced.
    pub line: String,
    /// The line was cut at the size limit and goes on in the next record.
    #[serde(default)]
    pub partial: bool,
    /// The replica's incarnation.
    pub run: u32,
}
