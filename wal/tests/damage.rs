//! Damage: every flipped bit is found and named, every crash is survived, nothing acknowledged is lost silently.
#![allow(clippy::disallowed_methods, reason = "tests look at files behind the log's back")]

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use gristmill_shardexec::time::sleep;
use gristmill_shardexec::yield_now;
use gristmill_wal::format::{RecordKind, Revision, SegmentCrc, SegmentHeader, block_ceil};
use gristmill_wal::inspect::{FindingClass, LogFiles, Verification, find_logs, inspect, verify};
use gristmill_wal::limits::{BLOCK_BYTES, DATA_OFFSET};
use gristmill_wal::scan::{BatchSink, DamageKind, GoodBatch, Item, LogScan, MARK_SLOTS, Verdict, Walk};
use gristmill_wal::{GroupId, Home, Lsn, ReplayFault, SegmentId, Vote, WalError, WalOptions};
use support::{Dir, append, indexes, open, open_path, position, run};

const G: GroupId = GroupId(7);
const H: GroupId = GroupId(8);

/// A closed log with every kind of record in one segment. Returns its only file.
fn small_log(dir: &Dir) -> PathBuf {
    run(async {
        let wal = open(dir).await;
        wal.save_vote(G, Vote { term: 1, node: 1, ..Vote::default() }).await.expect("saved");
        append(&wal, G, 1, 1..=4);
        append(&wal, H, 1, 1..=2);
        drop(wal.save_membership(G, position(1, 1), b"one voter"));
        drop(wal.truncate_after(G, Some(position(1, 3))));
        drop(wal.save_home(H, Home { epoch: 1, retired: false }));
        wal.save_committed(G, Some(position(1, 2))).expect("saved");
        wal.purge(G, position(1, 1)).await.expect("purged");
        wal.close().await.expect("closed");
    });
    only_segment(&dir.log())
}

/// The segment that holds batches: of all files the one with the lowest id.
fn only_segment(log: &Path) -> PathBuf {
    let mut names: Vec<_> = std::fs::read_dir(log).expect("listed").map(|entry| entry.expect("entry").path()).collect();
    names.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    names.sort();
    names.swap_remove(0)
}

struct Nothing;

impl BatchSink for Nothing {
    fn segment(&mut self, _: SegmentId) {}
    fn batch(&mut self, _: &GoodBatch<'_>) -> Result<(), Box<(gristmill_wal::format::RecordHeader, ReplayFault)>> {
        Ok(())
    }
}

fn crc_of(bytes: &[u8]) -> SegmentCrc {
    let header = SegmentHeader::decode(bytes).expect("a header");
    SegmentCrc::new(header.log_id, header.segment)
}

/// End of the last record.
fn used(bytes: &[u8]) -> usize {
    let mut walk = Walk::new(crc_of(bytes), bytes);
    walk.by_ref().count();
    walk.offset()
}

fn trailers(crc: SegmentCrc, bytes: &[u8]) -> Vec<usize> {
    let records = Walk::new(crc, bytes).filter_map(|item| match item {
        Item::Record(header) if header.kind == RecordKind::Trailer => Some(header.offset as usize),
        _ => None,
    });
    records.collect()
}

fn scan(crc: SegmentCrc, bytes: &[u8]) -> LogScan {
    let mut scan = LogScan::default();
    scan.segment(crc, bytes, &mut Nothing);
    scan
}

async fn verify_dir(path: &Path) -> Verification {
    let mut logs: Vec<LogFiles> = find_logs(path).await.expect("found");
    assert_eq!(logs.len(), 1);
    verify(&logs.remove(0)).await.expect("read")
}

