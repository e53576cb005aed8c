//! Amounts in every dimension that a machine can run out of, and how few machines could hold them at best.

use std::collections::BTreeMap;

use berth_api::container::HOST_PORTS;

use super::Unmet;
use crate::placement::pack::{self, Item, Open, Problem};
use crate::world::{Allocated, HOST_MAX, HOST_MIN, Machine, World};

/// vCPU in millionths, memory in bytes, ephemeral storage in bytes, GPUs in thousandths, addresses, host ports.
pub(super) const DIMENSIONS: usize = 6;
/// The number of the dimension of GPUs.
const GPUS: usize = 3;

/// One amount a dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Amounts(pub [u64; DIMENSIONS]);

/// Addresses of a machine's subnet that replicas get, and ports of a machine that are forwarded to them.
fn network() -> (u64, u64) {
    let addresses = u64::from(HOST_MAX - HOST_MIN) + 1;
    let ports = u64::from(HOST_PORTS.end() - HOST_PORTS.start()) + 1;
    (addresses, ports)
}

impl Amounts {
    fn of(amounts: &Allocated, addresses: u64, ports: u64) -> Self {
        Self([
            amounts.cpu.micros(),
            amounts.memory.get(),
            amounts.ephemeral.get(),
            amounts.gpus_milli(),
            addresses,
            ports,
        ])
    }

    /// Of an empty machine.
    pub(super) fn bin(bin: &Allocated) -> Self {
        let (addresses, ports) = network();
        Self::of(bin, addresses, ports)
    }

    /// Of one replica.
    pub(super) fn asked(world: &World, unmet: &Unmet) -> Self {
        let spec = unmet
            .spec(world)
            .expect("only containers that are there ask for places");
        Self::of(
            &Allocated::of(spec),
            1,
            spec.load_balancer_target.is_some().into(),
        )
    }

    /// Of one replica, less what it has already.
    pub(super) fn lacked(world: &World, unmet: &Unmet) -> Self {
        let asked = Self::asked(world, unmet);
        let Some(squeezed) = unmet.squeezed else {
            return asked;
        };
        let held = Allocated {
            cpu: squeezed.cpu,
            memory: squeezed.memory,
            ..Allocated::default()
        };
        asked.minus(&Self::of(&held, 0, 0), 1)
    }

    /// What a machine has left.
    pub(super) fn free(world: &World, machine: &Machine) -> Self {
        let (mut addresses, mut ports) = network();
        for replica in world.replicas_on(&machine.spec.machine_id) {
            addresses = addresses.saturating_sub(1);
            ports = ports.saturating_sub(replica.host_port.is_some().into());
        }
        let mut free = Self::of(&machine.free(), addresses, ports);
        let devices = world.free_devices(machine).unwrap_or_default();
        free.0[GPUS] = devices.into_iter().map(u64::from).sum();
        free
    }

    /// What replicas hold of a machine; addresses and ports are not counted.
    pub(super) fn held(machine: &Machine) -> Self {
        Self::of(&machine.allocated, 0, 0)
    }

    pub(super) fn plus(self, other: &Self, times: u32) -> Self {
        let mut sum = self;
        for (total, part) in sum.0.iter_mut().zip(other.0) {
            *total = total.saturating_add(part.saturating_mul(times.into()));
        }
        sum
    }

    pub(super) fn minus(self, other: &Self, times: u32) -> Self {
        let mut rest = self;
        for (total, part) in rest.0.iter_mut().zip(other.0) {
            *total = total.saturating_sub(part.saturating_mul(times.into()));
        }
        rest
    }

    pub(super) fn sum(amounts: impl Iterator<Item = Self>) -> Self {
        amounts.fold(Self::default(), |mut sum, amounts| {
            for (total, part) in sum.0.iter_mut().zip(amounts.0) {
                *total = total.saturating_add(part);
            }
            sum
        })
    }
}

/// What is to be packed into machines like `bin`, beside what is free on those that are there.
pub(super) fn problem(asked: &[Amounts], bin: &Amounts, free: &[Amounts]) -> Problem {
    let mut kinds: BTreeMap<[u64; DIMENSIONS], u64> = BTreeMap::new();
    for amounts in asked {
        *kinds.entry(amounts.0).or_default() += 1;
    }
    // A machine of another profile may have more free than a new one will: then every bin may be as large, and the bound
    // is lower and still true.
    let mut capacity = bin.0;
    for open in free {
        for (most, free) in capacity.iter_mut().zip(open.0) {
            *most = free.max(*most);
        }
    }
    let item = |(amounts, count): ([u64; DIMENSIONS], u64)| Item {
        amounts: amounts.to_vec(),
        count,
        group: None,
    };
    let open = |free: &Amounts| Open {
        free: free.0.to_vec(),
        groups: vec![],
    };
    Problem {
        capacity: capacity.to_vec(),
        items: kinds.into_iter().map(item).collect(),
        group_max: vec![],
        open: free.iter().map(open).collect(),
        new_max: None,
    }
}

/// No fewer machines than these, beside what is free on those that are there, can hold what is asked for.
pub(super) fn lower_bound(asked: &[Amounts], bin: &Amounts, free: &[Amounts]) -> u32 {
    match pack::lower_bound(&problem(asked, bin, free)) {
        Ok(bound) => u32::try_from(bound).unwrap_or(u32::MAX),
        // Nothing to pack, or more of it than can be packed at once: no claim.
        Err(_) => 0,
    }
}
