//! The durable log format: one [`Entry`] a change of a cluster, in the order in which they happened.
//!
//! Serialised as JSON inside a [`Record`]: `{"v":1,"type":"containerPut",...}`. Entries are facts that were decided,
//! never intentions to be computed again: replaying a log needs no clock, no configuration and no placement.
//!
//! Invariant: an entry that was ever written can be read for ever (`fixtures/entries.jsonl`). A member is added only as
//! optional; a change of meaning is a new variant or a higher [`RECORD_VERSION`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use berth_api::assignment::StopReason;
use berth_api::cluster::{CapacityGroup, ClusterSpec};
use berth_api::container::{ContainerSpec, Granted, ProbeKind};
use berth_api::event::Event;
use berth_api::id::{ContainerName, GroupId, MachineId, ReplicaId};
use berth_api::machine::{GpuDevice, MachineSpec};
use berth_api::rest::cluster::CapacityReason;
use berth_api::time::Timestamp;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use crate::autoscale::Metric;
use crate::placement::Chosen;
use crate::world::{KeptWrite, RolloutTurn};

/// Highest version of [`Record`]. A reader refuses a higher one. What is of which: [`version_of`].
pub const RECORD_VERSION: u32 = 3;

/// The lowest version of stored records and snapshots whose readers understand a declaration. 2: it wants a share of a GPU,
/// which a reader of 1 takes for all of it, or has a check of another kind than HTTP, which a reader of 1 takes for that. 3: it has
/// probes, which a reader of 2 takes for none, so that whatever runs would be ready, or says how long to drain, which that reader
/// would forget and restart everything for.
pub(crate) fn version_of(spec: &ContainerSpec) -> u32 {
    let gpu = spec.resources.gpu.as_ref();
    let check = spec.health_check.as_ref();
    let is_newer = gpu.is_some_and(|gpu| gpu.share.is_some())
        || check.is_some_and(|check| check.kind != ProbeKind::Http);
    match (spec.probes.is_some() || spec.drain_seconds.is_some(), is_newer) {
        (true, _) => 3,
        (false, true) => 2,
        (false, false) => 1,
    }
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record<'a> {
    v: u32,
    #[serde(flatten)]
    entry: Cow<'a, Entry>,
}

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("the record is not an entry of this program")]
    Unreadable(#[source] serde_json::Error),
    #[error("the record has version {found}, this program reads up to {RECORD_VERSION}")]
    Newer { found: u32 },
}

impl Entry {
    /// The bytes that are stored.
    ///
    /// # Panics
    /// Never: entries have text keys and no failing serialiser.
    #[must_use]
    pub fn to_record(&self) -> Vec<u8> {
        serde_json::to_vec(&Record {
            v: self.version(),
            entry: Cow::Borrowed(self),
        })
        .expect("entries have text keys and no failing serialiser")
    }

    /// The lowest version whose readers understand it: an older program goes on with what it can read.
    fn version(&self) -> u32 {
        match self {
            Self::ContainerPut { spec, .. } => version_of(spec),
            _ => 1,
        }
    }

    /// Reads stored bytes.
    ///
    /// # Errors
    /// When they are no entry, or of a newer version.
    pub fn from_record(bytes: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        let version: Version = serde_json::from_slice(bytes).map_err(RecordError::Unreadable)?;
        if version.v > RECORD_VERSION {
            return Err(RecordError::Newer { found: version.v });
        }
        let record: Record<'_> = serde_json::from_slice(bytes).map_err(RecordError::Unreadable)?;
        Ok(record.entry.into_owned())
    }
}

/// What a token is for. Platform tokens belong to no cluster and are not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TokenKind {
    /// `hm_...`
    Management,
    /// `hj_...`
    Machine,
}

/// SHA-256, in lower-case hexadecimal, of the public key that a machine makes its certificate requests with. No secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LinkKey(pub String);

