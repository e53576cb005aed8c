//! Packing by prices: column generation over chunks of kinds, rounded by diving, and the bound that the prices prove.
//!
//! Kinds beyond [`CHUNK_ROWS`] are dealt out to several chunks; what no chunk places well is packed together in a next
//! round. Diving takes the most used pattern for good, repairs the master problem by the dual simplex, and prices again.

use std::collections::BTreeSet;

use super::greedy;
use super::model::{Bin, Layout, Model, SHARE_BITS, Work};
use super::pricing::Pricing;
use super::simplex::{Column, FRACTION, Master, ONE};

/// Rows of one master problem: its inverse has the square of it, each pivot costs as much.
const CHUNK_ROWS: usize = 260;
/// Up to so many rows are tried in one master problem, for the bound; it converges when few items share a bin.
const WHOLE_ROWS: usize = 1_000;
/// Rounds without progress after which prices count as good.
const STALLED_MAX: usize = 12;
/// So many patterns of one round of pricing may have a row in common.
const ROW_USES: usize = 1;
/// A pattern must be worth so much more than a bin.
const GAIN_MIN: i64 = ONE >> 10;
/// How patterns are looked for from each row.
#[derive(Debug, Clone, Copy)]
struct Effort {
    /// So many parts of the old mean of prices to one of the new prices.
    smoothing: i64,
    /// What a pattern must be worth at the mean.
    threshold: i64,
    steps: usize,
    /// Of so many rows one is searched from, in turns.
    stride: usize,
}

const EFFORTS: [Effort; 2] = [
    Effort {
        smoothing: 3,
        threshold: ONE - ONE / 16,
        steps: 1_500,
        stride: 2,
    },
    Effort {
        smoothing: 0,
        threshold: ONE + GAIN_MIN,
        steps: 10_000,
        stride: 1,
    },
];
const ROUNDS_MAX: usize = 200;
/// Of one attempt to prove a bound.
const PROOF_STEPS: usize = 20_000_000;
/// A chunk that is not the last stops diving when less than one part in so many of its demand is left.
const REST_PART: u64 = 8;

pub(super) struct Improved<const D: usize> {
    pub(super) layout: Option<Layout<D>>,
    pub(super) bound: u64,
}

/// Packs anew what a complete layout has in new bins.
pub(super) fn improve<const D: usize>(
    model: &Model<D>,
    layout: &Layout<D>,
    bound: u64,
    work: &mut Work,
) -> Improved<D> {
    let mut packed = layout.clone();
    let mut patterns = Vec::new();
    for bin in packed.bins.split_off(model.open.len()) {
        for (kind, count) in &bin.parts {
            packed.left[*kind] += count;
        }
        patterns.push(bin.parts);
    }
    let mut improved = Improved { layout: None, bound };
    let kinds = remaining(&packed);
    if kinds.len() <= WHOLE_ROWS {
        let few = kinds.len() <= CHUNK_ROWS;
        let mut part = work.part(if few { 1 } else { 2 });
        let mut chunk = Chunk::new(model, kinds.clone(), &packed.left);
        chunk.learn(&patterns);
        let mut rest = part.part(3);
        let converged = chunk.generate(&mut part);
        rest.join(part);
        let mut proof = rest.part(2);
        improved.bound = improved.bound.max(chunk.bound(bound, &mut proof));
        rest.join(proof);
        if (converged || few) && layout.fewer_possible(improved.bound) {
            let mut whole = packed.clone();
            chunk.dive(0, &mut whole, &mut rest);
            improved.layout = Some(greedy::complete(model, whole, &mut rest));
        }
        work.join(rest);
    }
    let best = improved.layout.as_ref().unwrap_or(layout);
    if best.fewer_possible(improved.bound) && kinds.len() > CHUNK_ROWS && work.left() {
        in_chunks(model, &mut packed, &patterns, work);
        let packed = greedy::complete(model, packed, work);
        if improved
            .layout
            .as_ref()
            .is_none_or(|layout| packed.better_than(layout))
        {
            improved.layout = Some(packed);
        }
    }
    improved
}

fn remaining<const D: usize>(packed: &Layout<D>) -> Vec<usize> {
    (0..packed.left.len())
        .filter(|kind| packed.left[*kind] > 0)
        .collect()
}

/// Packs what is left, in rounds of chunks until one chunk holds it.
fn in_chunks<const D: usize>(
    model: &Model<D>,
    packed: &mut Layout<D>,
    patterns: &[Vec<(usize, u64)>],
    work: &mut Work,
) {
    loop {
        let kinds = remaining(packed);
        let chunks = kinds.len().div_ceil(CHUNK_ROWS);
        if chunks == 0 || !work.left() {
            break;
        }
        // What is left for later rounds is an eighth of this one.
        let mut round = work.part(if chunks == 1 { 1 } else { 2 });
        for number in 0..chunks {
            let mut part = round.part(u64::try_from(chunks - number).unwrap_or(1));
            let rows: Vec<usize> = kinds.iter().copied().skip(number).step_by(chunks).collect();
            let mut chunk = Chunk::new(model, rows, &packed.left);
            chunk.learn(patterns);
            let rest = part.part(3);
            chunk.generate(&mut part);
            part.join(rest);
            let keep = if chunks == 1 { 0 } else { chunk.total() / REST_PART };
            chunk.dive(keep, packed, &mut part);
            round.join(part);
        }
        work.join(round);
        if chunks == 1 {
            break;
        }
    }
}

