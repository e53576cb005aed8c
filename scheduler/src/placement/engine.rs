//! The placement engine: which machine takes the next replica, decided in about a microsecond whatever the size of the
//! fleet.
//!
//! Input: machines, classes of requests, what was taken and given back. Output: a [`Choice`]. Pure and deterministic: the
//! same calls give the same choices. It knows numbers only; [`super::fleet`] turns a cluster into them.
//!
//! - **Cells.** Machines of one [`Kind`] (group, zone, GPU model, labels) lie together as a structure of arrays of
//!   [`BYTES_PER_MACHINE`] bytes. What never changes about a machine is checked once for each class and cell.
//! - **Classes.** Requests of equal [`Demand`] are one class. A class that is asked for again keeps a tournament tree over
//!   the keys of the machines of each cell (best fit, or the device score). It reads the best at the root. What changed
//!   since it looked last it learns from the log of the cell: lazily when it is asked, or before, by [`Engine::settle`].
//! - **Shapes never seen before** have no tree. They open only blocks of machines whose maxima may fit them, and decide
//!   the same.
//! - **Order** of machines for a request, total: how far a machine would exceed its share of the container's replicas, how
//!   many replicas its zone has, the key less what the [`reserve`] of its kind costs the request, then the order in which
//!   machines were added.

mod cell;
mod demand;
mod gpu;
mod index;
mod maxima;
mod reserve;
mod score;
mod spread;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use cell::{Cell, LOG_LEN, at};
use gpu::gpu_milli;
use index::Tree;
use maxima::Maxima;
use reserve::Reserve;
use spread::SpreadState;

pub use cell::{BYTES_PER_MACHINE, CellFacts};
pub use demand::{
    BYTES_MAX, CPU_MAX, DEVICE_MILLI, DEVICES_MAX, Demand, DemandFault, DeviceSet, GpuNeed, Kind, Machine,
    MachineFault, Row,
};
pub use gpu::{Mix, Prices, Typical, Weights};
pub use spread::Spread;

/// A machine of the fleet, by the order in which it was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineIdx(pub u32);

/// A class of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(u32);

/// A container whose replicas want to be apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpreadId(u32);

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    pub class: ClassId,
    pub spread: Option<SpreadId>,
    /// Where it was before: taken again when it fits there.
    pub prefer: Option<MachineIdx>,
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    pub machine: MachineIdx,
    pub devices: DeviceSet,
}

/// Machines that a fleet can have; their order is kept in 32 bits.
const MACHINES_MAX: usize = 1 << 24;
/// Cells that a fleet can have.
const CELLS_MAX: usize = 1 << 16;
/// From so many machines with replicas of a container on, its requests keep trees of their own, in which the machines
/// that have their share count as full; below, those are set aside one by one for each request.
const BOUND_MIN: usize = if cfg!(test) { 3 } else { 32 };
/// Bytes that all trees together may take. Beyond it the classes that were asked for least recently lose theirs.
const TREES_BYTES_MAX: usize = if cfg!(test) { 1 << 11 } else { 1 << 29 };

#[derive(Debug, Clone, Default)]
pub struct Engine {
    cells: Vec<Cell>,
    maxima: Vec<Maxima>,
    cell_numbers: BTreeMap<CellFacts, usize>,
    /// Cell and slot of each machine.
    places: Vec<(usize, u32)>,
    classes: Vec<Class>,
    class_ids: BTreeMap<Demand, ClassId>,
    /// The class of a container with many replicas, by its demand's class.
    bound_ids: BTreeMap<(ClassId, SpreadId), ClassId>,
    spreads: Vec<SpreadState>,
    mix: Mix,
    reserve: Reserve,
    /// Requests so far: tells which class was asked for least recently.
    asked: u64,
    /// Classes that [`Engine::settle`] looks after: those with trees, and those that were asked for twice.
    kept: Vec<ClassId>,
    /// Where in them it goes on.
    settled: usize,
    trees_bytes: usize,
    /// Keys that a decision has set aside; kept to allocate nothing.
    masked: Vec<(usize, u16)>,
}

