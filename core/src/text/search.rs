//! The search: the best documents for some words, by falling BM25 score, ties by grain id.
//!
//! ```text
//!  terms, by falling weight:   "fsync"   "segment"   "log"   |  "is"   "the"
//!                              \____ essential: postings ____/  \ the rest: looked up only for documents that
//!                               added up window by window         could still reach the k best /
//! ```
//!
//! MaxScore (Turtle and Flood, "Query evaluation: strategies and optimizations", 1995) over windows of documents, as in
//! Lucene's `MaxScoreBulkScorer`: once k documents are known, the terms at the end of the list whose best scores together
//! stay below the k-th cannot bring in a document by themselves.
//!
//! Why not tantivy's own search: its block maxima are no bounds under foreign statistics (see `segment`), its sum depends
//! on the order in which documents meet, and it cannot pause. Here a document's score is always the sum of its terms'
//! scores in the order of the terms, in f32, so it is the same to the bit wherever the document lies; and a search is a
//! value that goes on where it stopped, so that a long one need not hold the core.
//!
//! Invariant: on an index that does not change meanwhile, the result is exactly the k best of all documents that `Judge`
//! admits. Pruning compares with a slack above the rounding error of the sums, and never drops a document that ties with
//! the k-th. If the index does change, what dies is left out (so there may be fewer than k) and `TextIndex::catch_up` adds
//! what came: the result is that of the moment of the last step.

use super::bm25::Bm25;
use super::head::Head;
use super::limits::WINDOW_DOCS;
use super::segment::{Segment, TextError};
use crate::recall::rank::{Ranked, Top};
use gristmill_rpc::ids::GrainId;
use std::rc::Rc;
use std::sync::Arc;
use tantivy::postings::{BlockSegmentPostings, TermInfo};

/// Sums of up to 64 f32 terms are off by less than this part of them.
const SLACK: f64 = 1e-5;

/// Says which documents count.
pub trait Judge {
    /// The grain of a document that is alive and passes the filter; `None` for any other.
    fn admit(&self, slot: u32, row: u64) -> Option<GrainId>;
}

/// A document among the best so far.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    ranked: Ranked,
    slot: u32,
    row: u64,
}

impl Top<Found> {
    /// What a score must reach to get in.
    fn cut(&self) -> f32 {
        if self.is_closed() {
            f32::INFINITY
        } else {
            self.worst().map_or(f32::NEG_INFINITY, |worst| worst.ranked.score)
        }
    }
}

/// A query's term with its weight.
pub(super) struct Term {
    pub text: String,
    pub weight: f32,
}

/// Part of an index that is scanned on its own.
pub(super) enum Part {
    /// A head that takes no more documents.
    Head(Rc<Head>),
    /// A segment, with what its dictionary says of each term of the query.
    Segment(Arc<Segment>, Vec<Option<TermInfo>>),
}

/// A search that can stop and go on.
pub struct TextSearch {
    bm25: Bm25,
    /// By falling weight, then by their bytes: the order in which scores are summed.
    terms: Vec<Term>,
    /// What is still to be scanned, last first.
    parts: Vec<Part>,
    current: Option<(Part, Scan)>,
    top: Top<Found>,
    sums: Vec<f32>,
    /// Documents of this row and above came later.
    rows_end: u64,
}

impl TextSearch {
    pub(super) fn new(bm25: Bm25, terms: Vec<Term>, parts: Vec<Part>, limit: usize, rows_end: u64) -> TextSearch {
        let (top, sums) = (Top::new(limit), vec![0.0; WINDOW_DOCS]);
        TextSearch { bm25, terms, parts, current: None, top, sums, rows_end }
    }

    /// The first row that this search has not seen.
    pub(super) fn rows_end(&self) -> u64 {
        self.rows_end
    }

    /// Scans a head from a row on, at once, without keeping it.
    pub(super) fn scan_head(&mut self, head: &Head, first_row: u64, judge: &impl Judge) {
        let mut scan = Scan::of_head(head, &self.terms, &self.bm25);
        let documents = Documents::of_head(head);
        scan.skip_to(documents.first(first_row));
        scan.run(&documents, &self.bm25, &mut self.top, &mut self.sums, judge, usize::MAX);
    }