/// What prices say about the number of new bins.
struct Claim {
    worth: i128,
    /// What each open bin takes of it at most.
    open: Vec<i64>,
}

impl Claim {
    /// What is left for new bins when no bin is worth more than `value`.
    fn beside_open(&self, value: i64) -> i128 {
        let open = self.open.iter().map(|open| i128::from((*open).min(value)));
        self.worth - open.sum::<i128>()
    }

    /// New bins that are needed when no bin is worth more than `value`.
    fn bins(&self, value: i64) -> i128 {
        let beside = self.beside_open(value).max(0);
        (beside + i128::from(value) - 1) / i128::from(value)
    }

    /// The largest worth of a bin with which `goal` bins are needed.
    fn most(&self, goal: i128) -> Option<i64> {
        let proves = |value: i64| self.beside_open(value) > (goal - 1) * i128::from(value);
        if !proves(1) {
            return None;
        }
        let (mut low, mut high) = (1, i64::MAX / 2);
        while low < high {
            let middle = low + (high - low + 1) / 2;
            if proves(middle) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        Some(low)
    }
}

/// One master problem and its pricing.
struct Chunk<'a, const D: usize> {
    model: &'a Model<D>,
    /// Kind of each row.
    rows: Vec<usize>,
    demand: Vec<u64>,
    left: Vec<u64>,
    master: Master,
    pricing: Pricing<'a, D>,
    known: BTreeSet<Column>,
    /// A moving mean of the prices: those of a degenerate vertex are extreme, and patterns for them are of little use.
    smooth: Vec<i64>,
    turn: usize,
}

/// What an item would be worth if all bins could be filled in every dimension.
fn volume_price<const D: usize>(model: &Model<D>, kind: usize) -> i64 {
    let most = model.kinds[kind].share.iter().sum::<u64>() / u64::try_from(D).unwrap_or(1);
    signed(most << (FRACTION - SHARE_BITS))
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).expect("counts of items are limited")
}

impl<'a, const D: usize> Chunk<'a, D> {
    fn new(model: &'a Model<D>, rows: Vec<usize>, left: &[u64]) -> Self {
        let demand: Vec<u64> = rows.iter().map(|kind| left[*kind]).collect();
        let kinds = rows.iter().map(|kind| &model.kinds[*kind]).collect();
        let pricing = Pricing::new(model.capacity, &model.group_max, kinds, &demand);
        let signed_demand: Vec<i64> = demand.iter().copied().map(signed).collect();
        let copies: Vec<i64> = pricing.limits().iter().copied().map(signed).collect();
        Self {
            model,
            master: Master::new(&signed_demand, &copies),
            pricing,
            left: demand.clone(),
            demand,
            smooth: rows.iter().map(|kind| volume_price(model, *kind)).collect(),
            rows,
            known: BTreeSet::new(),
            turn: 0,
        }
    }

    fn total(&self) -> u64 {
        self.demand.iter().sum()
    }

    fn add(&mut self, column: Column) -> bool {
        let new = self.known.insert(column.clone());
        if new {
            self.master.add(column);
        }
        new
    }

    /// Patterns of another packing, as far as they are of this chunk.
    fn learn(&mut self, patterns: &[Vec<(usize, u64)>]) {
        let mut row_of = vec![usize::MAX; self.model.kinds.len()];
        for (row, kind) in self.rows.iter().enumerate() {
            row_of[*kind] = row;
        }
        for pattern in patterns {
            let parts = pattern.iter().filter(|(kind, _)| row_of[*kind] != usize::MAX);
            let mut column: Column = parts
                .map(|(kind, count)| (row_of[*kind], signed(*count)))
                .collect();
            column.sort_unstable();
            if !column.is_empty() {
                self.add(column);
            }
        }
    }

    /// Solves and prices in turns until no pattern is worth more than a bin, or the cost stands still. False when the
    /// budget ended it.
    fn generate(&mut self, work: &mut Work) -> bool {
        for effort in EFFORTS {
            let mut stalled = 0;
            let mut cost = i64::MAX;
            for _ in 0..ROUNDS_MAX {
                self.master.solve(work);
                if self.master.broken() || !work.left() {
                    return false;
                }
                let now = self.master.cost();
                stalled = if cost - now > now >> 12 { 0 } else { stalled + 1 };
                cost = now;
                if stalled > STALLED_MAX || self.price(effort, work) == 0 {
                    break;
                }
            }
        }
        true
    }

