//! What the disk promises, and each of its faults: shown by its effect.

use std::path::Path;

use super::*;
use crate::buf::{AlignedBuf, IoBuf};
use crate::driver::{Op, OpOutput, OpenFlags, RawHandle};
use crate::sim::faults::{FaultCounts, FaultPlan};
use crate::sim::random::Rng;
use crate::sim::trace::Trace;

mod model;

const READ_WRITE: OpenFlags = OpenFlags {
    read: true,
    write: true,
    create: true,
    create_new: false,
    truncate: false,
    direct: false,
    dsync: false,
    mode: 0o640,
};

/// A disk with everything that an op needs.
struct Bench {
    disk: Disk,
    plan: FaultPlan,
    rng: Rng,
    counts: FaultCounts,
    trace: Trace,
}

type Result<T> = std::io::Result<T>;

impl Bench {
    fn new(seed: u64, config: DiskConfig) -> Bench {
        Bench {
            disk: Disk::new(config),
            plan: FaultPlan::none(),
            rng: Rng::new(seed),
            counts: FaultCounts::default(),
            trace: Trace::new(None),
        }
    }

    fn chaos(&mut self) -> (&mut Disk, Chaos<'_>) {
        let Bench { disk, plan, rng, counts, trace } = self;
        (disk, Chaos { now: 0, place: 0, rng, plan, counts, trace })
    }

    fn run(&mut self, mut op: Op, file: Option<OpenFile>) -> Result<(Effect, Op)> {
        let (disk, mut chaos) = self.chaos();
        let caller = Caller { file, lock_owner: (0, 0), now: WallClock(7), crashing: false };
        disk.run(&mut op, caller, &mut chaos).map(|effect| (effect, op))
    }

    fn done(&mut self, op: Op, file: Option<OpenFile>) -> Result<()> {
        self.run(op, file).map(drop)
    }

    fn open_with(&mut self, path: &str, flags: OpenFlags) -> Result<OpenFile> {
        match self.run(Op::Open { path: path.into(), flags }, None)?.0 {
            Effect::Opened(file, _) => Ok(file),
            Effect::Plain(other) => panic!("{other:?}"),
        }
    }

    fn open(&mut self, path: &str) -> OpenFile {
        self.open_with(path, READ_WRITE).unwrap()
    }

    fn count(&mut self, op: Op, file: OpenFile) -> Result<(usize, Op)> {
        match self.run(op, Some(file))? {
            (Effect::Plain(OpOutput::Count(count)), op) => Ok((count, op)),
            other => panic!("{other:?}"),
        }
    }

    fn write(&mut self, file: OpenFile, offset: u64, bytes: &[u8]) -> Result<usize> {
        let buf = IoBuf::Aligned(AlignedBuf::from(bytes));
        self.count(Op::Write { file: RawHandle(0), buf, start: 0, offset }, file).map(|(count, _)| count)
    }

    fn read(&mut self, file: OpenFile, offset: u64, len: usize) -> Result<Vec<u8>> {
        let buf = IoBuf::Aligned(AlignedBuf::zeroed(len));
        let (count, op) = self.count(Op::Read { file: RawHandle(0), buf, start: 0, offset }, file)?;
        let Op::Read { buf, .. } = op else { panic!("another op came back") };
        Ok(buf.as_slice()[..count].to_vec())
    }

    fn sync(&mut self, file: OpenFile) -> Result<()> {
        self.done(Op::Sync { file: RawHandle(0), data_only: true }, Some(file))
    }

    fn sync_dir(&mut self, path: &str) -> Result<()> {
        self.done(Op::SyncDir { path: path.into() }, None)
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        self.done(Op::Rename { from: from.into(), to: to.into() }, None)
    }

    /// Power fails; open files are void.
    fn crash(&mut self) {
        let (disk, mut chaos) = self.chaos();
        disk.lose_power(&mut chaos);
    }

    fn with(mut self, kind: FaultKind, ppm: u32) -> Bench {
        self.plan = self.plan.with(kind, ppm);
        self
    }

    fn struck(&self, kind: FaultKind) -> u64 {
        self.counts.of(kind)
    }
}

fn bench(seed: u64) -> Bench {
    Bench::new(seed, DiskConfig::default())
}

const ALWAYS: u32 = 1_000_000;

