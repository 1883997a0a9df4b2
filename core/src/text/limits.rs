//! Limits of the text index.

/// Bytes of the longest term; longer ones are not indexed. Room for a SHA-512 in hexadecimal.
pub const TERM_BYTES_MAX: usize = 128;
/// Distinct terms of a query that are searched; the rest are ignored.
pub const QUERY_TERMS_MAX: usize = 64;
/// Documents in a head that make it due for a segment.
pub const HEAD_DOCS_SEAL: usize = 4096;
/// Bytes of text in a head that make it due for a segment.
pub const HEAD_TEXT_BYTES_SEAL: usize = 1 << 20;
/// Segments of a size class that are merged into one of the next.
pub const MERGE_FACTOR: usize = 8;
/// Documents of the largest segment that a merge makes. (tantivy's own limit is 2^31.)
pub const SEGMENT_DOCS_MAX: u32 = 16 << 20;
/// A segment is rewritten once this part of its documents is dead.
pub const DEAD_FRACTION_MAX: f64 = 0.3;
/// Documents that a search scores between two looks at its budget.
pub const WINDOW_DOCS: usize = 2048;

const _: () = assert!(TERM_BYTES_MAX < 65_530, "tantivy drops longer terms by itself");
const _: () = assert!(HEAD_DOCS_SEAL <= SEGMENT_DOCS_MAX as usize);
const _: () = assert!(MERGE_FACTOR >= 2);
