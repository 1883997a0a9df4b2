//! Our settings, and what openraft is told instead of its defaults.
//!
//! | openraft's default | ours | why |
//! |---|---|---|
//! | `enable_leader_restore` on | off | entries replicate before the local flush: resuming a term could reuse a (term, index) with other content |
//! | pre-vote off | on | a replica that was cut off must not drive the term up when it returns |
//! | a snapshot every 5,000 entries | never | a flush of the state reports one |
//! | log reversion unset | off, explicitly | a follower that lost its log is replaced under a new id, never refilled |
//! | election timeout 150–300 ms on top of a 300 ms lease | 60–150 ms on top of 150 ms | the documented 150–300 ms is the total |
//! | channels of 65,536 slots | hundreds | memory per idle replica |
//! | tick on | off for one voter | nobody to send heartbeats to, nobody to lose a lease to |
//!
//! The lower end of the random part is 60 ms, not the 10 ms that a total of 160 ms would allow: openraft gives a vote
//! request just that long to be answered, and an answer waits for the voter's disk.

use crate::bugs::{Bug, Bugs};
use openraft::{Config, SnapshotPolicy};
use std::time::Duration;

/// Shortest total time after which a dead leader is replaced, as documented.
pub const ELECTION_TIMEOUT_MS_MIN: u64 = 150;
/// Longest total time after which a candidate stands.
pub const ELECTION_TIMEOUT_MS_MAX: u64 = 300;
/// Time between a leader's heartbeats.
pub const HEARTBEAT_MS: u64 = 50;
/// How far two BOOTTIME clocks may drift apart within a lease, in percent. Crystals stay below 0.1 %.
pub const LEASE_DRIFT_PERCENT: u32 = 10;

/// A lease must survive the loss of a heartbeat or two.
const HEARTBEATS_A_LEASE_MIN: u32 = 3;
/// The random part's lower end, see the module's head.
const CANDIDACY_MS_MIN: u64 = 60;

/// Requests that wait for the consensus task of one group: batches, not proposals.
const API_CHANNEL_SLOTS: u64 = 256;
/// Proposals that the consensus task merges into one append.
const API_BATCH_ENTRIES: u64 = 4096;
/// Events (flushes, applies, votes, ticks) that wait for the consensus task.
const NOTIFICATION_CHANNEL_SLOTS: u64 = 256;
/// Commands that wait for the apply task. Each is a whole range of entries.
const APPLY_CHANNEL_SLOTS: u64 = 64;
/// Entries in one append to the log.
const APPEND_ENTRIES_MAX: u64 = 4096;

const _: () = assert!(CANDIDACY_MS_MIN > HEARTBEAT_MS);
const _: () = assert!(ELECTION_TIMEOUT_MS_MAX == 2 * ELECTION_TIMEOUT_MS_MIN);
const _: () = assert!(CANDIDACY_MS_MIN < ELECTION_TIMEOUT_MS_MIN);

/// What can be set for a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftSettings {
    /// How long a leader that a quorum answered may serve reads alone. A dead leader is replaced after one lease plus a
    /// random part of up to the same length.
    pub leader_lease: Duration,
    /// Time between heartbeats of a leader with followers.
    pub heartbeat: Duration,
    /// The bug that the group shall have.
    #[cfg(feature = "bugs")]
    pub bug: Option<Bug>,
}

impl Default for RaftSettings {
    fn default() -> Self {
        RaftSettings {
            leader_lease: Duration::from_millis(ELECTION_TIMEOUT_MS_MIN),
            heartbeat: Duration::from_millis(HEARTBEAT_MS),
            #[cfg(feature = "bugs")]
            bug: None,
        }
    }
}

/// Settings that cannot work together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RaftSettingsError {
    /// Fewer than three heartbeats fit into a lease.
    #[error(
        "raft heartbeat of {heartbeat:?} leaves no room in a leader lease of {lease:?}; \
         set the lease to at least three times the heartbeat"
    )]
    LeaseTooShort {
        /// The heartbeat asked for.
        heartbeat: Duration,
        /// The lease asked for.
        lease: Duration,
    },
    /// Timers tick in milliseconds.
    #[error("raft heartbeat of {heartbeat:?} is below one millisecond")]
    HeartbeatTooShort {
        /// The heartbeat asked for.
        heartbeat: Duration,
    },
}

impl RaftSettings {
    /// The same settings for a group that has `bugs`.
    pub(crate) fn with_bugs(self, bugs: Bugs) -> RaftSettings {
        let Bugs { .. } = bugs;
        RaftSettings {
            #[cfg(feature = "bugs")]
            bug: bugs.active,
            ..self
        }
    }

