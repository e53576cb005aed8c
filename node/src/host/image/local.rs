//! Images on the machine's own disk: OCI layouts and tarballs, read in place.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::OFlags;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use super::manifest::{DOCUMENT_SIZE_MAX, Descriptor, digest_of, render};
use super::reference::is_digest;
use super::retry::Trouble;

const CHUNK_SIZE: usize = 1 << 20;
/// A tarball with more members is no image.
const MEMBERS_MAX: usize = 100_000;

/// Blobs by digest, wherever they lie, and the manifest to start from.
#[derive(Debug, Clone)]
pub(super) struct Files {
    root: Descriptor,
    blobs: Blobs,
}

#[derive(Debug, Clone)]
enum Blobs {
    Layout(PathBuf),
    Tarball {
        file: PathBuf,
        members: BTreeMap<String, Place>,
        /// Documents that are written nowhere: the manifest of a docker-archive.
        made: BTreeMap<String, Vec<u8>>,
    },
}

#[derive(Debug, Clone, Copy)]
struct Place {
    offset: u64,
    size: u64,
}

/// A blob on its way.
#[derive(Debug)]
pub(super) struct FileBlob {
    reader: tokio::io::Take<tokio::fs::File>,
}

impl Files {
    /// Opens an OCI layout. Blocking, short.
    pub(super) fn layout(path: &Path, tag: Option<&str>) -> Result<Self, Trouble> {
        let index = read_document(&path.join("index.json"))?;
        let root = select(&index, tag)?;
        Ok(Self {
            root,
            blobs: Blobs::Layout(path.to_owned()),
        })
    }

    /// Opens a docker-archive or OCI archive. Blocking; reads the headers of all members.
    pub(super) fn tarball(path: &Path) -> Result<Self, Trouble> {
        let mut file = open_file(path)?;
        let names = members(&mut file, path)?;
        if let Some(place) = names.get("index.json") {
            let root = select(&read_at(&mut file, *place)?, None)?;
            let members = names
                .into_iter()
                .filter_map(|(name, place)| {
                    let hex = name.strip_prefix("blobs/sha256/")?;
                    Some((format!("sha256:{hex}"), place))
                })
                .collect();
            let blobs = Blobs::Tarball {
                file: path.to_owned(),
                members,
                made: BTreeMap::new(),
            };
            return Ok(Self { root, blobs });
        }
        if let Some(place) = names.get("manifest.json") {
            let index = read_at(&mut file, *place)?;
            return docker_archive(path, &mut file, &names, &index);
        }
        Err(Trouble::Unusable(format!(
            "{} is neither an OCI archive nor a docker-archive, or it is compressed",
            path.display()
        )))
    }

    /// The manifest or index to start from.
    pub(super) fn root(&self) -> &Descriptor {
        &self.root
    }

    /// A blob from `offset` on.
    pub(super) async fn blob(&self, digest: &str, offset: u64) -> Result<FileBlob, Trouble> {
        let (path, start, size) = match &self.blobs {
            Blobs::Layout(directory) => {
                let path = directory.join("blobs").join(digest.replacen(':', "/", 1));
                let metadata = fs::metadata(&path).map_err(|error| missing(&path, &error))?;
                if !metadata.is_file() {
                    return Err(no_file(&path));
                }
                (path, 0, metadata.len())
            }
            Blobs::Tarball { file, members, .. } => {
                let place = members
                    .get(digest)
                    .ok_or_else(|| Trouble::Unusable(format!("{} does not hold {digest}", file.display())))?;
                (file.clone(), place.offset, place.size)
            }
        };
        let unreadable = |error: std::io::Error| Trouble::Store(format!("{}: {error}", path.display()));
        let mut file = tokio::fs::File::open(&path).await.map_err(unreadable)?;
        file.seek(SeekFrom::Start(start + offset))
            .await
            .map_err(unreadable)?;
        Ok(FileBlob {
            reader: file.take(size.saturating_sub(offset)),
        })
    }

