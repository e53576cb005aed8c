//! What one machine must run: the whole set, its position in the sequence of sets, and its digest.
//!
//! The set travels and is stored as canonical JSON bytes; the digest is over those bytes, so no re-encoding can
//! change it. A node accepts a set only at a higher position, or at the same one with the same digest (invariant 2).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::container::{
    CpuRange, GpuRequest, Granted, HealthCheck, LoadBalancerTarget, MemoryRange, ServiceAccountTarget,
};
use crate::id::{ClusterId, ContainerName, MachineId, ReplicaId};
use crate::machine::GpuDevice;
use crate::probe::Probes;
use crate::time::Timestamp;
use crate::units::{Bytes, optional_bytes_text};
use crate::volume::{SharedMount, VolumeTarget};

/// SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let invalid = || InvalidDigest(text.to_owned());
        let mut digest = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| invalid())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| invalid())?;
        }
        Ok(Self(digest))
    }
}

/// A text that is no [`Digest`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no digest of 64 hexadecimal digits")]
pub struct InvalidDigest(pub String);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Where a set stands: epochs rise when the scheduler's history was restored or taken over, generations with each
/// change inside an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    pub epoch: u64,
    pub generation: u64,
    pub digest: Digest,
}

/// Why a node refuses a set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("set {offered_epoch}.{offered_generation} is older than the accepted {epoch}.{generation}")]
    Older {
        offered_epoch: u64,
        offered_generation: u64,
        epoch: u64,
        generation: u64,
    },
    #[error(
        "set {epoch}.{generation} differs from the accepted one of the same generation: {offered} is not {accepted}"
    )]
    Different {
        epoch: u64,
        generation: u64,
        offered: Digest,
        accepted: Digest,
    },
    #[error("the digest of the set is {found}, announced was {announced}")]
    Corrupt { found: Digest, announced: Digest },
    #[error("the set is for {0}, not for this machine")]
    Misdirected(String),
    #[error("the set cannot be read: {0}")]
    Unreadable(String),
}

impl Position {
    /// Whether a set at `offered` may follow one at `self`. Equal positions are accepted: the message was repeated.
    ///
    /// # Errors
    /// When `offered` is older, or of the same generation with another digest.
    pub fn accept(&self, offered: &Self) -> Result<(), Refusal> {
        match (offered.epoch, offered.generation).cmp(&(self.epoch, self.generation)) {
            std::cmp::Ordering::Greater => Ok(()),
            std::cmp::Ordering::Equal if offered.digest == self.digest => Ok(()),
            std::cmp::Ordering::Equal => Err(Refusal::Different {
                epoch: self.epoch,
                generation: self.generation,
                offered: offered.digest,
                accepted: self.digest,
            }),
            std::cmp::Ordering::Less => Err(Refusal::Older {
                offered_epoch: offered.epoch,
                offered_generation: offered.generation,
                epoch: self.epoch,
                generation: self.generation,
            }),
        }
    }
}

/// A volume of a replica and where it sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMount {
    pub volume: VolumeTarget,
    pub mount_path: String,
}

/// One replica that a machine must run. All of it: the node asks nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    pub replica_id: ReplicaId,
    pub container: ContainerName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordinal: Option<u32>,
    pub image: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// User values, plus `ALIEN_ORDINAL` when stateful.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    pub cpu: CpuRange,
    pub memory: MemoryRange,
    /// What it may use while it is squeezed; absent: all that it desires. It changes while the process runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted: Option<Granted>,
    #[serde(
        default,
        with = "optional_bytes_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub ephemeral_storage: Option<Bytes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuRequest>,
    /// The devices that are its own, wholly or in part, by rising number. Empty: none, or placed before this was recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu_devices: Vec<GpuDevice>,
    pub ip: IpAddr,
    pub ports: Vec<u16>,
    /// Port of the machine that is forwarded to `ports[0]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeMount>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_mounts: Vec<SharedMount>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Instead of a health check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<Probes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer_target: Option<LoadBalancerTarget>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ServiceAccountTarget>,
    /// From SIGTERM to SIGKILL, milliseconds.
    pub stop_grace_ms: u64,
    /// How long a stop waits for connections to end, before SIGTERM, milliseconds; absent: `DRAIN_CAP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_ms: Option<u64>,
}

impl Assignment {
    /// Names this content: a process started from another content must be replaced. What is granted is no part of it: that
    /// changes while the process runs. Nor are the devices: they never change, but a scheduler of before they were told leaves them out.
    #[must_use]
    pub fn digest(&self) -> Digest {
        if self.granted.is_none() && self.gpu_devices.is_empty() {
            return Digest::of(&canonical_json(self));
        }
        let bare = Self {
            granted: None,
            gpu_devices: vec![],
            ..self.clone()
        };
        Digest::of(&canonical_json(&bare))
    }

