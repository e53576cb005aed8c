//! Who decides where an arrival goes: the engine, and the rules that others use.

use berth_scheduler::placement::engine::{
    Ask, Choice, ClassId, Demand, Engine, Kind, Machine, MachineIdx, Row,
};
use berth_scheduler::placement::repack::search::Dice;

use super::trace::Flavour;

/// What the rules see of a machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) cpu: u64,
    pub(super) memory: u64,
    pub(super) is_on: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// The engine of this scheduler, by way of its public functions.
    Ours,
    /// Least left over, mean of the shares.
    BestFit,
    FirstFit,
    /// Most left over: what kube-scheduler does unless told otherwise (LeastAllocated).
    Spread,
    Random,
}

impl Rule {
    pub(super) const ALL: [Self; 5] = [
        Self::Ours,
        Self::BestFit,
        Self::FirstFit,
        Self::Spread,
        Self::Random,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::BestFit => "best fit",
            Self::FirstFit => "first fit",
            Self::Spread => "spread (least allocated)",
            Self::Random => "random",
        }
    }
}

pub(super) struct Policy {
    rule: Rule,
    engine: Engine,
    classes: Vec<ClassId>,
    flavours: Vec<Flavour>,
    profile: Flavour,
    dice: Dice,
    fits: Vec<usize>,
}

impl Policy {
    /// For `machines` machines of a profile, all of them off.
    pub(super) fn new(rule: Rule, machines: usize, profile: Flavour, flavours: &[Flavour]) -> Self {
        let mut engine = Engine::new();
        let mut classes = vec![];
        if rule == Rule::Ours {
            let cpu = u32::try_from(profile.cpu).expect("a machine of this profile exists");
            let usable = Row {
                cpu,
                memory: profile.memory,
                ..Row::default()
            };
            let machine = Machine {
                kind: Kind::default(),
                usable,
                scale: usable,
                disk_slots: 0,
                host_ports: 0,
                addresses: 0,
            };
            for _ in 0..machines {
                let index = engine.add_machine(&machine).expect("the profile is sound");
                engine.set_open(index, false);
            }
            for flavour in flavours {
                let demand = Demand {
                    cpu: flavour.cpu,
                    memory: flavour.memory,
                    ..Demand::default()
                };
                classes.push(engine.class(&demand).expect("the flavour is sound"));
            }
        }
        Self {
            rule,
            engine,
            classes,
            flavours: flavours.to_vec(),
            profile,
            dice: Dice::new(1),
            fits: vec![],
        }
    }

    fn ask(&self, flavour: usize) -> Ask {
        Ask {
            class: self.classes[flavour],
            spread: None,
            prefer: None,
        }
    }

    /// A machine that is on and has room.
    pub(super) fn choose(&mut self, flavour: usize, rooms: &[Room]) -> Option<usize> {
        let Flavour { cpu, memory } = self.flavours[flavour];
        let fits = |room: &Room| room.is_on && cpu <= room.cpu && memory <= room.memory;
        let left = |room: &Room| {
            let shares = [
                (room.cpu - cpu, self.profile.cpu),
                (room.memory - memory, self.profile.memory),
            ];
            shares
                .into_iter()
                .map(|(left, whole)| (u128::from(left) << 32) / u128::from(whole))
                .sum::<u128>()
        };
        let open = rooms.iter().enumerate().filter(|(_, room)| fits(room));
        match self.rule {
            Rule::Ours => {
                let choice = self.engine.choose(&self.ask(flavour))?;
                usize::try_from(choice.machine.0).ok()
            }
            Rule::FirstFit => open.map(|(machine, _)| machine).next(),
            Rule::BestFit => open
                .min_by_key(|(machine, room)| (left(room), *machine))
                .map(|(machine, _)| machine),
            Rule::Spread => open
                .min_by_key(|(machine, room)| (u128::MAX - left(room), *machine))
                .map(|(machine, _)| machine),
            Rule::Random => {
                self.fits.clear();
                self.fits.extend(open.map(|(machine, _)| machine));
                (!self.fits.is_empty()).then(|| self.fits[self.dice.below(self.fits.len())])
            }
        }
    }

    pub(super) fn take(&mut self, flavour: usize, machine: usize) {
        if self.rule == Rule::Ours {
            let choice = self.choice(machine);
            self.engine.take(&self.ask(flavour), choice);
        }
    }

    pub(super) fn release(&mut self, flavour: usize, machine: usize) {
        if self.rule == Rule::Ours {
            let choice = self.choice(machine);
            self.engine.release(&self.ask(flavour), choice);
        }
    }

    fn choice(&self, machine: usize) -> Choice {
        let index = MachineIdx(u32::try_from(machine).expect("machines can be counted"));
        Choice {
            machine: index,
            devices: berth_scheduler::placement::engine::DeviceSet::default(),
        }
    }

    pub(super) fn switch(&mut self, machine: usize, is_on: bool) {
        if self.rule == Rule::Ours {
            let index = self.choice(machine).machine;
            self.engine.set_open(index, is_on);
        }
    }
}
