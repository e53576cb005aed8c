//! Where to start reading: the segment in which a time lies, and the place of the last lines.

use std::fs::File;
use std::io;
use std::path::Path;

use super::{Edge, ReadError, Start, runs};
use crate::logs::cursor::{Cursor, Place};
use crate::logs::layout::{Stream, index_path, list_segments, log_path};
use crate::logs::record::{FIRST_DATA, RECORD_BYTES, RECORD_SIZE, Record};
use crate::logs::segment::{modified_ms, read_head, read_up_to};

/// Read backwards in pieces of this size.
const WINDOW_BYTES: u64 = 64 * 1024;

/// The first place, from a cursor on, behind which lines of `since_ms` or later lie. Lines before that time may follow
/// it still; the reader passes over them.
pub(super) fn since(dir: &Path, from: Cursor, since_ms: u64) -> Result<Start, ReadError> {
    let mut start = Start::from(from);
    if since_ms == 0 {
        return Ok(start);
    }
    for run in runs(dir)?.into_iter().filter(|run| *run >= from.run) {
        if run > from.run {
            start = Start::from(Cursor {
                run,
                ..Cursor::default()
            });
        }
        let run_dir = dir.join(run.to_string());
        let mut is_wanted = false;
        for stream in Stream::ALL {
            let found = since_in_stream(&run_dir, stream, start.cursor.place(stream), since_ms)
                .map_err(stream_error(&run_dir, stream))?;
            let (place, edge, has_lines) = found;
            start.cursor.set(stream, place);
            start.edges[stream.index()] = edge;
            is_wanted |= has_lines;
        }
        if is_wanted {
            return Ok(start);
        }
    }
    Ok(start)
}

fn since_in_stream(
    dir: &Path,
    stream: Stream,
    from: Place,
    since_ms: u64,
) -> io::Result<(Place, Edge, bool)> {
    let files = list_segments(dir, stream)?;
    let mut edge = Edge::Line;
    let mut place = from;
    for number in files.logs {
        if number < from.segment {
            continue;
        }
        let Some(last_ms) = last_time(dir, stream, number)? else {
            continue;
        };
        if last_ms >= since_ms {
            return Ok((place, edge, true));
        }
        // Behind this segment: its last line may go on in the next one and is not wanted there.
        let Some((base, log_bytes)) = extent(dir, stream, number)? else {
            continue;
        };
        place = Place {
            segment: number,
            offset: log_bytes,
            position: base + log_bytes,
        };
        edge = match ends_with_newline(dir, stream, number, log_bytes)? {
            true => Edge::Line,
            false => Edge::Inside,
        };
    }
    Ok((place, edge, false))
}

/// The time of the last record of a segment; `None` when the segment is gone.
fn last_time(dir: &Path, stream: Stream, number: u64) -> io::Result<Option<u64>> {
    let Some(log) = open(&log_path(dir, stream, number))? else {
        return Ok(None);
    };
    let written_ms = modified_ms(&log.metadata()?);
    let Some(index) = open(&index_path(dir, stream, number))? else {
        return Ok(Some(written_ms));
    };
    let index_bytes = index.metadata()?.len() / RECORD_SIZE * RECORD_SIZE;
    if index_bytes <= FIRST_DATA {
        return Ok(Some(written_ms));
    }
    let mut bytes = [0; RECORD_BYTES];
    let read = read_up_to(&index, &mut bytes, index_bytes - RECORD_SIZE)?;
    // The later of both: bytes may have come whose record has not.
    let recorded_ms = Record::decode(&bytes[..read]).map_or(0, |record| record.time_ms);
    Ok(Some(recorded_ms.max(written_ms)))
}

/// Position and size of a segment; `None` when it is gone.
fn extent(dir: &Path, stream: Stream, number: u64) -> io::Result<Option<(u64, u64)>> {
    let (Some(log), Some(index)) = (
        open(&log_path(dir, stream, number))?,
        open(&index_path(dir, stream, number))?,
    ) else {
        return Ok(None);
    };
    let base = read_head(&index)?.base();
    Ok(base.map(|base| (base, log.metadata().map_or(0, |meta| meta.len()))))
}

fn ends_with_newline(dir: &Path, stream: Stream, number: u64, log_bytes: u64) -> io::Result<bool> {
    let mut last = [b'\n'];
    if let (Some(log), Some(place)) = (open(&log_path(dir, stream, number))?, log_bytes.checked_sub(1)) {
        read_up_to(&log, &mut last, place)?;
    }
    Ok(last == [b'\n'])
}

/// The place in the newest runs from which at least `lines` lines of each stream follow, or all there are.
pub(super) fn tail(dir: &Path, lines: u64) -> Result<Start, ReadError> {
    let mut start = Start::from(Cursor::default());
    let mut wanted = lines;
    for run in runs(dir)?.into_iter().rev() {
        let run_dir = dir.join(run.to_string());
        start.cursor = Cursor {
            run,
            ..Cursor::default()
        };
        let mut found = 0;
        for stream in Stream::ALL {
            let (place, count) =
                tail_of_stream(&run_dir, stream, wanted).map_err(stream_error(&run_dir, stream))?;
            start.cursor.set(stream, place);
            found += count;
        }
        wanted = wanted.saturating_sub(found);
        if wanted == 0 {
            break;
        }
    }
    Ok(start)
}

/// Where the last `lines` lines of a stream start, and how many there are.
fn tail_of_stream(dir: &Path, stream: Stream, lines: u64) -> io::Result<(Place, u64)> {
    let files = list_segments(dir, stream)?;
    let mut newlines = 0;
    let mut is_last_byte = true;
    let mut bytes = vec![0; usize::try_from(WINDOW_BYTES).unwrap_or(0)];
    for number in files.logs.into_iter().rev() {
        let Some((base, log_bytes)) = extent(dir, stream, number)? else {
            continue;
        };
        let Some(log) = open(&log_path(dir, stream, number))? else {
            continue;
        };
        let mut end = log_bytes;
        while end > 0 {
            let start = end.saturating_sub(WINDOW_BYTES);
            let window = &mut bytes[..usize::try_from(end - start).unwrap_or(0)];
            let read = read_up_to(&log, window, start)?;
            for (index, byte) in window[..read].iter().enumerate().rev() {
                // The newline at the very end closes the last line; each one before it starts a line.
                let is_closing = std::mem::replace(&mut is_last_byte, false);
                if *byte != b'\n' || (is_closing && lines > 0) {
                    continue;
                }
                newlines += 1;
                if newlines >= lines {
                    let offset = start + index as u64 + 1;
                    let place = Place {
                        segment: number,
                        offset,
                        position: base + offset,
                    };
                    return Ok((place, lines));
                }
            }
            end = start;
        }
    }
    let first_line = u64::from(!is_last_byte);
    Ok((Place::default(), newlines + first_line))
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn stream_error(dir: &Path, stream: Stream) -> impl FnOnce(io::Error) -> ReadError {
    move |source| ReadError::Stream {
        dir: dir.to_path_buf(),
        stream,
        source,
    }
}
