//! Whether this kernel lets us have the ring that we need, and if not, why and what to do about it.
#![forbid(unsafe_code)]

use std::io;
use std::path::Path;

use io_uring::{IoUring, Probe, opcode};
use rustix::io::Errno;

use super::ops;

/// The oldest kernel with DEFER_TASKRUN.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// Completion queue entries the kernel grants at most (`IORING_MAX_CQ_ENTRIES`).
const CQ_ENTRIES_MAX: u32 = 65_536;

/// Entries of a ring's two queues, powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RingSize {
    /// Submissions per enter. A longer burst waits in the driver's backlog.
    pub submissions: u32,
    /// Completions that fit before the kernel has to keep the surplus elsewhere until the next enter, which costs time only.
    pub completions: u32,
}

impl RingSize {
    const MEDIUM: RingSize = RingSize { submissions: 256, completions: 1024 };
    /// Two pages.
    pub const SMALLEST: RingSize = RingSize { submissions: 64, completions: 128 };

    /// Room for every op and its cancellation.
    fn largest(op_slots: usize) -> RingSize {
        let slots = u32::try_from(op_slots).unwrap_or(CQ_ENTRIES_MAX).clamp(64, CQ_ENTRIES_MAX).next_power_of_two();
        RingSize { submissions: slots.min(1024), completions: (2 * slots).min(CQ_ENTRIES_MAX) }
    }

    /// Sizes to try, largest first. Kernels from 6.14 on charge rings to RLIMIT_MEMLOCK, which all processes of a user share, and
    /// 64 KiB is common in containers: so this core's ring takes its share of half the limit.
    fn candidates(op_slots: usize) -> impl Iterator<Item = RingSize> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let share = limit.map_or(u64::MAX, |bytes| bytes / 2 / cores);
        [RingSize::largest(op_slots), RingSize::MEDIUM, RingSize::SMALLEST]
            .into_iter()
            .filter(move |size| size.bytes() <= share || *size == RingSize::SMALLEST)
    }

    /// Memory of a ring, as the kernel lays it out: submission entries of 64 bytes; completion entries of 16, an index of 4 per
    /// submission and a header.
    fn bytes(self) -> u64 {
        const PAGE: u64 = 4096;
        const HEADER: u64 = 64;
        let (submissions, completions) = (u64::from(self.submissions), u64::from(self.completions));
        (submissions * 64).next_multiple_of(PAGE) + (HEADER + completions * 16 + submissions * 4).next_multiple_of(PAGE)
    }
}

/// Why io_uring cannot be used here. The display form says what is the matter, [`Refusal::cure`] what to do.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// EPERM while the sysctl is set.
    #[error("the sysctl kernel.io_uring_disabled is {0}")]
    Sysctl(u8),
    /// EPERM or EACCES and the sysctl is not to blame, so a sandbox is.
    #[error("{call} is not permitted ({source}), as in a container whose seccomp profile blocks it")]
    Sandbox {
        /// System call.
        call: &'static str,
        /// What came back.
        source: io::Error,
    },
    /// ENOSYS.
    #[error("this kernel, or a sandbox in front of it, has no {call}")]
    Missing {
        /// System call.
        call: &'static str,
    },
    /// The kernel does not know a flag, a feature or an operation that the driver builds on.
    #[error("kernel {kernel} lacks {what}; {}.{} or later has it", KERNEL_MIN.0, KERNEL_MIN.1)]
    Old {
        /// Release of the running kernel.
        kernel: String,
        /// What is missing.
        what: String,
    },
    /// No memory or no descriptor for the ring.
    #[error("no resources for a ring: {source}")]
    Resources {
        /// What came back.
        source: io::Error,
    },
    /// Anything else.
    #[error("{call} fails: {source}")]
    Other {
        /// System call.
        call: &'static str,
        /// What came back.
        source: io::Error,
    },
}

impl Refusal {
    /// What the person who runs the machine can do about it.
    pub fn cure(&self) -> &'static str {
        match self {
            Refusal::Sysctl(_) => "run `sysctl kernel.io_uring_disabled=0`",
            Refusal::Sandbox { .. } => {
                "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile \
                 (docker: `--security-opt seccomp=...`)"
            }
            Refusal::Missing { .. } | Refusal::Old { .. } => "run Linux 6.1 or later with CONFIG_IO_URING",
            Refusal::Resources { .. } => "raise `ulimit -l`, `ulimit -n` and the memory limit of the cgroup",
            Refusal::Other { .. } => "see `dmesg`",
        }
    }
}

