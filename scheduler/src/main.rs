//! `berth-scheduler`: reads its configuration, starts, reads the keys of platform tokens again on SIGHUP, and stops in order on
//! SIGTERM or Ctrl-C.
//!
//! Exit status: 0 stopped when asked, or nothing wrong with `--check`; 1 anything else.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use berth_api::time::Timestamp;
use berth_scheduler::config::{Config, EtcdAccess, LogFormat, StoreChoice};
use berth_scheduler::identity::Identity;
use berth_scheduler::platform::{self, PLATFORM_TOKEN_LIFETIME_MAX};
use berth_scheduler::traces::Traces;
use berth_scheduler::{Scheduler, backup};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// The central scheduler of Berth.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file.
    #[arg(long, env = "BERTH_SCHEDULER_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// Where clusters are kept: sqlite, or etcd://host:port,host:port/prefix. Stands above `store` of the file.
    #[arg(long, env = "BERTH_SCHEDULER_STORE", value_name = "STORE")]
    store: Option<String>,
    /// Check the configuration and exit.
    #[arg(long)]
    check: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write every cluster and all keys to a file, while the scheduler runs. The file is as secret as the keys.
    Backup {
        /// Made; one that is there already is not written over.
        file: PathBuf,
    },
    /// Fill an empty store, of either kind, from a backup. The scheduler must not run.
    Restore { file: PathBuf },
    /// Print a token.
    Token {
        #[command(subcommand)]
        kind: Token,
    },
}

#[derive(Debug, Subcommand)]
enum Token {
    /// A platform token (cluster management).
    Platform {
        /// How long it is valid: a number and s, m, h or d, at most 366d.
        #[arg(long, default_value = "30d", value_parser = lifetime)]
        ttl: Duration,
        /// Whom it stands for; the audit log names it.
        #[arg(long, default_value = "platform", value_parser = subject)]
        subject: String,
    },
    /// Make a new signing key of platform tokens. Tokens of the present one stay valid until they expire, or until its file in
    /// platform-retired/ is removed. A scheduler that runs takes both over at SIGHUP.
    RotatePlatformKey,
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
    let mut config = Config::load(&path)?;
    if let Some(store) = &arguments.store {
        let access = match config.store {
            StoreChoice::Etcd(choice) => choice.access,
            StoreChoice::Sqlite => EtcdAccess::default(),
        };
        config.store = StoreChoice::parse(store, access)
            .map_err(|problem| anyhow::anyhow!("--store is not valid: {problem}"))?;
    }
    if arguments.check {
        println!("{} is valid", path.display());
        return Ok(());
    }
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is already installed"))?;
    match arguments.command {
        Some(Command::Token {
            kind: Token::Platform { ttl, subject },
        }) => {
            let identity = Identity::open(&config.data_dir)?;
            println!(
                "{}",
                identity.platform_token_for(&subject, ttl, Timestamp::now())?
            );
            Ok(())
        }
        Some(Command::Token {
            kind: Token::RotatePlatformKey,
        }) => {
            let (old, new) = platform::rotate(&config.data_dir)?;
            println!("key {new} signs once the scheduler has got a SIGHUP; tokens of key {old} stay valid");
            Ok(())
        }
        Some(Command::Backup { file }) => {
            let summary = runtime()?.block_on(backup::backup(&config, &file))?;
            println!("{} holds {summary}", file.display());
            Ok(())
        }
        Some(Command::Restore { file }) => {
            let summary = runtime()?.block_on(backup::restore(&config, &file))?;
            println!("{summary} are restored; start the scheduler");
            Ok(())
        }
        None => serve(config),
    }
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no lifetime; write for example 12h, from 1s to 366d");
    let (number, unit) = text
        .split_at_checked(text.len().saturating_sub(1))
        .ok_or_else(wrong)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let lifetime = Duration::from_secs(number.saturating_mul(unit));
    if lifetime.is_zero() || lifetime > PLATFORM_TOKEN_LIFETIME_MAX {
        return Err(wrong());
    }
    Ok(lifetime)
}

fn subject(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 256 || text.chars().any(char::is_control) {
        return Err("write 1 to 256 bytes without control characters".into());
    }
    Ok(text.to_owned())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

fn serve(config: Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("BERTH_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let runtime = runtime()?;
    let traces = {
        // The exporter's connection lives on it.
        let _context = runtime.enter();
        Traces::start(&config.traces).context("cannot export traces")?
    };
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let log = match config.log_format {
        LogFormat::Text => log.with_ansi(false).with_filter(filter).boxed(),
        LogFormat::Json => log.json().with_filter(filter).boxed(),
    };
    tracing_subscriber::registry()
        .with(log)
        .with(traces.as_ref().map(Traces::layer))
        .init();
    let ended = runtime.block_on(run_until_asked(config));
    if let Some(traces) = traces {
        traces.stop();
    }
    ended
}

/// Serves until a signal asks to stop, and then stops in order.
async fn run_until_asked(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    let mut running = Scheduler::start(config).await?;
    loop {
        tokio::select! {
            // Cancel-safe by their documentation: signals that are not taken stay pending.
            _ = terminate.recv() => break,
            _ = hangup.recv() => reload(&running),
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.context("cannot listen for SIGINT")?;
                break;
            }
            // Cancel-safe: joining takes nothing before it completes.
            () = running.failed() => anyhow::bail!("a server has ended by itself; see the log"),
        }
    }
    tracing::info!("stopping");
    running.shutdown().await;
    Ok(())
}

/// Takes over what may change while the scheduler runs: the keys of platform tokens.
fn reload(running: &berth_scheduler::Running) {
    match running.scheduler().identity().reload_platform_keys() {
        Ok(()) => tracing::info!("the keys of platform tokens are read again"),
        Err(error) => tracing::error!(
            error = &error as &dyn std::error::Error,
            "the keys of platform tokens stay as they were"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_have_a_unit_and_a_bound() {
        assert_eq!(lifetime("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(lifetime("366d"), Ok(PLATFORM_TOKEN_LIFETIME_MAX));
        for text in [
            "",
            "d",
            "0s",
            "367d",
            "-1d",
            "1w",
            "1.5h",
            "1ä",
            "99999999999999999999d",
        ] {
            assert!(lifetime(text).is_err(), "{text}");
        }
    }
}
