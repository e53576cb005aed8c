//! `berthd`: reads its configuration and runs the daemon until SIGTERM or SIGINT. Containers run on.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use berth_node::{config::Config, daemon};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The node daemon of Berth: runs the replicas that the scheduler assigns to this machine.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and exit.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match start(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "berthd cannot run");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::load(&arguments.config)?;
    if arguments.check {
        return Ok(());
    }
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another cryptography provider is installed"))?;
    // Two workers: the work is waiting. Few and small blocking threads: each one that hangs with a disk is one.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(64)
        .thread_stack_size(1 << 20)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let result = runtime.block_on(async {
        let cancel = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("taking SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("taking SIGINT")?;
        let daemon = daemon::run(config, cancel.clone());
        tokio::pin!(daemon);
        // Cancel-safe: signals stay pending, and the daemon is pinned and polled on.
        tokio::select! {
            ended = &mut daemon => return ended,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("leaving; containers run on");
        cancel.cancel();
        daemon.await
    });
    // A blocking call that hangs with a disk does not keep the daemon from leaving.
    runtime.shutdown_background();
    result
}
