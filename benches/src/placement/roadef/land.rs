//! The challenge as a landscape for the repacker's local search: every rule and every term of the cost, by difference.

use berth_scheduler::placement::repack::search::{Landscape, draw};

use super::instance::Instance;

fn count<'a>(services: impl Iterator<Item = &'a usize>) -> i64 {
    i64::try_from(services.count()).expect("services can be counted")
}

/// What breaking a rule costs during the search. No answer breaks one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prices {
    /// Of an unmet dependency.
    pub(super) unmet: i64,
    /// Of a unit of any resource beyond capacity; nought: never beyond.
    pub(super) over: i64,
    pub(super) change: Change,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Never,
    /// Dearer while rules are broken, cheaper while none is.
    AsBroken,
}

/// Far above what any step saves.
const PRICE_MAX: i64 = 1 << 32;

pub(super) struct Land<'a> {
    instance: &'a Instance,
    resources: usize,
    machines: usize,
    at: Vec<usize>,
    /// Resources times machines, in rows of one machine.
    used: Vec<i64>,
    /// The most that may be used: capacity, less what those that left still hold.
    room: Vec<i64>,
    /// Load and balance cost of each machine.
    cost: Vec<i64>,
    safety: Vec<i64>,
    capacity: Vec<i64>,
    needs: Vec<i64>,
    service: Vec<usize>,
    location: Vec<usize>,
    neighborhood: Vec<usize>,
    locations: usize,
    neighborhoods: usize,
    /// Services times machines: processes of it there; two only between the steps of one change.
    is_there: Vec<u16>,
    /// Services times locations, and how many locations are in use.
    in_location: Vec<u16>,
    spread: Vec<usize>,
    /// Services times neighborhoods.
    in_neighborhood: Vec<u16>,
    /// Services that need the service.
    needed_by: Vec<Vec<usize>>,
    /// Processes of each service that moved, and how many services have so many.
    moved: Vec<usize>,
    moved_count: Vec<u32>,
    moved_max: usize,
    /// By origin and target, weighted.
    machine_move: Vec<i64>,
    process_move: Vec<i64>,
    /// Dependencies that are not met, counted once for each neighborhood.
    unmet: i64,
    prices: Prices,
    /// By how much each machine is overfull, and the sum.
    over: Vec<i64>,
    over_sum: i64,
}

impl<'a> Land<'a> {
    pub(super) fn new(instance: &'a Instance, prices: Prices) -> Self {
        let (resources, machines) = (instance.is_transient.len(), instance.machines.len());
        let services = instance.services.len();
        let count = |numbers: &[usize]| numbers.iter().max().map_or(0, |largest| largest + 1);
        let location: Vec<usize> = instance.machines.iter().map(|machine| machine.location).collect();
        let neighborhood: Vec<usize> = instance
            .machines
            .iter()
            .map(|machine| machine.neighborhood)
            .collect();
        let (locations, neighborhoods) = (count(&location), count(&neighborhood));
        let mut needed_by = vec![vec![]; services];
        for (service, facts) in instance.services.iter().enumerate() {
            for other in &facts.needs {
                needed_by[*other].push(service);
            }
        }
        let flat = |rows: fn(&super::instance::Machine) -> &Vec<i64>| -> Vec<i64> {
            instance.machines.iter().flat_map(rows).copied().collect()
        };
        let weigh = |cost: i64| cost * instance.machine_move_weight;
        let processes = &instance.processes;
        let mut land = Self {
            instance,
            resources,
            machines,
            at: instance.first.clone(),
            used: vec![0; resources * machines],
            room: flat(|machine| &machine.capacity),
            cost: vec![0; machines],
            safety: flat(|machine| &machine.safety),
            capacity: flat(|machine| &machine.capacity),
            needs: processes
                .iter()
                .flat_map(|process| process.needs.iter().copied())
                .collect(),
            service: processes.iter().map(|process| process.service).collect(),
            location,
            neighborhood,
            locations,
            neighborhoods,
            is_there: vec![0; services * machines],
            in_location: vec![0; services * locations],
            spread: vec![0; services],
            in_neighborhood: vec![0; services * neighborhoods],
            needed_by,
            moved: vec![0; services],
            moved_count: vec![0; processes.len() + 1],
            moved_max: 0,
            machine_move: flat(|machine| &machine.move_cost)
                .into_iter()
                .map(weigh)
                .collect(),
            process_move: processes
                .iter()
                .map(|process| process.move_cost * instance.process_move_weight)
                .collect(),
            unmet: 0,
            prices,
            over: vec![0; machines],
            over_sum: 0,
        };
        land.moved_count[0] = u32::try_from(services).expect("services can be counted");
        for process in 0..land.at.len() {
            land.come(process, land.at[process]);
        }
        for machine in 0..machines {
            land.cost[machine] = land.cost_with(machine, None, None);
        }
        land
    }

