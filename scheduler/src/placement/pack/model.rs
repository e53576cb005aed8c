//! The problem in the form that packing works on: kinds in a fixed order, shares of the capacity, layouts of bins.

use std::collections::BTreeMap;

use super::{Packing, Part, Problem};

/// A share of the capacity is in units of 2^-20.
pub(super) const SHARE_BITS: u32 = 20;
pub(super) const NO_GROUP: usize = usize::MAX;

/// Steps that are left.
#[derive(Debug)]
pub(super) struct Work {
    left: u64,
}

impl Work {
    pub(super) fn new(steps: u64) -> Self {
        Self { left: steps }
    }

    pub(super) fn left(&self) -> bool {
        self.left > 0
    }

    pub(super) fn spend(&mut self, steps: usize) {
        self.left = self.left.saturating_sub(u64::try_from(steps).unwrap_or(u64::MAX));
    }

    /// A part of what is left, for one of several methods; what it leaves is given back by [`Work::join`].
    pub(super) fn part(&mut self, of: u64) -> Self {
        let part = self.left / of;
        self.left -= part;
        Self { left: part }
    }

    pub(super) fn join(&mut self, part: Self) {
        self.left += part.left;
    }
}

/// Equal items.
#[derive(Debug, Clone)]
pub(super) struct Kind<const D: usize> {
    pub(super) size: [u64; D],
    /// Of the capacity, rounded down.
    pub(super) share: [u64; D],
    pub(super) group: usize,
    pub(super) count: u64,
}

#[derive(Debug, Clone)]
pub(super) struct OpenBin<const D: usize> {
    pub(super) free: [u64; D],
    pub(super) groups: Vec<(usize, u64)>,
}

/// A validated problem. Kinds are sorted by the sum of their shares, largest first, then by content.
#[derive(Debug)]
pub(super) struct Model<const D: usize> {
    pub(super) capacity: [u64; D],
    pub(super) kinds: Vec<Kind<D>>,
    pub(super) group_max: Vec<u64>,
    pub(super) open: Vec<OpenBin<D>>,
    pub(super) new_max: usize,
    members: Vec<Vec<Part>>,
}

fn padded<const D: usize>(amounts: &[u64]) -> [u64; D] {
    std::array::from_fn(|dimension| amounts.get(dimension).copied().unwrap_or(0))
}

/// Rounded down; 0 of a capacity of 0.
pub(super) fn share(amount: u64, capacity: u64) -> u64 {
    if capacity == 0 {
        return 0;
    }
    let share = (u128::from(amount) << SHARE_BITS) / u128::from(capacity);
    u64::try_from(share).expect("an amount is at most the capacity")
}

pub(super) fn fits<const D: usize>(size: &[u64; D], free: &[u64; D]) -> bool {
    size.iter().zip(free).all(|(size, free)| size <= free)
}

pub(super) fn less<const D: usize>(free: &[u64; D], size: &[u64; D], count: u64) -> [u64; D] {
    std::array::from_fn(|dimension| free[dimension] - size[dimension] * count)
}

pub(super) fn more<const D: usize>(free: &[u64; D], size: &[u64; D], count: u64) -> [u64; D] {
    std::array::from_fn(|dimension| free[dimension] + size[dimension] * count)
}

/// How many of `size` fit into `free`, at most `most`.
pub(super) fn copies<const D: usize>(size: &[u64; D], free: &[u64; D], most: u64) -> u64 {
    let room = size.iter().zip(free).filter(|(size, _)| **size > 0);
    room.map(|(size, free)| free / size).fold(most, u64::min)
}

impl<const D: usize> Model<D> {
    /// The problem has no faults.
    pub(super) fn new(problem: &Problem) -> Self {
        let capacity: [u64; D] = padded(&problem.capacity);
        let mut members: BTreeMap<([u64; D], usize), Vec<Part>> = BTreeMap::new();
        for (item, entry) in problem.items.iter().enumerate() {
            let key = (padded(&entry.amounts), entry.group.unwrap_or(NO_GROUP));
            let part = Part {
                item,
                count: entry.count,
            };
            members.entry(key).or_default().push(part);
        }
        let mut sorted: Vec<(Kind<D>, Vec<Part>)> = members
            .into_iter()
            .map(|((size, group), parts)| {
                let kind = Kind {
                    size,
                    share: std::array::from_fn(|dimension| share(size[dimension], capacity[dimension])),
                    group,
                    count: parts.iter().map(|part| part.count).sum(),
                };
                (kind, parts)
            })
            .collect();
        sorted.sort_by_key(|(kind, _)| std::cmp::Reverse(kind.share.iter().sum::<u64>()));
        let (kinds, members) = sorted.into_iter().unzip();
        let open = problem.open.iter().map(|open| OpenBin {
            free: padded(&open.free),
            groups: open.groups.clone(),
        });
        Self {
            capacity,
            kinds,
            group_max: problem.group_max.clone(),
            open: open.collect(),
            new_max: problem
                .new_max
                .and_then(|max| usize::try_from(max).ok())
                .unwrap_or(usize::MAX),
            members,
        }
    }

    /// What one bin may hold of a group.
    pub(super) fn limit(&self, group: usize) -> u64 {
        self.group_max.get(group).copied().unwrap_or(u64::MAX)
    }

