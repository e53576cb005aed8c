//! Looks into a layer that lies in containerd, before it is unpacked: decompresses it and puts it before [`LayerCheck`].
//!
//! containerd goes by the first bytes, not by the media type, unless that says that nothing is compressed; so does this. A
//! layer's memory is a few mebibytes, and one window of zstd, which its decoder bounds.

use std::io::{BufRead, BufReader, Read};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use tokio::sync::mpsc;

use super::layer::{Contents, LayerCheck};
use super::manifest::Descriptor;
use super::retry::Trouble;
use super::store::Store;

const PART_SIZE: usize = 64 << 10;
/// Parts of a blob on their way from containerd, of at most some mebibytes together.
const PARTS_AHEAD: usize = 2;

/// What a layer takes unpacked, or why it is refused.
pub(super) async fn inspect(store: &Store, layer: &Descriptor) -> Result<Contents, Trouble> {
    let (sender, receiver) = mpsc::channel(PARTS_AHEAD);
    let (media_type, stored) = (layer.media_type.clone(), layer.size);
    // Ends by itself when the sender goes, and so when this future is dropped.
    let looking = tokio::task::spawn_blocking(move || {
        contents(BufReader::new(Parts::of(receiver)), &media_type, stored)
    });
    let read = store.read(&layer.digest, sender).await;
    let looked = looking
        .await
        .map_err(|error| Trouble::Store(format!("looking into a layer ended abnormally: {error}")))?;
    // What ended too early because containerd failed is nobody's fault but its.
    read?;
    looked.map_err(|message| Trouble::Unusable(format!("layer {}: {message}", layer.digest)))
}

/// Blocking. The error is for the user.
fn contents(mut stored: impl BufRead, media_type: &str, stored_len: u64) -> Result<Contents, String> {
    let mut check = LayerCheck::new(stored_len);
    let magic = stored.fill_buf().map_err(|error| broken(&error))?;
    let is_plain = media_type == "application/vnd.oci.image.layer.v1.tar";
    if !is_plain && magic.starts_with(&[0x1f, 0x8b, 0x08]) {
        feed(&mut check, &mut MultiGzDecoder::new(stored))?;
    } else if !is_plain && is_zstd(magic) {
        feed_zstd(&mut check, &mut stored)?;
    } else {
        feed(&mut check, &mut stored)?;
    }
    check.finish()
}

fn feed(check: &mut LayerCheck, tar: &mut dyn Read) -> Result<(), String> {
    let mut part = vec![0; PART_SIZE];
    loop {
        match tar.read(&mut part) {
            Ok(0) => return Ok(()),
            Ok(len) => check.feed(&part[..len])?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(&error)),
        }
    }
}

/// A frame or one of those that are skipped; some programs put their own notes there.
fn is_zstd(magic: &[u8]) -> bool {
    let number = magic.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes));
    number.is_some_and(|number| number == 0xFD2F_B528 || number & 0xFFFF_FFF0 == 0x184D_2A50)
}

/// All frames, one after the other.
fn feed_zstd(check: &mut LayerCheck, stored: &mut impl BufRead) -> Result<(), String> {
    while !stored.fill_buf().map_err(|error| broken(&error))?.is_empty() {
        match StreamingDecoder::new(&mut *stored) {
            Ok(mut frame) => feed(check, &mut frame)?,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length, ..
            })) => {
                let length = u64::from(length);
                let skipped = std::io::copy(&mut stored.take(length), &mut std::io::sink());
                if skipped.map_err(|error| broken(&error))? < length {
                    return Err(broken(&"it ends within a frame"));
                }
            }
            Err(error) => return Err(broken(&error)),
        }
    }
    Ok(())
}

fn broken(error: &dyn std::fmt::Display) -> String {
    format!("it cannot be decompressed: {error}")
}

/// The parts of a blob as one reader.
struct Parts {
    receiver: mpsc::Receiver<Bytes>,
    part: Bytes,
}

