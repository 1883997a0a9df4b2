//! What a seed decides before the first step: the cluster, the workload, and what goes wrong.
//!
//! Faults are drawn in the manner of swarm testing (Groce et al., "Swarm Testing", ISSTA 2012): each seed enables a part of the kinds,
//! each at a rate of its own over some orders of magnitude. A run in which everything happens all the time explores less than many
//! runs in which a few things do.
//!
//! | who | what may strike |
//! |---|---|
//! | every node | honest disks that lose what was not synced, disk errors, the network, crashes, pauses, clocks |
//! | a minority (of one node: that one), in one seed of three | disks that lie or rot, once all nodes vote and the workload has begun |
//! | at least one node | a crash soon after a step that the seed picks, when its disk has something to lose |

use gristmill_shardexec::sim::{ClockConfig, DiskConfig, FaultKind, FaultPlan, Journal, Rng};
use std::time::Duration;

/// Kinds after which a disk may have broken its word.
pub const DAMAGE: [FaultKind; 5] =
    [FaultKind::MisdirectedWrite, FaultKind::LostWrite, FaultKind::LyingSync, FaultKind::StaleRead, FaultKind::BitFlip];

/// Sizes of clusters where none is asked for, by seed.
pub const MIXED_NODES: [u16; 3] = [3, 5, 7];

/// What a crash waits for, so that it costs something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Prey {
    /// Data that no sync has made durable.
    Data,
    /// Several such writes, of which a disk may keep the later and lose the earlier.
    Writes,
    /// Names that no sync has made durable.
    Names,
}

/// A crash that a setup wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Strike {
    /// The step at the earliest.
    pub at: u64,
    /// Of which node.
    pub node: u16,
    /// The machine loses power, when this is to be lost; `None`: the process is killed.
    pub power: Option<Prey>,
}

/// A run's setup.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The seed.
    pub seed: u64,
    /// Nodes that hold replicas of every shard.
    pub nodes: u16,
    /// Cores of each node.
    pub cores: u16,
    /// Shards.
    pub shards: u32,
    /// The cluster grows one voter at a time, instead of all at once.
    pub stepwise: bool,
    /// Who votes changes again and again as long as things go wrong.
    pub churn: bool,
    /// Clients, each with one request at a time.
    pub clients: u16,
    /// Namespaces for plain values.
    pub spaces: u16,
    /// Keys of each.
    pub keys: u16,
    /// Longest pause of a client between two requests.
    pub think_max: Duration,
    /// What goes wrong everywhere.
    pub faults: FaultPlan,
    /// Nodes whose disks may lie or rot, and what goes wrong on them.
    pub damaged: Vec<u16>,
    /// The plan of those.
    pub damage: FaultPlan,
    /// Crashes, by step.
    pub strikes: Vec<Strike>,
    /// Leaders that lose the other nodes.
    pub cuts: Vec<Cut>,
    /// Each node's disk.
    pub disks: Vec<DiskConfig>,
    /// How far clocks are off.
    pub clocks: ClockConfig,
    /// So many of the clients only read, and so stay with a node for as long as it answers.
    pub readers: u16,
    /// Of so many values one is long, and fills a good part of a small segment.
    pub one_long_in: u64,
    /// The log writes batches as they come, several at once, instead of gathering while one is under way.
    pub eager_log: bool,
    /// Longest pause until a node that went down is started again.
    pub restart_max: Duration,
    /// The bug that all nodes have.
    #[cfg(feature = "bugs")]
    pub bug: Option<super::bugs::Injected>,
}

/// A leader loses the other nodes and keeps its clients: where leases, terms and stale reads are decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// After so many steps.
    pub at: u64,
    /// For so long.
    pub lasts: Duration,
    /// The other nodes are killed in the same moment.
    pub kills: bool,
}

/// A kind, how likely it is to be enabled in percent, and its rates in millionths.
type Choice = (FaultKind, u64, u64, u64);

