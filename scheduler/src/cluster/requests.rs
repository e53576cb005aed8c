//! What callers may ask of a cluster by its handle: every change of [`super::writes`] by name, and what nodes say.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use berth_api::assignment::{Digest, Position};
use berth_api::cluster::{CapacityGroup, ClusterSpec};
use berth_api::container::ContainerSpec;
use berth_api::event::Event;
use berth_api::id::{ContainerName, MachineId, ReplicaId};
use berth_api::machine::{AssignedNetwork, MachineHealth, MachineSpec};
use berth_api::replica::{HttpUsage, Phase, ReplicaStatus, Usage, WireReplicaStatus};
use berth_api::rest::node::{HttpMetrics, ReplicaMetrics};
use berth_api::time::Timestamp;
use berth_api::units::{Bytes, Cpu};
use berth_api::validate::Faults;

use super::{ClusterHandle, Draft};
use crate::entry::{Entry, LinkKey, MachineHealthState, Removal, TokenDigest, TokenKind};
use crate::identity::MachineIdentity;
use crate::link::check_identity;
use crate::refusal::{Class, Refused};
use crate::world::ObservedMachine;

/// What became of a declaration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    Created,
    Changed,
    /// It was there with equal content already.
    Unchanged,
}

/// A whole status of a machine, as its session sends it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NodeStatus {
    pub replicas: Vec<ReplicaStatus>,
    pub health: MachineHealth,
    /// What runs and is in no accepted set.
    pub unlisted: BTreeSet<ReplicaId>,
    /// Epoch and generation of the set that was accepted when the machine wrote this down. Older nodes do not tell: then the
    /// last acknowledged one counts.
    pub accepted: Option<(u64, u64)>,
}

/// A heartbeat by the plain wire API.
#[derive(Debug, Clone, PartialEq)]
pub struct Heartbeat {
    pub machine_id: MachineId,
    pub replicas: BTreeMap<ReplicaId, ReplicaMetrics>,
}

impl ClusterHandle {
    /// Declares a container that is not there. The same declaration again changes nothing.
    ///
    /// # Errors
    /// When another declaration has the name.
    pub async fn create_container(&self, spec: ContainerSpec) -> Result<Put, Refused> {
        self.change(move |draft| draft.create_container(spec)).await
    }

    /// Declares a container or changes its declaration.
    ///
    /// # Errors
    /// When the cluster is being deleted or has no such capacity group.
    pub async fn put_container(&self, spec: ContainerSpec) -> Result<Put, Refused> {
        self.change(move |draft| draft.put_container(spec)).await
    }

    /// Changes a declaration as `update` says, read and written in one step.
    ///
    /// # Errors
    /// When there is no such container, or with the faults of the update.
    pub async fn update_container(
        &self,
        name: ContainerName,
        update: impl FnOnce(&ContainerSpec, &ClusterSpec) -> Result<ContainerSpec, Faults> + Send + 'static,
    ) -> Result<Put, Refused> {
        self.change(move |draft| draft.update_container(name, update))
            .await
    }

    /// Deletes a container; its replicas stop. Deleting what is being deleted succeeds.
    ///
    /// # Errors
    /// When it never was there, or nothing is left of it.
    pub async fn delete_container(&self, name: ContainerName) -> Result<(), Refused> {
        self.change(move |draft| draft.delete_container(name)).await
    }

    /// Stops a container's replicas and keeps its declaration.
    ///
    /// # Errors
    /// When there is no such container.
    pub async fn stop_container(&self, name: ContainerName) -> Result<(), Refused> {
        self.change(move |draft| draft.stop_container(name)).await
    }

    /// Starts a stopped container's replicas again.
    ///
    /// # Errors
    /// When there is no such container.
    pub async fn start_container(&self, name: ContainerName) -> Result<(), Refused> {
        self.change(move |draft| draft.start_container(name)).await
    }

    /// Sets all capacity groups. A group that machines or containers belong to stays.
    ///
    /// # Errors
    /// With every group that is missing and still used.
    pub async fn set_groups(&self, groups: Vec<CapacityGroup>) -> Result<(), Refused> {
        self.change(move |draft| draft.set_groups(groups)).await
    }

    /// Moves all replicas off a machine, see [`Draft::drain`].
    ///
    /// # Errors
    /// When it is not registered.
    pub async fn drain(&self, machine_id: MachineId, deadline: Option<Duration>) -> Result<(), Refused> {
        self.change(move |draft| draft.drain(machine_id, deadline)).await
    }

