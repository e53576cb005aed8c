//! What a layer would do to the disk, read from its tar before containerd unpacks it (P).
//!
//! Input: the bytes of the tar, in parts of any length. Output: what it takes unpacked ([`Contents`]), or why it is refused, in
//! words for the user. Memory is bounded: one header, one extension of at most [`EXTENSION_BYTES_MAX`], eight bytes for each
//! link that leads out of the image.
//!
//! containerd keeps what it unpacks below the layer's directory, whatever names and links say, but it does so silently, makes
//! every device node and writes as much as the tar asks for. Here is refused what no honest image has: names and links that
//! climb out, writing through a link that leads out, whiteouts that name nothing, devices beyond the harmless ones (one of 0:0
//! is a whiteout to the kernel), sparse files (a few bytes that become terabytes), too many entries, and more bytes than
//! [`bytes_max`] allows for what is stored. Headers are read as Go's `archive/tar` reads them, for that is what containerd
//! uses; what the two could read differently is refused.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

const BLOCK: usize = 512;
/// As Go's reader has it; longer names are no names.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// An inode each. The largest honest layers have some hundred thousand.
const ENTRIES_MAX: u64 = 1_000_000;
/// Any layer may unpack to so much.
const BYTES_FREE: u64 = 1 << 30;
/// Beyond that, to so many times its stored size: programs and texts shrink to a third or a tenth, zeros to a thousandth.
const DENSITY_MAX: u64 = 200;
/// The kernel takes 4095 bytes; containerd puts the layer's directory before.
const PATH_LEN_MAX: usize = 3_800;
const NAME_LEN_MAX: usize = 255;
const LINK_LEN_MAX: usize = 4_095;
/// What a file system hands out at least.
const DISK_BLOCK: u64 = 4_096;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// null, zero, full, random, urandom, tty, console, ptmx: old base images have them, and `/dev` is laid over them.
const DEVICES: [(u64, u64); 8] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];

/// How many bytes a layer may unpack to that is stored in so many.
pub(super) fn bytes_max(stored: u64) -> u64 {
    stored.saturating_mul(DENSITY_MAX).max(BYTES_FREE)
}

/// What a layer takes unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Contents {
    /// In blocks of the file system.
    pub(super) disk_bytes: u64,
    /// Files, directories, links: an inode each.
    pub(super) entries: u64,
}

/// Reads one tar.
#[derive(Debug)]
pub(super) struct LayerCheck {
    state: State,
    block: Vec<u8>,
    pending: Pending,
    /// Hashes of the paths of links whose target climbs out of the image.
    leading_out: BTreeSet<u64>,
    contents: Contents,
    bytes: u64,
    bytes_max: u64,
}

#[derive(Debug)]
enum State {
    /// A header is next; the second of the two empty blocks that end a tar, if one was there.
    Header { after_zero: bool },
    /// The text of an extension, and what fills its last block.
    Extension {
        kind: u8,
        left: u64,
        padding: u64,
        text: Vec<u8>,
    },
    /// The content of an entry.
    Skip { left: u64 },
    /// Whatever follows is nobody's.
    Ended,
}

/// What extensions say of the next entry.
#[derive(Debug, Default)]
struct Pending {
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

/// One header, its fields as they stand.
struct Header<'a>(&'a [u8]);

impl LayerCheck {
    /// For a layer that is stored, compressed or not, in so many bytes.
    pub(super) fn new(stored: u64) -> Self {
        Self {
            state: State::Header { after_zero: false },
            block: Vec::with_capacity(BLOCK),
            pending: Pending::default(),
            leading_out: BTreeSet::new(),
            contents: Contents::default(),
            bytes: 0,
            bytes_max: bytes_max(stored),
        }
    }

