//! The way of tunnels into replicas: a program beside the first process, a connection from inside the network namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use berth_api::id::ReplicaId;
use futures::future::BoxFuture;
use tokio::net::{TcpSocket, TcpStream};

use super::{LinuxHost, container_id, of_runtime};
use crate::host::HostError;
use crate::host::containerd::{Attached, Program};
use crate::host::namespace::Door;
use crate::tunnel::Reach;

/// For each address: they are the machine's own.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Below `run_dir`.
const FIFOS: &str = "exec";

impl LinuxHost {
    /// Removes what a daemon that died has left of its tunnels.
    pub(super) fn forget_fifos(&self) {
        let dir = self.config.run_dir.join(FIFOS);
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(dir = %dir.display(), error = %error, "old FIFOs could not be removed");
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// Ends the programs that an earlier daemon's callers spoke with. Each container is looked at until it has answered once.
    pub(super) async fn end_forgotten_programs(&self) {
        let unasked: Vec<String> = {
            let memory = &mut *self.memory();
            memory.asked.retain(|id| memory.containers.contains_key(id));
            let known = memory.containers.keys();
            known.filter(|id| !memory.asked.contains(*id)).cloned().collect()
        };
        for id in unasked {
            match self.runtime.end_forgotten(&id).await {
                Ok(()) => {
                    self.memory().asked.insert(id);
                }
                Err(error) => tracing::debug!(id, error = %error, "its programs cannot be listed yet"),
            }
        }
    }
}

impl Reach for LinuxHost {
    fn exec<'a>(
        &'a self,
        replica_id: &'a ReplicaId,
        program: Program,
    ) -> BoxFuture<'a, Result<Attached, HostError>> {
        Box::pin(async move {
            let dir = self.config.run_dir.join(FIFOS);
            let id = container_id(replica_id);
            let attached = self.runtime.attach(&id, program, &dir).await;
            attached.map_err(|error| of_runtime(&error))
        })
    }

    fn connect<'a>(
        &'a self,
        replica_id: &'a ReplicaId,
        port: u16,
    ) -> BoxFuture<'a, Result<TcpStream, HostError>> {
        Box::pin(async move {
            let attachment = self.memory().attachments.get(replica_id).cloned();
            let attachment =
                attachment.ok_or_else(|| HostError::infrastructure("it has no network on this machine"))?;
            let door = Door::new(attachment.netns);
            // A program listens on its loopback, on its address, or on both.
            let addresses: [IpAddr; 3] = [
                Ipv4Addr::LOCALHOST.into(),
                attachment.ip.into(),
                Ipv6Addr::LOCALHOST.into(),
            ];
            let mut failed = String::new();
            for address in addresses {
                let connected = connect(&door, SocketAddr::new(address, port));
                match tokio::time::timeout(CONNECT_TIMEOUT, connected).await {
                    Ok(Ok(stream)) => return Ok(stream),
                    Ok(Err(error)) if failed.is_empty() => failed = error,
                    Ok(Err(_)) => {}
                    Err(_) => failed = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
                }
            }
            Err(HostError::infrastructure(failed))
        })
    }
}

async fn connect(door: &Door, to: SocketAddr) -> Result<TcpStream, String> {
    let make = if to.is_ipv4() {
        TcpSocket::new_v4
    } else {
        TcpSocket::new_v6
    };
    let socket = door.run(make).await.map_err(|error| error.to_string())?;
    socket.connect(to).await.map_err(|error| error.to_string())
}
