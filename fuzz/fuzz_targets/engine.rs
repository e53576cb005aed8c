//! Any bytes are a session with the placement engine; the audit judges it. `make fuzz` runs it.
//!
//! The engine and its audit are compiled from their sources, without the rest of the scheduler: they need nothing of it,
//! and so only they are instrumented and the target builds in seconds.

#![no_main]
#![expect(dead_code, reason = "the session uses a part of what the engine and the audit offer")]

use libfuzzer_sys::fuzz_target;

#[path = "../../scheduler/src"]
mod scheduler {
    pub mod audit;
}

#[path = "../../scheduler/src/placement"]
mod placement {
    pub mod engine;
}

fuzz_target!(|bytes: &[u8]| {
    let _summary = scheduler::audit::session::drive(bytes);
});
