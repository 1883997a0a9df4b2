//! The files of one tantivy segment, as bytes in memory.
//!
//! tantivy writes a segment as a handful of files through its `Directory` trait. A segment of ours is written once, by one
//! job, and read until it is dropped, so its directory is a map from names to bytes: no locks to take, nothing to watch,
//! and its size is known. Durable segments are not needed while the state itself is rebuilt from the log.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tantivy::directory::error::{DeleteError, LockError, OpenReadError, OpenWriteError};
use tantivy::directory::{
    AntiCallToken, Directory, DirectoryLock, FileHandle, Lock, OwnedBytes, TerminatingWrite, WatchCallback, WatchHandle,
};

type Files = BTreeMap<PathBuf, OwnedBytes>;
/// tantivy's own name for this is private.
type WritePtr = BufWriter<Box<dyn TerminatingWrite + Send + Sync>>;

/// An in-memory directory. Clones share their files.
#[derive(Clone, Default)]
pub(super) struct SegmentFiles {
    files: Arc<Mutex<Files>>,
}

impl SegmentFiles {
    /// Bytes of all files.
    pub fn bytes(&self) -> usize {
        self.with(|files| files.values().map(OwnedBytes::len).sum())
    }

    fn with<T>(&self, read: impl FnOnce(&mut Files) -> T) -> T {
        read(&mut self.files.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn read(&self, path: &Path) -> Result<OwnedBytes, OpenReadError> {
        self.with(|files| files.get(path).cloned()).ok_or_else(|| OpenReadError::FileDoesNotExist(path.to_owned()))
    }
}

impl fmt::Debug for SegmentFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SegmentFiles").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

impl Directory for SegmentFiles {
    fn get_file_handle(&self, path: &Path) -> Result<Arc<dyn FileHandle>, OpenReadError> {
        Ok(Arc::new(self.read(path)?))
    }

    fn delete(&self, path: &Path) -> Result<(), DeleteError> {
        match self.with(|files| files.remove(path)) {
            Some(_) => Ok(()),
            None => Err(DeleteError::FileDoesNotExist(path.to_owned())),
        }
    }

    fn exists(&self, path: &Path) -> Result<bool, OpenReadError> {
        Ok(self.with(|files| files.contains_key(path)))
    }

    fn open_write(&self, path: &Path) -> Result<WritePtr, OpenWriteError> {
        if self.with(|files| files.contains_key(path)) {
            return Err(OpenWriteError::FileAlreadyExists(path.to_owned()));
        }
        let file = NewFile { directory: self.clone(), path: path.to_owned(), bytes: Vec::new() };
        Ok(BufWriter::new(Box::new(file)))
    }

    fn atomic_read(&self, path: &Path) -> Result<Vec<u8>, OpenReadError> {
        Ok(self.read(path)?.as_slice().to_vec())
    }

    fn atomic_write(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        self.with(|files| files.insert(path.to_owned(), OwnedBytes::new(data.to_vec())));
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }

    fn acquire_lock(&self, _: &Lock) -> Result<DirectoryLock, LockError> {
        Ok(DirectoryLock::from(Box::new(())))
    }

    fn watch(&self, _: WatchCallback) -> tantivy::Result<WatchHandle> {
        Ok(WatchHandle::empty())
    }
}

/// A file that appears in its directory when it is complete.
struct NewFile {
    directory: SegmentFiles,
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Write for NewFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TerminatingWrite for NewFile {
    fn terminate_ref(&mut self, _: AntiCallToken) -> io::Result<()> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.shrink_to_fit();
        self.directory.with(|files| files.insert(self.path.clone(), OwnedBytes::new(bytes)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_when_it_is_complete_and_is_never_written_twice() {
        let directory = SegmentFiles::default();
        let path = Path::new("a.term");
        let mut write = directory.open_write(path).unwrap();
        write.write_all(b"bytes").unwrap();
        write.flush().unwrap();
        assert!(!directory.exists(path).unwrap());
        write.terminate().unwrap();
        assert_eq!(directory.atomic_read(path).unwrap(), b"bytes");
        assert_eq!(directory.bytes(), 5);
        assert!(matches!(directory.open_write(path), Err(OpenWriteError::FileAlreadyExists(_))));
        directory.delete(path).unwrap();
        assert!(matches!(directory.delete(path), Err(DeleteError::FileDoesNotExist(_))));
        assert!(matches!(directory.get_file_handle(path), Err(OpenReadError::FileDoesNotExist(_))));
    }
}
