//! How long a decision takes, and how little that grows with the fleet.
//!
//! Fleets of 1 000 to 1 000 000 machines in three zones: general ones, ones with local NVMe, ones with eight GPUs. They are
//! filled by the engine itself with a mix of requests to 50, 80, 95 and 99 % of the processor time. At each fill every kind
//! of request is measured in churn: one replica of the kind leaves, one comes.
//!
//! Requests arrive by an open loop, a Poisson process of [`ARRIVALS_PER_S`], whether or not the engine is done with the one
//! before: the response time counts from the intended arrival, so a pause of the engine is charged to everybody who waits
//! (no coordinated omission). The engine works on one request at a time; what it does between requests (taking the place,
//! releasing another, bringing its trees up to date) occupies it too.

use berth_api::time::monotonic;
use berth_scheduler::placement::engine::{
    Ask, BYTES_PER_MACHINE, Choice, ClassId, DEVICE_MILLI, DEVICES_MAX, Demand, Engine, GpuNeed, Kind,
    Machine, MachineIdx, Mix, Row, Spread, SpreadId, Typical,
};

use crate::lines::{self, Line};
use crate::report::{Context, Outcome, Picture, Promise, Table};

const ARRIVALS_PER_S: f64 = 10_000.0;
const ZONES: u16 = 3;
/// Work that the engine may do after each request.
const SETTLE: u64 = 512;
const GIB: u64 = 1 << 30;

/// The kinds of requests, in the order of the tables.
const KINDS: [&str; 9] = [
    "plain",
    "stateful, zonal disk",
    "ephemeral NVMe",
    "whole GPUs",
    "GPU share",
    "anti-affinity",
    "one per machine",
    "infeasible, known shape",
    "infeasible, new shape",
];
const PLAIN: usize = 0;
const WHOLE: usize = 3;
const SHARE: usize = 4;
const APART: usize = 5;
const DAEMON: usize = 6;
const INFEASIBLE: usize = 7;
const NEW_SHAPE: usize = 8;

