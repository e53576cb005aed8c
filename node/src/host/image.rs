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
//! class, Retry-After honoured, a broken download goes on where it broke, silence counts as broken. What an attempt has fetched is kept
//! for the next one.
//!
//! [`RegistryConfig`] says how single registries are reached and as whom; [`CollectConfig`] when images go that nothing needs.

mod access;
mod challenge;
mod collect;
mod collector;
mod config;
mod inspect;
mod layer;
mod local;
mod manifest;
mod pull;
mod reference;
mod registry;
mod retry;
mod store;
mod user;

/// What fuzzing drives, and its corpus in `make test`.
#[cfg(test)]
mod fuzzed;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_api::replica::Cause;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::containerd::Runtime;
use collector::Collector;
use pull::Puller;
use registry::Registries;
use store::Store;

pub use access::{Login, RegistryConfig};
pub use collect::CollectConfig;
pub use config::ImageConfig;
pub use reference::{InvalidReference, Reference, Selector};

/// Settings of image pulls.
#[derive(Debug, Clone)]
pub struct ImagesConfig {
    /// What is special about single registries, by `host[:port]`.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// Downloads at once, over all pulls.
    pub parallel_downloads: usize,
    /// Silence after which a download counts as broken.
    pub stall_timeout: Duration,
    /// Attempts for one request or blob; each failure is followed by a growing pause.
    pub attempts: u32,
    /// The first pause; doubles up to 30 s, with jitter.
    pub backoff: Duration,
    /// When images that nobody needs are removed.
    pub collect: CollectConfig,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        Self {
            registries: BTreeMap::new(),
            parallel_downloads: 3,
            stall_timeout: Duration::from_secs(30),
            attempts: 5,
            backoff: Duration::from_millis(500),
            collect: CollectConfig::default(),
        }
    }
}

/// The file system where images are unpacked and replicas write what they have no storage for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    pub path: String,
    pub free_bytes: u64,
    pub total_bytes: u64,
    pub free_inodes: u64,
    /// 0 where the file system does not count them.
    pub total_inodes: u64,
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
    #[error("no login for the registry of {reference}: {message}")]
    Login { reference: String, message: String },
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
            Self::Registry { .. }
            | Self::Login { .. }
            | Self::NoSpace { .. }
            | Self::Store { .. }
            | Self::Cancelled { .. } => Fault::Infrastructure,
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

/// All images of the node. Clones share everything.
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
    /// Ends the pulls with the last handle.
    _guard: Arc<DropGuard>,
}

struct Inner {
    puller: Arc<Puller>,
    known: Arc<KnownImages>,
    /// Pulls under way, by normalised reference.
    flights: Mutex<BTreeMap<String, watch::Sender<Flight>>>,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

/// Images known to be complete, by normalised reference.
#[derive(Debug, Default)]
struct KnownImages(Mutex<BTreeMap<String, PulledImage>>);

impl KnownImages {
    fn get(&self, name: &str) -> Option<PulledImage> {
        self.lock().get(name).cloned()
    }

    fn add(&self, name: String, image: PulledImage) {
        self.lock().insert(name, image);
    }

    fn forget(&self, name: &str) {
        self.lock().remove(name);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, PulledImage>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One pull as those who wait for it see it.
#[derive(Debug, Clone, Default)]
struct Flight {
    progress: Progress,
    outcome: Option<Result<PulledImage, ImageError>>,
}

impl fmt::Debug for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Images")
            .field("config", &self.inner.puller.config)
            .finish_non_exhaustive()
    }
}

impl Images {
    /// # Errors
    /// When the machine cannot make HTTP connections at all.
    pub fn new(runtime: &Runtime, config: ImagesConfig) -> Result<Self, ImageError> {
        let registries = Registries::new(&config).map_err(|trouble| trouble.of(""))?;
        let known: Arc<KnownImages> = Arc::default();
        let store = Store::new(runtime.clone());
        let puller = Puller {
            collector: Collector {
                store: store.clone(),
                config: config.collect,
                known: Arc::clone(&known),
                state: Mutex::default(),
                in_flight: Mutex::default(),
                gate: tokio::sync::Mutex::default(),
                turn: tokio::sync::Mutex::default(),
            },
            store,
            registries,
            downloads: Arc::new(Semaphore::new(config.parallel_downloads.max(1))),
            blobs: Mutex::default(),
            config,
        };
        let cancel = CancellationToken::new();
        let guard = Arc::new(cancel.clone().drop_guard());
        let inner = Arc::new(Inner {
            puller: Arc::new(puller),
            known,
            flights: Mutex::default(),
            tracker: TaskTracker::new(),
            cancel,
        });
        Ok(Self { inner, _guard: guard })
    }

    /// The image of a reference, pulled and unpacked if need be. A tag that is in containerd already is not asked for
    /// again: replicas start without their registry. Local layouts and tarballs are looked at each time.
    ///
    /// However many ask at once, one pull runs; it ends when nobody waits for it any more. `on_progress` is called on
    /// each change while it runs.
    ///
    /// # Errors
    /// [`ImageError`]: whose fault it is, in words for people.
    pub async fn ensure(
        &self,
        text: &str,
        mut on_progress: impl FnMut(Progress),
    ) -> Result<PulledImage, ImageError> {
        let reference = Reference::parse(text)?;
        let name = reference.to_string();
        self.inner.puller.collector.asked(&name);
        if let Reference::Registry { .. } = reference
            && let Some(image) = self.inner.known.get(&name)
        {
            return Ok(image);
        }
        let mut flight = self.join(&reference, &name);
        let mut last = Progress::default();
        loop {
            let now = flight.borrow_and_update().clone();
            match now.outcome {
                // It ended for want of waiters in the moment in which we joined it.
                Some(Err(ImageError::Cancelled { .. })) if !self.inner.cancel.is_cancelled() => {
                    flight = self.join(&reference, &name);
                    continue;
                }
                Some(outcome) => return outcome,
                None => {}
            }
            if now.progress != last {
                last = now.progress;
                on_progress(last);
            }
            if flight.changed().await.is_err() {
                return Err(ImageError::Cancelled { reference: name });
            }
        }
    }

