//! Whole-group tests: openraft's storage suite, groups of one voter, restarts, three contexts on one type configuration.
#![allow(clippy::unwrap_used, reason = "tests")]

mod contexts;
mod durable;
mod groups;
mod storage_suite;

use super::*;
use crate::state::envelope::{Codec, EntryFlags, EntryHeader, NONCE_BYTES};
use crate::state::hlc::Hlc;
use gristmill_rpc::body::Body;
use gristmill_rpc::ids::{SessionId, ShardId};
use gristmill_shardexec::{Executor, ExecutorConfig, IoChoice};
use gristmill_wal::LogPosition;
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

/// Runs a future on an executor of its own over the posix driver.
fn on_executor<F: Future>(future: F) -> F::Output {
    let config = ExecutorConfig { io: IoChoice::Posix, ..ExecutorConfig::default() };
    Executor::start(config).unwrap().block_on(future)
}

fn config() -> GroupConfig {
    GroupConfig { shard: ShardId(7), replica: ReplicaId { node: 3, incarnation: 1 }, settings: RaftSettings::default() }
}

fn header() -> EntryHeader {
    EntryHeader {
        shard: ShardId(0),
        term: 0,
        index: 0,
        token: 0,
        hlc: Hlc { physical_ms: 1_700_000_000_000, logical: 0 },
        session: SessionId(1),
        sequence: 0,
        schema: 1,
        codec: Codec::Rkyv,
        key_id: 0,
        nonce: [0; NONCE_BYTES],
        flags: EntryFlags::NONE,
    }
}

fn proposal(body: &[u8]) -> Proposal {
    Proposal { header: header(), body: Body::copy_from(body) }
}

/// Remembers every entry that it is given; answers with the number of commands so far.
#[derive(Default)]
struct Journal {
    applied: Option<LogPosition>,
    commands: Vec<(EntryHeader, Vec<u8>)>,
    batches: Vec<usize>,
}

#[derive(Clone, Default)]
struct SharedJournal(Rc<RefCell<Journal>>);

impl SharedJournal {
    fn boxed(&self) -> Box<dyn StateMachine> {
        Box::new(self.clone())
    }

    fn bodies(&self) -> Vec<Vec<u8>> {
        self.0.borrow().commands.iter().map(|(_, body)| body.clone()).collect()
    }
}

impl StateMachine for SharedJournal {
    fn applied(&self) -> Option<LogPosition> {
        self.0.borrow().applied
    }

    fn apply(&mut self, batch: &[Committed<'_>], out: &mut Vec<Outcome>) -> Result<(), ApplyError> {
        let journal = &mut *self.0.borrow_mut();
        journal.batches.push(batch.len());
        for entry in batch {
            journal.applied = Some(entry.position);
            let Some((header, body)) = entry.command else {
                out.push(Outcome::EMPTY);
                continue;
            };
            assert_ne!(body.as_slice(), b"bomb", "it went off");
            if body.as_slice() == b"poison" {
                return Err(ApplyError { index: entry.position.index, reason: "poison".to_owned() });
            }
            journal.commands.push((*header, body.to_vec()));
            out.push(Outcome::from_bytes(&(journal.commands.len() as u64).to_le_bytes()));
        }
        Ok(())
    }
}
