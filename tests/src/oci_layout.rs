//! Container images made on the spot: a list of files and a config become an OCI layout or a tarball, no network.
//!
//! Used by tests and by the demo. The result is reproducible: equal input gives equal digests.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// How layers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    #[default]
    None,
    Gzip,
    /// Through the `zstd` program.
    Zstd,
}

/// One entry of a layer.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Without a leading slash, for example `bin/app`.
    pub path: String,
    pub content: Content,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Clone)]
pub enum Content {
    Directory,
    File(Vec<u8>),
    /// Target of a symbolic link.
    Link(String),
}

impl Entry {
    /// A file owned by root.
    #[must_use]
    pub fn file(path: &str, content: impl Into<Vec<u8>>, mode: u32) -> Self {
        Self::new(path, Content::File(content.into()), mode)
    }

    #[must_use]
    pub fn directory(path: &str, mode: u32) -> Self {
        Self::new(path, Content::Directory, mode)
    }

    #[must_use]
    pub fn link(path: &str, target: &str) -> Self {
        Self::new(path, Content::Link(target.into()), 0o777)
    }

    fn new(path: &str, content: Content, mode: u32) -> Self {
        Self {
            path: path.into(),
            content,
            mode,
            uid: 0,
            gid: 0,
        }
    }

    #[must_use]
    pub fn owned_by(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }
}

/// An image to be written. Layers lie on each other in order.
#[derive(Debug, Clone, Default)]
pub struct Image {
    pub layers: Vec<Vec<Entry>>,
    /// Ready-made layers, uncompressed tars, above `layers`.
    pub tars: Vec<Vec<u8>>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub user: String,
    pub working_dir: String,
    pub stop_signal: String,
    pub compression: Compression,
}

/// Where the static busybox of Debian's package `busybox-static` lies.
pub const BUSYBOX: &str = "/bin/busybox";

impl Image {
    /// An image with busybox and the usual links to it, or None where it is not installed or not static.
    #[must_use]
    pub fn busybox() -> Option<Self> {
        let program = fs::read(BUSYBOX).ok()?;
        if !is_static(&program) {
            return None;
        }
        let mut layer = vec![
            Entry::directory("bin", 0o755),
            Entry::directory("etc", 0o755),
            Entry::directory("tmp", 0o1777),
            Entry::directory("root", 0o700),
            Entry::file("bin/busybox", program, 0o755),
            Entry::file(
                "etc/passwd",
                "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
                0o644,
            ),
            Entry::file("etc/group", "root:x:0:\napp:x:1000:\nextra:x:2000:app\n", 0o644),
        ];
        for name in [
            "sh", "cat", "echo", "sleep", "ls", "id", "true", "false", "dd", "env", "hostname", "httpd",
            "nc", "wget", "nslookup", "ping", "ps", "kill", "mkdir", "rm", "touch", "seq", "sync", "df",
            "date", "head", "tail", "grep", "awk", "sed", "mount", "unshare", "ip", "yes", "od", "wc",
            "sort", "stat", "chown",
        ] {
            layer.push(Entry::link(&format!("bin/{name}"), "busybox"));
        }
        Some(Self {
            layers: vec![layer],
            cmd: vec!["/bin/sh".into()],
            ..Self::default()
        })
    }

    /// An image with one static program at `/bin/NAME`, which is its entry point.
    ///
    /// # Errors
    /// When the program cannot be read.
    pub fn program(path: &Path) -> anyhow::Result<Self> {
        let name = path
            .file_name()
            .context("a program has a name")?
            .to_string_lossy()
            .into_owned();
        let program = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Self {
            layers: vec![vec![
                Entry::directory("bin", 0o755),
                Entry::directory("etc", 0o755),
                Entry::directory("tmp", 0o1777),
                Entry::file(&format!("bin/{name}"), program, 0o755),
            ]],
            entrypoint: vec![format!("/bin/{name}")],
            ..Self::default()
        })
    }

    /// Writes an OCI layout with this image under `tag`, beside those that the directory holds already. Returns the
    /// digest of the manifest.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_layout(&self, directory: &Path, tag: &str) -> anyhow::Result<String> {
        fs::create_dir_all(directory.join("blobs/sha256"))?;
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for tar in self.layer_tars()? {
            diff_ids.push(digest(&tar));
            let (suffix, stored) = self.compressed(tar)?;
            let (digest, size) = write_blob(directory, &stored)?;
            layers.push(json!({
                "mediaType": format!("application/vnd.oci.image.layer.v1.tar{suffix}"), "digest": digest, "size": size,
            }));
        }
        let (config_digest, config_size) = write_blob(directory, &self.config(&diff_ids))?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config_size,
            },
            "layers": layers,
        });
        let (digest, size) = write_blob(directory, manifest.to_string().as_bytes())?;
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        add_to_index(directory, tag, &digest, size)?;
        Ok(digest)
    }

    /// Writes a docker-archive, as `docker save` would.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_docker_archive(&self, file: &Path, name: &str) -> anyhow::Result<()> {
        let mut archive = tar::Builder::new(fs::File::create(file)?);
        let mut diff_ids = Vec::new();
        let mut paths = Vec::new();
        for tar in self.layer_tars()? {
            let digest = digest(&tar);
            let path = format!("{}/layer.tar", hex_of(&digest));
            append(&mut archive, &path, &tar)?;
            diff_ids.push(digest);
            paths.push(path);
        }
        let config = self.config(&diff_ids);
        let config_path = format!("{}.json", hex_of(&digest(&config)));
        append(&mut archive, &config_path, &config)?;
        let manifest = json!([{"Config": config_path, "RepoTags": [name], "Layers": paths}]);
        append(&mut archive, "manifest.json", manifest.to_string().as_bytes())?;
        archive.finish()?;
        Ok(())
    }

    /// Writes an OCI archive: the layout in a tar.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_oci_archive(&self, file: &Path, tag: &str) -> anyhow::Result<String> {
        let directory = tempfile::tempdir()?;
        let digest = self.write_layout(directory.path(), tag)?;
        let mut archive = tar::Builder::new(fs::File::create(file)?);
        archive.append_dir_all(".", directory.path())?;
        archive.finish()?;
        Ok(digest)
    }

    fn layer_tars(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut tars = self
            .layers
            .iter()
            .map(|entries| layer_tar(entries))
            .collect::<anyhow::Result<Vec<_>>>()?;
        tars.extend_from_slice(&self.tars);
        Ok(tars)
    }

    fn config(&self, diff_ids: &[String]) -> Vec<u8> {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let mut config = serde_json::Map::new();
        let lists = [
            ("Entrypoint", &self.entrypoint),
            ("Cmd", &self.cmd),
            ("Env", &self.env),
        ];
        for (name, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            config.insert(name.into(), json!(list));
        }
        let texts = [
            ("User", &self.user),
            ("WorkingDir", &self.working_dir),
            ("StopSignal", &self.stop_signal),
        ];
        for (name, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            config.insert(name.into(), json!(text));
        }
        json!({
            "architecture": architecture,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string()
        .into_bytes()
    }

    fn compressed(&self, tar: Vec<u8>) -> anyhow::Result<(&'static str, Vec<u8>)> {
        match self.compression {
            Compression::None => Ok(("", tar)),
            Compression::Gzip => {
                let mut encoder = flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&tar)?;
                Ok(("+gzip", encoder.finish()?))
            }
            Compression::Zstd => Ok(("+zstd", zstd(&tar)?)),
        }
    }
}

