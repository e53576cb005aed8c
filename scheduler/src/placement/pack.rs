//! Off-line vector packing: how few equal bins hold all items, and a bound below which no packing can go.
//!
//! Input: a [`Problem`] and a [`Budget`]. Output: a [`Packing`], or every [`Fault`] of the problem. Pure; the same problem
//! and budget give the same packing on every machine, since work is counted in steps, never by a clock. The capacity plan
//! uses it: a bin is a machine of the group's profile, an item is a replica. Zones are the caller's: one problem per zone.
//!
//! **Kinds.** Items of equal amounts and group are one kind with a count, so ten thousand equal items cost what one costs.
//! Kinds are sorted by content: the order in which items are listed changes nothing but which of equal items goes where.
//!
//! **Method**, each step only while budget is left and the bound is not reached:
//! 1. [`greedy`]: bins are filled one after another by first fit decreasing, dot product, least residual and cosine, with
//!    several weights of the dimensions (Panigrahy, Talwar, Uyeda, Wieder, "Heuristics for vector bin packing", 2011).
//! 2. [`fill`]: each bin as full as a bounded search makes it, the hardest item first.
//! 3. [`columns`]: prices of the kinds by column generation (Gilmore and Gomory, 1961) in fixed point, and the packing
//!    that they round to by diving. The prices also make the bound (Farley, 1990).
//!
//! **Bound.** The largest of those of [`bound`] and the one proven by prices. Always valid, also when the budget is small.

mod bound;
mod columns;
mod fill;
mod greedy;
mod model;
mod pricing;
mod simplex;

use std::borrow::Cow;
use std::fmt;

/// The most dimensions of a problem.
pub const DIMENSIONS_MAX: usize = 32;
/// The most items of a problem, counts included; arithmetic on shares relies on it (2^20 items of a share of at most 2^20
/// stay below 2^41).
pub const ITEMS_MAX: u64 = 1 << 20;

/// Items that are equal: so much of each dimension, `count` times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// One amount per dimension, in the unit of the capacity.
    pub amounts: Vec<u64>,
    pub count: u64,
    /// Index into [`Problem::group_max`]: items of one group spread over bins.
    pub group: Option<usize>,
}

/// A bin that exists and is partly filled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Open {
    /// What is free per dimension, at most the capacity.
    pub free: Vec<u64>,
    /// Items of a group that it holds already: group and how many.
    pub groups: Vec<(usize, u64)>,
}

/// What is to be packed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Problem {
    /// Of each new bin, per dimension.
    pub capacity: Vec<u64>,
    pub items: Vec<Item>,
    /// Per group how many of its items one bin holds at most.
    pub group_max: Vec<u64>,
    /// Bins that exist; they are filled before new ones are added.
    pub open: Vec<Open>,
    /// How many new bins may be added; None is without limit. What does not fit is in [`Packing::left`].
    pub new_max: Option<u64>,
}

/// How much work may be done. A step is about a nanosecond on a machine of 2024; greedy packing is done in any case, and
/// costs about kinds x bins x dimensions steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    pub steps: u64,
}

impl Budget {
    /// About a tenth of a second: for a plan that is made on every change.
    pub const QUICK: Self = Self { steps: 100_000_000 };
    /// About ten seconds: for a plan that a person waits for.
    pub const THOROUGH: Self = Self {
        steps: 10_000_000_000,
    };
}

/// `count` items of `Problem::items[item]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    pub item: usize,
    pub count: u64,
}

/// A packing and how good it can be at best.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packing {
    /// First the open bins in the order of the problem (what is added to them), then the new ones, none of them empty.
    pub bins: Vec<Vec<Part>>,
    /// How many of `bins` are new.
    pub new_bins: u64,
    /// No packing of all items needs fewer new bins.
    pub bound: u64,
    /// What found no place; empty unless [`Problem::new_max`] stops it.
    pub left: Vec<Part>,
    /// Which method found it, for reports.
    pub method: &'static str,
}

