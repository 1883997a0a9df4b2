//! A disk without room: writes are refused with a typed error, reads go on, and writes resume by themselves.
//!
//! A log's segment takes 64 MiB and one is prepared ahead, so the file system is a little larger than one segment while it is "full".

use crate::{binary, confine};
use gristmill::raft::{
    ApplyError, Committed, Group, GroupConfig, Outcome, RaftSettings, ReplicaId, StateMachine, WalLog, WalLogOptions,
};
use gristmill_rpc::blocking::{Client, Ticket};
use gristmill_rpc::client::{ClientError, ClientOptions, RetryPolicy};
use gristmill_rpc::error::ErrorCode;
use gristmill_rpc::ids::ShardId;
use gristmill_rpc::schema::{Command, Operation, ScanRequest, WriteReply};
use gristmill_shardexec::time::timeout;
use gristmill_shardexec::{Executor, ExecutorConfig, IoChoice};
use gristmill_tests::{Server, SmallDisk, run, scratch, stderr, stdout};
use gristmill_wal::{GroupId, Home, LogNumber, LogPosition, Wal, WalError, WalOptions};
use rustix::fs::{FallocateFlags, fallocate};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// Room for three segments, so for two that are in use and a third that is prepared.
const DISK_BYTES: u64 = 208 * MIB;
/// Room for one segment and not for a second.
const ONE_SEGMENT: u64 = 72 * MIB;
/// How long an answer may take. Waiting for space would take for ever.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// How long a server may take to end. It drains and closes for ten seconds each at the most.
const STOP_MAX: Duration = Duration::from_secs(30);
/// How long a server may take to notice that there is room again. It looks four times a second.
const RESUME_MAX: Duration = Duration::from_secs(30);

/// One attempt only: what the server answers is what the test sees.
fn client(server: &Server) -> Client {
    let options = ClientOptions { retry: RetryPolicy::NONE, request_timeout: ANSWER_MAX, ..ClientOptions::default() };
    Client::connect_with(&server.address(), options).expect("the server accepts connections")
}

fn start(disk: &SmallDisk) -> Server {
    let server = Server::start(binary(), &data_dir(disk), &["--cores", "1", "--shards", "2"]);
    // Waits out the replay, which the client above would not.
    let mut patient = server.client();
    for namespace in NAMESPACES {
        let _known_or_not = patient.get(namespace, b"replayed");
    }
    server
}

fn data_dir(disk: &SmallDisk) -> std::path::PathBuf {
    disk.path().join("data")
}

/// Written to in turn.
const NAMESPACES: [&str; 2] = ["ns0", "ns1"];

/// Every acknowledged write: its number and the length of its value.
type Acknowledged = BTreeMap<u64, usize>;

fn value(number: u64, bytes: usize) -> Vec<u8> {
    let mut value = number.to_le_bytes().repeat(bytes.div_ceil(8));
    value.truncate(bytes);
    value
}

fn namespace(number: u64) -> &'static str {
    NAMESPACES[(number % 2) as usize]
}

fn write(number: u64, bytes: usize) -> Command {
    let put = Operation::put(namespace(number), &number.to_be_bytes(), &value(number, bytes));
    Command { operations: vec![put] }
}

/// Writes values of `bytes`, several at once, until all in flight are refused; the first refusal. Whatever is not acknowledged must
/// be refused, soon, for want of space.
fn write_until_full(client: &mut Client, next: &mut u64, bytes: usize, known: &mut Acknowledged) -> ClientError {
    let in_flight = 6;
    let (mut waiting, mut refused) = (VecDeque::<(u64, Ticket<WriteReply>)>::new(), None);
    loop {
        while refused.is_none() && waiting.len() < in_flight {
            waiting.push_back((*next, client.submit(&write(*next, bytes)).expect("sent")));
            *next += 1;
            assert!((waiting.len() * bytes) as u64 * *next < 1 << 50, "the disk never fills");
        }
        let Some((number, ticket)) = waiting.pop_front() else { return refused.expect("the loop ends with one") };
        match client.wait(&ticket) {
            Ok(reply) => {
                assert!(reply.applied);
                known.insert(number, bytes);
            }
            Err(error) => {
                assert_eq!(error.code(), Some(ErrorCode::DiskFull), "write {number} of {bytes} bytes: {error}");
                assert!(!matches!(error, ClientError::Timeout { .. }), "no answer: {error}");
                refused = Some(error);
            }
        }
    }
}

