//! Spin a little before parking, but only on a CPU of one's own.
//!
//! A parked core takes 25–60 µs to come back, whichever of futex, eventfd or MSG_RING wakes it; a spinning one sees work in
//! well under a microsecond. Spinning on a CPU that others need is worse than parking, though. The sign of that is a gap: two
//! readings of the clock a few hundred nanoseconds of work apart that differ by many microseconds mean that the thread was
//! descheduled in between. Each such find suspends spinning for twice as long as the one before.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::config::SpinPolicy;
use crate::time::Instant;

/// Two looks at the clock while spinning that lie further apart than this mean that the CPU went to another thread.
const GAP: Duration = Duration::from_micros(50);

/// First suspension after a gap.
const SUSPEND_MIN: Duration = Duration::from_millis(10);

/// Longest suspension.
const SUSPEND_MAX: Duration = Duration::from_secs(1);

pub(crate) struct Spinner {
    policy: SpinPolicy,
    suspended_until: Instant,
    suspension: Duration,
    pub won: u64,
    pub suspended: u64,
}

impl Spinner {
    pub fn new(policy: SpinPolicy) -> Spinner {
        Spinner { policy, suspended_until: Instant::from_ns(0), suspension: SUSPEND_MIN, won: 0, suspended: 0 }
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
        self.suspended += 1;
        self.suspended_until = now + self.suspension;
        self.suspension = (self.suspension * 2).min(SUSPEND_MAX);
        false
    }

    /// Spinning found work: the CPU is ours.
    pub fn found_work(&mut self) {
        self.won += 1;
        self.suspension = SUSPEND_MIN;
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
    fn never_means_never() {
        assert_eq!(Spinner::new(SpinPolicy::Never).budget(at(5)), Duration::ZERO);
    }
}