/// Runs `scenario` under many seeds; how many of them it says `true` for.
fn seeds(scenario: impl Fn(u64) -> bool) -> usize {
    (0..200).filter(|&seed| scenario(seed)).count()
}

/// A file of `old` bytes that is durable, name and all.
fn durable_file(bench: &mut Bench, old: u8, len: usize) -> OpenFile {
    let plan = std::mem::take(&mut bench.plan);
    let file = bench.open("/f");
    bench.write(file, 0, &vec![old; len]).unwrap();
    bench.sync(file).unwrap();
    bench.sync_dir("/").unwrap();
    bench.plan = plan;
    file
}

#[test]
fn what_was_synced_stays_and_what_was_not_is_lost_under_some_seeds() {
    let lost = seeds(|seed| {
        let mut bench = bench(seed).with(FaultKind::LostUnsyncedWrite, ALWAYS);
        let file = durable_file(&mut bench, 1, 8192);
        assert!(!bench.disk.has_unsynced() && !bench.disk.has_unsynced_names());
        bench.write(file, 4096, &[2; 4096]).unwrap();
        assert!(bench.disk.has_unsynced());
        assert_eq!((bench.disk.unsynced_writes(), bench.disk.has_unsynced_names()), (1, false));
        assert_eq!(bench.read(file, 4096, 4096).unwrap(), [2; 4096], "reads see it at once");
        bench.crash();
        let found = bench.disk.read("/f").unwrap();
        assert_eq!(found[..4096], [1; 4096], "seed {seed}");
        assert!(found[4096..] == [1; 4096] || found[4096..] == [2; 4096], "seed {seed}");
        assert_eq!(found[4096] == 1, bench.struck(FaultKind::LostUnsyncedWrite) == 1);
        found[4096] == 1
    });
    assert!((20..180).contains(&lost), "lost under {lost} of 200 seeds");
}

#[test]
fn without_faults_a_crash_loses_nothing() {
    let mut bench = bench(1);
    let file = bench.open("/f");
    bench.write(file, 100, &[3; 5000]).unwrap();
    bench.crash();
    assert_eq!(bench.disk.read("/f").unwrap()[100..], [3; 5000]);
    assert_eq!(bench.counts.total(), 0);
}

#[test]
fn a_dsync_write_needs_no_sync() {
    let lost = seeds(|seed| {
        let mut bench = bench(seed).with(FaultKind::LostUnsyncedWrite, ALWAYS).with(FaultKind::TornWrite, ALWAYS);
        durable_file(&mut bench, 1, 4096);
        let file = bench.open_with("/f", OpenFlags { dsync: true, ..READ_WRITE }).unwrap();
        bench.write(file, 0, &[2; 12_288]).unwrap();
        bench.crash();
        bench.disk.read("/f").unwrap() != [2; 12_288]
    });
    assert_eq!(lost, 0);
}

#[test]
fn a_crash_keeps_a_prefix_of_the_writes_or_any_of_them() {
    let kept = |seed, kind| {
        let mut bench = bench(seed).with(kind, ALWAYS);
        let file = durable_file(&mut bench, 0, 40_960);
        for page in 0..10 {
            bench.write(file, page * 4096, &[1; 4096]).unwrap();
        }
        bench.crash();
        let found = bench.disk.read("/f").unwrap();
        let kept: Vec<bool> = found.chunks(4096).map(|page| page[0] == 1).collect();
        let is_prefix = !kept.windows(2).any(|pair| !pair[0] && pair[1]);
        assert_eq!(bench.struck(FaultKind::ReorderedWrite) == 0, is_prefix, "seed {seed}: {kept:?}");
        is_prefix
    };
    assert_eq!(seeds(|seed| kept(seed, FaultKind::LostUnsyncedWrite)), 200);
    assert!(seeds(|seed| kept(seed, FaultKind::ReorderedWrite)) < 20);
}

