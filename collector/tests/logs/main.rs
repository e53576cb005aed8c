//! Tests on the real `berth-logkeeper`: each starts its own on a temporary store and ends it.

mod harness;
mod keeper;
mod reader;
