//! The decision: what changes now, and what everything that did not change waits for. Pure data.
//!
//! [`decide`] plans on a copy of the world and applies what it has decided to that copy, round after round, until a round
//! changes nothing. So deciding again on the applied result, nothing else having happened, gives no entry.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::sync::Arc;

use berth_api::container::Granted;
use berth_api::id::{ContainerName, MachineId, ReplicaId};

use crate::announce;
use crate::autoscale;
use crate::capacity::{self, Outlook, Unmet};
use crate::entry::{Entry, MachineHealthState, Picked, Placed, StopCause};
use crate::guard;
use crate::liveness::{self, Freeze, Limits};
use crate::placement::{self, Fleet, Place, Request, Unplaced, Why};
use crate::reconcile::{self, Plan, Purpose, Start, Wait, WaitReason};
use crate::rollout;
use crate::squeeze::Placeless;
use crate::world::{Allocated, Container, Now, Observed, Replica, World};

/// What to append, in this order, and why nothing else.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decision {
    /// Changes and the events that announce them.
    pub entries: Vec<Entry>,
    pub report: Report,
}

/// Whether a write has asked for a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Yes,
    No,
}

/// What is not as it should be and is not changed by this decision.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    pub freeze: Option<Freeze>,
    /// Ordered by container, then by replica.
    pub waits: Vec<Wait>,
    /// What each capacity group should have, ordered as the cluster has them.
    pub capacity: Vec<Outlook>,
}

/// Rounds until nothing changes: liveness, then stops, then places, then one replica that makes room and what follows from
/// it. More than these means that two rules undo each other.
const ROUNDS_MAX: usize = 8;

/// Decides. Deciding again on the applied result, nothing else changed, gives no entry.
///
/// # Panics
/// When the rules do not come to rest, or decide what contradicts the world.
#[must_use]
pub fn decide(world: &World, observed: &Observed, limits: &Limits, now: Now) -> Decision {
    decide_with(world, observed, limits, now, Scope::All)
}

/// What a decision is made about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    All,
    /// Nothing about the size of capacity groups: for those who only ask what replicas wait for.
    Replicas,
}

pub(crate) fn decide_with(
    world: &World,
    observed: &Observed,
    limits: &Limits,
    now: Now,
    scope: Scope,
) -> Decision {
    decide_and_apply(world, observed, limits, now, scope).0
}

/// As [`decide`], with the world as it is when the entries are applied; none where there are none.
pub(crate) fn decide_and_apply(
    world: &World,
    observed: &Observed,
    limits: &Limits,
    now: Now,
    scope: Scope,
) -> (Decision, Option<World>) {
    let mut draft = Draft {
        world: Cow::Borrowed(world),
        observed,
        limits,
        now,
        freeze: None,
        entries: vec![],
        plans: BTreeMap::new(),
        dirty: world.containers().keys().cloned().collect(),
        held: BTreeSet::new(),
    };
    for entry in liveness::changes(world, observed, limits, now) {
        draft.push(entry);
    }
    draft.push_gone();
    for entry in autoscale::entries(&draft.world, &observed.scaling, &limits.autoscale, now.wall) {
        draft.push(entry);
    }
    // Only the health of machines decides it, and that is settled now.
    let freeze = liveness::freeze(&draft.world, observed, limits, now);
    draft.freeze = freeze;
    if freeze.is_some() != draft.world.frozen_since().is_some() {
        let toll = liveness::toll(&draft.world, observed, limits, now);
        draft.push(Entry::FreezeChanged {
            is_frozen: freeze.is_some(),
            unhealthy: toll.unhealthy,
            total: toll.total,
            at: now.wall,
        });
    }
    let mut rounds = 0;
    let outcome = loop {
        let count_before = draft.entries.len();
        let outcome = draft.round();
        if draft.entries.len() == count_before {
            break outcome;
        }
        rounds += 1;
        assert!(
            rounds < ROUNDS_MAX,
            "the rules undo each other: {:?}",
            draft.entries
        );
    };
    draft.push_held();
    draft.push_unplaced(&outcome.unplaced);
    let capacity = match scope {
        Scope::All => draft.push_wishes(&outcome.unmet, freeze.is_some()),
        Scope::Replicas => vec![],
    };
    let decision = Decision {
        entries: draft.entries,
        report: Report {
            freeze,
            waits: outcome.waits,
            capacity,
        },
    };
    let after = match draft.world {
        Cow::Borrowed(_) => None,
        Cow::Owned(after) => Some(after),
    };
    (decision, after)
}

