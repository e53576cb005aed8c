//! Who the scheduler is and how it knows others: its certificate authority, its server certificate, the certificates it
//! gives to machines, and the keys of platform tokens ([`crate::platform`]).
//!
//! Files in the data directory, made at the first start: `ca.key` and `platform.key` (only for this user), `ca.pem`
//! (for everybody: nodes pin it). The server's own key and certificate are made anew at each start and never stored.
//!
//! A machine's certificate says who it is: common name = machine id, organisation = cluster id, organisational unit = the
//! era of machine tokens that it was enrolled in, serial number (the attribute of X.520) = when it registered. All are taken
//! from it and never from a message. A revocation of the cluster's machine tokens starts a new era, in which no earlier
//! certificate counts; and one of a machine that was removed does not count for another that has its id now.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use berth_api::assignment::Digest;
use berth_api::id::{ClusterId, MachineId};
use berth_api::time::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData as _,
};
use x509_parser::oid_registry::OID_X509_SERIALNUMBER;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::entry::LinkKey;
use crate::platform::{
    InvalidPlatformToken, PLATFORM_TOKEN_LIFETIME, PlatformCaller, PlatformKeys, TrustedIssuer,
};

/// A machine's certificate lasts this long; it is renewed at two thirds.
pub const MACHINE_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Certificates are valid from this long before they are made: clocks differ, by an hour and what it takes to notice. What is
/// off by more finds a certificate that is not valid yet, which is a fault of its time: it tries again for ever.
const CLOCK_ERROR_MAX: Duration = Duration::from_secs(2 * 3600);
/// Before the number in the organisational unit of a machine's certificate.
const ERA_PREFIX: &str = "era-";
/// Object identifier of the attribute serialNumber (X.520, 6.2.9).
const SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// The server's certificate is renewed at each start; a process that runs longer must be started again.
const SERVER_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(825 * 24 * 3600);

/// Why identities cannot be had or made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{operation} {path}")]
    File {
        operation: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is there and {missing} is not; put it back, or remove both and enrol all machines again")]
    HalfThere { path: PathBuf, missing: PathBuf },
    #[error("{0}")]
    Certificate(&'static str, #[source] rcgen::Error),
    #[error("the key of platform tokens cannot be used")]
    PlatformKey(#[source] jsonwebtoken::errors::Error),
    #[error("{path} holds no Ed25519 public key in PEM")]
    IssuerKey {
        path: PathBuf,
        source: jsonwebtoken::errors::Error,
    },
    #[error("{path} holds {found} bytes, or a PEM key; a secret of HS256 is at least 32 bytes and no key")]
    IssuerSecret { path: PathBuf, found: usize },
}

/// Why a certificate signing request is not signed.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    #[error("the certificate signing request cannot be read")]
    Unreadable(#[source] rcgen::Error),
    #[error(
        "the common name of the certificate signing request is {found:?}, the machine registers as {expected:?}"
    )]
    OtherName { found: String, expected: String },
    #[error("the certificate cannot be signed")]
    Signing(#[source] rcgen::Error),
}

/// What a machine's certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineIdentity {
    pub cluster_id: ClusterId,
    pub machine_id: MachineId,
    /// See [`crate::world::World::machine_token_era`]. Zero in certificates from before there were eras.
    pub token_era: u64,
    /// When it registered: see [`crate::world::Machine::registered_at`]. None in certificates from before they said so.
    pub registered_at: Option<Timestamp>,
}

/// A certificate signing request that names the machine it comes from. Only its key is of use.
#[derive(Debug)]
pub struct SigningRequest(CertificateSigningRequestParams);

impl SigningRequest {
    /// The key that it was signed with, which the certificate will be of.
    #[must_use]
    pub fn key(&self) -> LinkKey {
        let digest = Digest::of(&self.0.public_key.subject_public_key_info());
        LinkKey(digest.to_string())
    }

    /// Reads a request in PEM.
    ///
    /// # Errors
    /// When it cannot be read, is not signed by its own key, or names another machine.
    pub fn read(csr_pem: &str, machine_id: &MachineId) -> Result<Self, SigningError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(SigningError::Unreadable)?;
        let found = match request.params.distinguished_name.get(&DnType::CommonName) {
            Some(rcgen::DnValue::Utf8String(text)) => text.clone(),
            Some(rcgen::DnValue::PrintableString(text)) => text.as_str().to_owned(),
            Some(_) | None => String::new(),
        };
        if found != machine_id.as_str() {
            return Err(SigningError::OtherName {
                found,
                expected: machine_id.as_str().to_owned(),
            });
        }
        Ok(Self(request))
    }
}

