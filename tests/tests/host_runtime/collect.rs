//! Images go when nothing needs them, and only then.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use berth_api::units::Bytes;
use berth_node::host::image::{CollectConfig, ImageError, Images, ImagesConfig};
use berth_tests::oci_layout::{Compression, Entry, Image};

use super::containerd::{Containerd, exit_of, until};
use super::registry::noise;

/// busybox and something of its own.
fn image(seed: u8, len: usize) -> Image {
    let mut image = Image::busybox().unwrap();
    image
        .layers
        .push(vec![Entry::file("own", noise(seed, len), 0o644)]);
    image.compression = Compression::Gzip;
    image
}

/// Writes layouts and gives their references.
fn layouts<const N: usize>(containerd: &Containerd, images: [Image; N]) -> [String; N] {
    let mut number = 0;
    images.map(|image| {
        number += 1;
        let layout = containerd.directory.path().join(format!("images{number}"));
        image.write_layout(&layout, "v1").unwrap();
        format!("oci-layout:{}:v1", layout.display())
    })
}

pub(crate) fn listed(containerd: &Containerd, what: &str) -> Vec<String> {
    let output = Command::new("ctr")
        .arg("--address")
        .arg(containerd.socket())
        .args(["--namespace", &containerd.name, what, "ls"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().skip(1).map(str::to_owned).collect()
}

fn needed<const N: usize>(references: [&String; N]) -> BTreeSet<String> {
    references.into_iter().cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_needs_goes_with_its_layers_and_what_runs_runs_on() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let runtime = containerd.runtime();
    let config = ImagesConfig {
        collect: CollectConfig {
            budget: Some(Bytes::new(1)),
            grace: Duration::ZERO,
            settle: Duration::ZERO,
            ..CollectConfig::default()
        },
        ..ImagesConfig::default()
    };
    let images = Images::new(&runtime, config).unwrap();
    let [kept, running, other] = layouts(
        &containerd,
        [image(1, 200_000), image(2, 200_000), image(3, 200_000)],
    );
    for reference in [&kept, &running, &other] {
        images.ensure(reference, |_| ()).await.unwrap();
    }
    // One layer for all three, one for each.
    assert_eq!(listed(&containerd, "snapshots").len(), 4);
    let pulled = images.ensure(&running, |_| ()).await.unwrap();
    let plan = containerd.plan("stays", &pulled, "sleep 1000");
    runtime.create(&plan).await.unwrap();
    let pid = runtime.start("stays").await.unwrap();

    images.keep(&needed([&kept]));
    // Its layer and its blobs go with it; those under the container stay, and it does not notice. Left are base, two layers and the
    // container; manifest, config and two layers of what is kept.
    until("the other image goes, with all that only it had", || {
        ["images", "snapshots", "content"].map(|what| listed(&containerd, what).len()) == [1, 4, 4]
    })
    .await;
    assert!(super::containerd::is_alive(pid));
    runtime.delete("stays").await.unwrap();

    // What is gone comes back when it is asked for, and starts.
    let again = images.ensure(&running, |_| ()).await.unwrap();
    assert_eq!(again, pulled);
    let mut events = runtime.subscribe();
    let plan = containerd.plan("again", &again, "cat /own | wc -c");
    runtime.create(&plan).await.unwrap();
    runtime.start("again").await.unwrap();
    assert_eq!(exit_of(&mut events, "again").await.code, 0);
    until("the output arrives", || {
        containerd.read_output("again").trim() == "200000"
    })
    .await;
    runtime.delete("again").await.unwrap();
    // So does what was kept all along, in another life of the daemon.
    let images = Images::new(&runtime, ImagesConfig::default()).unwrap();
    let kept = images.ensure(&kept, |_| ()).await.unwrap();
    runtime
        .create(&containerd.plan("kept", &kept, "true"))
        .await
        .unwrap();
    runtime.start("kept").await.unwrap();
    assert_eq!(exit_of(&mut events, "kept").await.code, 0);
    runtime.delete("kept").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_29_image_larger_than_the_free_disk() {
    let Some(mut containerd) = Containerd::start() else {
        return;
    };
    // containerd's own disk, and a small one.
    containerd.kill();
    let root = containerd.directory.path().join("root");
    std::fs::remove_dir_all(&root).unwrap();
    std::fs::create_dir(&root).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=56m", "tmpfs"])
        .arg(&root)
        .status()
        .unwrap();
    assert!(mounted.success());
    containerd.spawn();
    let runtime = containerd.runtime();
    let config = ImagesConfig {
        collect: CollectConfig {
            grace: Duration::ZERO,
            settle: Duration::ZERO,
            ..CollectConfig::default()
        },
        ..ImagesConfig::default()
    };
    let images = Images::new(&runtime, config).unwrap();
    let [first, second, giant] = layouts(
        &containerd,
        [image(4, 15 << 20), image(5, 15 << 20), image(6, 60 << 20)],
    );
    images.keep(&needed([&first]));
    images.ensure(&first, |_| ()).await.unwrap();

    // Nothing may go: it fails before it has fetched anything, and says what it lacks.
    let error = images.ensure(&second, |_| ()).await.unwrap_err();
    let ImageError::NoSpace {
        needed_bytes,
        free_bytes,
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert!(
        needed_bytes > 30 << 20 && free_bytes < needed_bytes,
        "{needed_bytes} {free_bytes}"
    );
    assert_eq!(listed(&containerd, "images").len(), 1);

    // Nothing needs the first any more.
    images.keep(&needed([&second]));
    images.ensure(&second, |_| ()).await.unwrap();
    assert_eq!(listed(&containerd, "images").len(), 1);
    // What cannot fit at all costs nobody an image.
    images.keep(&needed([&giant]));
    let error = images.ensure(&giant, |_| ()).await.unwrap_err();
    assert!(matches!(error, ImageError::NoSpace { .. }), "{error}");
    let left = listed(&containerd, "images");
    assert!(left.len() == 1 && left[0].contains("images2"), "{left:?}");
}
