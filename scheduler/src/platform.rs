//! Platform tokens: JSON Web Tokens (RFC 7519) for cluster management, made by this scheduler or by a trusted issuer.
//!
//! Our own are signed with the Ed25519 key `platform.key` of the data directory (RFC 8037). Public keys of earlier ones lie
//! in `platform-retired/`, one PEM file each, named by its key id: tokens made under them stay valid until they expire or the
//! file is removed. [`rotate`] makes a new key and retires the present one; a scheduler that runs takes it over at SIGHUP
//! ([`crate::identity::Identity::reload_platform_keys`]). Keys of other issuers come from the configuration.
//!
//! A key verifies one algorithm, and the issuer and audience it is configured for: a public key is never taken for a secret,
//! whatever the header of a token says, and one issuer cannot speak for another.

use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_api::time::Timestamp;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::identity::{IdentityError, open_key, read, write_whole};

/// A platform token lasts this long unless its maker says otherwise.
pub const PLATFORM_TOKEN_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// And never longer than this.
pub const PLATFORM_TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// `iss` of the tokens that this scheduler makes.
pub const PLATFORM_ISSUER: &str = "berth-scheduler";
/// `aud` of every platform token, unless its issuer is configured with another.
pub const PLATFORM_AUDIENCE: &str = "berth-platform";
/// By this much the clocks of an issuer and ours may differ, for `exp` and `nbf`.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);
/// RFC 7518, section 3.2: a secret of HS256 is at least as long as its hash.
const SECRET_LEN_MIN: usize = 32;
const KEY_FILE: &str = "platform.key";
const RETIRED_DIR: &str = "platform-retired";

/// How an issuer signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum SigningAlgorithm {
    /// Ed25519; the key file holds the public key in PEM.
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// HMAC with SHA-256; the key file holds the secret, at least 32 bytes.
    #[serde(rename = "HS256")]
    Hs256,
}

impl SigningAlgorithm {
    fn jwt(self) -> Algorithm {
        match self {
            Self::EdDsa => Algorithm::EdDSA,
            Self::Hs256 => Algorithm::HS256,
        }
    }
}

/// A key of another issuer of platform tokens. Several of one issuer are valid beside each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedIssuer {
    /// What `iss` must be.
    pub issuer: String,
    /// What `aud` must be or hold.
    pub audience: String,
    pub algorithm: SigningAlgorithm,
    pub key_file: PathBuf,
    /// `kid` of the tokens that this key verifies; without it, of any.
    pub key_id: Option<String>,
}

/// Who a valid platform token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformCaller {
    pub issuer: String,
    pub subject: String,
    /// Of the key that verified it.
    pub key_id: String,
    /// When the token ends.
    pub expires_at: Timestamp,
}

/// Why a platform token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPlatformToken {
    #[error("it is not signed by a key that this scheduler trusts")]
    Unknown,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet")]
    NotYet,
    #[error("it is from an issuer or for an audience that this scheduler does not accept from its key")]
    Foreign,
    #[error("it lacks a claim; exp, iss, aud and sub are required")]
    Incomplete,
}

#[derive(Serialize)]
struct OwnClaims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: &'a str,
    iat: u64,
    nbf: u64,
    exp: u64,
}

#[derive(Deserialize)]
struct ReadClaims {
    iss: String,
    sub: String,
    exp: u64,
}

struct VerifyingKey {
    key_id: String,
    /// Whether a token that names another key may be signed by this one.
    answers_any_id: bool,
    algorithm: Algorithm,
    validation: Validation,
    key: DecodingKey,
}

/// Makes and checks platform tokens.
pub struct PlatformKeys {
    signing: EncodingKey,
    signing_id: String,
    accepted: Vec<VerifyingKey>,
}

/// Without any key.
impl std::fmt::Debug for PlatformKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlatformKeys").finish_non_exhaustive()
    }
}

impl PlatformKeys {
    /// Reads the keys of the data directory and of other issuers; makes our own when there is none.
    ///
    /// # Errors
    /// When a file cannot be read or written, or is no key of its algorithm.
    pub fn open(data_dir: &Path, issuers: &[TrustedIssuer]) -> Result<Self, IdentityError> {
        let own = open_key(&data_dir.join(KEY_FILE), &PKCS_ED25519)?;
        let signing =
            EncodingKey::from_ed_pem(own.serialize_pem().as_bytes()).map_err(IdentityError::PlatformKey)?;
        let signing_id = key_id(own.der_bytes());
        let mut accepted = vec![VerifyingKey::own(
            signing_id.clone(),
            DecodingKey::from_ed_der(own.public_key_raw()),
        )];
        for path in retired(data_dir)? {
            let key = DecodingKey::from_ed_pem(read(&path)?.as_bytes())
                .map_err(|source| unusable(&path, source))?;
            let id = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            accepted.push(VerifyingKey::own(id, key));
        }
        for issuer in issuers {
            accepted.push(VerifyingKey::of(issuer)?);
        }
        Ok(Self {
            signing,
            signing_id,
            accepted,
        })
    }

    /// A token for cluster management in the name of `subject`.
    ///
    /// # Errors
    /// When the key cannot sign.
    pub fn issue(&self, subject: &str, lifetime: Duration, now: Timestamp) -> Result<String, IdentityError> {
        let issued_at = now.millis() / 1000;
        let claims = OwnClaims {
            iss: PLATFORM_ISSUER,
            aud: PLATFORM_AUDIENCE,
            sub: subject,
            iat: issued_at,
            nbf: issued_at,
            exp: issued_at + lifetime.min(PLATFORM_TOKEN_LIFETIME_MAX).as_secs(),
        };
        let header = Header {
            kid: Some(self.signing_id.clone()),
            ..Header::new(Algorithm::EdDSA)
        };
        jsonwebtoken::encode(&header, &claims, &self.signing).map_err(IdentityError::PlatformKey)
    }

