//! The tasks behind a log: lanes that write batches, one that writes marks, one that prepares segments.
//!
//! Each lane takes the next batch as soon as its write has ended, so the next batch gathers exactly while writes are in flight. A panic in
//! any of them could leave the log half changed: it aborts the process.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use gristmill_shardexec::buf::AlignedBuf;
use gristmill_shardexec::sync::Notify;
use gristmill_shardexec::time::{Instant, sleep, timeout};
use gristmill_shardexec::{Class, JoinHandle, abort_on_panic_async, fs, spawn};

use crate::batch::encode_seal_block;
use crate::error::WalError;
use crate::file::{SegmentFile, adopt_spare, create_spare, free_segment, sync_dir};
use crate::format::{RecordKind, Seal};
use crate::inner::{Inner, Spare, Work};
use crate::limits::BLOCK_BYTES;
use crate::types::Lsn;
use crate::waiters::Released;

/// Files without an id that are kept for recycling; more are deleted.
const SPARES_MAX: usize = 4;

/// The block of a mark at `offset`.
pub(crate) fn mark_block(file: &SegmentFile, offset: u64, durable: Lsn, seal: &Seal) -> Arc<AlignedBuf> {
    let mut block = AlignedBuf::zeroed(BLOCK_BYTES);
    encode_seal_block(&file.crc, RecordKind::Mark, offset as usize, durable, seal, &mut block);
    Arc::new(block)
}

/// Told how long a batch write took.
pub(crate) type WriteObserver = Rc<dyn Fn(Duration)>;

/// What the handles and the tasks of a log share.
pub(crate) struct Shared {
    pub inner: RefCell<Inner>,
    /// A batch may be ready for a lane.
    pub work: Notify,
    /// The log may have become idle.
    pub idle: Notify,
    /// A segment is wanted, or one was freed.
    pub prepare: Notify,
    /// There is an incident to fetch, or the log has stopped.
    pub incident: Notify,
    /// Told how long each batch write took.
    pub write_observer: RefCell<Option<WriteObserver>>,
}

impl Shared {
    pub fn new(inner: Inner) -> Shared {
        Shared {
            inner: RefCell::new(inner),
            work: Notify::new(),
            idle: Notify::new(),
            prepare: Notify::new(),
            incident: Notify::new(),
            write_observer: RefCell::default(),
        }
    }

    /// Starts the tasks.
    pub fn start(self: &Rc<Self>) -> Vec<JoinHandle<()>> {
        let lanes = self.inner.borrow().options.writes_in_flight;
        let mut tasks: Vec<_> = (0..lanes)
            .map(|_| {
                let shared = Rc::clone(self);
                spawn(Class::Raft, "wal writer", abort_on_panic_async("the log's writer", shared.lane()))
            })
            .collect();
        let shared = Rc::clone(self);
        tasks.push(spawn(Class::Raft, "wal marks", abort_on_panic_async("the log's marks", shared.marks())));
        let shared = Rc::clone(self);
        tasks.push(spawn(
            Class::Background,
            "wal segments",
            abort_on_panic_async("the log's files", shared.preparer()),
        ));
        tasks
    }

    /// Stops the log with `error` and tells everybody who waits.
    pub fn stop(&self, error: WalError) {
        let mut released = Released::default();
        // What may pass was told when it began.
        if self.inner.borrow().stopped.is_none() && !error.is_retriable() {
            self.note(&error);
        }
        let outcome = {
            let mut inner = self.inner.borrow_mut();
            inner.fail(error, &mut released);
            inner.stopped.clone().map_or(Ok(()), Err)
        };
        self.wake_all();
        released.tell(&outcome);
    }

    fn wake_all(&self) {
        self.work.notify_waiters();
        self.idle.notify_one();
        self.prepare.notify_one();
        self.incident.notify_one();
    }

    async fn lane(self: Rc<Self>) {
        let mut released = Released::default();
        loop {
            let work = self.inner.borrow_mut().take_work();
            let (file, batch) = match work {
                Work::Write(file, batch) => (file, batch),
                Work::Wait => {
                    self.work.notified().await;
                    continue;
                }
                Work::Stop => return,
            };
            if self.has_more_work() {
                self.work.notify_one();
            }
            let observer = self.write_observer.borrow().clone();
            let submitted = observer.map(|observe| (observe, Instant::now()));
            let written = file.write_durable(batch.buf, u64::from(batch.start)).await;
            match written {
                Ok(()) => {
                    if let Some((observe, submitted)) = submitted {
                        observe(Instant::now() - submitted);
                    }
                    self.inner.borrow_mut().batch_written(batch.last_lsn, &mut released);
                    released.tell(&Ok(()));
                    self.after_completion();
                }
                Err(failure) => self.stop(WalError::Failed(Box::new(failure))),
            }
        }
    }

    fn has_more_work(&self) -> bool {
        let inner = self.inner.borrow();
        !inner.sealed.is_empty() || !inner.batch.is_empty()
    }

    fn after_completion(&self) {
        let inner = self.inner.borrow();
        if inner.is_idle() && inner.needs_mark() {
            self.idle.notify_one();
        }
        if !inner.freed.is_empty() || inner.ready.len() < inner.options.segments_prewritten {
            self.prepare.notify_one();
        }
        // The lane that ended takes the next batch itself; another may be needed for the one behind it.
        if inner.closing && inner.is_idle() {
            self.work.notify_waiters();
        }
    }

