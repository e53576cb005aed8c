//! The commands that speak to a scheduler.

pub(crate) mod apply;
pub(crate) mod change;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod explain;
pub(crate) mod get;
pub(crate) mod logs;
pub(crate) mod plan;
pub(crate) mod port_forward;
pub(crate) mod progress;
pub(crate) mod rollout;
pub(crate) mod status;
pub(crate) mod token;
