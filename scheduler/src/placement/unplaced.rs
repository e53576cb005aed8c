//! Why a replica found no machine, as data: counts, the nearest miss, what would help.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use berth_api::id::{GroupId, Label, MachineId, ReplicaId, Zone};
use berth_api::machine::MachineStatus;
use berth_api::units::{Bytes, Cpu};

use super::engine::{Demand, DemandFault};
use super::fleet::{Fleet, Group, Slot};
use super::{Filter, Request};
use crate::world::Allocated;

/// The outcome of a request that no machine could take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unplaced {
    pub why: Why,
    /// Machines that each filter ruled out first, in the order of the filters; only those above zero.
    pub counts: Vec<(Filter, u32)>,
    /// For each filter on an amount, the machine that came closest.
    pub nearest: Vec<Miss>,
    /// The machine that lacks least of all that run, and everything that it lacks.
    pub smallest: Option<Shortfall>,
    pub would_help: Vec<Help>,
    /// Status of the machines that the status ruled out, with how many have it.
    pub statuses: Vec<(MachineStatus, u32)>,
    /// Machines of the group.
    pub machines: u32,
    /// Where the volume is that binds it to a zone.
    pub bound_to: Option<(String, Zone)>,
    /// It wants a machine for itself.
    pub is_exclusive: bool,
}

/// All that one machine lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortfall {
    pub machine_id: MachineId,
    pub misses: Vec<Miss>,
}

/// The main reason, most specific first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// No fleet could ever take what it asks for.
    Impossible {
        faults: Vec<String>,
    },
    /// Another replica may still write to the volume.
    VolumeInUse {
        by: ReplicaId,
    },
    /// The cluster has no such group.
    NoGroup {
        group: GroupId,
    },
    /// The group has no machine yet.
    GroupEmpty {
        group: GroupId,
        max_size: u32,
    },
    /// Not even an empty machine of the group would do.
    LargerThanMachine {
        group: GroupId,
        miss: Miss,
    },
    /// No machine of the group takes replicas now.
    /// The labels of every machine of the group, or of the group where it has none, rule it out.
    NoLabel {
        group: GroupId,
        /// What is required and no machine has.
        missing: Vec<Label>,
        /// What is forbidden and there is.
        present: Vec<Label>,
    },
    NoneRunning {
        group: GroupId,
        machines: u32,
    },
    NoRoom {
        group: GroupId,
        machines: u32,
    },
}

/// How much a machine lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    pub filter: Filter,
    /// None for the largest that a machine of the group could have.
    pub machine_id: Option<MachineId>,
    pub has: u64,
    pub needs: u64,
}

/// What would end the wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Help {
    AddMachine {
        group: GroupId,
        /// Where its volume is.
        zone: Option<Zone>,
        machines: u32,
        max_size: u32,
    },
    RaiseMaximum {
        group: GroupId,
        max_size: u32,
    },
    AskForLess {
        filter: Filter,
        at_most: u64,
    },
    MachineBack {
        machine_id: MachineId,
        status: MachineStatus,
    },
    /// One machine lacks only this: free it there, or ask for what it has.
    FreeOn {
        shortfall: Shortfall,
    },
    /// The machines of the group hold as many disks as they can.
    FreeDisk,
    StopWriter {
        by: ReplicaId,
    },
    FreePort,
    CreateGroup {
        group: GroupId,
    },
    /// The declaration must change.
    Redeclare,
    GpuGroup {
        gpu_type: String,
    },
    /// Machines of the group with these labels, and without those.
    Label {
        group: GroupId,
        required: Vec<Label>,
        forbidden: Vec<Label>,
    },
}

impl Unplaced {
    fn because(why: Why, would_help: Vec<Help>) -> Self {
        Self {
            why,
            counts: vec![],
            nearest: vec![],
            smallest: None,
            would_help,
            statuses: vec![],
            machines: 0,
            bound_to: None,
            is_exclusive: false,
        }
    }

