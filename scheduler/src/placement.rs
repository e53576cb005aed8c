//! Placement: which machine takes which replica.
//!
//! Input: an immutable [`Fleet`] and requests. Output: a place or the reasons for every request, in the order of the
//! requests. Pure. Nothing here knows of the log or of rollouts.
//!
//! [`engine`] decides; this module turns names into its numbers and its answers into places and reasons.
//!
//! **Filters**, in the order of [`Filter`]; a machine is counted at the first one that rules it out.
//!
//! **Labels** that a container prefers count before the choice: as many of them, from the front, as a machine with room has.
//!
//! **Choice** among what is left: the machine where the replica was before, when the request names one; else the least of
//! how far the machine would exceed its share of the container's replicas (soft spread: a third of them, rounded up, or half
//! of two), how many of them its zone has, what is left of it (best fit), and its place in the order of machine ids.
//!
//! **Together**: what starts at once is a burst ([`batch`]): the larger first, since small ones find the gaps that large ones
//! leave, then a bounded search that moves some of the burst so that more of it fits.

pub mod batch;
pub mod engine;
mod fleet;
pub mod pack;
pub mod repack;
mod unplaced;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use berth_api::container::ContainerSpec;
use berth_api::id::{MachineId, ReplicaId};
use berth_api::machine::GpuDevice;
use berth_api::placement::PlacementRules;
use serde::{Deserialize, Serialize};

pub use fleet::{Fleet, Newcomer, Slot};
pub(crate) use fleet::{disk_slots, machine_share, needs_slot};
pub(crate) use unplaced::thousandths;
pub use unplaced::{Help, Miss, Shortfall, Unplaced, Why};

use crate::world::Allocated;
use engine::Ask;

/// Why a machine cannot take a replica, in the order of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filter {
    Group,
    /// The replica's volume is in another zone.
    Zone,
    GpuType,
    /// It lacks a label that is required, or has one that is forbidden.
    Label,
    Status,
    /// It wants a machine for itself and others are there, or the reverse.
    Exclusive,
    /// The machine reports what no machine has.
    Absurd,
    Cpu,
    Memory,
    Ephemeral,
    GpuCount,
    /// No device has so much left.
    GpuShare,
    /// The machine holds as many cloud disks as it can.
    DiskSlot,
    HostPort,
    /// The machine's subnet has no free address.
    Address,
}

impl Filter {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Zone => "zone",
            Self::GpuType => "gpuType",
            Self::Label => "label",
            Self::Status => "status",
            Self::Exclusive => "exclusive",
            Self::Absurd => "report",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Ephemeral => "ephemeral",
            // One request can only lack one of them.
            Self::GpuCount | Self::GpuShare => "gpu",
            Self::DiskSlot => "diskSlot",
            Self::HostPort => "hostPort",
            Self::Address => "address",
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A replica that needs a machine.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub spec: &'a ContainerSpec,
    /// What it is to hold: what the declaration desires, or less.
    pub amounts: Allocated,
    pub ordinal: Option<u32>,
    /// The replica in whose stead this one would come: it is no rival for the volume.
    pub instead_of: Option<&'a ReplicaId>,
    /// Where the ordinal ran before: its disk may still be there, its image is.
    pub prefer: Option<&'a MachineId>,
}

/// What a replica gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub machine_id: MachineId,
    pub ip: IpAddr,
    pub host_port: Option<u16>,
    /// What it gets of the machine's GPUs, by rising number.
    pub devices: Vec<GpuDevice>,
    pub chosen: Chosen,
}

/// Which rule of the choice decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Rule {
    /// It was there before.
    Returned,
    /// Of the machines with less than their share of the container's replicas, the one that stays fullest.
    Fullest,
    /// All that fit have their share of the container's replicas already.
    Crowded,
    /// It was placed together with others, and went here so that more of them fit.
    Together,
}

