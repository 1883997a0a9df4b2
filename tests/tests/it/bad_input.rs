//! Input that is wrong: each gets an error that says what to do, and nothing else is harmed.

use crate::{binary, confine};
use gristmill_rpc::body::archive;
use gristmill_rpc::error::ErrorCode;
use gristmill_rpc::frame::{FrameHeader, MessageType};
use gristmill_rpc::ids::GrainId;
use gristmill_rpc::schema::{Grain, Hello, Operation, RecallRequest};
use gristmill_shardexec::{Executor, ExecutorConfig, IoChoice};
use gristmill_tests::{Server, run, scratch, stderr, stdout};
use gristmill_wal::{LogNumber, Wal, WalOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// An ordinary user, for what root may do anyway.
const ORDINARY_USER: u32 = 65534;

fn grain(subject: &str, vector: Option<Vec<f32>>) -> Grain {
    Grain {
        id: GrainId::from_name(subject),
        namespace: "a".into(),
        subject: subject.into(),
        text: None,
        vector,
        relations: Vec::new(),
        tags: Vec::new(),
        payload: Vec::new(),
    }
}

#[test]
fn wrong_requests_get_typed_errors_and_the_connection_lives() {
    let dir = scratch();
    let server = Server::start(binary(), dir.path(), &["--shards", "4"]);
    let mut client = server.client();
    client.put_grain(grain("first", Some(vec![1.0, 0.0, 0.0]))).expect("a good grain is stored");
    // What the client refuses by itself, the server is asked in `frames`.
    let operation = Operation::PutGrain { grain: grain("other", Some(vec![1.0, 0.0])) };
    let error = client.batch(vec![operation]).expect_err("another dimension");
    assert_eq!(error.code(), Some(ErrorCode::WrongDimension), "{error}");
    assert!(!error.retriable(), "it stays wrong");
    let unknown = client.get("never-written", b"k").expect_err("nothing was ever written there");
    assert_eq!(unknown.code(), Some(ErrorCode::UnknownNamespace), "{unknown}");
    let wrong_query = RecallRequest {
        namespace: "a".into(),
        text: None,
        vector: Some(vec![1.0; 7]),
        relation: None,
        tags: Vec::new(),
        subject: String::new(),
        limit: 0,
        candidates: 0,
        with_grains: false,
    };
    let error = client.recall(&wrong_query).expect_err("another dimension");
    assert_eq!(error.code(), Some(ErrorCode::WrongDimension), "{error}");
    assert!(client.get_grain("a", GrainId::from_name("first")).expect("the same connection").is_some());
    assert!(client.get_grain("a", GrainId::from_name("other")).expect("the same connection").is_none());
}

/// What a server answers to raw bytes, until it closes or stays silent.
fn raw(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(server.address()).expect("the server accepts");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a socket takes a timeout");
    // The server may close before all of it is sent.
    let _ = socket.write_all(bytes);
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = socket.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..count]);
    }
    answer
}

fn hello() -> Vec<u8> {
    let body = archive(&Hello { version_min: 1, version_max: 1, client: "bad input".into() });
    let header = FrameHeader::for_body(MessageType::Hello, 1, &body);
    [header.encode().as_slice(), &body].concat()
}

#[test]
fn bytes_that_are_no_frame_end_only_their_own_connection() {
    let dir = scratch();
    let server = Server::start(binary(), dir.path(), &[]);
    let mut client = server.client();
    client.put("a", b"k", b"v").expect("a healthy server");
    let good = hello();
    assert!(raw(&server, &good).len() > 64, "a good hello is answered");
    let mut wrong_version = FrameHeader::for_body(MessageType::Hello, 1, &[]);
    wrong_version.version = 99;
    let mut oversized = FrameHeader::for_body(MessageType::Hello, 1, &[]);
    oversized.body_length = u32::MAX;
    let mut cases: Vec<(&str, Vec<u8>)> = vec![
        ("http", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(4)),
        ("zeros", vec![0; 4096]),
        ("truncated header", good[..40].to_vec()),
        ("truncated body", good[..good.len() - 1].to_vec()),
        ("wrong version", wrong_version.encode().to_vec()),
        ("oversized", oversized.encode().to_vec()),
    ];
    for bit in [0, 70, 100, 300, 480, 511, 520, 600] {
        let mut garbled = good.clone();
        garbled[bit / 8] ^= 1 << (bit % 8);
        cases.push(("garbled", garbled));
    }
    for (what, bytes) in cases {
        let answer = raw(&server, &bytes);
        let granted = answer.len() >= 64 && answer[12..14] == (MessageType::HelloReply as u16).to_le_bytes();
        assert!(!granted, "{what} is not a hello");
        let alive = client.get("a", b"k").expect("other connections go on");
        assert_eq!(alive.map(|found| found.value), Some(b"v".to_vec()), "{what}");
    }
}

