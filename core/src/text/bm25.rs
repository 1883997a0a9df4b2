//! BM25, exactly as tantivy computes it: the same constants, the same quantised lengths, the same order of operations.
//!
//! `score(t, d) = idf(t) * (k1 + 1) * tf / (tf + k1 * (1 - b + b * length(d) / average length))`
//!
//! with `idf(t) = ln(1 + (N - n + 0.5) / (n + 0.5))`, k1 = 1.2 and b = 0.75 (Robertson and Zaragoza, "The Probabilistic
//! Relevance Framework: BM25 and Beyond", 2009; the variant of Lucene and tantivy). A document's length is one byte on
//! tantivy's scale (exact up to 40 terms, then in growing steps).
//!
//! What differs is where the statistics come from: N, n and the average length are those of the *live* documents of the
//! namespace, wherever they lie. So a score depends on what is stored and on nothing else: not on when segments were
//! built or merged, and not on what was deleted before.

use tantivy::fieldnorm::FieldNormReader;

const K1: f32 = 1.2;
const B: f32 = 0.75;

/// How many documents have a text, and how many terms their texts have in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// N.
    pub docs: u64,
    /// Sum of the documents' exact lengths.
    pub terms: u64,
}

/// A document's length in terms, as one byte.
pub(super) fn length_code(terms: u32) -> u8 {
    FieldNormReader::fieldnorm_to_id(terms)
}

/// The part of the formula that depends on the collection, made once a query.
pub(super) struct Bm25 {
    docs: u64,
    norms: [f32; 256],
}

impl Bm25 {
    pub fn new(statistics: Statistics) -> Bm25 {
        let average = statistics.terms as f32 / statistics.docs as f32;
        let norm = |code| K1 * (1.0 - B + B * FieldNormReader::id_to_fieldnorm(code) as f32 / average);
        Bm25 { docs: statistics.docs, norms: std::array::from_fn(|code| norm(code as u8)) }
    }

    /// The weight of a term that `df` documents have: what its score approaches as it fills a document.
    pub fn weight(&self, df: u64) -> f32 {
        assert!(df <= self.docs, "{df} documents of {} have the term", self.docs);
        let x = ((self.docs - df) as f32 + 0.5) / (df as f32 + 0.5);
        (1.0 + x).ln() * (1.0 + K1)
    }

    /// The score of a term of this weight in a document of this length that has it `frequency` times.
    #[inline]
    pub fn score(&self, weight: f32, frequency: u32, length_code: u8) -> f32 {
        let frequency = frequency as f32;
        weight * (frequency / (frequency + self.norms[length_code as usize]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tantivy::query::Bm25Weight;

    proptest! {
        /// Ours is tantivy's to the bit.
        #[test]
        fn scores_as_tantivy_does(
            docs in 1u64..1_000_000, df_part in 0.0f64..=1.0, average in 1u64..500, frequency in 1u32..10_000,
            length in 0u32..100_000,
        ) {
            let df = ((docs as f64 * df_part) as u64).clamp(1, docs);
            let statistics = Statistics { docs, terms: docs * average + docs / 3 };
            let ours = Bm25::new(statistics);
            let theirs = Bm25Weight::for_one_term_without_explain(df, docs, statistics.terms as f32 / docs as f32);
            let code = length_code(length);
            prop_assert_eq!(
                ours.score(ours.weight(df), frequency, code).to_bits(),
                theirs.score(code, frequency).to_bits()
            );
        }
    }
}
