//! The server's half of one connection: frames in, requests out; replies in any order, bytes out.
//!
//! ```text
//!   recv ─▶ receive(&mut input) ─▶ Request ─▶ (shard …) ─▶ reply / reject ─▶ take_output ─▶ send
//!                 └── hello, refused frames, surplus requests: answered in here ──▲
//! ```
//!
//! How a server drives it:
//! 1. while [`ServerConnection::wants_input`], call [`ServerConnection::receive`] with bytes received until it returns
//!    `None`; what is left when it wants no more waits, and nothing further is received;
//! 2. check each [`Request`] with [`crate::validate::request`], serve it, and answer it exactly once, at any time, with
//!    [`ServerConnection::reply`] or [`ServerConnection::reject`];
//! 3. whenever there is output, send [`ServerConnection::take_output`], then call [`ServerConnection::output_sent`]; where
//!    sending failed, [`ServerConnection::abandon_output`];
//! 4. on an error from `receive`, send what output there is (it holds the reason) and close.
//!
//! Invariants: before the hello nothing but a hello of [`HELLO_BODY_BYTES_MAX`] is taken; never more than the offered
//! number of requests, nor [`IN_FLIGHT_BYTES_MAX`] of their bodies, are in flight: a surplus one is answered
//! `Overloaded` at once. Every accepted request is counted until it is answered. A driver that follows the steps holds at
//! most [`REPLIES_BYTES_MAX`] of replies, however many requests one receive brings and however late they are answered:
//! each takes its largest reply out of that budget when it is accepted.

use std::sync::Arc;

use crate::body::{Body, access, archive};
use crate::error::{ErrorCode, Rejection};
use crate::frame::{FrameError, FrameHeader, MessageType, PROTOCOL_VERSION};
use crate::ids::SessionId;
use crate::limits::{
    ERROR_MESSAGE_BYTES_MAX, FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES, HELLO_BODY_BYTES_MAX, IN_FLIGHT_BYTES_MAX,
    IN_FLIGHT_MAX, OUTPUT_BYTES_HIGH, OVERLOAD_RETRY_AFTER_MS, REPLIES_BYTES_MAX, VALUE_BYTES_MAX,
};
use crate::protocol::{Decoded, Frame, FrameDecoder, FrameEncoder};
use crate::schema::{ArchivedHello, HelloReply};
use crate::validate;

/// What a server offers to every client that says hello. Cheap to clone; build it once for all connections.
#[derive(Debug, Clone)]
pub struct ServerOffer {
    reply: Body,
    frame_body_bytes_max: u32,
    in_flight_max: u32,
}

impl ServerOffer {
    /// An offer of what a reply says.
    ///
    /// # Panics
    /// If the reply contradicts itself or offers more than `limits.rs` allows: that is a defect of the server.
    pub fn new(reply: &HelloReply) -> Arc<ServerOffer> {
        assert_eq!(reply.version, PROTOCOL_VERSION, "the one version there is");
        assert!(reply.frame_body_bytes_max <= FRAME_BODY_BYTES_MAX, "offers larger frames than there are");
        assert!((1..=IN_FLIGHT_MAX).contains(&reply.in_flight_max), "offers 1 to IN_FLIGHT_MAX requests in flight");
        assert_eq!(validate::hello_reply(reply), Ok(()), "a consistent map");
        Arc::new(ServerOffer {
            reply: archive(reply),
            frame_body_bytes_max: reply.frame_body_bytes_max,
            in_flight_max: reply.in_flight_max,
        })
    }
}

/// A request that waits for its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The frame's header.
    pub header: FrameHeader,
    /// The body, intact but not yet checked as an archive.
    pub body: Body,
    /// Names the request when it is answered.
    pub accepted: Accepted,
}

/// The counted part of a request: what [`ServerConnection::reply`] needs to know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    message: MessageType,
    correlation: u64,
    body_bytes: u32,
}

impl Accepted {
    /// What was asked.
    pub fn message(&self) -> MessageType {
        self.message
    }

    /// The client's number for the request.
    pub fn correlation(&self) -> u64 {
        self.correlation
    }
}

/// The state of one connection.
#[derive(Debug)]
pub struct ServerConnection {
    offer: Arc<ServerOffer>,
    decoder: FrameDecoder,
    encoder: FrameEncoder,
    greeted: bool,
    in_flight: u32,
    in_flight_bytes: u64,
    /// What the answers to the requests in flight may take.
    owed_bytes: usize,
    /// Output that was taken and is not known to be sent.
    sending_bytes: usize,
    /// Nobody will take the output.
    abandoned: bool,
    errors: u64,
}

