//! `exec` and `port-forward`: a WebSocket on one side, a tunnel to the replica's machine on the other. What travels on the
//! WebSocket is described in [`berth_api::rest::tunnel`].
//!
//! Whatever can be refused is refused before the upgrade, as an ordinary answer. A tunnel ends with either side, with the
//! machine's session, with the token that it was opened with, and with this process.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::FromRequestParts;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use berth_api::id::{ContainerName, MachineId, ReplicaId};
use berth_api::link::{
    ExecTarget, InputEnd, PortTarget, TunnelDown, TunnelEnd, TunnelUp, WindowSize, tunnel_down,
    tunnel_request::Target, tunnel_up,
};
use berth_api::rest::tunnel::{Ended, Frame, KEEPALIVE_SECONDS, MESSAGE_MAX_BYTES, PROTOCOL, Window};
use berth_api::validate::{Fault, Faults};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Api;
use super::auth::{Manager, revoked};
use super::request::{ApiError, Pairs, Segments};
use super::told::Told;
use super::view::is_running;
use crate::cluster::ClusterHandle;
use crate::link::Tunnel;
use crate::refusal::{Class, Refused};
use crate::world::{Observed, Replica, World};

const KEEPALIVE: Duration = Duration::from_secs(KEEPALIVE_SECONDS);
/// A client that says nothing for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(4 * KEEPALIVE_SECONDS);
/// A client may take nothing for so long, because somebody has stopped its terminal.
const SEND_TIMEOUT: Duration = Duration::from_secs(600);
/// Of a last word to a client that may be gone, or must be.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);
const COMMAND_BYTES_MAX: usize = 4 << 10;
const WINDOW_MAX: u32 = 10_000;
/// Which replica answers.
const REPLICA: &str = "berth-replica";

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

pub(super) async fn exec(opening: Opening, pairs: Pairs, upgrade: Upgrade) -> Result<Response, ApiError> {
    let target = exec_target(&pairs).map_err(|faults| ApiError::invalid("invalid_query", faults))?;
    opening.open(Target::Exec(target), upgrade).await
}

pub(super) async fn port_forward(
    opening: Opening,
    pairs: Pairs,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    let target = port_target(&pairs).map_err(|faults| ApiError::invalid("invalid_query", faults))?;
    opening.open(Target::Port(target), upgrade).await
}

fn fault(key: &str, problem: impl Into<String>) -> Fault {
    Fault {
        path: key.to_owned(),
        problem: problem.into(),
    }
}

fn exec_target(pairs: &Pairs) -> Result<ExecTarget, Faults> {
    let (mut target, mut window, mut faults) = (ExecTarget::default(), WindowSize::default(), Vec::new());
    for (key, value) in pairs.iter() {
        let flag = |faults: &mut Vec<Fault>| {
            value.parse().unwrap_or_else(|_| {
                faults.push(fault(key, format!("{value:?} is not valid; write true or false")));
                false
            })
        };
        let size = |faults: &mut Vec<Fault>| match value.parse() {
            Ok(size @ 1..=WINDOW_MAX) => size,
            Ok(_) | Err(_) => {
                faults.push(fault(
                    key,
                    format!("{value:?} is not valid; write 1 to {WINDOW_MAX}"),
                ));
                0
            }
        };
        match key {
            "command" => target.command.push(value.to_owned()),
            "terminal" => target.terminal = flag(&mut faults),
            "input" => target.input = flag(&mut faults),
            "columns" => window.columns = size(&mut faults),
            "rows" => window.rows = size(&mut faults),
            _ => {}
        }
    }
    let program = target.command.first();
    if program.is_none_or(String::is_empty) {
        faults.push(fault(
            "command",
            "is missing; give the program, and each argument as one more command",
        ));
    }
    if target.command.iter().map(|word| word.len() + 1).sum::<usize>() > COMMAND_BYTES_MAX {
        faults.push(fault(
            "command",
            format!("is longer than {COMMAND_BYTES_MAX} bytes"),
        ));
    }
    if target.command.iter().any(|word| word.contains('\0')) {
        faults.push(fault("command", "contains a zero byte"));
    }
    target.window = (window != WindowSize::default()).then_some(window);
    Faults::check(faults)?;
    Ok(target)
}

fn port_target(pairs: &Pairs) -> Result<PortTarget, Faults> {
    let port = pairs.iter().find(|(key, _)| *key == "port").map(|(_, port)| port);
    match port.map(str::parse::<u16>) {
        Some(Ok(port)) if port > 0 => Ok(PortTarget { port: port.into() }),
        Some(_) => Err(Faults::one("port", "is no port; write 1 to 65535")),
        None => Err(Faults::one("port", "is missing; write 1 to 65535")),
    }
}

/// A request for a tunnel, whose sender may have one.
pub(super) struct Opening {
    api: Api,
    cluster: ClusterHandle,
    told: Told,
    /// Of a replica or a container.
    name: String,
}

