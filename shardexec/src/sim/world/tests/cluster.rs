//! Three nodes that talk, write, go down and come back.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use super::{CORE, config, faulty, ms};
use crate::buf::AlignedBuf;
use crate::executor::{Class, spawn};
use crate::fs::{self, OpenOptions};
use crate::net::{ListenOptions, TcpListener, TcpStream};
use crate::random::random_u64;
use crate::sim::faults::{FaultCounts, FaultKind, FaultPlan};
use crate::sim::{NodeConfig, NodeId, Stop, World};
use crate::time::sleep;

/// Serves echoes on port 7 until the node goes down.
pub(super) async fn serve_echo() {
    let any = "0.0.0.0:7".parse().expect("an address");
    let Ok(listener) = TcpListener::bind(any, ListenOptions::default()).await else { return };
    while let Ok((stream, _)) = listener.accept().await {
        spawn(Class::Request, "echo", async move {
            loop {
                let (received, bytes) = stream.recv(Vec::with_capacity(256)).await;
                if !matches!(received, Ok(1..)) || stream.send_all(bytes).await.0.is_err() {
                    return;
                }
            }
        });
    }
}

/// Sends `count` messages to `server`, reconnecting as often as it takes; notes each echo.
pub(super) async fn call(server: NodeId, count: u32, echoes: Rc<Cell<u32>>) {
    let mut stream = None;
    for n in 0..count {
        loop {
            if stream.is_none() {
                stream =
                    crate::time::timeout(ms(500), TcpStream::connect(server.addr(7))).await.ok().and_then(Result::ok);
            }
            let Some(open) = &stream else {
                sleep(ms(20)).await;
                continue;
            };
            let message = (u64::from(n) << 32 | random_u64() & 0xffff_ffff).to_le_bytes().to_vec();
            let echoed = crate::time::timeout(ms(1000), echo(open, message.clone())).await;
            if matches!(echoed, Ok(Some(answer)) if answer == message) {
                break;
            }
            stream = None;
        }
        echoes.set(echoes.get() + 1);
    }
}

async fn echo(stream: &TcpStream, message: Vec<u8>) -> Option<Vec<u8>> {
    let wanted = message.len();
    stream.send_all(message).await.0.ok()?;
    let mut answer = Vec::with_capacity(wanted);
    while answer.len() < wanted {
        let (received, back) = stream.recv(answer).await;
        answer = back;
        if !matches!(received, Ok(1..)) {
            return None;
        }
    }
    Some(answer)
}

/// Uses the disk in many ways, and goes on whatever happens.
async fn log_for_ever() {
    let options = OpenOptions::new().read(true).write(true).create(true);
    for n in 0u64.. {
        sleep(ms(1 + random_u64() % 4)).await;
        let Ok(file) = options.open("/log").await else { continue };
        for part in 0..4 {
            let bytes = AlignedBuf::from(&[n as u8; 3000][..]);
            let _ = file.write_at(bytes, (n + part) % 32 * 3000).await;
        }
        let _ = file.read_at(AlignedBuf::zeroed(20_000), 0).await;
        let _ = file.sync_data().await;
        let _ = fs::write_atomic(format!("/state{}", n % 3), &n.to_le_bytes()).await;
    }
}

/// Three nodes: two serve echoes and note what they do in files, the third calls both. Nodes that go down are started again.
fn echo_cluster(seed: u64, plan: FaultPlan, calls: u32) -> (u64, u64, u32, FaultCounts) {
    let mut world = World::new(seed, faulty(plan));
    let nodes: Vec<NodeId> = (0..3).map(|_| world.add_node(NodeConfig::default())).collect();
    let echoes = Rc::new(Cell::new(0));
    let start = |world: &mut World, node: NodeId| {
        let echoes = Rc::clone(&echoes);
        let servers = [nodes[0], nodes[1]];
        let done = calls * 2 - echoes.get();
        world.start(node, CORE, &config(), move || async move {
            if node != servers[0] && node != servers[1] {
                call(servers[0], done / 2, Rc::clone(&echoes)).await;
                return call(servers[1], done - done / 2, echoes).await;
            }
            spawn(Class::Background, "log", log_for_ever());
            serve_echo().await;
        });
    };
    for &node in &nodes {
        start(&mut world, node);
    }
    let client = nodes[2];
    let mut until = Duration::ZERO;
    while echoes.get() < calls * 2 && until < Duration::from_mins(5) {
        until += ms(50);
        if until == Duration::from_secs(20) {
            world.heal();
        }
        if let Stop::Down(node, _) = world.run_until(until, u64::MAX) {
            start(&mut world, node);
        }
        assert_eq!(world.violations(), [], "seed {seed}");
    }
    assert!(world.is_running(client));
    (world.trace_hash(), world.steps(), echoes.get(), world.faults())
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_one_another() {
    for plan in [FaultPlan::none(), FaultPlan::honest()] {
        let runs: Vec<_> = [7, 7, 8].map(|seed| echo_cluster(seed, plan.clone(), 20)).into_iter().collect();
        assert_eq!(runs[0], runs[1]);
        assert_ne!(runs[0].0, runs[2].0);
    }
}

#[test]
fn a_cluster_under_faults_makes_progress_once_they_end() {
    let plan = FaultPlan::honest().with(FaultKind::PowerLoss, 3000).with(FaultKind::ProcessKill, 3000);
    let mut struck = FaultCounts::default();
    let mut traces = BTreeSet::new();
    for seed in 0..1000 {
        let (hash, _, echoes, faults) = echo_cluster(seed, plan.clone(), 3);
        assert_eq!(echoes, 6, "seed {seed}");
        struck.add(&faults);
        traces.insert(hash);
    }
    assert_eq!(traces.len(), 1000, "seeds differ");
    for kind in [FaultKind::PowerLoss, FaultKind::ProcessKill, FaultKind::LostUnsyncedWrite, FaultKind::NetDelay] {
        assert!(struck.of(kind) > 50, "{kind:?}: {struck:?}");
    }
}

#[test]
fn every_kind_of_fault_strikes() {
    let mut plan = FaultPlan::honest();
    for kind in FaultKind::ALL {
        let ppm = plan.ppm(kind).max(3_000);
        plan = plan.with(kind, ppm);
    }
    for kind in [FaultKind::PowerLoss, FaultKind::ProcessKill] {
        plan = plan.with(kind, 300);
    }
    let mut struck = FaultCounts::default();
    for seed in 0..40 {
        struck.add(&echo_cluster(seed, plan.clone(), 300).3);
    }
    let missing: Vec<&str> = struck.iter().filter(|&(_, count)| count == 0).map(|(kind, _)| kind.name()).collect();
    assert!(missing.is_empty(), "{missing:?} never struck");
}