/// What waits after a round, and how many replicas of each container have no place.
#[derive(Default)]
struct Outcome {
    waits: Vec<Wait>,
    unplaced: BTreeMap<ContainerName, u32>,
    /// Those that a machine more could help.
    unmet: Vec<Unmet>,
    /// Those that go before anybody who has a place and could have more.
    placeless: Vec<Placeless>,
}

impl Outcome {
    fn push_unmet(
        &mut self,
        container: &ContainerName,
        (revision, ordinal): (u64, Option<u32>),
        instead_of: Option<&ReplicaId>,
        why: &Why,
    ) {
        if !matches!(
            why,
            Why::VolumeInUse { .. } | Why::NoGroup { .. } | Why::Impossible { .. }
        ) {
            self.unmet.push(Unmet {
                container: container.clone(),
                revision,
                ordinal,
                instead_of: instead_of.cloned(),
                squeezed: None,
            });
            self.push_placeless(container, ordinal);
        }
    }

    fn push_placeless(&mut self, container: &ContainerName, ordinal: Option<u32>) {
        let placeless = Placeless {
            container: container.clone(),
            ordinal,
        };
        if self.placeless.last() != Some(&placeless) {
            self.placeless.push(placeless);
        }
    }
}

/// The world as it will be, and the entries that make it so.
struct Draft<'a> {
    world: Cow<'a, World>,
    observed: &'a Observed,
    limits: &'a Limits,
    now: Now,
    freeze: Option<Freeze>,
    entries: Vec<Entry>,
    /// Of the containers that are not in `dirty`, as of now.
    plans: BTreeMap<ContainerName, Plan>,
    /// Containers that an entry has changed since they were planned.
    dirty: BTreeSet<ContainerName>,
    /// Stops that nobody asked for, too many to be done.
    held: BTreeSet<ReplicaId>,
}

/// Starts of one container that are asked for together with those of all others.
struct Wanted {
    container: ContainerName,
    start: Start,
}

/// A place, and what is granted there where that is less than desired.
struct Found {
    place: Place,
    granted: Option<Granted>,
}