    pub(super) fn volume_in_use(by: ReplicaId) -> Self {
        Self::because(Why::VolumeInUse { by: by.clone() }, vec![Help::StopWriter { by }])
    }

    pub(super) fn impossible(faults: &[DemandFault]) -> Self {
        let faults = faults.iter().map(ToString::to_string).collect();
        Self::because(Why::Impossible { faults }, vec![Help::Redeclare])
    }

    /// Invariant: a filter rules out each machine of the fleet.
    pub(super) fn of(fleet: &Fleet, request: &Request<'_>) -> Self {
        let need = Need::of(fleet, request);
        let mut by_filter: BTreeMap<Filter, Vec<&Slot>> = BTreeMap::new();
        for slot in fleet.slots() {
            let filter = need.verdict(fleet, slot);
            let filter = filter.expect("no machine is left for an unplaced request");
            by_filter.entry(filter).or_default().push(slot);
        }
        let counts = by_filter.iter().map(|(filter, slots)| (*filter, count(slots)));
        let nearest = by_filter.iter().filter_map(|(filter, slots)| {
            let miss = |slot: &&Slot| need.miss(*filter, slot, &fleet.free(slot)?);
            // The first of those with the most, by machine id.
            slots.iter().filter_map(miss).rev().max_by_key(|miss| miss.has)
        });
        let nearest = nearest.collect();
        let mut statuses: BTreeMap<MachineStatus, u32> = BTreeMap::new();
        for slot in by_filter.get(&Filter::Status).into_iter().flatten() {
            *statuses.entry(slot.status).or_default() += 1;
        }
        let mut unplaced = Self {
            counts: counts.collect(),
            nearest,
            smallest: smallest(fleet, &need, &by_filter),
            statuses: statuses.into_iter().collect(),
            machines: count(&members(fleet, request)),
            bound_to: need
                .volume
                .map(|(volume, zone)| (volume.to_owned(), zone.clone())),
            is_exclusive: request.spec.is_exclusive(),
            ..Self::because(why(fleet, request, &by_filter), vec![])
        };
        unplaced.would_help = helps(fleet, request, &unplaced, &by_filter);
        unplaced
    }
}

/// What a machine must have for a request, beside the amounts.
pub(super) struct Need<'a> {
    request: &'a Request<'a>,
    demand: Demand,
    /// The disk and its zone.
    volume: Option<(&'a str, &'a Zone)>,
}

impl<'a> Need<'a> {
    pub(super) fn of(fleet: &Fleet, request: &'a Request<'a>) -> Self {
        let volume = request.ordinal.and_then(|ordinal| request.spec.volume(ordinal));
        Self {
            request,
            demand: fleet.demand(request),
            volume: volume.and_then(|volume| Some((volume.volume.identity(), volume.volume.zone()?))),
        }
    }

    /// The first filter that rules the machine out; none when it can take the replica. Says in words what the engine
    /// decides by numbers: a test holds them together.
    pub(super) fn verdict(&self, fleet: &Fleet, slot: &Slot) -> Option<Filter> {
        let spec = self.request.spec;
        let gpu = spec
            .resources
            .gpu
            .as_ref()
            .filter(|_| self.request.amounts.gpus_milli() > 0);
        let stands_out = [
            (Filter::Group, slot.group != spec.capacity_group),
            (
                Filter::Zone,
                self.volume.is_some_and(|(_, zone)| *zone != slot.zone),
            ),
            (
                Filter::GpuType,
                gpu.is_some_and(|gpu| slot.gpu_type.as_ref() != Some(&gpu.kind)),
            ),
            (
                Filter::Label,
                !Fleet::is_allowed(spec.placement.as_ref(), &slot.labels),
            ),
            (Filter::Status, slot.status != MachineStatus::Running),
            (
                Filter::Exclusive,
                slot.is_held_alone || spec.is_exclusive() && !slot.is_empty(),
            ),
        ];
        let (Some(free), Some((disks, addresses, ports))) = (fleet.free(slot), fleet.counts(slot)) else {
            let known = stands_out.into_iter().find(|(_, is_out)| *is_out);
            return Some(known.map_or(Filter::Absurd, |(filter, _)| filter));
        };
        let amounts = AMOUNTS.map(|filter| {
            let lacks = amount(filter, &self.request.amounts) > room(filter, &free);
            (filter, lacks)
        });
        let counted = [
            (Filter::DiskSlot, disks < self.demand.disk_slots),
            (Filter::HostPort, ports < self.demand.host_ports),
            (Filter::Address, addresses < self.demand.addresses),
        ];
        let mut all = stands_out.into_iter().chain(amounts).chain(counted);
        all.find(|(_, is_out)| *is_out).map(|(filter, _)| filter)
    }

