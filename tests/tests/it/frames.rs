//! Frames and requests that no client of ours would send, byte by byte through a socket: each is answered as `rpc/PROTOCOL.md` says,
//! and neither other connections nor the data notice.

use crate::binary;
use gristmill_rpc::blocking::Client;
use gristmill_rpc::body::Body;
use gristmill_rpc::body::archive;
use gristmill_rpc::error::ErrorCode;
use gristmill_rpc::frame::{FrameHeader, MessageType};
use gristmill_rpc::ids::{GrainId, ShardId};
use gristmill_rpc::limits::{FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES, HELLO_BODY_BYTES_MAX, KEY_BYTES_MAX};
use gristmill_rpc::message::read;
use gristmill_rpc::schema::{
    COMMAND_SCHEMA, Command, ErrorReply, GetReply, GetRequest, Grain, Hello, Operation, RecallRequest, ScanRequest,
};
use gristmill_tests::{Server, scratch};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// How long an answer may take on a busy machine. Only a test that fails waits so long.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// A connection without a client behind it.
pub(crate) struct Wire(TcpStream);

impl Wire {
    pub(crate) fn connect(address: &str) -> Wire {
        let socket = TcpStream::connect(address).expect("the server accepts");
        socket.set_read_timeout(Some(ANSWER_MAX)).expect("a socket takes a timeout");
        Wire(socket)
    }

    /// Connected, and the hello is through.
    pub(crate) fn greeted(address: &str) -> Wire {
        let mut wire = Wire::connect(address);
        wire.send(&hello());
        let (header, _) = wire.receive().expect("a hello is answered");
        assert_eq!(header.message_type, MessageType::HelloReply as u16);
        wire
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("the server takes it");
    }

    /// The next frame, or `None` where the server has closed.
    pub(crate) fn receive(&mut self) -> Option<(FrameHeader, Body)> {
        let mut header = [0; FRAME_HEADER_BYTES];
        match self.0.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset].contains(&error.kind()) => {
                return None;
            }
            Err(error) => panic!("no answer within {ANSWER_MAX:?}: {error}"),
        }
        let header = FrameHeader::decode(&header).expect("the server sends frames");
        let mut body = vec![0; header.body_length as usize];
        self.0.read_exact(&mut body).expect("a frame's body follows");
        header.check_body(&body).expect("intact");
        Some((header, Body::copy_from(&body)))
    }

    /// The error that answers the request `correlation`, which must come next.
    pub(crate) fn error(&mut self, what: &str, correlation: u64) -> ErrorReply {
        let (header, body) = self.receive().unwrap_or_else(|| panic!("{what}: closed without an answer"));
        assert_eq!(header.correlation, correlation, "{what}");
        assert_eq!(header.message_type, MessageType::Error as u16, "{what}");
        read::<ErrorReply>(&body).expect("an error reply")
    }

    fn expect(&mut self, what: &str, correlation: u64, code: ErrorCode) {
        let error = self.error(what, correlation);
        assert_eq!(ErrorCode::from_wire(error.code), Some(code), "{what}: {}", error.message);
        assert!(!error.retriable && !error.message.is_empty(), "{what} stays wrong");
    }

    /// A good request on this very connection.
    fn expect_alive(&mut self, what: &str) {
        self.send(&get(7777));
        let (header, body) = self.receive().unwrap_or_else(|| panic!("after {what}: closed"));
        assert_eq!((header.correlation, header.message_type), (7777, MessageType::GetReply as u16), "after {what}");
        let found = read::<GetReply>(&body).expect("a reply").value.expect("stored at first");
        assert_eq!(found.value, b"v", "after {what}");
    }

    /// The server says what is wrong with the connection as a whole and closes it.
    fn expect_end(&mut self, what: &str, code: ErrorCode) {
        self.expect(what, 0, code);
        assert!(self.receive().is_none(), "{what}: the connection goes on");
    }
}

pub(crate) fn frame(message: MessageType, correlation: u64, body: &[u8]) -> Vec<u8> {
    encode(&header(message, correlation, body), body)
}

fn header(message: MessageType, correlation: u64, body: &[u8]) -> FrameHeader {
    let schema = if message == MessageType::Write { COMMAND_SCHEMA } else { 0 };
    FrameHeader { schema, ..FrameHeader::for_body(message, correlation, body) }
}

