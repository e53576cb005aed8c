//! Packs an image without network: a static program, or a root file system as a tar, becomes an OCI layout.
//!
//! `pack-image --layout DIR [--tag TAG] (--program FILE | --rootfs TAR) [--entrypoint PATH] [--stop-signal NAME]`

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail};
use berth_tests::oci_layout::Image;

const USAGE: &str = "pack-image --layout DIR [--tag TAG] (--program FILE | --rootfs TAR) [--entrypoint PATH] [--stop-signal NAME]";

fn main() -> anyhow::Result<()> {
    let mut flags = BTreeMap::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let known = [
            "--layout",
            "--tag",
            "--program",
            "--rootfs",
            "--entrypoint",
            "--stop-signal",
        ];
        if !known.contains(&flag.as_str()) {
            bail!("{flag:?} is not a flag\n{USAGE}");
        }
        let value = arguments
            .next()
            .with_context(|| format!("{flag} needs a value\n{USAGE}"))?;
        flags.insert(flag, value);
    }
    let layout = flags
        .get("--layout")
        .with_context(|| format!("--layout is missing\n{USAGE}"))?;
    let mut image = match (flags.get("--program"), flags.get("--rootfs")) {
        (Some(program), None) => Image::program(Path::new(program))?,
        (None, Some(tar)) => Image {
            tars: vec![std::fs::read(tar).with_context(|| format!("reading {tar}"))?],
            env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()],
            ..Image::default()
        },
        _ => bail!("give either --program or --rootfs\n{USAGE}"),
    };
    if let Some(entrypoint) = flags.get("--entrypoint") {
        image.entrypoint = vec![entrypoint.clone()];
    }
    if let Some(signal) = flags.get("--stop-signal") {
        image.stop_signal.clone_from(signal);
    }
    image.write_layout(
        Path::new(layout),
        flags.get("--tag").map_or("latest", String::as_str),
    )?;
    Ok(())
}
