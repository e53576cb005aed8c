//! Rows of the fault reference about names under pressure: a flood from one replica, upstreams that are dead or lose replies, and
//! two questions at once from one port.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use berth_api::time::monotonic;
use berth_node::dns::{DirectoryState, Dns, DnsConfig};

use crate::netns::{PATIENCE, Switch, inside, must, skip_without_root};
use crate::{Machine, ask_udp, attach, names, question, read_answer, replica, wait};

const A: u16 = 1;
const AAAA: u16 = 28;
/// Response codes: the name server's own, and that of [`upstream`].
const SERVER_FAILURE: u8 = 2;
const REFUSED_UPSTREAM: u8 = 4;

fn start_dns(machine: &Machine, upstreams: &[&str]) -> (Dns, DirectoryState) {
    let (mut directory, view) = DirectoryState::new();
    directory.apply(&names());
    let config = DnsConfig {
        listen: (machine.gateway(), 53).into(),
        listeners: Arc::default(),
        upstreams: upstreams.iter().map(|address| address.parse().unwrap()).collect(),
    };
    let dns = inside(&machine.netns, async move || {
        Dns::start(config, view).await.expect("a server")
    });
    (dns, directory)
}

/// Datagrams that came to the sockets of a machine so far, read or lost there.
fn arrived(machine: &Machine) -> u64 {
    let netns = machine.netns.display();
    let text = must(&format!("nsenter --net={netns} cat /proc/net/snmp"));
    let counters = text.lines().rfind(|line| line.starts_with("Udp:")).unwrap();
    let counters: Vec<u64> = counters.split(' ').filter_map(|word| word.parse().ok()).collect();
    // InDatagrams, NoPorts, InErrors.
    counters[0] + counters[2]
}

/// Runs `work` on a thread inside a namespace that nobody waits for.
fn spawn_inside(netns: &Path, work: impl FnOnce() + Send + 'static) {
    let file = std::fs::File::open(netns).expect("a namespace");
    std::thread::spawn(move || {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("entering a namespace");
        work();
    });
}

/// Answers every question; every other one only while nothing is lost.
fn upstream(netns: &Path, loses: Arc<AtomicBool>) {
    let (ready, bound) = std::sync::mpsc::sync_channel(1);
    spawn_inside(netns, move || {
        let socket = UdpSocket::bind("192.0.2.254:53").expect("a free address");
        ready.send(()).expect("a test that waits");
        let mut buffer = [0; 512];
        let mut lost_last = false;
        while let Ok((length, source)) = socket.recv_from(&mut buffer) {
            lost_last = loses.load(Ordering::SeqCst) && !lost_last;
            if !lost_last {
                buffer[2] |= 0x80;
                buffer[3] = REFUSED_UPSTREAM;
                socket.send_to(&buffer[..length], source).ok();
            }
        }
    });
    bound.recv().expect("a socket");
}

/// Asks as fast as it can and reads nothing, until it is over.
fn flood(netns: &Path, server: Ipv4Addr, over: Arc<AtomicBool>) -> Arc<AtomicUsize> {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    spawn_inside(netns, move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.connect((server, 53)).expect("a route");
        let questions = [question("many.svc", A), question("example.com", A)];
        while !over.load(Ordering::Relaxed) {
            for question in &questions {
                // A full queue of its own is no reason to stop.
                count.fetch_add(usize::from(socket.send(question).is_ok()), Ordering::Relaxed);
            }
        }
    });
    sent
}

/// How many of so many questions are answered, each asked once.
fn answered(netns: &Path, server: Ipv4Addr, name: &'static str, count: usize) -> usize {
    let question = question(name, A);
    inside(netns, async move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        socket.connect((server, 53)).expect("a route");
        let mut buffer = [0; 4096];
        (0..count)
            .filter(|_| socket.send(&question).is_ok() && socket.recv(&mut buffer).is_ok())
            .count()
    })
}

/// Asks until an upstream has answered; stub resolvers do so too, a few times.
fn ask_until_answered(netns: &Path, server: Ipv4Addr) {
    for _ in 0..10 {
        let (code, _) = ask_udp(netns, server, "example.com", A);
        if code == REFUSED_UPSTREAM {
            return;
        }
        assert_eq!(code, SERVER_FAILURE, "it says that nobody answered");
    }
    panic!("the upstream that lives is never asked");
}

