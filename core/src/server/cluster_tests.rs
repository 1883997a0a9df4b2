//! Whole nodes over the simulated world: executors, logs, connections, consensus. One seed, one run.

use super::hosted::core_programs;
use super::stop::StopSignal;
use super::{ClusterConfig, NodeConfig};
use crate::raft::{ClusterId, RaftSettings, ReplicaId, WalLogOptions};
use gristmill_rpc::body::archive;
use gristmill_rpc::error::ErrorCode;
use gristmill_rpc::ids::{SessionId, ShardId};
use gristmill_rpc::message::{RequestMessage, read};
use gristmill_rpc::peer::{AddLearner, Ballot, ChangeMembership, PeerHello, PreVoteRequest, Replica, VoteRequest};
use gristmill_rpc::protocol::{Call, Connection, Event};
use gristmill_rpc::schema::{Command, GetRequest, Operation, StatusRequest, WriteReply};
use gristmill_shardexec::net::TcpStream;
use gristmill_shardexec::sim::{self, FaultPlan, NodeId, SimConfig, Stop, World};
use gristmill_shardexec::time::timeout;
use gristmill_shardexec::{Class, CoreId, ExecutorConfig};
use gristmill_wal::WalOptions;
use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

const PORT: u16 = 7171;
const CLUSTER: ClusterId = ClusterId([0xc1; 16]);
const CORE: CoreId = CoreId(0);
/// How long a client of these tests waits for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(12);
/// And where much is lost.
const LOSSY_ANSWER_MAX: Duration = Duration::from_secs(1);

/// Why a call was not answered with success.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Failure {
    /// The server's code, and the leader that it named.
    Refused(ErrorCode, u64),
    /// No connection, or no answer in time.
    Lost,
}

/// Nodes numbered from 1, and a client on a machine of its own.
struct Cluster {
    world: World,
    nodes: Vec<NodeId>,
    client: NodeId,
    shards: u32,
    group_logs: WalLogOptions,
    answer_max: Duration,
}

impl Cluster {
    /// Node 1 founds, the others wait to be added.
    fn start(seed: u64, count: u64, shards: u32, group_logs: WalLogOptions) -> Cluster {
        let mut world = World::new(seed, SimConfig { faults: FaultPlan::none(), ..SimConfig::default() });
        let nodes: Vec<NodeId> = (0..count).map(|_| world.add_node(sim::NodeConfig::default())).collect();
        let client = world.add_node(sim::NodeConfig::default());
        world.start(client, CORE, &ExecutorConfig::default(), std::future::pending);
        let answer_max = ANSWER_MAX;
        let mut cluster = Cluster { world, nodes, client, shards, group_logs, answer_max };
        for node in 1..=count {
            cluster.start_node(node);
        }
        cluster
    }

    /// The same with every node a voter of every shard.
    fn joined(seed: u64, count: u64, shards: u32) -> Cluster {
        Cluster::joined_with(seed, count, shards, WalLogOptions::default())
    }

    fn joined_with(seed: u64, count: u64, shards: u32, group_logs: WalLogOptions) -> Cluster {
        let mut cluster = Cluster::start(seed, count, shards, group_logs);
        cluster.until(|cluster| cluster.is_ready(1));
        for shard in 0..shards {
            for node in 2..=count {
                cluster.until(|cluster| cluster.add(1, shard, node).is_ok());
            }
            let voters: Vec<u64> = (1..=count).collect();
            cluster.until(|cluster| cluster.change(1, shard, &voters).is_ok());
        }
        cluster
    }

    fn id(&self, node: u64) -> NodeId {
        self.nodes[node as usize - 1]
    }

