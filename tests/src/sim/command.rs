//! The command: many seeds over threads, what they showed as one line of JSON, and a ledger of what is done.

use super::checkers::Broken;
use super::run::{Outcome, RunOptions, STEPS_DEFAULT, run_seed};
use clap::Parser;
use gristmill_shardexec::sim::FaultCounts;
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Seeds that one entry of the ledger covers, and that a thread takes at a time.
const CHUNK: u64 = 50;
/// One seed in so many runs twice, and must give the same trace hash.
const TWICE: u64 = 100;
/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);

/// Runs whole clusters under seeds that decide everything: time, order, disks, network, clocks, crashes.
///
/// Each seed is one run: a safety phase with faults, then a liveness phase without. Checkers watch all the while; what they
/// find is printed with the command that replays it. The exit status is 0 only where nothing was violated.
#[derive(Parser, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[command(
    name = "sim",
    after_help = "Examples:\n  \
        sim --seeds 200 --from 0 --jobs 2 --json    200 seeds on two threads; the last line of stdout is the report\n  \
        sim --seed 17                               one seed again, as a failure said\n  \
        sim --seed 17 --trace 2> trace.txt          the same with every operation, fault and line of every node\n  \
        sim --seeds 5000 --ledger tests/sim-ledger.jsonl --resume\n\
        \n\
        A violation is to be understood, never to be avoided by another seed: replay it with --trace, look for the checker's\n\
        words, and go back from there. The same seed, nodes and steps give the same run in any build profile."
)]
struct Args {
    /// How many seeds to run.
    #[arg(long, default_value_t = 100, value_name = "N")]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0, value_name = "N")]
    from: u64,
    /// Threads; each runs seeds of its own.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=64))]
    jobs: u64,
    /// Nodes of each cluster, 1 to 7; without it 3, 5 or 7, as the seed decides.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=7))]
    nodes: Option<u16>,
    /// Steps (polls of tasks) of the safety phase.
    #[arg(long, default_value_t = STEPS_DEFAULT, value_name = "N", value_parser = clap::value_parser!(u64).range(100..))]
    steps: u64,
    /// Run this one seed; the report has its trace hash.
    #[arg(long, value_name = "N", conflicts_with_all = ["seeds", "from", "ledger"])]
    seed: Option<u64>,
    /// Write everything that happens to stderr. Takes --seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Nothing but the report on stdout.
    #[arg(long)]
    json: bool,
    /// Append what was done to this file, a line for each range of seeds.
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Skip ranges that the ledger has as passed at the same commit, with the same nodes and steps.
    #[arg(long, requires = "ledger")]
    resume: bool,
    /// Hunt the known bugs: each must be found within 200 seeds, and nothing without it.
    #[cfg(feature = "bugs")]
    #[arg(long, conflicts_with_all = ["seeds", "from", "seed", "ledger", "nodes", "steps"])]
    bugs: bool,
    /// Hunt this bug only; with --seed run that seed with it.
    #[cfg(feature = "bugs")]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["seeds", "from", "ledger", "nodes", "steps", "bugs"],
        value_parser = super::hunt::bug_of)]
    bug: Option<super::bugs::Injected>,
}

