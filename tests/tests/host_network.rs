//! The machine's network, firewall and DNS in real network namespaces: what replicas reach, what they do not, what is
//! mended, and that nothing is left. Needs root.

#![expect(clippy::unwrap_used, reason = "a broken step ends the test with its place")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod netns;
#[cfg(test)]
mod network {
    mod handover;
    mod pressure;
}

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};

use berth_api::id::{MachineId, ReplicaId};
use berth_api::link;
use berth_node::dns::{DirectoryState, Dns, DnsConfig};
use berth_node::host::firewall::{Checked, Firewall, FirewallState};
use berth_node::host::net::{Attachment, Network, NetworkConfig, Peer};
use berth_node::host::sockets;
use netns::{PATIENCE, Switch, command, inside, is_shut, must, seen_by, skip_without_root, tell_address};

/// One machine of the two.
struct Machine {
    number: u8,
    netns: PathBuf,
    name: String,
    state: tempfile::TempDir,
}

impl Machine {
    fn new(switch: &Switch, number: u8) -> Self {
        Self {
            number,
            netns: switch.path(number),
            name: switch.name(number),
            state: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.number, 1)
    }

    fn config(&self) -> NetworkConfig {
        NetworkConfig {
            machine_id: MachineId::new(self.name.clone()).expect("an id"),
            cidr: format!("10.244.{}.0/24", self.number).parse().expect("a subnet"),
            gateway: self.gateway(),
            netns_dir: self.state.path().join("netns"),
            uplink: None,
            mtu: None,
        }
    }

    fn open(&self) -> Network {
        let config = self.config();
        inside(&self.netns, async move || {
            Network::open(config).await.expect("a network")
        })
    }

    fn firewall(&self, attached: &[&Attachment], host_ports: &[(u16, &str)]) -> FirewallState {
        FirewallState {
            cidr: self.config().cidr,
            gateway: self.gateway(),
            mesh: vec!["10.244.0.0/16".parse().expect("a subnet")],
            replicas: attached
                .iter()
                .map(|attachment| (attachment.interface.clone(), attachment.ip))
                .collect(),
            host_ports: host_ports
                .iter()
                .map(|(port, target)| (*port, target.parse().expect("an address")))
                .collect(),
        }
    }

    fn apply(&self, state: FirewallState) -> Firewall {
        inside(&self.netns, async move || {
            let mut firewall = Firewall::new();
            firewall.apply(&state).await.expect("a table");
            firewall
        })
    }
}

fn replica(id: &str) -> ReplicaId {
    ReplicaId::new(id).expect("an id")
}

/// Runs a future of a handle that works from anywhere.
fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

fn attach(network: &Network, id: &str, ip: &str) -> Attachment {
    wait(network.attach(&replica(id), ip.parse().expect("an address"))).expect("an attachment")
}

fn peer(number: u8) -> Peer {
    Peer {
        cidr: format!("10.244.{number}.0/24").parse().expect("a subnet"),
        underlay_ip: Ipv4Addr::new(192, 0, 2, number),
    }
}

#[test]
fn replicas_talk_across_machines_and_detach_leaves_nothing() {
    if skip_without_root("replicas_talk_across_machines_and_detach_leaves_nothing") {
        return;
    }
    let switch = Switch::new("a");
    let (one, two) = (Machine::new(&switch, 1), Machine::new(&switch, 2));
    let (net1, net2) = (one.open(), two.open());
    wait(net1.set_peers(&[peer(1), peer(2)])).expect("routes");
    wait(net2.set_peers(&[peer(1)])).expect("routes");
    let a = attach(&net1, "a/with slash", "10.244.1.2");
    assert_eq!(
        a,
        attach(&net1, "a/with slash", "10.244.1.2"),
        "attach is idempotent"
    );
    let b = attach(&net1, "b", "10.244.1.3");
    let c = attach(&net2, "c", "10.244.2.2");
    one.apply(one.firewall(&[&a, &b], &[]));
    two.apply(two.firewall(&[&c], &[]));
    tell_address(&b.netns, "10.244.1.3:80");
    tell_address(&c.netns, "10.244.2.2:80");
    // The same machine and another one; the address stays what it is.
    assert_eq!(seen_by(&a.netns, "10.244.1.3:80", None).unwrap(), "10.244.1.2");
    assert_eq!(seen_by(&a.netns, "10.244.2.2:80", None).unwrap(), "10.244.1.2");
    assert_eq!(seen_by(&one.netns, "10.244.1.3:80", None).unwrap(), "10.244.1.1");
    // The MTU is the uplink's on both ends.
    assert!(must(&format!("nsenter --net={} ip link show eth0", a.netns.display())).contains("mtu 1400"));
    assert!(must(&format!("ip -n {} link show {}", one.name, a.interface)).contains("mtu 1400"));
    // A peer that left has no route.
    wait(net1.set_peers(&[])).expect("routes");
    assert!(is_shut(&a.netns, "10.244.2.2:80", None));

    for id in ["a/with slash", "b", "a/with slash"] {
        wait(net1.detach(&replica(id))).expect("detached");
    }
    assert_eq!(wait(net1.list()).expect("a list"), []);
    assert!(!must(&format!("ip -n {} link", one.name)).contains("bth"));
    assert!(!must("cat /proc/self/mountinfo").contains(one.state.path().to_str().unwrap()));
    wait(net1.close()).expect("closed");
    assert!(!must(&format!("ip -n {} link", one.name)).contains("berth0"));
    assert!(!one.state.path().join("netns").exists());
    wait(net2.detach(&replica("c"))).expect("detached");
}

