//! `berth port-forward`: ports of this host that lead to ports of a replica.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use berth_api::rest::operator::ListReplicasReply;
use berth_api::rest::tunnel::{Ended, Frame};
use clap::Args;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Bytes;

use crate::context::Session;
use crate::exit::{Code, Failure};
use crate::output;
use crate::tunnel::{CHUNK, WAITING_MAX};

/// Connections at once; what is above waits.
const CONNECTIONS_MAX: usize = 48;

/// Arguments of `berth port-forward`.
#[derive(Debug, Args)]
#[command(
    after_help = "Each connection goes to the replica that serves best when it is made, so a replica that is replaced \
                        costs its connections only. Ends with Ctrl-C."
)]
pub(crate) struct PortForwardArgs {
    /// A replica, or a container
    name: String,
    /// PORT, LOCAL:PORT, or :PORT for any free local port
    #[arg(required = true, value_name = "PORTS")]
    ports: Vec<Ports>,
    /// Local address to listen on; whoever reaches it reaches the replica
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    address: IpAddr,
}

/// A local port, 0 for any, and the replica's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ports {
    local: u16,
    remote: u16,
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} names no ports; write for example 5432, 15432:5432 or :5432");
        let port = |text: &str| {
            text.parse::<u16>()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(wrong)
        };
        match text.split_once(':') {
            None => port(text).map(|port| Self {
                local: port,
                remote: port,
            }),
            Some(("", remote)) => port(remote).map(|remote| Self { local: 0, remote }),
            Some((local, remote)) => Ok(Self {
                local: port(local)?,
                remote: port(remote)?,
            }),
        }
    }
}

pub(crate) async fn run(args: PortForwardArgs, session: &Session) -> Result<(), Failure> {
    let cluster = session.cluster()?;
    let known: ListReplicasReply = session.client.get(&["clusters", cluster, "replicas"]).await?;
    let is_known = known
        .replicas
        .iter()
        .any(|replica| replica.container.as_str() == args.name || replica.replica_id.as_str() == args.name);
    if !is_known {
        return Err(Failure::new(
            Code::NotFound,
            format!(
                "no replica or container {:?} exists; see: berth get replicas",
                args.name
            ),
        ));
    }
    let mut tasks = JoinSet::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    for (listener, ports) in listen(&args).await? {
        let local = listener.local_addr().map_err(Failure::failed)?;
        output::line(format!("{local} -> {}:{}", args.name, ports.remote))?;
        let forward = Forward {
            session: session.clone(),
            name: args.name.clone(),
            remote: ports.remote,
            room: Arc::clone(&room),
        };
        tasks.spawn(forward.accept(listener));
    }
    // Cancel-safe: the tasks end with their set.
    tokio::select! {
        _ = tokio::signal::ctrl_c() => Ok(()),
        ended = tasks.join_next() => match ended {
            Some(Ok(failure)) => Err(failure),
            Some(Err(_)) | None => Err(Failure::failed("a listener ended")),
        },
    }
}

/// Listens on all ports, or tells which cannot be had.
async fn listen(args: &PortForwardArgs) -> Result<Vec<(TcpListener, Ports)>, Failure> {
    let (mut listeners, mut faults) = (Vec::new(), Vec::new());
    for ports in &args.ports {
        let address = SocketAddr::new(args.address, ports.local);
        match TcpListener::bind(address).await {
            Ok(listener) => listeners.push((listener, *ports)),
            Err(error) => faults.push(format!("cannot listen on {address}: {error}")),
        }
    }
    if faults.is_empty() {
        Ok(listeners)
    } else {
        Err(Failure::input(faults.join("\n")))
    }
}

#[derive(Debug, Clone)]
struct Forward {
    session: Session,
    name: String,
    remote: u16,
    /// A permit for each connection of the command.
    room: Arc<Semaphore>,
}

impl Forward {
    async fn accept(self, listener: TcpListener) -> Failure {
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&self.room).acquire_owned().await else {
                return Failure::failed("the listener ended");
            };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => return Failure::failed(format!("cannot take connections: {error}")),
            };
            let forward = self.clone();
            connections.spawn(async move {
                let _permit = permit;
                if let Err(failure) = forward.carry(stream).await {
                    output::note(format!("berth: port {}: {failure}", forward.remote));
                }
            });
        }
    }

    async fn carry(&self, stream: TcpStream) -> Result<(), Failure> {
        let query = [("port", self.remote.to_string())];
        let segments = ["clusters", self.session.cluster()?, "port-forward", &self.name];
        let tunnel = match self.session.client.tunnel(&segments, &query).await {
            Ok(tunnel) => tunnel,
            Err(error) => {
                reset(&stream);
                return Err(error.into());
            }
        };
        let replica = tunnel.replica.clone();
        let (input, to_send) = mpsc::channel(WAITING_MAX);
        let (received, output) = mpsc::channel(WAITING_MAX);
        let (reader, mut writer) = stream.into_split();
        let carrying = async {
            // What is read when the tunnel has ended has nowhere to go.
            tokio::select! {
                ended = tunnel.carry(to_send, received) => ended,
                () = read_into(reader, input) => Ok(Ended::default()),
            }
        };
        let (ended, ()) = tokio::join!(carrying, write_from(output, &mut writer));
        let failure = match ended {
            Ok(Ended { error: None, .. }) => return Ok(()),
            Ok(Ended {
                error: Some(error), ..
            }) => Failure::failed(error),
            Err(failure) => Failure::new(failure.code, format!("{replica}: {failure}")),
        };
        reset(writer.as_ref());
        // Dropping it would say first that all has been said.
        writer.forget();
        Err(failure)
    }
}

/// Returns only when nobody takes it any more.
async fn read_into(mut reader: OwnedReadHalf, input: mpsc::Sender<Vec<u8>>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let frame = match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => Frame::InputEnd,
            Ok(length) => Frame::Input(buffer.get(..length).unwrap_or_default()),
        };
        if input.send(frame.encode()).await.is_err() {
            return;
        }
        if frame == Frame::InputEnd {
            std::future::pending::<()>().await;
        }
    }
}

async fn write_from(mut output: mpsc::Receiver<Bytes>, writer: &mut OwnedWriteHalf) {
    while let Some(message) = output.recv().await {
        let written = match Frame::decode(&message) {
            Ok(Frame::Output(bytes)) => writer.write_all(bytes).await,
            Ok(Frame::OutputEnd) => writer.shutdown().await,
            Ok(_) | Err(_) => Ok(()),
        };
        if written.is_err() {
            return;
        }
    }
}

/// Whoever connected here sees a connection that broke, not one that ended well.
fn reset(stream: &TcpStream) {
    // At worst it looks like an end.
    drop(stream.set_zero_linger());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_and_nonsense_is_refused() {
        let read = |text: &str| text.parse::<Ports>().map(|ports| (ports.local, ports.remote));
        assert_eq!(read("5432"), Ok((5432, 5432)));
        assert_eq!(read("15432:5432"), Ok((15432, 5432)));
        assert_eq!(read(":5432"), Ok((0, 5432)));
        for bad in ["", ":", "0", "80:", "80:0", "x", "1:2:3", "65536", "-1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
