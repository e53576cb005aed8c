//! The store for high availability: the logs of all clusters in etcd, whose members agree on every write by majority.
//!
//! An append is one transaction: it compares the head of the cluster with the bytes this process knows, then puts the
//! records under one key and the new head. Whoever knows another head is fenced and has changed nothing. A value above
//! 1 MiB is put in parts beforehand, which count for nothing until the transaction names them; what an attempt that
//! died left behind is deleted when the log is trimmed past it.
//!
//! Heads are never equal unless one write made them, so a write whose answer was lost is sent again and recognises
//! itself. The keys are described in [`layout`].
//!
//! etcd keeps every former value of a key until it is told otherwise. [`Etcd::housekeep`] tells it.

mod compaction;
mod connection;
#[cfg(test)]
pub(crate) mod fixture;
mod layout;
mod ownership;
mod reservation;
mod restore;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_api::id::ClusterId;
use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, GetOptions, GetResponse, KvClient, SortOrder, SortTarget, Txn,
    TxnOp, TxnOpResponse,
};
use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::memory::fence;
use super::{Head, History, Row, Snapshot, SnapshotRow, Store, StoreError, chain, verify};
use connection::{Connection, is_compacted};
use layout::{
    Keys, Kind, PART_MAX_BYTES, Part, SCHEMA_VERSION, Stored, StoredHead, decode_rows, decode_snapshot,
    encode_rows, encode_snapshot, end_of,
};

pub use compaction::COMPACT_PERIOD;
pub use connection::{EtcdOptions, EtcdTls, EtcdUser};
pub(crate) use layout::decode_id as cluster_of_segment;
pub use ownership::Member;
pub(crate) use ownership::{Change as OwnerChange, Changes, Claim, Claimed, Lease};
pub(crate) use reservation::Reserved;

/// Keys of one answer when values are read: 16 of at most 1 MiB stay below [`ANSWER_MAX_BYTES`].
const VALUES_PER_PAGE: i64 = 16;
/// Keys of one answer when only keys are read.
const KEYS_PER_PAGE: i64 = 2000;
const ANSWER_MAX_BYTES: usize = 32 << 20;
/// A read whose revision is given up meanwhile begins anew; it would have to last for two periods of housekeeping.
const LOAD_ATTEMPTS_MAX: u32 = 3;

/// See the module documentation.
#[derive(Debug)]
pub struct Etcd {
    connection: Connection,
    keys: Keys,
    /// Names this process in heads and parts.
    nonce: u64,
    writes: AtomicU64,
    /// Heads as this process knows them, in their stored bytes. One that is missing is read first.
    heads: Mutex<BTreeMap<ClusterId, Vec<u8>>>,
    /// Set when this process joins the members: from then on it writes only what it owns.
    owns_by_lease: AtomicBool,
    /// The clusters this process owns, with the revisions at which their owner keys were created.
    fences: Mutex<BTreeMap<ClusterId, i64>>,
    /// At which revision this process last claimed a cluster or gave it back: what a watch tells of before is out of date.
    moved: Mutex<BTreeMap<ClusterId, i64>>,
}

/// One guarded write: what is put or deleted when the head is still `before`.
struct Change {
    before: Option<Vec<u8>>,
    /// None when the cluster is deleted.
    after: Option<Vec<u8>>,
    operations: Vec<TxnOp>,
}

impl Etcd {
    /// Opens the store, marking its layout when nothing is there.
    ///
    /// # Errors
    /// When no majority of the members can be reached, or a newer program wrote it.
    pub async fn open(options: &EtcdOptions) -> Result<Self, StoreError> {
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(|error| StoreError::Io {
            operation: "get random bytes for",
            path: PathBuf::from(options.prefix.as_str()),
            source: std::sync::Arc::new(std::io::Error::other(error.to_string())),
        })?;
        let store = Self {
            connection: Connection::new(options),
            keys: Keys::new(&options.prefix),
            nonce: u64::from_le_bytes(nonce),
            writes: AtomicU64::new(0),
            heads: Mutex::default(),
            owns_by_lease: AtomicBool::new(false),
            fences: Mutex::default(),
            moved: Mutex::default(),
        };
        store.check_schema().await?;
        Ok(store)
    }

