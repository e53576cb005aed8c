//! How many replicas a container with `autoscaling` should have, from what its replicas report.
//!
//! Input: [`Targets`], one [`Reading`] per replica, the [`History`] of earlier looks. Output: an [`Advice`]. Pure, in whole
//! numbers: the same readings give the same advice on every machine.
//!
//! Each look (every [`Tunables::period_ms`]) turns the readings into a [`Look`]: the count that each metric asks for.
//! - *Target tracking.* What all serving replicas together use, over what one should use. Replicas that are not ready use
//!   nothing, and those within their warm-up serve but are not believed; so replicas on their way are not asked for twice.
//! - *Tolerance.* Within [`Tunables::tolerance_permille`] of the target nothing changes.
//! - *Saturation.* A replica cannot use more processor than it has: at the cap the true need is unknown, and the count
//!   doubles.
//! - *Trend.* Demand that has risen for a while will have risen further when a new replica is ready: the count is that of
//!   [`Tunables::lead_ms`] ahead, if the rise is well above the noise. Falls are never foretold.
//! - *Latency* above its limit asks for more in proportion, to the double at most, and for no fewer while it is near.
//! - *Missing metrics never scale down*: a ready replica without a reading holds the count.
//!
//! [`History::advise`] then stabilises: up when every look of the last [`Tunables::up_window_ms`] asks for more, to the least
//! of them; down when every look of [`Tunables::down_window_ms`] asks for fewer, to the most of them, and only once so much
//! history is there. The windows are those of the Kubernetes horizontal pod autoscaler (KEP-853), whose rule is
//! [`replay::Kubernetes`] for comparison.

mod cluster;
pub mod replay;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use cluster::{describe, entries, observe};

/// Thousandths of a whole.
pub const WHOLE: u64 = 1000;
/// Above this share of its cap a replica may need more than it shows.
const SATURATED_PERMILLE: u64 = 950;
/// A rise counts when over the whole window it is so many times the typical deviation from it.
const TREND_SIGNIFICANCE: i128 = 4;
/// Looks that are needed to tell a trend.
const TREND_LOOKS: usize = 6;
/// Latency within this share of its limit keeps replicas from being taken away.
const LATENCY_NEAR_PERMILLE: u64 = 800;
/// A bound on memory when periods are short: at 5 s a look this is 20 minutes.
const LOOKS_MAX: usize = 240;

/// How scaling behaves, for all containers of a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tunables {
    /// Between two looks at the metrics.
    pub period_ms: u64,
    /// Deviation from a target that changes nothing.
    pub tolerance_permille: u64,
    /// A replica's processor and memory readings count once it was ready for so long.
    pub warm_up_ms: u64,
    /// How far ahead a rise is foretold: about what a replica takes from decision to ready. 0 foretells nothing.
    pub lead_ms: u64,
    /// Rises are foretold from so much history.
    pub trend_window_ms: u64,
    /// More replicas only after so long.
    pub up_window_ms: u64,
    /// Fewer replicas only after so long.
    pub down_window_ms: u64,
    /// One look asks for at most so many times the serving replicas, in percent, and for four in any case.
    pub growth_max_percent: u64,
}

impl Default for Tunables {
    fn default() -> Self {
        Self {
            period_ms: 5_000,
            tolerance_permille: 100,
            warm_up_ms: 20_000,
            lead_ms: 45_000,
            trend_window_ms: 90_000,
            up_window_ms: 10_000,
            down_window_ms: 180_000,
            growth_max_percent: 300,
        }
    }
}

/// What a container wants of its replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Targets {
    pub min: u32,
    pub max: u32,
    /// Of the allotted processor time.
    pub cpu_permille: u64,
    /// Of the allotted memory.
    pub memory_permille: u64,
    /// Requests in flight per replica.
    pub in_flight: Option<u64>,
    /// Microseconds.
    pub p95_max_us: Option<u64>,
}

