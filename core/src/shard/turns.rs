//! Long reads take turns: so many run at once, so many may wait.

use gristmill_rpc::error::{ErrorCode, Rejection};
use gristmill_shardexec::sync::Semaphore;
use gristmill_shardexec::sync::semaphore::Permit;
use std::cell::Cell;

/// Reads of one kind that may wait for their turn on one shard.
const WAITING_MAX: usize = 4096;
/// Advice to a client that met too many waiting reads.
const RETRY_AFTER_MS: u32 = 20;

/// The turns of one kind of read on one shard.
pub(super) struct Turns {
    what: &'static str,
    permits: Semaphore,
    waiting: Cell<usize>,
}

impl Turns {
    /// `what` take turns, of which `at_once` run at the same time.
    pub fn new(what: &'static str, at_once: usize) -> Turns {
        Turns { what, permits: Semaphore::new(at_once), waiting: Cell::new(0) }
    }

    /// A turn, unless all are taken.
    pub fn try_take(&self) -> Option<Permit> {
        self.permits.try_acquire()
    }

    /// Waits for a turn, in the order of asking; `Overloaded` where [`WAITING_MAX`] wait already.
    pub async fn take(&self) -> Result<Permit, Rejection> {
        if self.waiting.get() >= WAITING_MAX {
            let message = format!("{WAITING_MAX} {} wait on this shard already; slow down and try again", self.what);
            return Err(Rejection::new(ErrorCode::Overloaded, message).retry_after_ms(RETRY_AFTER_MS));
        }
        let _waiting = Waiting::begin(&self.waiting);
        Ok(self.permits.acquire().await.expect("the semaphore is never closed"))
    }
}

/// Counts one that waits, for as long as it does.
struct Waiting<'a>(&'a Cell<usize>);

impl<'a> Waiting<'a> {
    fn begin(count: &'a Cell<usize>) -> Waiting<'a> {
        count.set(count.get() + 1);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn so_many_run_and_so_many_wait() {
        let turns = Turns::new("recalls", 1);
        let context = &mut Context::from_waker(Waker::noop());
        let first = turns.try_take().expect("free");
        let mut waiting: Vec<_> = (0..WAITING_MAX).map(|_| Box::pin(turns.take())).collect();
        assert!(waiting.iter_mut().all(|turn| turn.as_mut().poll(context).is_pending()));
        let Poll::Ready(Err(refused)) = pin!(turns.take()).poll(context) else { panic!("one too many waits") };
        assert_eq!(refused.code, ErrorCode::Overloaded);
        assert!(refused.message.contains("recalls"), "{}", refused.message);
        drop(first);
        assert!(matches!(waiting[0].as_mut().poll(context), Poll::Ready(Ok(_))), "first come, first served");
        waiting.pop();
        assert!(pin!(turns.take()).poll(context).is_pending(), "those that gave up or run do not wait");
    }
}
