//! Tests on the real `berth-logkeeper`: each starts its own on a temporary store and ends it.

#[cfg(test)]
mod harness;
#[cfg(test)]
mod keeper;
#[cfg(test)]
mod reader;