/// What is wrong with a problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The capacity has none or more than [`DIMENSIONS_MAX`].
    Dimensions {
        found: usize,
    },
    /// An item's or open bin's amounts are not as many as the capacity's.
    ItemLength {
        item: usize,
        found: usize,
    },
    OpenLength {
        open: usize,
        found: usize,
    },
    /// No bin can ever hold it.
    TooLarge {
        item: usize,
        dimension: usize,
        amount: u64,
        capacity: u64,
    },
    /// Its count is zero.
    NoCount {
        item: usize,
    },
    /// It needs nothing, so that any number fits anywhere.
    NoAmount {
        item: usize,
    },
    UnknownGroup {
        group: usize,
    },
    /// The group may have no item in any bin.
    GroupMax {
        group: usize,
    },
    /// An open bin has more free than a bin holds.
    OpenTooFree {
        open: usize,
        dimension: usize,
    },
    /// More than [`ITEMS_MAX`] items.
    TooMany,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dimensions { found } => write!(f, "{found} dimensions instead of 1 to {DIMENSIONS_MAX}"),
            Self::ItemLength { item, found } => write!(f, "item {item} has {found} amounts"),
            Self::OpenLength { open, found } => write!(f, "open bin {open} has {found} amounts"),
            Self::TooLarge {
                item,
                dimension,
                amount,
                capacity,
            } => write!(
                f,
                "item {item} needs {amount} in dimension {dimension} of which a bin has {capacity}"
            ),
            Self::NoCount { item } => write!(f, "item {item} has count 0"),
            Self::NoAmount { item } => write!(f, "item {item} needs nothing"),
            Self::UnknownGroup { group } => write!(f, "there is no group {group}"),
            Self::GroupMax { group } => write!(f, "group {group} may have no item in a bin"),
            Self::OpenTooFree { open, dimension } => {
                write!(
                    f,
                    "open bin {open} has more free in dimension {dimension} than a bin holds"
                )
            }
            Self::TooMany => write!(f, "more than {ITEMS_MAX} items"),
        }
    }
}

impl std::error::Error for Fault {}

/// Packs all items into as few new bins as the budget finds.
///
/// # Errors
/// All faults of the problem, each named once.
pub fn pack(problem: &Problem, budget: Budget) -> Result<Packing, Vec<Fault>> {
    let faults = faults(problem);
    if !faults.is_empty() {
        return Err(faults);
    }
    let empty = Empty::of(problem);
    let problem = &empty.problem;
    // Padding to a few widths keeps the inner loops free of lengths without compiling them eight times.
    let packing = match problem.capacity.len() {
        1 | 2 => packed::<2>(problem, budget),
        3 | 4 => packed::<4>(problem, budget),
        5..=8 => packed::<8>(problem, budget),
        _ => packed::<32>(problem, budget),
    };
    Ok(empty.back(packing))
}

/// A problem whose open bins that are wholly free count as new ones, which methods and bounds are better at.
#[derive(Debug)]
struct Empty<'a> {
    problem: Cow<'a, Problem>,
    /// Whether each open bin of the original is one of them.
    is_empty: Vec<bool>,
}

impl<'a> Empty<'a> {
    fn of(problem: &'a Problem) -> Self {
        let is_empty: Vec<bool> = problem
            .open
            .iter()
            .map(|open| open.free == problem.capacity && open.groups.iter().all(|(_, held)| *held == 0))
            .collect();
        if !is_empty.contains(&true) {
            return Self {
                problem: Cow::Borrowed(problem),
                is_empty,
            };
        }
        let mut without = problem.clone();
        let mut flags = is_empty.iter();
        without.open.retain(|_| !flags.next().copied().unwrap_or(false));
        let count = u64::try_from(problem.open.len() - without.open.len()).unwrap_or(u64::MAX);
        without.new_max = problem.new_max.map(|max| max.saturating_add(count));
        Self {
            problem: Cow::Owned(without),
            is_empty,
        }
    }

    fn count(&self) -> u64 {
        let empty = self.is_empty.iter().filter(|is_empty| **is_empty);
        u64::try_from(empty.count()).unwrap_or(u64::MAX)
    }

    /// The packing in terms of the original.
    fn back(&self, packing: Packing) -> Packing {
        let open = self.problem.open.len();
        let mut bins = packing.bins.into_iter();
        let mut partly: Vec<Vec<Part>> = bins.by_ref().take(open).collect();
        partly.reverse();
        let mut back: Vec<Vec<Part>> = self
            .is_empty
            .iter()
            .map(|is_empty| {
                if *is_empty {
                    bins.next().unwrap_or_default()
                } else {
                    partly.pop().expect("an open bin for each that is not empty")
                }
            })
            .collect();
        back.extend(bins);
        Packing {
            new_bins: packing.new_bins.saturating_sub(self.count()),
            bound: packing.bound.saturating_sub(self.count()),
            bins: back,
            ..packing
        }
    }
}

