//! One pull from beginning to end.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::collector::Collector;
use super::inspect::inspect;
use super::layer::Contents;
use super::local::{FileBlob, Files};
use super::manifest::{self, Config, DOCUMENT_SIZE_MAX, Descriptor, Document, Manifest};
use super::reference::{Reference, Selector};
use super::registry::{Download, Registries, Repository, Route};
use super::retry::{Backoff, Trouble};
use super::store::Store;
use super::{Fault, Flight, ImagesConfig, PulledImage, user};
use crate::host::containerd::RuntimeError;

/// containerd takes up to 16 MiB in one message; small ones keep memory low.
const WRITE_SIZE: usize = 1 << 20;
/// A blob whose digest was wrong is fetched once more: the wire may have been at fault.
const DIGEST_ATTEMPTS: u32 = 2;
/// A layer takes its blob and at least as much again unpacked.
const SPACE_FACTOR: u64 = 2;

/// What all pulls share.
#[derive(Debug)]
pub(super) struct Puller {
    pub(super) config: ImagesConfig,
    pub(super) store: Store,
    pub(super) registries: Registries,
    pub(super) collector: Collector,
    pub(super) downloads: Arc<Semaphore>,
    /// One download per blob, whichever images need it.
    pub(super) blobs: std::sync::Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
}

/// Where blobs come from.
#[derive(Debug, Clone)]
enum Source {
    Registry(Repository),
    Files(Arc<Files>),
}

enum Stream {
    Http(Download),
    File(FileBlob),
}

impl Stream {
    async fn chunk(&mut self) -> Result<Option<Bytes>, Trouble> {
        match self {
            Self::Http(download) => download.chunk().await,
            Self::File(file) => file.chunk().await,
        }
    }
}

type Reporter = watch::Sender<Flight>;

impl Puller {
    /// Brings an image into containerd, or finds that it is there.
    pub(super) async fn pull(
        self: &Arc<Self>,
        reference: &Reference,
        report: &Reporter,
    ) -> Result<PulledImage, Trouble> {
        let name = reference.to_string();
        if let Reference::Registry { .. } = reference
            && let Some(image) = self.present(&name, None).await?
        {
            return Ok(image);
        }
        let (source, manifest) = match self.resolve(reference).await {
            Ok(found) => found,
            // The file is gone; the image that was made from it need not be.
            Err(trouble @ (Trouble::Unknown(_) | Trouble::Store(_))) => {
                return match reference {
                    Reference::Registry { .. } => Err(trouble),
                    Reference::Layout { .. } | Reference::Tarball { .. } => {
                        self.present(&name, None).await?.ok_or(trouble)
                    }
                };
            }
            Err(trouble) => return Err(trouble),
        };
        if let Some(image) = self.present(&name, Some(&manifest.digest)).await? {
            return Ok(image);
        }
        let gate = self.collector.gate.lock().await;
        let _pulling = self.collector.pulling(&name);
        let leased = self.store.leased(&name).await?;
        drop(gate);
        let result = self.fetch(&name, &source, &manifest, &leased, report).await;
        // What an attempt has fetched is kept for the next one, unless there is nothing to hope for.
        let is_over = match &result {
            Ok(_) => true,
            Err(trouble) => trouble.clone().of(&name).fault() == Fault::Image,
        };
        // What was fetched of an image that cannot be used goes before this returns.
        if is_over && let Err(error) = leased.end_lease(result.is_err()).await {
            warn!(error = %error, "a pull's lease stays until it expires");
        }
        result
    }

