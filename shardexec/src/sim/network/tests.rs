//! Streams, partitions, and each fault of the network: shown by its effect.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::{Future, pending};
use std::io::{self, ErrorKind};
use std::rc::Rc;
use std::time::Duration;

use crate::CoreId;
use crate::executor::{Class, ExecutorConfig, spawn};
use crate::net::{ListenOptions, ShutdownHow, TcpListener, TcpStream};
use crate::sim::{FaultKind, FaultPlan, NodeConfig, NodeId, SimConfig, Stop, World};
use crate::time::{Instant, sleep};

const CORE: CoreId = CoreId(0);
const A: NodeId = NodeId(0);
const B: NodeId = NodeId(1);
const ALWAYS: u32 = 1_000_000;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// What a program tells the test.
type Log = Rc<RefCell<Vec<String>>>;

fn note(log: &Log, text: impl Into<String>) {
    log.borrow_mut().push(text.into());
}

fn outcome<T: std::fmt::Debug>(result: io::Result<T>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("{:?}", error.kind()),
    }
}

/// Two nodes: `server` on [`A`] gets the listener, `client` on [`B`] the log.
fn two_nodes<S, C>(
    seed: u64,
    server: impl FnOnce(TcpListener, Log) -> S + 'static,
    client: impl FnOnce(Log) -> C + 'static,
) -> (World, Log)
where
    S: Future<Output = ()> + 'static,
    C: Future<Output = ()> + 'static,
{
    let mut world = World::new(seed, SimConfig::default());
    let log = Log::default();
    let nodes = [world.add_node(NodeConfig::default()), world.add_node(NodeConfig::default())];
    assert_eq!(nodes, [A, B]);
    let (server_log, client_log) = (Rc::clone(&log), Rc::clone(&log));
    world.start(A, CORE, &ExecutorConfig::default(), move || async move {
        server(listen().await, server_log).await;
    });
    world.start(B, CORE, &ExecutorConfig::default(), move || async move {
        sleep(Duration::from_millis(1)).await;
        client(client_log).await;
    });
    (world, log)
}

async fn listen() -> TcpListener {
    TcpListener::bind("0.0.0.0:7".parse().unwrap(), ListenOptions::default()).await.unwrap()
}

/// Takes connections and notes every byte, and how each connection ends.
async fn note_all(listener: TcpListener, log: Log) {
    while let Ok((stream, peer)) = listener.accept().await {
        assert_eq!(peer.ip(), B.ip());
        let log = Rc::clone(&log);
        spawn(Class::Request, "serve", async move {
            loop {
                let (received, bytes) = stream.recv(Vec::with_capacity(1000)).await;
                match received {
                    Ok(1..) => note(&log, format!("got {}", String::from_utf8(bytes).unwrap())),
                    end => return note(&log, format!("end {}", outcome(end))),
                }
            }
        });
    }
}

async fn connect() -> io::Result<TcpStream> {
    TcpStream::connect(A.addr(7)).await
}

async fn send(stream: &TcpStream, text: &str) -> io::Result<()> {
    stream.send_all(text.as_bytes().to_vec()).await.0
}

/// Everything that was got, in order.
fn got(log: &Log) -> String {
    log.borrow().iter().filter_map(|line| line.strip_prefix("got ")).collect()
}

fn has(log: &Log, line: &str) -> bool {
    log.borrow().iter().any(|noted| noted == line)
}

#[test]
fn bytes_arrive_in_order_in_pieces_and_then_the_end() {
    let mut pieces = BTreeSet::new();
    for seed in 0..50 {
        let (mut world, log) = two_nodes(seed, note_all, |_| async {
            let stream = connect().await.unwrap();
            for word in ["the ", "quick ", "brown ", "fox"] {
                send(&stream, word).await.unwrap();
            }
        });
        world.run_until(secs(60), u64::MAX);
        assert_eq!(got(&log), "the quick brown fox", "seed {seed}");
        assert!(has(&log, "end 0"));
        pieces.insert(log.borrow().len());
    }
    assert!(pieces.len() > 3, "the stream is cut differently: {pieces:?}");
}

