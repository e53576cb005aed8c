//! The command line of `berth`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands::apply::ApplyArgs;
use crate::commands::change::{DeleteArgs, DrainArgs, NameArgs};
use crate::commands::events::EventsArgs;
use crate::commands::exec::ExecArgs;
use crate::commands::explain::ExplainArgs;
use crate::commands::get::GetArgs;
use crate::commands::logs::LogsArgs;
use crate::commands::plan::PlanArgs;
use crate::commands::port_forward::PortForwardArgs;
use crate::commands::rollout::RolloutArgs;
use crate::commands::status::StatusArgs;
use crate::commands::token::TokenArgs;
use crate::dev::DevArgs;
use crate::exit::EXIT_CODES;

/// Runs containers on plain machines: deploy, look, ask why.
#[derive(Debug, Parser)]
#[command(name = "berth", version, about, after_help = EXIT_CODES, infer_subcommands = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which scheduler and cluster is meant.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Where")]
pub(crate) struct Target {
    /// Address of the scheduler, for example http://127.0.0.1:7600
    #[arg(long, env = "BERTH_SERVER", global = true, value_name = "URL")]
    pub(crate) server: Option<String>,
    /// Token; better in BERTH_TOKEN or a file than here, where others can see it
    #[arg(
        long,
        env = "BERTH_TOKEN",
        hide_env_values = true,
        global = true,
        value_name = "TOKEN"
    )]
    pub(crate) token: Option<String>,
    /// File that holds the token
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Cluster id
    #[arg(long, env = "BERTH_CLUSTER", global = true, value_name = "ID")]
    pub(crate) cluster: Option<String>,
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// `-o`, for the commands that answer with data.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct Output {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) output: Format,
}

/// What is to be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a scheduler and several machines on this host, to try Berth without a cloud
    Dev(DevArgs),
    /// Make the cluster's containers what a file declares
    Apply(ApplyArgs),
    /// List containers, machines, replicas or clusters
    Get(GetArgs),
    /// Draw the cluster: what runs where, what has no place
    Status(StatusArgs),
    /// Say why something is as it is, and what would help
    Explain(ExplainArgs),
    /// Show what replicas wrote
    Logs(LogsArgs),
    /// Run a program in a replica: berth exec -it NAME -- sh
    Exec(ExecArgs),
    /// Reach a port of a replica through a port of this host
    PortForward(PortForwardArgs),
    /// Show what happened
    Events(EventsArgs),
    /// Show what the scheduler would change about the machines; nothing is changed
    Plan(PlanArgs),
    /// Move every replica off a machine
    Drain(DrainArgs),
    /// Show, pause, resume or undo the change of a container's replicas
    Rollout(RolloutArgs),
    /// Let stops happen that nobody has asked for and that Berth holds
    Release,
    /// Delete a container and its replicas
    Delete(DeleteArgs),
    /// Start a stopped container
    Start(NameArgs),
    /// Stop a container's replicas, keeping its declaration
    Stop(NameArgs),
    /// Rotate, revoke or print tokens
    Token(TokenArgs),
    /// Print a completion script
    Completions {
        /// The shell it is for
        shell: clap_complete::Shell,
    },
}

/// Reads a length of time: `30s`, `10m`, `2h`, `1d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no length of time; write for example 30s, 10m or 2h");
    let (number, unit) = text
        .char_indices()
        .next_back()
        .and_then(|(at, _)| text.split_at_checked(at))
        .ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn lengths_of_time_carry_their_unit() {
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(duration("1d"), Ok(Duration::from_secs(86_400)));
        for bad in ["", "10", "m", "-1s", "1w", "99999999999999999999d", "1ä"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
