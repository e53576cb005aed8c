//! Explains machines.

use berth_api::explain::{Explanation, Subject, Waiting};
use berth_api::id::MachineId;
use berth_api::machine::{GPU_MILLI, MachineStatus};

use super::Context;
use crate::placement::thousandths;
use crate::reconcile::{Wait, WaitReason};
use crate::world::{Left, Machine, Replica};

impl Context<'_> {
    pub(super) fn machine(&self, id: &MachineId) -> Option<Explanation> {
        let machine = self.world.machine(id)?;
        let observed = self.observed.machines.get(id);
        let status = machine.status();
        let mut waits: Vec<Waiting> = self.status_wait(machine).into_iter().collect();
        if machine.draining_since.is_some() {
            waits.extend(
                self.world
                    .replicas_on(id)
                    .map(|replica| self.blocker(machine, replica)),
            );
        }
        let unwell = observed
            .into_iter()
            .flat_map(|machine| &machine.health.subsystems)
            .filter(|subsystem| !subsystem.ok);
        waits.extend(unwell.map(|subsystem| Waiting {
            what: format!("its {}: {}", subsystem.name, subsystem.reason),
            since: subsystem.since,
            next_attempt: None,
            helps: "see the log of the node daemon on that machine".into(),
        }));
        waits.extend(self.set_wait(machine));
        Some(Explanation {
            kind: Subject::Machine,
            id: id.to_string(),
            state: status.to_string(),
            since: Some(match status {
                MachineStatus::Draining => machine.draining_since.unwrap_or(machine.health_since),
                MachineStatus::Initializing | MachineStatus::Running | MachineStatus::Unhealthy => {
                    machine.health_since
                }
            }),
            summary: self.machine_summary(machine),
            waits,
            filters: vec![],
            facts: self.machine_facts(machine),
        })
    }

    fn machine_summary(&self, machine: &Machine) -> String {
        let count = machine.replicas.len();
        let drain = match machine.draining_since {
            Some(_) if count == 0 => "; it is drained",
            Some(_) => "; it is draining",
            None => "",
        };
        match machine.status() {
            MachineStatus::Initializing => "it is registered and was never heard since".into(),
            MachineStatus::Running => format!("it runs {count} replicas"),
            MachineStatus::Unhealthy => match self.decision.report.freeze {
                Some(freeze) => format!(
                    "it is silent, and so are {} of {} machines: nothing moves{drain}",
                    freeze.unhealthy, freeze.total
                ),
                None => format!("it is silent; {count} replicas are on it or may still be{drain}"),
            },
            MachineStatus::Draining if count == 0 => "it is drained: nothing is left on it".into(),
            MachineStatus::Draining => format!("it takes no new replica; {count} are still on it"),
        }
    }

    fn status_wait(&self, machine: &Machine) -> Option<Waiting> {
        let (what, since, helps) = match machine.status() {
            MachineStatus::Running => return None,
            MachineStatus::Initializing => (
                "its first heartbeat".to_owned(),
                machine.registered_at,
                "see whether its daemon runs and reaches the scheduler",
            ),
            MachineStatus::Unhealthy => (
                "a heartbeat".to_owned(),
                machine.health_since,
                "see whether the machine, its daemon and its network are up; remove it once it is powered off",
            ),
            // Each replica on it has a wait of its own.
            MachineStatus::Draining => return None,
        };
        Some(Waiting {
            what,
            since,
            next_attempt: None,
            helps: helps.to_owned(),
        })
    }

    /// Why a replica is still on a draining machine.
    fn blocker(&self, machine: &Machine, replica: &Replica) -> Waiting {
        let id = &replica.replica_id;
        let name = &replica.container;
        let about = |wait: &&Wait| wait.replica_id.as_ref() == Some(id);
        let is_drain = |wait: &&Wait| !matches!(wait.reason, WaitReason::Squeezed(_));
        let own = self.waits_of(name).filter(is_drain).find(about);
        // A replacement that has no place has no id either.
        let replacement = || {
            let mut waits = self.waits_of(name);
            waits.find(|wait| wait.replica_id.is_none() && matches!(wait.reason, WaitReason::NoRoomToMove(_)))
        };
        let wait = own.or_else(replacement);
        let deadline = machine.drain_deadline.filter(|_| replica.is_live());
        let until = deadline.map_or(String::new(), |deadline| {
            format!("; it is stopped at {deadline} whatever it waits for")
        });
        match wait {
            Some(wait) => Waiting {
                what: format!("replica {id} to leave, which waits for {}{until}", wait.reason),
                since: wait.since,
                next_attempt: deadline,
                helps: wait.reason.helps(),
            },
            None => Waiting {
                what: format!("replica {id} to leave; its replacement comes first{until}"),
                since: machine.draining_since.unwrap_or(machine.health_since),
                next_attempt: deadline,
                helps: format!("nothing to do unless it lasts: see explain of container {name}"),
            },
        }
    }

    /// The machine has not accepted its present set.
    fn set_wait(&self, machine: &Machine) -> Option<Waiting> {
        let observed = self.observed.machines.get(&machine.spec.machine_id)?;
        let position = (self.world.epoch(), machine.generation);
        if observed.accepted.is_some_and(|accepted| accepted >= position) || observed.heartbeat_ms.is_none() {
            return None;
        }
        let has = observed.accepted.map_or_else(
            || "none".to_owned(),
            |(epoch, generation)| format!("{epoch}.{generation}"),
        );
        Some(Waiting {
            what: format!(
                "it to accept assignment set {}.{} (it has {has})",
                position.0, position.1
            ),
            since: observed.heartbeat_at.unwrap_or(self.now.wall),
            next_attempt: None,
            helps: if observed.is_linked {
                "nothing to do unless it lasts: then it refuses the set, see the log of its daemon".into()
            } else {
                "its daemon connects to the scheduler".to_owned()
            },
        })
    }

    /// "1 of 2 free, 0.4 of device 0".
    fn gpus_in_words(&self, machine: &Machine) -> String {
        let total = machine.usable().gpus;
        let Some(Left { devices, homeless }) = self.world.left_of_devices(machine) else {
            return format!("reports {total}, which no machine has: none is used");
        };
        if homeless > 0 {
            return format!(
                "none of {total} is given away: replicas hold GPUs that were not recorded or that it has no more"
            );
        }
        let whole = devices.iter().filter(|free| **free == GPU_MILLI).count();
        let parts = (0u8..)
            .zip(devices)
            .filter(|(_, free)| (1..GPU_MILLI).contains(free));
        let parts = parts.map(|(index, free)| format!(", {} of device {index}", thousandths(free.into())));
        format!("{whole} of {total} free{}", parts.collect::<String>())
    }

    fn machine_facts(&self, machine: &Machine) -> Vec<(String, String)> {
        let (usable, free) = (machine.usable(), machine.free());
        let mut facts = vec![
            ("group".to_owned(), machine.spec.capacity_group.to_string()),
            ("zone".to_owned(), machine.spec.zone.to_string()),
            ("subnet".to_owned(), machine.network.cidr.to_string()),
            (
                "cpu".to_owned(),
                format!("{} of {} vCPU free", free.cpu, usable.cpu),
            ),
            (
                "memory".to_owned(),
                format!("{} of {} free", free.memory.rounded(), usable.memory.rounded()),
            ),
            (
                "ephemeral".to_owned(),
                format!(
                    "{} of {} free",
                    free.ephemeral.rounded(),
                    usable.ephemeral.rounded()
                ),
            ),
        ];
        if let Some(deadline) = machine.drain_deadline {
            facts.push(("drain deadline".to_owned(), deadline.to_string()));
        }
        let labels = self.world.labels(machine);
        if !labels.is_empty() {
            let labels: Vec<&str> = labels.iter().map(|label| label.as_str()).collect();
            facts.push(("labels".to_owned(), labels.join(", ")));
        }
        if usable.gpus > 0 {
            facts.push(("gpus".to_owned(), self.gpus_in_words(machine)));
        }
        if let Some(at) = self
            .observed
            .machines
            .get(&machine.spec.machine_id)
            .and_then(|observed| observed.heartbeat_at)
        {
            facts.push(("last heartbeat".to_owned(), at.to_string()));
        }
        for replica in self.world.replicas_on(&machine.spec.machine_id) {
            let status = crate::status::replica_status(self.observed, replica);
            facts.push((replica.replica_id.to_string(), super::serde_word(&status)));
        }
        facts
    }
}