/// Xorshift: the same workload each time.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).expect("a usize has 64 bits");
        usize::try_from(self.roll() % bound).expect("below a usize")
    }

    /// In (0, 1].
    #[expect(clippy::cast_precision_loss, reason = "53 bits are what a float has")]
    fn unit(&mut self) -> f64 {
        ((self.roll() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}

/// A fleet in use.
struct Town {
    engine: Engine,
    dice: Dice,
    /// Classes of each kind.
    classes: [Vec<ClassId>; 6],
    /// Containers that want to be apart.
    spreads: Vec<SpreadId>,
    /// One that runs once on every machine, and the class of its replicas.
    daemon: (SpreadId, ClassId),
    /// Asks for more than any machine has.
    infeasible: ClassId,
    /// Shapes that were asked for once.
    odd_shapes: u64,
    /// What is placed, by kind.
    placed: [Vec<(Ask, Choice)>; 7],
    /// Processor time of each group, and of it what is in use.
    total: [u64; 3],
    used: [u64; 3],
}

/// The group whose machines a kind of request goes to.
const GROUP: [usize; 7] = [0, 0, 1, 2, 2, 0, 0];

const MICRO: u64 = 1_000_000;
/// vCPU beyond any machine of these fleets.
const INFEASIBLE_CPU: u64 = 300;

fn plain(cpu_quarters: u64, memory_halves: u64) -> Demand {
    Demand {
        cpu: cpu_quarters * MICRO / 4,
        memory: memory_halves * GIB / 2,
        addresses: 1,
        ..Demand::default()
    }
}

fn gpu(gpu: GpuNeed, cpu_quarters: u64, memory_halves: u64) -> Demand {
    Demand {
        gpu,
        group: Some(2),
        ..plain(cpu_quarters, memory_halves)
    }
}

/// The shapes of each kind: 12 plain, 8 stateful in each zone, 6 with NVMe, 4 with whole GPUs, 5 with shares, 4 apart.
fn demands() -> [Vec<Demand>; 6] {
    let general = |demand: Demand| Demand {
        group: Some(0),
        ..demand
    };
    let sizes = [
        (1, 1),
        (1, 2),
        (2, 2),
        (2, 4),
        (3, 3),
        (4, 4),
        (4, 8),
        (4, 16),
        (6, 8),
        (8, 8),
        (8, 16),
        (16, 32),
    ];
    let stateful = (0..ZONES).flat_map(|zone| {
        sizes[2..10].iter().map(move |(cpu, memory)| Demand {
            zone: Some(zone),
            disk_slots: 1,
            group: Some(0),
            ..plain(*cpu, *memory)
        })
    });
    let nvme = [50, 100, 200, 300, 400, 800].map(|gib| Demand {
        ephemeral: gib * GIB,
        group: Some(1),
        ..plain(gib / 25, gib / 25)
    });
    let whole =
        [(1, 20), (2, 44), (4, 92), (8, 184)].map(|(count, cpu)| gpu(GpuNeed::Whole(count), cpu, cpu * 2));
    let shares = [(100, 2), (250, 6), (330, 8), (500, 12), (810, 19)];
    let shares = shares.map(|(milli, cpu)| gpu(GpuNeed::Share(milli), cpu, cpu * 2));
    [
        sizes
            .iter()
            .map(|(cpu, memory)| general(plain(*cpu, *memory)))
            .collect(),
        stateful.collect(),
        nvme.to_vec(),
        whole.to_vec(),
        shares.to_vec(),
        sizes[1..5]
            .iter()
            .map(|(cpu, memory)| general(plain(*cpu, *memory + 1)))
            .collect(),
    ]
}

/// What arrives, in hundredths by kind.
const MIX: [u64; 6] = [55, 15, 8, 4, 6, 12];
/// Never two on one machine, and zones with fewer first.
const STRICTLY_APART: Spread = Spread {
    machine_share: 1,
    machine_max: 1,
    zones: true,
};
/// Replicas of a container whose replicas want to be apart.
const APART_REPLICAS: usize = 5;

fn machine(number: usize) -> Machine {
    let zone = u16::try_from(number % usize::from(ZONES)).expect("three zones");
    // Seventy general ones, twenty with NVMe and ten with GPUs of every hundred.
    let group = match number / usize::from(ZONES) % 10 {
        0..=6 => 0,
        7 | 8 => 1,
        _ => 2,
    };
    let (cpu, memory, ephemeral, gpus) =
        [(16, 64, 100, 0), (32, 128, 3800, 0), (48, 384, 200, 8)][usize::from(group)];
    let mut devices = [0; DEVICES_MAX];
    devices[..gpus].fill(DEVICE_MILLI);
    let usable = Row {
        cpu: cpu * 1_000_000,
        memory: memory * GIB,
        ephemeral: ephemeral * GIB,
        devices,
    };
    Machine {
        kind: Kind {
            group,
            zone,
            gpu_model: u16::from(gpus > 0),
            traits: 0,
        },
        usable,
        scale: usable,
        disk_slots: 25,
        host_ports: 999,
        addresses: 253,
    }
}

impl Town {
    fn new(machines: usize) -> Self {
        let shapes = demands();
        let typical = shapes[WHOLE].iter().chain(&shapes[SHARE]).map(|demand| Typical {
            cpu: demand.cpu,
            memory: demand.memory,
            gpu: demand.gpu,
            models: demand.models,
            weight: 1,
        });
        let mut engine = Engine::with_mix(Mix::new(&typical.collect::<Vec<_>>()));
        let mut total = [0; 3];
        for number in 0..machines {
            let machine = machine(number);
            total[usize::from(machine.kind.group)] += u64::from(machine.usable.cpu);
            engine
                .add_machine(&machine)
                .expect("a machine as the fleet has them");
        }
        let mut class = |demand: &Demand| {
            let class = engine.class(demand).expect("a demand that makes sense");
            engine.prepare(class);
            class
        };
        let classes = shapes.map(|demands| demands.iter().map(&mut class).collect());
        let daemon_class = class(&plain(1, 1));
        let infeasible = class(&Demand {
            cpu: INFEASIBLE_CPU * MICRO,
            ..plain(1, 2)
        });
        let spreads = (0..2000).map(|_| engine.spread(STRICTLY_APART)).collect();
        let daemon = (
            engine.spread(Spread {
                zones: false,
                ..STRICTLY_APART
            }),
            daemon_class,
        );
        Self {
            engine,
            dice: Dice::new(7),
            classes,
            spreads,
            daemon,
            infeasible,
            odd_shapes: 0,
            placed: Default::default(),
            total,
            used: [0; 3],
        }
    }

    fn ask(&mut self, kind: usize) -> Ask {
        let classes = &self.classes[kind];
        let class = classes[self.dice.below(classes.len())];
        let spread = (kind == APART).then(|| self.spreads[self.dice.below(self.spreads.len())]);
        Ask {
            class,
            spread,
            prefer: None,
        }
    }

    fn kind(&mut self) -> usize {
        let mut draw = self.dice.roll() % 100;
        for (kind, weight) in MIX.into_iter().enumerate() {
            if draw < weight {
                return kind;
            }
            draw -= weight;
        }
        PLAIN
    }

    /// What arrives when a kind is measured, after a replica of it left.
    fn next(&mut self, kind: usize, left: Option<Ask>) -> Ask {
        let plainly = |class| Ask {
            class,
            spread: None,
            prefer: None,
        };
        match kind {
            APART => left.unwrap_or_else(|| self.ask(APART)),
            0..=SHARE => self.ask(kind),
            INFEASIBLE => plainly(self.infeasible),
            NEW_SHAPE => {
                self.odd_shapes += 1;
                let demand = Demand {
                    cpu: INFEASIBLE_CPU * MICRO + self.odd_shapes,
                    ..plain(1, 2)
                };
                plainly(self.engine.class(&demand).expect("large, not absurd"))
            }
            _ => Ask {
                spread: Some(self.daemon.0),
                ..plainly(self.daemon.1)
            },
        }
    }

    fn keep(&mut self, kind: usize, ask: Ask, choice: Choice) {
        self.engine.take(&ask, choice);
        self.used[GROUP[kind]] += self.engine.demand(ask.class).cpu;
        self.placed[kind].push((ask, choice));
    }

    fn drop_one(&mut self, kind: usize) -> Option<Ask> {
        if self.placed[kind].is_empty() {
            return None;
        }
        let index = self.dice.below(self.placed[kind].len());
        let (ask, choice) = self.placed[kind].swap_remove(index);
        self.engine.release(&ask, choice);
        self.used[GROUP[kind]] -= self.engine.demand(ask.class).cpu;
        Some(ask)
    }

    /// Places what arrives until so many hundredths of each group's processor time are in use, or nothing of a long run fits.
    fn fill(&mut self, percent: u64) {
        let mut refused = 0;
        while refused < 2_000 {
            let kind = self.kind();
            let group = GROUP[kind];
            let is_full = self.used[group] >= self.total[group] / 100 * percent;
            if is_full || (kind == APART && self.placed[APART].len() >= APART_REPLICAS * self.spreads.len()) {
                refused += 1;
                continue;
            }
            let ask = self.ask(kind);
            match self.engine.choose(&ask) {
                Some(choice) => {
                    self.keep(kind, ask, choice);
                    refused = 0;
                }
                None => refused += 1,
            }
        }
    }

    fn percent(&self, kind: usize) -> u64 {
        let group = GROUP.get(kind).copied().unwrap_or(0);
        self.used[group] / (self.total[group] / 100).max(1)
    }
}

/// Latencies of one kind of request, in nanoseconds.
#[derive(Default)]
struct Sample {
    /// What the decision itself took.
    decision: Vec<u64>,
    /// From the intended arrival to the decision.
    response: Vec<u64>,
}

/// The clock of an open loop: arrivals do not wait for the engine.
struct Loop {
    arrival_ns: f64,
    free_ns: f64,
}

impl Loop {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "nanoseconds of a run of seconds, never negative"
    )]
    fn served(&mut self, dice: &mut Dice, decision_ns: u64, upkeep_ns: u64) -> u64 {
        self.arrival_ns -= dice.unit().ln() * 1e9 / ARRIVALS_PER_S;
        let start = self.arrival_ns.max(self.free_ns);
        let end = start + decision_ns as f64;
        self.free_ns = end + upkeep_ns as f64;
        (end - self.arrival_ns) as u64
    }
}

