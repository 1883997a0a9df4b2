use std::time::Duration;

use super::*;
use crate::client::RetryPolicy;
use crate::error::{ErrorCode, Rejection};
use crate::ids::ShardId;
use crate::schema::Relation;
use crate::testing::{FakeServer, Fault};

/// A port that only root may open and that nobody does.
const CLOSED_PORT: u16 = 1;

/// Retries at once and waits long: faults, not the clock, decide these tests.
fn options() -> ClientOptions {
    let backoff = Duration::from_millis(1);
    ClientOptions {
        request_timeout: Duration::from_mins(1),
        retry: RetryPolicy { attempts_max: 10, backoff_first: backoff, backoff_max: backoff },
        ..ClientOptions::default()
    }
}

fn connect(server: &FakeServer) -> Client {
    Client::connect_with(&server.address(), options()).expect("it listens")
}

fn grain() -> Grain {
    Grain {
        id: GrainId([3; 16]),
        namespace: "a".to_owned(),
        subject: "s".to_owned(),
        text: Some("t".to_owned()),
        vector: Some(vec![1.0, 2.0]),
        relations: vec![Relation { predicate: "p".to_owned(), object: "o".to_owned() }],
        tags: vec!["x".to_owned()],
        payload: vec![1, 2, 3],
    }
}

#[test]
fn every_call_reaches_the_server_and_comes_back() {
    let server = FakeServer::start(1, 1);
    let mut client = connect(&server);
    assert_eq!(client.get("a", b"k"), Ok(None));
    assert_eq!(client.put("a", b"k", b"v"), Ok(Version(1)));
    assert_eq!(client.get("a", b"k").expect("served").expect("there").value, b"v");
    let reply = client.cas("a", b"k", Expected::Value(b"v".to_vec()), Some(b"w")).expect("served");
    assert!(reply.applied && !reply.duplicate);
    let reply = client.cas("a", b"k", Expected::Absent, None).expect("served");
    assert_eq!(reply.failed.expect("it is there").found, Some(Version(2)));
    let range = ScanRequest {
        namespace: "a".to_owned(),
        start: Vec::new(),
        end: Vec::new(),
        prefix: Vec::new(),
        limit: 10,
        reverse: false,
    };
    assert_eq!(client.scan(&range).expect("served").items[0].value, b"w");
    assert_eq!(client.delete("a", b"k"), Ok(Version(3)));
    assert_eq!(client.put_grain(grain()), Ok(Version(4)));
    assert_eq!(client.get_grain("a", GrainId([3; 16])), Ok(Some((grain(), Version(4)))));
    let query = RecallRequest { text: Some("t".to_owned()), ..RecallRequest::new("a") };
    assert_eq!(client.recall(&query).expect("served").grains, 1);
    assert_eq!(client.delete_grain("a", GrainId([3; 16])), Ok(Version(5)));
    assert_eq!(client.get_grain("a", GrainId([3; 16])), Ok(None));
    assert_eq!(client.status(false).expect("served"), "{\"server\":\"fake\"}");
}

#[test]
fn pipelined_calls_are_matched_whatever_the_order() {
    let server = FakeServer::start(1, 1);
    let mut client = connect(&server);
    server.script([Fault::Hold, Fault::Hold, Fault::None]);
    let tickets: Vec<_> = (0..1000_u32)
        .map(|key| client.submit(&Command { operations: vec![Operation::put("a", &key.to_le_bytes(), b"v")] }))
        .collect::<Result<_, _>>()
        .expect("valid");
    let versions: Vec<u64> =
        tickets.iter().rev().map(|ticket| client.wait(ticket).expect("served").version.0).collect();
    assert_eq!(versions, (1..=1000).rev().collect::<Vec<_>>(), "one connection keeps the order of arrival");
    assert_eq!(client.wait(&tickets[0]), Err(ClientError::UnknownTicket));
}

#[test]
fn a_write_whose_answer_was_lost_applies_once() {
    let server = FakeServer::start(1, 1);
    let mut client = connect(&server);
    server.script([Fault::CloseAfter, Fault::CloseBefore, Fault::None]);
    let reply = client.batch(vec![Operation::put("a", b"k", b"v")]).expect("retried");
    assert!(reply.duplicate, "the first sending did apply");
    assert_eq!((reply.version, server.world().applied), (Version(1), 1));
    assert_eq!(server.world().requests[&0], 3);
}