/// Bytes that a small reply or an error takes at the most, with its header.
const SMALL_REPLY_BYTES_MAX: usize = 4 << 10;
/// Bytes that the largest reply takes, with its header.
const LARGE_REPLY_BYTES_MAX: usize = FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX as usize;

const _: () = assert!(FRAME_HEADER_BYTES + ERROR_MESSAGE_BYTES_MAX + 64 <= SMALL_REPLY_BYTES_MAX);

/// Bytes that the answer to a request may take, with its header.
fn reply_bytes_max(message: MessageType) -> usize {
    match message {
        MessageType::Write
        | MessageType::PeerHello
        | MessageType::PreVote
        | MessageType::Vote
        | MessageType::Append
        | MessageType::TransferLeader
        | MessageType::AddLearner
        | MessageType::ChangeMembership => SMALL_REPLY_BYTES_MAX,
        MessageType::Get => VALUE_BYTES_MAX + SMALL_REPLY_BYTES_MAX,
        _ => LARGE_REPLY_BYTES_MAX,
    }
}

impl ServerConnection {
    /// A connection that was just accepted.
    pub fn new(offer: Arc<ServerOffer>) -> ServerConnection {
        let body_bytes_max = HELLO_BODY_BYTES_MAX.min(offer.frame_body_bytes_max);
        ServerConnection {
            offer,
            decoder: FrameDecoder::new(body_bytes_max),
            encoder: FrameEncoder::default(),
            greeted: false,
            in_flight: 0,
            in_flight_bytes: 0,
            owed_bytes: 0,
            sending_bytes: 0,
            abandoned: false,
            errors: 0,
        }
    }

    /// Takes bytes off the front of `input` up to the end of the next request. `None` when the input is used up.
    ///
    /// An error is final: send the output, which holds the reason, and close.
    pub fn receive(&mut self, input: &mut &[u8]) -> Result<Option<Request>, FrameError> {
        loop {
            match self.decode(input) {
                Ok(None) => return Ok(None),
                Ok(Some(Decoded::Frame(frame))) => {
                    if let Some(request) = self.frame(frame) {
                        return Ok(Some(request));
                    }
                }
                Ok(Some(Decoded::Refused { header, error })) => {
                    self.push_error(header.correlation, &Rejection::new(error.code(), error.to_string()));
                }
                Err(error) => {
                    self.push_error(0, &Rejection::new(error.code(), error.to_string()));
                    return Err(error);
                }
            }
        }
    }

    /// Answers a request. The body must be an archive of the reply type to its message type.
    pub fn reply(&mut self, to: Accepted, body: &Body) {
        self.settle(to);
        let message = to.message.reply().expect("only requests are accepted");
        if body.len() > FRAME_BODY_BYTES_MAX as usize {
            let text = format!("the reply of {} bytes does not fit into one frame; ask for less at once", body.len());
            self.push_error(to.correlation, &Rejection::new(ErrorCode::TooLarge, text));
            return;
        }
        if !self.abandoned {
            self.encoder.push(&FrameHeader::for_body(message, to.correlation, body), body);
        }
    }

    /// Answers a request with an error.
    pub fn reject(&mut self, to: Accepted, rejection: &Rejection) {
        self.settle(to);
        self.push_error(to.correlation, rejection);
    }

    /// Sends an error that concerns the connection as a whole, for example `ShuttingDown`. The client gives the
    /// connection up when it reads this, so answer what is in flight first.
    pub fn notify(&mut self, rejection: &Rejection) {
        self.push_error(0, rejection);
    }

    /// Whether to read on: `false` while the client does not fetch its replies, and while those to come may be too much.
    /// To be asked before every request, not only before every receive.
    pub fn wants_input(&self) -> bool {
        let replies = self.encoder.len() + self.sending_bytes + self.owed_bytes;
        self.encoder.len() < OUTPUT_BYTES_HIGH && replies + LARGE_REPLY_BYTES_MAX <= REPLIES_BYTES_MAX
    }

    /// Takes the bytes to send and leaves an empty buffer in their place, so that two can alternate. They count as held
    /// until [`ServerConnection::output_sent`] or the next take.
    pub fn take_output(&mut self, empty: Vec<u8>) -> Vec<u8> {
        let output = self.encoder.take(empty);
        self.sending_bytes = output.len();
        output
    }

    /// What was taken has been sent.
    pub fn output_sent(&mut self) {
        self.sending_bytes = 0;
    }

    /// Nothing can be sent any more: forgets the output there is, and from now on answers settle their requests only.
    pub fn abandon_output(&mut self) {
        self.abandoned = true;
        self.sending_bytes = 0;
        self.encoder = FrameEncoder::default();
    }

