//! Bodies of the node's side of the API (register, heartbeat, posted events) and of the list of machines.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::pattern;
use crate::assignment::Assignment;
use crate::cluster::Platform;
use crate::container::{HealthCheck, LoadBalancerTarget, ServiceAccountTarget};
use crate::event::{self, Event};
use crate::id::{ClusterId, ContainerName, GroupId, Label, MachineId, ReplicaId, Zone};
use crate::machine::{
    AssignedNetwork, CpuCapacity, GpuCapacity, GpuDevice, MACHINE_BYTES_MAX, MACHINE_CPU_MAX,
    MACHINE_GPUS_MAX, MachineCapacity, MachineHealth, MachineSpec, MachineStatus, MemoryCapacity,
    StorageCapacity,
};
use crate::placement::labels;
use crate::probe::Probes;
use crate::replica::WireReplicaStatus;
use crate::time::Timestamp;
use crate::units::{Bytes, Cpu, cpu_number};
use crate::validate::{Cursor, Faults, INT64_MAX, read};
use crate::volume::VolumeTarget;

/// `POST /register`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct RegisterRequest {
    pub cluster_id: ClusterId,
    #[serde(flatten)]
    pub machine: MachineSpec,
}

impl RegisterRequest {
    /// # Errors
    /// With every fault of the input.
    pub fn read(value: &Value) -> Result<Self, Faults> {
        read(value, |cursor| {
            cursor.object()?;
            let cluster_id = cursor.member("clusterId").parse("a cluster id", ClusterId::new);
            let machine = machine_spec(cursor);
            Some(Self {
                cluster_id: cluster_id?,
                machine: machine?,
            })
        })
    }
}

fn machine_spec(cursor: &Cursor<'_>) -> Option<MachineSpec> {
    let machine_id = cursor.member("machineId").parse("a machine id", MachineId::new);
    let capacity_group = cursor
        .member("capacityGroup")
        .parse("a capacity group id", GroupId::new);
    let zone = cursor.member("zone").parse("a zone", Zone::new);
    let vpc_ip = cursor.member("vpcIp").parse("an IP address", |text| {
        text.parse::<IpAddr>()
            .map_err(|_| format!("{text:?} is not an IP address; write for example 10.0.1.7"))
    });
    let wireguard_public_key = cursor
        .member("wireguardPublicKey")
        .matching("a base64 text", pattern::is_base64);
    let wireguard_endpoint = cursor.member("wireguardEndpoint").matching(
        "an IPv4 address and port, for example 10.0.1.7:51820",
        pattern::is_endpoint,
    );
    let capacity = capacity(&cursor.member("capacity"));
    let boot_id = cursor
        .member("bootId")
        .optional(|boot_id| boot_id.text_sized(1..=64));
    let labels = cursor.member("labels").or(BTreeSet::new(), labels);
    Some(MachineSpec {
        machine_id: machine_id?,
        capacity_group: capacity_group?,
        zone: zone?,
        vpc_ip: vpc_ip?,
        wireguard_public_key: wireguard_public_key?,
        wireguard_endpoint: wireguard_endpoint?,
        capacity: capacity?,
        boot_id: boot_id?.map(str::to_owned),
        labels: labels?,
    })
}

fn capacity(cursor: &Cursor<'_>) -> Option<MachineCapacity> {
    cursor.object()?;
    let cpu = cursor.member("cpu");
    let cpu_total = cpu_amount(&cpu.member("total"));
    let mut cpu_reserve = cpu.member("systemReserve").or(Cpu::ZERO, cpu_amount);
    let memory = cursor.member("memory");
    let memory_total = bytes_amount(&memory.member("total"));
    let mut memory_reserve = memory.member("systemReserve").or(Bytes::ZERO, bytes_amount);
    let storage = bytes_amount(&cursor.member("ephemeralStorage").member("total"));
    let gpu = cursor.member("gpu").optional(|gpu| {
        gpu.object()?;
        let total = gpu.member("total").count(0..=MACHINE_GPUS_MAX);
        let kind = gpu.member("type").matching(pattern::GPU_WANTED, pattern::is_gpu);
        Some(GpuCapacity {
            total: total?,
            kind: kind?,
        })
    });
    if let (Some(total), Some(reserve)) = (cpu_total, cpu_reserve)
        && reserve > total
    {
        cpu.member("systemReserve").fault(format!(
            "{reserve} is more than the machine has; write at most {total}"
        ));
        cpu_reserve = None;
    }
    if let (Some(total), Some(reserve)) = (memory_total, memory_reserve)
        && reserve > total
    {
        let problem = format!(
            "{} is more than the machine has; write at most {}",
            reserve.get(),
            total.get()
        );
        memory_reserve = memory.member("systemReserve").refuse(problem);
    }
    Some(MachineCapacity {
        cpu: CpuCapacity {
            total: cpu_total?,
            system_reserve: cpu_reserve?,
        },
        memory: MemoryCapacity {
            total: memory_total?,
            system_reserve: memory_reserve?,
        },
        ephemeral_storage: StorageCapacity { total: storage? },
        gpu: gpu?,
    })
}

