//! The underlay of an instance: a bridge in the host's namespace, a network namespace per machine, a veth cable between
//! them, and masquerading so that machines reach what the host reaches.
//!
//! A machine's namespace is a file below the state directory with the namespace bound to it: it appears in no global
//! list and goes away with the one sweep over the directory's mounts.

use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::Ipv4Net;
use serde::Deserialize;

use super::layout::Layout;
use super::record::{MachineRecord, Record};
use super::tool::{self, TOOL_DEADLINE, ToolError};

/// Machines get the addresses from .11 on; below lie the bridge and room for more services of the host.
const FIRST_MACHINE_HOST: u32 = 10;
/// Addresses .11 to .210.
pub(crate) const MACHINES_MAX: u32 = 200;
/// Subnet indexes that are tried: 100.80.N.0/24 with containers in 10.(244-N).0.0/16.
const INDEX_MAX: u8 = 200;

/// Why the underlay could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("the host's routes cannot be read")]
    Routes(#[source] serde_json::Error),
    #[error("no free subnet: each of 100.80.0.0/24 to 100.80.200.0/24 meets a route of the host")]
    NoSubnet,
    #[error("cannot write {path}")]
    Write {
        path: String,
        #[source]
        source: std::io::Error,
    },
}

/// The two networks of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subnets {
    pub(crate) underlay: Ipv4Net,
    pub(crate) containers: Ipv4Net,
}

/// The first pair of subnets that meets no route of the host. Instances see each other's bridges as routes, and the
/// pair shares one index, so the container networks of two instances never meet either.
pub(crate) fn choose(routes: &[Ipv4Net]) -> Option<Subnets> {
    let meets = |net: &Ipv4Net| {
        routes
            .iter()
            .any(|route| route.contains(net) || net.contains(route))
    };
    (0..=INDEX_MAX).find_map(|index| {
        let underlay = Ipv4Net::new(Ipv4Addr::new(100, 80, index, 0), 24).ok()?;
        let containers = Ipv4Net::new(Ipv4Addr::new(10, 244 - index, 0, 0), 16).ok()?;
        (!meets(&underlay) && !meets(&containers)).then_some(Subnets { underlay, containers })
    })
}

/// Reads the destinations of `ip -j route`; the default route meets everything and is left out.
fn parse_routes(json: &str) -> Result<Vec<Ipv4Net>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Route {
        dst: String,
    }
    let routes: Vec<Route> = serde_json::from_str(json)?;
    let net = |dst: &str| {
        dst.parse()
            .ok()
            .or_else(|| dst.parse::<Ipv4Addr>().ok().map(Ipv4Net::from))
    };
    Ok(routes
        .iter()
        .filter_map(|route| net(&route.dst))
        .filter(|net| net.prefix_len() > 0)
        .collect())
}

/// Every IPv4 destination the host has a route for.
pub(crate) async fn host_routes() -> Result<Vec<Ipv4Net>, NetworkError> {
    let json = tool::run("ip", &["-4", "-j", "route", "show", "table", "all"]).await?;
    parse_routes(&json).map_err(NetworkError::Routes)
}

/// The address of the machine with this index, counted from 0.
pub(crate) fn machine_address(subnet: Ipv4Net, index: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()) + FIRST_MACHINE_HOST + index + 1)
}

/// The MTU of the host's way out, which bridge and cables take over; 1500 when there is none.
async fn uplink_mtu() -> u32 {
    #[derive(Deserialize)]
    struct Route {
        dev: String,
    }
    let routes = tool::run("ip", &["-4", "-j", "route", "show", "default"])
        .await
        .unwrap_or_default();
    let routes: Vec<Route> = serde_json::from_str(&routes).unwrap_or_default();
    routes
        .iter()
        .filter_map(|route| {
            let mtu = std::fs::read_to_string(format!("/sys/class/net/{}/mtu", route.dev)).ok()?;
            mtu.trim().parse().ok()
        })
        .min()
        .unwrap_or(1500)
}

/// Makes bridge, masquerading and every machine's namespace.
pub(crate) async fn create(record: &Record, layout: &Layout) -> Result<(), NetworkError> {
    let mtu = uplink_mtu().await;
    let bridge = record.bridge();
    let batch = format!(
        "link add {bridge} mtu {mtu} type bridge\naddr add {}/{} dev {bridge}\nlink set {bridge} up\n",
        record.gateway(),
        record.subnet.prefix_len()
    );
    tool::run_with("ip", &["-batch", "-"], &batch, TOOL_DEADLINE).await?;
    set_forwarding(true)?;
    tool::run_with("nft", &["-f", "-"], &masquerade(record), TOOL_DEADLINE).await?;
    for machine in &record.machines {
        create_machine(record, machine, &layout.netns(&machine.name), mtu).await?;
    }
    Ok(())
}

/// Makes one machine's namespace again, after its power was cut.
pub(crate) async fn create_again(
    record: &Record,
    machine: &MachineRecord,
    layout: &Layout,
) -> Result<(), NetworkError> {
    let mtu = uplink_mtu().await;
    create_machine(record, machine, &layout.netns(&machine.name), mtu).await
}

/// The instance's own table. Only what leaves the underlay is rewritten: between machines addresses stay as they are.
fn masquerade(record: &Record) -> String {
    let (table, subnet) = (record.nft_table(), record.subnet);
    format!(
        "table ip {table} {{\n  chain postrouting {{\n    type nat hook postrouting priority srcnat; policy accept;\n    \
         ip saddr {subnet} ip daddr != {subnet} masquerade\n  }}\n}}\n"
    )
}

