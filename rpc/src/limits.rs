//! Limits of the protocol, in one place, with the relations between them asserted at compile time.

/// Bytes of a frame header. A multiple of 16, so that a body after it stays 16-byte aligned.
pub const FRAME_HEADER_BYTES: usize = 64;
/// Bytes of the largest frame body.
pub const FRAME_BODY_BYTES_MAX: u32 = 8 << 20;
/// Bytes of the longest namespace name.
pub const NAMESPACE_BYTES_MAX: usize = 255;
/// Bytes of the longest key.
pub const KEY_BYTES_MAX: usize = 4 << 10;
/// Bytes of the largest plain value.
pub const VALUE_BYTES_MAX: usize = 4 << 20;
/// Bytes of the longest subject, predicate or object.
pub const SUBJECT_BYTES_MAX: usize = 1 << 10;
/// Bytes of the longest grain text.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Bytes of the largest grain payload.
pub const PAYLOAD_BYTES_MAX: usize = 4 << 20;
/// Relations of one grain.
pub const RELATIONS_MAX: usize = 1024;
/// Tags of one grain or of one recall.
pub const TAGS_MAX: usize = 256;
/// Bytes of the longest tag.
pub const TAG_BYTES_MAX: usize = 255;
/// Dimensions of the longest vector.
pub const VECTOR_DIMENSIONS_MAX: usize = 4096;
/// Operations of one command.
pub const BATCH_OPS_MAX: usize = 4096;
/// Items of one scan reply.
pub const SCAN_ITEMS_MAX: u32 = 10_000;
/// Hits of a recall that names no number.
pub const RECALL_HITS_DEFAULT: u32 = 20;
/// Hits of a recall at the most.
pub const RECALL_HITS_MAX: u32 = 1_000;
/// Candidates that each leg of a recall contributes unless told otherwise.
pub const RECALL_CANDIDATES_DEFAULT: u32 = 200;
/// Candidates of a leg at the most.
pub const RECALL_CANDIDATES_MAX: u32 = 1_000;
/// Requests in flight on one connection.
pub const IN_FLIGHT_MAX: u32 = 4096;
/// Bytes of request bodies in flight on one connection; further requests are answered `Overloaded`.
pub const IN_FLIGHT_BYTES_MAX: u64 = 64 << 20;
/// Bytes of replies that wait on one connection before the server reads no further requests from it.
pub const OUTPUT_BYTES_HIGH: usize = 16 << 20;
/// Bytes of replies that one connection may owe its client: those that wait, those on their way, and for every request in
/// flight the largest reply that it may get. Above, the server reads no further requests from it.
pub const REPLIES_BYTES_MAX: usize = 128 << 20;
/// The advice with `Overloaded` on one connection, in milliseconds: about the time that a full pipeline needs to drain.
pub const OVERLOAD_RETRY_AFTER_MS: u32 = 5;
/// Bytes of a frame body before the hello is through.
pub const HELLO_BODY_BYTES_MAX: u32 = 4 << 10;
/// Bytes of the name by which a client introduces itself.
pub const CLIENT_NAME_BYTES_MAX: usize = 255;
/// Bytes of an error's message.
pub const ERROR_MESSAGE_BYTES_MAX: usize = 2 << 10;
/// Levels of references in a valid archive of any message. The deepest has 5: recall reply, hits, relations, string.
pub const ARCHIVE_DEPTH_MAX: usize = 8;
/// Smallest Euclidean length of a vector: below, its square vanishes in f32 and the cosine is undefined.
pub const VECTOR_NORM_MIN: f64 = 1e-15;
/// Largest Euclidean length of a vector: its square and the products with others like it stay well inside f32.
pub const VECTOR_NORM_MAX: f64 = 1e15;
/// Cores of one server.
pub const CORES_MAX: usize = 1024;
/// Shards of one store.
pub const SHARDS_MAX: u32 = 4096;
/// Virtual nodes per shard on the ring, unless a store was created with another number.
pub const RING_VNODES_DEFAULT: u32 = 150;
/// Virtual nodes per shard at the most.
pub const RING_VNODES_MAX: u32 = 1024;
/// Answers that a shard remembers for each session: a write may be retried until this many later sequences of its
/// session were issued, so a client keeps fewer than this many writes of one session unresolved.
pub const SESSION_WINDOW: u64 = 4096;
/// Entries of one append.
pub const APPEND_ENTRIES_MAX: usize = 4096;
/// Bytes that an entry takes in an append besides its body, padding included.
pub const APPEND_ENTRY_OVERHEAD_BYTES: usize = 152;
/// Bytes of the largest command in a log that is replicated, its entry header included: it must fit into one append.
pub const REPLICATED_ENTRY_BYTES_MAX: usize = FRAME_BODY_BYTES_MAX as usize - (4 << 10);
/// Voters of one shard.
pub const VOTERS_MAX: usize = 7;

const _: () = assert!(FRAME_HEADER_BYTES.is_multiple_of(16));
const _: () =
    assert!(HELLO_BODY_BYTES_MAX < FRAME_BODY_BYTES_MAX && FRAME_BODY_BYTES_MAX as u64 <= IN_FLIGHT_BYTES_MAX);
const _: () = assert!(OUTPUT_BYTES_HIGH + 2 * FRAME_BODY_BYTES_MAX as usize <= REPLIES_BYTES_MAX);
const _: () = assert!(CLIENT_NAME_BYTES_MAX + 64 < HELLO_BODY_BYTES_MAX as usize);
const _: () = assert!(VALUE_BYTES_MAX + KEY_BYTES_MAX + NAMESPACE_BYTES_MAX + 1024 < FRAME_BODY_BYTES_MAX as usize);
const _: () = assert!(PAYLOAD_BYTES_MAX + TEXT_BYTES_MAX + 4 * VECTOR_DIMENSIONS_MAX < FRAME_BODY_BYTES_MAX as usize);
const _: () = assert!(RECALL_HITS_DEFAULT <= RECALL_HITS_MAX && RECALL_HITS_DEFAULT <= RECALL_CANDIDATES_DEFAULT);
const _: () = assert!(RECALL_CANDIDATES_DEFAULT <= RECALL_CANDIDATES_MAX);
