use super::*;
use crate::body::access;
use crate::schema::{ArchivedErrorReply, ArchivedHelloReply, GetReply, GetRequest, Hello};

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

fn connection() -> ServerConnection {
    ServerConnection::new(ServerOffer::new(&hello_reply()))
}

fn greeted() -> ServerConnection {
    let mut connection = connection();
    assert_eq!(receive(&mut connection, &frame(MessageType::Hello, 1, &hello(1, 9))), []);
    let replies = output(&mut connection);
    assert_eq!(replies.len(), 1);
    assert_eq!(replies[0].header.message_type, MessageType::HelloReply as u16);
    connection
}

fn hello(version_min: u16, version_max: u16) -> Body {
    archive(&Hello { version_min, version_max, client: "test".to_owned() })
}

fn get() -> Body {
    archive(&GetRequest { namespace: "a".to_owned(), key: b"k".to_vec() })
}

fn frame(message: MessageType, correlation: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = FrameHeader::for_body(message, correlation, body).encode().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

fn receive(connection: &mut ServerConnection, mut input: &[u8]) -> Vec<Request> {
    let mut requests = Vec::new();
    while let Some(request) = connection.receive(&mut input).expect("not fatal") {
        requests.push(request);
    }
    requests
}

fn output(connection: &mut ServerConnection) -> Vec<Frame> {
    let bytes = connection.take_output(Vec::new());
    let (mut decoder, mut input, mut frames) = (FrameDecoder::new(FRAME_BODY_BYTES_MAX), &bytes[..], Vec::new());
    while let Some(decoded) = decoder.decode(&mut input).expect("we send valid frames") {
        let Decoded::Frame(frame) = decoded else { panic!("{decoded:?}") };
        frames.push(frame);
    }
    assert!(!decoder.mid_frame());
    frames
}

#[track_caller]
fn one_error(connection: &mut ServerConnection, correlation: u64, code: ErrorCode) -> String {
    let frames = output(connection);
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].header.message_type, MessageType::Error as u16);
    assert_eq!(frames[0].header.correlation, correlation);
    let error = access::<ArchivedErrorReply>(&frames[0].body).expect("valid");
    assert_eq!(ErrorCode::from_wire(error.code.to_native()), Some(code));
    assert_eq!(error.retriable, code.retriable());
    error.message.as_str().to_owned()
}

#[test]
fn the_hello_tells_what_was_offered() {
    let mut connection = connection();
    receive(&mut connection, &frame(MessageType::Hello, 5, &hello(0, 1)));
    let frames = output(&mut connection);
    assert_eq!(frames[0].header.correlation, 5);
    let reply = access::<ArchivedHelloReply>(&frames[0].body).expect("valid");
    assert_eq!((reply.version.to_native(), reply.shards.to_native(), reply.store), (PROTOCOL_VERSION, 2, [7; 16]));
}

#[test]
fn requests_are_answered_in_any_order() {
    let mut connection = greeted();
    let mut bytes = frame(MessageType::Get, 11, &get());
    bytes.extend(frame(MessageType::Get, 12, &get()));
    let requests = receive(&mut connection, &bytes);
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1].body, get());
    assert_eq!(connection.in_flight(), 2);
    let reply = archive(&GetReply { value: None });
    connection.reply(requests[1].accepted, &reply);
    connection.reject(requests[0].accepted, &Rejection::new(ErrorCode::Recovering, "later").retry_after_ms(9));
    assert_eq!(connection.in_flight(), 0);
    let frames = output(&mut connection);
    let seen: Vec<_> = frames.iter().map(|f| (f.header.correlation, f.header.message_type)).collect();
    assert_eq!(seen, [(12, MessageType::GetReply as u16), (11, MessageType::Error as u16)]);
    assert_eq!(frames[0].body, reply);
    let error = access::<ArchivedErrorReply>(&frames[1].body).expect("valid");
    assert_eq!((error.retriable, error.retry_after_ms.to_native()), (true, 9));
    assert!(connection.take_output(Vec::new()).is_empty());
}

