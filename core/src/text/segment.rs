//! Segments: immutable inverted indexes in tantivy's format, built and merged by pure functions.
//!
//! ```text
//!  head's texts ──build──▶ Segment ─┐
//!  head's texts ──build──▶ Segment ─┼─merge, dead documents left out──▶ Segment
//!  head's texts ──build──▶ Segment ─┘
//! ```
//!
//! Both run wherever they are called and start no threads (`SingleSegmentIndexWriter`, `merge_filtered_segments`), so the
//! caller offloads them. Documents keep their order, so the result depends on the documents alone.
//!
//! Besides tantivy's files a segment knows, of each document, its row, slot and length, and of each frequent term the
//! best documents it could have ([`Maxima`]). tantivy's own block maxima are of no use here: it picks each block's best
//! document under the segment's *own* average length, so under the namespace's statistics they bound nothing.

use super::analyzer;
use super::bm25::Bm25;
use super::directory::SegmentFiles;
use super::head::Texts;
use super::terms::TermTable;
use std::sync::Arc;
use tantivy::directory::OwnedBytes;
use tantivy::fastfield::{AliveBitSet, write_alive_bitset};
use tantivy::index::{InvertedIndexReader, SegmentReader};
use tantivy::indexer::merge_filtered_segments;
use tantivy::postings::{BlockSegmentPostings, TermInfo};
use tantivy::schema::{Field, IndexRecordOption, Schema, TextFieldIndexing, TextOptions};
use tantivy::{BitSet, Index, IndexSettings, TantivyDocument};

const TOKENIZER: &str = "gristmill";
/// Sizes tantivy's term table at the start; it grows as needed.
const WRITER_BYTES: usize = 4 << 20;
/// Terms that fewer documents have are bounded by their weight alone.
const MAXIMA_DF_MIN: u32 = 256;
/// Frequencies above are lumped together when maxima are gathered.
const MAXIMA_FREQUENCY_MAX: usize = 255;

/// A segment could not be built or read. All of it happens in memory, so this is a defect, or memory that went bad.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the text index failed to {doing}: {cause}; restart the node to rebuild the index from the log, and report this"
)]
pub struct TextError {
    doing: &'static str,
    cause: String,
}

impl TextError {
    fn new(doing: &'static str, cause: &impl ToString) -> TextError {
        TextError { doing, cause: cause.to_string() }
    }
}

/// An immutable inverted index over some documents of a namespace.
pub struct Segment {
    source: tantivy::Segment,
    inverted: Arc<InvertedIndexReader>,
    maxima: Maxima,
    bytes: usize,
    /// Row of each document, ascending.
    pub(super) rows: Vec<u64>,
    /// Slot of each document.
    pub(super) slots: Vec<u32>,
    /// Length of each document, as its code.
    pub(super) lengths: Vec<u8>,
}

impl Segment {
    /// Documents, dead ones included.
    pub(super) fn docs(&self) -> u32 {
        self.rows.len() as u32
    }

    /// Where a term's postings are.
    pub(super) fn term(&self, term: &str) -> Result<Option<TermInfo>, TextError> {
        self.inverted.terms().get(term.as_bytes()).map_err(|error| TextError::new("look up a term", &error))
    }

    /// A term's postings.
    pub(super) fn postings(&self, term: &TermInfo) -> Result<BlockSegmentPostings, TextError> {
        read_postings(&self.inverted, term)
    }

    /// No document of the segment scores more for this term.
    pub(super) fn bound(&self, term: &str, weight: f32, bm25: &Bm25) -> f32 {
        self.maxima.bound(term, weight, bm25)
    }

    /// Bytes of memory held.
    pub(super) fn memory(&self) -> usize {
        self.bytes
            + self.maxima.memory()
            + self.rows.capacity() * size_of::<u64>()
            + self.slots.capacity() * size_of::<u32>()
            + self.lengths.capacity()
    }
}

/// A segment to be made.
pub enum Job {
    /// Of some documents of a head.
    Build(Build),
    /// Of the live documents of some segments.
    Merge(Vec<Input>),
}

/// The documents of a head that are still alive.
pub struct Build {
    pub(super) texts: Arc<Texts>,
    pub(super) docs: Vec<u32>,
    pub(super) rows: Vec<u64>,
    pub(super) slots: Vec<u32>,
}

/// A segment and which of its documents go on.
pub struct Input {
    pub(super) segment: Arc<Segment>,
    pub(super) live: BitSet,
}

impl Job {
    /// Makes the segment; `None` where no document is left. Takes long (some 100,000 documents a second): offload it.
    pub fn run(self) -> Result<Option<Segment>, TextError> {
        match self {
            Job::Build(build) => build.run(),
            Job::Merge(inputs) => merge(&inputs),
        }
    }
}

impl Build {
    fn run(self) -> Result<Option<Segment>, TextError> {
        if self.docs.is_empty() {
            return Ok(None);
        }
        let failed = |error| TextError::new("build a segment", &error);
        let (schema, field) = schema();
        let tokenizers = tantivy::tokenizer::TokenizerManager::default();
        tokenizers.register(TOKENIZER, analyzer::chain());
        let files = SegmentFiles::default();
        let mut writer = Index::builder()
            .schema(schema)
            .settings(settings())
            .tokenizers(tokenizers)
            .single_segment_index_writer::<TantivyDocument>(files.clone(), WRITER_BYTES)
            .map_err(failed)?;
        for doc in &self.docs {
            let mut document = TantivyDocument::default();
            document.add_text(field, self.texts.of(*doc));
            writer.add_document(document).map_err(failed)?;
        }
        let index = writer.finalize().map_err(failed)?;
        open(&index, &files, self.rows, self.slots).map(Some)
    }
}

