//! The repack plan of a cluster: what [`crate::placement::repack`] finds for its machines and replicas, checked against the
//! world and told in names.
//!
//! Input: world and budget. Output: the plan as it is shown, or why none can be made. Pure. Nothing moves by it.

use std::collections::{BTreeMap, BTreeSet};

use berth_api::container::ContainerSpec;
use berth_api::id::{ContainerName, GroupId, Label, MachineId, Zone};
use berth_api::machine::MachineStatus;
use berth_api::rest::repack::{KeptMachine, MoveHow, RepackMove, RepackPlanReply};

use crate::placement::repack::{
    Amounts, Budget, Door, How, Kept, Machine, Movable, Plan, Replica, Set, Snapshot, Stateful, Why, plan,
};
use crate::placement::{disk_slots, machine_share, needs_slot};
use crate::world::{self, Allocated, HOST_MAX, HOST_MIN, World};

/// What a machine costs for as long as a plan is to pay off, and what a move costs: a machine is freed only by fewer than a
/// hundred moves.
const MACHINE_COST: u64 = 1_000;
const MOVE_PRICE: u64 = 10;
/// Moves under way together.
const IN_FLIGHT: u32 = 4;
/// About half a second.
const STEPS: u64 = 50_000_000;

/// What a plan may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    pub moves_per_hour: u32,
    pub stateful: Stateful,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unplanned {
    /// Faults of the snapshot, which no world should have.
    #[error("the machines report what cannot be true: {0}")]
    Absurd(String),
    /// The plan would break a rule of the world: it is not shown.
    #[error("the plan was found wrong when it was checked: {0}")]
    Wrong(String),
}

/// Plans and checks the plan.
///
/// # Errors
/// When the world is absurd, or the plan breaks one of its rules.
pub fn of(world: &World, limit: Limit) -> Result<RepackPlanReply, Unplanned> {
    let names = Names::of(world);
    let snapshot = snapshot(world, &names);
    let budget = Budget {
        moves: limit.moves_per_hour,
        bytes: u64::MAX,
        in_flight: IN_FLIGHT.min(limit.moves_per_hour),
        stateful: limit.stateful,
        move_price: MOVE_PRICE,
        steps: STEPS,
    };
    let plan = plan(&snapshot, &budget).map_err(|faults| {
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        Unplanned::Absurd(faults.join("; "))
    })?;
    verify(world, &names, &plan, limit).map_err(Unplanned::Wrong)?;
    Ok(names.reply(&plan, limit))
}

/// What the numbers of a snapshot stand for.
struct Names<'a> {
    world: &'a World,
    machines: Vec<&'a world::Machine>,
    replicas: Vec<&'a world::Replica>,
    containers: Vec<&'a ContainerName>,
}

impl<'a> Names<'a> {
    fn of(world: &'a World) -> Self {
        Self {
            world,
            machines: world.machines().values().collect(),
            replicas: world.replicas().values().collect(),
            containers: world.containers().keys().collect(),
        }
    }

    fn machine(&self, index: usize) -> MachineId {
        self.machines[index].spec.machine_id.clone()
    }

    fn reply(&self, plan: &Plan, limit: Limit) -> RepackPlanReply {
        let moves = plan.moves.iter().map(|one| {
            let replica = self.replicas[one.replica];
            let (from, to) = (self.machine(one.from), self.machine(one.to));
            let left = f64::from(one.left_permille) / 10.0;
            let reason = match one.why {
                Why::Frees => format!("empties {from}; {left:.1} % of the scarcest is left on {to} in the end"),
                Why::MakesRoom => {
                    format!("makes room on {from} for replicas that come; {left:.1} % of the scarcest is left on {to} in the end")
                }
            };
            RepackMove {
                step: one.wave + 1,
                replica_id: replica.replica_id.clone(),
                container: replica.container.clone(),
                from,
                to,
                how: match one.how {
                    How::Surge => MoveHow::StartThenStop,
                    How::Detach => MoveHow::StopThenStart,
                },
                reason,
            }
        });
        let kept = plan.kept.iter().map(|(machine, kept)| KeptMachine {
            machine_id: self.machine(*machine),
            reason: self.kept(kept),
        });
        let occupied = self
            .machines
            .iter()
            .filter(|machine| costs(machine) > 0 && !machine.replicas.is_empty());
        RepackPlanReply {
            moves_per_hour: limit.moves_per_hour,
            stateful_may_move: limit.stateful == Stateful::MayMove,
            moves: moves.collect(),
            freed_machines: plan.freed.iter().map(|machine| self.machine(*machine)).collect(),
            kept_machines: kept.collect(),
            occupied_machines: number(occupied.count()),
            occupied_machines_at_least: number(plan.occupied_at_least),
            notes: self.minimums(plan),
        }
    }

