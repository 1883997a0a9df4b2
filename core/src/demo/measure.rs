//! Time and truth for the demo: a stopwatch, a latency histogram, and brute force in f32.

use gristmill_rpc::ids::GrainId;
use gristmill_rpc::schema::{Grain, RecallRequest};
use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

/// Measures real time outside of any core.
pub(super) struct Stopwatch(Instant);

impl Stopwatch {
    #[expect(clippy::disallowed_methods, reason = "the demo measures the node from outside, as a client would")]
    pub(super) fn start() -> Stopwatch {
        Stopwatch(Instant::now())
    }

    #[expect(clippy::disallowed_methods, reason = "as above")]
    pub(super) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Latencies from 1 µs to a minute with three significant digits.
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(super) fn new() -> Latencies {
        Latencies(Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are in order"))
    }

    pub(super) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    /// The latency in microseconds that a share of all did not pass.
    pub(super) fn us_at(&self, quantile: f64) -> u64 {
        self.0.value_at_quantile(quantile)
    }
}

/// The ids of the `limit` grains of the query's namespace with the largest cosine similarity, computed in f32 over all.
pub(super) fn brute_force(grains: &[Grain], query: &RecallRequest, limit: usize) -> Vec<GrainId> {
    let wanted = query.vector.as_deref().unwrap_or_default();
    let cosine = |vector: &[f32]| {
        let dot: f32 = vector.iter().zip(wanted).map(|(a, b)| a * b).sum();
        let norm: f32 = vector.iter().map(|a| a * a).sum::<f32>().sqrt();
        if norm > 0.0 { dot / norm } else { 0.0 }
    };
    let mut scored: Vec<(f32, GrainId)> = grains
        .iter()
        .filter(|grain| grain.namespace == query.namespace)
        .filter_map(|grain| grain.vector.as_deref().map(|vector| (cosine(vector), grain.id)))
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    scored.into_iter().take(limit).map(|(_, id)| id).collect()
}
