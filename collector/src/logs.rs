//! Logs of replicas: from a FIFO that the keeper drains, through segments on disk, to lines.
//!
//! ```text
//! container ─▶ shim ─▶ FIFO ─▶ berth-logkeeper (splice) ─▶ segments ─▶ Reader (in berthd) ─▶ lines
//!                                ▲ control socket
//!                        KeeperClient (in berthd)
//! ```
//!
//! | module | holds | used by |
//! | --- | --- | --- |
//! | [`record`] | the 24-byte index record (pure) | both |
//! | [`layout`] | names of directories and files, `run.json` | both |
//! | `segment`, `stream` | writing of segments, recovery, removal with a count of what was lost | keeper |
//! | [`keeper`] | the event loop: FIFOs, quotas, control | keeper |
//! | [`control`] | messages of the control socket | both |
//! | [`client`] | [`KeeperClient`] | berthd |
//! | [`reader`], [`cursor`] | [`Reader`]: lines, since, tail, follow, resume | berthd |
//!
//! Invariant: for every stream, bytes stored + bytes lost = bytes written; each loss has a record that says why.

pub mod client;
pub mod control;
pub mod cursor;
pub mod keeper;
pub mod layout;
pub mod reader;
pub mod record;
mod segment;
mod stream;

pub use client::{ClientError, HeldEnds, KeeperClient, OpenedRun};
pub use control::{OpenRequest, Stat};
pub use cursor::{Cursor, Place};
pub use layout::{Limits, RunKey, Stream, stored_runs};
pub use reader::{LineStream, LogLine, Mode, ReadError, ReadOptions, Reader};
