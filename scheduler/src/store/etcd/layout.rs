//! What stands where in etcd, and in which bytes. Pure.
//!
//! ```text
//! PREFIX/schema                              version of this layout
//! PREFIX/head/CLUSTER                        end of the log: {"nextSeq":11,"crc":7,"writer":"…"}
//! PREFIX/log/CLUSTER/FIRST-SEQ               the records of one append
//! PREFIX/snapshot/CLUSTER/SEQ                the state after record SEQ
//! PREFIX/part/CLUSTER/l|s/SEQ/NONCE/NUMBER   a slice of a log or snapshot value that is too large for one key
//! PREFIX/shard/…                             who owns which cluster; see the module `ownership`
//! PREFIX/restoring                           there while a restore has begun and not ended
//! PREFIX/keys                                digests of the keys that all schedulers of the store hold
//! PREFIX/once/KEY                            an idempotency key of a creation; see the module `reservation`
//! PREFIX/compacted                           how far the history of etcd itself was given up
//! ```
//!
//! A cluster's id is percent-encoded, so that it is one segment. Sequence numbers have 20 digits: keys sort as numbers do.

use berth_api::id::ClusterId;
use serde::{Deserialize, Serialize};

use super::super::{Row, SnapshotRow};

/// The layout this program writes and the only one it reads.
pub(super) const SCHEMA_VERSION: i64 = 1;
/// A value above this is cut. etcd refuses a request above 1.5 MiB (`--max-request-bytes`), keys and guards included.
pub(super) const PART_MAX_BYTES: usize = 1 << 20;

const INLINE: u8 = 0;
const IN_PARTS: u8 = 1;

/// Names of keys.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

/// The two kinds of values that may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Log,
    Snapshot,
}

impl Kind {
    fn folder(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Snapshot => "snapshot",
        }
    }

    fn letter(self) -> char {
        match self {
            Self::Log => 'l',
            Self::Snapshot => 's',
        }
    }
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.trim_end_matches('/').to_owned(),
        }
    }

    pub(super) fn schema(&self) -> String {
        format!("{}/schema", self.prefix)
    }

    pub(super) fn key_marks(&self) -> String {
        format!("{}/keys", self.prefix)
    }

    pub(super) fn restoring(&self) -> String {
        format!("{}/restoring", self.prefix)
    }

    pub(super) fn reservation(&self, key: &str) -> String {
        format!("{}/once/{key}", self.prefix)
    }

    pub(super) fn compacted(&self) -> String {
        format!("{}/compacted", self.prefix)
    }

    /// What everything about owners begins with.
    pub(super) fn shard(&self) -> String {
        format!("{}/shard/", self.prefix)
    }

    /// What every head begins with.
    pub(super) fn heads(&self) -> String {
        format!("{}/head/", self.prefix)
    }

    pub(super) fn head(&self, cluster: &ClusterId) -> String {
        format!("{}{}", self.heads(), encode_id(cluster))
    }

    /// The cluster of a head's key; none when it is no head of this program.
    pub(super) fn cluster_of_head(&self, key: &[u8]) -> Option<ClusterId> {
        cluster_below(&self.heads(), key)
    }

    /// What every value of a kind of this cluster begins with.
    pub(super) fn values(&self, kind: Kind, cluster: &ClusterId) -> String {
        format!("{}/{}/{}/", self.prefix, kind.folder(), encode_id(cluster))
    }

    pub(super) fn value(&self, kind: Kind, cluster: &ClusterId, seq: u64) -> String {
        format!("{}{seq:020}", self.values(kind, cluster))
    }

    /// The sequence number at the end of a key of [`Self::value`].
    pub(super) fn seq_of(key: &[u8]) -> Option<u64> {
        let text = std::str::from_utf8(key).ok()?;
        text.rsplit_once('/')?.1.parse().ok()
    }

    /// What every part of this cluster begins with.
    pub(super) fn all_parts(&self, cluster: &ClusterId) -> String {
        format!("{}/part/{}/", self.prefix, encode_id(cluster))
    }

    /// What every part of the values of a kind begins with.
    pub(super) fn parts_of_kind(&self, kind: Kind, cluster: &ClusterId) -> String {
        format!("{}{}/", self.all_parts(cluster), kind.letter())
    }

    /// What every part of one value begins with, whoever wrote it.
    pub(super) fn parts_of_value(&self, kind: Kind, cluster: &ClusterId, seq: u64) -> String {
        format!("{}{seq:020}/", self.parts_of_kind(kind, cluster))
    }

    pub(super) fn part(&self, kind: Kind, cluster: &ClusterId, seq: u64, part: Part) -> String {
        format!(
            "{}{:016x}/{:06}",
            self.parts_of_value(kind, cluster, seq),
            part.nonce,
            part.number
        )
    }
}

/// Which slice of a cut value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Different for each attempt to write the value.
    pub(super) nonce: u64,
    pub(super) number: u32,
}

/// The first key behind all that begin with `prefix`.
pub(super) fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    let last = end.last_mut().expect("a prefix is not empty");
    // Every prefix of this layout ends with an ASCII character.
    *last += 1;
    end
}

/// The cluster that the rest of `key` behind `prefix` names.
pub(super) fn cluster_below(prefix: &str, key: &[u8]) -> Option<ClusterId> {
    decode_id(std::str::from_utf8(key).ok()?.strip_prefix(prefix)?)
}

