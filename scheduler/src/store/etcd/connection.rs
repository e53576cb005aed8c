//! The way to an etcd cluster: its members one after the other, a deadline on every call, and the words for what goes wrong.
//!
//! This is the one place that retries etcd. Every write is guarded by what it expects to find and says how to recognise
//! itself, so that sending it a second time is harmless.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use berth_api::time::monotonic;
use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use tokio::sync::OnceCell;
use tonic::Code;

use super::super::StoreError;

/// One member gets this long; a member that is paused or cut off costs no more.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// All attempts together. Below the actor's own deadline of 10 s, so that it hears why. An election takes 1 to 2 s.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(320);

/// Where etcd is and how to be let in.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdOptions {
    /// `host:port` of each member, at least one.
    pub endpoints: Vec<String>,
    /// What all keys begin with, for example `/berth`.
    pub prefix: String,
    pub user: Option<EtcdUser>,
    /// Present when the members speak TLS.
    pub tls: Option<EtcdTls>,
}

/// Name and password of etcd's own authentication.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdUser {
    pub name: String,
    pub password: String,
}

/// PEM texts.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdTls {
    pub ca_pem: String,
    /// Certificate and key of this client, where the members ask for one.
    pub client: Option<(String, String)>,
}

// The three are shown without password and key: those never reach a log.
impl fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl fmt::Debug for EtcdUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EtcdUser").field(&self.name).finish()
    }
}

impl fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdTls").finish_non_exhaustive()
    }
}

impl EtcdOptions {
    /// How messages name the store.
    pub(super) fn name(&self) -> String {
        format!("etcd://{}{}", self.endpoints.join(","), self.prefix)
    }
}

struct Member {
    url: String,
    /// Made at the first use: with a user it has to be reached for that.
    client: OnceCell<Client>,
}

/// See the module documentation.
pub(super) struct Connection {
    name: String,
    members: Vec<Member>,
    /// The member that answered last.
    current: AtomicUsize,
    options: ConnectOptions,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn new(options: &EtcdOptions) -> Self {
        assert!(!options.endpoints.is_empty(), "an etcd store has members");
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(Duration::from_secs(5), ATTEMPT_TIMEOUT)
            .with_auto_token_refresh(true)
            // A member that lost its leader says so instead of keeping a watch silent.
            .with_require_leader(true);
        if let Some(user) = &options.user {
            connect = connect.with_user(user.name.as_str(), user.password.as_str());
        }
        if let Some(tls) = &options.tls {
            let mut to_etcd = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.ca_pem));
            if let Some((certificate, key)) = &tls.client {
                to_etcd = to_etcd.identity(Identity::from_pem(certificate, key));
            }
            connect = connect.with_tls(to_etcd);
        }
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        Self {
            name: options.name(),
            members: options
                .endpoints
                .iter()
                .map(|endpoint| Member {
                    url: format!("{scheme}://{endpoint}"),
                    client: OnceCell::new(),
                })
                .collect(),
            current: AtomicUsize::new(0),
            options: connect,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// A client of the member that answered last.
    pub(super) async fn client(&self) -> Result<Client, Error> {
        let member = &self.members[self.current.load(Ordering::Relaxed) % self.members.len()];
        member
            .client
            .get_or_try_init(|| Client::connect([member.url.as_str()], Some(self.options.clone())))
            .await
            .cloned()
    }

    /// The next call begins with another member than `failed` began with.
    fn turn_from(&self, failed: usize) {
        let next = (failed + 1) % self.members.len();
        let turned = self
            .current
            .compare_exchange(failed, next, Ordering::Relaxed, Ordering::Relaxed);
        if let Err(current) = turned {
            tracing::trace!(current, "another call has turned to another etcd member already");
        }
    }

    /// Runs a call until a member answers it, at most [`CALL_TIMEOUT`] long.
    pub(super) async fn call<T, F>(
        &self,
        operation: &'static str,
        run: impl Fn(Client) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.call_within(operation, ATTEMPT_TIMEOUT, CALL_TIMEOUT, run)
            .await
    }

    /// As [`Self::call`], with at most `each` for one member and `all` for all attempts.
    pub(super) async fn call_within<T, F>(
        &self,
        operation: &'static str,
        each: Duration,
        all: Duration,
        run: impl Fn(Client) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let deadline = monotonic() + all;
        let mut pause = PAUSE_FIRST;
        loop {
            let member = self.current.load(Ordering::Relaxed);
            let attempt = async { run(self.client().await?).await };
            let error = match tokio::time::timeout(each, attempt).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => Error::GRpcStatus(tonic::Status::deadline_exceeded("the member did not answer")),
            };
            let verdict = judge(&error);
            if verdict == Verdict::Retry && monotonic() + pause < deadline {
                tracing::debug!(operation, error = %error, "an etcd member failed; trying the next");
                self.turn_from(member);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
                continue;
            }
            return Err(self.words(operation, verdict, error));
        }
    }

    fn words(&self, operation: &'static str, verdict: Verdict, error: Error) -> StoreError {
        let store = self.name.clone();
        match verdict {
            Verdict::Full => StoreError::Full {
                store,
                remedy: "defragment its members or raise --quota-backend-bytes, then disarm its NOSPACE alarm",
            },
            Verdict::Retry => StoreError::Unreachable {
                store,
                operation,
                source: Arc::new(error),
            },
            Verdict::Compacted | Verdict::Refused => StoreError::Refused {
                store,
                operation,
                source: Arc::new(error),
            },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Another member, or the same one later, may do it.
    Retry,
    Full,
    /// The revision that was asked for is given up.
    Compacted,
    /// It would be refused again.
    Refused,
}

fn judge(error: &Error) -> Verdict {
    match error {
        Error::GRpcStatus(status) => match status.code() {
            Code::ResourceExhausted if status.message().contains("space exceeded") => Verdict::Full,
            Code::OutOfRange => Verdict::Compacted,
            Code::InvalidArgument
            | Code::NotFound
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
            | Code::FailedPrecondition => Verdict::Refused,
            _ => Verdict::Retry,
        },
        Error::TransportError(_) | Error::IoError(_) | Error::WatchError(_) => Verdict::Retry,
        _ => Verdict::Refused,
    }
}

/// Whether a read failed because its revision was compacted away meanwhile.
pub(super) fn is_compacted(error: &StoreError) -> bool {
    matches!(error, StoreError::Refused { source, .. } if judge(source) == Verdict::Compacted)
}
