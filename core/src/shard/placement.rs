//! Which log holds a shard and which core runs it.
//!
//! Shards and logs are numbered from 0 and fixed when the data directory is created; cores are those of this start.
//! A shard lies in log `shard mod logs`, a log runs on core `log mod cores`. So a restart with other `--cores` remaps
//! whole logs and moves no data.

use gristmill_rpc::ids::ShardId;
use gristmill_shardexec::CoreId;
use gristmill_wal::LogNumber;

/// The assignment of shards to logs and of logs to cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    shards: u32,
    logs: u16,
    cores: u16,
}

impl Placement {
    /// Places `shards` shards in `logs` logs on `cores` cores.
    ///
    /// # Panics
    /// If any of them is 0, or there are more logs than shards: the superblock is checked before.
    pub fn new(shards: u32, logs: u16, cores: u16) -> Placement {
        assert!(shards > 0 && logs > 0 && cores > 0, "a store has shards, logs and cores");
        assert!(u32::from(logs) <= shards, "a log without a shard would never be written");
        Placement { shards, logs, cores }
    }

    /// Number of shards.
    pub fn shards(self) -> u32 {
        self.shards
    }

    /// Number of cores.
    pub fn cores(self) -> u16 {
        self.cores
    }

    /// The log that holds a shard.
    pub fn log_of(self, shard: ShardId) -> LogNumber {
        assert!(shard.0 < self.shards, "shard {} of {}", shard.0, self.shards);
        LogNumber((shard.0 % u32::from(self.logs)) as u16)
    }

    /// The core that runs a shard.
    pub fn core_of(self, shard: ShardId) -> CoreId {
        CoreId(self.log_of(shard).0 % self.cores)
    }

    /// The logs that a core runs; none where there are more cores than logs.
    pub fn logs_of(self, core: CoreId) -> impl Iterator<Item = LogNumber> {
        (0..self.logs).filter(move |log| log % self.cores == core.0).map(LogNumber)
    }

    /// The shards in a log.
    pub fn shards_in(self, log: LogNumber) -> impl Iterator<Item = ShardId> {
        (0..self.shards).map(ShardId).filter(move |shard| self.log_of(*shard) == log)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_runs_once_whatever_the_cores() {
        for cores in 1..6 {
            let placement = Placement::new(7, 3, cores);
            let mut seen = Vec::new();
            for core in (0..cores).map(CoreId) {
                for log in placement.logs_of(core) {
                    for shard in placement.shards_in(log) {
                        assert_eq!((placement.core_of(shard), placement.log_of(shard)), (core, log));
                        seen.push(shard.0);
                    }
                }
            }
            seen.sort_unstable();
            assert_eq!(seen, (0..7).collect::<Vec<_>>(), "{cores} cores");
        }
    }

    #[test]
    fn other_cores_move_no_shard_to_another_log() {
        let logs = |cores| (0..16).map(|shard| Placement::new(16, 4, cores).log_of(ShardId(shard))).collect::<Vec<_>>();
        assert_eq!(logs(1), logs(4));
    }
}
