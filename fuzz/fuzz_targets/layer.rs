//! Any bytes as a layer of an image; `make fuzz TARGET=layer` runs it. What is judged stands in `node/src/host/image/fuzzed.rs`.
//!
//! The readers are compiled from their sources, without the rest of the node: they need nothing of it.

#![no_main]
#![expect(dead_code, reason = "each target drives a part of them")]

use libfuzzer_sys::fuzz_target;

#[path = "../../node/src/host/image"]
mod image {
    mod challenge;
    mod config;
    pub mod fuzzed;
    mod layer;
    mod manifest;
    mod reference;

    use config::ImageConfig;
}

fuzz_target!(|bytes: &[u8]| image::fuzzed::layer(bytes));
