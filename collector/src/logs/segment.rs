//! One segment of a stream: bytes in `.log`, records in `.idx`; how it grows, how it is recovered, how it is removed.
//!
//! Owned by the keeper's one thread. Bytes go from the FIFO to the file by splice at an explicit offset, so that a kill
//! at any moment leaves each byte either in the FIFO or in the file. The record follows the bytes; when it is missing,
//! only the time of the bytes is.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

use super::layout::{Stream, index_path, log_path, private_file};
use super::record::{FIRST_DATA, FORMAT_VERSION, IndexCheck, RECORD_BYTES, RECORD_SIZE, Record, flag};

/// Records read at once by recovery: 3 KiB, so that the keeper stays small however long an index is.
const RECOVERY_RECORDS: usize = 128;

/// What the keeper remembers of a segment it does not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) created_ms: u64,
    pub(crate) log_bytes: u64,
    pub(crate) index_bytes: u64,
}

impl Segment {
    pub(crate) const fn disk_bytes(&self) -> u64 {
        disk_use(self.log_bytes) + disk_use(self.index_bytes)
    }
}

/// A file's use of the disk, in whole blocks.
pub(crate) const fn disk_use(bytes: u64) -> u64 {
    bytes.div_ceil(4096) * 4096
}

/// Bytes lost at one place of a stream, with the reasons as flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loss {
    pub(crate) bytes: u64,
    pub(crate) reasons: u16,
    pub(crate) now_ms: u64,
}

/// The segment being written.
#[derive(Debug)]
pub(crate) struct ActiveSegment {
    pub(crate) segment: Segment,
    log: File,
    index: File,
    /// Bytes covered by records.
    covered: u64,
    /// The last data record, so that bytes of the same millisecond share one.
    last: Option<Record>,
}

impl ActiveSegment {
    /// Makes an empty segment whose first byte has `base` as its position in the stream.
    pub(crate) fn create(
        dir: &Path,
        stream: Stream,
        number: u64,
        base: u64,
        now_ms: u64,
    ) -> io::Result<Self> {
        let index = private_file()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(index_path(dir, stream, number))?;
        let made = write_head(&index, base, now_ms).and_then(|()| {
            private_file()
                .read(true)
                .write(true)
                .create_new(true)
                .open(log_path(dir, stream, number))
        });
        let log = match made {
            Ok(log) => log,
            Err(error) => {
                // Nothing is stored under the number yet; a left-over index would only waste a block.
                fs::remove_file(index_path(dir, stream, number))?;
                return Err(error);
            }
        };
        Ok(Self {
            segment: Segment {
                number,
                created_ms: now_ms,
                log_bytes: 0,
                index_bytes: FIRST_DATA,
            },
            log,
            index,
            covered: 0,
            last: None,
        })
    }

    /// Opens the last segment of a stream after a restart: the length of the log is the truth, the index is cut back to
    /// it and completed. `base` is used only when the header is unreadable.
    pub(crate) fn recover(dir: &Path, stream: Stream, number: u64, base: u64) -> io::Result<Self> {
        let log = private_file()
            .read(true)
            .write(true)
            .open(log_path(dir, stream, number))?;
        let meta = log.metadata()?;
        let index = private_file()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(index_path(dir, stream, number))?;
        let head = read_head(&index)?;
        let written_ms = modified_ms(&meta);
        let created_ms = head.header.map_or(written_ms, |header| header.time_ms);
        if head.header.is_none() || head.loss.is_none() {
            let lost = head.loss.unwrap_or_else(|| empty_loss(written_ms));
            let base = head.header.map_or(base, |header| header.value);
            index.write_all_at(&header(base, created_ms).encode(), 0)?;
            index.write_all_at(&lost.encode(), RECORD_SIZE)?;
        }
        let check = check_index(&index, meta.len())?;
        index.set_len(check.index_bytes())?;
        let mut active = Self {
            segment: Segment {
                number,
                created_ms,
                log_bytes: meta.len(),
                index_bytes: check.index_bytes(),
            },
            log,
            index,
            covered: check.covered,
            last: None,
        };
        active.cover(written_ms, flag::DATA | flag::RECOVERED);
        Ok(active)
    }

    /// Moves up to `len` bytes out of the FIFO. `Err(AGAIN)`: it is empty. Other errors: nothing was moved.
    pub(crate) fn take(&mut self, fifo: impl AsFd, len: usize, now_ms: u64) -> Result<usize, Errno> {
        let mut offset = self.segment.log_bytes;
        let moved = splice(
            fifo,
            None,
            &self.log,
            Some(&mut offset),
            len,
            SpliceFlags::NONBLOCK,
        )?;
        self.segment.log_bytes += moved as u64;
        if moved > 0 {
            self.cover(now_ms, flag::DATA);
        }
        Ok(moved)
    }

