//! Where an answer goes: to a connection of this core, or back over the mesh to the core that holds it.

use super::connection::Connection;
use super::peers::Peers;
use gristmill_rpc::body::Body;
use gristmill_rpc::error::{ErrorCode, Rejection};
use gristmill_rpc::protocol::Accepted;
use gristmill_shardexec::CoreId;
use gristmill_shardexec::sync::oneshot;
use gristmill_shardexec::time::Instant;
use std::rc::Rc;

/// What a request is answered with.
pub(crate) type Answer = Result<Body, Rejection>;

/// Answers one request, once. Dropped without an answer (its task panicked) it says so to the client.
pub(crate) struct ReplyTo(Option<Target>);

enum Target {
    /// The client is connected here; its request arrived then.
    Connection(Rc<Connection>, Accepted, Instant),
    /// Another core waits for it under a ticket.
    Peer { peers: Rc<Peers>, core: CoreId, ticket: u64 },
    /// A task of this core waits for it.
    Task(oneshot::Sender<Answer>),
}

impl ReplyTo {
    pub(crate) fn connection(connection: Rc<Connection>, accepted: Accepted, arrived: Instant) -> ReplyTo {
        ReplyTo(Some(Target::Connection(connection, accepted, arrived)))
    }

    pub(crate) fn peer(peers: Rc<Peers>, core: CoreId, ticket: u64) -> ReplyTo {
        ReplyTo(Some(Target::Peer { peers, core, ticket }))
    }

    pub(crate) fn task(sender: oneshot::Sender<Answer>) -> ReplyTo {
        ReplyTo(Some(Target::Task(sender)))
    }

    /// Hands over the answer.
    pub(crate) fn answer(mut self, answer: Answer) {
        self.deliver(answer);
    }

    fn deliver(&mut self, answer: Answer) {
        match self.0.take() {
            Some(Target::Connection(connection, accepted, arrived)) => connection.answer(accepted, arrived, answer),
            Some(Target::Peer { peers, core, ticket }) => peers.answer(core, ticket, answer),
            Some(Target::Task(sender)) => {
                // The task may have given up; then nobody wants the answer.
                let _ = sender.send(answer);
            }
            None => {}
        }
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        if self.0.is_some() {
            let lost = "the server lost this request to a defect of its own; a write may or may not have happened, \
                        retry it with the same session and sequence";
            self.deliver(Err(Rejection::new(ErrorCode::Internal, lost.to_owned())));
        }
    }
}
