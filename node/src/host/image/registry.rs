//! Registries over HTTP: manifests and blobs, tokens, what a status means.
//!
//! Our own client because we need what the usual ones hide: Retry-After, the place where a download broke, silence.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use berth_api::time::monotonic;
use bytes::Bytes;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Response, StatusCode};
use serde::Deserialize;

use super::ImagesConfig;
use super::manifest::{ACCEPT, DOCUMENT_SIZE_MAX};
use super::reference::Selector;
use super::retry::Trouble;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From a request to the head of its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Tokens of registries that do not say how long they are good for.
const TOKEN_LIFETIME_DEFAULT: Duration = Duration::from_secs(60);

/// Talks to registries. One for all pulls: connections and tokens are shared.
#[derive(Debug)]
pub(super) struct Registries {
    http: reqwest::Client,
    insecure: Vec<String>,
    stall_timeout: Duration,
    /// By host and repository.
    tokens: Mutex<BTreeMap<(String, String), Token>>,
}

#[derive(Debug, Clone)]
struct Token {
    authorization: HeaderValue,
    good_until: Instant,
}

/// One repository of one registry.
#[derive(Debug, Clone)]
pub(super) struct Repository {
    pub(super) registry: String,
    pub(super) name: String,
}

/// A manifest as it came: its bytes and what the registry calls them.
#[derive(Debug)]
pub(super) struct RawManifest {
    pub(super) bytes: Vec<u8>,
    pub(super) media_type: String,
}

/// A blob on its way.
#[derive(Debug)]
pub(super) struct Download {
    response: Response,
    /// Bytes to drop because the registry ignored the range.
    skip: u64,
    stall_timeout: Duration,
}

impl Registries {
    pub(super) fn new(config: &ImagesConfig) -> Result<Self, Trouble> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent("berthd")
            .build()
            .map_err(|error| Trouble::Store(format!("no HTTP client: {}", chain(&error))))?;
        Ok(Self {
            http,
            insecure: config.insecure_registries.clone(),
            stall_timeout: config.stall_timeout,
            tokens: Mutex::default(),
        })
    }

    /// The manifest or index that a tag or digest names.
    pub(super) async fn manifest(
        &self,
        repository: &Repository,
        selector: &Selector,
    ) -> Result<RawManifest, Trouble> {
        let path = format!("manifests/{selector}");
        let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(ACCEPT))]);
        let response = self.get(repository, &path, &headers).await?;
        let media_type = response
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .unwrap_or_default()
            .trim()
            .to_owned();
        let bytes = self.bounded_body(response).await?;
        Ok(RawManifest { bytes, media_type })
    }

    /// A blob from `offset` on.
    pub(super) async fn blob(
        &self,
        repository: &Repository,
        digest: &str,
        offset: u64,
    ) -> Result<Download, Trouble> {
        let mut headers = HeaderMap::new();
        if offset > 0 {
            let range = HeaderValue::try_from(format!("bytes={offset}-")).expect("digits are a header value");
            headers.insert(header::RANGE, range);
        }
        let response = self.get(repository, &format!("blobs/{digest}"), &headers).await?;
        let skip = if response.status() == StatusCode::PARTIAL_CONTENT {
            0
        } else {
            offset
        };
        Ok(Download {
            response,
            skip,
            stall_timeout: self.stall_timeout,
        })
    }

    async fn bounded_body(&self, response: Response) -> Result<Vec<u8>, Trouble> {
        let mut download = Download {
            response,
            skip: 0,
            stall_timeout: self.stall_timeout,
        };
        let mut body = Vec::new();
        while let Some(chunk) = download.chunk().await? {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > DOCUMENT_SIZE_MAX {
                return Err(Trouble::Unusable(format!(
                    "its manifest is larger than {DOCUMENT_SIZE_MAX} bytes"
                )));
            }
        }
        Ok(body)
    }

    /// GET with the token of the repository; gets a new one when the registry asks for it.
    async fn get(
        &self,
        repository: &Repository,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Response, Trouble> {
        let url = format!(
            "{}/v2/{}/{path}",
            self.base(&repository.registry),
            repository.name
        );
        let key = (repository.registry.clone(), repository.name.clone());
        let known = self.token(&key);
        let response = self.send(&url, headers, known.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return judged(response);
        }
        let challenge = response
            .headers()
            .get(header::WWW_AUTHENTICATE)
            .and_then(|value| value.to_str().ok())
            .and_then(Challenge::parse);
        let Some(challenge) = challenge else {
            return Err(Trouble::Denied("the registry asks for a login".into()));
        };
        let token = self.new_token(&challenge, &repository.name).await?;
        let authorization = token.authorization.clone();
        self.tokens
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, token);
        judged(self.send(&url, headers, Some(&authorization)).await?)
    }

    fn token(&self, key: &(String, String)) -> Option<HeaderValue> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let token = tokens.get(key)?;
        (token.good_until > monotonic()).then(|| token.authorization.clone())
    }

    async fn send(
        &self,
        url: &str,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Trouble> {
        let mut request = self.http.get(url).headers(headers.clone());
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        match tokio::time::timeout(ANSWER_TIMEOUT, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Trouble::passing(chain(&error))),
            Err(_elapsed) => Err(Trouble::passing(format!(
                "no answer within {} s from {url}",
                ANSWER_TIMEOUT.as_secs()
            ))),
        }
    }

    async fn new_token(&self, challenge: &Challenge, repository: &str) -> Result<Token, Trouble> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(alias = "access_token")]
            token: String,
            #[serde(default)]
            expires_in: Option<u64>,
        }
        let scope = challenge
            .scope
            .clone()
            .unwrap_or_else(|| format!("repository:{repository}:pull"));
        let mut url = reqwest::Url::parse(&challenge.realm)
            .map_err(|error| Trouble::Registry(format!("its token realm {:?}: {error}", challenge.realm)))?;
        if let Some(service) = &challenge.service {
            url.query_pairs_mut().append_pair("service", service);
        }
        url.query_pairs_mut().append_pair("scope", &scope);
        let response = self.send(url.as_str(), &HeaderMap::new(), None).await?;
        let body = self.bounded_body(judged(response)?).await?;
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|error| Trouble::Registry(format!("its token cannot be read: {error}")))?;
        let mut authorization = HeaderValue::try_from(format!("Bearer {}", answer.token))
            .map_err(|_| Trouble::Registry("its token is no header value".into()))?;
        authorization.set_sensitive(true);
        let lifetime = answer
            .expires_in
            .map_or(TOKEN_LIFETIME_DEFAULT, Duration::from_secs);
        Ok(Token {
            authorization,
            // A little early: the request still has to travel.
            good_until: monotonic() + lifetime.mul_f32(0.8),
        })
    }

    fn base(&self, registry: &str) -> String {
        let scheme = if self.insecure.iter().any(|host| host == registry) {
            "http"
        } else {
            "https"
        };
        let host = if registry == "docker.io" {
            "registry-1.docker.io"
        } else {
            registry
        };
        format!("{scheme}://{host}")
    }
}

