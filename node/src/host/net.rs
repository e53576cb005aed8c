//! The network of one machine's replicas: namespaces, routed veth pairs, addresses, routes between machines.
//!
//! ```text
//! replica's namespace          machine's namespace
//! lo                           berth0  gateway/32, DNS listens here
//! eth0  ip/32 ═══ veth ═══════ bth<hash>   route ip/32 dev bth<hash> src gateway
//!  default via gateway         unreachable cidr          (addresses that nobody has)
//!                              peer cidr via underlay ip dev uplink
//! ```
//!
//! Every packet of a replica is forwarded by IP, even to a neighbour on the same machine, so the firewall sees all of
//! them; there is no shared segment to listen on or to spoof. The record of an attachment is written before anything
//! else is made and removed after everything is gone, so a crash in between leaves a name to go on from. All routes
//! made here carry an own protocol number; others are left alone.
//!
//! One call per replica at a time; calls for different replicas may overlap.

mod conntrack;
mod link;
mod route;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use berth_api::id::{MachineId, ReplicaId};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::host::namespace::{self, Namespace, NamespaceError, Netlink};
use route::{Route, Stale};

/// The machine's interface that holds the gateway address.
pub const GATEWAY_INTERFACE: &str = "berth0";
/// Start of the names of the machine's ends of the pairs. The firewall matches on it.
pub const INTERFACE_PREFIX: &str = "bth";
/// The replica's end.
const REPLICA_INTERFACE: &str = "eth0";
/// Interface names hold 15 bytes: the prefix and 48 bits of the hash.
const INTERFACE_HASH_LEN: usize = 12;
const _: () = assert!(INTERFACE_PREFIX.len() + INTERFACE_HASH_LEN == 15);
/// Used when neither configuration nor uplink says one.
const MTU_DEFAULT: u32 = 1500;
/// Netlink answers in milliseconds, in a fraction of a second under load; beyond this the kernel hangs.
const DEADLINE: Duration = Duration::from_secs(10);
/// A full compare of a /24: 253 replicas at a few milliseconds each, with room for a loaded machine.
const CHECK_DEADLINE: Duration = Duration::from_secs(30);

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
    /// What was mended, for people.
    pub what: String,
}

impl std::fmt::Display for Drift {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

/// What went wrong with the network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error("{what}")]
    Netlink {
        what: String,
        source: Box<rtnetlink::Error>,
    },
    #[error("the record {path} of an attachment")]
    Record { path: PathBuf, source: io::Error },
    #[error("{interface} of {wanted} is already {holder}'s")]
    Collision {
        interface: String,
        wanted: ReplicaId,
        holder: ReplicaId,
    },
    #[error("address {ip} is not one of {cidr}")]
    Foreign { ip: Ipv4Addr, cidr: Ipv4Net },
    #[error("there is no interface {0}")]
    NoInterface(String),
}

/// Handle to the network of this machine. Works in the namespace of the thread that called [`Network::open`].
#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
    mtu: u32,
    machine: Namespace,
    /// As last set; `None` until then, and their routes are left alone.
    peers: Mutex<Option<BTreeSet<Peer>>>,
}

impl Network {
    /// Makes or finishes the gateway interface, its address and the settings of the namespace. Idempotent.
    ///
    /// # Errors
    /// When the kernel refuses a step.
    pub async fn open(config: NetworkConfig) -> Result<Self, NetworkError> {
        std::fs::create_dir_all(&config.netns_dir).map_err(|source| NetworkError::Record {
            path: config.netns_dir.clone(),
            source,
        })?;
        let machine = Namespace::current()?;
        let opened = config.clone();
        let mtu = machine
            .run(
                DEADLINE,
                async move |netlink: Netlink| -> Result<u32, NetworkError> {
                    let mtu = link::mtu(&netlink.handle, &opened).await?;
                    ensure_machine(&netlink, &opened, mtu, &mut Vec::new()).await?;
                    Ok(mtu)
                },
            )
            .await?;
        Ok(Self {
            config,
            mtu,
            machine,
            peers: Mutex::new(None),
        })
    }

