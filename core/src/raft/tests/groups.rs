//! Groups of one voter over the in-memory log.

use super::super::types::{RaftVote, to_log_id};
use super::*;
use gristmill_shardexec::time::timeout;
use openraft::raft::VoteRequest;
use std::collections::BTreeMap;
use std::time::Duration;

/// Longer than anything here takes, shorter than for ever.
const ANSWER_MAX: Duration = Duration::from_secs(20);

fn start(log: &MemoryLog, journal: &SharedJournal) -> Group {
    Group::start(config(), log.clone(), journal.boxed()).unwrap()
}

async fn ready(log: &MemoryLog, journal: &SharedJournal) -> Group {
    let group = start(log, journal);
    group.ready().await.unwrap();
    group
}

fn bodies(from: u32, to: u32) -> Vec<Proposal> {
    (from..to).map(|number| proposal(&number.to_le_bytes())).collect()
}

fn expected(to: u32) -> Vec<Vec<u8>> {
    (0..to).map(|number| number.to_le_bytes().to_vec()).collect()
}

#[test]
fn a_fresh_group_founds_itself_and_applies_in_order() {
    on_executor(async {
        let journal = SharedJournal::default();
        let group = start(&MemoryLog::new(config().shard), &journal);
        assert!(matches!(group.phase(), Phase::Recovering { .. }));
        let early = group.propose_many(bodies(0, 2)).await;
        assert!(matches!(early[..], [Err(ProposeError::Recovering { .. }), Err(ProposeError::Recovering { .. })]));
        assert!(matches!(group.read_permission(), Err(ReadError::Recovering { .. })));

        group.ready().await.unwrap();
        let results = group.propose_many(bodies(0, 1000)).await;
        let mut last = 0;
        for (number, result) in results.into_iter().enumerate() {
            let applied = result.unwrap();
            assert!(applied.position.index > last, "positions rise in the order of proposing");
            last = applied.position.index;
            assert_eq!(applied.outcome.as_bytes(), (number as u64 + 1).to_le_bytes());
        }
        assert_eq!(journal.bodies(), expected(1000));
        assert!(journal.0.borrow().batches.iter().all(|batch| *batch <= APPLY_BATCH_MAX));
        assert_eq!(group.read_permission(), Ok(()));
        assert_eq!(group.linearizable().await, Ok(()));

        let metrics = group.metrics();
        assert_eq!((metrics.phase, metrics.term, metrics.in_flight), (Phase::Ready, 1, 0));
        assert_eq!((metrics.role, metrics.voters), (Role::Leader, vec![config().replica]));
        assert_eq!(metrics.leader, Some(config().replica));
        assert_eq!(metrics.applied.map(|applied| applied.index), Some(last));
        assert!(group.is_leader());
    });
}

/// A replica that was the only voter by its own log answered reads whatever it was, also after another had been elected.
#[test]
fn the_only_voter_of_a_group_that_may_grow_answers_reads_only_while_it_leads() {
    on_executor(async {
        let log = MemoryLog::new(config().shard);
        let book = PeerBook::new(ClusterId([1; 16]), config().replica, (4, 150), BTreeMap::new());
        let peers = GroupPeers { links: PeerLinks::new(book, LinkOptions::default()), found: true };
        let group = Group::start_with(config(), Some(peers), log, SharedJournal::default().boxed()).unwrap();
        group.ready().await.unwrap();
        group.propose_many(bodies(0, 3)).await.into_iter().for_each(|result| drop(result.unwrap()));
        assert_eq!(group.read_permission(), Ok(()));
        let term = group.metrics().term;
        let other = RaftVote::new(term + 1, ReplicaId { node: 9, incarnation: 1 });
        let newest = to_log_id(LogPosition { term: term + 1, index: u64::MAX });
        let request = VoteRequest { vote: other, last_log_id: Some(newest), leadership_transfer: true };
        assert!(group.0.core().vote(request).await.unwrap().vote_granted);
        assert_eq!(group.read_permission(), Err(ReadError::NotLeader { leader: None }));
        assert_eq!(group.linearizable().await, Err(ReadError::NotLeader { leader: None }));
    });
}

#[test]
fn headers_are_stamped_with_shard_position_and_token() {
    on_executor(async {
        let journal = SharedJournal::default();
        let group = ready(&MemoryLog::new(config().shard), &journal).await;
        let applied = group.propose_many(bodies(0, 3)).await.pop().unwrap().unwrap();
        let (stamped, _) = journal.0.borrow().commands[2].clone();
        assert_eq!((stamped.shard, stamped.term, stamped.index), (config().shard, 1, applied.position.index));
        assert_eq!(stamped.token >> 32, 1, "the token's term is the entry's");
        assert_eq!(stamped.session, header().session, "what the client said stays");
    });
}

#[test]
fn a_restart_replays_and_never_resumes_its_old_term() {
    on_executor(async {
        let log = MemoryLog::new(config().shard);
        let mut terms = Vec::new();
        for life in 0..4 {
            let journal = SharedJournal::default();
            let group = ready(&log, &journal).await;
            assert_eq!(journal.bodies(), expected(life * 100), "all that was acknowledged is back before it serves");
            group.propose_many(bodies(life * 100, life * 100 + 100)).await.into_iter().for_each(|result| {
                terms.push(result.unwrap().position.term);
            });
            group.shutdown().await;
            let stopped = group.propose_many(bodies(0, 1)).await;
            assert_eq!(stopped, [Err(ProposeError::Stopped(StopReason::Shutdown))]);
            assert_eq!(group.read_permission(), Err(ReadError::Stopped(StopReason::Shutdown)));
        }
        assert!(terms.is_sorted());
        terms.dedup();
        assert_eq!(terms.len(), 4, "each life has a term of its own: {terms:?}");
    });
}

