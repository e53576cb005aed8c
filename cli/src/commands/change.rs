//! Commands of one call: drain, delete, start, stop.

use std::time::Duration;

use berth_api::rest::Success;
use berth_api::rest::node::ListMachinesReply;
use clap::Args;
use serde_json::Value;

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
    #[arg(long)]
    cancel: bool,
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
    client.post::<Success>(&path, None::<&Value>).await?;
    if args.no_wait {
        return output::line(format!(
            "{machine} takes no new replica; the ones it has move away"
        ));
    }
    let end = tokio::time::Instant::now() + args.timeout;
    let mut shown = None;
    loop {
        let list: ListMachinesReply = client.get(&["clusters", cluster, "machines"]).await?;
        let count = list
            .machines
            .iter()
            .find(|found| found.machine_id.as_str() == machine)
            .map_or(0, |found| found.replica_count);
        if count == 0 {
            return output::line(screen.paint(output::Paint::Good, &format!("{machine} is empty")));
        }
        if shown != Some(count) {
            output::line(format!("{machine}: {count} to move"))?;
            shown = Some(count);
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