    /// A document that this module made itself.
    pub(super) fn made(&self, digest: &str) -> Option<&[u8]> {
        match &self.blobs {
            Blobs::Layout(_) => None,
            Blobs::Tarball { made, .. } => made.get(digest).map(Vec::as_slice),
        }
    }
}

impl FileBlob {
    /// The next bytes; None at the end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Trouble> {
        let mut chunk = Vec::with_capacity(CHUNK_SIZE);
        let mut reader = (&mut self.reader).take(CHUNK_SIZE as u64);
        reader
            .read_to_end(&mut chunk)
            .await
            .map_err(|error| Trouble::Store(format!("reading a blob: {error}")))?;
        Ok((!chunk.is_empty()).then(|| chunk.into()))
    }
}

/// The entry of an `index.json` that a tag names, or the only one.
fn select(index: &[u8], tag: Option<&str>) -> Result<Descriptor, Trouble> {
    #[derive(Deserialize)]
    struct Index {
        manifests: Vec<Descriptor>,
    }
    let index: Index = serde_json::from_slice(index)
        .map_err(|error| Trouble::Unusable(format!("its index.json cannot be read: {error}")))?;
    let tags = || {
        let tags: Vec<&str> = index.manifests.iter().filter_map(Descriptor::tag).collect();
        format!(
            "it holds {} images with the tags [{}]",
            index.manifests.len(),
            tags.join(", ")
        )
    };
    match (tag, index.manifests.as_slice()) {
        (None, [single]) => Ok(single),
        (None, _) => Err(Trouble::Unknown(format!("no tag was given, and {}", tags()))),
        (Some(tag), manifests) => manifests
            .iter()
            .find(|manifest| manifest.tag() == Some(tag))
            .ok_or_else(|| Trouble::Unknown(tags())),
    }
    .and_then(|picked| {
        // It becomes the name of a file.
        if is_digest(&picked.digest) {
            return Ok(picked.clone());
        }
        Err(Trouble::Unusable(format!(
            "its index.json holds the malformed digest {:?}",
            picked.digest
        )))
    })
}

/// Where the members of a tar lie. Names without a leading `./`.
fn members(file: &mut fs::File, path: &Path) -> Result<BTreeMap<String, Place>, Trouble> {
    let unreadable =
        |error: std::io::Error| Trouble::Unusable(format!("{} is no tar: {error}", path.display()));
    let mut found: BTreeMap<String, Place> = BTreeMap::new();
    let mut links = Vec::new();
    let mut archive = tar::Archive::new(file);
    for (count, member) in archive.entries_with_seek().map_err(unreadable)?.enumerate() {
        let member = member.map_err(unreadable)?;
        if count >= MEMBERS_MAX {
            return Err(Trouble::Unusable(format!(
                "{} has too many members",
                path.display()
            )));
        }
        let name = member.path().map_err(unreadable)?.to_string_lossy().into_owned();
        let name = name.trim_start_matches("./").to_owned();
        // `docker save` links layers that are equal.
        if let (true, Ok(Some(target))) = (member.header().entry_type().is_symlink(), member.link_name()) {
            let target = target.to_string_lossy();
            let target = target.trim_start_matches("../").to_owned();
            links.push((name, target));
            continue;
        }
        let place = Place {
            offset: member.raw_file_position(),
            size: member.size(),
        };
        found.insert(name, place);
    }
    for (name, target) in links {
        if let Some(place) = found.get(&target).copied() {
            found.insert(name, place);
        }
    }
    Ok(found)
}

