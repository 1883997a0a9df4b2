use super::*;
use crate::protocol::{Request, ServerConnection, ServerOffer};
use crate::schema::{GetReply, GetRequest, Versioned};
use proptest::prelude::*;

fn hello_reply() -> HelloReply {
    HelloReply {
        version: PROTOCOL_VERSION,
        server: "gristmill test".to_owned(),
        store: [7; 16],
        shards: 2,
        ring_vnodes: 150,
        core_ports: vec![1000],
        shard_cores: vec![0, 0],
        frame_body_bytes_max: 1 << 20,
        in_flight_max: 3,
    }
}

fn call(key: u64) -> Call {
    Call {
        message: MessageType::Get,
        body: archive(&GetRequest { namespace: "a".to_owned(), key: key.to_le_bytes().to_vec() }),
        shard: ShardId(1),
        session: SessionId(5),
        sequence: key,
    }
}

/// Both halves, joined by memory.
struct Pair {
    client: Connection,
    server: ServerConnection,
}

impl Pair {
    fn new() -> Pair {
        let server = ServerConnection::new(ServerOffer::new(&hello_reply()));
        Pair { client: Connection::new("test", 100), server }
    }

    fn greeted() -> Pair {
        let mut pair = Pair::new();
        assert_eq!(pair.carry_up(), []);
        assert_eq!(pair.carry_down(), [Event::Ready]);
        pair
    }

    fn carry_up(&mut self) -> Vec<Request> {
        let bytes = self.client.output().to_vec();
        self.client.advance_output(bytes.len());
        let (mut input, mut requests) = (&bytes[..], Vec::new());
        while let Some(request) = self.server.receive(&mut input).expect("valid frames") {
            requests.push(request);
        }
        requests
    }

    fn carry_down(&mut self) -> Vec<Event> {
        let bytes = self.server.take_output(Vec::new());
        let (mut input, mut events) = (&bytes[..], Vec::new());
        while let Some(event) = self.client.receive(&mut input).expect("valid frames") {
            events.push(event);
        }
        events
    }

    fn answer(&mut self, request: &Request) {
        let value = Some(Versioned { version: crate::ids::Version(1), value: request.body.to_vec() });
        self.server.reply(request.accepted, &archive(&GetReply { value }));
    }
}

#[test]
fn nothing_is_sent_before_the_hello_is_answered() {
    let mut pair = Pair::new();
    assert_eq!(pair.client.submit(&call(1), None, 0), Err(SubmitError::NotReady));
    pair.carry_up();
    assert_eq!(pair.carry_down(), [Event::Ready]);
    assert_eq!(pair.client.hello(), Some(&hello_reply()));
    assert!(pair.client.submit(&call(1), None, 0).is_ok());
}

#[test]
fn the_header_carries_what_the_call_says() {
    let mut pair = Pair::greeted();
    let correlation = pair.client.submit(&call(9), Some(50), 1234).expect("room");
    let requests = pair.carry_up();
    let header = requests[0].header;
    assert_eq!((header.correlation, header.shard, header.deadline_ms), (correlation, ShardId(1), 1234));
    assert_eq!((header.session, header.sequence, header.schema), (SessionId(5), 9, 0));
    assert_eq!(requests[0].body, call(9).body);
    let write = Call { message: MessageType::Write, ..call(9) };
    pair.client.submit(&write, None, 0).expect("room");
    assert_eq!(pair.carry_up()[0].header.schema, COMMAND_SCHEMA);
}

#[test]
fn replies_find_their_requests_in_any_order() {
    let mut pair = Pair::greeted();
    let sent: Vec<u64> = (0..3).map(|key| pair.client.submit(&call(key), None, 0).expect("room")).collect();
    let requests = pair.carry_up();
    pair.answer(&requests[2]);
    pair.server.reject(requests[0].accepted, &Rejection::new(ErrorCode::Recovering, "soon").retry_after_ms(20));
    pair.answer(&requests[1]);
    let events = pair.carry_down();
    let order: Vec<u64> = events
        .iter()
        .map(|event| match event {
            Event::Reply { correlation, .. } => *correlation,
            Event::Ready => 0,
        })
        .collect();
    assert_eq!(order, [sent[2], sent[0], sent[1]]);
    let Event::Reply { result: Err(error), .. } = &events[1] else { panic!("{events:?}") };
    assert_eq!((error.code, error.retriable, error.retry_after_ms), (Some(ErrorCode::Recovering), true, 20));
    assert_eq!(pair.client.in_flight(), 0);
}

