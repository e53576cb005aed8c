//! The index record: 24 bytes, little endian, the same form for all kinds.
//!
//! ```text
//!  0        8        12            18      20      24
//!  | value  | length | time        | flags | crc   |
//!  | u64    | u32    | u48 Unix ms | u16   | CRC32 of bytes 0..20
//! ```
//!
//! An index file is the records of one segment, in this order:
//!
//! | place | kind | value | length | time |
//! | --- | --- | --- | --- | --- |
//! | 0 | header | position of the segment's first byte in the whole stream | format version | creation |
//! | 1 | loss | bytes lost right behind the segment's bytes | span of the loss in ms | end of the loss |
//! | 2.. | data | offset in the segment | bytes | when they were taken from the FIFO |
//!
//! Record 1 exists from the start and is written in place, so that a loss can be noted on a full disk. When a segment is
//! removed its own bytes are added to record 1 with [`flag::REMOVED`] and the index stays until a later segment of the
//! stream is removed: the positions in the headers make every loss exact.

/// Bytes of a record on disk.
pub const RECORD_BYTES: usize = 24;
/// The same, for arithmetic on file positions.
pub const RECORD_SIZE: u64 = RECORD_BYTES as u64;
/// Header and loss record: where the data records start.
pub const FIRST_DATA: u64 = 2 * RECORD_SIZE;
/// Version of the index format, in the header's length.
pub const FORMAT_VERSION: u32 = 1;

const TIME_MAX: u64 = (1 << 48) - 1;

/// Bits of [`Record::flags`].
pub mod flag {
    pub const KIND_MASK: u16 = 0x000f;
    pub const HEADER: u16 = 1;
    pub const LOSS: u16 = 2;
    pub const DATA: u16 = 3;
    /// The time is that of the recovery, not of the bytes: the keeper was killed between bytes and record.
    pub const RECOVERED: u16 = 0x0010;
    /// Lost to the quota of the run or of the store.
    pub const QUOTA: u16 = 0x0020;
    /// Lost because the disk was full.
    pub const DISK_FULL: u16 = 0x0040;
    /// Lost because the disk failed.
    pub const IO_ERROR: u16 = 0x0080;
    /// The segment's own bytes are among the lost ones.
    pub const REMOVED: u16 = 0x0100;
    /// All reasons of a loss.
    pub const REASONS: u16 = QUOTA | DISK_FULL | IO_ERROR;
}

/// One record of an index file; see the module for the meaning by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub value: u64,
    pub length: u32,
    pub time_ms: u64,
    pub flags: u16,
}

impl Record {
    /// The kind bits of the flags.
    #[must_use]
    pub const fn kind(&self) -> u16 {
        self.flags & flag::KIND_MASK
    }

    /// For a data record: the offset behind its last byte.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.value.saturating_add(self.length as u64)
    }

    /// The bytes for the disk. Times beyond the year 10889 are cut to it.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        let time = self.time_ms.min(TIME_MAX).to_le_bytes();
        bytes[0..8].copy_from_slice(&self.value.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..18].copy_from_slice(&time[0..6]);
        bytes[18..20].copy_from_slice(&self.flags.to_le_bytes());
        let crc = crc32fast::hash(&bytes[0..20]);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a record; `None` when the bytes are too few or the checksum is wrong.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; RECORD_BYTES] = bytes.get(0..RECORD_BYTES)?.try_into().ok()?;
        let (body, crc) = bytes.split_at(20);
        if crc32fast::hash(body).to_le_bytes() != crc {
            return None;
        }
        let mut time = [0; 8];
        time[0..6].copy_from_slice(&body[12..18]);
        Some(Self {
            value: u64::from_le_bytes(body[0..8].try_into().ok()?),
            length: u32::from_le_bytes(body[8..12].try_into().ok()?),
            time_ms: u64::from_le_bytes(time),
            flags: u16::from_le_bytes(body[18..20].try_into().ok()?),
        })
    }
}

