//! One file's bytes: what reads see, what is on the platter, and every version in between.
//!
//! ```text
//!   write ─► live pages (reads see them at once)
//!              └─ dirty: page ─► what is durable, and each version since ──sync──► durable is live
//!                                                                      └─crash─► durable, a version, or a mix of sectors
//!   sync that failed or lied: page ─► platter, which differs from live although the page counts as clean; a crash shows it
//! ```
//!
//! Pages are shared by `Rc` and copied on write; a page of zeros is not stored at all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::rc::Rc;

use super::extents::Extents;
use crate::sim::random::Rng;

/// Granularity of the page cache, in bytes.
pub(super) const PAGE: usize = 4096;

/// Versions of one page that a crash may choose from; of more, the oldest are forgotten.
const VERSIONS_MAX: usize = 8;

/// Lengths of one file that a crash may choose from; of more, the oldest are forgotten.
const LENGTHS_MAX: usize = 32;

/// Overwritten pages that a stale read may bring back.
const HISTORY_MAX: usize = 8;

const ZEROS: [u8; PAGE] = [0; PAGE];

/// `None`: zeros.
pub(super) type Page = Option<Rc<[u8; PAGE]>>;

fn page_of(bytes: &[u8; PAGE]) -> Page {
    if *bytes == ZEROS { None } else { Some(Rc::new(*bytes)) }
}

fn bytes_of(page: &Page) -> &[u8; PAGE] {
    page.as_deref().unwrap_or(&ZEROS)
}

/// Pages that hold bytes `offset..offset + len`.
pub(super) fn pages_of(offset: u64, len: u64) -> Range<u64> {
    offset / PAGE as u64..(offset + len).div_ceil(PAGE as u64)
}

/// How far a write gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// To the page cache, until a sync.
    Cached,
    /// To the platter.
    Durable,
    /// To the page cache, which believes that it is on the platter.
    Lied,
}

/// What a sync does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SyncFate {
    /// What it says.
    Durable,
    /// Nothing, but everything counts as clean.
    Lied,
    /// Writes some pages; all count as clean.
    Failed,
}

#[derive(Clone, Debug)]
struct Version {
    seq: u64,
    page: Page,
    /// Made by cutting the file: goes together with the length.
    cut: bool,
}

#[derive(Clone, Debug)]
struct Dirty {
    durable: Page,
    /// Oldest first.
    versions: Vec<Version>,
}

/// What a loss of power leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// All of it.
    Keep,
    /// What was written before this write, and perhaps a part of it.
    Prefix(u64),
    /// Of each page some version.
    Subset,
}

/// How a crash treats every file of a disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct CrashRules {
    pub style: Style,
    pub tear: bool,
    /// Bytes that the disk writes as one, usually.
    pub sector: usize,
}

/// What a crash did.
#[derive(Clone, Debug)]
pub(super) struct Losses {
    torn_page: bool,
    lost_seq_min: u64,
    /// Writes of which some page is there, and of which some page is not.
    kept: BTreeSet<u64>,
    lost: BTreeSet<u64>,
}

impl Default for Losses {
    fn default() -> Losses {
        Losses { torn_page: false, lost_seq_min: u64::MAX, kept: BTreeSet::new(), lost: BTreeSet::new() }
    }
}

impl Losses {
    fn lose(&mut self, seq: u64) {
        self.lost_seq_min = self.lost_seq_min.min(seq);
    }

    pub fn any(&self) -> bool {
        self.lost_seq_min != u64::MAX
    }

    /// A write is there although an earlier one is not.
    pub fn reordered(&self) -> bool {
        self.kept.last().is_some_and(|&last| last > self.lost_seq_min)
    }

    /// A write is there in part.
    pub fn torn(&self) -> bool {
        self.torn_page || self.kept.intersection(&self.lost).next().is_some()
    }
}

/// A file's content.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    len: u64,
    pages: BTreeMap<u64, Rc<[u8; PAGE]>>,
    dirty: BTreeMap<u64, Dirty>,
    /// Clean pages whose platter holds something else.
    platter: BTreeMap<u64, Page>,
    durable_len: u64,
    /// Lengths since the last sync, with the write that made each; oldest first.
    lengths: Vec<(u64, u64)>,
    extents: Extents,
    bad: BTreeSet<u64>,
    history: VecDeque<(u64, Page)>,
}