#[derive(Debug, Clone)]
struct Class {
    demand: Demand,
    /// The container whose share counts in the keys; see [`BOUND_MIN`].
    bound: Option<SpreadId>,
    indexes: Vec<Index>,
    /// Request that asked for it last; zero for never.
    last_asked: u64,
    is_kept: bool,
}

/// What a class knows of one cell.
#[derive(Debug, Clone)]
struct Index {
    cell: usize,
    tree: Option<Tree>,
    /// Changes of the cell that are in the tree.
    seen: u64,
}

impl Engine {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An engine that knows what is likely to arrive, for fleets with GPUs.
    #[must_use]
    pub fn with_mix(mix: Mix) -> Self {
        Self {
            mix,
            ..Self::default()
        }
    }

    /// Adds a machine that takes replicas.
    ///
    /// # Errors
    /// With everything that is absurd about it; nothing is added then.
    pub fn add_machine(&mut self, machine: &Machine) -> Result<MachineIdx, Vec<MachineFault>> {
        let mut faults = demand::machine_faults(machine);
        let facts = CellFacts {
            kind: machine.kind,
            scale: machine.scale,
        };
        let known = self.cell_numbers.get(&facts).copied();
        if self.places.len() >= MACHINES_MAX {
            faults.push(MachineFault::FleetFull(MACHINES_MAX));
        }
        if known.is_none() && self.cells.len() >= CELLS_MAX {
            faults.push(MachineFault::TooManyKinds(CELLS_MAX));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let cell = known.unwrap_or_else(|| self.add_cell(facts));
        let number = u32::try_from(self.places.len()).expect("below the largest fleet");
        let slot = self.cells[cell].push(number, machine);
        self.reserve.give(cell, machine.usable.free_devices());
        self.places.push((cell, slot));
        Ok(MachineIdx(number))
    }

    fn add_cell(&mut self, facts: CellFacts) -> usize {
        let number = self.cells.len();
        self.reserve.add_cell(&facts);
        self.cells.push(Cell::new(facts));
        self.maxima.push(Maxima::default());
        self.cell_numbers.insert(facts, number);
        for class in &mut self.classes {
            if demand::is_compatible(&class.demand, &facts.kind) {
                class.indexes.push(Index::new(number));
            }
        }
        number
    }

    /// The class of a demand.
    ///
    /// # Errors
    /// With everything that no fleet could ever fulfil about it.
    pub fn class(&mut self, demand: &Demand) -> Result<ClassId, Vec<DemandFault>> {
        if let Some(known) = self.class_ids.get(demand) {
            return Ok(*known);
        }
        let faults = demand::demand_faults(demand);
        if !faults.is_empty() {
            return Err(faults);
        }
        let id = self.add_class(demand, None);
        self.class_ids.insert(*demand, id);
        Ok(id)
    }

    fn add_class(&mut self, demand: &Demand, bound: Option<SpreadId>) -> ClassId {
        let id = ClassId(u32::try_from(self.classes.len()).expect("fewer than 2^32 classes"));
        let cells = self.cells.iter().enumerate();
        let compatible = cells.filter(|(_, cell)| demand::is_compatible(demand, &cell.facts.kind));
        self.classes.push(Class {
            demand: *demand,
            bound,
            indexes: compatible.map(|(number, _)| Index::new(number)).collect(),
            last_asked: 0,
            is_kept: false,
        });
        // A decision that puts the class there allocates nothing.
        self.kept
            .reserve(self.classes.len().saturating_sub(self.kept.len()));
        id
    }

    /// Gives the requests of a container with many replicas trees of their own.
    fn bind(&mut self, class: ClassId, spread: SpreadId) {
        let is_large = self.spreads[at(spread.0)].machine_count() >= BOUND_MIN;
        if is_large && !self.bound_ids.contains_key(&(class, spread)) {
            let demand = *self.demand(class);
            let bound = self.add_class(&demand, Some(spread));
            self.bound_ids.insert((class, spread), bound);
            self.prepare(bound);
        }
    }

    #[must_use]
    pub fn demand(&self, class: ClassId) -> &Demand {
        &self.classes[at(class.0)].demand
    }

    /// A container whose replicas want to be apart.
    pub fn spread(&mut self, rule: Spread) -> SpreadId {
        let id = SpreadId(u32::try_from(self.spreads.len()).expect("fewer than 2^32 containers"));
        self.spreads.push(SpreadState::new(rule));
        id
    }

    /// Replicas of a container on a machine.
    #[must_use]
    pub fn count_on(&self, spread: SpreadId, machine: MachineIdx) -> u32 {
        self.spreads[at(spread.0)].count(machine.0)
    }

    /// Replicas of a container in a zone; none when its zones do not matter.
    #[must_use]
    pub fn count_in_zone(&self, spread: SpreadId, zone: u16) -> u32 {
        self.spreads[at(spread.0)].zone_count(zone)
    }

    #[must_use]
    pub fn spread_rule(&self, spread: SpreadId) -> Spread {
        self.spreads[at(spread.0)].rule
    }

    #[must_use]
    pub fn machine_count(&self) -> usize {
        self.places.len()
    }

    #[must_use]
    pub fn facts(&self, machine: MachineIdx) -> CellFacts {
        let (cell, _) = self.places[at(machine.0)];
        self.cells[cell].facts
    }

    /// The most of each dimension that any machine type of the fleet has.
    #[must_use]
    pub fn largest_profile(&self) -> Row {
        let mut largest = Row::default();
        for cell in &self.cells {
            let scale = &cell.facts.scale;
            largest.cpu = largest.cpu.max(scale.cpu);
            largest.memory = largest.memory.max(scale.memory);
            largest.ephemeral = largest.ephemeral.max(scale.ephemeral);
            if scale.free_devices() > largest.free_devices() {
                largest.devices = scale.devices;
            }
        }
        largest
    }

    /// What is free on a machine.
    #[must_use]
    pub fn row(&self, machine: MachineIdx) -> Row {
        let (cell, slot) = self.places[at(machine.0)];
        self.cells[cell].row(slot)
    }

    /// Disk slots, addresses and host ports that are free on a machine.
    #[must_use]
    pub fn counts(&self, machine: MachineIdx) -> (u8, u8, u16) {
        let (cell, slot) = self.places[at(machine.0)];
        let counts = self.cells[cell].small[at(slot)];
        (counts.disk_slots, counts.addresses, counts.host_ports)
    }

    #[must_use]
    pub fn is_open(&self, machine: MachineIdx) -> bool {
        let (cell, slot) = self.places[at(machine.0)];
        self.cells[cell].small[at(slot)].is_open
    }

    /// Says whether a machine takes replicas: a draining, cordoned or silent one does not.
    pub fn set_open(&mut self, machine: MachineIdx, is_open: bool) {
        let (number, slot) = self.places[at(machine.0)];
        let cell = &mut self.cells[number];
        if cell.small[at(slot)].is_open != is_open {
            cell.small[at(slot)].is_open = is_open;
            cell.note(slot);
            let free = cell.row(slot).free_devices();
            if is_open {
                self.reserve.give(number, free);
            } else {
                self.reserve.take(number, free);
            }
        }
    }

    /// The devices that a request of a class would get on a machine, and its key there; none when it does not fit.
    #[must_use]
    pub fn fit(&self, machine: MachineIdx, class: ClassId) -> Option<(u16, DeviceSet)> {
        let (cell, slot) = self.places[at(machine.0)];
        let (cell, demand) = (&self.cells[cell], &self.classes[at(class.0)].demand);
        if !demand::is_compatible(demand, &cell.facts.kind) {
            return None;
        }
        let (key, devices) = score::key(cell, at(slot), demand, &self.mix);
        (key > 0).then_some((key, devices))
    }

    /// What a key counts for among all machines: less where the machine is kept for requests that need its kind.
    fn standing(&self, key: u16, cell: usize, demand: &Demand) -> i32 {
        i32::from(key) - self.reserve.cost(cell, demand)
    }

    /// The best machine for a request as the fleet stands; none when it fits nowhere. Takes nothing.
    pub fn choose(&mut self, ask: &Ask) -> Option<Choice> {
        self.reserve
            .weigh(&self.classes[at(ask.class.0)].demand, &self.mix);
        self.asked += 1;
        let spread = ask.spread.map(|id| at(id.0));
        if let Some(choice) = ask.prefer.and_then(|machine| self.choose_on(machine, ask)) {
            return Some(choice);
        }
        let bound = ask
            .spread
            .and_then(|spread| self.bound_ids.get(&(ask.class, spread)));
        let number = at(bound.unwrap_or(&ask.class).0);
        let class = &mut self.classes[number];
        if class.last_asked > 0 && !class.is_kept {
            class.is_kept = true;
            self.kept.push(ClassId(
                u32::try_from(number).expect("a class number has 32 bits"),
            ));
        }
        class.last_asked = self.asked;
        let mut best = None;
        for position in 0..self.classes[number].indexes.len() {
            best = self.best_in(number, position, spread, best);
        }
        if best.is_none() {
            best = spread.and_then(|spread| self.best_crowded(ask.class, spread));
        }
        let (_, _, _, machine) = best?;
        let machine = MachineIdx(machine);
        let devices = match self.demand(ask.class).gpu {
            GpuNeed::None => DeviceSet::default(),
            GpuNeed::Whole(_) | GpuNeed::Share(_) => {
                self.fit(machine, ask.class).expect("what was found fits").1
            }
        };
        Some(Choice { machine, devices })
    }

    /// What a request gets on one machine, for what runs once on every machine; none when it does not fit there.
    #[must_use]
    pub fn choose_on(&self, machine: MachineIdx, ask: &Ask) -> Option<Choice> {
        let is_allowed = ask.spread.is_none_or(|spread| {
            let spread = &self.spreads[at(spread.0)];
            spread.count(machine.0) < spread.rule.machine_max
        });
        let (_, devices) = self.fit(machine, ask.class).filter(|_| is_allowed)?;
        Some(Choice { machine, devices })
    }

    /// The better of what was found so far and the best machine of a cell that has less than its share of the container's
    /// replicas.
    fn best_in(
        &mut self,
        class: usize,
        position: usize,
        spread: Option<usize>,
        so_far: Option<Rank>,
    ) -> Option<Rank> {
        let Self {
            cells,
            maxima,
            classes,
            spreads,
            mix,
            masked,
            reserve,
            ..
        } = self;
        let Class {
            demand,
            bound,
            indexes,
            ..
        } = &mut classes[class];
        let index = &mut indexes[position];
        let cell = &cells[index.cell];
        let spread = spread.map(|id| &spreads[id]);
        let has_room = |slot: usize| spread.is_none_or(|spread| spread.has_room(cell.machines[slot]));
        let key = Keys {
            demand,
            mix,
            bound: bound.and(spread),
        };
        let zone_count = spread.map_or(0, |spread| spread.zone_count(cell.facts.kind.zone));
        let cost = reserve.cost(index.cell, demand);
        let found = if index.tree.is_some() {
            index.catch_up(cell, &key, u64::MAX);
            let tree = index.tree.as_mut().expect("it was there");
            // The root bounds what the cell can offer, so a worse cell is not searched.
            let bound = (0, zone_count, Reverse(i32::from(tree.best_key()) - cost), 0);
            if so_far.is_some_and(|rank| rank < bound) {
                return so_far;
            }
            // Those with their share are set aside one by one: few are among the best.
            while let Some((key, slot)) = tree.best()
                && !has_room(slot)
            {
                tree.set(slot, 0);
                masked.push((slot, key));
            }
            let found = tree.best();
            for (slot, key) in masked.drain(..) {
                tree.set(slot, key);
            }
            found
        } else {
            maxima[index.cell].catch_up(cell, u64::MAX);
            let mut found = None;
            for slot in maxima[index.cell].slots(cell, demand) {
                let key = key.of(cell, slot);
                if key > found.map_or(0, |(key, _)| key) && has_room(slot) {
                    found = Some((key, slot));
                }
            }
            found
        };
        let found = found.map(|(key, slot)| {
            let standing = i32::from(key) - cost;
            (0, zone_count, Reverse(standing), cell.machines[slot])
        });
        so_far.into_iter().chain(found).min()
    }

    /// The best machine among those that have their share of the container's replicas already.
    fn best_crowded(&self, class: ClassId, spread: usize) -> Option<Rank> {
        let spread = &self.spreads[spread];
        let crowded = spread
            .machines()
            .filter(|(_, count)| *count < spread.rule.machine_max);
        let ranked = crowded.filter_map(|(machine, count)| {
            let (key, _) = self.fit(MachineIdx(machine), class)?;
            let (cell, _) = self.places[at(machine)];
            let key = self.standing(key, cell, self.demand(class));
            let zone = self.cells[cell].facts.kind.zone;
            let excess = (count + 1).saturating_sub(spread.rule.machine_share);
            Some((excess, spread.zone_count(zone), Reverse(key), machine))
        });
        ranked.min()
    }

    /// Says that a replica of a container is on a machine that was added with what the replica holds taken off.
    pub fn count_in(&mut self, spread: SpreadId, machine: MachineIdx) {
        let (cell, slot) = self.places[at(machine.0)];
        let zone = self.cells[cell].facts.kind.zone;
        self.spreads[at(spread.0)].add(machine.0, zone);
        self.cells[cell].note(slot);
        let needed = self.spreads[at(spread.0)].machine_count();
        if self.masked.capacity() < needed {
            self.masked.reserve(needed.next_power_of_two());
        }
    }

    /// Takes what a choice gives.
    ///
    /// # Panics
    /// When it does not fit (any more).
    pub fn take(&mut self, ask: &Ask, choice: Choice) {
        let (cell, slot) = self.places[at(choice.machine.0)];
        let demand = &self.classes[at(ask.class.0)].demand;
        self.cells[cell].take(slot, demand, choice.devices);
        if self.cells[cell].small[at(slot)].is_open {
            self.reserve.take(cell, gpu_milli(demand.gpu));
        }
        if let Some(spread) = ask.spread {
            self.count_in(spread, choice.machine);
            self.bind(ask.class, spread);
        }
    }

    /// Gives back what a replica held.
    ///
    /// # Panics
    /// When more comes back than was taken.
    pub fn release(&mut self, ask: &Ask, choice: Choice) {
        let (cell, slot) = self.places[at(choice.machine.0)];
        let demand = &self.classes[at(ask.class.0)].demand;
        self.cells[cell].release(slot, demand, choice.devices);
        if self.cells[cell].small[at(slot)].is_open {
            self.reserve.give(cell, gpu_milli(demand.gpu));
        }
        if let Some(spread) = ask.spread {
            let zone = self.cells[cell].facts.kind.zone;
            self.spreads[at(spread.0)].remove(choice.machine.0, zone);
        }
    }

    /// Makes the trees of a class, which is going to be asked for many times.
    pub fn prepare(&mut self, class: ClassId) {
        if !std::mem::replace(&mut self.classes[at(class.0)].is_kept, true) {
            self.kept.push(class);
        }
        let Self {
            cells,
            classes,
            mix,
            trees_bytes,
            spreads,
            ..
        } = self;
        let Class {
            demand,
            bound,
            indexes,
            ..
        } = &mut classes[at(class.0)];
        let keys = Keys {
            demand,
            mix,
            bound: bound.map(|spread| &spreads[at(spread.0)]),
        };
        for index in indexes.iter_mut().filter(|index| index.tree.is_none()) {
            let cell = &cells[index.cell];
            let tree = Tree::new(cell.len());
            *trees_bytes += tree.bytes();
            index.tree = Some(tree);
            index.rebuild(cell, &keys);
        }
        if self.trees_bytes > TREES_BYTES_MAX {
            self.drop_trees(class);
        }
    }

    /// Takes their trees from the classes that were asked for least recently, until half of the room is free.
    fn drop_trees(&mut self, but: ClassId) {
        let mut order: Vec<usize> = (0..self.classes.len())
            .filter(|class| *class != at(but.0))
            .collect();
        order.sort_by_key(|class| self.classes[*class].last_asked);
        // Trees grow with their cells, so what they take is counted anew.
        let indexes = self.classes.iter().flat_map(|class| &class.indexes);
        self.trees_bytes = indexes
            .filter_map(|index| index.tree.as_ref())
            .map(Tree::bytes)
            .sum();
        for class in order {
            if self.trees_bytes <= TREES_BYTES_MAX / 2 {
                break;
            }
            for index in &mut self.classes[class].indexes {
                let freed = index.tree.take().map_or(0, |tree| tree.bytes());
                self.trees_bytes -= freed;
            }
            self.classes[class].last_asked = 0;
            self.classes[class].is_kept = false;
        }
        self.kept.retain(|class| self.classes[at(class.0)].is_kept);
    }

    /// Work between decisions: makes trees for the classes that were asked for and brings trees and maxima up to date, at
    /// most about so many changes in all. True when nothing is left to do.
    pub fn settle(&mut self, mut budget: u64) -> bool {
        for (cell, maxima) in self.cells.iter().zip(&mut self.maxima) {
            if maxima.is_behind(cell) {
                let done = maxima.catch_up(cell, budget);
                budget = budget.saturating_sub(done);
            }
        }
        for _ in 0..self.kept.len() {
            if budget == 0 {
                return false;
            }
            let position = self.settled % self.kept.len();
            let id = self.kept[position];
            let class = &self.classes[at(id.0)];
            if class.indexes.iter().any(|index| index.tree.is_none()) {
                let slots: usize = class
                    .indexes
                    .iter()
                    .map(|index| self.cells[index.cell].len())
                    .sum();
                budget = budget.saturating_sub(slots as u64 / 8);
                self.prepare(id);
            }
            let Self {
                cells,
                classes,
                mix,
                spreads,
                ..
            } = &mut *self;
            let Class {
                demand,
                bound,
                indexes,
                ..
            } = &mut classes[at(id.0)];
            let keys = Keys {
                demand,
                mix,
                bound: bound.map(|spread| &spreads[at(spread.0)]),
            };
            for index in indexes {
                let done = index.catch_up(&cells[index.cell], &keys, budget);
                budget = budget.saturating_sub(done);
            }
            if budget == 0 {
                return false;
            }
            self.settled = position + 1;
        }
        true
    }
}

/// Replicas beyond the share, replicas of the zone, the standing of the key, the machine: the smaller is the better.
type Rank = (u32, u32, Reverse<i32>, u32);

/// What decides the keys of a class.
struct Keys<'a> {
    demand: &'a Demand,
    mix: &'a Mix,
    bound: Option<&'a SpreadState>,
}

