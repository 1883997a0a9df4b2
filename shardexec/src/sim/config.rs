//! Settings of a simulated world.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::clock::ClockConfig;
use super::disk::DiskConfig;
use super::faults::FaultPlan;
use super::trace::TraceSink;

/// How long things take when nothing is wrong: drawn evenly from each range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latencies {
    /// A poll of a task; what budgets are charged.
    pub poll: RangeInclusive<Duration>,
    /// One poll in 256 takes this long instead.
    pub slow_poll: RangeInclusive<Duration>,
    /// Reading from a disk.
    pub read: RangeInclusive<Duration>,
    /// Writing.
    pub write: RangeInclusive<Duration>,
    /// Syncing.
    pub sync: RangeInclusive<Duration>,
    /// Other file ops.
    pub file: RangeInclusive<Duration>,
    /// An offloaded job.
    pub job: RangeInclusive<Duration>,
    /// One way between two nodes.
    pub network: RangeInclusive<Duration>,
    /// One way within a node.
    pub loopback: RangeInclusive<Duration>,
}

impl Default for Latencies {
    fn default() -> Latencies {
        let us = |low, high| Duration::from_micros(low)..=Duration::from_micros(high);
        Latencies {
            poll: Duration::from_nanos(200)..=Duration::from_micros(3),
            slow_poll: us(20, 200),
            read: us(20, 200),
            write: us(20, 300),
            sync: us(100, 2000),
            file: us(10, 100),
            job: us(50, 3000),
            network: us(50, 500),
            loopback: us(5, 50),
        }
    }
}

/// Settings of a world.
pub struct SimConfig {
    /// What goes wrong.
    pub faults: FaultPlan,
    /// How far clocks are off.
    pub clocks: ClockConfig,
    /// How long things take.
    pub latencies: Latencies,
    /// Bytes that a connection holds in one direction, under way and unread, before its sender has to wait.
    pub socket_buffer: usize,
    /// After this time a connect without an answer fails.
    pub connect_timeout: Duration,
    /// After a time in this range without an acknowledgement, the sender's side of a connection breaks.
    pub retransmit_timeout: RangeInclusive<Duration>,
    /// Takes the lines of the trace.
    pub trace: Option<TraceSink>,
}

impl Default for SimConfig {
    fn default() -> SimConfig {
        SimConfig {
            faults: FaultPlan::none(),
            clocks: ClockConfig::default(),
            latencies: Latencies::default(),
            socket_buffer: 64 << 10,
            connect_timeout: Duration::from_secs(10),
            retransmit_timeout: Duration::from_secs(3)..=Duration::from_secs(10),
            trace: None,
        }
    }
}

impl fmt::Debug for SimConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimConfig").field("faults", &self.faults).finish_non_exhaustive()
    }
}

/// Settings of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its disk.
    pub disk: DiskConfig,
    /// Its own likelihoods for faults of disk, clock and process; without it the world's hold.
    pub faults: Option<FaultPlan>,
}
