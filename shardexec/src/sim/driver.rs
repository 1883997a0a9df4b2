//! The executor's side of the simulated world: one driver for each start of each core.
//!
//! It never blocks. An executor over it is polled by [`run_for`](crate::Executor::run_for), whose result tells the world when it wants
//! to go on; [`Executor::block_on`](crate::Executor::block_on) would wait for an event that only the world can bring about.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use rustix::io::Errno;

use super::disk::Caller;
use super::disk::Effect;
use super::events::Event;
use super::faults::FaultKind;
use super::state::{CoreIo, Opened, State};
use super::trace::What;
use crate::driver::{Completion, Driver, Op, OpKey, OpOutput, RawHandle, Unpark, Wait, files};
use crate::time::{Instant, WallClock};

/// A simulated driver.
pub(super) struct SimDriver {
    state: Rc<RefCell<State>>,
    core: usize,
}

/// Number and name of an op's kind, for the trace.
pub(super) fn kind_of(op: &Op) -> (u64, &'static str) {
    match op {
        Op::Open { .. } => (1, "open"),
        Op::Close { .. } => (2, "close"),
        Op::Read { .. } => (3, "read"),
        Op::Write { .. } => (4, "write"),
        Op::Sync { .. } => (5, "sync"),
        Op::SetLen { .. } => (6, "set_len"),
        Op::Allocate { .. } => (7, "allocate"),
        Op::FileMetadata { .. } => (8, "file_metadata"),
        Op::LockExclusive { .. } => (9, "lock"),
        Op::SetNoCow { .. } => (10, "set_no_cow"),
        Op::Metadata { .. } => (11, "metadata"),
        Op::FileSystem { .. } => (12, "file_system"),
        Op::CreateDir { .. } => (13, "create_dir"),
        Op::ReadDir { .. } => (14, "read_dir"),
        Op::Rename { .. } => (15, "rename"),
        Op::Link { .. } => (16, "link"),
        Op::RemoveFile { .. } => (17, "remove_file"),
        Op::RemoveDir { .. } => (18, "remove_dir"),
        Op::SyncDir { .. } => (19, "sync_dir"),
        Op::Listen { .. } => (20, "listen"),
        Op::Accept { .. } => (21, "accept"),
        Op::Connect { .. } => (22, "connect"),
        Op::Recv { .. } => (23, "recv"),
        Op::Send { .. } => (24, "send"),
        Op::Shutdown { .. } => (25, "shutdown"),
        Op::SetNoDelay { .. } => (26, "set_nodelay"),
        Op::Offload { .. } => (27, "offload"),
    }
}

impl SimDriver {
    pub fn new(state: Rc<RefCell<State>>, core: usize) -> SimDriver {
        SimDriver { state, core }
    }
}

impl Driver for SimDriver {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn submit(&mut self, key: OpKey, op: Op) {
        self.state.borrow_mut().submit(self.core, key, op);
    }

    fn cancel(&mut self, key: OpKey) {
        self.state.borrow_mut().cancel(self.core, key);
    }

    fn poll(&mut self, wait: Wait, out: &mut Vec<Completion>) {
        let io = &mut self.state.borrow_mut().cores[self.core];
        assert!(
            wait == Wait::NoWait || io.dead || !io.ready.is_empty(),
            "the sim driver never waits: run executors through their world"
        );
        out.append(&mut io.ready);
    }

    fn unparker(&self) -> Arc<dyn Unpark> {
        Arc::clone(&self.state.borrow().cores[self.core].unpark) as Arc<dyn Unpark>
    }

    fn now(&self) -> Instant {
        let state = self.state.borrow();
        state.nodes[state.cores[self.core].node].clock.monotonic(state.now)
    }

    fn boottime(&self) -> Instant {
        let state = self.state.borrow();
        state.nodes[state.cores[self.core].node].clock.boottime(state.now)
    }

    fn wall_clock(&self) -> WallClock {
        let state = self.state.borrow();
        state.nodes[state.cores[self.core].node].clock.wall(state.now)
    }

    fn budget_clock(&mut self) -> Instant {
        let mut state = self.state.borrow_mut();
        if !state.cores[self.core].dead {
            state.charge_poll();
        }
        state.nodes[state.cores[self.core].node].clock.monotonic(state.now)
    }

    fn pick_task(&mut self, ready: usize) -> usize {
        let mut state = self.state.borrow_mut();
        state.steps += 1;
        let pick = if ready == 1 { 0 } else { state.schedule.index(ready) };
        let now = state.now;
        state.trace.event(now, self.core as u64, What::Task, [ready as u64, pick as u64]);
        pick
    }

    fn fill_random(&mut self, out: &mut [u8]) {
        let mut state = self.state.borrow_mut();
        let State { cores, trace, now, .. } = &mut *state;
        cores[self.core].random.fill(out);
        let first = out.first().copied().map_or(0, u64::from);
        trace.event(*now, self.core as u64, What::Random, [out.len() as u64, first]);
    }

    fn tell(&mut self, line: fmt::Arguments<'_>) {
        let mut state = self.state.borrow_mut();
        let (now, CoreIo { node, core, .. }) = (state.now, &state.cores[self.core]);
        let (node, core) = (*node, core.0);
        state.trace.line(now, format_args!("n{node}c{core} says: {line}"));
    }
}

