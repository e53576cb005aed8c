//! `berth events`: what happened.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_api::event::{Event, EventType};
use berth_api::rest::ListEventsReply;
use clap::Args;

use crate::args::{Format, Output};
use crate::context::Session;
use crate::exit::Failure;
use crate::output::{self, Paint, Screen};

/// The API has no stream of events; new ones are asked for this often.
const POLL: Duration = Duration::from_secs(1);

/// Arguments of `berth events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Go on showing new ones
    #[arg(short, long)]
    follow: bool,
    /// Only those of one object, for example container/reader or machine/m1
    #[arg(long, value_name = "KIND/ID")]
    object: Option<String>,
    /// Only this severity: info, warning or error
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Only this reason, for example FailedScheduling
    #[arg(long)]
    reason: Option<String>,
    /// The newest so many
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: usize,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(args: EventsArgs, session: &Session, screen: &Screen) -> Result<(), Failure> {
    let path = ["clusters", session.cluster()?, "events"];
    let query = query(&args)?;
    let mut seen = BTreeMap::new();
    loop {
        let reply: ListEventsReply = session.client.get_with(&path, &query).await?;
        if args.output.output == Format::Json && !args.follow {
            return output::json(&reply);
        }
        // The scheduler says the newest first; a log is read downwards.
        for event in news(&mut seen, reply.events) {
            match args.output.output {
                Format::Table => output::line(text(screen, &event))?,
                Format::Json => output::line(serde_json::to_string(&event).unwrap_or_default())?,
            }
        }
        if !args.follow {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

fn query(args: &EventsArgs) -> Result<Vec<(&'static str, String)>, Failure> {
    let mut query = vec![("limit", args.limit.to_string())];
    if let Some(object) = &args.object {
        let (kind, id) = object
            .split_once('/')
            .ok_or_else(|| Failure::input("write --object as KIND/ID, for example container/reader"))?;
        query.push(("involvedObject.type", kind.to_owned()));
        query.push(("involvedObject.id", id.to_owned()));
    }
    query.extend(args.kind.clone().map(|kind| ("type", kind)));
    query.extend(args.reason.clone().map(|reason| ("reason", reason)));
    Ok(query)
}

/// Those not yet shown, and those that happened again since, the oldest first. Remembers only what the scheduler still
/// says, so that a long watch does not grow.
fn news(seen: &mut BTreeMap<String, u32>, mut events: Vec<Event>) -> Vec<Event> {
    events.reverse();
    let now_there: BTreeMap<String, u32> = events
        .iter()
        .map(|event| (event.event_id.clone(), event.count))
        .collect();
    events.retain(|event| seen.get(&event.event_id).is_none_or(|count| *count < event.count));
    *seen = now_there;
    events
}

fn text(screen: &Screen, event: &Event) -> String {
    let paint = match event.kind {
        EventType::Info => Paint::Good,
        EventType::Warning => Paint::Warn,
        EventType::Error => Paint::Bad,
    };
    let times = if event.count > 1 {
        format!(" (x{})", event.count)
    } else {
        String::new()
    };
    let object = format!("{}/{}", event.involved_object.kind(), event.involved_object.id());
    format!(
        "{}  {}  {object:<28}  {}{}",
        screen.paint(Paint::Dim, &event.last_timestamp.to_string()),
        screen.paint(paint, &format!("{:<20}", event.reason())),
        event.message,
        screen.paint(Paint::Dim, &times),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_api::event::read_event;
    use serde_json::json;

    fn event(id: &str, count: u32) -> Event {
        read_event(&json!({"eventId": id, "type": "warning", "message": "no room",
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:01Z", "count": count,
            "involvedObject": {"type": "container", "id": "reader"}, "source": {"component": "scheduler"},
            "reason": "FailedScheduling", "attemptedReplicas": 1, "capacityGroup": "general"}))
        .unwrap()
    }

    #[test]
    fn only_new_and_repeated_events_are_news() {
        let mut seen = BTreeMap::new();
        let first = news(&mut seen, vec![event("b", 1), event("a", 1)]);
        assert_eq!(
            first
                .iter()
                .map(|event| event.event_id.as_str())
                .collect::<Vec<_>>(),
            ["a", "b"]
        );
        let second = news(&mut seen, vec![event("c", 1), event("b", 2), event("a", 1)]);
        assert_eq!(
            second
                .iter()
                .map(|event| event.event_id.as_str())
                .collect::<Vec<_>>(),
            ["b", "c"]
        );
    }

    #[test]
    fn an_event_is_one_line() {
        assert_eq!(
            text(&Screen::PLAIN, &event("a", 3)),
            "2026-01-01T00:00:01.000Z  FailedScheduling      container/reader              no room (x3)"
        );
    }
}
