//! The log's limits, and what must hold between them.

/// Unit of every write, of every offset of a batch, trailer or mark, and of memory alignment, in bytes.
pub const BLOCK_BYTES: usize = 4096;

/// Where the first batch of a segment starts: header block, two mark slots, one spare block.
pub const DATA_OFFSET: usize = 4 * BLOCK_BYTES;

/// Fixed size of a record's header, in bytes.
pub const RECORD_HEADER_BYTES: usize = 64;

/// Records start at multiples of this within a segment, in bytes, so a payload may be an archive that wants 16.
pub const RECORD_ALIGN: usize = 16;

/// Smallest segment, in bytes.
pub const SEGMENT_BYTES_MIN: u64 = 256 << 10;

/// Largest segment, in bytes: offsets fit 32 bits, and recovery holds one segment in memory.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// A batch is sealed once its records reach this many bytes; one record larger than that makes a batch of its own.
pub const BATCH_BYTES_TARGET: usize = 1 << 20;

/// Groups that one trailer or mark can list.
pub const SEAL_GROUPS_MAX: usize = 124;

/// Largest payload of an entry, in bytes. A log with small segments allows less: see [`payload_bytes_max`].
pub const ENTRY_BYTES_MAX: usize = 16 << 20;

/// Largest encoded membership, in bytes: each segment repeats it for each group.
pub const MEMBERSHIP_BYTES_MAX: usize = 16 << 10;

/// Groups that one log can hold, retired ones included.
pub const GROUPS_MAX: usize = 65_536;

/// Batch writes in flight at once, at most.
pub const WRITES_IN_FLIGHT_MAX: usize = 64;

/// Bytes that one read from disk covers, at most, unless a single entry is larger.
pub const READ_BYTES_MAX: usize = 1 << 20;

/// Bytes of other groups' records that a read passes over rather than start a second one.
pub const READ_GAP_BYTES_MAX: usize = 64 << 10;

/// Sequence number at which a leader should move to a new term: half of what the token can count.
pub const SEQUENCES_PER_TERM: u32 = 1 << 31;

/// Largest entry payload that a log with segments of `segment_bytes` takes: a quarter of a segment.
pub const fn payload_bytes_max(segment_bytes: u64) -> usize {
    let quarter = (segment_bytes / 4) as usize;
    if quarter < ENTRY_BYTES_MAX { quarter } else { ENTRY_BYTES_MAX }
}

/// Bytes that the checkpoint of all groups may take in a segment of `segment_bytes`: a quarter of it.
pub const fn checkpoint_bytes_max(segment_bytes: u64) -> usize {
    (segment_bytes / 4) as usize
}

const _: () = {
    assert!(BLOCK_BYTES == gristmill_shardexec::buf::BUF_ALIGN);
    assert!(SEGMENT_BYTES_MAX as usize <= gristmill_shardexec::buf::BUF_BYTES_MAX);
    assert!(SEGMENT_BYTES_MAX <= u32::MAX as u64);
    assert!(SEGMENT_BYTES_MIN.is_multiple_of(BLOCK_BYTES as u64));
    assert!(BLOCK_BYTES.is_multiple_of(RECORD_ALIGN) && RECORD_HEADER_BYTES.is_multiple_of(RECORD_ALIGN));
    assert!(RECORD_HEADER_BYTES + 64 + SEAL_GROUPS_MAX * 32 == BLOCK_BYTES);
    assert!(MEMBERSHIP_BYTES_MAX < payload_bytes_max(SEGMENT_BYTES_MIN));
    assert!(ENTRY_BYTES_MAX + 2 * BLOCK_BYTES < SEGMENT_BYTES_MAX as usize);
};