#[test]
fn before_the_hello_nothing_else_is_taken() {
    let mut connection = connection();
    assert_eq!(receive(&mut connection, &frame(MessageType::Get, 3, &get())), []);
    assert!(one_error(&mut connection, 3, ErrorCode::UnknownMessage).contains("send Hello first"));
    let large = vec![0; HELLO_BODY_BYTES_MAX as usize + 1];
    assert_eq!(receive(&mut connection, &frame(MessageType::Hello, 4, &large)), []);
    one_error(&mut connection, 4, ErrorCode::TooLarge);
    receive(&mut connection, &frame(MessageType::Hello, 5, b"no archive"));
    one_error(&mut connection, 5, ErrorCode::BadBody);
    receive(&mut connection, &frame(MessageType::Hello, 6, &hello(2, 9)));
    assert!(one_error(&mut connection, 6, ErrorCode::UnsupportedVersion).contains("2 to 9"));
    receive(&mut connection, &frame(MessageType::Hello, 7, &hello(1, 1)));
    assert_eq!(output(&mut connection)[0].header.message_type, MessageType::HelloReply as u16);
}

#[test]
fn bad_frames_cost_one_error_and_not_the_connection() {
    let mut connection = greeted();
    let good = || frame(MessageType::Get, 99, &get());
    let mut garbled = frame(MessageType::Get, 1, &get());
    *garbled.last_mut().expect("bytes") ^= 1;
    let version = FrameHeader { version: 2, ..FrameHeader::for_body(MessageType::Get, 2, b"") };
    let flags = FrameHeader { flags: 1, ..FrameHeader::for_body(MessageType::Get, 3, b"") };
    let unknown = FrameHeader { message_type: 500, ..FrameHeader::for_body(MessageType::Get, 4, b"") };
    let cases = [
        (1, ErrorCode::BadFrame, garbled),
        (2, ErrorCode::UnsupportedVersion, version.encode().to_vec()),
        (3, ErrorCode::BadFrame, flags.encode().to_vec()),
        (4, ErrorCode::UnknownMessage, unknown.encode().to_vec()),
        (5, ErrorCode::UnknownMessage, frame(MessageType::GetReply, 5, b"")),
        (6, ErrorCode::UnknownMessage, frame(MessageType::Hello, 6, &hello(1, 1))),
        (7, ErrorCode::TooLarge, frame(MessageType::Write, 7, &vec![1; (1 << 20) + 1])),
    ];
    for (correlation, code, mut bytes) in cases {
        bytes.extend(good());
        let requests = receive(&mut connection, &bytes);
        assert_eq!(requests.len(), 1, "the good request after bad frame {correlation}");
        one_error(&mut connection, correlation, code);
        connection.reject(requests[0].accepted, &Rejection::new(ErrorCode::Internal, "done"));
        output(&mut connection);
    }
}

#[test]
fn requests_answered_with_an_error_are_counted_once() {
    let mut connection = greeted();
    let requests = receive(&mut connection, &frame(MessageType::Get, 2, &get()));
    connection.reject(requests[0].accepted, &Rejection::new(ErrorCode::NotLeader, "elsewhere"));
    receive(&mut connection, &frame(MessageType::GetReply, 3, &get()));
    assert_eq!((connection.take_errors(), connection.take_errors()), (2, 0));
    connection.receive(&mut &[0; 64][..]).expect_err("no frame");
    assert_eq!(connection.take_errors(), 0, "no request");
}

#[test]
fn a_lost_frame_border_is_told_and_final() {
    for damage in [0, 20, 63] {
        let mut connection = greeted();
        let mut bytes = frame(MessageType::Get, 1, &get());
        bytes[damage] ^= 0x40;
        let error = connection.receive(&mut &bytes[..]).expect_err("fatal");
        one_error(&mut connection, 0, ErrorCode::BadFrame);
        assert_eq!(connection.receive(&mut &frame(MessageType::Get, 1, &get())[..]), Err(error));
    }
}

