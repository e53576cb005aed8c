//! A cluster: one customer environment, its capacity groups and their machine profile.

use std::collections::BTreeSet;
use std::fmt;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, GroupId, Label};
use crate::units::{Bytes, Cpu, cpu_number};

/// Where a cluster's machines run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    Aws,
    Gcp,
    Azure,
    Local,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aws => "aws",
            Self::Gcp => "gcp",
            Self::Azure => "azure",
            Self::Local => "local",
        })
    }
}

/// GPUs of a machine profile, or wanted by a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Gpu {
    /// Type of the device, for example `nvidia-t4`.
    #[serde(rename = "type")]
    #[cfg_attr(feature = "openapi", schema(pattern = "^[a-z0-9-]+$"))]
    pub kind: String,
    /// Whole devices, 1 to 8.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 8))]
    pub count: u32,
}

/// Hardware totals of every machine of a group; the scheduler subtracts reserves itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct MachineProfile {
    #[serde(with = "cpu_number")]
    #[cfg_attr(feature = "openapi", schema(value_type = f64, exclusive_minimum = 0, maximum = 4294.967295))]
    pub cpu: Cpu,
    #[cfg_attr(feature = "openapi", schema(value_type = i64, minimum = 134_217_728, maximum = 4503599627370496.0))]
    pub memory_bytes: Bytes,
    #[cfg_attr(feature = "openapi", schema(value_type = i64, minimum = 1, maximum = 4503599627370496.0))]
    pub ephemeral_storage_bytes: Bytes,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
}

/// The smallest memory a machine profile may have: 128 MiB.
pub const PROFILE_MEMORY_MIN: Bytes = Bytes::mib(128);

/// A set of identical machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct CapacityGroup {
    pub group_id: GroupId,
    pub profile: MachineProfile,
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 2_147_483_647))]
    pub min_size: u32,
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 2_147_483_647))]
    pub max_size: u32,
    /// Berth's addition: what all its machines have, those to come included.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[cfg_attr(feature = "openapi", schema(max_items = 32))]
    pub labels: BTreeSet<Label>,
}

/// At most this many capacity groups a cluster.
pub const GROUPS_MAX: usize = 10;

/// What a cluster is created with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ClusterSpec {
    pub cluster_id: ClusterId,
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 255))]
    pub name: String,
    /// Cut into one [`MACHINE_PREFIX_LEN`] subnet per machine.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub container_cidr: Ipv4Net,
    pub platform: Platform,
    #[cfg_attr(feature = "openapi", schema(max_items = 10))]
    pub capacity_groups: Vec<CapacityGroup>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment_group_id: Option<String>,
}

/// Prefix length of a machine's own subnet: a /24 gives it 253 replicas (network, gateway and broadcast are taken).
pub const MACHINE_PREFIX_LEN: u8 = 24;

impl ClusterSpec {
    #[must_use]
    pub fn group(&self, id: &GroupId) -> Option<&CapacityGroup> {
        self.capacity_groups.iter().find(|group| group.group_id == *id)
    }

    /// How many machine subnets the container CIDR holds.
    #[must_use]
    pub fn subnet_count(&self) -> u32 {
        let prefix_len = self.container_cidr.prefix_len();
        if prefix_len > MACHINE_PREFIX_LEN {
            0
        } else {
            1 << (MACHINE_PREFIX_LEN - prefix_len)
        }
    }

    /// The subnet of the machine with this index, when the CIDR holds that many.
    #[must_use]
    pub fn subnet(&self, index: u32) -> Option<Ipv4Net> {
        if index >= self.subnet_count() {
            return None;
        }
        let base = u32::from(self.container_cidr.network()) + (index << (32 - u32::from(MACHINE_PREFIX_LEN)));
        Ipv4Net::new(base.into(), MACHINE_PREFIX_LEN).ok()
    }
}