fn nanos(since: std::time::Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Churn of one kind: a replica leaves, another comes.
fn churn(town: &mut Town, kind: usize, count: usize) -> Sample {
    let mut sample = Sample::default();
    let mut clock = Loop {
        arrival_ns: 0.0,
        free_ns: 0.0,
    };
    town.engine.prepare(town.infeasible);
    while !town.engine.settle(u64::from(u32::MAX)) {}
    for _ in 0..count {
        let upkeep = monotonic();
        let base = if kind <= APART { kind } else { PLAIN };
        let left = town.drop_one(base);
        let upkeep_before = nanos(upkeep);
        let ask = town.next(kind, left);
        let number = u32::try_from(town.dice.below(town.engine.machine_count())).expect("below the fleet");
        let decision = monotonic();
        let choice = if kind == DAEMON {
            town.engine.choose_on(MachineIdx(number), &ask)
        } else {
            town.engine.choose(&ask)
        };
        let decision_ns = nanos(decision);
        let upkeep = monotonic();
        assert!(
            kind < INFEASIBLE || choice.is_none(),
            "{} was placed",
            KINDS[kind]
        );
        if let Some(choice) = choice {
            if kind == DAEMON {
                town.engine.take(&ask, choice);
                town.engine.release(&ask, choice);
            } else {
                town.keep(kind, ask, choice);
            }
        }
        if kind > APART
            && let Some(back) = left
            && let Some(choice) = town.engine.choose(&back)
        {
            // What left to make a change comes back: the fill stays.
            town.keep(base, back, choice);
        }
        town.engine.settle(SETTLE);
        let upkeep_ns = upkeep_before + nanos(upkeep);
        sample.decision.push(decision_ns);
        sample
            .response
            .push(clock.served(&mut town.dice, decision_ns, upkeep_ns));
    }
    sample.decision.sort_unstable();
    sample.response.sort_unstable();
    sample
}

/// The value below which so many of a million of the sorted values are.
fn quantile(sorted: &[u64], ppm: usize) -> u64 {
    let rank = (sorted.len() * ppm).div_ceil(1_000_000).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0)
}

