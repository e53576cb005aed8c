//! What is wanted against what is placed: named sets for one container, and what each of them waits for.
//!
//! Input: world, observed, limits, now. Output: a [`Plan`]; it names no machine, that is placement's part. Pure.
//!
//! Crashes are not here: a replica that ends is started again by its own node. A frozen cluster moves nothing off silent
//! machines ([`crate::liveness`]).

mod stateful;
mod stateless;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use berth_api::container::Granted;
use berth_api::id::{ContainerName, GroupId, MachineId, ReplicaId};
use berth_api::replica::{CRASH_LOOP_MIN, Phase};
use berth_api::time::Timestamp;

use crate::entry::{MachineHealthState, Picked, StopCause};
use crate::liveness::{self, Freeze, Limits};
use crate::placement::Unplaced;
use crate::rollout;
use crate::world::{Container, Machine, Now, Observed, Readiness, Replica, World};

/// What to do about one container.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// Told to stop now.
    pub stop: Vec<(ReplicaId, StopCause)>,
    /// Of those that stop, why these and not others.
    pub picked: BTreeMap<ReplicaId, Picked>,
    /// Need a machine now.
    pub start: Vec<Start>,
    /// Stateful replicas that stop as soon as there is room for them elsewhere.
    pub moving: Vec<ReplicaId>,
    /// Retired, one of them, when a surge found no room and all else is ready; empty when that is not allowed.
    pub make_room: Option<ReplicaId>,
    /// Stateless, squeezed and staying: a machine more could give each of them all that it desires.
    pub squeezed: Vec<ReplicaId>,
    /// The one of `squeezed` that is replaced as soon as there is room for a whole one.
    pub relieve: Option<ReplicaId>,
    /// Live and left alone.
    pub keep: Vec<ReplicaId>,
    pub wait: Vec<Wait>,
}

/// A replica that needs a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    pub ordinal: Option<u32>,
    /// Of the container's declarations, which one it runs.
    pub revision: u64,
    pub purpose: Purpose,
}

impl Start {
    /// The declaration and the ordinal.
    pub(crate) fn asked(&self) -> (u64, Option<u32>) {
        (self.revision, self.ordinal)
    }
}

/// What a start is for, and so what follows from its success or failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// A wanted replica is missing; without a place it is unplaced.
    Missing,
    /// In the stead of a replica on a lost machine, which is told to stop when the place is found.
    InsteadOf(ReplicaId),
    /// Beyond the wanted count, to retire another when it is ready; without a place the rollout or drain waits.
    Surge,
    /// As a surge, to retire this squeezed one; without a place nothing happens.
    Relief(ReplicaId),
}

/// One thing that waits.
#[derive(Debug, Clone, PartialEq)]
pub struct Wait {
    pub container: ContainerName,
    /// Absent when no replica exists yet.
    pub replica_id: Option<ReplicaId>,
    pub reason: WaitReason,
    pub since: Timestamp,
}

/// For what.
#[derive(Debug, Clone, PartialEq)]
pub enum WaitReason {
    /// No machine can take a wanted replica.
    NoPlace(Arc<Unplaced>),
    /// A wanted replica has no place yet, and replicas that are stopping give room.
    RoomComing,
    /// The rollout or the drain needs room for one replica more.
    NoRoomToMove(Arc<Unplaced>),
    /// The replica stops: its node has to say that it is gone.
    Gone { machine_id: MachineId },
    /// The ordinal's former replica is not gone; two of one id never run.
    FormerGone { machine_id: MachineId },
    /// A stateful replica on a silent machine, which may still write.
    Fenced { machine_id: MachineId },
    /// Too many machines are silent for any move.
    Frozen(Freeze),
    /// The machine is silent, not yet long enough to replace what it runs.
    Grace { machine_id: MachineId },
    /// The rollout or drain goes on when this replica is ready.
    Ready { replica_id: ReplicaId },
    /// The rollout or drain goes on when this ordinal is back.
    Ordinal { ordinal: u32 },
    /// It would stop with many others, and nobody asked for that.
    Held,
    /// Of a scaled container no more than half stop at a time.
    Half,
    /// Its rollout was paused.
    Paused { rollout: u64 },
    /// Its container allows no drain to take a replica away.
    Budget { container: ContainerName },
    /// It runs with less than it desires.
    Squeezed(Box<Squeeze>),
}