    /// The image as containerd has it, complete; None when anything of it is missing.
    async fn present(&self, name: &str, digest: Option<&str>) -> Result<Option<PulledImage>, Trouble> {
        let Some(target) = self.store.image(name).await? else {
            return Ok(None);
        };
        if digest.is_some_and(|digest| digest != target.digest) {
            return Ok(None);
        }
        let Some(bytes) = self.store.document(&target.digest).await? else {
            return Ok(None);
        };
        // What cannot be read is pulled again.
        let Ok(Document::Manifest(manifest)) = manifest::document(bytes, &target.media_type) else {
            return Ok(None);
        };
        let Some(bytes) = self.store.document(&manifest.config.digest).await? else {
            return Ok(None);
        };
        let Ok(config) = manifest::config(&bytes, manifest.layers.len()) else {
            return Ok(None);
        };
        let chain_id = manifest::chain_ids(&config.diff_ids).pop().unwrap_or_default();
        if !chain_id.is_empty() && !self.store.has_snapshot(&chain_id).await? {
            return Ok(None);
        }
        self.finished(name, &manifest.digest, chain_id, config)
            .await
            .map(Some)
    }

    /// From a reference to the manifest for this platform.
    async fn resolve(&self, reference: &Reference) -> Result<(Source, Manifest), Trouble> {
        let (source, document) = match reference {
            Reference::Registry {
                registry,
                repository,
                selector,
            } => {
                let repository = Repository {
                    registry: registry.clone(),
                    name: repository.clone(),
                };
                let document = self.document_from_registry(&repository, selector).await?;
                (Source::Registry(repository), document)
            }
            Reference::Layout { .. } | Reference::Tarball { .. } => {
                let files = open_files(reference.clone()).await?;
                let root = files.root().clone();
                let source = Source::Files(Arc::new(files));
                let document = self.document_from_files(&source, &root).await?;
                (source, document)
            }
        };
        let descriptor = match document {
            Document::Manifest(manifest) => return Ok((source, manifest)),
            Document::Index(descriptor) => descriptor,
        };
        let document = match &source {
            Source::Registry(repository) => {
                let selector = Selector::Digest(descriptor.digest.clone());
                self.document_from_registry(repository, &selector).await?
            }
            Source::Files(_) => self.document_from_files(&source, &descriptor).await?,
        };
        match document {
            Document::Manifest(manifest) => Ok((source, manifest)),
            Document::Index(_) => Err(Trouble::Unusable("its index names another index".into())),
        }
    }

    async fn document_from_files(
        &self,
        source: &Source,
        descriptor: &Descriptor,
    ) -> Result<Document, Trouble> {
        let bytes = self.fetch_document(source, descriptor).await?;
        manifest::document(bytes, &descriptor.media_type).map_err(Trouble::Unusable)
    }

    /// A manifest or an index. What a mirror gives that is neither is asked of the registry.
    async fn document_from_registry(
        &self,
        repository: &Repository,
        selector: &Selector,
    ) -> Result<Document, Trouble> {
        let mut backoff = Backoff::new(&self.config);
        let mut route = self.registries.route(repository);
        loop {
            let trouble = match self.registries.manifest(repository, selector, route).await {
                Ok(raw) => {
                    let digest = manifest::digest_of(&raw.bytes);
                    match selector {
                        Selector::Digest(wanted) if *wanted != digest => {
                            Trouble::passing(format!("manifest {wanted} came with the digest {digest}"))
                        }
                        Selector::Digest(_) | Selector::Tag(_) => {
                            match manifest::document(raw.bytes, &raw.media_type) {
                                Ok(document) => return Ok(document),
                                Err(message) => Trouble::Unusable(message),
                            }
                        }
                    }
                }
                Err(trouble) => trouble,
            };
            backoff.pause(route.blame(trouble)).await?;
            route = match route {
                Route::Mirrors => Route::Direct,
                Route::Direct => self.registries.route(repository),
            };
        }
    }

