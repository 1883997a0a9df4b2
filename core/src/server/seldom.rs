//! Log lines that clients can cause are told now and then only: a line blocks the core that writes it.

use gristmill_shardexec::time::Instant;
use std::cell::Cell;
use std::time::Duration;

/// Time between two lines of one kind.
const PAUSE: Duration = Duration::from_secs(10);

/// When to tell of things of one kind.
#[derive(Default)]
pub(super) struct Seldom {
    told: Cell<Option<Instant>>,
    untold: Cell<u64>,
}

impl Seldom {
    /// One more has happened at `now`: how many have since the last line, this one included, if it is time for another.
    pub fn due(&self, now: Instant) -> Option<u64> {
        let untold = self.untold.get() + 1;
        if self.told.get().is_some_and(|told| now - told < PAUSE) {
            self.untold.set(untold);
            return None;
        }
        self.told.set(Some(now));
        self.untold.set(0);
        Some(untold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_first_and_then_now_and_again() {
        let seldom = Seldom::default();
        let at = |seconds: u64| Instant::from_ns(seconds * 1_000_000_000);
        let due: Vec<_> = [100, 101, 105, 109, 110, 111, 119, 125].into_iter().map(|s| seldom.due(at(s))).collect();
        assert_eq!(due, [Some(1), None, None, None, Some(4), None, None, Some(3)]);
    }
}
