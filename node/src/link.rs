//! The node's side of the node link: enrolment, then one session after the other. See `api/proto/link.proto`.
//!
//! Input: snapshots, answers to sets, events, chunks of logs. Output: [`Input`]s for the loop, the directory for DNS.
//! Owner: `main`. Failure: any fault of a session ends it; the next one is dialled after a growing pause with jitter, for
//! ever. Both sides then send whole states, so nothing is lost with a session. Nothing here stops a replica.

mod enrol;
mod renewal;
mod route;
mod session;

use std::sync::Arc;
use std::time::Duration;

use berth_api::link;
use berth_api::time::{Timestamp, monotonic};
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use crate::config::Config;
use crate::credentials::{Credentials, CredentialsError, Store};
use crate::dns::{Applied, DirectoryState};
use crate::events::EventQueue;
use crate::ledger::Ledger;
use crate::logs::LogService;
use crate::mesh::MeshState;
use crate::reconcile::{Answer, Input};
use crate::status::{Part, Snapshot, Verdicts};
use crate::tunnel::Reach;

pub use enrol::enrol_until_done;
pub use route::Route;

/// The client of the service, generated from `api/proto/link.proto`.
mod proto {
    #![expect(
        clippy::allow_attributes_without_reason,
        unused_qualifications,
        unreachable_pub,
        reason = "generated code"
    )]
    tonic::include_proto!("berth.link.v1");
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
const MESSAGE_MAX_BYTES: usize = 16 << 20;
/// What may be on its way in one stream, unread.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same of the connection: more than all tunnels together, so that the session is held up by none.
const CONNECTION_WINDOW: u32 = 64 << 20;
const REDIAL_FIRST: Duration = Duration::from_millis(250);
const REDIAL_MAX: Duration = Duration::from_secs(15);
/// A session that lived this long was good: the next pause is the shortest again.
const GOOD_SESSION: Duration = Duration::from_secs(10);

/// Names of what the ledger keeps for the link.
pub const MESH_BLOB: &str = "mesh";
/// See [`MESH_BLOB`].
pub const DIRECTORY_BLOB: &str = "directory";

/// Why a session or an enrolment ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("reading {path}")]
    File { path: String, source: std::io::Error },
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("dialling the scheduler at {url}")]
    Dial {
        url: String,
        source: tonic::transport::Error,
    },
    #[error("no connection to the scheduler at {url}: {message}")]
    Broken { url: String, message: String },
    #[error(
        "the scheduler at {url} shows a certificate that is not valid now by the clock of this machine; is the clock wrong? \
         {message}"
    )]
    Clock { url: String, message: String },
    #[error("the scheduler at {url} does not accept the certificate of this machine: {message}")]
    CertificateRefused { url: String, message: String },
    #[error("the scheduler refused: {message}")]
    Refused { code: Code, message: String },
    #[error("the scheduler did not answer within {0:?}")]
    Silent(Duration),
    #[error("the scheduler does not take what it is sent")]
    Stuck,
    #[error("the scheduler sent what cannot be read: {0}")]
    Unreadable(String),
    #[error("the scheduler ended the session")]
    Ended,
    #[error("the cluster is served by the scheduler at {url}")]
    Redirected { url: String },
}

impl LinkError {
    /// What a call ended with: the word of the scheduler at `url`, or of the connection to it.
    fn of_status(status: &Status, url: &str) -> Self {
        if let Some(transport) = std::error::Error::source(status) {
            let (url, message) = (url.to_owned(), words(transport));
            return match tls_fault(&message) {
                Some(TlsFault::Clock) => Self::Clock { url, message },
                Some(TlsFault::Certificate) => Self::CertificateRefused { url, message },
                None => Self::Broken { url, message },
            };
        }
        Self::Refused {
            code: status.code(),
            message: status.message().to_owned(),
        }
    }

