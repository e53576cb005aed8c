//! A pull of 500 MB from a registry on this host: `ctr images pull` and the node's own code, in turns, on the same containerd. Both fetch, check and
//! unpack, and both begin with nothing of the image there.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use berth_api::time::monotonic;
use berth_node::host::containerd::{Runtime, RuntimeConfig};
use berth_node::host::image::{Images, ImagesConfig, RegistryConfig};
use berth_tests::oci_layout::{Compression, Entry, Image};

use crate::arguments::Arguments;
use crate::figures::{Figures, percentile};
use crate::instance::Instance;
use crate::report::{millis, say};

const LAYERS: u64 = 5;
const LAYER_BYTES: usize = 100 << 20;
/// Pulls of each; the median counts.
const ROUNDS: usize = 5;
const NAMESPACE: &str = "berth-bench-pull";

pub(crate) async fn measure(
    instance: &Instance,
    arguments: &Arguments,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let Some(registry) = &arguments.registry else {
        return say("no registry is installed (docker-registry): no pull is measured");
    };
    let reference = format!("{registry}/big:1");
    let work = arguments
        .state_dir
        .parent()
        .context("the state lies in a directory")?;
    push(work, &reference)?;
    let runtime = Runtime::connect(RuntimeConfig::new(&instance.containerd_socket, NAMESPACE))?;
    let plain = RegistryConfig {
        plain_http: true,
        ..RegistryConfig::default()
    };
    let config = ImagesConfig {
        registries: BTreeMap::from([(registry.clone(), plain)]),
        ..ImagesConfig::default()
    };
    let (mut raws, mut ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begun = monotonic();
        ctr(instance, &["images", "pull", "--plain-http", &reference])?;
        raws.push(millis(begun.elapsed()));
        ctr(instance, &["images", "remove", "--sync", &reference])?;

        // Anew each time: what it remembers of an image would spare it work.
        let images = Images::new(&runtime, config.clone())?;
        let begun = monotonic();
        images
            .ensure(&reference, |_| ())
            .await
            .context("pull the image")?;
        ours.push(millis(begun.elapsed()));
        images.shutdown().await;
        ctr(instance, &["images", "remove", "--sync", &reference])?;
        ratios.push(ours.last().unwrap_or(&0.0) / raws.last().unwrap_or(&1.0));
    }
    let ratio = percentile(&ratios, 50);
    figures.add(
        "ctr_pull_500mb_ms",
        "pull of 500 MB, ctr, p50",
        "ms",
        percentile(&raws, 50),
        None,
    );
    figures.add(
        "pull_500mb_ms",
        "pull of 500 MB, Berth, p50",
        "ms",
        percentile(&ours, 50),
        None,
    );
    figures.add(
        "pull_ratio",
        "pull of 500 MB, ratio (median of 5)",
        "x",
        ratio,
        Some(1.1),
    );
    runtime.shutdown().await;
    Ok(())
}

fn ctr(instance: &Instance, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ctr")
        .arg("--address")
        .arg(&instance.containerd_socket)
        .args(["--namespace", NAMESPACE])
        .args(arguments)
        .output()
        .context("run ctr")?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ctr {arguments:?}: {words}");
    Ok(())
}

/// Makes an image that compresses to half of its size, as programs do, and brings it into the registry.
fn push(work: &Path, reference: &str) -> anyhow::Result<()> {
    let layout = work.join("big");
    let image = Image {
        layers: (0..LAYERS)
            .map(|layer| vec![Entry::file(&format!("layer-{layer}"), content(layer), 0o644)])
            .collect(),
        compression: Compression::Gzip,
        ..Image::default()
    };
    image.write_layout(&layout, "1")?;
    let output = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--dest-tls-verify=false"])
        .arg(format!("oci:{}:1", layout.display()))
        .arg(format!("docker://{reference}"))
        .output()
        .context("run skopeo")?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "skopeo: {words}");
    std::fs::remove_dir_all(&layout).context("remove the layout")
}

/// Blocks of 4 KiB, every other one of zeros; the rest from a generator (splitmix64) that starts with the layer's number.
fn content(layer: u64) -> Vec<u8> {
    let mut state = layer + 1;
    let mut bytes = Vec::with_capacity(LAYER_BYTES * 2);
    // Twice as long: half of it compresses to nothing.
    while bytes.len() < LAYER_BYTES * 2 {
        for _ in 0..512 {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bytes.extend_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
        }
        bytes.resize(bytes.len() + 4096, 0);
    }
    bytes
}
