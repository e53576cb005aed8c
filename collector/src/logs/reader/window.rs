//! One stream of one run as lines: a window over its segments, the times from their indexes, the gaps between them.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::{Edge, LINE_BYTES_MAX, LineStream, LogLine};
use crate::logs::cursor::Place;
use crate::logs::layout::{Stream, index_path, list_segments, log_path};
use crate::logs::record::{FIRST_DATA, RECORD_BYTES, RECORD_SIZE, Record, flag};
use crate::logs::segment::{modified_ms, read_head, read_up_to};

const WINDOW_BYTES: usize = 64 * 1024;
const INDEX_RECORDS: usize = 512;

/// What the end of the stored bytes means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// More may come: an unfinished line waits.
    Open,
    /// More may come, but not for this reader: an unfinished line is given as partial.
    Cut,
    /// Nothing more comes: an unfinished line is the last one.
    Closed,
}

/// Bytes of the window that lie together in one segment and came at one time.
#[derive(Debug, Clone, Copy)]
struct Span {
    /// Place in the window.
    start: usize,
    place: Place,
    time_ms: u64,
}

#[derive(Debug)]
struct OpenSegment {
    number: u64,
    log: File,
    times: Option<Times>,
}

/// Reads one stream; see the module.
#[derive(Debug)]
pub(super) struct StreamReader {
    dir: PathBuf,
    pub(super) stream: Stream,
    run: u32,
    /// The next byte to read into the window.
    next: Place,
    segment: Option<OpenSegment>,
    window: Vec<u8>,
    /// Bytes of the window that were given already.
    consumed: usize,
    /// No newline lies in the window between `consumed` and this.
    scanned: usize,
    spans: VecDeque<Span>,
    /// Told when the window is empty: it lies behind the bytes in it.
    gap: Option<LogLine>,
    head: Option<(LogLine, Place)>,
    edge: Edge,
    /// Behind the last line given.
    given: Place,
}

impl StreamReader {
    pub(super) fn new(dir: &Path, stream: Stream, run: u32, place: Place) -> Self {
        Self {
            dir: dir.to_path_buf(),
            stream,
            run,
            next: place,
            segment: None,
            window: Vec::new(),
            consumed: 0,
            scanned: 0,
            spans: VecDeque::new(),
            gap: None,
            head: None,
            edge: Edge::Line,
            given: place,
        }
    }

    pub(super) fn set_edge(&mut self, edge: Edge) {
        self.edge = edge;
    }

    /// Where another reader goes on.
    pub(super) const fn place(&self) -> Place {
        self.given
    }

    /// Takes the line that `prepare` made ready.
    pub(super) fn pop(&mut self) -> Option<LogLine> {
        let (line, behind) = self.head.take()?;
        self.given = behind;
        Some(line)
    }

    /// Makes the next line ready and tells its time; `None` when there is none (yet).
    pub(super) fn prepare(&mut self, ending: Ending) -> io::Result<Option<u64>> {
        while self.head.is_none() {
            if self.cut_line() {
                continue;
            }
            if self.gap.is_some() {
                if self.rest() == 0 {
                    let behind = self.next;
                    self.head = self.gap.take().map(|gap| (gap, behind));
                    self.edge = Edge::Line;
                } else {
                    self.cut(self.rest(), 0, Partial::Yes);
                }
                continue;
            }
            if self.fill(ending)? {
                continue;
            }
            match ending {
                Ending::Open => return Ok(None),
                Ending::Cut | Ending::Closed if self.rest() == 0 => return Ok(None),
                Ending::Cut => self.cut(self.rest(), 0, Partial::Yes),
                Ending::Closed => self.cut(self.rest(), 0, Partial::No),
            }
        }
        Ok(self.head.as_ref().map(|(line, _)| line.time_ms))
    }

    /// Cuts a whole or an overlong line off the window.
    fn cut_line(&mut self) -> bool {
        let end = self.window.len().min(self.consumed + LINE_BYTES_MAX + 1);
        let newline = self.window[self.scanned..end]
            .iter()
            .position(|byte| *byte == b'\n');
        match newline {
            Some(found) => self.cut(self.scanned - self.consumed + found, 1, Partial::No),
            None if self.rest() > LINE_BYTES_MAX => self.cut(LINE_BYTES_MAX, 0, Partial::Yes),
            None => {
                self.scanned = end;
                return false;
            }
        }
        true
    }