#[test]
fn passing_errors_are_retried_and_lasting_ones_are_not() {
    let server = FakeServer::start(1, 1);
    let mut client = connect(&server);
    let reject = |code| Fault::Reject(Rejection::new(code, "as scripted"));
    server.script([reject(ErrorCode::Recovering), reject(ErrorCode::Overloaded), reject(ErrorCode::DiskFull)]);
    assert_eq!(client.put("a", b"k", b"v"), Ok(Version(1)));
    server.script([reject(ErrorCode::WrongDimension)]);
    let error = client.put("a", b"k", b"v").expect_err("lasting");
    assert_eq!((error.code(), error.to_string().as_str()), (Some(ErrorCode::WrongDimension), "as scripted"));
    assert_eq!(server.world().requests[&0], 5);
    server.script((0..20).map(|_| reject(ErrorCode::Overloaded)));
    let error = client.get("a", b"k").expect_err("ten attempts");
    assert_eq!(error.code(), Some(ErrorCode::Overloaded));
    let requests = server.world().requests[&0];
    assert_eq!(requests, 15, "{error:?}");
}

/// A client whose ring is not the server's would be sent away for ever.
#[test]
fn a_client_that_names_the_wrong_shard_lets_the_server_choose() {
    let server = FakeServer::start(1, 1);
    let mut client = connect(&server);
    server.script([Fault::Reject(Rejection::new(ErrorCode::WrongShard, "as scripted"))]);
    assert_eq!(client.put("a", b"k", b"v"), Ok(Version(1)));
    assert_eq!(server.world().shards, [ShardId(0), ShardId::ANY]);
}

/// The map of the first hello stayed in force whatever the server answered.
#[test]
fn a_client_that_named_the_wrong_shard_asks_for_the_map_again() {
    let server = FakeServer::start(2, 8); // b: shard 3 on core 1
    let mut client = connect(&server);
    client.put("b", b"k", b"v").expect("served");
    server.offer(|hello| hello.core_ports[1] = CLOSED_PORT);
    server.script([Fault::Reject(Rejection::new(ErrorCode::WrongShard, "as scripted"))]);
    client.put("b", b"k", b"v").expect("through the given address");
    assert_eq!(client.map().core_of(ShardId(3)), Some((1, CLOSED_PORT)));
    client.put("b", b"k", b"v").expect("through the given address");
    assert_eq!(server.world().requests, [(0, 2), (1, 2)].into(), "the link by the old map is gone");
}

/// Names were looked up once: a client whose server had moved tried the old address until its calls timed out.
#[test]
fn a_name_that_leads_nowhere_is_looked_up_again() {
    let server = FakeServer::start(1, 1);
    let options = ClientOptions { direct: false, ..options() };
    let mut client = Client::connect_with(&server.address(), options).expect("it listens");
    client.engine.mislead(([127, 0, 0, 1], CLOSED_PORT).into());
    server.cut();
    assert_eq!(client.put("a", b"k", b"v"), Ok(Version(1)));
}

/// A retry without a pause was due in the very millisecond of its failure, which was taken for waiting for room: the
/// client slept until the call's deadline.
#[test]
fn retries_without_a_pause_are_not_slept_through() {
    let server = FakeServer::start(1, 1);
    let retry = RetryPolicy { attempts_max: 50, ..RetryPolicy::NONE };
    let mut client = Client::connect_with(&server.address(), ClientOptions { retry, ..options() }).expect("it listens");
    drop(server);
    let error = client.get("a", b"k").expect_err("nobody listens");
    assert!(matches!(error, ClientError::Connect { .. } | ClientError::Disconnected { .. }), "{error:?}");
}

#[test]
fn endless_times_do_not_overflow() {
    let server = FakeServer::start(2, 8);
    let ever = Duration::MAX;
    let options = ClientOptions {
        connect_timeout: ever,
        request_timeout: ever,
        read_timeout: ever,
        write_timeout: ever,
        ..ClientOptions::default()
    };
    let mut client = Client::connect_with(&server.address(), options.clone()).expect("it listens");
    assert_eq!(client.put("b", b"k", b"v"), Ok(Version(1)));
    let retry = RetryPolicy { backoff_first: ever, backoff_max: ever, ..RetryPolicy::default() };
    let options = ClientOptions { request_timeout: Duration::from_mins(1), retry, ..options };
    let mut client = Client::connect_with(&server.address(), options).expect("it listens");
    server.script([Fault::CloseBefore]);
    let error = client.get("b", b"k").expect_err("the pause is longer than the call may take");
    assert!(matches!(error, ClientError::Timeout { attempts: 1, .. }), "{error:?}");
}

