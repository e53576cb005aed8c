//! The central scheduler of Berth: one actor per cluster decides what runs where and tells the machines.
//!
//! | task | input | output | owner |
//! | --- | --- | --- | --- |
//! | [`cluster`] actor, one each | requests, a period | records in the store, then published state | [`Scheduler`] |
//! | store writer (a thread) | appends of all actors | one transaction for all that waits | [`store::Sqlite`] |
//! | shard, one | members and owners in etcd | actors that run here and nowhere else | [`Running`] |
//! | [`link`] server and sessions | nodes' streams; published state | requests to actors; sets, names, mesh to nodes | [`Running`] |
//! | [`rest`] server | HTTP requests | requests to actors | [`Running`] |
//!
//! `world`, `decide`, `check`, `audit`, `liveness`, `autoscale`, `capacity`, `repack` and what they use are pure.

pub mod announce;
pub mod audit;
pub mod autoscale;
pub mod backup;
pub mod capacity;
pub mod check;
pub mod cluster;
pub mod config;
pub mod decide;
pub mod entry;
pub mod explain;
#[cfg(test)]
mod fixture;
pub mod guard;
pub mod identity;
pub mod link;
pub mod liveness;
pub mod metrics;
pub mod placement;
pub mod platform;
pub mod reconcile;
pub mod refusal;
pub mod repack;
pub mod rest;
pub mod rollout;
mod scheduler;
mod server;
mod shard;
pub mod squeeze;
pub mod status;
pub mod store;
pub mod tokens;
pub mod traces;
pub mod world;

pub use cluster::ClusterHandle;
pub use refusal::{Class, Refused};
pub use scheduler::{Creation, Scheduler};
pub use server::{Running, StartError};
