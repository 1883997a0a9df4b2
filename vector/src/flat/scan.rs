//! A search under way.
//!
//! **The bound.** Let q = s_q q̂ + r_q and x = s_x x̂ + r_x, codes under a hat. Then
//! `q·x = s_q s_x q̂·x̂ + s_q q̂·r_x + r_q·x`, so by Cauchy and Schwarz
//! `|q·x − s_q s_x q̂·x̂| ≤ ‖s_q q̂‖ ‖r_x‖ + ‖r_q‖ ‖x‖`. The f32 product that hits are ranked by differs from q·x by at most
//! `γ ‖q‖ ‖x‖`, γ the usual bound on its chain of additions (Higham, Accuracy and Stability of Numerical Algorithms, 3.1), and by what
//! underflow can lose. `‖r_x‖` is kept per row, its maximum per block; `‖x‖` by its maximum.
//!
//! **The order.** Candidates wait until [`Scan::capacity`] of them are there, or the codes are read; then the best by upper bound are
//! scored in f32. That raises the floor (the k-th best score), which drops most of the others unscored. When no floor helps (vectors all
//! alike), all are scored, and the search costs as much as a scan of the f32 vectors, but never more memory.

use super::FlatSegment;
use super::chunk::Chunk;
use crate::kernel::F32_LANES;
use crate::limits::BLOCK_ROWS;
use crate::quantize::QueryCode;
use crate::top::TopK;
use crate::{Allowed, Hit, Progress};

/// Candidates that wait at most, at least; four for each hit otherwise.
const CANDIDATES_MIN: usize = 128;

/// Rows of codes that cost as much time as one f32 product with a vector that is not in the cache.
const RERANK_COST_ROWS: usize = 8;

/// What a search did so far: for `explain`, and to see whether the bound pays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanCounters {
    /// Rows whose codes were read.
    pub rows_scanned: u64,
    /// Rows whose upper bound reached the floor of that moment.
    pub candidates: u64,
    /// Rows scored in f32.
    pub rows_reranked: u64,
}

/// A search of a [`FlatSegment`], between two slices. The segment may change in between: the search sees the rows that were live when it
/// began and still are when it ends, so concurrent deletes can leave it with fewer hits than k.
#[derive(Debug)]
pub struct Scan {
    query: Vec<f32>,
    code: QueryCode,
    allowed: Allowed,
    /// Slots from here on came later.
    rows_end: u32,
    /// Slots filled after this change came later.
    started: u64,
    /// The next row, or the next place in the list of allowed rows.
    next: usize,
    top: TopK,
    /// Ordered by rising upper bound while `refining`.
    candidates: Vec<Candidate>,
    /// Candidates that wait at most.
    capacity: usize,
    refining: bool,
    counters: ScanCounters,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    upper: f32,
    row: u32,
}

/// What turns a product of codes into a range of scores, for one chunk.
#[derive(Clone, Copy)]
struct Bound {
    /// Score of one unit of the product: s_q s_x.
    unit: f64,
    /// What does not depend on the row.
    fixed: f64,
    /// By which a row's error counts: ‖s_q q̂‖.
    by_error: f64,
}

impl Bound {
    /// Products below this mean scores below `floor` for rows whose error is at most `error`.
    fn threshold(&self, floor: f32, error: f32) -> i32 {
        let product = (f64::from(floor) - self.fixed - self.by_error * f64::from(error)) / self.unit;
        // A cast saturates; one less takes care of rounding.
        (product.floor() as i32).saturating_sub(1)
    }

    /// The highest score that a row of this product and error can have.
    fn upper(&self, product: i32, error: f32) -> f32 {
        crate::quantize::round_up(f64::from(product) * self.unit + self.fixed + self.by_error * f64::from(error))
    }
}

impl Scan {
    pub(super) fn new(query: Vec<f32>, k: usize, allowed: Allowed, rows_end: u32, started: u64) -> Self {
        if let Allowed::Rows(rows) = &allowed {
            assert!(rows.is_sorted_by(|a, b| a < b), "allowed rows ascend and are distinct");
        }
        let capacity = CANDIDATES_MIN.max(4 * k);
        Self {
            code: QueryCode::new(&query),
            query,
            allowed,
            rows_end,
            started,
            next: 0,
            top: TopK::new(k),
            candidates: Vec::with_capacity(capacity + BLOCK_ROWS),
            capacity,
            refining: false,
            counters: ScanCounters::default(),
        }
    }

    /// What the search did so far.
    pub fn counters(&self) -> ScanCounters {
        self.counters
    }

    pub(super) fn step(&mut self, segment: &FlatSegment, budget_rows: usize) -> Progress {
        let mut budget = budget_rows.max(1);
        loop {
            if self.refining {
                self.refine(segment, &mut budget);
            } else if self.is_read() {
                if self.candidates.is_empty() {
                    return Progress::Done;
                }
                self.begin_refining();
            } else {
                self.scan(segment, &mut budget);
            }
            if budget == 0 {
                return Progress::More;
            }
        }
    }

