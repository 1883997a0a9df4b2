//! The bundled sample: real grains and queries, parsed from two files compiled into the binary.
//!
//! `sample.jsonl` holds one JSON object a line, documents first and then queries; `sample.f16` one row of little-endian
//! float16 for each line, in the same order. `core/data/README.md` says where they come from.

use gristmill_rpc::ids::GrainId;
use gristmill_rpc::schema::{Grain, RecallRequest, Relation, RelationPattern};
use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::Deserialize;

/// Dimensions of the sample's embeddings.
pub const DIMENSIONS: usize = 384;

/// Bytes of one row of `sample.f16`.
const ROW_BYTES: usize = DIMENSIONS * size_of::<f16>();

/// Documents and queries with their embeddings.
#[derive(Debug, Clone)]
pub struct Sample {
    /// What is stored.
    pub grains: Vec<Grain>,
    /// What is asked.
    pub queries: Vec<RecallRequest>,
}

/// Why two files are not a sample.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// A line is not what it should be.
    #[error("sample line {line}: {source}")]
    Line {
        /// Line number, from 1.
        line: usize,
        /// What the JSON parser said.
        source: serde_json::Error,
    },
    /// The two files do not belong together.
    #[error("the sample has {lines} lines but vectors of {bytes} bytes; expected {ROW_BYTES} bytes a line")]
    Vectors {
        /// Lines of the text file.
        lines: usize,
        /// Bytes of the vector file.
        bytes: usize,
    },
    /// Nothing to store or nothing to ask.
    #[error("the sample has {grains} documents and {queries} queries; it needs at least one of each")]
    Empty {
        /// Documents found.
        grains: usize,
        /// Queries found.
        queries: usize,
    },
}

/// One line of `sample.jsonl`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Query { query: Query },
    Document(Document),
}

#[derive(Deserialize)]
struct Document {
    id: String,
    namespace: String,
    subject: String,
    text: String,
    #[serde(default)]
    relations: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Query {
    namespace: String,
    text: String,
    relation: Option<(String, String)>,
}

impl Sample {
    /// The sample compiled into the binary.
    pub fn bundled() -> Result<Sample, SampleError> {
        Sample::parse(include_str!("../../data/sample.jsonl"), include_bytes!("../../data/sample.f16"))
    }

    /// Parses the two files of a sample.
    pub fn parse(lines: &str, vectors: &[u8]) -> Result<Sample, SampleError> {
        let (rows, rest) = vectors.as_chunks::<ROW_BYTES>();
        if lines.lines().count() != rows.len() || !rest.is_empty() {
            return Err(SampleError::Vectors { lines: lines.lines().count(), bytes: vectors.len() });
        }
        let mut sample = Sample { grains: Vec::new(), queries: Vec::new() };
        for (at, (line, row)) in lines.lines().zip(rows).enumerate() {
            let parsed = serde_json::from_str(line).map_err(|source| SampleError::Line { line: at + 1, source })?;
            match parsed {
                Line::Document(document) => sample.grains.push(document.into_grain(decode_row(row))),
                Line::Query { query } => sample.queries.push(query.into_request(decode_row(row))),
            }
        }
        if sample.grains.is_empty() || sample.queries.is_empty() {
            return Err(SampleError::Empty { grains: sample.grains.len(), queries: sample.queries.len() });
        }
        Ok(sample)
    }
}

impl Document {
    fn into_grain(self, vector: Vec<f32>) -> Grain {
        Grain {
            id: GrainId::from_name(&self.id),
            namespace: self.namespace,
            subject: self.subject,
            text: Some(self.text),
            vector: Some(vector),
            relations: self.relations.into_iter().map(|(predicate, object)| Relation { predicate, object }).collect(),
            tags: Vec::new(),
            payload: self.id.into_bytes(),
        }
    }
}

impl Query {
    fn into_request(self, vector: Vec<f32>) -> RecallRequest {
        let pattern = |(predicate, object)| RelationPattern { subject: String::new(), predicate, object };
        RecallRequest {
            namespace: self.namespace,
            text: Some(self.text),
            vector: Some(vector),
            relation: self.relation.map(pattern),
            tags: Vec::new(),
            subject: String::new(),
            limit: 0,
            candidates: 0,
            with_grains: false,
        }
    }
}

/// One row of float16 as float32.
fn decode_row(row: &[u8; ROW_BYTES]) -> Vec<f32> {
    let halves: Vec<f16> = row.as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect();
    let mut out = vec![0.0; DIMENSIONS];
    halves.convert_to_f32_slice(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_bundled_sample_is_real_and_whole() {
        let sample = Sample::bundled().expect("the bundled sample parses");
        let namespaces: BTreeSet<&str> = sample.grains.iter().map(|grain| grain.namespace.as_str()).collect();
        let ids: BTreeSet<GrainId> = sample.grains.iter().map(|grain| grain.id).collect();
        assert_eq!((namespaces.len(), ids.len()), (7, sample.grains.len()), "seven namespaces, ids unique");
        for query in &sample.queries {
            assert!(namespaces.contains(query.namespace.as_str()), "queries ask for what is stored");
        }
        let unit = |vector: &[f32]| (vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 0.01;
        assert!(sample.grains.iter().all(|grain| unit(grain.vector.as_deref().unwrap_or_default())));
        assert!(sample.queries.iter().all(|query| unit(query.vector.as_deref().unwrap_or_default())));
        assert!(
            sample.queries.iter().filter(|query| query.relation.is_some()).count() > 50,
            "all three legs are asked"
        );
    }

    #[test]
    fn what_is_not_a_sample_is_refused() {
        let document = r#"{"id":"a","namespace":"n","subject":"s","text":"t"}"#;
        let query = r#"{"query":{"namespace":"n","text":"t"}}"#;
        let vectors = vec![0; 2 * ROW_BYTES];
        let parse = |lines: &str, bytes: usize| Sample::parse(lines, &vectors[..bytes]);
        assert!(parse(&format!("{document}\n{query}\n"), 2 * ROW_BYTES).is_ok());
        let short = parse(&format!("{document}\n{query}\n"), 2 * ROW_BYTES - 1);
        assert!(matches!(short, Err(SampleError::Vectors { lines: 2, .. })), "{short:?}");
        let empty = parse(&format!("{document}\n{document}\n"), 2 * ROW_BYTES);
        assert!(matches!(empty, Err(SampleError::Empty { grains: 2, queries: 0 })), "{empty:?}");
        let garbled = parse(&format!("{document}\n{{\"id\":1}}\n"), 2 * ROW_BYTES);
        assert!(matches!(garbled, Err(SampleError::Line { line: 2, .. })), "{garbled:?}");
    }
}
