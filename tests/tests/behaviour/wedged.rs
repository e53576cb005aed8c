//! Row 31 of the fault reference: what stands between a machine and its scheduler stops forwarding and closes nothing.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::dev::{Dev, Program, container, signal, text, until};
use super::inspect::berthd;
use super::outages::status_is_reality;

/// What stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    FromMachine,
    ToMachine,
    Both,
}

#[derive(Default)]
struct Wires {
    /// Connections with a lower number are wedged, in this way, for good.
    wedged_below: AtomicUsize,
    from_machine: AtomicBool,
    to_machine: AtomicBool,
    /// New ones are wedged as they come.
    all: AtomicBool,
    accepted: AtomicUsize,
    over: AtomicBool,
}

/// A proxy that can stop forwarding without closing anything, as firewalls do that forget a connection.
struct Proxy {
    address: SocketAddr,
    wires: Arc<Wires>,
}

/// How soon a thread sees that it is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl Proxy {
    fn start(listen: SocketAddr, target: SocketAddr) -> Self {
        let listener = TcpListener::bind(listen).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let wires = Arc::new(Wires::default());
        let of_thread = Arc::clone(&wires);
        std::thread::spawn(move || {
            while !of_thread.over.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((near, _)) => serve(&of_thread, near, target),
                    Err(_) => std::thread::sleep(LOOK_EVERY),
                }
            }
        });
        Self { address, wires }
    }

    fn accepted(&self) -> usize {
        self.wires.accepted.load(Ordering::SeqCst)
    }

    /// Wedges every connection that there is; gives how many there were so far.
    fn wedge(&self, way: Way) -> usize {
        let accepted = self.accepted();
        self.wires
            .from_machine
            .store(way != Way::ToMachine, Ordering::SeqCst);
        self.wires
            .to_machine
            .store(way != Way::FromMachine, Ordering::SeqCst);
        self.wires.wedged_below.store(accepted, Ordering::SeqCst);
        accepted
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.wires.over.store(true, Ordering::SeqCst);
    }
}

fn serve(wires: &Arc<Wires>, near: TcpStream, target: SocketAddr) {
    let number = wires.accepted.fetch_add(1, Ordering::SeqCst);
    let Ok(far) = TcpStream::connect(target) else {
        return;
    };
    near.set_nonblocking(false).unwrap();
    for (from, to, is_from_machine) in [
        (near.try_clone().unwrap(), far.try_clone().unwrap(), true),
        (far, near, false),
    ] {
        from.set_read_timeout(Some(LOOK_EVERY)).unwrap();
        let wires = Arc::clone(wires);
        std::thread::spawn(move || forward(&wires, number, from, to, is_from_machine));
    }
}

fn forward(wires: &Wires, number: usize, mut from: TcpStream, mut to: TcpStream, is_from_machine: bool) {
    let mut bytes = vec![0; 16 << 10];
    let mut was_wedged = false;
    while !wires.over.load(Ordering::SeqCst) {
        let way = if is_from_machine {
            &wires.from_machine
        } else {
            &wires.to_machine
        };
        let is_hit = number < wires.wedged_below.load(Ordering::SeqCst) || wires.all.load(Ordering::SeqCst);
        was_wedged |= is_hit && way.load(Ordering::SeqCst);
        if was_wedged {
            // Neither read nor closed: the kernel takes what its buffers hold, and the sender hears nothing.
            std::thread::sleep(LOOK_EVERY);
            continue;
        }
        match from.read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => {
                if to.write_all(&bytes[..count]).is_err() {
                    break;
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) => {}
            Err(_) => break,
        }
    }
    // The other side may be gone already.
    drop(to.shutdown(Shutdown::Write));
}