    pub(super) fn finish(self, segment: &FlatSegment) -> Vec<Hit> {
        assert!(self.is_read() && self.candidates.is_empty(), "the search is not done");
        let mut hits = self.top.into_hits();
        hits.retain(|hit| is_visible(segment, hit.row, self.started));
        hits
    }

    /// Whether all codes were read.
    fn is_read(&self) -> bool {
        match &self.allowed {
            Allowed::All => self.next >= self.rows_end as usize,
            Allowed::Rows(rows) => rows.get(self.next).is_none_or(|&row| row >= self.rows_end),
        }
    }

    /// Reads codes until the budget is spent, the candidates are full or no code is left.
    fn scan(&mut self, segment: &FlatSegment, budget: &mut usize) {
        while *budget > 0 && !self.is_read() {
            let scanned = match &self.allowed {
                Allowed::All => self.scan_block(segment),
                Allowed::Rows(_) => self.scan_allowed(segment),
            };
            *budget = budget.saturating_sub(scanned);
            if self.candidates.len() >= self.capacity {
                self.begin_refining();
                return;
            }
        }
    }

    /// Scores the codes of one block.
    fn scan_block(&mut self, segment: &FlatSegment) -> usize {
        let first = self.next as u32;
        let chunk = &segment.chunks[segment.chunk_of(first)];
        let slot = segment.slot_of(first);
        let count = BLOCK_ROWS.min(self.rows_end as usize - self.next);
        self.next += count;
        let block = slot / BLOCK_ROWS;
        if chunk.live_bits(block) == 0 {
            return 1;
        }
        let mut products = [0; BLOCK_ROWS];
        let products = &mut products[..count];
        segment.kernel.dot_i8_rows(self.code.codes(), chunk.row_codes(slot, count), products);
        let bound = self.bound(segment, chunk);
        let threshold = bound.threshold(self.top.floor(), chunk.block_error(block));
        for (group, products) in products.chunks(8).enumerate() {
            // Most groups hold nothing: this test is one vector comparison.
            if products.iter().any(|&product| product >= threshold) {
                for (place, &product) in products.iter().enumerate() {
                    if product >= threshold {
                        let place = (group * 8 + place) as u32;
                        self.consider(segment, chunk, &bound, first + place, product);
                    }
                }
            }
        }
        self.counters.rows_scanned += count as u64;
        count
    }

    /// Scores the codes of the next allowed rows of one chunk, a block's number of them at most.
    fn scan_allowed(&mut self, segment: &FlatSegment) -> usize {
        let Allowed::Rows(rows) = &self.allowed else { unreachable!("only called with a list") };
        let index = segment.chunk_of(rows[self.next]);
        let mut slots = [0; BLOCK_ROWS];
        let mut count = 0;
        for &row in &rows[self.next..] {
            if count == BLOCK_ROWS || row >= self.rows_end || segment.chunk_of(row) != index {
                break;
            }
            slots[count] = segment.slot_of(row) as u32;
            count += 1;
        }
        self.next += count;
        let chunk = &segment.chunks[index];
        let mut products = [0; BLOCK_ROWS];
        segment.kernel.dot_i8_gather(self.code.codes(), chunk.codes(), &slots[..count], &mut products[..count]);
        let bound = self.bound(segment, chunk);
        let floor = self.top.floor();
        for (&slot, &product) in slots[..count].iter().zip(&products) {
            if bound.upper(product, chunk.error(slot as usize)) >= floor {
                let row = ((index as u32) << segment.chunk_shift) + slot;
                self.consider(segment, chunk, &bound, row, product);
            }
        }
        self.counters.rows_scanned += count as u64;
        count
    }

    /// Keeps a row as a candidate if it may yet be a hit.
    fn consider(&mut self, segment: &FlatSegment, chunk: &Chunk, bound: &Bound, row: u32, product: i32) {
        let slot = segment.slot_of(row);
        let upper = bound.upper(product, chunk.error(slot));
        if upper >= self.top.floor() && chunk.is_live(slot) {
            self.counters.candidates += 1;
            self.candidates.push(Candidate { upper, row });
        }
    }

    fn bound(&self, segment: &FlatSegment, chunk: &Chunk) -> Bound {
        let (scale, error, length) =
            (f64::from(self.code.scale), f64::from(self.code.error), f64::from(self.code.length));
        let length_max = f64::from(segment.length_max);
        // One product, the additions of one lane, the folds; half a unit in the last place each.
        let roundings = (segment.dimension.div_ceil(F32_LANES) + F32_LANES.ilog2() as usize + 1) as f64;
        let gamma = roundings * f64::from(f32::EPSILON);
        let underflow = segment.dimension as f64 * f64::from(f32::MIN_POSITIVE);
        Bound {
            unit: scale * f64::from(chunk.quantizer().scale()),
            fixed: (error + gamma * length) * length_max + underflow,
            // ‖s_q q̂‖ ≤ ‖q‖ + ‖r_q‖.
            by_error: length + error,
        }
    }

    fn begin_refining(&mut self) {
        self.refining = true;
        self.candidates.sort_unstable_by(|a, b| a.upper.total_cmp(&b.upper));
        self.drop_hopeless();
    }

