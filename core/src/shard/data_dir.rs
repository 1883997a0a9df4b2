//! The data directory: created once, locked while in use, refused when it is not ours.
//!
//! ```text
//!   DIR/LOCK        flock'ed by the process that uses the store
//!   DIR/superblock  what never changes: store id, shards, logs
//!   DIR/log-000/    one log, its segments
//! ```
//!
//! Creation order: lock, the logs with a first segment each, superblock last. So a directory without a superblock is empty
//! or half created, and its logs hold nothing: they are made anew. Anything else in it means that it belongs to somebody
//! else, or has lost its superblock, and nothing is written. With a superblock every log is there: one that is missing or
//! empty has lost what was acknowledged, and is never made anew.

use super::superblock::{Member, SUPERBLOCK_BYTES, SUPERBLOCK_FILE, Superblock, SuperblockError};
use gristmill_rpc::limits::RING_VNODES_DEFAULT;
use gristmill_shardexec::fs::{self, File, OpenOptions};
use gristmill_shardexec::random::fill_random;
use gristmill_shardexec::time::WallClock;
use gristmill_wal::inspect::{find_logs, inspect};
use gristmill_wal::{LogNumber, Wal, WalError, WalOptions};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// How the names of the logs' directories begin.
const LOG_DIR_PREFIX: &str = "log-";
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
    /// Who opens it: what a new directory is bound to, and an existing one must be. `None`: a node that runs alone.
    pub member: Option<Member>,
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
    /// Logs with records, and no superblock.
    #[error(
        "data directory {path} has no superblock, but {log} holds records; restore the superblock from a backup, or give \
         another --data-dir (nothing was changed)"
    )]
    SuperblockMissing {
        /// The directory.
        path: PathBuf,
        /// The log's directory.
        log: PathBuf,
    },
    /// A superblock, and not all the logs that it tells of.
    #[error(
        "log directory {path} is missing or holds no segment, and the store had one: what was acknowledged there is gone. \
         Restore it from a backup, or give another --data-dir (nothing was changed)"
    )]
    LogMissing {
        /// The log's directory.
        path: PathBuf,
    },
    /// A log cannot be created, or looked at.
    #[error("log {log}: {source}")]
    Log {
        /// Its directory's name.
        log: String,
        /// What the log said.
        source: WalError,
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
    /// It holds the votes and entries of other replicas.
    #[error(
        "data directory {path} was created for {}, and this is {}; start the node as what it was, or give another \
         --data-dir (nothing was changed)",
        name(found.as_ref()),
        name(asked.as_ref())
    )]
    Member {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: Option<Member>,
        /// Who asks.
        asked: Option<Member>,
    },
}

