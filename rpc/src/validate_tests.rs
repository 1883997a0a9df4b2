use super::*;
use crate::body::archive;
use crate::ids::{GrainId, Version};
use crate::schema::{
    Command, Expected, GetGrainRequest, GetRequest, Grain, Hello, Operation, RecallRequest, Relation, RelationPattern,
    ScanRequest, StatusRequest,
};

fn put(namespace: &str, key: &[u8], value: Vec<u8>) -> Operation {
    Operation::Put { namespace: namespace.to_owned(), key: key.to_vec(), value, ttl_ms: 0 }
}

fn grain() -> Grain {
    Grain {
        id: GrainId([1; 16]),
        namespace: "ns".to_owned(),
        subject: "s".to_owned(),
        text: Some("text".to_owned()),
        vector: Some(vec![0.5; 4]),
        relations: vec![Relation { predicate: "p".to_owned(), object: "o".to_owned() }],
        tags: vec!["t".to_owned()],
        payload: vec![1],
    }
}

fn recall_request() -> RecallRequest {
    RecallRequest { text: Some("words".to_owned()), ..RecallRequest::new("ns") }
}

fn scan_request() -> ScanRequest {
    ScanRequest {
        namespace: "ns".to_owned(),
        start: Vec::new(),
        end: Vec::new(),
        prefix: Vec::new(),
        limit: 10,
        reverse: false,
    }
}

fn header(message: MessageType, body: &Body) -> FrameHeader {
    let schema = if message == MessageType::Write { COMMAND_SCHEMA } else { 0 };
    FrameHeader { schema, ..FrameHeader::for_body(message, 1, body) }
}

fn verdict(message: MessageType, body: &Body) -> Result<(), Rejection> {
    request(&header(message, body), body).map(|_| ())
}

fn write(operations: Vec<Operation>) -> Result<(), Rejection> {
    verdict(MessageType::Write, &archive(&Command { operations }))
}

fn put_grain(change: impl FnOnce(&mut Grain)) -> Result<(), Rejection> {
    let mut grain = grain();
    change(&mut grain);
    write(vec![put("ns", b"k", vec![]), Operation::PutGrain { grain }])
}

fn recalled(change: impl FnOnce(&mut RecallRequest)) -> Result<(), Rejection> {
    let mut request = recall_request();
    change(&mut request);
    verdict(MessageType::Recall, &archive(&request))
}

fn scanned(change: impl FnOnce(&mut ScanRequest)) -> Result<(), Rejection> {
    let mut request = scan_request();
    change(&mut request);
    verdict(MessageType::Scan, &archive(&request))
}

#[track_caller]
fn refused(result: Result<(), Rejection>, code: ErrorCode, words: &str) {
    let rejection = result.expect_err(words);
    assert_eq!(rejection.code, code, "{rejection}");
    assert!(rejection.message.contains(words), "{:?} does not say {words:?}", rejection.message);
}

use ErrorCode::{BadBody, CrossShard, InvalidArgument, TooLarge, UnknownMessage, UnsupportedSchema, WrongShard};

#[test]
fn requests_at_the_limits_pass() {
    let long = |bytes: usize| "x".repeat(bytes);
    assert_eq!(write(vec![put(&long(255), &[1; KEY_BYTES_MAX], vec![1; VALUE_BYTES_MAX])]), Ok(()));
    assert_eq!(write(vec![put("n", b"k", vec![]); BATCH_OPS_MAX]), Ok(()));
    let cas = |expected| Operation::CompareAndSet { namespace: "n".into(), key: vec![0], expected, value: None };
    assert_eq!(
        write(vec![cas(Expected::Absent), cas(Expected::Version(Version(1))), cas(Expected::Value(vec![]))]),
        Ok(())
    );
    let id = GrainId([0; 16]);
    assert_eq!(write(vec![Operation::DeleteGrain { namespace: "n".into(), id }]), Ok(()));
    assert_eq!(put_grain(|g| g.text = Some(long(TEXT_BYTES_MAX))), Ok(()));
    assert_eq!(put_grain(|g| g.vector = Some(vec![-1e-3; VECTOR_DIMENSIONS_MAX])), Ok(()));
    assert_eq!(put_grain(|g| (g.text, g.vector) = (None, None)), Ok(()));
    assert_eq!(put_grain(|g| g.tags = vec![long(TAG_BYTES_MAX); TAGS_MAX]), Ok(()));
    assert_eq!(recalled(|r| (r.limit, r.candidates) = (RECALL_HITS_MAX, RECALL_CANDIDATES_MAX)), Ok(()));
    assert_eq!(scanned(|s| s.limit = SCAN_ITEMS_MAX), Ok(()));
    assert_eq!(scanned(|s| (s.start, s.end) = (vec![2], vec![2])), Ok(()));
    assert_eq!(verdict(MessageType::Status, &archive(&StatusRequest { verbose: true })), Ok(()));
}