    /// Scans a segment from a row on, at once.
    pub(super) fn scan_segment(
        &mut self,
        segment: &Segment,
        first_row: u64,
        judge: &impl Judge,
    ) -> Result<(), TextError> {
        let infos = self.terms.iter().map(|term| segment.term(&term.text)).collect::<Result<Vec<_>, _>>()?;
        let mut scan = Scan::of_segment(segment, &infos, &self.terms, &self.bm25)?;
        let documents = Documents::of_segment(segment);
        scan.skip_to(documents.first(first_row));
        scan.run(&documents, &self.bm25, &mut self.top, &mut self.sums, judge, usize::MAX);
        Ok(())
    }

    /// Everything below this row was scanned.
    pub(super) fn seen_to(&mut self, rows_end: u64) {
        self.rows_end = rows_end;
    }

    /// Goes on until about `budget` postings are read. Returns whether the search is complete.
    pub fn step(&mut self, judge: &impl Judge, budget: usize) -> Result<bool, TextError> {
        let mut budget = budget.max(1);
        loop {
            let current = match self.current.take() {
                None => self.next_part()?,
                current => current,
            };
            let Some((part, mut scan)) = current else { return Ok(true) };
            let documents = match &part {
                Part::Head(head) => Documents::of_head(head),
                Part::Segment(segment, _) => Documents::of_segment(segment),
            };
            budget = scan.run(&documents, &self.bm25, &mut self.top, &mut self.sums, judge, budget);
            if budget == 0 {
                self.current = Some((part, scan));
                return Ok(false);
            }
        }
    }

    fn next_part(&mut self) -> Result<Option<(Part, Scan)>, TextError> {
        let Some(part) = self.parts.pop() else { return Ok(None) };
        let scan = match &part {
            Part::Head(head) => Scan::of_head(head, &self.terms, &self.bm25),
            Part::Segment(segment, infos) => Scan::of_segment(segment, infos, &self.terms, &self.bm25)?,
        };
        Ok(Some((part, scan)))
    }

    /// The documents found that the judge still admits, best first.
    pub fn finish(self, judge: &impl Judge) -> Vec<Ranked> {
        assert!(self.parts.is_empty() && self.current.is_none(), "the search is complete");
        let found = self.top.into_sorted().into_iter();
        found.filter(|found| judge.admit(found.slot, found.row).is_some()).map(|found| found.ranked).collect()
    }
}

/// What is known of the documents of a part.
struct Documents<'a> {
    rows: &'a [u64],
    slots: &'a [u32],
    lengths: &'a [u8],
}