fn encode(header: &FrameHeader, body: &[u8]) -> Vec<u8> {
    [&header.encode()[..], body].concat()
}

fn hello() -> Vec<u8> {
    let body = archive(&Hello { version_min: 1, version_max: 1, client: "frames".into() });
    frame(MessageType::Hello, 1, &body)
}

fn get_body() -> Body {
    archive(&GetRequest { namespace: "a".into(), key: b"k".to_vec() })
}

fn get(correlation: u64) -> Vec<u8> {
    frame(MessageType::Get, correlation, &get_body())
}

fn put_body() -> Body {
    archive(&Command { operations: vec![Operation::put("a", b"intruder", b"x")] })
}

/// A server with one value, and a client that has seen it.
fn server(dir: &tempfile::TempDir) -> (Server, Client) {
    let server = Server::start(binary(), dir.path(), &["--shards", "4"]);
    let mut client = server.client();
    client.put("a", b"k", b"v").expect("a healthy server");
    (server, client)
}

/// Another connection goes on, and the one value is the only one.
fn assert_unharmed(client: &mut Client, what: &str) {
    let scan = ScanRequest {
        namespace: "a".into(),
        start: Vec::new(),
        end: Vec::new(),
        prefix: Vec::new(),
        limit: 0,
        reverse: false,
    };
    let found = client.scan(&scan).unwrap_or_else(|error| panic!("{what} broke another connection: {error}"));
    let found: Vec<_> = found.items.iter().map(|item| (&item.key[..], &item.value[..])).collect();
    assert_eq!(found, [(&b"k"[..], &b"v"[..])], "after {what}");
}

#[test]
fn a_frame_that_is_refused_is_answered_and_skipped() {
    let dir = scratch();
    let (server, mut client) = server(&dir);
    let mut wire = Wire::greeted(&server.address());
    let (get, put) = (get_body(), put_body());
    let good = header(MessageType::Get, 40, &get);
    let write = header(MessageType::Write, 40, &put);
    let cases = [
        ("a foreign version", FrameHeader { version: 99, ..write }, &put, ErrorCode::UnsupportedVersion),
        ("version 0", FrameHeader { version: 0, ..write }, &put, ErrorCode::UnsupportedVersion),
        ("a flag", FrameHeader { flags: 1 << 15, ..write }, &put, ErrorCode::BadFrame),
        ("a wrong body CRC", FrameHeader { body_crc: write.body_crc ^ 1, ..write }, &put, ErrorCode::BadFrame),
        ("an unknown type", FrameHeader { message_type: 999, ..good }, &get, ErrorCode::UnknownMessage),
        ("a reply's type", FrameHeader { message_type: 13, ..good }, &get, ErrorCode::UnknownMessage),
        ("another schema", FrameHeader { schema: 7, ..write }, &put, ErrorCode::UnsupportedSchema),
        ("another type's body", FrameHeader { message_type: 18, ..good }, &get, ErrorCode::BadBody),
        ("no body", header(MessageType::Get, 40, &[]), &Body::copy_from(&[]), ErrorCode::BadBody),
    ];
    for (what, header, body, code) in cases {
        wire.send(&encode(&header, body));
        wire.expect(what, 40, code);
        wire.expect_alive(what);
        assert_unharmed(&mut client, what);
    }
    wire.send(&hello());
    wire.expect("a second hello", 1, ErrorCode::UnknownMessage);
    wire.send(&encode(&FrameHeader { shard: ShardId(3), ..good }, &get));
    let wrong_shard = wire.error("another shard", 40);
    assert_eq!(ErrorCode::from_wire(wrong_shard.code), Some(ErrorCode::WrongShard), "{}", wrong_shard.message);
    assert!(wrong_shard.retriable, "with the right shard");
    wire.expect_alive("another shard");
    assert_unharmed(&mut client, "all of them");
}

#[test]
fn an_oversized_frame_is_answered_at_its_header_and_skipped() {
    let dir = scratch();
    let (server, mut client) = server(&dir);
    let mut wire = Wire::greeted(&server.address());
    for excess in [1, 16, 4096] {
        let length = FRAME_BODY_BYTES_MAX + excess;
        let header = FrameHeader { body_length: length, ..header(MessageType::Write, 5, &[]) };
        wire.send(&header.encode());
        // Before a single byte of the body.
        wire.expect("an oversized frame", 5, ErrorCode::TooLarge);
        wire.send(&vec![0x5a; length as usize]);
        wire.expect_alive("an oversized frame");
        assert_unharmed(&mut client, "an oversized frame");
    }
}

