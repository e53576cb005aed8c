//! Rows of the fault reference about addresses and ports that change hands: after an unclean death, and over a restart of the daemon.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_api::machine::AssignedNetwork;
use berth_node::config::Config;
use berth_node::host::linux::LinuxHost;
use berth_node::host::{Host as _, HostPort, NetworkWish};
use berth_tests::assigned::assignment;

use crate::netns::{PATIENCE, Switch, inside, is_shut, must, seen_by, skip_without_root, tell_address};
use crate::{Machine, attach, replica, wait};

/// For what has to come.
const LONG: Duration = Duration::from_secs(30);

/// A UDP socket in a namespace.
fn udp(netns: &Path, address: &str) -> UdpSocket {
    let address: SocketAddr = address.parse().expect("an address");
    inside(netns, async move || {
        UdpSocket::bind(address).expect("a free address")
    })
}

/// A connection from a fixed port to a server of [`tell_address`], left open with the server's word unread.
fn connect_from(netns: &Path, port: u16, to: &str) -> std::io::Result<TcpStream> {
    let to: SocketAddr = to.parse().expect("an address");
    inside(netns, async move || {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind((Ipv4Addr::UNSPECIFIED, port).into())?;
        let stream = tokio::time::timeout(LONG, socket.connect(to)).await??;
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(LONG))?;
        // Dropped, it is forgotten at once, so that its port can be used again.
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
        Ok(stream)
    })
}

/// Sends back what it reads, on each connection, until the test ends.
fn echo(netns: &Path, listen: &str) {
    let listen: SocketAddr = listen.parse().expect("an address");
    let listener = inside(netns, async move || {
        TcpListener::bind(listen).expect("a free address")
    });
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
}

/// One byte there and back.
fn round_trip(mut stream: &TcpStream, byte: u8) {
    stream.write_all(&[byte]).expect("the stream stands");
    let mut back = [0];
    stream.read_exact(&mut back).expect("the stream stands");
    assert_eq!(back, [byte]);
}

/// A replica dies with its machine's daemon, its connections open: its address and its host port serve the next one at once, and
/// nothing that was sent to the dead reaches the living.
#[test]
fn fault_35_address_and_port_of_the_dead_reused() {
    if skip_without_root("fault_35_address_and_port_of_the_dead_reused") {
        return;
    }
    let switch = Switch::new("r");
    let one = Machine::new(&switch, 1);
    let world = switch.path(0);
    let net = one.open();
    let a = attach(&net, "a", "10.244.1.2");
    one.apply(one.firewall(&[&a], &[(8001, "10.244.1.2:80")]));

    // A flow over UDP, masqueraded, on which the world may answer for a while.
    let server = udp(&world, "192.0.2.254:9999");
    server.set_read_timeout(Some(LONG)).unwrap();
    let client = udp(&a.netns, "10.244.1.2:5000");
    client.set_read_timeout(Some(LONG)).unwrap();
    client.send_to(b"hello", "192.0.2.254:9999").unwrap();
    let mut buffer = [0; 16];
    let (_, mapped) = server.recv_from(&mut buffer).unwrap();
    server.send_to(b"back", mapped).unwrap();
    assert_eq!(client.recv(&mut buffer).unwrap(), 4, "the flow works");
    // A connection through the host port that nobody will end.
    echo(&a.netns, "10.244.1.2:80");
    let stream = connect_from(&world, 40_000, "192.0.2.1:8001").unwrap();
    round_trip(&stream, 1);

    // The daemon dies, the replica too, and not even a record is left. The client's end goes unheard.
    drop((net, client));
    must(&format!("ip -n {} link set br0 down", switch.name(0)));
    drop(stream);
    must(&format!("ip -n {} link del {}", one.name, a.interface));
    must(&format!("umount {}", a.netns.display()));
    std::fs::remove_file(&a.netns).unwrap();
    std::fs::remove_file(a.netns.with_extension("json")).unwrap();
    must(&format!("ip -n {} link set br0 up", switch.name(0)));

    // Another has the address now: flushed when it was added.
    let net = one.open();
    let b = attach(&net, "b", "10.244.1.2");
    one.apply(one.firewall(&[&b], &[(8001, "10.244.1.2:80")]));
    let heir = udp(&b.netns, "10.244.1.2:5000");
    heir.set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..3 {
        // Refused by the machine from the second on: nobody has that port any more.
        server.send_to(b"late", mapped).ok();
    }
    assert!(heir.recv(&mut buffer).is_err(), "what was for the dead");
    echo(&b.netns, "10.244.1.2:80");
    let stream = connect_from(&world, 40_000, "192.0.2.1:8001").expect("the port serves the new one");
    round_trip(&stream, 2);

    // And the port goes to another address: flushed when the old one was taken away.
    must(&format!("ip -n {} link set br0 down", switch.name(0)));
    drop(stream);
    wait(net.detach(&replica("b"))).expect("detached");
    must(&format!("ip -n {} link set br0 up", switch.name(0)));
    let c = attach(&net, "c", "10.244.1.3");
    one.apply(one.firewall(&[&c], &[(8001, "10.244.1.3:80")]));
    echo(&c.netns, "10.244.1.3:80");
    let stream = connect_from(&world, 40_000, "192.0.2.1:8001").expect("the port serves the third one");
    round_trip(&stream, 3);
    let rules = must(&format!(
        "nsenter --net={} nft list table inet berth",
        one.netns.display()
    ));
    assert!(!rules.contains("10.244.1.2"), "{rules}");
    drop(heir);
    wait(net.detach(&replica("c"))).expect("detached");
    assert!(!must(&format!("ip -n {} link", one.name)).contains("bth"));
}