    /// What its process is capped at.
    #[must_use]
    pub fn caps(&self) -> Granted {
        self.granted.unwrap_or(Granted {
            cpu: self.cpu.desired,
            memory: self.memory.desired,
        })
    }
}

/// A replica that the scheduler confirms must stop; it stays in the set until the node reports it gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stop {
    pub replica_id: ReplicaId,
    pub reason: StopReason,
    /// When the scheduler decided it.
    pub since: Timestamp,
}

/// The wire's stop and detach reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    ScaledDown,
    Updated,
    MachineDraining,
    ContainerDeleted,
}

/// Every replica that one machine must run, whole. Invariant: both lists are ordered by replica id and disjoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AssignmentSet {
    pub cluster_id: ClusterId,
    pub machine_id: MachineId,
    pub epoch: u64,
    pub generation: u64,
    pub replicas: Vec<Assignment>,
    pub stops: Vec<Stop>,
}

impl AssignmentSet {
    /// The bytes that travel and are stored, and their position.
    #[must_use]
    pub fn seal(&self) -> (Vec<u8>, Position) {
        let bytes = canonical_json(self);
        let position = Position {
            epoch: self.epoch,
            generation: self.generation,
            digest: Digest::of(&bytes),
        };
        (bytes, position)
    }

    /// Reads sealed bytes and checks that they are what `position` announces.
    ///
    /// # Errors
    /// When the digest differs, the bytes are no set, or the set says another position than its envelope.
    pub fn open(bytes: &[u8], position: &Position) -> Result<Self, Refusal> {
        let found = Digest::of(bytes);
        if found != position.digest {
            return Err(Refusal::Corrupt {
                found,
                announced: position.digest,
            });
        }
        let set: Self =
            serde_json::from_slice(bytes).map_err(|error| Refusal::Unreadable(error.to_string()))?;
        if (set.epoch, set.generation) != (position.epoch, position.generation) {
            return Err(Refusal::Unreadable(format!(
                "it says {}.{} inside and {}.{} outside",
                set.epoch, set.generation, position.epoch, position.generation
            )));
        }
        Ok(set)
    }
}

/// JSON with the members in declaration order and maps in key order: equal values give equal bytes.
fn canonical_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("nouns of this crate have text keys and no failing serialiser")
}

impl From<Position> for crate::link::Position {
    fn from(position: Position) -> Self {
        Self {
            epoch: position.epoch,
            generation: position.generation,
            digest: position.digest.0.to_vec().into(),
        }
    }
}

impl TryFrom<&crate::link::Position> for Position {
    type Error = Refusal;

    fn try_from(position: &crate::link::Position) -> Result<Self, Refusal> {
        let digest = if position.digest.is_empty() {
            Digest::default()
        } else {
            let bytes: [u8; 32] = position.digest.as_ref().try_into().map_err(|_| {
                Refusal::Unreadable(format!("a digest has 32 bytes, not {}", position.digest.len()))
            })?;
            Digest(bytes)
        };
        Ok(Self {
            epoch: position.epoch,
            generation: position.generation,
            digest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(generation: u64) -> AssignmentSet {
        AssignmentSet {
            cluster_id: ClusterId::new("c").unwrap(),
            machine_id: MachineId::new("m").unwrap(),
            epoch: 1,
            generation,
            replicas: vec![],
            stops: vec![],
        }
    }

    #[test]
    fn accepts_newer_and_repeated_sets_only() {
        let (_, first) = set(1).seal();
        let (_, second) = set(2).seal();
        assert_eq!(first.accept(&second), Ok(()));
        assert_eq!(second.accept(&second), Ok(()));
        assert!(matches!(second.accept(&first), Err(Refusal::Older { .. })));
        let other = Position {
            digest: Digest([7; 32]),
            ..second
        };
        assert!(matches!(second.accept(&other), Err(Refusal::Different { .. })));
        assert_eq!(
            second.accept(&Position {
                epoch: 2,
                generation: 0,
                ..first
            }),
            Ok(())
        );
    }

    #[test]
    fn a_sealed_set_opens_and_a_changed_one_does_not() {
        let (bytes, position) = set(3).seal();
        assert_eq!(AssignmentSet::open(&bytes, &position), Ok(set(3)));
        let mut changed = bytes;
        changed[10] ^= 1;
        assert!(matches!(
            AssignmentSet::open(&changed, &position),
            Err(Refusal::Corrupt { .. })
        ));
    }
}
