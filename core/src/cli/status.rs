//! `gristmill status` for people: the node in a line, a line for each shard, and what happened. Programs take `--json`.

use serde_json::Value;
use std::fmt::Write;

/// Events that a short status shows, the latest.
const EVENTS_SHOWN: usize = 5;

/// The status as text; with `verbose` every metric and event.
pub(super) fn text(status: &Value, verbose: bool) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_text(&mut out, status, verbose);
    out
}

fn write_text(out: &mut String, status: &Value, verbose: bool) -> std::fmt::Result {
    let word = |field: &str| status[field].as_str().unwrap_or("?");
    let ready = if status["ready"] == true { "ready" } else { "NOT READY" };
    writeln!(out, "{} {ready}, {} on {}, {}", word("server"), word("data_dir"), word("listen"), word("io_driver"))?;
    writeln!(
        out,
        "{} connections, {} requests, {} errors, {} bad frames; {} stalls, {} panics",
        total(status, "connections"),
        total(status, "requests_total"),
        total(status, "request_errors_total"),
        total(status, "bad_frames_total"),
        total(status, "stalls_total"),
        total(status, "task_panics_total"),
    )?;
    write_shards(out, status)?;
    if verbose {
        write_metrics(out, status)?;
    }
    let events = list(status, "events");
    let skipped = if verbose { 0 } else { events.len().saturating_sub(EVENTS_SHOWN) };
    if skipped > 0 {
        writeln!(out, "{skipped} earlier events are shown by --verbose")?;
    }
    events[skipped..].iter().try_for_each(|event| write_event(out, event))
}

fn write_shards(out: &mut String, status: &Value) -> std::fmt::Result {
    const HEAD: [&str; 9] = ["shard", "core", "phase", "term", "applied", "queued", "values", "grains", "memory_mib"];
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    for shard in list(status, "shards") {
        let mebibytes = shard["state_memory_bytes"].as_u64().unwrap_or_default() >> 20;
        let cells = HEAD[..8].iter().map(|field| cell(&shard[*field]));
        rows.push(cells.chain([mebibytes.to_string()]).collect());
    }
    for row in &rows {
        let padded = row.iter().enumerate().map(|(at, cell)| {
            let width = rows.iter().map(|row| row[at].len()).max().unwrap_or_default();
            format!("{cell:>width$}")
        });
        writeln!(out, "{}", padded.collect::<Vec<_>>().join("  "))?;
    }
    for shard in list(status, "shards").iter().filter(|shard| shard["reason"].is_string()) {
        writeln!(out, "shard {}: {}", shard["shard"], cell(&shard["reason"]))?;
    }
    Ok(())
}

fn write_metrics(out: &mut String, status: &Value) -> std::fmt::Result {
    for core in list(status, "cores") {
        for metric in list(core, "metrics") {
            let labels = metric["labels"].as_object().into_iter().flatten();
            let labels: Vec<_> = labels.map(|(name, value)| format!("{name}={}", cell(value))).collect();
            let value = match &metric["value"] {
                Value::Object(distribution) => {
                    let parts = distribution.iter().map(|(name, value)| format!("{name} {value}"));
                    parts.collect::<Vec<_>>().join(", ")
                }
                single => single.to_string(),
            };
            writeln!(out, "core {}  {}{{{}}}  {value}", core["core"], cell(&metric["name"]), labels.join(","))?;
        }
    }
    Ok(())
}

fn write_event(out: &mut String, event: &Value) -> std::fmt::Result {
    write!(out, "at_ms {}  core {}  {}", event["at_ms"], event["core"], cell(&event["event"]))?;
    for (name, value) in event.as_object().into_iter().flatten() {
        if !["at_ms", "core", "event", "number"].contains(&name.as_str()) {
            write!(out, "  {name} {}", cell(value))?;
        }
    }
    writeln!(out)
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

/// A string without its quotes.
fn cell(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The sum of a counter or gauge over cores and labels.
fn total(status: &Value, name: &str) -> i64 {
    let metrics = list(status, "cores").iter().flat_map(|core| list(core, "metrics"));
    metrics.filter(|metric| metric["name"] == name).filter_map(|metric| metric["value"].as_i64()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status() -> Value {
        let events: Vec<_> = (0..7)
            .map(|number| {
                json!({"number": number, "core": 1, "at_ms": 100 + number, "event": "log_failed", "log": 1,
                       "reason": "no space"})
            })
            .collect();
        json!({
            "server": "gristmill 9", "data_dir": "/data", "listen": "127.0.0.1:1", "io_driver": "uring", "ready": false,
            "shards": [
                {"shard": 0, "core": 0, "phase": "serving", "term": 3, "applied": 12, "queued": 0, "values": 5,
                 "grains": 1, "state_memory_bytes": 5 << 20},
                {"shard": 1, "core": 1, "phase": "down", "reason": "it broke", "term": 0, "applied": 0, "queued": 0,
                 "values": 0, "grains": 0, "state_memory_bytes": 0},
            ],
            "cores": [
                {"core": 0, "metrics": [{"name": "requests_total", "value": 40}]},
                {"core": 1, "metrics": [
                    {"name": "requests_total", "value": 2},
                    {"name": "apply_batch_size", "labels": {"shard": "1"}, "value": {"count": 3, "p99": 8}},
                ]},
            ],
            "events": events,
        })
    }

    #[test]
    fn the_short_text_has_sums_shards_reasons_and_the_latest_events() {
        let text = text(&status(), false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "gristmill 9 NOT READY, /data on 127.0.0.1:1, uring");
        assert!(lines[1].contains("42 requests"), "{text}");
        assert_eq!(lines[3], "    0     0  serving     3       12       0       5       1           5");
        assert_eq!(lines[5], "shard 1: it broke");
        assert_eq!(lines[6], "2 earlier events are shown by --verbose");
        assert_eq!(lines.last(), Some(&"at_ms 106  core 1  log_failed  log 1  reason no space"));
        assert_eq!(lines.len(), 7 + EVENTS_SHOWN);
    }

    #[test]
    fn the_long_text_has_every_metric_and_event() {
        let text = text(&status(), true);
        assert!(text.contains("core 0  requests_total{}  40\n"), "{text}");
        assert!(text.contains("core 1  apply_batch_size{shard=1}  count 3, p99 8\n"), "{text}");
        assert_eq!(text.matches("log_failed").count(), 7);
    }
}
