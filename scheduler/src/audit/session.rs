//! A session with the engine that any bytes can stand for, with the [`Ledger`] as its judge. The fuzz target drives it
//! (`make fuzz`), and so do the tests, with a small corpus and with random bytes.
//!
//! Two engines are asked in step: one that is never prepared nor settled and so decides from block maxima alone, and one
//! that is. Both must choose alike.

use super::{Breach, Ledger, Wish, absurdity, nonsense};
use crate::placement::engine::{
    Ask, BYTES_MAX, CPU_MAX, Choice, ClassId, Demand, Engine, GpuNeed, Kind, Machine, MachineIdx, Mix, Row,
    Spread, SpreadId, Typical,
};

/// Machines of a session; more would make it slow and show nothing new.
const MACHINES_MAX: u32 = 400;
/// Actions of a session.
const ACTIONS_MAX: usize = 2000;

/// What happened in a session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// Machine and devices of each placement, in order.
    pub choices: Vec<(u32, u8)>,
    pub refusals: u32,
    pub releases: u32,
    pub machines: u32,
    /// Demands and machines that were turned away as absurd.
    pub absurd: u32,
}

/// Numbers out of bytes; zeros when they are used up.
struct Source<'a> {
    bytes: std::slice::Iter<'a, u8>,
}

impl Source<'_> {
    fn byte(&mut self) -> u8 {
        self.bytes.next().copied().unwrap_or(0)
    }

    fn is_empty(&self) -> bool {
        self.bytes.as_slice().is_empty()
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit.max(1)
    }

    fn wide(&mut self) -> u64 {
        (0..8).fold(0, |wide, _| wide << 8 | u64::from(self.byte()))
    }

    /// Mostly some units, sometimes a value at or beyond the edge.
    fn amount(&mut self, unit: u64, largest: u64) -> u64 {
        match self.byte() {
            0 => 0,
            1 => 1,
            2 => largest,
            3 => largest.saturating_add(1),
            4 => u64::MAX,
            5 => self.wide(),
            other => u64::from(other % 32) * unit,
        }
    }

    fn small(&mut self) -> u16 {
        match self.byte() {
            255 => u16::MAX,
            other => u16::from(other % 3),
        }
    }

    /// Mostly no label or one of the first few.
    fn labels(&mut self) -> u64 {
        match self.byte() {
            255 => self.wide(),
            other if other < 128 => 0,
            other => u64::from(other % 8),
        }
    }

    fn model(&mut self) -> u16 {
        const MODELS: [u16; 8] = [0, 0, 1, 2, 63, 64, 1, 2];
        MODELS[self.below(MODELS.len())]
    }

    fn demand(&mut self) -> Demand {
        let gpu = match self.byte() % 8 {
            0 => GpuNeed::Whole(self.byte() % 10),
            1 => GpuNeed::Share(u16::from(self.byte()) * 4),
            2 => GpuNeed::Share(500),
            3 => GpuNeed::Whole(1),
            _ => GpuNeed::None,
        };
        let models = match self.byte() % 8 {
            0 => self.wide(),
            1 => 1 << 1,
            2 if gpu != GpuNeed::None => 1 << 2,
            _ => 0,
        };
        let place = self.byte();
        Demand {
            cpu: self.amount(500_000, CPU_MAX),
            memory: self.amount(1 << 28, BYTES_MAX),
            ephemeral: self.amount(1 << 30, BYTES_MAX),
            gpu,
            models,
            group: (place & 3 == 1).then(|| self.small()),
            zone: (place & 12 == 4).then(|| self.small()),
            required: self.labels(),
            forbidden: self.labels(),
            disk_slots: self.byte() / 96,
            host_ports: u16::from(self.byte() / 96),
            addresses: self.byte() / 128,
        }
    }

    fn row(&mut self) -> Row {
        let cpu = self.amount(2_000_000, CPU_MAX);
        let mut devices = [0; 8];
        let count = [0, 0, 0, 1, 2, 4, 8, 8][self.below(8)];
        let milli = match self.byte() {
            0 => 1001,
            1 => u16::MAX,
            2 => 700,
            _ => 1000,
        };
        devices[..count].fill(milli);
        Row {
            cpu: u32::try_from(cpu).unwrap_or(u32::MAX),
            memory: self.amount(1 << 30, BYTES_MAX),
            ephemeral: self.amount(1 << 33, BYTES_MAX),
            devices,
        }
    }

    fn machine(&mut self) -> Machine {
        let usable = self.row();
        let scale = if self.byte() < 32 { self.row() } else { usable };
        let has_devices = scale.devices[0] > 0;
        let gpu_model = match (self.byte(), has_devices) {
            (0, _) => self.model(),
            (_, false) => 0,
            (_, true) => 1 + self.small() % 2,
        };
        Machine {
            kind: Kind {
                group: self.small(),
                zone: self.small(),
                gpu_model,
                traits: self.labels(),
            },
            usable,
            scale,
            disk_slots: self.byte() % 4,
            host_ports: u16::from(self.byte() % 4),
            addresses: self.byte() % 16,
        }
    }

    fn spread(&mut self) -> Spread {
        const MOST: [u32; 6] = [1, 1, 2, 3, 0, u32::MAX];
        let machine_share = u32::from(self.byte() % 4);
        Spread {
            machine_share,
            machine_max: MOST[self.below(MOST.len())],
            zones: self.byte() % 2 == 1,
        }
    }

    fn mix(&mut self) -> Mix {
        let shapes: Vec<Typical> = (0..self.below(6))
            .map(|_| Typical {
                cpu: u64::from(self.byte()) * 100_000,
                memory: u64::from(self.byte()) << 26,
                gpu: match self.byte() % 4 {
                    0 => GpuNeed::None,
                    1 => GpuNeed::Share(1 + u16::from(self.byte()) * 3),
                    other => GpuNeed::Whole(1 << (other - 2)),
                },
                models: 0,
                weight: u64::from(self.byte()),
            })
            .collect();
        Mix::new(&shapes)
    }
}

