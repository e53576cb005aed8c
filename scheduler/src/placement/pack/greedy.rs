//! Bins filled one after another, each with the item that suits what is free in it best.
//!
//! First fit decreasing is the same thing seen from the bin: it takes whatever fits, in a fixed order.

use super::model::{Bin, Kind, Layout, Model, NO_GROUP, SHARE_BITS, Work, fits, less, share};

/// Weights of dimensions are in units of 2^-10.
const WEIGHT_ONE: u64 = 1 << 10;

/// Which item is put next into a bin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// The first that fits, by descending weighted sum, product, or largest weighted share.
    Sum,
    Product,
    Dominant,
    /// The largest weighted dot product of item and free space.
    Dot,
    /// The same over the length of the item: the angle counts.
    Cosine,
    /// The least weighted square of what is left free.
    Residual,
}

/// How much a dimension counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weights {
    Equal,
    /// By the whole demand in capacities.
    Demand,
    /// The square of that.
    Scarce,
    /// By the demand that is left when the bin is begun.
    Rest,
}

const RUNS: [(Rule, Weights, &str); 14] = [
    (Rule::Residual, Weights::Rest, "residual"),
    (Rule::Dot, Weights::Rest, "dot"),
    (Rule::Sum, Weights::Demand, "first fit, sum"),
    (Rule::Dominant, Weights::Demand, "first fit, dominant"),
    (Rule::Sum, Weights::Scarce, "first fit, sum"),
    (Rule::Cosine, Weights::Rest, "cosine"),
    (Rule::Residual, Weights::Scarce, "residual"),
    (Rule::Dot, Weights::Scarce, "dot"),
    (Rule::Dominant, Weights::Equal, "first fit, dominant"),
    (Rule::Sum, Weights::Equal, "first fit, sum"),
    (Rule::Product, Weights::Equal, "first fit, product"),
    (Rule::Residual, Weights::Demand, "residual"),
    (Rule::Dot, Weights::Demand, "dot"),
    (Rule::Cosine, Weights::Demand, "cosine"),
];

/// The best of all rules and its name. The first rule runs whatever the budget is; the bound ends the search.
pub(super) fn best<const D: usize>(
    model: &Model<D>,
    bound: u64,
    work: &mut Work,
) -> (Layout<D>, &'static str) {
    let mut found: Option<(Layout<D>, &'static str)> = None;
    for (rule, weights, name) in RUNS {
        if let Some((best, _)) = &found
            && (!work.left() || !best.fewer_possible(bound))
        {
            break;
        }
        let complete = found.as_ref().filter(|(best, _)| best.is_complete());
        let bins_max = complete.map_or(usize::MAX, |(best, _)| best.new_bins());
        let layout = Greedy::new(model, rule, weights, bins_max).run(work);
        if let Some(layout) = layout
            && found.as_ref().is_none_or(|(best, _)| layout.better_than(best))
        {
            found = Some((layout, name));
        }
    }
    found.expect("the first run is not limited")
}

/// Packs what a layout has left, into its bins first; for methods that leave a rest.
pub(super) fn complete<const D: usize>(model: &Model<D>, layout: Layout<D>, work: &mut Work) -> Layout<D> {
    let mut done: Option<Layout<D>> = None;
    for (rule, weights, _) in RUNS {
        let mut greedy = Greedy::new(model, rule, weights, usize::MAX);
        greedy.resume(layout.clone());
        if let Some(layout) = greedy.run(work)
            && done.as_ref().is_none_or(|best| layout.better_than(best))
        {
            done = Some(layout);
        }
    }
    done.expect("runs without a limit end with a layout")
}

struct Greedy<'a, const D: usize> {
    model: &'a Model<D>,
    rule: Rule,
    weights: Weights,
    /// Gives up when the layout would be no better than one of so many new bins.
    bins_max: usize,
    weight: [u64; D],
    /// Kinds that are left, in the order of the rule.
    active: Vec<usize>,
    layout: Layout<D>,
    group_used: Vec<u64>,
    candidates: Vec<usize>,
}