thread_local! {
    /// The seed that this thread runs, for whoever reads of a panic that ends the process.
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Sums over runs.
#[derive(Clone, Default)]
struct Report {
    seeds: u64,
    steps: u64,
    acked: u64,
    requests: u64,
    unknown: u64,
    terms: u64,
    compared: u64,
    logs_judged: u64,
    restarts: u64,
    refused: u64,
    beyond: u64,
    twice: u64,
    violations: u64,
    failing: Vec<u64>,
    faults: FaultCounts,
    /// Time on a processor, and time in all, of the threads.
    busy: Duration,
    took: Duration,
    trace_hash: Option<u64>,
}

impl Report {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.steps += outcome.steps;
        self.acked += outcome.acked;
        self.requests += outcome.requests;
        self.unknown += outcome.unknown;
        self.terms += outcome.terms as u64;
        self.compared += outcome.compared.0;
        self.logs_judged += outcome.compared.1;
        self.restarts += u64::from(outcome.restarts);
        self.refused += outcome.refused.len() as u64;
        self.beyond += u64::from(outcome.beyond.is_some());
        self.violations += outcome.violations.len() as u64;
        if !outcome.violations.is_empty() {
            self.failing.push(outcome.seed);
        }
        self.faults.add(&outcome.faults);
    }

    fn merge(&mut self, other: &Report) {
        self.seeds += other.seeds;
        self.steps += other.steps;
        self.acked += other.acked;
        self.requests += other.requests;
        self.unknown += other.unknown;
        self.terms += other.terms;
        self.compared += other.compared;
        self.logs_judged += other.logs_judged;
        self.restarts += other.restarts;
        self.refused += other.refused;
        self.beyond += other.beyond;
        self.twice += other.twice;
        self.violations += other.violations;
        self.failing.extend(&other.failing);
        self.faults.add(&other.faults);
        self.busy += other.busy;
        self.took += other.took;
        self.trace_hash = self.trace_hash.or(other.trace_hash);
    }

    fn per_hour_core(&self) -> u64 {
        let seconds = self.busy.as_secs_f64();
        if seconds > 0.0 { (self.seeds as f64 * 3600.0 / seconds) as u64 } else { 0 }
    }

    fn json(&self, args: &Args) -> Value {
        let faults: serde_json::Map<String, Value> =
            self.faults.iter().map(|(kind, count)| (kind.name().to_owned(), json!(count))).collect();
        let mut report = json!({
            "seeds": self.seeds,
            "from": args.seed.unwrap_or(args.from),
            "nodes": nodes_of(args),
            "steps": self.steps,
            "steps_a_seed": args.steps,
            "acked": self.acked,
            "requests": self.requests,
            "unknown": self.unknown,
            "leaders": self.terms,
            "states_compared": self.compared,
            "logs_judged": self.logs_judged,
            "restarts": self.restarts,
            "refused": self.refused,
            "beyond": self.beyond,
            "run_twice": self.twice,
            "faults": faults,
            "violations": self.violations,
            "failing_seeds": self.failing,
            "seconds": self.took.as_secs(),
            "cpu_seconds": self.busy.as_secs(),
            "seeds_per_hour_core": self.per_hour_core(),
        });
        if let Some(hash) = self.trace_hash {
            report["trace_hash"] = json!(format!("{hash:016x}"));
        }
        report
    }
}

/// Measures a thread: what it costs must not depend on what else the machine does.
struct Stopwatch {
    cpu: Duration,
    wall: Instant,
}

impl Stopwatch {
    fn start() -> Stopwatch {
        Stopwatch { cpu: Stopwatch::cpu(), wall: Instant::now() }
    }

    fn stop(self) -> (Duration, Duration) {
        (Stopwatch::cpu().saturating_sub(self.cpu), self.wall.elapsed())
    }

    fn cpu() -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
    }
}

/// What the threads share.
struct Work {
    chunks: Mutex<Vec<(u64, u64)>>,
    report: Mutex<Report>,
    told: Mutex<Instant>,
    began: Instant,
    total: u64,
    commit: String,
}

