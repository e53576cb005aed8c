//! Volumes of platform `local`: directories on storage that every machine can reach.

use std::path::PathBuf;

use berth_api::id::{ClusterId, ContainerName, MachineId};
use serde::{Deserialize, Serialize};

/// Whose volume a directory is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeOwner {
    pub cluster_id: ClusterId,
    pub container: ContainerName,
    pub ordinal: u32,
}

/// A directory that is ready to be mounted into a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostpathVolume {
    /// Canonical: no link is followed when it is used.
    pub path: PathBuf,
    pub created: Created,
    /// The machine whose claim of the same owner was taken over, when it was another one.
    pub taken_over_from: Option<MachineId>,
}

/// Whether a directory was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    Now,
    Before,
}

/// What is wrong with a hostpath.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("{0}")]
    Pending(&'static str),
}

/// The hostpath volumes of this machine.
#[derive(Debug)]
pub struct HostpathVolumes {
    machine_id: MachineId,
    root: Option<PathBuf>,
}

impl HostpathVolumes {
    /// `root`: the only directory under which volumes and shared mounts may lie.
    #[must_use]
    pub fn new(machine_id: MachineId, root: Option<PathBuf>) -> Self {
        Self { machine_id, root }
    }

    /// Makes the directory if it is missing and claims it for `owner`. Idempotent. Blocking: it may hang with the storage.
    ///
    /// # Errors
    /// When the path is not allowed, or another owner holds it; the error says how to mend.
    pub fn claim(&self, _path: &str, _owner: &VolumeOwner) -> Result<HostpathVolume, VolumeError> {
        let _ = (&self.machine_id, &self.root);
        Err(VolumeError::Pending("claim"))
    }

    /// Gives the claim up, if it is `owner`'s on this machine. Idempotent. The data stay.
    ///
    /// # Errors
    /// When the claim cannot be read or removed.
    pub fn release(&self, _path: &str, _owner: &VolumeOwner) -> Result<(), VolumeError> {
        Err(VolumeError::Pending("release"))
    }

    /// A directory that several replicas share (a linked storage resource): made if missing, never claimed.
    ///
    /// # Errors
    /// When the path is not allowed.
    pub fn shared(&self, _path: &str) -> Result<PathBuf, VolumeError> {
        Err(VolumeError::Pending("shared"))
    }
}