/// Rates per opportunity: at each op, segment, tick or turn, or at each loss of power.
const CHOICES: [Choice; 23] = {
    use FaultKind as F;
    [
        (F::LostUnsyncedWrite, 80, 200_000, 1_000_000),
        (F::TornWrite, 80, 400_000, 1_000_000),
        (F::ReorderedWrite, 80, 400_000, 1_000_000),
        (F::LostDirOp, 80, 200_000, 1_000_000),
        (F::ReadError, 20, 2_000, 100_000),
        (F::WriteError, 30, 200, 10_000),
        (F::SyncError, 25, 500, 20_000),
        (F::ShortWrite, 30, 200, 10_000),
        (F::ShortRead, 40, 500, 50_000),
        (F::DiskFull, 20, 200, 20_000),
        (F::DiskStall, 40, 100, 5_000),
        (F::NetDelay, 50, 500, 50_000),
        (F::NetDrop, 50, 200, 20_000),
        (F::NetReorder, 50, 200, 20_000),
        (F::NetDuplicate, 40, 100, 10_000),
        (F::NetReset, 40, 100, 10_000),
        (F::PartitionOneWay, 35, 500, 20_000),
        (F::PartitionTwoWay, 35, 500, 20_000),
        (F::PowerLoss, 60, 10, 600),
        (F::ProcessKill, 50, 10, 300),
        (F::ProcessPause, 40, 500, 20_000),
        (F::ClockJump, 50, 500, 50_000),
        (F::ClockLeap, 30, 500, 20_000),
    ]
};

/// What lies or rots, likewise.
const DAMAGES: [Choice; 5] = {
    use FaultKind as F;
    [
        (F::MisdirectedWrite, 55, 1_000, 50_000),
        (F::LostWrite, 55, 500, 20_000),
        (F::LyingSync, 55, 10_000, 200_000),
        (F::StaleRead, 50, 20_000, 400_000),
        (F::BitFlip, 60, 500, 40_000),
    ]
};

/// Swarm: each kind is in or out, and what is in has a rate drawn evenly over orders of magnitude.
fn draw(rng: &mut Rng, mut plan: FaultPlan, choices: &[Choice]) -> FaultPlan {
    for &(kind, percent, low, high) in choices {
        let enabled = rng.below(100) < percent;
        // Drawn in any case, so that one choice does not shift the others.
        let doublings = (high / low).ilog2();
        let rate = low << rng.below(u64::from(doublings) + 1);
        if enabled {
            plan = plan.with(kind, u32::try_from(rate.min(high)).expect("at most a million"));
        }
    }
    plan
}

/// Crashes by step, and one while a node creates its store: that is when there are most names to lose.
fn strikes(rng: &mut Rng, nodes: u16, steps: u64) -> Vec<Strike> {
    let mut strikes = Vec::new();
    for _ in 0..=rng.below(4) {
        let at = rng.within(steps / 10..=steps * 9 / 10);
        let node = rng.below(u64::from(nodes)) as u16;
        let power = [None, Some(Prey::Data), Some(Prey::Writes)][rng.index(3)];
        strikes.push(Strike { at, node, power });
    }
    if rng.coin() {
        let at = rng.within(50..=2500.min(steps / 2));
        let node = rng.below(u64::from(nodes)) as u16;
        let power = Some(if rng.below(3) == 0 { Prey::Data } else { Prey::Names });
        strikes.push(Strike { at, node, power });
    }
    strikes
}

fn draw_cuts(rng: &mut Rng, steps: u64) -> Vec<Cut> {
    let cut = |_| Cut {
        at: rng.within(steps / 5..=steps * 9 / 10),
        lasts: Duration::from_millis(50 << rng.below(6)),
        kills: rng.below(4) == 0,
    };
    let mut cuts: Vec<_> = (0..3).map(cut).collect();
    cuts.truncate(rng.below(4) as usize);
    cuts.sort_unstable_by_key(|cut| cut.at);
    cuts
}