    /// Load and balance of a machine if one process came and another went.
    #[inline]
    fn cost_with(&self, machine: usize, comes: Option<usize>, goes: Option<usize>) -> i64 {
        let (row, width) = (machine * self.resources, self.resources);
        let mut used = [0_i64; 16];
        used[..width].copy_from_slice(&self.used[row..row + width]);
        if let Some(process) = comes {
            for (used, need) in used
                .iter_mut()
                .zip(&self.needs[process * width..(process + 1) * width])
            {
                *used += need;
            }
        }
        if let Some(process) = goes {
            for (used, need) in used
                .iter_mut()
                .zip(&self.needs[process * width..(process + 1) * width])
            {
                *used -= need;
            }
        }
        let mut cost = 0;
        let weights = &self.instance.load_weight;
        for ((used, safety), weight) in used.iter().zip(&self.safety[row..row + width]).zip(weights) {
            cost += weight * (used - safety).max(0);
        }
        for balance in &self.instance.balances {
            let free = |resource: usize| self.capacity[row + resource] - used[resource];
            cost += balance.weight * (balance.target * free(balance.first) - free(balance.second)).max(0);
        }
        cost
    }

    /// By how much the machine would be overfull if one process came and another went. What is transient is held at a
    /// process' first machine wherever it is.
    #[inline]
    fn over_with(&self, machine: usize, comes: Option<usize>, goes: Option<usize>) -> i64 {
        let (row, width) = (machine * self.resources, self.resources);
        let first =
            |process: Option<usize>| process.filter(|process| self.instance.first[*process] == machine);
        let (is_back, is_off) = (first(comes).is_some(), first(goes).is_some());
        let need = |process: Option<usize>, resource: usize| {
            process.map_or(0, |process| self.needs[process * width + resource])
        };
        let mut over = 0;
        for resource in 0..width {
            let is_transient = self.instance.is_transient[resource];
            let more = if is_back && is_transient {
                0
            } else {
                need(comes, resource)
            };
            let less = if is_off && is_transient {
                0
            } else {
                need(goes, resource)
            };
            over += (self.used[row + resource] + more - less - self.room[row + resource]).max(0);
        }
        over
    }

    /// What two machines cost more, overfull or not, if each takes and gives; none if they must not be overfull.
    #[inline]
    fn machines_delta(&self, here: usize, there: usize, goes: usize, comes: Option<usize>) -> Option<i64> {
        let over_there = self.over_with(there, Some(goes), comes) - self.over[there];
        if self.prices.over == 0 && over_there > 0 {
            return None;
        }
        let over_here = self.over_with(here, comes, Some(goes)) - self.over[here];
        if self.prices.over == 0 && over_here > 0 {
            return None;
        }
        let cost = self.cost_with(there, Some(goes), comes) - self.cost[there]
            + self.cost_with(here, comes, Some(goes))
            - self.cost[here];
        Some(cost + self.prices.over * (over_there + over_here))
    }

    /// Whether a service may leave one place and come to another, by spread.
    #[inline]
    fn may_change(&self, service: usize, from: usize, to: usize) -> bool {
        let (here, there) = (self.location[from], self.location[to]);
        if here != there {
            let row = service * self.locations;
            let lost = usize::from(self.in_location[row + here] == 1);
            let won = usize::from(self.in_location[row + there] == 0);
            if self.spread[service] + won < self.instance.services[service].spread + lost {
                return false;
            }
        }
        true
    }