#[test]
fn the_servers_offer_bounds_what_is_in_flight() {
    let mut pair = Pair::greeted();
    for key in 0..3 {
        pair.client.submit(&call(key), None, 0).expect("room");
    }
    let bytes = 3 * call(0).body.len() as u64;
    assert_eq!(pair.client.submit(&call(3), None, 0), Err(SubmitError::Full { requests: 3, bytes }));
    let requests = pair.carry_up();
    pair.client.forget(2);
    assert!(pair.client.submit(&call(3), None, 0).is_err(), "the server still works on what was given up");
    pair.answer(&requests[0]);
    assert_eq!(pair.carry_down(), [], "nobody waits for it");
    assert!(pair.client.submit(&call(3), None, 0).is_ok());
    let large = Call { body: Body::copy_from(&vec![0; (1 << 20) + 1]), ..call(0) };
    let refused = SubmitError::TooLarge { length: (1 << 20) + 1, limit: 1 << 20 };
    assert_eq!(pair.client.submit(&large, None, 0), Err(refused));
}

#[test]
fn deadlines_expire_in_order_and_only_once() {
    let mut pair = Pair::greeted();
    let late = pair.client.submit(&call(0), Some(30), 0).expect("room");
    let soon = pair.client.submit(&call(1), Some(10), 0).expect("room");
    let answered = pair.client.submit(&call(2), Some(20), 0).expect("room");
    let requests = pair.carry_up();
    pair.answer(&requests[2]);
    assert_eq!(pair.carry_down().len(), 1);
    assert_eq!(pair.client.next_deadline(), Some(10));
    assert_eq!(pair.client.expire(9), None);
    assert_eq!(pair.client.expire(100), Some(soon));
    assert_eq!(pair.client.expire(100), Some(late), "{answered} was answered");
    assert_eq!((pair.client.expire(100), pair.client.next_deadline()), (None, None));
    pair.answer(&requests[0]);
    pair.answer(&requests[1]);
    assert_eq!(pair.carry_down(), [], "too late");
    assert_eq!(pair.client.in_flight(), 0);
}

