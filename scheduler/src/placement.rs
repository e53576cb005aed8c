//! Placement: which machine takes which replica.
//!
//! Input: an immutable [`Fleet`] and requests. Output: a place or the reasons for every request, in the order of the
//! requests. Pure. Nothing here knows of the log or of rollouts.
//!
//! [`engine`] decides; this module turns names into its numbers and its answers into places and reasons.
//!
//! **Filters**, in the order of [`Filter`]; a machine is counted at the first one that rules it out.
//!
//! **Choice** among what is left: the machine where the replica was before, when the request names one; else the least of
//! how far the machine would exceed its share of the container's replicas (soft spread: a third of them, rounded up, or half
//! of two), how many of them its zone has, what is left of it (best fit), and its place in the order of machine ids.
//!
//! **Order** of requests: the larger share of a machine first, since small ones find the gaps that large ones leave; then
//! as given.

pub mod batch;
pub mod engine;
mod fleet;
pub mod pack;
pub mod repack;
mod unplaced;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use berth_api::container::ContainerSpec;
use berth_api::id::{MachineId, ReplicaId};
use serde::{Deserialize, Serialize};

pub use fleet::{Fleet, Newcomer, Slot};
pub use unplaced::{Help, Miss, Shortfall, Unplaced, Why};

use crate::world::Allocated;

/// Why a machine cannot take a replica, in the order of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filter {
    Group,
    /// The replica's volume is in another zone.
    Zone,
    GpuType,
    Status,
    /// The machine reports what no machine has.
    Absurd,
    Cpu,
    Memory,
    Ephemeral,
    GpuCount,
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
            Self::Status => "status",
            Self::Absurd => "report",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Ephemeral => "ephemeral",
            Self::GpuCount => "gpu",
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

/// Places what can be placed, each request on what the ones before it left.
#[must_use]
pub fn place(fleet: &Fleet, requests: &[Request<'_>]) -> Vec<Result<Place, Box<Unplaced>>> {
    place_in(&mut fleet.clone(), requests)
}

/// Places what can be placed and takes it from the fleet.
pub fn place_in(fleet: &mut Fleet, requests: &[Request<'_>]) -> Vec<Result<Place, Box<Unplaced>>> {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by(|one, other| {
        let size = |index: &usize| fleet.largest_share(&requests[*index]);
        size(other).cmp(&size(one)).then(one.cmp(other))
    });
    let mut classes: BTreeMap<engine::ClassId, usize> = BTreeMap::new();
    for request in requests {
        if let Ok(ask) = fleet.ask(request) {
            let count = classes.entry(ask.class).or_default();
            *count += 1;
            if *count == PREPARE_MIN {
                fleet.engine.prepare(ask.class);
            }
        }
    }
    let mut outcomes: Vec<Option<Result<Place, Box<Unplaced>>>> = requests.iter().map(|_| None).collect();
    for index in order {
        outcomes[index] = Some(place_one(fleet, &requests[index]));
    }
    let outcomes: Vec<_> = outcomes.into_iter().flatten().collect();
    assert!(outcomes.len() == requests.len(), "every request has an outcome");
    outcomes
}

fn place_one(fleet: &mut Fleet, request: &Request<'_>) -> Result<Place, Box<Unplaced>> {
    if let Some(by) = fleet.volume_writer(request) {
        return Err(Box::new(Unplaced::volume_in_use(by)));
    }
    let ask = match fleet.ask(request) {
        Ok(ask) => ask,
        Err(faults) => return Err(Box::new(Unplaced::impossible(&faults))),
    };
    match fleet.engine.choose(&ask) {
        Some(choice) => Ok(fleet.take(choice, &ask, request)),
        None => Err(Box::new(Unplaced::of(fleet, request))),
    }
}

/// `part` of `whole`, compared exactly. Invariant: `whole` is not zero.
#[derive(Debug, Clone, Copy)]
struct Share {
    part: u64,
    whole: u64,
}

impl Share {
    /// The shares that amounts are of a whole, of the dimensions that the whole has.
    fn all(part: &Allocated, whole: &Allocated) -> impl Iterator<Item = Self> {
        [
            (part.cpu.micros(), whole.cpu.micros()),
            (part.memory.get(), whole.memory.get()),
            (part.ephemeral.get(), whole.ephemeral.get()),
            (part.gpus.into(), whole.gpus.into()),
        ]
        .into_iter()
        .filter(|(_, whole)| *whole > 0)
        .map(|(part, whole)| Self { part, whole })
    }
}

impl PartialEq for Share {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Share {}

impl PartialOrd for Share {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Share {
    fn cmp(&self, other: &Self) -> Ordering {
        let product = |one: u64, other: u64| u128::from(one) * u128::from(other);
        product(self.part, other.whole).cmp(&product(other.part, self.whole))
    }
}

#[cfg(test)]
mod tests;
