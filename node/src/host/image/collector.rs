//! Takes images off the machine that [`choose`] picks: now and then, after each pull, and when a pull does not fit.
//!
//! Input: what replicas need, whole, from the node's sweep. Owner: [`super::Images`]. Before the first sweep nothing is removed.
//! An image that a replica asks for in the moment in which it goes is pulled again: making the container notices.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use berth_api::time::{Timestamp, monotonic};
use tracing::info;

use super::collect::{CollectConfig, Stored, choose};
use super::manifest::{self, Document};
use super::retry::Trouble;
use super::store::{ImageRecord, Store};
use super::{KnownImages, Room};

/// Images are looked at this often even when none was pulled.
const COLLECT_EVERY: Duration = Duration::from_secs(600);
/// That an image is in use is written down this often.
const MARK_EVERY: Duration = Duration::from_secs(600);
/// Below this part of the disk, of its bytes or of its inodes, images that nobody needs go: one in ten.
const FREE_PART_MIN: u64 = 10;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Collector {
    pub(super) store: Store,
    pub(super) config: CollectConfig,
    pub(super) known: Arc<KnownImages>,
    pub(super) state: Mutex<State>,
    /// Images that are being pulled.
    pub(super) in_flight: Mutex<BTreeSet<String>>,
    /// Held while a pull takes its lease, and while one is ended that no pull has.
    pub(super) gate: tokio::sync::Mutex<()>,
    /// One collection at a time: two would count the same bytes as freed.
    pub(super) turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Normalised references; none until the first sweep.
    needed: Option<BTreeSet<String>>,
    /// When a replica last asked for an image.
    asked: BTreeMap<String, Instant>,
    due: Option<Instant>,
}

impl State {
    /// What may not go now. None while nothing is known.
    fn kept(&self, settle: Duration) -> Option<BTreeSet<String>> {
        let now = monotonic();
        let asked = self.asked.iter();
        let lately = asked.filter(|(_, at)| now.saturating_duration_since(**at) < settle);
        let needed = self.needed.iter().flatten();
        self.needed.as_ref()?;
        Some(needed.chain(lately.map(|(name, _)| name)).cloned().collect())
    }
}

/// One pull under way.
pub(super) struct Pulling<'a> {
    collector: &'a Collector,
    name: &'a str,
}

impl Drop for Pulling<'_> {
    fn drop(&mut self) {
        self.collector.in_flight().remove(self.name);
    }
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

    /// A replica asks for an image: it is needed, whatever the last sweep knew.
    pub(super) fn asked(&self, name: &str) {
        let (now, settle) = (monotonic(), self.config.settle);
        let mut state = self.state();
        state
            .asked
            .retain(|_, at| now.saturating_duration_since(*at) < settle);
        state.asked.insert(name.to_owned(), now);
    }

    /// Notes that an image is being pulled, until the guard is dropped.
    pub(super) fn pulling<'a>(&'a self, name: &'a str) -> Pulling<'a> {
        self.in_flight().insert(name.to_owned());
        Pulling {
            collector: self,
            name,
        }
    }

    fn in_flight(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An image was added: the next sweep collects.
    pub(super) fn pulled(&self) {
        self.state().due = None;
    }

    /// How much room there is where images are unpacked; none where containerd does not say.
    pub(super) async fn room(&self) -> Option<Room> {
        let path = self.store.snapshot_root().await?;
        let stat = rustix::fs::statvfs(path.as_str()).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Some(Room {
            path,
            free_bytes: bytes(stat.f_bavail),
            total_bytes: bytes(stat.f_blocks),
            free_inodes: stat.f_favail,
            total_inodes: stat.f_files,
        })
    }

    /// Bytes free, and in all; none where containerd does not say.
    pub(super) async fn space(&self) -> Option<(u64, u64)> {
        let room = self.room().await?;
        Some((room.free_bytes, room.total_bytes))
    }

    /// Files that can still be made there; none where nobody says, as on file systems without a table of them.
    pub(super) async fn free_inodes(&self) -> Option<u64> {
        let root = self.store.snapshot_root().await?;
        let stat = rustix::fs::statvfs(root.as_str()).ok()?;
        (stat.f_files > 0).then_some(stat.f_favail)
    }

    /// Removes what may go, and more if that many bytes are wanted and can be had.
    pub(super) async fn collect(&self, wanted: u64) -> Result<(), Trouble> {
        let _turn = self.turn.lock().await;
        let Some(needed) = self.state().kept(self.config.settle) else {
            return Ok(());
        };
        self.drop_leases(Some(&needed)).await?;
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
        let room = self.room().await;
        let space = room.as_ref().map(|room| (room.free_bytes, room.total_bytes));
        let pressure = room.map_or(0, |room| {
            if room.free_inodes < room.total_inodes / FREE_PART_MIN {
                // What an image has of them is not known: all go that may.
                return u64::MAX;
            }
            (room.total_bytes / FREE_PART_MIN).saturating_sub(room.free_bytes)
        });
        let choice = |wanted: u64| choose(&images, &needed, &self.config, wanted, now);
        let (mut chosen, freed) = choice(wanted.max(pressure));
        if freed < wanted {
            // With images alone it does not fit; what pulls that did not end keep may be what is in the way.
            let can_fit = space.is_some_and(|(free, total)| wanted.saturating_add(free) <= total);
            if can_fit {
                self.drop_leases(None).await?;
            } else {
                (chosen, _) = choice(pressure);
            }
        }
        for image in &chosen {
            let is_needed = |kept: BTreeSet<String>| kept.contains(&image.name);
            if self.state().kept(self.config.settle).is_none_or(is_needed) {
                continue;
            }
            self.known.forget(&image.name);
            self.store.delete_image(&image.name).await?;
            info!(image = image.name, last_used = %image.last_used, "removed an image that nothing needs");
        }
        Ok(())
    }

    /// Pulls that did not end keep what they have for the next attempt: what is not needed goes, or, where room is wanted, all of it.
    async fn drop_leases(&self, needed: Option<&BTreeSet<String>>) -> Result<(), Trouble> {
        for lease in self.store.leases().await? {
            // No pull begins with it between the look and the end.
            let _gate = self.gate.lock().await;
            let is_in_flight = self.in_flight().contains(&lease.image);
            let is_needed = needed.is_some_and(|needed| needed.contains(&lease.image));
            if !is_in_flight && !is_needed {
                info!(
                    image = lease.image,
                    "dropped what a pull that did not end had fetched"
                );
                self.store.delete_lease(&lease.id, needed.is_none()).await?;
            }
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