    /// Makes or finishes the namespace, the pair, the address and the routes of one replica. Idempotent.
    ///
    /// # Errors
    /// When the kernel refuses a step; what is made stays and the next call finishes it.
    pub async fn attach(&self, replica_id: &ReplicaId, ip: Ipv4Addr) -> Result<Attachment, NetworkError> {
        if !self.config.cidr.contains(&ip) || ip == self.config.gateway {
            return Err(NetworkError::Foreign {
                ip,
                cidr: self.config.cidr,
            });
        }
        let attachment = self.attachment(replica_id, ip);
        self.write_record(&attachment)?;
        let (config, mtu) = (self.config.clone(), self.mtu);
        self.machine
            .run(
                DEADLINE,
                async move |netlink: Netlink| -> Result<Attachment, NetworkError> {
                    if !namespace::exists(&attachment.netns) {
                        // Whoever had the address may have gone without a detach.
                        forget_connections(attachment.ip);
                    }
                    ensure_attachment(&netlink, &config, mtu, &attachment, &mut Vec::new()).await?;
                    Ok(attachment)
                },
            )
            .await
    }

    /// Removes everything of one replica. Idempotent. Takes about 20 ms in the kernel: keep it off the way of a start.
    ///
    /// # Errors
    /// When the kernel refuses a step; the record stays until all of it is gone.
    pub async fn detach(&self, replica_id: &ReplicaId) -> Result<(), NetworkError> {
        let interface = interface_name(&self.config.machine_id, replica_id);
        let netns = self.config.netns_dir.join(&interface);
        let record = record_path(&self.config.netns_dir, &interface);
        self.machine
            .run(
                DEADLINE,
                async move |netlink: Netlink| -> Result<(), NetworkError> {
                    link::delete(&netlink.handle, &interface).await?;
                    namespace::remove(&netns)?;
                    if let Some(attachment) = read_record(&record)? {
                        forget_connections(attachment.ip);
                    }
                    match std::fs::remove_file(&record) {
                        Err(source) if source.kind() != io::ErrorKind::NotFound => {
                            Err(NetworkError::Record { path: record, source })
                        }
                        Ok(()) | Err(_) => Ok(()),
                    }
                },
            )
            .await
    }

    /// Every replica that has something of the network here, half-made ones too.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn list(&self) -> Result<Vec<Attachment>, NetworkError> {
        read_records(&self.config.netns_dir)
    }

    /// Routes to the other machines: exactly these, stale ones are removed.
    ///
    /// # Errors
    /// When the kernel refuses a route.
    pub async fn set_peers(&self, peers: &[Peer]) -> Result<(), NetworkError> {
        let peers: BTreeSet<Peer> = peers
            .iter()
            .filter(|peer| peer.cidr.trunc() != self.config.cidr.trunc())
            .cloned()
            .collect();
        *self
            .peers
            .lock()
            .expect("no holder of the peers' lock panics: it only copies") = Some(peers.clone());
        let config = self.config.clone();
        self.machine
            .run(
                DEADLINE,
                async move |netlink: Netlink| -> Result<(), NetworkError> {
                    let uplink = link::uplink(&netlink.handle, &config).await?;
                    let wanted = peers.iter().map(|peer| Route::peer(peer, uplink)).collect();
                    route::ensure(&netlink.handle, &wanted, Stale::RemovePeers, &mut Vec::new()).await
                },
            )
            .await
    }

    /// Full compare of everything made here with the kernel; mends what drifted and says what it was. Removes our
    /// interfaces that have no record.
    ///
    /// # Errors
    /// When the kernel refuses a repair.
    pub async fn check(&self) -> Result<Vec<Drift>, NetworkError> {
        let (config, mtu) = (self.config.clone(), self.mtu);
        let peers = self
            .peers
            .lock()
            .expect("no holder of the peers' lock panics: it only copies")
            .clone();
        self.machine
            .run(
                CHECK_DEADLINE,
                async move |netlink: Netlink| -> Result<Vec<Drift>, NetworkError> {
                    let mut drift = Vec::new();
                    // First the gateway: the routes to replicas name its address.
                    ensure_machine(&netlink, &config, mtu, &mut drift).await?;
                    let records = read_records(&config.netns_dir)?;
                    for record in &records {
                        // One that was detached since must not be made again.
                        if record_path(&config.netns_dir, &record.interface).exists() {
                            ensure_attachment(&netlink, &config, mtu, record, &mut drift).await?;
                        }
                    }
                    ensure_routes(&netlink, &config, &records, peers, &mut drift).await?;
                    // Read again: an attachment may have been made since.
                    let known: BTreeSet<String> = read_records(&config.netns_dir)?
                        .into_iter()
                        .map(|record| record.interface)
                        .collect();
                    link::sweep(&netlink.handle, &known, &mut drift).await?;
                    remove_unrecorded(&config.netns_dir, &mut drift)?;
                    Ok(drift)
                },
            )
            .await
    }

    /// Removes the gateway interface and all routes of ours. Replicas must be detached before.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn close(self) -> Result<(), NetworkError> {
        let netns_dir = self.config.netns_dir.clone();
        self.machine
            .run(
                DEADLINE,
                async move |netlink: Netlink| -> Result<(), NetworkError> {
                    route::ensure(&netlink.handle, &BTreeSet::new(), Stale::Remove, &mut Vec::new()).await?;
                    link::delete(&netlink.handle, GATEWAY_INTERFACE).await?;
                    // Best effort: it stays when something else lies in it.
                    std::fs::remove_dir(&netns_dir).ok();
                    Ok(())
                },
            )
            .await
    }

    #[must_use]
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// The machine's end of a replica's pair, whether it exists or not.
    #[must_use]
    pub fn interface(&self, replica_id: &ReplicaId) -> String {
        interface_name(&self.config.machine_id, replica_id)
    }

    fn attachment(&self, replica_id: &ReplicaId, ip: Ipv4Addr) -> Attachment {
        let interface = self.interface(replica_id);
        Attachment {
            replica_id: replica_id.clone(),
            ip,
            netns: self.config.netns_dir.join(&interface),
            interface,
        }
    }

    fn write_record(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        let path = record_path(&self.config.netns_dir, &attachment.interface);
        let failed = |source| NetworkError::Record {
            path: path.clone(),
            source,
        };
        match read_record(&path)? {
            Some(holder) if holder.replica_id != attachment.replica_id => {
                return Err(NetworkError::Collision {
                    interface: attachment.interface.clone(),
                    wanted: attachment.replica_id.clone(),
                    holder: holder.replica_id,
                });
            }
            Some(present) if present == *attachment => return Ok(()),
            Some(_) | None => {}
        }
        let bytes = serde_json::to_vec(attachment).expect("an attachment has text keys");
        let temporary = path.with_extension("json.new");
        std::fs::write(&temporary, bytes).map_err(failed)?;
        std::fs::rename(&temporary, &path).map_err(failed)
    }
}

