//! Shards: where they lie, who runs them, and the replica that serves one.

use gristmill_shardexec::time::WallClock;

pub mod data_dir;
mod figures;
pub(crate) mod machine;
mod peers;
pub mod placement;
pub(crate) mod replica;
pub mod superblock;
mod sweep;
mod turns;
pub(crate) mod watch;

#[cfg(test)]
mod tests;

/// The wall clock of this core, in milliseconds since the epoch.
pub(crate) fn wall_ms() -> u64 {
    WallClock::now().0 / 1_000_000
}