#[test]
fn a_taken_port_and_an_open_address_are_refused() {
    let dir = scratch();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let data_dir = dir.path().join("data");
    let data_dir = data_dir.to_str().expect("UTF-8");
    let refused = run(binary(), &["serve", "--data-dir", data_dir, "--listen", &address]);
    assert_eq!(refused.status.code(), Some(5));
    let message = stderr(&refused);
    assert!(message.contains(&address) && message.contains("--listen"), "{message}");
    let refused = run(binary(), &["serve", "--data-dir", data_dir, "--listen", "0.0.0.0:0"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("--insecure"), "{}", stderr(&refused));
}

#[test]
fn a_second_server_cannot_share_port_or_directory() {
    let (first_dir, second_dir) = (scratch(), scratch());
    let server = Server::start(binary(), first_dir.path(), &[]);
    let first = first_dir.path().to_str().expect("UTF-8");
    let second = second_dir.path().to_str().expect("UTF-8");
    let refused = run(binary(), &["serve", "--data-dir", first, "--listen", "127.0.0.1:0"]);
    assert_eq!(refused.status.code(), Some(5));
    assert!(stderr(&refused).contains("in use by another gristmill process"), "{}", stderr(&refused));
    let refused = run(binary(), &["serve", "--data-dir", second, "--listen", &server.address()]);
    assert_eq!(refused.status.code(), Some(5), "two servers never share a port");
    assert!(stderr(&refused).contains("another process has the port"), "{}", stderr(&refused));
}

#[test]
fn a_foreign_directory_is_left_as_it_is() {
    let dir = scratch();
    let letter = dir.path().join("letter.txt");
    std::fs::write(&letter, "dear diary").expect("writable");
    let path = dir.path().to_str().expect("UTF-8");
    let refused = run(binary(), &["serve", "--data-dir", path, "--listen", "127.0.0.1:0"]);
    assert_eq!(refused.status.code(), Some(5));
    assert!(stderr(&refused).contains("letter.txt"), "{}", stderr(&refused));
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 1, "nothing was added");
    assert_eq!(std::fs::read_to_string(&letter).expect("readable"), "dear diary");

    let dir = scratch();
    std::fs::write(dir.path().join("superblock"), [7; 512]).expect("writable");
    let path = dir.path().to_str().expect("UTF-8");
    let refused = run(binary(), &["serve", "--data-dir", path, "--listen", "127.0.0.1:0"]);
    assert_eq!(refused.status.code(), Some(5));
    assert!(stderr(&refused).contains("superblock"), "{}", stderr(&refused));
    assert_eq!(std::fs::read(dir.path().join("superblock")).expect("readable"), [7; 512], "bytes untouched");
}

/// A log that was gone was silently given an empty new one, and its shards with it.
#[test]
fn a_store_that_lost_a_log_is_refused_by_name() {
    let dir = scratch();
    let path = dir.path().to_str().expect("UTF-8");
    let server = Server::start(binary(), dir.path(), &["--cores", "2", "--shards", "2"]);
    for number in 0..8_u8 {
        server.client().put(&format!("ns{number}"), b"k", &[number]).expect("a healthy server");
    }
    server.kill();
    let (log, aside) = (dir.path().join("log-001"), dir.path().join("aside"));
    std::fs::rename(&log, &aside).expect("ours");
    let serve = ["serve", "--data-dir", path, "--listen", "127.0.0.1:0", "--cores", "1"];
    let check = |when: &str| {
        let refused = run(binary(), &serve);
        assert_eq!(refused.status.code(), Some(5), "{when}: {}", stderr(&refused));
        assert!(stderr(&refused).contains("log-001") && stderr(&refused).contains("Restore"), "{}", stderr(&refused));
        for command in ["inspect", "verify"] {
            let looked = run(binary(), &["wal", command, path]);
            assert_eq!(looked.status.code(), Some(5), "{when}: {}", stdout(&looked));
            assert!(stdout(&looked).contains("log-001: missing"), "{when}: {}", stdout(&looked));
        }
    };
    check("missing");
    assert!(!log.exists(), "nothing was made in its place");
    std::fs::create_dir(&log).expect("ours");
    check("empty");
    assert_eq!(std::fs::read_dir(&log).expect("readable").count(), 0, "nothing was made in it");
    std::fs::remove_dir(&log).expect("ours");
    std::fs::rename(&aside, &log).expect("ours");

    let superblock = dir.path().join("superblock");
    std::fs::rename(&superblock, &aside).expect("ours");
    let refused = run(binary(), &serve);
    assert_eq!(refused.status.code(), Some(5), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("aside"), "a foreign file: {}", stderr(&refused));
    let kept = std::fs::read(&aside).expect("readable");
    std::fs::remove_file(&aside).expect("ours");
    let refused = run(binary(), &serve);
    assert_eq!(refused.status.code(), Some(5), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("restore the superblock"), "{}", stderr(&refused));
    std::fs::write(&superblock, kept).expect("ours");

    let server = Server::start(binary(), dir.path(), &["--cores", "1"]);
    for number in 0..8_u8 {
        let found = server.client().get(&format!("ns{number}"), b"k").expect("the store is whole");
        assert_eq!(found.map(|found| found.value), Some(vec![number]));
    }
}