    fn kept(&self, kept: &Kept) -> String {
        let name = |replica: &usize| self.replicas[*replica].replica_id.to_string();
        match kept {
            Kept::Pinned { replica } => format!("replica {} stays where it is", name(replica)),
            Kept::Stateful { replica } => {
                format!(
                    "replica {} is stateful, and those may not move in this plan",
                    name(replica)
                )
            }
            Kept::Moves { needed, left } => {
                format!("emptying it takes {needed} moves, and the budget has {left} left")
            }
            Kept::Bytes { needed, left } => {
                format!("emptying it moves {needed} bytes, and the budget has {left} left")
            }
            Kept::Price { price } => format!(
                "its {} moves cost as much as the machine",
                price.div_ceil(MOVE_PRICE)
            ),
            Kept::NoRoom { replica } => format!("replica {} has no other place", name(replica)),
            Kept::Steps => "the search ended before it was tried".to_owned(),
        }
    }

    /// A group that is at its minimum keeps what is freed.
    fn minimums(&self, plan: &Plan) -> Vec<String> {
        let mut freed: BTreeMap<&GroupId, u32> = BTreeMap::new();
        for machine in &plan.freed {
            *freed
                .entry(&self.machines[*machine].spec.capacity_group)
                .or_default() += 1;
        }
        let note = |(group, freed): (&GroupId, u32)| {
            let of_group =
                |machine: &&&world::Machine| machine.spec.capacity_group == *group && costs(machine) > 0;
            let machines = number(self.machines.iter().filter(of_group).count());
            let min = self.world.spec().group(group)?.min_size;
            (machines.saturating_sub(freed) < min).then(|| {
                format!("group {group} has a minimum of {min} machines: not all that are freed may be ended")
            })
        };
        freed.into_iter().filter_map(note).collect()
    }
}

/// Only a machine that runs is paid for to no purpose when it is emptied; others are on their way out or not heard.
fn costs(machine: &world::Machine) -> u64 {
    if machine.status() == MachineStatus::Running {
        MACHINE_COST
    } else {
        0
    }
}

/// What decides statically who may run on a machine: its group, the type of its GPUs, its labels.
type Sort<'a> = (&'a GroupId, Option<&'a String>, BTreeSet<&'a Label>);

/// The numbers that a snapshot has for zones, and for sorts of machines.
#[derive(Default)]
struct Numbers<'a> {
    zones: BTreeMap<&'a Zone, u16>,
    kinds: BTreeMap<Sort<'a>, u16>,
    machines: BTreeMap<&'a MachineId, usize>,
}

fn snapshot(world: &World, names: &Names<'_>) -> Snapshot {
    let mut numbers = Numbers {
        machines: (0..)
            .zip(&names.machines)
            .map(|(index, machine)| (&machine.spec.machine_id, index))
            .collect(),
        ..Numbers::default()
    };
    let disks = disk_slots(world.spec().platform).into();
    let machines = names
        .machines
        .iter()
        .map(|it| machine(world, it, disks, &mut numbers))
        .collect();
    let replicas = names
        .replicas
        .iter()
        .map(|it| replica(world, names, it, &numbers))
        .collect();
    let sets = world.containers().values().map(|container| Set {
        per_machine: machine_share(container.wanted()),
    });
    Snapshot {
        machines,
        replicas,
        sets: sets.collect(),
    }
}

