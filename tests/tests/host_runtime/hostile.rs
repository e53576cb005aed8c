//! Images made to do harm: each is refused with its reason, as the image's fault, nothing of it stays on the disk, what runs runs
//! on, and a good image is pulled after all of them.
//!
//! Most would pass containerd 1.6 without a word: it keeps what it unpacks below the layer's directory, but makes devices and
//! writes whatever a layer asks for. The last cases are those that it refuses itself.

use std::process::Command;
use std::time::Duration;

use berth_node::host::image::{Fault, ImageError, Images, ImagesConfig};
use berth_tests::oci_layout::{Compression, Entry, Image, blob_path, digest};
use serde_json::{Value, json};

use super::collect::listed;
use super::containerd::{Containerd, is_alive, until};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A tar header with whatever name and link target, which the writers of honest archives would refuse.
fn header(kind: u8, name: &str, link: &str, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    let raw = header.as_old_mut();
    raw.name[..name.len()].copy_from_slice(name.as_bytes());
    raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn device(kind: u8, major: u32, minor: u32) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_path("x").unwrap();
    header.set_mode(0o666);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header.set_device_major(major).unwrap();
    header.set_device_minor(minor).unwrap();
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// An entry that makes the next one sparse: three bytes of text for a terabyte.
fn sparse() -> Vec<u8> {
    let text = b"33 GNU.sparse.size=1099511627776\n";
    let mut bytes = header(b'x', "pax", "", text.len() as u64);
    bytes.extend_from_slice(text);
    bytes.resize(1024, 0);
    [bytes, header(b'0', "x", "", 0)].concat()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// 10 GiB of zeros as a gzip of as many members as mebibytes.
fn gzip_bomb() -> Vec<u8> {
    let mut bomb = gzip(&header(b'0', "zeros", "", 10 << 30));
    bomb.extend(gzip(&vec![0; 1 << 20]).repeat(10 << 10));
    bomb
}

/// The same in zstd, as blocks that repeat one byte 128 Ki times.
fn zstd_bomb() -> Vec<u8> {
    let block = |kind: u32, len: u32, last: u32| (len << 3 | kind << 1 | last).to_le_bytes()[..3].to_vec();
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 10 << 3];
    bomb.extend(block(0, 512, 0));
    bomb.extend(header(b'0', "zeros", "", 10 << 30));
    bomb.extend([block(1, 128 << 10, 0), vec![0]].concat().repeat(80 << 10));
    bomb.extend([block(1, 512, 1), vec![0]].concat());
    bomb
}

/// More than a million empty files.
fn crowd() -> Vec<u8> {
    gzip(&header(b'0', "x", "", 0).repeat(1000)).repeat(1001)
}

fn write_blob(layout: &std::path::Path, bytes: &[u8]) -> Value {
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let digest = digest(bytes);
    std::fs::write(blob_path(layout, &digest), bytes).unwrap();
    json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": bytes.len()})
}

fn write_index(layout: &std::path::Path, manifest: &Value) {
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
}

struct Setup {
    containerd: Containerd,
    images: Images,
}

impl Setup {
    fn start() -> Option<Self> {
        let containerd = Containerd::start()?;
        let config = ImagesConfig {
            attempts: 2,
            backoff: Duration::from_millis(10),
            ..ImagesConfig::default()
        };
        let images = Images::new(&containerd.runtime(), config).unwrap();
        Some(Self { containerd, images })
    }

    fn layout(&self, name: &str) -> std::path::PathBuf {
        self.containerd.directory.path().join(name)
    }

    async fn refused(&self, name: &str) -> ImageError {
        let reference = format!("oci-layout:{}", self.layout(name).display());
        match self.images.ensure(&reference, |_| ()).await {
            Err(error) => error,
            Ok(pulled) => panic!("{name} is taken: {pulled:?}"),
        }
    }

    /// Blobs, snapshots, images and leases.
    fn kept(&self) -> [Vec<String>; 4] {
        ["content", "snapshots", "images", "leases"].map(|what| {
            let mut lines = listed(&self.containerd, what);
            // Ages differ from one look to the next.
            for line in &mut lines {
                *line = line.split_whitespace().next().unwrap_or_default().to_owned();
            }
            lines.sort();
            lines
        })
    }
}

/// A name, its layer as it is stored, what the layer is called, and what is said of it.
type Case = (&'static str, Vec<u8>, &'static str, &'static str);

#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn layers() -> Vec<Case> {
    const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
    const UP: &str = "../../../../../../../../../../..";
    let out = format!("{UP}/etc/hostname");
    let directory = format!("{UP}/tmp");
    vec![
        (
            "climbs",
            header(b'0', &format!("{UP}/tmp/berth-evil"), "", 0),
            PLAIN,
            "climbs with",
        ),
        (
            "hard-link",
            header(b'1', "x", &out, 0),
            PLAIN,
            "hard link \"x\" leads out",
        ),
        (
            "through-link",
            [
                header(b'2', "l", &directory, 0),
                header(b'0', "l/berth-evil", "", 0),
            ]
            .concat(),
            PLAIN,
            "\"l/berth-evil\" goes through a link that leads out",
        ),
        ("disk", device(b'4', 8, 0), PLAIN, "block device 8:0"),
        ("memory", device(b'3', 1, 1), PLAIN, "character device 1:1"),
        (
            "device-whiteout",
            device(b'3', 0, 0),
            PLAIN,
            "character device 0:0",
        ),
        (
            "whiteout-of-parent",
            header(b'0', "a/.wh...", "", 0),
            PLAIN,
            "deletes nothing",
        ),
        (
            "whiteout-of-itself",
            header(b'0', "a/.wh..", "", 0),
            PLAIN,
            "deletes nothing",
        ),
        (
            "whiteout-without-name",
            header(b'0', ".wh.", "", 0),
            PLAIN,
            "deletes nothing",
        ),
        (
            "opaque-directory",
            header(b'5', "a/.wh..wh..opq/", "", 0),
            PLAIN,
            "is no file",
        ),
        (
            "below-opaque",
            header(b'0', ".wh..wh..opq/x", "", 0),
            PLAIN,
            "has something in it",
        ),
        (
            "below-whiteout",
            header(b'0', ".wh.a/x", "", 0),
            PLAIN,
            "has something in it",
        ),
        ("sparse", sparse(), PLAIN, "sparse file"),
        ("gzip-bomb", gzip_bomb(), GZIP, "unpacks to more than"),
        ("zstd-bomb", zstd_bomb(), ZSTD, "unpacks to more than"),
        ("crowd", crowd(), GZIP, "more than 1000000 entries"),
        (
            "nested",
            gzip(&gzip(&vec![0; 1 << 20])),
            GZIP,
            "one of its layers is no tar",
        ),
        (
            "no-gzip",
            [&[0x1f, 0x8b, 0x08][..], &[7; 600]].concat(),
            GZIP,
            "cannot be decompressed",
        ),
        // These containerd itself refuses.
        (
            "below-file",
            [header(b'0', "a", "", 0), header(b'0', "a/b", "", 0)].concat(),
            PLAIN,
            "cannot be unpacked",
        ),
        (
            "link-to-nothing",
            header(b'1', "x", "nothing", 0),
            PLAIN,
            "cannot be unpacked",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_made_to_do_harm_are_refused_and_leave_nothing() {
    let Some(setup) = Setup::start() else { return };
    let (containerd, runtime) = (&setup.containerd, setup.containerd.runtime());
    let busybox = containerd.busybox(&runtime).await;
    runtime
        .create(&containerd.plan("other", &busybox, "sleep 1000"))
        .await
        .unwrap();
    let pid = runtime.start("other").await.unwrap();
    let before = setup.kept();

    for (name, layer, media_type, reason) in layers() {
        let layout = setup.layout(name);
        let mut stored = write_blob(&layout, &layer);
        stored["mediaType"] = json!(media_type);
        // Only what is not compressed and is taken has its digest looked at.
        let config = json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]}});
        let mut config = write_blob(&layout, config.to_string().as_bytes());
        config["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [stored]});
        write_index(&layout, &write_blob(&layout, manifest.to_string().as_bytes()));

        let error = setup.refused(name).await;
        assert!(matches!(error, ImageError::Unusable { .. }), "{name}: {error}");
        assert_eq!(error.fault(), Fault::Image);
        assert!(error.to_string().contains(reason), "{name}: {error}");
        assert_eq!(setup.kept(), before, "{name} leaves nothing");
    }
    assert!(!std::path::Path::new("/tmp/berth-evil").exists());
    assert!(is_alive(pid), "what runs runs on");
    let mut good = Image::busybox().unwrap();
    // What honest images have: links to merged directories and through them, whiteouts, devices that every container has.
    good.layers.push(vec![
        Entry::directory("usr", 0o755),
        Entry::link("lib", "usr/lib"),
    ]);
    good.tars.push(
        [
            header(b'0', ".wh.tmp", "", 0),
            header(b'5', "root/", "", 0),
            header(b'0', "root/.wh..wh..opq", "", 0),
            device(b'3', 1, 3),
            vec![0; 1024],
        ]
        .concat(),
    );
    good.compression = Compression::Gzip;
    good.write_layout(&setup.layout("good"), "v1").unwrap();
    let reference = format!("oci-layout:{}", setup.layout("good").display());
    setup.images.ensure(&reference, |_| ()).await.unwrap();
    runtime.delete("other").await.unwrap();
}

/// A name, a change to the manifest of an honest image, and what is said of it.
type Lie = (&'static str, fn(&mut Value), &'static str);

fn documents() -> Vec<Lie> {
    vec![
        (
            "larger",
            |manifest| manifest["layers"][0]["size"] = json!(1 << 30),
            "ended after",
        ),
        (
            "smaller",
            |manifest| manifest["layers"][0]["size"] = json!(1024),
            "longer than announced",
        ),
        (
            "absurd",
            |manifest| manifest["layers"][0]["size"] = json!(u64::MAX),
            "at most 1099511627776",
        ),
        (
            "negative",
            |manifest| manifest["layers"][0]["size"] = json!(-1),
            "cannot be read",
        ),
        (
            "path",
            |manifest| manifest["layers"][0]["digest"] = json!("sha256:../../../../etc/hostname"),
            "malformed digest",
        ),
        (
            "many",
            |manifest| manifest["layers"] = json!(vec![manifest["layers"][0].clone(); 600]),
            "at most 512",
        ),
        (
            "none",
            |manifest| manifest["layers"] = json!([]),
            "its config names 1 layers, its manifest 0",
        ),
        (
            "type",
            |manifest| manifest["layers"][0]["mediaType"] = json!("text/html"),
            "unknown media type",
        ),
        (
            "config",
            |manifest| manifest["config"]["digest"] = manifest["layers"][0]["digest"].clone(),
            "longer than",
        ),
        (
            "version",
            |manifest| manifest["schemaVersion"] = json!(1),
            "schema version 1",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_that_lie_are_refused_and_leave_nothing() {
    let Some(setup) = Setup::start() else { return };
    let before = setup.kept();
    let honest = |name: &str| {
        let layout = setup.layout(name);
        let image = Image {
            layers: vec![vec![Entry::file("x", [7; 5000], 0o644)]],
            ..Image::default()
        };
        let digest = image.write_layout(&layout, "v1").unwrap();
        let manifest = std::fs::read(blob_path(&layout, &digest)).unwrap();
        (layout, serde_json::from_slice::<Value>(&manifest).unwrap())
    };
    let refused = async |name: &str, reason: &str| {
        let error = setup.refused(name).await;
        assert!(error.to_string().contains(reason), "{name}: {error}");
        assert_eq!(error.fault(), Fault::Image, "{name}: {error}");
        assert_eq!(setup.kept(), before, "{name} leaves nothing");
    };
    for (name, change, reason) in documents() {
        let (layout, mut manifest) = honest(name);
        change(&mut manifest);
        write_index(&layout, &write_blob(&layout, manifest.to_string().as_bytes()));
        refused(name, reason).await;
    }

    // The layer unpacks to another one than the config says.
    let (layout, mut manifest) = honest("diff-id");
    let config = json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest(b"other")]}});
    let mut config = write_blob(&layout, config.to_string().as_bytes());
    config["mediaType"] = manifest["config"]["mediaType"].take();
    manifest["config"] = config;
    write_index(&layout, &write_blob(&layout, manifest.to_string().as_bytes()));
    refused("diff-id", "its config says sha256:").await;

    // A chain of indexes, which would be a ring if digests could be chosen; a name that leads elsewhere; a pipe without an end.
    let (layout, manifest) = honest("chain");
    let mut next = write_blob(&layout, manifest.to_string().as_bytes());
    for _ in 0..2 {
        let index = json!({"schemaVersion": 2, "manifests": [next]});
        next = write_blob(&layout, index.to_string().as_bytes());
        next["mediaType"] = json!("application/vnd.oci.image.index.v1+json");
    }
    write_index(&layout, &next);
    refused("chain", "its index names another index").await;
    let (layout, _) = honest("elsewhere");
    write_index(
        &layout,
        &json!({"digest": "sha256:../../../../../etc/hostname", "size": 10}),
    );
    refused("elsewhere", "malformed digest").await;
    let (layout, _) = honest("pipe");
    std::fs::remove_file(layout.join("index.json")).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(layout.join("index.json"))
            .status()
            .unwrap()
            .success()
    );
    refused("pipe", "is no file").await;
}