    /// Takes the next bytes. The error is for the user; after it the check is over.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        if self.bytes > self.bytes_max {
            return Err(format!(
                "it unpacks to more than {} bytes, too many for what is stored of it",
                self.bytes_max
            ));
        }
        while !bytes.is_empty() {
            match &mut self.state {
                State::Ended => return Ok(()),
                State::Skip { left } => {
                    let taken = up_to(*left, bytes.len());
                    *left -= taken as u64;
                    bytes = &bytes[taken..];
                    if *left == 0 {
                        self.state = State::Header { after_zero: false };
                    }
                }
                State::Extension {
                    left, padding, text, ..
                } => {
                    let taken = up_to(*left, bytes.len());
                    text.extend_from_slice(&bytes[..taken]);
                    *left -= taken as u64;
                    bytes = &bytes[taken..];
                    let filled = if *left == 0 {
                        up_to(*padding, bytes.len())
                    } else {
                        0
                    };
                    *padding -= filled as u64;
                    bytes = &bytes[filled..];
                    if (*left, *padding) == (0, 0) {
                        self.end_extension()?;
                    }
                }
                State::Header { .. } => {
                    let taken = (BLOCK - self.block.len()).min(bytes.len());
                    self.block.extend_from_slice(&bytes[..taken]);
                    bytes = &bytes[taken..];
                    if self.block.len() == BLOCK {
                        let block = std::mem::take(&mut self.block);
                        self.header(&block)?;
                        self.block = block;
                        self.block.clear();
                    }
                }
            }
        }
        Ok(())
    }

    /// The end of the bytes. The error is for the user.
    pub(super) fn finish(self) -> Result<Contents, String> {
        let is_whole = match &self.state {
            State::Header { .. } => self.block.is_empty(),
            State::Ended => true,
            State::Skip { .. } | State::Extension { .. } => false,
        };
        if is_whole {
            Ok(self.contents)
        } else {
            Err("its tar ends within an entry".into())
        }
    }

    fn header(&mut self, block: &[u8]) -> Result<(), String> {
        let State::Header { after_zero } = self.state else {
            unreachable!("a block is gathered for a header alone");
        };
        if block.iter().all(|byte| *byte == 0) {
            self.state = if after_zero {
                State::Ended
            } else {
                State::Header { after_zero: true }
            };
            return Ok(());
        }
        if after_zero {
            return Err("its tar goes on after its end".into());
        }
        let header = Header(block);
        header.check()?;
        let size = header.size()?;
        match header.kind() {
            kind @ (b'x' | b'g' | b'L' | b'K') => self.begin_extension(kind, size),
            kind => self.entry(kind, &header, size),
        }
    }

    fn begin_extension(&mut self, kind: u8, size: u64) -> Result<(), String> {
        if size > EXTENSION_BYTES_MAX {
            return Err(format!(
                "a name or attribute in its tar has {size} bytes, at most {EXTENSION_BYTES_MAX} are read"
            ));
        }
        self.state = State::Extension {
            kind,
            left: size,
            padding: padding(size),
            text: Vec::new(),
        };
        if size == 0 { self.end_extension() } else { Ok(()) }
    }

    fn end_extension(&mut self) -> Result<(), String> {
        let next = State::Header { after_zero: false };
        let State::Extension { kind, text, .. } = std::mem::replace(&mut self.state, next) else {
            unreachable!("called within an extension alone");
        };
        match kind {
            b'x' => self.pending.pax = Pax::read(&text)?,
            b'L' => self.pending.long_name = Some(until_nul(&text).to_vec()),
            b'K' => self.pending.long_link = Some(until_nul(&text).to_vec()),
            // For all entries, which Go and containerd ignore; it also ends what was pending.
            _ => {
                Pax::read(&text)?;
                self.pending = Pending::default();
            }
        }
        Ok(())
    }

    fn entry(&mut self, kind: u8, header: &Header<'_>, size: u64) -> Result<(), String> {
        let Pending {
            pax,
            long_name,
            long_link,
        } = std::mem::take(&mut self.pending);
        let name = match long_name.or(pax.path) {
            Some(name) => name,
            None => header.name()?,
        };
        let link = long_link.or(pax.link).unwrap_or_else(|| header.link());
        let size = pax.size.unwrap_or(size);
        self.contents.entries += 1;
        if self.contents.entries > ENTRIES_MAX {
            return Err(format!("a layer of it has more than {ENTRIES_MAX} entries"));
        }
        let path = path(&name)?;
        self.check_parents(&path, &name)?;
        match kind {
            b'0' | 0 | b'5' | b'6' => {}
            b'1' => check_hard_link(&link, &name)?,
            b'2' => check_link(&link, &name)?,
            b'3' | b'4' => check_device(kind, header.device()?, &name)?,
            b'S' => return Err(sparse(&name)),
            other => {
                return Err(format!(
                    "{} is of the unknown kind {:?}",
                    shown(&name),
                    char::from(other)
                ));
            }
        }
        check_whiteout(&path, kind, &name)?;
        if path.is_empty() && !matches!(kind, b'5' | 0) {
            return Err("an entry of its tar has no name".into());
        }
        if kind == b'2' && climbs(&path, &link) {
            self.leading_out.insert(hash(&path));
        } else if !self.leading_out.is_empty() {
            self.leading_out.remove(&hash(&path));
        }
        let stored = if matches!(kind, b'0' | 0) { size } else { 0 };
        let taken = if kind == b'5' {
            DISK_BLOCK
        } else {
            stored.div_ceil(DISK_BLOCK).saturating_mul(DISK_BLOCK)
        };
        self.contents.disk_bytes = self.contents.disk_bytes.saturating_add(taken);
        let left = stored
            .checked_add(padding(stored))
            .ok_or_else(|| bad_header("its size"))?;
        self.state = if left == 0 {
            State::Header { after_zero: false }
        } else {
            State::Skip { left }
        };
        Ok(())
    }

    /// Nothing is written through a link that leads out.
    fn check_parents(&self, path: &[&[u8]], name: &[u8]) -> Result<(), String> {
        if self.leading_out.is_empty() {
            return Ok(());
        }
        let mut hasher = DefaultHasher::new();
        for part in path.iter().take(path.len().saturating_sub(1)) {
            part.hash(&mut hasher);
            if self.leading_out.contains(&hasher.finish()) {
                return Err(format!(
                    "{} goes through a link that leads out of the image",
                    shown(name)
                ));
            }
        }
        Ok(())
    }
}

