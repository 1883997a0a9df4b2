//! The demo's steps: start, store, recall, compare, stop.

use super::measure::{Latencies, Stopwatch, brute_force};
use super::report::{Report, ShownQuery};
use super::{DemoOptions, Sample};
use crate::server::{BootError, Node, NodeConfig};
use gristmill_rpc::blocking::{Client, Ticket};
use gristmill_rpc::client::ClientError;
use gristmill_rpc::ids::GrainId;
use gristmill_rpc::schema::{Command, Grain, Operation, RecallReply, RecallRequest, WriteReply};
use gristmill_shardexec::random::random_u64;
use gristmill_shardexec::{Executor, ExecutorConfig, IoChoice, fs};
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// Writes in flight while storing.
const WRITES_IN_FLIGHT: usize = 256;
/// Times that every query is asked, for the latency figures.
const ROUNDS: usize = 4;
/// The k of recall@k.
const RECALL_AT: u32 = 10;

/// Why a demo did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// The node did not start or stop.
    #[error(transparent)]
    Node(#[from] BootError),
    /// There is no temporary directory.
    #[error("cannot create a directory in {within}: {source}; set TMPDIR, or name one with --data-dir", within = within.display())]
    Directory {
        /// Where.
        within: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It was told to end early.
    #[error("interrupted")]
    Interrupted,
    /// A request failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The store answered, but not with what was stored.
    #[error("{what}: expected {expected}, found {found}")]
    Wrong {
        /// What was checked.
        what: &'static str,
        /// What should have come.
        expected: usize,
        /// What came.
        found: usize,
    },
}

/// Runs the demo and reports what this run measured.
pub fn run(sample: &Sample, options: &DemoOptions) -> Result<Report, DemoError> {
    run_against(sample, &sample.grains, options)
}

/// As [`run`], but takes what is nearest to a query from `truth` instead of from what is stored.
pub fn run_against(sample: &Sample, truth: &[Grain], options: &DemoOptions) -> Result<Report, DemoError> {
    // Goes after the node has stopped, whatever the outcome.
    let directory = Directory::new(options.data_dir.as_deref())?;
    let node = Node::start(&NodeConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        io: options.io,
        cores: options.cores,
        ..NodeConfig::new(&directory.path)
    })?;
    let report = steps(&node, sample, truth, options);
    node.stop();
    let stopped = node.wait();
    let report = report?;
    stopped?;
    Ok(report)
}

fn steps(node: &Node, sample: &Sample, truth: &[Grain], options: &DemoOptions) -> Result<Report, DemoError> {
    let mut report = Report::new(node.listening(), options.data_dir.as_deref());
    let mut client = Client::connect(&node.listening().listen.to_string())?;
    let go_on = || if options.interrupted.load(Ordering::Relaxed) { Err(DemoError::Interrupted) } else { Ok(()) };
    store(&mut client, &sample.grains, &mut report, &go_on)?;
    check_stored(&mut client, &sample.grains)?;
    ask(&mut client, sample, &mut report, &go_on)?;
    compare(&mut client, &sample.queries, truth, &mut report, &go_on)?;
    Ok(report)
}

/// Asked before each request: an error ends the demo.
type GoOn<'a> = &'a dyn Fn() -> Result<(), DemoError>;

/// The demo's data directory; a temporary one goes when this is dropped.
struct Directory {
    path: PathBuf,
    temporary: bool,
}

impl Directory {
    fn new(kept: Option<&Path>) -> Result<Directory, DemoError> {
        let Some(kept) = kept else { return Ok(Directory { path: create_temporary()?, temporary: true }) };
        Ok(Directory { path: kept.to_path_buf(), temporary: false })
    }
}

