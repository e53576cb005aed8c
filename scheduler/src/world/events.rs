//! The latest events of a cluster, repeats merged.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use berth_api::event::Event;
use imbl::OrdMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A cluster keeps this many events; about 400 bytes each, so 0.4 MB.
pub const EVENTS_MAX: usize = 1000;

/// Events in the order of their last repeat. Cheap to clone, and to add to, since most changes of a cluster are announced by
/// one: decisions are made on clones of the world.
#[derive(Debug, Clone, Default)]
pub struct Events {
    /// By a number that rises with each record.
    recent: OrdMap<u64, Arc<Event>>,
    /// Number of the latest event that looks so; derived from `recent`. Of two that look alike by chance only the latest is
    /// found, so that the other is not merged with.
    by_looks: OrdMap<u64, u64>,
}

impl Events {
    /// The latest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &Event> {
        self.recent.values().rev().map(Arc::as_ref)
    }

    /// Keeps an event, or counts it as a repeat of one that is kept; `number` names it when it has no id.
    pub(super) fn record(&mut self, event: &Event, number: u64) {
        let known = self.by_looks.get(&looks(event)).copied();
        let repeated = known.filter(|key| {
            self.recent
                .get(key)
                .is_some_and(|known| known.is_repeat_of(event))
        });
        let merged = match repeated.and_then(|key| self.recent.remove(&key)) {
            Some(known) => {
                let mut known = Arc::unwrap_or_clone(known);
                known.merge(event.clone());
                known
            }
            None => Event {
                event_id: if event.event_id.is_empty() {
                    number.to_string()
                } else {
                    event.event_id.clone()
                },
                ..event.clone()
            },
        };
        self.push(merged);
        if self.recent.len() > EVENTS_MAX {
            self.pop();
        }
    }

    fn push(&mut self, event: Event) {
        let key = self.recent.get_max().map_or(0, |(key, _)| key + 1);
        self.by_looks.insert(looks(&event), key);
        self.recent.insert(key, Arc::new(event));
    }

    fn pop(&mut self) {
        let Some((key, oldest)) = self.recent.get_min().cloned() else {
            return;
        };
        self.recent.remove(&key);
        let looks = looks(&oldest);
        if self.by_looks.get(&looks) == Some(&key) {
            self.by_looks.remove(&looks);
        }
    }
}

/// Equal for events that are repeats of each other. Never stored: it may differ from build to build.
fn looks(event: &Event) -> u64 {
    let mut hasher = DefaultHasher::new();
    event.kind.hash(&mut hasher);
    event.involved_object.hash(&mut hasher);
    event.source.hash(&mut hasher);
    event.reason().hash(&mut hasher);
    event.message.hash(&mut hasher);
    hasher.finish()
}

impl PartialEq for Events {
    fn eq(&self, other: &Self) -> bool {
        self.recent.values().eq(other.recent.values())
    }
}

impl Serialize for Events {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.recent.values().map(Arc::as_ref))
    }
}

impl<'de> Deserialize<'de> for Events {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut events = Self::default();
        for event in Vec::deserialize(deserializer)? {
            events.push(event);
        }
        Ok(events)
    }
}
