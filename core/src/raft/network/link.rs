//! A connection to another node, shared by all groups of a core.
//!
//! ```text
//!   call ─► queue, bounded ─► writer ─► rpc's client protocol core ─► socket
//!     ▲                                          │
//!     └──────────── answer, by correlation ◄─────┴─ reader ◄────────── socket
//!
//!   idle ──a call──► connect ─► hello ─► peer hello ─► open ──broken──► everybody is told, pause ─► idle
//! ```
//!
//! Invariants
//! - Calls leave in the order in which they were made.
//! - A call is answered once, or told why not. During the pause after a failure calls fail at once, so nobody waits for a
//!   node that is known to be away.
//! - At most [`CALLS_QUEUED_MAX`] calls and [`BYTES_QUEUED_MAX`] of their bodies wait; what is in flight is bounded by the
//!   protocol.
//! - A connection on which nothing comes back for `silence_max` while an answer is due counts as broken: a peer that vanished
//!   without a word is found out.
//! - Time and randomness are the executor's.

use super::book::PeerBook;
use futures_util::future::try_join3;
use gristmill_rpc::body::{Body, archive};
use gristmill_rpc::frame::MessageType;
use gristmill_rpc::ids::{SessionId, ShardId};
use gristmill_rpc::limits::{FRAME_BODY_BYTES_MAX, IN_FLIGHT_MAX};
use gristmill_rpc::message::read;
use gristmill_rpc::peer::{PeerHello, PeerHelloReply, Replica};
use gristmill_rpc::protocol::{Call, Connection, Event, ServerError, SubmitError};
use gristmill_shardexec::net::TcpStream;
use gristmill_shardexec::random::random_u64;
use gristmill_shardexec::sync::{Notify, oneshot};
use gristmill_shardexec::time::{Instant, sleep, sleep_until, timeout};
use gristmill_shardexec::{Class, spawn};
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

/// Calls that wait for the connection.
pub const CALLS_QUEUED_MAX: usize = 1024;
/// Bytes of the bodies of calls that wait for the connection.
pub const BYTES_QUEUED_MAX: usize = 32 << 20;
/// Bytes that one receive may take.
const RECEIVE_BYTES: usize = 64 << 10;
/// Output buffers larger than this are freed instead of kept for the next send.
const OUTPUT_KEPT_BYTES_MAX: usize = 1 << 20;

const _: () = assert!(BYTES_QUEUED_MAX >= FRAME_BODY_BYTES_MAX as usize);

/// How long a link waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkOptions {
    /// For a connection, until it is open.
    pub connect_max: Duration,
    /// For any byte while an answer is due.
    pub silence_max: Duration,
    /// After the first failure. Doubles with each further one; half of it is random.
    pub pause_min: Duration,
    /// After many failures.
    pub pause_max: Duration,
}

impl Default for LinkOptions {
    fn default() -> LinkOptions {
        LinkOptions {
            connect_max: Duration::from_secs(1),
            silence_max: Duration::from_secs(2),
            pause_min: Duration::from_millis(10),
            pause_max: Duration::from_millis(500),
        }
    }
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// No connection, or it broke; the call may have arrived.
    #[error("node {node} cannot be reached: {reason}")]
    Unreachable { node: u64, reason: Rc<str> },
    /// Too much waits for the node already.
    #[error("{calls} calls of {bytes} bytes wait for node {node}")]
    Busy { node: u64, calls: usize, bytes: usize },
    /// The node answered with an error.
    #[error("node {node} refuses: {error}")]
    Refused { node: u64, error: ServerError },
}

type Waiter = oneshot::Sender<Result<Body, CallError>>;

struct Queued {
    call: Call,
    deadline_ms: u32,
    waiter: Waiter,
}

/// The connection to one node. A clone is the same one.
#[derive(Clone)]
pub(crate) struct Link(Rc<Inner>);

struct Inner {
    node: u64,
    book: PeerBook,
    options: LinkOptions,
    queue: RefCell<VecDeque<Queued>>,
    queued_bytes: Cell<usize>,
    /// Why calls fail at once, during the pause after a failure.
    away: RefCell<Option<Rc<str>>>,
    /// A call was queued, or there is room for those that are.
    wanted: Notify,
}

impl Link {
    /// A link to `node`, which connects with the first call.
    pub(crate) fn start(node: u64, book: PeerBook, options: LinkOptions) -> Link {
        let inner = Rc::new(Inner {
            node,
            book,
            options,
            queue: RefCell::default(),
            queued_bytes: Cell::new(0),
            away: RefCell::default(),
            wanted: Notify::new(),
        });
        spawn(Class::Raft, "peer link", Rc::clone(&inner).run());
        Link(inner)
    }