    fn miss(&self, filter: Filter, slot: &Slot, free: &Allocated) -> Option<Miss> {
        Some(Miss {
            filter,
            machine_id: Some(slot.machine_id.clone()),
            has: room(filter, free)?,
            needs: amount(filter, &self.request.amounts)?,
        })
    }
}

/// The filters on amounts, in their order.
const AMOUNTS: [Filter; 5] = [
    Filter::Cpu,
    Filter::Memory,
    Filter::Ephemeral,
    Filter::GpuCount,
    Filter::GpuShare,
];

/// Of the running machines that lack nothing but amounts, the one whose lack is the smallest share of its profile, over the
/// dimension that it lacks most; among equals the first.
fn smallest(fleet: &Fleet, need: &Need<'_>, by_filter: &BTreeMap<Filter, Vec<&Slot>>) -> Option<Shortfall> {
    let slots = AMOUNTS
        .iter()
        .filter_map(|filter| by_filter.get(filter))
        .flatten();
    let shortfalls = slots.filter_map(|slot| {
        let free = fleet.free(slot)?;
        let misses = AMOUNTS
            .iter()
            .filter_map(|filter| need.miss(*filter, slot, &free));
        let misses: Vec<Miss> = misses.filter(|miss| miss.needs > miss.has).collect();
        let lacks = misses.iter().filter_map(|miss| {
            let whole = u128::from(room(miss.filter, &slot.usable)?.max(1));
            Some(u128::from(miss.needs - miss.has) * 1_000_000 / whole)
        });
        Some((lacks.max()?, slot.machine_id.clone(), misses))
    });
    let best = shortfalls.min_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)))?;
    Some(Shortfall {
        machine_id: best.1,
        misses: best.2,
    })
}

fn members<'a>(fleet: &'a Fleet, request: &Request<'_>) -> Vec<&'a Slot> {
    let group = &request.spec.capacity_group;
    fleet.slots().iter().filter(|slot| slot.group == *group).collect()
}

fn why(fleet: &Fleet, request: &Request<'_>, by_filter: &BTreeMap<Filter, Vec<&Slot>>) -> Why {
    let group = request.spec.capacity_group.clone();
    let Some(known) = fleet.groups.get(&group) else {
        return Why::NoGroup { group };
    };
    let members = members(fleet, request);
    for filter in AMOUNTS {
        let sizes = members.iter().map(|slot| &slot.usable);
        // A group without machines is judged by its profile, else by what its machines really offer.
        let largest = sizes.filter_map(|usable| room(filter, usable)).max();
        let has = largest.or_else(|| room(filter, &known.profile)).unwrap_or(0);
        let needs = amount(filter, &request.amounts).unwrap_or(0);
        if needs > has {
            let miss = Miss {
                filter,
                machine_id: None,
                has,
                needs,
            };
            return Why::LargerThanMachine { group, miss };
        }
    }
    if let Some(why) = no_label(known, request, &members) {
        return why;
    }
    if members.is_empty() {
        return Why::GroupEmpty {
            group,
            max_size: known.max_size,
        };
    }
    let machines = count(&members);
    let not_running = by_filter.get(&Filter::Status).map_or(0, |slots| count(slots));
    if not_running == machines {
        Why::NoneRunning { group, machines }
    } else {
        Why::NoRoom { group, machines }
    }
}