impl Download {
    /// The next bytes; None at the end. Silence is an error that passes.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Trouble> {
        loop {
            let chunk = match tokio::time::timeout(self.stall_timeout, self.response.chunk()).await {
                Ok(Ok(chunk)) => chunk,
                Ok(Err(error)) => return Err(Trouble::passing(format!("download broke: {}", chain(&error)))),
                Err(_elapsed) => {
                    let silence = self.stall_timeout.as_secs_f32();
                    return Err(Trouble::passing(format!(
                        "the registry fell silent for {silence} s"
                    )));
                }
            };
            let Some(mut chunk) = chunk else { return Ok(None) };
            let dropped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(chunk.len());
            self.skip -= dropped as u64;
            let chunk = chunk.split_off(dropped);
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
    }
}

/// What the status of an answer means.
fn judged(response: Response) -> Result<Response, Trouble> {
    let status = response.status();
    let host = response.url().host_str().unwrap_or_default().to_owned();
    let what = format!("{host} answers {status}");
    match status {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
        StatusCode::NOT_FOUND => Err(Trouble::Unknown(what)),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Trouble::Denied(what)),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Err(Trouble::Passing {
            message: what,
            after: retry_after(response.headers()),
        }),
        status if status.is_server_error() => Err(Trouble::Passing {
            message: what,
            after: retry_after(response.headers()),
        }),
        _ => Err(Trouble::Registry(what)),
    }
}

/// Retry-After in its form of seconds; the form of a date is left to our own back-off.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

/// An error with its causes: the transport's own text alone says only that sending failed.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// A `WWW-Authenticate: Bearer` header.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    realm: String,
    service: Option<String>,
    scope: Option<String>,
}

impl Challenge {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, mut rest) = text.trim().split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = BTreeMap::new();
        // name="value", with commas inside values (scopes) and between parameters.
        while let Some((name, after)) = rest.split_once('=') {
            let name = name.trim_matches([',', ' ']).to_ascii_lowercase();
            let (value, next) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').unwrap_or((after, "")),
            };
            parameters.insert(name, value.to_owned());
            rest = next;
        }
        Some(Self {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service"),
            scope: parameters.remove("scope"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_challenges() {
        let text =
            r#"Bearer realm="https://auth.r.io/token",service="r.io",scope="repository:a/b:pull,push""#;
        let expected = Challenge {
            realm: "https://auth.r.io/token".into(),
            service: Some("r.io".into()),
            scope: Some("repository:a/b:pull,push".into()),
        };
        assert_eq!(Challenge::parse(text), Some(expected));
        assert_eq!(Challenge::parse("Basic realm=\"x\""), None);
        assert_eq!(Challenge::parse("Bearer service=\"x\""), None);
        assert_eq!(Challenge::parse("Bearer realm=\"unfinished"), None);
    }

    #[test]
    fn reads_retry_after_in_seconds() {
        let headers = |value| HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from_static(value))]);
        assert_eq!(retry_after(&headers("7")), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(&headers("Wed, 21 Oct 2026 07:28:00 GMT")), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
