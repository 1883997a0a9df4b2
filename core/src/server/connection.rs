//! One client connection: a task that reads and a task that writes, around the sans-I/O protocol.
//!
//! ```text
//!   socket ──recv──► ServerConnection ──Request──► Core::dispatch ──► shard (here or over the mesh)
//!      ▲                   │ output                                        │
//!      └──send── writer ◄──┴────────────── answer(accepted, …) ◄───────────┘
//! ```
//!
//! Invariants
//! - No task per request: an answer is encoded into the connection's output and the writer is woken.
//! - Memory is bounded: the protocol limits requests in flight and the bytes that they and their answers hold. The reader
//!   asks before each request, and keeps the rest of what it received while the protocol wants no more.
//! - A connection ends that has not said hello in time, and one whose client takes nothing of what is sent to it: neither
//!   holds its place for ever. An idle connection that said hello may stay.
//! - Bytes that are no frame end the connection, after the reason has been sent; requests in flight go on, their answers
//!   are dropped.

use super::ConnectionLimits;
use super::core::{Core, OpenConnection, Sender};
use super::observe::CoreMetrics;
use super::reply::{Answer, ReplyTo};
use gristmill_rpc::error::{ErrorCode, Rejection};
use gristmill_rpc::frame::MessageType;
use gristmill_rpc::protocol::{Accepted, ServerConnection, ServerOffer};
use gristmill_shardexec::net::{ShutdownHow, TcpStream};
use gristmill_shardexec::sync::Notify;
use gristmill_shardexec::sync::semaphore::Permit;
use gristmill_shardexec::time::{Instant, timeout, timeout_at};
use gristmill_shardexec::{Class, spawn, yield_if_spent};
use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Bytes that one receive may take.
const RECEIVE_BYTES: usize = 64 << 10;
/// Output buffers larger than this are freed instead of kept for the next send.
const OUTPUT_KEPT_BYTES_MAX: usize = 256 << 10;
/// Time that a refused client has to read why.
const REFUSAL_MAX: Duration = Duration::from_secs(1);
/// Advice to a client that was refused.
const REFUSED_RETRY_AFTER_MS: u32 = 1000;

/// A connection that its reader, its writer and the requests in flight share.
pub(crate) struct Connection {
    protocol: RefCell<ServerConnection>,
    socket: TcpStream,
    /// There is output, or the connection is closing.
    output: Notify,
    /// The protocol may take input again, or the connection is closing.
    input: Notify,
    closing: Cell<bool>,
    sender: Sender,
    /// The writer has sent what there was, or cannot.
    written: Cell<bool>,
    /// When the requests came whose answers wait to be sent.
    answered: RefCell<Vec<Answered>>,
    limits: ConnectionLimits,
    metrics: Rc<CoreMetrics>,
    /// From the accept until reader, writer and the requests in flight have let go.
    _open: OpenConnection,
}

/// A request whose answer is encoded.
struct Answered {
    arrived: Instant,
    recall: bool,
}

impl Connection {
    /// Serves a connection until the client or the server ends it.
    pub(crate) fn serve(core: &Rc<Core>, socket: TcpStream) -> Rc<Connection> {
        let connection = Rc::new(Connection {
            protocol: RefCell::new(ServerConnection::new(core.offer())),
            socket,
            output: Notify::new(),
            input: Notify::new(),
            closing: Cell::new(false),
            sender: Sender::default(),
            written: Cell::new(false),
            answered: RefCell::default(),
            limits: core.limits(),
            metrics: core.metrics(),
            _open: core.connection_opened(),
        });
        let reader = Rc::clone(&connection).read(Rc::clone(core));
        spawn(Class::Request, "connection reader", reader);
        spawn(Class::Request, "connection writer", Rc::clone(&connection).write());
        connection
    }

    /// Encodes an answer and wakes the writer. `arrived` is when the request's last bytes were read.
    pub(crate) fn answer(&self, accepted: Accepted, arrived: Instant, answer: Answer) {
        let recall = accepted.message() == MessageType::Recall;
        self.answered.borrow_mut().push(Answered { arrived, recall });
        let mut protocol = self.protocol.borrow_mut();
        match answer {
            Ok(body) => protocol.reply(accepted, &body),
            Err(rejection) => protocol.reject(accepted, &rejection),
        }
        drop(protocol);
        self.output.notify_one();
        self.input.notify_one();
    }

    /// Takes no more requests; what is in flight is still answered.
    pub(crate) fn close(&self) {
        self.closing.set(true);
        self.input.notify_one();
        self.output.notify_one();
    }

    /// Whether, after [`Connection::close`], every request is answered and the answers are sent, or cannot be.
    pub(crate) fn is_drained(&self) -> bool {
        self.written.get()
    }

