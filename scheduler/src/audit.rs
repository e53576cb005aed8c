//! An independent, exact verifier of placements at the level of the engine.
//!
//! A [`Ledger`] is told of every machine, every placement and every release, and names each rule that one of them breaks.
//! It shares no code with [`crate::placement::engine`] but the plain records that machines and demands are written in: it
//! keeps whole replicas and counts anew what they hold, in 128 bits, each time it is asked. Slow on purpose; pure.
//!
//! Decisions of a cluster are verified by [`crate::check`]; this is for tests, benchmarks and the fuzz target.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::placement::engine::{Demand, GpuNeed, Machine, Row, Spread};

/// A rule that is broken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Breach {
    #[error("machine {0} is added and is there already")]
    MachineTwice(u32),
    #[error("machine {0} is in no fleet")]
    UnknownMachine(u32),
    #[error("the machine that was added is absurd: {0}")]
    AbsurdMachine(&'static str),
    #[error("the demand that was placed is absurd: {0}")]
    AbsurdDemand(&'static str),
    #[error("replica {0} is placed and is there already")]
    PlacedTwice(u64),
    #[error("replica {0} is released and is not there")]
    NotPlaced(u64),
    #[error("replica {replica} is released on machine {released} with devices {devices:#b} and is elsewhere")]
    ReleasedElsewhere {
        replica: u64,
        released: u32,
        devices: u8,
    },
    #[error("machine {0} takes no replicas")]
    Closed(u32),
    #[error("machine {machine} is of group {has}, group {wants} was asked for")]
    Group { machine: u32, has: u16, wants: u16 },
    #[error("machine {machine} is in zone {has}, zone {wants} was asked for")]
    Zone { machine: u32, has: u16, wants: u16 },
    #[error("machine {machine} has GPUs of model {has}, which will not do")]
    Model { machine: u32, has: u16 },
    #[error("machine {machine} lacks the labels {missing:#x}")]
    RequiredLabel { machine: u32, missing: u64 },
    #[error("machine {machine} has the forbidden labels {present:#x}")]
    ForbiddenLabel { machine: u32, present: u64 },
    #[error("machine {machine} gives {given} of {dimension} and has {has}")]
    OverCapacity {
        machine: u32,
        dimension: &'static str,
        given: u128,
        has: u128,
    },
    #[error("machine {machine} gives {given} devices, {asked} were asked for")]
    DeviceCount { machine: u32, asked: u32, given: u32 },
    #[error("machine {machine} has no device {device}")]
    NoDevice { machine: u32, device: u32 },
    #[error("device {device} of machine {machine} is given wholly and is not free")]
    DeviceTwice { machine: u32, device: u32 },
    #[error("device {device} of machine {machine} gives {given} thousandths and has {has}")]
    DeviceOver {
        machine: u32,
        device: u32,
        given: u128,
        has: u128,
    },
    #[error("machine {machine} runs {given} replicas that keep apart, at most {most} are allowed")]
    Crowded { machine: u32, given: u128, most: u128 },
    #[error("it was refused and fits on machine {0}")]
    FitsAfterAll(u32),
    #[error("machine {machine} says that {says} of {dimension} are free, {free} are")]
    WrongAccount {
        machine: u32,
        dimension: &'static str,
        says: u128,
        free: i128,
    },
}

/// A replica that asks for a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    pub demand: Demand,
    /// The container that keeps its replicas apart, by any number of the caller's, and its rule.
    pub spread: Option<(u32, Spread)>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    wish: Wish,
    /// A bit for each device.
    devices: u8,
}

#[derive(Debug, Clone)]
struct Seat {
    machine: Machine,
    is_open: bool,
    replicas: BTreeMap<u64, Held>,
}

/// Every machine and every replica that is placed.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    seats: BTreeMap<u32, Seat>,
    /// Machine of each replica.
    places: BTreeMap<u64, u32>,
}

