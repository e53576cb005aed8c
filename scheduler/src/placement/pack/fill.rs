//! Bins filled one after another, each as full as a bounded search makes it: the hardest item left, and with it those
//! that leave the least unused (Gupta and Ho's minimum bin slack, for vectors).
//!
//! An item is hard by its size, times a factor that grows with the waste in the bins where it ended up in earlier runs
//! (Belov and Mukhacheva's sequential value correction).

use super::model::{Bin, Layout, Model, NO_GROUP, SHARE_BITS, Work, fits, less, share};

/// So many of the hardest kinds, and as many spread over the others, are looked at for one bin.
const CANDIDATES: usize = 160;
/// Of the search for one bin.
const NODES_MAX: usize = 200;
const BRANCHES: usize = 3;
/// A bin is full enough when less than one part in so many of it is unused.
const ENOUGH_PART: u64 = 2_000;
/// Factors are in units of 2^-10.
const FACTOR_ONE: u64 = 1 << 10;

/// The best of several runs, if better than `best`.
pub(super) fn improve<const D: usize>(
    model: &Model<D>,
    best: &mut Layout<D>,
    bound: u64,
    runs: usize,
    work: &mut Work,
) -> bool {
    let mut factors = vec![FACTOR_ONE; model.kinds.len()];
    let mut improved = false;
    for run in 0..runs {
        if !best.fewer_possible(bound) || !work.left() {
            break;
        }
        let fill = Fill::new(model, &factors, run);
        let layout = fill.run(work);
        learn(model, &layout, &mut factors);
        if let Some(layout) = layout.filter(|layout| layout.better_than(best)) {
            *best = layout;
            improved = true;
        }
    }
    improved
}

struct Fill<'a, const D: usize> {
    model: &'a Model<D>,
    factors: &'a [u64],
    weight: [u64; D],
    /// Kinds that are left, hardest first.
    active: Vec<usize>,
    layout: Layout<D>,
    run: usize,
}

/// The search for one bin.
struct Descent<'a, const D: usize> {
    fill: &'a Fill<'a, D>,
    bin: Bin<D>,
    best: Option<(u64, Bin<D>)>,
    /// A bin worth so much is good enough.
    enough: u64,
    nodes: usize,
}

impl<'a, const D: usize> Fill<'a, D> {
    fn new(model: &'a Model<D>, factors: &'a [u64], run: usize) -> Self {
        let mut fill = Self {
            model,
            factors,
            weight: [0; D],
            active: (0..model.kinds.len()).collect(),
            layout: Layout::empty(model),
            run,
        };
        fill.weigh();
        let mut active = std::mem::take(&mut fill.active);
        active.sort_by_cached_key(|kind| std::cmp::Reverse(fill.hardness(*kind)));
        fill.active = active;
        fill
    }

    fn hardness(&self, kind: usize) -> u64 {
        let share = &self.model.kinds[kind].share;
        let size = match self.run % 2 {
            0 => self.worth(kind),
            _ => share
                .iter()
                .zip(&self.weight)
                .map(|(share, weight)| share * weight)
                .max()
                .unwrap_or(0),
        };
        size.saturating_mul(self.factors[kind])
    }

    /// Weights are in units of 2^-10 and add up to one.
    fn weigh(&mut self) {
        let mut demand = [0_u64; D];
        for kind in &self.active {
            for (sum, share) in demand.iter_mut().zip(&self.model.kinds[*kind].share) {
                *sum += share * self.layout.left[*kind];
            }
        }
        let total = demand.iter().sum::<u64>().max(1);
        self.weight = demand.map(|demand| demand * FACTOR_ONE / total);
    }

    fn worth(&self, kind: usize) -> u64 {
        let share = &self.model.kinds[kind].share;
        share
            .iter()
            .zip(&self.weight)
            .map(|(share, weight)| share * weight)
            .sum()
    }

