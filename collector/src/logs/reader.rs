//! From segments to lines: all runs of a replica in order, both streams of a run merged by time.
//!
//! The reader needs no keeper: it reads the store's files while the keeper writes them. It is synchronous and holds at
//! most one window of 64 KiB and one line of 256 KiB per stream. In [`Mode::Follow`], [`Reader::next_line`] says `None`
//! for "no more for now": ask again after [`POLL_EVERY`]; asking costs a few system calls.
//!
//! Time of a line: when the keeper took its first byte. Lines of one stream are never reordered; lines of the two
//! streams are merged by time as far as both are there.

mod start;
mod window;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cursor::{Cursor, Place};
use super::layout::{RunMeta, Stream, list_runs, replica_dir};
use window::{Ending, StreamReader};

/// A longer line is given in pieces of this size, all but the last marked partial.
pub const LINE_BYTES_MAX: usize = 256 * 1024;
/// How long to wait in [`Mode::Follow`] before asking again.
pub const POLL_EVERY: Duration = Duration::from_millis(100);

/// Whose words a line holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LineStream {
    Stdout,
    Stderr,
    /// The keeper's: so many bytes were lost here, and why.
    Keeper,
}

impl From<Stream> for LineStream {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Stdout => Self::Stdout,
            Stream::Stderr => Self::Stderr,
        }
    }
}

/// One line, without its newline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub time_ms: u64,
    pub stream: LineStream,
    pub line: Vec<u8>,
    /// Goes on in the next line of the stream: cut at the size limit, at a gap, or not ended yet.
    pub partial: bool,
    pub run: u32,
}

/// What happens at the end of what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The answer ends there.
    Snapshot,
    /// Wait for more, also for the runs to come.
    Follow,
}

/// Which lines are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadOptions {
    /// Lines of this time and later, Unix milliseconds; 0 for all.
    pub since_ms: u64,
    /// At most so many of the last lines there are now.
    pub tail_lines: Option<u64>,
    /// Go on where another reader stopped.
    pub from: Option<Cursor>,
    pub mode: Mode,
}

impl ReadOptions {
    /// All that is stored.
    #[must_use]
    pub const fn all(mode: Mode) -> Self {
        Self {
            since_ms: 0,
            tail_lines: None,
            from: None,
            mode,
        }
    }
}

/// Why lines cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("cannot read the log of {stream} in {dir}")]
    Stream {
        dir: PathBuf,
        stream: Stream,
        source: io::Error,
    },
    #[error("cannot list the runs in {dir}")]
    Runs { dir: PathBuf, source: io::Error },
}

/// Reads the lines of one replica.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    since_ms: u64,
    mode: Mode,
    /// Lines still to give; only a snapshot with a tail has a bound.
    left: Option<u64>,
    run: Option<RunReader>,
    /// Runs below this one are done with.
    next_run: u32,
}

#[derive(Debug)]
struct RunReader {
    run: u32,
    dir: PathBuf,
    streams: [StreamReader; 2],
}

