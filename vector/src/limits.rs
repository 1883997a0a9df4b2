//! Limits that several modules share, and the relations between them.

use crate::kernel::{CODES_MAX, CODES_PER_LINE};

/// Components of the longest vector.
pub const DIMENSION_MAX: usize = 4096;

/// Largest magnitude of a component, 2⁵⁰ ≈ 10¹⁵: no product, sum or square of accepted vectors leaves the finite f32.
pub const COMPONENT_ABS_MAX: f32 = (1_u64 << 50) as f32;

/// Rows of one segment, deleted ones included.
pub const ROWS_MAX: u32 = 1 << 24;

/// Hits of one search.
pub const K_MAX: usize = 1024;

/// Rows that one kernel call scores, one word of the live bits covers, and one error bound sums up.
pub const BLOCK_ROWS: usize = 64;

/// Bytes of f32 vectors in one chunk of a segment at most. A segment grows by chunks, so that no growth ever copies more than this.
pub const CHUNK_BYTES_MAX: usize = 2 << 20;

/// Bytes of codes that one slice of a search reads: about 150 µs at the 37 GB/s that one core reads, under the 250 µs after which a search
/// should let others run.
pub const SLICE_BYTES: usize = 5 << 20;

const _: () = assert!(DIMENSION_MAX <= CODES_MAX && DIMENSION_MAX.is_multiple_of(CODES_PER_LINE));
const _: () = assert!(CHUNK_BYTES_MAX / (DIMENSION_MAX * size_of::<f32>()) >= BLOCK_ROWS);
const _: () =
    assert!((COMPONENT_ABS_MAX as f64) * (COMPONENT_ABS_MAX as f64) * (DIMENSION_MAX as f64) < f32::MAX as f64);
