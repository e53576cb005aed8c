//! A container as its user declares it: the validated form of the wire's `CreateContainerRequest`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::id::{ContainerName, GroupId};
use crate::machine::GPU_MILLI;
use crate::placement::PlacementRules;
use crate::probe::Probes;
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
    pub gpu: Option<GpuRequest>,
}

/// The GPUs that a replica needs: whole devices, or a share of one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GpuRequest {
    /// Type of the device, for example `nvidia-t4`.
    #[serde(rename = "type")]
    #[cfg_attr(feature = "openapi", schema(pattern = "^[a-z0-9-]+$"))]
    pub kind: String,
    /// Devices, 1 to 8; 1 beside a share.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 8))]
    pub count: u32,
    /// Part of one device that is its own for placement; others may use the rest. Berth's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>, minimum = 0.001, maximum = 0.999))]
    pub share: Option<GpuShare>,
}

/// Part of one GPU: 0.001 to 0.999 of it, in thousandths. Written as a JSON number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GpuShare(u16);

impl GpuShare {
    /// None unless it is from 1 to 999 thousandths.
    #[must_use]
    pub fn from_milli(milli: u16) -> Option<Self> {
        (1..GPU_MILLI).contains(&milli).then_some(Self(milli))
    }

    /// Thousandths of a device.
    #[must_use]
    pub fn milli(self) -> u16 {
        self.0
    }

    /// From a number with at most three decimals, exactly; none for any other.
    #[must_use]
    pub fn from_number(number: &serde_json::Number) -> Option<Self> {
        // A decimal is exact as millionths; no float is compared.
        let micros = Cpu::from_number(number).ok()?.micros();
        let milli = micros.is_multiple_of(1000).then_some(micros / 1000)?;
        Self::from_milli(u16::try_from(milli).ok()?)
    }
}

impl fmt::Display for GpuShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Cpu::from_micros(u64::from(self.0) * 1000).fmt(f)
    }
}

impl Serialize for GpuShare {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / f64::from(GPU_MILLI))
    }
}

impl<'de> Deserialize<'de> for GpuShare {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = serde_json::Number::deserialize(deserializer)?;
        let wrong = || de::Error::custom(format!("{number} is no share of a GPU"));
        Self::from_number(&number).ok_or_else(wrong)
    }
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

/// What a probe does. Berth's own but for HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ProbeKind {
    /// A request that has to be answered by 2xx.
    #[default]
    Http,
    /// A connection that has to be accepted.
    Tcp,
    /// A program in the replica that has to end with 0.
    Exec,
}

impl ProbeKind {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
    fn is_http(&self) -> bool {
        *self == Self::Http
    }
}

/// The wire's health check, its defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    #[serde(default, skip_serializing_if = "ProbeKind::is_http")]
    pub kind: ProbeKind,
    /// What [`ProbeKind::Exec`] runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Of [`ProbeKind::Http`].
    pub path: String,
    /// Of all but [`ProbeKind::Exec`].
    pub port: u16,
    /// Of [`ProbeKind::Http`].
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
    /// Invariant: none beside a health check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<Probes>,
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
    /// How long a stop waits for connections to end, before SIGTERM; absent: [`DRAIN_CAP`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<u32>,
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
/// At most so long does a stop wait for connections to end, where the container says nothing. Idle ones of peers that keep theirs open
/// must not hold a rollout up for long.
pub const DRAIN_CAP: Duration = Duration::from_secs(5);
/// An hour: what must not be cut for longer is no connection of a service.
pub const DRAIN_SECONDS_MAX: u32 = 3600;
/// From SIGTERM to SIGKILL.
pub const STOP_GRACE: Duration = Duration::from_secs(10);
/// Berth forwards these ports of a machine to replicas.
pub const HOST_PORTS: std::ops::RangeInclusive<u16> = 8001..=8999;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_share_of_a_gpu_is_written_and_read_alike() {
        for milli in 1..GPU_MILLI {
            let share = GpuShare::from_milli(milli).expect("a share");
            let text = serde_json::to_string(&share).expect("a number");
            assert_eq!(
                serde_json::from_str::<GpuShare>(&text).expect("a share"),
                share,
                "{text}"
            );
            assert_eq!(text, share.to_string());
        }
        for wrong in ["0", "1", "1.0", "-0.5", "0.0005", "0.1234", "\"0.5\""] {
            assert!(serde_json::from_str::<GpuShare>(wrong).is_err(), "{wrong}");
        }
        for (same, milli) in [("0.50", 500), ("1e-3", 1), ("0.9990", 999)] {
            assert_eq!(
                serde_json::from_str::<GpuShare>(same).ok(),
                GpuShare::from_milli(milli),
                "{same}"
            );
        }
    }
}