    /// How many dependencies more would be unmet if a process of the service left one machine for another.
    #[inline]
    fn unmet_delta(&self, service: usize, from: usize, to: usize) -> i64 {
        let (here, there) = (self.neighborhood[from], self.neighborhood[to]);
        if here == there {
            return 0;
        }
        let is_in = |service: usize, at: usize| self.in_neighborhood[service * self.neighborhoods + at] > 0;
        let needs = &self.instance.services[service].needs;
        let mut delta = 0;
        if self.in_neighborhood[service * self.neighborhoods + here] == 1 {
            delta += count(
                self.needed_by[service]
                    .iter()
                    .filter(|other| is_in(**other, here)),
            );
            delta -= count(needs.iter().filter(|other| !is_in(**other, here)));
        }
        if !is_in(service, there) {
            delta -= count(
                self.needed_by[service]
                    .iter()
                    .filter(|other| is_in(**other, there)),
            );
            delta += count(needs.iter().filter(|other| !is_in(**other, there)));
        }
        delta
    }

    #[inline]
    fn is_there(&self, service: usize, machine: usize) -> bool {
        self.is_there[service * self.machines + machine] > 0
    }

    /// What the move of the process itself costs more.
    #[inline]
    fn move_delta(&self, process: usize, to: usize) -> i64 {
        let (from, first) = (self.at[process], self.instance.first[process]);
        let row = first * self.machines;
        let moved = i64::from(to != first) - i64::from(from != first);
        self.machine_move[row + to] - self.machine_move[row + from] + moved * self.process_move[process]
    }

    /// By how many moves of its service a process' going there counts.
    #[inline]
    fn moved_delta(&self, process: usize, to: usize) -> i32 {
        let first = self.instance.first[process];
        i32::from(to != first) - i32::from(self.at[process] != first)
    }

    /// By how much the largest number of moves in a service grows.
    #[inline]
    fn most_moved(&self, service: usize, more: i32) -> i64 {
        let moved = self.moved[service];
        let grows = more > 0 && moved == self.moved_max;
        let falls = more < 0 && moved == self.moved_max && self.moved_count[moved] == 1;
        (i64::from(grows) - i64::from(falls)) * self.instance.service_move_weight
    }

    fn come(&mut self, process: usize, to: usize) {
        let (width, service) = (self.resources, self.service[process]);
        for resource in 0..width {
            self.used[to * width + resource] += self.needs[process * width + resource];
        }
        self.is_there[service * self.machines + to] += 1;
        let location = &mut self.in_location[service * self.locations + self.location[to]];
        self.spread[service] += usize::from(*location == 0);
        *location += 1;
        self.in_neighborhood[service * self.neighborhoods + self.neighborhood[to]] += 1;
    }

    fn go(&mut self, process: usize, from: usize) {
        let (width, service) = (self.resources, self.service[process]);
        for resource in 0..width {
            self.used[from * width + resource] -= self.needs[process * width + resource];
        }
        self.is_there[service * self.machines + from] -= 1;
        let location = &mut self.in_location[service * self.locations + self.location[from]];
        *location -= 1;
        self.spread[service] -= usize::from(*location == 0);
        self.in_neighborhood[service * self.neighborhoods + self.neighborhood[from]] -= 1;
    }

    /// What is transient stays held at the first machine while the process is elsewhere.
    fn hold(&mut self, process: usize, sign: i64) {
        let (width, first) = (self.resources, self.instance.first[process]);
        for resource in 0..width {
            if self.instance.is_transient[resource] {
                self.room[first * width + resource] -= sign * self.needs[process * width + resource];
            }
        }
    }

    fn count_moved(&mut self, service: usize, more: i32) {
        let before = self.moved[service];
        let after = if more > 0 { before + 1 } else { before - 1 };
        self.moved_count[before] -= 1;
        self.moved_count[after] += 1;
        self.moved[service] = after;
        let was_alone_at_top = before == self.moved_max && self.moved_count[before] == 0;
        if after > self.moved_max || was_alone_at_top {
            self.moved_max = after;
        }
    }
}