    /// Number of bytes to send.
    pub fn output_bytes(&self) -> usize {
        self.encoder.len()
    }

    /// Whether the hello is through.
    pub fn greeted(&self) -> bool {
        self.greeted
    }

    /// Requests accepted and not yet answered.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Requests answered with an error since this was last asked. What ends a connection is no request.
    pub fn take_errors(&mut self) -> u64 {
        std::mem::take(&mut self.errors)
    }

    /// Whether a frame has begun and not ended: a close now is a truncation.
    pub fn mid_frame(&self) -> bool {
        self.decoder.mid_frame()
    }

    /// The next frame. Correlation 0 stands for the connection as a whole, so a frame that bears it cannot be answered.
    fn decode(&mut self, input: &mut &[u8]) -> Result<Option<Decoded>, FrameError> {
        let decoded = self.decoder.decode(input)?;
        if decoded.as_ref().is_some_and(|decoded| decoded.header().correlation == 0) {
            return Err(self.decoder.give_up(FrameError::Correlation));
        }
        Ok(decoded)
    }

    fn frame(&mut self, frame: Frame) -> Option<Request> {
        let Frame { header, body } = frame;
        let rejection = match MessageType::from_wire(header.message_type) {
            None => validate::unknown_message(header.message_type),
            Some(MessageType::Hello) if !self.greeted => {
                self.greet(header.correlation, &body);
                return None;
            }
            Some(message) if !self.greeted || message == MessageType::Hello || message.reply().is_none() => {
                validate::not_allowed(message)
            }
            Some(message) => match self.admit(message, &header) {
                Ok(accepted) => return Some(Request { header, body, accepted }),
                Err(rejection) => rejection,
            },
        };
        self.push_error(header.correlation, &rejection);
        None
    }

    fn greet(&mut self, correlation: u64, body: &Body) {
        let verdict = match access::<ArchivedHello>(body) {
            Ok(hello) => validate::hello(hello).and_then(|()| {
                let versions = hello.version_min.to_native()..=hello.version_max.to_native();
                if versions.contains(&PROTOCOL_VERSION) {
                    Ok(())
                } else {
                    Err(unsupported(*versions.start(), *versions.end()))
                }
            }),
            Err(error) => Err(error.into()),
        };
        if let Err(rejection) = verdict {
            return self.push_error(correlation, &rejection);
        }
        self.greeted = true;
        self.decoder.set_body_bytes_max(self.offer.frame_body_bytes_max);
        let header = FrameHeader::for_body(MessageType::HelloReply, correlation, &self.offer.reply);
        self.encoder.push(&header, &self.offer.reply);
    }

    fn admit(&mut self, message: MessageType, header: &FrameHeader) -> Result<Accepted, Rejection> {
        let (body_bytes, count_max) = (header.body_length, self.offer.in_flight_max);
        let bytes = self.in_flight_bytes + u64::from(body_bytes);
        if self.in_flight >= count_max || bytes > IN_FLIGHT_BYTES_MAX {
            let text = format!(
                "{} requests of {} bytes are in flight on this connection, at most {count_max} of {IN_FLIGHT_BYTES_MAX} \
                 bytes are served at once; wait for replies before sending more",
                self.in_flight, self.in_flight_bytes
            );
            return Err(Rejection::new(ErrorCode::Overloaded, text).retry_after_ms(OVERLOAD_RETRY_AFTER_MS));
        }
        self.in_flight += 1;
        self.in_flight_bytes = bytes;
        self.owed_bytes += reply_bytes_max(message);
        Ok(Accepted { message, correlation: header.correlation, body_bytes })
    }

    fn settle(&mut self, accepted: Accepted) {
        assert!(self.in_flight > 0, "answered more requests than were accepted");
        assert!(self.in_flight_bytes >= u64::from(accepted.body_bytes), "answered a request twice");
        self.in_flight -= 1;
        self.in_flight_bytes -= u64::from(accepted.body_bytes);
        self.owed_bytes -= reply_bytes_max(accepted.message);
    }

    fn push_error(&mut self, correlation: u64, rejection: &Rejection) {
        self.errors += u64::from(correlation != 0);
        if self.abandoned {
            return;
        }
        let body = archive(&rejection.to_reply());
        let header = FrameHeader::for_body(MessageType::Error, correlation, &body);
        self.encoder.push(&FrameHeader { session: SessionId(rejection.leader), ..header }, &body);
    }
}

fn unsupported(low: u16, high: u16) -> Rejection {
    Rejection::new(
        ErrorCode::UnsupportedVersion,
        format!(
            "the client speaks protocol versions {low} to {high}, the server {PROTOCOL_VERSION}; upgrade the older side"
        ),
    )
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