#[test]
fn commands_over_the_limits_are_refused_by_place() {
    refused(write(vec![]), InvalidArgument, "no operations");
    refused(write(vec![put("n", b"k", vec![]); BATCH_OPS_MAX + 1]), TooLarge, "4097 operations; at most 4096");
    refused(
        write(vec![put("n", b"k", vec![]), put("n", b"", vec![])]),
        InvalidArgument,
        "operation 1: the key is empty",
    );
    refused(write(vec![put("", b"k", vec![])]), InvalidArgument, "operation 0: the namespace is empty");
    refused(write(vec![put(&"n".repeat(256), b"k", vec![])]), TooLarge, "namespace is 256 bytes; at most 255");
    refused(write(vec![put("n", &[0; KEY_BYTES_MAX + 1], vec![])]), TooLarge, "key is 4097 bytes");
    refused(write(vec![put("n", b"k", vec![0; VALUE_BYTES_MAX + 1])]), TooLarge, "value is 4194305 bytes");
    refused(write(vec![Operation::Delete { namespace: "n".into(), key: vec![] }]), InvalidArgument, "key is empty");
    let cas = |expected, value| Operation::CompareAndSet { namespace: "n".into(), key: vec![0], expected, value };
    let large = vec![0; VALUE_BYTES_MAX + 1];
    refused(write(vec![cas(Expected::Value(large.clone()), None)]), TooLarge, "the expected value");
    refused(write(vec![cas(Expected::Absent, Some(large))]), TooLarge, "the value");
    let id = GrainId([0; 16]);
    refused(
        write(vec![Operation::DeleteGrain { namespace: String::new(), id }]),
        InvalidArgument,
        "namespace is empty",
    );
}

#[test]
fn grains_over_the_limits_are_refused() {
    let long = |bytes: usize| "x".repeat(bytes);
    refused(put_grain(|g| g.namespace.clear()), InvalidArgument, "operation 1: the namespace is empty");
    refused(put_grain(|g| g.subject.clear()), InvalidArgument, "operation 1: the subject is empty");
    refused(put_grain(|g| g.subject = long(1025)), TooLarge, "subject is 1025 bytes");
    refused(put_grain(|g| g.text = Some(long(TEXT_BYTES_MAX + 1))), TooLarge, "the text is");
    refused(put_grain(|g| g.payload = vec![0; PAYLOAD_BYTES_MAX + 1]), TooLarge, "the payload is");
    refused(put_grain(|g| g.tags = vec![long(1); TAGS_MAX + 1]), TooLarge, "257 tags");
    refused(put_grain(|g| g.tags = vec![String::new()]), InvalidArgument, "tag is empty");
    refused(put_grain(|g| g.tags = vec![long(256)]), TooLarge, "tag is 256 bytes");
    let relation = |predicate: &str, object: &str| Relation { predicate: predicate.into(), object: object.into() };
    refused(put_grain(|g| g.relations = vec![relation("", "o")]), InvalidArgument, "predicate is empty");
    refused(put_grain(|g| g.relations = vec![relation("p", "")]), InvalidArgument, "object is empty");
    refused(put_grain(|g| g.relations = vec![relation("p", &long(1025))]), TooLarge, "object is 1025 bytes");
    refused(put_grain(|g| g.relations = vec![relation("p", "o"); RELATIONS_MAX + 1]), TooLarge, "1025 relations");
}

#[test]
fn vectors_that_have_no_cosine_are_refused() {
    refused(put_grain(|g| g.vector = Some(vec![])), InvalidArgument, "no dimensions");
    refused(put_grain(|g| g.vector = Some(vec![0.1; 4097])), TooLarge, "vector is 4097 dimensions; at most 4096");
    refused(put_grain(|g| g.vector = Some(vec![1.0, f32::NAN])), InvalidArgument, "operation 1: vector[1] is NaN");
    refused(put_grain(|g| g.vector = Some(vec![f32::INFINITY])), InvalidArgument, "vector[0] is inf");
    refused(put_grain(|g| g.vector = Some(vec![f32::NEG_INFINITY])), InvalidArgument, "vector[0] is -inf");
    refused(put_grain(|g| g.vector = Some(vec![0.0, -0.0])), InvalidArgument, "length is 0e0");
    refused(put_grain(|g| g.vector = Some(vec![1e-20; 3])), InvalidArgument, "between 1e-15 and 1e15");
    refused(put_grain(|g| g.vector = Some(vec![f32::MAX])), InvalidArgument, "between 1e-15 and 1e15");
    refused(recalled(|r| r.vector = Some(vec![f32::NAN])), InvalidArgument, "vector[0] is NaN");
    for edge in [1.1 * VECTOR_NORM_MIN as f32, 0.9 * VECTOR_NORM_MAX as f32] {
        let square = edge * edge;
        assert!(square.is_normal(), "the limits keep squares inside f32");
        assert_eq!(put_grain(|g| g.vector = Some(vec![edge])), Ok(()));
    }
}

