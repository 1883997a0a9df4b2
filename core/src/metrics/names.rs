//! What is measured: one definition each, so that names, units and help are the same wherever they show.

use serde::Serialize;

/// How a metric behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Only grows, until the process ends. Its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

/// What a metric counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Things.
    Count,
    /// Bytes. The name says so.
    Bytes,
    /// Microseconds. The name says so.
    Microseconds,
}

/// A metric.
#[derive(Debug, PartialEq, Eq)]
pub struct Definition {
    /// As users see it; units last.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// What it counts in.
    pub unit: Unit,
    /// One sentence for people.
    pub help: &'static str,
}

macro_rules! definitions {
    ($($constant:ident: $kind:ident, $unit:ident, $name:literal, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: &Definition =
                &Definition { name: $name, kind: Kind::$kind, unit: Unit::$unit, help: $help };
        )*
        /// All metrics.
        pub const ALL: &[&Definition] = &[$($constant),*];
    };
}

definitions! {
    // Consensus, per shard.
    CURRENT_TERM: Gauge, Count, "current_term", "Term of the shard's Raft group.";
    COMMIT_INDEX: Gauge, Count, "commit_index", "Highest log index known to be committed.";
    APPLIED_INDEX: Gauge, Count, "applied_index", "Highest log index that is part of the state.";
    LOG_ENTRY_COUNT: Gauge, Count, "log_entry_count", "Entries in the shard's log.";
    PEER_COUNT: Gauge, Count, "peer_count", "Other voters of the shard's group.";
    IS_LEADER: Gauge, Count, "is_leader", "1 where this replica leads its shard, else 0.";
    ELECTIONS_STARTED: Counter, Count, "elections_started_total", "Elections that this replica started.";
    LEADER_CHANGES: Counter, Count, "leader_changes_total", "Times that the shard's leader changed.";
    APPEND_ENTRIES_SENT: Counter, Count, "append_entries_sent_total", "Append requests sent to followers.";
    APPEND_ENTRIES_RECEIVED: Counter, Count, "append_entries_received_total", "Append requests received from leaders.";
    APPEND_ENTRIES_LATENCY: Histogram, Microseconds, "append_entries_latency_us", "From an append request to its answer.";
    VOTE_REQUESTS_SENT: Counter, Count, "vote_requests_sent_total", "Votes asked of other replicas.";
    SNAPSHOTS_CREATED: Counter, Count, "snapshots_created_total", "Snapshots taken.";
    PROPOSALS: Counter, Count, "proposals_total", "Commands proposed by this replica.";
    PROPOSE_BATCH_SIZE: Histogram, Count, "propose_batch_size", "Commands proposed at once.";
    PROPOSE_LATENCY: Histogram, Microseconds, "propose_latency_us", "From proposing a command to its outcome.";

    // The log, per log or shard.
    FENCING_TOKENS_ISSUED: Counter, Count, "fencing_tokens_issued_total", "Fencing tokens stamped on proposals.";
    STALE_TOKENS_REFUSED: Counter, Count, "stale_tokens_refused_total", "Writes refused because of a stale token.";
    CORRUPTION_EVENTS: Counter, Count, "corruption_events_total", "Damaged records found.";
    WAL_ENTRIES_REPLAYED: Counter, Count, "wal_entries_replayed_total", "Log entries replayed at the start.";
    WAL_APPENDS: Counter, Count, "wal_appends_total", "Records appended to the log.";
    WAL_BATCHES: Counter, Count, "wal_batches_total", "Batches written to the log, each with one sync.";
    WAL_BYTES: Counter, Bytes, "wal_written_bytes_total", "Bytes written to the log.";
    WAL_UNPREPARED: Gauge, Count, "wal_unprepared", "1 while the log cannot prepare its next segment, else 0.";
    WAL_SYNC_LATENCY: Histogram, Microseconds, "wal_sync_latency_us", "From submitting a batch to its durability.";

    // The state, per shard.
    APPLY_BATCHES: Counter, Count, "apply_batches_total", "Batches of committed entries applied.";
    APPLY_BATCH_SIZE: Histogram, Count, "apply_batch_size", "Committed entries applied at once.";
    APPLIED_ENTRIES: Counter, Count, "applied_entries_total", "Committed entries applied.";
    APPLIED_OPERATIONS: Counter, Count, "applied_operations_total", "Operations of commands that took effect.";
    DUPLICATE_COMMANDS: Counter, Count, "duplicate_commands_total", "Retried commands answered from the session.";
    FAILED_PRECONDITIONS: Counter, Count, "failed_preconditions_total", "Commands stopped by a precondition.";
    REJECTED_COMMANDS: Counter, Count, "rejected_commands_total", "Commands rejected at apply.";
    EXPIRED_VALUES_SWEPT: Counter, Count, "expired_values_swept_total", "Values removed because they had expired.";
    STATE_MEMORY: Gauge, Bytes, "state_memory_bytes", "Memory that the shard's state occupies.";
    NAMESPACES: Gauge, Count, "namespaces", "Namespaces of the shard.";
    VALUES: Gauge, Count, "values", "Live plain values of the shard.";
    GRAINS: Gauge, Count, "grains", "Live grains of the shard.";
    SESSIONS: Gauge, Count, "sessions", "Client sessions with remembered answers.";
    SESSION_ANSWERS: Gauge, Count, "session_answers", "Remembered answers of all sessions.";

    // Requests, per core.
    CONNECTIONS: Gauge, Count, "connections", "Open client connections.";
    REQUESTS: Counter, Count, "requests_total", "Requests received.";
    FORWARDED_REQUESTS: Counter, Count, "forwarded_requests_total", "Requests passed to the core that owns their shard.";
    CONNECTIONS_ACCEPTED: Counter, Count, "connections_accepted_total", "Client connections accepted.";
    CONNECTIONS_REFUSED: Counter, Count, "connections_refused_total", "Client connections refused because too many were open.";
    BAD_FRAMES: Counter, Count, "bad_frames_total", "Connections ended because what came is no frame.";
    REQUEST_ERRORS: Counter, Count, "request_errors_total", "Requests answered with an error.";
    REQUEST_LATENCY: Histogram, Microseconds, "request_latency_us", "From a request's last byte to its answer's first.";
    RECALL_LATENCY: Histogram, Microseconds, "recall_latency_us", "From a recall's last byte to its answer's first.";

    // The executor, per core.
    STALLS: Counter, Count, "stalls_total", "Times that a task held its core too long.";
    STALL_MAX: Gauge, Microseconds, "stall_us_max", "Longest time that a task held its core.";
    TASK_PANICS: Counter, Count, "task_panics_total", "Panics of tasks, each caught.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_follow_the_rules() {
        let mut seen = BTreeSet::new();
        for Definition { name, kind, unit, help } in ALL {
            assert!(seen.insert(name), "{name} is defined twice");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert_eq!(name.contains("_bytes"), *unit == Unit::Bytes, "{name}");
            assert_eq!(name.ends_with("_us") || name.contains("_us_"), *unit == Unit::Microseconds, "{name}");
            assert!(help.ends_with('.'), "{name}");
        }
    }

    /// The table in PROTOCOL.md says what the definitions say, and has no other rows.
    #[test]
    fn every_metric_is_documented() {
        let mut documented = super::super::documented::rows("Metrics");
        for definition in ALL {
            let row = documented.remove(definition.name).unwrap_or_else(|| panic!("{} is missing", definition.name));
            let json = |value: serde_json::Value| value.as_str().map(str::to_owned).expect("a word");
            assert_eq!(row[1], json(serde_json::json!(definition.kind)), "{}", definition.name);
            assert_eq!(row[2], json(serde_json::json!(definition.unit)), "{}", definition.name);
            assert!(row[4].starts_with(definition.help), "{}", definition.name);
        }
        assert!(documented.is_empty(), "documented, but not there: {documented:?}");
    }

    /// The names that users of the systems we follow look for (FEATURES, part B).
    #[test]
    fn expected_names_are_there() {
        for expected in [
            "current_term",
            "commit_index",
            "applied_index",
            "elections_started_total",
            "leader_changes_total",
            "append_entries_sent_total",
            "append_entries_received_total",
            "append_entries_latency_us",
            "fencing_tokens_issued_total",
            "corruption_events_total",
            "wal_entries_replayed_total",
            "log_entry_count",
            "peer_count",
            "snapshots_created_total",
            "vote_requests_sent_total",
        ] {
            assert!(ALL.iter().any(|definition| definition.name == expected), "{expected}");
        }
    }
}