    /// Adds patterns, from each row once. How many.
    fn price(&mut self, effort: Effort, work: &mut Work) -> usize {
        for (smooth, price) in self.smooth.iter_mut().zip(self.master.prices()) {
            *smooth = (*smooth * effort.smoothing + (*price).max(0)) / (effort.smoothing + 1);
        }
        self.pricing.set(&self.smooth, work);
        let mut found: Vec<(i64, Column)> = Vec::new();
        self.turn += 1;
        for seed in (self.turn % effort.stride..self.pricing.len()).step_by(effort.stride) {
            let search = self
                .pricing
                .search(Some(seed), effort.threshold, effort.steps, work);
            if let Some(column) = search.pattern {
                let prices = self.master.prices();
                let worth: i64 = column.iter().map(|(row, count)| prices[*row] * count).sum();
                if worth > ONE + GAIN_MIN || search.value > ONE + GAIN_MIN {
                    found.push((worth, column));
                }
            }
        }
        self.add_apart(found)
    }

    /// Adds the patterns of most worth that have few rows in common: together they complete each other to packings, and
    /// each further column costs pivots. How many.
    fn add_apart(&mut self, mut found: Vec<(i64, Column)>) -> usize {
        found.sort_unstable_by(|one, other| other.cmp(one));
        let mut used = vec![0; self.rows.len()];
        let mut added = 0;
        for (_, column) in found {
            let fresh = column.iter().filter(|(row, _)| used[*row] < ROW_USES).count();
            if fresh * 2 > column.len() && !self.known.contains(&column) {
                for (row, _) in &column {
                    used[*row] += 1;
                }
                self.add(column);
                added += 1;
            }
        }
        added
    }

    /// Farley's bound: no bin is worth more than V at these prices, so the worth of all items over V bins are needed. An
    /// open bin is worth no more than that either, nor than what its free part can be.
    fn bound(&mut self, known: u64, work: &mut Work) -> u64 {
        let counts: Vec<u64> = self
            .rows
            .iter()
            .map(|kind| self.model.kinds[*kind].count)
            .collect();
        self.pricing.allow(&counts);
        self.pricing.set(self.master.prices(), work);
        let prices = self.master.prices().iter().zip(&counts);
        let worth: i128 = prices
            .map(|(price, count)| i128::from((*price).max(0)) * i128::from(*count))
            .sum();
        let open = self
            .model
            .open
            .iter()
            .map(|open| self.pricing.ceiling(&open.free));
        let claim = Claim {
            worth,
            open: open.collect(),
        };
        let (mut proven, mut hoped) = (i128::from(known), claim.bins(ONE));
        while proven < hoped && work.left() {
            let goal = (proven + hoped + 1) / 2;
            let Some(threshold) = claim.most(goal) else {
                break;
            };
            let found = self.pricing.search(None, threshold, PROOF_STEPS, work);
            if found.complete && found.pattern.is_none() {
                proven = goal;
            } else {
                hoped = goal - 1;
            }
        }
        self.pricing.allow(&self.demand);
        u64::try_from(proven).unwrap_or(known)
    }

    /// Fixes patterns until at most `keep` items are left.
    fn dive(&mut self, keep: u64, packed: &mut Layout<D>, work: &mut Work) {
        let mut fixed = 0;
        while self.left.iter().sum::<u64>() > keep && !self.master.broken() && work.left() {
            let mut used: Vec<(i64, usize)> = self
                .master
                .used()
                .map(|(column, value)| (value, column))
                .collect();
            used.sort_unstable_by_key(|(value, column)| (std::cmp::Reverse(*value), *column));
            let Some((largest, _)) = used.first().copied() else {
                break;
            };
            let sure = if largest > ONE {
                ONE
            } else {
                largest.min(ONE * 9 / 10)
            };
            let before = fixed;
            for (value, column) in used.iter().filter(|(value, _)| *value >= sure) {
                let times = u64::try_from((value >> FRACTION).max(1)).unwrap_or(1);
                fixed += self.fix(*column, times, packed);
            }
            if fixed == before {
                break;
            }
            self.master.restore(work);
            self.price(EFFORTS[0], work);
            self.master.solve(work);
        }
    }

    /// Bins of a pattern, as far as there are items for it. How many.
    fn fix(&mut self, column: usize, times: u64, packed: &mut Layout<D>) -> u64 {
        let mut made = 0;
        for _ in 0..times {
            let mut bin = Bin::new(self.model.capacity);
            for (row, count) in self.master.column(column).clone() {
                let taken = self.left[row].min(u64::try_from(count).unwrap_or(0));
                if taken > 0 {
                    bin.put(self.model, self.rows[row], taken);
                    self.left[row] -= taken;
                    packed.left[self.rows[row]] -= taken;
                    self.master.reduce(row, signed(taken));
                }
            }
            if bin.parts.is_empty() {
                break;
            }
            packed.bins.push(bin);
            made += 1;
        }
        made
    }
}
