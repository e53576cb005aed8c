//! The nouns of Berth and its wire formats: what the scheduler, the node daemon and the command line share.
//!
//! No async, no IO, no clock but [`time`]. Values that come from outside are read once, at the edge, by
//! [`validate`], which lists every fault of an input with its path; the types here are valid by construction.
//!
//! | module | holds |
//! | --- | --- |
//! | [`id`] | names of things, each its own type |
//! | [`units`] | vCPU and bytes in exact arithmetic |
//! | [`time`] | wall-clock timestamps and the only place that reads a clock |
//! | [`cluster`], [`container`], [`machine`], [`replica`], [`volume`] | the nouns of the design |
//! | [`probe`] | startup, readiness and liveness probes |
//! | [`placement`] | labels, and which machines a container's replicas may run on |
//! | [`assignment`] | what one machine must run: the set, its position, its digest |
//! | [`event`] | the events of the wire API |
//! | [`explain`] | answers to "why" |
//! | [`rest`] | bodies of the REST API |
//! | [`stack`] | import of stack JSON |
//! | [`validate`] | reading of untrusted JSON with all faults at once |
//! | [`link`] | messages of the node link, from `proto/link.proto` |

pub mod assignment;
pub mod cluster;
pub mod container;
pub mod event;
pub mod explain;
pub mod id;
pub mod machine;
pub mod placement;
pub mod probe;
pub mod replica;
pub mod rest;
pub mod stack;
pub mod time;
pub mod units;
pub mod validate;
pub mod volume;

/// Messages of the node link (`proto/link.proto`); the services are generated where they are served and called.
pub mod link {
    #![expect(clippy::all, reason = "generated code")]
    include!(concat!(env!("OUT_DIR"), "/berth.link.v1.rs"));
}
