//! A copy of the world to try things on: machines that came, machines that went, replicas that moved. Nothing of it is
//! ever logged; what it proves is that placement itself finds a place for everything.

use std::borrow::Cow;

use berth_api::cluster::CapacityGroup;
use berth_api::id::{MachineId, ReplicaId, Zone};
use berth_api::machine::{
    CpuCapacity, GpuCapacity, MachineCapacity, MachineSpec, MemoryCapacity, StorageCapacity,
};
use berth_api::time::Timestamp;
use berth_api::units::{Bytes, Cpu};

use super::{Move, Unmet};
use crate::decide::request_at;
use crate::entry::{Entry, MachineHealthState, Placed, StopCause};
use crate::placement::{self, Fleet, Place, Request};
use crate::world::{Allocated, Replica, World};

/// Whether imagined machines come before or after all others where placement goes by id. Nobody knows the ids that a cloud
/// will give, so a plan has to hold both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    First,
    Last,
}

/// Where an imagined machine stands that may come up in any zone: no disk is there, so nothing bound to a zone fits it.
pub(super) const ANY_ZONE: &str = "~any";

#[derive(Debug, Clone)]
pub(super) struct Hypothesis<'a> {
    world: Cow<'a, World>,
    imagined: u32,
}

impl<'a> Hypothesis<'a> {
    pub(super) fn of(world: &'a World) -> Self {
        Self {
            world: Cow::Borrowed(world),
            imagined: 0,
        }
    }