#[test]
fn the_firewall_lets_through_what_it_must_and_nothing_else() {
    if skip_without_root("the_firewall_lets_through_what_it_must_and_nothing_else") {
        return;
    }
    let switch = Switch::new("f");
    let one = Machine::new(&switch, 1);
    let net = one.open();
    let a = attach(&net, "a", "10.244.1.2");
    let b = attach(&net, "b", "10.244.1.3");
    let state = one.firewall(&[&a, &b], &[(8001, "10.244.1.2:80")]);
    let firewall = one.apply(state.clone());
    let world = switch.path(0);
    must(&format!(
        "ip -n {} addr add 169.254.169.254/32 dev lo",
        switch.name(0)
    ));
    must(&format!(
        "ip -n {} route add 10.244.1.0/24 via 192.0.2.1",
        switch.name(0)
    ));
    tell_address(&world, "0.0.0.0:80");
    tell_address(&a.netns, "10.244.1.2:80");
    tell_address(&one.netns, "0.0.0.0:2222");

    // Outwards under the machine's address.
    assert_eq!(seen_by(&a.netns, "192.0.2.254:80", None).unwrap(), "192.0.2.1");
    // The instance metadata are there for the machine, not for a replica.
    seen_by(&one.netns, "169.254.169.254:80", None).unwrap();
    assert!(is_shut(&a.netns, "169.254.169.254:80", None));
    // The machine's own ports.
    seen_by(&world, "192.0.2.1:2222", None).unwrap();
    for own in ["10.244.1.1:2222", "192.0.2.1:2222"] {
        assert!(is_shut(&a.netns, own, None), "{own}");
    }
    // A borrowed address, and the neighbour's. The gateway is known by then: it answers no question of a borrowed address, and
    // while one is open a connection of the own address fails with it.
    seen_by(&b.netns, "10.244.1.2:80", None).unwrap();
    must(&format!(
        "nsenter --net={} ip addr add 10.244.1.77/32 dev lo",
        b.netns.display()
    ));
    assert!(is_shut(
        &b.netns,
        "10.244.1.2:80",
        Some("10.244.1.77".parse().unwrap())
    ));
    seen_by(&b.netns, "10.244.1.2:80", None).unwrap();
    // Host port: from outside, from the machine, from a replica, even from the one that serves it.
    assert_eq!(seen_by(&world, "192.0.2.1:8001", None).unwrap(), "192.0.2.254");
    seen_by(&one.netns, "192.0.2.1:8001", None).unwrap();
    seen_by(&b.netns, "192.0.2.1:8001", None).unwrap();
    seen_by(&a.netns, "192.0.2.1:8001", None).unwrap();
    // Straight from outside to a replica.
    assert!(is_shut(&world, "10.244.1.2:80", None));

    repairs_and_follows_changes(&one, firewall, state, &a, &b);
    assert!(
        is_shut(&world, "192.0.2.1:8001", None),
        "the host port is withdrawn"
    );
    for id in ["a", "b"] {
        wait(net.detach(&replica(id))).expect("detached");
    }
}

