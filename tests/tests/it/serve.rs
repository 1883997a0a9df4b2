//! The commands as a user types them, against a server process.

use crate::binary;
use gristmill_tests::{Server, run, scratch, stderr, stdout};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Runs a client command against a server; its exit code and output.
fn ask(server: &Server, arguments: &[&str]) -> (i32, String) {
    let address = server.address();
    let mut all = vec![arguments[0], "--addr", &address];
    all.extend(&arguments[1..]);
    let output = run(binary(), &all);
    (output.status.code().expect("no signal"), stdout(&output) + &stderr(&output))
}

#[test]
fn values_are_there_after_kill_9_and_restart() {
    let dir = scratch();
    let server = Server::start(binary(), dir.path(), &["--shards", "4"]);
    assert_eq!(server.listening["shards"], 4);
    assert_eq!(ask(&server, &["put", "--ns", "a", "--key", "k", "--value", "v"]), (0, String::new()));
    assert_eq!(ask(&server, &["get", "--ns", "a", "--key", "k"]), (0, "v\n".to_owned()));
    assert_eq!(ask(&server, &["put", "--ns", "a", "--key", "k2", "--value", "w"]).0, 0);
    assert_eq!(ask(&server, &["scan", "--ns", "a"]), (0, "k\tv\nk2\tw\n".to_owned()));
    let (code, first) = ask(&server, &["scan", "--ns", "a", "--reverse", "--limit", "1"]);
    assert!(code == 0 && first.starts_with("k2\tw\ngristmill: stopped at --limit"), "{first}");
    let roots = state_roots(&server);
    server.kill();

    let server = Server::start(binary(), dir.path(), &[]);
    assert_eq!(ask(&server, &["get", "--ns", "a", "--key", "k"]), (0, "v\n".to_owned()));
    assert_eq!(state_roots(&server), roots, "the replayed state is the same");
}

fn status(server: &Server) -> Value {
    let (code, status) = ask(server, &["status", "--json"]);
    assert_eq!(code, 0, "{status}");
    serde_json::from_str(&status).expect("status is JSON")
}

