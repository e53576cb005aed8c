//! Why: what a container, a replica or a machine waits for, since when, and what would help. Pure.
//!
//! An answer always has a summary, and a wait for everything that is not as it should be.

mod machine;
mod replica;

use berth_api::explain::{Explanation, FilterCount, Subject, Waiting};
use berth_api::id::{ContainerName, MachineId, ReplicaId};
use berth_api::rest::container::ContainerStatus;

use crate::autoscale;
use crate::decide::{Decision, Scope, decide_with};
use crate::liveness::Limits;
use crate::placement::Unplaced;
use crate::reconcile::{Wait, WaitReason};
use crate::rollout;
use crate::status;
use crate::world::{Container, Now, Observed, Readiness, World};

/// Explains; none when there is no such thing.
///
/// A replica may be named that has no place yet: by its ordinal's id, or by any text that begins with the name of a
/// container of which replicas are missing.
#[must_use]
pub fn explain(
    world: &World,
    observed: &Observed,
    limits: &Limits,
    now: Now,
    (subject, id): (Subject, &str),
) -> Option<Explanation> {
    let context = Context {
        world,
        observed,
        now,
        decision: decide_with(world, observed, limits, now, Scope::Replicas),
    };
    match subject {
        Subject::Container => context.container(&ContainerName::new(id).ok()?),
        Subject::Replica => context.replica(&ReplicaId::new(id).ok()?),
        Subject::Machine => context.machine(&MachineId::new(id).ok()?),
    }
}

struct Context<'a> {
    world: &'a World,
    observed: &'a Observed,
    now: Now,
    decision: Decision,
}

impl Context<'_> {
    fn container(&self, name: &ContainerName) -> Option<Explanation> {
        let container = self.world.container(name)?;
        let state = status::container_state(self.world, self.observed, name)?;
        let live = self.world.replicas_of(name).filter(|replica| replica.is_live());
        let ready = live.filter(|replica| self.observed.readiness(self.world, replica) == Readiness::Ready);
        let counts = format!("{} of {} replicas are ready", ready.count(), container.wanted());
        let mut waits: Vec<Waiting> = self.waits_of(name).map(waiting).collect();
        if state.status != ContainerStatus::Stopped {
            // Those that are placed at this very moment too: nothing else may speak of them.
            let after = self.after();
            for replica in after.replicas_of(name).filter(|replica| replica.is_live()) {
                let id = Some(&replica.replica_id);
                let is_told = self.waits_of(name).any(|wait| wait.replica_id.as_ref() == id);
                let own = self.own_waits(replica);
                waits.extend(own.or_else(|| (!is_told).then(|| self.heard_again(replica)).flatten()));
            }
        }
        if let Some(message) = rollout::rolled_back(container) {
            waits.push(rolled_back(container, message));
        }
        waits.dedup();
        let placement = self.waits_of(name).find_map(|wait| match &wait.reason {
            WaitReason::NoPlace(unplaced) | WaitReason::NoRoomToMove(unplaced) => Some(unplaced),
            _ => None,
        });
        let mut facts = vec![
            ("image".into(), container.spec.image.clone()),
            ("scale".into(), status::scale_text(container)),
            ("group".into(), container.spec.capacity_group.to_string()),
            ("revision".into(), container.revision.to_string()),
            ("created".into(), container.created_at.to_string()),
            ("updated".into(), container.updated_at.to_string()),
        ];
        facts.extend(rollout::facts(self.world, self.observed, name));
        let scaling = self.observed.scaling.get(name);
        if let Some(text) = scaling.and_then(|history| autoscale::describe(history, container)) {
            facts.push(("autoscaling".into(), text));
        }
        for replica in self.world.replicas_of(name) {
            let status = status::replica_status(self.observed, replica);
            let word = serde_word(&status);
            facts.push((
                replica.replica_id.to_string(),
                format!("{word} on {}", replica.machine_id),
            ));
        }
        Some(Explanation {
            kind: Subject::Container,
            id: name.to_string(),
            state: state.status.to_string(),
            since: container
                .deleted_since
                .or(container.stopped_since)
                .or(container.unplaced_since),
            summary: match state.message {
                Some(message) if message != counts => format!("{counts}; {message}"),
                _ => counts,
            },
            waits,
            filters: placement.map(|unplaced| filters(unplaced)).unwrap_or_default(),
            facts,
        })
    }

    /// The world with what is decided at this moment.
    fn after(&self) -> World {
        let mut after = self.world.clone();
        for entry in &self.decision.entries {
            after.apply(entry);
        }
        after
    }

    /// What the last decision left waiting for a container.
    fn waits_of<'b>(&'b self, name: &'b ContainerName) -> impl Iterator<Item = &'b Wait> {
        self.decision
            .report
            .waits
            .iter()
            .filter(move |wait| wait.container == *name)
    }
}

/// What is declared and does not run.
fn rolled_back(container: &Container, message: String) -> Waiting {
    let since = container
        .rollout
        .as_ref()
        .map_or(container.updated_at, |rollout| rollout.started_at);
    Waiting {
        what: format!("a decision of its user: {message}"),
        since,
        next_attempt: None,
        helps: "declare something that starts, or: berth rollout resume, berth rollout undo".into(),
    }
}

fn waiting(wait: &Wait) -> Waiting {
    let subject = wait
        .replica_id
        .as_ref()
        .map(|id| format!("replica {id} waits for "));
    Waiting {
        what: format!("{}{}", subject.unwrap_or_default(), wait.reason),
        since: wait.since,
        next_attempt: None,
        helps: wait.reason.helps(),
    }
}

/// What each filter ruled out, with the nearest miss beside it.
fn filters(unplaced: &Unplaced) -> Vec<FilterCount> {
    let count = |(filter, machines): &(crate::placement::Filter, u32)| FilterCount {
        filter: filter.as_str().to_owned(),
        machines: *machines,
        nearest: unplaced
            .nearest
            .iter()
            .find(|miss| miss.filter == *filter)
            .map(ToString::to_string),
    };
    unplaced.counts.iter().map(count).collect()
}

/// The wire's word of a status.
fn serde_word(status: &berth_api::replica::WireReplicaStatus) -> String {
    use berth_api::replica::WireReplicaStatus as Status;
    match status {
        Status::Pending => "pending",
        Status::Running => "running",
        Status::Stopping => "stopping",
        Status::Stopped => "stopped",
        Status::Failed => "failed",
    }
    .to_owned()
}
