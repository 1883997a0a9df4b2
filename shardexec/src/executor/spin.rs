//! Spin a little before parking, but only on a CPU of one's own.
//!
//! A parked core takes 25–60 µs to come back, whichever of futex, eventfd or MSG_RING wakes it; a spinning one sees work in
//! well under a microsecond. Spinning on a CPU that others need is worse than parking, though. It shows in two ways:
//! - a gap: two readings of the clock a few hundred nanoseconds of work apart that differ by many microseconds mean that the
//!   scheduler gave the CPU to somebody else in between;
//! - no success many times in a row: work does not come that fast, perhaps because whoever is to bring it waits for this CPU.
//!
//! Each such sign suspends spinning for twice as long as the one before, up to a second; only a long good time halves that
//! again. So on a crowded machine the attempts cost about a hundredth of the time, and a disturbance on a quiet one is soon
//! forgotten.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::config::SpinPolicy;
use crate::time::Instant;

/// Two looks at the clock while spinning that lie further apart than this mean that the CPU went to another thread.
const GAP: Duration = Duration::from_micros(50);

/// This many spins in a row without success suspend spinning.
const LOST_IN_ROW_MAX: u32 = 16;

/// First suspension.
const SUSPEND_MIN: Duration = Duration::from_millis(10);

/// Longest suspension.
const SUSPEND_MAX: Duration = Duration::from_secs(1);

/// Spinning must have gone well for this many times the suspension before that is halved.
const GOOD_TIMES: u32 = 4;

pub(crate) struct Spinner {
    policy: SpinPolicy,
    suspended_until: Instant,
    suspension: Duration,
    lost_in_row: u32,
    /// When the last suspension was over, or the suspension was last halved.
    good_since: Instant,
    pub won: u64,
    pub suspended: u64,
}

impl Spinner {
    pub fn new(policy: SpinPolicy) -> Spinner {
        Spinner {
            policy,
            suspended_until: Instant::from_ns(0),
            suspension: SUSPEND_MIN,
            good_since: Instant::from_ns(0),
            lost_in_row: 0,
            won: 0,
            suspended: 0,
        }
    }

    /// How long to spin at `now`; zero: not at all.
    pub fn budget(&self, now: Instant) -> Duration {
        match self.policy {
            SpinPolicy::For(budget) if now >= self.suspended_until => budget,
            SpinPolicy::For(_) | SpinPolicy::Never => Duration::ZERO,
        }
    }

    /// Two successive clock readings within one spin. False: stop spinning.
    pub fn looked(&mut self, before: Instant, now: Instant) -> bool {
        if now - before < GAP {
            return true;
        }
        self.suspend(now);
        false
    }

    /// A spin ended at `now` without success.
    pub fn lost(&mut self, now: Instant) {
        self.lost_in_row += 1;
        if self.lost_in_row == LOST_IN_ROW_MAX {
            self.suspend(now);
        }
    }

    fn suspend(&mut self, now: Instant) {
        self.suspended += 1;
        self.lost_in_row = 0;
        self.suspended_until = now + self.suspension;
        self.good_since = self.suspended_until;
        self.suspension = (self.suspension * 2).min(SUSPEND_MAX);
    }

    /// Spinning found work at `now`.
    pub fn found_work(&mut self, now: Instant) {
        self.won += 1;
        self.lost_in_row = 0;
        if self.suspension > SUSPEND_MIN && now - self.good_since >= self.suspension * GOOD_TIMES {
            self.suspension = (self.suspension / 2).max(SUSPEND_MIN);
            self.good_since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(us: u64) -> Instant {
        Instant::from_ns(us * 1000)
    }

    #[test]
    fn gives_up_for_longer_each_time_the_cpu_is_taken_away() {
        let mut spinner = Spinner::new(SpinPolicy::For(Duration::from_micros(100)));
        assert_eq!(spinner.budget(at(1)), Duration::from_micros(100));
        assert!(spinner.looked(at(1), at(2)));
        assert!(!spinner.looked(at(2), at(2000)));
        assert_eq!(spinner.budget(at(2000 + 9_999)), Duration::ZERO);
        assert!(spinner.budget(at(2000 + 10_000)) > Duration::ZERO);
        assert!(!spinner.looked(at(13_000), at(20_000)));
        assert_eq!(spinner.budget(at(20_000 + 19_999)), Duration::ZERO);
        assert_eq!(spinner.suspended, 2);
    }

    #[test]
    fn success_between_gaps_does_not_hide_that_the_machine_is_crowded() {
        let mut spinner = Spinner::new(SpinPolicy::For(Duration::from_micros(100)));
        let mut now = at(0);
        for _ in 0..20 {
            while spinner.budget(now).is_zero() {
                now += Duration::from_millis(1);
            }
            for _ in 0..1000 {
                assert!(spinner.looked(now, now + Duration::from_micros(1)));
                now += Duration::from_micros(1);
                spinner.found_work(now);
            }
            assert!(!spinner.looked(now, now + Duration::from_millis(5)));
            now += Duration::from_millis(5);
        }
        assert_eq!(spinner.suspension, SUSPEND_MAX);
        // A quiet minute, and it is forgotten.
        now += SUSPEND_MAX;
        for _ in 0..60_000 {
            now += Duration::from_millis(1);
            spinner.found_work(now);
        }
        assert_eq!(spinner.suspension, SUSPEND_MIN);
    }

    #[test]
    fn spinning_in_vain_many_times_in_a_row_is_given_up() {
        let mut spinner = Spinner::new(SpinPolicy::For(Duration::from_micros(100)));
        for _ in 1..LOST_IN_ROW_MAX {
            spinner.lost(at(5));
        }
        spinner.found_work(at(5));
        for _ in 1..LOST_IN_ROW_MAX {
            spinner.lost(at(5));
            assert!(!spinner.budget(at(5)).is_zero());
        }
        spinner.lost(at(5));
        assert!(spinner.budget(at(6)).is_zero());
        assert!(!spinner.budget(at(5) + SUSPEND_MIN).is_zero());
    }

    #[test]
    fn never_means_never() {
        assert_eq!(Spinner::new(SpinPolicy::Never).budget(at(5)), Duration::ZERO);
    }
}
