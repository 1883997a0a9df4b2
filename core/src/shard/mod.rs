//! Shards: where they lie, who runs them, and the replica that serves one.

pub mod data_dir;
pub(crate) mod machine;
pub mod placement;
pub(crate) mod replica;
pub mod superblock;