    /// Who a token stands for. Claims are looked at only after the signature.
    ///
    /// # Errors
    /// With the reason, when it is not to be accepted.
    pub fn check(&self, token: &str) -> Result<PlatformCaller, InvalidPlatformToken> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| InvalidPlatformToken::Unknown)?;
        let is_meant = |key: &&VerifyingKey| {
            key.algorithm == header.alg
                && (key.answers_any_id || header.kid.as_ref().is_none_or(|id| *id == key.key_id))
        };
        let mut refusal = InvalidPlatformToken::Unknown;
        for key in self.accepted.iter().filter(is_meant) {
            match jsonwebtoken::decode::<ReadClaims>(token, &key.key, &key.validation) {
                Ok(read) if !read.claims.sub.is_empty() => {
                    return Ok(PlatformCaller {
                        issuer: read.claims.iss,
                        subject: read.claims.sub,
                        key_id: key.key_id.clone(),
                        expires_at: Timestamp::from_millis(read.claims.exp.saturating_mul(1000)),
                    });
                }
                Ok(_) => refusal = InvalidPlatformToken::Incomplete,
                Err(error) => refusal = reason(error.kind()).unwrap_or(refusal),
            }
        }
        Err(refusal)
    }
}

/// Nothing when the key at hand did not sign the token: another may have.
fn reason(error: &ErrorKind) -> Option<InvalidPlatformToken> {
    match error {
        ErrorKind::ExpiredSignature => Some(InvalidPlatformToken::Expired),
        ErrorKind::ImmatureSignature => Some(InvalidPlatformToken::NotYet),
        ErrorKind::InvalidIssuer | ErrorKind::InvalidAudience => Some(InvalidPlatformToken::Foreign),
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) | ErrorKind::Json(_) => {
            Some(InvalidPlatformToken::Incomplete)
        }
        _ => None,
    }
}

impl VerifyingKey {
    fn own(key_id: String, key: DecodingKey) -> Self {
        Self {
            key_id,
            answers_any_id: false,
            algorithm: Algorithm::EdDSA,
            validation: validation(Algorithm::EdDSA, PLATFORM_ISSUER, PLATFORM_AUDIENCE),
            key,
        }
    }

    fn of(issuer: &TrustedIssuer) -> Result<Self, IdentityError> {
        let path = &issuer.key_file;
        let content = std::fs::read(path).map_err(|source| IdentityError::File {
            operation: "read",
            path: path.clone(),
            source,
        })?;
        let key = match issuer.algorithm {
            SigningAlgorithm::EdDsa => {
                DecodingKey::from_ed_pem(&content).map_err(|source| unusable(path, source))?
            }
            SigningAlgorithm::Hs256 => {
                let secret = content.trim_ascii();
                if secret.len() < SECRET_LEN_MIN || secret.starts_with(b"-----BEGIN") {
                    return Err(IdentityError::IssuerSecret {
                        path: path.clone(),
                        found: secret.len(),
                    });
                }
                DecodingKey::from_secret(secret)
            }
        };
        let algorithm = issuer.algorithm.jwt();
        Ok(Self {
            key_id: issuer
                .key_id
                .clone()
                .unwrap_or_else(|| key_id(path.as_os_str().as_encoded_bytes())),
            answers_any_id: issuer.key_id.is_none(),
            algorithm,
            validation: validation(algorithm, &issuer.issuer, &issuer.audience),
            key,
        })
    }
}

fn validation(algorithm: Algorithm, issuer: &str, audience: &str) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.set_issuer(&[issuer]);
    validation.set_audience(&[audience]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    validation.validate_nbf = true;
    validation.leeway = CLOCK_TOLERANCE.as_secs();
    validation
}

/// Makes a new signing key. Tokens made under the present one stay valid; returns the ids of both, the old one first.
///
/// # Errors
/// When a file cannot be read or written; the present key is replaced last.
pub fn rotate(data_dir: &Path) -> Result<(String, String), IdentityError> {
    let path = data_dir.join(KEY_FILE);
    let present = open_key(&path, &PKCS_ED25519)?;
    let old = key_id(present.der_bytes());
    let directory = data_dir.join(RETIRED_DIR);
    std::fs::create_dir_all(&directory).map_err(|source| IdentityError::File {
        operation: "make the directory",
        path: directory.clone(),
        source,
    })?;
    let public = present.public_key_pem();
    write_whole(&directory.join(format!("{old}.pem")), public.as_bytes(), 0o644)?;
    let fault = |error| IdentityError::Certificate("a new key of platform tokens cannot be made", error);
    let next = KeyPair::generate_for(&PKCS_ED25519).map_err(fault)?;
    write_whole(&path, next.serialize_pem().as_bytes(), 0o600)?;
    Ok((old, key_id(next.der_bytes())))
}

fn retired(data_dir: &Path) -> Result<Vec<PathBuf>, IdentityError> {
    let directory = data_dir.join(RETIRED_DIR);
    let fault = |source| IdentityError::File {
        operation: "read",
        path: directory.clone(),
        source,
    };
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fault(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(fault)?.path();
        if path.extension().is_some_and(|ending| ending == "pem") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn key_id(public: &[u8]) -> String {
    let digest = Sha256::digest(public);
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn unusable(path: &Path, source: jsonwebtoken::errors::Error) -> IdentityError {
    IdentityError::IssuerKey {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