    fn start_node(&mut self, node: u64) {
        let address = |other: u64| self.id(other).addr(PORT);
        let others = (1..=self.nodes.len() as u64).filter(|other| *other != node);
        let peers: BTreeMap<u64, SocketAddr> = others.map(|other| (other, address(other))).collect();
        let replica = ReplicaId { node, incarnation: 1 };
        let cluster = ClusterConfig { found: node == 1, ..ClusterConfig::new(CLUSTER, replica, peers) };
        let config = NodeConfig {
            listen: address(node),
            cores: Some(1),
            shards: Some(self.shards),
            insecure: true,
            wal: WalOptions::small(),
            group_logs: self.group_logs,
            cluster: Some(cluster),
            ..NodeConfig::new("/data")
        };
        let programs = core_programs(&config, &StopSignal::new(), drop).expect("the configuration is right");
        for program in programs {
            self.world.start(self.id(node), program.core(), &ExecutorConfig::default(), move || async move {
                program.run(drop).await.expect("nobody stops it and its disk is whole");
            });
        }
    }

    /// Nodes that faults take down are started again at once.
    fn run_for(&mut self, duration: Duration) {
        let until = self.world.now() + duration;
        loop {
            let stop = self.world.run_until(until, u64::MAX);
            assert_eq!(self.world.violations(), [], "seed {}", self.world.seed());
            let Stop::Down(id, _) = stop else { return assert_eq!(stop, Stop::Time) };
            match self.nodes.iter().position(|node| *node == id) {
                Some(at) => self.start_node(at as u64 + 1),
                None => self.world.start(self.client, CORE, &ExecutorConfig::default(), std::future::pending),
            }
        }
    }

    /// Lets time pass until something holds, a minute at the most.
    fn until(&mut self, mut holds: impl FnMut(&mut Cluster) -> bool) {
        let give_up = self.world.now() + Duration::from_mins(1);
        while !holds(self) {
            assert!(self.world.now() < give_up, "seed {}: it never came to hold", self.world.seed());
            self.run_for(Duration::from_millis(20));
        }
    }

    /// Runs a client's task and gives what it returns.
    fn run<T: 'static>(&mut self, task: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&result);
        self.world.spawn(self.client, CORE, Class::Request, "client", async move {
            *slot.borrow_mut() = Some(task.await);
        });
        while result.borrow().is_none() {
            self.run_for(Duration::from_millis(1));
        }
        result.take().expect("just looked")
    }

    fn ask<M: RequestMessage + 'static>(&mut self, node: u64, shard: ShardId, message: M) -> Result<M::Reply, Failure>
    where
        M::Reply: 'static,
    {
        let (address, answer_max) = (self.id(node).addr(PORT), self.answer_max);
        self.run(async move {
            let asked = timeout(answer_max, async { Client::connect(address).await?.call(shard, &message).await });
            asked.await.unwrap_or(Err(Failure::Lost))
        })
    }

    fn add(&mut self, at: u64, shard: u32, node: u64) -> Result<(), Failure> {
        self.ask(at, ShardId(shard), AddLearner { shard, replica: wire(node) }).map(drop)
    }

    fn change(&mut self, at: u64, shard: u32, voters: &[u64]) -> Result<(), Failure> {
        let voters = voters.iter().copied().map(wire).collect();
        self.ask(at, ShardId(shard), ChangeMembership { shard, voters, retain: true }).map(drop)
    }

    fn put(&mut self, node: u64, key: u32) -> Result<WriteReply, Failure> {
        let operation = Operation::put("a", &key.to_be_bytes(), &key.to_le_bytes());
        self.ask(node, ShardId::ANY, Command { operations: vec![operation] })
    }

    fn get(&mut self, node: u64, key: u32) -> Result<Option<Vec<u8>>, Failure> {
        let request = GetRequest { namespace: "a".to_owned(), key: key.to_be_bytes().to_vec() };
        self.ask(node, ShardId::ANY, request).map(|reply| reply.value.map(|found| found.value))
    }

    fn shard(&mut self, node: u64, shard: usize) -> Option<Value> {
        let reply = self.ask(node, ShardId::ANY, StatusRequest { verbose: false }).ok()?;
        let status: Value = serde_json::from_str(&reply.json).expect("JSON");
        Some(status["shards"][shard].clone())
    }

    fn is_ready(&mut self, node: u64) -> bool {
        self.shard(node, 0).is_some_and(|shard| shard["phase"] == "serving")
    }

    /// The node that leads shard 0 by its own word, among `nodes`.
    fn leader(&mut self, nodes: &[u64]) -> Option<u64> {
        nodes.iter().copied().find(|node| self.shard(*node, 0).is_some_and(|shard| shard["role"] == "leader"))
    }

    fn await_leader(&mut self, nodes: &[u64]) -> u64 {
        let mut leader = None;
        self.until(|cluster| {
            leader = cluster.leader(nodes);
            leader.is_some()
        });
        leader.expect("waited for it")
    }

    /// Every node of `nodes` has applied the same entries and holds the same state.
    fn await_agreement(&mut self, nodes: &[u64]) {
        self.until(|cluster| {
            let states: Vec<_> = nodes.iter().map(|node| cluster.shard(*node, 0)).collect();
            let of = |state: &Option<Value>| state.as_ref().map(|s| (s["applied"].clone(), s["state_root"].clone()));
            of(&states[0]).is_some() && states.iter().all(|state| of(state) == of(&states[0]))
        });
    }
}

