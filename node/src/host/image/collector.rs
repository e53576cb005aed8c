//! Takes images off the machine that [`choose`] picks: now and then, after each pull, and when a pull does not fit.
//!
//! Input: what replicas need, whole, from the node's sweep. Owner: [`super::Images`]. Before the first sweep nothing is removed.
//! An image that a replica asks for in the moment in which it goes is pulled again: making the container notices.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use berth_api::time::{Timestamp, monotonic};
use berth_api::units::Bytes;
use tracing::info;

use super::KnownImages;
use super::collect::{CollectConfig, Stored, choose};
use super::manifest::{self, Document};
use super::retry::Trouble;
use super::store::{ImageRecord, Store};

/// Images are looked at this often even when none was pulled.
const COLLECT_EVERY: Duration = Duration::from_secs(600);
/// That an image is in use is written down this often.
const MARK_EVERY: Duration = Duration::from_secs(600);
/// Below this part of the disk, images that nobody needs go: one in ten.
const FREE_PART_MIN: u64 = 10;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Collector {
    pub(super) store: Store,
    pub(super) config: CollectConfig,
    pub(super) known: Arc<KnownImages>,
    pub(super) state: Mutex<State>,
    /// One collection at a time: two would count the same bytes as freed.
    pub(super) turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Normalised references; none until the first sweep.
    needed: Option<BTreeSet<String>>,
    due: Option<Instant>,
}

impl Collector {
    /// Takes note of what replicas need. Whether [`Collector::collect`] is due; then it is not for a while.
    pub(super) fn keep(&self, needed: BTreeSet<String>) -> bool {
        let mut state = self.state();
        state.needed = Some(needed);
        let is_due = state.due.is_none_or(|due| due <= monotonic());
        if is_due {
            state.due = Some(monotonic() + COLLECT_EVERY);
        }
        is_due
    }

    /// An image was added: the next sweep collects.
    pub(super) fn pulled(&self) {
        self.state().due = None;
    }

    /// Bytes free, and in all, where images are unpacked; none where containerd does not say.
    pub(super) async fn space(&self) -> Option<(u64, u64)> {
        let root = self.store.snapshot_root().await?;
        let stat = rustix::fs::statvfs(root.as_str()).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Some((bytes(stat.f_bavail), bytes(stat.f_blocks)))
    }

    /// Removes what may go, more if that many bytes are wanted.
    pub(super) async fn collect(&self, wanted: u64) -> Result<(), Trouble> {
        let Some(needed) = self.state().needed.clone() else {
            return Ok(());
        };
        let _turn = self.turn.lock().await;
        let now = Timestamp::now();
        let mut images = Vec::new();
        let mut sizes = BTreeMap::new();
        for record in self.store.images().await? {
            if needed.contains(&record.name) && now.since(record.last_used) >= MARK_EVERY {
                self.store.mark_used(&record.name, now).await?;
            }
            images.push(Stored {
                parts: self.parts(&record, &mut sizes).await?,
                last_used: record.last_used,
                name: record.name,
            });
        }
        let pressure = self
            .space()
            .await
            .map_or(0, |(free, total)| (total / FREE_PART_MIN).saturating_sub(free));
        let (chosen, freed) = choose(&images, &needed, &self.config, wanted.max(pressure), now);
        for image in &chosen {
            self.known.forget(&image.name);
            self.store.delete_image(&image.name).await?;
            info!(image = image.name, last_used = %image.last_used, "removed an image that nothing needs");
        }
        if !chosen.is_empty() {
            info!(images = chosen.len(), freed = %Bytes::new(freed).rounded(), "collected images");
        }
        Ok(())
    }

    /// What an image takes: its blobs and unpacked layers. What cannot be read takes nothing, and goes when it is old.
    async fn parts(
        &self,
        record: &ImageRecord,
        sizes: &mut BTreeMap<String, u64>,
    ) -> Result<BTreeMap<String, u64>, Trouble> {
        let mut parts = BTreeMap::new();
        let Some(bytes) = self.store.document(&record.target.digest).await? else {
            return Ok(parts);
        };
        let Ok(Document::Manifest(manifest)) = manifest::document(bytes, &record.target.media_type) else {
            return Ok(parts);
        };
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            parts.insert(blob.digest.clone(), blob.size);
        }
        let Some(bytes) = self.store.document(&manifest.config.digest).await? else {
            return Ok(parts);
        };
        let Ok(config) = manifest::config(&bytes, manifest.layers.len()) else {
            return Ok(parts);
        };
        for chain_id in manifest::chain_ids(&config.diff_ids) {
            // A blob of the same digest would be a layer that is stored as it is.
            let part = format!("snapshot {chain_id}");
            let known = sizes.get(&part).copied();
            let bytes = match known {
                Some(bytes) => bytes,
                None => self.store.snapshot_bytes(&chain_id).await?.unwrap_or(0),
            };
            sizes.insert(part.clone(), bytes);
            parts.insert(part, bytes);
        }
        Ok(parts)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
