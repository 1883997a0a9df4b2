//! A recall under way: its legs in slices, then the lists as of one moment, then the hits.

use super::fusion::{Appearance, Fusion};
use super::index::RecallIndex;
use super::limits::{FILTER_STEP_SLOTS, HIT_GRAINS_BYTES_MAX, SCAN_STEP_KEYS, TEXT_STEP_POSTINGS};
use super::namespace::Namespace;
use super::query::{RecallError, RecallSpec, StateView};
use super::rank::Ranked;
use super::vectors::VectorSearch;
use crate::relation::RelationScan;
use crate::state::grain::GrainRef;
use crate::state::key::{self, NamespaceId, Scope, SubjectToken, Table};
use crate::state::store::{Direction, KeyRange, Store, StoreError};
use crate::text::TextSearch;
use core::ops::ControlFlow;
use gristmill_rpc::ids::GrainId;
use gristmill_rpc::schema::{LegHit, RecallReply, SearchHit};
use gristmill_shardexec::yield_if_spent;
use gristmill_vector::Allowed;
use roaring::RoaringBitmap;
use std::cell::Ref;

/// The legs, by their lists in the fusion.
const TEXT: usize = 0;
const VECTOR: usize = 1;
const RELATION: usize = 2;
const LEGS: usize = 3;

/// What a hit costs in a reply beside the bytes of its grain.
const GRAIN_OVERHEAD_BYTES: usize = 256;
const PART_OVERHEAD_BYTES: usize = 16;

/// A recall under way.
pub(super) struct Run<'a, V> {
    index: &'a RecallIndex,
    view: &'a V,
    spec: &'a RecallSpec,
    scope: Scope,
    reader: Reader<'a>,
}

/// The legs' searches, complete but not yet up to date.
struct Searches {
    text: Option<TextSearch>,
    vector: Option<VectorSearch>,
    relation: Option<RelationScan>,
}

impl<'a, V: StateView> Run<'a, V> {
    /// Begins: whatever comes from now on is remembered until the recall ends.
    pub fn new(index: &'a RecallIndex, view: &'a V, spec: &'a RecallSpec, scope: Scope) -> Self {
        Run { index, view, spec, scope, reader: Reader::enter(index, scope.namespace) }
    }

    pub async fn run(self) -> Result<RecallReply, RecallError> {
        let allowed = self.allowed().await?;
        let allowed = allowed.as_ref();
        let searches = Searches {
            text: self.search_text(allowed).await?,
            vector: self.search_vector(allowed).await?,
            relation: self.search_relations(allowed).await?,
        };
        let lists = self.finish(searches, allowed)?;
        let fusion = Fusion::of(lists.iter().map(Vec::as_slice));
        let hits = self.look_up(&lists, &fusion).await?;
        Ok(RecallReply { hits, grains: self.indexes().roster.len() as u64 })
    }

