//! Which scheduler process may write which cluster: a lease per process, and a key per cluster that lives with it.
//!
//! ```text
//! PREFIX/shard/member/NONCE    a process that serves: its addresses; lives with its lease
//! PREFIX/shard/owner/CLUSTER   the nonce of the process that owns the cluster; lives with the same lease
//! ```
//!
//! The revision at which the owner's key was created is the fence: every write of that process compares it, so that a
//! process that was paused past its lease can change nothing, whatever it believes.

use std::time::Duration;

use berth_api::id::ClusterId;
use etcd_client::{
    Compare, CompareOp, Error, EventType, GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse, WatchOptions,
    WatchStream,
};
use serde::{Deserialize, Serialize};

use super::super::StoreError;
use super::layout::end_of;
use super::{Etcd, What};

/// A scheduler process that serves clusters of this store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Different at each start of the process.
    pub nonce: String,
    /// Where other members reach its REST API, for example `http://10.0.0.2:7600`.
    pub rest_url: String,
    /// Where nodes reach its link, for example `https://10.0.0.2:7601`.
    pub link_url: String,
}

/// A lease of etcd, by its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease(i64);

/// What is known of members and owners as of one revision.
#[derive(Debug, Clone, Default)]
pub(crate) struct Survey {
    pub(crate) members: Vec<Member>,
    /// Cluster and nonce of its owner.
    pub(crate) owners: Vec<(ClusterId, String)>,
    /// Every cluster that has a history.
    pub(crate) clusters: Vec<ClusterId>,
    revision: i64,
}

/// What became different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Joined(Member),
    /// The nonce of the member that is gone.
    Left(String),
    /// A cluster and the nonce of its new owner.
    Owned(ClusterId, String),
    Free(ClusterId),
}

/// What a claim expects of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It has a history.
    Existing,
    /// It has none: it is about to be created.
    New,
}

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claimed {
    Won,
    /// Another process owns the cluster.
    Taken,
    /// The cluster is gone, or is there already, other than the claim expects.
    Unfit,
}

/// Changes in the order in which they happened, from a [`Survey`] on.
pub(crate) struct Changes {
    stream: WatchStream,
    members: String,
    owners: String,
}

impl Etcd {
    fn members_prefix(&self) -> String {
        format!("{}member/", self.keys.shard())
    }

    fn owners_prefix(&self) -> String {
        format!("{}owner/", self.keys.shard())
    }

    fn owner_key(&self, cluster: &ClusterId) -> String {
        format!("{}{}", self.owners_prefix(), super::layout::encode_id(cluster))
    }

    /// Joins the members for as long as the lease is kept. From now on this store writes only what it owns.
    pub(crate) async fn join(&self, member: &Member, ttl: Duration) -> Result<Lease, StoreError> {
        self.owns_by_lease
            .store(true, std::sync::atomic::Ordering::Relaxed);
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let granted = self
            .connection
            .call("get a lease", |client| async move {
                client.lease_client().grant(seconds, None).await
            })
            .await?;
        let lease = Lease(granted.id());
        let key = format!("{}{}", self.members_prefix(), member.nonce);
        let value = serde_json::to_vec(member).expect("a member has text keys and no failing serialiser");
        self.connection
            .call("join the schedulers of the store", |client| {
                let (key, value) = (key.clone(), value.clone());
                let options = PutOptions::new().with_lease(lease.0);
                async move { client.kv_client().put(key, value, Some(options)).await }
            })
            .await?;
        Ok(lease)
    }

    /// Prolongs the lease, within `deadline`. False when it has run out: what it held is free.
    pub(crate) async fn keep(&self, lease: Lease, deadline: Duration) -> Result<bool, StoreError> {
        self.connection
            .call_within("keep the lease", deadline / 4, deadline, |client| async move {
                match client.lease_client().keep_alive(lease.0).await {
                    Ok(_) => Ok(true),
                    Err(Error::LeaseKeepAliveError(_)) => Ok(false),
                    Err(error) => Err(error),
                }
            })
            .await
    }