    /// Writes the record of the bytes that have none. On a full disk they stay without one until the next bytes come:
    /// only their time is late then.
    fn cover(&mut self, time_ms: u64, flags: u16) {
        let missing = self.segment.log_bytes - self.covered;
        let Ok(length) = u32::try_from(missing) else {
            return;
        };
        let joined = self
            .last
            .filter(|last| last.time_ms == time_ms && last.flags == flags)
            .and_then(|last| Some((last.value, last.length.checked_add(length)?)));
        let (value, length, place) = match joined {
            Some((value, length)) => (value, length, self.segment.index_bytes - RECORD_SIZE),
            None => (self.covered, length, self.segment.index_bytes),
        };
        if length == 0 {
            return;
        }
        let record = Record {
            value,
            length,
            time_ms,
            flags,
        };
        assert_eq!(
            record.end(),
            self.segment.log_bytes,
            "a record ends with the bytes stored"
        );
        if self.index.write_all_at(&record.encode(), place).is_ok() {
            self.covered = self.segment.log_bytes;
            self.segment.index_bytes = place + RECORD_SIZE;
            self.last = Some(record);
        }
    }
}

/// Adds a loss behind the bytes of a segment, in place: works on a full disk.
pub(crate) fn add_loss(dir: &Path, stream: Stream, number: u64, loss: Loss) -> io::Result<()> {
    let index = private_file()
        .read(true)
        .write(true)
        .open(index_path(dir, stream, number))?;
    let before = read_head(&index)?.loss.filter(|before| before.value > 0);
    let since_ms = before.map_or(loss.now_ms, |before| {
        before.time_ms.saturating_sub(before.length.into())
    });
    let after = Record {
        value: before.map_or(0, |before| before.value).saturating_add(loss.bytes),
        length: u32::try_from(loss.now_ms.saturating_sub(since_ms)).unwrap_or(u32::MAX),
        time_ms: loss.now_ms,
        flags: before.map_or(flag::LOSS, |before| before.flags) | loss.reasons,
    };
    index.write_all_at(&after.encode(), RECORD_SIZE)
}

/// Removes a segment's bytes and keeps its head, which says what was lost.
///
/// A kill after the head is written leaves the mark of removal and the bytes: recovery removes them.
pub(crate) fn remove(
    dir: &Path,
    stream: Stream,
    segment: Segment,
    reasons: u16,
    now_ms: u64,
) -> io::Result<()> {
    let loss = Loss {
        bytes: segment.log_bytes,
        reasons: reasons | flag::REMOVED,
        now_ms,
    };
    add_loss(dir, stream, segment.number, loss)?;
    fs::remove_file(log_path(dir, stream, segment.number))?;
    private_file()
        .write(true)
        .open(index_path(dir, stream, segment.number))?
        .set_len(FIRST_DATA)
}

/// The first two records of an index; `None` where damaged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) header: Option<Record>,
    pub(crate) loss: Option<Record>,
}

impl Head {
    /// Position of the segment's first byte.
    pub(crate) fn base(&self) -> Option<u64> {
        self.header.map(|header| header.value)
    }

    pub(crate) fn lost_bytes(&self) -> u64 {
        self.loss.map_or(0, |loss| loss.value)
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.loss.is_some_and(|loss| loss.flags & flag::REMOVED != 0)
    }
}

pub(crate) fn read_head(index: &File) -> io::Result<Head> {
    let mut bytes = [0; 2 * RECORD_BYTES];
    let read = read_up_to(index, &mut bytes, 0)?;
    let (first, second) = bytes[..read].split_at(read.min(RECORD_BYTES));
    let of_kind = |bytes: &[u8], kind: u16| Record::decode(bytes).filter(|record| record.kind() == kind);
    Ok(Head {
        header: of_kind(first, flag::HEADER).filter(|header| header.length == FORMAT_VERSION),
        loss: of_kind(second, flag::LOSS),
    })
}

/// Reads until the buffer is full or the file ends.
pub(crate) fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// Time of the last change of a file; zero before 1970.
pub(crate) fn modified_ms(meta: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let seconds = u64::try_from(meta.mtime()).unwrap_or(0);
    seconds * 1000 + u64::try_from(meta.mtime_nsec()).unwrap_or(0) / 1_000_000
}

fn header(base: u64, now_ms: u64) -> Record {
    Record {
        value: base,
        length: FORMAT_VERSION,
        time_ms: now_ms,
        flags: flag::HEADER,
    }
}

fn empty_loss(now_ms: u64) -> Record {
    Record {
        value: 0,
        length: 0,
        time_ms: now_ms,
        flags: flag::LOSS,
    }
}

