//! Clocks as the driver tells them: real in production, virtual in simulation.
#![forbid(unsafe_code)]

use std::fmt;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::executor::state::{Core, current, with_current};
use crate::executor::timers::TimerKey;

/// A point of a monotonic clock, in nanoseconds since an origin that differs between machines and boots.
///
/// CLOCK_MONOTONIC and CLOCK_BOOTTIME readings are both of this type: do not subtract one from the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// Later than any deadline: about 584 years after the origin.
    pub const MAX: Instant = Instant(u64::MAX);

    /// The point `ns` nanoseconds after the clock's origin.
    pub const fn from_ns(ns: u64) -> Instant {
        Instant(ns)
    }

    /// Nanoseconds since the clock's origin.
    pub const fn as_ns(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to `self`, zero when `earlier` is later.
    pub const fn saturating_duration_since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Saturates at [`Instant::MAX`], which as a deadline means never.
impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, duration: Duration) -> Instant {
        Instant(self.0.saturating_add(ns(duration)))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

/// Saturates at the clock's origin.
impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, duration: Duration) -> Instant {
        Instant(self.0.saturating_sub(ns(duration)))
    }
}

impl SubAssign<Duration> for Instant {
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

/// Zero when the right side is later.
impl Sub<Instant> for Instant {
    type Output = Duration;
    fn sub(self, earlier: Instant) -> Duration {
        self.saturating_duration_since(earlier)
    }
}

/// Nanoseconds since the Unix epoch. May step backwards; never measure durations with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallClock(pub u64);

impl fmt::Display for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09} s since the epoch", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

impl Instant {
    /// The monotonic clock of the current executor.
    ///
    /// # Panics
    /// Outside an executor.
    pub fn now() -> Instant {
        with_current(|core| core.clock())
    }

    /// The clock that goes on while the machine is suspended: leases are measured with it.
    ///
    /// # Panics
    /// Outside an executor.
    pub fn boottime_now() -> Instant {
        with_current(|core| core.driver.borrow().boottime())
    }

    /// Time since this reading of the monotonic clock.
    ///
    /// # Panics
    /// Outside an executor.
    pub fn elapsed(self) -> Duration {
        Instant::now() - self
    }
}

impl WallClock {
    /// The wall clock of the current executor.
    ///
    /// # Panics
    /// Outside an executor.
    pub fn now() -> WallClock {
        with_current(|core| core.driver.borrow().wall_clock())
    }
}

/// Ready once `duration` has passed since this call.
///
/// # Panics
/// Outside an executor.
pub fn sleep(duration: Duration) -> Sleep {
    let core = current();
    let deadline = if duration.is_zero() { core.loop_time() } else { core.clock() + duration };
    Sleep { core, deadline, timer: None }
}

/// Ready once the monotonic clock reaches `deadline`.
///
/// # Panics
/// Outside an executor.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep { core: current(), deadline, timer: None }
}

/// Future of [`sleep`]. Dropping it disarms the timer.
pub struct Sleep {
    core: Rc<Core>,
    deadline: Instant,
    timer: Option<TimerKey>,
}

impl Sleep {
    /// When it becomes ready.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Sets another deadline, whether or not the old one has passed.
    pub fn reset(&mut self, deadline: Instant) {
        self.disarm();
        self.deadline = deadline;
    }

    fn disarm(&mut self) {
        if let Some(timer) = self.timer.take() {
            // Bound first so that the waker is dropped after the borrow has ended.
            let waker = self.core.timers.borrow_mut().cancel(timer);
            drop(waker);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let Some(timer) = this.timer else {
            if this.deadline <= this.core.loop_time() {
                return Poll::Ready(());
            }
            this.timer = Some(this.core.arm_timer(this.deadline, cx.waker().clone()));
            return Poll::Pending;
        };
        let mut timers = this.core.timers.borrow_mut();
        if timers.is_armed(timer) {
            timers.update_waker(timer, cx.waker());
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.disarm();
    }
}

/// The deadline passed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deadline has passed")]
pub struct Elapsed;

/// Gives `future` until `duration` from now.
///
/// # Panics
/// Outside an executor.
pub fn timeout<F: Future>(duration: Duration, future: F) -> Timeout<F> {
    Timeout { future, sleep: sleep(duration) }
}

/// Gives `future` until `deadline`.
///
/// # Panics
/// Outside an executor.
pub fn timeout_at<F: Future>(deadline: Instant, future: F) -> Timeout<F> {
    Timeout { future, sleep: sleep_until(deadline) }
}

pin_project_lite::pin_project! {
    /// Future of [`timeout`]. The inner future goes first: one that is ready at the deadline wins.
    pub struct Timeout<F> {
        #[pin]
        future: F,
        sleep: Sleep,
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.future.poll(cx) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(this.sleep).poll(cx).map(|()| Err(Elapsed))
    }
}
