//! Sessions: a retried write applies once.
//!
//! A client numbers its writes within a session. The answer to each is a record of the state, so after a failover or a
//! restart the new leader still knows it. A sequence is one of
//!
//! ```text
//!   forgotten          remembered or never seen               never seen
//!  ────────────┤floor├──────────────────────────┤highest├────────────────▶ sequence
//! ```
//!
//! Sequences may arrive out of order (a client writes over several connections) and with gaps (a session writes to
//! several shards). Of one session at least the newest [`SESSION_WINDOW`] answers are kept; clients know that window and keep
//! all writes that they may retry within it. A shard keeps [`ANSWERS_MAX`] in all, and forgets those of the sessions that
//! have not written for longest. Once a session is forgotten as a whole, its retries count as new: a client must not come back
//! with a retry after that many writes of others.
//!
//! All of this follows from the store's records, so a replica that restarts from them forgets the same answers at the
//! same entries as one that ran on.

use super::catalog::each;
use super::key::{self, Stamp, Table};
use super::outcome::{OUTCOME_BYTES_MAX, Verdict, WriteOutcome};
use super::record::Reader;
use super::store::{Direction, KeyRange, Store, StoreError, Write};
use core::ops::ControlFlow;
use gristmill_rpc::ids::{SessionId, Version};
use gristmill_rpc::limits::SESSION_WINDOW;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// Answers that are forgotten at a time; a session keeps up to this many more than its window.
pub const FORGET_STEP: usize = 64;
/// Answers that a shard keeps at the most, of all sessions together; so also the most sessions.
pub const ANSWERS_MAX: usize = 1 << 18;

const _: () = assert!(SESSION_WINDOW as usize + FORGET_STEP < ANSWERS_MAX);

/// The limits on sessions in force: the constants above, or smaller ones in tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SessionLimits {
    pub(super) window: usize,
    pub(super) step: usize,
    pub(super) answers: usize,
}

impl Default for SessionLimits {
    fn default() -> SessionLimits {
        SessionLimits { window: SESSION_WINDOW as usize, step: FORGET_STEP, answers: ANSWERS_MAX }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Session {
    /// The lowest sequence that is not forgotten.
    floor: u64,
    /// The highest sequence answered.
    highest: u64,
    /// Log index of the answer to `highest`. Answers are forgotten from the lowest, so it is there as long as the session.
    highest_at: u64,
    /// Remembered answers.
    answers: usize,
}

/// What is known of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup {
    /// Nothing: apply the command.
    New,
    /// The first answer.
    Known(WriteOutcome),
    /// It is forgotten whether and how it was answered.
    TooOld,
}

/// The sessions of a shard: an image of their records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sessions {
    limits: SessionLimits,
    by_id: FxHashMap<u64, Session>,
    /// Sessions by the log index of their highest sequence: the first has not written for longest.
    by_age: BTreeMap<u64, u64>,
    answers: usize,
}

impl Sessions {
    /// The image of what a store holds.
    pub(super) fn open(store: &impl Store, limits: SessionLimits) -> Result<Sessions, StoreError> {
        let mut sessions = Sessions { limits, ..Sessions::default() };
        each(store, Table::Answers, &mut |key, _, index| {
            let (id, sequence) = split_answer_key(&key)?;
            let session = sessions.by_id.entry(id).or_insert(Session::new());
            (session.highest, session.highest_at) = (sequence, index);
            session.answers += 1;
            sessions.answers += 1;
            Ok(())
        })?;
        each(store, Table::SessionFloors, &mut |key, value, _| {
            let id = u64::from_be_bytes(key.fixed_item()?);
            let dangling = StoreError::Dangling { what: "answer", by: "a session's floor" };
            sessions.by_id.get_mut(&id).ok_or(dangling)?.floor = decode_floor(value)?;
            Ok(())
        })?;
        sessions.by_age = sessions.by_id.iter().map(|(id, session)| (session.highest_at, *id)).collect();
        Ok(sessions)
    }

    /// Sessions that have remembered answers.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Remembered answers.
    pub(super) fn answers(&self) -> usize {
        self.answers
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        (self.by_id.len() * (size_of::<(u64, Session)>() * 2 + size_of::<(u64, u64)>() * 2)) as u64
    }

    /// What is known of a sequence.
    pub(super) fn look_up(&self, store: &impl Store, id: SessionId, sequence: u64) -> Result<Lookup, StoreError> {
        let Some(session) = self.by_id.get(&id.0) else { return Ok(Lookup::New) };
        if sequence < session.floor {
            return Ok(Lookup::TooOld);
        }
        if sequence > session.highest {
            return Ok(Lookup::New);
        }
        let Some(record) = store.get(&key::answer(id.0, sequence))? else { return Ok(Lookup::New) };
        let verdict = Verdict::decode(Reader::new("answer", record.value))?;
        Ok(Lookup::Known(WriteOutcome { version: Version(record.stamp.index), duplicate: true, verdict }))
    }