    /// Scores candidates in f32, best first, until the rest is hopeless or, if codes are left to read, small.
    fn refine(&mut self, segment: &FlatSegment, budget: &mut usize) {
        while *budget > 0 {
            if self.candidates.len() <= self.kept_while_reading() {
                self.refining = false;
                return;
            }
            let Some(best) = self.candidates.pop() else { break };
            if let Some(next) = self.candidates.last() {
                let (chunk, slot) = (&segment.chunks[segment.chunk_of(next.row)], segment.slot_of(next.row));
                segment.kernel.prefetch(chunk.vector(slot));
            }
            self.rerank(segment, best.row);
            *budget = budget.saturating_sub(RERANK_COST_ROWS);
        }
        if self.candidates.is_empty() {
            self.refining = false;
        }
    }

    /// How many candidates may wait on: none at the end, none while a floor is missing.
    fn kept_while_reading(&self) -> usize {
        if self.is_read() || self.top.floor() == f32::NEG_INFINITY { 0 } else { self.capacity / 2 }
    }

    fn rerank(&mut self, segment: &FlatSegment, row: u32) {
        if !is_visible(segment, row, self.started) {
            return;
        }
        let (chunk, slot) = (&segment.chunks[segment.chunk_of(row)], segment.slot_of(row));
        let score = segment.kernel.dot_f32(&self.query, chunk.vector(slot));
        self.counters.rows_reranked += 1;
        let floor = self.top.floor();
        self.top.push(Hit { score, id: chunk.id(slot), row });
        if self.top.floor() > floor {
            self.drop_hopeless();
        }
    }

    /// Drops the candidates that cannot reach the floor; they are ordered.
    fn drop_hopeless(&mut self) {
        let floor = self.top.floor();
        let hopeless = self.candidates.partition_point(|candidate| candidate.upper < floor);
        self.candidates.drain(..hopeless);
    }
}

/// Whether a slot holds what it held when the search began.
fn is_visible(segment: &FlatSegment, row: u32, started: u64) -> bool {
    segment.live_slot(row).is_some_and(|(chunk, slot)| chunk.born(slot) <= started)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::unit_max_abs;
    use crate::{Kernel, Metric, VectorIndex};

    /// Upper bound and score of the one row of a segment.
    fn upper_and_score(segment: &FlatSegment, query: &[f32]) -> (f32, f32) {
        let scan = segment.start(query, 1, Allowed::All).expect("a good query");
        let chunk = &segment.chunks[0];
        let product = segment.kernel.dot_i8(scan.code.codes(), chunk.row_codes(0, 1));
        let upper = scan.bound(segment, chunk).upper(product, chunk.error(0));
        (upper, segment.kernel.dot_f32(&scan.query, chunk.vector(0)))
    }

    /// The row's codes are exact and all its components lean with what the query lost: the bound's worst case on the query's side, which
    /// random vectors come nowhere near.
    #[test]
    fn the_bound_holds_for_a_row_chosen_against_the_query() {
        for dimension in [1, 7, 64, 384, 1000] {
            let query: Vec<f32> = (0..dimension).map(|index| (1.0 + index as f32 * 0.73).sin() + 1e-3).collect();
            let code = QueryCode::new(&query);
            let lost = query.iter().zip(code.codes()).map(|(&value, &step)| value - f32::from(step) * code.scale);
            let row: Vec<f32> = lost.map(|lost| unit_max_abs(dimension).copysign(lost)).collect();
            let mut segment =
                FlatSegment::new(dimension, Metric::InnerProduct, Kernel::detect()).expect("a good dimension");
            segment.push(1, &row).expect("an acceptable vector");
            assert!(segment.chunks[0].error(0) < 1e-6, "its codes are exact");
            let (upper, score) = upper_and_score(&segment, &query);
            assert!(upper >= score, "dimension {dimension}: {upper} < {score}");
        }
    }

    /// The query's codes are exact and the row leans with it: the worst case on the row's side, clamping included.
    #[test]
    fn the_bound_holds_for_a_query_chosen_against_the_row() {
        for dimension in [1, 7, 64, 384, 1000] {
            for magnitude in [0.1, 1.0, 30.0] {
                let row: Vec<f32> = (0..dimension).map(|index| (index as f32 * 1.37).cos() * magnitude).collect();
                let mut segment =
                    FlatSegment::new(dimension, Metric::InnerProduct, Kernel::detect()).expect("a good dimension");
                segment.push(1, &row).expect("an acceptable vector");
                let (chunk, scale) = (&segment.chunks[0], segment.chunks[0].quantizer().scale());
                let lost = row.iter().zip(chunk.codes()).map(|(&value, &step)| value - f32::from(step) * scale);
                let query: Vec<f32> = lost.map(|lost| 1.0_f32.copysign(lost)).collect();
                let (upper, score) = upper_and_score(&segment, &query);
                assert!(upper >= score, "dimension {dimension}, magnitude {magnitude}: {upper} < {score}");
            }
        }
    }
}