    fn run(mut self, work: &mut Work) -> Option<Layout<D>> {
        for index in 0..self.layout.bins.len() {
            let bin = self.layout.bins[index].clone();
            self.layout.bins[index] = self.filled(bin, work);
        }
        while !self.active.is_empty() && self.layout.new_bins() < self.model.new_max {
            if !work.left() {
                return None;
            }
            self.weigh();
            let hardest = self.active[0];
            let mut bin = Bin::new(self.model.capacity);
            bin.put(self.model, hardest, 1);
            let bin = self.filled(bin, work);
            let times = bin
                .parts
                .iter()
                .map(|(kind, count)| self.layout.left[*kind] / count)
                .min()
                .unwrap_or(0)
                / 4;
            let room = self.model.new_max.saturating_sub(self.layout.new_bins() + 1);
            let times = times.min(u64::try_from(room).unwrap_or(u64::MAX));
            for (kind, count) in &bin.parts {
                self.layout.left[*kind] -= count * times;
            }
            for _ in 0..times {
                self.layout.bins.push(bin.clone());
            }
            self.layout.bins.push(bin);
            let left = &self.layout.left;
            self.active.retain(|kind| left[*kind] > 0);
        }
        Some(self.layout)
    }

    /// Adds to a bin what makes it fullest, and takes it from what is left.
    fn filled(&mut self, bin: Bin<D>, work: &mut Work) -> Bin<D> {
        let step = (self.active.len() / CANDIDATES).max(1);
        let spread = self.active.iter().enumerate().skip(CANDIDATES).step_by(step);
        let mut candidates: Vec<usize> = self.active.iter().copied().take(CANDIDATES).collect();
        candidates.extend(spread.map(|(_, kind)| *kind));
        let whole = FACTOR_ONE << SHARE_BITS;
        let mut descent = Descent {
            fill: self,
            bin,
            best: None,
            enough: whole - whole / ENOUGH_PART,
            nodes: 0,
        };
        descent.descend(&candidates, 0, work);
        let (_, bin) = descent.best.expect("the bin itself is an answer");
        for (kind, count) in &bin.parts {
            self.layout.left[*kind] -= count;
        }
        let left = &self.layout.left;
        self.active.retain(|kind| left[*kind] > 0);
        bin
    }
}

impl<const D: usize> Descent<'_, D> {
    fn descend(&mut self, candidates: &[usize], value: u64, work: &mut Work) {
        self.nodes += 1;
        work.spend(candidates.len() * D);
        let model = self.fill.model;
        let free: [u64; D] = std::array::from_fn(|at| share(self.bin.free[at], model.capacity[at]));
        let mut scored: Vec<(u64, usize)> = Vec::new();
        let mut fitting: Vec<usize> = Vec::new();
        for &kind in candidates {
            let entry = &model.kinds[kind];
            if !fits(&entry.size, &self.bin.free) || self.used_up(kind) {
                continue;
            }
            if entry.group != NO_GROUP && model.room(&self.bin, kind, 1) == 0 {
                continue;
            }
            fitting.push(kind);
            let rest = less(&free, &entry.share, 1);
            let waste: u64 = rest
                .iter()
                .zip(&self.fill.weight)
                .map(|(rest, weight)| weight * ((rest * rest) >> 10))
                .sum();
            scored.push((waste, kind));
        }
        if fitting.is_empty() {
            if self.best.as_ref().is_none_or(|(best, _)| value > *best) {
                self.best = Some((value, self.bin.clone()));
            }
            return;
        }
        let branches = BRANCHES.min(scored.len());
        if scored.len() > branches {
            scored.select_nth_unstable(branches - 1);
        }
        scored.truncate(branches);
        scored.sort_unstable();
        for (_, kind) in scored {
            // The first descent always ends, so that there is an answer.
            if let Some((best, _)) = &self.best
                && (self.nodes > NODES_MAX || *best >= self.enough)
            {
                return;
            }
            self.bin.put(model, kind, 1);
            self.descend(&fitting, value + self.fill.worth(kind), work);
            self.bin.remove(model, kind, 1);
        }
    }

    fn used_up(&self, kind: usize) -> bool {
        let held = self
            .bin
            .parts
            .iter()
            .find(|(part, _)| *part == kind)
            .map_or(0, |(_, count)| *count);
        held >= self.fill.layout.left[kind]
    }
}

/// Items in bins with much waste become harder.
fn learn<const D: usize>(model: &Model<D>, layout: &Option<Layout<D>>, factors: &mut [u64]) {
    let Some(layout) = layout else { return };
    for bin in &layout.bins {
        let free: u64 = (0..D).map(|at| share(bin.free[at], model.capacity[at])).sum();
        let waste = free / u64::try_from(D).unwrap_or(1);
        for (kind, _) in &bin.parts {
            let factor = FACTOR_ONE + (waste >> 8);
            factors[*kind] = (factors[*kind] * 3 + factor) / 4;
        }
    }
}
