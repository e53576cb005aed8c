//! The one nftables table of the machine: NAT, host ports, and what replicas may reach.
//!
//! [`render`] is pure: equal states give equal tables. The table is replaced in one transaction (declare, delete, write
//! whole), so no packet ever meets half of it and no stale rule shadows a new one; the connections that conntrack knows
//! go on. Replicas that come and go change set elements only.
//!
//! Every rule carries a comment made of its name and a hash of its body. A full compare reads the table back and
//! looks at chains, comments and set elements, which is immune to the ways in which nft rewrites what it was given.
//!
//! What the table says:
//! - a packet from a replica carries the replica's own address, on its own interface, over IPv4, or is dropped;
//! - the instance metadata addresses of all clouds cannot be reached from replicas;
//! - of the machine itself replicas reach DNS on the gateway, and ICMP; DNS is not tracked, so that two queries at once
//!   from one port do not race through conntrack; what one replica asks above 2000 questions a second is dropped;
//! - replicas are reached by the cluster, over host ports, and by nobody else;
//! - traffic to the outside is masqueraded, traffic inside the cluster keeps its addresses.
//!
//! Host ports carry TCP: the wire API knows TCP services only. Connections of an address that changes hands are forgotten by
//! [`crate::host::net`].

mod render;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::host::child::{self, ChildError};
use render::Fingerprint;
pub use render::render;

/// The table, of family inet.
pub const TABLE: &str = "berth";
/// 10 000 elements take 0.3 s; beyond this nft hangs.
const DEADLINE: Duration = Duration::from_secs(10);

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
    #[error("writing the table inet {TABLE}")]
    Write(#[source] ChildError),
    #[error("reading the table inet {TABLE}")]
    Read(#[source] ChildError),
    #[error("reading what nft says about the table inet {TABLE}")]
    Listing(#[source] serde_json::Error),
}

/// What a table in the kernel says that only the daemon that wrote it knew.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    pub mesh: Vec<Ipv4Net>,
    pub host_ports: BTreeMap<u16, SocketAddrV4>,
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
    /// What the kernel holds, as far as we know; `None` at the start and after a failed write.
    applied: Option<FirewallState>,
}

impl Firewall {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the kernel hold `state`: changed replicas by element, anything else by one whole replacement.
    ///
    /// # Errors
    /// When nft refuses or does not answer in time; the kernel then holds the former state.
    pub async fn apply(&mut self, state: &FirewallState) -> Result<(), FirewallError> {
        let before = self.applied.take();
        if before.as_ref() == Some(state) {
            self.applied = before;
            return Ok(());
        }
        let changed = match &before {
            Some(before) if render::differ_in_replicas_only(before, state) => {
                write(&render::membership(before, state)).await.is_ok()
            }
            Some(_) | None => false,
        };
        if !changed {
            write(&render(state)).await?;
        }
        self.applied = Some(state.clone());
        Ok(())
    }

    /// Reads the table back and writes it whole when it differs from what was applied.
    ///
    /// # Errors
    /// As [`Firewall::apply`].
    pub async fn check(&mut self) -> Result<Checked, FirewallError> {
        let Some(state) = &self.applied else {
            return Ok(Checked::AsExpected);
        };
        if list().await?.as_ref().map(Fingerprint::read) == Some(Fingerprint::of(state)) {
            return Ok(Checked::AsExpected);
        }
        write(&render(state)).await?;
        Ok(Checked::Repaired)
    }

    /// What an earlier daemon left, so that the first table of this one refuses nobody whom that one served.
    ///
    /// # Errors
    /// When nft does not answer in time, or says what cannot be read.
    pub async fn standing() -> Result<Standing, FirewallError> {
        let listing = list().await?;
        let (mesh, host_ports) = listing.as_ref().map(render::standing).unwrap_or_default();
        Ok(Standing { mesh, host_ports })
    }

    /// Removes the table. Idempotent.
    ///
    /// # Errors
    /// As [`Firewall::apply`].
    pub async fn remove(&mut self) -> Result<(), FirewallError> {
        self.applied = None;
        write(&render::removal()).await
    }
}

async fn write(script: &serde_json::Value) -> Result<(), FirewallError> {
    let text = script.to_string();
    child::run("nft", &["-j", "-f", "-"], Some(text.as_bytes()), DEADLINE)
        .await
        .map(drop)
        .map_err(FirewallError::Write)
}

/// `None` when there is no such table.
async fn list() -> Result<Option<serde_json::Value>, FirewallError> {
    match child::run("nft", &["-j", "list", "table", "inet", TABLE], None, DEADLINE).await {
        Ok(listing) => serde_json::from_slice(&listing)
            .map(Some)
            .map_err(FirewallError::Listing),
        Err(ChildError::Failed { output, .. }) if output.contains("No such file or directory") => Ok(None),
        Err(error) => Err(FirewallError::Read(error)),
    }
}
