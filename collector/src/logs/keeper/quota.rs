//! Room: what is removed or discarded so that the store stays within its quotas and no application waits.
//!
//! Before each splice the growth of the disk use is known; while it does not fit into the run's quota the run's oldest
//! segment goes, while it does not fit into the store's quota the oldest segment of all. On a full disk the oldest segment
//! of all goes, too; when none is left the newest bytes are discarded. Each loss is noted where it happened.

use berth_api::time::Timestamp;

use super::arguments::SEGMENT_BYTES_MAX;
use super::{Keeper, Run, SEGMENT_BYTES_MIN, TURN_BYTES, complain};
use crate::logs::layout::Stream;
use crate::logs::record::flag;
use crate::logs::stream::{StreamLog, Taken};

/// Attempts to store on a full disk, each after a segment was freed: others may eat what we free.
const DISK_FULL_ATTEMPTS: usize = 4;

impl Keeper {
    /// Takes one piece out of the FIFO, by storing or by discarding. `false`: it is empty.
    pub(super) fn store_once(&mut self, slot: u32, stream: Stream) -> bool {
        let Some(pending) = self.pending(slot, stream) else {
            return false;
        };
        let now_ms = Timestamp::now().millis();
        for _ in 0..DISK_FULL_ATTEMPTS {
            let Some(len) = self.make_room(slot, stream, pending, now_ms) else {
                return self.discard(slot, stream, flag::QUOTA, now_ms);
            };
            match self.take(slot, stream, len, now_ms) {
                Taken::Stored(_) => return true,
                Taken::Nothing => return false,
                Taken::Failed => return self.discard(slot, stream, flag::IO_ERROR, now_ms),
                Taken::DiskFull => {
                    if !self.free_oldest(flag::DISK_FULL, now_ms) {
                        break;
                    }
                }
            }
        }
        self.discard(slot, stream, flag::DISK_FULL, now_ms)
    }

    /// Bytes that wait in the FIFO, at most those of one turn; `None` when there are none.
    fn pending(&mut self, slot: u32, stream: Stream) -> Option<u64> {
        let fifo = self.runs.get_mut(&slot)?.stream(stream)?.fifo.as_ref()?;
        let pending = rustix::io::ioctl_fionread(fifo).unwrap_or(0);
        (pending > 0).then(|| pending.min(TURN_BYTES))
    }

    /// Frees what must go before the bytes may be stored, and says how many of them fit into the segment. `None`: no
    /// room within the quotas.
    fn make_room(&mut self, slot: u32, stream: Stream, pending: u64, now_ms: u64) -> Option<usize> {
        let run_quota = self.run_quota(slot)?;
        let segment_bytes = self.segment_bytes(slot)?;
        let run = self.runs.get_mut(&slot)?;
        let dir = run.dir.clone();
        let log = run.stream(stream)?;
        if log.room(segment_bytes) == 0
            && let Err(error) = log.seal(&dir)
        {
            complain("cannot seal a segment", &error);
        }
        // Half a segment at most, so that a turn's bytes never need more than one removal makes free.
        let len = match log.room(segment_bytes) {
            0 => pending.min(segment_bytes),
            room => pending.min(room),
        };
        loop {
            let run = self.runs.get_mut(&slot)?;
            let growth = run.stream(stream)?.growth(len);
            let is_run_full = run.disk_bytes + growth > run_quota;
            if !is_run_full && self.disk_bytes + growth <= self.config.quota_bytes {
                return usize::try_from(len).ok();
            }
            let is_freed = if is_run_full {
                self.free_of_run(slot, flag::QUOTA, now_ms)
            } else {
                self.free_oldest(flag::QUOTA, now_ms)
            };
            if !is_freed {
                return None;
            }
        }
    }

    fn take(&mut self, slot: u32, stream: Stream, len: usize, now_ms: u64) -> Taken {
        let Some(run) = self.runs.get_mut(&slot) else {
            return Taken::Nothing;
        };
        let dir = run.dir.clone();
        let Some(log) = run.stream(stream) else {
            return Taken::Nothing;
        };
        let taken = log.take(&dir, len, now_ms);
        self.recount(slot);
        self.dirty.store(true, std::sync::atomic::Ordering::Relaxed);
        taken
    }

    fn discard(&mut self, slot: u32, stream: Stream, reason: u16, now_ms: u64) -> bool {
        let Some(run) = self.runs.get_mut(&slot) else {
            return false;
        };
        let dir = run.dir.clone();
        let Some(log) = run.stream(stream) else {
            return false;
        };
        let len = usize::try_from(TURN_BYTES).unwrap_or(usize::MAX);
        let discarded = log.discard(&dir, &self.null, len, (reason, now_ms));
        self.recount(slot);
        match discarded {
            Ok(bytes) => bytes > 0,
            Err(error) => {
                // The bytes are gone from the FIFO and in `written_bytes`; the next segment's base tells the loss.
                complain("cannot note a loss", &error);
                false
            }
        }
    }

    /// Removes the oldest segment of one run.
    fn free_of_run(&mut self, slot: u32, reason: u16, now_ms: u64) -> bool {
        let Some(run) = self.runs.get_mut(&slot) else {
            return false;
        };
        let oldest = run
            .streams
            .iter_mut()
            .filter_map(|log| Some((log.oldest_ms()?, log)))
            .min_by_key(|(created_ms, _)| *created_ms);
        let Some((_, log)) = oldest else {
            return false;
        };
        let freed = log.remove_oldest(&run.dir, reason, now_ms);
        self.recount(slot);
        match freed {
            Ok(bytes) => bytes > 0,
            Err(error) => {
                complain("cannot remove the oldest segment", &error);
                false
            }
        }
    }

    /// Removes the oldest segment of the store.
    pub(super) fn free_oldest(&mut self, reason: u16, now_ms: u64) -> bool {
        let oldest = self
            .runs
            .iter()
            .filter_map(|(slot, run)| {
                let created_ms = run.streams.iter().filter_map(StreamLog::oldest_ms).min()?;
                Some((created_ms, *slot))
            })
            .min();
        oldest.is_some_and(|(_, slot)| self.free_of_run(slot, reason, now_ms))
    }

    pub(super) fn recount(&mut self, slot: u32) {
        if let Some(run) = self.runs.get_mut(&slot) {
            let before = run.disk_bytes;
            self.disk_bytes = self.disk_bytes - before + run.count_disk();
        }
    }

    fn run_quota(&self, slot: u32) -> Option<u64> {
        let run: &Run = self.runs.get(&slot)?;
        Some(match run.meta.limits.run_bytes {
            0 => self.config.run_quota_bytes,
            bytes => bytes,
        })
    }

    fn segment_bytes(&self, slot: u32) -> Option<u64> {
        let run: &Run = self.runs.get(&slot)?;
        let wanted = match run.meta.limits.segment_bytes {
            0 => self.config.segment_bytes,
            bytes => bytes,
        };
        let quota = self.run_quota(slot)?.min(self.config.quota_bytes);
        Some(wanted.min(quota / 4).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX))
    }
}
