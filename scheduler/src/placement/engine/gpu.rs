//! Which devices a request gets, and how good a machine with devices is for it.
//!
//! Input: the mix of shapes that is likely to arrive, one machine, one request. Output: a key and the devices. Pure, in
//! integers, without allocation in [`Mix::score`]. docs/decisions/0008-gpu-score.md has what was tried and measured.
//!
//! **Worth of a machine.** The most GPU that the mix could still put on it, under the better of several prices of a vCPU:
//!
//! ```text
//! worth(machine) = min over prices p of  p * free vCPU + sum over devices of worth_p(free thousandths of the device)
//! worth_p(r)     = max of  sum (value - p * vCPU)  over sets of shares of the mix that fit into r thousandths
//! ```
//!
//! This is the Lagrangian bound of the packing problem of that machine with the limit on its processors relaxed. The tables
//! `worth_p` are made once from the mix, so the worth of a machine is eight additions of eight lanes.
//!
//! **Cost of a request on a machine**: what the worth of the machine falls by, and four small terms which say what the bound
//! does not: a machine that nobody uses yet stays so if it can, processors and devices are used up in step, a share goes
//! to the device where least is left, and little differences are no differences. Among equal keys the engine takes the
//! first machine, which keeps the rest of the fleet whole; without that step the same score packs worse than none.

use std::sync::OnceLock;

use super::cell::CellFacts;
use super::demand::{DEVICE_MILLI, DEVICES_MAX, Demand, GpuNeed, Row};

/// A shape that is typical of what arrives, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Typical {
    /// Millionths of a vCPU.
    pub cpu: u64,
    pub memory: u64,
    pub gpu: GpuNeed,
    /// A bit for each GPU model that will do; zero for any.
    pub models: u64,
    pub weight: u64,
}

impl Typical {
    /// Thousandths of a device in all.
    pub(super) fn gpu_milli(&self) -> u64 {
        gpu_milli(self.gpu)
    }
}

/// How much each term counts. Costs are in eighths of a thousandth of a device, the unit of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// Costs that differ by less than this are equal.
    pub step: u32,
    /// For the first request on a machine.
    pub fresh: u32,
    /// For each thousandth of a device that is left without its processors or the other way round, in sixteenths.
    pub balance: u32,
    /// For each thousandth that is left on the device that gives a share, in sixteenths.
    pub left: u32,
    /// By how many thousandths the smallest share is worth less than its size; a share of half a device by half of that.
    /// Small shares are few, so a gap that only they fill is worth less than it is wide.
    pub small: u32,
    /// The most that the reserve for requests which need this model can cost others; see [`super::reserve`].
    pub reserve: u32,
    /// Whether processors have a price at all.
    pub prices: Prices,
}

/// Whether the worth of a machine knows that devices are worth nothing without processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prices {
    Priced,
    Free,
}

impl Default for Weights {
    /// Fitted on four of the six public traces and judged on the others and on variations of them.
    fn default() -> Self {
        Self {
            step: 360,
            fresh: 300,
            balance: 8,
            left: 16,
            small: 80,
            reserve: 11_200,
            prices: Prices::Priced,
        }
    }
}

/// Prices of a vCPU that are tried.
const LANES: usize = 8;
/// The prices as 128ths of what a vCPU is worth on average: the GPU that the mix asks for over the vCPUs that it asks for
/// with it.
const PRICE_STEPS: [u64; LANES] = [0, 13, 23, 41, 75, 134, 242, 435];
/// A thousandth of a device in the tables: so fine that all devices of a machine still fit into 16 bits.
const UNIT: u16 = 8;
const _: () = assert!(UNIT as usize * DEVICE_MILLI as usize * DEVICES_MAX <= u16::MAX as usize);

/// What is likely to arrive.
#[derive(Debug, Clone)]
pub struct Mix {
    shapes: Vec<Typical>,
    weights: Weights,
    /// For each price the cost of a millionth of a vCPU, in 2^-32 of the unit of the tables.
    prices: [u64; LANES],
    /// The shapes that want GPUs, from which the tables are made.
    wanted: Vec<Item>,
    /// What a device is worth by its free thousandths, for each price. Made when first needed: most fleets have no GPUs.
    tables: OnceLock<Vec<[u16; LANES]>>,
}

impl Default for Mix {
    fn default() -> Self {
        Self::new(&[])
    }
}