impl Parts {
    fn of(receiver: mpsc::Receiver<Bytes>) -> Self {
        Self {
            receiver,
            part: Bytes::new(),
        }
    }
}

impl Read for Parts {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.part.is_empty() {
            match self.receiver.blocking_recv() {
                Some(part) => self.part = part,
                None => return Ok(0),
            }
        }
        let len = self.part.len().min(into.len());
        into[..len].copy_from_slice(&self.part.split_to(len));
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Zstandard as its specification has it: the content in raw blocks, or one byte repeated.
    fn zstd(blocks: &[(u32, &[u8])]) -> Vec<u8> {
        // No checksum, no content size, a window of 1 MiB.
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 10 << 3];
        for (at, (repeats, bytes)) in blocks.iter().enumerate() {
            let last = u32::from(at + 1 == blocks.len());
            let (kind, len) = if *repeats > 0 {
                (1, *repeats)
            } else {
                (0, u32::try_from(bytes.len()).unwrap())
            };
            frame.extend_from_slice(&(len << 3 | kind << 1 | last).to_le_bytes()[..3]);
            frame.extend_from_slice(bytes);
        }
        frame
    }

    fn of(bytes: &[u8], media_type: &str) -> Result<Contents, String> {
        contents(bytes, media_type, bytes.len() as u64)
    }

    fn tar() -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5000);
        archive.append_data(&mut header, "a", &[7; 5000][..]).unwrap();
        archive.into_inner().unwrap()
    }

    #[test]
    fn every_compression_holds_the_same() {
        let tar = tar();
        let expected = Contents {
            disk_bytes: 8192,
            entries: 1,
        };
        assert_eq!(of(&tar, PLAIN), Ok(expected));
        assert_eq!(
            of(&tar, GZIP),
            Ok(expected),
            "the first bytes say that it is not compressed"
        );
        let (head, tail) = tar.split_at(700);
        assert_eq!(of(&gzip(&tar), GZIP), Ok(expected));
        assert_eq!(
            of(&[gzip(head), gzip(tail)].concat(), GZIP),
            Ok(expected),
            "two members are one stream"
        );
        let note = [&0x184D_2A50_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), b"abc"].concat();
        assert_eq!(
            of(
                &[zstd(&[(0, head)]), note.clone(), zstd(&[(0, tail)])].concat(),
                GZIP
            ),
            Ok(expected)
        );
        assert_eq!(
            of(&[note.clone(), zstd(&[(0, &tar)])].concat(), GZIP),
            Ok(expected)
        );
        assert!(
            of(&gzip(&tar), PLAIN).is_err(),
            "what is called a tar is read as one"
        );
        for cut in [20, 10_000] {
            assert!(of(&gzip(&tar)[..cut.min(gzip(&tar).len() - 1)], GZIP).is_err());
            assert!(of(&zstd(&[(0, &tar)])[..cut.min(tar.len())], GZIP).is_err());
        }
        assert!(of(&note[..9], GZIP).is_err());
    }

    /// 10 GiB in some hundred kilobytes: neither is read to its end.
    #[test]
    fn a_bomb_is_refused_before_it_is_unpacked() {
        let mut header = tar::Header::new_gnu();
        header.set_path("zeros").unwrap();
        header.set_size(10 << 30);
        header.set_cksum();
        let zeros = vec![0; 1 << 20];
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(header.as_bytes()).unwrap();
        // Members of a mebibyte each are as good as one of ten gibibytes.
        let mut bomb = encoder.finish().unwrap();
        bomb.extend(gzip(&zeros).repeat(10 << 10));
        assert!(
            of(&bomb, GZIP).unwrap_err().contains("unpacks to more than"),
            "gzip"
        );
        let mut blocks = vec![(0, &header.as_bytes()[..])];
        blocks.extend([(128 << 10, &[0u8][..])].repeat(80 << 10));
        let bomb = zstd(&blocks);
        assert!(bomb.len() < 400_000);
        assert!(
            of(&bomb, GZIP).unwrap_err().contains("unpacks to more than"),
            "zstd"
        );
    }
}
