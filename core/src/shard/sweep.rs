//! Removes expired values of a shard that nobody writes to.
//!
//! ```text
//!   nothing expires ──► wait for a value that does ──► sleep until it has expired ──► propose one sweep ──► pause ─┐
//!          ▲                                                                                                     │
//!          └──────────────────────────────── when does the first value expire? ◄─────────────────────────────────┘
//! ```
//!
//! A sweep is a log entry, so that all replicas remove the same values; it removes up to `SWEPT_PER_SWEEP` of them. Writes
//! remove a few expired values each, so a busy shard needs few sweeps. Where nothing expires there is no timer.

use super::replica::Shard;
use super::wall_ms;
use crate::raft::ProposeError;
use gristmill_shardexec::sync::Notify;
use gristmill_shardexec::time::{sleep, timeout};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Pause between two sweeps while there is more to remove.
const PAUSE_BETWEEN_FULL_SWEEPS: Duration = Duration::from_millis(10);
/// Pause after a sweep that removed all there was, and after one that was refused: values that expire meanwhile are removed
/// together.
const PAUSE_AFTER_LAST_SWEEP: Duration = Duration::from_secs(1);
/// Longest sleep until a value expires: the wall clock may be set meanwhile.
const SLEEP_MAX: Duration = Duration::from_mins(1);

/// Wakes the sweeper when a value is stored that expires before all others.
#[derive(Default)]
pub(super) struct ExpiryAlarm {
    /// The sweeper sleeps until then; 0 while it does not sleep.
    set_for_ms: Cell<u64>,
    earlier: Notify,
}

impl ExpiryAlarm {
    /// Apply has gone on; no value expires before `next_ms`.
    pub(super) fn applied(&self, next_ms: u64) {
        if next_ms < self.set_for_ms.get() {
            self.set_for_ms.set(0);
            self.earlier.notify_one();
        }
    }

    /// Sleeps until `next_ms` by the wall clock, at most [`SLEEP_MAX`], or until a value comes that expires earlier.
    async fn sleep_until(&self, next_ms: u64, now_ms: u64) {
        self.set_for_ms.set(next_ms);
        if next_ms == u64::MAX {
            self.earlier.notified().await;
        } else {
            let rest = Duration::from_millis(next_ms.saturating_sub(now_ms)).min(SLEEP_MAX);
            // Either way the next look at the state decides.
            let _ = timeout(rest, self.earlier.notified()).await;
        }
        self.set_for_ms.set(0);
    }
}

/// Sweeps a shard for as long as it lives.
pub(super) async fn sweep(shard: Rc<Shard>) {
    while !shard.is_down() {
        let (next_ms, now_ms) = (shard.machine().find_next_expiry_ms(), wall_ms());
        if next_ms > now_ms {
            shard.machine().expiry_alarm().sleep_until(next_ms, now_ms).await;
            continue;
        }
        let swept = shard.propose_sweep().await;
        let more = shard.machine().find_next_expiry_ms() <= wall_ms();
        match swept {
            Ok(()) if more => sleep(PAUSE_BETWEEN_FULL_SWEEPS).await,
            Err(ProposeError::Stopped(_)) => return,
            // Not serving yet, no room in the log: later.
            Ok(()) | Err(_) => sleep(PAUSE_AFTER_LAST_SWEEP).await,
        }
    }
}