fn merge(inputs: &[Input]) -> Result<Option<Segment>, TextError> {
    let mut rows = Vec::new();
    let mut slots = Vec::new();
    for Input { segment, live } in inputs {
        for doc in (0..segment.docs()).filter(|doc| live.contains(*doc)) {
            rows.push(segment.rows[doc as usize]);
            slots.push(segment.slots[doc as usize]);
        }
    }
    if rows.is_empty() {
        return Ok(None);
    }
    assert!(rows.is_sorted(), "segments are merged in the order of their rows");
    let sources: Vec<_> = inputs.iter().map(|input| input.segment.source.clone()).collect();
    let mut filters = Vec::with_capacity(inputs.len());
    for input in inputs {
        let mut bytes = Vec::new();
        write_alive_bitset(&input.live, &mut bytes).map_err(|error| TextError::new("merge segments", &error))?;
        filters.push(Some(AliveBitSet::open(OwnedBytes::new(bytes))));
    }
    let files = SegmentFiles::default();
    let index = merge_filtered_segments(&sources, settings(), filters, files.clone())
        .map_err(|error| TextError::new("merge segments", &error))?;
    open(&index, &files, rows, slots).map(Some)
}

/// Opens the one segment of an index.
fn open(index: &Index, files: &SegmentFiles, rows: Vec<u64>, slots: Vec<u32>) -> Result<Segment, TextError> {
    let failed = |error| TextError::new("open a segment", &error);
    let source = index.searchable_segments().map_err(failed)?.pop().expect("an index that was built has a segment");
    let reader = SegmentReader::open(&source).map_err(failed)?;
    let (_, field) = schema();
    let inverted = reader.inverted_index(field).map_err(failed)?;
    assert_eq!(reader.max_doc() as usize, rows.len(), "a segment has the documents that went in");
    let codes = reader.get_fieldnorms_reader(field).map_err(failed)?;
    let lengths: Vec<u8> = (0..reader.max_doc()).map(|doc| codes.fieldnorm_id(doc)).collect();
    let maxima = Maxima::gather(&inverted, &lengths)?;
    Ok(Segment { source, inverted, maxima, bytes: files.bytes(), rows, slots, lengths })
}

fn read_postings(inverted: &InvertedIndexReader, term: &TermInfo) -> Result<BlockSegmentPostings, TextError> {
    inverted
        .read_block_postings_from_terminfo(term, IndexRecordOption::WithFreqs)
        .map_err(|error| TextError::new("read postings", &error))
}

fn schema() -> (Schema, Field) {
    let indexing = TextFieldIndexing::default()
        .set_tokenizer(TOKENIZER)
        .set_index_option(IndexRecordOption::WithFreqs)
        .set_fieldnorms(true);
    let mut builder = Schema::builder();
    let field = builder.add_text_field("text", TextOptions::default().set_indexing_options(indexing));
    (builder.build(), field)
}

fn settings() -> IndexSettings {
    // By default tantivy compresses its document store, which stays empty here, on a thread of its own.
    IndexSettings { docstore_compress_dedicated_thread: false, ..IndexSettings::default() }
}

/// For each frequent term, the (frequency, length) pairs that no other of its documents beats in both. A score grows with
/// the frequency and falls with the length whatever the statistics, so the best of these few is the best of all.
#[derive(Default)]
struct Maxima {
    terms: TermTable<(u32, u32)>,
    points: Vec<(u32, u8)>,
}

impl Maxima {
    fn gather(inverted: &InvertedIndexReader, lengths: &[u8]) -> Result<Maxima, TextError> {
        let mut maxima = Maxima::default();
        let mut terms = inverted.terms().stream().map_err(|error| TextError::new("read the terms", &error))?;
        while let Some((term, info)) = terms.next() {
            if info.doc_freq < MAXIMA_DF_MIN {
                continue;
            }
            let start = maxima.points.len() as u32;
            maxima.points.extend(best_points(read_postings(inverted, info)?, lengths));
            *maxima.terms.get_or_default(term) = (start, maxima.points.len() as u32);
        }
        Ok(maxima)
    }

    fn bound(&self, term: &str, weight: f32, bm25: &Bm25) -> f32 {
        let Some((start, end)) = self.terms.get(term.as_bytes()) else { return weight };
        let points = &self.points[*start as usize..*end as usize];
        points.iter().map(|(frequency, length)| bm25.score(weight, *frequency, *length)).fold(0.0, f32::max)
    }

    fn memory(&self) -> usize {
        self.terms.memory() + self.points.capacity() * size_of::<(u32, u8)>()
    }
}

fn best_points(mut postings: BlockSegmentPostings, lengths: &[u8]) -> Vec<(u32, u8)> {
    let mut shortest = [None::<u8>; MAXIMA_FREQUENCY_MAX + 1];
    let mut frequency_max = 0;
    while !postings.docs().is_empty() {
        for (doc, frequency) in postings.docs().iter().zip(postings.freqs()) {
            let length = lengths[*doc as usize];
            let at = &mut shortest[(*frequency as usize).min(MAXIMA_FREQUENCY_MAX)];
            *at = Some(at.map_or(length, |shortest| shortest.min(length)));
            frequency_max = frequency_max.max(*frequency);
        }
        postings.advance();
    }
    let mut points = Vec::new();
    let mut best = None;
    for (frequency, length) in shortest.iter().enumerate().rev() {
        let Some(length) = *length else { continue };
        if best.is_none_or(|best| length < best) {
            let frequency = if frequency == MAXIMA_FREQUENCY_MAX { frequency_max } else { frequency as u32 };
            points.push((frequency, length));
            best = Some(length);
        }
    }
    points
}