/// W-04: flip any single bit of any record, trailer, mark or segment header, and the damage is seen and its place named.
#[test]
fn every_flipped_bit_is_found_and_its_place_named() {
    let dir = Dir::disk();
    let whole = std::fs::read(small_log(&dir)).expect("read");
    let end = used(&whole);
    let crc = crc_of(&whole);
    let bytes = &whole[..end + BLOCK_BYTES];
    let clean = scan(crc, bytes);
    assert_eq!((clean.verdict(), clean.damages_total, clean.mark_damages.len()), (Verdict::Clean, 0, 0));
    assert_eq!(clean.proven, clean.good_lsn, "the last mark proves everything");
    let marked = MARK_SLOTS.into_iter().filter(|slot| bytes[*slot] != 0).flat_map(|slot| slot..slot + BLOCK_BYTES);
    let mut flipped = bytes.to_vec();
    for byte in marked.chain(DATA_OFFSET..end) {
        for bit in 0..8 {
            flipped[byte] ^= 1 << bit;
            let found = scan(crc, &flipped);
            flipped[byte] ^= 1 << bit;
            let covers = |damage: &&gristmill_wal::scan::Damage| {
                (damage.offset..damage.offset + damage.bytes).contains(&(byte as u64))
            };
            let named = found.damages.iter().chain(&found.mark_damages).find(covers);
            assert!(named.is_some(), "byte {byte} bit {bit}: {:?}", found.damages);
            if byte >= DATA_OFFSET {
                assert_eq!(found.verdict(), Verdict::Corrupt, "byte {byte} bit {bit} was acknowledged");
            } else {
                assert_ne!(found.verdict(), Verdict::Corrupt, "a mark lost by rot loses nothing else");
            }
        }
    }
    for bit in 0..BLOCK_BYTES * 8 {
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(SegmentHeader::decode(&flipped).is_err(), "bit {bit} of the segment header");
        flipped[bit / 8] ^= 1 << (bit % 8);
    }
}

/// The same through files: `verify` names the place, opening refuses with the place and leaves the bytes as they are.
#[test]
fn a_flipped_bit_in_a_file_is_named_and_refused() {
    let dir = Dir::disk();
    let path = small_log(&dir);
    let whole = std::fs::read(&path).expect("read");
    let end = used(&whole);
    assert!(run(verify_dir(&dir.log())).is_clean());
    for byte in (0..BLOCK_BYTES).step_by(509).chain((DATA_OFFSET..end).step_by(601)) {
        let mut flipped = whole.clone();
        flipped[byte] ^= 4;
        std::fs::write(&path, &flipped).expect("written");
        let found = run(verify_dir(&dir.log()));
        let named = found.findings.iter().find(|finding| {
            finding.path == path && (finding.offset..finding.offset + finding.bytes).contains(&(byte as u64))
        });
        assert_eq!(named.map(|finding| finding.class), Some(FindingClass::Corruption), "byte {byte}: {found:?}");
        let refused = run(open_path(&dir.log(), WalOptions::small())).err();
        match refused {
            Some(WalError::Corrupt { path: named, damage }) => {
                assert_eq!(named, path);
                assert!(damage.offset <= byte as u64, "byte {byte}: {damage}");
            }
            other => panic!("byte {byte}: {other:?}"),
        }
        assert!(std::fs::read(&path).expect("read") == flipped, "the bytes are untouched");
    }
}

/// The log as it lies on disk when the process dies at once, and the last LSN that had been acknowledged by index 18.
fn crashed_log(dir: &Dir) -> (PathBuf, Lsn) {
    let acknowledged = run(async {
        // Nothing gathers: several batches are in flight at the end.
        let options = WalOptions { gather_bytes: 0, ..WalOptions::small() };
        let (wal, _) = open_path(&dir.log(), options).await.expect("the log opens");
        let mut acknowledged = Lsn(0);
        for index in 1..=12_u64 {
            for group in [G, H] {
                let lsn = append(&wal, group, 1, index * 2 - 1..=index * 2);
                if index <= 9 {
                    wal.durable(lsn).await.expect("durable");
                    acknowledged = lsn;
                }
                // Without waiting: several batches are in flight at the end, so their trailers prove nothing of each other.
                for _ in 0..10 {
                    yield_now().await;
                }
            }
            while index == 5 && wal.stats().marks == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        }
        wal.flush().await.expect("durable");
        acknowledged
    });
    (only_segment(&dir.log()), acknowledged)
}