    /// Sends a request about `shard`, after those before it. The answer comes through the receiver, which may be dropped;
    /// `wait` is how long the peer may take to begin.
    pub(crate) fn call(
        &self,
        shard: ShardId,
        message: MessageType,
        body: Body,
        wait: Duration,
    ) -> oneshot::Receiver<Result<Body, CallError>> {
        let (waiter, answer) = oneshot::channel();
        let call = Call { message, body, shard, session: SessionId::NONE, sequence: 0 };
        let deadline_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(1);
        self.0.enqueue(Queued { call, deadline_ms, waiter });
        answer
    }
}

impl Inner {
    fn unreachable(&self, reason: &Rc<str>) -> CallError {
        CallError::Unreachable { node: self.node, reason: Rc::clone(reason) }
    }

    fn enqueue(&self, queued: Queued) {
        let refused = match &*self.away.borrow() {
            Some(reason) => Some(self.unreachable(reason)),
            None => self.has_no_room(queued.call.body.len()),
        };
        if let Some(error) = refused {
            tell(queued.waiter, Err(error));
            return;
        }
        self.queued_bytes.set(self.queued_bytes.get() + queued.call.body.len());
        self.queue.borrow_mut().push_back(queued);
        self.wanted.notify_one();
    }

    /// Why a call of `bytes` cannot wait, if that is so. Those that nobody waits for any more make room.
    fn has_no_room(&self, bytes: usize) -> Option<CallError> {
        let fits = |calls: usize, queued: usize| calls < CALLS_QUEUED_MAX && queued + bytes <= BYTES_QUEUED_MAX;
        if !fits(self.queue.borrow().len(), self.queued_bytes.get()) {
            let mut queue = self.queue.borrow_mut();
            queue.retain(|queued| !queued.waiter.is_closed());
            self.queued_bytes.set(queue.iter().map(|queued| queued.call.body.len()).sum());
        }
        let (calls, queued) = (self.queue.borrow().len(), self.queued_bytes.get());
        (!fits(calls, queued)).then_some(CallError::Busy { node: self.node, calls, bytes: queued })
    }

    fn dequeue(&self) -> Option<Queued> {
        let queued = self.queue.borrow_mut().pop_front()?;
        self.queued_bytes.set(self.queued_bytes.get() - queued.call.body.len());
        Some(queued)
    }

    /// Back to the front: the connection has no room for it yet.
    fn requeue(&self, queued: Queued) {
        self.queued_bytes.set(self.queued_bytes.get() + queued.call.body.len());
        self.queue.borrow_mut().push_front(queued);
    }

    async fn run(self: Rc<Self>) {
        let mut failures: u32 = 0;
        loop {
            while self.queue.borrow().is_empty() {
                self.wanted.notified().await;
            }
            let (was_open, reason) = self.talk().await;
            failures = if was_open { 1 } else { failures.saturating_add(1) };
            let reason: Rc<str> = reason.into();
            *self.away.borrow_mut() = Some(Rc::clone(&reason));
            while let Some(queued) = self.dequeue() {
                tell(queued.waiter, Err(self.unreachable(&reason)));
            }
            sleep(self.options.pause(failures, random_u64())).await;
            *self.away.borrow_mut() = None;
        }
    }

    /// Connects and serves calls until the connection breaks: whether it was open, and why it ended.
    async fn talk(&self) -> (bool, String) {
        let Some(address) = self.book.address(self.node) else {
            return (false, "its address is not known".to_owned());
        };
        let socket = match timeout(self.options.connect_max, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => return (false, format!("{address}: {error}")),
            Err(_) => return (false, format!("{address} does not answer")),
        };
        let name = format!("node {}", self.book.own().node);
        let talk = Talk {
            link: self,
            socket,
            connection: RefCell::new(Connection::new(&name, IN_FLIGHT_MAX)),
            waiting: RefCell::default(),
            greeting: Cell::new(None),
            open: Cell::new(false),
            heard: Cell::new(Instant::now()),
            asked: Notify::new(),
        };
        let Err(reason) = try_join3(talk.receive(), talk.send(), talk.watch()).await;
        let told: Rc<str> = reason.as_str().into();
        // In the order of the calls, so that runs repeat.
        let mut lost: Vec<(u64, Waiter)> = talk.waiting.take().into_iter().collect();
        lost.sort_unstable_by_key(|(correlation, _)| *correlation);
        for (_, waiter) in lost {
            tell(waiter, Err(self.unreachable(&told)));
        }
        (talk.open.get(), reason)
    }
}

impl LinkOptions {
    /// The pause after so many failures in a row: exponential, its second half random.
    fn pause(&self, failures: u32, random: u64) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let whole = self.pause_min.saturating_mul(1 << doublings).min(self.pause_max);
        let half = whole / 2;
        half + Duration::from_nanos(random % (half.as_nanos() as u64 + 1))
    }
}

/// The caller may have given up.
fn tell(waiter: Waiter, answer: Result<Body, CallError>) {
    let _ = waiter.send(answer);
}

