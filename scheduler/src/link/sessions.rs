//! The machines of one cluster that are linked now: at most one live session each, the log requests on them, and the tunnels
//! that they were asked for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use berth_api::id::{MachineId, ReplicaId};
use berth_api::link::{LogChunk, SchedulerMessage};
use berth_api::time::{Timestamp, monotonic};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::tunnel::{Joining, Tunnels};
use crate::refusal::{Class, Refused};

/// Which lines of a replica's log are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogQuery {
    /// Wait for lines to come.
    pub follow: bool,
    /// Not before this.
    pub since: Option<Timestamp>,
    /// At most this many of the last lines that are there.
    pub tail: Option<u32>,
}

/// See the module documentation. Clones share the same sessions.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    live: Arc<Mutex<BTreeMap<MachineId, Live>>>,
    next_id: Arc<AtomicU64>,
    /// A permit for each tunnel of the cluster.
    pub(super) tunnels: Tunnels,
}

/// Log chunks that wait for their reader; when full the request is cancelled and taken up again from the last line read.
const LOG_CHUNKS_MAX: usize = 64;
/// A log that is read on through a lost session waits this long for the machine to come back.
const RELINK_TIMEOUT: Duration = Duration::from_secs(15);
const RELINK_PERIOD: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Live {
    id: u64,
    boot_id: String,
    pub(super) outbound: mpsc::Sender<SchedulerMessage>,
    end: CancellationToken,
    /// Cancelled when this is no longer a session, for whatever reason.
    pub(super) ended: CancellationToken,
    heard: Instant,
    logs: BTreeMap<u64, mpsc::Sender<LogChunk>>,
    /// Tunnels that were asked for and not opened yet, by their ids.
    pub(super) joining: BTreeMap<String, Joining>,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

impl Sessions {
    pub(super) fn live(&self) -> MutexGuard<'_, BTreeMap<MachineId, Live>> {
        // Every change under this lock is complete before the next may panic.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a machine is linked now.
    #[must_use]
    pub fn is_linked(&self, machine: &MachineId) -> bool {
        self.live().contains_key(machine)
    }

    /// How many machines are linked.
    pub(crate) fn count(&self) -> usize {
        self.live().len()
    }

    /// The boot id of a machine's session, while one is live: heard within `silence_max`.
    pub(super) fn live_boot_id(&self, machine: &MachineId, silence_max: Duration) -> Option<String> {
        self.live()
            .get(machine)
            .filter(|live| live.heard.elapsed() <= silence_max)
            .map(|live| live.boot_id.clone())
    }

    /// Makes a session the one of its machine. One of the same boot replaces its predecessor; one of another boot is
    /// refused while the predecessor is live, since two machines with one identity must not both be served.
    pub(super) fn claim(
        &self,
        machine: &MachineId,
        boot_id: &str,
        outbound: mpsc::Sender<SchedulerMessage>,
        silence_max: Duration,
    ) -> Result<Claim, Refused> {
        let mut live = self.live();
        if let Some(other) = live.get(machine) {
            if other.boot_id != boot_id && other.heard.elapsed() <= silence_max {
                return Err(Refused::new(
                    Class::Conflict,
                    "machine_linked_elsewhere",
                    format!(
                        "machine {:?} is linked with another boot id; is its disk cloned?",
                        machine.as_str()
                    ),
                ));
            }
            other.end.cancel();
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let end = CancellationToken::new();
        live.insert(
            machine.clone(),
            Live {
                id,
                boot_id: boot_id.to_owned(),
                outbound,
                end: end.clone(),
                ended: CancellationToken::new(),
                heard: monotonic(),
                logs: BTreeMap::new(),
                joining: BTreeMap::new(),
            },
        );
        drop(live);
        Ok(Claim {
            sessions: self.clone(),
            machine: machine.clone(),
            id,
            end,
        })
    }

    /// Ends the session of a machine, if there is one.
    pub(crate) fn end(&self, machine: &MachineId) {
        if let Some(live) = self.live().get(machine) {
            live.end.cancel();
        }
    }

    /// Ends all sessions.
    pub(crate) fn end_all(&self) {
        for live in self.live().values() {
            live.end.cancel();
        }
    }

    /// Begins to read the log of a replica on its machine.
    ///
    /// # Errors
    /// When the machine is not linked, or too much waits to be sent to it.
    pub fn logs(
        &self,
        machine: &MachineId,
        replica: &ReplicaId,
        query: LogQuery,
    ) -> Result<LogStream, Refused> {
        let mut stream = LogStream {
            sessions: self.clone(),
            machine: machine.clone(),
            replica: replica.clone(),
            follow: query.follow,
            request_id: 0,
            chunks: mpsc::channel(1).1,
            last_time_ms: query.since.map_or(0, Timestamp::millis),
            last_count: 0,
            skip: 0,
            is_done: false,
        };
        stream.request(query.tail.unwrap_or(0))?;
        Ok(stream)
    }
}

/// The right to be a machine's session; given back when dropped.
#[derive(Debug)]
pub(super) struct Claim {
    sessions: Sessions,
    machine: MachineId,
    id: u64,
    /// Cancelled when another session takes over or the machine is removed.
    pub(super) end: CancellationToken,
}

impl Claim {
    fn with_live<T>(&self, act: impl FnOnce(&mut Live) -> T) -> Option<T> {
        self.sessions
            .live()
            .get_mut(&self.machine)
            .filter(|live| live.id == self.id)
            .map(act)
    }

    /// The machine has just spoken.
    pub(super) fn heard(&self) {
        self.with_live(|live| live.heard = monotonic());
    }

    /// Whether this is still the machine's session.
    pub(super) fn is_current(&self) -> bool {
        self.with_live(|_| ()).is_some()
    }

    /// Gives a chunk to its reader. Never waits: a reader that is too slow loses its request, not the session.
    pub(super) fn deliver(&self, chunk: LogChunk) {
        self.with_live(|live| {
            let request_id = chunk.request_id;
            let is_end = chunk.end;
            let Some(reader) = live.logs.get(&request_id) else {
                return;
            };
            let is_taken = reader.try_send(chunk).is_ok();
            if is_end || !is_taken {
                live.logs.remove(&request_id);
            }
            if !is_taken {
                // Best effort: chunks of an unknown request are dropped anyway.
                drop(live.outbound.try_send(super::message(cancel(request_id))));
            }
        });
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut live = self.sessions.live();
        if live.get(&self.machine).is_some_and(|live| live.id == self.id) {
            live.remove(&self.machine);
        }
    }
}

fn cancel(request_id: u64) -> berth_api::link::scheduler_message::Kind {
    berth_api::link::scheduler_message::Kind::LogCancel(berth_api::link::LogCancel { request_id })
}

pub(super) fn not_linked(machine: &MachineId, replica: &str) -> Refused {
    Refused::new(
        Class::Unavailable,
        "machine_not_linked",
        format!(
            "machine {:?} of replica {replica} is not linked now",
            machine.as_str()
        ),
    )
}

pub(super) fn busy(machine: &MachineId) -> Refused {
    Refused::new(
        Class::Busy,
        "machine_busy",
        format!("too much waits to be sent to machine {:?}", machine.as_str()),
    )
}

/// A replica's log as it arrives. Dropping it tells the machine to stop sending.
#[derive(Debug)]
pub struct LogStream {
    sessions: Sessions,
    machine: MachineId,
    replica: ReplicaId,
    follow: bool,
    request_id: u64,
    chunks: mpsc::Receiver<LogChunk>,
    /// Time of the last line given, and how many lines of that time were: where to go on after a cut.
    last_time_ms: u64,
    last_count: u64,
    /// Lines of `last_time_ms` still to be left out after a cut.
    skip: u64,
    is_done: bool,
}

impl LogStream {
    /// The replica whose log this is.
    #[must_use]
    pub fn replica(&self) -> &ReplicaId {
        &self.replica
    }

    /// The next lines; none at the end. The last chunk says in `error` why the log ended, when it ended by a fault.
    ///
    /// Cancel-safe: a chunk is taken from the queue only when it is returned.
    pub async fn next(&mut self) -> Option<LogChunk> {
        while !self.is_done {
            if let Some(mut chunk) = self.chunks.recv().await {
                self.leave_out_repeats(&mut chunk);
                self.is_done = chunk.end;
                return Some(chunk);
            }
            // Cut without an end: this reader was too slow, or the session was lost.
            if let Err(refused) = self.resume().await {
                self.is_done = true;
                return Some(LogChunk {
                    request_id: self.request_id,
                    lines: Vec::new(),
                    end: true,
                    error: refused.message,
                });
            }
        }
        None
    }

    fn leave_out_repeats(&mut self, chunk: &mut LogChunk) {
        chunk.lines.retain(|line| {
            if self.skip > 0 && line.time_ms == self.last_time_ms {
                self.skip -= 1;
                return false;
            }
            if line.time_ms == self.last_time_ms {
                self.last_count += 1;
            } else {
                (self.last_time_ms, self.last_count, self.skip) = (line.time_ms, 1, 0);
            }
            true
        });
    }

    async fn resume(&mut self) -> Result<(), Refused> {
        self.skip = self.last_count;
        let deadline = monotonic() + RELINK_TIMEOUT;
        loop {
            match self.request(0) {
                Ok(()) => return Ok(()),
                Err(refused) if !self.follow || monotonic() >= deadline => return Err(refused),
                Err(_) => tokio::time::sleep(RELINK_PERIOD).await,
            }
        }
    }

    fn request(&mut self, tail_lines: u32) -> Result<(), Refused> {
        let request_id = self.sessions.next_id.fetch_add(1, Ordering::Relaxed) + 1;
        let request = berth_api::link::LogRequest {
            request_id,
            replica_id: self.replica.to_string(),
            follow: self.follow,
            since_ms: self.last_time_ms,
            tail_lines,
        };
        let mut live = self.sessions.live();
        let live = live
            .get_mut(&self.machine)
            .ok_or_else(|| not_linked(&self.machine, self.replica.as_str()))?;
        let kind = berth_api::link::scheduler_message::Kind::LogRequest(request);
        live.outbound
            .try_send(super::message(kind))
            .map_err(|_| busy(&self.machine))?;
        let (sender, receiver) = mpsc::channel(LOG_CHUNKS_MAX);
        live.logs.insert(request_id, sender);
        (self.request_id, self.chunks) = (request_id, receiver);
        Ok(())
    }
}

impl Drop for LogStream {
    fn drop(&mut self) {
        let mut live = self.sessions.live();
        if let Some(live) = live.get_mut(&self.machine)
            && live.logs.remove(&self.request_id).is_some()
        {
            // Best effort: chunks of an unknown request are dropped anyway.
            drop(live.outbound.try_send(super::message(cancel(self.request_id))));
        }
    }
}