/// Why this machine, as it stood when the replica was placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Chosen {
    pub rule: Rule,
    /// Replicas of the container that were on the machine.
    pub machine_replicas: u32,
    /// Replicas of the container that were in the zone.
    pub zone_replicas: u32,
    /// What is left of the scarcer of processor and memory, in thousandths of the profile.
    pub left_permille: u16,
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = f64::from(self.left_permille) / 10.0;
        match self.rule {
            Rule::Returned => write!(f, "it ran there before and fits there still")?,
            Rule::Fullest => write!(f, "of the machines that could take it, it fills this one best")?,
            Rule::Crowded => write!(
                f,
                "every machine that could take it has its share of the container's replicas already, this one {}",
                self.machine_replicas
            )?,
            Rule::Together => f.write_str("it was placed together with others, and here more of them fit")?,
        }
        write!(
            f,
            " ({left:.1}% of its scarcer of cpu and memory is left); its zone had {} of the container's replicas",
            self.zone_replicas
        )
    }
}

/// From so many requests of one class on, the engine makes its index first.
const PREPARE_MIN: usize = 3;

/// A place, or why there is none; requests that fail alike share one explanation.
pub type Outcome = Result<Place, Arc<Unplaced>>;

/// Places what can be placed, together: see [`batch`].
#[must_use]
pub fn place(mut fleet: Fleet, requests: &[Request<'_>]) -> Vec<Outcome> {
    place_in(&mut fleet, requests)
}

/// Places what can be placed and takes it from the fleet.
pub fn place_in(fleet: &mut Fleet, requests: &[Request<'_>]) -> Vec<Outcome> {
    let mut outcomes: Vec<Option<Outcome>> = requests.iter().map(|_| None).collect();
    let mut burst: Vec<(usize, Ask)> = vec![];
    let mut disks = BTreeSet::new();
    let mut rivals = vec![];
    for (number, request) in requests.iter().enumerate() {
        if let Some(by) = fleet.volume_writer(request) {
            outcomes[number] = Some(Err(Arc::new(Unplaced::volume_in_use(by))));
        } else if fleet::disk_of(request).is_some_and(|disk| !disks.insert(disk)) {
            rivals.push(number);
        } else {
            match fleet.ask(request) {
                Ok(ask) => burst.push((number, ask)),
                Err(faults) => outcomes[number] = Some(Err(Arc::new(Unplaced::impossible(&faults)))),
            }
        }
    }
    for (number, place) in place_burst(fleet, requests, &burst) {
        outcomes[number] = Some(Ok(place));
    }
    let mut told = Told::default();
    for (number, ask) in burst {
        if outcomes[number].is_none() {
            outcomes[number] = Some(place_one(fleet, &requests[number], &ask, &mut told));
        }
    }
    // Two requests for one volume: the second has its turn only when the first found no place.
    for number in rivals {
        let request = &requests[number];
        let outcome = match (fleet.volume_writer(request), fleet.ask(request)) {
            (Some(by), _) => Err(Arc::new(Unplaced::volume_in_use(by))),
            (None, Ok(ask)) => place_one(fleet, request, &ask, &mut told),
            (None, Err(faults)) => Err(Arc::new(Unplaced::impossible(&faults))),
        };
        outcomes[number] = Some(outcome);
    }
    let outcomes: Vec<_> = outcomes.into_iter().flatten().collect();
    assert!(outcomes.len() == requests.len(), "every request has an outcome");
    outcomes
}

/// Gives a request a place at the first of `amounts` that fits anywhere, and takes the last of them, which is no more than
/// the others, from the fleet. None when not even that fits.
pub(crate) fn place_at_most(
    fleet: &mut Fleet,
    request: &Request<'_>,
    amounts: &[Allocated],
) -> Option<Place> {
    if fleet.volume_writer(request).is_some() {
        return None;
    }
    let least = Request {
        amounts: *amounts.last()?,
        ..*request
    };
    let least = fleet.ask(&least).ok()?;
    for amounts in amounts {
        let request = Request {
            amounts: *amounts,
            ..*request
        };
        let ask = fleet.ask(&request).ok()?;
        if let Some(choice) = fleet.engine.choose(&ask) {
            let place = fleet.take(choice, &ask, &request);
            fleet.engine.release(&ask, choice);
            fleet.engine.take(&least, choice);
            return Some(place);
        }
    }
    None
}

/// What of a burst finds a place.
fn place_burst(fleet: &mut Fleet, requests: &[Request<'_>], burst: &[(usize, Ask)]) -> Vec<(usize, Place)> {
    let asks: Vec<Ask> = burst.iter().map(|(_, ask)| *ask).collect();
    let mut classes: BTreeMap<engine::ClassId, usize> = BTreeMap::new();
    for ask in &asks {
        let count = classes.entry(ask.class).or_default();
        *count += 1;
        if *count == PREPARE_MIN {
            fleet.engine.prepare(ask.class);
        }
    }
    let choices = batch::place(&mut fleet.engine, &asks, batch::Aim::Requests);
    // Given back and taken again one by one, so that each place says truly why it was chosen.
    for (ask, choice) in asks.iter().zip(&choices) {
        if let Some(choice) = choice {
            fleet.engine.release(ask, *choice);
        }
    }
    let order = batch::largest_first(&fleet.engine, &asks);
    let chosen = order
        .into_iter()
        .filter_map(|position| Some((position, choices[position]?)));
    let places = chosen.map(|(position, choice)| {
        let (number, ask) = &burst[position];
        (*number, fleet.take(choice, ask, &requests[*number]))
    });
    places.collect()
}

fn place_one<'a>(fleet: &mut Fleet, request: &'a Request<'a>, ask: &Ask, told: &mut Told<'a>) -> Outcome {
    let mut choice = fleet.engine.choose(ask).map(|choice| (choice, *ask));
    let prefers = |rules: &PlacementRules| !rules.prefers.is_empty();
    if choice.is_none() && request.spec.placement.as_ref().is_some_and(prefers) {
        // What it prefers may have been taken since it was asked for.
        let less = fleet.ask(request).ok();
        choice = less.and_then(|less| Some((fleet.engine.choose(&less)?, less)));
    }
    if let Some((choice, ask)) = choice {
        told.explanations.clear();
        return Ok(fleet.take(choice, &ask, request));
    }
    Err(told.explain(fleet, request))
}

/// What was said of requests that failed, for the fleet as it is: a hundred replicas that lack the same lack it for the same
/// reason.
#[derive(Default)]
struct Told<'a> {
    explanations: Vec<(&'a Request<'a>, Arc<Unplaced>)>,
}

impl<'a> Told<'a> {
    /// Requests that are compared with; what differs more is explained each by itself.
    const KEPT_MAX: usize = 8;

    fn explain(&mut self, fleet: &Fleet, request: &'a Request<'a>) -> Arc<Unplaced> {
        let mut known = self.explanations.iter();
        if let Some((_, explanation)) = known.find(|(other, _)| is_alike(request, other)) {
            return explanation.clone();
        }
        let explanation = Arc::new(Unplaced::of(fleet, request));
        if self.explanations.len() < Self::KEPT_MAX {
            self.explanations.push((request, explanation.clone()));
        }
        explanation
    }
}

/// Whether two requests ask for the same, but for whose they are and where they were. None that a disk binds to a zone is
/// like another.
fn is_alike(one: &Request<'_>, other: &Request<'_>) -> bool {
    let is_free = |request: &Request<'_>| fleet::disk_of(request).is_none();
    let (here, there) = (one.spec, other.spec);
    one.amounts == other.amounts
        && here.capacity_group == there.capacity_group
        && here.placement == there.placement
        && here.resources.gpu == there.resources.gpu
        && fleet::needs_host_port(here) == fleet::needs_host_port(there)
        && is_free(one)
        && is_free(other)
}

#[cfg(test)]
mod tests;