fn micros(nanos: u64) -> String {
    format!("{}.{:02}", nanos / 1000, nanos % 1000 / 10)
}

/// Slope of the line through the logarithms: 0 is no growth, 1 is proportional growth.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds and machines")]
fn slope(points: &[(usize, u64)]) -> f64 {
    let logs: Vec<(f64, f64)> = points
        .iter()
        .map(|(machines, nanos)| ((*machines as f64).log10(), (*nanos as f64).log10()))
        .collect();
    let count = logs.len() as f64;
    let mean = |pick: fn(&(f64, f64)) -> f64| logs.iter().map(pick).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let above: f64 = logs.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    above / logs.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>()
}

/// A zone is lost: all its replicas that are not bound to it go elsewhere, as fast as the engine can.
fn zone_loss(machines: usize, table: &mut Table) {
    let mut town = Town::new(machines);
    town.fill(60);
    while !town.engine.settle(u64::from(u32::MAX)) {}
    let lost = 0;
    for number in 0..u32::try_from(machines).expect("a fleet has fewer than 2^32 machines") {
        if town.engine.facts(MachineIdx(number)).kind.zone == lost {
            town.engine.set_open(MachineIdx(number), false);
        }
    }
    let mut asks = vec![];
    for kind in 0..=APART {
        let all = std::mem::take(&mut town.placed[kind]);
        let (gone, kept): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|(_, choice)| town.engine.facts(choice.machine).kind.zone == lost);
        town.placed[kind] = kept;
        asks.extend(gone.into_iter().map(|(ask, _)| ask));
    }
    let started = monotonic();
    let mut samples = Vec::with_capacity(asks.len());
    let mut placed = 0;
    for ask in &asks {
        let decision = monotonic();
        let choice = town.engine.choose(ask);
        samples.push(nanos(decision));
        if let Some(choice) = choice {
            town.engine.take(ask, choice);
            placed += 1;
        }
    }
    let total = nanos(started);
    samples.sort_unstable();
    table.row([
        machines.to_string(),
        asks.len().to_string(),
        placed.to_string(),
        format!("{:.2}", nanos_to_s(total)),
        micros(quantile(&samples, 500_000)),
        micros(quantile(&samples, 990_000)),
        micros(quantile(&samples, 999_000)),
    ]);
}

