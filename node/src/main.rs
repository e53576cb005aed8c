//! `berthd`: reads its configuration and runs the daemon until SIGTERM or SIGINT. Containers run on. With a subcommand it asks the
//! daemon that runs, and changes nothing; but for `upgrade`, which replaces it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use berth_api::time::Timestamp;
use berth_node::upgrade::{self, Order, Program, UpgradeError};
use berth_node::{bundle, config::Config, daemon, inspect, preflight};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The node daemon of Berth: runs the replicas that the scheduler assigns to this machine.
///
/// Without a subcommand it is the daemon. Subcommands ask the one that runs, through its socket: they change nothing, and answer
/// when the scheduler and containerd do not.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file (TOML).
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/berth/berthd.toml",
        global = true
    )]
    config: PathBuf,
    /// Check the configuration and exit.
    #[arg(long)]
    check: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the machine: subsystems with reason and since, replicas and what they wait for. Ends with 1 when a subsystem is
    /// impaired, 2 when the daemon does not answer
    Status {
        /// The document as the daemon gives it, JSON
        #[arg(long)]
        json: bool,
    },
    /// Say why a replica, or the machine, is as it is: cause, since, next try, and what helps
    Explain {
        /// A replica of this machine; without it the machine
        replica: Option<String>,
    },
    /// Write an archive for whoever was not there: status, rules, routes, disks, logs of the daemons; no secrets, no data of replicas
    Bundle {
        /// Where to; must not be there yet [default: berth-bundle-MACHINE-SECONDS.tar.gz here]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Say what this program would do to what runs, were it the daemon now. Changes nothing. Ends with 1 when it would touch something
    /// that runs
    Preflight,
    /// Put another version of the daemon, or of the log keeper, in the place of the one that runs; replicas run on. The former comes back
    /// by itself when the new one is not ready and acknowledged in time. Without --to, finish or undo what was begun. Ends with 1 when
    /// the former is back
    Upgrade {
        /// The new program
        #[arg(long, value_name = "FILE", requires = "sha256")]
        to: Option<PathBuf>,
        /// Its digest, hexadecimal
        #[arg(long, value_name = "HEX", requires = "to")]
        sha256: Option<String>,
        /// Which program it is
        #[arg(long, value_enum, default_value = "berthd")]
        program: Upgradable,
        /// How long it may take until it is ready
        #[arg(long, value_name = "SECONDS", default_value_t = upgrade::READY_WITHIN.as_secs(),
              value_parser = clap::value_parser!(u64).range(1..=3600))]
        ready_within: u64,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Upgradable {
    Berthd,
    BerthLogkeeper,
}

/// Of a subcommand that found something impaired.
const IMPAIRED: u8 = 1;
/// Of one that could not be done.
const FAILED: u8 = 2;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(command) = &arguments.command {
        return ask(&arguments.config, command).unwrap_or_else(|error| {
            say(&mut std::io::stderr(), &format!("berthd: {error:#}"));
            ExitCode::from(FAILED)
        });
    }
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

/// A reader that went away is no fault of ours.
fn say(to: &mut dyn Write, text: &str) {
    writeln!(to, "{}", text.trim_end()).ok();
}

fn ask(config_file: &Path, command: &Command) -> anyhow::Result<ExitCode> {
    let config = Config::load(config_file)?;
    let out = &mut std::io::stdout();
    match command {
        Command::Status { json } => {
            let (document, status) = inspect::ask(&config.status_socket())?;
            say(
                out,
                if *json { document } else { inspect::page(&status) }.as_str(),
            );
            let code = if status.is_well() { 0 } else { IMPAIRED };
            Ok(ExitCode::from(code))
        }
        Command::Explain { replica } => {
            let (_, status) = inspect::ask(&config.status_socket())?;
            say(out, &inspect::explain(&status, replica.as_deref())?.to_string());
            Ok(ExitCode::SUCCESS)
        }
        Command::Bundle { out: path } => {
            let seconds = Timestamp::now().millis() / 1000;
            let name = || format!("berth-bundle-{}-{seconds}.tar.gz", config.machine_id).into();
            let path = path.clone().unwrap_or_else(name);
            let bundle = small_runtime()?.block_on(bundle::write(&config, config_file, path))?;
            say(out, &format!("{}: {} parts", bundle.path.display(), bundle.parts));
            for (part, reason) in &bundle.missing {
                say(out, &format!("without {part}: {reason}"));
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Preflight => {
            let copy = config.state_dir.join("ledger-before-upgrade.sqlite");
            let report = small_runtime()?.block_on(preflight::run(&config, &copy))?;
            say(out, &format!("{} replicas have a process", report.running));
            for step in &report.of_others {
                say(out, &format!("beside them: {step}"));
            }
            for step in &report.of_running {
                say(out, &format!("of those that run: {step}"));
            }
            let code = if report.of_running.is_empty() { 0 } else { IMPAIRED };
            Ok(ExitCode::from(code))
        }
        Command::Upgrade {
            to,
            sha256,
            program,
            ready_within,
        } => {
            let order = to.clone().zip(sha256.clone()).map(|(file, sha256)| Order {
                program: match program {
                    Upgradable::Berthd => Program::Berthd,
                    Upgradable::BerthLogkeeper => Program::BerthLogkeeper,
                },
                file,
                sha256,
                ready_within: Duration::from_secs(*ready_within),
            });
            match upgrade::run(&config, config_file, order.as_ref(), &mut |line| say(out, line)) {
                Ok(()) => Ok(ExitCode::SUCCESS),
                Err(error @ UpgradeError::RolledBack { .. }) => {
                    say(&mut std::io::stderr(), &format!("berthd: {error}"));
                    Ok(ExitCode::from(IMPAIRED))
                }
                Err(error) => Err(error.into()),
            }
        }
    }
}

fn small_runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
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
