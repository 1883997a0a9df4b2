//! The mesh as a core's tasks see it.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use super::bell::Bell;
use super::ring::{Consumer, Producer, ring};
use crate::CoreId;
use crate::driver::Unpark;
use crate::executor::state::{self, Source};

/// Cores of one mesh.
pub const MESH_CORES_MAX: usize = 1024;

/// Messages taken from one peer before the others get their turn.
const BURST: usize = 64;

/// What every core of a mesh may touch.
struct Shared {
    cores: Box<[SharedCore]>,
}

struct SharedCore {
    bell: Bell,
    /// Set when the core attaches; before that it has not parked on this mesh's account.
    unpark: OnceLock<Arc<dyn Unpark>>,
}

impl Shared {
    /// Wakes `core` if it sleeps. To be called after something was published for it.
    #[inline]
    fn ring_bell(&self, core: usize) {
        let core = &self.cores[core];
        if core.bell.claim() {
            core.unpark.get().expect("a core parks after it has attached").unpark();
        }
    }
}

/// One core's place in a mesh, to be moved to that core's thread and attached there.
pub struct MeshSeat<M: Send>(Inner<M>);

/// Makes a mesh of `cores` cores in which each may have `capacity` messages (rounded up to a power of two) under way to each other
/// one, and to itself. Seats are in the order of core numbers.
///
/// # Panics
/// When `cores` is 0 or above [`MESH_CORES_MAX`], or `capacity` is 0 or above [`RING_CAPACITY_MAX`](super::ring::RING_CAPACITY_MAX).
pub fn mesh<M: Send>(cores: usize, capacity: usize) -> Vec<MeshSeat<M>> {
    assert!((1..=MESH_CORES_MAX).contains(&cores), "a mesh of {cores} cores is not within 1..={MESH_CORES_MAX}");
    let shared_core = |_| SharedCore { bell: Bell::new(), unpark: OnceLock::new() };
    let shared = Arc::new(Shared { cores: (0..cores).map(shared_core).collect() });
    let mut seats: Vec<Inner<M>> =
        (0..cores).map(|core| Inner::new(CoreId(core as u16), Arc::clone(&shared), cores)).collect();
    for from in 0..cores {
        for to in 0..cores {
            let (producer, consumer) = ring(capacity);
            seats[from].outgoing.push(RefCell::new(Outgoing { producer, waiters: VecDeque::new(), next_waiter: 0 }));
            seats[to].incoming.get_mut().consumers.push(consumer);
        }
    }
    seats.into_iter().map(MeshSeat).collect()
}

impl<M: Send + 'static> MeshSeat<M> {
    /// The core that this seat is for.
    pub fn core(&self) -> CoreId {
        self.0.core
    }

    /// Takes the seat on the current executor.
    ///
    /// # Panics
    /// Outside an executor, or on one of another core.
    pub fn attach(self) -> MeshPort<M> {
        let inner = Rc::new(self.0);
        state::with_current(|executor| {
            assert_eq!(executor.config.core, inner.core, "a mesh seat belongs to its own core's executor");
            let seat = &inner.shared.cores[usize::from(inner.core.0)];
            let first = seat.unpark.set(executor.shared.unpark_handle()).is_ok();
            assert!(first, "a core attaches to a mesh once");
            let inner: Weak<Inner<M>> = Rc::downgrade(&inner);
            executor.add_source(inner);
        });
        MeshPort { inner }
    }
}

/// One core's end of all its rings. Clones are the same port.
pub struct MeshPort<M: Send> {
    inner: Rc<Inner<M>>,
}

impl<M: Send> Clone for MeshPort<M> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

/// Why a message was not sent at once; it comes back.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TrySendError<M> {
    /// No credit: the peer has not yet taken what was sent before, or others wait for a credit already.
    #[error("the ring to the peer is full")]
    Full(M),
    /// The peer has dropped its port.
    #[error("the peer has left the mesh")]
    Closed(M),
}