/// A certificate given to a machine.
#[derive(Debug, Clone)]
pub struct MachineCertificate {
    pub pem: String,
    /// When the machine should enrol again.
    pub renew_at: Timestamp,
}

/// Certificate and key of the link's server, PEM.
pub struct ServerCertificate {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// Without the key: it never reaches a log.
impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerCertificate").finish_non_exhaustive()
    }
}

/// See the module documentation.
pub struct Identity {
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
    data_dir: PathBuf,
    issuers: Vec<TrustedIssuer>,
    platform: RwLock<Arc<PlatformKeys>>,
}

/// Without the keys: they never reach a log.
impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the keys of the data directory, making those that are not there.
    ///
    /// # Errors
    /// When a file cannot be read or written, or is no key.
    pub fn open(data_dir: &Path) -> Result<Self, IdentityError> {
        Self::open_trusting(data_dir, &[])
    }

    /// As [`Identity::open`], and accepts the platform tokens of `issuers` besides.
    ///
    /// # Errors
    /// When a file cannot be read or written, or is no key.
    pub fn open_trusting(data_dir: &Path, issuers: &[TrustedIssuer]) -> Result<Self, IdentityError> {
        std::fs::create_dir_all(data_dir).map_err(|source| IdentityError::File {
            operation: "make the data directory",
            path: data_dir.into(),
            source,
        })?;
        let (ca_pem, issuer) = open_ca(data_dir)?;
        let platform = PlatformKeys::open(data_dir, issuers)?;
        Ok(Self {
            ca_pem,
            issuer,
            data_dir: data_dir.to_owned(),
            issuers: issuers.to_vec(),
            platform: RwLock::new(Arc::new(platform)),
        })
    }

    /// Reads the keys of platform tokens again: a rotated one signs from now on, and tokens of one whose file is gone are
    /// refused. Nothing else of the identity changes.
    ///
    /// # Errors
    /// When a file cannot be read or is no key; then the keys stay as they were.
    pub fn reload_platform_keys(&self) -> Result<(), IdentityError> {
        let keys = Arc::new(PlatformKeys::open(&self.data_dir, &self.issuers)?);
        *self.platform.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    fn platform(&self) -> Arc<PlatformKeys> {
        // The keys are replaced whole.
        self.platform
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What nodes trust as the scheduler's issuer.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// A fresh certificate for the link's server under `names` (DNS names and IP addresses).
    ///
    /// # Errors
    /// When a name is neither.
    pub fn server_certificate(&self, names: &[String]) -> Result<ServerCertificate, IdentityError> {
        let make = || -> Result<ServerCertificate, rcgen::Error> {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let mut params = CertificateParams::new(names)?;
            params.distinguished_name = name("berth-scheduler", None);
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            set_validity(&mut params, Timestamp::now(), SERVER_CERTIFICATE_LIFETIME);
            let certificate = params.signed_by(&key, &self.issuer)?;
            Ok(ServerCertificate {
                certificate_pem: certificate.pem(),
                key_pem: key.serialize_pem(),
            })
        };
        make().map_err(|error| IdentityError::Certificate("the server certificate cannot be made", error))
    }

    /// Gives a machine the certificate it asks for.
    ///
    /// # Errors
    /// When the key cannot sign.
    pub fn sign(
        &self,
        request: SigningRequest,
        identity: &MachineIdentity,
        now: Timestamp,
    ) -> Result<MachineCertificate, SigningError> {
        let SigningRequest(mut request) = request;
        let machine_id = identity.machine_id.as_str();
        let mut params = CertificateParams::default();
        params.distinguished_name = name(machine_id, Some(identity.cluster_id.as_str()));
        let era = format!("{ERA_PREFIX}{}", identity.token_era);
        params
            .distinguished_name
            .push(DnType::OrganizationalUnitName, era);
        if let Some(at) = identity.registered_at {
            let serial_number = DnType::CustomDnType(SERIAL_NUMBER.to_vec());
            let at = at.millis().to_string();
            params.distinguished_name.push(serial_number, at);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        set_validity(&mut params, now, MACHINE_CERTIFICATE_LIFETIME);
        request.params = params;
        let certificate = request.signed_by(&self.issuer).map_err(SigningError::Signing)?;
        Ok(MachineCertificate {
            pem: certificate.pem(),
            renew_at: now.plus(MACHINE_CERTIFICATE_LIFETIME * 2 / 3),
        })
    }

    /// A token for cluster management, valid for 30 days.
    ///
    /// # Errors
    /// When the key cannot sign.
    pub fn platform_token(&self, now: Timestamp) -> Result<String, IdentityError> {
        self.platform_token_for("platform", PLATFORM_TOKEN_LIFETIME, now)
    }

    /// A token for cluster management in the name of `subject`.
    ///
    /// # Errors
    /// When the key cannot sign.
    pub fn platform_token_for(
        &self,
        subject: &str,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<String, IdentityError> {
        self.platform().issue(subject, lifetime, now)
    }

    /// Who a platform token stands for.
    ///
    /// # Errors
    /// With the reason, when it is not to be accepted.
    pub fn check_platform_token(&self, token: &str) -> Result<PlatformCaller, InvalidPlatformToken> {
        self.platform().check(token)
    }
}

/// Who a verified client certificate belongs to, and until when; none when it was not made by [`Identity::sign`].
#[must_use]
pub fn machine_of(certificate_der: &[u8]) -> Option<(MachineIdentity, Timestamp)> {
    let (_, certificate) = X509Certificate::from_der(certificate_der).ok()?;
    let expires_at = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    let subject = certificate.subject();
    let machine_id = subject.iter_common_name().next()?.as_str().ok()?;
    let cluster_id = subject.iter_organization().next()?.as_str().ok()?;
    let token_era = match subject.iter_organizational_unit().next() {
        Some(unit) => unit.as_str().ok()?.strip_prefix(ERA_PREFIX)?.parse().ok()?,
        None => 0,
    };
    let registered_at = match subject.iter_by_oid(&OID_X509_SERIALNUMBER).next() {
        Some(at) => Some(Timestamp::from_millis(at.as_str().ok()?.parse().ok()?)),
        None => None,
    };
    let identity = MachineIdentity {
        cluster_id: ClusterId::new(cluster_id).ok()?,
        machine_id: MachineId::new(machine_id).ok()?,
        token_era,
        registered_at,
    };
    Some((identity, Timestamp::from_millis(expires_at.saturating_mul(1000))))
}

fn name(common_name: &str, organisation: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    if let Some(organisation) = organisation {
        name.push(DnType::OrganizationName, organisation);
    }
    name
}

fn set_validity(params: &mut CertificateParams, now: Timestamp, lifetime: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(now.millis() / 1000);
    params.not_before = epoch + now.saturating_sub(CLOCK_ERROR_MAX);
    params.not_after = epoch + (now + lifetime);
}

fn open_ca(data_dir: &Path) -> Result<(String, Issuer<'static, KeyPair>), IdentityError> {
    let (key_path, certificate_path) = (data_dir.join("ca.key"), data_dir.join("ca.pem"));
    if certificate_path.exists() && !key_path.exists() {
        return Err(IdentityError::HalfThere {
            path: certificate_path,
            missing: key_path,
        });
    }
    let key = open_key(&key_path, &PKCS_ECDSA_P256_SHA256)?;
    let fault = |error| IdentityError::Certificate("the certificate authority cannot be used", error);
    // A start that ended between the two files finds the key alone: nobody has seen a certificate of it yet.
    if !certificate_path.exists() {
        let mut params = CertificateParams::default();
        params.distinguished_name = name("Berth scheduler CA", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, Timestamp::now(), CA_LIFETIME);
        let certificate = params.self_signed(&key).map_err(fault)?;
        write_whole(&certificate_path, certificate.pem().as_bytes(), 0o644)?;
    }
    let ca_pem = read(&certificate_path)?;
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, key).map_err(fault)?;
    Ok((ca_pem, issuer))
}

pub(crate) fn open_key(
    path: &Path,
    algorithm: &'static rcgen::SignatureAlgorithm,
) -> Result<KeyPair, IdentityError> {
    let fault = |error| IdentityError::Certificate("a key of the data directory cannot be used", error);
    if !path.exists() {
        let key = KeyPair::generate_for(algorithm).map_err(fault)?;
        write_whole(path, key.serialize_pem().as_bytes(), 0o600)?;
    }
    KeyPair::from_pkcs8_pem_and_sign_algo(&read(path)?, algorithm).map_err(fault)
}

pub(crate) fn read(path: &Path) -> Result<String, IdentityError> {
    std::fs::read_to_string(path).map_err(|source| IdentityError::File {
        operation: "read",
        path: path.into(),
        source,
    })
}

/// Writes a file so that after a crash it is there whole or not at all.
pub(crate) fn write_whole(path: &Path, content: &[u8], mode: u32) -> Result<(), IdentityError> {
    let unfinished = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&unfinished)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&unfinished, path)?;
        let directory = path.parent().unwrap_or_else(|| Path::new("."));
        std::fs::File::open(directory)?.sync_all()
    };
    write().map_err(|source| IdentityError::File {
        operation: "write",
        path: path.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn machine() -> MachineIdentity {
        MachineIdentity {
            cluster_id: ClusterId::new("acme/prod").unwrap(),
            machine_id: MachineId::new("i-ä1").unwrap(),
            token_era: 3,
            registered_at: Some(Timestamp::from_millis(1_795_000_000_123)),
        }
    }

    fn request(csr_pem: &str) -> Result<SigningRequest, SigningError> {
        SigningRequest::read(csr_pem, &machine().machine_id)
    }

    fn csr(common_name: &str) -> String {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
        params.distinguished_name = name(common_name, Some("other-cluster"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    #[test]
    fn keys_are_made_once_and_only_the_ca_certificate_is_public() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("data");
        let first = Identity::open(&dir).unwrap();
        let second = Identity::open(&dir).unwrap();
        assert_eq!(first.ca_pem(), second.ca_pem());
        let token = first.platform_token(Timestamp::now()).unwrap();
        assert!(second.check_platform_token(&token).is_ok());
        for (file, mode) in [("ca.key", 0o600), ("platform.key", 0o600), ("ca.pem", 0o644)] {
            let found = dir.join(file).metadata().unwrap().permissions().mode();
            assert_eq!(found & 0o777, mode, "{file}");
        }
    }

    #[test]
    fn a_certificate_without_its_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Identity::open(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(matches!(
            Identity::open(dir.path()),
            Err(IdentityError::HalfThere { .. })
        ));
    }

    #[test]
    fn a_signed_certificate_says_who_the_machine_is_and_nothing_it_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::open(dir.path()).unwrap();
        let now = Timestamp::now();
        let signed = identity
            .sign(request(&csr("i-ä1")).unwrap(), &machine(), now)
            .unwrap();
        assert_eq!(signed.renew_at.since(now), Duration::from_secs(16 * 3600));
        let (_, pem) = x509_parser::pem::parse_x509_pem(signed.pem.as_bytes()).unwrap();
        let (found, expires_at) = machine_of(&pem.contents).unwrap();
        assert_eq!(found, machine());
        assert_eq!(expires_at.since(now).as_secs().div_ceil(60), 24 * 60);
        let certificate = pem.parse_x509().unwrap();
        assert!(!certificate.is_ca());
        assert_eq!(certificate.subject_alternative_name().unwrap(), None);
        let validity = certificate.validity();
        let length = validity.not_after.timestamp() - validity.not_before.timestamp();
        assert_eq!(length, 26 * 3600);
    }

    #[test]
    fn a_request_under_another_name_is_refused() {
        let refused = request(&csr("i-2"));
        assert!(matches!(refused, Err(SigningError::OtherName { .. })));
        assert!(matches!(request("no pem"), Err(SigningError::Unreadable(_))));
    }

    #[test]
    fn platform_tokens_of_others_old_ones_and_texts_are_refused() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let identity = Identity::open(one.path()).unwrap();
        let foreign = Identity::open(other.path())
            .unwrap()
            .platform_token(Timestamp::now())
            .unwrap();
        let old = identity
            .platform_token(Timestamp::from_millis(1_000_000))
            .unwrap();
        for token in [foreign.as_str(), old.as_str(), "", "hm_x"] {
            assert!(identity.check_platform_token(token).is_err(), "{token}");
        }
    }
}
