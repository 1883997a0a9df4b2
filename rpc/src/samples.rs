//! One message of each type that uses every field and every variant: for golden bytes and for hostile changes.

use crate::body::{Body, archive};
use crate::frame::{FrameHeader, MessageType, PROTOCOL_VERSION};
use crate::ids::{GrainId, SessionId, ShardId, Version};
use crate::message::Message;
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
