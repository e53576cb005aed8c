//! The order in which moves can be made, and the plan in words.
//!
//! A wave is filled from what has room before it begins: what leaves in the wave gives no room until the next.

use std::collections::BTreeSet;

use super::empty::Found;
use super::faults::parts;
use super::packing::{Packing, Parts};
use super::{Budget, How, Kept, Movable, Move, Plan, Snapshot, Why};

/// Replica and wave of each move, in order; none if moves wait for each other in a ring.
pub(super) fn waves(snapshot: &Snapshot, budget: &Budget, place: &[usize]) -> Option<Vec<(usize, u32)>> {
    let mut pending: Vec<usize> = (0..place.len())
        .filter(|replica| place[*replica] != snapshot.replicas[*replica].machine)
        .collect();
    // Those that make room go first; then machine by machine, so that each is empty as early as can be.
    let targets: BTreeSet<usize> = pending.iter().map(|replica| place[*replica]).collect();
    pending.sort_by_key(|replica| {
        let from = snapshot.replicas[*replica].machine;
        (!targets.contains(&from), from, *replica)
    });
    let mut now = Now::new(snapshot, place);
    let mut order = Vec::with_capacity(pending.len());
    let mut wave = 0;
    while !pending.is_empty() {
        let mut sets = BTreeSet::new();
        let mut started = Vec::new();
        pending.retain(|replica| {
            let facts = &snapshot.replicas[*replica];
            let is_full = u32::try_from(started.len()).is_ok_and(|started| started >= budget.in_flight);
            if is_full || sets.contains(&facts.set) || !now.has_room(snapshot, *replica, place[*replica]) {
                return true;
            }
            sets.insert(facts.set);
            now.arrive(snapshot, *replica, place[*replica]);
            started.push(*replica);
            false
        });
        if started.is_empty() {
            return None;
        }
        for replica in started {
            now.leave(snapshot, replica);
            order.push((replica, wave));
        }
        wave += 1;
    }
    Some(order)
}

/// What is free, and who is where, between two waves.
struct Now {
    free: Vec<Parts>,
    on: Vec<Vec<usize>>,
}

impl Now {
    fn new(snapshot: &Snapshot, place: &[usize]) -> Self {
        let mut free: Vec<Parts> = snapshot
            .machines
            .iter()
            .map(|machine| parts(&machine.capacity))
            .collect();
        let mut on = vec![Vec::new(); free.len()];
        // Only targets of moves are asked about.
        let mut is_target = vec![false; free.len()];
        for (replica, facts) in snapshot.replicas.iter().enumerate() {
            is_target[place[replica]] |= place[replica] != facts.machine;
        }
        for (replica, facts) in snapshot.replicas.iter().enumerate() {
            if is_target[facts.machine] {
                for (free, need) in free[facts.machine].iter_mut().zip(parts(&facts.needs)) {
                    *free -= need;
                }
                on[facts.machine].push(replica);
            }
        }
        Self { free, on }
    }

    fn has_room(&self, snapshot: &Snapshot, replica: usize, to: usize) -> bool {
        let facts = &snapshot.replicas[replica];
        let needs = parts(&facts.needs);
        let mut of_set = 0;
        for other in &self.on[to] {
            let other = &snapshot.replicas[*other];
            of_set += u32::from(other.set == facts.set && other.movable != Movable::WithMachine);
            if other
                .host_ports
                .iter()
                .any(|port| facts.host_ports.contains(port))
            {
                return false;
            }
        }
        needs.iter().zip(&self.free[to]).all(|(need, free)| need <= free)
            && of_set < snapshot.sets[facts.set].per_machine
    }

    fn arrive(&mut self, snapshot: &Snapshot, replica: usize, to: usize) {
        for (free, need) in self.free[to]
            .iter_mut()
            .zip(parts(&snapshot.replicas[replica].needs))
        {
            *free -= need;
        }
        self.on[to].push(replica);
    }

    fn leave(&mut self, snapshot: &Snapshot, replica: usize) {
        let facts = &snapshot.replicas[replica];
        let on = &mut self.on[facts.machine];
        let Some(at) = on.iter().position(|other| *other == replica) else {
            return;
        };
        on.swap_remove(at);
        for (free, need) in self.free[facts.machine].iter_mut().zip(parts(&facts.needs)) {
            *free += need;
        }
    }
}

