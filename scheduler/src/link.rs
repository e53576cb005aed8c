//! The node link: enrolment and sessions over mutual TLS. See `api/proto/link.proto` for what travels.

mod sessions;

use berth_api::link::{SchedulerMessage, scheduler_message::Kind};

pub use sessions::{LogQuery, LogStream, Sessions};

fn message(kind: Kind) -> SchedulerMessage {
    SchedulerMessage { kind: Some(kind) }
}
