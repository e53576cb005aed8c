//! Which machines to empty, and the attempts to do so.

use super::drain;
use super::order;
use super::packing::Packing;
use super::search::Dice;
use super::{Kept, Movable};

/// Machines on which a chain looks for room, the least lacking first.
const CHAIN_WIDTH: usize = 8;
/// Machines with room that are compared for a replica, the fullest first.
const FITS_MAX: usize = 64;
/// Replicas that move to make room for one.
const CHAIN_DEPTH: u32 = 2;
/// Orders of the machines that are tried by chance after those that are tried by reason.
const SHUFFLES: u64 = 6;
/// Machines for which a local search is run, in each attempt.
const DRAINS_MAX: usize = 8;

/// A state that was found, and what it is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) place: Vec<usize>,
    pub(super) freed: Vec<usize>,
    pub(super) kept: Vec<(usize, Kept)>,
    pub(super) net: u64,
    pub(super) moves: u32,
    pub(super) bytes: u64,
}

impl Found {
    fn better_than(&self, other: &Self) -> bool {
        (self.net, other.moves, other.bytes) > (other.net, self.moves, self.bytes)
    }
}

/// In what order machines are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Cost saved for each move, then for each byte.
    Cheapest,
    /// The smallest load for its cost first.
    Lightest,
    /// As the first, each machine's moves weighed by chance.
    Shuffled(u64),
}

/// Whether replicas of machines that stay may move. If they do not, targets only gain, and every order of the moves works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Direct,
    Chains,
}

/// Tries one order after the other. The first has half of the steps, each further one half of what is left.
pub(super) fn best(packing: &mut Packing<'_>) -> Found {
    let mut attempts = vec![
        (Order::Cheapest, Reach::Direct),
        (Order::Cheapest, Reach::Chains),
        (Order::Lightest, Reach::Chains),
    ];
    attempts.extend((1..=SHUFFLES).map(|seed| (Order::Shuffled(seed), Reach::Chains)));
    let mut best: Option<Found> = None;
    for (order, reach) in attempts {
        packing.steps_max = packing.budget.steps;
        packing.steps_max = packing.steps.saturating_add(packing.steps_left() / 2);
        let found = attempt(packing, order, reach);
        let is_better = best.as_ref().is_none_or(|best| found.better_than(best));
        // The first needs no such test, and is there if all others fail it.
        if is_better
            && (reach == Reach::Direct
                || order::waves(packing.snapshot, &packing.budget, &found.place).is_some())
        {
            best = Some(found);
        }
    }
    best.expect("the first attempt is taken")
}

/// Empties machines in the order given, and leaves the packing as it was.
fn attempt(packing: &mut Packing<'_>, order: Order, reach: Reach) -> Found {
    let start = packing.mark();
    packing.begin();
    let mut freed = Vec::new();
    let mut kept = Vec::new();
    for machine in candidates(packing, order) {
        match empty(packing, machine, reach) {
            Ok(()) => freed.push(machine),
            Err(why) => kept.push((machine, why)),
        }
    }
    if reach == Reach::Chains {
        drain_more(packing, &mut freed, &mut kept);
        trim(packing);
    }
    // What was emptied to make room elsewhere is free as well.
    let by_the_way = |(machine, _): &(usize, Kept)| packing.on[*machine].is_empty();
    freed.extend(
        kept.iter()
            .filter(|entry| by_the_way(entry))
            .map(|(machine, _)| *machine),
    );
    kept.retain(|entry| !by_the_way(entry));
    freed.sort_unstable();
    kept.sort_unstable_by_key(|(machine, _)| *machine);
    let cost: u64 = freed
        .iter()
        .map(|machine| packing.snapshot.machines[*machine].cost)
        .sum();
    let price = packing.budget.move_price.saturating_mul(u64::from(packing.moves));
    let found = Found {
        place: packing.place.clone(),
        net: cost.saturating_sub(price),
        moves: packing.moves,
        bytes: packing.bytes,
        freed,
        kept,
    };
    for machine in &found.freed {
        packing.reopen(*machine);
    }
    packing.back_to(start);
    found
}