/// Lets the first machine dial the proxy in place of its scheduler.
fn put_between(dev: &Dev) -> Proxy {
    let file = dev.state().join("machines/m1/berthd.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    let line = config
        .lines()
        .find(|line| line.starts_with("scheduler "))
        .unwrap();
    let target: SocketAddr = line
        .split('/')
        .nth(2)
        .unwrap()
        .trim_end_matches('"')
        .parse()
        .unwrap();
    let proxy = Proxy::start((target.ip(), 0).into(), target);
    let changed = config.replace(&target.to_string(), &proxy.address.to_string());
    std::fs::write(&file, changed).unwrap();
    let daemon = dev.daemon("m1");
    signal(daemon, Signal::KILL);
    dev.another(Program::Daemon, Some(daemon));
    until("the machine dials the proxy", || {
        (proxy.accepted() > 0).then_some(())
    });
    proxy
}

/// Whether the daemon says that its link works; none when it does not answer.
fn link_works(dev: &Dev) -> Option<bool> {
    let document: Value = serde_json::from_slice(&berthd(dev, &["status", "--json"]).stdout).ok()?;
    let parts = document["machine"]["subsystems"].as_array()?;
    let link = parts.iter().find(|part| part["name"] == "link")?;
    link["ok"].as_bool()
}

fn until_linked(dev: &Dev) {
    until("the link works", || {
        let page = text(&berthd(dev, &["status"]).stdout);
        let mut lines = page.lines();
        lines
            .any(|line| line.starts_with("link") && line.contains("works"))
            .then_some(())
    });
}

fn health(dev: &Dev) -> Value {
    dev.json(&["get", "machines", "-o", "json"])[0]["status"].clone()
}

/// Each way of a connection stands still while it stays open: the machine dials anew and takes what was declared meanwhile, whether
/// or not the old connection ever ends. While new ones stand still too neither side calls the other well.
#[test]
fn fault_31_half_open_connections() {
    let Some(dev) = Dev::up(1) else { return };
    dev.apply(&[container(&dev, "web", 1)]);
    let proxy = put_between(&dev);
    until_linked(&dev);
    let pids = dev.pids();
    for (way, replicas) in [(Way::FromMachine, 2), (Way::ToMachine, 3), (Way::Both, 4)] {
        let before = proxy.wedge(way);
        dev.apply_at_once(&[container(&dev, "web", replicas)]);
        until(&format!("{way:?} stands still: the machine dials anew"), || {
            (proxy.accepted() > before).then_some(())
        });
        dev.until_ready("web", replicas as usize);
        until_linked(&dev);
    }

    proxy.wires.all.store(true, Ordering::SeqCst);
    let log = || std::fs::read_to_string(dev.state().join("logs/m1-berthd.log")).unwrap();
    let read = log().len();
    let before = proxy.wedge(Way::Both);
    until("the daemon says that its link is impaired", || {
        (link_works(&dev) == Some(false)).then_some(())
    });
    // Three heartbeats, not what a keep-alive of the connection would take.
    let log = log().split_off(read);
    assert!(log.contains("the scheduler did not answer within 6s"), "{log}");
    until("the scheduler calls the machine unhealthy", || {
        (health(&dev) == "unhealthy").then_some(())
    });
    until("it dials again and again, and never calls that a link", || {
        assert_ne!(link_works(&dev), Some(true), "nothing passes");
        (proxy.accepted() >= before + 2).then_some(())
    });
    assert_eq!(health(&dev), "unhealthy", "nothing passes");
    assert_eq!(dev.pids().len(), 4, "what runs runs on");

    proxy.wires.all.store(false, Ordering::SeqCst);
    until_linked(&dev);
    until("the scheduler calls the machine well", || {
        (health(&dev) == "running").then_some(())
    });
    dev.until_ready("web", 4);
    for (id, pid) in &pids {
        assert_eq!(dev.pids().get(id), Some(pid), "{id} runs on");
    }
    dev.apply(&[container(&dev, "web", 2)]);
    dev.until_tidy();
    status_is_reality(&dev);
}
