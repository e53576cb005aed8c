//! Registries over HTTP: manifests and blobs, mirrors, logins and tokens, what a status means.
//!
//! Our own client because we need what the usual ones hide: Retry-After, the place where a download broke, silence.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use berth_api::time::{Timestamp, monotonic};
use bytes::Bytes;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{RequestBuilder, Response, StatusCode, Url, redirect};
use serde::Deserialize;

use super::ImagesConfig;
use super::access::{Credentials, RegistryConfig};
use super::challenge::Challenge;
use super::manifest::{ACCEPT, DOCUMENT_SIZE_MAX};
use super::reference::Selector;
use super::retry::Trouble;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From a request to the head of its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Tokens of registries that do not say how long they are good for.
const TOKEN_LIFETIME_DEFAULT: Duration = Duration::from_secs(60);
/// A password that a helper gave is asked for again after this time: that of a cloud is good for hours.
const PASSWORD_LIFETIME: Duration = Duration::from_secs(600);
/// How long a mirror that does not answer is passed over, unless it says so itself.
const MIRROR_REST: Duration = Duration::from_secs(60);

/// Talks to registries. One for all pulls: connections and tokens are shared.
#[derive(Debug)]
pub(super) struct Registries {
    clients_default: Clients,
    configs: BTreeMap<String, RegistryConfig>,
    stall_timeout: Duration,
    /// Of registries with certificates of their own.
    clients: Mutex<BTreeMap<String, Clients>>,
    /// By host and repository.
    tokens: Mutex<BTreeMap<(String, String), Token>>,
    /// Mirrors that failed, and until when they are passed over.
    resting: Mutex<BTreeMap<String, Instant>>,
}

/// For one way of trusting.
#[derive(Debug, Clone)]
struct Clients {
    /// Registries answer with the place where a blob lies.
    following: reqwest::Client,
    /// A login is taken nowhere else.
    staying: reqwest::Client,
}

#[derive(Debug, Clone)]
struct Token {
    authorization: HeaderValue,
    good_until: Instant,
}

/// Whom to ask for a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// Its mirrors, one after the other, and the registry at last.
    Mirrors,
    /// The registry alone: there is no mirror, or what came by one could not be used.
    Direct,
}

impl Route {
    /// What a mirror makes of an image is not the image's fault: the registry is asked next.
    pub(super) fn blame(self, trouble: Trouble) -> Trouble {
        match (self, trouble) {
            (Self::Mirrors, Trouble::Unusable(message) | Trouble::Registry(message)) => {
                Trouble::passing(message)
            }
            (Self::Mirrors | Self::Direct, trouble) => trouble,
        }
    }
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
    /// Whose answer it is.
    host: String,
    response: Response,
    /// Bytes to drop because the registry ignored the range.
    skip: u64,
    stall_timeout: Duration,
}

impl Registries {
    pub(super) fn new(config: &ImagesConfig) -> Result<Self, Trouble> {
        let clients_default = Clients::trusting(Vec::new())
            .map_err(|error| Trouble::Store(format!("no HTTP client: {}", chain(&error))))?;
        Ok(Self {
            clients_default,
            configs: config.registries.clone(),
            stall_timeout: config.stall_timeout,
            clients: Mutex::default(),
            tokens: Mutex::default(),
            resting: Mutex::default(),
        })
    }

    /// How to ask for something for the first time.
    pub(super) fn route(&self, repository: &Repository) -> Route {
        if self.config(&repository.registry).mirrors.is_empty() {
            Route::Direct
        } else {
            Route::Mirrors
        }
    }

