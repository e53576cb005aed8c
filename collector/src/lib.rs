//! What Berth collects on a machine. Today: logs.
//!
//! The keeper (`berth-logkeeper`) is a process of its own, so that a restart of the daemon never blocks or loses a
//! line; the daemon uses the rest of [`logs`] as a library.
#![forbid(unsafe_code)]

pub mod logs;