#[test]
fn a_torn_write_is_there_in_part() {
    for kind in [FaultKind::LostUnsyncedWrite, FaultKind::ReorderedWrite] {
        for sector in [512, 4096] {
            let torn = seeds(|seed| {
                let mut bench = Bench::new(seed, DiskConfig { sector, ..DiskConfig::default() });
                bench = bench.with(kind, ALWAYS).with(FaultKind::TornWrite, ALWAYS);
                let file = durable_file(&mut bench, 1, 16_384);
                bench.write(file, 0, &[2; 16_384]).unwrap();
                bench.crash();
                let found = bench.disk.read("/f").unwrap();
                assert!(found.iter().all(|byte| matches!(byte, 1 | 2)));
                let in_part = found.contains(&1) && found.contains(&2);
                assert_eq!(in_part, bench.struck(FaultKind::TornWrite) == 1);
                found.chunks(4096).any(|page| page.contains(&1) && page.contains(&2))
            });
            assert!(torn > 20, "{torn} of 200 seeds tore with {kind:?} and sectors of {sector}");
        }
    }
}

#[test]
fn a_sync_that_fails_once_succeeds_next_time_although_data_is_lost() {
    let lost = seeds(|seed| {
        let mut bench = bench(seed);
        let file = durable_file(&mut bench, 1, 8192);
        bench.write(file, 0, &[2; 8192]).unwrap();
        bench.plan = FaultPlan::none().with(FaultKind::SyncError, ALWAYS);
        assert_eq!(bench.sync(file).unwrap_err().raw_os_error(), Some(5));
        bench.plan = FaultPlan::none();
        bench.sync(file).unwrap();
        assert_eq!(bench.read(file, 0, 8192).unwrap(), [2; 8192], "the page cache still shows it");
        bench.crash();
        bench.disk.read("/f").unwrap() != [2; 8192]
    });
    assert!(lost > 100, "lost under {lost} of 200 seeds: each page with one half");
}

#[test]
fn pages_written_again_after_a_failed_sync_are_durable_after_the_next() {
    let mut bench = bench(4).with(FaultKind::SyncError, ALWAYS);
    let file = durable_file(&mut bench, 1, 4096);
    bench.write(file, 0, &[2; 4096]).unwrap();
    assert!(bench.sync(file).is_err());
    bench.plan = FaultPlan::none();
    bench.write(file, 0, &[3; 4096]).unwrap();
    bench.sync(file).unwrap();
    bench.crash();
    assert_eq!(bench.disk.read("/f").unwrap(), [3; 4096]);
}

#[test]
fn a_lying_disk_loses_what_it_acknowledged() {
    for dsync in [false, true] {
        let mut bench = bench(2);
        durable_file(&mut bench, 1, 4096);
        bench.plan = FaultPlan::none().with(FaultKind::LyingSync, ALWAYS);
        let file = bench.open_with("/f", OpenFlags { dsync, ..READ_WRITE }).unwrap();
        bench.write(file, 0, &[2; 4096]).unwrap();
        bench.sync(file).unwrap();
        assert_eq!(bench.read(file, 0, 4096).unwrap(), [2; 4096]);
        bench.crash();
        assert_eq!(bench.disk.read("/f").unwrap(), [1; 4096]);
        assert!(bench.struck(FaultKind::LyingSync) > 0);
    }
}

#[test]
fn a_lost_write_leaves_reads_stale() {
    let mut bench = bench(2).with(FaultKind::LostWrite, ALWAYS);
    let file = durable_file(&mut bench, 1, 4096);
    assert_eq!(bench.write(file, 0, &[2; 4096]).unwrap(), 4096);
    assert_eq!(bench.read(file, 0, 4096).unwrap(), [1; 4096]);
}

#[test]
fn a_misdirected_write_lands_elsewhere() {
    let mut bench = bench(3).with(FaultKind::MisdirectedWrite, ALWAYS);
    let file = durable_file(&mut bench, 1, 1 << 20);
    assert_eq!(bench.write(file, 8192, &[2; 4096]).unwrap(), 4096);
    let found = bench.read(file, 0, 1 << 20).unwrap();
    assert_eq!(bench.struck(FaultKind::MisdirectedWrite), 1);
    assert_eq!(found[8192..12_288], [1; 4096], "not where it belongs");
    assert_eq!(found.chunks(4096).filter(|page| **page == [2; 4096]).count(), 1, "but somewhere");
}

