//! Room kept beside the ledger, given up first when its file system is full: what runs and what stops can still be recorded then.
//!
//! Owner: the ledger's thread. Nothing waits for room here: it looks, and says what it found.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

/// A ledger of 253 replicas and their set is below 1 MiB, its write-ahead log below 4 MiB (SQLite's own limit of 1 000 pages).
pub(super) const RESERVE_BYTES: u64 = 4 << 20;
/// Less than this free counts as full before a write fails: SQLite may go on for long within files that it has.
const LOW_BYTES: u64 = 1 << 20;
/// Full is over at this: the reserve and as much again, so that taking it back does not make it full at once.
const ENOUGH_BYTES: u64 = 2 * RESERVE_BYTES;
/// A file system with fewer free inodes is full, where it counts them.
const LOW_INODES: u64 = 16;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Reserve {
    file: PathBuf,
    dir: PathBuf,
    is_full: bool,
}

impl Reserve {
    /// The reserve of a ledger, taken if there is room for it.
    pub(super) fn of(ledger: &Path) -> Self {
        let mut file = ledger.as_os_str().to_owned();
        file.push(".reserve");
        let dir = ledger.parent().unwrap_or_else(|| Path::new("/")).to_owned();
        let mut reserve = Self {
            file: file.into(),
            dir,
            is_full: false,
        };
        reserve.is_full = !reserve.is_held();
        reserve.look();
        reserve
    }

    /// Whether the file system has no room but what was given up.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    fn is_held(&self) -> bool {
        std::fs::metadata(&self.file).is_ok_and(|file| file.len() == RESERVE_BYTES)
    }

    /// Makes room. False when there was nothing to give up.
    pub(super) fn give_up(&mut self) -> bool {
        self.is_full = true;
        self.is_held() && std::fs::remove_file(&self.file).is_ok()
    }

    /// Looks whether there is room, and takes the reserve back when there is.
    pub(super) fn look(&mut self) {
        let Ok(found) = rustix::fs::statvfs(&self.dir) else {
            return;
        };
        let free_bytes = found.f_bfree.saturating_mul(found.f_frsize);
        let has_inodes = found.f_files == 0 || found.f_ffree >= LOW_INODES;
        if free_bytes < LOW_BYTES || !has_inodes {
            self.is_full = true;
        } else if self.is_full && free_bytes >= ENOUGH_BYTES {
            self.is_full = !(self.is_held() || self.take());
        }
    }

    fn take(&self) -> bool {
        let taken = std::fs::File::create(&self.file).and_then(|mut file| {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES) {
                // A file system that cannot allocate ahead is written to.
                Err(rustix::io::Errno::OPNOTSUPP) => {
                    for _ in 0..RESERVE_BYTES >> 16 {
                        file.write_all(&[0xa5; 1 << 16])?;
                    }
                    Ok(())
                }
                other => other.map_err(std::io::Error::from),
            }
        });
        if taken.is_err() {
            // What was got of it would be missing elsewhere.
            drop(std::fs::remove_file(&self.file));
        }
        taken.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_taken_where_there_is_room_and_given_up_once() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join("ledger.sqlite");
        let mut reserve = Reserve::of(&ledger);
        assert!(!reserve.is_full());
        assert!(dir.path().join("ledger.sqlite.reserve").exists());
        assert!(reserve.give_up());
        assert!(!reserve.give_up(), "there is nothing more");
        assert!(reserve.is_full());
        reserve.look();
        assert!(!reserve.is_full(), "there is room");
        assert!(dir.path().join("ledger.sqlite.reserve").exists());
    }
}