/// Cuts a copy of a crashed log at every block boundary, by zeros and by garbage. What the trailers prove must be there or be refused as
/// corruption; what is served must be right; and the log goes on.
#[test]
fn a_crash_at_any_block_loses_nothing_that_was_proven() {
    let dir = Dir::disk();
    let (path, acknowledged) = crashed_log(&dir);
    let whole = std::fs::read(&path).expect("read");
    let end = block_ceil(used(&whole));
    let crc = crc_of(&whole);
    let (mut torn, mut corrupt, mut kept) = (0, 0, 0);
    for cut in (DATA_OFFSET..=end).step_by(BLOCK_BYTES) {
        for garbage in [0, 0xa5] {
            let mut bytes = whole.clone();
            bytes[cut..end].fill(garbage);
            let judged = scan(crc, &bytes);
            std::fs::write(&path, &bytes).expect("written");
            let outcome = run(async {
                let (wal, report) = open_path(&dir.log(), WalOptions::small()).await?;
                assert_eq!(report.last_lsn, judged.good_lsn);
                for group in [G, H] {
                    let found = indexes(&wal, group).await;
                    assert_eq!(found, (1..=found.len() as u64).collect::<Vec<_>>());
                    if judged.good_lsn >= acknowledged {
                        assert!(found.len() >= 18, "everything acknowledged is there");
                        kept += 1;
                    }
                    let next = found.len() as u64 + 1;
                    append(&wal, group, 1, next..=next + 3);
                }
                wal.close().await?;
                Ok::<_, WalError>(report)
            });
            match (judged.verdict(), outcome) {
                (Verdict::Corrupt, Err(WalError::Corrupt { .. })) => corrupt += 1,
                (Verdict::Torn, Ok(report)) => {
                    torn += 1;
                    assert!(report.torn.is_some());
                    assert!(run(verify_dir(&dir.log())).is_clean(), "cut at {cut}: the tail is gone for good");
                }
                (Verdict::Clean, Ok(report)) => assert_eq!(report.torn, None),
                (verdict, outcome) => panic!("cut at {cut} with {garbage:02x}: {verdict:?}, {outcome:?}"),
            }
        }
    }
    assert!(torn > 0 && corrupt > 0 && kept > 0, "vacuous: {torn} torn, {corrupt} corrupt, {kept} kept");
}

/// As above with one block damaged and everything behind it whole, as when blocks reach the disk out of order.
#[test]
fn one_lost_block_is_judged_by_proof_not_by_what_follows() {
    let dir = Dir::disk();
    let (path, _) = crashed_log(&dir);
    let whole = std::fs::read(&path).expect("read");
    let end = block_ceil(used(&whole));
    let crc = crc_of(&whole);
    let mut verdicts = Vec::new();
    for block in (DATA_OFFSET..end).step_by(BLOCK_BYTES) {
        let mut bytes = whole.clone();
        bytes[block..block + BLOCK_BYTES].fill(0);
        let judged = scan(crc, &bytes);
        verdicts.push(judged.verdict());
        assert_ne!(judged.verdict(), Verdict::Clean, "block {block}");
        assert_eq!(judged.verdict() == Verdict::Corrupt, judged.proven > judged.good_lsn);
        std::fs::write(&path, &bytes).expect("written");
        let opened = run(open_path(&dir.log(), WalOptions::small())).map(|(_, report)| report.last_lsn);
        match judged.verdict() {
            Verdict::Corrupt => assert!(matches!(opened, Err(WalError::Corrupt { .. })), "block {block}: {opened:?}"),
            _ => assert_eq!(opened, Ok(judged.good_lsn)),
        }
    }
    assert!(verdicts.contains(&Verdict::Corrupt) && verdicts.contains(&Verdict::Torn), "vacuous: {verdicts:?}");
}

/// A batch that a crash left whole behind a torn one must not come back when new batches reach its place.
#[test]
fn a_dropped_batch_never_comes_back() {
    let dir = Dir::disk();
    let (path, _) = crashed_log(&dir);
    let whole = std::fs::read(&path).expect("read");
    let crc = crc_of(&whole);
    let trailers = trailers(crc, &whole);
    let torn = trailers[trailers.len() - 2];
    let mut bytes = whole.clone();
    bytes[torn..torn + BLOCK_BYTES].fill(0);
    assert_eq!(scan(crc, &bytes).verdict(), Verdict::Torn, "the test needs an unproven last batch but one");
    std::fs::write(&path, &bytes).expect("written");
    let before = run(async {
        let (wal, report) = open_path(&dir.log(), WalOptions::small()).await.expect("opens");
        let torn = report.torn.expect("reported");
        assert!(torn.bytes_zeroed > 0 && torn.path == path, "{torn:?}");
        (indexes(&wal, G).await, indexes(&wal, H).await)
    });
    run(async {
        let (wal, report) = open_path(&dir.log(), WalOptions::small()).await.expect("opens");
        assert_eq!(report.torn, None);
        assert_eq!((indexes(&wal, G).await, indexes(&wal, H).await), before);
    });
}

