//! The events of one cluster: what entries mean to people, and a bounded book of what happened.
//!
//! The book is soft state: it is bounded, newest last, and starts empty with the process.

use std::collections::VecDeque;

use berth_api::container::ContainerSpec;
use berth_api::event::{Event, EventDetails, EventSource, EventType, InvolvedObject};
use berth_api::id::{ClusterId, MachineId};
use berth_api::rest::EventFilter;
use berth_api::rest::container::changes;
use berth_api::time::Timestamp;

use crate::entry::{Entry, MachineHealthState};
use crate::liveness::Freeze;
use crate::world::{Now, World};

/// Events kept of a cluster: at about 500 bytes each that is 1 MiB.
const EVENTS_MAX: usize = 2000;
/// Repeats are merged when the first is among the newest of this many: an older one has scrolled away.
const MERGE_WINDOW: usize = 200;

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct EventBook {
    events: VecDeque<Event>,
    recorded_count: u64,
}

impl EventBook {
    /// Adds an event, or counts it as a repeat of one already there.
    pub(super) fn record(&mut self, mut event: Event) {
        self.recorded_count += 1;
        if event.event_id.is_empty() {
            event.event_id = format!("{:x}-{}", event.first_timestamp.millis(), self.recorded_count);
        }
        let newest = self.events.len().saturating_sub(MERGE_WINDOW);
        let repeated = self
            .events
            .iter()
            .enumerate()
            .skip(newest)
            .rev()
            .find(|(_, known)| event.is_repeat_of(known))
            .map(|(index, _)| index);
        if let Some(mut known) = repeated.and_then(|index| self.events.remove(index)) {
            known.merge(event);
            self.events.push_back(known);
            return;
        }
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Newest first.
    pub(super) fn list(&self, filter: &EventFilter) -> Vec<Event> {
        self.events
            .iter()
            .rev()
            .filter(|event| filter.matches(event))
            .take(filter.limit)
            .cloned()
            .collect()
    }
}

/// An event of the scheduler itself. The book gives it its id.
fn event(kind: EventType, object: InvolvedObject, message: String, details: EventDetails, now: Now) -> Event {
    Event {
        event_id: String::new(),
        kind,
        message,
        first_timestamp: now.wall,
        last_timestamp: now.wall,
        count: 1,
        involved_object: object,
        source: EventSource::Scheduler,
        details,
    }
}

/// What an entry, already durable, means to people. `before` and `after` are the worlds around the whole append.
pub(super) fn of_entry(before: &World, after: &World, entry: &Entry, now: Now) -> Option<Event> {
    use EventType::{Info, Warning};
    let (kind, object, message, details) = match entry {
        Entry::MachineRegistered { spec, .. } => {
            let network = after.machine(&spec.machine_id)?.network;
            let details = EventDetails::MachineRegistered {
                capacity_group: spec.capacity_group.to_string(),
                zone: spec.zone.to_string(),
                vpc_ip: spec.vpc_ip.to_string(),
                container_cidr: network.cidr.to_string(),
            };
            let message = format!(
                "machine {} registered with network {}",
                spec.machine_id, network.cidr
            );
            (
                Info,
                InvolvedObject::Machine(spec.machine_id.to_string()),
                message,
                details,
            )
        }
        Entry::MachineDraining { machine_id, .. } => {
            let replica_count = count(after.replicas_on(machine_id).count());
            let message = format!("machine {machine_id} drains {replica_count} replicas");
            let details = EventDetails::MachineDraining { replica_count };
            (
                Info,
                InvolvedObject::Machine(machine_id.to_string()),
                message,
                details,
            )
        }
        Entry::MachineHealthChanged {
            machine_id,
            state,
            at,
        } => return machine_health(before, after, machine_id, *state, *at, now),
        Entry::ContainerPut { spec, .. } => return container_put(before, spec, now),
        Entry::ContainerStopped { container, .. } => {
            let message = format!("container {container} was stopped");
            let object = InvolvedObject::Container(container.to_string());
            (Info, object, message, EventDetails::ContainerStopped {})
        }
        Entry::ContainerStarted { container, .. } => {
            let message = format!("container {container} was started");
            let object = InvolvedObject::Container(container.to_string());
            (Info, object, message, EventDetails::ContainerStarted {})
        }
        Entry::ContainerDeleted { container, .. } => {
            let replicas_removed = count(before.replicas_of(container).count());
            let message = format!("container {container} was deleted");
            let object = InvolvedObject::Container(container.to_string());
            (
                Info,
                object,
                message,
                EventDetails::ContainerDeleted { replicas_removed },
            )
        }
        Entry::UnplacedChanged { container, count, .. } if *count > 0 => {
            let known = after.container(container)?;
            let capacity_group = known.spec.capacity_group.to_string();
            let message =
                format!("{count} replicas of container {container} find no place in group {capacity_group}");
            let details = EventDetails::FailedScheduling {
                attempted_replicas: *count,
                capacity_group,
                required_zone: None,
            };
            (
                Warning,
                InvolvedObject::Container(container.to_string()),
                message,
                details,
            )
        }
        Entry::ReplicaPlaced(placed) => {
            let zone = after.machine(&placed.machine_id)?.spec.zone.to_string();
            let message = format!(
                "replica {} was placed on machine {}",
                placed.replica_id, placed.machine_id
            );
            let details = EventDetails::Scheduled {
                container_name: placed.container.to_string(),
                machine_id: placed.machine_id.to_string(),
                zone,
                ip: placed.ip.to_string(),
                ordinal: placed.ordinal,
            };
            (
                Info,
                InvolvedObject::Replica(placed.replica_id.to_string()),
                message,
                details,
            )
        }
        // No word of the wire API says these; they are in the log of the program and in `explain`.
        Entry::ClusterCreated { .. }
        | Entry::ClusterDeleted { .. }
        | Entry::GroupsChanged { .. }
        | Entry::TokenRotated { .. }
        | Entry::TokensRevoked { .. }
        | Entry::MachineRemoved { .. }
        | Entry::MachineDrainCancelled { .. }
        | Entry::UnplacedChanged { .. }
        | Entry::ReplicaStopping { .. }
        | Entry::ReplicaGone { .. }
        | Entry::EpochStarted { .. } => return None,
    };
    Some(event(kind, object, message, details, now))
}

fn machine_health(
    before: &World,
    after: &World,
    id: &MachineId,
    state: MachineHealthState,
    at: Timestamp,
    now: Now,
) -> Option<Event> {
    let since = before.machine(id)?.health_since;
    let object = InvolvedObject::Machine(id.to_string());
    match state {
        MachineHealthState::Initializing => None,
        MachineHealthState::Running => {
            let details = EventDetails::MachineReady {
                peer_count: count(after.machines().len().saturating_sub(1)),
                transition_time_ms: u64::try_from(at.since(since).as_millis()).unwrap_or(u64::MAX),
            };
            let message = format!("machine {id} is running");
            Some(event(EventType::Info, object, message, details, now))
        }
        MachineHealthState::Unhealthy => {
            let replica_count = count(after.replicas_on(id).count());
            let details = EventDetails::MachineUnhealthy {
                seconds_since_heartbeat: at.since(since).as_secs(),
                replica_count,
            };
            let message = format!("machine {id} is silent; {replica_count} replicas are on it");
            Some(event(EventType::Error, object, message, details, now))
        }
    }
}

fn container_put(before: &World, spec: &ContainerSpec, now: Now) -> Option<Event> {
    let name = &spec.name;
    let object = InvolvedObject::Container(name.to_string());
    let known = before
        .container(name)
        .filter(|known| known.deleted_since.is_none());
    let (message, details) = match known {
        None => {
            let details = EventDetails::ContainerCreated {
                capacity_group: spec.capacity_group.to_string(),
                replicas: spec.scale.initial(),
                stateful: spec.stateful,
            };
            (format!("container {name} was created"), details)
        }
        Some(known) => {
            let changes = changes(&known.spec, spec);
            let message = format!("container {name} was updated: {}", changes.join(", "));
            (message, EventDetails::ContainerUpdated { changes })
        }
    };
    Some(event(EventType::Info, object, message, details, now))
}

/// The begin of a freeze.
pub(super) fn of_freeze(cluster: &ClusterId, freeze: &Freeze, now: Now) -> Event {
    let (unhealthy, total) = (u64::from(freeze.unhealthy), u64::from(freeze.total));
    let unhealthy_percent = f64::from(freeze.unhealthy) * 100.0 / f64::from(freeze.total.max(1));
    event(
        EventType::Error,
        InvolvedObject::Cluster(cluster.to_string()),
        format!(
            "{unhealthy} of {total} machines are silent: no replica moves until they are back or removed"
        ),
        EventDetails::ClusterWideFailure {
            unhealthy_machine_count: unhealthy,
            total_machine_count: total,
            unhealthy_percent,
        },
        now,
    )
}

fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
