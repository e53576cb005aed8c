//! Serves log requests of the scheduler from the keeper's segments.
//!
//! Input: a [`LogRequest`]; output: [`LogChunk`]s on a bounded channel, the last one with `end`. The link owns the task
//! that runs [`LogService::serve`] and the token that cancels it. A full channel stops the reading, so a slow scheduler
//! costs one chunk of memory per request. Reading is synchronous and runs on the blocking pool, one batch at a time; a
//! hung disk costs one of its threads per request.

use std::path::{Path, PathBuf};

use berth_api::link::{LogChunk, LogLine, LogRequest, log_line};
use berth_collector::logs::reader::POLL_EVERY;
use berth_collector::logs::{self, LineStream, Mode, ReadError, ReadOptions, Reader};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Lines in one chunk.
pub const CHUNK_LINES_MAX: usize = 256;
/// A chunk is full when its lines have this many bytes; one line more may exceed it, by 256 KiB at most.
pub const CHUNK_BYTES_MAX: usize = 64 * 1024;

/// Why an answer stopped.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    #[error("no logs of replica {replica_id} are kept on this machine")]
    Unknown { replica_id: String },
    #[error("cannot read the logs of replica {replica_id}")]
    Read { replica_id: String, source: ReadError },
    #[error("reading the logs of replica {replica_id} panicked")]
    Panicked { replica_id: String },
}

/// Answers log requests from one keeper's store.
#[derive(Debug, Clone)]
pub struct LogService {
    /// The keeper's `--store`.
    pub store: PathBuf,
}

/// Why `answer` came back.
enum Stopped {
    /// All lines were sent.
    AtEnd,
    /// Cancelled, or nobody takes the chunks any more.
    Unwanted,
}

impl LogService {
    /// Sends the lines that the request asks for. Returns when all are sent, when the request is cancelled, or when the
    /// receiver is gone. With `follow` it goes on until one of the latter two, also over restarts of the replica.
    ///
    /// Cancel-safe: dropping the future ends the answer; a batch being read is thrown away.
    pub async fn serve(
        &self,
        request: LogRequest,
        chunks: mpsc::Sender<LogChunk>,
        cancel: CancellationToken,
    ) {
        let error = match self.answer(&request, &chunks, &cancel).await {
            Ok(Stopped::Unwanted) => return,
            Ok(Stopped::AtEnd) => String::new(),
            Err(error) => {
                tracing::warn!(
                    replica_id = request.replica_id,
                    request_id = request.request_id,
                    error = &error as &dyn std::error::Error,
                    "log request failed"
                );
                with_sources(&error)
            }
        };
        let last = LogChunk {
            request_id: request.request_id,
            lines: Vec::new(),
            end: true,
            error,
        };
        // Both arms are the end of this answer; nothing is lost by dropping either.
        tokio::select! {
            () = cancel.cancelled() => {}
            _ = chunks.send(last) => {}
        }
    }

    async fn answer(
        &self,
        request: &LogRequest,
        chunks: &mpsc::Sender<LogChunk>,
        cancel: &CancellationToken,
    ) -> Result<Stopped, LogsError> {
        let store = self.store.clone();
        let asked = request.clone();
        let mut reader = blocking(request, move || open(&store, &asked)).await??;
        loop {
            let (back, batch) = blocking(request, move || {
                let batch = reader.next_batch(CHUNK_LINES_MAX, CHUNK_BYTES_MAX);
                (reader, batch)
            })
            .await?;
            reader = back;
            let batch = batch.map_err(|source| LogsError::Read {
                replica_id: request.replica_id.clone(),
                source,
            })?;
            if batch.is_empty() {
                if !request.follow {
                    return Ok(Stopped::AtEnd);
                }
                // Both arms only wait: cancel-safe.
                tokio::select! {
                    () = cancel.cancelled() => return Ok(Stopped::Unwanted),
                    () = chunks.closed() => return Ok(Stopped::Unwanted),
                    () = tokio::time::sleep(POLL_EVERY) => continue,
                }
            }
            let chunk = LogChunk {
                request_id: request.request_id,
                lines: batch.into_iter().map(line).collect(),
                end: false,
                error: String::new(),
            };
            // A send that loses against the cancel drops its chunk: nobody wants it then.
            tokio::select! {
                () = cancel.cancelled() => return Ok(Stopped::Unwanted),
                sent = chunks.send(chunk) => {
                    if sent.is_err() {
                        return Ok(Stopped::Unwanted);
                    }
                }
            }
        }
    }
}

