//! When to try again: by typed retriability, with capped exponential backoff and jitter.

use std::time::Duration;

/// How a client retries. Each call also has an overall deadline, which ends all attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts at the most, the first included. 1 means: never try again.
    pub attempts_max: u32,
    /// The pause before the second attempt, about; it doubles from there.
    pub backoff_first: Duration,
    /// The longest pause, unless the server asks for more.
    pub backoff_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy { attempts_max: 100, backoff_first: Duration::from_millis(5), backoff_max: Duration::from_secs(1) }
    }
}

impl RetryPolicy {
    /// One attempt only.
    pub const NONE: RetryPolicy =
        RetryPolicy { attempts_max: 1, backoff_first: Duration::ZERO, backoff_max: Duration::ZERO };

    /// The pause after `failed` attempts, or `None` to give up: half of it fixed, half by `jitter`, and never less
    /// than the server asked for.
    ///
    /// Source: "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015), the variant "equal jitter".
    pub fn pause(&self, failed: u32, retry_after_ms: u32, jitter: &mut Jitter) -> Option<Duration> {
        assert!(failed >= 1, "a pause follows a failure");
        if failed >= self.attempts_max {
            return None;
        }
        let doublings = (failed - 1).min(20);
        let whole = self.backoff_first.saturating_mul(1 << doublings).min(self.backoff_max);
        let half_us = (whole / 2).as_micros() as u64;
        let pause = whole / 2 + Duration::from_micros(jitter.below(half_us + 1));
        Some(pause.max(Duration::from_millis(u64::from(retry_after_ms))))
    }
}

/// A small random sequence, so that many clients do not retry in step. Not for secrets.
///
/// Source: splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
#[derive(Debug, Clone)]
pub struct Jitter(u64);

impl Jitter {
    /// A sequence from a seed.
    pub fn new(seed: u64) -> Jitter {
        Jitter(seed)
    }

    /// The next number, 0 to `bound - 1`.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "an empty range");
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap() {
        let policy = RetryPolicy { attempts_max: 100, ..RetryPolicy::default() };
        let mut jitter = Jitter::new(1);
        for (failed, whole) in [(1, 5), (2, 10), (3, 20), (8, 640), (9, 1000), (40, 1000), (99, 1000)] {
            let whole = Duration::from_millis(whole);
            let pauses: Vec<_> = (0..100).map(|_| policy.pause(failed, 0, &mut jitter).expect("more")).collect();
            assert!(pauses.iter().all(|pause| (whole / 2..=whole).contains(pause)), "after {failed}: {pauses:?}");
            assert!(pauses.iter().any(|pause| *pause != pauses[0]), "jitter");
        }
        assert_eq!(policy.pause(100, 0, &mut jitter), None);
    }

    #[test]
    fn the_servers_advice_is_kept() {
        let pause = RetryPolicy::default().pause(1, 5000, &mut Jitter::new(1));
        assert_eq!(pause, Some(Duration::from_secs(5)));
        assert_eq!(RetryPolicy::NONE.pause(1, 5000, &mut Jitter::new(1)), None);
    }
}
