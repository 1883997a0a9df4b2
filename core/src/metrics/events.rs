//! What happened, as typed facts: for `status`, for the log line beside it and, one day, for the audit trail.

use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};

/// Events that a core keeps; older ones fall out, but stay counted.
pub const EVENTS_KEPT: usize = 1024;

/// Something that happened once and matters to whoever runs the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// A shard has replayed its log and serves.
    RecoveryFinished {
        /// The shard.
        shard: u32,
        /// Entries replayed.
        entries: u64,
        /// How long it took.
        duration_us: u64,
    },
    /// A log ended in writes that were never acknowledged; they are gone.
    TornTailCut {
        /// The log.
        log: u16,
        /// The segment file that was cut.
        segment: String,
        /// Where, in bytes from the segment's beginning.
        offset: u64,
        /// Bytes dropped.
        dropped_bytes: u64,
    },
    /// A record that had been acknowledged is damaged.
    CorruptionFound {
        /// The log.
        log: u16,
        /// The segment.
        segment: u64,
        /// Where, in bytes from the segment's beginning.
        offset: u64,
        /// What is wrong there.
        detail: String,
    },
    /// A shard does not serve because its log is damaged.
    ShardQuarantined {
        /// The shard.
        shard: u32,
        /// Why.
        reason: String,
    },
    /// A log reported a write error and takes no more writes.
    LogFailed {
        /// The log.
        log: u16,
        /// The operating system's words.
        reason: String,
    },
    /// A log cannot prepare its next segment, for lack of space or of something else. It tries again.
    LogUnprepared {
        /// The log.
        log: u16,
        /// What it lacks, and what to do.
        reason: String,
    },
    /// A replica stopped because it could not apply an entry.
    ReplicaStopped {
        /// The shard.
        shard: u32,
        /// Why.
        reason: String,
    },
    /// A task held its core too long.
    StallDetected {
        /// The task.
        task: String,
        /// How long.
        duration_us: u64,
    },
    /// A task panicked; the core went on.
    TaskPanicked {
        /// The task.
        task: String,
        /// Its message.
        message: String,
    },
    /// A write with an old fencing token reached the log and was refused.
    StaleTokenRefused {
        /// The shard.
        shard: u32,
        /// The term in force.
        have: u64,
        /// The term of the write.
        got: u64,
    },
    /// A shard has a new leader.
    LeaderElected {
        /// The shard.
        shard: u32,
        /// Its term.
        term: u64,
        /// The leading node.
        node: u64,
    },
    /// A shard has no leader any more.
    LeaderLost {
        /// The shard.
        shard: u32,
        /// The term that ended.
        term: u64,
        /// Why, as far as this node knows.
        reason: String,
    },
    /// I/O does not go the fast way.
    DriverFallback {
        /// The driver in use.
        driver: String,
        /// Why not the better one, and the cure.
        reason: String,
    },
    /// A peer's or client's timestamp was too far ahead of this node's clock.
    ClockDriftRefused {
        /// How far.
        ahead_ms: u64,
    },
}

impl Event {
    /// Its name, as in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Event::RecoveryFinished { .. } => "recovery_finished",
            Event::TornTailCut { .. } => "torn_tail_cut",
            Event::CorruptionFound { .. } => "corruption_found",
            Event::ShardQuarantined { .. } => "shard_quarantined",
            Event::LogFailed { .. } => "log_failed",
            Event::LogUnprepared { .. } => "log_unprepared",
            Event::ReplicaStopped { .. } => "replica_stopped",
            Event::StallDetected { .. } => "stall_detected",
            Event::TaskPanicked { .. } => "task_panicked",
            Event::StaleTokenRefused { .. } => "stale_token_refused",
            Event::LeaderElected { .. } => "leader_elected",
            Event::LeaderLost { .. } => "leader_lost",
            Event::DriverFallback { .. } => "driver_fallback",
            Event::ClockDriftRefused { .. } => "clock_drift_refused",
        }
    }
}

/// An event with its circumstances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EventRecord {
    /// The core's number for it: dense, from 0.
    pub number: u64,
    /// The core.
    pub core: u16,
    /// When, by the node's wall clock, in milliseconds since the epoch.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// The latest events of a core, and how many of each kind there were.
