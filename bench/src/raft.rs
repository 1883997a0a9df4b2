//! Proposals through consensus: one shard of one voter, on the log or in memory.
//!
//! ```text
//!   LANES tasks, each with a batch in flight ─► Group::propose_many ─► log ─► durable ─► apply ─► outcomes
//! ```
//!
//! As many proposals are in flight as asked; they travel in batches, as a shard's proposer sends them.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use gristmill::metrics::Registry;
use gristmill::raft::{
    ApplyError, Committed, Group, GroupConfig, GroupStore, MemoryLog, Outcome, Proposal, RaftSettings, ReplicaId,
    StateMachine, WalLog, WalLogOptions,
};
use gristmill::state::apply::{Hooks, ShardState};
use gristmill::state::envelope::{Codec, EntryFlags, EntryHeader, NONCE_BYTES};
use gristmill::state::hlc::Hlc;
use gristmill::state::memory::MemoryStore;
use gristmill::state::ranges::OwnedRanges;
use gristmill::state::replica::ReplicaState;
use gristmill_rpc::body::{Body, archive};
use gristmill_rpc::ids::{SessionId, ShardId};
use gristmill_rpc::schema::{COMMAND_SCHEMA, Command, Operation};
use gristmill_shardexec::{Class, Executor, ExecutorConfig, IoChoice, driver_name, spawn};
use gristmill_wal::{LogNumber, LogPosition, Wal, WalOptions};

/// Batches in flight at once; the proposals in flight are spread over them.
const LANES: usize = 8;

/// Keys that are written in turn.
const KEYS: usize = 4096;

const SHARD: ShardId = ShardId(0);

/// Where the group keeps its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// On a log in the folder.
    Wal,
    /// In memory: consensus alone.
    Memory,
}

/// What committed entries do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// Counts them: what is measured is consensus and the log.
    Counter,
    /// The real state of a shard, each entry a put of a plain value in a client session.
    State,
}

/// A group on an executor of its own.
pub struct GroupUnderTest {
    executor: Executor,
    group: Group,
    wal: Option<Wal>,
    commands: Rc<[Body]>,
    sequence: Rc<Cell<u64>>,
    /// `uring` or `posix`.
    pub driver: &'static str,
}

/// Answers nothing; remembers how far it is.
struct Counter {
    applied: Option<LogPosition>,
}

impl StateMachine for Counter {
    fn applied(&self) -> Option<LogPosition> {
        self.applied
    }

    fn apply(&mut self, batch: &[Committed<'_>], out: &mut Vec<Outcome>) -> Result<(), ApplyError> {
        self.applied = batch.last().map(|entry| entry.position);
        out.extend(batch.iter().map(|_| Outcome::EMPTY));
        Ok(())
    }
}

fn state_of_a_shard() -> ReplicaState {
    let state = ShardState::create(SHARD, &OwnedRanges::all(), MemoryStore::new(), Hooks::default());
    let mut replica = ReplicaState::new(state.expect("an empty store takes its first record"));
    replica.measure(&Registry::new(0));
    replica
}

/// Puts of `bytes` each, archived as a client does.
fn commands(bytes: usize) -> Rc<[Body]> {
    let put = |key: usize| {
        let (namespace, key, value) = ("bench".into(), (key as u64).to_le_bytes().to_vec(), vec![7; bytes]);
        archive(&Command { operations: vec![Operation::Put { namespace, key, value, ttl_ms: 0 }] })
    };
    (0..KEYS).map(put).collect()
}

impl GroupUnderTest {
    /// Starts a group of one voter whose log, if it is on disk, lies in `dir`. Each command puts `bytes`.
    pub fn start(dir: &Path, store: Store, machine: Machine, bytes: usize) -> GroupUnderTest {
        let config = ExecutorConfig { io: IoChoice::Auto, ..ExecutorConfig::default() };
        let mut executor = Executor::start(config).expect("a driver");
        let (group, wal, driver) = executor.block_on(async {
            let (store, wal) = match store {
                Store::Memory => (GroupStore::from(MemoryLog::new(SHARD)), None),
                Store::Wal => {
                    let opened = Wal::open(dir, LogNumber(0), WalOptions::default()).await;
                    let (wal, _) = opened.expect("an empty directory");
                    (WalLog::new(wal.clone(), SHARD, WalLogOptions::default()).into(), Some(wal))
                }
            };
            let machine: Box<dyn StateMachine> = match machine {
                Machine::Counter => Box::new(Counter { applied: None }),
                Machine::State => Box::new(state_of_a_shard()),
            };
            let replica = ReplicaId { node: 1, incarnation: 1 };
            let config = GroupConfig { shard: SHARD, replica, settings: RaftSettings::default() };
            let group = Group::start(config, store, machine).expect("a new group");
            group.ready().await.expect("the group serves");
            (group, wal, driver_name())
        });
        GroupUnderTest { executor, group, wal, commands: commands(bytes), sequence: Rc::default(), driver }
    }

