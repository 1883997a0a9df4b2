//! A writing server is killed again and again: what it acknowledged must be there afterwards.

use crate::binary;
use gristmill_rpc::blocking::{Client, Ticket};
use gristmill_rpc::client::{ClientOptions, RetryPolicy};
use gristmill_rpc::schema::{Command, Operation, WriteReply};
use gristmill_tests::{Server, scratch};
use std::collections::{BTreeMap, VecDeque};
use std::thread;
use std::time::Duration;

/// Kills of the test.
const KILLS: u64 = 50;
/// Writes in flight.
const IN_FLIGHT: usize = 64;
/// Namespaces, so that every shard is written to.
const NAMESPACES: u64 = 8;

/// A deterministic stream of numbers (SplitMix64), so that a failure can be told by its cycle.
fn mix(mut seed: u64) -> u64 {
    seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    seed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    seed = (seed ^ (seed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    seed ^ (seed >> 31)
}

fn namespace(number: u64) -> String {
    format!("ns{}", number % NAMESPACES)
}

fn write(number: u64) -> Command {
    Command {
        operations: vec![Operation::Put {
            namespace: namespace(number),
            key: number.to_be_bytes().to_vec(),
            value: mix(number).to_be_bytes().to_vec(),
            ttl_ms: 0,
        }],
    }
}

/// Writes `first`, `first + 1`, … until the server is gone; the numbers that were acknowledged.
fn write_until_killed(mut client: Client, first: u64) -> (u64, Vec<u64>) {
    let mut waiting: VecDeque<(u64, Ticket<WriteReply>)> = VecDeque::new();
    let mut acknowledged = Vec::new();
    let mut next = first;
    loop {
        while waiting.len() < IN_FLIGHT {
            match client.submit(&write(next)) {
                Ok(ticket) => waiting.push_back((next, ticket)),
                Err(_) => return (next + 1, acknowledged),
            }
            next += 1;
        }
        let (number, ticket) = waiting.pop_front().expect("just filled");
        match client.wait(&ticket) {
            Ok(reply) => {
                assert!(reply.applied, "an unconditional write applies");
                acknowledged.push(number);
            }
            Err(_) => return (next, acknowledged),
        }
    }
}

#[test]
fn fifty_kills_lose_no_acknowledged_write() {
    let dir = scratch();
    let mut acknowledged: BTreeMap<u64, u64> = BTreeMap::new();
    let mut next = 0;
    for kill in 0..KILLS {
        let server = Server::start(binary(), dir.path(), &["--shards", "4"]);
        let mut client = server.client();
        check(&mut client, acknowledged.iter().rev().take(500).map(|(number, value)| (*number, *value)), kill);
        for shard in 0..NAMESPACES {
            // This client waits out the replay of each shard.
            client.put(&namespace(shard), b"cycle", &kill.to_be_bytes()).expect("a healthy server");
        }
        // The writer's client takes the first error for the end: it does not wait for a server that was killed.
        let options = ClientOptions { retry: RetryPolicy::NONE, ..ClientOptions::default() };
        let client = Client::connect_with(&server.address(), options).expect("the server accepts connections");
        let writer = thread::spawn(move || write_until_killed(client, next));
        thread::sleep(Duration::from_millis(5 + mix(kill) % 60));
        server.kill();
        let (after, confirmed) = writer.join().expect("the writer does not panic");
        next = after;
        acknowledged.extend(confirmed.into_iter().map(|number| (number, mix(number))));
    }
    assert!(acknowledged.len() > 1000, "vacuous: only {} writes were acknowledged", acknowledged.len());
    let server = Server::start(binary(), dir.path(), &[]);
    check(&mut server.client(), acknowledged.into_iter(), KILLS);
}

fn check(client: &mut Client, expected: impl Iterator<Item = (u64, u64)>, kill: u64) {
    for (number, value) in expected {
        let found = client.get(&namespace(number), &number.to_be_bytes()).expect("a healthy server answers");
        let found = found.map(|found| found.value);
        assert_eq!(
            found,
            Some(value.to_be_bytes().to_vec()),
            "write {number} was acknowledged and lost by kill {kill}"
        );
    }
}