async fn create_machine(
    record: &Record,
    machine: &MachineRecord,
    netns: &Path,
    mtu: u32,
) -> Result<(), NetworkError> {
    let write = |source| NetworkError::Write {
        path: netns.display().to_string(),
        source,
    };
    std::fs::write(netns, "").map_err(write)?;
    let path = netns.display().to_string();
    // unshare binds the new namespace to the file; what it runs there needs no more than to end.
    tool::run("unshare", &[&format!("--net={path}"), "true"]).await?;
    let MachineRecord { veth, address, .. } = machine;
    let bridge = record.bridge();
    let outside = format!(
        "link add {veth} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {path}\n\
         link set {veth} master {bridge}\nlink set {veth} up\n"
    );
    tool::run_with("ip", &["-batch", "-"], &outside, TOOL_DEADLINE).await?;
    let inside = format!(
        "link set lo up\naddr add {address}/{} dev eth0\nlink set eth0 up\nroute add default via {}\n",
        record.subnet.prefix_len(),
        record.gateway()
    );
    let net = format!("--net={path}");
    tool::run_with("nsenter", &[&net, "ip", "-batch", "-"], &inside, TOOL_DEADLINE).await?;
    Ok(())
}

/// Takes a machine's cable away; one that is not there is no fault.
pub(crate) async fn cut_cable(veth: &str) -> Result<(), ToolError> {
    let path = Path::new("/sys/class/net").join(veth);
    match tool::run("ip", &["link", "del", veth]).await {
        Err(error) if path.exists() => Err(error),
        _ => Ok(()),
    }
}

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// Whether the host forwards IPv4.
pub(crate) fn forwards() -> bool {
    std::fs::read_to_string(FORWARDING).is_ok_and(|text| text.trim() == "1")
}

/// Switches IPv4 forwarding of the host; writes only what differs.
pub(crate) fn set_forwarding(on: bool) -> Result<(), NetworkError> {
    if forwards() == on {
        return Ok(());
    }
    std::fs::write(FORWARDING, if on { "1" } else { "0" }).map_err(|source| NetworkError::Write {
        path: FORWARDING.into(),
        source,
    })
}

/// Docker makes the host drop what it forwards, and no table of ours can overrule that.
pub(crate) async fn forward_warning(record: &Record) -> Option<String> {
    let chain = tool::run("nft", &["list", "chain", "ip", "filter", "FORWARD"])
        .await
        .ok()?;
    let bridge = record.bridge();
    chain.contains("policy drop").then(|| {
        format!(
            "this host drops what it forwards (Docker sets that); machines will not reach the internet, and perhaps not \
             each other, until you allow it: iptables -I DOCKER-USER -i {bridge} -j ACCEPT; \
             iptables -I DOCKER-USER -o {bridge} -j ACCEPT"
        )
    })
}

/// Name servers that machines can reach: those of the host, without the ones on its loopback.
pub(crate) fn name_servers() -> Vec<String> {
    ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .map(|text| parse_name_servers(&text))
        .find(|servers| !servers.is_empty())
        .unwrap_or_default()
}

fn parse_name_servers(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|address| address.trim().parse::<Ipv4Addr>().ok())
        .filter(|address| !address.is_loopback())
        .map(|address| address.to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::record::tests::record;

    #[test]
    fn chooses_the_first_pair_that_meets_no_route() {
        assert_eq!(choose(&[]).unwrap().containers, "10.244.0.0/16".parse().unwrap());
        let taken = ["100.80.0.0/24".parse().unwrap(), "10.243.7.0/24".parse().unwrap()];
        let chosen = choose(&taken).unwrap();
        assert_eq!(chosen.underlay, "100.80.2.0/24".parse().unwrap());
        assert_eq!(chosen.containers, "10.242.0.0/16".parse().unwrap());
        assert_eq!(choose(&["100.64.0.0/10".parse().unwrap()]), None);
    }

    #[test]
    fn reads_routes_in_every_form() {
        let json = r#"[{"dst":"default","gateway":"192.0.2.1"},{"dst":"192.0.2.0/24"},{"type":"local","dst":"192.0.2.2"}]"#;
        let routes = parse_routes(json).unwrap();
        assert_eq!(
            routes,
            ["192.0.2.0/24".parse().unwrap(), "192.0.2.2/32".parse().unwrap()]
        );
    }

    #[test]
    fn machines_have_their_own_addresses_in_the_subnet() {
        let subnet = record().subnet;
        assert_eq!(machine_address(subnet, 0), Ipv4Addr::new(100, 80, 7, 11));
        assert!(subnet.contains(&machine_address(subnet, MACHINES_MAX - 1)));
    }

    #[test]
    fn name_servers_on_the_loopback_are_left_out() {
        let text = "# c\nnameserver 127.0.0.53\nnameserver 192.0.2.53\noptions edns0\nnameserver ::1\n";
        assert_eq!(parse_name_servers(text), ["192.0.2.53"]);
    }

    #[test]
    fn only_what_leaves_the_underlay_is_masqueraded() {
        let text = masquerade(&record());
        assert!(text.contains("ip saddr 100.80.7.0/24 ip daddr != 100.80.7.0/24 masquerade\n"));
    }
}
