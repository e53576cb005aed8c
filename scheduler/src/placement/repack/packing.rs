//! Who lies where while a plan is sought: rooms, counts, and the budget used so far. Every change can be taken back.

use std::collections::BTreeMap;

use super::faults::parts;
use super::{Budget, Door, Movable, Snapshot, Stateful};

pub(super) type Parts = [u64; 6];

/// The state of a search. Invariant: no machine that is not overfull in the snapshot, which is refused, ever becomes so.
#[derive(Debug)]
pub(super) struct Packing<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) budget: Budget,
    pub(super) needs: Vec<Parts>,
    /// Where each replica is now.
    pub(super) place: Vec<usize>,
    pub(super) free: Vec<Parts>,
    /// Replicas on each machine, those that go with it left out; in no order that counts.
    pub(super) on: Vec<Vec<usize>>,
    /// Host ports on each machine of those that go with it.
    fixed_ports: Vec<Vec<u16>>,
    /// Machines that take nothing for now: shut in the snapshot, being emptied, or freed.
    pub(super) shut: Vec<bool>,
    /// All machines, those with the least room first, as it was when the attempt began.
    pub(super) fullest: Vec<usize>,
    /// Replicas that are not where the snapshot has them, and their bytes.
    pub(super) moves: u32,
    pub(super) bytes: u64,
    pub(super) steps: u64,
    /// Steps at which the present attempt ends.
    pub(super) steps_max: u64,
    /// Every relocation since the start or the last [`Self::forget`]: replica and where it was.
    trail: Vec<(usize, usize)>,
    rules: Rules,
    /// The largest capacity of all machines: what shares refer to.
    scale: Parts,
}

/// Which replica may go to which machine by kind and zone alone, by table.
#[derive(Debug)]
struct Rules {
    rule: Vec<usize>,
    cell: Vec<usize>,
    cells: usize,
    allowed: Vec<bool>,
}

/// Kinds, zones, and the only zone of what is stateful.
type Rule<'a> = (&'a [u16], &'a [u16], Option<u16>);

impl Rules {
    fn new(snapshot: &Snapshot) -> Self {
        let mut cells: BTreeMap<(u16, u16), usize> = BTreeMap::new();
        let mut cell = Vec::with_capacity(snapshot.machines.len());
        for machine in &snapshot.machines {
            let next = cells.len();
            cell.push(*cells.entry((machine.kind, machine.zone)).or_insert(next));
        }
        let mut rules: BTreeMap<Rule<'_>, usize> = BTreeMap::new();
        let mut rule = Vec::with_capacity(snapshot.replicas.len());
        for replica in &snapshot.replicas {
            let zone = match replica.movable {
                Movable::InZone => Some(snapshot.machines[replica.machine].zone),
                Movable::Freely | Movable::Never | Movable::WithMachine => None,
            };
            let next = rules.len();
            let key = (&replica.kinds[..], &replica.zones[..], zone);
            rule.push(*rules.entry(key).or_insert(next));
        }
        let mut allowed = vec![false; rules.len() * cells.len()];
        for ((kinds, zones, only), rule) in rules {
            for ((kind, zone), cell) in &cells {
                allowed[rule * cells.len() + cell] = (kinds.is_empty() || kinds.contains(kind))
                    && (zones.is_empty() || zones.contains(zone))
                    && only.is_none_or(|only| only == *zone);
            }
        }
        Self {
            rule,
            cell,
            cells: cells.len(),
            allowed,
        }
    }

    fn allow(&self, replica: usize, machine: usize) -> bool {
        self.allowed[self.rule[replica] * self.cells + self.cell[machine]]
    }
}

impl<'a> Packing<'a> {
    /// The snapshot has no faults.
    pub(super) fn new(snapshot: &'a Snapshot, budget: &Budget) -> Self {
        let machines = snapshot.machines.len();
        let mut free: Vec<Parts> = Vec::with_capacity(machines);
        let mut scale = [1; 6];
        for machine in &snapshot.machines {
            let capacity = parts(&machine.capacity);
            for (scale, capacity) in scale.iter_mut().zip(capacity) {
                // Without a bound is without a share.
                if capacity < u64::MAX {
                    *scale = capacity.max(*scale);
                }
            }
            free.push(capacity);
        }
        let mut on = vec![Vec::new(); machines];
        let mut fixed_ports = vec![Vec::new(); machines];
        let mut needs = Vec::with_capacity(snapshot.replicas.len());
        for (index, replica) in snapshot.replicas.iter().enumerate() {
            let amounts = parts(&replica.needs);
            for (free, amount) in free[replica.machine].iter_mut().zip(amounts) {
                *free -= amount;
            }
            if replica.movable != Movable::WithMachine {
                on[replica.machine].push(index);
            } else {
                fixed_ports[replica.machine].extend_from_slice(&replica.host_ports);
            }
            needs.push(amounts);
        }
        Self {
            snapshot,
            budget: *budget,
            needs,
            place: snapshot.replicas.iter().map(|replica| replica.machine).collect(),
            free,
            on,
            fixed_ports,
            shut: snapshot
                .machines
                .iter()
                .map(|machine| machine.door == Door::Shut)
                .collect(),
            fullest: (0..machines).collect(),
            moves: 0,
            bytes: 0,
            steps: 0,
            steps_max: budget.steps,
            trail: Vec::new(),
            rules: Rules::new(snapshot),
            scale,
        }
    }

