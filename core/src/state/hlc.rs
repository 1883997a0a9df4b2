//! The hybrid logical clock: timestamps that respect causality although wall clocks are skewed.
//!
//! After Kulkarni, Demirbas, Madappa, Avva and Leone, "Logical Physical Clocks" (OPODIS 2014). A timestamp is
//! (physical milliseconds, logical counter), ordered as a pair. A leader *ticks* for each proposal and *merges* every
//! timestamp that it receives (applied entries, requests of clients that read elsewhere), so an effect is always
//! stamped later than its cause, on whichever shard it happens.
//!
//! The clock reads no time by itself: the caller passes the wall clock, so that apply and the simulator stay exact. It
//! never goes back, whatever the wall clock does.

use core::fmt;
use core::time::Duration;

/// How far ahead of the local wall clock a received timestamp may be. A peer beyond it has a broken clock, and merging
/// it would drag the time of all shards into the future, expiring values early everywhere.
pub const DRIFT_MAX: Duration = Duration::from_millis(500);

/// A hybrid logical timestamp. Ordered; ties between nodes mean concurrency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Hlc {
    /// Milliseconds since the Unix epoch, as the highest wall clock among the causes said.
    pub physical_ms: u64,
    /// Orders events within one physical millisecond.
    pub logical: u32,
}

impl Hlc {
    /// Before everything.
    pub const ZERO: Hlc = Hlc { physical_ms: 0, logical: 0 };

    /// The next timestamp after this one. Moves to the next millisecond when the logical counter is used up.
    #[must_use]
    pub fn successor(self) -> Hlc {
        match self.logical.checked_add(1) {
            Some(logical) => Hlc { physical_ms: self.physical_ms, logical },
            None => Hlc { physical_ms: self.physical_ms.saturating_add(1), logical: 0 },
        }
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.physical_ms, self.logical)
    }
}

/// A received timestamp is further ahead of the wall clock than [`DRIFT_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "timestamp {received} is {} ms ahead of this node's clock, over the bound of {} ms; check NTP on both machines",
    .received.physical_ms - .wall_ms, DRIFT_MAX.as_millis()
)]
pub struct DriftError {
    /// The timestamp refused.
    pub received: Hlc,
    /// The local wall clock at that moment.
    pub wall_ms: u64,
}

/// A clock: the latest timestamp given out or merged.
#[derive(Debug, Clone, Copy, Default)]
pub struct HlcClock {
    latest: Hlc,
}

impl HlcClock {
    /// A clock that goes on after `latest`, for example the last applied entry's timestamp.
    pub fn starting_after(latest: Hlc) -> HlcClock {
        HlcClock { latest }
    }

    /// The latest timestamp given out or merged.
    pub fn latest(&self) -> Hlc {
        self.latest
    }

    /// A timestamp for a new local event: later than all before, and not before the wall clock.
    pub fn tick(&mut self, wall_ms: u64) -> Hlc {
        self.latest = if wall_ms > self.latest.physical_ms {
            Hlc { physical_ms: wall_ms, logical: 0 }
        } else {
            self.latest.successor()
        };
        self.latest
    }

    /// Takes in a timestamp from outside and returns one for its receipt, later than both. Refuses, unchanged, one that
    /// is too far ahead of the wall clock.
    pub fn merge(&mut self, received: Hlc, wall_ms: u64) -> Result<Hlc, DriftError> {
        if received.physical_ms.saturating_sub(wall_ms) > DRIFT_MAX.as_millis() as u64 {
            return Err(DriftError { received, wall_ms });
        }
        self.latest = self.latest.max(received);
        Ok(self.tick(wall_ms))
    }

    /// Takes in the timestamp of a committed entry. Unlike [`HlcClock::merge`] it cannot refuse: the entry is history,
    /// and a new leader must go on after it even if the old leader's clock was wrong.
    pub fn observe_committed(&mut self, committed: Hlc) {
        self.latest = self.latest.max(committed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn follows_the_wall_clock_and_never_goes_back() {
        let mut clock = HlcClock::default();
        assert_eq!(clock.tick(100), Hlc { physical_ms: 100, logical: 0 });
        assert_eq!(clock.tick(100), Hlc { physical_ms: 100, logical: 1 });
        assert_eq!(clock.tick(40), Hlc { physical_ms: 100, logical: 2 });
        assert_eq!(clock.tick(101), Hlc { physical_ms: 101, logical: 0 });
    }

    #[test]
    fn refuses_a_timestamp_beyond_the_drift_bound_and_stays_as_it_was() {
        let mut clock = HlcClock::default();
        let at_bound = Hlc { physical_ms: 1_000 + DRIFT_MAX.as_millis() as u64, logical: 7 };
        let beyond = Hlc { physical_ms: at_bound.physical_ms + 1, logical: 0 };
        clock.tick(1_000);
        assert_eq!(clock.merge(beyond, 1_000), Err(DriftError { received: beyond, wall_ms: 1_000 }));
        assert_eq!(clock.latest(), Hlc { physical_ms: 1_000, logical: 0 });
        assert_eq!(clock.merge(at_bound, 1_000), Ok(at_bound.successor()));
        clock.observe_committed(beyond);
        assert_eq!(clock.tick(1_000), beyond.successor());
    }

    #[test]
    fn an_exhausted_logical_counter_moves_to_the_next_millisecond() {
        let mut clock = HlcClock::starting_after(Hlc { physical_ms: 9, logical: u32::MAX });
        assert_eq!(clock.tick(3), Hlc { physical_ms: 10, logical: 0 });
    }

    proptest! {
        /// C-07: what happens on one node after hearing from another is stamped later, although their clocks are skewed.
        #[test]
        fn effects_are_stamped_after_their_causes(
            steps in prop::collection::vec((0usize..3, 0usize..3, 0u64..20), 1..200),
            skews in prop::array::uniform3(0u64..500),
        ) {
            let mut clocks = [HlcClock::default(); 3];
            let mut now = 10_000;
            for (from, to, passed) in steps {
                now += passed;
                let sent = clocks[from].tick(now + skews[from]);
                let before = clocks[to].latest();
                let received = clocks[to].merge(sent, now + skews[to]).expect("skew is within the bound");
                prop_assert!(received > sent && received > before);
                prop_assert!(received.physical_ms <= now + 500, "bounded by the fastest clock");
            }
        }
    }
}
