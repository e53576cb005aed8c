//! Images: from a reference to an unpacked snapshot and the defaults that the image declares.
//!
//! Input: a reference ([`Reference`]): a registry's, an OCI layout's or a tarball's. Output: [`PulledImage`]. Owner: the
//! node's executor; clones share everything. One pull runs per reference however many replicas ask for it, and one
//! download per blob; at most [`ImagesConfig::parallel_downloads`] downloads run at once.
//!
//! ```text
//! reference ─▶ manifest (index: this platform's) ─▶ config ─┬▶ blobs ─▶ content store ─▶ snapshot per layer ─▶ image record
//!                                                           └▶ chain ids: what is unpacked already is not fetched
//! ```
//!
//! Failure: every error says whose fault it is ([`ImageError::fault`]). Retries happen here and nowhere else: back-off by
//! class, Retry-After honoured, a broken download goes on where it broke, silence counts as broken.

mod reference;

use std::time::Duration;

use berth_api::replica::Cause;

pub use reference::{InvalidReference, Reference, Selector};

/// Settings of image pulls.
#[derive(Debug, Clone)]
pub struct ImagesConfig {
    /// `host[:port]` of registries that are spoken to over plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Downloads at once, over all pulls.
    pub parallel_downloads: usize,
    /// Silence after which a download counts as broken.
    pub stall_timeout: Duration,
    /// Attempts for one request or blob; each failure is followed by a growing pause.
    pub attempts: u32,
    /// The first pause; doubles up to 30 s, with jitter.
    pub backoff: Duration,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        Self {
            insecure_registries: Vec::new(),
            parallel_downloads: 3,
            stall_timeout: Duration::from_secs(30),
            attempts: 5,
            backoff: Duration::from_millis(500),
        }
    }
}

/// An image that is in containerd, unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledImage {
    /// Normalised; also the name of containerd's image record.
    pub reference: String,
    /// `sha256:..` of the manifest for this platform.
    pub digest: String,
    /// The snapshot of its top layer; empty for an image without layers.
    pub chain_id: String,
    pub config: ImageConfig,
    /// The user its process runs as, looked up in the image.
    pub user: ImageUser,
}

/// What an image declares about its process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Empty: `/`.
    pub working_dir: String,
    /// `name`, `uid`, `name:group`, `uid:gid`; empty: root.
    pub user: String,
    /// For example `SIGINT` or `2`; empty: SIGTERM.
    pub stop_signal: String,
}

/// A user as numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageUser {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    /// Home directory, where the image's passwd has one.
    pub home: Option<String>,
}

/// How far a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    pub bytes_done: u64,
    /// Zero until the manifest is known.
    pub bytes_total: u64,
}

/// Whose fault a failed pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The reference or the image: nothing changes until the user changes something.
    Image,
    /// Registry, network, disk or runtime: a later attempt may succeed.
    Infrastructure,
}

/// Why an image cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    #[error("there is no image {reference}: {message}")]
    Unknown { reference: String, message: String },
    #[error("access to {reference} is denied: {message}")]
    Denied { reference: String, message: String },
    /// The image is there and cannot be used: wrong platform, unknown media type, wrong digest, too large a manifest.
    #[error("the image {reference} cannot be used: {message}")]
    Unusable { reference: String, message: String },
    #[error("the registry of {reference} fails: {message}")]
    Registry { reference: String, message: String },
    #[error("the image {reference} needs {needed_bytes} bytes, {free_bytes} are free")]
    NoSpace {
        reference: String,
        needed_bytes: u64,
        free_bytes: u64,
    },
    #[error("the image {reference} cannot be stored: {message}")]
    Store { reference: String, message: String },
    /// The node is ending.
    #[error("the pull of {reference} was given up")]
    Cancelled { reference: String },
}

impl ImageError {
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Reference(_) | Self::Unknown { .. } | Self::Denied { .. } | Self::Unusable { .. } => {
                Fault::Image
            }
            Self::Registry { .. } | Self::NoSpace { .. } | Self::Store { .. } | Self::Cancelled { .. } => {
                Fault::Infrastructure
            }
        }
    }
}

impl From<&ImageError> for Cause {
    fn from(error: &ImageError) -> Self {
        let text = error.to_string();
        match error.fault() {
            Fault::Image => Self::Image { error: text },
            Fault::Infrastructure => Self::Infrastructure { error: text },
        }
    }
}