/// The only proof that the first batch was acknowledged stood in the trailer of a batch behind a torn one. Opening the log cut both, and
/// wrote no proof of its own: when the first batch rotted later, that passed for another torn tail, and it was gone without a word.
#[test]
fn the_cut_of_a_torn_tail_keeps_the_proof_of_what_stays() {
    let dir = Dir::disk();
    let options = WalOptions { mark_delay: Duration::from_millis(500), gather_bytes: 0, ..WalOptions::small() };
    run(async {
        let (wal, _) = open_path(&dir.log(), options.clone()).await.expect("opens");
        wal.durable(append(&wal, G, 1, 1..=2)).await.expect("durable");
        // Two more at once: neither proves the other.
        append(&wal, G, 1, 3..=4);
        while wal.stats().writes_in_flight == 0 {
            yield_now().await;
        }
        append(&wal, G, 1, 5..=6);
        wal.flush().await.expect("durable");
    });
    let path = only_segment(&dir.log());
    let mut bytes = std::fs::read(&path).expect("read");
    let ends = trailers(crc_of(&bytes), &bytes);
    assert_eq!(ends.len(), 3, "a batch for each append");
    bytes[ends[0] + BLOCK_BYTES..ends[1] + BLOCK_BYTES].fill(0);
    let judged = scan(crc_of(&bytes), &bytes);
    assert_eq!((judged.verdict(), judged.proven, judged.good_lsn), (Verdict::Torn, Lsn(2), Lsn(2)));
    std::fs::write(&path, &bytes).expect("written");
    run(async {
        let (wal, report) = open_path(&dir.log(), options.clone()).await.expect("opens");
        assert!(report.torn.is_some());
        assert_eq!(indexes(&wal, G).await, [1, 2]);
        wal.close().await.expect("closed");
    });
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[DATA_OFFSET + 8] ^= 1;
    std::fs::write(&path, &bytes).expect("written");
    let refused = run(open_path(&dir.log(), options)).err();
    assert!(matches!(refused, Some(WalError::Corrupt { .. })), "{refused:?}");
}

/// Crashes, one after the other, each within the run of checkpoints that opens a segment: each left its incomplete run there, until the next
/// one had no room, and from then on an assertion ended every try to open the log.
#[test]
fn crashes_within_the_opening_run_do_not_fill_the_segment() {
    let dir = Dir::disk();
    let options = WalOptions { mark_delay: Duration::from_secs(2), ..WalOptions::small() };
    let groups = 260;
    run(async {
        let wal = open(&dir).await;
        for group in 0..groups {
            append(&wal, GroupId(group), 1, 1..=1);
        }
        let mut next = 2;
        while wal.stats().rotations == 0 {
            wal.durable(append(&wal, GroupId(0), 1, next..=next + 9)).await.expect("durable");
            next += 10;
        }
    });
    let mut entries = Vec::new();
    for crash in 0..12 {
        // The last batch that is there: the end of a run, or what had made the log begin the segment.
        let (path, mut bytes, ends) = last_used_segment(&dir.log());
        let last = ends[ends.len() - 1];
        let crc = crc_of(&bytes);
        let run_ends = scan(crc, &bytes).damages_total == 0 && ends.len() > 2;
        assert!(run_ends, "crash {crash}: a run of several batches, {} in {}", ends.len(), path.display());
        let from = if crash == 0 { ends[1] + BLOCK_BYTES } else { ends[ends.len() - 2] + BLOCK_BYTES };
        bytes[from..last + BLOCK_BYTES].fill(0);
        for slot in MARK_SLOTS {
            bytes[slot..slot + BLOCK_BYTES].fill(0);
        }
        std::fs::write(&path, &bytes).expect("written");
        entries = run(async {
            let (wal, _) = open_path(&dir.log(), options.clone()).await.expect("opens");
            wal.flush().await.expect("durable");
            indexes(&wal, GroupId(0)).await
        });
        assert!(!entries.is_empty());
    }
    run(async {
        let (wal, _) = open_path(&dir.log(), WalOptions::small()).await.expect("opens");
        assert_eq!(wal.groups().len() as u64, groups);
        assert_eq!(indexes(&wal, GroupId(0)).await, entries);
        // What the crashes left keeps no segment once the entries are gone.
        for group in 0..groups {
            let last = wal.group(GroupId(group)).and_then(|group| group.last).expect("entries");
            drop(wal.purge(GroupId(group), last));
        }
        wal.flush().await.expect("durable");
        let mut next = entries.len() as u64 + 1;
        while wal.stats().rotations < 3 {
            wal.durable(append(&wal, GroupId(0), 1, next..=next + 99)).await.expect("durable");
            wal.purge(GroupId(0), position(1, next + 99)).await.expect("purged");
            next += 100;
        }
        assert!(wal.stats().segments <= 3, "{:?}", wal.stats());
        wal.close().await.expect("closed");
    });
}

