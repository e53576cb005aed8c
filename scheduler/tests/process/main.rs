//! The program `berth-scheduler` itself, on SQLite: what its signals do, how it stops, and the traces it sends.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![expect(clippy::print_stderr, reason = "the log of a program that failed a test")]

mod keys;
mod program;
mod shutdown;
mod traces;
