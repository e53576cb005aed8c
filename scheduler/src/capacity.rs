//! Capacity plan: how many machines each capacity group should have, why, and which of them it could do without.
//!
//! Input: world, the replicas that the decision found no place for, thresholds, now. Output: an [`Outlook`] a group, and the
//! entries that keep what the next decision must remember ([`Wish`]). Pure.
//!
//! **Growth** is by packing: machines of the group's kind are imagined and placement is asked ([`growth`]). Machines that are
//! initializing count as there for [`Thresholds::boot_max_ms`], or each look would order more; draining and unhealthy ones do
//! not. A replica larger than any machine of its group orders nothing. A stateless replica that is squeezed counts as one that
//! would leave its place for a whole one; a stateful one stays where its disk is, so a machine more would not help it.
//!
//! **Utilisation** is what replicas hold of the running machines, less reserves, in the scarcest dimension (vCPU, memory,
//! ephemeral storage, GPUs). Above [`Thresholds::high_percent`] the group wants as many machines as bring it there: one, in a
//! group of up to nine. The group shrinks only while what is held would fill at most [`Thresholds::low_percent`] of the
//! machines that stay, once that has been so for [`Thresholds::low_for_ms`], nothing grew or shrank for
//! [`Thresholds::pause_ms`], no machine is silent, and for each machine to drain placement has found every replica another
//! place ([`shrink`]). At most a tenth of a group, or one machine, goes at a time.
//!
//! **Memory.** Since when little is used, and when the wish last rose and fell, is in the log: a scheduler that starts again
//! neither forgets a cool-down nor begins one. What was ordered stays ordered until it comes, or until little has been used
//! for as long as a group takes to shrink. Silent machines never lower a wish: a fault of the network shrinks no group.

mod bound;
mod growth;
mod hypothesis;
mod shrink;

use std::collections::BTreeSet;

use berth_api::cluster::CapacityGroup;
use berth_api::container::{ContainerSpec, Granted};
use berth_api::id::{ContainerName, GroupId, MachineId, ReplicaId, Zone};
use berth_api::machine::MachineStatus;
use berth_api::rest::cluster::CapacityReason;
use berth_api::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::entry::{CapacityWish, Entry};
use crate::placement::Filter;
use crate::world::{Allocated, Machine, Wish, World};

use bound::{Amounts, DIMENSIONS};
use growth::{Growth, ids};

/// When a group grows and shrinks. Times in milliseconds on the wall clock, since they outlive the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// Above this utilisation a group wants more machines; 100: never.
    pub high_percent: u32,
    /// A group shrinks only to machines that would be used up to this. At most `high_percent`.
    pub low_percent: u32,
    /// For how long so little must have been used.
    pub low_for_ms: u64,
    /// Between the last change of a wish and the next one downwards.
    pub pause_ms: u64,
    /// For how long a machine that has registered and never spoken counts as about to come.
    pub boot_max_ms: u64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            high_percent: 90,
            low_percent: 70,
            low_for_ms: 600_000,
            pause_ms: 600_000,
            boot_max_ms: 900_000,
        }
    }
}

/// A replica that has no place, or must leave the one it has and has no other, or is squeezed and could leave it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unmet {
    pub container: ContainerName,
    /// The declaration that it would run: while a rollout is paused that may be a former one.
    pub revision: u64,
    pub ordinal: Option<u32>,
    /// The replica in whose stead it would come, where that one is still there.
    pub instead_of: Option<ReplicaId>,
    /// What it has already, where it has a place and is squeezed: it would leave that for one with all that it desires.
    pub squeezed: Option<Granted>,
}

impl Unmet {
    /// None when its container is gone, or that declaration of it.
    fn spec<'a>(&self, world: &'a World) -> Option<&'a ContainerSpec> {
        world.container(&self.container)?.spec_at(self.revision)
    }

    /// Where its disk is.
    fn zone<'a>(&self, world: &'a World) -> Option<&'a Zone> {
        self.spec(world)?.volume(self.ordinal?)?.volume.zone()
    }
}

