//! The central scheduler of Berth.

pub mod check;
pub mod decide;
pub mod entry;
pub mod liveness;
pub mod world;