fn open(store: &Path, request: &LogRequest) -> Result<Reader, LogsError> {
    let fault = |source| LogsError::Read {
        replica_id: request.replica_id.clone(),
        source,
    };
    if !request.follow && !Reader::is_known(store, &request.replica_id).map_err(fault)? {
        return Err(LogsError::Unknown {
            replica_id: request.replica_id.clone(),
        });
    }
    let options = ReadOptions {
        since_ms: request.since_ms,
        tail_lines: (request.tail_lines > 0).then_some(request.tail_lines.into()),
        from: None,
        mode: if request.follow {
            Mode::Follow
        } else {
            Mode::Snapshot
        },
    };
    Reader::open(store, &request.replica_id, options).map_err(fault)
}

async fn blocking<T: Send + 'static>(
    request: &LogRequest,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, LogsError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| LogsError::Panicked {
            replica_id: request.replica_id.clone(),
        })
}

fn line(line: logs::LogLine) -> LogLine {
    let stream = match line.stream {
        LineStream::Stdout => log_line::Stream::Stdout,
        LineStream::Stderr => log_line::Stream::Stderr,
        LineStream::Keeper => log_line::Stream::Keeper,
    };
    LogLine {
        time_ms: line.time_ms,
        stream: stream.into(),
        line: line.line.into(),
        partial: line.partial,
        run: line.run,
    }
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    //! On segment files written by hand: what the service sends, in which chunks, and when it stops.

    use std::fs::{self, OpenOptions};
    use std::io::Write;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn store(text: &[u8]) -> tempfile::TempDir {
        let store = tempfile::tempdir().unwrap();
        let run = store.path().join("reader-0").join("1");
        fs::create_dir_all(&run).unwrap();
        fs::write(run.join("stdout.0000000001.log"), text).unwrap();
        store
    }

    fn request(follow: bool, tail_lines: u32) -> LogRequest {
        LogRequest {
            request_id: 7,
            replica_id: "reader-0".into(),
            follow,
            since_ms: 0,
            tail_lines,
        }
    }

    async fn collect(store: &Path, request: LogRequest) -> Vec<LogChunk> {
        let service = LogService { store: store.into() };
        let (sender, mut receiver) = mpsc::channel(1);
        let serve = service.serve(request, sender, CancellationToken::new());
        let receive = async {
            let mut chunks = Vec::new();
            while let Some(chunk) = receiver.recv().await {
                chunks.push(chunk);
            }
            chunks
        };
        timeout(PATIENCE, async { tokio::join!(serve, receive).1 })
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn sends_bounded_chunks_and_one_end() {
        let text: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        let store = store(text.as_bytes());
        let chunks = collect(store.path(), request(false, 0)).await;
        assert!(
            chunks
                .iter()
                .all(|chunk| chunk.lines.len() <= CHUNK_LINES_MAX && chunk.request_id == 7)
        );
        assert_eq!(chunks.iter().map(|chunk| chunk.lines.len()).sum::<usize>(), 1000);
        let ends: Vec<bool> = chunks.iter().map(|chunk| chunk.end).collect();
        assert_eq!(ends, [false, false, false, false, true]);
        assert_eq!(chunks[3].lines.last().unwrap().line, &b"line 999"[..]);
    }

    #[tokio::test]
    async fn tail_gives_the_last_lines() {
        let store = store(b"a\nb\nc\n");
        let chunks = collect(store.path(), request(false, 2)).await;
        let lines: Vec<&[u8]> = chunks[0].lines.iter().map(|line| &line.line[..]).collect();
        assert_eq!(lines, [b"b", b"c"]);
    }

    #[tokio::test]
    async fn an_unknown_replica_is_told() {
        let store = tempfile::tempdir().unwrap();
        let chunks = collect(store.path(), request(false, 0)).await;
        assert_eq!(chunks.len(), 1);
        assert_eq!(
            chunks[0].error,
            "no logs of replica reader-0 are kept on this machine"
        );
    }

    #[tokio::test]
    async fn follow_sends_what_comes_and_stops_when_cancelled() {
        let store = store(b"old\n");
        let service = LogService {
            store: store.path().into(),
        };
        let cancel = CancellationToken::new();
        let (sender, mut receiver) = mpsc::channel(1);
        let serve = service.serve(request(true, 0), sender, cancel.clone());
        let watch = async {
            assert_eq!(receiver.recv().await.unwrap().lines[0].line, &b"old"[..]);
            let log = store.path().join("reader-0/1/stdout.0000000001.log");
            let mut log = OpenOptions::new().append(true).open(log).unwrap();
            log.write_all(b"new\n").unwrap();
            assert_eq!(receiver.recv().await.unwrap().lines[0].line, &b"new"[..]);
            cancel.cancel();
            assert_eq!(receiver.recv().await, None);
        };
        timeout(PATIENCE, async { tokio::join!(serve, watch) })
            .await
            .unwrap();
    }
}
