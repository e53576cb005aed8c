//! Every container and replica that is not as it should be says what it waits for; and entries in a line, for traces.

use berth_api::explain::Subject;
use berth_api::rest::container::ContainerStatus;
use berth_scheduler::entry::Entry;
use berth_scheduler::explain::explain;
use berth_scheduler::status::container_state;
use berth_scheduler::world::Readiness;

use super::{Rule, Simulation};

impl Simulation {
    /// Asks about one container and one replica, taking turns: an explanation costs a decision.
    pub(super) fn check_explanations(&mut self) {
        let Some(at) = self.serving() else {
            return;
        };
        let now = self.scheduler_now(at);
        let scheduler = &self.schedulers[at];
        let Some(world) = &scheduler.world else {
            return;
        };
        let turn = usize::try_from(self.samples).expect("few samples");
        let ask =
            |subject, id: &str| explain(world, &scheduler.observed, &scheduler.limits, now, (subject, id));
        let mut silent = None;
        let waiting = |name: &&berth_api::id::ContainerName| {
            container_state(world, &scheduler.observed, name).is_some_and(|state| {
                matches!(state.status, ContainerStatus::Pending | ContainerStatus::Failing)
            })
        };
        let names: Vec<_> = world.containers().keys().filter(waiting).collect();
        if let Some(name) = names.get(turn % names.len().max(1)) {
            let state = container_state(world, &scheduler.observed, name);
            let explanation = ask(Subject::Container, name.as_str());
            let says = explanation.as_ref().is_some_and(|explanation| {
                let is_named = explanation
                    .waits
                    .iter()
                    .all(|wait| !wait.what.is_empty() && !wait.helps.is_empty());
                let is_failing = state
                    .as_ref()
                    .is_some_and(|it| it.status == ContainerStatus::Failing && it.message.is_some());
                is_named && (!explanation.waits.is_empty() || is_failing)
            });
            if !says {
                silent = Some(format!("container {name}: {state:?}: {explanation:?}"));
            }
        }
        let unready = world.replicas().iter().filter(|(_, replica)| {
            let is_ready = scheduler.observed.readiness(world, replica) == Readiness::Ready;
            !(is_ready && replica.is_live())
        });
        let ids: Vec<_> = unready.map(|(id, _)| id).collect();
        if let Some(id) = ids.get(turn % ids.len().max(1)) {
            let explanation = ask(Subject::Replica, id.as_str());
            if explanation.as_ref().is_none_or(|e| e.waits.is_empty()) {
                silent = Some(format!("replica {id}: {explanation:?}"));
            }
        }
        if let Some(text) = silent {
            self.checkers.broke(Rule::Explanation, text);
        }
    }
}

/// An entry in a line.
pub(super) fn brief(entry: &Entry) -> String {
    match entry {
        Entry::ContainerPut { spec, revision, .. } => format!(
            "put {} r{revision} {:?} of {} {}",
            spec.name,
            spec.scale,
            spec.image,
            if spec.stateful { "stateful" } else { "" }
        ),
        Entry::ReplicaPlaced(placed) => {
            let devices = placed.devices.iter();
            let devices: Vec<String> = devices
                .map(|device| format!(" gpu {}: {}", device.index, device.milli))
                .collect();
            format!(
                "placed {} on {} {}{}{}",
                placed.replica_id,
                placed.machine_id,
                placed.ip,
                devices.concat(),
                if placed.granted.is_some() { " squeezed" } else { "" }
            )
        }
        Entry::ReplicaStopping {
            replica_id, cause, ..
        } => format!("stopping {replica_id}: {cause}"),
        Entry::ReplicaGone { replica_id, .. } => format!("gone {replica_id}"),
        Entry::MachineRegistered { spec, .. } => format!("registered {}", spec.machine_id),
        other => format!("{other:?}"),
    }
}