/// Fills the log to the brim, with smaller and smaller values.
fn fill_log(client: &mut Client, next: &mut u64, known: &mut Acknowledged) -> ClientError {
    let sizes = [3 << 20, 1 << 20, 64 << 10, 100];
    let refused: Vec<_> = sizes.into_iter().map(|bytes| write_until_full(client, next, bytes, known)).collect();
    refused.into_iter().next_back().expect("sizes")
}

fn check(client: &mut Client, known: &Acknowledged, when: &str) {
    for (&number, &bytes) in known {
        let found =
            client.get(namespace(number), &number.to_be_bytes()).unwrap_or_else(|error| panic!("{when}: {error}"));
        let found = found.unwrap_or_else(|| panic!("{when}: write {number} was acknowledged and is lost"));
        assert!(found.value == value(number, bytes), "{when}: write {number} has another value");
    }
}

fn write_once_resumed(client: &mut Client, next: &mut u64, known: &mut Acknowledged) {
    let deadline = Instant::now() + RESUME_MAX;
    loop {
        *next += 1;
        match client.call(&write(*next, 100)) {
            Ok(_) => break,
            Err(error) => assert_eq!(error.code(), Some(ErrorCode::DiskFull), "{error}"),
        }
        assert!(Instant::now() < deadline, "there is room, and writes are still refused");
        thread::sleep(Duration::from_millis(20));
    }
    known.insert(*next, 100);
}

/// Proposals were admitted as long as the log took one byte more; one that it did not take then waited for space, unanswered, and
/// all others of its shard behind it.
#[test]
fn a_full_disk_refuses_writes_keeps_reads_and_resumes() {
    let Some(disk) = SmallDisk::mount(confine(), DISK_BYTES) else { return };
    disk.fill(ONE_SEGMENT);
    let server = start(&disk);
    let mut client = client(&server);
    let (mut next, mut known) = (0, Acknowledged::new());
    let refused = fill_log(&mut client, &mut next, &mut known);
    assert!(known.len() > 20, "vacuous: only {} writes were acknowledged", known.len());
    assert!(refused.retriable() && refused.retry_after_ms() > 0, "{refused}");
    let text = refused.to_string();
    for needed in ["disk full", "free space", "resumes by itself", "log-000"] {
        assert!(text.contains(needed), "{needed:?} is missing: {text}");
    }
    check(&mut client, &known, "on a full disk");
    let (start_key, end, prefix) = (Vec::new(), Vec::new(), Vec::new());
    let scan =
        ScanRequest { namespace: NAMESPACES[0].into(), start: start_key, end, prefix, limit: 10, reverse: false };
    assert!(!client.scan(&scan).expect("scans go on").items.is_empty());
    let status = client.status(true).expect("the status goes on");
    assert!(status.contains("serving"));
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    assert!(status["event_counts"]["log_unprepared"].as_u64() > Some(0), "{}", status["event_counts"]);
    assert_eq!(unprepared_logs(&status), 1);

    server.kill();
    let server = start(&disk);
    let mut client = self::client(&server);
    check(&mut client, &known, "restarted on a full disk");
    fill_log(&mut client, &mut next, &mut known);
    check(&mut client, &known, "restarted on a full disk, once more full");

    disk.free();
    write_once_resumed(&mut client, &mut next, &mut known);
    let status = client.status(true).expect("the status goes on");
    assert_eq!(unprepared_logs(&serde_json::from_str(&status).expect("JSON")), 0);
    for _ in 0..20 {
        next += 1;
        client.call(&write(next, 1 << 20)).expect("there is room");
        known.insert(next, 1 << 20);
    }
    server.kill();
    check(&mut self::client(&start(&disk)), &known, "after all");
}

/// How many logs say that they cannot prepare their next segment.
fn unprepared_logs(status: &serde_json::Value) -> u64 {
    let metrics =
        status["cores"].as_array().into_iter().flatten().filter_map(|core| core["metrics"].as_array()).flatten();
    let unprepared: Vec<_> = metrics.filter(|metric| metric["name"] == "wal_unprepared").collect();
    assert!(!unprepared.is_empty(), "{status}");
    unprepared.iter().filter_map(|metric| metric["value"].as_u64()).sum()
}