    /// Proposals a second, each durable (if the log is) and applied, with `in_flight` of them under way in batches.
    pub fn proposals_per_s(&mut self, in_flight: usize, span: Duration) -> f64 {
        let lanes = LANES.min(in_flight);
        self.run(lanes, in_flight / lanes, span)
    }

    /// The same, each proposal a batch of its own.
    pub fn single_proposals_per_s(&mut self, in_flight: usize, span: Duration) -> f64 {
        self.run(in_flight, 1, span)
    }

    fn run(&mut self, lanes: usize, batch: usize, span: Duration) -> f64 {
        let (group, commands, sequence) = (self.group.clone(), self.commands.clone(), self.sequence.clone());
        self.executor.block_on(async move {
            let began = Instant::now();
            let tasks: Vec<_> = (0..lanes)
                .map(|_| {
                    let (group, commands, sequence) = (group.clone(), commands.clone(), sequence.clone());
                    spawn(Class::Raft, "proposer", async move {
                        let mut proposed = 0;
                        while began.elapsed() < span {
                            let proposals = (0..batch).map(|_| next_proposal(&commands, &sequence)).collect();
                            for outcome in group.propose_many(proposals).await {
                                outcome.expect("a proposal succeeds");
                            }
                            proposed += batch;
                        }
                        proposed
                    })
                })
                .collect();
            let mut proposed = 0;
            for task in tasks {
                proposed += task.await.expect("proposers do not panic");
            }
            proposed as f64 / began.elapsed().as_secs_f64()
        })
    }
}

impl Drop for GroupUnderTest {
    fn drop(&mut self) {
        let (group, wal) = (self.group.clone(), self.wal.take());
        self.executor.block_on(async move {
            group.shutdown().await;
            if let Some(wal) = wal {
                wal.close().await.expect("the log closes");
            }
        });
    }
}

fn next_proposal(commands: &[Body], sequence: &Cell<u64>) -> Proposal {
    let next = sequence.get() + 1;
    sequence.set(next);
    let header = EntryHeader {
        shard: SHARD,
        term: 0,
        index: 0,
        token: 0,
        hlc: Hlc { physical_ms: 1_700_000_000_000 + next / 1000, logical: 0 },
        session: SessionId(1),
        sequence: next,
        schema: COMMAND_SCHEMA,
        codec: Codec::Rkyv,
        key_id: 0,
        nonce: [0; NONCE_BYTES],
        flags: EntryFlags::NONE,
    };
    Proposal { header, body: commands[next as usize % commands.len()].clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_runs_at_smoke_size() {
        let dir = crate::disk::scratch();
        for (name, store) in [("disk", Store::Wal), ("memory", Store::Memory)] {
            for machine in [Machine::Counter, Machine::State] {
                let dir = dir.path().join(format!("{name}-{machine:?}"));
                let mut group = GroupUnderTest::start(&dir, store, machine, 128);
                let span = Duration::from_millis(30);
                let figures = [group.proposals_per_s(64, span), group.single_proposals_per_s(16, span)];
                assert!(figures.iter().all(|figure| figure.is_finite() && *figure > 0.0), "{figures:?}");
            }
        }
    }
}
