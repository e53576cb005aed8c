//! Forgets the connections of an address that changes hands: what the kernel tracked for the former holder would lead packets to the
//! new one, or away from it, for as long as its time-outs last (five days for a TCP connection that nobody ended).
//!
//! The few messages of `nfnetlink_conntrack.h` that this takes are written and read here: list all, take away one.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

/// `NFNL_SUBSYS_CTNETLINK << 8`, with `IPCTNL_MSG_CT_NEW`, `_GET` and `_DELETE`.
const ENTRY: u16 = 1 << 8;
const LIST: u16 = (1 << 8) | 1;
const DELETE: u16 = (1 << 8) | 2;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_REQUEST` with `NLM_F_ACK`, and with `NLM_F_DUMP`.
const ACKNOWLEDGED: u16 = 0x1 | 0x4;
const DUMP: u16 = 0x1 | 0x300;
/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_ID`, `CTA_ZONE`; `CTA_TUPLE_IP` in a tuple.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const ADDRESSES: u16 = 1;
/// Flags in the type of an attribute.
const KIND: u16 = 0x3fff;
/// `nlmsghdr` and `nfgenmsg`.
const HEADER_LEN: usize = 16;
const FAMILY: [u8; 4] = [2, 0, 0, 0];
/// The kernel puts at most 32 KiB into one answer.
const ANSWER_LEN_MAX: usize = 64 << 10;
/// The kernel answers at once; this bounds one that does not.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Takes away every tracked connection of `address`, whichever end it is. In the namespace of the calling thread; blocking, for
/// a few milliseconds for each ten thousand connections. Says how many there were.
pub(super) fn forget(address: Ipv4Addr) -> io::Result<usize> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::NETFILTER),
    )?;
    set_socket_timeout(&socket, Timeout::Recv, Some(TIMEOUT))?;
    let found = list(&socket, address)?;
    let mut forgotten = 0;
    for entry in found {
        forgotten += usize::from(delete(&socket, &entry)?);
    }
    Ok(forgotten)
}

/// The attributes by which the kernel knows each connection of `address`.
fn list(socket: &OwnedFd, address: Ipv4Addr) -> io::Result<Vec<Vec<u8>>> {
    send(socket, LIST, DUMP, &[])?;
    let mut found = Vec::new();
    let mut buffer = vec![0; ANSWER_LEN_MAX];
    loop {
        let (_, length) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty())?;
        for (kind, body) in messages(&buffer[..length]) {
            match kind {
                DONE => return Ok(found),
                ERROR => refused(body)?,
                ENTRY => found.extend(entry_of(body, address)),
                _ => {}
            }
        }
    }
}

/// False when it has gone by itself meanwhile.
fn delete(socket: &OwnedFd, entry: &[u8]) -> io::Result<bool> {
    send(socket, DELETE, ACKNOWLEDGED, entry)?;
    let mut buffer = vec![0; ANSWER_LEN_MAX];
    let (_, length) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty())?;
    for (kind, body) in messages(&buffer[..length]) {
        if kind == ERROR {
            return match refused(body) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                other => other.map(|()| true),
            };
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

fn send(socket: &OwnedFd, kind: u16, flags: u16, attributes: &[u8]) -> io::Result<()> {
    let length = HEADER_LEN + FAMILY.len() + attributes.len();
    let length = u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence and port: one question at a time on a socket of its own.
    message.extend([0; 8]);
    message.extend(FAMILY);
    message.extend(attributes);
    rustix::net::send(socket, &message, SendFlags::empty())?;
    Ok(())
}

/// The messages of one answer: kind and what follows the header.
fn messages(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let Some((header, _)) = bytes.split_at_checked(HEADER_LEN) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        let Some(length) = usize::try_from(length)
            .ok()
            .filter(|length| *length >= HEADER_LEN)
        else {
            break;
        };
        let Some(message) = bytes.get(..length) else { break };
        found.push((u16::from_ne_bytes([header[4], header[5]]), &message[HEADER_LEN..]));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// An answer that is an errno; 0 is an acknowledgement.
fn refused(body: &[u8]) -> io::Result<()> {
    let errno = body
        .first_chunk::<4>()
        .map_or(i32::MIN, |bytes| i32::from_ne_bytes(*bytes));
    match errno {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
    }
}

/// Type, the attribute whole as it came, and its content.
fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8], &[u8])> {
    let mut found = Vec::new();
    while let Some((header, _)) = bytes.split_at_checked(4) {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let Some(whole) = bytes.get(..length).filter(|whole| whole.len() >= 4) else {
            break;
        };
        found.push((
            u16::from_ne_bytes([header[2], header[3]]) & KIND,
            whole,
            &whole[4..],
        ));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// What names the connection to the kernel, when `address` is an end of it.
fn entry_of(body: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    let attributes_of_entry = attributes(body.get(FAMILY.len()..)?);
    let is_end = |tuple: &[u8]| {
        let addresses = attributes(tuple)
            .into_iter()
            .find(|(kind, ..)| *kind == ADDRESSES);
        addresses.is_some_and(|(_, _, ends)| {
            let mut ends = attributes(ends).into_iter();
            ends.any(|(_, _, end)| end == address.octets())
        })
    };
    let tuples = attributes_of_entry
        .iter()
        .filter(|(kind, ..)| matches!(*kind, ORIGINAL | REPLY));
    if !tuples.into_iter().any(|(_, _, tuple)| is_end(tuple)) {
        return None;
    }
    let mut named = Vec::new();
    for (kind, whole, _) in attributes_of_entry {
        if matches!(kind, ORIGINAL | ID | ZONE) {
            named.extend(whole);
            named.resize(named.len().next_multiple_of(4), 0);
        }
    }
    Some(named)
}
