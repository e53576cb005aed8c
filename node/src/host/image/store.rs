//! containerd's side of a pull: lease, content, snapshots, image records. No retries here; each call has a deadline.

use std::collections::HashMap;
use std::time::Duration;

use berth_api::time::Timestamp;
use bytes::Bytes;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UsageRequest,
    ViewSnapshotRequest,
};
use containerd_client::services::v1::{
    AbortRequest, AddResourceRequest, ApplyRequest, CreateImageRequest, CreateRequest, DeleteContentRequest,
    DeleteImageRequest, DeleteRequest, GetImageRequest, Image, Info, ListImagesRequest,
    ListRequest as ListLeasesRequest, PluginsRequest, ReadContentRequest, Resource, UpdateImageRequest,
    UpdateRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use containerd_client::tonic::Streaming;
use containerd_client::types;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::manifest::{DOCUMENT_SIZE_MAX, Descriptor};
use super::retry::Trouble;
use crate::host::containerd::{Headers, Runtime, RuntimeError, Tolerate as _, timestamp, within};

/// A lease that a killed daemon left ends by itself.
const LEASE_LIFETIME: Duration = Duration::from_secs(6 * 3600);
/// Unpacking: a floor, and the slowest disk that is waited for.
const APPLY_TIMEOUT_MIN: Duration = Duration::from_secs(120);
const APPLY_BYTES_PER_SECOND_MIN: u64 = 1 << 20;
/// When a replica was last seen to need an image, RFC 3339, on its record.
const LABEL_LAST_USED: &str = "berth.dev/last-used";
/// The image that a lease is for.
const LABEL_IMAGE: &str = "berth.dev/image";

/// Removing the files of large layers takes its time.
const DELETE_IMAGE_TIMEOUT: Duration = Duration::from_secs(300);

/// What keeps the parts of one image until its pull has ended.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    pub(super) id: String,
    pub(super) image: String,
    created_at: Timestamp,
}

/// An image as containerd's records have it.
#[derive(Debug, Clone)]
pub(super) struct ImageRecord {
    pub(super) name: String,
    pub(super) target: types::Descriptor,
    /// When a replica was last seen to need it; at the beginning, when it was pulled.
    pub(super) last_used: Timestamp,
}

impl ImageRecord {
    fn read(image: Image) -> Option<Self> {
        let labelled = image
            .labels
            .get(LABEL_LAST_USED)
            .and_then(|text| text.parse().ok());
        let written = image.updated_at.or(image.created_at);
        let written = written.map(|at| timestamp(&at)).unwrap_or_default();
        Some(Self {
            name: image.name,
            target: image.target?,
            last_used: labelled.unwrap_or(written).max(written),
        })
    }
}

/// containerd's stores under one lease, or none.
#[derive(Debug, Clone)]
pub(super) struct Store {
    runtime: Runtime,
    headers: Headers,
    lease: Option<String>,
}

impl Store {
    pub(super) fn new(runtime: Runtime) -> Self {
        let headers = runtime.headers().clone();
        Self {
            runtime,
            headers,
            lease: None,
        }
    }

    fn deadline(&self) -> Duration {
        self.runtime.config().call_timeout
    }

    pub(super) fn snapshotter(&self) -> String {
        self.runtime.config().snapshotter.clone()
    }

    /// The same stores under the lease of one image: what is written is kept until [`Store::end_lease`]. It is the lease of the
    /// attempt before, with what that one has fetched, unless it would soon expire.
    pub(super) async fn leased(&self, image: &str) -> Result<Self, RuntimeError> {
        let id = lease_id(image);
        if !self.create_lease(&id, image).await? {
            let known = self.leases().await?.into_iter().find(|lease| lease.id == id);
            let is_fresh = |lease: Lease| Timestamp::now().since(lease.created_at) < LEASE_LIFETIME / 2;
            if !known.is_some_and(is_fresh) {
                self.delete_lease(&id, false).await?;
                self.create_lease(&id, image).await?;
            }
        }
        let mut leased = self.clone();
        leased.headers.lease = Some(id.parse().expect("our lease ids are ASCII"));
        leased.lease = Some(id);
        Ok(leased)
    }

