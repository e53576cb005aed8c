//! Local search by annealing over any problem of items that lie in places.
//!
//! Input: a [`Landscape`], which knows what a step would change and what is not allowed; a [`Schedule`]. Output: the best
//! sound state that was met, in the landscape itself. Bounded by steps, never by a clock; the same seed gives the same answer.
//! Integers only: whether a step that makes things worse is taken is decided by a table of logarithms in fixed point.
//!
//! Three steps are tried: **shift** (an item goes elsewhere), **swap** (two items change places) and **chain** (the third
//! makes room for the second, the second for the first; each of them allowed by itself, in that order).

use std::ops::ControlFlow;

/// A problem of items in places, with an objective to be made small.
///
/// Items and places count from zero. `shift` and `swap` only look; `commit` does, and is asked only for what was allowed.
pub trait Landscape {
    fn items(&self) -> usize;
    fn places(&self) -> usize;
    /// Where the item is.
    fn place(&self, item: usize) -> usize;
    /// By how much the objective would grow if the item went there; none if it must not, or is there.
    fn shift(&self, item: usize, to: usize) -> Option<i64>;
    /// The same for two items that change places; none also if they are in the same place.
    fn swap(&self, one: usize, other: usize) -> Option<i64>;
    fn commit(&mut self, item: usize, to: usize);
    /// Whether the state is one to end in. A landscape may allow states that break a rule if it makes them dear.
    fn is_sound(&self) -> bool {
        true
    }
    /// Asked now and then: the landscape may change what broken rules cost. By how much the objective grew by that.
    fn reprice(&mut self) -> i64 {
        0
    }
    /// A place worth a try for this item; `random` is a number to draw from.
    fn suggest(&self, _item: usize, random: u64) -> usize {
        draw(random, self.places())
    }
}

/// How long to search and how far to accept what is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Steps to try in all.
    pub steps: u64,
    /// In units of the objective, at the start: steps that are worse by about this are taken one time in three.
    pub hot: u64,
    /// The same at the end; nought accepts only what is no worse.
    pub cold: u64,
    /// How often to begin again at `hot`, from the best state so far and at half the heat of the time before.
    pub rounds: u32,
    /// Of 256 steps this many are swaps.
    pub swaps: u8,
    /// Of 256 steps this many are chains; the rest are shifts.
    pub chains: u8,
    pub seed: u64,
}

/// What a search did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Searched {
    /// By how much the objective is smaller than at the start.
    pub gain: i64,
    pub steps: u64,
    pub accepted: u64,
}

/// Steps between two calls of the observer and two settings of the temperature.
const STRIDE: u64 = 1 << 12;
/// Above this a product with a logarithm might not fit.
const HEAT_MAX: u64 = 1 << 40;

/// A sequence of numbers that look random, from a seed (Sebastiano Vigna's splitmix64).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Below `bound`, which is not nought.
    pub fn below(&mut self, bound: usize) -> usize {
        draw(self.roll(), bound)
    }
}

/// Scales the upper half of a random word to `0..bound`.
#[must_use]
pub fn draw(random: u64, bound: usize) -> usize {
    (((random >> 32) * (bound as u64)) >> 32) as usize
}

/// `-ln(u)` for 1024 evenly spread `u` of (0, 1), times 2^16.
struct Logarithms([u64; 1024]);

impl Logarithms {
    fn new() -> Self {
        let mut table = [0; 1024];
        for (odd, entry) in (1_u64..).step_by(2).zip(table.iter_mut()) {
            // u = odd / 2048, so -ln(u) = ln(2) * (11 - log2(odd)); 45426 = ln(2) * 2^16.
            *entry = (((11 << 16) - binary_logarithm(odd)) * 45_426) >> 16;
        }
        Self(table)
    }
}

/// `log2(value)` times 2^16, for `1 <= value < 2^16`; by squaring, one binary digit a time.
fn binary_logarithm(value: u64) -> u64 {
    let whole = u64::from(value.ilog2());
    let mut logarithm = whole << 16;
    let mut mantissa = value << (31 - whole);
    for digit in (0..16).rev() {
        mantissa = (mantissa * mantissa) >> 31;
        if mantissa >= 1 << 32 {
            mantissa >>= 1;
            logarithm += 1 << digit;
        }
    }
    logarithm
}

struct Walk<'a, L> {
    land: &'a mut L,
    dice: Dice,
    table: Logarithms,
    /// The objective now and at its best, less what it was at the start.
    now: i64,
    best: i64,
    best_place: Vec<usize>,
    /// Items that moved since the best state, each once.
    touched: Vec<usize>,
    is_touched: Vec<bool>,
    accepted: u64,
}