struct Session {
    /// Prepared and settled now and then.
    engine: Engine,
    /// Never.
    cold: Engine,
    ledger: Ledger,
    classes: Vec<ClassId>,
    spreads: Vec<(SpreadId, Spread)>,
    placed: Vec<(u64, Ask, Choice)>,
    next_replica: u64,
    summary: Summary,
}

/// Drives a session.
///
/// # Panics
/// When the engine breaks a rule, says something wrong of itself, or panics: that is what it is for.
#[must_use]
pub fn drive(bytes: &[u8]) -> Summary {
    let mut source = Source { bytes: bytes.iter() };
    let mix = source.mix();
    let mut session = Session {
        engine: Engine::with_mix(mix.clone()),
        cold: Engine::with_mix(mix),
        ledger: Ledger::new(),
        classes: vec![],
        spreads: vec![],
        placed: vec![],
        next_replica: 0,
        summary: Summary::default(),
    };
    for _ in 0..ACTIONS_MAX {
        if source.is_empty() {
            break;
        }
        session.act(&mut source);
    }
    session.finish()
}

fn judge(breaches: impl IntoIterator<Item = Breach>, what: &dyn std::fmt::Debug) {
    let breaches: Vec<String> = breaches.into_iter().map(|breach| breach.to_string()).collect();
    assert!(breaches.is_empty(), "{}; after {what:?}", breaches.join("; "));
}

impl Session {
    fn act(&mut self, source: &mut Source<'_>) {
        match source.byte() % 16 {
            0 => {
                let machine = source.machine();
                self.join(&machine, 1);
            }
            1 => {
                let (machine, count) = (source.machine(), source.byte());
                self.join(&machine, u32::from(count));
            }
            2 | 3 => self.learn(&source.demand()),
            4 => {
                let rule = source.spread();
                let id = self.engine.spread(rule);
                assert_eq!(id, self.cold.spread(rule));
                self.spreads.push((id, rule));
            }
            5..=8 => {
                let ask = self.ask(source);
                if let Some(ask) = ask {
                    self.place(&ask);
                }
            }
            9 => {
                let (ask, count) = (self.ask(source), source.byte());
                if let Some(ask) = ask {
                    // As many as there is room for, at most.
                    let _count = (0..count).take_while(|_| self.place(&ask)).count();
                }
            }
            10 | 11 if !self.placed.is_empty() => {
                let index = source.below(self.placed.len());
                self.release(index);
            }
            12 => self.churn(source),
            13 => {
                let (number, is_open) = (source.byte(), source.byte() % 2 == 1);
                self.open(u32::from(number), is_open);
            }
            14 if !self.classes.is_empty() => {
                let class = self.classes[source.below(self.classes.len())];
                self.engine.prepare(class);
            }
            15 => {
                let budget = u64::from(source.byte()) * 4;
                self.engine.settle(budget);
            }
            _ => {}
        }
    }

