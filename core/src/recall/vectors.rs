//! The vector leg of one namespace: the exact index of `gristmill-vector`, and which slot each of its rows belongs to.
//!
//! The later graph index takes the older rows over and stands beside the flat segment behind the same trait
//! (`gristmill_vector::VectorIndex`); what is not in the graph yet stays here.

use super::rank::Ranked;
use super::roster::Roster;
use gristmill_rpc::ids::GrainId;
use gristmill_vector::{Allowed, FlatSegment, Kernel, Metric, Progress, Scan, VectorError, VectorIndex};

/// The vectors of a namespace.
pub(super) struct Vectors {
    segment: FlatSegment,
    /// Slot of each row; of no meaning where the row is not live.
    slots: Vec<u32>,
    incoming: Vec<f32>,
}

/// A search of the vector leg.
pub(super) struct VectorSearch {
    query: Vec<f32>,
    limit: usize,
    scan: Scan,
}

impl Vectors {
    /// For vectors of this dimension, which is not zero.
    pub fn new(dimension: usize, kernel: Kernel) -> Result<Vectors, VectorError> {
        let segment = FlatSegment::new(dimension, Metric::Cosine, kernel)?;
        Ok(Vectors { segment, slots: Vec::new(), incoming: Vec::new() })
    }

    /// Adds the vector of a grain. Returns its row.
    pub fn push(&mut self, id: GrainId, slot: u32, vector: impl Iterator<Item = f32>) -> Result<u32, VectorError> {
        self.incoming.clear();
        self.incoming.extend(vector);
        let row = self.segment.push(tie_breaker(id), &self.incoming)?;
        if self.slots.len() <= row as usize {
            self.slots.resize(row as usize + 1, 0);
        }
        self.slots[row as usize] = slot;
        Ok(row)
    }

    /// Takes a live row out.
    pub fn delete(&mut self, row: u32) {
        self.segment.delete(row);
    }

    /// Begins a search for the `limit` best rows.
    pub fn search(&self, query: Vec<f32>, limit: usize, allowed: Allowed) -> Result<VectorSearch, VectorError> {
        let scan = self.segment.start(&query, limit, allowed)?;
        Ok(VectorSearch { query, limit, scan })
    }

    /// Carries a search on for less than a slice. Returns whether it is complete.
    pub fn step(&self, search: &mut VectorSearch) -> bool {
        let half_a_slice = self.segment.rows_per_slice() / 2;
        self.segment.step(&mut search.scan, half_a_slice) == Progress::Done
    }

    /// The hits of a complete search and of the rows that came while it ran, best first.
    pub fn finish(
        &self,
        search: VectorSearch,
        mut came: Vec<u32>,
        roster: &Roster,
    ) -> Result<Vec<Ranked>, VectorError> {
        let mut hits = self.segment.finish(search.scan);
        if !came.is_empty() {
            came.sort_unstable();
            hits.extend(self.segment.search(&search.query, search.limit, Allowed::Rows(came))?);
        }
        let ranked = hits.iter().filter_map(|hit| {
            let id = roster.id(self.slots[hit.row as usize])?;
            Some(Ranked { id, score: hit.score })
        });
        let mut ranked: Vec<Ranked> = ranked.collect();
        ranked.sort_unstable();
        // A row that came after the recall began but before this search did is there twice.
        ranked.dedup();
        ranked.truncate(search.limit);
        Ok(ranked)
    }

    /// Live rows.
    pub fn len(&self) -> usize {
        self.segment.len()
    }

    /// Bytes of memory held.
    pub fn memory(&self) -> usize {
        self.segment.memory_bytes()
            + self.slots.capacity() * size_of::<u32>()
            + self.incoming.capacity() * size_of::<f32>()
    }
}

/// What the segment orders equal scores by: as much of the id as fits. (Of grains whose ids agree in these eight bytes and
/// whose scores are equal to the bit, which ones make the last place is open; the order of those returned is not.)
fn tie_breaker(id: GrainId) -> u64 {
    u64::from_be_bytes(id.0.as_chunks().0[0])
}
