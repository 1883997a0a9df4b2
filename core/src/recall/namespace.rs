//! The indexes of one namespace, kept together: every change goes to all of them in one step.

use super::labels::Labels;
use super::rank::Ranked;
use super::roster::{Former, Roster};
use super::vectors::{VectorSearch, Vectors};
use crate::state::grain::GrainRef;
use crate::text::{Analyzer, Job, Judge, TextError, TextIndex, TextSearch};
use gristmill_rpc::ids::GrainId;
use gristmill_vector::{Kernel, VectorError};
use roaring::RoaringBitmap;

/// See the module documentation.
#[derive(Default)]
pub(super) struct Namespace {
    pub roster: Roster,
    pub text: TextIndex,
    pub vectors: Option<Vectors>,
    pub labels: Labels,
    /// Vectors that the vector leg refused: it was full.
    pub vectors_refused: u64,
}

/// Admits documents that are alive and, where there is a filter, pass it.
pub(super) struct Admit<'a> {
    roster: &'a Roster,
    allowed: Option<&'a RoaringBitmap>,
}

impl Judge for Admit<'_> {
    fn admit(&self, slot: u32, row: u64) -> Option<GrainId> {
        let id = self.roster.grain(slot, row)?;
        self.allowed.is_none_or(|allowed| allowed.contains(slot)).then_some(id)
    }
}

impl Namespace {
    /// Stores a grain in the place of what it replaces.
    pub fn put(
        &mut self,
        id: GrainId,
        new: &GrainRef<'_>,
        old: Option<&GrainRef<'_>>,
        analyzer: &mut Analyzer,
        kernel: Kernel,
    ) {
        let (slot, row, former) = self.roster.put(id);
        match (former, old) {
            (Some(former), Some(old)) => self.forget(slot, former, old, analyzer),
            (None, None) => {}
            _ => panic!("store and index disagree on whether the grain was there before"),
        }
        if let Some(text) = new.text() {
            self.text.insert(row, slot, text, analyzer);
        }
        if let Some(vector) = new.vector() {
            match self.push_vector(id, slot, vector, kernel) {
                Ok(vector) => self.roster.set_vector(slot, vector),
                Err(_) => self.vectors_refused += 1,
            }
        }
        for tag in new.tags() {
            self.labels.add(tag, slot);
        }
    }

    /// Removes a grain that is there.
    pub fn remove(&mut self, id: GrainId, old: &GrainRef<'_>, analyzer: &mut Analyzer) {
        let (slot, former) = self.roster.remove(id).expect("only a grain that is there is removed");
        self.forget(slot, former, old, analyzer);
    }

    fn forget(&mut self, slot: u32, former: Former, old: &GrainRef<'_>, analyzer: &mut Analyzer) {
        if let Some(text) = old.text() {
            self.text.remove(former.row, text, analyzer);
        }
        if let Some(vector) = former.vector {
            self.vectors.as_mut().expect("a grain with a vector made it").delete(vector);
        }
        for tag in old.tags() {
            self.labels.remove(tag, slot);
        }
    }

    fn push_vector(
        &mut self,
        id: GrainId,
        slot: u32,
        vector: impl ExactSizeIterator<Item = f32>,
        kernel: Kernel,
    ) -> Result<u32, VectorError> {
        let vectors = match &mut self.vectors {
            Some(vectors) => vectors,
            none => none.insert(Vectors::new(vector.len(), kernel)?),
        };
        vectors.push(id, slot, vector)
    }

    /// Who may be found.
    pub fn admit<'a>(&'a self, allowed: Option<&'a RoaringBitmap>) -> Admit<'a> {
        Admit { roster: &self.roster, allowed }
    }

    /// Looks at some documents of the job that was begun; the job, once it is ready.
    pub fn pick(&mut self, budget: u32) -> Option<Job> {
        self.text.pick(&Admit { roster: &self.roster, allowed: None }, budget)
    }

    /// The hits of the text leg as of now.
    pub fn finish_text(
        &self,
        mut search: TextSearch,
        allowed: Option<&RoaringBitmap>,
    ) -> Result<Vec<Ranked>, TextError> {
        let admit = self.admit(allowed);
        self.text.catch_up(&mut search, &admit)?;
        Ok(search.finish(&admit))
    }

    /// The hits of the vector leg as of now. `rows_end` is where the recall began.
    pub fn finish_vector(
        &self,
        search: VectorSearch,
        allowed: Option<&RoaringBitmap>,
        rows_end: u64,
    ) -> Result<Vec<Ranked>, VectorError> {
        let Some(vectors) = &self.vectors else { return Ok(Vec::new()) };
        let came = self.roster.since(rows_end).filter(|slot| allowed.is_none_or(|allowed| allowed.contains(*slot)));
        let came = came.filter_map(|slot| self.roster.vector(slot)).collect();
        vectors.finish(search, came, &self.roster)
    }
}
