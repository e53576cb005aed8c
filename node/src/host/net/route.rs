//! Routes of ours: read, compare, mend.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;

use futures::TryStreamExt as _;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};
use rustix::io::Errno;

use super::link::errno;
use super::{Drift, NetworkError, Peer, netlink_error};

/// Marks our routes (rtnetlink(7), `rtm_protocol`): 0xBE, which no routing daemon has.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(0xBE);

/// A route of ours.
///
/// Invariant: `via` is the first member, so that in a set the routes to what is on a link, which lead to the gateways,
/// come before the routes over a gateway and are added before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Route {
    via: Option<Ipv4Addr>,
    to: Ipv4Net,
    reach: Reach,
    /// `None`: the kernel finds it from `via`.
    interface: Option<u32>,
    source: Option<Ipv4Addr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Unicast,
    Unreachable,
}

/// What happens to our routes that are not wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stale {
    Keep,
    Remove,
    /// Only those that go over a gateway.
    RemovePeers,
    /// Only those over this interface.
    RemoveOther(u32),
}

impl Route {
    fn unicast(to: Ipv4Net, interface: Option<u32>) -> Self {
        Self {
            via: None,
            to,
            reach: Reach::Unicast,
            interface,
            source: None,
        }
    }

    pub(super) fn replica(ip: Ipv4Addr, interface: u32, gateway: Ipv4Addr) -> Self {
        Self {
            source: Some(gateway),
            ..Self::unicast(Ipv4Net::from(ip), Some(interface))
        }
    }

    pub(super) fn on_link(ip: Ipv4Addr, interface: u32) -> Self {
        Self::unicast(Ipv4Net::from(ip), Some(interface))
    }

    pub(super) fn default_via(gateway: Ipv4Addr, interface: u32) -> Self {
        Self {
            via: Some(gateway),
            ..Self::unicast(Ipv4Net::default(), Some(interface))
        }
    }

    pub(super) fn peer(peer: &Peer, uplink: Option<u32>) -> Self {
        Self {
            via: Some(peer.underlay_ip),
            ..Self::unicast(peer.cidr.trunc(), uplink)
        }
    }

    pub(super) fn unreachable(to: Ipv4Net) -> Self {
        Self {
            reach: Reach::Unreachable,
            ..Self::unicast(to, None)
        }
    }

    /// A route of ours in the main table; `None` for all others.
    fn read(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        if header.protocol != PROTOCOL || header.table != RouteHeader::RT_TABLE_MAIN {
            return None;
        }
        let reach = match header.kind {
            RouteType::Unicast => Reach::Unicast,
            RouteType::Unreachable => Reach::Unreachable,
            _ => return None,
        };
        let mut route = Self {
            reach,
            ..Self::unicast(Ipv4Net::default(), None)
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => {
                    route.to = Ipv4Net::new(*ip, header.destination_prefix_length).ok()?;
                }
                RouteAttribute::Gateway(RouteAddress::Inet(ip)) => route.via = Some(*ip),
                RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => route.source = Some(*ip),
                RouteAttribute::Oif(index) => route.interface = Some(*index),
                _ => {}
            }
        }
        Some(route)
    }

    fn message(&self) -> RouteMessage {
        let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
            .protocol(PROTOCOL)
            .destination_prefix(self.to.addr(), self.to.prefix_len());
        if let Some(via) = self.via {
            builder = builder.gateway(via);
        } else if self.reach == Reach::Unicast {
            builder = builder.scope(RouteScope::Link);
        }
        if self.reach == Reach::Unreachable {
            builder = builder.kind(RouteType::Unreachable);
        }
        if let Some(interface) = self.interface {
            builder = builder.output_interface(interface);
        }
        if let Some(source) = self.source {
            builder = builder.pref_source(source);
        }
        builder.build()
    }

    /// Whether the kernel's route is what `self` wants.
    fn is_met_by(&self, found: &Self) -> bool {
        let found = Self {
            interface: self.interface.and(found.interface),
            ..*found
        };
        *self == found
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.reach, self.via) {
            (Reach::Unreachable, _) => write!(f, "unreachable {}", self.to),
            (Reach::Unicast, Some(via)) => write!(f, "{} via {via}", self.to),
            (Reach::Unicast, None) => write!(f, "{}", self.to),
        }
    }
}

impl Stale {
    fn removes(self, route: &Route) -> bool {
        match self {
            Self::Keep => false,
            Self::Remove => true,
            Self::RemovePeers => route.via.is_some(),
            Self::RemoveOther(interface) => route.interface == Some(interface),
        }
    }
}

async fn all(handle: &Handle) -> Result<Vec<RouteMessage>, NetworkError> {
    handle
        .route()
        .get(RouteMessageBuilder::<Ipv4Addr>::new().build())
        .execute()
        .try_collect()
        .await
        .map_err(netlink_error("listing routes"))
}

/// The interface of the default route.
pub(super) async fn default_interface(handle: &Handle) -> Result<Option<u32>, NetworkError> {
    Ok(all(handle)
        .await?
        .iter()
        .filter(|message| {
            message.header.destination_prefix_length == 0
                && message.header.table == RouteHeader::RT_TABLE_MAIN
                && message.header.kind == RouteType::Unicast
        })
        .find_map(|message| {
            message.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            })
        }))
}

/// All of `wanted` are there; of ours that are not, those that `stale` names are removed.
pub(super) async fn ensure(
    handle: &Handle,
    wanted: &BTreeSet<Route>,
    stale: Stale,
    drift: &mut Vec<Drift>,
) -> Result<(), NetworkError> {
    let found: Vec<Route> = all(handle).await?.iter().filter_map(Route::read).collect();
    for route in &found {
        // A route to the same place is replaced below, in one step.
        let replaced = wanted.iter().any(|want| want.to == route.to);
        if replaced || !stale.removes(route) {
            continue;
        }
        match handle.route().del(route.message()).execute().await {
            Err(error) if errno(&error) == Some(Errno::SRCH) => {}
            other => other.map_err(netlink_error(format!("removing the route {route}")))?,
        }
        drift.push(Drift {
            what: format!("removed the route {route}"),
        });
    }
    for want in wanted {
        if found.iter().any(|route| want.is_met_by(route)) {
            continue;
        }
        handle
            .route()
            .add(want.message())
            .replace()
            .execute()
            .await
            .map_err(netlink_error(format!("adding the route {want}")))?;
        drift.push(Drift {
            what: format!("added the route {want}"),
        });
    }
    Ok(())
}
