//! The local search that empties one more machine: a landscape of the replicas on it and on a few machines with room.

use std::ops::ControlFlow;

use super::packing::{Packing, share};
use super::search::{Landscape, Schedule, anneal};

/// Machines beside the one to empty.
const NEIGHBOURS: usize = 24;
/// A replica left on the machine to empty outweighs everything else.
const LEFT: i64 = 1 << 44;
/// What a move costs in the search, beside the square of a hole, which is at most 2^22.
const MOVE: i64 = 1 << 16;
const STEPS: u64 = 60_000;

/// Replicas and machines are those of the lists, in their order; the machine to empty is the last.
struct Drain<'a, 'b> {
    packing: &'a mut Packing<'b>,
    replicas: Vec<usize>,
    machines: Vec<usize>,
    /// Where in `machines` each replica is.
    at: Vec<usize>,
}

/// Empties the machine, or changes nothing.
pub(super) fn drain(packing: &mut Packing<'_>, machine: usize) -> bool {
    let mark = packing.mark();
    let moves = packing.moves;
    packing.shut[machine] = true;
    let mut land = Drain::new(packing, machine);
    let left = i64::try_from(land.packing.on[machine].len()).expect("replicas can be counted");
    let schedule = Schedule {
        steps: STEPS.min(land.packing.steps_left()),
        hot: 1 << 19,
        cold: 1 << 12,
        rounds: 1,
        swaps: 64,
        chains: 96,
        seed: u64::try_from(machine).unwrap_or(0),
    };
    let searched = anneal(&mut land, &schedule, |_, gain| {
        if gain > left * LEFT - LEFT / 2 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    packing.steps += searched.steps;
    let price = packing
        .budget
        .move_price
        .saturating_mul(u64::from(packing.moves.saturating_sub(moves)));
    if packing.on[machine].is_empty() && price < packing.snapshot.machines[machine].cost {
        return true;
    }
    packing.back_to(mark);
    packing.reopen(machine);
    false
}

impl<'a, 'b> Drain<'a, 'b> {
    fn new(packing: &'a mut Packing<'b>, machine: usize) -> Self {
        let mut roomy: Vec<(u64, usize)> = (0..packing.free.len())
            .filter(|other| packing.occupied(*other) && !packing.shut[*other])
            .map(|other| (u64::MAX - hole(packing, other, None), other))
            .collect();
        packing.look(packing.free.len());
        roomy.sort_unstable();
        let mut machines: Vec<usize> = roomy
            .into_iter()
            .take(NEIGHBOURS)
            .map(|(_, other)| other)
            .collect();
        machines.push(machine);
        let (mut replicas, mut at) = (Vec::new(), Vec::new());
        for (index, machine) in machines.iter().enumerate() {
            let mut on: Vec<usize> = packing.on[*machine].clone();
            on.retain(|replica| packing.may_move(*replica));
            on.sort_unstable();
            at.resize(at.len() + on.len(), index);
            replicas.append(&mut on);
        }
        Self {
            packing,
            replicas,
            machines,
            at,
        }
    }

    fn source(&self) -> usize {
        self.machines.len() - 1
    }

    /// What the replicas and a change of the machine's free room by them is worth: large holes are good.
    fn holes(&self, at: usize, comes: Option<usize>, goes: Option<usize>) -> i64 {
        if at == self.source() {
            return 0;
        }
        let machine = self.machines[at];
        let before = square(hole(self.packing, machine, None));
        before - square(hole(self.packing, machine, Some((comes, goes))))
    }
}

/// The free part of a machine over the dimensions that are bounded, each of 2^10, if one replica came and another went.
fn hole(packing: &Packing<'_>, machine: usize, change: Option<(Option<usize>, Option<usize>)>) -> u64 {
    let mut free = packing.free[machine];
    if let Some((comes, goes)) = change {
        for (dimension, free) in free.iter_mut().enumerate() {
            *free = free.saturating_add(goes.map_or(0, |replica| packing.needs[replica][dimension]));
            *free = free.saturating_sub(comes.map_or(0, |replica| packing.needs[replica][dimension]));
        }
    }
    let shares = free.iter().zip(packing.scale()).filter(|(_, scale)| **scale > 1);
    shares
        .map(|(free, scale)| share(*free, *scale).min(1 << 20) >> 10)
        .sum()
}

fn square(hole: u64) -> i64 {
    i64::try_from(hole * hole).expect("six dimensions of 2^10")
}

impl Landscape for Drain<'_, '_> {
    fn items(&self) -> usize {
        self.replicas.len()
    }

    fn places(&self) -> usize {
        self.machines.len()
    }

    fn place(&self, item: usize) -> usize {
        self.at[item]
    }

    fn shift(&self, item: usize, to: usize) -> Option<i64> {
        let (replica, from) = (self.replicas[item], self.at[item]);
        if to == from || to == self.source() {
            return None;
        }
        let machine = self.machines[to];
        if !self.packing.fits(replica, machine) || !self.packing.affordable(replica, machine) {
            return None;
        }
        let (moves, _) = self.packing.price(replica, machine);
        let left = if from == self.source() { -LEFT } else { 0 };
        let holes = self.holes(to, Some(replica), None) + self.holes(from, None, Some(replica));
        Some(left + moves * MOVE + holes)
    }

    fn swap(&self, one: usize, other: usize) -> Option<i64> {
        let (here, there) = (self.at[one], self.at[other]);
        if here == there || here == self.source() || there == self.source() {
            return None;
        }
        let (one, other) = (self.replicas[one], self.replicas[other]);
        let (here_machine, there_machine) = (self.machines[here], self.machines[there]);
        if !self.packing.may_swap(one, other) {
            return None;
        }
        let moves = self.packing.price(one, there_machine).0 + self.packing.price(other, here_machine).0;
        let holes = self.holes(here, Some(other), Some(one)) + self.holes(there, Some(one), Some(other));
        Some(moves * MOVE + holes)
    }

    fn commit(&mut self, item: usize, to: usize) {
        self.packing.relocate(self.replicas[item], self.machines[to]);
        self.at[item] = to;
    }
}
