//! Consensus: one Raft group per shard over openraft, the log on the core's WAL. The only place that names openraft.
//!
//! ```text
//!  shard actor ── propose_many ──> Group ──> openraft core ──> WalLog ──> gristmill_wal (one per core, group commit)
//!                                    ^            │ committed
//!                                    └─ outcomes ─┴──> Applier ──> StateMachine (core/state)
//! ```
//!
//! openraft decides, these modules execute: `runtime` gives it our executor, `log_store` our WAL, `state_machine` our apply,
//! `config` our settings instead of its defaults, `start` refuses logs it must not vote with, `tokens` stamps who wrote
//! what, `network` carries messages to other replicas and `group_peers` takes theirs. Requests and answers are bytes here; a
//! [`Context`] gives them types.
//!
//! Deliberately absent in this version: snapshots. Logs are never purged, so every replica can catch up by the log.

mod cache;
mod codec;
mod config;
mod errors;
mod group;
mod group_peers;
mod life;
mod log_store;
mod members;
mod memory_store;
mod network;
mod reads;
mod runtime;
mod start;
mod state_machine;
#[cfg(test)]
mod tests;
mod tokens;
mod types;

pub use codec::EntryError;
pub use config::{ELECTION_TIMEOUT_MS_MAX, ELECTION_TIMEOUT_MS_MIN, HEARTBEAT_MS, RaftSettings, RaftSettingsError};
pub use errors::{MembershipError, PeerRefusal, ProposeError, ReadError, StartError, StopReason};
pub use group::{
    Applied, Group, GroupConfig, GroupMetrics, GroupPeers, GroupStore, PROPOSAL_BYTES_IN_FLIGHT_MAX,
    PROPOSALS_IN_FLIGHT_MAX, Phase, ReplicaView, Role,
};
pub use group_peers::APPENDS_WAITING_MAX;
pub use log_store::{WalLog, WalLogOptions};
pub use members::CATCH_UP_MAX;
pub use memory_store::MemoryLog;
pub use network::{ClusterId, LinkOptions, PeerBook, PeerLinks, WireError};
pub use start::{LogSummary, Quarantine, RestartGuard, check_start};
pub use state_machine::{APPLY_BATCH_BYTES_MAX, APPLY_BATCH_MAX, ApplyError, Committed, Room, StateMachine};
pub use tokens::TokenError;
pub use types::{Context, OUTCOME_INLINE_BYTES, Outcome, Proposal, ReplicaId};