impl<'a, const D: usize> Greedy<'a, D> {
    fn new(model: &'a Model<D>, rule: Rule, weights: Weights, bins_max: usize) -> Self {
        Self {
            model,
            rule,
            weights,
            bins_max,
            weight: [WEIGHT_ONE; D],
            active: Vec::new(),
            layout: Layout::empty(model),
            group_used: vec![0; model.group_max.len()],
            candidates: Vec::new(),
        }
    }

    fn resume(&mut self, layout: Layout<D>) {
        self.layout = layout;
    }

    /// None when the limit of bins was reached.
    fn run(mut self, work: &mut Work) -> Option<Layout<D>> {
        self.active = (0..self.model.kinds.len())
            .filter(|kind| self.layout.left[*kind] > 0)
            .collect();
        self.weigh();
        let (rule, weight, kinds) = (self.rule, self.weight, &self.model.kinds);
        self.active
            .sort_by_key(|kind| std::cmp::Reverse(order(rule, &weight, &kinds[*kind])));
        for index in 0..self.layout.bins.len() {
            let mut bin = self.layout.bins[index].clone();
            self.fill(&mut bin, work);
            self.layout.bins[index] = bin;
        }
        while !self.active.is_empty() && self.layout.new_bins() < self.model.new_max {
            if self.layout.new_bins() + 1 >= self.bins_max {
                return None;
            }
            if self.weights == Weights::Rest {
                self.weigh();
            }
            let mut bin = Bin::new(self.model.capacity);
            self.fill(&mut bin, work);
            assert!(
                !bin.parts.is_empty(),
                "an item of a checked problem fits an empty bin"
            );
            self.repeat(&bin);
            self.layout.bins.push(bin);
        }
        Some(self.layout)
    }

    /// The same bin again, as often as there are items for it: with weights that do not change it would come out the same.
    fn repeat(&mut self, bin: &Bin<D>) {
        let times = bin
            .parts
            .iter()
            .map(|(kind, count)| self.layout.left[*kind] / count)
            .min()
            .unwrap_or(0);
        let times = if self.weights == Weights::Rest {
            times / 4
        } else {
            times
        };
        let room = self
            .model
            .new_max
            .min(self.bins_max)
            .saturating_sub(self.layout.new_bins() + 1);
        let times = times.min(u64::try_from(room).unwrap_or(u64::MAX));
        for _ in 0..times {
            self.layout.bins.push(bin.clone());
        }
        for (kind, count) in &bin.parts {
            self.layout.left[*kind] -= count * times;
        }
        let left = &self.layout.left;
        self.active.retain(|kind| left[*kind] > 0);
    }

    /// Demand per dimension in shares, over the largest of them.
    fn weigh(&mut self) {
        if self.weights == Weights::Equal {
            return;
        }
        let mut demand = [0_u64; D];
        for kind in &self.active {
            for (sum, share) in demand.iter_mut().zip(&self.model.kinds[*kind].share) {
                *sum += share * self.layout.left[*kind];
            }
        }
        let most = demand.iter().copied().max().unwrap_or(0).max(1);
        self.weight = demand.map(|demand| {
            let weight = demand * WEIGHT_ONE / most;
            if self.weights == Weights::Scarce {
                weight * weight / WEIGHT_ONE
            } else {
                weight
            }
        });
    }

    fn fill(&mut self, bin: &mut Bin<D>, work: &mut Work) {
        for group in 0..self.group_used.len() {
            self.group_used[group] = self.model.held(bin, group);
        }
        for (kind, count) in &bin.parts {
            if let Some(used) = self.group_used.get_mut(self.model.kinds[*kind].group) {
                *used = used.saturating_add(*count);
            }
        }
        work.spend(self.active.len() * D);
        if matches!(self.rule, Rule::Sum | Rule::Product | Rule::Dominant) {
            self.fill_in_order(bin);
        } else {
            self.fill_by_score(bin, work);
        }
        let left = &self.layout.left;
        self.active.retain(|kind| left[*kind] > 0);
    }

