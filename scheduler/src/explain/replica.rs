//! Explains replicas: one answer for every phase of a placed one, and for those without a place.

use berth_api::explain::{Explanation, Subject, Waiting};
use berth_api::id::ReplicaId;
use berth_api::replica::{Phase, ReplicaStatus};

use super::{Context, filters, serde_word, waiting};
use crate::entry::{Entry, MachineHealthState};
use crate::reconcile::{Squeeze, WaitReason};
use crate::status;
use crate::world::{Container, Readiness, Replica};

impl Context<'_> {
    pub(super) fn replica(&self, id: &ReplicaId) -> Option<Explanation> {
        match self.world.replica(id) {
            Some(replica) => Some(self.placed(replica)),
            None => self.unplaced(id),
        }
    }

    fn placed(&self, replica: &Replica) -> Explanation {
        let report = self.observed.status(replica);
        let about = |wait: &&crate::reconcile::Wait| wait.replica_id.as_ref() == Some(&replica.replica_id);
        let mut waits: Vec<Waiting> = self
            .waits_of(&replica.container)
            .filter(about)
            .map(waiting)
            .collect();
        waits.extend(self.own_waits(replica));
        waits.extend(self.last_wait(replica));
        if waits.is_empty() {
            waits.extend(self.heard_again(replica));
        }
        let no_room = self
            .waits_of(&replica.container)
            .filter(about)
            .find_map(|wait| match &wait.reason {
                WaitReason::NoPlace(unplaced) | WaitReason::NoRoomToMove(unplaced) => Some(unplaced),
                _ => None,
            });
        Explanation {
            kind: Subject::Replica,
            id: replica.replica_id.to_string(),
            state: serde_word(&status::replica_status(self.observed, replica)),
            since: self.since(replica, report),
            summary: self.summary(replica, report),
            waits,
            filters: no_room.map(|unplaced| filters(unplaced)).unwrap_or_default(),
            facts: self.facts(replica, report),
        }
    }

    fn since(&self, replica: &Replica, report: Option<&ReplicaStatus>) -> Option<berth_api::time::Timestamp> {
        let stopping = replica.stopping.map(|stopping| stopping.since);
        let reported =
            report.and_then(|report| report.wait.as_ref().map(|wait| wait.since).or(report.started_at));
        stopping.or(reported).or(Some(replica.placed_at))
    }

    /// What a live replica waits for by its node's word, or for its node's first word.
    pub(super) fn own_waits(&self, replica: &Replica) -> Option<Waiting> {
        let machine = self.world.machine(&replica.machine_id)?;
        let Some(report) = self.observed.status(replica) else {
            return (machine.health != MachineHealthState::Unhealthy).then(|| self.first_word(replica));
        };
        // One that runs in no accepted set has no failing check, and yet nobody finds it by name.
        if report.phase == Phase::Healthy && report.ready && report.wait.is_none() {
            return None;
        }
        let wait = report.wait.as_ref();
        let reason = wait.map_or_else(
            || match report.phase {
                Phase::Healthy => format!("machine {} to call it ready", replica.machine_id),
                phase => phase.to_string(),
            },
            |wait| wait.reason.clone(),
        );
        Some(Waiting {
            what: format!("replica {} waits for {reason}", replica.replica_id),
            since: wait.map_or(replica.placed_at, |wait| wait.since),
            next_attempt: wait.and_then(|wait| wait.next_attempt),
            helps: helps(report),
        })
    }

    /// Of a replica that is forgotten at this moment.
    fn last_wait(&self, replica: &Replica) -> Option<Waiting> {
        let id = &replica.replica_id;
        let is_gone =
            |entry: &Entry| matches!(entry, Entry::ReplicaGone { replica_id, .. } if replica_id == id);
        self.decision.entries.iter().any(is_gone).then(|| Waiting {
            what: format!("replica {id} waits to be forgotten: nothing is left of it"),
            since: self.now.wall,
            next_attempt: None,
            helps: "nothing to do: it is forgotten in a moment".to_owned(),
        })
    }

    /// Of a replica on a machine that was silent and is heard again: the next decision takes it for running.
    pub(super) fn heard_again(&self, replica: &Replica) -> Option<Waiting> {
        let machine = self.world.machine(&replica.machine_id)?;
        let is_silent = machine.health == MachineHealthState::Unhealthy;
        let heard = self.observed.machines.get(&replica.machine_id);
        let heard_at = heard.and_then(|heard| heard.heartbeat_at);
        is_silent.then(|| Waiting {
            what: format!(
                "replica {} waits for machine {} to be taken for running again: it was silent and is heard again",
                replica.replica_id, replica.machine_id
            ),
            since: heard_at.unwrap_or(replica.placed_at),
            next_attempt: None,
            helps: "nothing to do: it is decided in a moment".to_owned(),
        })
    }

    /// The node has said nothing of the replica: has it the set that lists it?
    fn first_word(&self, replica: &Replica) -> Waiting {
        let id = &replica.machine_id;
        let observed = self.observed.machines.get(id);
        let is_linked = observed.is_some_and(|machine| machine.is_linked);
        let generation = self.world.machine(id).map_or(0, |machine| machine.generation);
        let position = (self.world.epoch(), generation);
        let has_set = observed
            .and_then(|machine| machine.accepted)
            .is_some_and(|accepted| accepted >= position);
        let (what, helps) = if has_set {
            (
                "to report on it",
                "nothing to do: the next status of the machine tells",
            )
        } else if is_linked {
            (
                "to accept the assignment set that lists it",
                "see explain of the machine: does it refuse its set?",
            )
        } else {
            (
                "to connect and take its assignment set",
                "see explain of the machine: is its daemon running?",
            )
        };
        Waiting {
            what: format!("replica {} waits for machine {id} {what}", replica.replica_id),
            since: replica.placed_at,
            next_attempt: None,
            helps: helps.to_owned(),
        }
    }

    fn summary(&self, replica: &Replica, report: Option<&ReplicaStatus>) -> String {
        let id = &replica.machine_id;
        if let Some(stopping) = &replica.stopping {
            let picked = stopping
                .picked
                .map(|picked| format!("; this one because {picked}"));
            return format!(
                "it stops because {}{}",
                stopping.cause,
                picked.unwrap_or_default()
            );
        }
        let is_silent = self
            .world
            .machine(id)
            .is_some_and(|machine| machine.health == MachineHealthState::Unhealthy);
        let Some(report) = report else {
            return format!("it was given to machine {id}, which has not reported on it yet");
        };
        let squeeze = Squeeze::of(self.world, replica).map(|squeeze| format!("; it is squeezed, {squeeze}"));
        let text = match report.phase {
            Phase::Assigned => format!("machine {id} has accepted it and starts with it"),
            Phase::Image => "its image is being pulled".into(),
            Phase::Volume => "its volumes are being made and mounted".into(),
            Phase::Network => "its network is being made".into(),
            Phase::Created => "its container exists and is about to start".into(),
            Phase::Started => "it runs and has not passed its health check yet".into(),
            Phase::Healthy if report.ready => format!("it runs and is ready, run {}", report.run),
            Phase::Healthy => format!("it runs and is not ready, run {}", report.run),
            Phase::Unhealthy | Phase::Backoff => status::failure_message(replica, report),
            Phase::Stopping => "it is being stopped".into(),
            Phase::Releasing => "its process has ended; network and volumes are being released".into(),
            Phase::Gone => format!("nothing is left of it on machine {id}"),
        };
        let text = format!("{text}{}", squeeze.unwrap_or_default());
        if is_silent {
            format!("machine {id} is silent; when it was last heard: {text}")
        } else {
            text
        }
    }

    fn facts(&self, replica: &Replica, report: Option<&ReplicaStatus>) -> Vec<(String, String)> {
        let spec = self.world.spec_of(replica);
        let mut facts = vec![
            ("container".to_owned(), replica.container.to_string()),
            ("machine".to_owned(), replica.machine_id.to_string()),
            ("address".to_owned(), replica.ip.to_string()),
            ("image".to_owned(), spec.image.clone()),
            ("revision".to_owned(), replica.revision.to_string()),
            ("placed".to_owned(), replica.placed_at.to_string()),
        ];
        if let Some(chosen) = &replica.chosen {
            facts.push(("why there".to_owned(), chosen.to_string()));
        }
        let (desired, granted) = (spec.resources.desired(), replica.granted);
        let has = granted.unwrap_or(desired);
        let squeezed = if granted.is_some() { ", squeezed" } else { "" };
        facts.push((
            "granted".to_owned(),
            format!(
                "{} of {} vCPU, {} of {} of memory{squeezed}",
                has.cpu,
                desired.cpu,
                has.memory.rounded(),
                desired.memory.rounded()
            ),
        ));
        facts.extend(
            replica
                .devices_in_words(spec)
                .map(|devices| ("gpu".to_owned(), devices)),
        );
        if let Some(relieved) = &replica.relieves {
            facts.push((
                "in the stead of".to_owned(),
                format!("{relieved}, which was squeezed"),
            ));
        }
        if self.world.is_outdated(replica) {
            facts.push((
                "outdated".to_owned(),
                "the container has a newer revision".to_owned(),
            ));
        }
        if let Some(host_port) = replica.host_port {
            facts.push(("host port".to_owned(), host_port.to_string()));
        }
        if let Some(report) = report {
            facts.push(("run".to_owned(), report.run.to_string()));
            let ready = self.observed.readiness(self.world, replica) == Readiness::Ready;
            facts.push(("ready".to_owned(), if ready { "yes" } else { "no" }.to_owned()));
            if let Some(cause) = &report.cause {
                facts.push(("last failure".to_owned(), cause.to_string()));
            }
            if let Some(at) = report.failed_at {
                facts.push(("failed at".to_owned(), at.to_string()));
            }
        }
        facts
    }

    /// A replica that is wanted and has no place: an ordinal by its id, or one of a stateless container.
    fn unplaced(&self, id: &ReplicaId) -> Option<Explanation> {
        let container = self.container_missing(id)?;
        let name = &container.spec.name;
        let about = |wait: &&crate::reconcile::Wait| match &wait.replica_id {
            Some(other) => other == id || !container.spec.stateful,
            None => true,
        };
        let waits: Vec<Waiting> = self.waits_of(name).filter(about).take(1).map(waiting).collect();
        let why = self
            .waits_of(name)
            .filter(about)
            .find_map(|wait| match &wait.reason {
                WaitReason::NoPlace(unplaced) => Some(unplaced),
                _ => None,
            });
        let since = container.unplaced_since.unwrap_or(container.updated_at);
        let summary = why.map_or_else(
            || "it is wanted and not placed yet".to_owned(),
            |unplaced| format!("it has no machine: {unplaced}"),
        );
        let pending = Waiting {
            what: "the next decision".into(),
            since,
            next_attempt: Some(self.now.wall),
            helps: "nothing to do".into(),
        };
        Some(Explanation {
            kind: Subject::Replica,
            id: id.to_string(),
            state: "pending".into(),
            since: Some(since),
            summary,
            waits: if waits.is_empty() { vec![pending] } else { waits },
            filters: why.map(|unplaced| filters(unplaced)).unwrap_or_default(),
            facts: vec![
                ("container".into(), name.to_string()),
                ("image".into(), container.spec.image.clone()),
                ("group".into(), container.spec.capacity_group.to_string()),
            ],
        })
    }

    fn container_missing(&self, id: &ReplicaId) -> Option<&Container> {
        let mut containers = self.world.containers().values();
        containers.find(|container| {
            let name = &container.spec.name;
            if container.spec.stateful {
                (0..container.wanted()).any(|ordinal| ReplicaId::stateful(name, ordinal) == *id)
            } else {
                let rest = id.as_str().strip_prefix(name.as_str());
                container.unplaced > 0 && rest.is_some_and(|rest| rest.starts_with('-'))
            }
        })
    }
}

/// What would help a replica, by what its node says of it.
fn helps(report: &ReplicaStatus) -> String {
    use berth_api::replica::Cause;
    match (&report.cause, report.phase) {
        (Some(Cause::OutOfMemory), _) => {
            "raise resources.memory.desired, or make the program use less".into()
        }
        (Some(Cause::Exit { .. } | Cause::Signal { .. }), _) => "read its log: berth logs".into(),
        (Some(Cause::Image { .. }), _) => "correct the image, its name or tag, or the access to it".into(),
        (Some(Cause::Health { .. }), _) | (None, Phase::Unhealthy) => {
            "see what the health check or probe is answered; read its log: berth logs".into()
        }
        (Some(Cause::Infrastructure { .. }), _) => "see explain of its machine".into(),
        (None, Phase::Started) => "nothing to do unless it lasts: the health check or probe decides".into(),
        (None, _) => "nothing to do unless it lasts: the node is at work on it".into(),
    }
}
