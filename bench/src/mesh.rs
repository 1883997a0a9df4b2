//! Round trips between two cores, and the floors under them.
//!
//! ```text
//!   core 0                     core 1
//!   send ──── mesh ring ────►  recv (a task of the executor, awake or parked)
//!   recv ◄─── mesh ring ─────  send
//! ```
//!
//! Every function returns the median round trip in microseconds. Both threads are pinned where the machine has two CPUs for them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gristmill_shardexec::cores::{BodyPanic, Cores, allowed_cpus, cpu_for};
use gristmill_shardexec::mesh::{MeshPort, mesh, ring};
use gristmill_shardexec::net::{self, ListenOptions};
use gristmill_shardexec::{CoreId, Executor, ExecutorConfig, IoChoice, SpinPolicy};
use rustix::event::{EventfdFlags, eventfd};

use crate::goals::median;

/// The last message of a run.
const STOP: u64 = u64::MAX;

/// Messages that may be under way between the two cores; one is.
const CAPACITY: usize = 64;

/// Longer than any wait in a spinning run, so that no core parks.
const SPIN: Duration = Duration::from_secs(1);

/// Bytes of an echoed message.
pub const ECHO_BYTES: usize = 64;

/// How many round trips are measured, and how.
#[derive(Clone, Copy, Debug)]
pub struct Trips {
    /// Samples, whose median counts.
    pub samples: usize,
    /// Round trips a sample: many where one is too short for the clock.
    pub per_sample: u32,
}

impl Trips {
    /// Times `trip`, after as many unmeasured ones as make a tenth of the run.
    fn median_us(self, mut trip: impl FnMut()) -> f64 {
        for _ in 0..self.samples.div_ceil(10) * self.per_sample as usize {
            trip();
        }
        let mut samples = Vec::with_capacity(self.samples);
        for _ in 0..self.samples {
            let began = Instant::now();
            for _ in 0..self.per_sample {
                trip();
            }
            samples.push(began.elapsed().as_secs_f64() * 1e6 / f64::from(self.per_sample));
        }
        median(&samples)
    }
}

fn config(core: CoreId, spin: SpinPolicy) -> ExecutorConfig {
    ExecutorConfig { pin_to: cpu_for(core, 2), spin, ..ExecutorConfig::default() }
}

fn pin_this_thread(core: u16) {
    if let Some(cpu) = cpu_for(CoreId(core), 2) {
        let mut cpus = rustix::thread::CpuSet::new();
        cpus.set(cpu);
        rustix::thread::sched_setaffinity(None, &cpus).expect("an allowed CPU");
    }
}

/// Gives the calling thread all its CPUs back.
fn unpin_this_thread(allowed: &[usize]) {
    let mut cpus = rustix::thread::CpuSet::new();
    for &cpu in allowed {
        cpus.set(cpu);
    }
    rustix::thread::sched_setaffinity(None, &cpus).expect("the CPUs it had");
}

/// Runs `measure` on this thread, pinned as core 0, with `peer` on another, pinned as core 1.
fn against_peer<R>(peer: impl FnOnce() + Send + 'static, measure: impl FnOnce() -> R) -> R {
    let allowed = allowed_cpus();
    let peer: JoinHandle<()> = std::thread::spawn(move || {
        pin_this_thread(1);
        peer();
    });
    pin_this_thread(0);
    let measured = measure();
    peer.join().expect("the peer ends well");
    unpin_this_thread(&allowed);
    measured
}

/// Sends everything back until told to stop.
async fn answer(port: MeshPort<u64>) {
    loop {
        let (from, message) = port.recv().await;
        if message == STOP {
            return;
        }
        port.send(from, message).await.expect("the asker waits for the answer");
    }
}

async fn round_trip(port: &MeshPort<u64>, message: u64) {
    port.send(CoreId(1), message).await.expect("the peer waits for STOP");
    let (_, answer) = port.recv().await;
    assert_eq!(answer, message);
}

/// A round trip between tasks of two executors over the mesh; with [`SpinPolicy::Never`] both park in between.
pub fn mesh_us(trips: Trips, spin: SpinPolicy) -> f64 {
    let mut seats = mesh::<u64>(2, CAPACITY).into_iter();
    let body = |core: CoreId| {
        let seat = seats.next().expect("one seat a core");
        move || async move {
            let port = seat.attach();
            if core == CoreId(1) {
                answer(port).await;
                return None;
            }
            let mut samples = Vec::with_capacity(trips.samples);
            for sample in 0..trips.samples + trips.samples.div_ceil(10) {
                let began = Instant::now();
                for message in 0..u64::from(trips.per_sample) {
                    round_trip(&port, message).await;
                }
                if sample >= trips.samples.div_ceil(10) {
                    samples.push(began.elapsed().as_secs_f64() * 1e6 / f64::from(trips.per_sample));
                }
            }
            port.send(CoreId(1), STOP).await.expect("the peer waits for STOP");
            Some(median(&samples))
        }
    };
    let mut cores = Cores::start(2, BodyPanic::Abort, |core| config(core, spin), body).expect("two cores").join();
    cores.swap_remove(0).expect("a panic aborts").expect("core 0 measures")
}

/// How the spinning round trip is to be spun: never parks.
pub fn spinning() -> SpinPolicy {
    SpinPolicy::For(SPIN)
}

