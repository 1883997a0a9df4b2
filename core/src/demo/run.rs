//! The demo's steps: start, store, recall, compare, stop.

use super::measure::{Latencies, Stopwatch, brute_force};
use super::report::{Report, ShownQuery};
use super::{DemoOptions, Sample};
use crate::server::{BootError, Node, NodeConfig};
use gristmill_rpc::blocking::{Client, Ticket};
use gristmill_rpc::client::ClientError;
use gristmill_rpc::ids::GrainId;
use gristmill_rpc::schema::{Command, Grain, Operation, RecallReply, RecallRequest, WriteReply};
use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

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
    let directory = Directory::new(options.data_dir.as_deref());
    let node = Node::start(&NodeConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        io: options.io,
        cores: options.cores,
        ..NodeConfig::new(&directory.path)
    })?;
    let mut report = Report::new(node.listening(), options.data_dir.as_deref());
    let mut client = Client::connect(&node.listening().listen.to_string())?;
    store(&mut client, &sample.grains, &mut report)?;
    check_stored(&mut client, &sample.grains)?;
    ask(&mut client, sample, &mut report)?;
    compare(&mut client, &sample.queries, truth, &mut report)?;
    drop(client);
    node.stop();
    node.wait()?;
    Ok(report)
}

/// The demo's data directory; a temporary one goes when this is dropped.
struct Directory {
    path: PathBuf,
    temporary: bool,
}

impl Directory {
    fn new(kept: Option<&Path>) -> Directory {
        let temporary = || std::env::temp_dir().join(format!("gristmill-demo-{}", std::process::id()));
        Directory { path: kept.map_or_else(temporary, Path::to_path_buf), temporary: kept.is_none() }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.temporary
            && let Err(error) = std::fs::remove_dir_all(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            eprintln!("gristmill: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Stores every grain with a durable write of its own, many in flight.
fn store(client: &mut Client, grains: &[Grain], report: &mut Report) -> Result<(), DemoError> {
    let mut waiting: VecDeque<Ticket<WriteReply>> = VecDeque::new();
    let watch = Stopwatch::start();
    for grain in grains {
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
fn ask(client: &mut Client, sample: &Sample, report: &mut Report) -> Result<(), DemoError> {
    let mut latencies = Latencies::new();
    for round in 0..ROUNDS {
        for query in &sample.queries {
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
) -> Result<(), DemoError> {
    let (mut right, mut wanted) = (0, 0);
    for query in queries {
        let by_vector = RecallRequest { text: None, relation: None, limit: RECALL_AT, ..query.clone() };
        let found: BTreeSet<GrainId> = client.recall(&by_vector)?.hits.iter().map(|hit| hit.id).collect();
        let nearest = brute_force(truth, query, RECALL_AT as usize);
        right += nearest.iter().filter(|id| found.contains(id)).count();
        wanted += nearest.len();
    }
    report.compared(right, wanted);
    Ok(())
}