/// A frame follows the one before it directly, wherever that ends: neither its place nor its length need be a multiple of anything.
#[test]
fn frames_of_any_length_follow_each_other() {
    let dir = scratch();
    let (server, mut client) = server(&dir);
    let mut wire = Wire::greeted(&server.address());
    let mut all = Vec::new();
    for length in 0..40_u64 {
        // A body that is no archive, and a good one behind it, at each place within 16 bytes.
        all.extend(frame(MessageType::Get, 100 + length, &vec![0xff; length as usize]));
        all.extend(get(200 + length));
    }
    for chunk in all.chunks(61) {
        wire.send(chunk);
    }
    let mut answers = Vec::new();
    for _ in 0..80 {
        let (header, _) = wire.receive().expect("each is answered");
        answers.push((header.correlation, header.message_type));
    }
    answers.sort_unstable();
    let bad = (100..140).map(|correlation| (correlation, MessageType::Error as u16));
    let good = (200..240).map(|correlation| (correlation, MessageType::GetReply as u16));
    assert_eq!(answers, bad.chain(good).collect::<Vec<_>>(), "each is answered once, by what it is");
    assert_unharmed(&mut client, "frames of any length");
}

/// Whoever pads bodies to 16 bytes has misread the protocol: the padding stands where the next frame's magic should.
#[test]
fn padding_between_frames_ends_the_connection() {
    let dir = scratch();
    let (server, mut client) = server(&dir);
    for padding in [1, 8, 15] {
        let mut wire = Wire::greeted(&server.address());
        wire.expect_alive("the hello");
        wire.send(&[vec![0; padding], get(4), put_frame(5)].concat());
        wire.expect_end("padding", ErrorCode::BadFrame);
        assert_unharmed(&mut client, "padding");
    }
}

fn put_frame(correlation: u64) -> Vec<u8> {
    frame(MessageType::Write, correlation, &put_body())
}

/// The root of an archive ends where the body ends. Moved by a few bytes, its parts lie at odd places: that must show.
#[test]
fn a_misaligned_archive_is_refused() {
    let dir = scratch();
    let (server, mut client) = server(&dir);
    let mut wire = Wire::greeted(&server.address());
    for (message, body) in [(MessageType::Write, put_body()), (MessageType::Get, get_body())] {
        for shift in (1..16).filter(|shift| shift % 4 != 0) {
            for moved in [[&vec![0; shift][..], &body].concat(), [&body[..], &vec![0; shift]].concat()] {
                wire.send(&frame(message, 9, &moved));
                wire.expect(&format!("{message:?} moved by {shift}"), 9, ErrorCode::BadBody);
            }
        }
        for cut in 1..body.len().min(16) {
            wire.send(&frame(message, 10, &body[cut..]));
            let error = wire.error("its beginning cut off", 10);
            assert_eq!(ErrorCode::from_wire(error.code), Some(ErrorCode::BadBody), "{cut}: {}", error.message);
        }
    }
    wire.expect_alive("misaligned archives");
    assert_unharmed(&mut client, "misaligned archives");
}

#[test]
fn any_garbled_header_ends_its_own_connection_and_says_why() {
    let dir = scratch();
    let (server, mut client) = server(&dir);
    for byte in 0..FRAME_HEADER_BYTES {
        let mut wire = Wire::greeted(&server.address());
        let mut garbled = put_frame(6);
        garbled[byte] ^= 1 << (byte % 8);
        wire.send(&garbled);
        wire.expect_end(&format!("byte {byte} garbled"), ErrorCode::BadFrame);
    }
    assert_unharmed(&mut client, "garbled headers");
}

#[test]
fn any_garbled_body_is_answered() {
    let dir = scratch();
    let (server, mut client) = server(&dir);
    let mut wire = Wire::greeted(&server.address());
    let whole = put_frame(6);
    for byte in FRAME_HEADER_BYTES..whole.len() {
        let mut garbled = whole.clone();
        garbled[byte] ^= 1 << (byte % 8);
        wire.send(&garbled);
        wire.expect(&format!("byte {byte} garbled"), 6, ErrorCode::BadFrame);
    }
    wire.expect_alive("garbled bodies");
    assert_unharmed(&mut client, "garbled bodies");
}

