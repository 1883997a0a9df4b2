//! A log in a real directory: what goes in comes out, also after a restart.
#![allow(clippy::disallowed_methods, reason = "tests look at files behind the log's back")]

mod support;

use gristmill_shardexec::IoChoice;
use gristmill_wal::{Direct, FencingToken, GroupId, Home, Incident, LogPosition, Vote, WalError, WalOptions};
use std::cell::RefCell;
use std::rc::Rc;
use support::{Dir, append, append_with, entry, indexes, open, position, run_on};

const G: GroupId = GroupId(7);

on_every_driver!(
    entries_are_readable_at_once_and_after_a_restart,
    acknowledgements_come_in_lsn_order,
    votes_positions_membership_and_home_survive,
    a_deposed_writer_is_refused_and_counted,
    a_newer_leader_may_bring_older_entries,
    what_does_not_fit_is_refused_and_changes_nothing,
    a_snapshot_moves_the_log_beyond_its_end,
    a_group_that_moved_away_stays_away_until_a_higher_epoch,
    segments_rotate_and_are_recycled_once_purged,
    more_groups_than_a_trailer_lists_share_a_log,
    a_run_of_checkpoints_that_fills_its_last_table_leaves_room_for_a_record,
    batch_writes_are_timed,
    buffered_batches_are_written_one_after_the_other,
    incidents_are_told_once,
);

fn entries_are_readable_at_once_and_after_a_restart(io: IoChoice) {
    for dir in Dir::both() {
        run_on(io, async {
            let wal = open(&dir).await;
            let lsn = append(&wal, G, 1, 1..=20);
            assert_eq!(indexes(&wal, G).await, (1..=20).collect::<Vec<_>>(), "before they are durable");
            wal.durable(lsn).await.expect("durable");
            assert_eq!(indexes(&wal, G).await, (1..=20).collect::<Vec<_>>(), "after");
            wal.close().await.expect("closed");
        });
        run_on(io, async {
            let wal = open(&dir).await;
            let entries = wal.read(G, 5..9, usize::MAX).await.expect("read");
            assert_eq!(entries.len(), 4);
            for (stored, index) in entries.iter().zip(5..) {
                let (token, kind, payload) = entry(1, index);
                assert_eq!((stored.position, stored.token, stored.kind), (position(1, index), token, kind));
                assert_eq!(&stored.data[..], &payload[..]);
                assert_eq!(stored.data.as_ptr() as usize % 16, 0);
            }
            assert_eq!(wal.read(G, 1..21, 1).await.expect("read").len(), 1, "at least one");
            assert!(wal.read(G, 30..40, 1).await.expect("read").is_empty());
            assert!(wal.read(GroupId(1), 1..2, 1).await.expect("read").is_empty());
        });
    }
}

fn acknowledgements_come_in_lsn_order(io: IoChoice) {
    let dir = Dir::disk();
    run_on(io, async {
        // Room for every entry in a batch of its own: a slow disk must not end the test with a backlog.
        let options = WalOptions { segment_bytes: 16 << 20, pending_bytes_max: 4 << 20, ..WalOptions::small() };
        let (wal, _) = support::open_with(&dir, options).await.expect("opens");
        let told = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        for index in 1..=200 {
            let told = std::rc::Rc::clone(&told);
            append_with(&wal, G, 1, index, move |outcome| {
                outcome.expect("durable");
                told.borrow_mut().push(index);
            });
            if index % 7 == 0 {
                gristmill_shardexec::yield_now().await;
            }
        }
        wal.flush().await.expect("durable");
        assert_eq!(*told.borrow(), (1..=200).collect::<Vec<u64>>());
    });
}

fn votes_positions_membership_and_home_survive(io: IoChoice) {
    let dir = Dir::disk();
    let vote = Vote { term: 3, node: 9, incarnation: 2, committed: true };
    let before = run_on(io, async {
        let wal = open(&dir).await;
        wal.save_vote(G, Vote { committed: false, ..vote }).await.expect("saved");
        wal.save_vote(G, vote).await.expect("saved");
        append(&wal, G, 3, 1..=10);
        wal.save_committed(G, Some(position(3, 8))).expect("saved");
        wal.save_membership(G, position(3, 2), b"three voters").await.expect("saved");
        wal.save_home(G, Home { epoch: 4, retired: false }).await.expect("saved");
        wal.purge(G, position(3, 5)).await.expect("purged");
        wal.truncate_after(G, Some(position(3, 9))).await.expect("truncated");
        wal.close().await.expect("closed");
        wal.group(G).expect("known")
    });
    assert_eq!(before.vote, Some(vote));
    assert_eq!((before.purged, before.last), (Some(position(3, 5)), Some(position(3, 9))));
    run_on(io, async {
        let wal = open(&dir).await;
        assert_eq!(wal.group(G), Some(before));
        assert_eq!(indexes(&wal, G).await, [6, 7, 8, 9]);
        assert_eq!(wal.position(G, 7), Some(position(3, 7)));
        assert_eq!(wal.groups(), [G]);
    });
}

