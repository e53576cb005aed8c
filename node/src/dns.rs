//! Names of replicas: the directory that the scheduler sends, and the server that answers from it.

use std::net::{Ipv4Addr, SocketAddr};

use berth_api::link;
use tokio::sync::watch;

/// The directory as the scheduler's messages built it; its owner is the link task.
#[derive(Debug)]
pub struct DirectoryState {
    publish: watch::Sender<Directory>,
}

/// What DNS answers: an immutable snapshot, cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Directory {
    generation: u64,
}

/// What became of a directory message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    Yes,
    /// It was already known.
    Old,
    /// A delta on a generation that is not here: ask for a full directory.
    NeedFull,
}

impl DirectoryState {
    /// An empty directory and the view that the server answers from.
    #[must_use]
    pub fn new() -> (Self, watch::Receiver<Directory>) {
        let (publish, view) = watch::channel(Directory::default());
        (Self { publish }, view)
    }

    /// Applies a full directory or a delta.
    pub fn apply(&mut self, _message: &link::Directory) -> Applied {
        let _ = &self.publish;
        Applied::NeedFull
    }

    /// Generation that the next delta must build on; 0 when nothing came yet.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.publish.borrow().generation
    }
}

/// What the server is started with.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// The gateway address, port 53.
    pub listen: SocketAddr,
    /// Where names outside `svc` are asked; none: they are refused.
    pub upstreams: Vec<SocketAddr>,
}

/// What a replica's `/etc/resolv.conf` says.
#[must_use]
pub fn resolv_conf(gateway: Ipv4Addr) -> String {
    format!("nameserver {gateway}\nsearch svc\noptions ndots:1\n")
}
