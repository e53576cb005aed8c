//! Pricing: which pattern of one bin is worth more than a bin, given a price per row; and a proof that none is.
//!
//! Depth first over rows, sorted by what their price exceeds a surrogate size by. The surrogate weighs all dimensions into
//! one, with weights that minimise the relaxed knapsack, so that a branch is cut as soon as what is free cannot be worth
//! enough (Lagrangian bound). All in whole numbers: a completed search is a proof.

use super::model::{Kind, NO_GROUP, SHARE_BITS, Work, copies, fits, less, more, share};
use super::simplex::{Column, FRACTION};

const MULTIPLIER_ROUNDS: u64 = 60;

/// One kind that can be in a pattern.
#[derive(Debug, Clone)]
struct Row<const D: usize> {
    size: [u64; D],
    group: usize,
    limit: u64,
    price: i64,
    /// The surrogate size.
    surrogate: i64,
    row: usize,
}

/// The rows of a master problem, ready to be priced again and again.
#[derive(Debug)]
pub(super) struct Pricing<'a, const D: usize> {
    capacity: [u64; D],
    group_max: &'a [u64],
    kinds: Vec<&'a Kind<D>>,
    limits: Vec<u64>,
    /// Weight of each dimension, in units of price per capacity.
    multipliers: [i64; D],
    rows: Vec<Row<D>>,
    /// Per position the sum of what all later rows exceed their surrogate by.
    suffix: Vec<i64>,
    whole: i64,
}

/// What a search found.
#[derive(Debug)]
pub(super) struct Search {
    pub(super) pattern: Option<Column>,
    /// No pattern of a completed search is worth more.
    pub(super) value: i64,
    pub(super) complete: bool,
}

struct Descent<'a, const D: usize> {
    rows: &'a [Row<D>],
    suffix: &'a [i64],
    group_max: &'a [u64],
    /// Positions taken so far, one entry per copy.
    taken: Vec<usize>,
    threshold: i64,
    best: Option<Vec<usize>>,
    steps: usize,
    steps_max: usize,
}

impl<'a, const D: usize> Pricing<'a, D> {
    /// `limits` is how many of each kind a pattern may hold: its demand.
    pub(super) fn new(
        capacity: [u64; D],
        group_max: &'a [u64],
        kinds: Vec<&'a Kind<D>>,
        limits: &[u64],
    ) -> Self {
        let mut pricing = Self {
            capacity,
            group_max,
            limits: Vec::new(),
            kinds,
            multipliers: [(1 << FRACTION) / 8; D],
            rows: Vec::new(),
            suffix: Vec::new(),
            whole: 0,
        };
        pricing.allow(limits);
        pricing
    }

    /// Takes other limits, of which [`Self::set`] makes use.
    pub(super) fn allow(&mut self, limits: &[u64]) {
        let limits = self.kinds.iter().zip(limits).map(|(kind, limit)| {
            let group = self.group_max.get(kind.group).copied().unwrap_or(u64::MAX);
            copies(&kind.size, &self.capacity, group.min(*limit))
        });
        self.limits = limits.collect();
    }

    /// What a pattern that fits into `free` is worth at most.
    pub(super) fn ceiling(&self, free: &[u64; D]) -> i64 {
        let shares = std::array::from_fn(|at| share(free[at], self.capacity[at]));
        surrogate(&self.multipliers, &shares) + self.suffix.first().copied().unwrap_or(0)
    }

    /// How many of each row one bin holds at most.
    pub(super) fn limits(&self) -> &[u64] {
        &self.limits
    }

    /// Takes new prices; negative ones count as zero.
    pub(super) fn set(&mut self, prices: &[i64], work: &mut Work) {
        let prices: Vec<i64> = prices.iter().map(|price| (*price).max(0)).collect();
        self.multiply(&prices);
        work.spend(self.kinds.len() * D * 60);
        self.whole = self.multipliers.iter().sum();
        let kinds = self.kinds.iter().zip(&self.limits).zip(prices).enumerate();
        let priced = kinds.filter(|(_, ((_, limit), price))| *price > 0 && **limit > 0);
        self.rows = priced
            .map(|(row, ((kind, limit), price))| Row {
                size: kind.size,
                group: kind.group,
                limit: *limit,
                price,
                surrogate: surrogate(&self.multipliers, &kind.share),
                row,
            })
            .collect();
        self.rows.sort_by_key(|row| (row.surrogate - row.price, row.row));
        let mut sum = 0;
        self.suffix = vec![0; self.rows.len() + 1];
        for (at, row) in self.rows.iter().enumerate().rev() {
            sum += (row.price - row.surrogate).max(0) * i64::try_from(row.limit).unwrap_or(i64::MAX >> 40);
            self.suffix[at] = sum;
        }
    }

