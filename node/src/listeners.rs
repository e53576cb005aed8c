//! Sockets that outlive the daemon: the supervisor keeps them and hands them to the next daemon, so that a question which comes between
//! two daemons waits in the socket instead of being refused (`FDSTORE=1` of sd_notify(3), sd_listen_fds(3)).
//!
//! Input: the descriptors that the process was started with. Output: sockets by name, and what is to be kept. Owner: whoever listens.
//! Failure: without a supervisor that keeps sockets, or with one that hands over another address, the caller binds anew.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags};

/// What the process was started with. Held for its life: a listener that is started again finds its sockets again.
#[derive(Debug, Default)]
pub struct Listeners {
    inherited: Vec<(String, OwnedFd)>,
}

impl Listeners {
    /// Takes over what the supervisor handed to this process.
    #[must_use]
    pub fn inherited() -> Self {
        let inherited = inherited().unwrap_or_else(|error| {
            tracing::warn!(error = %error, "cannot take over the sockets that the supervisor kept");
            Vec::new()
        });
        Self { inherited }
    }

    /// The UDP socket that was kept under a name, if it has this address.
    #[must_use]
    pub fn udp(&self, name: &str, address: SocketAddr) -> Option<UdpSocket> {
        let is_it = |socket: &UdpSocket| socket.local_addr().is_ok_and(|bound| bound == address);
        self.find(name, UdpSocket::from, is_it)
    }

    /// The listening TCP socket that was kept under a name, if it has this address.
    #[must_use]
    pub fn tcp(&self, name: &str, address: SocketAddr) -> Option<TcpListener> {
        let is_it = |socket: &TcpListener| socket.local_addr().is_ok_and(|bound| bound == address);
        self.find(name, TcpListener::from, is_it)
    }

    fn find<S>(&self, name: &str, of: impl Fn(OwnedFd) -> S, is_it: impl Fn(&S) -> bool) -> Option<S> {
        let mut named = self.inherited.iter().filter(|(known, _)| known == name);
        named.find_map(|(_, fd)| {
            let socket = of(fd.try_clone().ok()?);
            is_it(&socket).then_some(socket)
        })
    }
}

/// The descriptors that a supervisor gave. They stay open under their numbers as well: nothing safe can close those.
fn inherited() -> io::Result<Vec<(String, OwnedFd)>> {
    let given: Vec<_> = sd_notify::listen_fds_with_names()?.collect();
    if given.is_empty() {
        return Ok(Vec::new());
    }
    let own = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    let take = |(number, name)| {
        let fd = rustix::process::pidfd_getfd(&own, number, PidfdGetfdFlags::empty())?;
        Ok((name, fd))
    };
    given.into_iter().map(take).collect()
}

/// Asks the supervisor, if there is one, to keep a socket under a name, in the place of what it kept before.
pub fn keep(name: &str, socket: impl AsFd) {
    let Some(supervisor) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let send = || -> io::Result<()> {
        let to = match supervisor.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddrUnix::new_abstract_name(name)?,
            None => SocketAddrUnix::new(&*supervisor)?,
        };
        let from =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let before = format!("FDSTOREREMOVE=1\nFDNAME={name}\n");
        let iov = [IoSlice::new(before.as_bytes())];
        rustix::net::sendmsg_addr(
            &from,
            &to,
            &iov,
            &mut SendAncillaryBuffer::default(),
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        )?;
        let text = format!("FDSTORE=1\nFDNAME={name}\n");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [socket.as_fd()];
        assert!(
            control.push(SendAncillaryMessage::ScmRights(&fds)),
            "the space is for one descriptor"
        );
        let iov = [IoSlice::new(text.as_bytes())];
        rustix::net::sendmsg_addr(
            &from,
            &to,
            &iov,
            &mut control,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        )?;
        Ok(())
    };
    if let Err(error) = send() {
        tracing::debug!(name, error = %error, "the supervisor keeps no socket");
    }
}
