//! The client's half of one connection: requests in, bytes out; bytes in, replies out, in any order.
//!
//! ```text
//!   submit(call, deadline) ─▶ correlation ─▶ output ─▶ socket
//!   receive(&mut input) ◀── socket:   Event::Ready (hello answered) │ Event::Reply { correlation, result }
//!   expire(now) ─▶ correlations whose deadline passed;   forget(correlation): nobody waits any more
//! ```
//!
//! Time is a number that the caller defines (milliseconds of a clock of its own); nothing here reads one.
//!
//! Invariants: the hello is the first frame; no request is sent before its answer; a correlation is never used twice;
//! a request that was given up keeps its place in the in-flight bound until the server has answered it, so the server
//! never sees more requests than it offered to serve. Any [`ConnectionError`] is final.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use crate::body::{Body, BodyError, archive};
use crate::error::{ErrorCode, Rejection};
use crate::frame::{FrameError, FrameHeader, MessageType, PROTOCOL_VERSION};
use crate::ids::{SessionId, ShardId};
use crate::limits::{CLIENT_NAME_BYTES_MAX, FRAME_BODY_BYTES_MAX, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_MAX};
use crate::message::read;
use crate::protocol::{Decoded, Frame, FrameDecoder, FrameEncoder};
use crate::schema::{COMMAND_SCHEMA, ErrorReply, Hello, HelloReply};
use crate::validate;

/// A request that is ready to be sent, any number of times: its identity lies in session and sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// A request type.
    pub message: MessageType,
    /// Its archive.
    pub body: Body,
    /// The shard, or [`ShardId::ANY`] to let the server route.
    pub shard: ShardId,
    /// For writes: the session, so that a second sending applies once.
    pub session: SessionId,
    /// For writes: the sequence in the session.
    pub sequence: u64,
}

/// What a server said instead of an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ServerError {
    /// The code; `None` where this version does not know the number.
    pub code: Option<ErrorCode>,
    /// The code's number.
    pub number: u16,
    /// The same request may succeed later, unchanged.
    pub retriable: bool,
    /// Wait at least this long before trying again; 0 means no advice.
    pub retry_after_ms: u32,
    /// With [`ErrorCode::NotLeader`]: the node that leads, as far as the server knows; 0 otherwise.
    pub leader: u64,
    /// What happened, to what, and what to do.
    pub message: String,
}

impl From<ErrorReply> for ServerError {
    fn from(reply: ErrorReply) -> ServerError {
        let ErrorReply { code: number, retriable, retry_after_ms, message } = reply;
        ServerError { code: ErrorCode::from_wire(number), number, retriable, retry_after_ms, leader: 0, message }
    }
}

impl ServerError {
    /// The error in a frame of type `Error`; its header may name the leader.
    fn read(header: &FrameHeader, body: &Body) -> Result<ServerError, BodyError> {
        Ok(ServerError { leader: header.session.0, ..read::<ErrorReply>(body)?.into() })
    }
}

/// What came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The hello was answered; [`Connection::hello`] says what. Requests may be submitted.
    Ready,
    /// A request was answered. Its body is intact but not yet checked as an archive.
    Reply {
        /// Which.
        correlation: u64,
        /// A body of the reply type, or the server's error.
        result: Result<Body, ServerError>,
    },
}

/// Why a connection cannot go on. What is in flight is lost; writes may or may not have happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// What the server sent is damaged or no frame that a client takes.
    #[error("the server's frame cannot be used: {0}")]
    Frame(FrameError),
    /// A frame held something else than its type says.
    #[error("the server's frame cannot be used: {0}")]
    Body(BodyError),
    /// The server refused the hello, or gave up the connection as a whole.
    #[error("the server refuses the connection: {0}")]
    Refused(ServerError),
    /// The hello's answer contradicts itself.
    #[error("the server's hello contradicts itself: {0}; is it a gristmill server?")]
    Hello(Rejection),
    /// A reply to nothing, or of the wrong type.
    #[error("the server sent message type {message_type} with correlation {correlation}, which answers nothing")]
    Unexpected {
        /// The number of its type.
        message_type: u16,
        /// What it claims to answer.
        correlation: u64,
    },
}

