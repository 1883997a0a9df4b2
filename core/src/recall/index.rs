//! The recall index of one shard: it follows the state, and keeps its segments in shape behind the scenes.
//!
//! ```text
//!  apply ──IndexEvent──▶ heads, at once ──(large enough)──▶ due
//!                                                            │ maintain: pick live documents, in slices
//!                        segments ◀──install, one poll── offload(build or merge)
//! ```

use super::limits::{HEADS_BYTES_MAX, HEADS_BYTES_SOFT, PICK_STEP_DOCS};
use super::namespace::Namespace;
use crate::state::events::{IndexEvent, IndexSink};
use crate::state::key::NamespaceId;
use crate::text::{Analyzer, TextError};
use core::convert::Infallible;
use gristmill_rpc::ids::Version;
use gristmill_shardexec::sync::Notify;
use gristmill_shardexec::{OffloadError, offload, yield_if_spent};
use gristmill_vector::Kernel;
use std::cell::{Ref, RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;

/// The index could not be kept in shape. What it holds stays right; the shard should stop all the same, because its heads
/// would grow from now on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MaintainError {
    /// A segment could not be made.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The job did not run.
    #[error("a segment of the text index was not built: {0}")]
    Offload(#[from] OffloadError),
}

/// What the index holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecallStats {
    /// Live grains.
    pub grains: u64,
    /// Live texts.
    pub texts: u64,
    /// Live vectors.
    pub vectors: u64,
    /// Vectors that found no room in the vector leg, ever.
    pub vectors_refused: u64,
    /// Texts that are in no segment yet, replaced ones included.
    pub texts_unbuilt: u64,
    /// Text segments.
    pub text_segments: u64,
    /// Text segments built or merged so far.
    pub text_jobs: u64,
    /// Bytes of memory: text heads.
    pub text_head_bytes: u64,
    /// The most bytes that the text heads held together, ever.
    pub text_heads_bytes_max: u64,
    /// Bytes of memory: text segments.
    pub text_segment_bytes: u64,
    /// Bytes of memory: vectors and their codes.
    pub vector_bytes: u64,
    /// Bytes of memory: who is who, and tags.
    pub roster_bytes: u64,
}

/// The recall index of one shard. A cheap handle.
#[derive(Clone, Default)]
pub struct RecallIndex {
    shared: Rc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: RefCell<State>,
    /// Something is due.
    work: Notify,
    /// Something was done.
    relief: Notify,
}

pub(super) struct State {
    pub namespaces: BTreeMap<NamespaceId, Namespace>,
    pub analyzer: Analyzer,
    kernel: Kernel,
    applied: Version,
    due: BTreeSet<NamespaceId>,
    /// Where the builder was last; the next one due after it is its next.
    last_built: Option<NamespaceId>,
    /// Where it is now.
    building: Option<NamespaceId>,
    heads_bytes: usize,
    heads_bytes_highest: usize,
    limits: HeadLimits,
    /// The builder has given up: nobody makes room any more.
    unmaintained: bool,
    jobs: u64,
}

/// The limits in force: the named constants, or smaller ones in tests.
#[derive(Clone, Copy)]
struct HeadLimits {
    soft: usize,
    max: usize,
}

impl Default for State {
    fn default() -> Self {
        State {
            namespaces: BTreeMap::new(),
            analyzer: Analyzer::default(),
            kernel: Kernel::detect(),
            applied: Version(0),
            due: BTreeSet::new(),
            last_built: None,
            building: None,
            heads_bytes: 0,
            heads_bytes_highest: 0,
            limits: HeadLimits { soft: HEADS_BYTES_SOFT, max: HEADS_BYTES_MAX },
            unmaintained: false,
            jobs: 0,
        }
    }
}