#[test]
fn a_stale_read_shows_the_page_before_its_last_change_and_only_once() {
    let mut bench = bench(3);
    let file = durable_file(&mut bench, 1, 8192);
    bench.write(file, 4096, &[2; 4096]).unwrap();
    bench.plan = FaultPlan::none().with(FaultKind::StaleRead, ALWAYS);
    assert_eq!(bench.read(file, 0, 8192).unwrap()[4096..], [1; 4096]);
    bench.plan = FaultPlan::none();
    assert_eq!(bench.read(file, 0, 8192).unwrap()[4096..], [2; 4096]);
    assert_eq!(bench.struck(FaultKind::StaleRead), 1);
}

#[test]
fn a_bit_flip_changes_one_bit_of_what_was_durable() {
    let mut bench = bench(5).with(FaultKind::BitFlip, ALWAYS);
    let file = durable_file(&mut bench, 0xff, 65_536);
    bench.write(file, 65_536, &[0xff; 4096]).unwrap();
    let found = bench.read(file, 0, 1 << 20).unwrap();
    assert_eq!(found.iter().map(|byte| byte.count_zeros()).sum::<u32>(), 1);
    bench.crash();
    assert_eq!(bench.disk.read("/f").unwrap(), found, "it is on the platter");
}

/// Flips used to fall on the next stored page behind a random place of the file, or else on the first: in a segment that is written from
/// its start that was nearly always its header, where any reader sees it. A log that compared no payload's CRC passed.
#[test]
fn a_bit_flip_falls_on_any_stored_page_alike() {
    let mut first = 0;
    for seed in 0..400 {
        let mut bench = bench(seed).with(FaultKind::BitFlip, ALWAYS);
        let file = durable_file(&mut bench, 0xff, 16_384);
        bench.plan = FaultPlan::none();
        bench.write(file, 1 << 20, &[0; 4096]).unwrap();
        bench.plan = FaultPlan::none().with(FaultKind::BitFlip, ALWAYS);
        bench.write(file, 1 << 20, &[0; 4096]).unwrap();
        let page = bench.read(file, 0, 4096).unwrap();
        first += u32::from(page.iter().any(|&byte| byte != 0xff));
    }
    assert!((50..200).contains(&first), "{first} of 400 flips hit the first of four pages");
}

#[test]
fn errors_have_their_numbers_and_short_transfers_their_counts() {
    let mut bench = bench(6);
    let file = durable_file(&mut bench, 1, 8192);
    let code = |result: Result<usize>| result.unwrap_err().raw_os_error().unwrap();
    bench.plan = FaultPlan::none().with(FaultKind::WriteError, ALWAYS);
    assert_eq!(code(bench.write(file, 0, &[2; 8192])), 5);
    bench.plan = FaultPlan::none().with(FaultKind::ReadError, ALWAYS);
    assert_eq!(code(bench.read(file, 0, 10).map(|bytes| bytes.len())), 5);
    bench.plan = FaultPlan::none().with(FaultKind::DiskFull, ALWAYS);
    assert_eq!(code(bench.write(file, 0, &[2; 10])), 28);
    bench.plan = FaultPlan::none().with(FaultKind::ShortWrite, ALWAYS).with(FaultKind::ShortRead, ALWAYS);
    for direct in [false, true] {
        let file = bench.open_with("/f", OpenFlags { direct, ..READ_WRITE }).unwrap();
        let written = bench.write(file, 0, &vec![3; 65_536]).unwrap();
        let read = bench.read(file, 0, written.max(8192)).unwrap().len();
        assert!((1..65_536).contains(&written) && (1..=written.max(8192)).contains(&read));
        assert!(!direct || written.is_multiple_of(4096) && read.is_multiple_of(4096));
        assert_eq!(bench.write(file, 0, &[3; 4096]).unwrap() == 4096, direct, "one sector is not cut");
    }
    for kind in [FaultKind::WriteError, FaultKind::ReadError, FaultKind::DiskFull, FaultKind::ShortWrite] {
        assert!(bench.struck(kind) > 0, "{kind:?}");
    }
}

#[test]
fn a_spoiled_sector_fails_until_it_is_written() {
    let mut bench = bench(7);
    let file = durable_file(&mut bench, 1, 12_288);
    bench.disk.spoil("/f", 5000).unwrap();
    assert!(bench.read(file, 0, 12_288).is_err());
    assert!(bench.read(file, 8192, 4096).is_ok());
    bench.write(file, 4096, &[2; 4096]).unwrap();
    assert_eq!(bench.read(file, 4096, 1).unwrap(), [2]);
}

