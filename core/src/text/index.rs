//! The text index of one namespace: a head and the segments behind it.
//!
//! ```text
//!  insert ─▶ head ──sealed──▶ [frozen head] ──Build job──▶ [segment] ─┐ eight of a size
//!                                                          [segment] ─┴─Merge job──▶ [segment]
//!            rows: ascending from left to right, no two leaves overlap
//! ```
//!
//! A document is named by its row, a number that is never used again, and carries a slot, by which its grain is found.
//! Whether a document is alive is not known here: searches and jobs ask (see [`Judge`]). What is kept here on a removal is
//! the statistics, so that they count live documents exactly:
//!
//! * document frequency of a term = what the leaves' dictionaries say, less what each leaf's `dead` table says;
//! * while a job runs, removals from its leaves are counted a second time, for the segment that will replace them.
//!
//! One job at a time. Until it is installed, its leaves serve; installing is a swap of pointers.

use super::analyzer::{Analyzer, TextQuery};
use super::bm25::{Bm25, Statistics};
use super::head::Head;
use super::limits::{DEAD_FRACTION_MAX, HEAD_DOCS_SEAL, MERGE_FACTOR, SEGMENT_DOCS_MAX};
use super::search::{Judge, Part, Term, TextSearch};
use super::segment::{Build, Input, Job, Segment, TextError};
use super::terms::TermTable;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use tantivy::BitSet;
use tantivy::postings::TermInfo;

/// Finds the documents of one namespace by their words.
#[derive(Default)]
pub struct TextIndex {
    leaves: Vec<Leaf>,
    head: Head,
    statistics: Statistics,
    job: Option<Running>,
}

struct Leaf {
    body: Body,
    /// Rows at and above, up to those of the next leaf, are of this leaf.
    first_row: u64,
    dead: Dead,
}

enum Body {
    Frozen(Rc<Head>),
    Segment(Arc<Segment>),
}

/// Documents that died since their leaf was made.
#[derive(Default)]
struct Dead {
    docs: u32,
    terms: TermTable<u32>,
}

struct Running {
    /// The leaves that the job replaces.
    leaves: Range<usize>,
    /// Documents still to be looked at; `None` once the job was handed out.
    picking: Option<Picking>,
    /// What died in them after it was picked: the new segment has it.
    dead: Dead,
}

/// The live documents of a job's leaves are being picked, in the order of their rows.
enum Picking {
    /// Of a frozen head: those so far, and the next to look at.
    Build { head: Rc<Head>, docs: Vec<u32>, at: u32 },
    /// Of segments: those of each so far, and the next segment and document to look at.
    Merge { inputs: Vec<Input>, at: (usize, u32) },
}

impl TextIndex {
    /// Adds a document under a row higher than any before.
    pub fn insert(&mut self, row: u64, slot: u32, text: &str, analyzer: &mut Analyzer) {
        let length = self.head.insert(row, slot, text, analyzer);
        self.statistics.docs += 1;
        self.statistics.terms += u64::from(length);
    }

    /// Takes a document out of the statistics. `text` is what it was added with; from now on no [`Judge`] may admit it.
    pub fn remove(&mut self, row: u64, text: &str, analyzer: &mut Analyzer) {
        let (terms, length) = analyzer.counts(text);
        self.statistics.docs -= 1;
        self.statistics.terms -= u64::from(length);
        if self.head.rows.first().is_some_and(|first| *first <= row) {
            return self.head.discount(terms);
        }
        let at = self.leaves.partition_point(|leaf| leaf.first_row <= row);
        let at = at.checked_sub(1).expect("a row that was added is in some leaf");
        self.leaves[at].dead.add(terms);
        if let Some(job) = &mut self.job
            && job.leaves.contains(&at)
            && job.picking.as_ref().is_none_or(|picking| picking.has_passed(row))
        {
            job.dead.add(terms);
        }
    }

