//! Names of replicas: the directory that the scheduler sends, what it answers, and the server that does.
//!
//! ```text
//! link ──full, delta──▶ DirectoryState ──watch──▶ server (own thread, UDP and TCP on the gateway) ──▶ upstreams
//! ```
//!
//! Everything under `svc` is answered here and never leaves the machine: `reader.svc` with all ready replicas in
//! turning order, `writer-0.writer.svc` with the one ordinal, TTL 5 s. A name that exists and has nothing ready answers
//! empty, so a client tries again instead of giving the name up; an unknown one does not exist. The last directory is
//! answered from for as long as the scheduler is away.

mod forward;
mod server;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use berth_api::link;
use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::sync::watch;

use crate::listeners::Listeners;

pub use server::{Dns, DnsError};

/// How long an answer may be kept, in seconds; also for answers that something does not exist.
pub const TTL_SECONDS: u32 = 5;
/// The zone that is answered here.
const ZONE: &str = "svc";

/// The directory as the scheduler's messages built it; its owner is the link task.
#[derive(Debug)]
pub struct DirectoryState {
    publish: watch::Sender<Directory>,
}

/// What DNS answers: an immutable snapshot, cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directory {
    generation: u64,
    /// By lower-case name without the root dot.
    names: Arc<BTreeMap<String, Vec<Ipv4Addr>>>,
}

/// What became of a directory message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    Yes,
    /// It was already known.
    Old,
    /// A delta on a generation that is not here: ask for a full directory.
    NeedFull,
}

/// What the server is started with.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// The gateway address, port 53.
    pub listen: SocketAddr,
    /// Sockets that an earlier daemon has listened with.
    pub listeners: Arc<Listeners>,
    /// Where names outside `svc` are asked; none: they are refused.
    pub upstreams: Vec<SocketAddr>,
}

/// What a replica's `/etc/resolv.conf` says: `reader` and `reader.svc` are both found.
#[must_use]
pub fn resolv_conf(gateway: Ipv4Addr) -> String {
    format!("nameserver {gateway}\nsearch {ZONE}\noptions ndots:1\n")
}

impl DirectoryState {
    /// An empty directory and the view that the server answers from.
    #[must_use]
    pub fn new() -> (Self, watch::Receiver<Directory>) {
        let (publish, view) = watch::channel(Directory::default());
        (Self { publish }, view)
    }

    /// Another view.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<Directory> {
        self.publish.subscribe()
    }

    /// Applies a full directory or a delta. A full one replaces whatever is here, also a newer one: the scheduler's
    /// history may have been restored.
    pub fn apply(&mut self, message: &link::Directory) -> Applied {
        let is_full = message.base_generation == 0;
        let present = self.generation();
        if !is_full {
            if message.generation <= present {
                return Applied::Old;
            }
            if message.base_generation != present {
                return Applied::NeedFull;
            }
        }
        self.publish.send_modify(|directory| {
            if is_full {
                *directory = Directory::default();
            }
            directory.change(message);
        });
        Applied::Yes
    }

    /// Generation that the next delta must build on; 0 when nothing came yet.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.publish.borrow().generation
    }
}

impl Directory {
    /// The addresses of a name: `None` when it does not exist, empty when nothing of it is ready.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<&[Ipv4Addr]> {
        self.names.get(name).map(Vec::as_slice)
    }

    /// The whole directory as a message, to be kept over a restart and applied again.
    #[must_use]
    pub fn to_message(&self) -> link::Directory {
        link::Directory {
            generation: self.generation,
            base_generation: 0,
            put: self
                .names
                .iter()
                .map(|(name, addresses)| link::DirectoryEntry {
                    name: name.clone(),
                    addresses: addresses.iter().map(ToString::to_string).collect(),
                })
                .collect(),
            removed_names: Vec::new(),
        }
    }

    fn change(&mut self, message: &link::Directory) {
        let names = Arc::make_mut(&mut self.names);
        for name in &message.removed_names {
            names.remove(&name.to_ascii_lowercase());
        }
        for entry in &message.put {
            // IPv6 has no way to a replica, and a text that is no address none to anywhere.
            let addresses = entry
                .addresses
                .iter()
                .filter_map(|text| match text.parse() {
                    Ok(IpAddr::V4(ip)) => Some(ip),
                    Ok(IpAddr::V6(_)) | Err(_) => None,
                })
                .collect();
            names.insert(entry.name.to_ascii_lowercase(), addresses);
        }
        self.generation = message.generation;
    }
}

