//! `berth`: the command line for the people who run Berth.
//!
//! | module | holds |
//! | --- | --- |
//! | [`args`] | the command line |
//! | [`context`] | which scheduler, token and cluster is meant |
//! | [`client`] | the scheduler's REST API |
//! | [`tunnel`] | a program or a port of a replica, through the scheduler |
//! | [`commands`] | one module per command |
//! | [`manifest`], [`diff`] | the file of `berth apply`, and what it will change |
//! | [`render`] | pictures and tables of what the scheduler says |
//! | [`dev`] | `berth dev`: a scheduler and machines on this host |
//! | [`output`] | what the terminal can show |
//! | [`exit`] | exit codes and failures |

mod args;
mod client;
mod commands;
mod context;
mod dev;
mod diff;
mod exit;
mod manifest;
mod output;
mod render;
#[cfg(test)]
mod tests;
mod tunnel;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use args::{Arguments, Command};
use commands::change::Run;
use commands::token::{TokenCommand, Void};
use context::Session;
use exit::Failure;
use output::Screen;

fn main() -> ExitCode {
    // clap ends the process itself on a bad command line, with code 2.
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(error) => Err(Failure::failed(format!("cannot start: {error}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                output::note(format!("berth: {}", failure.message));
            }
            ExitCode::from(failure.code.number())
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let screen = &Screen::detect();
    let open = || Session::open(&arguments.target);
    match arguments.command {
        Command::Dev(args) => Box::pin(dev::run(args, screen)).await,
        Command::Apply(args) => commands::apply::run(args, &open()?, screen).await,
        Command::Get(args) => commands::get::run(args, &open()?, screen).await,
        Command::Status(args) => commands::status::run(args, &open()?, screen).await,
        Command::Explain(args) => commands::explain::run(args, &open()?, screen).await,
        Command::Logs(args) => commands::logs::run(args, &open()?, screen).await,
        Command::Exec(args) => commands::exec::run(args, &open()?).await,
        Command::PortForward(args) => commands::port_forward::run(args, &open()?).await,
        Command::Events(args) => commands::events::run(args, &open()?, screen).await,
        Command::Plan(args) => commands::plan::run(args, &open()?, screen).await,
        Command::Drain(args) => commands::change::drain(args, &open()?, screen).await,
        Command::Rollout(args) => commands::rollout::run(args, &open()?, screen).await,
        Command::Release => commands::change::release(&open()?).await,
        Command::Delete(args) => commands::change::delete(args, &open()?).await,
        Command::Start(args) => commands::change::start_stop(args, Run::Start, &open()?).await,
        Command::Stop(args) => commands::change::start_stop(args, Run::Stop, &open()?).await,
        Command::Token(args) => match args.command {
            TokenCommand::Rotate { kind } => commands::token::run(kind, Void::Replace, &open()?).await,
            TokenCommand::Revoke { kind } => commands::token::run(kind, Void::Only, &open()?).await,
            TokenCommand::Platform { config } => commands::token::platform(config).await,
        },
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "berth", &mut script);
            output::line(String::from_utf8_lossy(&script))
        }
    }
}
