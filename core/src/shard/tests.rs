//! A shard on a log in memory, asked as connections ask it.

use super::machine::Machine;
use super::replica::{RECALLS_MAX, SCANS_MAX, Shard};
use crate::metrics::{Event, Registry, Snapshot};
use crate::raft::{APPLY_BATCH_MAX, Group, GroupConfig, MemoryLog, RaftSettings, ReplicaId};
use crate::recall::RecallIndex;
use crate::server::reply::{Answer, ReplyTo};
use crate::state::apply::SWEPT_PER_SWEEP;
use gristmill_rpc::body::{Body, access, archive};
use gristmill_rpc::error::ErrorCode;
use gristmill_rpc::frame::{FrameHeader, MessageType};
use gristmill_rpc::ids::{GrainId, ShardId};
use gristmill_rpc::ring::Ring;
use gristmill_rpc::schema::{
    ArchivedScanReply, ArchivedWriteReply, COMMAND_SCHEMA, Command, GetRequest, Operation, RecallRequest, ScanRequest,
};
use gristmill_shardexec::sync::oneshot;
use gristmill_shardexec::time::{Instant, sleep};
use gristmill_shardexec::{Class, Executor, ExecutorConfig, IoChoice, executor_stats, yield_now};
use std::rc::Rc;
use std::time::Duration;

const SHARD: ShardId = ShardId(0);
/// Virtual nodes of the ring: with one shard it makes no difference.
const VNODES: u32 = 8;

fn on_executor<F: Future>(future: F) -> F::Output {
    let config = ExecutorConfig { io: IoChoice::Posix, ..ExecutorConfig::default() };
    Executor::start(config).expect("an executor starts").block_on(future)
}

/// A shard that serves, and what it shows of itself.
struct Running {
    shard: Rc<Shard>,
    group: Group,
    registry: Registry,
}

impl Running {
    async fn start(log: &MemoryLog) -> Running {
        Running::start_with(log, RecallIndex::new()).await
    }

    async fn start_with(log: &MemoryLog, index: RecallIndex) -> Running {
        let registry = Registry::new(0);
        let machine = Machine::over(index, SHARD, &Ring::new(1, VNODES), &registry);
        let shard = Shard::new(SHARD, machine, &registry);
        let replica = ReplicaId { node: 1, incarnation: 1 };
        let config = GroupConfig { shard: SHARD, replica, settings: RaftSettings::default() };
        let group = Group::start(config, log.clone(), shard.machine().state_machine()).expect("the log is whole");
        shard.run(group.clone());
        group.ready().await.expect("it serves");
        Running { shard, group, registry }
    }

    async fn ask(&self, message: MessageType, body: Body) -> Answer {
        self.submit(message, body).await.expect("every request is answered")
    }

    fn submit(&self, message: MessageType, body: Body) -> oneshot::Receiver<Answer> {
        self.submit_until(None, message, body)
    }

    fn submit_until(&self, deadline: Option<Instant>, message: MessageType, body: Body) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        let mut header = FrameHeader::for_body(message, 1, &body);
        (header.shard, header.schema) = (SHARD, if message == MessageType::Write { COMMAND_SCHEMA } else { 0 });
        self.shard.serve(&header, body, deadline, ReplyTo::task(sender));
        receiver
    }

    async fn write(&self, operations: Vec<Operation>) {
        let answer = self.ask(MessageType::Write, archive(&Command { operations })).await.expect("written");
        assert!(access::<ArchivedWriteReply>(&answer).expect("a reply").applied);
    }

    fn snapshot(&self) -> Snapshot {
        self.registry.snapshot()
    }
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

fn put(key: u32, ttl_ms: u64) -> Operation {
    Operation::Put { namespace: "a".into(), key: key.to_be_bytes().to_vec(), value: vec![7; 100], ttl_ms }
}