/// A replica floods the name server: its neighbour's questions are answered as before, own names and others, though all upstreams but
/// the last are dead; a lost reply is asked for again.
#[test]
fn fault_38_name_server_flooded_and_upstreams_dead() {
    if skip_without_root("fault_38_name_server_flooded_and_upstreams_dead") {
        return;
    }
    let switch = Switch::new("p");
    let one = Machine::new(&switch, 1);
    let net = one.open();
    let (a, b) = (attach(&net, "a", "10.244.1.2"), attach(&net, "b", "10.244.1.3"));
    one.apply(one.firewall(&[&a, &b], &[]));
    let loses = Arc::new(AtomicBool::new(false));
    upstream(&switch.path(0), Arc::clone(&loses));
    let (dns, _directory) = start_dns(&one, &["192.0.2.252:53", "192.0.2.253:53", "192.0.2.254:53"]);
    let server = one.gateway();

    let over = Arc::new(AtomicBool::new(false));
    let (began, before) = (monotonic(), arrived(&one));
    let sent = flood(&a.netns, server, Arc::clone(&over));
    while sent.load(Ordering::Relaxed) < 20_000 {
        std::thread::yield_now();
    }
    // Each is asked once. A few may be lost while a crowded host runs nothing of this for seconds.
    let count = answered(&b.netns, server, "reader.svc", 200);
    assert!(count >= 180, "{count} of 200 are answered");
    ask_until_answered(&b.netns, server);
    over.store(true, Ordering::Relaxed);
    // What is above the bound of one source never reaches the queue that all share.
    let seconds = monotonic().duration_since(began).as_secs() + 1;
    let (arrived, sent) = (arrived(&one) - before, sent.load(Ordering::Relaxed));
    assert!(
        arrived <= 2000 * seconds + 1000,
        "{arrived} of {sent} in {seconds} s"
    );

    loses.store(true, Ordering::SeqCst);
    ask_until_answered(&b.netns, server);
    loses.store(false, Ordering::SeqCst);
    // Whoever flooded is served again.
    ask_until_answered(&a.netns, server);
    assert!(dns.is_running());
    dns.stop();
    for id in ["a", "b"] {
        wait(net.detach(&replica(id))).expect("detached");
    }
    assert!(!must(&format!("ip -n {} link", one.name)).contains("bth"));
}

/// What the machine tracks, one connection a line.
fn tracked(machine: &Machine) -> String {
    must(&format!(
        "nsenter --net={} cat /proc/net/nf_conntrack",
        machine.netns.display()
    ))
}

/// A and AAAA leave from one port at once, as C libraries ask: both are answered each time, and nothing of it is tracked, where two
/// packets of one new connection race.
#[test]
fn fault_39_two_questions_at_once_are_not_tracked() {
    if skip_without_root("fault_39_two_questions_at_once_are_not_tracked") {
        return;
    }
    let switch = Switch::new("q");
    let one = Machine::new(&switch, 1);
    let net = one.open();
    let a = attach(&net, "a", "10.244.1.2");
    one.apply(one.firewall(&[&a], &[]));
    let (dns, _directory) = start_dns(&one, &[]);
    let server = one.gateway();
    inside(&a.netns, async move || {
        for round in 0..200 {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.set_read_timeout(Some(PATIENCE * 15)).expect("a time-out");
            socket.connect((server, 53)).expect("a route");
            for kind in [A, AAAA] {
                socket.send(&question("reader.svc", kind)).expect("sent");
            }
            let mut counts: Vec<usize> = (0..2)
                .map(|_| {
                    let mut buffer = vec![0; 4096];
                    let length = socket
                        .recv(&mut buffer)
                        .unwrap_or_else(|error| panic!("{round}: {error}"));
                    buffer.truncate(length);
                    let (code, addresses) = read_answer(&buffer);
                    assert_eq!(code, 0, "{round}");
                    addresses.len()
                })
                .collect();
            counts.sort_unstable();
            assert_eq!(counts, [0, 2], "{round}: no IPv6, two addresses");
        }
        // What is no DNS is tracked: the look below would see it.
        let outwards: SocketAddr = "192.0.2.254:9".parse().expect("an address");
        UdpSocket::bind("0.0.0.0:0")
            .and_then(|socket| socket.send_to(b"x", outwards))
            .expect("sent");
    });
    let found = tracked(&one);
    assert!(found.contains("dst=192.0.2.254"), "{found}");
    assert!(!found.contains(&format!("dst={server} ")), "{found}");
    dns.stop();
    wait(net.detach(&replica("a"))).expect("detached");
    // Nor is the way out of a replica that is gone.
    let found = tracked(&one);
    assert!(!found.contains("src=10.244.1.2 "), "{found}");
}