fn wire(node: u64) -> Replica {
    Replica { node, incarnation: 1 }
}

/// A connection of a test, one call at a time.
struct Client {
    socket: TcpStream,
    connection: Connection,
    rest: Vec<u8>,
}

impl Client {
    async fn connect(address: SocketAddr) -> Result<Client, Failure> {
        let socket = TcpStream::connect(address).await.map_err(|_| Failure::Lost)?;
        let mut client = Client { socket, connection: Connection::new("test", 16), rest: Vec::new() };
        while client.event().await? != Event::Ready {}
        Ok(client)
    }

    async fn call<M: RequestMessage>(&mut self, shard: ShardId, message: &M) -> Result<M::Reply, Failure> {
        let (session, sequence) = (SessionId::NONE, 0);
        let call = Call { message: M::TYPE, body: archive(message), shard, session, sequence };
        let asked = self.connection.submit(&call, None, 0).expect("there is room");
        let Event::Reply { correlation, result } = self.event().await? else { unreachable!("ready already") };
        assert_eq!(correlation, asked);
        let body = result.map_err(|error| Failure::Refused(error.code.expect("a known code"), error.leader))?;
        Ok(read::<M::Reply>(&body).expect("a reply of its type"))
    }

    async fn event(&mut self) -> Result<Event, Failure> {
        loop {
            if !self.connection.output().is_empty() {
                let output = self.connection.take_output(Vec::new());
                self.socket.send_all(output).await.0.map_err(|_| Failure::Lost)?;
            }
            let received = std::mem::take(&mut self.rest);
            let mut input = &received[..];
            let event = self.connection.receive(&mut input).expect("the server keeps to the protocol");
            self.rest = input.to_vec();
            if let Some(event) = event {
                return Ok(event);
            }
            let (count, buffer) = self.socket.recv(Vec::with_capacity(64 << 10)).await;
            if !matches!(count, Ok(1..)) {
                return Err(Failure::Lost);
            }
            self.rest = buffer;
        }
    }

    /// Speaks as a node of the cluster from now on.
    async fn become_node(&mut self, from: Replica, to_node: u64, shards: u32) -> Result<(), Failure> {
        let hello = PeerHello { cluster: CLUSTER.0, from, to_node, shards, ring_vnodes: 150 };
        self.call(ShardId::ANY, &hello).await.map(drop)
    }
}