impl Content {
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Pages that have space on the disk.
    pub fn allocated(&self) -> u64 {
        self.extents.total()
    }

    /// Pages of `range` that have none.
    pub fn unallocated(&self, range: &Range<u64>) -> u64 {
        self.extents.missing(range)
    }

    /// Gives `range` space on the disk; how many pages are new.
    pub fn allocate(&mut self, range: Range<u64>) -> u64 {
        self.extents.insert(range)
    }

    /// Copies from `offset`; how many bytes there are.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> usize {
        let count = out.len().min(self.len.saturating_sub(offset) as usize);
        let mut done = 0;
        while done < count {
            let at = offset + done as u64;
            let within = (at % PAGE as u64) as usize;
            let part = (PAGE - within).min(count - done);
            let target = &mut out[done..done + part];
            match self.pages.get(&(at / PAGE as u64)) {
                Some(page) => target.copy_from_slice(&page[within..within + part]),
                None => target.fill(0),
            }
            done += part;
        }
        count
    }

    /// Whether `offset..offset + len` touches a sector that cannot be read.
    pub fn is_bad(&self, offset: u64, len: u64) -> bool {
        !self.bad.is_empty() && self.bad.range(pages_of(offset, len)).next().is_some()
    }

    /// Stores `bytes` at `offset`, as write number `seq`.
    pub fn write(&mut self, offset: u64, bytes: &[u8], seq: u64, fate: Fate) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let within = (at % PAGE as u64) as usize;
            let part = (PAGE - within).min(bytes.len() - done);
            let number = at / PAGE as u64;
            let piece = &bytes[done..done + part];
            let page = if let Ok(whole) = <&[u8; PAGE]>::try_from(piece) {
                page_of(whole)
            } else {
                let mut patched = self.pages.get(&number).map_or(ZEROS, |page| **page);
                patched[within..within + part].copy_from_slice(piece);
                page_of(&patched)
            };
            self.store(number, Version { seq, page, cut: false }, fate);
            done += part;
        }
        self.grow(offset + bytes.len() as u64, seq, fate != Fate::Cached);
    }

    /// Makes the file at least `len` bytes long.
    pub fn grow(&mut self, len: u64, seq: u64, durable: bool) {
        if len > self.len {
            self.len = len;
            self.note_length(seq);
        }
        if durable {
            self.durable_len = self.len;
            self.lengths.clear();
        }
    }

    fn note_length(&mut self, seq: u64) {
        if self.lengths.len() == LENGTHS_MAX {
            self.lengths.remove(0);
        }
        self.lengths.push((seq, self.len));
    }

    fn replace(&mut self, number: u64, page: Page) -> Page {
        match page {
            Some(page) => self.pages.insert(number, page),
            None => self.pages.remove(&number),
        }
    }

    fn store(&mut self, number: u64, version: Version, fate: Fate) {
        let old = self.replace(number, version.page.clone());
        if self.history.len() == HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back((number, old.clone()));
        self.bad.remove(&number);
        match fate {
            Fate::Durable => {
                self.dirty.remove(&number);
                self.platter.remove(&number);
            }
            Fate::Lied => {
                let durable = self.dirty.remove(&number).map_or(old, |dirty| dirty.durable);
                self.platter.entry(number).or_insert(durable);
            }
            Fate::Cached => {
                let platter = &self.platter;
                let durable = || platter.get(&number).cloned().unwrap_or(old);
                let fresh = || Dirty { durable: durable(), versions: Vec::with_capacity(1) };
                let dirty = self.dirty.entry(number).or_insert_with(fresh);
                if dirty.versions.len() == VERSIONS_MAX {
                    dirty.versions.remove(0);
                }
                dirty.versions.push(version);
            }
        }
    }

    /// Cuts or extends with zeros; how many pages of space that frees.
    pub fn set_len(&mut self, len: u64, seq: u64) -> u64 {
        if len == self.len {
            return 0;
        }
        let shrinks = len < self.len;
        self.len = len;
        self.note_length(seq);
        if !shrinks {
            return 0;
        }
        let whole = len.div_ceil(PAGE as u64);
        let beyond: Vec<u64> = self.pages.range(whole..).map(|(&number, _)| number).collect();
        for number in beyond {
            self.store(number, Version { seq, page: None, cut: true }, Fate::Cached);
        }
        if let Some(page) = self.pages.get(&(len / PAGE as u64)).filter(|_| !len.is_multiple_of(PAGE as u64)) {
            let mut kept = **page;
            kept[(len % PAGE as u64) as usize..].fill(0);
            self.store(len / PAGE as u64, Version { seq, page: page_of(&kept), cut: true }, Fate::Cached);
        }
        self.extents.truncate(whole)
    }

    /// A sync of the file.
    pub fn sync(&mut self, fate: SyncFate, rng: &mut Rng) {
        let dirty = std::mem::take(&mut self.dirty);
        for (number, page) in dirty {
            let written = fate == SyncFate::Durable || fate == SyncFate::Failed && rng.coin();
            if written {
                self.platter.remove(&number);
            } else {
                self.platter.insert(number, page.durable);
            }
        }
        if fate != SyncFate::Failed {
            self.durable_len = self.len;
            self.lengths.clear();
        }
    }

    /// Replaces one page of `offset..offset + out.len()` in what was read by what it was before. False when none is known.
    pub fn read_stale(&self, offset: u64, out: &mut [u8]) -> bool {
        let range = pages_of(offset, out.len() as u64);
        let live = |number| self.pages.get(&number).map_or(&ZEROS, |page| &**page);
        let old =
            self.history.iter().rev().find(|(number, old)| range.contains(number) && bytes_of(old) != live(*number));
        let Some((number, old)) = old else { return false };
        let start = number * PAGE as u64;
        let from = start.max(offset);
        let until = (start + PAGE as u64).min(offset + out.len() as u64);
        let old = &bytes_of(old)[(from - start) as usize..(until - start) as usize];
        let target = &mut out[(from - offset) as usize..(until - offset) as usize];
        let stale = target != old;
        target.copy_from_slice(old);
        stale
    }

    /// The pages that are stored and clean.
    pub fn clean_pages(&self) -> Vec<u64> {
        self.pages.keys().copied().filter(|number| !self.dirty.contains_key(number)).collect()
    }

    /// Changes bytes that are durable, behind everybody's back.
    ///
    /// # Panics
    /// When `offset` is not within the file.
    pub fn corrupt(&mut self, offset: u64, change: impl FnOnce(&mut u8)) {
        assert!(offset < self.len, "byte {offset} of {} to corrupt", self.len);
        let number = offset / PAGE as u64;
        let mut bytes = self.pages.get(&number).map_or(ZEROS, |page| **page);
        change(&mut bytes[(offset % PAGE as u64) as usize]);
        let page = page_of(&bytes);
        self.replace(number, page.clone());
        if let Some(platter) = self.platter.get_mut(&number) {
            platter.clone_from(&page);
        }
        if let Some(dirty) = self.dirty.get_mut(&number) {
            dirty.durable = page;
        }
    }

    /// The first write that no sync has made durable.
    pub fn oldest_unsynced(&self) -> Option<u64> {
        let written = self.dirty.values().filter_map(|dirty| dirty.versions.first()).map(|version| version.seq);
        written.chain(self.lengths.first().map(|&(seq, _)| seq)).min()
    }

    /// Writes that are not durable, in no order; one that spans pages more than once.
    pub fn unsynced(&self) -> impl Iterator<Item = u64> {
        self.dirty.values().flat_map(|dirty| dirty.versions.iter().map(|version| version.seq))
    }

    /// Reads of the page around `offset` fail until it is written again.
    pub fn spoil(&mut self, offset: u64) {
        self.bad.insert(offset / PAGE as u64);
    }

    /// Power is lost: what was not synced turns out to be there or not.
    pub fn crash(&mut self, rules: CrashRules, rng: &mut Rng, losses: &mut Losses) {
        let (len_seq, len) = self.length_after(rules.style, rng, losses);
        for (number, Dirty { durable, mut versions }) in std::mem::take(&mut self.dirty) {
            versions.retain(|version| !version.cut || version.seq <= len_seq);
            let page = page_after(&durable, &versions, rules, rng, losses);
            self.platter.insert(number, page);
        }
        for (number, page) in std::mem::take(&mut self.platter) {
            if page.is_some() {
                self.extents.insert(number..number + 1);
            }
            self.replace(number, page);
        }
        self.lengths.clear();
        self.history.clear();
        (self.len, self.durable_len) = (len, len);
        let whole = len.div_ceil(PAGE as u64);
        self.pages.split_off(&whole);
        self.extents.truncate(whole);
        if let Some(page) = self.pages.get_mut(&(len / PAGE as u64)) {
            Rc::make_mut(page)[(len % PAGE as u64) as usize..].fill(0);
        }
    }

    /// The length that is found after a crash, and the write that made it.
    fn length_after(&self, style: Style, rng: &mut Rng, losses: &mut Losses) -> (u64, u64) {
        let kept = match style {
            Style::Keep => self.lengths.len(),
            Style::Prefix(cut) => self.lengths.partition_point(|&(seq, _)| seq < cut),
            Style::Subset => rng.index(self.lengths.len() + 1),
        };
        if let Some(&(lost, _)) = self.lengths.get(kept) {
            losses.lose(lost);
        }
        kept.checked_sub(1).map_or((0, self.durable_len), |at| self.lengths[at])
    }
}