impl Mix {
    /// A mix of these shapes. Of shapes that want no GPU it learns nothing: they cost what they take from others. Without
    /// any shape that wants one it takes halves, quarters and whole devices to be equally likely and processors to be
    /// plenty.
    #[must_use]
    pub fn new(shapes: &[Typical]) -> Self {
        Self::with_weights(shapes, Weights::default())
    }

    /// The same with other weights, to measure what each is good for.
    #[must_use]
    pub fn with_weights(shapes: &[Typical], weights: Weights) -> Self {
        let mut wanted: Vec<Item> = shapes.iter().filter_map(Item::of).collect();
        if wanted.is_empty() {
            wanted.extend(
                [DEVICE_MILLI, DEVICE_MILLI / 2, DEVICE_MILLI / 4].map(|milli| Item { milli, cpu: 0 }),
            );
        }
        let prices = prices(shapes, weights.prices);
        Self {
            shapes: shapes.to_vec(),
            weights,
            prices,
            wanted,
            tables: OnceLock::new(),
        }
    }

    fn worth(&self) -> &[[u16; LANES]] {
        self.tables
            .get_or_init(|| worth(&self.wanted, &self.prices, self.weights.small))
    }

    #[must_use]
    pub fn shapes(&self) -> &[Typical] {
        &self.shapes
    }

    pub(super) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The key of a machine with devices for a request whose other amounts fit, 1 and up, and the mask of the devices it
    /// would get; none when the devices do not fit. Whole devices are the lowest-numbered free ones; a share goes to the
    /// device where it costs least, the lowest-numbered of equal ones.
    #[must_use]
    pub fn score(&self, facts: &CellFacts, row: &Row, demand: &Demand) -> Option<(u16, u8)> {
        let cpu = u64::from(row.cpu).saturating_sub(demand.cpu);
        let devices = self.devices(row);
        let before = self.value(u64::from(row.cpu), &devices);
        let (after, mask, left) = match demand.gpu {
            GpuNeed::None => (self.value(cpu, &devices), 0, 0),
            GpuNeed::Whole(count) => {
                let mask = lowest_free(row, count)?;
                let rest = self.without(&devices, DEVICE_MILLI, 0, count);
                (self.value(cpu, &rest), mask, 0)
            }
            GpuNeed::Share(milli) => self.best_device(row, &devices, cpu, milli)?,
        };
        let mut cost = before.saturating_sub(after) + left;
        if row.devices == facts.scale.devices {
            cost += self.weights.fresh;
        }
        cost += imbalance(facts, row, cpu, demand.gpu) * self.weights.balance / 16;
        let steps = cost.div_ceil(self.weights.step).min(u32::from(u16::MAX - 1));
        let steps = u16::try_from(steps).expect("it was bounded by 16 bits");
        Some((u16::MAX - steps, mask))
    }

    /// The device that a share costs least on: the worth of the machine then, its mask, and what is left there, weighed.
    fn best_device(&self, row: &Row, devices: &[u16; LANES], cpu: u64, milli: u16) -> Option<(u32, u8, u32)> {
        let mut best: Option<(u32, u8, u32)> = None;
        for (number, free) in row.devices.iter().enumerate() {
            // An equal device before this one did as well.
            if *free < milli || row.devices[..number].contains(free) {
                continue;
            }
            let rest = self.without(devices, *free, *free - milli, 1);
            let value = self.value(cpu, &rest);
            let left = u32::from(*free - milli) * self.weights.left / 16;
            if best.is_none_or(|(other, _, other_left)| value + other_left > other + left) {
                best = Some((value, 1 << number, left));
            }
        }
        best
    }

    /// The worth of all devices of a machine, for each price.
    fn devices(&self, row: &Row) -> [u16; LANES] {
        let mut sum = [0u16; LANES];
        for free in row.devices {
            for (sum, worth) in sum.iter_mut().zip(&self.worth()[usize::from(free)]) {
                *sum += worth;
            }
        }
        sum
    }

    /// The same when so many devices with `free` have only `left`.
    fn without(&self, devices: &[u16; LANES], free: u16, left: u16, count: u8) -> [u16; LANES] {
        let (gone, kept) = (&self.worth()[usize::from(free)], &self.worth()[usize::from(left)]);
        let mut sum = *devices;
        for lane in 0..LANES {
            sum[lane] -= (gone[lane] - kept[lane]) * u16::from(count);
        }
        sum
    }

    /// What the mix can make of a machine with so many millionths of a vCPU and devices of that worth.
    fn value(&self, cpu: u64, devices: &[u16; LANES]) -> u32 {
        let mut least = u64::MAX;
        for (price, devices) in self.prices.iter().zip(devices) {
            // Invariant: both factors have 32 bits.
            least = least.min(((cpu * price) >> 32) + u64::from(*devices));
        }
        u32::try_from(least).expect("the free price bounds it by the devices: 16 bits")
    }
}