impl IndexSink for RecallIndex {
    fn index(&mut self, event: IndexEvent<'_>) {
        let mut state = self.state_mut();
        let (IndexEvent::PutGrain { namespace, .. } | IndexEvent::DeleteGrain { namespace, .. }) = event;
        let heads_before = state.change(namespace, |indexes, analyzer, kernel| match event {
            IndexEvent::PutGrain { id, grain, old, .. } => indexes.put(id, &grain, old.as_ref(), analyzer, kernel),
            IndexEvent::DeleteGrain { id, old, .. } => indexes.remove(id, &old, analyzer),
        });
        let (IndexEvent::PutGrain { version, .. } | IndexEvent::DeleteGrain { version, .. }) = event;
        assert!(state.applied <= version, "changes come in log order");
        state.applied = version;
        let over_soft = state.heads_bytes > state.limits.soft && state.heads_bytes > heads_before;
        if over_soft || state.due.contains(&namespace) {
            drop(state);
            self.shared.work.notify_one();
        }
    }
}

impl RecallIndex {
    /// An index of nothing.
    pub fn new() -> RecallIndex {
        RecallIndex::default()
    }

    /// An index of nothing whose heads may hold less.
    #[cfg(test)]
    pub(crate) fn with_head_limits(soft: usize, max: usize) -> RecallIndex {
        let index = RecallIndex::default();
        index.state_mut().limits = HeadLimits { soft, max };
        index
    }

    /// The log index up to which it followed. (Entries that touch no grain leave it as it is.)
    pub fn applied(&self) -> Version {
        self.state().applied
    }

    /// Whether there is room for more writes: always, unless the builder is far behind.
    pub fn has_room(&self) -> bool {
        let state = self.state();
        state.heads_bytes <= state.limits.max || state.unmaintained
    }

    /// Waits until there is room for more writes. Whoever applies calls it before each batch: so heads pass
    /// [`HEADS_BYTES_MAX`] by what one batch brings at the most. Needs [`Self::maintain`] to be running; where that has
    /// failed it does not wait, for the shard is about to stop.
    pub async fn admit(&self) {
        while !self.has_room() {
            self.shared.relief.notified().await;
        }
    }

    /// Builds and merges segments as they fall due; never ends but by an error. One task of the background class for each
    /// shard, and no more. Dropping it in the middle of a job loses nothing. However it ends, by a panic too, nobody waits
    /// for room any more: there is none to come.
    pub async fn maintain(&self) -> Result<Infallible, MaintainError> {
        assert!(self.state().building.is_none(), "one builder a shard");
        self.state_mut().unmaintained = false;
        let _maintained = Maintained(self);
        loop {
            let due = self.state_mut().next_due();
            let Some(namespace) = due else {
                self.shared.work.notified().await;
                continue;
            };
            self.build(namespace).await?;
        }
    }

    /// Waits until nothing is due: for tests and tools that want a settled index. Needs [`Self::maintain`] to be running.
    pub async fn settled(&self) {
        while !self.state().is_settled() {
            self.shared.relief.notified().await;
        }
    }

    async fn build(&self, namespace: NamespaceId) -> Result<(), MaintainError> {
        let begun = self.state_mut().change_text(namespace, |indexes| indexes.text.begin());
        if !begun {
            self.state_mut().building = None;
            return Ok(());
        }
        let mut running = Running { index: self, namespace, done: false };
        let job = loop {
            let job = self.state_mut().change_text(namespace, |indexes| indexes.pick(PICK_STEP_DOCS));
            if let Some(job) = job {
                break job;
            }
            yield_if_spent().await;
        };
        let segment = offload(move || job.run()).await??;
        self.state_mut().change_text(namespace, |indexes| indexes.text.install(segment));
        running.done = true;
        Ok(())
    }