/// A squeezed replica and what it lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Squeeze {
    pub machine_id: MachineId,
    pub group: GroupId,
    pub granted: Granted,
    pub desired: Granted,
    /// A stateful one grows only where it is.
    pub is_bound: bool,
}

/// Everything that a plan is made from.
pub(crate) struct Context<'a> {
    pub world: &'a World,
    pub observed: &'a Observed,
    pub limits: &'a Limits,
    pub now: Now,
    pub freeze: Option<Freeze>,
    pub container: &'a Container,
    /// Not gone, ordered by id.
    pub replicas: Vec<Seen<'a>>,
}

/// A replica with what everything asks of it, looked up once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen<'a> {
    replica: &'a Replica,
    machine: &'a Machine,
    readiness: Readiness,
}

impl<'a> Seen<'a> {
    fn of(world: &'a World, observed: &Observed, replica: &'a Replica) -> Self {
        let machine = world.machine(&replica.machine_id);
        Self {
            replica,
            machine: machine.expect("a replica is on a registered machine"),
            readiness: observed.readiness(world, replica),
        }
    }

    fn is_ready(&self) -> bool {
        self.readiness == Readiness::Ready
    }
}

impl Deref for Seen<'_> {
    type Target = Replica;

    fn deref(&self) -> &Replica {
        self.replica
    }
}

/// Plans for one container; nothing for one that does not exist. `freeze` is the one that holds now, which is the same for
/// all containers.
///
/// The plan depends on nothing of other containers.
#[must_use]
pub fn reconcile(
    world: &World,
    observed: &Observed,
    limits: &Limits,
    now: Now,
    freeze: Option<Freeze>,
    name: &ContainerName,
) -> Plan {
    let Some(container) = world.container(name) else {
        return Plan::default();
    };
    // Deleted and declared anew in one step as the other kind: what the former one left is in nobody's way, and goes.
    let (replicas, former): (Vec<Seen<'_>>, Vec<Seen<'_>>) = world
        .replicas_of(name)
        .map(|replica| Seen::of(world, observed, replica))
        .partition(|replica| replica.ordinal.is_some() == container.spec.stateful);
    let mut context = Context {
        world,
        observed,
        limits,
        now,
        freeze,
        container,
        replicas,
    };
    let mut plan = if container.wanted() == 0 {
        context.stop_all()
    } else if container.spec.stateful {
        stateful::plan(&context)
    } else {
        stateless::plan(&context)
    };
    let left = former.iter().filter(|replica| replica.is_live());
    plan.stop
        .extend(left.map(|replica| (replica.replica_id.clone(), StopCause::ContainerDeleted)));
    context.replicas.extend(former);
    context.finish(&mut plan);
    plan
}

