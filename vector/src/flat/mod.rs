//! The exact index: every search reads every code, and the answer equals a brute force over the f32 vectors.
//!
//! ```text
//!   push ──> f32 vector ──quantize──> 64-byte-aligned int8 row      chunk: up to 2 MiB of vectors, its codes, ids, errors, live bits
//!
//!   Scan::step:  codes ──kernel, 64 rows──> int32 products ──bound──> candidates ──f32 product, best first──> top k
//!                 384 B a row                                 (few)                 1.5 KB a candidate
//! ```
//!
//! **Exactness.** A row is passed over only if the upper bound of its score (product of the codes + what quantising the query and the row
//! can have cost + the rounding of the f32 product, see [`scan`]) is below the k-th best f32 score found so far. So the hits are those of a
//! brute force with [`Kernel::dot_f32`], ties included, whatever the scale; a bad scale costs time, never a hit. This is the filter-and-refine
//! search of the VA-file (Weber, Schek, Blott, VLDB 1998) with the optimal order of Seidl and Kriegel (SIGMOD 1998).
//!
//! **Rows.** A row keeps its number until deleted; the slot is zeroed at once and given to the next push (last freed, first used), so memory
//! follows the most rows ever live. A search under way recognises a slot that was filled after it began, and passes it over.
//!
//! **Scale.** [`ScaleRule`] chooses the exponent; when it moves, each push codes one stale chunk anew until none is left. A chunk knows
//! its own scale, so searches are exact in between.
//!
//! **Invariants.** All rows of a chunk have its scale. A free slot's codes, vector and id are zero. `born` grows with every push.
//!
//! **Limits.** [`ROWS_MAX`] rows, [`K_MAX`] hits; memory per 384-d row: 384 + 1536 + 20 bytes and a bit.

mod chunk;
mod scan;
#[cfg(test)]
mod tests;

pub use scan::{Scan, ScanCounters};

use chunk::{Chunk, rows_per_chunk};

use crate::kernel::Kernel;
use crate::limits::{BLOCK_ROWS, K_MAX, ROWS_MAX, SLICE_BYTES};
use crate::quantize::{self, Quantizer, ScaleRule};
use crate::{Allowed, Hit, Metric, Progress, VectorError, VectorIndex};

/// An exact-scanned set of vectors of one dimension.
#[derive(Debug)]
pub struct FlatSegment {
    dimension: usize,
    metric: Metric,
    kernel: Kernel,
    rule: ScaleRule,
    chunks: Vec<Chunk>,
    /// Chunks before this one have the scale that the rule wants, which was this exponent's when last looked at.
    fresh_chunks: usize,
    fresh_exponent: i8,
    /// log2 of the rows in a chunk.
    chunk_shift: u32,
    /// Slots used now or before.
    rows: u32,
    free: Vec<u32>,
    /// Pushes and deletes so far.
    changes: u64,
    /// Upper bound of ‖x‖₂ over all rows ever held.
    length_max: f32,
    components_clamped: u64,
    /// The pushed vector, scaled if the metric asks for it.
    incoming: Vec<f32>,
}

impl FlatSegment {
    /// An empty segment for vectors of `dimension` components.
    pub fn new(dimension: usize, metric: Metric, kernel: Kernel) -> Result<Self, VectorError> {
        quantize::check_dimension(dimension)?;
        Ok(Self {
            dimension,
            metric,
            kernel,
            rule: ScaleRule::default(),
            chunks: Vec::new(),
            fresh_chunks: 0,
            fresh_exponent: 0,
            chunk_shift: rows_per_chunk(dimension).ilog2(),
            rows: 0,
            free: Vec::new(),
            changes: 0,
            length_max: 0.0,
            components_clamped: 0,
            incoming: Vec::with_capacity(dimension),
        })
    }

    /// Takes in a vector under the caller's `id` and returns its row. Ids need not be distinct here; scores that tie are ordered by them.
    pub fn push(&mut self, id: u64, vector: &[f32]) -> Result<u32, VectorError> {
        let mut incoming = std::mem::take(&mut self.incoming);
        let row =
            prepare(vector, self.dimension, self.metric, &mut incoming).and_then(|()| self.fill_row(id, &incoming));
        self.incoming = incoming;
        row
    }

    /// The id under which a live row came in.
    pub fn id(&self, row: u32) -> Option<u64> {
        let (chunk, slot) = self.live_slot(row)?;
        Some(chunk.id(slot))
    }

    /// A live row's vector, scaled to length 1 if the metric is the cosine.
    pub fn vector(&self, row: u32) -> Option<&[f32]> {
        let (chunk, slot) = self.live_slot(row)?;
        Some(chunk.vector(slot))
    }

    /// Slots in use or used before: rows are below this.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// The codes of all slots in the order of a scan, in 64-byte-aligned pieces; rows are padded to whole lines.
    pub fn codes(&self) -> impl Iterator<Item = &[i8]> {
        self.chunks.iter().map(Chunk::codes)
    }

    /// Components cut off at ±127 in all vectors pushed so far, as they were first coded.
    pub fn components_clamped(&self) -> u64 {
        self.components_clamped
    }

