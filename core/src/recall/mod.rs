//! Recall.

pub mod rank;