/// The segment with the highest id that holds a batch, and where its trailers are.
fn last_used_segment(log: &Path) -> (PathBuf, Vec<u8>, Vec<usize>) {
    let paths = std::fs::read_dir(log).expect("listed").map(|entry| entry.expect("entry").path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
    paths.sort();
    let used = paths.into_iter().rev().find_map(|path| {
        let bytes = std::fs::read(&path).expect("read");
        let ends = trailers(crc_of(&bytes), &bytes);
        (!ends.is_empty()).then_some((path, bytes, ends))
    });
    used.expect("a log has batches")
}

/// W-14: what is not ours is refused, named and left alone.
#[test]
fn foreign_files_are_refused_and_left_alone() {
    let stranger = |name: &str, content: &[u8]| {
        let dir = Dir::disk();
        std::fs::create_dir(dir.log()).expect("created");
        std::fs::write(dir.log().join(name), content).expect("written");
        let error = run(open_path(&dir.log(), WalOptions::small())).err().expect("refused");
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(std::fs::read(dir.log().join(name)).expect("read"), content);
        assert_eq!(std::fs::read_dir(dir.log()).expect("listed").count(), 1, "nothing was added");
        error
    };
    assert!(matches!(stranger("notes.txt", b"shopping list"), WalError::Foreign { .. }));
    assert!(matches!(stranger("wal-000000000001.seg", &[b'x'; 8192]), WalError::Foreign { .. }));
    assert!(matches!(stranger("spare-000000000001.tmp", &[b'x'; 8192]), WalError::Foreign { .. }));
    assert!(matches!(stranger("wal-000000000001.seg", b""), WalError::Corrupt { .. }));
    let mut older = vec![0; 8192];
    older[..12].copy_from_slice(&[0x32, 0x4c, 0x41, 0x57, 2, 0, 0, 0, 1, 0, 0, 0]);
    let error = stranger("wal-000000000001.seg", &older);
    assert!(error.to_string().contains("revision 2.0"), "{error}");
}

#[test]
fn segments_of_another_log_or_number_are_refused() {
    let (one, other) = (Dir::disk(), Dir::disk());
    let (from, _) = (small_log(&one), small_log(&other));
    std::fs::copy(&from, other.log().join("wal-000000000099.seg")).expect("copied");
    let error = run(open_path(&other.log(), WalOptions::small())).err().expect("refused");
    assert!(matches!(error, WalError::Foreign { .. }), "{error}");
    let wrong_number = run(gristmill_wal::Wal::open(&one.log(), gristmill_wal::LogNumber(3), WalOptions::small()))
        .err()
        .expect("refused");
    assert!(wrong_number.to_string().contains("log number"), "{wrong_number}");
}

/// A log of several segments, all of them needed.
fn long_log(dir: &Dir) -> Vec<PathBuf> {
    run(async {
        let wal = open(dir).await;
        for index in 1..=30 {
            append(&wal, G, 1, index * 50 - 49..=index * 50);
            append(&wal, H, 1, index * 50 - 49..=index * 50);
            wal.flush().await.expect("durable");
        }
        assert!(wal.stats().segments >= 3, "{:?}", wal.stats());
        wal.close().await.expect("closed");
    });
    let mut paths: Vec<_> =
        std::fs::read_dir(dir.log()).expect("listed").map(|entry| entry.expect("entry").path()).collect();
    paths.sort();
    paths.retain(|path| path.to_string_lossy().contains("wal-"));
    paths
}

#[test]
fn a_missing_segment_is_noticed_wherever_it_was() {
    let dir = Dir::disk();
    let paths = long_log(&dir);
    let in_use = run(async { open(&dir).await.stats().segments });
    for path in &paths[..in_use - 1] {
        let aside = dir.log().with_file_name("aside");
        std::fs::rename(path, &aside).expect("moved");
        let error = run(open_path(&dir.log(), WalOptions::small())).err().expect("refused");
        assert!(matches!(error, WalError::MissingSegment { .. } | WalError::Corrupt { .. }), "{error}");
        assert!(!run(verify_dir(&dir.log())).is_clean());
        std::fs::rename(&aside, path).expect("moved back");
    }
    run(async {
        assert_eq!(indexes(&open(&dir).await, G).await.len(), 1500);
    });
}

/// With its only used segment gone, a log that had the next one prepared passed for a new and empty log.
#[test]
fn a_log_of_which_only_a_prepared_segment_is_left_is_refused() {
    let dir = Dir::disk();
    run(async {
        let wal = open(&dir).await;
        wal.durable(append(&wal, G, 1, 1..=5)).await.expect("durable");
        while wal.stats().segments_ready == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        wal.close().await.expect("closed");
    });
    let used = dir.log().join("wal-000000000001.seg");
    std::fs::remove_file(&used).expect("removed");
    let error = run(open_path(&dir.log(), WalOptions::small())).err().expect("refused");
    assert!(matches!(error, WalError::MissingSegment { segment, .. } if segment == SegmentId(1)), "{error}");
    assert_eq!((by_verify(&dir.log()), by_inspect(&dir.log())), (Judgement::Refused, Judgement::Refused));
}

/// A batch written to the place of another (same segment, or the same offset of another one) does not pass for it.
#[test]
fn a_misdirected_batch_is_noticed() {
    let dir = Dir::disk();
    let paths = long_log(&dir);
    let (first, second) = (std::fs::read(&paths[0]).expect("read"), std::fs::read(&paths[1]).expect("read"));
    let blocks = DATA_OFFSET..DATA_OFFSET + 4 * BLOCK_BYTES;
    let mut same_offset = second.clone();
    same_offset[blocks.clone()].copy_from_slice(&first[blocks.clone()]);
    let mut same_segment = second.clone();
    let next_batch = trailers(crc_of(&second), &second)[0] + BLOCK_BYTES;
    same_segment[blocks].copy_from_slice(&second[next_batch..next_batch + 4 * BLOCK_BYTES]);
    for bytes in [same_offset, same_segment] {
        std::fs::write(&paths[1], bytes).expect("written");
        let error = run(open_path(&dir.log(), WalOptions::small())).err().expect("refused");
        assert!(error.to_string().contains("belongs to segment"), "{error}");
    }
}

/// They were told to move such a file out of the log's directory, which would have lost what it holds.
#[test]
fn a_segment_of_another_length_is_damage_and_one_of_a_newer_revision_is_not_foreign() {
    let dir = Dir::disk();
    let path = small_log(&dir);
    let whole = std::fs::read(&path).expect("read");
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).expect("written");
        let error = run(open_path(&dir.log(), WalOptions::small())).err().expect("refused");
        assert!(std::fs::read(&path).expect("read") == bytes, "the bytes are untouched");
        assert!(error.to_string().contains(path.to_str().expect("UTF-8")), "{error}");
        assert!(!error.to_string().contains("Move it out"), "{error}");
        error
    };
    let longer = [&whole[..], &[0; BLOCK_BYTES]].concat();
    for (bytes, word) in [(&whole[..whole.len() - BLOCK_BYTES], "cut short"), (&longer, "made longer")] {
        let error = refused(bytes);
        let WalError::Corrupt { damage, .. } = &error else { panic!("{error}") };
        let (found, expected) = (bytes.len() as u64, whole.len() as u64);
        assert_eq!(damage.kind, DamageKind::Length { found, expected });
        assert!(error.to_string().contains(word), "{error}");
    }
    for (major, minor) in [(2, 2), (3, 0)] {
        let mut newer = whole.clone();
        newer[4..8].copy_from_slice(&[major, 0, minor, 0]);
        // That version's own CRC.
        newer[8] ^= 1;
        let error = refused(&newer);
        let found = Revision { major: u16::from(major), minor: u16::from(minor) };
        assert_eq!(error, WalError::Newer { path: path.clone(), found });
        assert!(error.to_string().contains("newer"), "{error}");
    }
    let mut rotten = whole.clone();
    rotten[6] ^= 2;
    assert!(matches!(refused(&rotten), WalError::Corrupt { .. }), "a flipped bit makes no new version");
    std::fs::write(&path, &whole).expect("written");
    run(open_path(&dir.log(), WalOptions::small())).expect("opens");
}