/// vCPU of a machine as a JSON number.
pub(crate) fn cpu_amount(cursor: &Cursor<'_>) -> Option<Cpu> {
    let wanted = format!("a number of vCPU from 0 to {MACHINE_CPU_MAX}");
    cursor.number(&wanted, |vcpu| (0.0..=1e9).contains(&vcpu))?;
    match Cpu::from_number(cursor.raw()?.as_number()?) {
        Ok(cpu) if cpu > MACHINE_CPU_MAX => cursor.refuse(format!("{cpu} is out of range; write {wanted}")),
        Ok(cpu) => Some(cpu),
        Err(error) => cursor.refuse(error.to_string()),
    }
}

/// Bytes of a machine as a JSON integer.
pub(crate) fn bytes_amount(cursor: &Cursor<'_>) -> Option<Bytes> {
    let bytes = cursor.integer(0..=u64::MAX).map(Bytes::new)?;
    if bytes > MACHINE_BYTES_MAX {
        let (bytes, most) = (bytes.get(), MACHINE_BYTES_MAX.get());
        return cursor.refuse(format!(
            "{bytes} is out of range; write a whole number from 0 to {most}, which are 4 PiB"
        ));
    }
    Some(bytes)
}

/// Reply to [`RegisterRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct RegisterReply {
    pub assigned_network: AssignedNetwork,
}

/// What a node that speaks the plain API says of one replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ReplicaMetrics {
    pub status: WireReplicaStatus,
    /// Cores.
    pub cpu_usage: f64,
    /// 0 to 100 of the allocation.
    pub cpu_usage_percent: f64,
    pub memory_used_bytes: u64,
    /// 0 to 100 of the allocation.
    pub memory_usage_percent: f64,
    pub healthy: bool,
    pub last_updated: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpMetrics>,
}

/// HTTP traffic of one replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct HttpMetrics {
    pub in_flight_requests: u64,
    pub total_requests: u64,
    pub latency_p95_ms: f64,
    pub latency_p99_ms: f64,
    #[serde(rename = "status2xx")]
    pub status_2xx: u64,
    #[serde(rename = "status4xx")]
    pub status_4xx: u64,
    #[serde(rename = "status5xx")]
    pub status_5xx: u64,
    /// At most ten.
    pub top_endpoints: Vec<EndpointMetrics>,
}

/// Traffic of one route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct EndpointMetrics {
    pub path: String,
    pub method: String,
    /// `2xx`, `4xx`, `5xx` or `other`.
    pub status_class: String,
    pub requests: u64,
    pub latency_p95_ms: f64,
    pub latency_p99_ms: f64,
    /// 0 to 1.
    pub error_rate: f64,
}

/// `POST /heartbeat`, and each item of a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct HeartbeatRequest {
    pub cluster_id: ClusterId,
    pub machine_id: MachineId,
    pub status: MachineStatus,
    #[serde(default)]
    pub replicas: BTreeMap<ReplicaId, ReplicaMetrics>,
}

impl HeartbeatRequest {
    /// # Errors
    /// With every fault of the input.
    pub fn read(value: &Value) -> Result<Self, Faults> {
        read(value, heartbeat)
    }
}

/// Heartbeats of one batch at most.
pub const BATCH_MAX: usize = 500;

/// Reads `POST /batch/heartbeat`.
///
/// # Errors
/// With every fault of every heartbeat.
pub fn read_batch(value: &Value) -> Result<Vec<HeartbeatRequest>, Faults> {
    read(value, |cursor| {
        cursor.object()?;
        let heartbeats = cursor.member("heartbeats");
        let count = heartbeats.elements()?.len();
        if !(1..=BATCH_MAX).contains(&count) {
            return heartbeats.refuse(format!("has {count} entries; write 1 to {BATCH_MAX}"));
        }
        heartbeats.list(heartbeat)
    })
}

