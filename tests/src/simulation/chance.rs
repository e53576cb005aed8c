//! Everything random of a run, from its seed alone.

use std::ops::RangeInclusive;

/// SplitMix64: short, and every seed is a good one.
#[derive(Debug, Clone)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed ^ 0x5DEE_CE66_D1CE_5EED)
    }

    /// A stream of its own for one part of a run: what the others draw does not change it.
    pub(super) fn of(seed: u64, part: u64) -> Self {
        let mut mixed = Self::new(seed ^ part.wrapping_mul(0xA24B_AED4_963E_E407));
        Self(mixed.next())
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Any of the range, ends included.
    pub(super) fn range(&mut self, range: RangeInclusive<u64>) -> u64 {
        let width = range.end() - range.start() + 1;
        range.start() + self.next() % width
    }

    pub(super) fn small(&mut self, range: RangeInclusive<u32>) -> u32 {
        let wide = self.range(u64::from(*range.start())..=u64::from(*range.end()));
        u32::try_from(wide).expect("between two numbers of 32 bits")
    }

    pub(super) fn index(&mut self, len: usize) -> usize {
        assert!(len > 0, "one of none");
        let len = u64::try_from(len).expect("a length has 64 bits");
        usize::try_from(self.range(0..=len - 1)).expect("below a length")
    }

    pub(super) fn percent(&mut self, percent: u32) -> bool {
        self.small(0..=99) < percent
    }

    pub(super) fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() {
            return None;
        }
        Some(&items[self.index(items.len())])
    }
}