fn machine<'a>(
    world: &'a World,
    machine: &'a world::Machine,
    disks: u64,
    numbers: &mut Numbers<'a>,
) -> Machine {
    let spec = &machine.spec;
    let next = u16::try_from(numbers.zones.len()).expect("fewer than 2^16 zones");
    let zone = *numbers.zones.entry(&spec.zone).or_insert(next);
    let next = u16::try_from(numbers.kinds.len()).expect("fewer than 2^16 kinds");
    let gpu = spec.capacity.gpu.as_ref().map(|gpu| &gpu.kind);
    let sort = (&spec.capacity_group, gpu, world.labels(machine));
    let kind = *numbers.kinds.entry(sort).or_insert(next);
    let (usable, held) = (machine.usable(), held_whole(world, machine));
    // A machine that came back smaller holds more than it has: nothing more may come.
    let is_held_alone = world
        .replicas_on(&spec.machine_id)
        .any(|replica| world.spec_of(replica).is_exclusive());
    let is_open = machine.status() == MachineStatus::Running && held.fits_in(&usable) && !is_held_alone;
    Machine {
        capacity: Amounts {
            cpu: usable.cpu.max(held.cpu).micros(),
            memory: usable.memory.max(held.memory).get(),
            ephemeral: usable.ephemeral.max(held.ephemeral).get(),
            gpus: usable.gpus.max(held.gpus).into(),
            disks,
            addresses: u64::from(HOST_MAX - HOST_MIN) + 1,
        },
        zone,
        kind,
        cost: costs(machine),
        door: if is_open { Door::Open } else { Door::Shut },
    }
}

fn replica(world: &World, names: &Names<'_>, replica: &world::Replica, numbers: &Numbers<'_>) -> Replica {
    let spec = world.spec_of(replica);
    let machine = world
        .machine(&replica.machine_id)
        .expect("a replica is on a registered machine");
    let volume = replica.ordinal.and_then(|ordinal| spec.volume(ordinal));
    let held = replica.held(world);
    let gpu = spec.resources.gpu.as_ref().map(|gpu| &gpu.kind);
    let kinds = numbers.kinds.iter().filter(|((group, kind, labels), _)| {
        let is_allowed = spec.placement.as_ref().is_none_or(|rules| rules.allow(labels));
        **group == spec.capacity_group && (gpu.is_none() || gpu == *kind) && is_allowed
    });
    let zone = volume.and_then(|volume| numbers.zones.get(volume.volume.zone()?));
    Replica {
        needs: Amounts {
            cpu: held.cpu.micros(),
            memory: held.memory.get(),
            ephemeral: held.ephemeral.get(),
            gpus: replica_devices(world, replica).into(),
            disks: volume.is_some_and(|volume| needs_slot(&volume.volume)).into(),
            addresses: 1,
        },
        set: names
            .containers
            .binary_search(&&replica.container)
            .expect("a replica has a container"),
        machine: numbers.machines[&replica.machine_id],
        movable: match (replica.is_live(), machine.status(), replica.ordinal) {
            (false, _, _) | (_, MachineStatus::Unhealthy, _) => Movable::Never,
            // It would empty one machine to fill another.
            _ if spec.is_exclusive() => Movable::Never,
            // What is free of each device of the target is not looked at.
            _ if held.gpu_share_milli > 0 => Movable::Never,
            (true, _, Some(_)) => Movable::InZone,
            (true, _, None) => Movable::Freely,
        },
        bytes: held.memory.get(),
        kinds: kinds.map(|(_, kind)| *kind).collect(),
        zones: zone.map(|zone| vec![*zone]).unwrap_or_default(),
        host_ports: vec![],
    }
}

/// What is held of a machine, with every GPU of which anything is held as a whole one: a plan moves whole ones only.
fn held_whole(world: &World, machine: &world::Machine) -> Allocated {
    let replicas = world.replicas_on(&machine.spec.machine_id);
    Allocated {
        gpus: replicas.map(|replica| replica_devices(world, replica)).sum(),
        gpu_share_milli: 0,
        ..machine.allocated
    }
}

/// Devices that count as a replica's: of those that share one, as the first by id.
fn replica_devices(world: &World, replica: &world::Replica) -> u32 {
    let held = replica.held(world);
    if held.gpu_share_milli == 0 {
        return held.gpus;
    }
    let mut before = world
        .replicas_on(&replica.machine_id)
        .take_while(|other| other.replica_id != replica.replica_id);
    let is_counted = before.any(|other| {
        let mut devices = other.devices.iter();
        devices.any(|device| replica.devices.iter().any(|own| own.index == device.index))
    });
    u32::from(!is_counted)
}

/// Whether a machine may be given a replica of this declaration that comes from another.
fn is_open_to(world: &World, target: &world::Machine, spec: &ContainerSpec) -> bool {
    let is_allowed = spec
        .placement
        .as_ref()
        .is_none_or(|rules| !rules.exclusive && rules.allow(&world.labels(target)));
    target.spec.capacity_group == spec.capacity_group
        && target.status() == MachineStatus::Running
        && is_allowed
}

