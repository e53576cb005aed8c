//! Ephemeral storage: a file system of its own with a hard size for each replica.

use std::path::{Path, PathBuf};

use berth_api::id::ReplicaId;
use berth_api::units::Bytes;

/// What the store is opened with.
#[derive(Debug, Clone)]
pub struct EphemeralConfig {
    /// Everything of the store lies under it; one directory per machine.
    pub dir: PathBuf,
    pub admission: Admission,
}

/// Whether file systems may promise together more bytes than the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Refuse a file system whose size, with all promised before, exceeds the free bytes. For real machines.
    Reserved,
    /// Accept. For `berth dev`, whose machines declare disks that the host does not have.
    Overcommitted,
}

/// One replica's file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EphemeralVolume {
    pub replica_id: ReplicaId,
    pub size: Bytes,
    /// Where it is mounted on the machine.
    pub path: PathBuf,
}

/// What went wrong with ephemeral storage.
#[derive(Debug, thiserror::Error)]
pub enum EphemeralError {
    #[error("{0}")]
    Pending(&'static str),
}

/// The ephemeral file systems of this machine.
#[derive(Debug)]
pub struct Ephemeral {
    config: EphemeralConfig,
}

impl Ephemeral {
    /// Opens the store and finds by a trial whether the host can enforce a size.
    ///
    /// # Errors
    /// When no back end works; the error says what each one lacked.
    pub async fn open(config: EphemeralConfig) -> Result<Self, EphemeralError> {
        Ok(Self { config })
    }

    /// Makes or finishes the file system of one replica and returns where it is mounted. Idempotent.
    ///
    /// # Errors
    /// When there is no room, or the host refuses a step.
    pub async fn create(&self, _replica_id: &ReplicaId, _size: Bytes) -> Result<PathBuf, EphemeralError> {
        Err(EphemeralError::Pending("create"))
    }

    /// Removes it and its bytes. Idempotent.
    ///
    /// # Errors
    /// When it cannot be unmounted; it stays listed.
    pub async fn remove(&self, _replica_id: &ReplicaId) -> Result<(), EphemeralError> {
        Err(EphemeralError::Pending("remove"))
    }

    /// Every file system here, half-made ones too.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn list(&self) -> Result<Vec<EphemeralVolume>, EphemeralError> {
        Err(EphemeralError::Pending("list"))
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.config.dir
    }
}
