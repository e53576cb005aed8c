//! Loads played against a rule of scaling: a simulated service, the shapes of its load, and what a rule cost and missed.
//!
//! Input: a [`Load`], a [`Rule`], a seed. Output: a [`Score`]. Pure; one seed gives one course. The service answers
//! [`RATE`] requests a second per replica with one vCPU each; what it cannot answer queues for [`PATIENCE_S`] and is lost
//! then. Replicas take 20 to 40 s to become ready and burn processor time while they warm up. Readings carry noise.

use std::collections::VecDeque;

use super::{Advice, History, Reading, Targets, Tunables, WHOLE, count_of, look, replicas, scaled};

/// Requests a second that one replica can answer.
pub const RATE: u64 = 100;
/// Requests that waited longer are lost.
const PATIENCE_S: u64 = 5;
/// Of a request in an idle service, in microseconds.
const SERVICE_US: u64 = 10_000;
/// What a replica burns beside its work in its first seconds, in thousandths of its cap, and how long.
const WARM_UP_BURN: u64 = 400;
const WARM_UP_S: u64 = 15;
/// What starts takes, in seconds.
const START_S: std::ops::RangeInclusive<u64> = 20..=40;
/// Excess is counted against what was needed so long before, or will be by the time a replica is ready.
const RECENT_S: usize = 300;
const SOON_S: usize = 40;
/// Replicas this much above their target, in thousandths, are no fault of a rule.
const TOLERATED: u64 = 150;
/// The first replicas are warm.
const START_AT: u64 = 600;
/// A change of direction within so long is a flap.
const FLAP_S: u64 = 300;

/// Requests a second, second by second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    pub name: &'static str,
    pub requests: Vec<u64>,
}

impl Load {
    /// The shapes that rules are judged by, with the noise of a seed.
    #[must_use]
    pub fn shapes(seed: u64) -> Vec<Self> {
        let mut chance = Chance(seed);
        let mut shape = |name, seconds: u64, at: &dyn Fn(u64) -> u64, noise: u64| Self {
            name,
            requests: (0..seconds)
                .map(|second| chance.around(at(second), noise))
                .collect(),
        };
        vec![
            shape(
                "step",
                3_600,
                &|s| if (600..2_100).contains(&s) { 1_500 } else { 150 },
                50,
            ),
            shape(
                "spike",
                3_600,
                &|s| if (900..1_020).contains(&s) { 1_500 } else { 150 },
                50,
            ),
            shape("diurnal", 86_400, &|s| 100 + 1_400 * hump(s, 86_400) / WHOLE, 50),
            shape("saw-tooth", 7_200, &|s| 100 + s % 900 * 1_400 / 900, 50),
            shape("noise", 7_200, &|_| 700, 250),
        ]
    }

    /// Replicas on target that the load of a second needs.
    fn need(&self, targets: &Targets) -> Vec<u32> {
        let one = RATE * targets.cpu_permille / WHOLE;
        self.requests
            .iter()
            .map(|requests| replicas(requests.div_ceil(one.max(1))).clamp(targets.min, targets.max))
            .collect()
    }
}

/// A parabola from 0 up to 1000 and down again within a period.
fn hump(second: u64, period: u64) -> u64 {
    let part = second % period * WHOLE / period;
    4 * part * (WHOLE - part) / WHOLE
}

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn within(&mut self, range: std::ops::RangeInclusive<u64>) -> u64 {
        range.start() + self.next() % (range.end() - range.start() + 1)
    }

    /// `value`, give or take so many thousandths.
    fn around(&mut self, value: u64, permille: u64) -> u64 {
        scaled(value, WHOLE - permille + self.within(0..=2 * permille), WHOLE)
    }
}

/// What decides how many replicas there are.
pub trait Rule {
    /// What it is called in tables.
    fn name(&self) -> &'static str;

    /// How many there should be, `current` being wanted now. Called every second.
    fn count(&mut self, targets: &Targets, readings: &[Reading], current: u32, now_ms: u64) -> u32;
}

/// The rule of this module's parent.
#[derive(Debug, Clone, Default)]
pub struct Berth {
    tunables: Tunables,
    history: History,
}

impl Berth {
    #[must_use]
    pub fn new(tunables: Tunables) -> Self {
        Self {
            tunables,
            history: History::default(),
        }
    }
}

impl Rule for Berth {
    fn name(&self) -> &'static str {
        "Berth"
    }

    fn count(&mut self, targets: &Targets, readings: &[Reading], current: u32, now_ms: u64) -> u32 {
        if self.history.is_due(&self.tunables, now_ms) {
            let look = look(targets, readings, current, &self.history, &self.tunables, now_ms);
            self.history.push(look, &self.tunables);
        }
        let Advice { count, .. } = self.history.advise(current, targets, &self.tunables);
        count
    }
}

