//! Which devices a request gets, and how good a machine with devices is for it.

use super::cell::CellFacts;
use super::demand::{DEVICE_MILLI, Demand, GpuNeed, Row};
use super::score::share;

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

/// What is likely to arrive.
#[derive(Debug, Clone, Default)]
pub struct Mix {
    shapes: Vec<Typical>,
}

impl Mix {
    #[must_use]
    pub fn new(shapes: &[Typical]) -> Self {
        Self {
            shapes: shapes.to_vec(),
        }
    }

    #[must_use]
    pub fn shapes(&self) -> &[Typical] {
        &self.shapes
    }

    /// The key of a machine with devices for a request whose other amounts fit, 1 and up, and the mask of the devices it
    /// would get; none when the devices do not fit.
    #[must_use]
    pub fn score(&self, facts: &CellFacts, row: &Row, demand: &Demand) -> Option<(u16, u8)> {
        let (mask, gpu_left) = match demand.gpu {
            GpuNeed::None => (0, total(row)),
            GpuNeed::Whole(count) => {
                let free = (0..8u8).filter(|device| row.devices[usize::from(*device)] == DEVICE_MILLI);
                let taken: Vec<u8> = free.take(usize::from(count)).collect();
                if taken.len() < usize::from(count) {
                    return None;
                }
                let mask = taken.iter().fold(0, |mask, device| mask | 1 << device);
                (mask, total(row) - u64::from(count) * u64::from(DEVICE_MILLI))
            }
            GpuNeed::Share(milli) => {
                let fitting = (0..8u8).filter(|device| row.devices[usize::from(*device)] >= milli);
                let tightest = fitting.min_by_key(|device| row.devices[usize::from(*device)])?;
                (1 << tightest, total(row) - u64::from(milli))
            }
        };
        let scale = &facts.scale;
        let whole: u64 = scale.devices.iter().map(|milli| u64::from(*milli)).sum();
        let gpu = share(gpu_left, whole.max(1));
        let cpu = share(
            u64::from(row.cpu).saturating_sub(demand.cpu),
            u64::from(scale.cpu).max(1),
        );
        let left = (gpu + cpu) / 2;
        Some((u16::MAX - u16::try_from(left).unwrap_or(u16::MAX - 1), mask))
    }
}

fn total(row: &Row) -> u64 {
    row.devices.iter().map(|milli| u64::from(*milli)).sum()
}