/// The status once every shard serves.
fn status_when_ready(server: &Server) -> Value {
    for _ in 0..600 {
        let status = status(server);
        if status["ready"] == true {
            return status;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("the server never became ready: {}", status(server));
}

fn state_roots(server: &Server) -> Vec<Value> {
    let status = status(server);
    let shards = status["shards"].as_array().expect("status lists shards");
    assert_eq!(shards.len(), 4);
    shards.iter().map(|shard| shard["state_root"].clone()).collect()
}

#[test]
fn conditions_hold_or_say_what_was_there() {
    let dir = scratch();
    let server = Server::start(binary(), dir.path(), &[]);
    let put = |more: &[&str]| ask(&server, &[&["put", "--ns", "a", "--key", "k", "--json"], more].concat());
    let (code, first) = put(&["--value", "1", "--if-absent"]);
    assert_eq!(code, 0, "{first}");
    let version = serde_json::from_str::<Value>(&first).expect("JSON")["version"].to_string();
    let (code, second) = put(&["--value", "2", "--if-absent"]);
    assert_eq!(code, 1, "{second}");
    assert_eq!(serde_json::from_str::<Value>(&second).expect("JSON")["found_version"].to_string(), version);
    assert_eq!(put(&["--value", "2", "--if-version", &version]).0, 0);
    assert_eq!(put(&["--value", "3", "--if-version", &version]).0, 1);
    assert_eq!(ask(&server, &["get", "--ns", "a", "--key", "k"]), (0, "2\n".to_owned()));
    assert_eq!(ask(&server, &["del", "--ns", "a", "--key", "k"]).0, 0);
    let (code, told) = ask(&server, &["get", "--ns", "a", "--key", "k"]);
    assert_eq!((code, told.as_str()), (1, "gristmill: namespace \"a\" has no key \"k\"\n"));
}

#[test]
fn grains_are_recalled_by_each_leg() {
    let dir = scratch();
    let server = Server::start(binary(), dir.path(), &[]);
    let put = |subject: &str, text: &str, relation: &str, vector: &str| {
        let (code, id) = ask(
            &server,
            &["put", "--ns", "a", "--subject", subject, "--text", text, "--relation", relation, "--vector", vector],
        );
        assert_eq!(code, 0, "{id}");
        id.trim().to_owned()
    };
    let bread = put("bread", "made of flour and water", "is_a=food", "1,0,0");
    let wine = put("wine", "made of dark grapes", "is_a=drink", "0,1,0");
    let first = |legs: &[&str]| {
        let (code, hits) = ask(&server, &[&["recall", "--ns", "a", "--json"], legs].concat());
        assert_eq!(code, 0, "{hits}");
        serde_json::from_str::<Value>(&hits).expect("JSON")["hits"][0].clone()
    };
    let by_text = first(&["--text", "grapes"]);
    assert_eq!((by_text["id"].as_str(), by_text["legs"]["text"]["rank"].as_u64()), (Some(wine.as_str()), Some(1)));
    let by_relation = first(&["--relation", "is_a=food"]);
    assert_eq!(by_relation["id"].as_str(), Some(bread.as_str()));
    assert_eq!(by_relation["legs"]["relation"]["rank"].as_u64(), Some(1));
    let by_vector = first(&["--vector", "0.9,0.1,0"]);
    assert_eq!(
        (by_vector["id"].as_str(), by_vector["legs"]["vector"]["rank"].as_u64()),
        (Some(bread.as_str()), Some(1))
    );
    assert_eq!(ask(&server, &["del", "--ns", "a", "--id", &bread]).0, 0);
    let (_, hits) = ask(&server, &["recall", "--ns", "a", "--json", "--text", "made", "--relation", "is_a=food"]);
    assert!(!hits.contains(&bread), "a deleted grain is gone from every leg: {hits}");
    assert!(hits.contains(&wine), "{hits}");
}

#[test]
fn the_number_of_shards_stays_and_other_cores_remap() {
    let dir = scratch();
    let server = Server::start(binary(), dir.path(), &["--shards", "4", "--cores", "2"]);
    for key in ["a", "b", "c", "d", "e"] {
        assert_eq!(ask(&server, &["put", "--ns", key, "--key", key, "--value", key]).0, 0);
    }
    server.kill();
    for cores in ["1", "3", "2"] {
        let server = Server::start(binary(), dir.path(), &["--cores", cores]);
        for key in ["a", "b", "c", "d", "e"] {
            assert_eq!(ask(&server, &["get", "--ns", key, "--key", key]), (0, format!("{key}\n")), "{cores} cores");
        }
        server.kill();
    }
    let refused = run(binary(), &["serve", "--listen", "127.0.0.1:0", "--shards", "5", "--data-dir", &path(&dir)]);
    assert_eq!(refused.status.code(), Some(5));
    assert!(stderr(&refused).contains("created with 4 shards"), "{}", stderr(&refused));
}

#[test]
fn sigterm_drains_and_exits_cleanly() {
    let dir = scratch();
    let server = Server::start(binary(), dir.path(), &[]);
    assert_eq!(ask(&server, &["put", "--ns", "a", "--key", "k", "--value", "v"]).0, 0);
    let pid = rustix::process::Pid::from_raw(server.id().cast_signed()).expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the server runs");
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    let verified = run(binary(), &["wal", "verify", &path(&dir)]);
    assert_eq!(verified.status.code(), Some(0), "{}{}", stdout(&verified), stderr(&verified));
    let inspected = stdout(&run(binary(), &["wal", "inspect", &path(&dir)]));
    for needed in ["0x57414c32", "2.1", "segment", "shard", "token"] {
        assert!(inspected.to_lowercase().contains(needed), "{needed} is missing: {inspected}");
    }
}

#[test]
fn the_posix_driver_serves_the_same() {
    let dir = scratch();
    let server = Server::start(binary(), dir.path(), &["--io", "posix"]);
    assert_eq!(server.listening["io_driver"], "posix");
    assert_eq!(ask(&server, &["put", "--ns", "a", "--key", "k", "--value", "v"]).0, 0);
    assert_eq!(ask(&server, &["get", "--ns", "a", "--key", "k"]), (0, "v\n".to_owned()));
}

fn path(dir: &tempfile::TempDir) -> String {
    dir.path().to_str().expect("UTF-8").to_owned()
}

/// The sum of each counter and gauge, and the count of each distribution, over cores and labels.
fn totals(status: &Value) -> BTreeMap<String, i64> {
    let mut totals = BTreeMap::new();
    for core in status["cores"].as_array().expect("a list") {
        for metric in core["metrics"].as_array().expect("a list") {
            let value = metric["value"].as_i64().or_else(|| metric["value"]["count"].as_i64()).expect("a number");
            *totals.entry(metric["name"].as_str().expect("a name").to_owned()).or_default() += value;
        }
    }
    totals
}

#[test]
fn status_counts_what_happened_and_tells_of_the_recovery() {
    const PUTS: i64 = 20;
    const GETS: i64 = 30;
    let dir = scratch();
    let server = Server::start(binary(), dir.path(), &["--shards", "2", "--cores", "2"]);
    status_when_ready(&server);
    let before = totals(&status(&server));
    let mut client = server.client();
    for number in 0..PUTS {
        client.put(&format!("ns{}", number % 4), &number.to_be_bytes(), b"v").expect("written");
    }
    for number in 0..GETS {
        client.get("ns0", &number.to_be_bytes()).expect("answered");
    }
    client.get("never-written", b"k").expect_err("there is no such namespace");
    let mut stranger = TcpStream::connect(server.address()).expect("connected");
    stranger.write_all(&[b'x'; 64]).expect("sent");
    // Answered with a reason, then closed.
    stranger.read_to_end(&mut Vec::new()).expect("closed");
    drop(client);

    let answered = status(&server);
    let after = totals(&answered);
    let moved = |name: &str| after[name] - before[name];
    for (name, value) in [
        ("proposals_total", PUTS),
        ("propose_latency_us", PUTS),
        ("applied_operations_total", PUTS),
        ("values", PUTS),
        ("namespaces", 4),
        // The status that `before` came from was answered since, and this one is being answered.
        ("requests_total", PUTS + GETS + 2),
        ("request_latency_us", PUTS + GETS + 2),
        ("request_errors_total", 1),
        ("bad_frames_total", 1),
        ("recall_latency_us", 0),
        ("append_entries_sent_total", 0),
        ("corruption_events_total", 0),
        ("stale_tokens_refused_total", 0),
        ("task_panics_total", 0),
    ] {
        assert_eq!(moved(name), value, "{name}");
    }
    assert_eq!((after["is_leader"], after["peer_count"]), (2, 0));
    assert!(moved("forwarded_requests_total") <= PUTS + GETS + 1);
    for at_least in
        ["connections_accepted_total", "wal_batches_total", "wal_sync_latency_us", "fencing_tokens_issued_total"]
    {
        assert!(moved(at_least) > 0, "{at_least}");
    }
    assert!(moved("wal_appends_total") >= PUTS);
    assert!(moved("wal_written_bytes_total") >= PUTS * 64);
    let entries: BTreeMap<u64, u64> = shard_numbers(&answered, "last_log");
    server.kill();

    let server = Server::start(binary(), dir.path(), &[]);
    let recovered = status_when_ready(&server);
    let events = recovered["events"].as_array().expect("a list");
    let finished: BTreeMap<u64, u64> = events
        .iter()
        .filter(|event| event["event"] == "recovery_finished")
        .map(|event| (event["shard"].as_u64().expect("a number"), event["entries"].as_u64().expect("a number")))
        .collect();
    // Log indexes begin at 0.
    let expected = entries.into_iter().map(|(shard, last)| (shard, last + 1)).collect();
    assert_eq!(finished, expected, "each entry is replayed once");
    assert_eq!(recovered["event_counts"]["recovery_finished"], 2);
    assert_eq!(totals(&recovered)["wal_entries_replayed_total"], finished.values().sum::<u64>() as i64);
}

fn shard_numbers(status: &Value, field: &str) -> BTreeMap<u64, u64> {
    let shards = status["shards"].as_array().expect("a list").iter();
    shards.map(|shard| (shard["shard"].as_u64().expect("a number"), shard[field].as_u64().expect("a number"))).collect()
}

/// Field names of a table of the protocol's status section; `true` where a field is not always there.
fn documented_fields(section: &str) -> BTreeMap<String, bool> {
    let text = include_str!("../../../rpc/PROTOCOL.md");
    let from = text.find(&format!("\n### {section}\n")).expect("the section is there");
    let rows = text[from..].lines().skip_while(|line| !line.starts_with('|')).skip(2);
    let rows = rows.take_while(|line| line.starts_with("| `"));
    rows.map(|row| (row.split('`').nth(1).expect("a name").to_owned(), row.contains("optional"))).collect()
}

/// Every object has the documented fields, and no others.
fn assert_documented<'a>(section: &str, objects: impl IntoIterator<Item = &'a Value>) {
    let documented = documented_fields(section);
    let mut count = 0;
    for object in objects {
        let object = object.as_object().expect("an object");
        for (field, _) in object {
            assert!(documented.contains_key(field), "{section}: `{field}` is not documented in rpc/PROTOCOL.md");
        }
        for (field, optional) in &documented {
            assert!(*optional || object.contains_key(field), "{section}: `{field}` is documented and missing");
        }
        count += 1;
    }
    assert!(count > 0, "vacuous: no {section}");
}

#[test]
fn every_field_of_the_status_is_documented() {
    let dir = scratch();
    let server = Server::start(binary(), dir.path(), &["--shards", "2", "--cores", "2"]);
    let status = status_when_ready(&server);
    let list = |value: &'static str| status[value].as_array().expect("a list").iter();
    assert_documented("Node", [&status]);
    assert_documented("Shard", list("shards"));
    assert_documented("Index", list("shards").map(|shard| &shard["index"]));
    assert_documented("Core", list("cores"));
    let metrics = || list("cores").flat_map(|core| core["metrics"].as_array().expect("a list"));
    assert_documented("Metric", metrics());
    // Which metrics and kinds of events there are is compared beside their definitions.
    let (metric_names, event_names) = (documented_fields("Metrics"), documented_fields("Events"));
    for metric in metrics() {
        assert!(metric_names.contains_key(metric["name"].as_str().expect("a name")), "{metric}");
        if let Some(distribution) = metric["value"].as_object() {
            let fields: Vec<_> = distribution.keys().map(String::as_str).collect();
            assert_eq!(fields, ["count", "max", "mean", "min", "p50", "p99", "p999"], "{metric}");
        }
    }
    let shown: std::collections::BTreeSet<_> = metrics().filter_map(|metric| metric["name"].as_str()).collect();
    let hidden: Vec<_> = metric_names.keys().filter(|name| !shown.contains(name.as_str())).collect();
    assert_eq!(hidden, ["append_entries_latency_us"], "documented as not shown with one voter");
    let common = documented_fields("Event");
    for event in list("events") {
        assert!(event_names.contains_key(event["event"].as_str().expect("a kind")), "{event}");
        assert!(common.keys().all(|field| event.get(field).is_some()), "{event}");
    }
}