/// The plan for what was found; without moves if it saves nothing.
pub(super) fn plan(packing: &Packing<'_>, found: Found) -> Plan {
    let snapshot = packing.snapshot;
    let mut plan = Plan {
        occupied_at_least: occupied_at_least(packing),
        steps: packing.steps,
        kept: found.kept,
        ..Plan::default()
    };
    if found.freed.is_empty() {
        return plan;
    }
    let order = waves(snapshot, &packing.budget, &found.place).expect("only what has an order is found");
    let mut free = packing.free.clone();
    for (replica, facts) in snapshot.replicas.iter().enumerate() {
        let to = found.place[replica];
        if to != facts.machine {
            for (dimension, need) in packing.needs[replica].iter().enumerate() {
                free[facts.machine][dimension] = free[facts.machine][dimension].wrapping_add(*need);
                free[to][dimension] = free[to][dimension].wrapping_sub(*need);
            }
        }
    }
    for (replica, wave) in order {
        let facts = &snapshot.replicas[replica];
        let to = found.place[replica];
        let is_freed = found.freed.binary_search(&facts.machine).is_ok();
        plan.moves.push(Move {
            replica,
            from: facts.machine,
            to,
            how: match facts.movable {
                Movable::InZone => How::Detach,
                Movable::Freely | Movable::Never | Movable::WithMachine => How::Surge,
            },
            why: if is_freed { Why::Frees } else { Why::MakesRoom },
            wave,
            left_permille: left_permille(&free[to], &parts(&snapshot.machines[to].capacity)),
        });
    }
    plan.freed = found.freed;
    plan.saving = found.net;
    plan.bytes = found.bytes;
    plan
}

fn left_permille(free: &Parts, capacity: &Parts) -> u16 {
    let bounded = free
        .iter()
        .zip(capacity)
        .filter(|(_, capacity)| **capacity > 0 && **capacity < u64::MAX);
    let shares = bounded.map(|(free, capacity)| u128::from(*free) * 1000 / u128::from(*capacity));
    shares
        .min()
        .and_then(|share| u16::try_from(share).ok())
        .unwrap_or(1000)
}

/// Whatever moves, so many machines that cost something hold a replica.
fn occupied_at_least(packing: &Packing<'_>) -> usize {
    let machines = &packing.snapshot.machines;
    let pinned = (0..machines.len()).filter(|machine| {
        let stays = |replica: &usize| !packing.may_move(*replica);
        machines[*machine].cost > 0 && packing.on[*machine].iter().any(stays)
    });
    let mut needs = [0_u128; 6];
    for replica in packing.on.iter().flatten() {
        for (sum, need) in needs.iter_mut().zip(packing.needs[*replica]) {
            *sum += u128::from(need);
        }
    }
    let by_volume = (0..6).map(|dimension| {
        let capacity = |machine: usize| u128::from(parts(&machines[machine].capacity)[dimension]);
        let (free, mut paid): (Vec<usize>, Vec<usize>) =
            (0..machines.len()).partition(|machine| machines[*machine].cost == 0);
        let mut left = needs[dimension].saturating_sub(free.into_iter().map(capacity).sum());
        paid.sort_by_key(|machine| std::cmp::Reverse(capacity(*machine)));
        let taken = paid.into_iter().take_while(|machine| {
            let is_needed = left > 0;
            left = left.saturating_sub(capacity(*machine));
            is_needed
        });
        taken.count()
    });
    by_volume.max().unwrap_or(0).max(pinned.count())
}

/// Why a machine stays, in words.
impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pinned { replica } => write!(f, "replica {replica} never moves"),
            Self::Stateful { replica } => write!(f, "replica {replica} is stateful and stays"),
            Self::Moves { needed, left } => write!(f, "needs {needed} moves, the budget has {left} left"),
            Self::Bytes { needed, left } => {
                write!(f, "needs {needed} bytes moved, the budget has {left} left")
            }
            Self::Price { price } => write!(f, "its moves cost {price}, no less than the machine"),
            Self::NoRoom { replica } => write!(f, "replica {replica} has room nowhere else"),
            Self::Steps => f.write_str("was not tried before the steps were used up"),
        }
    }
}
