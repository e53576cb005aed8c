//! How many machines more the replicas without a place need.
//!
//! Machines of the group's kind are imagined, as few as the lower bound allows, and placement itself is asked; as long as it
//! leaves something over, there are more of them. So a plan claims what the next decision can do, not what packing could.

use std::collections::BTreeMap;

use berth_api::cluster::CapacityGroup;
use berth_api::id::{MachineId, Zone};
use berth_api::units::{Bytes, Cpu};

use super::bound::{Amounts, lower_bound};
use super::hypothesis::{Hypothesis, Order};
use super::{Census, TooLarge, Unmet};
use crate::placement::Filter;
use crate::world::{Allocated, Machine, World};

/// Machines to add, by the zone that they have to be in; none where any zone will do.
pub(super) type Added = BTreeMap<Option<Zone>, u32>;

#[derive(Debug, Clone, Default)]
pub(super) struct Growth {
    /// Enough for everything but what is too large, or as many as the group may still have.
    pub added: Added,
    /// Nobody could do with fewer.
    pub bound: u32,
    /// Everything has a place with the machines added.
    pub suffices: bool,
    pub too_large: Vec<TooLarge>,
    /// What replicas without a place would hold.
    pub asked: Amounts,
}

impl Growth {
    pub(super) fn machines(&self) -> u32 {
        self.added.values().sum()
    }
}

/// What a new machine of the group offers: its profile less what the group's machines really keep for themselves (the
/// median of them). What a machine lacks of its profile, up to an eighth of it, counts as kept; one that differs by more
/// was made after another profile, and only its reserve counts.
pub(super) fn bin(group: &CapacityGroup, machines: &[&Machine]) -> Allocated {
    let kept = |profile: u64, of: &dyn Fn(&Machine) -> (u64, u64)| {
        let mut kept: Vec<u64> = machines
            .iter()
            .map(|machine| {
                let (usable, reserve) = of(machine);
                if usable.saturating_add(profile / 8) >= profile {
                    profile.saturating_sub(usable)
                } else {
                    reserve
                }
            })
            .collect();
        kept.sort_unstable();
        let median = kept.get(kept.len().saturating_sub(1) / 2).copied().unwrap_or(0);
        profile.saturating_sub(median)
    };
    let profile = &group.profile;
    Allocated {
        cpu: Cpu::from_micros(kept(profile.cpu.micros(), &|machine| {
            let reserve = machine.spec.capacity.cpu.system_reserve;
            (machine.usable().cpu.micros(), reserve.micros())
        })),
        memory: Bytes::new(kept(profile.memory_bytes.get(), &|machine| {
            let reserve = machine.spec.capacity.memory.system_reserve;
            (machine.usable().memory.get(), reserve.get())
        })),
        ephemeral: Bytes::new(kept(profile.ephemeral_storage_bytes.get(), &|machine| {
            (machine.usable().ephemeral.get(), 0)
        })),
        gpus: profile.gpu.as_ref().map_or(0, |gpu| gpu.count),
        gpu_share_milli: 0,
    }
}

/// Why a replica fits no machine of the group, however empty; none when it does.
fn too_large(world: &World, group: &CapacityGroup, bin: &Allocated, unmet: &Unmet) -> Option<TooLarge> {
    let spec = unmet.spec(world)?;
    let need = Allocated::of(spec);
    let dimensions = [
        (Filter::Cpu, need.cpu.micros(), bin.cpu.micros()),
        (Filter::Memory, need.memory.get(), bin.memory.get()),
        (Filter::Ephemeral, need.ephemeral.get(), bin.ephemeral.get()),
        (Filter::GpuCount, need.gpus.into(), bin.gpus.into()),
        (
            Filter::GpuShare,
            need.gpu_share_milli.into(),
            bin.largest_share().into(),
        ),
    ];
    let wanted = spec.resources.gpu.as_ref().map(|gpu| &gpu.kind);
    let offered = group.profile.gpu.as_ref().map(|gpu| &gpu.kind);
    let other_gpu = (wanted.is_some() && wanted != offered).then_some((Filter::GpuType, 0, 0));
    let is_allowed = spec
        .placement
        .as_ref()
        .is_none_or(|rules| rules.allow(&group.labels.iter().collect()));
    let other_label = (!is_allowed).then_some((Filter::Label, 0, 0));
    let excess = dimensions.into_iter().find(|(_, needs, has)| needs > has);
    let (filter, needs, has) = other_gpu.or(other_label).or(excess)?;
    Some(TooLarge {
        container: unmet.container.clone(),
        ordinal: unmet.ordinal,
        filter,
        needs,
        has,
    })
}