const MACHINE_STATUS: [(&str, MachineStatus); 4] = [
    ("initializing", MachineStatus::Initializing),
    ("running", MachineStatus::Running),
    ("unhealthy", MachineStatus::Unhealthy),
    ("draining", MachineStatus::Draining),
];

const REPLICA_STATUS: [(&str, WireReplicaStatus); 5] = [
    ("pending", WireReplicaStatus::Pending),
    ("running", WireReplicaStatus::Running),
    ("stopping", WireReplicaStatus::Stopping),
    ("stopped", WireReplicaStatus::Stopped),
    ("failed", WireReplicaStatus::Failed),
];

fn heartbeat(cursor: &Cursor<'_>) -> Option<HeartbeatRequest> {
    cursor.object()?;
    let cluster_id = cursor.member("clusterId").parse("a cluster id", ClusterId::new);
    let machine_id = cursor.member("machineId").parse("a machine id", MachineId::new);
    let status = cursor.member("status").word(&MACHINE_STATUS);
    let replicas = cursor.member("replicas").or(BTreeMap::new(), |replicas| {
        let read: Vec<Option<(ReplicaId, ReplicaMetrics)>> = replicas
            .entries()?
            .iter()
            .map(|(id, metrics)| {
                let id = match ReplicaId::new(*id) {
                    Ok(id) => Some(id),
                    Err(error) => metrics.refuse(error.to_string()),
                };
                let metrics = replica_metrics(metrics);
                Some((id?, metrics?))
            })
            .collect();
        read.into_iter().collect()
    });
    Some(HeartbeatRequest {
        cluster_id: cluster_id?,
        machine_id: machine_id?,
        status: status?,
        replicas: replicas?,
    })
}

fn at_least_zero(cursor: &Cursor<'_>) -> Option<f64> {
    cursor.number("a number of at least 0", |number| {
        number >= 0.0 && number.is_finite()
    })
}

/// 0 to 100; a client should clamp, and what it forgot is clamped here: a busy replica is no reason to lose a heartbeat.
fn percent(cursor: &Cursor<'_>) -> Option<f64> {
    at_least_zero(cursor).map(|percent| percent.min(100.0))
}

fn replica_metrics(cursor: &Cursor<'_>) -> Option<ReplicaMetrics> {
    cursor.object()?;
    let status = cursor.member("status").word(&REPLICA_STATUS);
    let cpu_usage = at_least_zero(&cursor.member("cpuUsage"));
    let cpu_usage_percent = percent(&cursor.member("cpuUsagePercent"));
    let memory_used_bytes = cursor.member("memoryUsedBytes").integer(0..=INT64_MAX);
    let memory_usage_percent = percent(&cursor.member("memoryUsagePercent"));
    let healthy = cursor.member("healthy").boolean();
    let last_updated = cursor
        .member("lastUpdated")
        .parse("an RFC 3339 time", str::parse::<Timestamp>);
    let http = cursor.member("http").optional(http_metrics);
    Some(ReplicaMetrics {
        status: status?,
        cpu_usage: cpu_usage?,
        cpu_usage_percent: cpu_usage_percent?,
        memory_used_bytes: memory_used_bytes?,
        memory_usage_percent: memory_usage_percent?,
        healthy: healthy?,
        last_updated: last_updated?,
        http: http?,
    })
}

fn http_metrics(cursor: &Cursor<'_>) -> Option<HttpMetrics> {
    cursor.object()?;
    let count = |name: &str| cursor.member(name).integer(0..=INT64_MAX);
    let in_flight_requests = count("inFlightRequests");
    let total_requests = count("totalRequests");
    let status_2xx = count("status2xx");
    let status_4xx = count("status4xx");
    let status_5xx = count("status5xx");
    let latency_p95_ms = at_least_zero(&cursor.member("latencyP95Ms"));
    let latency_p99_ms = at_least_zero(&cursor.member("latencyP99Ms"));
    let endpoints = cursor.member("topEndpoints");
    let top_endpoints = endpoints.list(endpoint_metrics);
    if top_endpoints.as_ref().is_some_and(|list| list.len() > 10) {
        return endpoints.refuse("has more than 10 entries; send the 10 busiest");
    }
    Some(HttpMetrics {
        in_flight_requests: in_flight_requests?,
        total_requests: total_requests?,
        latency_p95_ms: latency_p95_ms?,
        latency_p99_ms: latency_p99_ms?,
        status_2xx: status_2xx?,
        status_4xx: status_4xx?,
        status_5xx: status_5xx?,
        top_endpoints: top_endpoints?,
    })
}

