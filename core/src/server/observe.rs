//! What a core shows of itself: its counters, its executor, its logs; and the events that these tell of.

use crate::metrics::{Counter, Event, Gauge, Histogram, Labels, Registry, names};
use crate::shard::wall_ms;
use crate::shard::watch::PROGRESS_PAUSE;
use gristmill_shardexec::time::Instant;
use gristmill_shardexec::{Class, CoreId, Incident, executor_stats, next_incident, spawn, tell};
use gristmill_wal::{Incident as LogIncident, LogNumber, Progress, RecoveryReport, Wal, WalStats};
use std::time::Duration;

/// What a core counts of its clients.
pub(crate) struct CoreMetrics {
    pub(super) connections: Gauge,
    pub(super) accepted: Counter,
    pub(super) refused: Counter,
    pub(super) bad_frames: Counter,
    pub(super) requests: Counter,
    pub(super) forwarded: Counter,
    pub(super) errors: Counter,
    latency: Histogram,
    recall_latency: Histogram,
}

impl CoreMetrics {
    pub(super) fn register(registry: &Registry, core: CoreId) -> CoreMetrics {
        // They would say nothing of the node if they were added up over cores, so each carries its core.
        let labels = || Labels::from([("core", core.0.to_string())]);
        registry.observe(names::STALLS, labels(), || clamp(executor_stats().stalls));
        registry.observe(names::STALL_MAX, labels(), || clamp(micros(executor_stats().stall_longest)));
        registry.observe(names::TASK_PANICS, labels(), || clamp(executor_stats().panics));
        let counter = |definition| registry.counter(definition, Labels::new());
        CoreMetrics {
            connections: registry.gauge(names::CONNECTIONS, Labels::new()),
            accepted: counter(names::CONNECTIONS_ACCEPTED),
            refused: counter(names::CONNECTIONS_REFUSED),
            bad_frames: counter(names::BAD_FRAMES),
            requests: counter(names::REQUESTS),
            forwarded: counter(names::FORWARDED_REQUESTS),
            errors: counter(names::REQUEST_ERRORS),
            latency: registry.histogram(names::REQUEST_LATENCY, Labels::new()),
            recall_latency: registry.histogram(names::RECALL_LATENCY, Labels::new()),
        }
    }

    /// A request's answer goes out.
    pub(super) fn answered(&self, took: Duration, recall: bool) {
        self.latency.record_time(took);
        if recall {
            self.recall_latency.record_time(took);
        }
    }
}

/// Turns the executor's incidents into events, as they happen.
pub(super) fn watch_executor(registry: &Registry) {
    let registry = registry.clone();
    spawn(Class::Background, "executor incidents", async move {
        loop {
            let event = match next_incident().await {
                Incident::Stall { task, held, .. } => {
                    Event::StallDetected { task: task.to_owned(), duration_us: micros(held) }
                }
                Incident::Panic { task, message } => {
                    tell(format_args!("gristmill: task {task} panicked: {message}"));
                    Event::TaskPanicked { task: task.to_owned(), message }
                }
                Incident::Fallback { driver, reason } => Event::DriverFallback { driver: driver.to_owned(), reason },
                _ => continue,
            };
            registry.emit(wall_ms(), event);
        }
    });
}

/// Says on stderr how far a log is whose opening takes long.
pub(super) fn tell_progress(log: LogNumber) -> impl FnMut(Progress) {
    let mut told = Instant::now();
    move |progress| {
        let now = Instant::now();
        if now - told >= PROGRESS_PAUSE && progress.segments_done < progress.segments_total {
            told = now;
            tell(format_args!(
                "gristmill: {log}: segment {} of {} replayed, {} records",
                progress.segments_done, progress.segments_total, progress.records
            ));
        }
    }
}

/// Shows a log that was opened, what was found there, and what happens to it from now on.
pub(super) fn observe_log(registry: &Registry, log: LogNumber, wal: &Wal, report: &RecoveryReport) {
    let labels = || Labels::from([("log", log.0.to_string())]);
    registry.counter(names::WAL_ENTRIES_REPLAYED, labels()).add(report.entries);
    let first = report.last_lsn.0;
    let observe = |definition, read: fn(&WalStats, u64) -> u64| {
        let wal = wal.clone();
        registry.observe(definition, labels(), move || clamp(read(&wal.stats(), first)));
    };
    observe(names::WAL_APPENDS, |stats, first| stats.last_lsn.0 - first);
    observe(names::WAL_BATCHES, |stats, _| stats.batches);
    observe(names::WAL_BYTES, |stats, _| stats.batch_bytes);
    observe(names::STALE_TOKENS_REFUSED, |stats, _| stats.stale_tokens);
    observe(names::WAL_UNPREPARED, |stats, _| u64::from(stats.unprepared));
    observe(names::CORRUPTION_EVENTS, |stats, _| stats.damaged_reads);
    let latency = registry.histogram(names::WAL_SYNC_LATENCY, labels());
    wal.observe_writes(move |took| latency.record_time(took));
    if let Some(torn) = &report.torn {
        let path = torn.path.display().to_string();
        tell(format_args!(
            "gristmill: {path} ended in unacknowledged writes: cut at offset {} ({})",
            torn.offset, torn.damage
        ));
        let cut =
            Event::TornTailCut { log: log.0, segment: path, offset: torn.offset, dropped_bytes: torn.bytes_zeroed };
        registry.emit(wall_ms(), cut);
    }
    spawn(Class::Background, "log incidents", watch_log(registry.clone(), log, wal.clone()));
}