/// What the replicas without a place need beside the machines that run or are about to.
pub(super) fn growth(world: &World, group: &CapacityGroup, census: &Census<'_>, unmet: &[&Unmet]) -> Growth {
    let mut growth = Growth {
        suffices: true,
        ..Growth::default()
    };
    let mut packable = vec![];
    for unmet in unmet {
        match too_large(world, group, &census.bin, unmet) {
            Some(too_large) if unmet.squeezed.is_none() => growth.too_large.push(too_large),
            Some(_) => {}
            None => packable.push(*unmet),
        }
    }
    growth.asked = Amounts::sum(packable.iter().map(|unmet| Amounts::lacked(world, unmet)));
    let room = group.max_size.saturating_sub(census.working());
    let mut base = Hypothesis::of(world);
    base.boot(census.initializing.iter().map(|machine| &machine.spec.machine_id));
    // The decision has found no place for them, and asking again would give none: but for machines that are about to come,
    // and for those that have a place and would leave it.
    let is_known = census.initializing.is_empty() && packable.iter().all(|unmet| unmet.squeezed.is_none());
    let mut left = if is_known {
        packable.clone()
    } else {
        base.unplaced(&packable)
    };
    if left.is_empty() {
        return growth;
    }
    growth.bound = bound_of(world, census, &packable);
    let attempt = Attempt {
        base: &base,
        group,
        bin: &census.bin,
        packable: &packable,
    };
    while !left.is_empty() {
        let total = growth.machines();
        if total >= room {
            growth.suffices = false;
            break;
        }
        if usize::try_from(total).unwrap_or(usize::MAX) > 2 * packable.len() {
            // Two machines for each did not help them: none is ordered in vain.
            growth.added = Added::new();
            break;
        }
        add(world, census, &left, room - total, &mut growth.added);
        if growth.bound > room && growth.machines() >= room {
            // All that the group may have, and nobody could do with that: packing it would tell nothing.
            growth.suffices = false;
            break;
        }
        match attempt.unplaced(&growth.added) {
            Some(rest) => left = rest,
            None => {
                growth.suffices = false;
                break;
            }
        }
    }
    if growth.suffices {
        spare(&attempt, growth.bound, left.len(), &mut growth.added);
    }
    growth
}

/// One imagination: the machines that are there or come, and some more.
struct Attempt<'a> {
    base: &'a Hypothesis<'a>,
    group: &'a CapacityGroup,
    bin: &'a Allocated,
    packable: &'a [&'a Unmet],
}

impl<'a> Attempt<'a> {
    /// What finds no place with these machines more, whatever they will be called; none when the network has no subnet for
    /// them.
    fn unplaced(&self, added: &Added) -> Option<Vec<&'a Unmet>> {
        let mut most = vec![];
        for order in [Order::Last, Order::First] {
            let mut hypothesis = self.base.clone();
            for (zone, count) in added {
                for _ in 0..*count {
                    if !hypothesis.add(self.group, zone.as_ref(), self.bin, order) {
                        return None;
                    }
                }
            }
            let left = hypothesis.unplaced(self.packable);
            if left.len() > most.len() {
                most = left;
            }
        }
        Some(most)
    }
}

/// Adds machines for what is left: first in the zones that disks are in, since what may go anywhere fills their gaps.
fn add(world: &World, census: &Census<'_>, left: &[&Unmet], at_most: u32, added: &mut Added) {
    let mut by_zone: BTreeMap<Option<Zone>, Vec<Amounts>> = BTreeMap::new();
    for unmet in left {
        let amounts = Amounts::asked(world, unmet);
        by_zone
            .entry(unmet.zone(world).cloned())
            .or_default()
            .push(amounts);
    }
    let is_zonal = by_zone.keys().any(Option::is_some);
    let mut zones: Vec<_> = by_zone
        .iter()
        .filter(|(zone, _)| zone.is_some() == is_zonal)
        .collect();
    zones.sort_by_key(|(zone, asked)| (std::cmp::Reverse(asked.len()), (*zone).clone()));
    let mut room = at_most;
    for (zone, asked) in zones {
        let machines = lower_bound(asked, &Amounts::bin(&census.bin), &[])
            .max(1)
            .min(room);
        *added.entry(zone.clone()).or_default() += machines;
        room -= machines;
    }
}

/// Takes back machines that are not needed after all.
fn spare(attempt: &Attempt<'_>, bound: u32, stuck: usize, added: &mut Added) {
    let zones: Vec<Option<Zone>> = added.keys().cloned().collect();
    for zone in zones {
        while added.values().sum::<u32>() > bound.max(1) && added.get(&zone).is_some_and(|count| *count > 0) {
            let mut fewer = added.clone();
            if let Some(count) = fewer.get_mut(&zone) {
                *count -= 1;
            }
            if attempt.unplaced(&fewer).is_none_or(|left| left.len() > stuck) {
                break;
            }
            *added = fewer;
        }
    }
    added.retain(|_, count| *count > 0);
}

/// Below so many machines more nothing can do: what is free now can hold the rest at best, zone by zone and in all.
fn bound_of(world: &World, census: &Census<'_>, packable: &[&Unmet]) -> u32 {
    let bin = Amounts::bin(&census.bin);
    let free = |zone: Option<&Zone>| -> Vec<Amounts> {
        let machines = census.running.iter().chain(&census.initializing);
        machines
            .filter(|machine| zone.is_none_or(|zone| machine.spec.zone == *zone))
            .map(|machine| Amounts::free(world, machine))
            .collect()
    };
    let asked = |zone: Option<&Zone>| -> Vec<Amounts> {
        let within = packable
            .iter()
            .filter(|unmet| zone.is_none() || unmet.zone(world) == zone);
        within.map(|unmet| Amounts::asked(world, unmet)).collect()
    };
    let zones: std::collections::BTreeSet<&Zone> =
        packable.iter().filter_map(|unmet| unmet.zone(world)).collect();
    let zonal: u32 = zones
        .into_iter()
        .map(|zone| lower_bound(&asked(Some(zone)), &bin, &free(Some(zone))))
        .sum();
    zonal.max(lower_bound(&asked(None), &bin, &free(None)))
}

/// Ids of machines, for reading.
pub(super) fn ids(machines: &[&Machine]) -> Vec<MachineId> {
    machines
        .iter()
        .map(|machine| machine.spec.machine_id.clone())
        .collect()
}
