//! Random operations, restarts and crashes against a plain model of what a log is.

mod support;

use std::collections::BTreeMap;

use gristmill_shardexec::{IoChoice, yield_now};
use gristmill_wal::{FencingToken, GroupId, GroupState, LogPosition, Lsn, RecoveryReport, Vote, Wal, WalError};
use proptest::prelude::*;
use support::{Dir, has_uring, open_with, position, run_on};

const GROUPS: u64 = 3;

#[derive(Clone, Debug)]
enum Step {
    Append { group: u64, term_step: u64, len: usize },
    Truncate { group: u64, back: u64 },
    Purge { group: u64, forward: u64 },
    Snapshot { group: u64, beyond: u64 },
    Vote { group: u64, term_step: u64 },
    Membership { group: u64, len: usize },
    Committed { group: u64 },
    Flush,
    Yield(u8),
    Restart { clean: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let group = || 0..GROUPS;
    prop_oneof![
        40 => (group(), 0..12_u64, 0..3000_usize)
            .prop_map(|(group, step, len)| Step::Append { group, term_step: step / 11, len }),
        4 => (group(), 0..6_u64).prop_map(|(group, back)| Step::Truncate { group, back }),
        6 => (group(), 0..20_u64).prop_map(|(group, forward)| Step::Purge { group, forward }),
        1 => (group(), 0..5_u64).prop_map(|(group, beyond)| Step::Snapshot { group, beyond }),
        3 => (group(), 0..3_u64).prop_map(|(group, term_step)| Step::Vote { group, term_step }),
        2 => (group(), 0..200_usize).prop_map(|(group, len)| Step::Membership { group, len }),
        3 => group().prop_map(|group| Step::Committed { group }),
        4 => Just(Step::Flush),
        8 => (0..20_u8).prop_map(Step::Yield),
        2 => any::<bool>().prop_map(|clean| Step::Restart { clean }),
    ]
}

/// What a group should hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    entries: BTreeMap<u64, (u64, Vec<u8>)>,
    purged: Option<LogPosition>,
    last: Option<LogPosition>,
    vote: Option<Vote>,
    membership: Option<(LogPosition, Box<[u8]>)>,
    token_highest: FencingToken,
}

type Models = BTreeMap<u64, Model>;

/// The models after each record, and how far they were acknowledged.
struct History {
    states: BTreeMap<Lsn, Models>,
    acknowledged: Lsn,
    terms: BTreeMap<u64, u64>,
    sequence: u32,
}

impl History {
    fn now(&self) -> Models {
        self.states.values().next_back().cloned().unwrap_or_default()
    }

    /// A crash may lose everything behind `last`.
    fn roll_back(&mut self, report: &RecoveryReport) {
        assert!(report.last_lsn >= self.acknowledged, "acknowledged records are gone: {report:?}");
        self.states.split_off(&report.last_lsn.next());
    }

    fn token(&mut self, term: u64) -> FencingToken {
        self.sequence += 1;
        FencingToken::new(term as u32, self.sequence)
    }
}

fn append(wal: &Wal, history: &mut History, group: u64, term_step: u64, len: usize) {
    let mut models = history.now();
    let term = history.terms.entry(group).or_insert(1);
    *term += term_step;
    let term = *term;
    let token = history.token(term);
    let model = models.entry(group).or_default();
    let at = LogPosition { term, index: model.last.map_or(1, |last| last.index + 1) };
    let payload: Vec<u8> = (0..len).map(|n| (n as u64 ^ at.index ^ token.raw()) as u8).collect();
    let entry = gristmill_wal::AppendEntry { position: at, token, kind: 1, parts: [&payload, &[]] };
    match wal.append_unacknowledged(GroupId(group), u64::from(u32::MAX), &[entry]) {
        Ok(lsn) => {
            model.entries.insert(at.index, (term, payload));
            model.last = Some(at);
            model.token_highest = model.token_highest.max(token);
            history.states.insert(lsn, models);
        }
        Err(error) => assert!(matches!(error, WalError::Backlog { .. }), "{error}"),
    }
}

fn truncate(wal: &Wal, history: &mut History, group: u64, back: u64) {
    let mut models = history.now();
    let Some(model) = models.get_mut(&group) else { return };
    let Some(last) = model.last else { return };
    let first = model.purged.map_or(1, |purged| purged.index + 1);
    let keep = (last.index + 1).saturating_sub(back).max(first);
    let after =
        model.entries.range(..keep).next_back().map(|(index, (term, _))| position(*term, *index)).or(model.purged);
    drop(wal.truncate_after(GroupId(group), after));
    model.entries.split_off(&keep);
    model.last = after;
    history.states.insert(wal.last_lsn(), models);
}

