//! A container as its user declares it: the validated form of the wire's `CreateContainerRequest`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::Gpu;
use crate::id::{ContainerName, GroupId};
use crate::placement::PlacementRules;
use crate::units::{Bytes, Cpu, bytes_text, optional_bytes_text};
use crate::volume::{OrdinalVolume, SharedMount};

/// `min` is protected, `desired` is what placement packs with and what the cgroup caps at, unless the replica is squeezed
/// ([`Granted`]). Invariant: min <= desired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CpuRange {
    pub min: Cpu,
    pub desired: Cpu,
}

/// As [`CpuRange`], for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MemoryRange {
    #[serde(with = "bytes_text")]
    #[cfg_attr(feature = "openapi", schema(value_type = crate::units::SizeText))]
    pub min: Bytes,
    #[serde(with = "bytes_text")]
    #[cfg_attr(feature = "openapi", schema(value_type = crate::units::SizeText))]
    pub desired: Bytes,
}

/// What a replica may use of vCPU and memory: all that its declaration desires, or less, where it is squeezed.
/// Invariant: from `min` to `desired` of its declaration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Granted {
    pub cpu: Cpu,
    #[serde(with = "bytes_text")]
    pub memory: Bytes,
}

/// What one replica needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    pub cpu: CpuRange,
    pub memory: MemoryRange,
    #[serde(
        default,
        with = "optional_bytes_text",
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::units::SizeText>))]
    pub ephemeral_storage: Option<Bytes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
}

impl Resources {
    /// All that a replica may use when there is room for it.
    #[must_use]
    pub fn desired(&self) -> Granted {
        Granted {
            cpu: self.cpu.desired,
            memory: self.memory.desired,
        }
    }

    /// Without this much a replica does not run at all.
    #[must_use]
    pub fn min(&self) -> Granted {
        Granted {
            cpu: self.cpu.min,
            memory: self.memory.min,
        }
    }
}

/// How many of a container's replicas may be out of service on account of a drain or of room made for a rollout. Berth's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct DisruptionBudget {
    /// Those that are out for other reasons count. 0: none is ever taken away so.
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 10_000))]
    pub max_unavailable: u32,
}

impl Default for DisruptionBudget {
    /// What holds for a container that declares none.
    fn default() -> Self {
        Self { max_unavailable: 1 }
    }
}

/// When a failing rollout of a container goes back by itself. Berth's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct RollbackPolicy {
    /// Failed starts of its replicas, none having come up. 0: never.
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 1_000))]
    pub after_failed_starts: u32,
}

/// Bounds and targets of automatic scaling. Invariant: 1 <= min <= desired <= max.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Autoscaling {
    pub min: u32,
    /// The initial count.
    pub desired: u32,
    pub max: u32,
    /// 1 to 100; the wire says number, so a fraction is kept.
    #[serde(default = "default_target_cpu_percent")]
    pub target_cpu_percent: f64,
    #[serde(default = "default_target_memory_percent")]
    pub target_memory_percent: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_http_in_flight_per_replica: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_http_p95_latency_ms: Option<f64>,
}

pub(crate) fn default_target_cpu_percent() -> f64 {
    70.0
}

pub(crate) fn default_target_memory_percent() -> f64 {
    80.0
}

/// How many replicas are wanted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Scale {
    Replicas(u32),
    Autoscaling(Autoscaling),
}

impl Scale {
    /// The count before any scaling decision.
    #[must_use]
    pub fn initial(&self) -> u32 {
        match self {
            Self::Replicas(count) => *count,
            Self::Autoscaling(autoscaling) => autoscaling.desired,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "UPPERCASE")]
pub enum ProbeMethod {
    Get,
    Post,
    Head,
}

impl ProbeMethod {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Head => "HEAD",
        }
    }
}

/// The wire's HTTP health check, its defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    pub path: String,
    pub port: u16,
    pub method: ProbeMethod,
    /// 1 to 5.
    pub timeout_seconds: u32,
    /// 1 to 10.
    pub failure_threshold: u32,
}

impl HealthCheck {
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.into())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum LoadBalancerTarget {
    Aws {
        #[cfg_attr(
            feature = "openapi",
            schema(pattern = r"^arn:aws[a-z0-9-]*:elasticloadbalancing:[a-z0-9-]+:\d{12}:targetgroup/.+")
        )]
        target_group_arn: String,
    },
    Gcp {
        #[cfg_attr(feature = "openapi", schema(pattern = r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"))]
        neg_name: String,
    },
    Azure {
        #[cfg_attr(feature = "openapi", schema(pattern = r"^[-\w._()]{1,90}$"))]
        resource_group: String,
        #[cfg_attr(
            feature = "openapi",
            schema(pattern = r"^[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,78}[a-zA-Z0-9])?$")
        )]
        load_balancer_name: String,
        #[cfg_attr(
            feature = "openapi",
            schema(pattern = r"^[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,78}[a-zA-Z0-9])?$")
        )]
        backend_pool_name: String,
        #[cfg_attr(
            feature = "openapi",
            schema(
                pattern = r"^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.Network/virtualNetworks/[^/]+$"
            )
        )]
        virtual_network_id: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum ServiceAccountTarget {
    Aws {
        #[cfg_attr(
            feature = "openapi",
            schema(pattern = r"^arn:aws[a-z0-9-]*:iam::\d{12}:role/.+")
        )]
        role_arn: String,
    },
    Gcp {
        #[cfg_attr(feature = "openapi", schema(format = "email"))]
        email: String,
    },
    Azure {
        #[cfg_attr(feature = "openapi", schema(format = "uuid"))]
        client_id: String,
    },
}

/// A declared container. Built by [`crate::rest`] from a request, by [`crate::stack`] from a stack; both validate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerSpec {
    pub name: ContainerName,
    pub capacity_group: GroupId,
    pub image: String,
    pub resources: Resources,
    pub scale: Scale,
    pub stateful: bool,
    /// At least one; the first is the default of health check and host port.
    pub ports: Vec<u16>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<OrdinalVolume>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer_target: Option<LoadBalancerTarget>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ServiceAccountTarget>,
    /// Berth's optional members.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_mounts: Vec<SharedMount>,
    /// Names of the containers and resources this one may use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disruption_budget: Option<DisruptionBudget>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementRules>,
    pub rollback: Option<RollbackPolicy>,
}

impl ContainerSpec {
    /// Whether each replica has a machine to itself.
    #[must_use]
    pub fn is_exclusive(&self) -> bool {
        self.placement.as_ref().is_some_and(|rules| rules.exclusive)
    }

    #[must_use]
    pub fn volume(&self, ordinal: u32) -> Option<&OrdinalVolume> {
        self.volumes.iter().find(|volume| volume.ordinal == ordinal)
    }
}

/// At most this many replicas of one container: a typing error must not become a million replicas.
pub const REPLICAS_MAX: u32 = 10_000;
/// At most so many failed starts before a rollback: more than a day of one replica's attempts.
pub const FAILED_STARTS_MAX: u32 = 1_000;
/// The environment variable that tells a stateful replica its ordinal.
pub const ORDINAL_VARIABLE: &str = "ALIEN_ORDINAL";
/// From SIGTERM to SIGKILL.
pub const STOP_GRACE: Duration = Duration::from_secs(10);
/// Berth forwards these ports of a machine to replicas.
pub const HOST_PORTS: std::ops::RangeInclusive<u16> = 8001..=8999;
