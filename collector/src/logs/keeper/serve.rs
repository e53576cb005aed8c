//! The control socket: who may speak, and what each request does.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use berth_api::time::Timestamp;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::{CLIENT_BIT, Keeper, Run, complain, open_fifo, watch};
use crate::logs::control::{LABEL_BYTES_MAX, MESSAGE_BYTES_MAX, OpenRequest, Reply, Request, Stat};
use crate::logs::layout::{RunKey, RunMeta, create_private_dir, fifo_path, replica_dir, run_dir};
use crate::logs::record::flag;
use crate::logs::stream::StreamLog;

/// Connections at once: the daemon's, a tool's, and some to spare.
const CLIENTS_MAX: usize = 32;
const BACKLOG: i32 = 32;
/// Ids of replicas are at most this long.
const REPLICA_BYTES_MAX: usize = 2048;

/// Makes the control socket, in the place of one that a killed keeper left. The umask makes it private from the start.
pub(super) fn listen(path: &Path) -> io::Result<OwnedFd> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        create_private_dir(parent)?;
    }
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::bind(&fd, &SocketAddrUnix::new(path)?)?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(fd)
}

impl Keeper {
    pub(super) fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(fd) = rustix::net::accept_with(&self.listener, flags) else {
            return;
        };
        let own = rustix::process::geteuid();
        let is_allowed = socket_peercred(&fd).is_ok_and(|peer| peer.uid.is_root() || peer.uid == own);
        if !is_allowed || self.clients.len() >= CLIENTS_MAX {
            return;
        }
        let token = CLIENT_BIT | self.next_client;
        self.next_client += 1;
        match watch(&self.epoll, &fd, token, epoll::EventFlags::IN) {
            Ok(()) => {
                self.clients.insert(token, fd);
            }
            Err(error) => complain("cannot watch a client", &io::Error::other(error)),
        }
    }

    /// Answers one message. A client that sends nonsense, does not read its reply or hangs up is dropped.
    pub(super) fn serve_client(&mut self, token: u64) {
        let mut buffer = vec![0; MESSAGE_BYTES_MAX + 1];
        let received = match self.clients.get(&token) {
            Some(fd) => rustix::net::recv(fd, &mut buffer[..], RecvFlags::empty()),
            None => return,
        };
        let message = match received {
            Ok((length, _)) if length > 0 => buffer.get(..length),
            Ok(_) => None,
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => None,
        };
        let Some(message) = message.filter(|message| message.len() <= MESSAGE_BYTES_MAX) else {
            self.clients.remove(&token);
            return;
        };
        let reply = match serde_json::from_slice::<Request>(message) {
            Ok(request) => self
                .answer(request)
                .unwrap_or_else(|reason| Reply::Refused { reason }),
            Err(error) => Reply::Refused {
                reason: format!("not a request: {error}"),
            },
        };
        let bytes = serde_json::to_vec(&reply).expect("a reply has only string keys");
        let sent = match self.clients.get(&token) {
            Some(fd) => rustix::net::send(fd, &bytes, SendFlags::NOSIGNAL),
            None => return,
        };
        if sent.is_err() {
            self.clients.remove(&token);
        }
    }

    fn answer(&mut self, request: Request) -> Result<Reply, String> {
        match request {
            Request::Open(request) => self.open(request),
            Request::Close { key } => {
                if let Some(slot) = self.by_key.get(&key).copied() {
                    self.close(slot)
                        .map_err(|error| format!("cannot close {key}: {error}"))?;
                }
                Ok(Reply::Done)
            }
            Request::Rotate { key } => {
                let run = self.known(&key)?;
                let dir = run.dir.clone();
                let sealed: io::Result<()> = run.streams.iter_mut().try_for_each(|log| log.seal(&dir));
                sealed.map_err(|error| format!("cannot rotate {key}: {error}"))?;
                Ok(Reply::Done)
            }
            Request::Remove { replica, run } => {
                self.remove(&replica, run)
                    .map_err(|error| format!("cannot remove the logs of {replica}: {error}"))?;
                Ok(Reply::Done)
            }
            Request::Stat { key: None } => Ok(Reply::Stat(self.stat(self.runs.values()))),
            Request::Stat { key: Some(key) } => {
                self.known(&key)?;
                let run = self.by_key.get(&key).and_then(|slot| self.runs.get(slot));
                Ok(Reply::Stat(self.stat(run.into_iter())))
            }
            Request::Version => Ok(Reply::Version {
                version: env!("CARGO_PKG_VERSION").to_owned(),
            }),
        }
    }

    fn known(&mut self, key: &RunKey) -> Result<&mut Run, String> {
        self.by_key
            .get(key)
            .and_then(|slot| self.runs.get_mut(slot))
            .ok_or_else(|| format!("{key} is not in the store"))
    }

    fn open(&mut self, request: OpenRequest) -> Result<Reply, String> {
        let key = request.key.clone();
        check(&request)?;
        // The runs before this one have ended: what their FIFOs hold comes first in the log.
        let earlier: Vec<u32> = self
            .by_key
            .range(RunKey::new(key.replica.clone(), 0)..key.clone())
            .map(|(_, slot)| *slot)
            .collect();
        for slot in earlier {
            self.drain(slot);
        }
        let is_open = self
            .by_key
            .get(&key)
            .and_then(|slot| self.runs.get(slot))
            .is_some_and(|run| {
                run.meta.closed_ms.is_none()
                    && request.streams.iter().all(|stream| {
                        let held = run
                            .streams
                            .iter()
                            .any(|log| log.stream == *stream && log.fifo.is_some());
                        held && fifo_path(&run.dir, *stream).exists()
                    })
            });
        if !is_open {
            let opened = self.open_new(&request).or_else(|error| {
                // A full disk must not keep a container from its start while there are old logs to free.
                let now_ms = Timestamp::now().millis();
                if matches!(Errno::from_io_error(&error), Some(Errno::NOSPC | Errno::DQUOT))
                    && self.free_oldest(flag::DISK_FULL, now_ms)
                {
                    self.open_new(&request)
                } else {
                    Err(error)
                }
            });
            opened.map_err(|error| format!("cannot open {key}: {error}"))?;
        }
        let dir = run_dir(&self.config.store, &key);
        let fifos = request
            .streams
            .iter()
            .map(|stream| (*stream, fifo_path(&dir, *stream)));
        Ok(Reply::Opened {
            fifos: fifos.collect::<BTreeMap<_, _>>(),
        })
    }

    /// Opens a run that is not open: a new one, or one that was closed or lost a FIFO.
    fn open_new(&mut self, request: &OpenRequest) -> io::Result<()> {
        let dir = run_dir(&self.config.store, &request.key);
        create_private_dir(&dir)?;
        if let Ok(found) = RunMeta::read(&dir)
            && found.key != request.key
        {
            return Err(io::Error::other(format!(
                "its directory belongs to {}",
                found.key
            )));
        }
        let meta = RunMeta {
            schema: 1,
            key: request.key.clone(),
            streams: request.streams.clone(),
            limits: request.limits,
            labels: request.labels.clone(),
            opened_ms: Timestamp::now().millis(),
            closed_ms: None,
        };
        meta.write(&dir)?;
        let mut fifos = Vec::new();
        for stream in &meta.streams {
            fifos.push((*stream, open_fifo(&dir, *stream, meta.limits)?));
        }
        if let Some(slot) = self.by_key.get(&request.key).copied() {
            self.drain(slot);
            self.forget(slot);
        }
        let mut streams = Vec::new();
        for (stream, fifo) in fifos {
            let mut log = StreamLog::recover(&dir, stream)?;
            log.fifo = Some(fifo);
            streams.push(log);
        }
        let mut run = Run {
            dir,
            meta,
            streams,
            disk_bytes: 0,
        };
        run.count_disk();
        self.insert(run).map_err(io::Error::other)?;
        Ok(())
    }

    fn close(&mut self, slot: u32) -> io::Result<()> {
        self.drain(slot);
        let Some(run) = self.runs.get_mut(&slot) else {
            return Ok(());
        };
        if run.meta.closed_ms.is_some() {
            return Ok(());
        }
        for log in &mut run.streams {
            log.seal(&run.dir)?;
            log.fifo = None;
            match fs::remove_file(fifo_path(&run.dir, log.stream)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        run.meta.closed_ms = Some(Timestamp::now().millis());
        let written = run.meta.write(&run.dir);
        self.recount(slot);
        written
    }

    fn remove(&mut self, replica: &str, only: Option<u32>) -> io::Result<()> {
        let keys: Vec<(RunKey, u32)> = self
            .by_key
            .range(RunKey::new(replica, 0)..=RunKey::new(replica, u32::MAX))
            .filter(|(key, _)| only.is_none_or(|run| run == key.run))
            .map(|(key, slot)| (key.clone(), *slot))
            .collect();
        for (key, slot) in keys {
            self.forget(slot);
            fs::remove_dir_all(run_dir(&self.config.store, &key))?;
        }
        let dir = replica_dir(&self.config.store, replica);
        match fs::remove_dir(dir).as_ref().map_err(io::Error::kind) {
            Ok(()) | Err(io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => Ok(()),
            Err(kind) => Err(kind.into()),
        }
    }

    /// Drops a run from memory; its read ends close with it.
    fn forget(&mut self, slot: u32) {
        if let Some(run) = self.runs.remove(&slot) {
            self.disk_bytes -= run.disk_bytes;
            self.by_key.remove(&run.meta.key);
        }
    }

    fn stat<'a>(&self, runs: impl Iterator<Item = &'a Run>) -> Stat {
        let mut stat = Stat {
            quota_bytes: self.config.quota_bytes,
            ..Stat::default()
        };
        for run in runs {
            stat.runs_stored += 1;
            stat.runs_open += u64::from(run.meta.closed_ms.is_none());
            stat.disk_bytes += run.disk_bytes;
            for log in &run.streams {
                stat.segments += log.segment_count();
                stat.written_bytes += log.written_bytes;
                stat.stored_bytes += log.stored_bytes();
            }
        }
        stat.lost_bytes = stat.written_bytes - stat.stored_bytes;
        stat
    }
}

fn check(request: &OpenRequest) -> Result<(), String> {
    let replica = &request.key.replica;
    if replica.is_empty() || replica.len() > REPLICA_BYTES_MAX || replica.contains('\0') {
        return Err(format!("a replica id has 1 to {REPLICA_BYTES_MAX} bytes"));
    }
    let distinct: std::collections::BTreeSet<_> = request.streams.iter().collect();
    if distinct.is_empty() || distinct.len() < request.streams.len() {
        return Err("a run has stdout, stderr or both, each once".into());
    }
    let label_bytes: usize = request
        .labels
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if label_bytes > LABEL_BYTES_MAX {
        return Err(format!(
            "labels have {label_bytes} bytes; at most {LABEL_BYTES_MAX} are kept"
        ));
    }
    let run_bytes = request.limits.run_bytes;
    if run_bytes != 0 && run_bytes < 128 * 1024 {
        return Err(format!("run_bytes {run_bytes} is less than 131072"));
    }
    Ok(())
}
