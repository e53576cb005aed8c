//! References to images: what users write, what it means.

use std::fmt;
use std::path::PathBuf;

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    Registry {
        /// `host[:port]` as users name it, for example `docker.io`.
        registry: String,
        /// For example `library/nginx`.
        repository: String,
        selector: Selector,
    },
    /// A directory in the OCI layout; without a tag it must hold one image.
    Layout { path: PathBuf, tag: Option<String> },
    /// A docker-archive or an OCI archive, not compressed.
    Tarball { path: PathBuf },
}

/// Which image of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    Tag(String),
    /// `sha256:` and 64 hexadecimal digits. A tag beside it is dropped: the digest decides.
    Digest(String),
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(text) | Self::Digest(text) => f.write_str(text),
        }
    }
}

/// A text that is no reference to an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no image reference: {reason}; write for example nginx:1.27, registry:5000/app@sha256:.. or oci-layout:/images/app:v1"
)]
pub struct InvalidReference {
    pub text: String,
    pub reason: &'static str,
}

const REPOSITORY_LEN_MAX: usize = 255;
const TAG_LEN_MAX: usize = 128;

impl Reference {
    /// Reads what a user wrote.
    ///
    /// # Errors
    /// When it is none of the forms.
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        let invalid = |reason| InvalidReference {
            text: text.to_owned(),
            reason,
        };
        if let Some(rest) = text.strip_prefix("oci-layout:") {
            return layout(rest).map_err(invalid);
        }
        if let Some(path) = text.strip_prefix("tarball:") {
            return Ok(Self::Tarball {
                path: absolute(path).map_err(invalid)?,
            });
        }
        registry(text).map_err(invalid)
    }
}

/// The normalised form: every default written out.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry {
                registry,
                repository,
                selector,
            } => {
                let separator = match selector {
                    Selector::Tag(_) => ':',
                    Selector::Digest(_) => '@',
                };
                write!(f, "{registry}/{repository}{separator}{selector}")
            }
            Self::Layout { path, tag: Some(tag) } => write!(f, "oci-layout:{}:{tag}", path.display()),
            Self::Layout { path, tag: None } => write!(f, "oci-layout:{}", path.display()),
            Self::Tarball { path } => write!(f, "tarball:{}", path.display()),
        }
    }
}

fn absolute(path: &str) -> Result<PathBuf, &'static str> {
    if !path.starts_with('/') {
        return Err("the path is not absolute");
    }
    if path.contains('\0') {
        return Err("the path holds a NUL");
    }
    Ok(PathBuf::from(path))
}

fn layout(text: &str) -> Result<Reference, &'static str> {
    // A tag follows the last colon, unless a slash comes after it: then the colon is part of the path.
    let (path, tag) = match text.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (text, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("the tag is malformed");
    }
    Ok(Reference::Layout {
        path: absolute(path)?,
        tag: tag.map(Into::into),
    })
}

fn registry(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (text, None),
    };
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err("the digest is not sha256: with 64 hexadecimal digits");
    }
    let (name, tag) = match name.rsplit_once(':') {
        // A colon before the last slash belongs to the port of the host.
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("the tag is malformed");
    }
    // As everywhere: the first part is a host if it looks like one.
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
        _ => ("docker.io", name),
    };
    let host = if host == "index.docker.io" {
        "docker.io"
    } else {
        host
    };
    if !is_host(host) {
        return Err("the registry is malformed");
    }
    let repository = if host == "docker.io" && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    if repository.len() > REPOSITORY_LEN_MAX || !repository.split('/').all(is_component) {
        return Err("the repository has characters other than a-z, 0-9, separators and slashes");
    }
    let selector = match (digest, tag) {
        (Some(digest), _) => Selector::Digest(digest.to_owned()),
        (None, Some(tag)) => Selector::Tag(tag.to_owned()),
        (None, None) => Selector::Tag("latest".into()),
    };
    Ok(Reference::Registry {
        registry: host.to_owned(),
        repository,
        selector,
    })
}

/// `sha256:` and 64 lower-case hexadecimal digits: the only algorithm in use.
pub(super) fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64
            && hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

fn is_tag(text: &str) -> bool {
    let mut bytes = text.bytes();
    let first = bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    first
        && text.len() <= TAG_LEN_MAX
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    // Without the sign that parsing would take: it becomes a part of an address.
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    let port_ok = port.is_none_or(|port| is_port(port) && port.parse::<u16>().is_ok_and(|port| port != 0));
    let label_ok = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    port_ok && host.split('.').all(label_ok)
}

/// Lower-case letters and digits with `.`, `_`, `__` or hyphens between them.
fn is_component(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase();
    let edges = text.bytes().next().is_some_and(word) && text.bytes().next_back().is_some_and(word);
    let separators_ok = text
        .split(|c: char| c.is_ascii_digit() || c.is_ascii_lowercase())
        .all(|between| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-'));
    edges && separators_ok
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(text: &str) -> String {
        Reference::parse(text).unwrap().to_string()
    }

    #[test]
    fn fills_in_the_defaults_users_expect() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let table = [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.27", "docker.io/library/nginx:1.27".into()),
            ("team/app", "docker.io/team/app:latest".into()),
            ("docker.io/redis", "docker.io/library/redis:latest".into()),
            ("index.docker.io/redis", "docker.io/library/redis:latest".into()),
            ("localhost/app", "localhost/app:latest".into()),
            ("localhost:5000/app", "localhost:5000/app:latest".into()),
            (
                "127.0.0.1:5000/a/b-c__d:v1.0",
                "127.0.0.1:5000/a/b-c__d:v1.0".into(),
            ),
            ("ghcr.io/o/r:T", "ghcr.io/o/r:T".into()),
            (&format!("r.io/a:v1@{digest}"), format!("r.io/a@{digest}")),
            ("oci-layout:/a/b", "oci-layout:/a/b".into()),
            ("oci-layout:/a/b:v1", "oci-layout:/a/b:v1".into()),
            ("oci-layout:/a:1/b", "oci-layout:/a:1/b".into()),
            ("tarball:/a/b.tar", "tarball:/a/b.tar".into()),
        ];
        for (text, expected) in table {
            assert_eq!(normal(text), expected, "{text}");
            assert_eq!(normal(&expected), expected, "normal forms are stable");
        }
    }

    #[test]
    fn refuses_what_is_no_reference() {
        let table = [
            "",
            "Nginx",
            "nginx:",
            "nginx:-a",
            "a//b",
            "/a",
            "a/",
            "a b",
            "nginx@sha256:00",
            "r.io:0/a",
            "r.io:99999/a",
            "-r.io/a",
            "http://r.io/a",
            "r.io/",
            "oci-layout:a",
            "oci-layout:/a:?",
            "tarball:a.tar",
            "a/../b",
            "a.-b",
        ];
        for text in table {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
    }
}
