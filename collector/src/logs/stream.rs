//! One stream of a run: its FIFO, its segments in order, and the count of what was written and what was lost.
//!
//! Owned by the keeper's one thread. Segments are made when bytes come, so an idle stream costs no disk.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

use std::collections::VecDeque;

use super::layout::{Stream, index_path, list_segments, log_path};
use super::record::{FIRST_DATA, RECORD_SIZE};
use super::segment::{self, ActiveSegment, Loss, Segment, disk_use, read_head};

/// What became of one attempt to store bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    Stored(usize),
    /// The FIFO is empty, or no writer is left.
    Nothing,
    /// No room on the disk; the bytes are still in the FIFO.
    DiskFull,
    /// The disk failed; the bytes are still in the FIFO.
    Failed,
}

/// State of a stream in the keeper.
#[derive(Debug)]
pub(crate) struct StreamLog {
    pub(crate) stream: Stream,
    /// The read end while the run is open.
    pub(crate) fifo: Option<OwnedFd>,
    /// Segments that are not written any more, oldest first.
    sealed: VecDeque<Segment>,
    active: Option<ActiveSegment>,
    /// The newest removed segment whose head is kept.
    tombstone: Option<u64>,
    /// The highest number ever used.
    last_number: u64,
    /// Position of the next byte: all bytes ever taken from the FIFO.
    pub(crate) written_bytes: u64,
    /// Whether the stream waits in the keeper's queue.
    pub(crate) queued: bool,
}

impl StreamLog {
    /// A stream with nothing stored.
    pub(crate) const fn new(stream: Stream) -> Self {
        Self {
            stream,
            fifo: None,
            sealed: VecDeque::new(),
            active: None,
            tombstone: None,
            last_number: 0,
            written_bytes: 0,
            queued: false,
        }
    }

    /// Reads what is stored; ends removals that a kill interrupted and recovers the last segment.
    pub(crate) fn recover(dir: &Path, stream: Stream) -> io::Result<Self> {
        let files = list_segments(dir, stream)?;
        let mut log = Self::new(stream);
        let mut numbers: Vec<u64> = files.logs.iter().chain(&files.indexes).copied().collect();
        numbers.sort_unstable();
        numbers.dedup();
        for (place, number) in numbers.iter().copied().enumerate() {
            let has_log = files.logs.binary_search(&number).is_ok();
            let is_last = place + 1 == numbers.len();
            log.recover_segment(dir, number, has_log, is_last)?;
            log.last_number = number;
        }
        Ok(log)
    }