    #[cfg_attr(not(feature = "bugs"), allow(clippy::unused_self, reason = "with the feature it looks at a field"))]
    pub(super) fn bugs(&self) -> Bugs {
        Bugs {
            #[cfg(feature = "bugs")]
            active: self.bug,
        }
    }

    /// How long a restarted replica of a group with several voters keeps quiet: it has forgotten a lease that it may
    /// have granted just before, and the clocks may drift.
    pub fn restart_hold(&self) -> Duration {
        self.leader_lease + self.leader_lease * LEASE_DRIFT_PERCENT / 100
    }

    /// openraft's configuration for a group called `name`.
    pub(crate) fn to_openraft(self, name: String) -> Result<Config, RaftSettingsError> {
        let (heartbeat, lease) = (self.heartbeat, self.leader_lease);
        if heartbeat < Duration::from_millis(1) {
            return Err(RaftSettingsError::HeartbeatTooShort { heartbeat });
        }
        if lease < HEARTBEATS_A_LEASE_MIN * heartbeat {
            return Err(RaftSettingsError::LeaseTooShort { heartbeat, lease });
        }
        let lease_ms = lease.as_millis() as u64;
        let heartbeat_ms = heartbeat.as_millis() as u64;
        // The same share of the lease as 60 ms of 150 ms, and above the heartbeat in any case.
        let candidacy_ms_min = (lease_ms * CANDIDACY_MS_MIN / ELECTION_TIMEOUT_MS_MIN).max(heartbeat_ms + 1);
        let config = Config {
            cluster_name: name,
            election_timeout_min: candidacy_ms_min,
            // Serves as the leader's lease as well.
            election_timeout_max: lease_ms,
            heartbeat_interval: heartbeat_ms,
            snapshot_policy: SnapshotPolicy::Never,
            api_channel_size: Some(API_CHANNEL_SLOTS),
            api_batch_capacity: API_BATCH_ENTRIES,
            notification_channel_size: Some(NOTIFICATION_CHANNEL_SLOTS),
            state_machine_channel_size: Some(APPLY_CHANNEL_SLOTS),
            max_append_entries: Some(APPEND_ENTRIES_MAX),
            max_payload_entries: gristmill_rpc::limits::APPEND_ENTRIES_MAX as u64,
            enable_tick: false,
            enable_pre_vote: Some(true),
            allow_log_reversion: Some(false),
            enable_leader_restore: Some(self.bugs().has(Bug::LeaderRestored)),
            ..Config::default()
        };
        Ok(config.validate().expect("openraft's own rules follow from ours"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_totals_are_what_openraft_waits() {
        let config = RaftSettings::default().to_openraft("shard 0".to_owned()).unwrap();
        let lease = config.election_timeout_max;
        assert_eq!(lease, ELECTION_TIMEOUT_MS_MIN);
        assert!(lease + config.election_timeout_min >= ELECTION_TIMEOUT_MS_MIN);
        assert_eq!(lease + config.election_timeout_max, ELECTION_TIMEOUT_MS_MAX);
        assert_eq!(config.heartbeat_interval, HEARTBEAT_MS);
    }

    #[test]
    fn dangerous_defaults_are_off() {
        let config = RaftSettings::default().to_openraft("shard 0".to_owned()).unwrap();
        assert_eq!(config.enable_leader_restore, Some(false));
        assert_eq!(config.enable_pre_vote, Some(true));
        assert_eq!(config.allow_log_reversion, Some(false));
        assert_eq!(config.snapshot_policy, SnapshotPolicy::Never);
        assert!(!config.enable_tick);
        assert!(config.api_channel_size.unwrap() <= 1024 && config.notification_channel_size.unwrap() <= 1024);
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let settings = RaftSettings { heartbeat: Duration::from_millis(100), ..RaftSettings::default() };
        assert!(matches!(settings.to_openraft(String::new()), Err(RaftSettingsError::LeaseTooShort { .. })));
        let settings = RaftSettings { heartbeat: Duration::from_micros(10), ..RaftSettings::default() };
        assert!(matches!(settings.to_openraft(String::new()), Err(RaftSettingsError::HeartbeatTooShort { .. })));
    }

    #[test]
    fn any_accepted_setting_passes_openrafts_rules() {
        for heartbeat_ms in [1, 2, 7, 50, 400] {
            for factor in HEARTBEATS_A_LEASE_MIN..6 {
                let heartbeat = Duration::from_millis(heartbeat_ms);
                let settings = RaftSettings {
                    heartbeat,
                    ..RaftSettings { leader_lease: heartbeat * factor, ..RaftSettings::default() }
                };
                assert!(settings.to_openraft(String::new()).is_ok(), "{settings:?}");
            }
        }
    }

    #[test]
    fn restart_hold_outlasts_a_lease_on_a_drifting_clock() {
        let settings = RaftSettings::default();
        assert!(settings.restart_hold() > settings.leader_lease);
    }
}
