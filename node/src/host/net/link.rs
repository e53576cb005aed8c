//! Links and addresses: read, compare, mend. Each function says in `drift` what it had to change.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{AddressMessageBuilder, Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};
use rustix::io::Errno;

use super::route;
use super::{
    Drift, GATEWAY_INTERFACE, INTERFACE_PREFIX, MTU_DEFAULT, NetworkConfig, NetworkError, REPLICA_INTERFACE,
    netlink_error,
};
use crate::host::namespace::{Namespace, Netlink};

/// A link as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    up: bool,
    mtu: u32,
    /// Index of the other end, in its own namespace.
    peer: Option<u32>,
}

impl Link {
    fn read(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            up: message.header.flags.contains(LinkFlags::Up),
            mtu: 0,
            peer: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Link(index) => link.peer = Some(*index),
                _ => {}
            }
        }
        link
    }
}

/// The errno of a netlink refusal.
pub(super) fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(Errno::from_raw_os_error(message.raw_code().abs())),
        _ => None,
    }
}

/// A missing link is an error of the kernel, not an empty answer.
pub(super) async fn find(handle: &Handle, name: &str) -> Result<Option<Link>, NetworkError> {
    let mut answer = handle.link().get().match_name(name.to_owned()).execute();
    match answer.try_next().await {
        Ok(message) => Ok(message.as_ref().map(Link::read)),
        Err(error) if errno(&error) == Some(Errno::NODEV) => Ok(None),
        Err(error) => Err(netlink_error(format!("reading the interface {name}"))(error)),
    }
}

async fn all(handle: &Handle) -> Result<Vec<Link>, NetworkError> {
    let messages: Vec<LinkMessage> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(netlink_error("listing interfaces"))?;
    Ok(messages.iter().map(Link::read).collect())
}

/// The interface towards the other machines: as configured, else that of the default route, else none.
pub(super) async fn uplink(handle: &Handle, config: &NetworkConfig) -> Result<Option<u32>, NetworkError> {
    match &config.uplink {
        Some(name) => match find(handle, name).await? {
            Some(link) => Ok(Some(link.index)),
            None => Err(NetworkError::NoInterface(name.clone())),
        },
        None => route::default_interface(handle).await,
    }
}

pub(super) async fn mtu(handle: &Handle, config: &NetworkConfig) -> Result<u32, NetworkError> {
    if let Some(mtu) = config.mtu {
        return Ok(mtu);
    }
    let Some(uplink) = uplink(handle, config).await? else {
        return Ok(MTU_DEFAULT);
    };
    let links = all(handle).await?;
    Ok(links
        .iter()
        .find(|link| link.index == uplink)
        .map_or(MTU_DEFAULT, |link| link.mtu))
}

/// Our link `name`, which must be there.
async fn required(handle: &Handle, name: &str) -> Result<Link, NetworkError> {
    find(handle, name)
        .await?
        .ok_or_else(|| NetworkError::NoInterface(name.into()))
}

async fn set_up(handle: &Handle, link: &Link, mtu: Option<u32>) -> Result<(), NetworkError> {
    let mut message = LinkUnspec::new_with_index(link.index).up();
    if let Some(mtu) = mtu {
        message = message.mtu(mtu);
    }
    handle
        .link()
        .set(message.build())
        .execute()
        .await
        .map_err(netlink_error(format!("setting the interface {} up", link.name)))
}

pub(super) async fn ensure_up(
    handle: &Handle,
    name: &str,
    drift: &mut Vec<Drift>,
) -> Result<(), NetworkError> {
    let link = required(handle, name).await?;
    if !link.up {
        set_up(handle, &link, None).await?;
        drift.push(Drift {
            what: format!("set the interface {name} up"),
        });
    }
    Ok(())
}

/// The gateway interface: a bridge without ports, which every kernel with containers has (a dummy may be missing).
pub(super) async fn ensure_gateway(
    handle: &Handle,
    mtu: u32,
    drift: &mut Vec<Drift>,
) -> Result<u32, NetworkError> {
    if find(handle, GATEWAY_INTERFACE).await?.is_none() {
        let made = handle
            .link()
            .add(LinkBridge::new(GATEWAY_INTERFACE).build())
            .execute()
            .await;
        accept_existing(made).map_err(netlink_error(format!("making the interface {GATEWAY_INTERFACE}")))?;
        drift.push(Drift {
            what: format!("made the interface {GATEWAY_INTERFACE}"),
        });
    }
    let link = required(handle, GATEWAY_INTERFACE).await?;
    if !link.up || link.mtu != mtu {
        set_up(handle, &link, Some(mtu)).await?;
        drift.push(Drift {
            what: format!("set the interface {GATEWAY_INTERFACE} up with MTU {mtu}"),
        });
    }
    Ok(link.index)
}