impl Context<'_> {
    fn stop_all(&self) -> Plan {
        let cause = if self.container.deleted_since.is_some() {
            StopCause::ContainerDeleted
        } else if self.container.stopped_since.is_some() {
            StopCause::ContainerStopped
        } else {
            StopCause::ScaledDown
        };
        let live = self.replicas.iter().filter(|replica| replica.is_live());
        Plan {
            stop: live.map(|replica| (replica.replica_id.clone(), cause)).collect(),
            ..Plan::default()
        }
    }

    fn is_lost(&self, replica: &Seen<'_>) -> bool {
        liveness::is_lost(replica.machine, self.observed, self.limits, self.now)
    }

    fn is_silent(&self, replica: &Seen<'_>) -> bool {
        replica.machine.health == MachineHealthState::Unhealthy
    }

    /// It stops on a silent machine: it gives no room back, and nobody knows when it is confirmed. While the cluster is frozen
    /// nothing is written off.
    fn is_written_off(&self, replica: &Seen<'_>) -> bool {
        !replica.is_live() && self.is_silent(replica) && self.freeze.is_none()
    }

    fn is_draining(&self, replica: &Seen<'_>) -> bool {
        replica.machine.draining_since.is_some()
    }

    /// The deadline of its machine's drain is over. A silent machine stops nothing, and may still write.
    fn is_forced_off(&self, replica: &Seen<'_>) -> bool {
        let machine = replica.machine;
        let is_over = machine
            .drain_deadline
            .is_some_and(|deadline| self.now.wall >= deadline);
        is_over && self.is_draining(replica) && !self.is_silent(replica)
    }

    /// Ready, and not only in passing: a new one that has failed to start counts when it has stayed up.
    fn serves(&self, replica: &Seen<'_>) -> bool {
        replica.is_ready() && rollout::is_up(self.observed, &self.limits.rollout, self.now, replica)
    }

    /// Runs something else than it should. While a rollout is paused nothing is replaced for it.
    fn is_outdated(&self, replica: &Seen<'_>) -> bool {
        !self.container.is_paused() && self.container.is_outdated(replica)
    }

    /// Certainly serves nothing: it never came up, or went down and waits for its next attempt.
    fn is_down(&self, replica: &Seen<'_>) -> bool {
        self.observed.status(replica).is_some_and(|status| {
            !status.ready
                && (status.recent_crashes >= CRASH_LOOP_MIN
                    || matches!(
                        status.phase,
                        Phase::Assigned
                            | Phase::Image
                            | Phase::Volume
                            | Phase::Network
                            | Phase::Created
                            | Phase::Backoff
                    ))
        })
    }

    fn wait(&self, replica: Option<&Seen<'_>>, reason: WaitReason, since: Timestamp) -> Wait {
        Wait {
            container: self.container.spec.name.clone(),
            replica_id: replica.map(|replica| replica.replica_id.clone()),
            reason,
            since,
        }
    }

    /// What every plan waits for alike: stopping replicas and silent machines; and who is kept.
    fn finish(&self, plan: &mut Plan) {
        for replica in &self.replicas {
            if let Some(stopping) = &replica.stopping {
                let machine_id = replica.machine_id.clone();
                plan.wait
                    .push(self.wait(Some(replica), WaitReason::Gone { machine_id }, stopping.since));
                continue;
            }
            if !plan.stop.iter().any(|(id, _)| *id == replica.replica_id) {
                plan.keep.push(replica.replica_id.clone());
            }
            if let Some(rollout) = self.container.open_rollout()
                && let Some(since) = rollout.paused_since
                && self.container.is_outdated(replica)
            {
                let reason = WaitReason::Paused { rollout: rollout.id };
                plan.wait.push(self.wait(Some(replica), reason, since));
            }
            let squeeze = Squeeze::of(self.world, replica);
            if let Some(squeeze) = squeeze.filter(|_| self.container.wanted() > 0) {
                let reason = WaitReason::Squeezed(Box::new(squeeze));
                plan.wait
                    .push(self.wait(Some(replica), reason, replica.placed_at));
            }
            if self.container.wanted() > 0 && self.is_silent(replica) {
                let machine = replica.machine;
                let machine_id = replica.machine_id.clone();
                let reason = match self.freeze {
                    _ if replica.ordinal.is_some() => WaitReason::Fenced { machine_id },
                    Some(freeze) => WaitReason::Frozen(freeze),
                    None if !self.is_lost(replica) => WaitReason::Grace { machine_id },
                    None => continue,
                };
                plan.wait
                    .push(self.wait(Some(replica), reason, machine.health_since));
            }
        }
    }
}

impl Squeeze {
    /// None for a replica that has all that it desires.
    pub(crate) fn of(world: &World, replica: &Replica) -> Option<Self> {
        let granted = replica.granted?;
        let spec = world.spec_of(replica);
        Some(Self {
            machine_id: replica.machine_id.clone(),
            group: spec.capacity_group.clone(),
            granted,
            desired: spec.resources.desired(),
            is_bound: replica.ordinal.is_some(),
        })
    }

    fn helps(&self) -> String {
        let Self {
            machine_id, group, ..
        } = self;
        let bound = format!("other replicas leave machine {machine_id}");
        if self.is_bound {
            format!("{bound} (its volume keeps it there); or ask for less in resources")
        } else {
            format!("raise maxSize of group {group}; or {bound}; or ask for less in resources")
        }
    }
}