/// What was tracked for the former holder of an address says nothing about the next.
fn forget_connections(address: Ipv4Addr) {
    match conntrack::forget(address) {
        Ok(0) => {}
        Ok(connections) => tracing::debug!(%address, connections, "forgot the connections of an address"),
        // A start is worth more: they end by themselves.
        Err(error) => tracing::warn!(%address, error = %error, "cannot forget the connections of an address"),
    }
}

/// Unique on the host, not only on the machine: `berth dev` runs many machines on one.
fn interface_name(machine_id: &MachineId, replica_id: &ReplicaId) -> String {
    let hash = Sha256::new()
        .chain_update(machine_id.as_str())
        .chain_update([0])
        .chain_update(replica_id.as_str())
        .finalize();
    let hex: String = hash
        .iter()
        .take(INTERFACE_HASH_LEN / 2)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{INTERFACE_PREFIX}{hex}")
}

fn record_path(dir: &Path, interface: &str) -> PathBuf {
    dir.join(format!("{interface}.json"))
}

fn read_records(dir: &Path) -> Result<Vec<Attachment>, NetworkError> {
    let failed = |source| NetworkError::Record {
        path: dir.into(),
        source,
    };
    let mut records = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "json")
            && let Some(record) = read_record(&path)?
        {
            records.insert(record.replica_id.clone(), record);
        }
    }
    Ok(records.into_values().collect())
}

/// Removes namespaces that no record names: one that was detached while it was being mended is made once more. A record is
/// written before its namespace is made and removed after it, so whoever has no record belongs to nobody.
fn remove_unrecorded(dir: &Path, drift: &mut Vec<Drift>) -> Result<(), NetworkError> {
    let failed = |source| NetworkError::Record {
        path: dir.into(),
        source,
    };
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.filter(|name| name.starts_with(INTERFACE_PREFIX)) else {
            continue;
        };
        if path.extension().is_none() && !record_path(dir, name).exists() {
            namespace::remove(&path)?;
            drift.push(Drift {
                what: format!("removed the namespace {name}, which no record names"),
            });
        }
    }
    Ok(())
}

/// `None` when there is none, or one that a power cut left unreadable: what it named is then swept as unknown.
fn read_record(path: &Path) -> Result<Option<Attachment>, NetworkError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(NetworkError::Record {
            path: path.into(),
            source,
        }),
    }
}

