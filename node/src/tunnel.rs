//! Speaks with replicas for the scheduler: a program with its input and output, or a port.
//!
//! Input: a [`TunnelRequest`], messages of the scheduler. Output: messages to it, the last one an end. The link owns the task that
//! runs [`serve`]; both directions run beside each other, so that a program that does not read is still heard. When the scheduler goes away
//! the program is ended with all that it started.

use std::fmt;
use std::time::Duration;

use berth_api::id::ReplicaId;
use berth_api::link::{
    ExecTarget, OutputEnd, PortTarget, TunnelDown, TunnelEnd, TunnelRequest, TunnelUp, tunnel_down,
    tunnel_request::Target, tunnel_up::Kind,
};
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tonic::Streaming;

use crate::host::HostError;
use crate::host::containerd::{Attached, Program};
use crate::link::words;

/// Messages that may wait for a slow scheduler.
pub const UP_MAX: usize = 8;
/// Bytes of one message.
const CHUNK: usize = 16 << 10;
/// A program has ended and something that it started holds its output: so long nothing may come.
const QUIET: Duration = Duration::from_secs(2);
/// The scheduler takes the last message and closes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
const WINDOW_DEFAULT: (u32, u32) = (80, 24);

/// The way into replicas.
pub trait Reach: fmt::Debug + Send + Sync {
    /// Starts a program in a replica that runs.
    fn exec<'a>(
        &'a self,
        replica_id: &'a ReplicaId,
        program: Program,
    ) -> BoxFuture<'a, Result<Attached, HostError>>;

    /// Connects to a port of a replica, from inside its network namespace.
    fn connect<'a>(
        &'a self,
        replica_id: &'a ReplicaId,
        port: u16,
    ) -> BoxFuture<'a, Result<TcpStream, HostError>>;
}

/// Serves one tunnel until either side ends it.
pub async fn serve(
    reach: &dyn Reach,
    request: TunnelRequest,
    up: mpsc::Sender<TunnelUp>,
    mut down: Streaming<TunnelDown>,
) {
    let ended = match (ReplicaId::new(request.replica_id), request.target) {
        (Ok(replica), Some(Target::Exec(target))) => exec(reach, &replica, target, &up, &mut down).await,
        (Ok(replica), Some(Target::Port(target))) => port(reach, &replica, &target, &up, &mut down).await,
        (Err(error), _) => Ok(refusal(error.to_string())),
        (_, None) => Ok(refusal(
            "this machine has too many tunnels open already, or its version of berthd does not know what is asked for",
        )),
    };
    let Ok(end) = ended else { return };
    if up.send(message(Kind::End(end))).await.is_err() {
        return;
    }
    drop(up);
    // The stream that is dropped first is reset, and what has not been taken of the other one is lost.
    let closed = async { while let Ok(Some(_)) = down.message().await {} };
    drop(tokio::time::timeout(CLOSE_TIMEOUT, closed).await);
}

/// The scheduler has ended the tunnel.
struct Gone;

fn refusal(error: impl Into<String>) -> TunnelEnd {
    TunnelEnd {
        exit_code: 0,
        error: error.into(),
    }
}

fn message(kind: Kind) -> TunnelUp {
    TunnelUp { kind: Some(kind) }
}

async fn exec(
    reach: &dyn Reach,
    replica: &ReplicaId,
    target: ExecTarget,
    up: &mpsc::Sender<TunnelUp>,
    down: &mut Streaming<TunnelDown>,
) -> Result<TunnelEnd, Gone> {
    let window = target
        .window
        .map_or(WINDOW_DEFAULT, |window| (window.columns, window.rows));
    let program = Program {
        command: target.command,
        terminal: target.terminal.then_some(window),
        input: target.input,
    };
    let mut attached = match reach.exec(replica, program).await {
        Ok(attached) => attached,
        Err(error) => return Ok(refusal(error.message)),
    };
    let (input, control) = (attached.input.take(), attached.control.clone());
    let told = async {
        let mut input = input;
        loop {
            match down.message().await {
                Ok(Some(TunnelDown { kind: Some(kind) })) => match kind {
                    tunnel_down::Kind::Input(bytes) => write(&mut input, &bytes).await,
                    tunnel_down::Kind::InputEnd(_) => {
                        drop(input.take());
                        // The program has ended, or its end tells.
                        drop(control.end_input().await);
                    }
                    tunnel_down::Kind::Window(window) => {
                        drop(control.resize(window.columns, window.rows).await);
                    }
                },
                Ok(Some(TunnelDown { kind: None })) => {}
                Ok(None) | Err(_) => return Gone,
            }
        }
    };
    // What is dropped has nothing to say any more: the program has ended, or nobody listens.
    tokio::select! {
        end = output_of(&mut attached, up) => end,
        gone = told => Err(gone),
        // A program that reads nothing keeps the other from seeing this.
        () = up.closed() => Err(Gone),
    }
}

