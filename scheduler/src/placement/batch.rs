//! Many requests at once: a replica set, a zone that was lost, a burst of starts.
//!
//! Input: an engine and requests in the order in which they came. Output: a choice for each that fits, taken in the engine.
//! Pure, deterministic, bounded work. The online path ([`Engine::choose`]) never waits for it.
//!
//! 1. Requests for several whole devices go first, then the larger share of the largest machine (its scarcest dimension),
//!    then as given: what is small finds the gaps that what is large leaves.
//! 2. For what did not fit, [`make_room`]: at most [`MOVES_MAX`] requests of the same burst, which nobody has started yet,
//!    go elsewhere.
//! 3. If the order in which they came would still have placed more, it is taken instead. So a burst never places fewer
//!    requests than one after the other would.
//!
//! [`make_room`] also serves callers that may move what runs already, under a budget of moves.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::engine::{Ask, Choice, Demand, Engine, GpuNeed, MachineIdx};

/// Requests that one other may push elsewhere.
pub const MOVES_MAX: usize = 3;
/// Machines or devices that are tried for one request that does not fit.
pub const TRIES_MAX: usize = 32;
/// Requests of one burst for which room is made. The work of a burst is bounded by this, [`TRIES_MAX`] and
/// [`MOVES_MAX`]: about 10 000 decisions beside the first ones.
const ROOMS_MAX: usize = 100;

/// What is better when not everything fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    /// More requests, whatever their size.
    Requests,
    /// More GPU, then more requests.
    Devices,
}

/// Places a burst: a choice for each request in the order given, none for what does not fit. What is chosen is taken.
pub fn place(engine: &mut Engine, asks: &[Ask], aim: Aim) -> Vec<Option<Choice>> {
    let mut choices = in_order(engine, asks, &largest_first(engine, asks));
    if choices.iter().all(Option::is_some) {
        return choices;
    }
    improve(engine, asks, &mut choices);
    if choices.iter().all(Option::is_some) {
        return choices;
    }
    let reached = value(engine, asks, &choices, aim);
    give_back(engine, asks, &choices);
    let as_given: Vec<usize> = (0..asks.len()).collect();
    let online = in_order(engine, asks, &as_given);
    if value(engine, asks, &online, aim) > reached {
        return online;
    }
    give_back(engine, asks, &online);
    for (ask, choice) in asks.iter().zip(&choices) {
        if let Some(choice) = choice {
            engine.take(ask, *choice);
        }
    }
    choices
}

/// Thousandths of devices if the aim counts them, and requests.
fn value(engine: &Engine, asks: &[Ask], choices: &[Option<Choice>], aim: Aim) -> (u64, usize) {
    let placed = asks.iter().zip(choices).filter(|(_, choice)| choice.is_some());
    let milli = match aim {
        Aim::Requests => 0,
        Aim::Devices => placed
            .clone()
            .map(|(ask, _)| milli_of(engine.demand(ask.class).gpu))
            .sum(),
    };
    (milli, placed.count())
}

fn milli_of(gpu: GpuNeed) -> u64 {
    match gpu {
        GpuNeed::None => 0,
        GpuNeed::Whole(count) => u64::from(count) * 1000,
        GpuNeed::Share(milli) => u64::from(milli),
    }
}

fn in_order(engine: &mut Engine, asks: &[Ask], order: &[usize]) -> Vec<Option<Choice>> {
    let mut choices = vec![None; asks.len()];
    for &number in order {
        let ask = &asks[number];
        let choice = engine.choose(ask);
        if let Some(choice) = choice {
            engine.take(ask, choice);
        }
        choices[number] = choice;
    }
    choices
}

fn give_back(engine: &mut Engine, asks: &[Ask], choices: &[Option<Choice>]) {
    for (ask, choice) in asks.iter().zip(choices) {
        if let Some(choice) = choice {
            engine.release(ask, *choice);
        }
    }
}