    async fn marks(self: Rc<Self>) {
        loop {
            self.idle.notified().await;
            let delay = self.inner.borrow().options.mark_delay;
            loop {
                let before = self.inner.borrow().activity;
                sleep(delay).await;
                let inner = self.inner.borrow();
                if inner.stopped.is_some() || inner.closing {
                    return; // `close` writes the last mark itself
                }
                if inner.activity == before || !inner.is_idle() {
                    break;
                }
            }
            let lazy_pushed = {
                let mut inner = self.inner.borrow_mut();
                if !inner.is_idle() {
                    continue;
                }
                inner.push_lazy();
                !inner.batch.is_empty()
            };
            if lazy_pushed {
                self.work.notify_one(); // its completion comes back here for the mark
            } else if let Err(error) = self.write_mark().await {
                self.stop(error);
            }
        }
    }

    /// Proves what is durable now, if a trailer has not yet.
    pub async fn write_mark(&self) -> Result<(), WalError> {
        let (file, block, offset, told) = {
            let mut inner = self.inner.borrow_mut();
            if inner.stopped.is_some() || inner.durable <= inner.told.durable {
                return Ok(());
            }
            let Some(file) = inner.files.get(&inner.mark_segment).map(Rc::clone) else {
                return Ok(());
            };
            let (offset, told, seal) = inner.next_mark();
            let block = mark_block(&file, offset, told.durable, &seal);
            (file, block, offset, told)
        };
        file.write_durable(block, offset).await.map_err(|failure| WalError::Failed(Box::new(failure)))?;
        self.inner.borrow_mut().mark_written(told);
        self.prepare.notify_one();
        Ok(())
    }

    async fn preparer(self: Rc<Self>) {
        loop {
            if self.inner.borrow().stopped.is_some() {
                return;
            }
            match self.prepare_one().await {
                Ok(true) => {}
                Ok(false) => self.prepare.notified().await,
                Err(error @ (WalError::DiskFull { .. } | WalError::Exhausted(_))) => {
                    let Some(retry) = self.pause_for(error) else { return };
                    // A freed segment ends the pause early; whether it did makes no difference.
                    let _ = timeout(retry, self.prepare.notified()).await;
                }
                Err(WalError::Io(failure)) => return self.stop(WalError::Failed(failure)),
                Err(other) => return self.stop(other),
            }
        }
    }

    /// Notes why no segment can be prepared; how long to wait before the next try. `None`: the log is being closed, and what waits would wait
    /// for that segment.
    fn pause_for(&self, error: WalError) -> Option<Duration> {
        let (news, hopeless) = {
            let inner = self.inner.borrow();
            (inner.unprepared.is_none(), inner.closing && !inner.current_has_file())
        };
        if news {
            self.note(&error);
        }
        if hopeless {
            self.stop(error);
            return None;
        }
        let mut inner = self.inner.borrow_mut();
        inner.unprepared = Some(error);
        Some(inner.options.disk_full_retry)
    }

    /// Renames freed segments, then prepares one segment if one is wanted. True when it did.
    async fn prepare_one(&self) -> Result<bool, WalError> {
        self.collect_freed().await?;
        let (shape, id, previous, spare) = {
            let mut inner = self.inner.borrow_mut();
            let current_lacks_file = !inner.current_has_file();
            if inner.ready.len() >= inner.options.segments_prewritten && !current_lacks_file {
                return Ok(false);
            }
            // A reader that still holds the segment would find other bytes in it.
            let unread =
                inner.spares.iter().position(|spare| spare.was.as_ref().is_none_or(|was| Rc::strong_count(was) == 1));
            let spare = unread.map(|at| inner.spares.remove(at).path);
            (inner.shape.clone(), inner.next_segment, inner.newest_segment(), spare)
        };
        let recycled = spare.is_some();
        let spare = match spare {
            Some(path) => path,
            None => create_spare(&shape, id).await?,
        };
        let file = adopt_spare(&shape, &spare, id, previous).await?;
        let mut inner = self.inner.borrow_mut();
        inner.unprepared = None;
        inner.next_segment.0 += 1;
        inner.counters.recycled += u64::from(recycled);
        if inner.batch.segment() == id {
            inner.files.insert(id, file);
            self.work.notify_waiters();
        } else {
            inner.ready.push_back(file);
        }
        Ok(true)
    }

    async fn collect_freed(&self) -> Result<(), WalError> {
        let shape = self.inner.borrow().shape.clone();
        loop {
            let Some(file) = self.inner.borrow().freed.last().map(Rc::clone) else { break };
            let path = free_segment(&shape, file.segment).await?;
            let mut inner = self.inner.borrow_mut();
            inner.freed.retain(|other| other.segment != file.segment);
            inner.renamed.push(Spare { path, was: Some(file) });
        }
        if self.inner.borrow().renamed.is_empty() {
            return Ok(());
        }
        // Only then may a file get another id: the old name would come back over it.
        sync_dir(&shape.dir).await?;
        {
            let mut inner = self.inner.borrow_mut();
            let renamed = std::mem::take(&mut inner.renamed);
            inner.spares.extend(renamed);
        }
        loop {
            let surplus = {
                let mut inner = self.inner.borrow_mut();
                if inner.spares.len() <= SPARES_MAX { None } else { inner.spares.pop() }
            };
            let Some(surplus) = surplus else { return Ok(()) };
            fs::remove_file(&surplus.path).await.map_err(|error| WalError::io("remove", &surplus.path, &error))?;
        }
    }
}