#[test]
fn figures_move_with_writes_and_restarts() {
    let log = MemoryLog::new(SHARD);
    on_executor(async {
        let running = Running::start(&log).await;
        for key in 0..5 {
            running.write(vec![put(key, 0)]).await;
        }
        let snapshot = running.snapshot();
        let last = running.group.metrics().last_log.expect("written").index;
        for (name, value) in [
            ("proposals_total", 5),
            ("propose_batch_size", 5),
            ("propose_latency_us", 5),
            ("current_term", 1),
            ("commit_index", last as i64),
            ("applied_index", last as i64),
            ("log_entry_count", last as i64 + 1),
            ("peer_count", 0),
            ("is_leader", 1),
            ("elections_started_total", 1),
            ("leader_changes_total", 1),
            ("append_entries_sent_total", 0),
        ] {
            assert_eq!(snapshot.total(name), Some(value), "{name}");
        }
        assert!(snapshot.total("fencing_tokens_issued_total") >= Some(5), "one for each batch");
        until(|| running.snapshot().events.len() == 2).await;
        let snapshot = running.snapshot();
        let new = Event::RecoveryFinished { shard: 0, entries: 0, duration_us: 0 };
        assert_eq!(without_durations(&snapshot), [new, Event::LeaderElected { shard: 0, term: 1, node: 1 }]);
        running.shard.shutdown().await;
        assert_eq!(running.snapshot().total("is_leader"), Some(0));
    });
    on_executor(async {
        let running = Running::start(&log).await;
        until(|| !running.snapshot().events.is_empty()).await;
        let replayed = Event::RecoveryFinished { shard: 0, entries: 7, duration_us: 0 };
        // The founding entry, the first leader's, and five writes.
        assert_eq!(without_durations(&running.snapshot())[0], replayed);
        assert_eq!(running.snapshot().total("current_term"), Some(2));
    });
}

fn without_durations(snapshot: &Snapshot) -> Vec<Event> {
    let events = snapshot.events.iter().map(|record| match record.event.clone() {
        Event::RecoveryFinished { shard, entries, .. } => Event::RecoveryFinished { shard, entries, duration_us: 0 },
        other => other,
    });
    events.collect()
}

#[test]
fn expired_values_of_an_idle_shard_disappear() {
    const KEYS: u32 = 1200;
    let log = MemoryLog::new(SHARD);
    let figures = |running: &Running| {
        let machine = running.shard.machine();
        (machine.counts().values, machine.state_root())
    };
    let swept = on_executor(async {
        let running = Running::start(&log).await;
        running.write((0..3).map(|key| put(key, 0)).collect()).await;
        let memory = running.shard.machine().memory_bytes();
        running.write((3..KEYS).map(|key| put(key, 30)).collect()).await;
        assert!(running.shard.machine().memory_bytes() > memory);
        let applied = |running: &Running| running.snapshot().total("applied_index").expect("registered");
        let before = applied(&running);
        until(|| figures(&running).0 == 3).await;
        assert_eq!(running.shard.machine().memory_bytes(), memory, "the memory is free again");
        assert_eq!(running.shard.machine().state_root(), running.shard.machine().recomputed_root());
        let sweeps = i64::from(KEYS - 3 + SWEPT_PER_SWEEP as u32 - 1) / SWEPT_PER_SWEEP as i64;
        assert_eq!(applied(&running) - before, sweeps, "full sweeps, and no more");
        assert_eq!(running.snapshot().total("expired_values_swept_total"), Some(i64::from(KEYS) - 3));
        running.shard.shutdown().await;
        figures(&running)
    });
    on_executor(async {
        let running = Running::start(&log).await;
        assert_eq!(figures(&running), swept, "a replay sweeps the same");
    });
}

/// The keys of a page, and whether there is more.
async fn page(running: &Running, limit: u32, reverse: bool) -> (Vec<u32>, bool) {
    let (start, end, prefix) = (Vec::new(), Vec::new(), Vec::new());
    let request = ScanRequest { namespace: "a".into(), start, end, prefix, limit, reverse };
    let answer = running.ask(MessageType::Scan, archive(&request)).await.expect("scanned");
    let reply = access::<ArchivedScanReply>(&answer).expect("a reply");
    let keys = reply.items.iter().map(|item| u32::from_be_bytes(item.key.as_slice().try_into().expect("four bytes")));
    (keys.collect(), reply.more)
}