#[test]
fn bad_requests_are_refused_before_they_are_sent() {
    let server = FakeServer::start(2, 8);
    let mut client = connect(&server);
    let error = client.put("a", b"", b"v").expect_err("an empty key");
    assert_eq!(error.code(), Some(ErrorCode::InvalidArgument));
    let mut bad = grain();
    bad.vector = Some(vec![f32::NAN]);
    assert_eq!(client.put_grain(bad).expect_err("NaN").code(), Some(ErrorCode::InvalidArgument));
    let operations = vec![Operation::put("a", b"k", b"v"), Operation::put("b", b"k", b"v")];
    assert_eq!(client.batch(operations).expect_err("two shards").code(), Some(ErrorCode::CrossShard));
    assert!(server.world().requests.is_empty());
    assert_eq!(client.put("a", b"k", b"v"), Ok(Version(1)), "the connection is intact");
}

#[test]
fn garbage_from_the_server_costs_the_connection_and_not_the_call() {
    let server = FakeServer::start(1, 1);
    let mut client = connect(&server);
    server.script([Fault::Garbage]);
    let reply = client.batch(vec![Operation::put("a", b"k", b"v")]).expect("retried on a new connection");
    assert!(reply.duplicate);
    assert_eq!(server.world().applied, 1);
    assert_eq!(server.world().connections, 2);
}

#[test]
fn a_call_ends_at_its_deadline_and_its_ticket_can_be_sent_again() {
    let server = FakeServer::start(1, 1);
    let options = ClientOptions { request_timeout: Duration::from_millis(30), ..options() };
    let mut client = Client::connect_with(&server.address(), options).expect("it listens");
    server.script([Fault::Silence]);
    let ticket = client.submit(&Command { operations: vec![Operation::put("a", b"k", b"v")] }).expect("valid");
    let error = client.wait(&ticket).expect_err("no answer");
    assert_eq!((error.code(), error.retriable()), (Some(ErrorCode::DeadlineExceeded), true));
    let reply = (0..1000)
        .find_map(|_| {
            let again = client.resubmit(&ticket);
            client.wait(&again).ok()
        })
        .expect("served in the end, however slow this machine");
    assert!(reply.duplicate);
    assert_eq!(server.world().applied, 1);
}

#[test]
fn a_silent_connection_is_given_up_and_the_call_goes_on_elsewhere() {
    let server = FakeServer::start(1, 1);
    let options = ClientOptions { read_timeout: Duration::from_millis(20), ..options() };
    let mut client = Client::connect_with(&server.address(), options).expect("it listens");
    server.script([Fault::Silence]);
    assert_eq!(client.put("a", b"k", b"v"), Ok(Version(1)));
    assert_eq!(server.world().applied, 1);
    assert!(server.world().connections > 1);
}

#[test]
fn requests_go_to_the_core_that_owns_the_shard() {
    let server = FakeServer::start(2, 8); // a, b: shards 0, 3 on cores 0, 1
    let mut client = connect(&server);
    for _ in 0..5 {
        client.put("a", b"k", b"v").expect("served");
        client.put("b", b"k", b"v").expect("served");
    }
    assert_eq!(server.world().requests, [(0, 5), (1, 5)].into());
    let mut through_one =
        Client::connect_with(&server.address(), ClientOptions { direct: false, ..options() }).expect("it listens");
    through_one.put("b", b"k", b"v").expect("served");
    assert_eq!(server.world().requests, [(0, 6), (1, 5)].into());
}

#[test]
fn an_unreachable_core_is_reached_through_the_given_address() {
    let server = FakeServer::start_with(1, |hello| {
        (hello.core_ports, hello.shard_cores) = (vec![hello.core_ports[0], CLOSED_PORT], vec![1]);
    });
    let mut client = connect(&server);
    assert_eq!(client.put("a", b"k", b"v"), Ok(Version(1)));
    let other = FakeServer::start_with(1, |hello| hello.store = [1; 16]);
    let foreign = other.hello.core_ports[0];
    let server = FakeServer::start_with(1, |hello| {
        (hello.core_ports, hello.shard_cores) = (vec![hello.core_ports[0], foreign], vec![1]);
    });
    let mut client = connect(&server);
    assert_eq!(client.put("a", b"k", b"v"), Ok(Version(1)), "another store's port is not used");
    assert!(other.world().requests.is_empty());
}

#[test]
fn cut_connections_are_opened_again() {
    let server = FakeServer::start(2, 8);
    let mut client = connect(&server);
    for round in 1..=5 {
        let tickets: Vec<_> = ["a", "b"]
            .into_iter()
            .cycle()
            .take(20)
            .map(|namespace| client.submit(&Command { operations: vec![Operation::put(namespace, b"k", b"v")] }))
            .collect::<Result<_, _>>()
            .expect("valid");
        client.flush();
        server.cut();
        for ticket in &tickets {
            client.wait(ticket).expect("retried");
        }
        assert_eq!(server.world().applied, round * 20);
    }
}

