//! What travels over the WebSockets of `exec` and `port-forward`: a program's input and output, or a port's bytes.
//!
//! Each message is binary; its first byte names a channel. The numbers are those of Kubernetes' `v5.channel.k8s.io`
//! (`k8s.io/apimachinery/pkg/util/remotecommand`), so that who knows one knows the other:
//!
//! | channel | direction | rest of the message |
//! | --- | --- | --- |
//! | 0 | to the replica | input of the program, bytes for the port |
//! | 1 | from it | standard output, or the terminal; bytes of the port |
//! | 2 | from it | standard error |
//! | 3 | from it | JSON of [`Ended`]; the last message |
//! | 4 | to it | JSON of [`Window`] |
//! | 255 | both | one byte: the channel on which nothing more comes |

use serde::{Deserialize, Serialize};

/// The WebSocket's subprotocol (RFC 6455, section 1.9).
pub const PROTOCOL: &str = "v1.tunnel.berth.dev";
/// A longer message ends the tunnel.
pub const MESSAGE_MAX_BYTES: usize = 256 << 10;
/// Either side says something at least this often, if only a ping or a pong; the other is gone after four times as long.
pub const KEEPALIVE_SECONDS: u64 = 20;

const INPUT: u8 = 0;
const OUTPUT: u8 = 1;
const ERROR_OUTPUT: u8 = 2;
const ENDED: u8 = 3;
const WINDOW: u8 = 4;
const CLOSED: u8 = 255;

/// How a tunnel ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// Of the program: its code, or 128 plus the signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u32>,
    /// Why there is no code: it could not be started or reached, or was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    pub columns: u32,
    pub rows: u32,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    Input(&'a [u8]),
    InputEnd,
    Output(&'a [u8]),
    OutputEnd,
    ErrorOutput(&'a [u8]),
    Ended(Ended),
    Window(Window),
}

/// Why a message is none.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("an empty message; its first byte names a channel")]
    Empty,
    #[error("channel {0} is not known; 0 to 4 and 255 are")]
    Channel(u8),
    #[error("the message on channel {channel} is no JSON of its kind: {source}")]
    Json { channel: u8, source: serde_json::Error },
}

impl Frame<'_> {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let json = |channel, json: Result<Vec<u8>, serde_json::Error>| {
            with(channel, &json.expect("numbers and text make JSON"))
        };
        match self {
            Self::Input(bytes) => with(INPUT, bytes),
            Self::InputEnd => vec![CLOSED, INPUT],
            Self::Output(bytes) => with(OUTPUT, bytes),
            Self::OutputEnd => vec![CLOSED, OUTPUT],
            Self::ErrorOutput(bytes) => with(ERROR_OUTPUT, bytes),
            Self::Ended(ended) => json(ENDED, serde_json::to_vec(ended)),
            Self::Window(window) => json(WINDOW, serde_json::to_vec(window)),
        }
    }
}

impl<'a> Frame<'a> {
    /// # Errors
    /// When the message is empty, of an unknown channel, or its JSON cannot be read.
    pub fn decode(message: &'a [u8]) -> Result<Self, FrameError> {
        let (channel, rest) = message.split_first().ok_or(FrameError::Empty)?;
        let json = |source| FrameError::Json {
            channel: *channel,
            source,
        };
        match (*channel, rest) {
            (INPUT, bytes) => Ok(Self::Input(bytes)),
            (OUTPUT, bytes) => Ok(Self::Output(bytes)),
            (ERROR_OUTPUT, bytes) => Ok(Self::ErrorOutput(bytes)),
            (ENDED, bytes) => serde_json::from_slice(bytes).map(Self::Ended).map_err(json),
            (WINDOW, bytes) => serde_json::from_slice(bytes).map(Self::Window).map_err(json),
            (CLOSED, [INPUT]) => Ok(Self::InputEnd),
            (CLOSED, [OUTPUT]) => Ok(Self::OutputEnd),
            (channel, _) => Err(FrameError::Channel(channel)),
        }
    }
}

fn with(channel: u8, bytes: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(channel);
    message.extend_from_slice(bytes);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded_again() {
        for frame in [
            Frame::Input(b"ls\n"),
            Frame::Input(b""),
            Frame::InputEnd,
            Frame::Output(&[0, 255]),
            Frame::OutputEnd,
            Frame::ErrorOutput(b"no"),
            Frame::Ended(Ended {
                exit_code: Some(137),
                error: None,
            }),
            Frame::Window(Window {
                columns: 80,
                rows: 24,
            }),
        ] {
            let message = frame.encode();
            assert_eq!(Frame::decode(&message).unwrap(), frame);
        }
        assert_eq!(
            Frame::Window(Window {
                columns: 80,
                rows: 24
            })
            .encode(),
            b"\x04{\"columns\":80,\"rows\":24}"
        );
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for message in [
            &b""[..],
            b"\x05",
            b"\xff",
            b"\xff\x02",
            b"\x03{",
            b"\x04{\"columns\":-1}",
        ] {
            assert!(Frame::decode(message).is_err(), "{message:?}");
        }
    }
}
