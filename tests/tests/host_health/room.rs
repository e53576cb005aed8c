//! A network namespace with servers in it, and the way in that probes take.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_api::id::ReplicaId;
use berth_node::health::{Inside, ProbeRole};
use berth_node::host::namespace::Door;
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// The address of the replica that lives in the room; nothing outside has a way to it.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// Such a server never answers.
pub(crate) const MUTE: u16 = 0;

/// Its namespace goes with it.
pub(crate) struct Room {
    name: String,
    door: Door,
    servers: JoinSet<()>,
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output();
    let output = output.expect("ip is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {words}: {said}");
}

impl Room {
    /// None, and a line that says so, without the rights for it.
    pub(crate) fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root for network namespaces");
            return None;
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("bh{}-{number}", std::process::id());
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} addr add {ADDRESS}/32 dev lo"));
        let door = Door::new(PathBuf::from("/run/netns").join(&name));
        let servers = JoinSet::new();
        Some(Self { name, door, servers })
    }

    pub(crate) fn inside(&self) -> Arc<Script> {
        Arc::new(Script {
            runs: AtomicU32::new(0),
            namespace: PathBuf::from("/run/netns").join(&self.name),
        })
    }

    /// Reserved at `address`, not listening yet.
    pub(crate) async fn reserve(&self, address: Ipv4Addr) -> tokio::net::TcpSocket {
        let socket = self.door.tcp_socket().await.expect("a socket in the room");
        socket.bind(SocketAddr::from((address, 0))).expect("a port");
        socket
    }

    pub(crate) async fn listen(&self, address: Ipv4Addr) -> TcpListener {
        self.reserve(address).await.listen(64).expect("a listener")
    }

    /// A server at `address`.
    pub(crate) async fn serve(&mut self, address: Ipv4Addr) -> Server {
        let listener = self.listen(address).await;
        self.serve_on(listener)
    }

    pub(crate) fn serve_on(&mut self, listener: TcpListener) -> Server {
        let server = Server {
            port: listener.local_addr().expect("an address").port(),
            says: Arc::default(),
            asked: Arc::default(),
        };
        let (says, asked) = (Arc::clone(&server.says), Arc::clone(&server.asked));
        self.servers.spawn(async move {
            let mut answers = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                answers.spawn(answer(stream, Arc::clone(&says), Arc::clone(&asked)));
            }
        });
        server
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        Command::new("ip")
            .args(["netns", "del", &self.name])
            .output()
            .ok();
    }
}

/// Answers 200 unless told otherwise, by what a request's head begins with.
pub(crate) struct Server {
    pub(crate) port: u16,
    says: Arc<Mutex<BTreeMap<String, u16>>>,
    asked: Arc<Mutex<BTreeMap<String, u32>>>,
}

impl Server {
    /// What requests to `path` are answered by from now on; a redirect leads to `/`.
    pub(crate) fn say(&self, path: &str, status: u16) {
        self.says
            .lock()
            .expect("no holder panics")
            .insert(path.to_owned(), status);
    }

    pub(crate) fn asked(&self, line: &str) -> u32 {
        let asked = self.asked.lock().expect("no holder panics");
        asked.get(line).copied().unwrap_or_default()
    }
}

async fn answer(
    mut stream: TcpStream,
    says: Arc<Mutex<BTreeMap<String, u16>>>,
    asked: Arc<Mutex<BTreeMap<String, u32>>>,
) {
    let mut request = [0; 1024];
    let length = stream.read(&mut request).await.unwrap_or(0);
    let text = String::from_utf8_lossy(&request[..length]).into_owned();
    let line = text
        .lines()
        .next()
        .unwrap_or_default()
        .trim_end_matches(" HTTP/1.1");
    *asked
        .lock()
        .expect("no holder panics")
        .entry(line.to_owned())
        .or_default() += 1;
    let path = line.split(' ').nth(1).unwrap_or_default();
    let status = says.lock().expect("no holder panics").get(path).copied();
    let status = status.unwrap_or(200);
    if status == MUTE {
        return std::future::pending().await;
    }
    let answer = format!("HTTP/1.1 {status} So\r\nLocation: /\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(answer.as_bytes()).await.ok();
}

/// Says of a program what its first word says: what it does is tested on a real containerd.
#[derive(Debug)]
pub(crate) struct Script {
    runs: AtomicU32,
    namespace: PathBuf,
}

impl Inside for Script {
    fn run<'a>(
        &'a self,
        _: &'a ReplicaId,
        _: ProbeRole,
        command: &'a [String],
        _: Duration,
    ) -> BoxFuture<'a, Option<Result<(), String>>> {
        let runs = self.runs.fetch_add(1, Ordering::Relaxed);
        let outcome = match command[0].as_str() {
            "ends" => Some(Ok(())),
            "unanswered-at-first" if runs < 2 => None,
            "unanswered-at-first" => Some(Ok(())),
            other => Some(Err(other.to_owned())),
        };
        Box::pin(async { outcome })
    }

    fn namespace(&self, _: &ReplicaId) -> Option<PathBuf> {
        Some(self.namespace.clone())
    }
}