/// Whether an ELF program needs no loader: it has no program header of the kind PT_INTERP. Little-endian 64-bit only.
fn is_static(program: &[u8]) -> bool {
    const PT_INTERP: usize = 3;
    let number = |at: usize, len: usize| -> Option<usize> {
        let bytes = program.get(at..at + len)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | usize::from(*byte)),
        )
    };
    let headers = || Some((number(32, 8)?, number(54, 2)?, number(56, 2)?));
    let Some((offset, size, count)) = headers().filter(|_| program.starts_with(b"\x7fELF\x02\x01")) else {
        return false;
    };
    (0..count).all(|index| number(offset + index * size, 4).is_some_and(|kind| kind != PT_INTERP))
}

fn zstd(tar: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut input = tempfile::NamedTempFile::new()?;
    input.write_all(tar)?;
    let output = std::process::Command::new("zstd")
        .args(["--quiet", "--stdout"])
        .arg(input.path())
        .output()
        .context("running zstd")?;
    if !output.status.success() {
        bail!("zstd: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

fn layer_tar(entries: &[Entry]) -> anyhow::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(entry.mode);
        header.set_uid(entry.uid.into());
        header.set_gid(entry.gid.into());
        header.set_mtime(0);
        header.set_size(0);
        match &entry.content {
            Content::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                archive.append_data(&mut header, format!("{}/", entry.path), &[][..])?;
            }
            Content::File(bytes) => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(bytes.len() as u64);
                archive.append_data(&mut header, &entry.path, bytes.as_slice())?;
            }
            Content::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                archive.append_link(&mut header, &entry.path, target)?;
            }
        }
    }
    Ok(archive.into_inner()?)
}

fn append(archive: &mut tar::Builder<fs::File>, path: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, path, bytes)?;
    Ok(())
}

/// `sha256:..` of some bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes)
        .iter()
        .fold(String::from("sha256:"), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a string does not fail");
            text
        })
}

fn hex_of(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

/// Where a layout keeps a blob.
#[must_use]
pub fn blob_path(directory: &Path, digest: &str) -> PathBuf {
    directory.join("blobs/sha256").join(hex_of(digest))
}

fn write_blob(directory: &Path, bytes: &[u8]) -> anyhow::Result<(String, usize)> {
    let digest = digest(bytes);
    fs::write(blob_path(directory, &digest), bytes)?;
    Ok((digest, bytes.len()))
}

fn add_to_index(directory: &Path, tag: &str, digest: &str, size: usize) -> anyhow::Result<()> {
    let path = directory.join("index.json");
    let mut manifests: Vec<Value> = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice::<Value>(&bytes)?["manifests"]
            .as_array()
            .cloned()
            .unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    manifests.retain(|manifest| manifest["annotations"]["org.opencontainers.image.ref.name"] != tag);
    manifests.push(json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
        "annotations": {"org.opencontainers.image.ref.name": tag},
    }));
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
    });
    fs::write(path, index.to_string())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_input_gives_equal_digests_and_tags_are_replaced() {
        let image = Image {
            layers: vec![vec![Entry::file("a", "x", 0o644)]],
            compression: Compression::Gzip,
            ..Image::default()
        };
        let directory = tempfile::tempdir().unwrap();
        let first = image.write_layout(directory.path(), "v1").unwrap();
        let second = image.write_layout(directory.path(), "v1").unwrap();
        assert_eq!(first, second);
        image.write_layout(directory.path(), "v2").unwrap();
        let index: Value =
            serde_json::from_slice(&fs::read(directory.path().join("index.json")).unwrap()).unwrap();
        assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    }
}
