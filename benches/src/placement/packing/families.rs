//! The generated instances: Caprara and Toth's classes in two dimensions, and families in two to eight.
//!
//! Everything comes from one published seed and the numbers in [`Case`], so that an instance can be made again anywhere.

use berth_scheduler::placement::pack::{Item, Problem};

/// Of all instances.
pub(crate) const SEED: u64 = 20_261_122;

/// `SplitMix64` (Steele, Lea, Flood, 2014): eight lines that give the same numbers in any language.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// From `low` to `high`, both included.
    pub(crate) fn range(&mut self, low: u64, high: u64) -> u64 {
        let span = u128::from(high - low + 1);
        let offset = (u128::from(self.next()) * span) >> 64;
        low + u64::try_from(offset).expect("an offset is below the span")
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let last = u64::try_from(from.len() - 1).expect("a list has a length");
        from[usize::try_from(self.range(0, last)).expect("an index fits")]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    /// Caprara and Toth's classes 1 to 10, or what comes close to the last two; two dimensions.
    Class(u8),
    /// Each amount evenly from nothing to all of a bin.
    Whole,
    /// The same to a half.
    Half,
    /// Amounts of one item within a fifth of each other.
    Correlated,
    /// What is much in the even dimensions is little in the odd ones.
    Opposed,
    /// Three of ten large, the rest small.
    Mixed,
    /// Equally many just above a half, just above a quarter, and small.
    Thirds,
    /// Virtual machines: vCPU in powers of two, 2 to 8 GiB for each, other dimensions in three steps.
    Cloud,
}

impl Family {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Class(class) => format!("class {class}"),
            Self::Whole => "uniform to 1".into(),
            Self::Half => "uniform to 1/2".into(),
            Self::Correlated => "correlated".into(),
            Self::Opposed => "opposed".into(),
            Self::Mixed => "large and small".into(),
            Self::Thirds => "big medium small".into(),
            Self::Cloud => "cloud flavours".into(),
        }
    }

    fn number(self) -> u64 {
        match self {
            Self::Class(class) => u64::from(class),
            Self::Whole => 11,
            Self::Half => 12,
            Self::Correlated => 13,
            Self::Opposed => 14,
            Self::Mixed => 15,
            Self::Thirds => 16,
            Self::Cloud => 17,
        }
    }
}

/// One instance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) family: Family,
    pub(crate) dimensions: usize,
    pub(crate) items: usize,
}

const FAMILIES: [Family; 7] = [
    Family::Whole,
    Family::Half,
    Family::Correlated,
    Family::Opposed,
    Family::Mixed,
    Family::Thirds,
    Family::Cloud,
];

/// All instances: every family with 25, 100 and 500 items, with more in fewer dimensions.
pub(crate) fn cases(is_quick: bool) -> Vec<Case> {
    let sizes: &[usize] = if is_quick {
        &[25, 100]
    } else {
        &[25, 100, 500, 1_000, 10_000]
    };
    let mut cases = Vec::new();
    for &items in sizes {
        for class in 1..=10 {
            cases.push(Case {
                family: Family::Class(class),
                dimensions: 2,
                items,
            });
        }
        let dimensions: &[usize] = if items <= 500 && !is_quick {
            &[2, 3, 4, 5, 6, 7, 8]
        } else {
            &[2, 5, 8]
        };
        for family in FAMILIES {
            cases.extend(dimensions.iter().map(|&dimensions| Case {
                family,
                dimensions,
                items,
            }));
        }
    }
    cases
}

