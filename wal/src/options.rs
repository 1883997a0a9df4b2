//! Settings of a log.

use std::time::Duration;

use crate::bugs::Bugs;
use crate::error::WalError;
use crate::limits::{BLOCK_BYTES, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, WRITES_IN_FLIGHT_MAX};

/// Whether to bypass the page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// O_DIRECT and O_DSYNC where the file system can, buffered writes and fdatasync elsewhere (tmpfs, some overlay and FUSE mounts).
    #[default]
    Auto,
    /// Buffered writes and fdatasync.
    Off,
}

/// Settings of a log. The default suits production.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalOptions {
    /// Size of a segment file in bytes. Counts when the log is created; an existing log keeps its own.
    pub segment_bytes: u64,
    /// Segments kept ready for the time when the current one is full.
    pub segments_prewritten: usize,
    /// Bytes that may wait for the disk before appends are refused. At most three eighths of a segment.
    pub pending_bytes_max: usize,
    /// Batch writes in flight at once.
    pub writes_in_flight: usize,
    /// While a write is in flight, the next batch goes out early only once it holds this many bytes; otherwise it gathers until a
    /// write ends. Large enough that a write's fixed cost is spread over hundreds of records, small enough that a thousand writers
    /// make two batches, of which one is filled while the other is written.
    pub gather_bytes: usize,
    /// Bypass of the page cache.
    pub direct: Direct,
    /// Idle time after which a mark proves what is durable.
    pub mark_delay: Duration,
    /// Memory for batches that were written of late, from which recent entries are read.
    pub cache_bytes: usize,
    /// Pause before another try to prepare a segment on a full disk.
    pub disk_full_retry: Duration,
    /// The bug that the log shall have.
    #[cfg(feature = "bugs")]
    pub bug: Option<crate::bugs::Bug>,
}

impl Default for WalOptions {
    fn default() -> WalOptions {
        WalOptions {
            segment_bytes: 64 << 20,
            segments_prewritten: 1,
            pending_bytes_max: 16 << 20,
            writes_in_flight: 4,
            gather_bytes: 96 << 10,
            direct: Direct::Auto,
            mark_delay: Duration::from_millis(1),
            cache_bytes: 32 << 20,
            disk_full_retry: Duration::from_millis(250),
            #[cfg(feature = "bugs")]
            bug: None,
        }
    }
}

impl WalOptions {
    /// Small files and caches, for tests and demonstrations.
    pub fn small() -> WalOptions {
        WalOptions {
            segment_bytes: SEGMENT_BYTES_MIN,
            pending_bytes_max: SEGMENT_BYTES_MIN as usize / 2,
            cache_bytes: SEGMENT_BYTES_MIN as usize,
            disk_full_retry: Duration::from_millis(5),
            ..WalOptions::default()
        }
    }

    #[cfg_attr(not(feature = "bugs"), allow(clippy::unused_self, reason = "with the feature it looks at a field"))]
    pub(crate) fn bugs(&self) -> Bugs {
        Bugs {
            #[cfg(feature = "bugs")]
            active: self.bug,
        }
    }

    pub(crate) fn check(&self) -> Result<(), WalError> {
        let options = |option, reason: String| Err(WalError::Options { option, reason });
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes) {
            return options("segment_bytes", format!("must lie between {SEGMENT_BYTES_MIN} and {SEGMENT_BYTES_MAX}"));
        }
        if !self.segment_bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return options("segment_bytes", format!("must be a multiple of {BLOCK_BYTES}"));
        }
        if self.segments_prewritten == 0 {
            return options("segments_prewritten", "must be at least 1".to_owned());
        }
        if !(1..=WRITES_IN_FLIGHT_MAX).contains(&self.writes_in_flight) {
            return options("writes_in_flight", format!("must lie between 1 and {WRITES_IN_FLIGHT_MAX}"));
        }
        if self.pending_bytes_max < 16 * BLOCK_BYTES {
            return options("pending_bytes_max", format!("must be at least {}", 16 * BLOCK_BYTES));
        }
        Ok(())
    }
}