    fn indexes(&self) -> Ref<'_, Namespace> {
        Ref::map(self.index.state(), |state| &state.namespaces[&self.scope.namespace])
    }

    /// The slots that pass the filter; `None` where there is none.
    async fn allowed(&self) -> Result<Option<RoaringBitmap>, RecallError> {
        let tagged = self.indexes().labels.all_of(self.spec.tags.iter().map(String::as_str));
        let Some(subject) = &self.spec.subject else { return Ok(tagged) };
        let mut of_subject = RoaringBitmap::new();
        let mut prefix = key::single(Table::Grains, self.scope);
        prefix.extend_from_slice(&SubjectToken::of(subject).0);
        let mut range = Some(KeyRange::prefix(prefix));
        while let Some(keys) = range {
            let (ids, rest) = self.view.read(|state| grains_of(state.store(), keys))?;
            of_subject.extend(ids.into_iter().filter_map(|id| self.indexes().roster.slot(id)));
            range = rest;
            yield_if_spent().await;
        }
        Ok(Some(match tagged {
            Some(tagged) => tagged & of_subject,
            None => of_subject,
        }))
    }

    async fn search_text(&self, allowed: Option<&RoaringBitmap>) -> Result<Option<TextSearch>, RecallError> {
        let Some(text) = &self.spec.text else { return Ok(None) };
        let query = self.index.state_mut().analyzer.query(text);
        if query.is_empty() {
            return Ok(None);
        }
        let begin = |indexes: &Namespace| indexes.text.search(&query, self.spec.candidates(), &indexes.admit(allowed));
        let mut search = begin(&self.indexes())?;
        while !search.step(&self.indexes().admit(allowed), TEXT_STEP_POSTINGS)? {
            yield_if_spent().await;
        }
        yield_if_spent().await;
        Ok(Some(search))
    }

    async fn search_vector(&self, allowed: Option<&RoaringBitmap>) -> Result<Option<VectorSearch>, RecallError> {
        let Some(vector) = &self.spec.vector else { return Ok(None) };
        let rows = match allowed {
            None => Allowed::All,
            Some(allowed) => self.rows_of(allowed).await,
        };
        let search = |indexes: &Namespace| {
            let vectors = indexes.vectors.as_ref()?;
            Some(vectors.search(vector.clone(), self.spec.candidates(), rows))
        };
        let Some(mut search) = search(&self.indexes()).transpose()? else { return Ok(None) };
        let mut step = || self.indexes().vectors.as_ref().is_none_or(|vectors| vectors.step(&mut search));
        while !step() {
            yield_if_spent().await;
        }
        yield_if_spent().await;
        Ok(Some(search))
    }

    async fn rows_of(&self, allowed: &RoaringBitmap) -> Allowed {
        let mut rows = RoaringBitmap::new();
        let mut slots = allowed.iter();
        loop {
            let step: Vec<u32> = slots.by_ref().take(FILTER_STEP_SLOTS).collect();
            if step.is_empty() {
                return Allowed::Rows(rows.iter().collect());
            }
            rows.extend(step.into_iter().filter_map(|slot| self.indexes().roster.vector(slot)));
            yield_if_spent().await;
        }
    }

    async fn search_relations(&self, allowed: Option<&RoaringBitmap>) -> Result<Option<RelationScan>, RecallError> {
        let Some(pattern) = &self.spec.relation else { return Ok(None) };
        let mut scan = RelationScan::new(pattern.plan(self.scope), self.spec.candidates());
        loop {
            let step = |scan: &mut RelationScan| {
                let indexes = self.indexes();
                let admitted = |id| is_admitted(&indexes, allowed, id);
                self.view.read(|state| scan.step(state.store(), SCAN_STEP_KEYS, &admitted))
            };
            let complete = step(&mut scan)?;
            yield_if_spent().await;
            if complete {
                return Ok(Some(scan));
            }
        }
    }

    /// The legs' lists as of this moment.
    fn finish(&self, searches: Searches, allowed: Option<&RoaringBitmap>) -> Result<[Vec<Ranked>; LEGS], RecallError> {
        let indexes = self.indexes();
        let mut lists = [const { Vec::new() }; LEGS];
        if let Some(search) = searches.text {
            lists[TEXT] = indexes.finish_text(search, allowed)?;
        }
        if let Some(search) = searches.vector {
            lists[VECTOR] = indexes.finish_vector(search, allowed, self.reader.rows_end)?;
        }
        if let Some(scan) = searches.relation {
            lists[RELATION] = self.finish_relations(&indexes, scan, allowed)?;
        }
        Ok(lists)
    }

    /// The scan's grains, with those that came while it ran counted anew.
    fn finish_relations(
        &self,
        indexes: &Namespace,
        scan: RelationScan,
        allowed: Option<&RoaringBitmap>,
    ) -> Result<Vec<Ranked>, RecallError> {
        let pattern = self.spec.relation.as_ref().expect("only then it is scanned");
        let mut ranked = scan.finish(&|id| is_admitted(indexes, allowed, id));
        for slot in indexes.roster.since(self.reader.rows_end) {
            if allowed.is_some_and(|allowed| !allowed.contains(slot)) {
                continue;
            }
            let Some(id) = indexes.roster.id(slot) else { continue };
            let count = |grain: GrainRef<'_>| pattern.matches(&grain);
            let matches =
                self.view.read(|state| Ok::<_, StoreError>(state.grain_at(self.scope, id)?.map(|(_, g)| count(g))))?;
            ranked.retain(|ranked| ranked.id != id);
            ranked.extend(matches.filter(|matches| *matches > 0).map(|matches| Ranked { id, score: matches as f32 }));
        }
        ranked.sort_unstable();
        ranked.truncate(self.spec.candidates());
        Ok(ranked)
    }

    /// Reads the best grains from the state; passes over those that are gone or no longer pass the filter.
    async fn look_up(&self, lists: &[Vec<Ranked>; LEGS], fusion: &Fusion) -> Result<Vec<SearchHit>, RecallError> {
        let mut hits = Vec::new();
        let mut room = HIT_GRAINS_BYTES_MAX;
        for (ranked, appearances) in fusion.iter() {
            if hits.len() == self.spec.limit() {
                break;
            }
            let hit = self.view.read(|state| {
                let Some((_, grain)) = state.grain_at(self.scope, ranked.id)? else { return Ok(None) };
                Ok::<_, StoreError>(self.passes(&grain).then(|| self.hit(ranked, &grain, &mut room)))
            })?;
            let Some(mut hit) = hit else { continue };
            hit.rank = hits.len() as u32 + 1;
            set_legs(&mut hit, lists, appearances);
            hits.push(hit);
            yield_if_spent().await;
        }
        Ok(hits)
    }

    fn passes(&self, grain: &GrainRef<'_>) -> bool {
        self.spec.subject.as_ref().is_none_or(|subject| subject == grain.subject())
            && self.spec.tags.iter().all(|tag| grain.tags().any(|have| have == tag))
    }

    fn hit(&self, ranked: Ranked, grain: &GrainRef<'_>, room: &mut usize) -> SearchHit {
        let size = grain_bytes(grain);
        let with_grain = self.spec.with_grains && size <= *room;
        if with_grain {
            *room -= size;
        }
        SearchHit {
            id: ranked.id,
            subject: grain.subject().to_owned(),
            score: ranked.score,
            rank: 0,
            text: None,
            vector: None,
            relation: None,
            grain: with_grain.then(|| grain.to_grain(&self.spec.namespace, ranked.id)),
        }
    }
}