    /// Lets a draining machine take replicas again.
    ///
    /// # Errors
    /// When it is not registered.
    pub async fn cancel_drain(&self, machine_id: MachineId) -> Result<(), Refused> {
        self.change(move |draft| draft.cancel_drain(machine_id)).await
    }

    /// Removes a machine: an empty one, or one that the caller knows to be powered off. Its session, if any, ends.
    ///
    /// # Errors
    /// When it is not registered, or is removed as empty and is not.
    pub async fn remove_machine(&self, machine_id: MachineId, how: Removal) -> Result<(), Refused> {
        let id = machine_id.clone();
        self.change(move |draft| draft.remove_machine(machine_id, how))
            .await?;
        self.sessions().end(&id);
        Ok(())
    }

    /// Registers a machine, or again after a boot; returns the network that is its own.
    ///
    /// # Errors
    /// When its group is unknown or another than before, or the container CIDR is used up.
    pub async fn register_machine(&self, spec: MachineSpec) -> Result<AssignedNetwork, Refused> {
        self.change(move |draft| draft.register_machine(spec)).await
    }

    /// As [`Self::register_machine`], and when the machine has first registered. One that shows its certificate has to be there
    /// still, as the one that the certificate is of.
    ///
    /// # Errors
    /// As [`Self::register_machine`], and when the certificate does not count any more.
    pub(crate) async fn enrol_machine(
        &self,
        spec: MachineSpec,
        key: LinkKey,
        proof: Option<MachineIdentity>,
    ) -> Result<(AssignedNetwork, Timestamp), Refused> {
        self.change(move |draft| {
            let machine_id = spec.machine_id.clone();
            let not_found = || Refused::machine_not_found(machine_id.as_str());
            if let Some(proof) = proof {
                check_identity(draft.world(), &proof)?;
                draft.world().machine(&machine_id).ok_or_else(not_found)?;
            }
            let network = draft.enrol_machine(spec, key)?;
            let machine = draft.world().machine(&machine_id).ok_or_else(not_found)?;
            Ok((network, machine.registered_at))
        })
        .await
    }

    /// A heartbeat by the plain wire API: the machine is heard, and its replicas are as it says.
    ///
    /// # Errors
    /// When the machine is not registered.
    pub async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<(), Refused> {
        self.change(move |draft| take_heartbeat(draft, heartbeat)).await
    }

    /// A whole status of a linked machine; returns the unlisted replicas that are confirmed to stop.
    ///
    /// # Errors
    /// When the machine is not registered.
    pub async fn node_status(
        &self,
        machine_id: MachineId,
        status: NodeStatus,
    ) -> Result<Vec<ReplicaId>, Refused> {
        self.change(move |draft| take_status(draft, &machine_id, status))
            .await
    }

    /// A session of a machine has begun; it has last accepted the set at `accepted`. Starts a new epoch when that set was
    /// never sent from this history.
    pub(crate) async fn link_opened(&self, machine_id: MachineId, accepted: Position) -> Result<(), Refused> {
        self.change(move |draft| open_link(draft, &machine_id, accepted))
            .await
    }

    /// The session of a machine has ended.
    pub(crate) async fn link_closed(&self, machine_id: MachineId) -> Result<(), Refused> {
        let sessions = self.sessions().clone();
        self.tell(move |draft| {
            if let Some(machine) = draft.observed.machines.get_mut(&machine_id) {
                machine.is_linked = sessions.is_linked(&machine_id);
                draft.has_news = true;
            }
        })
        .await
    }

    /// A machine has accepted a set; it counts from its next status on.
    pub(crate) async fn acknowledged(
        &self,
        machine_id: MachineId,
        accepted: (u64, u64),
    ) -> Result<(), Refused> {
        self.tell(move |draft| {
            draft.memory.acknowledged.insert(machine_id, accepted);
        })
        .await
    }

    /// A machine lives, and nothing more is known of it.
    pub(crate) async fn heard(&self, machine_id: MachineId) -> Result<(), Refused> {
        self.tell(move |draft| {
            if draft.world.machine(&machine_id).is_some() {
                hear(draft, &machine_id);
            }
        })
        .await
    }

    /// Records an event of a node or control plane.
    ///
    /// # Errors
    /// When the actor is not available.
    pub async fn record_event(&self, event: Event) -> Result<(), Refused> {
        self.change(move |draft| draft.record(event)).await
    }

