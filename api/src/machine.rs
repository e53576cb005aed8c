//! A machine: one VM, what it has, where it is reached and how it is doing.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::cluster::Gpu;
use crate::id::{GroupId, Label, MachineId, Zone};
use crate::time::Timestamp;
use crate::units::{Bytes, Cpu, cpu_number};

/// The most processor time that a machine may report or a profile may name: 2^32 - 1 millionths of a vCPU. No machine has
/// a tenth of it, and placement counts it in 32 bits.
pub const MACHINE_CPU_MAX: Cpu = Cpu::from_micros(4_294_967_295);
/// The most memory or storage that a machine may report or a profile may name: 4 PiB, which no machine has; sums of it stay
/// far inside of 64 bits.
pub const MACHINE_BYTES_MAX: Bytes = Bytes::gib(4 << 20);
/// The most GPUs that a machine may report: as many as a profile or a replica may name.
pub const MACHINE_GPUS_MAX: u32 = 8;
/// Thousandths of one GPU.
pub const GPU_MILLI: u16 = 1000;

/// What a replica holds of one GPU of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GpuDevice {
    /// Number among the machine's devices, from 0.
    #[cfg_attr(feature = "openapi", schema(maximum = 7))]
    pub index: u8,
    /// Thousandths of it; 1000 is all.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 1000))]
    pub milli: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct CpuCapacity {
    #[serde(with = "cpu_number")]
    #[cfg_attr(feature = "openapi", schema(value_type = f64, minimum = 0, maximum = 4294.967295))]
    pub total: Cpu,
    #[serde(default, with = "cpu_number")]
    #[cfg_attr(feature = "openapi", schema(value_type = f64, minimum = 0))]
    pub system_reserve: Cpu,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct MemoryCapacity {
    pub total: Bytes,
    #[serde(default)]
    pub system_reserve: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StorageCapacity {
    pub total: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GpuCapacity {
    pub total: u32,
    #[serde(rename = "type")]
    pub kind: String,
}

impl From<&Gpu> for GpuCapacity {
    fn from(gpu: &Gpu) -> Self {
        Self {
            total: gpu.count,
            kind: gpu.kind.clone(),
        }
    }
}

/// What a machine reports at registration. Invariant, checked at the edge: a reserve is not above its total.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct MachineCapacity {
    pub cpu: CpuCapacity,
    pub memory: MemoryCapacity,
    pub ephemeral_storage: StorageCapacity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuCapacity>,
}

/// A registered machine: the wire's `RegisterRequest` validated, and the subnet it was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct MachineSpec {
    pub machine_id: MachineId,
    pub capacity_group: GroupId,
    pub zone: Zone,
    /// Address on the underlay.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub vpc_ip: IpAddr,
    pub wireguard_public_key: String,
    #[cfg_attr(
        feature = "openapi",
        schema(pattern = r"^\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}:\d{1,5}$")
    )]
    pub wireguard_endpoint: String,
    pub capacity: MachineCapacity,
    /// Kernel boot id; absent for a machine that speaks the plain wire API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Berth's addition: what containers may require, prefer or forbid of it, beside the labels of its group.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[cfg_attr(feature = "openapi", schema(max_items = 32))]
    pub labels: BTreeSet<Label>,
}

/// A machine's subnet; its gateway is the first address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct AssignedNetwork {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub cidr: Ipv4Net,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub gateway: std::net::Ipv4Addr,
}

impl AssignedNetwork {
    /// The network of a subnet, its gateway being the first address after the network's.
    #[must_use]
    pub fn of(cidr: Ipv4Net) -> Self {
        Self {
            cidr,
            gateway: (u32::from(cidr.network()) + 1).into(),
        }
    }
}

/// The wire's status of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum MachineStatus {
    /// Registered; no heartbeat yet.
    Initializing,
    Running,
    /// No heartbeat for longer than the limit of `liveness`.
    Unhealthy,
    /// Takes no new replica; the ones it has move away.
    Draining,
}

impl fmt::Display for MachineStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Initializing => "initializing",
            Self::Running => "running",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
        })
    }
}

/// State of one part of the node daemon, for engineers on call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Subsystem {
    /// `runtime`, `network`, `dns`, `keeper`, `storage`, `link`.
    pub name: String,
    pub ok: bool,
    /// Why it is not ok; empty when it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    pub since: Timestamp,
}

/// What a node says of itself beside its replicas.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct MachineHealth {
    pub subsystems: Vec<Subsystem>,
}
