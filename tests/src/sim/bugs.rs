//! The hunt: each known bug must be found by the checkers that every run has, within [`SEEDS_MAX`] seeds.
//!
//! ```text
//!   bug, plan ─► seed 0, 1, 2 … with the bug ─► a checker objects: found ─► the same plan and seeds without it ─► nothing may be found
//! ```
//!
//! A bug has a plan of its own: which faults strike, how often, and how large the cluster is, so that what it takes to provoke it happens in
//! most seeds. Nothing else is special: workload, phases and checkers are those of any run. The control run keeps a plan honest: what
//! it finds without the bug is either a true bug or a checker that is wrong.
//!
//! Bugs that a checker could not see are not here. The log checks a writer's term, and consensus never lets a stale writer get so far; nothing
//! frees a segment before there are purges, so no bytes of an earlier life of a file lie where new ones are expected; and what `check_start`
//! looks for cannot happen to a state that is rebuilt from the log. They join the list with what makes them reachable.

use super::plan::{Cut, Setup};
use super::run::{Outcome, STEPS_DEFAULT, run_setup};
use gristmill::bugs::Bug as OfNode;
use gristmill_shardexec::sim::{FaultKind, FaultPlan, Journal};
use gristmill_wal::bugs::Bug as OfLog;
use std::time::Duration;

/// Seeds within which a bug must be found.
pub const SEEDS_MAX: u64 = 200;

/// A bug, wherever it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injected {
    /// In the log.
    Log(OfLog),
    /// In what lies above it.
    Node(OfNode),
}

impl Injected {
    /// Every bug.
    pub fn all() -> impl Iterator<Item = Injected> {
        OfLog::ALL.map(Injected::Log).into_iter().chain(OfNode::ALL.map(Injected::Node))
    }

    /// The log's, if it is one.
    pub fn of_log(self) -> Option<OfLog> {
        match self {
            Injected::Log(bug) => Some(bug),
            Injected::Node(_) => None,
        }
    }

    /// The node's, if it is one.
    pub fn of_node(self) -> Option<OfNode> {
        match self {
            Injected::Log(_) => None,
            Injected::Node(bug) => Some(bug),
        }
    }