/// What it has of what it desires, where that is less.
impl fmt::Display for Squeeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (granted, desired) = (self.granted, self.desired);
        f.write_str("runs with ")?;
        if granted.cpu < desired.cpu {
            write!(f, "{} of {} vCPU", granted.cpu, desired.cpu)?;
        }
        if granted.cpu < desired.cpu && granted.memory < desired.memory {
            f.write_str(" and ")?;
        }
        if granted.memory < desired.memory {
            write!(
                f,
                "{} of {} of memory",
                granted.memory.rounded(),
                desired.memory.rounded()
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPlace(unplaced) => write!(f, "a machine: {unplaced}"),
            Self::RoomComing => f.write_str("the room of replicas that are stopping"),
            Self::NoRoomToMove(unplaced) => write!(f, "room for its replacement: {unplaced}"),
            Self::Gone { machine_id } => write!(f, "machine {machine_id} to report it gone"),
            Self::FormerGone { machine_id } => {
                write!(f, "its former replica to be gone from machine {machine_id}")
            }
            Self::Fenced { machine_id } => write!(
                f,
                "machine {machine_id}, which is silent and may still write to the replica's volume"
            ),
            Self::Frozen(freeze) => write!(
                f,
                "the end of the freeze: {} of {} machines are unhealthy, so nothing moves",
                freeze.unhealthy, freeze.total
            ),
            Self::Grace { machine_id } => {
                write!(
                    f,
                    "machine {machine_id}, which is silent, to come back before it is replaced"
                )
            }
            Self::Ready { replica_id } => write!(f, "replica {replica_id} to be ready"),
            Self::Ordinal { ordinal } => write!(f, "ordinal {ordinal} to run and be ready"),
            Self::Held => {
                f.write_str("the release of its stop: too many would stop that nobody asked to stop")
            }
            Self::Half => f.write_str(
                "others of its container: of a scaled one no more than half stop at a time, and some have not ended yet or are not ready",
            ),
            Self::Paused { rollout } => write!(f, "rollout {rollout} to be resumed: it is paused"),
            Self::Budget { container } => write!(
                f,
                "container {container} to allow it: its disruptionBudget.maxUnavailable is 0"
            ),
            Self::Squeezed(squeeze) => {
                write!(
                    f,
                    "room on machine {}: it is squeezed, {squeeze}",
                    squeeze.machine_id
                )
            }
        }
    }
}

impl WaitReason {
    /// What would end the wait.
    #[must_use]
    pub fn helps(&self) -> String {
        match self {
            Self::NoPlace(unplaced) | Self::NoRoomToMove(unplaced) => {
                let helps: Vec<String> = unplaced.would_help.iter().map(ToString::to_string).collect();
                helps.join("; or ")
            }
            Self::RoomComing => "nothing to do: the node reports when they are gone".into(),
            Self::Gone { machine_id } | Self::FormerGone { machine_id } => {
                format!("machine {machine_id} reports it gone; if the machine is off for good, remove it")
            }
            Self::Fenced { machine_id } => format!(
                "machine {machine_id} comes back; or, once it is certainly powered off, remove it from the cluster"
            ),
            Self::Frozen(_) => {
                "machines report again (look at the network between them and the scheduler first); \
                 or remove machines that are powered off"
                    .into()
            }
            Self::Grace { machine_id } => {
                format!("machine {machine_id} reports again; else it is replaced when the grace is over")
            }
            Self::Ready { replica_id } => format!("see why replica {replica_id} is not ready"),
            Self::Ordinal { ordinal } => format!("see why ordinal {ordinal} is not ready"),
            Self::Held => {
                "report this as a fault of Berth; if the stops are right, let them happen: berth release"
                    .into()
            }
            Self::Half => "see what the other replicas of the container wait for".into(),
            Self::Paused { .. } => "resume the rollout, or undo it: berth rollout".into(),
            Self::Budget { container } => format!(
                "raise disruptionBudget.maxUnavailable of container {container}; or give the drain a deadline"
            ),
            Self::Squeezed(squeeze) => squeeze.helps(),
        }
    }
}