/// Runs the command.
pub fn main() -> ExitCode {
    let args = Args::parse();
    tell_seed_of_panics();
    #[cfg(feature = "bugs")]
    if args.bugs || (args.bug.is_some() && args.seed.is_none()) {
        let hunted = super::hunt::main(args.bug, args.jobs, args.json, |seed| SEED.set(seed));
        return hunted.unwrap_or_else(|message| {
            eprintln!("sim: {message}");
            ExitCode::from(2)
        });
    }
    let report = if let Some(seed) = args.seed { Ok(run_one(&args, seed)) } else { run_many(&args) };
    let report = match report {
        Ok(report) => report,
        Err(message) => {
            eprintln!("sim: {message}");
            return ExitCode::from(2);
        }
    };
    if !args.json {
        println!(
            "{} seeds, {} steps, {} acknowledged writes, {} faults, {} violations; {} seeds an hour and core",
            report.seeds,
            report.steps,
            report.acked,
            report.faults.total(),
            report.violations,
            report.per_hour_core()
        );
    }
    println!("{}", report.json(&args));
    if report.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A panic in what a core's tasks share ends the process: without this nobody would know which seed it was.
fn tell_seed_of_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if let Some(seed) = SEED.get() {
            eprintln!("in seed {seed}:");
        }
        before(info);
    }));
}

/// The size of clusters, as reports and the ledger have it.
fn nodes_of(args: &Args) -> Value {
    args.nodes.map_or_else(|| json!("mixed"), |nodes| json!(nodes))
}

fn options(args: &Args) -> RunOptions {
    RunOptions { nodes: args.nodes, steps: args.steps }
}

fn run_one(args: &Args, seed: u64) -> Report {
    let clock = Stopwatch::start();
    SEED.set(Some(seed));
    let trace: Option<gristmill_shardexec::sim::TraceSink> =
        if args.trace { Some(Box::new(|line| eprintln!("{line}"))) } else { None };
    #[cfg(feature = "bugs")]
    let outcome = match args.bug {
        Some(bug) => super::hunt::replay(bug, seed, trace),
        None => run_seed(seed, options(args), trace),
    };
    #[cfg(not(feature = "bugs"))]
    let outcome = run_seed(seed, options(args), trace);
    let mut report = Report { trace_hash: Some(outcome.trace_hash), ..Report::default() };
    report.add(&outcome);
    (report.busy, report.took) = clock.stop();
    tell(args, &outcome);
    if !args.json {
        eprintln!(
            "{:?} of virtual time, refused: {:?}, beyond: {:?}",
            outcome.virtual_time, outcome.refused, outcome.beyond
        );
    }
    report
}

/// Prints what was violated, and how to see it again.
fn tell(args: &Args, outcome: &Outcome) {
    let Outcome { seed, nodes, .. } = outcome;
    for Broken { checker, detail } in &outcome.violations {
        eprintln!("seed {seed}: VIOLATED {checker}: {detail}");
    }
    if !outcome.violations.is_empty() {
        let steps = args.steps;
        eprintln!(
            "replay: cargo run -p gristmill-tests --release --bin sim -- --seed {seed} --nodes {nodes} --steps {steps} --trace"
        );
    }
}

fn run_many(args: &Args) -> Result<Report, String> {
    let commit = commit()?;
    let done = match &args.ledger {
        Some(ledger) if args.resume => done_ranges(ledger, args, &commit)?,
        _ => BTreeSet::new(),
    };
    let end = args.from + args.seeds;
    let starts = (args.from..end).step_by(CHUNK as usize);
    let mut chunks: Vec<(u64, u64)> =
        starts.map(|from| (from, CHUNK.min(end - from))).filter(|chunk| !done.contains(chunk)).collect();
    let total = chunks.iter().map(|chunk| chunk.1).sum();
    chunks.reverse();
    let now = Instant::now();
    let work =
        Work { chunks: Mutex::new(chunks), report: Mutex::default(), told: Mutex::new(now), began: now, total, commit };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..args.jobs).map(|_| scope.spawn(|| run_chunks(args, &work))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked".to_owned())?)
    })?;
    let mut report = work.report.into_inner().map_err(|_| "a thread panicked")?;
    report.failing.sort_unstable();
    Ok(report)
}