    /// The name in reports.
    pub fn name(self) -> String {
        let camel = match self {
            Injected::Log(bug) => format!("{bug:?}"),
            Injected::Node(bug) => format!("{bug:?}"),
        };
        let mut name = String::new();
        for letter in camel.chars() {
            if letter.is_ascii_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }

    /// The plan of a seed that provokes it, without the bug itself.
    pub fn setup(self, seed: u64) -> Setup {
        let nodes = if self.needs_voters() { 3 } else { 1 };
        let mut setup = Setup::draw(seed, Some(nodes), STEPS_DEFAULT);
        setup.faults = FaultPlan::none().nodes_down_max(usize::from(nodes)).outage_max(Duration::from_secs(1));
        setup.damaged.clear();
        setup.damage = FaultPlan::none();
        match self {
            Injected::Log(bug) => provoke_in_log(bug, &mut setup),
            Injected::Node(bug) => provoke_in_node(bug, &mut setup),
        }
        setup
    }

    /// Whether it shows where several vote only.
    fn needs_voters(self) -> bool {
        match self {
            Injected::Log(bug) => bug == OfLog::TruncationNotLogged,
            Injected::Node(bug) => matches!(
                bug,
                OfNode::VoteGrantedToAll | OfNode::LeaderRestored | OfNode::LeaseForgotten | OfNode::LeaseUnchecked
            ),
        }
    }
}

fn strike(setup: &mut Setup, kinds: &[(FaultKind, u32)]) {
    for &(kind, ppm) in kinds {
        setup.faults = setup.faults.clone().with(kind, ppm);
    }
}

/// Power fails now and then, and takes with it what was not synced.
fn cut_power(setup: &mut Setup) {
    use FaultKind as F;
    let losses = [(F::LostUnsyncedWrite, 800_000), (F::TornWrite, 500_000), (F::LostDirOp, 800_000)];
    strike(setup, &losses);
    strike(setup, &[(F::PowerLoss, 500)]);
}

/// Some blocks of the last writes before a power cut are there, others are not; and several writes are under way at once.
fn reorder(setup: &mut Setup) {
    use FaultKind as F;
    cut_power(setup);
    strike(setup, &[(F::ReorderedWrite, 900_000), (F::DiskStall, 10_000)]);
    setup.eager_log = true;
    setup.disks.iter_mut().for_each(|disk| disk.direct = true);
}

/// The one node's disk rots, and the process is killed now and then, so that it has to read its log.
fn rot(setup: &mut Setup, kinds: &[(FaultKind, u32)]) {
    strike(setup, &[(FaultKind::ProcessKill, 300)]);
    setup.damaged = vec![0];
    setup.damage = setup.faults.clone();
    for &(kind, ppm) in kinds {
        setup.damage = setup.damage.clone().with(kind, ppm);
    }
}

/// One shard that leads a calm life, apart from its leader, which loses the others again and again, for `lasts`; with `kills` they restart
/// in the same moment.
fn depose(setup: &mut Setup, lasts: Duration, kills: bool) {
    const CUTS: u64 = 3;
    strike(setup, &[(FaultKind::NetDelay, 500)]);
    (setup.shards, setup.cores, setup.clients, setup.spaces, setup.keys) = (1, 1, 6, 1, 2);
    (setup.churn, setup.stepwise) = (false, false);
    (setup.readers, setup.think_max) = (2, Duration::from_millis(8));
    let step = |cut| STEPS_DEFAULT / 6 + cut * STEPS_DEFAULT * 4 / 5 / CUTS;
    setup.cuts = (0..CUTS).map(|cut| Cut { at: step(cut), lasts, kills }).collect();
    setup.strikes.clear();
}

fn provoke_in_log(bug: OfLog, setup: &mut Setup) {
    use FaultKind as F;
    match bug {
        OfLog::AcknowledgedBeforeWrite => {
            cut_power(setup);
            strike(setup, &[(F::DiskStall, 10_000)]);
        }
        OfLog::NothingSynced => cut_power(setup),
        OfLog::SyncTriedAgain => {
            cut_power(setup);
            strike(setup, &[(F::SyncError, 5_000)]);
            setup.disks.iter_mut().for_each(|disk| disk.direct = false);
        }
        OfLog::ShortWriteTaken => {
            cut_power(setup);
            strike(setup, &[(F::ShortWrite, 5_000)]);
        }
        OfLog::DirectoryNotSynced => {
            cut_power(setup);
            setup.disks.iter_mut().for_each(|disk| disk.journal = Journal::AnythingGoes);
        }
        // Rarely, and where there are many bytes of values: what hits a header is seen even without payloads' CRCs.
        OfLog::ChecksumsSkipped => {
            rot(setup, &[(F::BitFlip, 10_000)]);
            setup.one_long_in = 1;
        }
        OfLog::CorruptionCut => rot(setup, &[(F::BitFlip, 20_000), (F::LostWrite, 5_000)]),
        OfLog::JudgedByWhatFollows | OfLog::ProofAhead | OfLog::AcknowledgedOutOfOrder => reorder(setup),
        OfLog::NewestSegmentSkipped => {
            // A disk that is slow to prepare the next segment, and full for a while, leaves none ready.
            strike(setup, &[(F::ProcessKill, 800), (F::DiskStall, 30_000)]);
        }
        OfLog::TruncationNotLogged => {
            depose(setup, Duration::from_millis(600), false);
            strike(setup, &[(F::ProcessKill, 200)]);
        }
    }
}

fn provoke_in_node(bug: OfNode, setup: &mut Setup) {
    use FaultKind as F;
    match bug {
        OfNode::VoteNotAwaited => {
            cut_power(setup);
            strike(setup, &[(F::ProcessKill, 1_000), (F::DiskStall, 100_000)]);
        }
        OfNode::VoteNotSaved => strike(setup, &[(F::ProcessKill, 300)]),
        OfNode::VoteGrantedToAll => {
            depose(setup, Duration::from_millis(400), false);
            strike(setup, &[(F::ProcessKill, 200)]);
        }
        OfNode::LeaderRestored => {
            cut_power(setup);
            strike(setup, &[(F::DiskStall, 10_000)]);
            setup.restart_max = Duration::from_millis(50);
        }
        OfNode::LeaseForgotten => {
            depose(setup, Duration::from_millis(400), true);
            setup.restart_max = Duration::from_millis(5);
        }
        OfNode::LeaseUnchecked => depose(setup, Duration::from_millis(800), false),
        OfNode::ReadBeforeReplay => strike(setup, &[(F::ProcessKill, 500), (F::DiskStall, 20_000)]),
        OfNode::RetryAppliedAgain => strike(setup, &[(F::NetReset, 10_000), (F::NetDuplicate, 10_000)]),
        // Needs a failed precondition only. The faults are for the run not to be vacuous.
        OfNode::BatchAppliedInPart => strike(setup, &[(F::NetDelay, 5_000)]),
        OfNode::LocalTimeInApply => strike(setup, &[(F::ProcessKill, 300), (F::ClockJump, 10_000)]),
        // A sync that fails leaves the whole batch in the page cache, where the restarted process finds it.
        OfNode::InDoubtToldRefused => {
            strike(setup, &[(F::SyncError, 10_000)]);
            setup.disks.iter_mut().for_each(|disk| disk.direct = false);
        }
    }
}

/// What came of the hunt for one bug.
#[derive(Clone, Debug)]
pub struct Hunted {
    /// The bug.
    pub bug: Injected,
    /// Seeds that were run with it.
    pub seeds: u64,
    /// The run in which a checker objected.
    pub found: Option<Outcome>,
    /// What the same plan and seeds showed without it.
    pub control: Vec<Outcome>,
}

/// Hunts one bug; tells the seed before each run.
pub fn hunt(bug: Injected, tell: impl Fn(u64)) -> Hunted {
    let mut hunted = Hunted { bug, seeds: 0, found: None, control: Vec::new() };
    for seed in 0..SEEDS_MAX {
        tell(seed);
        hunted.seeds += 1;
        let setup = bug.setup(seed);
        let with = run_setup(Setup { bug: Some(bug), ..setup.clone() }, STEPS_DEFAULT, None);
        let without = run_setup(setup, STEPS_DEFAULT, None);
        if !without.violations.is_empty() {
            hunted.control.push(without);
        }
        if is_found(&with) {
            hunted.found = Some(with);
            break;
        }
    }
    hunted
}

/// A run that shows nothing, or too much to decide, has found nothing.
fn is_found(outcome: &Outcome) -> bool {
    outcome.violations.iter().any(|broken| !matches!(broken.checker, "vacuous" | "undecided"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn bugs_have_names_of_their_own_and_plans_in_which_something_strikes() {
        let names: BTreeSet<String> = Injected::all().map(Injected::name).collect();
        assert_eq!(names.len(), Injected::all().count());
        assert!(names.len() >= 10 && names.contains("acknowledged_before_write"));
        for bug in Injected::all() {
            let setup = bug.setup(3);
            assert!(FaultKind::ALL.iter().any(|&kind| setup.faults.ppm(kind) > 0), "{bug:?}");
            assert!(setup.bug.is_none(), "the plan is the control's too");
        }
    }
}