/// Walks the data records of an index in order and says where it must be cut.
///
/// A record is kept when it is whole, is a data record, starts where the one before ended and ends within the segment's
/// real length. The first that is not ends the walk: everything behind it is cut.
#[derive(Debug, Clone)]
pub struct IndexCheck {
    log_bytes: u64,
    /// How many bytes of the segment the kept records cover.
    pub covered: u64,
    /// How many data records were kept.
    pub kept: u64,
    /// The last record kept.
    pub last: Option<Record>,
}

impl IndexCheck {
    /// A check against a segment of `log_bytes` bytes.
    #[must_use]
    pub const fn new(log_bytes: u64) -> Self {
        Self {
            log_bytes,
            covered: 0,
            kept: 0,
            last: None,
        }
    }

    /// Takes the next 24 bytes; `false` means cut here.
    pub fn keep(&mut self, bytes: &[u8]) -> bool {
        let Some(record) = Record::decode(bytes) else {
            return false;
        };
        let fits = record.kind() == flag::DATA
            && record.value == self.covered
            && record.length > 0
            && record.end() <= self.log_bytes;
        if fits {
            self.covered = record.end();
            self.kept += 1;
            self.last = Some(record);
        }
        fits
    }

    /// The length to which the index file is cut.
    #[must_use]
    pub const fn index_bytes(&self) -> u64 {
        FIRST_DATA + self.kept * RECORD_SIZE
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn data(value: u64, length: u32) -> Record {
        Record {
            value,
            length,
            time_ms: 1_700_000_000_000,
            flags: flag::DATA,
        }
    }

    #[test]
    fn the_format_on_disk_stays_as_it_is() {
        let bytes = data(0x0102, 7).encode();
        assert_eq!(
            bytes[0..20],
            [
                2, 1, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0x68, 0xe5, 0xcf, 0x8b, 1, 3, 0
            ]
        );
        assert_eq!(Record::decode(&bytes), Some(data(0x0102, 7)));
    }

    #[test]
    fn a_page_of_zeroes_is_no_record() {
        assert_eq!(Record::decode(&[0; RECORD_BYTES]), None);
    }

    fn walk(index: &[u8], log_bytes: u64) -> IndexCheck {
        let mut check = IndexCheck::new(log_bytes);
        for record in index.chunks(RECORD_BYTES) {
            if !check.keep(record) {
                break;
            }
        }
        check
    }

    proptest! {
        #[test]
        fn decode_gives_back_what_encode_wrote(
            value: u64, length: u32, time_ms in 0..=TIME_MAX, flags: u16,
        ) {
            let record = Record { value, length, time_ms, flags };
            prop_assert_eq!(Record::decode(&record.encode()), Some(record));
        }

        #[test]
        fn one_flipped_bit_is_found(bit in 0..RECORD_BYTES * 8) {
            let mut bytes = data(99, 5).encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Record::decode(&bytes), None);
        }

        /// Proves: after any damage the kept records are a prefix of the true ones, cover no byte that is not there,
        /// and reach up to the damage.
        #[test]
        fn a_damaged_index_is_cut_to_a_true_prefix(
            lengths in prop::collection::vec(1_u32..5_000, 1..40),
            missing_log in 0_u64..20_000,
            cut in any::<prop::sample::Index>(),
            damage in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let mut index = Vec::new();
            let mut ends = vec![0_u64];
            for length in &lengths {
                let start = *ends.last().expect("starts with one");
                index.extend_from_slice(&data(start, *length).encode());
                ends.push(start + u64::from(*length));
            }
            let written: u64 = lengths.iter().map(|length| u64::from(*length)).sum();
            let log_bytes = written.saturating_sub(missing_log);
            index.truncate(cut.index(index.len() + 1));
            let whole = index.len() / RECORD_BYTES;
            let damaged = damage.filter(|_| whole > 0).map(|place| place.index(whole * RECORD_BYTES));
            if let Some(place) = damaged {
                index[place] ^= 0x40;
            }
            let check = walk(&index, log_bytes);
            let intact = damaged.map_or(whole, |place| place / RECORD_BYTES);
            let expected = (0..=intact).rev().find(|count| ends[*count] <= log_bytes).expect("zero fits");
            prop_assert_eq!(check.kept, expected as u64);
            prop_assert_eq!(check.covered, ends[expected]);
        }
    }
}