impl State {
    fn submit(&mut self, core: usize, key: OpKey, op: Op) {
        let (kind, name) = kind_of(&op);
        self.trace.event(self.now, core as u64, What::Submit, [key.to_user_data(), kind]);
        if self.trace.is_read() {
            let (at, node, on) = (self.now, self.cores[core].node, self.cores[core].core.0);
            self.trace.line(at, format_args!("n{node}c{on} {key:?} {name}"));
        }
        if self.cores[core].dead {
            return self.complete(core, key, op, Err(Errno::CANCELED.into()), false);
        }
        match op {
            Op::Close { handle } => {
                self.close(core, handle);
                self.complete(core, key, op, Ok(OpOutput::Done), false);
            }
            Op::Listen { .. }
            | Op::Accept { .. }
            | Op::Connect { .. }
            | Op::Recv { .. }
            | Op::Send { .. }
            | Op::Shutdown { .. }
            | Op::SetNoDelay { .. } => self.submit_socket(core, key, op),
            op => {
                let at = self.now + self.latency_of(core, &op);
                self.cores[core].put_flight(key, op);
                self.events.push(at, Event::Op { core, key });
            }
        }
    }

    fn latency_of(&mut self, core: usize, op: &Op) -> u64 {
        let latencies = &self.config.latencies;
        let range = match op {
            Op::Read { .. } => &latencies.read,
            Op::Write { .. } => &latencies.write,
            Op::Sync { .. } | Op::SyncDir { .. } => &latencies.sync,
            Op::Offload { .. } => &latencies.job,
            _ => &latencies.file,
        };
        let range = range.clone();
        let node = self.cores[core].node;
        let (_, mut chaos) = self.disk_and_chaos(node);
        let latency = chaos.rng.duration(range).as_nanos() as u64;
        let stalls = !matches!(op, Op::Offload { .. }) && chaos.strikes(FaultKind::DiskStall);
        if stalls { latency + chaos.rng.below(500_000_000) } else { latency }
    }

    fn cancel(&mut self, core: usize, key: OpKey) {
        self.trace.event(self.now, core as u64, What::Cancel, [key.to_user_data(), 0]);
        let Some(flight) = self.cores[core].flight(key) else { return };
        match flight.op {
            Op::Recv { .. } | Op::Send { .. } | Op::Accept { .. } | Op::Connect { .. } => self.withdraw(core, key),
            Op::Offload { .. } => {}
            // A file op that has begun runs to its end.
            _ if self.schedule.coin() => return,
            _ => {}
        }
        if let Some(flight) = self.cores[core].take_flight(key) {
            self.complete(core, key, flight.op, Err(Errno::CANCELED.into()), false);
        }
    }

    fn close(&mut self, core: usize, handle: RawHandle) {
        match self.cores[core].release(handle) {
            Opened::File(file) => {
                let node = self.cores[core].node;
                self.nodes[node].disk.close(file, (core, handle.0));
            }
            Opened::Listener(listener) => self.close_listener(listener),
            Opened::Socket { conn, side } => self.close_socket(conn, side),
        }
    }

    /// A file op's latency is over: it takes effect, all of it at this instant. An offloaded job is for the caller to run.
    pub fn finish_op(&mut self, core: usize, key: OpKey) {
        let Some(flight) = self.cores[core].take_flight(key) else { return }; // Cancelled.
        let mut op = flight.op;
        let result = self.run_file_op(core, &mut op, false);
        self.complete(core, key, op, result, false);
    }

    fn run_file_op(&mut self, core: usize, op: &mut Op, crashing: bool) -> std::io::Result<OpOutput> {
        let node = self.cores[core].node;
        let handle = files::file_of(op);
        let file = handle.map(|handle| match self.cores[core].opened(handle) {
            Opened::File(file) => file,
            Opened::Listener(_) | Opened::Socket { .. } => unreachable!("a file op on a socket"),
        });
        let lock_owner = (core, handle.map_or(u64::MAX, |handle| handle.0));
        let now = self.nodes[node].clock.wall(self.now);
        let (disk, mut chaos) = self.disk_and_chaos(node);
        match disk.run(op, Caller { file, lock_owner, now, crashing }, &mut chaos)? {
            Effect::Plain(output) => Ok(output),
            Effect::Opened(file, direct) => {
                let file = self.cores[core].adopt(Opened::File(file));
                Ok(OpOutput::Opened { file, direct })
            }
        }
    }

    /// The core's executor is about to go: ops in flight have happened or not, and all come back.
    pub fn kill_core(&mut self, core: usize) {
        self.cores[core].dead = true;
        let mut keys: Vec<OpKey> = (0u32..)
            .zip(&self.cores[core].flights)
            .filter_map(|(slot, flight)| flight.as_ref().map(|f| OpKey { slot, generation: f.generation }))
            .collect();
        let node = self.cores[core].node;
        self.nodes[node].rng.shuffle(&mut keys);
        for key in keys {
            let Some(mut flight) = self.cores[core].take_flight(key) else { continue };
            let is_file_op = !matches!(
                flight.op,
                Op::Offload { .. } | Op::Recv { .. } | Op::Send { .. } | Op::Accept { .. } | Op::Connect { .. }
            );
            if is_file_op && self.nodes[node].rng.coin() {
                drop(self.run_file_op(core, &mut flight.op, true)); // It happened; nobody hears of it.
            }
            self.complete(core, key, flight.op, Err(Errno::CANCELED.into()), false);
        }
        // Handles that completions carry, and all others, die with the process.
        for completion in &mut self.cores[core].ready {
            completion.result = Err(Errno::CANCELED.into());
        }
    }
}
