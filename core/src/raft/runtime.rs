//! openraft's view of the executor: its runtime traits as thin wrappers over `shardexec`.
//!
//! Tasks run in the raft class. Channels are single-threaded, as everything on a core is. openraft's instants are leases
//! and timeouts, so they read CLOCK_BOOTTIME: a machine that was suspended must find its leases expired. Sleeps run on
//! the executor's monotonic timers and may therefore fire late after a suspend, never early.

use gristmill_shardexec as shardexec;
use gristmill_shardexec::{Class, Executor, ExecutorConfig, IoChoice, random, sync, time};
use openraft::OptionalSend;
use openraft_rt::{
    AsyncRuntime, Instant, Mpsc, MpscReceiver, MpscSender, MpscWeakSender, Mutex, Oneshot, OneshotSender, RecvError,
    SendError, TryRecvError, Watch, WatchReceiver, WatchSender,
};
use std::cell::Ref;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// The runtime of the one type configuration.
pub(crate) type ShardRuntime = RuntimeOver<AnyDriver>;

/// Which driver a runtime of its own starts. Groups run on the executor they are started on; only tests start one here.
pub(crate) trait DriverChoice: fmt::Debug + 'static {
    const IO: IoChoice;
}

/// What the machine offers.
#[derive(Debug)]
pub(crate) struct AnyDriver;

impl DriverChoice for AnyDriver {
    const IO: IoChoice = IoChoice::Auto;
}

pub(crate) struct RuntimeOver<D> {
    executor: Executor,
    driver: PhantomData<D>,
}

impl<D> fmt::Debug for RuntimeOver<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuntimeOver").finish_non_exhaustive()
    }
}

/// A blocking job has no place on a core.
#[derive(Debug, thiserror::Error)]
#[error("consensus asked for a blocking job; shardexec::offload is the way to run one")]
struct NoBlockingJobs;

impl<D: DriverChoice> AsyncRuntime for RuntimeOver<D> {
    type JoinError = shardexec::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = shardexec::JoinHandle<T>;
    type Sleep = time::Sleep;
    type Instant = BootInstant;
    type TimeoutError = time::Elapsed;
    type Timeout<R, F: Future<Output = R> + OptionalSend> = time::Timeout<F>;
    type ThreadLocalRng = DriverRng;
    type Mpsc = Channels;
    type Watch = Channels;
    type Oneshot = Channels;
    type Mutex<T: OptionalSend + 'static> = RaftMutex<T>;

    fn spawn<F>(future: F) -> Self::JoinHandle<F::Output>
    where
        F: Future + OptionalSend + 'static,
        F::Output: OptionalSend + 'static,
    {
        shardexec::spawn(Class::Raft, "openraft", future)
    }

    fn sleep(duration: Duration) -> time::Sleep {
        time::sleep(duration)
    }

    fn sleep_until(deadline: BootInstant) -> time::Sleep {
        time::sleep(deadline.remaining())
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> time::Timeout<F> {
        time::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: BootInstant, future: F) -> time::Timeout<F> {
        time::timeout(deadline.remaining(), future)
    }

    fn is_panic(error: &shardexec::JoinError) -> bool {
        error.is_panic()
    }

    fn thread_rng() -> DriverRng {
        DriverRng
    }

    fn new(_threads: usize) -> Self {
        let config = ExecutorConfig { io: D::IO, ..ExecutorConfig::default() };
        let executor = Executor::start(config).expect("tests run where an executor can start");
        RuntimeOver { executor, driver: PhantomData }
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.executor.block_on(future)
    }

    /// The default starts a thread. openraft never asks; should it begin to, it is told.
    fn spawn_blocking<F, T>(_job: F) -> impl Future<Output = io::Result<T>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        std::future::ready(Err(io::Error::new(io::ErrorKind::Unsupported, NoBlockingJobs)))
    }
}

/// A reading of CLOCK_BOOTTIME.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BootInstant(time::Instant);

