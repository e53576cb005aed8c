//! The server: UDP and TCP on one address, on a thread of its own, so that a flood of questions slows nothing else.
//!
//! Own names are answered at once in the receiving loop. Forwarded questions wait for an upstream in tasks of a
//! bounded number, in all and per source; a source over its rate is not answered at all.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use berth_api::time::monotonic;
use hickory_proto::op::{Message, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::forward::{Transport, Upstreams};
use super::{Directory, DnsConfig, Verdict, judge, respond};
use crate::listeners::{self, Listeners};

/// Questions at an upstream at once; 4 KiB each is 1 MiB.
const FORWARDED_MAX: usize = 256;
/// Of them from one source: eight replicas must misbehave together to fill all.
const FORWARDED_PER_SOURCE_MAX: usize = 32;
/// TCP connections at once, in all and from one source.
const CONNECTIONS_MAX: usize = 128;
const CONNECTIONS_PER_SOURCE_MAX: usize = 16;
/// Questions of one source in one second; the rest is dropped unread.
const QUESTIONS_PER_SECOND_MAX: u32 = 2000;
/// A TCP connection that says nothing for so long is closed (RFC 7766, section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// What a client without EDNS can take (RFC 1035, section 4.2.1).
const UDP_LEN_PLAIN: usize = 512;
/// What passes everywhere without fragments; larger answers go over TCP.
const UDP_LEN_MAX: usize = 1232;
/// Questions that wait to be read while the thread is off the processor: about five thousand, at 768 bytes of the kernel's each.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// After a failed receive or accept, so that a broken socket does not spin.
const BREATH: Duration = Duration::from_millis(50);

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("listening for DNS on {address} over {transport}")]
    Listen {
        address: SocketAddr,
        transport: &'static str,
        source: io::Error,
    },
    #[error("starting the DNS thread")]
    Thread(#[source] io::Error),
    #[error("the DNS thread stopped before it listened")]
    Stopped,
}

/// The running server; dropping it stops it.
#[derive(Debug)]
pub struct Dns {
    address: SocketAddr,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Dns {
    /// Starts to listen in the namespace of the calling thread. Returns when both sockets are bound.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub async fn start(config: DnsConfig, view: watch::Receiver<Directory>) -> Result<Self, DnsError> {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (ready, bound) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("berth-dns".into())
            .spawn(move || run(config, view, stopped, ready))
            .map_err(DnsError::Thread)?;
        let address = bound.await.map_err(|_| DnsError::Stopped)??;
        Ok(Self {
            address,
            stop,
            thread: Some(thread),
        })
    }

    /// Where it listens: the configured address with its real port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether the thread lives. It ends on [`Dns::stop`] only; anything else is a bug that the daemon must report.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Stops and waits for the thread, which ends within milliseconds.
    pub fn stop(mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the DNS thread panicked");
        }
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn run(
    config: DnsConfig,
    view: watch::Receiver<Directory>,
    stop: CancellationToken,
    ready: oneshot::Sender<Result<SocketAddr, DnsError>>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            // The caller that is gone needs no answer.
            ready.send(Err(DnsError::Thread(error))).ok();
            return;
        }
    };
    runtime.block_on(async {
        let (udp, tcp) = match bind(config.listen, &config.listeners).await {
            Ok(sockets) => sockets,
            Err(error) => {
                ready.send(Err(error)).ok();
                return;
            }
        };
        let server = Arc::new(Server {
            view,
            upstreams: Upstreams::new(config.upstreams),
            turn: AtomicUsize::new(0),
            forwarded: Share::new(FORWARDED_MAX, FORWARDED_PER_SOURCE_MAX),
            connections: Share::new(CONNECTIONS_MAX, CONNECTIONS_PER_SOURCE_MAX),
        });
        let address = udp.local_addr().unwrap_or(config.listen);
        ready.send(Ok(address)).ok();
        // Dropping either loop drops its tasks; a question on its way is asked again by its client.
        tokio::select! {
            () = stop.cancelled() => {}
            () = serve_udp(server.clone(), Arc::new(udp)) => {}
            () = serve_tcp(server, tcp) => {}
        }
    });
}

/// Names under which the supervisor keeps the sockets.
const KEPT_UDP: &str = "dns-udp";
const KEPT_TCP: &str = "dns-tcp";

