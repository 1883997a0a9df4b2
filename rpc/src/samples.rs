//! One message of each type that uses every field and every variant: for golden bytes and for hostile changes.

use crate::body::{Body, archive};
use crate::frame::{FrameHeader, MessageType, PROTOCOL_VERSION};
use crate::ids::{GrainId, SessionId, ShardId, Version};
use crate::message::Message;
use crate::peer::{
    AddLearner, AppendOutcome, AppendReply, AppendRequest, Ballot, ChangeMembership, ENTRY_HEADER_BYTES, LogEntry,
    LogPlace, MembershipReply, PeerHello, PeerHelloReply, PreVoteRequest, Replica, TransferLeaderReply,
    TransferLeaderRequest, TransferOutcome, VoteReply, VoteRequest,
};
use crate::schema::{
    COMMAND_SCHEMA, Command, ErrorReply, Expected, GetGrainReply, GetGrainRequest, GetReply, GetRequest, Grain, Hello,
    HelloReply, LegHit, Operation, PreconditionFailure, RecallReply, RecallRequest, Relation, RelationPattern,
    ScanItem, ScanReply, ScanRequest, SearchHit, StatusReply, StatusRequest, Versioned, WriteReply,
};

/// A frame with its name.
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) header: FrameHeader,
    pub(crate) body: Body,
}

fn sample<M: Message>(name: &'static str, message: &M) -> Sample {
    let body = archive(message);
    let header = FrameHeader::for_body(M::TYPE, 0x0102_0304_0506_0708, &body);
    Sample { name, header, body }
}

/// A frame of every message type.
pub(crate) fn samples() -> Vec<Sample> {
    let mut write = sample("write", &command());
    write.header = FrameHeader {
        schema: COMMAND_SCHEMA,
        shard: ShardId(3),
        deadline_ms: 1500,
        session: SessionId(0x1122_3344_5566_7788),
        sequence: 42,
        map_version: 7,
        ..write.header
    };
    let mut all = vec![
        sample("hello", &Hello { version_min: 1, version_max: PROTOCOL_VERSION, client: "golden client".to_owned() }),
        sample("hello_reply", &hello_reply()),
        write,
    ];
    all.extend(replies_and_reads());
    all.extend(recalls_and_the_rest());
    all.extend(votes());
    all.extend(appends_and_memberships());
    assert!(MessageType::ALL.iter().all(|m| all.iter().any(|s| s.header.message_type == *m as u16)), "every type");
    all
}

fn replies_and_reads() -> Vec<Sample> {
    let failed = Some(PreconditionFailure { operation: 2, found: Some(Version(9)) });
    let value = Some(Versioned { version: Version(77), value: b"a value of more than eight bytes".to_vec() });
    let item = |key: &[u8]| ScanItem { key: key.to_vec(), version: Version(5), value: b"v".to_vec() };
    let namespace = || "tenant-7".to_owned();
    vec![
        sample("write_reply", &WriteReply { version: Version(78), applied: false, failed, duplicate: true }),
        sample("get", &GetRequest { namespace: namespace(), key: b"a key".to_vec() }),
        sample("get_reply", &GetReply { value }),
        sample("get_reply_none", &GetReply { value: None }),
        sample("get_grain", &GetGrainRequest { namespace: namespace(), id: GrainId([0xab; 16]) }),
        sample("get_grain_reply", &GetGrainReply { grain: Some(grain()), version: Version(6) }),
        sample(
            "scan",
            &ScanRequest {
                namespace: namespace(),
                start: b"a".to_vec(),
                end: b"z".to_vec(),
                prefix: b"p".to_vec(),
                limit: 100,
                reverse: true,
            },
        ),
        sample("scan_reply", &ScanReply { items: vec![item(b"k1"), item(b"k2")], more: true }),
    ]
}

fn recalls_and_the_rest() -> Vec<Sample> {
    let leg = |rank, score| Some(LegHit { rank, score });
    let hit = SearchHit {
        id: GrainId([0xcd; 16]),
        subject: "ada".to_owned(),
        score: 0.032_786_883,
        rank: 1,
        text: leg(1, 7.25),
        vector: leg(2, -0.5),
        relation: None,
        grain: Some(grain()),
    };
    let other = SearchHit { grain: None, relation: leg(1, 3.0), rank: 2, ..hit.clone() };
    let relation =
        RelationPattern { subject: "ada".to_owned(), predicate: String::new(), object: "mathematician".to_owned() };
    vec![
        sample(
            "recall",
            &RecallRequest {
                namespace: "tenant-7".to_owned(),
                text: Some("who wrote the first programme".to_owned()),
                vector: Some(vec![0.25, -1.5, 3.0]),
                relation: Some(relation),
                tags: vec!["history".to_owned(), "computing".to_owned()],
                subject: "ada".to_owned(),
                limit: 20,
                candidates: 200,
                with_grains: true,
            },
        ),
        sample("recall_reply", &RecallReply { hits: vec![hit, other], grains: 1000 }),
        sample("status", &StatusRequest { verbose: true }),
        sample("status_reply", &StatusReply { json: "{\"ready\":true}".to_owned() }),
        sample(
            "error",
            &ErrorReply {
                code: 21,
                retriable: true,
                retry_after_ms: 5,
                message: "too many requests are in flight".to_owned(),
            },
        ),
    ]
}