/// What one replica that is wanted shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading {
    /// How long it has been ready; none while it is not.
    pub ready_for_ms: Option<u64>,
    /// Nobody has told of it lately: it may serve and may not.
    pub is_silent: bool,
    pub cpu_permille: Option<u64>,
    pub memory_permille: Option<u64>,
    /// Thousandths of requests in flight, on average.
    pub in_flight_milli: Option<u64>,
    /// Microseconds; absent without requests.
    pub p95_us: Option<u64>,
}

/// What a count is based on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Metric {
    Cpu,
    Memory,
    HttpInFlight,
    HttpLatency,
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::HttpInFlight => "requests in flight",
            Self::HttpLatency => "p95 latency",
        })
    }
}

/// What the metrics asked for at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Monotonic.
    pub at_ms: u64,
    /// Replicas that would meet every target.
    pub count: u32,
    /// The metric that asks for most; none when nothing could be measured.
    pub metric: Option<Metric>,
    /// Of that metric's target, 1000 being on target.
    pub of_target_permille: u64,
    /// Fewer replicas may do: nothing is missing and latency is well below its limit.
    pub may_shrink: bool,
    /// What all replicas use of (processor, memory, requests in flight), in thousandths of a replica's target.
    demand: [Option<u64>; 3],
}

/// What a container should have now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advice {
    pub count: u32,
    pub metric: Option<Metric>,
    pub of_target_permille: u64,
}

/// The looks at one container, oldest first. Soft: it starts empty with the program, and nothing is taken away before it
/// spans the window.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    looks: VecDeque<Look>,
}

/// One metric over all replicas.
struct Measured {
    /// Average of the believed replicas, in thousandths of the target.
    average: u64,
    /// What all serving replicas use together, in thousandths of one replica's target.
    demand: u64,
    is_saturated: bool,
    /// A ready replica has no reading, or it is not known whether one is ready.
    has_gap: bool,
}

impl Targets {
    fn of(&self, metric: Metric) -> Option<u64> {
        match metric {
            Metric::Cpu => Some(self.cpu_permille),
            Metric::Memory => Some(self.memory_permille),
            Metric::HttpInFlight => self.in_flight.map(|count| count.saturating_mul(WHOLE)),
            Metric::HttpLatency => self.p95_max_us,
        }
        .map(|target| target.max(1))
    }
}

impl Reading {
    fn of(&self, metric: Metric) -> Option<u64> {
        match metric {
            Metric::Cpu => self.cpu_permille,
            Metric::Memory => self.memory_permille,
            Metric::HttpInFlight => self.in_flight_milli,
            Metric::HttpLatency => self.p95_us,
        }
    }
}

