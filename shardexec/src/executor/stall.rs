//! Which tasks hold the core too long, and what else the executor counts.
//!
//! A stall is measured on the wall: on a machine with more runnable threads than CPUs, a poll during which the scheduler took
//! the CPU away counts too. Many names with one stall each, and suspended spins beside them, tell of that.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::config::Class;

/// Distinct tasks that the detector remembers by name; further names only add to the total.
pub const STALL_NAMES_MAX: usize = 64;

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
    /// The tasks that stalled, by name.
    pub stalled: Vec<StallReport>,
}

#[derive(Default)]
pub(crate) struct Stalls {
    pub count: u64,
    pub by_name: Vec<StallReport>,
}

impl Stalls {
    pub fn record(&mut self, task: &'static str, class: Class, held: Duration) {
        self.count += 1;
        if let Some(known) = self.by_name.iter_mut().find(|known| known.task == task && known.class == class) {
            known.count += 1;
            known.longest = known.longest.max(held);
        } else if self.by_name.len() < STALL_NAMES_MAX {
            self.by_name.push(StallReport { task, class, count: 1, longest: held });
        }
    }
}