/// A replica that no machine of its group can hold, however empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooLarge {
    pub container: ContainerName,
    pub ordinal: Option<u32>,
    /// The first dimension in which it is.
    pub filter: Filter,
    pub needs: u64,
    /// What an empty machine has.
    pub has: u64,
}

/// One replica goes from one machine to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    pub replica_id: ReplicaId,
    pub from: MachineId,
    pub to: MachineId,
}

/// A machine that the group can do without, and where all of its replicas would go, in an order in which they can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    pub machine_id: MachineId,
    pub moves: Vec<Move>,
}

/// What is held of what there is, in the scarcest dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Utilization {
    pub held: u64,
    pub usable: u64,
}

/// What one zone needs, where replicas are bound to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneOutlook {
    pub zone: Zone,
    pub running: u32,
    pub desired: u32,
    pub unplaced: u32,
}

/// What one group should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    pub group_id: GroupId,
    pub running: u32,
    /// Registered and about to come.
    pub initializing: u32,
    pub desired: u32,
    pub reason: CapacityReason,
    /// Since when fewer machines would do.
    pub low_since: Option<Timestamp>,
    /// Replicas without a place, those that are too large included; squeezed ones have a place.
    pub unplaced: u32,
    /// Machines beyond those that run or come, for all of them that are not too large; as many as the group may have, when
    /// [`Self::suffices`] is false.
    pub needed: u32,
    /// Fewer than these could not do.
    pub needed_at_least: u32,
    pub suffices: bool,
    pub utilization: Option<Utilization>,
    /// Ordered by zone; only where replicas are bound to zones.
    pub zones: Vec<ZoneOutlook>,
    pub too_large: Vec<TooLarge>,
    pub drains: Vec<Drain>,
    /// Draining and empty: may be ended now.
    pub drained: Vec<MachineId>,
    /// Silent.
    pub unhealthy: Vec<MachineId>,
    /// Registered too long ago to be waited for.
    pub never_heard: Vec<MachineId>,
}

/// The machines of one group by what they are good for, each ordered by id.
#[derive(Debug, Default)]
struct Census<'a> {
    running: Vec<&'a Machine>,
    initializing: Vec<&'a Machine>,
    never_heard: Vec<&'a Machine>,
    unhealthy: Vec<&'a Machine>,
    draining: Vec<&'a Machine>,
    /// What an empty machine of the group offers.
    bin: Allocated,
}

impl<'a> Census<'a> {
    fn of(world: &'a World, group: &CapacityGroup, thresholds: &Thresholds, now: Timestamp) -> Self {
        let mut census = Self::default();
        let members = world.machines().values();
        let members: Vec<&Machine> = members
            .filter(|machine| machine.spec.capacity_group == group.group_id)
            .collect();
        census.bin = growth::bin(group, &members);
        for machine in members {
            let age_ms = now.millis().saturating_sub(machine.registered_at.millis());
            let list = match machine.status() {
                _ if machine.draining_since.is_some() => &mut census.draining,
                MachineStatus::Running | MachineStatus::Draining => &mut census.running,
                MachineStatus::Unhealthy => &mut census.unhealthy,
                MachineStatus::Initializing if age_ms <= thresholds.boot_max_ms => &mut census.initializing,
                MachineStatus::Initializing => &mut census.never_heard,
            };
            list.push(machine);
        }
        census
    }

    /// Machines that replicas can count on, now or shortly.
    fn working(&self) -> u32 {
        count(self.running.len() + self.initializing.len())
    }

    fn held(&self) -> Amounts {
        let machines = self.running.iter().chain(&self.initializing);
        Amounts::sum(machines.map(|machine| Amounts::held(machine)))
    }