/// Why a call cannot be submitted now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The hello is not answered yet.
    #[error("the connection is not ready; wait for the hello")]
    NotReady,
    /// As much is in flight as the server takes.
    #[error("{requests} requests of {bytes} bytes are in flight, as many as the server takes; wait for a reply")]
    Full {
        /// Requests in flight.
        requests: u32,
        /// Bytes of their bodies.
        bytes: u64,
    },
    /// The body is over the server's limit.
    #[error("a body of {length} bytes is over the server's limit of {limit}; split the batch or shorten the value")]
    TooLarge {
        /// Bytes of the body.
        length: usize,
        /// The limit.
        limit: u32,
    },
}

/// The state of one connection.
#[derive(Debug)]
pub struct Connection {
    decoder: FrameDecoder,
    encoder: FrameEncoder,
    hello: Option<HelloReply>,
    in_flight: FxHashMap<u64, InFlight>,
    in_flight_bytes: u64,
    in_flight_max: u32,
    deadlines: BTreeSet<(u64, u64)>,
    next_correlation: u64,
}

#[derive(Debug)]
struct InFlight {
    message: MessageType,
    body_bytes: u64,
    deadline: Option<u64>,
    wanted: bool,
}

/// The hello's correlation; requests count on from here. Zero stands for the connection as a whole.
const HELLO_CORRELATION: u64 = 1;

impl Connection {
    /// A connection that was just opened; its output already holds the hello.
    ///
    /// `client` names this client in the server's logs and is cut to [`CLIENT_NAME_BYTES_MAX`]. `in_flight_max` is
    /// lowered to what the server offers.
    pub fn new(client: &str, in_flight_max: u32) -> Connection {
        let client = client[..client.floor_char_boundary(CLIENT_NAME_BYTES_MAX)].to_owned();
        let hello = archive(&Hello { version_min: PROTOCOL_VERSION, version_max: PROTOCOL_VERSION, client });
        let mut encoder = FrameEncoder::default();
        encoder.push(&FrameHeader::for_body(MessageType::Hello, HELLO_CORRELATION, &hello), &hello);
        Connection {
            decoder: FrameDecoder::new(FRAME_BODY_BYTES_MAX),
            encoder,
            hello: None,
            in_flight: FxHashMap::default(),
            in_flight_bytes: 0,
            in_flight_max: in_flight_max.clamp(1, IN_FLIGHT_MAX),
            deadlines: BTreeSet::new(),
            next_correlation: HELLO_CORRELATION + 1,
        }
    }

    /// What the server said of itself; `None` until [`Event::Ready`].
    pub fn hello(&self) -> Option<&HelloReply> {
        self.hello.as_ref()
    }

    /// Puts a request into the output.
    ///
    /// `deadline` is on the caller's clock and comes back through [`Self::expire`]; `deadline_ms` tells the server how
    /// long from now that is (0: never).
    pub fn submit(&mut self, call: &Call, deadline: Option<u64>, deadline_ms: u32) -> Result<u64, SubmitError> {
        let hello = self.hello.as_ref().ok_or(SubmitError::NotReady)?;
        let (length, limit) = (call.body.len(), hello.frame_body_bytes_max.min(FRAME_BODY_BYTES_MAX));
        if length > limit as usize {
            return Err(SubmitError::TooLarge { length, limit });
        }
        let (requests, bytes) = (self.in_flight.len() as u32, self.in_flight_bytes);
        if requests >= self.in_flight_max || bytes + length as u64 > IN_FLIGHT_BYTES_MAX {
            return Err(SubmitError::Full { requests, bytes });
        }
        assert!(call.message.reply().is_some(), "{:?} is not a request", call.message);
        assert_ne!(call.message, MessageType::Hello, "the connection says hello itself");
        let correlation = self.next_correlation;
        self.next_correlation += 1;
        let header = FrameHeader {
            schema: if call.message == MessageType::Write { COMMAND_SCHEMA } else { 0 },
            shard: call.shard,
            deadline_ms,
            session: call.session,
            sequence: call.sequence,
            ..FrameHeader::for_body(call.message, correlation, &call.body)
        };
        self.encoder.push(&header, &call.body);
        self.in_flight_bytes += length as u64;
        self.deadlines.extend(deadline.map(|deadline| (deadline, correlation)));
        let in_flight = InFlight { message: call.message, body_bytes: length as u64, deadline, wanted: true };
        self.in_flight.insert(correlation, in_flight);
        Ok(correlation)
    }