fn endpoint_metrics(cursor: &Cursor<'_>) -> Option<EndpointMetrics> {
    cursor.object()?;
    let path = cursor.member("path").text();
    let method = cursor.member("method").text();
    let classes = [("2xx", "2xx"), ("4xx", "4xx"), ("5xx", "5xx"), ("other", "other")];
    let status_class = cursor.member("statusClass").word(&classes);
    let requests = cursor.member("requests").integer(0..=INT64_MAX);
    let latency_p95_ms = at_least_zero(&cursor.member("latencyP95Ms"));
    let latency_p99_ms = at_least_zero(&cursor.member("latencyP99Ms"));
    let error_rate = cursor
        .member("errorRate")
        .number("a share from 0 to 1", |rate| (0.0..=1.0).contains(&rate));
    Some(EndpointMetrics {
        path: path?.to_owned(),
        method: method?.to_owned(),
        status_class: status_class?.to_owned(),
        requests: requests?,
        latency_p95_ms: latency_p95_ms?,
        latency_p99_ms: latency_p99_ms?,
        error_rate: error_rate?,
    })
}

/// `POST /events`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct CreateEventRequest {
    pub cluster_id: ClusterId,
    pub event: Event,
}

impl CreateEventRequest {
    /// # Errors
    /// With every fault of the input.
    pub fn read(value: &Value) -> Result<Self, Faults> {
        read(value, |cursor| {
            cursor.object()?;
            let cluster_id = cursor.member("clusterId").parse("a cluster id", ClusterId::new);
            let event = event::event(&cursor.member("event"));
            Some(Self {
                cluster_id: cluster_id?,
                event: event?,
            })
        })
    }
}

/// One machine of [`ClusterState`]: what the others need for the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct MachineInfo {
    pub machine_id: MachineId,
    pub capacity_group: GroupId,
    pub zone: Zone,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub vpc_ip: IpAddr,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub container_cidr: ipnet::Ipv4Net,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub container_gateway: Ipv4Addr,
    pub wireguard_public_key: String,
    pub wireguard_endpoint: String,
}

impl MachineInfo {
    #[must_use]
    pub fn new(machine: &MachineSpec, network: &AssignedNetwork) -> Self {
        Self {
            machine_id: machine.machine_id.clone(),
            capacity_group: machine.capacity_group.clone(),
            zone: machine.zone.clone(),
            vpc_ip: machine.vpc_ip,
            container_cidr: network.cidr,
            container_gateway: network.gateway,
            wireguard_public_key: machine.wireguard_public_key.clone(),
            wireguard_endpoint: machine.wireguard_endpoint.clone(),
        }
    }
}

/// Every machine of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClusterState {
    pub platform: Platform,
    pub machines: Vec<MachineInfo>,
}

/// An assignment as the wire API says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ReplicaAssignment {
    pub replica_id: ReplicaId,
    pub container_name: ContainerName,
    pub machine_id: MachineId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordinal: Option<u32>,
    /// What the machine must grant: `desired`, or less while the replica is squeezed.
    pub cpu: String,
    pub memory: String,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ip: IpAddr,
    pub ports: Vec<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer_target: Option<LoadBalancerTarget>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeTarget>,
    pub image: String,
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Instead of a health check. Berth's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<Probes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ServiceAccountTarget>,
    pub status: WireReplicaStatus,
    /// The GPUs that are its own, wholly or in part, by rising number. Berth's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu_devices: Vec<GpuDevice>,
}

impl ReplicaAssignment {
    #[must_use]
    pub fn new(machine_id: &MachineId, assignment: &Assignment, status: WireReplicaStatus) -> Self {
        Self {
            replica_id: assignment.replica_id.clone(),
            container_name: assignment.container.clone(),
            machine_id: machine_id.clone(),
            ordinal: assignment.ordinal,
            cpu: assignment.caps().cpu.to_string(),
            memory: assignment.caps().memory.to_string(),
            ip: assignment.ip,
            ports: assignment.ports.clone(),
            host_port: assignment.host_port,
            load_balancer_target: assignment.load_balancer_target.clone(),
            volume: assignment.volume.as_ref().map(|mount| mount.volume.clone()),
            image: assignment.image.clone(),
            env: assignment.env.clone(),
            health_check: assignment.health_check.clone(),
            probes: assignment.probes.clone(),
            command: assignment.command.clone(),
            service_account: assignment.service_account.clone(),
            status,
            gpu_devices: assignment.gpu_devices.clone(),
        }
    }
}

