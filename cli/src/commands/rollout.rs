//! `berth rollout`: how the change of a container's replicas stands, and what can be done about it.

use berth_api::rest::Success;
use berth_api::rest::container::GetContainerReply;
use berth_api::rest::rollout::RolloutView;
use berth_api::time::Timestamp;
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::args::{Format, Output};
use crate::context::Session;
use crate::exit::{Code, Failure};
use crate::output::{self, Screen};
use crate::render::text;

/// Arguments of `berth rollout`.
#[derive(Debug, Args)]
pub(crate) struct RolloutArgs {
    #[command(subcommand)]
    command: RolloutCommand,
}

#[derive(Debug, Subcommand)]
enum RolloutCommand {
    /// Show how far the container's rollout is, and why it is not further
    Status {
        /// The container
        name: String,
        #[command(flatten)]
        output: Output,
    },
    /// Start and stop nothing for the rollout until it is resumed
    Pause {
        /// The container
        name: String,
    },
    /// Go on with a paused rollout, or try again what was rolled back
    Resume {
        /// The container
        name: String,
    },
    /// Declare again what was rolled out completely before; after a rollback, keep what runs
    Undo {
        /// The container
        name: String,
    },
}

pub(crate) async fn run(args: RolloutArgs, session: &Session, screen: &Screen) -> Result<(), Failure> {
    match args.command {
        RolloutCommand::Status { name, output } => status(&name, output, session, screen).await,
        RolloutCommand::Pause { name } => act(&name, "pause", session, screen).await,
        RolloutCommand::Resume { name } => act(&name, "resume", session, screen).await,
        RolloutCommand::Undo { name } => act(&name, "undo", session, screen).await,
    }
}

async fn act(name: &str, verb: &str, session: &Session, screen: &Screen) -> Result<(), Failure> {
    let path = [
        "clusters",
        session.cluster()?,
        "containers",
        name,
        "rollout",
        verb,
    ];
    session.client.post::<Success>(&path, None::<&Value>).await?;
    status(name, Output::default(), session, screen).await
}

async fn status(name: &str, output: Output, session: &Session, screen: &Screen) -> Result<(), Failure> {
    let path = ["clusters", session.cluster()?, "containers", name];
    let reply: GetContainerReply = session.client.get(&path).await?;
    let Some(rollout) = &reply.rollout else {
        return Err(Failure::new(
            Code::NotFound,
            format!("the scheduler tells no rollout of {name}: it is older than rollouts"),
        ));
    };
    if output.output == Format::Json {
        return output::json(rollout);
    }
    let declared = reply.config.image.as_str();
    output::line(describe(screen, Timestamp::now(), (name, declared), rollout))
}

/// The first line is the answer; the others are why.
fn describe(
    screen: &Screen,
    now: Timestamp,
    (name, declared): (&str, &str),
    rollout: &RolloutView,
) -> String {
    let phase = screen.paint(text::rollout_paint(rollout.phase), &rollout.phase.to_string());
    let reason = rollout.reason.as_ref().map(|reason| format!(": {reason}"));
    let mut lines = vec![
        format!(
            "rollout {} of {name} is {phase}{}",
            rollout.id,
            reason.unwrap_or_default()
        ),
        format!(
            "  {} of {} updated, {} ready, {} old left",
            rollout.updated, rollout.total, rollout.ready, rollout.old
        ),
    ];
    let ago = |at: Timestamp| format!("{} ago", text::duration(now.since(at)));
    let changes = match rollout.changes.as_slice() {
        [] => String::new(),
        changes => format!(" ({})", changes.join(", ")),
    };
    lines.push(format!(
        "  started {} because {}{changes}",
        ago(rollout.started_at),
        rollout.cause
    ));
    if rollout.failed_starts > 0 {
        lines.push(format!("  {} failed starts so far", rollout.failed_starts));
    }
    if declared != rollout.image {
        lines.push(format!("  runs {}, while {declared} is declared", rollout.image));
    }
    if let Some(former) = &rollout.previous {
        let reason = former.reason.as_ref().map(|reason| format!(": {reason}"));
        lines.push(format!(
            "  before: rollout {}, {} {}{}",
            former.id,
            former.phase,
            ago(former.ended_at),
            reason.unwrap_or_default()
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_rollback_is_told_with_what_runs_and_why() {
        let rollout: RolloutView = serde_json::from_value(json!({
            "id": 3, "phase": "completed", "cause": "rolledBack", "changes": ["image"], "image": "app:1",
            "startedAt": "1970-01-01T00:01:00Z", "completedAt": "1970-01-01T00:01:30Z", "total": 2, "updated": 2,
            "ready": 2, "old": 0, "failedStarts": 0, "canUndo": true,
            "previous": {"id": 2, "phase": "rolledBack", "endedAt": "1970-01-01T00:01:00Z",
                "reason": "8 failed starts, the last: exit code 1"}
        }))
        .unwrap();
        let now = Timestamp::from_millis(120_000);
        assert_eq!(
            describe(&Screen::PLAIN, now, ("web", "app:2"), &rollout),
            "rollout 3 of web is completed\n  \
             2 of 2 updated, 2 ready, 0 old left\n  \
             started 60 s ago because the rollout before it was rolled back (image)\n  \
             runs app:1, while app:2 is declared\n  \
             before: rollout 2, rolled back 60 s ago: 8 failed starts, the last: exit code 1"
        );
    }
}
