//! The seam between recall and the indexes it asks: what the exact scan and a graph have in common.

use crate::VectorError;

/// How a score is made of two vectors. Squared Euclidean distance is not offered: on vectors of one length it orders as the cosine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Vectors and queries are scaled to length 1 when they come in; the score is the cosine of their angle.
    Cosine,
    /// Vectors are taken as they are; the score is their inner product.
    InnerProduct,
}

/// Which rows a search may return.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Every live row.
    All,
    /// These, ascending and distinct; those that are not live are passed over.
    Rows(Vec<u32>),
}

/// Whether a search wants another slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a search that is not done has no answer yet"]
pub enum Progress {
    /// Call `step` again.
    More,
    /// Call `finish`.
    Done,
}

/// One row found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// Inner product or cosine in f32, higher is nearer.
    pub score: f32,
    /// The caller's id of the row.
    pub id: u64,
    /// Where the index holds it.
    pub row: u32,
}

/// An index over vectors of one dimension. Searches run in slices, so that the core they run on can serve others in between; the index may
/// change between two slices.
pub trait VectorIndex {
    /// A search under way. It holds no borrow of the index.
    type Search;

    /// Components of each vector.
    fn dimension(&self) -> usize;

    /// How scores are made.
    fn metric(&self) -> Metric;

    /// Live rows.
    fn len(&self) -> usize;

    /// Whether no row is live.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory held.
    fn memory_bytes(&self) -> usize;

    /// Takes a row out: no later search finds it, and its vector is overwritten.
    ///
    /// # Panics
    /// When the row is not live: the caller keeps the rows of its ids.
    fn delete(&mut self, row: u32);

    /// Begins a search for the `k` best rows.
    fn start(&self, query: &[f32], k: usize, allowed: Allowed) -> Result<Self::Search, VectorError>;

    /// Carries a search on, at a cost of about `budget_rows` scored rows.
    fn step(&self, search: &mut Self::Search, budget_rows: usize) -> Progress;

    /// The hits of a search that is done, best first, ties by ascending id.
    ///
    /// # Panics
    /// When the search is not done.
    fn finish(&self, search: Self::Search) -> Vec<Hit>;

    /// A search in one go, for callers that need not let others run.
    fn search(&self, query: &[f32], k: usize, allowed: Allowed) -> Result<Vec<Hit>, VectorError> {
        let mut search = self.start(query, k, allowed)?;
        while self.step(&mut search, usize::MAX) == Progress::More {}
        Ok(self.finish(search))
    }
}