fn repairs_and_follows_changes(
    one: &Machine,
    mut firewall: Firewall,
    state: FirewallState,
    a: &Attachment,
    b: &Attachment,
) {
    let without_a = FirewallState {
        replicas: BTreeMap::from([(b.interface.clone(), b.ip)]),
        ..state.clone()
    };
    let without_ports = FirewallState {
        host_ports: BTreeMap::new(),
        ..state.clone()
    };
    let (a, name) = (a.netns.clone(), one.name.clone());
    inside(&one.netns, async move || {
        assert_eq!(firewall.check().await.unwrap(), Checked::AsExpected);
        for damage in [
            "nft flush ruleset",
            "nft flush chain inet berth forward",
            "nft flush set inet berth replicas",
            "nft add element inet berth mesh { 203.0.113.0/24 }",
        ] {
            must(&format!("nsenter --net=/run/netns/{name} {damage}"));
            assert_eq!(firewall.check().await.unwrap(), Checked::Repaired, "{damage}");
            assert_eq!(firewall.check().await.unwrap(), Checked::AsExpected, "{damage}");
        }
        seen_by(&a, "192.0.2.254:80", None).unwrap();
        firewall.apply(&without_a).await.unwrap();
        assert_eq!(firewall.check().await.unwrap(), Checked::AsExpected);
        assert!(is_shut(&a, "192.0.2.254:80", None), "no longer a member");
        // Members change by element; with the table gone that fails and the whole is written.
        must(&format!("nsenter --net=/run/netns/{name} nft flush ruleset"));
        firewall.apply(&state).await.unwrap();
        assert_eq!(firewall.check().await.unwrap(), Checked::AsExpected);
        firewall.apply(&without_ports).await.unwrap();
        assert_eq!(firewall.check().await.unwrap(), Checked::AsExpected);
    });
}

#[test]
fn fault_34_network_changed_by_others() {
    if skip_without_root("fault_34_network_changed_by_others") {
        return;
    }
    let switch = Switch::new("c");
    let one = Machine::new(&switch, 1);
    let net = one.open();
    wait(net.set_peers(&[peer(2)])).expect("routes");
    let a = attach(&net, "a", "10.244.1.2");
    tell_address(&a.netns, "0.0.0.0:80");
    assert_eq!(wait(net.check()).expect("a compare"), []);
    let name = &one.name;
    let inside_a = format!("nsenter --net={} ip", a.netns.display());
    for damage in [
        format!("ip -n {name} link del berth0"),
        format!("ip -n {name} link del {}", a.interface),
        format!("ip -n {name} link set {} down", a.interface),
        format!("ip -n {name} link set {} netns {}", a.interface, switch.name(0)),
        format!("ip -n {name} route flush proto 190"),
        format!("ip -n {name} route add 10.244.9.0/24 via 192.0.2.9 proto 190"),
        format!("ip -n {name} link add bthffffffffffff type bridge"),
        format!("{inside_a} addr flush dev eth0"),
        format!("{inside_a} addr add 10.244.1.9/32 dev eth0"),
        format!("{inside_a} route del default"),
        format!("{inside_a} link set lo down"),
    ] {
        must(&damage);
        assert_ne!(wait(net.check()).expect("a compare"), [], "{damage}");
        assert_eq!(wait(net.check()).expect("a compare"), [], "{damage}");
        assert_eq!(
            seen_by(&one.netns, "10.244.1.2:80", None).expect(&damage),
            "10.244.1.1"
        );
    }
    // Other people's routes are left alone.
    must(&format!("ip -n {name} route add 198.51.100.0/24 via 192.0.2.254"));
    assert_eq!(wait(net.check()).expect("a compare"), []);
    assert!(must(&format!("ip -n {name} route")).contains("198.51.100.0/24"));
    wait(net.detach(&replica("a"))).expect("detached");
}

#[test]
fn fault_01_daemon_killed_amid_network_setup() {
    if skip_without_root("fault_01_daemon_killed_amid_network_setup") {
        return;
    }
    let switch = Switch::new("t");
    let one = Machine::new(&switch, 1);
    let net = one.open();
    let all: Vec<Attachment> = (2..32)
        .map(|host| attach(&net, &format!("r{host}"), &format!("10.244.1.{host}")))
        .collect();
    // What a kill -9 leaves between any two steps: no address, no pair, no namespace, only a record.
    must(&format!(
        "nsenter --net={} ip addr flush dev eth0",
        all[0].netns.display()
    ));
    must(&format!("ip -n {} link del {}", one.name, all[1].interface));
    must(&format!("ip -n {} link del {}", one.name, all[2].interface));
    must(&format!("umount {}", all[2].netns.display()));
    must(&format!("ip -n {} link del {}", one.name, all[3].interface));
    must(&format!("umount {}", all[3].netns.display()));
    std::fs::remove_file(&all[3].netns).unwrap();
    drop(net);

    let net = one.open();
    assert_eq!(wait(net.list()).expect("a list").len(), 30);
    for (index, attachment) in all.iter().enumerate() {
        let again = wait(net.attach(&attachment.replica_id, attachment.ip)).expect("an attachment");
        assert_eq!(again, *attachment);
        if index < 6 {
            tell_address(&again.netns, "0.0.0.0:80");
            assert!(
                seen_by(&one.netns, &format!("{}:80", attachment.ip), None).is_ok(),
                "{index}"
            );
        }
    }
    // At once, as when a machine is drained.
    wait(async {
        let gone = all.iter().map(|attachment| net.detach(&attachment.replica_id));
        for result in futures::future::join_all(gone).await {
            result.expect("detached");
        }
    });
    assert_eq!(wait(net.list()).expect("a list"), []);
    assert!(!must(&format!("ip -n {} link", one.name)).contains("bth"));
}

