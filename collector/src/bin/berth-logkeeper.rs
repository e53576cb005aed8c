//! `berth-logkeeper`: drains the FIFOs of the containers on this machine into segments on disk.

use std::io::Write;
use std::process::ExitCode;

use berth_collector::logs::keeper::{Arguments, HELP, Keeper, VERSION};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help") {
        return say(std::io::stdout(), HELP, ExitCode::SUCCESS);
    }
    if arguments.iter().any(|argument| argument == "--version") {
        return say(std::io::stdout(), VERSION, ExitCode::SUCCESS);
    }
    let outcome = Arguments::parse(&arguments).and_then(|config| Keeper::start(config)?.run());
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = format!("berth-logkeeper: {error}");
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text.push_str(": ");
                text.push_str(&cause.to_string());
                source = cause.source();
            }
            say(std::io::stderr(), &text, ExitCode::FAILURE)
        }
    }
}

fn say(mut out: impl Write, text: &str, code: ExitCode) -> ExitCode {
    match writeln!(out, "{text}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}