impl BootInstant {
    fn remaining(self) -> Duration {
        self.0.saturating_duration_since(time::Instant::boottime_now())
    }
}

impl Instant for BootInstant {
    fn now() -> Self {
        BootInstant(time::Instant::boottime_now())
    }
}

impl Add<Duration> for BootInstant {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        BootInstant(self.0 + duration)
    }
}

impl AddAssign<Duration> for BootInstant {
    fn add_assign(&mut self, duration: Duration) {
        self.0 += duration;
    }
}

impl Sub<Duration> for BootInstant {
    type Output = Self;
    fn sub(self, duration: Duration) -> Self {
        BootInstant(self.0 - duration)
    }
}

impl SubAssign<Duration> for BootInstant {
    fn sub_assign(&mut self, duration: Duration) {
        self.0 -= duration;
    }
}

impl Sub for BootInstant {
    type Output = Duration;
    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }
}

/// Random numbers from the driver, so that the simulation's seed decides elections.
pub(crate) struct DriverRng;

impl rand::TryRng for DriverRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(random::random_u64() as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(random::random_u64())
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        random::fill_random(out);
        Ok(())
    }
}

/// Names the channel types of `shardexec::sync` for openraft.
#[derive(Debug)]
pub(crate) struct Channels;

pub(crate) struct RaftSender<T>(sync::mpsc::Sender<T>);
pub(crate) struct RaftWeakSender<T>(sync::mpsc::WeakSender<T>);
pub(crate) struct RaftReceiver<T>(sync::mpsc::Receiver<T>);

impl Mpsc for Channels {
    type Sender<T: OptionalSend> = RaftSender<T>;
    type Receiver<T: OptionalSend> = RaftReceiver<T>;
    type WeakSender<T: OptionalSend> = RaftWeakSender<T>;

    fn channel<T: OptionalSend>(capacity: usize) -> (RaftSender<T>, RaftReceiver<T>) {
        let (sender, receiver) = sync::mpsc::channel(capacity);
        (RaftSender(sender), RaftReceiver(receiver))
    }
}

impl<T> Clone for RaftSender<T> {
    fn clone(&self) -> Self {
        RaftSender(self.0.clone())
    }
}

impl<T: OptionalSend> MpscSender<Channels, T> for RaftSender<T> {
    async fn send(&self, value: T) -> Result<(), SendError<T>> {
        self.0.send(value).await.map_err(|error| SendError(error.0))
    }

    fn downgrade(&self) -> RaftWeakSender<T> {
        RaftWeakSender(self.0.downgrade())
    }
}

impl<T> Clone for RaftWeakSender<T> {
    fn clone(&self) -> Self {
        RaftWeakSender(self.0.clone())
    }
}

impl<T: OptionalSend> MpscWeakSender<Channels, T> for RaftWeakSender<T> {
    fn upgrade(&self) -> Option<RaftSender<T>> {
        self.0.upgrade().map(RaftSender)
    }
}

impl<T: OptionalSend> MpscReceiver<T> for RaftReceiver<T> {
    async fn recv(&mut self) -> Option<T> {
        self.0.recv().await
    }

    fn try_recv(&mut self) -> Result<T, TryRecvError> {
        self.0.try_recv().map_err(|error| match error {
            sync::mpsc::TryRecvError::Empty => TryRecvError::Empty,
            sync::mpsc::TryRecvError::Disconnected => TryRecvError::Disconnected,
        })
    }
}

pub(crate) struct RaftWatchSender<T>(sync::watch::Sender<T>);
pub(crate) struct RaftWatchReceiver<T>(sync::watch::Receiver<T>);

impl Watch for Channels {
    type Sender<T: openraft_rt::OptionalSend + openraft_rt::OptionalSync> = RaftWatchSender<T>;
    type Receiver<T: openraft_rt::OptionalSend + openraft_rt::OptionalSync> = RaftWatchReceiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = Ref<'a, T>;