#[test]
fn three_nodes_found_a_group_and_outlive_their_leader() {
    for seed in 0..3 {
        let mut cluster = Cluster::joined(seed, 3, 1);
        for key in 0..20 {
            assert!(cluster.put(1, key).expect("the leader takes it").applied);
        }
        for follower in [2, 3] {
            cluster.until(|cluster| cluster.shard(follower, 0).is_some_and(|shard| shard["leader"] == 1));
            assert_eq!(cluster.put(follower, 0), Err(Failure::Refused(ErrorCode::NotLeader, 1)), "with a hint");
            assert_eq!(cluster.get(follower, 0), Err(Failure::Refused(ErrorCode::NotLeader, 1)));
            let shard = cluster.shard(follower, 0).expect("up");
            assert_eq!((&shard["role"], &shard["phase"]), (&"follower".into(), &"serving".into()));
            assert_eq!(shard["voters"], serde_json::json!([1, 2, 3]));
        }
        assert_eq!(cluster.get(1, 7), Ok(Some(7_u32.to_le_bytes().to_vec())));

        let dead = cluster.id(1);
        cluster.world.kill(dead);
        let leader = cluster.await_leader(&[2, 3]);
        for key in 0..20 {
            assert_eq!(cluster.get(leader, key), Ok(Some(key.to_le_bytes().to_vec())), "acknowledged before");
        }
        for key in 20..40 {
            cluster.put(leader, key).expect("two of three are a quorum");
        }
        cluster.start_node(1);
        cluster.await_agreement(&[1, 2, 3]);
        let shard = cluster.shard(1, 0).expect("up");
        assert_eq!((&shard["role"], &shard["leader"]), (&"follower".into(), &leader.into()));
    }
}

#[test]
fn a_minority_refuses_everything_and_leaves_the_term_alone() {
    let mut cluster = Cluster::joined(11, 3, 1);
    cluster.put(1, 0).expect("the leader takes it");
    let term = cluster.shard(1, 0).expect("up")["term"].clone();
    let [one, two, three] = [1, 2, 3].map(|node| cluster.id(node));

    cluster.world.partition(&[three], &[one, two]);
    cluster.run_for(Duration::from_secs(3));
    assert!(matches!(cluster.put(3, 1), Err(Failure::Refused(ErrorCode::NotLeader, _))));
    assert!(matches!(cluster.get(3, 0), Err(Failure::Refused(ErrorCode::NotLeader, _))));
    assert_eq!(cluster.shard(3, 0).expect("up")["term"], term, "nobody grants it a pre-vote");
    cluster.put(1, 2).expect("the others are a quorum");
    cluster.world.heal_links();
    cluster.await_agreement(&[1, 2, 3]);
    let leader = cluster.shard(1, 0).expect("up");
    assert_eq!((&leader["role"], &leader["term"]), (&"leader".into(), &term), "its return disturbs nobody");
}

/// What a leader that was cut off has in its log and nobody else has gives way to what the others agreed on meanwhile.
#[test]
fn a_leader_that_was_cut_off_serves_nothing_and_gives_up_its_tail() {
    for seed in 0..3 {
        let mut cluster = Cluster::joined(seed, 3, 1);
        cluster.put(1, 0).expect("the leader takes it");
        let [one, two, three] = [1, 2, 3].map(|node| cluster.id(node));
        cluster.world.partition(&[one], &[two, three]);
        let (address, body) = (one.addr(PORT), Operation::put("a", &77_u32.to_be_bytes(), b"never agreed on"));
        cluster.world.spawn(cluster.client, CORE, Class::Request, "doomed write", async move {
            let mut client = Client::connect(address).await.expect("the client is not cut off");
            let written = client.call(ShardId::ANY, &Command { operations: vec![body] }).await;
            assert!(written.is_err(), "{written:?}");
        });
        let leader = cluster.await_leader(&[2, 3]);
        assert!(matches!(cluster.get(1, 0), Err(Failure::Refused(ErrorCode::NotLeader, _))), "its lease is gone");
        assert!(cluster.put(1, 1).is_err());
        for key in 2..10 {
            cluster.put(leader, key).expect("two of three are a quorum");
        }
        cluster.world.heal_links();
        cluster.await_agreement(&[1, 2, 3]);
        assert_eq!(cluster.get(leader, 77), Ok(None));
        assert_eq!(cluster.get(leader, 9), Ok(Some(9_u32.to_le_bytes().to_vec())));
        let last: Vec<_> = [1, 2, 3].map(|node| cluster.shard(node, 0).expect("up")["last_log"].clone()).into();
        assert!(last.iter().all(|index| *index == last[0]), "{last:?}");
    }
}