const fn replica(node: u64) -> Replica {
    Replica { node, incarnation: node + 10 }
}

const BALLOT: Ballot = Ballot { term: 7, candidate: replica(1), committed: false };
const LEADER: Ballot = Ballot { committed: true, ..BALLOT };
const LAST: LogPlace = LogPlace { term: 6, index: 41 };

fn votes() -> Vec<Sample> {
    let to = replica(2);
    let transferred = |outcome| TransferLeaderReply { outcome };
    let peer_hello = PeerHello { cluster: [0xc1; 16], from: replica(1), to_node: 2, shards: 4, ring_vnodes: 150 };
    vec![
        sample("peer_hello", &peer_hello),
        sample("peer_hello_reply", &PeerHelloReply { replica: to }),
        sample("pre_vote", &PreVoteRequest { to, ballot: BALLOT, last: Some(LAST) }),
        sample("vote", &VoteRequest { to, ballot: BALLOT, last: None, transfer: true }),
        sample("vote_reply", &VoteReply { ballot: BALLOT, granted: true, last: Some(LAST) }),
        sample(
            "transfer_leader",
            &TransferLeaderRequest { to, ballot: LEADER, successor: replica(3), last: Some(LAST) },
        ),
        sample("transfer_leader_reply", &transferred(TransferOutcome::Accepted)),
        sample("transfer_leader_reply_changed", &transferred(TransferOutcome::VoteChanged(BALLOT))),
        sample("transfer_leader_reply_behind", &transferred(TransferOutcome::Behind(Some(LAST)))),
    ]
}

fn appends_and_memberships() -> Vec<Sample> {
    let entry = |index, kind, header, body: &[u8]| LogEntry {
        at: LogPlace { term: 7, index },
        token: 7 << 32 | 5,
        kind,
        header,
        body: Body::copy_from(body),
    };
    let command = archive(&Command { operations: vec![Operation::delete("tenant-7", b"a key")] });
    let append = AppendRequest {
        to: replica(2),
        ballot: LEADER,
        previous: Some(LAST),
        committed: Some(LogPlace { term: 6, index: 40 }),
        entries: vec![
            entry(42, 0, None, b""),
            entry(43, 1, Some([0xee; ENTRY_HEADER_BYTES]), &command),
            entry(44, 2, None, b"a membership"),
        ],
    };
    let heartbeat = AppendRequest { previous: None, committed: None, entries: Vec::new(), ..append.clone() };
    let mut append = sample("append", &append);
    append.header.shard = ShardId(3);
    let appended = |outcome| AppendReply { outcome };
    let voters = vec![replica(1), replica(2), replica(3)];
    vec![
        append,
        sample("append_heartbeat", &heartbeat),
        sample("append_reply", &appended(AppendOutcome::Stored)),
        sample("append_reply_conflict", &appended(AppendOutcome::Conflict)),
        sample("append_reply_higher", &appended(AppendOutcome::HigherBallot(BALLOT))),
        sample("add_learner", &AddLearner { shard: 3, replica: replica(2) }),
        sample("change_membership", &ChangeMembership { shard: 3, voters, retain: true }),
        sample("membership_reply", &MembershipReply { at: LAST }),
    ]
}

pub(crate) fn hello_reply() -> HelloReply {
    HelloReply {
        version: PROTOCOL_VERSION,
        server: "gristmill 0.1.0".to_owned(),
        store: std::array::from_fn(|at| at as u8),
        shards: 4,
        ring_vnodes: 150,
        core_ports: vec![7001, 7002],
        shard_cores: vec![0, 1, 0, 1],
        frame_body_bytes_max: 8 << 20,
        in_flight_max: 4096,
    }
}

pub(crate) fn grain() -> Grain {
    Grain {
        id: GrainId([0xef; 16]),
        namespace: "tenant-7".to_owned(),
        subject: "ada".to_owned(),
        text: Some("Ada Lovelace wrote notes on the Analytical Engine.".to_owned()),
        vector: Some(vec![1.0, -2.5, 0.125, 3.0]),
        relations: vec![
            Relation { predicate: "is_a".to_owned(), object: "mathematician".to_owned() },
            Relation { predicate: "born_in".to_owned(), object: "London".to_owned() },
        ],
        tags: vec!["history".to_owned()],
        payload: vec![0, 1, 2, 0xff],
    }
}

/// Every operation and every kind of precondition.
pub(crate) fn command() -> Command {
    let (namespace, key) = (|| "tenant-7".to_owned(), b"a key".to_vec());
    let cas = |expected, value| Operation::CompareAndSet { namespace: namespace(), key: key.clone(), expected, value };
    Command {
        operations: vec![
            Operation::Put { namespace: namespace(), key: key.clone(), value: b"v".to_vec(), ttl_ms: 60_000 },
            Operation::Delete { namespace: namespace(), key: key.clone() },
            cas(Expected::Absent, Some(b"new".to_vec())),
            cas(Expected::Version(Version(12)), None),
            cas(Expected::Value(b"old value".to_vec()), Some(Vec::new())),
            Operation::PutGrain { grain: grain() },
            Operation::DeleteGrain { namespace: namespace(), id: GrainId([1; 16]) },
        ],
    }
}