    /// Remembers the answer to a new sequence, given by the entry at `index`, and forgets old answers for it. The changes
    /// of the store are pushed to `writes`.
    pub(super) fn remember(
        &mut self,
        store: &impl Store,
        id: SessionId,
        sequence: u64,
        (index, verdict): (u64, Verdict),
        writes: &mut Vec<Write>,
    ) -> Result<(), StoreError> {
        if self.answers >= self.limits.answers {
            let oldest = self.by_age.values().copied().find(|session| *session != id.0);
            if let Some(oldest) = oldest {
                self.forget(store, oldest, writes)?;
            }
        }
        let known = self.by_id.get(&id.0).map_or(0, |session| session.answers);
        if known >= self.limits.window + self.limits.step {
            self.forget(store, id.0, writes)?;
        }
        let session = self.by_id.entry(id.0).or_insert(Session::new());
        if sequence < session.floor {
            return Ok(());
        }
        if session.answers == 0 || sequence > session.highest {
            self.by_age.remove(&session.highest_at);
            self.by_age.insert(index, id.0);
            (session.highest, session.highest_at) = (sequence, index);
        }
        session.answers += 1;
        self.answers += 1;
        let mut value = Vec::with_capacity(OUTCOME_BYTES_MAX);
        verdict.encode(&mut value);
        writes.push(Write { key: key::answer(id.0, sequence), op: Stamp::OP_SESSION, value: Some(value) });
        Ok(())
    }

