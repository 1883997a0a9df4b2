//! Words: how a text, and the text of a query, is cut into terms.
//!
//! Runs of alphanumeric characters (Unicode), in lower case. No stemming and no stop words: both depend on the language,
//! which grains do not state; meaning beyond the word is the vector leg's job, and common words cost little because the
//! search skips them (see `search`). Scripts without spaces between words come out as one term a run.
//!
//! The head and the segments use the very same chain, so where a document lies cannot change its terms.

use super::limits::{QUERY_TERMS_MAX, TERM_BYTES_MAX};
use super::terms::TermTable;
use tantivy::tokenizer::{LowerCaser, RemoveLongFilter, SimpleTokenizer, TextAnalyzer, TokenStream};

/// The chain, as tantivy knows it.
pub(super) fn chain() -> TextAnalyzer {
    TextAnalyzer::builder(SimpleTokenizer::default())
        .filter(RemoveLongFilter::limit(TERM_BYTES_MAX + 1))
        .filter(LowerCaser)
        .build()
}

/// Cuts texts into terms. One a shard: it owns scratch space.
pub struct Analyzer {
    chain: TextAnalyzer,
    counts: TermTable<u32>,
}

impl Default for Analyzer {
    fn default() -> Self {
        Analyzer { chain: chain(), counts: TermTable::default() }
    }
}

impl Analyzer {
    /// Calls `each` with every term of `text`, in order, repetitions included. Returns how many.
    pub(super) fn terms(&mut self, text: &str, mut each: impl FnMut(&str)) -> u32 {
        let mut stream = self.chain.token_stream(text);
        let mut count = 0;
        while stream.advance() {
            each(&stream.token().text);
            count += 1;
        }
        count
    }

    /// The distinct terms of `text` with how often each occurs, and how many terms there are in all.
    pub(super) fn counts(&mut self, text: &str) -> (&TermTable<u32>, u32) {
        let mut counts = std::mem::take(&mut self.counts);
        counts.clear();
        let total = self.terms(text, |term| *counts.get_or_default(term.as_bytes()) += 1);
        self.counts = counts;
        (&self.counts, total)
    }

    /// The terms of a query: the first [`QUERY_TERMS_MAX`] distinct ones. A word that stands twice counts once.
    pub fn query(&mut self, text: &str) -> TextQuery {
        self.query_and_end(text).0
    }

    /// The query, and up to which byte its text was read: what follows the last term that counts is not looked at.
    fn query_and_end(&mut self, text: &str) -> (TextQuery, usize) {
        let (mut terms, mut end) = (Vec::new(), 0);
        self.counts.clear();
        let mut stream = self.chain.token_stream(text);
        while terms.len() < QUERY_TERMS_MAX && stream.advance() {
            let token = stream.token();
            end = token.offset_to;
            let count = self.counts.get_or_default(token.text.as_bytes());
            *count += 1;
            if *count == 1 {
                terms.push(token.text.clone());
            }
        }
        (TextQuery { terms }, end)
    }
}

/// The words of a query. They are alternatives: a document that has any of them matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextQuery {
    pub(super) terms: Vec<String>,
}

impl TextQuery {
    /// The text had no word in it.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms_of(text: &str) -> Vec<String> {
        let mut out = Vec::new();
        Analyzer::default().terms(text, |term| out.push(term.to_owned()));
        out
    }

    #[test]
    fn cuts_at_anything_but_letters_and_digits_and_lowers_case() {
        assert_eq!(
            terms_of("It's libFoo-2.1: ÄRGER, Straße 東京!"),
            ["it", "s", "libfoo", "2", "1", "ärger", "straße", "東京"]
        );
        assert_eq!(terms_of(" \t—…"), Vec::<String>::new());
    }

    #[test]
    fn terms_beyond_the_limit_are_dropped() {
        let longest = "a".repeat(TERM_BYTES_MAX);
        let longer = "b".repeat(TERM_BYTES_MAX + 1);
        assert_eq!(terms_of(&format!("x {longest} {longer} y")), ["x", &longest, "y"]);
    }

    #[test]
    fn a_query_has_distinct_terms_and_is_bounded() {
        let query = Analyzer::default().query("bug Bug fix");
        assert_eq!(query.terms, ["bug", "fix"]);
        let many: Vec<String> = (0..QUERY_TERMS_MAX + 9).map(|i| format!("w{i}")).collect();
        let (query, end) = Analyzer::default().query_and_end(&many.join(" "));
        assert_eq!(query.terms, many[..QUERY_TERMS_MAX]);
        assert_eq!(end, many[..QUERY_TERMS_MAX].join(" ").len(), "the rest of a long text is not read");
    }
}