/// Floor of the spinning round trip: the bare rings between two threads that do nothing else.
pub fn bare_ring_us(trips: Trips) -> f64 {
    let (mut ask, mut asked) = ring::ring::<u64>(CAPACITY);
    let (mut answer, mut answered) = ring::ring::<u64>(CAPACITY);
    let peer = move || {
        loop {
            let Some(popped) = asked.pop() else {
                std::hint::spin_loop();
                continue;
            };
            if popped.message == STOP {
                return;
            }
            assert!(answer.push(popped.message).is_ok(), "one message at a time fits");
        }
    };
    against_peer(peer, move || {
        let measured = trips.median_us(|| {
            assert!(ask.push(1).is_ok(), "one message at a time fits");
            while answered.pop().is_none() {
                std::hint::spin_loop();
            }
        });
        assert!(ask.push(STOP).is_ok(), "one message at a time fits");
        measured
    })
}

/// Floor of the parked round trip: two threads that wake each other through bare eventfds.
pub fn bare_eventfd_us(trips: Trips) -> f64 {
    let pair = || {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        (fd.try_clone().expect("a descriptor"), fd)
    };
    let ((ask, asked), (answer, answered)) = (pair(), pair());
    let wait = |fd: &std::os::fd::OwnedFd| {
        let mut count = [0; 8];
        rustix::io::read(fd, &mut count).expect("an eventfd is readable");
        u64::from_ne_bytes(count)
    };
    let wake = |fd: &std::os::fd::OwnedFd, count: u64| {
        rustix::io::write(fd, &count.to_ne_bytes()).expect("an eventfd is writable");
    };
    let peer = move || {
        while wait(&asked) == 1 {
            wake(&answer, 1);
        }
    };
    against_peer(peer, move || {
        let measured = trips.median_us(|| {
            wake(&ask, 1);
            wait(&answered);
        });
        wake(&ask, 2);
        measured
    })
}

/// A 64-byte echo over loopback TCP: a blocking client, and a server on our executor.
pub fn echo_us(trips: Trips, io: IoChoice) -> f64 {
    let (bound, address) = std::sync::mpsc::channel();
    let server = move || {
        let config = ExecutorConfig { io, ..ExecutorConfig::default() };
        let mut executor = Executor::start(config).expect("the driver starts");
        executor.block_on(async {
            let listener = net::TcpListener::bind("127.0.0.1:0".parse().expect("an address"), ListenOptions::default())
                .await
                .expect("a free port");
            bound.send(listener.local_addr()).expect("the client waits");
            let (stream, _) = listener.accept().await.expect("the client comes");
            let mut buf = Vec::with_capacity(4096);
            loop {
                buf.clear();
                let (received, filled) = stream.recv(buf).await;
                if received.expect("loopback does not fail") == 0 {
                    return;
                }
                let (sent, emptied) = stream.send_all(filled).await;
                sent.expect("the client reads");
                buf = emptied;
            }
        });
    };
    against_peer(server, || client_us(trips, address.recv().expect("the server tells")))
}

/// Floor of the echo: the same client, and a server of two blocking system calls a message.
pub fn blocking_echo_us(trips: Trips) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let server = move || {
        let (mut stream, _) = listener.accept().expect("the client comes");
        stream.set_nodelay(true).expect("a TCP option");
        let mut buf = [0; 4096];
        loop {
            let received = stream.read(&mut buf).expect("loopback does not fail");
            if received == 0 {
                return;
            }
            stream.write_all(&buf[..received]).expect("the client reads");
        }
    };
    against_peer(server, || client_us(trips, address))
}

fn client_us(trips: Trips, address: std::net::SocketAddr) -> f64 {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_nodelay(true).expect("a TCP option");
    let mut buf = [7; ECHO_BYTES];
    trips.median_us(|| {
        stream.write_all(&buf).expect("the server reads");
        stream.read_exact(&mut buf).expect("the server answers");
    })
}

/// `hops` messages from each of two executors on threads of their own to the other, after a warm-up. Both run `count` around the
/// measured part, and the larger result is returned.
pub fn hops_counted(hops: u64, count: impl Fn(&mut dyn FnMut()) -> u64 + Send + Copy + 'static) -> u64 {
    let run = move |seat: gristmill_shardexec::mesh::MeshSeat<u64>| {
        let core = seat.core();
        let mut executor =
            Executor::start(ExecutorConfig { core, ..config(core, SpinPolicy::Never) }).expect("the driver starts");
        let port = executor.block_on(async { seat.attach() });
        let mut exchange = |messages: u64| {
            executor.block_on(async {
                for message in 0..messages {
                    if core == CoreId(0) {
                        round_trip(&port, message).await;
                    } else {
                        let (from, message) = port.recv().await;
                        port.send(from, message).await.expect("the asker waits for the answer");
                    }
                }
            });
        };
        exchange(hops / 10);
        count(&mut || exchange(hops))
    };
    let threads: Vec<_> =
        mesh::<u64>(2, CAPACITY).into_iter().map(|seat| std::thread::spawn(move || run(seat))).collect();
    threads.into_iter().map(|thread| thread.join().expect("no core panics")).max().expect("two cores")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEW: Trips = Trips { samples: 5, per_sample: 10 };

    #[test]
    fn every_row_runs_at_smoke_size() {
        let rows = [
            mesh_us(FEW, spinning()),
            mesh_us(FEW, SpinPolicy::Never),
            bare_ring_us(FEW),
            bare_eventfd_us(FEW),
            echo_us(FEW, IoChoice::Auto),
            echo_us(FEW, IoChoice::Posix),
            blocking_echo_us(FEW),
        ];
        assert!(rows.iter().all(|us| us.is_finite() && *us > 0.0), "{rows:?}");
    }

    #[test]
    fn both_cores_hop_as_often_as_asked() {
        let calls = hops_counted(50, |hops| {
            hops();
            1
        });
        assert_eq!(calls, 1);
    }
}
