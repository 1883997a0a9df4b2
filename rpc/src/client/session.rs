//! Numbers the writes of a client, so that a write that is sent twice applies once.

use std::collections::BTreeSet;

use crate::ids::SessionId;
use crate::limits::SESSION_WINDOW;

/// A session: an id chosen at random by the client, and the sequences of its writes, from 1.
///
/// Invariant: fewer than [`SESSION_WINDOW`] sequences lie between the oldest unresolved write and the next one, so
/// that a shard still remembers the answer to whatever is retried.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    next: u64,
    unresolved: BTreeSet<u64>,
}

impl Session {
    /// A session without writes. `random` comes from the operating system; zero becomes one, since zero means none.
    pub fn new(random: u64) -> Session {
        Session { id: SessionId(random.max(1)), next: 1, unresolved: BTreeSet::new() }
    }

    /// The session's id.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The sequence for a new write; `None` while the oldest unresolved write is a window behind.
    pub fn begin(&mut self) -> Option<u64> {
        if self.unresolved.first().is_some_and(|oldest| self.next - oldest >= SESSION_WINDOW) {
            return None;
        }
        let sequence = self.next;
        self.next += 1;
        self.unresolved.insert(sequence);
        Some(sequence)
    }

    /// Notes that a write will not be sent again.
    pub fn resolve(&mut self, sequence: u64) {
        self.unresolved.remove(&sequence);
    }

    /// Notes that a resolved write will be sent again after all.
    pub fn reopen(&mut self, sequence: u64) {
        assert!((1..self.next).contains(&sequence), "never begun");
        self.unresolved.insert(sequence);
    }

    /// Writes that may still be sent again.
    pub fn unresolved(&self) -> usize {
        self.unresolved.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_kept() {
        let mut session = Session::new(0);
        assert_eq!(session.id(), SessionId(1), "zero means no session");
        for sequence in 1..=SESSION_WINDOW {
            assert_eq!(session.begin(), Some(sequence));
        }
        assert_eq!(session.begin(), None);
        session.resolve(2);
        assert_eq!(session.begin(), None, "the oldest still holds the window");
        session.resolve(1);
        assert_eq!(session.begin(), Some(SESSION_WINDOW + 1));
        assert_eq!(session.begin(), Some(SESSION_WINDOW + 2), "3 is the oldest now");
        assert_eq!(session.begin(), None);
        session.reopen(1);
        session.resolve(3);
        assert_eq!(session.begin(), None, "1 is open again");
        assert_eq!(session.unresolved() as u64, SESSION_WINDOW);
    }
}
