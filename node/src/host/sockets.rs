//! Who is connected to a replica: the established TCP connections that came in from outside its network namespace.
//!
//! The kernel's tables of the namespace tell them (`/proc/net/tcp` and `tcp6`, proc_pid_net(5)): a connection came in when its local
//! port is one that something listens on, and from outside when its other end has neither the same address nor a loopback one.
//! What the replica dialled itself, its own probes and its talks with itself hold nothing up. The kernel takes time that grows with the
//! sockets of the namespace: about a millisecond for a thousand.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const TABLES: [&str; 2] = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
/// States of a socket as the tables write them (`include/net/tcp_states.h`).
const ESTABLISHED: &str = "01";
const LISTEN: &str = "0A";

/// Counts in the namespace of the calling thread. Blocking.
///
/// # Errors
/// When a table cannot be read.
pub fn connections() -> io::Result<u32> {
    let mut count = Count::default();
    for path in TABLES {
        let file = match File::open(path) {
            Ok(file) => file,
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.ends_with('6') => continue,
            Err(error) => return Err(error),
        };
        // Line by line: a busy server has hundreds of thousands.
        for line in BufReader::new(file).lines().skip(1) {
            count.add(&line?);
        }
    }
    Ok(count.total())
}

#[derive(Debug, Default)]
struct Count {
    listening: BTreeSet<u16>,
    /// By local port.
    established: BTreeMap<u16, u32>,
}

impl Count {
    /// A line that is none of the table's says nothing.
    fn add(&mut self, line: &str) {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (Some(local), Some(remote), Some(state)) = (words.next(), words.next(), words.next()) else {
            return;
        };
        let (Some((local, port)), Some((remote, _))) = (end(local), end(remote)) else {
            return;
        };
        match state {
            LISTEN => {
                self.listening.insert(port);
            }
            ESTABLISHED if local != remote && !remote.is_loopback() => {
                let count = self.established.entry(port).or_default();
                *count = count.saturating_add(1);
            }
            _ => {}
        }
    }

    fn total(&self) -> u32 {
        let came_in = |(port, count): (&u16, &u32)| self.listening.contains(port).then_some(*count);
        self.established
            .iter()
            .filter_map(came_in)
            .fold(0, u32::saturating_add)
    }
}

/// `0100007F:1F90`: words of an address in the byte order of the machine, each in hexadecimal, and the port.
fn end(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let words: Vec<[u8; 4]> = address
        .as_bytes()
        .chunks(8)
        .map(|word| {
            let word = (word.len() == 8).then_some(word)?;
            let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
            Some(word.to_ne_bytes())
        })
        .collect::<Option<_>>()?;
    let address = match words.as_slice() {
        [word] => IpAddr::from(Ipv4Addr::from(*word)),
        [..] if words.len() == 4 => {
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            // Whom a server of both families accepts has an address of the older one inside.
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some((address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: [u8; 4]) -> String {
        format!("{:08X}", u32::from_ne_bytes(bytes))
    }

    fn v4(address: [u8; 4], port: u16) -> String {
        format!("{}:{port:04X}", word(address))
    }

    fn mapped(address: [u8; 4], port: u16) -> String {
        let zero = word([0; 4]);
        let marker = word([0, 0, 0xff, 0xff]);
        format!("{zero}{zero}{marker}{}:{port:04X}", word(address))
    }

    fn counted(lines: &[(String, String, &str)]) -> u32 {
        let mut count = Count::default();
        for (local, remote, state) in lines {
            count.add(&format!(
                "   0: {local} {remote} {state} 00000000:00000000 00:00000000"
            ));
        }
        count.total()
    }

    #[test]
    fn only_what_came_in_from_outside_counts() {
        let own = [10, 0, 0, 2];
        let any = v4([0; 4], 0);
        let listens = (v4([0; 4], 8080), any.clone(), LISTEN);
        let from = |remote, state| (v4(own, 8080), remote, state);
        assert_eq!(counted(std::slice::from_ref(&listens)), 0);
        let outside = || v4([10, 0, 0, 9], 40_000);
        assert_eq!(counted(&[listens.clone(), from(outside(), ESTABLISHED)]), 1);
        assert_eq!(counted(&[from(outside(), ESTABLISHED), listens.clone()]), 1);
        for other in [
            from(outside(), "06"),
            from(outside(), "08"),
            // A probe of ours, and a program that talks to itself.
            from(v4(own, 40_000), ESTABLISHED),
            (v4([127, 0, 0, 1], 8080), v4([127, 0, 0, 2], 40_000), ESTABLISHED),
            // What it dialled itself.
            (v4(own, 40_000), v4([10, 0, 0, 9], 8080), ESTABLISHED),
        ] {
            assert_eq!(counted(&[listens.clone(), other.clone()]), 0, "{other:?}");
        }
        // A server of both families.
        let both = (mapped([0; 4], 8080), any, LISTEN);
        let accepted = (mapped(own, 8080), mapped([10, 0, 0, 9], 40_000), ESTABLISHED);
        let probed = (mapped(own, 8080), mapped(own, 40_000), ESTABLISHED);
        assert_eq!(counted(&[both, accepted, probed]), 1);
    }

    #[test]
    fn addresses_are_read_in_the_order_of_the_machine() {
        assert_eq!(
            end(&v4([10, 0, 0, 2], 8080)),
            Some(("10.0.0.2".parse().unwrap(), 8080))
        );
        assert_eq!(
            end(&mapped([10, 0, 0, 2], 80)),
            Some(("10.0.0.2".parse().unwrap(), 80))
        );
        for no in ["", "0100007F", "0100007F:", "01:1F90", "x:1", "é00007F:1F90"] {
            assert_eq!(end(no), None, "{no}");
        }
        let mut count = Count::default();
        count.add("  sl  local_address rem_address   st");
        assert_eq!(count.total(), 0);
    }
}