/// Long scans are tasks that take turns; short ones are answered at once.
#[test]
fn scans_of_any_length_are_answered_in_whole() {
    const KEYS: u32 = 3000;
    on_executor(async {
        let running = Running::start(&MemoryLog::new(SHARD)).await;
        running.write((0..KEYS).map(|key| put(key, 0)).collect()).await;
        assert_eq!(page(&running, 0, false).await, ((0..KEYS).collect(), false));
        assert_eq!(page(&running, 2000, true).await, ((1000..KEYS).rev().collect(), true));
        let tasks = executor_stats().tasks_alive;
        let request = |limit| {
            let (start, end, prefix) = (Vec::new(), Vec::new(), Vec::new());
            archive(&ScanRequest { namespace: "a".into(), start, end, prefix, limit, reverse: false })
        };
        let short = running.submit(MessageType::Scan, request(100));
        assert_eq!(executor_stats().tasks_alive, tasks, "a short scan needs no task");
        let long: Vec<_> = (0..50).map(|_| running.submit(MessageType::Scan, request(0))).collect();
        assert_eq!(executor_stats().tasks_alive, tasks + 50, "none was done on the spot");
        for (answer, length) in long.into_iter().map(|answer| (answer, KEYS)).chain([(short, 100)]) {
            let answer = answer.await.expect("answered").expect("scanned");
            assert_eq!(access::<ArchivedScanReply>(&answer).expect("a reply").items.len(), length as usize);
        }
    });
}

/// The shard's own tasks ran unwatched: with the proposer gone, writes waited in the queue for ever. And a write that was with
/// consensus was told that the server shuts down, since the group knew no more.
#[test]
fn a_task_that_panics_stops_its_shard_and_answers_what_waits() {
    for later in 0..40 {
        on_executor(async {
            let running = Running::start(&MemoryLog::new(SHARD)).await;
            running.shard.keep(Class::Raft, "doomed", async move {
                for _ in 0..later {
                    yield_now().await;
                }
                panic!("a defect");
            });
            // In the queue, with consensus or refused at the door: answered either way.
            let mut refused = 0;
            for round in 0..200 {
                let put = |key| archive(&Command { operations: vec![put(key, 0)] });
                let asked: Vec<_> =
                    (0..8).map(|key| running.submit(MessageType::Write, put(8 * round + key))).collect();
                for answer in asked {
                    let Err(rejection) = answer.await.expect("every request is answered") else { continue };
                    assert_eq!(rejection.code, ErrorCode::Internal, "{later}: {rejection:?}");
                    let names_it = rejection.message.contains("doomed") && rejection.message.contains("a defect");
                    assert!(names_it, "{later}: {rejection:?}");
                    refused += 1;
                }
                if refused > 0 {
                    return;
                }
            }
            panic!("the shard goes on without its task");
        });
    }
}

/// One write that no log entry can hold made the others of its batch fail.
#[test]
fn a_write_that_is_too_large_is_refused_alone() {
    on_executor(async {
        let running = Running::start(&MemoryLog::with_entry_bytes_max(SHARD, 16 << 10)).await;
        let put = |key: u32, bytes: usize| {
            let (namespace, key) = ("a".into(), key.to_be_bytes().to_vec());
            let operation = Operation::Put { namespace, key, value: vec![7; bytes], ttl_ms: 0 };
            running.submit(MessageType::Write, archive(&Command { operations: vec![operation] }))
        };
        let answers = [put(1, 100), put(2, 20 << 10), put(3, 100)];
        let [first, large, last] = answers;
        assert!(first.await.expect("answered").is_ok());
        assert_eq!(large.await.expect("answered").expect_err("too large").code, ErrorCode::TooLarge);
        assert!(last.await.expect("answered").is_ok());
    });
}

/// A text of words that few others have.
fn text_of(number: u32) -> String {
    let words: Vec<_> = (0..40).map(|word| format!("w{}", (number * 40 + word) % 50_021)).collect();
    words.join(" ")
}

