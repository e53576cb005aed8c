//! The decision: what changes now, and what everything that did not change waits for. Pure data.

use berth_api::id::ContainerName;
use berth_api::time::Timestamp;

use crate::entry::Entry;
use crate::liveness::{Freeze, Limits};
use crate::world::{Now, Observed, World};

/// What to append, in this order, and why nothing else.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decision {
    pub entries: Vec<Entry>,
    pub report: Report,
}

/// What is not as it should be and is not changed by this decision.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    pub freeze: Option<Freeze>,
    pub waits: Vec<Wait>,
}

/// One thing that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    pub container: ContainerName,
    pub reason: String,
    pub since: Timestamp,
}

/// Decides. Deciding again on the applied result, nothing else changed, gives no entry.
#[must_use]
pub fn decide(world: &World, observed: &Observed, limits: &Limits, now: Now) -> Decision {
    Decision {
        entries: crate::liveness::changes(world, observed, limits, now),
        report: Report {
            freeze: crate::liveness::freeze(world, observed, limits, now),
            waits: vec![],
        },
    }
}