impl<'a> Documents<'a> {
    fn of_head(head: &'a Head) -> Documents<'a> {
        Documents { rows: &head.rows, slots: &head.slots, lengths: &head.lengths }
    }

    fn of_segment(segment: &'a Segment) -> Documents<'a> {
        Documents { rows: &segment.rows, slots: &segment.slots, lengths: &segment.lengths }
    }

    /// The first document of this row or above.
    fn first(&self, row: u64) -> u32 {
        self.rows.partition_point(|have| *have < row) as u32
    }
}

/// The scan of one part.
struct Scan {
    lists: Vec<PostingList>,
    /// `bounds[i]`: no document scores more for the lists from `i` on, taken together.
    bounds: Vec<f64>,
}

struct PostingList {
    cursor: Cursor,
    weight: f32,
}

impl Scan {
    fn of_head(head: &Head, terms: &[Term], bm25: &Bm25) -> Scan {
        let mut lists = Vec::with_capacity(terms.len());
        let mut maxima = Vec::with_capacity(terms.len());
        for term in terms {
            let Some((docs, frequencies)) = head.postings(term.text.as_bytes()) else { continue };
            let scores = docs.iter().zip(&frequencies);
            let scores =
                scores.map(|(doc, frequency)| bm25.score(term.weight, *frequency, head.lengths[*doc as usize]));
            maxima.push(scores.fold(0.0, f32::max));
            lists.push(PostingList { cursor: Cursor::of_list(docs, frequencies), weight: term.weight });
        }
        Scan { lists, bounds: suffix_sums(&maxima) }
    }

    fn of_segment(
        segment: &Segment,
        infos: &[Option<TermInfo>],
        terms: &[Term],
        bm25: &Bm25,
    ) -> Result<Scan, TextError> {
        let mut lists = Vec::with_capacity(terms.len());
        let mut maxima = Vec::with_capacity(terms.len());
        for (term, info) in terms.iter().zip(infos) {
            let Some(info) = info else { continue };
            maxima.push(segment.bound(&term.text, term.weight, bm25));
            lists.push(PostingList { cursor: Cursor::of_blocks(segment.postings(info)?), weight: term.weight });
        }
        Ok(Scan { lists, bounds: suffix_sums(&maxima) })
    }

    /// Passes over the documents before `doc`.
    fn skip_to(&mut self, doc: u32) {
        if doc > 0 {
            for list in &mut self.lists {
                list.cursor.seek(doc);
            }
        }
    }

    /// Goes on until the budget is used up (returns 0) or the part is done (returns what is left).
    fn run(
        &mut self,
        documents: &Documents<'_>,
        bm25: &Bm25,
        top: &mut Top<Found>,
        sums: &mut [f32],
        judge: &impl Judge,
        mut budget: usize,
    ) -> usize {
        while budget > 0 {
            let essential = self.essential(top.cut());
            let Some(base) = self.lists[..essential].iter().filter_map(|list| list.cursor.doc()).min() else {
                return budget;
            };
            let end = base.saturating_add(sums.len() as u32);
            let mut read = 0;
            for PostingList { cursor, weight } in &mut self.lists[..essential] {
                read += cursor.drain(end, |doc, frequency| {
                    sums[(doc - base) as usize] += bm25.score(*weight, frequency, documents.lengths[doc as usize]);
                });
            }
            read += self.harvest(base, essential, documents, bm25, top, sums, judge);
            budget = budget.saturating_sub(read);
        }
        0
    }

    /// How many lists, from the front, must be read to find every document that reaches the cut.
    fn essential(&self, cut: f32) -> usize {
        let cut = f64::from(cut);
        let rest = self.bounds.iter().position(|bound| bound * (1.0 + SLACK) < cut);
        rest.unwrap_or(self.lists.len()).min(self.lists.len())
    }

    /// Takes the window's documents that may be among the best, completes their scores, and clears the window. Returns
    /// how many postings it looked up.
    #[expect(
        clippy::too_many_arguments,
        reason = "the state of one scan, split so that its parts can be borrowed apart"
    )]
    fn harvest(
        &mut self,
        base: u32,
        essential: usize,
        documents: &Documents<'_>,
        bm25: &Bm25,
        top: &mut Top<Found>,
        sums: &mut [f32],
        judge: &impl Judge,
    ) -> usize {
        const LANES: usize = 16;
        let mut looked_up = 0;
        let mut floor = floor(top.cut(), self.bounds[essential]);
        for (block, sums) in sums.chunks_mut(LANES).enumerate() {
            // Whole blocks are tested at once, which the compiler turns into a few vector instructions.
            if sums.iter().map(|sum| u32::from(*sum > floor)).sum::<u32>() == 0 {
                sums.fill(0.0);
                continue;
            }
            for (lane, sum) in sums.iter_mut().enumerate() {
                let score = std::mem::take(sum);
                if score <= floor {
                    continue;
                }
                let doc = base + (block * LANES + lane) as u32;
                let (score, lookups) = self.complete(doc, score, essential, documents, bm25, top.cut());
                looked_up += lookups;
                if let Some(score) = score
                    && score >= top.cut()
                    && let (slot, row) = (documents.slots[doc as usize], documents.rows[doc as usize])
                    && let Some(id) = judge.admit(slot, row)
                {
                    top.push(Found { ranked: Ranked { id, score }, slot, row });
                    floor = self::floor(top.cut(), self.bounds[essential]);
                }
            }
        }
        looked_up
    }

