//! Which events announce an entry. Pure; whoever appends an entry appends what announces it with it.
//!
//! Scheduler events carry no id of their own: the world names them by their place in the log.

use berth_api::container::ContainerSpec;
use berth_api::event::{
    CapacityTrigger, Event, EventDetails, EventSource, EventType, InvolvedObject, TriggerMetric,
};
use berth_api::id::{ContainerName, MachineId};
use berth_api::machine::MachineSpec;
use berth_api::rest::cluster::CapacityReason;
use berth_api::rest::container::changes;
use berth_api::time::Timestamp;

use crate::autoscale::Metric;
use crate::entry::{CapacityWish, ContainerScaled, Entry, MachineHealthState, Placed, RolloutTurned};
use crate::liveness::Freeze;
use crate::world::{Observed, RolloutTurn, World};

/// The events of an entry that is about to be applied to `world`, as entries to follow it.
#[must_use]
pub fn announce(world: &World, observed: &Observed, entry: &Entry) -> Vec<Entry> {
    let at = entry.at();
    if let Entry::CapacityWished(wish) = entry {
        return wished(world, wish).into_iter().map(recorded).collect();
    }
    let event = match entry {
        Entry::MachineRegistered {
            spec, subnet_index, ..
        } => Some(registered(world, spec, *subnet_index, at)),
        Entry::MachineHealthChanged {
            machine_id, state, ..
        } => health_changed(world, observed, machine_id, *state, at),
        Entry::MachineDraining { machine_id, .. } => draining(world, machine_id, at),
        Entry::ContainerPut { spec, revision, .. } => {
            return put(world, spec, at)
                .into_iter()
                .chain(rollout_started(world, spec, *revision, at))
                .map(recorded)
                .collect();
        }
        Entry::ContainerStopped { container, .. } => {
            let details = EventDetails::ContainerStopped {};
            Some(told(container, "was stopped", details, at))
        }
        Entry::ContainerStarted { container, .. } => {
            let details = EventDetails::ContainerStarted {};
            Some(told(container, "was started", details, at))
        }
        Entry::ContainerDeleted { container, .. } => {
            let details = EventDetails::ContainerDeleted {
                replicas_removed: world.replicas_of(container).count() as u64,
            };
            Some(told(container, "was deleted", details, at))
        }
        Entry::FreezeChanged { .. } | Entry::StopsHeld { .. } => alarm(world, entry, at),
        Entry::RolloutPaused { .. }
        | Entry::RolloutResumed { .. }
        | Entry::RolloutProven { .. }
        | Entry::StopsReleased { .. }
        | Entry::RolloutStalled { .. }
        | Entry::RolloutCompleted { .. }
        | Entry::RolloutTurned(_) => rollout(world, entry, at),
        Entry::UnplacedChanged { container, count, .. } => unplaced(world, container, *count, at),
        Entry::ReplicaPlaced(placed) => Some(scheduled(world, placed)),
        Entry::ContainerScaled(scaled) => rescaled(world, scaled),
        Entry::ClusterCreated { .. }
        | Entry::ClusterDeleted { .. }
        | Entry::GroupsChanged { .. }
        | Entry::TokenRotated { .. }
        | Entry::TokensRevoked { .. }
        | Entry::MachineRemoved { .. }
        | Entry::MachineDrainCancelled { .. }
        | Entry::MachineDrainForced { .. }
        | Entry::ReplicaResized { .. }
        | Entry::ReplicaStopping { .. }
        | Entry::ReplicaGone { .. }
        | Entry::CapacityWished(_)
        | Entry::EventRecorded { .. }
        | Entry::EpochStarted { .. }
        | Entry::WriteKept(_) => None,
    };
    event.into_iter().map(recorded).collect()
}

/// The wire knows processor and memory as triggers; requests and their latency are told as the first, and named in the text.
fn rescaled(world: &World, scaled: &ContainerScaled) -> Option<Event> {
    let before = world.container(&scaled.container)?.count;
    let count = scaled.count;
    let because = scaled.metric.map_or_else(
        || "for its bounds".to_owned(),
        |metric| format!("{metric} at {} % of its target", scaled.of_target_permille / 10),
    );
    let message = format!(
        "container {} goes from {before} to {count} replicas: {because}",
        scaled.container
    );
    let details = if count > before {
        EventDetails::ScaledUp {
            replicas_added: u64::from(count - before),
            new_replica_count: count.into(),
            trigger_metric: if scaled.metric == Some(Metric::Memory) {
                TriggerMetric::Memory
            } else {
                TriggerMetric::Cpu
            },
            utilization_percent: percent(scaled.of_target_permille),
        }
    } else {
        EventDetails::ScaledDown {
            replicas_removed: u64::from(before - count),
            new_replica_count: count.into(),
        }
    };
    Some(event(
        EventType::Info,
        message,
        object(&scaled.container),
        details,
        scaled.at,
    ))
}