/// A docker-archive has no manifest of its own kind: one is made from its list of layers.
fn docker_archive(
    path: &Path,
    file: &mut fs::File,
    names: &BTreeMap<String, Place>,
    index: &[u8],
) -> Result<Files, Trouble> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Saved {
        config: String,
        layers: Vec<String>,
    }
    let mut saved: Vec<Saved> = serde_json::from_slice(index)
        .map_err(|error| Trouble::Unusable(format!("its manifest.json cannot be read: {error}")))?;
    if saved.len() != 1 {
        return Err(Trouble::Unusable(format!(
            "{} holds {} images, it must hold one",
            path.display(),
            saved.len()
        )));
    }
    let Saved { config, layers } = saved.remove(0);
    let place_of = |name: &str| {
        names
            .get(name.trim_start_matches("./"))
            .copied()
            .ok_or_else(|| Trouble::Unusable(format!("{} does not hold {name}", path.display())))
    };
    let mut members = BTreeMap::new();
    let config_place = place_of(&config)?;
    let config_digest = digest_of(&read_at(file, config_place)?);
    members.insert(config_digest.clone(), config_place);
    let mut descriptors = Vec::new();
    for name in &layers {
        let place = place_of(name)?;
        let (digest, media_type) = hash_layer(file, place)?;
        descriptors.push(serde_json::json!({"mediaType": media_type, "digest": digest, "size": place.size}));
        members.insert(digest, place);
    }
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_digest,
            "size": config_place.size,
        },
        "layers": descriptors,
    });
    let manifest = manifest.to_string().into_bytes();
    let root = Descriptor::new(media_type, digest_of(&manifest), manifest.len() as u64);
    let made = BTreeMap::from([(root.digest.clone(), manifest)]);
    let blobs = Blobs::Tarball {
        file: path.to_owned(),
        members,
        made,
    };
    Ok(Files { root, blobs })
}

/// The digest of a layer and what it is, by its first bytes.
fn hash_layer(file: &mut fs::File, place: Place) -> Result<(String, &'static str), Trouble> {
    let unreadable = |error: std::io::Error| Trouble::Store(format!("reading a layer: {error}"));
    file.seek(SeekFrom::Start(place.offset)).map_err(unreadable)?;
    let mut reader = file.take(place.size);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK_SIZE];
    let mut magic = Vec::new();
    loop {
        let count = reader.read(&mut buffer).map_err(unreadable)?;
        if count == 0 {
            break;
        }
        if magic.is_empty() {
            magic = buffer[..count.min(4)].to_vec();
        }
        hash.update(&buffer[..count]);
    }
    let media_type = match magic.as_slice() {
        [0x1f, 0x8b, ..] => "application/vnd.oci.image.layer.v1.tar+gzip",
        [0x28, 0xb5, 0x2f, 0xfd] => "application/vnd.oci.image.layer.v1.tar+zstd",
        _ => "application/vnd.oci.image.layer.v1.tar",
    };
    Ok((render(&hash.finalize()), media_type))
}

fn read_at(file: &mut fs::File, place: Place) -> Result<Vec<u8>, Trouble> {
    let unreadable = |error: std::io::Error| Trouble::Store(format!("reading a document: {error}"));
    if place.size > DOCUMENT_SIZE_MAX {
        return Err(too_large(place.size));
    }
    file.seek(SeekFrom::Start(place.offset)).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(place.size)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    Ok(bytes)
}

fn read_document(path: &Path) -> Result<Vec<u8>, Trouble> {
    let file = open_file(path)?;
    let mut bytes = Vec::new();
    file.take(DOCUMENT_SIZE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Trouble::Store(format!("{}: {error}", path.display())))?;
    if bytes.len() as u64 > DOCUMENT_SIZE_MAX {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

/// Opens a file and nothing else: a pipe would never come to an end, a device may do anything.
fn open_file(path: &Path) -> Result<fs::File, Trouble> {
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(|error| missing(path, &error))?;
    let metadata = file.metadata().map_err(|error| missing(path, &error))?;
    if metadata.is_file() {
        Ok(file)
    } else {
        Err(no_file(path))
    }
}

fn no_file(path: &Path) -> Trouble {
    Trouble::Unusable(format!("{} is no file", path.display()))
}

fn too_large(size: u64) -> Trouble {
    Trouble::Unusable(format!(
        "a document of it has {size} bytes, at most {DOCUMENT_SIZE_MAX} are read"
    ))
}

fn missing(path: &Path, error: &std::io::Error) -> Trouble {
    let message = format!("{}: {error}", path.display());
    match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => Trouble::Unknown(message),
        std::io::ErrorKind::PermissionDenied => Trouble::Denied(message),
        _ => Trouble::Store(message),
    }
}