/// Both on one port, also when the port is 0 and so any (for tests). Those of an earlier daemon hold the questions that came since; one that
/// was not kept is bound anew, beside the other.
async fn bind(listen: SocketAddr, listeners: &Listeners) -> Result<(UdpSocket, TcpListener), DnsError> {
    let failed = |address, transport| {
        move |source| DnsError::Listen {
            address,
            transport,
            source,
        }
    };
    let tcp = if let Some(kept) = listeners.tcp(KEPT_TCP, listen) {
        kept.set_nonblocking(true).map_err(failed(listen, "TCP"))?;
        TcpListener::from_std(kept).map_err(failed(listen, "TCP"))?
    } else {
        let bound = TcpListener::bind(listen).await.map_err(failed(listen, "TCP"))?;
        listeners::keep(KEPT_TCP, &bound);
        bound
    };
    let address = tcp.local_addr().map_err(failed(listen, "TCP"))?;
    let udp = if let Some(kept) = listeners.udp(KEPT_UDP, address) {
        kept.set_nonblocking(true).map_err(failed(address, "UDP"))?;
        UdpSocket::from_std(kept).map_err(failed(address, "UDP"))?
    } else {
        let bound = UdpSocket::bind(address).await.map_err(failed(address, "UDP"))?;
        // Without the right to, the system's own bound holds.
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&bound, RECEIVE_BUFFER_BYTES).ok();
        listeners::keep(KEPT_UDP, &bound);
        bound
    };
    Ok((udp, tcp))
}

#[derive(Debug)]
struct Server {
    view: watch::Receiver<Directory>,
    upstreams: Upstreams,
    turn: AtomicUsize,
    forwarded: Share,
    connections: Share,
}

/// What happens to one message.
enum Reply {
    Now(Vec<u8>),
    /// Ask an upstream while the place is held.
    Forward(Place),
    Nothing,
}

impl Server {
    /// Decides without waiting. `length_max` is what the transport can carry.
    fn handle(self: &Arc<Self>, bytes: &[u8], source: IpAddr, transport: Transport) -> Reply {
        let Ok(request) = Message::from_vec(bytes) else {
            return Reply::Nothing;
        };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let verdict = judge(&request, &self.view.borrow(), turn);
        let response = match verdict {
            Verdict::Ignore => return Reply::Nothing,
            Verdict::Answer(response) => response,
            Verdict::Forward if self.upstreams.is_empty() => respond(&request, ResponseCode::Refused),
            Verdict::Forward => match self.forwarded.take(source) {
                Some(place) => return Reply::Forward(place),
                None => respond(&request, ResponseCode::ServFail),
            },
        };
        let length_max = match transport {
            Transport::Tcp => usize::from(u16::MAX),
            Transport::Udp => {
                let announced = request
                    .edns
                    .as_ref()
                    .map_or(UDP_LEN_PLAIN, |edns| usize::from(edns.max_payload()));
                announced.clamp(UDP_LEN_PLAIN, UDP_LEN_MAX)
            }
        };
        encode(response, length_max)
    }

    /// Asks an upstream; when none answers, says so.
    async fn forward(&self, bytes: &[u8], transport: Transport, place: Place) -> Option<Vec<u8>> {
        let answer = self.upstreams.ask(bytes, transport).await;
        drop(place);
        if answer.is_some() {
            return answer;
        }
        let request = Message::from_vec(bytes).ok()?;
        respond(&request, ResponseCode::ServFail).to_vec().ok()
    }
}

/// A response that does not fit is cut and marked, and its client asks again over TCP.
fn encode(response: Message, length_max: usize) -> Reply {
    let whole = response.to_vec();
    let bytes = match whole {
        Ok(bytes) if bytes.len() > length_max => response.truncate().to_vec(),
        other => other,
    };
    bytes.map_or(Reply::Nothing, Reply::Now)
}

async fn serve_udp(server: Arc<Server>, socket: Arc<UdpSocket>) {
    let mut waiting: JoinSet<()> = JoinSet::new();
    let mut rates = Rates::default();
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        // Cancel-safe: `recv_from` loses no datagram, `join_next` no task.
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(_) = waiting.join_next() => continue,
        };
        let Ok((length, source)) = received else {
            // ICMP errors of earlier answers arrive here too.
            tokio::time::sleep(BREATH).await;
            continue;
        };
        if !rates.admits(source.ip(), monotonic()) {
            continue;
        }
        let question = &buffer[..length];
        match server.handle(question, source.ip(), Transport::Udp) {
            Reply::Nothing => {}
            // A client that is gone, or a full buffer: UDP may lose it, the client asks again.
            Reply::Now(answer) => drop(socket.try_send_to(&answer, source)),
            Reply::Forward(place) => {
                let (server, socket, question) = (server.clone(), socket.clone(), question.to_vec());
                waiting.spawn(async move {
                    if let Some(answer) = server.forward(&question, Transport::Udp, place).await {
                        drop(socket.send_to(&answer, source).await);
                    }
                });
            }
        }
    }
}