#[test]
fn damage_from_outside_is_durable_at_once() {
    let mut bench = bench(8).with(FaultKind::LostUnsyncedWrite, ALWAYS);
    durable_file(&mut bench, 1, 5000);
    bench.disk.flip_bit("/f", 4999, 1).unwrap();
    bench.disk.overwrite("/f", 10, &[9; 3]).unwrap();
    bench.crash();
    let found = bench.disk.read("/f").unwrap();
    assert_eq!((found[4999], &found[9..14]), (3, &[1, 9, 9, 9, 1][..]));
    assert!(bench.disk.flip_bit("/f", 5000, 0).is_err() && bench.disk.flip_bit("/none", 0, 0).is_err());
    assert_eq!(bench.disk.files(), [Path::new("/f")]);
}

#[test]
fn space_runs_out_and_comes_back() {
    let mut bench = Bench::new(1, DiskConfig { capacity: 1 << 20, ..DiskConfig::default() });
    let file = bench.open("/f");
    let code = |result: Result<()>| result.unwrap_err().raw_os_error();
    bench.done(Op::Allocate { file: RawHandle(0), offset: 0, len: 768 << 10 }, Some(file)).unwrap();
    assert_eq!(code(bench.done(Op::Allocate { file: RawHandle(0), offset: 0, len: 2 << 20 }, Some(file))), Some(28));
    let other = bench.open("/g");
    assert_eq!(bench.write(other, 0, &vec![1; 512 << 10]).unwrap(), 256 << 10, "what fits");
    assert_eq!(code(bench.write(other, 256 << 10, &[1]).map(drop)), Some(28));
    assert_eq!(bench.write(file, 0, &[1; 4096]).unwrap(), 4096, "what is allocated has its space");
    bench.done(Op::SetLen { file: RawHandle(0), len: 0 }, Some(file)).unwrap();
    assert_eq!(bench.disk.used(), 256 << 10);
    assert_eq!(bench.write(other, 256 << 10, &[1; 4096]).unwrap(), 4096);
    bench.done(Op::RemoveFile { path: "/g".into() }, None).unwrap();
    assert_eq!(bench.disk.used(), 260 << 10, "still open");
    bench.disk.close(other, (0, 0));
    assert_eq!(bench.disk.used(), 0);
    bench.crash();
    assert_eq!(bench.disk.used(), 0);
}

#[test]
fn zeros_take_space_but_no_memory() {
    let mut bench = bench(1);
    let file = bench.open("/segment");
    let zeros = AlignedBuf::zeroed(1 << 20);
    for part in 0..64 {
        bench.write(file, part << 20, &zeros).unwrap();
    }
    assert_eq!((bench.disk.len("/segment").unwrap(), bench.disk.used()), (64 << 20, 64 << 20));
    let Node::File(content) = &bench.disk.inode(file.inode).node else { panic!("a file") };
    assert_eq!(content.clean_pages(), [0; 0], "no page is stored");
    assert_eq!(bench.read(file, 63 << 20, 4096).unwrap(), [0; 4096]);
}

#[test]
fn direct_io_wants_alignment_whatever_the_address() {
    let mut bench = bench(1);
    let file = bench.open_with("/f", OpenFlags { direct: true, ..READ_WRITE }).unwrap();
    let invalid = |result: Result<usize>| assert_eq!(result.unwrap_err().raw_os_error(), Some(22));
    invalid(bench.write(file, 0, &[1; 100]));
    invalid(bench.write(file, 100, &[1; 4096]));
    let write = Op::Write { file: RawHandle(0), buf: IoBuf::Vec(vec![1; 4096]), start: 0, offset: 0 };
    invalid(bench.count(write, file).map(|(count, _)| count));
    assert_eq!(bench.write(file, 4096, &[1; 4096]).unwrap(), 4096);
    assert_eq!(bench.read(file, 4096, 8192).unwrap().len(), 4096, "the end of the file cuts it short");
}

