//! Tokens: who may do what.
//!
//! | kind | form | proves |
//! | --- | --- | --- |
//! | platform | JWT (see [`crate::identity`]) | cluster management |
//! | management | `hm_` and 43 of `[A-Za-z0-9]` | container operations of one cluster |
//! | machine | `hj_` and 43 of `[A-Za-z0-9]` | a node of one cluster |
//!
//! A cluster's tokens are derived, not stored: HMAC-SHA-256 over kind, cluster and a random salt, under a secret in the
//! data directory. The log holds digest and salt. So a create-cluster request whose reply was lost can be repeated and
//! is answered with the same tokens, while neither the log nor its backups are worth anything without the secret file,
//! which lies beside the CA's key and the key of platform tokens and is as precious as those.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use berth_api::id::ClusterId;
use sha2::{Digest as _, Sha256};

use crate::entry::{TokenDigest, TokenKind};

const SECRET_FILE: &str = "token-secret";
const SECRET_LEN: usize = 32;
const SALT_LEN: usize = 16;
/// 62^43 is just above 2^256: 43 characters say every value of an HMAC.
const TOKEN_CHARS: usize = 43;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Why tokens cannot be made or checked.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("{action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path} has {found} bytes, not {SECRET_LEN}; restore it, or remove it and rotate every token")]
    Secret { path: PathBuf, found: usize },
    #[error("the system has no randomness: {0}")]
    Random(getrandom::Error),
}

/// Makes the tokens of clusters.
pub struct Tokens {
    secret: [u8; SECRET_LEN],
}

/// Without any key.
impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    /// Reads the secret of a data directory; makes it when it is not there.
    ///
    /// # Errors
    /// When a file cannot be read or written, or is no secret. Nothing is overwritten.
    pub fn open(data_dir: &Path) -> Result<Self, TokenError> {
        let secret_path = data_dir.join(SECRET_FILE);
        let secret = read_or_make(&secret_path, || {
            let mut secret = vec![0; SECRET_LEN];
            getrandom::fill(&mut secret).map_err(TokenError::Random)?;
            Ok(secret)
        })?;
        let secret = <[u8; SECRET_LEN]>::try_from(secret.as_slice()).map_err(|_| TokenError::Secret {
            path: secret_path,
            found: secret.len(),
        })?;
        Ok(Self { secret })
    }

    /// A new token of a cluster, and what to store of it.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn mint(&self, kind: TokenKind, cluster: &ClusterId) -> Result<(String, TokenDigest), TokenError> {
        let mut salt = [0; SALT_LEN];
        getrandom::fill(&mut salt).map_err(TokenError::Random)?;
        let salt: String = salt.iter().map(|byte| format!("{byte:02x}")).collect();
        let token = self.derive(kind, cluster, &salt);
        let digest = TokenDigest::salted(&token, &salt);
        Ok((token, digest))
    }

    /// The token that `digest` was stored of; none when it was made under another secret.
    #[must_use]
    pub fn recover(&self, kind: TokenKind, cluster: &ClusterId, digest: &TokenDigest) -> Option<String> {
        let token = self.derive(kind, cluster, digest.salt()?);
        digest.matches(&token).then_some(token)
    }

    fn derive(&self, kind: TokenKind, cluster: &ClusterId, salt: &str) -> String {
        let message = format!("{}\0{salt}\0{cluster}", prefix(kind));
        format!(
            "{}{}",
            prefix(kind),
            base62(hmac(&self.secret, message.as_bytes()))
        )
    }
}

fn prefix(kind: TokenKind) -> &'static str {
    match kind {
        TokenKind::Management => "hm_",
        TokenKind::Machine => "hj_",
    }
}

/// The kind that a token claims by its form; none for anything that cannot be a cluster token.
#[must_use]
pub fn kind_of(token: &str) -> Option<TokenKind> {
    [TokenKind::Management, TokenKind::Machine]
        .into_iter()
        .find(|kind| {
            token.strip_prefix(prefix(*kind)).is_some_and(|rest| {
                rest.len() == TOKEN_CHARS && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
            })
        })
}

