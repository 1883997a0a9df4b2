//! Whoever sets the cluster up: adds the other nodes to every shard's group, gives them votes, and now and then takes one away again.
//!
//! Over the same protocol as clients, and as insistent: a change whose answer is lost is asked for again, which does no harm.

use super::client::{Link, Missed};
use gristmill_rpc::body::{Body, archive};
use gristmill_rpc::frame::MessageType;
use gristmill_rpc::ids::{SessionId, ShardId};
use gristmill_rpc::peer::{AddLearner, ChangeMembership, Replica};
use gristmill_rpc::protocol::Call;
use gristmill_shardexec::sim::Rng;
use gristmill_shardexec::time::sleep;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

/// How long it waits for one answer: a learner may take its time to catch up.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause after a refusal.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest pause between two changes of who votes.
const CHURN_PAUSE_MAX: Duration = Duration::from_millis(1500);

/// How far it is.
#[derive(Default)]
pub struct Progress {
    /// Every shard's group has another member than its founder: founding is over for good.
    pub founded: Cell<bool>,
    /// Every node votes in every shard, or did once.
    pub full: Cell<bool>,
    /// Every node votes in every shard, and nobody will change that.
    pub settled: Cell<bool>,
}

/// Sets a cluster up.
pub struct Admin {
    /// Where the nodes listen, the founder first. The node at place n has id n + 1.
    pub nodes: Vec<SocketAddr>,
    /// Shards.
    pub shards: u32,
    /// Of its own.
    pub rng: Rng,
    /// Grow one voter at a time, instead of all at once.
    pub stepwise: bool,
    /// Go on changing who votes as long as things go wrong.
    pub churn: bool,
    /// Things go wrong.
    pub faulty: Rc<dyn Fn() -> bool>,
    /// For others to see.
    pub progress: Rc<Progress>,
}

impl Admin {
    /// Sets up all shards.
    pub async fn run(mut self) {
        let shards = || (0..self.shards).map(ShardId);
        let nodes = self.nodes.len() as u64;
        for (node, shard) in (2..=nodes).flat_map(|node| shards().map(move |shard| (node, shard))).collect::<Vec<_>>() {
            self.insist(
                MessageType::AddLearner,
                shard,
                archive(&AddLearner { shard: shard.0, replica: replica(node) }),
            )
            .await;
            self.progress.founded.set(node > 2 || shard.0 + 1 == self.shards);
            if self.stepwise {
                self.let_vote(shard, (1..=node).collect()).await;
            }
        }
        loop {
            for shard in (0..self.shards).map(ShardId) {
                self.let_vote(shard, (1..=nodes).collect()).await;
            }
            self.progress.full.set(true);
            if !self.churn || !(self.faulty)() {
                break;
            }
            sleep(self.rng.duration(Duration::ZERO..=CHURN_PAUSE_MAX)).await;
            let (out, shard) = (1 + self.rng.below(nodes), ShardId(self.rng.below(u64::from(self.shards)) as u32));
            self.let_vote(shard, (1..=nodes).filter(|node| *node != out).collect()).await;
            sleep(self.rng.duration(Duration::ZERO..=CHURN_PAUSE_MAX)).await;
        }
        self.progress.settled.set(true);
    }

    async fn let_vote(&mut self, shard: ShardId, voters: Vec<u64>) {
        let voters = voters.into_iter().map(replica).collect();
        let change = ChangeMembership { shard: shard.0, voters, retain: true };
        self.insist(MessageType::ChangeMembership, shard, archive(&change)).await;
    }

    /// Asks one node after the other, the leader first where it is known, until one has done it.
    async fn insist(&mut self, message: MessageType, shard: ShardId, body: Body) {
        let call = Call { message, body, shard, session: SessionId::NONE, sequence: 0 };
        let mut target = 0;
        loop {
            let missed = match Link::open(self.nodes[target], "simulated operator", PATIENCE).await {
                Ok(link) => match link.call(&call, PATIENCE).await.1 {
                    Ok(_) => return,
                    Err(missed) => missed,
                },
                Err(missed) => missed,
            };
            target = missed.leader().unwrap_or((target + 1) % self.nodes.len());
            sleep(self.rng.duration(PAUSE / 4..=PAUSE)).await;
        }
    }
}

/// Every node is in its first life.
fn replica(node: u64) -> Replica {
    Replica { node, incarnation: 1 }
}

impl Missed {
    /// The place of the node that leads, as far as a refusal says.
    pub fn leader(&self) -> Option<usize> {
        match self {
            Missed::Refused(error) => (error.leader as usize).checked_sub(1),
            Missed::Unsent(_) | Missed::Lost(_) => None,
        }
    }
}