/// A new store on a disk that cannot take it: nothing half-made may be in the way once there is room.
#[test]
fn a_store_that_finds_no_room_is_refused_and_comes_up_later() {
    let Some(disk) = SmallDisk::mount(confine(), DISK_BYTES) else { return };
    // Room for: nothing; a superblock; the first of two logs.
    for leave in [0, MIB, ONE_SEGMENT] {
        disk.fill(leave);
        let dir = data_dir(&disk);
        let path = dir.to_str().expect("UTF-8");
        for attempt in 1..=2 {
            let arguments = ["serve", "--listen", "127.0.0.1:0", "--cores", "2", "--data-dir", path];
            let refused = run(binary(), &arguments);
            let message = stderr(&refused);
            assert_eq!(refused.status.code(), Some(5), "{leave} bytes left, attempt {attempt}: {message}");
            assert!(message.contains("free") && message.contains("space"), "{leave} bytes left: {message}");
            assert!(message.contains(path), "{leave} bytes left: {message}");
        }
        disk.free();
        let server = Server::start(binary(), &dir, &["--cores", "2"]);
        let mut client = server.client();
        for number in 0..8 {
            client.put(&format!("ns{number}"), b"k", b"v").expect("there is room");
        }
        server.kill();
        let server = Server::start(binary(), &dir, &[]);
        for number in 0..8 {
            assert!(server.client().get(&format!("ns{number}"), b"k").expect("a healthy server").is_some());
        }
        server.kill();
        std::fs::remove_dir_all(&dir).expect("ours");
    }
}

/// What a thin-provisioned or copy-on-write disk does: a write into a file that has its full length finds no space after all. The log
/// must take that for its end, not wait and go on.
#[test]
fn a_log_whose_own_write_finds_no_room_stops_for_good() {
    let Some(disk) = SmallDisk::mount(confine(), DISK_BYTES) else { return };
    let server = start(&disk);
    let mut client = client(&server);
    let (mut next, mut known) = (0, Acknowledged::new());
    for _ in 0..4 {
        next += 1;
        client.call(&write(next, 1 << 20)).expect("there is room");
        known.insert(next, 1 << 20);
    }
    let segment = data_dir(&disk).join("log-000/wal-000000000001.seg");
    take_space_back(&segment, 8 * MIB, 56 * MIB);
    disk.fill(0);
    let error = loop {
        next += 1;
        assert!(next < 60, "the log writes where no space is");
        match client.call(&write(next, 300_000)) {
            Ok(_) => known.insert(next, 300_000),
            Err(error) => break error,
        };
    };
    assert_eq!(error.code(), Some(ErrorCode::LogFailed), "{error}");
    assert!(!error.retriable() && error.to_string().contains("space"), "{error}");
    disk.free();
    for _ in 0..5 {
        next += 1;
        let again = client.call(&write(next, 100)).expect_err("a log that failed stays down");
        assert_eq!(again.code(), Some(ErrorCode::LogFailed), "{again}");
        thread::sleep(Duration::from_millis(100));
    }
    server.kill();
    let verified = run(binary(), &["wal", "verify", data_dir(&disk).to_str().expect("UTF-8")]);
    assert!(!stdout(&verified).contains("corruption"), "{}", stdout(&verified));
    let server = start(&disk);
    let mut client = self::client(&server);
    check(&mut client, &known, "after the restart");
    client.call(&write(next + 1, 100)).expect("writes go on");
}

fn take_space_back(file: &Path, from: u64, bytes: u64) {
    let file = std::fs::File::options().write(true).open(file).expect("the log's first segment");
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, bytes).expect("tmpfs can");
}

/// Takes everything and answers nothing.
#[derive(Default)]
struct Sink(Option<LogPosition>);

impl StateMachine for Sink {
    fn applied(&self) -> Option<LogPosition> {
        self.0
    }

