//! What the commands say to somebody who is new to them: wrong usage is named and changes nothing, answers are exact.

use crate::binary;
use gristmill_tests::{Server, run, scratch, stderr, stdout};
use rustix::process::{Pid, Signal, kill_process};
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;

/// Nobody listens there: what gets as far as connecting ends with exit code 3.
const NO_SERVER: &str = "127.0.0.1:1";

fn ask(address: &str, arguments: &[&str]) -> Output {
    run(binary(), &[&[arguments[0], "--addr", address], &arguments[1..]].concat())
}

/// Runs what must be refused as wrong usage; what it says.
fn refused(arguments: &[&str]) -> String {
    let output = run(binary(), arguments);
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {told}");
    assert_eq!(stdout(&output), "", "{arguments:?}");
    told
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// `put --key k --value v --tag t` wrote the value, said nothing, and the tag was nowhere.
#[test]
fn a_put_never_drops_options_of_the_other_kind() {
    let of_value: [&[&str]; 5] =
        [&["--value", "v"], &["--value-file", "-"], &["--ttl-ms", "60000"], &["--if-absent"], &["--if-version", "7"]];
    let of_grain: [&[&str]; 7] = [
        &["--id", "000102030405060708090a0b0c0d0e0f"],
        &["--text", "t"],
        &["--vector", "1,2"],
        &["--relation", "is_a=x"],
        &["--object", "x"],
        &["--tag", "t"],
        &["--payload", "p"],
    ];
    let put = ["put", "--addr", NO_SERVER, "--ns", "a"];
    let value: &[&str] = &["--key", "k", "--value", "v"];
    let grain: &[&str] = &["--subject", "s"];
    for (record, options) in [(value, of_grain.as_slice()), (grain, of_value.as_slice())] {
        for option in options {
            let told = refused(&[&put, record, option].concat());
            let belongs = told.contains(&format!("{} belongs to a", option[0])) && told.contains(record[0]);
            assert!(belongs && told.contains("--subject with --id, --text"), "{told}");
            let told = refused(&[put.as_slice(), option].concat());
            assert!(told.contains("give --subject (a grain) or --key (a value)"), "{told}");
        }
    }
    refused(&[&put, value, grain].concat());
    refused(&put);
    // What belongs together gets as far as connecting.
    for more in [&[][..], &["--ttl-ms", "60000"], &["--if-absent"], &["--if-version", "7"]] {
        let output = run(binary(), &[&put, value, more].concat());
        assert_eq!(output.status.code(), Some(3), "{more:?}: {}", stderr(&output));
    }
    let output = run(binary(), &[&put, grain, &["--relation", "is_a", "--object", "x", "--tag", "t"]].concat());
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
}

#[test]
fn what_is_read_or_removed_must_be_named() {
    for command in ["get", "del"] {
        let told = refused(&[command, "--addr", NO_SERVER, "--ns", "a"]);
        assert!(told.contains("--key") && told.contains("--id"), "{told}");
    }
}

/// The newline behind a value for people made a file that was stored and read back another one.
#[test]
fn a_value_comes_back_byte_for_byte() {
    let dir = scratch();
    let server = Server::start(binary(), &dir.path().join("data"), &["--cores", "1"]);
    let address = server.address();
    let bytes: Vec<u8> = (0..=255).rev().chain(*b"\r\n\n\0").collect();
    let file = dir.path().join("value");
    std::fs::write(&file, &bytes).expect("writable");
    let put = ask(&address, &["put", "--ns", "a", "--key", "k", "--value-file", utf8(&file)]);
    assert_eq!(put.status.code(), Some(0), "{}", stderr(&put));
    let raw = ask(&address, &["get", "--ns", "a", "--key", "k", "--raw"]);
    assert_eq!((raw.status.code(), &raw.stdout), (Some(0), &bytes), "{}", stderr(&raw));
    let text = ask(&address, &["get", "--ns", "a", "--key", "k"]);
    assert_eq!(text.stdout, [bytes.as_slice(), b"\n"].concat());
    let id = "000102030405060708090a0b0c0d0e0f";
    refused(&["get", "--addr", &address, "--ns", "a", "--id", id, "--raw"]);
    refused(&["get", "--addr", &address, "--ns", "a", "--key", "k", "--raw", "--json"]);
}

/// Nothing on the screen and exit code 1, or a list that ended at a thousand keys as if there were no more.
#[test]
fn what_is_not_there_or_left_out_is_told() {
    let dir = scratch();
    let server = Server::start(binary(), dir.path(), &["--cores", "1"]);
    let address = server.address();
    for key in ["a", "b'", "c"] {
        server.client().put("n", key.as_bytes(), b"v").expect("a healthy server");
    }
    let missing = ask(&address, &["get", "--ns", "n", "--key", "other"]);
    assert_eq!((missing.status.code(), stdout(&missing)), (Some(1), String::new()));
    assert!(stderr(&missing).contains("\"n\" has no key \"other\""), "{}", stderr(&missing));
    let id = "000102030405060708090a0b0c0d0e0f";
    let missing = ask(&address, &["get", "--ns", "n", "--id", id]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains(id), "{}", stderr(&missing));
    let recalled = ask(&address, &["recall", "--ns", "n", "--text", "flour"]);
    assert_eq!((recalled.status.code(), stdout(&recalled)), (Some(1), String::new()));
    assert!(stderr(&recalled).contains("no hits among the 0 grains"), "{}", stderr(&recalled));

    let scan = |more: &[&str]| {
        let output = ask(&address, &[&["scan", "--ns", "n"], more].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        (stdout(&output), stderr(&output))
    };
    let (keys, told) = scan(&["--limit", "2"]);
    assert_eq!(keys, "a\tv\nb'\tv\n");
    assert!(told.contains("--limit") && told.contains(r"--start='b'\'''"), "{told}");
    let (keys, told) = scan(&["--limit", "2", "--reverse"]);
    assert_eq!(keys, "c\tv\nb'\tv\n");
    assert!(told.contains(r"--end='b'\'''"), "{told}");
    // As it was told.
    assert_eq!(scan(&["--start=b'"]), ("b'\tv\nc\tv\n".to_owned(), String::new()));
    assert_eq!(scan(&["--reverse", "--end=b'"]), ("a\tv\n".to_owned(), String::new()));
}

/// A first try with a port in use created the store, and with it the number of shards that the next try could not change.
#[test]
fn a_start_without_its_ports_leaves_no_directory() {
    let dir = scratch();
    let data = dir.path().join("data");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (taken_address, taken_port) = {
        let address = taken.local_addr().expect("bound");
        (address.to_string(), address.port().to_string())
    };
    let serve = ["serve", "--data-dir", utf8(&data), "--cores", "1"];
    let on_loopback = ["--listen", "127.0.0.1:0"];
    for more in [
        &["--listen", &taken_address][..],
        // Set aside for documentation: no machine has it.
        &["--listen", "192.0.2.1:0", "--insecure"],
        &[&on_loopback[..], &["--core-ports", &taken_port]].concat(),
    ] {
        let output = run(binary(), &[&serve, more].concat());
        assert_eq!(output.status.code(), Some(5), "{more:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("cannot listen on"), "{more:?}: {}", stderr(&output));
        assert!(!data.exists(), "{more:?}");
    }
    drop(taken);
    let server = Server::start(binary(), &data, &["--cores", "1", "--shards", "3", "--core-ports", &taken_port]);
    assert_eq!(server.listening["shards"], 3);
}

/// They ended with 5, as damage does: scripts took a typing error for a broken store.
#[test]
fn what_no_node_can_run_with_is_wrong_usage() {
    let dir = scratch();
    let data = dir.path().join("data");
    let serve = ["serve", "--data-dir", utf8(&data), "--listen", "127.0.0.1:0"];
    for (option, value) in [("--cores", "0"), ("--shards", "0"), ("--shards", "4000000000")] {
        let told = refused(&[&serve[..], &[option, value]].concat());
        assert!(told.contains(option), "{told}");
    }
    refused(&[&serve[..], &["--cores", "1", "--core-ports", "1,2"]].concat());
    refused(&["serve", "--data-dir", utf8(&data), "--listen", "0.0.0.0:0"]);
    refused(&["demo", "--cores", "0"]);
    for command in ["inspect", "dump", "verify"] {
        let told = refused(&["wal", command, utf8(&data)]);
        assert!(told.contains(utf8(&data)) && told.contains("name a data directory"), "{told}");
    }
    assert!(!data.exists());
}

/// `serve` opens the logs that the superblock counts; `verify` reported whatever else was called a log as missing or clean.
#[test]
fn only_the_stores_own_logs_are_looked_at() {
    let dir = scratch();
    let server = Server::start(binary(), dir.path(), &["--cores", "2", "--shards", "2"]);
    server.client().put("a", b"k", b"v").expect("a healthy server");
    kill_process(Pid::from_raw(server.id().cast_signed()).expect("a process id"), Signal::TERM).expect("it runs");
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    let looked = |command: &str| {
        let output = run(binary(), &["wal", command, utf8(dir.path())]);
        assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
        (stdout(&output), stderr(&output))
    };
    let before = ["inspect", "verify"].map(looked);
    std::fs::create_dir(dir.path().join("log-002")).expect("ours");
    std::fs::create_dir(dir.path().join("log-xyz")).expect("ours");
    std::fs::write(dir.path().join("log-xyz/letter.txt"), "dear diary").expect("ours");
    for (command, (listed, told)) in ["inspect", "verify"].into_iter().zip(before) {
        assert!(listed.contains("log-001") && told.is_empty(), "{listed}{told}");
        let (now, told) = looked(command);
        assert_eq!(now, listed, "the same logs");
        for stray in ["log-002", "log-xyz"] {
            assert!(told.contains(&format!("{stray} is none of the store's 2 logs")), "{told}");
        }
    }
    drop(Server::start(binary(), dir.path(), &["--cores", "2"]));
}