    /// The manifest or index that a tag or digest names.
    pub(super) async fn manifest(
        &self,
        repository: &Repository,
        selector: &Selector,
        route: Route,
    ) -> Result<RawManifest, Trouble> {
        let path = format!("manifests/{selector}");
        let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(ACCEPT))]);
        let response = self.get(repository, &path, &headers, route).await?;
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
        route: Route,
    ) -> Result<Download, Trouble> {
        let mut headers = HeaderMap::new();
        if offset > 0 {
            let range = HeaderValue::try_from(format!("bytes={offset}-")).expect("digits are a header value");
            headers.insert(header::RANGE, range);
        }
        let path = format!("blobs/{digest}");
        let response = self.get(repository, &path, &headers, route).await?;
        let skip = if response.status() == StatusCode::PARTIAL_CONTENT {
            0
        } else {
            offset
        };
        Ok(Download {
            host: authority(&response),
            response,
            skip,
            stall_timeout: self.stall_timeout,
        })
    }

    async fn bounded_body(&self, response: Response) -> Result<Vec<u8>, Trouble> {
        let mut download = Download {
            host: authority(&response),
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

    /// GET from the mirrors and the registry of a repository, as the route says.
    async fn get(
        &self,
        repository: &Repository,
        path: &str,
        headers: &HeaderMap,
        route: Route,
    ) -> Result<Response, Trouble> {
        let mirrors: &[String] = match route {
            Route::Mirrors => &self.config(&repository.registry).mirrors,
            Route::Direct => &[],
        };
        let (resting, awake): (Vec<&String>, Vec<&String>) =
            mirrors.iter().partition(|mirror| self.is_resting(mirror));
        let mut passing = None;
        for mirror in awake {
            match self.get_from(mirror, &repository.name, path, headers).await {
                Ok(response) => return Ok(response),
                Err(trouble) => {
                    tracing::debug!(mirror, repository = repository.name, path, trouble = ?trouble, "a mirror fails");
                    self.rest(mirror, &trouble);
                    passing = passing.or_else(|| Some(trouble).filter(Trouble::passes));
                }
            }
        }
        let asked = self.get_from(&repository.registry, &repository.name, path, headers);
        let trouble = match asked.await {
            Ok(response) => return Ok(response),
            Err(trouble) => trouble,
        };
        if trouble.passes() {
            for mirror in resting {
                if let Ok(response) = self.get_from(mirror, &repository.name, path, headers).await {
                    return Ok(response);
                }
            }
        }
        match (trouble, passing) {
            // The mirror may be all that this machine has a login for.
            (Trouble::Denied(_), Some(passing)) if self.config(&repository.registry).login.is_none() => {
                Err(passing)
            }
            (trouble, _) => Err(trouble),
        }
    }

    /// GET from one host, with its token; logs in when the host asks for it.
    async fn get_from(
        &self,
        host: &str,
        repository: &str,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Response, Trouble> {
        let clients = self.clients_of(host).await?;
        let url = format!("{}/v2/{repository}/{path}", self.base(host));
        let key = (host.to_owned(), repository.to_owned());
        let get = |authorization: Option<&HeaderValue>| {
            let mut request = clients.following.get(&url).headers(headers.clone());
            if let Some(authorization) = authorization {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            request
        };
        let response = send(get(self.token(&key).as_ref())).await?;
        refused_elsewhere(host, &url, &response)?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return judged(response);
        }
        let asked = response.headers().get_all(header::WWW_AUTHENTICATE);
        let Some(challenge) = Challenge::pick(asked.iter().filter_map(|value| value.to_str().ok())) else {
            return Err(Trouble::Denied(format!(
                "{host} asks for a login of an unknown kind"
            )));
        };
        let credentials = match &self.config(host).login {
            Some(login) => Some(login.credentials(host).await?),
            None => None,
        };
        let token = match challenge {
            Challenge::Basic => password_token(host, credentials.as_ref())?,
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => {
                let scope = scope.unwrap_or_else(|| format!("repository:{repository}:pull"));
                let wanted = Wanted {
                    realm: self.realm(host, &realm, credentials.is_some())?,
                    service: service.as_deref(),
                    scope: &scope,
                };
                self.new_token(host, &clients.staying, wanted, credentials.as_ref())
                    .await?
            }
        };
        let response = send(get(Some(&token.authorization))).await?;
        refused_elsewhere(host, &url, &response)?;
        if is_refusal(&response) {
            self.tokens().remove(&key);
            return Err(refused(host, credentials.as_ref(), response.status()));
        }
        self.tokens().insert(key, token);
        judged(response)
    }

    /// The token server. No login goes there in the clear, unless the registry itself is spoken to so.
    fn realm(&self, host: &str, realm: &str, has_login: bool) -> Result<Url, Trouble> {
        let url = Url::parse(realm)
            .map_err(|error| Trouble::Registry(format!("its token realm {realm:?}: {error}")))?;
        if has_login && url.scheme() != "https" && !self.config(host).plain_http {
            return Err(Trouble::Registry(format!(
                "its token realm {realm:?} is not https: the login is not sent there"
            )));
        }
        Ok(url)
    }

    async fn new_token(
        &self,
        host: &str,
        http: &reqwest::Client,
        wanted: Wanted<'_>,
        credentials: Option<&Credentials>,
    ) -> Result<Token, Trouble> {
        #[derive(Deserialize)]
        struct Answer {
            // Some send both names.
            #[serde(default)]
            token: Option<String>,
            #[serde(default)]
            access_token: Option<String>,
            #[serde(default)]
            expires_in: Option<u64>,
        }
        let response = send(wanted.request(http, credentials)).await?;
        if is_refusal(&response) {
            return Err(refused(host, credentials, response.status()));
        }
        let body = self.bounded_body(judged(response)?).await?;
        // Not with the parser's words: they may hold a part of the answer.
        let answer: Answer = serde_json::from_slice(&body).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            Trouble::Registry(format!("its token cannot be read (line {line}, column {column})"))
        })?;
        let token = answer
            .token
            .or(answer.access_token)
            .ok_or_else(|| Trouble::Registry("its token server answers without a token".into()))?;
        let mut authorization = HeaderValue::try_from(format!("Bearer {token}"))
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

    /// The clients for a host: of its own where it has certificates of its own.
    async fn clients_of(&self, host: &str) -> Result<Clients, Trouble> {
        let Some(path) = &self.config(host).ca_file else {
            return Ok(self.clients_default.clone());
        };
        let known = self.clients().get(host).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let made = client_trusting(path).await.map_err(|error| {
            Trouble::Login(format!("the certificates {} of {host}: {error}", path.display()))
        })?;
        self.clients().insert(host.to_owned(), made.clone());
        Ok(made)
    }

    fn config(&self, host: &str) -> &RegistryConfig {
        static PLAIN: RegistryConfig = RegistryConfig {
            plain_http: false,
            mirrors: Vec::new(),
            ca_file: None,
            login: None,
        };
        self.configs.get(host).unwrap_or(&PLAIN)
    }

    fn base(&self, host: &str) -> String {
        let scheme = if self.config(host).plain_http {
            "http"
        } else {
            "https"
        };
        let host = if host == "docker.io" {
            "registry-1.docker.io"
        } else {
            host
        };
        format!("{scheme}://{host}")
    }

    fn is_resting(&self, mirror: &str) -> bool {
        let resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.get(mirror).is_some_and(|until| monotonic() < *until)
    }

    /// A mirror that is down would cost its time-out for every blob.
    pub(super) fn rest(&self, mirror: &str, trouble: &Trouble) {
        let Trouble::Passing { after, .. } = trouble else {
            return;
        };
        let until = monotonic() + after.unwrap_or(MIRROR_REST).min(MIRROR_REST);
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.insert(mirror.to_owned(), until);
    }

    fn token(&self, key: &(String, String)) -> Option<HeaderValue> {
        let tokens = self.tokens();
        let token = tokens.get(key)?;
        (token.good_until > monotonic()).then(|| token.authorization.clone())
    }

    fn tokens(&self) -> MutexGuard<'_, BTreeMap<(String, String), Token>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clients(&self) -> MutexGuard<'_, BTreeMap<String, Clients>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The token that a registry asks for.
struct Wanted<'a> {
    realm: Url,
    service: Option<&'a str>,
    scope: &'a str,
}

impl Wanted<'_> {
    /// GET with the password if there is one, POST with an identity token.
    fn request(mut self, http: &reqwest::Client, credentials: Option<&Credentials>) -> RequestBuilder {
        let mut wishes = vec![("scope", self.scope)];
        wishes.extend(self.service.map(|service| ("service", service)));
        if let Some(Credentials::IdentityToken(token)) = credentials {
            let mut form = self.realm.clone();
            form.query_pairs_mut()
                .clear()
                .extend_pairs(&wishes)
                .extend_pairs([("grant_type", "refresh_token"), ("client_id", "berthd")])
                .append_pair("refresh_token", token);
            return http
                .post(self.realm)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.query().unwrap_or_default().to_owned());
        }
        self.realm.query_pairs_mut().extend_pairs(&wishes);
        let request = http.get(self.realm);
        match credentials.and_then(Credentials::basic) {
            Some(password) => request.header(header::AUTHORIZATION, password),
            None => request,
        }
    }
}