    /// Forgets the lowest answers of a session, one step; the session with the last of them.
    fn forget(&mut self, store: &impl Store, id: u64, writes: &mut Vec<Write>) -> Result<(), StoreError> {
        let mut lowest = Vec::with_capacity(self.limits.step);
        let range = KeyRange::prefix(key::answers_of(id));
        store.scan(&range, Direction::Forward, &mut |key, _| {
            lowest.push(key.to_vec());
            if lowest.len() < self.limits.step { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        let last = lowest.last().ok_or(StoreError::Dangling { what: "answer", by: "a session" })?;
        let (_, last) = split_answer_key(&key::LogicalKey::decode(last)?)?;
        let session = self.by_id.get_mut(&id).expect("only known sessions are forgotten");
        session.answers -= lowest.len();
        self.answers -= lowest.len();
        session.floor = last.saturating_add(1);
        let floor = (session.answers > 0).then(|| session.floor.to_le_bytes().to_vec());
        if session.answers == 0 {
            self.by_age.remove(&session.highest_at);
            self.by_id.remove(&id);
        }
        let removed = lowest.into_iter().map(|key| Write { key, op: Stamp::OP_SESSION, value: None });
        writes.extend(removed);
        writes.push(Write { key: key::session_floor(id), op: Stamp::OP_SESSION, value: floor });
        Ok(())
    }
}

impl Session {
    fn new() -> Session {
        Session { floor: 0, highest: 0, highest_at: 0, answers: 0 }
    }
}

fn split_answer_key(key: &key::LogicalKey<'_>) -> Result<(u64, u64), StoreError> {
    let item: [u8; 16] = key.fixed_item()?;
    let (session, sequence) = item.split_at(8);
    let number = |bytes: &[u8]| bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
    Ok((number(session), number(sequence)))
}

fn decode_floor(record: &[u8]) -> Result<u64, StoreError> {
    let mut reader = Reader::new("session floor", record);
    let floor = reader.u64()?;
    reader.end()?;
    Ok(floor)
}

#[cfg(test)]
mod tests {
    use super::super::apply::{Hooks, ShardState, StateLimits};
    use super::super::memory::MemoryStore;
    use super::super::outcome::Rejection;
    use super::super::ranges::OwnedRanges;
    use super::super::testing::{OwnedEntry, dump, put, try_apply};
    use super::*;
    use gristmill_rpc::ids::ShardId;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const LIMITS: SessionLimits = SessionLimits { window: 4, step: 2, answers: 12 };
    const STATE_LIMITS: StateLimits = StateLimits { namespaces: 1, sessions: LIMITS };

    type State = ShardState<MemoryStore>;

    fn new_state() -> State {
        State::create_with(ShardId(0), &OwnedRanges::all(), MemoryStore::new(), Hooks::default(), STATE_LIMITS)
            .expect("new")
    }

    fn apply(state: &mut State, index: u64, session: u64, sequence: u64) -> WriteOutcome {
        let entry = OwnedEntry::command(index, 1, vec![put("a", b"k", b"v")]).in_session(session, sequence);
        try_apply(state, &[entry]).expect("applies")[0].expect("a command")
    }

    /// Naive sessions: answers (sequence to version) and the floor.
    #[derive(Default)]
    struct Model {
        sessions: BTreeMap<u64, (u64, BTreeMap<u64, u64>)>,
    }

    impl Model {
        fn forget(&mut self, id: u64) {
            let (floor, answers) = self.sessions.get_mut(&id).expect("known");
            for _ in 0..LIMITS.step {
                *floor = answers.pop_first().map_or(*floor, |(sequence, _)| sequence + 1);
            }
            if answers.is_empty() {
                self.sessions.remove(&id);
            }
        }

        fn apply(&mut self, index: u64, id: u64, sequence: u64) -> WriteOutcome {
            let (floor, answers) = self.sessions.get(&id).cloned().unwrap_or_default();
            let outcome = |version, duplicate, verdict| WriteOutcome { version: Version(version), duplicate, verdict };
            if sequence < floor {
                let rejection = Rejection::SequenceTooOld { session: id, sequence };
                return outcome(index, false, Verdict::Rejected(rejection));
            }
            if let Some(version) = answers.get(&sequence) {
                return outcome(*version, true, Verdict::Applied);
            }
            let newest = |answers: &BTreeMap<u64, u64>| *answers.last_key_value().expect("not empty").1;
            if self.sessions.values().map(|(_, answers)| answers.len()).sum::<usize>() >= LIMITS.answers {
                let others = self.sessions.iter().filter(|(other, _)| **other != id);
                if let Some((oldest, _)) = others.min_by_key(|(_, (_, answers))| newest(answers)) {
                    self.forget(*oldest);
                }
            }
            if answers.len() >= LIMITS.window + LIMITS.step {
                self.forget(id);
            }
            let (floor, answers) = self.sessions.entry(id).or_default();
            if sequence >= *floor {
                answers.insert(sequence, index);
            }
            outcome(index, false, Verdict::Applied)
        }
    }

    proptest! {
        /// Against the naive sessions, with limits that are reached all the time and a restart in the middle.
        #[test]
        fn remembers_and_forgets_as_the_model(
            writes in prop::collection::vec((1u64..6, 0u64..24), 0..150),
            restart in any::<prop::sample::Index>(),
        ) {
            let (mut state, mut model) = (new_state(), Model::default());
            let mut applied = BTreeSet::new();
            let restart = restart.index(writes.len() + 1);
            for (at, (session, sequence)) in writes.into_iter().enumerate() {
                let index = at as u64 + 1;
                let outcome = apply(&mut state, index, session, sequence);
                prop_assert_eq!(outcome, model.apply(index, session, sequence));
                if outcome.verdict == Verdict::Applied && !outcome.duplicate {
                    prop_assert!(applied.insert((session, sequence)), "applied twice although the session is known");
                }
                applied.retain(|(session, _)| model.sessions.contains_key(session));
                let (sessions, answers) = state.session_counts();
                prop_assert_eq!(sessions, model.sessions.len());
                prop_assert!(answers <= LIMITS.answers);
                if at == restart {
                    let store = state.store().clone();
                    let reopened = State::open_with(ShardId(0), store, Hooks::default(), STATE_LIMITS).expect("own store");
                    prop_assert!(reopened.sessions == state.sessions, "the image follows from the records");
                    state = reopened;
                }
            }
            let answers: usize = model.sessions.values().map(|(_, answers)| answers.len()).sum();
            prop_assert_eq!(state.session_counts().1, answers);
            let records = dump(state.store());
            let stored = records.iter().filter(|(key, ..)| key[0] == Table::Answers as u8).count();
            let floors = records.iter().filter(|(key, ..)| key[0] == Table::SessionFloors as u8).count();
            prop_assert_eq!(stored, answers);
            prop_assert!(floors <= model.sessions.len(), "no floor outlives its session");
            prop_assert_eq!(state.recompute_root(), Ok(state.root()));
        }
    }

    #[test]
    fn a_full_window_can_be_retried() {
        // As far on as the first of a window can be retried: not one answer may be forgotten before.
        let before = FORGET_STEP as u64 + 1;
        let (first, last) = (before, before + SESSION_WINDOW - 1);
        let owned = OwnedRanges::all();
        let mut state = State::create(ShardId(0), &owned, MemoryStore::new(), Hooks::default()).expect("new");
        for sequence in 1..=last {
            assert!(!apply(&mut state, sequence, 7, sequence).duplicate);
        }
        for sequence in first..=last {
            let again = apply(&mut state, last + sequence, 7, sequence);
            assert_eq!((again.duplicate, again.version), (true, Version(sequence)));
        }
        assert!(state.memory_bytes() > 0);
    }
}
