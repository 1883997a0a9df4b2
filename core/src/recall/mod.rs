//! Recall: the best grains of a namespace for some words, a vector and a pattern of relations, in one ranking.
//!
//! ```text
//!  apply ──IndexEvent──▶ RecallIndex ─── per namespace: roster │ text │ vectors │ labels
//!                          ▲   │                                  (relations lie in the store)
//!         recall ──────────┘   └── maintain: text heads ──offload──▶ segments
//!
//!  text ─┐
//!  vector ┼─ up to 200 candidates each ─▶ fusion (RRF, k = 60) ─▶ 20 hits, each with what every leg said
//!  relation ┘
//! ```
//!
//! Rooms: `roster` knows which entry of a grain is alive; `namespace` changes all indexes of a namespace in one step;
//! `index` follows the state and builds segments in the background; `query` says what can be asked; `run` answers it;
//! `fusion` makes one ranking of three.
//!
//! Invariants:
//! * A recall sees every write applied before it began. Background work moves entries, it never hides one.
//! * A hit is alive and passes the filter at the moment at which it is read for the answer.
//! * Nothing holds the core for long: legs, picking and look-ups go in slices, building is offloaded.
//! * The indexes follow from the state alone. They are kept in memory, and come back with it by replaying the log.
//!
//! Limits: [`limits`], and those of `text` and `gristmill-vector`.

pub mod fusion;
mod index;
mod labels;
pub mod limits;
mod namespace;
mod query;
pub mod rank;
mod roster;
mod run;
mod vectors;

#[cfg(test)]
mod tests;

pub use index::{MaintainError, RecallIndex, RecallStats};
pub use query::{RecallError, RecallSpec, StateView};
