//! What clients may hold on to: places and time. Limits are small here; `ConnectionLimits` has those in force.

use crate::frames::{Wire, frame};
use gristmill::server::{ConnectionLimits, Node, NodeConfig};
use gristmill_rpc::blocking::Client;
use gristmill_rpc::body::archive;
use gristmill_rpc::error::ErrorCode;
use gristmill_rpc::frame::MessageType;
use gristmill_rpc::schema::GetRequest;
use gristmill_tests::scratch;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

/// Longer than a test takes.
const NEVER: Duration = Duration::from_mins(10);

/// A node of one core in this process; stopped when dropped.
struct Limited {
    node: Option<Node>,
    _dir: tempfile::TempDir,
}

impl Limited {
    fn start(limits: ConnectionLimits) -> Limited {
        let dir = scratch();
        let config = NodeConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            cores: Some(1),
            connections: limits,
            ..NodeConfig::new(dir.path())
        };
        Limited { node: Some(Node::start(&config).expect("it starts")), _dir: dir }
    }

    fn address(&self) -> String {
        self.node.as_ref().expect("it runs").listening().listen.to_string()
    }

    fn client(&self) -> Client {
        Client::connect(&self.address()).expect("there is a place")
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let node = self.node.take().expect("dropped once");
        node.stop();
        node.wait().expect("it stops");
    }
}

/// Open connections, as the server counts them.
fn open(client: &mut Client) -> u64 {
    let status = client.status(false).expect("served");
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    status["cores"][0]["connections"].as_u64().expect("a number")
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_mins(1), "{what} never happened");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Sockets that say nothing used to hold their places for ever: 10,000 of them locked a core's port.
#[test]
fn who_does_not_say_hello_is_told_and_closed() {
    let limits = ConnectionLimits { hello_wait_max: Duration::from_millis(200), ..ConnectionLimits::default() };
    let node = Limited::start(limits);
    let mut client = node.client();
    let (mut silent, mut halting) = (Wire::connect(&node.address()), Wire::connect(&node.address()));
    halting.send(b"GRML");
    for wire in [&mut silent, &mut halting] {
        let error = wire.error("no hello", 0);
        assert_eq!(ErrorCode::from_wire(error.code), Some(ErrorCode::DeadlineExceeded), "{}", error.message);
        assert!(wire.receive().is_none(), "closed");
    }
    until("an idle connection that said hello stays, alone", || open(&mut client) == 1);
}

/// A client that reads nothing kept its place, and the server's memory, for as long as it liked.
#[test]
fn who_takes_nothing_of_its_replies_is_closed() {
    let limits = ConnectionLimits { send_wait_max: Duration::from_millis(200), ..ConnectionLimits::default() };
    let node = Limited::start(limits);
    let mut client = node.client();
    client.put("a", b"k", &vec![7; 4 << 20]).expect("stored");
    let others = open(&mut client);
    let mut deaf = Wire::greeted(&node.address());
    let get = archive(&GetRequest { namespace: "a".into(), key: b"k".to_vec() });
    deaf.send(&(2..34).flat_map(|number| frame(MessageType::Get, number, &get)).collect::<Vec<u8>>());
    until("the end of a connection that nobody reads", || open(&mut client) == others);
    assert_eq!(client.get("a", b"k").expect("others go on").map(|found| found.value.len()), Some(4 << 20));
}

#[test]
fn one_connection_too_many_is_told_so() {
    let limits = ConnectionLimits { count_max: 3, hello_wait_max: NEVER, send_wait_max: NEVER };
    let node = Limited::start(limits);
    let mut client = node.client();
    let silent = Wire::connect(&node.address());
    let _greeted = Wire::greeted(&node.address());
    for _ in 0..3 {
        let mut surplus = Wire::connect(&node.address());
        let error = surplus.error("one too many", 0);
        assert_eq!(ErrorCode::from_wire(error.code), Some(ErrorCode::Overloaded), "{}", error.message);
        assert!(error.retriable && error.retry_after_ms > 0);
        assert!(surplus.receive().is_none(), "closed");
    }
    assert_eq!(open(&mut client), 3);
    let status = client.status(true).expect("served");
    assert!(status.contains("connections_refused_total"), "{status}");
    drop(silent);
    until("a place becoming free", || open(&mut client) == 2);
    Wire::greeted(&node.address());
}
