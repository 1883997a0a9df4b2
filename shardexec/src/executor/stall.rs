//! Which tasks hold the core too long, what else the executor counts, and what it tells of as it happens.
//!
//! A stall is measured on the wall: on a machine with more runnable threads than CPUs, a poll during which the scheduler took
//! the CPU away counts too. Many names with one stall each, and suspended spins beside them, tell of that.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::config::Class;

/// Distinct tasks that the detector remembers by name; further names only add to the total.
pub const STALL_NAMES_MAX: usize = 64;
/// Incidents that wait to be fetched by [`next_incident`](super::next_incident); further ones are only counted.
pub const INCIDENTS_MAX: usize = 64;

/// Something that happened on the core and that whoever runs it should hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Incident {
    /// A poll held the core longer than the threshold: the first of its task, or one of another order (twice as long).
    Stall {
        /// The name given at spawn.
        task: &'static str,
        /// Its class.
        class: Class,
        /// How long.
        held: Duration,
    },
    /// A task panicked; the executor went on.
    Panic {
        /// The name given at spawn.
        task: &'static str,
        /// The panic's message.
        message: String,
    },
    /// The better driver could not be had.
    Fallback {
        /// The driver in use.
        driver: &'static str,
        /// Why not the better one, and the cure.
        reason: String,
    },
}

/// The stalls of all tasks with one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StallReport {
    /// The name given at spawn.
    pub task: &'static str,
    /// Its class.
    pub class: Class,
    /// Polls that held the core longer than the threshold.
    pub count: u64,
    /// The longest of them.
    pub longest: Duration,
}

/// Counters since the executor's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecutorStats {
    /// Task polls per class, in the order of [`Class::ALL`].
    pub polls: [u64; 3],
    /// Time in task polls per class.
    pub busy: [Duration; 3],
    /// Task polls that ended in a panic, caught.
    pub panics: u64,
    /// Tasks alive now.
    pub tasks_alive: usize,
    /// Timers armed now.
    pub timers_armed: usize,
    /// Operations in flight now.
    pub ops_in_flight: usize,
    /// The most operations that were ever in flight together.
    pub ops_in_flight_max: usize,
    /// Times the core went idle and parked.
    pub parks: u64,
    /// Idle times that ended with work while still spinning.
    pub spins_won: u64,
    /// Times spinning was suspended because it did not pay or the CPU turned out to be shared.
    pub spins_suspended: u64,
    /// Polls longer than the threshold.
    pub stalls: u64,
    /// The longest of them, whatever its name.
    pub stall_longest: Duration,
    /// The tasks that stalled, by name.
    pub stalled: Vec<StallReport>,
}

#[derive(Default)]
pub(crate) struct Stalls {
    pub count: u64,
    pub longest: Duration,
    pub by_name: Vec<StallReport>,
}

impl Stalls {
    /// Counts a stall. True where it is worth telling: the first of its name, or of a higher power of two than those
    /// before. So a task that stalls all day is told of some twenty times at the most.
    pub fn record(&mut self, task: &'static str, class: Class, held: Duration) -> bool {
        self.count += 1;
        self.longest = self.longest.max(held);
        if let Some(known) = self.by_name.iter_mut().find(|known| known.task == task && known.class == class) {
            known.count += 1;
            let higher = order(held) > order(known.longest);
            known.longest = known.longest.max(held);
            return higher;
        }
        let room = self.by_name.len() < STALL_NAMES_MAX;
        if room {
            self.by_name.push(StallReport { task, class, count: 1, longest: held });
        }
        room
    }
}

fn order(held: Duration) -> u32 {
    held.as_micros().checked_ilog2().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_told_of_when_it_is_new_or_of_another_order() {
        let mut stalls = Stalls::default();
        let mut record = |task, ms| stalls.record(task, Class::Request, Duration::from_millis(ms));
        assert!(record("scan", 1));
        assert!(!record("scan", 1));
        assert!(record("scan", 5));
        assert!(!record("scan", 6), "of the same order");
        assert!(!record("scan", 1), "shorter");
        assert!(record("flush", 1), "another task");
        assert_eq!((stalls.count, stalls.longest), (6, Duration::from_millis(6)));
        assert_eq!((stalls.by_name[0].count, stalls.by_name[0].longest), (5, Duration::from_millis(6)));
    }
}
