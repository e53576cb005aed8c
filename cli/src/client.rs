//! The scheduler's REST API as this program calls it.

use std::time::Duration;

use berth_api::rest::tunnel::PROTOCOL;
use berth_api::time::monotonic;
use reqwest::{Method, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::exit::{Code, Failure, chain};
use crate::tunnel::Tunnel;

/// A plain request is answered from memory; a scheduler that takes longer is as good as gone.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("{0:?} is not the address of a scheduler; write for example http://127.0.0.1:7600")]
    Address(String),
    #[error("cannot set up the HTTP client")]
    Setup(#[source] reqwest::Error),
    #[error("cannot reach the scheduler at {server}")]
    Unreachable {
        server: String,
        #[source]
        source: reqwest::Error,
    },
    /// The scheduler said no; its message lists every fault.
    #[error("{message}")]
    Answer { status: StatusCode, message: String },
    #[error("the scheduler's answer to {path} cannot be read; are its version and this one the same?")]
    Body {
        path: String,
        #[source]
        source: serde_json::Error,
    },
}

impl ClientError {
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Answer {
                status: StatusCode::NOT_FOUND,
                ..
            }
        )
    }

    fn code(&self) -> Code {
        match self {
            Self::Address(_) => Code::Input,
            Self::Setup(_) | Self::Body { .. } => Code::Failed,
            Self::Unreachable { .. } => Code::Refused,
            Self::Answer { status, .. } => match *status {
                StatusCode::NOT_FOUND => Code::NotFound,
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Code::Refused,
                status if status.is_client_error() => Code::Input,
                _ => Code::Failed,
            },
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::new(error.code(), chain(&error))
    }
}

/// A scheduler and a token for it.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    server: Url,
    token: String,
}