fn a_deposed_writer_is_refused_and_counted(io: IoChoice) {
    let dir = Dir::disk();
    run_on(io, async {
        let wal = open(&dir).await;
        append(&wal, G, 4, 1..=2);
        wal.save_vote(G, Vote { term: 5, node: 1, ..Vote::default() }).await.expect("saved");
        let stale = support::try_append(&wal, G, 4, 4, 3..=3);
        assert_eq!(
            stale,
            Err(WalError::StaleToken { group: G, have: FencingToken::new(5, 0), got: FencingToken::new(4, 0) })
        );
        assert_eq!(wal.stats().stale_tokens, 1);
        assert_eq!(indexes(&wal, G).await, [1, 2]);
        // The writer's term counts, not the entry's: the new leader brings entries of older terms.
        let lsn = support::try_append(&wal, G, 5, 4, 3..=3).expect("accepted");
        wal.durable(lsn).await.expect("durable");
        let beyond = support::try_append(&wal, G, 1 << 32, 4, 4..=4);
        assert!(matches!(beyond, Err(WalError::Token(_))), "{beyond:?}");
    });
    run_on(io, async {
        let wal = open(&dir).await;
        assert!(
            matches!(support::try_append(&wal, G, 4, 4, 4..=4), Err(WalError::StaleToken { .. })),
            "after a restart too"
        );
        assert_eq!(wal.group(G).expect("known").token_highest, FencingToken::new(4, 3));
    });
}

/// The leader of term 5 replaces a tail of term 4 by entries of term 3: tokens of what was cut do not count.
fn a_newer_leader_may_bring_older_entries(io: IoChoice) {
    let dir = Dir::disk();
    run_on(io, async {
        let wal = open(&dir).await;
        append(&wal, G, 2, 1..=3);
        append(&wal, G, 4, 4..=6);
        wal.save_vote(G, Vote { term: 5, node: 2, ..Vote::default() }).await.expect("saved");
        drop(wal.truncate_after(G, Some(position(2, 3))));
        support::try_append(&wal, G, 5, 3, 4..=5).expect("accepted");
        wal.close().await.expect("closed");
    });
    run_on(io, async {
        let wal = open(&dir).await;
        assert_eq!(indexes(&wal, G).await, [1, 2, 3, 4, 5]);
        assert_eq!(wal.position(G, 4), Some(position(3, 4)));
        assert_eq!(wal.group(G).expect("known").token_highest.term(), 4);
    });
}

fn what_does_not_fit_is_refused_and_changes_nothing(io: IoChoice) {
    let dir = Dir::disk();
    run_on(io, async {
        let wal = open(&dir).await;
        append(&wal, G, 3, 1..=5);
        let refused = [
            support::try_append(&wal, G, 3, 3, 7..=7),
            support::try_append(&wal, G, 3, 2, 6..=6),
            support::try_append(&wal, G, 3, 3, 5..=5),
        ];
        for outcome in refused {
            assert!(matches!(outcome, Err(WalError::Rejected { group: G, .. })), "{outcome:?}");
        }
        let huge = vec![0; 1 << 20];
        let outcome = support::try_append_payload(&wal, G, 3, position(3, 6), &huge);
        assert!(matches!(outcome, Err(WalError::TooLarge { .. })), "{outcome:?}");
        wal.save_vote(G, Vote { term: 6, node: 1, ..Vote::default() }).await.expect("saved");
        for vote in [Vote { term: 5, node: 1, ..Vote::default() }, Vote { term: 6, node: 2, ..Vote::default() }] {
            let outcome = wal.save_vote(G, vote).await;
            assert!(matches!(outcome, Err(WalError::VoteRegressed { .. })), "{outcome:?}");
        }
        // The simulator, plan vote_granted_to_all, seed 4 without the bug: two nodes stood in one term, and the loser's log took the winner's first
        // append, which says who leads, for a second vote. Its replica stopped for good.
        let (winner, other) = (
            Vote { term: 6, node: 2, committed: true, ..Vote::default() },
            Vote { term: 6, node: 3, committed: true, ..Vote::default() },
        );
        wal.save_vote(G, winner).await.expect("the loser of an election follows its winner");
        for vote in [other, Vote { committed: false, ..winner }] {
            let outcome = wal.save_vote(G, vote).await;
            assert!(matches!(outcome, Err(WalError::VoteRegressed { .. })), "{outcome:?}");
        }
        wal.purge(G, position(3, 2)).await.expect("purged");
        assert!(wal.truncate_after(G, Some(position(3, 1))).await.is_err());
        assert!(wal.truncate_after(G, None).await.is_err());
        assert!(wal.purge(G, LogPosition { term: 1, index: 4 }).await.is_err(), "another entry is there");
        assert_eq!(indexes(&wal, G).await, [3, 4, 5]);
        wal.close().await.expect("closed");
        assert_eq!(support::try_append(&wal, G, 6, 3, 6..=6), Err(WalError::Closed));
        assert_eq!(wal.close().await, Err(WalError::Closed));
    });
}

