//! What a node's clocks say about virtual time.
//!
//! ```text
//!   virtual time ──drift──► CLOCK_BOOTTIME ──minus time suspended──► CLOCK_MONOTONIC
//!         └──skew, jumps──► CLOCK_REALTIME
//! ```
//!
//! The oscillator of a node is off by its drift, in steps of 2^-20 (0.95 ppm). The two monotonic clocks start anew at each boot,
//! from an origin of their own; the wall clock survives a loss of power, and may be set at any time.

use super::random::Rng;
use crate::time::{Instant, WallClock};

/// What wall clocks show at virtual time 0: 2026-01-01T00:00:00Z.
pub const EPOCH_NS: u64 = 1_767_225_600_000_000_000;

/// Fraction bits of the drift.
const DRIFT_BITS: u32 = 20;

/// How far clocks may be off from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockConfig {
    /// Oscillators run fast or slow by at most so many ppm.
    pub drift_ppm_max: u32,
    /// Wall clocks are off by at most so many nanoseconds, either way.
    pub skew_ns_max: u64,
}

impl Default for ClockConfig {
    fn default() -> ClockConfig {
        ClockConfig { drift_ppm_max: 200, skew_ns_max: 500_000_000 }
    }
}

/// The clocks of one node.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    /// In 2^-20ths.
    drift: i64,
    /// Virtual time of the last boot, and what the monotonic clocks showed then.
    booted_at: u64,
    origin: u64,
    suspended_ns: u64,
    skew_ns: i64,
}

fn scaled(ns: u64, drift: i64) -> u64 {
    ((i128::from(ns) * i128::from((1 << DRIFT_BITS) + drift)) >> DRIFT_BITS) as u64
}

impl Clock {
    pub fn new(config: ClockConfig, rng: &mut Rng) -> Clock {
        let drift_max = u64::from(config.drift_ppm_max);
        let drift_ppm = rng.within(0..=2 * drift_max) as i64 - drift_max as i64;
        let skew_ns = rng.within(0..=2 * config.skew_ns_max) as i64 - config.skew_ns_max as i64;
        let drift = (drift_ppm << DRIFT_BITS) / 1_000_000;
        let mut clock = Clock { drift, booted_at: 0, origin: 0, suspended_ns: 0, skew_ns };
        clock.boot(0, rng);
        clock
    }

    /// The machine starts at `now`: monotonic clocks begin anew.
    pub fn boot(&mut self, now: u64, rng: &mut Rng) {
        self.booted_at = now;
        self.origin = rng.within(1_000_000_000..=20_000_000_000); // Some seconds pass before a process can look.
        self.suspended_ns = 0;
    }

    pub fn boottime(&self, now: u64) -> Instant {
        Instant::from_ns(self.origin + scaled(now - self.booted_at, self.drift))
    }

    pub fn monotonic(&self, now: u64) -> Instant {
        Instant::from_ns(self.boottime(now).as_ns() - self.suspended_ns)
    }

    pub fn wall(&self, now: u64) -> WallClock {
        WallClock((EPOCH_NS + scaled(now, self.drift)).saturating_add_signed(self.skew_ns))
    }

    /// The first virtual time at which [`Clock::monotonic`] shows `deadline` or later, given that it is not suspended before.
    pub fn reaches(&self, deadline: Instant) -> u64 {
        let local = deadline.as_ns().saturating_add(self.suspended_ns).saturating_sub(self.origin);
        let rate = ((1i64 << DRIFT_BITS) + self.drift) as u128;
        let elapsed = (u128::from(local) << DRIFT_BITS).div_ceil(rate);
        u64::try_from(elapsed).map_or(u64::MAX, |elapsed| self.booted_at.saturating_add(elapsed))
    }

    /// Sets the wall clock forward or back.
    pub fn jump(&mut self, by_ns: i64) {
        self.skew_ns = self.skew_ns.saturating_add(by_ns);
    }

    /// The machine was suspended for `ns` of virtual time: the monotonic clock did not see them.
    pub fn suspended(&mut self, ns: u64) {
        self.suspended_ns += scaled(ns, self.drift);
    }

    /// By how much the wall clock is off, drift apart.
    pub fn skew_ns(&self) -> i64 {
        self.skew_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_reached_exactly_when_the_clock_shows_it() {
        let mut rng = Rng::new(5);
        for round in 0..2000u64 {
            let mut clock = Clock::new(ClockConfig { drift_ppm_max: 5000, skew_ns_max: 0 }, &mut rng);
            let now = rng.below(1 << 42);
            clock.boot(now / 2, &mut rng);
            clock.suspended(rng.below(now / 4 + 1));
            let deadline = clock.monotonic(now + round);
            let at = clock.reaches(deadline);
            assert!(clock.monotonic(at) >= deadline);
            assert!(at == 0 || at == now / 2 || clock.monotonic(at - 1) < deadline, "round {round}");
        }
        assert_eq!(Clock::new(ClockConfig::default(), &mut rng).reaches(Instant::MAX), u64::MAX);
    }

    #[test]
    fn clocks_drift_apart_jump_and_start_anew() {
        let mut rng = Rng::new(6);
        let config = ClockConfig { drift_ppm_max: 200, skew_ns_max: 500_000_000 };
        let clocks: Vec<Clock> = (0..20).map(|_| Clock::new(config, &mut rng)).collect();
        let hour = 3_600_000_000_000;
        let elapsed: std::collections::BTreeSet<u64> =
            clocks.iter().map(|clock| clock.boottime(hour).as_ns() - clock.boottime(0).as_ns()).collect();
        assert!(elapsed.len() > 15, "{elapsed:?}");
        assert!(elapsed.iter().all(|&ns| ns.abs_diff(hour) <= hour / 5000 + 1), "{elapsed:?}");

        let mut clock = clocks[0].clone();
        let before = clock.wall(hour);
        clock.jump(-600_000_000_000);
        assert_eq!(clock.wall(hour).0, before.0 - 600_000_000_000);
        clock.suspended(1_000_000);
        assert!(clock.boottime(hour) > clock.monotonic(hour));
        clock.boot(hour, &mut rng);
        assert!(clock.monotonic(hour).as_ns() <= 20_000_000_000 && clock.wall(hour).0 < before.0);
    }
}