/// What a page holds after a crash.
fn page_after(durable: &Page, versions: &[Version], rules: CrashRules, rng: &mut Rng, losses: &mut Losses) -> Page {
    let kept = match rules.style {
        Style::Keep => versions.len(),
        Style::Prefix(cut) => versions.partition_point(|version| version.seq < cut),
        Style::Subset => rng.index(versions.len() + 1),
    };
    let before = kept.checked_sub(1).map_or(durable, |at| &versions[at].page);
    losses.kept.extend(kept.checked_sub(1).map(|at| versions[at].seq));
    let [lost, later @ ..] = &versions[kept..] else { return before.clone() };
    losses.lost.extend(later.iter().map(|version| version.seq));
    let tears = rules.tear
        && match rules.style {
            Style::Keep => false,
            Style::Prefix(cut) => lost.seq == cut,
            Style::Subset => rng.coin(),
        };
    let (old, new) = (bytes_of(before), bytes_of(&lost.page));
    let found = if tears { tear(old, new, rules.sector, rng) } else { *old };
    if tears && found == *new {
        losses.kept.insert(lost.seq);
    } else {
        losses.lose(lost.seq);
        losses.lost.insert(lost.seq);
        losses.torn_page |= found != *old;
    }
    page_of(&found)
}

/// A page whose write was cut off: some sectors are new, in order or not, or one is half of each. Where old and new are the same there
/// is nothing to see, so only what lies between the first and the last difference is torn.
fn tear(old: &[u8; PAGE], new: &[u8; PAGE], sector: usize, rng: &mut Rng) -> [u8; PAGE] {
    let differs = |at: &usize| old[*at] != new[*at];
    let (Some(first), Some(last)) = ((0..PAGE).find(differs), (0..PAGE).rev().find(differs)) else { return *old };
    let sectors = first / sector..last / sector + 1;
    let mut torn = *old;
    let mut renew = |range: Range<usize>| torn[range.clone()].copy_from_slice(&new[range]);
    match rng.below(4) {
        0 => renew(0..(sectors.start + rng.index(sectors.len() + 1)) * sector),
        1 => sectors
            .filter(|_| rng.coin())
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|at| renew(at * sector..(at + 1) * sector)),
        2 => renew(0..first + rng.index(last - first + 1) + 1),
        _ => {
            // The end of one sector is there, and its start is not.
            let cut = first + rng.index(last - first + 1);
            renew(cut..(cut / sector + 1) * sector);
        }
    }
    torn
}

#[cfg(test)]
mod tests;
