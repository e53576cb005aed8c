//! Programs that somebody speaks with: `workload cat` and `workload terminal`.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::process::ExitCode;

use rustix::termios::tcgetwinsize;

/// Copies standard input to standard output and says on standard error how many bytes there were.
pub(crate) fn cat() -> ExitCode {
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0_usize;
    loop {
        match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                total += length;
                let written = output.write_all(&buffer[..length]).and_then(|()| output.flush());
                if written.is_err() {
                    return ExitCode::FAILURE;
                }
            }
            Err(_) => return ExitCode::FAILURE,
        }
    }
    if writeln!(io::stderr(), "{total} bytes").is_err() {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Says before each line of input, and after the last, what its terminal is.
pub(crate) fn terminal() -> ExitCode {
    match talk() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn talk() -> io::Result<()> {
    describe()?;
    for line in io::stdin().lock().lines() {
        writeln!(io::stdout(), "<{}>", line?)?;
        describe()?;
    }
    Ok(())
}

fn describe() -> io::Result<()> {
    let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal() && io::stderr().is_terminal();
    let size = tcgetwinsize(io::stdin()).map_or((0, 0), |size| (size.ws_col, size.ws_row));
    let term = std::env::var("TERM").unwrap_or_default();
    let (columns, rows) = size;
    writeln!(
        io::stdout(),
        "terminal={is_terminal} size={columns}x{rows} TERM={term}"
    )
}
