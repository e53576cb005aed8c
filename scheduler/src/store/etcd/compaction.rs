//! Giving up history: etcd keeps every former value of a key until it is told otherwise. What is older than two periods is
//! given up, as the API server of Kubernetes does. etcd's own file shrinks only by defragmenting it, which is the operator's.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, Txn, TxnOp, TxnOpResponse};
use tokio_util::sync::CancellationToken;

use super::connection::is_compacted;
use super::{Etcd, StoreError, kv};

/// Former values are kept for one to two of these.
pub const COMPACT_PERIOD: Duration = Duration::from_secs(300);

impl Etcd {
    /// Gives up the history of etcd, every `period`, until `stop`. Several processes share the work: in each period the
    /// first one does it.
    pub async fn housekeep(&self, period: Duration, stop: CancellationToken) {
        let mut seen = (0, 0);
        loop {
            match self.compact(seen).await {
                Ok(now) => seen = now,
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot compact etcd; trying again in the next period"
                ),
            }
            if stop
                .run_until_cancelled(tokio::time::sleep(period))
                .await
                .is_none()
            {
                return;
            }
        }
    }

    /// Gives up what is older than `revision` when nobody has done so since `version` of the note was seen. Returns the
    /// version of the note and the revision of now, for the next call.
    pub(super) async fn compact(&self, (version, revision): (i64, i64)) -> Result<(i64, i64), StoreError> {
        let key = self.keys.compacted();
        let txn = Txn::new()
            .when([Compare::version(key.as_str(), CompareOp::Equal, version)])
            .and_then([TxnOp::put(key.as_str(), revision.to_string(), None)])
            .or_else([TxnOp::get(key.as_str(), None)]);
        let answer = self
            .connection
            .call("note a compaction", |client| {
                let txn = txn.clone();
                async move { kv(&client).txn(txn).await }
            })
            .await?;
        let now = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        if !answer.succeeded() {
            let found = answer
                .op_responses()
                .into_iter()
                .find_map(|response| match response {
                    TxnOpResponse::Get(get) => get.kvs().first().map(etcd_client::KeyValue::version),
                    _ => None,
                });
            return Ok((found.unwrap_or(0), now));
        }
        if revision > 0 {
            let compacted = self
                .connection
                .call("give up former values", |client| async move {
                    kv(&client).compact(revision, None).await
                })
                .await;
            match compacted {
                Err(error) if !is_compacted(&error) => return Err(error),
                Ok(_) | Err(_) => tracing::debug!(revision, "etcd is compacted"),
            }
        }
        Ok((version + 1, now))
    }
}