/// When labels alone rule out every machine that the group has, or would have.
fn no_label(group: &Group, request: &Request<'_>, members: &[&Slot]) -> Option<Why> {
    let rules = request.spec.placement.as_ref()?;
    let of_members: Vec<&BTreeSet<Label>> = if members.is_empty() {
        vec![&group.labels]
    } else {
        members.iter().map(|slot| &slot.labels).collect()
    };
    let is_out = |labels: &&BTreeSet<Label>| !Fleet::is_allowed(Some(rules), labels);
    if !of_members.iter().all(is_out) {
        return None;
    }
    let anywhere = |label: &&Label| of_members.iter().any(|labels| labels.contains(*label));
    let required = rules.requires.iter();
    let mut missing: Vec<Label> = required
        .clone()
        .filter(|label| !anywhere(label))
        .cloned()
        .collect();
    let present: Vec<Label> = rules.forbids.iter().filter(anywhere).cloned().collect();
    if missing.is_empty() && present.is_empty() {
        // Each is somewhere, and nowhere are all of them.
        missing = required.cloned().collect();
    }
    Some(Why::NoLabel {
        group: request.spec.capacity_group.clone(),
        missing,
        present,
    })
}

fn label_help(group: &GroupId, required: &[Label], forbidden: &[Label]) -> String {
    let mut parts = vec![];
    if !required.is_empty() {
        parts.push(format!("the labels {}", words(required)));
    }
    if !forbidden.is_empty() {
        parts.push(format!("none of the labels {}", words(forbidden)));
    }
    format!(
        "give a machine of group {group} {}, by its registration or by its group; or ask for others",
        parts.join(" and ")
    )
}

fn words(labels: &[Label]) -> String {
    let labels: Vec<&str> = labels.iter().map(Label::as_str).collect();
    labels.join(", ")
}

fn helps(
    fleet: &Fleet,
    request: &Request<'_>,
    unplaced: &Unplaced,
    by_filter: &BTreeMap<Filter, Vec<&Slot>>,
) -> Vec<Help> {
    match &unplaced.why {
        Why::NoGroup { group } => vec![Help::CreateGroup { group: group.clone() }],
        Why::LargerThanMachine { miss, .. } if miss.has == 0 && is_about_gpus(miss.filter) => {
            let gpu = request.spec.resources.gpu.as_ref();
            let help = gpu.map(|gpu| Help::GpuGroup {
                gpu_type: gpu.kind.clone(),
            });
            help.into_iter().collect()
        }
        Why::LargerThanMachine { miss, .. } => vec![Help::AskForLess {
            filter: miss.filter,
            at_most: miss.has,
        }],
        Why::VolumeInUse { by } => vec![Help::StopWriter { by: by.clone() }],
        Why::Impossible { .. } => vec![Help::Redeclare],
        Why::NoLabel { group, .. } => {
            let rules = request.spec.placement.as_ref();
            let list = |labels: &BTreeSet<Label>| labels.iter().cloned().collect();
            vec![Help::Label {
                group: group.clone(),
                required: rules.map_or_else(Vec::new, |rules| list(&rules.requires)),
                forbidden: rules.map_or_else(Vec::new, |rules| list(&rules.forbids)),
            }]
        }
        Why::GroupEmpty { .. } | Why::NoneRunning { .. } | Why::NoRoom { .. } => {
            room_helps(fleet, request, unplaced, by_filter)
        }
    }
}

fn is_about_gpus(filter: Filter) -> bool {
    matches!(filter, Filter::GpuCount | Filter::GpuShare)
}