    /// Weights that make the relaxed knapsack small, by subgradients from those of the last time.
    fn multiply(&mut self, prices: &[i64]) {
        let mut best = (i64::MAX, self.multipliers);
        let mut current = self.multipliers;
        for round in 0..MULTIPLIER_ROUNDS {
            let mut value: i64 = current.iter().sum();
            let mut gradient = self
                .capacity
                .map(|capacity| if capacity > 0 { 1_i64 << SHARE_BITS } else { 0 });
            for ((kind, limit), price) in self.kinds.iter().zip(&self.limits).zip(prices) {
                let excess = price - surrogate(&current, &kind.share);
                if excess > 0 {
                    let limit = i64::try_from(*limit).unwrap_or(i64::MAX >> 40);
                    value += excess * limit;
                    for (at, share) in kind.share.iter().enumerate() {
                        gradient[at] -= i64::try_from(*share).unwrap_or(0) * limit;
                    }
                }
            }
            if value < best.0 {
                best = (value, current);
            }
            let steepest = gradient.iter().map(|slope| slope.abs()).max().unwrap_or(0).max(1);
            let step = (1 << (FRACTION - 3)) / (4 + i64::try_from(round).unwrap_or(0));
            for (multiplier, slope) in current.iter_mut().zip(gradient) {
                let change = i128::from(step) * i128::from(slope) / i128::from(steepest);
                *multiplier = (*multiplier - i64::try_from(change).unwrap_or(0)).max(0);
            }
        }
        self.multipliers = best.1;
    }

    /// How many rows have a price.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The best pattern worth more than `threshold` that a bounded search finds, with the row at `seed` in it if given.
    pub(super) fn search(
        &self,
        seed: Option<usize>,
        threshold: i64,
        steps_max: usize,
        work: &mut Work,
    ) -> Search {
        let mut descent = Descent {
            rows: &self.rows,
            suffix: &self.suffix,
            group_max: self.group_max,
            taken: Vec::new(),
            threshold,
            best: None,
            steps: 0,
            steps_max,
        };
        match seed {
            Some(at) => {
                let row = &self.rows[at];
                descent.taken.push(at);
                let free = less(&self.capacity, &row.size, 1);
                descent.descend(0, free, self.whole + row.price - row.surrogate, row.price);
            }
            None => descent.descend(0, self.capacity, self.whole, 0),
        }
        work.spend(descent.steps * D);
        let complete = descent.steps < steps_max;
        let value = descent.threshold;
        let pattern = descent.best.map(|taken| {
            let mut rows: Vec<usize> = taken.into_iter().map(|at| self.rows[at].row).collect();
            rows.sort_unstable();
            let mut column: Column = Vec::new();
            for row in rows {
                match column.last_mut() {
                    Some((last, count)) if *last == row => *count += 1,
                    _ => column.push((row, 1)),
                }
            }
            column
        });
        Search {
            pattern,
            value,
            complete,
        }
    }
}

/// Rounded down, so that what fits in each dimension has a surrogate of at most the sum of the multipliers.
fn surrogate<const D: usize>(multipliers: &[i64; D], share: &[u64; D]) -> i64 {
    let terms = multipliers.iter().zip(share);
    terms
        .map(|(multiplier, share)| multiplier * i64::try_from(*share).unwrap_or(0))
        .sum::<i64>()
        >> SHARE_BITS
}

impl<const D: usize> Descent<'_, D> {
    /// `bound` is what is taken plus the worth of all surrogate space; `value` the price of what is taken.
    fn descend(&mut self, from: usize, mut free: [u64; D], mut bound: i64, mut value: i64) {
        if value > self.threshold {
            self.threshold = value;
            self.best = Some(self.taken.clone());
        }
        let mut at = from;
        while at < self.rows.len() {
            let row = &self.rows[at];
            let excess = row.price - row.surrogate;
            let most = if excess > 0 { self.suffix[at] } else { excess };
            if bound + most <= self.threshold || self.steps >= self.steps_max {
                return;
            }
            self.steps += 1;
            if fits(&row.size, &free) && self.may_take(at) {
                self.taken.push(at);
                free = less(&free, &row.size, 1);
                (bound, value) = (bound + excess, value + row.price);
                self.descend(at, free, bound, value);
                self.taken.pop();
                free = more(&free, &row.size, 1);
                (bound, value) = (bound - excess, value - row.price);
            }
            at += 1;
        }
    }

    fn may_take(&self, at: usize) -> bool {
        let row = &self.rows[at];
        let same = self.taken.iter().filter(|taken| **taken == at).count();
        let below = |count: usize, limit: u64| u64::try_from(count).is_ok_and(|count| count < limit);
        if !below(same, row.limit) {
            return false;
        }
        let Some(limit) = (row.group != NO_GROUP).then(|| self.group_max[row.group]) else {
            return true;
        };
        let group = self
            .taken
            .iter()
            .filter(|taken| self.rows[**taken].group == row.group);
        below(group.count(), limit)
    }
}
