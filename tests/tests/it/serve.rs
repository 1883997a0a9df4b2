//! The commands as a user types them, against a server process.

use crate::binary;
use gristmill_tests::{Server, run, scratch, stderr, stdout};
use serde_json::Value;

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
    assert_eq!(ask(&server, &["scan", "--ns", "a", "--reverse", "--limit", "1"]), (0, "k2\tw\n".to_owned()));
    let roots = state_roots(&server);
    server.kill();

    let server = Server::start(binary(), dir.path(), &[]);
    assert_eq!(ask(&server, &["get", "--ns", "a", "--key", "k"]), (0, "v\n".to_owned()));
    assert_eq!(state_roots(&server), roots, "the replayed state is the same");
}

fn state_roots(server: &Server) -> Vec<Value> {
    let (code, status) = ask(server, &["status", "--json"]);
    assert_eq!(code, 0, "{status}");
    let status: Value = serde_json::from_str(&status).expect("status is JSON");
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
    assert_eq!(ask(&server, &["get", "--ns", "a", "--key", "k"]), (1, String::new()));
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
