//! The registry: who measures what on a core.

use super::events::{Event, EventRing};
use super::names::{self, Definition, Kind, Unit};
use super::snapshot::{Series, Snapshot, Value};
use crate::shard::superblock::{LOGS_MAX, SHARDS_MAX};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Series of one core at the most: every metric once for each shard, each log and the core itself. Labels name these and
/// never users' data, so passing this is a defect of ours.
pub const SERIES_MAX: usize = names::ALL.len() * (SHARDS_MAX as usize + LOGS_MAX as usize + 1);
/// Longest duration that a histogram tells apart, in microseconds; longer ones count as this.
const HISTOGRAM_MAX_US: u64 = 60_000_000;
/// Largest size that a histogram tells apart.
const HISTOGRAM_MAX_COUNT: u64 = 1 << 20;
/// A histogram's values are exact to about one percent.
const HISTOGRAM_DIGITS: u8 = 2;

/// What tells series of one metric apart: name and value, few and short.
pub type Labels = BTreeMap<&'static str, String>;

/// Only grows.
#[derive(Debug, Clone, Default)]
pub struct Counter(Rc<Cell<u64>>);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, n: u64) {
        self.0.set(self.0.get().wrapping_add(n));
    }

    /// The value.
    pub fn value(&self) -> u64 {
        self.0.get()
    }
}

/// Goes up and down.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Rc<Cell<i64>>);

impl Gauge {
    /// Replaces the value.
    pub fn set(&self, value: i64) {
        self.0.set(value);
    }

    /// Changes the value.
    pub fn add(&self, change: i64) {
        self.0.set(self.0.get().wrapping_add(change));
    }

    /// The value.
    pub fn value(&self) -> i64 {
        self.0.get()
    }
}

/// A distribution, exact to about one percent (HdrHistogram).
#[derive(Debug, Clone)]
pub struct Histogram(Rc<RefCell<hdrhistogram::Histogram<u64>>>);

impl Histogram {
    fn new(unit: Unit) -> Histogram {
        let max = if unit == Unit::Microseconds { HISTOGRAM_MAX_US } else { HISTOGRAM_MAX_COUNT };
        let histogram = hdrhistogram::Histogram::new_with_bounds(1, max, HISTOGRAM_DIGITS);
        Histogram(Rc::new(RefCell::new(histogram.expect("constant bounds are valid"))))
    }

    /// One more value. Values beyond the range count as its end.
    pub fn record(&self, value: u64) {
        self.record_many(value, 1);
    }

    /// The same value several times.
    pub fn record_many(&self, value: u64, times: u64) {
        self.0.borrow_mut().saturating_record_n(value, times);
    }

    /// A duration, in the microseconds that its definition counts in.
    pub fn record_time(&self, took: Duration) {
        self.record(micros(took));
    }

    /// The same duration several times.
    pub fn record_time_many(&self, took: Duration, times: u64) {
        self.record_many(micros(took), times);
    }
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

type Observer = Box<dyn Fn() -> i64>;

enum Instrument {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
    Observed(Observer),
}

struct Inner {
    core: u16,
    series: BTreeMap<(&'static str, Labels), (&'static Definition, Instrument)>,
    events: EventRing,
}

/// Metrics and events of one core. A clone is the same registry.
#[derive(Clone)]
pub struct Registry(Rc<RefCell<Inner>>);

impl Registry {
    /// An empty registry for a core.
    pub fn new(core: u16) -> Registry {
        Registry(Rc::new(RefCell::new(Inner { core, series: BTreeMap::new(), events: EventRing::default() })))
    }

    /// A counter. The same definition and labels give the same counter, so a part that restarts counts on.
    ///
    /// # Panics
    /// If the definition is of another kind, or there are over [`SERIES_MAX`] series.
    pub fn counter(&self, definition: &'static Definition, labels: Labels) -> Counter {
        let new = || Instrument::Counter(Counter::default());
        self.instrument(definition, Kind::Counter, labels, new, |instrument| match instrument {
            Instrument::Counter(counter) => Some(counter.clone()),
            _ => None,
        })
    }

    /// A gauge, as [`Registry::counter`].
    pub fn gauge(&self, definition: &'static Definition, labels: Labels) -> Gauge {
        let new = || Instrument::Gauge(Gauge::default());
        self.instrument(definition, Kind::Gauge, labels, new, |instrument| match instrument {
            Instrument::Gauge(gauge) => Some(gauge.clone()),
            _ => None,
        })
    }

    /// A histogram, as [`Registry::counter`]. About 20 KiB.
    pub fn histogram(&self, definition: &'static Definition, labels: Labels) -> Histogram {
        let new = || Instrument::Histogram(Histogram::new(definition.unit));
        self.instrument(definition, Kind::Histogram, labels, new, |instrument| match instrument {
            Instrument::Histogram(histogram) => Some(histogram.clone()),
            _ => None,
        })
    }

    /// A counter or gauge whose value somebody else keeps: read at each snapshot. Replaces an earlier one of the same
    /// definition and labels, so a part that restarts is read anew. It must not call the registry.
    pub fn observe(&self, definition: &'static Definition, labels: Labels, read: impl Fn() -> i64 + 'static) {
        assert_ne!(definition.kind, Kind::Histogram, "{}: only single values can be observed", definition.name);
        let observed = (definition, Instrument::Observed(Box::new(read)));
        let series = &mut self.0.borrow_mut().series;
        let old = series.insert((definition.name, labels), observed);
        let replaces = old.is_none_or(|(_, old)| matches!(old, Instrument::Observed(_)));
        assert!(replaces, "{} is measured by an instrument", definition.name);
        assert!(series.len() <= SERIES_MAX, "over SERIES_MAX series");
    }

