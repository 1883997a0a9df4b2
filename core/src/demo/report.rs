//! What a demo found, as text and as JSON. Every figure comes from the run that it reports.

use super::measure::Latencies;
use crate::cli::show::hit_line;
use crate::server::Listening;
use gristmill_rpc::schema::{RecallReply, RecallRequest, SearchHit};
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Hits printed for a query.
const HITS_SHOWN: usize = 5;

/// The figures of one demo.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Grains stored.
    pub grains: usize,
    /// Queries asked.
    pub queries: usize,
    /// Of the true ten nearest vectors of each query, the share that the vector leg found.
    pub vector_recall_at_10: f64,
    /// Latency of a recall with all its legs, over TCP, in microseconds: median.
    pub recall_p50_us: u64,
    /// The same, 99th percentile.
    pub recall_p99_us: u64,
    /// The same, 99.9th percentile.
    pub recall_p999_us: u64,
    /// Acknowledged, so durable, writes in a second.
    pub durable_writes_per_s: f64,
    /// Hits to which the text leg contributed.
    pub hits_by_text: usize,
    /// Hits to which the vector leg contributed.
    pub hits_by_vector: usize,
    /// Hits to which the relation leg contributed.
    pub hits_by_relation: usize,
    /// `uring` or `posix`.
    pub io_driver: &'static str,
    /// Cores of the node.
    pub cores: usize,
    /// Shards of the node.
    pub shards: u32,
    /// Where the data was kept; `None` for a temporary directory.
    pub data_dir: Option<PathBuf>,
    #[serde(skip)]
    shown: Vec<ShownQuery>,
}

/// A query and its best hits.
#[derive(Debug, Clone)]
pub(super) struct ShownQuery {
    text: String,
    asked: String,
    hits: Vec<SearchHit>,
}

impl ShownQuery {
    pub(super) fn new(query: &RecallRequest, reply: &RecallReply) -> ShownQuery {
        let relation = query.relation.as_ref().map(|pattern| format!(", {} {}", pattern.predicate, pattern.object));
        ShownQuery {
            text: query.text.clone().unwrap_or_default(),
            asked: format!("{}{}", query.namespace, relation.unwrap_or_default()),
            hits: reply.hits.clone(),
        }
    }
}

impl Report {
    pub(super) fn new(listening: &Listening, data_dir: Option<&Path>) -> Report {
        Report {
            io_driver: listening.io_driver,
            cores: listening.cores.len(),
            shards: listening.shards,
            data_dir: data_dir.map(Path::to_path_buf),
            ..Report::default()
        }
    }

    pub(super) fn stored(&mut self, grains: usize, took: Duration) {
        self.grains = grains;
        self.durable_writes_per_s = (grains as f64 / took.as_secs_f64()).round();
    }

    pub(super) fn answered(&mut self, query: ShownQuery) {
        self.queries += 1;
        for hit in &query.hits {
            self.hits_by_text += usize::from(hit.text.is_some());
            self.hits_by_vector += usize::from(hit.vector.is_some());
            self.hits_by_relation += usize::from(hit.relation.is_some());
        }
        self.shown.push(query);
    }

    pub(super) fn latencies(&mut self, latencies: &Latencies) {
        self.recall_p50_us = latencies.us_at(0.5);
        self.recall_p99_us = latencies.us_at(0.99);
        self.recall_p999_us = latencies.us_at(0.999);
    }

    pub(super) fn compared(&mut self, right: usize, wanted: usize) {
        self.vector_recall_at_10 = right as f64 / wanted.max(1) as f64;
    }

    /// The report for people, with the first `show` queries.
    pub(crate) fn to_text(&self, show: usize) -> String {
        let mut out = String::new();
        for query in self.shown.iter().take(show) {
            line(&mut out, &format!("? {}  ({})", query.text, query.asked));
            for hit in query.hits.iter().take(HITS_SHOWN) {
                line(&mut out, &format!("  {}", hit_line(hit)));
            }
            line(&mut out, "");
        }
        self.figures(&mut out);
        self.next_steps(&mut out);
        out
    }

    fn figures(&self, out: &mut String) {
        let (cores, shards, driver) = (self.cores, self.shards, self.io_driver);
        line(out, &format!("{} grains stored through {cores} cores, {shards} shards, I/O by {driver}", self.grains));
        line(out, &format!("durable writes   {:.0} per second", self.durable_writes_per_s));
        let (p50, p99, p999) = (self.recall_p50_us, self.recall_p99_us, self.recall_p999_us);
        line(out, &format!("hybrid recall    p50 {p50} us, p99 {p99} us, p99.9 {p999} us ({} queries)", self.queries));
        line(
            out,
            &format!("recall@10        {:.4} of the vector leg, against brute force in f32", self.vector_recall_at_10),
        );
        let (text, vector, relation) = (self.hits_by_text, self.hits_by_vector, self.hits_by_relation);
        line(out, &format!("hits by leg      text {text}, vector {vector}, relation {relation}"));
        line(out, "");
    }

    fn next_steps(&self, out: &mut String) {
        let directory = self.data_dir.as_deref().unwrap_or(Path::new("./data")).display();
        line(out, "Go on:");
        line(out, &format!("  gristmill serve --data-dir {directory}"));
        line(out, "  gristmill put --ns notes --subject bread --text 'made of flour and water' --relation is_a=food");
        line(out, "  gristmill recall --ns notes --text flour --relation is_a=food");
        line(out, "From Rust (crate gristmill-rpc, feature blocking; feature tokio has the same calls, async):");
        line(out, "  let mut client = gristmill_rpc::blocking::Client::connect(\"127.0.0.1:7171\")?;");
        line(out, "  client.put(\"notes\", b\"key\", b\"value\")?;");
        line(out, "  let value = client.get(\"notes\", b\"key\")?;");
    }
}

fn line(out: &mut String, text: &str) {
    writeln!(out, "{text}").expect("a String takes everything");
}