async fn ensure_machine(
    netlink: &Netlink,
    config: &NetworkConfig,
    mtu: u32,
    drift: &mut Vec<Drift>,
) -> Result<(), NetworkError> {
    if namespace::set_sysctl("ipv4/ip_forward", "1")? {
        drift.push(Drift {
            what: "set ip_forward to 1".into(),
        });
    }
    let handle = &netlink.handle;
    link::ensure_up(handle, "lo", drift).await?;
    let index = link::ensure_gateway(handle, mtu, drift).await?;
    link::ensure_address(handle, index, config.gateway, drift).await?;
    let own = BTreeSet::from([Route::unreachable(config.cidr.trunc())]);
    route::ensure(handle, &own, Stale::Keep, drift).await
}

async fn ensure_routes(
    netlink: &Netlink,
    config: &NetworkConfig,
    records: &[Attachment],
    peers: Option<BTreeSet<Peer>>,
    drift: &mut Vec<Drift>,
) -> Result<(), NetworkError> {
    let handle = &netlink.handle;
    let mut wanted = BTreeSet::from([Route::unreachable(config.cidr.trunc())]);
    for record in records {
        if let Some(index) = link::find(handle, &record.interface).await? {
            wanted.insert(Route::replica(record.ip, index.index, config.gateway));
        }
    }
    let stale = if let Some(peers) = peers {
        let uplink = link::uplink(handle, config).await?;
        wanted.extend(peers.iter().map(|peer| Route::peer(peer, uplink)));
        Stale::Remove
    } else {
        Stale::Keep
    };
    route::ensure(handle, &wanted, stale, drift).await
}

async fn ensure_attachment(
    netlink: &Netlink,
    config: &NetworkConfig,
    mtu: u32,
    attachment: &Attachment,
    drift: &mut Vec<Drift>,
) -> Result<(), NetworkError> {
    if !namespace::exists(&attachment.netns) {
        drift.push(Drift {
            what: format!("made the namespace of {}", attachment.replica_id),
        });
    }
    namespace::create(&attachment.netns)?;
    let replica = Namespace::at(&attachment.netns)?;
    let inside = netlink.visit(&replica, || {
        // Applies to links made later. IPv6 has no addresses here, and link-local ones would pass by the firewall.
        // ::1 on the loopback stays.
        namespace::set_sysctl("ipv6/conf/default/disable_ipv6", "1").ok();
        // Programs that are not root and have no NET_RAW may listen on port 80 and ping.
        namespace::set_sysctl("ipv4/ip_unprivileged_port_start", "0")?;
        namespace::set_sysctl("ipv4/ping_group_range", "0 2147483647")?;
        Ok(())
    })?;
    let name = &attachment.interface;
    let (outer, inner) = link::ensure_pair(netlink, &inside, &replica, name, mtu, drift).await?;
    // The reverse path is the only path: a strict check pins the source address before the firewall does.
    for key in ["rp_filter", "forwarding"] {
        namespace::set_sysctl(&format!("ipv4/conf/{name}/{key}"), "1")?;
    }
    namespace::set_sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "1").ok();
    link::ensure_up(&inside.handle, "lo", drift).await?;
    link::ensure_address(&inside.handle, inner, attachment.ip, drift).await?;
    let inside_routes = BTreeSet::from([
        Route::on_link(config.gateway, inner),
        Route::default_via(config.gateway, inner),
    ]);
    route::ensure(&inside.handle, &inside_routes, Stale::Remove, drift).await?;
    let outside = BTreeSet::from([Route::replica(attachment.ip, outer, config.gateway)]);
    route::ensure(&netlink.handle, &outside, Stale::RemoveOther(outer), drift).await
}

/// Attaches what was done to a netlink error.
fn netlink_error(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let what = what.into();
    move |source| NetworkError::Netlink {
        what,
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_fit_and_differ_by_machine_and_replica() {
        let machine = |id: &str| MachineId::new(id).unwrap();
        let replica = |id: &str| ReplicaId::new(id).unwrap();
        let name = interface_name(&machine("m1"), &replica("reader-m1-abc"));
        assert_eq!(name.len(), 15);
        assert!(name.starts_with(INTERFACE_PREFIX));
        assert_eq!(name, interface_name(&machine("m1"), &replica("reader-m1-abc")));
        assert_ne!(name, interface_name(&machine("m2"), &replica("reader-m1-abc")));
        assert_ne!(
            interface_name(&machine("a"), &replica("bc")),
            interface_name(&machine("ab"), &replica("c"))
        );
    }
}
