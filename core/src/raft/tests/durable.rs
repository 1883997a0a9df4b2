//! Groups of one voter over the WAL: what was acknowledged survives, votes and tokens never go back.

use super::super::start::GroupLog;
use super::super::types::{RaftVote, ReplicaId};
use super::*;
use gristmill_shardexec::time::sleep;
use gristmill_wal::{GroupId, LogNumber, Wal, WalOptions};
use openraft::EmptyNode;
use openraft::storage::{RaftLogReader, RaftLogStorage};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// A directory on the file system of the temporary files, and one on tmpfs, which has no O_DIRECT.
fn directories() -> Vec<TempDir> {
    let mut directories = vec![tempfile::tempdir().unwrap()];
    directories.extend(tempfile::tempdir_in("/dev/shm").ok());
    directories
}

async fn open(dir: &Path) -> Wal {
    Wal::open(dir, LogNumber(0), WalOptions::small()).await.unwrap().0
}

async fn start(wal: &Wal, options: WalLogOptions, journal: &SharedJournal) -> Group {
    let log = WalLog::new(wal.clone(), config().shard, options);
    let group = Group::start(config(), log, journal.boxed()).unwrap();
    group.ready().await.unwrap();
    group
}

fn bodies(from: usize, count: usize) -> Vec<Proposal> {
    (from..from + count).map(|number| proposal(&(number as u64).to_le_bytes())).collect()
}

fn expected(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| (number as u64).to_le_bytes().to_vec()).collect()
}

/// Each life ends like a crash of the process: everything is dropped, nothing is closed.
#[test]
fn acknowledged_writes_votes_and_tokens_survive_crashes() {
    for directory in directories() {
        let mut written = 0;
        let mut last = (0, 0);
        for life in 1..=6 {
            on_executor(async {
                let wal = open(directory.path()).await;
                let journal = SharedJournal::default();
                let group = start(&wal, WalLogOptions::default(), &journal).await;
                assert_eq!(journal.bodies(), expected(written), "life {life}");
                for batch in [1, 7, 100] {
                    for result in group.propose_many(bodies(written, batch)).await {
                        let position = result.unwrap().position;
                        assert!((position.term, position.index) > last);
                        last = (position.term, position.index);
                    }
                    written += batch;
                }
                let vote = wal.group(GroupId(u64::from(config().shard.0))).unwrap().vote.unwrap();
                assert_eq!((vote.term, vote.committed), (last.0, true));
                assert_eq!(vote.term, life, "a life, a term: the old one is never resumed");
                let tokens: Vec<u64> = journal.0.borrow().commands.iter().map(|(header, _)| header.token).collect();
                assert!(tokens.is_sorted(), "also across restarts");
            });
        }
    }
}

#[test]
fn a_closed_log_is_replayed_through_its_last_commit() {
    let directory = tempfile::tempdir().unwrap();
    on_executor(async {
        let wal = open(directory.path()).await;
        let journal = SharedJournal::default();
        let group = start(&wal, WalLogOptions::default(), &journal).await;
        group.propose_many(bodies(0, 500)).await.into_iter().for_each(|result| drop(result.unwrap()));
        group.shutdown().await;
        wal.close().await.unwrap();
        let refused = group.propose_many(bodies(0, 1)).await;
        assert_eq!(refused, [Err(ProposeError::Stopped(StopReason::Shutdown))]);
    });
    on_executor(async {
        let wal = open(directory.path()).await;
        let log = WalLog::new(wal, config().shard, WalLogOptions::default());
        let summary = log.summary();
        assert_eq!(summary.committed, summary.last, "close writes the lazy commit position");
        let journal = SharedJournal::default();
        let group = Group::start(config(), log, journal.boxed()).unwrap();
        let Phase::Recovering { applied: 0, target } = group.phase() else { panic!("{:?}", group.phase()) };
        assert_eq!(target, summary.last.unwrap().index + 1);
        group.ready().await.unwrap();
        assert_eq!(journal.bodies(), expected(500));
        assert!(journal.0.borrow().batches.iter().all(|batch| *batch <= APPLY_BATCH_MAX));
    });
}

#[test]
fn a_batch_larger_than_the_log_buffers_is_split_and_applied_whole() {
    let directory = tempfile::tempdir().unwrap();
    on_executor(async {
        let wal = open(directory.path()).await;
        let journal = SharedJournal::default();
        // With no cache every entry is read back from the WAL.
        let options = WalLogOptions { cache_bytes_max: 0, ..WalLogOptions::default() };
        let group = start(&wal, options, &journal).await;
        let body = vec![9; 1000];
        let batch = vec![proposal(&body); 1500];
        assert!(1500 * body.len() > 4 * wal.append_bytes_max());
        for result in group.propose_many(batch).await {
            result.unwrap();
        }
        assert_eq!(journal.bodies(), vec![body; 1500]);

        let largest = wal.payload_bytes_max() - 96;
        let results = group.propose_many(vec![proposal(&vec![1; largest]), proposal(b"after")]).await;
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        let results = group.propose_many(vec![proposal(&vec![1; largest + 1])]).await;
        assert!(matches!(results[..], [Err(ProposeError::TooLarge { .. })]));
    });
}

