//! A disk as tests see it: looking, and damaging what is durable.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::content::PAGE;
use super::{Content, Disk, Node, ROOT};
use crate::sim::faults::{Chaos, FaultCounts, FaultPlan};
use crate::sim::random::Rng;
use crate::sim::trace::Trace;
use rustix::io::Errno;

impl Disk {
    fn content(&self, path: &Path) -> io::Result<&Content> {
        match &self.inode(self.resolve(path)?).node {
            Node::File(content) => Ok(content),
            Node::Dir { .. } => Err(Errno::ISDIR.into()),
        }
    }

    fn content_mut(&mut self, path: &Path) -> io::Result<&mut Content> {
        let number = self.resolve(path)?;
        match &mut self.inode_mut(number).node {
            Node::File(content) => Ok(content),
            Node::Dir { .. } => Err(Errno::ISDIR.into()),
        }
    }

    fn content_around(&mut self, path: &Path, offset: u64) -> io::Result<&mut Content> {
        let content = self.content_mut(path)?;
        if offset >= content.len() {
            return Err(Errno::INVAL.into());
        }
        Ok(content)
    }

    /// A whole file as reads see it.
    pub fn read(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let content = self.content(path.as_ref())?;
        let mut bytes = vec![0; content.len() as usize];
        content.read(0, &mut bytes);
        Ok(bytes)
    }

    /// Length of a file.
    pub fn len(&self, path: impl AsRef<Path>) -> io::Result<u64> {
        Ok(self.content(path.as_ref())?.len())
    }

    /// Whether `path` names a file or a directory.
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.resolve(path.as_ref()).is_ok()
    }

    /// Every file's path, sorted by components.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut queue = vec![(PathBuf::from("/"), ROOT)];
        while let Some((path, number)) = queue.pop() {
            match &self.inode(number).node {
                Node::File(_) => found.push(path),
                Node::Dir { names, .. } => {
                    queue.extend(names.iter().map(|(name, &below)| (path.join(name), below)));
                }
            }
        }
        found.sort();
        found
    }

    /// Whether a loss of power right now could cost data that was written.
    pub fn has_unsynced(&self) -> bool {
        self.oldest_unsynced().is_some()
    }

    /// How many writes a loss of power right now could cost, as far as they are told apart.
    pub fn unsynced_writes(&self) -> usize {
        let mut writes = BTreeSet::new();
        for inode in self.inodes.values() {
            if let Node::File(content) = &inode.node {
                writes.extend(content.unsynced());
            }
        }
        writes.len()
    }

    /// Whether a loss of power right now could cost names that were made, changed or removed.
    pub fn has_unsynced_names(&self) -> bool {
        !self.journal.is_empty()
    }

    /// An image of what a loss of power would leave right now, under this seed: for trying many of them. No file of it is open.
    #[must_use]
    pub fn after_power_loss(&self, seed: u64, plan: &FaultPlan) -> Disk {
        let mut image = self.clone();
        let (mut rng, mut counts, mut trace) = (Rng::new(seed), FaultCounts::default(), Trace::new(None));
        let (rng, counts, trace) = (&mut rng, &mut counts, &mut trace);
        image.lose_power(&mut Chaos { now: 0, place: 0, rng, plan, counts, trace });
        image
    }

    /// Flips a bit of what is durable.
    pub fn flip_bit(&mut self, path: impl AsRef<Path>, offset: u64, bit: u8) -> io::Result<()> {
        self.content_around(path.as_ref(), offset)?.corrupt(offset, |byte| *byte ^= 1 << (bit % 8));
        Ok(())
    }

    /// Replaces bytes of what is durable, up to the end of the file.
    pub fn overwrite(&mut self, path: impl AsRef<Path>, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let content = self.content_around(path.as_ref(), offset)?;
        for (at, &new) in (offset..content.len()).zip(bytes) {
            content.corrupt(at, |byte| *byte = new);
        }
        Ok(())
    }

    /// Makes reads of the 4 KiB around `offset` fail with EIO until they are written again.
    pub fn spoil(&mut self, path: impl AsRef<Path>, offset: u64) -> io::Result<()> {
        self.content_around(path.as_ref(), offset)?.spoil(offset);
        Ok(())
    }

    /// Changes the space for files, in bytes. What is there stays, even when it is more.
    pub fn set_capacity(&mut self, bytes: u64) {
        self.config.capacity = bytes;
    }

    /// Bytes that files occupy.
    pub fn used(&self) -> u64 {
        self.used_pages * PAGE as u64
    }
}