    fn channel<T>(initial: T) -> (RaftWatchSender<T>, RaftWatchReceiver<T>) {
        let (sender, receiver) = sync::watch::channel(initial);
        (RaftWatchSender(sender), RaftWatchReceiver(receiver))
    }
}

impl<T> Clone for RaftWatchSender<T> {
    fn clone(&self) -> Self {
        RaftWatchSender(self.0.clone())
    }
}

impl<T> WatchSender<Channels, T> for RaftWatchSender<T> {
    fn send(&self, value: T) -> Result<(), openraft_rt::watch::SendError<T>> {
        self.0.send(value).map_err(|error| openraft_rt::watch::SendError(error.0))
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        self.0.send_if_modified(modify)
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        self.0.borrow()
    }

    fn subscribe(&self) -> RaftWatchReceiver<T> {
        RaftWatchReceiver(self.0.subscribe())
    }
}

impl<T> Clone for RaftWatchReceiver<T> {
    fn clone(&self) -> Self {
        RaftWatchReceiver(self.0.clone())
    }
}

impl<T> WatchReceiver<Channels, T> for RaftWatchReceiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        self.0.changed().await.map_err(|_closed| RecvError(()))
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        self.0.borrow()
    }

    fn borrow_and_update(&mut self) -> Ref<'_, T> {
        self.0.borrow_and_update()
    }
}

pub(crate) struct RaftOneshotSender<T>(sync::oneshot::Sender<T>);
pub(crate) struct RaftOneshotReceiver<T>(sync::oneshot::Receiver<T>);

impl Oneshot for Channels {
    type Sender<T: OptionalSend> = RaftOneshotSender<T>;
    type Receiver<T: OptionalSend> = RaftOneshotReceiver<T>;
    type ReceiverError = sync::oneshot::RecvError;

    fn channel<T>() -> (RaftOneshotSender<T>, RaftOneshotReceiver<T>) {
        let (sender, receiver) = sync::oneshot::channel();
        (RaftOneshotSender(sender), RaftOneshotReceiver(receiver))
    }
}

impl<T> OneshotSender<T> for RaftOneshotSender<T> {
    fn send(self, value: T) -> Result<(), T> {
        self.0.send(value)
    }
}

impl<T> Future for RaftOneshotReceiver<T> {
    type Output = Result<T, sync::oneshot::RecvError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

pub(crate) struct RaftMutex<T>(sync::Mutex<T>);

impl<T: OptionalSend + 'static> Mutex<T> for RaftMutex<T> {
    type Guard<'a> = sync::MutexGuard<'a, T>;

    fn new(value: T) -> Self {
        RaftMutex(sync::Mutex::new(value))
    }

    async fn lock(&self) -> sync::MutexGuard<'_, T> {
        self.0.lock().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Posix;
    impl DriverChoice for Posix {
        const IO: IoChoice = IoChoice::Posix;
    }

    #[derive(Debug)]
    struct Uring;
    impl DriverChoice for Uring {
        const IO: IoChoice = IoChoice::Uring;
    }

    fn is_refused(io: IoChoice) -> bool {
        let started = Executor::start(ExecutorConfig { io, ..ExecutorConfig::default() });
        matches!(started, Err(shardexec::StartError::UringUnavailable { .. }))
    }

    #[test]
    fn openrafts_runtime_suite_passes_on_the_posix_driver() {
        openraft_rt::testing::Suite::<RuntimeOver<Posix>>::test_all();
    }

    #[test]
    fn openrafts_runtime_suite_passes_on_the_uring_driver() {
        if is_refused(Uring::IO) {
            eprintln!("skipped: this machine refuses io_uring");
            return;
        }
        openraft_rt::testing::Suite::<RuntimeOver<Uring>>::test_all();
    }

    #[test]
    fn a_blocking_job_is_refused_instead_of_starting_a_thread() {
        let mut runtime = RuntimeOver::<Posix>::new(1);
        let refused = runtime.block_on(RuntimeOver::<Posix>::spawn_blocking(|| 1)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
    }
}
