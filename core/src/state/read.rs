//! Reads of a shard's state, as of its applied index.
//!
//! A read that must be linearizable is run once the shard has applied what was committed when it arrived; that is the
//! caller's part. Values that have expired by `now_ms` are hidden, whether or not they are swept yet: pass the reader's
//! idea of the shard's time, not before [`ShardState::hlc`].

use super::apply::ShardState;
use super::catalog::{Namespace, partition_of};
use super::grain::GrainRef;
use super::key::{self, LogicalKey, Scope, SubjectToken, Table};
use super::record::ValueRef;
use super::store::{Direction, KeyRange, RecordRef, Store, StoreError};
use core::ops::ControlFlow;
use gristmill_rpc::error::ErrorCode;
use gristmill_rpc::ids::{GrainId, ShardId, Version};
use gristmill_rpc::limits::{FRAME_BODY_BYTES_MAX, KEY_BYTES_MAX, SCAN_ITEMS_MAX, VALUE_BYTES_MAX};
use gristmill_rpc::schema::ScanItem;

/// Bytes of keys and values, with what their archive adds, of one page of a scan.
pub const SCAN_BYTES_MAX: usize = 7 << 20;
/// Records that a step of a scan looks at: some 50 µs.
pub const SCAN_STEP_RECORDS: usize = 256;
/// Bytes after which a step of a scan ends: some 50 µs.
pub const SCAN_STEP_BYTES: usize = 256 << 10;
/// What an item costs beside its bytes when it is archived.
const SCAN_ITEM_OVERHEAD_BYTES: usize = 64;

const _: () = assert!(SCAN_BYTES_MAX + (SCAN_BYTES_MAX >> 4) < FRAME_BODY_BYTES_MAX as usize);
const _: () = assert!(VALUE_BYTES_MAX + KEY_BYTES_MAX + SCAN_ITEM_OVERHEAD_BYTES < SCAN_BYTES_MAX);

/// Why a read has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Nothing was ever written to the namespace.
    #[error(
        "namespace {namespace:?} does not exist: nothing was ever written to it; check the name, the first write creates it"
    )]
    UnknownNamespace {
        /// Its name.
        namespace: String,
    },
    /// The shard does not own the namespace.
    #[error("namespace {namespace:?} is not on shard {}; refresh the cluster map and ask the shard that owns it", .shard.0)]
    WrongShard {
        /// The name.
        namespace: String,
        /// This shard.
        shard: ShardId,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ReadError {
    /// The code that programs decide by.
    pub fn code(&self) -> ErrorCode {
        match self {
            ReadError::UnknownNamespace { .. } => ErrorCode::UnknownNamespace,
            ReadError::WrongShard { .. } => ErrorCode::WrongShard,
            ReadError::Store(_) => ErrorCode::Quarantined,
        }
    }
}

/// Which values a scan returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanSpec {
    /// The namespace.
    pub namespace: String,
    /// First key, inclusive; empty means from the beginning.
    pub start: Vec<u8>,
    /// Last key, exclusive; empty means to the end.
    pub end: Vec<u8>,
    /// Only keys that begin with this.
    pub prefix: Vec<u8>,
    /// From the last key to the first.
    pub reverse: bool,
}

impl ScanSpec {
    /// Narrows the scan to what lies beyond a key that it returned, so that a long scan can be done in slices.
    pub fn go_on_beyond(&mut self, key: &[u8]) {
        if self.reverse {
            self.end = key.to_vec();
        } else {
            self.start = [key, &[0]].concat();
        }
    }

    /// The logical keys of the scan.
    fn range(&self, scope: Scope) -> KeyRange {
        let mut open = key::single(Table::Values, scope);
        key::push_escaped_open(&mut open, &self.prefix);
        let mut range = KeyRange::prefix(open);
        if !self.start.is_empty() {
            range = range.intersect(KeyRange { start: key::value(scope, &self.start), end: None });
        }
        if !self.end.is_empty() {
            range = range.intersect(KeyRange { start: Vec::new(), end: Some(key::value(scope, &self.end)) });
        }
        range
    }
}

/// Part of a scan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScanPage {
    /// In the order asked for.
    pub items: Vec<ScanItem>,
    /// There is more beyond the last item.
    pub more: bool,
}