/// Some of the grains in a range of keys, and the rest of the range.
fn grains_of(store: &impl Store, keys: KeyRange) -> Result<(Vec<GrainId>, Option<KeyRange>), StoreError> {
    let mut ids = Vec::with_capacity(SCAN_STEP_KEYS);
    let mut next = None;
    store.scan(&keys, Direction::Forward, &mut |key, _| {
        if ids.len() == SCAN_STEP_KEYS {
            next = Some(key.to_vec());
            return ControlFlow::Break(());
        }
        // Its length is that of every key of the table, which apply made.
        ids.extend(key.last_chunk::<16>().map(|id| GrainId(*id)));
        ControlFlow::Continue(())
    })?;
    Ok((ids, next.map(|start| KeyRange { start, end: keys.end })))
}

fn is_admitted(indexes: &Namespace, allowed: Option<&RoaringBitmap>, id: GrainId) -> bool {
    let slot = indexes.roster.slot(id);
    slot.is_some_and(|slot| allowed.is_none_or(|allowed| allowed.contains(slot)))
}

fn set_legs(hit: &mut SearchHit, lists: &[Vec<Ranked>; LEGS], appearances: &[Appearance]) {
    for Appearance { list, rank, .. } in appearances {
        let score = lists[*list as usize][*rank as usize - 1].score;
        let leg = match *list as usize {
            TEXT => &mut hit.text,
            VECTOR => &mut hit.vector,
            _ => &mut hit.relation,
        };
        *leg = Some(LegHit { rank: *rank, score });
    }
}

/// What a grain takes in a reply, at the most.
fn grain_bytes(grain: &GrainRef<'_>) -> usize {
    let relations =
        grain.relations().map(|(predicate, object)| predicate.len() + object.len() + 2 * PART_OVERHEAD_BYTES);
    let tags = grain.tags().map(|tag| tag.len() + PART_OVERHEAD_BYTES);
    GRAIN_OVERHEAD_BYTES
        + grain.subject().len()
        + grain.text().map_or(0, str::len)
        + grain.dimensions().map_or(0, |dimensions| dimensions * size_of::<f32>())
        + grain.payload().len()
        + relations.sum::<usize>()
        + tags.sum::<usize>()
}

/// Has the roster remember what comes while a recall runs.
struct Reader<'a> {
    index: &'a RecallIndex,
    namespace: NamespaceId,
    rows_end: u64,
}

impl<'a> Reader<'a> {
    fn enter(index: &'a RecallIndex, namespace: NamespaceId) -> Reader<'a> {
        let rows_end = index.state_mut().namespaces.entry(namespace).or_default().roster.enter();
        Reader { index, namespace, rows_end }
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let mut state = self.index.state_mut();
        let indexes = state.namespaces.get_mut(&self.namespace).expect("the reader made it");
        indexes.roster.leave(self.rows_end);
    }
}
