//! The one nftables table of the machine: NAT, host ports, and what replicas may reach.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;

/// All that the table holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirewallState {
    /// Subnet of this machine's replicas.
    pub cidr: Ipv4Net,
    /// Where DNS answers; the only own address that replicas may reach.
    pub gateway: Ipv4Addr,
    /// The container CIDR of the cluster and, if outside of it, the subnets of peers: reached without masquerade.
    pub mesh: Vec<Ipv4Net>,
    /// Machine's end of a replica's pair, and the only source address accepted there.
    pub replicas: BTreeMap<String, Ipv4Addr>,
    /// Port of the machine, forwarded over TCP to a ready replica.
    pub host_ports: BTreeMap<u16, SocketAddrV4>,
}

/// What went wrong with the table.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    #[error("{0}")]
    Pending(&'static str),
}

/// Whether a full compare found the table as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    AsExpected,
    Repaired,
}

/// The only writer of the table. Works in the namespace of the calling thread.
#[derive(Debug, Default)]
pub struct Firewall {
    applied: Option<FirewallState>,
}

impl Firewall {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the kernel hold `state`: changed members by element, anything else by one whole replacement.
    ///
    /// # Errors
    /// When nft refuses or does not answer in time; the kernel then holds the former state.
    pub async fn apply(&mut self, state: &FirewallState) -> Result<(), FirewallError> {
        self.applied = Some(state.clone());
        Err(FirewallError::Pending("apply"))
    }

    /// Reads the table back and writes it whole when it differs from what was applied.
    ///
    /// # Errors
    /// As [`Firewall::apply`].
    pub async fn check(&mut self) -> Result<Checked, FirewallError> {
        Err(FirewallError::Pending("check"))
    }

    /// Removes the table.
    ///
    /// # Errors
    /// As [`Firewall::apply`].
    pub async fn remove(&mut self) -> Result<(), FirewallError> {
        Err(FirewallError::Pending("remove"))
    }
}
