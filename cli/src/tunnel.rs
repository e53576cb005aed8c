//! One tunnel to a replica: a WebSocket through the scheduler ([`berth_api::rest::tunnel`]).

use std::time::Duration;

use berth_api::rest::tunnel::{Ended, Frame, KEEPALIVE_SECONDS, MESSAGE_MAX_BYTES};
use futures::{SinkExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Message};

use crate::exit::{Code, Failure, chain};

const KEEPALIVE: Duration = Duration::from_secs(KEEPALIVE_SECONDS);
/// A scheduler that says nothing for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(4 * KEEPALIVE_SECONDS);
/// Messages that wait to be sent, or to be taken.
pub(crate) const WAITING_MAX: usize = 8;
/// Bytes of one message.
pub(crate) const CHUNK: usize = 16 << 10;

/// An open tunnel.
#[derive(Debug)]
pub(crate) struct Tunnel {
    /// At the other end.
    pub(crate) replica: String,
    socket: WebSocketStream<reqwest::Upgraded>,
}

impl Tunnel {
    pub(crate) async fn new(replica: String, upgraded: reqwest::Upgraded) -> Self {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_MAX_BYTES))
            .max_frame_size(Some(MESSAGE_MAX_BYTES));
        Self {
            replica,
            socket: WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await,
        }
    }

    /// Sends encoded messages as they come, and hands on received ones, until the other side says how it ended. Who does not take them
    /// any more ends it too.
    pub(crate) async fn carry(
        self,
        mut input: mpsc::Receiver<Vec<u8>>,
        output: mpsc::Sender<Bytes>,
    ) -> Result<Ended, Failure> {
        let (mut sink, mut stream) = self.socket.split();
        let sending = async {
            let mut pong = tokio::time::interval(KEEPALIVE);
            loop {
                // Cancel-safe: a message stays in its queue, a timer holds nothing.
                let message = tokio::select! {
                    Some(bytes) = input.recv() => Message::Binary(bytes.into()),
                    // Unasked (RFC 6455, section 5.5.3): also who cannot read now says that it lives.
                    _ = pong.tick() => Message::Pong(Bytes::new()),
                };
                if let Err(error) = sink.send(message).await {
                    return lost(&chain(&error));
                }
            }
        };
        let receiving = async {
            loop {
                let message = match tokio::time::timeout(SILENCE_MAX, stream.next()).await {
                    Ok(Some(Ok(message))) => message,
                    Ok(Some(Err(error))) => return Err(lost(&chain(&error))),
                    Ok(None) => return Err(lost("it ended without a word")),
                    Err(_) => return Err(lost("the scheduler is silent")),
                };
                let Message::Binary(bytes) = message else { continue };
                match Frame::decode(&bytes) {
                    Ok(Frame::Ended(ended)) => return Ok(ended),
                    Ok(_) => {}
                    Err(error) => return Err(lost(&error.to_string())),
                }
                if output.send(bytes).await.is_err() {
                    return Err(Failure::failed("the output cannot be written any more"));
                }
            }
        };
        // What is dropped here is of a tunnel that has ended.
        tokio::select! {
            biased;
            ended = receiving => ended,
            failure = sending => Err(failure),
        }
    }
}

fn lost(reason: &str) -> Failure {
    Failure::new(
        Code::Refused,
        format!("the tunnel to the replica broke: {reason}"),
    )
}