    fn apply(&mut self, batch: &[Committed<'_>], out: &mut Vec<Outcome>) -> Result<(), ApplyError> {
        self.0 = batch.last().map(|entry| entry.position);
        out.extend(batch.iter().map(|_| Outcome::EMPTY));
        Ok(())
    }
}

/// One life of the only replica of a shard.
fn live(wal: &Wal) -> Group {
    let (shard, replica) = (ShardId(0), ReplicaId { node: 1, incarnation: 1 });
    let log = WalLog::new(wal.clone(), shard, WalLogOptions::default());
    let config = GroupConfig { shard, replica, settings: RaftSettings::default() };
    Group::start(config, log, Box::new(Sink::default())).expect("the log is whole")
}

/// What a new leader writes waits for space, inside consensus's own task: to shut such a replica down took until there was some.
#[test]
fn a_replica_that_waits_for_space_can_be_shut_down() {
    let Some(disk) = SmallDisk::mount(confine(), 4 * MIB) else { return };
    let config = ExecutorConfig { io: IoChoice::Posix, ..ExecutorConfig::default() };
    Executor::start(config).expect("an executor starts").block_on(async {
        let (wal, _) =
            Wal::open(&disk.path().join("log"), LogNumber(0), WalOptions::small()).await.expect("there is room");
        disk.fill(0);
        // One life after the other, each with votes and an entry, until there is no room.
        for lives in 0.. {
            assert!(lives < 1000, "vacuous: the log never runs full");
            let group = live(&wal);
            let ready = timeout(Duration::from_secs(1), group.ready()).await;
            timeout(Duration::from_secs(3), group.shutdown()).await.expect("it does not wait for space");
            match ready {
                Ok(ready) => ready.expect("it waits"),
                Err(_) => break,
            }
        }
        disk.free();
        wal.close().await.expect("there is room again");
    });
}

/// A replica that starts votes for itself before anything else. The vote that found no room on a full disk stopped it for good.
#[test]
fn a_vote_waits_for_space_and_the_replica_goes_on() {
    let Some(disk) = SmallDisk::mount(confine(), 4 * MIB) else { return };
    let config = ExecutorConfig { io: IoChoice::Posix, ..ExecutorConfig::default() };
    Executor::start(config).expect("an executor starts").block_on(async {
        let (wal, _) =
            Wal::open(&disk.path().join("log"), LogNumber(0), WalOptions::small()).await.expect("there is room");
        let group = live(&wal);
        group.ready().await.expect("there is room");
        group.shutdown().await;
        disk.fill(0);
        // Nothing is left, not even what entries leave to votes.
        let mut refused = None;
        for epoch in 0..1_000_000 {
            refused = wal.save_home(GroupId(9), Home { epoch, retired: false }).await.err();
            if refused.is_some() {
                break;
            }
        }
        assert!(matches!(refused, Some(WalError::DiskFull { .. })), "{refused:?}");
        let vote = wal.group(GroupId(0)).expect("it lived").vote;
        let group = live(&wal);
        let waiting = timeout(Duration::from_secs(1), group.ready()).await;
        assert!(waiting.is_err(), "there is no room for a vote: {waiting:?}");
        assert_eq!(wal.group(GroupId(0)).expect("it lived").vote, vote);
        disk.free();
        timeout(RESUME_MAX, group.ready()).await.expect("it looks again").expect("there is room");
        group.shutdown().await;
        wal.close().await.expect("there is room");
    });
}

#[test]
fn a_server_on_a_full_disk_ends_when_told() {
    let Some(disk) = SmallDisk::mount(confine(), DISK_BYTES) else { return };
    disk.fill(ONE_SEGMENT);
    let mut server = start(&disk);
    let (mut next, mut known) = (0, Acknowledged::new());
    for _ in 0..3 {
        fill_log(&mut client(&server), &mut next, &mut known);
        let pid = rustix::process::Pid::from_raw(server.id().cast_signed()).expect("a process id");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the server runs");
        let told = Instant::now();
        let (status, log) = server.wait();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(told.elapsed() < STOP_MAX, "it took {:?}: {log}", told.elapsed());
        server = start(&disk);
        check(&mut client(&server), &known, "after it was told to end");
    }
}

/// The helper itself: a disk that is full is full, and one that was freed is not.
#[test]
fn the_small_disk_is_one() {
    let Some(disk) = SmallDisk::mount(confine(), MIB) else { return };
    disk.fill(0);
    let error = std::fs::write(disk.path().join("file"), [1; 4096]).expect_err("nothing is left");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    disk.free();
    std::fs::write(disk.path().join("file"), [1; 4096]).expect("there is room");
    assert!(!scratch().path().starts_with(disk.path()));
}