#[test]
fn a_partition_stops_traffic_and_healing_restores_it() {
    for one_way in [false, true] {
        let (mut world, log) = two_nodes(1, note_all, |_| async {
            let stream = connect().await.unwrap();
            send(&stream, "before ").await.unwrap();
            sleep(secs(1)).await;
            send(&stream, "during ").await.unwrap();
            sleep(secs(5)).await;
            send(&stream, "after").await.unwrap();
            pending::<()>().await;
        });
        world.run_until(Duration::from_millis(500), u64::MAX);
        let partition = if one_way { world.partition_one_way(&[B], &[A]) } else { world.partition(&[A], &[B]) };
        world.run_until(secs(2), u64::MAX);
        assert_eq!(got(&log), "before ", "nothing gets through");
        world.heal_partition(partition);
        world.run_until(secs(10), u64::MAX);
        assert_eq!(got(&log), "before during after");
    }
}

#[test]
fn the_other_way_works_in_a_one_way_partition_until_acknowledgements_are_missed() {
    let (mut world, log) = two_nodes(1, note_all, |log| async move {
        let stream = connect().await.unwrap();
        sleep(secs(1)).await;
        send(&stream, "heard").await.unwrap();
        note(&log, format!("client {}", outcome(stream.recv(Vec::with_capacity(1)).await.0)));
    });
    world.run_until(Duration::from_millis(500), u64::MAX);
    world.partition_one_way(&[A], &[B]);
    world.run_until(secs(2), u64::MAX);
    assert_eq!(got(&log), "heard");
    world.run_until(secs(60), u64::MAX);
    assert!(has(&log, "client TimedOut"), "{log:?}");
    assert!(!log.borrow().iter().any(|line| line.starts_with("end")), "the server's side is half open");
}

#[test]
fn a_long_partition_breaks_the_senders_side_only() {
    let (mut world, log) = two_nodes(2, note_all, |log| async move {
        let stream = connect().await.unwrap();
        sleep(secs(1)).await;
        send(&stream, "into the void").await.unwrap();
        note(&log, format!("client {}", outcome(stream.recv(Vec::with_capacity(1)).await.0)));
        note(&log, format!("again {}", outcome(send(&stream, "more").await)));
    });
    world.run_until(Duration::from_millis(500), u64::MAX);
    world.partition(&[A], &[B]);
    world.run_until(secs(60), u64::MAX);
    assert_eq!(log.borrow()[..], ["client TimedOut", "again TimedOut"]);
}

#[test]
fn connecting_is_refused_times_out_or_finds_no_host() {
    let (mut world, log) = two_nodes(
        3,
        |listener, _| async move {
            drop(listener);
            pending::<()>().await;
        },
        |log| async move {
            note(&log, outcome(connect().await.map(drop)));
            note(&log, outcome(TcpStream::connect(NodeId(77).addr(7)).await.map(drop)));
            sleep(secs(1)).await;
            let began = Instant::now();
            note(&log, outcome(connect().await.map(drop)));
            assert!(began.elapsed() >= secs(9), "after the timeout");
        },
    );
    world.run_until(Duration::from_millis(900), u64::MAX);
    world.partition_one_way(&[A], &[B]);
    world.run_until(secs(60), u64::MAX);
    assert_eq!(world.violations(), []);
    assert_eq!(log.borrow()[..], ["ConnectionRefused", "HostUnreachable", "TimedOut"]);
}

#[test]
fn a_machine_without_power_is_silent_and_answers_with_a_reset_when_it_is_back() {
    let (mut world, log) = two_nodes(4, note_all, |log| async move {
        let stream = connect().await.unwrap();
        sleep(secs(2)).await;
        send(&stream, "anybody?").await.unwrap();
        note(&log, format!("client {}", outcome(stream.recv(Vec::with_capacity(1)).await.0)));
    });
    world.run_until(secs(1), u64::MAX);
    world.crash(A);
    world.run_until(Duration::from_millis(3500), u64::MAX);
    assert_eq!(log.borrow().len(), 0, "half open: nobody told the client");
    world.start(A, CORE, &ExecutorConfig::default(), || async { pending().await });
    world.run_until(secs(60), u64::MAX);
    assert_eq!(log.borrow()[..], ["client ConnectionReset"]);
}

