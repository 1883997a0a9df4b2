//! Each key behaves as one register: there is an order of its operations that respects real time and in which every answer is right.
//!
//! The algorithm is Wing and Gong's ("Testing and Verifying Concurrent Objects", 1993) with Lowe's memoisation ("Testing for
//! Linearizability", 2017), as Porcupine has it: try every operation whose call comes before the first return, remember each
//! (set of operations done, state) that led nowhere, go back where a return comes whose operation is not done.
//!
//! An operation whose outcome is unknown has no return: it may be done at any later moment, or after everything else, which is as good
//! as never. Limits: [`MEMO_MAX`] states a key; beyond, the answer is [`Answer::Undecided`].

use crate::sim::history::{Change, Expect, KeyId, Moment, Record, Seen, ValueId, WriteEnd};
use gristmill_rpc::ids::Version;
use rustc_hash::FxHashSet;
use std::collections::BTreeMap;

/// States that are remembered for one key.
pub const MEMO_MAX: usize = 2_000_000;

/// What one operation did to a key, or saw of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stored a value.
    Put(ValueId),
    /// Removed it.
    Delete,
    /// A compare-and-set.
    Swap {
        /// What it expected.
        expected: Expect,
        /// What it stores.
        new: Option<ValueId>,
        /// What came of it.
        end: SwapEnd,
    },
    /// A read.
    Read(Option<ValueId>),
}

/// What came of a compare-and-set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwapEnd {
    /// The key was as expected.
    Done,
    /// It was not: there was no value.
    FoundNone,
    /// It was not: there was a value, this one where that is known.
    Found(Option<ValueId>),
    /// Nobody knows.
    Unknown,
}

/// An operation on one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyOp {
    /// Who.
    pub client: u16,
    /// When it was sent first.
    pub invoked: Moment,
    /// When it was answered; `None` where it was not.
    pub returned: Option<Moment>,
    /// What it did.
    pub action: Action,
}

/// Whether a key's history is linearizable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is.
    Yes,
    /// It is not. These operations have no place in any order: the first return that none allows, and what ran at the same time.
    No(Vec<KeyOp>),
    /// Too many orders to try.
    Undecided,
}

type State = Option<ValueId>;

/// The state after `action` in `state`; `None` where its answer is impossible there.
fn step(state: State, action: Action) -> Option<State> {
    let matches = |expected| match expected {
        Expect::Absent => state.is_none(),
        Expect::Value(value) => state == Some(value),
    };
    match action {
        Action::Put(value) => Some(Some(value)),
        Action::Delete => Some(None),
        Action::Read(seen) => (seen == state).then_some(state),
        Action::Swap { expected, new, end } => match end {
            SwapEnd::Done => matches(expected).then_some(new),
            SwapEnd::Unknown => Some(if matches(expected) { new } else { state }),
            SwapEnd::FoundNone => (!matches(expected) && state.is_none()).then_some(state),
            SwapEnd::Found(value) => {
                let right = state.is_some() && (value.is_none() || value == state);
                (!matches(expected) && right).then_some(state)
            }
        },
    }
}

/// Judges one key's operations.
pub fn check(ops: &[KeyOp]) -> Answer {
    check_within(ops, MEMO_MAX)
}

/// One event of the history, in a doubly linked list; 0 is the list's head.
struct Events {
    /// Of which operation; `true`: its call.
    what: Vec<(usize, bool)>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Of each operation.
    calls: Vec<usize>,
    returns: Vec<usize>,
}

impl Events {
    fn new(ops: &[KeyOp]) -> Events {
        let mut order: Vec<(Moment, usize, bool)> = Vec::with_capacity(2 * ops.len());
        for (op, times) in ops.iter().enumerate() {
            order.push((times.invoked, op, true));
            order.push((times.returned.unwrap_or(Moment::MAX), op, false));
        }
        order.sort_unstable_by_key(|&(at, op, call)| (at, !call, op));
        let count = order.len() + 1;
        let mut events = Events {
            what: vec![(usize::MAX, false)],
            next: (1..=count).collect(),
            previous: (0..count).map(|at| at.saturating_sub(1)).collect(),
            calls: vec![0; ops.len()],
            returns: vec![0; ops.len()],
        };
        events.next[count - 1] = 0;
        for (place, (_, op, call)) in (1..).zip(order) {
            events.what.push((op, call));
            if call {
                events.calls[op] = place;
            } else {
                events.returns[op] = place;
            }
        }
        events
    }