    /// Suppose that these machines, which have not spoken yet, are up.
    pub(super) fn boot<'b>(&mut self, machines: impl IntoIterator<Item = &'b MachineId>) {
        for id in machines {
            if let Some(machine) = self.world.to_mut().machines.get_mut(id) {
                machine.health = MachineHealthState::Running;
            }
        }
    }

    /// Suppose one machine more; false when the container CIDR has no subnet left for it.
    pub(super) fn add(
        &mut self,
        group: &CapacityGroup,
        zone: Option<&Zone>,
        bin: &Allocated,
        order: Order,
    ) -> bool {
        // No cloud names an instance so.
        let id = match order {
            Order::First => format!("!{:08}", 99_999_999u32.saturating_sub(self.imagined)),
            Order::Last => format!("~{:08}", self.imagined),
        };
        let machine_id = MachineId::new(id).expect("a short text is an id");
        let any = || Zone::new(ANY_ZONE).expect("a short text is a zone");
        let spec = MachineSpec {
            machine_id: machine_id.clone(),
            capacity_group: group.group_id.clone(),
            zone: zone.cloned().unwrap_or_else(any),
            vpc_ip: std::net::IpAddr::from([0, 0, 0, 0]),
            wireguard_public_key: String::new(),
            wireguard_endpoint: String::new(),
            capacity: MachineCapacity {
                cpu: CpuCapacity {
                    total: bin.cpu,
                    system_reserve: Cpu::ZERO,
                },
                memory: MemoryCapacity {
                    total: bin.memory,
                    system_reserve: Bytes::ZERO,
                },
                ephemeral_storage: StorageCapacity { total: bin.ephemeral },
                gpu: group.profile.gpu.as_ref().map(|gpu| GpuCapacity {
                    total: bin.gpus,
                    kind: gpu.kind.clone(),
                }),
            },
            boot_id: None,
            // Those of its group count for it, as for every machine.
            labels: std::collections::BTreeSet::new(),
        };
        let Some(entry) = self.world.registration(spec, Timestamp::default()) else {
            return false;
        };
        self.imagined += 1;
        self.world.to_mut().apply(&entry);
        self.boot([&machine_id]);
        true
    }

    /// Which of these replicas placement finds no place for, all asked for together.
    pub(super) fn unplaced<'b>(&self, unmet: &[&'b Unmet]) -> Vec<&'b Unmet> {
        if unmet.is_empty() {
            return vec![];
        }
        let requests: Vec<Request<'_>> = unmet
            .iter()
            .map(|unmet| {
                let asked = (unmet.revision, unmet.ordinal);
                request_at(&self.world, &unmet.container, asked, unmet.instead_of.as_ref())
            })
            .collect();
        let outcomes = placement::place(Fleet::of(&self.world), &requests);
        let failed = outcomes.iter().zip(unmet).filter(|(outcome, _)| outcome.is_err());
        failed.map(|(_, unmet)| *unmet).collect()
    }

    /// Suppose that a machine is drained; the moves that empty it, or none when a replica on it finds no other place.
    pub(super) fn drain(&mut self, id: &MachineId, at: Timestamp) -> Option<Vec<Move>> {
        let mut trial = self.clone();
        trial.world.to_mut().apply(&Entry::MachineDraining {
            machine_id: id.clone(),
            at,
        });
        let leaving: Vec<Unmet> = trial
            .world
            .replicas_on(id)
            .filter(|replica| replica.is_live() && trial.is_of_kind(replica))
            .map(|replica| Unmet {
                container: replica.container.clone(),
                revision: trial.successor_revision(replica),
                ordinal: replica.ordinal,
                instead_of: Some(replica.replica_id.clone()),
                squeezed: None,
            })
            .collect();
        let places = {
            let ask = |unmet: &'_ Unmet| (unmet.container.clone(), (unmet.revision, unmet.ordinal));
            let asked: Vec<_> = leaving.iter().map(ask).collect();
            let requests: Vec<Request<'_>> = asked
                .iter()
                .zip(&leaving)
                .map(|((name, asked), unmet)| {
                    let instead_of = unmet.instead_of.as_ref().filter(|_| unmet.ordinal.is_some());
                    request_at(&trial.world, name, *asked, instead_of)
                })
                .collect();
            placement::place(Fleet::of(&trial.world), &requests)
        };
        let places: Option<Vec<Place>> = places.into_iter().map(Result::ok).collect();
        let mut moves = vec![];
        for (unmet, place) in leaving.iter().zip(places?) {
            let replica_id = unmet.instead_of.clone()?;
            moves.push(Move {
                replica_id: replica_id.clone(),
                from: id.clone(),
                to: place.machine_id.clone(),
            });
            trial.move_to(&replica_id, place, at);
        }
        *self = trial;
        Some(moves)
    }

    /// Not left over from a declaration of the other kind: such a one stops and needs no place.
    fn is_of_kind(&self, replica: &Replica) -> bool {
        let container = self.world.container(&replica.container);
        container.is_some_and(|container| container.spec.stateful == replica.ordinal.is_some())
    }

    /// What would run in the stead of a replica that has to leave its machine.
    fn successor_revision(&self, replica: &Replica) -> u64 {
        let container = self
            .world
            .container(&replica.container)
            .expect("a container is kept while a replica of it is there");
        container.revision_for(Some(replica.revision), replica.ordinal)
    }

    fn move_to(&mut self, id: &ReplicaId, place: Place, at: Timestamp) {
        let replica = self
            .world
            .replica(id)
            .expect("it is moved from where it is")
            .clone();
        let successor = self.successor_revision(&replica);
        let world = self.world.to_mut();
        world.apply(&Entry::ReplicaStopping {
            replica_id: id.clone(),
            cause: StopCause::MachineDraining,
            picked: None,
            unasked: false,
            at,
        });
        world.apply(&Entry::ReplicaGone {
            replica_id: id.clone(),
            at,
        });
        let Some(container) = world.container(&replica.container) else {
            return;
        };
        // A former declaration goes with the last replica that ran it. A decision would have placed the successor before that,
        // under another id; here it has the same, so that it can be moved on. Another declaration may want other GPUs.
        let is_kept = container.spec_at(successor).is_some();
        let placed = Placed {
            replica_id: id.clone(),
            revision: if is_kept { successor } else { container.revision },
            container: replica.container,
            ordinal: replica.ordinal,
            machine_id: place.machine_id,
            ip: place.ip,
            host_port: place.host_port,
            devices: if is_kept { place.devices } else { vec![] },
            chosen: Some(place.chosen),
            granted: None,
            relieves: None,
            at,
        };
        world.apply(&Entry::ReplicaPlaced(placed));
    }
}