/// The stream ends in the middle of a frame: what is not whole was never asked.
#[test]
fn a_truncated_frame_does_nothing() {
    let dir = scratch();
    let (server, mut client) = server(&dir);
    let whole = put_frame(6);
    for sent in [1, 40, 63, 64, 65, whole.len() - 1] {
        let mut wire = Wire::greeted(&server.address());
        wire.send(&[get(2), whole[..sent].to_vec()].concat());
        wire.0.shutdown(Shutdown::Write).expect("connected");
        let (header, _) = wire.receive().expect("what was whole is answered");
        assert_eq!(header.correlation, 2);
        assert!(wire.receive().is_none(), "{sent} bytes are no request");
        assert_unharmed(&mut client, "a truncated frame");
    }
}

#[test]
fn nothing_is_served_before_the_hello() {
    let dir = scratch();
    let (server, mut client) = server(&dir);
    let mut wire = Wire::connect(&server.address());
    wire.send(&put_frame(2));
    wire.expect("a write before the hello", 2, ErrorCode::UnknownMessage);
    let long = vec![0; HELLO_BODY_BYTES_MAX as usize + 1];
    wire.send(&frame(MessageType::Hello, 3, &long));
    wire.expect("a long hello", 3, ErrorCode::TooLarge);
    let body = archive(&Hello { version_min: 7, version_max: 9, client: "from the future".into() });
    wire.send(&frame(MessageType::Hello, 4, &body));
    wire.expect("no common version", 4, ErrorCode::UnsupportedVersion);
    wire.send(&hello());
    let (header, _) = wire.receive().expect("a hello may follow one that was refused");
    assert_eq!(header.message_type, MessageType::HelloReply as u16);
    wire.expect_alive("the hello");
    assert_unharmed(&mut client, "requests before the hello");
}

fn grain(vector: Option<Vec<f32>>) -> Grain {
    Grain {
        id: GrainId::from_name("grain"),
        namespace: "b".into(),
        subject: "grain".into(),
        text: None,
        vector,
        relations: Vec::new(),
        tags: Vec::new(),
        payload: Vec::new(),
    }
}