impl Clients {
    fn trusting(certificates: Vec<reqwest::Certificate>) -> reqwest::Result<Self> {
        let client = |redirects: redirect::Policy| {
            reqwest::Client::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .user_agent("berthd")
                .redirect(redirects)
                .tls_certs_merge(certificates.clone())
                .build()
        };
        Ok(Self {
            following: client(redirect::Policy::default())?,
            staying: client(redirect::Policy::none())?,
        })
    }
}

async fn client_trusting(path: &Path) -> Result<Clients, String> {
    let pem = tokio::fs::read(path).await.map_err(|error| error.to_string())?;
    let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| chain(&error))?;
    if certificates.is_empty() {
        return Err("no certificate in it".into());
    }
    Clients::trusting(certificates).map_err(|error| chain(&error))
}

fn authority(response: &Response) -> String {
    let url = response.url();
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn password_token(host: &str, credentials: Option<&Credentials>) -> Result<Token, Trouble> {
    let password = credentials.and_then(Credentials::basic);
    let authorization = password.ok_or_else(|| match credentials {
        Some(_) => Trouble::Login(format!(
            "{host} takes a password, its helper gives an identity token"
        )),
        None => refused(host, None, StatusCode::UNAUTHORIZED),
    })?;
    Ok(Token {
        authorization,
        good_until: monotonic() + PASSWORD_LIFETIME,
    })
}

fn is_refusal(response: &Response) -> bool {
    matches!(
        response.status(),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
    )
}

/// Where a blob lies is not where we log in: when that place says no, its permission to fetch has run out, and the next attempt gets
/// another one.
fn refused_elsewhere(host: &str, url: &str, response: &Response) -> Result<(), Trouble> {
    let own = Url::parse(url).map(|url| url.origin());
    if !is_refusal(response) || own.as_ref() == Ok(&response.url().origin()) {
        return Ok(());
    }
    let (place, status) = (response.url().host_str().unwrap_or_default(), response.status());
    Err(Trouble::passing(format!(
        "{place}, where {host} sends us, answers {status}"
    )))
}

/// A registry says no: to us, or to nobody in particular.
fn refused(host: &str, credentials: Option<&Credentials>, status: StatusCode) -> Trouble {
    Trouble::Denied(match credentials {
        Some(credentials) => format!("{host} answers {status} to {}", credentials.who()),
        None => format!(
            "{host} answers {status}, and no login is configured: the image may not exist, or berthd.toml needs \
             [registries.{host:?}] with username and password_file, or credential_helper"
        ),
    })
}

async fn send(request: RequestBuilder) -> Result<Response, Trouble> {
    match tokio::time::timeout(ANSWER_TIMEOUT, request.send()).await {
        Ok(Ok(response)) => Ok(response),
        // The address may hold what a token server was asked.
        Ok(Err(error)) => Err(Trouble::passing(chain(&error.without_url()))),
        Err(_elapsed) => Err(Trouble::passing(format!(
            "no answer within {} s",
            ANSWER_TIMEOUT.as_secs()
        ))),
    }
}

impl Download {
    /// The host that serves it, with its port unless that is the scheme's own.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

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
            after: retry_after(response.headers(), Timestamp::now()),
        }),
        status if status.is_server_error() => Err(Trouble::Passing {
            message: what,
            after: retry_after(response.headers(), Timestamp::now()),
        }),
        _ => Err(Trouble::Registry(what)),
    }
}