/// A reader that went away is told of by its end.
async fn write<W: AsyncWrite + Unpin>(input: &mut Option<W>, bytes: &[u8]) {
    if let Some(writer) = input
        && writer.write_all(bytes).await.is_err()
    {
        *input = None;
    }
}

/// Sends what a program writes until it has ended.
async fn output_of(attached: &mut Attached, up: &mpsc::Sender<TunnelUp>) -> Result<TunnelEnd, Gone> {
    let (mut output, mut error_output) = (Some(&mut attached.output), attached.error_output.as_mut());
    let mut code = None;
    loop {
        if output.is_none()
            && error_output.is_none()
            && let Some(end) = code.take()
        {
            return Ok(end);
        }
        let quiet = code.is_some();
        // Cancel-safe: a read that is dropped has taken nothing, and the exit stays in its channel.
        let kind = tokio::select! {
            read = chunk(output.as_mut()), if output.is_some() => match read {
                Some(bytes) => Kind::Output(bytes),
                None => { output = None; continue }
            },
            read = chunk(error_output.as_mut()), if error_output.is_some() => match read {
                Some(bytes) => Kind::ErrorOutput(bytes),
                None => { error_output = None; continue }
            },
            ended = &mut attached.exit, if code.is_none() => {
                code = Some(match ended {
                    Ok(Ok(exit_code)) => TunnelEnd { exit_code, error: String::new() },
                    Ok(Err(error)) => refusal(words(&error)),
                    Err(_) => refusal("the daemon of the machine ends"),
                });
                continue;
            }
            () = tokio::time::sleep(QUIET), if quiet => return code.take().ok_or(Gone),
        };
        up.send(message(kind)).await.map_err(|_| Gone)?;
    }
}

/// The next bytes; none at the end.
async fn chunk<R: AsyncRead + Unpin>(reader: Option<R>) -> Option<Bytes> {
    let mut bytes = BytesMut::with_capacity(CHUNK);
    match reader?.read_buf(&mut bytes).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(bytes.freeze()),
    }
}

async fn port(
    reach: &dyn Reach,
    replica: &ReplicaId,
    target: &PortTarget,
    up: &mpsc::Sender<TunnelUp>,
    down: &mut Streaming<TunnelDown>,
) -> Result<TunnelEnd, Gone> {
    let Ok(port) = u16::try_from(target.port) else {
        return Ok(refusal(format!("{} is no port", target.port)));
    };
    let stream = match reach.connect(replica, port).await {
        Ok(stream) => stream,
        Err(error) => return Ok(refusal(format!("port {port} of {replica}: {error}"))),
    };
    let (mut reader, mut writer) = stream.into_split();
    let said = async {
        while let Some(bytes) = chunk(Some(&mut reader)).await {
            up.send(message(Kind::Output(bytes))).await.map_err(|_| Gone)?;
        }
        up.send(message(Kind::OutputEnd(OutputEnd {})))
            .await
            .map_err(|_| Gone)
    };
    let told = async {
        loop {
            match down.message().await {
                Ok(Some(TunnelDown {
                    kind: Some(tunnel_down::Kind::Input(bytes)),
                })) => {
                    if writer.write_all(&bytes).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(Some(TunnelDown {
                    kind: Some(tunnel_down::Kind::InputEnd(_)),
                })) => {
                    // The other direction tells of a peer that went away.
                    drop(writer.shutdown().await);
                    return Ok(());
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Err(Gone),
            }
        }
    };
    // What is dropped has nobody to speak with.
    tokio::select! {
        both = async { tokio::try_join!(said, told) } => both.map(|_| TunnelEnd::default()),
        () = up.closed() => Err(Gone),
    }
}