impl Draft<'_> {
    /// Appends an entry and what announces it.
    fn push(&mut self, entry: Entry) {
        let events = announce::announce(&self.world, self.observed, &entry);
        self.dirty.extend(container_of(&self.world, &entry));
        let world = self.world.to_mut();
        for entry in iter::once(entry).chain(events) {
            world.apply(&entry);
            self.entries.push(entry);
        }
    }

    fn push_gone(&mut self) {
        let gone: Vec<ReplicaId> = self
            .world
            .replicas()
            .values()
            .filter(|replica| self.observed.is_gone(replica))
            .map(|replica| replica.replica_id.clone())
            .collect();
        for replica_id in gone {
            let at = self.now.wall;
            self.push(Entry::ReplicaGone { replica_id, at });
        }
    }

    fn push_stop(&mut self, replica_id: ReplicaId, cause: StopCause) {
        self.push_picked(replica_id, cause, None, Asked::Yes);
    }

    fn push_picked(&mut self, replica_id: ReplicaId, cause: StopCause, picked: Option<Picked>, asked: Asked) {
        let at = self.now.wall;
        self.push(Entry::ReplicaStopping {
            replica_id,
            cause,
            picked,
            unasked: asked == Asked::No,
            at,
        });
    }

    /// Stops what was planned, but for what nobody asked for when that is too much.
    fn push_stops(&mut self, stops: Vec<(ReplicaId, StopCause, Option<Picked>)>) {
        let at = self.now.wall;
        let unasked = guard::unasked(&self.world, self.observed, stops.iter().map(|(id, ..)| id));
        let passed = guard::recent(&self.world, at);
        let is_held = !unasked.is_empty()
            && !guard::is_released(&self.world, at)
            && (self.world.held_stops().is_some()
                || !self.held.is_empty()
                || passed + unasked.len() > guard::allowance(&self.world, self.observed, &self.limits.guard));
        for (replica_id, cause, picked) in stops {
            if !unasked.contains(&replica_id) {
                self.push_picked(replica_id, cause, picked, Asked::Yes);
            } else if is_held {
                self.held.insert(replica_id);
            } else {
                self.push_picked(replica_id, cause, picked, Asked::No);
            }
        }
    }

    /// Begin and end of a hold.
    fn push_held(&mut self) {
        let at = self.now.wall;
        let count = u32::try_from(self.held.len()).unwrap_or(u32::MAX);
        if self.world.held_stops().is_some() != (count > 0) {
            self.push(Entry::StopsHeld { count, at });
        }
    }

    fn held_waits(&self) -> Vec<Wait> {
        let since = self.world.held_stops().map_or(self.now.wall, |held| held.since);
        let held = self.held.iter().filter_map(|id| self.world.replica(id));
        held.map(|replica| Wait {
            container: replica.container.clone(),
            replica_id: Some(replica.replica_id.clone()),
            reason: WaitReason::Held,
            since,
        })
        .collect()
    }

    fn push_unplaced(&mut self, unplaced: &BTreeMap<ContainerName, u32>) {
        let changed: Vec<(ContainerName, u32)> = self
            .world
            .containers()
            .iter()
            .map(|(name, container)| (name, container.unplaced, unplaced.get(name).copied().unwrap_or(0)))
            .filter(|(_, before, after)| before != after)
            .map(|(name, _, after)| (name.clone(), after))
            .collect();
        for (container, count) in changed {
            let at = self.now.wall;
            self.push(Entry::UnplacedChanged { container, count, at });
        }
    }

    fn push_wishes(&mut self, unmet: &[Unmet], is_frozen: bool) -> Vec<Outlook> {
        let at = self.now.wall;
        let outlooks = capacity::plan(&self.world, unmet, is_frozen, &self.limits.capacity, at);
        for entry in capacity::entries(&self.world, &outlooks, at) {
            self.push(entry);
        }
        outlooks
    }

    /// Every container once: stops first, since they free nothing yet but decide what starts.
    fn round(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        for entry in rollout::entries(&self.world, self.observed, &self.limits.rollout, self.now) {
            self.push(entry);
        }
        let mut wanted = vec![];
        let mut stops = vec![];
        let mut plans = std::mem::take(&mut self.plans);
        for name in std::mem::take(&mut self.dirty) {
            let mut plan = reconcile::reconcile(
                &self.world,
                self.observed,
                self.limits,
                self.now,
                self.freeze,
                &name,
            );
            for (replica_id, cause) in std::mem::take(&mut plan.stop) {
                let picked = plan.picked.remove(&replica_id);
                stops.push((replica_id, cause, picked));
            }
            plans.insert(name, plan);
        }
        self.push_stops(stops);
        for (name, plan) in &plans {
            wanted.extend(plan.start.iter().map(|start| Wanted {
                container: name.clone(),
                start: start.clone(),
            }));
            outcome.waits.extend(plan.wait.iter().cloned());
        }
        let surges_without_room = self.place(wanted, &mut outcome);
        for (name, plan) in &plans {
            if surges_without_room.contains(name) {
                self.make_room(plan);
            }
            self.move_stateful(name, plan, &mut outcome);
        }
        self.grow(&outcome.placeless);
        self.relieve(&plans, &mut outcome);
        self.plans = plans;
        outcome.waits.extend(self.held_waits());
        outcome.waits.sort_by(|one, other| {
            (&one.container, &one.replica_id).cmp(&(&other.container, &other.replica_id))
        });
        outcome
    }

    /// Places what has a place; gives the containers of which a surge has none.
    fn place(&mut self, wanted: Vec<Wanted>, outcome: &mut Outcome) -> BTreeSet<ContainerName> {
        let mut no_room = BTreeSet::new();
        if wanted.is_empty() {
            return no_room;
        }
        let places = {
            let world = &self.world;
            let requests: Vec<Request<'_>> = wanted
                .iter()
                .map(|wanted| request_at(world, &wanted.container, wanted.start.asked(), None))
                .collect();
            placement::place(Fleet::of(world), &requests)
        };
        let mut left = vec![];
        for (wanted, place) in wanted.into_iter().zip(places) {
            match place {
                Ok(place) => self.push_place(wanted, Found { place, granted: None }),
                Err(unplaced) => left.push((wanted, unplaced)),
            }
        }
        let found = self.squeeze(&left);
        for ((wanted, unplaced), found) in left.into_iter().zip(found) {
            match found {
                Some(found) => self.push_place(wanted, found),
                None => self.wait_for_place(&wanted, unplaced, &mut no_room, outcome),
            }
        }
        no_room
    }

    fn container(&self, name: &ContainerName) -> &Container {
        self.world
            .container(name)
            .expect("only containers that are there ask for places")
    }

    fn push_place(&mut self, wanted: Wanted, Found { place, granted }: Found) {
        let replica_id = match wanted.start.ordinal {
            Some(ordinal) => ReplicaId::stateful(&wanted.container, ordinal),
            None => stateless_id(&self.world, &wanted.container, &place.machine_id),
        };
        let placed = Placed {
            replica_id,
            ordinal: wanted.start.ordinal,
            revision: wanted.start.revision,
            container: wanted.container,
            machine_id: place.machine_id,
            ip: place.ip,
            host_port: place.host_port,
            devices: place.devices,
            chosen: Some(place.chosen),
            granted,
            relieves: match &wanted.start.purpose {
                Purpose::Relief(squeezed) => Some(squeezed.clone()),
                Purpose::Missing | Purpose::InsteadOf(_) | Purpose::Surge => None,
            },
            at: self.now.wall,
        };
        self.push(Entry::ReplicaPlaced(placed));
        if let Purpose::InsteadOf(former) = wanted.start.purpose {
            self.push_stop(former, StopCause::MachineUnhealthy);
        }
    }

    fn wait_for_place(
        &self,
        wanted: &Wanted,
        unplaced: Arc<Unplaced>,
        no_room: &mut BTreeSet<ContainerName>,
        outcome: &mut Outcome,
    ) {
        let name = &wanted.container;
        let container = self.container(name);
        let since = container.unplaced_since.unwrap_or(self.now.wall);
        let (replica_id, reason) = match &wanted.start.purpose {
            Purpose::Missing | Purpose::InsteadOf(_) => {
                let replica_id = match &wanted.start.purpose {
                    Purpose::InsteadOf(former) => Some(former.clone()),
                    Purpose::Missing | Purpose::Surge | Purpose::Relief(_) => wanted
                        .start
                        .ordinal
                        .map(|ordinal| ReplicaId::stateful(name, ordinal)),
                };
                if self.is_room_coming(name) {
                    outcome.push_placeless(name, wanted.start.ordinal);
                    (replica_id, WaitReason::RoomComing)
                } else {
                    *outcome.unplaced.entry(name.clone()).or_default() += 1;
                    outcome.push_unmet(name, wanted.start.asked(), None, &unplaced.why);
                    (replica_id, WaitReason::NoPlace(unplaced))
                }
            }
            Purpose::Surge => {
                no_room.insert(name.clone());
                if self.needs_room_to_move(container) {
                    outcome.push_unmet(name, wanted.start.asked(), None, &unplaced.why);
                }
                (None, WaitReason::NoRoomToMove(unplaced))
            }
            Purpose::Relief(_) => unreachable!("a relief without a place is not asked for again"),
        };
        outcome.waits.push(Wait {
            container: name.clone(),
            replica_id,
            reason,
            since,
        });
    }

    /// Replicas of the container that stop will leave room. A silent machine gives nothing back, so nobody is made to wait for
    /// it.
    fn is_room_coming(&self, name: &ContainerName) -> bool {
        let gives_back = |replica: &Replica| {
            let machine = self.world.machine(&replica.machine_id);
            !replica.is_live() && machine.is_some_and(|machine| machine.health == MachineHealthState::Running)
        };
        self.world.replicas_of(name).any(gives_back)
    }

    /// A surge without room waits for a machine only where nothing else can end its wait: a draining machine has to be left,
    /// and a single replica cannot make room for its own replacement.
    fn needs_room_to_move(&self, container: &Container) -> bool {
        let is_draining = |replica: &Replica| {
            let machine = self.world.machine(&replica.machine_id);
            replica.is_live() && machine.is_some_and(|machine| machine.draining_since.is_some())
        };
        let keeps_all = container.max_unavailable() == 0;
        container.wanted() < 2 || keeps_all || self.world.replicas_of(&container.spec.name).any(is_draining)
    }

    fn make_room(&mut self, plan: &Plan) {
        if let Some(replica_id) = &plan.make_room {
            self.push_stop(replica_id.clone(), StopCause::Updated);
        }
    }

    /// Stops a replica of a draining machine when its replacement would have a place.
    fn move_stateful(&mut self, name: &ContainerName, plan: &Plan, outcome: &mut Outcome) {
        // One fleet for all of them: what one is promised, the next one does not get.
        let mut fleet = (!plan.moving.is_empty()).then(|| Fleet::of(&self.world));
        for replica_id in &plan.moving {
            let Some(replica) = self.world.replica(replica_id) else {
                continue;
            };
            let container = self.container(name);
            let start = Start {
                ordinal: replica.ordinal,
                revision: container.revision_for(Some(replica.revision), replica.ordinal),
                purpose: Purpose::Missing,
            };
            let request = request_at(&self.world, name, start.asked(), Some(replica_id));
            let fleet = fleet.as_mut().expect("there is one where anything moves");
            let place = placement::place_in(fleet, &[request]).pop();
            match place.expect("one request has one outcome") {
                Ok(_) => self.push_stop(replica_id.clone(), StopCause::MachineDraining),
                Err(unplaced) if self.is_squeezed_elsewhere(replica, &unplaced) => {
                    self.push_stop(replica_id.clone(), StopCause::MachineDraining);
                }
                Err(unplaced) => {
                    outcome.push_unmet(name, start.asked(), Some(replica_id), &unplaced.why);
                    outcome.waits.push(Wait {
                        container: name.clone(),
                        replica_id: Some(replica_id.clone()),
                        reason: WaitReason::NoRoomToMove(unplaced),
                        since: self
                            .world
                            .machine(&replica.machine_id)
                            .and_then(|machine| machine.draining_since)
                            .unwrap_or(self.now.wall),
                    });
                }
            }
        }
    }
}