/// One connection from its opening to its end.
struct Talk<'a> {
    link: &'a Inner,
    socket: TcpStream,
    connection: RefCell<Connection>,
    waiting: RefCell<FxHashMap<u64, Waiter>>,
    /// The correlation of the peer hello.
    greeting: Cell<Option<u64>>,
    /// The peer hello was answered: calls may go.
    open: Cell<bool>,
    /// When something came last, or was asked after all was answered.
    heard: Cell<Instant>,
    /// An answer is due.
    asked: Notify,
}

impl Talk<'_> {
    async fn receive(&self) -> Result<Infallible, String> {
        let mut buffer = Vec::with_capacity(RECEIVE_BYTES);
        loop {
            buffer.clear();
            let received;
            (received, buffer) = self.socket.recv(buffer).await;
            match received {
                Ok(0) => return Err("it closed the connection".to_owned()),
                Ok(_) => self.heard.set(Instant::now()),
                Err(error) => return Err(error.to_string()),
            }
            let mut input = &buffer[..];
            loop {
                let event = self.connection.borrow_mut().receive(&mut input).map_err(|error| error.to_string())?;
                let Some(event) = event else { break };
                self.take(event)?;
            }
            // Answers make room for calls.
            self.link.wanted.notify_one();
        }
    }

    fn take(&self, event: Event) -> Result<(), String> {
        match event {
            Event::Ready => self.greet(),
            Event::Reply { correlation, result } if self.greeting.get() == Some(correlation) => self.greeted(result),
            Event::Reply { correlation, result } => {
                let waiter =
                    self.waiting.borrow_mut().remove(&correlation).expect("each call in flight has its waiter");
                let node = self.link.node;
                tell(waiter, result.map_err(|error| CallError::Refused { node, error }));
                Ok(())
            }
        }
    }

    /// The server knows the protocol: says which cluster and node this is.
    fn greet(&self) -> Result<(), String> {
        let book = &self.link.book;
        let (shards, ring_vnodes) = book.ring();
        let own = book.own();
        let hello = PeerHello {
            cluster: book.cluster().0,
            from: Replica { node: own.node, incarnation: own.incarnation },
            to_node: self.link.node,
            shards,
            ring_vnodes,
        };
        let call = Call {
            message: MessageType::PeerHello,
            body: archive(&hello),
            shard: ShardId::ANY,
            session: SessionId::NONE,
            sequence: 0,
        };
        let correlation = self.connection.borrow_mut().submit(&call, None, 0).map_err(|error| error.to_string())?;
        self.greeting.set(Some(correlation));
        Ok(())
    }

    fn greeted(&self, result: Result<Body, ServerError>) -> Result<(), String> {
        let body = result.map_err(|error| error.to_string())?;
        let reply = read::<PeerHelloReply>(&body).map_err(|error| error.to_string())?;
        if reply.replica.node != self.link.node {
            return Err(format!("node {} answers at its address", reply.replica.node));
        }
        self.open.set(true);
        Ok(())
    }

    async fn send(&self) -> Result<Infallible, String> {
        let mut spare = Vec::new();
        loop {
            self.submit_queued();
            if self.connection.borrow().output().is_empty() {
                self.link.wanted.notified().await;
                continue;
            }
            let output = self.connection.borrow_mut().take_output(std::mem::take(&mut spare));
            self.asked.notify_one();
            let sent;
            (sent, spare) = self.socket.send_all(output).await;
            sent.map_err(|error| error.to_string())?;
            spare.clear();
            spare.shrink_to(OUTPUT_KEPT_BYTES_MAX);
        }
    }

    /// Hands the connection as many calls as it takes.
    fn submit_queued(&self) {
        let mut connection = self.connection.borrow_mut();
        while self.open.get()
            && let Some(queued) = self.link.dequeue()
        {
            if queued.waiter.is_closed() {
                continue; // nobody waits any more, and nothing was sent
            }
            if connection.in_flight() == 0 {
                self.heard.set(Instant::now());
            }
            match connection.submit(&queued.call, None, queued.deadline_ms) {
                Ok(correlation) => {
                    self.waiting.borrow_mut().insert(correlation, queued.waiter);
                }
                Err(SubmitError::Full { .. }) => {
                    self.link.requeue(queued);
                    return;
                }
                Err(error) => {
                    let reason = error.to_string().as_str().into();
                    tell(queued.waiter, Err(self.link.unreachable(&reason)));
                }
            }
        }
    }

    /// Ends the connection when the peer says nothing although it should.
    async fn watch(&self) -> Result<Infallible, String> {
        let silence_max = self.link.options.silence_max;
        loop {
            let due = self.heard.get() + silence_max;
            if !self.open.get() || self.connection.borrow().in_flight() > 0 {
                if Instant::now() >= due {
                    return Err(format!("it has said nothing for {silence_max:?}"));
                }
                sleep_until(due).await;
            } else {
                self.asked.notified().await;
            }
        }
    }
}