    /// Moves `length` bytes from the window to the head and drops `skipped` more.
    fn cut(&mut self, length: usize, skipped: usize, partial: Partial) {
        let time_ms = self.spans.front().map_or(0, |span| span.time_ms);
        let line = self.window[self.consumed..self.consumed + length].to_vec();
        self.consumed += length + skipped;
        self.scanned = self.consumed;
        let behind = self.drop_spans();
        let is_unwanted = self.edge == Edge::Inside;
        if is_unwanted {
            self.given = behind;
            if partial == Partial::No {
                self.edge = Edge::Line;
            }
            return;
        }
        let line = LogLine {
            time_ms,
            stream: self.stream.into(),
            line,
            partial: partial == Partial::Yes,
            run: self.run,
        };
        self.head = Some((line, behind));
    }

    /// Bytes of the window still to give.
    fn rest(&self) -> usize {
        self.window.len() - self.consumed
    }

    /// Forgets the spans of the consumed bytes; returns the place behind them.
    fn drop_spans(&mut self) -> Place {
        let taken = self.consumed;
        let mut front = None;
        while self.spans.front().is_some_and(|span| span.start <= taken) {
            front = self.spans.pop_front();
        }
        let is_empty = self.rest() == 0;
        match front {
            Some(span) if !is_empty => {
                let gone = (taken - span.start) as u64;
                let place = Place {
                    offset: span.place.offset + gone,
                    position: span.place.position + gone,
                    ..span.place
                };
                self.spans.push_front(Span {
                    start: taken,
                    place,
                    ..span
                });
                place
            }
            Some(_) | None => self.next,
        }
    }

    /// Moves what is still to give to the front of the window.
    fn compact(&mut self) {
        self.window.drain(..self.consumed);
        self.scanned -= self.consumed;
        for span in &mut self.spans {
            span.start = span.start.saturating_sub(self.consumed);
        }
        self.consumed = 0;
    }

    /// Reads more bytes or finds a gap; `false` at the end of what is stored.
    fn fill(&mut self, ending: Ending) -> io::Result<bool> {
        if self.segment.is_none() {
            self.open_segment()?;
        }
        if self.read_window()? {
            return Ok(true);
        }
        let files = list_segments(&self.dir, self.stream)?;
        // A segment is whole once a later one exists; what came between the read and the listing is read first.
        if self.read_window()? {
            return Ok(true);
        }
        let later = files
            .logs
            .iter()
            .copied()
            .find(|number| *number > self.next.segment);
        let end = match later {
            Some(number) => self.base_of(number)?,
            None if ending == Ending::Open => None,
            None => self.end_of(files.indexes.last().copied())?,
        };
        let lost = end.map_or(0, |end| end.saturating_sub(self.next.position));
        if lost > 0 {
            self.gap = Some(self.gap_line(lost, &files.indexes, later)?);
        }
        self.next.position += lost;
        if let Some(number) = later {
            let position = end.unwrap_or(self.next.position);
            self.next = Place {
                segment: number,
                offset: 0,
                position,
            };
            self.segment = None;
        }
        Ok(lost > 0 || later.is_some())
    }

