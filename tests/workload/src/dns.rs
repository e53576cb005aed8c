//! A stub resolver (RFC 1035) that asks the first name server of `/etc/resolv.conf` for A records over UDP.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

const TYPE_A: u16 = 1;
const CLASS_IN: u16 = 1;

/// The addresses of a name, in the order of the answer; an address stands for itself.
pub(crate) fn resolve(name: &str) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = name.parse() {
        return Ok(vec![address]);
    }
    let configuration =
        std::fs::read_to_string("/etc/resolv.conf").map_err(|error| format!("/etc/resolv.conf: {error}"))?;
    let server: IpAddr = configuration
        .lines()
        .find_map(|line| line.strip_prefix("nameserver ")?.trim().parse().ok())
        .ok_or("no name server in /etc/resolv.conf")?;
    let question = question(name)?;
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(|error| error.to_string())?;
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .map_err(|error| error.to_string())?;
    let mut buffer = [0; 4096];
    let mut last = String::new();
    for _ in 0..3 {
        let received = socket
            .send_to(&question, (server, 53))
            .and_then(|_| socket.recv(&mut buffer));
        match received {
            Ok(len) => return addresses(buffer.get(..len).unwrap_or_default(), name),
            Err(error) => last = format!("{name}: name server {server}: {error}"),
        }
    }
    Err(last)
}

fn question(name: &str) -> Result<Vec<u8>, String> {
    // Id, recursion desired, one question.
    let mut message = vec![0x42, 0x42, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        let len = u8::try_from(label.len())
            .ok()
            .filter(|len| (1..=63).contains(len));
        message.push(len.ok_or_else(|| format!("{name:?} is not a name"))?);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&TYPE_A.to_be_bytes());
    message.extend_from_slice(&CLASS_IN.to_be_bytes());
    Ok(message)
}

fn addresses(message: &[u8], name: &str) -> Result<Vec<IpAddr>, String> {
    let short = || format!("{name}: the answer is cut short");
    let number =
        |at: usize| -> Option<u16> { Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?])) };
    match number(2).ok_or_else(short)? & 0xf {
        0 => {}
        3 => return Err(format!("{name} does not exist")),
        code => return Err(format!("{name}: the name server answered with code {code}")),
    }
    let answers = number(6).ok_or_else(short)?;
    // The question is repeated: its name, type and class.
    let mut at = skip_name(message, 12).ok_or_else(short)? + 4;
    let mut found = Vec::new();
    for _ in 0..answers {
        at = skip_name(message, at).ok_or_else(short)?;
        let kind = number(at).ok_or_else(short)?;
        let len = usize::from(number(at + 8).ok_or_else(short)?);
        let data = message.get(at + 10..at + 10 + len).ok_or_else(short)?;
        if let (TYPE_A, &[a, b, c, d]) = (kind, data) {
            found.push(IpAddr::V4(Ipv4Addr::new(a, b, c, d)));
        }
        at += 10 + len;
    }
    Ok(found)
}

/// The offset behind the name at `at`; a compression pointer ends a name.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            len if len >= 0xc0 => return Some(at + 2),
            len => at += usize::from(len) + 1,
        }
    }
}
