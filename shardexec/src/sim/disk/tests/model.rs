//! Random file-system ops, a crash, and a model of what must be there: whatever was synced, unchanged since.
//!
//! The model keeps for each sector the byte values, for each file the lengths, and for each name the inodes that a crash may show: the
//! synced one and all since.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const SECTOR: usize = 512;
const SECTORS: usize = 40;
const NAMES: [&str; 6] = ["/a", "/b", "/c", "/d/a", "/d/b", "/d/c"];

/// What a crash may leave of a file.
#[derive(Clone)]
struct File {
    sectors: Vec<BTreeSet<u8>>,
    now: Vec<u8>,
    len: u64,
    lens: BTreeSet<u64>,
}

impl File {
    fn new() -> File {
        File { sectors: vec![BTreeSet::from([0]); SECTORS], now: vec![0; SECTORS], len: 0, lens: BTreeSet::from([0]) }
    }

    fn set(&mut self, sector: usize, value: u8) {
        self.now[sector] = value;
        self.sectors[sector].insert(value);
    }

    fn synced(&mut self) {
        self.sectors = self.now.iter().map(|&value| BTreeSet::from([value])).collect();
        self.lens = BTreeSet::from([self.len]);
    }

    fn set_len(&mut self, len: u64) {
        for sector in (len as usize).div_ceil(SECTOR)..SECTORS {
            self.set(sector, 0);
        }
        self.len = len;
        self.lens.insert(len);
    }

    fn check(&self, found: &[u8], context: &str) {
        assert!(self.lens.contains(&(found.len() as u64)), "{context}: length {} of {:?}", found.len(), self.lens);
        for (number, sector) in found.chunks(SECTOR).enumerate() {
            let allowed = &self.sectors[number];
            let stray = sector.iter().find(|value| !allowed.contains(value));
            assert_eq!(stray, None, "{context}: sector {number} may hold {allowed:?}");
        }
    }
}

struct Model {
    bench: Bench,
    journal: Journal,
    /// By inode.
    files: BTreeMap<u64, File>,
    /// What each name means now, and what it may after a crash.
    now: BTreeMap<&'static str, u64>,
    names: BTreeMap<&'static str, BTreeSet<Option<u64>>>,
}

impl Model {
    fn dir_synced(&mut self, dir: &str) {
        for name in NAMES.into_iter().filter(|name| self.journal == Journal::Ordered || is_in(name, dir)) {
            self.names.insert(name, BTreeSet::from([self.now.get(name).copied()]));
        }
    }

    fn changed(&mut self, name: &'static str, to: Option<u64>) {
        match to {
            Some(inode) => self.now.insert(name, inode),
            None => self.now.remove(name),
        };
        self.names.entry(name).or_default().insert(to);
    }

    fn step(&mut self) {
        let name = NAMES[self.bench.rng.index(NAMES.len())];
        let other = NAMES[self.bench.rng.index(NAMES.len())];
        match self.bench.rng.below(10) {
            0..=3 => self.write(name),
            4 => self.sync(name),
            5 => {
                let dir = if self.bench.rng.coin() { "/" } else { "/d" };
                self.bench.sync_dir(dir).unwrap();
                self.dir_synced(dir);
            }
            6 => self.truncate(name),
            7 if self.bench.rename(name, other).is_ok() && self.now.get(name) != self.now.get(other) => {
                let inode = self.now[name];
                self.changed(name, None);
                self.changed(other, Some(inode));
            }
            8 if self.bench.done(Op::Link { from: name.into(), to: other.into() }, None).is_ok() => {
                self.changed(other, Some(self.now[name]));
            }
            9 if self.bench.done(Op::RemoveFile { path: name.into() }, None).is_ok() => self.changed(name, None),
            _ => {}
        }
    }

    fn with_open(&mut self, name: &'static str, work: impl FnOnce(&mut Bench, &mut File, OpenFile)) {
        let file = self.bench.open(name);
        if self.now.get(name) != Some(&file.inode) {
            self.changed(name, Some(file.inode));
        }
        let model = self.files.entry(file.inode).or_insert_with(File::new);
        work(&mut self.bench, model, file);
        self.bench.disk.close(file, (0, 0));
    }