fn config(one: &Machine) -> Arc<Config> {
    let dir = one.state.path().display();
    let text = format!(
        "cluster_id = \"c\"\nmachine_id = \"{}\"\ncapacity_group = \"general\"\nzone = \"z\"\n\
         scheduler = \"https://192.0.2.254:1\"\nca_file = \"{dir}/ca.pem\"\ntoken_file = \"{dir}/token\"\n\
         state_dir = \"{dir}/state\"\nrun_dir = \"{dir}/run\"\ncontainerd_socket = \"{dir}/none.sock\"\n\
         containerd_namespace = \"none\"\ncgroup_parent = \"/none\"\nunderlay_ip = \"192.0.2.1\"\n\
         keeper_socket = \"{dir}/keeper.sock\"\nlog_store = \"{dir}/logs\"\n\
         [capacity]\ncpu = \"1\"\nmemory = \"1Gi\"\n",
        one.name
    );
    Arc::new(Config::parse(&text, "test").unwrap())
}

fn wish(host_ports: Option<Vec<HostPort>>) -> NetworkWish {
    NetworkWish {
        peers: vec![],
        host_ports,
    }
}

/// The life of a daemon: opens the machine, does `work`, and is gone without a word.
fn life(one: &Machine, work: impl AsyncFnOnce(LinuxHost) + Send + 'static) {
    let (config, assigned) = (
        config(one),
        AssignedNetwork {
            cidr: one.config().cidr,
            gateway: one.gateway(),
        },
    );
    inside(&one.netns, async move || {
        let host = LinuxHost::open(config, assigned).await.expect("a machine");
        work(host).await;
    });
}

/// The daemon goes and comes back while a host port carries connections: those there are go on, new ones are served at every moment,
/// also before the new daemon knows who is ready and while it attaches others.
#[test]
fn fault_40_host_ports_outlive_the_daemon() {
    if skip_without_root("fault_40_host_ports_outlive_the_daemon") {
        return;
    }
    let switch = Switch::new("h");
    let one = Machine::new(&switch, 1);
    let world = switch.path(0);
    let a_ip = Ipv4Addr::new(10, 244, 1, 2);
    let port = HostPort {
        port: 8001,
        replica_id: replica("a"),
        target_ip: a_ip.into(),
        target_port: 80,
    };
    let forwarded = wish(Some(vec![port]));
    let first = forwarded.clone();
    life(&one, async move |host| {
        host.attach_network(&assignment("a", a_ip, 80)).await.unwrap();
        host.set_network(&first).await.unwrap();
    });
    let mut netns = std::fs::read_dir(one.state.path().join("run/netns")).unwrap();
    let a = netns
        .find_map(|entry| Some(entry.unwrap().path()).filter(|path| path.extension().is_none()))
        .unwrap();
    echo(&a, "10.244.1.2:80");
    let stream = connect_from(&world, 40_001, "192.0.2.1:8001").unwrap();
    round_trip(&stream, 1);
    // Nobody is there, and it works.
    let also = connect_from(&world, 40_002, "192.0.2.1:8001").expect("a host port without a daemon");
    round_trip(&also, 2);

    let (to_world, kept) = (world.clone(), stream.try_clone().unwrap());
    life(&one, async move |host| {
        let is_served = |port: u16, what: &str| {
            let new = connect_from(&to_world, port, "192.0.2.1:8001")
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            round_trip(&new, 3);
            round_trip(&kept, 4);
        };
        is_served(40_003, "opened");
        host.set_network(&wish(None)).await.unwrap();
        is_served(40_004, "who is ready is not known");
        let b = assignment("b", Ipv4Addr::new(10, 244, 1, 3), 80);
        host.attach_network(&b).await.unwrap();
        is_served(40_005, "another is attached");
        host.set_network(&forwarded).await.unwrap();
        is_served(40_006, "who is ready is known");
        host.set_network(&wish(Some(vec![]))).await.unwrap();
        // Only what is new: a connection that stands is not cut.
        round_trip(&kept, 5);
        for id in ["a", "b"] {
            host.detach_network(&replica(id)).await.unwrap();
        }
    });
    assert!(is_shut(&world, "192.0.2.1:8001", None), "withdrawn");
    let links = must(&format!("ip -n {} link", one.name));
    assert!(!links.contains("bth"), "{links}");
    // The machine itself is reached as ever.
    tell_address(&one.netns, "0.0.0.0:8001");
    seen_by(&world, "192.0.2.1:8001", None).expect("no rule is left on the port");
}
