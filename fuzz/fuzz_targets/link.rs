//! Any bytes as what one end of the node link sends to the other; `make fuzz TARGET=link` runs it.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../sessions/link.rs"]
mod session;

fuzz_target!(|bytes: &[u8]| session::drive(bytes));