impl Keys<'_> {
    fn of(&self, cell: &Cell, slot: usize) -> u16 {
        if self
            .bound
            .is_some_and(|spread| !spread.has_room(cell.machines[slot]))
        {
            return 0;
        }
        score::key(cell, slot, self.demand, self.mix).0
    }
}

impl Index {
    fn new(cell: usize) -> Self {
        Self {
            cell,
            tree: None,
            seen: 0,
        }
    }

    /// Takes in what changed in the cell, at most so many changes; gives how many it looked at.
    fn catch_up(&mut self, cell: &Cell, keys: &Keys<'_>, limit: u64) -> u64 {
        let behind = cell.changes - self.seen;
        let Some(tree) = self.tree.as_mut().filter(|_| behind > 0) else {
            return 0;
        };
        // To score a machine anew takes about eight times as long out of order as in order; devices always take long.
        let per_machine = if cell.facts.kind.gpu_model == 0 { 8 } else { 1 };
        if !tree.holds(cell.len()) || behind > (cell.len() as u64 / per_machine).clamp(64, LOG_LEN as u64) {
            self.rebuild(cell, keys);
            return cell.len() as u64 / 8;
        }
        let end = self.seen + behind.min(limit);
        let mut last = u32::MAX;
        for change in self.seen..end {
            let slot = cell.changed_slot(change);
            if slot != last {
                tree.set(at(slot), keys.of(cell, at(slot)));
                last = slot;
            }
        }
        let done = end - self.seen;
        self.seen = end;
        done
    }

    fn rebuild(&mut self, cell: &Cell, keys: &Keys<'_>) {
        let tree = self
            .tree
            .as_mut()
            .expect("only an index with a tree is made anew");
        if !tree.holds(cell.len()) {
            *tree = Tree::new(cell.len() + cell.len() / 2);
        }
        tree.fill(|slot| keys.of(cell, slot), cell.len());
        self.seen = cell.changes;
    }
}

#[cfg(test)]
mod tests;