/// A crash while a file was filled with zeros left it with its full length, mostly allocated only. It was used as if it were prepared.
#[test]
fn a_file_that_was_not_filled_with_zeros_is_made_anew() {
    use std::os::unix::fs::MetadataExt;
    let dir = Dir::disk();
    let whole = std::fs::metadata(small_log(&dir)).expect("a segment").len();
    let spare = dir.log().join("spare-000000000077.tmp");
    std::fs::File::create(&spare).and_then(|file| file.set_len(whole)).expect("a hole");
    run(async {
        let wal = open(&dir).await;
        while wal.stats().segments_ready == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        wal.close().await.expect("closed");
    });
    assert!(!spare.exists(), "it goes, so that no crash loop fills the disk");
    for entry in std::fs::read_dir(dir.log()).expect("listed") {
        let found = entry.and_then(|entry| entry.metadata()).expect("a file");
        assert!(found.blocks() * 512 >= whole, "every segment has its space");
    }
}

/// What a log is like, for recovery and for the tools.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Whole,
    Torn,
    Refused,
}

fn by_recovery(log: &Path) -> Judgement {
    match run(open_path(log, WalOptions::small())) {
        Ok((_, report)) if report.torn.is_some() => Judgement::Torn,
        Ok(_) => Judgement::Whole,
        Err(WalError::Io(failure)) => panic!("{failure}"),
        Err(_) => Judgement::Refused,
    }
}