/// Of the target; what is beyond its tenfold is told as that.
fn percent(permille: u64) -> f64 {
    f64::from(u32::try_from(permille.min(10_000)).unwrap_or(10_000)) / 10.0
}

/// What concerns a whole cluster.
fn alarm(world: &World, entry: &Entry, at: Timestamp) -> Option<Event> {
    match entry {
        Entry::FreezeChanged {
            is_frozen,
            unhealthy,
            total,
            ..
        } => {
            let freeze = Freeze {
                unhealthy: *unhealthy,
                total: *total,
            };
            Some(cluster_wide_failure(world, *is_frozen, freeze, at))
        }
        Entry::StopsHeld { count, .. } => Some(stops_held(world, *count, at)),
        _ => None,
    }
}

/// A freeze began or ended. The public client knows one kind of event for both.
fn cluster_wide_failure(world: &World, is_frozen: bool, freeze: Freeze, at: Timestamp) -> Event {
    let details = EventDetails::ClusterWideFailure {
        unhealthy_machine_count: freeze.unhealthy.into(),
        total_machine_count: freeze.total.into(),
        unhealthy_percent: f64::from(freeze.unhealthy) * 100.0 / f64::from(freeze.total.max(1)),
    };
    let cluster = InvolvedObject::Cluster(world.spec().cluster_id.to_string());
    let (kind, message) = if is_frozen {
        let message = "too many machines are unhealthy: nothing moves until they are back";
        (EventType::Error, message)
    } else {
        let message = "the freeze has ended: enough machines are back, were removed or count as lost";
        (EventType::Info, message)
    };
    event(kind, message.to_owned(), cluster, details, at)
}

/// The guard began or ceased to hold stops. The public client knows no kind of event for it: told as a failure of the cluster
/// in which no machine is unhealthy.
fn stops_held(world: &World, count: u32, at: Timestamp) -> Event {
    let details = EventDetails::ClusterWideFailure {
        unhealthy_machine_count: 0,
        total_machine_count: world.machines().len() as u64,
        unhealthy_percent: 0.0,
    };
    let cluster = InvolvedObject::Cluster(world.spec().cluster_id.to_string());
    let (kind, message) = if count > 0 {
        let message = format!(
            "{count} healthy replicas would stop and nobody has asked for it: they are held until an operator releases them"
        );
        (EventType::Error, message)
    } else {
        (EventType::Info, "no stops are held any more".to_owned())
    };
    event(kind, message, cluster, details, at)
}

fn recorded(event: Event) -> Entry {
    Entry::EventRecorded {
        event: Box::new(event),
    }
}

fn event(
    kind: EventType,
    message: String,
    involved_object: InvolvedObject,
    details: EventDetails,
    at: Timestamp,
) -> Event {
    Event {
        event_id: String::new(),
        kind,
        message,
        first_timestamp: at,
        last_timestamp: at,
        count: 1,
        involved_object,
        source: EventSource::Scheduler,
        details,
    }
}

fn machine(id: &MachineId) -> InvolvedObject {
    InvolvedObject::Machine(id.to_string())
}

fn object(container: &ContainerName) -> InvolvedObject {
    InvolvedObject::Container(container.to_string())
}

fn told(container: &ContainerName, words: &str, details: EventDetails, at: Timestamp) -> Event {
    let message = format!("container {container} {words}");
    event(EventType::Info, message, object(container), details, at)
}

fn registered(world: &World, spec: &MachineSpec, subnet_index: u32, at: Timestamp) -> Event {
    let cidr = world.spec().subnet(subnet_index).map(|cidr| cidr.to_string());
    let details = EventDetails::MachineRegistered {
        capacity_group: spec.capacity_group.to_string(),
        zone: spec.zone.to_string(),
        vpc_ip: spec.vpc_ip.to_string(),
        container_cidr: cidr.unwrap_or_default(),
    };
    let message = format!(
        "machine {} registered in group {}",
        spec.machine_id, spec.capacity_group
    );
    event(EventType::Info, message, machine(&spec.machine_id), details, at)
}