    /// What is alive.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// Begins a search for the `limit` best documents. The head is searched at once, all else in steps.
    pub fn search(&self, query: &TextQuery, limit: usize, judge: &impl Judge) -> Result<TextSearch, TextError> {
        let bm25 = Bm25::new(self.statistics);
        let mut terms: Vec<(Term, Vec<Option<TermInfo>>)> = Vec::with_capacity(query.terms.len());
        for text in &query.terms {
            let mut frequency = u64::from(self.head.document_frequency(text.as_bytes()));
            let mut infos = Vec::with_capacity(self.leaves.len());
            for leaf in &self.leaves {
                let info = leaf.body.segment().map(|segment| segment.term(text)).transpose()?.flatten();
                frequency += u64::from(leaf.document_frequency(text, info.as_ref().map_or(0, |info| info.doc_freq)));
                infos.push(info);
            }
            if frequency > 0 {
                terms.push((Term { text: text.clone(), weight: bm25.weight(frequency) }, infos));
            }
        }
        terms.sort_by(|(a, _), (b, _)| b.weight.total_cmp(&a.weight).then_with(|| a.text.cmp(&b.text)));
        let parts = self.leaves.iter().enumerate().map(|(at, leaf)| match &leaf.body {
            Body::Frozen(head) => Part::Head(Rc::clone(head)),
            Body::Segment(segment) => {
                Part::Segment(Arc::clone(segment), terms.iter().map(|(_, infos)| infos[at].clone()).collect())
            }
        });
        let parts = parts.collect();
        let terms = terms.into_iter().map(|(term, _)| term).collect();
        let mut search = TextSearch::new(bm25, terms, parts, limit, self.rows_end());
        search.scan_head(&self.head, 0, judge);
        Ok(search)
    }

    /// Shows a search that is complete the documents that came since it began, or since it last caught up. Their number
    /// is what this costs.
    pub fn catch_up(&self, search: &mut TextSearch, judge: &impl Judge) -> Result<(), TextError> {
        let first_row = search.rows_end();
        if self.rows_end() <= first_row {
            return Ok(());
        }
        search.scan_head(&self.head, first_row, judge);
        for leaf in self.leaves.iter().rev().take_while(|leaf| leaf.rows_end() > first_row) {
            match &leaf.body {
                Body::Frozen(head) => search.scan_head(head, first_row, judge),
                Body::Segment(segment) => search.scan_segment(segment, first_row, judge)?,
            }
        }
        search.seen_to(self.rows_end());
        Ok(())
    }

    /// Above the row of every document.
    fn rows_end(&self) -> u64 {
        let sealed = || self.leaves.last().map_or(0, Leaf::rows_end);
        self.head.rows.last().map_or_else(sealed, |last| last + 1)
    }

    /// Seals the head, so that a job can make a segment of it.
    pub fn seal(&mut self) {
        if self.head.docs() > 0 {
            let head = std::mem::take(&mut self.head);
            let first_row = head.rows[0];
            self.leaves.push(Leaf { body: Body::Frozen(Rc::new(head)), first_row, dead: Dead::default() });
        }
    }

    /// Seals the head if it is large enough.
    pub fn seal_if_due(&mut self) {
        if self.head.is_due() {
            self.seal();
        }
    }

    /// There is a job to be done, and none is running.
    pub fn is_due(&self) -> bool {
        self.job.is_none() && (self.head.is_due() || self.candidate().is_some())
    }

    /// Begins the most urgent job, if there is any: call [`Self::pick`] until it hands out the job, run that anywhere, and
    /// [`Self::install`] what it made. Until then the leaves serve.
    pub fn begin(&mut self) -> bool {
        assert!(self.job.is_none(), "one job at a time");
        self.seal_if_due();
        let Some(leaves) = self.candidate() else { return false };
        let picking = match &self.leaves[leaves.start].body {
            Body::Frozen(head) => Picking::Build { head: Rc::clone(head), docs: Vec::new(), at: 0 },
            Body::Segment(_) => {
                let segments = self.leaves[leaves.clone()].iter().filter_map(|leaf| leaf.body.segment());
                Picking::Merge { inputs: segments.map(unfiltered).collect(), at: (0, 0) }
            }
        };
        self.job = Some(Running { leaves, picking: Some(picking), dead: Dead::default() });
        true
    }