/// A power cut before the superblock was there: whatever logs there are hold nothing, and are made anew.
#[test]
fn a_creation_that_did_not_finish_is_started_over() {
    let made = scratch();
    for log in ["log-000", "log-001"] {
        std::fs::create_dir(made.path().join(log)).expect("writable");
    }
    let config = ExecutorConfig { io: IoChoice::Posix, ..ExecutorConfig::default() };
    Executor::start(config).expect("an executor starts").block_on(async {
        let (log, report) =
            Wal::open(&made.path().join("log-000"), LogNumber(0), WalOptions::default()).await.expect("a log");
        assert!(report.created);
        log.close().await.expect("closed");
    });
    std::fs::write(made.path().join("log-001/spare-000000000001.tmp"), b"").expect("writable");
    std::fs::write(made.path().join("superblock.tmp"), [0; 100]).expect("writable");
    let server = Server::start(binary(), made.path(), &["--cores", "1"]);
    server.client().put("a", b"k", b"v").expect("a healthy server");
    server.kill();
    assert!(!made.path().join("log-001").exists(), "one log is enough for one core");
    let server = Server::start(binary(), made.path(), &["--cores", "1"]);
    assert!(server.client().get("a", b"k").expect("a healthy server").is_some());
}

/// A copy of the binary that an ordinary user may run, and a directory that he may not write to.
#[test]
fn a_directory_that_may_not_be_written_is_named() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("ours");
    let copy = dir.path().join("gristmill");
    std::fs::copy(binary(), &copy).expect("the binary can be copied");
    let locked = dir.path().join("locked");
    std::fs::create_dir(&locked).expect("ours");
    std::fs::set_permissions(&locked, PermissionsExt::from_mode(0o555)).expect("ours");
    let mut command = Command::new(&copy);
    command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(locked.join("data"));
    if rustix::process::geteuid().is_root() {
        command.uid(ORDINARY_USER).gid(ORDINARY_USER);
    }
    let refused = command.output().expect("the copy runs");
    assert_eq!(refused.status.code(), Some(5), "{}", stderr(&refused));
    let message = stderr(&refused);
    assert!(message.contains("locked/data") && message.contains("who may write there"), "{message}");
}

/// Containers often allow 64 KiB of locked memory: rings and buffers must fit or do without.
#[test]
fn little_lockable_memory_is_enough() {
    let dir = scratch();
    let mut command = Command::new(confine());
    command.args(["memlock", "65536"]).arg(binary()).args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]);
    let server = Server::spawn({
        command.arg(dir.path());
        command
    });
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.id())).expect("a process shows its limits");
    let locked = limits.lines().find(|line| line.starts_with("Max locked memory")).expect("a limit of Linux");
    assert!(locked.split_whitespace().any(|word| word == "65536"), "vacuous: {locked}");
    let mut client = server.client();
    client.put("a", b"k", b"v").expect("a healthy server");
    assert_eq!(client.get("a", b"k").expect("a healthy server").map(|found| found.value), Some(b"v".to_vec()));
}

/// A file of somebody else's between the segments of a store that was in use.
#[test]
fn a_foreign_file_in_a_log_is_named_and_left_alone() {
    let dir = scratch();
    let server = Server::start(binary(), dir.path(), &["--cores", "1"]);
    server.client().put("a", b"k", b"v").expect("a healthy server");
    server.kill();
    let letter = dir.path().join("log-000/letter.txt");
    std::fs::write(&letter, "dear diary").expect("writable");
    let path = dir.path().to_str().expect("UTF-8");
    let refused = run(binary(), &["serve", "--data-dir", path, "--listen", "127.0.0.1:0", "--cores", "1"]);
    assert_eq!(refused.status.code(), Some(5), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("letter.txt") && stderr(&refused).contains("Move it"), "{}", stderr(&refused));
    assert_eq!(std::fs::read_to_string(&letter).expect("readable"), "dear diary");
    std::fs::remove_file(&letter).expect("ours");
    let server = Server::start(binary(), dir.path(), &["--cores", "1"]);
    let found = server.client().get("a", b"k").expect("the store is whole");
    assert_eq!(found.map(|found| found.value), Some(b"v".to_vec()));
}