    pub(super) fn home(&self, replica: usize) -> usize {
        self.snapshot.replicas[replica].machine
    }

    pub(super) fn spent(&self) -> bool {
        self.steps_left() == 0
    }

    pub(super) fn steps_left(&self) -> u64 {
        self.steps_max.saturating_sub(self.steps)
    }

    /// Whether the replica may leave its machine at all.
    pub(super) fn may_move(&self, replica: usize) -> bool {
        match self.snapshot.replicas[replica].movable {
            Movable::Freely => true,
            Movable::InZone => self.budget.stateful == Stateful::MayMove,
            Movable::Never | Movable::WithMachine => false,
        }
    }

    /// Whether everything but room is right for the replica on the machine.
    pub(super) fn welcome(&self, replica: usize, machine: usize) -> bool {
        if self.shut[machine] || !self.rules.allow(replica, machine) {
            return false;
        }
        let facts = &self.snapshot.replicas[replica];
        let limit = self.snapshot.sets[facts.set].per_machine;
        let limited = usize::try_from(limit).is_ok_and(|limit| limit <= self.on[machine].len());
        if !limited && facts.host_ports.is_empty() {
            return true;
        }
        let fixed = &self.fixed_ports[machine];
        if facts.host_ports.iter().any(|port| fixed.contains(port)) {
            return false;
        }
        let mut of_set = 0;
        for other in &self.on[machine] {
            if *other == replica {
                continue;
            }
            let other = &self.snapshot.replicas[*other];
            of_set += u32::from(other.set == facts.set);
            if other
                .host_ports
                .iter()
                .any(|port| facts.host_ports.contains(port))
            {
                return false;
            }
        }
        of_set < limit
    }

    pub(super) fn has_room(&self, replica: usize, machine: usize) -> bool {
        let needs = &self.needs[replica];
        let free = &self.free[machine];
        needs.iter().zip(free).all(|(need, free)| need <= free)
    }

    pub(super) fn fits(&self, replica: usize, machine: usize) -> bool {
        self.has_room(replica, machine) && self.welcome(replica, machine)
    }

    /// The moves and bytes that the plan would have more if the replica went to the machine.
    pub(super) fn price(&self, replica: usize, machine: usize) -> (i64, i128) {
        let home = self.home(replica);
        let more = i64::from(machine != home) - i64::from(self.place[replica] != home);
        let bytes = i128::from(self.snapshot.replicas[replica].bytes);
        (more, bytes * i128::from(more))
    }

    /// Whether the budget allows the replica to be there.
    pub(super) fn affordable(&self, replica: usize, machine: usize) -> bool {
        let (moves, bytes) = self.price(replica, machine);
        i64::from(self.moves) + moves <= i64::from(self.budget.moves)
            && i128::from(self.bytes) + bytes <= i128::from(self.budget.bytes)
    }

    /// Puts the replica there, whether or not there is room; who asks has looked.
    pub(super) fn relocate(&mut self, replica: usize, to: usize) {
        let from = self.place[replica];
        self.trail.push((replica, from));
        self.carry(replica, to);
    }

    fn carry(&mut self, replica: usize, to: usize) {
        let (moves, bytes) = self.price(replica, to);
        let from = self.place[replica];
        assert!(from != to, "replica {replica} is on machine {to} already");
        let at = self.on[from].iter().position(|other| *other == replica);
        self.on[from].swap_remove(at.expect("a replica is on its machine"));
        self.on[to].push(replica);
        // Two that change places pass through a state in which one machine has less than nothing free.
        for (dimension, need) in self.needs[replica].iter().enumerate() {
            self.free[from][dimension] = self.free[from][dimension].wrapping_add(*need);
            self.free[to][dimension] = self.free[to][dimension].wrapping_sub(*need);
        }
        self.place[replica] = to;
        self.moves = u32::try_from(i64::from(self.moves) + moves).expect("moves count replicas");
        self.bytes = u64::try_from(i128::from(self.bytes) + bytes).expect("bytes of all replicas add up");
    }

