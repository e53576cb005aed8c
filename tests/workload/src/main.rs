//! A static program that stands in for real services in tests and in the demo.
//!
//! It serves HTTP on `PORT` (8080 when unset) and does on request what real services do by accident: use processor and
//! memory, fill disks, crash, hang, log. It resolves names itself by asking the name server of `/etc/resolv.conf`, so
//! that it needs no libraries in its image. `workload sleep` only waits; `workload exit CODE` ends at once; `workload escape` tries
//! what no container may do, says what it could, and waits; `workload cat` copies its input to its output; `workload terminal` says what
//! its terminal is. With `LOG_PER_SECOND` it writes so many numbered lines a second, `tick 0` first, as long as it runs.
//!
//! | path | does |
//! | --- | --- |
//! | `/health` | 200, or 500 after `/unhealthy`, until `/healthy` |
//! | `/` | who answers: replica, ordinal, addresses, uptime |
//! | `/env?name=N` | the value of an environment variable |
//! | `/resolve?name=N` | the addresses of a name |
//! | `/fetch?url=http://name:port/path` | what that address answers |
//! | `/write?path=P&text=T`, `/read?path=P`, `/fill?path=P&mib=N` | files |
//! | `/burn?threads=N&ms=M` | uses processor; answers with the processor time it got |
//! | `/allocate?mib=N` | takes memory and keeps it |
//! | `/log?lines=N&text=T` | writes lines to standard output |
//! | `/crash?code=N` | ends the process |

mod dns;
mod escape;
mod http;
mod talk;
mod work;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["exit", code] => return ExitCode::from(code.parse::<u8>().unwrap_or(1)),
        ["escape"] => {
            escape::try_all();
            sleep();
        }
        ["sleep"] => sleep(),
        ["cat"] => return talk::cat(),
        ["terminal"] => return talk::terminal(),
        [] | ["serve"] => {}
        _ => {
            work::say("usage: workload [serve | sleep | cat | terminal | escape | exit CODE]");
            return ExitCode::from(2);
        }
    }
    end_on_sigterm();
    if let Some(rate) = number_of("LOG_PER_SECOND").filter(|rate| *rate > 0) {
        std::thread::spawn(move || work::tick(rate));
    }
    let port = number_of("PORT")
        .and_then(|port| u16::try_from(port).ok())
        .unwrap_or(8080);
    let listener = match TcpListener::bind(("0.0.0.0", port)) {
        Ok(listener) => listener,
        Err(error) => {
            work::say(&format!("cannot listen on port {port}: {error}"));
            return ExitCode::FAILURE;
        }
    };
    work::say(&format!("listening on port {port}"));
    let healthy = Arc::new(AtomicBool::new(true));
    for stream in listener.incoming().flatten() {
        let healthy = Arc::clone(&healthy);
        std::thread::spawn(move || http::answer(stream, |request| work::respond(request, &healthy)));
    }
    ExitCode::SUCCESS
}

fn number_of(variable: &str) -> Option<u32> {
    std::env::var(variable).ok()?.parse().ok()
}

fn sleep() -> ! {
    end_on_sigterm();
    loop {
        std::thread::park();
    }
}

/// As the first process of its container the program would ignore SIGTERM without a handler. `IGNORE_SIGTERM=1` makes
/// it do just that.
fn end_on_sigterm() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    if signals.thread_block().is_err() || std::env::var("IGNORE_SIGTERM").is_ok() {
        return;
    }
    let Ok(descriptor) = SignalFd::new(&signals) else {
        return;
    };
    std::thread::spawn(move || {
        if let Ok(Some(_)) = descriptor.read_signal() {
            work::say("SIGTERM: ending");
            work::end(0);
        }
    });
}

/// The members of a query string, percent-decoded.
fn query_members(query: &str) -> BTreeMap<String, String> {
    query
        .split('&')
        .filter_map(|member| member.split_once('='))
        .map(|(name, value)| (name.to_owned(), percent_decode(value)))
        .collect()
}

fn percent_decode(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let escaped = (byte == b'%').then(|| {
            let digits = [bytes.next()?, bytes.next()?];
            u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()
        });
        decoded.push(
            escaped
                .flatten()
                .unwrap_or(if byte == b'+' { b' ' } else { byte }),
        );
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
