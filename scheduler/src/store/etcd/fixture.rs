//! Real etcd members for tests, on loopback ports, with their data in a directory of their own. A member is killed by its
//! process id when it is dropped.
//!
//! Included by path from the failover tests as well, so it depends on the standard library alone.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const PROGRAM: &str = "etcd";
/// Polls of 20 ms until a member listens: two minutes, for a machine that is busy with other tests.
const POLLS_MAX: u32 = 6000;
/// Three members take 400 MiB, and several tests run at once.
const FREE_MIB_MIN: u64 = 4096;

/// Says why and returns true when etcd is not installed.
pub(crate) fn skip_without_etcd(test: &str) -> bool {
    let is_there = Command::new(PROGRAM)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !is_there {
        eprintln!("{test}: skipped: there is no program {PROGRAM}; install Debian's etcd-server");
    }
    !is_there
}

/// Where members keep their data: in memory where there is room, else where temporary files are. Tests kill members, they cut no
/// power, and a disk that others wait for would make etcd slow for longer than its leases last.
pub(crate) fn data_root() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let asked = Command::new("df")
        .args(["--output=avail", "--block-size=1M"])
        .arg(memory)
        .output();
    let free_mib = asked.ok().and_then(|output| {
        let text = String::from_utf8(output.stdout).ok()?;
        text.split_whitespace().last()?.parse::<u64>().ok()
    });
    if free_mib.is_some_and(|free| free >= FREE_MIB_MIN) {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    }
}

/// Ports of loopback that nobody listens on, below those that the kernel gives to outgoing connections (32768 and up): one
/// that is free now stays free while its program is started, and started again. Each process looks in a window of its own.
pub(crate) fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let window = 10_000 + std::process::id() % 1000 * 20;
    let mut ports = Vec::new();
    while ports.len() < count {
        let candidate = window + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(candidate % 20_000 + 10_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            ports.push(port);
        }
    }
    ports
}

/// Some members of one etcd cluster. Dropping it kills them.
#[derive(Debug)]
pub(crate) struct EtcdCluster {
    dir: PathBuf,
    members: Vec<Member>,
    flags: Vec<String>,
    /// Of the addresses that clients use.
    scheme: &'static str,
}

#[derive(Debug)]
struct Member {
    client_port: u16,
    peer_port: u16,
    child: Option<Child>,
}

impl EtcdCluster {
    /// Starts `count` members with data under `dir` and waits until each listens. With a `--cert-file` they speak TLS.
    pub(crate) fn start(dir: &Path, count: usize, flags: &[&str]) -> Self {
        let ports = free_ports(count * 2);
        let members = ports
            .chunks(2)
            .map(|pair| Member {
                client_port: pair[0],
                peer_port: pair[1],
                child: None,
            })
            .collect();
        let mut cluster = Self {
            dir: dir.to_path_buf(),
            members,
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            scheme: if flags.contains(&"--cert-file") {
                "https"
            } else {
                "http"
            },
        };
        for member in 0..count {
            cluster.spawn(member);
        }
        for member in 0..count {
            cluster.wait(member);
        }
        cluster
    }

    /// `host:port` of every member.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|member| format!("127.0.0.1:{}", member.client_port))
            .collect()
    }

    /// kill -9.
    pub(crate) fn kill(&mut self, member: usize) {
        if let Some(mut child) = self.members[member].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts a member that was killed, on the data it left.
    pub(crate) fn restart(&mut self, member: usize) {
        self.spawn(member);
        self.wait(member);
    }

    fn spawn(&mut self, index: usize) {
        let peers: Vec<String> = self
            .members
            .iter()
            .enumerate()
            .map(|(index, member)| format!("m{index}=http://127.0.0.1:{}", member.peer_port))
            .collect();
        let member = &self.members[index];
        let client_url = format!("{}://127.0.0.1:{}", self.scheme, member.client_port);
        let peer_url = format!("http://127.0.0.1:{}", member.peer_port);
        let log = File::create(self.dir.join(format!("m{index}.log"))).unwrap();
        let child = Command::new(PROGRAM)
            .args(["--name", &format!("m{index}")])
            .arg("--data-dir")
            .arg(self.dir.join(format!("m{index}")))
            .args(["--listen-client-urls", &client_url])
            .args(["--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url])
            .args(["--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &peers.join(",")])
            .args(["--initial-cluster-state", "new"])
            .args(["--heartbeat-interval", "100", "--election-timeout", "1000"])
            .args(&self.flags)
            .env("ETCD_UNSUPPORTED_ARCH", "arm64")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.members[index].child = Some(child);
    }

    fn wait(&mut self, index: usize) {
        let member = &mut self.members[index];
        for _ in 0..POLLS_MAX {
            let address = ("127.0.0.1", member.client_port);
            let is_ready = match self.scheme {
                "http" => has_leader(address),
                _ => TcpStream::connect(address).is_ok(),
            };
            if is_ready {
                return;
            }
            let child = member.child.as_mut().unwrap();
            if let Some(status) = child.try_wait().unwrap() {
                panic!(
                    "etcd ended at its start with {status}; see {}",
                    self.dir.display()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("etcd does not listen; see {}", self.dir.display());
    }
}

/// It listens before it has read its log and found a leader; only then it serves.
fn has_leader(address: (&str, u16)) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains("\"health\":\"true\""))
}

impl Drop for EtcdCluster {
    fn drop(&mut self) {
        for member in 0..self.members.len() {
            self.kill(member);
        }
    }
}