/// Searches, and leaves the landscape in the best state met. `observe` hears the steps done and the gain so far every few
/// thousand steps and may end the search.
pub fn anneal<L: Landscape>(
    land: &mut L,
    schedule: &Schedule,
    mut observe: impl FnMut(u64, i64) -> ControlFlow<()>,
) -> Searched {
    let items = land.items();
    if items == 0 || land.places() < 2 {
        return Searched::default();
    }
    let best_place = (0..items).map(|item| land.place(item)).collect();
    let mut walk = Walk {
        land,
        dice: Dice::new(schedule.seed),
        table: Logarithms::new(),
        now: 0,
        best: 0,
        best_place,
        touched: Vec::with_capacity(items),
        is_touched: vec![false; items],
        accepted: 0,
    };
    let rounds = u64::from(schedule.rounds.max(1));
    let mut steps = 0;
    'rounds: for round in 0..rounds {
        let until = schedule.steps * (round + 1) / rounds;
        let length = until - steps;
        let begin = steps;
        let mut cooling = Cooling::new(schedule.hot >> round, schedule.cold, length);
        while steps < until {
            let stride = STRIDE.min(until - steps);
            let heat = cooling.at(steps - begin);
            for _ in 0..stride {
                walk.step(schedule, heat);
            }
            steps += stride;
            walk.now += walk.land.reprice();
            if observe(steps, -walk.best).is_break() {
                break 'rounds;
            }
        }
        walk.return_to_best();
    }
    walk.return_to_best();
    Searched {
        gain: -walk.best,
        steps,
        accepted: walk.accepted,
    }
}

/// A temperature that falls geometrically: from `hot` by equal factors to `cold`.
struct Cooling {
    heat: u64,
    /// Of 2^32, per stride.
    factor: u64,
    done: u64,
}

impl Cooling {
    fn new(hot: u64, cold: u64, steps: u64) -> Self {
        let hot = hot.min(HEAT_MAX);
        let strides = (steps / STRIDE).max(1);
        Self {
            heat: hot << 16,
            factor: root(hot, cold.max(1), strides),
            done: 0,
        }
    }

    /// Invariant: asked with steps that do not fall.
    fn at(&mut self, steps: u64) -> u64 {
        while self.done < steps / STRIDE {
            self.heat = scale(self.heat, self.factor);
            self.done += 1;
        }
        self.heat >> 16
    }
}

/// `value * factor / 2^32`.
fn scale(value: u64, factor: u64) -> u64 {
    u64::try_from((u128::from(value) * u128::from(factor)) >> 32).expect("the factor is at most 2^32")
}

/// The factor, of 2^32, that takes `hot` to `cold` in so many steps; by halving the interval.
fn root(hot: u64, cold: u64, steps: u64) -> u64 {
    let (mut low, mut high) = (0_u64, 1_u64 << 32);
    while low + 1 < high {
        let middle = low.midpoint(high);
        if scale(hot << 16, power(middle, steps)) >= cold << 16 {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

fn power(base: u64, mut exponent: u64) -> u64 {
    let (mut base, mut result) = (base, 1_u64 << 32);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = scale(result, base);
        }
        base = scale(base, base);
        exponent >>= 1;
    }
    result
}

impl<L: Landscape> Walk<'_, L> {
    #[inline]
    fn step(&mut self, schedule: &Schedule, heat: u64) {
        let random = self.dice.roll();
        let kind = (random & 0xff) as u8;
        let draw_table = ((random >> 8) & 0x3ff) as usize;
        let bar = ((heat * self.table.0[draw_table]) >> 16).cast_signed();
        let item = draw(random, self.land.items());
        if kind < schedule.swaps {
            let other = self.dice.below(self.land.items());
            if let Some(delta) = self.land.swap(item, other)
                && delta <= bar
            {
                let (from, to) = (self.land.place(item), self.land.place(other));
                self.go(item, to);
                self.go(other, from);
                self.settle(delta);
            }
        } else if kind < schedule.swaps.saturating_add(schedule.chains) {
            self.chain(item, bar);
        } else {
            let to = self.land.suggest(item, self.dice.roll());
            if let Some(delta) = self.land.shift(item, to)
                && delta <= bar
            {
                self.go(item, to);
                self.settle(delta);
            }
        }
    }

    /// `first` goes anywhere, `second` to where that was, `third` to where the second was.
    fn chain(&mut self, first: usize, bar: i64) {
        let mut hole = self.land.suggest(first, self.dice.roll());
        let mut done = [(0, 0); 3];
        let mut length = 0;
        let mut sum = 0;
        let mut item = first;
        while length < 3 {
            let Some(delta) = self.land.shift(item, hole) else {
                break;
            };
            let from = self.land.place(item);
            self.land.commit(item, hole);
            done[length] = (item, from);
            length += 1;
            sum += delta;
            if sum <= bar && length > 1 {
                break;
            }
            hole = from;
            item = self.dice.below(self.land.items());
        }
        if length > 0 && sum <= bar {
            for (item, _) in &done[..length] {
                self.touch(*item);
            }
            self.settle(sum);
        } else {
            for (item, from) in done[..length].iter().rev() {
                self.land.commit(*item, *from);
            }
        }
    }

    fn go(&mut self, item: usize, to: usize) {
        self.land.commit(item, to);
        self.touch(item);
    }

    fn touch(&mut self, item: usize) {
        if !self.is_touched[item] {
            self.is_touched[item] = true;
            self.touched.push(item);
        }
    }

    fn settle(&mut self, delta: i64) {
        self.accepted += 1;
        self.now += delta;
        if self.now < self.best && self.land.is_sound() {
            self.best = self.now;
            for item in self.touched.drain(..) {
                self.is_touched[item] = false;
                self.best_place[item] = self.land.place(item);
            }
        }
    }

    fn return_to_best(&mut self) {
        for item in self.touched.drain(..) {
            self.is_touched[item] = false;
            let home = self.best_place[item];
            if self.land.place(item) != home {
                self.land.commit(item, home);
            }
        }
        self.now = self.best;
    }
}