fn room_helps(
    fleet: &Fleet,
    request: &Request<'_>,
    unplaced: &Unplaced,
    by_filter: &BTreeMap<Filter, Vec<&Slot>>,
) -> Vec<Help> {
    let group = &request.spec.capacity_group;
    let mut helps = vec![];
    for slot in by_filter.get(&Filter::Status).into_iter().flatten() {
        helps.push(Help::MachineBack {
            machine_id: slot.machine_id.clone(),
            status: slot.status,
        });
    }
    let known = fleet.groups.get(group);
    let gpu = request.spec.resources.gpu.as_ref();
    let offered = known.and_then(|group| group.gpu_type.as_ref());
    if let Some(gpu) = gpu.filter(|gpu| offered != Some(&gpu.kind)) {
        helps.push(Help::GpuGroup {
            gpu_type: gpu.kind.clone(),
        });
        return helps;
    }
    if let Some(shortfall) = &unplaced.smallest {
        helps.push(Help::FreeOn {
            shortfall: shortfall.clone(),
        });
    }
    if by_filter.contains_key(&Filter::HostPort) {
        helps.push(Help::FreePort);
    }
    if by_filter.contains_key(&Filter::DiskSlot) {
        helps.push(Help::FreeDisk);
    }
    let (machines, max_size) = (unplaced.machines, known.map_or(0, |group| group.max_size));
    let group = group.clone();
    helps.push(if machines < max_size {
        Help::AddMachine {
            group,
            zone: unplaced.bound_to.as_ref().map(|(_, zone)| zone.clone()),
            machines,
            max_size,
        }
    } else {
        Help::RaiseMaximum { group, max_size }
    });
    helps
}

fn count(slots: &[&Slot]) -> u32 {
    u32::try_from(slots.len()).expect("a cluster has fewer than 2^32 machines")
}

/// What there is of the dimension that a filter is about, for one replica; none for filters that are not about an amount.
fn room(filter: Filter, of: &Allocated) -> Option<u64> {
    match filter {
        Filter::GpuShare => Some(of.largest_share().into()),
        _ => amount(filter, of),
    }
}

/// What is asked for of the dimension that a filter is about; none for filters that are not about an amount.
fn amount(filter: Filter, of: &Allocated) -> Option<u64> {
    match filter {
        Filter::Cpu => Some(of.cpu.micros()),
        Filter::Memory => Some(of.memory.get()),
        Filter::Ephemeral => Some(of.ephemeral.get()),
        Filter::GpuCount => Some(of.gpus.into()),
        Filter::GpuShare => Some(of.gpu_share_milli.into()),
        Filter::Group
        | Filter::Zone
        | Filter::GpuType
        | Filter::Label
        | Filter::Status
        | Filter::Exclusive
        | Filter::Absurd
        | Filter::DiskSlot
        | Filter::HostPort
        | Filter::Address => None,
    }
}

/// An amount in the unit of its dimension.
fn number(filter: Filter, amount: u64) -> String {
    match filter {
        Filter::Cpu => Cpu::from_micros(amount).to_string(),
        Filter::Memory | Filter::Ephemeral => Bytes::new(amount).rounded().to_string(),
        Filter::GpuShare => thousandths(amount),
        _ => amount.to_string(),
    }
}

/// Thousandths as a decimal.
pub(crate) fn thousandths(amount: u64) -> String {
    Cpu::from_micros(amount.saturating_mul(1000)).to_string()
}