#[test]
fn a_killed_process_ends_its_connections() {
    let (mut world, log) = two_nodes(5, note_all, |log| async move {
        let stream = connect().await.unwrap();
        note(&log, format!("client {}", outcome(stream.recv(Vec::with_capacity(1)).await.0)));
    });
    world.run_until(secs(1), u64::MAX);
    world.kill(A);
    world.run_until(secs(2), u64::MAX);
    assert_eq!(log.borrow()[..], ["client 0"]);
}

#[test]
fn closing_with_unread_bytes_resets() {
    let (mut world, log) = two_nodes(
        6,
        |listener, _| async move {
            let (stream, _) = listener.accept().await.unwrap();
            sleep(secs(1)).await;
            drop(stream);
            pending::<()>().await;
        },
        |log| async move {
            let stream = connect().await.unwrap();
            send(&stream, "unread").await.unwrap();
            note(&log, format!("client {}", outcome(stream.recv(Vec::with_capacity(1)).await.0)));
        },
    );
    world.run_until(secs(5), u64::MAX);
    assert_eq!(log.borrow()[..], ["client ConnectionReset"]);
}

#[test]
fn a_sender_waits_when_nobody_reads() {
    let sent = Rc::new(Cell::new(0));
    let count = Rc::clone(&sent);
    let (mut world, _) = two_nodes(
        7,
        |listener, log| async move {
            let (stream, _) = listener.accept().await.unwrap();
            sleep(secs(5)).await;
            let mut total = 0;
            while let (Ok(received @ 1..), _) = stream.recv(Vec::with_capacity(5000)).await {
                total += received;
            }
            note(&log, format!("total {total}"));
        },
        move |_| async move {
            let stream = connect().await.unwrap();
            for _ in 0..200 {
                stream.send_all(vec![1; 1000]).await.0.unwrap();
                count.set(count.get() + 1000);
            }
            stream.shutdown(ShutdownHow::Write).await.unwrap();
        },
    );
    let log = {
        world.run_until(secs(4), u64::MAX);
        let buffer = SimConfig::default().socket_buffer;
        assert!((buffer - 1000..=buffer).contains(&sent.get()), "{} of a buffer of {buffer}", sent.get());
        world.run_until(secs(60), u64::MAX)
    };
    assert_eq!((log, sent.get()), (Stop::Done, 200_000));
}

#[test]
fn late_segments_keep_their_order() {
    let end = |kind: Option<FaultKind>| {
        let (mut world, log) = two_nodes(8, note_all, |_| async {
            let stream = connect().await.unwrap();
            for n in 0..10 {
                send(&stream, &n.to_string()).await.unwrap();
            }
        });
        if let Some(kind) = kind {
            world.set_faults(FaultPlan::none().with(kind, 500_000));
        }
        while !log.borrow().iter().any(|line| line.starts_with("end")) {
            assert_eq!(world.step(secs(60)), None);
        }
        assert_eq!(got(&log), "0123456789");
        assert_eq!(kind.map_or(0, |kind| world.faults().of(kind)) > 0, kind.is_some());
        world.now()
    };
    let usual = end(None);
    for kind in [FaultKind::NetDelay, FaultKind::NetDrop, FaultKind::NetReorder] {
        assert!(end(Some(kind)) > usual, "{kind:?} delays");
    }
}

#[test]
fn a_reset_delivers_a_part_and_a_duplicate_all_of_it() {
    let mut parts = BTreeSet::new();
    for seed in 0..100 {
        for kind in [FaultKind::NetReset, FaultKind::NetDuplicate] {
            let (mut world, log) = two_nodes(seed, note_all, |log| async move {
                let stream = connect().await.unwrap();
                send(&stream, "request").await.unwrap();
                note(&log, format!("client {}", outcome(stream.recv(Vec::with_capacity(1)).await.0)));
            });
            world.set_faults(FaultPlan::none().with(kind, ALWAYS));
            world.run_until(secs(5), u64::MAX);
            assert!(has(&log, "client ConnectionReset"), "seed {seed}: {log:?}");
            assert!(has(&log, "end ConnectionReset"), "seed {seed}: {log:?}");
            let got = got(&log);
            assert!("request".starts_with(&got), "a prefix: {got}");
            if kind == FaultKind::NetReset {
                parts.insert(got);
            } else if world.faults().of(kind) == 1 {
                assert_eq!(got, "request");
            }
        }
    }
    assert!(parts.len() > 3, "{parts:?}");
}