/// SHA-256 of a token in lower-case hexadecimal; behind a dot, where there is one, the salt that the token was derived
/// with (see [`crate::tokens`]). The token itself is shown to its owner and never stored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenDigest(pub String);

impl TokenDigest {
    #[must_use]
    pub fn of(token: &str) -> Self {
        Self(berth_api::assignment::Digest::of(token.as_bytes()).to_string())
    }

    /// The digest of a token that can be derived again from `salt`.
    #[must_use]
    pub fn salted(token: &str, salt: &str) -> Self {
        Self(format!("{}.{salt}", Self::of(token).0))
    }

    #[must_use]
    pub fn salt(&self) -> Option<&str> {
        self.0.split_once('.').map(|(_, salt)| salt)
    }

    /// Whether this is the digest of `token`, in constant time.
    #[must_use]
    pub fn matches(&self, token: &str) -> bool {
        self.is_of(&Self::of(token))
    }

    /// Whether this and `unsalted` are digests of one token, in constant time.
    #[must_use]
    pub fn is_of(&self, unsalted: &Self) -> bool {
        let digest = self
            .0
            .split_once('.')
            .map_or(self.0.as_str(), |(digest, _)| digest);
        digest.as_bytes().ct_eq(unsalted.0.as_bytes()).into()
    }
}

/// What the scheduler holds of a machine's health, durable because replicas move on its account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MachineHealthState {
    /// Registered, never heard since.
    Initializing,
    Running,
    /// Silent for longer than the limit.
    Unhealthy,
}

/// How a machine left the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Removal {
    /// It had no replica left.
    Empty,
    /// Somebody who can know it (the operator, the provisioner) asserts that it is powered off: whatever was on it,
    /// stateful replicas included, runs no more and may start elsewhere.
    PoweredOff,
}

/// Why a replica must stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StopCause {
    ScaledDown,
    Updated,
    MachineDraining,
    MachineUnhealthy,
    ContainerStopped,
    ContainerDeleted,
    /// It was squeezed, and one with all that it desires has taken its place.
    Relieved,
}

impl StopCause {
    /// The wire knows four reasons; the nearest one stands for the others.
    #[must_use]
    pub fn wire(self) -> StopReason {
        match self {
            Self::ScaledDown | Self::ContainerStopped => StopReason::ScaledDown,
            Self::Updated | Self::Relieved => StopReason::Updated,
            Self::MachineDraining | Self::MachineUnhealthy => StopReason::MachineDraining,
            Self::ContainerDeleted => StopReason::ContainerDeleted,
        }
    }
}

impl fmt::Display for StopCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ScaledDown => "the container was scaled down",
            Self::Updated => "the container was updated",
            Self::MachineDraining => "its machine is draining",
            Self::MachineUnhealthy => "its machine is unhealthy",
            Self::ContainerStopped => "the container was stopped",
            Self::ContainerDeleted => "the container was deleted",
            Self::Relieved => "it was squeezed, and another has taken its place",
        })
    }
}

/// Why this one of several replicas that are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Picked {
    /// It was not ready, and others were.
    NotReady,
    /// It had less than it desires.
    Squeezed,
    /// Of those that are alike, it was placed last.
    Newest,
    HighestOrdinal,
}

impl fmt::Display for Picked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotReady => "it was not ready",
            Self::Squeezed => "it was squeezed",
            Self::Newest => "of those that are alike it was the newest",
            Self::HighestOrdinal => "it had the highest ordinal",
        })
    }
}

/// A replica given to a machine, and what it got there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Placed {
    pub replica_id: ReplicaId,
    pub container: ContainerName,
    /// Present exactly for stateful containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordinal: Option<u32>,
    /// Revision of the container's declaration that this replica runs.
    pub revision: u64,
    pub machine_id: MachineId,
    pub ip: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    /// What it holds of its machine's GPUs, by rising number. Empty: none, or placed before this was recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<GpuDevice>,
    /// Why this machine; unknown for replicas placed before this was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Chosen>,
    /// Less than the declaration desires; absent: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted: Option<Granted>,
    /// The squeezed replica that leaves when this one is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relieves: Option<ReplicaId>,
    pub at: Timestamp,
}