impl Setup {
    /// What `seed` decides, for runs of `steps` steps in the safety phase. `nodes` of `None`: by seed, of [`MIXED_NODES`].
    pub fn draw(seed: u64, nodes: Option<u16>, steps: u64) -> Setup {
        // Not the world's own streams: those begin with the seed as it is.
        let rng = &mut Rng::new(seed ^ 0x7365_7475_7000_0000);
        let mixed = MIXED_NODES[rng.index(MIXED_NODES.len())];
        let nodes = nodes.unwrap_or(mixed);
        let minority = u64::from(nodes.saturating_sub(1) / 2).max(1);
        let most_down = if rng.below(4) == 0 { u64::from(nodes) } else { minority };
        let nodes_down_max = 1 + rng.below(most_down);
        let outage = Duration::from_millis(100 << rng.below(6));
        let base = FaultPlan::none().nodes_down_max(nodes_down_max as usize).outage_max(outage);
        let faults = draw(rng, base, &CHOICES);
        let is_damaged = rng.below(3) == 0;
        let count = 1 + rng.below(minority);
        let mut order: Vec<u16> = (0..nodes).collect();
        rng.shuffle(&mut order);
        order.truncate(count as usize);
        let damage = draw(rng, faults.clone(), &DAMAGES);
        let mut strikes = strikes(rng, nodes, steps);
        // A disk that rots shows it when it is read again.
        strikes.extend(order.first().filter(|_| is_damaged).map(|&node| Strike {
            at: rng.within(steps / 2..=steps * 19 / 20),
            node,
            power: rng.coin().then_some(Prey::Data),
        }));
        strikes.sort_unstable();
        let disk = |rng: &mut Rng| DiskConfig {
            sector: if rng.coin() { 4096 } else { 512 },
            direct: rng.below(5) > 2,
            journal: if rng.coin() { Journal::Ordered } else { Journal::AnythingGoes },
            ..DiskConfig::default()
        };
        Setup {
            seed,
            nodes,
            cores: 1 + rng.below(2) as u16,
            shards: 1 + rng.below(3) as u32,
            stepwise: rng.coin(),
            // Without the vote of a sound node, the damaged ones may be a majority of the rest.
            churn: rng.below(3) == 0 && !is_damaged,
            clients: 3 + rng.below(6) as u16,
            spaces: 1 + rng.below(3) as u16,
            keys: 2 + rng.below(6) as u16,
            think_max: Duration::from_millis(1 << rng.below(6)),
            disks: (0..nodes).map(|_| disk(rng)).collect(),
            clocks: ClockConfig { drift_ppm_max: 200, skew_ns_max: 500_000_000 },
            faults,
            damaged: if is_damaged { order } else { Vec::new() },
            damage,
            strikes,
            cuts: if nodes > 1 { draw_cuts(rng, steps) } else { Vec::new() },
            readers: rng.below(3) as u16,
            one_long_in: [4, 40][rng.index(2)],
            eager_log: rng.coin(),
            restart_max: Duration::from_millis(50 << rng.below(5)),
            #[cfg(feature = "bugs")]
            bug: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_kind_has_its_rate_and_damage_stays_with_a_minority() {
        let kinds: BTreeSet<FaultKind> = CHOICES.iter().chain(&DAMAGES).map(|choice| choice.0).collect();
        assert_eq!(kinds, BTreeSet::from(FaultKind::ALL), "a kind that no seed enables");
        let mut enabled = [0; FaultKind::COUNT];
        let mut sizes = BTreeSet::new();
        for seed in 0..400 {
            let setup = Setup::draw(seed, None, 30_000);
            sizes.insert(setup.nodes);
            assert!(setup.damaged.len() <= usize::from((setup.nodes - 1) / 2), "seed {seed}");
            assert!(!setup.strikes.is_empty());
            for kind in FaultKind::ALL {
                assert!(!DAMAGE.contains(&kind) || setup.faults.ppm(kind) == 0, "on every disk: {kind:?}");
                let plan = if setup.damaged.is_empty() { &setup.faults } else { &setup.damage };
                enabled[kind as usize] += u32::from(plan.ppm(kind) > 0);
            }
        }
        assert_eq!(sizes, BTreeSet::from(MIXED_NODES));
        assert!(enabled.iter().all(|&seeds| (15..400).contains(&seeds)), "{enabled:?}");
        assert_eq!(Setup::draw(5, Some(1), 30_000).disks.len(), 1);
    }
}
