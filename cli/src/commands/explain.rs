//! `berth explain`: why something is as it is.

use berth_api::explain::{Explanation, Subject};
use berth_api::time::Timestamp;
use clap::Args;

use crate::args::{Format, Output};
use crate::client::ClientError;
use crate::context::Session;
use crate::exit::{Code, Failure};
use crate::output::{self, Screen};
use crate::render::explain::explanation;

/// Arguments of `berth explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// A container, replica or machine; say `machine/NAME` where a name is ambiguous
    name: String,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(args: ExplainArgs, session: &Session, screen: &Screen) -> Result<(), Failure> {
    let it = find(session, &args.name).await?;
    match args.output.output {
        Format::Json => output::json(&it),
        Format::Table => output::line(explanation(screen, Timestamp::now(), &it)),
    }
}

/// The subjects a text may mean, in the order they are tried.
fn subjects(name: &str) -> Vec<(Subject, &str)> {
    if let Some((kind, rest)) = name.split_once('/')
        && let Ok(subject) = kind.parse()
    {
        return vec![(subject, rest)];
    }
    [Subject::Container, Subject::Replica, Subject::Machine]
        .map(|subject| (subject, name))
        .to_vec()
}

async fn find(session: &Session, name: &str) -> Result<Explanation, Failure> {
    for (subject, id) in subjects(name) {
        match get(session, subject, id).await {
            Err(error) if error.is_not_found() => {}
            other => return Ok(other?),
        }
    }
    // A cluster that is unknown is not found either: told as such.
    session
        .client
        .get::<serde_json::Value>(&["clusters", session.cluster()?])
        .await?;
    Err(Failure::new(
        Code::NotFound,
        format!(
            "{name} is no container, replica or machine of cluster {}",
            session.cluster()?
        ),
    ))
}

/// Asks for one explanation.
pub(crate) async fn get(session: &Session, subject: Subject, id: &str) -> Result<Explanation, ClientError> {
    let cluster = session.cluster().unwrap_or_default();
    session
        .client
        .get(&["clusters", cluster, "explain", subject.as_str(), id])
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_before_a_slash_is_meant_alone() {
        assert_eq!(subjects("machine/m1"), [(Subject::Machine, "m1")]);
        assert_eq!(subjects("reader").len(), 3);
        assert_eq!(subjects("acme/reader")[0], (Subject::Container, "acme/reader"));
    }
}
