//! Identifiers that appear on the wire. Fixed width, little-endian once archived, never `usize`.

use rkyv::{Archive, Deserialize, Serialize};

/// A shard: one Raft group and the state behind it. Dense from 0 to the number of shards less one.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[rkyv(derive(Debug, Clone, Copy, PartialEq, Eq))]
pub struct ShardId(pub u32);

impl ShardId {
    /// "Route it for me": the server picks the shard from the request's namespace.
    pub const ANY: ShardId = ShardId(u32::MAX);
}

/// A grain's identity inside its namespace, chosen by the writer. Writing the same id again replaces the grain.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[rkyv(derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord))]
pub struct GrainId(pub [u8; 16]);

/// A client session. Together with a sequence number it makes a retried write apply once. Zero means "none".
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[rkyv(derive(Debug, Clone, Copy, PartialEq, Eq))]
pub struct SessionId(pub u64);

impl SessionId {
    /// No session: the write is not deduplicated.
    pub const NONE: SessionId = SessionId(0);
}

/// The version of a value: the Raft log index that wrote it. Grows along a shard's history; zero never occurs.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[rkyv(derive(Debug, Clone, Copy, PartialEq, Eq))]
pub struct Version(pub u64);