impl<M> fmt::Debug for TrySendError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::Closed(_) => "Closed(..)",
        })
    }
}

/// The peer has dropped its port; the message comes back.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer has left the mesh")]
pub struct Closed<M>(pub M);

impl<M> fmt::Debug for Closed<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Closed(..)")
    }
}

impl<M: Send> MeshPort<M> {
    /// The core that this port belongs to.
    pub fn core(&self) -> CoreId {
        self.inner.core
    }

    /// Every core of the mesh, this one included.
    pub fn cores(&self) -> impl ExactSizeIterator<Item = CoreId> + use<M> {
        (0..self.inner.outgoing.len() as u16).map(CoreId)
    }

    /// Sends at once or not at all.
    ///
    /// # Panics
    /// When `to` is not in the mesh.
    #[inline]
    pub fn try_send(&self, to: CoreId, message: M) -> Result<(), TrySendError<M>> {
        let mut outgoing = self.inner.outgoing(to).borrow_mut();
        if outgoing.producer.is_closed() {
            return Err(TrySendError::Closed(message));
        }
        if !outgoing.waiters.is_empty() {
            return Err(TrySendError::Full(message));
        }
        outgoing.producer.push(message).map_err(TrySendError::Full)?;
        self.inner.shared.ring_bell(usize::from(to.0));
        Ok(())
    }

    /// Sends as many of `messages` as there are credits, and rings the peer's bell once for all of them. Returns how many were
    /// taken from the iterator; none when the peer has left or others wait for a credit already.
    ///
    /// # Panics
    /// When `to` is not in the mesh.
    pub fn try_send_batch(&self, to: CoreId, messages: &mut impl Iterator<Item = M>) -> usize {
        let mut outgoing = self.inner.outgoing(to).borrow_mut();
        if outgoing.producer.is_closed() || !outgoing.waiters.is_empty() {
            return 0;
        }
        let sent = outgoing.producer.push_batch(messages);
        if sent > 0 {
            self.inner.shared.ring_bell(usize::from(to.0));
        }
        sent
    }

    /// Sends, waiting for a credit if need be. Dropping the future before it is ready drops the message unsent.
    ///
    /// # Panics
    /// When `to` is not in the mesh.
    pub async fn send(&self, to: CoreId, message: M) -> Result<(), Closed<M>> {
        match self.try_send(to, message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Closed(message)) => Err(Closed(message)),
            Err(TrySendError::Full(message)) => {
                Waiting { inner: &self.inner, to, message: Some(message), ticket: None }.await
            }
        }
    }

    /// Takes the next message that has arrived, if any. Peers take turns.
    #[inline]
    pub fn try_recv(&self) -> Option<(CoreId, M)> {
        let (from, popped) = self.inner.incoming.borrow_mut().pop()?;
        if popped.credit_waited_for {
            self.inner.shared.ring_bell(from);
        }
        Some((CoreId(from as u16), popped.message))
    }

    /// The next message. One task of a core receives; it hands out what it receives as it likes.
    ///
    /// # Panics
    /// When another task waits already.
    pub async fn recv(&self) -> (CoreId, M) {
        let listening = Listening(&self.inner);
        poll_fn(|cx| {
            if let Some(received) = self.try_recv() {
                return Poll::Ready(received);
            }
            listening.0.listen(cx.waker());
            Poll::Pending
        })
        .await
    }
}

/// Takes the waker back when a `recv` ends or is dropped.
struct Listening<'a, M: Send>(&'a Inner<M>);

impl<M: Send> Drop for Listening<'_, M> {
    fn drop(&mut self) {
        self.0.listens.set(false);
    }
}

struct Inner<M: Send> {
    core: CoreId,
    shared: Arc<Shared>,
    /// By receiving core.
    outgoing: Vec<RefCell<Outgoing<M>>>,
    incoming: RefCell<Incoming<M>>,
    /// Somebody waits for a message, and `listener` wakes it.
    listens: Cell<bool>,
    /// Kept from one wait to the next, since it is nearly always the same.
    listener: RefCell<Waker>,
    /// Rings with senders that wait for credits.
    starved: Cell<usize>,
}