/// In a replay nobody waits before proposing: with no wait in apply, the heads grew with the log.
#[test]
fn a_replay_keeps_the_bound_of_the_text_heads() {
    const GRAINS: u32 = 6000;
    const SOFT: usize = 256 << 10;
    const MAX: usize = 1 << 20;
    let log = MemoryLog::new(SHARD);
    let fill = async |running: &Running| {
        let operations = (0..GRAINS).map(|number| {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&number.to_be_bytes());
            let mut grain = crate::state::testing::grain("a", 0, "subject", None);
            (grain.id, grain.text) = (GrainId(id), Some(text_of(number)));
            Operation::PutGrain { grain }
        });
        let mut answers = Vec::new();
        for operation in operations {
            let body = archive(&Command { operations: vec![operation] });
            answers.push(running.submit(MessageType::Write, body));
        }
        for answer in answers {
            answer.await.expect("answered").expect("written");
        }
    };
    let unbounded = on_executor(async {
        let running = Running::start(&log).await;
        fill(&running).await;
        running.shard.machine().index_stats().text_heads_bytes_max
    });
    on_executor(async {
        let running = Running::start_with(&log, RecallIndex::with_head_limits(SOFT, MAX)).await;
        let stats = running.shard.machine().index_stats();
        assert_eq!(stats.texts, u64::from(GRAINS));
        // Without the bound the builder falls behind so far that nearly all texts lie in heads.
        let of_a_batch = unbounded * APPLY_BATCH_MAX as u64 / u64::from(GRAINS);
        assert!(stats.text_heads_bytes_max > MAX as u64, "vacuous: the bound was never reached: {stats:?}");
        assert!(stats.text_heads_bytes_max <= MAX as u64 + 2 * of_a_batch, "{stats:?}");
    });
}

fn scan_of_all() -> Body {
    let (start, end, prefix) = (Vec::new(), Vec::new(), Vec::new());
    archive(&ScanRequest { namespace: "a".into(), start, end, prefix, limit: 0, reverse: false })
}

fn recall_of_a_word() -> Body {
    archive(&RecallRequest {
        namespace: "a".into(),
        text: Some("word".into()),
        vector: None,
        relation: None,
        tags: Vec::new(),
        subject: String::new(),
        limit: 0,
        candidates: 0,
        with_grains: false,
    })
}

fn code(answer: Answer) -> Option<ErrorCode> {
    answer.err().map(|rejection| rejection.code)
}

/// Only writes used to look at their deadline: a read that had waited for long was done for nobody.
#[test]
fn no_read_begins_after_its_deadline() {
    on_executor(async {
        let running = Running::start(&MemoryLog::new(SHARD)).await;
        running.write((0..3000).map(|key| put(key, 0)).collect()).await;
        let get = archive(&GetRequest { namespace: "a".into(), key: 1u32.to_be_bytes().to_vec() });
        let requests =
            [(MessageType::Get, get), (MessageType::Scan, scan_of_all()), (MessageType::Recall, recall_of_a_word())];
        for (message, body) in requests {
            for (deadline, expected) in [
                (Some(Instant::now()), Some(ErrorCode::DeadlineExceeded)),
                (Some(Instant::now() + Duration::from_mins(1)), None),
            ] {
                let answer = running.submit_until(deadline, message, body.clone()).await.expect("answered");
                assert_eq!(code(answer), expected, "{message:?}");
            }
        }
    });
}

/// Recalls ran all at once, however many there were. They take turns, and look at the clock when theirs has come.
#[test]
fn recalls_and_long_scans_take_turns_and_look_at_the_clock() {
    on_executor(async {
        let running = Running::start(&MemoryLog::new(SHARD)).await;
        running.write((0..3000).map(|key| put(key, 0)).collect()).await;
        let shard = &running.shard;
        for (message, body, turns, at_once) in [
            (MessageType::Scan, scan_of_all(), &shard.scans, SCANS_MAX),
            (MessageType::Recall, recall_of_a_word(), &shard.recalls, RECALLS_MAX),
        ] {
            let mut held: Vec<_> = std::iter::from_fn(|| turns.try_take()).collect();
            assert_eq!(held.len(), at_once);
            let deadline = Instant::now() + Duration::from_millis(5);
            let late = running.submit_until(Some(deadline), message, body.clone());
            let patient = running.submit(message, body.clone());
            sleep(Duration::from_millis(10)).await;
            held.pop();
            assert_eq!(code(late.await.expect("answered")), Some(ErrorCode::DeadlineExceeded), "{message:?}");
            assert_eq!(code(patient.await.expect("answered")), None, "{message:?}");
        }
    });
}