    fn recover_segment(&mut self, dir: &Path, number: u64, has_log: bool, is_last: bool) -> io::Result<()> {
        let index = index_path(dir, self.stream, number);
        let head = match File::open(&index) {
            Ok(file) => Some(read_head(&file)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let base = head.and_then(|head| head.base()).unwrap_or(self.written_bytes);
        let lost = head.map_or(0, |head| head.lost_bytes());
        if !has_log || head.is_some_and(|head| head.is_removed()) {
            if has_log {
                fs::remove_file(log_path(dir, self.stream, number))?;
            }
            self.written_bytes = base + lost;
            return self.bury(dir, number);
        }
        let recovered = if is_last || head.is_none_or(|head| head.header.is_none()) {
            let active = ActiveSegment::recover(dir, self.stream, number, base)?;
            let recovered = active.segment;
            if is_last && lost == 0 {
                self.active = Some(active);
            }
            recovered
        } else {
            Segment {
                number,
                created_ms: head
                    .and_then(|head| head.header)
                    .map_or(0, |header| header.time_ms),
                log_bytes: fs::metadata(log_path(dir, self.stream, number))?.len(),
                index_bytes: fs::metadata(&index)?.len(),
            }
        };
        self.written_bytes = base + recovered.log_bytes + lost;
        if self.active.is_none() {
            self.sealed.push_back(recovered);
        }
        Ok(())
    }

    /// Keeps the head of a removed segment as the only one.
    fn bury(&mut self, dir: &Path, number: u64) -> io::Result<()> {
        let before = self.tombstone.replace(number);
        match before {
            Some(before) if before != number => fs::remove_file(index_path(dir, self.stream, before)),
            Some(_) | None => Ok(()),
        }
    }

    fn segments(&self) -> impl Iterator<Item = Segment> {
        let active = self.active.as_ref().map(|active| active.segment);
        self.sealed.iter().copied().chain(active)
    }

    pub(crate) fn segment_count(&self) -> u64 {
        self.segments().count() as u64
    }

    pub(crate) fn stored_bytes(&self) -> u64 {
        self.segments().map(|segment| segment.log_bytes).sum()
    }

    /// Disk use, in whole blocks.
    pub(crate) fn disk_bytes(&self) -> u64 {
        let tombstone = self.tombstone.map_or(0, |_| disk_use(FIRST_DATA));
        self.segments().map(|segment| segment.disk_bytes()).sum::<u64>() + tombstone
    }

    /// When the oldest segment that holds bytes was made.
    pub(crate) fn oldest_ms(&self) -> Option<u64> {
        self.segments()
            .next()
            .filter(|oldest| oldest.log_bytes > 0)
            .map(|oldest| oldest.created_ms)
    }

    /// How many bytes still fit into the active segment, zero when there is none.
    pub(crate) fn room(&self, segment_bytes: u64) -> u64 {
        self.active
            .as_ref()
            .map_or(0, |active| segment_bytes.saturating_sub(active.segment.log_bytes))
    }

    /// By how much the disk use can grow when `len` bytes are stored.
    pub(crate) fn growth(&self, len: u64) -> u64 {
        match self.active.as_ref().map(|active| active.segment) {
            Some(now) => {
                let after = disk_use(now.log_bytes + len) + disk_use(now.index_bytes + RECORD_SIZE);
                after - now.disk_bytes()
            }
            None => disk_use(len) + disk_use(FIRST_DATA + RECORD_SIZE),
        }
    }

    /// Closes the active segment, so that the next bytes start a new one. An empty one is taken away.
    pub(crate) fn seal(&mut self, dir: &Path) -> io::Result<()> {
        let Some(active) = self.active.take() else {
            return Ok(());
        };
        if active.segment.log_bytes > 0 {
            self.sealed.push_back(active.segment);
            return Ok(());
        }
        // Its number was never seen with bytes; positions in the headers keep the order exact.
        fs::remove_file(log_path(dir, self.stream, active.segment.number))?;
        fs::remove_file(index_path(dir, self.stream, active.segment.number))
    }

    /// Moves up to `len` bytes from the FIFO to the active segment, which is made when there is none.
    pub(crate) fn take(&mut self, dir: &Path, len: usize, now_ms: u64) -> Taken {
        let Some(fifo) = &self.fifo else {
            return Taken::Nothing;
        };
        let active = match self.active.take() {
            Some(active) => Ok(active),
            None => ActiveSegment::create(dir, self.stream, self.last_number + 1, self.written_bytes, now_ms),
        };
        let active = match active {
            Ok(active) => self.active.insert(active),
            Err(error) => return fault(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        };
        self.last_number = active.segment.number;
        match active.take(fifo, len, now_ms) {
            Ok(0) | Err(Errno::AGAIN | Errno::INTR) => Taken::Nothing,
            Ok(moved) => {
                self.written_bytes += moved as u64;
                Taken::Stored(moved)
            }
            Err(error) => fault(error),
        }
    }

    /// Throws away up to `len` bytes of the FIFO and notes them as lost behind the last segment.
    ///
    /// Where no segment is left to hold the note, the base of the next one tells the loss.
    pub(crate) fn discard(
        &mut self,
        dir: &Path,
        null: &File,
        len: usize,
        loss: (u16, u64),
    ) -> io::Result<u64> {
        self.seal(dir)?;
        let Some(fifo) = &self.fifo else {
            return Ok(0);
        };
        let moved = match splice(fifo, None, null, None, len, SpliceFlags::NONBLOCK) {
            Ok(moved) => moved as u64,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        self.written_bytes += moved;
        let holder = self.sealed.back().map(|last| last.number).or(self.tombstone);
        if let Some(number) = holder.filter(|_| moved > 0) {
            let (reasons, now_ms) = loss;
            let bytes = moved;
            segment::add_loss(
                dir,
                self.stream,
                number,
                Loss {
                    bytes,
                    reasons,
                    now_ms,
                },
            )?;
        }
        Ok(moved)
    }

    /// Removes the oldest segment, the active one when there is no other, and notes its bytes as lost.
    /// Returns how much disk that freed; zero when nothing holds bytes.
    pub(crate) fn remove_oldest(&mut self, dir: &Path, reasons: u16, now_ms: u64) -> io::Result<u64> {
        let before = self.disk_bytes();
        if self.sealed.is_empty() {
            self.seal(dir)?;
        }
        let Some(oldest) = self.sealed.front().copied() else {
            return Ok(before.saturating_sub(self.disk_bytes()));
        };
        segment::remove(dir, self.stream, oldest, reasons, now_ms)?;
        self.sealed.pop_front();
        self.bury(dir, oldest.number)?;
        Ok(before.saturating_sub(self.disk_bytes()))
    }
}

fn fault(error: Errno) -> Taken {
    match error {
        Errno::NOSPC | Errno::DQUOT => Taken::DiskFull,
        _ => Taken::Failed,
    }
}