struct Incoming<M> {
    /// By sending core.
    consumers: Vec<Consumer<M>>,
    /// Whose turn it is, and how many messages it has had.
    turn: usize,
    taken: usize,
}

struct Outgoing<M> {
    producer: Producer<M>,
    /// In the order in which they get credits, hence by rising ticket.
    waiters: VecDeque<Waiter>,
    next_waiter: u64,
}

struct Waiter {
    ticket: u64,
    /// `None` once woken.
    waker: Option<Waker>,
}

impl<M> Incoming<M> {
    #[inline]
    fn pop(&mut self) -> Option<(usize, super::ring::Popped<M>)> {
        for _ in 0..self.consumers.len() {
            let from = self.turn;
            if self.taken < BURST
                && let Some(popped) = self.consumers[from].pop()
            {
                self.taken += 1;
                return Some((from, popped));
            }
            self.taken = 0;
            self.turn = if from + 1 == self.consumers.len() { 0 } else { from + 1 };
        }
        // With one core the loop above gives up when the burst is over.
        let from = self.turn;
        let popped = self.consumers[from].pop()?;
        self.taken = 1;
        Some((from, popped))
    }

    fn is_empty(&mut self) -> bool {
        self.consumers.iter_mut().all(Consumer::is_empty)
    }
}

impl<M> Outgoing<M> {
    /// How many waiters, from the front, can go on.
    fn grants(&mut self) -> usize {
        let waiters = self.waiters.len();
        if self.producer.is_closed() { waiters } else { self.producer.credits(waiters).min(waiters) }
    }

    /// The first waiter that can go on and has not been told.
    fn next_grant(&mut self) -> Option<&mut Option<Waker>> {
        let grants = self.grants();
        self.waiters.iter_mut().take(grants).map(|waiter| &mut waiter.waker).find(|waker| waker.is_some())
    }

    /// Position in the queue of waiters.
    fn rank(&self, ticket: Option<u64>) -> usize {
        match ticket {
            Some(ticket) => self.waiters.partition_point(|waiter| waiter.ticket < ticket),
            None => self.waiters.len(),
        }
    }
}

impl<M: Send> Inner<M> {
    fn new(core: CoreId, shared: Arc<Shared>, cores: usize) -> Self {
        let incoming = Incoming { consumers: Vec::with_capacity(cores), turn: 0, taken: 0 };
        Self {
            core,
            shared,
            outgoing: Vec::with_capacity(cores),
            incoming: RefCell::new(incoming),
            listens: Cell::new(false),
            listener: RefCell::new(Waker::noop().clone()),
            starved: Cell::new(0),
        }
    }

    #[inline]
    fn outgoing(&self, to: CoreId) -> &RefCell<Outgoing<M>> {
        let outgoing = self.outgoing.get(usize::from(to.0));
        outgoing.unwrap_or_else(|| panic!("{to} is not one of the mesh's {} cores", self.outgoing.len()))
    }

    fn listen(&self, waker: &Waker) {
        let mut listener = self.listener.borrow_mut();
        if !listener.will_wake(waker) {
            assert!(!self.listens.get(), "one task of a core receives from the mesh");
            listener.clone_from(waker);
        }
        self.listens.set(true);
    }

    fn has_mail(&self) -> bool {
        self.listens.get() && !self.incoming.borrow_mut().is_empty()
    }

    fn leave_queue(&self, outgoing: &mut Outgoing<M>, ticket: u64) {
        let rank = outgoing.rank(Some(ticket));
        outgoing.waiters.remove(rank);
        if outgoing.waiters.is_empty() {
            outgoing.producer.set_credit_wanted(false);
            self.starved.set(self.starved.get() - 1);
        }
    }