    /// False when it is there already.
    async fn create_lease(&self, id: &str, image: &str) -> Result<bool, RuntimeError> {
        let expires = Timestamp::now().plus(LEASE_LIFETIME).to_string();
        let create = CreateRequest {
            id: id.into(),
            labels: HashMap::from([
                ("containerd.io/gc.expire".into(), expires),
                (LABEL_IMAGE.into(), image.into()),
            ]),
        };
        let request = self.headers.request(create, Some(self.deadline()));
        let created = within("create lease", id, self.deadline(), async {
            self.runtime.client().leases().create(request).await
        });
        Ok(created.await.or_exists()?.is_some())
    }

    /// The leases of pulls that have not ended.
    pub(super) async fn leases(&self) -> Result<Vec<Lease>, RuntimeError> {
        let request = self
            .headers
            .request(ListLeasesRequest::default(), Some(self.deadline()));
        let answer = within("list leases", "", self.deadline(), async {
            self.runtime.client().leases().list(request).await
        });
        let leases = answer.await?.into_inner().leases;
        let ours = leases.into_iter().filter_map(|mut lease| {
            Some(Lease {
                image: lease.labels.remove(LABEL_IMAGE)?,
                created_at: lease.created_at.map(|at| timestamp(&at)).unwrap_or_default(),
                id: lease.id,
            })
        });
        Ok(ours.collect())
    }

    /// Ends the lease; with `sync` what only that one kept is gone when this returns.
    pub(super) async fn end_lease(&self, sync: bool) -> Result<(), RuntimeError> {
        match &self.lease {
            Some(id) => self.delete_lease(id, sync).await,
            None => Ok(()),
        }
    }

    /// Ends a lease; with `sync` what only that one kept is gone when this returns.
    pub(super) async fn delete_lease(&self, id: &str, sync: bool) -> Result<(), RuntimeError> {
        let delete = DeleteRequest { id: id.into(), sync };
        let deadline = if sync {
            DELETE_IMAGE_TIMEOUT
        } else {
            self.deadline()
        };
        // Not under the lease itself.
        let request = self.runtime.headers().request(delete, Some(deadline));
        within("delete lease", id, deadline, async {
            self.runtime.client().leases().delete(request).await
        })
        .await
        .or_gone()
        .map(|_| ())
    }

    /// The manifest digest of an image record.
    pub(super) async fn image(&self, name: &str) -> Result<Option<types::Descriptor>, RuntimeError> {
        let get = GetImageRequest { name: name.into() };
        let request = self.headers.request(get, Some(self.deadline()));
        let answer = within("get image", name, self.deadline(), async {
            self.runtime.client().images().get(request).await
        });
        let image = answer
            .await
            .or_gone()?
            .and_then(|response| response.into_inner().image);
        Ok(image.and_then(|image| image.target))
    }

    /// Makes or moves an image record: from then on garbage collection keeps the image.
    pub(super) async fn record_image(&self, name: &str, target: &Descriptor) -> Result<(), RuntimeError> {
        let image = Image {
            name: name.into(),
            target: Some(wire(target)),
            ..Default::default()
        };
        let create = CreateImageRequest {
            image: Some(image.clone()),
            source_date_epoch: None,
        };
        let request = self.headers.request(create, Some(self.deadline()));
        let created = within("create image", name, self.deadline(), async {
            self.runtime.client().images().create(request).await
        });
        if created.await.or_exists()?.is_some() {
            return Ok(());
        }
        let update = UpdateImageRequest {
            image: Some(image),
            ..Default::default()
        };
        let request = self.headers.request(update, Some(self.deadline()));
        within("update image", name, self.deadline(), async {
            self.runtime.client().images().update(request).await
        })
        .await
        .map(|_| ())
    }

    /// All image records.
    pub(super) async fn images(&self) -> Result<Vec<ImageRecord>, RuntimeError> {
        let request = self
            .headers
            .request(ListImagesRequest::default(), Some(self.deadline()));
        let answer = within("list images", "", self.deadline(), async {
            self.runtime.client().images().list(request).await
        });
        let images = answer.await?.into_inner().images;
        Ok(images.into_iter().filter_map(ImageRecord::read).collect())
    }