    /// A small blob, in memory, checked.
    async fn fetch_document(&self, source: &Source, descriptor: &Descriptor) -> Result<Vec<u8>, Trouble> {
        if descriptor.size > DOCUMENT_SIZE_MAX {
            return Err(Trouble::Unusable(format!(
                "its document {} has {} bytes, at most {DOCUMENT_SIZE_MAX} are read",
                descriptor.digest, descriptor.size
            )));
        }
        if let Source::Files(files) = source
            && let Some(made) = files.made(&descriptor.digest)
        {
            return Ok(made.to_vec());
        }
        let mut backoff = Backoff::new(&self.config);
        let mut route = self.first_route(source);
        loop {
            let trouble = match self.try_document(source, descriptor, route).await {
                Ok(bytes) => {
                    let digest = manifest::digest_of(&bytes);
                    if digest == descriptor.digest {
                        return Ok(bytes);
                    }
                    if let Source::Files(_) = source {
                        return Err(wrong_digest(&descriptor.digest, &digest));
                    }
                    Trouble::passing(format!("{} came with the digest {digest}", descriptor.digest))
                }
                Err(trouble) => trouble,
            };
            backoff.pause(route.blame(trouble)).await?;
            route = self.next_route(source, route);
        }
    }

    fn first_route(&self, source: &Source) -> Route {
        match source {
            Source::Registry(repository) => self.registries.route(repository),
            Source::Files(_) => Route::Direct,
        }
    }

    /// The way to try after this one.
    fn next_route(&self, source: &Source, route: Route) -> Route {
        match route {
            Route::Mirrors => Route::Direct,
            Route::Direct => self.first_route(source),
        }
    }