/// The order in which the requests of a burst are placed.
#[must_use]
pub fn largest_first(engine: &Engine, asks: &[Ask]) -> Vec<usize> {
    let largest = engine.largest_profile();
    let devices = largest.free_devices();
    let size = |ask: &Ask| {
        let demand = engine.demand(ask.class);
        let whole = match demand.gpu {
            GpuNeed::None | GpuNeed::Share(_) => 0,
            GpuNeed::Whole(count) => count,
        };
        let shares = [
            share(milli_of(demand.gpu), devices),
            share(demand.cpu, u64::from(largest.cpu)),
            share(demand.memory, largest.memory),
            share(demand.ephemeral, largest.ephemeral),
        ];
        (whole, shares.into_iter().max().unwrap_or(0))
    };
    let sizes: Vec<(u8, u64)> = asks.iter().map(size).collect();
    let mut order: Vec<usize> = (0..asks.len()).collect();
    order.sort_by_key(|number| (Reverse(sizes[*number]), *number));
    order
}

/// `part` of `whole` in 65536ths; amounts are below 2^52, and shapes larger than the machine go first.
fn share(part: u64, whole: u64) -> u64 {
    let scaled = u128::from(part) * 65_536 / u128::from(whole.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// Makes room within the burst for what did not fit.
fn improve(engine: &mut Engine, asks: &[Ask], choices: &mut [Option<Choice>]) {
    let mut tenants = Tenants::default();
    let mut numbers = BTreeMap::new();
    for (number, (ask, choice)) in asks.iter().zip(choices.iter()).enumerate() {
        if let Some(choice) = choice {
            numbers.insert(tenants.add(*ask, *choice), number);
        }
    }
    let missing: Vec<usize> = (0..asks.len())
        .filter(|number| choices[*number].is_none())
        .collect();
    for number in missing.into_iter().take(ROOMS_MAX) {
        if let Some(room) = make_room(engine, &mut tenants, &asks[number], MOVES_MAX) {
            numbers.insert(room.tenant, number);
            choices[number] = Some(room.choice);
            for (tenant, choice) in room.moves {
                choices[numbers[&tenant]] = Some(choice);
            }
        }
    }
}

/// A placed request that may be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TenantId(usize);

/// Placed requests that may be moved, and where they are.
#[derive(Debug, Clone, Default)]
pub struct Tenants {
    held: Vec<(Ask, Choice)>,
    /// By machine, in the order in which they came there.
    on: BTreeMap<MachineIdx, Vec<TenantId>>,
}

impl Tenants {
    /// A request that the engine has taken.
    pub fn add(&mut self, ask: Ask, choice: Choice) -> TenantId {
        let id = TenantId(self.held.len());
        let ask = Ask { prefer: None, ..ask };
        self.held.push((ask, choice));
        self.on.entry(choice.machine).or_default().push(id);
        id
    }

    #[must_use]
    pub fn choice(&self, id: TenantId) -> Choice {
        self.held[id.0].1
    }

    fn set(&mut self, id: TenantId, choice: Choice) {
        let before = std::mem::replace(&mut self.held[id.0].1, choice);
        if let Some(others) = self.on.get_mut(&before.machine) {
            others.retain(|other| *other != id);
        }
        self.on.entry(choice.machine).or_default().push(id);
    }
}

/// What making room did; the engine and the tenants stand so already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// The request that fits now.
    pub tenant: TenantId,
    pub choice: Choice,
    /// Who went where.
    pub moves: Vec<(TenantId, Choice)>,
}

/// Places a request that fits nowhere by moving at most so many tenants, each to a place that it would choose itself. None,
/// and nothing has changed, when [`TRIES_MAX`] tries found no way.
pub fn make_room(engine: &mut Engine, tenants: &mut Tenants, ask: &Ask, moves_max: usize) -> Option<Room> {
    let demand = *engine.demand(ask.class);
    let mut plans: Vec<Plan> = vec![];
    for (machine, ids) in &tenants.on {
        if engine.is_open(*machine) && !ids.is_empty() {
            plans_on(engine, tenants, &demand, *machine, ids, &mut plans);
        }
    }
    plans.retain(|plan| plan.leave.len() <= moves_max.min(MOVES_MAX));
    plans.sort_by(|one, other| {
        (one.size, one.machine, &one.leave).cmp(&(other.size, other.machine, &other.leave))
    });
    let found = plans
        .iter()
        .take(TRIES_MAX)
        .find_map(|plan| attempt(engine, tenants, ask, plan));
    let (choice, moves) = found?;
    for (id, choice) in &moves {
        tenants.set(*id, *choice);
    }
    let tenant = tenants.add(*ask, choice);
    Some(Room {
        tenant,
        choice,
        moves,
    })
}

/// Who would have to leave a machine.
#[derive(Debug)]
struct Plan {
    /// How much has to find another place: devices first, then processors.
    size: (u64, u64),
    machine: MachineIdx,
    leave: Vec<TenantId>,
}

/// Ways to make room on one machine: everyone from one device, or any single tenant.
fn plans_on(
    engine: &Engine,
    tenants: &Tenants,
    demand: &Demand,
    machine: MachineIdx,
    ids: &[TenantId],
    plans: &mut Vec<Plan>,
) {
    let row = engine.row(machine);
    let mut groups: Vec<Vec<TenantId>> = ids.iter().map(|id| vec![*id]).collect();
    if demand.gpu != GpuNeed::None {
        for device in 0..row.devices.len() {
            let there = ids
                .iter()
                .filter(|id| tenants.choice(**id).devices.0 >> device & 1 == 1);
            let there: Vec<TenantId> = there.copied().collect();
            if (2..=MOVES_MAX).contains(&there.len()) {
                groups.push(there);
            }
        }
    }
    for leave in groups {
        let (mut cpu, mut memory, mut ephemeral) = (u64::from(row.cpu), row.memory, row.ephemeral);
        let (mut devices, mut milli, mut processors) = (row.devices, 0, 0);
        for id in &leave {
            let (ask, choice) = &tenants.held[id.0];
            let gone = engine.demand(ask.class);
            cpu += gone.cpu;
            memory += gone.memory;
            ephemeral += gone.ephemeral;
            processors += gone.cpu;
            for device in choice.devices.iter() {
                let freed = match gone.gpu {
                    GpuNeed::None => 0,
                    GpuNeed::Whole(_) => 1000,
                    GpuNeed::Share(milli) => milli,
                };
                devices[device] += freed;
                milli += u64::from(freed);
            }
        }
        let large = |least: u16| devices.iter().filter(|free| **free >= least).count();
        let has_devices = match demand.gpu {
            GpuNeed::None => true,
            GpuNeed::Whole(count) => large(1000) >= usize::from(count),
            GpuNeed::Share(milli) => large(milli) >= 1,
        };
        if has_devices && cpu >= demand.cpu && memory >= demand.memory && ephemeral >= demand.ephemeral {
            plans.push(Plan {
                size: (milli, processors),
                machine,
                leave,
            });
        }
    }
}

/// Does what a plan says, or nothing.
fn attempt(
    engine: &mut Engine,
    tenants: &Tenants,
    ask: &Ask,
    plan: &Plan,
) -> Option<(Choice, Vec<(TenantId, Choice)>)> {
    for id in &plan.leave {
        let (ask, choice) = &tenants.held[id.0];
        engine.release(ask, *choice);
    }
    let here = Ask {
        prefer: Some(plan.machine),
        ..*ask
    };
    let choice = engine.choose(&here);
    let mut moves: Vec<(TenantId, Choice)> = vec![];
    if let Some(choice) = choice {
        engine.take(ask, choice);
        for id in &plan.leave {
            let (ask, _) = &tenants.held[id.0];
            let Some(choice) = engine.choose(ask) else { break };
            engine.take(ask, choice);
            moves.push((*id, choice));
        }
        if moves.len() == plan.leave.len() {
            return Some((choice, moves));
        }
        engine.release(ask, choice);
    }
    for (id, choice) in moves {
        engine.release(&tenants.held[id.0].0, choice);
    }
    for id in &plan.leave {
        let (ask, choice) = &tenants.held[id.0];
        engine.take(ask, *choice);
    }
    None
}

#[cfg(test)]
mod tests;