/// A number of new bins below which no packing of all items can go, without the work of packing them. That of
/// [`Packing::bound`] is at least as high.
///
/// # Errors
/// All faults of the problem.
pub fn lower_bound(problem: &Problem) -> Result<u64, Vec<Fault>> {
    let faults = faults(problem);
    if !faults.is_empty() {
        return Err(faults);
    }
    let empty = Empty::of(problem);
    let problem = &empty.problem;
    let bound = match problem.capacity.len() {
        1 | 2 => bound::combinatorial(&model::Model::<2>::new(problem)),
        3 | 4 => bound::combinatorial(&model::Model::<4>::new(problem)),
        5..=8 => bound::combinatorial(&model::Model::<8>::new(problem)),
        _ => bound::combinatorial(&model::Model::<32>::new(problem)),
    };
    Ok(bound.saturating_sub(empty.count()))
}

fn faults(problem: &Problem) -> Vec<Fault> {
    let dimensions = problem.capacity.len();
    let mut faults = Vec::new();
    if dimensions == 0 || dimensions > DIMENSIONS_MAX {
        faults.push(Fault::Dimensions { found: dimensions });
        return faults;
    }
    let mut total = 0_u64;
    for (item, entry) in problem.items.iter().enumerate() {
        total = total.saturating_add(entry.count);
        if entry.count == 0 {
            faults.push(Fault::NoCount { item });
        }
        if let Some(group) = entry.group.filter(|group| *group >= problem.group_max.len()) {
            faults.push(Fault::UnknownGroup { group });
        }
        if entry.amounts.len() != dimensions {
            faults.push(Fault::ItemLength {
                item,
                found: entry.amounts.len(),
            });
            continue;
        }
        if entry.amounts.iter().all(|amount| *amount == 0) {
            faults.push(Fault::NoAmount { item });
        }
        let amounts = entry.amounts.iter().zip(&problem.capacity).enumerate();
        faults.extend(amounts.filter(|(_, (amount, capacity))| amount > capacity).map(
            |(dimension, (&amount, &capacity))| Fault::TooLarge {
                item,
                dimension,
                amount,
                capacity,
            },
        ));
    }
    if total > ITEMS_MAX {
        faults.push(Fault::TooMany);
    }
    for (group, max) in problem.group_max.iter().enumerate() {
        if *max == 0 {
            faults.push(Fault::GroupMax { group });
        }
    }
    faults.extend(
        problem
            .open
            .iter()
            .enumerate()
            .flat_map(|(index, open)| open_faults(problem, index, open)),
    );
    faults
}

fn open_faults(problem: &Problem, index: usize, open: &Open) -> Vec<Fault> {
    if open.free.len() != problem.capacity.len() {
        return vec![Fault::OpenLength {
            open: index,
            found: open.free.len(),
        }];
    }
    let free = open.free.iter().zip(&problem.capacity).enumerate();
    let mut faults: Vec<Fault> = free
        .filter(|(_, (free, capacity))| free > capacity)
        .map(|(dimension, _)| Fault::OpenTooFree {
            open: index,
            dimension,
        })
        .collect();
    let unknown = open
        .groups
        .iter()
        .filter(|(group, _)| *group >= problem.group_max.len());
    faults.extend(unknown.map(|(group, _)| Fault::UnknownGroup { group: *group }));
    faults
}

fn packed<const D: usize>(problem: &Problem, budget: Budget) -> Packing {
    let model = model::Model::<D>::new(problem);
    let mut work = model::Work::new(budget.steps);
    let mut bound = bound::combinatorial(&model);
    let (mut best, mut method) = greedy::best(&model, bound, &mut work);
    if fill::improve(&model, &mut best, bound, 6, &mut work) {
        method = "fill";
    }
    if best.is_complete() && best.fewer_possible(bound) && work.left() {
        let improved = columns::improve(&model, &best, bound, &mut work);
        bound = bound.max(improved.bound);
        if let Some(layout) = improved.layout.filter(|layout| layout.better_than(&best)) {
            (best, method) = (layout, "columns");
        }
    }
    let mut packing = model.packing(&best);
    packing.bound = bound;
    packing.method = method;
    packing
}

#[cfg(test)]
mod tests;