    /// Notes an event, at the wall clock's time.
    pub fn emit(&self, at_ms: u64, event: Event) {
        let inner = &mut *self.0.borrow_mut();
        inner.events.push(inner.core, at_ms, event);
    }

    /// Everything at this moment.
    pub fn snapshot(&self) -> Snapshot {
        let inner = self.0.borrow();
        let series = inner.series.iter().map(|((name, labels), (definition, instrument))| Series {
            name,
            kind: definition.kind,
            unit: definition.unit,
            labels: labels.clone(),
            value: match instrument {
                Instrument::Counter(counter) => Value::Single(i64::try_from(counter.value()).unwrap_or(i64::MAX)),
                Instrument::Gauge(gauge) => Value::Single(gauge.value()),
                Instrument::Histogram(histogram) => Value::Distribution(histogram.0.borrow().clone()),
                Instrument::Observed(read) => Value::Single(read()),
            },
        });
        Snapshot { series: series.collect(), events: inner.events.records(), event_counts: inner.events.counts() }
    }

    fn instrument<T>(
        &self,
        definition: &'static Definition,
        kind: Kind,
        labels: Labels,
        new: impl FnOnce() -> Instrument,
        handle: impl FnOnce(&Instrument) -> Option<T>,
    ) -> T {
        assert_eq!(definition.kind, kind, "{} is of another kind", definition.name);
        let series = &mut self.0.borrow_mut().series;
        let entry = series.entry((definition.name, labels)).or_insert_with(|| (definition, new()));
        let handle = handle(&entry.1).unwrap_or_else(|| panic!("{} is observed", definition.name));
        assert!(series.len() <= SERIES_MAX, "over SERIES_MAX series");
        handle
    }
}

#[cfg(test)]
mod tests {
    use super::super::names::{APPLY_BATCH_SIZE, CURRENT_TERM, PROPOSALS, REQUEST_LATENCY, STATE_MEMORY};
    use super::*;

    fn shard(number: u32) -> Labels {
        Labels::from([("shard", number.to_string())])
    }

    fn single(snapshot: &Snapshot, name: &str, labels: &Labels) -> i64 {
        match &snapshot.find(name, labels).expect("registered").value {
            Value::Single(value) => *value,
            Value::Distribution(_) => panic!("{name} is a distribution"),
        }
    }

    #[test]
    fn instruments_are_cells_shared_by_name_and_labels() {
        let registry = Registry::new(0);
        let counter = registry.counter(PROPOSALS, shard(1));
        counter.increment();
        registry.counter(PROPOSALS, shard(1)).add(4);
        registry.counter(PROPOSALS, shard(2)).add(100);
        let gauge = registry.gauge(CURRENT_TERM, shard(1));
        gauge.set(7);
        gauge.add(-2);
        let snapshot = registry.snapshot();
        assert_eq!(single(&snapshot, "proposals_total", &shard(1)), 5);
        assert_eq!(single(&snapshot, "proposals_total", &shard(2)), 100);
        assert_eq!(single(&snapshot, "current_term", &shard(1)), 5);
        assert_eq!((counter.value(), gauge.value()), (5, 5));
    }

    /// There was room for some two thousand shards on a core, and a node with more aborted at its start.
    #[test]
    fn a_core_that_has_every_shard_shows_them_all() {
        let registry = Registry::new(0);
        let counters = || names::ALL.iter().filter(|definition| definition.kind == Kind::Counter);
        for number in 0..SHARDS_MAX {
            for definition in counters() {
                registry.counter(definition, shard(number)).increment();
            }
        }
        let expected = counters().count() * SHARDS_MAX as usize;
        assert!(expected > 1 << 16, "vacuous: {expected} series");
        assert_eq!(registry.snapshot().series.len(), expected);
    }

    #[test]
    fn observed_values_are_read_when_asked_for() {
        let registry = Registry::new(0);
        let bytes = Rc::new(Cell::new(1));
        let read = Rc::clone(&bytes);
        registry.observe(STATE_MEMORY, shard(1), move || read.get());
        bytes.set(42);
        assert_eq!(single(&registry.snapshot(), "state_memory_bytes", &shard(1)), 42);
        registry.observe(STATE_MEMORY, shard(1), || 43);
        assert_eq!(single(&registry.snapshot(), "state_memory_bytes", &shard(1)), 43);
    }

    #[test]
    fn histograms_keep_the_tail_and_saturate() {
        let registry = Registry::new(0);
        let histogram = registry.histogram(REQUEST_LATENCY, Labels::new());
        (1..=1000).for_each(|value| histogram.record(value));
        histogram.record_time_many(Duration::MAX, 2);
        let snapshot = registry.snapshot();
        let found = snapshot.find("request_latency_us", &Labels::new()).expect("registered");
        let Value::Distribution(histogram) = &found.value else { panic!("a distribution") };
        assert_eq!(histogram.len(), 1002);
        let p99 = histogram.value_at_quantile(0.99);
        assert!((980..=1000).contains(&p99), "exact to about one percent: {p99}");
        assert!(histogram.max() >= HISTOGRAM_MAX_US);
    }

    #[test]
    #[should_panic(expected = "current_term is of another kind")]
    fn a_kind_is_not_changed() {
        Registry::new(0).counter(CURRENT_TERM, Labels::new());
    }

    #[test]
    #[should_panic(expected = "measured by an instrument")]
    fn an_instrument_is_not_taken_over_by_an_observer() {
        let registry = Registry::new(0);
        registry.gauge(STATE_MEMORY, Labels::new());
        registry.observe(STATE_MEMORY, Labels::new(), || 1);
    }

    #[test]
    #[should_panic(expected = "only single values")]
    fn distributions_are_not_observed() {
        Registry::new(0).observe(APPLY_BATCH_SIZE, Labels::new(), || 1);
    }
}
