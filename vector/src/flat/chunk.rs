//! A fixed number of rows: codes, vectors and what a search needs to know of each.

use crate::kernel::{self, CODES_PER_LINE, CodeLine};
use crate::limits::{BLOCK_ROWS, CHUNK_BYTES_MAX};
use crate::quantize::{Encoded, Quantizer};

/// Rows whose f32 vectors fill at most [`CHUNK_BYTES_MAX`]: a power of two, at least one block.
pub(super) fn rows_per_chunk(dimension: usize) -> usize {
    let rows = CHUNK_BYTES_MAX / (dimension * size_of::<f32>());
    let rows = 1 << rows.ilog2();
    // Short vectors: enough rows that a chunk's fixed cost does not count, few enough that coding them anew stays short.
    rows.clamp(BLOCK_ROWS, 64 * BLOCK_ROWS)
}

/// Column storage of up to [`rows_per_chunk`] rows. All columns have the same number of rows; the first chunk of a segment grows, later
/// ones are made at full size.
#[derive(Debug)]
pub(super) struct Chunk {
    /// With which the codes below were made.
    quantizer: Quantizer,
    codes: Vec<CodeLine>,
    vectors: Vec<f32>,
    ids: Vec<u64>,
    /// The segment's change that filled the slot.
    born: Vec<u64>,
    /// Upper bound of ‖x − scale · codes‖₂.
    errors: Vec<f32>,
    /// The largest of `errors` in each block.
    block_errors: Vec<f32>,
    /// One bit a row, one word a block.
    live: Vec<u64>,
}

impl Chunk {
    pub fn new(quantizer: Quantizer, rows: usize) -> Self {
        let lines = rows * lines_per_row(quantizer.dimension());
        Self {
            quantizer,
            codes: Vec::with_capacity(lines),
            vectors: Vec::with_capacity(rows * quantizer.dimension()),
            ids: Vec::with_capacity(rows),
            born: Vec::with_capacity(rows),
            errors: Vec::with_capacity(rows),
            block_errors: Vec::with_capacity(rows.div_ceil(BLOCK_ROWS)),
            live: Vec::with_capacity(rows.div_ceil(BLOCK_ROWS)),
        }
    }

    pub fn quantizer(&self) -> Quantizer {
        self.quantizer
    }

    /// Slots in use or used before.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    pub fn is_live(&self, slot: usize) -> bool {
        self.live.get(slot / BLOCK_ROWS).is_some_and(|word| word >> (slot % BLOCK_ROWS) & 1 == 1)
    }

    /// The live bits of one block.
    pub fn live_bits(&self, block: usize) -> u64 {
        self.live[block]
    }

    pub fn id(&self, slot: usize) -> u64 {
        self.ids[slot]
    }

    pub fn born(&self, slot: usize) -> u64 {
        self.born[slot]
    }

    pub fn error(&self, slot: usize) -> f32 {
        self.errors[slot]
    }

    pub fn block_error(&self, block: usize) -> f32 {
        self.block_errors[block]
    }

    pub fn vector(&self, slot: usize) -> &[f32] {
        let dimension = self.quantizer.dimension();
        &self.vectors[slot * dimension..][..dimension]
    }

    /// All codes, row by row, each padded to whole lines.
    pub fn codes(&self) -> &[i8] {
        kernel::codes(&self.codes)
    }

    /// The codes of `count` rows from `first`.
    pub fn row_codes(&self, first: usize, count: usize) -> &[i8] {
        let stride = self.stride();
        &self.codes()[first * stride..][..count * stride]
    }

    /// Codes from one row to the next.
    pub fn stride(&self) -> usize {
        lines_per_row(self.quantizer.dimension()) * CODES_PER_LINE
    }

    /// Adds an empty slot behind the others.
    pub fn grow(&mut self) -> usize {
        let slot = self.rows();
        self.codes.resize(self.codes.len() + lines_per_row(self.quantizer.dimension()), CodeLine::ZERO);
        self.vectors.resize(self.vectors.len() + self.quantizer.dimension(), 0.0);
        self.ids.push(0);
        self.born.push(0);
        self.errors.push(0.0);
        if slot.is_multiple_of(BLOCK_ROWS) {
            self.block_errors.push(0.0);
            self.live.push(0);
        }
        slot
    }

    /// Fills an empty slot.
    pub fn fill(&mut self, slot: usize, id: u64, born: u64, vector: &[f32]) -> Encoded {
        assert!(!self.is_live(slot), "slot {slot} is taken");
        let dimension = self.quantizer.dimension();
        self.vectors[slot * dimension..][..dimension].copy_from_slice(vector);
        self.ids[slot] = id;
        self.born[slot] = born;
        self.live[slot / BLOCK_ROWS] |= 1 << (slot % BLOCK_ROWS);
        self.encode(slot)
    }

    /// Empties a slot and overwrites what it held.
    pub fn clear(&mut self, slot: usize) {
        assert!(self.is_live(slot), "slot {slot} holds nothing");
        let (dimension, lines) = (self.quantizer.dimension(), lines_per_row(self.quantizer.dimension()));
        self.codes[slot * lines..][..lines].fill(CodeLine::ZERO);
        self.vectors[slot * dimension..][..dimension].fill(0.0);
        self.ids[slot] = 0;
        self.errors[slot] = 0.0;
        self.live[slot / BLOCK_ROWS] &= !(1 << (slot % BLOCK_ROWS));
        let block = slot / BLOCK_ROWS;
        let errors = self.errors[block * BLOCK_ROWS..].iter().take(BLOCK_ROWS);
        self.block_errors[block] = errors.fold(0.0, |max, &error| max.max(error));
    }

    /// Codes every live row anew.
    pub fn requantize(&mut self, quantizer: Quantizer) {
        assert_eq!(quantizer.dimension(), self.quantizer.dimension(), "a segment has one dimension");
        self.quantizer = quantizer;
        self.block_errors.fill(0.0);
        for slot in 0..self.rows() {
            if self.is_live(slot) {
                self.encode(slot);
            }
        }
    }

    pub fn memory_bytes(&self) -> usize {
        self.codes.capacity() * size_of::<CodeLine>()
            + (self.vectors.capacity() + self.errors.capacity() + self.block_errors.capacity()) * size_of::<f32>()
            + (self.ids.capacity() + self.born.capacity() + self.live.capacity()) * size_of::<u64>()
    }

    fn encode(&mut self, slot: usize) -> Encoded {
        let (dimension, lines) = (self.quantizer.dimension(), lines_per_row(self.quantizer.dimension()));
        let vector = &self.vectors[slot * dimension..][..dimension];
        let encoded = self.quantizer.encode(vector, kernel::codes_mut(&mut self.codes[slot * lines..][..lines]));
        self.errors[slot] = encoded.error;
        let block_error = &mut self.block_errors[slot / BLOCK_ROWS];
        *block_error = block_error.max(encoded.error);
        encoded
    }
}

fn lines_per_row(dimension: usize) -> usize {
    dimension.div_ceil(CODES_PER_LINE)
}