/// Reply to [`HeartbeatRequest`]: the full desired set of the machine, not a change of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct HeartbeatReply {
    pub cluster_state: ClusterState,
    pub assignments: Vec<ReplicaAssignment>,
    /// Berth's addition: replicas confirmed to stop, and where the set stands in the sequence of sets.
    #[serde(default)]
    pub stops: Vec<ReplicaId>,
    #[serde(default)]
    pub epoch: u64,
    #[serde(default)]
    pub generation: u64,
}

/// vCPU of a machine. Numbers, as the wire declares them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct CpuSummary {
    #[serde(with = "cpu_number")]
    #[cfg_attr(feature = "openapi", schema(value_type = f64, minimum = 0))]
    pub total: Cpu,
    #[serde(with = "cpu_number")]
    #[cfg_attr(feature = "openapi", schema(value_type = f64, minimum = 0))]
    pub system_reserve: Cpu,
    #[serde(with = "cpu_number")]
    #[cfg_attr(feature = "openapi", schema(value_type = f64, minimum = 0))]
    pub allocated: Cpu,
}

/// Memory or storage of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct BytesSummary {
    pub total: Bytes,
    pub system_reserve: Bytes,
    pub allocated: Bytes,
}

/// One machine of `GET /clusters/{c}/machines`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct MachineSummary {
    pub machine_id: MachineId,
    pub capacity_group: GroupId,
    pub zone: Zone,
    pub status: MachineStatus,
    pub cpu: CpuSummary,
    pub memory: BytesSummary,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuCapacity>,
    pub replica_count: u64,
    pub last_heartbeat: Timestamp,
    /// Berth's additions from here on.
    ///
    /// What replicas hold of its GPUs, by rising number; of those that do not say which, the lowest that may be theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu_devices: Vec<GpuDevice>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral_storage: Option<BytesSummary>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub vpc_ip: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub container_cidr: Option<ipnet::Ipv4Net>,
    /// Its own and those of its group.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub labels: BTreeSet<Label>,
    #[serde(default)]
    pub health: MachineHealth,
}

/// `GET /clusters/{c}/machines`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ListMachinesReply {
    pub machines: Vec<MachineSummary>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn register(capacity: &Value) -> Result<RegisterRequest, Faults> {
        RegisterRequest::read(&json!({
            "clusterId": "acme/prod", "machineId": "m1", "capacityGroup": "general", "zone": "a", "vpcIp": "10.0.0.1",
            "wireguardPublicKey": "a2V5", "wireguardEndpoint": "10.0.0.1:51820", "capacity": capacity}))
    }

    #[test]
    fn every_absurdity_of_a_machine_is_listed() {
        let faults = register(&json!({
            "cpu": {"total": 4_294.967_296, "systemReserve": -1},
            "memory": {"total": (1u64 << 52) + 1, "systemReserve": 1},
            "ephemeralStorage": {"total": u64::MAX},
            "gpu": {"type": "nvidia-t4", "total": 9}}))
        .unwrap_err();
        let paths: Vec<&str> = faults.list().iter().map(|fault| fault.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "capacity.cpu.total",
                "capacity.cpu.systemReserve",
                "capacity.memory.total",
                "capacity.ephemeralStorage.total",
                "capacity.gpu.total",
            ],
            "{faults}"
        );
    }

    #[test]
    fn reserves_above_their_totals_are_both_named() {
        let faults = register(&json!({
            "cpu": {"total": 1, "systemReserve": 1.5},
            "memory": {"total": 10, "systemReserve": 11},
            "ephemeralStorage": {"total": 0}}))
        .unwrap_err();
        assert_eq!(
            faults.to_string(),
            "capacity.cpu.systemReserve: 1.5 is more than the machine has; write at most 1\n\
             capacity.memory.systemReserve: 11 is more than the machine has; write at most 10"
        );
    }

    #[test]
    fn the_largest_machine_is_accepted() {
        let largest = register(&json!({
            "cpu": {"total": 4_294.967_295, "systemReserve": 4_294.967_295},
            "memory": {"total": 1u64 << 52}, "ephemeralStorage": {"total": 1u64 << 52},
            "gpu": {"type": "nvidia-t4", "total": 8}}))
        .unwrap();
        assert_eq!(largest.machine.capacity.cpu.total, MACHINE_CPU_MAX);
        assert_eq!(largest.machine.capacity.memory.total, MACHINE_BYTES_MAX);
    }
}