    /// Nobody waits for this reply any more; it will be dropped when it comes.
    pub fn forget(&mut self, correlation: u64) {
        if let Some(in_flight) = self.in_flight.get_mut(&correlation) {
            in_flight.wanted = false;
            if let Some(deadline) = in_flight.deadline.take() {
                self.deadlines.remove(&(deadline, correlation));
            }
        }
    }

    /// The earliest deadline in flight.
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Gives up one request whose deadline is not after `now` and says which; call until `None`.
    pub fn expire(&mut self, now: u64) -> Option<u64> {
        let (deadline, correlation) = *self.deadlines.first()?;
        if deadline > now {
            return None;
        }
        self.forget(correlation);
        Some(correlation)
    }

    /// Takes bytes off the front of `input` up to the end of the next event. `None` when the input is used up.
    pub fn receive(&mut self, input: &mut &[u8]) -> Result<Option<Event>, ConnectionError> {
        loop {
            match self.decoder.decode(input).map_err(ConnectionError::Frame)? {
                None => return Ok(None),
                Some(Decoded::Refused { error, .. }) => return Err(ConnectionError::Frame(error)),
                Some(Decoded::Frame(frame)) => {
                    if let Some(event) = self.frame(frame)? {
                        return Ok(Some(event));
                    }
                }
            }
        }
    }

    /// Where to read large bodies into without a copy ([`FrameDecoder::spare`]).
    pub fn spare(&mut self) -> Option<&mut [u8]> {
        self.decoder.spare()
    }

    /// Notes that the first `count` bytes of [`Self::spare`] were filled; call [`Self::receive`] afterwards.
    pub fn commit(&mut self, count: usize) {
        self.decoder.commit(count);
    }

    /// What is to be sent; tell [`Self::advance_output`] how much was.
    pub fn output(&self) -> &[u8] {
        self.encoder.pending()
    }

    /// Notes that the first `count` bytes of the output were sent.
    pub fn advance_output(&mut self, count: usize) {
        self.encoder.advance(count);
    }

    /// Takes what is to be sent as a whole and leaves an empty buffer in its place, so that two can alternate: for sockets
    /// that take buffers by value.
    pub fn take_output(&mut self, empty: Vec<u8>) -> Vec<u8> {
        self.encoder.take(empty)
    }

    /// Requests that the server has not answered yet, given up or not.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.len() as u32
    }

    fn frame(&mut self, frame: Frame) -> Result<Option<Event>, ConnectionError> {
        let Frame { header, body } = frame;
        let correlation = header.correlation;
        let unexpected = ConnectionError::Unexpected { message_type: header.message_type, correlation };
        let message = MessageType::from_wire(header.message_type);
        if message == Some(MessageType::Error) && (correlation == 0 || self.hello.is_none()) {
            let error = ServerError::read(&header, &body).map_err(ConnectionError::Body)?;
            return Err(ConnectionError::Refused(error));
        }
        if self.hello.is_none() {
            if message != Some(MessageType::HelloReply) || correlation != HELLO_CORRELATION {
                return Err(unexpected);
            }
            return self.greeted(&body).map(Some);
        }
        let Some(in_flight) = self.in_flight.remove(&correlation) else { return Err(unexpected) };
        self.in_flight_bytes -= in_flight.body_bytes;
        if let Some(deadline) = in_flight.deadline {
            self.deadlines.remove(&(deadline, correlation));
        }
        let result = match message {
            Some(MessageType::Error) => Err(ServerError::read(&header, &body).map_err(ConnectionError::Body)?),
            message if message == in_flight.message.reply() => Ok(body),
            _ => return Err(unexpected),
        };
        Ok(in_flight.wanted.then_some(Event::Reply { correlation, result }))
    }

    fn greeted(&mut self, body: &Body) -> Result<Event, ConnectionError> {
        let hello = read::<HelloReply>(body).map_err(ConnectionError::Body)?;
        validate::hello_reply(&hello).map_err(ConnectionError::Hello)?;
        if hello.version != PROTOCOL_VERSION {
            return Err(ConnectionError::Frame(FrameError::Version { found: hello.version }));
        }
        self.in_flight_max = self.in_flight_max.min(hello.in_flight_max);
        self.hello = Some(hello);
        Ok(Event::Ready)
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