/// Correlation 0 was taken, so the answer read like an end of the connection to the client.
#[test]
fn correlation_zero_is_refused() {
    let foreign = FrameHeader { version: 2, ..FrameHeader::for_body(MessageType::Get, 0, b"") };
    let mut damaged = frame(MessageType::Get, 0, &get());
    *damaged.last_mut().expect("bytes") ^= 1;
    for bytes in [frame(MessageType::Get, 0, &get()), foreign.encode().to_vec(), damaged] {
        let mut connection = greeted();
        let error = connection.receive(&mut &bytes[..]).expect_err("reserved");
        assert_eq!((error, error.fatal()), (FrameError::Correlation, true));
        assert!(one_error(&mut connection, 0, ErrorCode::BadFrame).contains("number requests from 1"));
        assert_eq!(connection.receive(&mut &frame(MessageType::Get, 1, &get())[..]), Err(error));
    }
    let mut connection = connection();
    connection.receive(&mut &frame(MessageType::Hello, 0, &hello(1, 1))[..]).expect_err("reserved in the hello, too");
}

#[test]
fn surplus_requests_are_told_to_wait() {
    let mut connection = greeted();
    let bytes: Vec<u8> = (1..=4).flat_map(|correlation| frame(MessageType::Get, correlation, &get())).collect();
    let requests = receive(&mut connection, &bytes);
    assert_eq!(requests.len(), 3, "the offer says three");
    one_error(&mut connection, 4, ErrorCode::Overloaded);
    connection.reply(requests[0].accepted, &archive(&GetReply { value: None }));
    assert_eq!(receive(&mut connection, &frame(MessageType::Get, 5, &get())).len(), 1, "a place is free again");
}

#[test]
fn the_bytes_in_flight_are_bounded() {
    let offer =
        HelloReply { frame_body_bytes_max: FRAME_BODY_BYTES_MAX, in_flight_max: IN_FLIGHT_MAX, ..hello_reply() };
    let mut connection = ServerConnection::new(ServerOffer::new(&offer));
    receive(&mut connection, &frame(MessageType::Hello, 1, &hello(1, 1)));
    output(&mut connection);
    let large = frame(MessageType::Write, 2, &vec![0; FRAME_BODY_BYTES_MAX as usize]);
    let held: Vec<_> = (0..8).flat_map(|_| receive(&mut connection, &large)).collect();
    assert_eq!(held.len() as u64, IN_FLIGHT_BYTES_MAX / u64::from(FRAME_BODY_BYTES_MAX));
    assert_eq!(receive(&mut connection, &frame(MessageType::Get, 3, &get())), []);
    one_error(&mut connection, 3, ErrorCode::Overloaded);
}

#[test]
fn replies_that_nobody_fetches_stop_the_input() {
    let mut connection = greeted();
    let reply = Body::copy_from(&vec![0; FRAME_BODY_BYTES_MAX as usize]);
    for correlation in 1..=2 {
        assert!(connection.wants_input());
        let requests = receive(&mut connection, &frame(MessageType::Scan, correlation, &get()));
        connection.reply(requests[0].accepted, &reply);
    }
    assert!(!connection.wants_input());
    assert_eq!(output(&mut connection).len(), 2);
    assert!(connection.wants_input());
}

/// One receive of 64 KiB can hold hundreds of requests for large values. All of them used to be served before anyone asked
/// whether there is room for the replies: 3 GiB of output at once.
#[test]
fn many_requests_in_one_receive_are_served_as_their_replies_are_fetched() {
    const REQUESTS: u64 = 500;
    let offer = HelloReply { in_flight_max: IN_FLIGHT_MAX, ..hello_reply() };
    let mut connection = ServerConnection::new(ServerOffer::new(&offer));
    receive(&mut connection, &frame(MessageType::Hello, 1, &hello(1, 1)));
    let bytes: Vec<u8> = (0..REQUESTS).flat_map(|number| frame(MessageType::Get, 2 + number, &get())).collect();
    assert!(bytes.len() <= 64 << 10);
    let (mut input, mut served, mut takes) = (&bytes[..], 0, 0);
    let value = Body::copy_from(&vec![0; VALUE_BYTES_MAX]);
    while served < REQUESTS {
        connection.take_output(Vec::new());
        takes += 1;
        while connection.wants_input() {
            let Some(request) = connection.receive(&mut input).expect("not fatal") else { break };
            connection.reply(request.accepted, &value);
            served += 1;
        }
        assert!(connection.output_bytes() <= OUTPUT_BYTES_HIGH + LARGE_REPLY_BYTES_MAX);
    }
    assert!(input.is_empty() && takes >= 100, "{takes} takes");
}

