//! Translation against hostile bytes, and a link against servers that are away, silent, wrong or short-lived.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::link::{CALLS_QUEUED_MAX, CallError, Link};
use super::*;
use crate::raft::types::{Entry, Payload, Proposal, RaftMembership, to_log_id};
use crate::state::envelope::EntryHeader;
use crate::state::hlc::Hlc;
use gristmill_rpc::body::access;
use gristmill_rpc::frame::PROTOCOL_VERSION;
use gristmill_rpc::peer::{
    AppendReply, AppendRequest, ArchivedAppendRequest, Ballot, LogPlace, PeerHelloReply, Replica, VoteReply,
};
use gristmill_rpc::protocol::{ServerConnection, ServerOffer};
use gristmill_rpc::schema::HelloReply;
use gristmill_shardexec::net::{ListenOptions, TcpListener, TcpStream};
use gristmill_shardexec::time::sleep;
use gristmill_shardexec::{Class, Executor, ExecutorConfig, IoChoice, spawn};
use gristmill_wal::{FencingToken, LogPosition};
use openraft::entry::RaftEntry;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

const SHARD: ShardId = ShardId(3);

fn on_executor<F: Future>(future: F) -> F::Output {
    let config = ExecutorConfig { io: IoChoice::Posix, ..ExecutorConfig::default() };
    Executor::start(config).unwrap().block_on(future)
}

const fn replica(node: u64) -> ReplicaId {
    ReplicaId { node, incarnation: 1 }
}

fn entries() -> Vec<Entry> {
    let at = |index| to_log_id(LogPosition { term: 7, index });
    let token = FencingToken::new(7, 9);
    let header = EntryHeader {
        shard: SHARD,
        term: 7,
        index: 42,
        token: token.raw(),
        ..EntryHeader::sweep(Hlc { physical_ms: 1, logical: 2 })
    };
    let membership = RaftMembership::new_with_defaults(vec![BTreeSet::from([replica(1), replica(2)])], [replica(3)]);
    let payloads = [
        Payload::Blank,
        Payload::Normal(Proposal { header, body: Body::copy_from(b"a command as its client made it") }),
        Payload::Membership(membership),
    ];
    let stamped = |(index, payload)| Entry { token: Some(token), ..Entry::new(at(index), payload) };
    (41..).zip(payloads).map(stamped).collect()
}

fn request() -> AppendEntriesRequest<TypeConfig> {
    AppendEntriesRequest {
        vote: RaftVote::new_committed(8, replica(1)),
        prev_log_id: Some(to_log_id(LogPosition { term: 6, index: 40 })),
        entries: entries(),
        leader_commit: Some(to_log_id(LogPosition { term: 6, index: 39 })),
    }
}

fn received(body: &Body) -> Result<AppendEntriesRequest<TypeConfig>, WireError> {
    wire::append_in(SHARD, access::<ArchivedAppendRequest>(body).unwrap())
}

#[test]
fn an_append_arrives_as_it_was_sent() {
    let body = wire::append(replica(2), &request());
    let came = received(&body).unwrap();
    let sent = request();
    assert_eq!((came.vote, came.prev_log_id, came.leader_commit), (sent.vote, sent.prev_log_id, sent.leader_commit));
    assert_eq!(format!("{:?}", came.entries), format!("{:?}", sent.entries));
    let Payload::Normal(proposal) = &came.entries[1].payload else { panic!("a command") };
    assert_eq!(proposal.body.as_slice(), b"a command as its client made it");
    assert_eq!(wire::append(replica(2), &came), body, "the very same bytes");
}

/// The leader's bytes pass a CRC, but a leader may be wrong, too.
#[test]
fn garbled_appends_are_refused_or_harmless() {
    let body = wire::append(replica(2), &request());
    for length in 0..body.len() {
        assert!(access::<ArchivedAppendRequest>(&Body::copy_from(&body[..length])).is_err(), "truncated to {length}");
    }
    let mut refused = 0;
    for bit in 0..body.len() * 8 {
        let mut bytes = body.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let body = Body::copy_from(&bytes);
        let taken = access::<ArchivedAppendRequest>(&body).ok().map(|archived| wire::append_in(SHARD, archived));
        refused += u32::from(!matches!(taken, Some(Ok(_))));
    }
    assert!(refused > 500, "{refused}");
}