/// The container that an entry of a decision changes.
fn container_of(world: &World, entry: &Entry) -> Option<ContainerName> {
    match entry {
        Entry::ReplicaPlaced(placed) => Some(placed.container.clone()),
        Entry::ReplicaResized { replica_id, .. }
        | Entry::ReplicaStopping { replica_id, .. }
        | Entry::ReplicaGone { replica_id, .. } => {
            world.replica(replica_id).map(|replica| replica.container.clone())
        }
        Entry::UnplacedChanged { container, .. }
        | Entry::RolloutProven { container, .. }
        | Entry::RolloutStalled { container, .. }
        | Entry::RolloutCompleted { container, .. } => Some(container.clone()),
        Entry::RolloutTurned(turned) => Some(turned.container.clone()),
        Entry::ContainerScaled(scaled) => Some(scaled.container.clone()),
        Entry::MachineHealthChanged { .. }
        | Entry::StopsHeld { .. }
        | Entry::FreezeChanged { .. }
        | Entry::CapacityWished(_)
        | Entry::EventRecorded { .. } => None,
        Entry::ClusterCreated { .. }
        | Entry::ClusterDeleted { .. }
        | Entry::GroupsChanged { .. }
        | Entry::TokenRotated { .. }
        | Entry::TokensRevoked { .. }
        | Entry::MachineRegistered { .. }
        | Entry::MachineRemoved { .. }
        | Entry::MachineDraining { .. }
        | Entry::MachineDrainCancelled { .. }
        | Entry::MachineDrainForced { .. }
        | Entry::ContainerPut { .. }
        | Entry::ContainerStopped { .. }
        | Entry::ContainerStarted { .. }
        | Entry::ContainerDeleted { .. }
        | Entry::StopsReleased { .. }
        | Entry::RolloutPaused { .. }
        | Entry::RolloutResumed { .. }
        | Entry::EpochStarted { .. }
        | Entry::WriteKept(_) => panic!("a decision holds no such entry: {entry:?}"),
    }
}

