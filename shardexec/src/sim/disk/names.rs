//! Paths, directories, and the journal of their changes that no sync has made durable.
//!
//! A change of names is one journal entry: creating, linking, removing, renaming. A rename is atomic: a crash shows the old names or
//! the new ones. What a sync commits, and what a crash may drop, is decided by [`Journal`].

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path};

use rustix::io::Errno;

use super::{Disk, Inode, Journal, Node, ROOT};
use crate::driver::{DirEntry, FileKind};
use crate::sim::faults::{Chaos, FaultKind};
use crate::time::WallClock;

/// Journal entries that no sync has committed; beyond it the oldest are written back, as a kernel does after some seconds.
const JOURNAL_MAX: usize = 4096;

/// One name's change: which inode it led to, and leads to now.
#[derive(Clone, Debug)]
struct NameChange {
    dir: u64,
    name: OsString,
    before: Option<u64>,
    after: Option<u64>,
}

/// Changes that become durable together.
#[derive(Clone, Debug)]
pub(super) struct NameOp(Vec<NameChange>);

impl NameOp {
    /// Every inode that must exist as long as this is in the journal.
    fn inodes(&self) -> impl Iterator<Item = u64> {
        self.0.iter().flat_map(|change| [Some(change.dir), change.before, change.after]).flatten()
    }
}

fn fails<T>(error: Errno) -> io::Result<T> {
    Err(error.into())
}

/// The components of `path` below the root, `.` and `..` resolved.
fn components(path: &Path) -> io::Result<Vec<&OsStr>> {
    let mut names = Vec::new();
    if path.as_os_str().is_empty() {
        return fails(Errno::NOENT);
    }
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return fails(Errno::INVAL);
    }
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => drop(names.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(names)
}

impl Disk {
    pub(super) fn inode(&self, number: u64) -> &Inode {
        self.inodes.get(&number).expect("a name or an open file keeps its inode")
    }

    pub(super) fn inode_mut(&mut self, number: u64) -> &mut Inode {
        self.inodes.get_mut(&number).expect("a name or an open file keeps its inode")
    }

    fn lookup(&self, dir: u64, name: &OsStr) -> io::Result<Option<u64>> {
        match &self.inode(dir).node {
            Node::Dir { names, .. } => Ok(names.get(name).copied()),
            Node::File(_) => fails(Errno::NOTDIR),
        }
    }

    fn walk(&self, names: &[&OsStr]) -> io::Result<u64> {
        let step = |dir, name: &&OsStr| self.lookup(dir, name)?.ok_or_else(|| Errno::NOENT.into());
        names.iter().try_fold(ROOT, step)
    }

    /// The inode that `path` names.
    pub(super) fn resolve(&self, path: &Path) -> io::Result<u64> {
        self.walk(&components(path)?)
    }