fn accept_existing(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(error) if errno(&error) == Some(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// The link has this IPv4 address alone.
pub(super) async fn ensure_address(
    handle: &Handle,
    index: u32,
    ip: Ipv4Addr,
    drift: &mut Vec<Drift>,
) -> Result<(), NetworkError> {
    let what = || netlink_error(format!("the address {ip}"));
    let mut answer = handle.address().get().set_link_index_filter(index).execute();
    let mut present = false;
    let mut others = Vec::new();
    while let Some(message) = answer.try_next().await.map_err(what())? {
        if message.header.family != AddressFamily::Inet {
            continue;
        }
        let is_wanted = message.header.prefix_len == 32
            && message
                .attributes
                .contains(&AddressAttribute::Local(IpAddr::V4(ip)));
        if is_wanted {
            present = true;
        } else {
            others.push(message);
        }
    }
    for other in others {
        handle.address().del(other).execute().await.map_err(what())?;
        drift.push(Drift {
            what: format!("removed an address beside {ip}"),
        });
    }
    if !present {
        let mut request = handle.address().add(index, IpAddr::V4(ip), 32);
        *request.message_mut() = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(ip, 32)
            .build();
        accept_existing(request.execute().await).map_err(what())?;
        drift.push(Drift {
            what: format!("added the address {ip}"),
        });
    }
    Ok(())
}

/// The veth pair from `name` here to `eth0` in the replica's namespace; returns both indices. A half that lost its
/// other end, or whose other end was moved away, is removed and the pair made anew.
pub(super) async fn ensure_pair(
    machine: &Netlink,
    inside: &Netlink,
    replica: &Namespace,
    name: &str,
    mtu: u32,
    drift: &mut Vec<Drift>,
) -> Result<(u32, u32), NetworkError> {
    let outer = find(&machine.handle, name).await?;
    let inner = find(&inside.handle, REPLICA_INTERFACE).await?;
    let joined = match (&outer, &inner) {
        (Some(outer), Some(inner)) => outer.peer == Some(inner.index) && inner.peer == Some(outer.index),
        _ => false,
    };
    if !joined {
        delete(&machine.handle, name).await?;
        delete(&inside.handle, REPLICA_INTERFACE).await?;
        make_pair(machine, replica, name, mtu).await?;
        drift.push(Drift {
            what: format!("made the interface {name}"),
        });
    }
    let outer = required(&machine.handle, name).await?;
    let inner = required(&inside.handle, REPLICA_INTERFACE).await?;
    for (handle, link) in [(&machine.handle, &outer), (&inside.handle, &inner)] {
        if !link.up || link.mtu != mtu {
            set_up(handle, link, Some(mtu)).await?;
            if joined {
                drift.push(Drift {
                    what: format!("set the interface {} of {name} up with MTU {mtu}", link.name),
                });
            }
        }
    }
    Ok((outer.index, inner.index))
}

/// The far end is born in the replica's namespace under its final name: no moment in which it is visible here.
async fn make_pair(machine: &Netlink, replica: &Namespace, name: &str, mtu: u32) -> Result<(), NetworkError> {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(REPLICA_INTERFACE)
        .mtu(mtu)
        .setns_by_fd(replica.raw_fd())
        .build();
    let pair = LinkVeth::new(name, REPLICA_INTERFACE)
        .mtu(mtu)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    machine
        .handle
        .link()
        .add(pair)
        .execute()
        .await
        .map_err(netlink_error(format!("making the interface {name}")))
}

pub(super) async fn delete(handle: &Handle, name: &str) -> Result<(), NetworkError> {
    let Some(link) = find(handle, name).await? else {
        return Ok(());
    };
    match handle.link().del(link.index).execute().await {
        Err(error) if errno(&error) == Some(Errno::NODEV) => Ok(()),
        other => other.map_err(netlink_error(format!("removing the interface {name}"))),
    }
}

/// Removes our pairs that nobody knows.
pub(super) async fn sweep(
    handle: &Handle,
    known: &BTreeSet<String>,
    drift: &mut Vec<Drift>,
) -> Result<(), NetworkError> {
    for link in all(handle).await? {
        if link.name.starts_with(INTERFACE_PREFIX) && !known.contains(&link.name) {
            delete(handle, &link.name).await?;
            drift.push(Drift {
                what: format!("removed the unknown interface {}", link.name),
            });
        }
    }
    Ok(())
}