    /// Writes down that an image is in use.
    pub(super) async fn mark_used(&self, name: &str, at: Timestamp) -> Result<(), RuntimeError> {
        let update = UpdateImageRequest {
            image: Some(Image {
                name: name.into(),
                labels: HashMap::from([(LABEL_LAST_USED.to_owned(), at.to_string())]),
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec![format!("labels.{LABEL_LAST_USED}")],
            }),
            ..Default::default()
        };
        let request = self.headers.request(update, Some(self.deadline()));
        within("mark image", name, self.deadline(), async {
            self.runtime.client().images().update(request).await
        })
        .await
        .or_gone()
        .map(|_| ())
    }

    /// Removes an image record and, before it answers, whatever only that one kept.
    pub(super) async fn delete_image(&self, name: &str) -> Result<(), RuntimeError> {
        let delete = DeleteImageRequest {
            name: name.into(),
            sync: true,
            ..Default::default()
        };
        let request = self.headers.request(delete, Some(DELETE_IMAGE_TIMEOUT));
        within("delete image", name, DELETE_IMAGE_TIMEOUT, async {
            self.runtime.client().images().delete(request).await
        })
        .await
        .or_gone()
        .map(|_| ())
    }

    /// Bytes that one unpacked layer takes; none when it is not there.
    pub(super) async fn snapshot_bytes(&self, chain_id: &str) -> Result<Option<u64>, RuntimeError> {
        let usage = UsageRequest {
            snapshotter: self.snapshotter(),
            key: chain_id.into(),
        };
        let request = self.headers.request(usage, Some(self.deadline()));
        let answer = within("usage of snapshot", chain_id, self.deadline(), async {
            self.runtime.client().snapshots().usage(request).await
        });
        let usage = answer.await.or_gone()?;
        Ok(usage.map(|usage| u64::try_from(usage.into_inner().size).unwrap_or(0)))
    }

    /// A document from the content store; None when it is not there.
    pub(super) async fn document(&self, digest: &str) -> Result<Option<Vec<u8>>, RuntimeError> {
        let read = ReadContentRequest {
            digest: digest.into(),
            offset: 0,
            size: 0,
        };
        let request = self.headers.request(read, Some(self.deadline()));
        let read = within("read content", digest, self.deadline(), async {
            let mut stream = self.runtime.client().content().read(request).await?.into_inner();
            let mut bytes = Vec::new();
            while let Some(part) = stream.message().await? {
                bytes.extend_from_slice(&part.data);
                if bytes.len() as u64 > DOCUMENT_SIZE_MAX {
                    break;
                }
            }
            Ok(bytes)
        });
        read.await.or_gone()
    }

