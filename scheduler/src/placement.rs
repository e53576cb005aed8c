//! Placement: which machine takes which replica. Filters in a fixed order, then best fit.
//!
//! Input: an immutable [`Fleet`] and requests. Output: a place or the reasons for every request, in the order of the
//! requests. Pure. Nothing here knows of the log or of rollouts, so another engine can stand in its stead.
//!
//! **Filters**, in the order of [`Filter`]; a machine is counted at the first one that rules it out.
//!
//! **Choice** among what is left, the smaller first: how far the machine would exceed its share of the container's
//! replicas (soft spread: a third of them, rounded up, or half of two), then the share left of its scarcest dimension (best
//! fit), then the machine id. Shares are compared as fractions, exactly.
//!
//! **Order** of requests: the larger share of a machine first, since small ones find the gaps that large ones leave; then
//! as given.

pub mod engine;
mod fleet;
pub mod repack;
mod unplaced;

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;

use berth_api::container::ContainerSpec;
use berth_api::id::{MachineId, ReplicaId};

pub use fleet::{Fleet, Slot};
pub use unplaced::{Help, Miss, Unplaced, Why};

use crate::world::Allocated;

/// Why a machine cannot take a replica, in the order of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filter {
    Group,
    Status,
    Cpu,
    Memory,
    Ephemeral,
    GpuType,
    GpuCount,
    /// The replica's volume is in another zone.
    Zone,
    HostPort,
    /// The machine's subnet has no free address.
    Address,
}

impl Filter {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Status => "status",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Ephemeral => "ephemeral",
            Self::GpuType => "gpuType",
            Self::GpuCount => "gpu",
            Self::Zone => "zone",
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
    pub ordinal: Option<u32>,
    /// How many replicas the container wants in all: the spread is a share of them.
    pub replicas: u32,
    /// The replica in whose stead this one would come: it is no rival for the volume.
    pub instead_of: Option<&'a ReplicaId>,
}

/// What a replica gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub machine_id: MachineId,
    pub ip: IpAddr,
    pub host_port: Option<u16>,
}

/// A container's replicas spread over this many machines before any of them takes more.
const SPREAD_MACHINES: u32 = 3;

/// Places what can be placed, each request on what the ones before it left.
#[must_use]
pub fn place(fleet: &Fleet, requests: &[Request<'_>]) -> Vec<Result<Place, Box<Unplaced>>> {
    let mut fleet = fleet.clone();
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by(|one, other| {
        let size = |index: &usize| fleet.largest_share(&requests[*index]);
        size(other).cmp(&size(one)).then(one.cmp(other))
    });
    let mut outcomes: Vec<Option<Result<Place, Box<Unplaced>>>> = requests.iter().map(|_| None).collect();
    for index in order {
        outcomes[index] = Some(place_one(&mut fleet, &requests[index]));
    }
    let outcomes: Vec<_> = outcomes.into_iter().flatten().collect();
    assert!(outcomes.len() == requests.len(), "every request has an outcome");
    outcomes
}

fn place_one(fleet: &mut Fleet, request: &Request<'_>) -> Result<Place, Box<Unplaced>> {
    if let Some(by) = fleet.volume_writer(request) {
        return Err(Box::new(Unplaced::volume_in_use(by)));
    }
    let best = fleet
        .slots()
        .iter()
        .enumerate()
        .filter(|(_, slot)| slot.verdict(request).is_none())
        .min_by(|(_, one), (_, other)| compare(one, other, request))
        .map(|(index, _)| index);
    match best {
        Some(index) => Ok(fleet.take(index, request)),
        None => Err(Box::new(Unplaced::of(fleet, request))),
    }
}

/// The better machine is the smaller one. Total: two machines never have one id.
fn compare(one: &Slot, other: &Slot, request: &Request<'_>) -> Ordering {
    let overload = |slot: &Slot| {
        let spread = request.replicas.clamp(1, SPREAD_MACHINES);
        let share = request.replicas.div_ceil(spread).max(1);
        (slot.count_of(&request.spec.name) + 1).saturating_sub(share)
    };
    overload(one)
        .cmp(&overload(other))
        .then_with(|| one.scarcest_after(request).cmp(&other.scarcest_after(request)))
        .then_with(|| one.machine_id.cmp(&other.machine_id))
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
