//! The marks around a restore: a store in which one has begun and not ended is served by nobody.

use etcd_client::GetOptions;

use super::super::StoreError;
use super::{Etcd, kv};

impl Etcd {
    /// Refuses a store in which a restore has begun and not ended.
    ///
    /// # Errors
    /// When that is so, or etcd cannot be reached.
    pub async fn check_whole(&self) -> Result<(), StoreError> {
        let mark = self
            .get("look for a restore", self.keys.restoring(), GetOptions::new())
            .await?;
        if mark.kvs().is_empty() {
            return Ok(());
        }
        Err(StoreError::HalfRestored {
            store: self.connection.name().to_owned(),
        })
    }

    /// Marks that a restore begins in a store without clusters and schedulers; what one that did not end left behind is
    /// deleted.
    ///
    /// # Errors
    /// When there is anything else, or etcd cannot be reached.
    pub async fn begin_restore(&self) -> Result<(), StoreError> {
        let survey = self.survey().await?;
        if !survey.members.is_empty() {
            return Err(StoreError::InUse {
                store: self.connection.name().to_owned(),
                what: "schedulers run on it",
            });
        }
        match self.check_whole().await {
            Ok(()) if survey.clusters.is_empty() => self.mark_restoring().await,
            Ok(()) => Err(StoreError::InUse {
                store: self.connection.name().to_owned(),
                what: "it holds clusters",
            }),
            Err(StoreError::HalfRestored { .. }) => {
                for cluster in survey.clusters {
                    let history_end = self.read_head(&cluster).await?;
                    let head = self.decode_head(&cluster, history_end.as_deref())?;
                    self.delete_now(&cluster, head.next_seq).await?;
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn mark_restoring(&self) -> Result<(), StoreError> {
        let mark = self.keys.restoring();
        self.connection
            .call("mark a restore", |client| {
                let mark = mark.clone();
                async move { kv(&client).put(mark, "1", None).await }
            })
            .await
            .map(drop)
    }

    /// Marks that the restore has ended.
    ///
    /// # Errors
    /// When etcd cannot be reached.
    pub async fn end_restore(&self) -> Result<(), StoreError> {
        let mark = self.keys.restoring();
        self.connection
            .call("end a restore", |client| {
                let mark = mark.clone();
                async move { kv(&client).delete(mark, None).await }
            })
            .await
            .map(drop)
    }
}