fn health_changed(
    world: &World,
    observed: &Observed,
    id: &MachineId,
    state: MachineHealthState,
    at: Timestamp,
) -> Option<Event> {
    let known = world.machine(id)?;
    match state {
        MachineHealthState::Initializing => None,
        MachineHealthState::Running => {
            let elapsed = at.since(known.health_since).as_millis();
            let details = EventDetails::MachineReady {
                peer_count: world.machines().len().saturating_sub(1) as u64,
                transition_time_ms: u64::try_from(elapsed).unwrap_or(u64::MAX),
            };
            let message = match known.health {
                MachineHealthState::Unhealthy => format!("machine {id} is back"),
                MachineHealthState::Initializing | MachineHealthState::Running => {
                    format!("machine {id} is ready")
                }
            };
            Some(event(EventType::Info, message, machine(id), details, at))
        }
        MachineHealthState::Unhealthy => {
            let heard = observed.machines.get(id).and_then(|machine| machine.heartbeat_at);
            let details = EventDetails::MachineUnhealthy {
                seconds_since_heartbeat: at.since(heard.unwrap_or(known.health_since)).as_secs(),
                replica_count: known.replicas.len() as u64,
            };
            let message = format!("machine {id} is silent");
            Some(event(EventType::Error, message, machine(id), details, at))
        }
    }
}

fn draining(world: &World, id: &MachineId, at: Timestamp) -> Option<Event> {
    let known = world
        .machine(id)
        .filter(|machine| machine.draining_since.is_none())?;
    let details = EventDetails::MachineDraining {
        replica_count: known.replicas.len() as u64,
    };
    let message = format!("machine {id} is draining");
    Some(event(EventType::Info, message, machine(id), details, at))
}

fn put(world: &World, spec: &ContainerSpec, at: Timestamp) -> Option<Event> {
    let known = world
        .container(&spec.name)
        .filter(|known| known.deleted_since.is_none());
    let Some(known) = known else {
        let details = EventDetails::ContainerCreated {
            capacity_group: spec.capacity_group.to_string(),
            replicas: spec.scale.initial(),
            stateful: spec.stateful,
        };
        let message = format!("container {} was created", spec.name);
        return Some(event(EventType::Info, message, object(&spec.name), details, at));
    };
    let changes = changes(known.declared(), spec);
    if changes.is_empty() {
        return None;
    }
    let message = format!("container {} was updated: {}", spec.name, changes.join(", "));
    let details = EventDetails::ContainerUpdated { changes };
    Some(event(EventType::Info, message, object(&spec.name), details, at))
}

/// The public client reads no other kinds of events than those it knows: what happens to rollouts is told as an update of
/// their container, with the words `rolloutStarted`, `rolloutPaused` and so on as the only change.
fn told_rollout(container: &ContainerName, word: &str, message: String, at: Timestamp) -> Event {
    let details = EventDetails::ContainerUpdated {
        changes: vec![format!("rollout{word}")],
    };
    event(EventType::Info, message, object(container), details, at)
}

/// What happens to the rollout under way.
fn rollout(world: &World, entry: &Entry, at: Timestamp) -> Option<Event> {
    let (container, word, words) = match entry {
        Entry::RolloutPaused { container, .. } => (container, "Paused", "was paused".to_owned()),
        Entry::RolloutResumed { container, .. } => (container, "Resumed", "was resumed".to_owned()),
        Entry::RolloutCompleted { container, .. } => (container, "Completed", "is completed".to_owned()),
        Entry::RolloutStalled {
            container, reason, ..
        } => {
            let words = format!("cannot go on and has nothing to go back to: {reason}");
            (container, "Stalled", words)
        }
        Entry::RolloutTurned(turned) => return turned_event(world, turned),
        _ => return None,
    };
    let id = world.container(container)?.revision;
    let message = format!("rollout {id} of container {container} {words}");
    let event = told_rollout(container, word, message, at);
    let is_stalled = matches!(entry, Entry::RolloutStalled { .. });
    let kind = if is_stalled { EventType::Error } else { event.kind };
    Some(Event { kind, ..event })
}

/// A change that replicas see.
fn rollout_started(world: &World, spec: &ContainerSpec, revision: u64, at: Timestamp) -> Option<Event> {
    let known = world
        .container(&spec.name)
        .filter(|known| known.deleted_since.is_none() && known.revision != revision)?;
    let changes = changes(known.declared(), spec).join(", ");
    let message = format!("rollout {revision} of container {} started: {changes}", spec.name);
    Some(told_rollout(&spec.name, "Started", message, at))
}

