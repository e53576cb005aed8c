//! The control socket of a running instance: one request and one answer per connection, each a line of JSON.
//! Only root may connect: the socket lies in a directory of mode 0700.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

/// What can be asked of a running instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "camelCase")]
pub(crate) enum Request {
    /// Whether all machines run.
    Status,
    List,
    MachineKill {
        name: String,
        /// Do not tell the scheduler.
        silent: bool,
    },
    MachineStart {
        name: String,
    },
    DaemonKill {
        name: String,
    },
    Down,
}

/// The answer: a value, or the exit code and message of a failure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Reply {
    Done(serde_json::Value),
    Refused { not_found: bool, message: String },
}

impl Reply {
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::Refused {
            not_found: false,
            message: message.into(),
        }
    }
}

/// A request and where its answer goes.
pub(crate) type Call = (Request, oneshot::Sender<Reply>);

/// A request is one short line.
const REQUEST_BYTES_MAX: u64 = 4096;
/// Killing a machine takes at most a kill deadline; nothing takes longer.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// Accepts connections for ever and hands their requests to the owner of the instance. One at a time: they are rare, and each
/// has a deadline.
pub(crate) async fn serve(listener: UnixListener, calls: mpsc::Sender<Call>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        // A caller that is slow or gone loses its answer, nothing else.
        drop(tokio::time::timeout(CALL_DEADLINE, answer(stream, &calls)).await);
    }
}

async fn answer(mut stream: UnixStream, calls: &mpsc::Sender<Call>) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    BufReader::new(reader.take(REQUEST_BYTES_MAX))
        .read_line(&mut line)
        .await?;
    let reply = match serde_json::from_str::<Request>(&line) {
        Err(error) => Reply::refused(format!("no request: {error}")),
        Ok(request) => {
            let (done, wait) = oneshot::channel();
            match calls.send((request, done)).await {
                Ok(()) => wait
                    .await
                    .unwrap_or_else(|_| Reply::refused("the instance is ending")),
                Err(_) => Reply::refused("the instance is ending"),
            }
        }
    };
    let mut text = serde_json::to_vec(&reply).map_err(io::Error::other)?;
    text.push(b'\n');
    writer.write_all(&text).await
}

/// Asks a running instance. `NotFound` and `ConnectionRefused` mean that none runs.
pub(crate) async fn ask(socket: &Path, request: &Request) -> io::Result<Reply> {
    let call = async {
        let mut stream = UnixStream::connect(socket).await?;
        let mut text = serde_json::to_vec(request).map_err(io::Error::other)?;
        text.push(b'\n');
        stream.write_all(&text).await?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await?;
        serde_json::from_str(&line).map_err(io::Error::other)
    };
    tokio::time::timeout(CALL_DEADLINE, call)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::JoinSet;

    #[tokio::test]
    async fn a_request_gets_its_answer_and_nonsense_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (calls, mut heard) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, calls));
        tasks.spawn(async move {
            while let Some((request, done)) = heard.recv().await {
                assert_eq!(request, Request::DaemonKill { name: "m2".into() });
                drop(done.send(Reply::Done("m2".into())));
            }
        });
        let reply = ask(&socket, &Request::DaemonKill { name: "m2".into() })
            .await
            .unwrap();
        assert_eq!(reply, Reply::Done("m2".into()));

        let mut stream = UnixStream::connect(&socket).await.unwrap();
        stream.write_all(b"{\"op\":\"format\"}\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.contains("no request"), "{text}");
    }
}