/// The clients refuse all of this themselves. A server must not rely on it.
#[test]
fn requests_that_a_client_would_not_send_are_refused_by_the_server() {
    let dir = scratch();
    let (server, mut client) = server(&dir);
    client.put_grain(grain(Some(vec![1.0, 0.0, 0.0]))).expect("a good grain");
    let mut wire = Wire::greeted(&server.address());
    let invalid = ErrorCode::InvalidArgument;
    let vector = |vector: Vec<f32>| vec![Operation::PutGrain { grain: grain(Some(vector)) }];
    let far_apart = (0..64).map(|number| Operation::put(&format!("ns{number}"), b"x", b"x"));
    let writes = [
        ("an empty key", vec![Operation::put("a", b"", b"x")], invalid),
        ("an over-long key", vec![Operation::put("a", &[1; KEY_BYTES_MAX + 1], b"x")], ErrorCode::TooLarge),
        ("an empty namespace", vec![Operation::put("", b"x", b"x")], invalid),
        ("an over-long namespace", vec![Operation::put(&"n".repeat(256), b"x", b"x")], ErrorCode::TooLarge),
        ("no operation", Vec::new(), invalid),
        ("a good operation and a bad one", vec![Operation::put("a", b"x", b"x"), Operation::delete("a", b"")], invalid),
        ("a NaN", vector(vec![0.0, f32::NAN, 0.0]), invalid),
        ("an infinity", vector(vec![0.0, f32::NEG_INFINITY, 0.0]), invalid),
        ("zeros", vector(vec![0.0; 3]), invalid),
        ("no component", vector(Vec::new()), invalid),
        ("too many components", vector(vec![1.0; 4097]), ErrorCode::TooLarge),
        ("another dimension", vector(vec![1.0; 4]), ErrorCode::WrongDimension),
        ("several shards", far_apart.collect(), ErrorCode::CrossShard),
    ];
    for (what, operations, code) in writes {
        wire.send(&frame(MessageType::Write, 11, &archive(&Command { operations })));
        wire.expect(what, 11, code);
        wire.expect_alive(what);
    }
    let query = |namespace: &str, vector: Option<Vec<f32>>| RecallRequest {
        namespace: namespace.into(),
        text: None,
        vector,
        relation: None,
        tags: Vec::new(),
        subject: String::new(),
        limit: 0,
        candidates: 0,
        with_grains: false,
    };
    let recalls = [
        ("no leg", query("b", None), invalid),
        ("a query with a NaN", query("b", Some(vec![f32::NAN, 0.0, 1.0])), invalid),
        ("an infinite query", query("b", Some(vec![f32::INFINITY, 0.0, 1.0])), invalid),
        ("a query of another dimension", query("b", Some(vec![1.0; 2])), ErrorCode::WrongDimension),
        ("a query of nothing known", query("never-written", Some(vec![1.0; 2])), ErrorCode::UnknownNamespace),
    ];
    for (what, request, code) in recalls {
        wire.send(&frame(MessageType::Recall, 12, &archive(&request)));
        wire.expect(what, 12, code);
        wire.expect_alive(what);
    }
    let reads = [("an empty key", b"".to_vec(), invalid), ("an over-long key", vec![1; 5000], ErrorCode::TooLarge)];
    for (what, key, code) in reads {
        wire.send(&frame(MessageType::Get, 13, &archive(&GetRequest { namespace: "a".into(), key })));
        wire.expect(what, 13, code);
    }
    let unknown = archive(&GetRequest { namespace: "never-written".into(), key: b"k".to_vec() });
    wire.send(&frame(MessageType::Get, 14, &unknown));
    wire.expect("an unknown namespace", 14, ErrorCode::UnknownNamespace);
    assert_unharmed(&mut client, "bad requests");
    let stored = client.get_grain("b", GrainId::from_name("grain")).expect("a healthy server").expect("stored");
    assert_eq!(stored.0.vector, Some(vec![1.0, 0.0, 0.0]), "as it was");
}

/// The server process's largest memory so far, in bytes.
fn memory_max(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// A client that asks for much and reads nothing used to make the server gather all of the answers: hundreds of requests fit into
/// one receive, and scans in flight did not count for what they would bring.
#[test]
fn a_client_that_does_not_read_costs_bounded_memory() {
    const GETS: u64 = 160;
    const SCANS: u64 = 96;
    let dir = scratch();
    let server = Server::start(binary(), dir.path(), &["--shards", "1", "--cores", "1"]);
    let mut client = server.client();
    for key in 0..2 {
        client.put("a", &[key], &vec![key; 3 << 20]).expect("a healthy server");
    }
    let before = memory_max(&server);
    let scan = ScanRequest {
        namespace: "a".into(),
        start: Vec::new(),
        end: Vec::new(),
        prefix: Vec::new(),
        limit: 0,
        reverse: false,
    };
    let (mut getter, mut scanner) = (Wire::greeted(&server.address()), Wire::greeted(&server.address()));
    let key = archive(&GetRequest { namespace: "a".into(), key: vec![0] });
    getter.send(&(0..GETS).flat_map(|number| frame(MessageType::Get, 2 + number, &key)).collect::<Vec<u8>>());
    let page = archive(&scan);
    scanner.send(&(0..SCANS).flat_map(|number| frame(MessageType::Scan, 2 + number, &page)).collect::<Vec<u8>>());
    // Scans take turns: when these are answered, so are all that the server has begun for the others.
    for _ in 0..4 {
        assert_eq!(client.scan(&scan).expect("others are served").items.len(), 2);
    }
    let held = memory_max(&server) - before;
    assert!(held < 400 << 20, "{} MiB are held for clients that do not read", held >> 20);
    for (wire, count, reply) in
        [(&mut getter, GETS, MessageType::GetReply), (&mut scanner, SCANS, MessageType::ScanReply)]
    {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..count {
            let (header, _) = wire.receive().expect("every request is answered in the end");
            assert_eq!(header.message_type, reply as u16);
            seen.insert(header.correlation);
        }
        assert_eq!(seen, (2..2 + count).collect(), "each once");
    }
    assert!(memory_max(&server) - before < 400 << 20);
}