/// A follower that was killed and is back within the lease that it granted could elect a rival, while the old leader still
/// serves reads alone.
#[test]
fn a_restarted_voter_answers_no_votes_for_a_lease() {
    let mut cluster = Cluster::joined(5, 3, 1);
    cluster.put(1, 0).expect("the leader takes it");
    let (voter, address) = (cluster.id(3), cluster.id(3).addr(PORT));
    cluster.world.kill(voter);
    cluster.start_node(3);
    cluster.until(|cluster| cluster.is_ready(3));
    let ballot = Ballot { term: 9, candidate: wire(2), committed: false };
    let pre_vote = move || async move {
        let mut client = Client::connect(address).await?;
        client.become_node(wire(2), 3, 1).await?;
        client.call(ShardId(0), &PreVoteRequest { to: wire(3), ballot, last: None }).await
    };
    assert_eq!(cluster.run(pre_vote()), Err(Failure::Refused(ErrorCode::Recovering, 0)));
    cluster.run_for(RaftSettings::default().restart_hold());
    let reply = cluster.run(pre_vote()).expect("the guard is over");
    assert!(!reply.granted, "it has a leader");
}

#[test]
fn messages_that_no_replica_sends_are_refused_and_change_nothing() {
    use ErrorCode::{InvalidArgument, NotPeer, WrongReplica, WrongShard};
    let mut cluster = Cluster::joined(6, 3, 1);
    let address = cluster.id(3).addr(PORT);
    let ballot = Ballot { term: 2, candidate: wire(2), committed: false };
    let vote = move |to, ballot| VoteRequest { to, ballot, last: None, transfer: false };
    let refusals = cluster.run(async move {
        let mut client = Client::connect(address).await.expect("it listens");
        let shard = ShardId(0);
        let mut refusals = vec![client.call(shard, &vote(wire(3), ballot)).await.map(drop)];
        refusals.push(client.become_node(wire(9), 3, 1).await);
        refusals.push(client.become_node(wire(2), 3, 2).await);
        client.become_node(wire(2), 3, 1).await.expect("a node of the cluster");
        let other = Ballot { candidate: wire(1), ..ballot };
        let (later, leader) = (Ballot { term: 1 << 32, ..ballot }, Ballot { committed: true, ..ballot });
        let next_life = Replica { node: 3, incarnation: 2 };
        for (to, ballot) in [(wire(3), other), (next_life, ballot), (wire(3), later), (wire(3), leader)] {
            refusals.push(client.call(shard, &vote(to, ballot)).await.map(drop));
        }
        refusals.push(client.call(ShardId(1), &vote(wire(3), ballot)).await.map(drop));
        refusals
    });
    let expected = [NotPeer, NotPeer, NotPeer, NotPeer, WrongReplica, InvalidArgument, InvalidArgument, WrongShard];
    assert_eq!(refusals, expected.map(|code| Err(Failure::Refused(code, 0))));
    assert_eq!(cluster.shard(3, 0).expect("up")["leader"], 1);
}

/// Followers hold to the lease of the term that the leader leaves; it is elected again all the same, and clients notice nothing.
#[test]
fn used_up_tokens_move_a_leader_with_followers_to_new_terms() {
    let group_logs = WalLogOptions { sequences_max: 5, ..WalLogOptions::default() };
    let mut cluster = Cluster::joined_with(7, 3, 1, group_logs);
    let leader = cluster.await_leader(&[1, 2, 3]);
    let term = |cluster: &mut Cluster| cluster.shard(leader, 0).expect("up")["term"].as_u64().expect("a number");
    let before = term(&mut cluster);
    for key in 0..60 {
        cluster.put(leader, key).expect("the leader comes back before the client hears of it");
        assert_eq!(cluster.get(leader, key), Ok(Some(key.to_le_bytes().to_vec())));
    }
    assert!(term(&mut cluster) >= before + 10, "{} after {before}", term(&mut cluster));
    cluster.await_agreement(&[1, 2, 3]);
}