fn by_verify(log: &Path) -> Judgement {
    let found = run(verify_dir(log)).findings;
    let has = |class| found.iter().any(|finding| finding.class == class);
    if has(FindingClass::Corruption) || has(FindingClass::Foreign) {
        Judgement::Refused
    } else if has(FindingClass::TornTail) {
        Judgement::Torn
    } else {
        Judgement::Whole
    }
}

fn by_inspect(log: &Path) -> Judgement {
    let files = run(find_logs(log)).expect("found").remove(0);
    match run(inspect(&files)).map(|summary| summary.verdict) {
        Ok(Verdict::Clean) => Judgement::Whole,
        Ok(Verdict::Torn) => Judgement::Torn,
        Ok(Verdict::Corrupt) | Err(_) => Judgement::Refused,
    }
}

fn copy_log(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("created");
    for entry in std::fs::read_dir(from).expect("listed") {
        let path = entry.expect("entry").path();
        std::fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
    }
}

/// A log whose first segment is needed no more but is still there, as after a crash before it lost its name.
fn log_with_an_old_segment(dir: &Dir) -> Vec<PathBuf> {
    let first = long_log(dir).swap_remove(0);
    let kept = std::fs::read(&first).expect("read");
    run(async {
        let wal = open(dir).await;
        wal.purge(G, position(1, 1400)).await.expect("purged");
        wal.purge(H, position(1, 1400)).await.expect("purged");
        for index in 31..=33 {
            wal.durable(append(&wal, G, 1, index * 50 - 49..=index * 50)).await.expect("durable");
        }
        wal.close().await.expect("closed");
    });
    let paths: Vec<_> =
        std::fs::read_dir(dir.log()).expect("listed").map(|entry| entry.expect("entry").path()).collect();
    for spare in paths.iter().filter(|path| path.extension().is_some_and(|end| end == "tmp")) {
        std::fs::remove_file(spare).expect("removed");
    }
    assert!(!first.exists(), "the test needs a segment that is not needed");
    std::fs::write(&first, kept).expect("written");
    let mut paths: Vec<_> =
        std::fs::read_dir(dir.log()).expect("listed").map(|entry| entry.expect("entry").path()).collect();
    paths.sort();
    paths
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).expect("read");
    change(&mut bytes);
    std::fs::write(path, bytes).expect("written");
}

