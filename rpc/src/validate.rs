//! What a request must keep to, beyond being a valid archive: the one place where server and clients check it.
//!
//! ```text
//!   body ── access (bytes) ──▶ archived request ── here (meaning) ──▶ shard
//! ```
//!
//! Everything reads the archived form in place and allocates only to word a rejection. Each rejection names the
//! offending part, what is allowed and, where it is not obvious, what to do.

use std::fmt;

use crate::body::{Body, BodyError, access};
use crate::error::{ErrorCode, Rejection};
use crate::frame::{FrameHeader, MessageType};
use crate::ids::ShardId;
use crate::limits::{
    APPEND_ENTRIES_MAX, BATCH_OPS_MAX, CLIENT_NAME_BYTES_MAX, CORES_MAX, HELLO_BODY_BYTES_MAX, KEY_BYTES_MAX,
    NAMESPACE_BYTES_MAX, PAYLOAD_BYTES_MAX, RECALL_CANDIDATES_MAX, RECALL_HITS_MAX, RELATIONS_MAX, RING_VNODES_MAX,
    SCAN_ITEMS_MAX, SHARDS_MAX, SUBJECT_BYTES_MAX, TAG_BYTES_MAX, TAGS_MAX, TEXT_BYTES_MAX, VALUE_BYTES_MAX,
    VECTOR_DIMENSIONS_MAX, VECTOR_NORM_MAX, VECTOR_NORM_MIN, VOTERS_MAX,
};
use crate::peer::{
    ArchivedAddLearner, ArchivedAppendRequest, ArchivedChangeMembership, ArchivedPeerHello, ArchivedPreVoteRequest,
    ArchivedReplica, ArchivedTransferLeaderRequest, ArchivedVoteRequest,
};
use crate::ring::Ring;
use crate::schema::{
    ArchivedCommand, ArchivedExpected, ArchivedGetGrainRequest, ArchivedGetRequest, ArchivedGrain, ArchivedHello,
    ArchivedOperation, ArchivedRecallRequest, ArchivedRelationPattern, ArchivedScanRequest, ArchivedStatusRequest,
    COMMAND_SCHEMA, HelloReply,
};
use rkyv::rend::f32_le;