    /// What an open bin holds of a group already.
    pub(super) fn held(&self, bin: &Bin<D>, group: usize) -> u64 {
        let open = bin.open.map_or(&[][..], |open| &self.open[open].groups);
        let held = open.iter().filter(|(held, _)| *held == group);
        held.fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// How many more of a kind the bin takes.
    pub(super) fn room(&self, bin: &Bin<D>, kind: usize, most: u64) -> u64 {
        let Kind { size, group, .. } = &self.kinds[kind];
        let copies = copies(size, &bin.free, most);
        if *group == NO_GROUP || copies == 0 {
            return copies;
        }
        let same = bin
            .parts
            .iter()
            .filter(|(part, _)| self.kinds[*part].group == *group);
        let used = self
            .held(bin, *group)
            .saturating_add(same.map(|(_, count)| count).sum::<u64>());
        copies.min(self.limit(*group).saturating_sub(used))
    }

    /// A layout in terms of the problem's items: those of a kind go to bins in the order in which they are listed.
    pub(super) fn packing(&self, layout: &Layout<D>) -> Packing {
        let mut members: Vec<_> = self
            .members
            .iter()
            .map(|parts| parts.clone().into_iter())
            .collect();
        let mut rest: Vec<Option<Part>> = members.iter_mut().map(Iterator::next).collect();
        let mut take = |kind: usize, mut count: u64, parts: &mut Vec<Part>| {
            while count > 0 {
                let part = rest[kind].as_mut().expect("a layout holds no more than there is");
                let taken = part.count.min(count);
                parts.push(Part {
                    item: part.item,
                    count: taken,
                });
                part.count -= taken;
                count -= taken;
                if part.count == 0 {
                    rest[kind] = members[kind].next();
                }
            }
        };
        let mut bins = Vec::with_capacity(layout.bins.len());
        for bin in layout
            .bins
            .iter()
            .filter(|bin| bin.open.is_some() || !bin.parts.is_empty())
        {
            let mut parts = Vec::new();
            for (kind, count) in &bin.parts {
                take(*kind, *count, &mut parts);
            }
            parts.sort_unstable();
            bins.push(parts);
        }
        let mut left = Vec::new();
        for (kind, count) in layout.left.iter().enumerate() {
            take(kind, *count, &mut left);
        }
        left.sort_unstable();
        Packing {
            new_bins: u64::try_from(bins.len() - self.open.len()).expect("a count of bins fits"),
            bins,
            bound: 0,
            left,
            method: "none",
        }
    }
}

/// A bin and what was put into it.
#[derive(Debug, Clone)]
pub(super) struct Bin<const D: usize> {
    pub(super) free: [u64; D],
    /// Kind and count, each kind once.
    pub(super) parts: Vec<(usize, u64)>,
    /// Index of the open bin that it is.
    pub(super) open: Option<usize>,
}

impl<const D: usize> Bin<D> {
    pub(super) fn new(capacity: [u64; D]) -> Self {
        Self {
            free: capacity,
            parts: Vec::new(),
            open: None,
        }
    }

    pub(super) fn put(&mut self, model: &Model<D>, kind: usize, count: u64) {
        self.free = less(&self.free, &model.kinds[kind].size, count);
        match self.parts.iter_mut().find(|(part, _)| *part == kind) {
            Some((_, held)) => *held += count,
            None => self.parts.push((kind, count)),
        }
    }

    pub(super) fn remove(&mut self, model: &Model<D>, kind: usize, count: u64) {
        let at = self.parts.iter().position(|(part, _)| *part == kind);
        let at = at.expect("only what a bin holds is removed");
        self.free = more(&self.free, &model.kinds[kind].size, count);
        self.parts[at].1 -= count;
        if self.parts[at].1 == 0 {
            self.parts.swap_remove(at);
        }
    }
}

/// A packing of kinds. The open bins come first.
#[derive(Debug, Clone)]
pub(super) struct Layout<const D: usize> {
    pub(super) bins: Vec<Bin<D>>,
    /// How many of each kind are in no bin.
    pub(super) left: Vec<u64>,
    open: usize,
}

impl<const D: usize> Layout<D> {
    /// Nothing packed; the open bins are there.
    pub(super) fn empty(model: &Model<D>) -> Self {
        let open = model.open.iter().enumerate().map(|(index, open)| Bin {
            free: open.free,
            parts: Vec::new(),
            open: Some(index),
        });
        Self {
            bins: open.collect(),
            left: model.kinds.iter().map(|kind| kind.count).collect(),
            open: model.open.len(),
        }
    }

    pub(super) fn new_bins(&self) -> usize {
        self.bins.len() - self.open
    }

    /// Whether everything found a place.
    pub(super) fn is_complete(&self) -> bool {
        self.left.iter().all(|left| *left == 0)
    }

    fn left_items(&self) -> u64 {
        self.left.iter().sum()
    }

    /// Whether a packing of fewer bins, or of more items, is not ruled out.
    pub(super) fn fewer_possible(&self, bound: u64) -> bool {
        self.left_items() > 0 || u64::try_from(self.new_bins()).unwrap_or(u64::MAX) > bound
    }

    pub(super) fn better_than(&self, other: &Self) -> bool {
        (self.left_items(), self.new_bins()) < (other.left_items(), other.new_bins())
    }
}