    fn enter_queue(&self, outgoing: &mut Outgoing<M>) -> u64 {
        if outgoing.waiters.is_empty() {
            outgoing.producer.set_credit_wanted(true);
            self.starved.set(self.starved.get() + 1);
        }
        let ticket = outgoing.next_waiter;
        outgoing.next_waiter += 1;
        outgoing.waiters.push_back(Waiter { ticket, waker: None });
        ticket
    }
}

impl<M: Send> Source for Inner<M> {
    fn poll(&self) {
        if self.has_mail() {
            self.listens.set(false);
            self.listener.borrow().wake_by_ref();
        }
        if self.starved.get() == 0 {
            return;
        }
        for outgoing in &self.outgoing {
            loop {
                // Not borrowed while the waker runs.
                let granted = outgoing.borrow_mut().next_grant().and_then(Option::take);
                let Some(waker) = granted else { break };
                waker.wake();
            }
        }
    }

    fn announce_park(&self) -> bool {
        self.shared.cores[usize::from(self.core.0)].bell.announce();
        let has_credit = |outgoing: &RefCell<Outgoing<M>>| outgoing.borrow_mut().next_grant().is_some();
        !self.has_mail() && (self.starved.get() == 0 || !self.outgoing.iter().any(has_credit))
    }

    fn withdraw_park(&self) {
        self.shared.cores[usize::from(self.core.0)].bell.withdraw();
    }
}

impl<M: Send> Drop for Inner<M> {
    fn drop(&mut self) {
        // Peers that wait for a credit of ours must hear that there will be none: first close the rings, then ring the bells.
        self.incoming.get_mut().consumers.clear();
        for core in 0..self.shared.cores.len() {
            self.shared.ring_bell(core);
        }
    }
}

/// A sender that waits for its credit.
struct Waiting<'a, M: Send> {
    inner: &'a Inner<M>,
    to: CoreId,
    message: Option<M>,
    /// Its place in the queue, once it has one.
    ticket: Option<u64>,
}

/// Nothing in here is pinned.
impl<M: Send> Unpin for Waiting<'_, M> {}

impl<M: Send> Future for Waiting<'_, M> {
    type Output = Result<(), Closed<M>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut outgoing = this.inner.outgoing(this.to).borrow_mut();
        let rank = outgoing.rank(this.ticket);
        let closed = outgoing.producer.is_closed();
        if !closed && outgoing.producer.credits(rank + 1) <= rank {
            let ticket = *this.ticket.get_or_insert_with(|| this.inner.enter_queue(&mut outgoing));
            debug_assert_eq!(outgoing.waiters[rank].ticket, ticket);
            outgoing.waiters[rank].waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if let Some(ticket) = this.ticket.take() {
            this.inner.leave_queue(&mut outgoing, ticket);
        }
        let message = this.message.take().expect("a send is polled until it is ready");
        if closed {
            return Poll::Ready(Err(Closed(message)));
        }
        let pushed = outgoing.producer.push(message);
        assert!(pushed.is_ok(), "there was a credit for rank {rank}");
        this.inner.shared.ring_bell(usize::from(this.to.0));
        Poll::Ready(Ok(()))
    }
}