/// How many machines a capacity group should have, from `at` on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CapacityWish {
    pub group_id: GroupId,
    pub desired: u32,
    pub reason: CapacityReason,
    /// Since when fewer machines would do, without a break.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_since: Option<Timestamp>,
    /// What the decision saw, for the event that announces it: running machines, replicas without a place, percent held of
    /// the scarcest dimension.
    pub running: u32,
    #[serde(default)]
    pub unplaced: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilization_percent: Option<u32>,
    pub at: Timestamp,
}

/// Another count of a scaled container's replicas, and what it is based on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerScaled {
    pub container: ContainerName,
    pub count: u32,
    /// None when only the bounds have asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// Of the metric's target, 1000 being on target.
    pub of_target_permille: u64,
    pub at: Timestamp,
}

/// A container goes to a declaration that it had before: a rollout of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutTurned {
    pub container: ContainerName,
    /// The next one of the container: the new rollout's id.
    pub revision: u64,
    /// The revision whose declaration is taken; scale, links and budgets stay as they are declared.
    pub to: u64,
    pub turn: RolloutTurn,
    /// Why the rollout before it was given up, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub at: Timestamp,
}

/// One change of a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Entry {
    /// The first entry of every log, and only the first.
    ClusterCreated {
        spec: ClusterSpec,
        tokens: BTreeMap<TokenKind, TokenDigest>,
        at: Timestamp,
    },
    /// All containers are going; the log is dropped when nothing is left on any machine.
    ClusterDeleted {
        at: Timestamp,
    },
    GroupsChanged {
        groups: Vec<CapacityGroup>,
        at: Timestamp,
    },
    /// The only valid token of its kind from now on.
    TokenRotated {
        kind: TokenKind,
        digest: TokenDigest,
        at: Timestamp,
    },
    TokensRevoked {
        kind: TokenKind,
        at: Timestamp,
    },
    /// First registration, or again by the same machine after a boot: then the subnet index is the one it has.
    MachineRegistered {
        spec: MachineSpec,
        /// Which of the cluster's machine subnets it owns.
        subnet_index: u32,
        /// The key that it has enrolled with; none when it speaks the plain wire API, and in what was written before this was.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        link_key: Option<LinkKey>,
        at: Timestamp,
    },
    MachineRemoved {
        machine_id: MachineId,
        how: Removal,
        at: Timestamp,
    },
    MachineDraining {
        machine_id: MachineId,
        at: Timestamp,
    },
    MachineDrainCancelled {
        machine_id: MachineId,
        at: Timestamp,
    },
    /// What is left on a draining machine is stopped from `from` on, whatever it waits for.
    MachineDrainForced {
        machine_id: MachineId,
        from: Timestamp,
        at: Timestamp,
    },
    MachineHealthChanged {
        machine_id: MachineId,
        state: MachineHealthState,
        at: Timestamp,
    },
    /// Declared or changed. `revision` is that of [`crate::world::World::next_revision`].
    ContainerPut {
        spec: Box<ContainerSpec>,
        revision: u64,
        at: Timestamp,
    },
    ContainerStopped {
        container: ContainerName,
        at: Timestamp,
    },
    ContainerStarted {
        container: ContainerName,
        at: Timestamp,
    },
    /// Its replicas stop; it is forgotten when the last one is gone.
    ContainerDeleted {
        container: ContainerName,
        at: Timestamp,
    },
    /// A rollout starts and stops nothing until it is resumed.
    RolloutPaused {
        container: ContainerName,
        at: Timestamp,
    },
    RolloutResumed {
        container: ContainerName,
        at: Timestamp,
    },
    /// A replica of the rollout has come up and stayed up: from now on it is not rolled back by itself.
    RolloutProven {
        container: ContainerName,
        revision: u64,
        at: Timestamp,
    },
    /// Its replicas fail to start and there is nothing to go back to.
    RolloutStalled {
        container: ContainerName,
        revision: u64,
        reason: String,
        at: Timestamp,
    },
    /// Every wanted replica runs it, and none runs anything else.
    RolloutCompleted {
        container: ContainerName,
        revision: u64,
        at: Timestamp,
    },
    RolloutTurned(RolloutTurned),
    /// How many replicas of the container found no place changed.
    UnplacedChanged {
        container: ContainerName,
        count: u32,
        at: Timestamp,
    },
    /// How many machines a capacity group should have, or why, or since when fewer would do, has changed.
    CapacityWished(CapacityWish),
    /// Automatic scaling changed how many replicas are wanted.
    ContainerScaled(ContainerScaled),
    ReplicaPlaced(Placed),
    /// A squeezed replica is given more of its machine, while it runs.
    ReplicaResized {
        replica_id: ReplicaId,
        /// From now on; absent: all that its declaration desires.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        granted: Option<Granted>,
        at: Timestamp,
    },
    ReplicaStopping {
        replica_id: ReplicaId,
        cause: StopCause,
        /// Where several could have been stopped: why this one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        picked: Option<Picked>,
        /// It was ready and no write asked for its stop: see [`crate::guard`].
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        unasked: bool,
        at: Timestamp,
    },
    /// So many healthy replicas would stop that nobody asked to stop: they are held. 0: nothing is held any more.
    StopsHeld {
        count: u32,
        at: Timestamp,
    },
    /// An operator lets everything stop until then.
    StopsReleased {
        until: Timestamp,
        at: Timestamp,
    },
    /// Too many machines are unhealthy for any move (so many of so many), or no longer.
    FreezeChanged {
        is_frozen: bool,
        unhealthy: u32,
        total: u32,
        at: Timestamp,
    },
    /// Nothing of it is left on its machine: its id, address and capacity are free.
    ReplicaGone {
        replica_id: ReplicaId,
        at: Timestamp,
    },
    /// Something to tell people. Repeats are merged and old ones dropped by the world.
    EventRecorded {
        event: Box<Event>,
    },
    /// The history before this may have been lost on the nodes' side of the link (restore, takeover): every set sent
    /// from now on outranks every set of an earlier epoch.
    EpochStarted {
        epoch: u64,
        at: Timestamp,
    },
    /// The entries just before this were asked for under an idempotency key: a repeat gets this answer.
    WriteKept(KeptWrite),
}