    /// Gives the lease back, and with it all that it held.
    pub(crate) async fn leave(&self, lease: Lease) -> Result<(), StoreError> {
        self.fences().clear();
        self.connection
            .call("give back the lease", |client| async move {
                client.lease_client().revoke(lease.0).await
            })
            .await
            .map(drop)
    }

    /// Makes this process the owner of a cluster that has none. From then on its writes are accepted, and those of a former owner are not.
    pub(crate) async fn claim(
        &self,
        cluster: &ClusterId,
        claim: Claim,
        member: &Member,
        lease: Lease,
    ) -> Result<Claimed, StoreError> {
        let (owner, head) = (self.owner_key(cluster), self.keys.head(cluster));
        let existence = match claim {
            Claim::Existing => Compare::version(head, CompareOp::Greater, 0),
            Claim::New => Compare::version(head, CompareOp::Equal, 0),
        };
        let put = PutOptions::new().with_lease(lease.0);
        let txn = Txn::new()
            .when([Compare::version(owner.as_str(), CompareOp::Equal, 0), existence])
            .and_then([TxnOp::put(owner.as_str(), member.nonce.as_str(), Some(put))])
            .or_else([TxnOp::get(owner.as_str(), None)]);
        let answer = self
            .connection
            .call("claim a cluster", |client| {
                let txn = txn.clone();
                async move { client.kv_client().txn(txn).await }
            })
            .await?;
        let created = if answer.succeeded() {
            answer.header().map_or(0, etcd_client::ResponseHeader::revision)
        } else {
            let responses = answer.op_responses();
            let found = match responses.first() {
                Some(TxnOpResponse::Get(get)) => get.kvs().first(),
                Some(TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_)) | None => None,
            };
            match found {
                // An attempt whose answer was lost has won.
                Some(kv) if kv.value() == member.nonce.as_bytes() && kv.lease() == lease.0 => {
                    kv.create_revision()
                }
                Some(_) => return Ok(Claimed::Taken),
                None => return Ok(Claimed::Unfit),
            }
        };
        self.fences().insert(cluster.clone(), created);
        self.moved().insert(cluster.clone(), created);
        self.remember(cluster, None);
        Ok(Claimed::Won)
    }

    /// Whether a cluster is there, as of now and not as of the last change that was heard of.
    pub(crate) async fn has_history(&self, cluster: &ClusterId) -> Result<bool, StoreError> {
        let count = GetOptions::new().with_count_only();
        let head = self
            .get("look for a cluster", self.keys.head(cluster), count)
            .await?;
        Ok(head.count() > 0)
    }

    /// Whether this process has claimed a cluster and not given it back.
    pub(crate) fn owns(&self, cluster: &ClusterId) -> bool {
        self.fences().contains_key(cluster)
    }

    /// Gives a cluster back, for another member to claim. The caller has stopped writing to it.
    pub(crate) async fn release(&self, cluster: &ClusterId) -> Result<(), StoreError> {
        let Some(created) = self.fences().remove(cluster) else {
            return Ok(());
        };
        let owner = self.owner_key(cluster);
        let txn = Txn::new()
            .when([Compare::create_revision(
                owner.as_str(),
                CompareOp::Equal,
                created,
            )])
            .and_then([TxnOp::delete(owner.as_str(), None)]);
        let answer = self
            .connection
            .call("give back a cluster", |client| {
                let txn = txn.clone();
                async move { client.kv_client().txn(txn).await }
            })
            .await?;
        if let Some(header) = answer.header().filter(|_| answer.succeeded()) {
            self.moved().insert(cluster.clone(), header.revision());
        }
        Ok(())
    }

    /// Whether a change is older than what this process itself has done to the ownership of the cluster since: a watch that lags
    /// must not undo it.
    pub(crate) fn is_outdated(&self, change: &Change, revision: i64) -> bool {
        let (Change::Owned(cluster, _) | Change::Free(cluster)) = change else {
            return false;
        };
        let moved = self.moved().get(cluster).copied();
        moved.is_some_and(|moved| revision < moved)
    }

    /// What a write to `cluster` compares besides its head; an error when this process does not own it.
    pub(super) fn ownership(&self, cluster: &ClusterId) -> Result<Option<(String, i64)>, StoreError> {
        if !self.owns_by_lease.load(std::sync::atomic::Ordering::Relaxed) {
            return Ok(None);
        }
        match self.fences().get(cluster) {
            Some(created) => Ok(Some((self.owner_key(cluster), *created))),
            None => Err(StoreError::NotOwner {
                cluster: cluster.clone(),
            }),
        }
    }

    /// Members, owners and clusters as of now.
    pub(crate) async fn survey(&self) -> Result<Survey, StoreError> {
        let list = |operation, prefix: String, revision, what| async move {
            self.read_all_at(operation, &prefix, revision, what).await
        };
        let (revision, members) = list("list the schedulers", self.members_prefix(), 0, What::Small).await?;
        let (_, owners) = list("list the owners", self.owners_prefix(), revision, What::Small).await?;
        let (_, heads) = list("list the clusters", self.keys.heads(), revision, What::Keys).await?;
        let mut survey = Survey {
            revision,
            ..Survey::default()
        };
        for (key, value) in members {
            // Of a newer program perhaps: it is there, and nothing can be sent to it.
            if let Ok(member) = serde_json::from_slice(&value) {
                survey.members.push(member);
            } else {
                tracing::warn!(key = %String::from_utf8_lossy(&key), "a member of the store cannot be read");
            }
        }
        let prefix = self.owners_prefix();
        for (key, value) in owners {
            if let Some(cluster) = super::layout::cluster_below(&prefix, &key) {
                survey
                    .owners
                    .push((cluster, String::from_utf8_lossy(&value).into_owned()));
            }
        }
        for (key, _) in heads {
            let cluster = self
                .keys
                .cluster_of_head(&key)
                .ok_or_else(|| self.damaged(format!("{} names no cluster", String::from_utf8_lossy(&key))))?;
            survey.clusters.push(cluster);
        }
        Ok(survey)
    }

    /// What changes after a survey.
    pub(crate) async fn changes(&self, since: &Survey) -> Result<Changes, StoreError> {
        let prefix = self.keys.shard();
        let revision = since.revision + 1;
        // Nothing from before the survey comes any more.
        self.moved().retain(|_, moved| *moved >= revision);
        let stream = self
            .connection
            .call("watch the schedulers", |client| {
                let options = WatchOptions::new()
                    .with_range(end_of(&prefix))
                    .with_start_revision(revision);
                let prefix = prefix.clone();
                async move { client.watch_client().watch(prefix, Some(options)).await }
            })
            .await?;
        Ok(Changes {
            stream,
            members: self.members_prefix(),
            owners: self.owners_prefix(),
        })
    }
}

