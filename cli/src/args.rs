//! The command line of `berth`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    /// Print a completion script
    Completions {
        /// The shell it is for
        shell: clap_complete::Shell,
    },
}