    /// What `machines` machines of the group would offer: those that work, and imagined ones or less by as many.
    fn usable(&self, machines: u32) -> Amounts {
        let working = self.running.iter().chain(&self.initializing);
        let usable = Amounts::sum(working.map(|machine| Amounts::bin(&machine.usable())));
        let bin = Amounts::bin(&self.bin);
        let (more, fewer) = (
            machines.saturating_sub(self.working()),
            self.working().saturating_sub(machines),
        );
        usable.plus(&bin, more).minus(&bin, fewer)
    }
}

/// Plans for every group, ordered as the cluster has them. Nothing for a cluster that is being deleted.
#[must_use]
pub fn plan(
    world: &World,
    unmet: &[Unmet],
    is_frozen: bool,
    thresholds: &Thresholds,
    now: Timestamp,
) -> Vec<Outlook> {
    if world.deleted_at().is_some() {
        return vec![];
    }
    let groups = &world.spec().capacity_groups;
    groups
        .iter()
        .map(|group| {
            let census = Census::of(world, group, thresholds, now);
            let of_group = |unmet: &&Unmet| {
                let spec = unmet.spec(world);
                spec.is_some_and(|spec| spec.capacity_group == group.group_id)
            };
            let unmet: Vec<&Unmet> = unmet.iter().filter(of_group).collect();
            Planner {
                world,
                group,
                growth: growth::growth(world, group, &census, &unmet),
                held: census.held(),
                census,
                unmet,
                is_frozen,
                thresholds,
                now,
            }
            .outlook()
        })
        .collect()
}

/// For each of these replicas without a place, whether no machine is to be waited for: its group has as many as it may have,
/// and those of them that are still to come could not take it.
#[must_use]
pub fn is_beyond_max(world: &World, unmet: &[Unmet], thresholds: &Thresholds, now: Timestamp) -> Vec<bool> {
    let mut beyond = vec![false; unmet.len()];
    for group in &world.spec().capacity_groups {
        let of_group = |unmet: &Unmet| {
            let spec = unmet.spec(world);
            spec.is_some_and(|spec| spec.capacity_group == group.group_id)
        };
        let asking: Vec<&Unmet> = unmet.iter().filter(|unmet| of_group(unmet)).collect();
        let census = Census::of(world, group, thresholds, now);
        if asking.is_empty() || census.working() < group.max_size {
            continue;
        }
        let left = if census.initializing.is_empty() {
            asking
        } else {
            let mut hypothesis = hypothesis::Hypothesis::of(world);
            hypothesis.boot(census.initializing.iter().map(|machine| &machine.spec.machine_id));
            hypothesis.unplaced(&asking)
        };
        for (unmet, beyond) in unmet.iter().zip(&mut beyond) {
            *beyond |= left.iter().any(|other| std::ptr::eq(*other, unmet));
        }
    }
    beyond
}

/// The entries that make the world remember a plan; none where it already does.
#[must_use]
pub fn entries(world: &World, outlooks: &[Outlook], at: Timestamp) -> Vec<Entry> {
    let changed = |outlook: &&Outlook| {
        let known = world.wish(&outlook.group_id);
        (known.desired, known.reason, known.low_since) != (outlook.desired, outlook.reason, outlook.low_since)
    };
    let entry = |outlook: &Outlook| {
        Entry::CapacityWished(CapacityWish {
            group_id: outlook.group_id.clone(),
            desired: outlook.desired,
            reason: outlook.reason,
            low_since: outlook.low_since,
            running: outlook.running,
            unplaced: outlook.unplaced,
            utilization_percent: outlook.utilization.map(Utilization::percent),
            at,
        })
    };
    outlooks.iter().filter(changed).map(entry).collect()
}

/// One group at one moment.
struct Planner<'a> {
    world: &'a World,
    group: &'a CapacityGroup,
    census: Census<'a>,
    growth: Growth,
    /// Of the machines that work, by all that is placed there.
    held: Amounts,
    unmet: Vec<&'a Unmet>,
    is_frozen: bool,
    thresholds: &'a Thresholds,
    now: Timestamp,
}