fn name(member: Option<&Member>) -> String {
    member.map_or_else(|| "a node that runs alone".to_owned(), Member::to_string)
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
    /// Opens a data directory, creating it where there is none; its logs are then created with `wal`.
    pub async fn open(path: &Path, options: DataDirOptions, wal: &WalOptions) -> Result<DataDir, DataDirError> {
        let io_error = |action, path: &Path| {
            let path = path.to_path_buf();
            move |source| DataDirError::Io { action, path, source }
        };
        create_dirs(path).await.map_err(io_error("create the data directory", path))?;
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
            Some(superblock) => {
                // A creation that a crash or an error cut short after the superblock got its name has not made that name durable: a power cut
                // after acknowledged writes took it away, and the store was refused. (Simulator, plan sync_tried_again, seed 1 without the bug.)
                fs::sync_dir(path).await.map_err(io_error("sync the data directory", path))?;
                let superblock = check_shards(path, superblock, options.shards)?;
                check_member(path, &superblock, options.member)?;
                match missing_logs(path, &superblock).await?.into_iter().next() {
                    Some(path) => return Err(DataDirError::LogMissing { path }),
                    None => superblock,
                }
            }
            None => create(path, options, wal).await?,
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
    format!("{LOG_DIR_PREFIX}{:03}", log.0)
}

/// The logs that a store had when it was created and that hold no segment now.
pub async fn missing_logs(path: &Path, superblock: &Superblock) -> Result<Vec<PathBuf>, DataDirError> {
    let mut missing: BTreeSet<PathBuf> =
        (0..superblock.logs).map(|log| path.join(log_dir_name(LogNumber(log)))).collect();
    for files in find_logs(path).await.map_err(|source| log_error(path, source))? {
        if !files.segments.is_empty() {
            missing.remove(&files.path);
        }
    }
    Ok(missing.into_iter().collect())
}

fn log_error(path: &Path, source: WalError) -> DataDirError {
    let name = path.file_name().unwrap_or(path.as_os_str());
    DataDirError::Log { log: name.to_string_lossy().into_owned(), source }
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
    let log = |name: &str| name.strip_prefix(LOG_DIR_PREFIX).is_some_and(|number| number.parse::<u16>().is_ok());
    let ours = |name: &String| {
        name == LOCK_FILE || *name == format!("{SUPERBLOCK_FILE}.tmp") || name == "lost+found" || log(name)
    };
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

fn check_member(path: &Path, superblock: &Superblock, asked: Option<Member>) -> Result<(), DataDirError> {
    let found = superblock.member;
    if found == asked { Ok(()) } else { Err(DataDirError::Member { path: path.to_path_buf(), found, asked }) }
}

/// Creates a directory and those above it that are missing; their names are durable then.
async fn create_dirs(path: &Path) -> io::Result<()> {
    let mut missing = Vec::new();
    for dir in path.ancestors().filter(|dir| !dir.as_os_str().is_empty()) {
        match fs::metadata(dir).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(dir),
            _ => break,
        }
    }
    fs::create_dir_all(path).await?;
    for dir in missing.into_iter().rev() {
        fs::sync_dir(parent_of(dir)).await?;
    }
    Ok(())
}

/// The directory that a path's last name stands in.
fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes what an earlier creation left that did not get to its superblock: logs without a record.
async fn remove_unfinished(path: &Path) -> Result<(), DataDirError> {
    let logs = find_logs(path).await.map_err(|source| log_error(path, source))?;
    for files in &logs {
        if let Some(found) = files.strangers.first() {
            return Err(DataDirError::Foreign { path: path.to_path_buf(), found: found.display().to_string() });
        }
        if !files.segments.is_empty() {
            let summary = inspect(files).await.map_err(|source| log_error(&files.path, source))?;
            if !summary.groups.is_empty() || summary.last_lsn.0 > 0 || summary.proven_lsn.0 > 0 {
                let log = files.path.clone();
                return Err(DataDirError::SuperblockMissing { path: path.to_path_buf(), log });
            }
        }
    }
    for files in &logs {
        let failed =
            |source| DataDirError::Io { action: "remove the unfinished log", path: files.path.clone(), source };
        for file in files.segments.values().chain(&files.spares) {
            fs::remove_file(file).await.map_err(failed)?;
        }
        fs::remove_dir(&files.path).await.map_err(failed)?;
    }
    Ok(())
}

/// Creates a store in a directory without a superblock: its logs, then the superblock, which makes it one.
async fn create(path: &Path, options: DataDirOptions, wal: &WalOptions) -> Result<Superblock, DataDirError> {
    remove_unfinished(path).await?;
    let shards = options.shards.unwrap_or(options.shards_default);
    let logs = options.logs.min(u16::try_from(shards).unwrap_or(u16::MAX));
    let mut store = [0; 16];
    fill_random(&mut store);
    let superblock = Superblock {
        store,
        shards,
        logs,
        ring_vnodes: RING_VNODES_DEFAULT,
        created_ns: WallClock::now().0,
        member: options.member,
    };
    let bytes = superblock.encode();
    assert_eq!(Superblock::decode(&bytes), Ok(superblock), "what is created can be opened");
    for log in (0..logs).map(LogNumber) {
        let directory = path.join(log_dir_name(log));
        let failed = |source| log_error(&directory, source);
        let (created, _) = Wal::open(&directory, log, wal.clone()).await.map_err(failed)?;
        created.close().await.map_err(failed)?;
    }
    let failed = |source| DataDirError::Io { action: "create the store in", path: path.to_path_buf(), source };
    fs::write_atomic(path.join(SUPERBLOCK_FILE), &bytes).await.map_err(failed)?;
    // Of a directory that was there before, and may be new all the same: an earlier creation ended before this.
    fs::sync_dir(parent_of(path)).await.map_err(failed)?;
    Ok(superblock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gristmill_shardexec::{Executor, ExecutorConfig, IoChoice};

    #[test]
    fn the_parent_of_a_relative_name_is_where_we_are() {
        for (path, parent) in [("data", "."), ("./data", "."), ("a/data", "a"), ("/data", "/")] {
            assert_eq!(parent_of(Path::new(path)), Path::new(parent), "{path}");
        }
    }

    /// A node that came up under another name over its old logs could vote twice in a term, or forget a promise.
    #[test]
    fn a_directory_belongs_to_one_life_of_one_node() {
        let place = tempfile::tempdir().expect("a directory");
        let member = |cluster, node, incarnation| Some(Member { cluster: [cluster; 16], node, incarnation });
        let config = ExecutorConfig { io: IoChoice::Posix, ..ExecutorConfig::default() };
        Executor::start(config).expect("an executor").block_on(async {
            for (name, owner, others) in [
                ("member", member(7, 2, 1), [None, member(7, 2, 2), member(7, 3, 1), member(8, 2, 1)]),
                ("alone", None, [member(7, 2, 1); 4]),
            ] {
                let path = place.path().join(name);
                let open = async |member| {
                    let options = DataDirOptions { shards: None, shards_default: 1, logs: 1, member };
                    DataDir::open(&path, options, &WalOptions::small()).await.map(|opened| opened.superblock().member)
                };
                assert_eq!(open(owner).await.expect("it is new"), owner);
                for other in others {
                    let refused = open(other).await.expect_err("it is another's");
                    assert!(
                        matches!(refused, DataDirError::Member { found, asked, .. } if (found, asked) == (owner, other))
                    );
                }
                assert_eq!(open(owner).await.expect("it is its own"), owner);
            }
        });
    }
}