/// A question as a stub resolver sends it.
fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

/// Response code and, of address answers alone, the addresses.
fn read_answer(bytes: &[u8]) -> (u8, Vec<Ipv4Addr>) {
    assert_eq!(bytes[..2], [0x12, 0x34], "the id of the question");
    let count = usize::from(u16::from_be_bytes([bytes[6], bytes[7]]));
    // Each answer: pointer, type, class, TTL, length, address: 16 bytes, the last ones of the message.
    let answers = &bytes[bytes.len() - 16 * count..];
    let addresses = answers
        .chunks(16)
        .map(|record| {
            assert_eq!(record[6..10], [0, 0, 0, 5], "TTL");
            Ipv4Addr::new(record[12], record[13], record[14], record[15])
        })
        .collect();
    (bytes[3] & 15, addresses)
}

fn ask_udp(netns: &Path, server: Ipv4Addr, name: &str, kind: u16) -> (u8, Vec<Ipv4Addr>) {
    let question = question(name, kind);
    let answer = inside(netns, async move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.set_read_timeout(Some(PATIENCE * 4)).expect("a time-out");
        socket.send_to(&question, (server, 53)).expect("sent");
        let mut buffer = vec![0; 4096];
        let (length, _) = socket.recv_from(&mut buffer).expect("an answer over UDP");
        buffer.truncate(length);
        buffer
    });
    read_answer(&answer)
}

fn ask_tcp(netns: &Path, server: Ipv4Addr, name: &str, kind: u16) -> (u8, Vec<Ipv4Addr>) {
    use std::io::{Read as _, Write as _};
    let question = question(name, kind);
    let answer = inside(netns, async move || {
        let mut stream = std::net::TcpStream::connect((server, 53)).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE * 4)).expect("a time-out");
        let length = u16::try_from(question.len()).expect("a short question");
        stream.write_all(&length.to_be_bytes()).expect("sent");
        stream.write_all(&question).expect("sent");
        let mut length = [0; 2];
        stream.read_exact(&mut length).expect("an answer over TCP");
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer).expect("an answer over TCP");
        answer
    });
    read_answer(&answer)
}

/// An upstream that answers every question with response code 4.
fn refuse_names(netns: &Path) {
    let file = std::fs::File::open(netns).expect("a namespace");
    let (ready, bound) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("entering a namespace");
        let socket = UdpSocket::bind("192.0.2.254:53").expect("a free address");
        ready.send(()).expect("a test that waits");
        let mut buffer = [0; 512];
        while let Ok((length, source)) = socket.recv_from(&mut buffer) {
            buffer[2] |= 0x80;
            buffer[3] = 4;
            socket.send_to(&buffer[..length], source).ok();
        }
    });
    bound.recv().expect("a socket");
}

fn names() -> link::Directory {
    let entry = |name: &str, hosts: std::ops::Range<u8>| link::DirectoryEntry {
        name: name.into(),
        addresses: hosts.map(|host| format!("10.244.1.{host}")).collect(),
    };
    link::Directory {
        generation: 1,
        base_generation: 0,
        put: vec![
            entry("reader.svc", 2..4),
            entry("many.svc", 2..102),
            entry("empty.svc", 0..0),
        ],
        removed_names: vec![],
    }
}

