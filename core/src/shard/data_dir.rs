//! The data directory: created once, locked while in use, refused when it is not ours.
//!
//! ```text
//!   DIR/LOCK        flock'ed by the process that uses the store
//!   DIR/superblock  what never changes: store id, shards, logs
//!   DIR/log-000/    one log, its segments
//! ```
//!
//! Creation order: lock, logs' directories, superblock last. A directory without a superblock is empty or half created;
//! anything else in it means that it belongs to somebody else, and nothing is written.

use super::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_FILE, Superblock, SuperblockError};
use gristmill_rpc::limits::RING_VNODES_DEFAULT;
use gristmill_shardexec::fs::{self, File, OpenOptions};
use gristmill_shardexec::random::fill_random;
use gristmill_shardexec::time::WallClock;
use gristmill_wal::LogNumber;
use std::io;
use std::path::{Path, PathBuf};

/// Name of the lock file.
pub const LOCK_FILE: &str = "LOCK";

/// A data directory that this process holds locked. The lock goes with the last clone.
#[derive(Clone)]
pub struct DataDir {
    path: PathBuf,
    superblock: Superblock,
    _lock: File,
}

/// What the caller wants of a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataDirOptions {
    /// Number of shards: what a new directory gets, what an existing one must have. `None`: whatever it has, or
    /// `shards_default` for a new one.
    pub shards: Option<u32>,
    /// Shards of a new directory where `shards` is `None`.
    pub shards_default: u32,
    /// Logs of a new directory; never more than shards.
    pub logs: u16,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataDirError {
    /// An operation on it failed.
    #[error("cannot {action} {path}: {source}{}", hint(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Another process uses it.
    #[error("data directory {path} is in use by another gristmill process; stop that one or give another --data-dir")]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// It holds something that is not gristmill's.
    #[error(
        "data directory {path} holds {found:?}, which is not gristmill's, and no superblock; give an empty or a new \
         directory (nothing was changed)"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// The first foreign name.
        found: String,
    },
    /// The superblock cannot be read.
    #[error(
        "superblock {path} cannot be used: {source}. Nothing was changed; restore it from a backup, or give another \
         --data-dir"
    )]
    Superblock {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SuperblockError,
    },
    /// The number of shards cannot change.
    #[error(
        "data directory {path} was created with {found} shards and cannot be opened with {asked}; \
         leave --shards out, or give another --data-dir"
    )]
    Shards {
        /// The directory.
        path: PathBuf,
        /// Shards that it has.
        found: u32,
        /// Shards that were asked for.
        asked: u32,
    },
}

/// What to do about an error of the system, where that is known.
fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => "; run as a user who may write there, or give another --data-dir",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space",
        io::ErrorKind::ReadOnlyFilesystem => "; the file system is mounted read-only",
        io::ErrorKind::NotADirectory => "; a part of the path is a file",
        _ => "",
    }
}

impl DataDir {
    /// Opens a data directory, creating it where there is none.
    pub async fn open(path: &Path, options: DataDirOptions) -> Result<DataDir, DataDirError> {
        let io_error = |action, path: &Path| {
            let path = path.to_path_buf();
            move |source| DataDirError::Io { action, path, source }
        };
        fs::create_dir_all(path).await.map_err(io_error("create the data directory", path))?;
        refuse_foreign(path).await?;
        let lock_path = path.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .open(&lock_path)
            .await
            .map_err(io_error("open the lock file", &lock_path))?;
        if !lock.try_lock_exclusive().await.map_err(io_error("lock", &lock_path))? {
            return Err(DataDirError::Locked { path: path.to_path_buf() });
        }
        let superblock = match read_superblock(path).await? {
            Some(superblock) => check_shards(path, superblock, options.shards)?,
            None => create(path, options).await.map_err(io_error("create the store in", path))?,
        };
        Ok(DataDir { path: path.to_path_buf(), superblock, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What never changes about it.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The directory of one log.
    pub fn log_dir(&self, log: LogNumber) -> PathBuf {
        self.path.join(log_dir_name(log))
    }
}

/// Name of a log's directory.
pub fn log_dir_name(log: LogNumber) -> String {
    format!("log-{:03}", log.0)
}

/// Reads a superblock without taking the lock, for inspection. `None` where there is none.
pub async fn read_superblock(directory: &Path) -> Result<Option<Superblock>, DataDirError> {
    let path = directory.join(SUPERBLOCK_FILE);
    match fs::read(&path, SUPERBLOCK_BYTES).await {
        Ok(bytes) => match Superblock::decode(&bytes) {
            Ok(superblock) => Ok(Some(superblock)),
            Err(source) => Err(DataDirError::Superblock { path, source }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) if source.kind() == io::ErrorKind::FileTooLarge => {
            Err(DataDirError::Superblock { path, source: SuperblockError::Length { found: SUPERBLOCK_BYTES + 1 } })
        }
        Err(source) => Err(DataDirError::Io { action: "read", path, source }),
    }
}

/// Refuses a directory that has content but no superblock, unless all of it is what a broken creation leaves.
async fn refuse_foreign(path: &Path) -> Result<(), DataDirError> {
    let entries = fs::read_dir(path).await.map_err(|source| DataDirError::Io {
        action: "list",
        path: path.to_path_buf(),
        source,
    })?;
    let names: Vec<String> = entries.iter().map(|entry| entry.name.to_string_lossy().into_owned()).collect();
    if names.iter().any(|name| name == SUPERBLOCK_FILE) {
        return Ok(());
    }
    let ours = |name: &String| name == LOCK_FILE || *name == format!("{SUPERBLOCK_FILE}.tmp") || name == "lost+found";
    match names.into_iter().find(|name| !ours(name)) {
        Some(found) => Err(DataDirError::Foreign { path: path.to_path_buf(), found }),
        None => Ok(()),
    }
}

fn check_shards(path: &Path, superblock: Superblock, asked: Option<u32>) -> Result<Superblock, DataDirError> {
    match asked {
        Some(asked) if asked != superblock.shards => {
            Err(DataDirError::Shards { path: path.to_path_buf(), found: superblock.shards, asked })
        }
        _ => Ok(superblock),
    }
}

/// Writes the superblock of a new store. The logs create their directories when they open.
async fn create(path: &Path, options: DataDirOptions) -> io::Result<Superblock> {
    let shards = options.shards.unwrap_or(options.shards_default);
    let logs = options.logs.min(u16::try_from(shards).unwrap_or(u16::MAX));
    let mut store = [0; 16];
    fill_random(&mut store);
    let superblock =
        Superblock { store, shards, logs, ring_vnodes: RING_VNODES_DEFAULT, created_ns: WallClock::now().0 };
    let bytes = superblock.encode();
    assert_eq!(Superblock::decode(&bytes), Ok(superblock), "what is created can be opened");
    fs::write_atomic(path.join(SUPERBLOCK_FILE), &bytes).await?;
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::sync_dir(parent).await?;
    }
    Ok(superblock)
}