/// An amount with its unit.
fn quantity(filter: Filter, amount: u64) -> String {
    match filter {
        Filter::Cpu => format!("{} vCPU", Cpu::from_micros(amount)),
        Filter::Memory => format!("{} of memory", Bytes::new(amount).rounded()),
        Filter::Ephemeral => format!("{} of ephemeral storage", Bytes::new(amount).rounded()),
        Filter::GpuCount if amount == 1 => "1 GPU".to_owned(),
        Filter::GpuCount => format!("{amount} GPUs"),
        Filter::GpuShare => format!("{} of a GPU", thousandths(amount)),
        Filter::Group
        | Filter::Zone
        | Filter::GpuType
        | Filter::Label
        | Filter::Status
        | Filter::Exclusive
        | Filter::Absurd
        | Filter::DiskSlot
        | Filter::HostPort
        | Filter::Address => amount.to_string(),
    }
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.machine_id {
            Some(id) => write!(f, "{id} has {} free", quantity(self.filter, self.has))?,
            None => write!(f, "the largest has {}", quantity(self.filter, self.has))?,
        }
        write!(f, ", {} needed", quantity(self.filter, self.needs))
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VolumeInUse { by } => write!(f, "replica {by} may still write to its volume"),
            Self::Impossible { faults } => write!(f, "no machine could ever take it: {}", faults.join("; ")),
            Self::NoGroup { group } => write!(f, "the cluster has no capacity group {group}"),
            Self::GroupEmpty { group, max_size } => {
                write!(f, "capacity group {group} has no machine (of at most {max_size})")
            }
            Self::LargerThanMachine { group, miss } => {
                write!(
                    f,
                    "it is larger than any machine of capacity group {group}: {miss}"
                )
            }
            Self::NoLabel {
                group,
                missing,
                present,
            } => match (missing.is_empty(), present.is_empty()) {
                (false, true) => write!(
                    f,
                    "no machine of capacity group {group} has label {}",
                    words(missing)
                ),
                (true, _) => write!(
                    f,
                    "every machine of capacity group {group} that it could use has a label that it forbids: {}",
                    words(present)
                ),
                (false, false) => write!(
                    f,
                    "no machine of capacity group {group} has label {} and is without {}",
                    words(missing),
                    words(present)
                ),
            },
            Self::NoneRunning { group, machines } => {
                write!(
                    f,
                    "no machine of capacity group {group} takes replicas now (it has {machines})"
                )
            }
            Self::NoRoom { group, machines } => {
                write!(f, "0 of {machines} machines of capacity group {group} fit")
            }
        }
    }
}

impl Unplaced {
    /// What a filter ruled out, as a part of a sentence.
    fn phrase(&self, filter: Filter, count: u32) -> String {
        let (lack, are) = if count == 1 {
            ("lacks", "is")
        } else {
            ("lack", "are")
        };
        let nearest = self.nearest.iter().find(|miss| miss.filter == filter);
        let largest = nearest.map_or_else(String::new, |miss| {
            let (has, needs) = (number(filter, miss.has), number(filter, miss.needs));
            format!(" (largest free {has} of {needs})")
        });
        match filter {
            Filter::Group => format!("{count} {are} of other groups"),
            Filter::Zone => match &self.bound_to {
                Some((volume, zone)) => {
                    format!("{count} {are} in another zone than {volume}, which is in {zone}")
                }
                None => format!("{count} {are} in another zone"),
            },
            Filter::GpuType => format!("{count} {lack} GPUs of its type"),
            Filter::Status => {
                let statuses = self.statuses.iter().map(|(status, count)| {
                    let are = if *count == 1 { "is" } else { "are" };
                    format!("{count} {are} {status}")
                });
                statuses.collect::<Vec<_>>().join(", ")
            }
            Filter::Label => format!("{count} {lack} a label that it requires, or have one that it forbids"),
            Filter::Exclusive if self.is_exclusive => {
                let run = if count == 1 { "runs" } else { "run" };
                format!("{count} {run} other replicas, and it wants a machine for itself")
            }
            Filter::Exclusive => format!("{count} {are} another's that wants the machine for itself"),
            Filter::Absurd => format!("{count} reported more than any machine has"),
            Filter::Cpu => format!("{count} {lack} cpu{largest}"),
            Filter::Memory => format!("{count} {lack} memory{largest}"),
            Filter::Ephemeral => format!("{count} {lack} ephemeral storage{largest}"),
            Filter::GpuCount => format!("{count} {lack} free GPUs{largest}"),
            Filter::GpuShare => format!("{count} {lack} a GPU with so much free{largest}"),
            Filter::DiskSlot => format!("{count} {lack} a slot for one more disk"),
            Filter::HostPort => format!("{count} {lack} a free host port"),
            Filter::Address => format!("{count} {lack} a free address"),
        }
    }
}

