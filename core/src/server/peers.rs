//! The other cores of this process: requests that belong to them, and answers on their way back.
//!
//! ```text
//!   here: forward(shard) ─ ticket ─► outbox ─► ring ─► peer: dispatch ─► shard ─► answer(ticket) ─► … ─► here: reply
//! ```
//!
//! Invariants: a ticket is answered at most once; at most [`FORWARDS_MAX`] of this core's requests are with other cores,
//! which also bounds the answers that any core has to send back.

use super::boot::{Offered, Opened};
use super::reply::{Answer, ReplyTo};
use gristmill_rpc::body::Body;
use gristmill_rpc::error::{ErrorCode, Rejection};
use gristmill_rpc::frame::FrameHeader;
use gristmill_shardexec::mesh::{Closed, MeshPort, MeshSeat, TrySendError};
use gristmill_shardexec::sync::Notify;
use gristmill_shardexec::{Class, CoreId, spawn};
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// Requests of one core that may be with other cores.
pub(crate) const FORWARDS_MAX: usize = 16 << 10;

/// What cores tell each other.
pub(crate) enum CoreMessage {
    /// Core 0 while starting: the data directory is open, this is what it is.
    Opened(Opened),
    /// To core 0 while starting: this core's own port is bound.
    Bound { port: u16 },
    /// Core 0 while starting: every port is bound, this is what clients are offered.
    Offered(Offered),
    /// Serve this request, which arrived at the sender, and answer under the ticket.
    Request { ticket: u64, header: FrameHeader, body: Body },
    /// The answer to a request that the receiver had sent.
    Answer { ticket: u64, answer: Answer },
    /// Tell your part of the status, one JSON object, under the ticket.
    Status { ticket: u64, verbose: bool },
    /// The process stops: drain and end.
    Stop,
}

/// A core's view of the others.
pub(crate) struct Peers {
    port: Rc<MeshPort<CoreMessage>>,
    outboxes: Vec<Outbox>,
    waiting: RefCell<FxHashMap<u64, ReplyTo>>,
    next_ticket: Cell<u64>,
}

/// What waits for credits of the ring to one core.
#[derive(Default)]
struct Outbox {
    queue: RefCell<VecDeque<CoreMessage>>,
    /// The sender has taken a message out of the queue and waits for a credit: nothing may overtake it.
    sending: Cell<bool>,
    filled: Notify,
}

impl Peers {
    /// Takes the core's seat in the mesh and starts a sender for each peer.
    pub(crate) fn start(seat: MeshSeat<CoreMessage>) -> Rc<Peers> {
        let port = seat.attach();
        let outboxes = port.cores().map(|_| Outbox::default()).collect();
        let peers =
            Rc::new(Peers { port: Rc::new(port), outboxes, waiting: RefCell::default(), next_ticket: Cell::new(1) });
        for core in peers.others() {
            spawn(Class::Request, "mesh sender", Rc::clone(&peers).send_to(core));
        }
        peers
    }

    /// All cores but this one.
    pub(crate) fn others(&self) -> impl Iterator<Item = CoreId> + use<> {
        let own = self.port.core();
        self.port.cores().filter(move |core| *core != own)
    }

    /// The next message from another core.
    pub(crate) async fn receive(&self) -> (CoreId, CoreMessage) {
        self.port.recv().await
    }

    /// Sends a request to the core that owns its shard.
    pub(crate) fn forward(&self, core: CoreId, header: FrameHeader, body: Body, reply: ReplyTo) {
        if let Some(ticket) = self.open_ticket(reply) {
            self.send(core, CoreMessage::Request { ticket, header, body });
        }
    }

    /// Asks another core for its part of the status.
    pub(crate) fn ask_status(&self, core: CoreId, verbose: bool, reply: ReplyTo) {
        if let Some(ticket) = self.open_ticket(reply) {
            self.send(core, CoreMessage::Status { ticket, verbose });
        }
    }

    /// Sends back an answer to a request of another core.
    pub(crate) fn answer(&self, core: CoreId, ticket: u64, answer: Answer) {
        self.send(core, CoreMessage::Answer { ticket, answer });
    }

    /// Hands an answer from another core to whoever waits for it.
    pub(crate) fn answered(&self, ticket: u64, answer: Answer) {
        let reply = self.waiting.borrow_mut().remove(&ticket);
        reply.expect("a ticket is answered once").answer(answer);
    }

    /// Tells every other core to stop.
    pub(crate) fn stop_others(&self) {
        for core in self.others() {
            self.send(core, CoreMessage::Stop);
        }
    }

    /// Remembers whom to answer; `None` where there are too many already, and then the reply said so.
    fn open_ticket(&self, reply: ReplyTo) -> Option<u64> {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= FORWARDS_MAX {
            drop(waiting);
            let message = "too many requests for other cores are in flight; connect to the owning core or try again";
            reply.answer(Err(Rejection::new(ErrorCode::Overloaded, message.to_owned())));
            return None;
        }
        let ticket = self.next_ticket.get();
        self.next_ticket.set(ticket + 1);
        waiting.insert(ticket, reply);
        Some(ticket)
    }

    /// Sends a message, after those that already wait for the same core.
    pub(crate) fn send(&self, core: CoreId, message: CoreMessage) {
        let outbox = &self.outboxes[usize::from(core.0)];
        let mut queue = outbox.queue.borrow_mut();
        if outbox.sending.get() || !queue.is_empty() {
            queue.push_back(message);
        } else if let Err(TrySendError::Full(message)) = self.port.try_send(core, message) {
            queue.push_back(message);
            outbox.filled.notify_one();
        }
        // A peer that has left the mesh has ended: the node is stopping, and nobody waits for the answer.
    }

    /// Empties one outbox, forever, as the ring's credits allow.
    async fn send_to(self: Rc<Self>, core: CoreId) {
        let outbox = &self.outboxes[usize::from(core.0)];
        loop {
            let next = outbox.queue.borrow_mut().pop_front();
            match next {
                Some(message) => {
                    outbox.sending.set(true);
                    let sent = self.port.send(core, message).await;
                    outbox.sending.set(false);
                    if let Err(Closed(_)) = sent {
                        return;
                    }
                }
                None => outbox.filled.notified().await,
            }
        }
    }
}