#[test]
fn used_up_tokens_move_the_leader_to_a_new_term_unnoticed() {
    on_executor(async {
        // Three append batches a term: a term's first entry takes one of them.
        let log = MemoryLog::with_sequences(config().shard, 3);
        let journal = SharedJournal::default();
        let group = ready(&log, &journal).await;
        for round in 0..40 {
            for result in group.propose_many(bodies(round * 10, round * 10 + 10)).await {
                result.expect("clients notice nothing");
            }
            assert_eq!(group.read_permission(), Ok(()));
        }
        assert_eq!(journal.bodies(), expected(400));
        let journal = journal.0.borrow();
        let tokens: Vec<u64> = journal.commands.iter().map(|(header, _)| header.token).collect();
        assert!(tokens.is_sorted(), "tokens never decrease along the log");
        assert!(group.metrics().term > 20, "{:?}", group.metrics());
        for (header, _) in &journal.commands {
            assert_eq!(header.token >> 32, header.term);
            assert!(header.token & 0xffff_ffff <= 3, "a term is left soon after its tokens are used up");
        }
    });
}

#[test]
fn too_much_and_too_large_are_refused_before_anything_is_written() {
    on_executor(async {
        let journal = SharedJournal::default();
        let group = ready(&MemoryLog::new(config().shard), &journal).await;
        let flood = group.propose_many(vec![proposal(b"x"); PROPOSALS_IN_FLIGHT_MAX + 1]).await;
        assert!(flood.iter().all(|result| *result == Err(ProposeError::Busy { in_flight: 0, bytes: 0 })));
        let huge = vec![0; gristmill_wal::limits::ENTRY_BYTES_MAX + 1];
        let huge = group.propose_many(vec![proposal(b"small"), proposal(&huge)]).await;
        assert!(matches!(huge[..], [Err(ProposeError::TooLarge { .. }), Err(ProposeError::TooLarge { .. })]));
        assert!(journal.bodies().is_empty());
        assert!(group.propose_many(Vec::new()).await.is_empty());
        group.propose_many(bodies(0, 1)).await.pop().unwrap().unwrap();
    });
}

#[test]
fn a_failing_state_machine_stops_the_replica_with_its_reason() {
    on_executor(async {
        let journal = SharedJournal::default();
        let group = ready(&MemoryLog::new(config().shard), &journal).await;
        let results = group.propose_many(vec![proposal(b"fine"), proposal(b"poison")]).await;
        let Err(ProposeError::Stopped(StopReason::Failed(reason))) = &results[1] else { panic!("{results:?}") };
        assert!(reason.contains("poison"), "{reason}");
        assert!(matches!(group.phase(), Phase::Stopped(StopReason::Failed(_))));
        assert!(matches!(group.read_permission(), Err(ReadError::Stopped(_))));
    });
}

/// A panic in apply killed openraft's worker and nothing else: the write was never answered, the replica went on serving reads
/// of a state that was half changed, and after a restart the same entry left it recovering for ever.
#[test]
fn a_state_machine_that_panics_stops_the_replica_now_and_in_each_replay() {
    on_executor(async {
        let log = MemoryLog::new(config().shard);
        let journal = SharedJournal::default();
        let group = ready(&log, &journal).await;
        let answered = timeout(ANSWER_MAX, group.propose_many(vec![proposal(b"fine"), proposal(b"bomb")])).await;
        let results = answered.expect("every proposal is answered");
        let Err(ProposeError::Stopped(StopReason::Failed(reason))) = &results[1] else { panic!("{results:?}") };
        assert!(reason.contains("panicked") && reason.contains("it went off"), "{reason}");
        assert!(matches!(group.read_permission(), Err(ReadError::Stopped(StopReason::Failed(_)))));
        group.shutdown().await;
        for _ in 0..2 {
            let again = start(&log, &SharedJournal::default());
            let outcome = timeout(ANSWER_MAX, again.ready()).await.expect("it does not recover for ever");
            let Err(StopReason::Failed(reason)) = outcome else { panic!("{outcome:?}") };
            assert!(reason.contains("it went off"), "{reason}");
            again.shutdown().await;
        }
    });
}

#[test]
fn a_log_that_lost_entries_is_refused_and_left_alone() {
    on_executor(async {
        let journal = SharedJournal::default();
        let group = ready(&MemoryLog::new(config().shard), &journal).await;
        group.propose_many(bodies(0, 10)).await;
        group.shutdown().await;

        let lost = MemoryLog::new(config().shard);
        let refused = Group::start(config(), lost.clone(), journal.boxed()).unwrap_err();
        assert!(matches!(refused, StartError::Quarantined(Quarantine::LogBehindState { last: None, .. })));
        let (_, untouched) = (refused, super::super::start::GroupLog::summary(&lost));
        assert_eq!(untouched, LogSummary::default(), "no vote, no purge");
    });
}

/// Live and in a replay: a state machine looks at its room after so many bytes at the latest.
#[test]
fn batches_of_large_commands_are_cut() {
    on_executor(async {
        let log = MemoryLog::new(config().shard);
        let large = vec![7; APPLY_BATCH_BYTES_MAX / 2];
        for life in 0..2 {
            let journal = SharedJournal::default();
            let group = ready(&log, &journal).await;
            if life == 0 {
                let results = group.propose_many(vec![proposal(&large); 7]).await;
                assert!(results.iter().all(Result::is_ok));
            }
            let journal = journal.0.borrow();
            assert_eq!(journal.commands.len(), 7);
            assert!(journal.batches.iter().all(|entries| *entries <= 4), "two commands and what has no bytes");
        }
    });
}