fn frame(message: u16, correlation: u64, body: &[u8]) -> Vec<u8> {
    let header = FrameHeader { message_type: message, ..FrameHeader::for_body(MessageType::Get, correlation, body) };
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

fn fatal(client: &mut Connection, bytes: &[u8]) -> ConnectionError {
    client.receive(&mut &bytes[..]).expect_err("final")
}

#[test]
fn a_refused_hello_is_final() {
    let mut client = Connection::new("test", 1);
    let reply = Rejection::new(ErrorCode::UnsupportedVersion, "too old").to_reply();
    let error = fatal(&mut client, &frame(MessageType::Error as u16, 1, &archive(&reply)));
    let ConnectionError::Refused(error) = error else { panic!("{error:?}") };
    assert_eq!((error.code, error.message.as_str()), (Some(ErrorCode::UnsupportedVersion), "too old"));
}

#[test]
fn a_hello_that_contradicts_itself_is_final() {
    let bad = [
        HelloReply { shards: 3, ..hello_reply() },
        HelloReply { shards: 0, shard_cores: vec![], ..hello_reply() },
        HelloReply { shard_cores: vec![0, 1], ..hello_reply() },
        HelloReply { core_ports: vec![], ..hello_reply() },
        HelloReply { ring_vnodes: 0, ..hello_reply() },
        HelloReply { ring_vnodes: u32::MAX, ..hello_reply() },
        HelloReply { in_flight_max: 0, ..hello_reply() },
        HelloReply { frame_body_bytes_max: 10, ..hello_reply() },
    ];
    for reply in bad {
        let error = fatal(&mut Connection::new("t", 1), &frame(MessageType::HelloReply as u16, 1, &archive(&reply)));
        assert!(matches!(error, ConnectionError::Hello(_)), "{reply:?}: {error:?}");
    }
    let reply = archive(&HelloReply { version: 2, ..hello_reply() });
    let error = fatal(&mut Connection::new("t", 1), &frame(MessageType::HelloReply as u16, 1, &reply));
    assert_eq!(error, ConnectionError::Frame(FrameError::Version { found: 2 }));
}

#[test]
fn what_answers_nothing_is_final() {
    let (hello_reply, get_reply, scan_reply) = (2, 13, 17);
    for (message_type, correlation) in [(get_reply, 77), (scan_reply, 2), (hello_reply, 1), (999, 2), (12, 2)] {
        let mut pair = Pair::greeted();
        assert_eq!(pair.client.submit(&call(0), None, 0), Ok(2));
        let error = fatal(&mut pair.client, &frame(message_type, correlation, b""));
        assert_eq!(error, ConnectionError::Unexpected { message_type, correlation });
    }
    let error = fatal(&mut Connection::new("t", 1), &frame(get_reply, 1, b""));
    assert_eq!(error, ConnectionError::Unexpected { message_type: get_reply, correlation: 1 });
}

#[test]
fn damage_and_notices_are_final() {
    let mut pair = Pair::greeted();
    pair.client.submit(&call(0), None, 0).expect("room");
    let requests = pair.carry_up();
    pair.answer(&requests[0]);
    let mut bytes = pair.server.take_output(Vec::new());
    *bytes.last_mut().expect("bytes") ^= 1;
    assert!(matches!(fatal(&mut pair.client, &bytes), ConnectionError::Frame(FrameError::BodyCrc { .. })));

    let mut pair = Pair::greeted();
    pair.server.notify(&Rejection::new(ErrorCode::ShuttingDown, "back in a minute"));
    let bytes = pair.server.take_output(Vec::new());
    let ConnectionError::Refused(error) = fatal(&mut pair.client, &bytes) else { panic!("a notice") };
    assert_eq!(error.code, Some(ErrorCode::ShuttingDown));

    let mut pair = Pair::greeted();
    let error = fatal(&mut pair.client, &frame(MessageType::Error as u16, 0, b"no archive"));
    assert!(matches!(error, ConnectionError::Body(_)));
}

#[test]
fn unknown_error_codes_keep_their_number_and_retriability() {
    let reply = ErrorReply { code: 999, retriable: true, retry_after_ms: 3, message: "from the future".to_owned() };
    let error = ServerError::from(reply);
    assert_eq!((error.code, error.number, error.retriable), (None, 999, true));
}

proptest! {
    /// Whatever the order of answers and the split of the bytes, each request gets its own answer once.
    #[test]
    fn each_request_gets_its_answer_once(
        choices in prop::collection::vec((0_u8..3, any::<usize>(), 1_usize..200), 1..120),
    ) {
        let mut pair = Pair::greeted();
        let (mut waiting, mut expected) = (Vec::new(), std::collections::BTreeMap::new());
        let (mut up, mut down): (Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new());
        let drain = (0..200).map(|at| (1 + at % 2, 0, usize::MAX));
        for (key, (what, which, amount)) in choices.into_iter().chain(drain).enumerate() {
            match what {
                0 => if let Ok(correlation) = pair.client.submit(&call(key as u64), None, 0) {
                    expected.insert(correlation, call(key as u64).body);
                },
                1 => {
                    up.extend_from_slice(pair.client.output());
                    pair.client.advance_output(pair.client.output().len());
                    let rest = up.split_off(amount.min(up.len()));
                    let mut input = &up[..];
                    while let Some(request) = pair.server.receive(&mut input).expect("valid") {
                        waiting.push(request);
                    }
                    up = rest;
                }
                _ => {
                    if !waiting.is_empty() {
                        let request = waiting.swap_remove(which % waiting.len());
                        pair.answer(&request);
                    }
                    down.extend(pair.server.take_output(Vec::new()));
                    let rest = down.split_off(amount.min(down.len()));
                    let mut input = &down[..];
                    while let Some(event) = pair.client.receive(&mut input).expect("valid") {
                        let Event::Reply { correlation, result } = event else { panic!("ready twice") };
                        let body = result.expect("an answer");
                        let reply = read::<GetReply>(&body).expect("valid").value.expect("a value");
                        prop_assert_eq!(Some(reply.value), expected.remove(&correlation).map(|body| body.to_vec()));
                    }
                    down = rest;
                }
            }
            prop_assert_eq!(pair.client.in_flight() as usize, expected.len());
        }
        prop_assert!(expected.is_empty(), "all were answered in the end");
    }
}
