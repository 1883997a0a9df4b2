//! Recall: what is asked and answered. The legs run one after the other in slices, then everything is brought up to date.
//!
//! ```text
//!  filter ─▶ text leg ─▶ vector leg ─▶ relation leg ─▶ catch up ─▶ fuse ─▶ look up grains, check the filter again
//!  \______ in slices, others run in between ______/   \__ one poll __/   \__________ in slices __________/
//! ```
//!
//! **What a recall sees.** Every write acknowledged before it began, and the state of the moment in which it answers: what
//! was written while it ran is looked at before the lists are fused, what was deleted is left out, and each hit is read
//! from the state and checked against the filter once more. (Concurrent deletes can leave a leg with fewer candidates than
//! it was asked for. Scores of the text leg keep the statistics of the moment at which it began.)
//!
//! **The relation leg** scores a grain by how many of its relations match, ties by id.
//!
//! Not here yet: diversity and contradiction detection, which belong between fusion and look-up.

use super::index::RecallIndex;
use super::run::Run;
use crate::relation::Pattern;
use crate::state::apply::ShardState;
use crate::state::read::ReadError;
use crate::state::store::{Store, StoreError};
use crate::text::TextError;
use gristmill_rpc::error::ErrorCode;
use gristmill_rpc::limits::{RECALL_CANDIDATES_DEFAULT, RECALL_CANDIDATES_MAX, RECALL_HITS_DEFAULT, RECALL_HITS_MAX};
use gristmill_rpc::schema::{ArchivedRecallRequest, RecallReply};
use gristmill_vector::VectorError;
use std::cell::RefCell;

/// The state that an index follows, as recall reads it: short looks, none of them held while others run.
pub trait StateView {
    /// The state's store.
    type Store: Store;

    /// Looks at the state.
    fn read<T>(&self, look: impl FnOnce(&ShardState<Self::Store>) -> T) -> T;
}

impl<S: Store> StateView for RefCell<ShardState<S>> {
    type Store = S;

    fn read<T>(&self, look: impl FnOnce(&ShardState<S>) -> T) -> T {
        look(&self.borrow())
    }
}

/// What to recall.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RecallSpec {
    /// The namespace.
    pub namespace: String,
    /// Words for the text leg.
    pub text: Option<String>,
    /// A query for the vector leg.
    pub vector: Option<Vec<f32>>,
    /// A pattern for the relation leg.
    pub relation: Option<Pattern>,
    /// Only grains that carry all of these.
    pub tags: Vec<String>,
    /// Only grains of this subject.
    pub subject: Option<String>,
    /// Hits at the most; 0 means the default.
    pub limit: u32,
    /// Candidates of each leg at the most; 0 means the default.
    pub candidates: u32,
    /// Return the grains too.
    pub with_grains: bool,
}

impl From<&ArchivedRecallRequest> for RecallSpec {
    fn from(request: &ArchivedRecallRequest) -> RecallSpec {
        let given = |part: &str| (!part.is_empty()).then(|| part.to_owned());
        RecallSpec {
            namespace: request.namespace.to_string(),
            text: request.text.as_ref().map(ToString::to_string),
            vector: request.vector.as_ref().map(|vector| vector.iter().map(|x| x.to_native()).collect()),
            relation: request.relation.as_ref().map(|pattern| Pattern {
                subject: given(&pattern.subject),
                predicate: given(&pattern.predicate),
                object: given(&pattern.object),
            }),
            tags: request.tags.iter().map(ToString::to_string).collect(),
            subject: given(&request.subject),
            limit: request.limit.to_native(),
            candidates: request.candidates.to_native(),
            with_grains: request.with_grains,
        }
    }
}

impl RecallSpec {
    /// Hits at the most.
    pub(super) fn limit(&self) -> usize {
        (if self.limit == 0 { RECALL_HITS_DEFAULT } else { self.limit.min(RECALL_HITS_MAX) }) as usize
    }

    /// Candidates of each leg at the most: unless told otherwise, enough for the hits.
    pub(super) fn candidates(&self) -> usize {
        match self.candidates {
            0 => self.limit().max(RECALL_CANDIDATES_DEFAULT as usize),
            candidates => candidates.min(RECALL_CANDIDATES_MAX) as usize,
        }
    }
}

/// Why a recall has no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RecallError {
    /// The namespace cannot be read here.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The query vector cannot be compared with the namespace's.
    #[error(transparent)]
    Vector(#[from] VectorError),
    /// The text index failed.
    #[error(transparent)]
    Text(#[from] TextError),
}

impl RecallError {
    /// The code that programs decide by.
    pub fn code(&self) -> ErrorCode {
        match self {
            RecallError::Read(error) => error.code(),
            RecallError::Store(_) => ErrorCode::Quarantined,
            RecallError::Vector(VectorError::WrongDimension { .. }) => ErrorCode::WrongDimension,
            RecallError::Vector(_) => ErrorCode::InvalidArgument,
            RecallError::Text(_) => ErrorCode::Internal,
        }
    }
}

impl RecallIndex {
    /// Finds the best grains of a namespace. `view` is the state that this index follows.
    ///
    /// # Panics
    /// Outside an executor.
    pub async fn recall(&self, view: &impl StateView, spec: &RecallSpec) -> Result<RecallReply, RecallError> {
        let (scope, dimensions) = view.read(|state| {
            let namespace = state.namespace(&spec.namespace)?;
            Ok::<_, ReadError>((namespace.scope, namespace.dimensions))
        })?;
        if let (Some(vector), Some(expected)) = (&spec.vector, dimensions)
            && vector.len() != expected as usize
        {
            let (expected, given) = (expected as usize, vector.len());
            return Err(VectorError::WrongDimension { expected, given }.into());
        }
        Run::new(self, view, spec, scope).run().await
    }
}
