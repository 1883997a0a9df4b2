//! What happened, as one number that tells two runs apart, and as lines for a reader.
//!
//! The hash is FNV-1a taken over 64-bit words instead of bytes, with a rotation after each so that high bits come down again:
//! `hash = rotl((hash ^ word) * 0x100000001b3, 29)`, from `0xcbf29ce484222325`. Every event adds its virtual time, where it
//! happened, what it was, and two words of detail. The formula is part of what runs report: a change of it changes every hash.

use std::fmt;

/// Takes lines of the trace.
pub type TraceSink = Box<dyn FnMut(fmt::Arguments<'_>)>;

/// What kind of event a line or a word of the hash is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A core got its turn; how many polls it may do.
    Turn = 1,
    /// A task was chosen; which of how many.
    Task,
    /// An op was submitted; its key and kind.
    Submit,
    /// An op completed; its key and outcome.
    Complete,
    /// An op was cancelled; its key.
    Cancel,
    /// A fault struck; its kind.
    Fault,
    /// An executor was started.
    Start,
    /// An executor ended.
    End,
    /// A segment reached its end of a connection; connection and bytes.
    Deliver,
    /// A program drew random bytes; the first of them.
    Random,
    /// Faults were turned off and links healed.
    Heal,
}

/// Where something happened: a core's start number, or a node, or the world as a whole.
pub(super) const NOWHERE: u64 = u64::MAX;

/// The rolling hash and the optional sink.
pub(super) struct Trace {
    hash: u64,
    events: u64,
    sink: Option<TraceSink>,
}

impl Trace {
    pub fn new(sink: Option<TraceSink>) -> Trace {
        Trace { hash: 0xcbf2_9ce4_8422_2325, events: 0, sink }
    }

    /// Adds an event.
    pub fn event(&mut self, at: u64, place: u64, what: What, detail: [u64; 2]) {
        self.events += 1;
        for word in [at, place, what as u64, detail[0], detail[1]] {
            self.hash = (self.hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
        }
    }

    /// Writes a line for a reader. Not part of the hash: lines may be off.
    pub fn line(&mut self, at: u64, text: fmt::Arguments<'_>) {
        if let Some(sink) = &mut self.sink {
            sink(format_args!("{:>6}.{:06} ms  {text}", at / 1_000_000, at % 1_000_000));
        }
    }

    /// Whether lines are wanted.
    pub fn is_read(&self) -> bool {
        self.sink.is_some()
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn events(&self) -> u64 {
        self.events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    #[test]
    fn the_hash_is_the_documented_one_and_sees_order() {
        let hash = |events: &[(u64, What)]| {
            let mut trace = Trace::new(None);
            for &(at, what) in events {
                trace.event(at, 0, what, [1, 2]);
            }
            trace.hash()
        };
        let mut by_hand = 0xcbf2_9ce4_8422_2325_u64;
        for word in [5, 0, What::Turn as u64, 1, 2] {
            by_hand = (by_hand ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
        }
        assert_eq!(hash(&[(5, What::Turn)]), by_hand);
        assert_ne!(hash(&[(5, What::Turn), (5, What::Task)]), hash(&[(5, What::Task), (5, What::Turn)]));
    }

    #[test]
    fn lines_go_to_the_sink_and_not_into_the_hash() {
        let lines = Rc::new(RefCell::new(Vec::new()));
        let sink = Rc::clone(&lines);
        let mut trace = Trace::new(Some(Box::new(move |line| sink.borrow_mut().push(line.to_string()))));
        let before = trace.hash();
        trace.line(1_500_000, format_args!("n0 goes down"));
        assert_eq!(trace.hash(), before);
        assert_eq!(lines.borrow()[..], ["     1.500000 ms  n0 goes down"]);
    }
}