/// The rule of the Kubernetes horizontal pod autoscaler with its defaults: `replica_calculator.go` and
/// `horizontal.go` of Kubernetes 1.31, behaviour as in KEP-853. Every 15 s the ratio of use and target times the pods;
/// tolerance 0.1; pods whose metrics are not wholly from after they were ready count as idle for a rise and as on target
/// for a fall; at most double or four more within 15 s; fewer only to the most of 300 s.
#[derive(Debug, Clone, Default)]
pub struct Kubernetes {
    last_ms: Option<u64>,
    wished: VecDeque<(u64, u32)>,
}

impl Kubernetes {
    const SYNC_MS: u64 = 15_000;
    const METRIC_WINDOW_MS: u64 = 15_000;
    const DOWN_WINDOW_MS: u64 = 300_000;
    const TOLERANCE: u64 = 100;

    /// What one metric proposes; none when no pod has it.
    fn proposal(target: u64, used: &[(bool, Option<u64>)], current: u32) -> Option<u32> {
        let ready: Vec<u64> = used
            .iter()
            .filter_map(|(ready, used)| used.filter(|_| *ready))
            .collect();
        let unready = count_of(used.iter().filter(|(ready, _)| !ready).count());
        let missing = count_of(
            used.iter()
                .filter(|(ready, used)| *ready && used.is_none())
                .count(),
        );
        let total: u64 = ready.iter().sum();
        let number = count_of(ready.len());
        let is_near = |ratio: u64| ratio.abs_diff(WHOLE) <= Self::TOLERANCE;
        let ratio = scaled(total, WHOLE, (target * number).max(1));
        if number == 0 {
            return None;
        }
        if missing == 0 && (unready == 0 || ratio <= WHOLE) {
            let rise = scaled(number, ratio, 1).div_ceil(WHOLE);
            return Some(if is_near(ratio) { current } else { replicas(rise) });
        }
        // Idle for a rise, on target for a fall.
        let assumed = if ratio < WHOLE {
            total + missing * target.max(WHOLE)
        } else {
            total
        };
        let counted = if ratio > WHOLE {
            number + missing + unready
        } else {
            number + missing
        };
        let after = scaled(assumed, WHOLE, (target * counted).max(1));
        let count = replicas(scaled(counted, after, 1).div_ceil(WHOLE));
        let flips = (ratio < WHOLE && after > WHOLE) || (ratio > WHOLE && after < WHOLE);
        let backwards = (after < WHOLE && count > current) || (after > WHOLE && count < current);
        Some(if is_near(after) || flips || backwards {
            current
        } else {
            count
        })
    }
}

impl Rule for Kubernetes {
    fn name(&self) -> &'static str {
        "Kubernetes HPA"
    }

    fn count(&mut self, targets: &Targets, readings: &[Reading], current: u32, now_ms: u64) -> u32 {
        if self.last_ms.is_some_and(|last| now_ms - last < Self::SYNC_MS) {
            return current;
        }
        self.last_ms = Some(now_ms);
        let is_ready = |reading: &Reading| reading.ready_for_ms >= Some(Self::METRIC_WINDOW_MS);
        let metric = |target: Option<u64>, of: &dyn Fn(&Reading) -> Option<u64>| {
            let used: Vec<_> = readings
                .iter()
                .map(|reading| (is_ready(reading), of(reading)))
                .collect();
            target.map(|target| Self::proposal(target, &used, current))
        };
        let proposals = [
            metric(Some(targets.cpu_permille), &|reading| reading.cpu_permille),
            metric(Some(targets.memory_permille), &|reading| reading.memory_permille),
            metric(targets.in_flight.map(|count| count * WHOLE), &|reading| {
                reading.in_flight_milli
            }),
        ];
        let asked = || proposals.iter().flatten();
        let most = asked().flatten().max().copied().unwrap_or(current);
        // A metric that cannot be had forbids a fall.
        let wished = if asked().any(Option::is_none) {
            most.max(current)
        } else {
            most
        };
        self.wished.push_back((now_ms, wished));
        self.wished.retain(|(at, _)| now_ms - at <= Self::DOWN_WINDOW_MS);
        let most = self
            .wished
            .iter()
            .map(|(_, count)| *count)
            .max()
            .unwrap_or(current);
        let stable = if wished < current {
            most.min(current)
        } else {
            wished
        };
        let limit = current.saturating_mul(2).max(current.saturating_add(4));
        stable.min(limit).clamp(targets.min, targets.max)
    }
}