#[test]
fn replicas_resolve_names_over_udp_and_tcp() {
    if skip_without_root("replicas_resolve_names_over_udp_and_tcp") {
        return;
    }
    const A: u16 = 1;
    const AAAA: u16 = 28;
    let switch = Switch::new("d");
    let one = Machine::new(&switch, 1);
    let net = one.open();
    let a = attach(&net, "a", "10.244.1.2");
    one.apply(one.firewall(&[&a], &[]));
    refuse_names(&switch.path(0));
    let (mut directory, view) = DirectoryState::new();
    directory.apply(&names());
    let gateway = one.gateway();
    // The first upstream is dead, the second answers.
    let upstreams = vec![
        "192.0.2.253:53".parse().unwrap(),
        "192.0.2.254:53".parse().unwrap(),
    ];
    let config = DnsConfig {
        listeners: std::sync::Arc::default(),
        listen: (gateway, 53).into(),
        upstreams,
    };
    let dns = inside(&one.netns, async move || {
        Dns::start(config, view).await.expect("a server")
    });

    let (code, mut first) = ask_udp(&a.netns, gateway, "reader.svc", A);
    let (_, second) = ask_udp(&a.netns, gateway, "reader.svc", A);
    assert_ne!(first, second, "the order turns");
    first.sort();
    assert_eq!((code, first.len()), (0, 2));
    assert_eq!(ask_tcp(&a.netns, gateway, "READER.svc", A).1.len(), 2);
    assert_eq!(ask_udp(&a.netns, gateway, "reader.svc", AAAA).0, 0);
    assert_eq!(ask_udp(&a.netns, gateway, "nobody.svc", A).0, 3);
    assert_eq!(ask_tcp(&a.netns, gateway, "nobody.svc", A).0, 3);
    assert_eq!(ask_udp(&a.netns, gateway, "empty.svc", A).0, 0);
    // Too many for a datagram: cut over UDP, whole over TCP.
    assert_eq!(ask_tcp(&a.netns, gateway, "many.svc", A).1.len(), 100);
    // Everything else goes upstream, over the dead one to the living one.
    assert_eq!(ask_udp(&a.netns, gateway, "example.com", A).0, 4);
    // DNS leaves no conntrack entry.
    let tracked = command(&format!(
        "nsenter --net={} cat /proc/net/nf_conntrack",
        one.netns.display()
    ));
    let tracked = String::from_utf8_lossy(&tracked.stdout).into_owned();
    assert!(!tracked.contains("dst=10.244.1.1 sport"), "{tracked}");
    // An address that comes and goes with the gateway interface keeps the server.
    must(&format!("ip -n {} link del berth0", one.name));
    wait(net.check()).expect("a compare");
    assert_eq!(ask_udp(&a.netns, gateway, "reader.svc", A).1.len(), 2);
    dns.stop();

    // Without upstreams names outside are refused at once.
    let (_directory, view) = DirectoryState::new();
    let config = DnsConfig {
        listeners: std::sync::Arc::default(),
        listen: (gateway, 53).into(),
        upstreams: vec![],
    };
    let dns = inside(&one.netns, async move || {
        Dns::start(config, view).await.expect("a server")
    });
    assert_eq!(ask_udp(&a.netns, gateway, "example.com", A).0, 5);
    assert!(dns.is_running());
    dns.stop();
    wait(net.detach(&replica("a"))).expect("detached");
}

/// What a stop waits for: who came in from outside, and nobody else.
#[test]
fn connections_from_outside_are_counted_and_no_others() {
    if skip_without_root("connections_from_outside_are_counted_and_no_others") {
        return;
    }
    let switch = Switch::new("n");
    let one = Machine::new(&switch, 1);
    let network = one.open();
    let server = attach(&network, "server", "10.244.1.2");
    let client = attach(&network, "client", "10.244.1.3");
    one.apply(one.firewall(&[&server, &client], &[]));
    let counted = |netns: &Path| {
        inside(netns, async || {
            tokio::task::spawn_blocking(sockets::connections)
                .await
                .expect("no panic")
                .expect("tables")
        })
    };
    let connect = |netns: &Path, to: &'static str| {
        inside(netns, async move || {
            let stream = tokio::net::TcpStream::connect(to).await.expect("a connection");
            stream.into_std().expect("a stream")
        })
    };
    let listen = |netns: &Path, on: &'static str| {
        inside(netns, async move || {
            let listener = tokio::net::TcpListener::bind(on).await.expect("a listener");
            listener.into_std().expect("a listener")
        })
    };
    let listener = listen(&server.netns, "10.244.1.2:80");
    // As most programs do it: of both families at once.
    let _both = listen(&server.netns, "[::]:81");
    assert_eq!(counted(&server.netns), 0);
    let first = connect(&client.netns, "10.244.1.2:80");
    let second = connect(&client.netns, "10.244.1.2:81");
    let _own = connect(&server.netns, "10.244.1.2:80");
    assert_eq!((counted(&server.netns), counted(&client.netns)), (2, 0));
    // It dials, too.
    let _taken = listen(&client.netns, "10.244.1.3:80");
    let _dialled = connect(&server.netns, "10.244.1.3:80");
    assert_eq!((counted(&server.netns), counted(&client.netns)), (2, 1));
    drop((first, second));
    while counted(&server.netns) > 0 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    drop(listener);
    for id in ["server", "client"] {
        wait(network.detach(&replica(id))).expect("detached");
    }
}