/// Turns a log's incidents into events until it has stopped.
async fn watch_log(registry: Registry, log: LogNumber, wal: Wal) {
    while let Some(incident) = wal.next_incident().await {
        if let Some(event) = event_of(log, incident) {
            registry.emit(wall_ms(), event);
        }
    }
}

/// The event that a log's incident is; what takes the log out of service is told on stderr, too.
fn event_of(log: LogNumber, incident: LogIncident) -> Option<Event> {
    let event = match incident {
        LogIncident::StaleToken { group, have, got } => Event::StaleTokenRefused {
            shard: u32::try_from(group.0).expect("a shard's group has the shard's number"),
            have: u64::from(have.term()),
            got: u64::from(got.term()),
        },
        LogIncident::Damaged { path, damage } => Event::CorruptionFound {
            log: log.0,
            segment: damage.segment.0,
            offset: damage.offset,
            detail: format!("{}: {damage}", path.display()),
        },
        LogIncident::Failed { reason } => {
            tell(format_args!("gristmill: {log} takes no more writes: {reason}"));
            Event::LogFailed { log: log.0, reason }
        }
        LogIncident::Unprepared { reason } => {
            tell(format_args!("gristmill: {log} cannot prepare its next segment and tries again: {reason}"));
            Event::LogUnprepared { log: log.0, reason }
        }
        _ => return None,
    };
    Some(event)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gristmill_shardexec::time::sleep;
    use gristmill_shardexec::{Executor, ExecutorConfig, IoChoice};
    use gristmill_wal::{AppendEntry, FencingToken, GroupId, LogPosition, Vote, WalOptions};

    fn on_executor<F: Future>(future: F) -> F::Output {
        let config = ExecutorConfig { io: IoChoice::Posix, ..ExecutorConfig::default() };
        Executor::start(config).expect("an executor starts").block_on(future)
    }

    /// Waits until something holds that other tasks are about to bring about.
    async fn until(mut holds: impl FnMut() -> bool) {
        for _ in 0..10_000 {
            if holds() {
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
        panic!("it never came to hold");
    }

    #[test]
    fn stalls_and_panics_of_tasks_become_figures_and_events() {
        on_executor(async {
            let registry = Registry::new(0);
            CoreMetrics::register(&registry, CoreId(0));
            watch_executor(&registry);
            spawn(Class::Request, "broken", async { panic!("on purpose") }).await.expect_err("it panicked");
            let hog = spawn(Class::Request, "hog", async {
                let began = Instant::now();
                while Instant::now() - began < Duration::from_millis(2) {}
            });
            hog.await.expect("it ends");
            until(|| registry.snapshot().event_counts.len() == 2).await;
            let snapshot = registry.snapshot();
            assert_eq!(snapshot.total("task_panics_total"), Some(1));
            assert!(snapshot.total("stalls_total") >= Some(1) && snapshot.total("stall_us_max") >= Some(2000));
            let events: Vec<_> = snapshot.events.into_iter().map(|record| record.event).collect();
            let panicked = Event::TaskPanicked { task: "broken".into(), message: "on purpose".into() };
            assert!(events.contains(&panicked), "{events:?}");
            let stalled = |event: &Event| matches!(event, Event::StallDetected { task, .. } if task == "hog");
            assert!(events.iter().any(stalled), "{events:?}");
        });
    }

    /// It was told on stderr only, where `status` does not look.
    #[test]
    fn a_log_that_cannot_go_on_becomes_an_event() {
        on_executor(async {
            let reason = || "no file handles".to_owned();
            let event = event_of(LogNumber(3), LogIncident::Unprepared { reason: reason() });
            assert_eq!(event, Some(Event::LogUnprepared { log: 3, reason: reason() }));
            let event = event_of(LogNumber(3), LogIncident::Failed { reason: reason() });
            assert_eq!(event, Some(Event::LogFailed { log: 3, reason: reason() }));
        });
    }

    #[test]
    fn a_log_shows_its_figures_and_tells_of_refused_writers() {
        let directory = tempfile::tempdir().expect("a directory");
        on_executor(async {
            let registry = Registry::new(0);
            let opened = Wal::open(&directory.path().join("log"), LogNumber(3), WalOptions::small()).await;
            let (wal, report) = opened.expect("opens");
            observe_log(&registry, LogNumber(3), &wal, &report);
            let position = LogPosition { term: 2, index: 1 };
            let entry = AppendEntry { position, token: FencingToken::new(2, 0), kind: 1, parts: [b"entry", b""] };
            wal.durable(wal.append_unacknowledged(GroupId(7), 2, &[entry]).expect("taken")).await.expect("durable");
            wal.save_vote(GroupId(7), Vote { term: 5, node: 1, ..Vote::default() }).await.expect("saved");
            wal.append_unacknowledged(GroupId(7), 4, &[]).expect_err("deposed");
            until(|| !registry.snapshot().events.is_empty()).await;
            let snapshot = registry.snapshot();
            for (name, value) in [
                ("wal_appends_total", 2),
                ("wal_batches_total", 2),
                ("wal_sync_latency_us", 2),
                ("stale_tokens_refused_total", 1),
                ("corruption_events_total", 0),
                ("wal_entries_replayed_total", 0),
                ("wal_unprepared", 0),
            ] {
                assert_eq!(snapshot.total(name), Some(value), "{name}");
            }
            assert!(snapshot.total("wal_written_bytes_total") > Some(0));
            let refused = Event::StaleTokenRefused { shard: 7, have: 5, got: 4 };
            assert_eq!(snapshot.events[0].event, refused);
        });
    }
}