impl Changes {
    /// The next changes, each with its revision; none when they have to be surveyed anew (a lost member, a compacted revision).
    ///
    /// Cancel-safe: a message stays in the stream until it is whole.
    pub(crate) async fn next(&mut self) -> Option<Vec<(Change, i64)>> {
        let message = match self.stream.message().await {
            Ok(Some(message)) if !message.canceled() => message,
            Ok(_) | Err(_) => return None,
        };
        let mut changes = Vec::new();
        for event in message.events() {
            let Some(kv) = event.kv() else { continue };
            let is_put = event.event_type() == EventType::Put;
            let key = String::from_utf8_lossy(kv.key());
            let mut push = |change| changes.push((change, kv.mod_revision()));
            if let Some(nonce) = key.strip_prefix(&self.members) {
                if !is_put {
                    push(Change::Left(nonce.to_owned()));
                } else if let Ok(member) = serde_json::from_slice(kv.value()) {
                    push(Change::Joined(member));
                }
            } else if let Some(cluster) = super::layout::cluster_below(&self.owners, kv.key()) {
                push(if is_put {
                    Change::Owned(cluster, String::from_utf8_lossy(kv.value()).into_owned())
                } else {
                    Change::Free(cluster)
                });
            }
        }
        Some(changes)
    }
}