    /// The certificate itself is not accepted: another session with it would end the same way.
    fn is_about_identity(&self) -> bool {
        matches!(
            self,
            Self::CertificateRefused { .. }
                | Self::Refused {
                    code: Code::Unauthenticated | Code::PermissionDenied | Code::NotFound,
                    ..
                }
        )
    }
}

/// What TLS had against a connection, where that is more than a broken one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TlsFault {
    /// The scheduler's certificate, or its authority's, is of another time: tried again until the clock is right.
    Clock,
    /// The scheduler does not take this machine's: it has run out, or is of another authority.
    Certificate,
}

/// By its words: the layers around TLS pass nothing else on, and sometimes not even that.
fn tls_fault(words: &str) -> Option<TlsFault> {
    use rustls::{AlertDescription as Alert, Error as Tls};
    let alerts = [
        Alert::CertificateExpired,
        Alert::CertificateUnknown,
        Alert::BadCertificate,
        Alert::UnknownCA,
        Alert::DecryptError,
        Alert::CertificateRevoked,
    ];
    if alerts
        .iter()
        .any(|alert| words.contains(&Tls::AlertReceived(*alert).to_string()))
    {
        return Some(TlsFault::Certificate);
    }
    let is_of_time = ["certificate not valid yet", "certificate expired"];
    is_of_time
        .iter()
        .any(|word| words.contains(word))
        .then_some(TlsFault::Clock)
}

/// The whole chain of an error, for the status.
pub(crate) fn words(error: &dyn std::error::Error) -> String {
    crate::host::HostError::chain(crate::host::Fault::Infrastructure, error).message
}

/// What the link works with.
#[derive(Debug)]
pub struct Link {
    pub config: Arc<Config>,
    pub boot_id: String,
    pub state_rebuilt: bool,
    pub store: Store,
    pub ledger: Ledger,
    pub inbox: mpsc::Sender<Input>,
    pub answers: mpsc::Receiver<Answer>,
    pub events: Arc<EventQueue>,
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub verdicts: Arc<Verdicts>,
    pub directory: DirectoryState,
    pub mesh: MeshState,
    pub logs: LogService,
    pub reach: Arc<dyn Reach>,
    pub route: Route,
}

/// Keeps a session with the scheduler until cancelled.
pub async fn run(mut link: Link, mut credentials: Credentials, cancel: CancellationToken) {
    let mut pause = REDIAL_FIRST;
    loop {
        let began = monotonic();
        let ended = cancel
            .run_until_cancelled(link.serve(&mut credentials, &cancel))
            .await;
        let Some(result) = ended else { return };
        let error = match result {
            Ok(()) => continue,
            Err(LinkError::Redirected { url }) => {
                tracing::info!(url, "the scheduler names another one for this cluster");
                if link.route.redirected(url) {
                    continue;
                }
                LinkError::Ended
            }
            Err(error) => {
                // A session that was good ends for many reasons; the scheduler that served it is asked first.
                if began.elapsed() < GOOD_SESSION {
                    link.route.failed();
                }
                error
            }
        };
        let reason = words(&error);
        tracing::debug!(reason, "a session has ended");
        link.verdicts.set(Part::Link, Err(reason));
        if began.elapsed() >= GOOD_SESSION {
            pause = REDIAL_FIRST;
        }
        // A connection that ends while it is made may be all that is heard of a certificate that has run out.
        let is_overdue = Timestamp::now() >= credentials.enrolment.renew_at && began.elapsed() < GOOD_SESSION;
        if error.is_about_identity() || (is_overdue && matches!(error, LinkError::Broken { .. })) {
            // A session that ends can be cancelled anywhere: the daemon ends, and the next start dials again.
            let again = cancel.run_until_cancelled(link.enrol_again(&mut credentials));
            if again.await.is_none() {
                return;
            }
        }
        if cancel
            .run_until_cancelled(tokio::time::sleep(jittered(pause)))
            .await
            .is_none()
        {
            return;
        }
        pause = (pause * 2).min(REDIAL_MAX);
    }
}

