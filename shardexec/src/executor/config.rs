//! Settings of one executor.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::CoreId;

/// Operations in flight per executor when nothing else is asked for: buffers and kernel queues are bounded by it.
pub const OP_SLOTS_DEFAULT: usize = 4096;

/// A poll that holds the core longer than this is reported by the stall detector.
pub const STALL_THRESHOLD_DEFAULT: Duration = Duration::from_micros(500);

/// Who a task works for; decides who goes first and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Consensus and the log: everything else waits for them.
    Raft,
    /// Serving clients.
    Request,
    /// Flush, compaction, index builds, snapshots, migration.
    Background,
}

impl Class {
    /// Every class, most urgent first.
    pub const ALL: [Class; 3] = [Class::Raft, Class::Request, Class::Background];

    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

/// How long each class may run before the others get their turn.
///
/// The most urgent class with work and budget goes first. When every class with work has used up its slice, all slices are
/// refilled: so under full load the classes share the core in proportion to their slices, and none starves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slices {
    /// Of [`Class::Raft`].
    pub raft: Duration,
    /// Of [`Class::Request`].
    pub request: Duration,
    /// Of [`Class::Background`]; also how often a background task must come back from its poll.
    pub background: Duration,
}

impl Default for Slices {
    fn default() -> Slices {
        Slices {
            raft: Duration::from_micros(500),
            request: Duration::from_micros(500),
            background: Duration::from_micros(250),
        }
    }
}

impl Slices {
    pub(crate) fn of(&self, class: Class) -> Duration {
        match class {
            Class::Raft => self.raft,
            Class::Request => self.request,
            Class::Background => self.background,
        }
    }
}

/// Which I/O driver to start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoChoice {
    /// `uring` where the kernel allows it, else `posix` with a line on stderr that names the cure.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// epoll and a thread pool.
    Posix,
}

/// What to do before parking an idle core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpinPolicy {
    /// Park at once.
    #[default]
    Never,
    /// Look for work for this long first. Suspended for a while whenever the spinning thread turns out to have been
    /// descheduled, or spins in vain again and again.
    For(Duration),
}

/// Spin budget that pays on a machine with a CPU for every core: 100 µs cut the p50 of a TCP echo from 70 to 46 µs.
pub const SPIN_BUDGET_PINNED: Duration = Duration::from_micros(100);

/// In which order runnable tasks of a class are polled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TaskOrder {
    /// First woken, first polled.
    #[default]
    Fifo,
    /// As the driver picks: simulation explores orders with it.
    DriverPicks,
}

/// Settings of one executor. The default is safe anywhere: unpinned, no spinning, driver chosen by probing.
#[derive(Clone, Debug)]
pub struct ExecutorConfig {
    /// The core's name.
    pub core: CoreId,
    /// CPU to pin the calling thread to.
    pub pin_to: Option<usize>,
    /// Driver.
    pub io: IoChoice,
    /// Spinning before parking.
    pub spin: SpinPolicy,
    /// Polls longer than this are reported.
    pub stall_threshold: Duration,
    /// Slices of the task classes.
    pub slices: Slices,
    /// Operations in flight; further ones wait for a slot.
    pub op_slots: usize,
    /// Threads for file operations (`posix` only).
    pub file_threads: usize,
    /// Threads for [`offload`](crate::offload()).
    pub offload_threads: usize,
    /// Order of runnable tasks.
    pub task_order: TaskOrder,
}

impl Default for ExecutorConfig {
    fn default() -> ExecutorConfig {
        ExecutorConfig {
            core: CoreId(0),
            pin_to: None,
            io: IoChoice::Auto,
            spin: SpinPolicy::Never,
            stall_threshold: STALL_THRESHOLD_DEFAULT,
            slices: Slices::default(),
            op_slots: OP_SLOTS_DEFAULT,
            file_threads: 4,
            offload_threads: 2,
            task_order: TaskOrder::Fifo,
        }
    }
}