/// A request for a replica of a declaration of the container, not only of the present one.
pub(crate) fn request_at<'a>(
    world: &'a World,
    name: &ContainerName,
    (revision, ordinal): (u64, Option<u32>),
    instead_of: Option<&'a ReplicaId>,
) -> Request<'a> {
    let request = request(world, name, ordinal, instead_of);
    let spec = world
        .container(name)
        .and_then(|container| container.spec_at(revision))
        .expect("a start names a declaration that is kept");
    Request {
        spec,
        amounts: Allocated::of(spec),
        ..request
    }
}

/// A request for a replica of what the container is to run.
pub(crate) fn request<'a>(
    world: &'a World,
    name: &ContainerName,
    ordinal: Option<u32>,
    instead_of: Option<&'a ReplicaId>,
) -> Request<'a> {
    let container = world
        .container(name)
        .expect("only containers that are there ask for places");
    Request {
        spec: &container.spec,
        amounts: Allocated::of(&container.spec),
        ordinal,
        instead_of,
        prefer: ordinal.and_then(|ordinal| container.last_machines.get(&ordinal)),
    }
}

/// Letters and digits of a stateless suffix, and how many suffixes there are: 36^5.
const SUFFIX_DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const SUFFIX_LEN: u32 = 5;
const SUFFIXES: u64 = 36u64.pow(SUFFIX_LEN);
/// Coprime to 36, so that counting up walks through all suffixes before it repeats one, in an order that looks random.
const SUFFIX_STEP: u64 = 22_695_479;
const _: () = assert!(
    !SUFFIX_STEP.is_multiple_of(2) && !SUFFIX_STEP.is_multiple_of(3),
    "the step is coprime to 36"
);

/// An id that no replica of the container had within the last 60 million placements of the cluster.
fn stateless_id(world: &World, container: &ContainerName, machine: &MachineId) -> ReplicaId {
    let mut rest = (world.placed_count() % SUFFIXES) * SUFFIX_STEP % SUFFIXES;
    let mut suffix = String::new();
    for _ in 0..SUFFIX_LEN {
        let digit = usize::try_from(rest % 36).expect("below 36");
        suffix.push(char::from(SUFFIX_DIGITS[digit]));
        rest /= 36;
    }
    // A machine id may be as long as a replica id may be; its end, being the more specific part, is what is kept.
    let room = 512 - container.as_str().len() - suffix.len() - 2;
    let machine = machine.as_str();
    let mut start = machine.len().saturating_sub(room);
    while !machine.is_char_boundary(start) {
        start += 1;
    }
    let machine = machine.get(start..).expect("a boundary was looked for");
    ReplicaId::new(format!("{container}-{machine}-{suffix}"))
        .expect("short enough and without control characters")
}

mod squeezed;

#[cfg(test)]
mod absurd;
#[cfg(test)]
mod drains;
#[cfg(test)]
mod random;
#[cfg(test)]
mod scale;
#[cfg(test)]
mod tests;