/// Makes the plan on the world's own sums, step by step: every target has room while the sources still hold, in the right
/// group and zone, one replica of a container at a time, and what is called free is.
fn verify(world: &World, names: &Names<'_>, plan: &Plan, limit: Limit) -> Result<(), String> {
    if plan.moves.len() > usize::try_from(limit.moves_per_hour).unwrap_or(usize::MAX) {
        return Err(format!("{} moves", plan.moves.len()));
    }
    let mut held: Vec<Allocated> = names
        .machines
        .iter()
        .map(|machine| held_whole(world, machine))
        .collect();
    let mut counts: Vec<usize> = names
        .machines
        .iter()
        .map(|machine| machine.replicas.len())
        .collect();
    let mut places: Vec<usize> = names
        .replicas
        .iter()
        .map(|replica| {
            names
                .machines
                .iter()
                .position(|machine| machine.spec.machine_id == replica.machine_id)
        })
        .map(|place| place.expect("a replica is on a registered machine"))
        .collect();
    let waves: BTreeSet<u32> = plan.moves.iter().map(|one| one.wave).collect();
    for wave in waves {
        let mut out: BTreeSet<&ContainerName> = BTreeSet::new();
        let moves = || plan.moves.iter().filter(|one| one.wave == wave);
        for one in moves() {
            let (replica, target) = (names.replicas[one.replica], names.machines[one.to]);
            let id = &replica.replica_id;
            let spec = world.spec_of(replica);
            if places[one.replica] != one.from || !replica.is_live() {
                return Err(format!("replica {id} is not where it is to leave"));
            }
            if !out.insert(&replica.container) {
                return Err(format!(
                    "two replicas of {} would be out at once",
                    replica.container
                ));
            }
            if !is_open_to(world, target, spec) {
                return Err(format!(
                    "replica {id} would go to machine {}",
                    target.spec.machine_id
                ));
            }
            if replica.ordinal.is_some()
                && (limit.stateful == Stateful::Stay
                    || target.spec.zone != names.machines[one.from].spec.zone)
            {
                return Err(format!("stateful replica {id} would leave its zone or must stay"));
            }
            let sum = held[one.to].checked_plus(&replica.held(world));
            held[one.to] = sum
                .filter(|sum| sum.fits_in(&target.usable()))
                .ok_or_else(|| format!("machine {} has no room for replica {id}", target.spec.machine_id))?;
            counts[one.to] += 1;
        }
        for one in moves() {
            let needs = names.replicas[one.replica].held(world);
            held[one.from] = held[one.from].less(&needs);
            counts[one.from] -= 1;
            places[one.replica] = one.to;
        }
    }
    match plan.freed.iter().find(|machine| counts[**machine] > 0) {
        Some(machine) => Err(format!("machine {} would not be empty", names.machine(*machine))),
        None => Ok(()),
    }
}