impl Case {
    pub(crate) fn problem(self) -> Problem {
        let count = u64::try_from(self.items).expect("a count fits");
        let width = u64::try_from(self.dimensions).expect("a count fits");
        let mut random = Random::new(SEED ^ (self.family.number() << 40) ^ (width << 32) ^ count);
        let mut capacity = vec![1_000; self.dimensions];
        let items: Vec<Vec<u64>> = match self.family {
            Family::Class(class @ 6..=8) => {
                capacity = vec![150; 2];
                (0..count).map(|_| small_class(class, &mut random)).collect()
            }
            Family::Class(10) => triplets(self.items, &mut random),
            Family::Cloud => {
                capacity = [64, 256, 1_000, 100, 64, 128, 500, 1_000][..self.dimensions].to_vec();
                (0..count)
                    .map(|_| flavour(self.dimensions, &mut random))
                    .collect()
            }
            family => (0..count)
                .map(|_| item(family, self.dimensions, &mut random))
                .collect(),
        };
        if self.family == Family::Class(9) {
            capacity = tight(&items, count / 5);
        }
        let items = items.into_iter().map(|amounts| Item {
            amounts,
            count: 1,
            group: None,
        });
        Problem {
            capacity,
            items: items.collect(),
            ..Problem::default()
        }
    }
}

fn even(dimensions: usize, low: u64, high: u64, random: &mut Random) -> Vec<u64> {
    (0..dimensions).map(|_| random.range(low, high)).collect()
}

/// Of a bin of 1000 in each dimension.
fn item(family: Family, dimensions: usize, random: &mut Random) -> Vec<u64> {
    match family {
        Family::Class(1 | 9 | 10) => even(2, 100, 400, random),
        Family::Class(2) => even(2, 1, 1_000, random),
        Family::Class(3) => even(2, 200, 800, random),
        Family::Class(4) => even(2, 50, 200, random),
        Family::Class(_) => even(2, 25, 100, random),
        Family::Whole => even(dimensions, 1, 1_000, random),
        Family::Half => even(dimensions, 1, 500, random),
        Family::Correlated => {
            let size = random.range(50, 500);
            even(dimensions, size * 8 / 10, size * 12 / 10, random)
        }
        Family::Opposed => {
            let size = random.range(50, 450);
            let sizes = (0..dimensions).map(|at| if at % 2 == 0 { size } else { 500 - size });
            sizes
                .map(|size| random.range(size * 9 / 10, size * 11 / 10))
                .collect()
        }
        Family::Mixed if random.range(1, 10) <= 3 => even(dimensions, 300, 700, random),
        Family::Mixed => even(dimensions, 10, 150, random),
        Family::Thirds => {
            let (low, high) = random.pick(&[(501, 700), (251, 400), (20, 150)]);
            even(dimensions, low, high, random)
        }
        Family::Cloud => flavour(dimensions, random),
    }
}

/// Classes 6 to 8, of a bin of 150: independent, alike, opposed.
fn small_class(class: u8, random: &mut Random) -> Vec<u64> {
    let first = random.range(20, 100);
    let second = match class {
        6 => random.range(20, 100),
        7 => random.range(first - 10, first + 10),
        _ => random.range(110 - first, 130 - first),
    };
    vec![first, second]
}

/// Threes that fill a bin exactly, so that the fewest bins are a third of the items.
fn triplets(count: usize, random: &mut Random) -> Vec<Vec<u64>> {
    let mut items = Vec::new();
    while items.len() < count {
        let (one, other) = (even(2, 250, 450, random), even(2, 250, 450, random));
        let rest = one
            .iter()
            .zip(&other)
            .map(|(one, other)| 1_000 - one - other)
            .collect();
        items.extend([one, other, rest]);
    }
    items.truncate(count);
    items
}

/// A capacity that makes the volume come to so many bins, nearly without rest.
fn tight(items: &[Vec<u64>], bins: u64) -> Vec<u64> {
    let total = |at: usize| items.iter().map(|item| item[at]).sum::<u64>();
    vec![total(0).max(total(1)).div_ceil(bins.max(1)); 2]
}

fn flavour(dimensions: usize, random: &mut Random) -> Vec<u64> {
    let cpu = random.pick(&[1, 1, 2, 2, 4, 4, 8, 16]);
    let memory = cpu * random.pick(&[2, 4, 4, 8]);
    let steps = [
        [10, 50, 100],
        [1, 2, 5],
        [1, 2, 4],
        [1, 4, 8],
        [5, 10, 40],
        [10, 20, 50],
    ];
    let others = steps.iter().take(dimensions - 2).map(|steps| random.pick(steps));
    [cpu, memory].into_iter().chain(others).collect()
}
