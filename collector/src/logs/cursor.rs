//! Where a reader stands: the resume token of a follower.

use serde::{Deserialize, Serialize};

use super::layout::Stream;

/// A place in one stream of one run. Invariant: points behind a whole line, or at the start of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Place {
    pub segment: u64,
    /// Offset of the next byte in the segment.
    pub offset: u64,
    /// Position of the same byte in the whole stream, so that a removed segment gives an exact gap.
    pub position: u64,
}

/// Where a reader of all streams of a replica stands: a run, and a place in each of its streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Cursor {
    pub run: u32,
    pub stdout: Place,
    pub stderr: Place,
}

impl Cursor {
    pub(crate) const fn place(&self, stream: Stream) -> Place {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }

    pub(crate) fn set(&mut self, stream: Stream, place: Place) {
        match stream {
            Stream::Stdout => self.stdout = place,
            Stream::Stderr => self.stderr = place,
        }
    }
}