fn number(len: usize) -> u32 {
    u32::try_from(len).expect("a cluster has fewer than 2^32 machines")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Entry;
    use crate::fixture::{Town, gpu_share, on_gpus, stateful, stateless, whole_gpus};

    const BUDGET: Limit = Limit {
        moves_per_hour: 20,
        stateful: Stateful::Stay,
    };

    #[test]
    fn names_the_machines_it_would_free_and_every_move() {
        let mut town = Town::of(2);
        for name in ["one", "filler"] {
            let mut spec = stateless(name, 1);
            spec.resources.cpu.desired = berth_api::units::Cpu::from_micros(3_000_000);
            spec.resources.cpu.min = spec.resources.cpu.desired;
            town.put(spec);
            town.settle();
        }
        for name in ["two", "three"] {
            town.put(stateless(name, 1));
            town.settle();
        }
        town.act(Entry::ContainerDeleted {
            container: "one".parse().unwrap(),
            at: town.now.wall,
        });
        town.settle();
        let occupied: BTreeSet<String> = ["filler", "two", "three"]
            .iter()
            .flat_map(|name| town.places(name))
            .map(|(_, machine)| machine)
            .collect();
        let reply = of(&town.world, BUDGET).unwrap();
        assert!(
            usize::from(occupied.len() == 2) >= reply.freed_machines.len(),
            "{reply:?}"
        );
        for one in &reply.moves {
            assert!(!reply.freed_machines.contains(&one.to), "{one:?}");
        }
    }

    #[test]
    fn says_plainly_when_nothing_is_saved() {
        let mut town = Town::of(1);
        town.put(stateless("web", 1));
        town.settle();
        let reply = of(&town.world, BUDGET).unwrap();
        assert_eq!((reply.moves.len(), reply.freed_machines.len()), (0, 0));
        assert_eq!(
            (reply.occupied_machines, reply.occupied_machines_at_least),
            (1, 1)
        );
        assert_eq!(reply.kept_machines.len(), 1);
    }

    /// The machines of GPUs that a plan keeps, each with why.
    fn kept(town: &Town) -> Vec<(String, String)> {
        let reply = of(&town.world, BUDGET).unwrap();
        assert_eq!(
            (reply.moves.len(), reply.freed_machines.len()),
            (0, 0),
            "{reply:?}"
        );
        let kept = reply.kept_machines.into_iter();
        kept.map(|kept| (kept.machine_id.to_string(), kept.reason))
            .collect()
    }

    #[test]
    fn shares_stay_where_they_are() {
        let mut town = Town::new();
        town.join("g1", "gpu");
        town.settle();
        for (name, gpu) in [("filler", whole_gpus(1)), ("one", gpu_share(600))] {
            town.put(on_gpus(name, 1, gpu));
            town.settle();
        }
        town.join("g2", "gpu");
        town.settle();
        town.put(on_gpus("two", 1, gpu_share(600)));
        town.settle();
        town.act(Entry::ContainerDeleted {
            container: "filler".parse().unwrap(),
            at: town.now.wall,
        });
        town.settle();
        // A whole device is free beside each of them.
        let stays = |name: &str| {
            let (replica, machine) = town.places(name).remove(0);
            (machine, format!("replica {replica} stays where it is"))
        };
        let expected = [stays("one"), stays("two")];
        assert_eq!(expected.clone().map(|(machine, _)| machine), ["g1", "g2"]);
        assert_eq!(kept(&town), expected);
    }

    #[test]
    fn whole_gpus_are_not_moved_to_where_only_parts_are_free() {
        let mut town = Town::new();
        town.join("g1", "gpu");
        town.settle();
        for (name, milli) in [("one", 600), ("two", 600)] {
            town.put(on_gpus(name, 1, gpu_share(milli)));
            town.settle();
        }
        town.join("g2", "gpu");
        town.settle();
        town.put(on_gpus("whole", 1, whole_gpus(1)));
        town.settle();
        let (replica, machine) = town.places("whole").remove(0);
        assert_eq!(machine, "g2");
        let kept = kept(&town);
        assert_eq!(kept.len(), 2, "{kept:?}");
        assert_eq!(
            kept[1],
            (machine, format!("replica {replica} has no other place"))
        );
    }

    #[test]
    fn stateful_replicas_stay_unless_they_may_move() {
        let mut town = Town::of(2);
        let mut one = stateful("one", 1);
        one.resources.cpu.desired = berth_api::units::Cpu::from_micros(3_000_000);
        one.resources.cpu.min = one.resources.cpu.desired;
        town.put(one);
        town.put(stateful("two", 1));
        let mut filler = stateless("filler", 1);
        filler.resources.cpu.desired = berth_api::units::Cpu::from_micros(3_000_000);
        filler.resources.cpu.min = filler.resources.cpu.desired;
        town.put(filler);
        town.settle();
        town.act(Entry::ContainerDeleted {
            container: "filler".parse().unwrap(),
            at: town.now.wall,
        });
        town.settle();
        let stay = of(&town.world, BUDGET).unwrap();
        assert_eq!(stay.moves, vec![]);
        let may = Limit {
            stateful: Stateful::MayMove,
            ..BUDGET
        };
        let occupied: BTreeSet<String> = ["one", "two"]
            .iter()
            .flat_map(|name| town.places(name))
            .map(|(_, machine)| machine)
            .collect();
        let moved = of(&town.world, may).unwrap();
        assert_eq!(moved.freed_machines.len(), occupied.len() - 1, "{moved:?}");
        assert!(moved.moves.iter().all(|one| one.how == MoveHow::StopThenStart));
    }
}