impl<M: Send> Drop for Waiting<'_, M> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            let mut outgoing = self.inner.outgoing(self.to).borrow_mut();
            self.inner.leave_queue(&mut outgoing, ticket);
        }
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    //! Who rings whose bell. Two executors on one thread, so that each step is the test's; `withdraw` tells whether a park that was
    //! announced has been claimed by somebody who published something for it.

    use super::*;
    use crate::executor::{Class, Executor, ExecutorConfig, IoChoice, JoinHandle, Pause};

    struct Core {
        executor: Executor,
        port: MeshPort<u32>,
    }

    impl Core {
        /// Runs what can run and leaves the core as if parked.
        fn park(&mut self) {
            assert_eq!(self.executor.run_for(100), Pause::Idle(None));
        }

        fn was_rung(&self) -> bool {
            !self.port.inner.shared.cores[usize::from(self.port.core().0)].bell.withdraw()
        }

        fn spawn_send(&mut self, to: CoreId, message: u32) -> JoinHandle<Result<(), Closed<u32>>> {
            let port = self.port.clone();
            self.executor.spawn(Class::Request, "send", async move { port.send(to, message).await })
        }

        fn spawn_recv(&mut self) -> JoinHandle<(CoreId, u32)> {
            let port = self.port.clone();
            self.executor.spawn(Class::Request, "recv", async move { port.recv().await })
        }
    }

    fn two_cores() -> [Core; 2] {
        let core = |seat: MeshSeat<u32>| {
            let config = ExecutorConfig { core: seat.core(), io: IoChoice::Posix, ..ExecutorConfig::default() };
            let mut executor = Executor::start(config).expect("epoll is always there");
            let port = executor.block_on(async { seat.attach() });
            Core { executor, port }
        };
        let mut seats = mesh(2, 1).into_iter().map(core);
        std::array::from_fn(|_| seats.next().expect("two seats"))
    }

    #[test]
    fn a_message_rings_the_receiver_once() {
        let [a, mut b] = two_cores();
        let received = b.spawn_recv();
        b.park();
        assert_eq!(a.port.try_send(CoreId(1), 7), Ok(()));
        assert!(b.was_rung());
        assert_eq!(b.executor.block_on(received), Ok((CoreId(0), 7)));
        b.park();
        assert!(!b.was_rung());
    }

    #[test]
    fn a_message_that_had_to_wait_rings_the_receiver_too() {
        let [mut a, mut b] = two_cores();
        assert_eq!(a.port.try_send(CoreId(1), 1), Ok(()));
        let sent = a.spawn_send(CoreId(1), 2);
        a.park();
        assert_eq!(b.port.try_recv(), Some((CoreId(0), 1)));
        assert!(a.was_rung(), "the credit is announced to who waits for it");
        let received = b.spawn_recv();
        b.park();
        assert_eq!(a.executor.block_on(sent), Ok(Ok(())));
        assert!(b.was_rung());
        assert_eq!(b.executor.block_on(received), Ok((CoreId(0), 2)));
    }

    #[test]
    fn a_credit_rings_nobody_who_does_not_wait_for_it() {
        let [mut a, b] = two_cores();
        assert_eq!(a.port.try_send(CoreId(1), 1), Ok(()));
        a.park();
        assert_eq!(b.port.try_recv(), Some((CoreId(0), 1)));
        assert!(!a.was_rung());
    }

    #[test]
    fn leaving_rings_those_who_wait_for_a_credit() {
        let [mut a, b] = two_cores();
        assert_eq!(a.port.try_send(CoreId(1), 1), Ok(()));
        let sent = a.spawn_send(CoreId(1), 2);
        a.park();
        drop(b);
        assert!(a.was_rung());
        assert_eq!(a.executor.block_on(sent), Ok(Err(Closed(2))));
    }

    #[test]
    fn a_core_does_not_park_on_what_came_since_it_last_looked() {
        let [mut a, mut b] = two_cores();
        let received = b.spawn_recv();
        b.park();
        b.port.inner.withdraw_park();
        assert_eq!(a.port.try_send(CoreId(1), 1), Ok(()));
        assert!(!b.port.inner.announce_park(), "a message");
        assert_eq!(b.executor.block_on(received), Ok((CoreId(0), 1)));

        assert_eq!(a.port.try_send(CoreId(1), 2), Ok(()));
        let sent = a.spawn_send(CoreId(1), 3);
        a.park();
        a.port.inner.withdraw_park();
        assert_eq!(b.port.try_recv(), Some((CoreId(0), 2)));
        assert!(!a.port.inner.announce_park(), "a credit");
        assert_eq!(a.executor.block_on(sent), Ok(Ok(())));
    }
}
