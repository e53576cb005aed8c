//! Which machines a group can do without: each of them is drained in imagination, and placement has to find every replica
//! on it another place beside all that moved before.

use berth_api::time::Timestamp;

use super::hypothesis::Hypothesis;
use super::{Census, Drain};
use crate::world::{Machine, World};

/// So many machines are tried before it is given up for this time: each costs one placement of all its replicas.
const TRIES_MAX: usize = 32;

/// Up to `wanted` machines to drain, in this order: fewest stateful replicas, then fewest replicas, then by id. Empty where
/// none can be emptied.
pub(super) fn drains(world: &World, census: &Census<'_>, wanted: u32, now: Timestamp) -> Vec<Drain> {
    let wanted = usize::try_from(wanted).expect("32 bits fit into a usize");
    let mut candidates: Vec<&Machine> = census.running.clone();
    candidates.sort_by_key(|machine| disruption(world, machine));
    let mut hypothesis = Hypothesis::of(world);
    let mut drains = vec![];
    for machine in candidates.into_iter().take(TRIES_MAX) {
        if drains.len() == wanted {
            break;
        }
        let machine_id = machine.spec.machine_id.clone();
        if let Some(moves) = hypothesis.drain(&machine_id, now) {
            drains.push(Drain { machine_id, moves });
        }
    }
    drains
}

fn disruption<'a>(world: &'a World, machine: &'a Machine) -> (usize, usize, &'a str) {
    let id = &machine.spec.machine_id;
    let live = || world.replicas_on(id).filter(|replica| replica.is_live());
    let stateful = live().filter(|replica| replica.ordinal.is_some()).count();
    (stateful, live().count(), id.as_str())
}
