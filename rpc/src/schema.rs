//! The message schema: what a frame's body holds, one archived root type for each message type.
//!
//! Bodies are rkyv 0.8 archives (little-endian, aligned, 32-bit relative pointers), checked with bytecheck after the
//! frame's CRC and then read in place. A [`Command`] is archived once, by the client; the very same bytes go into the
//! log, to followers and through apply. No maps and no `Rc` in wire types: their archives are not canonical.
//!
//! Changing a type here changes the wire and the log: bump [`COMMAND_SCHEMA`] or the protocol version, extend
//! PROTOCOL.md and check in new golden bytes, all in one commit.

#![allow(missing_docs, reason = "rkyv's derive emits archived variant fields without documentation")]

use crate::ids::{GrainId, Version};
use rkyv::{Archive, Deserialize, Serialize};

/// Schema version of [`Command`], carried in the frame header and in each log entry.
pub const COMMAND_SCHEMA: u16 = 1;

/// A write: one or more operations that one shard applies as a whole or not at all.
///
/// All operations must route to the same shard; otherwise the server answers `CrossShard` and writes nothing. If any
/// compare-and-set in it fails, none of its operations takes effect.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct Command {
    /// The operations, in the order they take effect. 1 to `limits::BATCH_OPS_MAX`.
    pub operations: Vec<Operation>,
}

/// One operation of a [`Command`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub enum Operation {
    /// Stores a plain value under a key.
    Put {
        /// The namespace, created on its first write. 1 to `limits::NAMESPACE_BYTES_MAX` bytes.
        namespace: String,
        /// 1 to `limits::KEY_BYTES_MAX` bytes.
        key: Vec<u8>,
        /// 0 to `limits::VALUE_BYTES_MAX` bytes.
        value: Vec<u8>,
        /// Expiry in milliseconds after the entry's timestamp; 0 means never.
        ttl_ms: u64,
    },
    /// Removes a plain value. Removing what is not there succeeds.
    Delete {
        /// The namespace.
        namespace: String,
        /// The key.
        key: Vec<u8>,
    },
    /// Stores or removes a plain value if the key is in the expected state.
    CompareAndSet {
        /// The namespace.
        namespace: String,
        /// The key.
        key: Vec<u8>,
        /// What must hold for the command to apply.
        expected: Expected,
        /// The new value; `None` removes the key.
        value: Option<Vec<u8>>,
    },
    /// Stores a grain, replacing any of the same namespace and id.
    PutGrain {
        /// The grain.
        grain: Grain,
    },
    /// Removes a grain and its index entries. Removing what is not there succeeds.
    DeleteGrain {
        /// The namespace.
        namespace: String,
        /// The grain's id.
        id: GrainId,
    },
}

impl Operation {
    /// Stores a value for ever.
    pub fn put(namespace: &str, key: &[u8], value: &[u8]) -> Operation {
        Operation::Put { namespace: namespace.to_owned(), key: key.to_vec(), value: value.to_vec(), ttl_ms: 0 }
    }

    /// Removes a value.
    pub fn delete(namespace: &str, key: &[u8]) -> Operation {
        Operation::Delete { namespace: namespace.to_owned(), key: key.to_vec() }
    }

    /// Stores or removes a value if the key is as expected.
    pub fn compare_and_set(namespace: &str, key: &[u8], expected: Expected, value: Option<&[u8]>) -> Operation {
        let (namespace, key) = (namespace.to_owned(), key.to_vec());
        Operation::CompareAndSet { namespace, key, expected, value: value.map(<[u8]>::to_vec) }
    }
}

/// The precondition of a compare-and-set.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub enum Expected {
    /// The key must not exist.
    Absent,
    /// The key must hold exactly this version.
    Version(Version),
    /// The key must hold exactly these bytes.
    Value(Vec<u8>),
}