#[test]
fn partitions_of_the_plan_come_and_go() {
    let mut struck = [0; 2];
    for seed in 0..20 {
        let mut world = World::new(seed, SimConfig::default());
        for _ in 0..3 {
            let node = world.add_node(NodeConfig::default());
            world.start(node, CORE, &ExecutorConfig::default(), || async { pending().await });
        }
        let plan = FaultPlan::none();
        world.set_faults(plan.with(FaultKind::PartitionOneWay, 50_000).with(FaultKind::PartitionTwoWay, 50_000));
        let cuts = |world: &World| {
            let state = world.state.borrow();
            (0..9).filter(|link| state.network.is_cut(link / 3, link % 3)).count()
        };
        let mut seen = BTreeSet::new();
        for step in 0..1000 {
            world.run_until(Duration::from_millis(20 * step), u64::MAX);
            seen.insert(cuts(&world));
        }
        assert!(seen.contains(&0) && seen.len() > 1, "seed {seed}: {seen:?}");
        struck[0] += world.faults().of(FaultKind::PartitionOneWay);
        struck[1] += world.faults().of(FaultKind::PartitionTwoWay);
        world.heal();
        assert_eq!(cuts(&world), 0);
    }
    assert!(struck.iter().all(|&count| count > 20), "{struck:?}");
}

#[test]
fn cores_share_a_port_when_both_want_to() {
    let mut world = World::new(1, SimConfig::default());
    let node = world.add_node(NodeConfig::default());
    let other = world.add_node(NodeConfig::default());
    let served = Rc::new(RefCell::new([0; 2]));
    for core in [CoreId(0), CoreId(1)] {
        let served = Rc::clone(&served);
        world.start(node, core, &ExecutorConfig::default(), move || async move {
            let shared = ListenOptions { reuse_port: true, ..ListenOptions::default() };
            let listener = TcpListener::bind("0.0.0.0:7".parse().unwrap(), shared).await.unwrap();
            let alone = TcpListener::bind(node.addr(7), ListenOptions::default()).await;
            assert_eq!(alone.err().unwrap().kind(), ErrorKind::AddrInUse);
            let foreign = TcpListener::bind(other.addr(7), ListenOptions::default()).await;
            assert_eq!(foreign.err().unwrap().kind(), ErrorKind::AddrNotAvailable);
            loop {
                listener.accept().await.unwrap();
                served.borrow_mut()[usize::from(core.0)] += 1;
            }
        });
    }
    world.start(other, CORE, &ExecutorConfig::default(), move || async move {
        sleep(Duration::from_millis(5)).await;
        for _ in 0..100 {
            TcpStream::connect(node.addr(7)).await.unwrap();
        }
    });
    world.run_until(secs(10), u64::MAX);
    assert_eq!(world.violations(), []);
    let served = *served.borrow();
    assert!(served[0] + served[1] == 100 && served.iter().all(|&count| count > 20), "{served:?}");
}

#[test]
fn a_full_backlog_makes_connects_wait() {
    let (mut world, log) = two_nodes(
        1,
        |listener, _| async move {
            drop(listener);
            let few = ListenOptions { backlog: 2, ..ListenOptions::default() };
            let listener = TcpListener::bind("0.0.0.0:8".parse().unwrap(), few).await.unwrap();
            sleep(secs(3)).await;
            for _ in 0..4 {
                drop(listener.accept().await.unwrap());
            }
            pending::<()>().await;
        },
        |log| async move {
            for _ in 0..4 {
                let log = Rc::clone(&log);
                spawn(Class::Request, "connect", async move {
                    let began = Instant::now();
                    TcpStream::connect(A.addr(8)).await.unwrap();
                    note(&log, if began.elapsed() > secs(2) { "late" } else { "at once" });
                });
            }
            pending::<()>().await;
        },
    );
    world.run_until(secs(30), u64::MAX);
    assert_eq!(world.violations(), []);
    assert_eq!(log.borrow()[..], ["at once", "at once", "late", "late"]);
}
