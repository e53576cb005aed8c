//! The network of one machine's replicas: namespaces, routed veth pairs, addresses, routes between machines.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use berth_api::id::{MachineId, ReplicaId};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// What the network of a machine is opened with.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    pub machine_id: MachineId,
    /// Subnet of this machine's replicas.
    pub cidr: Ipv4Net,
    /// Address of the machine inside `cidr`; DNS binds to it.
    pub gateway: Ipv4Addr,
    /// Directory of the namespaces' bind mounts and their records; one directory per machine.
    pub netns_dir: PathBuf,
    /// Interface towards the other machines; the one of the default route when `None`.
    pub uplink: Option<String>,
    /// Of every link made here; taken from the uplink when `None`.
    pub mtu: Option<u32>,
}

/// A replica's place on the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub replica_id: ReplicaId,
    pub ip: Ipv4Addr,
    /// The machine's end of the pair.
    pub interface: String,
    /// Path for the OCI spec.
    pub netns: PathBuf,
}

/// Another machine of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    pub cidr: Ipv4Net,
    pub underlay_ip: Ipv4Addr,
}

/// A difference that a full compare found, and mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// What was wrong, for people.
    pub what: String,
}

/// What went wrong with the network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("{0}")]
    Pending(&'static str),
}

/// Handle to the network of this machine. Works in the namespace of the thread that called [`Network::open`].
#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
}

impl Network {
    /// Makes or finishes the gateway interface, its address and the sysctls. Idempotent.
    ///
    /// # Errors
    /// When the kernel refuses a step.
    pub async fn open(config: NetworkConfig) -> Result<Self, NetworkError> {
        Ok(Self { config })
    }

    /// Makes or finishes the namespace, the pair, the address and the routes of one replica. Idempotent.
    ///
    /// # Errors
    /// When the kernel refuses a step; what is made stays and the next call finishes it.
    pub async fn attach(&self, _replica_id: &ReplicaId, _ip: Ipv4Addr) -> Result<Attachment, NetworkError> {
        Err(NetworkError::Pending("attach"))
    }

    /// Removes everything of one replica. Idempotent.
    ///
    /// # Errors
    /// When the kernel refuses a step; the record stays until all of it is gone.
    pub async fn detach(&self, _replica_id: &ReplicaId) -> Result<(), NetworkError> {
        Err(NetworkError::Pending("detach"))
    }

    /// Every replica that has something of the network here, half-made ones too.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn list(&self) -> Result<Vec<Attachment>, NetworkError> {
        Err(NetworkError::Pending("list"))
    }

    /// Routes to the other machines: exactly these, stale ones are removed.
    ///
    /// # Errors
    /// When the kernel refuses a route.
    pub async fn set_peers(&self, _peers: &[Peer]) -> Result<(), NetworkError> {
        Err(NetworkError::Pending("set_peers"))
    }

    /// Full compare of everything made here with the kernel; mends what drifted and says what it was.
    ///
    /// # Errors
    /// When the kernel refuses a repair.
    pub async fn check(&self) -> Result<Vec<Drift>, NetworkError> {
        Err(NetworkError::Pending("check"))
    }

    #[must_use]
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }
}