impl FromRequestParts<Api> for Opening {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let Manager(cluster) = Manager::from_request_parts(parts, api).await?;
        let segments = Segments::from_request_parts(parts, api).await?;
        Ok(Self {
            api: api.clone(),
            cluster,
            told: Told::of(parts),
            name: segments.text("name").to_owned(),
        })
    }
}

impl Opening {
    async fn open(self, target: Target, upgrade: Upgrade) -> Result<Response, ApiError> {
        let upgrade = upgrade.map_err(|rejection| {
            ApiError::new(
                StatusCode::UPGRADE_REQUIRED,
                "upgrade_required",
                format!("this is a WebSocket of subprotocol {PROTOCOL}: {rejection}"),
            )
        })?;
        let (replica, machine) = choose(&self.cluster.world(), &self.cluster.observed(), &self.name)?;
        let tunnel = self.cluster.sessions().tunnel(&machine, &replica, target).await?;
        let Api { stop, upgraded, .. } = self.api;
        let chosen = replica.clone();
        self.told.tell(|facts| facts.replica = Some(chosen));
        let (cluster, told) = (self.cluster, self.told.facts());
        let session_ended = tunnel.session_ended.clone();
        let goodbye = stop.clone();
        let mut response = upgrade
            .protocols([PROTOCOL])
            .max_message_size(MESSAGE_MAX_BYTES)
            .max_frame_size(MESSAGE_MAX_BYTES)
            .on_upgrade(async move |socket| {
                let over = async {
                    // All are cancel-safe: they only wait.
                    tokio::select! {
                        () = stop.cancelled_owned() => "the scheduler stops",
                        () = revoked(&cluster, told) => "the token is revoked or has expired",
                        () = session_ended.cancelled_owned() => "the machine is no longer linked",
                    }
                };
                let carried = carry(socket, tunnel, over, &goodbye);
                upgraded.track_future(carried).await;
            });
        if let Ok(replica) = HeaderValue::from_str(replica.as_str()) {
            response.headers_mut().insert(REPLICA, replica);
        }
        Ok(response)
    }
}

/// The replica of this name, or the one of the container that serves best.
fn choose(world: &World, observed: &Observed, name: &str) -> Result<(ReplicaId, MachineId), Refused> {
    let one = ReplicaId::new(name).ok().and_then(|id| world.replica(&id));
    let container = ContainerName::new(name).ok();
    let of_container = container.iter().flat_map(|name| world.replicas_of(name));
    let candidates: Vec<&Replica> = match one {
        Some(replica) => vec![replica],
        None => of_container.collect(),
    };
    if candidates.is_empty() {
        return Err(Refused::new(
            Class::NotFound,
            "nothing_placed",
            format!("no replica or container {name:?} is placed on a machine"),
        ));
    }
    let running = candidates
        .into_iter()
        .filter(|replica| is_running(world, observed, replica));
    let best = running.min_by_key(|replica| {
        let readiness = observed.readiness(world, replica);
        (replica.stopping.is_some(), readiness, replica.replica_id.clone())
    });
    let best = best.ok_or_else(|| {
        Refused::new(
            Class::Conflict,
            "nothing_running",
            format!("{name:?} is placed, and no process of it runs now; see: berth explain {name}"),
        )
    })?;
    Ok((best.replica_id.clone(), best.machine_id.clone()))
}

/// Carries bytes until either side ends, or it is `over` for the reason that this gives.
async fn carry(
    socket: WebSocket,
    tunnel: Tunnel,
    over: impl Future<Output = &'static str>,
    stop: &CancellationToken,
) {
    let (mut sink, mut stream) = socket.split();
    let Tunnel {
        mut up,
        down,
        room: _room,
        ..
    } = tunnel;
    // What is dropped here ends with the tunnel, as all its bytes do.
    let (ended, patience) = tokio::select! {
        ended = upwards(&mut up, &mut sink) => (ended, SEND_TIMEOUT),
        reason = downwards(&mut stream, down) => (Some(lost(reason)), GOODBYE_TIMEOUT),
        reason = over => (Some(lost(reason)), GOODBYE_TIMEOUT),
    };
    // The machine need not wait for a client that takes its time.
    drop(up);
    let goodbye = async {
        if let Some(ended) = ended {
            sink.send(binary(&Frame::Ended(ended))).await?;
        }
        sink.send(Message::Close(None)).await?;
        // A connection that is closed while something of the client's is unread is reset, and what it has not read yet is lost with it: so
        // it closes first, for as long as it says that it lives.
        while let Ok(Some(Ok(_))) = tokio::time::timeout(SILENCE_MAX, stream.next()).await {}
        Ok::<_, axum::Error>(())
    };
    let goodbye = tokio::time::timeout(patience, goodbye);
    // The client may be gone.
    drop(stop.run_until_cancelled(goodbye).await);
}

fn lost(reason: impl Into<String>) -> Ended {
    Ended {
        exit_code: None,
        error: Some(reason.into()),
    }
}