impl Pax {
    /// Records `LENGTH KEY=VALUE\n`, where the length counts itself.
    fn read(text: &[u8]) -> Result<Self, String> {
        let mut pax = Self::default();
        let mut rest = text;
        while !rest.is_empty() {
            let (key, value, after) = record(rest).ok_or_else(|| bad_header("an attribute"))?;
            rest = after;
            if key.starts_with(b"GNU.sparse.") {
                return Err(sparse(b"an entry"));
            }
            let place = match key {
                b"path" => &mut pax.path,
                b"linkpath" => &mut pax.link,
                b"size" => {
                    pax.size = if value.is_empty() {
                        None
                    } else {
                        Some(decimal(value)?)
                    };
                    continue;
                }
                _ => continue,
            };
            if value.contains(&0) {
                return Err(bad_header("a name with a NUL"));
            }
            *place = (!value.is_empty()).then(|| value.to_vec());
        }
        Ok(pax)
    }
}

/// Key, value and what follows.
fn record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = text.iter().take(20).position(|byte| *byte == b' ')?;
    let len: usize = std::str::from_utf8(&text[..space]).ok()?.parse().ok()?;
    let body = text.get(space + 1..len)?;
    let body = body.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    (!key.is_empty() && !key.contains(&0)).then(|| (key, value, &text[len..]))
}

fn decimal(value: &[u8]) -> Result<u64, String> {
    let number = std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse::<i64>().ok());
    number
        .and_then(|number| u64::try_from(number).ok())
        .ok_or_else(|| bad_header("its size"))
}

impl Header<'_> {
    fn field(&self, at: usize, len: usize) -> &[u8] {
        &self.0[at..at + len]
    }

    fn kind(&self) -> u8 {
        self.0[156]
    }

    fn is_ustar(&self) -> bool {
        self.field(257, 6) == b"ustar\0"
    }

    fn is_gnu(&self) -> bool {
        self.field(257, 8) == b"ustar  \0"
    }

    /// The sum over all bytes, the sum's own taken as spaces; old programs counted bytes with a sign.
    fn check(&self) -> Result<(), String> {
        let wanted = number(self.field(148, 8)).ok_or_else(|| bad_header("its checksum"))?;
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for byte in self.0[..148].iter().chain(&[b' '; 8]).chain(&self.0[156..]) {
            unsigned += i64::from(*byte);
            signed += i64::from(byte.cast_signed());
        }
        if i64::try_from(wanted).is_ok_and(|wanted| wanted == unsigned || wanted == signed) {
            Ok(())
        } else {
            Err("one of its layers is no tar, or a damaged one".into())
        }
    }

    fn size(&self) -> Result<u64, String> {
        number(self.field(124, 12)).ok_or_else(|| bad_header("its size"))
    }

    /// With the prefix that the newer format has room for.
    fn name(&self) -> Result<Vec<u8>, String> {
        let name = until_nul(self.field(0, 100));
        let prefix = if self.is_ustar() {
            let is_star = self.field(508, 4) == b"tar\0";
            until_nul(self.field(345, if is_star { 131 } else { 155 }))
        } else if self.is_gnu() {
            // Go takes what is no time for a prefix that an old version of it wrote by mistake.
            let is_time = |at| self.0[at] == 0 || number(self.field(at, 12)).is_some();
            if !is_time(345) || !is_time(357) {
                return Err(bad_header("its times"));
            }
            b""
        } else {
            b""
        };
        Ok(if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        })
    }

    fn link(&self) -> Vec<u8> {
        until_nul(self.field(157, 100)).to_vec()
    }

    fn device(&self) -> Result<(u64, u64), String> {
        if !self.is_ustar() && !self.is_gnu() {
            return Ok((0, 0));
        }
        let part = |at| number(self.field(at, 8)).ok_or_else(|| bad_header("its device number"));
        Ok((part(329)?, part(337)?))
    }
}

