//! The central scheduler of Berth.

pub mod announce;
pub mod check;
pub mod decide;
pub mod entry;
pub mod explain;
pub mod liveness;
pub mod placement;
pub mod reconcile;
pub mod status;
pub mod world;