async fn serve_tcp(server: Arc<Server>, listener: TcpListener) {
    let mut connections: JoinSet<()> = JoinSet::new();
    loop {
        // Cancel-safe: `accept` loses no connection, `join_next` no task.
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, source)) = accepted else {
            tokio::time::sleep(BREATH).await;
            continue;
        };
        // Over the bound the connection is closed at once: a refusal the client can see.
        if let Some(place) = server.connections.take(source.ip()) {
            let server = server.clone();
            connections.spawn(async move {
                // Its end, by whatever error, is the client's business.
                serve_connection(&server, stream, source.ip()).await.ok();
                drop(place);
            });
        }
    }
}

async fn serve_connection(server: &Arc<Server>, mut stream: TcpStream, source: IpAddr) -> io::Result<()> {
    loop {
        let question = tokio::time::timeout(IDLE, read_message(&mut stream)).await??;
        let answer = match server.handle(&question, source, Transport::Tcp) {
            Reply::Nothing => return Ok(()),
            Reply::Now(answer) => answer,
            Reply::Forward(place) => match server.forward(&question, Transport::Tcp, place).await {
                Some(answer) => answer,
                None => return Ok(()),
            },
        };
        let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        let framed = [&length.to_be_bytes(), answer.as_slice()].concat();
        tokio::time::timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Places of which one source may hold only a part.
#[derive(Debug, Clone)]
struct Share {
    max: usize,
    per_source_max: usize,
    held: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
}

/// A place; free again when dropped.
struct Place {
    source: IpAddr,
    held: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
}

impl Share {
    fn new(max: usize, per_source_max: usize) -> Self {
        Self {
            max,
            per_source_max,
            held: Arc::default(),
        }
    }

    fn take(&self, source: IpAddr) -> Option<Place> {
        let mut held = self.held.lock().expect("counting does not panic");
        let all: usize = held.values().sum();
        let own = held.entry(source).or_default();
        if all >= self.max || *own >= self.per_source_max {
            if *own == 0 {
                held.remove(&source);
            }
            return None;
        }
        *own += 1;
        Some(Place {
            source,
            held: self.held.clone(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.held.lock().expect("counting does not panic");
        if let Some(own) = held.get_mut(&self.source) {
            *own -= 1;
            if *own == 0 {
                held.remove(&self.source);
            }
        }
    }
}

/// Questions per source in the running second. Bounded by the machine's addresses: the firewall pins sources.
#[derive(Debug, Default)]
struct Rates {
    since: Option<Instant>,
    counts: BTreeMap<IpAddr, u32>,
}

impl Rates {
    fn admits(&mut self, source: IpAddr, now: Instant) -> bool {
        let is_over = self
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1));
        if is_over {
            self.since = Some(now);
            self.counts.clear();
        }
        let count = self.counts.entry(source).or_default();
        *count = count.saturating_add(1);
        *count <= QUESTIONS_PER_SECOND_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const OTHER: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    #[test]
    fn one_source_cannot_hold_all_places() {
        let share = Share::new(3, 2);
        let first = share.take(SOURCE).unwrap();
        let second = share.take(SOURCE).unwrap();
        assert!(share.take(SOURCE).is_none());
        let third = share.take(OTHER).unwrap();
        assert!(share.take(OTHER).is_none(), "all places are held");
        drop((first, third));
        assert!(share.take(SOURCE).is_some());
        drop(second);
        assert!(share.held.lock().unwrap().is_empty());
    }

    #[test]
    fn a_flood_is_dropped_until_the_next_second() {
        let mut rates = Rates::default();
        let now = monotonic();
        let admitted = (0..QUESTIONS_PER_SECOND_MAX + 10)
            .filter(|_| rates.admits(SOURCE, now))
            .count();
        assert_eq!(admitted, QUESTIONS_PER_SECOND_MAX as usize);
        assert!(rates.admits(OTHER, now));
        assert!(rates.admits(SOURCE, now + Duration::from_secs(1)));
    }
}
