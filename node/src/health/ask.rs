//! One probe by HTTP or TCP, from inside the replica's network namespace.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{ProbeKind, ProbeRole, ProbeTarget};
use crate::host::namespace::{Door, NamespaceError};
use crate::link::words;

/// The caller has a deadline for it.
pub(super) async fn ask(target: &ProbeTarget, door: &Door) -> Result<(), String> {
    let stream = connect(target, door).await?;
    match target.question.kind {
        ProbeKind::Http => request(target, stream).await,
        ProbeKind::Tcp | ProbeKind::Exec => Ok(()),
    }
}

async fn connect(target: &ProbeTarget, door: &Door) -> Result<TcpStream, String> {
    let port = target.question.port;
    let failed = |error: io::Error| format!("connecting to port {port}: {error}");
    let refused = match open(door, SocketAddr::from((target.ip, port))).await? {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    // Whoever is only asked by a health check is one that others are to reach: there the loopback says nothing.
    let may_be_local = target.role != ProbeRole::Check && refused.kind() == io::ErrorKind::ConnectionRefused;
    if !may_be_local {
        return Err(failed(refused));
    }
    let local = open(door, SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    local.map_err(|_| failed(refused))
}

/// A socket stays in the namespace that it was opened in, so the runtime's own threads may connect it.
async fn open(door: &Door, to: SocketAddr) -> Result<io::Result<TcpStream>, String> {
    let socket = door
        .tcp_socket()
        .await
        .map_err(|error: NamespaceError| words(&error))?;
    Ok(socket.connect(to).await)
}

async fn request(target: &ProbeTarget, stream: TcpStream) -> Result<(), String> {
    let question = &target.question;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| format!("speaking HTTP: {error}"))?;
    let request = Request::builder()
        .method(question.method.as_str())
        .uri(question.path.as_str())
        .header(hyper::header::HOST, format!("{}:{}", target.ip, question.port))
        .header(
            hyper::header::USER_AGENT,
            concat!("berth/", env!("CARGO_PKG_VERSION")),
        )
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("path {}: {error}", question.path))?;
    let response = sender.send_request(request);
    tokio::pin!(response);
    // Cancel-safe: dropped together, and the connection is closed. The connection may end first and leave the answer,
    // or its own error, behind for the request.
    let response = tokio::select! {
        response = &mut response => response,
        _ = connection => response.await,
    };
    let status = response
        .map_err(|error| format!("speaking HTTP: {error}"))?
        .status();
    if status.is_success() {
        Ok(())
    } else {
        Err(format!("status {}", status.as_u16()))
    }
}