    /// Makes `digest` the only valid token of its kind.
    ///
    /// # Errors
    /// When the actor or the store is not available.
    pub async fn rotate_token(&self, kind: TokenKind, digest: TokenDigest) -> Result<(), Refused> {
        self.change(move |draft| draft.rotate_token(kind, digest)).await
    }

    /// Makes all tokens of a kind invalid.
    ///
    /// # Errors
    /// When the actor or the store is not available.
    pub async fn revoke_tokens(&self, kind: TokenKind) -> Result<(), Refused> {
        self.change(move |draft| draft.revoke_tokens(kind)).await
    }

    /// Deletes the cluster: its containers go, and when nothing is left on any machine its log.
    pub(crate) async fn delete(&self) -> Result<(), Refused> {
        self.change(move |draft| draft.delete_cluster()).await
    }
}

fn take_heartbeat(draft: &mut Draft<'_>, heartbeat: Heartbeat) -> Result<(), Refused> {
    let id = heartbeat.machine_id;
    let machine = draft.machine(&id)?;
    let (listed, revisions): (BTreeSet<ReplicaId>, BTreeMap<ReplicaId, Digest>) = draft
        .world()
        .replicas_on(&id)
        .map(|replica| {
            let revision = replica.assignment(draft.world()).digest();
            (replica.replica_id.clone(), (replica.replica_id.clone(), revision))
        })
        .unzip();
    // The statuses answer the set of the last reply; the present one travels with this reply.
    let present = (draft.world().epoch(), machine.generation);
    let answered = draft.memory.answered.insert(id.clone(), present);
    let unlisted = heartbeat.replicas.keys().filter(|id| !listed.contains(*id));
    let of_listed = || heartbeat.replicas.iter().filter(|(id, _)| listed.contains(*id));
    let said = Said {
        accepted: answered,
        unlisted: unlisted.cloned().collect(),
        http: of_listed()
            .filter_map(|(id, metrics)| Some((id.clone(), metrics.http.clone()?)))
            .collect(),
        replicas: of_listed()
            .map(|(id, metrics)| (id.clone(), status_of(id, metrics, revisions.get(id))))
            .collect(),
    };
    hear(draft, &id).say(said);
    Ok(())
}

/// What a machine says of its replicas, in either API.
struct Said {
    accepted: Option<(u64, u64)>,
    unlisted: BTreeSet<ReplicaId>,
    http: BTreeMap<ReplicaId, HttpMetrics>,
    replicas: BTreeMap<ReplicaId, ReplicaStatus>,
}

/// A machine that has just been heard, and whether that is news.
struct Heard<'a> {
    machine: &'a mut ObservedMachine,
    has_news: &'a mut bool,
}

impl Heard<'_> {
    /// Takes over what it says.
    fn say(self, said: Said) {
        let Said {
            accepted,
            unlisted,
            http,
            replicas,
        } = said;
        let machine = self.machine;
        let says_the_same = machine.accepted == accepted
            && machine.unlisted == unlisted
            && machine.replicas.len() == replicas.len()
            && machine
                .replicas
                .values()
                .zip(replicas.values())
                .all(|(before, now)| before.says_the_same(now));
        *self.has_news |= !says_the_same;
        machine.accepted = accepted;
        machine.unlisted = unlisted;
        machine.http = http;
        machine.replicas = replicas;
    }
}

/// Notes that a registered machine was heard just now.
fn hear<'a>(draft: &'a mut Draft<'_>, id: &MachineId) -> Heard<'a> {
    let is_running = draft
        .world
        .machine(id)
        .is_some_and(|machine| machine.health == MachineHealthState::Running);
    // One that was silent or new is, and a decision says so.
    draft.has_news |= !is_running;
    let machine = draft.observed.machines.entry(id.clone()).or_default();
    machine.heartbeat_ms = Some(draft.now.monotonic_ms);
    machine.heartbeat_at = Some(draft.now.wall);
    Heard {
        machine,
        has_news: &mut draft.has_news,
    }
}