/// Retry-After (RFC 9110, 10.2.3): seconds or a date. A date in the past asks for no patience.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(now.millis());
    Some(date.duration_since(now).unwrap_or_default())
}

/// An error with its causes: the transport's own text alone says only that sending failed.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_retry_after_in_seconds_and_as_a_date() {
        let now = "2026-10-21T07:27:30Z".parse::<Timestamp>().unwrap();
        let after = |value| {
            let headers = HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from_static(value))]);
            retry_after(&headers, now)
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(
            after("Wed, 21 Oct 2026 07:28:00 GMT"),
            Some(Duration::from_secs(30))
        );
        assert_eq!(after("Wed, 21 Oct 2026 07:20:00 GMT"), Some(Duration::ZERO));
        assert_eq!(after("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn no_login_goes_to_a_token_server_in_the_clear() {
        let plain = RegistryConfig {
            plain_http: true,
            ..RegistryConfig::default()
        };
        let config = ImagesConfig {
            registries: BTreeMap::from([("plain:5000".to_owned(), plain)]),
            ..ImagesConfig::default()
        };
        let registries = Registries::new(&config).unwrap();
        assert!(registries.realm("r.io", "http://r.io/token", true).is_err());
        assert!(registries.realm("r.io", "http://r.io/token", false).is_ok());
        assert!(registries.realm("r.io", "https://auth.r.io/token", true).is_ok());
        assert!(
            registries
                .realm("plain:5000", "http://plain:5000/token", true)
                .is_ok()
        );
        assert!(registries.realm("r.io", "no url", true).is_err());
    }
}
