//! Limits of recall.

use gristmill_rpc::limits::{FRAME_BODY_BYTES_MAX, RECALL_CANDIDATES_MAX, VECTOR_DIMENSIONS_MAX, VECTOR_NORM_MAX};

/// Bytes that the text heads of a shard hold before the largest is made a segment, however few documents it has. A head
/// takes several times the memory of a segment.
pub const HEADS_BYTES_SOFT: usize = 32 << 20;
/// Bytes that the text heads of a shard hold at the most: above, whoever applies has to wait for the builder.
pub const HEADS_BYTES_MAX: usize = 128 << 20;
/// Postings that the text leg reads between two looks at the clock: 20 to 80 µs.
pub const TEXT_STEP_POSTINGS: usize = 8 << 10;
/// Keys that the relation leg and the subject filter read between two looks at the clock: 20 to 60 µs.
pub const SCAN_STEP_KEYS: usize = 128;
/// Documents that the builder looks at between two looks at the clock.
pub const PICK_STEP_DOCS: u32 = 4096;
/// Slots turned into rows of the vector leg between two looks at the clock.
pub const FILTER_STEP_SLOTS: usize = 4096;
/// Bytes of grains that travel with a recall's hits. Later hits come without their grain.
pub const HIT_GRAINS_BYTES_MAX: usize = 6 << 20;

const _: () = assert!(HEADS_BYTES_SOFT < HEADS_BYTES_MAX);
const _: () = assert!(HIT_GRAINS_BYTES_MAX + (1 << 20) < FRAME_BODY_BYTES_MAX as usize);
const _: () = assert!(RECALL_CANDIDATES_MAX as usize <= gristmill_vector::limits::K_MAX);
const _: () = assert!(VECTOR_DIMENSIONS_MAX <= gristmill_vector::limits::DIMENSION_MAX);
const _: () = assert!(VECTOR_NORM_MAX < gristmill_vector::limits::COMPONENT_ABS_MAX as f64);
