//! What the program does on request.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::http::{Request, Response, get};

/// Memory taken by `/allocate`, kept until the process ends.
static ALLOCATED: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

pub(crate) fn respond(request: &Request, healthy: &AtomicBool) -> Response {
    match request.path.as_str() {
        "/" => Response::ok(who()),
        "/health" if healthy.load(Ordering::Relaxed) => Response::ok("ok\n"),
        "/health" => Response::failed("told to be unhealthy\n"),
        "/healthy" | "/unhealthy" => {
            healthy.store(request.path == "/healthy", Ordering::Relaxed);
            Response::ok("")
        }
        "/env" => Response::ok(std::env::var(request.member("name").unwrap_or_default()).unwrap_or_default()),
        "/resolve" => answer(
            crate::dns::resolve(request.member("name").unwrap_or_default()).map(|addresses| {
                addresses
                    .iter()
                    .map(|address| format!("{address}\n"))
                    .collect::<String>()
            }),
        ),
        "/fetch" => answer(get(request.member("url").unwrap_or_default())),
        "/write" => answer(write(request)),
        "/read" => answer(read(request)),
        "/fill" => fill(request),
        "/burn" => Response::ok(burn(request)),
        "/allocate" => Response::ok(allocate(request)),
        "/log" => {
            for line in 0..request.number("lines", 1) {
                say(&format!("{} {line}", request.member("text").unwrap_or("line")));
            }
            Response::ok("")
        }
        "/crash" => {
            say("told to crash");
            end(i32::try_from(request.number("code", 1)).unwrap_or(1))
        }
        _ => Response {
            status: 404,
            body: "no such path\n".into(),
        },
    }
}

fn answer(result: Result<String, String>) -> Response {
    result.map_or_else(Response::failed, Response::ok)
}

fn who() -> String {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    format!(
        "replica={} ordinal={}\n",
        text("/etc/hostname"),
        std::env::var("ALIEN_ORDINAL").unwrap_or_else(|_| "-".into())
    )
}

fn write(request: &Request) -> Result<String, String> {
    let path = request.member("path").ok_or("no path given")?;
    fs::write(path, request.member("text").unwrap_or_default())
        .map_err(|error| format!("{path}: {error}"))?;
    Ok(String::new())
}

fn read(request: &Request) -> Result<String, String> {
    let path = request.member("path").ok_or("no path given")?;
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

/// Writes up to `mib` MiB to a file; says how many fitted and what stopped it.
fn fill(request: &Request) -> Response {
    let path = request.member("path").unwrap_or("/var/ephemeral/fill");
    let mut file = match OpenOptions::new().create(true).append(true).open(path) {
        Ok(file) => file,
        Err(error) => return Response::failed(format!("{path}: {error}\n")),
    };
    let block = vec![0xa5; 1 << 20];
    for written in 0..request.number("mib", 1) {
        if let Err(error) = file.write_all(&block).and_then(|()| file.sync_data()) {
            return Response::ok(format!("{written} MiB written, then: {error}\n"));
        }
    }
    Response::ok(format!("{} MiB written\n", request.number("mib", 1)))
}

/// Keeps `threads` threads busy for `ms` of wall time; the answer is the processor time they got, in milliseconds.
fn burn(request: &Request) -> String {
    let duration = Duration::from_millis(request.number("ms", 500));
    let threads: Vec<_> = (0..request.number("threads", 1))
        .map(|_| {
            std::thread::spawn(move || {
                let start = clock(ClockId::CLOCK_MONOTONIC);
                while clock(ClockId::CLOCK_MONOTONIC).saturating_sub(start) < duration {
                    std::hint::spin_loop();
                }
                clock(ClockId::CLOCK_THREAD_CPUTIME_ID)
            })
        })
        .collect();
    let used: Duration = threads.into_iter().filter_map(|thread| thread.join().ok()).sum();
    format!("{}\n", used.as_millis())
}

fn clock(id: ClockId) -> Duration {
    clock_gettime(id).map(Duration::from).unwrap_or_default()
}

fn allocate(request: &Request) -> String {
    let len = usize::try_from(request.number("mib", 1)).unwrap_or(1) << 20;
    // Every page is written, or the kernel would not count it.
    let memory = vec![0xa5; len];
    if let Ok(mut allocated) = ALLOCATED.lock() {
        allocated.push(memory);
    }
    String::from("allocated\n")
}

/// Writes numbered lines for ever. A writer that had to wait goes on with the next number, so that each number is there once.
pub(crate) fn tick(per_second: u32) -> ! {
    for number in 0_u64.. {
        say(&format!("tick {number}"));
        std::thread::sleep(Duration::from_secs(1) / per_second);
    }
    unreachable!("u64 does not end")
}

/// Writes one line to standard output, whole. Output that nobody takes must not end the program.
pub(crate) fn say(text: &str) {
    let line = format!("{text}\n");
    let mut out = std::io::stdout().lock();
    if out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_err() {
        // Nowhere left to say it.
    }
}

#[expect(
    clippy::exit,
    reason = "ends the whole process from a worker thread, as a crashing service does"
)]
pub(crate) fn end(code: i32) -> ! {
    std::process::exit(code)
}
