//! Answers to "why": what a container, replica or machine waits for, since when, and what would help.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// What is explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    Container,
    Replica,
    Machine,
}

impl Subject {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Replica => "replica",
            Self::Machine => "machine",
        }
    }
}

impl std::str::FromStr for Subject {
    type Err = UnknownSubject;

    fn from_str(text: &str) -> Result<Self, UnknownSubject> {
        [Self::Container, Self::Replica, Self::Machine]
            .into_iter()
            .find(|subject| subject.as_str() == text)
            .ok_or_else(|| UnknownSubject(text.to_owned()))
    }
}

/// A word that is no [`Subject`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be explained; write container, replica or machine")]
pub struct UnknownSubject(pub String);

/// One thing that is waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    pub what: String,
    pub since: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt: Option<Timestamp>,
    /// What would end the wait.
    pub helps: String,
}

/// How many machines one placement filter ruled out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct FilterCount {
    /// Name of the filter: `group`, `status`, `cpu`, `memory`, `ephemeral`, `gpu`, `zone`, `hostPort`, `volume`, `address`.
    pub filter: String,
    pub machines: u32,
    /// The machine that came closest, and what it lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<String>,
}

/// The answer to `explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    pub kind: Subject,
    pub id: String,
    /// The wire's status word.
    pub state: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// One sentence.
    pub summary: String,
    /// Empty when nothing is waited for.
    #[serde(default)]
    pub waits: Vec<Waiting>,
    /// For an unplaced replica: what each filter ruled out.
    #[serde(default)]
    pub filters: Vec<FilterCount>,
    /// Label and value, in the order to be shown.
    #[serde(default)]
    pub facts: Vec<(String, String)>,
}

/// For terminals, without colour.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.kind.as_str(), self.id, self.state)?;
        if let Some(since) = self.since {
            write!(f, " since {since}")?;
        }
        write!(f, "\n  {}", self.summary)?;
        for wait in &self.waits {
            write!(f, "\n\nwaits for  {}\nsince      {}", wait.what, wait.since)?;
            if let Some(next) = wait.next_attempt {
                write!(f, "\nnext try   {next}")?;
            }
            write!(f, "\nhelps      {}", wait.helps)?;
        }
        if !self.filters.is_empty() {
            f.write_str("\n\nmachines ruled out")?;
            let width = widest(self.filters.iter().map(|filter| filter.filter.as_str()));
            for filter in &self.filters {
                write!(f, "\n  {:<width$}  {:>4}", filter.filter, filter.machines)?;
                if let Some(nearest) = &filter.nearest {
                    write!(f, "  nearest: {nearest}")?;
                }
            }
        }
        if !self.facts.is_empty() {
            f.write_str("\n")?;
            let width = widest(self.facts.iter().map(|(label, _)| label.as_str()));
            for (label, value) in &self.facts {
                write!(f, "\n{label:<width$}  {value}")?;
            }
        }
        Ok(())
    }
}

fn widest<'a>(texts: impl Iterator<Item = &'a str>) -> usize {
    texts.map(|text| text.chars().count()).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unplaced() -> Explanation {
        Explanation {
            kind: Subject::Replica,
            id: "reader-3".into(),
            state: "pending".into(),
            since: Some(Timestamp::from_millis(0)),
            summary: "no machine of group general has room".into(),
            waits: vec![Waiting {
                what: "4 GiB of memory on one machine".into(),
                since: Timestamp::from_millis(0),
                next_attempt: None,
                helps: "raise maxSize of group general above 3".into(),
            }],
            filters: vec![FilterCount {
                filter: "memory".into(),
                machines: 3,
                nearest: Some("m-2 lacks 512 MiB".into()),
            }],
            facts: vec![
                ("image".into(), "app:1".into()),
                ("container".into(), "reader".into()),
            ],
        }
    }

    #[test]
    fn prints_for_terminals() {
        let golden = "replica reader-3: pending since 1970-01-01T00:00:00.000Z
  no machine of group general has room

waits for  4 GiB of memory on one machine
since      1970-01-01T00:00:00.000Z
helps      raise maxSize of group general above 3

machines ruled out
  memory     3  nearest: m-2 lacks 512 MiB

image      app:1
container  reader";
        assert_eq!(unplaced().to_string(), golden);
    }

    #[test]
    fn travels_as_json() {
        let json = serde_json::to_string(&unplaced()).unwrap();
        assert_eq!(serde_json::from_str::<Explanation>(&json).unwrap(), unplaced());
    }
}