/// A share of one device, or one of several whole devices with its part of the processors.
#[derive(Debug, Clone, Copy)]
struct Item {
    milli: u16,
    cpu: u64,
}

impl Item {
    fn of(shape: &Typical) -> Option<Self> {
        match shape.gpu {
            GpuNeed::None => None,
            GpuNeed::Whole(count) => Some(Self {
                milli: DEVICE_MILLI,
                cpu: shape.cpu / u64::from(count.max(1)),
            }),
            GpuNeed::Share(milli) => Some(Self {
                milli: milli.clamp(1, DEVICE_MILLI),
                cpu: shape.cpu,
            }),
        }
    }
}

/// The prices of a millionth of a vCPU, in 2^-32 of the unit of the tables; all zero where processors cost nothing.
fn prices(shapes: &[Typical], prices: Prices) -> [u64; LANES] {
    let with_gpu = || shapes.iter().filter(|shape| shape.gpu != GpuNeed::None);
    let weighed = |amount: fn(&Typical) -> u64| -> u128 {
        let amounts = with_gpu().map(|shape| u128::from(amount(shape)) * u128::from(shape.weight));
        amounts.sum()
    };
    let (gpu, cpu) = (weighed(Typical::gpu_milli), weighed(|shape| shape.cpu));
    if cpu == 0 || prices == Prices::Free {
        return [0; LANES];
    }
    PRICE_STEPS.map(|steps| {
        // At most 8000 thousandths, 64 bits of weight and 44 more here: below 2^128 for any number of shapes that fits
        // into memory.
        let price = ((gpu * u128::from(UNIT) * u128::from(steps)) << 25) / cpu;
        u64::try_from(price).unwrap_or(u64::MAX).min(u64::from(u32::MAX))
    })
}

/// The tables: for each number of free thousandths and each price the most that items of the mix are worth there.
fn worth(items: &[Item], prices: &[u64; LANES], small: u32) -> Vec<[u16; LANES]> {
    let whole = u64::from(DEVICE_MILLI);
    let mut table = vec![[0u16; LANES]; usize::from(DEVICE_MILLI) + 1];
    for free in 1..table.len() {
        // More room is never worth less.
        let mut best = table[free - 1];
        for item in items.iter().filter(|item| usize::from(item.milli) <= free) {
            let milli = u64::from(item.milli);
            let value = milli * (whole * whole - u64::from(small) * (whole - milli))
                / (whole * whole / u64::from(UNIT));
            let rest = table[free - usize::from(item.milli)];
            for lane in 0..LANES {
                let cost = (item.cpu.min(u64::from(u32::MAX)) * prices[lane]) >> 32;
                let total = u64::from(rest[lane]) + value.saturating_sub(cost);
                let total = u16::try_from(total).expect("no more than the device is wide");
                best[lane] = best[lane].max(total);
            }
        }
        table[free] = best;
    }
    table
}

/// The lowest-numbered devices that are wholly free.
fn lowest_free(row: &Row, count: u8) -> Option<u8> {
    let mut mask = 0;
    let mut missing = count;
    for (number, free) in row.devices.iter().enumerate() {
        if missing > 0 && *free == DEVICE_MILLI {
            mask |= 1 << number;
            missing -= 1;
        }
    }
    (missing == 0).then_some(mask)
}

/// By how many thousandths of a device the processors that are left are more or fewer than those of the devices left, when
/// the machine has as many of them for each device as its profile.
fn imbalance(facts: &CellFacts, row: &Row, cpu_left: u64, gpu: GpuNeed) -> u32 {
    let idle = row.free_devices().saturating_sub(gpu_milli(gpu));
    // 2^32 times 8000 is far below 2^64.
    let processors = cpu_left * facts.scale.free_devices() / u64::from(facts.scale.cpu).max(1);
    let most = u64::from(DEVICE_MILLI) * 64;
    u32::try_from(processors.abs_diff(idle).min(most)).expect("it was bounded")
}

/// Thousandths of devices in all.
pub(super) fn gpu_milli(gpu: GpuNeed) -> u64 {
    match gpu {
        GpuNeed::None => 0,
        GpuNeed::Whole(count) => u64::from(count) * u64::from(DEVICE_MILLI),
        GpuNeed::Share(milli) => u64::from(milli),
    }
}

#[cfg(test)]
mod tests;
