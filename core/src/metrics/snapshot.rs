//! What a registry said at one moment: plain data that crosses cores and becomes JSON.

use super::events::EventRecord;
use super::names::{Kind, Unit};
use super::registry::Labels;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

/// A metric's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Of a counter or a gauge.
    Single(i64),
    /// Of a histogram.
    Distribution(hdrhistogram::Histogram<u64>),
}

impl Serialize for Value {
    /// A number, or an object with count, mean, percentiles and extremes.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let histogram = match self {
            Value::Single(value) => return serializer.serialize_i64(*value),
            Value::Distribution(histogram) => histogram,
        };
        let mut map = serializer.serialize_map(Some(7))?;
        map.serialize_entry("count", &histogram.len())?;
        map.serialize_entry("mean", &histogram.mean())?;
        map.serialize_entry("min", &histogram.min())?;
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
            map.serialize_entry(name, &histogram.value_at_quantile(quantile))?;
        }
        map.serialize_entry("max", &histogram.max())?;
        map.end()
    }
}

/// One metric with one set of labels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Series {
    /// The metric.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// What it counts in.
    pub unit: Unit,
    /// Which of its series.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// The value.
    pub value: Value,
}

/// Everything that a registry knew at one moment.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Snapshot {
    /// By name, then labels.
    #[serde(rename = "metrics")]
    pub series: Vec<Series>,
    /// By time, then core and number.
    pub events: Vec<EventRecord>,
    /// How many there were of each kind, those no longer kept among them.
    pub event_counts: BTreeMap<&'static str, u64>,
}

impl Snapshot {
    /// The series of a name and labels.
    pub fn find(&self, name: &str, labels: &Labels) -> Option<&Series> {
        self.series.iter().find(|series| series.name == name && series.labels == *labels)
    }

    /// The sum of a counter or gauge over all its labels; `None` where it has no series.
    pub fn total(&self, name: &str) -> Option<i64> {
        let values = self.series.iter().filter(|series| series.name == name).map(|series| match &series.value {
            Value::Single(value) => *value,
            Value::Distribution(histogram) => histogram.len() as i64,
        });
        values.reduce(i64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::super::events::Event;
    use super::super::names::{APPLIED_INDEX, REQUEST_LATENCY, REQUESTS};
    use super::super::registry::Registry;
    use super::*;
    use serde_json::json;

    fn core(number: u16) -> Registry {
        let registry = Registry::new(number);
        registry.counter(REQUESTS, Labels::new()).add(u64::from(number) + 1);
        registry.gauge(APPLIED_INDEX, Labels::from([("shard", number.to_string())])).set(10);
        registry.histogram(REQUEST_LATENCY, Labels::new()).record(u64::from(number) * 50 + 1);
        registry.emit(100 - u64::from(number), Event::ClockDriftRefused { ahead_ms: 1 });
        registry
    }

    #[test]
    fn a_total_is_over_all_labels() {
        let registry = core(1);
        registry.gauge(APPLIED_INDEX, Labels::from([("shard", "7".to_owned())])).set(5);
        let snapshot = registry.snapshot();
        assert_eq!((snapshot.total("applied_index"), snapshot.total("requests_total")), (Some(15), Some(2)));
        assert_eq!(snapshot.total("request_latency_us"), Some(1), "a distribution's total is its count");
        assert_eq!(snapshot.total("unknown"), None);
    }

    #[test]
    fn json_is_for_programs() {
        let value = serde_json::to_value(core(1).snapshot()).expect("plain data");
        assert_eq!(
            value,
            json!({
                "metrics": [
                    {"name": "applied_index", "kind": "gauge", "unit": "count", "labels": {"shard": "1"}, "value": 10},
                    {"name": "request_latency_us", "kind": "histogram", "unit": "microseconds", "value":
                        {"count": 1, "mean": 51.0, "min": 51, "p50": 51, "p99": 51, "p999": 51, "max": 51}},
                    {"name": "requests_total", "kind": "counter", "unit": "count", "value": 2},
                ],
                "events": [{"number": 0, "core": 1, "at_ms": 99, "event": "clock_drift_refused", "ahead_ms": 1}],
                "event_counts": {"clock_drift_refused": 1},
            })
        );
    }

    #[test]
    fn snapshots_cross_cores() {
        fn is_send<T: Send>(_: &T) {}
        is_send(&core(0).snapshot());
    }
}