fn turned_event(world: &World, turned: &RolloutTurned) -> Option<Event> {
    let name = &turned.container;
    let known = world.container(name)?;
    let (before, after) = (known.revision, turned.revision);
    let (kind, word, message) = match turned.turn {
        RolloutTurn::RolledBack => {
            let reason = turned.reason.as_deref().unwrap_or("it failed");
            let message =
                format!("rollout {before} of container {name} was rolled back by rollout {after}: {reason}");
            (EventType::Error, "RolledBack", message)
        }
        RolloutTurn::Undone => {
            let message = format!("rollout {before} of container {name} was undone by rollout {after}");
            (EventType::Info, "Undone", message)
        }
        RolloutTurn::Retried => {
            let message = format!("rollout {after} of container {name} tries again what was rolled back");
            (EventType::Info, "Retried", message)
        }
    };
    Some(Event {
        kind,
        ..told_rollout(name, word, message, turned.at)
    })
}

/// A wish that rises, falls or is bounded. The texts hold no figures, so that repeats are merged.
fn wished(world: &World, wish: &CapacityWish) -> Vec<Event> {
    let Some(group) = world.spec().group(&wish.group_id) else {
        return vec![];
    };
    let known = world.wish(&wish.group_id);
    let say = |kind, message: &str, details| {
        let object = InvolvedObject::CapacityGroup(wish.group_id.to_string());
        event(kind, message.to_owned(), object, details, wish.at)
    };
    let mut events = vec![];
    let trigger = match wish.reason {
        _ if wish.desired <= known.desired || wish.desired <= wish.running => None,
        CapacityReason::HighUtilization => Some((
            CapacityTrigger::HighUtilization,
            "more machines are wanted: little room is left on those that run",
        )),
        _ if wish.unplaced > 0 => Some((
            CapacityTrigger::UnschedulableReplicas,
            "more machines are wanted: replicas have no place",
        )),
        _ => None,
    };
    if let Some((trigger, message)) = trigger {
        let details = EventDetails::CapacityGroupScaleUp {
            current_machines: wish.running,
            desired_machines: wish.desired,
            trigger,
            unschedulable_replicas: (wish.unplaced > 0).then_some(wish.unplaced),
            utilization_percent: wish.utilization_percent.map(f64::from),
        };
        events.push(say(EventType::Info, message, details));
    }
    if wish.reason == CapacityReason::LowUtilization && wish.desired < known.desired {
        let details = EventDetails::CapacityGroupScaleDown {
            current_machines: wish.running,
            desired_machines: wish.desired,
        };
        let message = "fewer machines are wanted: what runs fits on those that stay";
        events.push(say(EventType::Info, message, details));
    }
    if wish.reason == CapacityReason::AtMaxSize && known.reason != CapacityReason::AtMaxSize {
        let details = EventDetails::CapacityGroupAtMaxSize {
            max_size: group.max_size,
            unschedulable_replicas: wish.unplaced,
        };
        let message = "the group may have no more machines and could do with some";
        events.push(say(EventType::Warning, message, details));
    }
    let is_at_min = wish.desired == group.min_size && group.min_size > 0;
    let has_moved = wish.desired < known.desired || wish.running < group.min_size;
    if is_at_min && has_moved && wish.reason != known.reason {
        let details = EventDetails::CapacityGroupAtMinSize {
            min_size: group.min_size,
        };
        let message = "the group is to have its minimum of machines";
        events.push(say(EventType::Info, message, details));
    }
    events
}

fn unplaced(world: &World, name: &ContainerName, count: u32, at: Timestamp) -> Option<Event> {
    let known = world.container(name).filter(|_| count > 0)?;
    let zones = known
        .spec
        .volumes
        .iter()
        .filter_map(|volume| volume.volume.zone());
    let details = EventDetails::FailedScheduling {
        attempted_replicas: count,
        capacity_group: known.spec.capacity_group.to_string(),
        required_zone: zones.map(ToString::to_string).next(),
    };
    let message = format!(
        "no machine of group {} can take more of {name}",
        known.spec.capacity_group
    );
    Some(event(EventType::Warning, message, object(name), details, at))
}

fn scheduled(world: &World, placed: &Placed) -> Event {
    let zone = world
        .machine(&placed.machine_id)
        .map(|machine| machine.spec.zone.to_string());
    let details = EventDetails::Scheduled {
        container_name: placed.container.to_string(),
        machine_id: placed.machine_id.to_string(),
        zone: zone.unwrap_or_default(),
        ip: placed.ip.to_string(),
        ordinal: placed.ordinal,
    };
    let message = format!(
        "replica {} goes to machine {}",
        placed.replica_id, placed.machine_id
    );
    let replica = InvolvedObject::Replica(placed.replica_id.to_string());
    event(EventType::Info, message, replica, details, placed.at)
}
