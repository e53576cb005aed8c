//! Idempotency keys of creations, one for all processes: a creation is done by whichever process owns the cluster to come, and
//! only the store knows what the others were asked under the same key.
//!
//! `PREFIX/once/KEY` holds the digest of the first request under the key, and lives for as long as clusters keep their own
//! keys. It is put before the cluster is created and taken back when that is refused.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};

use super::super::StoreError;
use super::Etcd;

/// What became of a wish to use a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reserved {
    /// It is this request's, now or since before.
    Ours,
    /// Another request has used it.
    Taken,
}

impl Etcd {
    fn reservation(&self, key: &str) -> String {
        self.keys.reservation(key)
    }

    /// Reserves a key for a request, both told by their digests, for `ttl`.
    pub(crate) async fn reserve(
        &self,
        key: &str,
        request: &str,
        ttl: Duration,
    ) -> Result<Reserved, StoreError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let granted = self
            .connection
            .call("get a lease for an idempotency key", |client| async move {
                client.lease_client().grant(seconds, None).await
            })
            .await?;
        let lease = granted.id();
        let name = self.reservation(key);
        let put = PutOptions::new().with_lease(lease);
        let txn = Txn::new()
            .when([Compare::version(name.as_str(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(name.as_str(), request, Some(put))])
            .or_else([TxnOp::get(name.as_str(), None)]);
        let answer = self
            .connection
            .call("reserve an idempotency key", |client| {
                let txn = txn.clone();
                async move { client.kv_client().txn(txn).await }
            })
            .await?;
        if answer.succeeded() {
            return Ok(Reserved::Ours);
        }
        let responses = answer.op_responses();
        let found = match responses.first() {
            Some(TxnOpResponse::Get(get)) => get.kvs().first(),
            Some(TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_)) | None => None,
        };
        // An attempt whose answer was lost, or an earlier one of the same request.
        let is_ours = found.is_some_and(|kv| kv.value() == request.as_bytes());
        if found.is_none_or(|kv| kv.lease() != lease) {
            self.connection
                .call("give back the lease of an idempotency key", |client| async move {
                    client.lease_client().revoke(lease).await
                })
                .await?;
        }
        Ok(if is_ours { Reserved::Ours } else { Reserved::Taken })
    }

    /// Takes a reservation back: the request was refused and changed nothing.
    pub(crate) async fn unreserve(&self, key: &str, request: &str) -> Result<(), StoreError> {
        let name = self.reservation(key);
        let txn = Txn::new()
            .when([Compare::value(name.as_str(), CompareOp::Equal, request)])
            .and_then([TxnOp::delete(name.as_str(), None)]);
        self.connection
            .call("take back an idempotency key", |client| {
                let txn = txn.clone();
                async move { client.kv_client().txn(txn).await }
            })
            .await
            .map(drop)
    }
}