fn purge(wal: &Wal, history: &mut History, group: u64, through: impl FnOnce(&Model) -> Option<LogPosition>) {
    let mut models = history.now();
    let Some(model) = models.get_mut(&group) else { return };
    let Some(through) = through(model) else { return };
    drop(wal.purge(GroupId(group), through));
    model.entries = model.entries.split_off(&(through.index + 1));
    model.purged = Some(through);
    if model.last.is_none_or(|last| last.index <= through.index) {
        model.last = Some(through);
    }
    history.states.insert(wal.last_lsn(), models);
}

fn vote(wal: &Wal, history: &mut History, group: u64, term_step: u64) {
    let mut models = history.now();
    let model = models.entry(group).or_default();
    let have = model.vote.unwrap_or(Vote { term: 1, node: 4, incarnation: 1, committed: false });
    let vote = Vote { term: have.term + term_step, committed: term_step == 0, ..have };
    drop(wal.save_vote(GroupId(group), vote));
    model.vote = Some(vote);
    history.states.insert(wal.last_lsn(), models);
}

fn membership(wal: &Wal, history: &mut History, group: u64, len: usize) {
    let mut models = history.now();
    let model = models.entry(group).or_default();
    let at = model.last.unwrap_or_default();
    let bytes = vec![len as u8; len];
    drop(wal.save_membership(GroupId(group), at, &bytes));
    model.membership = Some((at, bytes.into()));
    history.states.insert(wal.last_lsn(), models);
}

async fn compare(wal: &Wal, models: &Models) {
    for (id, model) in models {
        let state: GroupState = wal.group(GroupId(*id)).expect("the group is known");
        assert_eq!((state.vote, state.purged, state.last), (model.vote, model.purged, model.last), "group {id}");
        assert_eq!((&state.membership, state.token_highest), (&model.membership, model.token_highest), "group {id}");
        let entries = wal.read(GroupId(*id), 0..u64::MAX, usize::MAX).await.expect("readable");
        let found: BTreeMap<u64, (u64, Vec<u8>)> = entries
            .iter()
            .map(|stored| (stored.position.index, (stored.position.term, stored.data.to_vec())))
            .collect();
        assert!(found == model.entries, "group {id}: {:?}, expected {:?}", found.keys(), model.entries.keys());
    }
}

/// Runs steps until the next restart; returns how many it took.
async fn session(dir: &Dir, history: &mut History, steps: &[Step]) -> usize {
    let (wal, report) = open_with(dir, gristmill_wal::WalOptions::small()).await.expect("the log opens");
    history.roll_back(&report);
    compare(&wal, &history.now()).await;
    for (taken, step) in steps.iter().enumerate() {
        match *step {
            Step::Append { group, term_step, len } => append(&wal, history, group, term_step, len),
            Step::Truncate { group, back } => truncate(&wal, history, group, back),
            Step::Purge { group, forward } => purge(&wal, history, group, |model| {
                model.entries.iter().nth(forward as usize).map(|(index, (term, _))| position(*term, *index))
            }),
            Step::Snapshot { group, beyond } => purge(&wal, history, group, |model| {
                model.last.map(|last| LogPosition { index: last.index + 1 + beyond, ..last })
            }),
            Step::Vote { group, term_step } => vote(&wal, history, group, term_step),
            Step::Membership { group, len } => membership(&wal, history, group, len),
            Step::Committed { group } => {
                let last = history.now().get(&group).and_then(|model| model.last);
                wal.save_committed(GroupId(group), last).expect("saved");
            }
            Step::Flush => {
                wal.flush().await.expect("durable");
                history.acknowledged = wal.stats().durable_lsn;
            }
            Step::Yield(times) => {
                for _ in 0..times {
                    yield_now().await;
                }
            }
            Step::Restart { clean } => {
                compare(&wal, &history.now()).await;
                if clean {
                    wal.close().await.expect("closed");
                    history.acknowledged = wal.last_lsn();
                }
                return taken + 1;
            }
        }
    }
    compare(&wal, &history.now()).await;
    steps.len()
}

fn a_log_is_what_the_model_says(dir: &Dir, io: IoChoice, steps: &[Step]) {
    let mut history = History { states: BTreeMap::new(), acknowledged: Lsn(0), terms: BTreeMap::new(), sequence: 0 };
    let mut taken = 0;
    while taken < steps.len() {
        taken += run_on(io, session(dir, &mut history, &steps[taken..]));
    }
    run_on(io, session(dir, &mut history, &[]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn on_posix_in_memory(steps in proptest::collection::vec(step(), 50..500)) {
        a_log_is_what_the_model_says(&Dir::memory(), IoChoice::Posix, &steps);
    }

    #[test]
    fn on_uring_on_disk(steps in proptest::collection::vec(step(), 50..300)) {
        if has_uring() {
            a_log_is_what_the_model_says(&Dir::disk(), IoChoice::Uring, &steps);
        }
    }
}