    /// Sends a blob's bytes, in order, until its end or until nobody takes them any more.
    pub(super) async fn read(&self, digest: &str, to: mpsc::Sender<Bytes>) -> Result<(), RuntimeError> {
        let read = ReadContentRequest {
            digest: digest.into(),
            offset: 0,
            size: 0,
        };
        // Without a server-side deadline: whoever takes the bytes sets the pace.
        let request = self.headers.request(read, None);
        let opened = within("read content", digest, self.deadline(), async {
            Ok(self.runtime.client().content().read(request).await?.into_inner())
        });
        let mut stream = opened.await?;
        while let Some(part) = within("read content", digest, self.deadline(), stream.message()).await? {
            if to.send(part.data.into()).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Adds labels to a blob that came from elsewhere: what they refer to is kept with it.
    pub(super) async fn label_content(
        &self,
        digest: &str,
        labels: HashMap<String, String>,
    ) -> Result<(), RuntimeError> {
        let paths = labels.keys().map(|name| format!("labels.{name}")).collect();
        let update = UpdateRequest {
            info: Some(Info {
                digest: digest.into(),
                labels,
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        let request = self.headers.request(update, Some(self.deadline()));
        within("label content", digest, self.deadline(), async {
            self.runtime.client().content().update(request).await
        })
        .await
        .map(|_| ())
    }

    pub(super) async fn delete_content(&self, digest: &str) -> Result<(), RuntimeError> {
        let delete = DeleteContentRequest {
            digest: digest.into(),
        };
        let request = self.headers.request(delete, Some(self.deadline()));
        within("delete content", digest, self.deadline(), async {
            self.runtime.client().content().delete(request).await
        })
        .await
        .or_gone()
        .map(|_| ())
    }

    /// Opens a writer for a blob; None when the store has the blob.
    pub(super) async fn writer(
        &self,
        blob: &Descriptor,
        labels: HashMap<String, String>,
    ) -> Result<Option<Writer>, RuntimeError> {
        let (sender, receiver) = mpsc::channel(2);
        let total = i64::try_from(blob.size).unwrap_or(i64::MAX);
        let reference = format!("berth-{}", blob.digest);
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: reference.clone(),
            total,
            expected: blob.digest.clone(),
            ..Default::default()
        };
        sender.try_send(first).expect("the channel is new");
        // Without a server-side deadline: the stream lives as long as the download.
        let request = self.headers.request(ReceiverStream::new(receiver), None);
        let deadline = self.deadline();
        let opened = within("open content", &blob.digest, deadline, async {
            let mut responses = self.runtime.client().content().write(request).await?.into_inner();
            let first = responses.message().await?;
            Ok((responses, first))
        });
        let Some((responses, first)) = opened.await.or_exists()? else {
            return Ok(None);
        };
        let offset = first.map_or(0, |response| u64::try_from(response.offset).unwrap_or(0));
        Ok(Some(Writer {
            sender,
            responses,
            reference,
            digest: blob.digest.clone(),
            labels,
            total: blob.size,
            offset,
            deadline,
        }))
    }

    /// Drops what was written of a blob so far.
    pub(super) async fn abort(&self, blob: &Descriptor) -> Result<(), RuntimeError> {
        let abort = AbortRequest {
            r#ref: format!("berth-{}", blob.digest),
        };
        let request = self.headers.request(abort, Some(self.deadline()));
        within("abort content", &blob.digest, self.deadline(), async {
            self.runtime.client().content().abort(request).await
        })
        .await
        .or_gone()
        .map(|_| ())
    }

    /// Whether a layer is unpacked; if so it stays until the end of the lease, whatever images go meanwhile.
    pub(super) async fn hold_snapshot(&self, chain_id: &str) -> Result<bool, RuntimeError> {
        if !self.has_snapshot(chain_id).await? {
            return Ok(false);
        }
        let Some(lease) = &self.lease else {
            return Ok(true);
        };
        let add = AddResourceRequest {
            id: lease.clone(),
            resource: Some(Resource {
                id: chain_id.into(),
                r#type: format!("snapshots/{}", self.snapshotter()),
            }),
        };
        let request = self.runtime.headers().request(add, Some(self.deadline()));
        within("hold snapshot", chain_id, self.deadline(), async {
            self.runtime.client().leases().add_resource(request).await
        })
        .await?;
        // It may have gone just before.
        self.has_snapshot(chain_id).await
    }

    pub(super) async fn has_snapshot(&self, chain_id: &str) -> Result<bool, RuntimeError> {
        let stat = StatSnapshotRequest {
            snapshotter: self.snapshotter(),
            key: chain_id.into(),
        };
        let request = self.headers.request(stat, Some(self.deadline()));
        let answer = within("stat snapshot", chain_id, self.deadline(), async {
            self.runtime.client().snapshots().stat(request).await
        });
        Ok(answer.await.or_gone()?.is_some())
    }

    /// Unpacks one layer on its parent, checks what came out and names it by its chain id.
    pub(super) async fn unpack(
        &self,
        layer: &Descriptor,
        diff_id: &str,
        parent: &str,
        chain_id: &str,
    ) -> Result<(), Trouble> {
        loop {
            let key = unique("berth-unpack");
            let result = self.unpack_as(&key, layer, diff_id, parent, chain_id).await;
            if !matches!(result, Ok(Unpacked::New)) {
                // An orphan is also taken by garbage collection once the lease is gone.
                self.remove_snapshot(&key).await.ok();
            }
            match result? {
                Unpacked::New => return Ok(()),
                // The other pull's lease holds it, not ours; it may have gone with that one.
                Unpacked::ByAnother if self.hold_snapshot(chain_id).await? => return Ok(()),
                Unpacked::ByAnother => {}
            }
        }
    }

    async fn unpack_as(
        &self,
        key: &str,
        layer: &Descriptor,
        diff_id: &str,
        parent: &str,
        chain_id: &str,
    ) -> Result<Unpacked, Trouble> {
        let prepare = PrepareSnapshotRequest {
            snapshotter: self.snapshotter(),
            key: key.into(),
            parent: parent.into(),
            ..Default::default()
        };
        let request = self.headers.request(prepare, Some(self.deadline()));
        let mounts = within("prepare layer", &layer.digest, self.deadline(), async {
            self.runtime.client().snapshots().prepare(request).await
        })
        .await?
        .into_inner()
        .mounts;
        let deadline = APPLY_TIMEOUT_MIN + Duration::from_secs(layer.size / APPLY_BYTES_PER_SECOND_MIN);
        let apply = ApplyRequest {
            diff: Some(wire(layer)),
            mounts,
            sync_fs: true,
            ..Default::default()
        };
        let request = self.headers.request(apply, Some(deadline));
        let applied = within("unpack layer", &layer.digest, deadline, async {
            self.runtime.client().diff().apply(request).await
        })
        .await
        .map_err(|error| refused_by_apply(layer, error))?
        .into_inner()
        .applied
        .map(|applied| applied.digest)
        .unwrap_or_default();
        if applied != diff_id {
            return Err(Trouble::Unusable(format!(
                "layer {} unpacks to {applied}, its config says {diff_id}",
                layer.digest
            )));
        }
        let commit = CommitSnapshotRequest {
            snapshotter: self.snapshotter(),
            name: chain_id.into(),
            key: key.into(),
            // Kept by the lease, then by the reference that the image's config holds to the topmost one.
            labels: HashMap::new(),
        };
        let request = self.headers.request(commit, Some(self.deadline()));
        let committed = within("commit layer", &layer.digest, self.deadline(), async {
            self.runtime.client().snapshots().commit(request).await
        });
        Ok(match committed.await.or_exists()? {
            Some(_) => Unpacked::New,
            None => Unpacked::ByAnother,
        })
    }

    pub(super) async fn remove_snapshot(&self, key: &str) -> Result<(), RuntimeError> {
        let remove = RemoveSnapshotRequest {
            snapshotter: self.snapshotter(),
            key: key.into(),
        };
        let request = self.headers.request(remove, Some(self.deadline()));
        within("remove snapshot", key, self.deadline(), async {
            self.runtime.client().snapshots().remove(request).await
        })
        .await
        .or_gone()
        .map(|_| ())
    }

    /// The directories of an unpacked image, topmost first: what one would mount, without mounting.
    pub(super) async fn layer_directories(
        &self,
        chain_id: &str,
    ) -> Result<Vec<std::path::PathBuf>, RuntimeError> {
        let key = unique("berth-view");
        let view = ViewSnapshotRequest {
            snapshotter: self.snapshotter(),
            key: key.clone(),
            parent: chain_id.into(),
            ..Default::default()
        };
        let request = self.headers.request(view, Some(self.deadline()));
        let mounts = within("view snapshot", chain_id, self.deadline(), async {
            self.runtime.client().snapshots().view(request).await
        })
        .await?
        .into_inner()
        .mounts;
        self.remove_snapshot(&key).await?;
        Ok(mounts.iter().flat_map(directories_of).collect())
    }

    /// Where the snapshotter keeps its files; None when containerd does not say.
    pub(super) async fn snapshot_root(&self) -> Option<String> {
        let plugins = PluginsRequest {
            filters: vec![format!(
                "type==io.containerd.snapshotter.v1,id=={}",
                self.snapshotter()
            )],
        };
        let request = self.headers.request(plugins, Some(self.deadline()));
        let answer = within("list plugins", "", self.deadline(), async {
            self.runtime.client().introspection().plugins(request).await
        });
        let plugins = answer.await.ok()?.into_inner().plugins;
        plugins
            .into_iter()
            .find_map(|mut plugin| plugin.exports.remove("root"))
    }
}

enum Unpacked {
    New,
    /// Another pull was faster.
    ByAnother,
}

/// An open write of one blob. Dropped, it leaves what was written, and the next writer goes on there.
#[derive(Debug)]
pub(super) struct Writer {
    sender: mpsc::Sender<WriteContentRequest>,
    responses: Streaming<WriteContentResponse>,
    reference: String,
    digest: String,
    labels: HashMap<String, String>,
    total: u64,
    offset: u64,
    deadline: Duration,
}

impl Writer {
    /// How much the store has.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Adds bytes at the end. At most 1 MiB at once.
    pub(super) async fn write(&mut self, data: Bytes) -> Result<(), RuntimeError> {
        let len = data.len() as u64;
        let message = WriteContentRequest {
            action: WriteAction::Write.into(),
            offset: i64::try_from(self.offset).unwrap_or(i64::MAX),
            data: data.into(),
            ..Default::default()
        };
        self.exchange("write content", message).await?;
        self.offset += len;
        Ok(())
    }

    /// Ends the blob; containerd compares the digest. A blob that came from elsewhere meanwhile is success.
    pub(super) async fn commit(mut self) -> Result<(), RuntimeError> {
        let total = i64::try_from(self.total).unwrap_or(i64::MAX);
        let message = WriteContentRequest {
            action: WriteAction::Commit.into(),
            total,
            offset: total,
            expected: self.digest.clone(),
            labels: std::mem::take(&mut self.labels),
            ..Default::default()
        };
        self.exchange("commit content", message)
            .await
            .or_exists()
            .map(|_| ())
    }

    async fn exchange(
        &mut self,
        operation: &'static str,
        mut message: WriteContentRequest,
    ) -> Result<(), RuntimeError> {
        message.r#ref.clone_from(&self.reference);
        // A closed channel shows as the end of the responses, with its reason.
        self.sender.send(message).await.ok();
        let responses = &mut self.responses;
        let answer = within(operation, &self.digest, self.deadline, responses.message());
        match answer.await? {
            Some(_) => Ok(()),
            None => Err(RuntimeError::Unreachable {
                operation,
                object: self.digest.clone(),
                message: "the stream ended".into(),
            }),
        }
    }
}

/// Directories behind one mount of a view: a bind of one layer, or the lower ones of an overlay, topmost first.
fn directories_of(mount: &types::Mount) -> Vec<std::path::PathBuf> {
    if mount.r#type == "overlay" {
        return mount
            .options
            .iter()
            .filter_map(|option| option.strip_prefix("lowerdir="))
            .flat_map(|lower| lower.split(':').map(Into::into))
            .collect();
    }
    vec![mount.source.clone().into()]
}

/// Whose fault it is that a layer cannot be unpacked. What the archive asks for and no disk can give is its own: a whiteout or link
/// in the place of what it has put there itself, a hard link to nothing.
fn refused_by_apply(layer: &Descriptor, error: RuntimeError) -> Trouble {
    const OF_THE_ARCHIVE: [&str; 10] = [
        "file exists",
        "no such file or directory",
        "not a directory",
        "is a directory",
        "directory not empty",
        "file name too long",
        "too many levels of symbolic links",
        "operation not permitted",
        "invalid tar header",
        "unhandled tar header",
    ];
    let RuntimeError::Failed { message, .. } = &error else {
        return error.into();
    };
    if OF_THE_ARCHIVE.iter().any(|text| message.contains(text)) {
        return Trouble::Unusable(format!("layer {} cannot be unpacked: {message}", layer.digest));
    }
    error.into()
}

fn wire(descriptor: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.clone(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        ..Default::default()
    }
}

fn lease_id(image: &str) -> String {
    let hash = Sha256::digest(image);
    let hash = hash.iter().take(16);
    hash.fold("berth-pull-".to_owned(), |id, byte| format!("{id}{byte:02x}"))
}

fn unique(prefix: &str) -> String {
    // Without randomness the time still tells apart what one process does.
    let random = getrandom::u64().unwrap_or_else(|_| Timestamp::now().millis());
    format!("{prefix}-{random:016x}")
}