/// A disk with little room: what would not fit is known before it is unpacked, bytes and files.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_the_disk_cannot_hold_is_not_begun() {
    let Some(mut setup) = Setup::start() else { return };
    setup.containerd.kill();
    let root = setup.layout("root");
    std::fs::remove_dir_all(&root).unwrap();
    std::fs::create_dir(&root).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64m,nr_inodes=2000", "tmpfs"])
        .arg(&root)
        .status()
        .unwrap();
    assert!(mounted.success());
    setup.containerd.spawn();

    let zeros = Image {
        layers: vec![vec![Entry::file("zeros", vec![0; 300 << 20], 0o644)]],
        compression: Compression::Gzip,
        ..Image::default()
    };
    zeros.write_layout(&setup.layout("zeros"), "v1").unwrap();
    let error = setup.refused("zeros").await;
    let ImageError::NoSpace { needed_bytes, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(needed_bytes, 300 << 20, "what it takes unpacked");
    let many = (0..3000).map(|number| Entry::file(&format!("f{number}"), "", 0o644));
    let many = Image {
        layers: vec![many.collect()],
        compression: Compression::Gzip,
        ..Image::default()
    };
    many.write_layout(&setup.layout("many"), "v1").unwrap();
    let error = setup.refused("many").await;
    assert!(
        error
            .to_string()
            .contains("has 3000 files, the disk has room for"),
        "{error}"
    );
    assert_eq!(error.fault(), Fault::Infrastructure);
    assert_eq!(listed(&setup.containerd, "snapshots"), Vec::<String>::new());

    // One that fits is pulled, though what the others have fetched lies there.
    let small = Image {
        layers: vec![vec![Entry::file("x", vec![1; 1 << 20], 0o644)]],
        ..Image::default()
    };
    small.write_layout(&setup.layout("small"), "v1").unwrap();
    let reference = format!("oci-layout:{}", setup.layout("small").display());
    setup.images.ensure(&reference, |_| ()).await.unwrap();
    until("it is there", || listed(&setup.containerd, "images").len() == 1).await;
}