    fn open_segment(&mut self) -> io::Result<()> {
        let log = match File::open(log_path(&self.dir, self.stream, self.next.segment)) {
            Ok(log) => log,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let index = File::open(index_path(&self.dir, self.stream, self.next.segment)).ok();
        self.segment = Some(OpenSegment {
            number: self.next.segment,
            log,
            times: index.map(Times::new),
        });
        Ok(())
    }

    fn read_window(&mut self) -> io::Result<bool> {
        self.compact();
        let Some(segment) = &mut self.segment else {
            return Ok(false);
        };
        assert_eq!(
            segment.number, self.next.segment,
            "the open segment is the one read next"
        );
        let start = self.window.len();
        self.window.resize(start + WINDOW_BYTES, 0);
        let read = read_up_to(&segment.log, &mut self.window[start..], self.next.offset);
        self.window.truncate(start + *read.as_ref().unwrap_or(&0));
        let end = self.next.offset + read? as u64;
        let mut written_ms = None;
        while self.next.offset < end {
            let known = match &mut segment.times {
                Some(times) => times.time_of(self.next.offset)?,
                None => None,
            };
            let (time_ms, covered) = match (known, written_ms) {
                (Some(known), _) => known,
                (None, Some(written_ms)) => (written_ms, end),
                // Bytes without a record: stored this moment, or the record was lost.
                (None, None) => {
                    let read_ms = modified_ms(&segment.log.metadata()?);
                    (*written_ms.insert(read_ms), end)
                }
            };
            self.spans.push_back(Span {
                start: self.window.len() - usize::try_from(end - self.next.offset).unwrap_or(0),
                place: self.next,
                time_ms,
            });
            let length = covered.min(end) - self.next.offset;
            self.next.offset += length;
            self.next.position += length;
        }
        Ok(self.window.len() > start)
    }

    fn base_of(&self, number: u64) -> io::Result<Option<u64>> {
        match File::open(index_path(&self.dir, self.stream, number)) {
            Ok(index) => Ok(read_head(&index)?.base()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The position behind all that was written, as far as the last index tells.
    fn end_of(&self, last: Option<u64>) -> io::Result<Option<u64>> {
        let Some(number) = last else {
            return Ok(None);
        };
        let index = match File::open(index_path(&self.dir, self.stream, number)) {
            Ok(index) => index,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let head = read_head(&index)?;
        let stored = if head.is_removed() || number != self.next.segment {
            0
        } else {
            self.next.offset
        };
        Ok(head.base().map(|base| base + stored + head.lost_bytes()))
    }

    fn gap_line(&self, lost: u64, indexes: &[u64], later: Option<u64>) -> io::Result<LogLine> {
        let (mut reasons, mut since_ms, mut until_ms) = (0, u64::MAX, 0);
        let passed = indexes
            .iter()
            .filter(|number| **number >= self.next.segment && later.is_none_or(|later| **number < later));
        for number in passed {
            let Ok(index) = File::open(index_path(&self.dir, self.stream, *number)) else {
                continue;
            };
            if let Some(loss) = read_head(&index)?.loss.filter(|loss| loss.value > 0) {
                reasons |= loss.flags & flag::REASONS;
                since_ms = since_ms.min(loss.time_ms.saturating_sub(loss.length.into()));
                until_ms = until_ms.max(loss.time_ms);
            }
        }
        let why: Vec<&str> = [
            (flag::QUOTA, "quota"),
            (flag::DISK_FULL, "disk full"),
            (flag::IO_ERROR, "disk error"),
        ]
        .into_iter()
        .filter(|(reason, _)| reasons & reason != 0)
        .map(|(_, name)| name)
        .collect();
        let why = if why.is_empty() {
            "unknown".to_owned()
        } else {
            why.join(", ")
        };
        let span = until_ms.saturating_sub(since_ms);
        let stream = self.stream;
        Ok(LogLine {
            time_ms: until_ms,
            stream: LineStream::Keeper,
            line: format!("{lost} bytes of {stream} were lost here within {span} ms: {why}").into_bytes(),
            partial: false,
            run: self.run,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Partial {
    Yes,
    No,
}

/// Times of a segment's bytes, read along its index as the offsets rise.
#[derive(Debug)]
struct Times {
    index: File,
    /// Place in the index of the first record not in `records`.
    next: u64,
    records: VecDeque<Record>,
}

impl Times {
    fn new(index: File) -> Self {
        Self {
            index,
            next: FIRST_DATA,
            records: VecDeque::new(),
        }
    }

    /// The time of the byte at an offset, and up to which offset it holds.
    fn time_of(&mut self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let mut is_fresh = false;
        loop {
            while self.records.front().is_some_and(|record| record.end() <= offset) {
                self.records.pop_front();
            }
            if let Some(record) = self.records.front() {
                return Ok(Some((record.time_ms, record.end())));
            }
            if is_fresh && !self.refill()? || !is_fresh && !self.reread_last()? {
                return Ok(None);
            }
            is_fresh = true;
        }
    }

    /// The last record seen may have grown since: bytes of one millisecond share one.
    fn reread_last(&mut self) -> io::Result<bool> {
        self.next = self.next.saturating_sub(RECORD_SIZE).max(FIRST_DATA);
        self.refill()
    }

    fn refill(&mut self) -> io::Result<bool> {
        let mut bytes = vec![0; INDEX_RECORDS * RECORD_BYTES];
        let read = read_up_to(&self.index, &mut bytes, self.next)?;
        let before = self.next;
        for record in bytes[..read].chunks_exact(RECORD_BYTES) {
            let Some(record) = Record::decode(record).filter(|record| record.kind() == flag::DATA) else {
                break;
            };
            self.records.push_back(record);
            self.next += RECORD_SIZE;
        }
        Ok(self.next > before)
    }
}