impl<S: Store> ShardState<S> {
    /// A namespace by its name.
    pub fn namespace(&self, name: &str) -> Result<&Namespace, ReadError> {
        let found = self.catalog.by_name(name);
        let partition = found.map_or_else(|| partition_of(name), |namespace| namespace.scope.partition);
        if !self.owned.contains(partition) {
            return Err(ReadError::WrongShard { namespace: name.into(), shard: self.shard });
        }
        found.ok_or_else(|| ReadError::UnknownNamespace { namespace: name.into() })
    }

    /// A plain value and its version; `None` where there is none.
    pub fn get(&self, namespace: &str, user_key: &[u8], now_ms: u64) -> Result<Option<(Version, &[u8])>, ReadError> {
        let scope = self.namespace(namespace)?.scope;
        let Some(record) = self.store.get(&key::value(scope, user_key))? else { return Ok(None) };
        let value = ValueRef::decode(record.value)?;
        Ok((!value.expired_at(now_ms)).then_some((Version(record.stamp.index), value.bytes)))
    }

    /// A grain and its version; `None` where there is none.
    pub fn grain(&self, namespace: &str, id: GrainId) -> Result<Option<(Version, GrainRef<'_>)>, ReadError> {
        let scope = self.namespace(namespace)?.scope;
        Ok(self.grain_at(scope, id)?)
    }

    /// The same by scope, for those who were told of the grain by an index.
    pub fn grain_at(&self, scope: Scope, id: GrainId) -> Result<Option<(Version, GrainRef<'_>)>, StoreError> {
        let Some(token) = self.store.get(&key::grain_id(scope, id))? else { return Ok(None) };
        let malformed = StoreError::Record { what: "grain id", detail: "not a subject token" };
        let token = SubjectToken(token.value.try_into().map_err(|_| malformed)?);
        let dangling = StoreError::Dangling { what: "grain", by: "its id" };
        let record = self.store.get(&key::grain(scope, token, id))?.ok_or(dangling)?;
        Ok(Some((Version(record.stamp.index), GrainRef::decode(record.value)?)))
    }