/// A registry that answers whatever is asked of it with the same: bytes without an end, or another document than was asked for.
fn liar(endless: bool) -> std::net::SocketAddr {
    use std::io::Write as _;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the test's process; it holds nothing.
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            std::thread::spawn(move || {
                if super::registry::read_head(&mut client).is_none() {
                    return;
                }
                let index = json!({"schemaVersion": 2, "manifests": [
                    {"digest": format!("sha256:{}", "a".repeat(64)), "size": 2},
                ]})
                .to_string();
                let len = if endless { 1 << 40 } else { index.len() };
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.index.v1+json\r\n\
                     Content-Length: {len}\r\nConnection: close\r\n\r\n"
                );
                let mut sent = client.write_all(head.as_bytes());
                if endless {
                    while sent.is_ok() {
                        sent = client.write_all(&[b' '; 64 << 10]);
                    }
                } else {
                    client.write_all(index.as_bytes()).ok();
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_lies_fills_neither_memory_nor_disk() {
    let Some(setup) = Setup::start() else { return };
    let before = setup.kept();
    let (endless, other) = (liar(true), liar(false));
    let config = ImagesConfig {
        registries: super::registry::plain(&[endless, other]),
        attempts: 2,
        backoff: Duration::from_millis(10),
        ..ImagesConfig::default()
    };
    let images = Images::new(&setup.containerd.runtime(), config).unwrap();
    let refused = async |reference: String| images.ensure(&reference, |_| ()).await.unwrap_err();
    let error = refused(format!("{endless}/app:v1")).await;
    assert!(error.to_string().contains("larger than 4194304 bytes"), "{error}");
    // A ring of indexes can only be a lie: each is asked for by its digest.
    for reference in [
        format!("{other}/app:v1"),
        format!("{other}/app@sha256:{}", "b".repeat(64)),
    ] {
        let error = refused(reference).await;
        assert!(
            error.to_string().contains("came with the digest sha256:"),
            "{error}"
        );
        assert_eq!(
            error.fault(),
            Fault::Infrastructure,
            "another attempt may be told the truth"
        );
    }
    assert_eq!(setup.kept(), before);
}
