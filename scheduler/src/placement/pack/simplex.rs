//! The restricted master problem of column generation: how often each known pattern is used, at least as to cover the demand
//! of each row, with the fewest bins; and the prices that belong to it.
//!
//! A revised simplex with an explicit inverse in fixed point, so that it goes the same way on each machine. Its prices and
//! values are approximations: whoever needs a proof checks them in whole numbers. When rounding has gone too far it says so
//! ([`Master::broken`]) and stands still.

use super::model::Work;

/// Binary digits after the point.
pub(super) const FRACTION: u32 = 32;
pub(super) const ONE: i64 = 1 << FRACTION;

/// A reduced cost beyond this lets a column enter.
const TOLERANCE: i64 = ONE >> 14;
/// Smaller pivots spoil the inverse.
const PIVOT_MIN: i64 = ONE >> 9;
/// No entry of a healthy inverse comes near it.
const ENTRY_MAX: i64 = 1 << 52;

/// A pattern: rows and how many of each.
pub(super) type Column = Vec<(usize, i64)>;

/// Minimise the sum of x over all columns, such that in each row sum of count * x >= demand, x >= 0.
#[derive(Debug)]
pub(super) struct Master {
    rows: usize,
    columns: Vec<Column>,
    /// Per row what is basic in it: below `rows` the surplus of that row, else a column.
    basis: Vec<usize>,
    is_basic: Vec<bool>,
    /// Row by row.
    inverse: Vec<i64>,
    values: Vec<i64>,
    prices: Vec<i64>,
    broken: bool,
    scratch: Vec<usize>,
}

fn times(left: i64, right: i64) -> i64 {
    let product = (i128::from(left) * i128::from(right)) >> FRACTION;
    i64::try_from(product).unwrap_or(ENTRY_MAX)
}

fn over(left: i64, right: i64) -> i64 {
    let quotient = (i128::from(left) << FRACTION) / i128::from(right);
    i64::try_from(quotient).unwrap_or(ENTRY_MAX)
}