/// What a query deserves.
#[derive(Debug)]
enum Verdict {
    Answer(Message),
    /// Not ours: ask an upstream.
    Forward,
    /// Not even a query.
    Ignore,
}

/// Judges a message. `turn` rotates the order of the addresses. Pure.
fn judge(request: &Message, directory: &Directory, turn: usize) -> Verdict {
    if request.metadata.message_type != hickory_proto::op::MessageType::Query {
        return Verdict::Ignore;
    }
    if request.metadata.op_code != OpCode::Query {
        return Verdict::Answer(respond(request, ResponseCode::NotImp));
    }
    let [query] = request.queries.as_slice() else {
        return Verdict::Answer(respond(request, ResponseCode::FormErr));
    };
    let name = query.name().to_ascii().to_ascii_lowercase();
    let name = name.trim_end_matches('.');
    let is_ours = name == ZONE
        || name
            .strip_suffix(ZONE)
            .is_some_and(|labels| labels.ends_with('.'));
    if !is_ours {
        return Verdict::Forward;
    }
    Verdict::Answer(answer(request, query, name, directory, turn))
}

fn answer(request: &Message, query: &Query, name: &str, directory: &Directory, turn: usize) -> Message {
    let addresses = if name == ZONE {
        Some([].as_slice())
    } else {
        directory.lookup(name)
    };
    let code = if addresses.is_some() {
        ResponseCode::NoError
    } else {
        ResponseCode::NXDomain
    };
    let mut response = respond(request, code);
    response.metadata.authoritative = true;
    let wants_addresses = matches!(query.query_type(), RecordType::A | RecordType::ANY)
        && matches!(query.query_class(), DNSClass::IN | DNSClass::ANY);
    let mut addresses = if wants_addresses {
        addresses.unwrap_or_default().to_vec()
    } else {
        Vec::new()
    };
    if addresses.is_empty() {
        response.add_authority(start_of_authority(directory));
        return response;
    }
    let count = addresses.len();
    addresses.rotate_left(turn % count);
    for address in addresses {
        response.add_answer(Record::from_rdata(
            query.name().clone(),
            TTL_SECONDS,
            RData::A(A(address)),
        ));
    }
    response
}

/// An empty response to `request`.
fn respond(request: &Message, code: ResponseCode) -> Message {
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.add_queries(request.queries.clone());
    response
}