#[derive(Debug, Default)]
pub(super) struct EventRing {
    records: VecDeque<EventRecord>,
    next: u64,
    counts: BTreeMap<&'static str, u64>,
}

impl EventRing {
    pub(super) fn push(&mut self, core: u16, at_ms: u64, event: Event) {
        if self.records.len() == EVENTS_KEPT {
            self.records.pop_front();
        }
        *self.counts.entry(event.name()).or_default() += 1;
        self.records.push_back(EventRecord { number: self.next, core, at_ms, event });
        self.next += 1;
    }

    pub(super) fn records(&self) -> Vec<EventRecord> {
        self.records.iter().cloned().collect()
    }

    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn old_events_fall_out_but_stay_counted() {
        let mut ring = EventRing::default();
        for duration_us in 0..EVENTS_KEPT as u64 + 5 {
            ring.push(3, 7, Event::StallDetected { task: "flush".into(), duration_us });
        }
        let records = ring.records();
        assert_eq!(records.len(), EVENTS_KEPT);
        assert_eq!((records[0].number, records[EVENTS_KEPT - 1].number), (5, EVENTS_KEPT as u64 + 4));
        assert_eq!(ring.counts()["stall_detected"], EVENTS_KEPT as u64 + 5);
    }

    #[test]
    fn json_is_flat_and_names_the_event() {
        let mut ring = EventRing::default();
        ring.push(1, 1_700, Event::LeaderElected { shard: 2, term: 3, node: 4 });
        let record = &ring.records()[0];
        assert_eq!(
            serde_json::to_value(record).expect("plain data"),
            json!({"number": 0, "core": 1, "at_ms": 1_700, "event": "leader_elected", "shard": 2, "term": 3, "node": 4})
        );
        assert_eq!(record.event.name(), "leader_elected");
    }

    /// One of each kind.
    fn events() -> [Event; 14] {
        let text = String::new;
        [
            Event::RecoveryFinished { shard: 0, entries: 0, duration_us: 0 },
            Event::TornTailCut { log: 0, segment: String::new(), offset: 0, dropped_bytes: 0 },
            Event::CorruptionFound { log: 0, segment: 0, offset: 0, detail: text() },
            Event::ShardQuarantined { shard: 0, reason: text() },
            Event::LogFailed { log: 0, reason: text() },
            Event::LogUnprepared { log: 0, reason: text() },
            Event::ReplicaStopped { shard: 0, reason: text() },
            Event::StallDetected { task: text(), duration_us: 0 },
            Event::TaskPanicked { task: text(), message: text() },
            Event::StaleTokenRefused { shard: 0, have: 0, got: 0 },
            Event::LeaderElected { shard: 0, term: 0, node: 0 },
            Event::LeaderLost { shard: 0, term: 0, reason: text() },
            Event::DriverFallback { driver: text(), reason: text() },
            Event::ClockDriftRefused { ahead_ms: 0 },
        ]
    }

    /// `name` and the serialised tag are written twice, so they are compared for every event.
    #[test]
    fn names_are_the_serialised_ones() {
        for event in events() {
            let value = serde_json::to_value(&event).expect("plain data");
            assert_eq!(value["event"], event.name());
        }
    }

    /// The table in PROTOCOL.md has a row for each kind, with its fields, and no others.
    #[test]
    fn every_event_is_documented() {
        let mut documented = super::super::documented::rows("Events");
        for event in events() {
            let row = documented.remove(event.name()).unwrap_or_else(|| panic!("{} is missing", event.name()));
            let mut fields: Vec<&str> = row[1].split(", ").map(|field| field.trim_matches('`')).collect();
            fields.sort_unstable();
            let value = serde_json::to_value(&event).expect("plain data");
            let mut found: Vec<&String> = value.as_object().expect("an object").keys().collect();
            found.retain(|field| *field != "event");
            found.sort_unstable();
            assert_eq!(fields, found, "{}", event.name());
        }
        assert!(documented.is_empty(), "documented, but not there: {documented:?}");
    }
}