    async fn try_document(
        &self,
        source: &Source,
        descriptor: &Descriptor,
        route: Route,
    ) -> Result<Vec<u8>, Trouble> {
        let mut stream = self.open(source, &descriptor.digest, 0, route).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.chunk().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > descriptor.size {
                return Err(Trouble::Unusable(format!(
                    "{} is longer than announced",
                    descriptor.digest
                )));
            }
        }
        Ok(bytes)
    }

    async fn open(
        &self,
        source: &Source,
        digest: &str,
        offset: u64,
        route: Route,
    ) -> Result<Stream, Trouble> {
        match source {
            Source::Registry(repository) => {
                let download = self.registries.blob(repository, digest, offset, route).await;
                match download {
                    // The manifest is there, so the image is: its registry lost a part.
                    Err(Trouble::Unknown(message)) => Err(Trouble::Registry(format!(
                        "it lacks the blob {digest}: {message}"
                    ))),
                    other => other.map(Stream::Http),
                }
            }
            Source::Files(files) => files.blob(digest, offset).await.map(Stream::File),
        }
    }

    /// Content, snapshots and record, under a lease.
    async fn fetch(
        self: &Arc<Self>,
        name: &str,
        source: &Source,
        manifest: &Manifest,
        store: &Store,
        report: &Reporter,
    ) -> Result<PulledImage, Trouble> {
        let config_bytes = self.fetch_document(source, &manifest.config).await?;
        let config = manifest::config(&config_bytes, manifest.layers.len()).map_err(Trouble::Unusable)?;
        let chain = manifest::chain_ids(&config.diff_ids);
        let unpacked = unpacked_len(store, &chain).await?;
        let needed: u64 = manifest.layers[unpacked..].iter().map(|layer| layer.size).sum();
        report.send_modify(|flight| flight.progress.bytes_total = needed);
        self.check_space(needed).await?;
        info!(
            image = name,
            size_bytes = needed,
            layers = manifest.layers.len() - unpacked,
            "pulling"
        );
        self.fetch_layers(source, manifest, &config, &chain, unpacked, store, report)
            .await?;

        let chain_id = chain.last().cloned().unwrap_or_default();
        let snapshotter = store_label(store);
        let config_labels = HashMap::from([(snapshotter, chain_id.clone())]);
        self.keep_document(store, &manifest.config, &config_bytes, config_labels)
            .await?;
        let target = Descriptor::new(
            &manifest.media_type,
            manifest.digest.clone(),
            manifest.bytes.len() as u64,
        );
        self.keep_document(store, &target, &manifest.bytes, manifest_labels(manifest))
            .await?;
        store.record_image(name, &target).await?;
        self.finished(name, &manifest.digest, chain_id, config).await
    }

    /// Downloads run ahead while layers are unpacked in order.
    #[expect(
        clippy::too_many_arguments,
        reason = "one step of fetch, split off for its length"
    )]
    async fn fetch_layers(
        self: &Arc<Self>,
        source: &Source,
        manifest: &Manifest,
        config: &Config,
        chain: &[String],
        unpacked: usize,
        store: &Store,
        report: &Reporter,
    ) -> Result<(), Trouble> {
        let mut downloads = JoinSet::new();
        for (index, layer) in manifest.layers.iter().enumerate().skip(unpacked) {
            let (puller, source, store) = (Arc::clone(self), source.clone(), store.clone());
            let (layer, diff_id, report) = (layer.clone(), config.diff_ids[index].clone(), report.clone());
            downloads.spawn(async move {
                let result = puller
                    .fetch_blob(&source, &layer, &diff_id, &store, &report)
                    .await;
                (index, result)
            });
        }
        let mut fetched: Vec<Option<Contents>> = vec![None; manifest.layers.len()];
        for (index, layer) in manifest.layers.iter().enumerate().skip(unpacked) {
            let contents = loop {
                if let Some(contents) = fetched[index] {
                    break contents;
                }
                let (finished, result) = downloads
                    .join_next()
                    .await
                    .expect("every layer that is not there has its download")
                    .map_err(|error| Trouble::Store(format!("a download ended abnormally: {error}")))?;
                fetched[finished] = Some(result?);
            };
            self.check_unpacked(contents).await?;
            let parent = index.checked_sub(1).map_or("", |parent| chain[parent].as_str());
            let result = store
                .unpack(layer, &config.diff_ids[index], parent, &chain[index])
                .await;
            if let Err(trouble) = result {
                // A blob that a power cut left short is dropped, so that the next attempt fetches it.
                store.delete_content(&layer.digest).await.ok();
                return Err(trouble);
            }
        }
        Ok(())
    }

    /// Makes room where there is too little. Without containerd's word on where it unpacks, nothing is known and all is tried.
    async fn check_space(&self, needed: u64) -> Result<(), Trouble> {
        self.make_room(needed.saturating_mul(SPACE_FACTOR)).await
    }

    async fn make_room(&self, needed_bytes: u64) -> Result<(), Trouble> {
        let Some((free_bytes, _)) = self.collector.space().await else {
            return Ok(());
        };
        if needed_bytes <= free_bytes {
            return Ok(());
        }
        self.collector.collect(needed_bytes - free_bytes).await?;
        match self.collector.space().await {
            Some((free_bytes, _)) if needed_bytes > free_bytes => Err(Trouble::NoSpace {
                needed_bytes,
                free_bytes,
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether a layer fits as it is unpacked, files and inodes; room is made where it does not.
    async fn check_unpacked(&self, contents: Contents) -> Result<(), Trouble> {
        if let Some(free) = self.collector.free_inodes().await
            && contents.entries > free
        {
            return Err(Trouble::Store(format!(
                "a layer of it has {} files, the disk has room for {free}",
                contents.entries
            )));
        }
        self.make_room(contents.disk_bytes).await
    }

    /// One layer into the content store, and a look into it. Downloads of one blob follow each other; the second finds it there.
    async fn fetch_blob(
        &self,
        source: &Source,
        blob: &Descriptor,
        diff_id: &str,
        store: &Store,
        report: &Reporter,
    ) -> Result<Contents, Trouble> {
        let _only_one = self.lock_blob(&blob.digest).await;
        let _slot = Arc::clone(&self.downloads)
            .acquire_owned()
            .await
            .map_err(|_| Trouble::Store("the node is ending".into()))?;
        let mut counted = 0;
        let mut wrong_digests = 0;
        loop {
            let labels = HashMap::from([("containerd.io/uncompressed".to_owned(), diff_id.to_owned())]);
            let mut on_bytes = |bytes: u64| count(report, &mut counted, bytes);
            let route = if wrong_digests == 0 {
                self.first_route(source)
            } else {
                Route::Direct
            };
            let result = self
                .try_blob((source, route), blob, labels, store, &mut on_bytes)
                .await;
            match result {
                Ok(()) => {
                    count(report, &mut counted, blob.size);
                    return inspect(store, blob).await;
                }
                Err(BlobTrouble::WrongDigest(message)) => {
                    store.abort(blob).await.ok();
                    wrong_digests += 1;
                    if wrong_digests >= DIGEST_ATTEMPTS {
                        return Err(Trouble::Unusable(message));
                    }
                    warn!(
                        digest = blob.digest,
                        "a blob came with the wrong digest, fetching it once more"
                    );
                }
                Err(BlobTrouble::Other(trouble)) => return Err(trouble),
            }
        }
    }

    async fn try_blob(
        &self,
        (source, mut route): (&Source, Route),
        blob: &Descriptor,
        labels: HashMap<String, String>,
        store: &Store,
        on_bytes: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), BlobTrouble> {
        let Some(mut writer) = self.open_writer(blob, labels, store).await? else {
            return Ok(());
        };
        let mut backoff = Backoff::new(&self.config);
        while writer.offset() < blob.size {
            let before = writer.offset();
            on_bytes(before);
            let blamed = route;
            let result = self.copy(source, blob, &mut writer, route, on_bytes).await;
            if writer.offset() > before {
                backoff.reset();
            } else {
                route = self.next_route(source, route);
            }
            if let Err(trouble) = result {
                backoff.pause(blamed.blame(trouble)).await?;
            }
        }
        writer.commit().await.map_err(|error| match error {
            RuntimeError::WrongState { message, .. } => BlobTrouble::WrongDigest(message),
            RuntimeError::Failed { message, .. } if message.contains("digest") => {
                BlobTrouble::WrongDigest(message)
            }
            other => BlobTrouble::Other(other.into()),
        })
    }

    /// A writer; waits while another process, or a connection of ours that just broke, holds the place.
    async fn open_writer(
        &self,
        blob: &Descriptor,
        labels: HashMap<String, String>,
        store: &Store,
    ) -> Result<Option<super::store::Writer>, BlobTrouble> {
        let mut backoff = Backoff::new(&self.config);
        loop {
            match store.writer(blob, labels.clone()).await {
                Ok(writer) => return Ok(writer),
                Err(error @ RuntimeError::Unreachable { .. }) => {
                    backoff.pause(Trouble::passing(error.to_string())).await?;
                }
                Err(error) => return Err(BlobTrouble::Other(error.into())),
            }
        }
    }

    /// Copies from where the writer is to the end, or to the first fault.
    async fn copy(
        &self,
        source: &Source,
        blob: &Descriptor,
        writer: &mut super::store::Writer,
        route: Route,
        on_bytes: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), Trouble> {
        let mut stream = self.open(source, &blob.digest, writer.offset(), route).await?;
        let mut pending = BytesMut::new();
        loop {
            let chunk = stream.chunk().await;
            if let (Err(trouble), Stream::Http(download)) = (&chunk, &stream) {
                self.registries.rest(download.host(), trouble);
            }
            if let Ok(Some(chunk)) = &chunk {
                pending.extend_from_slice(chunk);
                if writer.offset() + pending.len() as u64 > blob.size {
                    return Err(Trouble::Unusable(format!(
                        "its blob {} is longer than announced",
                        blob.digest
                    )));
                }
            }
            let is_last = !matches!(&chunk, Ok(Some(_)));
            while pending.len() >= WRITE_SIZE || (is_last && !pending.is_empty()) {
                let part = pending.split_to(pending.len().min(WRITE_SIZE));
                writer.write(part.freeze()).await?;
                on_bytes(writer.offset());
            }
            match chunk {
                Ok(Some(_)) => {}
                Ok(None) if writer.offset() < blob.size => {
                    let end = format!(
                        "{} ended after {} of {} bytes",
                        blob.digest,
                        writer.offset(),
                        blob.size
                    );
                    return Err(match source {
                        Source::Registry(_) => Trouble::passing(end),
                        Source::Files(_) => Trouble::Unusable(end),
                    });
                }
                Ok(None) => return Ok(()),
                Err(trouble) => return Err(trouble),
            }
        }
    }

    async fn keep_document(
        &self,
        store: &Store,
        descriptor: &Descriptor,
        bytes: &[u8],
        labels: HashMap<String, String>,
    ) -> Result<(), Trouble> {
        let _only_one = self.lock_blob(&descriptor.digest).await;
        let Some(mut writer) = store.writer(descriptor, labels.clone()).await? else {
            return Ok(store.label_content(&descriptor.digest, labels).await?);
        };
        let have = usize::try_from(writer.offset())
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        for part in bytes[have..].chunks(WRITE_SIZE) {
            writer.write(Bytes::copy_from_slice(part)).await?;
        }
        Ok(writer.commit().await?)
    }

    /// The result, its user looked up.
    async fn finished(
        &self,
        name: &str,
        digest: &str,
        chain_id: String,
        config: Config,
    ) -> Result<PulledImage, Trouble> {
        let layers = if chain_id.is_empty() {
            Vec::new()
        } else {
            self.store.layer_directories(&chain_id).await?
        };
        let user = config.image.user.clone();
        let resolved = tokio::task::spawn_blocking(move || {
            let passwd = user::read_in_layers(&layers, "etc/passwd");
            let group = user::read_in_layers(&layers, "etc/group");
            user::resolve(&user, &passwd, &group)
        });
        let user = resolved
            .await
            .map_err(|error| Trouble::Store(format!("reading its users ended abnormally: {error}")))?
            .map_err(Trouble::Unusable)?;
        Ok(PulledImage {
            reference: name.to_owned(),
            digest: digest.to_owned(),
            chain_id,
            config: config.image,
            user,
        })
    }

    async fn lock_blob(&self, digest: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut blobs = self
                .blobs
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            // Locks that nobody holds or waits for are dropped here, so the map stays as small as the pulls under way.
            blobs.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(blobs.entry(digest.to_owned()).or_default())
        };
        lock.lock_owned().await
    }
}

enum BlobTrouble {
    WrongDigest(String),
    Other(Trouble),
}

impl From<Trouble> for BlobTrouble {
    fn from(trouble: Trouble) -> Self {
        Self::Other(trouble)
    }
}

/// How many layers from the bottom are unpacked, and stay so under the lease.
async fn unpacked_len(store: &Store, chain: &[String]) -> Result<usize, RuntimeError> {
    for (index, chain_id) in chain.iter().enumerate().rev() {
        if store.hold_snapshot(chain_id).await? {
            return Ok(index + 1);
        }
    }
    Ok(0)
}

/// Adds to the shared progress what this blob has now beyond what was counted for it.
fn count(report: &Reporter, counted: &mut u64, have: u64) {
    if have > *counted {
        let more = have - *counted;
        *counted = have;
        report.send_modify(|flight| flight.progress.bytes_done += more);
    }
}

async fn open_files(reference: Reference) -> Result<Files, Trouble> {
    let opened = tokio::task::spawn_blocking(move || match &reference {
        Reference::Layout { path, tag } => Files::layout(path, tag.as_deref()),
        Reference::Tarball { path } => Files::tarball(path),
        Reference::Registry { .. } => Err(Trouble::Store("a registry is no file".into())),
    });
    opened
        .await
        .map_err(|error| Trouble::Store(format!("reading the image ended abnormally: {error}")))?
}

fn wrong_digest(wanted: &str, found: &str) -> Trouble {
    Trouble::Unusable(format!("the blob {wanted} has the digest {found}"))
}

fn store_label(store: &Store) -> String {
    format!("containerd.io/gc.ref.snapshot.{}", store.snapshotter())
}

fn manifest_labels(manifest: &Manifest) -> HashMap<String, String> {
    let config = (
        "containerd.io/gc.ref.content.config".to_owned(),
        manifest.config.digest.clone(),
    );
    manifest
        .layers
        .iter()
        .enumerate()
        .map(|(index, layer)| {
            (
                format!("containerd.io/gc.ref.content.l.{index}"),
                layer.digest.clone(),
            )
        })
        .chain([config])
        .collect()
}