/// Half of the pause and a random part of the other half, so that a thousand nodes do not dial together.
pub(crate) fn jittered(pause: Duration) -> Duration {
    let mut random = [0_u8; 2];
    // Without randomness the pause is only less well spread.
    if getrandom::fill(&mut random).is_err() {
        return pause;
    }
    pause / 2 + pause * u32::from(u16::from_be_bytes(random)) / (2 * 65_536)
}

/// A channel to the scheduler at `url`. Lazy: the first call connects.
fn channel(config: &Config, url: &str, identity: Option<(&str, &str)>) -> Result<Channel, LinkError> {
    let path = &config.ca_file;
    let ca = std::fs::read_to_string(path).map_err(|source| LinkError::File {
        path: path.display().to_string(),
        source,
    })?;
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
    if let Some((certificate, key)) = identity {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let dial = |source| LinkError::Dial {
        url: url.to_owned(),
        source,
    };
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(dial)?;
    let endpoint = endpoint
        .tls_config(tls)
        .map_err(dial)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10));
    Ok(endpoint.connect_lazy())
}

impl Link {
    /// Enrols with the token. What was there stays until there is something better: the certificate may be good and the clock
    /// that judged it wrong.
    async fn enrol_again(&mut self, credentials: &mut Credentials) {
        match enrol::enrol(&self.config, &self.store, &self.boot_id).await {
            Ok(new) => {
                if new.enrolment.assigned_network != credentials.enrolment.assigned_network {
                    tracing::error!(
                        old = %credentials.enrolment.assigned_network.cidr,
                        new = %new.enrolment.assigned_network.cidr,
                        "the scheduler gave this machine another subnet; restart berthd to take it"
                    );
                }
                *credentials = new;
            }
            Err(error) => tracing::warn!(error = words(&error), "cannot enrol again"),
        }
    }

    fn take_mesh(&mut self, mesh: &link::Mesh) -> Applied {
        let applied = self.mesh.apply(mesh);
        if applied == Applied::Yes {
            self.ledger
                .write_blob(MESH_BLOB, self.mesh.to_message().encode_to_vec());
        }
        applied
    }

    fn take_directory(&mut self, directory: &link::Directory) -> Applied {
        let applied = self.directory.apply(directory);
        if applied == Applied::Yes {
            let whole = self.directory.view().borrow().to_message();
            self.ledger.write_blob(DIRECTORY_BLOB, whole.encode_to_vec());
        }
        applied
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::UnixTime;
    use rustls::{AlertDescription, CertificateError, Error as Tls};

    use super::*;

    fn fault_of(error: &Tls) -> Option<TlsFault> {
        tls_fault(&format!("transport error: {error}"))
    }

    #[test]
    fn a_certificate_of_another_time_is_a_fault_of_the_clock_and_a_refused_one_of_the_identity() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let (time, not_before, not_after) = (at(5), at(6), at(4));
        for error in [
            CertificateError::NotValidYetContext { time, not_before },
            CertificateError::ExpiredContext { time, not_after },
        ] {
            assert_eq!(fault_of(&Tls::InvalidCertificate(error)), Some(TlsFault::Clock));
        }
        for alert in [AlertDescription::CertificateExpired, AlertDescription::UnknownCA] {
            assert_eq!(fault_of(&Tls::AlertReceived(alert)), Some(TlsFault::Certificate));
        }
        let others = [
            Tls::InvalidCertificate(CertificateError::UnknownIssuer),
            Tls::AlertReceived(AlertDescription::InternalError),
        ];
        for error in others {
            assert_eq!(fault_of(&error), None);
        }
        // A fault of the clock is waited out; the other is worth the token.
        let (url, message) = (String::new(), String::new());
        assert!(!LinkError::Clock { url, message }.is_about_identity());
        let (url, message) = (String::new(), String::new());
        assert!(LinkError::CertificateRefused { url, message }.is_about_identity());
    }
}