#[test]
fn what_no_leader_sends_is_refused_by_name() {
    let changed = |change: fn(&mut AppendRequest)| {
        let mut message = read::<AppendRequest>(&wire::append(replica(2), &request())).unwrap();
        change(&mut message);
        received(&archive(&message)).unwrap_err()
    };
    assert!(matches!(changed(|it| it.ballot.committed = false), WireError::Ballot { term: 8, .. }));
    assert!(matches!(changed(|it| it.ballot.term = 1 << 32), WireError::Ballot { .. }));
    assert!(matches!(changed(|it| it.ballot.term = 6), WireError::Term { index: 41, .. }), "beyond its leader");
    assert!(matches!(changed(|it| it.entries[0].token = 6 << 32), WireError::Term { index: 41, term: 7, .. }));
    let back = changed(|it| it.previous = Some(LogPlace { term: 8, index: 40 }));
    assert!(matches!(back, WireError::Term { index: 41, .. }), "terms go back");
    assert_eq!(changed(|it| it.entries[1].header = None), WireError::Parts { index: 42, kind: 1 });
    assert_eq!(changed(|it| it.entries[0].body = Body::copy_from(b"x")), WireError::Parts { index: 41, kind: 0 });
    assert!(matches!(changed(|it| it.entries[0].kind = 9), WireError::Entry(_)));
    assert!(matches!(changed(|it| it.entries[2].body = Body::copy_from(b"no members")), WireError::Entry(_)));
    let other_shard = wire::append_in(ShardId(4), access(&wire::append(replica(2), &request())).unwrap());
    assert!(matches!(other_shard.unwrap_err(), WireError::Entry(_)), "the header names shard 3");
}

fn options() -> LinkOptions {
    LinkOptions { silence_max: Duration::from_millis(100), ..LinkOptions::default() }
}

fn link(address: Option<SocketAddr>, options: LinkOptions) -> Link {
    let addresses = address.map(|address| (2, address)).into_iter().collect();
    let book = PeerBook::new(ClusterId([1; 16]), replica(1), (4, 150), addresses);
    Link::start(2, book, options)
}

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0".parse().unwrap(), ListenOptions::default()).await.unwrap()
}

fn vote() -> (MessageType, Body) {
    let request = VoteRequest::new(RaftVote::new(3, replica(1)), None);
    (MessageType::Vote, archive(&wire::vote(replica(2), &request)))
}

async fn call(link: &Link) -> Result<Body, CallError> {
    let (message, body) = vote();
    let answer = link.call(SHARD, message, body, Duration::from_secs(1));
    timeout(Duration::from_secs(20), answer).await.expect("every call is answered").unwrap()
}

fn reason(outcome: Result<Body, CallError>) -> String {
    let Err(CallError::Unreachable { node: 2, reason }) = outcome else { panic!("{outcome:?}") };
    reason.to_string()
}

/// Serves one connection as `node`: so many votes, then it hangs up.
async fn serve(socket: TcpStream, node: u64, votes: usize) {
    let offer = ServerOffer::new(&HelloReply {
        version: PROTOCOL_VERSION,
        server: String::new(),
        store: [0; 16],
        shards: 4,
        ring_vnodes: 150,
        core_ports: vec![1],
        shard_cores: vec![0; 4],
        frame_body_bytes_max: 1 << 20,
        in_flight_max: 64,
    });
    let (mut protocol, mut served) = (ServerConnection::new(Arc::clone(&offer)), 0);
    while served < votes {
        let (received, buffer) = socket.recv(Vec::with_capacity(4096)).await;
        if !matches!(received, Ok(1..)) {
            return;
        }
        let mut input = &buffer[..];
        while let Some(request) = protocol.receive(&mut input).unwrap() {
            let own = Replica { node, incarnation: 1 };
            let ballot = Ballot { term: 3, candidate: own, committed: false };
            let reply = if request.accepted.message() == MessageType::PeerHello {
                archive(&PeerHelloReply { replica: own })
            } else {
                served += 1;
                archive(&VoteReply { ballot, granted: true, last: None })
            };
            protocol.reply(request.accepted, &reply);
        }
        let output = protocol.take_output(Vec::new());
        if !output.is_empty() {
            socket.send_all(output).await.0.unwrap();
        }
    }
}