    fn unlink(&mut self, at: usize) {
        let (next, previous) = (self.next[at], self.previous[at]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    fn relink(&mut self, at: usize) {
        let (next, previous) = (self.next[at], self.previous[at]);
        self.next[previous] = at;
        self.previous[next] = at;
    }

    /// Takes an operation out of the list.
    fn lift(&mut self, op: usize) {
        self.unlink(self.calls[op]);
        self.unlink(self.returns[op]);
    }

    /// Puts it back, in the opposite order.
    fn unlift(&mut self, op: usize) {
        self.relink(self.returns[op]);
        self.relink(self.calls[op]);
    }
}

fn check_within(ops: &[KeyOp], memo_max: usize) -> Answer {
    let mut events = Events::new(ops);
    let mut done = vec![0u64; ops.len().div_ceil(64)];
    let mut memo: FxHashSet<(Box<[u64]>, State)> = FxHashSet::default();
    let mut path: Vec<(usize, State)> = Vec::new();
    let mut state: State = None;
    let mut farthest = (0, 0);
    let mut at = events.next[0];
    while at != 0 {
        let (op, call) = events.what[at];
        if call {
            let after = step(state, ops[op].action);
            if let Some(after) = after {
                done[op / 64] |= 1 << (op % 64);
                if memo.insert((done.clone().into_boxed_slice(), after)) {
                    if memo.len() > memo_max {
                        return Answer::Undecided;
                    }
                    path.push((op, state));
                    state = after;
                    events.lift(op);
                    at = events.next[0];
                    continue;
                }
                done[op / 64] &= !(1 << (op % 64));
            }
            at = events.next[at];
            continue;
        }
        farthest = farthest.max((path.len(), at));
        let Some((op, before)) = path.pop() else { return Answer::No(around(ops, &events, farthest.1)) };
        state = before;
        done[op / 64] &= !(1 << (op % 64));
        events.unlift(op);
        at = events.next[events.calls[op]];
    }
    Answer::Yes
}

/// The operation that returns at an event, and those that ran beside it.
fn around(ops: &[KeyOp], events: &Events, at: usize) -> Vec<KeyOp> {
    let stuck = ops[events.what[at].0];
    let end = stuck.returned.unwrap_or(Moment::MAX);
    let beside = |op: &&KeyOp| op.invoked <= end && op.returned.is_none_or(|returned| returned >= stuck.invoked);
    let mut found: Vec<KeyOp> = ops.iter().filter(beside).copied().collect();
    // The last answers before it say what the key should have held.
    let mut before: Vec<KeyOp> =
        ops.iter().filter(|op| op.returned.is_some_and(|returned| returned < stuck.invoked)).copied().collect();
    before.sort_unstable_by_key(|op| op.returned);
    found.extend(before.into_iter().rev().take(6));
    found.sort_unstable_by_key(|op| op.invoked);
    found.dedup();
    found
}

/// The operations of each key, out of a history.
///
/// A batch becomes one operation for each of its keys; of one that failed, only the compare-and-set that failed says something.
pub fn by_key(records: &[Record]) -> BTreeMap<KeyId, Vec<KeyOp>> {
    let values = versions(records);
    let mut keys: BTreeMap<KeyId, Vec<KeyOp>> = BTreeMap::new();
    for record in records {
        match record {
            Record::Read(read) => {
                for (key, seen) in &read.seen {
                    let action = Action::Read(seen.map(|(value, _)| value));
                    let (client, invoked, returned) = (read.client, read.invoked, Some(read.returned));
                    keys.entry(*key).or_default().push(KeyOp { client, invoked, returned, action });
                }
            }
            Record::Write(write) => {
                for (at, (key, change)) in write.changes.iter().enumerate() {
                    let (end, returned) = match write.end {
                        WriteEnd::NotApplied => continue,
                        WriteEnd::Unknown => (SwapEnd::Unknown, None),
                        WriteEnd::Applied { .. } => (SwapEnd::Done, Some(write.returned)),
                        WriteEnd::Failed { operation, .. } if operation != at => continue,
                        WriteEnd::Failed { found: None, .. } => (SwapEnd::FoundNone, Some(write.returned)),
                        WriteEnd::Failed { found: Some(version), .. } => {
                            (SwapEnd::Found(values.get(&(*key, version)).copied()), Some(write.returned))
                        }
                    };
                    let action = match *change {
                        Change::Put(value) => Action::Put(value),
                        Change::Delete => Action::Delete,
                        Change::Swap { expected, new } => Action::Swap { expected, new, end },
                    };
                    let (client, invoked) = (write.client, write.invoked);
                    keys.entry(*key).or_default().push(KeyOp { client, invoked, returned, action });
                }
            }
            Record::Grain(_) | Record::Absurd(_) => {}
        }
    }
    keys
}

/// Which value of a key has which version, as far as answers say.
fn versions(records: &[Record]) -> BTreeMap<(KeyId, Version), ValueId> {
    let mut values = BTreeMap::new();
    for record in records {
        match record {
            Record::Read(read) => {
                let seen = |(key, seen): &(KeyId, Seen)| seen.map(|(value, version)| ((*key, version), value));
                values.extend(read.seen.iter().filter_map(seen));
            }
            Record::Write(write) => {
                let WriteEnd::Applied { version, .. } = write.end else { continue };
                for (key, change) in &write.changes {
                    if let Change::Put(value) | Change::Swap { new: Some(value), .. } = change {
                        values.insert((*key, version), *value);
                    }
                }
            }
            Record::Grain(_) | Record::Absurd(_) => {}
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(client: u16, invoked: Moment, returned: impl Into<Option<Moment>>, action: Action) -> KeyOp {
        KeyOp { client, invoked, returned: returned.into(), action }
    }

    fn put(value: u64) -> Action {
        Action::Put(ValueId(value))
    }

    fn read(value: impl Into<Option<u64>>) -> Action {
        Action::Read(value.into().map(ValueId))
    }

    fn swap(expected: impl Into<Option<u64>>, new: u64, end: SwapEnd) -> Action {
        let expected = expected.into().map_or(Expect::Absent, |value: u64| Expect::Value(ValueId(value)));
        Action::Swap { expected, new: Some(ValueId(new)), end }
    }

    fn is_linearizable(ops: &[KeyOp]) -> bool {
        match check(ops) {
            Answer::Yes => true,
            Answer::No(_) => false,
            Answer::Undecided => panic!("undecided"),
        }
    }

    #[test]
    fn overlapping_operations_may_take_any_order() {
        assert!(is_linearizable(&[]));
        assert!(is_linearizable(&[op(0, 1, 4, put(1)), op(1, 2, 3, read(None)), op(1, 5, 6, read(1))]));
        assert!(is_linearizable(&[op(0, 1, 4, put(1)), op(1, 2, 3, read(1)), op(1, 5, 6, read(1))]));
        let crossing = [op(0, 1, 10, put(1)), op(1, 2, 9, put(2)), op(2, 3, 4, read(2)), op(2, 5, 6, read(1))];
        assert!(is_linearizable(&crossing));
        assert!(!is_linearizable(&[&crossing[..], &[op(2, 7, 8, read(2))]].concat()), "2 again after 1");
    }

    #[test]
    fn stale_and_invented_reads_are_seen() {
        assert!(!is_linearizable(&[op(0, 1, 2, put(1)), op(1, 3, 4, read(None))]), "an acknowledged write is gone");
        assert!(!is_linearizable(&[op(0, 1, 2, put(1)), op(0, 3, 4, put(2)), op(1, 5, 6, read(1))]), "stale");
        assert!(!is_linearizable(&[op(0, 1, 2, put(1)), op(1, 3, 4, read(7))]), "nobody wrote 7");
        assert!(!is_linearizable(&[op(0, 1, 2, put(1)), op(0, 3, 4, Action::Delete), op(1, 5, 6, read(1))]), "undead");
        // A read saw the new value, a later one the old: the write was under way all the time.
        let back = [op(0, 1, 2, put(1)), op(0, 3, 20, put(2)), op(1, 4, 5, read(2)), op(2, 6, 7, read(1))];
        let Answer::No(found) = check(&back) else { panic!("it goes back") };
        assert!(found.contains(&back[3]), "{found:?}");
    }

    #[test]
    fn a_lost_update_of_a_compare_and_set_is_seen() {
        let twice =
            [op(0, 1, 2, put(1)), op(1, 3, 6, swap(1, 2, SwapEnd::Done)), op(2, 4, 5, swap(1, 3, SwapEnd::Done))];
        assert!(is_linearizable(&twice[..2]) && !is_linearizable(&twice), "both found 1");
        assert!(is_linearizable(&[op(0, 1, 2, put(1)), op(1, 3, 4, swap(None, 2, SwapEnd::Found(Some(ValueId(1)))))]));
        assert!(!is_linearizable(&[op(0, 1, 2, put(1)), op(1, 3, 4, swap(None, 2, SwapEnd::FoundNone))]));
        assert!(!is_linearizable(&[op(0, 1, 2, put(1)), op(1, 3, 4, swap(1, 2, SwapEnd::Found(None)))]), "it held 1");
    }

    #[test]
    fn what_is_unknown_may_happen_late_or_never_but_once() {
        let unknown = op(0, 1, None, put(1));
        assert!(is_linearizable(&[unknown, op(1, 2, 3, read(None)), op(1, 4, 5, read(None))]), "never");
        assert!(is_linearizable(&[unknown, op(1, 2, 3, read(None)), op(1, 4, 5, read(1))]), "late");
        let again = [unknown, op(1, 2, 3, read(1)), op(1, 4, 5, put(2)), op(1, 6, 7, read(1))];
        assert!(!is_linearizable(&again), "twice");
        let swapped = [op(0, 1, 2, put(1)), op(1, 3, None, swap(1, 2, SwapEnd::Unknown))];
        assert!(is_linearizable(&[&swapped[..], &[op(2, 4, 5, read(1)), op(2, 6, 7, read(2))]].concat()));
        assert!(!is_linearizable(&[&swapped[..], &[op(2, 4, 5, put(5)), op(2, 6, 7, read(2))]].concat()), "not on 5");
    }

    /// Against a search without memory and without tricks, on small random histories.
    #[test]
    fn agrees_with_trying_every_order() {
        let mut rng = gristmill_shardexec::sim::Rng::new(11);
        let mut answers = [0; 2];
        for _ in 0..4000 {
            let count = 1 + rng.below(6);
            let mut moments: Vec<Moment> = (1..=2 * count).collect();
            rng.shuffle(&mut moments);
            let ops: Vec<KeyOp> = moments
                .chunks(2)
                .map(|pair| {
                    let (invoked, returned) = (pair[0].min(pair[1]), pair[0].max(pair[1]));
                    let value = 1 + rng.below(3);
                    let seen = (rng.below(4) > 0).then(|| 1 + rng.below(3));
                    let ends = [SwapEnd::Done, SwapEnd::FoundNone, SwapEnd::Found(None), SwapEnd::Unknown];
                    let action = match rng.below(4) {
                        0 => put(value),
                        1 => Action::Delete,
                        2 => swap(seen, value, ends[rng.index(4)]),
                        _ => read(seen),
                    };
                    let writes = !matches!(action, Action::Read(_));
                    op(0, invoked, (!writes || rng.below(4) > 0).then_some(returned), action)
                })
                .collect();
            let expected = brute_force(&ops, &mut (0..ops.len()).collect(), 0);
            assert_eq!(is_linearizable(&ops), expected, "{ops:?}");
            answers[usize::from(expected)] += 1;
        }
        assert!(answers[0] > 500 && answers[1] > 500, "{answers:?}");
    }

    /// Tries every order of `order[done..]` after the first `done`.
    fn brute_force(ops: &[KeyOp], order: &mut Vec<usize>, done: usize) -> bool {
        let respects =
            |first: usize, second: usize| ops[second].returned.is_none_or(|returned| returned > ops[first].invoked);
        if done == order.len() {
            let in_time = (0..done).all(|at| order[at + 1..].iter().all(|&later| respects(order[at], later)));
            return in_time && order.iter().try_fold(None, |state, &op| step(state, ops[op].action)).is_some();
        }
        (done..order.len()).any(|pick| {
            order.swap(done, pick);
            let found = brute_force(ops, order, done + 1);
            order.swap(done, pick);
            found
        })
    }

    #[test]
    fn many_operations_are_judged_fast_and_too_many_orders_given_up() {
        let mut ops = Vec::new();
        for n in 0..1000u64 {
            let at = n * 10;
            // Ten clients overlap all the time.
            ops.push(op((n % 10) as u16, at + 1, at + 95, if n % 2 == 0 { put(n) } else { Action::Delete }));
        }
        assert_eq!(check(&ops), Answer::Yes);
        let hard: Vec<KeyOp> = (0..30)
            .map(|n| op(n, 1 + u64::from(n), None, put(u64::from(n))))
            .chain([op(99, 100, 101, read(77))])
            .collect();
        assert_eq!(check_within(&hard, 1000), Answer::Undecided);
    }
}
