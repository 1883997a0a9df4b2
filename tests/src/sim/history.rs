//! What clients asked and what they were told: the history that checkers judge.
//!
//! Every request has the moments of its first sending and of its last answer, as numbers of one counter: no two events are
//! simultaneous. An outcome is one of
//!
//! | outcome | what is known |
//! |---|---|
//! | applied | it took effect once, between the two moments |
//! | precondition failed | nothing changed, and the key was not as expected at some moment between the two |
//! | not applied | the server said so and no sending of it is unaccounted for: it has no effect, ever |
//! | unknown | it may take effect at any moment after the first sending, or never |
//!
//! Values are unique: the number in each names the write it comes from, so a read says which write it saw.

use gristmill_rpc::ids::{ShardId, Version};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A moment: counts events of the whole history.
pub type Moment = u64;

/// The number in a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub u64);

/// A key of the workload: the number of its namespace, and its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId {
    /// The namespace's number.
    pub space: u16,
    /// The key's number in it.
    pub key: u16,
}

/// What a compare-and-set expects. A version that the client has seen is noted as the value that it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// No value.
    Absent,
    /// This value.
    Value(ValueId),
}

/// One change of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Stores.
    Put(ValueId),
    /// Removes.
    Delete,
    /// Stores or removes, if the key is as expected.
    Swap {
        /// The expectation.
        expected: Expect,
        /// What to store; `None` removes.
        new: Option<ValueId>,
    },
}

/// One change of a grain. Each grain is written by one client alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrainChange {
    /// Stores it with this word in its text and nowhere else.
    Put(ValueId),
    /// Removes it.
    Delete,
}

/// A grain of the workload: the number of its namespace, and its own.
pub type GrainKey = KeyId;

/// How a write ended for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteEnd {
    /// It took effect.
    Applied {
        /// The log index of its entry.
        version: Version,
        /// The answer was that to an earlier sending.
        duplicate: bool,
    },
    /// A precondition failed.
    Failed {
        /// The log index of its entry.
        version: Version,
        /// Position among the changes.
        operation: usize,
        /// The version that the key held; `None` where there was none.
        found: Option<Version>,
    },
    /// It has no effect.
    NotApplied,
    /// It may have an effect.
    Unknown,
}

/// A write: one command.
#[derive(Clone, Debug)]
pub struct WriteRecord {
    /// Who.
    pub client: u16,
    /// The client's session.
    pub session: u64,
    /// The sequence in it.
    pub sequence: u64,
    /// Where it routes to.
    pub shard: ShardId,
    /// First sending.
    pub invoked: Moment,
    /// Last answer, or when the client gave up.
    pub returned: Moment,
    /// Changes of keys, in the command's order.
    pub changes: Vec<(KeyId, Change)>,
    /// Changes of grains.
    pub grains: Vec<(GrainKey, GrainChange)>,
    /// How it ended.
    pub end: WriteEnd,
}

/// What a read saw under one key.
pub type Seen = Option<(ValueId, Version)>;

/// A read of plain values that was answered: one key, or a range of them.
#[derive(Clone, Debug)]
pub struct ReadRecord {
    /// Who.
    pub client: u16,
    /// First sending.
    pub invoked: Moment,
    /// The answer.
    pub returned: Moment,
    /// Every key that it says something about.
    pub seen: Vec<(KeyId, Seen)>,
}

/// A read of one grain that was answered: by its id, or by a recall of its word.
#[derive(Clone, Debug)]
pub struct GrainRead {
    /// Who.
    pub client: u16,
    /// First sending.
    pub invoked: Moment,
    /// The answer.
    pub returned: Moment,
    /// The grain.
    pub grain: GrainKey,
    /// A recall of this word; `None`: read by its id.
    pub recalled: Option<ValueId>,
    /// The word in the grain's text; `None` where it was not there or not found.
    pub found: Option<ValueId>,
}

/// One record.
#[derive(Clone, Debug)]
pub enum Record {
    /// A write.
    Write(WriteRecord),
    /// A read of plain values.
    Read(ReadRecord),
    /// A read of a grain.
    Grain(GrainRead),
    /// Something that an answer must never be, whatever happened before.
    Absurd(String),
}

#[derive(Default)]
struct Inner {
    moment: Moment,
    records: Vec<Record>,
    acked: u64,
    answered: BTreeMap<u16, u64>,
    hash: u64,
}

/// The history of a run. Clones share it.
#[derive(Clone, Default)]
pub struct History(Rc<RefCell<Inner>>);

impl History {
    /// The next moment.
    pub fn moment(&self) -> Moment {
        let mut inner = self.0.borrow_mut();
        inner.moment += 1;
        inner.moment
    }

    /// Adds a record at its last moment.
    pub fn add(&self, record: Record) {
        let mut inner = self.0.borrow_mut();
        inner.fold(&record);
        let answered = match &record {
            Record::Write(write) => {
                let settled = matches!(write.end, WriteEnd::Applied { .. } | WriteEnd::Failed { .. });
                inner.acked += u64::from(settled);
                settled.then_some(write.client)
            }
            Record::Read(read) => Some(read.client),
            Record::Grain(read) => Some(read.client),
            Record::Absurd(_) => None,
        };
        if let Some(client) = answered {
            *inner.answered.entry(client).or_default() += 1;
        }
        inner.records.push(record);
    }

    /// Writes that were answered for good.
    pub fn acked(&self) -> u64 {
        self.0.borrow().acked
    }

    /// Requests of one client that were answered.
    pub fn answered(&self, client: u16) -> u64 {
        self.0.borrow().answered.get(&client).copied().unwrap_or_default()
    }

    /// Records so far.
    pub fn len(&self) -> usize {
        self.0.borrow().records.len()
    }

    /// Whether nothing was noted yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All records, in the order of their last moments.
    pub fn records(&self) -> Vec<Record> {
        self.0.borrow().records.clone()
    }

    /// One number for all of it: part of a run's trace hash.
    pub fn hash(&self) -> u64 {
        self.0.borrow().hash
    }
}

impl Inner {
    /// FNV-1a over words, as the simulator's trace does it.
    fn fold(&mut self, record: &Record) {
        let mut words: Vec<u64> = Vec::with_capacity(8);
        match record {
            Record::Write(write) => {
                let (end, version) = match write.end {
                    WriteEnd::Applied { version, duplicate } => (1 + u64::from(duplicate), version.0),
                    WriteEnd::Failed { version, operation, found } => {
                        words.extend([operation as u64, found.map_or(0, |found| found.0)]);
                        (3, version.0)
                    }
                    WriteEnd::NotApplied => (4, 0),
                    WriteEnd::Unknown => (5, 0),
                };
                let who = [u64::from(write.client), write.sequence, write.invoked, write.returned];
                words.extend(who.into_iter().chain([end, version]));
            }
            Record::Read(read) => {
                words.extend([6, u64::from(read.client), read.invoked, read.returned]);
                for (key, seen) in &read.seen {
                    let (value, version) = seen.map_or((0, 0), |(value, version)| (value.0, version.0));
                    words.extend([u64::from(key.space) << 16 | u64::from(key.key), value, version]);
                }
            }
            Record::Grain(read) => {
                let found = read.found.map_or(0, |word| word.0);
                words.extend([7, u64::from(read.client), read.invoked, read.returned, found]);
            }
            Record::Absurd(text) => words.extend([8, text.len() as u64]),
        }
        for word in words {
            self.hash = (self.hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
        }
    }
}
