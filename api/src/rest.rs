//! Bodies of the REST API: requests are read from untrusted JSON into the nouns of this crate, with all faults at once;
//! replies are plain structures that serve the scheduler (writing) and the command line (reading).
//!
//! Shapes are those of the public API's version 1.1.0: an integer never travels as `3.0`, required lists are `[]` and
//! never `null`, members that an older client requires are `null` and never absent. Berth's own members are additions.
//!
//! | module | bodies of |
//! | --- | --- |
//! | [`cluster`] | clusters, capacity groups, tokens, the capacity plan |
//! | [`container`] | containers and their replicas |
//! | [`node`] | register, heartbeat, posted events, machines |
//! | [`aggregate`] | sums over all clusters |
//! | [`rollout`] | how the change of a container's replicas stands |
//! | [`operator`] | Berth's additions: list of clusters, replicas, logs |
//! | [`tunnel`] | messages of `exec` and `port-forward` |

pub mod aggregate;
pub mod cluster;
pub mod container;
mod contradiction;
pub(crate) mod declaration;
#[cfg(test)]
mod edges;
pub mod node;
pub mod operator;
mod pattern;
pub(crate) mod probes;
pub mod repack;
pub mod rollout;
#[cfg(feature = "openapi")]
pub mod schema;
pub mod tunnel;
mod update;

use serde::{Deserialize, Serialize};

use crate::event::{Event, EventType, OBJECT_KINDS};
use crate::validate::{Fault, Faults};

/// `{"success": true}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Success {
    pub success: bool,
}

/// The only content [`Success`] has.
pub const SUCCESS: Success = Success { success: true };

/// `{"error": {code, message}}`, and `faults` where an input was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorReply {
    pub error: ErrorDetail,
    /// Berth's addition: each fault of the input with its place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
}

/// A stable word for programs and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorDetail {
    pub code: String,
    pub message: String,
}

impl ErrorReply {
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            error: ErrorDetail {
                code: code.to_owned(),
                message: message.into(),
            },
            faults: Vec::new(),
        }
    }

    /// The reply to an input with faults: its message lists all of them, since error bodies are not decoded by the
    /// generated client.
    #[must_use]
    pub fn invalid(code: &str, faults: Faults) -> Self {
        Self {
            faults: faults.list().to_vec(),
            ..Self::new(code, faults.to_string())
        }
    }
}

/// `{events: [Event]}`, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ListEventsReply {
    pub events: Vec<Event>,
}

/// Which events are wanted. The default takes the newest [`EVENTS_DEFAULT`] of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFilter {
    /// The wire's word: `cluster`, `container`, `replica`, `machine`, `capacityGroup`.
    pub object_kind: Option<String>,
    pub object_id: Option<String>,
    pub kind: Option<EventType>,
    pub reason: Option<String>,
    pub limit: usize,
}

/// Events of one reply unless asked otherwise.
pub const EVENTS_DEFAULT: usize = 100;
/// Events of one reply at most.
pub const EVENTS_MAX: usize = 1000;

impl Default for EventFilter {
    fn default() -> Self {
        Self {
            object_kind: None,
            object_id: None,
            kind: None,
            reason: None,
            limit: EVENTS_DEFAULT,
        }
    }
}

impl EventFilter {
    #[must_use]
    pub fn matches(&self, event: &Event) -> bool {
        let agrees =
            |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        agrees(&self.object_kind, event.involved_object.kind())
            && agrees(&self.object_id, event.involved_object.id())
            && self.kind.is_none_or(|kind| kind == event.kind)
            && agrees(&self.reason, event.reason())
    }

    /// Reads the query of a list of events. Unknown keys are ignored, unknown values are not.
    ///
    /// # Errors
    /// With every fault of the query.
    pub fn from_query<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, Faults> {
        let mut filter = Self::default();
        let mut faults = Vec::new();
        for (key, value) in pairs {
            let problem = match key {
                "involvedObject.type" if OBJECT_KINDS.iter().any(|(word, _)| *word == value) => {
                    filter.object_kind = Some(value.to_owned());
                    None
                }
                "involvedObject.type" => {
                    let words: Vec<&str> = OBJECT_KINDS.iter().map(|(word, _)| *word).collect();
                    Some(format!("{value:?} is unknown; write one of {}", words.join(", ")))
                }
                "involvedObject.id" => {
                    filter.object_id = Some(value.to_owned());
                    None
                }
                "type" => match EventType::WORDS.iter().find(|(word, _)| *word == value) {
                    Some((_, kind)) => {
                        filter.kind = Some(*kind);
                        None
                    }
                    None => Some(format!("{value:?} is unknown; write one of info, warning, error")),
                },
                "reason" => {
                    filter.reason = Some(value.to_owned());
                    None
                }
                "limit" => match value.parse::<usize>() {
                    Ok(limit) if (1..=EVENTS_MAX).contains(&limit) => {
                        filter.limit = limit;
                        None
                    }
                    _ => Some(format!(
                        "{value:?} is out of range; write a whole number from 1 to {EVENTS_MAX}"
                    )),
                },
                _ => None,
            };
            if let Some(problem) = problem {
                faults.push(Fault {
                    path: key.to_owned(),
                    problem,
                });
            }
        }
        Faults::check(faults)?;
        Ok(filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_query_lists_all_its_faults() {
        let faults = EventFilter::from_query([
            ("limit", "0"),
            ("type", "fatal"),
            ("involvedObject.type", "pod"),
            ("extra", "x"),
        ])
        .unwrap_err();
        assert_eq!(faults.list().len(), 3, "{faults}");
        let filter = EventFilter::from_query([("limit", "7"), ("type", "error")]).unwrap();
        assert_eq!((filter.limit, filter.kind), (7, Some(EventType::Error)));
    }

    #[test]
    fn an_invalid_input_is_told_whole_in_the_message() {
        let reply = ErrorReply::invalid("invalid_container", Faults::one("ports", "is missing"));
        assert_eq!(
            serde_json::to_value(&reply).unwrap(),
            serde_json::json!({
                "error": {"code": "invalid_container", "message": "ports: is missing"},
                "faults": [{"path": "ports", "problem": "is missing"}]
            })
        );
    }
}
