//! The head: a small inverted index in memory, where a document can be found the moment it was written.
//!
//! ```text
//!  terms:  "recall" -> {live: 2, count: 3, first: 0, ...}
//!  pool:   [doc 0 ×1][next: 5] ... [doc 4 ×2][doc 9 ×1][next: ..] ...
//!          \ chunk of 1 /          \ chunk of 2 /         then 4, 8 ... 64
//! ```
//!
//! Most terms occur once, so the first chunk holds one posting; then chunks double, so a list of n postings wastes less
//! than half and is read in runs. All postings lie in one allocation: to drop a head takes microseconds.
//!
//! Documents are numbered in the order of their rows. A document that is removed keeps its postings (whoever reads them
//! asks whether its row still lives), but document frequencies count live documents only. The texts are kept, in one
//! string, because the segment that replaces the head is built from them.

use super::analyzer::Analyzer;
use super::bm25::length_code;
use super::limits::{HEAD_DOCS_SEAL, HEAD_TEXT_BYTES_SEAL};
use super::terms::TermTable;
use std::sync::Arc;

const CHUNK_MAX: u32 = 64;
/// Marks the link at the end of a chunk; the other half is where the next chunk begins.
const LINK: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Posting {
    doc: u32,
    frequency: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct List {
    live: u32,
    count: u32,
    first: u32,
    last: u32,
    chunk: u32,
    room: u32,
}

/// The texts of a head's documents, end to end.
#[derive(Debug, Default)]
pub(super) struct Texts {
    all: String,
    ends: Vec<u32>,
}

impl Texts {
    /// The text of a document.
    pub fn of(&self, doc: u32) -> &str {
        let doc = doc as usize;
        let start = if doc == 0 { 0 } else { self.ends[doc - 1] as usize };
        &self.all[start..self.ends[doc] as usize]
    }
}

/// An inverted index that grows.
#[derive(Default)]
pub(super) struct Head {
    terms: TermTable<List>,
    pool: Vec<Posting>,
    /// Row of each document, ascending.
    pub rows: Vec<u64>,
    /// Slot of each document.
    pub slots: Vec<u32>,
    /// Length of each document, as its code.
    pub lengths: Vec<u8>,
    /// Shared with the job that builds a segment of them.
    pub texts: Arc<Texts>,
}

impl Head {
    /// Adds a document. Returns its length in terms.
    pub fn insert(&mut self, row: u64, slot: u32, text: &str, analyzer: &mut Analyzer) -> u32 {
        assert!(self.rows.last().is_none_or(|last| *last < row), "rows ascend");
        let doc = self.rows.len() as u32;
        let (terms, pool) = (&mut self.terms, &mut self.pool);
        let length = analyzer.terms(text, |term| {
            let list = terms.get_or_default(term.as_bytes());
            if list.count > 0 && pool[list.last as usize].doc == doc {
                pool[list.last as usize].frequency += 1;
            } else {
                list.push(pool, Posting { doc, frequency: 1 });
            }
        });
        self.rows.push(row);
        self.slots.push(slot);
        self.lengths.push(length_code(length));
        let texts = Arc::get_mut(&mut self.texts).expect("a head that is being built takes no more documents");
        texts.all.push_str(text);
        texts.ends.push(u32::try_from(texts.all.len()).expect("a head is sealed long before 4 GiB"));
        length
    }

    /// Takes a document's terms out of the document frequencies.
    pub fn discount(&mut self, terms: &TermTable<u32>) {
        for (term, _) in terms.iter() {
            let list = self.terms.get_or_default(term);
            assert!(list.live > 0, "the text removed is the text that was added");
            list.live -= 1;
        }
    }

    /// How many live documents have the term.
    pub fn document_frequency(&self, term: &[u8]) -> u32 {
        self.terms.get(term).map_or(0, |list| list.live)
    }

    /// The postings of a term: documents, ascending, and how often each has it. `None` where no document ever had it.
    pub fn postings(&self, term: &[u8]) -> Option<(Vec<u32>, Vec<u32>)> {
        let list = self.terms.get(term)?;
        let mut docs = Vec::with_capacity(list.count as usize);
        let mut frequencies = Vec::with_capacity(list.count as usize);
        let (mut at, mut chunk) = (list.first as usize, 1);
        while docs.len() < list.count as usize {
            let run = (list.count as usize - docs.len()).min(chunk);
            for posting in &self.pool[at..at + run] {
                docs.push(posting.doc);
                frequencies.push(posting.frequency);
            }
            if docs.len() < list.count as usize {
                let link = self.pool[at + chunk];
                assert_eq!(link.frequency, LINK, "a full chunk ends with a link");
                at = link.doc as usize;
                chunk = (chunk * 2).min(CHUNK_MAX as usize);
            }
        }
        Some((docs, frequencies))
    }

    /// Documents, dead ones included.
    pub fn docs(&self) -> u32 {
        self.rows.len() as u32
    }

    /// It is large enough to be worth a segment.
    pub fn is_due(&self) -> bool {
        self.rows.len() >= HEAD_DOCS_SEAL || self.texts.all.len() >= HEAD_TEXT_BYTES_SEAL
    }

    /// Bytes of memory held.
    pub fn memory(&self) -> usize {
        self.terms.memory()
            + self.pool.capacity() * size_of::<Posting>()
            + self.rows.capacity() * size_of::<u64>()
            + self.slots.capacity() * size_of::<u32>()
            + self.lengths.capacity()
            + self.texts.all.capacity()
            + self.texts.ends.capacity() * size_of::<u32>()
    }
}

impl List {
    fn push(&mut self, pool: &mut Vec<Posting>, posting: Posting) {
        if self.room == 0 {
            self.chunk = if self.count == 0 { 1 } else { (self.chunk * 2).min(CHUNK_MAX) };
            self.room = self.chunk;
            let start = u32::try_from(pool.len()).expect("a head is sealed long before 2^32 postings");
            if self.count == 0 {
                self.first = start;
            } else {
                pool[self.last as usize + 1] = Posting { doc: start, frequency: LINK };
            }
            self.last = start;
            pool.resize(pool.len() + self.chunk as usize + 1, Posting { doc: 0, frequency: 0 });
        } else {
            self.last += 1;
        }
        pool[self.last as usize] = posting;
        self.room -= 1;
        self.count += 1;
        self.live += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn postings_are_what_was_inserted(texts in prop::collection::vec("([a-e]{1,2} ){0,12}", 0..300)) {
            let mut analyzer = Analyzer::default();
            let mut head = Head::default();
            let mut model = BTreeMap::<String, BTreeMap<u32, u32>>::new();
            for (doc, text) in texts.iter().enumerate() {
                let length = head.insert(doc as u64 * 3, doc as u32, text, &mut analyzer);
                prop_assert_eq!(length as usize, text.split_whitespace().count());
                for word in text.split_whitespace() {
                    *model.entry(word.to_owned()).or_default().entry(doc as u32).or_default() += 1;
                }
            }
            for (word, docs) in &model {
                let (got, frequencies) = head.postings(word.as_bytes()).unwrap();
                prop_assert_eq!(&got, &docs.keys().copied().collect::<Vec<_>>());
                prop_assert_eq!(frequencies, docs.values().copied().collect::<Vec<_>>());
                prop_assert_eq!(head.document_frequency(word.as_bytes()) as usize, docs.len());
            }
            prop_assert!(head.postings(b"never").is_none());
            for (doc, text) in texts.iter().enumerate() {
                prop_assert_eq!(head.texts.of(doc as u32), text);
            }
        }
    }

    #[test]
    fn a_removed_document_no_longer_counts() {
        let mut analyzer = Analyzer::default();
        let mut head = Head::default();
        head.insert(1, 0, "wal wal raft", &mut analyzer);
        head.insert(2, 1, "wal", &mut analyzer);
        head.discount(analyzer.counts("wal wal raft").0);
        assert_eq!(head.document_frequency(b"wal"), 1);
        assert_eq!(head.document_frequency(b"raft"), 0);
        assert_eq!(head.postings(b"wal").unwrap().0, [0, 1], "its postings stay until the segment is built");
    }
}
