//! Who waits for which LSN, in LSN order.

use std::collections::VecDeque;
use std::task::Waker;

use crate::error::WalError;
use crate::types::Lsn;

/// Called once with the fate of an append.
pub(crate) type Callback = Box<dyn FnOnce(Result<(), WalError>)>;

enum Party {
    Task(Waker),
    Callback(Callback),
}

/// Waiting parties by ascending LSN; equal ones in the order of their coming.
#[derive(Default)]
pub(crate) struct Waiters {
    queue: VecDeque<(Lsn, Party)>,
}

/// Parties to be told, taken out so that they run while the log is not borrowed.
#[derive(Default)]
pub(crate) struct Released {
    parties: Vec<Party>,
}

impl Waiters {
    pub fn push_callback(&mut self, lsn: Lsn, callback: Callback) {
        self.insert(lsn, Party::Callback(callback));
    }

    /// Registers a task, unless the very same one waits for that LSN already.
    pub fn push_task(&mut self, lsn: Lsn, waker: &Waker) {
        if self.queue.back().is_none_or(|(last, _)| *last < lsn) {
            return self.queue.push_back((lsn, Party::Task(waker.clone())));
        }
        let from = self.queue.partition_point(|(waiting, _)| *waiting < lsn);
        let registered = self
            .queue
            .range(from..)
            .take_while(|(waiting, _)| *waiting == lsn)
            .any(|(_, party)| matches!(party, Party::Task(known) if known.will_wake(waker)));
        if !registered {
            self.insert(lsn, Party::Task(waker.clone()));
        }
    }

    fn insert(&mut self, lsn: Lsn, party: Party) {
        if self.queue.back().is_none_or(|(last, _)| *last <= lsn) {
            self.queue.push_back((lsn, party));
        } else {
            let at = self.queue.partition_point(|(waiting, _)| *waiting <= lsn);
            self.queue.insert(at, (lsn, party));
        }
    }

    /// Moves everybody who waits for `durable` or less to `released`.
    pub fn release(&mut self, durable: Lsn, released: &mut Released) {
        while self.queue.front().is_some_and(|(lsn, _)| *lsn <= durable) {
            released.parties.extend(self.queue.pop_front().map(|(_, party)| party));
        }
    }

    /// Moves everybody to `released`.
    pub fn release_all(&mut self, released: &mut Released) {
        released.parties.extend(self.queue.drain(..).map(|(_, party)| party));
    }
}

impl Released {
    /// Tells everybody, in order. Tasks look up the outcome themselves.
    pub fn tell(&mut self, outcome: &Result<(), WalError>) {
        for party in self.parties.drain(..) {
            match party {
                Party::Task(waker) => waker.wake(),
                Party::Callback(callback) => callback(outcome.clone()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::task::Wake;

    #[test]
    fn parties_are_told_in_lsn_order_up_to_the_durable_one() {
        let told = Rc::new(RefCell::new(Vec::new()));
        let mut waiters = Waiters::default();
        for lsn in [3, 5, 4, 5, 9] {
            let told = Rc::clone(&told);
            waiters.push_callback(Lsn(lsn), Box::new(move |outcome| told.borrow_mut().push((lsn, outcome.is_ok()))));
        }
        let mut released = Released::default();
        waiters.release(Lsn(5), &mut released);
        released.tell(&Ok(()));
        assert_eq!(*told.borrow(), [(3, true), (4, true), (5, true), (5, true)]);
        waiters.release_all(&mut released);
        released.tell(&Err(WalError::Closed));
        assert_eq!(told.borrow().last(), Some(&(9, false)));
        assert!(waiters.queue.is_empty());
    }

    struct Nothing;

    impl Wake for Nothing {
        fn wake(self: Arc<Self>) {}
    }

    #[test]
    fn a_task_that_polls_again_waits_once() {
        let mut waiters = Waiters::default();
        let (one, other) = (Waker::from(Arc::new(Nothing)), Waker::from(Arc::new(Nothing)));
        waiters.push_task(Lsn(2), &one);
        waiters.push_task(Lsn(2), &one.clone());
        assert_eq!(waiters.queue.len(), 1);
        waiters.push_task(Lsn(2), &other);
        assert_eq!(waiters.queue.len(), 2);
    }
}
