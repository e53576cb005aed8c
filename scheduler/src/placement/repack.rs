//! Repack: which replicas to move where, in what order, so that machines become empty and their cost is saved.
//!
//! Input: a [`Snapshot`] of machines and replicas, and a [`Budget`]. Output: a [`Plan`] whose moves can be made in its order,
//! or the list of what is absurd in the snapshot. Pure and deterministic; the work is bounded by `Budget::steps`. Off the
//! hot path: nothing waits for it, and nothing moves by it alone.
//!
//! **Rules.** The moves of a plan are at most `Budget::moves`. A wave holds at most one replica of a set; a wave ends before
//! the next begins. Each target has room while every replica of the wave still holds its source. A stateful replica stays
//! unless the budget lets it move, and then in its zone, given up at the source before it is taken at the target. A plan
//! has a net saving, prices of moves deducted, or no moves. No machine becomes occupied that was empty.
//!
//! **Method.** Machines are ranked by cost saved for each move, then for each byte. They are emptied in that order: the
//! largest replica first, each to where least is left over among the fullest machines with room; where nothing has room, a chain of up to three replicas makes
//! some. What costs moves without saving is taken back. Other orders and sets of machines are tried, and for the next machine
//! that did not come empty a local search over all places ([`search`]). The largest saving counts, then the fewest moves.

mod drain;
mod empty;
mod faults;
mod order;
mod packing;
pub mod search;
#[cfg(test)]
mod tests;

use packing::Packing;

pub use faults::{Dimension, Fault};

/// What a replica needs, or a machine has, in all. Units: millionths of a vCPU, bytes, bytes, whole devices, slots to attach
/// disks, addresses. A machine without a bound in one of them has `u64::MAX` there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amounts {
    pub cpu: u64,
    pub memory: u64,
    pub ephemeral: u64,
    pub gpus: u64,
    pub disks: u64,
    pub addresses: u64,
}

/// Whether a machine may be given more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Open,
    /// Draining, cordoned or silent: replicas may leave, none may come.
    Shut,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Less the system's reserve.
    pub capacity: Amounts,
    pub zone: u16,
    /// Group, architecture, labels and GPU type folded into one number by who takes the snapshot.
    pub kind: u16,
    /// What the machine costs for as long as the plan is to pay off, in any unit; nought: freeing it saves nothing.
    pub cost: u64,
    pub door: Door,
}

/// Whether and how a replica can move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Movable {
    /// A new one starts at the target before the old one ends.
    Freely,
    /// Stateful: within its zone, and it ends at the source before it starts at the target.
    InZone,
    Never,
    /// One on each machine (daemon): it keeps no machine occupied and goes with it.
    WithMachine,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    pub needs: Amounts,
    /// Index in [`Snapshot::sets`].
    pub set: usize,
    /// Index in [`Snapshot::machines`].
    pub machine: usize,
    pub movable: Movable,
    /// Bytes that a move copies or reads again.
    pub bytes: u64,
    /// Kinds of machine it may move to; empty: any.
    pub kinds: Vec<u16>,
    /// Zones it may move to; empty: any.
    pub zones: Vec<u16>,
    pub host_ports: Vec<u16>,
}

/// The replicas of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set {
    /// A move brings no machine above so many of them.
    pub per_machine: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    pub machines: Vec<Machine>,
    pub replicas: Vec<Replica>,
    pub sets: Vec<Set>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stateful {
    Stay,
    MayMove,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Moves in the whole plan: what an hour may have.
    pub moves: u32,
    /// [`Replica::bytes`] in the whole plan.
    pub bytes: u64,
    /// Moves in one wave.
    pub in_flight: u32,
    pub stateful: Stateful,
    /// What a move costs, in the unit of [`Machine::cost`]; a machine is freed only for more than its moves cost.
    pub move_price: u64,
    /// Work, counted in looks at one machine for one replica, about 10 ns each.
    pub steps: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Start at the target, then end at the source.
    Surge,
    /// End at the source, then attach and start at the target.
    Detach,
}

/// Why a move is in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its machine is one of [`Plan::freed`].
    Frees,
    /// It makes room on a machine that takes replicas of a freed one.
    MakesRoom,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Index in [`Snapshot::replicas`].
    pub replica: usize,
    pub from: usize,
    pub to: usize,
    pub how: How,
    pub why: Why,
    /// Counts from nought. The moves of a wave may be in flight together; the next wave waits for all of them.
    pub wave: u32,
    /// What is left of the target's scarcest dimension once the plan is done, in thousandths of its capacity.
    pub left_permille: u16,
}

/// Why an occupied machine that costs something is not freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// A replica that never moves.
    Pinned {
        replica: usize,
    },
    /// A stateful replica, and the budget leaves those in place.
    Stateful {
        replica: usize,
    },
    /// More moves than the budget has left.
    Moves {
        needed: u32,
        left: u32,
    },
    Bytes {
        needed: u64,
        left: u64,
    },
    /// Its moves cost as much as the machine.
    Price {
        price: u64,
    },
    /// This replica found no place, not even by chains.
    NoRoom {
        replica: usize,
    },
    /// The steps were used up before it was tried.
    Steps,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In the order in which they can be made.
    pub moves: Vec<Move>,
    /// Machines that hold nothing afterwards, in the order of their index.
    pub freed: Vec<usize>,
    /// The cost of the freed machines, prices of moves deducted.
    pub saving: u64,
    /// Of all moves.
    pub bytes: u64,
    /// Every other occupied machine that costs something, with what keeps it, by index.
    pub kept: Vec<(usize, Kept)>,
    /// Occupied machines that cost something are at least so many whatever moves, by volume and by what is pinned.
    pub occupied_at_least: usize,
    pub steps: u64,
}

/// Plans moves that free machines.
///
/// # Errors
/// Every absurdity of the snapshot; it plans nothing on numbers that cannot be true.
pub fn plan(snapshot: &Snapshot, budget: &Budget) -> Result<Plan, Vec<Fault>> {
    faults::check(snapshot)?;
    let mut packing = Packing::new(snapshot, budget);
    let best = empty::best(&mut packing);
    Ok(order::plan(&packing, best))
}
