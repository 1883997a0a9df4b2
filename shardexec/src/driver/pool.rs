//! A bounded pool of threads for operations that block.
//!
//! Threads start when work comes and none is idle, up to the limit, and stay. The queue is bounded by the op slab. Results
//! collect in a list that the driver takes at its next poll; the first one into an empty list unparks it.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::files::{self, Output};
use super::{Op, OpKey, OpOutput, Unpark};

/// An operation for another thread, with the open file that it uses.
pub(crate) struct Work {
    pub key: OpKey,
    pub op: Op,
    pub fd: Option<Arc<OwnedFd>>,
}

/// An operation that ran.
pub(crate) struct Finished {
    pub key: OpKey,
    pub op: Op,
    pub result: io::Result<Output>,
}

pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    threads_max: usize,
    name: &'static str,
}

struct Shared {
    queue: Mutex<Queue>,
    work_came: Condvar,
    finished: Mutex<Vec<Finished>>,
    unpark: Arc<dyn Unpark>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Work>,
    idle_threads: usize,
    stopping: bool,
}

/// A worker never panics while it holds a lock, so a poisoned one holds whole data.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// `name` is the threads' name, at most 15 bytes to show whole in `top`.
    pub fn new(name: &'static str, threads_max: usize, unpark: Arc<dyn Unpark>) -> Pool {
        assert!(threads_max > 0, "a pool needs a thread");
        let shared = Shared { queue: Mutex::default(), work_came: Condvar::new(), finished: Mutex::default(), unpark };
        Pool { shared: Arc::new(shared), threads: Vec::new(), threads_max, name }
    }

    /// Queues `work`. It comes back as an error when no thread could be started at all.
    pub fn submit(&mut self, work: Work) -> Result<(), Finished> {
        let mut queue = lock(&self.shared.queue);
        queue.waiting.push_back(work);
        let wanted = queue.waiting.len() > queue.idle_threads && self.threads.len() < self.threads_max;
        drop(queue);
        self.shared.work_came.notify_one();
        if !wanted {
            return Ok(());
        }
        match self.start_thread() {
            Ok(()) => Ok(()),
            Err(_) if !self.threads.is_empty() => Ok(()),
            Err(error) => {
                let Work { key, op, .. } = lock(&self.shared.queue).waiting.pop_back().expect("no thread took it");
                Err(Finished { key, op, result: Err(error) })
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the one place where production drivers get threads")]
    fn start_thread(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let builder = std::thread::Builder::new().name(self.name.to_owned());
        self.threads.push(builder.spawn(move || shared.work())?);
        Ok(())
    }

    /// Takes back an operation that no thread has begun.
    pub fn cancel(&mut self, key: OpKey) -> Option<Work> {
        let mut queue = lock(&self.shared.queue);
        let at = queue.waiting.iter().position(|work| work.key == key)?;
        queue.waiting.remove(at)
    }

    /// Appends what has finished.
    pub fn take_finished(&mut self, out: &mut Vec<Finished>) {
        out.append(&mut lock(&self.shared.finished));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.queue).stopping = true;
        self.shared.work_came.notify_all();
        for thread in self.threads.drain(..) {
            assert!(thread.join().is_ok(), "a pool thread catches the panics of its jobs");
        }
    }
}

impl Shared {
    fn work(&self) {
        while let Some(Work { key, mut op, fd }) = self.next() {
            let result = match &mut op {
                Op::Offload { job } => Ok(Output::Plain(OpOutput::Offloaded(job.run()))),
                Op::Close { .. } => Ok(Output::Plain(OpOutput::Done)),
                op => files::run(op, fd.as_deref()),
            };
            // Before the completion: a close is over only when the descriptor is gone.
            drop(fd);
            let mut finished = lock(&self.finished);
            finished.push(Finished { key, op, result });
            let first = finished.len() == 1;
            drop(finished);
            if first {
                self.unpark.unpark();
            }
        }
    }

    fn next(&self) -> Option<Work> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(work) = queue.waiting.pop_front() {
                return Some(work);
            }
            if queue.stopping {
                return None;
            }
            queue.idle_threads += 1;
            queue = self.work_came.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle_threads -= 1;
        }
    }
}