impl Reader {
    /// A reader at the start that the options ask for. A replica without a log is no error: it has no lines yet.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn open(store: &Path, replica: &str, options: ReadOptions) -> Result<Self, ReadError> {
        let dir = replica_dir(store, replica);
        let mut reader = Self::at(dir, options.from.unwrap_or_default(), options);
        let since = start::since(&reader.dir, reader.cursor(), options.since_ms)?;
        reader.seek(since);
        if let Some(lines) = options.tail_lines {
            let tail = start::tail(&reader.dir, lines)?.max_by_place(since);
            reader.seek(tail);
            let skip = reader.count_lines(tail)?.saturating_sub(lines);
            for _ in 0..skip {
                reader.next_line()?;
            }
            reader.left = (options.mode == Mode::Snapshot).then_some(lines);
        }
        Ok(reader)
    }

    /// Whether the store holds any run of the replica.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn is_known(store: &Path, replica: &str) -> Result<bool, ReadError> {
        Ok(!runs(&replica_dir(store, replica))?.is_empty())
    }

    fn at(dir: PathBuf, cursor: Cursor, options: ReadOptions) -> Self {
        let mut reader = Self {
            dir,
            since_ms: options.since_ms,
            mode: options.mode,
            left: None,
            run: None,
            next_run: 0,
        };
        reader.seek(Start::from(cursor));
        reader
    }

    fn seek(&mut self, start: Start) {
        let run = start.cursor.run;
        let dir = self.dir.join(run.to_string());
        let streams = Stream::ALL.map(|stream| {
            let mut reader = StreamReader::new(&dir, stream, run, start.cursor.place(stream));
            reader.set_edge(start.edges[stream.index()]);
            reader
        });
        self.next_run = run.saturating_add(1);
        self.run = Some(RunReader { run, dir, streams });
    }

    /// How many lines there are now from a start on.
    fn count_lines(&self, start: Start) -> Result<u64, ReadError> {
        let options = ReadOptions {
            since_ms: self.since_ms,
            ..ReadOptions::all(Mode::Snapshot)
        };
        let mut counter = Self::at(self.dir.clone(), start.cursor, options);
        counter.seek(start);
        let mut lines = 0;
        while counter.next_line()?.is_some() {
            lines += 1;
        }
        Ok(lines)
    }

    /// Where to go on later: behind the last line given.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        let mut cursor = Cursor {
            run: self.next_run,
            ..Cursor::default()
        };
        if let Some(run) = &self.run {
            cursor.run = run.run;
            for stream in Stream::ALL {
                cursor.set(stream, run.streams[stream.index()].place());
            }
        }
        cursor
    }

    /// The next line. `None`: no more for now in [`Mode::Follow`], no more at all in [`Mode::Snapshot`].
    ///
    /// # Errors
    /// When a file of the store cannot be read.
    pub fn next_line(&mut self) -> Result<Option<LogLine>, ReadError> {
        if self.left == Some(0) {
            return Ok(None);
        }
        loop {
            match self.any_line()? {
                Some(line) if line.time_ms < self.since_ms => {}
                Some(line) => {
                    self.left = self.left.map(|left| left - 1);
                    return Ok(Some(line));
                }
                None => return Ok(None),
            }
        }
    }

    /// Lines up to a count and a sum of bytes, at least one when there is any. Empty: as `None` of
    /// [`Reader::next_line`].
    ///
    /// # Errors
    /// When a file of the store cannot be read.
    pub fn next_batch(&mut self, lines_max: usize, bytes_max: usize) -> Result<Vec<LogLine>, ReadError> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < lines_max && bytes < bytes_max {
            let Some(line) = self.next_line()? else {
                break;
            };
            bytes += line.line.len();
            batch.push(line);
        }
        Ok(batch)
    }

    fn any_line(&mut self) -> Result<Option<LogLine>, ReadError> {
        loop {
            if let Some(run) = &mut self.run {
                if let Some(line) = run.next_line(Ending::Open)? {
                    return Ok(Some(line));
                }
                // Asked for before the last look at the bytes: what was stored before the close is seen.
                let is_closed = run.is_closed();
                let is_over = is_closed || self.has_later_run()?;
                let ending = match (is_over, self.mode) {
                    (true, _) => Ending::Closed,
                    (false, Mode::Snapshot) => Ending::Cut,
                    (false, Mode::Follow) => return Ok(None),
                };
                if let Some(run) = &mut self.run
                    && let Some(line) = run.next_line(ending)?
                {
                    return Ok(Some(line));
                }
                if !is_over {
                    return Ok(None);
                }
            }
            let Some(next) = runs(&self.dir)?.into_iter().find(|run| *run >= self.next_run) else {
                return Ok(None);
            };
            self.seek(Start::from(Cursor {
                run: next,
                ..Cursor::default()
            }));
        }
    }

    fn has_later_run(&self) -> Result<bool, ReadError> {
        Ok(runs(&self.dir)?.last().is_some_and(|last| *last >= self.next_run))
    }
}

impl RunReader {
    /// A run without `run.json` is one that is not there (yet): never closed.
    fn is_closed(&self) -> bool {
        RunMeta::read(&self.dir).is_ok_and(|meta| meta.closed_ms.is_some())
    }

    fn next_line(&mut self, ending: Ending) -> Result<Option<LogLine>, ReadError> {
        let mut times = [None; 2];
        for (stream, time) in self.streams.iter_mut().zip(&mut times) {
            *time = stream.prepare(ending).map_err(|source| ReadError::Stream {
                dir: self.dir.clone(),
                stream: stream.stream,
                source,
            })?;
        }
        let [out, err] = times;
        let first = match (out, err) {
            (None, None) => return Ok(None),
            (Some(_), None) => 0,
            (None, Some(_)) => 1,
            (Some(out), Some(err)) => usize::from(err < out),
        };
        Ok(self.streams[first].pop())
    }
}

/// Whether a start is at the start of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Edge {
    #[default]
    Line,
    /// In the middle of a line that is not wanted: go on behind its newline.
    Inside,
}

/// Where a reader starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Start {
    cursor: Cursor,
    edges: [Edge; 2],
}

impl From<Cursor> for Start {
    fn from(cursor: Cursor) -> Self {
        Self {
            cursor,
            edges: [Edge::Line; 2],
        }
    }
}

impl Start {
    /// The later of two starts, stream by stream.
    fn max_by_place(self, other: Self) -> Self {
        match self.cursor.run.cmp(&other.cursor.run) {
            std::cmp::Ordering::Less => return other,
            std::cmp::Ordering::Greater => return self,
            std::cmp::Ordering::Equal => {}
        }
        let mut start = self;
        for stream in Stream::ALL {
            let key = |place: Place| (place.segment, place.offset);
            if key(other.cursor.place(stream)) > key(self.cursor.place(stream)) {
                start.cursor.set(stream, other.cursor.place(stream));
                start.edges[stream.index()] = other.edges[stream.index()];
            }
        }
        start
    }
}

fn runs(dir: &Path) -> Result<Vec<u32>, ReadError> {
    list_runs(dir).map_err(|source| ReadError::Runs {
        dir: dir.to_path_buf(),
        source,
    })
}
