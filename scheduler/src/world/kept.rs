//! Writes that were done under an idempotency key, so that a repeat is answered and not done again.
//!
//! Bounded twice: a write is kept for [`KEPT_MAX_AGE`] and until [`KEPT_MAX`] others came after it, in steps of
//! [`CHUNK_LEN`]. What a write is dropped for is in the log (its own time and those after it), so replay drops the same.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use berth_api::time::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::entry::{TokenDigest, TokenKind};

/// For this long a repeat is answered as the first was.
pub const KEPT_MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// A cluster keeps this many: about 300 bytes each, so 3 MB.
pub const KEPT_MAX: usize = 10_000;
/// The world is cloned for each batch of changes, and a clone copies one chunk at most.
const CHUNK_LEN: usize = 250;

/// A write that was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptWrite {
    /// SHA-256 of the caller's key, cut to 128 bits: a key is the caller's own and may say more than we want to keep.
    pub key: String,
    /// The same of what was asked: method, path and content.
    pub request: String,
    pub status: u16,
    /// The answer, without tokens.
    pub answer: Value,
    /// Tokens of the answer, as they are kept everywhere: they are derived again from the salt.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tokens: BTreeMap<TokenKind, TokenDigest>,
    pub at: Timestamp,
}

/// What is kept, in the order of the log.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct KeptWrites {
    chunks: VecDeque<Arc<Vec<KeptWrite>>>,
}

impl KeptWrites {
    /// The write that was done under a key, while a repeat of it is answered.
    #[must_use]
    pub fn find(&self, key: &str, now: Timestamp) -> Option<&KeptWrite> {
        self.iter()
            .rev()
            .find(|kept| kept.key == key)
            .filter(|kept| !is_old(kept, now))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = &KeptWrite> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    pub(super) fn keep(&mut self, kept: KeptWrite) {
        let now = kept.at;
        match self.chunks.back_mut() {
            Some(last) if last.len() < CHUNK_LEN => Arc::make_mut(last).push(kept),
            Some(_) | None => self.chunks.push_back(Arc::new(vec![kept])),
        }
        let is_past = |chunk: &Arc<Vec<KeptWrite>>| chunk.iter().all(|kept| is_old(kept, now));
        while self.chunks.len() > KEPT_MAX / CHUNK_LEN || self.chunks.front().is_some_and(is_past) {
            self.chunks.pop_front();
        }
    }
}

fn is_old(kept: &KeptWrite, now: Timestamp) -> bool {
    now.since(kept.at) > KEPT_MAX_AGE
}

impl Serialize for KeptWrites {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.chunks.iter().map(|chunk| chunk.as_slice()))
    }
}

impl<'de> Deserialize<'de> for KeptWrites {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let chunks: VecDeque<Vec<KeptWrite>> = VecDeque::deserialize(deserializer)?;
        Ok(Self {
            chunks: chunks.into_iter().map(Arc::new).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(number: usize, at: Timestamp) -> KeptWrite {
        KeptWrite {
            key: format!("key-{number}"),
            request: "request".into(),
            status: 200,
            answer: Value::Null,
            tokens: BTreeMap::new(),
            at,
        }
    }

    #[test]
    fn no_more_are_kept_than_the_bound_and_the_newest_stay() {
        let mut writes = KeptWrites::default();
        let at = Timestamp::from_millis(1_000);
        for number in 0..KEPT_MAX + 2 * CHUNK_LEN {
            writes.keep(kept(number, at));
        }
        assert!(writes.iter().count() <= KEPT_MAX);
        assert!(writes.iter().count() >= KEPT_MAX - CHUNK_LEN);
        assert!(writes.find("key-0", at).is_none());
        assert!(
            writes
                .find(&format!("key-{}", KEPT_MAX + 2 * CHUNK_LEN - 1), at)
                .is_some()
        );
    }

    #[test]
    fn a_day_later_a_key_is_forgotten_and_what_held_it_is_dropped() {
        let mut writes = KeptWrites::default();
        let begin = Timestamp::from_millis(1_000);
        writes.keep(kept(1, begin));
        let last = begin.plus(KEPT_MAX_AGE);
        assert!(writes.find("key-1", last).is_some());
        let after = last.plus(Duration::from_millis(1));
        assert!(writes.find("key-1", after).is_none());
        for number in 2..CHUNK_LEN + 2 {
            writes.keep(kept(number, after.plus(KEPT_MAX_AGE)));
        }
        assert_eq!(writes.chunks.len(), 2, "a chunk goes when all of it is old");
        writes.keep(kept(0, after.plus(KEPT_MAX_AGE * 3)));
        assert_eq!(writes.iter().count(), 1 + 1);
    }

    #[test]
    fn a_snapshot_reads_back_as_it_was() {
        let mut writes = KeptWrites::default();
        for number in 0..CHUNK_LEN + 3 {
            writes.keep(kept(number, Timestamp::from_millis(5)));
        }
        let text = serde_json::to_string(&writes).unwrap();
        assert_eq!(serde_json::from_str::<KeptWrites>(&text).unwrap(), writes);
    }
}
