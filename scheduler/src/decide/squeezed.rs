//! Of a decision, what is about squeezed replicas: places at less than desired, growth, and whole replicas in their stead.
//! The rules are those of [`crate::squeeze`]; this asks placement and writes entries.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_api::id::{ContainerName, ReplicaId};

use super::{Draft, Found, Outcome, Wanted, request};
use crate::capacity::{self, Unmet};
use crate::entry::Entry;
use crate::placement::{self, Fleet, Request, Unplaced, Why};
use crate::reconcile::{Plan, Purpose, Start};
use crate::squeeze::{self, Placeless};
use crate::world::{Allocated, Replica, World};

impl Draft<'_> {
    /// Places at less than desired, for those that may have one.
    pub(super) fn squeeze(&self, left: &[(Wanted, Arc<Unplaced>)]) -> Vec<Option<Found>> {
        let mut found: Vec<Option<Found>> = left.iter().map(|_| None).collect();
        let may: Vec<usize> = (0..left.len())
            .filter(|index| self.may_squeeze(&left[*index]))
            .collect();
        if may.is_empty() {
            return found;
        }
        let unmet: Vec<Unmet> = may
            .iter()
            .map(|index| Unmet {
                container: left[*index].0.container.clone(),
                revision: left[*index].0.start.revision,
                ordinal: left[*index].0.start.ordinal,
                instead_of: None,
                squeezed: None,
            })
            .collect();
        let beyond = capacity::is_beyond_max(&self.world, &unmet, &self.limits.capacity, self.now.wall);
        let mut fleet = Fleet::of(&self.world);
        // Where the minimum of one did not fit, that of the next like it does not either.
        let mut hopeless = BTreeSet::new();
        for (index, _) in may.into_iter().zip(beyond).filter(|(_, is_beyond)| *is_beyond) {
            let Wanted { container, start } = &left[index].0;
            if hopeless.contains(&(container, start.ordinal)) {
                continue;
            }
            match self.squeezed_place(&mut fleet, container, start.ordinal, None) {
                Some(place) => found[index] = Some(place),
                None => {
                    hopeless.insert((container, start.ordinal));
                }
            }
        }
        found
    }

    /// Whether this replica, which has no place at what it desires, may do with less.
    fn may_squeeze(&self, (wanted, unplaced): &(Wanted, Arc<Unplaced>)) -> bool {
        let container = self.container(&wanted.container);
        let is_last_resort = match wanted.start.purpose {
            Purpose::Missing | Purpose::InsteadOf(_) => !self.is_room_coming(&wanted.container),
            Purpose::Surge => self.needs_room_to_move(container),
            Purpose::Relief(_) => false,
        };
        is_last_resort
            && wanted.start.revision == container.revision
            && squeeze::is_squeezable(&container.spec)
            && matches!(unplaced.why, Why::NoRoom { .. })
    }

    /// The best place at less than desired. It is granted the minimum: who else has no place goes before who could have more.
    fn squeezed_place(
        &self,
        fleet: &mut Fleet,
        name: &ContainerName,
        ordinal: Option<u32>,
        instead_of: Option<&ReplicaId>,
    ) -> Option<Found> {
        let spec = &self.container(name).spec;
        let steps = squeeze::steps(&spec.resources);
        let amounts: Vec<Allocated> = steps.iter().map(|step| Allocated::granted(spec, *step)).collect();
        let request = request(&self.world, name, ordinal, instead_of);
        let place = placement::place_at_most(fleet, &request, &amounts)?;
        let granted = steps.last().copied();
        Some(Found { place, granted })
    }

    /// Whether a replica that has to leave its machine would have a place at less than desired.
    pub(super) fn is_squeezed_elsewhere(&self, replica: &Replica, unplaced: &Unplaced) -> bool {
        let container = self.container(&replica.container);
        let revision = container.revision_for(Some(replica.revision), replica.ordinal);
        if revision != container.revision
            || !squeeze::is_squeezable(&container.spec)
            || !matches!(unplaced.why, Why::NoRoom { .. })
        {
            return false;
        }
        let unmet = Unmet {
            container: replica.container.clone(),
            revision,
            ordinal: replica.ordinal,
            instead_of: Some(replica.replica_id.clone()),
            squeezed: None,
        };
        let thresholds = &self.limits.capacity;
        let beyond = capacity::is_beyond_max(&self.world, &[unmet], thresholds, self.now.wall);
        let mut fleet = Fleet::of(&self.world);
        let instead_of = Some(&replica.replica_id);
        beyond == [true]
            && self
                .squeezed_place(&mut fleet, &replica.container, replica.ordinal, instead_of)
                .is_some()
    }

    /// Gives squeezed replicas what is free beside them.
    pub(super) fn grow(&mut self, placeless: &[Placeless]) {
        for (replica_id, granted) in squeeze::growth(&self.world, placeless) {
            let at = self.now.wall;
            self.push(Entry::ReplicaResized {
                replica_id,
                granted,
                at,
            });
        }
    }

    /// Starts whole replicas in the stead of squeezed ones where there is room, last of all, one of a container at a time.
    pub(super) fn relieve(&mut self, plans: &BTreeMap<ContainerName, Plan>, outcome: &mut Outcome) {
        let is_waited_for = |world: &World, name: &ContainerName, outcome: &Outcome| {
            let group = |name| {
                world
                    .container(name)
                    .map(|container| &container.spec.capacity_group)
            };
            let mut placeless = outcome.placeless.iter();
            placeless.any(|other| group(&other.container) == group(name))
        };
        let mut wanted = vec![];
        for (name, plan) in plans {
            for replica_id in &plan.squeezed {
                let Some(granted) = self.world.replica(replica_id).and_then(|replica| replica.granted) else {
                    continue;
                };
                outcome.unmet.push(Unmet {
                    container: name.clone(),
                    revision: self.container(name).revision,
                    ordinal: None,
                    instead_of: None,
                    squeezed: Some(granted),
                });
            }
            if let Some(squeezed) = &plan.relieve
                && !is_waited_for(&self.world, name, outcome)
            {
                let start = Start {
                    ordinal: None,
                    revision: self.container(name).revision,
                    purpose: Purpose::Relief(squeezed.clone()),
                };
                wanted.push(Wanted {
                    container: name.clone(),
                    start,
                });
            }
        }
        if wanted.is_empty() {
            return;
        }
        let places = {
            let world = &self.world;
            let requests: Vec<Request<'_>> = wanted
                .iter()
                .map(|wanted| request(world, &wanted.container, None, None))
                .collect();
            placement::place(Fleet::of(world), &requests)
        };
        for (wanted, place) in wanted.into_iter().zip(places) {
            if let Ok(place) = place {
                self.push_place(wanted, Found { place, granted: None });
            }
        }
    }
}

#[cfg(test)]
mod tests;