#[test]
fn recalls_are_checked() {
    refused(recalled(|r| r.namespace.clear()), InvalidArgument, "namespace is empty");
    refused(recalled(|r| r.text = None), InvalidArgument, "give a text, a vector or a relation");
    refused(recalled(|r| r.text = Some(" \t".into())), InvalidArgument, "no words");
    refused(recalled(|r| r.limit = RECALL_HITS_MAX + 1), TooLarge, "1001 hits; at most 1000");
    refused(recalled(|r| r.candidates = u32::MAX), TooLarge, "candidates");
    refused(recalled(|r| r.tags = vec![String::new()]), InvalidArgument, "tag is empty");
    refused(recalled(|r| r.subject = "x".repeat(1025)), TooLarge, "subject");
    let pattern = |subject: &str| RelationPattern {
        subject: subject.to_owned(),
        predicate: String::new(),
        object: String::new(),
    };
    refused(recalled(|r| r.relation = Some(pattern(""))), InvalidArgument, "relation pattern is empty");
    refused(recalled(|r| r.relation = Some(pattern(&"x".repeat(1025)))), TooLarge, "relation's subject");
    assert_eq!(recalled(|r| (r.text, r.relation) = (None, Some(pattern("s")))), Ok(()));
}

#[test]
fn reads_and_scans_are_checked() {
    let get = |namespace: &str, key: Vec<u8>| {
        verdict(MessageType::Get, &archive(&GetRequest { namespace: namespace.to_owned(), key }))
    };
    refused(get("", vec![1]), InvalidArgument, "namespace is empty");
    refused(get("n", vec![]), InvalidArgument, "key is empty");
    refused(get("n", vec![0; KEY_BYTES_MAX + 1]), TooLarge, "key is 4097 bytes");
    let grain = archive(&GetGrainRequest { namespace: String::new(), id: GrainId([0; 16]) });
    refused(verdict(MessageType::GetGrain, &grain), InvalidArgument, "namespace is empty");
    refused(scanned(|s| s.namespace.clear()), InvalidArgument, "namespace is empty");
    refused(scanned(|s| s.limit = SCAN_ITEMS_MAX + 1), TooLarge, "10001 items");
    refused(scanned(|s| (s.start, s.end) = (vec![2], vec![1, 9])), InvalidArgument, "start lies behind end");
    for at in 0..3 {
        let long = vec![1; KEY_BYTES_MAX + 1];
        refused(scanned(|s| *[&mut s.start, &mut s.end, &mut s.prefix][at] = long), TooLarge, "4097 bytes");
    }
}

#[test]
fn foreign_messages_schemas_and_bytes_are_refused() {
    let body = archive(&Command { operations: vec![put("n", b"k", vec![])] });
    let wrong = FrameHeader { schema: 9, ..header(MessageType::Write, &body) };
    refused(request(&wrong, &body).map(|_| ()), UnsupportedSchema, "schema 9");
    refused(verdict(MessageType::Recall, &body), BadBody, "not a valid RecallRequest");
    refused(verdict(MessageType::WriteReply, &body), UnknownMessage, "WriteReply");
    refused(verdict(MessageType::Hello, &body), UnknownMessage, "Hello");
    let unknown = FrameHeader { message_type: 999, ..header(MessageType::Write, &body) };
    refused(request(&unknown, &body).map(|_| ()), UnknownMessage, "message type 999");
}

#[test]
fn hellos_are_checked() {
    let verdict = |version_min, version_max, client: &str| {
        let body = archive(&Hello { version_min, version_max, client: client.to_owned() });
        hello(access::<ArchivedHello>(&body).expect("valid"))
    };
    assert_eq!(verdict(1, 1, "me"), Ok(()));
    refused(verdict(2, 1, "me"), InvalidArgument, "speaks no version");
    refused(verdict(1, 1, &"x".repeat(256)), TooLarge, "client name");
}

#[test]
fn a_command_routes_to_one_shard() {
    let ring = Ring::new(8, 150); // a, b, default, tenant-7, müller: 0, 3, 6, 5, 3
    let route = |named: ShardId, operations: Vec<Operation>| {
        let body = archive(&Command { operations });
        let header = FrameHeader { shard: named, ..header(MessageType::Write, &body) };
        request(&header, &body).expect("valid").shard(&header, &ring)
    };
    let both = || vec![put("b", b"k", vec![]), put("b", b"l", vec![]), put("müller", b"k", vec![])];
    assert_eq!(route(ShardId::ANY, both()), Ok(Some(ShardId(3))));
    assert_eq!(route(ShardId(3), both()), Ok(Some(ShardId(3))));
    refused(route(ShardId(2), both()).map(|_| ()), WrongShard, "names shard 2, but its namespace lives on shard 3");
    let mixed = vec![put("b", b"k", vec![]), put("müller", b"l", vec![]), put("a", b"k", vec![])];
    refused(route(ShardId::ANY, mixed).map(|_| ()), CrossShard, "operation 2 is in namespace \"a\" on shard 0");

    let body = archive(&StatusRequest { verbose: false });
    let header = header(MessageType::Status, &body);
    assert_eq!(request(&header, &body).expect("valid").shard(&header, &ring), Ok(None));
    let body = archive(&GetRequest { namespace: "tenant-7".into(), key: vec![1] });
    let header = FrameHeader::for_body(MessageType::Get, 1, &body);
    assert_eq!(request(&header, &body).expect("valid").shard(&header, &ring), Ok(Some(ShardId(5))));
}
