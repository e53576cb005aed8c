//! What others do, written plainly: items one by one, no kinds, no improvement.
//!
//! First fit in the given order; first fit decreasing by sum, product and largest share; best fit decreasing; the dot product
//! and the least squared residual of Panigrahy and others, which fill bin after bin. Shares are floats: these only report.

use berth_scheduler::placement::pack::Problem;

/// The peers, in the order of the table.
pub(crate) const NAMES: [&str; 7] = [
    "FF",
    "FFD sum",
    "FFD product",
    "FFD dominant",
    "BFD",
    "dot product",
    "L2",
];

const FUZZ: f64 = 1e-9;

/// Bins that each peer needs, in the order of [`NAMES`].
pub(crate) fn bins(problem: &Problem) -> [usize; 7] {
    let items = shares(problem);
    let weights = weights(&items);
    let sorted = |key: fn(&[f64]) -> f64| {
        let mut sorted = items.clone();
        sorted.sort_by(|one, other| key(other).total_cmp(&key(one)));
        sorted
    };
    let by_sum = sorted(|item| item.iter().sum());
    let by_product = sorted(|item| item.iter().map(|share| share.max(1e-6)).product());
    let by_most = sorted(|item| item.iter().copied().fold(0.0, f64::max));
    [
        first_fit(&items),
        first_fit(&by_sum),
        first_fit(&by_product),
        first_fit(&by_most),
        best_fit(&by_sum),
        bin_by_bin(&by_sum, |item, free| -dot(item, free, &weights)),
        bin_by_bin(&by_sum, |item, free| residual(item, free, &weights)),
    ]
}

#[expect(clippy::cast_precision_loss, reason = "shares of a report")]
fn shares(problem: &Problem) -> Vec<Vec<f64>> {
    let share = |(amount, capacity): (&u64, &u64)| {
        if *capacity == 0 {
            0.0
        } else {
            *amount as f64 / *capacity as f64
        }
    };
    let mut items = Vec::new();
    for item in &problem.items {
        let one: Vec<f64> = item.amounts.iter().zip(&problem.capacity).map(share).collect();
        items.extend((0..item.count).map(|_| one.clone()));
    }
    items
}

/// The mean demand of each dimension, as Panigrahy and others weigh them.
fn weights(items: &[Vec<f64>]) -> Vec<f64> {
    let mut weights = vec![0.0; items.first().map_or(0, Vec::len)];
    for item in items {
        for (weight, share) in weights.iter_mut().zip(item) {
            *weight += share;
        }
    }
    weights
}

fn fits(item: &[f64], free: &[f64]) -> bool {
    item.iter().zip(free).all(|(share, free)| *share <= free + FUZZ)
}

fn take(item: &[f64], free: &mut [f64]) {
    for (free, share) in free.iter_mut().zip(item) {
        *free -= share;
    }
}

fn first_fit(items: &[Vec<f64>]) -> usize {
    let mut bins: Vec<Vec<f64>> = Vec::new();
    for item in items {
        if let Some(bin) = bins.iter_mut().find(|bin| fits(item, bin)) {
            take(item, bin);
        } else {
            let mut bin = vec![1.0; item.len()];
            take(item, &mut bin);
            bins.push(bin);
        }
    }
    bins.len()
}

/// Into the bin with the least free in all.
fn best_fit(items: &[Vec<f64>]) -> usize {
    let mut bins: Vec<Vec<f64>> = Vec::new();
    for item in items {
        let fitting = bins.iter_mut().filter(|bin| fits(item, bin));
        let best = fitting.min_by(|one, other| one.iter().sum::<f64>().total_cmp(&other.iter().sum()));
        if let Some(bin) = best {
            take(item, bin);
        } else {
            let mut bin = vec![1.0; item.len()];
            take(item, &mut bin);
            bins.push(bin);
        }
    }
    bins.len()
}

/// Fills one bin after another with the fitting item of the lowest cost.
fn bin_by_bin(items: &[Vec<f64>], cost: impl Fn(&[f64], &[f64]) -> f64) -> usize {
    let mut left: Vec<&Vec<f64>> = items.iter().collect();
    let mut bins = 0;
    while let Some(first) = left.first() {
        let mut free = vec![1.0; first.len()];
        bins += 1;
        let fitting = |free: &[f64], left: &[&Vec<f64>]| {
            let fitting = left.iter().enumerate().filter(|(_, item)| fits(item, free));
            let best = fitting.min_by(|one, other| cost(one.1, free).total_cmp(&cost(other.1, free)));
            best.map(|(at, _)| at)
        };
        while let Some(at) = fitting(&free, &left) {
            take(left.remove(at), &mut free);
        }
    }
    bins
}

fn dot(item: &[f64], free: &[f64], weights: &[f64]) -> f64 {
    let terms = item.iter().zip(free).zip(weights);
    terms.map(|((share, free), weight)| share * free * weight).sum()
}

fn residual(item: &[f64], free: &[f64], weights: &[f64]) -> f64 {
    let terms = item.iter().zip(free).zip(weights);
    terms
        .map(|((share, free), weight)| (free - share) * (free - share) * weight)
        .sum()
}