/// Sets up the largest ring that this machine allows for `op_slots` operations in flight.
pub(super) fn start(op_slots: usize) -> Result<IoUring, Refusal> {
    let mut refused = None;
    for size in RingSize::candidates(op_slots) {
        match start_sized(size) {
            Err(refusal @ Refusal::Resources { .. }) => refused = Some(refusal),
            decided => return decided,
        }
    }
    Err(refused.expect("the smallest size is always tried"))
}

/// Sets a ring up and proves that it does what the driver needs.
pub(super) fn start_sized(size: RingSize) -> Result<IoUring, Refusal> {
    let mut ring = set_up(size).map_err(|source| refusal("io_uring_setup", source))?;
    let lacks = |what: &str| Refusal::Old { kernel: kernel_release(), what: what.to_owned() };
    if !ring.params().is_feature_ext_arg() {
        return Err(lacks("IORING_FEAT_EXT_ARG"));
    }
    if !ring.params().is_feature_nodrop() {
        return Err(lacks("IORING_FEAT_NODROP"));
    }
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|source| refusal("io_uring_register", source))?;
    for (code, name) in ops::OPCODES {
        if !probe.is_supported(code) {
            return Err(lacks(name));
        }
    }
    prove(&mut ring)?;
    Ok(ring)
}

fn set_up(size: RingSize) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_cqsize(size.completions)
        .dontfork()
        .build(size.submissions)
}

/// One empty operation there and back: some sandboxes let a ring be made but not entered.
fn prove(ring: &mut IoUring) -> Result<(), Refusal> {
    super::push(ring, &opcode::Nop::new().build().user_data(super::USER_DATA_IGNORED))
        .expect("a new submission queue has room");
    ring.submit_and_wait(1).map_err(|source| refusal("io_uring_enter", source))?;
    let completed = ring.completion().next();
    assert!(completed.is_some(), "io_uring_enter waited for a completion that is not there");
    Ok(())
}

fn refusal(call: &'static str, source: io::Error) -> Refusal {
    match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM | Errno::ACCESS) => match disabled_by_sysctl() {
            Some(level) if level > 0 => Refusal::Sysctl(level),
            _ => Refusal::Sandbox { call, source },
        },
        Some(Errno::NOSYS) => Refusal::Missing { call },
        Some(Errno::INVAL) => {
            Refusal::Old { kernel: kernel_release(), what: "the flags that gristmill needs".to_owned() }
        }
        Some(Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::AGAIN) => Refusal::Resources { source },
        _ => Refusal::Other { call, source },
    }
}

fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn disabled_by_sysctl() -> Option<u8> {
    use rustix::fs::{Mode, OFlags};
    let path = Path::new("/proc/sys/kernel/io_uring_disabled");
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut digit = [0];
    rustix::io::read(file, &mut digit).ok()?;
    (digit[0] as char).to_digit(10).map(|level| level as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_share_a_small_limit() {
        assert_eq!(RingSize::SMALLEST.bytes(), 8192);
        assert_eq!(RingSize::largest(4096), RingSize { submissions: 1024, completions: 8192 });
        assert!(RingSize::MEDIUM.bytes() > RingSize::SMALLEST.bytes());
        assert_eq!(RingSize::candidates(4096).last(), Some(RingSize::SMALLEST));
    }

    #[test]
    fn each_error_names_its_cause_and_cure() {
        let of = |errno: Errno| refusal("io_uring_setup", io::Error::from(errno));
        assert!(matches!(of(Errno::NOSYS), Refusal::Missing { .. }));
        assert!(matches!(of(Errno::INVAL), Refusal::Old { .. }));
        assert!(matches!(of(Errno::NOMEM), Refusal::Resources { .. }));
        assert!(matches!(of(Errno::IO), Refusal::Other { .. }));
        assert!(matches!(of(Errno::PERM), Refusal::Sandbox { .. } | Refusal::Sysctl(_)));
        assert!(of(Errno::INVAL).to_string().contains("6.1 or later"));
        assert!(Refusal::Sysctl(2).cure().contains("io_uring_disabled=0"));
    }
}
