//! Text search: BM25 over the texts of a namespace's grains, by tantivy's index format and without its threads.
//!
//! ```text
//!  apply ──insert/remove──▶ TextIndex ◀──search──▶ TextSearch (stepped, pausable)
//!                            │     ▲
//!                begin, pick ▼     │ install
//!                           Job ──offload──▶ Segment
//! ```
//!
//! Rooms: `analyzer` cuts texts into terms; `head` is the small index that takes writes at once; `segment` builds and
//! merges tantivy segments in memory (`directory`); `search` finds the best documents in both; `bm25` scores; `index` keeps
//! them together for one namespace.
//!
//! Invariants:
//! * A search sees every document added before it, whether or not its segment is built.
//! * A score depends on the live documents of the namespace alone, to the bit: not on how they are spread over head and
//!   segments, nor on what was deleted. Tests compare with one naive BM25.
//! * Nothing here reads a clock, draws a random number that shows, starts a thread or waits. (tantivy names its segments
//!   by random numbers; the names never leave the segment's own directory.)
//!
//! Not here yet: segments on disk (the state is memory rebuilt from the log, and so is this), phrases, stemming.

mod analyzer;
mod bm25;
mod directory;
mod head;
mod index;
pub mod limits;
mod search;
mod segment;
mod terms;
#[cfg(test)]
pub(crate) mod tests;

pub use analyzer::{Analyzer, TextQuery};
pub use bm25::Statistics;
pub use index::TextIndex;
pub use search::{Judge, TextSearch};
pub use segment::{Job, Segment, TextError};
