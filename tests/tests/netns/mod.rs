//! Two machines as network namespaces, joined by a switch in a third one that plays the world outside.
//!
//! ```text
//! machine 1 (192.0.2.1) ── up0 ── br0 (192.0.2.254, the outside) ── up0 ── machine 2 (192.0.2.2)
//! ```

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// Short enough to wait for what never comes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// For what has to come, on a machine that may be loaded: over a lost packet that is sent again after 1, 3, 7 and 15 s.
const LONG_PATIENCE: Duration = Duration::from_secs(30);

/// Says on standard error that a test is skipped, and why.
pub(crate) fn skip_without_root(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED {test}: needs root for network namespaces and mounts");
    }
    !is_root
}

pub(crate) fn command(words: &str) -> Output {
    let mut words = words.split_whitespace();
    let program = words.next().expect("a program");
    Command::new(program)
        .args(words)
        .output()
        .expect("a program that starts")
}

pub(crate) fn must(words: &str) -> String {
    let output = command(words);
    assert!(
        output.status.success(),
        "{words}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `work` on a thread inside a namespace, with a runtime of its own. Children and threads made by it are inside too.
pub(crate) fn inside<T: Send + 'static>(netns: &Path, work: impl AsyncFnOnce() -> T + Send + 'static) -> T {
    let file = std::fs::File::open(netns).expect("a namespace");
    std::thread::spawn(move || {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("entering a namespace");
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(work())
    })
    .join()
    .expect("work that does not panic")
}

/// Removes its namespaces when dropped.
pub(crate) struct Switch {
    prefix: String,
}

impl Switch {
    pub(crate) fn new(test: &str) -> Self {
        let switch = Self {
            prefix: format!("bt{}{test}", std::process::id()),
        };
        let world = switch.name(0);
        must(&format!("ip netns add {world}"));
        must(&format!("ip -n {world} link set lo up"));
        must(&format!("ip -n {world} link add br0 type bridge"));
        must(&format!("ip -n {world} addr add 192.0.2.254/24 dev br0"));
        must(&format!("ip -n {world} link set br0 up"));
        for machine in [1, 2] {
            let name = switch.name(machine);
            must(&format!("ip netns add {name}"));
            must(&format!(
                "ip -n {world} link add m{machine} type veth peer name up0 netns {name}"
            ));
            must(&format!("ip -n {world} link set m{machine} master br0 up"));
            must(&format!("ip -n {name} link set lo up"));
            must(&format!("ip -n {name} addr add 192.0.2.{machine}/24 dev up0"));
            must(&format!("ip -n {name} link set up0 mtu 1400 up"));
            must(&format!("ip -n {name} route add default via 192.0.2.254"));
        }
        switch
    }

    /// 0 is the outside.
    pub(crate) fn name(&self, machine: u8) -> String {
        format!("{}-{machine}", self.prefix)
    }

    pub(crate) fn path(&self, machine: u8) -> PathBuf {
        Path::new("/run/netns").join(self.name(machine))
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        for machine in [1, 2, 0] {
            command(&format!("ip netns del {}", self.name(machine)));
        }
    }
}

/// Tells each TCP client its own address; runs until the test ends.
pub(crate) fn tell_address(netns: &Path, listen: &str) {
    let file = std::fs::File::open(netns).expect("a namespace");
    let listen: SocketAddr = listen.parse().expect("an address");
    let (ready, bound) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("entering a namespace");
        let listener = TcpListener::bind(listen).expect("a free address");
        ready.send(()).expect("a test that waits");
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            if let Ok(peer) = stream.peer_addr() {
                stream.write_all(peer.ip().to_string().as_bytes()).ok();
            }
        }
    });
    bound.recv().expect("a listener");
}

/// The address that a server of [`tell_address`] at `to` sees when a client in `netns` connects.
pub(crate) fn seen_by(netns: &Path, to: &str, from: Option<Ipv4Addr>) -> io::Result<String> {
    ask_within(LONG_PATIENCE, netns, to, from)
}

/// Whether such a client gets no answer.
pub(crate) fn is_shut(netns: &Path, to: &str, from: Option<Ipv4Addr>) -> bool {
    ask_within(PATIENCE, netns, to, from).is_err()
}

fn ask_within(patience: Duration, netns: &Path, to: &str, from: Option<Ipv4Addr>) -> io::Result<String> {
    let to: SocketAddr = to.parse().expect("an address");
    inside(netns, async move || {
        let socket = tokio::net::TcpSocket::new_v4()?;
        if let Some(from) = from {
            socket.bind((from, 0).into())?;
        }
        let stream = tokio::time::timeout(patience, socket.connect(to)).await??;
        let mut stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(patience))?;
        let mut seen = String::new();
        stream.read_to_string(&mut seen)?;
        Ok(seen)
    })
}