#[test]
fn another_store_at_the_same_address_is_noticed() {
    let server = FakeServer::start(1, 1);
    let mut client = connect(&server);
    server.offer(|hello| hello.store = [1; 16]);
    server.cut();
    let error = client.get("a", b"k").expect_err("another store");
    assert!(matches!(error, ClientError::StoreChanged { .. }), "{error:?}");
    assert!(!error.retriable());
}

#[test]
fn a_server_that_is_back_with_other_ports_is_routed_anew() {
    let server = FakeServer::start(2, 8);
    let mut client = connect(&server);
    client.put("b", b"k", b"v").expect("served");
    server.offer(|hello| hello.core_ports[1] = CLOSED_PORT);
    server.cut();
    client.put("b", b"k", b"v").expect("through the given address");
    assert_eq!(client.map().core_of(ShardId(3)), Some((1, server.hello.core_ports[1])), "not asked yet");
    client.status(false).expect("served");
    assert_eq!(client.map().core_of(ShardId(3)), Some((1, CLOSED_PORT)));
}

#[test]
fn errors_of_connecting_say_where() {
    let error = Client::connect("no port").expect_err("not an address");
    assert!(matches!(error, ClientError::Address { .. }) && error.to_string().contains("give host:port"));
    let error = Client::connect(&format!("127.0.0.1:{CLOSED_PORT}")).expect_err("nobody listens");
    assert!(error.retriable() && error.to_string().contains("is the server running there?"), "{error}");
}

#[test]
fn large_values_travel_both_ways_while_others_are_under_way() {
    let server = FakeServer::start(1, 1);
    let mut client = connect(&server);
    let large: Vec<u8> = (0..crate::limits::VALUE_BYTES_MAX).map(|at| (at * 7) as u8).collect();
    client.put("a", b"large", &large).expect("served");
    let request = GetRequest { namespace: "a".to_owned(), key: b"large".to_vec() };
    let put = Command { operations: vec![Operation::put("a", b"other", &large)] };
    let tickets: Vec<_> =
        (0..8).map(|_| (client.submit(&put).expect("valid"), client.submit(&request).expect("valid"))).collect();
    for (put, get) in &tickets {
        client.wait(put).expect("served");
        let reply = client.wait(get).expect("served");
        assert!(reply.value.expect("there").value == large);
    }
}

#[test]
fn answers_that_nobody_waits_for_are_dropped() {
    let server = FakeServer::start(1, 1);
    let mut client = connect(&server);
    for _ in 0..100 {
        drop(client.submit(&Command { operations: vec![Operation::put("a", b"k", b"v")] }).expect("valid"));
    }
    client.get("a", b"k").expect("served").expect("there");
    assert_eq!(server.world().applied, 100);
    assert_eq!(client.engine.kept(), 0);
}

/// The engine looked whether a ticket was alive only when its answer came in; a ticket that was dropped afterwards left
/// its answer behind for ever.
#[test]
fn an_answer_goes_with_its_ticket() {
    let server = FakeServer::start(1, 1);
    let mut client = connect(&server);
    let ticket = client.submit(&Command { operations: vec![Operation::put("a", b"k", b"v")] }).expect("valid");
    client.get("a", b"k").expect("served").expect("there"); // one connection keeps the order: the put is answered
    drop(ticket);
    assert_eq!(client.engine.kept(), 0);
}

#[test]
fn a_ticket_is_answered_by_the_client_that_gave_it() {
    let server = FakeServer::start(1, 1);
    let (mut client, mut other) = (connect(&server), connect(&server));
    server.script([Fault::Silence]);
    let write = Command { operations: vec![Operation::put("a", b"k", b"v")] };
    let (ticket, same_number) = (client.submit(&write).expect("valid"), other.submit(&write).expect("valid"));
    assert_eq!(client.wait(&same_number), Err(ClientError::UnknownTicket));
    client.get("a", b"k").expect("served");
    drop(ticket);
}

/// A ticket of another client resolved the write of the same number in this client's session, so that the session's
/// window no longer covered it.
#[test]
fn anothers_ticket_leaves_the_session_alone() {
    let server = FakeServer::start(1, 1);
    let (mut client, mut other) = (connect(&server), connect(&server));
    let write = Command { operations: vec![Operation::put("a", b"k", b"v")] };
    let theirs = other.submit(&write).expect("valid");
    other.wait(&theirs).expect("served");
    server.script([Fault::Silence]);
    let _unanswered = client.submit(&write).expect("valid");
    let again = client.resubmit(&theirs);
    assert!(client.wait(&again).expect("served").duplicate);
    assert_eq!(client.engine.unresolved_writes(), 1, "ours is still under way");
}
