//! Sockets that a program asks its supervisor to keep over its restarts, as systemd's descriptor store does: `FDSTORE=1` and
//! `FDSTOREREMOVE=1` with `FDNAME=` of sd_notify(3).
//!
//! Owner: the program's task. Failure: what cannot be kept is bound anew by the next start.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

/// A program that asks for more is not served.
const SOCKETS_MAX: usize = 2;
const MESSAGE_BYTES_MAX: usize = 512;

#[derive(Debug, Default)]
pub(super) struct Kept {
    asks: Option<UnixDatagram>,
    sockets: Vec<(String, OwnedFd)>,
}

impl Kept {
    /// Listens at a path, if there is one.
    pub(super) fn open(path: Option<&Path>) -> Self {
        let asks = path.and_then(|path| {
            // One that an earlier owner left.
            drop(std::fs::remove_file(path));
            UnixDatagram::bind(path).ok()
        });
        Self {
            asks,
            sockets: Vec::new(),
        }
    }

    /// By name, in the order in which they came.
    pub(super) fn sockets(&self) -> &[(String, OwnedFd)] {
        &self.sockets
    }

    /// Gives up all sockets: the next start is a new life, in a network of its own.
    pub(super) fn clear(&mut self) {
        self.take_all();
        self.sockets.clear();
    }

    /// Waits until something is asked. Cancel-safe.
    pub(super) async fn ready(&self) {
        match &self.asks {
            Some(asks) if asks.readable().await.is_ok() => {}
            Some(_) | None => std::future::pending().await,
        }
    }

    /// Takes all that was asked.
    pub(super) fn take_all(&mut self) {
        while let Some((text, socket)) = self.receive() {
            let line = |name: &str| {
                text.lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            };
            let Some(name) = line("FDNAME") else { continue };
            if line("FDSTOREREMOVE").is_some() {
                self.sockets.retain(|(known, _)| known != name);
            }
            if line("FDSTORE").is_some()
                && let Some(socket) = socket
                && self.sockets.len() < SOCKETS_MAX
            {
                self.sockets.push((name.to_owned(), socket));
            }
        }
    }

    fn receive(&self) -> Option<(String, Option<OwnedFd>)> {
        let asks = self.asks.as_ref()?;
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = asks.try_io(Interest::READABLE, || {
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let mut iov = [IoSliceMut::new(&mut bytes)];
            Ok(rustix::net::recvmsg(asks, &mut iov, &mut control, flags)?)
        });
        let length = received.ok()?.bytes;
        let mut sockets = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
            _ => None,
        });
        let socket = sockets.next().and_then(|mut sockets| sockets.next());
        let text = String::from_utf8_lossy(bytes.get(..length)?).into_owned();
        Some((text, socket))
    }
}