fn binary(frame: &Frame<'_>) -> Message {
    Message::Binary(Bytes::from(frame.encode()))
}

/// From the replica to the client; how it ended, when the client is still there.
async fn upwards(
    up: &mut tonic::Streaming<TunnelUp>,
    sink: &mut SplitSink<WebSocket, Message>,
) -> Option<Ended> {
    let mut ping = tokio::time::interval(KEEPALIVE);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // Cancel-safe: what has arrived of a message stays in the stream, a timer holds nothing.
        let message = tokio::select! {
            received = up.message() => match received {
                Ok(Some(TunnelUp { kind: Some(kind) })) => match said(kind) {
                    Said::More(message) => message,
                    Said::Last(ended) => return Some(ended),
                    Said::Nothing => continue,
                },
                Ok(Some(TunnelUp { kind: None })) => continue,
                Ok(None) | Err(_) => return Some(lost("the machine has ended the tunnel; is its daemon restarted?")),
            },
            _ = ping.tick() => Message::Ping(Bytes::new()),
        };
        match tokio::time::timeout(SEND_TIMEOUT, sink.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return None,
        }
    }
}

enum Said {
    More(Message),
    Last(Ended),
    Nothing,
}

fn said(kind: tunnel_up::Kind) -> Said {
    use tunnel_up::Kind;
    match kind {
        Kind::Open(_) => Said::Nothing,
        Kind::Output(bytes) => Said::More(binary(&Frame::Output(&bytes))),
        Kind::ErrorOutput(bytes) => Said::More(binary(&Frame::ErrorOutput(&bytes))),
        Kind::OutputEnd(_) => Said::More(binary(&Frame::OutputEnd)),
        Kind::End(TunnelEnd { exit_code, error }) if error.is_empty() => Said::Last(Ended {
            exit_code: Some(exit_code),
            error: None,
        }),
        Kind::End(TunnelEnd { error, .. }) => Said::Last(lost(error)),
    }
}

/// From the client to the replica; why it ended.
async fn downwards(stream: &mut SplitStream<WebSocket>, down: mpsc::Sender<TunnelDown>) -> String {
    loop {
        let message = match tokio::time::timeout(SILENCE_MAX, stream.next()).await {
            Ok(Some(Ok(message))) => message,
            Ok(Some(Err(error))) => return format!("the connection broke: {error}"),
            Ok(None) => return "the client went away".into(),
            Err(_) => return "the client is silent".into(),
        };
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Close(_) => return "the client went away".into(),
            Message::Text(_) => return "messages are binary".into(),
            Message::Ping(_) | Message::Pong(_) => continue,
        };
        let kind = match Frame::decode(&bytes) {
            Ok(Frame::Input(_)) => tunnel_down::Kind::Input(bytes.slice(1..)),
            Ok(Frame::InputEnd) => tunnel_down::Kind::InputEnd(InputEnd {}),
            Ok(Frame::Window(Window { columns, rows })) => tunnel_down::Kind::Window(WindowSize {
                columns: columns.clamp(1, WINDOW_MAX),
                rows: rows.clamp(1, WINDOW_MAX),
            }),
            Ok(_) => return "only channels 0 and 4 are a client's".into(),
            Err(error) => return error.to_string(),
        };
        // A program that reads nothing holds the client back; a node that is gone ends the other direction.
        if down.send(TunnelDown { kind: Some(kind) }).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(of: &[(&str, &str)]) -> Pairs {
        Pairs(
            of.iter()
                .map(|(key, value)| ((*key).into(), (*value).into()))
                .collect(),
        )
    }

    #[test]
    fn a_query_is_read_whole_and_its_faults_are_told_at_once() {
        let target = exec_target(&pairs(&[
            ("command", "sh"),
            ("command", "-c"),
            ("command", "a b&c"),
            ("terminal", "true"),
            ("columns", "80"),
            ("rows", "24"),
        ]))
        .unwrap();
        assert_eq!(target.command, ["sh", "-c", "a b&c"]);
        assert!(target.terminal && !target.input);
        assert_eq!(
            target.window,
            Some(WindowSize {
                columns: 80,
                rows: 24
            })
        );
        let faults =
            exec_target(&pairs(&[("terminal", "yes"), ("columns", "0"), ("rows", "x")])).unwrap_err();
        let paths: Vec<_> = faults.into_list().into_iter().map(|fault| fault.path).collect();
        assert_eq!(paths, ["terminal", "columns", "rows", "command"]);
        assert!(exec_target(&pairs(&[("command", &"x".repeat(COMMAND_BYTES_MAX + 1))])).is_err());
        for bad in ["0", "65536", "http", "-1", ""] {
            assert!(port_target(&pairs(&[("port", bad)])).is_err(), "{bad}");
        }
        assert_eq!(port_target(&pairs(&[("port", "5432")])).unwrap().port, 5432);
        assert!(port_target(&pairs(&[])).is_err());
    }
}
