//! Which machines are alive, which replicas of silent ones move, and when nothing moves because too many are silent.
//!
//! Input: world, observed, limits, now. Output: entries and facts. Pure.
//!
//! - A machine is `initializing` until it is first heard, then `running`; silent for [`Limits::unhealthy_after_ms`] it is
//!   `unhealthy`; heard again it is `running`. Silence is counted on the monotonic clock and at the earliest from the start
//!   of this process, so a restart of the scheduler never makes a machine look dead.
//! - Stateless replicas of an unhealthy machine are replaced elsewhere once it was silent for
//!   [`Limits::replace_after_ms`]. The machine finds the old ones in its stops when it returns.
//! - Stateful replicas of an unhealthy machine stay where they are, because a silent machine may still write. They move
//!   when the machine returns and confirms their stop, or when somebody who can know it asserts that it is powered off
//!   ([`crate::entry::Removal::PoweredOff`]).
//! - Freeze: while more than [`Limits::freeze_percent`] of the machines that were ever heard are unhealthy, and at least
//!   [`Limits::freeze_min_machines`] of them, the fault is
//!   more likely in the network or here than in all of them, and no replica moves off a silent machine. One of one or two of
//!   two machines is a freeze, where there is no place to move to anyway; one of two and one of three are not. A freeze
//!   ends when enough machines are heard again or removed, and at the latest [`Limits::freeze_max_ms`] after they fell
//!   silent: a machine silent for longer counts as lost, on neither side of the fraction.

use berth_api::id::MachineId;
use serde::{Deserialize, Serialize};

use crate::autoscale::Tunables;
use crate::capacity::Thresholds;
use crate::entry::{Entry, MachineHealthState};
use crate::guard;
use crate::rollout;
use crate::world::{Machine, Now, Observed, World};

/// How long the scheduler waits for what. In milliseconds on the monotonic clock, unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Silence after which a machine is unhealthy: three missed heartbeats of a stock client (5 s each).
    pub unhealthy_after_ms: u64,
    /// Silence after which its stateless replicas are replaced. At least `unhealthy_after_ms`.
    pub replace_after_ms: u64,
    /// A freeze holds while more than this part of the machines is unhealthy; 100 means never.
    pub freeze_percent: u32,
    /// Fewer unhealthy machines than this are never a freeze.
    pub freeze_min_machines: u32,
    /// Silence after which a machine counts as lost and holds up no freeze any more.
    pub freeze_max_ms: u64,
    /// How many healthy replicas may stop that nobody asked to stop.
    pub guard: guard::Rules,
    /// When a rollout has failed or is done.
    pub rollout: rollout::Rules,
    /// When capacity groups grow and shrink.
    pub capacity: Thresholds,
    /// How the counts of scaled containers follow their load.
    pub autoscale: Tunables,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unhealthy_after_ms: 15_000,
            replace_after_ms: 30_000,
            freeze_percent: 50,
            freeze_min_machines: 1,
            freeze_max_ms: 900_000,
            guard: guard::Rules::default(),
            rollout: rollout::Rules::default(),
            capacity: Thresholds::default(),
            autoscale: Tunables::default(),
        }
    }
}

/// Why nothing moves off silent machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freeze {
    pub unhealthy: u32,
    pub total: u32,
}

/// Machines whose health has changed, ordered by id.
#[must_use]
pub fn changes(world: &World, observed: &Observed, limits: &Limits, now: Now) -> Vec<Entry> {
    let changed = |(id, machine): (&MachineId, &Machine)| {
        let state = health(machine, observed, limits, now);
        (state != machine.health).then(|| Entry::MachineHealthChanged {
            machine_id: id.clone(),
            state,
            at: now.wall,
        })
    };
    world.machines().iter().filter_map(changed).collect()
}

fn health(machine: &Machine, observed: &Observed, limits: &Limits, now: Now) -> MachineHealthState {
    let id = &machine.spec.machine_id;
    let is_silent = observed.silence_ms(id, now) > limits.unhealthy_after_ms;
    match machine.health {
        MachineHealthState::Initializing if !observed.is_heard(id) => MachineHealthState::Initializing,
        // After a start nothing is known of a machine until it speaks: it stays what it was.
        MachineHealthState::Unhealthy if !observed.is_heard(id) => MachineHealthState::Unhealthy,
        MachineHealthState::Initializing | MachineHealthState::Running | MachineHealthState::Unhealthy => {
            if is_silent {
                MachineHealthState::Unhealthy
            } else {
                MachineHealthState::Running
            }
        }
    }
}

/// The freeze that holds now, if any.
#[must_use]
pub fn freeze(world: &World, observed: &Observed, limits: &Limits, now: Now) -> Option<Freeze> {
    let (mut unhealthy, mut total) = (0u32, 0u32);
    for (id, machine) in world.machines() {
        match machine.health {
            MachineHealthState::Initializing => {}
            MachineHealthState::Running => total += 1,
            MachineHealthState::Unhealthy => {
                if observed.silence_ms(id, now) <= limits.freeze_max_ms {
                    total += 1;
                    unhealthy += 1;
                }
            }
        }
    }
    let is_frozen = unhealthy >= limits.freeze_min_machines
        && u64::from(unhealthy) * 100 > u64::from(total) * u64::from(limits.freeze_percent);
    is_frozen.then_some(Freeze { unhealthy, total })
}

/// The numbers of [`freeze`], whether they are one or not.
#[must_use]
pub fn toll(world: &World, observed: &Observed, limits: &Limits, now: Now) -> Freeze {
    let never = Limits {
        freeze_percent: 0,
        freeze_min_machines: 0,
        ..*limits
    };
    let running = || {
        world
            .machines()
            .values()
            .filter(|machine| machine.health == MachineHealthState::Running)
    };
    freeze(world, observed, &never, now).unwrap_or_else(|| Freeze {
        unhealthy: 0,
        total: u32::try_from(running().count()).unwrap_or(u32::MAX),
    })
}

/// Whether stateless replicas of a machine are to be replaced elsewhere.
#[must_use]
pub fn is_lost(machine: &Machine, observed: &Observed, limits: &Limits, now: Now) -> bool {
    machine.health == MachineHealthState::Unhealthy
        && observed.silence_ms(&machine.spec.machine_id, now) > limits.replace_after_ms
}

/// Whether everything that can be known after a start is known: each running machine has spoken, or had its time to.
/// Before that, what is published to nodes (the directory) would lack what has merely not been told yet.
#[must_use]
pub fn is_settled(world: &World, observed: &Observed, limits: &Limits, now: Now) -> bool {
    now.monotonic_ms.saturating_sub(observed.started_ms) > limits.unhealthy_after_ms
        || world
            .machines()
            .iter()
            .filter(|(_, machine)| machine.health == MachineHealthState::Running)
            .all(|(id, _)| observed.is_heard(id))
}
