//! Real etcd members on loopback: the store of the high-availability figures, and the peer that writes are compared with.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use berth_api::time::monotonic;

const DEADLINE: Duration = Duration::from_secs(60);

/// Some members of one cluster. Dropping it kills them.
#[derive(Debug)]
pub(crate) struct Etcd {
    members: Vec<Child>,
    ports: Vec<u16>,
}

impl Etcd {
    /// Starts so many members; none where there is no etcd.
    pub(crate) fn start(dir: &Path, count: usize) -> anyhow::Result<Option<Self>> {
        let has_etcd = Command::new("etcd")
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if has_etcd.is_err() {
            return Ok(None);
        }
        std::fs::create_dir_all(dir)?;
        let listeners = (0..count * 2)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0"))
            .collect::<Result<Vec<_>, _>>()?;
        let ports = listeners
            .iter()
            .map(|listener| Ok(listener.local_addr()?.port()))
            .collect::<anyhow::Result<Vec<u16>>>()?;
        drop(listeners);
        let (clients, peers) = ports.split_at(count);
        let initial: Vec<String> = peers
            .iter()
            .enumerate()
            .map(|(number, port)| format!("m{number}=http://127.0.0.1:{port}"))
            .collect();
        let mut etcd = Self {
            members: Vec::new(),
            ports: clients.to_vec(),
        };
        for (number, (client, peer)) in clients.iter().zip(peers).enumerate() {
            let client = format!("http://127.0.0.1:{client}");
            let peer = format!("http://127.0.0.1:{peer}");
            let log = std::fs::File::create(dir.join(format!("m{number}.log")))?;
            let child = Command::new("etcd")
                .args([
                    "--name",
                    &format!("m{number}"),
                    "--initial-cluster",
                    &initial.join(","),
                ])
                .arg("--data-dir")
                .arg(dir.join(format!("m{number}")))
                .args([
                    "--listen-client-urls",
                    &client,
                    "--advertise-client-urls",
                    &client,
                ])
                .args([
                    "--listen-peer-urls",
                    &peer,
                    "--initial-advertise-peer-urls",
                    &peer,
                ])
                .args(["--quota-backend-bytes", "8589934592"])
                .env("ETCD_UNSUPPORTED_ARCH", "arm64")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .context("start etcd")?;
            etcd.members.push(child);
        }
        etcd.wait()?;
        Ok(Some(etcd))
    }

    /// `host:port` of every member, with commas.
    pub(crate) fn endpoints(&self) -> String {
        let endpoints: Vec<String> = self
            .ports
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect();
        endpoints.join(",")
    }

    fn wait(&self) -> anyhow::Result<()> {
        let begun = monotonic();
        for port in &self.ports {
            while TcpStream::connect(("127.0.0.1", *port)).is_err() {
                if begun.elapsed() > DEADLINE {
                    bail!("etcd does not listen after {DEADLINE:?}");
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            // It may have ended already.
            drop(member.kill());
            drop(member.wait());
        }
    }
}
