//! News for people: a bounded queue of wire events between the core and the link, oldest dropped first.
//!
//! Input: what happened to replicas. Output: events in order, taken by the link when there is one. While the scheduler
//! is away the queue fills and then forgets from its old end; the count of the forgotten is in the log and the status
//! is whole anyway.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use berth_api::event::{Event, EventSource, InvolvedObject};
use berth_api::id::MachineId;
use berth_api::time::Timestamp;
use tokio::sync::Notify;

use crate::replica::Happening;

/// Events kept while nobody takes them: a busy hour of one machine.
const EVENTS_MAX: usize = 1000;

/// The queue; shared by its handles.
#[derive(Debug)]
pub struct EventQueue {
    machine_id: MachineId,
    queue: Mutex<Queue>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Event>,
    dropped: u64,
    made: u64,
}

impl EventQueue {
    #[must_use]
    pub fn new(machine_id: MachineId) -> Arc<Self> {
        Arc::new(Self {
            machine_id,
            queue: Mutex::default(),
            filled: Notify::new(),
        })
    }

    /// Adds what happened.
    pub fn push(&self, happening: Happening, now: Timestamp) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.made += 1;
        let event = Event {
            event_id: format!("{}-{}-{}", self.machine_id, now.millis(), queue.made),
            kind: happening.kind,
            message: happening.message,
            first_timestamp: now,
            last_timestamp: now,
            count: 1,
            involved_object: InvolvedObject::Replica(happening.replica_id.to_string()),
            source: EventSource::Horizond {
                machine_id: self.machine_id.to_string(),
            },
            details: happening.details,
        };
        if queue.events.len() >= EVENTS_MAX {
            queue.events.pop_front();
            queue.dropped += 1;
        }
        queue.events.push_back(event);
        drop(queue);
        self.filled.notify_one();
    }

    /// Takes the oldest event; waits for one. Cancel-safe: an event is taken or stays.
    pub async fn next(&self) -> Event {
        loop {
            if let Some(event) = self.take() {
                return event;
            }
            self.filled.notified().await;
        }
    }

    fn take(&self) -> Option<Event> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let event = queue.events.pop_front()?;
        let dropped = std::mem::take(&mut queue.dropped);
        if dropped > 0 {
            tracing::warn!(dropped, reason = "queue full", "events were dropped");
        }
        Some(event)
    }

    /// Puts back an event that could not be sent.
    pub fn put_back(&self, event: Event) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.events.len() < EVENTS_MAX {
            queue.events.push_front(event);
        } else {
            queue.dropped += 1;
        }
        drop(queue);
        self.filled.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_api::event::{EventDetails, EventType, read_event};
    use berth_api::id::ReplicaId;

    #[tokio::test]
    async fn the_oldest_are_dropped_and_the_rest_can_be_read_by_the_wire() {
        let queue = EventQueue::new(MachineId::new("m1").unwrap());
        for previous_crashes in 0..1005 {
            let details = EventDetails::CrashLoopRecovered { previous_crashes };
            let replica_id = ReplicaId::new("r-0").unwrap();
            let happening = Happening {
                replica_id,
                kind: EventType::Info,
                message: "it runs".into(),
                details,
            };
            queue.push(happening, Timestamp::from_millis(1_700_000_000_000));
        }
        let first = queue.next().await;
        assert_eq!(
            first.details,
            EventDetails::CrashLoopRecovered { previous_crashes: 5 }
        );
        let json = serde_json::to_value(&first).unwrap();
        assert!(read_event(&json).is_ok(), "{json}");
    }
}
