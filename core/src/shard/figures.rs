//! What a shard shows in its core's registry, under its number.

use super::replica::Shard;
use crate::metrics::{Counter, Histogram, Labels, Registry, names};
use crate::raft::GroupMetrics;
use gristmill_rpc::ids::ShardId;
use std::rc::{Rc, Weak};
use std::time::Duration;

type Figure = fn(&GroupMetrics) -> u64;

/// What a shard counts of its proposals.
pub(super) struct ShardMetrics {
    proposals: Counter,
    batch_size: Histogram,
    latency: Histogram,
}

fn labels(shard: ShardId) -> Labels {
    Labels::from([("shard", shard.0.to_string())])
}

impl ShardMetrics {
    pub(super) fn register(registry: &Registry, shard: ShardId) -> ShardMetrics {
        registry.counter(names::SNAPSHOTS_CREATED, labels(shard));
        ShardMetrics {
            proposals: registry.counter(names::PROPOSALS, labels(shard)),
            batch_size: registry.histogram(names::PROPOSE_BATCH_SIZE, labels(shard)),
            latency: registry.histogram(names::PROPOSE_LATENCY, labels(shard)),
        }
    }

    /// A batch of so many commands was handed to consensus.
    pub(super) fn proposed(&self, count: usize) {
        if count > 0 {
            self.proposals.add(count as u64);
            self.batch_size.record(count as u64);
        }
    }

    /// The outcomes of a batch of so many commands are there.
    pub(super) fn settled(&self, count: usize, took: Duration) {
        self.latency.record_time_many(took, count as u64);
    }
}

/// Shows the figures of a shard's group: zeros while there is none.
pub(super) fn observe_group(registry: &Registry, shard: &Rc<Shard>) {
    let id = shard.id();
    let figures: [(_, Figure); 11] = [
        (names::CURRENT_TERM, |group| group.term),
        (names::COMMIT_INDEX, |group| group.committed.map_or(0, |committed| committed.index)),
        (names::LOG_ENTRY_COUNT, |group| group.log_entries),
        (names::PEER_COUNT, |group| group.voters.len().saturating_sub(1) as u64),
        (names::IS_LEADER, |group| u64::from(group.leads)),
        (names::ELECTIONS_STARTED, |group| group.elections),
        (names::LEADER_CHANGES, |group| group.leader_changes),
        (names::FENCING_TOKENS_ISSUED, |group| group.tokens_issued),
        (names::APPEND_ENTRIES_SENT, |group| group.appends_sent),
        (names::APPEND_ENTRIES_RECEIVED, |group| group.appends_received),
        (names::VOTE_REQUESTS_SENT, |group| group.votes_sent),
    ];
    for (definition, figure) in figures {
        let shard: Weak<Shard> = Rc::downgrade(shard);
        registry.observe(definition, labels(id), move || {
            let metrics = shard.upgrade().and_then(|shard| shard.group_metrics());
            metrics.map_or(0, |metrics| i64::try_from(figure(&metrics)).unwrap_or(i64::MAX))
        });
    }
}