/// A grain: the unit of memory that gristmill stores, indexes and recalls.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct Grain {
    /// Identity inside the namespace.
    pub id: GrainId,
    /// The namespace, created on its first write.
    pub namespace: String,
    /// Whom or what the grain is about. 1 to `limits::SUBJECT_BYTES_MAX` bytes.
    pub subject: String,
    /// Searched by the text leg.
    pub text: Option<String>,
    /// Searched by the vector leg. All vectors of one namespace have the same dimension, fixed by the first.
    pub vector: Option<Vec<f32>>,
    /// Searched by the relation leg; the grain's subject is the subject of each.
    pub relations: Vec<Relation>,
    /// Free labels, usable as a filter.
    pub tags: Vec<String>,
    /// Opaque bytes of the application.
    pub payload: Vec<u8>,
}

/// One relation of a grain: (grain's subject, predicate, object).
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct Relation {
    /// For example `is_a`.
    pub predicate: String,
    /// Often another grain's subject.
    pub object: String,
}

/// The answer to a write that committed.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct WriteReply {
    /// The version that the write's values now carry: its log index.
    pub version: Version,
    /// The command took effect. `false` only where a precondition failed; `failed` says which.
    pub applied: bool,
    /// The position in `operations` of the first failed precondition, and what the key held instead.
    pub failed: Option<PreconditionFailure>,
    /// The same session and sequence had been applied before; this is the first answer again.
    pub duplicate: bool,
}

/// Why a compare-and-set did not apply.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct PreconditionFailure {
    /// Position in the command's operations.
    pub operation: u32,
    /// The key's version at that moment; `None` where it did not exist.
    pub found: Option<Version>,
}

/// Asks for the plain value under one key.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct GetRequest {
    /// The namespace.
    pub namespace: String,
    /// The key.
    pub key: Vec<u8>,
}

/// The answer to [`GetRequest`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct GetReply {
    /// `None` where the key does not exist.
    pub value: Option<Versioned>,
}

/// A value with the version that wrote it.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct Versioned {
    /// The version.
    pub version: Version,
    /// The bytes.
    pub value: Vec<u8>,
}

/// Asks for one grain.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct GetGrainRequest {
    /// The namespace.
    pub namespace: String,
    /// The grain's id.
    pub id: GrainId,
}

/// The answer to [`GetGrainRequest`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct GetGrainReply {
    /// `None` where the grain does not exist.
    pub grain: Option<Grain>,
    /// The version of the grain; zero where it does not exist.
    pub version: Version,
}

/// Asks for plain values of one namespace in key order.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct ScanRequest {
    /// The namespace.
    pub namespace: String,
    /// First key, inclusive; empty means from the beginning.
    pub start: Vec<u8>,
    /// Last key, exclusive; empty means to the end.
    pub end: Vec<u8>,
    /// Only keys that begin with this.
    pub prefix: Vec<u8>,
    /// At most this many; 0 means `limits::SCAN_ITEMS_MAX`. The server may return fewer, so that the reply fits a frame.
    pub limit: u32,
    /// From the last key to the first.
    pub reverse: bool,
}

/// The answer to [`ScanRequest`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct ScanReply {
    /// Key, version and value, in the order asked for.
    pub items: Vec<ScanItem>,
    /// There is more: ask again beyond the last key returned.
    pub more: bool,
}

/// One item of a [`ScanReply`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct ScanItem {
    /// The key.
    pub key: Vec<u8>,
    /// The version that wrote it.
    pub version: Version,
    /// The bytes.
    pub value: Vec<u8>,
}

/// Asks for the best grains of one namespace. At least one of text, vector and relation must be given.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct RecallRequest {
    /// The namespace.
    pub namespace: String,
    /// Words for the text leg.
    pub text: Option<String>,
    /// A query for the vector leg, of the namespace's dimension.
    pub vector: Option<Vec<f32>>,
    /// A pattern for the relation leg.
    pub relation: Option<RelationPattern>,
    /// Only grains that carry all of these tags.
    pub tags: Vec<String>,
    /// Only grains of this subject; empty means any.
    pub subject: String,
    /// How many hits; 0 means `limits::RECALL_HITS_DEFAULT`.
    pub limit: u32,
    /// Candidates that each leg contributes; 0 means `limits::RECALL_CANDIDATES_DEFAULT`.
    pub candidates: u32,
    /// Return the grains with the hits: whole grains, best hits first, while they fit into one answer.
    pub with_grains: bool,
}