/// A request whose bytes and meaning are checked, read in place.
#[derive(Debug, Clone, Copy)]
pub enum RequestRef<'a> {
    /// A write.
    Write(&'a ArchivedCommand),
    /// A read of one plain value.
    Get(&'a ArchivedGetRequest),
    /// A read of one grain.
    GetGrain(&'a ArchivedGetGrainRequest),
    /// A read of plain values in key order.
    Scan(&'a ArchivedScanRequest),
    /// A recall.
    Recall(&'a ArchivedRecallRequest),
    /// The server's state.
    Status(&'a ArchivedStatusRequest),
    /// Makes the connection one between nodes.
    PeerHello(&'a ArchivedPeerHello),
    /// A message from another replica of the shard.
    Replica(ReplicaRef<'a>),
    /// A new learner.
    AddLearner(&'a ArchivedAddLearner),
    /// New voters.
    ChangeMembership(&'a ArchivedChangeMembership),
}

/// A message from one replica to another, read in place.
#[derive(Debug, Clone, Copy)]
pub enum ReplicaRef<'a> {
    /// Whether a vote would be granted.
    PreVote(&'a ArchivedPreVoteRequest),
    /// A vote.
    Vote(&'a ArchivedVoteRequest),
    /// Entries, or a heartbeat.
    Append(&'a ArchivedAppendRequest),
    /// The leader gives up.
    TransferLeader(&'a ArchivedTransferLeaderRequest),
}

/// Checks a request, from its bytes to its meaning.
pub fn request<'a>(header: &FrameHeader, body: &'a Body) -> Result<RequestRef<'a>, Rejection> {
    let Some(message) = MessageType::from_wire(header.message_type) else {
        return Err(unknown_message(header.message_type));
    };
    if message == MessageType::Write && header.schema != COMMAND_SCHEMA {
        return Err(Rejection::new(
            ErrorCode::UnsupportedSchema,
            format!("command schema {} is not supported; this server takes {COMMAND_SCHEMA}", header.schema),
        ));
    }
    message_body(message, body)
}

/// Checks the body of a request of a known type. For bytes that carry no frame header: what a client has just archived.
pub fn message_body(message: MessageType, body: &Body) -> Result<RequestRef<'_>, Rejection> {
    match message {
        MessageType::Write => checked(body, command).map(RequestRef::Write),
        MessageType::Get => checked(body, get).map(RequestRef::Get),
        MessageType::GetGrain => checked(body, get_grain).map(RequestRef::GetGrain),
        MessageType::Scan => checked(body, scan).map(RequestRef::Scan),
        MessageType::Recall => checked(body, recall).map(RequestRef::Recall),
        MessageType::Status => checked(body, |_: &ArchivedStatusRequest| Ok(())).map(RequestRef::Status),
        MessageType::PeerHello => checked(body, peer_hello).map(RequestRef::PeerHello),
        MessageType::PreVote => {
            let request = checked(body, |request: &ArchivedPreVoteRequest| addressee(&request.to))?;
            Ok(RequestRef::Replica(ReplicaRef::PreVote(request)))
        }
        MessageType::Vote => {
            let request = checked(body, |request: &ArchivedVoteRequest| addressee(&request.to))?;
            Ok(RequestRef::Replica(ReplicaRef::Vote(request)))
        }
        MessageType::Append => Ok(RequestRef::Replica(ReplicaRef::Append(checked(body, append)?))),
        MessageType::TransferLeader => {
            let request = checked(body, |request: &ArchivedTransferLeaderRequest| addressee(&request.to))?;
            Ok(RequestRef::Replica(ReplicaRef::TransferLeader(request)))
        }
        MessageType::AddLearner => {
            let request = checked(body, |request: &ArchivedAddLearner| addressee(&request.replica))?;
            Ok(RequestRef::AddLearner(request))
        }
        MessageType::ChangeMembership => checked(body, change_membership).map(RequestRef::ChangeMembership),
        _ => Err(not_allowed(message)),
    }
}

fn checked<'a, A>(body: &'a Body, check: impl Fn(&A) -> Result<(), Rejection>) -> Result<&'a A, Rejection>
where
    A: rkyv::Portable + for<'v> rkyv::bytecheck::CheckBytes<crate::body::BodyValidator<'v>>,
{
    let archived = access::<A>(body)?;
    check(archived)?;
    Ok(archived)
}

impl From<BodyError> for Rejection {
    fn from(error: BodyError) -> Rejection {
        let code = match error {
            BodyError::TooLarge => ErrorCode::TooLarge,
            BodyError::Misaligned { .. } | BodyError::Invalid { .. } => ErrorCode::BadBody,
        };
        Rejection::new(code, error.to_string())
    }
}

/// The answer to a message type that this version does not know.
pub fn unknown_message(number: u16) -> Rejection {
    Rejection::new(
        ErrorCode::UnknownMessage,
        format!("message type {number} is not known to this server; is the client newer than the server?"),
    )
}

/// The answer to a message type that is no request, or that does not belong here.
pub fn not_allowed(message: MessageType) -> Rejection {
    Rejection::new(
        ErrorCode::UnknownMessage,
        format!(
            "message {message:?} is not a request that can be served here; send Hello first and once, then requests"
        ),
    )
}

impl RequestRef<'_> {
    /// The shard that serves this request; `None` where any core does (status).
    ///
    /// The operations of one command must share a shard, otherwise `CrossShard`. A shard that the client named
    /// (`header.shard`) must be that one, otherwise `WrongShard`.
    pub fn shard(&self, header: &FrameHeader, ring: &Ring) -> Result<Option<ShardId>, Rejection> {
        if let RequestRef::Replica(_) = self {
            return existing(header.shard, ring).map(Some);
        }
        let Some(owner) = self.owner(ring)? else { return Ok(None) };
        if header.shard != ShardId::ANY && header.shard != owner {
            return Err(Rejection::new(
                ErrorCode::WrongShard,
                format!(
                    "the request names shard {}, but its namespace lives on shard {}; say hello again and route by its answer",
                    header.shard.0, owner.0
                ),
            ));
        }
        Ok(Some(owner))
    }

    /// The shard that serves this request, whatever its header says; `None` where any core does (status), and for messages
    /// between replicas, whose shard stands in the header only.
    pub fn owner(&self, ring: &Ring) -> Result<Option<ShardId>, Rejection> {
        let namespace = match self {
            RequestRef::Status(_) | RequestRef::PeerHello(_) | RequestRef::Replica(_) => return Ok(None),
            RequestRef::AddLearner(request) => return existing(ShardId(request.shard.to_native()), ring).map(Some),
            RequestRef::ChangeMembership(request) => {
                return existing(ShardId(request.shard.to_native()), ring).map(Some);
            }
            RequestRef::Write(command) => return command_shard(command, ring).map(Some),
            RequestRef::Get(get) => &get.namespace,
            RequestRef::GetGrain(get) => &get.namespace,
            RequestRef::Scan(scan) => &scan.namespace,
            RequestRef::Recall(recall) => &recall.namespace,
        };
        Ok(Some(owner(ring, namespace.as_str())))
    }
}

/// The shard of a command whose operations all route to one.
pub fn command_shard(command: &ArchivedCommand, ring: &Ring) -> Result<ShardId, Rejection> {
    let (first, rest) = command.operations.split_first().ok_or_else(no_operations)?;
    let (shard, mut previous) = (owner(ring, first.namespace()), first.namespace());
    for (at, operation) in rest.iter().enumerate() {
        let namespace = operation.namespace();
        if namespace == previous {
            continue;
        }
        let other = owner(ring, namespace);
        if other != shard {
            return Err(Rejection::new(
                ErrorCode::CrossShard,
                format!(
                    "operation {} is in namespace {namespace:?} on shard {}, but the command began on shard {} with \
                     {:?}; a command writes to one shard, so send two commands",
                    at + 1,
                    other.0,
                    shard.0,
                    first.namespace()
                ),
            ));
        }
        previous = namespace;
    }
    Ok(shard)
}

/// A shard that is named by its number must be one.
fn existing(shard: ShardId, ring: &Ring) -> Result<ShardId, Rejection> {
    if shard.0 < ring.shards() {
        return Ok(shard);
    }
    let message = format!("there is no shard {}; this store has {} shards, from 0", shard.0, ring.shards());
    Err(Rejection::new(ErrorCode::WrongShard, message))
}

fn owner(ring: &Ring, namespace: &str) -> ShardId {
    ring.shard_of(namespace).expect("a server has at least one shard")
}

impl ArchivedOperation {
    /// The namespace that the operation writes to.
    pub fn namespace(&self) -> &str {
        match self {
            ArchivedOperation::Put { namespace, .. }
            | ArchivedOperation::Delete { namespace, .. }
            | ArchivedOperation::CompareAndSet { namespace, .. }
            | ArchivedOperation::DeleteGrain { namespace, .. } => namespace.as_str(),
            ArchivedOperation::PutGrain { grain } => grain.namespace.as_str(),
        }
    }
}

/// Checks a hello.
pub fn hello(hello: &ArchivedHello) -> Result<(), Rejection> {
    at_most("", "client name", hello.client.len(), CLIENT_NAME_BYTES_MAX, "bytes")?;
    if hello.version_min > hello.version_max {
        let (low, high) = (hello.version_min, hello.version_max);
        return Err(invalid("", format!("the client speaks no version: lowest {low}, highest {high}")));
    }
    Ok(())
}

/// Checks a hello between nodes.
pub fn peer_hello(hello: &ArchivedPeerHello) -> Result<(), Rejection> {
    addressee(&hello.from)?;
    if hello.to_node == 0 {
        return Err(invalid("", "node ids start at 1"));
    }
    Ok(())
}

/// Checks an append: entries stand one after the other, right behind the one before.
pub fn append(request: &ArchivedAppendRequest) -> Result<(), Rejection> {
    addressee(&request.to)?;
    at_most("", "append", request.entries.len(), APPEND_ENTRIES_MAX, "entries")?;
    let mut next = request.previous.as_ref().map_or(Some(0), |previous| previous.index.to_native().checked_add(1));
    for entry in request.entries.iter() {
        let index = entry.at.index.to_native();
        if next != Some(index) {
            return Err(invalid("", format_args!("entry {index} does not follow the one before it")));
        }
        next = index.checked_add(1);
    }
    Ok(())
}

/// Checks a change of the voters.
pub fn change_membership(request: &ArchivedChangeMembership) -> Result<(), Rejection> {
    if request.voters.is_empty() {
        return Err(invalid("", "a shard without voters serves nothing; name at least one"));
    }
    at_most("", "membership", request.voters.len(), VOTERS_MAX, "voters")?;
    for (at, voter) in request.voters.iter().enumerate() {
        addressee(voter)?;
        if request.voters[..at].iter().any(|other| other.node == voter.node) {
            return Err(invalid("", format_args!("node {} would vote twice", voter.node)));
        }
    }
    Ok(())
}

fn addressee(replica: &ArchivedReplica) -> Result<(), Rejection> {
    if replica.node == 0 || replica.incarnation == 0 {
        return Err(invalid("", "ids of nodes and of their lives start at 1"));
    }
    Ok(())
}

/// Checks the answer to a hello: sizes that the client will allocate by, and a map that points nowhere.
pub fn hello_reply(reply: &HelloReply) -> Result<(), Rejection> {
    let (shards, cores) = (reply.shard_cores.len(), reply.core_ports.len());
    if !(1..=SHARDS_MAX).contains(&reply.shards) || shards != reply.shards as usize {
        return Err(invalid("", format_args!("the map names {} shards but places {shards}", reply.shards)));
    }
    if !(1..=CORES_MAX).contains(&cores) || reply.shard_cores.iter().any(|core| usize::from(*core) >= cores) {
        return Err(invalid("", format_args!("the map places a shard on a core that is none of its {cores}")));
    }
    if !(1..=RING_VNODES_MAX).contains(&reply.ring_vnodes) {
        return Err(invalid("", format_args!("a ring of {} virtual nodes per shard", reply.ring_vnodes)));
    }
    if reply.in_flight_max == 0 || reply.frame_body_bytes_max < HELLO_BODY_BYTES_MAX {
        let (requests, bytes) = (reply.in_flight_max, reply.frame_body_bytes_max);
        return Err(invalid("", format_args!("a server that takes {requests} requests of {bytes} bytes")));
    }
    Ok(())
}

/// Checks a write.
pub fn command(command: &ArchivedCommand) -> Result<(), Rejection> {
    if command.operations.is_empty() {
        return Err(no_operations());
    }
    at_most("", "batch", command.operations.len(), BATCH_OPS_MAX, "operations")?;
    command.operations.iter().enumerate().try_for_each(|(at, one)| operation(&Place(at), one))
}

fn operation(place: &Place, operation: &ArchivedOperation) -> Result<(), Rejection> {
    match operation {
        ArchivedOperation::Put { namespace, key, value, ttl_ms: _ } => {
            name(place, namespace)?;
            key_of(place, key)?;
            at_most(place, "value", value.len(), VALUE_BYTES_MAX, "bytes")
        }
        ArchivedOperation::Delete { namespace, key } => {
            name(place, namespace)?;
            key_of(place, key)
        }
        ArchivedOperation::CompareAndSet { namespace, key, expected, value } => {
            name(place, namespace)?;
            key_of(place, key)?;
            if let ArchivedExpected::Value(expected) = expected {
                at_most(place, "expected value", expected.len(), VALUE_BYTES_MAX, "bytes")?;
            }
            value.as_ref().map_or(Ok(()), |value| at_most(place, "value", value.len(), VALUE_BYTES_MAX, "bytes"))
        }
        ArchivedOperation::PutGrain { grain } => grain_of(place, grain),
        ArchivedOperation::DeleteGrain { namespace, id: _ } => name(place, namespace),
    }
}

fn grain_of(place: &Place, grain: &ArchivedGrain) -> Result<(), Rejection> {
    name(place, &grain.namespace)?;
    filled(place, "subject", grain.subject.len(), SUBJECT_BYTES_MAX)?;
    if let Some(text) = grain.text.as_ref() {
        at_most(place, "text", text.len(), TEXT_BYTES_MAX, "bytes")?;
    }
    if let Some(values) = grain.vector.as_ref() {
        vector(place, values)?;
    }
    at_most(place, "relations", grain.relations.len(), RELATIONS_MAX, "relations")?;
    for relation in grain.relations.iter() {
        filled(place, "predicate", relation.predicate.len(), SUBJECT_BYTES_MAX)?;
        filled(place, "object", relation.object.len(), SUBJECT_BYTES_MAX)?;
    }
    tags(place, &grain.tags)?;
    at_most(place, "payload", grain.payload.len(), PAYLOAD_BYTES_MAX, "bytes")
}

/// Checks a read of one plain value.
pub fn get(request: &ArchivedGetRequest) -> Result<(), Rejection> {
    name("", &request.namespace)?;
    key_of("", &request.key)
}

/// Checks a read of one grain.
pub fn get_grain(request: &ArchivedGetGrainRequest) -> Result<(), Rejection> {
    name("", &request.namespace)
}

/// Checks a scan.
pub fn scan(request: &ArchivedScanRequest) -> Result<(), Rejection> {
    name("", &request.namespace)?;
    at_most("", "start", request.start.len(), KEY_BYTES_MAX, "bytes")?;
    at_most("", "end", request.end.len(), KEY_BYTES_MAX, "bytes")?;
    at_most("", "prefix", request.prefix.len(), KEY_BYTES_MAX, "bytes")?;
    at_most("", "limit", request.limit.to_native() as usize, SCAN_ITEMS_MAX as usize, "items")?;
    if !request.end.is_empty() && request.start.as_slice() > request.end.as_slice() {
        return Err(invalid(
            "",
            "start lies behind end, so the range is empty; start is the smaller key in both directions",
        ));
    }
    Ok(())
}

/// Checks a recall.
pub fn recall(request: &ArchivedRecallRequest) -> Result<(), Rejection> {
    name("", &request.namespace)?;
    if request.text.is_none() && request.vector.is_none() && request.relation.is_none() {
        return Err(invalid("", "the recall names nothing to look for; give a text, a vector or a relation"));
    }
    if let Some(text) = request.text.as_ref() {
        at_most("", "text", text.len(), TEXT_BYTES_MAX, "bytes")?;
        if text.trim().is_empty() {
            return Err(invalid("", "the text has no words; leave it out to recall by vector or relation alone"));
        }
    }
    if let Some(values) = request.vector.as_ref() {
        vector("", values)?;
    }
    if let Some(pattern) = request.relation.as_ref() {
        relation_pattern(pattern)?;
    }
    tags("", &request.tags)?;
    at_most("", "subject", request.subject.len(), SUBJECT_BYTES_MAX, "bytes")?;
    at_most("", "limit", request.limit.to_native() as usize, RECALL_HITS_MAX as usize, "hits")?;
    at_most("", "candidates", request.candidates.to_native() as usize, RECALL_CANDIDATES_MAX as usize, "candidates")
}

fn relation_pattern(pattern: &ArchivedRelationPattern) -> Result<(), Rejection> {
    let parts = [("subject", &pattern.subject), ("predicate", &pattern.predicate), ("object", &pattern.object)];
    for (part, text) in parts {
        at_most("", format_args!("relation's {part}"), text.len(), SUBJECT_BYTES_MAX, "bytes")?;
    }
    if parts.iter().all(|(_, text)| text.is_empty()) {
        return Err(invalid("", "the relation pattern is empty; give at least one of subject, predicate and object"));
    }
    Ok(())
}

/// Finite, not longer than the limit, and of a length whose square f32 can hold, so that every similarity is a number.
fn vector(place: impl fmt::Display, values: &[f32_le]) -> Result<(), Rejection> {
    if values.is_empty() {
        return Err(invalid(place, "the vector has no dimensions; leave it out instead"));
    }
    at_most(&place, "vector", values.len(), VECTOR_DIMENSIONS_MAX, "dimensions")?;
    let square = square_of_norm(values);
    if !square.is_finite() {
        // Squares of f32 cannot overflow an f64 sum, so some component itself is not finite.
        let (at, value) = values.iter().enumerate().find(|(_, value)| !value.to_native().is_finite()).expect("one is");
        let value = value.to_native();
        return Err(invalid(place, format_args!("vector[{at}] is {value}; every component must be a finite number")));
    }
    let norm = square.sqrt();
    if (VECTOR_NORM_MIN..=VECTOR_NORM_MAX).contains(&norm) {
        return Ok(());
    }
    Err(invalid(
        place,
        format_args!(
            "the vector's length is {norm:e}, so its cosine similarity is undefined or inexact; it must lie between \
             {VECTOR_NORM_MIN:e} and {VECTOR_NORM_MAX:e} (leave a vector of zeros out)"
        ),
    ))
}

/// The sum of squares, in lanes, so that the compiler may compute them side by side.
fn square_of_norm(values: &[f32_le]) -> f64 {
    let mut lanes = [0.0_f64; 8];
    let chunks = values.chunks(lanes.len());
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            let value = f64::from(value.to_native());
            *lane += value * value;
        }
    }
    lanes.iter().sum()
}

fn tags(place: impl fmt::Display, tags: &[rkyv::string::ArchivedString]) -> Result<(), Rejection> {
    at_most(&place, "tags", tags.len(), TAGS_MAX, "tags")?;
    tags.iter().try_for_each(|tag| filled(&place, "tag", tag.len(), TAG_BYTES_MAX))
}

fn name(place: impl fmt::Display, namespace: &str) -> Result<(), Rejection> {
    filled(place, "namespace", namespace.len(), NAMESPACE_BYTES_MAX)
}

fn key_of(place: impl fmt::Display, key: &[u8]) -> Result<(), Rejection> {
    filled(place, "key", key.len(), KEY_BYTES_MAX)
}

fn filled(place: impl fmt::Display, what: impl fmt::Display, length: usize, max: usize) -> Result<(), Rejection> {
    if length == 0 {
        return Err(invalid(place, format_args!("the {what} is empty; it has 1 to {max} bytes")));
    }
    at_most(place, what, length, max, "bytes")
}

fn at_most(
    place: impl fmt::Display,
    what: impl fmt::Display,
    found: usize,
    max: usize,
    unit: &str,
) -> Result<(), Rejection> {
    if found <= max {
        return Ok(());
    }
    Err(Rejection::new(ErrorCode::TooLarge, format!("{place}the {what} is {found} {unit}; at most {max} are allowed")))
}

fn invalid(place: impl fmt::Display, what: impl fmt::Display) -> Rejection {
    Rejection::new(ErrorCode::InvalidArgument, format!("{place}{what}"))
}

fn no_operations() -> Rejection {
    invalid("", "the command has no operations; give at least one")
}

/// Where in a command a complaint is.
struct Place(usize);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "operation {}: ", self.0)
    }
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