    async fn check_schema(&self) -> Result<(), StoreError> {
        let key = self.keys.schema();
        let txn = Txn::new()
            .when([Compare::version(key.as_str(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key.as_str(), SCHEMA_VERSION.to_string(), None)])
            .or_else([TxnOp::get(key.as_str(), None)]);
        let answer = self
            .connection
            .call("read the version of the store", |client| {
                let txn = txn.clone();
                async move { kv(&client).txn(txn).await }
            })
            .await?;
        if answer.succeeded() {
            return Ok(());
        }
        let bytes = first_value(&answer.op_responses()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        match text.parse::<i64>() {
            Ok(SCHEMA_VERSION) => Ok(()),
            Ok(found) => Err(StoreError::Newer {
                path: self.connection.name().into(),
                found,
                known: SCHEMA_VERSION,
            }),
            Err(_) => Err(self.damaged(format!("{key} is {text:?} and should be a number"))),
        }
    }

    /// Refuses a process whose keys are not those of the first process that used this store: what one of them signs or
    /// issues, the others must know.
    ///
    /// # Errors
    /// When they differ, or etcd cannot be reached.
    pub async fn check_keys(&self, marks: &str) -> Result<(), StoreError> {
        let key = self.keys.key_marks();
        let txn = Txn::new()
            .when([Compare::version(key.as_str(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key.as_str(), marks, None)])
            .or_else([TxnOp::get(key.as_str(), None)]);
        let answer = self
            .connection
            .call("compare the keys of the schedulers", |client| {
                let txn = txn.clone();
                async move { kv(&client).txn(txn).await }
            })
            .await?;
        if answer.succeeded() || first_value(&answer.op_responses()).as_deref() == Some(marks.as_bytes()) {
            return Ok(());
        }
        Err(StoreError::OtherKeys {
            store: self.connection.name().to_owned(),
        })
    }

    fn damaged(&self, detail: String) -> StoreError {
        StoreError::Damaged {
            path: self.connection.name().into(),
            detail,
        }
    }

    fn heads(&self) -> MutexGuard<'_, BTreeMap<ClusterId, Vec<u8>>> {
        // Every change under this lock is complete before the next may panic.
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fences(&self) -> MutexGuard<'_, BTreeMap<ClusterId, i64>> {
        // As above.
        self.fences.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moved(&self) -> MutexGuard<'_, BTreeMap<ClusterId, i64>> {
        // As above.
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, cluster: &ClusterId, head: Option<&[u8]>) {
        match head {
            Some(head) => drop(self.heads().insert(cluster.clone(), head.to_vec())),
            None => drop(self.heads().remove(cluster)),
        }
    }

    /// Remembers a head that was read, unless a write of this process has moved it from `known` since the reading began.
    fn learn(&self, cluster: &ClusterId, known: Option<Vec<u8>>, read: Option<&[u8]>) {
        let mut heads = self.heads();
        if heads.get(cluster) != known.as_ref() {
            return;
        }
        match read {
            Some(head) => drop(heads.insert(cluster.clone(), head.to_vec())),
            None => drop(heads.remove(cluster)),
        }
    }

    fn decode_head(&self, cluster: &ClusterId, bytes: Option<&[u8]>) -> Result<Head, StoreError> {
        let Some(bytes) = bytes else {
            return Ok(Head::START);
        };
        let stored: StoredHead = serde_json::from_slice(bytes)
            .map_err(|error| self.damaged(format!("{}: {error}", self.keys.head(cluster))))?;
        Ok(Head {
            next_seq: stored.next_seq,
            crc: stored.crc,
        })
    }

    fn encode_head(&self, head: Head) -> Vec<u8> {
        let count = self.writes.fetch_add(1, Ordering::Relaxed);
        let stored = StoredHead {
            next_seq: head.next_seq,
            crc: head.crc,
            writer: format!("{:016x}-{count}", self.nonce),
        };
        serde_json::to_vec(&stored).expect("a head has text keys and no failing serialiser")
    }

    /// The head as it is known, read when it is not; its place must be `expected`.
    async fn head_at(
        &self,
        cluster: &ClusterId,
        expected: u64,
    ) -> Result<(Option<Vec<u8>>, Head), StoreError> {
        let known = self.heads().get(cluster).cloned();
        let bytes = match known {
            Some(known) => Some(known),
            None => self.read_head(cluster).await?,
        };
        let head = self.decode_head(cluster, bytes.as_deref())?;
        fence(cluster, expected, head.next_seq)?;
        Ok((bytes, head))
    }

    async fn read_head(&self, cluster: &ClusterId) -> Result<Option<Vec<u8>>, StoreError> {
        let key = self.keys.head(cluster);
        let answer = self
            .connection
            .call("read the end of a log", |client| {
                let key = key.clone();
                async move { kv(&client).get(key, None).await }
            })
            .await?;
        Ok(answer.kvs().first().map(|kv| kv.value().to_vec()))
    }

    /// Runs a guarded write. When the guard does not hold and the head is not what this very write makes, it is fenced.
    async fn commit(
        &self,
        operation: &'static str,
        cluster: &ClusterId,
        change: Change,
    ) -> Result<(), StoreError> {
        let key = self.keys.head(cluster);
        let mut guards = vec![match &change.before {
            Some(before) => Compare::value(key.as_str(), CompareOp::Equal, before.as_slice()),
            None => Compare::version(key.as_str(), CompareOp::Equal, 0),
        }];
        let mut findings = vec![TxnOp::get(key.as_str(), None)];
        let owned = self.ownership(cluster)?;
        if let Some((owner, created)) = &owned {
            guards.push(Compare::create_revision(
                owner.as_str(),
                CompareOp::Equal,
                *created,
            ));
            findings.push(TxnOp::get(owner.as_str(), None));
        }
        let txn = Txn::new()
            .when(guards)
            .and_then(change.operations)
            .or_else(findings);
        let answer = self
            .connection
            .call(operation, |client| {
                let txn = txn.clone();
                async move { kv(&client).txn(txn).await }
            })
            .await
            // What became of it is not known: the head is read again before the next write.
            .inspect_err(|_| self.remember(cluster, None))?;
        if !answer.succeeded() {
            let found = answer.op_responses();
            let head = first_value(&found);
            // A write that moves the head and finds it moved just so was done by an attempt whose answer was lost.
            if change.before == change.after || head != change.after {
                self.remember(cluster, None);
                return Err(self.refusal(cluster, change.before.as_deref(), &found, owned)?);
            }
        }
        self.remember(cluster, change.after.as_deref());
        Ok(())
    }

    /// Why a guard did not hold.
    fn refusal(
        &self,
        cluster: &ClusterId,
        before: Option<&[u8]>,
        found: &[TxnOpResponse],
        owned: Option<(String, i64)>,
    ) -> Result<StoreError, StoreError> {
        if let Some((_, created)) = owned {
            let holds = matches!(found.get(1), Some(TxnOpResponse::Get(get))
                if get.kvs().first().is_some_and(|kv| kv.create_revision() == created));
            if !holds {
                self.fences().remove(cluster);
                return Ok(StoreError::NotOwner {
                    cluster: cluster.clone(),
                });
            }
        }
        Ok(StoreError::Fenced {
            cluster: cluster.clone(),
            expected: self.decode_head(cluster, before)?.next_seq,
            found: self.decode_head(cluster, first_value(found).as_deref())?.next_seq,
        })
    }

    /// The bytes to stand under the key of a value; parts of a large one are put first, guarded like the value itself.
    async fn stage(
        &self,
        kind: Kind,
        cluster: &ClusterId,
        seq: u64,
        before: Option<&[u8]>,
        body: Vec<u8>,
    ) -> Result<Vec<u8>, StoreError> {
        if body.len() <= PART_MAX_BYTES {
            return Ok(Stored::Inline(body).encode());
        }
        let nonce = self.nonce ^ self.writes.fetch_add(1, Ordering::Relaxed).rotate_left(32);
        let mut count = 0;
        for slice in body.chunks(PART_MAX_BYTES) {
            let key = self.keys.part(kind, cluster, seq, Part { nonce, number: count });
            let change = Change {
                before: before.map(<[u8]>::to_vec),
                after: before.map(<[u8]>::to_vec),
                operations: vec![TxnOp::put(key, slice, None)],
            };
            self.commit("write a part of a large value", cluster, change)
                .await?;
            count += 1;
        }
        Ok(Stored::InParts { nonce, count }.encode())
    }

    async fn append_now(
        &self,
        cluster: &ClusterId,
        expected: u64,
        payloads: Vec<Vec<u8>>,
    ) -> Result<u64, StoreError> {
        let (before, mut head) = self.head_at(cluster, expected).await?;
        let mut rows = Vec::with_capacity(payloads.len());
        for payload in payloads {
            head.crc = chain(head.crc, head.next_seq, &payload);
            rows.push(Row {
                seq: head.next_seq,
                crc: head.crc,
                payload,
            });
            head.next_seq += 1;
        }
        let after = self.encode_head(head);
        let mut operations = vec![TxnOp::put(self.keys.head(cluster), after.as_slice(), None)];
        if !rows.is_empty() {
            let value = self
                .stage(
                    Kind::Log,
                    cluster,
                    expected,
                    before.as_deref(),
                    encode_rows(&rows),
                )
                .await?;
            operations.push(TxnOp::put(
                self.keys.value(Kind::Log, cluster, expected),
                value,
                None,
            ));
        }
        let change = Change {
            before,
            after: Some(after),
            operations,
        };
        self.commit("append to a log", cluster, change).await?;
        Ok(head.next_seq)
    }

    async fn snapshot_now(&self, cluster: &ClusterId, snapshot: Snapshot) -> Result<(), StoreError> {
        let seq = snapshot.seq;
        let (before, head) = self.head_at(cluster, seq + 1).await?;
        if before.is_none() {
            return Ok(());
        }
        let row = SnapshotRow {
            seq,
            chain: head.crc,
            crc: chain(head.crc, seq, &snapshot.payload),
            payload: snapshot.payload,
        };
        let value = self
            .stage(
                Kind::Snapshot,
                cluster,
                seq,
                before.as_deref(),
                encode_snapshot(&row),
            )
            .await?;
        let mut operations = vec![TxnOp::put(
            self.keys.value(Kind::Snapshot, cluster, seq),
            value,
            None,
        )];
        let older = self.snapshot_seqs(cluster).await?;
        // The newest beside this one is kept, and the records behind it.
        if let Some(kept) = older.into_iter().rfind(|older| *older < seq) {
            operations.extend(self.trim(Kind::Snapshot, cluster, kept));
            if let Some(first) = self.first_value_holding(cluster, kept + 1).await? {
                operations.extend(self.trim(Kind::Log, cluster, first));
            }
        }
        let change = Change {
            after: before.clone(),
            before,
            operations,
        };
        self.commit("keep a snapshot", cluster, change).await
    }

    async fn begin_now(&self, cluster: &ClusterId, snapshot: Snapshot) -> Result<(), StoreError> {
        let (before, _) = self.head_at(cluster, 1).await?;
        let row = SnapshotRow::first(snapshot);
        let after = self.encode_head(Head {
            next_seq: row.seq + 1,
            crc: row.chain,
        });
        let value = self
            .stage(
                Kind::Snapshot,
                cluster,
                row.seq,
                before.as_deref(),
                encode_snapshot(&row),
            )
            .await?;
        let operations = vec![
            TxnOp::put(self.keys.head(cluster), after.as_slice(), None),
            TxnOp::put(self.keys.value(Kind::Snapshot, cluster, row.seq), value, None),
        ];
        let change = Change {
            before,
            after: Some(after),
            operations,
        };
        self.commit("begin a log", cluster, change).await
    }

    /// Deletes the values of a kind, and their parts, before the one at `seq`.
    fn trim(&self, kind: Kind, cluster: &ClusterId, seq: u64) -> [TxnOp; 2] {
        let values = DeleteOptions::new().with_range(self.keys.value(kind, cluster, seq));
        let parts = DeleteOptions::new().with_range(self.keys.parts_of_value(kind, cluster, seq));
        [
            TxnOp::delete(self.keys.values(kind, cluster), Some(values)),
            TxnOp::delete(self.keys.parts_of_kind(kind, cluster), Some(parts)),
        ]
    }

    async fn snapshot_seqs(&self, cluster: &ClusterId) -> Result<Vec<u64>, StoreError> {
        let prefix = self.keys.values(Kind::Snapshot, cluster);
        let options = GetOptions::new().with_range(end_of(&prefix)).with_keys_only();
        let answer = self.get("list the snapshots", prefix, options).await?;
        Ok(answer
            .kvs()
            .iter()
            .filter_map(|kv| Keys::seq_of(kv.key()))
            .collect())
    }

    /// The first sequence number of the value that holds record `seq`, or the last before it.
    async fn first_value_holding(&self, cluster: &ClusterId, seq: u64) -> Result<Option<u64>, StoreError> {
        let options = GetOptions::new()
            .with_range(self.keys.value(Kind::Log, cluster, seq + 1))
            .with_sort(SortTarget::Key, SortOrder::Descend)
            .with_limit(1)
            .with_keys_only();
        let answer = self
            .get("find a record", self.keys.values(Kind::Log, cluster), options)
            .await?;
        Ok(answer.kvs().first().and_then(|kv| Keys::seq_of(kv.key())))
    }

    async fn get(
        &self,
        operation: &'static str,
        key: impl Into<Vec<u8>>,
        options: GetOptions,
    ) -> Result<GetResponse, StoreError> {
        let key = key.into();
        self.connection
            .call(operation, |client| {
                let (key, options) = (key.clone(), options.clone());
                async move { kv(&client).get(key, Some(options)).await }
            })
            .await
    }

    /// Every key and value that begins with `prefix`, in order, as of `revision`; the latest when that is 0.
    async fn read_all(
        &self,
        operation: &'static str,
        prefix: &str,
        revision: i64,
        what: What,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError> {
        let (_, all) = self.read_all_at(operation, prefix, revision, what).await?;
        Ok(all)
    }

    /// As [`Self::read_all`], with the revision that was read.
    async fn read_all_at(
        &self,
        operation: &'static str,
        prefix: &str,
        revision: i64,
        what: What,
    ) -> Result<(i64, Vec<(Vec<u8>, Vec<u8>)>), StoreError> {
        let mut from = prefix.as_bytes().to_vec();
        let mut revision = revision;
        let mut all = Vec::new();
        loop {
            let mut options = GetOptions::new()
                .with_range(end_of(prefix))
                .with_revision(revision);
            options = match what {
                What::Keys => options.with_keys_only().with_limit(KEYS_PER_PAGE),
                What::Small => options.with_limit(KEYS_PER_PAGE),
                What::Values => options.with_limit(VALUES_PER_PAGE),
            };
            let mut page = self.get(operation, from, options).await?;
            // All pages are of the moment of the first.
            if revision == 0 {
                revision = page.header().map_or(0, etcd_client::ResponseHeader::revision);
            }
            let more = page.more();
            all.extend(
                page.take_kvs()
                    .into_iter()
                    .map(|kv| (kv.key().to_vec(), kv.value().to_vec())),
            );
            match all.last() {
                Some((key, _)) if more => from = [key.as_slice(), &[0]].concat(),
                _ => return Ok((revision, all)),
            }
        }
    }

    async fn load_now(&self, cluster: &ClusterId) -> Result<History, StoreError> {
        for _ in 1..LOAD_ATTEMPTS_MAX {
            match self.load_once(cluster).await {
                Err(error) if is_compacted(&error) => {}
                outcome => return outcome,
            }
        }
        self.load_once(cluster).await
    }

    /// Reads and verifies one cluster as of one revision of etcd.
    async fn load_once(&self, cluster: &ClusterId) -> Result<History, StoreError> {
        let known = self.heads().get(cluster).cloned();
        let answer = self
            .get(
                "read the end of a log",
                self.keys.head(cluster),
                GetOptions::new(),
            )
            .await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        let Some(bytes) = answer.kvs().first().map(|kv| kv.value().to_vec()) else {
            self.learn(cluster, known, None);
            return Ok(History::empty());
        };
        let head = self.decode_head(cluster, Some(&bytes))?;
        let mut snapshots = Vec::new();
        for (seq, body) in self.read_values(Kind::Snapshot, cluster, revision).await? {
            let row =
                decode_snapshot(seq, &body).ok_or_else(|| self.unreadable(Kind::Snapshot, cluster, seq))?;
            snapshots.push(row);
        }
        let trimmed_to = match snapshots.as_slice() {
            [] | [_] => 0,
            [oldest, ..] => oldest.seq,
        };
        let mut rows = Vec::new();
        for (seq, body) in self.read_values(Kind::Log, cluster, revision).await? {
            let decoded = decode_rows(seq, &body).ok_or_else(|| self.unreadable(Kind::Log, cluster, seq))?;
            // A value is kept whole while any of its records is needed.
            rows.extend(decoded.into_iter().filter(|row| row.seq > trimmed_to));
        }
        let history = verify(cluster, head, snapshots, rows)?;
        self.learn(cluster, known, Some(&bytes));
        Ok(history)
    }

    fn unreadable(&self, kind: Kind, cluster: &ClusterId, seq: u64) -> StoreError {
        let key = self.keys.value(kind, cluster, seq);
        self.damaged(format!("{key} does not have the form of this layout"))
    }

    /// Every value of a kind, put together where it is in parts.
    async fn read_values(
        &self,
        kind: Kind,
        cluster: &ClusterId,
        revision: i64,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let prefix = self.keys.values(kind, cluster);
        let stored = self
            .read_all("read a log", &prefix, revision, What::Values)
            .await?;
        let mut values = Vec::with_capacity(stored.len());
        for (key, bytes) in stored {
            let unreadable = || self.damaged(format!("{} is not readable", String::from_utf8_lossy(&key)));
            let seq = Keys::seq_of(&key).ok_or_else(unreadable)?;
            let body = match Stored::decode(&bytes).ok_or_else(unreadable)? {
                Stored::Inline(body) => body,
                Stored::InParts { nonce, count } => {
                    let mut body = Vec::new();
                    for number in 0..count {
                        let key = self.keys.part(kind, cluster, seq, Part { nonce, number });
                        let options = GetOptions::new().with_revision(revision);
                        let answer = self
                            .get("read a part of a large value", key.as_str(), options)
                            .await?;
                        let part = answer.kvs().first();
                        let part = part.ok_or_else(|| self.damaged(format!("{key} is missing")))?;
                        body.extend_from_slice(part.value());
                    }
                    body
                }
            };
            values.push((seq, body));
        }
        Ok(values)
    }

    async fn delete_now(&self, cluster: &ClusterId, expected: u64) -> Result<(), StoreError> {
        let (before, _) = self.head_at(cluster, expected).await?;
        if before.is_none() {
            return Ok(());
        }
        let below = |prefix: String| {
            let options = DeleteOptions::new().with_range(end_of(&prefix));
            TxnOp::delete(prefix, Some(options))
        };
        let change = Change {
            before,
            after: None,
            operations: vec![
                TxnOp::delete(self.keys.head(cluster), None),
                below(self.keys.values(Kind::Log, cluster)),
                below(self.keys.values(Kind::Snapshot, cluster)),
                below(self.keys.all_parts(cluster)),
            ],
        };
        self.commit("delete a log", cluster, change).await
    }
}

/// What of a range is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Keys,
    /// Values of at most a few hundred bytes.
    Small,
    Values,
}

fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(ANSWER_MAX_BYTES)
}

/// The value that the first read of a transaction found.
fn first_value(responses: &[TxnOpResponse]) -> Option<Vec<u8>> {
    responses.iter().find_map(|response| match response {
        TxnOpResponse::Get(get) => get.kvs().first().map(|kv| kv.value().to_vec()),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
    })
}

impl Store for Etcd {
    fn clusters(&self) -> BoxFuture<'_, Result<Vec<ClusterId>, StoreError>> {
        async {
            let heads = self
                .read_all("list the clusters", &self.keys.heads(), 0, What::Keys)
                .await?;
            let mut clusters = Vec::with_capacity(heads.len());
            for (key, _) in heads {
                let cluster = self.keys.cluster_of_head(&key).ok_or_else(|| {
                    self.damaged(format!("{} names no cluster", String::from_utf8_lossy(&key)))
                })?;
                clusters.push(cluster);
            }
            clusters.sort();
            Ok(clusters)
        }
        .boxed()
    }

    fn load<'a>(&'a self, cluster: &'a ClusterId) -> BoxFuture<'a, Result<History, StoreError>> {
        self.load_now(cluster).boxed()
    }

    fn append<'a>(
        &'a self,
        cluster: &'a ClusterId,
        expected: u64,
        payloads: Vec<Vec<u8>>,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        self.append_now(cluster, expected, payloads).boxed()
    }

    fn snapshot<'a>(
        &'a self,
        cluster: &'a ClusterId,
        snapshot: Snapshot,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.snapshot_now(cluster, snapshot).boxed()
    }

    fn begin<'a>(
        &'a self,
        cluster: &'a ClusterId,
        snapshot: Snapshot,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.begin_now(cluster, snapshot).boxed()
    }

    fn delete<'a>(&'a self, cluster: &'a ClusterId, expected: u64) -> BoxFuture<'a, Result<(), StoreError>> {
        self.delete_now(cluster, expected).boxed()
    }
}