    fn fill_in_order(&mut self, bin: &mut Bin<D>) {
        for at in 0..self.active.len() {
            let kind = self.active[at];
            if fits(&self.model.kinds[kind].size, &bin.free) {
                let count = self.model.room(bin, kind, self.layout.left[kind]);
                self.put(bin, kind, count);
            }
        }
    }

    fn fill_by_score(&mut self, bin: &mut Bin<D>, work: &mut Work) {
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.clone_from(&self.active);
        loop {
            let (left, used, model) = (&self.layout.left, &self.group_used, self.model);
            candidates.retain(|kind| {
                let Kind { size, group, .. } = &model.kinds[*kind];
                left[*kind] > 0
                    && fits(size, &bin.free)
                    && (*group == NO_GROUP || used[*group] < model.limit(*group))
            });
            let free: [u64; D] = std::array::from_fn(|at| share(bin.free[at], model.capacity[at]));
            // Of equal scores the first kind, which is the largest.
            let best = candidates
                .iter()
                .rev()
                .max_by_key(|kind| self.score(&model.kinds[**kind], &free));
            let Some(kind) = best.copied() else { break };
            work.spend(candidates.len() * D);
            self.put(bin, kind, 1);
        }
        self.candidates = candidates;
    }

    fn put(&mut self, bin: &mut Bin<D>, kind: usize, count: u64) {
        if count == 0 {
            return;
        }
        bin.put(self.model, kind, count);
        self.layout.left[kind] -= count;
        if let Some(used) = self.group_used.get_mut(self.model.kinds[kind].group) {
            *used = used.saturating_add(count);
        }
    }

    /// Larger is better. Shares have 20 bits, weights 10, 32 dimensions 5: all sums stay below 2^56.
    fn score(&self, kind: &Kind<D>, free: &[u64; D]) -> u64 {
        match self.rule {
            Rule::Residual => {
                // A share is rounded down, so a fitting item never has more than is free.
                let rest = less(free, &kind.share, 1);
                u64::MAX - weighted(&self.weight, &rest, &rest)
            }
            Rule::Dot => weighted(&self.weight, &kind.share, free),
            Rule::Cosine => {
                let length = weighted(&self.weight, &kind.share, &kind.share).isqrt();
                weighted(&self.weight, &kind.share, free) / length.max(1)
            }
            Rule::Sum | Rule::Product | Rule::Dominant => 0,
        }
    }
}

fn weighted<const D: usize>(weight: &[u64; D], left: &[u64; D], right: &[u64; D]) -> u64 {
    let terms = weight.iter().zip(left).zip(right);
    terms.map(|((weight, left), right)| weight * left * right).sum()
}

/// The key of first fit decreasing.
fn order<const D: usize>(rule: Rule, weight: &[u64; D], kind: &Kind<D>) -> u128 {
    let shares = weight
        .iter()
        .zip(&kind.share)
        .map(|(weight, share)| u128::from(weight * share));
    match rule {
        Rule::Sum => shares.sum(),
        Rule::Dominant => shares.max().unwrap_or(0),
        // A dimension that an item does not use counts as its smallest share. Of 32 dimensions 3 bits of each, of eight 15.
        Rule::Product => kind
            .share
            .iter()
            .map(|share| u128::from((share >> (SHARE_BITS - product_bits::<D>())).max(1)))
            .product(),
        Rule::Dot | Rule::Cosine | Rule::Residual => 0,
    }
}

/// Of each share, so that the product of all stays in 128 bits.
fn product_bits<const D: usize>() -> u32 {
    let dimensions = u32::try_from(D).unwrap_or(u32::MAX);
    (120 / dimensions).min(15)
}