impl RecallRequest {
    /// A recall without legs and filters, of the default size: name at least one leg before it is sent.
    pub fn new(namespace: impl Into<String>) -> RecallRequest {
        RecallRequest {
            namespace: namespace.into(),
            text: None,
            vector: None,
            relation: None,
            tags: Vec::new(),
            subject: String::new(),
            limit: 0,
            candidates: 0,
            with_grains: false,
        }
    }
}

/// A pattern over (subject, predicate, object); an empty part matches anything, but one must be given.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct RelationPattern {
    /// The subject, or empty.
    pub subject: String,
    /// The predicate, or empty.
    pub predicate: String,
    /// The object, or empty.
    pub object: String,
}

/// The answer to [`RecallRequest`], best first.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct RecallReply {
    /// The hits, by falling score, ties by id.
    pub hits: Vec<SearchHit>,
    /// Live grains in the namespace when the recall ran.
    pub grains: u64,
}

/// One hit of a recall.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct SearchHit {
    /// The grain's id.
    pub id: GrainId,
    /// The grain's subject.
    pub subject: String,
    /// Fused score: the sum over legs of 1 / (60 + rank).
    pub score: f32,
    /// Position in the answer, from 1.
    pub rank: u32,
    /// What the text leg said, where it found the grain.
    pub text: Option<LegHit>,
    /// What the vector leg said (score = cosine similarity in f32).
    pub vector: Option<LegHit>,
    /// What the relation leg said (score = number of matching relations).
    pub relation: Option<LegHit>,
    /// The grain, where it was asked for and fits: the grains of one answer take 6 MiB at the most, and a hit whose grain
    /// finds no room comes without. `GetGrain` brings it.
    pub grain: Option<Grain>,
}

/// One leg's opinion of a hit.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq)]
#[rkyv(derive(Debug))]
pub struct LegHit {
    /// Position among the leg's candidates, from 1.
    pub rank: u32,
    /// The leg's own score.
    pub score: f32,
}

/// Opens a connection: the first frame that a client sends.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct Hello {
    /// Lowest protocol version that the client speaks.
    pub version_min: u16,
    /// Highest protocol version that the client speaks.
    pub version_max: u16,
    /// Names the client in logs.
    pub client: String,
}

/// The answer to [`Hello`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct HelloReply {
    /// The protocol version in force from now on.
    pub version: u16,
    /// Names the server, for example `gristmill 0.1.0`.
    pub server: String,
    /// Identity of the server's data directory.
    pub store: [u8; 16],
    /// Number of shards, fixed when the data directory was created.
    pub shards: u32,
    /// Virtual nodes per shard on the ring that maps namespaces to shards.
    pub ring_vnodes: u32,
    /// The TCP port of each core, by core number.
    pub core_ports: Vec<u16>,
    /// The core that owns each shard, by shard number.
    pub shard_cores: Vec<u16>,
    /// Largest frame body that the server accepts, in bytes.
    pub frame_body_bytes_max: u32,
    /// Largest number of requests in flight on one connection.
    pub in_flight_max: u32,
}

/// Asks for the server's state.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct StatusRequest {
    /// Include every metric, not only the summary.
    pub verbose: bool,
}

/// The answer to [`StatusRequest`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct StatusReply {
    /// One JSON object; its fields are documented in PROTOCOL.md.
    pub json: String,
}

/// A request that failed. The code decides what a program does; the message is for people.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct ErrorReply {
    /// An [`crate::error::ErrorCode`] as its number; unknown numbers are kept.
    pub code: u16,
    /// The same request may succeed later, unchanged.
    pub retriable: bool,
    /// Wait at least this long before trying again; 0 means no advice.
    pub retry_after_ms: u32,
    /// What happened, to what, and what to do.
    pub message: String,
}
