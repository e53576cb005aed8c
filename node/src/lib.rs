//! The node daemon of Berth.

pub mod dns;
pub mod health;
pub mod host;
pub mod logs;