/// With no cache every entry that a follower gets is read back from the log, in appends of limited size.
#[test]
fn a_node_that_joins_late_catches_up_by_the_log() {
    let group_logs = WalLogOptions { cache_bytes_max: 0, ..WalLogOptions::default() };
    let mut cluster = Cluster::start(8, 3, 2, group_logs);
    cluster.until(|cluster| cluster.is_ready(1));
    for key in 0..300 {
        cluster.put(1, key).expect("one voter");
    }
    for shard in 0..2 {
        for node in [2, 3] {
            cluster.until(|cluster| cluster.add(1, shard, node).is_ok());
        }
        assert_eq!(
            cluster.change(1, shard, &[1, 2, 9]),
            Err(Failure::Refused(ErrorCode::InvalidArgument, 0)),
            "nobody knows node 9"
        );
        assert_eq!(cluster.add(1, shard, 9), Err(Failure::Refused(ErrorCode::InvalidArgument, 0)));
        assert_eq!(cluster.change(2, shard, &[1, 2, 3]), Err(Failure::Refused(ErrorCode::NotLeader, 1)));
        cluster.until(|cluster| cluster.change(1, shard, &[1, 2, 3]).is_ok());
    }
    cluster.await_agreement(&[1, 2, 3]);
    // And out again: the shard goes on with those who are left.
    cluster.until(|cluster| cluster.change(1, 0, &[1, 2]).is_ok());
    assert_eq!(cluster.shard(1, 0).expect("up")["learners"], serde_json::json!([3]));
}

#[test]
fn five_and_seven_nodes_go_on_without_a_minority() {
    for count in [5, 7] {
        let mut cluster = Cluster::joined(count, count, 1);
        cluster.put(1, 0).expect("the leader takes it");
        let minority: Vec<u64> = (1..=count / 2).collect();
        for node in &minority {
            let id = cluster.id(*node);
            cluster.world.crash(id);
        }
        let rest: Vec<u64> = (count / 2 + 1..=count).collect();
        let leader = cluster.await_leader(&rest);
        cluster.until(|cluster| cluster.put(leader, 1).is_ok());
        assert_eq!(cluster.get(leader, 0), Ok(Some(0_u32.to_le_bytes().to_vec())));
        for node in minority {
            cluster.start_node(node);
        }
        cluster.await_agreement(&(1..=count).collect::<Vec<_>>());
    }
}

/// Crashes, partitions, losses and clocks at random; what was acknowledged is there afterwards, on all nodes alike.
#[test]
fn acknowledged_writes_survive_whatever_honest_disks_and_a_hostile_network_do() {
    let mut acknowledged = 0;
    for seed in 0..3 {
        let mut cluster = Cluster::joined(100 + seed, 3, 1);
        cluster.answer_max = LOSSY_ANSWER_MAX;
        cluster.world.set_faults(FaultPlan::honest());
        cluster.world.set_node_faults(cluster.client, Some(FaultPlan::none()));
        let (mut written, mut at) = (Vec::new(), 1);
        for key in 0..60 {
            match cluster.put(at, key) {
                Ok(_) => written.push(key),
                Err(Failure::Refused(_, leader)) if leader > 0 => at = leader,
                Err(_) => at = at % 3 + 1,
            }
        }
        cluster.world.heal();
        cluster.answer_max = ANSWER_MAX;
        let leader = cluster.await_leader(&[1, 2, 3]);
        cluster.await_agreement(&[1, 2, 3]);
        acknowledged += written.len();
        for key in written {
            let leader = cluster.leader(&[1, 2, 3]).unwrap_or(leader);
            cluster.until(|cluster| cluster.get(leader, key).is_ok());
            assert_eq!(cluster.get(leader, key), Ok(Some(key.to_le_bytes().to_vec())), "seed {seed}, key {key}");
        }
    }
    assert!(acknowledged > 60, "{acknowledged} acknowledged writes prove little");
}
