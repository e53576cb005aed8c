//! Schemas of those requests that no type of this crate mirrors, because what they are read into differs: defaults are
//! filled in, exclusive members become one. For the API's description only; the readers beside decide.

use std::collections::BTreeMap;

use utoipa::ToSchema;

use super::node::HeartbeatRequest;
use crate::container::{
    DisruptionBudget, GpuRequest, LoadBalancerTarget, ProbeKind, ProbeMethod, RollbackPolicy,
    ServiceAccountTarget,
};
use crate::id::{ContainerName, GroupId};
use crate::placement::PlacementRules;
use crate::units::{Cpu, SizeText};
use crate::volume::{OrdinalVolume, SharedMount};

/// `min` is protected, `desired` is what placement packs with. min <= desired.
#[derive(Debug, ToSchema)]
pub struct CpuRequest {
    pub min: Cpu,
    pub desired: Cpu,
}

/// As [`CpuRequest`], for memory.
#[derive(Debug, ToSchema)]
pub struct MemoryRequest {
    pub min: SizeText,
    pub desired: SizeText,
}

/// What one replica needs.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct ResourcesRequest {
    pub cpu: CpuRequest,
    pub memory: MemoryRequest,
    pub ephemeral_storage: Option<SizeText>,
    pub gpu: Option<GpuRequest>,
}

/// Bounds and targets of automatic scaling. min <= desired <= max.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct AutoscalingRequest {
    #[schema(minimum = 1, maximum = 10_000)]
    pub min: u32,
    /// The initial count.
    #[schema(minimum = 1, maximum = 10_000)]
    pub desired: u32,
    #[schema(minimum = 1, maximum = 10_000)]
    pub max: u32,
    #[schema(minimum = 1, maximum = 100, default = 70)]
    pub target_cpu_percent: Option<f64>,
    #[schema(minimum = 1, maximum = 100, default = 80)]
    pub target_memory_percent: Option<f64>,
    #[schema(minimum = 1, maximum = 2_147_483_647)]
    pub target_http_in_flight_per_replica: Option<u32>,
    #[schema(exclusive_minimum = 0)]
    pub max_http_p95_latency_ms: Option<f64>,
}

/// A health check; without one a replica is healthy when it runs.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct HealthCheckRequest {
    /// Berth's own.
    #[schema(default = "http")]
    pub kind: Option<ProbeKind>,
    /// What a check of kind exec runs in the replica. Berth's own.
    pub command: Option<Vec<String>>,
    #[schema(pattern = r"^/[^\s\x00-\x1f\x7f-\x9f]*$", default = "/health")]
    pub path: Option<String>,
    /// The first port unless told.
    #[schema(minimum = 1, maximum = 65535)]
    pub port: Option<u16>,
    #[schema(default = "GET")]
    pub method: Option<ProbeMethod>,
    #[schema(minimum = 1, maximum = 5, default = 1)]
    pub timeout_seconds: Option<u32>,
    #[schema(minimum = 1, maximum = 10, default = 3)]
    pub failure_threshold: Option<u32>,
}

/// At least one of the three; excludes a health check.
#[derive(Debug, ToSchema)]
pub struct ProbesRequest {
    /// The other two wait until it has passed; the replica is restarted when it fails.
    pub startup: Option<ProbeRequest>,
    /// Decides who is found by name, by load balancers and on host ports; never restarts.
    pub readiness: Option<ProbeRequest>,
    /// The replica is restarted when it fails.
    pub liveness: Option<ProbeRequest>,
}

/// One probe.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct ProbeRequest {
    #[schema(default = "http")]
    pub kind: Option<ProbeKind>,
    /// What a probe of kind exec runs in the replica.
    pub command: Option<Vec<String>>,
    #[schema(pattern = r"^/[^\s\x00-\x1f\x7f-\x9f]*$", default = "/health")]
    pub path: Option<String>,
    /// The first port unless told.
    #[schema(minimum = 1, maximum = 65535)]
    pub port: Option<u16>,
    #[schema(default = "GET")]
    pub method: Option<ProbeMethod>,
    #[schema(minimum = 0, maximum = 3600, default = 0)]
    pub initial_delay_seconds: Option<u32>,
    /// 10 unless told, 1 of a startup probe.
    #[schema(minimum = 1, maximum = 3600)]
    pub period_seconds: Option<u32>,
    #[schema(minimum = 1, maximum = 60, default = 1)]
    pub timeout_seconds: Option<u32>,
    /// 1 but for readiness.
    #[schema(minimum = 1, maximum = 100, default = 1)]
    pub success_threshold: Option<u32>,
    /// 3 unless told, 30 of a startup probe.
    #[schema(minimum = 1, maximum = 1000)]
    pub failure_threshold: Option<u32>,
}