impl Client {
    pub(crate) fn new(server: &str, token: &str) -> Result<Self, ClientError> {
        let address = || ClientError::Address(server.to_owned());
        let url: Url = server.parse().map_err(|_| address())?;
        if url.cannot_be_a_base() || !matches!(url.scheme(), "http" | "https") {
            return Err(address());
        }
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_DEADLINE)
            // A proxy of the environment is for the internet, not for the own scheduler.
            .no_proxy()
            .build()
            .map_err(ClientError::Setup)?;
        Ok(Self {
            http,
            server: url,
            token: token.to_owned(),
        })
    }

    /// The address of a path given in segments, each encoded as one: a cluster id may contain slashes.
    fn url(&self, segments: &[&str], query: &[(&str, String)]) -> Url {
        let mut url = self.server.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    fn unreachable(&self, source: reqwest::Error) -> ClientError {
        ClientError::Unreachable {
            server: self.server.to_string(),
            source: source.without_url(),
        }
    }

    async fn send(
        &self,
        method: Method,
        url: Url,
        body: Option<&Value>,
        deadline: Option<Duration>,
    ) -> Result<reqwest::Response, ClientError> {
        let mut request = self.http.request(method, url).bearer_auth(&self.token);
        if let Some(deadline) = deadline {
            request = request.timeout(deadline);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.map_err(|error| self.unreachable(error))?;
        Err(ClientError::Answer {
            status,
            message: error_message(status, &text),
        })
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        url: Url,
        body: Option<&Value>,
    ) -> Result<T, ClientError> {
        let path = url.path().to_owned();
        let response = self.send(method, url, body, Some(REQUEST_DEADLINE)).await?;
        let bytes = response.bytes().await.map_err(|error| self.unreachable(error))?;
        serde_json::from_slice(&bytes).map_err(|source| ClientError::Body { path, source })
    }

    /// Whether the scheduler answers and is ready to work.
    pub(crate) async fn is_ready(&self) -> bool {
        let url = self.url(&["readyz"], &[]);
        self.send(Method::GET, url, None, Some(CONNECT_DEADLINE))
            .await
            .is_ok()
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, segments: &[&str]) -> Result<T, ClientError> {
        self.call(Method::GET, self.url(segments, &[]), None).await
    }

    pub(crate) async fn get_with<T: DeserializeOwned>(
        &self,
        segments: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, ClientError> {
        self.call(Method::GET, self.url(segments, query), None).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        segments: &[&str],
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let url = self.url(segments, &[]);
        let body = body.map(|body| to_value(body, &url)).transpose()?;
        self.call(Method::POST, url, body.as_ref()).await
    }

    /// A POST without a body.
    pub(crate) async fn post_with<T: DeserializeOwned>(
        &self,
        segments: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, ClientError> {
        self.call(Method::POST, self.url(segments, query), None).await
    }

    pub(crate) async fn patch<T: DeserializeOwned>(
        &self,
        segments: &[&str],
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let url = self.url(segments, &[]);
        let body = to_value(body, &url)?;
        self.call(Method::PATCH, url, Some(&body)).await
    }

    pub(crate) async fn delete<T: DeserializeOwned>(&self, segments: &[&str]) -> Result<T, ClientError> {
        self.call(Method::DELETE, self.url(segments, &[]), None).await
    }

    pub(crate) async fn delete_with<T: DeserializeOwned>(
        &self,
        segments: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, ClientError> {
        self.call(Method::DELETE, self.url(segments, query), None).await
    }

    /// An answer that comes in pieces and may never end, such as followed logs.
    pub(crate) async fn stream(
        &self,
        segments: &[&str],
        query: &[(&str, String)],
    ) -> Result<reqwest::Response, ClientError> {
        let began = monotonic();
        let url = self.url(segments, query);
        let sent = tokio::time::timeout(REQUEST_DEADLINE, self.send(Method::GET, url, None, None)).await;
        sent.unwrap_or_else(|_| {
            Err(ClientError::Answer {
                status: StatusCode::GATEWAY_TIMEOUT,
                message: format!(
                    "the scheduler did not begin its answer within {} s",
                    monotonic().duration_since(began).as_secs()
                ),
            })
        })
    }
}

impl Client {
    /// Opens a tunnel to a replica (RFC 6455, section 4.1).
    pub(crate) async fn tunnel(
        &self,
        segments: &[&str],
        query: &[(&str, String)],
    ) -> Result<Tunnel, ClientError> {
        let key = generate_key();
        let request = self
            .http
            .get(self.url(segments, query))
            .bearer_auth(&self.token)
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", &key)
            .header("sec-websocket-protocol", PROTOCOL);
        let late = |_| ClientError::Answer {
            status: StatusCode::GATEWAY_TIMEOUT,
            message: format!(
                "the scheduler did not answer within {} s",
                REQUEST_DEADLINE.as_secs()
            ),
        };
        let response = tokio::time::timeout(REQUEST_DEADLINE, request.send())
            .await
            .map_err(late)?
            .map_err(|error| self.unreachable(error))?;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let text = response.text().await.map_err(|error| self.unreachable(error))?;
            return Err(ClientError::Answer {
                status,
                message: error_message(status, &text),
            });
        }
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        if header("sec-websocket-accept") != Some(derive_accept_key(key.as_bytes()).as_str())
            || header("sec-websocket-protocol") != Some(PROTOCOL)
        {
            return Err(ClientError::Answer {
                status,
                message: "what answers is no scheduler that knows tunnels".into(),
            });
        }
        let replica = header("berth-replica").unwrap_or_default().to_owned();
        let upgraded = response
            .upgrade()
            .await
            .map_err(|error| self.unreachable(error))?;
        Ok(Tunnel::new(replica, upgraded).await)
    }
}

fn to_value(body: &impl Serialize, url: &Url) -> Result<Value, ClientError> {
    serde_json::to_value(body).map_err(|source| ClientError::Body {
        path: url.path().to_owned(),
        source,
    })
}

/// The scheduler's own words; for an answer of something else, the status.
fn error_message(status: StatusCode, text: &str) -> String {
    let message = serde_json::from_str::<Value>(text)
        .ok()
        .and_then(|value| Some(value.get("error")?.get("message")?.as_str()?.to_owned()));
    match message {
        Some(message) => message,
        None if text.trim().is_empty() => format!("the server answered {status}"),
        None => format!(
            "the server answered {status}: {}",
            text.trim().chars().take(400).collect::<String>()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_id_with_slashes_is_one_segment() {
        let client = Client::new("http://127.0.0.1:7600", "t").unwrap();
        let url = client.url(
            &["clusters", "acme/prod compute", "machines"],
            &[("limit", "5".into())],
        );
        assert_eq!(
            url.as_str(),
            "http://127.0.0.1:7600/clusters/acme%2Fprod%20compute/machines?limit=5"
        );
    }

    #[test]
    fn a_server_below_a_path_and_a_trailing_slash_work() {
        let client = Client::new("https://example.org/berth/", "t").unwrap();
        assert_eq!(
            client.url(&["clusters"], &[]).as_str(),
            "https://example.org/berth/clusters"
        );
        assert!(Client::new("127.0.0.1:7600", "t").is_err());
        assert!(Client::new("localhost:7600", "t").is_err());
    }

    #[test]
    fn the_servers_own_words_are_shown() {
        let body = r#"{"error":{"code":"invalid","message":"ports: is missing\nimage: is empty"}}"#;
        assert_eq!(
            error_message(StatusCode::BAD_REQUEST, body),
            "ports: is missing\nimage: is empty"
        );
        assert!(error_message(StatusCode::BAD_GATEWAY, "<html>").contains("502"));
    }
}