    /// Live rows that the scale in force clamps.
    pub fn rows_clamped(&self) -> u32 {
        self.rule.rows_clamped()
    }

    /// Rows that a search should score before it lets others run: [`SLICE_BYTES`] of codes.
    pub fn rows_per_slice(&self) -> usize {
        SLICE_BYTES / self.dimension.next_multiple_of(crate::kernel::CODES_PER_LINE)
    }

    fn fill_row(&mut self, id: u64, vector: &[f32]) -> Result<u32, VectorError> {
        if self.free.is_empty() && self.rows == ROWS_MAX {
            return Err(VectorError::Full);
        }
        self.rule.add(Quantizer::exponent_needed(vector));
        let row = self.free_row();
        self.refresh();
        self.changes += 1;
        let (changes, slot, index) = (self.changes, self.slot_of(row), self.chunk_of(row));
        let encoded = self.chunks[index].fill(slot, id, changes, vector);
        self.length_max = self.length_max.max(encoded.length);
        self.components_clamped += u64::from(encoded.clamped);
        Ok(row)
    }

    /// An empty slot: the last freed, or a new one.
    fn free_row(&mut self) -> u32 {
        if let Some(row) = self.free.pop() {
            return row;
        }
        let row = self.rows;
        if self.chunk_of(row) == self.chunks.len() {
            // The first chunk grows with its rows: most segments are small.
            let reserved = if self.chunks.is_empty() { 0 } else { 1 << self.chunk_shift };
            self.chunks.push(Chunk::new(self.wanted_quantizer(), reserved));
        }
        let index = self.chunk_of(row);
        let slot = self.chunks[index].grow();
        assert_eq!(slot, self.slot_of(row), "chunks fill in order");
        self.rows += 1;
        row
    }

    /// Codes at most one chunk anew: the first whose scale is not the one that the rule wants.
    fn refresh(&mut self) {
        let wanted = self.wanted_quantizer();
        if wanted.exponent() != self.fresh_exponent {
            (self.fresh_chunks, self.fresh_exponent) = (0, wanted.exponent());
        }
        while let Some(chunk) = self.chunks.get_mut(self.fresh_chunks) {
            if chunk.quantizer() != wanted {
                chunk.requantize(wanted);
                return;
            }
            self.fresh_chunks += 1;
        }
    }

    fn wanted_quantizer(&self) -> Quantizer {
        Quantizer::new(self.dimension, self.rule.exponent())
            .expect("the dimension was checked when the segment was made")
    }

    fn chunk_of(&self, row: u32) -> usize {
        (row >> self.chunk_shift) as usize
    }

    fn slot_of(&self, row: u32) -> usize {
        (row & ((1 << self.chunk_shift) - 1)) as usize
    }

    fn live_slot(&self, row: u32) -> Option<(&Chunk, usize)> {
        let slot = self.slot_of(row);
        self.chunks.get(self.chunk_of(row)).filter(|chunk| chunk.is_live(slot)).map(|chunk| (chunk, slot))
    }
}

/// Checks a vector and copies it, scaled if the metric asks for it.
fn prepare(vector: &[f32], dimension: usize, metric: Metric, prepared: &mut Vec<f32>) -> Result<(), VectorError> {
    quantize::check(vector, dimension)?;
    prepared.clear();
    prepared.extend_from_slice(vector);
    match metric {
        Metric::Cosine => quantize::normalise(prepared),
        Metric::InnerProduct => Ok(()),
    }
}

impl VectorIndex for FlatSegment {
    type Search = Scan;

    fn dimension(&self) -> usize {
        self.dimension
    }

    fn metric(&self) -> Metric {
        self.metric
    }

    fn len(&self) -> usize {
        self.rows as usize - self.free.len()
    }

    fn memory_bytes(&self) -> usize {
        self.chunks.iter().map(Chunk::memory_bytes).sum::<usize>()
            + self.chunks.capacity() * size_of::<Chunk>()
            + self.free.capacity() * size_of::<u32>()
            + self.incoming.capacity() * size_of::<f32>()
            + size_of::<Self>()
    }

    fn delete(&mut self, row: u32) {
        let (index, slot) = (self.chunk_of(row), self.slot_of(row));
        assert!(self.live_slot(row).is_some(), "row {row} is not live");
        self.rule.remove(Quantizer::exponent_needed(self.chunks[index].vector(slot)));
        self.chunks[index].clear(slot);
        self.free.push(row);
        self.changes += 1;
    }

    fn start(&self, query: &[f32], k: usize, allowed: Allowed) -> Result<Scan, VectorError> {
        if !(1..=K_MAX).contains(&k) {
            return Err(VectorError::WrongK { k });
        }
        let mut prepared = Vec::with_capacity(self.dimension);
        prepare(query, self.dimension, self.metric, &mut prepared)?;
        Ok(Scan::new(prepared, k, allowed, self.rows, self.changes))
    }

    fn step(&self, search: &mut Scan, budget_rows: usize) -> Progress {
        search.step(self, budget_rows)
    }

    fn finish(&self, search: Scan) -> Vec<Hit> {
        search.finish(self)
    }
}

const _: () = assert!(BLOCK_ROWS == u64::BITS as usize);
