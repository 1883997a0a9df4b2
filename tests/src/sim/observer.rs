//! Looks at every replica after each turn of the world, and shows the checkers what has changed.

use super::checkers::Broken;
use super::checkers::amnesia::Amnesia;
use super::checkers::logs::{Logs, ShardLog};
use super::checkers::one_leader::OneLeader;
use super::checkers::proof::Proof;
use super::checkers::state_equality::StateEquality;
use super::checkers::unflushed;
use super::checkers::votes::Votes;
use super::cluster::Cluster;
use super::offline::read_logs;
use gristmill::raft::{ReplicaView, Role};
use gristmill::server::hosted::CoreView;
use gristmill_rpc::ids::ShardId;
use gristmill_shardexec::sim::World;
use gristmill_wal::{LogPosition, Vote};
use std::collections::{BTreeMap, BTreeSet};

/// What was seen of a replica last.
#[derive(Clone, Copy, Default)]
struct Last {
    life: u32,
    vote: Option<Vote>,
    durable: Option<LogPosition>,
    committed: Option<LogPosition>,
    applied: Option<LogPosition>,
    leads: Option<u64>,
}

/// The checkers that look at replicas and logs.
#[derive(Default)]
pub struct Observer {
    leaders: OneLeader,
    votes: Votes,
    amnesia: Amnesia,
    proof: Proof,
    /// How often disks had broken their word when something was proven last.
    damages: u64,
    /// What was read of each node's logs last.
    proven: BTreeMap<u16, BTreeMap<ShardId, Option<LogPosition>>>,
    states: StateEquality,
    logs: Logs,
    last: BTreeMap<(u16, ShardId), Last>,
    /// Looks at replicas that stood for election.
    candidates: u64,
    /// Nodes whose disks broke their word.
    damaged: BTreeSet<u16>,
    /// Replicas that forgot what they had promised because their disk did.
    forgetful: Vec<String>,
}

impl Observer {
    /// The disk of `node` has broken its word: from now on its replicas may forget.
    pub fn damaged(&mut self, node: u16) {
        self.damaged.insert(node);
    }

    /// Replicas on damaged disks that came back without what they had made durable: what no log can tell, and beyond what Raft
    /// survives. See [`Amnesia`].
    pub fn forgetful(&self) -> &[String] {
        &self.forgetful
    }

    /// Comparisons of states.
    pub fn states_compared(&self) -> u64 {
        self.states.compared()
    }

    /// Logs judged.
    pub fn logs_judged(&self) -> u64 {
        self.logs.judged()
    }

    /// Looks at replicas that stood for election with a durable vote.
    pub fn candidates(&self) -> u64 {
        self.candidates
    }

    /// Terms that had a leader.
    pub fn terms(&self) -> usize {
        self.leaders.terms()
    }

    /// The node starts with the logs that were read just now, when disks had broken their word `damages` times.
    pub fn starts(&mut self, node: u16, damages: u64) {
        self.forget_proofs(damages);
        for (shard, proven) in self.proven.remove(&node).unwrap_or_default() {
            self.proof.proves(node, shard, proven);
        }
    }

    fn forget_proofs(&mut self, damages: u64) {
        if std::mem::replace(&mut self.damages, damages) != damages {
            self.proof.forget();
        }
    }

    /// Looks at all replicas. Disks have broken their word `damages` times by now.
    pub fn look(&mut self, cluster: &Cluster, damages: u64) -> Result<(), Broken> {
        self.forget_proofs(damages);
        for node in cluster.nodes() {
            let life = cluster.life(node);
            for core in cluster.views(node) {
                let mut outcome = Ok(());
                core.for_each(|shard| {
                    if let (Ok(()), Some(replica)) = (&outcome, &shard.replica) {
                        outcome = self.look_at(node, life, &core, shard.shard, replica);
                    }
                });
                outcome?;
            }
        }
        Ok(())
    }

    fn look_at(
        &mut self,
        node: u16,
        life: u32,
        core: &CoreView,
        shard: ShardId,
        replica: &ReplicaView,
    ) -> Result<(), Broken> {
        let before = self.last.get(&(node, shard)).copied().unwrap_or_default();
        let mut now = Last { life, ..before };
        if before.life != life {
            (now.applied, now.leads) = (None, None);
            self.proof.returns(node, shard, replica.durable)?;
            let returned = self.amnesia.returns(node, shard, replica.durable);
            self.excuse(node, returned)?;
        } else if let Some(durable) = replica.durable.filter(|_| replica.durable != before.durable) {
            self.amnesia.holds(node, shard, durable);
        }
        now.durable = replica.durable;
        now.committed = replica.committed.max(before.committed);
        if let Some(vote) = replica.vote.filter(|vote| vote.term > 0 && Some(*vote) != before.vote) {
            now.vote = Some(vote);
            let shown = self.votes.shows(node, shard, vote);
            self.excuse(node, shown)?;
        }
        if replica.role == Role::Candidate && replica.vote.is_some_and(|vote| vote.term == replica.term) {
            self.candidates += 1;
            unflushed::stands(node, shard, replica.last_log, replica.durable.map(|durable| durable.index))?;
        }
        if replica.role == Role::Leader && now.leads != Some(replica.term) {
            now.leads = Some(replica.term);
            self.leaders.leads(shard, replica.term, replica.replica)?;
        }
        if replica.stopped.is_none() && replica.applied != now.applied {
            now.applied = replica.applied;
            if let Some((Some(applied), root)) = core.state_root(shard) {
                self.states.shows(node, shard, applied, root)?;
            }
        }
        self.last.insert((node, shard), now);
        Ok(())
    }

    /// A damaged disk excuses that its replica forgets, and only that.
    fn excuse(&mut self, node: u16, outcome: Result<(), Broken>) -> Result<(), Broken> {
        let Err(broken) = outcome else { return Ok(()) };
        if !self.damaged.contains(&node) {
            return Err(broken);
        }
        self.forgetful.push(format!("{}: {}", broken.checker, broken.detail));
        Ok(())
    }

    /// Reads a node's logs from its disk and judges them. Where the disk is damaged they may be unreadable.
    pub fn read_logs(
        &mut self,
        world: &World,
        cluster: &Cluster,
        node: u16,
    ) -> Result<BTreeMap<ShardId, ShardLog>, Broken> {
        let image = world.disk(cluster.id(node), |disk| disk.clone());
        // Not created yet, or damaged: what that means shows when the node starts.
        self.proven.remove(&node);
        let Ok(logs) = read_logs(image) else { return Ok(BTreeMap::new()) };
        self.proven.insert(node, logs.iter().map(|(&shard, log)| (shard, log.proven)).collect());
        if self.damaged.contains(&node) {
            // What rotted is cut off by the reader, but the node may refuse it as a whole: it is no log of the cluster's.
            return Ok(logs);
        }
        for (&shard, log) in &logs {
            let committed = self.last.get(&(node, shard)).and_then(|last| last.committed);
            self.logs.judge(node, shard, log, committed)?;
        }
        Ok(logs)
    }
}