    async fn read(self: Rc<Self>, core: Rc<Core>) {
        let hello_by = Instant::now() + self.limits.hello_wait_max;
        let mut buffer = Vec::with_capacity(RECEIVE_BYTES);
        while !self.closing.get() {
            if !self.protocol.borrow().wants_input() {
                self.input.notified().await;
                continue;
            }
            buffer.clear();
            let receive = self.socket.recv(buffer);
            let received;
            (received, buffer) = if self.protocol.borrow().greeted() {
                receive.await
            } else if let Ok(received) = timeout_at(hello_by, receive).await {
                received
            } else {
                self.protocol.borrow_mut().notify(&no_hello(self.limits.hello_wait_max));
                break;
            };
            if !matches!(received, Ok(1..)) || !self.take_requests(&core, &buffer, Instant::now()).await {
                break;
            }
            yield_if_spent().await;
        }
        self.close();
    }

    /// Dispatches the requests in what was received just now, as there is room for their answers; `false` where it is no
    /// protocol of ours.
    async fn take_requests(self: &Rc<Self>, core: &Rc<Core>, mut received: &[u8], now: Instant) -> bool {
        while !self.closing.get() {
            if !self.protocol.borrow().wants_input() {
                self.output.notify_one();
                self.input.notified().await;
                continue;
            }
            let next = self.protocol.borrow_mut().receive(&mut received);
            match next {
                Ok(Some(request)) => {
                    let reply = ReplyTo::connection(Rc::clone(self), request.accepted, now);
                    core.dispatch(&self.sender, &request.header, request.body, now, reply);
                    yield_if_spent().await;
                }
                Ok(None) => {
                    self.output.notify_one();
                    return true;
                }
                Err(error) => {
                    core.bad_frame(self.socket.peer_addr(), error);
                    return false;
                }
            }
        }
        true
    }

    /// Counts what the next send takes along: one clock reading for all of it.
    fn count_answered(&self) {
        let mut answered = self.answered.borrow_mut();
        if !answered.is_empty() {
            let now = Instant::now();
            for Answered { arrived, recall } in answered.drain(..) {
                self.metrics.answered(now - arrived, recall);
            }
        }
        self.metrics.errors.add(self.protocol.borrow_mut().take_errors());
    }

    async fn write(self: Rc<Self>) {
        let mut spare = Vec::new();
        loop {
            if self.protocol.borrow().output_bytes() == 0 {
                if self.closing.get() && self.protocol.borrow().in_flight() == 0 {
                    break;
                }
                self.output.notified().await;
                continue;
            }
            self.count_answered();
            let output = self.protocol.borrow_mut().take_output(std::mem::take(&mut spare));
            let Some(buffer) = self.send(output).await else {
                self.protocol.borrow_mut().abandon_output();
                break;
            };
            self.protocol.borrow_mut().output_sent();
            spare = buffer;
            spare.clear();
            spare.shrink_to(OUTPUT_KEPT_BYTES_MAX);
            self.input.notify_one();
        }
        self.close();
        // The other side may be gone already; there is nobody left to tell.
        let _ = self.socket.shutdown(ShutdownHow::Both).await;
        self.written.set(true);
    }

    /// Sends all of it; `None` where the client has gone, or takes nothing for too long.
    async fn send(&self, mut output: Vec<u8>) -> Option<Vec<u8>> {
        let mut done = 0;
        while done < output.len() {
            let sending = timeout(self.limits.send_wait_max, self.socket.send(output, done));
            let (sent, buffer) = sending.await.ok()?;
            done += sent.ok()?;
            output = buffer;
        }
        Some(output)
    }
}

fn no_hello(waited: Duration) -> Rejection {
    let message = format!("no hello came through within {waited:?}; connect again and say hello first");
    Rejection::new(ErrorCode::DeadlineExceeded, message)
}

/// Tells a client that `limit` connections are open already, and closes.
pub(crate) async fn refuse(socket: TcpStream, offer: Arc<ServerOffer>, limit: u32, _permit: Permit) {
    let message =
        format!("{limit} connections are open on this core, the most that it takes; close some, or try again");
    let mut protocol = ServerConnection::new(offer);
    protocol.notify(&Rejection::new(ErrorCode::Overloaded, message).retry_after_ms(REFUSED_RETRY_AFTER_MS));
    let tell = async {
        let (mut told, mut buffer) = socket.send_all(protocol.take_output(Vec::new())).await;
        if told.is_ok() {
            told = socket.shutdown(ShutdownHow::Write).await;
        }
        // A close with bytes unread is a reset, which may overtake the reason.
        while told.is_ok() {
            buffer.clear();
            let received;
            (received, buffer) = socket.recv(buffer).await;
            told = received.and_then(|count| if count > 0 { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) });
        }
    };
    // Whoever does not read is not told.
    let _ = timeout(REFUSAL_MAX, tell).await;
}