#[test]
fn names_are_lost_without_a_sync_of_their_directory_and_kept_with_it() {
    for journal in [Journal::Ordered, Journal::AnythingGoes] {
        let scenario = |seed, synced: bool| {
            let mut bench = Bench::new(seed, DiskConfig { journal, ..DiskConfig::default() });
            bench.plan = FaultPlan::none().with(FaultKind::LostDirOp, ALWAYS);
            bench.done(Op::CreateDir { path: "/d".into() }, None).unwrap();
            bench.sync_dir("/").unwrap();
            bench.open("/d/f");
            bench.done(Op::Link { from: "/d/f".into(), to: "/d/g".into() }, None).unwrap();
            if synced {
                bench.sync_dir("/d").unwrap();
            }
            assert_eq!(bench.disk.has_unsynced_names(), !synced);
            bench.crash();
            assert!(bench.disk.exists("/d"));
            let found = ["/d/f", "/d/g"].map(|path| bench.disk.exists(path));
            assert_eq!(found == [true; 2], bench.struck(FaultKind::LostDirOp) == 0);
            assert!(journal == Journal::AnythingGoes || found != [false, true], "the journal is in order");
            found == [true; 2]
        };
        assert_eq!(seeds(|seed| scenario(seed, true)), 200);
        let kept = seeds(|seed| scenario(seed, false));
        assert!((20..120).contains(&kept), "{journal:?}: {kept} of 200");
    }
}

#[test]
fn a_file_sync_commits_the_journal_only_where_it_is_one() {
    let kept = |journal| {
        seeds(|seed| {
            let mut bench = Bench::new(seed, DiskConfig { journal, ..DiskConfig::default() });
            bench.plan = FaultPlan::none().with(FaultKind::LostDirOp, ALWAYS);
            let file = bench.open("/f");
            bench.sync(file).unwrap();
            bench.crash();
            bench.disk.exists("/f")
        })
    };
    assert_eq!(kept(Journal::Ordered), 200);
    assert!(kept(Journal::AnythingGoes) < 180);
}

#[test]
fn a_rename_is_whole_and_its_data_is_not_part_of_it() {
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let mut bench = bench(seed).with(FaultKind::LostDirOp, ALWAYS).with(FaultKind::LostUnsyncedWrite, ALWAYS);
        durable_file(&mut bench, 1, 10);
        let new = bench.open("/new");
        bench.write(new, 0, &[2; 10]).unwrap();
        bench.rename("/new", "/f").unwrap();
        bench.crash();
        outcomes.insert((bench.disk.read("/f").unwrap(), bench.disk.exists("/new")));
    }
    let expected = [(vec![], false), (vec![1; 10], false), (vec![1; 10], true), (vec![2; 10], false)];
    assert_eq!(outcomes, expected.into_iter().collect(), "a rename without a sync before it may lose the data");
}

#[test]
fn images_of_a_power_loss_leave_the_disk_as_it_is() {
    let mut bench = bench(1);
    let file = durable_file(&mut bench, 1, 4096);
    bench.write(file, 0, &[2; 4096]).unwrap();
    let plan = FaultPlan::none().with(FaultKind::LostUnsyncedWrite, ALWAYS);
    let images: std::collections::BTreeSet<_> =
        (0..20).map(|seed| bench.disk.after_power_loss(seed, &plan).read("/f").unwrap()[0]).collect();
    assert_eq!(images, [1, 2].into_iter().collect());
    assert_eq!(bench.read(file, 0, 1).unwrap(), [2], "and open files stay open");
}

#[test]
fn directories_are_listed_in_the_order_of_the_seed() {
    let list = |seed| {
        let mut bench = bench(seed);
        for name in ["/a", "/b", "/c", "/d", "/e"] {
            bench.open(name);
        }
        match bench.run(Op::ReadDir { path: "/".into() }, None).unwrap().0 {
            Effect::Plain(OpOutput::Entries(entries)) => {
                entries.into_iter().map(|entry| entry.name).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(list(1), list(1));
    assert!((0..10).map(list).collect::<std::collections::BTreeSet<_>>().len() > 5);
}

#[test]
fn an_image_is_independent_of_the_disk() {
    let mut bench = bench(1);
    let file = durable_file(&mut bench, 1, 4096);
    let mut image = bench.disk.clone();
    bench.write(file, 0, &[2; 4096]).unwrap();
    assert_eq!(image.read("/f").unwrap(), [1; 4096]);
    image.flip_bit("/f", 0, 7).unwrap();
    assert_eq!(bench.disk.read("/f").unwrap(), [2; 4096]);
}
