//! `berth-scheduler`: reads its configuration, starts, and stops in order on SIGTERM or Ctrl-C.
//!
//! Exit status: 0 stopped when asked, or nothing wrong with `--check`; 1 anything else.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use berth_api::time::Timestamp;
use berth_scheduler::Scheduler;
use berth_scheduler::config::{Config, LogFormat};
use berth_scheduler::identity::Identity;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The central scheduler of Berth.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file.
    #[arg(long, env = "BERTH_SCHEDULER_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// Check the configuration and exit.
    #[arg(long)]
    check: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a token.
    Token {
        #[command(subcommand)]
        kind: Token,
    },
}

#[derive(Debug, Subcommand)]
enum Token {
    /// A platform token (cluster management), valid for 30 days.
    Platform,
}

#[expect(clippy::print_stderr, reason = "the log may not be set up yet")]
fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-scheduler: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "a command that prints")]
fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let path = arguments
        .config
        .context("give the configuration file with --config FILE")?;
    let config = Config::load(&path)?;
    if arguments.check {
        println!("{} is valid", path.display());
        return Ok(());
    }
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is already installed"))?;
    match arguments.command {
        Some(Command::Token {
            kind: Token::Platform,
        }) => {
            let identity = Identity::open(&config.data_dir)?;
            println!("{}", identity.platform_token(Timestamp::now())?);
            Ok(())
        }
        None => serve(config),
    }
}

fn serve(config: Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("BERTH_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => subscriber.with_ansi(false).init(),
        LogFormat::Json => subscriber.json().init(),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut running = Scheduler::start(config).await?;
        tokio::select! {
            // Cancel-safe by their documentation: signals that are not taken stay pending.
            _ = terminate.recv() => {}
            interrupted = tokio::signal::ctrl_c() => interrupted.context("cannot listen for SIGINT")?,
            // Cancel-safe: joining takes nothing before it completes.
            () = running.failed() => anyhow::bail!("a server has ended by itself; see the log"),
        }
        tracing::info!("stopping");
        running.shutdown().await;
        Ok(())
    })
}