    /// The directory that holds the last component of `path`, that component, and what it names.
    fn place<'p>(&self, path: &'p Path) -> io::Result<(u64, &'p OsStr, Option<u64>)> {
        let names = components(path)?;
        let Some((name, above)) = names.split_last() else { return fails(Errno::BUSY) };
        let dir = self.walk(above)?;
        Ok((dir, name, self.lookup(dir, name)?))
    }

    fn is_dir(&self, number: u64) -> bool {
        matches!(self.inode(number).node, Node::Dir { .. })
    }

    fn has_names(&self, number: u64) -> bool {
        matches!(&self.inode(number).node, Node::Dir { names, .. } if !names.is_empty())
    }

    fn add_inode(&mut self, node: Node, now: WallClock) -> u64 {
        let number = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(number, Inode::new(node, now));
        number
    }

    /// The file at `path`, made if it may be.
    pub(super) fn open_file(&mut self, path: &Path, create: bool, only_new: bool, now: WallClock) -> io::Result<u64> {
        if !create {
            return self.resolve(path);
        }
        let (dir, name, found) = match self.place(path) {
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => return fails(Errno::ISDIR),
            placed => placed?,
        };
        match found {
            Some(_) if only_new => fails(Errno::EXIST),
            Some(number) => Ok(number),
            None => {
                let file = self.add_inode(Node::File(Box::default()), now);
                self.change([(dir, name, None, Some(file))]);
                Ok(file)
            }
        }
    }

    pub(super) fn create_dir(&mut self, path: &Path, now: WallClock) -> io::Result<()> {
        let (dir, name, found) = match self.place(path) {
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => return fails(Errno::EXIST),
            placed => placed?,
        };
        if found.is_some() {
            return fails(Errno::EXIST);
        }
        let made = self.add_inode(Node::empty_dir(), now);
        self.change([(dir, name, None, Some(made))]);
        Ok(())
    }

    pub(super) fn link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let file = self.resolve(from)?;
        let (dir, name, found) = self.place(to)?;
        if found.is_some() {
            return fails(Errno::EXIST);
        }
        if self.is_dir(file) {
            return fails(Errno::PERM);
        }
        self.change([(dir, name, None, Some(file))]);
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_dir, from_name, moved) = self.place(from)?;
        let (to_dir, to_name, replaced) = self.place(to)?;
        let Some(moved) = moved else { return fails(Errno::NOENT) };
        if replaced == Some(moved) {
            return Ok(());
        }
        if self.is_dir(moved) && components(to)?.starts_with(&components(from)?) {
            return fails(Errno::INVAL);
        }
        if let Some(replaced) = replaced {
            match (self.is_dir(moved), self.is_dir(replaced)) {
                (true, false) => return fails(Errno::NOTDIR),
                (false, true) => return fails(Errno::ISDIR),
                (true, true) if self.has_names(replaced) => return fails(Errno::NOTEMPTY),
                _ => {}
            }
        }
        self.change([(from_dir, from_name, Some(moved), None), (to_dir, to_name, replaced, Some(moved))]);
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path, directory: bool) -> io::Result<()> {
        let (dir, name, found) = self.place(path)?;
        let Some(found) = found else { return fails(Errno::NOENT) };
        match (directory, self.is_dir(found)) {
            (true, false) => return fails(Errno::NOTDIR),
            (false, true) => return fails(Errno::ISDIR),
            (true, true) if self.has_names(found) => return fails(Errno::NOTEMPTY),
            _ => {}
        }
        self.change([(dir, name, Some(found), None)]);
        Ok(())
    }

    /// The names in `path`, in the order of names.
    pub(super) fn entries(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let Node::Dir { names, .. } = &self.inode(self.resolve(path)?).node else { return fails(Errno::NOTDIR) };
        let kind = |number| if self.is_dir(number) { FileKind::Dir } else { FileKind::File };
        Ok(names.iter().map(|(name, &number)| DirEntry { name: name.clone(), kind: kind(number) }).collect())
    }

    /// Changes names at once, and notes that for the journal.
    fn change<const N: usize>(&mut self, changes: [(u64, &OsStr, Option<u64>, Option<u64>); N]) {
        let change = |(dir, name, before, after): (u64, &OsStr, _, _)| {
            let name = name.to_owned();
            NameChange { dir, name, before, after }
        };
        let op = NameOp(changes.into_iter().map(change).collect());
        for change in &op.0 {
            let Node::Dir { names, .. } = &mut self.inode_mut(change.dir).node else {
                unreachable!("looked up as a directory")
            };
            match change.after {
                Some(number) => names.insert(change.name.clone(), number),
                None => names.remove(&change.name),
            };
        }
        for change in &op.0 {
            if let Some(number) = change.before {
                self.inode_mut(number).links -= 1;
            }
            if let Some(number) = change.after {
                self.inode_mut(number).links += 1;
            }
        }
        for number in op.inodes() {
            self.inode_mut(number).journal_refs += 1;
        }
        for number in op.0.iter().filter_map(|change| change.before) {
            self.settle(number);
        }
        self.journal.push_back(op);
        if self.journal.len() > JOURNAL_MAX {
            self.commit_first();
        }
    }

    /// Makes the oldest journal entry durable.
    fn commit_first(&mut self) {
        if let Some(op) = self.journal.pop_front() {
            self.commit(&op);
        }
    }

    fn commit(&mut self, op: &NameOp) {
        self.apply_durably(op);
        for number in op.inodes() {
            self.inode_mut(number).journal_refs -= 1;
        }
        for number in op.inodes() {
            self.settle(number);
        }
    }

    fn apply_durably(&mut self, op: &NameOp) {
        for change in &op.0 {
            let Node::Dir { durable, .. } = &mut self.inode_mut(change.dir).node else {
                unreachable!("looked up as a directory")
            };
            let before = match change.after {
                Some(number) => durable.insert(change.name.clone(), number),
                None => durable.remove(&change.name),
            };
            if let Some(inode) = before.and_then(|number| self.inodes.get_mut(&number)) {
                inode.durable_links -= 1;
            }
            if let Some(number) = change.after {
                self.inode_mut(number).durable_links += 1;
            }
        }
    }

    /// Makes every change durable.
    pub(super) fn commit_all(&mut self) {
        while !self.journal.is_empty() {
            self.commit_first();
        }
    }

    /// Makes the changes in `dir` durable, and those that they build on.
    pub(super) fn commit_dir(&mut self, dir: u64) {
        if self.config.journal == Journal::Ordered {
            return self.commit_all();
        }
        let mut needed: BTreeSet<(u64, OsString)> = BTreeSet::new();
        let mut taken = vec![false; self.journal.len()];
        for (at, op) in self.journal.iter().enumerate().rev() {
            let key = |change: &NameChange| (change.dir, change.name.clone());
            if op.0.iter().any(|change| change.dir == dir || needed.contains(&key(change))) {
                needed.extend(op.0.iter().map(key));
                taken[at] = true;
            }
        }
        let journal = std::mem::take(&mut self.journal);
        for (op, taken) in journal.into_iter().zip(taken) {
            if taken {
                self.commit(&op);
            } else {
                self.journal.push_back(op);
            }
        }
    }

    /// Power is lost: names that no sync made durable turn out to be there or not.
    pub(super) fn crash_names(&mut self, chaos: &mut Chaos<'_>) {
        let journal = std::mem::take(&mut self.journal);
        let loses = !journal.is_empty() && chaos.rolls(FaultKind::LostDirOp);
        let cut = if loses { chaos.rng.index(journal.len() + 1) } else { journal.len() };
        let mut lost = false;
        for (at, op) in journal.into_iter().enumerate() {
            let kept = match self.config.journal {
                Journal::Ordered => at < cut,
                Journal::AnythingGoes => !loses || chaos.rng.coin(),
            };
            if kept && self.is_applicable(&op) {
                self.apply_durably(&op);
            } else {
                lost = true;
            }
        }
        if lost {
            chaos.struck(FaultKind::LostDirOp);
        }
        self.rebuild_from_durable();
    }

    /// Whether the durable names are as they were when `op` happened.
    fn is_applicable(&self, op: &NameOp) -> bool {
        op.0.iter().all(|change| match &self.inode(change.dir).node {
            Node::Dir { durable, .. } => durable.get(&change.name).copied() == change.before,
            Node::File(_) => false,
        })
    }

    /// Names are what is durable, and inodes without one are gone.
    fn rebuild_from_durable(&mut self) {
        let mut links = std::collections::BTreeMap::from([(ROOT, 1u64)]);
        let mut queue = vec![ROOT];
        while let Some(number) = queue.pop() {
            let Node::Dir { names, durable } = &mut self.inode_mut(number).node else { continue };
            names.clone_from(durable);
            for &below in names.values() {
                let count = links.entry(below).or_default();
                *count += 1;
                if *count == 1 {
                    queue.push(below);
                }
            }
        }
        self.inodes.retain(|number, inode| {
            let count = links.get(number).copied().unwrap_or(0);
            (inode.links, inode.durable_links, inode.journal_refs, inode.opens) = (count, count, 0, 0);
            (inode.locked_by, inode.released) = (None, false);
            count > 0
        });
    }

    /// Frees the space of a file that nobody can reach, and the inode once neither a crash nor the journal needs it.
    pub(super) fn settle(&mut self, number: u64) {
        let Some(inode) = self.inodes.get_mut(&number) else { return };
        if inode.links + inode.opens > 0 {
            return;
        }
        if let Node::File(content) = &inode.node
            && !std::mem::replace(&mut inode.released, true)
        {
            self.used_pages -= content.allocated();
        }
        if inode.durable_links + inode.journal_refs == 0 {
            self.inodes.remove(&number);
        }
    }
}