fn write_head(index: &File, base: u64, now_ms: u64) -> io::Result<()> {
    let mut head = [0; 2 * RECORD_BYTES];
    head[..RECORD_BYTES].copy_from_slice(&header(base, now_ms).encode());
    head[RECORD_BYTES..].copy_from_slice(&empty_loss(now_ms).encode());
    index.write_all_at(&head, 0)
}

fn check_index(index: &File, log_bytes: u64) -> io::Result<IndexCheck> {
    let mut check = IndexCheck::new(log_bytes);
    let mut chunk = [0; RECOVERY_RECORDS * RECORD_BYTES];
    loop {
        let read = read_up_to(index, &mut chunk, check.index_bytes())?;
        let mut whole = chunk[..read].chunks_exact(RECORD_BYTES);
        if read == 0 || !whole.all(|record| check.keep(record)) || read < chunk.len() {
            return Ok(check);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    const STREAM: Stream = Stream::Stdout;

    fn fill(dir: &Path, pieces: &[Vec<u8>]) -> Vec<u8> {
        let mut active = ActiveSegment::create(dir, STREAM, 1, 1000, 5).unwrap();
        let mut all = Vec::new();
        for (place, piece) in pieces.iter().enumerate() {
            let (read, write) = rustix::pipe::pipe().unwrap();
            File::from(write).write_all(piece).unwrap();
            assert_eq!(
                active.take(&read, piece.len(), 10 + place as u64 / 2),
                Ok(piece.len())
            );
            all.extend_from_slice(piece);
        }
        all
    }

    #[test]
    fn bytes_of_one_millisecond_share_a_record() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &[b"a".to_vec(), b"b".to_vec(), b"c".to_vec()]);
        let index = fs::read(index_path(dir.path(), STREAM, 1)).unwrap();
        assert_eq!(index.len(), RECORD_BYTES * 4);
        let first = Record::decode(&index[2 * RECORD_BYTES..]).unwrap();
        assert_eq!((first.value, first.length), (0, 2));
    }

    #[test]
    fn losses_of_one_place_add_up() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &[b"abc".to_vec()]);
        let loss = |bytes, reasons, now_ms| Loss {
            bytes,
            reasons,
            now_ms,
        };
        add_loss(dir.path(), STREAM, 1, loss(7, flag::DISK_FULL, 100)).unwrap();
        add_loss(dir.path(), STREAM, 1, loss(5, flag::QUOTA, 160)).unwrap();
        let head = read_head(&File::open(index_path(dir.path(), STREAM, 1)).unwrap()).unwrap();
        let record = head.loss.unwrap();
        assert_eq!((record.value, record.length, record.time_ms), (12, 60, 160));
        assert_eq!(record.flags & flag::REASONS, flag::DISK_FULL | flag::QUOTA);
        assert_eq!(head.base(), Some(1000));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Proves: whatever happened to the index, recovery keeps every byte of the log, covers all of them with
        /// records, and a second recovery changes nothing.
        #[test]
        fn recovery_keeps_every_byte_and_covers_it(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 1..12),
            index_cut in any::<prop::sample::Index>(),
            damage in prop::option::of(any::<prop::sample::Index>()),
            log_cut in prop::option::of(any::<prop::sample::Index>()),
            garbage in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut bytes = fill(dir.path(), &pieces);
            let index_file = index_path(dir.path(), STREAM, 1);
            let mut index = fs::read(&index_file).unwrap();
            index.truncate(index_cut.index(index.len() + 1));
            index.extend_from_slice(&garbage);
            if let Some(place) = damage.filter(|_| !index.is_empty()) {
                let place = place.index(index.len());
                index[place] ^= 0x10;
            }
            fs::write(&index_file, &index).unwrap();
            if let Some(cut) = log_cut {
                bytes.truncate(cut.index(bytes.len() + 1));
                fs::write(log_path(dir.path(), STREAM, 1), &bytes).unwrap();
            }
            let active = ActiveSegment::recover(dir.path(), STREAM, 1, 1000).unwrap();
            prop_assert_eq!(active.segment.log_bytes, bytes.len() as u64);
            drop(active);
            prop_assert_eq!(fs::read(log_path(dir.path(), STREAM, 1)).unwrap(), &bytes[..]);
            let mended = fs::read(&index_file).unwrap();
            let mut check = IndexCheck::new(bytes.len() as u64);
            for record in mended[2 * RECORD_BYTES..].chunks(RECORD_BYTES) {
                prop_assert!(check.keep(record));
            }
            prop_assert_eq!(check.covered, bytes.len() as u64);
            let head = read_head(&File::open(&index_file).unwrap()).unwrap();
            prop_assert_eq!(head.base(), Some(1000));
            ActiveSegment::recover(dir.path(), STREAM, 1, 0).unwrap();
            prop_assert_eq!(fs::read(&index_file).unwrap(), mended);
        }
    }
}