impl Landscape for Land<'_> {
    fn items(&self) -> usize {
        self.at.len()
    }

    fn places(&self) -> usize {
        self.machines
    }

    fn place(&self, item: usize) -> usize {
        self.at[item]
    }

    #[inline]
    fn shift(&self, item: usize, to: usize) -> Option<i64> {
        let (from, service) = (self.at[item], self.service[item]);
        if from == to || self.is_there(service, to) || !self.may_change(service, from, to) {
            return None;
        }
        let machines = self.machines_delta(from, to, item, None)?;
        let unmet = self.prices.unmet * self.unmet_delta(service, from, to);
        Some(
            unmet
                + machines
                + self.move_delta(item, to)
                + self.most_moved(service, self.moved_delta(item, to)),
        )
    }

    #[inline]
    fn swap(&self, one: usize, other: usize) -> Option<i64> {
        let (here, there) = (self.at[one], self.at[other]);
        let (mine, its) = (self.service[one], self.service[other]);
        if here == there || mine == its || self.is_there(mine, there) || self.is_there(its, here) {
            return None;
        }
        // Services that need each other are looked at one by one: some swaps that would do are refused.
        if !self.may_change(mine, here, there) || !self.may_change(its, there, here) {
            return None;
        }
        if self.neighborhood[here] != self.neighborhood[there] && self.depend(mine, its) {
            return None;
        }
        let machines = self.machines_delta(here, there, one, Some(other))?;
        let unmet = self.unmet_delta(mine, here, there) + self.unmet_delta(its, there, here);
        let moves = self.prices.unmet * unmet + self.move_delta(one, there) + self.move_delta(other, here);
        Some(
            machines
                + moves
                + self.most_moved_by_two(
                    (mine, self.moved_delta(one, there)),
                    (its, self.moved_delta(other, here)),
                ),
        )
    }

    fn commit(&mut self, item: usize, to: usize) {
        let (from, first) = (self.at[item], self.instance.first[item]);
        let more = self.moved_delta(item, to);
        self.unmet += self.unmet_delta(self.service[item], from, to);
        self.go(item, from);
        self.come(item, to);
        if from == first {
            self.hold(item, 1);
        }
        if to == first {
            self.hold(item, -1);
        }
        if more != 0 {
            self.count_moved(self.service[item], more);
        }
        self.at[item] = to;
        self.cost[from] = self.cost_with(from, None, None);
        self.cost[to] = self.cost_with(to, None, None);
        // Nobody's first machine but these two holds more or less than before.
        for machine in [from, to] {
            let over = self.over_with(machine, None, None);
            self.over_sum += over - self.over[machine];
            self.over[machine] = over;
        }
    }

    /// Broken rules grow dearer while there are any, and cheaper while there are none: the search stays near the border.
    fn reprice(&mut self) -> i64 {
        let before = self.prices;
        if before.change == Change::Never {
            return 0;
        }
        let turn = |price: i64, broken: i64| {
            let changed = if broken > 0 {
                price + price / 8 + 1
            } else {
                price - price / 8
            };
            changed.clamp(1, PRICE_MAX)
        };
        self.prices.unmet = turn(before.unmet, self.unmet);
        if before.over > 0 {
            self.prices.over = turn(before.over, self.over_sum);
        }
        self.unmet * (self.prices.unmet - before.unmet) + self.over_sum * (self.prices.over - before.over)
    }

    fn is_sound(&self) -> bool {
        self.unmet == 0 && self.over_sum == 0
    }

    fn suggest(&self, item: usize, random: u64) -> usize {
        // One time in 32: home, where it costs no move.
        if random & 31 == 0 {
            self.instance.first[item]
        } else {
            draw(random, self.machines)
        }
    }
}

impl Land<'_> {
    fn depend(&self, one: usize, other: usize) -> bool {
        self.instance.services[one].needs.contains(&other)
            || self.instance.services[other].needs.contains(&one)
    }

    /// The same for two services at once, which are not one.
    fn most_moved_by_two(&self, one: (usize, i32), other: (usize, i32)) -> i64 {
        let (first, second) = (self.most_moved(one.0, one.1), self.most_moved(other.0, other.1));
        let at_most = |service: usize| self.moved[service] == self.moved_max;
        if first > 0 || second > 0 {
            return self.instance.service_move_weight;
        }
        // Who falls from the top leaves it to who rises to it.
        let rises = |(service, more): (usize, i32)| more > 0 && self.moved[service] + 1 == self.moved_max;
        if rises(one) || rises(other) {
            return 0;
        }
        let both = one.1 < 0
            && other.1 < 0
            && at_most(one.0)
            && at_most(other.0)
            && self.moved_count[self.moved_max] == 2;
        if both {
            -self.instance.service_move_weight
        } else {
            first + second
        }
    }
}