/// Body of `POST /clusters/{c}/containers`.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct CreateContainerRequest {
    pub name: ContainerName,
    /// A group of the cluster.
    pub capacity_group: GroupId,
    #[schema(min_length = 1, max_length = 1024, pattern = r"^[^\s\x00-\x1f\x7f-\x9f]+$")]
    pub image: String,
    pub resources: ResourcesRequest,
    /// Excludes `autoscaling`; without either there is one replica.
    #[schema(minimum = 1, maximum = 10_000)]
    pub replicas: Option<u32>,
    /// Only for stateless containers.
    pub autoscaling: Option<AutoscalingRequest>,
    pub stateful: bool,
    /// Each once.
    #[schema(min_items = 1)]
    pub ports: Vec<Port>,
    /// Only for stateful containers: one for each ordinal.
    pub volumes: Option<Vec<OrdinalVolume>>,
    pub env: Option<BTreeMap<String, String>>,
    pub command: Option<Vec<String>>,
    pub health_check: Option<HealthCheckRequest>,
    /// Berth's addition, instead of a health check.
    pub probes: Option<ProbesRequest>,
    /// Of the cluster's platform.
    pub load_balancer_target: Option<LoadBalancerTarget>,
    /// Of the cluster's platform.
    pub service_account: Option<ServiceAccountTarget>,
    /// Berth's addition, on platform `local`.
    pub shared_mounts: Option<Vec<SharedMount>>,
    /// Berth's addition: names of the containers and resources this one may use.
    pub links: Option<Vec<String>>,
    /// Berth's addition: how many replicas a drain may take away at a time.
    pub disruption_budget: Option<DisruptionBudget>,
    /// Berth's addition: which machines its replicas may run on, and whether each has one to itself.
    pub placement: Option<PlacementRules>,
    /// Berth's addition: when a failing rollout goes back by itself.
    pub rollback: Option<RollbackPolicy>,
    /// Berth's addition: how long a stop waits for connections to end, before SIGTERM.
    #[schema(minimum = 0, maximum = 3600, default = 5)]
    pub drain_seconds: Option<u32>,
}

/// A port of a replica.
#[derive(Debug, Clone, Copy)]
pub struct Port;

impl utoipa::PartialSchema for Port {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::Integer)
            .minimum(Some(1))
            .maximum(Some(65535))
            .into()
    }
}

impl ToSchema for Port {}

/// Body of `PATCH /clusters/{c}/containers/{n}`: what is absent stays as it is.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct UpdateContainerRequest {
    #[schema(min_length = 1, max_length = 1024, pattern = r"^[^\s\x00-\x1f\x7f-\x9f]+$")]
    pub image: Option<String>,
    pub resources: Option<ResourcesRequest>,
    /// Clears `autoscaling`.
    #[schema(minimum = 1, maximum = 10_000)]
    pub replicas: Option<u32>,
    /// Clears `replicas`.
    pub autoscaling: Option<AutoscalingRequest>,
    pub env: Option<BTreeMap<String, String>>,
    pub volumes: Option<Vec<OrdinalVolume>>,
    pub command: Option<Vec<String>>,
    /// Null removes it.
    pub service_account: Option<ServiceAccountTarget>,
    /// Berth's addition; null removes it.
    pub health_check: Option<HealthCheckRequest>,
    /// Berth's addition, instead of a health check; null removes it.
    pub probes: Option<ProbesRequest>,
    /// Berth's addition.
    pub shared_mounts: Option<Vec<SharedMount>>,
    /// Berth's addition.
    pub links: Option<Vec<String>>,
    /// Berth's addition; null removes it.
    pub disruption_budget: Option<DisruptionBudget>,
    /// Berth's addition: which machines its replicas may run on, and whether each has one to itself.
    pub placement: Option<PlacementRules>,
    /// Berth's addition; null removes it.
    pub rollback: Option<RollbackPolicy>,
    /// Berth's addition; null removes it.
    #[schema(minimum = 0, maximum = 3600)]
    pub drain_seconds: Option<u32>,
}

/// Body of `PATCH /clusters/{c}`.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct UpdateClusterRequest {
    /// The whole list.
    #[schema(max_items = 10)]
    pub capacity_groups: Vec<crate::cluster::CapacityGroup>,
}

/// Body of `POST /batch/heartbeat`.
#[derive(Debug, ToSchema)]
pub struct BatchHeartbeatRequest {
    #[schema(min_items = 1, max_items = 500)]
    pub heartbeats: Vec<HeartbeatRequest>,
}