fn run_chunks(args: &Args, work: &Work) -> Result<(), String> {
    loop {
        let Some((from, seeds)) = work.chunks.lock().map_err(|_| "a thread panicked")?.pop() else { return Ok(()) };
        let mut chunk = Report::default();
        for seed in from..from + seeds {
            let one = run_checked(args, seed);
            chunk.merge(&one);
            progress(work, &one)?;
        }
        if let Some(ledger) = &args.ledger {
            append(ledger, args, work, (from, seeds), &chunk)?;
        }
    }
}

/// Runs one seed; some twice.
fn run_checked(args: &Args, seed: u64) -> Report {
    let clock = Stopwatch::start();
    SEED.set(Some(seed));
    let mut outcome = run_seed(seed, options(args), None);
    let mut report = Report::default();
    if seed.is_multiple_of(TWICE) {
        let again = run_seed(seed, options(args), None);
        report.twice = 1;
        if again.trace_hash != outcome.trace_hash {
            let detail = format!("trace hashes {:016x} and {:016x}", outcome.trace_hash, again.trace_hash);
            outcome.violations.push(Broken::new("determinism", detail));
        }
    }
    SEED.set(None);
    tell(args, &outcome);
    report.add(&outcome);
    (report.busy, report.took) = clock.stop();
    report
}

fn progress(work: &Work, one: &Report) -> Result<(), String> {
    let mut report = work.report.lock().map_err(|_| "a thread panicked")?;
    report.merge(one);
    let mut told = work.told.lock().map_err(|_| "a thread panicked")?;
    if told.elapsed() >= PROGRESS || report.seeds == work.total {
        *told = Instant::now();
        let rate = report.seeds as f64 / work.began.elapsed().as_secs_f64();
        eprintln!(
            "{} of {} seeds, {rate:.1} a second, {} acknowledged, {} violations",
            report.seeds, work.total, report.acked, report.violations
        );
    }
    Ok(())
}

/// The commit whose code this is, with a mark where the tree has changes.
fn commit() -> Result<String, String> {
    let run = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().map_err(|error| format!("git: {error}"))?;
        Ok::<_, String>(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let head = run(&["rev-parse", "--short=12", "HEAD"])?;
    let changes = run(&["status", "--porcelain", "--untracked-files=no", "--", ".", ":!tests/sim-ledger.jsonl"])?;
    Ok(if changes.is_empty() { head } else { format!("{head}+changes") })
}

/// Ranges that the ledger has as passed under the same conditions.
fn done_ranges(ledger: &Path, args: &Args, commit: &str) -> Result<BTreeSet<(u64, u64)>, String> {
    let text = match std::fs::read_to_string(ledger) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(format!("cannot read the ledger {}: {error}", ledger.display())),
    };
    let mut done = BTreeSet::new();
    for (number, line) in (1..).zip(text.lines()) {
        let wrong = |error| format!("{}:{number} is no entry: {error}", ledger.display());
        let entry: Value = serde_json::from_str(line).map_err(wrong)?;
        let same = entry["commit"] == commit && entry["nodes"] == nodes_of(args) && entry["steps"] == args.steps;
        if same && entry["violations"] == 0 {
            let field = |name: &str| entry[name].as_u64().unwrap_or_default();
            done.insert((field("from"), field("seeds")));
        }
    }
    Ok(done)
}

fn append(ledger: &Path, args: &Args, work: &Work, range: (u64, u64), chunk: &Report) -> Result<(), String> {
    let entry = json!({
        "from": range.0,
        "seeds": range.1,
        "nodes": nodes_of(args),
        "steps": args.steps,
        "commit": work.commit,
        "acked": chunk.acked,
        "faults": chunk.faults.total(),
        "beyond": chunk.beyond,
        "violations": chunk.violations,
        "failing_seeds": chunk.failing,
    });
    let failed = |error| format!("cannot write the ledger {}: {error}", ledger.display());
    let mut file = OpenOptions::new().create(true).append(true).open(ledger).map_err(failed)?;
    // One write a line, so that threads do not mix theirs.
    file.write_all(format!("{entry}\n").as_bytes()).map_err(failed)
}
