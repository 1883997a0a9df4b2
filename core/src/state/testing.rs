//! What the tests of the state share.

use super::apply::{ApplyError, Entry, ShardState};
use super::envelope::{Codec, EntryFlags, EntryHeader, NONCE_BYTES};
use super::hlc::Hlc;
use super::key::Stamp;
use super::memory::MemoryStore;
use super::outcome::WriteOutcome;
use super::record::Position;
use super::store::{Direction, KeyRange, Store};
use core::fmt::Write;
use core::ops::ControlFlow;
use gristmill_rpc::body::{Body, archive};
use gristmill_rpc::ids::{GrainId, SessionId, ShardId};
use gristmill_rpc::schema::{COMMAND_SCHEMA, Command, Expected, Grain, Operation};

/// Bytes as lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").expect("a String takes all");
        out
    })
}

/// All records of a store.
pub(crate) fn dump(store: &MemoryStore) -> Vec<(Vec<u8>, Stamp, Vec<u8>)> {
    let mut out = Vec::new();
    let mut visit = |key: &[u8], record: super::store::RecordRef<'_>| {
        out.push((key.to_vec(), record.stamp, record.value.to_vec()));
        ControlFlow::Continue(())
    };
    store.scan(&KeyRange::all(), Direction::Forward, &mut visit).expect("memory does not fail");
    out
}

/// An entry that owns its parts.
#[derive(Debug, Clone)]
pub(crate) struct OwnedEntry {
    pub(crate) position: Position,
    pub(crate) command: Option<(EntryHeader, Body)>,
}

impl OwnedEntry {
    /// A command without a session.
    pub(crate) fn command(index: u64, now_ms: u64, operations: Vec<Operation>) -> OwnedEntry {
        let header = EntryHeader {
            shard: ShardId(0),
            term: 1,
            index,
            token: 1 << 32,
            hlc: Hlc { physical_ms: now_ms, logical: 0 },
            session: SessionId::NONE,
            sequence: 0,
            schema: COMMAND_SCHEMA,
            codec: Codec::Rkyv,
            key_id: 0,
            nonce: [0; NONCE_BYTES],
            flags: EntryFlags::NONE,
        };
        let body = archive(&Command { operations });
        OwnedEntry { position: Position { term: 1, index }, command: Some((header, body)) }
    }

    /// A sweep.
    pub(crate) fn sweep(index: u64, now_ms: u64) -> OwnedEntry {
        OwnedEntry::command(index, now_ms, vec![]).with(|header| {
            header.codec = Codec::Empty;
            header.flags = EntryFlags::SWEEP;
        })
    }

    /// One of consensus's own entries.
    pub(crate) fn blank(index: u64) -> OwnedEntry {
        OwnedEntry { position: Position { term: 1, index }, command: None }
    }

    /// In a session.
    pub(crate) fn in_session(self, session: u64, sequence: u64) -> OwnedEntry {
        self.with(|header| (header.session, header.sequence) = (SessionId(session), sequence))
    }

    /// With a changed header.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut EntryHeader)) -> OwnedEntry {
        change(&mut self.command.as_mut().expect("a command").0);
        self
    }

    fn borrow(&self) -> Entry<'_> {
        let command = self.command.as_ref().map(|(header, body)| (header, body.as_slice()));
        Entry { position: self.position, command }
    }
}

/// Applies entries as one batch.
pub(crate) fn try_apply(
    state: &mut ShardState<MemoryStore>,
    entries: &[OwnedEntry],
) -> Result<Vec<Option<WriteOutcome>>, ApplyError> {
    let entries: Vec<_> = entries.iter().map(OwnedEntry::borrow).collect();
    let mut out = Vec::new();
    state.apply(&entries, &mut out).map(|()| out)
}

/// Applies one command to a state at its next index and returns its outcome.
pub(crate) fn run(state: &mut ShardState<MemoryStore>, now_ms: u64, operations: Vec<Operation>) -> WriteOutcome {
    let index = state.applied().map_or(1, |applied| applied.index + 1);
    let entry = OwnedEntry::command(index, now_ms, operations);
    try_apply(state, &[entry]).expect("applies")[0].expect("a command has an outcome")
}

pub(crate) fn put(namespace: &str, key: &[u8], value: &[u8]) -> Operation {
    put_for(namespace, key, value, 0)
}

pub(crate) fn put_for(namespace: &str, key: &[u8], value: &[u8], ttl_ms: u64) -> Operation {
    Operation::Put { namespace: namespace.into(), key: key.into(), value: value.into(), ttl_ms }
}

pub(crate) fn delete(namespace: &str, key: &[u8]) -> Operation {
    Operation::Delete { namespace: namespace.into(), key: key.into() }
}

pub(crate) fn cas(namespace: &str, key: &[u8], expected: Expected, value: Option<&[u8]>) -> Operation {
    let value = value.map(<[u8]>::to_vec);
    Operation::CompareAndSet { namespace: namespace.into(), key: key.into(), expected, value }
}

pub(crate) fn grain(namespace: &str, id: u8, subject: &str, vector: Option<Vec<f32>>) -> Grain {
    Grain {
        id: GrainId([id; 16]),
        namespace: namespace.into(),
        subject: subject.into(),
        text: None,
        vector,
        relations: vec![],
        tags: vec![],
        payload: vec![],
    }
}

pub(crate) fn put_grain(grain: Grain) -> Operation {
    Operation::PutGrain { grain }
}

pub(crate) fn delete_grain(namespace: &str, id: u8) -> Operation {
    Operation::DeleteGrain { namespace: namespace.into(), id: GrainId([id; 16]) }
}
