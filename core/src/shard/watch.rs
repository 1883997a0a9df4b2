//! Follows one shard's group and tells what matters to whoever runs the node: lines on stderr, events for `status`.

use super::wall_ms;
use crate::metrics::{Event, Registry};
use crate::raft::{Group, Phase, StopReason};
use gristmill_rpc::ids::ShardId;
use gristmill_shardexec::tell;
use gristmill_shardexec::time::{Instant, timeout};
use std::time::Duration;

/// Pause between two lines about one long replay.
pub(crate) const PROGRESS_PAUSE: Duration = Duration::from_secs(2);

/// Follows a group from its start until it has stopped.
pub(super) async fn watch(shard: ShardId, group: Group, registry: Registry) {
    let began = Instant::now();
    let reason = match replayed(shard, &group).await {
        Ok(()) => {
            let duration_us = u64::try_from((Instant::now() - began).as_micros()).unwrap_or(u64::MAX);
            let event = Event::RecoveryFinished { shard: shard.0, entries: group.entries_at_start(), duration_us };
            registry.emit(wall_ms(), event);
            follow(shard, &group, &registry).await
        }
        Err(reason) => reason,
    };
    if reason != StopReason::Shutdown {
        tell(format_args!("gristmill: shard {} stopped: {reason}", shard.0));
        registry.emit(wall_ms(), Event::ReplicaStopped { shard: shard.0, reason: reason.to_string() });
    }
}

/// Waits until the group serves. A replay that takes long says how far it is.
async fn replayed(shard: ShardId, group: &Group) -> Result<(), StopReason> {
    loop {
        if let Ok(outcome) = timeout(PROGRESS_PAUSE, group.ready()).await {
            return outcome;
        }
        if let Phase::Recovering { applied, target } = group.phase() {
            tell(format_args!("gristmill: shard {} is recovering: entry {applied} of {target} is applied", shard.0));
        }
    }
}

/// Tells of each new leader until the group stops.
async fn follow(shard: ShardId, group: &Group, registry: &Registry) -> StopReason {
    let mut told = 0;
    loop {
        if let Phase::Stopped(reason) = group.phase() {
            return reason;
        }
        let metrics = group.metrics();
        if let Some(leader) = metrics.leader.filter(|_| metrics.leader_changes > told) {
            told = metrics.leader_changes;
            registry.emit(wall_ms(), Event::LeaderElected { shard: shard.0, term: metrics.term, node: leader.node });
        }
        group.changed().await;
    }
}