/// Occupied machines that cost something.
fn candidates(packing: &Packing<'_>, order: Order) -> Vec<usize> {
    let mut dice = Dice::new(match order {
        Order::Cheapest | Order::Lightest => 0,
        Order::Shuffled(seed) => seed,
    });
    let mut ranked = Vec::new();
    for (machine, on) in packing.on.iter().enumerate() {
        let cost = packing.snapshot.machines[machine].cost;
        if on.is_empty() || cost == 0 {
            continue;
        }
        let moves = u64::try_from(on.len()).expect("replicas can be counted") << 8;
        let bytes = bytes(packing, on.iter().copied());
        let weight = match order {
            Order::Cheapest => moves,
            Order::Lightest => on.iter().map(|replica| packing.size(*replica)).sum(),
            // Between one and two times the moves.
            Order::Shuffled(_) => moves + ((moves * (dice.roll() & 0xff)) >> 8),
        };
        // The least weight for each unit of cost comes first.
        let rank = (u128::from(weight) << 64) / u128::from(cost);
        ranked.push((rank, u128::from(bytes) / u128::from(cost), machine));
    }
    ranked.sort_unstable();
    ranked.into_iter().map(|(_, _, machine)| machine).collect()
}

fn bytes(packing: &Packing<'_>, replicas: impl Iterator<Item = usize>) -> u64 {
    replicas
        .map(|replica| packing.snapshot.replicas[replica].bytes)
        .sum()
}

/// Finds another place for each replica of the machine, or changes nothing.
fn empty(packing: &mut Packing<'_>, machine: usize, reach: Reach) -> Result<(), Kept> {
    affordable(packing, machine)?;
    let mark = packing.mark();
    let moves = packing.moves;
    packing.shut[machine] = true;
    let mut replicas = packing.on[machine].clone();
    replicas.sort_unstable_by_key(|replica| (std::cmp::Reverse(packing.size(*replica)), *replica));
    for replica in replicas {
        let placed = rehome(packing, replica, usize::MAX)
            || (reach == Reach::Chains && make_room(packing, replica, CHAIN_DEPTH));
        if !placed {
            packing.back_to(mark);
            packing.reopen(machine);
            return Err(if packing.spent() {
                Kept::Steps
            } else {
                Kept::NoRoom { replica }
            });
        }
    }
    let price = packing
        .budget
        .move_price
        .saturating_mul(u64::from(packing.moves.saturating_sub(moves)));
    if price >= packing.snapshot.machines[machine].cost {
        packing.back_to(mark);
        packing.reopen(machine);
        return Err(Kept::Price { price });
    }
    Ok(())
}

/// What forbids emptying the machine whatever room there is.
fn affordable(packing: &Packing<'_>, machine: usize) -> Result<(), Kept> {
    let on = &packing.on[machine];
    if let Some(replica) = on
        .iter()
        .copied()
        .filter(|replica| !packing.may_move(*replica))
        .min()
    {
        return Err(match packing.snapshot.replicas[replica].movable {
            Movable::InZone => Kept::Stateful { replica },
            Movable::Freely | Movable::Never | Movable::WithMachine => Kept::Pinned { replica },
        });
    }
    // Those that came here by this plan have moved already.
    let at_home = || {
        on.iter()
            .copied()
            .filter(|replica| packing.home(*replica) == machine)
    };
    let needed = u32::try_from(at_home().count()).unwrap_or(u32::MAX);
    let left = packing.budget.moves - packing.moves;
    if needed > left {
        return Err(Kept::Moves { needed, left });
    }
    let (needed, left) = (bytes(packing, at_home()), packing.budget.bytes - packing.bytes);
    if needed > left {
        return Err(Kept::Bytes { needed, left });
    }
    let price = packing
        .budget
        .move_price
        .saturating_mul(u64::try_from(at_home().count()).unwrap_or(u64::MAX));
    if price >= packing.snapshot.machines[machine].cost {
        return Err(Kept::Price { price });
    }
    if packing.spent() {
        return Err(Kept::Steps);
    }
    Ok(())
}