/// What a rule made of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Score {
    /// Replicas times seconds, those on their way included.
    pub replica_seconds: u64,
    /// The same for an oracle that starts each replica just in time and keeps none longer than it is needed.
    pub oracle_seconds: u64,
    pub requests: u64,
    /// Never answered.
    pub lost: u64,
    /// Seconds in which replicas were more than 15 % above their target, or would have been if they could.
    pub short_seconds: u64,
    /// The longest run of such seconds: what a rise takes to be met.
    pub settle_seconds: u64,
    /// Most replicas beyond what was needed lately or soon, in thousandths of that.
    pub overshoot_permille: u64,
    /// Changes of the count.
    pub changes: u64,
    /// Changes in the other direction within five minutes.
    pub flaps: u64,
}

/// One replica of the simulated service.
#[derive(Debug, Clone, Copy)]
struct Replica {
    ready_at: u64,
}

/// Plays a load. The service begins with what the first second needs.
pub fn play(load: &Load, targets: &Targets, rule: &mut dyn Rule, seed: u64) -> Score {
    let mut chance = Chance(seed);
    let need = load.need(targets);
    let mut current = need.first().copied().unwrap_or(targets.min);
    let mut service: Vec<Replica> = (0..current).map(|_| Replica { ready_at: 0 }).collect();
    let mut score = Score::default();
    let (mut backlog, mut short, mut last): (u64, u64, Option<(u64, bool)>) = (0, 0, None);
    for (index, requests) in load.requests.iter().enumerate() {
        let second = START_AT + count_of(index);
        let serving = count_of(
            service
                .iter()
                .filter(|replica| replica.ready_at <= second)
                .count(),
        );
        let capacity = serving * RATE;
        let waiting = requests + backlog;
        let answered = waiting.min(capacity);
        backlog = (waiting - answered).min(capacity * PATIENCE_S);
        score.requests += requests;
        score.lost += waiting - answered - backlog;
        score.replica_seconds += u64::from(current);
        let soon = &need[index..need.len().min(index + SOON_S)];
        score.oracle_seconds += u64::from(soon.iter().max().copied().unwrap_or(0));
        let recent = &need[index.saturating_sub(RECENT_S)..need.len().min(index + SOON_S)];
        let most = u64::from(recent.iter().max().copied().unwrap_or(1).max(1));
        let beyond = u64::from(current).saturating_sub(most) * WHOLE / most;
        score.overshoot_permille = score.overshoot_permille.max(beyond);
        let is_short = serving * (WHOLE + TOLERATED) < u64::from(need[index]) * WHOLE;
        short = if is_short { short + 1 } else { 0 };
        score.short_seconds += u64::from(short > 0);
        score.settle_seconds = score.settle_seconds.max(short);

        let readings = observe(&service, second, (answered, capacity, backlog), &mut chance);
        let count = rule.count(targets, &readings, current, second * 1000);
        if count != current {
            let is_up = count > current;
            score.changes += 1;
            score.flaps += u64::from(last.is_some_and(|(at, up)| up != is_up && second - at < FLAP_S));
            last = Some((second, is_up));
            // The newest leave first.
            service.truncate(usize::try_from(count).unwrap_or(usize::MAX));
            service.extend((current..count).map(|_| Replica {
                ready_at: second + chance.within(START_S),
            }));
            current = count;
        }
    }
    score
}

/// What the replicas report of a second.
fn observe(
    service: &[Replica],
    second: u64,
    (answered, capacity, backlog): (u64, u64, u64),
    chance: &mut Chance,
) -> Vec<Reading> {
    let serving = (capacity / RATE).max(1);
    let busy = scaled(answered, WHOLE, capacity.max(1));
    // Of a single queue, as far as it is stable.
    let latency =
        scaled(SERVICE_US, WHOLE, WHOLE - busy.min(980)) + scaled(backlog, 1_000_000, capacity.max(1));
    let in_flight = scaled(answered, latency, 1000) / serving + backlog * WHOLE / serving;
    let reading = |replica: &Replica| {
        let ready_for = second.checked_sub(replica.ready_at);
        let Some(ready_for) = ready_for else {
            return Reading::default();
        };
        let burn = if ready_for < WARM_UP_S { WARM_UP_BURN } else { 0 };
        Reading {
            ready_for_ms: Some(ready_for * 1000),
            is_silent: false,
            cpu_permille: Some(chance.around((busy + burn).min(WHOLE), 80).min(WHOLE)),
            memory_permille: Some(300),
            in_flight_milli: Some(chance.around(in_flight, 150)),
            p95_us: (answered > 0).then(|| chance.around(latency * 3, 150)),
        }
    };
    service.iter().map(reading).collect()
}
