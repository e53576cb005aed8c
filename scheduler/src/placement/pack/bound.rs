//! Bounds that need no prices: volume, dual feasible functions, items of which no two share a bin, spread.
//!
//! An open bin counts as a bin with a blocking item of the size of what is used in it: each packing into open and new bins is
//! a packing of items and blockers, in which no two blockers share a bin.
//!
//! Dual feasible functions: whatever fits into one bin has values of at most 1 together, so the sum of all values is a
//! bound. They are applied to each dimension and to sums of dimensions, since what fits in each fits in the sum (Caprara
//! and Toth, "Lower bounds and algorithms for the 2-dimensional vector packing problem", 2001).

use super::model::{Model, SHARE_BITS, fits, less};

/// Parameters of the rounding functions. Items smaller than a fraction 1/20 make bins full enough for the volume.
const ROUNDING_MAX: u128 = 20;
/// The clique is looked for among so many of the largest kinds; beyond it costs more than it finds.
const CLIQUE_KINDS_MAX: usize = 20_000;

/// Sizes and how often.
type Sizes<const D: usize> = Vec<([u64; D], u64)>;

/// New bins that are needed in any case.
pub(super) fn combinatorial<const D: usize>(model: &Model<D>) -> u64 {
    let mut sizes: Sizes<D> = model.kinds.iter().map(|kind| (kind.size, kind.count)).collect();
    let blockers = model
        .open
        .iter()
        .map(|open| (less(&model.capacity, &open.free, 1), 1));
    sizes.extend(blockers.filter(|(size, _)| size.iter().any(|amount| *amount > 0)));
    let open = u64::try_from(model.open.len()).unwrap_or(u64::MAX);
    let mut best = clique(&sizes, &model.capacity);
    for dimension in 0..D {
        let values = sizes
            .iter()
            .map(|(size, count)| (u128::from(size[dimension]), *count));
        best = best.max(one_dimension(
            values.collect(),
            u128::from(model.capacity[dimension]),
        ));
    }
    for subset in subsets(model) {
        let values = sizes.iter().map(|(size, count)| {
            let shares = subset.iter().map(|at| fraction(size[*at], model.capacity[*at]));
            (shares.sum(), *count)
        });
        let whole = u128::try_from(subset.len()).unwrap_or(1) << (2 * SHARE_BITS);
        best = best.max(one_dimension(values.collect(), whole));
    }
    best.saturating_sub(open).max(spread(model))
}

/// Pairs of dimensions that are used, and all of them.
fn subsets<const D: usize>(model: &Model<D>) -> Vec<Vec<usize>> {
    let used: Vec<usize> = (0..D).filter(|at| model.capacity[*at] > 0).collect();
    let mut subsets: Vec<Vec<usize>> = Vec::new();
    for (at, first) in used.iter().enumerate() {
        subsets.extend(used[at + 1..].iter().map(|second| vec![*first, *second]));
    }
    if used.len() > 2 {
        subsets.push(used);
    }
    subsets
}

/// Of the capacity in units of 2^-40, rounded down.
fn fraction(amount: u64, capacity: u64) -> u128 {
    (u128::from(amount) << (2 * SHARE_BITS)) / u128::from(capacity)
}

/// The best of volume and dual feasible functions in one dimension.
fn one_dimension(mut values: Vec<(u128, u64)>, capacity: u128) -> u64 {
    if capacity == 0 {
        return 0;
    }
    values.sort_unstable_by_key(|value| std::cmp::Reverse(*value));
    let volume: u128 = values
        .iter()
        .map(|(value, count)| value * u128::from(*count))
        .sum();
    let mut best = volume.div_ceil(capacity).max(thresholds(&values, capacity));
    for parameter in 1..=ROUNDING_MAX {
        best = best.max(rounded(&values, capacity, parameter));
    }
    u64::try_from(best).unwrap_or(u64::MAX)
}

/// Martello and Toth's L2: items above a half need a bin each; those beyond `capacity - smallest` share it with none of
/// at least `smallest`; what of the others does not fit beside the rest adds volume. The best over all `smallest`.
/// Values are sorted, largest first.
fn thresholds(values: &[(u128, u64)], capacity: u128) -> u128 {
    let half = values.partition_point(|(value, _)| value * 2 > capacity);
    let large: u128 = values[..half].iter().map(|(_, count)| u128::from(*count)).sum();
    let mut best = large;
    // Of values[alone..half]: their bins take smaller ones as well.
    let (mut alone, mut shared_count, mut shared_volume) = (half, 0_u128, 0_u128);
    let mut small_volume = 0_u128;
    for (smallest, count) in &values[half..] {
        small_volume += smallest * u128::from(*count);
        while alone > 0 && values[alone - 1].0 + smallest <= capacity {
            alone -= 1;
            shared_count += u128::from(values[alone].1);
            shared_volume += values[alone].0 * u128::from(values[alone].1);
        }
        let beside = shared_count * capacity - shared_volume;
        best = best.max(large + small_volume.saturating_sub(beside).div_ceil(capacity));
    }
    best
}

/// Fekete and Schepers' u^(k), in units of 1/k: x (k+1) / C where that is whole, else its floor, of k at most.
fn rounded(values: &[(u128, u64)], capacity: u128, parameter: u128) -> u128 {
    let terms = values.iter().map(|(value, count)| {
        let scaled = value * (parameter + 1);
        // In units of 1 / (k * capacity), so that whole ones keep their exact value.
        let units = if scaled.is_multiple_of(capacity) {
            value * parameter
        } else {
            scaled / capacity * capacity
        };
        units * u128::from(*count)
    });
    terms.sum::<u128>().div_ceil(parameter * capacity)
}

/// Items of which no two fit together, taken greedily, the largest first.
fn clique<const D: usize>(sizes: &Sizes<D>, capacity: &[u64; D]) -> u64 {
    let together = |one: &[u64; D], other: &[u64; D]| {
        let free = less(capacity, one, 1);
        fits(other, &free)
    };
    let mut members: Vec<&[u64; D]> = Vec::new();
    let mut found = 0;
    for (size, count) in sizes.iter().take(CLIQUE_KINDS_MAX) {
        if members.iter().any(|member| together(member, size)) {
            continue;
        }
        if together(size, size) {
            // One of them still belongs to it, but then the next kind need not be apart from a second one.
            found += 1;
        } else {
            found += count;
        }
        members.push(size);
    }
    found
}

/// Groups whose items may not share a bin.
fn spread<const D: usize>(model: &Model<D>) -> u64 {
    let groups = model.group_max.iter().enumerate().map(|(group, max)| {
        let items = model.kinds.iter().filter(|kind| kind.group == group);
        let total: u64 = items.map(|kind| kind.count).sum();
        let room = model.open.iter().map(|open| {
            let held = open.groups.iter().filter(|(held, _)| *held == group);
            held.fold(*max, |room, (_, count)| room.saturating_sub(*count))
        });
        let room = room.fold(0_u64, u64::saturating_add);
        total.saturating_sub(room).div_ceil(*max)
    });
    groups.max().unwrap_or(0)
}