impl Master {
    /// Begins with one column per row: `copies` of it alone.
    pub(super) fn new(demand: &[i64], copies: &[i64]) -> Self {
        let rows = demand.len();
        let mut inverse = vec![0; rows * rows];
        for (row, count) in copies.iter().enumerate() {
            inverse[row * rows + row] = ONE / count;
        }
        // A little less than the demand, by another amount in each row, so that few vertices coincide.
        let values = demand
            .iter()
            .zip(copies)
            .enumerate()
            .map(|(row, (demand, copies))| {
                let shift = i64::try_from(row * 7_919 % 1_021).unwrap_or(0) + 1;
                (demand * ONE - (shift << (FRACTION - 14))) / copies
            });
        Self {
            rows,
            columns: copies
                .iter()
                .enumerate()
                .map(|(row, count)| vec![(row, *count)])
                .collect(),
            basis: (rows..2 * rows).collect(),
            is_basic: (0..2 * rows).map(|index| index >= rows).collect(),
            values: values.collect(),
            prices: copies.iter().map(|count| ONE / count).collect(),
            inverse,
            broken: false,
            scratch: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, column: Column) {
        self.columns.push(column);
        self.is_basic.push(false);
    }

    pub(super) fn column(&self, column: usize) -> &Column {
        &self.columns[column]
    }

    pub(super) fn broken(&self) -> bool {
        self.broken
    }

    pub(super) fn prices(&self) -> &[i64] {
        &self.prices
    }

    /// The columns in use and how often.
    pub(super) fn used(&self) -> impl Iterator<Item = (usize, i64)> {
        let basic = self.basis.iter().zip(&self.values);
        basic
            .filter(|(index, _)| **index >= self.rows)
            .map(|(index, value)| (index - self.rows, *value))
    }

    /// What the columns in use cost together.
    pub(super) fn cost(&self) -> i64 {
        self.used().map(|(_, value)| value).sum()
    }

    /// The primal simplex, until no known column improves.
    pub(super) fn solve(&mut self, work: &mut Work) {
        while !self.broken && work.left() {
            let Some(entering) = self.entering(work) else {
                break;
            };
            let direction = self.direction(entering);
            let Some(row) = self.leaving(&direction) else {
                self.broken = true;
                break;
            };
            self.pivot(entering, row, &direction, work);
        }
    }

    /// The demand of a row falls; [`Self::restore`] makes the values valid again.
    pub(super) fn reduce(&mut self, row: usize, count: i64) {
        for at in 0..self.rows {
            self.values[at] -= self.inverse[at * self.rows + row] * count;
        }
    }

    /// The dual simplex, until no value is negative.
    pub(super) fn restore(&mut self, work: &mut Work) {
        while !self.broken && work.left() {
            let lowest = (0..self.rows).min_by_key(|row| self.values[*row]);
            let Some(row) = lowest.filter(|row| self.values[*row] < -TOLERANCE) else {
                break;
            };
            let Some(entering) = self.dual_entering(row, work) else {
                self.broken = true;
                break;
            };
            let direction = self.direction(entering);
            if direction[row] > -PIVOT_MIN {
                self.broken = true;
                break;
            }
            self.pivot(entering, row, &direction, work);
        }
    }

    fn reduced_cost(&self, index: usize) -> i64 {
        if index < self.rows {
            return self.prices[index];
        }
        let terms = self.columns[index - self.rows].iter();
        ONE - terms.map(|(row, count)| self.prices[*row] * count).sum::<i64>()
    }

    fn entering(&self, work: &mut Work) -> Option<usize> {
        let indices = 0..self.is_basic.len();
        work.spend(self.is_basic.len() * 4);
        let costs = indices
            .filter(|index| !self.is_basic[*index])
            .map(|index| (self.reduced_cost(index), index));
        let best = costs.min();
        best.filter(|(cost, _)| *cost < -TOLERANCE)
            .map(|(_, index)| index)
    }

    fn direction(&self, entering: usize) -> Vec<i64> {
        if entering < self.rows {
            return (0..self.rows)
                .map(|row| -self.inverse[row * self.rows + entering])
                .collect();
        }
        let column = &self.columns[entering - self.rows];
        let dot = |row: usize| {
            let line = &self.inverse[row * self.rows..(row + 1) * self.rows];
            column.iter().map(|(at, count)| line[*at] * count).sum()
        };
        (0..self.rows).map(dot).collect()
    }

    /// The smallest ratio of value to direction; of close ones the largest pivot.
    fn leaving(&self, direction: &[i64]) -> Option<usize> {
        let rows = (0..self.rows).filter(|row| direction[*row] > PIVOT_MIN);
        let ratio = |row: usize| over(self.values[row].max(0), direction[row]);
        let least = rows.clone().map(ratio).min()?;
        rows.filter(|row| ratio(*row) <= least + TOLERANCE / 64)
            .max_by_key(|row| direction[*row])
    }

    fn dual_entering(&self, row: usize, work: &mut Work) -> Option<usize> {
        let line = &self.inverse[row * self.rows..(row + 1) * self.rows];
        work.spend(self.is_basic.len() * 8);
        let candidates = (0..self.is_basic.len())
            .filter(|index| !self.is_basic[*index])
            .filter_map(|index| {
                let along: i64 = if index < self.rows {
                    -line[index]
                } else {
                    let terms = self.columns[index - self.rows].iter();
                    terms.map(|(at, count)| line[*at] * count).sum()
                };
                (along < -PIVOT_MIN).then(|| (over(self.reduced_cost(index).max(0), -along), along, index))
            });
        candidates.min().map(|(_, _, index)| index)
    }

    fn pivot(&mut self, entering: usize, row: usize, direction: &[i64], work: &mut Work) {
        let rows = self.rows;
        let cost = self.reduced_cost(entering);
        let pivot = direction[row];
        let mut touched = std::mem::take(&mut self.scratch);
        touched.clear();
        let mut line: Vec<i64> = self.inverse[row * rows..(row + 1) * rows].to_vec();
        for (at, entry) in line.iter_mut().enumerate().filter(|(_, entry)| **entry != 0) {
            *entry = over(*entry, pivot);
            touched.push(at);
            self.broken |= entry.abs() > ENTRY_MAX;
        }
        let step = over(self.values[row], pivot);
        for other in (0..rows).filter(|other| *other != row && direction[*other] != 0) {
            let factor = direction[other];
            let target = &mut self.inverse[other * rows..(other + 1) * rows];
            for at in &touched {
                target[*at] -= times(factor, line[*at]);
            }
            self.values[other] -= times(factor, step);
            work.spend(touched.len() + 1);
        }
        for at in &touched {
            self.prices[*at] += times(cost, line[*at]);
        }
        self.inverse[row * rows..(row + 1) * rows].copy_from_slice(&line);
        self.values[row] = step;
        self.is_basic[self.basis[row]] = false;
        self.is_basic[entering] = true;
        self.basis[row] = entering;
        self.scratch = touched;
    }
}