/// A scan or recall is answered later than it is read, so the output says nothing yet of what is to come.
#[test]
fn requests_in_flight_take_their_replies_out_of_the_budget() {
    let offer = HelloReply { in_flight_max: IN_FLIGHT_MAX, ..hello_reply() };
    let mut connection = ServerConnection::new(ServerOffer::new(&offer));
    receive(&mut connection, &frame(MessageType::Hello, 1, &hello(1, 1)));
    output(&mut connection);
    let bytes: Vec<u8> = (2..600).flat_map(|number| frame(MessageType::Scan, number, &get())).collect();
    let (mut input, mut waiting) = (&bytes[..], Vec::new());
    while connection.wants_input() {
        waiting.extend(connection.receive(&mut input).expect("not fatal"));
    }
    assert!(waiting.len() * LARGE_REPLY_BYTES_MAX <= REPLIES_BYTES_MAX && waiting.len() >= 8, "{}", waiting.len());
    let page = Body::copy_from(&vec![0; FRAME_BODY_BYTES_MAX as usize]);
    for request in waiting.drain(..) {
        connection.reply(request.accepted, &page);
    }
    assert!(connection.output_bytes() <= REPLIES_BYTES_MAX && !connection.wants_input());
    let sending = connection.take_output(Vec::new());
    assert!(!connection.wants_input(), "{} bytes are on their way", sending.len());
    connection.output_sent();
    assert!(connection.wants_input());
    // Writes have small replies: the number in flight bounds them, not the budget.
    for number in 0..u64::from(IN_FLIGHT_MAX) {
        assert!(connection.wants_input(), "after {number} writes");
        assert_eq!(receive(&mut connection, &frame(MessageType::Write, 1000 + number, &get())).len(), 1);
    }
}

#[test]
fn answers_that_nobody_takes_are_not_encoded() {
    let mut connection = greeted();
    let bytes: Vec<u8> = (2..5).flat_map(|number| frame(MessageType::Get, number, &get())).collect();
    let requests = receive(&mut connection, &bytes);
    let reply = archive(&GetReply { value: None });
    connection.reply(requests[0].accepted, &reply);
    connection.abandon_output();
    connection.reply(requests[1].accepted, &reply);
    connection.reject(requests[2].accepted, &Rejection::new(ErrorCode::Internal, "unheard"));
    assert_eq!((connection.in_flight(), connection.output_bytes(), connection.take_errors()), (0, 0, 1));
    assert!(connection.wants_input());
}

#[test]
fn a_reply_over_the_frame_limit_becomes_an_error() {
    let mut connection = greeted();
    let requests = receive(&mut connection, &frame(MessageType::Scan, 8, &get()));
    connection.reply(requests[0].accepted, &Body::copy_from(&vec![0; FRAME_BODY_BYTES_MAX as usize + 1]));
    assert!(one_error(&mut connection, 8, ErrorCode::TooLarge).contains("ask for less"));
}

#[test]
#[should_panic(expected = "answered more requests than were accepted")]
fn answering_twice_is_our_bug() {
    let mut connection = greeted();
    let accepted = receive(&mut connection, &frame(MessageType::Get, 1, &get()))[0].accepted;
    connection.reject(accepted, &Rejection::new(ErrorCode::Internal, "once"));
    connection.reject(accepted, &Rejection::new(ErrorCode::Internal, "twice"));
}

#[test]
#[should_panic(expected = "a consistent map")]
fn an_offer_that_contradicts_itself_is_our_bug() {
    ServerOffer::new(&HelloReply { shard_cores: vec![0, 1], ..hello_reply() });
}

#[test]
fn long_messages_are_cut_at_a_character() {
    let rejection = Rejection::new(ErrorCode::Internal, "é".repeat(5000));
    let reply = rejection.to_reply();
    assert!(reply.message.len() <= crate::limits::ERROR_MESSAGE_BYTES_MAX && reply.message.chars().all(|c| c == 'é'));
}