    /// Drops what is remembered of an image, so that the next [`Images::ensure`] looks again. For
    /// [`super::containerd::RuntimeError::ImageGone`].
    pub fn forget(&self, text: &str) {
        if let Ok(reference) = Reference::parse(text) {
            self.inner.known.forget(&reference.to_string());
        }
    }

    /// Says which images replicas need, all of them. When it is time, others are removed by age, budget and want of space
    /// ([`CollectConfig`]), in the background: removing large ones takes a disk its time.
    pub fn keep(&self, references: &BTreeSet<String>) {
        let parsed = references.iter().filter_map(|text| Reference::parse(text).ok());
        let needed = parsed.map(|reference| reference.to_string()).collect();
        if self.inner.puller.collector.keep(needed) {
            let inner = Arc::clone(&self.inner);
            self.inner.tracker.spawn(async move {
                // Cancel-safe: each image is there or gone; what is left is collected next time.
                let collected = inner
                    .cancel
                    .run_until_cancelled(inner.puller.collector.collect(0))
                    .await;
                if let Some(Err(trouble)) = collected {
                    tracing::warn!(trouble = ?trouble, "cannot remove images that nothing needs");
                }
            });
        }
    }

    /// How much room there is where images are unpacked; None where containerd does not say.
    pub async fn room(&self) -> Option<Room> {
        self.inner.puller.collector.room().await
    }

    /// The next sweep removes what may go.
    pub fn collect_soon(&self) {
        self.inner.puller.collector.pulled();
    }

    /// Ends all pulls and waits for them.
    pub async fn shutdown(&self) {
        self.inner.cancel.cancel();
        self.inner.tracker.close();
        self.inner.tracker.wait().await;
    }

    /// Joins the pull of a reference, or starts it.
    fn join(&self, reference: &Reference, name: &str) -> watch::Receiver<Flight> {
        let mut flights = self.inner.flights();
        if let Some(flight) = flights.get(name) {
            return flight.subscribe();
        }
        let (sender, receiver) = watch::channel(Flight::default());
        flights.insert(name.to_owned(), sender.clone());
        drop(flights);
        let (inner, reference, name) = (Arc::clone(&self.inner), reference.clone(), name.to_owned());
        self.inner
            .tracker
            .spawn(async move { inner.fly(&reference, name, sender).await });
        receiver
    }
}

impl Inner {
    async fn fly(&self, reference: &Reference, name: String, sender: watch::Sender<Flight>) {
        let outcome = tokio::select! {
            // Cancel-safe: what was downloaded stays in containerd and is gone on with; the lease expires by itself.
            outcome = self.puller.pull(reference, &sender) => outcome.map_err(|trouble| trouble.of(&name)),
            () = sender.closed() => Err(ImageError::Cancelled { reference: name.clone() }),
            () = self.cancel.cancelled() => Err(ImageError::Cancelled { reference: name.clone() }),
        };
        if let (Ok(image), Reference::Registry { .. }) = (&outcome, reference) {
            self.known.add(name.clone(), image.clone());
        }
        if outcome.is_ok() {
            self.puller.collector.pulled();
        }
        // Off the list before the outcome is told: whoever comes later starts anew.
        self.flights().remove(&name);
        sender.send_modify(|flight| flight.outcome = Some(outcome));
    }

    fn flights(&self) -> MutexGuard<'_, BTreeMap<String, watch::Sender<Flight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_are_names_or_numbers() {
        let number = |text: &str| {
            let config = ImageConfig {
                stop_signal: text.into(),
                ..ImageConfig::default()
            };
            config.stop_signal_number()
        };
        let table = [
            ("", 15),
            ("SIGINT", 2),
            ("QUIT", 3),
            ("28", 28),
            ("99", 15),
            ("nonsense", 15),
        ];
        for (text, expected) in table {
            assert_eq!(number(text), expected, "{text:?}");
        }
    }

    #[test]
    fn each_error_has_one_side_at_fault() {
        let of = |trouble: retry::Trouble| trouble.of("r").fault();
        assert_eq!(of(retry::Trouble::Unknown("x".into())), Fault::Image);
        assert_eq!(of(retry::Trouble::Denied("x".into())), Fault::Image);
        assert_eq!(of(retry::Trouble::Unusable("x".into())), Fault::Image);
        assert_eq!(of(retry::Trouble::Registry("x".into())), Fault::Infrastructure);
        assert_eq!(of(retry::Trouble::Login("x".into())), Fault::Infrastructure);
        assert_eq!(of(retry::Trouble::passing("x")), Fault::Infrastructure);
        let reference = Reference::parse("A").map_err(ImageError::from).unwrap_err();
        assert_eq!(reference.fault(), Fault::Image);
    }
}