/// Octal digits between blanks, or with the first bit set the number itself. None for what is neither, or negative.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        if field[0] & 0x40 != 0 {
            return None;
        }
        let bytes = [&[field[0] & 0x3f], &field[1..]].concat();
        let (high, low) = bytes.split_at(bytes.len().saturating_sub(8));
        let value = low.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        let fits = high.iter().all(|byte| *byte == 0) && i64::try_from(value).is_ok();
        return fits.then_some(value);
    }
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field
        .iter()
        .position(|byte| !is_blank(byte))
        .unwrap_or(field.len());
    let end = field
        .iter()
        .rposition(|byte| !is_blank(byte))
        .map_or(start, |at| at + 1);
    let digits = until_nul(&field[start..end]);
    let digit = |value: u64, byte: &u8| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    };
    digits
        .iter()
        .try_fold(0, digit)
        .filter(|value| i64::try_from(*value).is_ok())
}

fn until_nul(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn up_to(left: u64, len: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(len)
}

/// The parts of a name. An absolute one counts from the image's root, as everywhere.
fn path(name: &[u8]) -> Result<Vec<&[u8]>, String> {
    if name.len() > PATH_LEN_MAX {
        return Err(format!(
            "{} has {} bytes in its name, at most {PATH_LEN_MAX} are taken",
            shown(name),
            name.len()
        ));
    }
    let parts: Vec<&[u8]> = name
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .collect();
    if parts.contains(&&b".."[..]) {
        return Err(format!("{} climbs with \"..\"", shown(name)));
    }
    if parts.iter().any(|part| part.len() > NAME_LEN_MAX) {
        return Err(format!(
            "{} has a part of more than {NAME_LEN_MAX} bytes",
            shown(name)
        ));
    }
    Ok(parts)
}

fn check_hard_link(link: &[u8], name: &[u8]) -> Result<(), String> {
    let target = path(link).map_err(|_| {
        format!(
            "the hard link {} leads out of the image, to {}",
            shown(name),
            shown(link)
        )
    })?;
    if target.is_empty() {
        Err(format!("the hard link {} names no file", shown(name)))
    } else {
        Ok(())
    }
}

/// A link may say anything: what it means is decided where it is followed, in the container.
fn check_link(link: &[u8], name: &[u8]) -> Result<(), String> {
    if (1..=LINK_LEN_MAX).contains(&link.len()) {
        return Ok(());
    }
    Err(format!(
        "the link {} has a target of {} bytes",
        shown(name),
        link.len()
    ))
}

fn check_device(kind: u8, device: (u64, u64), name: &[u8]) -> Result<(), String> {
    if kind == b'3' && DEVICES.contains(&device) {
        return Ok(());
    }
    let what = if kind == b'3' { "character" } else { "block" };
    Err(format!(
        "{} is the {what} device {}:{}; devices are not taken from images",
        shown(name),
        device.0,
        device.1
    ))
}

/// `.wh.NAME` deletes NAME of the layers below, `.wh..wh..opq` all that its directory has there.
fn check_whiteout(path: &[&[u8]], kind: u8, name: &[u8]) -> Result<(), String> {
    let Some((last, parents)) = path.split_last() else {
        return Ok(());
    };
    let wrong = |why: &str| Err(format!("the whiteout {} {why}", shown(name)));
    if parents.iter().any(|part| part.starts_with(WHITEOUT)) {
        return wrong("has something in it");
    }
    let Some(deleted) = last.strip_prefix(WHITEOUT) else {
        return Ok(());
    };
    // aufs wrote them as hard links of one another.
    if !matches!(kind, b'0' | 0 | b'1') {
        return wrong("is no file");
    }
    match deleted {
        b"" | b"." | b".." => wrong("deletes nothing that has a name"),
        _ if deleted.starts_with(WHITEOUT) && *last != OPAQUE => wrong("is of an unknown kind"),
        _ => Ok(()),
    }
}

/// Whether the target of a link, read from where the link lies, goes above the root.
fn climbs(path: &[&[u8]], link: &[u8]) -> bool {
    let mut depth = if link.starts_with(b"/") {
        0
    } else {
        path.len().saturating_sub(1)
    };
    for part in link.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if depth == 0 => return true,
            b".." => depth -= 1,
            _ => depth += 1,
        }
    }
    false
}

fn hash(path: &[&[u8]]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for part in path {
        part.hash(&mut hasher);
    }
    hasher.finish()
}

fn bad_header(what: &str) -> String {
    format!("a header in its tar is malformed: {what}")
}

fn sparse(name: &[u8]) -> String {
    format!("{} is a sparse file, which images may not have", shown(name))
}

/// A name of strangers in a message.
fn shown(name: &[u8]) -> String {
    const SHOWN_MAX: usize = 120;
    let text = String::from_utf8_lossy(&name[..name.len().min(SHOWN_MAX)]).into_owned();
    let dots = if name.len() > SHOWN_MAX { ".." } else { "" };
    format!("{text:?}{dots}")
}

#[cfg(test)]
mod tests;