/// With a negative answer it says for how long the answer holds (RFC 2308, section 3).
fn start_of_authority(directory: &Directory) -> Record {
    let name = |text: &str| Name::from_ascii(text).expect("a constant that is a name");
    let serial = u32::try_from(directory.generation & u64::from(u32::MAX)).unwrap_or_default();
    let ttl = i32::try_from(TTL_SECONDS).unwrap_or_default();
    let soa = SOA::new(
        name("ns.svc."),
        name("berth.svc."),
        serial,
        ttl,
        ttl,
        ttl,
        TTL_SECONDS,
    );
    Record::from_rdata(name("svc."), TTL_SECONDS, RData::SOA(soa))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, addresses: &[&str]) -> link::DirectoryEntry {
        link::DirectoryEntry {
            name: name.into(),
            addresses: addresses.iter().map(|address| (*address).into()).collect(),
        }
    }

    fn full(generation: u64, put: Vec<link::DirectoryEntry>) -> link::Directory {
        link::Directory {
            generation,
            base_generation: 0,
            put,
            removed_names: vec![],
        }
    }

    fn delta(base: u64, generation: u64, put: Vec<link::DirectoryEntry>) -> link::Directory {
        link::Directory {
            base_generation: base,
            ..full(generation, put)
        }
    }

    fn directory() -> Directory {
        let (mut state, view) = DirectoryState::new();
        let put = vec![
            entry("reader.svc", &["10.0.0.2", "10.0.1.2", "10.0.2.2"]),
            entry("writer-0.writer.svc", &["10.0.0.9"]),
            entry("sleeper.svc", &[]),
        ];
        assert_eq!(state.apply(&full(7, put)), Applied::Yes);
        view.borrow().clone()
    }

    fn ask(name: &str, kind: RecordType) -> Verdict {
        let mut request = Message::query();
        request.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        judge(&request, &directory(), 1)
    }

    fn answered(name: &str, kind: RecordType) -> (ResponseCode, Vec<String>, usize) {
        match ask(name, kind) {
            Verdict::Answer(message) => (
                message.metadata.response_code,
                message
                    .answers
                    .iter()
                    .map(|record| record.data.to_string())
                    .collect(),
                message.authorities.len(),
            ),
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn answers_ready_replicas_in_turning_order() {
        let turned = ["10.0.1.2", "10.0.2.2", "10.0.0.2"].map(String::from).to_vec();
        assert_eq!(
            answered("Reader.SVC.", RecordType::A),
            (ResponseCode::NoError, turned, 0)
        );
        assert_eq!(
            answered("writer-0.writer.svc.", RecordType::A),
            (ResponseCode::NoError, vec!["10.0.0.9".into()], 0)
        );
    }

    #[test]
    fn what_exists_without_an_answer_is_empty_and_what_does_not_exist_is_said_so() {
        for (name, kind, code) in [
            ("reader.svc.", RecordType::AAAA, ResponseCode::NoError),
            ("sleeper.svc.", RecordType::A, ResponseCode::NoError),
            ("svc.", RecordType::A, ResponseCode::NoError),
            ("nobody.svc.", RecordType::A, ResponseCode::NXDomain),
            ("a.reader.svc.", RecordType::AAAA, ResponseCode::NXDomain),
        ] {
            assert_eq!(answered(name, kind), (code, vec![], 1), "{name} {kind}");
        }
    }

    #[test]
    fn other_names_are_forwarded() {
        for name in ["example.com.", "reader.", "mysvc.", "reader.svc.example.com."] {
            assert!(matches!(ask(name, RecordType::A), Verdict::Forward), "{name}");
        }
    }

    #[test]
    fn responses_are_never_answered() {
        let response = Message::response(1, OpCode::Query);
        assert!(matches!(judge(&response, &directory(), 0), Verdict::Ignore));
    }

    #[test]
    fn deltas_chain_and_a_gap_asks_for_a_full_directory() {
        let (mut state, view) = DirectoryState::new();
        assert_eq!(state.apply(&delta(3, 4, vec![])), Applied::NeedFull);
        assert_eq!(
            state.apply(&full(3, vec![entry("a.svc", &["10.0.0.1"])])),
            Applied::Yes
        );
        assert_eq!(
            state.apply(&delta(3, 4, vec![entry("b.svc", &["10.0.0.2", "fd00::1", "x"])])),
            Applied::Yes
        );
        assert_eq!(state.apply(&delta(3, 4, vec![])), Applied::Old);
        assert_eq!(state.apply(&delta(5, 6, vec![])), Applied::NeedFull);
        let mut removal = delta(4, 5, vec![]);
        removal.removed_names.push("a.svc".into());
        assert_eq!(state.apply(&removal), Applied::Yes);
        let directory = view.borrow().clone();
        assert_eq!(directory.lookup("a.svc"), None);
        assert_eq!(
            directory.lookup("b.svc"),
            Some(["10.0.0.2".parse().unwrap()].as_slice())
        );
        // Kept over a restart.
        let (mut restored, view) = DirectoryState::new();
        assert_eq!(restored.apply(&directory.to_message()), Applied::Yes);
        assert_eq!(*view.borrow(), directory);
        // A restored scheduler starts again below.
        assert_eq!(restored.apply(&full(1, vec![])), Applied::Yes);
        assert_eq!(restored.generation(), 1);
    }
}