/// The nearest words of the node link for what a client of the plain API says. It cannot tell which assignment its
/// process was started from: the present one is assumed.
fn status_of(id: &ReplicaId, metrics: &ReplicaMetrics, revision: Option<&Digest>) -> ReplicaStatus {
    let phase = match (metrics.status, metrics.healthy) {
        (WireReplicaStatus::Pending, _) => Phase::Assigned,
        (WireReplicaStatus::Running, true) => Phase::Healthy,
        (WireReplicaStatus::Running, false) => Phase::Unhealthy,
        (WireReplicaStatus::Stopping, _) => Phase::Stopping,
        (WireReplicaStatus::Stopped, _) => Phase::Gone,
        (WireReplicaStatus::Failed, _) => Phase::Backoff,
    };
    ReplicaStatus {
        revision: revision.map(ToString::to_string).unwrap_or_default(),
        usage: Some(Usage {
            cpu: cpu_of_cores(metrics.cpu_usage),
            memory: Bytes::new(metrics.memory_used_bytes),
            http: metrics.http.as_ref().map(|http| HttpUsage {
                in_flight_milli: http.in_flight_requests.saturating_mul(1000),
                latency_p95_us: (http.total_requests > 0).then(|| millionths(http.latency_p95_ms / 1000.0)),
            }),
        }),
        ..ReplicaStatus::new(id.clone(), phase)
    }
}

fn cpu_of_cores(cores: f64) -> Cpu {
    Cpu::from_micros(millionths(cores))
}

fn millionths(value: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to what fits before the cast"
    )]
    let millionths = (value * 1e6).clamp(0.0, 1e15) as u64;
    millionths
}

/// A node's claim to have accepted an epoch further above ours than this is not believed.
const EPOCH_LEAD_MAX: u64 = 1 << 32;

fn open_link(draft: &mut Draft<'_>, machine_id: &MachineId, accepted: Position) -> Result<(), Refused> {
    let machine = draft.machine(machine_id)?;
    let present = (draft.world.epoch(), machine.generation);
    let claimed = (accepted.epoch, accepted.generation);
    let differs = claimed == present
        && draft
            .world
            .assignment_set(machine_id)
            .is_some_and(|set| set.seal().1.digest != accepted.digest);
    if accepted.epoch > present.0.saturating_add(EPOCH_LEAD_MAX) {
        return Err(Refused::new(
            Class::Invalid,
            "implausible_epoch",
            format!(
                "epoch {} was never reached; reset the machine's state",
                accepted.epoch
            ),
        ));
    }
    // A restore starts an epoch above all that the lost history can have had.
    let is_of_lost_history = accepted.epoch < present.0 && accepted.generation > machine.epoch_generation;
    if claimed > present || is_of_lost_history {
        tracing::error!(cluster_id = %draft.world.spec().cluster_id, machine_id = %machine_id,
            epoch = accepted.epoch, generation = accepted.generation,
            "a machine has accepted a set that this scheduler never sent: history was lost; nothing unknown on it is stopped");
        draft.memory.doubted.insert(machine_id.clone());
    }
    if claimed > present || differs {
        let entry = Entry::EpochStarted {
            epoch: accepted.epoch.max(present.0) + 1,
            at: draft.now.wall,
        };
        draft.append(entry)?;
    }
    draft.memory.acknowledged.insert(machine_id.clone(), claimed);
    draft.has_news = true;
    let machine = hear(draft, machine_id).machine;
    machine.is_linked = true;
    // Statuses of an earlier session say nothing about what was accepted since.
    machine.accepted = None;
    Ok(())
}

fn take_status(
    draft: &mut Draft<'_>,
    machine_id: &MachineId,
    status: NodeStatus,
) -> Result<Vec<ReplicaId>, Refused> {
    let machine = draft.machine(machine_id)?;
    let present = (draft.world().epoch(), machine.generation);
    let acknowledged = draft.memory.acknowledged.get(machine_id).copied();
    // A status may have been written down before the set was accepted, and sent after the acknowledgement.
    let accepted = acknowledged.map(|set| status.accepted.map_or(set, |told| told.min(set)));
    let heard = hear(draft, machine_id);
    if !heard.machine.is_linked || heard.machine.health != status.health {
        *heard.has_news = true;
        heard.machine.is_linked = true;
        heard.machine.health = status.health;
    }
    heard.say(Said {
        accepted,
        unlisted: status.unlisted,
        // The plain wire API alone counts traffic so far.
        http: BTreeMap::new(),
        replicas: status
            .replicas
            .into_iter()
            .map(|status| (status.replica_id.clone(), status))
            .collect(),
    });
    if accepted != Some(present) || draft.memory.doubted.contains(machine_id) {
        return Ok(Vec::new());
    }
    let unlisted = draft
        .observed
        .machines
        .get(machine_id)
        .map(|machine| &machine.unlisted)
        .expect("it was heard just now");
    Ok(draft.world.confirmed_stops(machine_id, unlisted))
}