/// The reason and the counts in one sentence.
impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.why)?;
        let counts = self.counts.iter().filter(|(filter, _)| *filter != Filter::Group);
        let phrases: Vec<String> = counts
            .map(|(filter, count)| self.phrase(*filter, *count))
            .collect();
        if matches!(self.why, Why::NoRoom { .. } | Why::NoneRunning { .. }) && !phrases.is_empty() {
            write!(f, ": {}", phrases.join(", "))?;
        }
        Ok(())
    }
}

impl Shortfall {
    /// What would end it.
    fn help(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |amount: &dyn Fn(&Miss) -> u64| {
            let amounts = self.misses.iter().map(|miss| quantity(miss.filter, amount(miss)));
            amounts.collect::<Vec<_>>().join(" and ")
        };
        let id = &self.machine_id;
        match self.misses.as_slice() {
            [miss] if miss.filter == Filter::GpuShare => {
                let lacks = thousandths(miss.needs - miss.has);
                write!(f, "free {lacks} more of the emptiest GPU of machine {id}")?;
            }
            _ => write!(
                f,
                "free {} more on machine {id}",
                list(&|miss| miss.needs - miss.has)
            )?,
        }
        if self.misses.iter().any(|miss| miss.has == 0) {
            return Ok(());
        }
        write!(f, ", or declare at most {}", list(&|miss| miss.has))
    }
}

impl fmt::Display for Help {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddMachine {
                group,
                zone,
                machines,
                max_size,
            } => {
                write!(f, "one more machine in group {group}")?;
                if let Some(zone) = zone {
                    write!(f, " in zone {zone}")?;
                }
                write!(
                    f,
                    " would fit it (the group has {machines} of at most {max_size})"
                )
            }
            Self::RaiseMaximum { group, max_size } => {
                write!(
                    f,
                    "raise maxSize of group {group} above {max_size} and add a machine, or free room"
                )
            }
            Self::AskForLess { filter, at_most } => {
                write!(
                    f,
                    "declare at most {}, or use a group of larger machines",
                    quantity(*filter, *at_most)
                )
            }
            Self::MachineBack { machine_id, status } => match status {
                MachineStatus::Draining => write!(f, "cancel the drain of machine {machine_id}"),
                MachineStatus::Initializing => write!(f, "machine {machine_id} reports for the first time"),
                MachineStatus::Unhealthy | MachineStatus::Running => {
                    write!(f, "machine {machine_id} reports again")
                }
            },
            Self::FreeOn { shortfall } => shortfall.help(f),
            Self::FreeDisk => f.write_str("detach a disk from a machine with room, or add a machine"),
            Self::Redeclare => f.write_str("declare what a machine can have"),
            Self::StopWriter { by } => write!(f, "replica {by} stops and is gone from its machine"),
            Self::FreePort => {
                f.write_str("a host port between 8001 and 8999 becomes free on a machine with room")
            }
            Self::CreateGroup { group } => write!(f, "add capacity group {group} to the cluster"),
            Self::Label {
                group,
                required,
                forbidden,
            } => f.write_str(&label_help(group, required, forbidden)),
            Self::GpuGroup { gpu_type } => {
                write!(
                    f,
                    "use a capacity group whose machines have GPUs of type {gpu_type}"
                )
            }
        }
    }
}
