//! Commands of one call: drain, delete, start, stop.

use std::time::Duration;

use berth_api::explain::Subject;
use berth_api::rest::Success;
use berth_api::rest::node::ListMachinesReply;
use clap::Args;
use serde_json::Value;

use super::explain;
use crate::context::Session;
use crate::exit::{Code, Failure};
use crate::output::{self, Screen};

const POLL: Duration = Duration::from_millis(500);

/// Arguments of `berth drain`.
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// The machine that its replicas must leave
    machine: String,
    /// Take replicas again
    #[arg(long, conflicts_with_all = ["deadline", "force"])]
    cancel: bool,
    /// Stop what is left after this long, whatever it waits for
    #[arg(long, value_name = "TIME", value_parser = crate::args::duration)]
    deadline: Option<Duration>,
    /// Stop at once what cannot leave at once
    #[arg(long, conflicts_with = "deadline")]
    force: bool,
    /// Return at once instead of when the machine is empty
    #[arg(long)]
    no_wait: bool,
    /// Give up after this long
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = crate::args::duration)]
    timeout: Duration,
}

/// Arguments of `berth delete`.
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// The container
    name: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Arguments of `berth start` and `berth stop`.
#[derive(Debug, Args)]
pub(crate) struct NameArgs {
    /// The container
    name: String,
}

/// Lets the stops happen that the mass-stop guard holds.
pub(crate) async fn release(session: &Session) -> Result<(), Failure> {
    let path = ["clusters", session.cluster()?, "held-stops", "release"];
    session.client.post::<Success>(&path, None::<&Value>).await?;
    output::line("what was held stops now; for ten minutes nothing is held")
}

/// Start or stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    Start,
    Stop,
}

pub(crate) async fn drain(args: DrainArgs, session: &Session, screen: &Screen) -> Result<(), Failure> {
    let (client, cluster, machine) = (&session.client, session.cluster()?, args.machine.as_str());
    let path = ["clusters", cluster, "machines", machine, "drain"];
    if args.cancel {
        client.delete::<Success>(&path).await?;
        return output::line(format!("{machine} takes replicas again"));
    }
    let deadline = if args.force {
        Some(Duration::ZERO)
    } else {
        args.deadline
    };
    let query: Vec<(&str, String)> = deadline
        .map(|deadline| ("deadlineSeconds", deadline.as_secs().to_string()))
        .into_iter()
        .collect();
    client.post_with::<Success>(&path, &query).await?;
    if args.no_wait {
        return output::line(format!(
            "{machine} takes no new replica; the ones it has move away"
        ));
    }
    until_empty(&args, session, screen).await
}

/// Shows what each replica that is left waits for, as it changes, until none is left.
async fn until_empty(args: &DrainArgs, session: &Session, screen: &Screen) -> Result<(), Failure> {
    let machine = args.machine.as_str();
    let end = tokio::time::Instant::now() + args.timeout;
    let mut shown = None;
    loop {
        let (count, blockers) = left_on(session, machine).await?;
        if count == 0 {
            return output::line(screen.paint(output::Paint::Good, &format!("{machine} is empty")));
        }
        if shown.as_ref() != Some(&(count, blockers.clone())) {
            output::line(format!("{machine}: {count} to move"))?;
            for blocker in &blockers {
                output::line(format!("  {blocker}"))?;
            }
            shown = Some((count, blockers));
        }
        if tokio::time::Instant::now() >= end {
            return Err(Failure::new(
                Code::TimedOut,
                format!("{machine} still has {count} replicas; see why: berth explain machine/{machine}"),
            ));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// How many replicas are on a machine, and what it waits for.
async fn left_on(session: &Session, machine: &str) -> Result<(u64, Vec<String>), Failure> {
    let list: ListMachinesReply = session
        .client
        .get(&["clusters", session.cluster()?, "machines"])
        .await?;
    let found = list
        .machines
        .iter()
        .find(|found| found.machine_id.as_str() == machine);
    let count = found.map_or(0, |found| found.replica_count);
    if count == 0 {
        return Ok((0, vec![]));
    }
    match explain::get(session, Subject::Machine, machine).await {
        Ok(explanation) => {
            let waits = explanation.waits.into_iter();
            Ok((
                count,
                waits
                    .map(|wait| format!("{} ({})", wait.what, wait.helps))
                    .collect(),
            ))
        }
        // It was removed in between.
        Err(error) if error.is_not_found() => Ok((0, vec![])),
        Err(error) => Err(error.into()),
    }
}

pub(crate) async fn delete(args: DeleteArgs, session: &Session) -> Result<(), Failure> {
    let (cluster, name) = (session.cluster()?, args.name.as_str());
    let path = ["clusters", cluster, "containers", name];
    // Deleting what is not there is no fault for the API; a person has mistyped.
    session.client.get::<Value>(&path).await?;
    if !args.yes && !confirm(&format!("delete {name} and all its replicas from {cluster}?")).await? {
        return Err(Failure::failed("nothing was deleted"));
    }
    session.client.delete::<Success>(&path).await?;
    output::line(format!("{name} is deleted; its replicas stop"))
}

pub(crate) async fn start_stop(args: NameArgs, run: Run, session: &Session) -> Result<(), Failure> {
    let (verb, told) = match run {
        Run::Start => ("start", "starts"),
        Run::Stop => ("stop", "stops"),
    };
    let path = ["clusters", session.cluster()?, "containers", &args.name, verb];
    session.client.post::<Success>(&path, None::<&Value>).await?;
    output::line(format!("{} {told}", args.name))
}

/// Asks a person; nobody at the terminal means yes, since the command itself was the decision.
pub(crate) async fn confirm(question: &str) -> Result<bool, Failure> {
    if !output::is_interactive() {
        return Ok(true);
    }
    output::line(format!("{question} [y/N]"))?;
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    })
    .await;
    let answer = answer.ok().and_then(Result::ok).unwrap_or_default();
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