pub(super) fn encode_id(cluster: &ClusterId) -> String {
    let mut text = String::new();
    for byte in cluster.as_str().bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// The cluster whose percent-encoded id this is.
pub(crate) fn decode_id(text: &str) -> Option<ClusterId> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = rest.get(2..)?;
        } else {
            bytes.push(byte);
        }
    }
    ClusterId::new(String::from_utf8(bytes).ok()?).ok()
}

/// The stored end of a log. `writer` names the process and the attempt: two heads are equal only when one write made them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StoredHead {
    pub(super) next_seq: u64,
    pub(super) crc: u32,
    pub(super) writer: String,
}

/// A value as it stands under its key: whole, or a note where its parts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stored {
    Inline(Vec<u8>),
    InParts { nonce: u64, count: u32 },
}

impl Stored {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Inline(body) => {
                let mut bytes = Vec::with_capacity(body.len() + 1);
                bytes.push(INLINE);
                bytes.extend_from_slice(body);
                bytes
            }
            Self::InParts { nonce, count } => {
                let mut bytes = vec![IN_PARTS];
                bytes.extend_from_slice(&nonce.to_le_bytes());
                bytes.extend_from_slice(&count.to_le_bytes());
                bytes
            }
        }
    }

    /// None when the bytes are not those of [`Self::encode`].
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first()? {
            (&INLINE, body) => Some(Self::Inline(body.to_vec())),
            (&IN_PARTS, rest) => {
                let (nonce, count) = rest.split_first_chunk::<8>()?;
                Some(Self::InParts {
                    nonce: u64::from_le_bytes(*nonce),
                    count: u32::from_le_bytes(count.try_into().ok()?),
                })
            }
            _ => None,
        }
    }
}

/// The records of one append: crc, length and payload of each.
pub(super) fn encode_rows(rows: &[Row]) -> Vec<u8> {
    let len = rows.iter().map(|row| row.payload.len() + 8).sum();
    let mut bytes = Vec::with_capacity(len);
    for row in rows {
        let len = u32::try_from(row.payload.len()).expect("a record is far below 4 GiB");
        bytes.extend_from_slice(&row.crc.to_le_bytes());
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&row.payload);
    }
    bytes
}

/// None when the bytes are not those of [`encode_rows`].
pub(super) fn decode_rows(first_seq: u64, mut bytes: &[u8]) -> Option<Vec<Row>> {
    let mut rows = Vec::new();
    let mut seq = first_seq;
    while !bytes.is_empty() {
        let (crc, rest) = bytes.split_first_chunk::<4>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let (payload, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*len)).ok()?)?;
        rows.push(Row {
            seq,
            crc: u32::from_le_bytes(*crc),
            payload: payload.to_vec(),
        });
        seq = seq.checked_add(1)?;
        bytes = rest;
    }
    Some(rows)
}

/// Chain, crc and payload of a snapshot.
pub(super) fn encode_snapshot(snapshot: &SnapshotRow) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(snapshot.payload.len() + 8);
    bytes.extend_from_slice(&snapshot.chain.to_le_bytes());
    bytes.extend_from_slice(&snapshot.crc.to_le_bytes());
    bytes.extend_from_slice(&snapshot.payload);
    bytes
}

/// None when the bytes are not those of [`encode_snapshot`].
pub(super) fn decode_snapshot(seq: u64, bytes: &[u8]) -> Option<SnapshotRow> {
    let (chain, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, payload) = rest.split_first_chunk::<4>()?;
    Some(SnapshotRow {
        seq,
        chain: u32::from_le_bytes(*chain),
        crc: u32::from_le_bytes(*crc),
        payload: payload.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_one_segment_and_come_back() {
        let keys = Keys::new("/berth/");
        for id in ["acme/prod", "a%2Fb", "plain-1.x_y"] {
            let cluster = ClusterId::new(id).unwrap();
            let key = keys.head(&cluster);
            assert_eq!(key.matches('/').count(), 3, "{key}");
            assert_eq!(keys.cluster_of_head(key.as_bytes()), Some(cluster), "{key}");
        }
        assert_eq!(keys.cluster_of_head(b"/berth/head/a%2"), None);
    }

    #[test]
    fn keys_sort_as_sequence_numbers_do() {
        let keys = Keys::new("/berth");
        let cluster = ClusterId::new("c").unwrap();
        let key = |seq| keys.value(Kind::Log, &cluster, seq);
        assert!(key(9) < key(10) && key(10) < key(u64::MAX));
        assert_eq!(Keys::seq_of(key(u64::MAX).as_bytes()), Some(u64::MAX));
        assert!(key(u64::MAX).into_bytes() < end_of(&keys.values(Kind::Log, &cluster)));
    }

    #[test]
    fn values_come_back_and_other_bytes_do_not() {
        let rows = vec![
            Row {
                seq: 7,
                crc: 1,
                payload: b"one".to_vec(),
            },
            Row {
                seq: 8,
                crc: u32::MAX,
                payload: Vec::new(),
            },
        ];
        let bytes = encode_rows(&rows);
        let back = decode_rows(7, &bytes).unwrap();
        assert_eq!(format!("{back:?}"), format!("{rows:?}"));
        assert!(decode_rows(7, &bytes[..bytes.len() - 1]).is_none());
        for stored in [
            Stored::Inline(bytes),
            Stored::InParts {
                nonce: u64::MAX,
                count: 3,
            },
        ] {
            assert_eq!(Stored::decode(&stored.encode()), Some(stored));
        }
        assert_eq!(Stored::decode(&[]), None);
        assert_eq!(Stored::decode(&[9, 1]), None);
        assert!(decode_snapshot(1, b"short").is_none());
    }
}
