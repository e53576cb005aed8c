//! The latest events of a cluster, repeats merged.

use std::collections::VecDeque;
use std::sync::Arc;

use berth_api::event::Event;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A cluster keeps this many events; about 400 bytes each, so 0.4 MB.
pub const EVENTS_MAX: usize = 1000;

/// Events in the order of their last repeat. Cheap to clone: decisions are made on clones of the world.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Events {
    recent: Arc<VecDeque<Event>>,
}

impl Events {
    /// The latest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &Event> {
        self.recent.iter().rev()
    }

    /// Keeps an event, or counts it as a repeat of one that is kept; `number` names it when it has no id.
    pub(super) fn record(&mut self, event: &Event, number: u64) {
        let recent = Arc::make_mut(&mut self.recent);
        let known = recent.iter().rposition(|known| known.is_repeat_of(event));
        let merged = match known.and_then(|index| recent.remove(index)) {
            Some(mut known) => {
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
        recent.push_back(merged);
        if recent.len() > EVENTS_MAX {
            recent.pop_front();
        }
    }
}

impl Serialize for Events {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.recent.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Events {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        VecDeque::deserialize(deserializer).map(|recent| Self {
            recent: Arc::new(recent),
        })
    }
}