    /// Whether the machine holds a replica, or costs nothing and may as well.
    pub(super) fn occupied(&self, machine: usize) -> bool {
        !self.on[machine].is_empty() || self.snapshot.machines[machine].cost == 0
    }

    /// Whether kind, zone and door of the machine are right for the replica.
    pub(super) fn allows(&self, replica: usize, machine: usize) -> bool {
        !self.shut[machine] && self.rules.allow(replica, machine)
    }

    /// How much more room the machine would need for the replica: the sum over the dimensions, each of 2^20.
    pub(super) fn lack(&self, replica: usize, machine: usize) -> u64 {
        let needs = self.needs[replica]
            .iter()
            .zip(&self.free[machine])
            .zip(&self.scale);
        needs
            .map(|((need, free), scale)| share(need.saturating_sub(*free), *scale))
            .sum()
    }

    /// Whether the replica would have room on the rival's machine if the rival left it.
    pub(super) fn would_do(&self, replica: usize, rival: usize) -> bool {
        let needs = self.needs[replica].iter().zip(&self.needs[rival]);
        let free = &self.free[self.place[rival]];
        needs
            .zip(free)
            .all(|((need, gone), free)| *need <= free.saturating_add(*gone))
    }

    /// Whether two replicas on different machines may change places.
    pub(super) fn may_swap(&self, one: usize, other: usize) -> bool {
        let (here, there) = (self.place[one], self.place[other]);
        if !self.would_do(one, other) || !self.would_do(other, one) {
            return false;
        }
        let (moves, bytes) = self.price(one, there);
        let (moves_back, bytes_back) = self.price(other, here);
        i64::from(self.moves) + moves + moves_back <= i64::from(self.budget.moves)
            && i128::from(self.bytes) + bytes + bytes_back <= i128::from(self.budget.bytes)
            && self.welcome(one, there)
            && self.welcome(other, here)
    }

    /// Makes the machine a target again, if the snapshot has it as one.
    pub(super) fn reopen(&mut self, machine: usize) {
        self.shut[machine] = self.snapshot.machines[machine].door == Door::Shut;
    }

    /// Puts the machines in order for an attempt.
    pub(super) fn begin(&mut self) {
        let mut room: Vec<(u64, usize)> = Vec::with_capacity(self.free.len());
        for (machine, free) in self.free.iter().enumerate() {
            let shares = free.iter().zip(&self.scale).filter(|(_, scale)| **scale > 1);
            room.push((
                shares
                    .map(|(free, scale)| share(*free, *scale).min(1 << 24))
                    .sum(),
                machine,
            ));
        }
        room.sort_unstable();
        self.fullest = room.into_iter().map(|(_, machine)| machine).collect();
        self.look(self.free.len());
    }

    /// Counts work.
    pub(super) fn look(&mut self, times: usize) {
        self.steps = self
            .steps
            .saturating_add(u64::try_from(times).unwrap_or(u64::MAX));
    }

    pub(super) fn scale(&self) -> &Parts {
        &self.scale
    }

    pub(super) fn mark(&self) -> usize {
        self.trail.len()
    }

    /// Takes back every relocation since the mark.
    pub(super) fn back_to(&mut self, mark: usize) {
        while self.trail.len() > mark {
            let (replica, from) = self.trail.pop().expect("longer than the mark");
            if self.place[replica] != from {
                self.carry(replica, from);
            }
        }
    }

    /// How much the replica takes of the largest machine in its scarcest dimension, of 2^20.
    pub(super) fn size(&self, replica: usize) -> u64 {
        let shares = self.needs[replica].iter().zip(&self.scale);
        shares
            .map(|(need, scale)| share(*need, *scale).min(1 << 24))
            .max()
            .unwrap_or(0)
    }

    /// What would be left of the machine with the replica on it: the sum over the dimensions that it has, each of 2^20.
    pub(super) fn slack(&self, replica: usize, machine: usize) -> u64 {
        let capacity = parts(&self.snapshot.machines[machine].capacity);
        let mut slack = 0;
        for (dimension, capacity) in capacity.into_iter().enumerate() {
            if capacity > 0 && capacity < u64::MAX {
                let left = self.free[machine][dimension] - self.needs[replica][dimension];
                slack += share(left, self.scale[dimension]);
            }
        }
        slack
    }
}

/// `part / whole`, of 2^20.
pub(super) fn share(part: u64, whole: u64) -> u64 {
    if part < 1 << 44 {
        (part << 20) / whole
    } else {
        let scaled = (u128::from(part) << 20) / u128::from(whole);
        u64::try_from(scaled).unwrap_or(u64::MAX >> 4).min(u64::MAX >> 4)
    }
}