    /// What it holds. Looks at every namespace.
    pub fn stats(&self) -> RecallStats {
        let state = self.state();
        let mut stats = RecallStats {
            text_jobs: state.jobs,
            text_heads_bytes_max: state.heads_bytes_highest as u64,
            ..RecallStats::default()
        };
        for indexes in state.namespaces.values() {
            stats.grains += indexes.roster.len() as u64;
            stats.texts += indexes.text.statistics().docs;
            stats.vectors += indexes.vectors.as_ref().map_or(0, |vectors| vectors.len() as u64);
            stats.vectors_refused += indexes.vectors_refused;
            stats.texts_unbuilt += indexes.text.unbuilt() as u64;
            stats.text_segments += indexes.text.segments() as u64;
            stats.text_head_bytes += indexes.text.head_memory() as u64;
            stats.text_segment_bytes += indexes.text.segment_memory() as u64;
            stats.vector_bytes += indexes.vectors.as_ref().map_or(0, |vectors| vectors.memory() as u64);
            stats.roster_bytes += (indexes.roster.memory() + indexes.labels.memory()) as u64;
        }
        stats
    }

    /// Seals every head, so that its grains move to a segment next.
    #[cfg(test)]
    pub(super) fn seal_heads(&self) {
        let namespaces: Vec<NamespaceId> = self.state().namespaces.keys().copied().collect();
        for namespace in namespaces {
            self.state_mut().change_text(namespace, |indexes| indexes.text.seal());
        }
        self.shared.work.notify_one();
    }

    pub(super) fn state(&self) -> Ref<'_, State> {
        self.shared.state.borrow()
    }

    pub(super) fn state_mut(&self) -> RefMut<'_, State> {
        self.shared.state.borrow_mut()
    }
}

/// An index that has a builder.
struct Maintained<'a>(&'a RecallIndex);

impl Drop for Maintained<'_> {
    fn drop(&mut self) {
        self.0.state_mut().unmaintained = true;
        self.0.shared.relief.notify_waiters();
    }
}

/// A job under way. Given up when the task that runs it goes away.
struct Running<'a> {
    index: &'a RecallIndex,
    namespace: NamespaceId,
    done: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.index.state_mut();
        if self.done {
            state.jobs += 1;
        } else {
            state.change_text(self.namespace, |indexes| indexes.text.abandon());
        }
        state.building = None;
        drop(state);
        self.index.shared.relief.notify_waiters();
    }
}

impl State {
    /// Changes a namespace's indexes, and keeps count of the heads and of what is due. Returns the bytes of all heads
    /// before.
    fn change(&mut self, namespace: NamespaceId, change: impl FnOnce(&mut Namespace, &mut Analyzer, Kernel)) -> usize {
        let indexes = self.namespaces.entry(namespace).or_default();
        let before = self.heads_bytes;
        let head_before = indexes.text.head_memory();
        change(indexes, &mut self.analyzer, self.kernel);
        self.heads_bytes = self.heads_bytes - head_before + indexes.text.head_memory();
        self.heads_bytes_highest = self.heads_bytes_highest.max(self.heads_bytes);
        if indexes.text.is_due() {
            self.due.insert(namespace);
        }
        before
    }

    fn change_text<T>(&mut self, namespace: NamespaceId, change: impl FnOnce(&mut Namespace) -> T) -> T {
        let mut result = None;
        self.change(namespace, |indexes, _, _| result = Some(change(indexes)));
        result.expect("the change was made")
    }

    /// The namespace whose segments need work most: the next one due, or, where heads take too much memory, the one with
    /// the largest head, which is sealed.
    fn next_due(&mut self) -> Option<NamespaceId> {
        let after = self.last_built.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.due.range((after, Bound::Unbounded)).next().or_else(|| self.due.first()).copied();
        if let Some(next) = next {
            self.due.remove(&next);
            (self.last_built, self.building) = (Some(next), Some(next));
            return Some(next);
        }
        if self.heads_bytes <= self.limits.soft {
            return None;
        }
        let by_head = |(_, indexes): &(&NamespaceId, &Namespace)| indexes.text.head_memory();
        let largest = self.namespaces.iter().max_by_key(by_head).map(|(namespace, _)| *namespace)?;
        self.change_text(largest, |indexes| indexes.text.seal());
        self.due.remove(&largest);
        self.building = Some(largest);
        Some(largest)
    }

    fn is_settled(&self) -> bool {
        self.due.is_empty() && self.building.is_none() && self.heads_bytes <= self.limits.soft
    }
}
