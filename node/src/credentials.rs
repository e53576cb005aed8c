//! The machine's identity: a key made here that never leaves, and a certificate from the scheduler.
//!
//! Files in `state_dir`, mode 0600, replaced by write and rename: `machine.key`, `machine.pem` (key and certificate are
//! kept apart so that a lost certificate costs an enrolment, not an identity), `enrolment.json` (what the scheduler said
//! at enrolment: the subnet, when to renew).

use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use berth_api::machine::AssignedNetwork;
use berth_api::time::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde::{Deserialize, Serialize};

/// Why the identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("{operation} {path}")]
    File {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("making the machine's key or certificate request")]
    Key(#[from] rcgen::Error),
}

/// What the scheduler said at enrolment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enrolment {
    pub assigned_network: AssignedNetwork,
    pub renew_at: Timestamp,
    pub enrolled_at: Timestamp,
}

/// A usable identity.
#[derive(Clone)]
pub struct Credentials {
    pub key_pem: String,
    pub certificate_pem: String,
    pub enrolment: Enrolment,
}

/// Without the key: it never reaches a log.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("enrolment", &self.enrolment)
            .finish_non_exhaustive()
    }
}

/// The files of the identity.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Where the private key is, once there is one.
    #[must_use]
    pub fn key_file(&self) -> PathBuf {
        self.dir.join(KEY)
    }

    /// What is kept, when all of it is there and can be read.
    #[must_use]
    pub fn load(&self) -> Option<Credentials> {
        let read = |name: &str| std::fs::read_to_string(self.dir.join(name)).ok();
        let enrolment = serde_json::from_str(&read(ENROLMENT)?).ok()?;
        Some(Credentials {
            key_pem: read(KEY)?,
            certificate_pem: read(CERTIFICATE)?,
            enrolment,
        })
    }

    /// The machine's key, made at the first use.
    fn key(&self) -> Result<KeyPair, CredentialsError> {
        let path = self.key_file();
        match std::fs::read_to_string(&path) {
            Ok(pem) => match KeyPair::from_pem(&pem) {
                Ok(key) => return Ok(key),
                Err(error) => {
                    tracing::warn!(error = %error, "the machine's key is damaged; a new one is made")
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(CredentialsError::File {
                    operation: "reading",
                    path,
                    source,
                });
            }
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        self.write(KEY, key.serialize_pem().as_bytes())?;
        Ok(key)
    }

    /// A request for a certificate in the name of the machine, signed by its key: PEM of both.
    ///
    /// # Errors
    /// When the key cannot be made or kept.
    pub fn request(&self, machine_id: &str) -> Result<(String, String), CredentialsError> {
        let key = self.key()?;
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, machine_id);
        params.distinguished_name = name;
        let request = params.serialize_request(&key)?;
        Ok((request.pem()?, key.serialize_pem()))
    }

    /// Keeps what an enrolment gave.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, credentials: &Credentials) -> Result<(), CredentialsError> {
        self.write(CERTIFICATE, credentials.certificate_pem.as_bytes())?;
        let text = serde_json::to_vec_pretty(&credentials.enrolment).expect("an enrolment has text keys");
        self.write(ENROLMENT, &text)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), CredentialsError> {
        let path = self.dir.join(name);
        let part = self.dir.join(format!("{name}.part"));
        let written = (|| {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&part)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&part, &path)
        })();
        written.map_err(|source| CredentialsError::File {
            operation: "writing",
            path,
            source,
        })
    }
}

const KEY: &str = "machine.key";
const CERTIFICATE: &str = "machine.pem";
const ENROLMENT: &str = "enrolment.json";

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_key_is_made_once_and_only_for_this_user() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let (_, first) = store.request("m1").unwrap();
        let (csr, second) = store.request("m1").unwrap();
        assert_eq!(first, second);
        assert!(csr.contains("BEGIN CERTIFICATE REQUEST"));
        let mode = std::fs::metadata(dir.path().join(KEY))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(store.load().is_none(), "no certificate yet");
    }

    #[test]
    fn what_is_kept_is_read_back_and_a_part_of_it_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let (_, key_pem) = store.request("m1").unwrap();
        let enrolment = Enrolment {
            assigned_network: AssignedNetwork::of("10.1.2.0/24".parse().unwrap()),
            renew_at: Timestamp::from_millis(5),
            enrolled_at: Timestamp::from_millis(1),
        };
        store
            .save(&Credentials {
                key_pem,
                certificate_pem: "c".into(),
                enrolment: enrolment.clone(),
            })
            .unwrap();
        assert_eq!(store.load().unwrap().enrolment, enrolment);
        std::fs::remove_file(dir.path().join(CERTIFICATE)).unwrap();
        assert!(store.load().is_none());
    }
}