    /// Looks at up to `budget` documents of the job that was begun. Returns the job once all were looked at.
    pub fn pick(&mut self, judge: &impl Judge, budget: u32) -> Option<Job> {
        let job = self.job.as_mut().expect("a job was begun");
        let picking = job.picking.as_mut().expect("a job is handed out once");
        picking.step(judge, budget);
        if !picking.is_done() {
            return None;
        }
        job.picking.take().map(Picking::into_job)
    }

    /// Puts a job's segment in the place of what it was made from.
    pub fn install(&mut self, segment: Option<Segment>) {
        let Running { leaves, picking, dead } = self.job.take().expect("a job was begun");
        assert!(picking.is_none(), "the job was handed out");
        let first_row = self.leaves[leaves.start].first_row;
        let leaf = segment.map(|segment| Leaf { body: Body::Segment(Arc::new(segment)), first_row, dead });
        self.leaves.splice(leaves, leaf);
    }

    /// Gives a job up; its leaves go on serving.
    pub fn abandon(&mut self) {
        self.job = None;
    }

    /// Leaves that one job should turn into one segment: a frozen head, a run of segments of a size, or one with many
    /// dead.
    fn candidate(&self) -> Option<Range<usize>> {
        let frozen = self.leaves.iter().position(|leaf| leaf.body.segment().is_none());
        let rotten = || self.leaves.iter().position(Leaf::is_rotten);
        frozen.map(|at| at..at + 1).or_else(|| self.run_of_a_size()).or_else(|| rotten().map(|at| at..at + 1))
    }

    /// A run that has [`MERGE_FACTOR`] leaves of one size class and otherwise only smaller ones.
    fn run_of_a_size(&self) -> Option<Range<usize>> {
        let classes: Vec<u32> = self.leaves.iter().map(Leaf::size_class).collect();
        for class in 0..=classes.iter().copied().max()? {
            let mut run = 0..0;
            let mut of_class = 0;
            for (at, have) in classes.iter().enumerate() {
                if *have > class {
                    (run, of_class) = (at + 1..at + 1, 0);
                    continue;
                }
                run.end = at + 1;
                of_class += usize::from(*have == class);
                if of_class == MERGE_FACTOR {
                    let docs: u32 = self.leaves[run.clone()].iter().map(Leaf::live).sum();
                    if docs <= SEGMENT_DOCS_MAX {
                        return Some(run);
                    }
                    (run, of_class) = (at + 1..at + 1, 0);
                }
            }
        }
        None
    }

    /// Documents that are in no segment yet, dead ones included.
    pub fn unbuilt(&self) -> usize {
        let frozen = self.leaves.iter().map(|leaf| if leaf.body.segment().is_none() { leaf.docs() } else { 0 });
        self.head.docs() as usize + frozen.sum::<u32>() as usize
    }

    /// Bytes held by heads: those that a job would turn into a smaller segment.
    pub fn head_memory(&self) -> usize {
        let frozen = self.leaves.iter().map(|leaf| match &leaf.body {
            Body::Frozen(head) => head.memory(),
            Body::Segment(_) => 0,
        });
        self.head.memory() + frozen.sum::<usize>()
    }

    /// Bytes held by segments.
    pub fn segment_memory(&self) -> usize {
        let leaves = self.leaves.iter();
        leaves.map(|leaf| leaf.dead.terms.memory() + leaf.body.segment().map_or(0, |segment| segment.memory())).sum()
    }

    /// Number of segments.
    pub fn segments(&self) -> usize {
        self.leaves.iter().filter(|leaf| leaf.body.segment().is_some()).count()
    }
}

