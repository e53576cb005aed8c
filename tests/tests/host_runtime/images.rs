//! Images from this machine: layouts, tarballs, compressions, users.

use std::sync::Mutex;

use berth_node::host::image::{Fault, ImageError, Images, ImagesConfig, Progress};
use berth_tests::oci_layout::{Compression, Entry, Image, blob_path};

use super::containerd::{Containerd, exit_of};

/// Two layers: the second replaces a file of the first and adds an account.
fn image(compression: Compression) -> Image {
    let mut image = Image::busybox().unwrap();
    image.layers.push(vec![
        Entry::directory("etc", 0o755),
        Entry::file(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnonroot:x:65532:65532::/home/nonroot:/sbin/nologin\n",
            0o644,
        ),
        Entry::file("note", "second layer", 0o644),
    ]);
    image.user = "nonroot".into();
    image.working_dir = "/tmp".into();
    image.env = vec!["FROM=image".into()];
    image.cmd = vec![
        "/bin/sh".into(),
        "-c".into(),
        "id -u; pwd; echo $FROM $HOME; cat /note".into(),
    ];
    image.compression = compression;
    image
}

#[tokio::test(flavor = "multi_thread")]
async fn every_local_form_and_compression_runs() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let runtime = containerd.runtime();
    let images = Images::new(&runtime, ImagesConfig::default()).unwrap();
    let mut events = runtime.subscribe();
    let at = |name: &str| containerd.directory.path().join(name);
    let layout = at("images");
    for (tag, compression) in [
        ("none", Compression::None),
        ("gzip", Compression::Gzip),
        ("zstd", Compression::Zstd),
    ] {
        image(compression).write_layout(&layout, tag).unwrap();
    }
    image(Compression::None)
        .write_docker_archive(&at("docker.tar"), "app:v1")
        .unwrap();
    image(Compression::Gzip)
        .write_oci_archive(&at("oci.tar"), "v1")
        .unwrap();
    let references = [
        format!("oci-layout:{}:none", layout.display()),
        format!("oci-layout:{}:gzip", layout.display()),
        format!("oci-layout:{}:zstd", layout.display()),
        format!("tarball:{}", at("docker.tar").display()),
        format!("tarball:{}", at("oci.tar").display()),
    ];
    let mut chains = std::collections::BTreeSet::new();
    for (index, reference) in references.iter().enumerate() {
        let pulled = images
            .ensure(reference, |_| ())
            .await
            .unwrap_or_else(|error| panic!("{reference}: {error}"));
        assert_eq!((pulled.user.uid, pulled.user.gid), (65532, 65532), "{reference}");
        chains.insert(pulled.chain_id.clone());
        let id = format!("i{index}");
        let mut input = containerd.input(&id, &pulled, "");
        input.command = None;
        runtime
            .create(&containerd.plan_of(&id, &pulled, &input))
            .await
            .unwrap();
        runtime.start(&id).await.unwrap();
        let exit = exit_of(&mut events, &id).await;
        runtime.delete(&id).await.unwrap();
        let output = containerd.read_output(&id);
        assert_eq!(
            (exit.code, output.as_str()),
            (0, "65532\n/tmp\nimage /home/nonroot\nsecond layer"),
            "{reference}"
        );
    }
    assert_eq!(chains.len(), 1, "equal layers are unpacked once");
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_29_fifty_replicas_of_one_image() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let runtime = containerd.runtime();
    let images = Images::new(&runtime, ImagesConfig::default()).unwrap();
    let layout = containerd.directory.path().join("images");
    image(Compression::Gzip).write_layout(&layout, "v1").unwrap();
    let reference = format!("oci-layout:{}:v1", layout.display());
    let seen = Mutex::new(Vec::new());
    let all = (0..50).map(|_| images.ensure(&reference, |progress| seen.lock().unwrap().push(progress)));
    let pulled: Vec<_> = futures::future::join_all(all)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert!(pulled.windows(2).all(|pair| pair[0] == pair[1]));
    let last = seen.lock().unwrap().last().copied().unwrap_or_default();
    assert!(
        last.bytes_total > 0 && last.bytes_done <= last.bytes_total,
        "{last:?}"
    );

    std::fs::remove_dir_all(&layout).unwrap();
    let again = Images::new(&runtime, ImagesConfig::default()).unwrap();
    assert_eq!(
        again.ensure(&reference, |_: Progress| ()).await.unwrap(),
        pulled[0]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_image_has_one_clear_error() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let runtime = containerd.runtime();
    let images = Images::new(&runtime, ImagesConfig::default()).unwrap();
    let at = |name: &str| containerd.directory.path().join(name);
    let ensure = async |reference: String| images.ensure(&reference, |_| ()).await.unwrap_err();

    let error = ensure(format!("oci-layout:{}:v1", at("nowhere").display())).await;
    assert!(matches!(error, ImageError::Unknown { .. }), "{error}");
    image(Compression::None).write_layout(&at("one"), "v1").unwrap();
    let error = ensure(format!("oci-layout:{}:v2", at("one").display())).await;
    assert!(error.to_string().contains("with the tags [v1]"), "{error}");
    std::fs::write(at("text.tar"), "no tar").unwrap();
    let error = ensure(format!("tarball:{}", at("text.tar").display())).await;
    assert!(matches!(error, ImageError::Unusable { .. }), "{error}");

    let mut unknown_user = image(Compression::None);
    unknown_user.user = "ghost".into();
    unknown_user.write_layout(&at("ghost"), "v1").unwrap();
    let error = ensure(format!("oci-layout:{}", at("ghost").display())).await;
    assert!(
        error.to_string().contains("\"ghost\" is not in its /etc/passwd"),
        "{error}"
    );

    let mut changed = image(Compression::Gzip);
    changed.layers[1].push(Entry::file("more", "x", 0o644));
    let manifest = changed.write_layout(&at("broken"), "v1").unwrap();
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(blob_path(&at("broken"), &manifest)).unwrap()).unwrap();
    let layer = blob_path(&at("broken"), manifest["layers"][1]["digest"].as_str().unwrap());
    let mut bytes = std::fs::read(&layer).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&layer, &bytes).unwrap();
    let error = ensure(format!("oci-layout:{}", at("broken").display())).await;
    assert!(matches!(error, ImageError::Unusable { .. }), "{error}");
    assert_eq!(error.fault(), Fault::Image);
    bytes.truncate(middle);
    std::fs::write(&layer, &bytes).unwrap();
    let error = ensure(format!("oci-layout:{}", at("broken").display())).await;
    assert!(error.to_string().contains("ended after"), "{error}");
}