    /// Visits all grains of a namespace, by subject token, then id: to build an index anew.
    pub fn each_grain(
        &self,
        scope: Scope,
        visit: &mut dyn FnMut(GrainId, Version, GrainRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut result = Ok(());
        let range = KeyRange::prefix(key::single(Table::Grains, scope));
        self.store.scan(&range, Direction::Forward, &mut |key, record| {
            let decoded = LogicalKey::decode(key)
                .and_then(|key| key.fixed_item::<32>())
                .map_err(StoreError::from)
                .and_then(|item| Ok((item, GrainRef::decode(record.value)?)));
            match decoded {
                Ok((item, grain)) => {
                    let mut id = [0; 16];
                    id.copy_from_slice(&item[16..]);
                    visit(GrainId(id), Version(record.stamp.index), grain)
                }
                Err(error) => {
                    result = Err(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        result
    }

    /// A page of plain values in key order: at most `limit` (0: no limit of the caller's) and [`SCAN_ITEMS_MAX`] items and
    /// [`SCAN_BYTES_MAX`] bytes; all of one moment. A [`ScanRun`] does the same in steps.
    pub fn scan(&self, spec: &ScanSpec, limit: u32, now_ms: u64) -> Result<ScanPage, ReadError> {
        let mut run = ScanRun::new(spec.clone(), limit);
        while !run.step(self, now_ms)? {}
        Ok(run.into_page())
    }
}

/// A page of a scan under way, in steps of bounded work. Each step sees the state as it is then: a key that is there all
/// the time is found once, one that comes or goes meanwhile may be found or not, and no key is found twice.
#[derive(Debug, Clone)]
pub struct ScanRun {
    spec: ScanSpec,
    limit: usize,
    /// The last key that was looked at.
    beyond: Option<Vec<u8>>,
    bytes: usize,
    page: ScanPage,
}

impl ScanRun {
    /// A page of at most `limit` items, as many as fit where it is 0.
    pub fn new(spec: ScanSpec, limit: u32) -> ScanRun {
        let limit = if limit == 0 { SCAN_ITEMS_MAX } else { limit.min(SCAN_ITEMS_MAX) };
        ScanRun { spec, limit: limit as usize, beyond: None, bytes: 0, page: ScanPage::default() }
    }

    /// Forgets what was found, and begins anew.
    pub fn restart(&mut self) {
        (self.beyond, self.bytes, self.page) = (None, 0, ScanPage::default());
    }

    /// Looks at up to [`SCAN_STEP_RECORDS`] records and takes up to [`SCAN_STEP_BYTES`] bytes and one item. True once the
    /// page is complete.
    pub fn step<S: Store>(&mut self, state: &ShardState<S>, now_ms: u64) -> Result<bool, ReadError> {
        let scope = state.namespace(&self.spec.namespace)?.scope;
        let mut rest = self.spec.clone();
        if let Some(beyond) = &self.beyond {
            rest.go_on_beyond(beyond);
        }
        let direction = if rest.reverse { Direction::Reverse } else { Direction::Forward };
        let (mut seen, mut complete, mut result) = (0, true, Ok(()));
        let bytes_before = self.bytes;
        state.store.scan(&rest.range(scope), direction, &mut |key, record| {
            if seen == SCAN_STEP_RECORDS || self.bytes - bytes_before >= SCAN_STEP_BYTES {
                complete = false;
                return ControlFlow::Break(());
            }
            seen += 1;
            let taken = self.take(key, record, now_ms);
            taken.unwrap_or_else(|error| {
                result = Err(error);
                ControlFlow::Break(())
            })
        })?;
        result?;
        Ok(complete)
    }

    fn take(&mut self, key: &[u8], record: RecordRef<'_>, now_ms: u64) -> Result<ControlFlow<()>, StoreError> {
        let key = LogicalKey::decode(key)?.escaped_item()?.into_owned();
        let value = ValueRef::decode(record.value)?;
        if value.expired_at(now_ms) {
            self.beyond = Some(key);
            return Ok(ControlFlow::Continue(()));
        }
        let bytes = self.bytes + key.len() + value.bytes.len() + SCAN_ITEM_OVERHEAD_BYTES;
        if self.page.items.len() == self.limit || bytes > SCAN_BYTES_MAX {
            self.page.more = true;
            return Ok(ControlFlow::Break(()));
        }
        self.bytes = bytes;
        self.beyond.get_or_insert_default().clone_from(&key);
        self.page.items.push(ScanItem { key, version: Version(record.stamp.index), value: value.bytes.to_vec() });
        Ok(ControlFlow::Continue(()))
    }

    /// What was found.
    pub fn into_page(self) -> ScanPage {
        self.page
    }
}

#[cfg(test)]
mod tests {
    use super::super::apply::Hooks;
    use super::super::memory::MemoryStore;
    use super::super::ranges::OwnedRanges;
    use super::super::testing::{put, put_for, run};
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type State = ShardState<MemoryStore>;

    fn state_with(values: &BTreeMap<Vec<u8>, Vec<u8>>) -> State {
        let owned = OwnedRanges::all();
        let mut state = State::create(ShardId(0), &owned, MemoryStore::new(), Hooks::default()).expect("new");
        // Neighbours in key order that no scan of "a" may return.
        run(&mut state, 1, vec![put("before", b"k", b"v"), put("a", b"gone", b""), put("behind", b"k", b"v")]);
        run(&mut state, 1, vec![super::super::testing::delete("a", b"gone")]);
        for (key, value) in values {
            run(&mut state, 1, vec![put("a", key, value)]);
        }
        state
    }

    fn all() -> ScanSpec {
        ScanSpec { namespace: "a".into(), start: vec![], end: vec![], prefix: vec![], reverse: false }
    }

    fn tricky() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xff)], 0..4)
    }

    proptest! {
        /// Any range, prefix, direction and limit; and the whole by slices of that limit.
        #[test]
        fn scans_as_an_ordered_map(
            keys in prop::collection::btree_map(tricky(), Just(vec![1]), 0..12),
            start in tricky(), end in tricky(), prefix in tricky(), reverse: bool, limit in 1u32..5,
        ) {
            let keys: BTreeMap<Vec<u8>, Vec<u8>> = keys.into_iter().filter(|(key, _)| !key.is_empty()).collect();
            let state = state_with(&keys);
            let mut spec = ScanSpec { start: start.clone(), end: end.clone(), prefix: prefix.clone(), reverse, ..all() };
            let mut expected: Vec<_> = keys.keys()
                .filter(|key| **key >= start && (end.is_empty() || **key < end) && key.starts_with(&prefix))
                .cloned().collect();
            if reverse {
                expected.reverse();
            }
            let mut found = Vec::new();
            loop {
                let page = state.scan(&spec, limit, 1).expect("known");
                prop_assert!(page.items.len() <= limit as usize);
                found.extend(page.items.iter().map(|item| item.key.clone()));
                prop_assert_eq!(page.more, found.len() < expected.len());
                let Some(last) = page.items.last().filter(|_| page.more) else { break };
                spec.go_on_beyond(&last.key);
            }
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_long_scan_goes_in_steps_and_finds_each_key_once() {
        const KEYS: u32 = 5 * SCAN_STEP_RECORDS as u32 / 2;
        let keys = (0..KEYS).map(|key| (key.to_be_bytes().to_vec(), vec![1])).collect();
        for reverse in [false, true] {
            let mut state = state_with(&keys);
            let mut run = ScanRun::new(ScanSpec { reverse, ..all() }, 0);
            assert_eq!(run.step(&state, 1), Ok(false));
            assert_eq!(run.clone().into_page().items.len(), SCAN_STEP_RECORDS);
            // Writes between two steps: one key on either side of the first step's end, and a new version of a found one.
            run_between(&mut state);
            let mut steps = 1;
            while !run.step(&state, 1).expect("known") {
                steps += 1;
            }
            assert_eq!(steps, 2);
            let found: Vec<_> = run.into_page().items.into_iter().map(|item| item.key).collect();
            let mut sorted = found.clone();
            sorted.sort_unstable();
            if reverse {
                sorted.reverse();
            }
            sorted.dedup();
            assert_eq!(found, sorted, "in order, none twice");
            let new: Vec<_> = found.iter().filter(|key| !keys.contains_key(*key)).collect();
            let ahead: &[u8] = if reverse { &[0, 0, 0, 0, 1] } else { &[0xff] };
            assert_eq!(new, [ahead], "only what came ahead of the scan");
            assert_eq!(found.len(), keys.len() + 1);
        }
    }

    fn run_between(state: &mut State) {
        for key in [&[0, 0, 0, 0, 1][..], &[0xff], &[0, 0, 0, 2], &(5 * SCAN_STEP_RECORDS as u32 / 2 - 1).to_be_bytes()]
        {
            run(state, 1, vec![put("a", key, b"new")]);
        }
    }

    #[test]
    fn a_step_over_what_has_expired_ends_too() {
        let mut state = state_with(&BTreeMap::new());
        let marked = (0..3 * SCAN_STEP_RECORDS as u32 / 2).map(|key| put_for("a", &key.to_be_bytes(), b"v", 10));
        let operations: Vec<_> = marked.collect();
        run(&mut state, 1, operations);
        let mut run = ScanRun::new(all(), 0);
        assert_eq!(run.step(&state, 100), Ok(false));
        assert_eq!(run.step(&state, 100), Ok(true));
        assert_eq!(run.into_page(), ScanPage::default());
    }

    #[test]
    fn a_page_fits_into_a_frame() {
        let big = vec![7; VALUE_BYTES_MAX];
        let state = state_with(&(0..3u8).map(|n| (vec![n], big.clone())).collect());
        let page = state.scan(&all(), 10, 1).expect("known");
        assert_eq!((page.items.len(), page.more), (1, true), "two do not fit");
        let small = state_with(&(0..200u8).map(|n| (vec![n], vec![])).collect());
        assert_eq!(small.scan(&all(), u32::MAX, 1).expect("known").items.len(), 200);
    }

    /// The protocol's limit 0, "as many as fit", was taken for a limit of none: an empty page that said there was more, so a client that
    /// went on page by page asked for ever.
    #[test]
    fn a_limit_of_0_is_none() {
        let state = state_with(&(0..20u8).map(|n| (vec![n], vec![n])).collect());
        let page = state.scan(&all(), 0, 1).expect("known");
        assert_eq!((page.items.len(), page.more), (20, false));
    }

    #[test]
    fn errors_name_the_namespace_and_the_way_out() {
        let state = state_with(&BTreeMap::new());
        let error = state.scan(&ScanSpec { namespace: "nope".into(), ..all() }, 1, 1).expect_err("unknown");
        assert_eq!(error.code(), ErrorCode::UnknownNamespace);
        assert!(error.to_string().contains("\"nope\"") && error.to_string().contains("the first write creates it"));
    }
}