    fn write(&mut self, name: &'static str) {
        self.with_open(name, |bench, model, file| {
            let first = bench.rng.index(SECTORS - 8);
            let count = 1 + bench.rng.index(8);
            let value = bench.rng.within(1..=255) as u8;
            bench.write(file, (first * SECTOR) as u64, &vec![value; count * SECTOR]).unwrap();
            (first..first + count).for_each(|sector| model.set(sector, value));
            let end = ((first + count) * SECTOR) as u64;
            model.len = model.len.max(end);
            model.lens.insert(model.len);
        });
    }

    fn sync(&mut self, name: &'static str) {
        self.with_open(name, |bench, model, file| {
            bench.sync(file).unwrap();
            model.synced();
        });
        if self.journal == Journal::Ordered {
            self.dir_synced("/");
        }
    }

    fn truncate(&mut self, name: &'static str) {
        self.with_open(name, |bench, model, file| {
            let len = bench.rng.below(SECTORS as u64 + 1) * SECTOR as u64;
            bench.done(Op::SetLen { file: RawHandle(0), len }, Some(file)).unwrap();
            model.set_len(len);
        });
    }

    fn check_live(&mut self) {
        for name in NAMES {
            let Some(inode) = self.now.get(name) else {
                assert!(!self.bench.disk.exists(name));
                continue;
            };
            let file = &self.files[inode];
            let expected: Vec<u8> = (0..file.len as usize).map(|at| file.now[at / SECTOR]).collect();
            assert_eq!(self.bench.disk.read(name).unwrap(), expected);
        }
    }

    fn check_after_crash(&mut self, seed: u64) {
        for name in NAMES {
            let context = format!("seed {seed}, {:?}, {name}", self.journal);
            let found = self.bench.disk.resolve(Path::new(name)).ok();
            let allowed = self.names.get(name).cloned().unwrap_or_else(|| BTreeSet::from([None]));
            assert!(allowed.contains(&found), "{context}: {found:?} is none of {allowed:?}");
            if let Some(inode) = found {
                self.files[&inode].check(&self.bench.disk.read(name).unwrap(), &context);
            }
        }
    }
}

fn is_in(name: &str, dir: &str) -> bool {
    Path::new(name).parent() == Some(Path::new(dir))
}

/// Names are unknown before the first sync: `None` is always among them then.
fn fresh(seed: u64, journal: Journal) -> Model {
    let mut bench = Bench::new(seed, DiskConfig { journal, sector: SECTOR, ..DiskConfig::default() });
    bench.done(Op::CreateDir { path: "/d".into() }, None).unwrap();
    bench.sync_dir("/").unwrap();
    let names = NAMES.into_iter().map(|name| (name, BTreeSet::from([None]))).collect();
    Model { bench, journal, files: BTreeMap::new(), now: BTreeMap::new(), names }
}

#[test]
fn after_any_ops_and_a_crash_every_synced_thing_is_there() {
    let mut struck = FaultCounts::default();
    for seed in 0..300 {
        for journal in [Journal::Ordered, Journal::AnythingGoes] {
            let mut model = fresh(seed, journal);
            for _ in 0..40 + seed % 40 {
                model.step();
            }
            model.check_live();
            model.bench.plan = FaultPlan::honest();
            model.bench.crash();
            model.check_after_crash(seed);
            struck.add(&model.bench.counts);
        }
    }
    for kind in [FaultKind::LostUnsyncedWrite, FaultKind::TornWrite, FaultKind::ReorderedWrite, FaultKind::LostDirOp] {
        assert!(struck.of(kind) > 25, "{kind:?} struck {} times: the test would prove nothing", struck.of(kind));
    }
}

#[test]
fn the_model_notices_a_lying_disk() {
    let noticed = (0..50).any(|seed| {
        let mut model = fresh(seed, Journal::Ordered);
        model.bench.plan = FaultPlan::none().with(FaultKind::LyingSync, 1_000_000);
        for _ in 0..60 {
            model.step();
        }
        model.bench.plan = FaultPlan::honest();
        model.bench.crash();
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| model.check_after_crash(seed))).is_err()
    });
    assert!(noticed);
}
