//! Disks bound to one ordinal of a stateful container, and where a replica sees them.

use serde::{Deserialize, Serialize};

use crate::id::Zone;

/// What is mounted: the wire's `VolumeTarget`, tagged by `type`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum VolumeTarget {
    Aws {
        #[cfg_attr(feature = "openapi", schema(pattern = r"^vol-[a-f0-9]+$"))]
        volume_id: String,
        zone: Zone,
    },
    Gcp {
        #[cfg_attr(feature = "openapi", schema(pattern = r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$"))]
        disk_name: String,
        zone: Zone,
    },
    Azure {
        #[cfg_attr(
            feature = "openapi",
            schema(
                pattern = r"^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.Compute/disks/[^/]+$"
            )
        )]
        disk_id: String,
        zone: Zone,
    },
    /// A directory that every machine of the cluster can reach.
    Hostpath { path: String },
}

impl VolumeTarget {
    /// The zone a disk binds its replica to; a host path binds to none.
    #[must_use]
    pub fn zone(&self) -> Option<&Zone> {
        match self {
            Self::Aws { zone, .. } | Self::Gcp { zone, .. } | Self::Azure { zone, .. } => Some(zone),
            Self::Hostpath { .. } => None,
        }
    }

    /// What identifies the disk at its provider: two targets with one identity are one disk.
    #[must_use]
    pub fn identity(&self) -> &str {
        match self {
            Self::Aws { volume_id, .. } => volume_id,
            Self::Gcp { disk_name, .. } => disk_name,
            Self::Azure { disk_id, .. } => disk_id,
            Self::Hostpath { path } => path,
        }
    }

    /// The wire's `volumeType`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Aws { .. } => "aws",
            Self::Gcp { .. } => "gcp",
            Self::Azure { .. } => "azure",
            Self::Hostpath { .. } => "hostpath",
        }
    }
}

/// One volume of a container's declaration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct OrdinalVolume {
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 9_999))]
    pub ordinal: u32,
    pub volume: VolumeTarget,
    /// Berth's optional member: where the replica sees it; [`DEFAULT_MOUNT_PATH`] when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_path: Option<String>,
}

impl OrdinalVolume {
    #[must_use]
    pub fn mount_path(&self) -> &str {
        self.mount_path.as_deref().unwrap_or(DEFAULT_MOUNT_PATH)
    }
}

/// Where a persistent volume is mounted unless declared otherwise.
pub const DEFAULT_MOUNT_PATH: &str = "/data";
/// Where the per-replica ephemeral file system is mounted.
pub const EPHEMERAL_MOUNT_PATH: &str = "/var/ephemeral";

/// Berth's optional member of a container: a shared directory of platform `local`, the form a linked storage
/// resource takes there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct SharedMount {
    /// Directory on the machine; absolute.
    pub source: String,
    /// Where the replica sees it; absolute.
    pub mount_path: String,
}