/// Moves the replica to the occupied machine where least is left over, of the first few that have room in the order of
/// the attempt; the first of equals.
fn rehome(packing: &mut Packing<'_>, replica: usize, but: usize) -> bool {
    let here = packing.place[replica];
    let mut best: Option<(u64, usize)> = None;
    let (mut looks, mut fits) = (0, 0);
    for &machine in &packing.fullest {
        looks += 1;
        if !packing.has_room(replica, machine) || machine == here || machine == but {
            continue;
        }
        if !packing.occupied(machine)
            || !packing.welcome(replica, machine)
            || !packing.affordable(replica, machine)
        {
            continue;
        }
        // Back home costs a move less.
        let slack = if machine == packing.home(replica) {
            0
        } else {
            packing.slack(replica, machine)
        };
        if best.is_none_or(|least| (slack, machine) < least) {
            best = Some((slack, machine));
        }
        fits += 1;
        if fits == FITS_MAX {
            break;
        }
    }
    packing.look(looks);
    let Some((_, machine)) = best else {
        return false;
    };
    packing.relocate(replica, machine);
    true
}

/// Moves the replica to a machine that one of its smaller replicas leaves for it, with a chain of so many at most.
fn make_room(packing: &mut Packing<'_>, replica: usize, depth: u32) -> bool {
    if packing.spent() {
        return false;
    }
    let here = packing.place[replica];
    let mut lacking = Vec::new();
    for machine in 0..packing.free.len() {
        if machine != here && packing.occupied(machine) && packing.allows(replica, machine) {
            lacking.push((packing.lack(replica, machine), machine));
        }
    }
    packing.look(packing.free.len());
    lacking.sort_unstable();
    for (_, machine) in lacking.into_iter().take(CHAIN_WIDTH) {
        let mut rivals: Vec<(u64, usize)> = Vec::new();
        for rival in &packing.on[machine] {
            let size = packing.size(*rival);
            if size < packing.size(replica) && packing.may_move(*rival) && packing.would_do(replica, *rival) {
                rivals.push((size, *rival));
            }
        }
        packing.look(packing.on[machine].len());
        rivals.sort_unstable();
        for (_, rival) in rivals.into_iter().take(CHAIN_WIDTH / 2) {
            let mark = packing.mark();
            let gone = rehome(packing, rival, here) || (depth > 1 && make_room(packing, rival, depth - 1));
            if gone && packing.fits(replica, machine) && packing.affordable(replica, machine) {
                packing.relocate(replica, machine);
                return true;
            }
            packing.back_to(mark);
        }
    }
    false
}

/// Runs a local search for machines that found no room, while steps are left.
fn drain_more(packing: &mut Packing<'_>, freed: &mut Vec<usize>, kept: &mut Vec<(usize, Kept)>) {
    let mut tries = 0;
    kept.retain(|(machine, why)| {
        if !matches!(why, Kept::NoRoom { .. }) || tries == DRAINS_MAX || packing.spent() {
            return true;
        }
        tries += 1;
        if affordable(packing, *machine).is_ok() && drain::drain(packing, *machine) {
            freed.push(*machine);
            return false;
        }
        true
    });
}

/// Takes back moves that turned out to be needless: home is open and has room.
fn trim(packing: &mut Packing<'_>) {
    let moved: Vec<usize> = (0..packing.place.len())
        .filter(|replica| packing.place[*replica] != packing.home(*replica))
        .collect();
    loop {
        let before = packing.moves;
        for replica in &moved {
            let home = packing.home(*replica);
            if packing.place[*replica] != home && packing.occupied(home) && packing.fits(*replica, home) {
                packing.relocate(*replica, home);
            }
        }
        packing.look(moved.len());
        if packing.moves == before {
            return;
        }
    }
}
