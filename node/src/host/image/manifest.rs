//! Manifests, indexes and configs: bytes of strangers, read with bounds (P).

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::ImageConfig;
use super::reference::is_digest;

/// Larger documents are refused before they are read.
pub(super) const DOCUMENT_SIZE_MAX: u64 = 4 << 20;
const LAYERS_MAX: usize = 512;
/// No blob is larger: with [`LAYERS_MAX`] the sum of all stays far below what a number holds.
const BLOB_SIZE_MAX: u64 = 1 << 40;

/// What is asked of a registry.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";

const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFEST_TYPES: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const CONFIG_TYPES: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
const LAYER_TYPES: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// One blob: what it is, how it is named, how long it is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

impl Descriptor {
    pub(super) fn new(media_type: &str, digest: String, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            platform: None,
            annotations: None,
        }
    }

    /// The tag that an OCI layout gives it.
    pub(super) fn tag(&self) -> Option<&str> {
        let annotations = self.annotations.as_ref()?;
        annotations
            .get("org.opencontainers.image.ref.name")
            .map(String::as_str)
    }
}

/// The manifest of one image for one platform.
#[derive(Debug, Clone)]
pub(super) struct Manifest {
    pub(super) digest: String,
    pub(super) media_type: String,
    pub(super) bytes: Vec<u8>,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// What a document turned out to be.
#[derive(Debug)]
pub(super) enum Document {
    Manifest(Manifest),
    /// The descriptor of this platform's manifest.
    Index(Descriptor),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

/// Reads a manifest or picks this platform's from an index. The error is for the user.
pub(super) fn document(bytes: Vec<u8>, declared_type: &str) -> Result<Document, String> {
    let raw: RawDocument =
        serde_json::from_slice(&bytes).map_err(|error| format!("its manifest cannot be read: {error}"))?;
    if raw.schema_version != 2 {
        return Err(format!(
            "its manifest has schema version {}, only 2 is known",
            raw.schema_version
        ));
    }
    let media_type = raw.media_type.unwrap_or_else(|| declared_type.to_owned());
    if let Some(manifests) = raw.manifests {
        check_type("index", &media_type, &INDEX_TYPES)?;
        return pick(manifests).map(Document::Index);
    }
    let (Some(config), Some(layers)) = (raw.config, raw.layers) else {
        return Err("its manifest names neither layers nor other manifests".into());
    };
    check_type("manifest", &media_type, &MANIFEST_TYPES)?;
    check_type("config", &config.media_type, &CONFIG_TYPES)?;
    if layers.len() > LAYERS_MAX {
        return Err(format!(
            "it has {} layers, at most {LAYERS_MAX} are taken",
            layers.len()
        ));
    }
    for layer in &layers {
        check_type("layer", &layer.media_type, &LAYER_TYPES)?;
    }
    for descriptor in layers.iter().chain([&config]) {
        if !is_digest(&descriptor.digest) {
            return Err(format!(
                "its manifest holds the malformed digest {:?}",
                descriptor.digest
            ));
        }
        if descriptor.size > BLOB_SIZE_MAX {
            return Err(format!(
                "its manifest says that {} has {} bytes, at most {BLOB_SIZE_MAX} are taken",
                descriptor.digest, descriptor.size
            ));
        }
    }
    Ok(Document::Manifest(Manifest {
        digest: digest_of(&bytes),
        media_type: if media_type.is_empty() {
            MANIFEST_TYPES[0].into()
        } else {
            media_type
        },
        bytes,
        config,
        layers,
    }))
}

fn check_type(what: &str, media_type: &str, known: &[&str]) -> Result<(), String> {
    // A missing type is tolerated where the place of the document says what it must be.
    let place_decides = what != "layer" && media_type.is_empty();
    if place_decides || known.contains(&media_type) {
        return Ok(());
    }
    Err(format!("its {what} has the unknown media type {media_type:?}"))
}

fn pick(manifests: Vec<Descriptor>) -> Result<Descriptor, String> {
    let architecture = architecture();
    let ours = manifests.iter().find(|manifest| {
        manifest
            .platform
            .as_ref()
            .is_some_and(|platform| platform.os == "linux" && platform.architecture == architecture)
    });
    let picked = match (ours, manifests.as_slice()) {
        (Some(ours), _) => ours.clone(),
        // A single one that says nothing of its platform, as build tools for one platform write it.
        (None, [single]) if single.platform.is_none() => single.clone(),
        (None, _) => {
            let has: Vec<String> = manifests
                .iter()
                .filter_map(|manifest| manifest.platform.as_ref())
                .filter(|platform| platform.os != "unknown")
                .map(|platform| format!("{}/{}", platform.os, platform.architecture))
                .collect();
            return Err(format!(
                "it is not made for linux/{architecture}, only for [{}]",
                has.join(", ")
            ));
        }
    };
    if !is_digest(&picked.digest) {
        return Err(format!(
            "its index holds the malformed digest {:?}",
            picked.digest
        ));
    }
    Ok(picked)
}

/// This machine's processor in the words of image indexes.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What is needed of an image's config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) image: ImageConfig,
    pub(super) diff_ids: Vec<String>,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    config: Option<RawProcess>,
    rootfs: RawRootfs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawProcess {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

/// Reads an image's config. The error is for the user.
pub(super) fn config(bytes: &[u8], layers_len: usize) -> Result<Config, String> {
    let raw: RawConfig =
        serde_json::from_slice(bytes).map_err(|error| format!("its config cannot be read: {error}"))?;
    let platform_ok = matches!(raw.os.as_str(), "" | "linux")
        && (raw.architecture.is_empty() || raw.architecture == architecture());
    if !platform_ok {
        return Err(format!(
            "it is made for {}/{}, this machine is linux/{}",
            raw.os,
            raw.architecture,
            architecture()
        ));
    }
    let diff_ids = raw.rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() != layers_len {
        return Err(format!(
            "its config names {} layers, its manifest {layers_len}",
            diff_ids.len()
        ));
    }
    if let Some(bad) = diff_ids.iter().find(|id| !is_digest(id)) {
        return Err(format!("its config holds the malformed digest {bad:?}"));
    }
    let process = raw.config.unwrap_or_default();
    Ok(Config {
        image: ImageConfig {
            entrypoint: process.entrypoint.unwrap_or_default(),
            cmd: process.cmd.unwrap_or_default(),
            env: process.env.unwrap_or_default(),
            working_dir: process.working_dir.unwrap_or_default(),
            user: process.user.unwrap_or_default(),
            stop_signal: process.stop_signal.unwrap_or_default(),
        },
        diff_ids,
    })
}

/// The names under which the layers are unpacked: each covers all below it.
pub(super) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(parent) => digest_of(format!("{parent} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

/// `sha256:..` of some bytes.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    render(&Sha256::digest(bytes))
}

pub(super) fn render(hash: &[u8]) -> String {
    use std::fmt::Write as _;
    hash.iter().fold(String::from("sha256:"), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn digest(digit: char) -> String {
        format!("sha256:{}", digit.to_string().repeat(64))
    }

    #[test]
    fn picks_this_platform_from_an_index() {
        let entry = |digit: char, os: &str, architecture: &str| {
            json!({"mediaType": MANIFEST_TYPES[0], "digest": digest(digit), "size": 1,
                   "platform": {"os": os, "architecture": architecture}})
        };
        let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPES[0], "manifests": [
            entry('a', "unknown", "unknown"), entry('b', "linux", "s390x"), entry('c', "linux", architecture()),
        ]});
        let Ok(Document::Index(picked)) = document(index.to_string().into(), "") else {
            panic!("an index");
        };
        assert_eq!(picked.digest, digest('c'));
        let other = json!({"schemaVersion": 2, "manifests": [entry('b', "linux", "s390x")]});
        let error = document(other.to_string().into(), INDEX_TYPES[1]).unwrap_err();
        assert!(error.contains("only for [linux/s390x]"), "{error}");
    }

    #[test]
    fn refuses_what_is_not_known() {
        let manifest = |config_type: &str, layer_type: &str, digest: &str| {
            json!({"schemaVersion": 2, "mediaType": MANIFEST_TYPES[0],
                   "config": {"mediaType": config_type, "digest": digest, "size": 2},
                   "layers": [{"mediaType": layer_type, "digest": digest, "size": 2}]})
            .to_string()
            .into_bytes()
        };
        let good = digest('a');
        assert!(document(manifest(CONFIG_TYPES[0], LAYER_TYPES[2], &good), "").is_ok());
        assert!(document(manifest("application/wasm", LAYER_TYPES[2], &good), "").is_err());
        assert!(document(manifest(CONFIG_TYPES[0], "text/plain", &good), "").is_err());
        assert!(document(manifest(CONFIG_TYPES[0], LAYER_TYPES[0], "sha256:../../x"), "").is_err());
        assert!(document(b"{\"schemaVersion\": 1}".to_vec(), "").is_err());
        assert!(document(b"<html>".to_vec(), "").is_err());
        let text = String::from_utf8(manifest(CONFIG_TYPES[0], LAYER_TYPES[2], &good)).unwrap();
        for size in ["18446744073709551615", "-1", "1e3", "\"2\""] {
            let absurd = text.replace("\"size\":2", &format!("\"size\":{size}"));
            assert_ne!(absurd, text);
            assert!(document(absurd.into_bytes(), "").is_err(), "{size}");
        }
    }

    #[test]
    fn chains_layers_as_snapshotters_do() {
        let ids = [digest('1'), digest('2')];
        let chain = chain_ids(&ids);
        assert_eq!(chain[0], ids[0]);
        assert_eq!(chain[1], digest_of(format!("{} {}", ids[0], ids[1]).as_bytes()));
        assert!(chain_ids(&[]).is_empty());
    }
}