impl Entry {
    /// When it was decided.
    #[must_use]
    pub fn at(&self) -> Timestamp {
        match self {
            Self::ClusterCreated { at, .. }
            | Self::ClusterDeleted { at }
            | Self::GroupsChanged { at, .. }
            | Self::TokenRotated { at, .. }
            | Self::TokensRevoked { at, .. }
            | Self::MachineRegistered { at, .. }
            | Self::MachineRemoved { at, .. }
            | Self::MachineDraining { at, .. }
            | Self::MachineDrainCancelled { at, .. }
            | Self::MachineDrainForced { at, .. }
            | Self::MachineHealthChanged { at, .. }
            | Self::ContainerPut { at, .. }
            | Self::ContainerStopped { at, .. }
            | Self::ContainerStarted { at, .. }
            | Self::ContainerDeleted { at, .. }
            | Self::RolloutPaused { at, .. }
            | Self::RolloutResumed { at, .. }
            | Self::RolloutProven { at, .. }
            | Self::RolloutStalled { at, .. }
            | Self::RolloutCompleted { at, .. }
            | Self::UnplacedChanged { at, .. }
            | Self::ReplicaResized { at, .. }
            | Self::ReplicaStopping { at, .. }
            | Self::ReplicaGone { at, .. }
            | Self::StopsHeld { at, .. }
            | Self::StopsReleased { at, .. }
            | Self::FreezeChanged { at, .. }
            | Self::EpochStarted { at, .. } => *at,
            Self::ReplicaPlaced(placed) => placed.at,
            Self::CapacityWished(wish) => wish.at,
            Self::ContainerScaled(scaled) => scaled.at,
            Self::RolloutTurned(turned) => turned.at,
            Self::WriteKept(kept) => kept.at,
            Self::EventRecorded { event } => event.last_timestamp,
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_api::event::EventDetails;

    use super::*;

    /// Lines are added here with each new kind of entry and never changed.
    const FIXTURES: &str = include_str!("../fixtures/entries.jsonl");

    #[test]
    fn every_entry_ever_written_can_be_read_and_replayed() {
        let entries: Vec<Entry> = FIXTURES
            .lines()
            .map(|line| Entry::from_record(line.as_bytes()).expect(line))
            .collect();
        crate::world::World::replay(&entries).expect("the fixtures are one history");
        let known: std::collections::BTreeSet<String> = entries.iter().map(kind).collect();
        assert_eq!(known.len(), KINDS, "{known:?}");
    }

    #[test]
    fn an_entry_is_written_as_it_was_read() {
        for line in FIXTURES.lines() {
            let entry = Entry::from_record(line.as_bytes()).unwrap();
            assert_eq!(Entry::from_record(&entry.to_record()).unwrap(), entry);
        }
    }

    /// Replay is the live state to the last bit, so numbers with a fraction are read as they were written.
    #[test]
    fn a_percentage_is_read_as_it_was_written() {
        let written = FIXTURES.lines().find(|line| line.contains("eventRecorded"));
        let Entry::EventRecorded { mut event } = Entry::from_record(written.unwrap().as_bytes()).unwrap()
        else {
            unreachable!("a line of this kind is there");
        };
        for (unhealthy, total) in (1..=50_u32).flat_map(|total| (0..=total).map(move |part| (part, total))) {
            event.details = EventDetails::ClusterWideFailure {
                unhealthy_machine_count: unhealthy.into(),
                total_machine_count: total.into(),
                unhealthy_percent: f64::from(unhealthy) * 100.0 / f64::from(total),
            };
            let entry = Entry::EventRecorded { event: event.clone() };
            assert_eq!(Entry::from_record(&entry.to_record()).unwrap(), entry);
        }
    }

    /// Readers that know of no devices see none where there are none, and a share is a plain number.
    #[test]
    fn devices_and_shares_are_written_only_where_they_are() {
        for line in FIXTURES.lines() {
            let written = Entry::from_record(line.as_bytes()).unwrap().to_record();
            let written = String::from_utf8(written).unwrap();
            for member in [r#""devices":[{"index":1,"milli":500}]"#, r#""share":0.5"#] {
                assert_eq!(written.contains(member), line.contains(member), "{written}");
            }
            let has_devices = line.contains(r#""devices":"#);
            assert_eq!(written.contains(r#""devices":"#), has_devices, "{written}");
            // Older readers would take a share for a whole device, and ask by HTTP.
            let is_newer = written.contains(r#""share":"#) || written.contains(r#""kind":"exec""#);
            let version = match (
                written.contains(r#""probes":"#) || written.contains(r#""drainSeconds":"#),
                is_newer,
            ) {
                (true, _) => r#"{"v":3,"#,
                (false, true) => r#"{"v":2,"#,
                (false, false) => r#"{"v":1,"#,
            };
            assert!(written.starts_with(version), "{written}");
        }
    }

    #[test]
    fn a_newer_record_is_refused() {
        let error = Entry::from_record(br#"{"v":4,"type":"unheardOf"}"#).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the record has version 4, this program reads up to 3"
        );
        assert!(Entry::from_record(br#"{"v":1,"type":"unheardOf"}"#).is_err());
    }

    /// Kinds of entries there are.
    const KINDS: usize = 34;

    fn kind(entry: &Entry) -> String {
        let value: serde_json::Value = serde_json::from_slice(&entry.to_record()).unwrap();
        value["type"].as_str().unwrap().to_owned()
    }
}