    /// Adds the terms that were not read; `None` as soon as the document cannot reach the cut.
    fn complete(
        &mut self,
        doc: u32,
        mut score: f32,
        essential: usize,
        documents: &Documents<'_>,
        bm25: &Bm25,
        cut: f32,
    ) -> (Option<f32>, usize) {
        for at in essential..self.lists.len() {
            if (f64::from(score) + self.bounds[at]) * (1.0 + SLACK) < f64::from(cut) {
                return (None, at - essential);
            }
            let PostingList { cursor, weight } = &mut self.lists[at];
            if let Some(frequency) = cursor.seek(doc) {
                score += bm25.score(*weight, frequency, documents.lengths[doc as usize]);
            }
        }
        (Some(score), self.lists.len() - essential)
    }
}

/// A sum of essential terms must be above this for the document to be able to reach the cut. (Sums of documents without
/// any essential term are zero, and a document's are positive.)
fn floor(cut: f32, rest: f64) -> f32 {
    let needed = f64::from(cut) * (1.0 - SLACK) - rest * (1.0 + SLACK);
    // Rounding to f32 may round up: step below.
    if needed > 0.0 { (needed as f32).next_down() } else { 0.0 }
}

fn suffix_sums(maxima: &[f32]) -> Vec<f64> {
    let mut sums = vec![0.0; maxima.len() + 1];
    for at in (0..maxima.len()).rev() {
        sums[at] = sums[at + 1] + f64::from(maxima[at]);
    }
    sums
}

/// A place in a term's postings. Moves forward only.
struct Cursor {
    source: Source,
    /// Position in the current block.
    at: usize,
}

enum Source {
    List { docs: Vec<u32>, frequencies: Vec<u32> },
    Blocks(Box<BlockSegmentPostings>),
}

impl Cursor {
    fn of_list(docs: Vec<u32>, frequencies: Vec<u32>) -> Cursor {
        Cursor { source: Source::List { docs, frequencies }, at: 0 }
    }

    fn of_blocks(blocks: BlockSegmentPostings) -> Cursor {
        Cursor { source: Source::Blocks(Box::new(blocks)), at: 0 }
    }

    fn block(&self) -> (&[u32], &[u32]) {
        match &self.source {
            Source::List { docs, frequencies } => (docs, frequencies),
            Source::Blocks(blocks) => (blocks.docs(), blocks.freqs()),
        }
    }

    /// The next document that has the term.
    fn doc(&self) -> Option<u32> {
        self.block().0.get(self.at).copied()
    }

    /// Reads all postings of documents below `end`. Returns how many.
    fn drain(&mut self, end: u32, mut each: impl FnMut(u32, u32)) -> usize {
        let mut read = 0;
        loop {
            let (docs, frequencies) = self.block();
            let rest = &docs[self.at..];
            let run = if rest.last().is_some_and(|last| *last < end) {
                rest.len()
            } else {
                rest.partition_point(|doc| *doc < end)
            };
            for (doc, frequency) in rest[..run].iter().zip(&frequencies[self.at..]) {
                each(*doc, *frequency);
            }
            read += run;
            let more = run == rest.len() && run > 0;
            self.at += run;
            if !more || !self.next_block() {
                return read;
            }
        }
    }

    /// How often the document has the term; `None` where it does not.
    fn seek(&mut self, doc: u32) -> Option<u32> {
        match &mut self.source {
            Source::List { docs, .. } => self.at += docs[self.at..].partition_point(|have| *have < doc),
            Source::Blocks(blocks) => {
                if blocks.docs().is_empty() {
                    return None;
                }
                if blocks.docs().last().is_some_and(|last| *last < doc) {
                    self.at = blocks.seek(doc);
                } else {
                    self.at += blocks.docs()[self.at..].partition_point(|have| *have < doc);
                }
            }
        }
        let (docs, frequencies) = self.block();
        (docs.get(self.at) == Some(&doc)).then(|| frequencies[self.at])
    }

    fn next_block(&mut self) -> bool {
        match &mut self.source {
            Source::List { .. } => false,
            Source::Blocks(blocks) => {
                blocks.advance();
                self.at = 0;
                !blocks.docs().is_empty()
            }
        }
    }
}