#[test]
fn a_link_to_nobody_says_so_and_fails_at_once_for_a_while() {
    on_executor(async {
        let nowhere = link(None, options());
        assert_eq!(reason(call(&nowhere).await), "its address is not known");
        let (message, body) = vote();
        let mut at_once = nowhere.call(SHARD, message, body, Duration::from_secs(1));
        assert!(matches!(at_once.try_recv(), Some(Err(CallError::Unreachable { .. }))), "nobody waits in the pause");
        let address = listen().await.local_addr();
        let refused = reason(call(&link(Some(address), options())).await);
        assert!(refused.contains(&address.to_string()), "{refused}");
    });
}

#[test]
fn a_link_connects_again_after_its_peer_has_hung_up() {
    on_executor(async {
        let listener = listen().await;
        let link = link(Some(listener.local_addr()), options());
        let accepted = Rc::new(Cell::new(0));
        let count = Rc::clone(&accepted);
        spawn(Class::Request, "peer", async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                count.set(count.get() + 1);
                serve(socket, 2, 2).await;
            }
        });
        let mut answered = 0;
        for _ in 0..200 {
            match call(&link).await {
                Ok(body) => {
                    assert!(read::<VoteReply>(&body).unwrap().granted);
                    answered += 1;
                }
                Err(error) => assert!(matches!(error, CallError::Unreachable { .. }), "{error}"),
            }
            if answered == 6 {
                break;
            }
            sleep(Duration::from_millis(2)).await;
        }
        assert_eq!((answered, accepted.get()), (6, 3), "two votes a connection");
    });
}

#[test]
fn a_peer_that_is_silent_or_another_is_given_up() {
    on_executor(async {
        let listener = listen().await;
        let silent = reason(call(&link(Some(listener.local_addr()), options())).await);
        assert!(silent.contains("said nothing"), "{silent}");
        let other = listen().await;
        let address = other.local_addr();
        spawn(Class::Request, "peer", async move {
            let (socket, _) = other.accept().await.unwrap();
            serve(socket, 3, 1).await;
        });
        assert_eq!(reason(call(&link(Some(address), options())).await), "node 3 answers at its address");
    });
}

#[test]
fn what_waits_for_a_peer_is_bounded_and_makes_room_when_given_up() {
    on_executor(async {
        let listener = listen().await;
        let patient = LinkOptions { silence_max: Duration::from_mins(1), ..options() };
        let link = link(Some(listener.local_addr()), patient);
        let call = || {
            let (message, body) = vote();
            link.call(SHARD, message, body, Duration::from_secs(1))
        };
        let waiting: Vec<_> = (0..CALLS_QUEUED_MAX).map(|_| call()).collect();
        let mut surplus = call();
        assert!(matches!(surplus.try_recv(), Some(Err(CallError::Busy { calls: CALLS_QUEUED_MAX, .. }))));
        drop(waiting);
        assert!(call().try_recv().is_none(), "it waits");
    });
}

#[test]
fn a_client_keeps_to_openrafts_limit_and_refuses_bad_answers() {
    on_executor(async {
        let listener = listen().await;
        let book =
            PeerBook::new(ClusterId([1; 16]), replica(1), (4, 150), BTreeMap::from([(2, listener.local_addr())]));
        let patient = LinkOptions { silence_max: Duration::from_mins(1), ..options() };
        let links = Some(PeerLinks::new(book, patient));
        let mut network = PeerNetwork { shard: SHARD, own: replica(1), links, stats: Rc::default() };
        let mut client = network.new_client(replica(2), &EmptyNode {}).await;
        let request = VoteRequest::new(RaftVote::new(3, replica(1)), None);
        let silent = client.pre_vote(request.clone(), RPCOption::new(Duration::from_millis(40))).await;
        assert!(matches!(silent, Err(RPCError::Timeout(_))), "silence is no grant: {silent:?}");
        let append = client.append_entries(super::tests::request(), RPCOption::new(Duration::from_millis(40))).await;
        assert!(matches!(append, Err(RPCError::Timeout(_))), "{append:?}");
        assert_eq!((network.stats.appends_sent.get(), network.stats.votes_sent.get()), (1, 0));

        let nonsense = Ok(Ok(Body::copy_from(b"nonsense")));
        assert!(matches!(client.receive::<AppendReply>(nonsense), Err(RPCError::Network(_))));

        let mut alone = PeerNetwork { shard: SHARD, own: replica(1), links: None, stats: Rc::default() };
        let mut client = alone.new_client(replica(2), &EmptyNode {}).await;
        let refused = client.vote(request, RPCOption::new(Duration::from_secs(1))).await;
        assert!(matches!(refused, Err(RPCError::Unreachable(_))), "{refused:?}");
    });
}
