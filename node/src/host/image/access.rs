//! What is special about single registries: how they are reached, and who we are there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderValue;
use serde::Deserialize;

use super::retry::Trouble;
use crate::host::child::{self, ChildError};

/// A helper asks a cloud or a vault for the login.
const HELPER_DEADLINE: Duration = Duration::from_secs(30);
/// The name under which credential helpers know Docker Hub.
const DOCKER_HUB_SERVER: &str = "https://index.docker.io/v1/";
/// A helper's user name that says: the secret is an identity token, not a password.
const IDENTITY_TOKEN_USER: &str = "<token>";

/// What is special about one registry; the default is https, the system's certificates, no login.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryConfig {
    /// It is spoken to over plain HTTP.
    pub plain_http: bool,
    /// `host[:port]` of registries that are asked before it, in this order, for the same repository. What they fail at is
    /// asked of the next, and of the registry itself at last.
    pub mirrors: Vec<String>,
    /// Certificates in PEM that are trusted for it beside the system's. Read when the registry is first used.
    pub ca_file: Option<PathBuf>,
    pub login: Option<Login>,
}

/// Where the login of a registry comes from. Looked up anew for each token, so that a rotated one is used without a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    Password {
        username: String,
        /// Holds the password alone; a line end is not part of it.
        password_file: PathBuf,
    },
    /// A program that speaks the protocol of Docker's credential helpers: `docker-credential-NAME`, or an absolute path.
    Helper(String),
}

/// Who we are at one registry.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    Password {
        username: String,
        secret: String,
    },
    /// To be exchanged for a bearer token (grant `refresh_token` of the token protocol).
    IdentityToken(String),
}

/// Shows nothing that opens a door.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { username, .. } => f
                .debug_struct("Password")
                .field("username", username)
                .finish_non_exhaustive(),
            Self::IdentityToken(_) => f.write_str("IdentityToken(..)"),
        }
    }
}

impl Credentials {
    /// For people: whose login was refused.
    pub(super) fn who(&self) -> String {
        match self {
            Self::Password { username, .. } => format!("the login of {username:?}"),
            Self::IdentityToken(_) => "the identity token".to_owned(),
        }
    }

    /// RFC 7617. None for what is no password.
    pub(super) fn basic(&self) -> Option<HeaderValue> {
        let Self::Password { username, secret } = self else {
            return None;
        };
        let encoded = STANDARD.encode(format!("{username}:{secret}"));
        let mut value = HeaderValue::try_from(format!("Basic {encoded}")).expect("base64 is a header value");
        value.set_sensitive(true);
        Some(value)
    }
}

impl Login {
    /// Looks the login up for a registry.
    pub(super) async fn credentials(&self, registry: &str) -> Result<Credentials, Trouble> {
        match self {
            Self::Password {
                username,
                password_file,
            } => {
                let secret = read_password(password_file).await?;
                Ok(Credentials::Password {
                    username: username.clone(),
                    secret,
                })
            }
            Self::Helper(name) => ask_helper(name, registry).await,
        }
    }
}

async fn read_password(path: &Path) -> Result<String, Trouble> {
    let text = tokio::fs::read_to_string(path)
        .await
        .map_err(|error| Trouble::Login(format!("its password file {}: {error}", path.display())))?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(Trouble::Login(format!(
            "its password file {} is empty",
            path.display()
        )));
    }
    Ok(secret.to_owned())
}

async fn ask_helper(name: &str, registry: &str) -> Result<Credentials, Trouble> {
    let program = if name.contains('/') {
        name.to_owned()
    } else {
        format!("docker-credential-{name}")
    };
    let server = if registry == "docker.io" {
        DOCKER_HUB_SERVER
    } else {
        registry
    };
    let said = child::run(&program, &["get"], Some(server.as_bytes()), HELPER_DEADLINE)
        .await
        .map_err(|error| Trouble::Login(format!("its credential helper: {}", without_answer(&error))))?;
    helper_answer(&said).map_err(|error| {
        Trouble::Login(format!(
            "its credential helper {program} answers what cannot be used: {error}"
        ))
    })
}

/// A helper that fails says why in plain words; what may be an answer is not told.
fn without_answer(error: &ChildError) -> String {
    match error {
        ChildError::Failed {
            program,
            status,
            output,
        } if output.contains('{') => format!("{program} ended with {status}"),
        error => super::registry::chain(error),
    }
}

/// The answer of `get`: <https://github.com/docker/docker-credential-helpers>. The error does not hold the answer.
fn helper_answer(said: &[u8]) -> Result<Credentials, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let answer: Answer = serde_json::from_slice(said).map_err(|error| {
        format!(
            "no JSON with Username and Secret (line {}, column {})",
            error.line(),
            error.column()
        )
    })?;
    if answer.secret.is_empty() {
        return Err("an empty secret".into());
    }
    if answer.username == IDENTITY_TOKEN_USER {
        return Ok(Credentials::IdentityToken(answer.secret));
    }
    Ok(Credentials::Password {
        username: answer.username,
        secret: answer.secret,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn reads_what_helpers_answer_and_shows_no_secret() {
        let answer = br#"{"ServerURL":"r.io","Username":"robot","Secret":"s3cret"}"#;
        let credentials = helper_answer(answer).unwrap();
        assert_eq!(
            credentials.basic().unwrap().to_str().unwrap(),
            "Basic cm9ib3Q6czNjcmV0"
        );
        assert!(!format!("{credentials:?} {}", credentials.who()).contains("s3cret"));
        let token = helper_answer(br#"{"ServerURL":"","Username":"<token>","Secret":"idt"}"#).unwrap();
        assert_eq!(token, Credentials::IdentityToken("idt".into()));
        assert_eq!(token.basic(), None);
        for bad in [
            &b"not json s3cret"[..],
            br#"{"Username":"a"}"#,
            br#"{"Username":"a","Secret":""}"#,
        ] {
            let error = helper_answer(bad).unwrap_err();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_login_that_cannot_be_looked_up_names_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let password_file = dir.path().join("password");
        let login = Login::Password {
            username: "robot".into(),
            password_file: password_file.clone(),
        };
        let Err(Trouble::Login(message)) = login.credentials("r.io").await else {
            panic!("a missing file is no password");
        };
        assert!(message.contains(password_file.to_str().unwrap()), "{message}");
        std::fs::write(&password_file, "pass word\n").unwrap();
        let found = login.credentials("r.io").await.unwrap();
        let expected = Credentials::Password {
            username: "robot".into(),
            secret: "pass word".into(),
        };
        assert_eq!(found, expected);
        let Err(Trouble::Login(message)) = Login::Helper("nobody-has-it".into()).credentials("r.io").await
        else {
            panic!("there is no such program");
        };
        assert!(message.contains("docker-credential-nobody-has-it"), "{message}");
        // One that answers and then fails gives nothing away; one that fails in words is quoted.
        for (script, told) in [
            (
                "printf '{\"Username\":\"a\",\"Secret\":\"s3cret\"}'; exit 1",
                false,
            ),
            ("echo no s3cret here; exit 1", true),
        ] {
            let helper = dir.path().join("helper");
            std::fs::write(&helper, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
            let login = Login::Helper(helper.display().to_string());
            let Err(Trouble::Login(message)) = login.credentials("r.io").await else {
                panic!("it fails");
            };
            assert_eq!(message.contains("s3cret"), told, "{message}");
        }
    }
}