fn count_of(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn measure(metric: Metric, targets: &Targets, readings: &[Reading], tunables: &Tunables) -> Option<Measured> {
    let target = targets.of(metric)?;
    let ready = || readings.iter().filter(|reading| reading.ready_for_ms.is_some());
    let is_warm = |reading: &&Reading| reading.ready_for_ms >= Some(tunables.warm_up_ms);
    let serving = count_of(ready().count());
    let is_gap = |reading: &Reading| {
        reading.is_silent || (reading.ready_for_ms.is_some() && reading.of(metric).is_none())
    };
    let has_gap = readings.iter().any(is_gap);
    // Requests are what they are from the first moment on; processor time and memory of a start are not.
    let believed: Vec<u64> = ready()
        .filter(|reading| metric == Metric::HttpInFlight || is_warm(reading))
        .filter_map(|reading| reading.of(metric))
        .collect();
    let total = believed.iter().fold(0_u64, |sum, used| sum.saturating_add(*used));
    let used = total.checked_div(count_of(believed.len()))?;
    let average = scaled(used, WHOLE, target);
    Some(Measured {
        average,
        demand: average.saturating_mul(serving),
        is_saturated: metric == Metric::Cpu && used >= SATURATED_PERMILLE,
        has_gap,
    })
}

/// `value * factor / divisor`, without overflow.
fn scaled(value: u64, factor: u64, divisor: u64) -> u64 {
    let wide = u128::from(value) * u128::from(factor) / u128::from(divisor.max(1));
    u64::try_from(wide).unwrap_or(u64::MAX)
}

fn replicas(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Looks at the readings of all replicas that are wanted; `current` is how many are.
#[must_use]
pub fn look(
    targets: &Targets,
    readings: &[Reading],
    current: u32,
    history: &History,
    tunables: &Tunables,
    at_ms: u64,
) -> Look {
    let serving = count_of(
        readings
            .iter()
            .filter(|reading| reading.ready_for_ms.is_some())
            .count(),
    );
    let mut look = Look {
        at_ms,
        count: 0,
        metric: None,
        of_target_permille: 0,
        may_shrink: true,
        demand: [None; 3],
    };
    let metrics = [Metric::Cpu, Metric::Memory, Metric::HttpInFlight];
    for (index, metric) in metrics.into_iter().enumerate() {
        if targets.of(metric).is_none() {
            continue;
        }
        let Some(measured) = measure(metric, targets, readings, tunables) else {
            look.may_shrink = false;
            continue;
        };
        look.may_shrink &= !measured.has_gap;
        // At the cap it is only known to be no less: nothing can be foretold from it.
        look.demand[index] = (!measured.is_saturated).then_some(measured.demand);
        let ahead = history.foretold(index, measured.demand, tunables, at_ms);
        let count = wanted(&measured, ahead, serving, current, tunables);
        look.propose(count, metric, measured.average);
    }
    latency(targets, readings, serving, tunables, &mut look);
    if look.metric.is_none() {
        (look.count, look.may_shrink) = (current, false);
    }
    let cap = (serving.saturating_mul(tunables.growth_max_percent) / 100)
        .max(4)
        .max(u64::from(current));
    look.count = look.count.min(replicas(cap)).clamp(targets.min, targets.max);
    look
}

/// What one metric asks for.
fn wanted(measured: &Measured, ahead: u64, serving: u64, current: u32, tunables: &Tunables) -> u32 {
    let tolerance = tunables.tolerance_permille.min(WHOLE - 1);
    let now = measured.demand.max(ahead);
    // Where all wanted replicas serve, the average is over them; while some are on their way it will be.
    let planned = now / u64::from(current.max(1));
    let is_near = (WHOLE - tolerance..=WHOLE + tolerance).contains(&planned);
    let tracked = if is_near {
        current
    } else {
        replicas(now.div_ceil(WHOLE))
    };
    if measured.is_saturated {
        tracked.max(replicas(serving.saturating_mul(2)))
    } else {
        tracked
    }
}

/// Latency only ever asks for more.
fn latency(targets: &Targets, readings: &[Reading], serving: u64, tunables: &Tunables, look: &mut Look) {
    let Some(measured) = measure(Metric::HttpLatency, targets, readings, tunables) else {
        return;
    };
    look.may_shrink &= measured.average < LATENCY_NEAR_PERMILLE;
    if measured.average > WHOLE + tunables.tolerance_permille {
        let harder = scaled(serving, measured.average.min(2 * WHOLE), WHOLE);
        look.propose(
            replicas(harder.max(serving + 1)),
            Metric::HttpLatency,
            measured.average,
        );
    }
}

impl Look {
    fn propose(&mut self, count: u32, metric: Metric, of_target_permille: u64) {
        if self.metric.is_none() || (count, of_target_permille) > (self.count, self.of_target_permille) {
            self.count = count;
            self.metric = Some(metric);
            self.of_target_permille = of_target_permille;
        }
    }

    fn advice(&self, count: u32) -> Advice {
        Advice {
            count,
            metric: self.metric,
            of_target_permille: self.of_target_permille,
        }
    }
}

impl History {
    /// When the next look is due.
    #[must_use]
    pub fn is_due(&self, tunables: &Tunables, now_ms: u64) -> bool {
        self.looks
            .back()
            .is_none_or(|last| now_ms.saturating_sub(last.at_ms) >= tunables.period_ms)
    }

    /// Keeps a look, and drops those that no window reaches.
    pub fn push(&mut self, look: Look, tunables: &Tunables) {
        let window = tunables
            .down_window_ms
            .max(tunables.trend_window_ms)
            .max(tunables.up_window_ms);
        self.looks.push_back(look);
        // One look older than the window shows that the window is spanned.
        while self.looks.len() > LOOKS_MAX
            || self
                .looks
                .get(1)
                .is_some_and(|second| look.at_ms.saturating_sub(second.at_ms) >= window)
        {
            self.looks.pop_front();
        }
    }

    /// The newest look.
    #[must_use]
    pub fn last(&self) -> Option<&Look> {
        self.looks.back()
    }

    fn within(&self, window_ms: u64, now_ms: u64) -> impl DoubleEndedIterator<Item = &Look> {
        self.looks
            .iter()
            .filter(move |look| now_ms.saturating_sub(look.at_ms) <= window_ms)
    }

    /// Whether the looks reach back so far.
    fn spans(&self, window_ms: u64, now_ms: u64) -> bool {
        self.looks
            .front()
            .is_some_and(|first| now_ms.saturating_sub(first.at_ms) >= window_ms)
    }

    /// How many replicas there should be, `current` being wanted now. The same history gives the same advice, whatever was
    /// decided since the last look.
    #[must_use]
    pub fn advise(&self, current: u32, targets: &Targets, tunables: &Tunables) -> Advice {
        let bounded = current.clamp(targets.min, targets.max);
        let unchanged = Advice {
            count: bounded,
            metric: None,
            of_target_permille: 0,
        };
        let Some(last) = self.looks.back() else {
            return unchanged;
        };
        let up = self
            .within(tunables.up_window_ms, last.at_ms)
            .map(|look| look.count)
            .min();
        if let Some(up) = up.filter(|up| *up > bounded && self.spans(tunables.up_window_ms, last.at_ms)) {
            return last.advice(up.min(targets.max));
        }
        let window = || self.within(tunables.down_window_ms, last.at_ms);
        let down = window().map(|look| look.count).max().unwrap_or(bounded);
        let may_shrink =
            self.spans(tunables.down_window_ms, last.at_ms) && window().all(|look| look.may_shrink);
        if may_shrink && down < bounded {
            return last.advice(down.max(targets.min));
        }
        last.advice(bounded)
    }

    /// The demand of [`Tunables::lead_ms`] ahead, or 0 when no rise is certain. By least squares over the window, the
    /// present look included.
    fn foretold(&self, index: usize, demand: u64, tunables: &Tunables, at_ms: u64) -> u64 {
        let past = self.within(tunables.trend_window_ms, at_ms);
        let mut points: Vec<(i128, i128)> = past
            .filter_map(|look| Some((look.at_ms, look.demand[index]?)))
            .chain([(at_ms, demand)])
            .map(|(at, demand)| (i128::from(at) - i128::from(at_ms), i128::from(demand)))
            .collect();
        points.dedup_by_key(|point| point.0);
        if tunables.lead_ms == 0 || points.len() < TREND_LOOKS {
            return 0;
        }
        let number = i128::try_from(points.len()).unwrap_or(i128::MAX);
        let (sum_t, sum_d) = points
            .iter()
            .fold((0, 0), |(t, d), point| (t + point.0, d + point.1));
        // Everything times `number`, so that means are whole.
        let spread: i128 = points.iter().map(|(t, _)| (t * number - sum_t).pow(2)).sum();
        let product: i128 = points
            .iter()
            .map(|(t, d)| (t * number - sum_t) * (d * number - sum_d))
            .sum();
        if spread == 0 || product <= 0 {
            return 0;
        }
        // The line at a time, in demand units.
        let line = |t: i128| (sum_d + product * (t * number - sum_t) / spread) / number;
        let deviation: i128 = points.iter().map(|(t, d)| (d - line(*t)).abs()).sum::<i128>() / number;
        let first = points.first().map_or(0, |point| point.0);
        let rise = line(0) - line(first);
        if rise <= deviation * TREND_SIGNIFICANCE || rise * 10 < line(0) {
            return 0;
        }
        let ahead = line(i128::from(tunables.lead_ms)).min(line(0) * 2);
        u64::try_from(ahead).unwrap_or(0)
    }
}