/// Amounts that replicas hold of a machine, by name.
type Amounts = [(&'static str, i128); 6];

impl Ledger {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A machine that the engine has added and that takes replicas.
    pub fn add_machine(&mut self, number: u32, machine: &Machine) -> Vec<Breach> {
        let mut breaches: Vec<Breach> = absurdity(machine)
            .map(Breach::AbsurdMachine)
            .into_iter()
            .collect();
        let seat = Seat {
            machine: *machine,
            is_open: true,
            replicas: BTreeMap::new(),
        };
        match self.seats.entry(number) {
            Entry::Occupied(_) => breaches.push(Breach::MachineTwice(number)),
            Entry::Vacant(vacant) => {
                vacant.insert(seat);
            }
        }
        breaches
    }

    pub fn set_open(&mut self, number: u32, is_open: bool) {
        if let Some(seat) = self.seats.get_mut(&number) {
            seat.is_open = is_open;
        }
    }

    /// Replicas that are placed, their machines and devices.
    pub fn placed(&self) -> impl Iterator<Item = (u64, u32, u8)> {
        self.places
            .iter()
            .map(|(replica, machine)| (*replica, *machine, self.seats[machine].replicas[replica].devices))
    }

    /// Takes note of a placement and names every rule that it breaks. It counts as placed all the same.
    pub fn place(&mut self, replica: u64, wish: &Wish, machine: u32, devices: u8) -> Vec<Breach> {
        if self.places.contains_key(&replica) {
            return vec![Breach::PlacedTwice(replica)];
        }
        let Some(seat) = self.seats.get_mut(&machine) else {
            return vec![Breach::UnknownMachine(machine)];
        };
        let mut breaches: Vec<Breach> = nonsense(&wish.demand)
            .map(Breach::AbsurdDemand)
            .into_iter()
            .collect();
        breaches.extend(seat.breaches(machine, wish, devices));
        let held = Held { wish: *wish, devices };
        seat.replicas.insert(replica, held);
        self.places.insert(replica, machine);
        breaches
    }

    /// Takes note of a release.
    pub fn release(&mut self, replica: u64, machine: u32, devices: u8) -> Vec<Breach> {
        let Some(known) = self.places.get(&replica) else {
            return vec![Breach::NotPlaced(replica)];
        };
        let held = self.seats.get(known).and_then(|seat| seat.replicas.get(&replica));
        if *known != machine || held.is_none_or(|held| held.devices != devices) {
            return vec![Breach::ReleasedElsewhere {
                replica,
                released: machine,
                devices,
            }];
        }
        if let Some(seat) = self.seats.get_mut(&machine) {
            seat.replicas.remove(&replica);
        }
        self.places.remove(&replica);
        vec![]
    }

    /// Judges a refusal: names a machine that could take the replica. Looks at every machine and every device.
    #[must_use]
    pub fn refused(&self, wish: &Wish) -> Option<Breach> {
        let mut machines = self.seats.iter();
        let fitting = machines.find(|(number, seat)| seat.devices_for(**number, wish).is_some());
        fitting.map(|(number, _)| Breach::FitsAfterAll(*number))
    }

    /// Compares what the engine says is free on a machine with what is: its row, disk slots, addresses, host ports.
    #[must_use]
    pub fn account(&self, number: u32, row: &Row, counts: (u8, u8, u16)) -> Vec<Breach> {
        let Some(seat) = self.seats.get(&number) else {
            return vec![Breach::UnknownMachine(number)];
        };
        let says = [
            u128::from(row.cpu),
            row.memory.into(),
            row.ephemeral.into(),
            counts.0.into(),
            counts.1.into(),
            counts.2.into(),
        ];
        let mut breaches = vec![];
        let mut compare = |dimension, says: u128, free: i128| {
            if i128::try_from(says) != Ok(free) {
                breaches.push(Breach::WrongAccount {
                    machine: number,
                    dimension,
                    says,
                    free,
                });
            }
        };
        for (says, (dimension, free)) in says.into_iter().zip(seat.free()) {
            compare(dimension, says, free);
        }
        for (device, says) in row.devices.iter().enumerate() {
            let has = i128::from(seat.machine.usable.devices[device]);
            let given: i128 = seat
                .holders(device)
                .map(|held| i128::from(milli(&held.wish.demand)))
                .sum();
            compare("a device", u128::from(*says), has - given);
        }
        breaches
    }
}

impl Seat {
    /// What replicas have not taken; below zero when they took too much.
    fn free(&self) -> Amounts {
        let mut free = has(&self.machine);
        for held in self.replicas.values() {
            for ((_, free), (_, part)) in free.iter_mut().zip(asked(&held.wish.demand)) {
                *free -= part;
            }
        }
        free
    }

    /// Replicas that hold a device or a part of it.
    fn holders(&self, device: usize) -> impl Iterator<Item = &Held> {
        self.replicas
            .values()
            .filter(move |held| held.devices >> device & 1 == 1)
    }

    fn count_of(&self, container: u32) -> u128 {
        let of = |held: &&Held| held.wish.spread.is_some_and(|(other, _)| other == container);
        self.replicas.values().filter(of).count() as u128
    }

    /// Every rule that one replica more breaks.
    fn breaches(&self, number: u32, wish: &Wish, devices: u8) -> Vec<Breach> {
        let mut breaches = self.breaches_but_devices(number, wish);
        let asked = match wish.demand.gpu {
            GpuNeed::None => 0,
            GpuNeed::Whole(count) => u32::from(count),
            GpuNeed::Share(_) => 1,
        };
        let given = devices.count_ones();
        if asked != given {
            breaches.push(Breach::DeviceCount {
                machine: number,
                asked,
                given,
            });
        }
        for device in (0..8u32).filter(|device| devices >> device & 1 == 1) {
            breaches.extend(self.breach_of_device(number, wish, device));
        }
        breaches
    }

    fn breach_of_device(&self, machine: u32, wish: &Wish, device: u32) -> Option<Breach> {
        let index = usize::try_from(device).ok()?;
        let has = u128::from(*self.machine.usable.devices.get(index)?);
        if has == 0 {
            return Some(Breach::NoDevice { machine, device });
        }
        let given: u128 = self
            .holders(index)
            .map(|held| u128::from(milli(&held.wish.demand)))
            .sum();
        match wish.demand.gpu {
            GpuNeed::Whole(_) if given > 0 || has < 1000 => Some(Breach::DeviceTwice { machine, device }),
            GpuNeed::Share(milli) if given + u128::from(milli) > has => Some(Breach::DeviceOver {
                machine,
                device,
                given: given + u128::from(milli),
                has,
            }),
            GpuNeed::None | GpuNeed::Whole(_) | GpuNeed::Share(_) => None,
        }
    }

    fn breaches_but_devices(&self, number: u32, wish: &Wish) -> Vec<Breach> {
        let (demand, kind) = (&wish.demand, &self.machine.kind);
        let mut breaches = vec![];
        if !self.is_open {
            breaches.push(Breach::Closed(number));
        }
        if let Some(wants) = demand.group.filter(|group| *group != kind.group) {
            breaches.push(Breach::Group {
                machine: number,
                has: kind.group,
                wants,
            });
        }
        if let Some(wants) = demand.zone.filter(|zone| *zone != kind.zone) {
            breaches.push(Breach::Zone {
                machine: number,
                has: kind.zone,
                wants,
            });
        }
        let will_do = |model: u16| demand.models == 0 || (model < 64 && demand.models >> model & 1 == 1);
        if demand.gpu != GpuNeed::None && (kind.gpu_model == 0 || !will_do(kind.gpu_model)) {
            breaches.push(Breach::Model {
                machine: number,
                has: kind.gpu_model,
            });
        }
        let missing = demand.required & !kind.traits;
        if missing != 0 {
            breaches.push(Breach::RequiredLabel {
                machine: number,
                missing,
            });
        }
        let present = demand.forbidden & kind.traits;
        if present != 0 {
            breaches.push(Breach::ForbiddenLabel {
                machine: number,
                present,
            });
        }
        for (((dimension, has), (_, free)), (_, part)) in
            has(&self.machine).into_iter().zip(self.free()).zip(asked(demand))
        {
            // What others took too much of is their breach; what asks for nothing takes nothing.
            if part > 0 && part > free {
                breaches.push(Breach::OverCapacity {
                    machine: number,
                    dimension,
                    given: u128::try_from(has - free + part).unwrap_or(0),
                    has: u128::try_from(has).unwrap_or(0),
                });
            }
        }
        if let Some((container, rule)) = wish.spread {
            let given = self.count_of(container) + 1;
            if given > u128::from(rule.machine_max) {
                breaches.push(Breach::Crowded {
                    machine: number,
                    given,
                    most: rule.machine_max.into(),
                });
            }
        }
        breaches
    }

    /// Devices that would do; none when the replica cannot be here.
    fn devices_for(&self, number: u32, wish: &Wish) -> Option<u8> {
        if !self.breaches_but_devices(number, wish).is_empty() {
            return None;
        }
        let fitting = || (0..8u32).filter(|device| self.breach_of_device(number, wish, *device).is_none());
        let devices: Vec<u32> = match wish.demand.gpu {
            GpuNeed::None => return Some(0),
            GpuNeed::Whole(count) => {
                let devices: Vec<u32> = fitting().take(count.into()).collect();
                (devices.len() == usize::from(count)).then_some(devices)?
            }
            GpuNeed::Share(_) => vec![fitting().next()?],
        };
        Some(devices.into_iter().fold(0, |mask, device| mask | 1 << device))
    }
}

fn has(machine: &Machine) -> Amounts {
    let usable = &machine.usable;
    [
        ("cpu", usable.cpu.into()),
        ("memory", usable.memory.into()),
        ("ephemeral storage", usable.ephemeral.into()),
        ("disk slots", machine.disk_slots.into()),
        ("addresses", machine.addresses.into()),
        ("host ports", machine.host_ports.into()),
    ]
}

fn asked(demand: &Demand) -> Amounts {
    [
        ("cpu", demand.cpu.into()),
        ("memory", demand.memory.into()),
        ("ephemeral storage", demand.ephemeral.into()),
        ("disk slots", demand.disk_slots.into()),
        ("addresses", demand.addresses.into()),
        ("host ports", demand.host_ports.into()),
    ]
}

/// Thousandths of each device that a replica holds.
fn milli(demand: &Demand) -> u16 {
    match demand.gpu {
        GpuNeed::None => 0,
        GpuNeed::Whole(_) => 1000,
        GpuNeed::Share(milli) => milli,
    }
}

/// Bytes that nothing has or asks for: more than 4 PiB.
const PEBIBYTES_4: u64 = 4 << 50;

/// Why a demand must be refused whatever the fleet; none when it may be asked for.
#[must_use]
pub fn nonsense(demand: &Demand) -> Option<&'static str> {
    let gpu = match demand.gpu {
        GpuNeed::None => None,
        GpuNeed::Whole(count) => (count == 0 || count > 8).then_some("no machine has so many GPUs"),
        GpuNeed::Share(milli) => (milli == 0 || milli > 999).then_some("that is no share of a GPU"),
    };
    let nothing = (demand.cpu, demand.memory, demand.ephemeral) == (0, 0, 0) && demand.gpu == GpuNeed::None;
    let rules = [
        (nothing, "it asks for nothing"),
        (demand.cpu > u64::from(u32::MAX), "no machine has so much cpu"),
        (demand.memory > PEBIBYTES_4, "no machine has so much memory"),
        (demand.ephemeral > PEBIBYTES_4, "no machine has so much storage"),
        (
            demand.gpu == GpuNeed::None && demand.models != 0,
            "it names GPU models and wants no GPU",
        ),
        (
            demand.required & demand.forbidden != 0,
            "it requires what it forbids",
        ),
    ];
    gpu.or_else(|| rules.into_iter().find(|(holds, _)| *holds).map(|(_, text)| text))
}

/// Why a machine must be refused; none when it may join.
#[must_use]
pub fn absurdity(machine: &Machine) -> Option<&'static str> {
    let rows = [&machine.usable, &machine.scale];
    let any = |test: &dyn Fn(&Row) -> bool| rows.into_iter().any(test);
    let has_gpu = |row: &Row| row.devices.iter().any(|milli| *milli != 0);
    let rules = [
        (
            any(&|row| row.memory > PEBIBYTES_4),
            "more memory than any machine has",
        ),
        (
            any(&|row| row.ephemeral > PEBIBYTES_4),
            "more storage than any machine has",
        ),
        (
            any(&|row| row.devices.iter().any(|milli| *milli > 1000)),
            "a device of more than one device",
        ),
        (any(&has_gpu) && machine.kind.gpu_model == 0, "GPUs of no model"),
        (
            !has_gpu(&machine.scale) && machine.kind.gpu_model != 0,
            "a GPU model and no GPU by its profile",
        ),
        (
            machine.kind.gpu_model > 63,
            "a GPU model beyond those that can be told apart",
        ),
    ];
    rules.into_iter().find(|(holds, _)| *holds).map(|(_, text)| text)
}

#[cfg(any(test, fuzzing))]
pub mod session;
#[cfg(test)]
mod tests;
