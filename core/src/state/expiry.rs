//! When the next value expires: for those who propose sweeps of shards that nobody writes to.

use super::apply::ShardState;
use super::key::{LogicalKey, Table};
use super::store::{Direction, KeyRange, Store, StoreError};
use core::ops::ControlFlow;

impl<S: Store> ShardState<S> {
    /// No value expires before this time. Falls only when apply stores a value that expires earlier than all others.
    pub fn no_expiry_before_ms(&self) -> u64 {
        self.next_expiry_ms
    }

    /// When the first value expires, by the shard's time; `u64::MAX` where none does. One look at the store; from here on
    /// [`Self::no_expiry_before_ms`] is exact until something expires or is removed, which changes nothing of what
    /// apply does.
    pub fn find_next_expiry_ms(&mut self) -> Result<u64, StoreError> {
        let mut first = Ok(u64::MAX);
        let marks = KeyRange::prefix(vec![Table::Expiry as u8]);
        self.store.scan(&marks, Direction::Forward, &mut |mark, _| {
            // A mark's expiry stands in the partition's place.
            first = LogicalKey::decode(mark).map(|key| key.scope.partition).map_err(StoreError::from);
            ControlFlow::Break(())
        })?;
        self.next_expiry_ms = first?;
        Ok(self.next_expiry_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::super::apply::Hooks;
    use super::super::memory::MemoryStore;
    use super::super::ranges::OwnedRanges;
    use super::super::testing::{OwnedEntry, delete, put, put_for, run, try_apply};
    use super::*;
    use gristmill_rpc::ids::ShardId;

    #[test]
    fn the_next_expiry_follows_writes_removals_and_sweeps() {
        let state = ShardState::create(ShardId(0), &OwnedRanges::all(), MemoryStore::new(), Hooks::default());
        let mut state = state.expect("new");
        assert_eq!(state.find_next_expiry_ms(), Ok(u64::MAX));
        run(&mut state, 100, vec![put("a", b"stays", b"v"), put_for("a", b"late", b"v", 500)]);
        assert_eq!((state.no_expiry_before_ms(), state.find_next_expiry_ms()), (600, Ok(600)));
        run(&mut state, 100, vec![put_for("b", b"early", b"v", 50)]);
        assert_eq!((state.no_expiry_before_ms(), state.find_next_expiry_ms()), (150, Ok(150)));
        run(&mut state, 100, vec![delete("b", b"early")]);
        assert_eq!((state.no_expiry_before_ms(), state.find_next_expiry_ms()), (150, Ok(600)));
        let index = state.applied().expect("written").index + 1;
        try_apply(&mut state, &[OwnedEntry::sweep(index, 700)]).expect("applies");
        assert_eq!((state.stats().swept, state.find_next_expiry_ms()), (1, Ok(u64::MAX)));
        assert_eq!(state.recompute_root(), Ok(state.root()));
    }

    /// Whoever asks for the next expiry must not change what apply makes of the entries that follow.
    #[test]
    fn asking_changes_nothing_that_is_replicated() {
        let states = [false, true].map(|ask| {
            let state = ShardState::create(ShardId(0), &OwnedRanges::all(), MemoryStore::new(), Hooks::default());
            let mut state = state.expect("new");
            for step in 0..60u64 {
                let key = [step as u8 % 7];
                run(&mut state, step * 10, vec![put_for("a", &key, b"v", 1 + step * 13 % 90)]);
                if ask {
                    state.find_next_expiry_ms().expect("memory does not fail");
                }
            }
            (state.root(), state.stats().swept)
        });
        assert_eq!(states[0], states[1]);
        assert!(states[0].1 > 0, "vacuous: nothing expired");
    }
}