/// RFC 2104 with SHA-256.
fn hmac(key: &[u8; SECRET_LEN], message: &[u8]) -> [u8; 32] {
    const BLOCK_LEN: usize = 64;
    let mut inner = [0x36; BLOCK_LEN];
    let mut outer = [0x5c; BLOCK_LEN];
    for ((inner, outer), key) in inner.iter_mut().zip(&mut outer).zip(key) {
        *inner ^= key;
        *outer ^= key;
    }
    let digest = Sha256::new().chain_update(inner).chain_update(message).finalize();
    Sha256::new()
        .chain_update(outer)
        .chain_update(digest)
        .finalize()
        .into()
}

/// The bytes as one number in base 62, most significant digit first, always [`TOKEN_CHARS`] long.
fn base62(mut number: [u8; 32]) -> String {
    let mut digits = [0u8; TOKEN_CHARS];
    for digit in digits.iter_mut().rev() {
        let mut rest = 0u16;
        for byte in &mut number {
            let value = (rest << 8) | u16::from(*byte);
            *byte = u8::try_from(value / 62).expect("rest < 62, so value / 62 < 256");
            rest = value % 62;
        }
        *digit = ALPHABET[usize::from(rest)];
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}

/// A file that is there is never replaced; one that is not is made whole or not at all, readable by its owner only.
fn read_or_make(
    path: &Path,
    make: impl FnOnce() -> Result<Vec<u8>, TokenError>,
) -> Result<Vec<u8>, TokenError> {
    let file = |action, path: &Path| {
        let path = path.to_owned();
        move |source| TokenError::File { action, path, source }
    };
    match fs::read(path) {
        Ok(content) => return Ok(content),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(file("read", path)(error)),
    }
    let content = make()?;
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&partial)
        .and_then(|mut file| file.write_all(&content).and_then(|()| file.sync_all()));
    written.map_err(file("write", &partial))?;
    // A link fails where a rename would replace: of two programs that start at once one wins, and both use its file.
    let linked = fs::hard_link(&partial, path);
    fs::remove_file(&partial).map_err(file("remove", &partial))?;
    match linked {
        Ok(()) => Ok(content),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::read(path).map_err(file("read", path))
        }
        Err(error) => Err(file("write", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn cluster() -> ClusterId {
        ClusterId::new("acme/prod").unwrap()
    }

    #[test]
    fn tokens_have_the_form_of_the_api_and_can_be_recovered_from_their_digest() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        for kind in [TokenKind::Management, TokenKind::Machine] {
            let (token, digest) = tokens.mint(kind, &cluster()).unwrap();
            assert_eq!(kind_of(&token), Some(kind), "{token}");
            assert!(digest.matches(&token));
            assert!(!digest.matches(&tokens.mint(kind, &cluster()).unwrap().0));
            let again = Tokens::open(dir.path()).unwrap();
            assert_eq!(again.recover(kind, &cluster(), &digest), Some(token));
            assert_eq!(
                again.recover(kind, &ClusterId::new("other").unwrap(), &digest),
                None
            );
        }
    }

    #[test]
    fn the_secret_is_private_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        Tokens::open(dir.path()).unwrap();
        let before = fs::read(dir.path().join(SECRET_FILE)).unwrap();
        Tokens::open(dir.path()).unwrap();
        assert_eq!(fs::read(dir.path().join(SECRET_FILE)).unwrap(), before);
        let mode = fs::metadata(dir.path().join(SECRET_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(dir.path().join(SECRET_FILE), b"short").unwrap();
        assert!(matches!(
            Tokens::open(dir.path()),
            Err(TokenError::Secret { found: 5, .. })
        ));
    }

    #[test]
    fn hmac_is_that_of_rfc_4231() {
        // Test case 3: key of 20 bytes 0xaa, data of 50 bytes 0xdd. A shorter key is padded with zeros.
        let mut key = [0; SECRET_LEN];
        key[..20].fill(0xaa);
        let digest = hmac(&key, &[0xdd; 50]);
        let text: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            text,
            "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"
        );
    }

    #[test]
    fn base62_keeps_every_bit() {
        assert_eq!(base62([0; 32]), "0".repeat(TOKEN_CHARS));
        let mut one = [0; 32];
        one[31] = 61;
        assert!(base62(one).ends_with("0z"));
        assert_ne!(base62([0xff; 32]), base62([0xfe; 32]));
        assert_eq!(base62([0xff; 32]).len(), TOKEN_CHARS);
    }
}
