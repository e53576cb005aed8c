//! Any bytes as what a registry or an archive may give: the parsers must end, within their bounds, and agree with themselves.
//!
//! The targets of `fuzz/` compile this file and those that it drives from their sources; `make test` runs their corpora.

use super::challenge::Challenge;
use super::layer::LayerCheck;
use super::manifest::{self, DOCUMENT_SIZE_MAX, Document};
use super::reference::{Reference, is_digest};

/// A manifest, an index or a config. The first byte says under which type it came and how many layers its manifest has.
pub(crate) fn manifest(bytes: &[u8]) {
    let Some((first, text)) = bytes.split_first() else {
        return;
    };
    if text.len() as u64 > DOCUMENT_SIZE_MAX {
        return;
    }
    let media_type = [
        "",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "text/html",
    ][usize::from(first & 3)];
    match manifest::document(text.to_vec(), media_type) {
        Ok(Document::Manifest(read)) => {
            assert_eq!(read.digest, manifest::digest_of(text));
            assert!(read.layers.len() <= 512);
            let blobs = read.layers.iter().chain([&read.config]);
            let sum = blobs
                .clone()
                .try_fold(0u64, |sum, blob| sum.checked_add(blob.size));
            assert!(
                sum.is_some_and(|sum| sum.checked_mul(2).is_some()),
                "sizes can be summed up"
            );
            assert!(
                blobs.clone().all(|blob| is_digest(&blob.digest)),
                "digests are names of files"
            );
            // It was named by a type that it takes again.
            let again = manifest::document(text.to_vec(), &read.media_type).expect("read a moment ago");
            assert!(matches!(again, Document::Manifest(again) if again.layers == read.layers));
        }
        Ok(Document::Index(picked)) => assert!(is_digest(&picked.digest)),
        Err(message) => assert!(!message.is_empty()),
    }
    let layers_len = usize::from(first >> 2);
    if let Ok(config) = manifest::config(text, layers_len) {
        assert_eq!(config.diff_ids.len(), layers_len);
        let chain = manifest::chain_ids(&config.diff_ids);
        assert!(config.diff_ids.iter().chain(&chain).all(|id| is_digest(id)));
        assert!((1..=64).contains(&config.image.stop_signal_number()));
    }
}

/// A layer's tar. The first byte is where it is cut in parts; whole and in parts it is the same. If it is odd, the checksum of every
/// block is mended first: otherwise a changed header is never looked into.
pub(crate) fn layer(bytes: &[u8]) {
    let Some((first, tar)) = bytes.split_first() else {
        return;
    };
    let mut tar = tar.to_vec();
    if first % 2 == 1 {
        mend(&mut tar);
    }
    let read = |len: usize| {
        let mut check = LayerCheck::new(tar.len() as u64);
        for part in tar.chunks(len) {
            check.feed(part)?;
        }
        check.finish()
    };
    let whole = read(tar.len().max(1));
    assert_eq!(read(usize::from(*first) * 7 + 1), whole);
    if let Ok(contents) = whole {
        // A header each; and nothing takes blocks that are not in the tar but directories, one each.
        assert!(contents.entries <= tar.len() as u64 / 512);
        assert!(contents.disk_bytes <= tar.len() as u64 + contents.entries * 4096);
    }
}

fn mend(tar: &mut [u8]) {
    for block in tar
        .chunks_exact_mut(512)
        .filter(|block| block.iter().any(|byte| *byte != 0))
    {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        for (digit, place) in block[148..154].iter_mut().rev().enumerate() {
            *place = b'0' + u8::try_from(sum >> (3 * digit) & 7).unwrap_or_default();
        }
        block[154] = 0;
    }
}

/// A reference to an image as users write it, and how a registry asks for a login.
pub(crate) fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(reference) = Reference::parse(text) {
        let normal = reference.to_string();
        assert_eq!(
            Reference::parse(&normal).as_ref(),
            Ok(&reference),
            "{text:?} becomes {normal:?}"
        );
        if let Reference::Registry {
            registry, repository, ..
        } = &reference
        {
            // It becomes a part of an address.
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-:/".contains(c);
            assert!(
                registry.chars().chain(repository.chars()).all(is_plain),
                "{text:?}"
            );
            assert!(
                !repository
                    .split('/')
                    .any(|part| part.is_empty() || part == ".." || part == "."),
                "{text:?}"
            );
        }
    }
    let _challenge = Challenge::pick(text.lines());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every input of a corpus; `make fuzz TARGET=..` finds more.
    fn corpus(target: &str, drive: fn(&[u8])) {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus");
        let mut count = 0;
        for entry in std::fs::read_dir(std::path::Path::new(directory).join(target)).unwrap() {
            drive(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count >= 10, "{count} inputs are hardly a corpus");
    }

    #[test]
    fn every_input_of_the_corpora_is_read() {
        corpus("manifest", manifest);
        corpus("layer", layer);
        corpus("reference", reference);
    }

    proptest! {
        #[test]
        fn any_text_is_a_reference_or_none(text in "[a-z0-9:/@._-]{0,40}|\\PC{0,40}") {
            reference(text.as_bytes());
        }

        #[test]
        fn any_json_is_a_manifest_or_none(
            first: u8,
            members in prop::collection::vec(prop::sample::select(vec![
                "\"schemaVersion\":2", "\"manifests\":[]", "\"config\":{}", "\"layers\":[]", "\"rootfs\":{\"diff_ids\":[]}",
                "\"mediaType\":\"\"", "\"config\":{\"digest\":\"sha256:\",\"size\":1}", "\"config\":{\"Env\":null}", "\"os\":\"linux\"",
            ]), 0..6),
        ) {
            let text = format!("{{{}}}", members.join(","));
            manifest(&[&[first], text.as_bytes()].concat());
        }

        #[test]
        fn any_blocks_are_a_layer_or_none(changes in prop::collection::vec((0usize..3000, any::<u8>()), 0..20)) {
            let mut tar = vec![3];
            for (name, kind) in [("a", tar::EntryType::Directory), ("a/b", tar::EntryType::Regular), ("l", tar::EntryType::Symlink)] {
                let mut header = tar::Header::new_ustar();
                header.set_path(name).unwrap();
                header.set_link_name("../..").unwrap();
                header.set_entry_type(kind);
                header.set_size(512);
                tar.extend_from_slice(header.as_bytes());
                tar.extend_from_slice(&[b'x'; 512]);
            }
            for (at, byte) in &changes {
                let at = at % tar.len();
                tar[at] = *byte;
            }
            tar[0] |= 1;
            layer(&tar);
        }
    }
}