/// Creates a directory under a name that nobody could have taken before.
#[expect(clippy::disallowed_methods, reason = "this is what makes a name in it unpredictable")]
fn create_temporary() -> Result<PathBuf, DemoError> {
    let within = std::env::temp_dir();
    let failed = |source| DemoError::Directory { within: within.clone(), source };
    let config = ExecutorConfig { io: IoChoice::Posix, ..ExecutorConfig::default() };
    let mut executor = Executor::start(config).map_err(|error| failed(io::Error::other(error)))?;
    executor.block_on(async {
        let path = within.join(format!("gristmill-demo-{:016x}{:016x}", random_u64(), random_u64()));
        // An error if it exists: it would be somebody else's.
        fs::create_dir(&path).await.map_err(failed)?;
        Ok(path)
    })
}

impl Drop for Directory {
    #[expect(clippy::disallowed_methods, reason = "no core runs any more")]
    fn drop(&mut self) {
        if self.temporary
            && let Err(error) = std::fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            eprintln!("gristmill: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Stores every grain with a durable write of its own, many in flight.
fn store(client: &mut Client, grains: &[Grain], report: &mut Report, go_on: GoOn<'_>) -> Result<(), DemoError> {
    let mut waiting: VecDeque<Ticket<WriteReply>> = VecDeque::new();
    let watch = Stopwatch::start();
    for grain in grains {
        go_on()?;
        if waiting.len() >= WRITES_IN_FLIGHT {
            confirm(client, waiting.pop_front())?;
        }
        let command = Command { operations: vec![Operation::PutGrain { grain: grain.clone() }] };
        waiting.push_back(client.submit(&command)?);
    }
    while !waiting.is_empty() {
        confirm(client, waiting.pop_front())?;
    }
    report.stored(grains.len(), watch.elapsed());
    Ok(())
}

fn confirm(client: &mut Client, ticket: Option<Ticket<WriteReply>>) -> Result<(), DemoError> {
    let ticket = ticket.expect("called with writes waiting");
    let reply = client.wait(&ticket)?;
    assert!(reply.applied, "an unconditional write applies");
    Ok(())
}

/// Reads one grain of each namespace back and compares it.
fn check_stored(client: &mut Client, grains: &[Grain]) -> Result<(), DemoError> {
    let mut seen = BTreeSet::new();
    for grain in grains.iter().filter(|grain| seen.insert(grain.namespace.as_str())) {
        let found = client.get_grain(&grain.namespace, grain.id)?;
        let same = found.is_some_and(|(found, _)| found == *grain);
        if !same {
            return Err(DemoError::Wrong { what: "grains read back as stored", expected: 1, found: 0 });
        }
    }
    Ok(())
}

/// Asks every query with all its legs, several times, and measures.
fn ask(client: &mut Client, sample: &Sample, report: &mut Report, go_on: GoOn<'_>) -> Result<(), DemoError> {
    let mut latencies = Latencies::new();
    for round in 0..ROUNDS {
        for query in &sample.queries {
            go_on()?;
            let watch = Stopwatch::start();
            let reply = client.recall(query)?;
            latencies.record(watch.elapsed());
            if round == 0 {
                check_hits(&reply)?;
                report.answered(ShownQuery::new(query, &reply));
            }
        }
    }
    report.latencies(&latencies);
    Ok(())
}

fn check_hits(reply: &RecallReply) -> Result<(), DemoError> {
    if reply.hits.is_empty() {
        return Err(DemoError::Wrong { what: "hits of a query over stored data", expected: 1, found: 0 });
    }
    Ok(())
}

/// Asks every query by its vector alone and compares with brute force in f32.
fn compare(
    client: &mut Client,
    queries: &[RecallRequest],
    truth: &[Grain],
    report: &mut Report,
    go_on: GoOn<'_>,
) -> Result<(), DemoError> {
    let (mut right, mut wanted) = (0, 0);
    for query in queries {
        go_on()?;
        let by_vector = RecallRequest { text: None, relation: None, limit: RECALL_AT, ..query.clone() };
        let found: BTreeSet<GrainId> = client.recall(&by_vector)?.hits.iter().map(|hit| hit.id).collect();
        let nearest = brute_force(truth, query, RECALL_AT as usize);
        right += nearest.iter().filter(|id| found.contains(id)).count();
        wanted += nearest.len();
    }
    report.compared(right, wanted);
    Ok(())
}
