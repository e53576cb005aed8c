//! `berth exec`: a program in a replica, as if it ran here.

use std::io::{IsTerminal as _, Read as _, Write};

use berth_api::rest::tunnel::{Ended, Frame, Window};
use clap::Args;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::tungstenite::Bytes;

use crate::context::Session;
use crate::exit::{Code, Failure};
use crate::tunnel::{CHUNK, WAITING_MAX};

/// Exit code when the program's own is not known, as with other tools that run programs elsewhere.
const NOT_RUN: u8 = 125;

/// Arguments of `berth exec`.
#[derive(Debug, Args)]
#[command(
    after_help = "Ends with the program's exit code (128 plus the signal that ended it), and with 125 when it was \
                        not run or was lost. When this command ends, so does the program."
)]
pub(crate) struct ExecArgs {
    /// A replica, or a container: the one of its replicas that serves best
    name: String,
    /// Pass on what is typed or piped in
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the program a terminal
    #[arg(short = 't', long)]
    tty: bool,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(crate) async fn run(args: ExecArgs, session: &Session) -> Result<(), Failure> {
    let ended = match speak(args, session).await {
        Ok(ended) => ended,
        Err(failure) => return Err(Failure::new(Code::Program(NOT_RUN), failure.message)),
    };
    match (ended.exit_code, ended.error) {
        (Some(0), None) => Ok(()),
        (Some(code), None) => Err(Failure::new(
            Code::Program(u8::try_from(code).unwrap_or(u8::MAX)),
            "",
        )),
        (_, error) => Err(Failure::new(
            Code::Program(NOT_RUN),
            error.unwrap_or_else(|| "nothing is known of the program's end".into()),
        )),
    }
}

async fn speak(args: ExecArgs, session: &Session) -> Result<Ended, Failure> {
    if args.tty && !std::io::stdin().is_terminal() {
        return Err(Failure::input(
            "standard input is no terminal; leave out --tty (-t)",
        ));
    }
    let window = if args.tty { window() } else { None };
    let mut query = vec![
        ("terminal", args.tty.to_string()),
        ("input", args.stdin.to_string()),
    ];
    query.extend(args.command.into_iter().map(|word| ("command", word)));
    if let Some(Window { columns, rows }) = window {
        query.extend([("columns", columns.to_string()), ("rows", rows.to_string())]);
    }
    let segments = ["clusters", session.cluster()?, "exec", &args.name];
    let tunnel = session.client.tunnel(&segments, &query).await?;
    // From here on each key goes to the program, Ctrl-C too.
    let _raw = (args.tty && args.stdin).then(Raw::new).transpose()?;
    let (input, to_send) = mpsc::channel(WAITING_MAX);
    let (received, output) = mpsc::channel(WAITING_MAX);
    if args.stdin {
        read_input(input.clone());
    }
    let (all_shown, shown) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        show(output);
        drop(all_shown);
    });
    let carried = async {
        let ended = tunnel.carry(to_send, received).await;
        // All has been received: only this side's reader can hold it up now.
        drop(shown.await);
        ended
    };
    // Dropping the tunnel ends the program.
    tokio::select! {
        ended = carried => ended,
        failure = resized(input) => Err(failure),
        failure = told_to_end() => Err(failure),
    }
}

/// Writes what the program writes, on a thread of its own: a terminal that somebody has stopped holds up nothing else.
fn show(mut messages: mpsc::Receiver<Bytes>) {
    while let Some(message) = messages.blocking_recv() {
        let written = match Frame::decode(&message) {
            Ok(Frame::Output(bytes)) => write(&mut std::io::stdout().lock(), bytes),
            Ok(Frame::ErrorOutput(bytes)) => write(&mut std::io::stderr().lock(), bytes),
            Ok(_) | Err(_) => Ok(()),
        };
        if written.is_err() {
            return;
        }
    }
}

fn write(to: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

fn window() -> Option<Window> {
    let size = tcgetwinsize(std::io::stdin()).ok()?;
    let (columns, rows) = (size.ws_col.into(), size.ws_row.into());
    (columns > 0 && rows > 0).then_some(Window { columns, rows })
}

/// Sends what comes in, from a thread of its own: a read of a terminal cannot be taken back, and ends with the process.
fn read_input(input: mpsc::Sender<Vec<u8>>) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        let mut stdin = std::io::stdin().lock();
        loop {
            let message = match stdin.read(&mut buffer) {
                Ok(0) => Frame::InputEnd.encode(),
                Ok(length) => Frame::Input(buffer.get(..length).unwrap_or_default()).encode(),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => Frame::InputEnd.encode(),
            };
            let is_end = message == Frame::InputEnd.encode();
            if input.blocking_send(message).is_err() || is_end {
                return;
            }
        }
    });
}

/// Tells the program of each change of the terminal's size. Never returns but when the signal cannot be had.
async fn resized(input: mpsc::Sender<Vec<u8>>) -> Failure {
    let mut changes = match signal(SignalKind::window_change()) {
        Ok(changes) => changes,
        Err(error) => return Failure::failed(format!("cannot watch the terminal's size: {error}")),
    };
    loop {
        if changes.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        if let Some(window) = window() {
            // The tunnel has ended when nobody takes it.
            input.send(Frame::Window(window).encode()).await.ok();
        }
    }
}

async fn told_to_end() -> Failure {
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    let waits = kinds.map(|kind| {
        Box::pin(async move {
            match signal(kind) {
                Ok(mut told) => drop(told.recv().await),
                Err(_) => std::future::pending().await,
            }
        })
    });
    futures::future::select_all(waits).await;
    Failure::failed("interrupted")
}

/// A terminal that hands on every key; it is put back when this is dropped.
struct Raw(Termios);

impl Raw {
    fn new() -> Result<Self, Failure> {
        let failed = |error| Failure::failed(format!("cannot set up the terminal: {error}"));
        let before = tcgetattr(std::io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // It fails when the terminal is gone.
        tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0).ok();
    }
}