fn a_snapshot_moves_the_log_beyond_its_end(io: IoChoice) {
    let dir = Dir::disk();
    run_on(io, async {
        let wal = open(&dir).await;
        append(&wal, G, 1, 1..=5);
        wal.purge(G, position(2, 100)).await.expect("purged");
        assert_eq!(wal.group(G).expect("known").last, Some(position(2, 100)));
        append(&wal, G, 2, 101..=103);
        wal.close().await.expect("closed");
    });
    run_on(io, async {
        let wal = open(&dir).await;
        assert_eq!(indexes(&wal, G).await, [101, 102, 103]);
    });
}

fn a_group_that_moved_away_stays_away_until_a_higher_epoch(io: IoChoice) {
    let dir = Dir::disk();
    run_on(io, async {
        let wal = open(&dir).await;
        append(&wal, G, 1, 1..=5);
        wal.save_home(G, Home { epoch: 2, retired: true }).await.expect("saved");
        assert!(support::try_append(&wal, G, 1, 1, 6..=6).is_err());
        assert!(wal.save_home(G, Home { epoch: 2, retired: false }).await.is_err());
        wal.close().await.expect("closed");
    });
    run_on(io, async {
        let wal = open(&dir).await;
        let group = wal.group(G).expect("remembered");
        assert_eq!((group.home, group.last), (Some(Home { epoch: 2, retired: true }), None));
        wal.save_home(G, Home { epoch: 3, retired: false }).await.expect("back");
        append(&wal, G, 1, 50..=51);
        wal.close().await.expect("closed");
    });
    run_on(io, async {
        assert_eq!(indexes(&open(&dir).await, G).await, [50, 51]);
    });
}

fn segments_rotate_and_are_recycled_once_purged(io: IoChoice) {
    let dir = Dir::disk();
    run_on(io, async {
        let wal = open(&dir).await;
        let mut next = 1;
        for round in 0..40 {
            append(&wal, G, 1, next..=next + 99);
            append(&wal, GroupId(8), 1, next..=next + 99);
            wal.flush().await.expect("durable");
            next += 100;
            if round % 2 == 1 {
                wal.purge(G, position(1, next - 50)).await.expect("purged");
                wal.purge(GroupId(8), position(1, next - 20)).await.expect("purged");
            }
            gristmill_shardexec::time::sleep(std::time::Duration::from_millis(3)).await;
        }
        let stats = wal.stats();
        assert!(stats.rotations > 3, "{stats:?}");
        assert!(stats.recycled > 0, "{stats:?}");
        assert!(stats.segments < 4, "{stats:?}");
        assert_eq!(indexes(&wal, G).await, (next - 49..next).collect::<Vec<_>>());
        wal.close().await.expect("closed");
    });
    run_on(io, async {
        let wal = open(&dir).await;
        assert_eq!(indexes(&wal, G).await, (3952..=4000).collect::<Vec<_>>());
        assert_eq!(indexes(&wal, GroupId(8)).await, (3982..=4000).collect::<Vec<_>>());
    });
}

fn more_groups_than_a_trailer_lists_share_a_log(io: IoChoice) {
    let dir = Dir::disk();
    let options = WalOptions { segment_bytes: 1 << 20, pending_bytes_max: 512 << 10, ..WalOptions::small() };
    run_on(io, async {
        let (wal, _) = support::open_with(&dir, options.clone()).await.expect("opens");
        for index in 1..=8 {
            for group in 0..700 {
                append(&wal, GroupId(group), 1, index..=index);
                if group % 200 == 199 {
                    wal.flush().await.expect("durable");
                }
            }
            wal.flush().await.expect("durable");
        }
        assert!(wal.stats().rotations > 0);
        wal.close().await.expect("closed");
    });
    run_on(io, async {
        let (wal, report) = support::open_with(&dir, options).await.expect("opens");
        assert_eq!((report.groups, report.entries, report.torn), (700, 5600, None));
        for group in [0, 123, 124, 699] {
            assert_eq!(indexes(&wal, GroupId(group)).await, (1..=8).collect::<Vec<_>>());
        }
    });
}