#[test]
fn concurrent_batches_are_applied_in_one_order() {
    let directory = tempfile::tempdir().unwrap();
    on_executor(async {
        let wal = open(directory.path()).await;
        let journal = SharedJournal::default();
        let options = WalLogOptions { sequences_max: 20, ..WalLogOptions::default() };
        let group = start(&wal, options, &journal).await;
        let proposers: Vec<_> = (0..16_usize)
            .map(|proposer| {
                let group = group.clone();
                gristmill_shardexec::spawn(gristmill_shardexec::Class::Request, "proposer", async move {
                    let mut positions = Vec::new();
                    for round in 0..20 {
                        for result in group.propose_many(bodies(proposer * 1000 + round * 10, 10)).await {
                            positions.push(result.unwrap().position.index);
                        }
                    }
                    positions
                })
            })
            .collect();
        let mut all = Vec::new();
        for proposer in proposers {
            let positions = proposer.await.unwrap();
            assert!(positions.is_sorted());
            all.extend(positions);
        }
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 16 * 200, "every proposal has an entry of its own");
        let journal = journal.0.borrow();
        let indexes: Vec<u64> = journal.commands.iter().map(|(header, _)| header.index).collect();
        assert_eq!(indexes, all, "applied once each, in log order");
        assert!(group.metrics().term > 1, "terms were left while batches were in flight");
    });
}

/// With nothing in flight nobody told the replica, and `status` called it serving.
#[test]
fn an_idle_replica_whose_log_takes_nothing_says_so() {
    let directory = tempfile::tempdir().unwrap();
    on_executor(async {
        let wal = open(directory.path()).await;
        let journal = SharedJournal::default();
        let group = start(&wal, WalLogOptions::default(), &journal).await;
        group.propose_many(bodies(0, 3)).await;
        assert_eq!((group.phase(), group.is_leader()), (Phase::Ready, true));
        wal.close().await.unwrap();
        let Phase::Stopped(StopReason::LogFailed(reason)) = group.phase() else { panic!("{:?}", group.phase()) };
        assert!(reason.contains("closed"), "{reason}");
        assert!(!group.is_leader() && !group.metrics().leads);
        assert!(matches!(group.read_permission(), Err(ReadError::Stopped(StopReason::LogFailed(_)))));
        let refused = group.propose_many(bodies(3, 1)).await;
        assert!(matches!(refused[..], [Err(ProposeError::Stopped(StopReason::LogFailed(_)))]), "{refused:?}");
    });
}

/// A leader without requests went on with its heartbeats for ever, so that nobody else was elected.
#[test]
fn an_idle_leader_with_followers_falls_silent_when_its_log_fails() {
    let directory = tempfile::tempdir().unwrap();
    on_executor(async {
        let wal = open(directory.path()).await;
        let log = WalLog::new(wal.clone(), config().shard, WalLogOptions::default());
        let book = PeerBook::new(ClusterId([1; 16]), config().replica, (4, 150), BTreeMap::new());
        let peers = GroupPeers { links: PeerLinks::new(book, LinkOptions::default()), found: true };
        let journal = SharedJournal::default();
        let group = Group::start_with(config(), Some(peers), log, journal.boxed()).unwrap();
        group.ready().await.unwrap();
        let follower = ReplicaId { node: 9, incarnation: 1 };
        group.0.core().add_learner(follower, EmptyNode {}, false).await.unwrap();
        sleep(config().settings.leader_lease * 3).await;
        assert_eq!((group.view().role, group.view().stopped), (Role::Leader, None));
        wal.close().await.unwrap();
        // Nobody asks it anything: a view does not look at the log.
        let ended =
            || matches!(group.view().stopped, Some(StopReason::LogFailed(_))) && group.view().role == Role::None;
        for _ in 0..200 {
            if ended() {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("{:?}", group.view());
    });
}

#[test]
fn a_replica_that_outlived_its_successors_vote_cannot_write() {
    let directory = tempfile::tempdir().unwrap();
    on_executor(async {
        let wal = open(directory.path()).await;
        let journal = SharedJournal::default();
        let group = start(&wal, WalLogOptions::default(), &journal).await;
        group.propose_many(bodies(0, 3)).await;

        let mut successor = WalLog::new(wal.clone(), config().shard, WalLogOptions::default());
        let vote = RaftVote::new(9, ReplicaId { node: 3, incarnation: 2 });
        successor.save_vote(&vote).await.unwrap();
        assert_eq!(successor.read_vote().await.unwrap(), Some(vote));

        let results = group.propose_many(bodies(3, 1)).await;
        let [Err(ProposeError::Stopped(StopReason::LogFailed(reason)))] = &results[..] else { panic!("{results:?}") };
        assert!(reason.contains("deposed"), "{reason}");
        assert_eq!(wal.stats().stale_tokens, 1);
        assert_eq!(journal.bodies(), expected(3));
        assert!(matches!(group.read_permission(), Err(ReadError::Stopped(_))));

        let older = RaftVote::new(8, ReplicaId { node: 3, incarnation: 2 });
        assert!(successor.save_vote(&older).await.is_err(), "votes never go back");
        assert_eq!(successor.read_vote().await.unwrap(), Some(vote));
    });
}

#[test]
fn applied_entries_leave_the_cache_and_can_still_be_read() {
    let directory = tempfile::tempdir().unwrap();
    on_executor(async {
        let wal = open(directory.path()).await;
        let journal = SharedJournal::default();
        let mut log = WalLog::new(wal.clone(), config().shard, WalLogOptions::default());
        let group = Group::start(config(), log.clone(), journal.boxed()).unwrap();
        group.ready().await.unwrap();
        group.propose_many(bodies(0, 50)).await;
        assert!(log.cached_indexes().is_empty(), "{:?}", log.cached_indexes());
        let entries = log.try_get_log_entries(..).await.unwrap();
        assert_eq!(entries.len() as u64, group.metrics().last_log.unwrap().index + 1);
        assert!(entries.iter().all(|entry| entry.token.is_some()), "tokens are read back");
        assert_eq!(log.limited_get_log_entries(3, 5).await.unwrap().len(), 2);
    });
}
