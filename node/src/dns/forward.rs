//! Asking an upstream: the message is passed on as it came, under a new id and from a new port, so that nobody who
//! cannot see it can forge its answer.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// For one try of one upstream.
const TRY: Duration = Duration::from_secs(2);
/// Stub resolvers ask again after 5 s: two tries of 2 s leave them an answer in time.
const TRIES_MAX: usize = 2;
/// Header of a message (RFC 1035, section 4.1.1).
const HEADER_LEN: usize = 12;

/// How the question came, and so how it is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// The upstreams, and which one is asked first: the last that answered, or the one after the last that did not.
#[derive(Debug)]
pub(super) struct Upstreams {
    addresses: Vec<SocketAddr>,
    preferred: AtomicUsize,
    /// Ids of questions; the start is random, and the port is too.
    next_id: AtomicU16,
}

impl Upstreams {
    pub(super) fn new(addresses: Vec<SocketAddr>) -> Self {
        let mut seed = [0; 2];
        // Without randomness the ids start at 0; the random source port remains.
        getrandom::fill(&mut seed).ok();
        Self {
            addresses,
            preferred: AtomicUsize::new(0),
            next_id: AtomicU16::new(u16::from_ne_bytes(seed)),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// The answer of an upstream, under the id of the question; `None` when none answered in time.
    pub(super) async fn ask(&self, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
        if question.len() < HEADER_LEN {
            return None;
        }
        let count = self.addresses.len();
        let first = self.preferred.load(Ordering::Relaxed);
        for attempt in 0..TRIES_MAX {
            let index = (first + attempt) % count.max(1);
            let address = *self.addresses.get(index)?;
            // A multiplier that is odd walks through all ids in an order that is no sequence.
            let id = self.next_id.fetch_add(1, Ordering::Relaxed).wrapping_mul(40_503);
            let mut asked = question.to_vec();
            set_id(&mut asked, id.to_be_bytes());
            let exchange = async {
                match transport {
                    Transport::Udp => over_udp(address, &asked).await,
                    Transport::Tcp => over_tcp(address, &asked).await,
                }
            };
            // Cancel-safe: a dropped exchange closes its socket.
            if let Ok(Ok(mut answer)) = tokio::time::timeout(TRY, exchange).await {
                self.preferred.store(index, Ordering::Relaxed);
                set_id(&mut answer, [question[0], question[1]]);
                return Some(answer);
            }
            // Others do not wait for it too, and of many dead ones none is asked for ever. Unless somebody moved on already.
            let next = (index + 1) % count;
            self.preferred
                .compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed)
                .ok();
        }
        None
    }
}

fn set_id(message: &mut [u8], id: [u8; 2]) {
    message[..2].copy_from_slice(&id);
}

/// An answer to `question`: its id, its question, marked as a response.
fn answers(answer: &[u8], question: &[u8]) -> bool {
    answer.len() >= HEADER_LEN && answer[..2] == question[..2] && answer[2] & 0x80 != 0
}

async fn over_udp(upstream: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = if upstream.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(&buffer[..length], question) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(upstream: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(question.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(question).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if answers(&answer, question) {
        Ok(answer)
    } else {
        Err(std::io::ErrorKind::InvalidData.into())
    }
}