    fn ask(&self, source: &mut Source<'_>) -> Option<Ask> {
        let (class, spread, prefer) = (source.byte(), source.byte(), source.byte());
        let class = *self.classes.get(usize::from(class) % self.classes.len().max(1))?;
        let spread = self
            .spreads
            .get(usize::from(spread) % (self.spreads.len() * 2 + 1));
        let machine = u32::from(prefer);
        Some(Ask {
            class,
            spread: spread.map(|(id, _)| *id),
            prefer: (machine < self.summary.machines && prefer % 4 == 3).then_some(MachineIdx(machine)),
        })
    }

    fn wish(&self, ask: &Ask) -> Wish {
        let rule = ask.spread.and_then(|id| {
            let number = self.spreads.iter().position(|(known, _)| *known == id)?;
            Some((u32::try_from(number).ok()?, self.spreads[number].1))
        });
        Wish {
            demand: *self.engine.demand(ask.class),
            spread: rule,
        }
    }

    fn join(&mut self, machine: &Machine, count: u32) {
        for _ in 0..count {
            if self.summary.machines >= MACHINES_MAX {
                return;
            }
            let added = self.engine.add_machine(machine);
            assert_eq!(added, self.cold.add_machine(machine));
            match (added, absurdity(machine)) {
                (Ok(index), None) => {
                    judge(self.ledger.add_machine(index.0, machine), machine);
                    self.summary.machines += 1;
                }
                (Err(faults), Some(_)) => {
                    assert!(!faults.is_empty(), "refused without a fault");
                    self.summary.absurd += 1;
                    return;
                }
                (added, absurdity) => {
                    panic!("{machine:?}: the engine says {added:?}, the audit {absurdity:?}")
                }
            }
        }
    }

    fn learn(&mut self, demand: &Demand) {
        let class = self.engine.class(demand);
        assert_eq!(class, self.cold.class(demand));
        match (class, nonsense(demand)) {
            (Ok(class), None) => self.classes.push(class),
            (Err(faults), Some(_)) => {
                assert!(!faults.is_empty(), "refused without a fault");
                self.summary.absurd += 1;
            }
            (class, nonsense) => panic!("{demand:?}: the engine says {class:?}, the audit {nonsense:?}"),
        }
    }

    /// Asks for a place and takes it; whether there was one.
    fn place(&mut self, ask: &Ask) -> bool {
        let choice = self.engine.choose(ask);
        assert_eq!(
            choice,
            self.cold.choose(ask),
            "with trees and without, for {ask:?}"
        );
        let wish = self.wish(ask);
        let Some(choice) = choice else {
            judge(self.ledger.refused(&wish), &wish);
            self.summary.refusals += 1;
            return false;
        };
        let replica = self.next_replica;
        self.next_replica += 1;
        judge(
            self.ledger
                .place(replica, &wish, choice.machine.0, choice.devices.0),
            &wish,
        );
        self.engine.take(ask, choice);
        self.cold.take(ask, choice);
        self.account(choice.machine);
        self.placed.push((replica, *ask, choice));
        self.summary.choices.push((choice.machine.0, choice.devices.0));
        true
    }

    fn release(&mut self, index: usize) {
        let (replica, ask, choice) = self.placed.swap_remove(index);
        self.engine.release(&ask, choice);
        self.cold.release(&ask, choice);
        judge(
            self.ledger.release(replica, choice.machine.0, choice.devices.0),
            &choice,
        );
        self.account(choice.machine);
        self.summary.releases += 1;
    }

    /// Many changes in a row, so that the logs of the cells grow long.
    fn churn(&mut self, source: &mut Source<'_>) {
        let (ask, count) = (self.ask(source), source.byte());
        if let Some(ask) = ask {
            for _ in 0..count {
                if !self.place(&ask) {
                    return;
                }
                self.release(self.placed.len() - 1);
            }
        }
    }

    fn open(&mut self, number: u32, is_open: bool) {
        if number < self.summary.machines {
            self.engine.set_open(MachineIdx(number), is_open);
            self.cold.set_open(MachineIdx(number), is_open);
            self.ledger.set_open(number, is_open);
            assert_eq!(self.engine.is_open(MachineIdx(number)), is_open);
        }
    }

    fn account(&self, machine: MachineIdx) {
        let (row, counts) = (self.engine.row(machine), self.engine.counts(machine));
        judge(self.ledger.account(machine.0, &row, counts), &machine);
    }

    /// Every machine says what is true, now and when all is given back.
    fn finish(mut self) -> Summary {
        for number in 0..self.summary.machines {
            self.account(MachineIdx(number));
        }
        while !self.placed.is_empty() {
            self.release(self.placed.len() - 1);
        }
        for number in 0..self.summary.machines {
            self.account(MachineIdx(number));
        }
        self.summary
    }
}
