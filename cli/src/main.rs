//! `berth`: the command line for the people who run Berth.
//!
//! | module | holds |
//! | --- | --- |
//! | [`args`] | the command line |
//! | [`context`] | which scheduler, token and cluster is meant |
//! | [`client`] | the scheduler's REST API |
//! | [`dev`] | `berth dev`: a scheduler and machines on this host |
//! | [`output`] | what the terminal can show |
//! | [`exit`] | exit codes and failures |

mod args;
mod client;
mod context;
mod dev;
mod exit;
mod output;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use args::{Arguments, Command};
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
            ExitCode::from(failure.code as u8)
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let screen = Screen::detect();
    match arguments.command {
        Command::Dev(dev) => dev::run(dev, &screen).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "berth", &mut script);
            output::line(String::from_utf8_lossy(&script))
        }
    }
}