#[expect(clippy::cast_precision_loss, reason = "a coordinate")]
fn float(count: usize) -> f64 {
    count as f64
}

#[expect(clippy::cast_precision_loss, reason = "seconds for people")]
fn nanos_to_s(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// A million placements of the mix into 100 000 empty machines; gives the seconds.
fn million(count: usize, machines: usize) -> f64 {
    let mut town = Town::new(machines);
    let started = monotonic();
    let (mut placed, mut apart) = (0, 0);
    while placed < count {
        let kind = town.kind();
        let mut ask = town.ask(kind);
        if kind == APART {
            // A new container after so many replicas.
            if apart % APART_REPLICAS == 0 {
                town.spreads.push(town.engine.spread(STRICTLY_APART));
            }
            apart += 1;
            ask.spread = town.spreads.last().copied();
        }
        if let Some(choice) = town.engine.choose(&ask) {
            town.engine.take(&ask, choice);
            placed += 1;
        }
    }
    nanos_to_s(nanos(started))
}

pub(crate) fn run(context: &Context) -> anyhow::Result<Outcome> {
    let sizes: &[usize] = if context.is_quick {
        &[1_000, 10_000]
    } else {
        &[1_000, 10_000, 100_000, 1_000_000]
    };
    let count = if context.is_quick { 2_000 } else { 20_000 };
    let columns = [
        "kind",
        "machines",
        "fill %",
        "p50",
        "p99",
        "p99.9",
        "max",
        "resp. p50",
        "resp. p99",
        "resp. p99.9",
        "resp. max",
    ];
    let mut table = Table::new("Decision and response time, microseconds", &columns);
    // p99 of the decision by kind, size and fill.
    let mut p99: Vec<Vec<(usize, u64, u64)>> = vec![vec![]; KINDS.len()];
    let mut worst_p50 = 0;
    for &machines in sizes {
        let mut town = Town::new(machines);
        for fill in [50, 80, 95, 99] {
            town.fill(fill);
            for (kind, name) in KINDS.iter().enumerate() {
                let fill = town.percent(kind);
                let sample = churn(&mut town, kind, count);
                let at = |sorted: &[u64]| {
                    [500_000, 990_000, 999_000, 1_000_000].map(|ppm| micros(quantile(sorted, ppm)))
                };
                let cells = [(*name).to_owned(), machines.to_string(), fill.to_string()];
                table.row(
                    cells
                        .into_iter()
                        .chain(at(&sample.decision))
                        .chain(at(&sample.response)),
                );
                let median = quantile(&sample.decision, 500_000);
                if machines == 100_000 && kind != NEW_SHAPE {
                    worst_p50 = worst_p50.max(median);
                }
                p99[kind].push((machines, fill, quantile(&sample.decision, 990_000)));
            }
        }
    }
    let mut storm = Table::new(
        "Loss of one of three zones at 60 % fill: everything that is not bound to it placed elsewhere, back to back",
        &[
            "machines",
            "replicas",
            "placed again",
            "seconds",
            "p50 us",
            "p99 us",
            "p99.9 us",
        ],
    );
    for &machines in sizes.iter().filter(|machines| **machines <= 100_000) {
        zone_loss(machines, &mut storm);
    }
    let (many, into) = if context.is_quick {
        (50_000, 10_000)
    } else {
        (1_000_000, 100_000)
    };
    let seconds = million(many, into);
    outcome(table, storm, &p99, (worst_p50, seconds, many, into))
}

fn outcome(
    table: Table,
    storm: Table,
    p99: &[Vec<(usize, u64, u64)>],
    (worst_p50, seconds, many, into): (u64, f64, usize, usize),
) -> anyhow::Result<Outcome> {
    let mut slopes = Table::new(
        "Growth of p99 from the smallest to the largest fleet, mean over the fills",
        &["kind", "slope of log p99 over log machines"],
    );
    let mut curves = vec![];
    let (mut steepest, mut slowest) = (f64::MIN, 0);
    for (kind, points) in p99.iter().enumerate() {
        let mut sizes: Vec<usize> = points.iter().map(|point| point.0).collect();
        sizes.dedup();
        let means: Vec<(usize, u64)> = sizes
            .iter()
            .map(|size| {
                let at: Vec<u64> = points
                    .iter()
                    .filter(|point| point.0 == *size)
                    .map(|point| point.2)
                    .collect();
                (
                    *size,
                    at.iter().sum::<u64>() / u64::try_from(at.len()).unwrap_or(1).max(1),
                )
            })
            .collect();
        let value = slope(&means);
        steepest = steepest.max(value);
        slopes.row([KINDS[kind].to_owned(), format!("{value:.3}")]);
        let at_100k = points
            .iter()
            .filter(|point| point.0 == 100_000)
            .map(|point| point.2);
        slowest = slowest.max(at_100k.max().unwrap_or(0));
        curves.push(Line {
            name: KINDS[kind].to_owned(),
            points: means
                .iter()
                .map(|(size, nanos)| (float(*size), nanos_to_s(*nanos) * 1e6))
                .collect(),
        });
    }
    let promises = promises(slowest, steepest, worst_p50, &(seconds, many, into));
    let svg = lines::draw_log("p99 of a decision", "machines", "microseconds", &curves)?;
    Ok(Outcome {
        text: format!(
            "Decisions of the real engine on one core, {ARRIVALS_PER_S} requests a second by a Poisson process; response times count from the intended arrival (no coordinated omission). Each kind is measured in churn at each fill. The index of a class takes 2 bytes for each machine beside the hot arrays."
        ),
        tables: vec![slopes, storm, table],
        promises,
        pictures: vec![Picture {
            file: "latency.svg".into(),
            title: "p99 of a decision by size of the fleet".into(),
            svg,
        }],
        missing: vec![],
    })
}

fn promises(
    slowest: u64,
    steepest: f64,
    worst_p50: u64,
    (seconds, many, into): &(f64, usize, usize),
) -> Vec<Promise> {
    let promise = |name: &str, value: String, bound: &str, held: bool| Promise {
        name: name.to_owned(),
        value,
        bound: bound.to_owned(),
        held,
    };
    vec![
        promise(
            "p99 of a decision at 100k machines, slowest kind and fill",
            format!("{} us", micros(slowest)),
            "<= 10 us",
            slowest <= 10_000,
        ),
        promise(
            "p50 of a decision at 100k machines, slowest kind and fill",
            format!("{} us", micros(worst_p50)),
            "<= 2 us",
            worst_p50 <= 2_000,
        ),
        promise(
            "slope of log p99 over log machines, steepest kind",
            format!("{steepest:.3}"),
            "<= 0.2",
            steepest <= 0.2,
        ),
        promise(
            "bytes per machine in the hot arrays",
            BYTES_PER_MACHINE.to_string(),
            "<= 64",
            BYTES_PER_MACHINE <= 64,
        ),
        promise(
            &format!("{many} placements of the mix into {into} machines on one core"),
            format!("{seconds:.2} s"),
            "< 10 s",
            *seconds < 10.0,
        ),
    ]
}