fn without_marks(log: &Path) {
    for entry in std::fs::read_dir(log).expect("listed") {
        change(&entry.expect("entry").path(), |bytes| bytes[BLOCK_BYTES..3 * BLOCK_BYTES].fill(0));
    }
}

/// The tools scanned from the first segment on and once only: they called corrupt what recovery passes over as unneeded, and whole
/// what it refuses for a head or a file that they had not looked at.
#[test]
fn the_tools_judge_a_damaged_log_as_recovery_does() {
    type Damaging = Box<dyn Fn(&Path, &[PathBuf])>;
    let in_log = |log: &Path, path: &Path| log.join(path.file_name().expect("a name"));
    let mut damages: Vec<(String, Damaging)> = vec![
        ("none".into(), Box::new(|_, _| ())),
        ("no marks".into(), Box::new(|log, _| without_marks(log))),
        ("a strange directory".into(), Box::new(|log, _| std::fs::create_dir(log.join("notes")).expect("created"))),
        ("lost+found".into(), Box::new(|log, _| std::fs::create_dir(log.join("lost+found")).expect("created"))),
        (
            "a strange spare".into(),
            Box::new(|log, _| std::fs::write(log.join("spare-000000000099.tmp"), [b'x'; 8192]).expect("written")),
        ),
    ];
    for from_end in 1..=3 {
        for marks in [true, false] {
            let damaging = move |log: &Path, _: &[PathBuf]| {
                if !marks {
                    without_marks(log);
                }
                let (path, mut bytes, ends) = last_used_segment(log);
                let torn = ends[ends.len().saturating_sub(from_end)];
                bytes[torn..torn + BLOCK_BYTES].fill(0);
                std::fs::write(path, bytes).expect("written");
            };
            damages.push((format!("trailer {from_end} from the end, marks: {marks}"), Box::new(damaging)));
        }
    }
    for number in 0..3 {
        for at in [3, 16, BLOCK_BYTES + 9, DATA_OFFSET + 9, DATA_OFFSET + 70_000] {
            for marks in [true, false] {
                let name = format!("byte {at} of file {number}, marks: {marks}");
                let damaging = move |log: &Path, paths: &[PathBuf]| {
                    if !marks {
                        without_marks(log);
                    }
                    change(&in_log(log, &paths[number]), |bytes| bytes[at] ^= 1);
                };
                damages.push((name, Box::new(damaging)));
            }
        }
        let gone = move |log: &Path, paths: &[PathBuf]| {
            std::fs::remove_file(in_log(log, &paths[number])).expect("removed");
        };
        damages.push((format!("file {number} missing"), Box::new(gone)));
        let short =
            move |log: &Path, paths: &[PathBuf]| change(&in_log(log, &paths[number]), |bytes| bytes.truncate(99_328));
        damages.push((format!("file {number} cut short"), Box::new(short)));
    }
    let (dirs, mut seen) = ([Dir::disk(), Dir::disk(), Dir::disk()], [0; 3]);
    let crashed = vec![crashed_log(&dirs[2]).0; 3];
    let logs = [long_log(&dirs[0]), log_with_an_old_segment(&dirs[1]), crashed];
    for (dir, paths) in dirs.iter().zip(&logs) {
        for (name, damage) in &damages {
            let copy = Dir::disk();
            copy_log(&dir.log(), &copy.log());
            damage(&copy.log(), paths);
            if find_nothing(&copy.log()) {
                continue;
            }
            // The tools first: recovery cuts.
            let tools = (by_verify(&copy.log()), by_inspect(&copy.log()));
            let recovery = by_recovery(&copy.log());
            assert_eq!((&tools.0, &tools.1), (&recovery, &recovery), "{name}, {}", paths[0].display());
            seen[recovery as usize] += 1;
        }
    }
    assert!(seen.iter().all(|&count| count > 2), "vacuous: {seen:?}");
}

fn find_nothing(log: &Path) -> bool {
    run(find_logs(log)).expect("listed").is_empty()
}
