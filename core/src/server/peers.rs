//! The other cores of this process: requests that belong to them, and answers on their way back.
//!
//! ```text
//!   here: forward(shard) ─ ticket ─► outbox ─► ring ─► peer: dispatch ─► shard ─► answer(ticket) ─► … ─► here: reply
//! ```
//!
//! Invariants: a ticket is answered at most once, with `ShuttingDown` where its core has left already; at most [`FORWARDS_MAX`] of this core's requests are with other cores,
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
use std::collections::{BTreeSet, VecDeque};
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
    /// The sender's clients wait for nothing any more, and it serves until everybody has said so.
    Drained,
}

/// A core's view of the others.
pub(crate) struct Peers {
    port: Rc<MeshPort<CoreMessage>>,
    outboxes: Vec<Outbox>,
    waiting: RefCell<FxHashMap<u64, ReplyTo>>,
    next_ticket: Cell<u64>,
    /// Cores whose clients wait for nothing any more.
    drained: RefCell<BTreeSet<CoreId>>,
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
        let peers = Rc::new(Peers {
            port: Rc::new(port),
            outboxes,
            waiting: RefCell::default(),
            next_ticket: Cell::new(1),
            drained: RefCell::default(),
        });
        for core in peers.others() {
            spawn(Class::Request, "mesh sender", Rc::clone(&peers).send_to(core));
        }
        peers
    }

    /// This core.
    pub(crate) fn own(&self) -> CoreId {
        self.port.core()
    }

    /// All cores but this one.
    pub(crate) fn others(&self) -> impl Iterator<Item = CoreId> + use<> {
        let own = self.own();
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

    /// Tells every other core that this one's clients wait for nothing any more.
    pub(crate) fn tell_drained(&self) {
        for core in self.others() {
            self.send(core, CoreMessage::Drained);
        }
    }

    /// Another core's clients wait for nothing any more.
    pub(crate) fn note_drained(&self, core: CoreId) {
        self.drained.borrow_mut().insert(core);
    }

    /// Whether no other core's clients wait for anything.
    pub(crate) fn are_drained(&self) -> bool {
        let drained = self.drained.borrow();
        self.others().all(|core| drained.contains(&core))
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
            return;
        }
        match self.port.try_send(core, message) {
            Ok(()) => {}
            Err(TrySendError::Full(message)) => {
                queue.push_back(message);
                outbox.filled.notify_one();
            }
            Err(TrySendError::Closed(message)) => {
                drop(queue);
                self.undeliverable(&message);
            }
        }
    }

    /// A peer that has left the mesh has ended: the node is stopping. Whoever waits for an answer of that core is told;
    /// nobody waits for anything else.
    fn undeliverable(&self, message: &CoreMessage) {
        if let CoreMessage::Request { ticket, .. } | CoreMessage::Status { ticket, .. } = message {
            let message = "the server is shutting down; ask again later";
            self.answered(*ticket, Err(Rejection::new(ErrorCode::ShuttingDown, message)));
        }
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
                    if let Err(Closed(message)) = sent {
                        self.undeliverable(&message);
                        for left in std::mem::take(&mut *outbox.queue.borrow_mut()) {
                            self.undeliverable(&left);
                        }
                        return;
                    }
                }
                None => outbox.filled.notified().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gristmill_rpc::frame::MessageType;
    use gristmill_shardexec::cores::{BodyPanic, Cores};
    use gristmill_shardexec::mesh::mesh;
    use gristmill_shardexec::sync::oneshot;
    use gristmill_shardexec::time::{sleep, timeout};
    use gristmill_shardexec::{ExecutorConfig, IoChoice};
    use std::time::Duration;

    /// A request for a core that had left was dropped, and its client waited until it gave up.
    #[test]
    fn a_request_for_a_core_that_has_left_is_answered() {
        let mut seats = mesh(2, 4).into_iter();
        let config = |core| ExecutorConfig { core, io: IoChoice::Posix, ..ExecutorConfig::default() };
        let cores = Cores::start(2, BodyPanic::Report, config, |core| {
            let seat = seats.next().expect("a seat a core");
            move || async move {
                let peers = Peers::start(seat);
                if core == CoreId(1) {
                    return;
                }
                let body = Body::copy_from(&[]);
                let header = FrameHeader::for_body(MessageType::Get, 1, &body);
                // More than the ring takes: some find the core gone when they are sent, some wait for it in the outbox.
                let mut answers = Vec::new();
                for _ in 0..20 {
                    let (sender, answer) = oneshot::channel();
                    peers.forward(CoreId(1), header, body.clone(), ReplyTo::task(sender));
                    answers.push(answer);
                }
                sleep(Duration::from_millis(100)).await;
                let (sender, answer) = oneshot::channel();
                peers.forward(CoreId(1), header, body, ReplyTo::task(sender));
                // The first ones may have got into the ring before the other core left.
                for answer in answers.into_iter().skip(4).chain([answer]) {
                    let answer = timeout(Duration::from_secs(20), answer).await.expect("in time").expect("answered");
                    assert_eq!(answer.expect_err("nobody is there").code, ErrorCode::ShuttingDown);
                }
            }
        });
        for outcome in cores.expect("cores start").join() {
            outcome.expect("no panic");
        }
    }
}