/// With 248 groups the run of checkpoints that opens a segment is two batches of 124 groups each. The record that had made the log move on
/// to the segment then found the table of the second batch full, and an assertion ended the process.
fn a_run_of_checkpoints_that_fills_its_last_table_leaves_room_for_a_record(io: IoChoice) {
    const GROUPS: u64 = 248;
    let dir = Dir::disk();
    let entries = run_on(io, async {
        let wal = open(&dir).await;
        for group in 0..GROUPS {
            append(&wal, GroupId(group), 1, 1..=1);
        }
        wal.flush().await.expect("durable");
        let mut next = 2;
        while wal.stats().rotations < 3 {
            append(&wal, GroupId(0), 1, next..=next + 9);
            wal.flush().await.expect("durable");
            next += 10;
        }
        wal.close().await.expect("closed");
        next - 1
    });
    run_on(io, async {
        let wal = open(&dir).await;
        assert_eq!(wal.groups().len() as u64, GROUPS);
        assert_eq!(indexes(&wal, GroupId(0)).await, (1..=entries).collect::<Vec<_>>());
    });
}

/// The kernel tells an error of writing back to one sync only: with two under way, the wrong one would have succeeded.
fn buffered_batches_are_written_one_after_the_other(io: IoChoice) {
    let dir = Dir::disk();
    let most_at_once = |direct| {
        run_on(io, async {
            let options = WalOptions { direct, gather_bytes: 0, ..WalOptions::small() };
            let (wal, _) = support::open_with(&dir, options).await.expect("opens");
            let mut most = 0;
            let first = wal.group(G).and_then(|group| group.last).map_or(1, |last| last.index + 1);
            for index in first..first + 40 {
                append(&wal, G, 1, index..=index);
                for _ in 0..3 {
                    gristmill_shardexec::yield_now().await;
                    most = most.max(wal.stats().writes_in_flight);
                }
            }
            wal.close().await.expect("closed");
            most
        })
    };
    assert_eq!(most_at_once(Direct::Off), 1);
}

fn batch_writes_are_timed(io: IoChoice) {
    let dir = Dir::disk();
    run_on(io, async {
        let wal = open(&dir).await;
        let times = Rc::new(RefCell::new(Vec::new()));
        let seen = Rc::clone(&times);
        wal.observe_writes(move |took| seen.borrow_mut().push(took));
        for index in 1..=3 {
            wal.durable(append(&wal, G, 4, index..=index)).await.expect("durable");
        }
        assert_eq!(times.borrow().len() as u64, wal.stats().batches);
        assert!(times.borrow().iter().all(|took| !took.is_zero()));
    });
}

fn incidents_are_told_once(io: IoChoice) {
    let dir = Dir::disk();
    let stale = |have| Incident::StaleToken { group: G, have, got: FencingToken::new(3, 0) };
    run_on(io, async {
        let wal = open(&dir).await;
        append(&wal, G, 4, 1..=9);
        wal.save_vote(G, Vote { term: 5, node: 1, ..Vote::default() }).await.expect("saved");
        support::try_append(&wal, G, 3, 3, 10..=10).expect_err("deposed");
        assert_eq!(wal.next_incident().await, Some(stale(FencingToken::new(5, 0))));
        wal.close().await.expect("closed");
        assert_eq!(wal.next_incident().await, None, "told, and the log has stopped");
    });
    run_on(io, async {
        let wal = open(&dir).await;
        let needle = support::entry(4, 9).2;
        let files = std::fs::read_dir(dir.log()).expect("listed").map(|entry| entry.expect("listed").path());
        let found = files.filter_map(|path| {
            let bytes = std::fs::read(&path).expect("read");
            let at = bytes.windows(needle.len()).position(|window| window == needle)?;
            Some((path, bytes, at))
        });
        let (path, mut bytes, at) = found.last().expect("some segment has entry 9");
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).expect("written");
        let error = wal.read(G, 9..10, 1 << 20).await.expect_err("damaged");
        let WalError::Corrupt { path, damage } = error else { panic!("{error}") };
        assert_eq!(wal.next_incident().await, Some(Incident::Damaged { path, damage }));
        assert_eq!(wal.stats().damaged_reads, 1);
    });
}

/// With a bound on what may wait that is tighter than a quarter of a segment, the log named a limit that it then did not take.
#[test]
fn the_largest_payload_that_a_log_names_is_taken_and_no_larger_one() {
    for pending_bytes_max in [64 << 10, (64 << 10) + 40, 96 << 10] {
        let dir = Dir::disk();
        run_on(IoChoice::Posix, async {
            let (wal, _) =
                support::open_with(&dir, WalOptions { pending_bytes_max, ..WalOptions::small() }).await.expect("opens");
            let largest = wal.payload_bytes_max();
            let append =
                |index, bytes| support::try_append_payload(&wal, G, 1, position(1, index), &vec![index as u8; bytes]);
            let refused = append(1, largest + 1);
            assert!(matches!(refused, Err(WalError::TooLarge { .. })), "{refused:?}");
            wal.durable(append(1, largest).expect("taken")).await.expect("durable");
        });
    }
}