/// A number of machines and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    desired: u32,
    reason: CapacityReason,
}

impl Planner<'_> {
    fn outlook(&self) -> Outlook {
        let mut known = self.world.wish(&self.group.group_id);
        // The maximum may have been lowered since.
        known.desired = known.desired.min(self.group.max_size);
        let working = self.census.working();
        let upward = self.ordered(self.upward(), &known);
        let mut low_since = self.is_low(upward).then(|| known.low_since.unwrap_or(self.now));
        let (target, drains) = if let Some(fewer) = self.withdrawn(upward, low_since, &known) {
            low_since = self.is_low(fewer).then_some(self.now);
            (fewer, vec![])
        } else {
            self.downward(upward, low_since, &known)
        };
        let target = self.bounded(self.unsilenced(target, &known));
        let utilization = (!self.census.running.is_empty()).then(|| self.utilization());
        Outlook {
            group_id: self.group.group_id.clone(),
            running: count(self.census.running.len()),
            initializing: count(self.census.initializing.len()),
            desired: target.desired,
            reason: target.reason,
            low_since,
            unplaced: count(self.unmet.iter().filter(|unmet| unmet.squeezed.is_none()).count()),
            needed: self.growth.machines(),
            needed_at_least: self.growth.bound,
            suffices: self.growth.suffices,
            utilization,
            zones: self.zones(&drains),
            too_large: self.growth.too_large.clone(),
            drains: if target.desired < working { drains } else { vec![] },
            drained: self.drained(),
            unhealthy: ids(&self.census.unhealthy),
            never_heard: ids(&self.census.never_heard),
        }
    }

    /// What is needed, or what keeps some room free, from what there is.
    fn upward(&self) -> Target {
        let working = self.census.working();
        let needed = working.saturating_add(self.growth.machines());
        let roomy = needed.saturating_add(self.headroom(needed));
        let reason = match () {
            () if !self.growth.suffices => CapacityReason::AtMaxSize,
            () if needed > working => CapacityReason::NeedCapacity,
            () if roomy > working && working >= self.group.max_size => CapacityReason::AtMaxSize,
            () if roomy > working => CapacityReason::HighUtilization,
            () => CapacityReason::AtTarget,
        };
        Target {
            desired: roomy,
            reason,
        }
    }

    /// How many machines beyond `needed` bring the utilisation of everything, placed or not, down to the threshold.
    fn headroom(&self, needed: u32) -> u32 {
        let high = u128::from(self.thresholds.high_percent);
        if high >= 100 {
            return 0;
        }
        let held = self.held.plus(&self.growth.asked, 1);
        let (usable, bin) = (self.census.usable(needed), Amounts::bin(&self.census.bin));
        let machines = (0..SHARED).filter(|index| bin.0[*index] > 0).map(|index| {
            let wanted = (u128::from(held.0[index]) * 100).div_ceil(high);
            wanted
                .saturating_sub(usable.0[index].into())
                .div_ceil(bin.0[index].into())
        });
        u32::try_from(machines.max().unwrap_or(0)).unwrap_or(u32::MAX)
    }

    /// What was ordered and has not come stays ordered.
    fn ordered(&self, upward: Target, known: &Wish) -> Target {
        let is_order = match known.reason {
            CapacityReason::NeedCapacity | CapacityReason::HighUtilization | CapacityReason::AtMaxSize => {
                true
            }
            CapacityReason::LowUtilization | CapacityReason::AtTarget => false,
        };
        if is_order && known.desired > upward.desired.max(self.census.working()) {
            let is_needed = upward.reason != CapacityReason::AtTarget;
            return Target {
                desired: known.desired,
                reason: if is_needed { upward.reason } else { known.reason },
            };
        }
        upward
    }

    /// One machine fewer than `from` would do with room to spare, and nothing speaks against it.
    fn is_low(&self, from: Target) -> bool {
        let is_steady = self.growth.asked == Amounts::default()
            && !self.is_frozen
            && self.census.unhealthy.is_empty()
            && from.desired > self.group.min_size;
        is_steady && !self.is_above(&self.held, from.desired - 1, self.thresholds.low_percent)
    }

    /// An order that has not come, taken back as far as little use allows; none when it stands.
    fn withdrawn(&self, from: Target, low_since: Option<Timestamp>, known: &Wish) -> Option<Target> {
        let working = self.census.working();
        if from.desired <= working || !self.is_due(low_since?, known) {
            return None;
        }
        let is_enough = |machines: &u32| !self.is_above(&self.held, *machines, self.thresholds.low_percent);
        let desired = (working..from.desired).find(is_enough).unwrap_or(from.desired);
        let reason = if desired > working {
            from.reason
        } else {
            CapacityReason::AtTarget
        };
        Some(Target { desired, reason })
    }

    /// The wish, lowered when it may be, and the machines to drain for it.
    fn downward(&self, from: Target, low_since: Option<Timestamp>, known: &Wish) -> (Target, Vec<Drain>) {
        let working = self.census.working();
        let above_max = working.saturating_sub(self.group.max_size);
        let lowest = if above_max > 0 {
            self.group.max_size
        } else if from.desired > working {
            return (from, vec![]);
        } else if let Some(lowest) = self.begun(known) {
            lowest
        } else if low_since.is_some_and(|since| self.is_due(since, known)) {
            self.lowest(from)
        } else {
            return (from, vec![]);
        };
        let drains = shrink::drains(self.world, &self.census, working - lowest, self.now);
        let target = match count(drains.len()) {
            0 => from,
            gone => Target {
                desired: working - gone,
                reason: CapacityReason::LowUtilization,
            },
        };
        (target, drains)
    }

    /// What the group was shrinking to, while that still holds.
    fn begun(&self, known: &Wish) -> Option<u32> {
        if known.reason != CapacityReason::LowUtilization || known.desired >= self.census.working() {
            return None;
        }
        // Half way between the thresholds: what was begun is not given up for a little more work.
        let percent = self.thresholds.low_percent.midpoint(self.thresholds.high_percent);
        let lowest = known.desired.max(self.group.min_size);
        let is_given_up =
            self.is_above(&self.held, lowest, percent) || !self.census.unhealthy.is_empty() || self.is_frozen;
        (!is_given_up).then_some(lowest)
    }

    fn is_due(&self, since: Timestamp, known: &Wish) -> bool {
        let passed = |since: Timestamp, ms: u64| self.now.millis() >= since.millis().saturating_add(ms);
        let rests = |at: Option<Timestamp>| at.is_none_or(|at| passed(at, self.thresholds.pause_ms));
        let is_busy = self
            .census
            .draining
            .iter()
            .any(|machine| !machine.replicas.is_empty());
        passed(since, self.thresholds.low_for_ms)
            && rests(known.grown_at)
            && rests(known.shrunk_at)
            && !is_busy
    }

    /// The fewest machines that the load may be put on at once.
    fn lowest(&self, from: Target) -> u32 {
        let step = (from.desired / 10).max(1);
        let floor = self.group.min_size.max(from.desired.saturating_sub(step));
        (floor..from.desired)
            .find(|machines| !self.is_above(&self.held, *machines, self.thresholds.low_percent))
            .unwrap_or(from.desired)
    }

    /// A wish does not fall because machines fell silent.
    fn unsilenced(&self, target: Target, known: &Wish) -> Target {
        let present = self.census.working() + count(self.census.unhealthy.len());
        let desired = target.desired.max(known.desired.min(present));
        if self.census.unhealthy.is_empty() {
            return target;
        }
        Target { desired, ..target }
    }

    fn bounded(&self, target: Target) -> Target {
        let (min, max) = (self.group.min_size, self.group.max_size);
        if target.desired < min {
            let reason = if self.census.working() < min {
                CapacityReason::NeedCapacity
            } else {
                target.reason
            };
            return Target { desired: min, reason };
        }
        if target.desired > max {
            return Target {
                desired: max,
                reason: CapacityReason::AtMaxSize,
            };
        }
        target
    }

    /// Whether `held` is more than this part of what so many machines offer, in any dimension that they have.
    fn is_above(&self, held: &Amounts, machines: u32, percent: u32) -> bool {
        let usable = self.census.usable(machines);
        let share =
            |held: u64, usable: u64| u128::from(held) * 100 > u128::from(usable) * u128::from(percent);
        (0..SHARED).any(|index| held.0[index] > 0 && share(held.0[index], usable.0[index]))
    }

    fn utilization(&self) -> Utilization {
        let held = Amounts::sum(self.census.running.iter().map(|machine| Amounts::held(machine)));
        let usable = self
            .census
            .running
            .iter()
            .map(|machine| Amounts::bin(&machine.usable()));
        let usable = Amounts::sum(usable);
        (0..SHARED)
            .map(|index| Utilization {
                held: held.0[index],
                usable: usable.0[index],
            })
            .filter(|share| share.usable > 0)
            .max_by(Utilization::compare)
            .unwrap_or(Utilization { held: 0, usable: 1 })
    }

    /// Zones that replicas are bound to, by a disk that a wanted replica has there.
    fn zones(&self, drains: &[Drain]) -> Vec<ZoneOutlook> {
        let mut zones: BTreeSet<&Zone> = self.growth.added.keys().flatten().collect();
        let containers = self.world.containers().values();
        for container in containers.filter(|container| container.spec.capacity_group == self.group.group_id) {
            let wanted = container
                .spec
                .volumes
                .iter()
                .filter(|volume| volume.ordinal < container.wanted());
            zones.extend(wanted.filter_map(|volume| volume.volume.zone()));
        }
        let within = |machines: &[&Machine], zone: &Zone| {
            count(
                machines
                    .iter()
                    .filter(|machine| machine.spec.zone == *zone)
                    .count(),
            )
        };
        let outlook = |zone: &Zone| {
            let gone = drains.iter().filter(|drain| {
                let machine = self.world.machine(&drain.machine_id);
                machine.is_some_and(|machine| machine.spec.zone == *zone)
            });
            let added = self.growth.added.get(&Some(zone.clone())).copied().unwrap_or(0);
            let unplaced = self
                .unmet
                .iter()
                .filter(|unmet| unmet.zone(self.world) == Some(zone));
            let running = within(&self.census.running, zone);
            ZoneOutlook {
                zone: zone.clone(),
                running,
                desired: (running + within(&self.census.initializing, zone) + added)
                    .saturating_sub(count(gone.count())),
                unplaced: count(unplaced.count()),
            }
        };
        zones.into_iter().map(outlook).collect()
    }

    fn drained(&self) -> Vec<MachineId> {
        let draining = self.census.draining.iter();
        let empty = draining.filter(|machine| machine.replicas.is_empty());
        ids(&empty.copied().collect::<Vec<_>>())
    }
}

/// Of the dimensions of [`Amounts`], those that utilisation is about: a full subnet is no load.
const SHARED: usize = 4;
const _: () = assert!(SHARED <= DIMENSIONS, "the shared dimensions come first");

impl Utilization {
    /// Rounded down.
    #[must_use]
    pub fn percent(self) -> u32 {
        let percent = u128::from(self.held) * 100 / u128::from(self.usable.max(1));
        u32::try_from(percent.min(100)).expect("at most a hundred")
    }

    fn compare(one: &Self, other: &Self) -> std::cmp::Ordering {
        let product = |held: u64, usable: u64| u128::from(held) * u128::from(usable);
        product(one.held, other.usable).cmp(&product(other.held, one.usable))
    }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).expect("a cluster has fewer than 2^32 machines and replicas")
}

#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;