impl Body {
    fn segment(&self) -> Option<&Arc<Segment>> {
        match self {
            Body::Frozen(_) => None,
            Body::Segment(segment) => Some(segment),
        }
    }
}

impl Dead {
    fn add(&mut self, terms: &TermTable<u32>) {
        self.docs += 1;
        for (term, _) in terms.iter() {
            *self.terms.get_or_default(term) += 1;
        }
    }
}

impl Leaf {
    fn docs(&self) -> u32 {
        match &self.body {
            Body::Frozen(head) => head.docs(),
            Body::Segment(segment) => segment.docs(),
        }
    }

    /// Above the row of every document.
    fn rows_end(&self) -> u64 {
        let rows = match &self.body {
            Body::Frozen(head) => &head.rows,
            Body::Segment(segment) => &segment.rows,
        };
        rows.last().map_or(0, |last| last + 1)
    }

    fn live(&self) -> u32 {
        self.docs() - self.dead.docs.min(self.docs())
    }

    fn is_rotten(&self) -> bool {
        f64::from(self.dead.docs) > f64::from(self.docs()) * DEAD_FRACTION_MAX
    }

    /// 0 up to what a head seals, then one more for each merge that it takes.
    fn size_class(&self) -> u32 {
        let mut class = 0;
        let mut docs = HEAD_DOCS_SEAL as u64;
        while docs < u64::from(self.live()) {
            docs *= MERGE_FACTOR as u64;
            class += 1;
        }
        class
    }

    /// How many live documents have the term, `listed` of which the segment's dictionary knows.
    fn document_frequency(&self, term: &str, listed: u32) -> u32 {
        let listed = match &self.body {
            Body::Frozen(head) => head.document_frequency(term.as_bytes()),
            Body::Segment(_) => listed,
        };
        let dead = self.dead.terms.get(term.as_bytes()).copied().unwrap_or(0);
        listed.checked_sub(dead).expect("only what was counted dies")
    }
}

fn unfiltered(segment: &Arc<Segment>) -> Input {
    Input { segment: Arc::clone(segment), live: BitSet::with_max_value(segment.docs()) }
}

impl Picking {
    fn step(&mut self, judge: &impl Judge, budget: u32) {
        match self {
            Picking::Build { head, docs, at } => {
                let end = head.docs().min(at.saturating_add(budget));
                docs.extend((*at..end).filter(|doc| {
                    let doc = *doc as usize;
                    judge.admit(head.slots[doc], head.rows[doc]).is_some()
                }));
                *at = end;
            }
            Picking::Merge { inputs, at: (input, at) } => {
                let Some(Input { segment, live }) = inputs.get_mut(*input) else { return };
                let end = segment.docs().min(at.saturating_add(budget));
                for doc in *at..end {
                    if judge.admit(segment.slots[doc as usize], segment.rows[doc as usize]).is_some() {
                        live.insert(doc);
                    }
                }
                (*input, *at) = if end == segment.docs() { (*input + 1, 0) } else { (*input, end) };
            }
        }
    }

    /// The next row to look at; `None` when all were.
    fn next_row(&self) -> Option<u64> {
        match self {
            Picking::Build { head, at, .. } => head.rows.get(*at as usize).copied(),
            Picking::Merge { inputs, at: (input, at) } => Some(inputs.get(*input)?.segment.rows[*at as usize]),
        }
    }

    fn is_done(&self) -> bool {
        self.next_row().is_none()
    }

    fn has_passed(&self, row: u64) -> bool {
        self.next_row().is_none_or(|next| row < next)
    }

    fn into_job(self) -> Job {
        match self {
            Picking::Build { head, docs, .. } => {
                let rows = docs.iter().map(|doc| head.rows[*doc as usize]).collect();
                let slots = docs.iter().map(|doc| head.slots[*doc as usize]).collect();
                Job::Build(Build { texts: Arc::clone(&head.texts), docs, rows, slots })
            }
            Picking::Merge { inputs, .. } => Job::Merge(inputs),
        }
    }
}
